"""The matrix product as a kernel: against NumPy in float64, on every layout, parted in every way."""

import ctypes
import itertools
import mmap
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from minigan.kernels import launch

pytest.importorskip("numba", reason="the product kernel needs Numba")
if launch.numba() is None:
    pytest.skip("Numba is switched off", allow_module_level=True)

from minigan.kernels import product
from minigan.kernels.matrix import best_split, quantum

Array = NDArray[Any]
Block = tuple[int, int, int, int]

DTYPES = ["float32", "float64"]
LAYOUTS = ["rows", "columns", "strided", "reversed", "inside", "repeated"]
GUARD = 12345.0
EPILOGUE = ctypes.CFUNCTYPE(None, *[ctypes.c_ssize_t] * 5)


def matrix(random: np.random.Generator, shape: tuple[int, int], layout: str, dtype: str) -> Array:
    """A random matrix; NaN stands everywhere around what belongs to it."""
    m, n = shape
    if layout == "repeated":  # strides of zero, as of a broadcast bias
        return np.broadcast_to(random.standard_normal((1, n)).astype(dtype), shape)
    if layout == "rows":
        base = np.full((m + 2, n), np.nan, dtype)
        view = base[1:-1]
    elif layout == "columns":
        base = np.full((n + 2, m), np.nan, dtype)
        view = base[1:-1].T
    elif layout == "strided":
        base = np.full((2 * m + 1, 3 * n + 1), np.nan, dtype)
        view = base[1::2, 1::3]
    elif layout == "reversed":
        base = np.full((n + 2, m + 2), np.nan, dtype)
        view = base[1:-1, 1:-1].T[::-1, ::-1]
    else:
        base = np.full((m + 2, n + 5), np.nan, dtype)
        view = base[1:-1, 2:-3]
    view[...] = random.standard_normal(shape)
    return view


def framed(m: int, n: int, dtype: str) -> tuple[Array, Array]:
    """A matrix for the result with guards all around it, and the whole."""
    whole = np.full((m + 3, n + 40), GUARD, dtype)
    return whole[1 : m + 1, 19 : n + 19], whole


def multiply(
    a: Array, b: Array, c: Array, block: Block | None = None, epilogue: int = 0, argument: int = 0
) -> None:
    m, n = c.shape
    words = [0, m, n, 0, 1, a.ctypes.data, *a.strides, b.ctypes.data, *b.strides, c.ctypes.data, c.strides[0]]
    row = np.array([*words, a.shape[1], epilogue, argument], np.int64)
    product.kernel(c.dtype).function(row.ctypes.data, *(block or (0, m, 0, n)))


