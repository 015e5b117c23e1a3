"""The Dirac-GAN: every row of its table against closed forms, and the verdicts against simulations."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent.parent))  # the package `benchmarks` is not installed

import minigan as mg
from benchmarks.science import dirac
from benchmarks.science.dirac import GAMES, METHODS
from minigan.analysis import stable_step

CASES = dirac.cases(1, True)
ROWS = [(name, p) for name, game in GAMES.items() if game.eigenvalues for p in game.parameters]
CRITICAL = [name for name, game in GAMES.items() if game.critical]
PLACES = np.random.default_rng(0).normal(size=(5, 2))


@pytest.mark.parametrize(("name", "parameter"), ROWS)
def test_eigenvalues_of_games(name: str, parameter: float) -> None:
    game, found = GAMES[name], dirac.field_at(name, parameter)
    assert game.eigenvalues
    np.testing.assert_array_equal(found.vector(), [0, 0])
    assert dirac.apart(found.eigenvalues(), game.eigenvalues(parameter)) < 1e-10
    assert stable_step(found.eigenvalues()) == pytest.approx(game.limit(parameter), abs=1e-10)


@pytest.mark.parametrize("name", CRITICAL)
def test_jacobian_at_a_critical_value(name: str) -> None:
    """Where two eigenvalues meet they move with the root of an error, the Jacobian's entries do not."""
    game = GAMES[name]
    assert game.critical and game.eigenvalues
    parameter, jacobian = game.critical
    np.testing.assert_allclose(dirac.field_at(name, parameter).jacobian(), jacobian, atol=1e-10)
    first, second = game.eigenvalues(parameter)
    assert first == pytest.approx(second, abs=1e-6) and np.trace(jacobian) == pytest.approx(2 * first.real)
    assert game.limit(parameter) == pytest.approx(2 / abs(first), rel=1e-6)


@pytest.mark.parametrize(("name", "h"), [(name, h) for name, method in METHODS.items() for h in method.rates])
def test_eigenvalues_of_maps(name: str, h: float) -> None:
    method, found = METHODS[name], np.linalg.eigvals(dirac.map_jacobian(name, h))
    assert dirac.apart(found, method.eigenvalues(h)) < 1e-10
    radius = np.abs(found).max()
    if h < method.limit:
        assert radius < 1 if method.converges else radius == pytest.approx(1, abs=1e-12)
    else:
        assert radius > 1.1
    assert max(map(abs, method.eigenvalues(method.limit))) == pytest.approx(1, abs=1e-7)


def test_moduli_of_optimism() -> None:
    moduli = sorted(np.abs(np.linalg.eigvals(dirac.map_jacobian("OGDA", 0.2))))
    np.testing.assert_allclose(moduli, [0.1005090] * 2 + [0.9949362] * 2, atol=5e-8)


def test_maps_where_their_eigenvalues_meet() -> None:
    np.testing.assert_allclose(dirac.map_jacobian("AltGD 1:1", 4.0), [[-3, 2], [-2, 1]], atol=1e-10)
    turn, one, none = np.array([[0, 0.5], [-0.5, 0]]), np.eye(2), np.zeros((2, 2))
    np.testing.assert_allclose(
        dirac.map_jacobian("OGDA", 1.0), np.block([[one + 2 * turn, -turn], [one, none]]), atol=1e-10
    )


@pytest.mark.parametrize(
    ("name", "parameter"), [(name, p) for name, g in GAMES.items() for p in g.parameters]
)
def test_simultaneous_steps_end_as_the_table_says(name: str, parameter: float) -> None:
    limit = GAMES[name].limit(parameter)
    if limit:
        assert dirac.simulate(name, parameter, 0.8 * limit, 60) < 0.8
        assert dirac.simulate(name, parameter, 1.2 * limit, 60) > 1.5
    else:
        assert dirac.simulate(name, parameter, 0.4, 60) > 1.1
        assert dirac.simulate(name, parameter, 0.05, 60) > 1


@pytest.mark.parametrize("name", METHODS)
def test_other_methods_end_as_the_table_says(name: str) -> None:
    method = METHODS[name]
    below = dirac.simulate(name, 0.0, 0.8 * method.limit, 40)
    assert below < 0.8 if method.converges else 0.2 < below < 5
    assert dirac.simulate(name, 0.0, 1.2 * method.limit, 40) > 1.5


