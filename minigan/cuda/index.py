"""Kernels that move elements: casts, pieces put into zeros, joined arrays, the marks of classes, elements picked by
indices, and the adjoint of picking, which adds up those that meet.

Nobody checks the indices of a compiled step, so these kernels do: where one is out of range, nothing is read or written
for it, what is picked is NaN (0 among integers), and what is added is left out.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from minigan.cuda.launch import THREADS, Launch, Operand, Plan, Result, Scratch, Word, grid
from minigan.cuda.loops import (
    Form,
    coordinates,
    form_of,
    index_type,
    kernel,
    offset,
    stride_parameters,
    strides_of,
)
from minigan.cuda.text import type_of
from minigan.kernels.axes import collapse
from minigan.kernels.rows import Spec

FEW = 1024  # indices that every thread looks through; the sorting of more pays for its six kernels
SCAN = 1024  # threads of the block that adds up counts

NAN = "({})__longlong_as_double(0x7ff8000000000000LL)"
WITHIN = """
__device__ long long within(long long k, long long size, bool from_end) {
    if (from_end && k < 0) k += size;
    return k >= 0 && k < size ? k : -1;
}
"""


class Walked(NamedTuple):
    """What a loop walks through: an array, or without a `word` only a number that grows by steps, with the axes.

    In the body of the loop, `at_` and the name is how many elements into the array the loop is.

    Attributes:
        steps: along the axes of the loop, in bytes.
    """

    name: str
    dtype: Any
    steps: Sequence[int]
    word: Word | None = None


def _number(name: str, steps: Sequence[int]) -> Walked:
    return Walked(name, np.int8, steps)


@functools.lru_cache(maxsize=4096)
def _text(
    name: str,
    axes: int,
    walked: tuple[tuple[str, Form, bool], ...],
    parameters: tuple[str, ...],
    body: tuple[str, ...],
    index: str,
) -> str:
    pointers = [
        f"{'' if each == 'y' else 'const '}{form.dtype}* {each}"
        for each, form, in_memory in walked
        if in_memory
    ]
    declared = [*pointers, "long long n", *parameters]
    lines = []
    if any(form.letter not in "vs" for _, form, _ in walked):
        declared += [f"long long n{axis}" for axis in range(1, axes)]
        lines = coordinates(axes)
    for each, form, _ in walked:
        declared += stride_parameters(each, form)
        lines.append(f"const long long at_{each} = {offset(each, form)};")
    source = kernel(f"{name}_kernel", declared, (), [*lines, *body], index)
    return source.replace('extern "C"', f'{WITHIN}\nextern "C"', 1)


def _loop(
    name: str,
    shape: Sequence[int],
    walked: Sequence[Walked],
    body: Sequence[str],
    more: Sequence[tuple[str, Word]] = (),
    index: str = "",
) -> list[Launch]:
    """A kernel that runs `body` for each element of a shape; `more` are further parameters, as declared, and words."""
    n = math.prod(shape)
    if not n:
        return []
    dims, steps = collapse(tuple(shape), [list(each.steps) for each in walked])
    forms = [form_of(each.dtype, s, dims) for each, s in zip(walked, steps, strict=True)]
    words: list[Word] = [each.word for each in walked if each.word is not None]
    words += [n, *(word for _, word in more)]
    if any(form.letter not in "vs" for form in forms):
        words += dims[1:]
    for form, s in zip(forms, steps, strict=True):
        words += strides_of(form, s)
    described = tuple(
        (each.name, form, each.word is not None) for each, form in zip(walked, forms, strict=True)
    )
    source = _text(name, len(dims), described, tuple(p for p, _ in more), tuple(body), index or index_type(n))
    return [Launch(f"{name}_kernel", source, grid(n), THREADS, tuple(words))]


def _dense(shape: Sequence[int]) -> list[int]:
    """Elements from one to the next along each axis, in C order."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


# Elements that stay what they are


def cast(outs: Sequence[Spec], inputs: Sequence[Spec], dtype: Any) -> Plan:
    """The kernel of a conversion, as C converts: to integers towards 0, to float32 to the nearest, and to infinity."""
    (y,), (x,) = outs, inputs
    return _copied("cast", x, 0, y.strides, Result(0), y.dtype)


