"""Networks of residual blocks: with batch and spectral norm, and without any."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigan import ops
from minigan.models.conv import BOUNDS
from minigan.models.networks import (
    Discriminator,
    Generator,
    Own,
    described,
    drawn_by,
    halvings,
    head,
    with_labels,
)
from minigan.nn import (
    Activation,
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    DiscriminatorBlock,
    Flatten,
    GeneratorBlock,
    GlobalPool,
    Module,
    Reshape,
    Upsample,
)
from minigan.nn.init import Initializer, glorot_uniform, he_normal, zeros
from minigan.ops import Stream
from minigan.tensor import Tensor, tensor


@described
def resnet_generator(
    latent: int = 100,
    width: int = 64,
    shape: Sequence[int] = (28, 28, 1),
    *,
    classes: int | None = None,
    init: Initializer = glorot_uniform,
    seed: int = 0,
    dtype: Any = np.float32,
) -> Generator:
    """A generator of residual blocks: latents (N, latent) to images (N, H, W, C) (Miyato et al. 2018, Table 4).

    For 28x28: dense to 7x7 with `width` channels, two blocks that double the image, batch norm, ReLU, 3x3 convolution,
    tanh. Arguments and errors as for `dcgan_generator`; all blocks have `width` channels.

    >>> import minigan as mg
    >>> g = mg.models.resnet_generator(latent=2, width=4, shape=(8, 8, 1))
    >>> g(mg.tensor([[0.0, 0.0]])).shape
    (1, 8, 8, 1)
    """
    count, own = halvings(shape, width), drawn_by("generator", init, seed, dtype)
    inputs, labels = with_labels(latent, classes)
    start = (shape[0] >> count, shape[1] >> count, width)
    return Generator(
        latent,
        shape,
        *labels,
        Dense(inputs, math.prod(start), **own("dense")),
        Reshape(start),
        *[GeneratorBlock(width, width, **own(f"block{i}")) for i in range(count)],
        BatchNorm(width, dtype=dtype),
        Activation("relu"),
        Conv(width, shape[-1], 3, padding=1, **own("image")),
        Activation("tanh"),
        bounds=BOUNDS,
        classes=classes,
    )


@described
def resnet_discriminator(
    shape: Sequence[int] = (28, 28, 1),
    width: int = 64,
    *,
    classes: int | None = None,
    init: Initializer = glorot_uniform,
    seed: int = 0,
    dtype: Any = np.float32,
) -> Discriminator:
    """A discriminator of residual blocks with spectral norm: images (N, H, W, C) to logits (N, 1) (ibid.).

    For 28x28: two blocks that halve the image, one that does not, ReLU, the sum over all pixels, dense. Arguments as
    for `resnet_generator`.

    >>> import minigan as mg
    >>> d = mg.models.resnet_discriminator((8, 8, 1), width=4)
    >>> d(mg.tensor(np.zeros((2, 8, 8, 1), np.float32))).shape
    (2, 1)
    """
    count, own = halvings(shape, width), drawn_by("discriminator", init, seed, dtype)
    first = DiscriminatorBlock(shape[-1], width, first=True, spectral_norm=True, **own("block0"))
    others = [
        DiscriminatorBlock(
            width, width, downsample=2 if i < count else 1, spectral_norm=True, **own(f"block{i}")
        )
        for i in range(1, count + 1)
    ]
    last = head(width, classes, own("head"), spectral_norm=True)
    return Discriminator(shape, first, *others, Activation("relu"), GlobalPool("sum"), last, classes=classes)


class FixupBlock(Module):
    """A residual block without norms, x + f(x): x (N, H, W, channels) gives the same shape (Huang et al. 2024, §4).

    f: 1 x 1 convolution, leaky ReLU, 3 x 3 convolution, leaky ReLU, and a 1 x 1 convolution of zeros, so that at the
    start a network is as deep as its layers outside of the blocks. The first two are made smaller by blocks^(-1/4),
    with `blocks` the number of blocks in the network (Zhang, Dauphin and Ma 2019, "Fixup", §3, for three layers).

    >>> import minigan as mg
    >>> block = FixupBlock(2, blocks=3, stream=mg.ops.Stream(0, "docs"))
    >>> x = mg.ops.Stream(0, "images").normal((1, 4, 4, 2))
    >>> bool((block(x).numpy() == x.numpy()).all())  # as long as the last convolution is 0
    True
    """

    def __init__(
        self,
        channels: int,
        blocks: int,
        *,
        init: Initializer = he_normal,
        stream: Stream,
        dtype: Any = np.float32,
    ) -> None:
        def smaller(stream: Stream, shape: tuple[int, ...], dtype: Any) -> Tensor:
            return tensor(init(stream, shape, dtype) * blocks**-0.25)  # a leaf, which an optimiser may change

        def conv(name: str, kernel: int, init: Initializer, bias: bool = True) -> Conv:
            return Conv(
                channels,
                channels,
                kernel,
                padding=kernel // 2,
                bias=bias,
                init=init,
                stream=stream.child(name),
                dtype=dtype,
            )

        self.convs = [conv("in", 1, smaller), conv("middle", 3, smaller), conv("out", 1, zeros, bias=False)]

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """The output, in the shape of x."""
        first, middle, last = self.convs
        return x + last(ops.leaky_relu(middle(ops.leaky_relu(first(x), slope=0.2)), slope=0.2))


def _resampled(layer: Module, inputs: int, outputs: int, own: dict[str, Any]) -> list[Module]:
    return [layer, Conv(inputs, outputs, 1, bias=False, **own)]


def _blocks(channels: Sequence[int], own: Own) -> list[FixupBlock]:
    return [FixupBlock(each, len(channels), **own(f"block{i}")) for i, each in enumerate(channels)]


@described
def r3gan_generator(
    latent: int = 100,
    width: int = 32,
    shape: Sequence[int] = (28, 28, 1),
    *,
    classes: int | None = None,
    init: Initializer = he_normal,
    seed: int = 0,
    dtype: Any = np.float32,
) -> Generator:
    """A generator of residual blocks without any norm: latents (N, latent) to images (N, H, W, C), as of "R3GAN".

    Made for the relativistic loss with the penalties R1 and R2 (Huang et al. 2024, of which this is a small version).
    For 28x28: dense to 7x7 with 4 · width channels, then at 7x7, 14x14 and 28x28 a block, with bilinear upsampling and
    a 1x1 convolution that halves the channels between them, 1x1 convolution to the image, tanh. Arguments and errors as
    for `dcgan_generator`; `width` is of the whole image.

    >>> import minigan as mg
    >>> g = mg.models.r3gan_generator(latent=2, width=4, shape=(8, 8, 1))
    >>> g(mg.tensor([[0.0, 0.0]])).shape
    (1, 8, 8, 1)
    """
    count, own = halvings(shape, width), drawn_by("generator", init, seed, dtype)
    inputs, modules = with_labels(latent, classes)
    start = (shape[0] >> count, shape[1] >> count, width << count)
    channels = [start[-1] >> i for i in range(count + 1)]
    first, *blocks = _blocks(channels, own)
    modules += [Dense(inputs, math.prod(start), **own("dense")), Reshape(start), first]
    for i, block in enumerate(blocks):
        modules += _resampled(Upsample(2, "bilinear"), channels[i], channels[i + 1], own(f"up{i}"))
        modules.append(block)
    modules += [Conv(width, shape[-1], 1, **own("image")), Activation("tanh")]
    return Generator(latent, shape, *modules, bounds=BOUNDS, classes=classes)


@described
def r3gan_discriminator(
    shape: Sequence[int] = (28, 28, 1),
    width: int = 32,
    *,
    classes: int | None = None,
    init: Initializer = he_normal,
    seed: int = 0,
    dtype: Any = np.float32,
) -> Discriminator:
    """A discriminator of residual blocks without any norm: images (N, H, W, C) to logits (N, 1), as of "R3GAN".

    The mirror image of `r3gan_generator`, with mean pooling, whose arguments it has.

    >>> import minigan as mg
    >>> d = mg.models.r3gan_discriminator((8, 8, 1), width=4)
    >>> d(mg.tensor(np.zeros((2, 8, 8, 1), np.float32))).shape
    (2, 1)
    """
    count, own = halvings(shape, width), drawn_by("discriminator", init, seed, dtype)
    channels = [width << i for i in range(count + 1)]
    first, *blocks = _blocks(channels, own)
    modules: list[Module] = [Conv(shape[-1], width, 1, **own("image")), first]
    for i, block in enumerate(blocks):
        modules += _resampled(AvgPool(2), channels[i], channels[i + 1], own(f"down{i}"))
        modules.append(block)
    features = (shape[0] >> count) * (shape[1] >> count) * channels[-1]
    return Discriminator(shape, *modules, Flatten(), head(features, classes, own("head")), classes=classes)
