"""Training: what a run writes, that it can be repeated and continued, and how good the digits are."""

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from undrawn import CURVES, leave_pictures_empty

import minigan as mg
from minigan import loop, pictures, presets, sampling, train
from minigan.backend import host
from minigan.checkpoint import digest

IMAGES, LABELS = mg.data.digits()


def small(seed: int = 0, **settings: Any) -> mg.GAN:
    generator = mg.models.mlp_generator(8, (16,), (8, 8, 1), seed=seed)
    return mg.GAN(generator, mg.models.mlp_discriminator((8, 8, 1), (16,), seed=seed), seed=seed, **settings)


def sha256(gan: mg.GAN) -> str:
    return digest(gan.game.state())


@pytest.fixture(autouse=True)
def empty_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last pictures, except those of the finished run."""
    leave_pictures_empty(monkeypatch.setattr)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[mg.GAN, Any, Path]:
    """A short run of the default preset with everything that it leaves."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    gan = train.build(presets.config("digits", training={"steps": 300}, lr=1e-3))
    run = gan.fit(IMAGES, steps=300, batch=64, out=out, sample_every=128)
    return gan, run, out


def test_a_run_folder_is_complete(finished: tuple[mg.GAN, Any, Path]) -> None:
    _, run, out = finished
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    drawn = {f"samples/step_{step:06}.png" for step in (0, 128, 256, 300)}
    others = {"curves.png", "compare.png", "samples.gif", "report.html"}
    saved = {f"checkpoints/step_{step:08}.safetensors" for step in (0, 300)}
    assert files == {"config.toml", "metrics.jsonl", ".lock"} | drawn | others | saved
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines == run.records
    assert [line["step"] for line in lines] == list(range(10, 301, 10))
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    assert all((out / name).stat().st_size for name in drawn | others)
    assert run.out == str(out) and 0 < lines[-1]["seconds"] < run.seconds


def test_it_learns(finished: tuple[mg.GAN, Any, Path]) -> None:
    gan, _, out = finished
    before, after = (
        np.asarray(Image.open(out / "samples" / f"step_{step:06}.png"), np.float64) for step in (0, 300)
    )
    assert before.std() < after.std() / 1.5  # from grey to ink on paper
    mean = IMAGES.mean(0).ravel()
    assert np.corrcoef(gan.sample(500).mean(0).ravel(), mean)[0, 1] > 0.8


def test_samples_are_images(finished: tuple[mg.GAN, Any, Path]) -> None:
    gan = finished[0]
    samples = gan.sample(50, seed=1)
    assert samples.shape == (50, 8, 8, 1) and samples.dtype == np.float32
    assert samples.min() >= 0 and samples.max() <= 1
    assert np.allclose(gan.sample(7, seed=1), samples[:7], atol=1e-6)
    assert np.array_equal(gan.sample(50, seed=1), samples)
    assert not np.allclose(gan.sample(50, seed=2), samples)
    assert not np.allclose(gan.sample(50, seed=1, raw=True), samples)


def test_many_samples_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    gan = small()
    whole = gan.sample(10)
    monkeypatch.setattr(sampling, "CHUNK", 4)
    assert np.allclose(gan.sample(10), whole, atol=1e-6)


def test_a_run_comes_back_from_its_folder(finished: tuple[mg.GAN, Any, Path]) -> None:
    gan, _, out = finished
    for path in (out, out / "checkpoints" / "step_00000300.safetensors"):
        again = train.restore(path)
        assert sha256(again) == sha256(gan)
        assert again.config() == gan.config()
        assert np.array_equal(again.sample(5, raw=True), gan.sample(5, raw=True))


def test_the_configuration_repeats_the_run(finished: tuple[mg.GAN, Any, Path]) -> None:
    gan, _, out = finished
    config = tomllib.loads((out / "config.toml").read_text())
    assert config["data"] == {
        "source": "an array",
        "shape": [1797, 8, 8, 1],
        "dtype": "float32",
        "sha256": digest({"images": IMAGES}),
    }
    again = train.build(config)
    again.fit(IMAGES, steps=config["training"]["steps"], batch=config["training"]["batch"])
    assert sha256(again) == sha256(gan)


def test_same_seed_same_bits() -> None:
    gans = [small(seed) for seed in (0, 0, 1)]
    for gan in gans:
        gan.fit(IMAGES, steps=25, batch=16)
    first, second, other = map(sha256, gans)
    assert first == second != other


