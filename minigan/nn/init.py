"""Where parameters start: functions of a random stream and a shape whose last axis is the outputs.

For a shape (..., n_in, n_out), with k the product of the leading axes (1 for a matrix, kh·kw for a
convolution), fan_in is k·n_in and fan_out is k·n_out.
"""

import math
from typing import Any, Protocol

import numpy as np

from minigan.errors import ShapeError
from minigan.ops.random import Stream
from minigan.tensor import Tensor, tensor


class Initializer(Protocol):
    """What a layer takes as `init`: one of this module's functions, or any of the same form.

    >>> import minigan as mg, numpy as np
    >>> def ones(stream, shape, dtype):
    ...     return mg.tensor(np.ones(shape), dtype)
    >>> mg.nn.Dense(2, 1, init=ones, stream=mg.ops.Stream(0, "docs"))(mg.tensor([[3.0, 4.0]])).numpy()
    array([[7.]], dtype=float32)
    """

    def __call__(self, stream: Stream, shape: tuple[int, ...], dtype: Any) -> Tensor:
        """A leaf tensor of that shape and dtype."""


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) < 2:
        raise ShapeError(
            f"an initialiser by fan needs at least two axes, inputs and outputs; got shape {shape}"
        )
    window = math.prod(shape[:-2])
    return max(1, window * shape[-2]), max(1, window * shape[-1])


def glorot_uniform(stream: Stream, shape: tuple[int, ...], dtype: Any = np.float32) -> Tensor:
    """U(-a, a), a = √(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 16).

    `ShapeError`, as from all initialisers by fan, for a shape of fewer than two axes.

    >>> import minigan as mg
    >>> float(abs(mg.nn.init.glorot_uniform(mg.ops.Stream(0, "docs"), (50, 100)).numpy()).max()) <= 0.2
    True
    """
    limit = math.sqrt(6.0 / sum(_fans(shape)))
    return stream.uniform(shape, -limit, limit, dtype)


def glorot_normal(stream: Stream, shape: tuple[int, ...], dtype: Any = np.float32) -> Tensor:
    """N(0, σ²), σ = √(2 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 12).

    >>> import minigan as mg
    >>> round(float(mg.nn.init.glorot_normal(mg.ops.Stream(0, "docs"), (100, 100)).numpy().std()), 2)
    0.1
    """
    return stream.normal(shape, 0.0, math.sqrt(2.0 / sum(_fans(shape))), dtype)


def he_uniform(stream: Stream, shape: tuple[int, ...], dtype: Any = np.float32, slope: float = 0.0) -> Tensor:
    """U(-a, a), a = √(6 / ((1 + slope²) fan_in)), for (leaky) ReLU layers (He et al. 2015, eq. 15).

    >>> import minigan as mg
    >>> float(abs(mg.nn.init.he_uniform(mg.ops.Stream(0, "docs"), (24, 100)).numpy()).max()) <= 0.5
    True
    """
    limit = math.sqrt(6.0 / ((1.0 + slope * slope) * _fans(shape)[0]))
    return stream.uniform(shape, -limit, limit, dtype)


def he_normal(stream: Stream, shape: tuple[int, ...], dtype: Any = np.float32, slope: float = 0.0) -> Tensor:
    """N(0, σ²), σ = √(2 / ((1 + slope²) fan_in)), for (leaky) ReLU layers (He et al. 2015, eq. 15).

    >>> import minigan as mg
    >>> round(float(mg.nn.init.he_normal(mg.ops.Stream(0, "docs"), (50, 200)).numpy().std()), 2)
    0.2
    """
    return stream.normal(shape, 0.0, math.sqrt(2.0 / ((1.0 + slope * slope) * _fans(shape)[0])), dtype)


def normal(stream: Stream, shape: tuple[int, ...], dtype: Any = np.float32, std: float = 0.02) -> Tensor:
    """N(0, std²), 0.02 as for DCGAN (Radford et al. 2016, §4); any shape.

    >>> import minigan as mg
    >>> round(float(mg.nn.init.normal(mg.ops.Stream(0, "docs"), (100, 100)).numpy().std()), 2)
    0.02
    """
    return stream.normal(shape, 0.0, std, dtype)


def orthogonal(stream: Stream, shape: tuple[int, ...], dtype: Any = np.float32, gain: float = 1.0) -> Tensor:
    """`gain` times a random matrix whose rows or columns, the fewer, are orthonormal (Saxe et al. 2014, §3).

    A shape of more than two axes is that of a matrix whose rows are all but the last axis; `ShapeError` for fewer.

    >>> import minigan as mg, numpy as np
    >>> w = mg.nn.init.orthogonal(mg.ops.Stream(0, "docs"), (3, 2)).numpy()
    >>> np.allclose(w.T @ w, np.eye(2), atol=1e-6)
    True
    """
    if len(shape) < 2:
        raise ShapeError(f"orthogonal: needs at least two axes, inputs and outputs; got shape {shape}")
    rows, columns = math.prod(shape[:-1]), shape[-1]
    gauss = stream.normal((max(rows, columns), min(rows, columns)), dtype=np.float64).numpy()
    q, r = np.linalg.qr(gauss)
    q = q * np.where(
        np.diagonal(r) < 0, -1.0, 1.0
    )  # makes the factor unique, and so uniform over all such matrices
    return tensor(gain * (q if rows >= columns else q.T).reshape(shape), dtype)


def zeros(stream: Stream, shape: tuple[int, ...], dtype: Any = np.float32) -> Tensor:
    """Zeros of any shape; nothing is drawn from `stream`.

    >>> import minigan as mg
    >>> mg.nn.init.zeros(mg.ops.Stream(0, "docs"), (2,)).numpy()
    array([0., 0.], dtype=float32)
    """
    return Tensor(np.zeros(shape, dtype))
