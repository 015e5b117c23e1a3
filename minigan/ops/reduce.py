"""Operations along axes: extremes, finiteness, moments, log-sum-exp and softmax, norms, cumulative sums, sorting.

All take float32 or float64, else `DTypeError`. An axis that is not there is a `ShapeError`; reduced axes are dropped,
or kept with size 1 if `keepdims`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigan.backend import Array, Spec
from minigan.cuda import index, reduce, sort as sorting
from minigan.errors import DTypeError, ShapeError
from minigan.kernels import rows
from minigan.kernels.launch import Loop
from minigan.kernels.objects import kernel_of
from minigan.linear import Axis, add_at, add_up, axes_of, axis_of, infer_reduction, integer, reduced, spread
from minigan.ops.elementwise import sqrt
from minigan.pointwise import check_float
from minigan.tape import Input, Primitive, Sample, apply, same_spec
from minigan.tensor import Tensor, TensorLike, lift, mean, sum, where

EXP_WORK = 8  # of a row with exponentials, in numbers that a loop reads or writes
_AXES = (((2, 3), (1,), False), ((3, 2), (0,), True), ((2, 2, 3), (0, 2), False), ((4,), (0,), False))
EDGES = (0.0, -0.0, 1e-40, 1e4, -1e4, math.inf, -math.inf, math.nan)


def _reduction_samples(kink: Callable[..., Any] | None = None, low: float = -2.0) -> tuple[Sample, ...]:
    return tuple(
        Sample((Input(shape, low=low),), {"axes": axes, "keepdims": keepdims}, kink, EDGES)
        for shape, axes, keepdims in _AXES
    )


def _nearest_gap(x: Array) -> Any:
    """The smallest difference between any two elements: extremes and orders do not change within half of it."""
    return np.diff(np.sort(x, axis=None))


# Extremes


def _rows_of(x: rows.Spec, axes: tuple[int, ...]) -> tuple[int, int]:
    """How many rows there are along the last axes, one behind the other in memory, and numbers in each; or (0, 0)."""
    first = len(x.shape) - len(axes)
    if not axes or axes[0] != first or not rows.row_major([x]):
        return 0, 0
    return math.prod(x.shape[:first]), math.prod(x.shape[first:])


def _extreme_vjp(gy: Any, y: Any, x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
    def gx() -> Any:
        chosen = (x == spread(y, x.shape, axes)).astype(x.dtype)
        return chosen * spread(gy, x.shape, axes) / spread(sum(chosen, axes), x.shape, axes)

    return (gx,)


def _number_of_a_row(name: str, work: int) -> Callable[..., rows.Plan | None]:
    """What plans a kernel that makes one number of each row of a matrix, with so much work for an element."""

    def row(
        outs: Sequence[rows.Spec],
        inputs: Sequence[rows.Spec],
        parts: int,
        axes: tuple[int, ...],
        keepdims: bool,
    ) -> rows.Plan | None:
        n, m = _rows_of(inputs[0], axes)
        if not m:
            return None
        kernel = kernel_of("softmax", name, inputs[0].dtype)
        return rows.Plan(
            kernel, n, 1, 0, 16, (rows.Operand(0), rows.Result(0), m), work=work * n * m, by_sample=True
        )

    return row


def _extreme(name: str, ufunc: Callable[..., Any], cuda: Callable[..., Any], row: Any = None) -> Primitive:
    return Primitive(
        name,
        infer_reduction(name, empty=False),
        kernel=lambda outs, x, axes, keepdims: ufunc(x, axes, keepdims=keepdims, out=outs[0]),
        vjp=_extreme_vjp,
        flops=lambda x, axes, keepdims: x.size,
        samples=_reduction_samples(_nearest_gap),
        row=row,
        cuda=cuda,
    )


_max = _extreme("max", np.max, reduce.largest, _number_of_a_row("max_float32", 1))
_min = _extreme("min", np.min, reduce.smallest)


def max(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest element along axes; NaN if one is. Tied elements share the derivative equally.

    `ShapeError` over an axis of size 0.

    >>> import minigan as mg
    >>> mg.ops.max(mg.tensor([[1.0, 2.0], [4.0, 3.0]]), axis=1).numpy()
    array([2., 4.], dtype=float32)
    """
    x = lift(x)
    return apply(_max, x, axes=axes_of("max", axis, x.ndim), keepdims=keepdims)  # type: ignore[no-any-return]


