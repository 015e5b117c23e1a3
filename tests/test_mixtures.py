"""The mixtures: their densities are exact, and their samples have them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from minigan.data import Mixture, grid, ring, swiss_roll
from minigan.errors import ConfigError, DataError
from minigan.ops.random import Stream

LOPSIDED = Mixture([[0.0, 0.0], [3.0, -1.0], [1.0, 4.0]], std=0.7, weights=[1, 0, 5])
MIXTURES = {"ring": ring(std=0.05), "grid": grid(std=0.2), "swiss roll": swiss_roll(), "lopsided": LOPSIDED}


def brute(mixture: Mixture, x: np.ndarray) -> float:
    """The density by its definition, a term at a time."""
    terms = [
        weight
        * math.exp(-sum((x - mean) ** 2) / (2 * mixture.std**2))
        / (mixture.std * math.sqrt(2 * math.pi)) ** len(x)
        for mean, weight in zip(mixture.means, mixture.weights, strict=True)
    ]
    return math.fsum(terms)


@pytest.mark.parametrize("name", MIXTURES)
def test_density_is_the_definition(name: str) -> None:
    mixture = MIXTURES[name]
    points = mixture.sample(50, Stream(0, "points"))[0].astype(np.float64) + 0.1
    wanted = [brute(mixture, x) for x in points]
    assert np.exp(mixture.log_density(points)) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", MIXTURES)
def test_density_integrates_to_one(name: str) -> None:
    mixture = MIXTURES[name]
    low, high = mixture.means.min(0) - 8 * mixture.std, mixture.means.max(0) + 8 * mixture.std
    step = mixture.std / 2  # the trapezoid rule is exact to 1e-30 for Gaussians at this step
    x, y = (np.arange(a, b + step, step) for a, b in zip(low, high, strict=True))
    points = np.stack([axis.ravel() for axis in np.meshgrid(x, y)], 1)
    assert np.exp(mixture.log_density(points)).sum() * step**2 == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", MIXTURES)
def test_samples_have_the_density(name: str) -> None:
    mixture, count = MIXTURES[name], 20_000
    points, modes = mixture.sample(count, Stream(1, "points"))
    assert points.dtype == np.float32 and points.shape == (count, 2)
    assert modes.dtype == np.int64 and modes.shape == (count,)
    shares = np.bincount(modes, minlength=len(mixture.means)) / count
    spread = np.sqrt(mixture.weights * (1 - mixture.weights) / count)
    assert (abs(shares - mixture.weights) <= 5 * spread).all()
    noise = (points - mixture.means[modes]) / mixture.std
    assert abs(noise.mean(0)).max() < 5 / math.sqrt(count)
    assert np.cov(noise.T) == pytest.approx(np.eye(2), abs=5 * math.sqrt(2 / count))
    # 1 - exp(-r²/2) of a plane Gaussian lies within r of its mean: Protocol B's 98.89 % within three deviations.
    assert (np.hypot(*noise.T) < 3).mean() == pytest.approx(1 - math.exp(-4.5), abs=0.004)
    # The mean of -log p over samples is the entropy, here against a second set of samples.
    other = mixture.sample(count, Stream(2, "points"))[0]
    first, second = (mixture.log_density(x) for x in (points, other))
    assert first.mean() == pytest.approx(second.mean(), abs=5 * first.std() * math.sqrt(2 / count))


def test_samples_are_a_function_of_stream_and_place() -> None:
    stream = Stream(7, "points")
    many, modes = ring().sample(1000, stream)
    few, fewer = ring().sample(10, stream)
    assert (many[:10] == few).all() and (modes[:10] == fewer).all()
    assert (ring().sample(10, stream.at(1))[0] != few).any()
    assert (ring().sample(10, Stream(8, "points"))[0] != few).any()


def test_shapes() -> None:
    assert ring().means.shape == (8, 2) and ring().std == 0.01
    assert np.hypot(*ring(5, radius=2.5).means.T) == pytest.approx([2.5] * 5)
    assert sorted(map(tuple, grid().means)) == [(x, y) for x in range(-4, 5, 2) for y in range(-4, 5, 2)]
    assert grid().std == 0.05
    roll = swiss_roll()
    radii, apart = np.hypot(*roll.means.T), np.hypot(*np.diff(roll.means, axis=0).T)
    assert radii[0] == pytest.approx(1 / 3, abs=1e-3) and radii[-1] == pytest.approx(1, abs=1e-3)
    assert (np.diff(radii) > 0).all() and apart.max() / roll.std < 0.93


def test_the_roll_has_no_beads() -> None:
    t = np.linspace(2.5 * math.pi, 4 * math.pi, 5000)  # one far from both ends
    along = np.stack([t * np.cos(t), t * np.sin(t)], 1) / (4.5 * math.pi)
    density = np.exp(swiss_roll().log_density(along)) * t  # which falls as the midpoints move apart
    neighbours = density[:-1] / density[1:]
    assert abs(neighbours - 1).max() < 1e-4


@given(st.integers(1, 4), st.integers(1, 5), st.floats(1e-3, 1e3), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_any_number_of_axes(axes: int, modes: int, std: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    mixture = Mixture(random.normal(size=(modes, axes)) * 10, std, random.random(modes) + 0.1)
    points, numbers = mixture.sample(7, Stream(seed, "points"))
    assert points.shape == (7, axes) and numbers.max() < modes
    wanted = [brute(mixture, x) for x in points.astype(np.float64)]
    assert np.exp(mixture.log_density(points)) == pytest.approx(wanted, rel=1e-9, abs=1e-300)


def test_far_away_and_not_finite() -> None:
    log = ring().log_density([[1e8, 0.0], [1e200, 0.0], [np.inf, 0.0], [np.nan, 0.0]])
    assert log[0] == pytest.approx(-((1e8 - 1) ** 2) / (2 * 0.01**2), rel=1e-9)
    assert log[1] == log[2] == -np.inf and np.isnan(log[3])
    assert ring().log_density(np.zeros((0, 2))).shape == (0,)
    assert ring().log_density(np.zeros((10_000, 2))).shape == (10_000,)


@pytest.mark.parametrize(
    "points", [np.zeros(2), np.zeros((3, 3)), np.zeros((2, 2), complex), np.array([["a", "b"]])]
)
def test_points_that_have_no_density(points: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"expected real numbers, \(N, 2\)"):
        ring().log_density(points)


def test_mixtures_that_are_refused() -> None:
    for means, std, weights in (
        (np.zeros((0, 2)), 1, None),
        (np.zeros(3), 1, None),
        ([[np.nan]], 1, None),
        ([[0.0]], 0, None),
        ([[0.0]], math.inf, None),
        ([[0.0]], math.nan, None),
        ([[0.0]], 1, [0]),
        ([[0.0]], 1, [1, 1]),
        ([[0.0], [1.0]], 1, [2, -1]),
        ([[0.0]], 1, [math.nan]),
    ):
        with pytest.raises(ConfigError, match="expected"):
            Mixture(means, std, weights)
    for make in (lambda: ring(0), lambda: grid(0), lambda: ring(-1), lambda: swiss_roll(0)):
        with pytest.raises(ConfigError, match="expected"):
            make()
    for count in (0, -1, 2**40):
        with pytest.raises(ConfigError, match="points: expected 1 to"):
            ring().sample(count, Stream(0, "points"))
