"""The Dirac-GAN: eigenvalues by automatic differentiation beside their closed forms, and what simulations do.

Data and generator are points, 0 and θ, and the discriminator has the logits ψ x (Mescheder, Geiger and Nowozin 2018,
"Which training methods for GANs do actually converge?", Definition 2.1). With f(t) = -log(1 + e^-t), f'(0) = 1/2 and
f''(0) = -1/4. Discriminators of minigan are positive on data, those of the paper on generated samples: this ψ is minus
theirs, which leaves all eigenvalues as they are.

Two kinds of rows. For a `Game` the eigenvalues λ are those of the Jacobian of its vector field v at 0; simultaneous
steps w ← w + h v(w) converge if |1 + h λ| < 1. For a `Method` of another kind the eigenvalues μ are those of the
Jacobian of the map that one round applies to its state, which is differentiated as it stands; it converges if |μ| < 1.
"""

import cmath
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import minigan as mg
from benchmarks.science.figures import markdown
from minigan.analysis import Field, stable_step
from minigan.ops import softplus, stack
from minigan.penalties import Penalty

ABOUT = """\
The Dirac-GAN (Mescheder, Geiger and Nowozin 2018): for each method the eigenvalues at the equilibrium, by automatic
differentiation, their largest distance from the closed forms, and how far from it 100 rounds from (0.01, 0.01) end,
with 0.8 and 1.2 times the largest stable step. It takes some seconds; nothing is random."""

Losses = Callable[[mg.Tensor, mg.Tensor, float], tuple[mg.Tensor, mg.Tensor]]
Map = Callable[[mg.Tensor, float], mg.Tensor]
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
START, ROUNDS = 0.01, 100


class Game(NamedTuple):
    """A row whose eigenvalues are those of a vector field.

    Attributes:
        losses: of θ, ψ and the row's parameter: what the generator and the discriminator minimise.
        eigenvalues: of the parameter: those of v' at 0; `None` where v has no derivative there.
        limit: of the parameter: the step below which simultaneous descent converges; 0 for never.
        parameters: values to try, away from critical ones.
        critical: the parameter at which both eigenvalues meet, and the Jacobian there.
    """

    losses: Losses
    eigenvalues: Callable[[float], list[complex]] | None
    limit: Callable[[float], float]
    parameters: tuple[float, ...] = (0.0,)
    critical: tuple[float, list[list[float]]] | None = None


class Method(NamedTuple):
    """A row whose eigenvalues are those of a map, for the minimax game.

    Attributes:
        step: of the state and h: the next state. A state holds (θ, ψ) once, or now and one round before.
        eigenvalues: of h: those of the map's derivative at 0.
        limit: the h up to which the state stays bounded.
        converges: whether it also goes to 0 below.
        rates: values of h to try.
        places: how often (θ, ψ) is in the state.
    """

    step: Map
    eigenvalues: Callable[[float], list[complex]]
    limit: float
    converges: bool = True
    rates: tuple[float, ...] = (0.2, 1.0)
    places: int = 1


# What the players minimise


def _of_table(name: str, *penalties: Callable[[float], Penalty]) -> Losses:
    """A loss of minigan's table with penalties of one weight, on batches of one point."""

    def losses(theta: mg.Tensor, psi: mg.Tensor, weight: float) -> tuple[mg.Tensor, mg.Tensor]:
        real, fake = mg.tensor([[0.0]], dtype="float64"), theta.reshape((1, 1))

        def judge(x: mg.Tensor) -> mg.Tensor:
            return psi * x

        logits = judge(real), judge(fake)
        record = mg.losses.table[name]
        d = record.discriminator(*logits)
        for penalty in penalties:
            d = d + penalty(weight)(judge, real, fake, *logits, mg.ops.Stream(0, "dirac"))
        return record.generator(*logits), d

    return losses


