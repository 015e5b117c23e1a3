"""Whole games on a GPU, compiled and step by step, against the same games on the CPU, in float64.

What every primitive owes is tested alone; here is what joins them: derivatives of both players, penalties, optimisers,
averages, random numbers, guards, checkpoints. Differences are of the rounding of sums, so far below any tolerance that
a fault would meet.
"""

import functools
import os
import signal
from typing import Any

import numpy as np
import pytest
from undrawn import leave_pictures_empty

import minigan as mg

TOLERANCE = 1e-9  # of the largest number of each array of the state
STEPS = 3
POINTS = np.random.default_rng(0).normal(size=(64, 5))
IMAGES, LABELS = (each[:64] for each in mg.data.digits())
CLASSES = 10
# Of gradients that are zero but for rounding, Adam with a small eps makes steps of any sign.
FIRST, SECOND = mg.optim.Adam(1e-2, b1=0.5, eps=1e-4), mg.optim.SGD(1e-2, momentum=0.9, nesterov=True)


def dense(pack: int = 1, images: bool = False, classes: int | None = None) -> tuple[Any, Any]:
    """Two small networks of dense layers, for points or for images."""
    shape, taken = ((8, 8, 1), (8, 8, pack)) if images else ((5,), (5 * pack,))
    same: dict[str, Any] = {"classes": classes, "dtype": "float64"}
    return (
        mg.models.mlp_generator(6, (16, 8), shape, output="sigmoid" if images else None, **same),
        mg.models.mlp_discriminator(taken, (16, 8), **same),
    )


def convolutional(model: str, width: int, **more: Any) -> tuple[Any, Any]:
    """Two small networks of a model for images."""
    same: dict[str, Any] = {"shape": (8, 8, 1), "width": width, "dtype": "float64"} | more
    generator, discriminator = (
        getattr(mg.models, f"{model}_{player}") for player in ("generator", "discriminator")
    )
    return generator(latent=4, **same), discriminator(**same)


def falling(step: int) -> float:
    return 1.0 / (step + 1)


# What a GAN is given, and where "networks" is given what makes them.
GAMES: dict[str, dict[str, Any]] = {
    **{f"loss {name}": {"loss": name} for name in mg.losses.table},
    "r1, r2, shared": {
        "loss": "relativistic",
        "penalty": [mg.penalties.r1(falling), mg.penalties.r2(1.0)],
        "share_fake": True,
    },
    "wgan-gp": {"loss": "wasserstein", "penalty": mg.penalties.wgan_gp(10.0), "d_steps": 2},
    "dragan": {"penalty": mg.penalties.dragan(10.0)},
    "SGD": {"optimizer": SECOND, "discriminator_optimizer": FIRST, "smoothing": 0.1},
    "RMSProp": {
        "optimizer": mg.optim.RMSProp(1e-2, eps=1e-4, weight_decay=0.1),
        "ema": None,
        "latent": "normal",
    },
    "Adam": {
        "optimizer": mg.optim.Adam(lambda step: 0.1 * falling(step), eps=1e-4, clip_norm=0.5),
        "ema": 0.9,
    },
    "optimistic": {"optimizer": mg.optim.Adam(1e-2, eps=1e-4, optimistic=True), "noise": falling},
    "optimistic SGD": {"optimizer": mg.optim.SGD(1e-2, optimistic=True), "noise": 0.1},
    "simultaneous": {"update": "simultaneous", "consensus": 0.1},
    "extragradient": {"update": "extragradient", "consensus": 0.1},
    "unroll": {"unroll": 2},
    "pack": {"pack": 2, "networks": functools.partial(dense, 2)},
    "packs of images, unrolled": {"pack": 2, "unroll": 1, "networks": functools.partial(dense, 2, True)},
    "feature matching": {"feature_matching": 1.0},
    "augmented": {"augment": "brightness,translation,cutout", "networks": functools.partial(dense, 1, True)},
    "classes": {"networks": functools.partial(dense, 1, True, CLASSES)},
    "dcgan": {"networks": functools.partial(convolutional, "dcgan", 4)},
    "dcgan of classes": {
        "networks": functools.partial(convolutional, "dcgan", 4, classes=CLASSES),
        "penalty": mg.penalties.r1(0.1),
    },
    "resnet": {"networks": functools.partial(convolutional, "resnet", 4), "loss": "hinge"},
    "sagan": {"networks": functools.partial(convolutional, "sagan", 8), "loss": "hinge", "d_steps": 2},
    "cvtgan": {"networks": functools.partial(convolutional, "cvtgan", 4, heads=2)},
    "r3gan": {
        "networks": functools.partial(convolutional, "r3gan", 4),
        "loss": "relativistic",
        "penalty": [mg.penalties.r1(0.1), mg.penalties.r2(0.1)],
    },
}
QUICK = {"wgan-gp", "optimistic", "r1, r2, shared"}
either_way = pytest.mark.parametrize(
    "compiled", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["compiled", "step by step"]
)


