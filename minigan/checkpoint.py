"""Arrays on disk: one safetensors file, written so that a reader sees the old file or the whole new one.

The format is described at https://huggingface.co/docs/safetensors: a length, a JSON header with names, dtypes, shapes
and offsets, then the raw little-endian data. Two metadata keys of minigan's own seal a file: `minigan.format`, and
`minigan.sha256` with the digests of every tensor, of the data section, and of all bytes before that with the header's
own digest as zeros. Header and checks are made here, not by the safetensors package, because 0.8 of it writes metadata
in an order that changes from process to process, stores wrong values for arrays that are not C-contiguous, and reads
headers of 100 MB and with a name that stands in them twice. Nothing in a file is ever executed or imported.
"""

import contextlib
import math
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from io import BufferedReader
from typing import Any

import numpy as np

from minigan.backend import Array, moved
from minigan.errors import CheckpointError
from minigan.files import opened, replacing
from minigan.tensor import Tensor

FORMAT = 2  # of the seal; a reader refuses a newer one
VERSION_KEY, SEAL_KEY = "minigan.format", "minigan.sha256"
# The longest header that is written or read: room for 5,000 tensors, and never more than 10 MB of objects.
HEADER_BYTES, HEADER_COMMAS = 2**20, 2**15
DTYPES = {"BOOL": "|b1", "U8": "|u1", "I8": "|i1"}
DTYPES |= {f"{kind.upper()}{8 * size}": f"<{kind}{size}" for kind in "uif" for size in (2, 4, 8)}
NAMES = {text: name for name, text in DTYPES.items()}
PIECE = 2**20  # bytes written, and compared, at a time
TRACES = (VERSION_KEY.encode(), SEAL_KEY.encode(), rb"{\"header\"", rb"\"tensors\"")  # of a damaged seal
DAMAGED = "damaged, or not a safetensors file"
UNSIGNED = "0" * 64  # stands for the header's digest while that is computed


def save(
    path: str | os.PathLike[str], tree: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays to a safetensors file, all or nothing.

    The file is written under another name in the same folder, flushed to the disk, read again and compared, and only
    then given its name; an existing file is replaced at that moment and stays whole until then. The same arrays and
    metadata give the same bytes, with SHA-256 digests that `load` checks.

    Args:
        path: the file; its folder must exist. A symbolic link is followed.
        tree: names to NumPy's arrays, or tensors of any device, of any shape and layout; booleans, integers and floats
            of 16 to 64 bits. Every bit is kept, NaN payloads and -0.0 included.
        metadata: names, which do not begin with "minigan.", to texts, kept in the header.

    Raises `CheckpointError`, with the path and the reason, if that is not possible.

    >>> import os, tempfile, numpy as np, minigan as mg
    >>> path = os.path.join(tempfile.mkdtemp(), "weights.safetensors")
    >>> mg.save(path, {"layers.0.weight": np.eye(2)}, {"step": "100"})
    >>> mg.load(path)["layers.0.weight"].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    texts = dict(metadata or {})
    with _explained(path, "cannot be written") as name:
        arrays = {key: _plain(key, x) for key, x in tree.items()}
        for key, text in texts.items():
            if not isinstance(key, str) or not isinstance(text, str) or key.startswith("minigan."):
                raise ValueError(
                    f"metadata {key!r}: expected texts by names that do not begin with 'minigan.'"
                )
        # Larger items first, as others do, so that all are aligned for those who map the file into memory.
        arrays = dict(sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])))
        header = _sealed_header(arrays, texts)
        _parse(header[8:])  # refuses what `load` would refuse
        _write(name, [header, *map(_bytes, arrays.values())])


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Put `data` at `path` in one atomic and durable step, as `save` does.

    A process that is killed meanwhile leaves one of `files.leftovers`. Raises `CheckpointError`, with the path and the
    reason; then an existing file is as it was, except if the very last operation failed, the flush of the folder.

    >>> import os, tempfile
    >>> from minigan.checkpoint import write_file
    >>> path = os.path.join(tempfile.mkdtemp(), "config.toml")
    >>> write_file(path, b"seed = 1")
    >>> open(path).read()
    'seed = 1'
    """
    with _explained(path, "cannot be written") as name:
        _write(name, [data])


@contextlib.contextmanager
def _explained(path: str | os.PathLike[str], problem: str) -> Iterator[str]:
    """The path as a text; what goes wrong becomes a CheckpointError with the path, the problem and the reason."""
    name = os.fsdecode(path)
    try:
        yield name
    except OSError as error:
        raise CheckpointError(f"{name}: {error.strerror or error}") from error
    except MemoryError as error:
        raise CheckpointError(f"{name}: needs more memory than there is: {error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name}: {problem}: {error}") from None


def _plain(key: str, x: Any) -> Array:
    """A copy of the array as the file format has it: little-endian and C-contiguous."""
    array = moved(x.array, "cpu") if isinstance(x, Tensor) else np.asarray(x)
    if not isinstance(key, str) or key == "__metadata__":
        raise CheckpointError(f"the name {key!r} of an array: expected a text other than '__metadata__'")
    dtype = array.dtype.str.replace(">", "<")
    if dtype not in NAMES:
        raise CheckpointError(f"array {key!r} has dtype {array.dtype}: expected booleans, integers or floats")
    return np.array(array, dtype, order="C")


def _bytes(array: Array) -> memoryview:
    """The memory of a C-contiguous array, byte by byte."""
    return array.reshape(-1).view(np.uint8).data


def _sealed_header(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a file before its data: the header's length, and the header."""
    import hashlib  # here and below: only runs that touch a file need these
    import json

    entries, tensors, total, position = {}, {}, hashlib.sha256(), 0
    for key, array in arrays.items():
        offsets = (position, position := position + array.nbytes)
        entries[key] = {"dtype": NAMES[array.dtype.str], "shape": array.shape, "data_offsets": offsets}
        tensors[key] = hashlib.sha256(_bytes(array)).hexdigest()
        total.update(_bytes(array))

    def encode(own: str) -> bytes:
        digests = {"header": own, "data": total.hexdigest(), "tensors": tensors}
        seal = {VERSION_KEY: str(FORMAT), SEAL_KEY: json.dumps(digests, ensure_ascii=False)}
        header = {"__metadata__": dict(sorted({**metadata, **seal}.items())), **entries}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    return encode(hashlib.sha256(encode(UNSIGNED)).hexdigest())


