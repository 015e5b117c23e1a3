"""Every primitive on a GPU: what it owes there, against the CPU; and the texts of its kernels, for a real compiler."""

import ctypes
import importlib.util
import inspect
import re
import shutil
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import device as devices
import emulator
import numpy as np
import pytest
from harness import Call, all_combinations, all_orders, as_list, differentiable, draw_arrays, with_edges

import minigan as mg
from minigan.backend import FLOATS, cuda
from minigan.cuda import index, launch
from minigan.ops.random import Stream
from minigan.registry import primitives, row
from minigan.tape import Primitive
from minigan.trace import Slot

PRIMITIVES = primitives()
BY_NAME = {primitive.name: primitive for primitive in PRIMITIVES}
LAYOUTS = ("C", "reversed", "F", "strided", "repeated")  # those of a device's views
LIMITS = {np.dtype(np.float32): 2e-5, np.dtype(np.float64): 1e-13}  # of Σ|terms|

each_primitive = pytest.mark.parametrize("primitive", PRIMITIVES, ids=lambda primitive: primitive.name)
# Every text is compiled where it is met first, a tenth of a second each: a few samples, and all of them.
few_and_all = pytest.mark.parametrize(
    "few", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["few", "all"]
)


def calls(primitive: Primitive, few: bool) -> Iterator[Call]:
    """Calls of samples: of two, one in either dtype, or of all in both."""
    random = np.random.default_rng(0)
    for k, sample in enumerate(primitive.samples[:2] if few else primitive.samples):
        for dtype in (FLOATS[k % 2],) if few else FLOATS:
            yield Call(primitive, sample, draw_arrays(sample, random, dtype))


def there(array: np.ndarray, device: str, layout: str = "C") -> mg.Tensor:
    """The array on a device, as a view that lies in memory like `layout` says."""
    if not array.ndim or layout == "C":
        return mg.tensor(array, device=device)
    if layout == "F":
        return mg.tensor(array.T, device=device).T
    if layout == "repeated":
        return mg.ops.broadcast_to(
            mg.tensor(array[(slice(0, 1),) * (array.ndim - 1)], device=device), array.shape
        )
    every = (slice(None, None, -1 if layout == "reversed" else 2),) * array.ndim
    wide = np.zeros(array.shape if layout == "reversed" else tuple(2 * n for n in array.shape), array.dtype)
    wide[every] = array
    return mg.tensor(wide, device=device)[every]


def without_subnormal(array: np.ndarray) -> np.ndarray:
    """The array with zeros for subnormal float32, as a device takes them."""
    if array.dtype != np.float32:
        return array
    return np.where(np.abs(array) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), array), array)


def of_terms(call: Call) -> list[np.ndarray]:
    """The results of absolute values, in float64: what errors are relative to."""
    return call.mapped(lambda a: np.abs(a.astype(np.float64))).values()


def assert_agrees(found: Any, wanted: np.ndarray, terms: np.ndarray, what: str, times: float = 1) -> None:
    y = found.numpy()
    assert y.shape == wanted.shape and y.dtype == wanted.dtype, what
    if y.dtype not in FLOATS:
        np.testing.assert_array_equal(y, wanted, err_msg=what)
        return
    with np.errstate(all="ignore"):
        scale = np.fmax(np.abs(wanted.astype(np.float64)), np.where(np.isfinite(terms), np.abs(terms), 0))
        error = np.abs(y.astype(np.float64) - wanted)
        limit = LIMITS[y.dtype] * times * scale + 8 * np.finfo(y.dtype).tiny * LIMITS[y.dtype]
        if y.dtype == np.float32:  # CuPy's compiler takes what is subnormal for 0
            limit = limit + np.finfo(np.float32).tiny
    same = (y == wanted) | (np.isnan(y) & np.isnan(wanted))
    good = same | (error <= limit)
    assert good.all(), f"{what}: {y[~good]!r}, on the CPU {wanted[~good]!r}, errors {error[~good]!r}"


# What every primitive owes


