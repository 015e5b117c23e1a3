"""Pictures of a run: grids of samples, points in a plane, curves of the losses, and the page that shows them all.

Every file is written whole or not at all: `OSError` where it cannot be written, with nothing left behind.
"""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.errors import DataError
from minigan.extras import needs
from minigan.files import replacing
from minigan.report import Record, column

# Okabe and Ito's colours, told apart with any kind of colour vision.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
MOST_PIXELS = 2**26  # of a grid
SHADE = 110  # grey of the lines between samples: visible beside black and white
FRAMES = 60  # in an animation, at most
POINTS = 2000  # of a kind in a plot, at most: more hide what is below them


def image_grid(samples: Any, columns: int | None = None, scale: int | None = None) -> Array:
    """Images side by side in rows, divided by thin lines.

    Args:
        samples: (N, H, W, C), C 1 or 3, uint8 or floats in [0, 1]; values outside are clipped.
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
    if rows * columns * height * width * scale**2 > MOST_PIXELS:
        raise DataError(
            f"{count:,} samples of {height}x{width} are more than a picture of {MOST_PIXELS:,} pixels holds"
        )
    if images.dtype != np.uint8:
        images = (np.clip(np.nan_to_num(images), 0, 1) * 255 + 0.5).astype(np.uint8)
    pixels = images.repeat(scale, axis=1).repeat(scale, axis=2)
    high, wide = height * scale + line, width * scale + line
    grid = np.full((rows * high + line, columns * wide + line, channels), SHADE, np.uint8)
    for i, image in enumerate(pixels):
        top, left = i // columns * high + line, i % columns * wide + line
        grid[top : top + height * scale, left : left + width * scale] = image
    return grid[..., 0] if channels == 1 else grid


def side_by_side(real: Any, generated: Any, columns: int | None = None) -> Array:
    """Real samples beside as many generated ones, each under its name, as pixels.

    Args:
        real, generated: of one shape, otherwise as `image_grid` takes them, with its result and errors.
        columns: images in a row of each half.

    >>> import numpy as np
    >>> from minigan.pictures import side_by_side
    >>> side_by_side(np.zeros((4, 28, 28, 1)), np.ones((4, 28, 28, 1), np.float32)).dtype
    dtype('uint8')
    """
    real, generated = np.asarray(real), np.asarray(generated)
    if real.shape != generated.shape:
        raise DataError(
            f"real samples of shape {real.shape} beside generated ones of shape {generated.shape}: expected the same"
        )
    image = needs("PIL.Image", "cli")
    halves = [image.fromarray(image_grid(samples, columns)) for samples in (real, generated)]
    left, right = (np.asarray(half) for half in _captioned(halves, ["real", "generated"]))
    return np.concatenate([left, np.full_like(left[:, : max(12, left.shape[1] // 20)], 255), right], axis=1)


def beside_nearest(samples: Any, nearest: Any) -> Array:
    """Rows of a sample and the training samples nearest to it, under a caption, as pixels; needs Pillow, extra `cli`.

    Args:
        samples: (N, H, W, C), as `image_grid` takes them, with its errors.
        nearest: (N, k, H, W, C), such as `training[minigan.metrics.memorisation(samples, training).indices]`.

    >>> import numpy as np
    >>> from minigan.pictures import beside_nearest
    >>> beside_nearest(np.zeros((4, 28, 28, 1)), np.ones((4, 5, 28, 28, 1))).dtype
    dtype('uint8')
    """
    samples, nearest = np.asarray(samples), np.asarray(nearest)
    if nearest.ndim != 5 or nearest.shape[0] != len(samples) or nearest.shape[2:] != samples.shape[1:]:
        raise DataError(f"samples of shape {samples.shape} beside nearest ones of shape {nearest.shape}")
    left = image_grid(samples, 1)
    right = image_grid(nearest.reshape(-1, *nearest.shape[2:]), nearest.shape[1])
    gap = np.full_like(left[:, : max(6, left.shape[1] // 5)], 255)
    whole = needs("PIL.Image", "cli").fromarray(np.concatenate([left, gap, right], axis=1))
    return np.asarray(_captioned([whole], ["generated, and nearest in the data"])[0])


def _captioned(pictures: Sequence[Any], texts: Sequence[str]) -> list[Any]:
    """Pillow's pictures of one size with a white strip above that has the text, all as wide as the longest needs."""
    image, draw = needs("PIL.Image", "cli"), needs("PIL.ImageDraw", "cli")
    width, height = pictures[0].size
    size = min(24, max(11, width // 20))
    font, done = needs("PIL.ImageFont", "cli").load_default(size), []
    width = max([width, *(int(font.getlength(text)) + size for text in texts)])
    for picture, text in zip(pictures, texts, strict=True):
        canvas = image.new(picture.mode, (width, height + size * 3 // 2), "white")
        canvas.paste(picture, (0, size * 3 // 2))
        draw.Draw(canvas).text((size // 4, size * 3 // 4), text, "black", font, anchor="lm")
        done.append(canvas)
    return done


def save_png(path: str | os.PathLike[str], pixels: Array) -> None:
    """Write uint8 (height, width) or (height, width, 3) as a PNG file; needs Pillow, extra `cli`."""
    buffer = io.BytesIO()
    needs("PIL.Image", "cli").fromarray(pixels).save(buffer, format="PNG", optimize=True)
    _write(path, buffer.getvalue())


def save_gif(
    path: str | os.PathLike[str], frames: Sequence[str | os.PathLike[str]], milliseconds: int = 200
) -> None:
    """Write pictures one after the other as an animation that begins again; needs Pillow, extra `cli`.

    Args:
        frames: PNG files of one size, in order, such as `samples/step_001000.png`, whose step stands above the
            picture, as does any other name. Of more than 60 are taken 60, the first and the last among them.
        milliseconds: how long each is shown; the last stays ten times as long.

    Grey pictures keep every value; colours are the nearest of 256 chosen for each picture. `DataError` if there is no
    frame, or one is missing, damaged or of another size.
    """
    image = needs("PIL.Image", "cli")
    if not frames:
        raise DataError("an animation needs at least one frame")
    pictures: list[Any] = []
    names = [
        os.fspath(frames[i]) for i in np.unique(np.linspace(0, len(frames) - 1, FRAMES).round().astype(int))
    ]
    for name in names:
        try:
            with image.open(name, formats=("PNG",)) as picture:
                pictures.append(picture.convert("L" if picture.mode == "L" else "RGB"))
        except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
            raise DataError(f"{name}: cannot be read as a PNG picture: {error}") from None
        if pictures[-1].size != pictures[0].size:
            sizes = "{}x{}, unlike {}x{}".format(*pictures[-1].size, *pictures[0].size)
            raise DataError(f"{name}: is {sizes} of {names[0]}: an animation has frames of one size")
    texts = [os.path.splitext(os.path.basename(name))[0] for name in names]
    steps = [text.rpartition("_")[2] for text in texts]
    texts = [
        f"step {int(step):,}" if step.isdecimal() else text for step, text in zip(steps, texts, strict=True)
    ]
    first, *rest = (
        picture if picture.mode == "L" else picture.convert("P", palette=image.Palette.ADAPTIVE)
        for picture in _captioned(pictures, texts)
    )
    times, buffer = [milliseconds] * len(rest) + [10 * milliseconds], io.BytesIO()
    first.save(buffer, format="GIF", save_all=True, append_images=rest, duration=times, loop=0)
    _write(path, buffer.getvalue())


def points_plot(
    path: str | os.PathLike[str],
    real: Any,
    generated: Any,
    density: Callable[[Array], Any] | None = None,
    extent: Sequence[float] | None = None,
    title: str = "",
) -> None:
    """Draw real and generated points over the discriminator's probability as a PNG; needs Matplotlib, extra `plot`.

    Args:
        real, generated: (N, P) and (M, P); there may be none of one kind. Of more than 2,000 each as many are drawn,
            always the same ones; of more than two dimensions the first two, of one dimension histograms.
        density: from points (K, P) float32 to K values of D(x) in [0, 1]; only drawn for P = 2.
        extent: left, right, bottom and top of the picture (left and right for P = 1); by default a square around the
            real points, so that all pictures of a run show the same plane, or around the generated ones if there are
            no real ones.
        title: stands above the picture.

    How many points lie outside the picture, or are not finite, stands beside their name. `DataError` for other shapes.
    """
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and so lies outside
        real, generated = (
            np.asarray(points).astype(np.float32).astype(float) for points in (real, generated)
        )
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1] or real.shape[1] == 0:
        raise DataError(
            f"cannot draw real points of shape {real.shape} with generated ones of shape {generated.shape}:"
            " expected (N, P) and (M, P)"
        )
    figure = needs("matplotlib.figure", "plot").Figure(figsize=(6.6, 6), dpi=110, layout="constrained")
    axes, dimensions = figure.subplots(), real.shape[1]
    low, high = (
        _frame((real if len(real) else generated)[:, :2]) if extent is None else np.reshape(extent, (-1, 2)).T
    )
    if density and dimensions == 2:
        lines = np.linspace(np.maximum(low, -3e38), np.minimum(high, 3e38), 101).T  # within float32
        grid = np.stack(np.meshgrid(*lines), axis=-1).reshape(-1, 2).astype(np.float32)
        values = np.ma.masked_invalid(np.clip(np.asarray(density(grid), float), 0, 1).reshape(101, 101))
        greys = [f"{grey:.3f}" for grey in np.linspace(0.98, 0.58, 10)]
        filled = axes.contourf(*lines, values, np.linspace(0, 1, 11), colors=greys)
        figure.colorbar(filled, ax=axes, label="D(x)", shrink=0.8, ticks=(0, 0.25, 0.5, 0.75, 1))
        if (values < 0.5).any() and (values > 0.5).any():
            axes.contour(*lines, values, [0.5], colors="#333333", linewidths=1, linestyles="dashed")
    for points, name, colour, marker in ((real, "real", BLUE, "o"), (generated, "generated", ORANGE, "x")):
        if not len(points):
            continue
        seen = points[((points[:, :2] >= low) & (points[:, :2] <= high)).all(axis=1)]
        outside = len(points) - len(seen)
        label = f"{name} ({outside:,} of {len(points):,} outside)" if outside else name
        if dimensions == 1:
            parts = np.histogram(seen, bins=50, range=(low[0], high[0]))[0] / max(1, len(points))
            axes.stairs(parts, np.linspace(low[0], high[0], 51), color=colour, linewidth=2, label=label)
            continue
        if len(seen) > POINTS:  # at random: every so many could be all of one mode
            seen = seen[np.random.default_rng(0).choice(len(seen), POINTS, replace=False)]
        axes.scatter(*seen[:, :2].T, s=9, color=colour, marker=marker, linewidths=0.8, alpha=0.7, label=label)
    of = f" of {dimensions}" if dimensions > 2 else ""
    axes.set(title=title, xlabel=f"dimension 1{of}", xlim=(low[0], high[0]))
    if dimensions == 1:
        axes.set(ylabel="part of the points")
    else:
        axes.set(ylabel=f"dimension 2{of}", ylim=(low[1], high[1]), aspect="equal")
    if len(real) or len(generated):
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _save_figure(path, figure)


def _frame(points: Array) -> tuple[Array, Array]:
    """The lower and upper corner of a square around all finite points, with a margin."""
    points = points[np.isfinite(points).all(axis=1)]
    points = points if len(points) else np.zeros((1, points.shape[1]))
    low, high, scale = points.min(axis=0), points.max(axis=0), np.abs(points).max() or 1.0
    half = 0.6 * (high - low).max()
    half = half if half > 1e-6 * scale else scale
    return (low + high) / 2 - half, (low + high) / 2 + half


def loss_curves(path: str | os.PathLike[str], records: Sequence[Record]) -> None:
    """Draw both losses, and below them mean D(x) and D(G(z)), over the steps; needs Matplotlib, extra `plot`.

    The raw values are faint, and over them runs a moving average of 1/20 of the run. Values that are not finite are
    gaps. Where records have a `coverage`, see `minigan.monitor`, it stands beside D(x). `DataError` if no record has a
    step.
    """
    figure = needs("matplotlib.figure", "plot").Figure(figsize=(8, 6), dpi=120, layout="constrained")
    losses, outputs = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    steps = column(records, "step")
    if not np.isfinite(steps).any():
        raise DataError("curves need at least one record with a step")
    left, right = np.nanmin(steps), np.nanmax(steps)
    alone = left == right
    thin = slice(None, None, -(-len(steps) // 10_000))  # of longer runs not all can be told apart
    for axes, key, label, colour in (
        (losses, "d_loss", "discriminator", BLUE),
        (losses, "g_loss", "generator", ORANGE),
        (outputs, "d_real", "D(x), real samples", GREEN),
        (outputs, "d_fake", "D(G(z)), generated samples", PURPLE),
    ):
        values = column(records, key)
        mean = smooth(values, max(1, len(values) // 20))[thin]
        axes.plot(steps[thin], values[thin], color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps[thin], mean, color=colour, linewidth=1.8, label=label, marker="o" if alone else None)
    looked = [record for record in records if "coverage" in record]
    if looked:
        covered = column(looked, "coverage")
        outputs.plot(
            column(looked, "step"), covered, color="#333333", linestyle="--", label="coverage of the data"
        )
    outputs.axhline(0.5, color="#666666", linewidth=0.8, linestyle=":")
    losses.set_ylabel("loss")
    outputs.set(xlabel="step", ylabel="mean output of D", ylim=(0, 1), xlim=(left - alone, right + alone))
    outputs.locator_params(axis="x", integer=True)
    outputs.xaxis.set_major_formatter("{x:,.0f}")
    for axes in (losses, outputs):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    _save_figure(path, figure)


def spectrum_plot(path: str | os.PathLike[str], spectra: Mapping[str, Any]) -> None:
    """Draw eigenvalues in the complex plane; needs Matplotlib, extra `plot`.

    Args:
        spectra: for each name a sequence of eigenvalues, such as `minigan.analysis.Field.eigenvalues` gives at
            several steps of a run; up to four.

    Left of the line a game's vector field contracts, right of it expands. `DataError` without finite eigenvalues, or
    for more than four spectra.
    """
    colours = (BLUE, ORANGE, GREEN, PURPLE)
    found = {name: np.asarray(values, np.complex128).reshape(-1) for name, values in spectra.items()}
    if len(found) > len(colours):
        raise DataError(f"{len(found)} spectra in one picture: up to {len(colours)} can be told apart")
    if not any(np.isfinite(values).any() for values in found.values()):
        raise DataError("a spectrum needs at least one finite eigenvalue")
    figure = needs("matplotlib.figure", "plot").Figure(figsize=(7, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="#666666", linewidth=0.8)
    axes.axhline(0, color="#DDDDDD", linewidth=0.6)
    for (name, values), colour in zip(found.items(), colours, strict=False):
        axes.scatter(values.real, values.imag, s=14, color=colour, alpha=0.6, linewidths=0, label=name)
    axes.set(xlabel="real part", ylabel="imaginary part")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save_figure(path, figure)


def smooth(values: Array, width: int) -> Array:
    """The mean over up to `width` values around each; fewer at the ends, and where some are not finite."""
    ends, finite = np.arange(len(values)) + (width + 1) // 2, np.isfinite(values)
    high, low = np.minimum(ends, len(values)), np.maximum(ends - width, 0)
    with np.errstate(all="ignore"):
        total, count = (
            np.concatenate([[0.0], np.cumsum(x, dtype=np.float64)])
            for x in (np.where(finite, values, 0), finite)
        )
        return (total[high] - total[low]) / (count[high] - count[low])  # type: ignore[no-any-return]


def _save_figure(path: str | os.PathLike[str], figure: Any) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    _write(path, buffer.getvalue())


PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse }}
tr {{ border-bottom: 1px solid #8885 }}
th, td {{ padding: .2rem 1.5rem .2rem 0; text-align: left; vertical-align: top }}
h1, td {{ overflow-wrap: anywhere }}
th, figcaption {{ font-weight: normal; opacity: .75 }}
figure {{ margin: 2rem 0; break-inside: avoid }}
img {{ max-width: 100%; height: auto }}
@media print {{ :root {{ color-scheme: light; font-size: 11pt }} body {{ margin: 0; max-width: none }} }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def write_html(
    path: str | os.PathLike[str],
    title: str,
    tables: Mapping[str, Mapping[str, object]],
    pictures: Sequence[tuple[str, str]] = (),
    events: Sequence[str] = (),
) -> None:
    """Write one static page about a run: no scripts, and nothing from elsewhere but the pictures beside it.

    Args:
        tables: headings, each with names and values.
        pictures: names of files relative to the page's folder, with captions; those that do not exist are left out.
        events: what happened during the run, one text each.
    """
    from html import escape
    from urllib.parse import quote

    body = []
    if events:
        body.append(
            "<h2>Events</h2>\n<ul>" + "".join(f"\n<li>{escape(text)}</li>" for text in events) + "\n</ul>"
        )
    for name, caption in pictures:
        if os.path.isfile(os.path.join(os.path.dirname(os.fspath(path)), name)):
            image = f'<img src="{quote(name)}" alt="{escape(caption)}">'
            body.append(f"<figure>\n{image}\n<figcaption>{escape(caption)}</figcaption>\n</figure>")
    for heading, rows in tables.items():
        cells = (
            f"\n<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows.items()
        )
        body.append(f"<h2>{escape(heading)}</h2>\n<table>{''.join(cells)}\n</table>")
    page = PAGE.format(title=escape(title), body="\n".join(body))
    _write(path, page.encode("utf-8", "backslashreplace"))  # a file's name may have bytes that are no text


def _write(path: str | os.PathLike[str], data: bytes) -> None:
    with replacing(path, durable=False) as file:  # pictures can be drawn again
        file.write(data)
