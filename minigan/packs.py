"""Several samples as one, for a discriminator that is to see what samples have in common (Lin et al. 2018, PacGAN)."""

import functools
import operator

from minigan.errors import ShapeError
from minigan.tensor import Tensor


def packed(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The shape of so many samples side by side: (..., C) becomes (..., count · C)."""
    return (*shape[:-1], count * shape[-1])


def pack(x: Tensor, count: int) -> Tensor:
    """Groups of samples (N, ..., C) as one sample with more channels: (N / count, ..., count · C).

    `ShapeError` unless the groups come out even.

    >>> import minigan as mg
    >>> from minigan.packs import pack
    >>> pack(mg.tensor([[1.0, 2.0], [3.0, 4.0]]), 2).numpy()
    array([[1., 2., 3., 4.]], dtype=float32)
    """
    if count == 1:
        return x
    if x.shape[0] % count:
        raise ShapeError(f"Game: a batch of {x.shape[0]} samples cannot be packed by {count}")
    groups = x.reshape(x.shape[0] // count, count, *x.shape[1:])
    axes = (0, *range(2, groups.ndim - 1), 1, groups.ndim - 1)
    return groups.transpose(axes).reshape(groups.shape[0], *packed(x.shape[1:], count))


def weights_of_packs(weights: Tensor | None, count: int) -> Tensor | None:
    """Those of packs of samples that are drawn independently: the products of the samples' (N,), else `ShapeError`.

    >>> import minigan as mg
    >>> from minigan.packs import weights_of_packs
    >>> weights_of_packs(mg.tensor([1.0, 2.0, 3.0, 0.5]), 2).numpy()
    array([2. , 1.5], dtype=float32)
    """
    if weights is None or count == 1:
        return weights
    if weights.ndim != 1 or weights.size % count:
        raise ShapeError(f"weights of shape {weights.shape} for samples that are packed by {count}")
    return functools.reduce(operator.mul, (weights[k::count] for k in range(count)))
