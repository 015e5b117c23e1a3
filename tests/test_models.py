"""The networks with a name, their presets, and networks that are told the classes of their samples."""

import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minigan as mg
from minigan import models, nn, presets, sampling, settings, state, train
from minigan.checkpoint import digest
from minigan.cli import main
from minigan.errors import ConfigError, DataError, NonFiniteError, ShapeError
from minigan.game import Game
from minigan.ops import Stream

IMAGES, LABELS = mg.data.digits()
STREAM = Stream(0, "test")
TINY: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (8,)},
    "dcgan": {"width": 4},
    "resnet": {"width": 4},
    "sagan": {"width": 8},
    "cvtgan": {"width": 4},
    "r3gan": {"width": 2},
}
SHAPES = [(8, 8, 1), (16, 12, 3)]


def pair(kind: str, shape: tuple[int, ...], classes: int | None = None, **more: Any) -> tuple[Any, Any]:
    """The generator and the discriminator of a kind, as small as they can be."""
    both = {**TINY[kind], "shape": shape, "classes": classes, **more}
    return getattr(models, f"{kind}_generator")(3, **both), getattr(models, f"{kind}_discriminator")(**both)


def some_labels(count: int, classes: int | None) -> mg.Tensor | None:
    return None if classes is None else mg.tensor(np.arange(count) * 7 % classes)


def gan_of(kind: str = "dcgan", classes: int | None = 10, **more: Any) -> mg.GAN:
    return mg.GAN(*pair(kind, (8, 8, 1), classes), **more)


# The networks


def test_dcgan_28_is_the_published_one() -> None:
    g, d = models.dcgan_generator(), models.dcgan_discriminator()
    kinds = [type(layer).__name__ for layer in g.layers]
    norm = ["BatchNorm", "Activation"]
    assert kinds == ["Dense", "Reshape", *norm, "ConvTranspose", *norm, "ConvTranspose", "Activation"]
    assert [x.shape for x in g.parameters().values()] == [
        *[(100, 7 * 7 * 128), (128,), (128,)],
        *[(4, 4, 64, 128), (64,), (64,)],
        *[(4, 4, 1, 64), (1,)],
    ]
    assert g.count() == 627_200 + 256 + 131_072 + 128 + 1_024 + 1
    kinds = [type(layer).__name__ for layer in d.layers]
    assert kinds == ["Conv", "Activation", "Conv", *norm, "Flatten", "Dense"]
    assert [x.shape for x in d.parameters().values()] == [
        *[(4, 4, 1, 64), (64,)],
        *[(4, 4, 64, 128), (128,), (128,)],
        *[(6272, 1), (1,)],
    ]
    assert d.count() == 1_024 + 64 + 131_072 + 256 + 6_273
    for network in (g, d):
        for name, x in network.parameters().items():
            if name.endswith("weight"):
                assert abs(x.numpy().std() / 0.02 - 1) < 4 / math.sqrt(2 * x.size)


@pytest.mark.parametrize("classes", [None, 10])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", TINY)
def test_shapes(kind: str, shape: tuple[int, ...], classes: int | None) -> None:
    g, d = pair(kind, shape, classes)
    labels = some_labels(5, classes)
    for train_ in (False, True):
        samples = g(STREAM.uniform((5, 3), -1, 1), train=train_, labels=labels)
        assert samples.shape == (5, *shape)
        assert g.bounds[0] <= samples.numpy().min() < samples.numpy().max() <= g.bounds[1]
        assert d(samples, train=train_, labels=labels).shape == (5, 1)
    assert (g.latent, g.shape, d.shape, g.classes, d.classes) == (3, shape, shape, classes, classes)


