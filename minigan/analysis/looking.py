"""On which pixels the features of a network depend, and where its attention goes: what is local, and what global."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.errors import ShapeError
from minigan.ops import softmax
from minigan.ops.attention import ATTENTION
from minigan.tape import no_grad, recording, vjp
from minigan.tensor import Tensor, TensorLike, lift, where
from minigan.trace import Recorder, recorded_by


def receptive_field(
    function: Callable[[Tensor], Tensor], x: TensorLike, at: tuple[int, int] | None = None
) -> Array:
    """How much one pixel of a feature map depends on each pixel of the images: (N, H, W).

    The norm of a block of the Jacobian, r[n, p, q] = sqrt(Σ_kc (∂y[n, i, j, k] / ∂x[n, p, q, c])²), for images x
    (N, H, W, C) and their maps y = `function(x)` (N, h, w, K). Where it is not 0 lies the receptive field; how it is
    spread inside, mostly like a Gaussian about the middle, is the *effective* receptive field (Luo et al. 2016, "Un-
    derstanding the effective receptive field in deep convolutional neural networks"). It takes K backward passes.

    Args:
        function: the layers up to the map, such as `mg.nn.Sequential(*discriminator.layers[:4])`. It must treat each
            image by itself, as networks do outside of training.
        at: (i, j) of the pixel of the map; by default the one in the middle, (h // 2, w // 2).

    Raises: `ShapeError` for images or maps without four axes, or a pixel that the map does not have.

    >>> import minigan as mg
    >>> conv = mg.nn.Conv(1, 2, 3, stride=2, padding=1, stream=mg.ops.Stream(0, "docs"))
    >>> x = mg.ops.Stream(0, "images").uniform((1, 6, 6, 1))
    >>> (mg.analysis.receptive_field(conv, x, at=(1, 2))[0] > 0).astype(int)
    array([[0, 0, 0, 0, 0, 0],
           [0, 0, 0, 1, 1, 1],
           [0, 0, 0, 1, 1, 1],
           [0, 0, 0, 1, 1, 1],
           [0, 0, 0, 0, 0, 0],
           [0, 0, 0, 0, 0, 0]])
    """
    images = lift(x)
    if images.ndim != 4:
        raise ShapeError(f"receptive_field: images of shape {images.shape}, expected (N, H, W, C)")
    maps, pull = vjp(function, images)
    if maps.ndim != 4 or maps.shape[0] != images.shape[0]:
        raise ShapeError(
            f"receptive_field: the function gives {maps.shape} for images {images.shape}, expected (N, h, w, K)"
        )
    row, column = at or (maps.shape[1] // 2, maps.shape[2] // 2)
    if not (0 <= row < maps.shape[1] and 0 <= column < maps.shape[2]):
        raise ShapeError(f"receptive_field: pixel {(row, column)} of a map of {maps.shape[1:3]} pixels")
    squares = np.zeros(images.shape[:3])
    with recording(False):
        for feature in range(maps.shape[3]):
            one = np.zeros(maps.shape, maps.dtype)
            one[:, row, column, feature] = 1
            (slope,) = pull(one)
            squares += np.square(slope.numpy(), dtype=np.float64).sum(-1)
    return np.sqrt(squares)


class _Looks(Recorder):
    """Keeps the weights of every attention that is computed."""

    def __init__(self) -> None:
        self.weights: list[Array] = []

    def call(
        self, primitive: Any, arrays: Sequence[Array], outs: Sequence[Array], attributes: dict[str, Any]
    ) -> None:
        if primitive is ATTENTION:
            q, k, _, *masks = map(lift, arrays)
            with recorded_by(None):
                scores = (q * attributes["scale"]) @ k.mT
                for mask in masks:
                    scores = where(mask, scores, -math.inf)
                self.weights.append(softmax(scores).numpy())


def attention_maps(function: Callable[[Tensor], Any], x: TensorLike) -> list[Array]:
    """Where each query looks while `function(x)` is computed: the weights of every attention, in their order.

    Each is softmax(q kᵀ · scale), (N, ..., T, S), with the heads, where there are any, on the axes between; for images
    the T queries and the S keys are pixels, row after row. Every row sums to 1, or is 0 where a mask leaves no key.

    >>> import minigan as mg
    >>> layer = mg.nn.Attention(8, heads=2, stream=mg.ops.Stream(0, "docs"))
    >>> (weights,) = mg.analysis.attention_maps(layer, mg.ops.Stream(0, "tokens").normal((3, 5, 8)))
    >>> weights.shape, bool(abs(weights.sum(-1) - 1).max() < 1e-6)
    ((3, 2, 5, 5), True)
    """
    looks = _Looks()
    with no_grad(), recorded_by(looks):
        function(lift(x))
    return looks.weights
