"""Networks by name."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from minigan.errors import ConfigError, ShapeError
from minigan.nn import Activation, Dense, Flatten, Module, Reshape, Sequential, init as initializers
from minigan.nn.init import Initializer, glorot_uniform
from minigan.ops import Stream
from minigan.tensor import Tensor


class Generator(Sequential):
    """From latents (N, latent) to samples (N, *shape); `latent` and `shape` are attributes.

    `bounds` are those of the values of a sample, such as (-1, 1) of a tanh's, or `None` where any can occur.
    """

    def __init__(
        self,
        latent: int,
        shape: Sequence[int],
        *modules: Module,
        bounds: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        self.latent, self.shape, self.bounds = latent, tuple(shape), bounds
        self._config: dict[str, Any] = {}
        super().__init__(*modules)

    @property
    def config(self) -> dict[str, Any]:
        """The function of this module that made the network, as `model`, and its arguments; empty for others."""
        return dict(self._config)

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """Samples (N, *shape) for latents (N, latent); `ShapeError` for latents of another shape."""
        if x.shape[1:] != (self.latent,):
            raise ShapeError(f"the generator takes latents of shape (N, {self.latent}), got {x.shape}")
        return super().__call__(x, train=train, random=random)


class Discriminator(Sequential):
    """From samples (N, *shape) to logits (N, 1), before any sigmoid; `shape` is an attribute."""

    def __init__(self, shape: Sequence[int], *modules: Module) -> None:
        self.shape = tuple(shape)
        self._config: dict[str, Any] = {}
        super().__init__(*modules)

    @property
    def config(self) -> dict[str, Any]:
        """As `Generator.config`."""
        return dict(self._config)

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """Logits (N, 1) for samples (N, *shape); `ShapeError` for samples of another shape."""
        if x.shape[1:] != self.shape:
            raise ShapeError(f"the discriminator takes samples of shape {('N', *self.shape)}, got {x.shape}")
        return super().__call__(x, train=train, random=random)


def _config(model: str, init: Initializer, dtype: Any, **arguments: Any) -> dict[str, Any]:
    """What a file of settings can say of a network: nothing where its initialiser is not one of minigan's."""
    name = getattr(init, "__name__", "")
    if getattr(initializers, name, None) is not init:
        return {}
    lists = {k: list(v) if isinstance(v, (list, tuple)) else v for k, v in arguments.items()}
    return {"model": model, **lists, "init": name, "dtype": np.dtype(dtype).name}


def _dense_layers(
    sizes: Sequence[int], slope: float, init: Initializer, stream: Stream, dtype: Any
) -> list[Module]:
    """Dense layers of these sizes with leaky ReLUs between them."""
    if min(sizes) < 1:
        raise ConfigError(f"layers of sizes {tuple(sizes)}: every size must be at least 1")
    modules: list[Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        modules.append(Dense(inputs, outputs, init=init, stream=stream.child(f"layer{i}"), dtype=dtype))
        modules.append(Activation("leaky_relu", slope=slope))
    return modules[:-1]


def mlp_generator(
    latent: int = 100,
    hidden: Sequence[int] = (128, 128),
    shape: Sequence[int] = (28, 28, 1),
    *,
    slope: float = 0.2,
    output: str | None = "sigmoid",
    init: Initializer = glorot_uniform,
    seed: int = 0,
    dtype: Any = np.float32,
) -> Generator:
    """A generator of dense layers with leaky ReLUs: latents (N, latent) to samples (N, *shape).

    Args:
        shape: of one sample: (H, W, C) with channels last, or a flat (784,).
        slope: of the leaky ReLU below 0.
        output: the last activation: "sigmoid" for samples in (0, 1), "tanh" for (-1, 1), `None` for any.
        init, seed, dtype: of the weights; biases are zero.

    >>> import minigan as mg
    >>> g = mg.models.mlp_generator(latent=2, hidden=(4,), shape=(8, 8, 1))
    >>> g(mg.tensor([[0.0, 0.0]])).shape
    (1, 8, 8, 1)
    """
    sizes = [latent, *hidden, math.prod(shape)]
    modules = _dense_layers(sizes, slope, init, Stream(seed, "generator/init"), dtype)
    last = [] if output is None else [Activation(output)]
    bounds = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}.get(output or "")
    network = Generator(latent, shape, *modules, *last, Reshape(tuple(shape)), bounds=bounds)
    network._config = _config(
        "mlp_generator",
        init,
        dtype,
        latent=latent,
        hidden=hidden,
        shape=shape,
        slope=slope,
        output=output,
        seed=seed,
    )
    return network


def mlp_discriminator(
    shape: Sequence[int] = (28, 28, 1),
    hidden: Sequence[int] = (128, 128),
    *,
    slope: float = 0.2,
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
    sizes = [math.prod(shape), *hidden, 1]
    modules = _dense_layers(sizes, slope, init, Stream(seed, "discriminator/init"), dtype)
    network = Discriminator(shape, Flatten(), *modules)
    network._config = _config(
        "mlp_discriminator", init, dtype, shape=shape, hidden=hidden, slope=slope, seed=seed
    )
    return network
