"""Devices: networks, training, checkpoints and the command line on a GPU, and what follows where there is none.

The card is `emulator`, a CUDA device in software; what it cannot show is in its own words.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import emulator
import numpy as np
import pytest
from device import forget, processes
from undrawn import leave_pictures_empty

import minigan as mg
from minigan import backend, cli, state, train
from minigan.backend import cuda
from minigan.data.prefetch import Prefetch
from minigan.monitor import Monitor
from minigan.nn.module import ASSIGN, device_of_all
from minigan.ops.random import Stream
from minigan.spectra import spectrum
from minigan.tape import apply
from minigan.tensor import Tensor

IMAGES = mg.data.digits()[0][:200]
LABELS = mg.data.digits()[1][:200]
CLOSE = 2e-4  # of losses after some steps, whose differences in rounding grow
needs_compiler = pytest.mark.skipif(emulator.COMPILER is None, reason="the card in software needs g++")


@pytest.fixture(autouse=True)
def as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    leave_pictures_empty(monkeypatch.setattr)
    forget()
    yield
    forget()


# Tensors


def there(*numbers: Any) -> mg.Tensor:
    return mg.tensor(list(numbers), device="cuda")


@needs_compiler
def test_a_cupy_array_that_is_the_first_of_the_process(card: Any) -> None:
    array = emulator.empty((2,), np.float32)
    array.set(np.array([1.0, 2.0], np.float32))
    y = mg.tensor(array, device="cuda")
    assert y.device == "cuda:0" and y.numpy().tolist() == [1.0, 2.0]
    assert mg.asarray(array).array is array


@pytest.mark.parametrize("dtype", ["float16", "complex64"])
@pytest.mark.parametrize("make", [mg.tensor, mg.asarray])
def test_dtypes_of_cupy_arrays_are_those_of_tensors(card: Any, make: Any, dtype: str) -> None:
    with pytest.raises(mg.DTypeError, match=dtype):
        make(emulator.empty((2,), np.dtype(dtype)))


@needs_compiler
def test_numbers_go_along_with_any_tensor(card: Any) -> None:
    y = there(1.0, 2.0, 3.0)
    for x in (y * 2**70, mg.ops.where(y > 1.0, 1.0, 0.0), y * np.float64(2), mg.ops.where(y > 1.0, y, 0)):
        assert x.device == "cuda:0"
    assert mg.ops.where(y > 1.0, 1.0, 0).numpy().tolist() == [0.0, 1.0, 1.0]
    assert mg.ops.where(y > 1.0, 1.0, 0).dtype == np.float32


@needs_compiler
def test_a_mask_of_another_device_is_refused(card: Any) -> None:
    x, y = mg.tensor([1.0, 2.0, 3.0]), there(1.0, 2.0, 3.0)
    assert y[y > 1.0].numpy().tolist() == y[np.array([False, True, True])].numpy().tolist() == [2.0, 3.0]
    for array, mask in ((x, y > 1.0), (y, x > 1.0)):
        with pytest.raises(mg.DeviceError, match="index: arrays on cpu and cuda:0"):
            array[mask]


# Networks


def test_a_module_moves_in_place(card: Any) -> None:
    net = mg.models.mlp_generator(latent=3, hidden=(4,), shape=(2,))
    state_before = net.state()
    values = {name: x.numpy().copy() for name, x in state_before.items()}
    assert device_of_all(net) == "cpu"
    assert net.to("cuda") is net
    assert device_of_all(net) == "cuda:0"
    for name, x in net.state().items():
        assert x is state_before[name] and x.device == "cuda:0"
        np.testing.assert_array_equal(x.numpy(), values[name])
    net.to("cuda:1").to("cpu")
    for name, x in net.state().items():
        np.testing.assert_array_equal(x.array, values[name])
    net.to("cuda").load_state({name: 2 * x for name, x in values.items()})
    assert all((x.numpy() == 2 * values[name]).all() for name, x in net.state().items())


def test_what_was_computed_before_a_move_is_stale(card: Any) -> None:
    layer = mg.nn.Dense(2, 3, stream=Stream(0, "docs"))
    y = layer.weight * 2.0
    layer.to("cpu")  # where it is
    assert mg.grad(y, layer.weight, mg.tensor(np.ones((2, 3), np.float32)))[0].shape == (2, 3)
    for device in ("cuda", "cpu"):
        layer.to(device)
        with pytest.raises(mg.GraphError, match="changed in place"):
            mg.grad(y, layer.weight, mg.tensor(np.ones((2, 3), np.float32)))


def test_a_callers_array_is_not_locked_by_a_network_that_has_moved(card: Any) -> None:
    mine = np.ones((2, 3), np.float32)
    layer = mg.nn.Dense(2, 3, stream=Stream(0, "docs"))
    layer.weight = mg.asarray(mine)
    layer.to("cuda")
    y = layer.weight * 2.0
    assert mine.flags.writeable
    assert y.device == "cuda:0"


def test_a_network_moves_as_a_whole_or_not_at_all(card: Any) -> None:
    layer = mg.nn.Dense(200, 100, stream=Stream(0, "docs"))
    card.limit = card.used + 80_000  # the weight has a place, the bias has none
    with pytest.raises(mg.DeviceError, match=r"cuda:0: no memory for 400 bytes"):
        layer.to("cuda")
    assert {x.device for x in layer.state().values()} == {"cpu"}
    layer.bias = layer.bias * 2.0  # type: ignore[operator]
    card.limit = None
    with pytest.raises(mg.GraphError, match="bias, shape"):
        layer.to("cuda")
    assert {x.device for x in layer.state().values()} == {"cpu"}


def test_a_compiled_step_sees_networks_that_have_moved(card: Any) -> None:
    layer = mg.nn.Dense(2, 1, stream=Stream(0, "docs"))
    step = mg.compile(lambda x: layer(x))
    x = mg.tensor([[1.0, 2.0]])
    before = step(x).numpy()
    assert len(step._programs) == 1
    layer.to("cuda").to("cpu")
    layer.load_state({name: 2 * each.numpy() for name, each in layer.state().items()})
    np.testing.assert_allclose(step(x).numpy(), 2 * before, rtol=1e-6)


def test_networks_on_two_devices_are_refused(card: Any) -> None:
    generator, discriminator = networks()
    generator.to("cuda")
    with pytest.raises(mg.DeviceError, match="tensors on cpu and cuda:0: move them"):
        mg.GAN(generator, discriminator)
    with pytest.raises(mg.DeviceError, match="there are 2 GPUs, from cuda:0 to cuda:1"):
        mg.GAN(generator, discriminator, device="cuda:2")


def test_files_hold_arrays_of_any_device(card: Any) -> None:
    tree = {"x": mg.tensor([1.0, 2.0], device="cuda"), "y": mg.tensor([[3]], device="cuda:1").T}
    mg.save("tree.safetensors", tree)
    found = mg.load("tree.safetensors")
    assert all(isinstance(x, np.ndarray) for x in found.values())
    assert found["x"].tolist() == [1.0, 2.0] and found["y"].tolist() == [[3]]


# Arrays on their way to the device


def read_ahead(steps: int = 7) -> tuple[list[Any], list[Any]]:
    """What steps read of arrays that are copied beside them, and what they should; nobody waits before the end."""
    numbers = iter(range(1000))

    def make() -> list[Any]:
        n = next(numbers)
        return [np.full((3, 5), n, np.float32), np.full(4, 10.0 * n)]

    ahead, found = Prefetch(make, "cuda:0"), []
    for step in range(steps):
        x, y = ahead.take(step)
        found.append(
            (-Tensor(x), -mg.asarray(y))
        )  # nothing else: to make a constant of the device is to wait
        ahead.begin(step + 1)
    read = [(x.numpy().copy(), y.numpy().copy()) for x, y in found]
    return read, [(np.full((3, 5), -float(n)), np.full(4, -10.0 * n)) for n in range(steps)]


def same(read: list[Any], right: list[Any]) -> bool:
    return all((x == y).all() for pair in zip(read, right, strict=True) for x, y in zip(*pair, strict=True))


def test_steps_read_what_was_copied_for_them(card: Any) -> None:
    assert same(*read_ahead())


@pytest.mark.parametrize("name", ["wait", "wait_in_stream", "copy_beside"])
def test_a_wait_that_is_missing_shows(card: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    whole = cuda.copy_beside
    happened = emulator.Event()
    without: dict[str, Callable[..., Any]] = {
        "wait": lambda device, event: None,
        "wait_in_stream": lambda device, event: None,
        "copy_beside": lambda device, beside, pairs, after: whole(device, beside, pairs, happened),
    }
    monkeypatch.setattr(cuda, name, without[name])
    assert not same(*read_ahead())


def test_arrays_of_another_step_are_made_at_once(card: Any) -> None:
    at = [0]
    ahead = Prefetch(lambda: [np.array([float(at[0])])], "cuda:0")
    ahead.begin(0)
    assert mg.asarray(ahead.take(0)[0]).numpy() == [0.0]
    assert mg.asarray(ahead.take(0)[0]).numpy() == [0.0]  # a step that is made again
    ahead.begin(1)
    at[0] = 5
    assert mg.asarray(ahead.take(5)[0]).numpy() == [5.0]


# Training


def networks(**more: Any) -> tuple[Any, Any]:
    generator = mg.models.mlp_generator(latent=4, hidden=(8,), shape=(8, 8, 1), **more)
    return generator, mg.models.mlp_discriminator(shape=(8, 8, more.pop("pack", 1)), hidden=(8,), **more)


def gan(device: str | None = None, classes: int | None = None, **settings: Any) -> mg.GAN:
    known = {} if classes is None else {"classes": classes}
    generator = mg.models.mlp_generator(latent=4, hidden=(8,), shape=(8, 8, 1), **known)
    channels = settings.get("pack", 1)
    discriminator = mg.models.mlp_discriminator(shape=(8, 8, channels), hidden=(8,), **known)
    return mg.GAN(generator, discriminator, device=device, **settings)


def fit(model: mg.GAN, steps: int = 4, labels: Any = None, **options: Any) -> Any:
    options = {"batch": 8, "compile": False, "monitor_every": 0} | options
    return model.fit(IMAGES, labels, steps=steps, **options)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "r1 and noise": {"penalty": mg.penalties.r1(0.1), "noise": 0.1, "latent": "normal"},
    "two steps, shared": {"d_steps": 2, "share_fake": True, "ema": None},
    "extragradient": {"update": "extragradient", "consensus": 0.1},
    "unrolled packs": {"unroll": 2, "pack": 2},
    "classes": {"classes": 10},
}
eager_and_compiled = pytest.mark.parametrize("compile", [pytest.param(False, marks=pytest.mark.slow), True])


def all_but(quick: str) -> list[Any]:
    """The settings' names, all but one slow: tests/test_cuda_games.py has more of them, in float64."""
    return [name if name == quick else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS]


