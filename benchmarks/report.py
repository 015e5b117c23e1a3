"""What was measured, as tables in text or Markdown, as JSON, and as a chart."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from statistics import median, quantiles
from typing import Any

from benchmarks import machine
from benchmarks.cuda import CardRow, traffic
from benchmarks.peers import ALL, CARD, Contestant
from benchmarks.runner import Row
from benchmarks.scenarios import Chain
from benchmarks.table import TABLE, find

Table = list[list[str]]  # rows of cells, of which the first row is the heading
OURS = {c.name for c in ALL if c.ours}
MB = 1e6


def fastest_peer(rows: list[Row]) -> Row | None:
    """Of those that measured, the peer with the smallest median."""
    peers = [row for row in rows if row.contestant not in OURS and row.status == "ok" and row.rounds]
    return min(peers, key=lambda row: median(row.rounds), default=None)


def ratio(row: Row, other: Row | None) -> float | None:
    """Time of a step over another's, the median over the rounds that both have."""
    pairs = list(zip(row.rounds, other.rounds, strict=False)) if other else []
    return median(a / b for a, b in pairs) if pairs else None


def spread(values: list[float]) -> float | None:
    """The range of the middle half of the values over their median."""
    if len(values) < 3:
        return None
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return (high - low) / middle


def _cell(value: float | None, form: str = ".2f", scale: float = 1.0) -> str:
    return "" if value is None else f"{value * scale:{form}}"


def _middle(values: list[float]) -> float | None:
    return median(values) if values else None


def _note(row: Row) -> str:
    return row.note if row.status == "ok" else f"{row.status}: {row.note}"


def _steps_table(rows: list[Row], tiny: bool) -> Table:
    scenario = find(rows[0].scenario, tiny)
    chain, best = isinstance(scenario, Chain), fastest_peer(rows)
    work = "µs an operation" if chain else "% of sgemm"
    table = [["", "ms a step", "spread, %", "/ fastest peer", work, "peak MB", "error64", "error32", ""]]
    for row in rows:
        share: float | None = None
        if isinstance(scenario, Chain):
            share = median(row.rounds) / scenario.operations * 1e6 if row.rounds else None
        elif row.rounds and scenario.flops:
            share = 100 * median(
                scenario.flops / t / rate for t, rate in zip(row.rounds, row.sgemm, strict=False)
            )
        table.append(
            [
                row.contestant,
                _cell(_middle(row.rounds), ".3f", 1e3),
                _cell(spread(row.rounds), ".1f", 100),
                _cell(ratio(row, best)),
                _cell(share, ".2f" if chain else ".0f"),
                _cell(row.peak, ".0f", 1 / MB),
                _cell(row.error64, ".0e"),
                _cell(row.error32, ".0e"),
                _note(row),
            ]
        )
    return table


def _rates(rows: list[CardRow]) -> str:
    """What the GPU could do in the rounds of these."""
    known = {"copy": "GB/s copied", "sgemm": "TFLOP/s sgemm", "tf32": "TFLOP/s with TF32"}
    scale = {"copy": 1e-9, "sgemm": 1e-12, "tf32": 1e-12}
    middles = {name: _middle([rate for row in rows for rate in getattr(row, name)]) for name in known}
    said = [f"{middle * scale[name]:.3g} {known[name]}" for name, middle in middles.items() if middle]
    return f"; {', '.join(said)}" if said else ""


def _card_table(rows: list[CardRow], tiny: bool) -> Table:
    scenario, best = find(rows[0].scenario, tiny), fastest_peer([*rows])
    amounts = {"copy": traffic(scenario), "sgemm": scenario.flops}
    table = [["", "ms a step", "spread, %", "/ fastest peer", "% of copy", "% of sgemm", "% in kernels"]]
    table[0] += ["peak MB", "s to first step", "error64", "error32", ""]
    for row in rows:
        shares = [
            _middle([100 * n / t / rate for t, rate in zip(row.rounds, getattr(row, name), strict=False)])
            for name, n in amounts.items()
        ]
        step_s = _middle(row.rounds)
        busy = 100 * row.kernel_s / step_s if row.kernel_s is not None and step_s else None
        clock, notes = ratio(row, row.by_clock()), [_note(row)]
        if clock is not None and not tiny and abs(clock - 1) > 0.1:
            notes.append(f"the clock says {1 / clock:.2f} times as long")
        if row.kernel_note:
            notes.append(f"no time in kernels: {row.kernel_note}")
        table.append(
            [
                row.contestant,
                _cell(step_s, ".4f", 1e3),
                _cell(spread(row.rounds), ".1f", 100),
                _cell(ratio(row, best)),
                *(_cell(share, ".1f") for share in shares),
                _cell(busy, ".0f"),
                _cell(row.peak, ".0f", 1 / MB),
                _cell(row.cold_s),
                _cell(row.error64, ".0e"),
                _cell(row.error32, ".0e"),
                "; ".join(filter(None, notes)),
            ]
        )
    return table


