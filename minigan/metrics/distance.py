"""Distances between two sets of points."""

import numpy as np

from minigan.backend import Array
from minigan.errors import ShapeError
from minigan.metrics.samples import as_rows
from minigan.ops.random import Stream


def sliced_wasserstein(x: Array, y: Array, directions: int = 64, seed: int = 0) -> float:
    """The mean, over random directions, of the Wasserstein distance between the projections of x and of y.

    Two sets of equal size are as far apart along a direction θ as their sorted projections: (1/N) Σ |(xθ)₍ᵢ₎ - (yθ)₍ᵢ₎|
    (Rabin et al. 2011, "Wasserstein barycenter and its application to texture mixing", §2). The directions are
    uniform on the sphere.

    Args:
        x, y: (N, ...) in the same shape, floats; the unit of the result is theirs.
        directions: how many.
        seed: of the directions.

    Raises `ShapeError`, `DTypeError` and `DataError` for other arrays.

    >>> import numpy as np
    >>> from minigan.metrics import sliced_wasserstein
    >>> x = np.zeros((10, 1))
    >>> sliced_wasserstein(x, x + 2.0)  # the only direction there is
    2.0
    """
    x, y = np.asarray(x), np.asarray(y)
    as_rows("sliced_wasserstein", x, y)
    if x.shape != y.shape:
        raise ShapeError(f"sliced_wasserstein: shapes {x.shape} and {y.shape}, expected the same (N, ...)")
    flat = [a.reshape(len(a), -1).astype(np.result_type(a, np.float32)) for a in (x, y)]
    axes = Stream(seed, "directions").normal((flat[0].shape[1], directions), dtype=np.float64).numpy()
    axes = axes / np.linalg.norm(axes, axis=0)
    first, second = (np.sort(a @ axes.astype(a.dtype), axis=0) for a in flat)
    return float(np.abs(first - second).mean(dtype=np.float64))