def _copied(name: str, x: Spec, number: int, steps: Sequence[int], to: Result, dtype: Any) -> list[Launch]:
    """The kernel that writes input `number` to a place in the output with these strides."""
    arrays = [Walked("y", dtype, steps, to), Walked("x", x.dtype, x.strides, Operand(number))]
    return _loop(name, x.shape, arrays, [f"y[at_y] = ({type_of(dtype)})x[at_x];"])


def concatenate(outs: Sequence[Spec], inputs: Sequence[Spec], axis: int) -> Plan:
    """A kernel for each of the arrays that are joined."""
    (y,), plan, before = outs, [], 0
    for number, x in enumerate(inputs):
        to = Result(0, before * y.strides[axis])
        plan += _copied("concatenate", x, number, y.strides, to, y.dtype)
        before += x.shape[axis]
    return plan


class _Part(NamedTuple):
    """Which elements of an axis a slice takes, and the step in bytes of what they are put in from."""

    first: int
    every: int
    length: int
    step: int


def _parts(key: tuple[Any, ...], shape: tuple[int, ...], steps: Sequence[int]) -> Iterator[_Part]:
    """For each axis of a shape what a key of integers, slices, `None` and `...` takes of it."""
    left, axis = list(steps), 0
    whole = len(shape) - sum(k is not None and k is not Ellipsis for k in key)
    for k in key:
        if k is None:
            left.pop(0)
        elif k is Ellipsis:
            for n in shape[axis : axis + whole]:
                yield _Part(0, 1, n, left.pop(0))
            axis += whole
        elif isinstance(k, slice):
            taken = range(*k.indices(shape[axis]))
            yield _Part(taken.start, taken.step, len(taken), left.pop(0))
            axis += 1
        else:
            yield _Part(int(k) % shape[axis], 1, 1, 0)
            axis += 1


