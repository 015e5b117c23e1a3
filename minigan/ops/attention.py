"""Scaled dot-product attention, composed and fused, and the embedding of labels."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from minigan.backend import Array, Spec
from minigan.cuda import index
from minigan.errors import DTypeError, ShapeError
from minigan.linear import SCATTER, TAKE, add_up, check_indices
from minigan.ops.elementwise import exp
from minigan.ops.reduce import max as largest
from minigan.pointwise import broadcast, check_float
from minigan.tape import Input, Primitive, Sample, apply
from minigan.tensor import Tensor, TensorLike, lift, pair, where
from minigan.trace import state

# Attention

# Scores that the kernel has at a time: 512 KiB in float32. In a core's cache they take half the composition's time.
BLOCK = 1 << 17


def _infer(q: Array, k: Array, v: Array, *mask: Array, scale: float) -> Sequence[Spec]:
    for name, array in (("q", q), ("k", k), ("v", v)):
        check_float("attention", array)
        if array.ndim < 2:
            raise ShapeError(f"attention: {name} of shape {array.shape} has fewer than two axes")
    (rows, d), (columns, e) = q.shape[-2:], v.shape[-2:]
    if k.shape[-2:] != (columns, d):
        raise ShapeError(
            f"attention: queries {q.shape}, keys {k.shape} and values {v.shape}: {d} and {k.shape[-1]} features of"
            f" queries and keys, {k.shape[-2]} keys and {columns} values"
        )
    lead = broadcast("attention", q.shape[:-2], k.shape[:-2], v.shape[:-2])
    scores = (*lead, rows, columns)
    for m in mask:
        if m.dtype != np.bool_:
            raise DTypeError(
                f"attention: the mask has dtype {m.dtype}, expected bool: True may be attended to"
            )
        if broadcast("attention: mask and scores", m.shape, scores) != scores:
            raise ShapeError(f"attention: a mask of shape {m.shape} does not broadcast to scores {scores}")
    return (((*lead, rows, e), q.dtype),)


def _composed(q: Tensor, k: Tensor, v: Tensor, *mask: Tensor, scale: float) -> Tensor:
    """The values are weighted before the weights are divided by their sums, as in the kernel.

    So the derivative for the sums comes from rows of results, not from rows of scores (Dao et al. 2022,
    "FlashAttention", eq. 4), and that for the scores can be written by the product that makes it.
    """
    scores = (q * scale) @ k.mT
    for m in mask:
        scores = where(m, scores, -math.inf)
    if scores.shape[-1]:
        top = largest(scores.detach(), -1, keepdims=True)  # a constant: it cancels
        scores = scores - where(top > -math.inf, top, 0.0)
    weights = exp(scores)
    total = weights.sum(-1, keepdims=True)
    return (weights @ v) / where(total > 0, total, 1.0)  # 0 where all is masked


def _kernel(outs: Sequence[Array], q: Array, k: Array, v: Array, *mask: Array, scale: float) -> None:
    """Some samples at a time, or some rows of one, so that the scores of all need not be in memory."""
    *lead, rows, _ = outs[0].shape
    lead, columns = lead or [1], k.shape[-2]
    out = outs[0].reshape((*lead, *outs[0].shape[-2:]))
    q, k, v = (np.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (q, k, v))
    masks = [np.broadcast_to(m, (*lead, rows, columns)) for m in mask]
    of_a_row = max(1, columns * math.prod(lead[1:]))
    height = max(1, BLOCK // of_a_row)
    samples = max(1, BLOCK // (of_a_row * max(1, rows)))
    with np.errstate(all="ignore"):
        for n, t in itertools.product(range(0, lead[0], samples), range(0, rows, height)):
            some = slice(n, n + samples)
            part = (some, ..., slice(t, t + height), slice(None))
            scores = np.matmul(q[part] * q.dtype.type(scale), k[some].mT)
            for m in masks:
                np.copyto(scores, -math.inf, where=~m[part])
            top = np.max(scores, -1, keepdims=True, initial=-math.inf)
            np.copyto(top, 0, where=~np.isfinite(top))  # a fully masked row has none: its weights become 0
            np.exp(np.subtract(scores, top, out=scores), out=scores)
            total = add_up(scores, (scores.ndim - 1,), keepdims=True)
            np.copyto(total, 1, where=total == 0)
            np.divide(np.matmul(scores, v[some]), total, out=out[part])


def _flops(q: Array, k: Array, v: Array, *mask: Array, scale: float) -> int:
    ((shape, _),) = _infer(q, k, v, *mask, scale=scale)
    scores = math.prod(shape[:-1]) * k.shape[-2]
    return int(scores * (2 * (q.shape[-1] + v.shape[-1]) + 4))


def _samples() -> Iterator[Sample]:
    for q, k, v, mask in (
        ((3, 2), (4, 2), (4, 3), None),
        ((2, 2), (3, 2), (3, 1), (2, 3)),
        ((2, 2, 3), (2, 3), (1, 2, 2), (2, 1, 2)),
        ((2, 1, 2, 1), (2, 2, 2, 1), (2, 2, 2), (2, 1, 1, 2)),
        ((2, 0, 2), (2, 3, 2), (2, 3, 1), None),
        ((2, 2), (0, 2), (0, 2), None),
    ):
        inputs = [Input(shape) for shape in (q, k, v)]
        masks = [Input(mask, "bool")] if mask else []
        yield Sample((*inputs, *masks), {"scale": 0.7})


ATTENTION = Primitive(
    "attention",
    _infer,
    kernel=_kernel,
    reference=_composed,
    smooth=True,
    flops=_flops,
    samples=tuple(_samples()),
)


def scaled_dot_product_attention(
    q: TensorLike,
    k: TensorLike,
    v: TensorLike,
    mask: TensorLike | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(q kᵀ · scale) v, for each query a mean of the values weighted by their keys (Vaswani et al. 2017, eq. 1).

    Args:
        q, k, v: queries (..., T, d), keys (..., S, d) and values (..., S, e); the leading axes broadcast.
        mask: booleans that broadcast to the scores, (..., T, S): `True` where a query may attend to a key. A
            query that may attend to none gets 0, and its derivatives are 0.
        scale: 1/sqrt(d) by default.

    Returns: (..., T, e). Where nothing is recorded, for derivatives or by `mg.compile`, by a kernel that has only a
    part of the scores at a time in memory; otherwise by the operations that are wanted.

    Raises: `ShapeError` for shapes that do not fit, `DTypeError` for a mask that is not boolean.

    >>> import minigan as mg, numpy as np
    >>> q, v = mg.tensor([[0.0, 0.0], [200.0, 0.0]]), mg.tensor([[1.0], [3.0]])
    >>> mg.ops.scaled_dot_product_attention(q, mg.tensor([[1.0, 0.0], [0.0, 1.0]]), v).numpy()
    array([[2.],
           [1.]], dtype=float32)
    >>> mg.ops.scaled_dot_product_attention(q, q, v, mask=np.array([[False, True], [False, False]])).numpy()
    array([[3.],
           [0.]], dtype=float32)
    """
    q, k = pair(q, k)
    k, v = pair(k, v)
    q, k = pair(q, v)[0], pair(k, v)[0]
    masks = [] if mask is None else [lift(mask)]
    if scale is None:
        scale = 1.0 / math.sqrt(max(1, q.shape[-1] if q.ndim else 1))
    # What is recorded is wanted for derivatives, which read the scores: the kernel would have to make them again. And
    # a program has rows for the parts, which all threads share.
    if state.recording or (state.recorder is not None and state.recorder.composes):
        _infer(q.array, k.array, v.array, *[m.array for m in masks], scale=scale)
        return _composed(q, k, v, *masks, scale=scale)
    return apply(ATTENTION, q, k, v, *masks, scale=scale)  # type: ignore[no-any-return]


