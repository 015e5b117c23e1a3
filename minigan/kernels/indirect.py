"""Convolutions as matrix products C = A @ B whose A is never stored: the compiled part of `minigan.kernels.conv`.

A convolution is a product because A[i, k] stands at the address `a + rows[i] + columns[k]`, where `rows` and `columns`
are tables of offsets into images that have a border of zeros:

- forward, a row is an output pixel, and a column is one number of the kernel's window;
- the weight gradient's A is the transpose of that one: the tables change places;
- the input gradient (transposed convolution) with stride s falls into s * s phases, by the position of an input pixel
  relative to the stride. Each is a convolution with stride 1, of the output's gradient with every s-th row and column
  of the flipped kernel; its rows lie s pixels apart in the result, by a third table. Without taps it writes zeros.

So the tiles of `minigan.kernels.product` serve all three, for any stride, dilation and groups, and nothing is written
out once per tap. Images are copied into their borders a block at a time, and B is packed in panels; both stay in the L2
cache while the block is multiplied.

- A depth-wise convolution has tiles of its own, whose A has a number for each column of C: vectors of channels.
- A transposed convolution to few channels would leave its vectors almost empty. It is staged: first the products of
  each pixel with all taps at once, then for each element of the result the sum over its taps.
"""

from numpy import float32 as float32

from minigan.kernels import launch, product
from minigan.kernels.conv import AT, DIAGONAL_ROWS, HEAD as HEAD, OF, PHASE as PHASE, widest
from minigan.kernels.interpreter import call as call
from minigan.kernels.llvm import FLOAT32, FLOAT64
from minigan.kernels.memory import read as read, word as word, write as write
from minigan.kernels.product import (
    ROWS,
    item_float32,
    item_float64 as item_float64,
    lanes_float32,
    lanes_float64 as lanes_float64,
    pack_float32,
)

WIDE, WIDE_ROWS = widest()
# Terms that are summed up in registers. A panel of B then streams from L2, which takes 1 to 4 % less time than parts of
# it that stay in L1, because C is written only once.
DEPTH = 1040
# Rows of A that share a panel, if an image has more of them; a multiple of the tiles' rows.
HEIGHT = 528
tile1_float32, tile2_float32, tile3_float32 = (
    product.tile(FLOAT32, ROWS, v, indirect=True) for v in (1, 2, 3)
)
tile1_float64, tile2_float64, tile3_float64 = (
    product.tile(FLOAT64, ROWS, v, indirect=True) for v in (1, 2, 3)
)
tile4_float32, tile4_float64 = (product.tile(of, WIDE_ROWS, WIDE, indirect=True) for of in (FLOAT32, FLOAT64))
diagonal1_float32, diagonal2_float32, diagonal3_float32, diagonal4_float32 = (
    product.tile(FLOAT32, DIAGONAL_ROWS, v, indirect=True, diagonal=True) for v in (1, 2, 3, WIDE)
)
diagonal1_float64, diagonal2_float64, diagonal3_float64, diagonal4_float64 = (
    product.tile(FLOAT64, DIAGONAL_ROWS, v, indirect=True, diagonal=True) for v in (1, 2, 3, WIDE)
)


def panel_float32(columns: int) -> int:
    """Vectors of the next panel: three and two, not four and one."""
    vectors = (columns + lanes_float32 - 1) // lanes_float32
    return WIDE - 1 if vectors == WIDE + 1 else min(vectors, WIDE)


def frame_float32(head: int, source: int, block: int, count: int) -> None:
    """Copy `count` images into a block, inside their borders."""
    numbers = word(head, AT.copy_numbers)
    for image in range(count):
        for y in range(word(head, AT.copy_rows)):
            at = source + image * word(head, AT.a_image) + y * word(head, AT.copy_row)
            to = block + word(head, AT.to_first) + image * word(head, AT.to_image) + y * word(head, AT.to_row)
            for k in range(numbers):
                write(to, k, read(at, k, "float32", 0), "float32", 1)


