"""Convolutional networks in JAX: the operations of `benchmarks.networks`, channels last, and single convolutions."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.convolutional import ConvLayer
from benchmarks.networks import padding
from benchmarks.peers import Program
from benchmarks.scenarios import SLOPE

AXES = ("NHWC", "HWIO", "NHWC")
relu, tanh = jax.nn.relu, jnp.tanh
gelu = partial(jax.nn.gelu, approximate=False)


def leaky_relu(x: Any) -> Any:
    return jnp.where(x > 0, x, SLOPE * x)


def _plus(y: Any, bias: Any) -> Any:
    return y if bias is None else y + bias


def dense(x: Any, weight: Any, bias: Any = None) -> Any:
    return _plus(x @ weight, bias)


def conv(x: Any, weight: Any, bias: Any = None, stride: int = 1, groups: int = 1) -> Any:
    pads = [(padding(weight.shape[0], stride),) * 2] * 2
    y = lax.conv_general_dilated(
        x, weight, (stride, stride), pads, dimension_numbers=AXES, feature_group_count=groups
    )
    return _plus(y, bias)


def conv_transpose(x: Any, weight: Any, bias: Any = None, stride: int = 1) -> Any:
    pads = [
        (weight.shape[0] - 1 - padding(weight.shape[0], stride),) * 2
    ] * 2  # of the image with zeros between
    y = lax.conv_transpose(x, weight, (stride, stride), pads, dimension_numbers=AXES, transpose_kernel=True)
    return _plus(y, bias)


def _normalized(x: Any, axes: tuple[int, ...], scale: Any, shift: Any) -> Any:
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) * (lax.rsqrt(variance + 1e-5) * scale) + shift


def batch_norm(x: Any, scale: Any, shift: Any) -> Any:
    return _normalized(x, (0, 1, 2), scale, shift)


def layer_norm(x: Any, scale: Any, shift: Any) -> Any:
    return _normalized(x, (2,), scale, shift)


def attention(q: Any, k: Any, v: Any, heads: int, scale: float) -> Any:
    q, k, v = (x.reshape((*x.shape[:2], heads, -1)) for x in (q, k, v))
    weights = jax.nn.softmax(scale * jnp.einsum("nthd,nshd->nhts", q, k))
    return jnp.einsum("nhts,nshd->nthd", weights, v).reshape((*q.shape[:2], -1))


def images(x: Any, size: int) -> Any:
    return x.reshape((x.shape[0], size, size, -1))


def tokens(x: Any) -> Any:
    return x.reshape((x.shape[0], -1, x.shape[3]))


def rows(x: Any) -> Any:
    return x.reshape((x.shape[0], -1))


def conv_layer(scenario: ConvLayer, dtype: str, variant: str) -> Program:
    """The function or its linear transpose under `jit`; a step waits for its result, so that none overlap."""
    shape = scenario.shape
    x, w, dy = map(jnp.array, scenario.operands(dtype))
    layer = partial(conv, stride=shape.stride, groups=shape.groups)

    @jax.jit
    def result(x: Any, w: Any, dy: Any) -> Any:
        if scenario.wanted == "y":
            return layer(x, w)
        transposed = (
            jax.linear_transpose(lambda x: layer(x, w), x)
            if scenario.wanted == "dx"
            else jax.linear_transpose(lambda w: layer(x, w), w)
        )
        return transposed(dy)[0]

    return Program(
        lambda: jax.block_until_ready(result(x, w, dy)), lambda y: scenario.numbers(jax.device_get(y))
    )
