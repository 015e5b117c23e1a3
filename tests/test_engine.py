"""The engine: `grad` as a function, graphs of any form and size, stale graphs, threads, interruptions, any order."""

import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import minigan as mg
from minigan import ops
from minigan.tape import Primitive, apply, same_spec

QUICK = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def leaf(*shape: int, dtype: Any = np.float64, seed: int = 0) -> mg.Tensor:
    return mg.tensor(np.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), dtype))


def mlp(x: mg.Tensor, *weights: mg.Tensor) -> mg.Tensor:
    for w in weights[:-1]:
        x = ops.tanh(x @ w)
    return (x @ weights[-1]).sum()


# `grad` is a function


def test_grad_twice_gives_the_same_bits_in_memory_of_its_own() -> None:
    x, w, v = leaf(4, 3), leaf(3, 2), leaf(2, 2)
    y = mlp(x, w, v)
    first, second = mg.grad(y, [x, w, v]), mg.grad(y, [x, w, v])
    for a, b in zip(first, second, strict=True):
        assert a.array.tobytes() == b.array.tobytes()
        assert not np.shares_memory(a.array, b.array)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_not_used_has_a_gradient_of_zeros(dtype: Any) -> None:
    x, unused = leaf(2, 3, dtype=dtype), leaf(0, 2, dtype=dtype)
    constant = mg.tensor(np.ones((), dtype))
    for y in ((x * x).sum(), constant):
        (g,) = mg.grad(y, unused)
        assert g.shape == (0, 2) and g.dtype == dtype
    (g,) = mg.grad(constant, x)
    assert g.shape == (2, 3) and g.dtype == dtype and not g.numpy().any()


def test_the_gradient_of_a_gradient_that_is_constant_is_zero() -> None:
    x = leaf(3)
    (g,) = mg.grad((2 * x).sum(), x, create_graph=True)
    assert mg.grad(g.sum(), x)[0].numpy().tolist() == [0, 0, 0]


def test_an_output_that_is_an_input() -> None:
    x, v = leaf(3), leaf(3, seed=1)
    (g,) = mg.grad(x, x, v)
    np.testing.assert_array_equal(g.numpy(), v.numpy())
    assert not np.shares_memory(g.array, v.array)
    y = x * x
    g, again, of_x = mg.grad([y, y], [y, y, x], [v, v])
    np.testing.assert_array_equal(g.numpy(), 2 * v.numpy())
    np.testing.assert_array_equal(again.numpy(), g.numpy())
    assert not np.shares_memory(g.array, again.array)
    np.testing.assert_allclose(of_x.numpy(), 4 * x.numpy() * v.numpy(), rtol=1e-15)


def test_a_target_may_be_a_result_in_the_middle() -> None:
    x = leaf(3)
    y = ops.exp(x)
    z = (y * y + x).sum()
    gy, gx = mg.grad(z, [y, x])
    np.testing.assert_allclose(gy.numpy(), 2 * y.numpy(), rtol=1e-15)
    np.testing.assert_allclose(gx.numpy(), 2 * np.exp(2 * x.numpy()) + 1, rtol=1e-14)


def test_detach_and_no_grad_cut_the_graph() -> None:
    x = leaf(3)
    assert mg.grad((x * (x * x).detach()).sum(), x)[0].numpy() == pytest.approx(x.numpy() ** 2, rel=1e-15)
    with mg.no_grad():
        y = (x * x).sum()
    assert y.node is None
    assert not mg.grad(y, x)[0].numpy().any()
    (g,) = mg.grad((x * x).sum(), x)
    assert g.node is None, "a gradient is recorded only if it is asked for"


