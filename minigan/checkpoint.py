"""Arrays on disk: one safetensors file, written so that a reader sees the old file or the whole new one.

The format is described at https://huggingface.co/docs/safetensors: a length, a JSON header with names, dtypes, shapes
and offsets, then the raw little-endian data. Nothing in a file is ever executed or imported.
"""

import contextlib
import os
import stat
from collections.abc import Mapping
from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.errors import CheckpointError
from minigan.tensor import Tensor

FORMAT = "1"  # of the metadata and the names; a reader refuses a newer one


def save(
    path: str | os.PathLike[str], tree: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays to a safetensors file, all or nothing.

    The file is written under another name in the same folder, flushed to the disk, read again and compared, and only
    then given its name; an existing file is replaced at that moment and stays whole until then.

    Args:
        path: the file; its folder must exist. A symbolic link is followed.
        tree: names to arrays or tensors of any shape and layout; booleans, integers and floats of 16 to 64 bits. Every
            bit is kept, NaN payloads and -0.0 included.
        metadata: names to texts, kept in the header.

    Raises `CheckpointError`, with the path and the reason, if that is not possible.

    >>> import os, tempfile, numpy as np, minigan as mg
    >>> path = os.path.join(tempfile.mkdtemp(), "weights.safetensors")
    >>> mg.save(path, {"layers.0.weight": np.eye(2)}, {"step": "100"})
    >>> mg.load(path)["layers.0.weight"].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    import safetensors.numpy  # not at the top: only runs that touch a file need it

    name = os.fspath(path)
    try:
        # Empty metadata as `None`: safetensors 0.8 writes a header it cannot read where there are no arrays either.
        data = safetensors.numpy.save(
            {key: _plain(name, key, x) for key, x in tree.items()}, dict(metadata) if metadata else None
        )
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: cannot be written as safetensors: {error}") from None
    try:
        _replace(os.path.realpath(name), data)
    except OSError as error:
        raise CheckpointError(f"{name}: {error.strerror or error}") from error


def _plain(path: str, key: str, x: Any) -> Array:
    """The array as the file format has it: safetensors 0.8 stores wrong values for any other layout."""
    array = x.array if isinstance(x, Tensor) else np.asarray(x)
    if not isinstance(key, str):
        raise CheckpointError(f"{path}: the name {key!r} of an array is a {type(key).__name__}, not a string")
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise CheckpointError(
            f"{path}: array {key!r} has dtype {array.dtype}: expected booleans, integers or floats"
        )
    return np.array(array, array.dtype.newbyteorder("<"), order="C")


def _replace(path: str, data: bytes) -> None:
    """Put `data` at `path` in one atomic and durable step."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(None, "exists and is not a file")
    folder = os.path.dirname(path)
    temporary = os.path.join(
        folder, f".{os.urandom(8).hex()}.tmp"
    )  # same folder: rename works within a disk only
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            if file.read() != data:
                raise OSError(
                    None, "reads back different from what was written: the disk or its driver is faulty"
                )
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # a signal may arrive just after the renaming
            os.unlink(temporary)
        raise
    if os.name == "posix":  # the new name is on the disk only when the folder is
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The arrays of a safetensors file by name, each in writable memory of its own.

    Raises `CheckpointError`, with the path and the reason, if the file is missing, unreadable or damaged.

    >>> import os, tempfile, numpy as np, minigan as mg
    >>> path = os.path.join(tempfile.mkdtemp(), "weights.safetensors")
    >>> mg.save(path, {"w": np.arange(3)})
    >>> mg.load(path)
    {'w': array([0, 1, 2])}
    """
    return load_all(path)[0]


def load_all(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays of a safetensors file, as `load` gives them, with its errors, and its metadata.

    >>> import os, tempfile, numpy as np, minigan as mg
    >>> from minigan.checkpoint import load_all
    >>> path = os.path.join(tempfile.mkdtemp(), "weights.safetensors")
    >>> mg.save(path, {"w": np.arange(3)}, {"step": "100"})
    >>> load_all(path)
    ({'w': array([0, 1, 2])}, {'step': '100'})
    """
    import json

    import safetensors.numpy

    name = os.fspath(path)
    try:
        data = _read(name)
    except OSError as error:
        raise CheckpointError(f"{name}: {error.strerror or error}") from error
    try:
        views = safetensors.numpy.load(data)  # checks the header's length, offsets, dtypes and shapes
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end], object_pairs_hook=_unique)
        return {key: np.array(x) for key, x in views.items()}, dict(header.get("__metadata__", {}))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{name}: damaged, or not a safetensors file ({len(data)} bytes): {error}"
        ) from None


def _read(path: str) -> bytes:
    # O_NONBLOCK (POSIX only): opening a named pipe would otherwise wait for a writer for ever.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(None, "is not a file")
        return file.read()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refused if a name stands in it twice: readers disagree on which one counts."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name stands in the header twice")
    return result


def digest(tree: Mapping[str, Any]) -> str:
    """The SHA-256, in hexadecimal, of all names, dtypes, shapes and values of `tree`, whatever their order.

    >>> import numpy as np, minigan as mg
    >>> from minigan.checkpoint import digest
    >>> digest({"a": np.zeros(2)}) == digest({"a": np.zeros(2, ">f8")}) != digest({"a": -np.zeros(2)})
    True
    """
    import hashlib

    total = hashlib.sha256()
    for key in sorted(tree):
        array = _plain("digest", key, tree[key])
        total.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()
