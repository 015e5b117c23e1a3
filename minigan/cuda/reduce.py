"""Reductions along axes: sums, means, extremes, norms, log-sum-exp, softmax, positions of maxima, finiteness.

An array is seen as `rows` (what is kept) of `terms` (what is reduced). The threads of a block stand in a rectangle: so
many *lanes* share a row, each taking every lanes-th term, and the states that they come to are joined by a tree in
shared memory (`block_tree`). `layout_of` chooses the rectangle. Where there are too few rows to fill a card, each is
cut into parts: a first kernel writes the state of each part, a second joins them. What is added in which order follows
from shapes and strides alone, so results are the same bits in every run.

`text` makes such a kernel of statements for a term: those of this file read one number, those of a fused loop may
compute it first.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from minigan.cuda.launch import THREADS, Launch, Operand, Result, Scratch, Word, grid
from minigan.cuda.loops import INDEX, index_type
from minigan.cuda.text import PRELUDE, type_of
from minigan.kernels.axes import collapse
from minigan.kernels.rows import Spec

# None of these was measured on a card. They are meant so:
WARP = 32  # threads that read together: best from neighbouring places
SECTOR = (
    8  # float32 numbers that a card reads at once, 32 bytes: fewer lanes along a row would waste what is read
)
FEW = 4  # terms of a lane below which more lanes only make the tree higher
MANY = 16  # terms of a lane from which a row may be cut into parts: then a part outweighs a launch's share of work
BLOCKS = 512  # a few for each of the 100 to 150 processors of a large card
ALL_AT_ONCE = 400  # words of one launch: parameters may have 4096 bytes, which are 512


class State(NamedTuple):
    """What a thread knows of the terms that it has seen, in C, where `{t}` is the dtype of the terms.

    Attributes:
        members: of the struct, each of at most 8 bytes.
        start: its initialiser, before any term.
        take: statements that put term `v`, number `r` of its row, into state `a`.
        join: statements that put `b`, the state of other terms, into state `a`.
    """

    members: str
    start: str
    take: str
    join: str

    @property
    def nbytes(self) -> int:
        """How many bytes it has at most."""
        return 8 * self.members.count(";")


class Layout(NamedTuple):
    """How blocks of `THREADS` threads share `rows` x `terms`.

    Attributes:
        lanes: threads of a row, a power of two.
        along: whether neighbouring threads are lanes of one row; else they are the same lane of neighbouring rows.
        parts: how many parts a row is cut into, each of `share` terms.
    """

    rows: int
    terms: int
    lanes: int
    along: bool
    parts: int
    share: int

    @property
    def blocks(self) -> int:
        """Of the grid; each block takes every blocks-th part of a group of rows."""
        return grid(-(-self.rows // (THREADS // self.lanes)) * self.parts, 1)

    @property
    def step(self) -> int:
        """Threads from lane to lane."""
        return 1 if self.along else THREADS // self.lanes

    @property
    def words(self) -> tuple[int, ...]:
        """For the parameters `rows`, `terms`, `parts` and `share`."""
        return self.rows, self.terms, self.parts, self.share


def _power(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def layout_of(rows: int, terms: int, along: bool) -> Layout:
    """The layout for rows whose terms (`along`), or which themselves, are neighbours in memory.

    Neighbouring threads read neighbouring places. Along rows, a long one has a whole block and short ones share it,
    with about `FEW` terms a lane but no less than a sector's lanes. Across them, as in sums of columns, a warp takes
    `WARP` rows and the block's warps share the terms; where these are few, or no more rows are there, it is one thread
    a row, or fewer rows with more lanes.

    >>> from minigan.cuda.reduce import layout_of
    >>> layout_of(64, 1000, along=True)  # a block for each row
    Layout(rows=64, terms=1000, lanes=256, along=True, parts=1, share=1000)
    >>> layout_of(1 << 20, 3, along=False).lanes  # a thread for each row
    1
    >>> layout_of(1, 1 << 20, along=True).parts  # one number: a block for each part
    256
    """
    lanes = _power(-(-terms // FEW))
    if along:
        lanes = min(max(lanes, min(SECTOR, _power(terms))), THREADS)
    else:
        lanes = min(lanes, THREADS // min(WARP, _power(rows)))
    groups = max(1, -(-rows // (THREADS // lanes)))
    parts = max(1, min(-(-BLOCKS // groups), terms // (lanes * MANY)))
    share = terms if parts == 1 else -(-terms // (parts * lanes)) * lanes
    return Layout(rows, terms, lanes, along, -(-terms // share) if parts > 1 else 1, share)


# Text


def walk(number: str, letter: str, axes: int, arrays: Sequence[str]) -> tuple[list[str], list[str]]:
    """Parameters, and statements that work out `{array}_{letter}`, the place of element `number` over some axes.

    The parameters are the sizes of all axes but the first, then for each array its elements from one to the next.
    """
    parameters = [f"long long {letter}{axis}" for axis in range(1, axes)]
    lines = [f"index_t {letter}_left = {number};"] if axes > 1 else []
    for axis in range(axes - 1, 0, -1):
        lines.append(f"const long long {letter}_c{axis} = {letter}_left % (index_t){letter}{axis};")
        lines.append(f"{letter}_left /= (index_t){letter}{axis};")
    lines.append(f"const long long {letter}_c0 = {f'{letter}_left' if axes > 1 else number};")
    for array in arrays:
        parameters += [f"long long {array}_{letter}{axis}" for axis in range(axes)]
        places = " + ".join(f"{letter}_c{axis} * {array}_{letter}{axis}" for axis in range(axes))
        lines.append(f"const long long {array}_{letter} = {places};")
    return parameters, lines


def block_tree(layout: Layout, join: str) -> list[str]:
    """The statements that join the states of all lanes of a row, in an order that is always the same.

    Before them each thread of the block has its `state a`, and all must come here, since they wait for each other.
    After them lane 0 has the row's state in `a` and, with more lanes than one, in `all[threadIdx.x]`. They use the
    block's `__shared__ state all[THREADS]`, and each thread's `lane`.
    """
    if layout.lanes == 1:
        return []
    return [
        "__syncthreads();",  # what was there may still be read
        "all[threadIdx.x] = a;",
        f"for (unsigned int half = {layout.lanes // 2}; half; half /= 2) {{",
        "    __syncthreads();",
        "    if (lane < half) {",
        f"        const state b = all[threadIdx.x + half * {layout.step}];",
        f"        {join}",
        "        all[threadIdx.x] = a;",
        "    }",
        "}",
    ]


def places_of_threads(layout: Layout) -> list[str]:
    """The statements that give each thread its `lane` and its `slot`, which of the block's rows it works for."""
    rows = THREADS // layout.lanes
    across, down = f"threadIdx.x % {layout.lanes}", f"threadIdx.x / {layout.lanes}"
    if not layout.along:
        across, down = f"threadIdx.x / {rows}", f"threadIdx.x % {rows}"
    return [f"const unsigned int lane = {across};", f"const unsigned int slot = {down};"]


