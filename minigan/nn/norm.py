"""Normalisation of what layers compute, and of their weights."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigan import ops
from minigan.errors import ConfigError, ShapeError
from minigan.nn.module import ASSIGN, Conditional, Module, Weighted, required_labels
from minigan.ops.random import Stream
from minigan.tape import apply, no_grad
from minigan.tensor import Tensor


class _Statistics(Module):
    """The moments of each channel: the batch's in training, which running averages follow, and these otherwise."""

    buffers = ("running_mean", "running_variance")

    def __init__(self, channels: int, momentum: float, eps: float, dtype: Any) -> None:
        name = type(self).__name__
        if channels < 1 or not 0 <= momentum <= 1:
            raise ConfigError(
                f"{name}: {channels} channels and momentum {momentum}, expected from 1, and 0 to 1"
            )
        self.momentum, self.eps = momentum, eps
        self.running_mean = Tensor(np.zeros(channels, dtype))
        self.running_variance = Tensor(np.ones(channels, dtype))

    def _moments(self, x: Tensor, train: bool) -> tuple[Tensor, Tensor]:
        name, channels = type(self).__name__, self.running_mean.size
        if x.ndim < 2 or x.shape[-1] != channels:
            raise ShapeError(f"{name}: x of shape {x.shape}, expected (N, ..., {channels})")
        if not train:
            return self.running_mean, self.running_variance
        count = x.size // channels
        if count < 2:
            raise ShapeError(
                f"{name}: in training x of shape {x.shape} has {count} value a channel, at least 2 are needed"
            )
        mean, variance = ops.moments(x, range(x.ndim - 1))
        with no_grad():
            self._follow(self.running_mean, mean)
            self._follow(self.running_variance, variance * (count / (count - 1)))
        return mean, variance

    def _follow(self, running: Tensor, value: Tensor) -> None:
        apply(ASSIGN, running, running + self.momentum * (value - running))


class BatchNorm(_Statistics):
    """Each channel to mean 0 and variance 1 over the batch, times a scale, plus a shift (Ioffe and Szegedy 2015).

    x: (N, ..., channels), of any number of axes. In training the moments are the batch's, the mean and the variance
    Σ (x - mean)² / n, and running averages are moved by r ← (1 - momentum) r + momentum m, where m is the mean and, as
    in PyTorch, the unbiased variance, n / (n - 1) times as large; otherwise the running averages are the moments. They
    are buffers: `running_mean` from 0, `running_variance` from 1. A bias before this layer does nothing.

    affine: with `scale`, from 1, and `shift`, from 0, both (channels,). `ShapeError` in training for a single value a
    channel, which has no variance.

    >>> import minigan as mg
    >>> layer, x = mg.nn.BatchNorm(1), mg.tensor([[10.0], [14.0]])
    >>> layer(x, train=True).numpy().ravel().round(3)
    array([-1.,  1.], dtype=float32)
    >>> layer.running_mean.item(), layer.running_variance.item()  # 0.9 · 0 + 0.1 · 12 and 0.9 · 1 + 0.1 · 8
    (1.2000000476837158, 1.7000000476837158)
    """

    def __init__(
        self,
        channels: int,
        *,
        momentum: float = 0.1,
        eps: float = 1e-5,
        affine: bool = True,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(channels, momentum, eps, dtype)
        self.scale = Tensor(np.ones(channels, dtype)) if affine else None
        self.shift = Tensor(np.zeros(channels, dtype)) if affine else None

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """x normalised; in training the running averages move."""
        return ops.batch_norm(x, *self._moments(x, train), self.scale, self.shift, self.eps)


class ConditionalBatchNorm(_Statistics, Conditional):
    """Batch normalisation with a scale and a shift of each class (de Vries et al. 2017; Miyato and Koyama 2018).

    As `BatchNorm`, with `scale` and `shift` tables (classes, channels), whose row is that of a sample's label.
    `ConfigError` without labels.

    >>> import minigan as mg, numpy as np
    >>> layer, x = mg.nn.ConditionalBatchNorm(1, classes=10), mg.tensor([[10.0], [14.0]])
    >>> layer(x, train=True, labels=mg.tensor(np.array([3, 7]))).numpy().ravel().round(3)
    array([-1.,  1.], dtype=float32)
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        momentum: float = 0.1,
        eps: float = 1e-5,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(channels, momentum, eps, dtype)
        self.scale = Tensor(np.ones((classes, channels), dtype))
        self.shift = Tensor(np.zeros((classes, channels), dtype))

    def __call__(
        self, x: Tensor, *, train: bool = False, random: Stream | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """x normalised, by the labels' scales and shifts; in training the running averages move."""
        known = required_labels(self, x, labels)
        places = (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])
        scale, shift = (ops.embedding(table, known).reshape(places) for table in (self.scale, self.shift))
        return ops.batch_norm(x, *self._moments(x, train), scale, shift, self.eps)


