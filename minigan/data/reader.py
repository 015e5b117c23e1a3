"""Data from elsewhere, read within bounds that are known beforehand."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from typing import Any

import numpy as np

from minigan import files
from minigan.backend import Array
from minigan.errors import DataError, MiniganError
from minigan.files import Path, reason, shown

BLOCK = 1 << 20  # bytes read or inflated at once
# What compressed data may claim to hold: deflate reaches 1,032 times its size, which only bombs and blank pictures do.
RATIO, ROOM = 200, 1 << 24
MOST_AXES = 32


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What goes wrong within becomes `DataError`, in one line that begins with the path."""
    try:
        yield
    except MiniganError:
        raise
    except (OSError, ValueError, MemoryError) as error:
        raise DataError(f"{shown(path)}: {reason(error)}") from None


@contextmanager
def opened(path: Path) -> Iterator[tuple[BufferedReader, int]]:
    """As `files.opened`, with the errors of `explained`."""
    with explained(path), files.opened(path) as found:
        yield found


class Reader:
    """Reads a header and then one array from bytes that may lie about themselves.

    Args:
        name: of the file, for messages.
        read: gives up to so many bytes, and none at the end.
        least, most: the bytes there are in all: equal where that is known, else what is believed.
    """

    def __init__(self, name: str, read: Callable[[int], bytes], least: int, most: int) -> None:
        self.name, self._read, self.least, self.most, self.at = name, read, least, most, 0

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes, few, which are `what`."""
        data = b""
        while len(data) < size and (part := self._read(size - len(data))):
            data += part
        if len(data) < size:
            raise DataError(f"{self.name}: ends at byte {self.at + len(data)}, within {what}")
        self.at += size
        return data

    def array(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """The rest, exactly, as an array in native byte order; nothing is allocated for a size that cannot be right."""
        if len(shape) > MOST_AXES:
            raise DataError(f"{self.name}: {len(shape)} axes at byte {self.at}: expected up to {MOST_AXES}")
        size, start = math.prod(shape) * dtype.itemsize, self.at
        if not self.least <= start + size <= self.most:
            believed = (
                " at most, for how little was compressed: it is cut off, or has to be stored uncompressed"
            )
            room = f"{self.most - start}" + ("" if self.least == self.most else believed)
            raise DataError(
                f"{self.name}: {dtype.name} of shape {shape} takes {size} bytes from byte {start}, there are {room}"
            )
        flat = np.empty(size, np.uint8)
        view = flat.data
        while self.at < start + size:
            part = self._read(min(start + size - self.at, BLOCK))
            if not part:
                raise DataError(f"{self.name}: ends at byte {self.at} of {start + size}")
            view[self.at - start : self.at - start + len(part)] = part
            self.at += len(part)
        if self._read(1):
            raise DataError(f"{self.name}: goes on after byte {self.at}, where its array ends")
        array: Array = flat.view(dtype).reshape(shape)
        if not array.dtype.isnative:
            array = array.byteswap(inplace=True).view(dtype.newbyteorder())
        return array