def _busy_table(rows: list[Row]) -> Table:
    best = fastest_peer(rows)
    table = [["", "ms quiet", "ms busy", "busy / quiet", "at worst", "quiet / fastest peer", ""]]
    for row in rows:
        slower = [b / a for a, b in zip(row.rounds, row.busy, strict=False)]
        cells = [_cell(_middle(times), ".3f", 1e3) for times in (row.rounds, row.busy)]
        cells += [_cell(_middle(slower)), _cell(max(slower, default=None)), _cell(ratio(row, best))]
        table.append([row.contestant, *cells, _note(row)])
    return table


def _start_table(rows: list[Row]) -> Table:
    table = [["", "s, cold cache", "s, warm cache", "of that import", "peak MB", ""]]
    for row in rows:
        times = [row.cold_s, _middle(row.warm_s), _middle(row.import_s)]
        table.append([row.contestant, *map(_cell, times), _cell(row.peak, ".0f", 1 / MB), _note(row)])
    return table


def table(rows: list[Row], tiny: bool) -> tuple[str, Table]:
    """Title and table of one scenario on so many threads."""
    first = rows[0]
    scenario = TABLE[first.scenario]
    about = "at a tiny size" if tiny else scenario.about
    on_card = [row for row in rows if isinstance(row, CardRow)]
    if on_card:
        return f"{scenario.name}: {about}{_rates(on_card)}", _card_table(on_card, tiny)
    title = f"{scenario.name}: {about}; {first.threads} thread{'s' if first.threads > 1 else ''}"
    if scenario.measure == "busy":
        return title, _busy_table(rows)
    if scenario.measure == "start":
        return title, _start_table(rows)
    return title, _steps_table(rows, tiny)


def groups(rows: list[Row]) -> Iterator[list[Row]]:
    """The rows of one scenario on so many threads after another."""
    for _, group in groupby(rows, key=lambda row: (row.scenario, row.threads)):
        yield list(group)


def summary(rows: list[Row]) -> Table:
    """A line for each scenario and number of threads: minigan, the fastest peer, and what is compared besides."""
    pairs = [("minigan", ""), ("minigan", "tf-graph"), ("minigan-eager", "torch")]
    heading = ["scenario", "threads", "minigan, ms", "fastest peer", "its ms"]
    result = [heading + [f"{ours} / {peer or 'it'}" for ours, peer in pairs]]
    for group in groups(rows):
        best = fastest_peer(group)
        measured = {row.contestant: row for row in group if row.status == "ok" and row.rounds}
        if best is None or not OURS & set(measured):
            continue
        ms = [measured[name].rounds if name in measured else [] for name in ("minigan", best.contestant)]
        mine, its = (_cell(_middle(rounds), ".3f", 1e3) for rounds in ms)
        ratios = [
            ratio(measured[ours], measured.get(peer or best.contestant)) if ours in measured else None
            for ours, peer in pairs
        ]
        result.append([best.scenario, str(best.threads), mine, best.contestant, its, *map(_cell, ratios)])
    return result


def _columns(cells: Table) -> list[tuple[int, bool]]:
    """The columns that are not empty, and whether each is aligned to the left: names and notes."""
    columns = list(enumerate(zip(*cells, strict=True)))
    return [(k, k == 0 or not column[0]) for k, column in columns if any(column[1:])]


def as_text(title: str, cells: Table) -> str:
    """A title and columns."""
    lines = [title]
    columns = [(k, left, max(len(row[k]) for row in cells)) for k, left in _columns(cells)]
    for row in cells:
        parts = [row[k].ljust(width) if left else row[k].rjust(width) for k, left, width in columns]
        lines.append("  " + "  ".join(parts).rstrip())
    return "\n".join([*lines, ""])


def as_markdown(title: str, cells: Table) -> str:
    """A title and a table."""
    columns = _columns(cells)
    first, *rest = ("| " + " | ".join(row[k].replace("|", "\\|") for k, _ in columns) + " |" for row in cells)
    rule = "|" + "|".join("---" if left else "---:" for _, left in columns) + "|"
    return "\n".join([f"**{title}**", "", first, rule, *rest, ""])


