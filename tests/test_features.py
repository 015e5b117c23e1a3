"""Features and characteristic functions, against what is known exactly."""

import math

import numpy as np
import pytest

import minigan as mg
from minigan import analysis


def _random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_features_are_what_the_layers_compute() -> None:
    network = mg.models.dcgan_discriminator((8, 8, 1), width=4, classes=3)
    x, labels = _random().uniform(-1, 1, (5, 8, 8, 1)).astype(np.float32), np.array([0, 1, 2, 0, 1])
    found = analysis.features(network, x, labels)
    assert len(found) == len(network.layers)
    last = network(mg.tensor(x), labels=mg.tensor(labels)).numpy()
    np.testing.assert_array_equal(list(found.values())[-1], last)
    assert [name.split()[0] for name in found] == [f"layers.{k}" for k in range(len(found))]


@pytest.mark.parametrize("shape", [(50, 4), (3, 7), (20, 2, 3)])
def test_covariance_eigenvalues_are_those_of_the_covariance(shape: tuple[int, ...]) -> None:
    x = _random().normal(size=shape)
    rows = x.reshape(shape[0], -1)
    expected = np.sort(np.linalg.eigvalsh(np.cov(rows.T, bias=True)))[::-1]
    np.testing.assert_allclose(analysis.covariance_eigenvalues(x), expected, atol=1e-12)


def test_effective_rank() -> None:
    corners = np.array(np.meshgrid(*[[-1.0, 1.0]] * 5)).reshape(5, -1).T
    assert analysis.effective_rank(corners) == pytest.approx(5, abs=1e-12)
    assert analysis.effective_rank(corners @ np.diag([1, 1, 0, 0, 0])) == pytest.approx(2, abs=1e-12)
    assert analysis.effective_rank(np.outer(np.arange(9.0), np.ones(5))) == pytest.approx(1, abs=1e-12)
    for value in (1.0, 0.1, 1e30):
        assert analysis.effective_rank(np.full((7, 5), value)) == 0
    parts = np.array([0.5, 0.3, 0.2])
    expected = math.exp(-(parts * np.log(parts)).sum())
    scaled = corners[:, :3] * np.sqrt(parts)
    assert analysis.effective_rank(scaled) == pytest.approx(expected, abs=1e-12)
    assert analysis.effective_rank(scaled * 1e100) == pytest.approx(expected, abs=1e-12)


def test_feature_matching_and_its_derivative() -> None:
    x, y = _random(0).normal(size=(6, 3)), _random(1).normal(size=(4, 3))
    distance = analysis.feature_matching(x, y).item()
    assert distance == pytest.approx(((x.mean(0) - y.mean(0)) ** 2).sum(), rel=1e-12)
    mg.check_grad(lambda x: analysis.feature_matching(x, y), mg.tensor(x, dtype="float64"))


def test_singular_values_of_a_linear_map_and_of_a_network() -> None:
    weights = _random().normal(size=(3, 5))
    z = _random(1).normal(size=(4, 3))
    found = analysis.singular_values(lambda z: z @ mg.tensor(weights, dtype="float64"), z)
    expected = np.linalg.svd(weights, compute_uv=False)
    np.testing.assert_allclose(found, np.tile(expected, (4, 1)), rtol=1e-12)
    narrow = analysis.singular_values(
        lambda z: z @ mg.tensor(weights.T, dtype="float64"), _random().normal(size=(2, 5))
    )
    np.testing.assert_allclose(narrow, np.tile([*expected, 0, 0], (2, 1)), atol=1e-12)
    generator = mg.models.mlp_generator(3, (8,), (4, 4, 1), dtype="float64")
    of_all = analysis.singular_values(generator, z)
    np.testing.assert_allclose(analysis.singular_values(generator, z[2:3])[0], of_all[2], rtol=1e-10)


def test_linear_probe() -> None:
    random = _random()
    labels = random.integers(0, 3, 600)
    x = random.normal(size=(600, 6))
    x[:, :3] += 6 * np.eye(3)[labels]
    assert analysis.linear_probe(x[:400], labels[:400], x[400:], labels[400:]) > 0.98
    noise = random.normal(size=(600, 6))
    assert analysis.linear_probe(noise[:400], labels[:400], noise[400:], labels[400:]) < 0.45