def pack_panels_float32(head: int, phase: int, count: int, b: int, j0: int, j1: int, to: int) -> None:
    """Copy columns j0 to j1-1 of a phase's B, panel after panel, to the address `to`."""
    taps, places = word(phase, OF.taps), head + word(phase, OF.b_taps)
    depth = word(phase, OF.depth) * count // max(taps, 1)
    b_row, b_column, width = word(head, AT.b_row), word(head, AT.b_column), word(head, AT.width)
    for group in range(word(head, AT.groups)):
        j, end = max(j0, group * width), min(j1, (group + 1) * width)
        while j < end:
            vectors = panel_float32(end - j)
            columns = min(end - j, vectors * lanes_float32)
            place = b + group * word(head, AT.b_group) + (j - group * width) * b_column
            for tap in range(taps):
                pack_float32(place + word(places, tap), b_row, b_column, depth, columns, vectors, to)
                to += depth * vectors * lanes_float32 * item_float32
            j += columns


def multiply_float32(
    head: int, phase: int, a: int, i0: int, rows: int, count: int, b: int, c: int, j0: int, j1: int, add: int
) -> None:
    """C[i0 : i0 + rows, j0:j1] = A @ B of a phase and a block, or += if `add` is not 0; b: the panels, if B is packed.

    count: how often the phase's depth is taken.
    """
    a_rows, c_rows = head + word(phase, OF.a_rows) + 8 * i0, head + word(phase, OF.c_rows) + 8 * i0
    a_columns, depth = head + word(phase, OF.a_columns), word(phase, OF.depth) * count
    width, blocks = word(head, AT.width), max((depth + DEPTH - 1) // DEPTH, 1)
    for i_block in range(0, rows, HEIGHT):
        i_end = min(i_block + HEIGHT, rows)
        for block in range(blocks):
            k0 = depth * block // blocks
            kc, panels = depth * (block + 1) // blocks - k0, b
            for group in range(word(head, AT.groups)):
                j, end = max(j0, group * width), min(j1, (group + 1) * width)
                while j < end:
                    vectors = panel_float32(end - j)
                    columns, stride = (
                        min(end - j, vectors * lanes_float32),
                        vectors * lanes_float32 * item_float32,
                    )
                    panel = panels + k0 * stride
                    panels += depth * stride
                    if word(head, AT.pack) == 0:
                        stride = word(head, AT.b_row)
                        panel = (
                            b
                            + group * word(head, AT.b_group)
                            + (j - group * width) * item_float32
                            + k0 * stride
                        )
                    ap, ks = (
                        a + group * word(head, AT.a_group) + j * word(head, AT.a_column),
                        a_columns + 8 * k0,
                    )
                    cp, tile_rows = c + j * item_float32, WIDE_ROWS if vectors == WIDE else ROWS
                    for i in range(i_block, i_end, tile_rows):
                        m, ar, cr = min(i_end - i, tile_rows), a_rows + 8 * i, c_rows + 8 * i
                        if vectors == WIDE:
                            tile4_float32(ap, ar, ks, panel, stride, cp, cr, kc, m, columns, add + block)
                        elif vectors == 3:
                            tile3_float32(ap, ar, ks, panel, stride, cp, cr, kc, m, columns, add + block)
                        elif vectors == 2:
                            tile2_float32(ap, ar, ks, panel, stride, cp, cr, kc, m, columns, add + block)
                        else:
                            tile1_float32(ap, ar, ks, panel, stride, cp, cr, kc, m, columns, add + block)
                    j += columns


def sum_taps_float32(head: int, phase: int, staged: int, c: int, count: int) -> None:
    """Add up the products that belong to the same element of C, for one phase of a block."""
    a_rows, c_rows = head + word(phase, OF.a_rows), head + word(phase, OF.c_rows)
    a_columns, taps = head + word(phase, OF.a_columns), word(phase, OF.depth)
    for i in range(word(phase, OF.rows) * count):
        at, to = staged + word(a_rows, i), c + word(c_rows, i)
        for channel in range(word(phase, OF.taps)):
            total = float32(0)
            for tap in range(taps):
                total += read(at + word(a_columns, tap), channel, "float32", 1)
            write(to, channel, total, "float32", 2)


def conv_float32(row: int, i0: int, i1: int, j0: int, j1: int) -> None:
    """Compute C[i0:i1, j0:j1]. Unless it is a weight gradient, C has a row for each pixel, and i0 and i1 begin images.

    Words of the row from 5 on: the addresses of the images that A is of, of B, C, scratch memory and the table (a
    `Head`, phases, and the tables that these name), and the epilogue's kernel (0: none) and row. The epilogue is
    called for the rows of a block of images at a time.
    """
    if i0 >= i1 or j0 >= j1:
        return
    source, b, c, head = word(row, 5), word(row, 6), word(row, 7), word(row, 9)
    epilogue, epilogue_row = word(row, 10), word(row, 11)

    # Where a part begins tells which it is (see `interpreter.run_part`), and so which scratch memory it has.
    size, begin, quantum = word(row, 1), i0, word(row, 4)
    if word(row, 3) == 1:
        size, begin = word(row, 2), j0
    quanta, parts = (size + quantum - 1) // quantum, word(head, AT.parts)
    part = min((begin // quantum * parts + quanta - 1) // quanta, parts - 1)
    block = word(row, 8) + part * word(head, AT.part)
    for k in range(word(head, AT.clear)):
        write(block, k, 0, "float32", 1)

    weight, pack, phases = word(head, AT.weight), word(head, AT.pack), word(head, AT.phases)
    pixels, first, last = word(head, AT.pixels), 0, word(head, AT.images)
    if not weight:
        first, last = i0 // pixels, i1 // pixels
    for image in range(first, last, word(head, AT.block)):
        count = min(last - image, word(head, AT.block))
        a = source + image * word(head, AT.a_image)
        if word(head, AT.copy):
            frame_float32(head, a, block, count)
            a = block
        bp, cp = b + image * word(head, AT.b_image), c + image * word(head, AT.c_image)
        to, end = (block, word(head, AT.width)) if word(head, AT.staged) else (cp, j1)
        for k in range(phases):
            phase = head + HEAD + k * PHASE
            i, rows, deep = (i0, i1 - i0, count) if weight else (0, count * word(phase, OF.rows), 1)
            panels = block + word(phase, OF.panels) if pack else bp
            if pack and (weight or image == first):
                pack_panels_float32(head, phase, deep, bp, j0, end, panels)
            multiply_float32(head, phase, a, i, rows, deep, panels, to, j0, end, image if weight else 0)
        for k in range(phases, phases + word(head, AT.sums)):
            sum_taps_float32(head, head + HEAD + k * PHASE, block, cp, count)
        if epilogue != 0:
            call(epilogue, epilogue_row, image * pixels, (image + count) * pixels, j0, j1)


def source(name: str, dtype: str, depth_wise: bool) -> str:
    """The text of the function `name`, the convolution for a dtype."""
    functions = [panel_float32, frame_float32, pack_panels_float32, multiply_float32, sum_taps_float32]
    own = ["AT", "DEPTH", "HEAD", "HEIGHT", "OF", "PHASE", "WIDE", "call", "item_float32", "lanes_float32"]
    tiles = [f"{'diagonal' if depth_wise else 'tile'}{v}_float32 as tile{v}_float32" for v in (1, 2, 3, 4)]
    rows = ["DIAGONAL_ROWS as ROWS", "DIAGONAL_ROWS as WIDE_ROWS"] if depth_wise else ["ROWS", "WIDE_ROWS"]
    text = f"""from numba import njit
from numpy import float32

from minigan.kernels.indirect import {", ".join(own + tiles + rows)}, read, word, write
from minigan.kernels.product import copy_float32, move_float32, transpose_float32

"""
    for function in (pack_float32, *functions):
        text += f'\n@njit(error_model="numpy", inline="always")\n{launch.source_of(function)}\n'
    text += "\n" + launch.source_of(conv_float32).replace("conv_float32", name)
    return text.replace("float32", dtype)
