"""Adam for frameworks that have none: in place on NumPy arrays, with one scratch array for each parameter."""

import numpy as np

from benchmarks.scenarios import B1, B2, EPS, RATE, Array


class NumpyAdam:
    """Kingma and Ba 2015, Algorithm 1, of these parameters, which `update` changes in place."""

    def __init__(self, parameters: list[Array]) -> None:
        self.steps = 0
        self.slots = [(p, np.zeros_like(p), np.zeros_like(p), np.empty_like(p)) for p in parameters]

    def update(self, gradients: list[Array]) -> None:
        """One step along the gradients, one per parameter, which are overwritten."""
        self.steps += 1
        rate, unbias = RATE / (1 - B1**self.steps), 1 / (1 - B2**self.steps)
        for (p, m, v, scratch), g in zip(self.slots, gradients, strict=True):
            np.multiply(g, 1 - B1, out=scratch)
            m *= B1
            m += scratch
            np.multiply(g, g, out=g)
            g *= 1 - B2
            v *= B2
            v += g
            np.multiply(v, unbias, out=scratch)
            np.sqrt(scratch, out=scratch)
            scratch += EPS
            np.divide(m, scratch, out=scratch)
            scratch *= rate
            p -= scratch
