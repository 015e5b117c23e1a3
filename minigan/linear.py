"""The linear primitives that tensors and derivative rules lean on, each next to its adjoint: cast, sum and broadcast,
reshape, transpose, slice and its adjoint, take and scatter, matrix product.

The adjoint A* of a linear map A has <A x, y> = <x, A* y>: it is the map's derivative rule, and the rule of the adjoint
is the map again, so these few primitives are closed under differentiation of any order. The rules call `apply`
directly; the functions that users call, with their docstrings, are in `minigan.tensor` and `minigan.ops`.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from minigan.backend import FLOATS, Array, Spec, broadcast_view, device_of, moved
from minigan.cuda import index, product, reduce
from minigan.errors import DTypeError, ShapeError
from minigan.kernels.launch import may_build, numba
from minigan.kernels.matrix import stacked
from minigan.pointwise import broadcast, check_float
from minigan.tape import Input, Primitive, Sample, Thunk, Value, apply, copy
from minigan.trace import state

Axis = int | Sequence[int] | None

# Cast: its adjoint is the cast back


def _cast_kernel(outs: Sequence[Array], x: Array, dtype: Any) -> None:
    with np.errstate(all="ignore"):  # too large for float32 is inf, as everywhere in IEEE arithmetic
        np.copyto(outs[0], x, casting="unsafe")


CAST: Primitive = Primitive(
    "cast",
    lambda x, dtype: ((x.shape, dtype),),
    kernel=_cast_kernel,
    vjp=lambda gy, y, x, dtype: (
        (lambda: apply(CAST, gy, dtype=x.dtype)) if x.dtype in FLOATS and dtype in FLOATS else None,
    ),
    linear=(0,),
    samples=(
        Sample((Input((2, 3)),), {"dtype": np.dtype(np.float64)}),
        Sample((Input((2, 3), "bool"),), {"dtype": np.dtype(np.float64)}),
    ),
    cuda=index.cast,
)


# Sum and broadcast

_add_reduce: Any = np.add.reduce  # what `np.sum` calls after 4 us of its own
MANY_TERMS = 512  # that float32 may add one by one: at most 512 · 2^-25 = 1.5e-5 off


def axes_of(name: str, axis: Axis, ndim: int) -> tuple[int, ...]:
    """Axes as a sorted tuple of non-negative numbers; `ShapeError` for one that is not there or stands twice."""
    if axis is None:
        return tuple(range(ndim))
    try:
        return tuple(sorted(normalize_axis_tuple(axis, ndim)))
    except (ValueError, TypeError) as error:
        raise ShapeError(f"{name}: axis {axis} of an array with {ndim} axes: {error}") from None


def integer(name: str, what: str, value: object) -> int:
    """`value` as an int if it is any kind of integer, else `ShapeError`."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ShapeError(f"{name}: {what} {value!r} is not an integer") from None


def axis_of(name: str, axis: object, ndim: int) -> int:
    """One axis as a non-negative number; `ShapeError` for anything but one integer that names an axis."""
    return axes_of(name, integer(name, "axis", axis), ndim)[0]


