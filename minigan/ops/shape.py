"""Operations that join, split, pad and contract arrays."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from minigan.backend import FLOATS, Array, Spec, moved
from minigan.cuda import index, product
from minigan.errors import DTypeError, ShapeError
from minigan.linear import SLICE, UNSLICE, axis_of, expand, index_values, integer, same_elements
from minigan.pointwise import check_float
from minigan.tape import Input, Primitive, Sample, apply
from minigan.tensor import Tensor, TensorLike, cast, lift, pair, where

# Concatenate


def _concatenate_infer(*arrays: Array, axis: int) -> Sequence[Spec]:
    first = arrays[0]
    total = 0
    for array in arrays:
        if array.dtype != first.dtype:
            raise DTypeError(f"concatenate: dtypes {first.dtype} and {array.dtype} differ: use .astype")
        if array.ndim != first.ndim or any(
            a != b for k, (a, b) in enumerate(zip(array.shape, first.shape, strict=True)) if k != axis
        ):
            raise ShapeError(f"concatenate: shapes {first.shape} and {array.shape} differ beside axis {axis}")
        total += array.shape[axis]
    return (((*first.shape[:axis], total, *first.shape[axis + 1 :]), first.dtype),)


def _concatenate_vjp(gy: Any, y: Any, *xs: Any, axis: int) -> Any:
    ends = np.cumsum([x.shape[axis] for x in xs]).tolist()
    lead = (slice(None),) * axis
    return [
        (lambda key=(*lead, slice(end - x.shape[axis], end), ...): apply(SLICE, gy, key=key))
        for x, end in zip(xs, ends, strict=True)
    ]


_concatenate = Primitive(
    "concatenate",
    _concatenate_infer,
    kernel=lambda outs, *arrays, axis: np.concatenate(arrays, axis, out=outs[0]),
    vjp=_concatenate_vjp,
    samples=tuple(
        Sample(tuple(Input(shape) for shape in shapes), {"axis": axis})
        for shapes, axis in ((((2, 3), (1, 3)), 0), (((2, 1), (2, 0), (2, 2)), 1), (((3,),), 0))
    ),
    cuda=index.concatenate,
)


def concatenate(tensors: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """Tensors joined along an existing axis; their other sizes are equal, else `ShapeError`.

    float32 with float64 gives float64; any other dtypes must be equal.

    >>> import minigan as mg
    >>> mg.ops.concatenate([mg.tensor([1.0]), mg.tensor([2.0, 3.0])]).numpy()
    array([1., 2., 3.], dtype=float32)
    """
    xs = [lift(x) for x in tensors]
    if not xs:
        raise ShapeError("concatenate: there are no tensors to join")
    if not xs[0].ndim:
        raise ShapeError("concatenate: tensors of shape () have no axis to join along: use stack")
    if all(x.dtype in FLOATS for x in xs) and any(x.dtype == np.float64 for x in xs):
        xs = [cast(x, np.float64) for x in xs]
    return apply(_concatenate, *xs, axis=axis_of("concatenate", axis, xs[0].ndim))  # type: ignore[no-any-return]


def stack(tensors: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """Tensors of one shape joined along a new axis; `ShapeError` if the shapes differ; dtypes as for `concatenate`.

    >>> import minigan as mg
    >>> mg.ops.stack([mg.tensor([1.0, 2.0]), mg.tensor([3.0, 4.0])], axis=1).numpy()
    array([[1., 3.],
           [2., 4.]], dtype=float32)
    """
    xs = [lift(x) for x in tensors]
    if not xs:
        raise ShapeError("stack: there are no tensors to join")
    at = axis_of("stack", axis, xs[0].ndim + 1)
    for x in xs:
        if x.shape != xs[0].shape:
            raise ShapeError(f"stack: shapes {xs[0].shape} and {x.shape} differ")
    return concatenate([same_elements(x, (*x.shape[:at], 1, *x.shape[at:])) for x in xs], at)


def split(x: TensorLike, sizes: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """x cut along an axis into `sizes` equal parts, or into parts of the given sizes; views.

    `ShapeError` if the sizes do not add up to that of the axis.

    >>> import minigan as mg
    >>> [part.shape for part in mg.ops.split(mg.tensor([1.0, 2.0, 3.0]), [1, 2])]
    [(1,), (2,)]
    """
    x = lift(x)
    at = axis_of("split", axis, x.ndim)
    length = x.shape[at]
    if isinstance(sizes, Iterable) and np.ndim(sizes):
        sizes = [integer("split", "size", n) for n in sizes]
    else:
        parts = integer("split", "number of parts", sizes)
        if parts < 1 or length % parts:
            raise ShapeError(f"split: an axis of size {length} does not divide into {parts} equal parts")
        sizes = [length // parts] * parts
    if min(sizes, default=0) < 0 or sum(sizes) != length:
        raise ShapeError(f"split: sizes {sizes} add up to {sum(sizes)}, the axis has size {length}")
    ends = np.cumsum(sizes).tolist()
    return [x[(slice(None),) * at + (slice(end - size, end),)] for size, end in zip(sizes, ends, strict=True)]


def pad(x: TensorLike, widths: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """x with `widths[a] = (before, after)` entries of `value` added along each axis a.

    `ShapeError` unless there is one pair of non-negative widths for each axis, `DTypeError` for integers and booleans.

    >>> import minigan as mg
    >>> mg.ops.pad(mg.tensor([1.0, 2.0]), [(1, 2)]).numpy()
    array([0., 1., 2., 0., 0.], dtype=float32)
    """
    x = lift(x)
    check_float("pad", x.array)
    if len(widths) != x.ndim or any(w < 0 for both in widths for w in both):
        raise ShapeError(
            f"pad: widths {list(widths)} for shape {x.shape}: expected {x.ndim} non-negative pairs"
        )
    key: Any = (*(slice(before, before + n) for (before, _), n in zip(widths, x.shape, strict=True)), ...)
    shape = tuple(before + n + after for (before, after), n in zip(widths, x.shape, strict=True))
    padded: Tensor = apply(UNSLICE, x, key=key, shape=shape)
    if value == 0.0:
        return padded
    inside = np.zeros(shape, np.bool_)
    inside[key] = True
    return where(Tensor(moved(inside, x.device)), padded, value)


def _one_hot_infer(labels: Array, classes: int, dtype: Any) -> Sequence[Spec]:
    if labels.dtype.kind not in "iu":
        raise DTypeError(f"one_hot: labels have dtype {labels.dtype}, expected integers")
    values = index_values(labels)
    if values.size and (values.min() < 0 or values.max() >= classes):
        raise ShapeError(
            f"one_hot: labels from {values.min()} to {values.max()} do not fit classes 0 to {classes - 1}"
        )
    return (((*labels.shape, classes), dtype),)


def _one_hot_kernel(outs: Sequence[Array], labels: Array, classes: int, dtype: Any) -> None:
    outs[0][...] = labels.astype(np.int64)[..., None] == np.arange(classes)


_one_hot = Primitive(
    "one_hot",
    _one_hot_infer,
    kernel=_one_hot_kernel,
    samples=tuple(
        Sample((Input(shape, "index", high=3),), {"classes": 4, "dtype": dtype})
        for shape, dtype in (((2, 3), FLOATS[0]), ((), FLOATS[1]), ((0,), FLOATS[0]))
    ),
    cuda=index.one_hot,
)


def one_hot(labels: TensorLike, classes: int, dtype: Any = np.float32) -> Tensor:
    """1 in the column of each label and 0 elsewhere.

    labels: integers of any shape in 0 .. classes - 1, else `ShapeError`; result: labels.shape + (classes,).

    >>> import minigan as mg, numpy as np
    >>> mg.ops.one_hot(np.array([1, 0]), 3).numpy()
    array([[0., 1., 0.],
           [1., 0., 0.]], dtype=float32)
    """
    return apply(_one_hot, lift(labels), classes=classes, dtype=np.dtype(dtype))  # type: ignore[no-any-return]


# Einsum


def _einsum_infer(*arrays: Array, terms: tuple[str, ...], result: str) -> Sequence[Spec]:
    sizes: dict[str, int] = {}
    for array, term in zip(arrays, terms, strict=True):
        check_float("einsum", array)
        for letter, n in zip(term, array.shape, strict=True):
            if sizes.setdefault(letter, n) != n:
                raise ShapeError(
                    f"einsum: index {letter!r} has sizes {sizes[letter]} and {n} in {','.join(terms)}->{result}"
                )
    return ((tuple(sizes[letter] for letter in result), arrays[0].dtype),)


def _einsum_kernel(outs: Sequence[Array], *arrays: Array, terms: tuple[str, ...], result: str) -> None:
    # "optimize" goes through tensordot, so through the matrix product, wherever two operands are contracted
    outs[0][...] = np.einsum(f"{','.join(terms)}->{result}", *arrays, optimize=True)


def _einsum_vjp(gy: Any, y: Any, *xs: Any, terms: tuple[str, ...], result: str) -> Any:
    def gx(position: int) -> Any:
        others = [(x, term) for k, (x, term) in enumerate(zip(xs, terms, strict=True)) if k != position]
        x, term = xs[position], terms[position]
        known = {letter for t in (result, *(t for _, t in others)) for letter in t}
        there = "".join(letter for letter in term if letter in known)
        g = apply(_einsum, gy, *(o for o, _ in others), terms=(result, *(t for _, t in others)), result=there)
        # An index of this operand alone was summed over: its derivative is the same along that axis.
        kept = tuple(n if letter in known else 1 for letter, n in zip(term, x.shape, strict=True))
        return expand(same_elements(g, kept), x.shape)

    return [(lambda k=k: gx(k)) for k in range(len(xs))]


def _einsum_flops(*arrays: Array, terms: tuple[str, ...], result: str) -> int:
    sizes = {
        a: n
        for array, term in zip(arrays, terms, strict=True)
        for a, n in zip(term, array.shape, strict=True)
    }
    return len(arrays) * int(math.prod(sizes.values()))


_einsum = Primitive(
    "einsum",
    _einsum_infer,
    kernel=_einsum_kernel,
    vjp=_einsum_vjp,
    smooth=True,
    flops=_einsum_flops,
    cuda=product.einsum,
    samples=tuple(
        Sample(tuple(Input(s) for s in shapes), {"terms": terms, "result": result})
        for shapes, terms, result in (
            (((2, 3), (3, 4)), ("ij", "jk"), "ik"),
            (((2, 3), (2, 3)), ("ij", "ij"), ""),
            (((2, 3), (4,)), ("ij", "k"), "ki"),
            (((2, 3), (3,), (2,)), ("ij", "j", "i"), "i"),
            (((2, 3),), ("ij",), "ji"),
        )
    ),
)

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def einsum(subscripts: str, *tensors: TensorLike) -> Tensor:
    """Products of tensors summed over indices, in NumPy's notation: "ij,jk->ik" is the matrix product.

    Repeated indices of one operand take its diagonal, and without "->" the result has the indices that occur once, in
    alphabetical order. "..." stands for any number of axes, the last ones of which operands share; their sizes are
    equal, none is broadcast. Indices are ASCII letters. `ShapeError` for what does not fit.

    >>> import minigan as mg
    >>> mg.ops.einsum("ii->", mg.tensor([[1.0, 2.0], [3.0, 4.0]])).item()
    5.0
    """
    xs = [lift(x) for x in tensors]
    for k in range(1, len(xs)):
        xs[0], xs[k] = pair(xs[0], xs[k])
    xs = [x if x.dtype == xs[0].dtype else cast(x, xs[0].dtype) for x in xs]
    left, arrow, result = subscripts.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(xs):
        raise ShapeError(f"einsum: {subscripts!r} has {len(terms)} operands, {len(xs)} were given")
    spare = [letter for letter in _LETTERS if letter not in subscripts]
    shared = max((x.ndim - len(t.replace("...", "")) for x, t in zip(xs, terms, strict=True)), default=0)
    for k, (x, term) in enumerate(zip(xs, terms, strict=True)):
        leading = x.ndim - len(term.replace("...", ""))
        if leading < 0 or (leading and "..." not in term):
            raise ShapeError(f"einsum: {term!r} does not name the {x.ndim} axes of shape {x.shape}")
        terms[k] = term.replace("...", "".join(spare[shared - leading : shared]))
    if not arrow:
        letters = "".join(t.replace("...", "") for t in left.split(","))
        result = ("..." if "..." in left else "") + "".join(
            sorted(a for a in set(letters) if letters.count(a) == 1)
        )
    result = result.replace("...", "".join(spare[:shared]))
    if any(letter not in _LETTERS for letter in "".join(terms) + result):
        raise ShapeError(f"einsum: {subscripts!r} has characters that are no index letters")
    if len(set(result)) != len(result) or not set(result) <= set("".join(terms)):
        raise ShapeError(
            f"einsum: the result {result!r} of {subscripts!r} repeats an index or has an unknown one"
        )
    pairs = [_without_repeats(x, term) for x, term in zip(xs, terms, strict=True)]
    return apply(  # type: ignore[no-any-return]
        _einsum, *(x for x, _ in pairs), terms=tuple(term for _, term in pairs), result=result
    )


def _without_repeats(x: Tensor, term: str) -> tuple[Tensor, str]:
    """Replace two axes of one letter by their diagonal, which is every (n + 1)th element of the n by n square."""
    for letter in dict.fromkeys(term):
        while term.count(letter) > 1:
            a, b = [k for k, other in enumerate(term) if other == letter][:2]
            n = x.shape[a]
            if x.shape[b] != n:
                raise ShapeError(f"einsum: index {letter!r} has sizes {n} and {x.shape[b]} in {term!r}")
            rest = [k for k in range(x.ndim) if k not in (a, b)]
            square = x.transpose((*rest, a, b))
            flat = square.reshape((*(x.shape[k] for k in rest), n * n))
            x = flat[(..., slice(None, None, n + 1))]
            term = "".join(term[k] for k in rest) + letter
    return x, term
