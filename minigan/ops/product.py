"""The affine map: a matrix product and a bias, with one memory for both."""

from collections.abc import Sequence

import numpy as np

from minigan.backend import Array, Spec
from minigan.errors import DTypeError, ShapeError
from minigan.linear import MATMUL, unbroadcast
from minigan.tape import Input, Primitive, Sample, apply
from minigan.tensor import Tensor, TensorLike, lift
from minigan.trace import state


# The bias comes first, as its derivative does in x W + b: so the cotangents that a second derivative adds up stand in
# the same order, and have the same bits.
def _infer(b: Array, x: Array, w: Array) -> Sequence[Spec]:
    specs = MATMUL.infer(x, w, False, False)
    if w.ndim != 2 or b.shape != w.shape[1:]:
        raise ShapeError(f"affine: weights of shape {w.shape} and a bias of shape {b.shape} do not fit")
    if not x.dtype == w.dtype == b.dtype:
        raise DTypeError(f"affine: dtypes {x.dtype}, {w.dtype} and {b.dtype} differ: use .astype")
    return specs


def _kernel(outs: Sequence[Array], b: Array, x: Array, w: Array) -> None:
    MATMUL.kernel(outs, x, w, False, False)  # type: ignore[misc]
    np.add(outs[0], b, out=outs[0])


_affine = Primitive(
    "affine",
    _infer,
    kernel=_kernel,
    vjp=lambda gy, y, b, x, w: (
        lambda: unbroadcast(gy, b.shape),
        lambda: apply(MATMUL, gy, w, ta=False, tb=True),
        lambda: apply(MATMUL, x, gy, ta=True, tb=False),
    ),
    reference=lambda b, x, w: x @ w + b,
    smooth=True,
    flops=lambda b, x, w: (2 * w.shape[0] + 1) * x.shape[0] * w.shape[1],
    samples=tuple(
        Sample((Input((m,)), Input((n, k)), Input((k, m))))
        for n, k, m in ((2, 3, 4), (1, 1, 1), (0, 2, 3), (3, 0, 2))
    ),
)


def affine(x: TensorLike, w: TensorLike, b: TensorLike) -> Tensor:
    """x W + b over the last axis: x (..., inputs), w (inputs, outputs), b (outputs,) give (..., outputs).

    The same bits as `x @ w + b`, and its errors.

    >>> import minigan as mg
    >>> x, w = mg.tensor([[1.0, 2.0]]), mg.tensor([[1.0, 0.0], [0.0, 10.0]])
    >>> mg.ops.affine(x, w, mg.tensor([0.5, 0.0])).numpy()
    array([[ 1.5, 20. ]], dtype=float32)
    """
    x, w, b = lift(x), lift(w), lift(b)
    one_call = x.ndim == w.ndim == 2 and b.shape == w.shape[1:] and x.dtype == w.dtype == b.dtype
    # A program is told of both operations: it joins the second, and what follows, to the product by itself.
    return apply(_affine, b, x, w) if one_call and state.recorder is None else x @ w + b
