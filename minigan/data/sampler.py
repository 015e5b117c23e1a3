"""From a user's images or points to batches: what is accepted, and which samples stand in the batch of a step."""

from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.errors import ConfigError, DataError
from minigan.ops.random import Stream

BATCH_BYTES = (
    1 << 31
)  # of a batch as float32: more is taken for a mistake, and refused before it is allocated
EPOCHS = 1024  # of the data set within one batch, for the same reason: each one is an order to be drawn
SAMPLINGS = ("shuffled", "balanced", "weighted")


def as_images(images: Any, shape: tuple[int, ...] | None = None) -> Array:
    """`images` as (N, H, W, C): bytes stay bytes (uint8, 0 to 255), floats become float32 in [0, 1].

    Args:
        images: (N, H, W) or (N, H, W, C), uint8, or floats in [0, 1].
        shape: a network's (H, W, C), or (H * W * C,), that the images have to fit.

    Raises `DataError`, with the numbers, for anything else: other dtypes and shapes, no images, NaN, infinities,
    values outside [0, 1].

    >>> import numpy as np, minigan as mg
    >>> mg.data.as_images(np.zeros((10, 28, 28), np.uint8)).shape
    (10, 28, 28, 1)
    """
    array = np.asarray(images)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"images of dtype {array.dtype}: expected uint8 (0 to 255) or floats in [0, 1]")
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise DataError(f"images of shape {array.shape}: expected (N, H, W) or (N, H, W, C), none of them 0")
    if array.ndim == 3:
        array = array[..., None]
    if shape is not None and array.shape[1:] != shape and shape != (array[0].size,):
        first = np.moveaxis(array, 1, -1).shape[1:] == shape
        hint = ": channels come last, use np.moveaxis(images, 1, -1)" if first else ""
        raise DataError(f"images of shape {array.shape[1:]} each, but the networks have shape {shape}{hint}")
    if array.dtype == np.uint8:
        return array
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise DataError(f"images with {bad} NaN or infinite values of {array.size}")
    low, high = array.min(), array.max()
    if low < 0 or high > 1:
        hint = "divide by 255, or pass uint8" if low >= 0 else "scale them, such as (x + 1) / 2 for [-1, 1]"
        digits = 4 if min(float(f"{low:.4g}"), 1 - float(f"{high:.4g}")) < 0 else 9
        raise DataError(
            f"images with values from {low:.{digits}g} to {high:.{digits}g}: expected [0, 1]; {hint}"
        )
    return array.astype(np.float32, copy=False)


def as_points(points: Any, shape: tuple[int, ...] | None = None) -> Array:
    """`points` as float32 (N, P): vectors of any finite numbers, which are left as they are.

    Args:
        points: (N, P), floats.
        shape: a network's (P,), that the points have to fit.

    Raises `DataError`, with the numbers, for anything else: other dtypes and shapes, no points, NaN, and what is
    infinite in float32.

    >>> import minigan as mg
    >>> mg.data.as_points([[0.5, -3.0]]).shape
    (1, 2)
    """
    array = np.asarray(points)
    if array.ndim != 2 or 0 in array.shape or (shape is not None and array.shape[1:] != shape):
        wanted = "(N, P), none of them 0" if shape is None else f"(N, {', '.join(map(str, shape))})"
        raise DataError(f"points of shape {array.shape}: expected {wanted}")
    if array.dtype.kind != "f":
        raise DataError(f"points of dtype {array.dtype}: expected floats; images have the shape (N, H, W)")
    with np.errstate(over="ignore"):
        result = array.astype(np.float32, copy=False)
    bad = result.size - int(np.count_nonzero(np.isfinite(result)))
    if bad:
        raise DataError(f"points with {bad} NaN or infinite values of {result.size}")
    return result


def as_labels(labels: Any, count: int, classes: int = 1 << 31) -> Array:
    """`labels` as int64 (count,): integers (count,) or (count, 1) from 0 to below `classes`, else `DataError`.

    >>> import numpy as np
    >>> from minigan.data.sampler import as_labels
    >>> as_labels(np.array([[3], [0]], np.uint8), 2)
    array([3, 0])
    """
    array = np.asarray(labels)
    if array.dtype.kind not in "iu" or array.shape not in ((count,), (count, 1)):
        raise DataError(
            f"labels of {array.dtype}, {array.shape}: expected integers, ({count},), as many as samples"
        )
    wrong = np.flatnonzero((array < 0) | (array >= classes))
    if len(wrong):
        place = int(wrong[0])
        raise DataError(f"label {array.flat[place]} of sample {place}: expected 0 to {classes - 1}")
    return array.reshape(count).astype(np.int64)


