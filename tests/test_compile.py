"""`minigan.compile`: what a compiled step takes and gives, what it refuses, and games and failures in it."""

import os
import re
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
from harness import laid_out
from plain_kernels import needs_numba, plain_kernels

import minigan as mg
from minigan.kernels import machine
from minigan.nn.module import ASSIGN
from minigan.ops import Stream
from minigan.program import fuse
from minigan.tape import apply

NAN, INF = float("nan"), float("inf")
IMAGES = np.random.default_rng(0).random((64, 3, 3, 1)).astype(np.float32)


@pytest.fixture
def plain():
    with plain_kernels():
        yield


# Games


def game(dropout: bool = False, **settings: Any) -> mg.GAN:
    generator = mg.models.mlp_generator(3, (5,), (3, 3, 1))
    discriminator = mg.models.mlp_discriminator((3, 3, settings.get("pack", 1)), (6,))
    if dropout:
        discriminator.layers.insert(2, mg.nn.Dropout(0.3))
    return mg.GAN(generator, discriminator, **settings)


def batches() -> mg.data.Batches:
    return mg.data.Batches(IMAGES, 4, Stream(0, "data"))


P = mg.penalties
GAMES: dict[str, dict[str, Any]] = {
    "default": {},
    "mixed": {
        "loss": "relativistic",
        "penalty": [P.r1(0.1), P.r2(0.1)],
        "optimizer": mg.optim.RMSProp(1e-3, clip_norm=0.1),
        "d_steps": 2,
        "noise": lambda step: 0.1 / (1 + step),
        "latent": "normal",
    },
    "r1": {"penalty": P.r1(1.0)},
    "r2, normal latents": {"penalty": P.r2(1.0), "latent": "normal"},
    "wgan_gp": {"penalty": P.wgan_gp(10.0), "loss": "wasserstein"},
    "dragan": {"penalty": P.dragan(10.0), "loss": "minimax"},
    "relativistic": {"penalty": [P.r1(0.1), P.r2(0.1)], "loss": "relativistic"},
    "simultaneous": {"update": "simultaneous", "loss": "hinge"},
    "share_fake": {"share_fake": True, "loss": "least_squares"},
    "d_steps": {"d_steps": 2},
    "smoothing, no average": {"smoothing": 0.1, "ema": None},
    "noise": {"noise": 0.1},
    "noise by schedule": {"noise": lambda step: 0.1 / (1 + step)},
    "dropout": {"dropout": True},
    "sgd": {"optimizer": mg.optim.SGD(mg.optim.linear(0.1, 10), momentum=0.9, nesterov=True)},
    "rmsprop, clipped": {"optimizer": mg.optim.RMSProp(1e-3, clip_norm=0.1)},
    "extragradient": {"update": "extragradient", "penalty": P.r1(0.1)},
    "consensus": {"update": "simultaneous", "consensus": 0.5, "penalty": P.r1(0.1)},
    "consensus, extragradient": {"update": "extragradient", "consensus": 0.5, "share_fake": True},
    "optimistic": {"optimizer": mg.optim.Adam(1e-2, b1=0.5, optimistic=True)},
    "unrolled": {"unroll": 2, "penalty": P.r1(0.1)},
    "unrolled, momentum": {"unroll": 1, "optimizer": mg.optim.SGD(mg.optim.linear(0.1, 9), momentum=0.9)},
    "packed": {"pack": 2, "loss": "relativistic"},
    "feature matching": {"feature_matching": 1.0, "loss": "relativistic"},
    "augmented": {"augment": "brightness,translation,cutout", "penalty": P.r1(0.1)},
    "all remedies": {
        "unroll": 1,
        "pack": 2,
        "augment": "translation",
        "feature_matching": 0.5,
        "optimizer": mg.optim.Adam(1e-2, b1=0.5, optimistic=True),
        "penalty": P.r1(mg.optim.exponential(0.5, 10, end=0.01)),
        "noise": mg.optim.linear(0.1, 10),
        "update": "extragradient",
    },
    "penalty by schedule": {"penalty": P.r1(mg.optim.exponential(0.5, 10, end=0.01))},
    "adamw": {"optimizer": mg.optim.Adam(mg.optim.cosine(1e-3, 50), weight_decay=0.1, clip_norm=0.1)},
}
QUICK = ("default", "wgan_gp", "simultaneous", "dropout", "mixed", "all remedies")


