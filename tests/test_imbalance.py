"""Rare classes: how batches are drawn, the weights that undo it in the loss, and data with a long tail."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings as hypothesis, strategies as st
from undrawn import leave_pictures_empty

import minigan as mg
from minigan import losses, train
from minigan.data import Batches, grid, long_tail, long_tailed, ring
from minigan.errors import CheckpointError, ConfigError, DataError, ShapeError
from minigan.ops.random import Stream
from minigan.state import newest

SIZES = (9, 1, 4)
LABELS = np.repeat([2, 5, 7], SIZES)  # not all labels from 0 are there
IMAGES = (np.arange(14, dtype=np.uint8) * 16).reshape(14, 1, 1).repeat(4, 1).repeat(4, 2)
STREAM = Stream(0, "test")


def batches(batch: int = 4, **settings: Any) -> Batches:
    return Batches(IMAGES, batch, Stream(0, "data"), labels=LABELS, **settings)


def drawn(found: Batches, steps: int) -> np.ndarray:
    """Which samples, by their place: the images are told apart by their brightness."""
    pixels = np.concatenate([found.at(step)[:, 0, 0, 0] for step in range(steps)])
    return np.round(pixels * 255 / 16).astype(int)


# Batches


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 14, 40])
def test_balanced_batches_use_classes_and_their_samples_equally_often(batch: int) -> None:
    seen = drawn(batches(batch, sampling="balanced"), 200 // batch + 1)
    for end in range(batch, len(seen) + 1, batch):
        used = np.bincount(seen[:end], minlength=14)
        by_class = np.array([used[c == LABELS].sum() for c in (2, 5, 7)])
        assert np.ptp(by_class) <= 1
        assert all(np.ptp(used[c == LABELS]) <= 1 for c in (2, 5, 7))


@pytest.mark.parametrize("sampling", ["balanced", np.arange(14.0)])
def test_other_samplings_are_functions_of_the_step_too(sampling: Any) -> None:
    settings = {
        "sampling": sampling,
        "importance_weights": sampling is not None and isinstance(sampling, str),
    }
    first, second = batches(5, **settings), batches(5, **settings)
    forward = [first.at(step) for step in range(20)]
    for step in reversed(range(20)):
        assert (second.at(step) == forward[step]).all()
        np.testing.assert_array_equal(second.labels_at(step), first.labels_at(step))
    assert any((forward[0] != x).any() for x in forward[1:])


def test_labels_and_weights_are_those_of_the_samples() -> None:
    found = batches(7, sampling="balanced", importance_weights=True)
    for step in range(5):
        places = np.round(found.at(step)[:, 0, 0, 0] * 255 / 16).astype(int)
        np.testing.assert_array_equal(found.labels_at(step), LABELS[places])
        assert found.weights is not None
        np.testing.assert_array_equal(found.weights_at(step), found.weights[places])
    assert batches().weights_at(0) is None


def test_a_user_s_weights_are_the_chances() -> None:
    weights = np.arange(14) % 5
    seen = np.bincount(drawn(batches(500, sampling=weights), 40), minlength=14)
    chances = weights / weights.sum()
    assert (seen[weights == 0] == 0).all()
    # 20,000 draws; five standard deviations of a binomial share.
    assert (abs(seen / 20_000 - chances) <= 5 * np.sqrt(chances * (1 - chances) / 20_000)).all()


@pytest.mark.parametrize("sampling", ["balanced", 1.0 + np.arange(14)])
def test_weighted_means_over_batches_are_those_over_the_data(sampling: Any) -> None:
    found = batches(3, sampling=sampling, importance_weights=True)
    assert found.weights is not None and found.weights.dtype == np.float32
    if isinstance(sampling, str):  # each class's share over 1/3
        np.testing.assert_allclose(found.weights, (np.array(SIZES) * 3 / 14)[[0] * 9 + [1] + [2] * 4], 1e-6)
        steps = 36  # a whole number of epochs of every class
        values = np.arange(14.0) ** 2
        seen, weights = drawn(found, steps), np.concatenate([found.weights_at(s) for s in range(steps)])  # type: ignore[misc]
        assert (weights * values[seen]).mean() == pytest.approx(values.mean(), rel=1e-6)
        assert weights.mean() == pytest.approx(1, rel=1e-6)
    else:
        assert found.chances is not None
        np.testing.assert_allclose(found.weights * found.chances, 1 / 14, 1e-6)


def test_batches_of_more_than_the_epochs_allowed_are_refused() -> None:
    batches(3 * 1024, sampling="balanced").at(0)  # the smallest class has one sample
    with pytest.raises(ConfigError, match="an integer from 1 to 3072"):
        batches(3 * 1024 + 1, sampling="balanced")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"sampling": "uniform"},
            ConfigError,
            "'uniform' does not exist; there are shuffled, balanced, weighted",
        ),
        ({"sampling": "weighted"}, ConfigError, "needs the weights"),
        ({"sampling": "balanced", "labels": None}, ConfigError, "needs the labels"),
        ({"sampling": np.ones(13)}, DataError, r"\(13,\): expected numbers, \(14,\)"),
        ({"sampling": np.ones(14, complex)}, DataError, "weights of complex128"),
        ({"sampling": np.zeros(14)}, DataError, "whose sum is 0"),
        ({"sampling": [1.0] * 13 + [-1.0]}, DataError, r"weight -1\.0 of sample 13"),
        ({"sampling": [1.0] * 13 + [np.nan]}, DataError, "weight nan of sample 13"),
        ({"importance_weights": True}, ConfigError, "shuffled, all are 1"),
        ({"sampling": np.arange(14), "importance_weights": True}, ConfigError, "1 samples have weight 0"),
    ],
)
def test_other_samplings_are_refused(settings: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Batches(IMAGES, 4, Stream(0, "data"), **{"labels": LABELS, **settings})


# The losses


@pytest.mark.parametrize("name", losses.table)
@given(data=st.data())
@hypothesis(max_examples=20, deadline=None)
def test_a_weight_of_three_is_a_sample_that_is_there_three_times(name: str, data: st.DataObject) -> None:
    loss, logit = losses.table[name], st.floats(-8, 8)
    n = data.draw(st.integers(1, 5))
    r, f = (np.array(data.draw(st.lists(logit, min_size=n, max_size=n)))[:, None] for _ in range(2))
    times = np.bincount(data.draw(st.lists(st.integers(0, n - 1), min_size=n, max_size=n)), minlength=n)
    label = data.draw(st.sampled_from([1.0, 0.9])) if loss.labels else 1.0
    weights = mg.tensor(times.astype(np.float64))
    pairs = name == "relativistic"  # which counts pairs as pairs
    others = np.repeat(f, times, axis=0) if pairs else f
    weighted = loss.discriminator(mg.tensor(r), mg.tensor(f), label, weights)
    repeated = loss.discriminator(mg.tensor(np.repeat(r, times, axis=0)), mg.tensor(others), label)
    assert weighted.item() == pytest.approx(repeated.item(), rel=1e-10, abs=1e-12)
    if loss.paired:
        weighted = loss.generator(mg.tensor(r), mg.tensor(f), weights)
        repeated = loss.generator(mg.tensor(np.repeat(r, times, axis=0)), mg.tensor(others))
        assert weighted.item() == pytest.approx(repeated.item(), rel=1e-10, abs=1e-12)


def test_weights_of_another_number_of_samples_are_refused() -> None:
    logits = mg.tensor(np.zeros((4, 1)))
    with pytest.raises(ShapeError, match=r"\(1,\) for real logits of shape \(4, 1\)"):
        losses.table["hinge"].discriminator(logits, logits, 1.0, mg.tensor([1.0]))


# The game


def networks(shape: tuple[int, ...] = (4, 4, 1), **settings: Any) -> tuple[Any, Any]:
    g = mg.models.mlp_generator(3, (6,), shape, dtype=np.float64, **settings)
    settings.pop("output", None)
    return g, mg.models.mlp_discriminator(shape, (6,), dtype=np.float64, **settings)


@pytest.mark.parametrize("loss", losses.table)
@pytest.mark.parametrize("d_steps", [1, 2])
def test_weights_of_one_change_no_bit(loss: str, d_steps: int) -> None:
    def step(**settings: Any) -> dict[str, np.ndarray]:
        game = mg.Game(*networks((2,), output=None), loss=loss, penalty=mg.penalties.r1(0.1), d_steps=d_steps)
        random = Stream(1, "step")
        reals = [random.normal((5, 2), dtype=np.float64) for _ in range(d_steps)]
        latents = [random.normal((5, 3), dtype=np.float64) for _ in range(d_steps + 1)]
        game.step(reals, latents, random=random, **settings)
        return game.state()

    plain = step()
    ones = step(weights=[mg.tensor(np.ones(5))] * d_steps)
    assert [name for name, x in plain.items() if x.tobytes() != ones[name].tobytes()] == []
    other = step(weights=[mg.tensor(np.array([3.0, 0.5, 0.5, 0.5, 0.5]))] * d_steps)
    changed = {name.split(".")[0] for name, x in plain.items() if x.tobytes() != other[name].tobytes()}
    assert {"discriminator", "generator"} <= changed
    with pytest.raises(ShapeError, match=f"{d_steps + 1} batches of weights for {d_steps} real batches"):
        step(weights=[mg.tensor(np.ones(5))] * (d_steps + 1))


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "relativistic", "penalty": [mg.penalties.r1(0.1), mg.penalties.r2(0.1)], "d_steps": 2},
        {"loss": "non_saturating", "smoothing": 0.1},
    ],
    ids=["pairs", "smoothing"],
)
def test_compiled_steps_have_the_weights_of_their_batches(settings: dict[str, Any]) -> None:
    def played(compiled: Any) -> list[dict[str, np.ndarray]]:
        gan = mg.GAN(*networks(), **settings)
        step = compiled(gan.step)
        data = batches(6, sampling="balanced", importance_weights=True)
        return [{k: x.numpy().copy() for k, x in step(data).items()} | gan.game.state() for _ in range(4)]

    eager = played(lambda step: step)
    for found, rtol in (
        (played(lambda step: mg.compile(step, fuse=False)), 0.0),
        (played(mg.compile), 1e-9),
        (played(lambda step: mg.compile(step, threads=2)), 1e-9),
    ):
        for of_step, exact in zip(found, eager, strict=True):
            for name, x in exact.items():
                np.testing.assert_allclose(of_step[name], x, rtol=rtol, atol=rtol, err_msg=name)


# Runs


def fit(out: Any = None, gan: mg.GAN | None = None, labels: Any = LABELS, **settings: Any) -> mg.GAN:
    gan = gan or mg.GAN(*networks())
    settings = {"steps": 30, "batch": 4, "sample_every": 50, "save_every": 10, "compile": False} | settings
    gan.fit(IMAGES, labels, out=out, **settings)
    return gan


def weights_of(gan: mg.GAN) -> dict[str, bytes]:
    return {name: x.tobytes() for name, x in gan.game.state().items()}


CHOICES: dict[str, dict[str, Any]] = {
    "balanced": {"sampling": "balanced"},
    "importance": {"sampling": "balanced", "importance_weights": True},
    "weighted": {"sampling": np.arange(14) + 1.0, "labels": None, "importance_weights": True},
}


@pytest.mark.parametrize("name", CHOICES)
def test_runs_go_on_bit_for_bit_and_only_with_the_same_sampling(name: str, tmp_path: Path) -> None:
    settings = CHOICES[name]
    fit(tmp_path / "run", steps=17, **settings)
    resumed = fit(tmp_path / "run", steps=30, resume=True, **settings)
    assert weights_of(resumed) == weights_of(fit(**settings))
    plain = fit(labels=None)
    assert weights_of(plain) != weights_of(resumed)
    for other, what in (({"labels": None}, "sampling"), *((s, ".") for k, s in CHOICES.items() if k != name)):
        with pytest.raises(CheckpointError, match=f"another configuration.*{what}"):
            fit(tmp_path / "run", steps=40, resume=True, **other)
    if name == "weighted":
        with pytest.raises(CheckpointError, match=r"another configuration.*sha256"):
            fit(tmp_path / "run", steps=40, resume=True, **settings | {"sampling": np.arange(14) + 2.0})


def test_runs_of_versions_without_sampling_are_resumed(tmp_path: Path) -> None:
    fit(tmp_path, labels=None, steps=10)
    found = newest(str(tmp_path), lambda note: None)
    assert found is not None
    about = found.about["config"]
    old = {
        **about,
        "training": {
            k: v for k, v in about["training"].items() if k not in ("sampling", "importance_weights")
        },
    }
    assert train._decisive(old) == train._decisive(about)
    assert train._decisive(old)["training"] == {
        "batch": 4,
        "sampling": "shuffled",
        "importance_weights": False,
    }


def test_conditional_networks_are_told_the_classes_of_balanced_batches() -> None:
    gan = mg.GAN(*networks(classes=8))
    fit(gan=gan, sampling="balanced")
    assert gan.sample(3, labels=5).shape == (3, 4, 4, 1)
    with pytest.raises(ConfigError, match="networks without classes, these have 8"):
        fit(gan=mg.GAN(*networks(classes=8)), sampling="balanced", importance_weights=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "labels are given, but the networks have no classes, and shuffled sampling needs none"),
        ({"sampling": np.ones(14)}, "and weighted sampling needs none"),
        ({"sampling": "balanced", "labels": None}, "needs the labels"),
        ({"sampling": "x", "labels": None}, "sampling 'x' does not exist"),
    ],
)
def test_labels_are_not_ignored(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(**settings)


def test_importance_weights_keep_the_share_of_a_rare_class() -> None:
    """A logistic discriminator of two points has its optimum where the logit is log p(x) / g(x), for p of the data."""
    points = np.array([[0.0]] * 90 + [[1.0]] * 10, np.float32)
    labels = np.repeat([0, 1], (90, 10))

    class Halves(mg.nn.Module):
        """Generated samples: both points, equally often."""

        latent, shape, bounds = 1, (1,), None

        def __init__(self) -> None:
            self.weight = mg.tensor([[0.0]])

        def __call__(self, z: mg.Tensor, **context: Any) -> mg.Tensor:
            return mg.ops.where(z > 0, 1.0, 0.0) + z @ self.weight

    for importance, odds in ((False, (0.5, 0.5)), (True, (0.9, 0.1))):
        discriminator = mg.nn.Sequential(mg.nn.Dense(1, 1, stream=Stream(0, "d")))
        adam = mg.optim.Adam(mg.optim.linear(0.05, 1500), b1=0.5)
        frozen = mg.optim.SGD(0.0)
        gan = mg.GAN(Halves(), discriminator, optimizer=frozen, discriminator_optimizer=adam, ema=None)
        gan.fit(points, labels, steps=1500, batch=64, sampling="balanced", importance_weights=importance)
        found = discriminator(mg.tensor([[0.0], [1.0]])).numpy()[:, 0]
        np.testing.assert_allclose(found, np.log(np.array(odds) / 0.5), atol=0.15)


# Files, and the command line


@pytest.fixture
def archive(tmp_path: Path) -> str:
    """As medical data is often handed out: an archive of three parts, with labels in columns."""
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for part, count in (("train", 40), ("val", 10), ("test", 10)):
        arrays[f"{part}_images"] = random.integers(0, 256, (count, 8, 8), np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % 4 > 0).astype(np.uint8)[:, None]
    path = str(tmp_path / "medical.npz")
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_the_training_part_of_an_archive_is_read(archive: str) -> None:
    found = mg.data.read(archive)
    assert found.samples.shape == (40, 8, 8, 1) and found.labels is not None
    assert np.bincount(found.labels).tolist() == [10, 30]


def test_pneumonia_is_rarer_among_the_healthy() -> None:
    places = [Path(root) / "pneumoniamnist" / "pneumoniamnist_merged.npz" for root in mg.data.sets.roots()]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        pytest.skip(
            "pneumoniamnist/pneumoniamnist_merged.npz is in none of the places for data, see MINIGAN_DATA"
        )
    found = mg.data.read(path)
    assert found.samples.shape == (4708, 28, 28, 1) and found.labels is not None
    assert np.bincount(found.labels).tolist() == [1214, 3494]


def test_the_command_line_has_balanced_sampling(
    archive: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("typer")
    leave_pictures_empty(monkeypatch.setattr)
    from minigan.cli import main

    out = str(tmp_path / "run")
    common = ["train", "--data", archive, "--sampling", "balanced", "--steps"]
    assert main([*common, "3", "--importance-weights", "--out", out]) == 0
    training = tomllib.loads((tmp_path / "run" / "config.toml").read_text())["training"]
    assert (training["sampling"], training["importance_weights"]) == ("balanced", True)
    assert main(["train", "--resume", out]) == 0
    assert "finished before" in capsys.readouterr().out
    assert main(["train", "--resume", out, "--sampling", "shuffled"]) == 2
    assert "importance weights are for balanced or weighted sampling" in capsys.readouterr().err
    assert main([*common, "3", "--conditional", "--out", str(tmp_path / "classes")]) == 0
    capsys.readouterr()
    assert main([*common, "3", "--importance-weights", "--conditional", "--out", str(tmp_path / "x")]) == 2
    assert "networks without classes" in capsys.readouterr().err
    assert main(["train", "digits", "--sampling", "weighted", "--out", str(tmp_path / "x")]) == 2
    assert "needs the weights of the samples" in capsys.readouterr().err


# Long tails


@given(st.integers(1, 20), st.floats(1, 1000))
def test_shares_fall_by_one_factor(classes: int, rho: float) -> None:
    shares = long_tail(classes, rho)
    assert shares.sum() == pytest.approx(1)
    if classes > 1:
        assert shares[0] / shares[-1] == pytest.approx(rho)
        np.testing.assert_allclose(shares[1:] / shares[:-1], rho ** (-1 / (classes - 1)))


def test_long_tails_have_the_published_sizes_and_are_a_function_of_the_stream() -> None:
    labels = STREAM.permutation(5000) % 10
    kept = long_tailed(labels, 100.0, Stream(0, "tail"))
    # 500 · 100^(-c/9), rounded
    assert np.bincount(labels[kept]).tolist() == [500, 300, 180, 108, 65, 39, 23, 14, 8, 5]
    assert (np.diff(kept) > 0).all()
    assert (kept == long_tailed(labels, 100.0, Stream(0, "tail"))).all()
    assert (kept != long_tailed(labels, 100.0, Stream(1, "tail"))).any()
    np.testing.assert_array_equal(long_tailed(labels, 1.0, STREAM), np.arange(5000))


def test_the_class_with_too_few_is_the_bound() -> None:
    labels = np.repeat([0, 3, 4], (1000, 40, 100))
    kept = long_tailed(labels, 4.0, STREAM)
    assert np.bincount(labels[kept])[[0, 3, 4]].tolist() == [80, 40, 20]
    assert np.bincount(labels[long_tailed(labels, 1e6, STREAM)])[[0, 3, 4]].tolist() == [1000, 1, 1]


@pytest.mark.parametrize("rho", [0.5, np.nan, np.inf])
def test_other_tails_are_refused(rho: float) -> None:
    with pytest.raises(ConfigError, match="expected a finite number from 1"):
        long_tail(3, rho)
    with pytest.raises(ConfigError, match="expected an integer from 1"):
        long_tail(0, 10.0)
    with pytest.raises(DataError, match="label -1 of sample 1"):
        long_tailed([0, -1], 10.0, STREAM)


def test_mixtures_take_weights() -> None:
    weights = long_tail(8, 100.0)
    np.testing.assert_allclose(ring(weights=weights).weights, weights)
    np.testing.assert_allclose(ring(weights=weights).weights[-1], 0.00485, atol=5e-6)
    np.testing.assert_allclose(grid(side=2, weights=[1, 1, 1, 5]).weights, [0.125, 0.125, 0.125, 0.625])
    modes = ring(weights=weights).sample(50_000, STREAM)[1]
    shares = np.bincount(modes, minlength=8) / 50_000
    assert (abs(shares - weights) <= 5 * np.sqrt(weights / 50_000)).all()
    with pytest.raises(ConfigError, match="expected 4 numbers"):
        grid(side=2, weights=[1.0, 2.0])