def _noisy(theta: mg.Tensor, psi: mg.Tensor, sigma: float) -> tuple[mg.Tensor, mg.Tensor]:
    """The minimax game, all samples with noise N(0, σ²): the means over it by Gauss and Hermite's rule."""
    noise = sigma * NODES
    of_fake = (WEIGHTS * softplus(psi * (theta + noise))).sum()
    return -of_fake, (WEIGHTS * softplus(-psi * noise)).sum() + of_fake


def _consensus(theta: mg.Tensor, psi: mg.Tensor, gamma: float) -> tuple[mg.Tensor, mg.Tensor]:
    """Both players also minimise γ/2 |v|² (Mescheder, Nowozin and Geiger 2017, §4)."""
    g, d = MINIMAX(theta, psi, 0.0)
    (of_g,), (of_d,) = (mg.grad(loss, [own], create_graph=True) for loss, own in ((g, theta), (d, psi)))
    energy = 0.5 * gamma * (of_g * of_g + of_d * of_d)
    return g + energy, d + energy


MINIMAX = _of_table("minimax")


# Closed forms


def _roots(middle: complex, inside: complex) -> list[complex]:
    root = cmath.sqrt(inside)
    return [middle + root, middle - root]


def _never(parameter: float) -> float:
    return 0.0


def _of_noise(sigma: float) -> float:
    s = sigma**2
    return 2 * s if s <= 2 else 2 / (s / 4 + math.sqrt(s**2 / 16 - 0.25))


def _of_slope(slope: float, factor: float = 1.0) -> Callable[[float], float]:
    """With the penalty's weight `factor` times γ and f'(0) = slope."""

    def limit(gamma: float) -> float:
        g = factor * gamma
        return g / slope**2 if g <= 2 * slope else 2 / (g / 2 + math.sqrt(g**2 / 4 - slope**2))

    return limit


HALF, ONE = _of_slope(0.5), _of_slope(1.0)
TURN, CRITICAL = _roots(0, -0.25), [[0.0, 0.5], [-0.5, -1.0]]


def _damped(slope: float, factor: float = 1.0) -> Callable[[float], list[complex]]:
    return lambda gamma: _roots(-factor * gamma / 2, (factor * gamma) ** 2 / 4 - slope**2)


GAMMAS = (0.3, 1.5)
R1, R2 = mg.penalties.r1, mg.penalties.r2

# Mescheder et al. 2018, §3 and §4, and Huang et al. 2024, "The GAN is dead; long live the GAN!", §2.
GAMES: dict[str, Game] = {
    "GAN": Game(MINIMAX, lambda _: TURN, _never),
    "NS-GAN": Game(_of_table("non_saturating"), lambda _: TURN, _never),
    "RpGAN": Game(_of_table("relativistic"), lambda _: TURN, _never),
    "WGAN": Game(_of_table("wasserstein"), lambda _: _roots(0, -1), _never),
    "WGAN-GP": Game(_of_table("wasserstein", mg.penalties.wgan_gp), None, _never, (0.5,)),
    "instance noise": Game(
        _noisy,
        lambda s: _roots(-(s**2) / 4, s**4 / 16 - 0.25),
        _of_noise,
        (0.7, 1.6),
        (math.sqrt(2), CRITICAL),
    ),
    "R1": Game(_of_table("minimax", R1), _damped(0.5), HALF, GAMMAS, (1.0, CRITICAL)),
    "R2": Game(_of_table("minimax", R2), _damped(0.5), HALF, GAMMAS, (1.0, CRITICAL)),
    "R1+R2": Game(_of_table("minimax", R1, R2), _damped(0.5, 2), _of_slope(0.5, 2), GAMMAS, (0.5, CRITICAL)),
    "RpGAN+R1": Game(_of_table("relativistic", R1), _damped(0.5), HALF, GAMMAS, (1.0, CRITICAL)),
    "RpGAN+R1+R2": Game(
        _of_table("relativistic", R1, R2), _damped(0.5, 2), _of_slope(0.5, 2), GAMMAS, (0.5, CRITICAL)
    ),
    "WGAN+R1": Game(
        _of_table("wasserstein", R1), _damped(1.0), ONE, (0.3, 3.0), (2.0, [[0.0, 1.0], [-1.0, -2.0]])
    ),
    "ConOpt": Game(
        _consensus, lambda g: _roots(-g / 4, -0.25), lambda g: 2 * g / (1 + g**2 / 4), (0.3, 1.0, 3.0)
    ),
}