def reduced(shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
    """What is left of `shape` when `axes` are reduced."""
    if keepdims:
        return tuple(1 if a in axes else n for a, n in enumerate(shape))
    return tuple(n for a, n in enumerate(shape) if a not in axes)


def spread(gy: Value, shape: tuple[int, ...], axes: tuple[int, ...]) -> Any:
    """The result of a reduction over `axes`, broadcast back to the `shape` that was reduced."""
    if gy.array.ndim:
        gy = same_elements(gy, reduced(shape, axes, keepdims=True))
    return expand(gy, shape)


def unbroadcast(gx: Value, shape: tuple[int, ...]) -> Any:
    """The adjoint of broadcasting `shape` to the shape of `gx`: sums over the axes that were repeated."""
    large = gx.array.shape
    if large == shape:
        return gx
    extra = len(large) - len(shape)
    axes = tuple(a for a, n in enumerate(large) if a < extra or (shape[a - extra] == 1 and n != 1))
    return same_elements(apply(SUM, gx, axes=axes, keepdims=False), shape)


def expand(x: Value, shape: tuple[int, ...]) -> Any:
    """`x` broadcast to `shape`."""
    return x if x.array.shape == shape else apply(BROADCAST_TO, x, shape=shape)


def infer_reduction(name: str, empty: bool = True) -> Callable[..., Sequence[Spec]]:
    """The shape rule of a reduction over axes; `empty` tells whether nothing can be reduced."""

    def infer(x: Array, axes: tuple[int, ...], keepdims: bool) -> Sequence[Spec]:
        check_float(name, x)
        if not empty and any(x.shape[a] == 0 for a in axes):
            raise ShapeError(f"{name}: shape {x.shape} has no elements along axes {axes}")
        return ((reduced(x.shape, axes, keepdims), x.dtype),)

    return infer


def add_up(x: Array, axes: tuple[int, ...], keepdims: bool, out: Array | None = None) -> Array:
    """The sum over axes, in float64 in between where float32 would add many terms one by one."""
    if x.dtype == np.float32 and _rows(x, axes) > MANY_TERMS:
        wide = _add_reduce(x, axes, np.float64, keepdims=keepdims)
        if out is None:
            return np.asarray(wide, np.float32)
        np.copyto(out, wide, casting="same_kind")
        return out
    total: Array = _add_reduce(x, axes, None, out, keepdims)
    return total


def _rows(x: Array, axes: tuple[int, ...]) -> int:
    """How many partial sums `np.sum` adds one after the other.

    It adds pairwise only along the axis that is innermost in memory, together with those that continue it without a
    gap, and only if that is one of `axes`; the rounding errors of the others grow with the number of terms.
    """
    rows: int = math.prod([x.shape[a] for a in axes])
    if rows > MANY_TERMS:
        inner = sorted((abs(x.strides[a]), a) for a, n in enumerate(x.shape) if n > 1)
        step = x.strides[inner[0][1]]
        for _, a in inner:
            if a not in axes or x.strides[a] != step or step == 0:
                break
            rows //= x.shape[a]
            step *= x.shape[a]
    return rows


def add_at(out: Array, key: Any, values: Array, terms: int) -> None:
    """Fill `out` with the sums of the values whose index in `key` leads there; at most `terms` of them meet."""
    if out.dtype == np.float32 and terms > MANY_TERMS:
        wide = np.zeros(out.shape, np.float64)
        np.add.at(wide, key, values.astype(np.float64))
        np.copyto(out, wide, casting="same_kind")
    else:
        out.fill(0)
        np.add.at(out, key, values)


def _sum_kernel(outs: Sequence[Array], x: Array, axes: tuple[int, ...], keepdims: bool) -> None:
    add_up(x, axes, keepdims, outs[0])


SUM = Primitive(
    "sum",
    infer_reduction("sum"),
    kernel=_sum_kernel,
    vjp=lambda gy, y, x, axes, keepdims: (lambda: spread(gy, x.shape, axes),),
    linear=(0,),
    smooth=True,
    flops=lambda x, axes, keepdims: x.size,
    samples=tuple(
        Sample((Input(shape),), {"axes": axes, "keepdims": keepdims})
        for shape, axes, keepdims in (
            ((2, 3), (0,), False),
            ((2, 3), (1,), True),
            ((2, 3, 2), (0, 2), False),
            ((), (), False),
            ((0, 3), (0,), False),
            ((3, 2), (), False),
        )
    ),
    cuda=reduce.total,
)


def _mean_kernel(outs: Sequence[Array], x: Array, axes: tuple[int, ...], keepdims: bool) -> None:
    _sum_kernel(outs, x, axes, keepdims)
    np.divide(outs[0], _count(x.shape, axes), out=outs[0])


def _count(shape: tuple[int, ...], axes: tuple[int, ...]) -> float:
    """How many elements a mean is over; NaN where there are none. Times 1 / n, a mean of ones would not be 1."""
    return float(math.prod([shape[a] for a in axes])) or math.nan


MEAN = Primitive(
    "mean",
    infer_reduction("mean"),
    kernel=_mean_kernel,
    vjp=lambda gy, y, x, axes, keepdims: (lambda: spread(gy / _count(x.shape, axes), x.shape, axes),),
    linear=(0,),
    smooth=True,
    flops=lambda x, axes, keepdims: x.size,
    samples=SUM.samples[:4],
    cuda=reduce.mean,
)


def _broadcast_infer(x: Array, shape: tuple[int, ...]) -> Sequence[Spec]:
    if broadcast("broadcast_to", x.shape, shape) != shape:
        raise ShapeError(f"broadcast_to: shape {x.shape} does not broadcast to shape {shape}")
    return ((shape, x.dtype),)


BROADCAST_TO = Primitive(
    "broadcast_to",
    _broadcast_infer,
    view=lambda x, shape: broadcast_view(x, shape),
    vjp=lambda gy, y, x, shape: (lambda: unbroadcast(gy, x.shape),),
    linear=(0,),
    samples=tuple(
        Sample((Input(shape),), {"shape": to})
        for shape, to in (((3,), (2, 3)), ((2, 1), (2, 3)), ((), (2, 2)), ((1, 3), (0, 3)))
    ),
)


# Reshape and transpose: the adjoint is the inverse


def same_elements(x: Value, shape: tuple[int, ...]) -> Any:
    """`x` in another shape, row-major; copied first only where its memory is not in that order."""
    if x.array.shape == shape:
        return x
    return apply(RESHAPE, x if x.array.flags.c_contiguous else apply(copy, x), shape=shape)


def _reshape_infer(x: Array, shape: tuple[int, ...]) -> Sequence[Spec]:
    if math.prod(shape) != x.size or min(shape, default=0) < 0:
        raise ShapeError(
            f"reshape: shape {x.shape} has {x.size} elements, shape {shape} has {math.prod(shape)}"
        )
    return ((shape, x.dtype),)


RESHAPE = Primitive(
    "reshape",
    _reshape_infer,
    view=lambda x, shape: x.reshape(shape),
    vjp=lambda gy, y, x, shape: (lambda: same_elements(gy, x.shape),),
    linear=(0,),
    samples=tuple(
        Sample((Input(shape),), {"shape": to}) for shape, to in (((2, 3), (6,)), ((), (1, 1)), ((0, 2), (0,)))
    ),
)


def _transpose_infer(x: Array, axes: tuple[int, ...]) -> Sequence[Spec]:
    if sorted(axes) != list(range(x.ndim)):
        raise ShapeError(f"transpose: axes {axes} are no permutation of the {x.ndim} axes of shape {x.shape}")
    return ((tuple(x.shape[a] for a in axes), x.dtype),)


TRANSPOSE: Primitive = Primitive(
    "transpose",
    _transpose_infer,
    view=lambda x, axes: x.transpose(axes),
    vjp=lambda gy, y, x, axes: (lambda: apply(TRANSPOSE, gy, axes=tuple(np.argsort(axes).tolist())),),
    linear=(0,),
    samples=(Sample((Input((2, 3)),), {"axes": (1, 0)}), Sample((Input((2, 1, 3)),), {"axes": (2, 0, 1)})),
)


# Slice and its adjoint, which puts the slice back into zeros


def _slice_infer(x: Array, key: tuple[Any, ...]) -> Sequence[Spec]:
    try:
        return ((x[key].shape, x.dtype),)
    except IndexError as error:
        raise ShapeError(f"index: {error} (shape {x.shape})") from None


def _unslice_kernel(outs: Sequence[Array], gy: Array, key: tuple[Any, ...], shape: tuple[int, ...]) -> None:
    outs[0].fill(0)
    outs[0][key] = gy


_KEYS: tuple[tuple[tuple[int, ...], tuple[Any, ...]], ...] = (
    ((3, 4), (1, ...)),
    ((3, 4), (slice(None, None, -2), None, ..., slice(1, 3))),
    ((3, 4), (slice(2, 2), ...)),
    ((2, 3), (1, -1, ...)),
)
SLICE = Primitive(
    "slice",
    _slice_infer,
    view=lambda x, key: x[key],
    vjp=lambda gy, y, x, key: (lambda: apply(UNSLICE, gy, key=key, shape=x.shape),),
    linear=(0,),
    samples=tuple(Sample((Input(shape),), {"key": key}) for shape, key in _KEYS),
)
UNSLICE: Primitive = Primitive(
    "unslice",
    lambda gy, key, shape: ((shape, gy.dtype),),
    kernel=_unslice_kernel,
    vjp=lambda gy, y, x, key, shape: (lambda: apply(SLICE, gy, key=key),),
    linear=(0,),
    samples=tuple(
        Sample((Input(np.empty(shape)[key].shape),), {"key": key, "shape": shape}) for shape, key in _KEYS
    ),
    cuda=index.unslice,
)


# Take along an axis and its adjoint, which adds into zeros


def _take_infer(x: Array, indices: Array, axis: int) -> Sequence[Spec]:
    if indices.dtype.kind not in "iu":
        raise DTypeError(f"take: indices have dtype {indices.dtype}, expected integers")
    check_indices("take", indices, x.shape[axis])
    return ((x.shape[:axis] + indices.shape + x.shape[axis + 1 :], x.dtype),)


def index_values(indices: Array) -> Array:
    """The indices for a check: those on a GPU are fetched, but those of a step being captured have no values: none."""
    if device_of(indices) == "cpu":
        return indices
    capturing = state.recorder is not None and state.recorder.composes
    return np.empty(0, indices.dtype) if capturing else moved(indices, "cpu")


def check_indices(name: str, indices: Array, size: int, negative: bool = True) -> None:
    """Raise `ShapeError` for an index outside -size .. size - 1, or 0 .. size - 1 without `negative`, naming it."""
    indices = index_values(indices)
    first = -size if negative else 0
    if indices.size and (indices.min() < first or indices.max() >= size):
        wrong = indices[(indices < first) | (indices >= size)].flat[0]
        raise ShapeError(f"{name}: index {wrong} is not in {first} to {size - 1}, for an axis of size {size}")


def _take_kernel(outs: Sequence[Array], x: Array, indices: Array, axis: int) -> None:
    # "wrap" is right for the negative indices that passed the range check, and does not buffer as "raise" does
    np.take(x, indices, axis, out=outs[0], mode="wrap")


def _scatter_kernel(
    outs: Sequence[Array], gy: Array, indices: Array, axis: int, shape: tuple[int, ...]
) -> None:
    add_at(outs[0], (slice(None),) * axis + (indices,), gy, indices.size)


_TAKES = (((4, 3), (2,), 0), ((2, 4), (2, 2), 1), ((5,), (), 0), ((3, 2), (0,), 0))
TAKE = Primitive(
    "take",
    _take_infer,
    kernel=_take_kernel,
    vjp=lambda gy, y, x, indices, axis: (
        lambda: apply(SCATTER, gy, indices, axis=axis, shape=x.shape),
        None,
    ),
    linear=(0,),
    samples=tuple(
        Sample((Input(shape), Input(indices, "index", high=shape[axis])), {"axis": axis})
        for shape, indices, axis in _TAKES
    ),
    cuda=index.take,
)
SCATTER: Primitive = Primitive(
    "scatter",
    lambda gy, indices, axis, shape: ((shape, gy.dtype),),
    kernel=_scatter_kernel,
    vjp=lambda gy, y, x, indices, axis, shape: (lambda: apply(TAKE, gy, indices, axis=axis), None),
    linear=(0,),
    flops=lambda gy, indices, axis, shape: gy.size,
    samples=tuple(
        Sample(
            (Input(shape[:axis] + indices + shape[axis + 1 :]), Input(indices, "index", high=shape[axis])),
            {"axis": axis, "shape": shape},
        )
        for shape, indices, axis in _TAKES
    ),
    cuda=index.scatter,
)


# Matrix product: linear in each factor, and closed under differentiation because a factor may be taken transposed


def _matmul_infer(a: Array, b: Array, ta: bool, tb: bool) -> Sequence[Spec]:
    check_float("matmul", a)
    check_float("matmul", b)
    rows, inner = a.shape[:-3:-1] if ta else a.shape[-2:]
    meets, columns = b.shape[:-3:-1] if tb else b.shape[-2:]
    if inner != meets:
        raise ShapeError(
            f"matmul: shapes {a.shape}{'ᵀ' * ta} and {b.shape}{'ᵀ' * tb}: {inner} columns meet {meets} rows"
        )
    stack = a.shape[:-2]
    if stack != b.shape[:-2]:
        stack = broadcast("matmul", a.shape[:-2], b.shape[:-2])
    return (((*stack, rows, columns), a.dtype),)


def _matmul_kernel(outs: Sequence[Array], a: Array, b: Array, ta: bool, tb: bool) -> None:
    a, b = a.mT if ta else a, b.mT if tb else b
    if not may_build() or not _compiled_product()(outs[0], a, b):
        np.matmul(a, b, out=outs[0])


@functools.cache
def _compiled_product() -> Callable[[Array, Array, Array], bool]:
    if numba() is None:
        return lambda c, a, b: False
    from minigan.kernels.product import matmul  # here, because it imports Numba

    return matmul


def _matmul_vjp(gy: Value, y: Value, a: Value, b: Value, ta: bool, tb: bool) -> Sequence[Thunk]:
    def ga() -> Any:
        g = apply(MATMUL, b, gy, ta=tb, tb=True) if ta else apply(MATMUL, gy, b, ta=False, tb=not tb)
        return unbroadcast(g, a.array.shape)

    def gb() -> Any:
        g = apply(MATMUL, gy, a, ta=True, tb=ta) if tb else apply(MATMUL, a, gy, ta=not ta, tb=False)
        return unbroadcast(g, b.array.shape)

    return ga, gb


def _matmul_flops(a: Array, b: Array, ta: bool, tb: bool) -> int:
    ((shape, _),) = _matmul_infer(a, b, ta, tb)
    return 2 * math.prod(shape) * int(a.shape[-2 if ta else -1])


MATMUL = Primitive(
    "matmul",
    _matmul_infer,
    kernel=_matmul_kernel,
    vjp=_matmul_vjp,
    linear=(0, 1),
    smooth=True,
    flops=_matmul_flops,
    samples=tuple(
        Sample((Input(a), Input(b)), {"ta": ta, "tb": tb})
        for a, b, ta, tb in (
            ((2, 3), (3, 4), False, False),
            ((3, 2), (3, 4), True, False),
            ((2, 3), (4, 3), False, True),
            ((3, 2), (4, 3), True, True),
            ((2, 0), (0, 3), False, False),
            ((2, 2, 3), (3, 2), False, False),
            ((2, 1, 2, 3), (3, 1, 3), False, True),
            ((1, 1), (1, 1), False, False),
            ((1, 3, 1, 2), (2, 1, 2, 3), False, False),
            ((2, 3, 2), (2, 3, 2), True, False),
        )
    ),
    row=stacked,
    cuda=product.matmul,
)
