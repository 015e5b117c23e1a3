"""What the GPU can do: copy its own memory, and multiply square float32 matrices by cuBLAS, without and with TF32.

A contestant's variant says what, and how large: bytes of a copy, or the side of a matrix.
"""

from typing import Any

import numpy as np

from benchmarks.peers import Contestant, Program
from benchmarks.peers.minigan_cuda import peak as peak, put as put, setup as setup, timed as timed
from benchmarks.scenarios import SEED
from benchmarks.table import Scenario
from minigan.backend import cuda

GPU = "cuda:0"


def limits(tiny: bool) -> tuple[tuple[Contestant, float], ...]:
    """Who measures what the GPU can do, and how many bytes or operations a turn's step is; a copy reads and writes."""
    nbytes, side = (1 << 16, 64) if tiny else (1 << 30, 8192)
    amounts = {"copy": (nbytes, 2.0 * nbytes), "sgemm": (side, 2.0 * side**3), "tf32": (side, 2.0 * side**3)}
    return tuple(
        (Contestant(name, "cupy", "limits_cuda", f"{name}-{size}", (), "", (), "cuda"), amount)
        for name, (size, amount) in amounts.items()
    )


def gan(scenario: Scenario, dtype: str, variant: str) -> Program:
    """A copy or a product, whatever the scenario."""
    what, _, size = variant.partition("-")
    step = _copy(int(size)) if what == "copy" else _product(int(size), what == "tf32")

    def read(_: Any) -> tuple[float, ...]:
        cuda.synchronize(GPU)
        return (0.0,)

    return Program(step, read)


def _copy(nbytes: int) -> Any:
    source, there = cuda.empty([((nbytes,), np.uint8)] * 2, GPU)

    def step(*_: Any) -> None:
        with cuda.on(GPU) as cupy:
            runtime, stream = cupy.cuda.runtime, cupy.cuda.get_current_stream().ptr
            addresses = cuda.address(there), cuda.address(source)
            runtime.memcpyAsync(*addresses, nbytes, runtime.memcpyDeviceToDevice, stream)

    return step


def _product(side: int, tf32: bool) -> Any:
    draw = np.random.default_rng(SEED)  # a product of zeros takes less power, and may be faster
    a, b = (cuda.put(draw.standard_normal((side, side), np.float32), GPU) for _ in range(2))
    (c,) = cuda.empty([(a.shape, a.dtype)], GPU)
    cuda.set_tf32(tf32)

    def step(*_: Any) -> None:
        of_a, of_b, of_c = ((cuda.address(x), side, 0) for x in (a, b, c))
        cuda.gemm(GPU, np.dtype(np.float32), (False, False), (side, side, side), of_a, of_b, of_c, 1)

    return step


conv_gan = gan
