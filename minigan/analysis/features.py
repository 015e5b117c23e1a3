"""Feature functions: what a network computes on the way, as functions of its input, and what their statistics say."""

from collections.abc import Callable
from typing import Any

import numpy as np

from minigan.backend import Array, moved
from minigan.errors import ConfigError, DataError, ShapeError
from minigan.nn import Sequential
from minigan.nn.module import device_of_all, forward
from minigan.tape import jvp, no_grad
from minigan.tensor import Tensor, TensorLike, lift, tensor

MOST = 5000  # features of a covariance, which then takes 200 MB


def features(network: Sequential, x: TensorLike, labels: TensorLike | None = None) -> dict[str, Array]:
    """The feature functions of a network at some samples: what each layer makes of x (N, ...), by name.

    The names are those of `network.state()`, with the layer's class: "layers.0 Conv". The network computes as outside
    of training, on its device, to which arrays are copied.

    >>> import minigan as mg
    >>> found = mg.analysis.features(mg.models.mlp_discriminator((3,), (8,)), np.zeros((5, 3), np.float32))
    >>> {name: x.shape for name, x in found.items()}
    {'layers.0 Flatten': (5, 3), 'layers.1 Dense': (5, 8), 'layers.2 Activation': (5, 8), 'layers.3 Dense': (5, 1)}
    """
    device, found = device_of_all(network), {}
    y = lift(x) if isinstance(x, Tensor) else tensor(x, device=device)
    given = labels if labels is None or isinstance(labels, Tensor) else tensor(labels, device=device)
    with no_grad():
        for k, layer in enumerate(network.layers):
            y = forward(layer, y, train=False, random=None, labels=given)
            found[f"layers.{k} {type(layer).__name__}"] = y.numpy()
    return found


def covariance_eigenvalues(x: Any) -> Array:
    """Eigenvalues of the covariance of samples x (N, ...), float64 (d,), the largest first; divided by N.

    `DataError` for fewer than 2 samples, more than 5,000 features, or values that are not finite.

    >>> import numpy as np
    >>> line = np.outer([1.0, 2.0, 3.0, 4.0], [3.0, 4.0])
    >>> covariance_eigenvalues(line).round(6)
    array([31.25,  0.  ])
    """
    samples = np.asarray(x, np.float64)
    if samples.ndim < 2 or len(samples) < 2 or not 1 <= samples[0].size <= MOST:
        raise DataError(
            f"a covariance of samples of shape {np.shape(x)}: expected (N, ...), N from 2, with up to {MOST:,} features"
        )
    if not np.isfinite(samples).all():
        raise DataError(
            f"a covariance of {np.count_nonzero(~np.isfinite(samples)):,} values that are not finite"
        )
    samples = samples.reshape(len(samples), -1)
    centred = samples - samples[0]  # exactly 0 where all are the same
    centred -= centred.mean(0)
    # Singular values do not square the condition number, and none comes out negative.
    found: Array = np.linalg.svd(centred, compute_uv=False) ** 2 / len(samples)
    return np.pad(found, (0, samples.shape[1] - len(found)))


def effective_rank(x: Any) -> float:
    """In how many directions samples x (N, ...) vary: e^H of their covariance's eigenvalues, as parts p of their sum.

    H = -Σ p log p (Roy and Vetterli 2007, "The effective rank"). It is d if all d are equal, and 1 on a line; samples
    that are all the same have 0. Of generated samples, or of a discriminator's features of them, it falls when a
    generator collapses. Errors are those of `covariance_eigenvalues`.

    >>> import numpy as np
    >>> round(effective_rank([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]), 6)
    2.0
    """
    eigenvalues = covariance_eigenvalues(x)
    total = eigenvalues.sum()
    if not total > 0:
        return 0.0
    parts = eigenvalues[eigenvalues > 0] / total
    return float(np.exp(-(parts * np.log(parts)).sum()))


def feature_matching(x: TensorLike, y: TensorLike) -> Tensor:
    """The squared distance of the means of two batches of features, |E x - E y|² (Salimans et al. 2016, §3.1).

    x and y: (N, ...) and (M, ...), equal but for the first axis, else `ShapeError`. Differentiable, so that a generator
    can minimise it.

    >>> import minigan as mg
    >>> mg.analysis.feature_matching([[1.0, 2.0], [3.0, 2.0]], [[2.0, 5.0]]).item()
    9.0
    """
    a, b = lift(x), lift(y)
    if min(a.ndim, b.ndim) < 1 or a.shape[1:] != b.shape[1:]:
        raise ShapeError(
            f"feature_matching: features of shapes {a.shape} and {b.shape}, expected (N, ...) of one kind"
        )
    difference = a.mean(0) - b.mean(0)
    return (difference * difference).sum()