def played(gan: mg.GAN, step: Any, steps: int = 3) -> list[dict[str, np.ndarray]]:
    data = batches()
    found = []
    for _ in range(steps):
        metrics = step(data)
        found.append({name: x.numpy().copy() for name, x in metrics.items()} | gan.game.state())
    return found


def compare(found: Any, expected: Any, rtol: float) -> None:
    for of_step, exact in zip(found, expected, strict=True):
        assert list(of_step) == list(exact)
        for name, x in exact.items():
            if rtol == 0:
                assert of_step[name].tobytes() == x.tobytes(), name
            else:
                np.testing.assert_allclose(of_step[name], x, rtol=rtol, atol=rtol * 10, err_msg=name)


def check_game(settings: dict[str, Any]) -> None:
    eager = game(**settings)
    expected = played(eager, eager.step)
    exact = game(**settings)
    compare(played(exact, mg.compile(exact.step, fuse=False)), expected, 0)
    fused = game(**settings)
    found = played(fused, mg.compile(fused.step))
    compare(found, expected, 1e-5)
    for options in ({"poison": True}, {"threads": 3}):
        other = game(**settings)
        compare(played(other, mg.compile(other.step, **options), 2), found[:2], 0)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in GAMES]
)
def test_a_game(name, plain, monkeypatch):
    monkeypatch.setattr(fuse, "SMALL", 8)
    check_game(GAMES[name])


@pytest.mark.slow
@needs_numba
@pytest.mark.parametrize("settings", GAMES.values(), ids=GAMES)
def test_a_game_with_compiled_loops(settings, monkeypatch):
    monkeypatch.setattr(fuse, "SMALL", 64)
    check_game(settings)


@needs_numba
def test_a_game_with_compiled_loops_and_threads():
    eager, compiled = game(), game()
    compare(played(compiled, mg.compile(compiled.step, threads=2)), played(eager, eager.step), 1e-5)


def test_a_game_that_goes_on_from_a_checkpoint(plain):
    whole, half, rest = game(), game(), game()
    expected = played(whole, mg.compile(whole.step), 4)[-1]
    played(half, mg.compile(half.step), 2)
    step = mg.compile(rest.step)
    step(batches())  # captured before: the program sees what is loaded
    rest.game.load_state(half.game.state())
    compare(played(rest, step, 2)[-1:], [expected], 0)


# The guard


def failed(step: Any, data: Any) -> str:
    with np.errstate(all="ignore"), pytest.raises(mg.NonFiniteError) as error:
        step(data)
    return str(error.value)


def bits(gan: mg.GAN) -> dict[str, bytes]:
    """Of all that a step changes."""
    return {name: x.tobytes() for name, x in gan.game.state().items()}


def first(tensors: dict[str, mg.Tensor]) -> np.ndarray:
    return next(iter(tensors.values())).array.reshape(-1)[:1]


PLACES = {
    "batch": lambda gan, data: data.samples.reshape(-1)[::5],
    "weight of D": lambda gan, data: first(gan.game.discriminator.parameters()),
    "weight of G": lambda gan, data: first(gan.game.generator.parameters()),
    "memory of D": lambda gan, data: first(gan.game._players()["discriminator"].memory.slots["v"]),
    "memory of G": lambda gan, data: first(gan.game._players()["generator"].memory.slots["m"]),
    "average": lambda gan, data: first(gan.game.ema_generator.parameters()),
}


@pytest.mark.parametrize("options", [{}, {"fuse": False}, {"threads": 3}, {"poison": True}], ids=str)
@pytest.mark.parametrize("settings", [{}, {"update": "simultaneous"}, {"d_steps": 2}], ids=str)
def test_bad_values_are_found_and_change_nothing(settings, options, plain, monkeypatch):
    monkeypatch.setattr(fuse, "SMALL", 8)
    gans = game(**settings), game(**settings)
    sets = [mg.data.Batches(IMAGES.copy(), 4, Stream(0, "data")) for _ in gans]
    steps = [gans[0].step, mg.compile(gans[1].step, **options)]
    for place in PLACES.values():
        messages = []
        for gan, data, step in zip(gans, sets, steps, strict=True):
            step(data)
            values = place(gan, data)
            good = values.copy()
            values[...] = NAN
            before = bits(gan)
            messages.append(failed(step, data))
            assert bits(gan) == before
            values[...] = good
        assert messages[0] == messages[1] and messages[0].startswith(f"step {gans[0].game.steps + 1}: ")
    compare([gans[1].game.state()], [gans[0].game.state()], 0 if options.get("fuse") is False else 1e-4)