@pytest.mark.parametrize("name", all_but("classes"))
def test_training_on_a_device_makes_the_steps_of_the_cpu(card: Any, name: str) -> None:
    labels = LABELS if "classes" in SETTINGS[name] else None
    here, there = gan(**SETTINGS[name]), gan("cuda", **SETTINGS[name])
    ours, theirs = fit(here, labels=labels).records, fit(there, labels=labels).records
    assert {x.device for x in there.game._tensors().values()} == {"cuda:0"}
    assert len(ours) == len(theirs) == 1
    for key in ("d_loss", "g_loss", "penalty", "d_real", "d_fake"):
        assert abs(ours[0][key] - theirs[0][key]) <= CLOSE * max(1.0, abs(ours[0][key]))
    samples = there.sample(5, seed=3)
    assert type(samples) is np.ndarray
    np.testing.assert_allclose(samples, here.sample(5, seed=3), atol=CLOSE)
    np.testing.assert_allclose(there.interpolate(2, 3), here.interpolate(2, 3), atol=CLOSE)


@pytest.mark.parametrize("name", all_but("two steps, shared"))
def test_compiled_training_on_a_device_makes_the_steps_of_the_cpu(card: Any, name: str) -> None:
    labels = LABELS if "classes" in SETTINGS[name] else None
    here, there = gan(**SETTINGS[name]), gan("cuda", **SETTINGS[name])
    made = []
    whole = there._made

    def make(batches: Any) -> Any:
        made.append(there.game.steps)
        return whole(batches)

    there._made = make  # type: ignore[method-assign]
    ours = fit(here, labels=labels).records[0]
    theirs = fit(there, labels=labels, compile=True).records[0]
    assert made == [0, 1, 2, 3, 4]  # each once, and one that is not used
    for key in ("d_loss", "g_loss", "d_real", "d_fake"):
        assert abs(ours[key] - theirs[key]) <= CLOSE * max(1.0, abs(ours[key]))


