"""A small classifier that is trained on the data at hand: its last hidden layer is a feature space."""

import contextlib
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from minigan import checkpoint, nn, ops
from minigan.backend import Array
from minigan.data.sampler import Batches, as_images, as_labels, as_points
from minigan.data.sets import cache_folder
from minigan.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from minigan.files import Path
from minigan.metrics.spaces import Space
from minigan.nn.init import he_normal
from minigan.ops.random import Stream
from minigan.optim import Adam, linear
from minigan.program import compile
from minigan.tape import grad, no_grad
from minigan.tensor import Tensor

VERSION = 1  # of networks and training: a change of either is a change of this
FEATURES = 128
LEAST = 20  # samples
HELD_OUT = 10  # one sample of so many is not trained on
PART = 250  # samples that go through the network at a time, outside of training
SMALL = 16  # images whose sides are below this have dense layers only
COARSE = 7  # convolutions halve an image until a side is at most this

Show = Callable[[int, int], object]


class _Standardise(nn.Module):
    """x - mean over std, of all numbers of the training data."""

    buffers = ("mean", "std")

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = (Tensor(np.array([value], np.float32)) for value in (mean, std))

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        return (x - self.mean) / self.std


class Classifier(Space):
    """A trained classifier, whose features are the 128 numbers before its logits. `classifier` makes one.

    Attributes:
        classes: K.
        accuracy: the share of held-out samples whose class it finds.
        cached: whether it was found on the disk.
    """

    def __init__(self, network: nn.Sequential, classes: int, accuracy: float, cached: bool) -> None:
        super().__init__("classifier", lambda samples: self._through(samples, -1))
        self._network, self.classes, self.accuracy, self.cached = network, classes, accuracy, cached

    def probabilities(self, samples: Any) -> Array:
        """The probability of each class, float32 (N, K), by the softmax of the logits."""
        logits = self._through(np.asarray(samples), None).astype(np.float64)
        odds = np.exp(logits - logits.max(1, keepdims=True))
        found: Array = (odds / odds.sum(1, keepdims=True)).astype(np.float32)
        return found

    def labels(self, samples: Any) -> Array:
        """The most probable class of each sample, int64 (N,)."""
        found: Array = self._through(np.asarray(samples), None).argmax(1)
        return found

    def _through(self, samples: Array, stop: int | None) -> Array:
        """The output of the layers before `stop`."""
        samples = as_points(samples) if np.ndim(samples) == 2 else as_images(samples)
        part = nn.Sequential(*self._network.layers[:stop])
        with no_grad():
            found = [
                part(Tensor(_floats(samples[i : i + PART]))).numpy() for i in range(0, len(samples), PART)
            ]
        return np.concatenate(found)


def classifier(
    images: Any,
    labels: Any,
    *,
    steps: int = 1500,
    batch: int = 128,
    lr: float = 2e-3,
    seed: int = 0,
    balanced: bool = False,
    cache: Path | None = None,
    progress: Show | None = None,
) -> Classifier:
    """Train a classifier on images (N, H, W, C), or points (N, P), with their labels; a feature space and a judge.

    Convolutions with strides, or for sides below 16 and points dense layers; Adam, whose rate falls to zero, on the
    softmax cross entropy. One sample of ten is held out, by which `accuracy` is measured. It is kept in
    minigan/classifiers in the user's cache, by the SHA-256 of data and settings, and found there the next time; a file
    that is damaged or cannot be written only means that it is trained anew.

    Args:
        images, labels: as `minigan.data.as_images` or `as_points` and `as_labels` take them, at least 20, of at least
            two classes and no more than there are samples, else `DataError`.
        steps, batch, lr: of the training; `ConfigError` for steps or a batch below 1.
        seed: of the weights, the order of the data, and what is held out.
        balanced: let the classes take turns in the batches, so that what it finds does not lean to frequent ones.
        cache: the folder that keeps it instead.
        progress: called with the steps made and those there are.

    >>> import tempfile, minigan as mg
    >>> images, labels = mg.data.digits()
    >>> judge = mg.metrics.classifier(images, labels, steps=60, cache=tempfile.mkdtemp())
    >>> judge.accuracy > 0.8, judge(images[:5]).shape, judge.probabilities(images[:5]).shape
    (True, (5, 128), (5, 10))
    """
    samples = as_points(images) if np.ndim(images) == 2 else as_images(images)
    known = as_labels(labels, len(samples))
    classes = int(known.max()) + 1
    if len(samples) < LEAST or len(np.unique(known)) < 2:
        raise DataError(
            f"classifier: {len(samples)} samples of {len(np.unique(known))} classes: expected at least {LEAST} of 2"
        )
    if classes > len(samples):
        raise DataError(f"classifier: labels up to {classes - 1} for {len(samples)} samples")
    if not (steps >= 1 and batch >= 1):
        raise ConfigError(f"classifier: {steps} steps of batch {batch}: expected at least 1")
    settings: dict[str, Any] = {"version": VERSION, "steps": int(steps), "batch": int(batch), "lr": float(lr)}
    settings["seed"] = int(seed)
    settings |= {"balanced": True} if balanced else {}
    network = _network(samples, classes, seed)
    path = _path(samples, known, settings, cache)
    accuracy = _found(path, network)
    if accuracy is None:
        accuracy = _train(network, classes, samples, known, settings, progress)
        if not all(np.isfinite(x.numpy()).all() for x in network.parameters().values()):
            raise NonFiniteError(f"classifier: its training diverged at a rate of {lr:g}")
        # A cache that cannot be written is none.
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            checkpoint.save(path, network.state(), {"accuracy": repr(accuracy)})
        return Classifier(network, classes, accuracy, cached=False)
    return Classifier(network, classes, accuracy, cached=True)


