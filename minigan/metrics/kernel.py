"""Measures from kernels: a distance of two sets of features, and the number of different samples in one."""

from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.errors import DataError
from minigan.metrics.samples import as_rows, blocks


def kernel_distance(x: Any, y: Any) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy, with the kernel (<x, y> / d + 1)³.

    mean k(x, x') + mean k(y, y') - 2 mean k(x, y), over pairs of different samples x (N, d), y (M, d) (Gretton et al.
    2012, eq. 3). In the features of one particular network this is KID (Bińkowski et al. 2018); here the features are
    what is given. Its expectation does not depend on N and M, and is 0 for equal distributions: so it may be negative.

    Raises: `ShapeError`, `DataError` for other arrays, or fewer than 2 samples of either.

    >>> kernel_distance([[0.0], [0.0]], [[1.0], [1.0]])  # 1 + 8 - 2
    7.0
    """
    a, b = as_rows("kernel_distance", x, y, least=2)

    def total(first: Array, second: Array) -> float:
        width = first.shape[1]
        return sum(
            float(((first[part] @ second.T / width + 1) ** 3).sum())
            for part in blocks(len(first), len(second))
        )

    def of_others(z: Array) -> float:
        itself = float((((z * z).sum(1) / z.shape[1] + 1) ** 3).sum())
        return (total(z, z) - itself) / (len(z) * (len(z) - 1))

    return of_others(a) + of_others(b) - 2 * total(a, b) / (len(a) * len(b))


def vendi_score(x: Any) -> float:
    """How many different samples there are among x (N, d): e^H of the eigenvalues of K / N, K the cosine similarities.

    H = -Σ λ log λ (Friedman and Dieng 2023, "The Vendi score"). Samples at right angles count as different, N of them
    as N, equal ones as one. Its size depends on the features and on N.

    Raises: `ShapeError`, `DataError` for other arrays, or samples of zeros, which have no direction.

    >>> round(vendi_score([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]]), 9)
    2.0
    """
    (a,) = as_rows("vendi_score", x)
    lengths = np.linalg.norm(a, axis=1, keepdims=True)
    if not lengths.all():
        raise DataError(f"vendi_score: {np.count_nonzero(lengths == 0)} samples are all zeros")
    # The eigenvalues of A Aᵀ are those of Aᵀ A, and zeros.
    values = np.linalg.svd(a / lengths, compute_uv=False) ** 2 / len(a)
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))
