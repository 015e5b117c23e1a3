"""The matrix product C = A @ B as a kernel of the compiled step, for any strides of A and B.

How it is fast, from the inside out:

- **The register tile.** 8 rows by 3 vectors of C (AVX-512) are sums held in registers while k runs: each step loads
  one row of B and broadcasts one column of A, 11 loads for 24 multiply-adds, so the multiply-adds are the limit.
  The tile is written as LLVM instructions, since no loop that Numba sees ends up in this form.
- **B in panels.** A tile reads `DEPTH` rows of a column panel of B, small enough to stay in the L1 cache while the
  tiles of all rows pass over it. Where B's own rows serve badly (transposed, ragged, or read often enough to be worth
  it), the panel is first copied to the stack, row after row, padded with zeros to whole vectors.
- **A as it is.** A pointer and two strides reach every layout of A, so x @ W, g @ W.T and x.T @ g are one function.
- **Blocks of rows**, so that the part of A in use stays in the L2 cache.

An element of C is a sum over equal blocks of up to `DEPTH` products, each summed in order of k. Tiles of different
shapes do the same operations in the same order, so its bits do not depend on the tile, nor on how C is parted.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types

from minigan.backend import Array
from minigan.kernels import launch
from minigan.kernels.interpreter import call as call
from minigan.kernels.llvm import (
    BYTE,
    BYTES,
    FLOAT32,
    FLOAT64,
    I32,
    I64,
    POINTER,
    Vectors,
    intrinsic,
    loop,
    prefetch,
    shuffle,
)
from minigan.kernels.matrix import PACK_ROWS as PACK_ROWS, kernel, tile as tile_shape
from minigan.kernels.memory import word as word

_, ROWS, VECTORS = tile_shape()
SINGLE = 4  # vectors of a tile of one row
# Rows of a panel of B, which with AVX-512 is 38 KiB of an L1 cache of 48. From 160 to 264 a step takes the same, +-1 %.
DEPTH = 200
# Rows of A that share a panel: their part of A, 400 KiB, stays in L2.
HEIGHT = 512
# Panels that an epilogue is called for at a time. Loops run over 4 vectors at a time and leave the rest to slower code:
# one panel of 3 would leave a third of itself.
PANELS = 4


def _rows(builder: Any, start: Any, stride: Any, rows: int, count: Any, table: bool = False) -> list[Any]:
    """Addresses of `rows` rows, of which those from `count` on are the last again: the same work done twice.

    With a table, `stride` is the address of their offsets.
    """
    last = builder.sub(count, I64(1))
    numbers = [builder.select(builder.icmp_signed("<", I64(i), last), I64(i), last) for i in range(rows)]
    if table:
        return [builder.add(start, _entry(builder, stride, number)) for number in numbers]
    return [builder.add(start, builder.mul(number, stride)) for number in numbers]


def _entry(builder: Any, table: Any, number: Any) -> Any:
    """Word `number` of the table at an address."""
    address = builder.add(table, builder.mul(number, I64(8)))
    return builder.load(builder.inttoptr(address, POINTER), align=8, typ=I64)


def tile(of: Vectors, rows: int, vectors: int, indirect: bool = False, diagonal: bool = False) -> Any:
    """The register tile: C[:m, :n] = A[:m, :depth] @ B[:depth, :n], or += if `add` is not 0.

    m <= rows and (vectors - 1) lanes < n <= vectors lanes. B's rows are padded to whole vectors, unless the tile is
    of one row, which takes any n.

    indirect: in place of `rsa`, `csa` and `ldc` stand addresses of tables with the offsets of A's rows, of A's
    columns and of C's rows. diagonal: A has a matrix behind each of its elements, one number for each column of C.
    """
    offsets = [I64(BYTES * v) for v in range(vectors)]

    def emit(builder: Any, *arguments: Any) -> None:
        a, rsa, csa, b, rsb, c, ldc, depth, m, n, add = arguments
        a_rows, c_rows = (_rows(builder, *at, rows, m, indirect) for at in ((a, rsa), (c, ldc)))
        masks: list[Any] = [None] * vectors
        for v in range(vectors) if rows == 1 else [vectors - 1]:
            masks[v] = of.below(builder, builder.sub(n, I64(of.lanes * v)))
        places = [
            (builder.add(row, offset), mask)
            for row in c_rows
            for offset, mask in zip(offsets, masks, strict=True)
        ]
        # The lines of C are on their way while k runs: 1.5 % of a step at batch 256, whose C is not in L2.
        for address, _ in places:
            prefetch(builder, address, write=True)

        def body(k: Any, values: Any) -> list[Any]:
            along_a, row_b, *sums = values
            if indirect:
                along_a = _entry(builder, csa, k)
            # The line behind: the next tile's if A's columns are contiguous. One instruction, 8 % for 784 x 512 x 128.
            prefetch(builder, builder.add(builder.add(a_rows[0], along_a), I64(64)), write=False)
            b_row = [
                of.load(builder, builder.add(row_b, offset), mask if rows == 1 else None)
                for offset, mask in zip(offsets, masks, strict=True)
            ]
            for i, row in enumerate(a_rows):
                at = builder.add(row, along_a)
                if diagonal:
                    x = [of.load(builder, builder.add(at, offset)) for offset in offsets]
                else:
                    x = [of.load_splat(builder, at)] * vectors
                for v, y in enumerate(b_row):
                    sums[i * vectors + v] = of.multiply_add(builder, x[v], y, sums[i * vectors + v])
            return [values[0] if indirect else builder.add(along_a, csa), builder.add(row_b, rsb), *sums]

        _, _, *sums = loop(builder, depth, 1, [I64(0), b, *[of.zero] * len(places)], body)
        with builder.if_else(builder.icmp_signed("==", add, I64(0))) as (first, more):
            with first:
                for total, place in zip(sums, places, strict=True):
                    of.store(builder, total, *place)
            with more:
                # Every row is read before any is written, because the last may be there twice.
                old = [of.load(builder, *place) for place in places]
                for total, value, place in zip(sums, old, places, strict=True):
                    of.store(builder, builder.fadd(total, value), *place)

    return intrinsic(emit)


def _dot(of: Vectors) -> Any:
    """C[:m, 0] = A[:m, :depth] @ B[:depth, 0] where A's rows and B's column are contiguous: vectors run along k."""

    def emit(builder: Any, a: Any, rsa: Any, b: Any, c: Any, ldc: Any, depth: Any, m: Any) -> None:
        a_rows, c_rows = _rows(builder, a, rsa, ROWS, m), _rows(builder, c, ldc, ROWS, m)

        def body(k: Any, sums: Any) -> list[Any]:
            mask, offset = of.below(builder, builder.sub(depth, k)), builder.mul(k, I64(of.item))
            x = [of.load(builder, builder.add(row, offset), mask) for row in a_rows]
            y = of.load(builder, builder.add(b, offset), mask)
            return [of.multiply_add(builder, one, y, total) for one, total in zip(x, sums, strict=True)]

        for total, place in zip(loop(builder, depth, of.lanes, [of.zero] * ROWS, body), c_rows, strict=True):
            half = of.lanes
            while half := half // 2:
                turned = shuffle(builder, total, total, [(i + half) % of.lanes for i in range(of.lanes)])
                total = builder.fadd(total, turned)
            of.store(builder, builder.extract_element(total, I32(0)), place)

    return intrinsic(emit)


def _transpose(of: Vectors) -> Any:
    """to[k, j] = b[j, k] of a square of lanes x lanes; rows of `b` are `ld` bytes apart, those of `to` `ld_to`."""
    numbers = range(of.lanes)

    def emit(builder: Any, b: Any, ld: Any, to: Any, ld_to: Any) -> None:
        # Loading pieces of 16 or 32 bytes in place of the first steps saves shuffles, but measured 0 to 4 % slower.
        rows = [of.load(builder, builder.add(b, builder.mul(I64(i), ld))) for i in numbers]
        half = of.lanes
        while half := half // 2:  # swap the off-diagonal quarters of every square of 2 half x 2 half
            low = [i - half + of.lanes if i & half else i for i in numbers]
            high = [i + of.lanes if i & half else i + half for i in numbers]
            for i in (i for i in numbers if not i & half):
                x, y = rows[i], rows[i + half]
                rows[i], rows[i + half] = shuffle(builder, x, y, low), shuffle(builder, x, y, high)
        for i, row in enumerate(rows):
            of.store(builder, row, builder.add(to, builder.mul(I64(i), ld_to)))

    return intrinsic(emit)


def _copy(of: Vectors) -> Any:
    """Copy the first n numbers of a vector, or all if it has fewer; zeros behind them."""

    def emit(builder: Any, b: Any, to: Any, n: Any) -> None:
        of.store(builder, of.load(builder, b, of.below(builder, n)), to)

    return intrinsic(emit)


def _move(of: Vectors) -> Any:
    """Copy one number, or write a zero if n is not positive."""

    def emit(builder: Any, b: Any, to: Any, n: Any) -> None:
        with builder.if_else(builder.icmp_signed(">", n, I64(0))) as (copied, padded):
            with copied:
                of.store(builder, of.load_number(builder, b), to)
            with padded:
                of.store(builder, of.kind(0.0), to)

    return intrinsic(emit)


def _scratch(typingctx: Any) -> Any:
    """The address of memory on the stack for a panel of B."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        with builder.goto_entry_block():
            panel = builder.alloca(ir.ArrayType(BYTE, DEPTH * VECTORS * BYTES))
            panel.align = 64
        return builder.ptrtoint(panel, I64)

    return types.intp(), emit


