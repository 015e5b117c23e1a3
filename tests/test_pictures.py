"""Pictures and the page of a run: what they show, that they are whole, and what they make of hostile input."""

import errno
import html.parser
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from minigan import files, pictures, report
from minigan.errors import DataError, ExtraError

pytestmark = pytest.mark.filterwarnings("error")


def record(step: int, **values: float | None) -> report.Record:
    return {"step": step, "d_loss": 1.25, "g_loss": 0.75, "d_real": 0.6, "d_fake": 0.4, **values}


def noise(*shape: int, seed: int = 0) -> pictures.Array:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def read(path: Path, mode: str | None = None) -> pictures.Array:
    with Image.open(path) as picture:
        return np.asarray(picture.convert(mode) if mode else picture)


def test_grid_shows_every_pixel_of_every_sample_in_its_place() -> None:
    samples = noise(5, 2, 3, 1) / 255
    grid = pictures.image_grid(samples, columns=2, scale=4)
    assert grid.shape == (3 * (2 * 4 + 1) + 1, 2 * (3 * 4 + 1) + 1) and grid.dtype == np.uint8
    for i, sample in enumerate(samples):
        top, left = 1 + i // 2 * 9, 1 + i % 2 * 13
        tile = grid[top : top + 8, left : left + 12]
        assert (tile[::4, ::4] == np.round(sample[..., 0] * 255)).all()
        assert (tile == np.kron(tile[::4, ::4], np.ones((4, 4), np.uint8))).all()
    assert (grid[[0, 9, -1]] == pictures.SHADE).all() and (grid[:, [0, 13, -1]] == pictures.SHADE).all()
    assert (grid[-9:, 14:] == pictures.SHADE).all()


def test_grid_of_colours_bytes_bad_values_and_one_sample() -> None:
    assert pictures.image_grid(np.ones((1, 4, 4, 3))).shape[2] == 3
    grid = pictures.image_grid(np.array([-1.0, 2.0, np.nan, 0.5]).reshape(1, 2, 2, 1), scale=1)
    assert grid[1:-1, 1:-1].tolist() == [[0, 255], [0, 128]]
    samples = noise(4, 5, 5, 3)
    assert (pictures.image_grid(samples) == pictures.image_grid(samples / 255)).all()


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 8, 8, 2), (0, 8, 8, 1), (4, 8, 0, 1)])
def test_what_is_no_picture(shape: tuple[int, ...]) -> None:
    for draw in (pictures.image_grid, lambda samples: pictures.side_by_side(samples, samples)):
        with pytest.raises(DataError, match=re.escape(str(shape))):
            draw(np.zeros(shape))