def test_an_overflow_in_the_generators_half(plain, monkeypatch):
    """The discriminator has moved by then, and moves back."""
    gan, data, draws = game(latent="normal"), batches(), []
    gan.step(data)
    draw = gan._sampler.draw

    def drawn(stream, count, device):
        draws.append(0)
        return draw(stream, count, device) * (1e30 if len(draws) % 2 == 0 else 1.0) * 1e30

    monkeypatch.setattr(gan._sampler, "draw", drawn)
    monkeypatch.setattr(gan, "_prior", Stream(0, "latent"))
    before = bits(gan)
    messages = []
    for step in (gan.step, mg.compile(gan.step), mg.compile(gan.step, fuse=False)):
        for _ in range(2):
            messages.append(failed(step, data))
            assert bits(gan) == before
    assert len(set(messages)) == 1 and messages[0].startswith("step 2: generator: g_loss is nan")


@pytest.mark.parametrize("options", [{}, {"fuse": False}], ids=str)
@pytest.mark.parametrize("where", ["batch", "rate", "machine"])
def test_an_interrupted_step_is_made_or_not(where, options, plain, monkeypatch):
    interrupts = []

    def interrupt():
        if interrupts:
            interrupts.clear()
            raise KeyboardInterrupt

    def rate(step):
        if where == "rate":
            interrupt()
        return 0.1

    gan, twin = game(optimizer=mg.optim.SGD(rate)), game(optimizer=mg.optim.SGD(0.1))
    step, data = mg.compile(gan.step, **options), batches()
    expected = played(twin, mg.compile(twin.step, **options), 4)
    for _ in range(2):
        step(data)
    if where == "batch":
        at = data.at
        monkeypatch.setattr(data, "at", lambda k: (interrupt(), at(k))[1])
    if where == "machine":  # a signal that comes while compiled code runs is raised when it returns
        program, left = step.program, [signal.SIGINT]
        where_, name = (program, "_call") if options else (program._built.machine, "run")
        run = getattr(where_, name)

        def signalled(*given):
            result = run(*given)
            if left:
                os.kill(os.getpid(), left.pop())
            return result

        monkeypatch.setattr(where_, name, signalled)
    interrupts.append(0)
    with pytest.raises(KeyboardInterrupt):
        step(data)
    done = gan.game.steps
    assert done == 2 or (done == 3 and where == "machine")
    for name, x in gan.game.state().items():
        assert x.tobytes() == expected[done - 1][name].tobytes(), name
    compare(played(gan, step, 4 - done), expected[done:], 0)


# What is captured


def arrays(*shapes: Any, dtype: Any = np.float64, seed: int = 0) -> list[mg.Tensor]:
    random = np.random.default_rng(seed)
    return [mg.tensor(random.normal(size=shape).astype(dtype)) for shape in shapes]


def programs(step: Any) -> int:
    return len(step._programs)


def test_other_arguments_are_captured_anew(plain, monkeypatch):
    calls = []

    @mg.compile
    def step(x, *rest, scale=1.0, train=False):
        calls.append(0)
        return (mg.ops.tanh(x) if train else x * scale).sum(), {"rest": [r * 2 for r in rest]}

    x, y = arrays((2, 3), (3,))
    kinds = [((x,), {}), ((y,), {}), ((x.astype(np.float32),), {}), ((x, y), {}), ((x,), {"train": True})]
    kinds += [((x,), {"scale": 2.0}), ((x,), {"scale": 0.0}), ((x,), {"scale": -0.0}), ((x,), {"scale": 1})]
    for given, named in kinds * 2:
        found, expected = step(*given, **named), step.function(*given, **named)
        assert_tree(found, expected)
    assert programs(step) == len(kinds) and len(calls) == 3 * len(kinds)
    monkeypatch.setattr(machine, "available", lambda: 4)
    before = machine._threads
    try:
        machine.set_threads(3)
        step(x)
        assert programs(step) == len(kinds) + 1 and step.program.options.threads == 3
    finally:
        machine._threads = before


