"""Kernels of random bits, and of uniform and normal numbers made of them (see `minigan.ops.random`).

Bits and uniform numbers are the CPU's to the bit, so nothing may be contracted. Normal numbers are computed in float64
with CUDA's logarithm, cosine and sine, and may differ from the CPU's in the last bits.
"""

import math
from collections.abc import Sequence
from typing import Any

from minigan.cuda.launch import THREADS, Launch, Operand, Plan, Result, Word, grid
from minigan.cuda.loops import index_type, kernel
from minigan.cuda.text import type_of
from minigan.kernels.rows import Spec
from minigan.trace import Slot

# Philox 4x32-10: Salmon, Moraes, Dror and Shaw 2011, with the block's number as the first word of the counter.
_PHILOX = """
uint32 x0 = (uint32)i, x1 = counter[2 * each], x2 = counter[3 * each], x3 = counter[4 * each];
uint32 k0 = counter[0], k1 = counter[each];
for (int round = 0; round < 10; ++round) {
    const uint64 left = (uint64)x0 * 0xD2511F53u, right = (uint64)x2 * 0xCD9E8D57u;
    x0 = (uint32)(right >> 32) ^ x1 ^ k0;
    x2 = (uint32)(left >> 32) ^ x3 ^ k1;
    x1 = (uint32)right;
    x3 = (uint32)left;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
}
y[4 * i] = x0;
y[4 * i + 1] = x1;
y[4 * i + 2] = x2;
y[4 * i + 3] = x3;
"""

# A uniform number from 0 to 1, and one that is never 0, of words w and w + 1 (float64) or of word w alone.
_BITS = """
#define WORD(w) bits[((w) >> 2) * row + ((w) & 3) * column]
#define WIDE(w) ((float64)(WORD(w) >> 5) * 67108864.0 + (float64)(WORD((w) + 1) >> 6))
"""
_UNIFORM = {
    "float32": [
        "const float32 u = (float32)(WORD(i) >> 8) * 5.9604644775390625e-8f;",
        "y[i] = __fadd_rn(__fmul_rn(u, (float32)width), (float32)begin);",
    ],
    "float64": [
        "const float64 u = WIDE(2 * i) * 1.1102230246251565e-16;",
        "y[i] = __dadd_rn(__dmul_rn(u, width), begin);",
    ],
}
_PAIR = {
    "float32": [
        "const float64 u = ((float64)WORD(2 * i) + 0.5) * 2.3283064365386963e-10;",
        "const float64 v = (float64)WORD(2 * i + 1) * 2.3283064365386963e-10;",
    ],
    "float64": [
        "const float64 u = (WIDE(4 * i) + 0.5) * 1.1102230246251565e-16;",
        "const float64 v = WIDE(4 * i + 2) * 1.1102230246251565e-16;",
    ],
}
# Box and Muller 1958. The CPU rounds the product before it adds the mean, and where the two cancel that shows.
_NORMAL = [
    "const float64 radius = sqrt(-2.0 * log(u)) * STD, angle = __dmul_rn(6.283185307179586, v);",
    "y[2 * i] = (TYPE)__dadd_rn(__dmul_rn(radius, cos(angle)), MEAN);",
    "if (2 * i + 1 < count) y[2 * i + 1] = (TYPE)__dadd_rn(__dmul_rn(radius, sin(angle)), MEAN);",
]


def _launch(
    name: str, n: int, parameters: Sequence[str], body: Sequence[str], words: Sequence[Word]
) -> list[Launch]:
    source = kernel(f"{name}_kernel", [*parameters, "long long n"], (), body, index_type(4 * n))
    source = source.replace('extern "C"', f'{_BITS}\nextern "C"', 1)
    return [Launch(f"{name}_kernel", source, grid(n), THREADS, (*words, n))] if n else []


def bits(outs: Sequence[Spec], inputs: Sequence[Spec], blocks: int) -> Plan:
    """The kernel of random words, a thread for each block of four.

    >>> import numpy as np
    >>> from minigan.cuda.random import bits
    >>> (launch,) = bits([np.empty((1000, 4), np.uint32)], [np.zeros(5, np.uint32)], blocks=1000)
    >>> launch.name, launch.blocks, launch.threads
    ('random_bits_kernel', 4, 256)
    """
    (each,) = inputs[0].strides
    parameters = ["uint32* y", "const uint32* counter", "long long each"]
    body = _PHILOX.strip().splitlines()
    return _launch("random_bits", blocks, parameters, body, (Result(0), Operand(0), each // 4))


def _of_bits(x: Spec, dtype: str) -> tuple[list[str], list[Word]]:
    row, column = x.strides
    parameters = [f"{dtype}* y", "const uint32* bits", "long long row", "long long column"]
    return parameters, [Result(0), Operand(0), row // 4, column // 4]


def uniform(
    outs: Sequence[Spec], inputs: Sequence[Spec], shape: tuple[int, ...], low: float, high: float, dtype: Any
) -> Plan:
    """The kernel of uniform numbers."""
    kind = type_of(dtype)
    parameters, words = _of_bits(inputs[0], kind)
    return _launch(
        f"uniform_{kind}",
        math.prod(shape),
        [*parameters, "double width", "double begin"],
        _UNIFORM[kind],
        [*words, float(high - low), float(low)],
    )


def normal(
    outs: Sequence[Spec], inputs: Sequence[Spec], shape: tuple[int, ...], mean: float, std: float, dtype: Any
) -> Plan:
    """The kernel of normal numbers, a thread for each pair."""
    kind, n = type_of(dtype), math.prod(shape)
    parameters, words = _of_bits(inputs[0], kind)
    body = [*_PAIR[kind], *_NORMAL]
    for name, value in (("mean", mean), ("std", std)):
        slot = isinstance(value, Slot)
        parameters.append(f"const double* {name}" if slot else f"double {name}")
        words.append(value if slot else float(value))
        body = [line.replace(name.upper(), f"*{name}" if slot else name) for line in body]
    body = [line.replace("TYPE", kind) for line in body]
    return _launch(f"normal_{kind}", -(-n // 2), [*parameters, "long long count"], body, [*words, n])