def test_memory_of_cotangents_and_gradients_is_independent() -> None:
    x = leaf(3)
    v = np.ones(3)
    y = x.reshape(3, 1).T.reshape(
        3
    )  # views all the way: nothing is computed that would make a copy by itself
    seed = mg.asarray(v)
    gradients = mg.grad([y, x + 0.0], [x, y], [seed, seed])
    kept = [g.numpy().copy() for g in gradients]
    del seed
    v[:] = 7
    for g, before in zip(gradients, kept, strict=True):
        np.testing.assert_array_equal(g.numpy(), before)
    gradients[0].array[:] = 5
    np.testing.assert_array_equal(gradients[1].numpy(), kept[1])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: mg.grad(x * x, x), mg.ShapeError, r"\(2, 3\)"),
        (lambda x: mg.grad(x, x, leaf(3, 2)), mg.ShapeError, r"\(2, 3\).*\(3, 2\)"),
        (lambda x: mg.grad(x, x, leaf(2, 3, dtype=np.float32)), mg.DTypeError, "float64.*float32"),
        (lambda x: mg.grad([x, x], x, [x]), mg.ShapeError, "2 outputs but 1"),
        (lambda x: mg.grad((x > 0), x), mg.DTypeError, "bool"),
        (lambda x: mg.grad(x.sum(), np.ones(3)), mg.GraphError, "ndarray"),
        (lambda x: mg.jvp(ops.exp, [x], [x, x]), mg.ShapeError, "1 inputs but 2"),
    ],
)
def test_calls_that_cannot_be_answered(call: Callable[[mg.Tensor], Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        call(leaf(2, 3))


# Graphs of any form


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x + x,
        lambda x: x * x * x,
        lambda x: x @ x.T,
        lambda x: (x @ x.T) @ x,
        lambda x: x / (x * x + 1),
        lambda x: ops.concatenate([x, x * x, x]),
        lambda x: ops.where(x > 0, x * x, x),
        lambda x: [ops.exp(x), ops.exp(x) * x],
    ],
)
def test_one_tensor_in_several_places(f: Callable[..., Any]) -> None:
    mg.check_grad(f, leaf(3, 3).numpy(), order=3)


def test_diamonds_in_second_order() -> None:
    x = mg.tensor(np.float64(1.3))
    y = x
    for _ in range(20):
        y = y * 0.5 + y * 0.5  # 2^20 paths, 60 nodes
    y = y * y
    (g,) = mg.grad(y, x, create_graph=True)
    (h,) = mg.grad(g, x)
    assert g.item() == pytest.approx(2.6, rel=1e-14) and h.item() == pytest.approx(2, rel=1e-14)


# Far more than Python may recurse; the slow ones also more than would fit the stack.
many = pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])


@many
def test_many_uses_of_one_leaf(count: int) -> None:
    x = mg.tensor(2.0)
    total = mg.tensor(0.0)
    for _ in range(count):
        total = total + x
    assert mg.grad(total, x)[0].item() == count


