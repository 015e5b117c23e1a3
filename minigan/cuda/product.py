"""Matrix products by cuBLAS, in whatever way the factors lie in memory, and sums of products over any indices."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minigan.cuda.launch import THREADS, Launch, Operand, Plan, Product, Result, Scratch, Step, Word, grid
from minigan.cuda.loops import coordinates, index_type, kernel, pointwise
from minigan.cuda.text import type_of
from minigan.kernels.axes import broadcast_strides, collapse
from minigan.kernels.loops import Formula
from minigan.kernels.rows import Spec

FEW = 16  # products of a stack that are issued one by one where copies would make one batch of them
LEAD = 1 << 31  # cuBLAS counts in 32 bits

Place = Operand | Result | Scratch


def _copy(x: Any) -> Any:
    return x


_COPY = Formula(_copy)


class Block(NamedTuple):
    """An array of which only the form is known; strides in bytes."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


class Factor(NamedTuple):
    """A stack of matrices: elements from row to row, from column to column, and from one matrix to the next."""

    place: Place
    row: int
    column: int
    stack: int = 0


def dense(shape: Sequence[int], dtype: Any) -> Block:
    """An array in C order."""
    strides, step = [], np.dtype(dtype).itemsize
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return Block(tuple(shape), tuple(strides[::-1]), np.dtype(dtype))


def zeros(out: Spec) -> Launch:
    """Fill a result that lies in C order, the first of the plan, with zeros."""
    n, kind = math.prod(out.shape), type_of(out.dtype)
    source = kernel("zeros_kernel", [f"{kind}* y", "long long n"], [], ["y[i] = 0;"], index_type(n))
    return Launch("zeros_kernel", source, grid(n), THREADS, (Result(0), n))


def copied(x: Spec, place: Place, number: int) -> tuple[Launch, Block, Scratch]:
    """The kernel that copies an array in C order to block `number` of the plan's memory, and the copy."""
    block = dense(x.shape, x.dtype)
    to = Scratch(number, math.prod(x.shape) * x.dtype.itemsize)
    (launch,) = pointwise(_COPY, [block], [x])
    return launch._replace(words=(to, place, *launch.words[2:])), block, to


def product(
    dtype: Any, sizes: tuple[int, int, int], a: Factor, b: Factor, c: Factor, batch: int = 1
) -> Product:
    """C = A B for m x k matrices A and k x n matrices B that `fits` holds of; the columns of C are neighbours.

    cuBLAS goes by columns, so that what it is asked for is Cᵀ = Bᵀ Aᵀ.
    """
    m, n, k = sizes
    (ta, lead_a), (tb, lead_b) = _lead(a, m, k), _lead(b, k, n)
    return Product(
        np.dtype(dtype),
        (tb, ta),
        (n, m, k),
        (b.place, lead_b, b.stack),
        (a.place, lead_a, a.stack),
        (c.place, c.row, c.stack),
        batch,
    )


def fits(factor: Factor, rows: int, columns: int) -> bool:
    """Whether cuBLAS can read the matrices where they are."""
    return 0 < _lead(factor, rows, columns)[1] < LEAD and factor.stack >= 0


def _lead(factor: Factor, rows: int, columns: int) -> tuple[bool, int]:
    """Whether the elements of a column, not those of a row, are neighbours, and how far apart columns or rows are.

    (False, 0) if neither are, or if they overlap.
    """
    if factor.column == 1 or columns == 1:
        if rows == 1:  # one row has no next: its stride may be anything
            return False, columns
        if factor.row >= columns:
            return False, factor.row
    if factor.row == 1 or rows == 1:
        if columns == 1:
            return True, rows
        if factor.column >= rows:
            return True, factor.column
    return False, 0


