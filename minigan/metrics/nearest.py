"""What samples are near: a test of two samples by their neighbours, and a check for copies of the training data."""

import math
from typing import Any, NamedTuple

import numpy as np

from minigan.backend import Array
from minigan.errors import ConfigError, DataError
from minigan.metrics.samples import as_rows, blocks, squared_distances
from minigan.ops.random import Stream


class TwoSampleTest(NamedTuple):
    """What `two_sample_test` gives.

    Attributes:
        accuracy: the share of held-out samples whose set the classifier finds: about 0.5 for equal distributions.
        p_value: how probable an accuracy at least as high would be then.
        of_real, of_generated: the shares among those of x and of y.
    """

    accuracy: float
    p_value: float
    of_real: float
    of_generated: float


def two_sample_test(x: Any, y: Any, k: int | None = None, seed: int = 0) -> TwoSampleTest:
    """Whether a classifier by k nearest neighbours can tell samples x from y (Lopez-Paz and Oquab 2017, C2ST-KNN).

    A random half of each set has its name known, and the majority of the k nearest of these names each of the other
    half. The p-value is exact: as many of either set are held out, so if the distributions are equal, every choice of
    which half of them is x is as probable, and how many of those named x are right is hypergeometric (Fisher's exact
    test, one-sided). The paper has N(1/2, 1/4m) for the accuracy of m independent names, to which this is near.

    It does not see everything: samples in the middle of the data, such as means, are the nearest to real ones too, and
    all are then named y. `of_real` and `of_generated` far from each other show that.

    Args:
        x, y: (N, ...) and (M, ...), at least 4 of each; of more of one, the first min(N, M) are taken.
        k: by default the paper's ⌊√n⌋ of the n samples whose name is known.
        seed: of the halves.

    Raises: `ShapeError`, `DTypeError`, `DataError` for other arrays, `ConfigError` for a k not from 1 to n.

    >>> import numpy as np
    >>> found = two_sample_test(np.zeros((8, 2)), np.ones((8, 2)))
    >>> found.accuracy, round(found.p_value, 6)  # 1 of the 70 choices of 4 of 8
    (1.0, 0.014286)
    """
    a, b = as_rows("two_sample_test", x, y, least=4)
    count = min(len(a), len(b))
    known = count // 2
    orders = [Stream(seed, f"two samples/{which}").permutation(count) for which in ("x", "y")]
    rows = [z[order] for z, order in zip((a, b), orders, strict=True)]
    near = math.isqrt(2 * known) if k is None else k
    if isinstance(near, bool) or not isinstance(near, int | np.integer) or not 1 <= near <= 2 * known:
        raise ConfigError(f"two_sample_test: k={k!r}, expected 1 to the {2 * known} samples of known name")
    places, _ = nearest(
        np.concatenate([z[known:] for z in rows]), np.concatenate([z[:known] for z in rows]), near
    )
    named_x = 2 * (places < known).sum(1) > near
    held = count - known
    right, named = int(named_x[:held].sum()), int(named_x.sum())
    of_y = held - (named - right)
    return TwoSampleTest(
        (right + of_y) / (2 * held), _at_least(right, named, held), right / held, of_y / held
    )


def _at_least(right: int, named: int, held: int) -> float:
    """P(H >= right), H the number of x among `named` of `held` x and as many y, drawn at random."""

    def log_choose(n: int, r: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(r + 1) - math.lgamma(n - r + 1)

    total = log_choose(2 * held, named)
    terms = (
        log_choose(held, h) + log_choose(held, named - h) - total
        for h in range(max(right, named - held), min(named, held) + 1)
    )
    return min(1.0, math.fsum(map(math.exp, terms)))


class Memorisation(NamedTuple):
    """What `memorisation` gives.

    Attributes:
        indices: of the k nearest training samples of each sample, the nearest first, int64 (N, k).
        distances: to them, float64 (N, k).
        ratio: median(sample to nearest training) / median(training to nearest other training).
    """

    indices: Array
    distances: Array
    ratio: float


CENTRED = 1000  # of the samples that are looked through, whose median all is centred on


def memorisation(samples: Any, training: Any, k: int = 5, queries: int = 2000, seed: int = 0) -> Memorisation:
    """The nearest training samples of each sample, and whether they are nearer than they should be.

    Samples of the data's own distribution are as far from the nearest training sample as these are from one another: a
    ratio of about 1. Copies with little noise have far less. So do samples nearer to the middle of things than data is,
    such as means of a class, whose ratio says nothing else: look at the neighbours.

    Args:
        samples, training: (N, ...) and (M, ...), M from 2, of one kind and unit. Memory is bounded by blocks.
        k: from 1 to M - 1, else `ConfigError`.
        queries: of how many training samples, drawn at random, the distance to the nearest other is found.
        seed: of that draw.

    Raises: `ShapeError`, `DTypeError`, `DataError` for other arrays.

    >>> import numpy as np
    >>> found = memorisation([[0.1], [2.9]], np.arange(4.0)[:, None], k=2)
    >>> found.indices.tolist(), round(found.ratio, 6)
    ([[0, 1], [3, 2]], 0.1)
    """
    given, known = np.asarray(samples), np.asarray(training)
    as_rows("memorisation", given[:1], known[:2])
    if len(known) < 2:
        raise DataError(f"memorisation: {len(known)} training samples, expected at least 2")
    for name, number, most in (("k", k, len(known) - 1), ("queries", queries, 1 << 62)):
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or not 1 <= number <= most:
            raise ConfigError(f"memorisation: {name}={number!r} with {len(known)} training samples")
    chosen = np.sort(Stream(seed, "memorisation").permutation(len(known))[:queries])
    indices, distances = nearest(given, known, k)
    _, among = nearest(known[chosen], known, 1, itself=chosen)
    usual = float(np.median(among))
    if usual == 0:
        raise DataError("memorisation: half of the training samples or more are there twice")
    return Memorisation(indices, distances, float(np.median(distances[:, 0])) / usual)


def nearest(x: Array, y: Array, k: int, itself: Array | None = None) -> tuple[Array, Array]:
    """Indices, int64 (N, k), and distances, float64 (N, k), of the k rows of y (M, ...) nearest to each x (N, ...).

    itself: where each x stands in y, (N,), which is then no neighbour of it; by default none does.
    """
    (rows,) = as_rows("nearest", x)
    (some,) = as_rows("nearest", y[:: max(1, len(y) // CENTRED)])
    middle = np.median(some, axis=0)  # not of x, of which a few may be far from all of y
    rows -= middle
    places, found = np.zeros((len(rows), k), np.int64), np.full((len(rows), k), np.inf)
    for chunk in blocks(len(y), rows.shape[1]):
        (others,) = as_rows("nearest", y[chunk])
        others -= middle
        for part in blocks(len(rows), len(others)):
            distances = squared_distances(rows[part], others)
            if itself is not None:
                own = itself[part] - chunk.start
                here = np.flatnonzero((own >= 0) & (own < len(others)))
                distances[here, own[here]] = np.inf
            few = min(k, len(others))
            new = np.argpartition(distances, few - 1, axis=1)[:, :few]
            both = np.concatenate([found[part], np.take_along_axis(distances, new, 1)], 1)
            where = np.concatenate([places[part], new + chunk.start], 1)
            best = np.argsort(both, axis=1, kind="stable")[:, :k]
            found[part] = np.take_along_axis(both, best, 1)
            places[part] = np.take_along_axis(where, best, 1)
    return places, np.sqrt(found)