def test_importance_weights_are_computed_with_on_a_device(card: Any) -> None:
    options: dict[str, Any] = {"sampling": "balanced", "importance_weights": True, "labels": LABELS}
    ours, theirs = fit(gan(), **options).records[0], fit(gan("cuda"), **options).records[0]
    assert abs(ours["d_loss"] - theirs["d_loss"]) <= CLOSE


def test_a_run_moves_between_devices(card: Any) -> None:
    whole = gan(penalty=mg.penalties.r1(0.1))
    fit(whole, 30)
    for steps, device in ((10, "cpu"), (20, "cuda"), (30, "cpu")):
        model = gan(device, penalty=mg.penalties.r1(0.1))
        run = fit(model, steps, out="run", resume=True, save_every=10)
        said = [each["message"] for each in run.events if each["event"] == "environment"]
        assert [("device was" in text) for text in said] == [True] * (steps > 10)
        newest = state.newest("run", lambda text: None)
        assert newest and all(isinstance(x, np.ndarray) for x in newest.arrays.values())
        where = newest.about["environment"]["device"]
        assert where == ("cpu" if device == "cpu" else "cuda, emulated card, CuPy 14.2.0")
    for name, x in whole.game.state().items():
        np.testing.assert_allclose(model.game.state()[name], x, atol=1e-3, err_msg=name)
    there = train.restore("run", "cuda:1")
    assert there.game.device == "cuda:1"
    np.testing.assert_allclose(there.sample(3), model.sample(3), atol=1e-6)
    np.testing.assert_allclose(train.sampler("run", device="cuda").sample(3), model.sample(3), atol=1e-6)
    there.save("there.safetensors")
    assert train.restore("there.safetensors").game.device == "cpu"


