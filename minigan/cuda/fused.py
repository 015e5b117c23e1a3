"""Fused loops: the statements of several calls for each element, with the sums that end them.

What passes from statement to statement stays in registers, and only what is needed later is stored. Sums are of one
kind in a loop, since that decides which thread has which element; they are made as `minigan.cuda.reduce` makes its own.
"""

import math
from typing import NamedTuple

from minigan.cuda.launch import THREADS, Launch, Operand, Scratch, Word, grid
from minigan.cuda.loops import (
    Form,
    coordinates,
    index_type,
    kernel,
    place,
    stride_parameters,
    strides_of,
)
from minigan.cuda.reduce import Layout, State, layout_of, text


class Array(NamedTuple):
    """An array of a loop, x0, x1 and so on by its number: how the loop walks through it; whether it is stored to."""

    form: Form
    steps: tuple[int, ...]
    stored: bool


class Number(NamedTuple):
    """A variable of a `type` with a word's value; `pointer` tells whether the word is an address."""

    name: str
    type: str
    word: Word
    pointer: bool


class Sum(NamedTuple):
    """A sum: an element's term, the array it goes to, and the result as an expression of `total`."""

    term: str
    out: int
    result: str


class Loop(NamedTuple):
    """A loop over one axis or two.

    Attributes:
        body: the statements for element i, at the coordinates c0 and c1, in which `x3[place]` is `array(3)`.
        kind: what is summed up: "" (nothing), "rows" (each row), "columns" (each column), or "all".
    """

    name: str
    dims: tuple[int, ...]
    arrays: tuple[Array, ...]
    numbers: tuple[Number, ...]
    body: tuple[str, ...]
    kind: str
    sums: tuple[Sum, ...]

    def array(self, number: int) -> str:
        """The text of an array's element."""
        return element(number, self.arrays[number].form)


def element(number: int, form: Form) -> str:
    """The text of an element of array `number`."""
    return place(f"x{number}", form)


def launches(loop: Loop) -> list[Launch]:
    """The kernels of a loop, whose `Operand`s are its arrays.

    >>> from minigan.cuda.fused import Array, Loop, Sum, element, launches
    >>> from minigan.cuda.loops import Form
    >>> x, y = Array(Form("float32", "v"), (4,), False), Array(Form("float32", "s"), (0,), True)
    >>> loop = Loop("sum", (1000,), (x, y), (), ("const float32 v = x0[i];",), "all", (Sum("v", 1, "total"),))
    >>> [(launch.name, launch.blocks) for launch in launches(loop)]
    [('sum_kernel', 1)]
    """
    return _reduced(loop) if loop.sums else [_flat(loop)]


def _declared(loop: Loop) -> tuple[list[str], list[Word], list[str]]:
    """Parameters and words of what every kernel of a loop has, and the statements that begin it."""
    parameters, words, constants = [], list[Word](), []
    for k, (form, _, stored) in enumerate(loop.arrays):
        parameters.append(f"{'' if stored else 'const '}{form.dtype}* x{k}")
        words.append(Operand(k))
    for axis, n in enumerate(loop.dims):
        parameters.append(f"long long n{axis}")
        words.append(n)
    for k, (form, steps, _) in enumerate(loop.arrays):
        parameters += stride_parameters(f"x{k}", form)
        words += strides_of(form, steps)
    for number in loop.numbers:
        parameters.append(f"{'const double*' if number.pointer else 'double'} p_{number.name}")
        words.append(number.word)
        constants.append(
            f"const {number.type} {number.name} = ({number.type}){'*' if number.pointer else ''}p_{number.name};"
        )
    return parameters, words, constants


def _flat(loop: Loop) -> Launch:
    """A thread for each element."""
    parameters, words, constants = _declared(loop)
    n, name = math.prod(loop.dims), f"{loop.name}_kernel"
    body = [*_coordinates(loop), *loop.body]
    source = kernel(name, [*parameters, "long long n"], constants, body, index_type(n))
    return Launch(name, source, grid(n), THREADS, (*words, n))


def _coordinates(loop: Loop) -> list[str]:
    """The coordinates of element i, unless no array needs them."""
    plain = all(array.form.letter in "vs" for array in loop.arrays)
    return [] if plain else coordinates(len(loop.dims))


def _reduced(loop: Loop) -> list[Launch]:
    """A reduction whose terms are computed where they are summed; blocks share long sums, which a second one joins."""
    n = math.prod(loop.dims)
    if loop.kind == "rows":
        rows, terms = loop.dims
        term, result = ["const long long c0 = row, c1 = r;"], ["const long long c0 = row;"]
    elif loop.kind == "columns":
        terms, rows = loop.dims
        term, result = ["const long long c0 = r, c1 = row;"], ["const long long c0 = 0, c1 = row;"]
    else:
        rows, terms = 1, n
        term, result = ["const index_t i = r;", *_coordinates(loop)], []
    if loop.kind != "all":
        term.append("const index_t i = c0 * n1 + c1;")
    totals = [f"total{k}" for k in range(len(loop.sums))]
    term += [*loop.body, *(f"a.{each} += {s.term};" for each, s in zip(totals, loop.sums, strict=True))]
    result += [
        f"{loop.array(s.out)} = {s.result.replace('total', f'a.{each}')};"
        for each, s in zip(totals, loop.sums, strict=True)
    ]
    state = State(
        " ".join(f"double {each};" for each in totals),
        f"{{{', '.join('0.0' for _ in totals)}}}",
        "",
        " ".join(f"a.{each} += b.{each};" for each in totals),
    )
    parameters, words, constants = _declared(loop)

    def launch(layout: Layout, reads: bool, ends: bool, more: tuple[Word, ...] = ()) -> Launch:
        name = f"{loop.name}_{'kernel' if ends else 'parts'}"
        source = text(
            name,
            layout,
            state,
            parameters,
            term=term if reads else (),
            result=result if ends else (),
            index=index_type(n),
            constants=constants,
        )
        return Launch(name, source, layout.blocks, THREADS, (*words, *layout.words, *more))

    layout = layout_of(rows, terms, along=loop.kind != "columns")
    if layout.parts == 1:
        return [launch(layout, True, True)]
    more = Scratch(0, rows * layout.parts * state.nbytes), layout.parts
    return [
        launch(layout, True, False, more),
        launch(layout_of(rows, layout.parts, along=True)._replace(parts=1), False, True, more),
    ]