def _write(path: str, parts: Sequence[bytes | memoryview]) -> None:
    """Put the parts, one after the other, at `path` in one atomic and durable step, in which they are read again."""
    with replacing(path) as file:
        for piece in _pieces(parts):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        if any(file.read(len(piece)) != piece for piece in _pieces(parts)):
            raise OSError(None, "reads back different from what was written: the disk is faulty")


def _pieces(parts: Sequence[bytes | memoryview]) -> Iterator[bytes]:
    return (bytes(part[i : i + PIECE]) for part in parts for i in range(0, len(part), PIECE))


def load(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The arrays of a safetensors file by name, each in writable memory of its own.

    Raises `CheckpointError`, with the path and the reason, if the file is missing, unreadable or damaged, which the
    digests show in files that `save` wrote.

    >>> import os, tempfile, numpy as np, minigan as mg
    >>> path = os.path.join(tempfile.mkdtemp(), "weights.safetensors")
    >>> mg.save(path, {"w": np.arange(3)})
    >>> mg.load(path)
    {'w': array([0, 1, 2])}
    """
    return load_all(path)[0]


def load_all(path: str | os.PathLike[str], sealed: bool = False) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays of a safetensors file, as `load` gives them, with its errors, and its metadata.

    With `sealed`, a file without digests, such as one of another program, is refused as well.

    >>> import os, tempfile, numpy as np, minigan as mg
    >>> from minigan.checkpoint import load_all
    >>> path = os.path.join(tempfile.mkdtemp(), "weights.safetensors")
    >>> mg.save(path, {"w": np.arange(3)}, {"step": "100"})
    >>> load_all(path, sealed=True)
    ({'w': array([0, 1, 2])}, {'step': '100'})
    """
    import hashlib

    arrays, total = {}, hashlib.sha256()
    with _explained(path, DAMAGED), opened(path) as (file, size):
        tensors, metadata, digests = _read_header(file, size, sealed)
        for key, (dtype, shape) in tensors.items():
            array = np.empty(shape, dtype)
            memory = _bytes(array)
            if file.readinto(memory) != len(memory):
                raise ValueError(f"it ended within tensor {_short(key)} while it was read")
            if digests:
                total.update(memory)
                if hashlib.sha256(memory).hexdigest() != digests["tensors"][key]:
                    raise ValueError(f"tensor {_short(key)} does not have its SHA-256")
            if dtype == "|b1":  # NumPy takes for granted that the byte is 0 or 1
                np.not_equal(array.view(np.uint8), 0, out=array)
            arrays[key] = array.astype(array.dtype.newbyteorder("="), copy=False)
        if digests and total.hexdigest() != digests.get("data"):
            raise ValueError("its data section does not have its SHA-256")
    return arrays, metadata


def read_metadata(path: str | os.PathLike[str], sealed: bool = False) -> dict[str, str]:
    """The metadata of a safetensors file. Reads and checks its header only; otherwise as `load_all`.

    >>> import os, tempfile, numpy as np, minigan as mg
    >>> from minigan.checkpoint import read_metadata
    >>> path = os.path.join(tempfile.mkdtemp(), "weights.safetensors")
    >>> mg.save(path, {"w": np.arange(3)}, {"step": "100"})
    >>> read_metadata(path)
    {'step': '100'}
    """
    with _explained(path, DAMAGED), opened(path) as (file, size):
        return _read_header(file, size, sealed)[1]


def _read_header(
    file: BufferedReader, size: int, sealed: bool
) -> tuple[dict[str, tuple[str, list[int]]], dict[str, str], dict[str, Any]]:
    """The dtypes and shapes in the order of their data, the metadata, and the digests, if it is sealed."""
    raw = file.read(8)
    length = int.from_bytes(raw, "little")
    if length > min(size - 8, HEADER_BYTES):
        raise ValueError(
            f"it has {size:,} bytes, its header would have {length:,} (at most {HEADER_BYTES:,})"
        )
    raw += file.read(length)
    entries = _parse(raw[8:])
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its __metadata__ are not texts by name")
    "".join(metadata.values()).encode()  # like the names, see `_parse`
    digests = _check_seal(raw, metadata, entries)
    layout = sorted((*_check_entry(key, entry), key) for key, entry in entries.items())
    position = 0
    for begin, end, _, _, key in layout:
        if begin != position:
            raise ValueError(f"data_offsets of tensor {_short(key)} begin at {begin}, not at {position}")
        position = end
    if 8 + length + position != size:
        raise ValueError(f"it has {size:,} bytes, its tensors end at byte {8 + length + position:,}")
    if sealed and not digests:
        raise CheckpointError("has no digests, so nothing shows that it is whole: minigan did not write it")
    return {key: (dtype, shape) for _, _, dtype, shape, key in layout}, metadata, digests


def _check_seal(raw: bytes, metadata: dict[str, str], entries: Mapping[str, Any]) -> dict[str, Any]:
    """Take the seal out of the metadata; gives its digests, that of the bytes up to the data being right."""
    import hashlib

    version, seal = metadata.pop(VERSION_KEY, ""), metadata.pop(SEAL_KEY, "")
    if version == seal == "":
        if any(trace in raw for trace in TRACES):
            raise ValueError(
                f"its metadata {VERSION_KEY} and {SEAL_KEY} are gone, but not all of what was there"
            )
        return {}
    if version.isdecimal() and int(version) > FORMAT:
        raise CheckpointError(f"has format {version}, this minigan reads up to {FORMAT}: upgrade minigan")
    if version != str(FORMAT):
        raise ValueError(f"its {VERSION_KEY} is {_short(version)}")
    digests = _parse(seal.encode())
    own, tensors = str(digests.get("header")), digests.get("tensors")
    zeroed = raw.replace(own.encode(), UNSIGNED.encode()) if len(own) == len(UNSIGNED) else b""
    if hashlib.sha256(zeroed).hexdigest() != own:
        raise ValueError("its header does not have its SHA-256")
    if not isinstance(tensors, dict) or tensors.keys() != entries.keys():
        raise ValueError(f"its {SEAL_KEY} is not of the tensors in it")
    return digests


def _check_entry(key: str, entry: Any) -> tuple[int, int, str, list[int]]:
    """Where a tensor begins and ends in the data section, its dtype and its shape."""
    fields: Any = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (fields.get(field) for field in ("dtype", "shape", "data_offsets"))
    right = {"dtype": str(dtype) in DTYPES, "data_offsets": _are_counts(offsets, (2,))}
    right["shape"] = _are_counts(shape, range(65))  # as many axes as NumPy has
    for field in right:
        if not right[field]:
            raise ValueError(f"{field} of tensor {_short(key)} is {_short(fields.get(field))}")
    size = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if offsets[1] - offsets[0] != size:
        raise ValueError(
            f"data_offsets {offsets} of tensor {_short(key)}: its shape needs {_short(size)} bytes"
        )
    return offsets[0], offsets[1], DTYPES[dtype], shape


def _are_counts(numbers: Any, lengths: Container[int]) -> bool:
    right = isinstance(numbers, list) and len(numbers) in lengths
    return right and all(type(x) is int and 0 <= x < 2**63 for x in numbers)


def _short(value: Any) -> str:
    """The `repr`, cut off: what stands in a hostile file may be long."""
    return repr(value)[:100]


def _parse(text: bytes) -> dict[str, Any]:
    """A JSON object of texts, integers, lists and objects. A name that stands in it twice is refused."""
    import json

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a name stands in the header twice")
        "".join(result).encode()  # refuses half a surrogate pair
        return result

    if len(text) > HEADER_BYTES or text.count(b",") > HEADER_COMMAS:
        raise ValueError(f"the header is longer than {HEADER_BYTES:,} bytes or {HEADER_COMMAS:,} commas")
    if not text.startswith(b"{"):
        raise ValueError("the header is not a JSON object")
    # `int` refuses 1.5, 1e999 and NaN.
    return json.loads(text.decode(), object_pairs_hook=unique, parse_float=int, parse_constant=int)  # type: ignore[no-any-return]


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
        array = _plain(key, tree[key])
        total.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
        total.update(_bytes(array))
    return total.hexdigest()
