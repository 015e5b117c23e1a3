"""Networks of dense layers, for small images and points: those of the article."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from minigan.errors import ConfigError
from minigan.models.networks import Discriminator, Generator, Own, described, drawn_by, head, with_labels
from minigan.nn import Activation, Dense, Flatten, Module, Reshape
from minigan.nn.init import Initializer, glorot_uniform


def _dense_layers(sizes: Sequence[int], slope: float, own: Own) -> list[Module]:
    """Dense layers of these sizes, with a leaky ReLU after each."""
    if min(sizes) < 1:
        raise ConfigError(f"layers of sizes {tuple(sizes)}: every size must be at least 1")
    modules: list[Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        modules += [Dense(inputs, outputs, **own(f"layer{i}")), Activation("leaky_relu", slope=slope)]
    return modules


@described
def mlp_generator(
    latent: int = 100,
    hidden: Sequence[int] = (128, 128),
    shape: Sequence[int] = (28, 28, 1),
    *,
    slope: float = 0.2,
    output: str | None = "sigmoid",
    classes: int | None = None,
    init: Initializer = glorot_uniform,
    seed: int = 0,
    dtype: Any = np.float32,
) -> Generator:
    """A generator of dense layers with leaky ReLUs: latents (N, latent) to samples (N, *shape).

    Args:
        shape: of one sample: (H, W, C) with channels last, or a flat (784,).
        slope: of the leaky ReLU below 0.
        output: the last activation: "sigmoid" for samples in (0, 1), "tanh" for (-1, 1), `None` for any.
        classes: of the labels that it is called with; `None` for a generator without labels.
        init, seed, dtype: of the weights; biases are zero.

    >>> import minigan as mg
    >>> g = mg.models.mlp_generator(latent=2, hidden=(4,), shape=(8, 8, 1))
    >>> g(mg.tensor([[0.0, 0.0]])).shape
    (1, 8, 8, 1)
    """
    inputs, labels = with_labels(latent, classes)
    own = drawn_by("generator", init, seed, dtype)
    modules = _dense_layers([inputs, *hidden, math.prod(shape)], slope, own)[:-1]
    last = [] if output is None else [Activation(output)]
    bounds = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}.get(output or "")
    return Generator(
        latent, shape, *labels, *modules, *last, Reshape(tuple(shape)), bounds=bounds, classes=classes
    )


@described
def mlp_discriminator(
    shape: Sequence[int] = (28, 28, 1),
    hidden: Sequence[int] = (128, 128),
    *,
    slope: float = 0.2,
    classes: int | None = None,
    init: Initializer = glorot_uniform,
    seed: int = 0,
    dtype: Any = np.float32,
) -> Discriminator:
    """A discriminator of dense layers with leaky ReLUs: samples (N, *shape) to logits (N, 1).

    Arguments as for `mlp_generator`.

    >>> import minigan as mg
    >>> d = mg.models.mlp_discriminator(shape=(8, 8, 1), hidden=(4,))
    >>> d.count()
    265
    """
    own, sizes = drawn_by("discriminator", init, seed, dtype), [math.prod(shape), *hidden]
    last = head(sizes[-1], classes, own(f"layer{len(hidden)}"))
    return Discriminator(shape, Flatten(), *_dense_layers(sizes, slope, own), last, classes=classes)