def matmul(outs: Sequence[Spec], inputs: Sequence[Spec], ta: bool, tb: bool) -> Plan:
    """The plan of a product of stacks of matrices, A or B transposed, whose stacks broadcast.

    A factor is copied first where its matrices have neither rows nor columns of neighbours. So it is where the stack is
    not one batch with equal steps, unless a few products make it up.

    >>> import numpy as np
    >>> from minigan.cuda.product import matmul
    >>> a, b, c = (np.ones(shape, np.float32) for shape in ((5, 2, 3), (4, 3), (5, 2, 4)))
    >>> (step,) = matmul([c], [a, b], False, True)
    >>> step.transposed, step.sizes, step.batch
    ((True, False), (4, 2, 3), 5)
    """
    (c,) = outs
    *stack, m, n = c.shape
    a, b = (_swapped(x) if t else x for x, t in zip(inputs, (ta, tb), strict=True))
    k = a.shape[-1]
    if not math.prod(c.shape):
        return []
    if not k:
        return [zeros(c)]
    blocks = [_spread(x, stack) for x in (a, b)]
    places: list[Place] = [Operand(0), Operand(1)]
    dims, steps = _batch(c, blocks)
    right = all(_readable(x) for x in blocks)
    plan: list[Step] = []
    if not right or math.prod(dims) > FEW * max(dims):
        for number, x in enumerate(blocks):
            if _readable(x) and len(_batch(c, [x])[0]) == 1:
                continue
            alone = not any(x.strides[:-2])  # one matrix for all of the stack
            form = Block((*((1,) * len(stack) if alone else stack), *x.shape[-2:]), x.strides, x.dtype)
            launch, copy, places[number] = copied(form, places[number], number)
            plan.append(launch)
            blocks[number] = _spread(copy, stack)
        dims, steps = _batch(c, blocks)
    item = c.dtype.itemsize
    axis = dims.index(max(dims))
    others = [range(1 if number == axis else size) for number, size in enumerate(dims)]
    for at in itertools.product(*others):
        to, *starts = (sum(i * step for i, step in zip(at, walked, strict=True)) for walked in steps)
        factors = [
            Factor(_on(place, start), x.strides[-2] // item, x.strides[-1] // item, walked[axis] // item)
            for x, place, start, walked in zip(blocks, places, starts, steps[1:], strict=True)
        ]
        result = Factor(Result(0, to), n, 1, steps[0][axis] // item)
        plan.append(product(c.dtype, (m, n, k), factors[0], factors[1], result, dims[axis]))
    return plan


def _on(place: Place, offset: int) -> Place:
    """A place some bytes on; a copy is one batch, which begins at its start."""
    return place if isinstance(place, Scratch) else place._replace(offset=offset)


def _swapped(x: Spec) -> Block:
    """The transposed matrices."""
    return Block(
        (*x.shape[:-2], x.shape[-1], x.shape[-2]), (*x.strides[:-2], x.strides[-1], x.strides[-2]), x.dtype
    )


def _spread(x: Spec, stack: Sequence[int]) -> Block:
    """The matrices broadcast to a stack."""
    shape = (*stack, *x.shape[-2:])
    return Block(shape, (*broadcast_strides(x, shape)[:-2], *x.strides[-2:]), x.dtype)


def _readable(x: Block) -> bool:
    """Whether cuBLAS can read every matrix where it is, and go from one to the next."""
    item = x.dtype.itemsize
    factor = Factor(Operand(0), x.strides[-2] // item, x.strides[-1] // item)
    return fits(factor, *x.shape[-2:]) and min(x.strides[:-2], default=0) >= 0


def _batch(c: Spec, blocks: Sequence[Block]) -> tuple[tuple[int, ...], list[list[int]]]:
    """The axes of the stack, with those joined that result and factors walk through in one go, and their strides."""
    stack = tuple(c.shape[:-2])
    return collapse(stack, [list(x.strides[:-2]) for x in (c, *blocks)])


# Einsum: one thread for each element of the result


@functools.lru_cache(maxsize=1024)
def _einsum_source(dtype: str, terms: tuple[tuple[str, ...], ...], axes: int, summed: int, index: str) -> str:
    """terms: for each operand the coordinates of its axes: c0, c1, ... of the result, s0, s1, ... summed over."""
    parameters = [f"{dtype}* y", *(f"const {dtype}* x{k}" for k in range(len(terms))), "long long n"]
    parameters += [f"long long n{axis}" for axis in range(1, axes)]
    parameters += [f"long long m{k}" for k in range(summed)]
    factors = []
    for k, term in enumerate(terms):
        parameters += [f"long long x{k}_{at}" for at in term]
        factors.append(f"(double)x{k}[{' + '.join(f'{at} * x{k}_{at}' for at in term) or '0'}]")
    body = [*(coordinates(axes) if axes else []), "double sum = 0;"]
    body += [f"for (long long s{k} = 0; s{k} < m{k}; ++s{k})" for k in range(summed)]
    body += [f"    sum += {' * '.join(factors)};", f"y[i] = ({dtype})sum;"]
    return kernel("einsum_kernel", parameters, [], body, index)


def einsum(outs: Sequence[Spec], inputs: Sequence[Spec], terms: tuple[str, ...], result: str) -> Plan:
    """The plan of a sum of products over all indices that the result does not have."""
    (y,) = outs
    n = math.prod(y.shape)
    if not n:
        return []
    sizes = {
        a: size for x, term in zip(inputs, terms, strict=True) for a, size in zip(term, x.shape, strict=True)
    }
    summed = [letter for letter in sizes if letter not in result]
    names = {letter: f"c{k}" for k, letter in enumerate(result)}
    names |= {letter: f"s{k}" for k, letter in enumerate(summed)}
    words: list[Word] = [Result(0), *map(Operand, range(len(inputs))), n, *y.shape[1:]]
    words += [sizes[letter] for letter in summed]
    for x in inputs:
        words += [step // x.dtype.itemsize for step in x.strides]
    source = _einsum_source(
        type_of(y.dtype),
        tuple(tuple(names[letter] for letter in term) for term in terms),
        len(result),
        len(summed),
        index_type(n),
    )
    return [Launch("einsum_kernel", source, grid(n), THREADS, tuple(words))]
