"""Blocks with a shortcut, of which deep networks are made: x + f(x)."""

from typing import Any

import numpy as np

from minigan import ops
from minigan.nn.attention import Attention, ConvAttention
from minigan.nn.conv import Conv
from minigan.nn.init import Initializer, glorot_uniform
from minigan.nn.layers import Activation, Dense, Sequential
from minigan.nn.module import Conditional, Module, forward
from minigan.nn.norm import BatchNorm, ConditionalBatchNorm, LayerNorm, spectral
from minigan.ops.random import Stream
from minigan.tensor import Tensor


class _Transformer(Module):
    """y = x + attention(norm(x)), then y + mlp(norm(y)), on the last axis."""

    def __init__(
        self,
        attention: Module,
        features: int,
        hidden: int | None,
        init: Initializer,
        stream: Stream,
        dtype: Any,
    ) -> None:
        wide = 4 * features if hidden is None else hidden
        self.attention = attention
        self.norms = [LayerNorm(features, dtype=dtype), LayerNorm(features, dtype=dtype)]
        self.mlp = Sequential(
            Dense(features, wide, init=init, stream=stream.child("mlp/in"), dtype=dtype),
            Activation("gelu"),
            Dense(wide, features, init=init, stream=stream.child("mlp/out"), dtype=dtype),
        )

    def _add_mlp(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norms[1](x))

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """The output, in the shape of x."""
        return self._add_mlp(x + self.attention(self.norms[0](x), train=train))


