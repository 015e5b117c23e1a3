"""Compiled steps: they give what the same steps give without compiling, whatever is fused, planned and shared."""

import numpy as np
import pytest
from harness import QUICK, THOROUGH, assert_same_bits, check_compiled, run
from hypothesis import settings
from plain_kernels import needs_numba, plain_kernels

import minigan as mg
from minigan.nn.module import ASSIGN
from minigan.program import fuse
from minigan.registry import primitives
from minigan.tape import apply
from minigan.trace import require

ONCE = settings(QUICK, max_examples=1)


@pytest.fixture
def plain():
    with plain_kernels():
        yield


# Every primitive


@pytest.mark.parametrize("primitive", primitives(), ids=lambda primitive: primitive.name)
def test_primitive(primitive, plain):
    run(check_compiled, primitive, ONCE)


@pytest.mark.slow
@needs_numba
@pytest.mark.parametrize("primitive", primitives(), ids=lambda primitive: primitive.name)
def test_primitive_with_compiled_loops(primitive):
    run(check_compiled, primitive, settings(THOROUGH, max_examples=10))


# Random programs


class RandomStep:
    """A step of random operations, the same ones each time, on its arguments and on tensors that it changes.

    The first operations of a longer step are those of a shorter one, so the shortest that fails is found by trying.
    """

    def __init__(self, seed: int, length: int, dtype: str = "float64") -> None:
        self.seed, self.length, self.dtype = seed, length, dtype
        random = np.random.default_rng(seed)
        n, m = (int(k) for k in random.choice([1, 2, 5, 20], 2))
        self.shapes = [(n, m), (n, m), (m,), (n, 1), ()]
        self.held = [mg.tensor(random.normal(size=shape).astype(dtype)) for shape in [(n, m), (m,), (m, n)]]
        self.weights = dict(enumerate(self.held))
        self.adam = mg.optim.Adam(lambda step: 0.1 / (1 + step))
        self.memory = self.adam.init(self.weights)

    def arguments(self, run: int) -> list[np.ndarray]:
        random = np.random.default_rng([self.seed, run])
        return [random.normal(size=shape).astype(self.dtype) for shape in self.shapes]

    def state(self) -> list[np.ndarray]:
        slots = [x for slot in self.memory.slots.values() for x in slot.values()]
        return [x.numpy().copy() for x in [*self.held, *slots]] + [np.array(self.memory.step)]

    def __call__(self, *arguments: mg.Tensor, random: mg.ops.Stream) -> dict[str, list[mg.Tensor]]:
        choose = np.random.default_rng(self.seed)
        pool = [*arguments, *self.held]
        for _ in range(self.length):
            operation = OPERATIONS[choose.integers(len(OPERATIONS))]
            result = operation(self, pool, choose, random)
            if result is not None and result.size <= 400:
                pool.append(result)
        chosen = [pool[k] for k in choose.integers(len(pool), size=4)]
        return {"last": pool[-4:], "chosen": [*chosen, chosen[0], mg.tensor([1.0, 2.0])]}


def pick(pool, choose, fits=lambda x: True, otherwise=None):
    """A random one of those that fit, rather a late one."""
    fitting = [x for x in pool if fits(x)]
    return fitting[-1 - int(len(fitting) * choose.random() ** 2)] if fitting else otherwise


def broadcasts(x, y) -> bool:
    try:
        return bool(np.broadcast_shapes(x.shape, y.shape)) or True
    except ValueError:
        return False


def unary(step, pool, choose, random):
    functions = [
        mg.ops.tanh,
        mg.ops.sigmoid,
        mg.ops.absolute,
        lambda x: -x,
        lambda x: x * 0.5,
        lambda x: x * x * 0.1,
    ]
    functions += [lambda x: mg.ops.leaky_relu(x + 0.1234, 0.2), mg.ops.softplus, lambda x: 1 / (x * x + 1)]
    return functions[choose.integers(len(functions))](pick(pool, choose))


def binary(step, pool, choose, random):
    x = pick(pool, choose)
    y = pick(pool, choose, lambda y: broadcasts(x, y))
    z = pick(pool, choose, lambda z: z.shape == (x + y).shape, x)
    functions = [lambda: x + y, lambda: x - y, lambda: mg.ops.tanh(x * y), lambda: mg.ops.maximum(x, y)]
    functions += [lambda: mg.ops.where(x > 0.2345, y, x), lambda: mg.ops.where((x > 0.3) ^ (y > 0.4), z, 0.5)]
    return functions[choose.integers(len(functions))]()


