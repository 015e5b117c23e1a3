"""`minigan evaluate`: what it measures, and that the measures tell good samples from bad ones."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from undrawn import leave_pictures_empty

import minigan as mg
from minigan import cli, metrics, pictures, presets, report
from minigan.evaluate import Quality, evaluate, judge
from minigan.metrics import learned
from minigan.train import build


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIGAN_DATA", str(tmp_path / "no data"))
    monkeypatch.setattr(learned, "cache_folder", lambda: kept)
    leave_pictures_empty(monkeypatch.setattr)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a short run."""
    out = str(tmp_path_factory.mktemp("runs") / "digits")
    assert cli.main(["train", "--steps", "20", "--batch", "16", "--out", out]) == 0
    return out


def values(quality: Quality) -> dict[str, float]:
    return {measure.name: measure.value for measure in quality.measures}


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("minigan: ") and printed.err.count("\n") == 1
    return printed.err


# What is measured


@pytest.mark.slow
def test_real_samples_copies_and_means_are_told_apart() -> None:
    # In random order: the last digits were written by other people than the first ones.
    images, labels = (x[mg.ops.Stream(0, "order").permutation(1797)] for x in mg.data.digits())
    training, of_training, fresh = images[:1200], labels[:1200], images[1200:]
    noise = np.random.default_rng(0).normal(size=(597, 8, 8, 1)).astype(np.float32)
    means = np.stack([training[of_training == k].mean(0) for k in range(10)])
    sets = {
        "fresh": fresh,
        "copies": np.clip(training[:597] + 0.02 * noise, 0, 1),
        "means": np.clip(means[np.arange(597) % 10] + 0.05 * noise, 0, 1),
        "noise": np.clip(0.5 + noise, 0, 1),
    }
    found = {
        name: values(judge(x, training, of_training, features="pixels", resamples=3))
        for name, x in sets.items()
    }
    ratios = {name: each["memorisation_ratio[pixels]"] for name, each in found.items()}
    assert ratios["copies"] < 0.5 < 0.9 < ratios["fresh"] < 1.3
    assert found["means"]["recall[pixels]"] < 0.05 < 0.7 < found["fresh"]["recall[pixels]"]
    assert found["noise"]["precision[pixels]"] == 0
    assert max(found["fresh"]["kernel_distance[pixels]"], 0.1) < found["noise"]["kernel_distance[pixels]"]
    for distance in ("frechet_distance[pixels]", "sliced_wasserstein[pixels]"):
        assert found["fresh"][distance] < found["means"][distance] < found["noise"][distance]
    assert found["noise"]["two_sample_p_value[pixels]"] < 1e-6 < found["fresh"]["two_sample_p_value[pixels]"]
    # Neighbours miss means: they are nearest to everything, real samples too.
    assert (
        found["means"]["two_sample_of_real[pixels]"]
        < 0.1
        < 0.9
        < found["means"]["two_sample_of_generated[pixels]"]
    )
    assert {each["modes[classifier]"] for name, each in found.items() if name != "noise"} == {10}
    assert found["means"]["share_of_class_3[classifier]"] == pytest.approx(0.1, abs=0.02)


def test_the_picture_shows_copies() -> None:
    images, labels = mg.data.digits()
    samples = images[:100] * 0.9 + 0.05
    samples[:50] = images[1000:1050]  # exact copies
    quality = judge(samples[::-1].copy(), images, features="pixels", resamples=2)
    assert quality.closest.shape == (10,) and quality.copies.shape == (10, 5)
    assert set(quality.closest) <= set(range(50, 100))
    for place, copies in zip(quality.closest, quality.copies, strict=True):
        np.testing.assert_array_equal(images[copies[0]], samples[::-1][place])
    drawn = pictures.beside_nearest(samples[:10], images[quality.copies])
    assert drawn.shape[0] > 10 * 48 and drawn.shape[1] >= 6 * 48
    assert labels.shape == (1797,)


def test_every_number_has_its_space_and_an_interval_around_it() -> None:
    points = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)

    def squares(x: np.ndarray) -> np.ndarray:
        return x * x

    for features, name in ((None, "points"), (squares, "squares"), ("pca", "pca3")):
        quality = judge(points[:60], points[60:], features=features, resamples=4)
        assert quality.compared == 60 and quality.accuracy is None
        for each in quality.measures:
            assert each.name.endswith(f"[{name}]") or each.name == "memorisation_ratio[points]"
            if each.low is not None and each.high is not None:
                assert each.low <= each.value <= each.high
            if not each.name.startswith("memorisation"):
                assert each.real is not None and math.isfinite(each.real)


