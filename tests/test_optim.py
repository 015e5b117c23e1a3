"""Optimisers against exact arithmetic and plain NumPy, bad gradients and settings, schedules, averages."""

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest

import minigan as mg
from minigan import optim
from minigan.errors import ConfigError, GraphError, ShapeError
from minigan.optim import SGD, Adam, Optimizer, RMSProp

STEPS = 1000


def train(optimizer: Optimizer, start: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """The parameter after a fixed sequence of gradients."""
    parameters = {"p": mg.tensor(start)}
    state = optimizer.init(parameters)
    for g in gradients:
        optimizer.update(parameters, [mg.tensor(g)], state)
    assert state.step == len(gradients)
    return parameters["p"].numpy()


def exact_adam(optimizer: Adam, start: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Kingma and Ba 2015, Algorithm 1, in 40 digits."""
    with mpmath.workdps(40):
        rate, b1, b2, eps = (mpmath.mpf(x) for x in (optimizer.lr, optimizer.b1, optimizer.b2, optimizer.eps))
        p = [mpmath.mpf(float(x)) for x in start]
        m, v = [mpmath.mpf(0)] * len(p), [mpmath.mpf(0)] * len(p)
        for t, gs in enumerate(gradients, 1):
            for i, g in enumerate(mpmath.mpf(float(g)) for g in gs):
                m[i] = b1 * m[i] + (1 - b1) * g
                v[i] = b2 * v[i] + (1 - b2) * g * g
                p[i] -= rate * (m[i] / (1 - b1**t)) / (mpmath.sqrt(v[i] / (1 - b2**t)) + eps)
        return np.array([float(x) for x in p])


@pytest.mark.parametrize("b1", [0.9, 0.5, 0.0])
@pytest.mark.parametrize(("dtype", "limit"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_adam_is_the_published_algorithm(dtype: type, limit: float, b1: float) -> None:
    random = np.random.default_rng(0)
    start = random.normal(size=6).astype(dtype)
    scales = np.array([1.0, 1e-3, 1e3, 1.0, 1e-8, 1.0])  # 1e-8 is as large as eps
    gradients = random.normal(size=(STEPS, 6)) * scales + [0, 0, 0, 1, 0, 0]
    gradients[:, 5] *= random.random(STEPS) < 0.01  # mostly zero
    gradients = gradients.astype(dtype)
    adam = Adam(1e-3, b1=b1)
    found, exact = train(adam, start, gradients), exact_adam(adam, start, gradients)
    assert found.dtype == dtype
    assert np.abs(found - exact).max() / np.abs(exact).max() <= limit


def test_the_first_step_of_adam_is_the_rate() -> None:
    moved = train(Adam(0.01), np.zeros(3), np.array([[1e-3, -5.0, 1e6]]))
    np.testing.assert_allclose(moved, [-0.01, 0.01, -0.01], rtol=2e-5)
    np.testing.assert_array_equal(train(Adam(0.01), np.ones(2), np.zeros((3, 2))), 1.0)


def plain_sgd(
    p: np.ndarray, gs: np.ndarray, lr: float, momentum: float, nesterov: bool, decay: float
) -> np.ndarray:
    u = np.zeros_like(p)
    for g in gs:
        u = momentum * u + g
        p = p - lr * (g + momentum * u if nesterov else u) - lr * decay * p
    return p


def plain_rmsprop(p: np.ndarray, gs: np.ndarray, lr: float, rho: float, decay: float) -> np.ndarray:
    v = np.zeros_like(p)
    for g in gs:
        v = rho * v + (1 - rho) * g**2
        p = p - lr * g / (np.sqrt(v) + 1e-8) - lr * decay * p
    return p


@pytest.mark.parametrize(("dtype", "limit"), [(np.float32, 1e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize(
    ("optimizer", "plain"),
    [
        (SGD(0.1), lambda p, gs: plain_sgd(p, gs, 0.1, 0.0, False, 0.0)),
        (SGD(0.01, momentum=0.9), lambda p, gs: plain_sgd(p, gs, 0.01, 0.9, False, 0.0)),
        (
            SGD(0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
            lambda p, gs: plain_sgd(p, gs, 0.01, 0.9, True, 0.1),
        ),
        (RMSProp(1e-3), lambda p, gs: plain_rmsprop(p, gs, 1e-3, 0.9, 0.0)),
        (RMSProp(1e-3, decay=0.99, weight_decay=0.1), lambda p, gs: plain_rmsprop(p, gs, 1e-3, 0.99, 0.1)),
    ],
    ids=lambda value: (
        "" if callable(value) else str(value)
    ),  # a function's address differs from process to process
)
def test_sgd_and_rmsprop_are_their_formulas(
    optimizer: Optimizer, plain: Callable[..., np.ndarray], dtype: type, limit: float
) -> None:
    random = np.random.default_rng(1)
    start, gradients = random.normal(size=(3, 4)).astype(dtype), random.normal(size=(300, 3, 4)).astype(dtype)
    found = train(optimizer, start, gradients)
    exact = plain(start.astype(np.float64), gradients.astype(np.float64))
    assert np.abs(found - exact).max() / np.abs(exact).max() <= limit


def test_weight_decay_is_decoupled() -> None:
    """It shrinks weights by lr · weight_decay a step and leaves no trace in the moments."""
    shrunk = train(Adam(0.01, weight_decay=0.1), np.ones(2), np.zeros((10, 2)))
    np.testing.assert_allclose(shrunk, (1 - 0.001) ** 10, rtol=1e-14)
    g = np.random.default_rng(0).normal(size=(1, 2))
    both, alone = (train(Adam(0.01, weight_decay=decay), np.full(2, 3.0), g) for decay in (0.1, 0.0))
    np.testing.assert_allclose(both, alone - 0.01 * 0.1 * 3.0, rtol=1e-14)


def test_clipping_is_by_the_common_norm() -> None:
    gradients = [mg.tensor([[3.0, 0.0]]), mg.tensor([4.0])]
    clipped = optim.clip_by_global_norm(gradients, 1.0)
    np.testing.assert_allclose(clipped[0].numpy(), [[0.6, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(clipped[1].numpy(), [0.8], rtol=1e-6)
    for g, same in zip(gradients, optim.clip_by_global_norm(gradients, 5.1), strict=True):
        np.testing.assert_array_equal(g.numpy(), same.numpy())
    huge = optim.clip_by_global_norm([mg.tensor([3e30]), mg.tensor([4e30])], 1.0)
    np.testing.assert_allclose([g.item() for g in huge], [0.6, 0.8], rtol=1e-6)
    zero = optim.clip_by_global_norm([mg.tensor([0.0])], 1.0)
    assert zero[0].item() == 0
    moved = train(SGD(1.0, clip_norm=1.0), np.zeros(2), np.array([[3.0, 4.0]]))
    np.testing.assert_allclose(moved, [-0.6, -0.8], rtol=1e-14)


OPTIMIZERS: list[Optimizer] = [
    SGD(0.1, momentum=0.9),
    RMSProp(1e-3),
    Adam(1e-3),
    Adam(1e-3, clip_norm=1.0),
    Adam(1e-3, b1=0.0, b2=0.0),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_huge_and_tiny_gradients_stay_finite(optimizer: Optimizer) -> None:
    gradients = np.array([[1e30, -1e30, 1e-30, 1e-44, 0.0]] * 2 + [[1.0] * 5] * 3, np.float32)
    parameters = {"p": mg.tensor(np.zeros(5, np.float32))}
    state = optimizer.init(parameters)
    for g in gradients:
        optimizer.update(parameters, [mg.tensor(g)], state)
        tensors = [parameters["p"], *(slot["p"] for slot in state.slots.values())]
        assert all(np.isfinite(x.numpy()).all() for x in tensors)
    if not isinstance(optimizer, SGD):
        assert np.abs(parameters["p"].numpy()).max() < 0.1  # a huge gradient is no larger a step


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("optimizer", OPTIMIZERS[:-1], ids=str)
def test_a_gradient_that_is_no_number_shows(optimizer: Optimizer, bad: float) -> None:
    with np.errstate(invalid="ignore"):
        moved = train(optimizer, np.zeros(2, np.float32), np.array([[bad, 1.0]], np.float32))
    assert not np.isfinite(moved[0])
    assert optimizer.clip_norm is not None or np.isfinite(moved[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adam(math.nan), "Adam: lr is nan"),
        (lambda: Adam(-1e-3), "Adam: lr is -0.001"),
        (lambda: Adam(math.inf), "lr is inf"),
        (lambda: Adam(b1=1.0), "b1 is 1.0"),
        (lambda: Adam(b1=-0.1), "b1 is -0.1"),
        (lambda: Adam(b2=1.0), "b2 is 1.0"),
        (lambda: Adam(b2=math.nan), "b2 is nan"),
        (lambda: Adam(eps=0.0), "eps is 0.0"),
        (lambda: Adam(eps=1e-50), "eps is 1e-50"),
        (lambda: Adam(weight_decay=-1.0), "weight_decay is -1.0"),
        (lambda: Adam(clip_norm=0.0), "clip_norm is 0.0"),
        (lambda: SGD(0.1, momentum=1.0), "SGD: momentum is 1.0"),
        (lambda: RMSProp(0.1, decay=1.0), "RMSProp: decay is 1.0"),
        (lambda: RMSProp(0.1, eps=-1.0), "eps is -1.0"),
        (lambda: optim.EMA(1.0), "EMA: decay is 1.0"),
        (lambda: optim.linear(math.nan, 10), "linear: lr is nan"),
        (lambda: optim.linear(0.1, 0), "linear: steps is 0"),
        (lambda: optim.cosine(0.1, 10, begin=1.0), "cosine: begin is 1.0"),
        (lambda: train(SGD(lambda step: math.nan), np.ones(1), np.ones((1, 1))), "SGD: lr is nan"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_gradients_that_do_not_fit_change_nothing() -> None:
    parameters = {"a": mg.tensor(np.ones((2, 3))), "b": mg.tensor(np.ones(3))}
    optimizer = Adam(0.1)
    state = optimizer.init(parameters)
    good = [mg.tensor(np.ones((2, 3))), mg.tensor(np.ones(3))]
    for bad in (
        [good[0]],
        good[::-1],
        [*good, good[0]],
        [good[0], mg.tensor(np.ones(1))],
        [good[0], good[1].astype(np.float32)],
    ):
        with pytest.raises(ShapeError, match="do not fit parameters"):
            optimizer.update(parameters, bad, state)
    assert state.step == 0
    assert all((p.numpy() == 1).all() for p in parameters.values())


def test_an_update_is_in_place_and_makes_older_graphs_stale() -> None:
    p = mg.tensor(np.ones(3))
    memory = p.array
    loss = (p * p).sum()
    optimizer = Adam(0.1)
    state = optimizer.init({"p": p})
    optimizer.update({"p": p}, mg.grad(loss, p), state)
    assert p.array is memory
    with pytest.raises(GraphError, match=r"multiply: .* was changed in place 1 time"):
        mg.grad(loss, p)


def test_gradients_of_any_layout_serve() -> None:
    g = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    results = []
    for layout in (g, np.asfortranarray(g), np.repeat(g, 2, axis=1)[:, ::2]):
        p = mg.tensor(np.ones((3, 4), np.float32))
        optimizer = Adam(0.1)
        optimizer.update({"p": p}, [mg.asarray(layout)], optimizer.init({"p": p}))
        results.append(p.numpy())
    assert all((r == results[0]).all() for r in results)


def test_schedules() -> None:
    assert [optim.constant(0.1)(t) for t in (0, 10**6)] == [0.1, 0.1]
    linear, cosine = optim.linear(0.2, 100, begin=0.5), optim.cosine(0.2, 100)
    assert [linear(t) for t in (0, 50, 75, 100, 1000)] == pytest.approx([0.2, 0.2, 0.1, 0.0, 0.0], abs=1e-17)
    assert [cosine(t) for t in (0, 50, 100, 1000)] == pytest.approx([0.2, 0.1, 0.0, 0.0], abs=1e-16)
    assert cosine(25) == pytest.approx(0.1 * (1 + math.cos(math.pi / 4)))
    seen: list[int] = []
    train(SGD(lambda step: seen.append(step) or 0.1), np.ones(1), np.ones((3, 1)))
    assert seen == [0, 1, 2]
    moved = train(SGD(optim.linear(1.0, 4)), np.zeros(1), np.ones((6, 1)))
    assert moved[0] == -(1 + 0.75 + 0.5 + 0.25)


def test_ema_warms_up() -> None:
    average, weights = {"p": mg.tensor(np.zeros(2))}, {"p": mg.tensor(np.array([1.0, -1.0]))}
    expected = np.zeros(2)
    for t in range(200):
        optim.EMA(0.9).update(weights, average, lambda t=t: t)
        d = min(0.9, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * np.array([1.0, -1.0])
        np.testing.assert_allclose(average["p"].numpy(), expected, rtol=1e-13)
    # A constant is its own average, to the last bit.
    before = average["p"].numpy().copy()
    optim.EMA(0.9).update({"p": mg.tensor(before)}, average, lambda: 200)
    np.testing.assert_array_equal(average["p"].numpy(), before)