def as_chances(weights: Any, count: int) -> Array:
    """`weights` divided by their sum, float64 (count,): finite numbers from 0, not all 0, else `DataError`.

    >>> from minigan.data.sampler import as_chances
    >>> as_chances([3, 1, 0], 3)
    array([0.75, 0.25, 0.  ])
    """
    array = np.asarray(weights)
    if array.dtype.kind not in "fiu" or array.shape != (count,):
        raise DataError(
            f"weights of {array.dtype}, {array.shape}: expected numbers, ({count},), one a sample"
        )
    array = array.astype(np.float64)
    wrong = np.flatnonzero(~((array >= 0) & (array < np.inf)))
    if len(wrong):
        place = int(wrong[0])
        raise DataError(f"weight {array[place]} of sample {place}: expected a finite number from 0")
    total = array.sum()
    if not 0 < total < np.inf:
        raise DataError(f"weights whose sum is {total}: expected a finite number above 0")
    return array / total  # type: ignore[no-any-return]


class Batches:
    """The batches of a data set, each a pure function of its number, so that a run can go on from any step.

    The data set is drawn in a new random order every epoch; the epochs are laid end to end and cut into batches. A
    batch may straddle epochs, and after any number of steps no sample has been used more than once oftener than
    another.

    With balanced sampling the classes take turns, and each goes through epochs of its own: after any number of steps
    no class has been used more than once oftener than another, nor a sample oftener than another of its class; within a
    batch their order is random. With weights every place of a batch is drawn anew, each sample with the chance of its
    weight.

    Args:
        samples: as for `as_images`, or as for `as_points`. Those that are accepted as they are, are not copied.
        batch: samples in a batch, from 1; it may exceed N, up to 1,024 N, and a batch takes up to 2 GiB. With balanced
            sampling N is that of the smallest class, times the number of classes.
        stream: where the orders come from: `stream.at(epoch).permutation(N)`, and what is drawn anew.
        shape: of a network, that the samples have to fit.
        points: whether they are points; by default they are if they have two axes.
        labels: integers (N,) from 0 to below `classes`, for `labels_at` and for balanced sampling.
        sampling: "shuffled", "balanced", or weights (N,): numbers from 0, in proportion to which samples are drawn.
        importance_weights: whether there are `weights`, see there.

    Attributes:
        sampling: its name, "weighted" for weights.
        chances: float64 (N,), the weights divided by their sum; `None` for other sampling.
        weights: float32 (N,), for each sample its share of the data, 1 / N, divided by the chance with which it is
            drawn (for a class of n of K, balanced: n K / N), or `None`. The mean over batches of any function times
            these is its mean over the data; their own is 1.

    Raises `DataError` as those, `as_labels` and `as_chances` do, and `ConfigError` for another batch or sampling,
    without the labels it needs, and for importance weights of samples that are never drawn, or are all drawn alike.

    >>> import minigan as mg
    >>> from minigan.ops.random import Stream
    >>> images, labels = mg.data.digits()
    >>> batches = mg.data.Batches(images, 64, Stream(0, "data"))
    >>> batches.at(0).shape
    (64, 8, 8, 1)
    >>> few = mg.data.Batches(images[:15], 25, Stream(0, "data"), labels=labels[:15], sampling="balanced")
    >>> np.bincount(labels[:15]).tolist(), np.bincount(few.labels_at(0)).tolist()
    ([2, 2, 2, 2, 2, 1, 1, 1, 1, 1], [3, 3, 3, 3, 3, 2, 2, 2, 2, 2])
    """

    def __init__(
        self,
        samples: Any,
        batch: int,
        stream: Stream,
        shape: tuple[int, ...] | None = None,
        points: bool | None = None,
        labels: Any = None,
        classes: int = 1 << 31,
        sampling: Any = "shuffled",
        importance_weights: bool = False,
    ) -> None:
        if points is None:
            points = np.ndim(samples) == 2
        self.samples = as_points(samples, shape) if points else as_images(samples, shape)
        count, size = len(self.samples), 4 * self.samples[0].size
        self.labels = None if labels is None else as_labels(labels, count, classes)
        self.sampling = sampling if isinstance(sampling, str) else "weighted"
        self.chances = None if isinstance(sampling, str) else as_chances(sampling, count)
        self._ends = None if self.chances is None else np.cumsum(self.chances)
        self._groups = self._grouped()
        epoch = len(self._groups) * min(map(len, self._groups))
        most = min(BATCH_BYTES // size, EPOCHS * epoch)
        if isinstance(batch, bool) or not isinstance(batch, (int, np.integer)) or not 1 <= batch <= most:
            raise ConfigError(
                f"batch is {batch!r}: expected an integer from 1 to {most} ({count} samples of {size} bytes as float32)"
            )
        self.weights = self._importance() if importance_weights else None
        self.batch, self.stream, self._turns = int(batch), stream, stream.child("turns")
        self._orders: dict[int, Array] = {}

    def _grouped(self) -> list[Array]:
        """The places of the samples by group: groups take turns."""
        if self.sampling == "balanced":
            if self.labels is None:
                raise ConfigError("balanced sampling needs the labels of the data")
            _, kinds, sizes = np.unique(self.labels, return_inverse=True, return_counts=True)
            return np.split(np.argsort(kinds, kind="stable"), np.cumsum(sizes)[:-1])
        if self.sampling == "weighted" and self.chances is None:
            raise ConfigError("weighted sampling needs the weights of the samples: sampling=weights")
        if self.sampling not in SAMPLINGS:
            raise ConfigError(f"sampling {self.sampling!r} does not exist; there are {', '.join(SAMPLINGS)}")
        return [np.arange(len(self.samples))]

    def _importance(self) -> Array:
        if self.sampling == "shuffled":
            raise ConfigError("importance weights are for balanced or weighted sampling: shuffled, all are 1")
        if self.chances is None:
            chances: Array = np.empty(len(self.samples))
            for group in self._groups:
                chances[group] = 1 / (len(self._groups) * len(group))
        else:
            chances = self.chances
        never = int(np.count_nonzero(chances == 0))
        if never:
            raise ConfigError(f"importance weights: {never} samples have weight 0, and are never drawn")
        with np.errstate(over="ignore"):
            weights: Array = (1 / (len(chances) * chances)).astype(np.float32)
        if not np.isfinite(weights).all():
            raise ConfigError(
                f"importance weights: the rarest sample has a chance of {chances.min():g}, too small to undo"
            )
        return weights

    def at(self, step: int) -> Array:
        """The batch of `step`, counted from 0: float32 (batch, H, W, C) in [0, 1], or float32 (batch, P) of points."""
        chosen: Array = self.samples[self._places(step)]
        return np.divide(chosen, 255, dtype=np.float32) if chosen.dtype == np.uint8 else chosen

    def labels_at(self, step: int) -> Array | None:
        """The labels of the batch of `step`, int64 (batch,); `None` for samples without labels."""
        return None if self.labels is None else self.labels[self._places(step)]

    def weights_at(self, step: int) -> Array | None:
        """The importance weights of the batch of `step`, float32 (batch,), if there are any."""
        return None if self.weights is None else self.weights[self._places(step)]

    def _places(self, step: int) -> Array:
        first, end = step * self.batch, (step + 1) * self.batch
        if self._ends is not None:
            chances = self.stream.at(step).uniform((self.batch,), dtype=np.float64).numpy()
            found: Array = np.searchsorted(self._ends, chances * self._ends[-1], side="right")
            return found
        kinds = len(self._groups)
        places, orders = np.empty(self.batch, np.int64), dict[int, Array]()
        for kind, group in enumerate(self._groups):
            # The draws `kind`, `kind` + K, `kind` + 2 K and so on are the group's.
            begin, stop = (-((kind - n) // kinds) for n in (first, end))
            for epoch in range(begin // len(group), (stop - 1) // len(group) + 1):
                number = epoch * kinds + kind
                order = self._orders.get(number)
                orders[number] = self.stream.at(number).permutation(len(group)) if order is None else order
                low = max(begin, epoch * len(group))
                high = min(stop, (epoch + 1) * len(group))
                place = low * kinds + kind - first
                chosen = group[orders[number][low - epoch * len(group) : high - epoch * len(group)]]
                places[place : place + (high - low) * kinds : kinds] = chosen
        self._orders = orders  # only those in use are kept
        # Neighbours in a batch, which may be judged in pairs, are of any classes.
        return places if kinds == 1 else places[self._turns.at(step).permutation(self.batch)]
