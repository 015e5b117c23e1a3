"""Mixtures of round Gaussians in the plane: data whose exact density is known, to measure generators against."""

import math
from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.errors import ConfigError, DataError
from minigan.ops.random import Stream

CHUNK = 1024  # points whose distances to all means are held at once
MOST_POINTS = 1 << 28


class Mixture:
    """A mixture of K Gaussians of one standard deviation in all directions.

    The density of x in R^P is Σ_k w_k N(x; m_k, σ² I).

    Args:
        means: m, (K, P), floats.
        std: σ, above 0.
        weights: w, (K,), not negative; they are divided by their sum. By default all are the same.

    Raises `ConfigError` for other numbers.

    >>> import numpy as np, minigan as mg
    >>> mixture = mg.data.Mixture([[0.0, 0.0], [3.0, 4.0]], std=0.5, weights=[3, 1])
    >>> mixture.means.shape, mixture.std, mixture.weights.tolist()
    ((2, 2), 0.5, [0.75, 0.25])
    """

    def __init__(self, means: Any, std: float, weights: Any = None) -> None:
        self.means, self.std = np.array(means, np.float64), float(std)
        if self.means.ndim != 2 or 0 in self.means.shape or not np.isfinite(self.means).all():
            raise ConfigError(f"means of shape {self.means.shape}: expected finite numbers of shape (K, P)")
        if not 0 < self.std < math.inf:
            raise ConfigError(f"std is {std}: expected a finite number above 0")
        given = np.ones(len(self.means)) if weights is None else np.array(weights, np.float64)
        if given.shape != self.means.shape[:1] or not (given >= 0).all() or not 0 < given.sum() < math.inf:
            raise ConfigError(f"weights {weights}: expected {len(self.means)} numbers from 0, not all 0")
        self.weights: Array = given / given.sum()

    def sample(self, count: int, stream: Stream) -> tuple[Array, Array]:
        """Points, float32 (count, P), and the numbers of their Gaussians, int64 (count,).

        Both are a function of the stream and of a point's place: the first of many are those of few. `ConfigError` for
        a count below 1 or above 2**28.

        >>> import minigan as mg
        >>> from minigan.ops.random import Stream
        >>> points, modes = mg.data.ring().sample(1000, Stream(0, "ring"))
        >>> points.shape, np.bincount(modes).tolist()
        ((1000, 2), [...])
        """
        if not 1 <= count <= MOST_POINTS:
            raise ConfigError(f"{count} points: expected 1 to {MOST_POINTS}")
        there = stream.at(stream.step)
        chances = there.uniform((count,), dtype=np.float64).numpy()
        ends = np.cumsum(self.weights)
        modes = np.searchsorted(ends, chances * ends[-1], side="right")
        noise = there.normal((count, self.means.shape[1]), std=self.std, dtype=np.float64).numpy()
        return (self.means[modes] + noise).astype(np.float32), modes

    def log_density(self, points: Any) -> Array:
        """The natural logarithm of the density at each point, float64 (N,), exact but for rounding.

        log Σ_k exp(log w_k - |x - m_k|² / 2σ²) - P log(σ √2π), summed without underflow. `DataError` unless the points
        are real numbers of shape (N, P).

        >>> import minigan as mg
        >>> mg.data.Mixture([[0.0]], std=1.0).log_density([[0.0], [1.0]]).round(4)
        array([-0.9189, -1.4189])
        """
        x = np.asarray(points)
        if x.dtype.kind not in "fiu" or x.ndim != 2 or x.shape[1] != self.means.shape[1]:
            raise DataError(
                f"points of {x.dtype}, {x.shape}: expected real numbers, (N, {self.means.shape[1]})"
            )
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            start = np.log(self.weights) - self.means.shape[1] * math.log(self.std * math.sqrt(2 * math.pi))
            return np.concatenate(
                [self._chunk(x[i : i + CHUNK], start) for i in range(0, max(len(x), 1), CHUNK)]
            )

    def _chunk(self, x: Array, start: Array) -> Array:
        apart = (x.astype(np.float64)[:, None] - self.means) / self.std
        terms = start - np.einsum("nkp,nkp->nk", apart, apart) / 2
        top = terms.max(1, keepdims=True)
        top = np.where(np.isfinite(top), top, 0)  # infinitely far from all means, or NaN
        return (top + np.log(np.exp(terms - top).sum(1, keepdims=True)))[:, 0]  # type: ignore[no-any-return]


def ring(modes: int = 8, radius: float = 1.0, std: float = 0.01, weights: Any = None) -> Mixture:
    """Gaussians evenly on a circle around 0, in the plane; the first lies at (radius, 0).

    weights: as for `Mixture`; `minigan.data.long_tail(modes, rho)` gives those of a long tail.

    The defaults are those of Lin, Khetan, Fanti and Oh 2018, "PacGAN", section 4.1, and of Srivastava and others 2017,
    "VEEGAN". `ConfigError` for no modes.

    >>> import minigan as mg
    >>> mg.data.ring(modes=4).means.round(6).tolist()
    [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [-0.0, -1.0]]
    """
    angles = np.arange(modes) * (2 * math.pi / max(modes, 1))
    return Mixture(radius * np.stack([np.cos(angles), np.sin(angles)], 1), std, weights)


def grid(side: int = 5, spacing: float = 2.0, std: float = 0.05, weights: Any = None) -> Mixture:
    """side x side Gaussians on a square grid around 0; its rows, of rising x, one after another by rising y.

    weights: side² numbers, as for `Mixture`.

    The defaults, 25 modes at {-4, -2, 0, 2, 4}², are those of the sources of `ring`. `ConfigError` for side below 1.

    >>> import minigan as mg
    >>> mg.data.grid(side=2).means.tolist()
    [[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]
    """
    line = (np.arange(side) - (side - 1) / 2) * spacing
    x, y = np.meshgrid(line, line)
    return Mixture(np.stack([x.ravel(), y.ravel()], 1), std, weights)


def swiss_roll(std: float = 0.02) -> Mixture:
    """A spiral of one and a half turns with normal noise: r = t / 4.5π at the angle t, for t from 1.5π to 4.5π.

    The plane of Marsland's swiss roll as scikit-learn's `make_swiss_roll` draws it, scaled to the outer radius 1. It
    is a mixture of 512 Gaussians at the midpoints of equal steps of t, so that its density is exact; with the default
    noise they lie at most 0.92 σ apart, and the spiral has no visible beads.

    >>> import minigan as mg
    >>> roll = mg.data.swiss_roll()
    >>> roll.means.shape, roll.std
    ((512, 2), 0.02)
    """
    t = math.pi * (1.5 + 3 * (np.arange(512) + 0.5) / 512)
    return Mixture(np.stack([t * np.cos(t), t * np.sin(t)], 1) / (4.5 * math.pi), std)
