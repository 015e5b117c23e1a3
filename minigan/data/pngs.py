"""A folder of PNG pictures, decoded by Pillow."""

import os
import warnings
from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.data.reader import explained, opened
from minigan.errors import ConfigError, DataError, MiniganError
from minigan.extras import needs
from minigan.files import Path, reason, shown

MOST_PIXELS = 1 << 25  # of one picture, which is decoded whole
BEGIN = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


def read_pngs(folder: Path, size: int | None = None, channels: int | None = None) -> Array:
    """All pictures of a folder, in the order of their names, as uint8 (N, H, W, C).

    Args:
        folder: PNG files and nothing else; names that begin with a dot are passed over. Of 8 bits or fewer a channel,
            grey, colour or palette, up to 2**25 pixels; transparent parts are laid on white.
        size: side in pixels: the middle square of each picture is scaled to it (Lanczos). By default they are left as
            they are, and have to be of one size.
        channels: 1 for grey (ITU-R 601 luma), 3 for colour; by default as the first picture is, and then all have to
            be.

    Raises `DataError`, with the path, for any other, damaged or animated file; `ConfigError` for other settings;
    `ExtraError` without Pillow, extra `cli`.

    >>> import os, tempfile, numpy as np
    >>> from minigan.data.pngs import read_pngs
    >>> from minigan.pictures import save_png
    >>> folder = tempfile.mkdtemp()
    >>> for i in range(3):
    ...     save_png(os.path.join(folder, f"{i}.png"), np.full((20, 30), 80 * i, np.uint8))
    >>> read_pngs(folder).shape, read_pngs(folder, size=16, channels=3).shape
    ((3, 20, 30, 1), (3, 16, 16, 3))
    """
    if size is not None and not 1 <= size <= 4096:
        raise ConfigError(f"size is {size}: expected 1 to 4096 pixels")
    if channels not in (None, 1, 3):
        raise ConfigError(f"channels is {channels}: expected 1 (grey) or 3 (colour)")
    needs("PIL.Image", "cli")
    place = os.fsdecode(folder)
    with explained(place):
        names = sorted(name for name in os.listdir(place) if not name.startswith("."))
    if not names:
        raise DataError(f"{shown(place)}: an empty folder: expected PNG files")
    pictures: Array = np.empty(0)
    for i, name in enumerate(names):
        path = os.path.join(place, name)
        picture = _decoded(path, size, channels)
        if i == 0:
            with explained(place):
                pictures = np.empty((len(names), *picture.shape), np.uint8)
        elif picture.shape != pictures.shape[1:]:
            raise DataError(
                f"{shown(path)}: a picture of shape {picture.shape}, {shown(names[0])} has {pictures.shape[1:]}:"
                " choose a size, and channels 1 or 3"
            )
        pictures[i] = picture
    return pictures


def _decoded(path: str, size: int | None, channels: int | None) -> Array:
    """One picture as uint8 (H, W, C)."""
    from PIL import Image, ImageOps

    name = shown(path)
    with opened(path) as (file, _):
        head = file.read(29)
        if len(head) < 29 or not head.startswith(BEGIN):
            raise DataError(f"{name}: is no PNG file: the folder may hold only those")
        width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
        if not 1 <= width * height <= MOST_PIXELS:
            raise DataError(
                f"{name}: {width} x {height} pixels at byte 16: expected 1 to {MOST_PIXELS} in all"
            )
        if head[24] > 8:
            raise DataError(f"{name}: {head[24]} bits a channel at byte 24: expected up to 8")
        file.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                Image.open(file, formats=("PNG",)).verify()  # the checksums, which decoding passes over
                file.seek(0)
                image: Any = Image.open(file, formats=("PNG",))
                if image.size != (width, height) or image.n_frames > 1:
                    raise DataError(f"{name}: animated, or of two sizes: expected one picture")
                wanted = channels or (1 if image.mode in ("1", "L", "LA") else 3)
                image.load()
                if image.has_transparency_data:
                    white = Image.new("RGBA", image.size, "white")
                    image = Image.alpha_composite(white, image.convert("RGBA"))
                image = image.convert("L" if wanted == 1 else "RGB")
                if size is not None:
                    image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
                return np.asarray(image).reshape(image.height, image.width, wanted)
        except MiniganError:
            raise
        except Exception as error:  # which ones Pillow raises for damaged files is not documented
            raise DataError(f"{name}: damaged: {reason(error)}") from None
