"""What a primitive runs on a GPU: kernels and matrix products, before they have addresses.

A plan is a list of `Launch`es and `Product`s, made from shapes, strides and dtypes alone. `run` gives it memory and
runs it at once; a compiled step gives it memory of its arena and makes it a part of a CUDA graph.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minigan.backend import Array, cuda, device_of
from minigan.trace import Slot

THREADS = 256  # of a block, unless a kernel wants another number


class Operand(NamedTuple):
    """A word with the address of an input, or of a place in it, `offset` bytes on."""

    number: int
    offset: int = 0


class Result(NamedTuple):
    """A word with the address of an output, or of a place in it, `offset` bytes on."""

    number: int
    offset: int = 0


class Scratch(NamedTuple):
    """A word with the address of memory that only this plan uses: block `number` of it, the same in all its steps."""

    number: int
    nbytes: int


Word = int | float | Operand | Result | Scratch


class Launch(NamedTuple):
    """One kernel, of a grid of one axis.

    Attributes:
        name: of the function in `source`, `extern "C" __global__ void name(...)`.
        source: its text, which includes no headers; it begins with the types and functions of `minigan.cuda.text`.
        blocks, threads: of the grid.
        words: what it is called with: addresses for pointers, `long long` for integers, `double` for floats. A
            `minigan.trace.Slot`, which varies from run to run, is the address of its double.
    """

    name: str
    source: str
    blocks: int
    threads: int
    words: tuple[Word, ...]


class Product(NamedTuple):
    """C = op(A) op(B) for a stack of column-major matrices, by cuBLAS: see `minigan.backend.cuda.gemm`.

    Attributes:
        a, b, c: (address, elements from column to column, elements from matrix to matrix).
    """

    dtype: np.dtype[Any]
    transposed: tuple[bool, bool]
    sizes: tuple[int, int, int]
    a: tuple[Operand | Result | Scratch, int, int]
    b: tuple[Operand | Result | Scratch, int, int]
    c: tuple[Operand | Result | Scratch, int, int]
    batch: int


Step = Launch | Product
Plan = Sequence[Step]


def grid(n: int, threads: int = THREADS, most: int = 1 << 16) -> int:
    """How many blocks n elements need, if each thread takes one, but at most `most`, whose threads then take more."""
    return max(1, min(-(-n // threads), most))


def scratch_of(plan: Plan) -> dict[Scratch, int]:
    """The plan's own memory and its bytes."""
    found = {}
    for step in plan:
        words = step.words if isinstance(step, Launch) else (step.a[0], step.b[0], step.c[0])
        found.update({word: word.nbytes for word in words if isinstance(word, Scratch)})
    return found


def issue(
    step: Step, device: str, address: Callable[[Any], int], number: Callable[[Slot], int | float]
) -> None:
    """Put one step of a plan into the current stream.

    address: of what an `Operand`, `Result` or `Scratch` stands for.
    number: what is passed for a slot.
    """
    if isinstance(step, Launch):
        arguments: list[int | float] = []
        for word in step.words:
            if isinstance(word, (Operand, Result, Scratch)):
                arguments.append(address(word))
            else:
                arguments.append(number(word) if isinstance(word, Slot) else word)
        cuda.launch(device, step.name, step.source, step.blocks, step.threads, arguments)
        return
    a, b, c = ((address(word), *steps) for word, *steps in (step.a, step.b, step.c))
    cuda.gemm(device, step.dtype, step.transposed, step.sizes, a, b, c, step.batch)  # type: ignore[arg-type]


class _Form(NamedTuple):
    """All that a plan is made from."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


_plans: dict[Any, Plan] = {}
MANY_PLANS = 4096


def planned(
    primitive: Any, outs: Sequence[Array], inputs: Sequence[Array], attributes: dict[str, Any]
) -> Plan:
    """The plan of a call, kept for the next of its kind: to make one takes longer than to run it."""
    theirs, ours = ([_Form(x.shape, x.strides, x.dtype) for x in xs] for xs in (outs, inputs))
    # Attributes by their text, as slices are no keys, and zeros of either sign are the same one.
    key = primitive, *theirs, *ours, repr(attributes)
    plan = _plans.get(key)
    if plan is None:
        if len(_plans) >= MANY_PLANS:
            _plans.clear()
        plan = _plans[key] = primitive.plan(theirs, ours, attributes)
    return plan


def run(plan: Plan, outs: Sequence[Array], inputs: Sequence[Array]) -> None:
    """Run a plan on arrays of one device."""
    device = device_of(outs[0])
    needed = scratch_of(plan)
    memory = (
        dict(zip(needed, cuda.empty([((n,), np.uint8) for n in needed.values()], device), strict=True))
        if needed
        else {}
    )

    def address(word: Any) -> int:
        if isinstance(word, Scratch):
            return cuda.address(memory[word])
        array = inputs[word.number] if isinstance(word, Operand) else outs[word.number]
        return cuda.address(array) + int(word.offset)

    for step in plan:
        issue(step, device, address, float)