def test_characteristic_function_of_a_normal_distribution() -> None:
    mean, root = np.array([0.5, -1.0]), np.array([[1.0, 0.0], [0.6, 0.5]])
    x = _random().normal(size=(200_000, 2)) @ root.T + mean
    t = _random(1).normal(size=(20, 2))
    real, imaginary = (part.numpy() for part in analysis.characteristic_function(x, t))
    expected = np.exp(1j * t @ mean - 0.5 * ((t @ root) ** 2).sum(1))
    np.testing.assert_allclose(real + 1j * imaginary, expected, atol=5 / math.sqrt(len(x)))


@pytest.mark.parametrize(("mu", "scale"), [(0.0, 1.0), (1.0, 1.0), (3.0, 0.5)])
def test_characteristic_distance_of_two_normal_distributions(mu: float, scale: float) -> None:
    """Over samples that are quantiles and frequencies that are quadrature nodes, the integral is met closely."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    from statistics import NormalDist

    quantiles = np.array([NormalDist().inv_cdf((k + 0.5) / 4000) for k in range(4000)])
    found = sum(
        w
        * analysis.characteristic_distance(
            quantiles[:, None], quantiles[:, None] + mu, [[scale * node]]
        ).item()
        for w, node in zip(weights, nodes, strict=True)
    )
    s = 1 + 2 * scale**2
    expected = 2 / math.sqrt(s) * (1 - math.exp(-(mu**2) * scale**2 / (2 * s)))
    assert found == pytest.approx(expected, abs=2e-3)


def test_amplitude_and_phase_are_the_parts_of_the_distance() -> None:
    x, y, t = (_random(k).normal(size=(n, 2)) for k, n in enumerate((30, 40, 6)))

    def distance(amplitude: float) -> float:
        return analysis.characteristic_distance(x, y, t, amplitude).item()

    assert distance(1.0) / 2 + distance(0.0) / 2 == pytest.approx(distance(0.5), rel=1e-9)
    (a, b), (c, d) = (analysis.characteristic_function(z, t) for z in (x, y))
    phi, psi = (u.numpy() + 1j * v.numpy() for u, v in ((a, b), (c, d)))
    assert distance(1.0) == pytest.approx(2 * ((np.abs(phi) - np.abs(psi)) ** 2).mean(), rel=1e-6)
    # Shifting moves phases only.
    shifted = analysis.characteristic_distance(x, x + 0.3, t, 1.0).item()
    assert shifted == pytest.approx(0, abs=1e-10)
    mg.check_grad(lambda x: analysis.characteristic_distance(x, y, t, 0.3), mg.tensor(x, dtype="float64"))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: analysis.covariance_eigenvalues([[1.0, 2.0]]), mg.DataError, r"shape \(1, 2\)"),
        (lambda: analysis.effective_rank([[1.0], [math.nan]]), mg.DataError, "1 values that are not finite"),
        (lambda: analysis.feature_matching(np.ones((2, 3)), np.ones((2, 4))), mg.ShapeError, r"\(2, 4\)"),
        (lambda: analysis.singular_values(lambda z: z, np.ones(3)), mg.ShapeError, r"shape \(3,\)"),
        (lambda: analysis.linear_probe([[1.0]], [0, 1], [[1.0]], [0]), mg.DataError, r"labels int64 \(2,\)"),
        (
            lambda: analysis.linear_probe([[1.0]], [0], [[1.0, 2.0]], [0]),
            mg.DataError,
            "1 features in training, 2",
        ),
        (
            lambda: analysis.characteristic_function(np.ones((2, 3)), np.ones((2, 2))),
            mg.ShapeError,
            r"\(2, 3\)",
        ),
        (lambda: analysis.characteristic_distance([[1.0]], [[1.0]], [[1.0]], 1.5), mg.ConfigError, "1.5"),
    ],
)
def test_errors_have_the_numbers(call, error, words) -> None:
    with pytest.raises(error, match=words):
        call()