def unslice(
    outs: Sequence[Spec], inputs: Sequence[Spec], key: tuple[Any, ...], shape: tuple[int, ...]
) -> Plan:
    """One kernel over the whole result, which reads an element where the slice has one, and writes 0 elsewhere."""
    (y,), (gy,) = outs, inputs
    parts = list(_parts(key, shape, gy.strides))
    cut = [a for a, (part, n) in enumerate(zip(parts, shape, strict=True)) if part[:3] != (0, 1, n)]
    arrays = [Walked("y", y.dtype, y.strides, Result(0))]
    arrays.append(
        Walked("gy", gy.dtype, [0 if a in cut else p.step for a, p in enumerate(parts)], Operand(0))
    )
    arrays += [_number(f"along{a}", [int(a == axis) for axis in range(len(shape))]) for a in cut]
    more: list[tuple[str, Word]] = []
    lines, inside, at = [], ["true"], ["at_gy"]
    for a in cut:
        first, every, length, step = parts[a]
        more += [
            (f"long long {name}{a}", word)
            for name, word in zip(
                ("first", "count", "each"), (first, length, step // gy.dtype.itemsize), strict=True
            )
        ]
        lines.append(f"const long long from{a} = at_along{a} - first{a};")
        if every == 1:
            lines.append(f"const long long k{a} = from{a};")
        else:  # C divides towards 0, so whatever lies before the first has a remainder or is negative
            more.append((f"long long every{a}", every))
            lines.append(f"const long long k{a} = from{a} / every{a};")
            inside.append(f"from{a} % every{a} == 0")
        inside += [f"k{a} >= 0", f"k{a} < count{a}"]
        at.append(f"k{a} * each{a}")
    lines.append(f"y[at_y] = {' && '.join(inside)} ? gy[{' + '.join(at)}] : ({type_of(y.dtype)})0;")
    return _loop("unslice", shape, arrays, lines, more)


def one_hot(outs: Sequence[Spec], inputs: Sequence[Spec], classes: int, dtype: Any) -> Plan:
    """The kernel that marks the column of each label; no column has the number of a label out of range."""
    (y,), (labels,) = outs, inputs
    arrays = [
        Walked("y", y.dtype, y.strides, Result(0)),
        Walked("labels", labels.dtype, [*labels.strides, 0], Operand(0)),
        _number("column", [0] * len(labels.shape) + [1]),
    ]
    line = f"y[at_y] = ({type_of(y.dtype)})((long long)labels[at_labels] == at_column);"
    return _loop("one_hot", y.shape, arrays, [line])


# Elements picked by indices


def _place(indices: Spec, negative: bool = True) -> str:
    """The text of the place that an index of an axis of `size` names, -1 if there is none."""
    return (
        f"within((long long)indices[at_indices], size, {str(negative and indices.dtype.kind == 'i').lower()})"
    )


def _picked(
    name: str,
    outs: Sequence[Spec],
    inputs: Sequence[Spec],
    axis: int,
    x_steps: Sequence[int],
    indices_steps: Sequence[int],
    negative: bool = True,
) -> Plan:
    """The kernel that reads an element of x, whose steps are those beside `axis`, at the index along that axis."""
    (y,), (x, indices) = outs, inputs
    arrays = [
        Walked("y", y.dtype, y.strides, Result(0)),
        Walked("x", x.dtype, x_steps, Operand(0)),
        Walked("indices", indices.dtype, indices_steps, Operand(1)),
    ]
    missing = NAN.format(type_of(y.dtype)) if y.dtype.kind == "f" else "0"
    body = [
        f"const long long k = {_place(indices, negative)};",
        f"y[at_y] = k < 0 ? {missing} : x[at_x + k * each];",
    ]
    more = [("long long size", x.shape[axis]), ("long long each", x.strides[axis] // x.dtype.itemsize)]
    return _loop(name, y.shape, arrays, body, more)


def take(outs: Sequence[Spec], inputs: Sequence[Spec], axis: int, negative: bool = True) -> Plan:
    """The kernel that copies slices along an axis.

    >>> import numpy as np
    >>> from minigan.cuda.index import take
    >>> (launch,) = take([np.empty((2, 3))], [np.ones((4, 3)), np.array([2, 0])], axis=0)
    >>> launch.name, launch.blocks, launch.words[:3]
    ('take_kernel', 1, (Result(number=0, offset=0), Operand(number=0, offset=0), Operand(number=1, offset=0)))
    """
    x, indices = inputs
    lead, rest = x.strides[:axis], x.strides[axis + 1 :]
    x_steps = [*lead, *[0] * len(indices.shape), *rest]
    return _picked(
        "take", outs, inputs, axis, x_steps, [*[0] * len(lead), *indices.strides, *[0] * len(rest)], negative
    )


def embedding(outs: Sequence[Spec], inputs: Sequence[Spec]) -> Plan:
    """The kernel that copies rows of a table; there is none before the first."""
    return take(outs, inputs, 0, negative=False)


def gather(outs: Sequence[Spec], inputs: Sequence[Spec], axis: int) -> Plan:
    """The kernel that picks an element along an axis for every index."""
    x, indices = inputs
    steps = [0 if a == axis else s for a, s in enumerate(x.strides)]
    return _picked("gather", outs, inputs, axis, steps, indices.strides)


# The adjoints, which add up what has the same index


class _Sums(NamedTuple):
    """Where the terms of sums are: each has a number, and an element of the result adds up those of one number.

    Steps are along the axes of the result, or of a list of indices. Those of gy are in bytes.

    Attributes:
        list_shape: the indices that an element of the result looks through, as long as they are few.
        own_indices, list_indices: steps of the indices, for an element's list to begin at, and in it.
        own_gy, list_gy: steps of gy, likewise.
        place: steps of the place that an element has along the axis of the indices.
        all_gy: steps of gy, for the list of all indices.
        own_from: steps of gy, for an element's terms in that list to begin at.
        number: steps of an element's number.
        lists: steps of the number along the axes of the indices.
        every: from one place along the axis to the next.
        numbers: how many there are.
    """

    list_shape: tuple[int, ...]
    own_indices: Sequence[int]
    list_indices: Sequence[int]
    own_gy: Sequence[int]
    list_gy: Sequence[int]
    place: Sequence[int]
    all_gy: Sequence[int]
    own_from: Sequence[int]
    number: Sequence[int]
    lists: Sequence[int]
    every: int
    numbers: int


def scatter(outs: Sequence[Spec], inputs: Sequence[Spec], axis: int, shape: tuple[int, ...]) -> Plan:
    """The kernels of the adjoint of `take`: the rows along an axis of the result are the numbers.

    >>> import numpy as np
    >>> from minigan.cuda.index import scatter
    >>> def plan(n):
    ...     return scatter([np.empty((4, 3))], [np.ones((n, 3)), np.zeros(n, np.int64)], axis=0, shape=(4, 3))
    >>> [launch.name for launch in plan(64)], len(plan(100_000))
    (['scatter_kernel'], 6)
    """
    gy, indices = inputs
    end = axis + len(indices.shape)
    own = [*gy.strides[:axis], 0, *gy.strides[end:]]
    among = gy.strides[axis:end]
    place = [int(a == axis) for a in range(len(shape))]
    nothing = [0] * len(shape)
    lists = [0] * len(indices.shape)
    sums = _Sums(
        indices.shape, nothing, indices.strides, own, among, place, among, own, place, lists, 1, shape[axis]
    )
    return _added("scatter", outs, inputs, shape[axis], sums)


def gather_adjoint(outs: Sequence[Spec], inputs: Sequence[Spec], axis: int, shape: tuple[int, ...]) -> Plan:
    """The kernels of the adjoint of `gather`: every element of the result has its number."""
    gy, indices = inputs
    own_indices, own_gy, lists = (
        [0 if a == axis else s for a, s in enumerate(steps)]
        for steps in (indices.strides, gy.strides, _dense(shape))
    )
    sums = _Sums(
        (indices.shape[axis],),
        own_indices,
        (indices.strides[axis],),
        own_gy,
        (gy.strides[axis],),
        [int(a == axis) for a in range(len(shape))],
        gy.strides,
        [0] * len(shape),
        _dense(shape),
        lists,
        _dense(shape)[axis],
        math.prod(shape),
    )
    return _added("gather_adjoint", outs, inputs, shape[axis], sums)


def _added(name: str, outs: Sequence[Spec], inputs: Sequence[Spec], size: int, sums: _Sums) -> Plan:
    """The kernels of sums over equal indices, in float64 and in the order of the list, so always with the same bits."""
    few = math.prod(sums.list_shape) <= FEW
    return _looked_through(name, outs, inputs, size, sums) if few else _sorted(name, outs, inputs, size, sums)


def _sum_type(y: Spec) -> str:
    return "float64" if y.dtype.kind == "f" else "int64"


def _looked_through(
    name: str, outs: Sequence[Spec], inputs: Sequence[Spec], size: int, sums: _Sums
) -> list[Launch]:
    """One kernel, in which each element looks through all indices of its list for its own place.

    That takes as many comparisons as there are elements times indices; neighbours read the same indices.
    """
    (y,), (gy, indices) = outs, inputs
    arrays = [
        Walked("y", y.dtype, y.strides, Result(0)),
        Walked("gy", gy.dtype, sums.own_gy, Operand(0)),
        Walked("indices", indices.dtype, sums.own_indices, Operand(1)),
        _number("place", sums.place),
    ]
    dims, (of_indices, of_gy) = collapse(sums.list_shape, [list(sums.list_indices), list(sums.list_gy)])
    more: list[tuple[str, Word]] = [("long long size", size)]
    body = [f"{_sum_type(y)} total = 0;"]
    for a, n in enumerate(dims):
        body.append(f"for (long long l{a} = 0; l{a} < list{a}; ++l{a})")
        more += [
            (f"long long list{a}", n if math.prod(sums.list_shape) else 0),
            (f"long long to_index{a}", of_indices[a] // indices.dtype.itemsize),
            (f"long long to_term{a}", of_gy[a] // gy.dtype.itemsize),
        ]
    ahead = {kind: " + ".join(f"l{a} * to_{kind}{a}" for a in range(len(dims))) for kind in ("index", "term")}
    place = _place(indices).replace("at_indices", f"at_indices + {ahead['index']}")
    body += [
        f"    if ({place} == at_place) total += gy[at_gy + {ahead['term']}];",
        f"y[at_y] = ({type_of(y.dtype)})total;",
    ]
    return _loop(name, y.shape, arrays, body, more)


def _sorted(name: str, outs: Sequence[Spec], inputs: Sequence[Spec], size: int, sums: _Sums) -> list[Launch]:
    """Kernels that sort the terms by their numbers, and one that adds them up.

    How many terms each number has is counted; a running sum of that tells where its terms begin; each term is put
    somewhere among those of its number, and from there to its place among them, which is how many of them come before
    it. The work is that of reading terms and result once, and the square of how many terms meet, for each number; the
    running sum of one block takes numbers / 1024 steps.
    """
    (y,), (gy, indices) = outs, inputs
    n = math.prod(indices.shape)
    index = index_type(max(n, sums.numbers + 1, math.prod(y.shape)))
    item = 4 if index == "unsigned int" else 8
    counts, begins = Scratch(0, sums.numbers * item), Scratch(1, (sums.numbers + 1) * item)
    thrown, terms = Scratch(2, n * item), Scratch(3, n * 8)
    of_index = [
        Walked("indices", indices.dtype, indices.strides, Operand(1)),
        _number("number", sums.lists),
    ]
    to_number: list[tuple[str, Word]] = [("long long size", size), ("long long every", sums.every)]
    number = [
        f"const long long k = {_place(indices)};",
        "if (k < 0) continue;",
        "const long long number = at_number + k * every;",
    ]

    def each_index(
        what: str, arrays: list[Walked], lines: list[str], *more: tuple[str, Word]
    ) -> list[Launch]:
        return _loop(
            f"{name}_{what}",
            indices.shape,
            [*of_index, *arrays],
            [*number, *lines],
            [*to_number, *more],
            index,
        )

    to_counts, to_begins = ("index_t* counts", counts), ("const index_t* begins", begins)
    total = f"{_sum_type(y)} total = 0;"
    return [
        *_loop(f"{name}_clear", (sums.numbers,), [], ["counts[i] = 0;"], [to_counts], index),
        *each_index("count", [], ["atomicAdd(&counts[number], (index_t)1);"], to_counts),
        Launch(
            "running_sum_kernel",
            SCANNED.replace("INDEX", index),
            1,
            SCAN,
            (counts, begins, sums.numbers),
        ),
        *each_index(
            "throw",
            [],
            ["thrown[begins[number] + atomicAdd(&counts[number], (index_t)1)] = i;"],
            to_counts,
            to_begins,
            ("index_t* thrown", thrown),
        ),
        *each_index(
            "order",
            [_number("gy", [step // gy.dtype.itemsize for step in sums.all_gy])],
            [
                "const index_t begin = begins[number], end = begins[number + 1];",
                "index_t before = 0;",
                "for (index_t t = begin; t < end; ++t) before += thrown[t] < i;",
                "terms[begin + before] = at_gy;",
            ],
            to_begins,
            ("const index_t* thrown", thrown),
            ("long long* terms", terms),
        ),
        *_loop(
            name,
            y.shape,
            [
                Walked("y", y.dtype, y.strides, Result(0)),
                Walked("gy", gy.dtype, sums.own_from, Operand(0)),
                _number("number", sums.number),
            ],
            [
                total,
                "const index_t end = begins[at_number + 1];",
                "for (index_t t = begins[at_number]; t < end; ++t) total += gy[at_gy + terms[t]];",
                f"y[at_y] = ({type_of(y.dtype)})total;",
            ],
            [to_begins, ("const long long* terms", terms)],
            index,
        ),
    ]


# Every thread adds up a piece, the pieces are added up in log2(SCAN) rounds, and the counts are cleared for their next
# use.
SCANNED = """
typedef INDEX index_t;
extern "C" __global__ void running_sum_kernel(index_t* counts, index_t* begins, long long n) {
    __shared__ index_t sums[1024];
    const unsigned int me = threadIdx.x;
    const long long piece = (n + blockDim.x - 1) / blockDim.x;
    const long long first = me * piece, end = first + piece < n ? first + piece : n;
    index_t total = 0;
    for (long long i = first; i < end; ++i) total += counts[i];
    sums[me] = total;
    __syncthreads();
    for (unsigned int back = 1; back < blockDim.x; back *= 2) {
        const index_t before = me >= back ? sums[me - back] : 0;
        __syncthreads();
        sums[me] += before;
        __syncthreads();
    }
    index_t begin = sums[me] - total;
    for (long long i = first; i < end; ++i) {
        begins[i] = begin;
        begin += counts[i];
        counts[i] = 0;
    }
    if (me + 1 == blockDim.x) begins[n] = begin;
}
"""
