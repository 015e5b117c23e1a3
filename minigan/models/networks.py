"""What all networks with a name have in common: their two classes, and the parts that are the same in each."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np

from minigan.errors import ConfigError, ShapeError
from minigan.nn import ConcatLabels, Dense, Module, Projection, Sequential, init as initializers
from minigan.nn.init import Initializer
from minigan.nn.norm import spectral
from minigan.ops import Stream
from minigan.tensor import Tensor

Arguments = ParamSpec("Arguments")
Network = TypeVar("Network", bound="Generator | Discriminator")
Own = Callable[[str], dict[str, Any]]  # from a layer's name to what it draws its weights with

SMALL = 8  # pixels of a side that is not halved any more


class Generator(Sequential):
    """From latents (N, latent) to samples (N, *shape); `latent`, `shape` and `classes` are attributes.

    `bounds` are those of the values of a sample, such as (-1, 1) of a tanh's, or `None` where any can occur. With
    `classes` it is called with labels.
    """

    def __init__(
        self,
        latent: int,
        shape: Sequence[int],
        *modules: Module,
        bounds: tuple[float, float] | None = (0.0, 1.0),
        classes: int | None = None,
    ) -> None:
        self.latent, self.shape, self.bounds, self.classes = latent, tuple(shape), bounds, classes
        self._config: dict[str, Any] = {}
        super().__init__(*modules)

    @property
    def config(self) -> dict[str, Any]:
        """The function of `minigan.models` that made the network, as `model`, and its arguments; empty for others."""
        return dict(self._config)

    def __call__(
        self, x: Tensor, *, train: bool = False, random: Stream | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Samples (N, *shape) for latents (N, latent); `ShapeError` for latents of another shape."""
        if x.shape[1:] != (self.latent,):
            raise ShapeError(f"the generator takes latents of shape (N, {self.latent}), got {x.shape}")
        return super().__call__(x, train=train, random=random, labels=labels)


class Discriminator(Sequential):
    """From samples (N, *shape) to logits (N, 1), before any sigmoid; `shape` and `classes` are attributes.

    With `classes` it is called with labels.
    """

    def __init__(self, shape: Sequence[int], *modules: Module, classes: int | None = None) -> None:
        self.shape, self.classes = tuple(shape), classes
        self._config: dict[str, Any] = {}
        super().__init__(*modules)

    @property
    def config(self) -> dict[str, Any]:
        """As `Generator.config`."""
        return dict(self._config)

    def __call__(
        self, x: Tensor, *, train: bool = False, random: Stream | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Logits (N, 1) for samples (N, *shape); `ShapeError` for samples of another shape."""
        if x.shape[1:] != self.shape:
            raise ShapeError(f"the discriminator takes samples of shape {('N', *self.shape)}, got {x.shape}")
        return super().__call__(x, train=train, random=random, labels=labels)


def described(function: Callable[Arguments, Network]) -> Callable[Arguments, Network]:
    """Let the networks that `function` makes know its name and their arguments, as their `config`."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def make(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Network:
        network = function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        network._config = _config(function.__name__, **bound.arguments)
        return network

    return make


def _config(model: str, *, init: Initializer, dtype: Any, **others: Any) -> dict[str, Any]:
    """What a file of settings can say of a network: nothing where its initialiser is not one of minigan's."""
    name = getattr(init, "__name__", "")
    if getattr(initializers, name, None) is not init:
        return {}
    lists = {k: list(v) if isinstance(v, (list, tuple)) else v for k, v in others.items()}
    return {"model": model, **lists, "init": name, "dtype": np.dtype(dtype).name}


def drawn_by(who: str, init: Initializer, seed: int, dtype: Any) -> Own:
    """What each layer of a network draws its weights with: arguments by the layer's name."""
    stream = Stream(seed, f"{who}/init")
    return lambda name: {"init": init, "stream": stream.child(name), "dtype": dtype}


def with_labels(latent: int, classes: int | None) -> tuple[int, list[Module]]:
    """How many numbers a latent is with its label, and the modules that put it there."""
    if latent < 1:
        raise ConfigError(f"latents of {latent} numbers: expected at least 1")
    return (latent, []) if classes is None else (latent + classes, [ConcatLabels(classes)])


def head(features: int, classes: int | None, own: dict[str, Any], spectral_norm: bool = False) -> Module:
    """The last layer of a discriminator, from features (N, features) to logits (N, 1)."""
    if classes is None:
        return spectral(Dense(features, 1, **own), spectral_norm)
    return Projection(features, classes, spectral_norm=spectral_norm, **own)


def halvings(shape: Sequence[int], width: int) -> int:
    """How often images are halved: twice, and on as long as both sides are even and above 8.

    `ConfigError` unless shape is (H, W, C) with H and W multiples of 4, and the width is at least 1.
    """
    if len(shape) != 3 or min(shape) < 1 or shape[0] % 4 or shape[1] % 4:
        rest = (
            f": {shape[0]} mod 4 is {shape[0] % 4}, {shape[1]} mod 4 is {shape[1] % 4}"
            if len(shape) == 3
            else ""
        )
        raise ConfigError(f"shape {tuple(shape)}: expected (H, W, C) with H and W multiples of 4{rest}")
    if width < 1:
        raise ConfigError(f"width {width}: expected at least 1 channel")
    count, sides = 2, [side // 4 for side in shape[:2]]
    while min(sides) > SMALL and not any(side % 2 for side in sides):
        count, sides = count + 1, [side // 2 for side in sides]
    return count
