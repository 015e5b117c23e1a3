"""The vector field of games: the Dirac-GAN's closed forms, and dense against matrix-free products."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import minigan as mg
from minigan.analysis import Field, stable_step
from minigan.ops import softplus

Loss = Callable[[mg.Tensor, mg.Tensor], tuple[mg.Tensor, mg.Tensor]]
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
GAMMA, SIGMA = 0.3, 0.7


def _f(t: Any) -> Any:
    return -softplus(-t)


def _minimax(theta: mg.Tensor, psi: mg.Tensor) -> tuple[mg.Tensor, mg.Tensor]:
    value = _f(psi * theta) + _f(-psi * 0.0)
    return value, -value


def _non_saturating(theta: mg.Tensor, psi: mg.Tensor) -> tuple[mg.Tensor, mg.Tensor]:
    """G maximises f(-ψ θ) in the convention in which D maximises f(ψ θ)."""
    return -_f(-(psi * theta)), -_f(psi * theta)


def _relativistic(theta: mg.Tensor, psi: mg.Tensor) -> tuple[mg.Tensor, mg.Tensor]:
    return _f(psi * theta - psi * 0.0), -_f(psi * theta - psi * 0.0)


def _wasserstein(theta: mg.Tensor, psi: mg.Tensor) -> tuple[mg.Tensor, mg.Tensor]:
    return psi * theta, -(psi * theta)


def _noisy(theta: mg.Tensor, psi: mg.Tensor) -> tuple[mg.Tensor, mg.Tensor]:
    noise = SIGMA * NODES
    value = (WEIGHTS * (_f(psi * (theta + noise)) + _f(-psi * noise))).sum()
    return value, -value


def _with_penalty(base: Loss) -> Loss:
    """R1, and R2 too, as the slope of ψ x is ψ everywhere: γ/2 ψ²."""

    def losses(theta: mg.Tensor, psi: mg.Tensor) -> tuple[mg.Tensor, mg.Tensor]:
        g, d = base(theta, psi)
        x = mg.tensor(0.0, dtype="float64")
        (slope,) = mg.grad(psi * x, x, create_graph=True)
        return g, d + 0.5 * GAMMA * slope * slope

    return losses


def _consensus(theta: mg.Tensor, psi: mg.Tensor) -> tuple[mg.Tensor, mg.Tensor]:
    g, d = _minimax(theta, psi)
    (of_g,), (of_d,) = mg.grad(g, [theta], create_graph=True), mg.grad(d, [psi], create_graph=True)
    energy = 0.5 * GAMMA * (of_g * of_g + of_d * of_d)
    return g + energy, d + energy


def _roots(middle: float, inside: float) -> list[complex]:
    root = complex(inside) ** 0.5
    return [middle + root, middle - root]


# Rows of the tables of Mescheder et al. 2018, Lemma 2.3 and §4, with f'(0) = 1/2 and f''(0) = -1/4.
TABLE: dict[str, tuple[Loss, list[complex], float]] = {
    "minimax": (_minimax, _roots(0, -0.25), 0.0),
    "non-saturating": (_non_saturating, _roots(0, -0.25), 0.0),
    "relativistic": (_relativistic, _roots(0, -0.25), 0.0),
    "wasserstein": (_wasserstein, _roots(0, -1), 0.0),
    "instance noise": (_noisy, _roots(-(SIGMA**2) / 4, SIGMA**4 / 16 - 0.25), 2 * SIGMA**2),
    "r1": (_with_penalty(_minimax), _roots(-GAMMA / 2, GAMMA**2 / 4 - 0.25), 4 * GAMMA),
    "relativistic, r1": (_with_penalty(_relativistic), _roots(-GAMMA / 2, GAMMA**2 / 4 - 0.25), 4 * GAMMA),
    "wasserstein, r1": (_with_penalty(_wasserstein), _roots(-GAMMA / 2, GAMMA**2 / 4 - 1), GAMMA),
    "consensus": (_consensus, _roots(-GAMMA / 4, -0.25), 2 * GAMMA / (1 + GAMMA**2 / 4)),
}


def _field(losses: Loss, theta: float, psi: float) -> Field:
    leaves = [mg.tensor(value, dtype="float64") for value in (theta, psi)]
    return Field([(loss, [own]) for loss, own in zip(losses(*leaves), leaves, strict=True)])


@pytest.mark.parametrize("name", TABLE)
def test_eigenvalues_of_the_dirac_gan(name: str) -> None:
    losses, expected, step = TABLE[name]
    found = _field(losses, 0.0, 0.0)
    np.testing.assert_array_equal(found.vector(), [0, 0])
    key = lambda z: (z.real, z.imag)  # noqa: E731
    np.testing.assert_allclose(
        sorted(found.eigenvalues(), key=key), sorted(map(complex, expected), key=key), atol=1e-10
    )
    assert stable_step(found.eigenvalues()) == pytest.approx(step, abs=1e-10)


@pytest.mark.parametrize("name", TABLE)
def test_simultaneous_steps_end_as_the_eigenvalues_say(name: str) -> None:
    losses, _, limit = TABLE[name]

    def distance(h: float, steps: int) -> float:
        place = np.array([0.01, 0.01])
        for _ in range(steps):
            place = place + h * _field(losses, *place).vector()
        return float(np.hypot(*place)) / math.hypot(0.01, 0.01)

    if limit:
        assert distance(0.8 * limit, 60) < 0.8
        assert distance(1.2 * limit, 60) > 1.5
    else:
        assert distance(0.4, 60) > 1.1


@pytest.mark.parametrize(("gamma", "critical"), [(1.0, [[0, -0.5], [0.5, -1.0]])])
def test_jacobian_at_a_critical_value(gamma: float, critical: list[list[float]]) -> None:
    """Where two eigenvalues meet they move with the root of an error, the Jacobian's entries do not."""
    theta, psi = (mg.tensor(0.0, dtype="float64") for _ in range(2))
    g, d = _minimax(theta, psi)
    field = Field([(g, [theta]), (d + 0.5 * gamma * psi * psi, [psi])])
    np.testing.assert_allclose(field.jacobian(), critical, atol=1e-10)


