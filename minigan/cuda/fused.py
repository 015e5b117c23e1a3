"""Fused loops: the statements of several calls for each element, with the sums that end them.

What passes from statement to statement stays in registers, and only what is needed later is stored. Sums are of one
kind in a loop, since that decides which thread has which element. All are added up in float64, in an order that only
the sizes decide: threads add their own elements first, then a block's threads as a tree, and where several blocks
share a sum, a second kernel adds what they found.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from minigan.cuda.launch import THREADS, Launch, Operand, Scratch, Word, grid
from minigan.cuda.loops import (
    INDEX,
    Form,
    coordinates,
    index_type,
    kernel,
    place,
    stride_parameters,
    strides_of,
)
from minigan.cuda.text import PRELUDE

LANES = 32  # threads side by side: they read memory together
ELEMENTS = 16  # that a thread should at least have before another block shares its sum
MOST_BLOCKS = 1024  # that share a sum

_TREE = """
__device__ double tree(double* part, double value, int at, int width, int apart) {
    const int own = threadIdx.x;
    part[own] = value;
    __syncthreads();
    for (int half = width / 2; half > 0; half /= 2) {
        if (at < half) part[own] += part[own + half * apart];
        __syncthreads();
    }
    const double total = part[own - at * apart];
    __syncthreads();
    return total;
}
"""


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
    if loop.kind == "rows":
        return _rows(loop)
    if loop.kind == "columns":
        return _columns(loop)
    return _flat(loop)


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


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


def _kernel(name: str, loop: Loop, parameters: Sequence[str], lines: Sequence[str]) -> str:
    inside = "\n".join(f"    {line}" for line in lines)
    index = INDEX.format(index_type(math.prod(loop.dims)))
    return (
        f"{PRELUDE}{index}{_TREE if loop.sums else ''}\n"
        f'extern "C" __global__ void {name}({", ".join(parameters)}) {{\n{inside}\n}}\n'
    )


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _stores(loop: Loop) -> list[str]:
    """The statements that store the sums total0, total1, ..."""
    return [
        f"{loop.array(s.out)} = {s.result.replace('total', f'total{k}')};" for k, s in enumerate(loop.sums)
    ]


def _adding(loop: Loop) -> list[str]:
    return [f"total{k} += {s.term};" for k, s in enumerate(loop.sums)]


def _totals(loop: Loop) -> list[str]:
    return [f"double total{k} = 0;" for k in range(len(loop.sums))]


def _trees(loop: Loop, at: str, width: int, apart: int) -> list[str]:
    return [f"total{k} = tree(part, total{k}, {at}, {width}, {apart});" for k in range(len(loop.sums))]


def _rest(
    loop: Loop, name: str, partial: Scratch, first: Sequence[str], blocks: int, last: Sequence[str]
) -> Launch:
    """The second kernel of a sum that blocks share."""
    parameters, words, constants = _declared(loop)
    lines = [*constants, *first, *_totals(loop), *last]
    source = _kernel(name, loop, [*parameters, "const double* partial", "long long parts"], lines)
    return Launch(name, source, blocks, THREADS, (*words, partial))


def _flat(loop: Loop) -> list[Launch]:
    """One thread for each element, and sums over all."""
    parameters, words, constants = _declared(loop)
    n, name = math.prod(loop.dims), f"{loop.name}_kernel"
    plain = all(array.form.letter in "vs" for array in loop.arrays)
    where = [] if plain else coordinates(len(loop.dims))
    index = index_type(n)
    if not loop.sums:
        source = kernel(name, [*parameters, "long long n"], constants, [*where, *loop.body], index)
        return [Launch(name, source, grid(n), THREADS, (*words, n))]
    blocks = max(1, min(n // (THREADS * ELEMENTS), MOST_BLOCKS))
    partial = Scratch(0, 8 * len(loop.sums) * blocks)
    lines = [f"__shared__ double part[{THREADS}];", *constants, *_totals(loop)]
    lines += ["const index_t n = n0" + " * n1" * (len(loop.dims) - 1) + ";"]
    lines += [
        "const index_t first = blockIdx.x * (index_t)blockDim.x + threadIdx.x;",
        "for (index_t i = first; i < n; i += (index_t)gridDim.x * blockDim.x) {",
        *_indented([*where, *loop.body, *_adding(loop)]),
        "}",
        *_trees(loop, "threadIdx.x", THREADS, 1),
        "if (threadIdx.x == 0) {",
    ]
    if blocks == 1:
        source = _kernel(name, loop, parameters, [*lines, *_indented(_stores(loop)), "}"])
        return [Launch(name, source, 1, THREADS, tuple(words))]
    lines += [f"    partial[{k} * gridDim.x + blockIdx.x] = total{k};" for k in range(len(loop.sums))]
    source = _kernel(name, loop, [*parameters, "double* partial"], [*lines, "}"])
    adding = [f"    total{k} += partial[{k} * parts + b];" for k in range(len(loop.sums))]
    last = [
        "for (long long b = threadIdx.x; b < parts; b += blockDim.x) {",
        *adding,
        "}",
        *_trees(loop, "threadIdx.x", THREADS, 1),
        "if (threadIdx.x == 0) {",
        *_indented(_stores(loop)),
        "}",
    ]
    end = _rest(loop, f"{loop.name}_end_kernel", partial, [f"__shared__ double part[{THREADS}];"], 1, last)
    return [
        Launch(name, source, blocks, THREADS, (*words, partial)),
        end._replace(words=(*end.words, blocks)),
    ]


def _rows(loop: Loop) -> list[Launch]:
    """Some threads, a power of two, for each row."""
    parameters, words, constants = _declared(loop)
    n, m = loop.dims
    width = _power_of_two(m) if m <= LANES else LANES if m <= LANES * ELEMENTS else THREADS
    rows = THREADS // width
    lines = [
        f"__shared__ double part[{THREADS}];",
        *constants,
        f"const int lane = threadIdx.x % {width}, row = threadIdx.x / {width};",
        f"for (long long first = blockIdx.x * {rows}ll; first < n0; first += gridDim.x * {rows}ll) {{",
        "    const long long c0 = first + row;",
        *_indented(_totals(loop)),
        f"    if (c0 < n0) for (long long c1 = lane; c1 < n1; c1 += {width}) {{",
        *_indented(_indented(["const index_t i = c0 * n1 + c1;", *loop.body, *_adding(loop)])),
        "    }",
        *_indented(_trees(loop, "lane", width, 1)),
        "    if (c0 < n0 && lane == 0) {",
        *_indented(_indented(_stores(loop))),
        "    }",
        "}",
    ]
    name = f"{loop.name}_rows_kernel"
    return [Launch(name, _kernel(name, loop, parameters, lines), grid(n, rows), THREADS, tuple(words))]


def _columns(loop: Loop) -> list[Launch]:
    """A thread for some rows of each column; blocks share the rows where there are many."""
    parameters, words, constants = _declared(loop)
    n, m = loop.dims
    width = min(LANES, _power_of_two(m))
    rows = THREADS // width
    tiles = -(-m // width)
    parts = max(1, min(n // (rows * ELEMENTS), MOST_BLOCKS // tiles))
    partial = Scratch(0, 8 * len(loop.sums) * parts * m)
    lines = [
        f"__shared__ double part[{THREADS}];",
        *constants,
        f"const int lane = threadIdx.x % {width}, row = threadIdx.x / {width};",
        f"const long long tiles = (n1 + {width - 1}) / {width};",
        "const long long chunk = blockIdx.x / tiles, height = (n0 + parts - 1) / parts;",
        f"const long long c1 = (blockIdx.x % tiles) * {width} + lane, begin = chunk * height;",
        "const long long end = begin + height < n0 ? begin + height : n0;",
        *_totals(loop),
        f"if (c1 < n1) for (long long c0 = begin + row; c0 < end; c0 += {rows}) {{",
        *_indented(["const index_t i = c0 * n1 + c1;", *loop.body, *_adding(loop)]),
        "}",
        *_trees(loop, "row", rows, width),
        "if (c1 < n1 && row == 0) {",
    ]
    name = f"{loop.name}_columns_kernel"
    parameters = [*parameters, "long long parts"]
    words = [*words, parts]
    if parts == 1:
        lines += [*_indented(["const long long c0 = 0;", *_stores(loop)]), "}"]
        return [Launch(name, _kernel(name, loop, parameters, lines), tiles, THREADS, tuple(words))]
    lines += [f"    partial[({k} * parts + chunk) * n1 + c1] = total{k};" for k in range(len(loop.sums))]
    source = _kernel(name, loop, [*parameters, "double* partial"], [*lines, "}"])
    adding = [f"    total{k} += partial[({k} * parts + b) * n1 + c1];" for k in range(len(loop.sums))]
    last = [
        "const long long c0 = 0, c1 = blockIdx.x * (long long)blockDim.x + threadIdx.x;",
        "if (c1 >= n1) return;",
        "for (long long b = 0; b < parts; ++b) {",
        *adding,
        "}",
        *_stores(loop),
    ]
    blocks = -(-m // THREADS)
    end = _rest(loop, f"{loop.name}_columns_end_kernel", partial, [], blocks, last)
    return [
        Launch(name, source, tiles * parts, THREADS, (*words, partial)),
        end._replace(words=(*end.words, parts)),
    ]
