"""A small MNIST classifier in NumPy: a measure for samples that does not depend on the library under test."""

from os import PathLike
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
PART = 250  # images at a time: their patches take 50 MB


def _layer(x: Array, weights: Array, bias: Array) -> Array:
    """3x3 convolution of (N, H, W, C) in a border of zeros, ReLU, maximum of each 2x2; weights (O, C, 3, 3)."""
    count, height, width, channels = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))  # (N, H, W, C, 3, 3)
    patches = windows.reshape(count * height * width, channels * 9)
    maps = (patches @ weights.reshape(len(weights), -1).T).reshape(count, height // 2, 2, width // 2, 2, -1)
    pooled: Array = np.maximum(maps.max((2, 4)) + bias, 0)
    return pooled


def probabilities(images: Array, weights: str | PathLike[str]) -> Array:
    """The classes' probabilities, float32 (N, 10), of images (N, 28, 28, 1), uint8 or floats in [0, 1].

    `weights` is an NPZ file with conv1, conv2, fc1 and fc2, each `.weight` and `.bias`, in PyTorch's layouts.
    """
    with np.load(weights) as file:
        w = {name: file[name] for name in file.files}
    parts = []
    for i in range(0, len(images), PART):
        part = images[i : i + PART]
        x = part.astype(np.float32) / (255 if part.dtype == np.uint8 else 1)
        x = _layer((x - 0.1307) / 0.3081, w["conv1.weight"], w["conv1.bias"])
        x = _layer(x, w["conv2.weight"], w["conv2.bias"])
        x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # channels first, as the dense layer was trained
        x = np.maximum(x @ w["fc1.weight"].T + w["fc1.bias"], 0) @ w["fc2.weight"].T + w["fc2.bias"]
        x = np.exp(x - x.max(1, keepdims=True))
        parts.append(x / x.sum(1, keepdims=True))
    return np.concatenate(parts)
