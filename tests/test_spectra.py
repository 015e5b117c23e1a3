"""A game along its run: what is measured at each checkpoint, against the same computed apart."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minigan as mg
from minigan import cli, spectra
from minigan.analysis import effective_rank, stable_step

POINTS = mg.data.ring().sample(500, mg.ops.Stream(0, "test"))[0]
pytest.importorskip("matplotlib")
pytest.importorskip("tomli_w")


def gan(hidden: tuple[int, ...] = (6,), dtype: str = "float32", **settings: Any) -> mg.GAN:
    g = mg.models.mlp_generator(2, hidden, (2,), output=None, dtype=dtype)
    d = mg.models.mlp_discriminator((2,), hidden, dtype=dtype)
    return mg.GAN(g, d, penalty=mg.penalties.r1(0.1), optimizer=mg.optim.Adam(1e-2), **settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a run with checkpoints at 10, 20 and 30."""
    out = str(tmp_path_factory.mktemp("runs") / "points")
    np.save(source := f"{out}.npy", POINTS)
    gan().fit(POINTS, steps=30, batch=32, save_every=10, out=out, source=source)
    return out


@pytest.mark.slow
def test_a_spectrum_is_of_the_game_on_a_batch() -> None:
    one = gan(dtype="float64")
    one.fit(POINTS, steps=20, batch=32)
    found = spectra.spectrum(one, POINTS, batch=64, latents=3, seed=5)
    x = mg.data.Batches(POINTS, 64, mg.ops.Stream(5, "spectrum")).at(0).astype(np.float64)
    z = mg.ops.Stream(5, "spectrum latents").uniform((64, 2), -1.0, 1.0, dtype=np.float64)
    field = one.game.field(mg.tensor(x), z)
    np.testing.assert_allclose(found.eigenvalues, field.eigenvalues(), atol=1e-12)
    assert found.whole and found.step == 20 and found.parameters == field.size
    assert found.norm == pytest.approx(np.linalg.norm(field.vector()))
    assert found.stable_step == stable_step(found.eigenvalues)
    left = found.eigenvalues[found.eigenvalues.real < 0]
    assert found.contracting_step == stable_step(left) > 0
    # A step just above leaves some contracting direction no more so.
    assert np.abs(1 + 1.01 * found.contracting_step * left).max() > 1
    assert np.abs(1 + 0.99 * found.contracting_step * left).max() < 1
    fake = one.game.generator(z).numpy()
    assert found.ranks["samples"] == (effective_rank(fake), effective_rank(x))
    features = mg.analysis.features(one.game.discriminator, fake)
    assert found.ranks["layers.1 Dense"][0] == effective_rank(features["layers.1 Dense"])
    values = mg.analysis.singular_values(one.game.generator, z.numpy()[:3])
    np.testing.assert_allclose(found.singular_values, np.median(values, 0), rtol=1e-12)
    assert found.condition == pytest.approx(np.median(values[:, 0] / values[:, 1]))


def test_networks_of_float32_are_taken_in_float64() -> None:
    """So a spectrum of theirs has the accuracy of one of float64 with the same weights."""
    one, twin = gan(), gan(dtype="float64")
    one.fit(POINTS, steps=20, batch=32)
    twin.game.load_state(
        {k: x.astype(np.float64) if x.dtype == np.float32 else x for k, x in one.game.state().items()}
    )
    first, second = (spectra.spectrum(each, POINTS) for each in (one, twin))
    np.testing.assert_array_equal(first.eigenvalues, second.eigenvalues)
    assert one.game.state()["generator.layers.0.weight"].dtype == np.float32


def test_networks_of_ones_own_are_taken_as_they_are() -> None:
    one = gan()
    d = mg.nn.Sequential(mg.nn.Dense(2, 1, stream=mg.ops.Stream(0, "own")))
    found = spectra.spectrum(mg.GAN(one.game.generator, d), POINTS)
    assert found.whole and set(found.ranks) == {"samples"}


def test_large_games_have_some_eigenvalues() -> None:
    pytest.importorskip("scipy")
    one = gan((64, 64), dtype="float64")
    found = spectra.spectrum(one, POINTS, batch=16, count=3)
    assert found.parameters > 5000 and not found.whole
    assert 3 <= len(found.eigenvalues) <= 8  # each search may give one more, of a pair
    assert (np.diff(found.eigenvalues.real) <= 0).all()
    x = mg.data.Batches(POINTS, 16, mg.ops.Stream(0, "spectrum")).at(0).astype(np.float64)
    z = mg.ops.Stream(0, "spectrum latents").uniform((16, 2), -1.0, 1.0, dtype=np.float64)
    largest = one.game.field(mg.tensor(x), z).eigenvalues(3, "LM")
    assert np.abs(found.eigenvalues).max() == pytest.approx(np.abs(largest).max(), rel=1e-6)