def field(losses: Losses, w: mg.Tensor, parameter: float = 0.0) -> mg.Tensor:
    """v(w), (2,), at w = (θ, ψ), as a differentiable function."""
    theta, psi = w[0], w[1]
    g, d = losses(theta, psi, parameter)
    slopes = [mg.grad(loss, [own], create_graph=True)[0] for loss, own in ((g, theta), (d, psi))]
    return -stack(slopes)


def _alternating(of_g: int, of_d: int) -> Method:
    """So many steps of the discriminator, then of the generator; each at the newest place of the other."""

    def step(w: mg.Tensor, h: float) -> mg.Tensor:
        for player, times in ((1, of_d), (0, of_g)):
            for _ in range(times):
                w = w + h * np.eye(2)[player] * field(MINIMAX, w)
        return w

    def eigenvalues(h: float) -> list[complex]:
        middle = 1 - of_g * of_d * h**2 / 8  # 1 - α²/2, α = sqrt(n_g n_d) h f'(0)
        return _roots(middle, middle**2 - 1)

    limit = 4 / math.sqrt(of_g * of_d)
    return Method(step, eigenvalues, limit, converges=False, rates=(0.2, 0.7 * limit, 1.1 * limit))


def _extragradient(w: mg.Tensor, h: float) -> mg.Tensor:
    """w ← w + h v(w + h v(w)) (Korpelevich 1976)."""
    return w + h * field(MINIMAX, w + h * field(MINIMAX, w))


def _optimistic(state: mg.Tensor, h: float) -> mg.Tensor:
    """w ← w + 2 h v(w) - h v(the w before) (Daskalakis et al. 2018, "Training GANs with optimism", eq. 6)."""
    now, before = state[:2], state[2:]
    moved = now + 2 * h * field(MINIMAX, now) - h * field(MINIMAX, before)
    return mg.ops.concatenate([moved, now])


def _of_optimism(h: float) -> list[complex]:
    """μ² - (1 + 2 h λ) μ + h λ = 0 for λ = ±i/2."""
    return [mu for x in (0.5j * h, -0.5j * h) for mu in _roots((1 + 2 * x) / 2, ((1 + 2 * x) / 2) ** 2 - x)]


METHODS: dict[str, Method] = {
    "AltGD 1:1": _alternating(1, 1),
    "AltGD 1:5": _alternating(1, 5),
    "AltGD 2:3": _alternating(2, 3),
    "extragradient": Method(_extragradient, lambda h: _roots(1 - h**2 / 4, -(h**2) / 4), 2.0),
    # |μ| = 1 at h |λ| = 1 / sqrt(3); at h = 1 eigenvalues meet.
    "OGDA": Method(_optimistic, _of_optimism, 2 / math.sqrt(3), rates=(0.2, 0.7), places=2),
}


# What is measured


def field_at(name: str, parameter: float, theta: float = 0.0, psi: float = 0.0) -> Field:
    """The vector field of a game at a place."""
    of_g, of_d = (mg.tensor(value, dtype="float64") for value in (theta, psi))
    g, d = GAMES[name].losses(of_g, of_d, parameter)
    return Field([(g, [of_g]), (d, [of_d])])


