"""Softmax, log-sum-exp and the largest number of the rows of a matrix, as rows of a machine.

Rows may be short, so their ends matter: they are read in whole vectors of which only some lanes count, which no loop
that Numba sees ends up as. With 49 numbers in a row that takes 0.6 of the time.
"""

from math import inf
from typing import Any

from llvmlite import ir
from numpy import float32 as float32, float64 as float64  # a kernel takes the one of its dtype

from minigan.kernels import llvm, vector
from minigan.kernels.interpreter import call
from minigan.kernels.memory import read, word, words, write
from minigan.kernels.vector import log_float32 as log_float32, log_float64 as log_float64

# Elements that an epilogue is called for at least: 16 KiB in float32, which are in the L1 cache.
ELEMENTS = 4096

_I64 = ir.IntType(64)


def _larger(builder: Any, x: Any, y: Any) -> Any:
    """The larger of two vectors, y where x is NaN."""
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def _larger_or_nan(builder: Any, x: Any, y: Any) -> Any:
    """The larger of two vectors, NaN where one of them is."""
    return builder.select(builder.fcmp_unordered("uno", x, x), x, _larger(builder, x, y))


def _add(builder: Any, x: Any, y: Any) -> Any:
    return builder.fadd(x, y)


def _folded(builder: Any, x: Any, combine: Any) -> Any:
    """The number that a vector's lanes combine to."""
    half = x.type.count
    while half := half // 2:
        order = [(i + half) % x.type.count for i in range(x.type.count)]
        x = combine(builder, x, llvm.shuffle(builder, x, x, order))
    return builder.extract_element(x, ir.IntType(32)(0))


def _store(builder: Any, x: Any, address: Any) -> None:
    builder.store(x, builder.inttoptr(address, ir.PointerType()))


def _lanes(of: Any, builder: Any, x: Any, n: Any, k: Any) -> tuple[Any, Any]:
    """The address of number k of n, and which lanes of the vector there are among the n."""
    return builder.add(x, builder.mul(k, _I64(of.item))), of.below(builder, builder.sub(n, k))


def _largest(of: Any, larger: Any) -> Any:
    """Write the largest of n numbers to `to`; -inf if there is none."""
    none = ir.Constant(of.zero.type, [-inf] * of.lanes)

    def emit(builder: Any, x: Any, n: Any, to: Any) -> None:
        def body(k: Any, values: Any) -> list[Any]:
            place, mask = _lanes(of, builder, x, n, k)
            found = builder.select(mask, of.load(builder, place, mask), none)
            return [larger(builder, found, values[0])]

        (top,) = llvm.loop(builder, n, of.lanes, [none], body)
        _store(builder, _folded(builder, top, larger), to)

    return llvm.intrinsic(emit)


def _exponentials(of: Any, c: vector.Constants) -> Any:
    """Write y = e^(x - shift) of n numbers, unless y is the address 0, and their sum, a float64, to `to`."""
    wide = ir.VectorType(ir.DoubleType(), of.lanes)

    def emit(builder: Any, x: Any, n: Any, shift: Any, y: Any, to: Any) -> None:
        shifts = of.load_splat(builder, shift)
        stored = llvm.splat(builder, builder.icmp_signed("!=", y, _I64(0)), of.lanes)

        def body(k: Any, values: Any) -> list[Any]:
            place, mask = _lanes(of, builder, x, n, k)
            e = _exp(of, builder, c, builder.fsub(of.load(builder, place, mask), shifts))
            of.store(builder, e, builder.add(y, builder.sub(place, x)), builder.and_(mask, stored))
            e = builder.select(mask, e, of.zero)
            return [builder.fadd(values[0], e if of.item == 8 else builder.fpext(e, wide))]

        (total,) = llvm.loop(builder, n, of.lanes, [ir.Constant(wide, [0.0] * of.lanes)], body)
        _store(builder, _folded(builder, total, _add), to)

    return llvm.intrinsic(emit)