def assert_tree(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, mg.Tensor):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-6)
    elif isinstance(expected, (dict, list, tuple)):
        assert len(found) == len(expected)
        pairs = zip(expected.items(), found.items(), strict=True) if isinstance(expected, dict) else ()
        assert all(a == b for (a, _), (b, _) in pairs)
        values = (found.values(), expected.values()) if isinstance(expected, dict) else (found, expected)
        for a, b in zip(*values, strict=True):
            assert_tree(a, b)
    else:
        assert found == expected


@pytest.mark.parametrize("number", [np.float32(2), np.float64(2), np.int64(2), np.bool_(True)], ids=repr)
def test_numbers_of_numpy_are_arguments_by_value(number, plain):
    step = mg.compile(lambda x, n: x * float(n))
    (x,) = arrays(3)
    for _ in range(3):
        assert_tree(step(x, type(number)(number)), x * float(number))
    assert programs(step) == 1


@pytest.mark.parametrize("layout", ["F", "reversed", "strided", "repeated", "misaligned", "swapped"])
def test_arrays_of_any_layout_are_arguments(layout, plain):
    step = mg.compile(lambda x: (mg.ops.tanh(x), x.T))
    for seed in range(3):
        given = laid_out(arrays((4, 3), seed=seed)[0].numpy(), layout)
        before = given.tobytes()
        assert_tree(step(given), (mg.ops.tanh(mg.tensor(given)), mg.tensor(given).T))
        assert given.tobytes() == before


def test_large_arguments_are_looked_at_and_overwritten_no_more_than_small_ones(plain):
    def look(x):
        return x * float(mg.asarray(x.array).numpy()[0])

    def overwrite(x):
        y = mg.asarray(x.array)
        apply(ASSIGN, y, y * 2)
        return x + 0

    for function in (look, overwrite):
        for size in (8, 5000):
            with pytest.raises(mg.errors.GraphError, match=r"argument 0|Python would see"):
                mg.compile(function)(np.ones(size, np.float32))


def test_a_view_of_an_outside_array_is_not_memory_of_the_step(plain):
    table = np.zeros((2, 8), np.float32)

    def function(x):
        row = mg.Tensor(table[0])
        return apply(ASSIGN, row, row + x)[0] + 0

    step = mg.compile(function)
    assert [step(np.ones(8, np.float32)).numpy()[0] for _ in range(4)] == [1, 2, 3, 4]


def test_containers_that_are_not_looked_into_are_refused(plain):
    pair = namedtuple("pair", "x y")
    x, y = arrays(3, 3)
    for function, given in ((lambda p: p.x + p.y, pair(x, y)), (lambda p: pair(p, p), x), (lambda p: {p}, x)):
        step = mg.compile(function)
        with pytest.raises(mg.errors.GraphError, match=r"a (pair|set)"):
            step(given)


def test_results_are_copies_unless_asked_for_otherwise(plain):
    weights = {"w": mg.tensor(np.ones(3))}
    sgd = mg.optim.SGD(0.5)
    memory = sgd.init(weights)

    def function(x):
        sgd.update(weights, [x], memory)
        return x * 2, weights["w"], x, weights["w"][::-1]

    for copy in (True, False):
        step = mg.compile(function, copy=copy)
        kept = [x.numpy() for x in step(mg.tensor(np.ones(3)))]
        before = [x.copy() for x in kept]
        step(mg.tensor(np.zeros(3) - 4))
        assert all(np.array_equal(a, b) for a, b in zip(kept, before, strict=True)) == copy


def test_a_result_without_copy_may_be_the_next_argument(plain):
    def function(x):
        y = mg.ops.tanh(x) + 1.0
        return (y @ x) * 0.5 + y.sum(0)

    (x,) = arrays((4, 4))
    step = mg.compile(function, copy=False)
    expected, found = x, x
    for _ in range(4):
        expected, found = function(expected), step(found)
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-9)


def test_results_have_no_history(plain):
    (x,) = arrays(3)
    step = mg.compile(lambda x: (x * x).sum())
    for _ in range(2):
        (g,) = mg.grad(step(x), [x])
        assert not g.numpy().any()


def test_recording_is_as_in_the_function(plain):
    """A step called without recording has no gradients, whichever way it was called first."""
    (x,) = arrays(3)

    def function(x):
        return mg.grad((x * x).sum(), [x])[0]

    for order in ((True, False, True), (False, True, False)):
        step = mg.compile(function)
        for records in order:
            with mg.tape.recording(records):
                assert_tree(step(x), function(x))