class LayerNorm(Module):
    """Each sample's features to mean 0 and variance 1, times a scale, plus a shift (Ba, Kiros and Hinton 2016).

    shape: of the last axes, over which the moments are, and of `scale` and `shift`: a number for the last axis, such as
    the features of tokens, or (H, W, C) for whole images.

    >>> import minigan as mg
    >>> mg.nn.LayerNorm(2)(mg.tensor([[1.0, 3.0], [0.0, 40.0]])).numpy().round(3)
    array([[-1.,  1.],
           [-1.,  1.]], dtype=float32)
    """

    def __init__(
        self, shape: int | Sequence[int], *, eps: float = 1e-5, affine: bool = True, dtype: Any = np.float32
    ) -> None:
        self.shape, self.eps = tuple(shape) if isinstance(shape, Sequence) else (shape,), eps
        if min(self.shape, default=0) < 1:
            raise ConfigError(f"LayerNorm: shape {shape}: expected sizes from 1")
        self.scale = Tensor(np.ones(self.shape, dtype)) if affine else None
        self.shift = Tensor(np.zeros(self.shape, dtype)) if affine else None

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """x normalised; `ShapeError` for x of other last axes."""
        if x.shape[-len(self.shape) :] != self.shape:
            raise ShapeError(f"LayerNorm: x of shape {x.shape} does not end in {self.shape}")
        return ops.layer_norm(x, self.scale, self.shift, range(-len(self.shape), 0), self.eps)


class InstanceNorm(Module):
    """Each channel of each sample to mean 0 and variance 1, times a scale, plus a shift (Ulyanov et al. 2016).

    x: (N, ..., channels) with at least one axis between them. affine: as for `BatchNorm`; nothing else is learned or
    remembered.

    >>> import minigan as mg
    >>> mg.nn.InstanceNorm(1)(mg.tensor([[[1.0], [3.0]], [[0.0], [40.0]]])).numpy().round(3).reshape(2, 2)
    array([[-1.,  1.],
           [-1.,  1.]], dtype=float32)
    """

    def __init__(
        self, channels: int, *, eps: float = 1e-5, affine: bool = True, dtype: Any = np.float32
    ) -> None:
        self.eps = eps
        self.scale = Tensor(np.ones(channels, dtype)) if affine else None
        self.shift = Tensor(np.zeros(channels, dtype)) if affine else None

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """x normalised."""
        return ops.instance_norm(x, self.scale, self.shift, self.eps)


class PixelNorm(Module):
    """The channels of each pixel to mean square 1 (Karras et al. 2018, §4.2).

    >>> import minigan as mg
    >>> mg.nn.PixelNorm()(mg.tensor([[1.0, 7.0]])).numpy()
    array([[0.2, 1.4]], dtype=float32)
    """

    def __init__(self, eps: float = 1e-8) -> None:
        self.eps = eps

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """x normalised."""
        return ops.pixel_norm(x, self.eps)


