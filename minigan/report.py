"""What a run says while it goes on: lines, and progress on the terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.errors import ExtraError
from minigan.extras import needs

Record = dict[str, Any]  # one line of metrics.jsonl
LOGGED = ("d_loss", "g_loss", "penalty", "d_real", "d_fake")  # in every record, as means over its steps


def say(text: str, error: bool = False) -> None:
    """Print a line at once; a reader that has gone away (`| head`) must not end the run."""
    _write(sys.stderr if error else sys.stdout, text + "\n")


def _write(stream: Any, text: str) -> None:
    if stream is not None:  # as it is where the program was started with it closed
        with contextlib.suppress(OSError, ValueError):
            encoding = stream.encoding or "utf-8"  # a terminal that cannot show a letter gets its number
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()


class Progress:
    """Where a run tells how far it is: here nowhere."""

    def update(self, record: Record) -> None:
        """Show the values of a step."""

    def note(self, text: str) -> None:
        """Print a line about something that happened."""

    def close(self) -> None:
        """Leave the last state on the screen."""


class Lines(Progress):
    """One line about every tenth of the run, for logs and pipes."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop, self.shown = start, stop, 0

    def update(self, record: Record) -> None:
        """Print a line if another tenth of the run is over."""
        done, total = record["step"] - self.start, max(1, self.stop - self.start)
        if done * 10 // total > self.shown:
            self.shown = done * 10 // total
            say(f"step {record['step']:>6}/{self.stop}  {_values(record)}  {_left(record, self.stop)}")

    def note(self, text: str) -> None:
        """Print the text among the lines, on standard error."""
        say(text, error=True)


class Screen:
    """A stream that stays one where the terminal behind it goes away: rich would end the program."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write as far as that goes."""
        _write(self.stream, text)
        return len(text)

    def flush(self) -> None:
        """Do nothing: what was written is."""


class Bar(Progress):
    """A live bar with the losses under it, on a terminal: the part of the whole run that is done, from step 0."""

    def __init__(self, start: int, stop: int, console: Any) -> None:
        bars, live, text = needs("rich.progress", "cli"), needs("rich.live", "cli"), needs("rich.text", "cli")
        self.bar = bars.Progress(
            bars.BarColumn(None),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TextColumn("{task.fields[left]}"),
            console=console,
            expand=True,
        )
        self.stop = stop
        self.task = self.bar.add_task("", total=stop, completed=start, left="")
        self.text = text.Text("compiling kernels", style="dim")
        group = needs("rich.console", "cli").Group(self.bar, self.text)
        # What is printed meanwhile comes above the bar, but where standard error is a file, that stays there.
        errors = sys.stderr is not None and sys.stderr.isatty()
        self.live = live.Live(group, console=console, refresh_per_second=5, redirect_stderr=errors)
        self.live.start()
        console.show_cursor(True)  # rich hides it, and a process that is killed could not bring it back

    def update(self, record: Record) -> None:
        """Show the values of a step."""
        self.bar.update(self.task, completed=record["step"], left=_left(record, self.stop))
        self.text.style = ""
        self.text.plain = _values(record)

    def note(self, text: str) -> None:
        """Print the text above the bar."""
        say(text, error=True)

    def close(self) -> None:
        """Leave the last state on the screen."""
        self.live.stop()


def _values(record: Record) -> str:
    return (
        f"D {record['d_loss']:.3f}  G {record['g_loss']:.3f}  D(x) {record['d_real']:.2f}"
        f"  D(G(z)) {record['d_fake']:.2f}  {_speed(record['steps_per_second'])} steps/s"
        f"  {_speed(record['images_per_second'])} images/s"
    )


def _speed(x: float) -> str:
    return f"{x:.2g}" if x < 10 else f"{x:,.0f}"


def _left(record: Record, stop: int) -> str:
    minutes, seconds = divmod(round((stop - record["step"]) / max(record["steps_per_second"], 1e-3)), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left"
        if minutes >= 60
        else f"{minutes}:{seconds:02} left"
    )


def progress(start: int, stop: int) -> Progress:
    """A live bar if standard output is a terminal and rich is installed, plain lines otherwise."""
    console = _terminal()
    return Lines(start, stop) if console is None else Bar(start, stop, console)