def min(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest element along axes; NaN if one is. Tied elements share the derivative equally.

    `ShapeError` over an axis of size 0.

    >>> import minigan as mg
    >>> mg.ops.min(mg.tensor([[1.0, 2.0], [4.0, 3.0]]), axis=1).numpy()
    array([1., 3.], dtype=float32)
    """
    x = lift(x)
    return apply(_min, x, axes=axes_of("min", axis, x.ndim), keepdims=keepdims)  # type: ignore[no-any-return]


def _infer_argmax(x: Array, axis: int) -> Sequence[Spec]:
    check_float("argmax", x)
    if x.shape[axis] == 0:
        raise ShapeError(f"argmax: shape {x.shape} has no elements along axis {axis}")
    return ((reduced(x.shape, (axis,), False), np.int64),)


_argmax = Primitive(
    "argmax",
    _infer_argmax,
    kernel=lambda outs, x, axis: np.argmax(x, axis, out=outs[0]),
    flops=lambda x, axis: x.size,
    samples=(Sample((Input((2, 3)),), {"axis": 1}),),
    cuda=reduce.argmax,
)


def argmax(x: TensorLike, axis: int | None = None) -> Tensor:
    """The int64 position of the largest element along an axis, or in the flattened array; the first one of a tie.

    No derivative. `ShapeError` over an axis of size 0.

    >>> import minigan as mg
    >>> mg.ops.argmax(mg.tensor([[1.0, 2.0], [4.0, 3.0]]), axis=1).numpy()
    array([1, 0])
    """
    x = lift(x)
    if axis is None:
        x, axis = x.reshape(-1), 0
    return apply(_argmax, x, axis=axis_of("argmax", axis, x.ndim))  # type: ignore[no-any-return]


# Finite or not


def _bad_loop(bad: Array, words: Array, exponent: Array) -> None:
    # A float is infinite or NaN if all bits of its exponent are set; a loop over integers is vectorised.
    mask = exponent[0]
    found = False
    for i in range(words.shape[0]):
        found |= (words[i] & mask) == mask
    bad[0] |= found


def _bad_numpy(bad: Array, words: Array, exponent: Array) -> None:
    bad[0] |= ((words & exponent) == exponent).any()


_bad = {
    np.dtype(dtype): (Loop(_bad_loop, _bad_numpy), np.array([np.inf], dtype).view(words))
    for dtype, words in ((np.float32, np.uint32), (np.float64, np.uint64))
}


def _all_finite_kernel(outs: Sequence[Array], *arrays: Array) -> None:
    bad = np.zeros(1, np.bool_)
    for x in arrays:
        loop, exponent = _bad[x.dtype]
        loop(bad, np.ascontiguousarray(x).reshape(-1).view(exponent.dtype), exponent)
    np.logical_not(bad[0], out=outs[0])


def _infer_all_finite(*arrays: Array) -> Sequence[Spec]:
    for x in arrays:
        check_float("all_finite", x)
    return (((), np.bool_),)


ALL_FINITE = Primitive(
    "all_finite",
    _infer_all_finite,
    kernel=_all_finite_kernel,
    flops=lambda *arrays: int(math.fsum(x.size for x in arrays)),
    samples=(Sample((Input((2, 3)), Input(())), edges=EDGES), Sample((Input((0, 2)),))),
    cuda=reduce.all_finite,
)


def all_finite(tensors: Sequence[TensorLike]) -> Tensor:
    """Whether no element of these tensors is NaN or infinite: one boolean.

    No derivative. `DTypeError` for integers and booleans.

    >>> import minigan as mg
    >>> mg.ops.all_finite([mg.tensor([1.0, 2.0]), mg.tensor(float("inf"))]).item()
    False
    """
    if not tensors:
        return lift(np.True_)
    return apply(ALL_FINITE, *[lift(x) for x in tensors])  # type: ignore[no-any-return]


# Moments


def var(x: TensorLike, axis: Axis = None, keepdims: bool = False, correction: float = 0.0) -> Tensor:
    """The variance Σ (x - mean)² / (n - correction) over axes; correction 1 is the unbiased estimate.

    `ShapeError` unless n, the number of elements, is above `correction`.

    >>> import minigan as mg
    >>> mg.ops.var(mg.tensor([1.0, 3.0])).item(), mg.ops.var(mg.tensor([1.0, 3.0]), correction=1).item()
    (1.0, 2.0)
    """
    x = lift(x)
    count = math.prod(x.shape[a] for a in axes_of("var", axis, x.ndim))
    if count <= correction:
        raise ShapeError(
            f"var: {count} elements with correction {correction} have no variance (shape {x.shape})"
        )
    centred = x - mean(x, axis, keepdims=True)
    return sum(centred * centred, axis, keepdims) * (1.0 / (count - correction))


def std(x: TensorLike, axis: Axis = None, keepdims: bool = False, correction: float = 0.0) -> Tensor:
    """The standard deviation, the square root of `var`, with its errors; the derivative is NaN where it is 0.

    >>> import minigan as mg
    >>> mg.ops.std(mg.tensor([1.0, 5.0])).item()
    2.0
    """
    return sqrt(var(x, axis, keepdims, correction))


# Log-sum-exp and softmax


def _shift(x: Array, axes: tuple[int, ...]) -> Array:
    """The maximum along axes where it is finite, else 0: subtracting it prevents overflow and never makes a NaN."""
    top: Array = np.max(x, axes, keepdims=True, initial=-math.inf)
    return np.where(np.isfinite(top), top, x.dtype.type(0))


def _logsumexp_kernel(outs: Sequence[Array], x: Array, axes: tuple[int, ...], keepdims: bool) -> None:
    with np.errstate(all="ignore"):
        top = _shift(x, axes)
        total = add_up(np.exp(x - top), axes, keepdims=True)
        outs[0][...] = (np.log(total) + top).reshape(outs[0].shape)


_logsumexp = Primitive(
    "logsumexp",
    infer_reduction("logsumexp"),
    kernel=_logsumexp_kernel,
    vjp=lambda gy, y, x, axes, keepdims: (lambda: spread(gy, x.shape, axes) * softmax(x, axes),),
    smooth=True,
    flops=lambda x, axes, keepdims: 3 * x.size,
    samples=_reduction_samples(),
    row=_number_of_a_row("logsumexp_float32", EXP_WORK),
    cuda=reduce.logsumexp,
)


def logsumexp(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """log Σ e^x along axes without overflow; -inf where all are -inf or there is nothing; derivative softmax.

    >>> import minigan as mg
    >>> mg.ops.logsumexp(mg.tensor([1e4, 1e4])).numpy().round(3)
    np.float32(10000.693)
    """
    x = lift(x)
    return apply(_logsumexp, x, axes=axes_of("logsumexp", axis, x.ndim), keepdims=keepdims)  # type: ignore[no-any-return]


def _softmax_infer(x: Array, axes: tuple[int, ...]) -> Sequence[Spec]:
    check_float("softmax", x)
    return ((x.shape, x.dtype),)


def _softmax_kernel(outs: Sequence[Array], x: Array, axes: tuple[int, ...]) -> None:
    with np.errstate(all="ignore"):
        e = np.exp(x - _shift(x, axes))
        total = add_up(e, axes, keepdims=True)
        np.divide(e, np.where(total == 0, x.dtype.type(1), total), out=outs[0])


def _softmax_vjp(gy: Any, y: Any, x: Any, axes: tuple[int, ...]) -> Any:
    return (lambda: y * (gy - sum(gy * y, axes, keepdims=True)),)


def _softmax_row(
    outs: Sequence[rows.Spec], inputs: Sequence[rows.Spec], parts: int, axes: tuple[int, ...]
) -> rows.Plan | None:
    n, m = _rows_of(inputs[0], axes)
    if not m:
        return None
    kernel, words = (
        kernel_of("softmax", "softmax_float32", inputs[0].dtype),
        (rows.Operand(0), rows.Result(0), 0, 0),
    )
    return rows.Plan(
        kernel, n, m, 0, 1, words, epilogue=len(axes) == 1, work=EXP_WORK * n * m, by_sample=True
    )


_softmax = Primitive(
    "softmax",
    _softmax_infer,
    kernel=_softmax_kernel,
    vjp=_softmax_vjp,
    smooth=True,
    flops=lambda x, axes: 4 * x.size,
    samples=tuple(Sample((Input(s),), {"axes": axes}, None, EDGES) for s, axes, _ in _AXES),
    row=_softmax_row,
    cuda=reduce.softmax,
)


def softmax(x: TensorLike, axis: Axis = -1) -> Tensor:
    """e^x / Σ e^x along axes; where all entries are -inf (a fully masked row) the result and its derivative are 0.

    >>> import minigan as mg
    >>> mg.ops.softmax(mg.tensor([1e4, 1e4, -float("inf")])).numpy()
    array([0.5, 0.5, 0. ], dtype=float32)
    """
    x = lift(x)
    return apply(_softmax, x, axes=axes_of("softmax", axis, x.ndim))  # type: ignore[no-any-return]


def log_softmax(x: TensorLike, axis: Axis = -1) -> Tensor:
    """x - logsumexp(x) along axes, the logarithm of `softmax` without its underflow; NaN where all are -inf.

    A fully masked row, where `softmax` gives 0, has no logarithm here: mask the result, not only the logits.

    >>> import minigan as mg
    >>> mg.ops.log_softmax(mg.tensor([1e4, 0.0])).numpy()
    array([     0., -10000.], dtype=float32)
    """
    x = lift(x)
    return x - logsumexp(x, axis, keepdims=True)


# Norm


def _norm_kernel(outs: Sequence[Array], x: Array, axes: tuple[int, ...], keepdims: bool) -> None:
    # Scaled by the largest entry, because the squares of float32 entries below 1e-23 or above 1e19 leave its range.
    with np.errstate(all="ignore"):
        top: Array = np.max(np.abs(x), axes, keepdims=True, initial=0)
        scale = np.where(np.isfinite(top) & (top > 0), top, x.dtype.type(1))
        ratio = x / scale
        outs[0][...] = (np.sqrt(add_up(ratio * ratio, axes, keepdims=True)) * scale).reshape(outs[0].shape)


def _norm_vjp(gy: Any, y: Any, x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
    def gx() -> Any:
        # Below the smallest normal number 1 / length overflows, and a second derivative would be inf - inf.
        length = spread(y, x.shape, axes)
        none = length < float(np.finfo(x.dtype).tiny)
        direction = where(none, 0.0, x / where(none, 1.0, length))
        return spread(gy, x.shape, axes) * direction

    return (gx,)


NORM = Primitive(
    "norm",
    infer_reduction("norm"),
    kernel=_norm_kernel,
    vjp=_norm_vjp,
    smooth=True,
    flops=lambda x, axes, keepdims: 3 * x.size,
    samples=_reduction_samples(low=0.3),
    cuda=reduce.norm,
)


def norm(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The Euclidean length sqrt(Σ x²) along axes, scaled against overflow and underflow.

    Derivative x / norm, and 0 where the norm is 0 or below the smallest normal number of the dtype.

    >>> import minigan as mg
    >>> round(mg.ops.norm(mg.tensor([3e-30, 4e-30])).item() / 5e-30, 6)
    1.0
    """
    x = lift(x)
    return apply(NORM, x, axes=axes_of("norm", axis, x.ndim), keepdims=keepdims)  # type: ignore[no-any-return]


# Cumulative sum: its adjoint runs the other way


def _cumsum_kernel(outs: Sequence[Array], x: Array, axis: int, reverse: bool) -> None:
    order = (slice(None),) * axis + (slice(None, None, -1 if reverse else 1),)
    np.copyto(outs[0][order], np.cumsum(x[order], axis, np.float64), casting="same_kind")


_cumsum: Primitive = Primitive(
    "cumsum",
    lambda x, axis, reverse: same_spec(x),
    kernel=_cumsum_kernel,
    vjp=lambda gy, y, x, axis, reverse: (lambda: apply(_cumsum, gy, axis=axis, reverse=not reverse),),
    linear=(0,),
    smooth=True,
    flops=lambda x, axis, reverse: x.size,
    samples=tuple(
        Sample((Input(s),), {"axis": axis, "reverse": reverse})
        for s, axis, reverse in (((2, 3), 1, False), ((3, 2), 0, True), ((0, 2), 0, False))
    ),
    cuda=sorting.cumsum,
)


def cumsum(x: TensorLike, axis: int = -1) -> Tensor:
    """The running sum along one axis: element k is x₀ + … + x_k, added in float64.

    >>> import minigan as mg
    >>> mg.ops.cumsum(mg.tensor([1.0, 2.0, 3.0])).numpy()
    array([1., 3., 6.], dtype=float32)
    """
    x = lift(x)
    check_float("cumsum", x.array)
    return apply(_cumsum, x, axis=axis_of("cumsum", axis, x.ndim), reverse=False)  # type: ignore[no-any-return]


# Sorting: positions without a derivative, then a gather with its adjoint


def _argsort_kernel(outs: Sequence[Array], x: Array, axis: int, descending: bool) -> None:
    outs[0][...] = np.argsort(-x if descending else x, axis, kind="stable")


_argsort = Primitive(
    "argsort",
    lambda x, axis, descending: ((x.shape, np.int64),),
    kernel=_argsort_kernel,
    samples=tuple(Sample((Input((2, 4)),), {"axis": 1, "descending": d}) for d in (False, True)),
    cuda=sorting.argsort,
)


def _gather_infer(x: Array, indices: Array, axis: int) -> Sequence[Spec]:
    if indices.dtype.kind not in "iu":
        raise DTypeError(f"gather: indices have dtype {indices.dtype}, expected integers")
    if x.ndim != indices.ndim or reduced(x.shape, (axis,), False) != reduced(indices.shape, (axis,), False):
        raise ShapeError(f"gather: shapes {x.shape} and {indices.shape} differ beside axis {axis}")
    return ((indices.shape, x.dtype),)


def _along(indices: Array, axis: int) -> tuple[Array, ...]:
    grid = np.ogrid[tuple(slice(n) for n in indices.shape)]
    return tuple(indices if a == axis else grid[a] for a in range(indices.ndim))


def _gather_adjoint_kernel(
    outs: Sequence[Array], gy: Array, indices: Array, axis: int, shape: tuple[int, ...]
) -> None:
    add_at(outs[0], _along(indices, axis), gy, indices.shape[axis])


_GATHERS = (((2, 4), (2, 3), 1), ((3, 2), (5, 2), 0))
_gather = Primitive(
    "gather",
    _gather_infer,
    kernel=lambda outs, x, indices, axis: np.copyto(outs[0], x[_along(indices, axis)]),
    vjp=lambda gy, y, x, indices, axis: (
        lambda: apply(_gather_adjoint, gy, indices, axis=axis, shape=x.shape),
        None,
    ),
    linear=(0,),
    samples=tuple(
        Sample((Input(s), Input(i, "index", high=s[axis])), {"axis": axis}) for s, i, axis in _GATHERS
    ),
    cuda=index.gather,
)
_gather_adjoint: Primitive = Primitive(
    "gather_adjoint",
    lambda gy, indices, axis, shape: ((shape, gy.dtype),),
    kernel=_gather_adjoint_kernel,
    vjp=lambda gy, y, x, indices, axis, shape: (lambda: apply(_gather, gy, indices, axis=axis), None),
    linear=(0,),
    flops=lambda gy, indices, axis, shape: gy.size,
    samples=tuple(
        Sample((Input(i), Input(i, "index", high=s[axis])), {"axis": axis, "shape": s})
        for s, i, axis in _GATHERS
    ),
    cuda=index.gather_adjoint,
)


def argsort(x: TensorLike, axis: int = -1, descending: bool = False) -> Tensor:
    """The int64 positions that sort x along one axis; ties keep their order, NaN comes last; no derivative.

    >>> import minigan as mg
    >>> mg.ops.argsort(mg.tensor([3.0, 1.0, 2.0])).numpy()
    array([1, 2, 0])
    """
    x = lift(x)
    check_float("argsort", x.array)
    return apply(_argsort, x, axis=axis_of("argsort", axis, x.ndim), descending=descending)  # type: ignore[no-any-return]


def sort(x: TensorLike, axis: int = -1, descending: bool = False) -> Tensor:
    """x in order along one axis, NaN last; the derivative goes back to where each element came from.

    >>> import minigan as mg
    >>> mg.ops.sort(mg.tensor([3.0, 1.0, 2.0]), descending=True).numpy()
    array([3., 2., 1.], dtype=float32)
    """
    x = lift(x)
    positions = argsort(x, axis, descending)
    return apply(_gather, x, positions, axis=axis_of("sort", axis, x.ndim))  # type: ignore[no-any-return]


def topk(x: TensorLike, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    """The k largest elements along an axis, in descending order, and their int64 positions.

    `ShapeError` unless 0 <= k <= the size of the axis.

    >>> import minigan as mg
    >>> values, positions = mg.ops.topk(mg.tensor([1.0, 3.0, 2.0]), 2)
    >>> values.numpy(), positions.numpy()
    (array([3., 2.], dtype=float32), array([1, 2]))
    """
    x = lift(x)
    k, axis = integer("topk", "k", k), axis_of("topk", axis, x.ndim)
    if not 0 <= k <= x.shape[axis]:
        raise ShapeError(f"topk: k = {k}, but axis {axis} of shape {x.shape} has {x.shape[axis]} elements")
    positions = argsort(x, axis, descending=True)[(slice(None),) * axis + (slice(k),)]
    return apply(_gather, x, positions, axis=axis), positions
