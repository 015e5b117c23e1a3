"""Pictures and progress: what they show, and that nobody has to look."""

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from minigan import pictures, report
from minigan.errors import DataError, ExtraError


def record(step: int, **values: float) -> report.Record:
    numbers = {"d_loss": 1.25, "g_loss": 0.75, "penalty": 0.1, "d_real": 0.6, "d_fake": 0.4}
    return {"step": step, **numbers, "seconds": 1.0, "steps_per_second": 50.0, **values}


def test_grid_shows_every_pixel_of_every_sample_in_its_place() -> None:
    samples = np.random.default_rng(0).integers(0, 256, (5, 2, 3, 1)) / 255
    grid = pictures.image_grid(samples, columns=2, scale=4)
    assert grid.shape == (3 * (2 * 4 + 1) + 1, 2 * (3 * 4 + 1) + 1) and grid.dtype == np.uint8
    for i, sample in enumerate(samples):
        top, left = 1 + i // 2 * 9, 1 + i % 2 * 13
        tile = grid[top : top + 8, left : left + 12]
        assert (tile[::4, ::4] == np.round(sample[..., 0] * 255)).all()
        assert (tile == np.kron(tile[::4, ::4], np.ones((4, 4), np.uint8))).all()
    assert (grid[[0, 9, -1]] == pictures.SHADE).all() and (grid[:, [0, 13, -1]] == pictures.SHADE).all()
    assert (grid[-9:, 14:] == pictures.SHADE).all()


def test_grid_of_colours_bad_values_and_one_sample() -> None:
    assert pictures.image_grid(np.ones((1, 4, 4, 3))).shape[2] == 3
    grid = pictures.image_grid(np.array([-1.0, 2.0, np.nan, 0.5]).reshape(1, 2, 2, 1), scale=1)
    assert grid[1:-1, 1:-1].tolist() == [[0, 255], [0, 128]]


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 8, 8, 2), (0, 8, 8, 1), (4, 8, 0, 1)])
def test_what_is_no_picture(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=re.escape(str(shape))):
        pictures.image_grid(np.zeros(shape))


@pytest.mark.parametrize("count", [1, 2, 9, 16, 100, 101])
def test_grids_are_about_square(count: int) -> None:
    high, wide = pictures.image_grid(np.zeros((count, 8, 8, 1))).shape
    assert 0.4 < high / wide < 2.1 or count == 2


def test_png_round_trip(tmp_path: Path) -> None:
    for shape in ((5, 7), (5, 7, 3)):
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        pictures.save_png(tmp_path / "a.png", pixels)
        assert (np.asarray(Image.open(tmp_path / "a.png")) == pixels).all()


@pytest.mark.parametrize("count", [1, 2, 300])
def test_curves(count: int, tmp_path: Path) -> None:
    pictures.loss_curves(tmp_path / "curves.png", [record(10 * i, d_loss=i) for i in range(count)])
    assert min(Image.open(tmp_path / "curves.png").size) > 300


def test_smoothing_is_a_mean_of_neighbours() -> None:
    values = np.arange(7.0) ** 2
    assert pictures.smooth(values, 1).tolist() == values.tolist()
    expected = [np.mean(values[max(0, i - 1) : i + 2]) for i in range(7)]
    assert np.allclose(pictures.smooth(values, 3), expected)
    assert np.allclose(pictures.smooth(values, 99), values.mean())


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ExtraError, match=r'PIL is missing .*; pip install "minigan\[cli\]"'):
        pictures.save_png(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ExtraError, match=r'pip install "minigan\[plot\]"'):
        pictures.loss_curves(tmp_path / "a.png", [record(1)])


def test_lines_come_about_ten_times(capsys: pytest.CaptureFixture[str]) -> None:
    lines = report.Lines(1000, 1500)
    for step in range(1010, 1501, 10):
        lines.update(record(step))
    lines.close()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 10
    assert printed[0] == (
        "step   1050/1500  D 1.250  G 0.750  D(x) 0.60  D(G(z)) 0.40  50 steps/s  0:09 left"
    )
    assert printed[-1].startswith("step   1500/1500") and printed[-1].endswith("0:00 left")


def test_progress_is_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stdout", stream)
        assert isinstance(report.progress(0, 10), report.Lines)
        report.say("nobody may be listening")


def test_a_closed_output_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    shown = report.progress(0, 10)
    shown.update(record(10))
    shown.close()


@pytest.mark.parametrize("width", [200, 80, 40, 8])
def test_live_display(width: int) -> None:
    screen = io.StringIO()
    bar = report.Bar(0, 200, Console(file=screen, width=width, height=25, force_terminal=True))
    bar.update(record(100, steps_per_second=0.01))
    bar.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    if width >= 80:
        assert "D 1.250  G 0.750  D(x) 0.60  D(G(z)) 0.40  0 steps/s" in text
        assert "100/200" in text and "2:46:40 left" in text
