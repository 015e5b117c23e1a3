"""The IDX format of MNIST, plain or in gzip: type, shape and values, big-endian.

Described at the foot of http://yann.lecun.com/exdb/mnist/; gzip in RFC 1952.
"""

import zlib
from io import BufferedReader
from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.data.reader import BLOCK, RATIO, ROOM, Reader, opened
from minigan.errors import DataError
from minigan.files import Path, shown

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP = b"\x1f\x8b"


def read_idx(path: Path) -> Array:
    """The array of an IDX file, plain or in gzip whatever its name, in native byte order.

    Raises `DataError`, with the path and the byte, unless the file is exactly one array; no more memory is used than
    the array and 16 MiB take.

    >>> import os, tempfile
    >>> from minigan.data.idx import read_idx
    >>> path = os.path.join(tempfile.mkdtemp(), "labels-idx1-ubyte")
    >>> with open(path, "wb") as file:
    ...     _ = file.write(b"\\0\\0\\x08\\1" + b"\\0\\0\\0\\3" + b"\\7\\2\\1")
    >>> read_idx(path)
    array([7, 2, 1], dtype=uint8)
    """
    with opened(path) as (file, size):
        return parse_idx(file, size, shown(path))


def parse_idx(file: BufferedReader, size: int, name: str) -> Array:
    """As `read_idx`, of an open file at its beginning."""
    zipped = file.read(2) == GZIP
    file.seek(0)
    if zipped:
        reader = Reader(f"{name} (inflated)", Inflated(file, name).read, 0, RATIO * size + ROOM)
    else:
        reader = Reader(name, file.read, size, size)
    head = reader.take(4, "the magic number")
    if head[:2] != b"\0\0" or head[2] not in TYPES or head[3] == 0:
        raise DataError(
            f"{reader.name}: begins with {head.hex(' ')}: expected 00 00, a type of 08, 09 or 0b to 0e, and at least"
            " 1 axis"
        )
    shape = tuple(np.frombuffer(reader.take(4 * head[3], "the shape"), ">u4").tolist())
    if 0 in shape:
        raise DataError(f"{reader.name}: shape {shape} with a 0 at byte {4 + 4 * shape.index(0)}")
    return reader.array(shape, np.dtype(TYPES[head[2]]))


class Inflated:
    """The content of a gzip file of one member, inflated no further than it is asked for."""

    def __init__(self, file: BufferedReader, name: str) -> None:
        self.file, self.name, self.waiting = file, name, b""
        self.engine: Any = zlib.decompressobj(wbits=31)  # 31: with the header and the checksum of gzip

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, at least 1; none at the end, which is then checked to be the file's."""
        while not self.engine.eof:
            try:
                part: bytes = self.engine.decompress(self.waiting, size)
            except zlib.error as error:
                raise DataError(
                    f"{self.name}: damaged gzip before byte {self.file.tell()}: {error}"
                ) from None
            self.waiting = self.engine.unconsumed_tail
            if part:
                return part
            if not self.waiting and not self.engine.eof:
                self.waiting = self.file.read(BLOCK)
                if not self.waiting:
                    raise DataError(f"{self.name}: the gzip data is cut off at byte {self.file.tell()}")
        rest = self.engine.unused_data or self.file.read(1)
        if rest:
            end = self.file.tell() - len(rest)
            raise DataError(f"{self.name}: goes on after byte {end}, where the gzip data ends")
        return b""
