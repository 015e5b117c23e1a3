"""Measures of samples, against values that are known exactly."""

import math

import numpy as np
import pytest

import minigan as mg
from minigan import metrics
from minigan.metrics import samples as parts


def _random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(params=[1 << 22, 7])
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers come out however few distances are in memory at a time."""
    monkeypatch.setattr(parts, "BLOCK", request.param)


@pytest.mark.usefixtures("small_blocks")
def test_a_mixture_of_its_own_points() -> None:
    mixture = mg.data.ring()
    points, modes = mixture.sample(2500, mg.ops.Stream(0, "points"))
    found = metrics.mode_coverage(points, mixture)
    assert found.modes == 8
    assert found.high_quality == pytest.approx(1 - math.exp(-4.5), abs=4 * 0.0021)
    assert 0 <= found.reverse_kl < 5 * 7 / (2 * 2500)
    good = np.linalg.norm(points - mixture.means[modes], axis=1) < 0.03
    np.testing.assert_array_equal(found.counts, np.bincount(modes[good], minlength=8))


@pytest.mark.parametrize(("sigmas", "share"), [(1, 0.39347), (2, 0.86466), (3, 0.98889)])
def test_the_mass_of_a_plane_gaussian(sigmas: float, share: float) -> None:
    mixture = mg.data.Mixture([[0.0, 0.0]], std=2.0)
    points, _ = mixture.sample(40_000, mg.ops.Stream(1, "points"))
    assert metrics.mode_coverage(points, mixture, sigmas).high_quality == pytest.approx(share, abs=0.01)


def test_reverse_kl_of_what_was_missed_and_what_is_not_there() -> None:
    mixture = mg.data.Mixture([[0.0], [10.0], [20.0]], std=1.0, weights=[2, 1, 1])
    found = metrics.mode_coverage([[0.0]] * 3 + [[10.0]], mixture)
    assert found.reverse_kl == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(1))
    assert math.isnan(metrics.mode_coverage([[5.0]], mixture).reverse_kl)
    absent = mg.data.Mixture([[0.0], [10.0]], std=1.0, weights=[1, 0])
    assert metrics.mode_coverage([[10.0]], absent).reverse_kl == math.inf


def test_frechet_distance_of_known_moments() -> None:
    corners = np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, -1).T
    corners *= math.sqrt(7 / 8)  # so that the covariance, which divides by N - 1, is the identity
    shift = np.array([1.0, -2.0, 0.5])
    found = metrics.frechet_distance(2 * corners, 5 * corners + shift)
    assert found == pytest.approx(shift @ shift + 3 * (2 - 5) ** 2, rel=1e-12)
    first, second = np.diag([1.0, 2.0, 3.0]), np.array([[2.0, 0.5, 0], [0, 1.0, 0.3], [0, 0, 0.7]])
    x, y = corners @ first, corners @ second
    eigenvalues = np.linalg.eigvals(np.cov(x.T) @ np.cov(y.T))
    expected = np.trace(np.cov(x.T)) + np.trace(np.cov(y.T)) - 2 * np.sqrt(eigenvalues.real).sum()
    assert metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)
    assert metrics.frechet_distance(x, x) == pytest.approx(0, abs=1e-10)


def test_frechet_distance_with_fewer_samples_than_features() -> None:
    x, y = _random().normal(size=(5, 30)), _random(1).normal(size=(4, 30))
    eigenvalues = np.linalg.eigvals(np.cov(x.T) @ np.cov(y.T))
    roots = np.sqrt(np.maximum(eigenvalues.real, 0)).sum()
    expected = (
        ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T)) + np.trace(np.cov(y.T)) - 2 * roots
    )
    assert metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("small_blocks")
def test_kernel_distance_is_the_sum_over_pairs() -> None:
    x, y = _random().normal(size=(6, 3)), _random(1).normal(size=(5, 3))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / 3 + 1) ** 3

    def of_others(z: np.ndarray) -> float:
        return np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])

    between = np.mean([kernel(a, b) for a in x for b in y])
    assert metrics.kernel_distance(x, y) == pytest.approx(
        of_others(x) + of_others(y) - 2 * between, rel=1e-12
    )


def test_kernel_distance_of_equal_distributions_is_zero_on_average() -> None:
    values = [metrics.kernel_distance(*_random(k).normal(size=(2, 40, 4))) for k in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(200)
    assert min(values) < 0


def test_vendi_score() -> None:
    assert metrics.vendi_score(np.eye(7)) == pytest.approx(7, rel=1e-12)
    assert metrics.vendi_score(np.ones((7, 3))) == pytest.approx(1, rel=1e-12)
    assert metrics.vendi_score(np.repeat(np.eye(2), 5, axis=0)) == pytest.approx(2, rel=1e-12)
    with pytest.raises(mg.DataError, match="2 samples are all zeros"):
        metrics.vendi_score([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])


@pytest.mark.usefixtures("small_blocks")
def test_neighbours_are_those_of_the_definition() -> None:
    x, y, k = _random().normal(size=(30, 2)), _random(1).normal(size=(20, 2)) + 0.7, 3

    def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.linalg.norm(a[:, None] - b, axis=2)

    of_x, of_y = (np.sort(distance(z, z), axis=1)[:, k] for z in (x, y))
    inside = distance(y, x) <= of_x
    found = metrics.precision_recall(x, y, k)
    assert found.precision == inside.any(1).mean()
    assert found.density == pytest.approx(inside.sum() / (k * len(y)))
    assert found.coverage == inside.any(0).mean()
    assert found.recall == (distance(x, y) <= of_y).any(1).mean()


@pytest.mark.parametrize("k", [3, 5])
def test_neighbours_of_equal_distributions(k: int) -> None:
    n = 400
    runs = [metrics.precision_recall(*_random(s).normal(size=(2, n, 3)), k=k) for s in range(10)]
    expected = 1 - math.prod((n - i) / (2 * n - i) for i in range(1, k + 1))
    assert np.mean([run.density for run in runs]) == pytest.approx(1, abs=0.05)
    assert np.mean([run.coverage for run in runs]) == pytest.approx(expected, abs=0.02)


def test_neighbours_tell_collapse_from_noise() -> None:
    real = _random().normal(size=(300, 2))
    collapsed = metrics.precision_recall(real, 0.01 * _random(1).normal(size=(300, 2)))
    noisy = metrics.precision_recall(real, 30 * _random(2).normal(size=(300, 2)))
    assert collapsed.precision == 1 and collapsed.coverage < 0.2 and collapsed.recall < 0.2
    assert noisy.precision < 0.1 and noisy.recall > 0.9


@pytest.mark.usefixtures("small_blocks")
def test_parzen_likelihood_is_the_density_of_the_mixture() -> None:
    centres, x, sigma = _random().normal(size=(30, 2)), _random(1).normal(size=(20, 2)), 0.3
    expected = mg.data.Mixture(centres, std=sigma).log_density(x)
    found = metrics.parzen_log_likelihood(centres, x, sigma)
    assert found.mean == pytest.approx(expected.mean(), rel=1e-12)
    assert found.error == pytest.approx(expected.std() / math.sqrt(20), rel=1e-12)


def test_parzen_sigma_is_the_best_of_the_protocol() -> None:
    centres, x = _random().normal(size=(200, 2)), _random(1).normal(size=(200, 2))
    widths = np.logspace(-1, 0, 10)
    values = [metrics.parzen_log_likelihood(centres, x, float(w)).mean for w in widths]
    assert metrics.parzen_sigma(centres, x) == widths[int(np.argmax(values))]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: metrics.mode_coverage([1.0], mg.data.ring()), mg.ShapeError, r"float64 \(1,\)"),
        (
            lambda: metrics.mode_coverage(np.zeros((2, 3)), mg.data.ring()),
            mg.ShapeError,
            r"\(8, 2\), \(2, 3\)",
        ),
        (
            lambda: metrics.frechet_distance([[1.0]], [[1.0], [2.0]]),
            mg.DataError,
            "1 samples, expected at least 2",
        ),
        (lambda: metrics.kernel_distance([["a"], ["b"]], [[1.0], [2.0]]), mg.DTypeError, "real numbers"),
        (lambda: metrics.mode_coverage([[0.0, 0.0]], mg.data.ring(), math.nan), mg.ConfigError, "sigmas=nan"),
        (lambda: metrics.parzen_sigma([[0.0]], [[0.0]], np.array([])), mg.ConfigError, "no widths"),
        (lambda: metrics.vendi_score([[math.nan, 1.0]]), mg.DataError, "1 values are not finite"),
        (
            lambda: metrics.precision_recall(np.eye(3), np.eye(3), k=3),
            mg.ConfigError,
            "k=3 with 3 and 3 samples",
        ),
        (lambda: metrics.parzen_log_likelihood([[0.0]], [[0.0]], 0.0), mg.ConfigError, r"sigma=0\.0"),
    ],
)
def test_errors_have_the_numbers(call, error, words) -> None:
    with pytest.raises(error, match=words):
        call()


def test_neighbours_of_copies() -> None:
    """A radius is 0 where a sample is there twice: rounding must not decide what lies in it."""
    x = _random().random((40, 100))
    copied = np.concatenate([x[:20], x[:20]])
    assert metrics.precision_recall(x, copied, k=1).recall == 0.5
    thrice = np.concatenate([x] * 3)
    assert metrics.precision_recall(thrice, thrice[:60], k=1).recall == 1
