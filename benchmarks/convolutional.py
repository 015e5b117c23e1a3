"""What is measured of images: the step of adversarial networks with convolutions, and single convolutions.

Weights are the same for all, in minigan's layout, which each framework's file turns into its own before the first step.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np

from benchmarks.networks import MODELS, Network, Weights
from benchmarks.scenarios import SEED, Adam, Array, Gan, aligned


@dataclass(frozen=True)
class ConvGan:
    """The training step of `Gan` with networks from `MODELS`, for images of one channel in -1 to 1.

    Batch normalisation is by the moments of the batch in all passes, of x and of G(z1) separately in the discriminator.

    Attributes:
        penalty: "" or "r1", on x.
        size: height and width of an image.
        width: channels, or features of a token, of which the others are multiples.
    """

    name: str
    about: str
    batch: int = 64
    model: str = "dcgan"
    penalty: str = ""
    size: int = 28
    width: int = 64
    latent: int = 100
    loss: ClassVar = "non_saturating"
    measure: ClassVar = "steps"
    adam: ClassVar = Adam(2e-4, b1=0.5)
    checked: ClassVar = 10
    kind: ClassVar = "conv_gan"

    @cached_property
    def networks(self) -> tuple[Network, Network]:
        """Generator and discriminator."""
        return MODELS[self.model](self.size, self.width, self.latent)

    @property
    def flops(self) -> float:
        """What the algorithm needs in convolutions and matrix products; the padding is multiplied too.

        As `Gan.flops`, with the products of two results besides, whose both gradients are always needed.
        """
        generator, discriminator = (
            [w.products for w in n.weights.values() if w.places] for n in self.networks
        )
        g, d, g1, d1 = sum(generator), sum(discriminator), generator[0], discriminator[0]
        g_free, d_free = (n.attention for n in self.networks)
        d_step = g + g_free + 2 * (d + d + d - d1 + 3 * d_free)
        g_step = (g + g_free + d + d_free) + (d + 2 * d_free) + (g + g - g1 + 2 * g_free)
        penalty = d + d + (d - discriminator[-1]) if self.penalty else 0
        return 2.0 * self.batch * (d_step + g_step + penalty)

    @property
    def work(self) -> "ConvGan":
        """The same for all scenarios whose results must be equal."""
        return replace(self, name="", about="")

    def weights(self, dtype: str) -> tuple[dict[str, Array], dict[str, Array]]:
        """Initial weights by name: uniform of variance 1 / inputs (LeCun et al. 1998); scales and shifts as usual."""
        draw = np.random.default_rng(SEED)

        def start(weights: Weights) -> dict[str, Array]:
            return {
                name: aligned(
                    draw.uniform(-1, 1, w.shape) * math.sqrt(3 / math.prod(w.shape[:-1]))
                    if w.places
                    else np.full(w.shape, w.start),
                    dtype,
                )
                for name, w in weights.items()
            }

        generator, discriminator = self.networks
        return start(generator.weights), start(discriminator.weights)

    def arrays(self, k: int, dtype: str) -> tuple[Array, ...]:
        """What step k is given: x (batch, size, size, 1), z1 and z2. Values are float32 in every dtype."""
        draw = np.random.default_rng((SEED, k))
        x = draw.uniform(-1, 1, (self.batch, self.size, self.size, 1))
        return tuple(
            aligned(a, dtype)
            for a in (x, *(draw.standard_normal((self.batch, self.latent)) for _ in range(2)))
        )

    def tiny(self) -> "ConvGan":
        """The same at a size that takes no time."""
        return replace(self, batch=4, size=12, width=8, latent=3)


Game = Gan | ConvGan


class Shape(NamedTuple):
    """A convolution of images of size x size pixels; `groups` is 1 or the number of channels."""

    name: str
    kernel: int
    stride: int
    inputs: int
    outputs: int
    size: int
    groups: int = 1

    @property
    def about(self) -> str:
        """In words."""
        groups = "depth-wise" if self.groups > 1 else f"{self.inputs} to {self.outputs} channels"
        return (
            f"{self.kernel} x {self.kernel}, stride {self.stride}, {groups}, {self.size} x {self.size} pixels"
        )


SHAPES = (
    Shape("conv-second", 4, 2, 64, 128, 14),
    Shape("conv-first", 4, 2, 1, 64, 28),
    Shape("conv-3x3", 3, 1, 64, 64, 14),
    Shape("conv-1x1", 1, 1, 64, 64, 14),
    Shape("conv-depth", 3, 1, 64, 64, 14, groups=64),
)
WANTED = {"y": "forward", "dx": "gradient in x", "dw": "gradient in w"}


@dataclass(frozen=True)
class ConvLayer:
    """One of the triad: y, a convolution of x with w, or the gradient of y in x or in w along dy, from x, w and dy.

    The arrays are the framework's own and the same in all steps, so that no step copies any; the result is in memory of
    its own or is overwritten by the next step.
    """

    shape: Shape
    wanted: str
    batch: int = 64
    measure: ClassVar = "steps"
    checked: ClassVar = 1
    kind: ClassVar = "conv_layer"

    @property
    def name(self) -> str:
        """The shape's name, and that of the result."""
        return f"{self.shape.name}-{self.wanted}"

    @property
    def about(self) -> str:
        """In words."""
        return f"{WANTED[self.wanted]}, {self.shape.about}, batch {self.batch}"

    @property
    def flops(self) -> float:
        """Of each of the three; the padding is multiplied too."""
        _, w, y = self._shapes
        return 2.0 * math.prod(y[:3]) * math.prod(w)

    @property
    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of x, w and y."""
        _, kernel, stride, inputs, outputs, size, groups = self.shape
        out = size // stride
        return (
            (self.batch, size, size, inputs),
            (kernel, kernel, inputs // groups, outputs),
            (self.batch, out, out, outputs),
        )

    @property
    def work(self) -> "ConvLayer":
        """The same for all scenarios whose results must be equal."""
        return self

    def operands(self, dtype: str) -> tuple[Array, Array, Array]:
        """x, w and dy. Values are float32 in every dtype."""
        draw = np.random.default_rng(SEED)
        x, w, dy = (aligned(draw.uniform(-1, 1, shape), dtype) for shape in self._shapes)
        return x, w, dy

    def arrays(self, k: int, dtype: str) -> tuple[Array, ...]:
        """What step k is given: nothing, because it has its operands."""
        return ()

    def numbers(self, result: Array) -> tuple[float, ...]:
        """What is compared of a result in minigan's layout: the means of its square and of it times random numbers."""
        values = result.astype(np.float64)
        random = np.random.default_rng(SEED).uniform(-1, 1, values.shape)
        return float(np.mean(values**2)), float(np.mean(values * random))

    def tiny(self) -> "ConvLayer":
        """The same at a size that takes no time."""
        few = {name: min(getattr(self.shape, name), 8) for name in ("inputs", "outputs", "groups", "size")}
        return replace(self, shape=self.shape._replace(**few), batch=2)
