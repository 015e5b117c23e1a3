"""Generators and discriminators of images, written once in the operations that every framework has.

Images are (N, H, W, C) and tokens (N, T, C), whatever the order in which a framework numbers these axes. A kernel is
(kh, kw, C / groups, O); that of a transposed convolution belongs to the convolution whose adjoint it is.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

HEADS = 4  # of the transformers
BLOCKS = 2


class Operations(Protocol):
    """What a framework's file gives. Convolutions make images 1 / stride as large, transposed ones stride times."""

    def dense(self, x: Any, weight: Any, bias: Any = None) -> Any:
        """x W + b of rows (N, I) or tokens."""

    def conv(self, x: Any, weight: Any, bias: Any = None, stride: int = 1, groups: int = 1) -> Any:
        """The convolution; `groups` is 1 or the number of channels, of which each then has a kernel of its own."""

    def conv_transpose(self, x: Any, weight: Any, bias: Any = None, stride: int = 1) -> Any:
        """The transposed convolution."""

    def batch_norm(self, x: Any, scale: Any, shift: Any) -> Any:
        """Images by the moments of each channel in the batch, ε = 1e-5; nobody has running averages."""

    def layer_norm(self, x: Any, scale: Any, shift: Any) -> Any:
        """Tokens by the moments of each, ε = 1e-5."""

    def attention(self, q: Any, k: Any, v: Any, heads: int, scale: float) -> Any:
        """softmax(q kᵀ · scale) v for each of so many equal parts of the features: tokens."""

    def images(self, x: Any, size: int) -> Any:
        """Rows or tokens as images of size x size pixels."""

    def tokens(self, x: Any) -> Any:
        """The pixels of images as tokens."""

    def rows(self, x: Any) -> Any:
        """Images or tokens as rows (N, H · W · C), in this order."""

    def relu(self, x: Any) -> Any: ...

    def leaky_relu(self, x: Any) -> Any:
        """With `SLOPE` below 0."""

    def gelu(self, x: Any) -> Any:
        """x Φ(x), not its approximation by tanh."""

    def tanh(self, x: Any) -> Any: ...


def padding(kernel: int, stride: int) -> int:
    """On each side of an image, so that its convolution is 1 / stride as large."""
    return (kernel - stride + 1) // 2


class Weight(NamedTuple):
    """A parameter.

    shape: of the array.
    places: pixels at which a sample is multiplied by all of it, with those of the padding; 0 for scales and shifts.
    start: value of all elements at the start if `places` is 0; others are drawn.
    """

    shape: tuple[int, ...]
    places: int = 0
    start: float = 0.0

    @property
    def products(self) -> int:
        """Multiplications of one sample."""
        return self.places * math.prod(self.shape)


Weights = dict[str, Weight]


class Network(NamedTuple):
    """A function with its parameters.

    weights: in the order in which a sample meets them.
    apply: takes operations, the parameters as a framework has them, and latents (N, latent) or images.
    attention: multiplications of a sample in products of two results, in which no parameter is.
    """

    weights: Weights
    apply: Callable[[Operations, dict[str, Any], Any], Any]
    attention: int = 0


def _conv(name: str, kernel: int, inputs: int, outputs: int, places: int, bias: bool = False) -> Weights:
    weight = {name: Weight((kernel, kernel, inputs, outputs), places)}
    return weight | {f"{name}_bias": Weight((outputs,))} if bias else weight


def _dense(name: str, inputs: int, outputs: int, places: int = 1, bias: bool = True) -> Weights:
    weight = {name: Weight((inputs, outputs), places)}
    return weight | {f"{name}_bias": Weight((outputs,))} if bias else weight


def _norm(name: str, channels: int) -> Weights:
    return {f"{name}_scale": Weight((channels,), start=1.0), f"{name}_shift": Weight((channels,))}


def _alone(o: Operations, w: dict[str, Any], x: Any) -> Any:
    return x


NOTHING = Network({}, _alone)


def self_attention(size: int, width: int) -> Network:
    """Images plus gamma times what each of their size x size pixels sees in all (Zhang et al. 2019), gamma from 0.5.

    One head, keys of width / 8 features and values of width / 2; no pooling and no spectral normalisation.
    """

    def apply(o: Operations, w: dict[str, Any], x: Any) -> Any:
        pixels = o.tokens(x)
        q, k, v = (o.dense(pixels, w[name]) for name in ("query", "key", "value"))
        seen = o.dense(o.attention(q, k, v, 1, 1.0), w["out"])
        return x + w["gamma"] * o.images(seen, size)

    pixels, keys, values = size**2, width // 8, width // 2
    weights = (
        _dense("query", width, keys, pixels, bias=False)
        | _dense("key", width, keys, pixels, bias=False)
        | _dense("value", width, values, pixels, bias=False)
        | _dense("out", values, width, pixels, bias=False)
        | {"gamma": Weight((), start=0.5)}
    )
    return Network(weights, apply, pixels**2 * (keys + values))


