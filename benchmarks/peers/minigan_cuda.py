"""minigan on a GPU: the same steps, with weights, memory and inputs there."""

import importlib
from collections.abc import Callable
from typing import Any

import minigan as mg
from benchmarks.convolutional import ConvGan
from benchmarks.peers import NotThere, Program, minigan as on_cpu
from benchmarks.scenarios import Array, Gan
from minigan.backend import cuda, device_name


def setup(threads: int) -> None:
    """Hold minigan to so many threads of the CPU, and see that there is a GPU."""
    on_cpu.setup(threads)
    try:
        device_name("cuda")
    except mg.DeviceError as error:
        raise NotThere(str(error)) from None


def gan(scenario: Gan, dtype: str, variant: str) -> Program:
    """A step of both players."""
    return on_cpu.gan(scenario, dtype, variant, "cuda")


def conv_gan(scenario: ConvGan, dtype: str, variant: str) -> Program:
    """A step of both players."""
    return on_cpu.conv_gan(scenario, dtype, variant, "cuda")


def put(array: Array) -> Any:
    """A copy on the GPU."""
    return mg.tensor(array, device="cuda")


def timed(block: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds between two events around a block, and its result."""
    with cuda.on("cuda:0") as cupy:
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        cuda.synchronize("cuda:0")
        start.record()
        result = block()
        end.record()
        end.synchronize()
        return cupy.cuda.get_elapsed_time(start, end) / 1e3, result


def peak() -> int:
    """The most bytes that CuPy's pool has held: it gives none back unless there is too little."""
    return int(importlib.import_module("cupy").get_default_memory_pool().total_bytes())