def singular_values(function: Callable[[Tensor], Tensor], z: TensorLike) -> Array:
    """Singular values of the Jacobian of y = `function(z)`, for each of the latents z (N, d): float64 (N, d).

    The largest first; they say how much a step in latent space moves a sample, and their ratio, the condition number,
    how unlike the directions are (Odena et al. 2018, "Is generator conditioning causally related to GAN
    performance?"). It takes d forward and backward passes. With fewer outputs than latents the last ones are 0.
    `ShapeError` for other latents, or samples that are not (N, ...).

    >>> import numpy as np, minigan as mg
    >>> singular_values(lambda z: z * mg.tensor([3.0, -4.0]), np.zeros((1, 2), np.float32))
    array([[4., 3.]])
    """
    latents = lift(z)
    if latents.ndim != 2 or 0 in latents.shape:
        raise ShapeError(f"singular_values: latents of shape {latents.shape}, expected (N, d)")
    columns = []
    for k in range(latents.shape[1]):
        tangent = np.zeros(latents.shape, latents.dtype)
        tangent[:, k] = 1
        _, change = jvp(function, latents, Tensor(moved(tangent, latents.device)))
        if change.ndim < 2 or change.shape[0] != latents.shape[0]:
            raise ShapeError(
                f"singular_values: the function gives {change.shape} for latents {latents.shape}, expected (N, ...)"
            )
        columns.append(change.numpy().reshape(len(tangent), -1).astype(np.float64))
    found = np.linalg.svd(np.stack(columns, 2), compute_uv=False)
    return np.pad(found, ((0, 0), (0, latents.shape[1] - found.shape[1])))


def linear_probe(x: Any, labels: Any, test_x: Any, test_labels: Any, ridge: float = 1e-3) -> float:
    """The accuracy on test features of a linear classifier of features x (N, ...): what they say of the classes.

    Least squares on one number for each class, 1 for the right one and 0 for others, with a bias and a penalty of
    `ridge` times the mean variance (Alain and Bengio 2016, "Understanding intermediate layers using linear classifier
    probes", with least squares in place of cross entropy, which has a solution in one step).

    labels: integers (N,) from 0. `DataError` if they do not fit the features, or for features that are not finite or
    more than 5,000; `ConfigError` for a ridge that is not above 0.

    >>> linear_probe([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1], [[-1.0], [5.0]], [0, 1])
    1.0
    """
    if not 0 < ridge < np.inf:
        raise ConfigError(f"linear_probe: ridge={ridge!r}, expected a finite number above 0")
    both = []
    for name, samples, classes in (("training", x, labels), ("test", test_x, test_labels)):
        a, c = np.asarray(samples, np.float64), np.asarray(classes)
        if a.ndim < 1 or c.shape != a.shape[:1] or not len(c) or c.dtype.kind not in "iu" or c.min() < 0:
            raise DataError(
                f"linear_probe: {name} features of shape {a.shape} and labels {c.dtype} {c.shape}, expected (N, ...)"
                " and integers (N,) from 0"
            )
        if not np.isfinite(a).all() or a[0].size > MOST:
            raise DataError(
                f"linear_probe: {name} features: {np.count_nonzero(~np.isfinite(a)):,} values are not finite, and there"
                f" are {a[0].size:,} for a sample, of up to {MOST:,}"
            )
        both.append((a.reshape(len(a), -1), c))
    (a, c), (test_a, test_c) = both
    if a.shape[1] != test_a.shape[1]:
        raise DataError(f"linear_probe: {a.shape[1]} features in training, {test_a.shape[1]} in the test")
    mean, (known, place) = a.mean(0), np.unique(c, return_inverse=True)
    centred, targets = a - mean, np.eye(len(known))[place]
    gram = centred.T @ centred
    gram += np.eye(len(gram)) * (ridge * max(np.trace(gram) / len(gram), np.finfo(float).tiny))
    weights = np.linalg.solve(gram, centred.T @ (targets - targets.mean(0)))
    scores = (test_a - mean) @ weights + targets.mean(0)
    return float((known[scores.argmax(1)] == test_c).mean())
