"""The matrix product as a row of a machine: its kernel, the shape of its tile, and how threads share it.

The code itself is in `minigan.kernels.product`, which is only read when it has to be compiled.
"""

import functools
import math
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigan.kernels.launch import cpu
from minigan.kernels.objects import Kernel, kernel_of, own_kernel
from minigan.kernels.rows import Operand, Plan, Result, Spec, Word, places

ARM = ("aarch64", "arm64")
# From this many on, copying a panel pays even if B's rows could be read where they are: 5 % at 128 rows, -8 % at 64.
PACK_ROWS = 128


@functools.cache
def tile() -> tuple[int, int, int]:
    """Bytes in a vector register, and the rows and vectors of the tile, whose sums fill most of the registers."""
    features = cpu()[1].split(",")
    if "+avx512f" in features:
        return 64, 8, 3  # 24 sums, 3 vectors of B and 1 of A in 32 registers
    if "+avx2" in features and "+fma" in features:
        return 32, 4, 3  # 12, 3 and 1 in 16
    return 16, (8 if platform.machine().lower() in ARM else 4), 3


@functools.cache
def kernel(dtype: Any) -> Kernel:
    """The compiled product for `dtype`, float32 or float64."""
    name = np.dtype(dtype).name

    def source() -> str:
        from minigan.kernels import product  # here, because it imports Numba

        return product.source(name)

    return own_kernel(f"product_{name}", source)


def quantum(dtype: Any) -> tuple[int, int]:
    """The rows and columns of C that parts are to be multiples of."""
    nbytes, rows, _ = tile()
    return rows, nbytes // np.dtype(dtype).itemsize


def best_split(M: int, N: int, K: int, csb_contiguous: bool, parts: int) -> int:
    """The axis of C, 0 (rows) or 1 (columns), along which `parts` parts take the least time.

    Every part packs the columns of B that it reads, so parts of rows repeat that work; a transposed vector costs about
    as much as a tile of products, a copied one a quarter.
    """
    nbytes, rows, _ = tile()
    tiles, vectors = -(-M // rows), -(-N // (nbytes // 4))
    packing = 0.25 if csb_contiguous else 1.0
    by_rows = (-(-tiles // parts) + packing) * _width(vectors)
    by_columns = (tiles + packing) * _width(-(-vectors // parts))
    return int(by_columns < by_rows and vectors >= parts)


def _width(vectors: int) -> float:
    """The time of panels of so many vectors in all, in that of one vector of a panel of three.

    A tile of two vectors needs as many instructions for A's elements as one of three.
    """
    most = tile()[2]
    full, rest = divmod(vectors, most)
    if rest == 1 and full:
        full, rest = full - 1, 4
    return most * full + {0: 0.0, 1: 1.5, 2: 2.3, 4: 4.6}[rest]


# Stacks of products


def stacked(outs: Sequence[Spec], inputs: Sequence[Spec], parts: int, ta: bool, tb: bool) -> Plan | None:
    """The row of C[s] = A[s] @ B[s] for all s of a stack, C in row-major order; `None` for two matrices, or none."""
    (c,), (a, b) = outs, inputs
    if len(c.shape) < 3 or 0 in c.shape:
        return None
    *stack, height, width = c.shape
    depth = a.shape[-2 if ta else -1]
    csa, rsa = a.strides[-2:] if ta else a.strides[:-3:-1]
    csb, rsb = b.strides[-2:] if tb else b.strides[:-3:-1]
    steps_a, steps_b = _steps(a, stack), _steps(b, stack)
    # Matrices A[s] one below the other, times the same B, are one matrix.
    while stack and (stack[-1] == 1 or (steps_b[-1] == 0 and (height == 1 or steps_a[-1] == height * rsa))):
        rsa = steps_a[-1] if height == 1 else rsa
        height *= stack.pop()
        steps_a.pop()
        steps_b.pop()
    offsets = [places(stack, steps) for steps in (steps_a, steps_b)]
    words: tuple[Word, ...] = (
        Operand(0),
        rsa,
        csa,
        Operand(1),
        rsb,
        csb,
        Result(0),
        width * c.dtype.itemsize,
        depth,
    )
    words += (kernel(c.dtype).address, height, *offsets, 0, 0)
    return Plan(
        kernel_of("stack", "stack"),
        math.prod(c.shape[:-1]),
        width,
        0,
        quantum(c.dtype)[0],
        words,
        epilogue=True,
        by_sample=True,
    )


def _steps(x: Spec, stack: Sequence[int]) -> list[int]:
    """Bytes from matrix to matrix along each axis of the stack; 0 where there is but one."""
    lead = len(stack) + 2 - len(x.shape)
    return [0] * lead + [0 if n == 1 else step for n, step in zip(x.shape[:-2], x.strides[:-2], strict=True)]
