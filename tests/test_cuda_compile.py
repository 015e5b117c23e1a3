"""Compiled steps on a GPU: they give what the same steps give there without compiling."""

import os
import re
import signal
from contextlib import contextmanager

import emulator
import numpy as np
import pytest
from harness import assert_same_bits
from test_program import RandomStep, assignment, binary, converted, gradient, pick, unary, update

import minigan as mg
from minigan.backend import cuda
from minigan.cuda import launch
from minigan.nn.module import ASSIGN
from minigan.program import device as programs
from minigan.tape import apply
from minigan.trace import host, recorded_by, require, state, undone_by

NAN = float("nan")


def there(array, dtype=np.float32) -> mg.Tensor:
    return mg.tensor(np.asarray(array, dtype), device="cuda")


def draw(*shape: int, seed: int = 0, dtype=np.float32) -> mg.Tensor:
    return there(np.random.default_rng(seed).normal(size=shape), dtype)


def numpy(results) -> list[np.ndarray]:
    return [x.numpy() for x in results]


# Equal to the step itself


def sums(step, pool, choose, random):
    x = pick(pool, choose)
    axes = tuple(k for k in range(x.ndim) if choose.random() < 0.5)
    function = [mg.ops.sum, mg.ops.mean][choose.integers(2)]
    return mg.ops.tanh(function(x, axes, bool(choose.integers(2))))


def view(step, pool, choose, random):
    x = pick(pool, choose)
    kind = choose.integers(4)
    if kind == 0:
        return x.transpose(*choose.permutation(x.ndim).tolist())
    if kind == 1:
        return mg.ops.broadcast_to(x, (int(choose.integers(1, 4)), *x.shape))
    return x[None] if kind == 2 else x.detach()


class OnDevice(RandomStep):
    """A step of random operations with its tensors on the card."""

    operations = (unary, unary, binary, binary, sums, sums, view, converted, gradient, assignment, update)

    def __init__(self, seed, length, dtype):
        super().__init__(seed, length, dtype)
        self.held = [x.to("cuda") for x in self.held]
        self.weights = dict(enumerate(self.held))
        for slot in self.memory.slots.values():
            slot.update({name: x.to("cuda") for name, x in slot.items()})

    def __call__(self, *arguments):
        choose = np.random.default_rng(self.seed)
        pool = [*arguments, *self.held]
        for _ in range(self.length):
            result = self.operations[choose.integers(len(self.operations))](self, pool, choose, None)
            if result is not None and result.size <= 400:
                pool.append(result)
        chosen = [pool[k] for k in choose.integers(len(pool), size=4)]
        return [*pool[-4:], *chosen, chosen[0]]


def runs_of(step, function, count=4):
    found = []
    for k in range(count):
        results = function(*[there(a, step.dtype) for a in step.arguments(k)])
        found.append([x.copy() for x in numpy(results)] + step.state())
    return found


def check_random_step(seed, length, dtype):
    def made(**options):
        step = OnDevice(seed, length, dtype)
        return runs_of(step, mg.compile(step, **options))

    step = OnDevice(seed, length, dtype)
    expected = runs_of(step, step)
    assert_same_bits(made(fuse=False), expected, "without fusion")
    fused_runs = made()
    for options in ({"poison": True}, {"plan": False}, {"copy": False}):
        assert_same_bits(made(**options), fused_runs, str(options))
    for of_run, exact in zip(fused_runs, expected, strict=True):
        for x, e in zip(of_run, exact, strict=True):
            assert x.dtype == e.dtype and x.shape == e.shape
            if dtype == "float64":
                np.testing.assert_allclose(x, e, rtol=1e-6 * ("float32" in str(e.dtype)) or 1e-9, atol=1e-7)


@pytest.mark.parametrize("seed", range(2))
def test_random_steps(seed, device):
    check_random_step(seed, 12, ["float64", "float32"][seed % 2])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 60))
def test_more_random_steps(seed, device):
    check_random_step(seed, 25, ["float64", "float32"][seed % 2])


