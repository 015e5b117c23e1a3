"""Loops over strided arrays that broadcast: one thread for each element of the result.

Axes that every array walks through in one go are joined first. An array that lies as the result does is read at the
thread's own number, one number at 0, and any other at a place worked out of the element's coordinates.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minigan.cuda.launch import THREADS, Launch, Operand, Result, Word, grid
from minigan.cuda.text import PRELUDE, expression, statement, type_of
from minigan.kernels.axes import broadcast_strides, collapse
from minigan.kernels.loops import Formula
from minigan.kernels.rows import Spec
from minigan.trace import Slot

INDEX = "typedef {} index_t;\n"


class Form(NamedTuple):
    """How a loop walks through an array: its dtype, and a letter: "v" (every element), "s" (one number), or for each
    axis whether it moves along ("1") or not ("0")."""

    dtype: str
    letter: str


def index_type(n: int) -> str:
    """The type of an element's number: 32 bits where they do, since dividing 64 is slow."""
    return "unsigned int" if n < 1 << 31 else "unsigned long long"


def form_of(dtype: Any, steps: Sequence[int], dims: Sequence[int]) -> Form:
    """The form of an array with these strides, in bytes, over the axes of a loop."""
    item, dense = np.dtype(dtype).itemsize, []
    step = item
    for n in reversed(dims):
        dense.append(step)
        step *= n
    if not any(steps):
        return Form(type_of(dtype), "s")
    if list(steps) == dense[::-1]:
        return Form(type_of(dtype), "v")
    return Form(type_of(dtype), "".join("1" if s else "0" for s in steps))


def offset(name: str, form: Form) -> str:
    """The text of how many elements into an array an element lies, in the names of `coordinates`."""
    if form.letter in "vs":
        return "i" if form.letter == "v" else "0"
    return " + ".join(f"c{axis} * {name}_s{axis}" for axis, used in enumerate(form.letter) if used == "1")


def place(name: str, form: Form) -> str:
    """The text of an array's element, in the names of `coordinates`."""
    return f"{name}[{offset(name, form)}]"