def test_a_file_without_a_device_is_of_the_cpu(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = state.environment

    def earlier(device: str = "cpu") -> dict[str, Any]:
        return {key: value for key, value in environment(device).items() if key != "device"}

    monkeypatch.setattr(state, "environment", earlier)
    fit(gan(), 10, out="run")
    monkeypatch.setattr(state, "environment", environment)
    assert [each["event"] for each in fit(gan(), 20, out="run", resume=True).events] == ["resumed"]


def test_what_is_not_finite_is_found_on_a_device(card: Any) -> None:
    model = gan("cuda")
    fit(model, 2)
    weight = next(iter(model.game.generator.parameters().values()))
    values = weight.numpy().copy()
    values[0, 0] = np.nan
    model.game.generator.load_state(
        {name: values if x is weight else x.numpy() for name, x in model.game.generator.state().items()}
    )
    before = model.game.state()
    with pytest.raises(mg.NonFiniteError, match=r"at step 3: discriminator: d_loss is nan"):
        fit(model, 1)
    after = model.game.state()
    assert all(np.array_equal(before[name], after[name], equal_nan=True) for name in before)
    events = fit(model, 2, on_nonfinite="skip").events
    assert [each["event"] for each in events] == ["skipped"] * 2


def test_looks_at_a_game_are_those_of_the_cpu(card: Any) -> None:
    here, there = gan(), gan("cuda")
    ours, theirs = (
        Monitor(every=10).look(model.sampler(), IMAGES[:64], None, step=10) for model in (here, there)
    )
    for name, value in ours.items():
        assert abs(theirs[name] - value) <= 1e-3, name
    points = mg.data.ring().sample(64, Stream(0, "points"))[0]
    spectra = []
    for device in ("cpu", "cuda"):
        small = mg.models.mlp_generator(2, (4,), (2,), output=None), mg.models.mlp_discriminator((2,), (4,))
        spectra.append(spectrum(mg.GAN(*small, device=device), points, batch=32, latents=2))
    assert np.abs(spectra[0].eigenvalues - spectra[1].eigenvalues).max() <= 1e-9
    np.testing.assert_allclose(spectra[0].singular_values, spectra[1].singular_values, atol=1e-9)


# Faults


def test_memory_that_the_pool_keeps_is_freed_once(card: Any) -> None:
    card.limit, card.cached = card.used + 1000, 900
    assert mg.tensor(np.ones(100, np.float32), device="cuda").device == "cuda:0"
    assert (card.freed, card.cached) == (1, 0)
    used = card.used
    with pytest.raises(
        mg.DeviceError, match=rf"cuda:0: no memory for 4,000 bytes: [\d,]+ of [\d,]+ are free.* {used:,};"
    ):
        mg.tensor(np.ones(1000, np.float32), device="cuda")
    assert card.freed == 2
    assert (mg.tensor([1.0], device="cuda") + 1.0).numpy() == [2.0]  # nothing is lost by it


def test_a_kernel_without_memory_breaks_nothing(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = mg.tensor([1.0], device="cuda")
    launch = emulator.RawKernel.__call__

    def full(*arguments: Any, **options: Any) -> None:
        error = emulator.CUDADriverError("CUDA_ERROR_OUT_OF_MEMORY: out of memory")
        error.status = 2
        raise error

    monkeypatch.setattr(emulator.RawKernel, "__call__", full)
    with pytest.raises(mg.DeviceError, match="cuda:0: no memory left: CUDA_ERROR_OUT_OF_MEMORY"):
        mg.ops.exp(x)
    monkeypatch.setattr(emulator.RawKernel, "__call__", launch)
    np.testing.assert_allclose(mg.ops.exp(x).numpy(), [np.e], rtol=1e-6)


@pytest.mark.parametrize("what", ["launch", "copy", "allocation"])
def test_a_card_that_has_failed_is_dead(card: Any, what: str) -> None:
    x = mg.tensor([1.0], device="cuda")
    card.fault = "cudaErrorIllegalAddress: an illegal memory access was encountered"
    act: dict[str, Callable[[], Any]] = {
        "launch": lambda: mg.ops.exp(x),
        "copy": x.numpy,
        "allocation": lambda: mg.tensor([2.0], device="cuda"),
    }
    with pytest.raises(mg.DeviceError, match=r"cuda:0 failed, and with it all.*IllegalAddress"):
        act[what]()
    card.fault = None
    for again in act.values():
        with pytest.raises(mg.DeviceError, match="cuda:0 failed"):
            again()
    with pytest.raises(mg.DeviceError, match="cuda:0 failed"):
        x.to("cuda:1")
    assert (mg.tensor([1.0]) + 1.0).numpy() == [2.0]


def failing(model: mg.GAN, step: int, fail: Callable[[], None]) -> None:
    """Let something fail while a step is made, a compiled one too."""
    seek = model._seek

    def then() -> None:
        seek()
        if model.game.steps == step - 1:
            fail()

    model._seek = then  # type: ignore[method-assign]


@eager_and_compiled
def test_a_failure_names_its_step_and_saves_nothing(card: Any, compile: bool) -> None:
    model = gan("cuda")

    def fail() -> None:
        card.fault = "cudaErrorIllegalAddress: an illegal memory access was encountered"

    failing(model, 14, fail)
    with pytest.raises(mg.DeviceError) as caught:
        fit(model, 30, out="run", save_every=10, compile=compile)
    text = str(caught.value)
    assert text.startswith("stopped at step 14: ") and "cuda:0 failed, and with it all" in text
    last = os.path.join("run", "checkpoints", "step_00000010.safetensors")
    assert "IllegalAddress" in text and text.endswith(f"the checkpoint {last} goes on from there")
    assert sorted(os.listdir("run/checkpoints")) == ["step_00000000.safetensors", "step_00000010.safetensors"]
    events = [json.loads(line) for line in Path("run/events.jsonl").read_text().splitlines()]
    assert [each["event"] for each in events] == ["stopped"]
    forget()
    emulator.reset()
    assert fit(gan("cuda"), 20, out="run", resume=True).records[-1]["step"] == 20


@eager_and_compiled
def test_no_memory_in_a_step_ends_the_run_where_it_was(card: Any, compile: bool) -> None:
    model = gan("cuda")

    def fail() -> None:
        card.limit = card.used

    failing(model, 15, fail)
    if compile:  # a step that is captured at its first call, and needs no memory from then on
        fit(model, 14, out="run", save_every=10)
    options: dict[str, Any] = {"out": "run", "save_every": 10, "resume": compile, "compile": compile}
    text = r"stopped at step 15: .*no memory for .* the checkpoint .*step_00000014.* goes on from there"
    with pytest.raises(mg.DeviceError, match=text):
        fit(model, 30, **options)
    card.limit = None
    found = state.newest("run", lambda text: None)
    assert found and found.about["step"] == 14
    whole = gan("cuda")
    fit(whole, 14)
    for name, x in whole.game.state().items():
        assert (x == found.arrays[name]).all() and (x == model.game.state()[name]).all(), name


FORKED = """
import os, sys
import minigan as mg
x = mg.tensor([1.0], device="cuda")
if child := os.fork():
    os.waitpid(child, 0)
    print("parent", (x + 1.0).numpy(), flush=True)
else:
    for act in (lambda: x + 1.0, lambda: mg.tensor([1.0], device="cuda"), lambda: x.numpy()):
        try:
            act()
            print("no error", flush=True)
        except mg.DeviceError as error:
            print("forked" in str(error), flush=True)
    print("child", (mg.tensor([1.0]) + 1.0).numpy(), flush=True)
    os._exit(0)
"""


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_fork_has_no_device(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED], env=processes(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == ["True", "True", "True", "child [2.]", "parent [2.]"]


# Where there is no GPU


def no_driver() -> None:
    raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")


def with_count(count: Callable[[], Any]) -> Any:
    return SimpleNamespace(cuda=SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=count)))


def without_nvrtc(*arguments: Any, **options: Any) -> None:
    raise RuntimeError("CuPy failed to load libnvrtc.so.13: OSError: cannot open shared object file")


ABSENT = {
    "no CuPy": "CuPy is not installed: pip install 'minigan[cuda13]'",
    "no libcuda": "CuPy cannot be imported: libcuda.so.1: cannot open shared object file",
    "other NumPy": "CuPy cannot be imported: numpy.dtype size changed",
    "a folder": "no GPU can be used: module 'cupy' has no attribute 'cuda'",
    "no driver": "no GPU can be used: cudaErrorInsufficientDriver",
    "no card": "no GPU can be used: CUDA sees none",
    "none visible": "no GPU can be used: cudaErrorNoDevice",
    "no compiler": "kernels cannot be compiled: CuPy failed to load libnvrtc.so.13",
}


@pytest.fixture(params=ABSENT)
def absent(request: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Each way in which there is no GPU; gives its name."""
    name = str(request.param)
    broken = {
        "no libcuda": "raise ImportError('libcuda.so.1: cannot open shared object file')",
        "other NumPy": "raise ValueError('numpy.dtype size changed')",
        "a folder": "",
    }
    if name in broken:
        monkeypatch.delitem(sys.modules, "cupy", raising=False)
        (tmp_path / "broken" / "cupy").mkdir(parents=True)
        if broken[name]:
            (tmp_path / "broken" / "cupy" / "__init__.py").write_text(broken[name])
        monkeypatch.syspath_prepend(tmp_path / "broken")
        return name
    if name == "none visible":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if name == "no compiler":
        monkeypatch.setattr(emulator, "RawModule", without_nvrtc)
    modules = {
        "no CuPy": None,
        "no driver": with_count(no_driver),
        "no card": with_count(lambda: 0),
    }
    monkeypatch.setitem(sys.modules, "cupy", modules.get(name, emulator))
    return name


def test_the_cpu_works_and_a_gpu_is_refused_with_the_reason(absent: str) -> None:
    assert backend.usable_device("cpu") == ("cpu", "")
    with pytest.raises(mg.DeviceError) as caught:
        backend.usable_device("cuda")
    assert ABSENT[absent] in str(caught.value)
    name, reason = backend.usable_device("auto")
    assert name == "cpu"
    assert ABSENT[absent] in reason if absent != "no CuPy" else reason == ""
    assert not cuda.active()  # so that operations on the CPU do not look for arrays of a device
    assert (mg.tensor([1.0]) * 2.0).numpy() == [2.0]
    if absent != "no compiler":
        with pytest.raises(mg.DeviceError, match="device 'cuda'"):
            mg.tensor(1.0, device="cuda")
        with pytest.raises(mg.DeviceError, match="device 'cuda:1'"):
            gan("cuda:1")


def test_the_command_line_without_a_gpu(absent: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(os.listdir())
    assert cli.main(["train", "--steps", "10", "--device", "cuda"]) == 7
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("minigan: ") and ABSENT[absent] in printed.err
    for arguments in (["sample", "run"], ["evaluate", "run"], ["spectrum", "run"]):
        assert cli.main([*arguments, "--device", "cuda"]) == 7
    assert set(os.listdir()) == before


@pytest.mark.parametrize("absent", ["no CuPy", "no libcuda", "other NumPy"], indirect=True)
def test_auto_is_the_cpu_where_there_is_no_gpu(absent: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--steps", "10", "--batch", "4", "--out", "run"]) == 0
    printed = capsys.readouterr()
    assert ", on cpu; run folder run" in printed.out
    assert ("note: device auto is the CPU" in printed.err) == (absent != "no CuPy")
    found = state.newest("run", lambda text: None)
    assert found and found.about["environment"]["device"] == "cpu"


def test_auto_does_not_import_what_is_not_there() -> None:
    code = (
        "import sys, importlib.util; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'cupy' else find(name, *more)\n"
        "class Watch:\n"
        "    def find_spec(self, name, *more):\n"
        "        if name == 'cupy': print('imported')\n"
        "sys.meta_path.insert(0, Watch())\n"
        "from minigan import backend\n"
        "print(backend.usable_device('auto'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(mg.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("('cpu', '')\n", "")


def test_a_card_with_another_number_is_refused(card: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--device", "cuda:2", "--out", "run"]) == 7
    assert "device 'cuda:2': there are 2 GPUs, from cuda:0 to cuda:1" in capsys.readouterr().err
    assert not os.path.exists("run")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA"])
def test_devices_that_are_none(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--device", device]) == 7
    assert f"device {device!r}: expected" in capsys.readouterr().err


# The command line on a device


def test_commands_on_a_device(card: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> tuple[str, str]:
        forget()  # as a command that is given anew
        code = cli.main(list(arguments))
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out, printed.err

    # Without a schedule, a run may be longer than it was to be.
    short = ["train", "--steps", "10", "--batch", "4", "--monitor-every", "0", "--set", "optimizer.lr=0.001"]
    out, err = run(*short, "--out", "run")  # auto
    assert ", on cuda:0; run folder run" in out
    out, err = run("train", "--resume", "run", "--steps", "20", "--device", "cpu")
    assert ", on cpu; run folder run" in out and "device was 'cuda, emulated card" in err
    for device in ("cpu", "cuda:1"):
        run("sample", "run", "-n", "3", "--out", f"{device[:4]}.npz", "--device", device)
    ours, theirs = (np.load(f"{name}.npz")["samples"] for name in ("cpu", "cuda"))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_what_is_dropped_while_it_is_copied_to_is_not_overwritten_later(card: Any) -> None:
    ahead = Prefetch(lambda: [np.full(300, 7.0)], "cuda:0")
    ahead.begin(0)
    copied = ahead._copied[ahead._filled]
    del ahead  # the copy is under way
    others = [mg.tensor(np.full(300, float(k)), device="cuda") for k in range(3)]
    cuda.wait("cuda:0", copied)
    assert [x.numpy()[0] for x in others] == [0, 1, 2]


@pytest.mark.parametrize("shape", [(1 << 33, 1 << 33), (1 << 62,)])
def test_more_than_64_bits_count_is_an_error(shape: tuple[int, ...], card: Any) -> None:
    with pytest.raises(mg.errors.ShapeError, match="cannot allocate"):
        cuda.empty([(shape, np.dtype(np.float32))], "cuda:0")


@needs_compiler
@pytest.mark.parametrize("compiled", [False, True])
def test_an_update_by_its_own_memory_in_another_order(compiled: bool, card: Any) -> None:
    x = mg.tensor(np.arange(3000.0), device="cuda")

    def turn() -> Any:
        return apply(ASSIGN, x, x[::-1])

    step = mg.compile(turn) if compiled else turn
    for k in range(4):
        wanted = np.arange(3000.0)[:: -1 if k % 2 == 0 else 1]
        step()
        np.testing.assert_array_equal(x.numpy(), wanted)
    square = mg.tensor(np.arange(9.0).reshape(3, 3), device="cuda")
    apply(ASSIGN, square, square.T)
    np.testing.assert_array_equal(square.numpy(), np.arange(9.0).reshape(3, 3).T)


def test_a_text_that_does_not_compile_is_an_error_with_its_name(
    card: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = there(1.0)

    def refuses(*arguments: Any) -> None:
        raise emulator.CompileException("error: expected an expression")

    with monkeypatch.context() as patch:
        patch.setattr(emulator.RawModule, "get_function", refuses)
        with pytest.raises(mg.DeviceError, match="tan_kernel does not compile for cuda:0: error: expected"):
            cuda.launch("cuda:0", "tan_kernel", "?", 1, 1, [])
    assert (x + 1.0).item() == 2.0  # the card is as it was


def test_nothing_is_no_device_to_go_to() -> None:
    for thing in (mg.tensor(1.0), mg.nn.Dense(1, 1, stream=Stream(0, "docs"))):
        with pytest.raises(mg.DeviceError, match="'None'"):
            thing.to(None)  # type: ignore[arg-type]