def test_large_images_are_halved_more_often() -> None:
    for side, start in ((8, 2), (28, 7), (32, 8), (36, 9), (64, 8), (96, 6), (128, 8)):
        g = models.dcgan_generator(2, 4, (side, side, 3))
        assert g.layers[1].shape == (start, start, 2 * side // start)


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow) if k == "cvtgan" else k for k in TINY]
)
def test_a_gradient_comes_to_every_parameter(kind: str) -> None:
    """Where a part of the network began at 0, such as SAGAN's attention, it is moved away from there."""
    g, d = pair(kind, (16, 12, 3), 10, dtype=np.float64)
    for network in (g, d):
        moved = STREAM.child(kind)
        network.load_state(
            {
                name: x.numpy()
                + (0.1 * moved.normal(x.shape, dtype=x.dtype).numpy() if name in network.parameters() else 0)
                for name, x in network.state().items()
            }
        )
    labels = some_labels(6, 10)
    logits = d(
        g(STREAM.normal((6, 3), dtype=np.float64), train=True, labels=labels), train=True, labels=labels
    )
    parameters = {"g": g.parameters(), "d": d.parameters()}
    named = {f"{who}.{name}": x for who, each in parameters.items() for name, x in each.items()}
    gradients = mg.grad((logits * STREAM.normal((6, 1), dtype=np.float64)).sum(), list(named.values()))
    assert [name for name, gx in zip(named, gradients, strict=True) if not gx.numpy().any()] == []
    assert all(np.isfinite(gx.numpy()).all() for gx in gradients)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("kind", TINY)
def test_networks_come_back_from_their_settings(kind: str, classes: int | None) -> None:
    for network in pair(kind, (8, 8, 1), classes, seed=5, dtype=np.float64):
        config = settings.plain(settings.describe_network(network))
        assert config["classes"] == (settings.NONE if classes is None else classes)
        count = sum(x.size for x in network.state().values())
        again = settings.build_network(config, limit=count)
        assert settings.plain(settings.describe_network(again)) == config
        assert repr(again) == repr(network)
        state = {name: x.numpy() for name, x in network.state().items()}
        assert digest(state) == digest({name: x.numpy() for name, x in again.state().items()})
        with pytest.raises(ConfigError, match="more weights than 9"):
            settings.build_network(config, limit=9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (30, 28, 1)}, r"shape \(30, 28, 1\): .* multiples of 4: 30 mod 4 is 2, 28 mod 4 is 0"),
        ({"shape": (784,)}, r"shape \(784,\): expected \(H, W, C\)"),
        ({"shape": (28, 28, 0)}, "expected"),
        ({"width": 0}, "width 0: expected at least 1 channel"),
        ({"classes": 0}, "0 classes"),
    ],
)
@pytest.mark.parametrize("kind", [kind for kind in TINY if kind != "mlp"])
def test_bad_settings_are_named(kind: str, arguments: dict[str, Any], message: str) -> None:
    for who in ("generator", "discriminator"):
        with pytest.raises(ConfigError, match=message):
            getattr(models, f"{kind}_{who}")(**arguments)


def test_other_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="latents of 0 numbers"):
        models.dcgan_generator(0)
    with pytest.raises(ConfigError, match=r"4 channels, .* at least 8"):
        models.sagan_generator(width=4)
    with pytest.raises(ConfigError, match="18 features do not divide into 4 heads"):
        models.cvtgan_discriminator(width=18)


# Steps and presets


def tiny_preset(name: str, classes: int | None = None, dtype: str = "float32") -> dict[str, Any]:
    config = presets.config(name, data={"source": "digits"}, shape=(8, 8, 1), classes=classes)
    for who in presets.PLAYERS:
        config[who] |= {**TINY[config[who]["model"].split("_")[0]], "dtype": dtype}
    return config


@pytest.mark.parametrize(
    ("name", "dtype", "rounding"),
    [
        ("dcgan", "float32", 1e-5),
        *(
            pytest.param(each, "float64", 1e-9, marks=pytest.mark.slow)
            for each in ("sagan", "resnet", "cvtgan", "r3gan")
        ),
    ],
)
def test_a_compiled_step_is_the_eager_one(name: str, dtype: str, rounding: float) -> None:
    gans = [train.build(tiny_preset(name, 10, dtype)) for _ in range(2)]
    before = gans[0].game.state()
    for gan, compiled in zip(gans, (True, False), strict=True):
        gan.fit(IMAGES[:50], LABELS[:50], steps=1, batch=6, compile=compiled)
    found, expected = (gan.game.state() for gan in gans)
    for key, x in expected.items():
        np.testing.assert_allclose(found[key], x, rtol=rounding, atol=rounding, err_msg=key)
    buffers = [key for key in expected if key.split(".")[-1] in ("u", "running_mean", "running_variance")]
    assert bool(buffers) == (name != "r3gan")
    moved = [key for key in buffers if before[key].size > 1 and (before[key] != found[key]).any()]
    assert len(moved) == sum(before[key].size > 1 for key in buffers), "buffers that no step moves"
    for key in buffers:
        if key.startswith("generator."):  # the averaged generator has those of the trained one
            np.testing.assert_array_equal(found[key], found["ema." + key.removeprefix("generator.")])