@few_and_all
@each_primitive
def test_values_are_those_of_the_cpu(primitive, few, device):
    for k, call in enumerate(calls(primitive, few)):
        other = 1 + len(primitive.name) % 4  # a primitive's second call is in one of the other layouts
        for layout in (LAYOUTS[k * other],) if few else LAYOUTS:
            arrays = [
                there(a, device, layout if i >= primitive.donates else "C").numpy()
                for i, a in enumerate(call.arrays)
            ]
            plain = replace(call, arrays=[np.ascontiguousarray(a).reshape(a.shape) for a in arrays])
            xs = [
                there(a, device, layout if i >= primitive.donates else "C") for i, a in enumerate(call.arrays)
            ]
            memory = [x.array for x in xs]
            ys = as_list(call(*xs))
            what = f"{primitive.name} {call.sample.attributes} {layout}"
            for y, wanted, terms in zip(ys, plain.values(), of_terms(plain), strict=True):
                assert y.device == device, what
                assert_agrees(y, wanted, terms, what)
            for i, (x, a) in enumerate(zip(xs, arrays, strict=True)):
                assert x.array is memory[i], what
                if i < primitive.donates:
                    assert ys[i] is x and x.storage.version == 1, what
                else:
                    assert x.numpy().tobytes() == a.tobytes(), f"{what}: writes to input {i}"
            again = as_list(
                call(
                    *[
                        there(a, device, layout if i >= primitive.donates else "C")
                        for i, a in enumerate(call.arrays)
                    ]
                )
            )
            for y, other in zip(ys, again, strict=True):
                assert y.numpy().tobytes() == other.numpy().tobytes(), f"{what}: two runs differ"


@few_and_all
@each_primitive
def test_special_values_are_those_of_the_cpu(primitive, few, device):
    random = np.random.default_rng(0)
    for sample in primitive.samples[:1] if few else primitive.samples:
        for dtype in FLOATS[:1] if few else FLOATS:
            if not sample.edges:
                continue
            if primitive.formula is not None:
                arrays = all_combinations(sample, random, dtype)
            else:
                arrays = [
                    with_edges(a, sample, random)
                    for a in draw_arrays(replace(sample, kink=None), random, dtype)
                ]
            arrays = [without_subnormal(a) for a in arrays]
            call = Call(primitive, sample, arrays)
            with np.errstate(all="ignore"):
                wanted, terms = call.values(), of_terms(call)
                ys = as_list(call(*[there(a, device) for a in arrays]))
            for y, expected, scale in zip(ys, wanted, terms, strict=True):
                assert_agrees(y, expected, scale, primitive.name)
                if y.dtype in FLOATS and "imum(" not in (row(primitive).formula or "imum("):
                    # Which of 0 and -0 is the larger depends on the CPU.
                    zero = expected == 0
                    np.testing.assert_array_equal(np.signbit(y.numpy()[zero]), np.signbit(expected[zero]))


# Kernels of formulas are all made in one way, and their values are compared above.
OF_RULES = [
    pytest.param(p, marks=pytest.mark.slow if p.formula else (), id=p.name)
    for p in PRIMITIVES
    if differentiable(p)
]


@few_and_all
@pytest.mark.parametrize("primitive", OF_RULES)
def test_derivatives_are_those_of_the_cpu(primitive, few, device):
    for call in list(calls(primitive, few))[: 1 if few else None]:
        wanted = all_orders(call, [mg.tensor(a) for a in call.arrays])
        found = all_orders(call, [there(a, device) for a in call.arrays])
        for order, (ys, expected) in enumerate(zip(found, wanted, strict=True)):
            for y, e in zip(ys, expected, strict=True):
                assert y.device == device
                e = e.numpy()
                largest = np.full(e.shape, np.abs(e).max(initial=1))
                assert_agrees(y, e, largest, f"{primitive.name}, order {order}", 8**order)


