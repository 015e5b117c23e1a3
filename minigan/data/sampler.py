"""From a user's images to batches: what is accepted, and which images stand in the batch of a step."""

from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.errors import ConfigError, DataError
from minigan.ops.random import Stream


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


class Batches:
    """The batches of a data set, each a pure function of its number, so that a run can go on from any step.

    The data set is drawn in a new random order every epoch; the epochs are laid end to end and cut into batches. A
    batch may straddle two epochs, and after any number of steps no image has been used more than once oftener than
    another.

    Args:
        images: as for `as_images`.
        batch: images in a batch, at least 1; it may exceed N.
        stream: where the orders come from: `stream.at(epoch).permutation(N)`.

    >>> import minigan as mg
    >>> from minigan.ops.random import Stream
    >>> batches = mg.data.Batches(mg.data.digits()[0], 64, Stream(0, "data"))
    >>> batches.at(0).shape
    (64, 8, 8, 1)
    """

    def __init__(self, images: Any, batch: int, stream: Stream) -> None:
        self.images = as_images(images)
        if batch < 1:
            raise ConfigError(f"batch is {batch}: expected at least 1")
        self.batch, self.stream = batch, stream
        self._orders: dict[int, Array] = {}

    def at(self, step: int) -> Array:
        """The batch of `step`, counted from 0: float32 (batch, H, W, C) in [0, 1]."""
        count = len(self.images)
        first, end = step * self.batch, (step + 1) * self.batch
        epochs = range(first // count, (end - 1) // count + 1)
        # Only the orders in use are kept: one, or two where a batch straddles two epochs.
        self._orders = {e: self._order(e) for e in epochs}
        places = [order[max(first - e * count, 0) : end - e * count] for e, order in self._orders.items()]
        chosen: Array = self.images[np.concatenate(places)]
        return np.divide(chosen, 255, dtype=np.float32) if chosen.dtype == np.uint8 else chosen

    def _order(self, epoch: int) -> Array:
        known = self._orders.get(epoch)
        return self.stream.at(epoch).permutation(len(self.images)) if known is None else known