def test_values_are_those_of_the_functions() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 50, 2)).astype(np.float32)
    found = values(judge(x, y, resamples=2))
    assert found["frechet_distance[points]"] == pytest.approx(metrics.frechet_distance(y, x), rel=1e-9)
    assert found["recall[points]"] == metrics.precision_recall(y, x).recall
    assert found["vendi_score[points]"] == pytest.approx(metrics.vendi_score(x), rel=1e-9)
    assert found["memorisation_ratio[points]"] == metrics.memorisation(x, y).ratio


def test_bytes_and_floats_give_the_same() -> None:
    images = (mg.data.digits()[0][:300] * 255).astype(np.uint8)
    samples = images[:100].astype(np.float32) / np.float32(255) * 0.9
    first, second = (
        values(judge(samples, x, features="pixels", resamples=2))
        for x in (images, images.astype(np.float32) / np.float32(255))
    )
    assert first == pytest.approx(second, rel=1e-5, abs=1e-9)


def test_black_pictures_have_no_vendi_score() -> None:
    images = mg.data.digits()[0][:100]
    quality = judge(np.zeros_like(images), images, resamples=2)
    assert math.isnan(values(quality)["vendi_score[pixels]"])
    assert values(quality)["recall[pixels]"] == 0


def test_the_modes_of_a_mixture() -> None:
    mixture = mg.data.ring()
    points, modes = mixture.sample(3000, mg.ops.Stream(0, "points"))
    half = points[:1000][modes[:1000] < 4]
    found = {each.name: each for each in judge(half, points[1000:], mixture=mixture, resamples=3).measures}
    assert found["modes[mixture]"][1:] == (4, None, None, 8)
    assert found["reverse_kl[mixture]"].value == pytest.approx(math.log(2), abs=0.05)
    good = found["high_quality[mixture]"]
    assert good.value == metrics.mode_coverage(half, mixture).high_quality
    assert good.low <= 1 - math.exp(-4.5) <= good.high + 0.02


# The command