def text(
    name: str,
    layout: Layout,
    state: State,
    parameters: Sequence[str],
    row: Sequence[str] = (),
    term: Sequence[str] = (),
    result: Sequence[str] = (),
    spread: Sequence[str] = (),
    index: str = "unsigned int",
    constants: Sequence[str] = (),
) -> str:
    """The kernel of a reduction, from statements in C.

    It is launched with `layout.blocks` blocks of `THREADS` threads, and the words of `parameters`, then those of
    `layout.words`. With `partials` (made without `term`, or without both `result` and `spread`) two more follow: the
    address of rows x parts states, a `Scratch` of `state.nbytes` bytes each, and how many a row has.

    Args:
        layout: only its lanes and their order are in the text.
        state: what each thread keeps.
        parameters: the declarations of what the statements use.
        row: for `row`, each number below `rows`, and some above, for which nothing may be read: where things are.
        term: for term `r` of the row: reads and computes, then puts it into the state `a`, mostly by `state.take`.
            Without them, states are those that a kernel without `result` and `spread` wrote.
        result: once for each row, which has its joined state in `a`.
        spread: for each term once more, with the row's state in `a`.
        index: the type of numbers of rows and terms.
        constants: once for each thread, before everything.

    The sums of the squares of rows, as a fused loop would have them:

    >>> from minigan.cuda.reduce import SUM, layout_of, text
    >>> layout = layout_of(64, 1000, along=True)
    >>> square = ["const float32 v = x[row * terms + r] * x[row * terms + r];", SUM.take]
    >>> kernel = text("squares", layout, SUM, ["const float32* x", "float32* y"], [], square, ["y[row] = a.total;"])
    >>> kernel.split("void ")[1].split(")")[0]
    'squares(const float32* x, float32* y, long long rows, long long terms, long long parts, long long share'
    """
    declared = [*parameters, *(f"long long {each}" for each in ("rows", "terms", "parts", "share"))]
    ends = bool(result or spread)
    if not term or not ends:
        declared += [f"{'const ' if ends else ''}state* partials", "long long count"]
    part = [
        "const index_t first = unit % (index_t)parts * share;",
        "const index_t last = first + share < terms ? first + share : terms;",
    ]
    every = f"for (index_t r = first + lane; r < last; r += {layout.lanes}) {{"
    body = [
        f"const index_t row = unit / (index_t)parts * {THREADS // layout.lanes} + slot;",
        *(part if term or spread else []),
        *row,
        f"state a = {state.start};",
        "if (row < rows) {",
    ]
    if term:
        body += [f"    {every}", *(f"        {line}" for line in term)]
    else:
        body += [
            f"    for (index_t p = lane; p < count; p += {layout.lanes}) {{",
            "        const state b = partials[row * (index_t)count + p];",
            f"        {state.join}",
        ]
    body += ["    }", "}", *block_tree(layout, state.join)]
    last = list(result) if ends else ["partials[row * (index_t)count + unit % (index_t)parts] = a;"]
    if last:
        body += ["if (row < rows && lane == 0) {", *(f"    {line}" for line in last), "}"]
    if spread:
        if layout.lanes > 1:
            body += ["__syncthreads();", f"a = all[threadIdx.x - lane * {layout.step}];"]
        body += ["if (row < rows) {", f"    {every}", *(f"        {line}" for line in spread), "    }", "}"]
    shared = [f"__shared__ state all[{THREADS}];"] if layout.lanes > 1 else []
    before = "".join(f"    {line}\n" for line in [*constants, *shared, *places_of_threads(layout)])
    inside = "".join(f"        {line}\n" for line in body)
    return (
        f"{PRELUDE}{INDEX.format(index)}struct state {{ {state.members} }};\n\n"
        f'extern "C" __global__ void {name}({", ".join(declared)}) {{\n{before}'
        f"    const index_t units = (rows + {THREADS // layout.lanes - 1}) / {THREADS // layout.lanes} * parts;\n"
        f"    for (index_t unit = blockIdx.x; unit < units; unit += gridDim.x) {{\n{inside}    }}\n}}\n"
    )


