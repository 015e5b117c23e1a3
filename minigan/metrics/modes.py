"""How much of a mixture of Gaussians a generator has found."""

import math
from typing import Any, NamedTuple

import numpy as np

from minigan.backend import Array
from minigan.data.mixtures import Mixture
from minigan.data.sampler import as_labels
from minigan.errors import ConfigError, DataError
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
    high_quality = int(counts.sum()) / int(all_counts.sum())
    return ModeCoverage(int((counts > 0).sum()), high_quality, _reverse_kl(counts, mixture.weights), counts)


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


class LabelCoverage(NamedTuple):
    """What `label_coverage` gives.

    Attributes:
        modes: how many classes are there at all.
        reverse_kl: Σ p log(p / w) in nats, of the shares p of the labels and the weights w.
        counts: of the labels, int64 (K,).
    """

    modes: int
    reverse_kl: float
    counts: Array


def label_coverage(labels: Any, weights: Any) -> LabelCoverage:
    """How many of K classes are among labels (N,), and how far their shares are from those that they should have.

    The measures of Stacked MNIST, where a classifier gives the labels of 26,000 samples (Lin et al. 2018, "PacGAN",
    §4.2). Labels of the weights' own distribution have a divergence of about (K - 1) / 2n.

    Args:
        labels: integers from 0 to below K, at least one, else `DataError`.
        weights: K, for equal shares, or an array (K,) of numbers from 0, which are divided by their sum; else
            `ConfigError`.

    >>> found = label_coverage([0, 0, 2, 2], 4)
    >>> found.modes, round(found.reverse_kl, 6), found.counts.tolist()  # log 2
    (2, 0.693147, [2, 0, 2, 0])
    """
    given = np.asarray(weights)
    if given.ndim == 0 and given.dtype.kind in "iu" and given >= 1:
        given = np.ones(int(given))
    if (
        given.ndim != 1
        or given.dtype.kind not in "fiu"
        or not (given >= 0).all()
        or not 0 < given.sum() < math.inf
    ):
        raise ConfigError(
            f"label_coverage: weights {weights!r}: expected a number of classes, or numbers from 0, not all 0"
        )
    known = as_labels(labels, np.size(labels), len(given))
    if not len(known):
        raise DataError("label_coverage: no labels")
    counts = np.bincount(known, minlength=len(given))
    return LabelCoverage(int((counts > 0).sum()), _reverse_kl(counts, given / given.sum()), counts)


def _reverse_kl(counts: Array, weights: Array) -> float:
    """Σ p log(p / w) of the parts p of all that are counted; NaN if nothing is."""
    there, total = counts > 0, int(counts.sum())
    parts = counts[there] / max(total, 1)
    with np.errstate(divide="ignore"):  # a mode that the weights do not have
        return float((parts * np.log(parts / weights[there])).sum()) if total else float("nan")