@many
def test_a_long_chain(count: int) -> None:
    limit = sys.getrecursionlimit()
    x = mg.tensor(1.0)
    y = x
    for _ in range(count):
        y = -y
    assert mg.grad(y, x)[0].item() == 1
    del y
    y = x
    for _ in range(count // 10):
        y = y * 1.0
    (g,) = mg.grad(y * y, x, create_graph=True)
    assert mg.grad(g, x)[0].item() == 2
    del y, g
    assert sys.getrecursionlimit() == limit


@many
def test_nodes_are_freed(count: int) -> None:
    y = mg.tensor(1.0)
    before = sys.getallocatedblocks()
    for _ in range(3):
        for _ in range(count):
            y = -y
        y = y.detach()
    assert sys.getallocatedblocks() - before < 10_000  # what Python's free lists keep


@pytest.mark.slow
def test_a_million_nodes_in_one_chain_are_freed() -> None:
    y = x = mg.tensor(1.0)
    for _ in range(1_000_000):
        y = -y
    assert mg.grad(y, x)[0].item() == 1
    del y


def gan_like_step() -> None:
    """Every kind of rule, to second order: a penalty's gradient, a rule by reference, several outputs."""
    x, w, v = leaf(4, 3), leaf(3, 5), leaf(5, 1)
    logits = ops.leaky_relu(ops.gelu(x @ w)) @ v
    (gx,) = mg.grad(logits.sum(), x, create_graph=True)
    values, _ = ops.topk(logits, 1, axis=0)
    loss = ops.sigmoid_cross_entropy(logits, 0.9).mean() + (gx * gx).sum() + ops.norm(gx) + values.sum()
    mg.grad(loss, [w, v])
    mg.hvp(mlp, [x, w, v], [x, w, v])
    mg.jvp(mlp, [x, w, v], [x, w, v])


def test_there_are_no_reference_cycles() -> None:
    gan_like_step()
    gc.collect()
    gc.disable()
    try:
        gan_like_step()
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("steps", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_without_the_garbage_collector(steps: int) -> None:
    gc.collect()
    gc.disable()
    try:
        for _ in range(400):  # until the free lists of Python and NumPy are full
            gan_like_step()
        before = sys.getallocatedblocks(), resident()
        for _ in range(steps):
            gan_like_step()
        blocks, pages = sys.getallocatedblocks() - before[0], resident() - before[1]
    finally:
        gc.enable()
    assert blocks < 100
    assert pages < 2**20


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


# Stale graphs


def update(*parameters: mg.Tensor) -> None:
    optimizer = mg.optim.SGD(0.1)
    named = {str(i): p for i, p in enumerate(parameters)}
    optimizer.update(named, [mg.tensor(np.ones(p.shape, p.dtype)) for p in parameters], optimizer.init(named))


@pytest.mark.parametrize(
    ("f", "op"),
    [
        (lambda p: p * p, "multiply"),
        (lambda p: ops.exp(p.T[1:]), "exp|slice|transpose"),
        (lambda p: ops.tanh(p.detach() + p), "add"),
        (lambda p: p.reshape(6).sum(), "reshape|sum"),
    ],
)
def test_a_graph_of_what_has_changed_since_is_stale(f: Callable[..., Any], op: str) -> None:
    p = leaf(2, 3)
    y = f(p)
    update(p)
    with pytest.raises(mg.GraphError, match=op):
        mg.grad(y, p, mg.tensor(np.ones(y.shape)))
    mg.grad(f(p).sum(), p)  # computed again it is well


def test_a_change_of_something_else_does_not_matter() -> None:
    p, q = leaf(3), leaf(3, seed=1)
    y = (p * p).sum()
    z = (p * q).sum()
    update(q)
    np.testing.assert_array_equal(mg.grad(y, p)[0].numpy(), 2 * p.numpy())
    with pytest.raises(mg.GraphError, match="multiply"):
        mg.grad(z, p)


def test_the_memory_of_a_recorded_result_is_never_updated() -> None:
    x = leaf(3)
    y = ops.exp(x)
    for handle in (y, y.detach(), y[1:].detach(), y.reshape(3, 1).detach()):
        with pytest.raises(mg.GraphError, match="memory of a recorded result"):
            update(handle)
    assert np.array_equal(mg.grad(y.sum(), x)[0].numpy(), y.numpy())
    update(mg.tensor(y))


def test_one_array_shared_twice_is_locked_until_the_last_graph_is_gone() -> None:
    a = np.arange(4.0)
    first, second = mg.asarray(a), mg.asarray(a[:2])
    y, z = first * 1.0, (second * second).sum()
    del y
    assert not a.flags.writeable
    del z
    assert a.flags.writeable


def test_a_shared_array_is_locked_while_a_graph_holds_it() -> None:
    a = np.ones(3)
    view = a[:2]
    x = mg.asarray(a)
    y = x * x
    with pytest.raises(ValueError, match="read-only"):
        a[0] = 5
    with pytest.raises(ValueError, match="read-only"):
        np.add(a, 1, out=a)
    z = y + x
    del y
    with pytest.raises(ValueError, match="read-only"):
        a[0] = 5
    del z
    a[0] = 5
    assert x.numpy()[0] == 5, "the memory is shared"
    assert view.flags.writeable
    with mg.no_grad():
        y = x * x
    a[0] = 6
    y = x * x
    update(x)
    assert a[0] == pytest.approx(5.9), "an optimiser may: it leaves word"
    with pytest.raises(mg.GraphError, match="multiply"):
        mg.grad(y.sum(), x)


def test_an_array_that_was_read_only_stays_so() -> None:
    a = np.ones(3)
    a.flags.writeable = False
    y = mg.asarray(a) * 2
    del y
    assert not a.flags.writeable
    with pytest.raises(mg.GraphError, match="read-only"):
        update(mg.asarray(a))


def test_tensors_copy_and_views_are_read_only() -> None:
    a = np.ones(3)
    x = mg.tensor(a)
    a[0] = 5
    assert x.numpy()[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        x.numpy()[0] = 5
    with pytest.raises(ValueError, match="read-only"):
        np.add(1, 1, out=x.numpy())
    copy = np.array(x)
    copy[0] = 5
    assert x.numpy()[0] == 1


# Threads and interruptions


def train(seed: int) -> bytes:
    """A small model of its own, trained for a few steps of double backward."""
    weights = {
        "w": leaf(8, 16, dtype=np.float32, seed=seed),
        "v": leaf(16, 1, dtype=np.float32, seed=seed + 100),
    }
    optimizer = mg.optim.Adam(0.01)
    state = optimizer.init(weights)
    x = leaf(32, 8, dtype=np.float32, seed=seed + 200)
    for _ in range(20):
        logits = ops.leaky_relu(x @ weights["w"]) @ weights["v"]
        (gx,) = mg.grad(ops.softplus(logits).sum(), x, create_graph=True)
        loss = ops.sigmoid_cross_entropy(logits, 1.0).mean() + (gx * gx).mean()
        optimizer.update(weights, mg.grad(loss, list(weights.values())), state)
    return b"".join(w.numpy().tobytes() for w in weights.values())


def test_eight_threads_do_not_disturb_each_other() -> None:
    alone = [train(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(train, range(8))) == alone


def test_recording_is_switched_per_thread() -> None:
    inside, checked = threading.Event(), threading.Event()
    recorded = []

    def other() -> None:
        inside.wait(10)
        recorded.append((leaf(3) * 2).node is not None)
        checked.set()

    thread = threading.Thread(target=other)
    thread.start()
    with mg.no_grad():
        inside.set()
        assert checked.wait(10)
        assert (leaf(3) * 2).node is None
    thread.join()
    assert recorded == [True]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, MemoryError])
def test_a_rule_that_fails_leaves_the_graph_usable(error: type[BaseException]) -> None:
    failures = [error(), error()]

    def rule(gy: Any, y: Any, x: Any) -> Any:
        def gx() -> Any:
            if failures:
                raise failures.pop()
            return gy * 3

        return (gx,)

    fragile = Primitive(
        "planted fragile", same_spec, kernel=lambda outs, x: np.copyto(outs[0], 3 * x), vjp=rule
    )
    x = leaf(3)
    y = (apply(fragile, x * x) * x).sum()
    for create_graph in (False, True):
        with pytest.raises(error):
            mg.grad(y, x, create_graph=create_graph)
        assert (x * 2).node is not None, "recording is as it was"
    np.testing.assert_allclose(mg.grad(y, x)[0].numpy(), 9 * x.numpy() ** 2, rtol=1e-14)


# Any order


def test_third_order_of_a_smooth_network_and_its_hessian() -> None:
    arrays = [leaf(2, 3).numpy(), leaf(3, 4, seed=1).numpy(), leaf(4, 2, seed=2).numpy()]
    mg.check_grad(mlp, *arrays, order=3)
    x, w, v = map(mg.tensor, arrays)
    n = w.size
    hessian = np.stack([mg.hvp(lambda w: mlp(x, w, v), w, e)[0].numpy().ravel() for e in units(w)])
    assert hessian.shape == (n, n)
    assert np.abs(hessian - hessian.T).max() <= 1e-10 * max(1, np.abs(hessian).max())
    assert np.abs(hessian).max() > 0.1


def units(x: mg.Tensor) -> list[mg.Tensor]:
    return [mg.tensor(row.reshape(x.shape)) for row in np.eye(x.size)]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "product": lambda x, w: x @ w,
    "tanh": lambda x, w: ops.tanh(x @ w) * x.sum(),
    "softmax": lambda x, w: ops.softmax(x @ w, axis=-1),
    "two outputs": lambda x, w: (ops.exp(x).sum(axis=0), w * w),
    "leaky_relu": lambda x, w: ops.leaky_relu(x @ w),
    "gelu": lambda x, w: ops.gelu(x @ w),
}


@QUICK
@given(
    name=st.sampled_from(sorted(FUNCTIONS)),
    n=st.integers(0, 3),
    k=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_jvp_is_the_adjoint_of_vjp(name: str, n: int, k: int, seed: int) -> None:
    f = FUNCTIONS[name]
    x, w, t, u = (
        leaf(n, k, seed=seed),
        leaf(k, 2, seed=seed + 1),
        leaf(n, k, seed=seed + 2),
        leaf(k, 2, seed=seed + 3),
    )
    y, dy = mg.jvp(f, [x, w], [t, u])
    ys, dys = (list(z) if isinstance(z, tuple) else [z] for z in (y, dy))
    again, pull = mg.vjp(f, x, w)
    vs = [leaf(*z.shape, seed=seed + 4) for z in ys]
    for a, b, value in zip(ys, dys, again if isinstance(again, tuple) else [again], strict=True):
        assert a.shape == b.shape and np.array_equal(a.numpy(), value.numpy())
    left = sum(float(np.sum(v.numpy() * d.numpy())) for v, d in zip(vs, dys, strict=True))
    right = sum(float(np.sum(g.numpy() * t.numpy())) for g, t in zip(pull(*vs), [t, u], strict=True))
    assert left == pytest.approx(right, rel=1e-12, abs=1e-12)


@QUICK
@given(name=st.sampled_from(sorted(FUNCTIONS)), seed=st.integers(0, 2**16))
def test_hvp_is_the_jvp_of_the_gradient_and_symmetric(name: str, seed: int) -> None:
    def f(x: mg.Tensor, w: mg.Tensor) -> mg.Tensor:
        y = FUNCTIONS[name](x, w)
        return sum(
            ((z * z).sum() for z in (y if isinstance(y, tuple) else (y,))), start=mg.tensor(np.zeros(()))
        )

    xs = [leaf(2, 3, seed=seed), leaf(3, 2, seed=seed + 1)]
    a, b = ([leaf(2, 3, seed=seed + i), leaf(3, 2, seed=seed + i + 1)] for i in (2, 4))
    ha, hb = mg.hvp(f, xs, a), mg.hvp(f, xs, b)
    _, directional = mg.jvp(lambda *xs: mg.grad(f(*xs), xs, create_graph=True), xs, a)
    for h, d in zip(ha, directional, strict=True):
        np.testing.assert_allclose(h.numpy(), d.numpy(), rtol=1e-11, atol=1e-11)
    inner = [
        sum(float(np.sum(h.numpy() * v.numpy())) for h, v in zip(*z, strict=True)) for z in ((ha, b), (hb, a))
    ]
    assert inner[0] == pytest.approx(inner[1], rel=1e-11, abs=1e-11)


def test_jvp_and_hvp_can_be_differentiated() -> None:
    mg.check_grad(lambda x, t: mg.jvp(ops.sin, x, t)[1], leaf(3).numpy(), leaf(3, seed=1).numpy())
    mg.check_grad(
        lambda x, v: mg.hvp(lambda x: ops.sin(x).sum(), x, v), leaf(3).numpy(), leaf(3, seed=1).numpy()
    )


def test_check_grad_names_the_worst_entry() -> None:
    wrong = Primitive(
        "planted wrong",
        same_spec,
        kernel=lambda outs, x: np.copyto(outs[0], x * x),
        vjp=lambda gy, y, x: (lambda: gy * x * np.array([2.0, 2.0, 2.001]),),
    )
    with pytest.raises(AssertionError, match=r"order 1, input 0.*index \(2,\).*error"):
        mg.check_grad(lambda x: apply(wrong, x), np.ones(3))
    with pytest.raises(mg.ConfigError, match="order 0"):
        mg.check_grad(ops.exp, np.ones(3), order=0)
    with pytest.raises(AssertionError, match="order 1"):
        mg.check_grad(ops.relu, np.array([-1.0, 1e-4, 2.0]))
    labels = np.array([2, 0])
    errors = mg.check_grad(lambda x, i: ops.take(x * x, i), np.ones((3, 2)), labels, tolerance=1e-8)
    assert len(errors) == 2 and max(errors) < 1e-8


# Without Numba

PROGRAM = """
import sys, warnings
if {block}: sys.modules["numba"] = None
warnings.simplefilter("always")
import numpy as np
import minigan as mg
from minigan import ops
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    x = mg.tensor(np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4))
    w = mg.tensor(np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2))
    loss = ops.sigmoid_cross_entropy(ops.leaky_relu(ops.tanh(x) @ w), 1.0).mean()
    gs = mg.grad(loss, [x, w])
    noise = ops.Stream(0, "noise").normal((3,))
mg.check_grad(lambda x: ops.gelu(ops.softplus(x)), np.linspace(-1, 1, 5))
print(len([s for s in seen if "Numba" in str(s.message)]), len(seen))
print([float(v) for t in (loss, *gs, noise) for v in t.numpy().ravel()])
"""


def test_without_numba_results_are_the_same_but_for_rounding() -> None:
    results = []
    for block, switch in ((False, "1"), (True, "1"), (False, "0")):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(block=block)],
            env={**os.environ, "MINIGAN_NUMBA": switch},
            capture_output=True,
            text=True,
            check=True,
        )
        counts, values = done.stdout.splitlines()
        assert counts == ("1 1" if block else "0 0"), (
            "one notice where Numba is missing, none where it is switched off"
        )
        results.append(np.array(json.loads(values)))
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_the_whole_harness_passes_without_numba() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "test_primitives.py", "-p", "no:cacheprovider"],
        cwd=Path(__file__).parent,
        env={**os.environ, "MINIGAN_NUMBA": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