def gan(name: str, device: str) -> mg.GAN:
    settings: dict[str, Any] = {"optimizer": FIRST, "ema": 0.9} | GAMES[name]
    networks = settings.pop("networks", dense)()
    return mg.GAN(*networks, device=device, **settings)


def fit(model: mg.GAN, steps: int = STEPS, data: Any = None, **options: Any) -> Any:
    shape = model.game.generator.shape
    classes = getattr(model.game.generator, "classes", None)
    data = (POINTS if shape == (5,) else IMAGES) if data is None else data
    options = {"batch": 8, "monitor_every": 0, "compile": False} | options
    return model.fit(data, None if classes is None else LABELS, steps=steps, **options)


@functools.cache
def on_the_cpu(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:
    model = gan(name, "cpu")
    records = fit(model).records
    return records[-1], model.game.state(), model.sample(4)


def assert_same_state(found: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    assert found.keys() == expected.keys()
    for name, e in expected.items():
        assert found[name].dtype == e.dtype and found[name].shape == e.shape, name
        e = np.asarray(e, np.float64)
        scale = np.abs(e).max(initial=1e-3)
        np.testing.assert_allclose(found[name], e, rtol=0, atol=tolerance * scale, err_msg=name)


def some(quick: set[str]) -> list[Any]:
    """All games, those slow that are not quick."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in GAMES]


def check(name: str, device: str, compiled: bool) -> None:
    records, state, samples = on_the_cpu(name)
    model = gan(name, device)
    found = fit(model, compile=compiled).records[-1]
    assert {x.device for x in model.game._tensors().values()} == {device}
    assert_same_state(model.game.state(), state)
    for key in ("d_loss", "g_loss", "penalty", "d_real", "d_fake"):
        assert found[key] == pytest.approx(records[key], rel=TOLERANCE, abs=TOLERANCE), key
    np.testing.assert_allclose(model.sample(4), samples, rtol=0, atol=1e-6)  # float32


@pytest.mark.parametrize("name", some(QUICK))
def test_compiled_games(name, device):
    check(name, device, True)


@pytest.mark.parametrize("name", some({"wgan-gp"}))
def test_games_step_by_step(name, device):
    check(name, device, False)


# What stops a game


def at_step(model: mg.GAN, step: int, act: Any) -> None:
    """Let something be done with the batch of a step, counted from 1."""
    real = model._real

    def then(batches: Any, k: int) -> Any:
        batch = real(batches, k)
        return act(batch) if model.game.steps == step - 1 else batch

    model._real = then  # type: ignore[method-assign]


def not_a_number(batch: np.ndarray) -> np.ndarray:
    batch = batch.copy()
    batch[-1, -1] = np.nan
    return batch


@either_way
def test_a_nan_in_the_data_leaves_the_state_as_before(compiled, device):
    messages, name = [], "wgan-gp"
    for where in ("cpu", device):
        model, before = gan(name, where), gan(name, where)
        at_step(model, 3, not_a_number)
        with pytest.raises(mg.NonFiniteError) as caught:
            fit(model, 4, compile=compiled and where == device)
        fit(before, 2, compile=compiled and where == device)
        messages.append(str(caught.value))
        found, expected = model.game.state(), before.game.state()
        assert all(np.array_equal(found[key], expected[key]) for key in expected)
    assert messages[0] == messages[1] and messages[0].startswith(
        "training diverged at step 3: discriminator: d_loss is nan"
    )


@either_way
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(compiled, device, tmp_path, monkeypatch):
    leave_pictures_empty(monkeypatch.setattr)
    options: dict[str, Any] = {"compile": compiled, "out": tmp_path / "run"}
    whole, stopped, resumed = (gan("wgan-gp", device) for _ in range(3))
    fit(whole, 5, compile=compiled)

    signals = [signal.SIGINT]

    def interrupt(batch: np.ndarray) -> np.ndarray:
        if signals:
            os.kill(os.getpid(), signals.pop())
        return batch

    at_step(stopped, 3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, 5, **options)
    assert 2 <= stopped.game.steps <= 3  # the batch of a step may be made while the one before it is
    fit(resumed, 5, resume=True, **options)
    found, expected = resumed.game.state(), whole.game.state()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


@either_way
def test_a_run_of_the_cpu_goes_on_as_on_the_device(compiled, device, tmp_path, monkeypatch):
    leave_pictures_empty(monkeypatch.setattr)
    options: dict[str, Any] = {"out": tmp_path / "run", "save_every": 2}
    fit(gan("wgan-gp", "cpu"), 2, **options)
    whole, resumed = gan("wgan-gp", device), gan("wgan-gp", device)
    run = fit(resumed, 4, resume=True, compile=compiled, **options)
    assert [each["event"] for each in run.events] == ["environment", "resumed"]
    fit(whole, 4, compile=compiled)
    assert_same_state(resumed.game.state(), whole.game.state())