# What is reduced

_INFINITY = "({t})__longlong_as_double(0x7ff0000000000000ll)"
_RISE = "{ const double gone = %s; a.total = a.total * gone + 1; a.top = %s; }"

SUM = State("double total;", "{0.0}", "a.total += v;", "a.total += b.total;")
# In double no square of a float32 number is too large or too small.
_SQUARES = SUM._replace(take="a.total += (double)v * v;")
# The squares of float64 numbers may be, so they are added in units of the square of about the largest; the unit changes
# only where one is twice as large, so that no more is lost by it than by the sum.
_SCALED = State(
    "double top; double total;",
    "{0.0, 0.0}",
    "const double u = absolute_float64(v);"
    f" if (u > a.top && (a.top == 0 || u * 0.5 > a.top)) {_RISE % ('a.top / u * (a.top / u)', 'u')}"
    " else a.total += u == a.top ? 1 : u / a.top * (u / a.top);",
    "{ const state low = b.top > a.top ? a : b; if (b.top > a.top) a = b;"
    " a.total += low.top == a.top ? low.total : low.total * (low.top / a.top * (low.top / a.top)); }",
)
# Exponentials are relative to about the largest exponent, which changes only where one is larger by 1, so that a rising
# row costs few exponentials in double. Infinite exponents are equal to themselves before they are subtracted; NaN gets
# into the total and stays.
_EXPONENTIALS = State(
    "{t} top; double total;",
    f"{{-{_INFINITY}, 0.0}}",
    f"if (v > a.top + 1) {_RISE % ('exp_float64((double)a.top - (double)v)', 'v')}"
    " else a.total += v == a.top ? ({t})1 : exp_{t}(v - a.top);",
    "{ const state low = b.top > a.top ? a : b; if (b.top > a.top) a = b;"
    " a.total += low.top == a.top ? low.total : low.total * exp_float64((double)low.top - (double)a.top); }",
)
_FIRST = State(
    "{t} top; long long at;",
    "{0, -1}",
    "if (a.at < 0 || v > a.top || (v != v && a.top == a.top)) { a.top = v; a.at = r; }",
    "if (b.at >= 0) {"
    " const bool ties = b.top == a.top || (b.top != b.top && a.top != a.top);"
    " const bool wins = ties ? b.at < a.at : b.top > a.top || b.top != b.top;"
    " if (a.at < 0 || wins) a = b; }",
)


