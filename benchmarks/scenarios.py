"""Dense networks and chains of small operations, with the same initial weights and data for every framework.

The step of all GAN scenarios is one update of the discriminator on x and G(z1), which is not differentiated, then one
of the generator on z2 through the updated discriminator, each by its own Adam. x, z1 and z2 are handed in as arrays.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Layers = list[tuple[Array, Array]]

SLOPE = float(np.float32(0.2))  # of the leaky ReLU below 0; TensorFlow's kernel rounds it so in float64 too
LAMBDA = 10.0  # weight of WGAN-GP
GAMMA = 10.0  # weight of R1: GAMMA / 2 · E |∇D(x)|²
SEED = 20_140_610


class Adam(NamedTuple):
    """Settings of Algorithm 1 of Kingma and Ba 2015."""

    rate: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8


RATE, B1, B2, EPS = Adam()


@dataclass(frozen=True)
class Gan:
    """A training step of two fully connected networks.

    Attributes:
        output: the generator's last activation, "sigmoid" or "" for none.
        loss: "non_saturating" or "wasserstein".
        penalty: "", "wgan_gp" (with u, one uniform number a sample, handed in too) or "r1", on x.
        measure: "steps"; "busy": with and without another process on one of the cores; "start": new processes.
    """

    name: str
    about: str
    batch: int = 64
    latent: int = 100
    hidden: tuple[int, ...] = (128, 128)
    features: int = 784
    output: str = "sigmoid"
    loss: str = "non_saturating"
    penalty: str = ""
    measure: str = "steps"
    adam: ClassVar = Adam()
    checked: ClassVar = 10  # first steps whose results are compared
    kind: ClassVar = "gan"

    @property
    def sizes(self) -> tuple[list[int], list[int]]:
        """Widths of the generator and of the discriminator, from input to output."""
        return [self.latent, *self.hidden, self.features], [self.features, *self.hidden, 1]

    @property
    def flops(self) -> float:
        """What the algorithm needs in matrix products, the only part that grows with the square of the widths.

        With g and d the multiplications of one sample through all weights of a network, and g1 and d1 those of its
        first layer: a gradient in weights costs as much as the forward pass, one passed on to the layer below too.
        """
        generator, discriminator = ([a * b for a, b in pairwise(sizes)] for sizes in self.sizes)
        g, d, g1, d1 = sum(generator), sum(discriminator), generator[0], discriminator[0]
        d_step = g + 2 * (d + d + d - d1)
        g_step = (g + d) + d + (g + g - g1)
        penalty = 0
        if self.penalty:  # ∇D, then its derivative: in every weight, and back through all layers but the last
            penalty = d + d + (d - discriminator[-1])
        if self.penalty == "wgan_gp":  # the hidden layers at the points between x and G(z)
            penalty += d - discriminator[-1]
        return 2.0 * self.batch * (d_step + g_step + penalty)

    @property
    def work(self) -> "Gan":
        """The same for all scenarios whose results must be equal."""
        return replace(self, name="", about="", measure="steps")

    def weights(self, dtype: str) -> tuple[Layers, Layers]:
        """Initial weights (inputs, outputs), uniform as in Glorot and Bengio 2010, and biases, zero."""
        draw = np.random.default_rng(SEED)
        networks = []
        for sizes in self.sizes:
            layers = []
            for inputs, outputs in pairwise(sizes):
                bound = math.sqrt(6 / (inputs + outputs))
                weight = draw.uniform(-bound, bound, (inputs, outputs))
                layers.append((weight.astype(np.float32).astype(dtype), np.zeros(outputs, dtype)))
            networks.append(layers)
        return networks[0], networks[1]

    def arrays(self, k: int, dtype: str) -> tuple[Array, ...]:
        """What step k is given: x, z1, z2, and u (batch, 1) for WGAN-GP. Values are float32 in every dtype."""
        draw = np.random.default_rng((SEED, k))
        shape = (self.batch, self.features)
        x = draw.random(shape) if self.output == "sigmoid" else _ring(draw, shape)
        latents = [draw.standard_normal((self.batch, self.latent)) for _ in range(2)]
        u = [draw.random((self.batch, 1))] if self.penalty == "wgan_gp" else []
        return tuple(aligned(a, dtype) for a in (x, *latents, *u))

    def tiny(self) -> "Gan":
        """The same at a size that takes no time."""
        return replace(
            self, batch=4, latent=3, hidden=tuple(8 for _ in self.hidden), features=min(self.features, 16)
        )


@dataclass(frozen=True)
class Chain:
    """One long chain of small operations, and its gradient: y ← tanh(y · w + x), `links` times, from y = x.

    The result is the sum of y; gradients are taken in x and w, both of `width` elements.
    """

    name: str
    about: str
    links: int
    width: int = 16
    measure: str = "steps"
    flops: ClassVar = 0.0  # not counted: all of it is overhead
    checked: ClassVar = 1
    kind: ClassVar = "chain"

    @property
    def operations(self) -> int:
        """Of the forward pass."""
        return 3 * self.links + 1

    @property
    def work(self) -> "Chain":
        """The same for all scenarios whose results must be equal."""
        return replace(self, name="", about="")

    def arrays(self, k: int, dtype: str) -> tuple[Array, ...]:
        """What step k is given: x and w."""
        draw = np.random.default_rng((SEED, k))
        return tuple(aligned(draw.uniform(0.2, 0.8, self.width), dtype) for _ in range(2))

    def tiny(self) -> "Chain":
        """The same at a size that takes no time."""
        return replace(self, links=min(self.links // 10, 100))


def _ring(draw: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Points around eight places on the unit circle."""
    angle = draw.integers(8, size=shape[0]) * (math.pi / 4)
    centres = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return centres + 0.02 * draw.standard_normal(centres.shape)


def aligned(values: Array, dtype: str) -> Array:
    """A copy that begins at a multiple of 64 bytes, so that no framework has to move it to use it in place."""
    rounded = values.astype(np.float32).astype(dtype)
    memory = np.empty(rounded.nbytes + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    result: Array = memory[begin : begin + rounded.nbytes].view(dtype).reshape(rounded.shape)
    result[...] = rounded
    return result
