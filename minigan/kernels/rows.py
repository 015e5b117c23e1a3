"""A row of a machine before it has addresses: what a primitive says of a kernel that computes it."""

import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from minigan.backend import Array
from minigan.kernels.objects import Kernel, kernel_of


class Operand(NamedTuple):
    """A word with the address of an input."""

    number: int


class Result(NamedTuple):
    """A word with the address of an output."""

    number: int


class Scratch(NamedTuple):
    """A word with the address of memory that only this row uses."""

    nbytes: int


Word = int | float | Operand | Result | Scratch | Array


class Plan(NamedTuple):
    """A row: its head (see `minigan.kernels.machine`), and its words from 5 on.

    An array among the words stands for its own address, a float for its bits, and a `minigan.trace.Slot` for the
    address of its number. With `epilogue` the last two words are 0, or the kernel and the row of what is called for
    some rows at a time of the result as a matrix (all axes but the last, the last), as soon as they are complete.
    Whether threads share the work is decided by `work`, in numbers that a loop reads or writes in the same time, or by
    the call's flops if that is 0. `by_sample` says that rows of the result which belong to a place on its first axis
    need only that place of an input, if that has the axis too: at least as many axes, of which the first is as long.
    """

    kernel: Kernel
    n: int
    m: int
    split: int
    quantum: int
    words: tuple[Word, ...]
    epilogue: bool = False
    work: int = 0
    by_sample: bool = False


class Spec(Protocol):
    """What is known of an array before it has memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def strides(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> Any: ...  # noqa: D102


def row_major(arrays: Sequence[Spec]) -> bool:
    """Whether all arrays have elements, which lie in memory in row-major order without gaps."""
    for array in arrays:
        step = array.dtype.itemsize
        for n, stride in zip(reversed(array.shape), reversed(array.strides), strict=True):
            if n == 0 or (n > 1 and stride != step):
                return False
            step *= n
    return True


_own = threading.local()  # each thread's scratch memory, which would cost more to get every time anew


def _scratch(nbytes: int) -> int:
    if len(getattr(_own, "memory", "")) < nbytes + 64:
        _own.memory = np.empty(nbytes + 64, np.uint8)
        _own.address = -(-_own.memory.ctypes.data // 64) * 64
    address: int = _own.address
    return address


def run(plan: Plan, outs: Sequence[Array], inputs: Sequence[Array]) -> None:
    """Run a row that stands alone, whole, in this thread; its arrays are row-major."""
    row = np.empty(5 + len(plan.words), np.int64)
    row[:5] = plan.kernel.address, plan.n, plan.m, 2, plan.quantum
    for k, word in enumerate(plan.words, 5):
        match word:
            case int():
                row[k] = word
            case float():
                row[k : k + 1].view(np.float64)[0] = word
            case Scratch():
                row[k] = _scratch(word.nbytes)
            case Operand():
                row[k] = inputs[word.number].ctypes.data
            case Result():
                row[k] = outs[word.number].ctypes.data
            case _:
                row[k] = word.ctypes.data
    plan.kernel.function(row.ctypes.data, 0, plan.n, 0, plan.m)


def places(shape: Sequence[int], strides: Sequence[int]) -> Array:
    """Offsets of all elements of an array, in row-major order."""
    found = np.zeros(1, np.int64)
    for n, stride in zip(shape, strides, strict=True):
        found = np.add.outer(found, np.arange(n) * stride).reshape(-1)
    return found


# Copies


def copied(outs: Sequence[Spec], inputs: Sequence[Spec], parts: int) -> Plan | None:
    """The row that copies an array in any layout to one in row-major order; `None` if there are no elements."""
    (x,) = inputs
    item = x.dtype.itemsize
    if 0 in x.shape or not x.shape or x.strides[-1] % item or x.dtype.kind not in "biuf":
        return None
    *outer, m = x.shape
    n = math.prod(outer)
    words = Operand(0), places(outer, x.strides[:-1]), x.strides[-1] // item, Result(0)
    return Plan(kernel_of("copy", "copy_float32", x.dtype), n, m, 0, 1, words, work=2 * n * m, by_sample=True)