def _extreme(function: str, start: str) -> State:
    return State(
        "{t} top;",
        f"{{{start}{_INFINITY}}}",
        f"a.top = {function}_{{t}}(a.top, v);",
        f"a.top = {function}_{{t}}(a.top, b.top);",
    )


class Reduction(NamedTuple):
    """A reduction: what a thread keeps, and what becomes of it.

    Attributes:
        result: the expression of a row's result, of its state `a` and the number of its `terms`.
        spread: or statements and, last, the expression of the result for each term `v`.
    """

    state: State
    result: str = ""
    spread: tuple[str, ...] = ()

    def of(self, dtype: str) -> "Reduction":
        """The text for a dtype."""
        state = State(*(each.replace("{t}", dtype) for each in self.state))
        return Reduction(
            state, self.result.replace("{t}", dtype), tuple(s.replace("{t}", dtype) for s in self.spread)
        )


# As on the CPU: relative to 0 if an exponent is infinite, and 0 where all are -infinity, but NaN is NaN.
_SOFTMAX = Reduction(
    _EXPONENTIALS,
    spread=(
        "const bool finite = a.top - a.top == 0;",
        "const {t} least = finite || a.total != a.total ? ({t})a.total : a.top > 0 ? a.top : ({t})1;",
        "exp_{t}(v - (finite ? a.top : ({t})0)) / least",
    ),
)


# Plans


class _Walk(NamedTuple):
    """Some axes as a kernel walks through them: their sizes and, for each array, elements from one to the next."""

    sizes: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]

    @property
    def words(self) -> list[int]:
        """For the parameters of `walk`."""
        return [*self.sizes[1:], *(step for steps in self.steps for step in steps)]


