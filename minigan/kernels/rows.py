"""A row of a machine before it has addresses: what a primitive says of a kernel that computes it."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from minigan.backend import Array
from minigan.kernels.objects import Kernel


class Operand(NamedTuple):
    """A word with the address of an input."""

    number: int


class Result(NamedTuple):
    """A word with the address of an output."""

    number: int


class Scratch(NamedTuple):
    """A word with the address of memory that only this row uses."""

    nbytes: int


Word = int | Operand | Result | Scratch | Array


class Plan(NamedTuple):
    """A row: its head (see `minigan.kernels.machine`), and its words from 5 on.

    An array among the words stands for its own address. With `epilogue` the last two words are 0, or the kernel and the
    row of what is called for some rows at a time of the result as a matrix (all axes but the last, the last), as soon
    as they are complete.
    """

    kernel: Kernel
    n: int
    m: int
    split: int
    quantum: int
    words: tuple[Word, ...]
    epilogue: bool = False


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
