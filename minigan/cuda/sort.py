"""What runs along one axis and keeps it: cumulative sums, and the positions that sort.

Neither is part of a usual step of training, so both are kept short, and neither splits one row over the whole card as
the fastest methods do.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

from minigan.cuda.launch import THREADS, Launch, Operand, Result, Scratch, Word, grid
from minigan.cuda.loops import INDEX, index_type, kernel
from minigan.cuda.reduce import Layout, layout_of, neighbours_along, places_of_threads, walk, walked
from minigan.cuda.text import PRELUDE, type_of
from minigan.kernels.rows import Spec

TILE = (
    256  # elements that are ordered by counting, which looks at all of them for each, before runs are merged
)


def _others(x: Spec, axis: int) -> list[int]:
    return [a for a in range(len(x.shape)) if a != axis]


# Cumulative sums


@functools.lru_cache(maxsize=1024)
def _cumsum_text(dtype: str, layout: Layout, axes: int, reverse: bool, index: str) -> str:
    declared, row = walk("row", "k", axes, ["x", "y"])
    within, term = walk("r", "t", 1, ["x", "y"])
    rows, n = THREADS // layout.lanes, layout.lanes
    parameters = [f"const {dtype}* x", f"{dtype}* y", *declared, *within, "long long rows", "long long terms"]
    # Pairs, then fours, and so on: each lane adds what the lanes before it have added up, -0.0 if there are none.
    shared = [
        "all[threadIdx.x] = sum;",
        f"for (unsigned int near = 1; near < {n}; near *= 2) {{",
        "    __syncthreads();",
        f"    const double before = lane >= near ? all[threadIdx.x - near * {layout.step}] : -0.0;",
        "    __syncthreads();",
        "    sum = before + sum;",
        "    all[threadIdx.x] = sum;",
        "}",
        "__syncthreads();",
        f"const double tile = all[threadIdx.x + ({n - 1} - lane) * {layout.step}];",
        "__syncthreads();",
    ]
    body = [
        f"const index_t row = group * {rows} + slot;",
        *row,
        "double carried = -0.0;",  # so that a sum of nothing but -0.0 is that
        f"for (index_t first = 0; first < terms; first += {n}) {{",
        "    const bool used = row < rows && first + lane < terms;",
        f"    const index_t r = {'terms - 1 - first - lane' if reverse else 'first + lane'};",
        *(f"    {line}" for line in term),
        "    double sum = used ? (double)x[x_k + x_t] : -0.0;",
        *(f"    {line}" for line in (shared if n > 1 else ["const double tile = sum;"])),
        "    if (used) y[y_k + y_t] = carried + sum;",
        "    carried += tile;",
        "}",
    ]
    before = [*([f"__shared__ double all[{THREADS}];"] if n > 1 else []), *places_of_threads(layout)]
    inside = "".join(f"        {line}\n" for line in body)
    return (
        f"{PRELUDE}{INDEX.format(index)}\n"
        f'extern "C" __global__ void cumsum_kernel({", ".join(parameters)}) {{\n'
        f"{''.join(f'    {line}' + chr(10) for line in before)}"
        f"    const index_t groups = (rows + {rows - 1}) / {rows};\n"
        f"    for (index_t group = blockIdx.x; group < groups; group += gridDim.x) {{\n{inside}    }}\n}}\n"
    )


def cumsum(outs: Sequence[Spec], inputs: Sequence[Spec], axis: int, reverse: bool) -> list[Launch]:
    """Plans running sums along an axis, in double: the lanes of a row take tiles of it one after the other.

    >>> import numpy as np
    >>> from minigan.cuda.sort import cumsum
    >>> x = np.ones((4, 600), np.float32)
    >>> [(step.name, step.blocks) for step in cumsum([x], [x], axis=1, reverse=False)]
    [('cumsum_kernel', 4)]
    """
    (x,), (y,) = inputs, outs
    kept, terms = walked([x, y], [_others(x, axis)] * 2), walked([x, y], [[axis]] * 2)
    n, m = math.prod(kept.sizes), math.prod(terms.sizes)
    if not n or not m:
        return []
    layout = layout_of(n, m, neighbours_along(kept, terms))._replace(parts=1, share=m)
    form = Layout(0, 0, layout.lanes, layout.along, 1, 0)
    source = _cumsum_text(type_of(x.dtype), form, len(kept.sizes), reverse, index_type(max(n, m)))
    words: tuple[Word, ...] = (Operand(0), Result(0), *kept.words, *terms.words, n, m)
    return [Launch("cumsum_kernel", source, layout.blocks, THREADS, words)]


# Sorting

# Whether element p, a number v, comes before element q, a number w: NaN last, and equal ones in their order.
_BEFORE = "(v < w || (v == v && w != w) || ((v == w || (v != v && w != w)) && p < q))"


@functools.lru_cache(maxsize=1024)
def _argsort_text(dtype: str, axes: int, descending: bool, merges: bool, index: str) -> str:
    declared, row = walk("row", "k", axes, ["x", "from", "to"])
    sign = "-" if descending else ""
    parameters = [
        f"const {dtype}* x",
        "const long long* from",
        "long long* to",
        "long long n",
        "long long terms",
        "long long width",
        *declared,
        "long long x_t",
        "long long from_t",
        "long long to_t",
    ]
    body = [
        "const index_t row = i / (index_t)terms, place = i % (index_t)terms;",
        *row,
        "const long long run = place / width * width;",
    ]
    if merges:
        body += [
            "const long long q = from[from_k + place * from_t];",
            f"const {dtype} w = {sign}x[x_k + q * x_t];",
            # Both runs are in order: bisection finds how many of the other come first.
            "const long long other = place / width % 2 ? run - width : run + width;",
            "long long low = 0, high = other + width < terms ? width : other < terms ? terms - other : 0;",
            "while (low < high) {",
            "    const long long middle = (low + high) / 2;",
            "    const long long p = from[from_k + (other + middle) * from_t];",
            f"    const {dtype} v = {sign}x[x_k + p * x_t];",
            f"    if ({_BEFORE}) low = middle + 1; else high = middle;",
            "}",
            "to[to_k + ((other < run ? other : run) + place - run + low) * to_t] = q;",
        ]
    else:
        body += [
            "const long long q = place, end = run + width < terms ? run + width : terms;",
            f"const {dtype} w = {sign}x[x_k + q * x_t];",
            "long long first = run;",
            "for (long long p = run; p < end; ++p) {",
            f"    const {dtype} v = {sign}x[x_k + p * x_t];",
            f"    first += {_BEFORE};",
            "}",
            "to[to_k + first * to_t] = q;",
        ]
    return kernel(f"argsort_{'merge' if merges else 'tiles'}", parameters, [], body, index)


def argsort(outs: Sequence[Spec], inputs: Sequence[Spec], axis: int, descending: bool) -> list[Launch]:
    """Plans a stable sort of positions: tiles of a row by counting, then runs merged, twice as long in each launch.

    Each thread works out the place of one element: in a tile how many of its `TILE` elements come first, in a merge
    how many of the other run do, by bisection. A row of n elements takes 1 + log2(n / TILE) launches.

    >>> import numpy as np
    >>> from minigan.cuda.sort import argsort
    >>> x, y = np.ones(1000, np.float32), np.ones(1000, np.int64)
    >>> [step.name for step in argsort([y], [x], axis=0, descending=True)]
    ['argsort_tiles', 'argsort_merge', 'argsort_merge']
    """
    (x,), (y,) = inputs, outs
    kept, along = walked([x, y], [_others(x, axis)] * 2), walked([x, y], [[axis]] * 2)
    rows, terms = math.prod(kept.sizes), math.prod(along.sizes)
    if not rows or not terms:
        return []
    (x_kept, y_kept), ((x_along,), (y_along,)) = kept.steps, along.steps
    dense = [terms * math.prod(kept.sizes[a + 1 :]) for a in range(len(kept.sizes))]
    merges = max(0, (-(-terms // TILE) - 1).bit_length())
    places: tuple[tuple[Any, Sequence[int], int], ...] = (
        (Result(0), y_kept, y_along),
        (Scratch(0, 8 * rows * terms), dense, 1),
    )
    plan = []
    for step in range(merges + 1):
        # By turns, so that the last lands in the result.
        (to, to_kept, to_along), (source, source_kept, source_along) = (
            places if (merges - step) % 2 == 0 else places[::-1]
        )
        if not step:  # nothing is read there yet
            source, source_kept, source_along = to, to_kept, to_along
        name = f"argsort_{'merge' if step else 'tiles'}"
        words: list[Word] = [Operand(0), source, to, rows * terms, terms, TILE << max(step - 1, 0)]
        words += [*kept.sizes[1:], *x_kept, *source_kept, *to_kept, x_along, source_along, to_along]
        text = _argsort_text(
            type_of(x.dtype), len(kept.sizes), descending, step > 0, index_type(rows * terms)
        )
        plan.append(Launch(name, text, grid(rows * terms), THREADS, tuple(words)))
    return plan