# Embedding


def _embedding_infer(table: Array, ids: Array) -> Sequence[Spec]:
    check_float("embedding", table)
    if table.ndim != 2:
        raise ShapeError(f"embedding: a table of shape {table.shape}, expected (ids, features)")
    if ids.dtype.kind not in "iu":
        raise DTypeError(f"embedding: ids have dtype {ids.dtype}, expected integers")
    check_indices("embedding", ids, len(table), negative=False)
    return (((*ids.shape, table.shape[1]), table.dtype),)


EMBEDDING = Primitive(
    "embedding",
    _embedding_infer,
    kernel=lambda outs, table, ids: TAKE.kernel(outs, table, ids, 0),  # type: ignore[misc]
    vjp=lambda gy, y, table, ids: (lambda: apply(SCATTER, gy, ids, axis=0, shape=table.shape), None),
    linear=(0,),
    samples=tuple(Sample((Input((4, 3)), Input(ids, "index", high=4))) for ids in ((5,), (), (0,), (2, 2))),
    cuda=index.embedding,
)


def embedding(table: TensorLike, ids: TensorLike) -> Tensor:
    """The rows of a table by their numbers: table (K, D) and ids (...) give (..., D).

    The derivative adds up, for each row, those of where it was used. `ShapeError` for an id outside 0 to K - 1,
    negative ones too; `DTypeError` for ids that are no integers.

    >>> import minigan as mg, numpy as np
    >>> mg.ops.embedding(mg.tensor([[1.0, 2.0], [3.0, 4.0]]), np.array([1, 1, 0])).numpy()
    array([[3., 4.],
           [3., 4.],
           [1., 2.]], dtype=float32)
    """
    return apply(EMBEDDING, lift(table), lift(ids))  # type: ignore[no-any-return]