def _networks() -> tuple[Field, int]:
    stream = mg.ops.Stream(0, "field")
    dense = mg.nn.Dense
    g = mg.nn.Sequential(
        dense(2, 5, stream=stream.child("0"), dtype="float64"),
        mg.nn.Activation("tanh"),
        dense(5, 2, stream=stream.child("1"), dtype="float64"),
    )
    d = mg.nn.Sequential(
        dense(2, 6, stream=stream.child("2"), dtype="float64"),
        mg.nn.Activation("tanh"),
        dense(6, 1, stream=stream.child("3"), dtype="float64"),
    )
    x, z = (stream.child(name).normal((16, 2), dtype="float64") for name in "xz")
    loss = mg.losses.find("non_saturating")
    real, fake = d(x), d(g(z))
    own = [list(network.parameters().values()) for network in (g, d)]
    return Field([(loss.generator(real, fake), own[0]), (loss.discriminator(real, fake), own[1])]), g.count()


def test_products_are_those_of_the_dense_jacobian() -> None:
    field, _ = _networks()
    jacobian = field.jacobian()
    assert jacobian.shape == (field.size, field.size)
    random = np.random.default_rng(0)
    for vector in random.normal(size=(3, field.size)):
        np.testing.assert_allclose(field.push(vector), jacobian @ vector, atol=1e-13)
        np.testing.assert_allclose(field.pull(vector), vector @ jacobian, atol=1e-13)


def test_hessians_are_symmetric_and_minus_the_blocks() -> None:
    field, of_g = _networks()
    for hessian, block in zip(field.hessians(), (slice(of_g), slice(of_g, field.size)), strict=True):
        np.testing.assert_allclose(hessian, hessian.T, atol=1e-14)
        np.testing.assert_array_equal(hessian, -field.jacobian()[block, block])


