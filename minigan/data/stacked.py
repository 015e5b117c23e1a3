"""Stacked digits: images of several random digits, one in each channel, with as many classes as numbers they spell."""

from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.data.sampler import as_images, as_labels
from minigan.errors import ConfigError, DataError
from minigan.ops.random import Stream

MOST_BYTES = 1 << 33


def stacked(
    images: Any, labels: Any, count: int, stream: Stream, channels: int = 3, classes: int = 10
) -> tuple[Array, Array]:
    """`count` images with `channels` random ones of `images` as their channels, and the numbers that these spell.

    The 1,000 modes of Stacked MNIST (Srivastava et al. 2017, "VEEGAN", §5.2; Lin et al. 2018, "PacGAN", §4.2: 128,000
    images of three digits): the label is Σ_c label_c · classes^(channels - 1 - c), so that with ten classes the digits
    7, 0, 4 have the label 704.

    Args:
        images: (N, H, W, 1), as `minigan.data.as_images` takes them; bytes stay bytes.
        labels: integers (N,) from 0 to below `classes`.
        stream: of the choice, each digit independent of all others. The first of many are those of few.
        channels: from 1; pictures are drawn of 1 or 3.

    Returns images (count, H, W, channels) and labels, int64 (count,). Raises `DataError`, and `ConfigError` for numbers
    below 1 or more than 8 GiB.

    >>> import minigan as mg
    >>> digits, labels = mg.data.digits()
    >>> images, numbers = mg.data.stacked(digits, labels, 100, mg.ops.Stream(0, "stacked"))
    >>> images.shape, bool(numbers.max() < 1000)
    ((100, 8, 8, 3), True)
    """
    for name, number in (("count", count), ("channels", channels), ("classes", classes)):
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
            raise ConfigError(f"stacked: {name} is {number!r}: expected an integer from 1")
    singles = as_images(images)
    if singles.shape[3] != 1:
        raise DataError(f"stacked: images of shape {singles.shape[1:]}: expected (H, W, 1)")
    known = as_labels(labels, len(singles), classes)
    if count * channels * singles[0].nbytes > MOST_BYTES or classes**channels >= 1 << 31:
        raise ConfigError(
            f"stacked: {count:,} images of {channels} channels and {classes}**{channels} classes are too many"
        )
    chances = stream.at(stream.step).uniform((count, channels), dtype=np.float64).numpy()
    chosen = np.minimum((chances * len(singles)).astype(np.int64), len(singles) - 1)
    images = np.concatenate([singles[chosen[:, c]] for c in range(channels)], axis=3)
    return images, spelled(known[chosen], classes)


def spelled(digits: Any, classes: int = 10) -> Array:
    """The number that each row of digits (N, channels) spells, the first digit first: int64 (N,).

    >>> import minigan as mg
    >>> mg.data.spelled([[7, 0, 4], [0, 0, 9]])
    array([704,   9])
    """
    rows = np.asarray(digits)
    if rows.dtype.kind not in "iu" or rows.ndim != 2 or 0 in rows.shape:
        raise DataError(f"digits of {rows.dtype}, {rows.shape}: expected integers, (N, channels)")
    if rows.min() < 0 or rows.max() >= classes:
        raise DataError(f"digits from {rows.min()} to {rows.max()}: expected 0 to {classes - 1}")
    powers = classes ** np.arange(rows.shape[1] - 1, -1, -1, dtype=np.int64)
    return (rows.astype(np.int64) @ powers).astype(np.int64)  # type: ignore[no-any-return]
