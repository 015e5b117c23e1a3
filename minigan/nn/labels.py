"""How a network learns of the classes of its samples."""

from typing import Any

import numpy as np

from minigan import ops
from minigan.errors import ConfigError, ShapeError
from minigan.nn.init import Initializer, glorot_uniform, normal
from minigan.nn.layers import Dense
from minigan.nn.module import Conditional, Weighted, parameter, required_labels
from minigan.nn.norm import spectral
from minigan.ops.random import Stream
from minigan.tensor import Tensor, tensor


class Embedding(Weighted):
    """A vector for each class: integers of any shape, 0 to classes - 1, give (..., features).

    weight: (classes, features), drawn by `init` from `stream`. `ShapeError` for a label out of range.

    >>> import minigan as mg, numpy as np
    >>> layer = mg.nn.Embedding(10, 4, stream=mg.ops.Stream(0, "docs"))
    >>> layer(mg.tensor(np.array([7, 7, 1]))).shape
    (3, 4)
    """

    def __init__(
        self,
        classes: int,
        features: int,
        *,
        init: Initializer = normal,
        stream: Stream,
        dtype: Any = np.float32,
    ) -> None:
        if classes < 1 or features < 1:
            raise ConfigError(
                f"Embedding: {classes} classes and {features} features: both must be at least 1"
            )
        self.weight = parameter(init(stream, (classes, features), dtype))

    def with_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """The rows of another table."""
        return ops.embedding(weight, x)


class ConcatLabels(Conditional):
    """The samples with their labels as further channels, 1 in that of the class and 0 else (Mirza and Osindero 2014).

    x: (N, ..., C) gives (N, ..., C + classes): for latents as for images, every pixel of which has the label.
    `ConfigError` without labels.

    >>> import minigan as mg, numpy as np
    >>> mg.nn.ConcatLabels(3)(mg.tensor([[0.5]]), labels=mg.tensor(np.array([2]))).numpy()
    array([[0.5, 0. , 0. , 1. ]], dtype=float32)
    """

    def __init__(self, classes: int) -> None:
        if classes < 1:
            raise ConfigError(f"ConcatLabels: {classes} classes, at least 1 is needed")
        self.classes = classes

    def __call__(
        self, x: Tensor, *, train: bool = False, random: Stream | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """x with the new channels."""
        if x.ndim < 2:
            raise ShapeError(f"ConcatLabels: x of shape {x.shape}, expected (N, ..., C)")
        batch, *pixels, _ = x.shape
        marks = ops.one_hot(required_labels(self, x, labels), self.classes, x.dtype)
        planes = marks.reshape((batch, *(1,) * len(pixels), self.classes))
        return ops.concatenate([x, ops.broadcast_to(planes, (batch, *pixels, self.classes))], axis=x.ndim - 1)


class Projection(Conditional):
    """A discriminator's last layer, which asks for the class too: <x, w + e_label> + b (Miyato and Koyama 2018, eq. 3).

    x: features (N, features) give logits (N, 1). `out` is the dense layer w, b, and `embedding` the table of the
    classes' vectors e; with `spectral_norm` both are normalised. `ConfigError` without labels.

    >>> import minigan as mg, numpy as np
    >>> head = mg.nn.Projection(4, classes=10, stream=mg.ops.Stream(0, "docs"))
    >>> head(mg.tensor(np.ones((2, 4), np.float32)), labels=mg.tensor(np.array([3, 7]))).shape
    (2, 1)
    """

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        spectral_norm: bool = False,
        init: Initializer = glorot_uniform,
        stream: Stream,
        dtype: Any = np.float32,
    ) -> None:
        def as_outputs(stream: Stream, shape: tuple[int, ...], dtype: Any) -> Tensor:
            # As many terms as in the dense layer meet in a logit: the features are the inputs.
            return tensor(init(stream, shape[::-1], dtype).T)

        out = Dense(features, 1, init=init, stream=stream.child("out"), dtype=dtype)
        table = Embedding(classes, features, init=as_outputs, stream=stream.child("embedding"), dtype=dtype)
        self.out, self.embedding = spectral(out, spectral_norm), spectral(table, spectral_norm)

    def __call__(
        self, x: Tensor, *, train: bool = False, random: Stream | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """The logits."""
        vectors = self.embedding(required_labels(self, x, labels), train=train)
        return self.out(x, train=train) + ops.sum(x * vectors, 1, keepdims=True)
