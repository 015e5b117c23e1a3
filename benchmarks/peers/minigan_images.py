"""Convolutional networks in minigan: the operations of `benchmarks.networks`, and single convolutions compiled."""

from functools import partial
from typing import Any

import minigan as mg
from benchmarks.convolutional import ConvLayer
from benchmarks.networks import padding
from benchmarks.peers import Program
from benchmarks.scenarios import SLOPE

relu, gelu, tanh = mg.ops.relu, mg.ops.gelu, mg.ops.tanh
leaky_relu = partial(mg.ops.leaky_relu, slope=SLOPE)
layer_norm = mg.ops.layer_norm


def dense(x: Any, weight: Any, bias: Any = None) -> Any:
    return x @ weight if bias is None else mg.ops.affine(x, weight, bias)


def conv(x: Any, weight: Any, bias: Any = None, stride: int = 1, groups: int = 1) -> Any:
    y = mg.ops.conv(x, weight, stride, padding(weight.shape[0], stride), groups=groups)
    return y if bias is None else y + bias


def conv_transpose(x: Any, weight: Any, bias: Any = None, stride: int = 1) -> Any:
    y = mg.ops.conv_transpose(x, weight, stride, padding(weight.shape[0], stride))
    return y if bias is None else y + bias


def batch_norm(x: Any, scale: Any, shift: Any) -> Any:
    return mg.ops.batch_norm(x, *mg.ops.moments(x, (0, 1, 2)), scale, shift)


def attention(q: Any, k: Any, v: Any, heads: int, scale: float) -> Any:
    def parted(x: Any) -> Any:
        batch, length, features = x.shape
        return x.reshape((batch, length, heads, features // heads)).transpose((0, 2, 1, 3))

    y = mg.ops.scaled_dot_product_attention(parted(q), parted(k), parted(v), scale=scale)
    return y.transpose((0, 2, 1, 3)).reshape((*q.shape[:2], v.shape[-1]))


def images(x: Any, size: int) -> Any:
    return x.reshape((x.shape[0], size, size, -1))


def tokens(x: Any) -> Any:
    return x.reshape((x.shape[0], x.shape[1] * x.shape[2], x.shape[3]))


def rows(x: Any) -> Any:
    return x.reshape((x.shape[0], -1))


def conv_layer(scenario: ConvLayer, dtype: str, variant: str) -> Program:
    """The operation or its gradient. Compiled, its memory is the next step's too; not compiled, y is made besides."""
    shape = scenario.shape
    x, w, dy = map(mg.asarray, scenario.operands(dtype))

    def step() -> Any:
        y = conv(x, w, stride=shape.stride, groups=shape.groups)
        if scenario.wanted == "y":
            return y
        (gradient,) = mg.grad(y, x if scenario.wanted == "dx" else w, dy)
        return gradient

    compiled = mg.compile(step, copy=False) if variant == "compiled" else step
    return Program(compiled, lambda y: scenario.numbers(y.numpy()))