def test_a_step_within_a_step_and_of_a_step(plain):
    inner = mg.compile(lambda x: mg.ops.tanh(x) * x)
    outer = mg.compile(lambda x: mg.grad(inner(x).sum(), [x])[0])
    (x,) = arrays((3, 2))
    for _ in range(2):
        assert_tree(outer(x), mg.grad((mg.ops.tanh(x) * x).sum(), [x])[0])
    assert programs(inner) == 0 and programs(outer) == 1


def test_random_numbers_are_fresh_and_the_stream_goes_on(plain):
    def function(x, random):
        y = mg.ops.dropout(x, 0.5, random) + random.child("part").normal(x.shape, dtype=x.dtype)
        return y + random.uniform(x.shape, dtype=x.dtype)

    step, own = mg.compile(function), Stream(5, "own")
    (x,) = arrays((3, 2))
    a, b = Stream(0, "test"), Stream(0, "test")
    seen = set()
    for k in range(4):
        if k == 2:
            a, b = a.at(7), b.at(7)
        result = step(x, a)
        assert_tree(result, function(x, b))
        assert a.place[-1] == b.place[-1] == 2 * (k % 2 + 1)
        seen.add(result.numpy().tobytes())
    assert len(seen) == 4 and programs(step) == 1
    closed, same = mg.compile(lambda: own.uniform((2,))), Stream(5, "own")
    for _ in range(3):
        assert_tree(closed(), same.uniform((2,)))


# Law 7: what varies is a slot


LOOKS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x.sum()),
    "bool": lambda x: bool(x.sum() > 0),
    "if": lambda x: 1 if x.sum() > 0 else 2,
    "numpy": lambda x: x.numpy(),
    "asarray": lambda x: np.asarray(x),
    "format": lambda x: f"{x.sum():.3f}",
    "mask": lambda x: x[x > 0],
    "index": lambda x: x[mg.ops.argmax(x), :1] if x.ndim > 1 else x[(mg.ops.argmax(x), None)],
    "copied": lambda x: mg.tensor(x) * 2,
    "deepcopy": lambda x: __import__("copy").deepcopy(x),
    "dlpack": lambda x: np.from_dlpack(x),
    "permutation": lambda x: x[RANDOM.permutation(3)],
    "at": lambda x: RANDOM.at(3).uniform((2,)),
}
RANDOM = Stream(0, "looks")


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("of", ["argument", "result", "held"])
def test_a_look_at_a_value_is_refused(look, of, plain):
    held = mg.tensor([1.0, 2.0, 3.0])

    def step(x):
        apply(ASSIGN, held, x)
        look({"argument": x, "result": x * 2, "held": held}[of])
        return x + 1

    compiled = mg.compile(step)
    x = mg.tensor([1.0, -1.0, 2.0])
    with pytest.raises(mg.errors.GraphError) as error:
        compiled(x)
    if "at(3)" not in str(error.value):
        line = look.__code__.co_firstlineno
        assert re.search(rf"test_compile\.py:{line}\b", str(error.value)), error.value
    assert programs(compiled) == 0
    assert held.numpy().tolist() == [1.0, 2.0, 3.0]  # as if it had not been called
    with pytest.raises(mg.errors.GraphError, match="has not been called"):
        compiled.program  # noqa: B018


def test_a_look_at_a_constant_is_allowed(plain):
    table = mg.tensor([2.0, 3.0])
    step = mg.compile(lambda x: x * table[0].item() if table[1].item() > 0 else x)
    (x,) = arrays(3)
    for _ in range(2):
        assert_tree(step(x), x * 2.0)


def test_positions_out_of_range_are_found_in_every_run(plain):
    step = mg.compile(lambda x, at: mg.ops.take(x, at) * 2)
    labels = mg.compile(lambda at: mg.ops.one_hot(at, 3))
    (x,) = arrays(3)
    for function, given in ((step, (x,)), (labels, ())):
        function(*given, np.array([0, 2]))
        with pytest.raises(mg.errors.ShapeError, match="3"):
            function(*given, np.array([0, 3]))
        assert_tree(function(*given, np.array([1, 1])), function.function(*given, np.array([1, 1])))


# Tensors that a step changes


