"""Convolutional networks in PyTorch: the operations of `benchmarks.networks`, and single convolutions.

Images are (N, C, H, W) in memory that has the channels last, so that tokens and rows are views of them.
"""

from functools import partial
from typing import Any

import torch
from torch.nn import functional

from benchmarks.convolutional import ConvLayer
from benchmarks.networks import padding
from benchmarks.peers import Program
from benchmarks.scenarios import SLOPE, Array

relu, gelu, tanh = torch.relu, functional.gelu, torch.tanh
leaky_relu = partial(functional.leaky_relu, negative_slope=SLOPE)
dense = functional.linear


def given(array: Any) -> Any:
    """NumPy's array or a GPU's tensor as a tensor in the same memory; images with the axes that PyTorch numbers so."""
    tensor = array if isinstance(array, torch.Tensor) else torch.from_numpy(array)
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def weight(array: Array) -> Any:
    """A copy of a parameter in PyTorch's order of axes; kernels with the channels last in memory."""
    tensor = torch.from_numpy(array)
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1).clone(memory_format=torch.channels_last)
    return tensor.T.clone(memory_format=torch.contiguous_format) if tensor.ndim == 2 else tensor.clone()


def conv(x: Any, weight: Any, bias: Any = None, stride: int = 1, groups: int = 1) -> Any:
    return functional.conv2d(x, weight, bias, stride, padding(weight.shape[-1], stride), groups=groups)


def conv_transpose(x: Any, weight: Any, bias: Any = None, stride: int = 1) -> Any:
    return functional.conv_transpose2d(x, weight, bias, stride, padding(weight.shape[-1], stride))


def batch_norm(x: Any, scale: Any, shift: Any) -> Any:
    return functional.batch_norm(x, None, None, scale, shift, training=True)


def layer_norm(x: Any, scale: Any, shift: Any) -> Any:
    return functional.layer_norm(x, scale.shape, scale, shift)


def attention(q: Any, k: Any, v: Any, heads: int, scale: float) -> Any:
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    if q.shape[-1] == v.shape[-1]:
        seen = functional.scaled_dot_product_attention(q, k, v, scale=scale)
    else:  # for which it has no fused kernel, and takes longer than this
        seen = torch.softmax(scale * q @ k.mT, -1) @ v
    return seen.transpose(1, 2).flatten(2)


def images(x: Any, size: int) -> Any:
    return x.reshape(x.shape[0], size, size, -1).permute(0, 3, 1, 2)


def tokens(x: Any) -> Any:
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def rows(x: Any) -> Any:
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).flatten(1)


def conv_layer(scenario: ConvLayer, dtype: str, variant: str) -> Program:
    """The operation or the one that autograd calls for its gradient."""
    shape = scenario.shape
    x, w, dy = (make(a) for make, a in zip((given, weight, given), scenario.operands(dtype), strict=True))
    pads, wanted = padding(shape.kernel, shape.stride), [scenario.wanted == name for name in ("dx", "dw")]
    pair = [shape.stride] * 2, [pads] * 2, [1, 1]

    @torch.no_grad()
    def step() -> Any:
        if scenario.wanted == "y":
            return conv(x, w, stride=shape.stride, groups=shape.groups)
        gradients = torch.ops.aten.convolution_backward(
            dy, x, w, None, *pair, False, [0, 0], shape.groups, [*wanted, False]
        )
        return gradients[scenario.wanted == "dw"]

    order = (2, 3, 1, 0) if scenario.wanted == "dw" else (0, 2, 3, 1)
    return Program(step, lambda y: scenario.numbers(y.permute(order).numpy()))