def _exp(of: Any, builder: Any, c: vector.Constants, x: Any) -> Any:
    """As `minigan.kernels.vector` has it, which says how it works, and with the same bits."""
    integer = ir.IntType(8 * of.item)
    mantissa_bits = 23 if of.item == 4 else 52

    def number(value: Any) -> Any:
        return ir.Constant(x.type, [float(value)] * of.lanes)

    def fma(x: Any, y: Any, z: Any) -> Any:
        return llvm.call_function(builder, f"llvm.fma.v{of.lanes}{of.name}", x.type, x, y, z)

    def power_of_two(shifted: Any) -> Any:
        bits = builder.bitcast(shifted, ir.VectorType(integer, of.lanes))
        places = ir.Constant(bits.type, [mantissa_bits] * of.lanes)
        return builder.bitcast(builder.shl(bits, places), x.type)

    highest, lowest, shift = number(c.exp_highest), number(c.exp_lowest), number(c.shift)
    x = builder.select(builder.fcmp_ordered(">", x, highest), highest, x)
    x = builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)
    shifted = fma(x, number(c.log2_e), shift)
    k = builder.fsub(shifted, shift)
    minus_k = builder.fneg(k)
    r = fma(minus_k, number(c.ln2_low), fma(minus_k, number(c.ln2_high), x))
    total = number(c.exp_coefficients[-1])
    for coefficient in c.exp_coefficients[-2::-1]:
        total = fma(total, r, number(coefficient))
    q = fma(builder.fmul(r, r), total, r)
    part = fma(k, number(c.half), shift)
    scale = power_of_two(part)
    rest = power_of_two(builder.fadd(builder.fsub(shifted, part), shift))
    return builder.fmul(fma(scale, q, scale), rest)


def _scale(of: Any) -> Any:
    """Multiply n numbers by the one at `factor`."""

    def emit(builder: Any, y: Any, n: Any, factor: Any) -> None:
        factors = of.load_splat(builder, factor)

        def body(k: Any, values: Any) -> list[Any]:
            place, mask = _lanes(of, builder, y, n, k)
            of.store(builder, builder.fmul(of.load(builder, place, mask), factors), place, mask)
            return []

        llvm.loop(builder, n, of.lanes, [], body)

    return llvm.intrinsic(emit)


largest_float32, largest_float64 = (_largest(of, _larger) for of in (llvm.FLOAT32, llvm.FLOAT64))
largest_or_nan_float32 = _largest(llvm.FLOAT32, _larger_or_nan)
largest_or_nan_float64 = _largest(llvm.FLOAT64, _larger_or_nan)
exponentials_float32 = _exponentials(llvm.FLOAT32, vector.FLOAT32)
exponentials_float64 = _exponentials(llvm.FLOAT64, vector.FLOAT64)
scale_float32, scale_float64 = _scale(llvm.FLOAT32), _scale(llvm.FLOAT64)
item_float32, item_float64 = llvm.FLOAT32.item, llvm.FLOAT64.item


def softmax_float32(row: int, i0: int, i1: int, j0: int, j1: int) -> None:
    """Compute rows i0 to i1 - 1, of m numbers each. Words of the row from 5 on: x, y, the epilogue's kernel and row."""
    m, x, y, epilogue, epilogue_row = word(row, 2), word(row, 5), word(row, 6), word(row, 7), word(row, 8)
    step, height = m * item_float32, max(ELEMENTS // m, 1)
    shift, total = words(1), words(1)
    for i in range(i0, i1):
        largest_float32(x + i * step, m, shift)
        top = read(shift, 0, "float32", 0)
        if top - top != 0:  # infinite: subtracting it would make NaN
            write(shift, 0, float32(0), "float32", 0)
        exponentials_float32(x + i * step, m, shift, y + i * step, total)
        found = read(total, 0, "float64", 1)
        write(shift, 0, float32(1 / found) if found != 0 else float32(0), "float32", 0)
        scale_float32(y + i * step, m, shift)
        done = i + 1
        if epilogue != 0 and (done == i1 or (done - i0) % height == 0):
            call(epilogue, epilogue_row, i0 + (i - i0) // height * height, done, 0, m)


def logsumexp_float32(row: int, i0: int, i1: int, j0: int, j1: int) -> None:
    """Compute numbers i0 to i1 - 1 of y, each of a row of x. Words of the row from 5 on: x, y, numbers in a row."""
    x, y, n = word(row, 5), word(row, 6), word(row, 7)
    shift, total = words(1), words(1)
    for i in range(i0, i1):
        start = x + i * n * item_float32
        largest_float32(start, n, shift)
        top = read(shift, 0, "float32", 0)
        top = top if top - top == 0 else float32(0)
        write(shift, 0, top, "float32", 0)
        exponentials_float32(start, n, shift, 0, total)
        write(y, i, log_float32(float32(read(total, 0, "float64", 1))) + top, "float32", 2)


def max_float32(row: int, i0: int, i1: int, j0: int, j1: int) -> None:
    """Compute numbers i0 to i1 - 1 of y, each of a row of x. Words of the row from 5 on: x, y, numbers in a row."""
    x, y, n = word(row, 5), word(row, 6), word(row, 7)
    for i in range(i0, i1):
        largest_or_nan_float32(x + i * n * item_float32, n, y + i * item_float32)
