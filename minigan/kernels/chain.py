"""Rows of a machine that are run slice by slice, as one row."""

from minigan.kernels.interpreter import call
from minigan.kernels.memory import word


def chain(row: int, i0: int, i1: int, j0: int, j1: int) -> None:
    """Run rows for samples i0 to i1 - 1, all of them for some samples and then for the next ones.

    Words of the row from 5 on: samples in a slice, how many rows; and of each its address, and its rows for a sample.
    """
    step, count = word(row, 5), word(row, 6)
    for begin in range(i0, i1, step):
        end = min(begin + step, i1)
        for k in range(count):
            inner, rows = word(row, 7 + 2 * k), word(row, 8 + 2 * k)
            call(word(inner, 0), inner, begin * rows, end * rows, 0, word(inner, 2))