def test_the_command(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["-n", "60", "--resamples", "2", "--json", "found.json", "--picture", "found.png"]
    assert cli.main(["evaluate", run, *options]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert (
        "step 20, averaged weights\n60 samples, 60 of them beside as many of digits; seed 0\n" in printed.out
    )
    written = json.loads(Path("found.json").read_text())
    assert (written["samples"], written["step"], written["data"]) == (60, 20, "digits")
    assert written["classifier_accuracy"] > 0.95
    names = [each["name"] for each in written["measures"]]
    assert names[:2] == ["frechet_distance[classifier]", "kernel_distance[classifier]"]
    assert names[-2:] == ["share_of_class_9[classifier]", "memorisation_ratio[pixels]"]
    for name in names:
        assert f"\n{name} " in printed.out
    with Image.open("found.png") as picture:
        assert picture.mode == "L" and min(picture.size) > 200
    assert not [file for file in os.listdir() if file.startswith(".minigan-")]


def test_the_same_seed_gives_the_same_numbers(run: str) -> None:
    first, second, other, last = (
        evaluate(run, n=40, features="pixels", resamples=2, seed=seed, raw=raw)
        for seed, raw in ((0, False), (0, False), (1, False), (0, True))
    )
    assert first == second
    assert first[4:] != other[4:] and first[4:] != last[4:]
    assert last[0].endswith("last weights")


def test_labels_are_drawn_as_often_as_in_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = mg.data.digits()
    few = (labels < 2) | (np.arange(1797) % 3 == 0)
    np.savez("few.npz", images=images[few], labels=labels[few])
    shape = (8, 8, 1)
    generator = mg.models.mlp_generator(4, (8,), shape, classes=10)
    mg.GAN(generator, mg.models.mlp_discriminator(shape, (8,), classes=10)).save("c.safetensors")
    drawn: list[Any] = []

    class Known(Exception):
        pass

    def look(self: object, n: int, seed: int, labels: Any) -> None:
        drawn.append(labels)
        raise Known

    monkeypatch.setattr("minigan.sampling.Sampler.sample", look)
    with pytest.raises(Known):
        evaluate("c.safetensors", "few.npz", n=4000)
    shares = np.bincount(drawn[0], minlength=10) / 4000
    expected = np.bincount(labels[few], minlength=10) / few.sum()
    np.testing.assert_allclose(shares, expected, atol=4 * math.sqrt(0.25 / 4000))


def test_a_run_on_points(capsys: pytest.CaptureFixture[str]) -> None:
    build(presets.config("ring")).save("ring.safetensors")
    options = ["--data", "ring", "-n", "30", "--resamples", "2", "--picture", "ring.png"]
    assert cli.main(["evaluate", "ring.safetensors", *options]) == 0
    printed = capsys.readouterr().out
    for name in (
        "frechet_distance[points]",
        "modes[mixture]",
        "reverse_kl[mixture]",
        "memorisation_ratio[points]",
    ):
        assert f"\n{name} " in printed
    with Image.open("ring.png") as picture:
        assert picture.width > 200


def test_other_data(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("own.npy", (mg.data.digits()[0][:200, :, :, 0] * 255).astype(np.uint8))
    assert cli.main(["evaluate", run, "--data", "own.npy", "-n", "25", "--resamples", "2"]) == 0
    printed = capsys.readouterr()
    assert "25 of them beside as many of own.npy" in printed.out
    assert "frechet_distance[pixels]" in printed.out and "classifier" not in printed.out
    assert printed.err == ""


def test_changed_data_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).random((60, 8, 8, 1)).astype(np.float32)
    np.save("own.npy", images)
    assert cli.main(["train", "--data", "own.npy", "--steps", "3", "--batch", "16", "--out", "own"]) == 0
    np.save("own.npy", images[::-1] * 0.9)
    capsys.readouterr()
    assert cli.main(["evaluate", "own", "-n", "20", "--resamples", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "its SHA-256 differs" in printed.err
    assert "memorisation_ratio[pixels]" in printed.out


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("-n 19", 2, "greater than or equal to 20"),
        ("--resamples 1", 2, "greater than or equal to 2"),
        ("--features inception", 2, "there are pixels, pca, classifier"),
        ("--picture found.jpg", 2, "ends in .png"),
        ("--json nowhere/found.json", 2, "no folder nowhere"),
        ("--data ring", 3, r"samples of shape (2,), unlike the generator's (8, 8, 1)"),
        ("--data nowhere.npy", 3, "nowhere.npy"),
        ("--data own.npy --features classifier", 3, "data with labels"),
        ("--data few.npy", 3, "expected at least 20"),
    ],
)
def test_errors(run: str, options: str, code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("own.npy", np.random.default_rng(0).random((40, 8, 8, 1)))
    np.save("few.npy", np.random.default_rng(0).random((19, 8, 8, 1)))
    assert cli.main(["evaluate", run, *options.split()]) == code
    assert words in one_line(capsys)


def test_errors_of_runs(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert cli.main(["evaluate", "empty"]) == 4
    assert "has no checkpoint" in one_line(capsys)
    shape = (8, 8, 1)
    gan = mg.GAN(mg.models.mlp_generator(4, (8,), shape), mg.models.mlp_discriminator(shape, (8,)))
    gan.save("own.safetensors")
    assert cli.main(["evaluate", "own.safetensors"]) == 2
    assert "give it with --data" in one_line(capsys)
    arrays = gan.game.state()
    arrays |= {name: np.full_like(x, np.nan) for name, x in arrays.items() if name.startswith("ema.")}
    mg.save("nan.safetensors", arrays, mg.checkpoint.read_metadata("own.safetensors"))
    assert cli.main(["evaluate", "nan.safetensors", "--data", "digits", "-n", "50"]) == 5
    assert "50 of 50 samples" in one_line(capsys)


@pytest.mark.parametrize(
    ("samples", "training", "words"),
    [
        (np.zeros((30, 2), np.float32), np.zeros((30, 3), np.float32), r"\(30, 2\) beside data"),
        (np.zeros((30, 2), np.uint8), np.zeros((30, 2), np.float32), "uint8"),
        (np.zeros((19, 2), np.float32), np.zeros((30, 2), np.float32), "19 samples"),
        (np.zeros(30, np.float32), np.zeros((30, 2, 2), np.float32), r"\(30,\)"),
    ],
)
def test_samples_that_do_not_fit(samples: np.ndarray, training: np.ndarray, words: str) -> None:
    with pytest.raises(mg.DataError, match=words):
        judge(samples, training)


def test_progress_is_told(run: str) -> None:
    told: list[tuple[str, int, int]] = []
    evaluate(run, n=30, features="pixels", resamples=3, progress=lambda *x: told.append(x))
    assert ("distances in pixels", 3, 3) in told
    assert told[-1] == ("nearest training samples", 1, 1)
    assert all(0 <= done <= total for _, done, total in told)


def test_a_bar_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with report.stages() as show:
        show("distances", 1, 2)
    assert capsys.readouterr().out == ""
    import sys

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with report.stages() as show:
        show("distances", 1, 2)
    assert "distances" in capsys.readouterr().out