def reduction(step, pool, choose, random):
    x = pick(pool, choose)
    axes = tuple(k for k in range(x.ndim) if choose.random() < 0.5)
    functions = [mg.ops.sum, mg.ops.mean] + [mg.ops.max, mg.ops.softmax] * (len(axes) == 1 and x.size > 0)
    function = functions[choose.integers(len(functions))]
    axis = axes[0] if function is mg.ops.softmax else axes
    return (
        mg.ops.tanh(function(x, axis))
        if function is mg.ops.softmax
        else function(x, axis, bool(choose.integers(2)))
    )


def view(step, pool, choose, random):
    x = pick(pool, choose)
    kind = choose.integers(5)
    if kind == 0:
        return x.transpose(*choose.permutation(x.ndim).tolist())
    if kind == 1:
        return x.reshape(-1) if choose.integers(2) else x.reshape(*x.shape[::-1])
    if kind == 2:
        return mg.ops.broadcast_to(x, (int(choose.integers(1, 4)), *x.shape))
    if kind == 3:
        return x[None] if choose.integers(2) else x.detach()
    key = [slice(int(choose.integers(n)), None, int(choose.integers(1, 3))) for n in x.shape]
    return x[(*key, ...)] if choose.integers(2) else x[(..., *(slice(None, None, -1) for _ in x.shape))]


def joined(step, pool, choose, random):
    x = pick(pool, choose, lambda x: x.ndim > 0)
    y = pick(pool, choose, lambda y: y.shape == x.shape)
    return (
        mg.ops.concatenate([x, y, x], int(choose.integers(x.ndim)))
        if choose.integers(2)
        else mg.ops.stack([x, y])
    )


def product(step, pool, choose, random):
    x = pick(pool, choose, lambda x: x.ndim == 2)
    y = pick(pool, choose, lambda y: y.ndim == 2 and y.shape[0] in x.shape)
    if x is None or y is None:
        return None
    product = x @ y if x.shape[1] == y.shape[0] else x.T @ y
    return mg.ops.tanh(product + pick(pool, choose, lambda b: b.shape == product.shape[1:], 0.5))


def taken(step, pool, choose, random):
    x = pick(pool, choose, lambda x: x.ndim > 0 and x.shape[0] > 0)
    if choose.integers(2):
        return mg.ops.take(x, choose.integers(-x.shape[0], x.shape[0], 3))
    return mg.ops.sort(x, axis=0)


def drawn(step, pool, choose, random):
    x = pick(pool, choose)
    if choose.integers(2):
        return mg.ops.dropout(x, 0.3, random)
    return x * 0.5 + random.child("part").normal(x.shape, std=0.1, dtype=x.dtype)


def converted(step, pool, choose, random):
    x = pick(pool, choose)
    return (x > 0.4567).astype(x.dtype) if choose.integers(2) else x.astype(np.float32).astype(step.dtype)


def gradient(step, pool, choose, random):
    y, x = pick(pool, choose), pick(pool, choose)
    try:
        (g,) = mg.grad(mg.ops.tanh(y).sum(), [x], create_graph=True)
    except mg.errors.GraphError:  # something was changed in place since
        return None
    return mg.ops.tanh(g)


def assignment(step, pool, choose, random):
    target = pick(step.held, choose)
    if choose.integers(2) and target.ndim:
        with mg.no_grad():
            target = target[1:] if choose.integers(2) else target.T
    value = pick(pool, choose, lambda x: x.shape == target.shape)
    if value is not None:
        apply(ASSIGN, target, value)


def average(step, pool, choose, random):
    target = pick(step.held, choose)
    value = pick(pool, choose, lambda x: x.shape == target.shape)
    mg.optim.EMA(0.5).update({"": value}, {"": target}, lambda: step.memory.step)


def update(step, pool, choose, random):
    gradients = [pick(pool, choose, lambda x, w=w: x.shape == w.shape) for w in step.held]
    step.adam.update(step.weights, gradients, step.memory)


OPERATIONS = [unary, unary, binary, binary, reduction, reduction, view, view, joined, product, product]
OPERATIONS += [taken, drawn, converted, gradient, gradient, assignment, average, update]


def run_of(step, function, runs: int = 3):
    """What each run returns, and the state after it; a run has fresh arguments and random numbers."""
    found = []
    for k in range(runs):
        random = mg.ops.Stream(step.seed, "test", k)
        with np.errstate(all="ignore"):
            results = function(*map(mg.tensor, step.arguments(k)), random=random)
        found.append([x.numpy().copy() for part in results.values() for x in part] + step.state())
        found[-1].append(np.array(random.place[-1]))
    return found


ARRANGEMENTS = [{}, {"poison": True}, {"threads": 3}, {"plan": False, "threads": 2}]


