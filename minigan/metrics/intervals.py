"""How sure a measure is: confidence intervals from random halves of the samples."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minigan.backend import Array
from minigan.errors import ConfigError, DataError
from minigan.ops.random import Stream


class Interval(NamedTuple):
    """A value, the ends of its confidence interval, and its standard error: numbers, or arrays of as many."""

    value: Any
    low: Any
    high: Any
    error: Any


def confidence_interval(
    metric: Callable[..., Any],
    *samples: Any,
    resamples: int = 50,
    level: float = 0.95,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> Interval:
    """`metric(*samples)` with an interval, value ± t · error: the error is the spread of estimates from random halves.

    Each time half of every array is drawn *without* replacement. A mean of m of n numbers varies about that of all n by
    σ² (1/m - 1/n), which for m = n/2 is σ²/n, its own variance: the spread of estimates from halves is the standard
    error of the whole one (half-samples: McCarthy 1969; as the delete-half jackknife, which is right for quantiles too:
    Shao and Wu 1989). t is Student's quantile with `resamples` - 1 degrees of freedom. The bootstrap proper, which
    draws with replacement, is wrong here: copies are each other's nearest neighbours, and make a covariance smaller.

    It says how far chance moves the value, not how far that is from the value of infinitely many samples: a bias, such
    as that of the Fréchet distance, remains.

    Args:
        metric: of as many arrays as are given, to a number or several.
        samples: arrays (N, ...), drawn from independently of each other; of at least 4 samples, else `DataError`.
        resamples: how many halves, at least 2.
        level: how often the interval should cover, between 0 and 1; `ConfigError` for others.
        seed: of the halves.
        progress: called with the halves done and those there are.

    >>> import numpy as np
    >>> found = confidence_interval(np.mean, np.tile([0.0, 1.0], 50))
    >>> found.value, bool(0.03 < found.error < 0.07)  # 0.05 by the formula
    (0.5, True)
    """
    arrays = [np.asarray(given) for given in samples]
    if not arrays or any(x.ndim < 1 or len(x) < 4 for x in arrays):
        shapes = ", ".join(str(x.shape) for x in arrays) or "nothing"
        raise DataError(f"confidence_interval of {shapes}: expected arrays of at least 4 samples")
    if isinstance(resamples, bool) or not isinstance(resamples, int | np.integer) or resamples < 2:
        raise ConfigError(f"confidence_interval: resamples={resamples!r}, expected an integer from 2")
    if not 0 < level < 1:
        raise ConfigError(f"confidence_interval: level={level!r}, expected a number between 0 and 1")
    value = np.asarray(metric(*arrays), np.float64)
    streams = [Stream(seed, f"half-samples/{place}") for place in range(len(arrays))]
    found = np.empty((resamples, *value.shape))
    for k in range(resamples):
        halves = [
            x[np.sort(stream.permutation(len(x))[: len(x) // 2])]
            for x, stream in zip(arrays, streams, strict=True)
        ]
        found[k] = metric(*halves)
        if progress:
            progress(k + 1, resamples)
    least = min(map(len, arrays))
    parts = (least // 2) / (least - least // 2)  # m / (n - m): 1 for even n
    error = found.std(0, ddof=1) * np.sqrt(parts)
    reach = _student(level, resamples - 1) * error
    return Interval(*(_plain(x) for x in (value, value - reach, value + reach, error)))


def _plain(x: Array) -> Any:
    return x if np.ndim(x) else float(x)


def _student(level: float, degrees: int) -> float:
    """How many standard errors an interval reaches.

    Exact for one and two degrees of freedom, and else Cornish and Fisher's expansion (Abramowitz and Stegun, 26.7.5).
    """
    from statistics import NormalDist  # here, because it loads more than `import minigan` needs

    if degrees == 1:
        return math.tan(math.pi * level / 2)
    if degrees == 2:
        return level * math.sqrt(2 / (1 - level * level))
    z, d = NormalDist().inv_cdf(0.5 + level / 2), degrees
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / d + second / d**2 + third / d**3