def walked(arrays: Sequence[Spec], axes: Sequence[Sequence[int]]) -> _Walk:
    """The walk through these axes of each array, with those joined that continue each other in every array.

    The first array's smallest steps come last, so that neighbouring elements of the walk are neighbours in its memory.
    """
    sizes = [arrays[0].shape[a] for a in axes[0]]
    strides = [[x.strides[a] for a in its] for x, its in zip(arrays, axes, strict=True)]
    if 0 in sizes:
        return _Walk((0,), ((0,),) * len(arrays))
    order = sorted(range(len(sizes)), key=lambda a: (strides[0][a] != 0, -abs(strides[0][a])))
    dims, steps = collapse(tuple(sizes[a] for a in order), [[s[a] for a in order] for s in strides])
    return _Walk(
        dims, tuple(tuple(s // x.dtype.itemsize for s in each) for x, each in zip(arrays, steps, strict=True))
    )


def neighbours_along(kept: _Walk, terms: _Walk) -> bool:
    """Whether neighbouring places of the first array belong to one row rather than to neighbouring rows."""
    across, along = abs(kept.steps[0][-1]), abs(terms.steps[0][-1])
    return not across or 0 < along < across


@functools.lru_cache(maxsize=4096)
def _text(
    name: str,
    layout: Layout,
    reduction: Reduction,
    types: tuple[str, str],
    axes: tuple[int, int],
    stage: tuple[bool, bool],
    index: str,
) -> str:
    """One kernel of a reduction of `x` into `y`: whether it reads terms, not states, and whether it writes results."""
    state, result, spread = reduction.of(types[0])
    declared, row = walk("row", "k", axes[0], ["x", "y"])
    within, term = walk("r", "t", axes[1], ["x", "y"] if spread else ["x"])
    term.append(f"const {types[0]} v = x[x_k + x_t];")
    reads, ends = stage
    return text(
        name,
        layout,
        state,
        [f"const {types[0]}* x", f"{types[1]}* y", *declared, *within],
        row,
        [*term, state.take] if reads else [],
        [f"y[y_k] = {result};"] if ends and result else [],
        [*term, *spread[:-1], f"y[y_k + y_t] = {spread[-1]};"] if ends and spread else [],
        index,
    )


def _plan(
    name: str, reduction: Reduction, x: Spec, y: Spec, axes: tuple[int, ...], left: Sequence[int]
) -> list[Launch]:
    """The kernels that reduce `axes` of x; `left` are the axes of y that the others become."""
    kept = walked([x, y], [[a for a in range(len(x.shape)) if a not in axes], left])
    terms = walked([x, y], [axes, axes]) if reduction.spread else walked([x], [axes])
    n, m = math.prod(kept.sizes), math.prod(terms.sizes)
    if not n or (reduction.spread and not m):
        return []
    layout = layout_of(n, m, neighbours_along(kept, terms))
    types, numbers = (type_of(x.dtype), type_of(y.dtype)), (len(kept.sizes), len(terms.sizes))

    def launch(layout: Layout, stage: tuple[bool, bool], more: tuple[Word, ...] = ()) -> Launch:
        called = f"{name}_{'kernel' if stage[1] else 'parts'}"
        form = Layout(0, 0, layout.lanes, layout.along, 1, 0)  # all that the text depends on
        source = _text(called, form, reduction, types, numbers, stage, index_type(max(n, m)))
        words = (Operand(0), Result(0), *kept.words, *terms.words, *layout.words, *more)
        return Launch(called, source, layout.blocks, THREADS, words)

    if layout.parts == 1:
        return [launch(layout, (True, True))]
    more = Scratch(0, n * layout.parts * reduction.state.nbytes), layout.parts
    last = layout
    if (
        not reduction.spread
    ):  # whose blocks each join all parts of a row before they spread its state over one
        last = layout_of(n, layout.parts, along=True)._replace(terms=m, parts=1, share=m)
    return [launch(layout, (True, False), more), launch(last, (False, True), more)]


def along_axes(name: str, reduction: Reduction, wide: Reduction | None = None) -> Callable[..., list[Launch]]:
    """What plans a reduction over axes to one number a row; `wide` is another way for float64.

    >>> import numpy as np
    >>> from minigan.cuda.reduce import total
    >>> x, y = np.ones((1000, 32), np.float32), np.ones(32, np.float32)
    >>> [(step.name, step.blocks) for step in total([y], [x], axes=(0,), keepdims=False)]
    [('sum_parts', 7), ('sum_kernel', 1)]
    """

    def plan(
        outs: Sequence[Spec], inputs: Sequence[Spec], axes: tuple[int, ...], keepdims: bool
    ) -> list[Launch]:
        (x,), (y,) = inputs, outs
        left = [a for a in range(len(x.shape)) if a not in axes] if keepdims else range(len(y.shape))
        chosen = wide if wide and type_of(x.dtype) == "float64" else reduction
        return _plan(name, chosen, x, y, axes, left)

    return plan


total = along_axes("sum", Reduction(SUM, "a.total"))
mean = along_axes(
    "mean", Reduction(SUM, "({t})a.total / ({t})terms")
)  # rounded as NumPy does; 0 / 0 of nothing
largest = along_axes("max", Reduction(_extreme("maximum", "-"), "a.top"))
smallest = along_axes("min", Reduction(_extreme("minimum", ""), "a.top"))
norm = along_axes(
    "norm",
    Reduction(_SQUARES, "sqrt_float64(a.total)"),
    Reduction(_SCALED, "sqrt_float64(a.total) * a.top"),
)
logsumexp = along_axes("logsumexp", Reduction(_EXPONENTIALS, "log_float64(a.total) + a.top"))


def softmax(outs: Sequence[Spec], inputs: Sequence[Spec], axes: tuple[int, ...]) -> list[Launch]:
    """Plans softmax: each row is read twice, by the threads that have reduced it, while a short one is in the cache."""
    left = [a for a in range(len(inputs[0].shape)) if a not in axes]
    return _plan("softmax", _SOFTMAX, inputs[0], outs[0], axes, left)


def argmax(outs: Sequence[Spec], inputs: Sequence[Spec], axis: int) -> list[Launch]:
    """Plans the first position of the largest number along an axis, which is NaN if there is one."""
    return _plan("argmax", Reduction(_FIRST, "a.at"), inputs[0], outs[0], (axis,), range(len(outs[0].shape)))


# Finite or not

_BAD = State("int bad;", "{0}", "a.bad |= !(v - v == 0);", "a.bad |= b.bad;")


@functools.lru_cache(maxsize=1024)
def _finite_text(name: str, arrays: tuple[tuple[str, int], ...], ends: bool, index: str) -> str:
    """The kernel that looks at arrays of these dtypes and numbers of axes; each block writes whether any is bad."""
    layout = Layout(1, 1, THREADS, True, 1, 1)
    parameters, body = [], []
    for k, (dtype, axes) in enumerate(arrays):
        declared, lines = walk("i", f"t{k}_", axes, [f"x{k}"])
        parameters += [f"const {dtype}* x{k}", f"long long n{k}", *declared]
        lines += [f"const {dtype} v = x{k}[x{k}_t{k}_];", _BAD.take]
        body += [f"for (index_t i = begin; i < n{k}; i += step) {{", *(f"    {line}" for line in lines), "}"]
    body += block_tree(layout, _BAD.join)
    parameters += ["bool* y"] if ends else ["state* partials", "long long first"]
    store = "y[0] = !a.bad;" if ends else "partials[first + blockIdx.x] = a;"
    inside = "".join(f"    {line}\n" for line in [*places_of_threads(layout), *body])
    return (
        f"{PRELUDE}{INDEX.format(index)}struct state {{ {_BAD.members} }};\n\n"
        f'extern "C" __global__ void {name}({", ".join(parameters)}) {{\n'
        f"    __shared__ state all[{THREADS}];\n    state a = {_BAD.start};\n"
        "    const index_t begin = blockIdx.x * (index_t)blockDim.x + threadIdx.x;\n"
        "    const index_t step = gridDim.x * (index_t)blockDim.x;\n"
        f"{inside}    if (lane == 0) {store}\n}}\n"
    )


def all_finite(outs: Sequence[Spec], inputs: Sequence[Spec]) -> list[Launch]:
    """Plans whether all numbers of all arrays are finite: few launches for many arrays, each over a number of them.

    A compiled step asks this of all parameters or gradients, where a launch for each would take longer than the work.
    """
    walks = [walked([x], [range(len(x.shape))]) for x in inputs]
    groups: list[list[int]] = [[]]
    used = 0
    for k, each in enumerate(walks):
        if 0 not in each.sizes:
            used += 2 + len(each.words)
            if used > ALL_AT_ONCE:
                groups.append([])
                used = 2 + len(each.words)
            groups[-1].append(k)
    most = [max((math.prod(walks[k].sizes) for k in group), default=1) for group in groups]
    blocks = [grid(n, THREADS * MANY, BLOCKS) for n in most]
    ends = sum(blocks) == 1
    states = Scratch(0, sum(blocks) * _BAD.nbytes)
    plan, first = [], 0
    for group, n, count in zip(groups, most, blocks, strict=True):
        name = "all_finite_kernel" if ends else "all_finite_parts"
        source = _finite_text(
            name, tuple((type_of(inputs[k].dtype), len(walks[k].sizes)) for k in group), ends, index_type(n)
        )
        words: list[Word] = []
        for k in group:
            words += [Operand(k), math.prod(walks[k].sizes), *walks[k].words]
        plan.append(
            Launch(name, source, count, THREADS, (*words, *([Result(0)] if ends else [states, first])))
        )
        first += count
    if not ends:
        layout = layout_of(1, first, along=True)._replace(parts=1, share=first)
        source = text("all_finite_kernel", layout, _BAD, ["bool* y"], result=["y[0] = !a.bad;"])
        words = [Result(0), *layout.words, states, first]
        plan.append(Launch("all_finite_kernel", source, 1, THREADS, tuple(words)))
    return plan