def test_a_second_fit_goes_on() -> None:
    whole, parts = small(noise=0.1, d_steps=2), small(noise=0.1, d_steps=2)
    whole.fit(IMAGES, steps=30, batch=16)
    first, second = (parts.fit(IMAGES, steps=steps, batch=16) for steps in (13, 17))
    assert sha256(parts) == sha256(whole)
    assert [r["step"] for r in first.records + second.records] == [10, 13, 23, 30]


def test_records_are_means() -> None:
    singles = small()
    batches = mg.data.Batches(IMAGES, 16, mg.ops.Stream(0, "data"))
    metrics = [singles.step(batches) for _ in range(10)]
    (record,) = small().fit(IMAGES, steps=10, batch=16).records
    for name in loop.LOGGED:
        assert record[name] == pytest.approx(np.mean([m[name] for m in metrics]))


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "minimax", "smoothing": 0.1},
        {"loss": "relativistic", "penalty": (mg.penalties.r1(0.1), mg.penalties.r2(0.1))},
        {"loss": "hinge", "update": "simultaneous", "share_fake": True, "ema": None},
        {"loss": "wasserstein", "penalty": mg.penalties.wgan_gp(), "d_steps": 3, "latent": "normal"},
        {"optimizer": mg.optim.RMSProp(1e-3), "discriminator_optimizer": mg.optim.SGD(0.1, clip_norm=1.0)},
        {"optimizer": mg.optim.Adam(mg.optim.cosine(1e-3, 100, begin=0.5), b1=0.0)},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_settings_survive_a_run_folder(settings: dict[str, Any], tmp_path: Path) -> None:
    gan = small(**settings)
    gan.fit(IMAGES, steps=3, batch=8, out=tmp_path / "run")
    again = train.build(tomllib.loads((tmp_path / "run" / "config.toml").read_text()))
    assert again.config() == gan.config()
    again.fit(IMAGES, steps=3, batch=8)
    assert sha256(again) == sha256(gan) == sha256(train.restore(tmp_path / "run"))
    assert gan.sample(2).shape == (2, 8, 8, 1)


def test_bytes_train_as_floats_do() -> None:
    images = (IMAGES[:, :, :, 0] * 255).astype(np.uint8)
    first, second = small(), small()
    first.fit(images, steps=5, batch=16)
    second.fit(np.divide(images, 255, dtype=np.float32), steps=5, batch=16)
    assert sha256(first) == sha256(second)


def test_tanh_and_flat_networks() -> None:
    tanh = mg.GAN(
        mg.models.mlp_generator(4, (8,), (64,), output="tanh"), mg.models.mlp_discriminator((64,), (8,))
    )
    tanh.fit(IMAGES, steps=2, batch=8)
    assert tanh.sample(3).shape == (3, 8, 8, 1)
    raw = tanh.game.ema_generator(mg.ops.Stream(0, "sample").uniform((3, 4), -1.0, 1.0)).numpy()
    assert raw.min() < 0 and np.allclose(tanh.sample(3).ravel(), (raw.ravel() + 1) / 2)


def test_float64_networks_train_in_float64() -> None:
    gan = mg.GAN(
        mg.models.mlp_generator(4, (8,), (8, 8, 1), dtype=np.float64),
        mg.models.mlp_discriminator((8, 8, 1), (8,), dtype=np.float64),
    )
    gan.fit(IMAGES, steps=2, batch=8)
    assert {x.dtype for x in gan.game.state().values()} == {np.dtype(np.float64), np.dtype(np.int64)}
    assert gan.sample(2).dtype == np.float32


def test_images_that_do_not_fit() -> None:
    with pytest.raises(mg.DataError, match=r"\(28, 28, 1\) each, but the networks have shape \(8, 8, 1\)"):
        small().fit(np.zeros((5, 28, 28)))