class TransformerBlock(_Transformer):
    """A transformer's layer on tokens (N, T, features): attention, then a dense network, each with a shortcut.

    y = x + attention(norm(x)), z = y + W₂ gelu(W₁ norm(y)), normalised before and not after (Xiong et al. 2020, §3.1);
    `hidden` features between W₁ and W₂, by default 4 · features. Otherwise as `Attention`.

    >>> import minigan as mg
    >>> block = mg.nn.TransformerBlock(8, heads=2, stream=mg.ops.Stream(0, "docs"))
    >>> block(mg.ops.Stream(0, "tokens").normal((3, 5, 8))).shape
    (3, 5, 8)
    """

    attention: Attention

    def __init__(
        self,
        features: int,
        heads: int = 1,
        *,
        hidden: int | None = None,
        init: Initializer = glorot_uniform,
        stream: Stream,
        dtype: Any = np.float32,
    ) -> None:
        attention = Attention(features, heads, init=init, stream=stream.child("attention"), dtype=dtype)
        super().__init__(attention, features, hidden, init, stream, dtype)

    def __call__(
        self,
        x: Tensor,
        *,
        train: bool = False,
        random: Stream | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The tokens' new features; `mask` as for `Attention`."""
        return self._add_mlp(x + self.attention(self.norms[0](x), mask=mask))


class ConvTransformerBlock(_Transformer):
    """A transformer's layer on images (N, H, W, features) whose attention is convolutional (Wu et al. 2021, Fig. 2).

    As `TransformerBlock`, with `ConvAttention`, whose settings `kernel`, `stride` and `batch_norm` are.

    >>> import minigan as mg
    >>> block = mg.nn.ConvTransformerBlock(8, heads=2, stream=mg.ops.Stream(0, "docs"))
    >>> block(mg.ops.Stream(0, "images").normal((2, 6, 6, 8))).shape
    (2, 6, 6, 8)
    """

    def __init__(
        self,
        features: int,
        heads: int = 1,
        *,
        hidden: int | None = None,
        kernel: int = 3,
        stride: int = 2,
        batch_norm: bool = True,
        init: Initializer = glorot_uniform,
        stream: Stream,
        dtype: Any = np.float32,
    ) -> None:
        attention = ConvAttention(
            features,
            heads,
            kernel=kernel,
            stride=stride,
            batch_norm=batch_norm,
            init=init,
            stream=stream.child("attention"),
            dtype=dtype,
        )
        super().__init__(attention, features, hidden, init, stream, dtype)


class GeneratorBlock(Conditional):
    """A residual block that enlarges: x (N, H, W, inputs) gives (N, H upsample, W upsample, outputs).

    norm, ReLU, nearest upsampling, 3 x 3 convolution, norm, ReLU, 3 x 3 convolution; the shortcut is upsampled and,
    where its shape changes, goes through a 1 x 1 convolution (Gulrajani et al. 2017, App. F; Miyato et al. 2018, App.
    B.4). The norms are `BatchNorm`, or `ConditionalBatchNorm` with `classes`; with `spectral_norm` the weights are
    normalised too (Zhang et al. 2019).

    >>> import minigan as mg
    >>> block = mg.nn.GeneratorBlock(4, 2, stream=mg.ops.Stream(0, "docs"))
    >>> block(mg.ops.Stream(0, "images").normal((2, 7, 7, 4)), train=True).shape
    (2, 14, 14, 2)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        upsample: int = 2,
        classes: int | None = None,
        spectral_norm: bool = False,
        init: Initializer = glorot_uniform,
        stream: Stream,
        dtype: Any = np.float32,
    ) -> None:
        def norm(channels: int) -> Module:
            if classes is None:
                return BatchNorm(channels, dtype=dtype)
            return ConditionalBatchNorm(channels, classes, dtype=dtype)

        def conv(name: str, inputs: int, kernel: int, bias: bool = True) -> Module:
            return _conv(name, inputs, outputs, kernel, bias, spectral_norm, init, stream, dtype)

        self.upsample = upsample
        self.norms = [norm(inputs), norm(outputs)]
        self.convs = [conv("conv0", inputs, 3, bias=False), conv("conv1", outputs, 3)]
        self.shortcut = conv("shortcut", inputs, 1) if inputs != outputs or upsample > 1 else None

    def __call__(
        self, x: Tensor, *, train: bool = False, random: Stream | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """The larger images."""

        def normed(k: int, x: Tensor) -> Tensor:
            return ops.relu(forward(self.norms[k], x, train=train, random=random, labels=labels))

        y = self.convs[0](self._larger(normed(0, x)), train=train)
        y = self.convs[1](normed(1, y), train=train)
        # Before the upsampling, with which it commutes, a 1 x 1 convolution has fewer pixels to compute.
        return y + self._larger(x if self.shortcut is None else self.shortcut(x, train=train))

    def _larger(self, x: Tensor) -> Tensor:
        return x if self.upsample == 1 else ops.upsample(x, self.upsample)


class DiscriminatorBlock(Module):
    """A residual block that shrinks: x (N, H, W, inputs) gives (N, H / downsample, W / downsample, outputs).

    ReLU, 3 x 3 convolution, ReLU, 3 x 3 convolution, mean pooling; the shortcut is pooled and, where its shape changes,
    goes through a 1 x 1 convolution (Miyato et al. 2018, App. B.4). No normalisation, but for that of the weights with
    `spectral_norm`. `first`: for images, without the first ReLU.

    >>> import minigan as mg
    >>> block = mg.nn.DiscriminatorBlock(1, 4, first=True, spectral_norm=True, stream=mg.ops.Stream(0, "docs"))
    >>> block(mg.ops.Stream(0, "images").normal((2, 14, 14, 1)), train=True).shape
    (2, 7, 7, 4)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        downsample: int = 2,
        first: bool = False,
        spectral_norm: bool = False,
        init: Initializer = glorot_uniform,
        stream: Stream,
        dtype: Any = np.float32,
    ) -> None:
        def conv(name: str, inputs: int, outputs: int, kernel: int) -> Module:
            return _conv(name, inputs, outputs, kernel, True, spectral_norm, init, stream, dtype)

        between = outputs if first else inputs
        self.downsample, self.first = downsample, first
        self.convs = [conv("conv0", inputs, between, 3), conv("conv1", between, outputs, 3)]
        self.shortcut = conv("shortcut", inputs, outputs, 1) if inputs != outputs or downsample > 1 else None

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """The smaller images."""
        y = self.convs[0](x if self.first else ops.relu(x), train=train)
        y = self._smaller(self.convs[1](ops.relu(y), train=train))
        # After the pooling, with which it commutes, a 1 x 1 convolution has fewer pixels to compute.
        x = self._smaller(x)
        return y + (x if self.shortcut is None else self.shortcut(x, train=train))

    def _smaller(self, x: Tensor) -> Tensor:
        return x if self.downsample == 1 else ops.avg_pool(x, self.downsample)


def _conv(
    name: str,
    inputs: int,
    outputs: int,
    kernel: int,
    bias: bool,
    spectral_norm: bool,
    init: Initializer,
    stream: Stream,
    dtype: Any,
) -> Module:
    layer = Conv(
        inputs,
        outputs,
        kernel,
        padding=kernel // 2,
        bias=bias,
        init=init,
        stream=stream.child(name),
        dtype=dtype,
    )
    return spectral(layer, spectral_norm)
