"""What a run says while it goes on: lines, and progress on the terminal."""

import contextlib
import sys
from typing import Any, Protocol

from minigan.errors import ExtraError
from minigan.extras import needs

Record = dict[str, Any]  # one line of metrics.jsonl


def say(text: str, error: bool = False) -> None:
    """Print a line at once; a reader that has gone away (`| head`) must not end the run."""
    stream = sys.stderr if error else sys.stdout
    if stream is not None:  # as it is where the program was started with it closed
        with contextlib.suppress(OSError, ValueError):
            encoding = stream.encoding or "utf-8"  # a terminal that cannot show a letter gets its number
            print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


class Progress(Protocol):
    """Where a run tells how far it is."""

    def update(self, record: Record) -> None:
        """Show the values of a step."""

    def close(self) -> None:
        """Leave the last state on the screen."""


class Silence:
    """Shows nothing."""

    def update(self, record: Record) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Leave nothing."""


class Lines:
    """One line about every tenth of the run, for logs and pipes."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop, self.shown = start, stop, 0

    def update(self, record: Record) -> None:
        """Print a line if another tenth of the run is over."""
        done, total = record["step"] - self.start, self.stop - self.start
        if done * 10 // total > self.shown:
            self.shown = done * 10 // total
            say(f"step {record['step']:>6}/{self.stop}  {_values(record)}  {_left(record, self.stop)}")

    def close(self) -> None:
        """Leave the lines as they are."""


class Bar:
    """A live bar with the losses under it, on a terminal."""

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
        self.live = live.Live(group, console=console, refresh_per_second=5)
        self.live.start()

    def update(self, record: Record) -> None:
        """Show the values of a step."""
        self.bar.update(self.task, completed=record["step"], left=_left(record, self.stop))
        self.text.style = ""
        self.text.plain = _values(record)

    def close(self) -> None:
        """Leave the last state on the screen."""
        self.live.stop()


def _values(record: Record) -> str:
    return (
        f"D {record['d_loss']:.3f}  G {record['g_loss']:.3f}  D(x) {record['d_real']:.2f}"
        f"  D(G(z)) {record['d_fake']:.2f}  {record['steps_per_second']:.0f} steps/s"
    )


def _left(record: Record, stop: int) -> str:
    minutes, seconds = divmod(round((stop - record["step"]) / max(record["steps_per_second"], 1e-3)), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left"
        if minutes >= 60
        else f"{minutes}:{seconds:02} left"
    )


def progress(start: int, stop: int) -> Progress:
    """A live bar if standard output is a terminal and rich is installed, plain lines otherwise."""
    try:
        if sys.stdout is not None and sys.stdout.isatty():
            console = needs("rich.console", "cli").Console()
            if console.is_terminal and not console.is_dumb_terminal:
                return Bar(start, stop, console)
    except (ExtraError, ValueError):  # ValueError: standard output was closed
        pass
    return Lines(start, stop)
