"""Characteristic functions: distributions compared by E e^{i<t, x>}, as a measure and as something to minimise."""

from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.errors import ConfigError, ShapeError
from minigan.ops.elementwise import cos, maximum, sin, sqrt
from minigan.tensor import Tensor, TensorLike, lift

TINY = 1e-20  # of the product of two squared amplitudes


def characteristic_function(
    x: TensorLike, t: TensorLike, of_samples: TensorLike | None = None
) -> tuple[Tensor, Tensor]:
    """The empirical characteristic function φ(t) = mean e^{i<t, x>}, as real and imaginary part, (K,) each.

    x: samples (N, d); t: frequencies (K, d); of_samples: weights (N,) of mean 1 that multiply the terms of the mean.
    `ShapeError` if they do not fit. For a normal distribution with mean m and covariance S it is
    e^{i<t, m> - <t, S t>/2}.

    >>> import math, minigan as mg
    >>> real, imaginary = mg.analysis.characteristic_function([[0.0], [math.pi]], [[1.0], [2.0]])
    >>> real.numpy().round(6)
    array([0., 1.], dtype=float32)
    """
    samples, frequencies = lift(x), lift(t)
    if samples.ndim != 2 or frequencies.ndim != 2 or samples.shape[1] != frequencies.shape[1]:
        raise ShapeError(
            f"characteristic_function: samples {samples.shape} and frequencies {frequencies.shape}, expected (N, d) and"
            " (K, d)"
        )
    angles = samples @ frequencies.mT
    if of_samples is None:
        return cos(angles).mean(0), sin(angles).mean(0)
    weights = lift(of_samples)
    if weights.shape != samples.shape[:1]:
        raise ShapeError(f"weights of shape {weights.shape} for samples of shape {samples.shape}")
    column = weights.reshape(-1, 1)
    return (cos(angles) * column).mean(0), (sin(angles) * column).mean(0)


def characteristic_distance(
    x: TensorLike,
    y: TensorLike,
    t: TensorLike,
    amplitude: float = 0.5,
    weights: TensorLike | None = None,
    of_x: TensorLike | None = None,
) -> Tensor:
    """The mean over frequencies t (K, d) of a squared difference of the characteristic functions of x and y.

    weights: of the frequencies (K,), as those of a quadrature, with the sum 1; by default all are 1 / K.
    of_x: of the samples x (N,), with the mean 1, as those of importance sampling; by default all are 1.

    With `amplitude` 1/2 it is |φ_x(t) - φ_y(t)|² (Ansari, Scarlett and Soh 2020, "A characteristic function approach to
    deep implicit generative modeling", eq. 3). That is the sum of a part of the amplitudes, (|φ_x| - |φ_y|)², of what
    is there at all, and one of the phases, 2 |φ_x| |φ_y| (1 - cos of the angle between them), of where it is; they are
    weighted by 2 `amplitude` and 2 (1 - `amplitude`) (Li et al. 2020, "Reciprocal adversarial learning via
    characteristic functions", eq. 3). Differentiable.

    For N(0, 1) and N(μ, 1), with t from N(0, s²), it tends to 2 / sqrt(1 + 2 s²) (1 - exp(-μ² s² / (2 (1 + 2 s²)))) as
    the batches grow; with N and M samples its expectation is larger by the mean of (1 - |φ_x|²) / N + (1 - |φ_y|²) / M.

    Raises: `ConfigError` for an amplitude outside of 0 to 1, `ShapeError` as `characteristic_function`.

    >>> import minigan as mg
    >>> x, t = mg.tensor([[0.0], [1.0]]), mg.tensor([[0.5], [3.0]])
    >>> mg.analysis.characteristic_distance(x, x, t).item()
    0.0
    """
    if not 0 <= amplitude <= 1:
        raise ConfigError(f"characteristic_distance: amplitude {amplitude}, expected 0 to 1")
    a, b = characteristic_function(x, t, of_x)
    c, d = characteristic_function(y, t)
    if weights is not None and lift(weights).shape != a.shape:
        raise ShapeError(
            f"characteristic_distance: weights {lift(weights).shape} for {a.size} frequencies, expected ({a.size},)"
        )
    if amplitude == 0.5:
        return _mean((a - c) * (a - c) + (b - d) * (b - d), weights)
    first, second = a * a + b * b, c * c + d * d
    both = sqrt(maximum(first * second, TINY))  # the root of 0 has no derivative
    amplitudes, phases = first + second - 2.0 * both, 2.0 * (both - (a * c + b * d))
    return _mean(2.0 * amplitude * amplitudes + 2.0 * (1.0 - amplitude) * phases, weights)


def _mean(x: Tensor, weights: TensorLike | None) -> Tensor:
    return x.mean() if weights is None else (x * weights).sum()


def normal_frequencies(dimensions: int, dtype: Any = np.float32) -> tuple[Array, Array]:
    """Frequencies t (K, d) and weights (K,) for means over t ~ N(0, I) of functions that do not change with t's sign.

    In one dimension they are those of the midpoint rule at distances of 1/4, 32 of them. It converges faster than any
    power where the integrand is smooth and falls to 0 at both ends (Trefethen and Weideman 2014, "The exponentially
    convergent trapezoidal rule"): the mean of cos(a t) is met to 1e-11 for |a| up to 18, so a distance is for samples
    that lie no farther apart. In more dimensions they are 256 points drawn from N(0, I), always the same.

    >>> t, weights = normal_frequencies(1, np.float64)
    >>> bool(abs((weights * np.cos(3.0 * t[:, 0])).sum() - np.exp(-(3.0**2) / 2)) < 1e-11)
    True
    """
    if dimensions == 1:
        nodes = 0.25 * (np.arange(32) + 0.5)[:, None]
        weights = np.exp(-(nodes[:, 0] ** 2) / 2)
    else:
        nodes = np.random.Generator(np.random.Philox(0)).standard_normal((256, dimensions))
        weights = np.ones(len(nodes))
    return nodes.astype(dtype), (weights / weights.sum()).astype(dtype)
