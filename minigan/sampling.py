"""Samples from a generator: from a seed to latents, and from these to images or points."""

import math
from typing import Any

import numpy as np

from minigan.backend import Array, moved
from minigan.data.sampler import as_labels
from minigan.errors import ConfigError
from minigan.nn import Module
from minigan.nn.module import device_of_all, forward
from minigan.ops.random import Stream
from minigan.tape import no_grad
from minigan.tensor import Tensor

LATENTS = ("uniform", "normal")
CHUNK = 256  # samples made at a time, so that the memory of the layers does not grow with their number


def positive(**settings: int) -> None:
    """Raise `ConfigError` unless every setting is an integer from 1."""
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ConfigError(f"{name} is {value!r}: expected an integer from 1")


class Sampler:
    """A generator with the distribution of its latents.

    Args:
        generator: from latents (N, latent) to samples (N, *shape); `latent` and `shape` are attributes of it, and
            `bounds` may say between which values a sample lies, and `classes` how many its labels are of.
        latent: what latents are drawn from, "uniform" in (-1, 1) or "normal" (0, 1).

    Attributes:
        points: samples are points of any value, as those of a generator without a last activation whose shape is
            flat; otherwise they are images.
        classes: of the labels that the generator is called with, or `None`.

    Samples are drawn as outside of training: batch norm goes by its running statistics. Those of averaged weights are
    those of the weights that were trained.

    >>> import minigan as mg
    >>> from minigan.sampling import Sampler
    >>> sampler = Sampler(mg.models.mlp_generator(8, (16,), (8, 8, 1)))
    >>> sampler.sample(3).shape, sampler.interpolate(rows=2, columns=5).shape
    ((3, 8, 8, 1), (10, 8, 8, 1))
    """

    def __init__(self, generator: Module, latent: str = "uniform") -> None:
        if latent not in LATENTS:
            raise ConfigError(f"latent {latent!r} does not exist; there are {', '.join(LATENTS)}")
        if not all(hasattr(generator, name) for name in ("latent", "shape")):
            raise ConfigError("the generator needs attributes: latent, a number, and shape, of one sample")
        self.generator, self.latent = generator, latent
        self.shape: tuple[int, ...] = tuple(getattr(generator, "shape", ()))
        self.latents = (int(getattr(generator, "latent", 0)),)
        self.dtype = next((p.dtype for p in generator.parameters().values()), np.dtype(np.float32))
        bounds = getattr(generator, "bounds", (0.0, 1.0))
        self.points = len(self.shape) == 1 and bounds is None
        self.classes: int | None = getattr(generator, "classes", None)
        # Samples of a tanh lie in (-1, 1), images in [0, 1]: x ↦ 2 x - 1 takes the one to the other.
        self.signed = bounds == (-1.0, 1.0)

    def draw(self, stream: Stream, count: int, device: str = "cpu") -> Tensor:
        """Latents, (count, latent), drawn on a device; another one may round normal ones otherwise."""
        shape = (count, *self.latents)
        if self.latent == "normal":
            return stream.normal(shape, dtype=self.dtype, device=device)
        return stream.uniform(shape, -1.0, 1.0, dtype=self.dtype, device=device)

    def seen(self, batch: Array) -> Array:
        """A batch of data as the discriminator is given it: of the shape, the dtype and the bounds of samples."""
        batch = batch.reshape(len(batch), *self.shape).astype(self.dtype, copy=False)
        return batch * 2 - 1 if self.signed else batch

    def sample(self, n: int, seed: int = 0, labels: Any = None) -> Array:
        """`n` samples, as `GAN.sample` gives them."""
        positive(n=n)
        return self.generate(self.draw(Stream(seed, "sample"), n).numpy(), self.labels(n, labels))

    def labels(self, n: int, labels: Any = None) -> Array | None:
        """The labels of `n` samples, int64 (n,): one for all, those given, or else all classes in turn.

        `None` for a generator without classes, and `ConfigError` if labels are given for it, or one that does not
        exist; `DataError` for an array of other labels.

        >>> import minigan as mg
        >>> from minigan.sampling import Sampler
        >>> Sampler(mg.models.mlp_generator(8, (16,), (8, 8, 1), classes=3)).labels(5)
        array([0, 1, 2, 0, 1])
        """
        if self.classes is None:
            if labels is not None:
                raise ConfigError("the generator has no classes: it cannot draw samples of one")
            return None
        if labels is None:
            return np.arange(n) % self.classes
        if np.ndim(labels):
            return as_labels(labels, n, self.classes)
        if (
            isinstance(labels, bool)
            or not isinstance(labels, (int, np.integer))
            or not 0 <= labels < self.classes
        ):
            raise ConfigError(f"class {labels!r}: expected an integer from 0 to {self.classes - 1}")
        return np.full(n, labels, np.int64)

    def rows(self, n: int, labels: Any = None) -> tuple[int, Array | None, int | None]:
        """For a picture of about `n` samples: how many to draw, their labels, and how many stand in a row.

        Each class has a row of its own, where labels are not given; otherwise the number in a row is `None`.
        """
        if self.classes is None or labels is not None:
            return n, self.labels(n, labels), None
        each = -(-n // self.classes)
        return each * self.classes, np.repeat(np.arange(self.classes), each), each

    def interpolate(self, rows: int, columns: int, seed: int = 0, labels: Any = None) -> Array:
        """Samples along `rows` walks of `columns` steps, each from one latent to another, row after row.

        labels: as for `labels`, one for each walk.

        The walks are straight for uniform latents. For normal ones they keep to the sphere on which these lie: at t
        between a and b, (sin((1-t) ω) a + sin(t ω) b) / sin ω with ω the angle between them (White 2016, "Sampling
        generative networks", §2.1).
        """
        positive(rows=rows, columns=columns)
        ends = self.draw(Stream(seed, "sample"), 2 * rows).numpy().astype(np.float64)
        start, end = ends[0::2, None], ends[1::2, None]
        t = np.linspace(0, 1, columns)[:, None]
        from_start, from_end = 1 - t, t
        if self.latent == "normal":
            lengths = np.linalg.norm(start, axis=-1) * np.linalg.norm(end, axis=-1)
            angle = np.arccos(np.clip((start * end).sum(-1) / lengths, -1, 1))[..., None]
            curved = np.sin(angle) > 1e-6  # in one dimension the sphere is two points
            sine = np.where(curved, np.sin(angle), 1.0)
            from_start = np.where(curved, np.sin((1 - t) * angle) / sine, 1 - t)
            from_end = np.where(curved, np.sin(t * angle) / sine, t)
        walk = from_start * start + from_end * end
        known = self.labels(rows, labels)
        return self.generate(
            walk.reshape(-1, *self.latents).astype(self.dtype),
            None if known is None else known.repeat(columns),
        )

    def generate(self, latents: Array, labels: Array | None) -> Array:
        """The samples of latents (n, latent), each of its label where the generator has classes; see `GAN.sample`.

        They are computed on the generator's device.
        """

        device = device_of_all(self.generator)

        def part(chosen: slice) -> Array:
            known = None if labels is None else Tensor(moved(labels[chosen], device))
            z = Tensor(moved(latents[chosen], device))
            return forward(self.generator, z, train=False, random=None, labels=known).numpy()

        with no_grad():
            parts = [part(slice(i, i + CHUNK)) for i in range(0, len(latents), CHUNK)]
        samples = np.concatenate(parts).astype(np.float32, copy=False)
        if self.points:
            return samples
        samples = samples * 0.5 + 0.5 if self.signed else samples
        return np.clip(samples, 0, 1).reshape(len(latents), *_as_image(self.shape))


def _as_image(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) > 1:
        return shape
    side = math.isqrt(shape[0])
    return (side, side, 1) if side * side == shape[0] else (1, shape[0], 1)