def map_jacobian(name: str, h: float) -> mg.backend.Array:
    """The derivative at 0 of the map of one round, column after column."""
    method = METHODS[name]
    basis = np.eye(2 * method.places)
    at = mg.tensor(np.zeros(len(basis)))
    return np.stack([mg.jvp(lambda w: method.step(w, h), at, mg.tensor(e))[1].numpy() for e in basis], 1)


def apart(found: Any, expected: Sequence[complex]) -> float:
    """The largest distance of eigenvalues, each from its partner in the other set."""

    def ordered(values: Sequence[complex]) -> Any:
        z = np.asarray(values, np.complex128)
        return z[np.lexsort((z.imag.round(6), z.real.round(6)))]

    return float(np.abs(ordered(found) - ordered(expected)).max())


@functools.cache
def simulate(name: str, parameter: float, h: float, rounds: int = ROUNDS) -> float:
    """How far from 0 the players are after so many rounds from (0.01, 0.01), in units of where they began."""
    places = METHODS[name].places if name in METHODS else 1
    w = mg.tensor(np.full(2 * places, START))
    for _ in range(rounds):
        if name in METHODS:
            w = METHODS[name].step(w, h).detach()
        else:
            w = (w + h * field(GAMES[name].losses, w, parameter)).detach()
    return float(np.hypot(*w.numpy()[:2]) / math.hypot(START, START))


def cases(seeds: int, quick: bool) -> list[dict[str, Any]]:
    """A row for each game with each of its parameters, and for each method with each of its rates."""
    games = [{"row": name, "parameter": p} for name, game in GAMES.items() for p in game.parameters]
    return games + [{"row": name, "h": h} for name, method in METHODS.items() for h in method.rates]


def run(case: dict[str, Any], quick: bool) -> dict[str, Any]:
    """Eigenvalues as pairs of real and imaginary part, their error, steps, and distances after the rounds."""
    name, rounds = case["row"], 20 if quick else ROUNDS
    if name in METHODS:
        method = METHODS[name]
        found = np.linalg.eigvals(map_jacobian(name, case["h"]))
        return {
            "eigenvalues": [[z.real, z.imag] for z in found.tolist()],
            "error": apart(found, method.eigenvalues(case["h"])),
            "radius": float(np.abs(found).max()),
            "limit": method.limit,
            "below": simulate(name, 0.0, 0.8 * method.limit, rounds),
            "above": simulate(name, 0.0, 1.2 * method.limit, rounds),
        }
    game, parameter = GAMES[name], case["parameter"]
    limit = game.limit(parameter)
    measured: dict[str, Any] = {"limit": limit}
    if game.eigenvalues is not None:
        eigenvalues = field_at(name, parameter).eigenvalues()
        measured |= {
            "eigenvalues": [[z.real, z.imag] for z in eigenvalues.tolist()],
            "error": apart(eigenvalues, game.eigenvalues(parameter)),
            "stable_step": stable_step(eigenvalues),
        }
    for key, h in (("below", 0.8 * limit), ("above", 1.2 * limit)) if limit else (("above", 0.4),):
        measured[key] = simulate(name, parameter, h, rounds)
    return measured


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each row; the distances are those of `simulate`, at 0.4 where no step is stable."""
    lines = [["method", "parameter", "eigenvalues", "error", "stable below", "distance below", "above"]]
    for row in rows:
        pairs = [complex(*pair) for pair in row.get("eigenvalues", [])]
        lines.append(
            [
                row["row"],
                f"h = {row['h']:.4g}" if "h" in row else f"{row['parameter']:g}",
                ("μ = " if "h" in row else "λ = ") + ", ".join(f"{z.real:.7g}{z.imag:+.7g}i" for z in pairs)
                if pairs
                else "v has no derivative",
                f"{row['error']:.0e}" if pairs else "",
                f"h = {row['limit']:.7g}" if row["limit"] else "never",
                f"{row['below']:.3g}" if "below" in row else "",
                f"{row['above']:.3g}",
            ]
        )
    return markdown(lines)