def test_graphs_from_before_a_replay_are_stale(plain):
    weights = {"w": mg.tensor([1.0, 2.0])}
    sgd = mg.optim.SGD(0.1)
    memory = sgd.init(weights)
    step = mg.compile(lambda x: sgd.update(weights, [x], memory))
    x = mg.tensor([1.0, 1.0])
    for _ in range(3):
        loss = (weights["w"] ** 2).sum()
        step(x)
        with pytest.raises(mg.errors.GraphError, match="changed in place"):
            mg.grad(loss, [weights["w"]])


def test_an_argument_that_is_overwritten_is_refused_or_overwritten(plain):
    step = mg.compile(lambda x, y: apply(ASSIGN, x, y))
    x, y = arrays(3, 3)
    for _ in range(2):
        x.array[...] = 0
        try:
            step(x, y)
        except mg.errors.GraphError as error:
            assert "argument 0" in str(error)
        else:
            np.testing.assert_array_equal(x.numpy(), y.numpy())


def test_what_a_step_makes_itself_is_made_anew_in_every_run(plain):
    def function(x):
        total = mg.tensor(np.zeros(3))
        mg.optim.EMA(0.9).update({"": x}, {"": total}, lambda: 10**6)
        return total * 1.0

    step = mg.compile(function)
    (x,) = arrays(3)
    for _ in range(3):
        assert_tree(step(x), function(x))


def test_an_argument_that_is_also_held(plain):
    def made():
        w = mg.tensor(np.arange(3.0))

        def function(x):
            y = x * 2
            apply(ASSIGN, w, y + 1)
            return y, w * 3

        return w, function

    (w, function), (v, other) = made(), made()
    step = mg.compile(other)
    for _ in range(3):
        assert_tree(step(v), function(w))
        np.testing.assert_array_equal(v.numpy(), w.numpy())


def test_rates_of_any_kind_of_number(plain):
    for rate in (lambda t: np.float32(0.5), lambda t: 1 if t else 0.5, lambda t: np.float64(0.25)):
        found = []
        for compiles in (False, True):
            weights, sgd = {"w": mg.tensor(np.ones(2))}, mg.optim.SGD(rate)
            memory = sgd.init(weights)
            step = lambda x, w=weights, o=sgd, m=memory: o.update(w, [x], m)  # noqa: E731
            step = mg.compile(step) if compiles else step
            for _ in range(3):
                step(mg.tensor(np.ones(2)))
            found.append(weights["w"].numpy().copy())
        np.testing.assert_allclose(*found, rtol=1e-12)


def test_the_first_call_is_a_step_like_any_other(plain):
    twice, again = game(), game()
    first, second = mg.compile(twice.step), mg.compile(again.step)
    first(batches())
    second(batches())
    assert bits(twice) == bits(again)
    twice.game.load_state(game().game.state())
    first(batches())
    assert bits(twice) == bits(again)


def test_an_error_leaves_nothing_captured(plain):
    step = mg.compile(lambda x: x.reshape(4))
    with pytest.raises(mg.errors.ShapeError):
        step(mg.tensor([1.0, 2.0]))
    assert programs(step) == 0
    assert step(mg.tensor([1.0] * 4)).shape == (4,)


def test_a_method_can_be_compiled(plain):
    class Model:
        def __init__(self, factor):
            self.factor = factor

        @mg.compile
        def step(self, x):
            return x * self.factor

    (x,) = arrays(3)
    for factor in (2.0, 3.0):
        assert_tree(Model(factor).step(x), x * factor)


@needs_numba
def test_a_step_called_from_several_python_threads():
    step = mg.compile(lambda x: (x * 2).sum(0), threads=2)
    given = [arrays((50, 40), seed=k)[0] for k in range(4)]
    wrong = []

    def work(x):
        for _ in range(50):
            if not np.allclose(step(x).numpy(), 2 * x.numpy().sum(0)):
                wrong.append(x)

    workers = [threading.Thread(target=work, args=(x,)) for x in given]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong and programs(step) == 1


# What a program costs, and how it is shown