# Module globals, because Numba's cache on disk misses every time for what is captured in a closure.
scratch: Any = extending.intrinsic(_scratch)
tile1_float32, tile2_float32, tile3_float32 = (tile(FLOAT32, ROWS, vectors) for vectors in (1, 2, 3))
tile1_float64, tile2_float64, tile3_float64 = (tile(FLOAT64, ROWS, vectors) for vectors in (1, 2, 3))
single_float32, single_float64 = tile(FLOAT32, 1, SINGLE), tile(FLOAT64, 1, SINGLE)
dot_float32, dot_float64 = _dot(FLOAT32), _dot(FLOAT64)
transpose_float32, transpose_float64 = _transpose(FLOAT32), _transpose(FLOAT64)
copy_float32, copy_float64 = _copy(FLOAT32), _copy(FLOAT64)
move_float32, move_float64 = _move(FLOAT32), _move(FLOAT64)

item_float32, lanes_float32 = FLOAT32.item, FLOAT32.lanes
item_float64, lanes_float64 = FLOAT64.item, FLOAT64.lanes


def pack_float32(b: int, rsb: int, csb: int, depth: int, columns: int, vectors: int, to: int) -> None:
    """Copy B[:depth, :columns] to `to`, row after row of whole vectors, with zeros behind the columns."""
    item, lanes = item_float32, lanes_float32
    width = vectors * lanes * item
    for v in range(vectors):
        source, place, n = b + v * lanes * csb, to + v * lanes * item, columns - v * lanes
        if csb == item:
            for k in range(depth):
                copy_float32(source + k * rsb, place + k * width, n)
        else:
            squares = depth // lanes * lanes if rsb == item and n >= lanes else 0
            for k in range(0, squares, lanes):
                transpose_float32(source + k * rsb, csb, place + k * width, width)
            for k in range(squares, depth):
                for lane in range(lanes):
                    move_float32(source + k * rsb + lane * csb, place + k * width + lane * item, n - lane)