@pytest.mark.parametrize("compiled", [False, True])
def test_a_failed_step_leaves_no_trace(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gan = train.build(tiny_preset("sagan", 10, "float64"))
    batches = mg.data.Batches(IMAGES, 4, Stream(0, "data"), labels=LABELS)
    step = mg.compile(gan.step) if compiled else gan.step
    step(batches)
    before = gan.game.state()
    real = gan._real
    monkeypatch.setattr(gan, "_real", lambda *args: real(*args) * np.nan)
    with pytest.raises(NonFiniteError, match="d_loss is nan"):
        step(batches)
    after = gan.game.state()
    assert [key for key, x in before.items() if x.tobytes() != after[key].tobytes()] == []


def test_presets_begin_with_their_own_data_and_take_others() -> None:
    for name in ("dcgan", "resnet", "sagan", "cvtgan", "r3gan"):
        config = presets.config(name)
        assert config["data"] == {"source": "mnist"}
        assert [config[who]["shape"] for who in presets.PLAYERS] == [[28, 28, 1]] * 2
        assert [config[who]["classes"] for who in presets.PLAYERS] == [None] * 2
        other = presets.config(name, data={"source": "x"}, shape=(32, 32, 3), classes=7)
        assert [other[who]["shape"] for who in presets.PLAYERS] == [[32, 32, 3]] * 2
        assert [other[who]["classes"] for who in presets.PLAYERS] == [7] * 2


def test_classes_of_one_network_are_those_of_the_other() -> None:
    config = settings.merge(presets.table("dcgan"), {"generator": {"classes": 10}})
    assert settings.check(config)["discriminator"]["classes"] == 10


# Labels


class Told(nn.Conditional):
    """A network that remembers with which labels it was called."""

    def __init__(self, inner: nn.Module) -> None:
        self.inner, self.seen = inner, {"labels": ()}

    def __call__(
        self, x: mg.Tensor, *, train: bool = False, random: Stream | None = None, labels: Any = None
    ) -> mg.Tensor:
        self.seen["labels"] += (tuple(labels.numpy().tolist()),)  # type: ignore[assignment]
        return self.inner(x)


@pytest.mark.parametrize("share_fake", [False, True])
def test_every_batch_has_the_labels_of_real_samples(share_fake: bool) -> None:
    g, d = (Told(network) for network in pair("mlp", (2,)))
    game = Game(
        g, d, loss="relativistic", penalty=mg.penalties.wgan_gp(), d_steps=2, share_fake=share_fake, ema=None
    )
    reals, latents = (
        [STREAM.normal((3, n)) for _ in range(count)] for n, count in ((2, 2), (3, 3 - share_fake))
    )
    first, second = (0, 1, 2), (3, 3, 0)
    labels = [mg.tensor(np.array(each)) for each in (first, second)]
    game.step(reals, latents, random=STREAM.at(0), labels=labels)
    assert g.seen["labels"] == (first, second) + (() if share_fake else (second,))
    # Real, generated, and between them for the penalty, twice; then real and generated for the generator.
    assert d.seen["labels"] == (first,) * 3 + (second,) * 5
    with pytest.raises(ShapeError, match="1 batches of labels for 2 real batches"):
        game.step(reals, latents, random=STREAM.at(0), labels=labels[0])


def test_labels_belong_to_their_images() -> None:
    images = (np.arange(200, dtype=np.uint8) % 200).repeat(4).reshape(200, 2, 2, 1)
    batches = mg.data.Batches(images, 32, Stream(0, "data"), labels=np.arange(200) % 10, classes=10)
    for step in range(20):
        shown = (batches.at(step)[:, 0, 0, 0] * 255).round().astype(int)
        np.testing.assert_array_equal(batches.labels_at(step), shown % 10)
    assert mg.data.Batches(images, 32, Stream(0, "data")).labels_at(0) is None


def test_labels_that_do_not_fit_are_named() -> None:
    wrong = LABELS.copy()
    wrong[3] = 10
    with pytest.raises(DataError, match="label 10 of sample 3: expected 0 to 9"):
        gan_of().fit(IMAGES, wrong, steps=1)
    with pytest.raises(DataError, match=r"expected integers, \(1797,\)"):
        gan_of().fit(IMAGES, LABELS[:5], steps=1)
    with pytest.raises(ConfigError, match="for 10 classes, but the data has no labels"):
        gan_of().fit(IMAGES, steps=1)
    with pytest.raises(ConfigError, match="labels are given, but the networks have no classes"):
        gan_of(classes=None).fit(IMAGES, LABELS, steps=1)
    with pytest.raises(ConfigError, match="the generator is for 10 classes, the discriminator for None"):
        mg.GAN(pair("mlp", (8, 8, 1), 10)[0], pair("mlp", (8, 8, 1))[1])


def test_samples_of_classes() -> None:
    gan = gan_of()
    some = gan.sample(4, seed=1, labels=7)
    np.testing.assert_allclose(gan.sample(2, seed=1, labels=np.array([7, 7])), some[:2], atol=1e-6)
    assert abs(gan.sample(4, seed=1, labels=6) - some).max() > 1e-4
    in_turn = gan.sample(12, seed=1)
    np.testing.assert_allclose(gan.sample(12, seed=1, labels=np.arange(12) % 10), in_turn, atol=1e-6)
    assert gan.interpolate(2, 3, labels=[1, 2]).shape == (6, 8, 8, 1)
    for bad in (10, -1, True, 1.5):
        with pytest.raises(ConfigError, match=f"class {bad}: expected an integer from 0 to 9"):
            gan.sample(1, labels=bad)
    with pytest.raises(DataError, match="label 12 of sample 1"):
        gan.sample(2, labels=[0, 12])
    with pytest.raises(ConfigError, match="the generator has no classes"):
        gan_of(classes=None).sample(1, labels=0)


def test_a_picture_has_a_row_for_each_class() -> None:
    sampler = sampling.Sampler(pair("mlp", (8, 8, 1), 3)[0])
    count, labels, columns = sampler.rows(7)
    assert (count, columns) == (9, 3)
    assert labels is not None and labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    count, labels, columns = sampler.rows(2, labels=1)
    assert (count, columns) == (2, None) and labels is not None and labels.tolist() == [1, 1]
    assert sampling.Sampler(pair("mlp", (8, 8, 1))[0]).rows(7) == (7, None, None)


def test_samples_do_not_see_each_other() -> None:
    """Outside of training, batch norm goes by its running statistics, of many batches and not of this one."""
    gan = gan_of("resnet")
    gan.fit(IMAGES, LABELS, steps=3, batch=8, compile=False)
    many = gan.sample(20, labels=3)
    np.testing.assert_allclose(gan.sample(1, labels=3), many[:1], atol=1e-6)


@pytest.mark.parametrize(("kind", "compiled"), [("dcgan", True), ("sagan", False)])
def test_a_conditional_run_goes_on_bit_for_bit(kind: str, compiled: bool, tmp_path: Path) -> None:
    more = {} if compiled else {"d_steps": 2, "noise": 0.1, "penalty": mg.penalties.r1(0.1)}
    whole, first, second, other = (gan_of(kind, **more) for _ in range(4))
    options: dict[str, Any] = {"batch": 6, "compile": compiled}
    whole.fit(IMAGES, LABELS, steps=6, **options)
    first.fit(IMAGES, LABELS, steps=3, out=tmp_path / "run", **options)
    run = second.fit(IMAGES, LABELS, steps=6, out=tmp_path / "run", resume=True, **options)
    assert digest(second.game.state()) == digest(whole.game.state())
    assert digest(train.restore(tmp_path / "run").game.state()) == digest(whole.game.state())
    speeds = [run.records[-1][f"{each}_per_second"] for each in ("images", "steps")]
    assert speeds[0] == pytest.approx(6 * whole.game.d_steps * speeds[1], rel=0.01)
    with pytest.raises(mg.CheckpointError, match=r"data\.sha256 was"):
        other.fit(IMAGES, LABELS[::-1], steps=7, out=tmp_path / "run", resume=True, **options)


def test_runs_of_versions_without_classes_go_on(tmp_path: Path) -> None:
    first, second = (gan_of("mlp", None) for _ in range(2))
    first.fit(IMAGES, steps=3, batch=6, out=tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        found = state.read(path)
        for who in presets.PLAYERS:
            del found.about["config"][who]["classes"]
        state.write(
            path, found.arrays, {k: x for k, x in found.about.items() if k not in ("format", "environment")}
        )
    second.fit(IMAGES, steps=6, batch=6, out=tmp_path / "run", resume=True)
    assert second.game.steps == 6


def test_the_generator_draws_the_class_that_was_asked_for() -> None:
    """After a few seconds nine of ten samples are nearest to the mean image of their class."""
    gan = train.build(presets.config("digits", training={"steps": 600}, classes=10))
    gan.fit(IMAGES, LABELS, steps=600, batch=64)
    asked = np.arange(200) % 10
    means = np.stack([IMAGES[k == LABELS].mean(0).ravel() for k in range(10)])
    samples = gan.sample(200, seed=1, labels=asked).reshape(200, 1, -1)
    assert (np.linalg.norm(samples - means, axis=-1).argmin(1) == asked).mean() > 0.8


# The command line


@pytest.mark.slow
def test_conditional_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = 'preset = "dcgan"\n[generator]\nwidth = 4\n[discriminator]\nwidth = 4\n[data]\nsource = "digits"\n'
    Path("own.toml").write_text(own)
    options = ["--steps", "2", "--batch", "4", "--data", "digits"]
    assert main(["train", "own.toml", "--conditional", *options, "--out", "run"]) == 0
    config = tomllib.loads(Path("run/config.toml").read_text())
    assert [config[who]["classes"] for who in presets.PLAYERS] == [10, 10]
    assert config["generator"]["shape"] == [8, 8, 1]
    assert main(["train", "run/config.toml", "--out", "again"]) == 0
    assert main(["train", "--resume", "run"]) == 0
    assert "was finished before" in capsys.readouterr().out

    def samples(*arguments: str) -> Any:
        assert main(["sample", "run", "--out", "s.npz", *arguments]) == 0
        return np.load("s.npz")

    seven = samples("--class", "7", "-n", "5")
    assert seven["labels"].tolist() == [7] * 5 and seven["samples"].shape == (5, 8, 8, 1)
    assert samples("-n", "12")["labels"].tolist() == np.repeat(np.arange(10), 2).tolist()
    assert samples("-n", "9", "--interpolate")["labels"].tolist() == [0] * 8 + [1] * 8
    assert main(["sample", "run", "--class", "7"]) == 0
    assert main(["inspect", "run"]) == 0
    assert "ConcatLabels(classes=10)" in capsys.readouterr().out
    assert main(["sample", "run", "--class", "10"]) == 2
    assert "class 10: expected an integer from 0 to 9" in capsys.readouterr().err

    assert main(["train", "own.toml", *options, "--out", "plain"]) == 0
    assert main(["sample", "plain", "--class", "7"]) == 2
    assert "the generator has no classes" in capsys.readouterr().err
    np.save("some.npy", IMAGES[:20])
    assert main(["train", "dcgan", "--data", "some.npy", "--conditional"]) == 3
    assert "has no labels: --conditional needs those of its classes" in capsys.readouterr().err
    np.savez("odd.npz", images=IMAGES[:20], labels=np.arange(20) * 100)
    assert main(["train", "dcgan", "--data", "odd.npz", "--conditional"]) == 3
    assert "has labels up to 1900 for 20 samples" in capsys.readouterr().err
    assert main(["train", "dcgan", "--data", "ring"]) == 2
    assert "use the preset points" in capsys.readouterr().err
