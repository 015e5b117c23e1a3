"""What the machine can do: NumPy's product of two square float32 matrices, on as many threads as the others have."""

from typing import Any

import numpy as np

from benchmarks.peers import Program
from benchmarks.scenarios import SEED
from benchmarks.table import Scenario

SIZE = 1024
FLOPS = 2.0 * SIZE**3


def setup(threads: int) -> None:
    """The environment has said it all."""


def gan(scenario: Scenario, dtype: str, variant: str) -> Program:
    """The product, whatever the scenario."""
    draw = np.random.default_rng(SEED)
    a, b = (draw.standard_normal((SIZE, SIZE), np.float32) for _ in range(2))
    c = np.empty_like(a)

    def step(*_: Any) -> float:
        np.matmul(a, b, out=c)
        return float(c[0, 0])

    return Program(step, lambda value: (value,))


chain = conv_gan = conv_layer = gan