@pytest.mark.parametrize("place", PLACES)
def test_continuous_time_keeps_the_distance_or_shrinks_it(place: np.ndarray) -> None:
    """<w, v> is half of d|w|²/dt: 0 for the minimax game, and at most 0 for the non-saturating one."""
    t = place[0] * place[1]
    for name, expected in (("GAN", 0.0), ("WGAN", 0.0), ("NS-GAN", -abs(t) * math.tanh(abs(t) / 2))):
        assert place @ dirac.field_at(name, 0.0, *place).vector() == pytest.approx(expected, abs=1e-14)
    np.testing.assert_allclose(
        dirac.field_at("RpGAN", 0.0, *place).vector()[1], dirac.field_at("GAN", 0.0, *place).vector()[1]
    )


@pytest.mark.parametrize("place", PLACES)
def test_consensus_is_the_exact_gradient_of_the_energy(place: np.ndarray) -> None:
    """½|v|² = ½ (θ² + ψ²) f'(ψθ)², whose gradient has (θ² + ψ²) f' f'' with the factor 1."""
    theta, psi = place
    gamma, slope = 0.7, 1 / (1 + math.exp(-psi * theta))  # of -softplus(ψθ), with minigan's sign of ψ: -σ
    curve = slope * (1 - slope)
    energy = place * slope**2 + place @ place * slope * curve * np.array([psi, theta])
    consensus, plain = (dirac.field_at(name, gamma, theta, psi).vector() for name in ("ConOpt", "GAN"))
    np.testing.assert_allclose(consensus - plain, -gamma * energy, atol=1e-12)


@pytest.mark.parametrize("place", PLACES)
def test_the_gradient_penalty_pulls_the_slope_to_one(place: np.ndarray) -> None:
    theta, psi = place
    expected = [psi, -theta - 2 * 0.5 * (abs(psi) - 1) * np.sign(psi)]
    np.testing.assert_allclose(dirac.field_at("WGAN-GP", 0.5, theta, psi).vector(), expected, atol=1e-12)


class _Point(mg.nn.Module):
    """θ for every latent, or ψ x."""

    def __init__(self, value: float, judges: bool) -> None:
        self.w, self.judges = mg.tensor([[value]], dtype="float64"), judges

    def __call__(self, x: mg.Tensor, **_: Any) -> mg.Tensor:
        return x @ self.w if self.judges else x * 0.0 + self.w


@pytest.mark.parametrize(
    ("name", "loss", "penalties"),
    [
        ("GAN", "minimax", ()),
        ("NS-GAN", "non_saturating", ()),
        ("RpGAN", "relativistic", ()),
        ("WGAN", "wasserstein", ()),
        ("R1", "minimax", (mg.penalties.r1,)),
        ("R2", "minimax", (mg.penalties.r2,)),
        ("R1+R2", "minimax", (mg.penalties.r1, mg.penalties.r2)),
        ("WGAN+R1", "wasserstein", (mg.penalties.r1,)),
    ],
)
def test_a_game_of_modules_has_the_same_field(name: str, loss: str, penalties: Any) -> None:
    gamma, zeros = 0.3, mg.tensor(np.zeros((1, 1)))
    for theta, psi in ((0.0, 0.0), (0.4, -0.7)):
        game = mg.Game(
            _Point(theta, False), _Point(psi, True), loss=loss, penalty=[p(gamma) for p in penalties]
        )
        found, expected = game.field(zeros, zeros), dirac.field_at(name, gamma, theta, psi)
        np.testing.assert_allclose(found.vector(), expected.vector(), atol=1e-15)
        np.testing.assert_allclose(found.jacobian(), expected.jacobian(), atol=1e-14)


def test_the_study_gives_a_row_for_each_case() -> None:
    rows = [case | dirac.run(case, True) for case in CASES[:5] + CASES[-1:]]
    assert all(row["error"] < 1e-10 for row in rows if "eigenvalues" in row)
    lines = dirac.table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[2].startswith("| GAN | 0 | λ = ") and "never" in lines[2]
    assert "v has no derivative" in lines[6] and lines[-1].startswith("| OGDA | h = 0.7 | μ = ")
