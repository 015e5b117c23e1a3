"""Normalisation: to zero mean and unit variance over a batch, a sample's features or its places, or to unit length.

All are compositions of other operations, so derivatives of any order follow, and in a compiled step their pointwise
parts and sums become a few loops. The variance is that of the population, Σ (x - mean)² / n, from the centred values:
E x² - (E x)² would lose the digits that a large mean shares. `scale` and `shift` may be left out; they broadcast
to x. float32 or float64, else `DTypeError`.
"""

import math

import numpy as np

from minigan.errors import ShapeError
from minigan.linear import Axis, axes_of
from minigan.ops.elementwise import sqrt
from minigan.tensor import Tensor, TensorLike, lift, mean as mean_of


def moments(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> tuple[Tensor, Tensor]:
    """The mean and the population variance over axes, the variance from the centred values.

    `ShapeError` over no elements.

    >>> import minigan as mg
    >>> mean, variance = mg.ops.moments(mg.tensor([[1.0, 2.0], [3.0, 6.0]]), axis=0)
    >>> mean.numpy(), variance.numpy()
    (array([2., 4.], dtype=float32), array([1., 4.], dtype=float32))
    """
    x = lift(x)
    axes = axes_of("moments", axis, x.ndim)
    if not math.prod(x.shape[a] for a in axes):
        raise ShapeError(f"moments: shape {x.shape} has no elements along axes {axes}")
    mean = mean_of(x, axes, keepdims=True)
    centred = x - mean
    variance = mean_of(centred * centred, axes, keepdims)
    kept = tuple(n for a, n in enumerate(x.shape) if a not in axes)
    return mean if keepdims else mean.reshape(kept), variance


def batch_norm(
    x: TensorLike,
    mean: TensorLike,
    variance: TensorLike,
    scale: TensorLike | None = None,
    shift: TensorLike | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) · scale + shift, with the moments of each channel (Ioffe and Szegedy 2015).

    x: (N, ..., C); mean, variance, scale, shift: (C,), or any shape that broadcasts to x, else `ShapeError`. In
    training the moments are the batch's, `moments(x, axis=(0, 1, 2))` for images, and derivatives pass through them; in
    evaluation they are constants.

    >>> import minigan as mg
    >>> x = mg.tensor([[1.0, 2.0], [3.0, 6.0]])
    >>> mg.ops.batch_norm(x, *mg.ops.moments(x, axis=0)).numpy().round(3)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    """
    x, mean, variance = lift(x), lift(mean), lift(variance)
    _check_fit("batch_norm", x, mean=mean, variance=variance, scale=scale, shift=shift)
    # First what is small: the factor is one number a channel, and each element is multiplied once.
    y = (x - mean) * ((1.0 if scale is None else scale) / sqrt(variance + eps))
    return y if shift is None else y + shift


def layer_norm(
    x: TensorLike,
    scale: TensorLike | None = None,
    shift: TensorLike | None = None,
    axis: Axis = -1,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) · scale + shift, with moments over `axis` (Ba, Kiros and Hinton 2016).

    x: (..., D) for the default axis, and scale and shift (D,). `ShapeError` for those that do not broadcast to x.

    >>> import minigan as mg
    >>> mg.ops.layer_norm(mg.tensor([[1.0, 3.0], [0.0, 4.0]]), shift=[10.0, 0.0]).numpy().round(3)
    array([[9., 1.],
           [9., 1.]], dtype=float32)
    """
    x = lift(x)
    return _normalized("layer_norm", x, axes_of("layer_norm", axis, x.ndim), scale, shift, eps)


def instance_norm(
    x: TensorLike, scale: TensorLike | None = None, shift: TensorLike | None = None, eps: float = 1e-5
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) · scale + shift, with the moments of each channel of each sample.

    x: (N, H, W, C), or any number of axes between N and C; scale, shift: (C,). Ulyanov, Vedaldi and Lempitsky 2016.
    `ShapeError` without an axis between N and C.

    >>> import minigan as mg
    >>> mg.ops.instance_norm(mg.tensor([[[1.0], [3.0]], [[0.0], [40.0]]])).numpy().round(3).reshape(2, 2)
    array([[-1.,  1.],
           [-1.,  1.]], dtype=float32)
    """
    x = lift(x)
    if x.ndim < 3:
        raise ShapeError(f"instance_norm: shape {x.shape} has no axes between samples and channels")
    return _normalized("instance_norm", x, tuple(range(1, x.ndim - 1)), scale, shift, eps)


def pixel_norm(x: TensorLike, eps: float = 1e-8) -> Tensor:
    """x / sqrt(mean of x² over the channels + eps), for x (..., C) (Karras et al. 2018, §4.2).

    >>> import minigan as mg
    >>> mg.ops.pixel_norm(mg.tensor([[1.0, 7.0]])).numpy()
    array([[0.2, 1.4]], dtype=float32)
    """
    x = lift(x)
    return x / sqrt(mean_of(x * x, -1, keepdims=True) + eps)


def _normalized(
    name: str,
    x: Tensor,
    axes: tuple[int, ...],
    scale: TensorLike | None,
    shift: TensorLike | None,
    eps: float,
) -> Tensor:
    _check_fit(name, x, scale=scale, shift=shift)
    mean, variance = moments(x, axes, keepdims=True)
    y = (x - mean) * (1.0 / sqrt(variance + eps))
    y = y if scale is None else y * scale
    return y if shift is None else y + shift


def _check_fit(name: str, x: Tensor, **parameters: TensorLike | None) -> None:
    """Raise `ShapeError` for a parameter that does not broadcast to x."""
    for what, p in parameters.items():
        shape = () if p is None else np.shape(p.array if isinstance(p, Tensor) else p)
        lead = x.ndim - len(shape)
        if lead < 0 or any(n not in (1, m) for n, m in zip(shape, x.shape[lead:], strict=True)):
            raise ShapeError(f"{name}: {what} of shape {shape} does not fit x of shape {x.shape}")
