"""Rows that primitives plan for themselves: against NumPy in float64, in any layout, parted in every way."""

from typing import Any

import numpy as np
import pytest
from harness import FLOAT32, FLOAT64
from numpy.typing import NDArray
from plain_kernels import needs_numba

import minigan as mg
from minigan.kernels import rows
from minigan.linear import MATMUL
from minigan.ops.reduce import EDGES
from minigan.tape import Primitive, copy

pytestmark = needs_numba
Array = NDArray[Any]
GUARD = 12345.0
SIZES = [1, 2, 3, 7, 8, 9, 16, 17, 31, 33, 49, 64, 65, 130]


def run_row(primitive: Primitive, inputs: list[Array], parts: int, **attributes: Any) -> Array:
    """What the row gives in so many parts, made last to first; nothing beside the result is written."""
    ((shape, dtype),) = primitive.infer(*inputs, **attributes)
    size = int(np.prod(shape))
    whole = np.full(size + 128, GUARD, dtype)
    out = whole[64 : 64 + size].reshape(shape)
    plan = primitive.row([out], inputs, parts, **attributes)  # type: ignore[misc]

    def word(x: Any) -> int:
        array = inputs[x.number] if isinstance(x, rows.Operand) else out if isinstance(x, rows.Result) else x
        return array.__array_interface__["data"][0] if isinstance(array, np.ndarray) else x

    row = np.array([0, *plan[1:5], *map(word, plan.words)], np.int64)
    quanta = -(-plan.n // plan.quantum)
    for part in reversed(range(parts)):
        begin, end = (min(k * quanta // parts * plan.quantum, plan.n) for k in (part, part + 1))
        if begin < end:
            plan.kernel.function(row.ctypes.data, begin, end, 0, plan.m)
    assert np.all(whole[:64] == GUARD) and np.all(whole[64 + size :] == GUARD)
    return out


def laid_out(random: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    """Random numbers with their axes in any order in memory, gaps between them, backwards; NaN in the gaps."""
    order = random.permutation(len(shape))
    steps = random.integers(1, 3, len(shape)) * random.choice([-1, 1], len(shape))
    base = np.full([shape[k] * 2 + 1 for k in order], np.nan, dtype)
    view = base.transpose(np.argsort(order))
    view = view[tuple(slice(None, None, step) for step in steps)][tuple(slice(0, n) for n in shape)]
    view[...] = random.standard_normal(shape)
    return np.broadcast_to(view[:1], shape) if random.random() < 0.2 else view


@pytest.mark.parametrize("seed", range(150))
def test_stacks_of_products(seed: int) -> None:
    random = np.random.default_rng(seed)
    dtype = [FLOAT32, FLOAT64][seed % 2]
    stack = tuple(random.integers(1, 5, random.integers(1, 4)).tolist())
    m, k, n = random.choice(SIZES, 3).tolist()
    k = 0 if seed == 0 else k
    ta, tb, parts = bool(random.integers(2)), bool(random.integers(2)), int(random.integers(1, 5))
    of_a = tuple(1 if random.random() < 0.3 else size for size in stack)
    of_b = tuple(1 if random.random() < 0.3 else size for size in stack)[random.integers(len(stack) + 1) :]
    a, b = (
        laid_out(random, of_a + ((k, m) if ta else (m, k)), dtype),
        laid_out(random, of_b + ((n, k) if tb else (k, n)), dtype),
    )
    found = run_row(MATMUL, [a, b], parts, ta=ta, tb=tb)
    wide_a, wide_b = ((x.mT if t else x).astype(np.float64) for x, t in ((a, ta), (b, tb)))
    bound = 4 * np.sqrt(k) * np.finfo(dtype).eps * (np.abs(wide_a) @ np.abs(wide_b))
    assert np.all(np.abs(found - wide_a @ wide_b) <= bound)
    assert run_row(MATMUL, [a, b], 1, ta=ta, tb=tb).tobytes() == found.tobytes()


@pytest.mark.parametrize("seed", range(50))
def test_copies(seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = tuple(random.choice(SIZES[:7], random.integers(1, 5)).tolist())
    x = laid_out(random, shape, [FLOAT32, FLOAT64][seed % 2])
    np.testing.assert_array_equal(run_row(copy, [x], int(random.integers(1, 5))), x)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_softmax_of_rows_of_any_length(dtype: Any) -> None:
    random = np.random.default_rng(0)
    tolerance = 8 * float(np.finfo(dtype).eps)

    def function(x: mg.Tensor) -> list[mg.Tensor]:
        y = mg.ops.softmax(x)
        return [
            y,
            y * 2 - 1,
            mg.ops.log_softmax(x),
            mg.ops.logsumexp(x, 1),
            mg.ops.softmax(x, (0, 1)),
            mg.ops.max(x, 1),
        ]

    for m in (*SIZES, 3000):
        x = random.normal(size=(40, m)).astype(dtype)
        special = random.random(x.shape) < random.choice([0, 0.05, 0.5, 1], (40, 1))
        x[special] = random.choice(np.array([*EDGES, 1000, -1000], dtype), special.sum())
        x[:3] = [[-np.inf], [np.inf], [np.nan]]
        with np.errstate(all="ignore"):
            one, two = ([y.numpy() for y in mg.compile(function, threads=n)(x)] for n in (1, 2))
            expected = [y.numpy() for y in function(mg.tensor(x))]
        for y, again, e in zip(one, two, expected, strict=True):
            assert y.tobytes() == again.tobytes()
            np.testing.assert_allclose(y, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_random_numbers_are_those_of_the_stream(dtype: Any) -> None:
    random = mg.ops.Stream(0, "test")

    def function(random: mg.ops.Stream) -> list[mg.Tensor]:
        drawn = [random.normal((n,), 1.0, 2.0, dtype) for n in (1, 6, 7, 1001)]
        return [*drawn, random.uniform((3, 333), -1.0, 3.0, dtype), random.bits(1000)]

    step = mg.compile(function, threads=2)
    for k in range(3):
        found, expected = step(random.at(k)), function(random.at(k))
        for x, e in zip(found, expected, strict=True):
            limit = 0 if x.dtype == np.uint32 else 8 * float(np.finfo(dtype).eps)
            np.testing.assert_allclose(x.numpy(), e.numpy(), rtol=0, atol=limit * 8)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("lead", "queries", "keys", "masked"),
    [((8,), 5, 7, False), ((9, 2), 17, 3, True), ((16, 1), 40, 40, True), ((70,), 33, 100, False)],
)
def test_chains_give_the_bits_of_their_links(
    lead: tuple[int, ...], queries: int, keys: int, masked: bool, threads: int
) -> None:
    """What runs slice by slice is what runs one after the other, which is what `poison` asks for."""
    random = np.random.default_rng(0)
    q, k, v = (
        random.normal(size=(*lead, n, m)).astype(np.float32) for n, m in ((queries, 4), (keys, 4), (keys, 6))
    )
    mask = random.random((queries, keys)) < 0.7

    def step(q: mg.Tensor, k: mg.Tensor, v: mg.Tensor) -> list[mg.Tensor]:
        y = mg.ops.scaled_dot_product_attention(q, k, v, mask if masked else None)
        second = mg.ops.scaled_dot_product_attention(y, y, y * y)
        return [y, second, second.mean(0), *mg.grad((second * second).sum(), [q, k, v])]

    chained = mg.compile(step, threads=threads)
    apart = mg.compile(step, threads=threads, poison=True)
    for x, y in zip(chained(q, k, v), apart(q, k, v), strict=True):
        assert x.numpy().tobytes() == y.numpy().tobytes()
    assert " slices]" in str(chained.program)
    assert " slices]" not in str(apart.program)


def test_chains_are_not_made_of_few_samples_or_across_them() -> None:
    def step(q: mg.Tensor) -> list[mg.Tensor]:
        return [mg.ops.softmax(q @ q.mT), mg.ops.softmax(q @ q.mT, 0) @ q.sum(0)]

    for count, expected in ((2, 0), (16, 2)):
        program = mg.compile(step)
        program(np.ones((count, 5, 3), np.float32))
        assert str(program.program).count(" slices]") == expected


def test_chains_that_need_each_other_are_not_made() -> None:
    """Two chains that share links' results both ways could not be run one after the other."""

    def step(x: mg.Tensor, y: mg.Tensor) -> list[mg.Tensor]:
        first, second = x @ x.mT, y @ y.mT  # two seeds
        crossed = mg.ops.softmax(first) @ second  # of both chains, as is the next
        back = mg.ops.softmax(second, 0).sum(0) @ first
        return [crossed, back, mg.ops.softmax(second) @ crossed]

    random = np.random.default_rng(0)
    x, y = (random.normal(size=(16, 6, 4)).astype(np.float32) for _ in range(2))
    for threads in (1, 2):
        found = mg.compile(step, threads=threads)(x, y)
        apart = mg.compile(step, threads=threads, poison=True)(x, y)
        for a, b in zip(found, apart, strict=True):
            assert a.numpy().tobytes() == b.numpy().tobytes()


def _broadcast_stack(p: mg.Tensor, q: mg.Tensor, a: mg.Tensor) -> mg.Tensor:
    return a @ (p @ q)  # the stack of p @ q is the second axis of a, not the first


def _shared_keys(q: mg.Tensor, w: mg.Tensor, x: mg.Tensor) -> mg.Tensor:
    return mg.ops.scaled_dot_product_attention(q, x @ w, x @ w)  # as many heads as samples


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (_broadcast_stack, [(16, 32, 32), (16, 32, 32), (16, 16, 32, 32)]),
        (_shared_keys, [(8, 8, 64, 16), (8, 16, 16), (8, 64, 16)]),
    ],
)
def test_the_first_axis_of_a_broadcast_stack_is_not_that_of_the_samples(
    function: Any, shapes: list[tuple[int, ...]], threads: int
) -> None:
    random = np.random.default_rng(0)
    step, apart = mg.compile(function, threads=threads), mg.compile(function, threads=threads, poison=True)
    for _ in range(3):  # in each run the memory holds the results of the last one
        arrays = [random.normal(size=shape).astype(np.float32) for shape in shapes]
        assert step(*arrays).numpy().tobytes() == apart(*arrays).numpy().tobytes()
