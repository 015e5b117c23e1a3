"""Layers: each is a short function of a batch with its parameters as attributes."""

import inspect
import math
from typing import Any

import numpy as np

from minigan import ops
from minigan.errors import ConfigError, ShapeError
from minigan.nn.init import Initializer, glorot_uniform
from minigan.nn.module import Conditional, Module, Weighted, forward, parameter
from minigan.ops.random import Stream
from minigan.tensor import Tensor, tensor

ACTIVATIONS = {
    f.__name__: f
    for f in (ops.relu, ops.leaky_relu, ops.elu, ops.gelu, ops.silu, ops.tanh, ops.sigmoid, ops.softplus)
}


class Dense(Weighted):
    """y = x W + b over the last axis: x (..., inputs) gives (..., outputs).

    weight: (inputs, outputs), drawn by `init` from `stream`; bias: (outputs,), zeros, or `None` without.

    >>> import minigan as mg
    >>> layer = mg.nn.Dense(3, 2, stream=mg.ops.Stream(0, "docs"))
    >>> layer(mg.tensor([[0.0, 0.0, 0.0]])).numpy()
    array([[0., 0.]], dtype=float32)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = True,
        init: Initializer = glorot_uniform,
        stream: Stream,
        dtype: Any = np.float32,
    ) -> None:
        if inputs < 1 or outputs < 1:
            raise ConfigError(f"Dense: {inputs} inputs and {outputs} outputs, both must be at least 1")
        self.weight = parameter(init(stream, (inputs, outputs), dtype))
        self.bias = Tensor(np.zeros(outputs, dtype)) if bias else None

    def with_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """x W + b for another W."""
        return x @ weight if self.bias is None else ops.affine(x, weight, self.bias)


class Maxout(Module):
    """The largest of several affine maps, for each output: x (..., inputs) gives (..., outputs).

    y_j = max over k of x · w_jk + b_jk, with k from 1 to `pieces` (Goodfellow et al. 2013, eq. 1). weight: (inputs,
    pieces · outputs), each piece drawn by `init` from `stream`; bias: (pieces · outputs,), zeros.

    >>> import minigan as mg
    >>> mg.nn.Maxout(3, 2, pieces=5, stream=mg.ops.Stream(0, "docs"))
    Maxout(outputs=2, pieces=5)  # 40 parameters
      map: Dense()  weight (3, 10)  bias (10,)  # 40 parameters
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        pieces: int = 2,
        *,
        init: Initializer = glorot_uniform,
        stream: Stream,
        dtype: Any = np.float32,
    ) -> None:
        if pieces < 2:
            raise ConfigError(f"Maxout: {pieces} pieces, at least 2 are needed for a maximum")

        def of_pieces(stream: Stream, shape: tuple[int, ...], dtype: Any) -> Tensor:
            parts = [init(stream, (inputs, outputs), dtype) for _ in range(pieces)]
            return tensor(ops.concatenate(parts, axis=1))  # a leaf, which an optimiser may change

        self.outputs, self.pieces = outputs, pieces
        self.map = Dense(inputs, outputs * pieces, init=of_pieces, stream=stream, dtype=dtype)

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """The largest of the maps; those that tie share the derivative."""
        y = self.map(x)
        return ops.max(y.reshape((*y.shape[:-1], self.pieces, self.outputs)), axis=-2)


class Sequential(Conditional):
    """One module after another; their parameters are named `layers.0.…`, `layers.1.…`.

    Labels are for those that take them; the others are called without.

    >>> import minigan as mg
    >>> net = mg.nn.Sequential(mg.nn.Flatten(), mg.nn.Dense(4, 1, stream=mg.ops.Stream(0, "docs")))
    >>> net(mg.tensor([[[1.0, 2.0], [3.0, 4.0]]])).shape
    (1, 1)
    >>> net
    Sequential()  # 5 parameters
      layers.0: Flatten()
      layers.1: Dense()  weight (4, 1)  bias (1,)  # 5 parameters
    """

    def __init__(self, *modules: Module) -> None:
        self.layers = list(modules)

    def __call__(
        self, x: Tensor, *, train: bool = False, random: Stream | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """The last module's output."""
        for layer in self.layers:
            x = forward(layer, x, train=train, random=random, labels=labels)
        return x


class Activation(Module):
    """A pointwise function of `minigan.ops` by name, such as `Activation("leaky_relu", slope=0.2)`.

    Names: relu, leaky_relu, elu, gelu, silu, tanh, sigmoid, softplus. `ConfigError` for another name, or a
    setting that the function does not have.

    >>> import minigan as mg
    >>> mg.nn.Activation("leaky_relu", slope=0.1)(mg.tensor([-1.0, 2.0])).numpy()
    array([-0.1,  2. ], dtype=float32)
    """

    def __init__(self, function: str, **settings: float) -> None:
        if function not in ACTIVATIONS:
            raise ConfigError(f"Activation: no function {function!r}; there are {', '.join(ACTIVATIONS)}")
        self.function, self.settings = function, settings
        self._apply = ACTIVATIONS[function]
        try:
            inspect.signature(self._apply).bind(None, **settings)
        except TypeError as error:
            raise ConfigError(f"Activation: {function}: {error}") from None

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """The function of every element of x."""
        return self._apply(x, **self.settings)


class Reshape(Module):
    """The elements of each sample in another shape: x (N, ...) gives (N, *shape).

    >>> import minigan as mg
    >>> mg.nn.Reshape((2, 2))(mg.tensor([[1.0, 2.0, 3.0, 4.0]])).shape
    (1, 2, 2)
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = tuple(shape)

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """x, (N, ...), as (N, *shape); `ShapeError` if the sizes differ."""
        return x.reshape((x.shape[0], *self.shape))


class Flatten(Module):
    """Each sample as one row: x (N, ...) gives (N, the product of the rest); `ShapeError` for x without axes.

    >>> import minigan as mg
    >>> mg.nn.Flatten()(mg.tensor([[[1.0, 2.0], [3.0, 4.0]]])).shape
    (1, 4)
    """

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """x, (N, ...), as (N, -1)."""
        if not x.ndim:
            raise ShapeError("Flatten: a tensor of shape () has no batch axis")
        return x.reshape((x.shape[0], math.prod(x.shape[1:])))


class Dropout(Module):
    """In training, each element is 0 with probability `rate`, else divided by 1 - rate; otherwise x as it is.

    Srivastava et al. 2014. `ConfigError` for a rate outside 0 <= rate < 1, and in training without a `random` stream.

    >>> import minigan as mg
    >>> layer, x = mg.nn.Dropout(0.5), mg.tensor([1.0] * 6)
    >>> layer(x).numpy().max(), layer(x, train=True, random=mg.ops.Stream(0, "docs")).numpy().max()
    (np.float32(1.0), np.float32(2.0))
    """

    def __init__(self, rate: float) -> None:
        if not 0 <= rate < 1:
            raise ConfigError(f"Dropout: rate {rate} is not in 0 <= rate < 1")
        self.rate = rate

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """x outside of training; in training x with random zeros."""
        if not train or not self.rate:
            return x
        if random is None:
            raise ConfigError(
                "Dropout: training needs a stream of random numbers: pass random=Stream(seed, purpose)"
            )
        return ops.dropout(x, self.rate, random)