SHAPES = [(1, 5), (33, 70), (3000, 3), (9000, 1)]
MORE_SHAPES = [
    pytest.param(shape, marks=pytest.mark.slow) for shape in [(2, 3), (37, 1), (5, 600), (600, 40)]
]


@pytest.mark.parametrize("shape", [*SHAPES, *MORE_SHAPES], ids=str)
@pytest.mark.parametrize("axis", [0, 1, None])
def test_sums_of_any_size(shape, axis, device):
    """Of float32 within its last bits, as they are added up in float64; with what stands before them stored too."""
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    step = mg.compile(
        lambda x: ((y := x * 1.5), y.sum(axis), (y * y).mean(axis), mg.ops.norm(x, axis), y + 1.0)
    )
    for k in range(3):
        x = values[::-1] if k else values
        y, total, mean, norm, more = numpy(step(there(x)))
        wide = x.astype(np.float64)
        np.testing.assert_array_equal(y, x * np.float32(1.5))
        np.testing.assert_array_equal(more, y + np.float32(1))
        scale = np.abs(1.5 * wide).sum(axis)
        assert (np.abs(total - 1.5 * wide.sum(axis)) <= 2e-7 * scale).all()
        np.testing.assert_allclose(mean, (2.25 * wide**2).mean(axis), rtol=3e-7)
        np.testing.assert_allclose(norm, np.sqrt((wide**2).sum(axis)), rtol=3e-7)
    if min(shape) > 1:
        assert len(step.program) == 1


def test_loops_that_read_one_array_are_one_unless_one_needs_the_other(device):
    def function(x, p):
        a, y = x * 2.0, mg.ops.tanh(p)
        total = y.sum()
        return a * total, y * x

    step, given = mg.compile(function), (draw(4, 3), draw(4, 3, seed=1))
    for _ in range(3):
        for found, expected in zip(step(*given), function(*given), strict=True):
            np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-6)
    assert len(step.program) == 2
    both = mg.compile(lambda x, p: (x * 2.0 + p, mg.ops.tanh(p)))
    both(*given)
    assert len(both.program) == 1


@pytest.mark.parametrize("axis", [0, pytest.param(1, marks=pytest.mark.slow), None])
def test_sums_do_not_depend_on_what_else_runs(axis, device):
    x = draw(900, 70)
    found = {mg.compile(lambda x: mg.ops.tanh(x).sum(axis))(x).numpy().tobytes() for _ in range(3)}
    other = mg.compile(lambda x: (mg.ops.tanh(x).sum(axis), mg.ops.tanh(x) * x))(x)[0].numpy().tobytes()
    assert found == {other}


def test_numbers_that_vary_are_those_of_each_run(device):
    """A rate by schedule, a number of the step, and an array that Python works out; and memory that the step makes."""
    calls = {"rate": 0, "array": 0}

    def rate():
        calls["rate"] += 1
        return (1.0 / calls["rate"],)

    def array():
        calls["array"] += 1
        return np.arange(6.0, dtype=np.float32).reshape(2, 3) * calls["array"]

    rule = mg.optim.SGD.rule
    w = there(np.ones((2, 3)))

    def function(x):
        velocity = there(np.zeros((2, 3)))
        (lr,) = host(rate)
        drawn = mg.Tensor(host(array, "cuda:0"))
        numbers = {"momentum": 0.9, "of_gradient": 1.0, "of_velocity": 0.9, "decay": 0.0}
        apply(rule, w, velocity, x * drawn, rate=lr, **numbers)
        return drawn.T * 1.0, velocity * 1.0, drawn

    found = []
    for compiles in (False, True):
        calls.update(rate=0, array=0)
        w.array.set(np.ones((2, 3), np.float32))
        step = mg.compile(function, fuse=False) if compiles else function
        found.append([[*numpy(step(there(np.full((2, 3), k)))), w.numpy().copy()] for k in range(5)])
    assert_same_bits(found[1], found[0], "compiled")


