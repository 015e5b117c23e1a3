"""The loss on logits and its softplus, against 50 digits, where networks are sure and where they are not."""

import math
from typing import Any

import mpmath
import numpy as np
import pytest

import minigan as mg
from minigan import ops

SPECIAL = [0.0, -0.0, 1e-40, -1e-40, 1e-8, 88.0, -88.0, 89.0, -89.0, 104.0, -104.0, 745.0, -745.0, 1e4, -1e4]


def logits(dtype: Any, count: int = 400) -> np.ndarray:
    """Over ±1e4: special ones, some at every magnitude, many where results are subnormal."""
    random = np.random.default_rng(0)
    magnitudes = 10 ** random.uniform(-8, 4, count) * random.choice([-1, 1], count)
    tails = random.uniform(-760, 110, count)
    return np.concatenate([SPECIAL, magnitudes, random.uniform(-105, 90, count), tails]).astype(dtype)


def softplus(x: Any) -> mpmath.mpf:
    return mpmath.log1p(mpmath.exp(x))


def cross_entropy(x: Any, z: Any) -> mpmath.mpf:
    x, z = mpmath.mpf(float(x)), mpmath.mpf(float(z))
    return (z * softplus(-x) if z else 0) + ((1 - z) * softplus(x) if z != 1 else 0)


def ulps(found: np.ndarray, exact: list[mpmath.mpf]) -> np.ndarray:
    """Errors in units of the last place of the exact result, subnormal ones included."""
    rounded = np.array([float(e) for e in exact]).astype(found.dtype)
    spacing = np.spacing(np.abs(rounded))
    errors = [abs(mpmath.mpf(float(y)) - e) / float(s) for y, e, s in zip(found, exact, spacing, strict=True)]
    return np.array([float(e) for e in errors])


def both(f: Any, primitive: Any, *arrays: np.ndarray) -> list[np.ndarray]:
    """The kernel's result and that of the formula on NumPy, which stands in where Numba is missing."""
    out = np.empty_like(arrays[0])
    primitive.formula.numpy([out], *arrays)
    return [f(*arrays).numpy(), out]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softplus_is_within_4_ulp(dtype: Any) -> None:
    x = logits(dtype)
    with mpmath.workdps(50):
        exact = [softplus(mpmath.mpf(float(v))) for v in x]
        for found in both(ops.softplus, ops.elementwise._softplus, x):
            assert ulps(found, exact).max() <= 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_sigmoid_cross_entropy_is_within_4_ulp_for_hard_labels_and_8_for_soft(
    dtype: Any, labels: str
) -> None:
    x = logits(dtype)
    random = np.random.default_rng(1)
    if labels == "hard":
        z = random.integers(0, 2, x.shape).astype(dtype)
        x, z = np.concatenate([x, x]), np.concatenate([z, 1 - z])
    else:
        edges = np.array([0.1, 0.9, 1e-7, 1 - 1e-7, 0.5, 1e-40], dtype)
        z = np.where(
            random.random(x.shape) < 0.5, random.random(x.shape), random.choice(edges, x.shape)
        ).astype(dtype)
    with mpmath.workdps(50):
        exact = [cross_entropy(*pair) for pair in zip(x, z, strict=True)]
        for found in both(ops.sigmoid_cross_entropy, ops.loss._sigmoid_cross_entropy, x, z):
            assert ulps(found, exact).max() <= (4 if labels == "hard" else 8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_only_nan_gives_nan_and_derivatives_are_bounded(dtype: Any) -> None:
    big = float(np.finfo(dtype).max)
    values = np.array([*SPECIAL, big, -big, math.inf, -math.inf, math.nan], dtype)
    for label in (0.0, 1.0, 0.9, 0.1):
        x = mg.tensor(values)
        y = ops.sigmoid_cross_entropy(x, label)
        (g,) = mg.grad(y.sum(), x, create_graph=True)
        (h,) = mg.grad(g.sum(), x)
        for result in (y, g, h):
            np.testing.assert_array_equal(np.isnan(result.numpy()), np.isnan(values))
        slope, curvature = g.numpy()[:-1], h.numpy()[:-1]
        assert (np.abs(slope) <= 1).all()
        assert (curvature >= 0).all() and (curvature <= 0.25).all()
        assert (y.numpy()[:-1] >= 0).all()
        assert (y.numpy()[np.isneginf(values)] == (math.inf if label else 0)).all()
        assert (y.numpy()[np.isposinf(values)] == (math.inf if label < 1 else 0)).all()


def test_the_gradient_keeps_its_precision_where_the_network_is_sure_and_right() -> None:
    x = mg.tensor(np.array([20.0, 50.0, 90.0], np.float32))
    (g,) = mg.grad(ops.sigmoid_cross_entropy(x, 1.0).sum(), x)
    with mpmath.workdps(50):
        exact = [-1 / (1 + mpmath.exp(mpmath.mpf(float(v)))) for v in x.numpy()]
        assert ulps(g.numpy(), exact).max() <= 4
