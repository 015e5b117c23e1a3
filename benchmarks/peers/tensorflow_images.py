"""Convolutional networks in TensorFlow: the operations of `benchmarks.networks`, channels last.

Its "SAME" is the padding of the others for all sizes of image that are measured.
"""

import math
from functools import partial
from typing import Any

import tensorflow as tf

from benchmarks.scenarios import SLOPE

relu, tanh = tf.nn.relu, tf.tanh
leaky_relu = partial(tf.nn.leaky_relu, alpha=SLOPE)


def gelu(x: Any) -> Any:
    return (
        0.5 * x * (1.0 + tf.math.erf(x / math.sqrt(2.0)))
    )  # as tf.nn.gelu, which rounds the root to float32


def _plus(y: Any, bias: Any) -> Any:
    return y if bias is None else tf.nn.bias_add(y, bias)


def dense(x: Any, weight: Any, bias: Any = None) -> Any:
    return _plus(tf.tensordot(x, weight, 1) if x.shape.rank > 2 else x @ weight, bias)


def conv(x: Any, weight: Any, bias: Any = None, stride: int = 1, groups: int = 1) -> Any:
    if groups == 1:
        return _plus(tf.nn.conv2d(x, weight, stride, "SAME"), bias)
    depthwise = tf.transpose(weight, (0, 1, 3, 2))
    return _plus(tf.nn.depthwise_conv2d(x, depthwise, (1, stride, stride, 1), "SAME"), bias)


def conv_transpose(x: Any, weight: Any, bias: Any = None, stride: int = 1) -> Any:
    batch, height, width, _ = x.shape
    shape = (batch, height * stride, width * stride, weight.shape[2])
    return _plus(tf.nn.conv2d_transpose(x, weight, shape, stride, "SAME"), bias)


def batch_norm(x: Any, scale: Any, shift: Any) -> Any:
    if x.dtype == tf.float32:
        return tf.compat.v1.nn.fused_batch_norm(x, scale, shift, epsilon=1e-5)[0]
    return _normalized(x, [0, 1, 2], scale, shift)  # the kernel is for float32 only


def layer_norm(x: Any, scale: Any, shift: Any) -> Any:
    return _normalized(x, [2], scale, shift)


def _normalized(x: Any, axes: list[int], scale: Any, shift: Any) -> Any:
    # Not tf.nn.moments: the second derivatives of its variance are wrong, because it holds the mean to be a constant.
    mean = tf.reduce_mean(x, axes, keepdims=True)
    variance = tf.reduce_mean(tf.math.squared_difference(x, mean), axes, keepdims=True)
    return tf.nn.batch_normalization(x, mean, variance, shift, scale, 1e-5)


def attention(q: Any, k: Any, v: Any, heads: int, scale: float) -> Any:
    batch, length, _ = q.shape

    def parted(x: Any) -> Any:
        return tf.transpose(tf.reshape(x, (batch, -1, heads, x.shape[2] // heads)), (0, 2, 1, 3))

    scores = tf.matmul(scale * parted(q), parted(k), transpose_b=True)
    seen = tf.matmul(tf.nn.softmax(scores), parted(v))
    return tf.reshape(tf.transpose(seen, (0, 2, 1, 3)), (batch, length, v.shape[2]))


def images(x: Any, size: int) -> Any:
    return tf.reshape(x, (x.shape[0], size, size, -1))


def tokens(x: Any) -> Any:
    return tf.reshape(x, (x.shape[0], x.shape[1] * x.shape[2], x.shape[3]))


def rows(x: Any) -> Any:
    return tf.reshape(x, (x.shape[0], -1))