@pytest.mark.parametrize("count", [1, 2, 9, 16, 100, 101])
def test_grids_are_about_square(count: int) -> None:
    high, wide = pictures.image_grid(np.zeros((count, 8, 8, 1))).shape
    assert 0.4 < high / wide < 2.1 or count == 2


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 20])
def test_real_samples_stand_beside_generated_ones(count: int, channels: int) -> None:
    real, generated = noise(count, 28, 28, channels), noise(count, 28, 28, channels, seed=1)
    both = pictures.side_by_side(real, generated / 255, columns=4)
    left, right = (pictures.image_grid(samples, columns=4) for samples in (real, generated))
    high, wide = left.shape[:2]
    strip, half = both.shape[0] - high, (both.shape[1] - 12) // 2
    assert strip >= 12
    assert (both[strip:, :wide] == left).all()
    start = both.shape[1] - half if both.shape[1] == 2 * half + 12 else both.shape[1] - wide
    assert (both[strip:, start : start + wide] == right).all()
    assert (both[strip:, wide:start] == 255).all() and start - wide >= 12
    names = both[:strip, : both.shape[1] // 2], both[:strip, both.shape[1] // 2 :]
    dark = [(name < 128).sum() for name in names]
    assert 0 < dark[0] < dark[1]  # "generated" is the longer word


def test_what_cannot_stand_side_by_side() -> None:
    with pytest.raises(
        DataError, match=re.escape("(3, 8, 8, 1) beside generated ones of shape (4, 8, 8, 1)")
    ):
        pictures.side_by_side(np.zeros((3, 8, 8, 1)), np.zeros((4, 8, 8, 1)))


def test_png_round_trip(tmp_path: Path) -> None:
    for shape in ((5, 7), (5, 7, 3)):
        pictures.save_png(tmp_path / "a.png", noise(*shape))
        assert (read(tmp_path / "a.png") == noise(*shape)).all()


# Animations


def frames_of(path: Path) -> tuple[list[pictures.Array], list[int]]:
    """The decoded frames of a GIF, RGB, and how long each is shown."""
    frames, times = [], []
    with Image.open(path) as gif:
        assert gif.format == "GIF" and gif.info["loop"] == 0
        for i in range(gif.n_frames):
            gif.seek(i)
            frames.append(np.asarray(gif.convert("RGB")))
            times.append(gif.info["duration"])
    return frames, times


def save_frames(folder: Path, steps: range, picture: Callable[[int], pictures.Array]) -> list[Path]:
    paths = [folder / f"step_{step:06}.png" for step in steps]
    for step, path in zip(steps, paths, strict=True):
        pictures.save_png(path, picture(step))
    return paths


def test_grey_animation_keeps_every_value_and_names_the_step(tmp_path: Path) -> None:
    paths = save_frames(tmp_path, range(0, 4000, 1000), lambda step: noise(120, 200, seed=step))
    pictures.save_gif(tmp_path / "a.gif", paths, milliseconds=150)
    frames, times = frames_of(tmp_path / "a.gif")
    assert times == [150, 150, 150, 1500]
    strips = [frame[:-120] for frame in frames]
    for path, frame in zip(paths, frames, strict=True):
        assert (frame[-120:] == read(path)[..., None]).all()
    assert all((strip.min(), strip.max()) == (0, 255) and len(strip) >= 12 for strip in strips)
    assert len({strip.tobytes() for strip in strips}) == 4


def test_long_animations_are_thinned_between_the_first_and_the_last(tmp_path: Path) -> None:
    paths = save_frames(tmp_path, range(151), lambda step: np.full((30, 100), step, np.uint8))
    pictures.save_gif(tmp_path / "a.gif", paths)
    shown = [int(frame[-1, -1, 0]) for frame in frames_of(tmp_path / "a.gif")[0]]
    assert len(shown) == 60 and shown[0] == 0 and shown[-1] == 150
    assert set(np.diff(shown)) == {2, 3}


def test_colours_of_an_animation_are_near(tmp_path: Path) -> None:
    x, y = np.meshgrid(np.arange(100), np.arange(80))

    def gradient(step: int) -> pictures.Array:
        return np.stack([2 * x, 3 * y, 0 * x + 60 * step], axis=-1).astype(np.uint8)

    pictures.save_gif(tmp_path / "a.gif", save_frames(tmp_path, range(4), gradient))
    for step, frame in enumerate(frames_of(tmp_path / "a.gif")[0]):
        error = np.abs(frame[-80:].astype(int) - gradient(step))
        assert error.mean() < 6 and error.max() < 40


@pytest.mark.parametrize("width", [3, 60])
def test_the_step_is_whole_above_a_narrow_picture(width: int, tmp_path: Path) -> None:
    paths = save_frames(tmp_path, range(9, 2_000_000, 999_990), lambda step: noise(40, width))
    pictures.save_gif(tmp_path / "a.gif", paths)
    for frame in frames_of(tmp_path / "a.gif")[0]:
        assert (frame[-40:, :width] == noise(40, width)[..., None]).all()
        assert (frame[:-40, -2:] == 255).all() and (frame[-40:, width:] == 255).all()


def test_one_frame_of_any_name_is_an_animation_too(tmp_path: Path) -> None:
    pictures.save_png(tmp_path / "über_x.png", noise(30, 100))
    pictures.save_gif(tmp_path / "a.gif", [tmp_path / "über_x.png"])
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 1


def test_frames_that_cannot_be_used(tmp_path: Path) -> None:
    good, other = tmp_path / "step_1.png", tmp_path / "step_2.png"
    pictures.save_png(good, noise(40, 50))
    pictures.save_png(other, noise(40, 51))
    whole = good.read_bytes()
    for name, data in (("half.png", whole[: len(whole) // 2]), ("no.png", b"GIF89a"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=f"{name}: cannot be read as a PNG picture"):
            pictures.save_gif(tmp_path / "a.gif", [good, tmp_path / name])
    with pytest.raises(DataError, match=r"missing\.png: cannot be read"):
        pictures.save_gif(tmp_path / "a.gif", [good, tmp_path / "missing.png"])
    with pytest.raises(DataError, match=r"step_2\.png: is 51x40, unlike 50x40 of .*step_1\.png"):
        pictures.save_gif(tmp_path / "a.gif", [good, other])
    with pytest.raises(DataError, match="at least one frame"):
        pictures.save_gif(tmp_path / "a.gif", [])
    assert not (tmp_path / "a.gif").exists()


# Curves


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that have been drawn, as Matplotlib has them."""
    drawn: list[Any] = []
    save = pictures._save_figure
    monkeypatch.setattr(
        pictures, "_save_figure", lambda path, figure: (drawn.append(figure), save(path, figure))
    )
    return drawn


@pytest.mark.parametrize(("count", "start"), [(1, 0), (1, 5000), (2, 0), (300, 5000)])
def test_curves(count: int, start: int, tmp_path: Path, figures: list[Any]) -> None:
    records = [record(start + 10 * i, d_loss=i) for i in range(1, count + 1)]
    pictures.loss_curves(tmp_path / "curves.png", records)
    assert min(read(tmp_path / "curves.png", "L").shape) > 300
    losses, outputs = figures[0].axes
    raw = losses.lines[0].get_xydata()
    assert raw.tolist() == [[r["step"], r["d_loss"]] for r in records]
    assert [line.get_ydata()[0] for line in outputs.lines[1:4:2]] == pytest.approx([0.6, 0.4])
    names = [text.get_text() for axes in (losses, outputs) for text in axes.get_legend().get_texts()]
    assert names == ["discriminator", "generator", "D(x), real samples", "D(G(z)), generated samples"]
    left, right = outputs.get_xlim()
    assert left <= start + 10 and right >= records[-1]["step"] and outputs.get_ylim() == (0, 1)


def test_curves_show_the_coverage_where_there_is_one(tmp_path: Path, figures: list[Any]) -> None:
    records = [record(10 * i) | ({"coverage": i / 100} if i % 50 == 0 else {}) for i in range(1, 101)]
    pictures.loss_curves(tmp_path / "curves.png", records)
    covered = [line for line in figures[0].axes[1].lines if line.get_label() == "coverage of the data"]
    assert [line.get_xydata().tolist() for line in covered] == [[[500, 0.5], [1000, 1.0]]]


BAD = [np.nan, -np.inf, None, 1e299, "x", [1], 10**400]


@pytest.mark.parametrize(
    ("bad", "part"),
    [(np.nan, slice(None)), *((bad, slice(3, 9)) for bad in BAD)]
    + [pytest.param(bad, slice(None), marks=pytest.mark.slow) for bad in BAD[1:]],
)
def test_curves_of_bad_values(bad: Any, part: slice, tmp_path: Path, figures: list[Any]) -> None:
    records = [record(i) for i in range(20)]
    for r in records[part]:
        r |= {"d_loss": bad, "d_real": bad}
    records[0] = {"step": None}
    pictures.loss_curves(tmp_path / "curves.png", records)
    assert figures[0].axes[0].lines[3].get_ydata()[-1] == 0.75


def test_long_curves_are_thinned_after_the_mean(tmp_path: Path, figures: list[Any]) -> None:
    values = np.arange(100_000.0)
    pictures.loss_curves(tmp_path / "curves.png", [record(10 * i, d_loss=values[i]) for i in range(100_000)])
    raw, mean = (line.get_ydata() for line in figures[0].axes[0].lines[:2])
    assert len(raw) == len(mean) == 10_000 and raw[-1] > 99_980
    assert (mean == pictures.smooth(values, 5000)[::10]).all()


def test_curves_of_nothing(tmp_path: Path) -> None:
    for records in ([], [{"d_loss": 1.0}]):
        with pytest.raises(DataError, match="at least one record"):
            pictures.loss_curves(tmp_path / "curves.png", records)


def test_smoothing_is_a_mean_of_finite_neighbours() -> None:
    values = np.arange(7.0) ** 2
    assert pictures.smooth(values, 1).tolist() == values.tolist()
    expected = [np.mean(values[max(0, i - 1) : i + 2]) for i in range(7)]
    assert np.allclose(pictures.smooth(values, 3), expected)
    assert np.allclose(pictures.smooth(values, 99), values.mean())
    holes = np.array([1.0, np.nan, 3.0, np.inf, np.nan, np.nan, 5.0])
    mean = pictures.smooth(holes, 3)
    assert mean.tolist()[:4] == [1, 2, 3, 3] and np.isnan(mean[4]) and mean.tolist()[5:] == [5, 5]


# Points


def cloud(count: int, dimensions: int = 2, seed: int = 0) -> pictures.Array:
    return np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)


def has_colour(path: Path, colour: str) -> bool:
    """Whether some pixels are about of a colour."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(read(path, "RGB").astype(int) - rgb).max(axis=-1) < 60).sum() > 20)


def test_points_over_the_probability(tmp_path: Path, figures: list[Any]) -> None:
    seen = []

    def density(points: pictures.Array) -> pictures.Array:
        seen.append(points)
        return 1 / (1 + np.exp(-3 * points[:, :1]))  # (K, 1), as a network gives it, is understood too

    path, real, generated = tmp_path / "a.png", cloud(300), cloud(200, seed=1)
    generated[:7] = np.nan
    generated[7:10] = 1e6
    pictures.points_plot(path, real, generated, density, (-3, 3, -2, 4), "ring, step 5")
    axes, bar = figures[0].axes
    assert (axes.get_xlim(), axes.get_ylim(), axes.get_aspect()) == ((-3, 3), (-2, 4), 1)
    assert axes.get_title() == "ring, step 5" and bar.get_ylabel() == "D(x)"
    names = [text.get_text() for text in figures[0].legends[0].get_texts()]
    inside = (np.abs(real[:, 0]) <= 3) & (real[:, 1] >= -2) & (real[:, 1] <= 4)
    outside = 10 + (~((np.abs(generated[10:, 0]) <= 3) & (np.abs(generated[10:, 1] - 1) <= 3))).sum()
    assert names == [f"real ({(~inside).sum()} of 300 outside)", f"generated ({outside} of 200 outside)"]
    assert has_colour(path, pictures.BLUE) and has_colour(path, pictures.ORANGE)
    assert seen[0].dtype == np.float32 and seen[0].shape[1] == 2
    assert (seen[0].min(axis=0).tolist(), seen[0].max(axis=0).tolist()) == ([-3, -2], [3, 4])
    drawn = axes.collections[-2].get_offsets()
    assert np.array_equal(drawn, real[inside])
    boundary = axes.collections[1].get_paths()[0].vertices  # where D(x) is 1/2: at the first coordinate 0
    assert np.abs(boundary[:, 0]).max() < 0.01 and boundary[:, 1].min() == -2
    pixels = read(path, "L")
    box = axes.get_window_extent()  # D(x) is light where it is small; corners have no points
    top = pixels.shape[0] - int(box.y1) + 3
    assert pixels[top, int(box.x0) + 5] > 240 and pixels[top, int(box.x1) - 5] < 170


def test_pictures_of_a_run_have_one_frame(tmp_path: Path, figures: list[Any]) -> None:
    real = cloud(100)
    for step, generated in enumerate((cloud(100, seed=1), 1000 * cloud(5), np.full((3, 2), np.nan))):
        pictures.points_plot(tmp_path / f"step_{step}.png", real, generated, lambda x: x[:, 0] > 0)
    first, *others = [(f.axes[0].get_xlim(), f.axes[0].get_ylim()) for f in figures]
    assert others == [first, first] and np.ptp(first[0]) == pytest.approx(np.ptp(first[1]))
    assert all(first[k][0] < real[:, k].min() and real[:, k].max() < first[k][1] for k in (0, 1))
    boxes = {f.axes[0].get_window_extent().bounds for f in figures}
    assert len(boxes) == 1
    pictures.save_gif(tmp_path / "a.gif", sorted(tmp_path.glob("step_*.png")))
    assert len(frames_of(tmp_path / "a.gif")[0]) == 3


def test_many_points_are_thinned_without_regard_to_their_order(tmp_path: Path, figures: list[Any]) -> None:
    modes = np.arange(50_000) % 25  # in turn, so that every 25th would be of one mode
    points = np.stack([modes % 5, modes // 5], axis=1).astype(np.float32)
    for name in ("a.png", "b.png"):
        pictures.points_plot(tmp_path / name, points, points[:10])
    drawn = np.asarray(figures[0].axes[0].collections[0].get_offsets())
    assert len(drawn) == 2000
    assert np.unique(drawn, axis=0, return_counts=True)[1].min() > 40
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_more_and_fewer_dimensions(tmp_path: Path, figures: list[Any]) -> None:
    def never(points: pictures.Array) -> pictures.Array:
        raise AssertionError("only a plane has a D(x) for every place of the picture")

    real = cloud(100, 5)
    pictures.points_plot(tmp_path / "5.png", real, cloud(90, 5), never)
    axes = figures[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("dimension 1 of 5", "dimension 2 of 5")
    assert np.array_equal(axes.collections[0].get_offsets(), real[:, :2])
    real[:50, 0] = 9
    pictures.points_plot(tmp_path / "1.png", real[:, :1], cloud(90, 1), never, (-1, 10))
    steps = [patch.get_data() for patch in figures[1].axes[0].patches]
    assert [step.values.sum() for step in steps] == pytest.approx(
        [(points >= -1).mean() for points in (real[:, :1], cloud(90, 1))]
    )
    assert steps[0].values[45] >= 0.5 and (steps[0].edges[0], steps[0].edges[-1]) == (-1, 10)


HOSTILE = {
    "nan": np.full((5, 2), np.nan),
    "inf": np.full((5, 2), -np.inf),
    "same": np.full((5, 2), 3.0),
    "zero": np.zeros((5, 2)),
    "none": np.zeros((0, 2)),
    "huge": np.array([[-3e38, 3e38], [3e38, 0]]),
    "float64": np.array([[1e308, -1e308], [0, 0]]),
    "tiny": np.array([[1e-45, 0], [0, 3e-45]]),
    "far": np.array([[1e8, 1e8], [1e8 + 8, 1e8]]),
    "integers": np.array([[1, 2], [3, 4]]),
}


AS = ("real", "generated", "numbers")


@pytest.mark.parametrize(
    ("name", "what"),
    [  # a picture takes a third of a second: one for each kind of points, in turn, and the others with the slow tests
        (name, what) if k % 3 == n else pytest.param(name, what, marks=pytest.mark.slow)
        for k, name in enumerate(HOSTILE)
        for n, what in enumerate(AS)
    ],
)
def test_any_points_give_a_picture(name: str, what: str, tmp_path: Path, figures: list[Any]) -> None:
    points, path = HOSTILE[name], tmp_path / "a.png"
    if what == "real":
        pictures.points_plot(path, points, cloud(9), lambda x: np.full(len(x), np.nan))
    elif what == "generated":
        pictures.points_plot(path, cloud(9), points, lambda x: x[:, 0] > 0)
    else:
        pictures.points_plot(path, points[:, :1], points[:, :1], lambda x: np.full(len(x), np.inf))
    assert len(figures) == 1


@pytest.mark.parametrize("shapes", [((5,), (5,)), ((5, 2), (5, 3)), ((5, 0), (5, 0)), ((5, 2, 1), (5, 2, 1))])
def test_what_is_no_set_of_points(shapes: tuple[tuple[int, ...], ...], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"{shapes[0]} with generated ones of shape {shapes[1]}")):
        pictures.points_plot(tmp_path / "a.png", *map(np.zeros, shapes))


# The page


class Page(html.parser.HTMLParser):
    """What a browser would find: tags with their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.text.append(data.strip())


def test_page_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    for name in ("curves.png", "samples/a b#1.png"):
        (tmp_path / name).touch()
    evil = "\"><script>alert('1')</script>&amp;"
    shown = [("curves.png", "losses"), ("gone.gif", "gone"), ("samples/a b#1.png", evil)]
    tables = {"Settings": {"lr": 0.003, evil: evil, "path": "a\udcffb"}, "Last": {"step": "6,000"}}
    pictures.write_html(tmp_path / "report.html", evil, tables, shown, ["step 5: D is dead", evil])
    text = (tmp_path / "report.html").read_text("utf-8")
    page = Page(text)
    assert page.open == []
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert images == [{"src": "curves.png", "alt": "losses"}, {"src": "samples/a%20b%231.png", "alt": evil}]
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object"})
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert page.text == [
        *(evil, evil, "Events", "step 5: D is dead", evil, "losses", evil),
        *("Settings", "lr", "0.003", evil, evil, "path", r"a\udcffb", "Last", "step", "6,000"),
    ]


def test_page_of_nothing(tmp_path: Path) -> None:
    pictures.write_html(tmp_path / "report.html", "a run", {})
    assert Page((tmp_path / "report.html").read_text("utf-8")).text == ["a run", "a run"]


# Files


def writers(folder: Path) -> dict[str, Callable[[Path], None]]:
    frame = folder / "step_000000.png"
    Image.fromarray(noise(9, 9)).save(frame)
    return {
        "png": lambda path: pictures.save_png(path, noise(9, 9)),
        "gif": lambda path: pictures.save_gif(path, [frame]),
        "curves": lambda path: pictures.loss_curves(path, [record(1)]),
        "points": lambda path: pictures.points_plot(path, cloud(3), cloud(3)),
        "page": lambda path: pictures.write_html(path, "run", {}),
    }


FAULTS = ["full disk", "no renaming", "interrupt"]


@pytest.mark.parametrize(
    ("kind", "fault"),
    [(kind, fault) for kind in ("png", "gif", "page") for fault in FAULTS]
    + [("curves", "full disk"), ("points", "no renaming")]
    + [
        pytest.param(kind, fault, marks=pytest.mark.slow)
        for kind, others in (("curves", FAULTS[1:]), ("points", FAULTS[::2]))
        for fault in others
    ],
)
def test_a_file_is_whole_or_as_it_was(
    kind: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = writers(tmp_path)[kind]
    path = tmp_path / "file"
    path.write_bytes(b"old")
    before = set(os.listdir(tmp_path))
    stop = KeyboardInterrupt() if fault == "interrupt" else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*arguments: object) -> None:
        raise stop

    class Full(io.FileIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            super().write(data[: len(data) // 2])
            raise stop

    with monkeypatch.context() as patch:
        if fault == "no renaming":
            patch.setattr(os, "replace", fail)
        else:
            patch.setattr(files, "open", Full, raising=False)
        with pytest.raises(type(stop)) as caught:
            write(path)
    assert caught.value is stop
    assert path.read_bytes() == b"old" and set(os.listdir(tmp_path)) == before
    write(path)
    assert path.stat().st_size > 100 and set(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("kind", ["png", "gif", "curves", "points", "page"])
def test_where_no_file_can_be(kind: str, tmp_path: Path) -> None:
    write = writers(tmp_path)[kind]
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "none/a.png", "x" * 300):
        with pytest.raises(OSError) as caught:
            write(tmp_path / name)
        assert caught.value.strerror
    assert set(os.listdir(tmp_path)) == {"pipe", "step_000000.png"}


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write = writers(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for kind in ("png", "gif"):
        with pytest.raises(ExtraError, match=r'PIL is missing .*; pip install "minigan\[cli\]"'):
            write[kind](tmp_path / "a")
    with pytest.raises(ExtraError, match=r"minigan\[cli\]"):
        pictures.side_by_side(noise(2, 4, 4, 1), noise(2, 4, 4, 1))
    for kind in ("curves", "points"):
        with pytest.raises(ExtraError, match=r'pip install "minigan\[plot\]"'):
            write[kind](tmp_path / "a")
    write["page"](tmp_path / "a")
