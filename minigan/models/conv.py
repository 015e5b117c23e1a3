"""Networks of convolutions (DCGAN), and of convolutions with self-attention (SAGAN)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

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
    BatchNorm,
    Conv,
    ConvTranspose,
    Dense,
    Flatten,
    Module,
    Reshape,
    SelfAttention2d,
)
from minigan.nn.init import Initializer, glorot_uniform, normal
from minigan.nn.norm import spectral

STRIDED: Any = {
    "kernel": 4,
    "stride": 2,
    "padding": 1,
}  # of a convolution that halves, or doubles, both sides
BOUNDS = (-1.0, 1.0)  # of a tanh


def _generator(
    latent: int, width: int, shape: Sequence[int], classes: int | None, own: Own, dtype: Any, sagan: bool
) -> Generator:
    """A dense layer, and transposed convolutions that double the image and halve the channels."""
    count = halvings(shape, width)
    inputs, modules = with_labels(latent, classes)
    start = (shape[0] >> count, shape[1] >> count, width << count - 1)

    def normed(layer: Any, channels: int) -> list[Module]:
        return [spectral(layer, sagan), BatchNorm(channels, dtype=dtype), Activation("relu")]

    dense, *rest = normed(Dense(inputs, math.prod(start), bias=False, **own("dense")), start[-1])
    modules += [dense, Reshape(start), *rest]
    for i in range(count - 1):
        channels = start[-1] >> i
        up = ConvTranspose(channels, channels // 2, **STRIDED, bias=False, **own(f"up{i}"))
        modules += normed(up, channels // 2)
        if sagan and not i:
            modules.append(SelfAttention2d(channels // 2, spectral_norm=True, **own("attention")))
    last = ConvTranspose(width, shape[-1], **STRIDED, **own(f"up{count - 1}"))
    modules += [spectral(last, sagan), Activation("tanh")]
    return Generator(latent, shape, *modules, bounds=BOUNDS, classes=classes)


def _discriminator(
    shape: Sequence[int], width: int, classes: int | None, own: Own, dtype: Any, sagan: bool
) -> Discriminator:
    """Convolutions that halve the image and double the channels, and a dense layer."""
    count = halvings(shape, width)
    modules: list[Module] = []
    channels = shape[-1]
    for i in range(count):
        if sagan and i == count - 1:
            modules.append(SelfAttention2d(channels, spectral_norm=True, **own("attention")))
        norms = [] if sagan or not i else [BatchNorm(width << i, dtype=dtype)]
        down = Conv(channels, width << i, **STRIDED, bias=not norms, **own(f"down{i}"))
        modules += [spectral(down, sagan), *norms, Activation("leaky_relu", slope=0.2)]
        channels = width << i
    features = (shape[0] >> count) * (shape[1] >> count) * channels
    last = head(features, classes, own("head"), spectral_norm=sagan)
    return Discriminator(shape, *modules, Flatten(), last, classes=classes)


@described
def dcgan_generator(
    latent: int = 100,
    width: int = 64,
    shape: Sequence[int] = (28, 28, 1),
    *,
    classes: int | None = None,
    init: Initializer = normal,
    seed: int = 0,
    dtype: Any = np.float32,
) -> Generator:
    """A generator of transposed convolutions: latents (N, latent) to images (N, H, W, C) (Radford et al. 2016).

    For 28x28: dense to 7x7 with 2 · width channels, batch norm, ReLU, 4x4 transposed convolution with stride 2 to
    `width` channels, batch norm, ReLU, and one more to the image, tanh. Images of sides above 32 are doubled once more,
    from twice as many channels, and so on. `ConfigError` for H or W that are no multiples of 4.

    Args:
        width: channels before the last layer.
        shape: (H, W, C) of an image.
        classes: of the labels that it is called with; `None` for a generator without labels.
        init, seed, dtype: of the weights, N(0, 0.02²) as in the paper; biases are zero.

    >>> import minigan as mg
    >>> g = mg.models.dcgan_generator(latent=2, width=4, shape=(28, 28, 1))
    >>> g(mg.tensor([[0.0, 0.0]])).shape
    (1, 28, 28, 1)
    """
    own = drawn_by("generator", init, seed, dtype)
    return _generator(latent, width, shape, classes, own, dtype, sagan=False)


@described
def dcgan_discriminator(
    shape: Sequence[int] = (28, 28, 1),
    width: int = 64,
    *,
    classes: int | None = None,
    init: Initializer = normal,
    seed: int = 0,
    dtype: Any = np.float32,
) -> Discriminator:
    """A discriminator of convolutions with strides: images (N, H, W, C) to logits (N, 1) (Radford et al. 2016).

    For 28x28: 4x4 convolution with stride 2 to `width` channels, leaky ReLU, one more to 2 · width, batch norm, leaky
    ReLU, dense. Arguments as for `dcgan_generator`; `width` is of the first layer.

    >>> import minigan as mg
    >>> mg.models.dcgan_discriminator().count() == 16 * 64 + 64 + 16 * 64 * 128 + 2 * 128 + 6272 + 1
    True
    """
    own = drawn_by("discriminator", init, seed, dtype)
    return _discriminator(shape, width, classes, own, dtype, sagan=False)


@described
def sagan_generator(
    latent: int = 100,
    width: int = 64,
    shape: Sequence[int] = (28, 28, 1),
    *,
    classes: int | None = None,
    init: Initializer = glorot_uniform,
    seed: int = 0,
    dtype: Any = np.float32,
) -> Generator:
    """As `dcgan_generator`, with self-attention after the first doubling and spectral norm (Zhang et al. 2019).

    Every pixel of the 14x14 map of a 28x28 image sees all others, so that far parts of an image can agree; at the start
    it is a DCGAN, as the attention's share is 0. A `width` of at least 8 is needed.

    >>> import minigan as mg
    >>> g = mg.models.sagan_generator(latent=2, width=8, shape=(8, 8, 1))
    >>> g(mg.tensor([[0.0, 0.0]])).shape
    (1, 8, 8, 1)
    """
    own = drawn_by("generator", init, seed, dtype)
    return _generator(latent, width, shape, classes, own, dtype, sagan=True)


@described
def sagan_discriminator(
    shape: Sequence[int] = (28, 28, 1),
    width: int = 64,
    *,
    classes: int | None = None,
    init: Initializer = glorot_uniform,
    seed: int = 0,
    dtype: Any = np.float32,
) -> Discriminator:
    """As `dcgan_discriminator`, with self-attention before the last convolution (Zhang et al. 2019).

    All weights have spectral norm, and there is no batch norm.

    >>> import minigan as mg
    >>> d = mg.models.sagan_discriminator((8, 8, 1), width=8)
    >>> d(mg.tensor(np.zeros((2, 8, 8, 1), np.float32))).shape
    (2, 1)
    """
    own = drawn_by("discriminator", init, seed, dtype)
    return _discriminator(shape, width, classes, own, dtype, sagan=True)
