"""Convolution transformers: convolutions for local features, and attention for global ones."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigan.models.conv import BOUNDS, STRIDED
from minigan.models.networks import Discriminator, Generator, described, drawn_by, halvings, head, with_labels
from minigan.nn import (
    Activation,
    ConvTransformerBlock,
    ConvTranspose,
    Dense,
    GlobalPool,
    LayerNorm,
    Module,
    Reshape,
)
from minigan.nn.attention import ConvEmbedding
from minigan.nn.init import Initializer, glorot_uniform

FEW = 4  # pixels of a side up to which every pixel is a key of its own


def _key_stride(shape: Sequence[int], halved: int) -> int:
    return 2 if min(shape[:2]) >> halved > FEW else 1


@described
def cvtgan_generator(
    latent: int = 100,
    width: int = 32,
    shape: Sequence[int] = (28, 28, 1),
    *,
    depth: int = 1,
    heads: int = 4,
    classes: int | None = None,
    init: Initializer = glorot_uniform,
    seed: int = 0,
    dtype: Any = np.float32,
) -> Generator:
    """A generator of convolutional transformer blocks: latents (N, latent) to images (N, H, W, C).

    The blocks are those of Wu et al. 2021, "CvT": every pixel sees all others, through queries, keys and values that
    are convolutions. For 28x28: dense to 7x7 with 2 · width channels, blocks, layer norm, 4x4 transposed convolution
    with stride 2 to `width` channels, blocks, layer norm, and one more to the image, tanh.

    Args:
        width: channels before the last layer, a multiple of `heads`.
        depth: blocks at each size.
        heads: of the attention.

    Other arguments and errors as for `dcgan_generator`.

    >>> import minigan as mg
    >>> g = mg.models.cvtgan_generator(latent=2, width=4, shape=(8, 8, 1), heads=2)
    >>> g(mg.tensor([[0.0, 0.0]])).shape
    (1, 8, 8, 1)
    """
    count, own = halvings(shape, width), drawn_by("generator", init, seed, dtype)
    inputs, modules = with_labels(latent, classes)
    start = (shape[0] >> count, shape[1] >> count, width << count - 1)
    modules += [Dense(inputs, math.prod(start), **own("dense")), Reshape(start)]
    for i in range(count):
        channels, stride = start[-1] >> i, _key_stride(shape, count - i)
        modules += [
            ConvTransformerBlock(channels, heads, stride=stride, **own(f"block{i}.{k}")) for k in range(depth)
        ]
        larger = shape[-1] if i == count - 1 else channels // 2
        modules += [
            LayerNorm(channels, dtype=dtype),
            ConvTranspose(channels, larger, **STRIDED, **own(f"up{i}")),
        ]
    return Generator(latent, shape, *modules, Activation("tanh"), bounds=BOUNDS, classes=classes)


@described
def cvtgan_discriminator(
    shape: Sequence[int] = (28, 28, 1),
    width: int = 32,
    *,
    depth: int = 1,
    heads: int = 4,
    classes: int | None = None,
    init: Initializer = glorot_uniform,
    seed: int = 0,
    dtype: Any = np.float32,
) -> Discriminator:
    """A discriminator of convolutional transformer blocks: images (N, H, W, C) to logits (N, 1) (Wu et al. 2021).

    For 28x28: tokens from 7x7 convolutions with stride 2 to `width` channels, blocks, tokens from 3x3 convolutions with
    stride 2 to 2 · width, blocks, layer norm, the mean over all tokens, dense. Without batch norm, through which the
    samples of a batch would see each other. Arguments as for `cvtgan_generator`.

    >>> import minigan as mg
    >>> d = mg.models.cvtgan_discriminator((8, 8, 1), width=4, heads=2)
    >>> d(mg.tensor(np.zeros((2, 8, 8, 1), np.float32))).shape
    (2, 1)
    """
    count, own = halvings(shape, width), drawn_by("discriminator", init, seed, dtype)
    modules: list[Module] = []
    channels = shape[-1]
    for i in range(count):
        kernel, stride = 3 if i else 7, _key_stride(shape, i + 1)
        modules.append(ConvEmbedding(channels, width << i, kernel=kernel, stride=2, **own(f"tokens{i}")))
        channels = width << i
        modules += [
            ConvTransformerBlock(channels, heads, stride=stride, batch_norm=False, **own(f"block{i}.{k}"))
            for k in range(depth)
        ]
    modules += [LayerNorm(channels, dtype=dtype), GlobalPool("mean"), head(channels, classes, own("head"))]
    return Discriminator(shape, *modules, classes=classes)