def test_arnoldi_finds_the_same_eigenvalues() -> None:
    pytest.importorskip("scipy")
    field, _ = _networks()
    everything = field.eigenvalues()
    found = field.eigenvalues(4, which="LM")
    largest = everything[np.argsort(-np.abs(everything))][: len(found)]
    np.testing.assert_allclose(np.sort(np.abs(found)), np.sort(np.abs(largest)), rtol=1e-8)


def test_errors_have_the_numbers() -> None:
    with pytest.raises(mg.ConfigError, match="without parameters"):
        Field([])
    x = mg.tensor([1.0, 2.0])
    with pytest.raises(mg.ConfigError, match=r"shape \(2,\)"):
        Field([(x * x, [x])])
    field = Field([((x * x).sum(), [x])])
    with pytest.raises(mg.ShapeError, match=r"\(3,\) for 2 parameters"):
        field.push(np.ones(3))
    with pytest.raises(mg.ConfigError, match="finds 1 to 0"):
        field.eigenvalues(1)
    wide = mg.tensor(np.ones(6000, np.float32))
    with pytest.raises(mg.ConfigError, match="6,000 parameters"):
        Field([((wide * wide).sum(), [wide])]).jacobian()


def test_stable_steps() -> None:
    assert stable_step([-1, -4]) == 0.5
    assert stable_step([-1, 0.1]) == stable_step([1j, -1j]) == 0
    assert stable_step([0]) == math.inf
    assert stable_step([-1, 1e-17, -1e-17j]) == 2
    with pytest.raises(mg.DataError, match="1 of 2 eigenvalues are NaN"):
        stable_step([math.nan, -1])


@pytest.mark.parametrize(
    "penalties", [[], [mg.penalties.r1(0.5)], [mg.penalties.r1(0.5), mg.penalties.r2(0.5)]]
)
def test_the_field_of_a_game_is_where_simultaneous_steps_go(penalties: list[Any]) -> None:
    """One step of plain gradient descent at rate h moves all weights by h v."""
    stream = mg.ops.Stream(0, "game")
    networks = (
        mg.models.mlp_generator(2, (5,), (3,), output="tanh", dtype="float64"),
        mg.models.mlp_discriminator((3,), (6,), dtype="float64"),
    )
    sgd = [mg.optim.SGD(2.0**-12) for _ in range(2)]
    game = mg.Game(
        *networks,
        penalty=penalties,
        generator_optimizer=sgd[0],
        discriminator_optimizer=sgd[1],
        update="simultaneous",
        share_fake=True,
        ema=None,
    )
    x, z = stream.uniform((8, 3), dtype="float64"), stream.normal((8, 2), dtype="float64")

    def weights() -> np.ndarray:
        return np.concatenate([p.numpy().ravel() for n in networks for p in n.parameters().values()])

    field = game.field(x, z)
    before, expected = weights().copy(), field.vector()
    jacobian = field.jacobian()
    game.step(x, z, random=stream)
    np.testing.assert_allclose(weights() - before, 2.0**-12 * expected, atol=1e-14)
    # The Jacobian is how the field changes along what was moved.
    change = game.field(x, z).vector() - expected
    assert np.linalg.norm(change - jacobian @ (weights() - before)) < 0.1 * np.linalg.norm(change)


def test_spectra_as_a_picture(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    from minigan.pictures import spectrum_plot

    spectrum_plot(tmp_path / "spectrum.png", {"start": [1j, -1j], "end": np.array([-1 + 0.5j, math.nan])})
    assert (tmp_path / "spectrum.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(mg.DataError, match="finite"):
        spectrum_plot(tmp_path / "no.png", {"a": [math.nan]})
    with pytest.raises(mg.DataError, match="5 spectra"):
        spectrum_plot(tmp_path / "no.png", {str(k): [1] for k in range(5)})
    assert not (tmp_path / "no.png").exists()
