"""What metrics take: samples as rows of numbers, and blocks of pairs of rows."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.errors import DataError, DTypeError, ShapeError

ROUNDING = 1e-13  # of squared distances, of the squared norms
BLOCK = 1 << 22  # distances that are in memory at a time: 32 MiB


def as_rows(name: str, *samples: Any, least: int = 1) -> list[Array]:
    """Each array (N, ...) as float64 (N, d), d the same for all.

    Raises `ShapeError` for other shapes, `DTypeError` for what are no real numbers, and `DataError` for fewer than
    `least` samples, or values that are not finite.
    """
    rows = []
    for given in samples:
        x = np.asarray(given)
        if x.dtype.kind not in "fiub":
            raise DTypeError(f"{name}: samples of dtype {x.dtype}, expected real numbers")
        if x.ndim < 2 or 0 in x.shape[1:]:
            raise ShapeError(f"{name}: samples of {x.dtype} {x.shape}, expected real numbers (N, ...)")
        if len(x) < least:
            raise DataError(f"{name}: {len(x)} samples, expected at least {least}")
        flat = x.reshape(len(x), -1).astype(np.float64)
        if not np.isfinite(flat).all():
            raise DataError(f"{name}: {np.count_nonzero(~np.isfinite(flat)):,} values are not finite")
        rows.append(flat)
    if len({x.shape[1] for x in rows}) > 1:
        raise ShapeError(
            f"{name}: samples of shapes {', '.join(str(np.shape(x)) for x in samples)}, not of one kind"
        )
    return rows


def blocks(count: int, width: int) -> Iterator[slice]:
    """Slices of 0 to count - 1, each with at most `BLOCK` numbers if a row has `width`."""
    step = max(1, BLOCK // max(1, width))
    for begin in range(0, count, step):
        yield slice(begin, min(begin + step, count))


def centred(*samples: Array) -> list[Array]:
    """All about the median of the first, so that little cancels in `squared_distances`, whatever lies far away."""
    middle = np.median(samples[0], axis=0)
    return [x - middle for x in samples]


def squared_distances(x: Array, y: Array) -> Array:
    """|x_i - y_j|², (N, M): |x|² + |y|² - 2 <x, y>; 0 for what is below the rounding of that, as of equal samples."""
    scale = (x * x).sum(1)[:, None] + (y * y).sum(1)
    found: Array = scale - 2 * (x @ y.T)
    found[found < ROUNDING * scale] = 0
    return found
