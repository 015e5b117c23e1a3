"""Differentiable augmentation of images: real and generated ones are changed alike before they are judged."""

import numpy as np

from minigan.backend import Array
from minigan.errors import ConfigError, ShapeError
from minigan.ops.attention import embedding
from minigan.ops.random import Stream
from minigan.tape import no_grad
from minigan.tensor import Tensor, TensorLike, lift, reshape
from minigan.trace import host

CHANGES = ("brightness", "translation", "cutout")
SHIFT, HOLE, BRIGHTER = 0.125, 0.5, 0.25  # parts of the side, of the side, and of the span of values


def changes(policy: str) -> tuple[str, ...]:
    """The names in a policy, in the order in which they are made; `ConfigError` for one that does not exist.

    >>> from minigan.ops.augment import changes
    >>> changes("cutout,brightness")
    ('brightness', 'cutout')
    """
    if not isinstance(policy, str):
        raise ConfigError(
            f"augment: {policy!r}: expected a text such as 'translation,cutout', or an empty one"
        )
    given = [name.strip() for name in policy.split(",")] if policy else []
    for name in given:
        if name not in CHANGES:
            raise ConfigError(f"augment: {name!r} does not exist; there are {', '.join(CHANGES)}")
    return tuple(name for name in CHANGES if name in given)


def augment(x: TensorLike, policy: str, random: Stream, span: float = 1.0) -> Tensor:
    """Images (N, H, W, C), each changed at random, with derivatives.

    Zhao et al. 2020, "Differentiable augmentation for data-efficient GAN training", §3 and their code.

    Args:
        x: the images.
        policy: names with commas between them, of "brightness", which adds one number from ±span/4 to all pixels;
            "translation" by up to an eighth of each side, with zeros coming in; and "cutout", which puts a square of
            half the side to zero.
        random: where the numbers are from.
        span: between the smallest and the largest value of a pixel: 1, or 2 for images in [-1, 1].

    Raises: `ShapeError` for other shapes, `ConfigError` for other names.

    >>> import minigan as mg
    >>> image = mg.ops.Stream(0, "image").uniform((1, 8, 8, 1), low=0.5)
    >>> holes = mg.ops.augment(image, "cutout", mg.ops.Stream(1, "docs")).numpy() == 0
    >>> int(holes.sum())  # at the borders a square may be partly outside
    16
    """
    images, made = lift(x), changes(policy)
    if images.ndim != 4:
        raise ShapeError(f"augment: images of shape {images.shape}, expected (N, H, W, C)")
    count, height, width, channels = images.shape
    if "brightness" in made:
        with no_grad():
            shape = (count, 1, 1, 1)
            brighter = random.uniform(shape, -BRIGHTER * span, BRIGHTER * span, images.dtype, images.device)
        images = images + brighter
    if made in ((), ("brightness",)):
        return images

    dtype = images.dtype

    def draw() -> tuple[Array, Array]:
        """From where in the batch each pixel comes, (N, H, W), and 0 for those that are not to be kept, else 1."""
        chances = random.uniform((count, 4), dtype=np.float64).numpy().T
        sides, kept, hole = [], [], []
        for side, size, shift, place in zip((0, 1), (height, width), chances[:2], chances[2:], strict=True):
            most = round(SHIFT * size) if "translation" in made else 0
            source = np.arange(size) + (np.floor(shift * (2 * most + 1)) - most).astype(np.int64)[:, None]
            sides.append(np.expand_dims(np.clip(source, 0, size - 1), 2 - side))
            kept.append(np.expand_dims((source >= 0) & (source < size), 2 - side))
            edge = round(HOLE * size) if "cutout" in made else 0
            begin = np.floor(place * (size + 1 - edge % 2)).astype(np.int64)[:, None] - edge // 2
            hole.append(
                np.expand_dims((np.arange(size) >= begin) & (np.arange(size) < begin + edge), 2 - side)
            )
        stays = kept[0] & kept[1] & ~(hole[0] & hole[1])
        first = np.arange(count)[:, None, None] * (height * width)
        return first + sides[0] * width + sides[1], stays[..., None].astype(dtype)

    places, stays = host(draw, images.device)
    return embedding(reshape(images, (count * height * width, channels)), Tensor(places)) * Tensor(stays)
