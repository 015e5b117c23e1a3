"""JAX on a GPU: the step as on a CPU; products and convolutions are of float32, without TF32."""

import time
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.peers import NotThere, jax as on_cpu
from benchmarks.peers.jax import conv_gan as conv_gan, gan as gan
from benchmarks.scenarios import Array


def setup(threads: int) -> None:
    """Its own number of threads of the CPU; float32 is what it says."""
    on_cpu.setup(threads)
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        jax.devices("cuda")
    except (RuntimeError, AssertionError) as error:  # the latter where it has no part for CUDA
        why = str(error) or "it is installed without its part for CUDA"
        raise NotThere(f"JAX {jax.__version__} finds no GPU that it can use: {why}") from None


def put(array: Array) -> Any:
    """A copy on the GPU."""
    return jax.device_put(array)


def timed(block: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds by the CPU's clock until the result of a block is there, and the result; JAX has no events."""
    begin = time.perf_counter()
    result = jax.block_until_ready(block())
    return time.perf_counter() - begin, result


def peak() -> int:
    """The most bytes that its allocator has held, or handed out if it does not say."""
    numbers = jax.devices()[0].memory_stats() or {}
    return int(numbers.get("peak_pool_bytes") or numbers.get("peak_bytes_in_use") or 0)
