"""Attention: every token, or every pixel, sees all others."""

import math
from typing import Any

import numpy as np

from minigan import ops
from minigan.errors import ConfigError, ShapeError
from minigan.nn.conv import Conv
from minigan.nn.init import Initializer, glorot_uniform
from minigan.nn.layers import Dense, Sequential
from minigan.nn.module import Module
from minigan.nn.norm import BatchNorm, LayerNorm, spectral
from minigan.ops.conv import PerAxis
from minigan.ops.random import Stream
from minigan.tensor import Tensor


def _check_heads(name: str, features: int, heads: int) -> None:
    if features < 1 or heads < 1 or features % heads:
        raise ConfigError(f"{name}: {features} features do not divide into {heads} heads")


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attention in `heads` equal parts of the features: q (N, T, D), k and v (N, S, D) give (N, T, D)."""

    def parted(x: Tensor) -> Tensor:
        batch, length, features = x.shape
        return x.reshape((batch, length, heads, features // heads)).transpose((0, 2, 1, 3))

    y = ops.scaled_dot_product_attention(parted(q), parted(k), parted(v), mask)
    return y.transpose((0, 2, 1, 3)).reshape(q.shape)


def _tokens(x: Tensor) -> Tensor:
    """The pixels of images (N, H, W, C) in a row: (N, H · W, C)."""
    return x.reshape((x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1]))


class Attention(Module):
    """Multi-head attention of tokens to each other, or to those of a context (Vaswani et al. 2017, §3.2.2).

    x: (N, T, features), context: (N, S, `context`), gives (N, T, features). Dense layers make queries from x, and keys
    and values from the context, or from x without one; their features are cut into `heads` equal parts, each of which
    attends by itself; a dense layer joins what they found. `ConfigError` if the features do not divide by the heads.

    >>> import minigan as mg
    >>> layer = mg.nn.Attention(8, heads=2, stream=mg.ops.Stream(0, "docs"))
    >>> layer(mg.ops.Stream(0, "tokens").normal((3, 5, 8))).shape
    (3, 5, 8)
    """

    def __init__(
        self,
        features: int,
        heads: int = 1,
        *,
        context: int | None = None,
        bias: bool = True,
        init: Initializer = glorot_uniform,
        stream: Stream,
        dtype: Any = np.float32,
    ) -> None:
        _check_heads("Attention", features, heads)

        def dense(name: str, inputs: int) -> Dense:
            return Dense(inputs, features, bias=bias, init=init, stream=stream.child(name), dtype=dtype)

        self.heads = heads
        self.query, self.key = dense("query", features), dense("key", context or features)
        self.value, self.out = dense("value", context or features), dense("out", features)

    def __call__(
        self,
        x: Tensor,
        *,
        train: bool = False,
        random: Stream | None = None,
        context: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """What each token found; `mask`, booleans that broadcast to (N, heads, T, S), tells where it may look."""
        seen = x if context is None else context
        if x.ndim != 3 or seen.ndim != 3:
            raise ShapeError(
                f"Attention: tokens of shapes {x.shape} and {seen.shape}, expected (N, T, features)"
            )
        return self.out(_attend(self.query(x), self.key(seen), self.value(seen), self.heads, mask))


class SelfAttention2d(Module):
    """Images to which is added what their pixels see in all others: x + gamma · o (Zhang et al. 2019, "SAGAN", §3).

    x: (N, H, W, channels) gives the same shape. o = v(softmax(f(x) g(x)ᵀ) h(x)), with 1 x 1 convolutions without bias:
    f and g to channels / 8, h to channels / 2, and v back. `gamma`, a scalar, begins at 0, so that the network first
    learns what is local.

    pool: keys and values are the largest of 2 by 2 pixels, a quarter as many, as in the paper's code; spectral_norm: of
    the four weights. `ConfigError` for fewer than 8 channels.

    >>> import minigan as mg
    >>> layer = mg.nn.SelfAttention2d(16, stream=mg.ops.Stream(0, "docs"))
    >>> x = mg.ops.Stream(0, "images").normal((2, 4, 4, 16))
    >>> bool((layer(x).numpy() == x.numpy()).all())  # as long as gamma is 0
    True
    """

    def __init__(
        self,
        channels: int,
        *,
        pool: bool = True,
        spectral_norm: bool = False,
        init: Initializer = glorot_uniform,
        stream: Stream,
        dtype: Any = np.float32,
    ) -> None:
        if channels < 8:
            raise ConfigError(
                f"SelfAttention2d: {channels} channels, but keys have an eighth of them: at least 8"
            )

        def pointwise(name: str, inputs: int, outputs: int) -> Module:
            layer = Dense(inputs, outputs, bias=False, init=init, stream=stream.child(name), dtype=dtype)
            return spectral(layer, spectral_norm)

        self.pool = pool
        self.query, self.key = (pointwise(name, channels, channels // 8) for name in ("query", "key"))
        self.value = pointwise("value", channels, channels // 2)
        self.out = pointwise("out", channels // 2, channels)
        self.gamma = Tensor(np.zeros((), dtype))

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """The images and what their pixels saw."""
        if x.ndim != 4:
            raise ShapeError(f"SelfAttention2d: x of shape {x.shape}, expected (N, H, W, channels)")
        q, k, v = (layer(x, train=train) for layer in (self.query, self.key, self.value))
        if self.pool:
            k, v = ops.max_pool(k, 2), ops.max_pool(v, 2)
        seen = ops.scaled_dot_product_attention(_tokens(q), _tokens(k), _tokens(v), scale=1.0)
        return x + self.gamma * self.out(seen.reshape((*x.shape[:-1], v.shape[-1])), train=train)


class ConvEmbedding(Module):
    """Tokens from images by a convolution with a stride, normalised (Wu et al. 2021, "CvT", §3.1).

    x: (N, H, W, inputs) gives (N, OH, OW, features), with OH = ceil(H / stride) for an odd kernel: the tokens keep
    their places, so that further convolutions find their neighbours.

    >>> import minigan as mg
    >>> layer = mg.nn.ConvEmbedding(1, 16, kernel=7, stride=4, stream=mg.ops.Stream(0, "docs"))
    >>> layer(mg.ops.Stream(0, "images").normal((2, 28, 28, 1))).shape
    (2, 7, 7, 16)
    """

    def __init__(
        self,
        inputs: int,
        features: int,
        *,
        kernel: int = 3,
        stride: PerAxis = 2,
        init: Initializer = glorot_uniform,
        stream: Stream,
        dtype: Any = np.float32,
    ) -> None:
        self.conv = Conv(
            inputs,
            features,
            kernel,
            stride=stride,
            padding=kernel // 2,
            init=init,
            stream=stream,
            dtype=dtype,
        )
        self.norm = LayerNorm(features, dtype=dtype)

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """The tokens."""
        return self.norm(self.conv(x))


class ConvAttention(Module):
    """Multi-head attention of pixels whose queries, keys and values are convolutions (Wu et al. 2021, "CvT", §3.2).

    x: (N, H, W, features) gives the same shape. Each of the three is a depth-wise `kernel` by `kernel` convolution
    without bias, batch normalisation if `batch_norm`, and a dense layer; those of keys and values have a stride, which
    makes them fewer. Otherwise as `Attention`. `ConfigError` for an even kernel, which has no middle, or features that
    do not divide by the heads.

    >>> import minigan as mg
    >>> layer = mg.nn.ConvAttention(8, heads=2, stream=mg.ops.Stream(0, "docs"))
    >>> layer(mg.ops.Stream(0, "images").normal((2, 6, 6, 8))).shape
    (2, 6, 6, 8)
    """

    def __init__(
        self,
        features: int,
        heads: int = 1,
        *,
        kernel: int = 3,
        stride: int = 2,
        batch_norm: bool = True,
        init: Initializer = glorot_uniform,
        stream: Stream,
        dtype: Any = np.float32,
    ) -> None:
        _check_heads("ConvAttention", features, heads)
        if kernel % 2 == 0:
            raise ConfigError(f"ConvAttention: kernel {kernel}: expected an odd number")

        def dense(name: str) -> Dense:
            return Dense(features, features, init=init, stream=stream.child(name), dtype=dtype)

        def projection(name: str, stride: int) -> Sequential:
            local = Conv(
                features,
                features,
                kernel,
                stride=stride,
                padding=kernel // 2,
                groups=features,
                bias=False,
                init=init,
                stream=stream.child(f"{name}/local"),
                dtype=dtype,
            )
            return Sequential(local, *[BatchNorm(features, dtype=dtype)] * batch_norm, dense(name))

        self.heads = heads
        self.query = projection("query", 1)
        self.key, self.value = projection("key", stride), projection("value", stride)
        self.out = dense("out")

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """What each pixel found."""
        q, k, v = (_tokens(part(x, train=train)) for part in (self.query, self.key, self.value))
        return self.out(_attend(q, k, v, self.heads).reshape(x.shape))
