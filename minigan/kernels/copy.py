"""A copy in row-major order as a row of a machine."""

from minigan.kernels.memory import read, word, write


def copy_float32(row: int, i0: int, i1: int, j0: int, j1: int) -> None:
    """Copy rows i0 to i1 - 1, of m numbers. Words of the row from 5 on: x, offsets of its rows, step in numbers, y."""
    m, x, offsets, step, y = word(row, 2), word(row, 5), word(row, 6), word(row, 7), word(row, 8)
    for i in range(i0, i1):
        start = x + read(offsets, i, "int64", 2)
        if step == 1:
            for j in range(m):
                write(y, i * m + j, read(start, j, "float32", 0), "float32", 1)
        else:
            for j in range(m):
                write(y, i * m + j, read(start, j * step, "float32", 0), "float32", 1)