def _terminal() -> Any:
    """Rich's console on standard output, if that is a terminal and rich is installed; otherwise `None`."""
    try:
        if sys.stdout is not None and sys.stdout.isatty():
            console = needs("rich.console", "cli").Console(file=Screen(sys.stdout))
            if console.is_terminal and not console.is_dumb_terminal:
                return console
    except (ExtraError, ValueError):  # ValueError: standard output was closed
        pass
    return None


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """What shows how far the parts of some work are, on a terminal, until it is done: called with name, done, total."""
    console = _terminal()
    if console is None:
        yield lambda name, done, total: None
        return
    bars = needs("rich.progress", "cli")
    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.TimeElapsedColumn())
    with bars.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("")
        yield lambda name, done, total: bar.update(task, description=name, completed=done, total=total)


@contextlib.contextmanager
def downloads() -> Iterator[Callable[[str, int, int], object]]:
    """What shows how much of a file is there: a bar on a terminal, and elsewhere a line at its end."""
    if sys.stdout is None or not sys.stdout.isatty():
        yield lambda file, done, size: say(f"{file}: {size:,} bytes") if done == size else None
        return
    rich, console = needs("rich.progress", "cli"), needs("rich.console", "cli")
    columns = ["{task.description}", rich.BarColumn(), rich.DownloadColumn(), rich.TransferSpeedColumn()]
    with rich.Progress(*columns, console=console.Console(file=Screen(sys.stdout))) as bars:
        tasks: dict[str, Any] = {}

        def show(file: str, done: int, size: int) -> None:
            if file not in tasks:
                tasks[file] = bars.add_task(file)
            bars.update(tasks[file], completed=done, total=size)

        yield show


def column(records: Sequence[Record], key: str) -> Array:
    """One value of every record, float64; NaN where a record has no number, or a larger one, as a damaged file may."""
    values = (record.get(key) for record in records)
    numbers = (
        x if isinstance(x, int | float | np.floating) and -1e300 < x < 1e300 else np.nan for x in values
    )
    return np.fromiter(numbers, np.float64, len(records))


def text_curves(records: Sequence[Record], width: int = 60) -> list[str]:
    """Both losses, and below them mean D(x) and D(G(z)) from 0 to 1, as lines of text, three for each.

    Where records have a `coverage`, see `minigan.monitor`, it is drawn as well, from 0 to 1.

    Args:
        records: as in `metrics.jsonl`; many are averaged into columns, and values that are not finite are left out.
        width: characters of a line; 20 of them are for the labels, which end in the least and largest value drawn.

    They are drawn in block characters, or in ASCII where standard output cannot show these. No record, no lines.

    >>> from minigan.report import text_curves
    >>> records = [{"step": 10 * i, "d_loss": i, "g_loss": 1 / i, "d_real": 0.6, "d_fake": 0.4} for i in range(1, 9)]
    >>> print(text_curves(records)[-1])
    step                10 to 80
    """
    if not records:
        return []
    marks, rows, lines = " ▁▂▃▄▅▆▇█", 3, []
    try:
        marks.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        marks = " .:#"
    full = len(marks) - 1
    looked = [record for record in records if "coverage" in record]
    for key, name, seen in (
        ("d_loss", "loss of D", records),
        ("g_loss", "loss of G", records),
        ("d_real", "D(x)", records),
        ("d_fake", "D(G(z))", records),
        ("coverage", "coverage", looked),
    ):
        if not seen:
            continue
        values = column(seen, key)
        with np.errstate(all="ignore"):
            parts = [
                part[np.isfinite(part)]
                for part in np.array_split(values, max(1, min(width - 20, len(values))))
            ]
            means = np.array([part.mean() if part.size else np.nan for part in parts])
            drawn = np.array([0.0, 1.0]) if not name.startswith("loss") else means[np.isfinite(means)]
            low, high = (drawn.min(), drawn.max()) if drawn.size else (np.nan, np.nan)
            levels = 1 + (rows * full - 1) * np.clip((means - low) / ((high - low) or 1.0), 0, 1)
        levels = np.nan_to_num(levels).round().astype(int)
        for row, label, end in ((2, name, f"{high:.3g}"), (1, "", ""), (0, "", f"{low:.3g}")):
            cells = "".join(marks[min(max(level - row * full, 0), full)] for level in levels)
            lines.append(f"{label:9} {end:>9} {cells}".rstrip())
    first, last = column(records, "step")[[0, -1]]
    return [*lines, f"{'step':19} {first:,.0f} to {last:,.0f}"]
