"""Convolutions, transposed convolutions, pooling and upsampling of images (N, H, W, C) and sequences (N, W, C)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minigan import ops
from minigan.errors import ConfigError, ShapeError
from minigan.nn.init import Initializer, glorot_uniform
from minigan.nn.module import Module, Weighted, parameter
from minigan.ops.conv import Padding, PerAxis
from minigan.ops.random import Stream
from minigan.tensor import Tensor


def _window(name: str, inputs: int, outputs: int, kernel: PerAxis, groups: int) -> tuple[int, ...]:
    """The sizes of the kernel; `ConfigError` for numbers that make no layer."""
    window = tuple(kernel) if isinstance(kernel, Sequence) else (kernel, kernel)
    if min(inputs, outputs, groups, *window) < 1 or inputs % groups or outputs % groups:
        raise ConfigError(
            f"{name}: {inputs} inputs and {outputs} outputs in {groups} groups with a kernel {kernel}: all must be at"
            " least 1, and inputs and outputs multiples of the groups"
        )
    return window


class Conv(Weighted):
    """A convolution with a bias: x (N, H, W, inputs) gives (N, OH, OW, outputs), sizes as for `minigan.ops.conv`.

    kernel: its height and width, one number if they are equal; (k,) for sequences (N, W, inputs). stride, padding,
    dilation, groups: see `minigan.ops.conv`. weight: (kh, kw, inputs / groups, outputs), drawn by `init` from `stream`;
    bias: (outputs,), zeros, or `None` without. `ConfigError` for numbers that make no layer.

    >>> import minigan as mg
    >>> layer = mg.nn.Conv(1, 8, 4, stride=2, padding=1, stream=mg.ops.Stream(0, "docs"))
    >>> layer(mg.ops.Stream(0, "images").normal((2, 28, 28, 1))).shape
    (2, 14, 14, 8)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: PerAxis,
        *,
        stride: PerAxis = 1,
        padding: Padding = 0,
        dilation: PerAxis = 1,
        groups: int = 1,
        bias: bool = True,
        init: Initializer = glorot_uniform,
        stream: Stream,
        dtype: Any = np.float32,
    ) -> None:
        window = _window("Conv", inputs, outputs, kernel, groups)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.weight = parameter(init(stream, (*window, inputs // groups, outputs), dtype))
        self.bias = Tensor(np.zeros(outputs, dtype)) if bias else None

    def with_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution with another weight."""
        y = ops.conv(x, weight, self.stride, self.padding, self.dilation, self.groups)
        return y if self.bias is None else y + self.bias


class ConvTranspose(Weighted):
    """A transposed convolution with a bias: x (N, H, W, inputs) gives (N, OH, OW, outputs), larger by the stride.

    Settings as for `Conv`, and `output_padding`; sizes as for `minigan.ops.conv_transpose`. weight: (kh, kw,
    outputs / groups, inputs), that of the convolution whose adjoint this is. `init` draws it in the shape (kh, kw,
    inputs, outputs / groups), so that inputs and outputs are the layer's own.

    >>> import minigan as mg
    >>> layer = mg.nn.ConvTranspose(8, 1, 4, stride=2, padding=1, stream=mg.ops.Stream(0, "docs"))
    >>> layer(mg.ops.Stream(0, "images").normal((2, 14, 14, 8))).shape
    (2, 28, 28, 1)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: PerAxis,
        *,
        stride: PerAxis = 1,
        padding: Padding = 0,
        output_padding: PerAxis = 0,
        dilation: PerAxis = 1,
        groups: int = 1,
        bias: bool = True,
        init: Initializer = glorot_uniform,
        stream: Stream,
        dtype: Any = np.float32,
    ) -> None:
        window = _window("ConvTranspose", inputs, outputs, kernel, groups)
        self.stride, self.padding, self.output_padding = stride, padding, output_padding
        self.dilation, self.groups = dilation, groups
        drawn = init(stream, (*window, inputs, outputs // groups), dtype)
        self.weight = parameter(drawn.mT)
        self.bias = Tensor(np.zeros(outputs, dtype)) if bias else None

    def with_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """The transposed convolution with another weight."""
        y = ops.conv_transpose(
            x, weight, self.stride, self.padding, self.output_padding, self.dilation, self.groups
        )
        return y if self.bias is None else y + self.bias


class AvgPool(Module):
    """The mean over windows, by default side by side: see `minigan.ops.avg_pool`.

    >>> import minigan as mg
    >>> mg.nn.AvgPool(2)(mg.tensor([[[1.0], [3.0], [5.0], [9.0]]])).numpy().ravel()
    array([2., 7.], dtype=float32)
    """

    def __init__(self, window: PerAxis, stride: PerAxis | None = None, padding: Padding = 0) -> None:
        self.window, self.stride, self.padding = window, stride, padding

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """The means."""
        return ops.avg_pool(x, self.window, self.stride, self.padding)


class MaxPool(Module):
    """The largest value of windows, by default side by side: see `minigan.ops.max_pool`.

    >>> import minigan as mg
    >>> mg.nn.MaxPool(2)(mg.tensor([[[1.0], [3.0], [5.0], [9.0]]])).numpy().ravel()
    array([3., 9.], dtype=float32)
    """

    def __init__(self, window: PerAxis, stride: PerAxis | None = None, padding: Padding = 0) -> None:
        self.window, self.stride, self.padding = window, stride, padding

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """The largest values."""
        return ops.max_pool(x, self.window, self.stride, self.padding)


class GlobalPool(Module):
    """The mean, or the sum, of each channel over all pixels: x (N, H, W, C) gives (N, C).

    mode: "mean" or "sum" (as in the discriminators of Miyato et al. 2018), else `ConfigError`.

    >>> import minigan as mg
    >>> mg.nn.GlobalPool("sum")(mg.tensor([[[1.0], [3.0], [5.0], [9.0]]])).numpy()
    array([[18.]], dtype=float32)
    """

    def __init__(self, mode: str = "mean") -> None:
        if mode not in ("mean", "sum"):
            raise ConfigError(f'GlobalPool: mode {mode!r}: expected "mean" or "sum"')
        self.mode = mode

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """The means or the sums."""
        if x.ndim < 3:
            raise ShapeError(f"GlobalPool: x of shape {x.shape} has no pixels")
        pixels = tuple(range(1, x.ndim - 1))
        return x.sum(pixels) if self.mode == "sum" else x.mean(pixels)


class Upsample(Module):
    """Images enlarged by an integer factor, "nearest" or "bilinear": see `minigan.ops.upsample`.

    >>> import minigan as mg
    >>> mg.nn.Upsample(2)(mg.tensor([[[1.0], [3.0]]])).numpy().ravel()
    array([1., 1., 3., 3.], dtype=float32)
    """

    def __init__(self, scale: PerAxis = 2, mode: str = "nearest") -> None:
        self.scale, self.mode = scale, mode

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """The larger images."""
        return ops.upsample(x, self.scale, self.mode)


class PixelShuffle(Module):
    """Channels spread over space: see `minigan.ops.pixel_shuffle`.

    >>> import minigan as mg
    >>> mg.nn.PixelShuffle(2)(mg.ops.Stream(0, "images").normal((2, 7, 7, 12))).shape
    (2, 14, 14, 3)
    """

    def __init__(self, factor: PerAxis = 2) -> None:
        self.factor = factor

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """The larger images, with fewer channels."""
        return ops.pixel_shuffle(x, self.factor)