def _floats(samples: Array) -> Array:
    if samples.dtype == np.uint8:
        return np.divide(samples, 255, dtype=np.float32)
    return samples.astype(np.float32, copy=False)


def _network(samples: Array, classes: int, seed: int) -> nn.Sequential:
    stream = Stream(seed, "classifier")
    shape = samples.shape[1:]
    scale = 255.0 if samples.dtype == np.uint8 else 1.0
    mean, std = (float(f(samples, dtype=np.float64)) / scale for f in (np.mean, np.std))
    layers: list[nn.Module] = [_Standardise(mean, std or 1.0)]
    if len(shape) == 3 and min(shape[:2]) >= SMALL:
        height, width, channels = shape
        wide = 16
        while min(height, width) > COARSE:
            layers += [
                nn.Conv(channels, wide, 5, stride=2, padding=2, init=he_normal, stream=stream),
                nn.Activation("relu"),
            ]
            height, width, channels, wide = -(-height // 2), -(-width // 2), wide, min(2 * wide, 64)
        shape = (height, width, channels)
    else:
        layers += [
            nn.Flatten(),
            nn.Dense(math.prod(shape), FEATURES, init=he_normal, stream=stream),
            nn.Activation("relu"),
        ]
        shape = (FEATURES,)
    hidden = nn.Dense(math.prod(shape), FEATURES, init=he_normal, stream=stream)
    last = nn.Dense(FEATURES, classes, stream=stream)
    return nn.Sequential(*layers, nn.Flatten(), hidden, nn.Activation("relu"), last)


def _train(
    network: nn.Sequential,
    classes: int,
    samples: Array,
    labels: Array,
    settings: dict[str, Any],
    progress: Show | None,
) -> float:
    """Train in place; gives the accuracy on what is held out."""
    steps, seed = settings["steps"], settings["seed"]
    order = Stream(seed, "classifier/held out").permutation(len(samples))
    held, rest = np.split(order, [len(samples) // HELD_OUT])
    drawn = "balanced" if "balanced" in settings else "shuffled"
    stream = Stream(seed, "classifier/data")
    batches = Batches(samples[rest], settings["batch"], stream, labels=labels[rest], sampling=drawn)
    adam, weights = Adam(linear(settings["lr"], steps)), network.parameters()
    state = adam.init(weights)

    @compile
    def step(x: Tensor, right: Tensor) -> Tensor:
        loss = -(right * ops.log_softmax(network(x))).sum() / x.shape[0]
        adam.update(weights, grad(loss, list(weights.values())), state)
        return loss

    classes_of = np.eye(classes, dtype=np.float32)
    for k in range(steps):
        step(batches.at(k), classes_of[batches.labels_at(k)])
        if progress:
            progress(k + 1, steps)
    found = Classifier(network, classes, 0.0, False).labels(samples[held])
    return float((found == labels[held]).mean())


def _path(samples: Array, labels: Array, settings: dict[str, Any], cache: Path | None) -> str:
    import hashlib

    data = checkpoint.digest({"samples": samples, "labels": labels})
    key = hashlib.sha256(f"{data} {sorted(settings.items())}".encode()).hexdigest()
    folder = os.path.join(cache_folder(), "classifiers") if cache is None else os.fsdecode(cache)
    return os.path.join(folder, f"{key}.safetensors")


def _found(path: str, network: nn.Sequential) -> float | None:
    """The accuracy of the classifier that is kept there, whose weights the network then has."""
    try:
        arrays, about = checkpoint.load_all(path, sealed=True)
        accuracy = float(about["accuracy"])
        network.load_state(arrays)
    except (CheckpointError, KeyError, ValueError):
        return None
    return accuracy
