"""A stack of matrix products as a row of a machine: the product's kernel, called for one matrix after the other."""

from minigan.kernels.interpreter import call
from minigan.kernels.memory import read, word, words, write

# Elements of the result that an epilogue is called for at least: 16 KiB in float32, which are in the L1 cache.
ELEMENTS = 4096


def stack(row: int, i0: int, i1: int, j0: int, j1: int) -> None:
    """Compute rows i0 to i1 - 1 of the results C[s] = A[s] @ B[s], which lie one below the other.

    Words of the row from 5 on: a, rsa, csa, b, rsb, csb, c, ldc, depth, as of the product's kernel for s = 0; that
    kernel; the rows of one C[s]; the addresses of the offsets of all A[s], and of all B[s]; the epilogue's kernel (0:
    none) and row.
    """
    if i0 >= i1 or j0 >= j1:
        return
    a, b, c, ldc = word(row, 5), word(row, 8), word(row, 11), word(row, 12)
    product, height = word(row, 14), word(row, 15)
    offsets_a, offsets_b = word(row, 16), word(row, 17)
    epilogue, epilogue_row = word(row, 18), word(row, 19)
    inner = words(16)
    for k in range(14):
        write(inner, k, word(row, k), "int64", 0)
    write(inner, 14, 0, "int64", 0)
    write(inner, 15, 0, "int64", 0)
    finished = i0
    for s in range(i0 // height, (i1 - 1) // height + 1):
        start = s * height
        first, last = max(i0 - start, 0), min(i1 - start, height)
        write(inner, 5, a + read(offsets_a, s, "int64", 1), "int64", 0)
        write(inner, 8, b + read(offsets_b, s, "int64", 2), "int64", 0)
        write(inner, 11, c + start * ldc, "int64", 0)
        call(product, inner, first, last, j0, j1)
        done = start + last
        if epilogue != 0 and (done == i1 or (done - finished) * (j1 - j0) >= ELEMENTS):
            call(epilogue, epilogue_row, finished, done, j0, j1)
            finished = done
