"""NumPy's own files: one array (NPY) or a zip archive of arrays (NPZ).

The format is described at https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. Only plain numbers
are read: the header is matched, not evaluated, and pickled objects are refused as every other dtype is.
"""

import re
import struct
from io import BufferedReader
from typing import TYPE_CHECKING

import numpy as np

from minigan.backend import Array
from minigan.data.idx import GZIP, parse_idx
from minigan.data.reader import RATIO, ROOM, Reader, opened
from minigan.errors import DataError
from minigan.files import Path, reason, shown

if TYPE_CHECKING:  # `import minigan` does without these
    from zipfile import ZipFile, ZipInfo

NPY, ZIP = b"\x93NUMPY", b"PK"
HEADER_BYTES, MEMBERS_BYTES = 10_000, 1 << 20
ENTRY = r"""\s*['"](descr|fortran_order|shape)['"]\s*:\s*('[^']*'|"[^"]*"|True|False|\([\d,\s]*\))"""
HEADER = rf"\{{{ENTRY}\s*,{ENTRY}\s*,{ENTRY}\s*(?:,\s*)?\}}\s*"
DTYPE = r"[<>=|]?([iu][1248]|f[248])"
# Which array of an archive holds the images, in order of preference, and which one then holds their labels.
IMAGES = ["images", "train_images", "x_train", "x", "samples", "data", "arr_0"]
LABELS = ["labels", "train_labels", "y_train", "y", "labels", "labels", "arr_1"]


def read_arrays(path: Path) -> tuple[Array, Array | None]:
    """The samples of an NPY, NPZ or IDX file, and their labels if an archive or a second IDX file has them.

    The content decides which it is. Raises `DataError`, with the path and the byte, for any other and any damaged file,
    before memory is allocated for sizes that cannot be right.

    >>> import os, tempfile, numpy as np
    >>> from minigan.data.arrays import read_arrays
    >>> path = os.path.join(tempfile.mkdtemp(), "faces.npz")
    >>> np.savez(path, images=np.zeros((2, 8, 8), np.uint8), labels=np.arange(2))
    >>> images, labels = read_arrays(path)
    >>> images.shape, labels
    ((2, 8, 8), array([0, 1]))
    """
    name = shown(path)
    with opened(path) as (file, size):
        start = file.read(6)
        file.seek(0)
        if start == NPY:
            return _array(Reader(name, file.read, size, size)), None
        if start.startswith(ZIP):
            return _archive(file, size, name)
        if start.startswith((GZIP, b"\0\0")):
            return parse_idx(file, size, name), None
    raise DataError(
        f"{name}: is no NPY, NPZ or IDX file: it {f'begins with {start!r}' if start else 'is empty'}"
    )


def _array(reader: Reader) -> Array:
    magic = reader.take(8, "the magic number")
    if magic[:6] != NPY or magic[6] not in (1, 2, 3):
        raise DataError(f"{reader.name}: begins with {magic!r}: expected NPY of version 1 to 3")
    length = int.from_bytes(reader.take(2 if magic[6] == 1 else 4, "the length of the header"), "little")
    if length > HEADER_BYTES:
        raise DataError(f"{reader.name}: a header of {length} bytes at byte 8: expected up to {HEADER_BYTES}")
    header = reader.take(length, "the header").decode("latin1")
    match = re.fullmatch(HEADER, header, re.ASCII)
    entries = dict(zip(match.groups()[::2], match.groups()[1::2], strict=True)) if match else {}
    kind, order, axes = (entries.get(key, "") for key in ("descr", "fortran_order", "shape"))
    if not re.fullmatch(DTYPE, kind[1:-1]) or order not in ("True", "False") or axes[:1] != "(":
        raise DataError(
            f"{reader.name}: header {header.strip()[:120]!r} at byte {reader.at - length}: expected one shape, and a"
            " dtype of plain numbers (pickled objects, texts and records are never read)"
        )
    shape = tuple(int(axis) for axis in axes[1:-1].split(",") if axis.strip())
    dtype = np.dtype(kind[1:-1])
    if order == "False":
        return reader.array(shape, dtype)
    return np.ascontiguousarray(reader.array(shape[::-1], dtype).T)


class _Limited(BufferedReader):
    """A file of which no more is read at once than a list of an archive's members may take."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MEMBERS_BYTES:
            raise ValueError(f"a list of members of {size} bytes")
        return super().read(size)


def _archive(file: BufferedReader, size: int, name: str) -> tuple[Array, Array | None]:
    import zipfile
    import zlib

    damages = (zipfile.BadZipFile, zlib.error, struct.error, ValueError, RuntimeError, EOFError, IndexError)
    try:
        with _Limited(file.raw) as whole, zipfile.ZipFile(whole) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            known = {key.lower(): key for key in members}
            odd = [i.filename for i in members.values() if not re.fullmatch(r"[^/\\:]+\.npy", i.filename)]
            if odd or len(known) < len(archive.infolist()):
                what = f"{odd[0]!r}, which is no array" if odd else "two arrays of one name"
                raise DataError(f"{name}: holds {what}: expected an archive written by numpy.savez")
            found = [pair for pair in zip(IMAGES, LABELS, strict=True) if pair[0] in known]
            found = found or [(key, "labels") for key in known if len(known) == 1]
            if not found:
                held = ", ".join(map(repr, list(members)[:20])) or "nothing"
                raise DataError(f"{name}: which array has the images? It holds {held}: call one 'images'")
            pair = [known[key] for key in found[0] if key in known]
            arrays = [_member(archive, members[key], size, f"{name}: array {key!r}") for key in pair]
            return arrays[0], arrays[1] if len(arrays) > 1 else None
    except DataError:
        raise
    except damages as error:
        raise DataError(f"{name}: damaged, or not an archive of arrays: {reason(error)}") from None


def _member(archive: "ZipFile", info: "ZipInfo", size: int, name: str) -> Array:
    if info.compress_type not in (0, 8):  # stored, deflated
        raise DataError(f"{name}: compression {info.compress_type}: expected 0 or 8 as numpy.savez writes")
    most = RATIO * min(info.compress_size, size) + ROOM
    if info.file_size > most:
        raise DataError(
            f"{name}: claims to hold {info.file_size} bytes, compressed to {info.compress_size}: at most {most} are"
            " believed; save it without compression"
        )
    with archive.open(info) as member:
        return _array(Reader(name, member.read, info.file_size, info.file_size))