def _card_words(card: dict[str, Any]) -> str:
    """A line about a GPU."""
    return (
        f"{card['name']}, {card['memory'] / 1e9:.0f} GB, driver {card['driver'] or 'unknown'} for CUDA"
        f" {card['driver_cuda']}; CUDA {card['cuda']}, CuPy {card['cupy']}\n"
    )


class Results:
    """All that was measured, and on what."""

    def __init__(self, contestants: list[Contestant], settings: dict[str, Any]) -> None:
        on_card = any(contestant.device != "cpu" for contestant in contestants)
        versions = {c.package: c.version for c in contestants if c.is_installed} | machine.libraries()
        self.about: dict[str, Any] = {
            "machine": machine.description() | ({"card": machine.card()} if on_card else {}),
            "versions": versions,
            "settings": settings,
        }
        self.rows: list[Row] = []

    @classmethod
    def read(cls, path: str) -> "Results":
        """What `write` wrote."""
        with open(path, encoding="utf-8") as file:
            whole = json.load(file)
        results = cls.__new__(cls)
        kind = CardRow if "card" in whole["machine"] else Row
        results.rows = [kind(**row) for row in whole.pop("rows")]
        results.about = whole
        return results

    def write(self, path: str) -> None:
        """All of it as JSON: all rounds of all contestants."""
        whole = {**self.about, "load_at_the_end": machine.load(), "rows": [asdict(row) for row in self.rows]}
        with open(path, "w", encoding="utf-8") as file:
            json.dump(whole, file, indent=1)
            file.write("\n")

    def heading(self) -> str:
        """Machine and versions in a few lines."""
        about = self.about["machine"]
        card = _card_words(about["card"]) if "card" in about else ""
        versions = ", ".join(f"{name} {version}" for name, version in self.about["versions"].items())
        return (
            f"{card}{about['cpu']} ({' '.join(about['vectors'])}), {about['cpus']} CPUs, load {about['load']};"
            f" {about['system']}, Python {about['python']}\n{versions}"
        )

    def tables(self) -> Iterator[tuple[str, Table]]:
        """Titles and tables, the summary first."""
        lines = summary(self.rows)
        if len(lines) > 1:
            yield "Steps, minigan and the fastest peer", lines
        for group in groups(self.rows):
            yield table(group, self.about["settings"]["tiny"])


def plot(results: Results, path: str) -> None:
    """Bars: the time of a step over the fastest peer's, for each scenario, a panel for each number of threads."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    measured = [group for group in groups(results.rows) if fastest_peer(group)]  # the others have no ratio
    threads = sorted({group[0].threads for group in measured})
    figure, axes = plt.subplots(
        len(threads) or 1, 1, figsize=(12, 4.2 * (len(threads) or 1)), squeeze=False, layout="constrained"
    )
    names = [
        name
        for name in dict.fromkeys(c.name for c in (*ALL, *CARD))
        if any(row.contestant == name and row.rounds for g in measured for row in g)
    ]
    colours = dict(zip(names, plt.get_cmap("tab20").colors, strict=False))  # type: ignore[attr-defined]
    for axis, n in zip(axes[:, 0], threads, strict=False):
        here = [group for group in measured if group[0].threads == n]
        for k, group in enumerate(here):
            best = fastest_peer(group)
            values = [(row.contestant, r) for row in group if (r := ratio(row, best)) and row.status == "ok"]
            for j, (name, value) in enumerate(values):
                place = k + (j + 0.5) / len(values) * 0.84 - 0.42
                axis.bar(place, value, 0.8 / len(values), color=colours[name])
                label = f"{value:.2f}" if value < 10 else f"{value:.0f}"
                axis.text(place, value * 1.04, label, ha="center", fontsize=6, rotation=90)
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.margins(y=0.15)
        axis.set_xticks(range(len(here)), [group[0].scenario for group in here])
        axis.set_ylabel("time of a step / fastest peer")
        on_card = any(isinstance(row, CardRow) for group in here for row in group)
        where = "on the GPU" if on_card else f"{n} thread{'s' if n > 1 else ''}"
        axis.set_title(f"{where}: lower is faster")
        axis.legend([Patch(color=colours[name]) for name in names], names, ncols=5, fontsize=7)
    figure.suptitle(results.heading().splitlines()[0], fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
