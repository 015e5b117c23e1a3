"""`python -m benchmarks`: minigan and its peers on this machine, in one run."""

import argparse
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence

from benchmarks import cuda, machine, report
from benchmarks.peers import ON
from benchmarks.runner import Options, Runner
from benchmarks.table import DEFAULTS, GROUPS, TABLE

PICTURES = (".png", ".svg", ".pdf")
NO_DEVICE = 7  # the exit code, as that of the command `minigan`


def _scenarios(names: Sequence[str], parser: argparse.ArgumentParser, device: str = "cpu") -> list[str]:
    unknown = [name for name in names if name not in TABLE and name not in GROUPS]
    if unknown:
        parser.error(f"no scenario {', '.join(unknown)}; there are {', '.join([*TABLE, *GROUPS])}")
    chosen = [one for name in names for one in GROUPS.get(name, [name])]
    there = cuda.names()
    elsewhere = [name for name in dict.fromkeys(chosen) if device == "cuda" and name not in there]
    if elsewhere:
        parser.error(f"--device cuda: not for {', '.join(elsewhere)}, but for {', '.join(there)}")
    return list(dict.fromkeys(chosen)) or DEFAULTS[device]


def _threads(text: str | None, quick: bool, parser: argparse.ArgumentParser, device: str) -> list[int]:
    available = len(machine.available())
    if device == "cuda":
        if text is not None:
            parser.error("--threads: not with --device cuda, where all CPUs may be used")
        return [available]
    if text is None:
        return [1] if quick or available == 1 else [1, 2]
    try:
        threads = sorted({int(part) for part in text.split(",")})
    except ValueError:
        parser.error(f"--threads: {text!r} is no list of numbers such as 1,2")
    if not 1 <= threads[0] <= threads[-1] <= available:
        parser.error(f"--threads: {text}, but this process may use 1 to {available} CPUs")
    return threads


def _peers(text: str | None, quick: bool, parser: argparse.ArgumentParser, device: str) -> list[str]:
    peers = [contestant.name for contestant in ON[device] if not contestant.ours]
    if text is None:
        return [] if quick else peers
    names = [] if text == "none" else text.split(",")
    unknown = [name for name in names if name not in peers]
    if unknown:
        parser.error(f"--peers: no peer {', '.join(unknown)}; there are {', '.join(peers)}, and none")
    return names


def _check_outputs(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """What would fail after the measurements is to fail before them."""
    for option in ("json", "markdown", "plot"):
        path = getattr(arguments, option)
        folder = os.path.dirname(os.path.abspath(path or "."))
        if path and (os.path.isdir(path) or not os.access(folder, os.W_OK)):
            parser.error(f"--{option}: {path} cannot be written")
    if arguments.plot and not arguments.plot.endswith(PICTURES):
        parser.error(f"--plot: {arguments.plot} does not end in {', '.join(PICTURES)}")
    if arguments.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error('--plot needs matplotlib: pip install "minigan[plot]"')


def _read(path: str, parser: argparse.ArgumentParser) -> report.Results:
    try:
        return report.Results.read(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"--read: {path} is not what --json writes: {error}")


def _parser() -> argparse.ArgumentParser:
    wide = max(map(len, [*TABLE, *GROUPS])) + 2
    scenarios = "\n".join(f"  {s.name:{wide}}{s.about}" for s in TABLE.values())
    groups = "\n".join(f"  {name:{wide}}{', '.join(names)}" for name, names in GROUPS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure minigan beside other frameworks, in turn, in processes of their own.",
        epilog=f"scenarios:\n{scenarios}\n\ngroups of scenarios:\n{groups}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help="what to measure; all if none is named"
    )
    parser.add_argument(
        "--device", choices=[*ON], default="cpu", help="where; cuda is the first GPU, and needs CuPy; cpu"
    )
    parser.add_argument("--threads", metavar="N,…", help="numbers of threads; 1,2 if there are two CPUs")
    parser.add_argument("--peers", metavar="NAME,…", help="other contestants than minigan; all, or none")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, two rounds, no peers: does all of it work?"
    )
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="turns of each contestant; 15, and 7 on a GPU"
    )
    parser.add_argument("--json", metavar="FILE", help="write all that was measured, on which machine")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--plot", metavar="FILE", help="draw a chart of the ratios; needs matplotlib")
    parser.add_argument("--read", metavar="FILE", help="measure nothing: report what --json has written")
    return parser


def _measure(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[report.Results, int]:
    """What was measured, and the exit code."""
    device = arguments.device
    names = _scenarios(arguments.scenarios, parser, device)
    peers = _peers(arguments.peers, arguments.quick, parser, device)
    contestants = [c for c in ON[device] if c.ours or c.name in peers]
    threads = _threads(arguments.threads, arguments.quick, parser, device)
    options = (
        Options(threads, tiny=True, rounds=2, seconds=0.005, starts=1)
        if arguments.quick
        else Options(threads, rounds=cuda.ROUNDS if device == "cuda" else Options.rounds)
    )
    if arguments.rounds is not None:
        if arguments.rounds < 1:
            parser.error(f"--rounds: {arguments.rounds}, expected at least 1")
        options.rounds = arguments.rounds
    results = report.Results(contestants, vars(options) | {"scenarios": names})

    def say(what: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{what}", end="\r", file=sys.stderr, flush=True)

    runner = (cuda.CardRunner if device == "cuda" else Runner)(contestants, options, say)
    printed = 0
    results.rows = runner.rows
    try:
        print(results.heading(), end="\n\n", flush=True)
        for rows in runner.run(names):
            say("")
            print(report.as_text(*report.table(rows, options.tiny)), flush=True)
            printed += len(rows)
        ours = [row for row in results.rows if row.contestant in report.OURS]
        code = int(any(row.status in ("failed", "wrong") for row in ours))
    except KeyboardInterrupt:
        say("")
        for rows in report.groups(results.rows[printed:]):
            print(report.as_text(*report.table(rows, options.tiny)))
        print("interrupted: this is what has been measured")
        code = 130
    finally:
        runner.close()
    return results, code


def _no_card() -> str:
    """Why there is no GPU to measure on; empty if there is one."""
    import minigan  # here, because nothing else of this process needs it
    from minigan.backend import device_name

    try:
        device_name("cuda")
    except minigan.DeviceError as error:
        return str(error)
    return ""


def main() -> int:
    """Measure or read, then report."""
    parser = _parser()
    arguments = parser.parse_args()
    _check_outputs(arguments, parser)
    if arguments.read:
        results, code = _read(arguments.read, parser), 0
        print(results.heading(), end="\n\n")
        for title, cells in results.tables():
            print(report.as_text(title, cells))
    else:
        why = _no_card() if arguments.device == "cuda" else ""
        if why:
            parser.exit(NO_DEVICE, f"{parser.prog}: error: --device cuda: {why}\n")
        results, code = _measure(arguments, parser)
        lines = report.summary(results.rows)
        if len(lines) > 1:
            print(report.as_text("Steps, minigan and the fastest peer", lines))
    if arguments.json:
        results.write(arguments.json)
    if arguments.markdown:
        with open(arguments.markdown, "w", encoding="utf-8") as file:
            file.write("\n".join(report.as_markdown(title, cells) for title, cells in results.tables()))
    if arguments.plot:
        report.plot(results, arguments.plot)
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.exit(main())