@each_primitive
def test_inputs_on_two_devices_are_an_error_that_names_both(primitive, device):
    for sample in primitive.samples:
        arrays = draw_arrays(sample, np.random.default_rng(0), np.float32)
        if len(arrays) < 2:
            continue
        call = Call(primitive, sample, arrays)
        for alone in range(len(arrays)):
            xs = [there(a, device if i == alone else "cpu") for i, a in enumerate(arrays)]
            with pytest.raises(
                mg.DeviceError, match=f"^{primitive.name}: arrays on cpu and {device}: .*{device}"
            ):
                call(*xs)
        return


def test_an_error_of_a_ten_thousandth_in_a_kernel_is_caught(device):
    exp = BY_NAME["exp"]

    def plan(outs: Any, inputs: Any) -> list[launch.Launch]:
        right = exp.plan(outs, inputs, {})
        return [step._replace(source=step.source.replace("= exp_", "= 1.0001 * exp_")) for step in right]

    test_values_are_those_of_the_cpu(
        replace(exp, cuda=lambda outs, inputs: exp.plan(outs, inputs, {})), True, device
    )
    with pytest.raises(AssertionError, match="exp"):
        test_values_are_those_of_the_cpu(replace(exp, cuda=plan), True, device)


# What single primitives owe


DTYPES = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float32",
    "float64",
)


@few_and_all
def test_casts_are_numpys(few, device):
    values = {
        "f": [0.0, -0.0, 0.5, 1.0, 2.9, 100.75, np.nan, np.inf, -np.inf, 1e300, -1e-40, 16777217.0],
        "i": [0, 1, -1, 100, -128, 127],
        "u": [0, 1, 255, 100],
        "b": [False, True],
    }
    for i, source in enumerate(DTYPES):
        for target in DTYPES[i % 4 :: 4] if few else DTYPES:
            numbers = values[np.dtype(source).kind]
            if np.dtype(source).kind == "f" and np.dtype(target).kind in "iu":
                numbers = numbers[:6]
            with np.errstate(all="ignore"):
                x = np.array(numbers).astype(source)
                wanted = x.astype(target)
            found = mg.tensor(x, device=device).astype(target).numpy()
            np.testing.assert_array_equal(found, wanted, err_msg=f"{source} to {target}")
            assert found.dtype == target


