"""How much of a mixture of Gaussians a generator has found."""

import math
from typing import Any, NamedTuple

import numpy as np

from minigan.backend import Array
from minigan.data.mixtures import Mixture
from minigan.errors import ConfigError
from minigan.metrics.samples import as_rows, blocks, centred, squared_distances


class ModeCoverage(NamedTuple):
    """What `mode_coverage` gives.

    Attributes:
        modes: how many have at least one sample of high quality.
        high_quality: the part of the samples that lie within so many standard deviations of the nearest mean.
        reverse_kl: Σ p log(p / w) in nats, of the parts p of these samples by mode and the mixture's weights w; NaN if
            there are none.
        counts: of these samples by mode, int64 (K,).
    """

    modes: int
    high_quality: float
    reverse_kl: float
    counts: Array


def mode_coverage(points: Any, mixture: Mixture, sigmas: float = 3.0) -> ModeCoverage:
    """Modes captured, the share of high quality, and the reverse KL divergence (Srivastava and others 2017, §5).

    Of the mixture's own points in the plane 1 - e^(-9/2) = 98.9 % are of high quality, and with n of them the
    divergence is about (K - 1) / 2n.

    Args:
        points: (N, P), as the mixture's.
        sigmas: how far from a mean a point of high quality may lie, in standard deviations.

    Raises: `ShapeError`, `DTypeError`, `DataError` for other points, `ConfigError` for other sigmas.

    >>> import minigan as mg
    >>> found = mg.metrics.mode_coverage([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [1.01, 0.01]], mg.data.ring())
    >>> found.modes, found.high_quality, found.counts.tolist()
    (2, 0.75, [2, 0, 1, 0, 0, 0, 0, 0])
    """
    all_counts, counts = nearest_modes("mode_coverage", points, mixture, sigmas)
    total = int(counts.sum())
    there = counts > 0
    parts = counts[there] / max(total, 1)
    with np.errstate(divide="ignore"):  # a mode that the mixture does not have
        divergence = float((parts * np.log(parts / mixture.weights[there])).sum()) if total else float("nan")
    return ModeCoverage(int(there.sum()), total / int(all_counts.sum()), divergence, counts)


def nearest_modes(name: str, points: Any, mixture: Mixture, sigmas: float) -> tuple[Array, Array]:
    """How many points are nearest to each mean, and how many of these are of high quality: int64 (K,) both."""
    if not 0 < sigmas < math.inf:
        raise ConfigError(f"{name}: sigmas={sigmas!r}, expected a finite number above 0")
    means, x = centred(*as_rows(name, mixture.means, points))
    counts = np.zeros((2, len(means)), np.int64)
    for part in blocks(len(x), len(means)):
        distances = squared_distances(x[part], means)
        nearest = distances.argmin(1)
        good = distances[np.arange(len(nearest)), nearest] < (sigmas * mixture.std) ** 2
        counts += [np.bincount(chosen, minlength=len(means)) for chosen in (nearest, nearest[good])]
    return counts[0], counts[1]