def test_a_search_that_does_not_end_gives_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy")
    monkeypatch.setattr("minigan.analysis.game.RESTARTS", 1)
    one = gan((16, 16), dtype="float64")
    z = mg.ops.Stream(0, "z").uniform((16, 2), dtype=np.float64)
    field = one.game.field(mg.tensor(POINTS[:16].astype(np.float64)), z)
    assert len(field.eigenvalues(20)) < 20


def test_along_a_run(run: str) -> None:
    found = list(spectra.along(run))
    assert [each.step for each in found] == [10, 20, 30]
    last = spectra.spectrum(mg.GAN(**_arguments(run)), POINTS)
    assert last.step == 0 and not np.allclose(last.norm, found[-1].norm)
    np.testing.assert_array_equal(spectra.spectrum(_restored(run), POINTS).eigenvalues, found[-1].eigenvalues)
    (file,) = Path(run, "checkpoints").glob("*20.safetensors")
    (one,) = spectra.along(str(file), POINTS)
    np.testing.assert_array_equal(one.eigenvalues, found[1].eigenvalues)


def _restored(run: str) -> mg.GAN:
    from minigan.train import restore

    return restore(run)


def _arguments(run: str) -> dict[str, Any]:
    from minigan import presets, settings

    return settings.arguments(presets.read(run))


def test_the_command(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, file = tmp_path / "a.png", tmp_path / "a.json"
    assert cli.main(["spectrum", run, "--out", str(picture), "--json", str(file)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "all eigenvalues of simultaneous gradient descent (not of Adam)" in printed[0]
    assert [line.split()[0] for line in printed[2:5]] == ["10", "20", "30"]
    assert picture.read_bytes()[:4] == b"\x89PNG"
    rows = json.loads(file.read_text())
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert len(rows[0]["eigenvalues"]) == rows[0]["parameters"] == 57
    found = next(spectra.along(run))
    assert [complex(*pair) for pair in rows[0]["eigenvalues"]] == found.eigenvalues.tolist()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["no such"], 4, "no such: has no checkpoint"),
        (["RUN", "--out", "no/a.png"], 2, "--out no/a.png: there is no folder no"),
        (["RUN", "--json", "no/a.json"], 2, "--json no/a.json: there is no folder no"),
        (["RUN", "--count", "0"], 2, "greater than or equal to 1"),
    ],
)
def test_errors_of_the_command(
    arguments: list[str], code: int, words: str, run: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no such").mkdir()
    assert cli.main(["spectrum", *(run if each == "RUN" else each for each in arguments)]) == code
    assert words in capsys.readouterr().err


def test_data_that_is_gone_or_another(run: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    np.save(f"{run}.npy", POINTS[::-1])
    try:
        with pytest.raises(mg.DataError, match="is not the data of"):
            next(spectra.along(copy))
    finally:
        np.save(f"{run}.npy", POINTS)
    gan().fit(POINTS, steps=2, batch=8, out=tmp_path / "of an array")
    with pytest.raises(mg.DataError, match="was trained on an array, which is not here"):
        next(spectra.along(tmp_path / "of an array"))
    assert [each.step for each in spectra.along(tmp_path / "of an array", POINTS)] == [0, 2]


def test_damaged_checkpoints_are_passed_over(run: str, tmp_path: Path) -> None:
    copy, notes = tmp_path / "copy", list[str]()
    shutil.copytree(run, copy)
    (file,) = Path(copy, "checkpoints").glob("*20.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert [each.step for each in spectra.along(copy, note=notes.append)] == [10, 30]
    assert len(notes) == 1 and "20.safetensors" in notes[0]


@pytest.mark.slow
def test_conditional_images_have_labels_and_bounds() -> None:
    """The generator ends in a tanh, so the discriminator sees the data from -1 to 1, with its labels."""
    images, labels = mg.data.digits()
    g = mg.models.mlp_generator(3, (4,), (8, 8, 1), output="tanh", classes=10, dtype="float64")
    d = mg.models.mlp_discriminator((8, 8, 1), (4,), classes=10, dtype="float64")
    one = mg.GAN(g, d)
    found = spectra.spectrum(one, images, labels, batch=32, latents=2)
    batches = mg.data.Batches(images, 32, mg.ops.Stream(0, "spectrum"), labels=labels)
    real, known = mg.tensor(batches.at(0).astype(np.float64) * 2 - 1), mg.tensor(batches.labels_at(0))
    z = mg.ops.Stream(0, "spectrum latents").uniform((32, 3), -1.0, 1.0, dtype=np.float64)
    expected = one.game.field(real, z, labels=known).vector()
    assert found.norm == pytest.approx(np.linalg.norm(expected))
    assert found.singular_values.shape == (3,) and 1 <= found.condition < np.inf


def test_a_run_whose_checkpoints_are_all_damaged(run: str, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    files = sorted((copy / "checkpoints").glob("*.safetensors"))
    for file in files:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    with pytest.raises(mg.CheckpointError, match=rf"all {len(files)} checkpoints are damaged"):
        list(spectra.along(copy, POINTS, note=lambda text: None))
