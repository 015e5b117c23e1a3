"""The convolution kernels: against sums over taps in float64, parted in every way, with guards around all memory."""

import ctypes
import itertools
import mmap
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from minigan.kernels import conv, launch, machine
from minigan.kernels.conv import Case, Pair
from minigan.kernels.rows import Operand, Plan, Result, Scratch, run

pytest.importorskip("numba", reason="the convolution kernels need Numba")
if launch.numba() is None:
    pytest.skip("Numba is switched off", allow_module_level=True)

Array = NDArray[Any]
Block = tuple[int, int, int, int]

DTYPES = ["float32", "float64"]
KINDS = ["conv", "conv_transpose", "conv_weight"]
GUARD = 12345.0
EPILOGUE = ctypes.CFUNCTYPE(None, *[ctypes.c_ssize_t] * 5)


class Shape(NamedTuple):
    """A convolution; its padding is top, bottom, left, right."""

    images: int
    size: Pair
    channels: int
    outputs: int
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def attributes(self) -> tuple[Pair, tuple[Pair, Pair], Pair, int]:
        return self.stride, (self.padding[:2], self.padding[2:]), self.dilation, self.groups

    @property
    def out(self) -> Pair:
        axes = zip(self.size, self.attributes[1], self.dilation, self.kernel, self.stride, strict=True)
        height, width = ((n + sum(p) - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in axes)
        return height, width

    def case(self, dtype: str) -> Case:
        sizes = self.images, self.size, self.channels, self.kernel, self.out, self.outputs
        return Case(*sizes, *self.attributes, np.dtype(dtype).itemsize)


SHAPES = [
    Shape(5, (14, 14), 64, 128, (4, 4), (2, 2)),
    Shape(3, (28, 28), 1, 64, (4, 4), (2, 2)),  # staged when transposed
    Shape(2, (9, 7), 3, 50),
    Shape(1, (6, 6), 64, 64),  # parts by columns
    Shape(7, (5, 8), 48, 96, (1, 1), padding=(0, 0, 0, 0)),  # nothing to copy
    Shape(1, (1, 1), 2, 1, (1, 1), (3, 3), (2, 0, 0, 2)),
    Shape(2, (11, 6), 17, 33, (5, 2), (3, 1), (0, 3, 2, 1), (1, 2)),  # rows left over, phases without taps
    Shape(3, (7, 9), 8, 20, (1, 2), (2, 3), (0, 0, 0, 0)),
    Shape(2, (6, 5), 9, 12, (3, 2), (2, 1), (1, 0, 0, 2), (1, 1), 3),
    Shape(2, (4, 4), 6, 32, groups=2),
    Shape(9, (6, 7), 33, 33, groups=33),
    Shape(2, (9, 8), 64, 64, (5, 3), (2, 1), (2, 1, 0, 1), (1, 2), 64),
    Shape(2, (8, 8), 32, 32, (2, 2), (2, 2), (0, 0, 0, 0), groups=32),
    Shape(1, (12, 12), 130, 70, padding=(1, 1, 1, 1)),  # more terms than are summed up in registers
    Shape(40, (3, 3), 16, 16, (2, 2), padding=(0, 0, 0, 0)),
    Shape(70, (2, 2), 5, 80, (2, 2), padding=(0, 1, 1, 0)),
]


def windows(x: Array, shape: Shape) -> Any:
    """For each tap the part of padded x (a view) that it is multiplied with."""
    (height, width), (sy, sx), (dy, dx) = shape.out, shape.stride, shape.dilation
    for ky, kx in itertools.product(*map(range, shape.kernel)):
        rows = slice(ky * dy, ky * dy + (height - 1) * sy + 1, sy)
        yield (ky, kx), x[:, rows, kx * dx : kx * dx + (width - 1) * sx + 1 : sx]


def reference(kind: str, shape: Shape, a: Array, b: Array) -> Array:
    """The sums, tap by tap and group by group, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    top, bottom, left, right = shape.padding
    (h, w), groups = shape.size, shape.groups
    inputs, outputs = shape.channels // groups, shape.outputs // groups
    padded = np.zeros((shape.images, h + top + bottom, w + left + right, shape.channels))
    weight = np.zeros((*shape.kernel, inputs, shape.outputs))
    y = np.zeros((shape.images, *shape.out, shape.outputs))
    if kind != "conv_transpose":
        padded[:, top : top + h, left : left + w] = a
    for (tap, view), group in itertools.product(windows(padded, shape), range(groups)):
        x_part = view[..., group * inputs : (group + 1) * inputs]
        columns = slice(group * outputs, (group + 1) * outputs)
        if kind == "conv":
            y[..., columns] += x_part @ b[tap][:, columns]
        elif kind == "conv_weight":
            weight[tap][:, columns] = np.einsum("nhwc,nhwo->co", x_part, b[..., columns])
        else:
            x_part += a[..., columns] @ b[tap][:, columns].T
    return {"conv": y, "conv_weight": weight, "conv_transpose": padded[:, top : top + h, left : left + w]}[
        kind
    ]


def arrays(kind: str, shape: Shape, dtype: str, seed: int = 0) -> tuple[tuple[int, ...], Array, Array]:
    """The shape of the result, and random operands between numbers that are NaN."""
    x = (shape.images, *shape.size, shape.channels)
    w = (*shape.kernel, shape.channels // shape.groups, shape.outputs)
    y = (shape.images, *shape.out, shape.outputs)
    out, a, b = {"conv": (y, x, w), "conv_transpose": (x, y, w), "conv_weight": (w, x, y)}[kind]
    draw = np.random.default_rng(seed)
    operands = []
    for sizes in (a, b):
        whole = np.full(int(np.prod(sizes)) + 128, np.nan, dtype)
        whole[64:-64] = draw.standard_normal(whole.size - 128)
        operands.append(whole[64:-64].reshape(sizes))
    return out, *operands


def framed(sizes: tuple[int, ...], dtype: str) -> tuple[Array, Array]:
    """An array between guards, and the whole."""
    whole = np.full(int(np.prod(sizes)) + 128, GUARD, dtype)
    return whole[64:-64].reshape(sizes), whole


def compute(kind: str, out: Array, a: Array, b: Array, *attributes: Any) -> bool:
    """Compute the result as operations do outside of compiled steps; whether there is compiled code."""
    x, w, y = {"conv": (a, b, out), "conv_transpose": (out, b, a), "conv_weight": (a, out, b)}[kind]
    plan = conv.row(kind, x, w, y, 1, *attributes)
    if plan is not None:
        run(plan, [out], [a, b])
    return plan is not None


class Row:
    """A row of a machine, whose scratch memory is full of NaN and has guards around it."""

    def __init__(self, plan: Plan, out: Array, a: Array, b: Array) -> None:
        words = [plan.kernel.address, plan.n, plan.m, plan.split, plan.quantum]
        for word in plan.words:
            match word:
                case Scratch():
                    self.memory = np.full(word.nbytes // 8 + 24, GUARD)
                    start = -(self.memory.ctypes.data + 64) % 64 // 8 + 8
                    self.scratch = self.memory[start : start + word.nbytes // 8]
                    self.scratch[...] = np.nan
                    words.append(self.scratch.ctypes.data)
                case Operand():
                    words.append((a, b)[word.number].ctypes.data)
                case Result():
                    words.append(out.ctypes.data)
                case int():
                    words.append(word)
                case _:
                    words.append(word.ctypes.data)
        self.plan, self.table = plan, np.array(words, np.int64)

    def behind(self, epilogue: Any, row: int) -> None:
        """Set the epilogue."""
        self.table[-2:] = ctypes.cast(epilogue, ctypes.c_void_p).value or 0, row

    def run(self, *blocks: Block) -> None:
        """Run blocks, or the whole row if there are none."""
        for block in blocks or [(0, self.plan.n, 0, self.plan.m)]:
            self.plan.kernel.function(self.table.ctypes.data, *block)

    def check_guards(self) -> None:
        self.scratch[...] = GUARD
        assert np.all(self.memory == GUARD), "written beside the scratch memory"


def check(kind: str, shape: Shape, dtype: str, seed: int = 0) -> None:
    sizes, a, b = arrays(kind, shape, dtype, seed)
    out, whole = framed(sizes, dtype)
    before = a.copy(), b.copy()
    assert compute(kind, out, a, b, *shape.attributes)
    expected = reference(kind, shape, a, b)
    bound = reference(kind, shape, np.abs(a), np.abs(b))
    bound *= 2e-5 if dtype == "float32" else 1e-14
    assert np.all(np.abs(out - expected) <= bound), f"{kind} {dtype} {shape}"
    first = out.copy()
    out[...] = np.nan
    row = Row(conv.plan(kind, shape.case(dtype)), out, a, b)
    row.run()
    row.check_guards()
    np.testing.assert_array_equal(out, first)
    out[...] = GUARD
    assert np.all(whole == GUARD), f"written beside the result: {kind} {shape}"
    np.testing.assert_array_equal(a, before[0])
    np.testing.assert_array_equal(b, before[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_chosen_shapes_against_float64(kind: str, dtype: str) -> None:
    for shape in SHAPES:
        check(kind, shape, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_random_shapes_against_float64(kind: str, dtype: str) -> None:
    draw = np.random.default_rng(1)
    checked = 0
    while checked < 40:
        kernel, stride, dilation, size = (
            tuple(draw.integers(low, high, 2).tolist()) for low, high in ((1, 6), (1, 4), (1, 3), (1, 12))
        )
        groups = int(draw.choice([1, 1, 1, 2, 3, 16, 33]))
        inputs, outputs = (1, 1) if groups > 3 else draw.choice([1, 2, 3, 8, 17, 33, 64], 2).tolist()
        padding = tuple(draw.integers(0, 4, 4).tolist())
        images = int(draw.choice([1, 2, 5, 13]))
        shape = Shape(
            images, size, groups * inputs, groups * outputs, kernel, stride, padding, dilation, groups
        )
        if min(shape.out) > 0:
            check(kind, shape, dtype, checked)
            checked += 1


def machine_parts(plan: Plan, parts: int) -> list[Block]:
    """The blocks that `interpreter.run_part` makes of a row."""
    size = plan.m if plan.split else plan.n
    quanta = -(-size // plan.quantum)
    edges = [min(part * quanta // parts * plan.quantum, size) for part in range(parts + 1)]
    ranges = [(begin, end) for begin, end in itertools.pairwise(edges) if begin < end]
    return [(0, plan.n, *part) if plan.split else (*part, 0, plan.m) for part in ranges]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_bits_do_not_depend_on_the_parts(kind: str, dtype: str) -> None:
    draw = np.random.default_rng(2)
    splits = set()
    for shape, parts in itertools.product(SHAPES, (2, 3, 63)):
        sizes, a, b = arrays(kind, shape, dtype)
        one, out = np.empty(sizes, dtype), np.empty(sizes, dtype)
        Row(conv.plan(kind, shape.case(dtype)), one, a, b).run()
        row = Row(conv.plan(kind, shape.case(dtype), parts), out, a, b)
        splits.add(row.plan.split)
        for count in {parts, 5}:  # 5: another number than there is memory for, one after the other
            blocks = machine_parts(row.plan, count)
            out[...] = np.nan
            row.run(*(blocks[k] for k in draw.permutation(len(blocks))))
            np.testing.assert_array_equal(out, one)
        row.check_guards()
    assert splits == {0, 1}


@pytest.mark.parametrize("kind", KINDS[:2])
def test_parts_have_scratch_memory_of_their_own(kind: str) -> None:
    """Each part begins before the one before it has ended."""
    for shape, parts in itertools.product((SHAPES[0], SHAPES[1], SHAPES[3], SHAPES[10]), (2, 3, 7)):
        sizes, a, b = arrays(kind, shape, "float32")
        out, one = np.empty(sizes, "float32"), np.empty(sizes, "float32")
        assert compute(kind, one, a, b, *shape.attributes)
        row = Row(conv.plan(kind, shape.case("float32"), parts), out, a, b)
        waiting = machine_parts(row.plan, parts)

        def run_next(*_: int) -> None:
            if waiting:  # noqa: B023
                row.run(waiting.pop())  # noqa: B023

        epilogue = EPILOGUE(run_next)
        row.behind(epilogue, 0)
        run_next()
        assert not waiting
        np.testing.assert_array_equal(out, one)


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_machine(kind: str) -> None:
    for shape, parts in itertools.product(SHAPES, (1, 2, 5)):
        sizes, a, b = arrays(kind, shape, "float32")
        out, one = np.empty(sizes, "float32"), np.empty(sizes, "float32")
        assert compute(kind, one, a, b, *shape.attributes)
        row = Row(conv.plan(kind, shape.case("float32"), parts), out, a, b)
        assert machine.Machine(row.table, [0], [(0, 1, parts)]).run()
        np.testing.assert_array_equal(out, one)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_an_image_has_the_same_bits_in_any_batch(kind: str) -> None:
    for shape in SHAPES:
        sizes, a, b = arrays(kind, shape, "float32")
        batch, alone = np.empty(sizes, "float32"), np.empty((1, *sizes[1:]), "float32")
        assert compute(kind, batch, a, b, *shape.attributes)
        assert compute(kind, alone, a[-1:], b, *shape.attributes)
        np.testing.assert_array_equal(batch[-1:], alone)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_the_epilogue_sees_complete_rows_once(kind: str) -> None:
    for shape, parts in itertools.product(SHAPES, (1, 3)):
        sizes, a, b = arrays(kind, shape, "float32")
        out, whole = np.empty(sizes, "float32"), np.empty(sizes, "float32")
        assert compute(kind, whole, a, b, *shape.attributes)
        seen, values = np.zeros((out.size // sizes[-1], sizes[-1]), int), out.reshape(-1, sizes[-1])

        def record(row: int, *block: int) -> None:
            assert row == 77
            part = np.s_[block[0] : block[1], block[2] : block[3]]
            seen[part] += 1  # noqa: B023
            values[part] *= 2  # noqa: B023

        epilogue = EPILOGUE(record)
        row = Row(conv.plan(kind, shape.case("float32"), parts), out, a, b)
        row.behind(epilogue, 77)
        row.run(*machine_parts(row.plan, parts))
        assert np.all(seen == 1)
        np.testing.assert_array_equal(out, 2 * whole)


@pytest.mark.skipif(not hasattr(mmap, "PROT_READ"), reason="POSIX only")
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_read_behind_the_operands(kind: str) -> None:
    """Reading further would end this process: the page behind may not be read."""
    protect = ctypes.CDLL(None).mprotect

    def at_the_end(array: Array) -> Array:
        size = (array.nbytes // mmap.PAGESIZE + 1) * mmap.PAGESIZE
        pages = mmap.mmap(-1, size + mmap.PAGESIZE)
        held.append(pages)
        start = np.frombuffer(pages, np.uint8).ctypes.data
        assert protect(ctypes.c_void_p(start + size), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        copy = np.frombuffer(pages, array.dtype, array.size, size - array.nbytes).reshape(array.shape)
        copy[...] = array
        return copy

    for shape in SHAPES:
        held: list[mmap.mmap] = []
        sizes, a, b = arrays(kind, shape, "float32")
        out, again = np.empty(sizes, "float32"), np.empty(sizes, "float32")
        assert compute(kind, out, a, b, *shape.attributes)
        assert compute(kind, again, at_the_end(a), at_the_end(b), *shape.attributes)
        np.testing.assert_array_equal(out, again)


def test_what_there_is_no_kernel_for() -> None:
    shape = Shape(2, (5, 5), 4, 8)
    sizes, x, w = arrays("conv", shape, "float32")
    out = np.full(sizes, GUARD, "float32")
    assert not compute("conv", out, np.asfortranarray(x), w, *shape.attributes)
    assert not compute("conv", out[:0], x[:0], w, *shape.attributes)
    with launch.capturing():
        assert not compute("conv", out, x, w, *shape.attributes)
    assert np.all(out == GUARD)