def strides_of(form: Form, steps: Sequence[int]) -> list[int]:
    """The words that `place` needs: elements from one to the next, along the axes that it moves along."""
    item = np.dtype(form.dtype).itemsize
    return (
        []
        if form.letter in "vs"
        else [s // item for s, used in zip(steps, form.letter, strict=True) if used == "1"]
    )


def stride_parameters(name: str, form: Form) -> list[str]:
    """The declarations of these words."""
    if form.letter in "vs":
        return []
    return [f"long long {name}_s{axis}" for axis, used in enumerate(form.letter) if used == "1"]


def coordinates(axes: int) -> list[str]:
    """The statements that work out the coordinates c0, c1, ... of element i, of axes with sizes n1, n2, ..."""
    lines = ["index_t left = i;"]
    for axis in range(axes - 1, 0, -1):
        lines += [f"const long long c{axis} = left % (index_t)n{axis};", f"left /= (index_t)n{axis};"]
    return [*lines, "const long long c0 = left;"]


def formula_lines(
    formula: Formula, dtype: str, names: dict[str, str], prefix: str
) -> tuple[list[str], list[str]]:
    """The statements of a formula in C, and the expressions of its results."""
    lines, results, _ = formula.inlined(dtype, names, prefix)
    declared: set[str] = set()
    return [statement(line, declared) for line in lines], [expression(result) for result in results]


@functools.lru_cache(maxsize=4096)
def _source(
    formula: Formula,
    dtype: str,
    axes: int,
    outs: tuple[Form, ...],
    inputs: tuple[Form, ...],
    slots: tuple[bool, ...],
    index: str,
) -> str:
    names = {name: f"v_{name}" for name in formula.inputs} | {
        name: f"a_{name}" for name in formula.attributes
    }
    arrays = [(f"y{k}", form) for k, form in enumerate(outs)] + [
        (f"x{k}", form) for k, form in enumerate(inputs)
    ]
    parameters = [f"{'' if name[0] == 'y' else 'const '}{form.dtype}* {name}" for name, form in arrays] + [
        "long long n"
    ]
    coordinated = any(form.letter not in "vs" for _, form in arrays)
    if coordinated:
        parameters += [f"long long n{axis}" for axis in range(1, axes)]
    for name, form in arrays:
        parameters += stride_parameters(name, form)
    constants = []
    for name, slot in zip(formula.attributes, slots, strict=True):
        parameters.append(f"const double* p_{name}" if slot else f"double p_{name}")
        constants.append(f"const {dtype} a_{name} = ({dtype}){'*' if slot else ''}p_{name};")
    lines, results = formula_lines(formula, dtype, names, "t_")
    body = coordinates(axes) if coordinated else []
    body += [
        f"const {form.dtype} v_{name} = {place(f'x{k}', form)};"
        for k, (name, form) in enumerate(zip(formula.inputs, inputs, strict=True))
    ]
    body += lines
    # Every value is computed before any is stored: outputs may be inputs.
    body += [
        f"const {form.dtype} r{k} = {result};"
        for k, (form, result) in enumerate(zip(outs, results, strict=True))
    ]
    body += [f"{place(f'y{k}', form)} = r{k};" for k, form in enumerate(outs)]
    return kernel(f"{formula.name}_kernel", parameters, constants, body, index)


def kernel(
    name: str, parameters: Sequence[str], constants: Sequence[str], body: Sequence[str], index: str
) -> str:
    """A kernel that runs `body` for every i below n."""
    inside = "\n".join(f"        {line}" for line in body)
    before = "".join(f"    {line}\n" for line in constants)
    return (
        f"{PRELUDE}{INDEX.format(index)}\n"
        f'extern "C" __global__ void {name}({", ".join(parameters)}) {{\n{before}'
        "    const index_t step = (index_t)gridDim.x * blockDim.x;\n"
        f"    for (index_t i = blockIdx.x * (index_t)blockDim.x + threadIdx.x; i < n; i += step) {{\n"
        f"{inside}\n    }}\n}}\n"
    )


def pointwise(
    formula: Formula, outs: Sequence[Spec], inputs: Sequence[Spec], **attributes: float
) -> list[Launch]:
    """The kernel of a pointwise primitive; none for a result without elements.

    >>> import numpy as np
    >>> from minigan.cuda.loops import pointwise
    >>> from minigan.registry import primitives
    >>> (exp,) = [p for p in primitives() if p.name == "exp"]
    >>> x = np.ones((2, 3), np.float32)
    >>> (launch,) = pointwise(exp.formula, [x], [x])
    >>> launch.name, launch.blocks, launch.words
    ('exp_kernel', 1, (Result(number=0, offset=0), Operand(number=0, offset=0), 6))
    """
    shape = outs[0].shape
    n = math.prod(shape)
    if not n:
        return []
    arrays = [*outs, *inputs]
    dims, walked = collapse(shape, [broadcast_strides(x, shape) for x in arrays])
    forms = [form_of(x.dtype, steps, dims) for x, steps in zip(arrays, walked, strict=True)]
    words: list[Word] = [*map(Result, range(len(outs))), *map(Operand, range(len(inputs))), n]
    if any(form.letter not in "vs" for form in forms):
        words += dims[1:]
    for form, steps in zip(forms, walked, strict=True):
        words += strides_of(form, steps)
    values = [attributes[name] for name in formula.attributes]
    words += [value if isinstance(value, Slot) else float(value) for value in values]
    # Numbers are in the dtype of the operands; comparisons of integers and copies of them have no numbers.
    dtype = type_of(
        max(
            (x.dtype for x in inputs if x.dtype != np.bool_),
            key=lambda d: d.kind == "f",
            default=np.dtype(np.float32),
        )
    )
    source = _source(
        formula,
        dtype if dtype.startswith("float") else "float32",
        len(dims),
        tuple(forms[: len(outs)]),
        tuple(forms[len(outs) :]),
        tuple(isinstance(value, Slot) for value in values),
        index_type(n),
    )
    return [Launch(f"{formula.name}_kernel", source, grid(n), THREADS, tuple(words))]