def product_float32(row: int, i0: int, i1: int, j0: int, j1: int) -> None:
    """Compute C[i0:i1, j0:j1], and call the epilogue for some panels at a time, with all of these rows.

    Words of the row from 5 on: a, rsa, csa, b, rsb, csb, c, ldc (addresses, and strides of rows and columns in bytes;
    C's columns are contiguous), depth, the epilogue's kernel (0: none) and row.
    """
    if i0 >= i1 or j0 >= j1:
        return
    a, rsa, csa = word(row, 5), word(row, 6), word(row, 7)
    b, rsb, csb = word(row, 8), word(row, 9), word(row, 10)
    c, ldc, depth = word(row, 11), word(row, 12), word(row, 13)
    epilogue, epilogue_row = word(row, 14), word(row, 15)
    item, lanes = item_float32, lanes_float32

    # A matrix by a vector, whose tiles would be empty but for one lane.
    by_rows = word(row, 2) == 1 and csa == item and rsb == item
    by_columns = word(row, 2) == 1 and rsa == item and ldc == item
    if by_rows or by_columns:
        if by_rows:
            for i in range(i0, i1, ROWS):
                dot_float32(a + i * rsa, rsa, b, c + i * ldc, ldc, depth, min(i1 - i, ROWS))
        else:
            for i in range(i0, i1, SINGLE * lanes):  # the transposes: one row of C
                single_float32(b, 0, rsb, a + i * item, csa, c + i * item, 0, depth, 1, i1 - i, 0)
        if epilogue != 0:
            call(epilogue, epilogue_row, i0, i1, j0, j1)
        return

    stack = scratch()
    blocks = max((depth + DEPTH - 1) // DEPTH, 1)
    for i_block in range(i0, i1, HEIGHT):
        i_end = min(i_block + HEIGHT, i1)
        for block in range(blocks):
            k0 = depth * block // blocks
            kc = depth * (block + 1) // blocks - k0
            j = finished = j0
            while j < j1:
                vectors = (j1 - j + lanes - 1) // lanes
                # Two and two, not three and one.
                vectors = VECTORS - 1 if vectors == VECTORS + 1 else min(vectors, VECTORS)
                columns = min(j1 - j, vectors * lanes)
                panel, stride = b + k0 * rsb + j * csb, rsb
                if csb != item or columns < vectors * lanes or i_end - i_block >= PACK_ROWS:
                    pack_float32(panel, rsb, csb, kc, columns, vectors, stack)
                    panel, stride = stack, vectors * lanes * item
                for i in range(i_block, i_end, ROWS):
                    ap, cp, m = a + i * rsa + k0 * csa, c + i * ldc + j * item, min(i_end - i, ROWS)
                    if vectors == 3:
                        tile3_float32(ap, rsa, csa, panel, stride, cp, ldc, kc, m, columns, block)
                    elif vectors == 2:
                        tile2_float32(ap, rsa, csa, panel, stride, cp, ldc, kc, m, columns, block)
                    else:
                        tile1_float32(ap, rsa, csa, panel, stride, cp, ldc, kc, m, columns, block)
                j += columns
                final = block == blocks - 1 and i_end == i1
                if epilogue != 0 and final and (j == j1 or j - finished == PANELS * VECTORS * lanes):
                    call(epilogue, epilogue_row, i0, i1, finished, j)
                    finished = j


def source(name: str) -> str:
    """The text of the product for the dtype of this name: the two functions above with it in theirs."""
    names = ["call", "scratch", "word", "DEPTH", "HEIGHT", "PACK_ROWS", "PANELS", "ROWS", "SINGLE", "VECTORS"]
    parts = ["copy", "dot", "item", "lanes", "move", "single", "tile1", "tile2", "tile3", "transpose"]
    names += [f"{part}_float32" for part in parts]
    text = f"""from numba import njit

from minigan.kernels.product import {", ".join(names)}


@njit(error_model="numpy")
{launch.source_of(pack_float32)}

{launch.source_of(product_float32)}"""
    return text.replace("float32", name)


# Products outside of a program

# Multiplications up to which it is taken. On one thread it needs 0.6 to 0.9 of the time of NumPy's product (OpenBLAS),
# and as much at 512 x 512 x 512; there two threads of OpenBLAS pay, which on a busy machine take 10 times as long.
LARGEST = 1 << 25
_loops: dict[str, Callable[..., None]] = {}  # by dtype


def _matmul(c: Any, a: Any, b: Any, kernel: int) -> None:
    row = np.empty(16, np.intp)
    row[0], row[1], row[2], row[3], row[4] = kernel, c.shape[0], c.shape[1], 2, 1
    row[5], row[6], row[7] = a.ctypes.data, a.strides[0], a.strides[1]
    row[8], row[9], row[10] = b.ctypes.data, b.strides[0], b.strides[1]
    row[11], row[12], row[13], row[14], row[15] = c.ctypes.data, c.strides[0], a.shape[1], 0, 0
    call(kernel, row.ctypes.data, 0, c.shape[0], 0, c.shape[1])


def matmul(c: Array, a: Array, b: Array) -> bool:
    """Compute C = A @ B for two matrices of one dtype in any layout, C in row-major order.

    `False`, and nothing is done, for stacks of matrices and for large ones: NumPy's product is for these.
    """
    if c.ndim != 2 or c.size * a.shape[1] > LARGEST:
        return False
    loop = _loops.get(c.dtype.char)
    if loop is None:
        if not launch.may_build():
            return False
        name = f"matmul_{c.dtype}"
        text = launch.source_of(_matmul).replace("_matmul", name)
        source = f"{launch.LOOP_PRELUDE}from minigan.kernels.interpreter import call\n\n\n{text}"
        any_layout = np.empty((2, 2, 2), c.dtype)[..., 0]
        loop = launch.build(name, source, (np.empty((1, 1), c.dtype), any_layout, any_layout, 0), writes=1)
        _loops[c.dtype.char] = loop
    loop(c, a, b, kernel(c.dtype).address)
    return True
