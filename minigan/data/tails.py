"""Long tails: classes of which each is rarer than the one before by the same factor (Cui et al. 2019, §5.1).

Cui, Jia, Lin, Song and Belongie 2019, "Class-balanced loss based on effective number of samples".
"""

import math
from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.data.sampler import as_labels
from minigan.errors import ConfigError
from minigan.ops.random import Stream


def long_tail(classes: int, rho: float) -> Array:
    """Shares of classes, float64 (classes,) of sum 1: in proportion to rho^(-c / (classes - 1)).

    rho: how many times as frequent as the last class the first one is, from 1. `ConfigError` for others.

    >>> import minigan as mg
    >>> mg.data.long_tail(3, 100.0).round(4).tolist()
    [0.9009, 0.0901, 0.009]
    """
    if isinstance(classes, bool) or not isinstance(classes, (int, np.integer)) or classes < 1:
        raise ConfigError(f"long_tail: classes is {classes!r}, expected an integer from 1")
    if not 1 <= rho < math.inf:
        raise ConfigError(f"long_tail: rho is {rho}, expected a finite number from 1")
    shares = float(rho) ** -(np.arange(classes) / max(classes - 1, 1))
    return shares / shares.sum()  # type: ignore[no-any-return]


def long_tailed(labels: Any, rho: float, stream: Stream) -> Array:
    """The places of a subset with a long tail, int64, rising: the c-th of K classes keeps n · rho^(-c / (K - 1)).

    n is the largest number for which every class has enough: what the first class has, unless a later one is so small
    that it is the bound. Rounded, and at least 1. Which samples are kept is drawn class by class.

    Args:
        labels: integers (N,) from 0; classes are those that are there, by rising label.
        rho: as for `long_tail`.
        stream: where the choice comes from.

    Raises: `DataError`, `ConfigError` for other arguments.

    >>> import minigan as mg
    >>> from minigan.ops.random import Stream
    >>> labels = np.repeat([0, 1, 2], 100)
    >>> kept = mg.data.long_tailed(labels, 100.0, Stream(0, "tail"))
    >>> np.bincount(labels[kept]).tolist()
    [100, 10, 1]
    """
    given = as_labels(labels, len(np.asarray(labels).reshape(-1)))
    _, kinds, sizes = np.unique(given, return_inverse=True, return_counts=True)
    shares = long_tail(len(sizes), rho)
    wanted = (sizes / shares).min() * shares
    kept = [
        np.flatnonzero(kinds == c)[stream.at(c).permutation(size)[: max(1, round(wanted[c]))]]
        for c, size in enumerate(sizes)
    ]
    return np.sort(np.concatenate(kept))
