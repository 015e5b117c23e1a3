"""What a run shows: progress on the terminal, grids of samples, curves of the losses."""

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from minigan.backend import Array
from minigan.errors import DataError, ExtraError

Record = dict[str, Any]  # one line of metrics.jsonl

# Okabe and Ito's colours, told apart with any kind of colour vision.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SHADE = 110  # grey of the lines between samples: visible beside black and white


def needs(module: str, extra: str) -> Any:
    """Import an optional package, or raise `ExtraError` naming the extra that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExtraError(
            f'{module.partition(".")[0]} is missing ({error}); pip install "minigan[{extra}]"'
        ) from None


# Pictures


def image_grid(samples: Any, columns: int | None = None, scale: int | None = None) -> Array:
    """Images side by side in rows, divided by thin lines.

    Args:
        samples: (N, H, W, C) in [0, 1], C 1 or 3; values outside are clipped.
        columns: images in a row; by default as many as make the picture about square.
        scale: how many pixels each pixel becomes in both directions; by default enough to see 8x8 images.

    Returns uint8 (height, width) for C = 1, else (height, width, 3). `DataError` for other shapes.

    >>> import numpy as np
    >>> from minigan.report import image_grid
    >>> image_grid(np.zeros((6, 8, 8, 1)), columns=3, scale=2).shape
    (35, 52)
    """
    images = np.asarray(samples)
    if images.ndim != 4 or 0 in images.shape or images.shape[3] not in (1, 3):
        raise DataError(f"cannot draw samples of shape {images.shape}: expected (N, H, W, 1) or (N, H, W, 3)")
    count, height, width, channels = images.shape
    columns = columns or round((count * height / width) ** 0.5) or 1
    scale = scale or max(1, round(48 / max(height, width)))
    line = max(1, scale // 3)
    rows = -(-count // columns)
    pixels = (np.clip(np.nan_to_num(images), 0, 1) * 255 + 0.5).astype(np.uint8)
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    high, wide = height * scale + line, width * scale + line
    grid = np.full((rows * high + line, columns * wide + line, channels), SHADE, np.uint8)
    for i, image in enumerate(pixels):
        top, left = i // columns * high + line, i % columns * wide + line
        grid[top : top + height * scale, left : left + width * scale] = image
    return grid[..., 0] if channels == 1 else grid


def save_png(path: str | os.PathLike[str], pixels: Array) -> None:
    """Write uint8 (height, width) or (height, width, 3) as a PNG file; needs Pillow, extra `cli`."""
    needs("PIL.Image", "cli").fromarray(pixels).save(path, format="PNG", optimize=True)


def loss_curves(path: str | os.PathLike[str], records: Sequence[Record]) -> None:
    """Draw both losses, and below them mean D(x) and D(G(z)), over the steps; needs Matplotlib, extra `plot`.

    The raw values are faint, and over them runs a moving average of 1/20 of the run.
    """
    figure = needs("matplotlib.figure", "plot").Figure(figsize=(8, 6), dpi=120, layout="constrained")
    losses, outputs = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    steps = np.array([r["step"] for r in records])
    for axes, key, label, colour in (
        (losses, "d_loss", "discriminator", BLUE),
        (losses, "g_loss", "generator", ORANGE),
        (outputs, "d_real", "D(x), real images", GREEN),
        (outputs, "d_fake", "D(G(z)), generated images", PURPLE),
    ):
        values = np.array([r[key] for r in records])
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(values, max(1, len(values) // 20)), color=colour, linewidth=1.8, label=label)
    outputs.axhline(0.5, color="#666666", linewidth=0.8, linestyle=":")
    losses.set_ylabel("loss")
    outputs.set(xlabel="step", ylabel="mean output of D", ylim=(0, 1), xlim=(0, max(1, int(steps[-1]))))
    for axes in (losses, outputs):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    figure.savefig(path, format="png")


def smooth(values: Array, width: int) -> Array:
    """The mean over up to `width` values around each; fewer at the ends."""
    ends = np.arange(len(values)) + (width + 1) // 2
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    high, low = np.minimum(ends, len(values)), np.maximum(ends - width, 0)
    return (total[high] - total[low]) / (high - low)  # type: ignore[no-any-return]


# Progress


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