def check(a: Array, b: Array) -> None:
    """Compare with NumPy's product in float64, and see that nothing else has changed."""
    c, whole = framed(a.shape[0], b.shape[1], a.dtype.name)
    before = a.copy(), b.copy()
    multiply(a, b, c)
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    bound = 4 * np.sqrt(a.shape[1]) * np.finfo(a.dtype).eps * (np.abs(wide_a) @ np.abs(wide_b))
    what = f"{a.shape} {a.strides} @ {b.shape} {b.strides}"
    assert np.all(np.abs(c - wide_a @ wide_b) <= bound), what
    c[...] = GUARD
    assert np.all(whole == GUARD), f"written beside C: {what}"
    np.testing.assert_array_equal(a, before[0])
    np.testing.assert_array_equal(b, before[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout_against_float64(dtype: str) -> None:
    random = np.random.default_rng(1)
    rows, columns = quantum(dtype)
    sizes = [0, 1, 2, 3, 7, 13, 31, rows, rows + 1, columns - 1, columns, 3 * columns, 4 * columns, 97, 131]
    for layout_a, layout_b in itertools.product(LAYOUTS, LAYOUTS):
        for _ in range(8):
            m, k, n = random.choice(sizes, 3)
            check(matrix(random, (m, k), layout_a, dtype), matrix(random, (k, n), layout_b, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layouts", [("rows", "rows"), ("columns", "rows"), ("rows", "columns")])
def test_sizes_that_are_cut_into_blocks(layouts: tuple[str, str], dtype: str) -> None:
    random = np.random.default_rng(2)
    depth, height, many = product.DEPTH, product.HEIGHT, product.PACK_ROWS
    for m, k, n in [(5, 3 * depth + 1, 50), (height + 9, depth + 1, 17), (2 * height, 2, 3), (many, 9, 100)]:
        check(matrix(random, (m, k), layouts[0], dtype), matrix(random, (k, n), layouts[1], dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_column(layout: str, dtype: str) -> None:
    random = np.random.default_rng(3)
    for m, k in itertools.product([1, 3, 8, 9, 64, 65, 67, 130], [0, 1, 5, 16, 33, 300]):
        a, b = matrix(random, (m, k), layout, dtype), matrix(random, (k, 1), "columns", dtype)
        check(a, b)
        # A result whose rows are next to each other, as a column vector's are.
        c = np.full(m + 2, GUARD, dtype)
        multiply(a, b, c[1:-1, None])
        np.testing.assert_allclose(c[1:-1], (a.astype("f8") @ b.astype("f8"))[:, 0], rtol=1e-4, atol=1e-4)
        assert c[0] == c[-1] == GUARD


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_go_where_numpy_has_them(dtype: str) -> None:
    random = np.random.default_rng(4)
    for n, layout in itertools.product([1, 40, 70], ["rows", "columns"]):
        a, b = matrix(random, (33, 37), layout, dtype), matrix(random, (37, n), layout, dtype)
        a[3, 5], a[9, 0], a[20, 36], b[30, n // 2], b[2, n - 1] = np.nan, np.inf, -np.inf, np.inf, 0.0
        a[21, 2], b[36, 0] = np.inf, 0.0
        c, _ = framed(33, n, dtype)
        multiply(a, b, c)
        with np.errstate(invalid="ignore"):
            expected = a.astype(np.float64) @ b.astype(np.float64)
        for kind in (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(kind(c), kind(expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "layouts", [("rows", "rows"), ("columns", "rows"), ("rows", "columns"), ("strided",) * 2]
)
def test_bits_do_not_depend_on_the_block(layouts: tuple[str, str], dtype: str) -> None:
    random = np.random.default_rng(5)
    rows, columns = quantum(dtype)
    for m, k, n in [(70, 300, 130), (2 * product.PACK_ROWS + 5, 40, 4 * columns), (150, 33, 1)]:
        a, b = matrix(random, (m, k), layouts[0], dtype), matrix(random, (k, n), layouts[1], dtype)
        one, _ = framed(m, n, dtype)
        multiply(a, b, one)
        for _ in range(6):
            i = int(random.integers(0, m // rows + 1)) * rows
            j = int(random.integers(0, n // columns + 1)) * columns
            c, whole = framed(m, n, dtype)
            for block in [(0, i, 0, j), (i, m, 0, j), (0, i, j, n), (i, m, j, n)]:
                written = np.zeros(c.shape, bool)
                written[block[0] : block[1], block[2] : block[3]] = True
                before = whole.copy()
                multiply(a, b, c, block)
                np.testing.assert_array_equal(c[written], one[written])
                c[written] = GUARD
                before[1 : m + 1, 19 : n + 19][written] = GUARD
                np.testing.assert_array_equal(whole, before)
                c[written] = one[written]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_the_epilogue_sees_every_element_once_and_whole_columns(layout: str, dtype: str) -> None:
    random = np.random.default_rng(6)
    calls: list[Block] = []

    def record(row: int, *block: int) -> None:
        assert row == 77
        calls.append(block)  # type: ignore[arg-type]
        part = np.s_[block[0] : block[1], block[2] : block[3]]
        seen[part] += 1
        values[part] = c[part]

    epilogue = EPILOGUE(record)
    address = ctypes.cast(epilogue, ctypes.c_void_p).value or 0
    deep, high = 2 * product.DEPTH + 1, product.HEIGHT + 13
    for m, k, n in [(20, 30, 140), (high, deep, 50), (30, 0, 20), (40, 9, 1), (40, 0, 1)]:
        a, b = matrix(random, (m, k), layout, dtype), matrix(random, (k, n), "columns", dtype)
        c, _ = framed(m, n, dtype)
        i0, j0 = 8, min(quantum(dtype)[1], n - 1)
        calls.clear()
        seen, values = np.zeros((m, n), int), np.zeros((m, n), dtype)
        multiply(a, b, c, (i0, m, j0, n), address, 77)
        assert all(call[:2] == (i0, m) for call in calls)
        assert np.all(seen[i0:, j0:] == 1)
        assert seen.sum() == (m - i0) * (n - j0)
        np.testing.assert_array_equal(values[i0:, j0:], c[i0:, j0:])


@pytest.mark.skipif(not hasattr(mmap, "PROT_READ"), reason="POSIX only")
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_read_behind_the_operands(dtype: str) -> None:
    """Reading further than A's and B's last number would end this process: the page behind may not be read."""
    random = np.random.default_rng(7)
    protect = ctypes.CDLL(None).mprotect
    size = 32 * mmap.PAGESIZE

    def at_the_end(shape: tuple[int, int], layout: str) -> Array:
        pages = mmap.mmap(-1, size + mmap.PAGESIZE)
        held.append(pages)
        start = np.frombuffer(pages, np.uint8).ctypes.data
        assert protect(ctypes.c_void_p(start + size), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        count = shape[0] * shape[1]
        flat = np.frombuffer(pages, dtype, count, size - count * np.dtype(dtype).itemsize)
        flat[...] = random.standard_normal(count)
        return flat.reshape(shape) if layout == "rows" else flat.reshape(shape[::-1]).T

    for layouts in itertools.product(["rows", "columns"], ["rows", "columns"]):
        for m, k, n in [(9, 17, 1), (8, 5, 47), (17, 33, 65), (1, 1, 1), (130, 31, 49), (65, 16, 16)]:
            held: list[mmap.mmap] = []
            a, b = at_the_end((m, k), layouts[0]), at_the_end((k, n), layouts[1])
            c, _ = framed(m, n, dtype)
            multiply(a, b, c)
            column = np.empty(m, dtype)
            multiply(a, b[:, :1], column[:, None])
            np.testing.assert_allclose(column, c[:, 0], rtol=1e-4, atol=1e-4)


def test_an_empty_block_calls_no_epilogue() -> None:
    def fail(*_: int) -> None:
        raise AssertionError("called")

    epilogue = EPILOGUE(fail)
    a, b = np.ones((4, 3), np.float32), np.ones((3, 5), np.float32)
    c, whole = framed(4, 5, "float32")
    for block in [(2, 2, 0, 5), (0, 4, 3, 3)]:
        multiply(a, b, c, block, ctypes.cast(epilogue, ctypes.c_void_p).value or 0)
    assert np.all(whole == GUARD)


def test_the_better_split() -> None:
    assert best_split(64, 784, 128, False, 2) == 1  # halves the packing of a transposed B
    assert best_split(512, 1, 128, True, 2) == 0
    assert best_split(1024, quantum("float32")[1], 128, True, 2) == 0
    assert best_split(8, 784, 128, True, 2) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_outside_of_a_program_small_products_are_taken(dtype: str) -> None:
    draw = np.random.default_rng(0)
    for m, k, n in [(5, 40, 70), (1, 1, 1), (3, 0, 2), (0, 2, 3), (64, 784, 1)]:
        a, b = draw.standard_normal((m, k)).astype(dtype), draw.standard_normal((k, n)).astype(dtype)
        expected = np.full((m, n), GUARD, dtype)
        multiply(a, b, expected)
        for left, right in itertools.product((a, np.asfortranarray(a)), (b, np.asfortranarray(b))):
            c = np.full((m, n), GUARD, dtype)
            assert product.matmul(c, left, right)
            np.testing.assert_allclose(c, expected, rtol=1e-4 if dtype == "float32" else 1e-12, atol=1e-4)
    stack = np.ones((2, 3, 3), dtype)
    assert not product.matmul(stack.copy(), stack, stack)
    row = np.broadcast_to(stack[0, :1, :1], (1, product.LARGEST + 1))
    assert not product.matmul(np.ones((1, 1), dtype), row, row.T)
