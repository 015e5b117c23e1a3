"""Pooling and upsampling of images (N, H, W, C) and sequences (N, W, C).

All are compositions of other operations, and so have derivatives of any order.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from minigan.backend import Array, moved
from minigan.errors import ConfigError, ShapeError
from minigan.ops.conv import (
    AXES,
    Padding,
    Pair,
    PerAxis,
    conv,
    conv_transpose,
    output_size,
    paddings,
    per_axis,
    same_totals,
    spatial,
)
from minigan.ops.reduce import max
from minigan.ops.shape import concatenate, pad, stack
from minigan.tensor import Tensor, TensorLike, broadcast_to, lift, mean


class _Pool(NamedTuple):
    """The windows of a pooling: an entry for each spatial axis."""

    window: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[Pair, ...]
    outputs: tuple[int, ...]


def _pool(name: str, x: Array, window: PerAxis, stride: PerAxis | None, padding: Padding) -> _Pool:
    sizes = spatial(name, x)
    axes = len(sizes)
    kernel = per_axis(name, "window", window, axes)
    steps = kernel if stride is None else per_axis(name, "stride", stride, axes)
    pads = paddings(name, padding, same_totals(sizes, kernel, steps, (1,) * axes))
    outputs = []
    for axis, n, k, s, both in zip(AXES[-axes:], sizes, kernel, steps, pads, strict=True):
        if n == 0 or np.max(both) >= k:
            raise ShapeError(
                f"{name}: {axis} {n} + padding {both[0]} + {both[1]}: a window of {k} could lie in the padding alone"
            )
        outputs.append(output_size(name, axis, n, k, s, both))
    return _Pool(kernel, steps, pads, tuple(outputs))


def _tiled(x: Tensor, at: _Pool, reduce: Callable[[Tensor, Sequence[int]], Tensor]) -> Tensor:
    """Reduce windows that lie side by side: (N, H, W, C) is (N, OH, kh, OW, kw, C), but for what is left over."""
    used = tuple(slice(n * k) for n, k in zip(at.outputs, at.window, strict=True))
    split = itertools.chain.from_iterable(zip(at.outputs, at.window, strict=True))
    tiles = x[(slice(None), *used)].reshape((x.shape[0], *split, x.shape[-1]))
    return reduce(tiles, range(2, 1 + 2 * len(at.window), 2))


def _every_channel(kernel: Array, x: Tensor) -> Tensor:
    """The weights of a convolution that does the same to every channel of x, in groups of one."""
    channels = x.shape[-1]
    return Tensor(moved(np.repeat(kernel[..., None, None], channels, -1).astype(x.dtype), x.device))


def avg_pool(x: TensorLike, window: PerAxis, stride: PerAxis | None = None, padding: Padding = 0) -> Tensor:
    """The mean over windows of each channel; padding does not count, so a constant image stays constant.

    x: (N, H, W, C) or (N, W, C); `window`, `stride` (the window by default) and `padding` as for `conv`, a number or
    one for each spatial axis; result (N, OH, OW, C), OH = (H + padding - window) // stride + 1. `ShapeError` for what
    does not fit, or a padding as large as the window; `DTypeError` for integers.

    >>> import minigan as mg
    >>> x = mg.tensor([[[1.0], [3.0], [5.0], [9.0]]])
    >>> mg.ops.avg_pool(x, 2).numpy().ravel(), mg.ops.avg_pool(x, 3, stride=1, padding="SAME").numpy().ravel()
    (array([2., 7.], dtype=float32), array([2.       , 3.       , 5.6666665, 7.       ], dtype=float32))
    """
    x = lift(x)
    at = _pool("avg_pool", x.array, window, stride, padding)
    padded = any(itertools.chain(*at.pads))
    if at.stride == at.window and not padded:
        return _tiled(x, at, mean)
    ones = _every_channel(np.ones(at.window), x)
    sums = conv(x, ones, stride=at.stride, padding=at.pads, groups=x.shape[-1])
    if not padded:
        return sums / math.prod(at.window)
    counts = []
    for n, k, s, (before, _), outputs in zip(x.shape[1:-1], *at, strict=True):
        starts = np.arange(outputs) * s - before
        counts.append(np.minimum(starts + k, n) - np.maximum(starts, 0))
    pixels = functools.reduce(np.multiply.outer, counts)[..., None]
    return sums / Tensor(moved(pixels.astype(x.dtype), x.device))


def max_pool(x: TensorLike, window: PerAxis, stride: PerAxis | None = None, padding: Padding = 0) -> Tensor:
    """The largest value in windows of each channel; NaN if one is. Tied elements share the derivative equally.

    Arguments, shapes and errors as for `avg_pool`; padding is never the largest.

    >>> import minigan as mg
    >>> x = mg.tensor([[[1.0], [3.0], [5.0], [2.0]]])
    >>> mg.ops.max_pool(x, 2).numpy().ravel(), mg.ops.max_pool(x, 3, stride=1, padding="SAME").numpy().ravel()
    (array([3., 5.], dtype=float32), array([3., 5., 5., 5.], dtype=float32))
    """
    x = lift(x)
    at = _pool("max_pool", x.array, window, stride, padding)
    if any(itertools.chain(*at.pads)):
        x = pad(x, ((0, 0), *at.pads, (0, 0)), -math.inf)
    if at.stride == at.window:
        return _tiled(x, at, max)
    parts = []
    for offsets in np.ndindex(at.window):
        axes = zip(offsets, at.outputs, at.stride, strict=True)
        parts.append(x[(slice(None), *(slice(k, k + (n - 1) * s + 1, s) for k, n, s in axes))])
    return max(stack(parts), 0)


def upsample(x: TensorLike, scale: PerAxis, mode: str = "nearest") -> Tensor:
    """Images enlarged by integer factors: each pixel repeated, or interpolated linearly along each axis.

    x: (N, H, W, C) or (N, W, C); `scale`: one factor, or one for each spatial axis; result (N, H scale, W scale, C).
    `mode` is "nearest" or "bilinear", else `ConfigError`; bilinear takes pixels as squares with the value at their
    centre (half-pixel centres, corners not aligned), and the outermost value beyond the outermost centre.

    >>> import minigan as mg
    >>> x = mg.tensor([[[0.0], [4.0]]])
    >>> mg.ops.upsample(x, 2).numpy().ravel(), mg.ops.upsample(x, 2, "bilinear").numpy().ravel()
    (array([0., 0., 4., 4.], dtype=float32), array([0., 1., 3., 4.], dtype=float32))
    """
    x = lift(x)
    sizes = spatial("upsample", x.array)
    scales = per_axis("upsample", "scale", scale, len(sizes))
    if mode == "nearest":
        batch, channels = x.shape[0], x.shape[-1]
        once = [n for size in sizes for n in (size, 1)]
        often = [n for pair in zip(sizes, scales, strict=True) for n in pair]
        repeated = broadcast_to(x.reshape((batch, *once, channels)), (batch, *often, channels))
        return repeated.reshape((batch, *(n * s for n, s in zip(sizes, scales, strict=True)), channels))
    if mode != "bilinear":
        raise ConfigError(f'upsample: mode {mode!r}: expected "nearest" or "bilinear"')
    # A tent over every pixel, of height 1 at its centre and 0 at its neighbours': a transposed convolution. The
    # outermost pixels are repeated once, and what these enlarge to is cut off.
    tents, cut = [], []
    for axis, s in enumerate(scales, start=1):
        taps = 2 * s - s % 2
        tents.append(1 - np.abs(np.arange(taps) - (taps - 1) / 2) / s)
        cut.append((taps - s) // 2 + s)
        ends = [x[(slice(None),) * axis + (end,)] for end in (slice(1), slice(-1, None))]
        x = concatenate([ends[0], x, ends[1]], axis)
    weights = _every_channel(functools.reduce(np.multiply.outer, tents), x)
    return conv_transpose(x, weights, stride=scales, padding=cut, groups=x.shape[-1])


def pixel_shuffle(x: TensorLike, factor: PerAxis) -> Tensor:
    """Channels spread over space: f² numbers of each pixel become a square of f by f pixels (Shi et al. 2016, eq. 4).

    x: (N, H, W, C f²) or (N, W, C f), the f² channels of each result channel together and row by row; result
    (N, H f, W f, C). `factor`: f, or one for each spatial axis. `ShapeError` if the channels do not divide.

    >>> import minigan as mg
    >>> mg.ops.pixel_shuffle(mg.tensor([[[1.0, 2.0], [3.0, 4.0]]]), 2).numpy()
    array([[[1.],
            [2.],
            [3.],
            [4.]]], dtype=float32)
    """
    x = lift(x)
    sizes = spatial("pixel_shuffle", x.array)
    axes = len(sizes)
    factors = per_axis("pixel_shuffle", "factor", factor, axes)
    parts = math.prod(factors)
    if x.shape[-1] % parts:
        raise ShapeError(f"pixel_shuffle: {x.shape[-1]} channels do not divide by {parts}")
    channels = x.shape[-1] // parts
    split = x.reshape((x.shape[0], *sizes, channels, *factors))
    # (N, H, W, C, f, f) to (N, H, f, W, f, C)
    order = [0, *(a for k in range(1, axes + 1) for a in (k, k + axes + 1)), axes + 1]
    shape = (x.shape[0], *(n * f for n, f in zip(sizes, factors, strict=True)), channels)
    return split.transpose(order).reshape(shape)