@pytest.mark.parametrize("terms", [30, 1500])
def test_what_meets_is_added_in_float64_always_alike(terms, device):
    random = np.random.default_rng(0)
    for shape, axis, size in (
        ((terms,), 1, 40),
        ((terms // 10, 10), 1, 3),
        ((terms,), 1, 3000),
        ((terms,), 0, 1),
    ):
        at = random.integers(-size, size, shape)
        before, after = (3, 2)[:axis], (2,)
        gy = random.standard_normal((*before, *shape, *after)).astype(np.float32)
        exact = np.zeros((*before, size, *after))
        np.add.at(exact, (slice(None),) * axis + (at,), gy.astype(np.float64))
        found = {
            mg.ops.scatter(there(gy, device, layout), there(at, device, layout), size, axis).numpy().tobytes()
            for layout in ("C", "F", "reversed", "strided")
        }
        assert len(found) == 1
        y = np.frombuffer(found.pop(), np.float32).reshape(exact.shape)
        # Sums of float32 in float64 differ from these by their order, a last bit that rounding nearly always hides.
        np.testing.assert_allclose(y, exact.astype(np.float32), rtol=2e-7)
        assert (y == exact.astype(np.float32)).mean() > 0.99


def test_ties_of_long_rows_add_up(device):
    gather, adjoint = (BY_NAME[name] for name in ("gather", "gather_adjoint"))
    random = np.random.default_rng(0)
    for shape, axis, n in (((3, 50, 2), 1, 2000), ((3, 50, 2), 1, 30), ((1500,), 0, 1500)):
        at = random.integers(-shape[axis], shape[axis], (*shape[:axis], n, *shape[axis + 1 :]))
        gy, x = random.standard_normal(at.shape), random.standard_normal(shape)
        for primitive, value, attributes in (
            (gather, x, {"axis": axis}),
            (adjoint, gy, {"axis": axis, "shape": shape}),
        ):
            call = Call(primitive, replace(primitive.samples[0], attributes=attributes), [value, at])
            (y,) = as_list(call(there(value, device, "F"), there(at, device, "reversed")))
            assert_agrees(y, call.values()[0], of_terms(call)[0], primitive.name)


def test_an_index_out_of_range_is_an_error_that_names_it(device):
    x, at = mg.tensor(np.ones((4, 3), np.float32), device=device), mg.tensor(np.array([1, 4]), device=device)
    for function in (
        lambda: mg.ops.take(x, at),
        lambda: mg.ops.embedding(x, at),
        lambda: mg.ops.scatter(x[:2], at, 4),
    ):
        with pytest.raises(mg.ShapeError, match=r"index 4 is not in -?[04] to 3"):
            function()
    with pytest.raises(mg.ShapeError, match="labels from 1 to 4 do not fit classes 0 to 3"):
        mg.ops.one_hot(at, 4)


@pytest.mark.parametrize("dtype", ["int64", pytest.param("int8", marks=pytest.mark.slow), "uint64"])
def test_nobody_checks_a_compiled_step_so_kernels_do(dtype, device):
    wrong = (
        np.array([2**64 - 1, 2**63, 4, 7, 1], "uint64")
        if dtype == "uint64"
        else np.array([-5, -128, 4, 7, 1], dtype)
    )
    at = mg.tensor(wrong, device=device).array
    x = mg.tensor(np.arange(12, dtype=np.float32).reshape(4, 3), device=device).array

    def run(name: str, shape: tuple[int, ...], /, *arrays: Any, **attributes: Any) -> np.ndarray:
        out = cuda.empty([(shape, np.float32)], device)
        launch.run(BY_NAME[name].plan(out, arrays, attributes), out, arrays)
        return cuda.fetch(out[0])

    for name, attributes in (("take", {"axis": 0}), ("embedding", {})):
        y = run(name, (5, 3), x, at, **attributes)
        assert np.isnan(y[:4]).all() and (y[4] == [3, 4, 5]).all()
    y = run("gather", (5,), x[:, 0], at, axis=0)
    assert np.isnan(y[:4]).all() and y[4] == 3
    ones = mg.tensor(np.ones((5, 3), np.float32), device=device).array
    assert run("scatter", (4, 3), ones, at, axis=0, shape=(4, 3)).tolist() == [
        [0] * 3,
        [1] * 3,
        [0] * 3,
        [0] * 3,
    ]
    assert run("one_hot", (5, 4), at, classes=4, dtype=np.dtype(np.float32)).sum(1).tolist() == [
        0,
        0,
        0,
        0,
        1,
    ]
    many = mg.tensor(np.resize(wrong, 5 * index.FEW), device=device).array
    ones = mg.tensor(np.ones(5 * index.FEW, np.float32), device=device).array
    assert run("scatter", (4,), ones, many, axis=0, shape=(4,)).tolist() == [0, index.FEW, 0, 0]
    assert run("gather_adjoint", (4,), ones, many, axis=0, shape=(4,)).tolist() == [0, index.FEW, 0, 0]


def test_a_negative_index_is_none_of_an_embedding(device):
    x = mg.tensor(np.ones((4, 3), np.float32), device=device).array
    out = cuda.empty([((2, 3), np.float32)], device)
    at = mg.tensor(np.array([-1, 0]), device=device).array
    launch.run(BY_NAME["embedding"].plan(out, [x, at], {}), out, [x, at])
    assert np.isnan(cuda.fetch(out[0])[0]).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_random_numbers_are_those_of_the_cpu(dtype, device):
    here, far = Stream(3, "test", 2**40 + 5), Stream(3, "test", 2**40 + 5)
    np.testing.assert_array_equal(far.bits(1000, device).numpy(), here.bits(1000).numpy())
    for shape in ((1001,), (3, 5), (0,), ()):
        y = far.uniform(shape, -0.3, 1.7, dtype, device)
        assert y.device == device
        np.testing.assert_array_equal(y.numpy(), here.uniform(shape, -0.3, 1.7, dtype).numpy())
        for mean, std in ((0.0, 1.0), (0.7, 0.3)):
            found, wanted = (
                stream.normal(shape, mean, std, dtype, where).numpy()
                for stream, where in ((far, device), (here, None))
            )
            spacing = np.spacing(np.fmax(np.abs(wanted), np.abs(wanted - mean) * (mean != 0)))
            assert (np.abs(found - wanted) <= 4 * spacing).all()
    assert (far.permutation(10) == here.permutation(10)).all()


def test_the_mean_of_normal_numbers_may_vary_from_run_to_run(device):
    slots = Slot(0.7), Slot(0.3)
    words = Stream(0, "test").bits(4, device).array
    out = cuda.empty([((7,), np.float64)], device)
    plan = BY_NAME["normal"].plan(
        out, [words], {"shape": (7,), "dtype": FLOATS[1], "mean": slots[0], "std": slots[1]}
    )
    numbers = {id(slot): cuda.put(np.array(float(slot)), device) for slot in slots}
    for step in plan:
        launch.issue(
            step,
            device,
            lambda word: cuda.address(words if isinstance(word, launch.Operand) else out[0]),
            lambda slot: cuda.address(numbers[id(slot)]),
        )
    np.testing.assert_allclose(
        cuda.fetch(out[0]), Stream(0, "test").normal((7,), 0.7, 0.3, np.float64).numpy(), rtol=1e-14
    )


# What is composed of primitives, beside which nothing may be left on the CPU


def both(device: str, function: Any) -> None:
    """The tensors that a function gives there are those of the CPU, and are there."""
    found, wanted = (list(function(where)) for where in (device, "cpu"))
    for k, (y, w) in enumerate(zip(found, wanted, strict=True)):
        assert y.device == device, k
        w = w.numpy()
        assert_agrees(y, w, np.full(w.shape, np.abs(w).max(initial=1)), f"result {k}", 64)


def drawn(*shapes: tuple[int, ...], dtype: Any = np.float64) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.uniform(-2, 2, shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("name", mg.losses.table)
def test_losses(name, device):
    loss, arrays = mg.losses.table[name], drawn((5, 1), (5, 1), (5,))

    def values(where: str) -> Iterator[mg.Tensor]:
        real, fake, weights = (mg.tensor(a, device=where) for a in arrays)
        for value in (
            loss.discriminator(real, fake, 0.9 if loss.labels else 1.0),
            loss.discriminator(real, fake, weights=weights),
            loss.generator(real if loss.paired else None, fake),
        ):
            first = mg.grad(value, [real, fake], create_graph=True)
            yield from (value, *first, *mg.grad([g.sum() for g in first], [real, fake]))

    both(device, values)


PENALTIES = ("r1", "r2", "wgan_gp", "dragan")


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties(name, device):
    arrays = drawn((4, 3), (4, 3), (3, 5), (5, 1))

    def values(where: str) -> Iterator[mg.Tensor]:
        real, fake, *weights = (mg.tensor(a, device=where) for a in arrays)

        def critic(x: mg.Tensor) -> mg.Tensor:
            return mg.ops.tanh(x @ weights[0]) @ weights[1]

        for weight in (0.1, lambda step: 0.1 / (step + 1)):
            penalty = getattr(mg.penalties, name)(weight)
            value = penalty(critic, real, fake, critic(real), critic(fake), Stream(0, "test"), lambda: 3)
            yield from (value, *mg.grad(value, weights))

    both(device, values)


OPTIMIZERS = {
    "SGD": mg.optim.SGD(0.1, momentum=0.5, nesterov=True),
    "RMSProp": mg.optim.RMSProp(0.1, weight_decay=0.1),
    "Adam": mg.optim.Adam(lambda step: 0.1 / (step + 1), clip_norm=0.5),
    "optimistic": mg.optim.Adam(0.1, optimistic=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers(name, device):
    optimizer, arrays = OPTIMIZERS[name], drawn((3, 2), (2,), (3, 2), (2,))

    def values(where: str) -> Iterator[mg.Tensor]:
        w, b, *gradients = (mg.tensor(a, device=where) for a in arrays)
        weights = {"w": w, "b": b}
        state = optimizer.init(weights)
        average = {key: mg.tensor(x, device=where) for key, x in weights.items()}
        for step in range(3):
            optimizer.update(weights, gradients, state)
            mg.optim.EMA(0.9).update(weights, average, lambda step=step: step)
        yield from weights.values()
        yield from average.values()
        for slot in state.slots.values():
            yield from slot.values()
        if not optimizer.optimistic:
            moved, _ = optimizer.ahead(weights, gradients, state.slots, lambda: 4, lambda: 0.1)
            yield from moved.values()
            yield from mg.grad(moved["w"].sum(), gradients[0])

    both(device, values)


def test_operations_that_make_arrays_of_their_own(device):
    arrays = drawn((4, 6))

    def values(where: str) -> Iterator[mg.Tensor]:
        (x,) = (mg.tensor(a, device=where) for a in arrays)
        yield mg.ops.pad(x, [(1, 0), (2, 1)], value=3.0)
        yield mg.ops.dropout(x, 0.3, Stream(0, "test"))
        yield mg.nn.Dropout(0.3)(x, train=True, random=Stream(0, "test"))
        yield x[x > 0]
        yield x[np.array([0, -1, 2])]
        yield x[mg.tensor(np.array([0, -1, 2]), device=where)]
        yield x[np.array([[0], [1]]), np.array([2, 3])]
        yield from mg.ops.split(x, 2, axis=1)
        yield from mg.ops.topk(x, 2)
        yield mg.ops.sort(x, axis=0, descending=True)
        yield mg.ops.stack([x, x], axis=1)

    both(device, values)


def test_the_state_of_a_module_is_loaded_where_the_module_is(device):
    layer = mg.nn.Dense(3, 2, stream=Stream(0, "test"))
    arrays = {name: x.numpy() + 1 for name, x in layer.state().items()}
    layer.weight, layer.bias = layer.weight.to(device), layer.bias.to(device)
    layer.load_state(arrays)
    for name, x in layer.state().items():
        assert x.device == device
        np.testing.assert_array_equal(x.numpy(), arrays[name])
    with pytest.raises(mg.CheckpointError, match=r"bias: float32 \(3,\), expected float32 \(2,\)"):
        layer.load_state(arrays | {"bias": np.zeros(3, np.float32)})


# The texts of kernels


def texts(few: bool) -> dict[str, str]:
    """Every text that samples have, with the name of its kernel."""
    found: dict[str, str] = {}
    for primitive in PRIMITIVES:
        if primitive.view is not None or (primitive.cuda is None and primitive.formula is None):
            continue
        for k, call in enumerate(calls(primitive, few)):
            for layout in LAYOUTS[k : k + 1] if few else LAYOUTS:
                arrays = [there(a, "cpu", layout).array for a in call.arrays]
                specs = primitive.infer(*arrays, **call.sample.attributes)
                outs = [np.empty(*spec) for spec in specs]
                for step in primitive.plan(outs, arrays, call.sample.attributes):
                    if isinstance(step, launch.Launch):
                        found[step.source] = step.name
    slots = {"shape": (2, 3), "dtype": FLOATS[0], "mean": Slot(0.0), "std": Slot(1.0)}
    (step,) = BY_NAME["normal"].plan([np.empty((2, 3), np.float32)], [np.empty((2, 4), np.uint32)], slots)
    found[step.source] = step.name
    many = np.zeros(2 * index.FEW, np.int64)
    for step in BY_NAME["scatter"].plan(
        [np.empty(3)], [np.empty(many.size), many], {"axis": 0, "shape": (3,)}
    ):
        found[step.source] = step.name
    return found


def nvrtc() -> ctypes.CDLL | None:
    """NVIDIA's compiler as a library: of the loader's path, of Python's packages, or beside nvcc."""
    folders = [*getattr(importlib.util.find_spec("nvidia"), "submodule_search_locations", [])]
    if nvcc := shutil.which("nvcc"):
        folders.append(str(Path(nvcc).resolve().parents[1]))
    files = [path for folder in folders for path in sorted(map(str, Path(folder).rglob("libnvrtc.so*")))]
    for name in ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so", *files):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def compiled(library: ctypes.CDLL, source: str) -> str:
    """What NVRTC complains about."""
    program = ctypes.c_void_p()
    assert not library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    options = (ctypes.c_char_p * 2)(b"-std=c++17", b"--gpu-architecture=compute_90")
    failed = library.nvrtcCompileProgram(program, len(options), options)
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return log.value.decode() if failed else ""


@few_and_all
def test_a_compiler_of_cuda_takes_every_text(few):
    library = nvrtc()
    if library is None:
        pytest.skip("no NVRTC: pip install nvidia-cuda-nvrtc")
    every = texts(few)
    joined = "".join(emulator.apart(source, name, k) for k, (source, name) in enumerate(every.items()))
    if compiled(library, joined):  # which takes a part of the time of one by one
        wrong = {name: log for source, name in every.items() if (log := compiled(library, source))}
        assert not wrong, "\n".join(f"{name}: {log}" for name, log in wrong.items())


def test_the_compiler_of_cuda_refuses_what_is_wrong():
    library = nvrtc()
    if library is None:
        pytest.skip("no NVRTC: pip install nvidia-cuda-nvrtc")
    assert "undefined" in compiled(library, 'extern "C" __global__ void f(float* x) { x[0] = y; }')


# The card in software against CuPy

C_FUNCTIONS = ("cuda.cublas.", "cuda.runtime.")  # which are called with positions only
FIRST_LINE = re.compile(r"[\w.]*\((.*)\)(?:\s*->.*)?", re.DOTALL)


def parameters(function: Any) -> tuple[list[str], set[str]] | None:
    """The names of a function's parameters that have positions, and of those that have none.

    From the first line of its docstring if it is Cython's, and `None` if that does not tell.
    """
    try:
        signature = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        match = FIRST_LINE.fullmatch((function.__doc__ or "").partition("\n")[0])
        if match is None or "**" in match[1]:
            return None
        before, _, after = match[1].partition("*, ")
        places, names = (
            [part.partition("=")[0].split()[-1] for part in parts.split(",") if part.strip(" *")]
            for parts in (before.partition("*")[0], after)
        )
    else:
        if any(p.kind is p.VAR_POSITIONAL for p in signature):
            return None
        places = [p.name for p in signature if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        names = [p.name for p in signature if p.kind is p.KEYWORD_ONLY]
    return [name for name in places if name != "self"], set(names)


def offered(where: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What the card in software offers, with its path."""
    methods = vars(type(where)) if isinstance(where, types.SimpleNamespace) else {}
    for name, value in {**methods, **vars(where)}.items():
        if name.startswith("_") or inspect.ismodule(value):
            continue
        yield f"{path}{name}", value
        classes = isinstance(value, type) and not issubclass(value, BaseException)
        if classes or isinstance(value, types.SimpleNamespace):
            yield from offered(value, f"{path}{name}.")


# Of the tests, and what CuPy has elsewhere.
OWN = {
    "CARDS",
    "COMPILER",
    "FLAGS",
    "OF_KERNELS",
    "HERE",
    "POISON",
    "Path",
    "Memory",
    "by_pointer",
    "cards",
    "launches",
}
OWN |= {"apart", "math_modes", "reset", "calls", "cuda.Stream.do"}
OWN |= {"CUBLASError", "CompileException", "CUDADriverError", "CUDARuntimeError", "OutOfMemoryError"}


def test_the_card_in_software_has_cupys_names_and_signatures():
    cupy = devices.cupy()
    if cupy is None:
        pytest.skip("CuPy is not installed")
    own = OWN | {name for name in vars(emulator.cuda) if hasattr(emulator, name)}
    seen, compared, wrong = 0, 0, []
    for path, ours in offered(emulator):
        if path in own or path.split(".")[0] in own:
            continue
        theirs = cupy
        for name in path.split("."):
            theirs = getattr(theirs, name, None)
        if theirs is None:
            wrong.append(f"{path}: CuPy has no such name")
        seen += 1
        if not callable(ours) or (isinstance(ours, type) and issubclass(ours, BaseException)):
            continue
        mine, real = parameters(ours), parameters(theirs)
        if mine is None or real is None:
            continue
        compared += 1
        same = mine[0] == real[0][: len(mine[0])] and mine[1] <= real[1]
        if path.startswith(C_FUNCTIONS):
            same = len(mine[0]) == len(real[0])
        if not same:
            wrong.append(f"{path}{mine}: CuPy's is {real}")
    assert not wrong, "\n".join(wrong)
    assert seen > 60 and compared > 30, (seen, compared)


# What CuPy and cuBLAS do with what they are given


def test_the_functions_of_cublas_are_found_beside_cupy():
    cupy = devices.cupy()
    if cupy is None:
        pytest.skip("CuPy is not installed")
    library = ctypes.CDLL(cupy.cuda.cublas.__file__)
    for name in ("cublasSetStream_v2", "cublasSgemmStridedBatched", "cublasDgemmStridedBatched"):
        assert getattr(library, name)


@pytest.mark.parametrize("status", [1, 3])
def test_cublas_without_memory_leaves_the_card_alive(status, monkeypatch):
    if shutil.which("g++") is None:
        pytest.skip("no g++ for the card in software")
    with devices.emulated() as emulator:

        def none_left():
            raise emulator.CUBLASError(status)

        x = mg.tensor(np.ones((2, 2)), device="cuda")
        with monkeypatch.context() as patch:
            patch.setattr(emulator.cuda.device, "get_cublas_handle", none_left)
            with pytest.raises(mg.errors.DeviceError, match="no memory left"):
                x @ x
        assert (x @ x).numpy().tolist() == [[2, 2], [2, 2]]


def test_a_product_that_cublas_cannot_count_is_an_error():
    if shutil.which("g++") is None:
        pytest.skip("no g++ for the card in software")
    with devices.emulated():
        place = (0, 1, 0)
        with pytest.raises(mg.errors.ShapeError, match="2147483648"):
            cuda.gemm("cuda:0", np.dtype(np.float32), (False, False), (1, 1 << 31, 1), place, place, place, 1)


@pytest.mark.parametrize(
    "key", [np.s_[::-1], np.s_[:, 1:2], np.s_[::-2, ::3], np.s_[0:0], np.s_[2, ::-1], np.s_[2, 3]]
)
def test_what_lies_in_another_order_is_fetched_without_a_kernel(key, device):
    x = np.arange(20.0).reshape(4, 5)
    there = mg.tensor(x, device=device)
    np.testing.assert_array_equal(there[key].numpy(), x[key])
    np.testing.assert_array_equal(there.T[key].numpy(), x.T[key])
    wide = mg.ops.broadcast_to(there[1], (3, 5))
    assert wide.numpy().flags.c_contiguous
    np.testing.assert_array_equal(wide.numpy(), np.broadcast_to(x[1], (3, 5)))


def test_subnormal_float32_are_zero_on_a_device(device):
    x = np.array([1e-40, -1e-40, 3e-38], np.float32)
    there_x = mg.tensor(x, device=device)
    np.testing.assert_array_equal(there_x.numpy(), x)  # nothing is lost on the way
    np.testing.assert_array_equal((there_x * 1.0).numpy(), [0, 0, x[2]])
    np.testing.assert_array_equal((there_x * 0.1).numpy(), [0, 0, 0])
    np.testing.assert_array_equal(mg.ops.sign(there_x).numpy(), [0, 0, 1])
    wide = mg.tensor(x.astype(np.float64) * 1e-280, device=device)
    np.testing.assert_array_equal((wide * 1.0).numpy(), wide.numpy())