def dcgan(size: int, width: int, latent: int, middle: Network = NOTHING) -> tuple[Network, Network]:
    """Radford, Metz and Chintala 2016, for images of size x size pixels and one channel.

    `middle` stands where both networks have images of size / 2 pixels and `width` channels.
    """
    half, quarter = size // 2, size // 4

    def generate(o: Operations, w: dict[str, Any], z: Any) -> Any:
        x = o.images(o.dense(z, w["first"]), quarter)
        x = o.relu(o.batch_norm(x, w["norm0_scale"], w["norm0_shift"]))
        x = o.conv_transpose(x, w["second"], stride=2)
        x = o.relu(o.batch_norm(x, w["norm1_scale"], w["norm1_shift"]))
        return o.tanh(o.conv_transpose(middle.apply(o, w, x), w["last"], w["last_bias"], stride=2))

    def judge(o: Operations, w: dict[str, Any], x: Any) -> Any:
        x = o.leaky_relu(o.conv(x, w["first"], w["first_bias"], stride=2))
        x = o.conv(middle.apply(o, w, x), w["second"], stride=2)
        x = o.leaky_relu(o.batch_norm(x, w["norm_scale"], w["norm_shift"]))
        return o.dense(o.rows(x), w["last"], w["last_bias"])

    generator = (
        _dense("first", latent, quarter**2 * 2 * width, bias=False)
        | _norm("norm0", 2 * width)
        | _conv("second", 4, width, 2 * width, quarter**2)
        | _norm("norm1", width)
        | middle.weights
        | _conv("last", 4, 1, width, half**2)
        | {"last_bias": Weight((1,))}
    )
    discriminator = (
        _conv("first", 4, 1, width, half**2, bias=True)
        | middle.weights
        | _conv("second", 4, width, 2 * width, quarter**2)
        | _norm("norm", 2 * width)
        | _dense("last", quarter**2 * 2 * width, 1)
    )
    return Network(generator, generate, middle.attention), Network(discriminator, judge, middle.attention)


def transformers(size: int, width: int) -> Network:
    """Two transformers with convolutional projections (Wu et al. 2021) on size x size tokens, and a last layer norm.

    Queries, keys and values are depth-wise 3 x 3 convolutions, those of keys and values with stride 2, and a dense
    layer.
    """

    def block(o: Operations, w: dict[str, Any], at: str, x: Any) -> Any:
        near = o.images(o.layer_norm(x, w[f"{at}_norm0_scale"], w[f"{at}_norm0_shift"]), size)

        def projection(name: str, stride: int) -> Any:
            local = o.conv(near, w[f"{at}_{name}_local"], stride=stride, groups=width)
            return o.dense(o.tokens(local), w[f"{at}_{name}"], w[f"{at}_{name}_bias"])

        q, k, v = projection("query", 1), projection("key", 2), projection("value", 2)
        far = o.attention(q, k, v, HEADS, 1 / math.sqrt(width // HEADS))
        x = x + o.dense(far, w[f"{at}_out"], w[f"{at}_out_bias"])
        hidden = o.layer_norm(x, w[f"{at}_norm1_scale"], w[f"{at}_norm1_shift"])
        hidden = o.gelu(o.dense(hidden, w[f"{at}_wide"], w[f"{at}_wide_bias"]))
        return x + o.dense(hidden, w[f"{at}_narrow"], w[f"{at}_narrow_bias"])

    def apply(o: Operations, w: dict[str, Any], x: Any) -> Any:
        for k in range(BLOCKS):
            x = block(o, w, f"block{k}", x)
        return o.layer_norm(x, w["norm_scale"], w["norm_shift"])

    tokens, seen = size**2, ((size + 1) // 2) ** 2
    weights: Weights = {}
    for at in (f"block{k}" for k in range(BLOCKS)):
        weights |= _norm(f"{at}_norm0", width)
        for name, places in (("query", tokens), ("key", seen), ("value", seen)):
            weights |= _conv(f"{at}_{name}_local", 3, 1, width, places)
            weights |= _dense(f"{at}_{name}", width, width, places)
        weights |= _dense(f"{at}_out", width, width, tokens) | _norm(f"{at}_norm1", width)
        weights |= _dense(f"{at}_wide", width, 2 * width, tokens)
        weights |= _dense(f"{at}_narrow", 2 * width, width, tokens)
    return Network(weights | _norm("norm", width), apply, BLOCKS * tokens * seen * 2 * width)


def cvt(size: int, width: int, latent: int) -> tuple[Network, Network]:
    """Transformers where a side has a quarter of the pixels, with (transposed) convolutions from and to images."""
    half, quarter = size // 2, size // 4
    middle = transformers(quarter, width)

    def generate(o: Operations, w: dict[str, Any], z: Any) -> Any:
        x = o.tokens(o.images(o.dense(z, w["first"], w["first_bias"]), quarter))
        x = o.images(middle.apply(o, w, x), quarter)
        x = o.leaky_relu(o.conv_transpose(x, w["second"], w["second_bias"], stride=2))
        return o.tanh(o.conv_transpose(x, w["last"], w["last_bias"], stride=2))

    def judge(o: Operations, w: dict[str, Any], x: Any) -> Any:
        x = o.leaky_relu(o.conv(x, w["first"], w["first_bias"], stride=2))
        x = o.conv(x, w["second"], w["second_bias"], stride=2)
        return o.dense(o.rows(middle.apply(o, w, o.tokens(x))), w["last"], w["last_bias"])

    generator = (
        _dense("first", latent, quarter**2 * width)
        | middle.weights
        | _conv("second", 4, width // 2, width, quarter**2)
        | {"second_bias": Weight((width // 2,))}
        | _conv("last", 4, 1, width // 2, half**2)
        | {"last_bias": Weight((1,))}
    )
    discriminator = (
        _conv("first", 4, 1, width // 2, half**2, bias=True)
        | _conv("second", 4, width // 2, width, quarter**2, bias=True)
        | middle.weights
        | _dense("last", quarter**2 * width, 1)
    )
    return Network(generator, generate, middle.attention), Network(discriminator, judge, middle.attention)


MODELS: dict[str, Callable[[int, int, int], tuple[Network, Network]]] = {
    "dcgan": dcgan,
    "sagan": lambda size, width, latent: dcgan(size, width, latent, self_attention(size // 2, width)),
    "cvt": cvt,
}