def check_random_step(seed: int, length: int, dtype: str) -> None:
    def made(**options):
        step = RandomStep(seed, length, dtype)
        return run_of(step, mg.compile(step, **options))

    step = RandomStep(seed, length, dtype)
    expected = run_of(step, step)
    assert_same_bits(made(fuse=False), expected, "without fusion")
    fused, *others = [made(**options) for options in ARRANGEMENTS]
    for other, options in zip(others, ARRANGEMENTS[1:], strict=True):
        assert_same_bits(other, fused, f"{options}")
    for of_run, exact in zip(fused, expected, strict=True):
        for x, e in zip(of_run, exact, strict=True):
            assert x.dtype == e.dtype and x.shape == e.shape
            if dtype == "float64":
                np.testing.assert_allclose(x, e, rtol=1e-6 * ("float32" in str(e.dtype)) or 1e-9, atol=1e-7)


def check_shortened(seed: int, length: int, dtype: str) -> None:
    """The same, and if it fails, by as few operations as do."""
    try:
        check_random_step(seed, length, dtype)
    except AssertionError:
        for n in range(1, length):
            check_random_step(seed, n, dtype)
        raise


@pytest.mark.parametrize("seed", range(14))
def test_random_steps(seed, plain, monkeypatch):
    monkeypatch.setattr(fuse, "SMALL", 8)
    check_shortened(seed, 20, ["float64", "float32"][seed % 2])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(14, 300))
def test_more_random_steps(seed, plain, monkeypatch):
    monkeypatch.setattr(fuse, "SMALL", 8)
    check_shortened(seed, 30, ["float64", "float32"][seed % 2])


@pytest.mark.slow
@needs_numba
@pytest.mark.parametrize("seed", range(30))
def test_random_steps_with_compiled_loops(seed, monkeypatch):
    monkeypatch.setattr(fuse, "SMALL", 8)
    check_shortened(seed, 20, ["float64", "float32"][seed % 2])


# What went wrong once


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-12, atol=1e-12)


def test_a_factor_of_a_product_is_not_computed_behind_it(plain):
    x, w = (mg.tensor(np.random.default_rng(k).normal(size=(4, 4))) for k in range(2))

    def function(x):
        h = mg.ops.tanh(x)
        return mg.ops.tanh(h @ w) * h

    step = mg.compile(function)
    close([step(x), step(x * 2)], [function(x), function(x * 2)])


def test_sums_over_rows_and_over_columns_of_one_loop(plain, monkeypatch):
    monkeypatch.setattr(fuse, "SMALL", 8)
    x = mg.tensor(np.random.default_rng(0).normal(size=(6, 50)))

    def function(x):
        y = mg.ops.tanh(x)
        return y.sum(0), y.sum(1), y.sum()

    step = mg.compile(function, threads=3)
    for _ in range(2):
        close(step(x), function(x))


@pytest.mark.parametrize("key", ["T", "reversed"])
def test_a_tensor_that_is_overwritten_by_a_view_of_itself(key, plain):
    w = mg.tensor(np.arange(9.0).reshape(3, 3))
    expected = w.array.T.copy() if key == "T" else w.array[::-1].copy()

    def function():
        apply(ASSIGN, w, w.T if key == "T" else w[::-1])

    mg.compile(function)()
    np.testing.assert_array_equal(w.numpy(), expected)


@pytest.mark.parametrize("fuse", [True, False])
def test_a_tensor_and_a_view_of_it_are_put_back_after_a_failure(fuse, plain):
    w, found = mg.tensor(np.arange(4.0)), []

    def function(x):
        with mg.no_grad():
            apply(ASSIGN, w[1:], x[1:])
            apply(ASSIGN, w, w * 3.0)
        require(mg.ops.all_finite([x]).array, lambda: None)

    step = mg.compile(function, fuse=fuse)
    step(np.ones(4))
    step.function = lambda x: found.append(
        w.numpy().copy()
    )  # what finds the reason sees what the run has left
    with np.errstate(all="ignore"):
        step(np.array([1.0, np.nan, 5.0, 6.0]))
    assert found[0].tolist() == [0.0, 3.0, 3.0, 3.0]


def test_a_tensor_and_a_view_of_it_are_put_back_after_capturing(plain):
    w, x = mg.tensor(np.zeros(3)), mg.tensor(np.ones(3))

    def function():
        y = w + x
        with mg.no_grad():
            apply(ASSIGN, w[1:], x[1:])
        apply(ASSIGN, w, w * 3)
        return y

    np.testing.assert_array_equal(mg.compile(function)().numpy(), np.ones(3))


def test_an_argument_that_is_a_result(plain):
    step = mg.compile(lambda x: (x, x.T, x[0]))
    for k in range(3):
        x = mg.tensor(np.full((2, 3), float(k)))
        close(step(x), (x, x.T, x[0]))


@needs_numba
def test_a_norm_over_axes_of_size_one() -> None:
    x = mg.tensor([[-3.0], [4.0]])
    assert mg.compile(lambda x: mg.ops.norm(x, axis=1))(x).numpy().tolist() == [3.0, 4.0]
