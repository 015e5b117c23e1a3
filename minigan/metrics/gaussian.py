"""The Fréchet distance of two sets of features, taken for normal distributions."""

from typing import Any

import numpy as np

from minigan.metrics.samples import as_rows


def frechet_distance(x: Any, y: Any) -> float:
    """|m - n|² + tr(S + T - 2 (S T)^½), of the means m, n and covariances S, T of x (N, ...) and y (M, ...).

    The squared Wasserstein distance of two normal distributions with these moments (Dowson and Landau 1982). In the
    features of one particular network on colour photographs it is known as FID (Heusel et al. 2017); here the features
    are whatever is given, and the result should be named after them. It falls with N and M: compare equal numbers.

    Raises: `ShapeError`, `DataError` for other arrays, or fewer than 2 samples of either.

    >>> import numpy as np
    >>> x = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> round(frechet_distance(x, 3 * x + [0.0, 5.0]), 9)  # 5² + 2 (3 - 1)² 4 / 3, as covariances divide by N - 1
    35.666666667
    """
    a, b = as_rows("frechet_distance", x, y, least=2)
    shift = a.mean(0) - b.mean(0)
    # The roots of the eigenvalues of S T are the singular values of S^½ T^½, of any roots: here of the samples' own.
    first, second = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (a, b))
    roots = np.linalg.svd(_root(first) @ _root(second).T, compute_uv=False).sum()
    spread = (first * first).sum() + (second * second).sum() - 2 * roots
    return float(shift @ shift + max(spread, 0.0))  # rounding alone could make it negative


def _root(z: Any) -> Any:
    """R, at most (d, d), with Rᵀ R = zᵀ z."""
    return np.linalg.qr(z, mode="r")