LAYOUTS = {
    "C": there,
    "F": lambda a: there(a.T.copy()).T,
    "reversed": lambda a: there(a[::-1].copy())[::-1],
    "strided": lambda a: there(np.repeat(a, 2, 0))[::2],
    "repeated": lambda a: mg.ops.broadcast_to(there(a[:1]), (4, 3)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arguments_of_any_layout(layout, device):
    step = mg.compile(lambda x: (mg.ops.tanh(x), x.T, x))
    for seed in range(3):
        a = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
        given = LAYOUTS[layout](a)
        y, transposed, same = numpy(step(given))
        values = given.numpy()
        np.testing.assert_array_equal(same, values)
        np.testing.assert_array_equal(transposed, values.T)
        np.testing.assert_array_equal(y, mg.ops.tanh(given).numpy())
    assert len(step._programs) == 1


def test_tensors_and_arrays_of_the_device_are_arguments_alike(device):
    step = mg.compile(lambda x: x * 2.0)
    x = draw(3)
    for given in (x, x.array, x, x.array):
        np.testing.assert_array_equal(step(given).numpy(), x.numpy() * 2)
    assert len(step._programs) == 1
    np.testing.assert_array_equal(step(mg.tensor(x.numpy())).numpy(), x.numpy() * 2)
    assert len(step._programs) == 2 and step.program.source  # captured anew for the CPU


# What a run costs


def adam_step(sizes=(40, 30)):
    weights = {"w": draw(*sizes), "b": draw(sizes[1], seed=1)}
    adam = mg.optim.Adam(lambda step: 0.1 / (1 + step))
    memory = adam.init({name: mg.tensor(x.numpy()) for name, x in weights.items()})
    for slot in memory.slots.values():
        slot.update({name: x.to("cuda") for name, x in slot.items()})

    def step(x):
        y = x
        for _ in range(3):
            y = mg.ops.tanh(weights["w"] * y + weights["b"])
        loss = (y * y).mean() + y.sum(0).mean()
        adam.update(weights, mg.grad(loss, list(weights.values())), memory)
        return loss, y

    return step, [*weights.values(), *[x for slot in memory.slots.values() for x in slot.values()]]


def test_a_replay_allocates_nothing_and_launches_one_graph(card):
    step, _ = adam_step()
    compiled, x = mg.compile(step, copy=False), draw(40, 30)
    compiled(x)
    for _ in range(3):
        before = emulator.calls.copy()
        compiled(x)
        assert emulator.calls - before == {"graph": 1}
    program = compiled.program
    text = str(program)
    kernels = sum(len(row.plan) for row in program._rows)
    assert text.count("\n") == len(program) + 1
    assert f"{len(program)} kernels on cuda:0, {kernels} launches" in text and "argument 0" in text
    assert any('extern "C" __global__' in program.source(k) for k in range(len(program)))
    assert program.flops == sum(call.flops for row in program._rows for call in row.node.calls) > 0
    emulator.launches.clear()
    compiled(x)
    assert sum(emulator.launches.values()) == kernels


def test_the_first_run_that_is_made_warms_up_what_a_graph_needs(monkeypatch, card):
    step, x = mg.compile(lambda x: x * 2.0), draw(3)
    with monkeypatch.context() as patch:
        patch.setattr(programs.DeviceProgram, "_take", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            step(x)
    for graphs in (0, 1, 2):
        np.testing.assert_array_equal(step(x).numpy(), x.numpy() * 2)
        assert emulator.calls["graph"] == graphs


def test_results_share_the_arena(device):
    step, _ = adam_step()
    sizes, x = [], draw(40, 30)
    for plan in (True, False):
        compiled = mg.compile(step, plan=plan)
        compiled(x)
        sizes.append(compiled.program.nbytes)
    assert sizes[0] < sizes[1]


def test_results_without_copies_are_overwritten_by_the_next_run(device):
    for copy in (True, False):
        step = mg.compile(lambda x: x * 2.0, copy=copy)
        first = step(there([1.0]))
        step(there([2.0]))
        assert first.numpy().tolist() == [2.0 if copy else 4.0]
    chained = mg.compile(lambda x: mg.ops.tanh(x) + x.sum(), copy=False)
    x = y = draw(5)
    for _ in range(4):
        x, y = chained(x), mg.ops.tanh(y) + y.sum()
        np.testing.assert_allclose(x.numpy(), y.numpy(), rtol=1e-6)


def test_python_writes_for_the_next_run_only_when_this_one_is_done(monkeypatch, card):
    """Nothing in a stream happens before somebody waits: a run that did not would see the next run's number."""

    def made(waits):
        numbers = iter([(1.0,), (2.0,), (3.0,), (4.0,)])
        w = there(np.zeros(1))
        settings = {"momentum": 0.0, "of_gradient": 1.0, "of_velocity": 0.0, "decay": 0.0}

        def function(x):
            (rate,) = host(lambda: next(numbers))
            apply(mg.optim.SGD.rule, w, there(np.zeros(1)), x, rate=rate, **settings)

        step, x = mg.compile(function), there([-1.0])
        step(x)
        step(x)
        with monkeypatch.context() as patch:
            if not waits:
                patch.setattr(cuda.Queue, "wait", lambda queue: None)
            step(x)
        step(x)
        return w.numpy()[0]

    assert made(waits=True) == 1 + 2 + 3 + 4
    assert made(waits=False) == 1 + 2 + 4 + 4


def test_a_run_follows_what_the_callers_stream_has_to_do(card):
    step = mg.compile(lambda x: x * 2.0)
    stream = emulator.Stream(non_blocking=True)
    with stream:
        for k in range(3):
            x = mg.ops.tanh(there([float(k)])) + 1.0  # not computed yet
            np.testing.assert_array_equal(step(x).numpy(), (x * 2.0).numpy())


# Checks


class Guarded:
    """A step that overwrites, then checks, then overwrites again."""

    def __init__(self):
        self.weights = {"w": draw(4, 3), "b": draw(3, seed=1)}
        self.sgd = mg.optim.SGD(0.1, momentum=0.9)
        self.memory = self.sgd.init({name: mg.tensor(x.numpy()) for name, x in self.weights.items()})
        for slot in self.memory.slots.values():
            slot.update({name: x.to("cuda") for name, x in slot.items()})
        self.tensors = [*self.weights.values(), *[x for s in self.memory.slots.values() for x in s.values()]]
        self.kept = [(x, draw(*x.shape)) for x in self.tensors]
        self.undone = self.calls = 0

    def state(self):
        return [x.numpy().copy() for x in self.tensors] + [np.array(self.memory.step)]

    @contextmanager
    def as_before(self):
        """As in a game: what the step has overwritten is put back without a recorder, which makes its own copies."""
        with recorded_by(None):
            for x, backup in self.kept:
                apply(ASSIGN, backup, x)
        try:
            yield
        except BaseException:
            with recorded_by(None):
                for x, backup in self.kept:
                    apply(ASSIGN, x, backup)
            raise

    def undo(self):
        self.undone += 1
        self.memory.step = self.before

    def remember(self):
        self.before = self.memory.step

    def __call__(self, x):
        self.calls += 1
        host(self.remember)
        with undone_by(self.undo), self.as_before():
            with mg.no_grad():
                apply(ASSIGN, self.weights["w"][1:], self.weights["w"][:-1] * 1.0)
            y = mg.ops.tanh(self.weights["w"] * x + self.weights["b"])
            loss = (y * y).mean()
            gradients = mg.grad(loss, list(self.weights.values()))
            fine = mg.ops.all_finite([loss, *gradients, x.T])

            def refuse():
                raise mg.NonFiniteError(f"loss is {loss.item()}")

            require(fine.array, refuse)
            self.sgd.update(self.weights, gradients, self.memory)
            with mg.no_grad():
                apply(ASSIGN, self.weights["w"][2:], self.weights["w"][2:] * 0.5)
        return loss


@pytest.mark.parametrize("options", [{}, {"fuse": False}, {"poison": True}], ids=str)
def test_a_step_that_fails_leaves_everything_as_before(options, device):
    eager, guarded = Guarded(), Guarded()
    step = mg.compile(guarded, **options)
    for k in range(6):
        x = np.random.default_rng(k).normal(size=(4, 3)).astype(np.float32)
        x[1, 1] = [1.0, NAN, 1.0, 1.0, np.inf, NAN][k]
        before = guarded.state()
        if np.isfinite(x).all():
            np.testing.assert_allclose(step(there(x)).numpy(), eager(there(x)).numpy(), rtol=1e-6)
            for a, b in zip(guarded.state(), eager.state(), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
            continue
        messages = []
        for each in (eager, step):
            with pytest.raises(mg.NonFiniteError) as error:
                each(there(x))
            messages.append(str(error.value))
        assert messages[0] == messages[1]
        assert_same_bits(guarded.state(), before, "after a failure")
    assert len(step._programs) == 1
    assert guarded.calls == 1 + 3  # captured, and made again for each message: a failure does not last
    assert guarded.undone == 2 * 3


def test_a_failure_in_the_first_run_is_one(device):
    guarded = Guarded()
    step, before = mg.compile(guarded), guarded.state()
    for _ in range(2):
        with pytest.raises(mg.NonFiniteError, match="nan"):
            step(there(np.full((4, 3), NAN)))
        assert_same_bits(guarded.state(), before, "after a failure")
    assert len(step._programs) == 1


def test_an_update_is_made_in_the_loop_that_checks_and_saves_its_inputs(device):
    """One kernel for each parameter: nothing waits for a check, as no run ends early."""
    weights = {"w": draw(4, 3), "b": draw(3, seed=1)}
    sgd = mg.optim.SGD(0.1, momentum=0.9)
    memory = sgd.init({name: mg.tensor(x.numpy()) for name, x in weights.items()})
    for slot in memory.slots.values():
        slot.update({name: x.to("cuda") for name, x in slot.items()})

    def function(g, h):
        state = [*weights.values(), *[x for slot in memory.slots.values() for x in slot.values()]]
        require(mg.ops.all_finite([g, h, *state]).array, lambda: None)
        sgd.update(weights, [g, h], memory)

    step = mg.compile(function)
    step(draw(4, 3), draw(3))
    assert len(step.program) == 3, step.program  # two updates, and whether all checks held


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_interrupted_step_is_made_once(at, monkeypatch, device):
    step, changed = adam_step()
    other, expected = adam_step()
    compiled, x, left = mg.compile(step), draw(40, 30), [at]
    wait = cuda.Queue.wait

    def waits(queue):
        wait(queue)
        if left and compiled._last is not None and compiled.program._runs == left[0]:
            left.pop()
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(cuda.Queue, "wait", waits)
    interrupts = 0
    for _ in range(4):
        try:
            compiled(x)
        except KeyboardInterrupt:
            interrupts += 1
        other(x)
        for a, b in zip(changed, expected, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-6)
    assert interrupts == 1 and not left


def test_a_graph_from_before_a_replay_is_stale(device):
    weights = {"w": draw(2)}
    sgd = mg.optim.SGD(0.1)
    memory = sgd.init({"w": mg.tensor(weights["w"].numpy())})
    memory.slots["u"] = {"w": there(np.zeros(2))} if "u" in memory.slots else memory.slots.get("u", {})
    for slot in memory.slots.values():
        slot.update({name: x.to("cuda") for name, x in slot.items()})
    step = mg.compile(lambda x: sgd.update(weights, [x], memory))
    for _ in range(3):
        loss = (weights["w"] ** 2).sum()
        step(there([1.0, 1.0]))
        with pytest.raises(mg.GraphError, match="changed in place"):
            mg.grad(loss, [weights["w"]])


# What is refused


def test_a_look_at_a_value_is_refused(device):
    w = there([1.0, 2.0])

    def function(x):
        apply(ASSIGN, w, x)
        return x * (x * 2.0).sum().item()

    with pytest.raises(
        mg.GraphError, match=rf"item\(\).*test_cuda_compile.py:{function.__code__.co_firstlineno + 2}"
    ):
        mg.compile(function)(there([3.0, 4.0]))
    assert w.numpy().tolist() == [1.0, 2.0]
    with pytest.raises(mg.GraphError, match="argument 0"):
        mg.compile(lambda x: apply(ASSIGN, x, w))(there([3.0, 4.0]))


def test_arrays_in_two_places_are_refused(card):
    here, second = mg.tensor([1.0, 2.0]), mg.tensor([1.0, 2.0], device="cuda:1")
    for other, name in ((here, "cpu"), (second, "cuda:1")):
        with pytest.raises(
            mg.DeviceError, match=rf"cuda:0, and float32 \(2,\) on {name}, at .*test_cuda_compile"
        ):
            mg.compile(lambda x, other=other: (x * 2.0, other * 2.0))(there([1.0, 2.0]))
        with pytest.raises(mg.DeviceError, match=name):
            mg.compile(lambda x, other=other: x * other)(there([1.0, 2.0]))
    step = mg.compile(lambda x: x * 2.0)
    for x in (here, second, here, second):
        result = step(x)
        assert result.device == x.device and result.numpy().tolist() == [2.0, 4.0]
    assert len(step._programs) == 2


@pytest.mark.parametrize("run", [1, 2, 3])
def test_an_error_of_the_device_names_the_step_and_the_run(run, card):
    def tangent(x):
        return mg.ops.tanh(x * 2.0)

    step, x = mg.compile(tangent), draw(3)
    for _ in range(run - 1):
        step(x)
    if run == 1:
        launches = launch.cuda.launch

        def failing(device, *arguments):
            with cuda.on(device):
                raise emulator.CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access")
            launches(device, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch.cuda, "launch", failing)
            with pytest.raises(mg.DeviceError) as error:
                step(x)
        assert "kernel 0, multiply · tanh" in str(error.value)
    else:
        synchronize = emulator.Stream.synchronize

        def fails(stream):
            raise emulator.CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(emulator.Stream, "synchronize", fails)
            with pytest.raises(mg.DeviceError) as error:
                step(x)
        assert synchronize is emulator.Stream.synchronize
    assert re.search(rf"tangent, run {run} of its program: .*illegal", str(error.value))
    with pytest.raises(mg.DeviceError, match="all that this process has there"):
        there([1.0])


def test_positions_out_of_range_are_found_in_every_run(device):
    x, step = there([1.0, 2.0, 3.0]), mg.compile(lambda x, at: mg.ops.take(x, at) * 2.0)
    for at in ([0, 2], [1, 1], [2, 0]):
        np.testing.assert_array_equal(step(x, there(at, np.int64)).numpy(), 2 * x.numpy()[at])
        with pytest.raises(mg.ShapeError, match="3"):
            step(x, there([0, 3], np.int64))


def test_products_round_their_factors_only_where_asked(card):
    x = draw(4, 4)
    for tf32 in (False, True):
        emulator.math_modes.clear()
        mg.compile(lambda x: x @ x, tf32=tf32)(x)
        assert set(emulator.math_modes) == {cuda.TF32 if tf32 else emulator.cublas.CUBLAS_DEFAULT_MATH}
    emulator.math_modes.clear()
    x @ x
    assert set(emulator.math_modes) == {emulator.cublas.CUBLAS_DEFAULT_MATH}


def test_a_loop_over_one_axis_has_what_it_stores_and_no_more(device):
    """A value that nothing reads after the loop stays in a register."""
    step = mg.compile(lambda x: mg.ops.tanh(x * 2.0) * 3.0)
    x = draw(7)
    step(x)
    (row,) = step.program._rows
    assert sum(array in row.plan[0].source for array in ("* x0", "* x1", "* x2", "* x3")) == 4  # x, 2, 3, y
    assert "* x4" not in row.plan[0].source


def test_what_fails_meanwhile_leaves_the_step_as_it_is(card):
    x = there([1.0, 2.0])

    @mg.compile
    def step(scale):
        return apply(ASSIGN, x, x * scale)

    failed = []

    def fails():
        failed.append(True)
        raise ValueError("no more batches")

    rates = [there(2.0) for _ in range(4)]
    step(rates[0])
    step(rates[1])
    before, state.meanwhile = state.meanwhile, fails
    try:
        step(rates[2])
        assert failed
    finally:
        state.meanwhile = before
    assert x.numpy().tolist() == [8.0, 16.0]