@pytest.mark.parametrize("name", ["steps", "batch", "sample_every"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_counts_are_positive_integers(name: str, value: Any) -> None:
    with pytest.raises(mg.ConfigError, match=f"{name} is {value}"):
        small().fit(IMAGES, **{name: value})
    with pytest.raises(mg.ConfigError, match=f"n is {value}"):
        small().sample(value)


def test_networks_that_do_not_belong_together() -> None:
    with pytest.raises(mg.ConfigError, match=r"samples of \(8, 8, 1\), the discriminator takes \(64,\)"):
        mg.GAN(mg.models.mlp_generator(4, (8,), (8, 8, 1)), mg.models.mlp_discriminator((64,), (8,)))
    with pytest.raises(mg.ConfigError, match="needs attributes: latent"):
        mg.GAN(mg.nn.Flatten(), mg.models.mlp_discriminator((64,), (8,)))
    with pytest.raises(mg.ConfigError, match=r"latent 'cauchy' does not exist; there are uniform, normal"):
        small(latent="cauchy")


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(mg.ConfigError, match="not empty: runs do not overwrite anything"):
        small().fit(IMAGES, steps=1, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
    with pytest.raises(mg.ConfigError, match=r"note/run: cannot be made a run folder: Not a directory"):
        small().fit(IMAGES, steps=1, out=tmp_path / "note" / "run")


def test_divergence_ends_the_run_with_advice(tmp_path: Path) -> None:
    gan = small(optimizer=mg.optim.SGD(1e30))
    with pytest.raises(
        mg.NonFiniteError, match=r"diverged at step \d+: generator: g_loss is nan; .*; try a lower"
    ):
        gan.fit(IMAGES, steps=100, batch=16, out=tmp_path / "run")
    assert (tmp_path / "run" / "config.toml").exists()
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""
    assert train.restore(tmp_path / "run").game.steps == 0


@pytest.mark.parametrize("missing", ["PIL.Image", "tomli_w"])
def test_missing_packages_show_before_training(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    gan = small()
    with pytest.raises(mg.ExtraError, match=r'pip install "minigan\[cli\]"'):
        gan.fit(IMAGES, steps=1, out=tmp_path / "run")
    assert gan.game.steps == 0 and not (tmp_path / "run").exists()
    gan.fit(IMAGES, steps=1)  # nothing is needed where nothing is written


def test_without_matplotlib_there_are_no_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "loss_curves", CURVES)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run = small().fit(IMAGES, steps=20, batch=8, out=tmp_path / "run")
    (event,) = run.events
    assert event["event"] == "no curves.png" and 'pip install "minigan[plot]"' in event["message"]
    assert (tmp_path / "run" / "checkpoints" / "step_00000020.safetensors").exists()
    assert not (tmp_path / "run" / "curves.png").exists()


class Halves(mg.nn.Module):
    """A generator of one's own."""

    latent, shape = 2, (8, 8, 1)

    def __init__(self) -> None:
        self.bias = mg.tensor([0.5] * 64)

    def __call__(self, x: mg.Tensor, *, train: bool = False, random: Any = None) -> mg.Tensor:
        return (x.sum(axis=1, keepdims=True) + self.bias).reshape(-1, 8, 8, 1)


def test_networks_of_ones_own_train_but_are_not_rebuilt(tmp_path: Path) -> None:
    gan = mg.GAN(Halves(), mg.models.mlp_discriminator((8, 8, 1), (8,)))
    gan.fit(IMAGES, steps=2, batch=8, out=tmp_path / "run")
    assert gan.sample(100).max() == 1  # clipped
    with pytest.raises(mg.CheckpointError, match="model 'custom' does not exist; there are mlp_generator"):
        train.restore(tmp_path / "run")
    weights = mg.load(tmp_path / "run" / "checkpoints" / "step_00000002.safetensors")
    assert np.array_equal(weights["generator.bias"], gan.game.generator.bias.numpy())


def test_checkpoints_that_are_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    config = small().config()
    for metadata in (
        None,
        {"minigan": "{"},
        {"minigan": "[]"},
        {"minigan": '{"format": 1}'},
        {"minigan": "[" * 9999},
    ):
        mg.save(path, {"x": np.zeros(1)}, metadata)
        with pytest.raises(mg.CheckpointError, match="has no settings of minigan"):
            train.restore(path)
    mg.save(path, {}, {"minigan": json.dumps({"format": 99, "config": config})})
    with pytest.raises(mg.CheckpointError, match="format 99, this minigan reads up to 2"):
        train.restore(path)
    about = {"format": 1, "config": config, "sha256": digest({"x": np.zeros(1)})}
    mg.save(path, {"x": np.zeros(1)}, {"minigan": json.dumps(about)})
    with pytest.raises(
        mg.CheckpointError,
        match=r"a\.safetensors: (its array 'step' is None|the network has more weights than 2)",
    ):
        train.restore(path)
    mg.save(path, {"x": np.zeros(1)}, {"minigan": json.dumps({"format": float("inf"), "config": config})})
    with pytest.raises(mg.CheckpointError, match="what its header says of format cannot be"):
        train.restore(path)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    small().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    with pytest.raises(mg.CheckpointError, match="does not have its SHA-256"):
        train.restore(path)


def test_settings_given_as_numpy_numbers_are_written_as_numbers(tmp_path: Path) -> None:
    g = mg.models.mlp_generator(4, np.array([8]), (8, 8, 1), slope=np.float32(0.5))
    d = mg.models.mlp_discriminator((8, 8, 1), (8,))
    gan = mg.GAN(g, d, seed=np.int64(3), ema=np.float64(0.5), optimizer=mg.optim.Adam(np.float64(1e-3)))
    gan.fit(IMAGES, steps=1, batch=np.int64(4), out=tmp_path / "run")
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["seed"] == 3
    assert np.array_equal(train.restore(tmp_path / "run").sample(2), gan.sample(2))


def test_blas_threads_are_restored_when_the_last_of_overlapping_runs_ends() -> None:
    functions = host._openblas()
    if functions is None:
        pytest.skip("NumPy's BLAS is not OpenBLAS")
    before = functions[0]()
    first, second = host.one_blas_thread(), host.one_blas_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert functions[0]() == 1
    second.__exit__(None, None, None)
    assert functions[0]() == before


def test_a_tanh_generator_is_known_by_itself_not_by_its_settings() -> None:
    def own(stream: Any, shape: Any, dtype: Any) -> Any:
        return stream.uniform(shape, -0.1, 0.1, dtype=dtype)

    g = mg.models.mlp_generator(4, (8,), (8, 8, 1), output="tanh", init=own)
    samples = mg.GAN(g, mg.models.mlp_discriminator((8, 8, 1), (8,))).sample(10)
    assert 0.3 < samples.min() < samples.max() < 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "hinges"}, "'hinges' does not exist; there are"),
        ({"generator": {"model": "os.system"}}, "model 'os.system' does not exist"),
        ({"generator": {"model": "mlp_generator", "init": "eval"}}, "initialiser 'eval' does not exist"),
        ({"generator": {}}, "expected a table with 'model'"),
        ({"generator": 3}, "is 3: expected a table"),
        ({"optimizer": {"name": "Adam", "lr": {"name": "custom"}}}, "schedule 'custom' does not exist"),
        ({"optimizer": {"name": "Adma", "lr": 1}}, "optimizer 'Adma' does not exist; there are SGD"),
        ({"optimizer": {"name": "Adam", "lr": -1.0}}, "lr is -1"),
        ({"optimizer": {"name": "Adam", "lr": 1.0, "b3": 1}}, "b3"),
        ({"penalty": [{"name": "r9", "weight": 1}]}, "penalty 'r9' does not exist; there are r1"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_settings_that_do_not_exist(change: dict[str, Any], message: str) -> None:
    with pytest.raises(mg.ConfigError, match=message):
        train.build(small().config() | change)


# How good the digits are


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean, between all rows."""
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


def quality(samples: np.ndarray) -> dict[str, float]:
    """Measures of `samples` against all real digits, by distances of pixels."""
    real, fake = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (IMAGES, samples))
    among = np.sort(distances(real, real), 1)  # column 0 is each digit's distance from itself
    across = distances(fake, real)
    nearest = across.min(1)
    votes = LABELS[np.argsort(across, 1)[:, :5]]
    classes = np.array([np.bincount(row, minlength=10).argmax() for row in votes])
    return {
        "smallest class": np.bincount(classes, minlength=10).min() / len(fake),
        # Of the real digits, those with a sample within the distance of their 5th neighbour (Naeem et al. 2020, eq. 9).
        "coverage": float((across.min(0) <= among[:, 5]).mean()),
        "near": float((nearest <= np.quantile(among[:, 1], 0.95)).mean()),
        "median ratio": float(np.median(nearest) / np.median(among[:, 1])),
    }


def test_the_measure_knows_copies_averages_and_noise() -> None:
    copies = quality(IMAGES)
    assert copies["coverage"] == 1 and copies["near"] == 1 and copies["median ratio"] < 1e-6
    means = np.stack([IMAGES[k == LABELS].mean(0) for k in range(10)]).repeat(200, 0)
    assert quality(means)["coverage"] < 0.5
    noise = np.random.default_rng(0).uniform(0, 1, (500, 8, 8, 1))
    assert quality(noise)["near"] == 0


@pytest.mark.slow
def test_the_default_run_makes_digits() -> None:
    config = presets.config("digits")
    gan = train.build(config)
    gan.fit(IMAGES, steps=config["training"]["steps"], batch=config["training"]["batch"])
    found = quality(gan.sample(2000, seed=1))
    assert found["smallest class"] >= 0.05, found
    assert found["coverage"] >= 0.85, found
    assert found["near"] >= 0.8, found
    assert found["median ratio"] >= 0.8, found
