"""A scalar formula and its derivative rule become a primitive with broadcasting, samples and costs."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigan.backend import FLOATS, Array, Spec
from minigan.errors import DTypeError, ShapeError
from minigan.kernels.loops import Formula
from minigan.tape import Input, Primitive, Sample, Thunk

EDGES = (
    0.0,
    -0.0,
    1e-40,
    -1e-40,
    88.0,
    -88.0,
    104.0,
    -104.0,
    1e4,
    -1e4,
    float("inf"),
    -float("inf"),
    float("nan"),
)
SHAPES = (((2, 3),), ((),), ((0, 3),), ((3, 1, 2),))
PAIRS = (((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 3), (2, 1)), ((3, 1), (1, 4)), ((2, 3), ()), ((0, 3), (1, 3)))
TRIPLES = (((2, 3), (2, 3), (2, 3)), ((2, 3), (3,), ()), ((2, 1), (1, 3), (2, 3)))


@functools.lru_cache(maxsize=1024)  # NumPy takes longer to find the shape than to add two small arrays
def broadcast(name: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that `shapes` broadcast to; `ShapeError` names the axis that does not fit."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        listed = " and ".join(map(str, shapes))
        for axis in range(-1, -1 - max(map(len, shapes)), -1):
            sizes = {shape[axis] for shape in shapes if len(shape) >= -axis} - {1}
            if len(sizes) > 1:
                raise ShapeError(
                    f"{name}: shapes {listed} do not broadcast: axis {axis} has sizes {sorted(sizes)}"
                ) from None
        raise ShapeError(f"{name}: shapes {listed} do not broadcast") from None


def check_float(name: str, array: Array) -> None:
    """Raise `DTypeError` for a boolean or integer array in arithmetic."""
    if array.dtype not in FLOATS:
        raise DTypeError(
            f"{name}: an array of dtype {array.dtype} is no number to compute with: use .astype(np.float32) first"
        )


def pointwise(
    vjp: Callable[..., Sequence[Thunk]] | None = None,
    *,
    ufunc: Callable[..., Any] | None = None,
    reference: Callable[..., Any] | None = None,
    attributes: dict[str, float] | None = None,
    low: float = -2.0,
    high: float = 2.0,
    draws: dict[str, Input] | None = None,
    kink: Callable[..., Any] | None = None,
    masks: int = 0,
    linear: tuple[int, ...] = (),
    smooth: bool = True,
    outputs: int = 1,
    donates: int = 0,
) -> Callable[[Callable[..., Any]], Primitive]:
    """Make the decorated formula a primitive (see `Primitive` for what is not listed here).

    Args:
        ufunc: NumPy's own function for the same formula, used where NumPy's loop is as fast as a generated one (the
            basic arithmetic, which is vectorised on every CPU that NumPy supports).
        attributes: values of the formula's keyword arguments in samples.
        low, high: the range that samples are drawn from.
        draws: how to draw the inputs of these names instead; the shape is not used.
        masks: how many of the first inputs are boolean.
        smooth: infinitely differentiable on its samples; set `False` for formulas with kinks.
        outputs, donates: numbers of outputs, and of inputs that these overwrite.
    """

    def declare(function: Callable[..., Any]) -> Primitive:
        formula = Formula(function, donates)
        name = formula.name

        def infer(*arrays: Array, **attributes: float) -> Sequence[Spec]:
            last = arrays[-1]
            dtype, shape = last.dtype, last.shape
            if dtype.kind != "f":
                check_float(name, last)
            same = True
            for position, array in enumerate(arrays[:-1]):
                if position < masks:
                    if array.dtype.kind != "b":
                        raise DTypeError(f"{name}: the condition has dtype {array.dtype}, expected bool")
                elif array.dtype is not dtype and array.dtype != dtype:
                    check_float(name, array)
                    raise DTypeError(f"{name}: dtypes {array.dtype} and {dtype} differ: use .astype")
                if array.shape != shape:
                    same = False
            if not same:
                shape = broadcast(name, *[array.shape for array in arrays])
                for position, array in enumerate(arrays[:donates]):
                    if array.shape != shape:
                        raise ShapeError(
                            f"{name}: input {position}, shape {array.shape}, cannot take shape {shape}"
                        )
            return ((shape, dtype),) * outputs

        def flops(*arrays: Array, **attributes: float) -> int:
            size = int(np.prod(np.broadcast_shapes(*(array.shape for array in arrays)), dtype=np.int64))
            return formula.operations * size

        def through_ufunc(outs: Sequence[Array], *arrays: Array) -> None:
            ufunc(*arrays, out=outs[0])  # type: ignore[misc]

        inputs = len(formula.inputs)
        shapes: Any = {1: SHAPES, 2: PAIRS, 3: TRIPLES}.get(inputs, (((2, 3),) * inputs,))
        if donates:  # what is overwritten has the result's shape
            shapes = [(shape,) * inputs for (shape,) in SHAPES]
        kinds = [Input((), "bool" if i < masks else "float", low, high) for i in range(inputs)]
        kinds = [(draws or {}).get(name, kind) for name, kind in zip(formula.inputs, kinds, strict=True)]
        samples = tuple(
            Sample(
                tuple(kind._replace(shape=shape) for shape, kind in zip(each, kinds, strict=True)),
                dict(attributes or {}),
                kink,
                EDGES,
            )
            for each in shapes
        )
        return Primitive(
            name,
            infer,
            kernel=formula if ufunc is None else through_ufunc,
            vjp=vjp,
            reference=reference,
            donates=donates,
            linear=linear,
            smooth=smooth,
            flops=flops,
            samples=samples,
            formula=formula,
        )

    return declare
