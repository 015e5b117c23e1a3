"""Pictures of a run: grids of samples, curves of the losses."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.errors import DataError
from minigan.extras import needs
from minigan.report import Record

# Okabe and Ito's colours, told apart with any kind of colour vision.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SHADE = 110  # grey of the lines between samples: visible beside black and white


def image_grid(samples: Any, columns: int | None = None, scale: int | None = None) -> Array:
    """Images side by side in rows, divided by thin lines.

    Args:
        samples: (N, H, W, C) in [0, 1], C 1 or 3; values outside are clipped.
        columns: images in a row; by default as many as make the picture about square.
        scale: how many pixels each pixel becomes in both directions; by default enough to see 8x8 images.

    Returns uint8 (height, width) for C = 1, else (height, width, 3). `DataError` for other shapes.

    >>> import numpy as np
    >>> from minigan.pictures import image_grid
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