class MinibatchStdDev(Module):
    """The samples and how much they differ, as one channel more (Karras et al. 2018, §3).

    x: (N, ..., C) gives (N, ..., C + channels). In groups of `group` samples (all, if there are fewer), the standard
    deviation of each value over the group, averaged over all pixels and over the parts that the channels are divided
    into, one for each new channel. `ShapeError` for a batch that is no multiple of the group.

    >>> import minigan as mg
    >>> mg.nn.MinibatchStdDev()(mg.tensor([[1.0, 1.0], [3.0, 7.0]])).numpy()
    array([[1., 1., 2.],
           [3., 7., 2.]], dtype=float32)
    """

    def __init__(self, group: int = 4, channels: int = 1, eps: float = 1e-8) -> None:
        if group < 1 or channels < 1:
            raise ConfigError(
                f"MinibatchStdDev: group {group} and {channels} channels: both must be at least 1"
            )
        self.group, self.channels, self.eps = group, channels, eps

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """x with the new channels."""
        batch, *pixels, channels = x.shape
        size = min(self.group, batch)
        if not size or batch % size or channels % self.channels:
            raise ShapeError(
                f"MinibatchStdDev: x of shape {x.shape} does not divide into groups of {size} samples and"
                f" {self.channels} parts of channels"
            )
        parts = (size, batch // size, math.prod(pixels), self.channels, channels // self.channels)
        _, variance = ops.moments(x.reshape(parts), 0)
        spread = ops.sqrt(variance + self.eps).mean((1, 3))  # (groups, new channels)
        places = (1, batch // size, *(1,) * len(pixels), self.channels)
        filled = ops.broadcast_to(spread.reshape(places), (size, batch // size, *pixels, self.channels))
        return ops.concatenate([x, filled.reshape((batch, *pixels, self.channels))], axis=x.ndim - 1)


WARM_UP = 15  # iterations before the first step, so that training begins with a weight of about norm 1


class SpectralNorm(Module):
    """A layer with its weight divided by the weight's largest singular value σ (Miyato et al. 2018, Algorithm 1).

    module: one with a weight, such as `Dense`, `Conv` or `Embedding`. The weight is taken as a matrix M whose columns
    are its last axis: of a convolution the outputs, of a transposed one the inputs, so that its σ is that of the
    convolution whose adjoint it is.

    σ = vᵀ M u, where v and u come from power iteration: v ← M u / |M u|, then u ← Mᵀ v / |Mᵀ v|, `iterations` times a
    call. They are constants to the derivative, ∂σ/∂M = v uᵀ. The buffer `u` remembers u; only training changes it.
    `ConfigError` for another module, or a weight without a largest singular value (zeros, NaN).

    >>> import minigan as mg, numpy as np
    >>> layer = mg.nn.SpectralNorm(mg.nn.Dense(20, 10, bias=False, stream=mg.ops.Stream(0, "docs")))
    >>> w = layer(mg.tensor(np.eye(20, dtype=np.float32))).numpy()
    >>> bool(abs(np.linalg.norm(w, 2) - 1) < 0.01)
    True
    """

    buffers = ("u",)

    def __init__(self, module: Weighted, *, iterations: int = 1) -> None:
        if not isinstance(module, Weighted) or iterations < 1:
            raise ConfigError(
                f"SpectralNorm: {type(module).__name__} with {iterations} iterations: expected a module with a weight,"
                " such as Dense or Conv, and at least 1"
            )
        self.module, self.iterations = module, iterations
        weight = module.weight.array
        matrix = weight.reshape(-1, weight.shape[-1]).astype(np.float64)
        if not np.isfinite(matrix).all() or not matrix.any():
            raise ConfigError(
                f"SpectralNorm: a weight of shape {weight.shape} of zeros, or with NaN or infinities"
            )
        u = matrix[
            np.argmax(np.square(matrix).sum(1))
        ]  # in the space of the rows, where the vector that is sought is too
        for _ in range(WARM_UP):
            u = matrix.T @ (matrix @ (u / np.linalg.norm(u)))
        self.u = Tensor((u / np.linalg.norm(u)).astype(weight.dtype))

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """The module's output with the weight W / σ; in training `u` moves."""
        weight = self.module.weight
        matrix = weight.reshape(-1, weight.shape[-1])
        with no_grad():
            u = self.u
            for _ in range(self.iterations - 1):
                u = _unit(_unit(matrix @ u) @ matrix)
            v = _unit(matrix @ u)
        back = v @ matrix
        with no_grad():
            u = _unit(back)
            if train:
                apply(ASSIGN, self.u, u)
        return self.module.with_weight(x, weight / ops.sum(back * u))


def _unit(x: Tensor) -> Tensor:
    return x / ops.norm(x)


def spectral(module: Weighted, on: bool) -> Module:
    """The module, with spectral normalisation if that is `on`."""
    return SpectralNorm(module) if on else module
