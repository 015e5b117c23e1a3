"""Precision, recall, density and coverage: whose neighbours the samples of two sets are."""

from typing import Any, NamedTuple

import numpy as np

from minigan.backend import Array
from minigan.errors import ConfigError
from minigan.metrics.samples import ROUNDING, as_rows, blocks, centred, squared_distances


class Neighbours(NamedTuple):
    """What `precision_recall` gives: four numbers from 0; all but the density are at most 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(real: Any, generated: Any, k: int = 5) -> Neighbours:
    """Precision, recall, density and coverage, with balls about each sample that reach its k-th nearest of its own set.

    precision: the part of the generated samples that lie in the ball of a real one; recall: the part of the real ones
    that lie in that of a generated one (Kynkäänniemi et al. 2019, eq. 2). density: in how many real balls a generated
    sample lies, divided by k; coverage: the part of the real balls in which one lies (Naeem et al. 2020, eqs. 3, 4).
    For equal distributions the density's expectation is 1, and with N samples of both the coverage's is
    1 - Π_{i=1..k} (N - i) / (2N - i), with N real ones and M generated 1 - Π_{i=1..k} (N - i) / (N + M - i).

    Args:
        real, generated: features (N, ...) and (M, ...): pixels, or those of a network. Memory is bounded by blocks.
        k: below N and M.

    Raises: `ShapeError`, `DataError` for other arrays, `ConfigError` for a k that is not from 1 to N - 1 and M - 1.

    >>> found = precision_recall([[0.0], [1.0], [2.0]], [[0.5], [0.6], [9.0]], k=1)
    >>> round(found.precision, 3), round(found.recall, 3), round(found.coverage, 3)
    (0.667, 0.667, 0.667)
    """
    x, y = as_rows("precision_recall", real, generated, least=2)
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k < min(len(x), len(y)):
        raise ConfigError(
            f"precision_recall: k={k!r} with {len(x)} and {len(y)} samples: expected 1 to the fewer - 1"
        )
    x, y = centred(x, y)
    of_real, of_generated = _radii(x, k), _radii(y, k)
    in_a_ball, has_one, total = 0, np.zeros(len(x), bool), 0
    recalled = np.zeros(len(x), bool)
    for part in blocks(len(y), len(x)):
        distances = squared_distances(y[part], x)
        inside = distances <= of_real
        in_a_ball += int(inside.any(1).sum())
        total += int(inside.sum())
        has_one |= inside.any(0)
        recalled |= (distances <= of_generated[part, None]).any(0)
    return Neighbours(in_a_ball / len(y), float(recalled.mean()), total / (k * len(y)), float(has_one.mean()))


def _radii(x: Array, k: int) -> Array:
    """The squared distance from each sample to its k-th nearest other one."""
    found = np.empty(len(x))
    for part in blocks(len(x), len(x)):
        distances = squared_distances(x[part], x)
        distances[np.arange(part.stop - part.start), np.arange(part.start, part.stop)] = np.inf  # not itself
        found[part] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    # What lies on the ball, as many samples of whole numbers do, is to be in it however its distance is rounded.
    lengths = np.sqrt((x * x).sum(1))
    return found + ROUNDING * (lengths**2 + (lengths + np.sqrt(found)) ** 2)  # type: ignore[no-any-return]
