"""The primitives that compare and those that join masks: boolean results, without derivatives."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigan.backend import Array, Spec
from minigan.errors import DTypeError
from minigan.kernels.loops import Formula
from minigan.pointwise import broadcast
from minigan.tape import Input, Primitive, Sample

_SHAPES: tuple[Any, ...] = (((2, 3), (2, 3)), ((2, 3), (3,)), ((0,), ()))


def _boolean(ufunc: Any, kind: str) -> Callable[[Callable[..., Any]], Primitive]:
    """Make the decorated formula of two operands a primitive, computed by `ufunc` where it is not part of a loop.

    kind: of the operands: "float", which stands for numbers, labels and masks alike, or "bool" for masks only.
    """

    def declare(function: Callable[..., Any]) -> Primitive:
        formula = Formula(function)
        name = formula.name = formula.name.lower()

        def infer(a: Array, b: Array) -> Sequence[Spec]:
            for array in (a, b):
                if kind == "bool" and array.dtype != np.bool_:
                    raise DTypeError(f"{name}: an array of dtype {array.dtype} is no mask: use .astype(bool)")
            return ((a.shape if a.shape == b.shape else broadcast(name, a.shape, b.shape), np.bool_),)

        return Primitive(
            name,
            infer,
            kernel=lambda outs, a, b: ufunc(a, b, out=outs[0]),
            flops=(lambda a, b: max(a.size, b.size)) if kind == "float" else (lambda a, b: 0),
            samples=tuple(Sample((Input(s, kind), Input(t, kind))) for s, t in _SHAPES),
            formula=formula,
        )

    return declare


@_boolean(np.greater, "float")
def GREATER(a: Any, b: Any) -> Any:
    """a > b."""
    return a > b


@_boolean(np.greater_equal, "float")
def GREATER_EQUAL(a: Any, b: Any) -> Any:
    """a >= b."""
    return a >= b


@_boolean(np.equal, "float")
def EQUAL(a: Any, b: Any) -> Any:
    """a == b."""
    return a == b


@_boolean(np.not_equal, "float")
def NOT_EQUAL(a: Any, b: Any) -> Any:
    """a != b."""
    return a != b


@_boolean(np.logical_and, "bool")
def LOGICAL_AND(a: Any, b: Any) -> Any:
    """Both."""
    return a & b


@_boolean(np.logical_or, "bool")
def LOGICAL_OR(a: Any, b: Any) -> Any:
    """Either."""
    return a | b


@_boolean(np.logical_xor, "bool")
def LOGICAL_XOR(a: Any, b: Any) -> Any:
    """One, but not both."""
    return a ^ b