def article(
    batch: int, penalty: Any = None, loss: str = "non_saturating", sizes: Any = (100, 128, 784)
) -> Any:
    """The step that benchmarks time, and its arguments."""
    latent, hidden, shape = sizes
    g = mg.models.mlp_generator(latent, (hidden, hidden), (shape,))
    d = mg.models.mlp_discriminator((shape,), (hidden, hidden))
    adam, loss = mg.optim.Adam(1e-3), mg.losses.find(loss)
    players = [(x.parameters(), adam.init(x.parameters())) for x in (d, g)]

    def move(player, value):
        parameters, memory = player
        adam.update(parameters, mg.grad(value, list(parameters.values())), memory)

    def step(x, z1, z2):
        with mg.no_grad():
            fake = g(z1)
        real_logits, fake_logits = d(x), d(fake)
        d_loss = loss.discriminator(real_logits, fake_logits)
        if penalty is not None:
            d_loss = d_loss + penalty(d, x, fake, real_logits, fake_logits, RANDOM)
        move(players[0], d_loss)
        g_loss = loss.generator(None, d(g(z2)))
        move(players[1], g_loss)
        return d_loss, g_loss

    return step, [x.astype(np.float32) for x in arrays((batch, shape), (batch, latent), (batch, latent))]


@pytest.mark.parametrize(
    ("settings", "lines"),
    [({}, 54), ({"penalty": P.r1(10.0)}, 64), ({"penalty": P.wgan_gp(10.0), "loss": "wasserstein"}, 71)],
    ids=["article", "r1", "wgan_gp"],
)
def test_the_length_of_a_program(settings, lines, plain):
    step, given = article(2, sizes=(3, 4, 5), **settings)
    compiled = mg.compile(step, threads=1)
    compiled(*given)
    program = compiled.program
    text = str(program)
    assert len(program) == lines
    assert text.count("\n") == 3 + lines, text  # arguments, kernels, and the sums in the last line
    flops = sum(call.flops for row in program._built.rows for call in row.node.calls)
    assert program.flops == flops > 0


def test_column_sums_stand_behind_a_product_unless_threads_share_its_rows(plain, monkeypatch):
    monkeypatch.setattr(fuse, "SMALL", 8)
    w, v = arrays((16, 8), (64, 8))

    def function(g):
        y = mg.ops.where(v > 0, g @ w, 0.0)
        return y, y.sum(0)

    (g,) = arrays((64, 16))
    for threads in (1, 2):
        step = mg.compile(function, threads=threads)
        step(g)
        (line,) = [line for line in str(step.program).splitlines() if "sum" in line and "<-" in line]
        assert ("matmul" in line) == (threads == 1), line


def test_the_program_in_figures(plain):
    x, w = arrays((4, 3), (3, 5))
    step = mg.compile(lambda x: mg.ops.tanh(x @ w + 1.0).sum())
    step(x)
    assert len(step.program) == 2
    assert step.program.flops == 2 * 4 * 3 * 5 + 20 + 20 + 20
    assert "matmul" in str(step.program) and "argument 0" in str(step.program)


@needs_numba
def test_a_replay_allocates_no_arrays():
    step, given = article(16, sizes=(10, 32, 64))
    compiled = mg.compile(step, copy=False, threads=1)
    for _ in range(300):  # until the versions of tensors are numbers that Python allocates
        compiled(*given)
    tracemalloc.start()
    try:
        compiled(*given)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(200):
            compiled(*given)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 8_000 and now - before < 2_000


def test_a_program_holds_its_results_once(plain):
    x = mg.tensor(np.zeros((300, 300)))

    def function(x):
        return mg.ops.tanh(mg.ops.sort(mg.ops.sort(x)))

    function(x)  # which may import Numba
    step = mg.compile(function, fuse=False)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        step(x)
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert held < step.program.nbytes + 2 * x.array.nbytes + 500_000


WITHOUT_NUMBA = """
import numpy as np
import minigan as mg
w = mg.tensor(np.arange(6.0).reshape(3, 2))
def step(x):
    return mg.grad(mg.ops.tanh(x @ w + 1.0).sum(), [x])[0]
compiled = mg.compile(step)
for k in range(3):
    x = mg.tensor(np.arange(12.0).reshape(4, 3) / (3 + k))
    assert compiled(x).numpy().tobytes() == step(x).numpy().tobytes()
print(compiled.program)
"""


@pytest.mark.parametrize("setting", ["MINIGAN_NUMBA=0", "NUMBA_DISABLE_JIT=1"])
def test_without_numba(setting):
    name, _, value = setting.partition("=")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NUMBA], env={**os.environ, name: value}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "matmul" in done.stdout
