"""What is saved comes back bit for bit, and what cannot be is one clear error."""

import contextlib
import errno
import hashlib
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import mutations
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as npst

from minigan import checkpoint
from minigan.checkpoint import digest, load, load_all, read_metadata, save, write_file
from minigan.errors import CheckpointError
from minigan.files import leftovers
from minigan.tensor import tensor

FIXTURES = Path(__file__).parent / "fixtures"
DTYPES = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def odd_arrays() -> dict[str, np.ndarray]:
    square = np.arange(12.0).reshape(3, 4)
    read_only = np.ones(3)
    read_only.flags.writeable = False
    return {
        "reversed": square[::-1, ::-2],
        "transposed": square.T,
        "fortran": np.asfortranarray(square),
        "repeated": np.broadcast_to(np.float32(3), (2, 3)),
        "big_endian": square.astype(">f4"),
        "scalar": np.array(2.5),
        "numpy_scalar": np.float32(7),
        "empty": np.zeros((0, 3), np.float32),
        "read_only": read_only,
        "misaligned": np.frombuffer(b"x" + square.tobytes(), np.uint8)[1:].view("f8"),
        "nan_payload": np.array([0x7FC01234, 0xFFA00001, 0x7F800001], "u4").view("f4"),
        "big_endian_nan": np.array([0x7FC01234, 0x7F800001], ">u4").view(">f4"),
        "minus_zero": np.array([-0.0, 0.0]),
        "name.with \u00e9 and spaces": np.array([True, False]),
        "": np.array([1], np.int64),
    }


def test_odd_arrays_come_back_bit_for_bit(tmp_path: Path) -> None:
    tree = odd_arrays()
    save(tmp_path / "a.safetensors", tree)
    loaded = load(tmp_path / "a.safetensors")
    assert loaded.keys() == tree.keys()
    for name, array in tree.items():
        expected = np.ascontiguousarray(array).reshape(np.shape(array))
        assert same_bits(loaded[name], expected.astype(expected.dtype.newbyteorder("="))), name
        loaded[name][...] = 0  # memory of its own, writable


@settings(deadline=None)
@given(npst.arrays(st.sampled_from(DTYPES), npst.array_shapes(min_dims=0, min_side=0, max_side=4)), st.data())
def test_any_array_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    other = array.transpose(data.draw(st.permutations(range(array.ndim))))
    save(path, {"x": array, "y": other}, {"note": "1"})
    arrays, metadata = load_all(path)
    assert same_bits(arrays["x"], array) and same_bits(arrays["y"], np.array(other, order="C"))
    assert metadata == {"note": "1"}


def test_tensors_and_no_arrays_at_all(tmp_path: Path) -> None:
    save(tmp_path / "a", {"x": tensor([1.0, 2.0])})
    assert load(tmp_path / "a")["x"].tolist() == [1, 2]
    save(tmp_path / "a", {})
    assert load(tmp_path / "a") == {}


def test_other_tools_can_read_it(tmp_path: Path) -> None:
    import safetensors.numpy

    tree, path = odd_arrays(), tmp_path / "a.safetensors"
    save(path, tree, {"step": "1", "name with \u00e9": '"{'})
    read = safetensors.numpy.load_file(path)
    assert read.keys() == tree.keys()
    for name, array in load(path).items():
        assert same_bits(read[name], array), name
    whole = path.read_bytes()
    data = 8 + int.from_bytes(whole[:8], "little")
    for name, x in json.loads(whole[8:data]).items():
        if name != "__metadata__":  # aligned for those who map the file into memory
            assert (data + x["data_offsets"][0]) % tree[name].itemsize == 0
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    digests = json.loads(metadata.pop("minigan.sha256"))
    assert digests["tensors"]["scalar"] == hashlib.sha256(np.array(2.5).tobytes()).hexdigest()
    assert metadata.pop("minigan.format") == "2"
    assert metadata == {"step": "1", "name with \u00e9": '"{'} == load_all(path, sealed=True)[1]


def test_files_of_other_tools(tmp_path: Path) -> None:
    import safetensors.numpy

    tree = {name: np.array(x, order="C") for name, x in odd_arrays().items() if "big" not in name}
    safetensors.numpy.save_file(tree, tmp_path / "a", {"b": "2", "a": "1"})
    arrays, metadata = load_all(tmp_path / "a")
    assert metadata == {"a": "1", "b": "2"} == read_metadata(tmp_path / "a")
    assert all(same_bits(arrays[name], x) for name, x in tree.items()) and len(arrays) == len(tree)
    for read in (load_all, read_metadata):
        with pytest.raises(CheckpointError, match="has no digests"):
            read(tmp_path / "a", sealed=True)


def test_format_1_is_still_read() -> None:
    path = FIXTURES / "checkpoint_format_1.safetensors"
    arrays, metadata = load_all(path)
    assert digest(arrays) == "5e0769873ca3eb1a2b5fcbbcc36ef1beb8d8efe312960364ada83501c6ed60ea"
    assert len(arrays) == 31 and arrays["step"] == 3
    assert json.loads(metadata["minigan"])["sha256"] == digest(arrays)
    with pytest.raises(CheckpointError, match="has no digests"):
        load_all(path, sealed=True)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"x": np.zeros(2, complex)}, "'x' has dtype complex128"),
        ({"x": np.array(["a"])}, "'x' has dtype <U1"),
        ({"x": np.array([None])}, "'x' has dtype object"),
        ({"x": np.zeros(2, "datetime64[s]")}, "'x' has dtype datetime64"),
        ({1: np.zeros(2)}, "the name 1 of an array: expected a text"),
        ({"__metadata__": np.zeros(2)}, "the name '__metadata__' of an array: expected a text"),
        ({"\ud800": np.zeros(2)}, "surrogates not allowed"),
        ({f"{i:01000}": np.zeros(1) for i in range(600)}, "longer than 1,048,576 bytes"),
        ({f"{i}": np.zeros(1) for i in range(8000)}, "or 32,768 commas"),
    ],
)
def test_what_the_format_does_not_have(tree: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path / "a", tree)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"minigan.format": "2"},
            "'minigan.format': expected texts by names that do not begin with 'minigan.'",
        ),
        ({"minigan.else": "2"}, "'minigan.else'"),
        ({"a": 1}, "'a': expected texts"),
        ({1: "a"}, "metadata 1: expected texts"),
        ({"a": "\udcff"}, "surrogates not allowed"),
        ({"a": "x" * 2**20}, "longer than 1,048,576 bytes"),
    ],
)
def test_metadata_that_are_refused(metadata: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path / "a", {"x": np.zeros(1)}, metadata)
    assert list(tmp_path.iterdir()) == []


def test_a_key_for_settings(tmp_path: Path) -> None:
    save(tmp_path / "a", {}, {"minigan": "{}"})
    assert read_metadata(tmp_path / "a", sealed=True) == {"minigan": "{}"}


def test_thousands_of_tensors(tmp_path: Path) -> None:
    tree = {f"generator_optimizer.m.layers.{i}.weight": np.float32(i) for i in range(3500)}
    save(tmp_path / "a", tree)
    assert load(tmp_path / "a").keys() == tree.keys()


# Damage


def small(path: Path) -> bytes:
    save(path, {"x": np.arange(3.0), "y.z": np.ones((2, 2), np.float32), "s": np.array(True)}, {"note": "x"})
    return path.read_bytes()


def put(path: Path, content: bytes) -> None:
    """A new file: to write over an old one is slow, because some file systems then wait for the disk."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def refused(path: Path, content: bytes, match: str = "damaged, or not a safetensors file: ") -> str:
    """Both ways of loading say that the file is damaged, with its path; gives the message."""
    put(path, content)
    for sealed in (True, False):
        with pytest.raises(CheckpointError, match=match) as caught:
            load_all(path, sealed)
        assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    whole = small(path)
    for length in range(len(whole)):
        refused(path, whole[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            read_metadata(path)
    refused(path, whole + b"\0", f"it has {len(whole) + 1} bytes, its tensors end at byte {len(whole)}")


def test_every_flipped_bit_of_a_small_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, {"x": np.ones((2, 3), np.float32)}, {"n": "1"})
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        refused(path, damaged, r"damaged|has format \d, .* upgrade minigan")
        if bit < 8 * header:
            with pytest.raises(CheckpointError):
                read_metadata(path)


def test_a_flipped_bit_in_every_block_is_found_with_its_tensor(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tree = {f"layers.{i}": np.full((100, i), i, np.float32) for i in range(15)}
    save(path, tree)
    whole = path.read_bytes()
    names = sorted(tree)
    sizes = np.cumsum([tree[name].nbytes for name in names])
    data = len(whole) - int(sizes[-1])
    for place in range(data, len(whole), 64):
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(bytes([whole[place] ^ 1 << place // 64 % 8]))
        name = names[np.searchsorted(sizes, place - data, "right")]
        for sealed in (True, False):
            with pytest.raises(CheckpointError, match=f"tensor '{name}' does not have its SHA-256"):
                load_all(path, sealed)
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(whole[place : place + 1])
    assert load(path).keys() == tree.keys()


def load_mutations(path: Path, count: int) -> None:
    """A damaged file is refused, or nothing that is loaded from it is changed."""
    save(path, odd_arrays(), {"note": json.dumps(["a"] * 30)})
    arrays, metadata = load_all(path)
    expected = digest(arrays)
    survivors = 0
    for content in mutations(path.read_bytes(), count, seed=0):
        put(path, content)
        for sealed in (True, False):
            with contextlib.suppress(CheckpointError):
                loaded, texts = load_all(path, sealed)
                assert digest(loaded) == expected and texts == metadata
                survivors += 1
    assert survivors < count // 10


def test_mutations(tmp_path: Path) -> None:
    load_mutations(tmp_path / "a", 1000)


@pytest.mark.slow
def test_many_mutations(tmp_path: Path) -> None:
    load_mutations(tmp_path / "a", 100_000)


def mutated_headers(count: int) -> Iterator[bytes]:
    """Files without digests, so that nothing but the rules of the format stands in the way of the damage."""
    header = json.dumps(
        {"x": entry(shape=[2, 3], data_offsets=[0, 24]), "__metadata__": {"note": "1"}}
    ).encode()
    for content in mutations(header, count, seed=1):
        yield in_a_file(content, bytes(24))


@pytest.mark.parametrize("count", [1000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_mutated_headers_without_digests(count: int, tmp_path: Path) -> None:
    loaded = 0
    for content in mutated_headers(count):
        put(tmp_path / "a", content)
        with contextlib.suppress(CheckpointError):
            arrays, metadata = load_all(tmp_path / "a")
            assert sum(x.nbytes for x in arrays.values()) == 24
            assert all(isinstance(text, str) for text in metadata.values())
            loaded += 1
    assert 0 < loaded < count // 2


def in_a_file(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes


def of(*entries: Any, size: int = 4, **header: Any) -> bytes:
    """A file with such entries, called a, b and so on."""
    named = dict(zip("abc", entries, strict=False))
    return in_a_file(json.dumps({**named, **header}).encode(), bytes(size))


LIES = {
    "empty file": (b"", "it has 0 bytes"),
    "7 bytes": (b"\2\0\0\0\0\0\0", "it has 7 bytes"),
    "header length of 2^64 - 1": (b"\xff" * 8, "its header would have 18,446,744,073,709,551,615"),
    "header longer than the file": (in_a_file(b"{}")[:-1], "it has 9 bytes, its header would have 2 "),
    "header over the cap": (in_a_file(b"{}".ljust(2**20 + 1)), r"would have 1,048,577 \(at most 1,048,576\)"),
    "a zip file": (b"PK\3\4 a zip file", "its header would have"),
    "a list": (in_a_file(b"[]"), "not a JSON object"),
    "spaces first": (in_a_file(b"  {}"), "not a JSON object"),
    "not closed": (in_a_file(b"{"), "line 1 column 2"),
    "not UTF-8": (in_a_file(b'{"\xff":1}'), "utf-8"),
    "UTF-16": (in_a_file("{}".encode("utf-16-le")), "line 1 column 2"),
    "half a surrogate pair as name": (in_a_file(b'{"\\ud800":1}'), "surrogates not allowed"),
    "half a surrogate pair in metadata": (in_a_file(b'{"__metadata__":{"a":"\\ud800"}}'), "surrogates not"),
    "deep lists": (in_a_file(b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}"), "recursion"),
    "deep objects": (in_a_file(b'{"a":' * 10_000 + b"1" + b"}" * 10_000), "recursion"),
    "a name twice": (
        in_a_file(b'{"a":%b,"a":%b}' % (2 * (json.dumps(entry()).encode(),)), bytes(4)),
        "twice",
    ),
    "a field twice": (
        in_a_file(b'{"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        "twice",
    ),
    "metadata twice": (in_a_file(b'{"__metadata__":{},"__metadata__":{}}'), "twice"),
    "NaN": (in_a_file(b'{"a":NaN}'), "'NaN'"),
    "Infinity": (in_a_file(b'{"a":-Infinity}'), "'-Infinity'"),
    "a fraction": (in_a_file(b'{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', bytes(4)), "'1.0'"),
    "1e999 as a shape": (in_a_file(b'{"a":{"dtype":"F32","shape":[1e999]}}'), "'1e999'"),
    "a number of 5000 digits": (in_a_file(b'{"a":%b}' % (b"9" * 5000)), "4300 digits"),
    "metadata a list": (of(__metadata__=[]), "__metadata__ are not texts"),
    "metadata a number": (of(__metadata__={"a": 1}), "__metadata__ are not texts"),
    "tensor a number": (of(7), "dtype of tensor 'a' is None"),
    "tensor without offsets": (of({"dtype": "F32", "shape": [1]}), "data_offsets of tensor 'a' is None"),
    "unknown dtype": (of(entry(dtype="F99")), "dtype of tensor 'a' is 'F99'"),
    "BF16": (of(entry(dtype="BF16", shape=[2])), "dtype of tensor 'a' is 'BF16'"),
    "complex": (of(entry(dtype="C64"), size=8), "dtype of tensor 'a' is 'C64'"),
    "dtype a list": (of(entry(dtype=["F32"])), r"dtype of tensor 'a' is \['F32'\]"),
    "negative shape": (of(entry(shape=[-1])), r"shape of tensor 'a' is \[-1\]"),
    "two negatives": (of(entry(shape=[-1, -1])), r"shape of tensor 'a' is \[-1, -1\]"),
    "shape true": (of(entry(shape=[True])), r"shape of tensor 'a' is \[True\]"),
    "shape a number": (of(entry(shape=1)), "shape of tensor 'a' is 1"),
    "product of 2^64": (
        of(entry(shape=[2**32, 2**32])),
        r"data_offsets \[0, 4\] of tensor 'a': its shape needs 7378",
    ),
    "product of 2^64 and 1": (
        of(entry(shape=[2**32, 2**32, 0]), size=0),
        r"data_offsets \[0, 4\] of tensor 'a'",
    ),
    "an axis of 2^63": (of(entry(shape=[2**63])), r"shape of tensor 'a' is \[9223372036854775808\]"),
    "65 axes": (of(entry(shape=[1] * 65)), "shape of tensor 'a' is"),
    "empty but too large": (
        of(entry(shape=[0, 2**62, 2**62], data_offsets=[0, 0]), size=0),
        "too big|[Mm]aximum allowed",
    ),
    "shape and bytes differ": (of(entry(shape=[2])), "tensor 'a': its shape needs 8 bytes"),
    "offsets backwards": (of(entry(data_offsets=[4, 0])), r"data_offsets \[4, 0\] of tensor 'a'"),
    "negative offsets": (of(entry(data_offsets=[-4, 0])), r"data_offsets of tensor 'a' is \[-4, 0\]"),
    "three offsets": (of(entry(data_offsets=[0, 4, 8])), r"data_offsets of tensor 'a' is \[0, 4, 8\]"),
    "a hole first": (
        of(entry(data_offsets=[4, 8]), size=8),
        "data_offsets of tensor 'a' begin at 4, not at 0",
    ),
    "a hole": (
        of(entry(), entry(data_offsets=[8, 12]), size=12),
        "data_offsets of tensor 'b' begin at 8, not at 4",
    ),
    "an overlap": (
        of(entry(shape=[2], data_offsets=[0, 8]), entry(data_offsets=[4, 8]), size=8),
        "data_offsets of tensor 'b' begin at 4, not at 8",
    ),
    "the same bytes twice": (of(entry(), entry()), "data_offsets of tensor 'b' begin at 0, not at 4"),
    "data missing": (of(entry(), size=3), "tensors end at byte"),
    "an exabyte": (of(entry(dtype="U8", shape=[2**60], data_offsets=[0, 2**60])), "tensors end at byte"),
    "data left over": (of(entry(), size=5), "tensors end at byte"),
    "only data": (of(size=1), "tensors end at byte"),
    "many lists": (in_a_file(b'{"a":[' + b"[]," * 300_000 + b"[]]}"), "32,768 commas"),
    "many names": (
        in_a_file(b"{" + b",".join(b'"%x":"ab"' % i for i in range(70_000)) + b"}"),
        "32,768 commas",
    ),
    "as many names as can be": (
        in_a_file(b"{" + b",".join(b'"%025x":{}' % i for i in range(32_000)) + b"}"),
        "dtype of tensor",
    ),
    "a format but no digests": (of(__metadata__={"minigan.format": "2"}, size=0), "not a JSON object"),
    "digests but no format": (of(__metadata__={"minigan.sha256": "{}"}, size=0), "minigan.format is ''"),
    "digests under another name": (of(__metadata__={"a": '{"header": "0"}'}, size=0), "are gone"),
    "a strange format": (of(__metadata__={"minigan.format": "x", "minigan.sha256": "{}"}, size=0), "is 'x'"),
    "an old format": (of(__metadata__={"minigan.format": "1", "minigan.sha256": "{}"}, size=0), "is '1'"),
    "pickle": (pickle.dumps({"a": np.zeros(3)}), "would have|not a JSON object"),
}


@pytest.mark.parametrize(("content", "message"), LIES.values(), ids=LIES.keys())
def test_lying_headers(content: bytes, message: str, tmp_path: Path) -> None:
    """Each is refused, and names what is wrong, without much memory."""
    (tmp_path / "a").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=f"damaged, or not a safetensors file: .*({message})"):
            load(tmp_path / "a")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    if "too big" not in message:  # only NumPy knows how large an array may be
        with pytest.raises(CheckpointError, match=message):
            read_metadata(tmp_path / "a")


def forged(digests: dict[str, Any], header_digest: Any = None) -> bytes:
    """A file with these digests of its own making in a header whose digest is right, unless another one is given."""
    own = "0" * 64 if header_digest is None else header_digest
    metadata = {"minigan.format": "2", "minigan.sha256": json.dumps({"header": own, **digests})}
    content = of(entry(), __metadata__=metadata)
    if header_digest is None:
        content = content.replace(own.encode(), hashlib.sha256(content[:-4]).hexdigest().encode())
    return content


def test_forged_digests(tmp_path: Path) -> None:
    """A header whose own digest is right can still lie."""
    right = hashlib.sha256(bytes(4)).hexdigest()
    (tmp_path / "a").write_bytes(forged({"data": right, "tensors": {"a": right}}))
    assert load_all(tmp_path / "a", sealed=True)[0]["a"] == 0
    for content, message in (
        (forged({"data": right, "tensors": {"a": right}}, "1" * 64), "its header does not have its SHA-256"),
        (forged({"data": right, "tensors": {"a": right}}, ""), "its header does not have its SHA-256"),
        (forged({"data": right, "tensors": {"a": right}}, ["0"]), "its header does not have its SHA-256"),
        (forged({"data": right, "tensors": {"a": "f" * 64}}), "tensor 'a' does not have its SHA-256"),
        (forged({"data": right, "tensors": {"a": None}}), "tensor 'a' does not have its SHA-256"),
        (forged({"data": right, "tensors": {"b": right}}), "is not of the tensors in it"),
        (forged({"data": right, "tensors": {}}), "is not of the tensors in it"),
        (forged({"data": right, "tensors": [right]}), "is not of the tensors in it"),
        (forged({"data": right}), "is not of the tensors in it"),
        (forged({"tensors": {"a": right}}), "its data section does not have its SHA-256"),
        (forged({"data": "0", "tensors": {"a": right}}), "its data section does not have its SHA-256"),
    ):
        refused(tmp_path / "a", content, message)


def test_a_newer_format(tmp_path: Path) -> None:
    metadata = {"minigan.format": "3", "minigan.sha256": "something else"}
    message = refused(tmp_path / "a", of(entry(), __metadata__=metadata), "has format 3")
    assert message.endswith("a: has format 3, this minigan reads up to 2: upgrade minigan")


def test_bytes_that_are_no_booleans(tmp_path: Path) -> None:
    """NumPy would take the byte 2 for true here and for false there."""
    content = of(entry(dtype="BOOL", shape=[4]), entry(dtype="BOOL", shape=[], data_offsets=[4, 5]), size=5)
    (tmp_path / "a").write_bytes(content[:-5] + b"\0\1\2\xff\2")
    arrays = load(tmp_path / "a")
    assert arrays["a"].tobytes() + arrays["b"].tobytes() == b"\0\1\1\1\1"


@pytest.mark.parametrize(
    "write",
    [
        lambda file: np.save(file, np.array([None]), allow_pickle=True),
        lambda file: np.savez(file, x=np.zeros(3)),
        lambda file: pickle.dump({"x": np.zeros(3)}, file),
    ],
    ids=["npy of objects", "npz", "pickle"],
)
def test_nothing_else_is_read(write: Any, tmp_path: Path) -> None:
    with open(tmp_path / "a.safetensors", "wb") as file:
        write(file)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load(tmp_path / "a.safetensors")


# Memory


def test_no_second_copy_of_the_data(tmp_path: Path) -> None:
    tree = {f"{i}": np.ones(2**20, np.float32) for i in range(8)}
    size = sum(x.nbytes for x in tree.values())
    tracemalloc.start()
    try:
        save(tmp_path / "a", tree)
        assert tracemalloc.get_traced_memory()[1] < 1.2 * size  # a copy that cannot change meanwhile
        tracemalloc.reset_peak()
        load(tmp_path / "a")
        assert tracemalloc.get_traced_memory()[1] < 1.2 * size
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the address space and sparse files")
def test_a_file_larger_than_the_memory(tmp_path: Path) -> None:
    save(tmp_path / "small", {"x": np.zeros(100)})
    content = of(entry(dtype="U8", shape=[2**33], data_offsets=[0, 2**33]), size=0)
    with open(tmp_path / "large", "wb") as file:
        file.write(content)
        file.truncate(len(content) + 2**33)  # a hole: takes no room on the disk
    code = """
import resource, sys
from minigan.checkpoint import load
load(sys.argv[1])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
try: load(sys.argv[2])
except OSError as error: print(type(error).__name__, error)
print(load(sys.argv[1])["x"].sum())
"""
    files = [tmp_path / "small", tmp_path / "large"]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"CheckpointError {files[1]}: needs more memory than there is")
    assert done.stdout.endswith("\n0.0\n")


# Paths


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load(tmp_path / "missing")
    with pytest.raises(CheckpointError, match=r"(?i)is (not a file|a directory)"):
        load(tmp_path)
    for path in ("a\0b", "a" * 5000, "a\nb%s", b"\xff", "/dev/null"):
        with pytest.raises(CheckpointError):
            load(path)


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, message in (
        (tmp_path, "exists and is not a file"),
        (tmp_path / "no" / "folder", "No such file or directory"),
        (tmp_path / "file" / "a", "Not a directory"),
        (tmp_path / ("a" * 5000), "name too long"),
        (tmp_path / "a\0b", "null byte"),
        (Path("/proc/no.safetensors"), "/proc/no"),  # a folder where not even root can make a file
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            save(path, {"x": np.zeros(1)})
        assert str(path) in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_named_pipes_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    code = (
        "import sys, numpy as np\n"
        "from minigan.checkpoint import load, save\n"
        "from minigan.errors import CheckpointError\n"
        "for f in (lambda: load(sys.argv[1]), lambda: save(sys.argv[1], {'x': np.zeros(1)})):\n"
        "    try: f()\n"
        "    except CheckpointError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "pipe"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.count("not a file") == 2


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such names")
@pytest.mark.parametrize(
    "name", ["no_suffix", "a.npz", "%s %n", "line\nbreak", b"\xff\xfe", "\u00e9\u6f22", "n" * 255]
)
def test_odd_file_names(name: str | bytes, tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
    save(path, {"x": np.ones(2)})
    assert load(path)["x"].tolist() == [1, 1]
    assert os.listdir(os.fsencode(tmp_path)) == [os.fsencode(name)]


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save("a", {"x": np.ones(2)})
    assert load("./a")["x"].tolist() == [1, 1]


def test_the_temporary_is_in_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere it could be on another disk, from which nothing can be renamed."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "a").symlink_to(tmp_path / "there" / "a")
    stop = KeyboardInterrupt()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(stop))
    monkeypatch.setattr(os, "unlink", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "here" / "a", {})
    assert leftovers(tmp_path / "here") == []
    (left,) = leftovers(tmp_path / "there")
    assert load_all(left, sealed=True) == ({}, {})


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save(path, {"x": np.zeros(3)})
    before = path.read_bytes()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda *_: (_ for _ in ()).throw(full))
            with pytest.raises(CheckpointError, match="No space left"):
                save(path, {"x": np.ones(3)})
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_disk_that_stores_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: os.pwrite(file, b"\0", os.fstat(file).st_size - 1))
    with pytest.raises(CheckpointError, match="reads back different from what was written"):
        save(tmp_path / "a", {"x": np.ones(9, np.uint8)})
    assert list(tmp_path.iterdir()) == []


def test_any_file_can_be_written_so(tmp_path: Path) -> None:
    for content in (b"", b"seed = 1\n", bytes(3 * 2**20 + 1)):
        write_file(tmp_path / "config.toml", content)
        assert (tmp_path / "config.toml").read_bytes() == content
    with pytest.raises(CheckpointError, match="No such file"):
        write_file(tmp_path / "no" / "config.toml", b"")
    assert os.listdir(tmp_path) == ["config.toml"]


# Several at once


def test_a_file_replaced_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    save(path, {"x": np.zeros(1000)}, {"step": "1"})
    read = checkpoint._read_header

    def replaced(*arguments: Any) -> Any:
        header = read(*arguments)
        save(path, {"x": np.ones(2000)}, {"step": "2"})
        return header

    monkeypatch.setattr(checkpoint, "_read_header", replaced)
    arrays, metadata = load_all(path)
    assert (arrays["x"] == np.zeros(1000)).all() and metadata == {"step": "1"}
    monkeypatch.undo()
    assert read_metadata(path) == {"step": "2"}


def test_a_file_cut_off_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    save(path, {"x": np.zeros(100_000)})
    read = checkpoint._read_header

    def cut_off(*arguments: Any) -> Any:
        header = read(*arguments)
        os.truncate(path, 50_000)
        return header

    monkeypatch.setattr(checkpoint, "_read_header", cut_off)
    with pytest.raises(CheckpointError, match="it ended within tensor 'x' while it was read"):
        load(path)


def test_two_processes_that_save_to_one_file(tmp_path: Path) -> None:
    code = """
import sys, numpy as np
from minigan.checkpoint import save
who = int(sys.argv[1])
for i in range(100): save(sys.argv[2], {"x": np.full(1000 * who, who)}, {"who": str(who)})
"""
    path = tmp_path / "a"
    save(path, {"x": np.full(3000, 3)}, {"who": "3"})
    writers = [subprocess.Popen([sys.executable, "-c", code, who, path]) for who in "12"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        arrays, metadata = load_all(path, sealed=True)
        who = int(metadata["who"])
        assert arrays["x"].shape == (1000 * who,) and (arrays["x"] == who).all()
        seen.add(who)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert len(seen) >= 2 and leftovers(tmp_path) == []


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "a")
    save(link, {"x": np.ones(1)})
    assert link.is_symlink() and load(tmp_path / "there" / "a")["x"].tolist() == [1]


def test_same_tree_same_bytes(tmp_path: Path) -> None:
    """In any order, and in processes whose sets and hashes are in another order."""
    code = """
import sys, numpy as np
from minigan.checkpoint import save
tree = {"b": np.ones(2), "a": np.zeros((), np.float32), "c": np.ones((2, 3)).T}
notes = {str(i): "x" for i in range(20)}
if sys.argv[2] == "1": tree, notes = (dict(reversed(x.items())) for x in (tree, notes))
save(sys.argv[1], tree, notes)
"""
    for seed in "01":
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, tmp_path / seed, seed], env=environment, check=True)
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


def test_digest_sees_names_shapes_dtypes_and_bits() -> None:
    tree = {"a": np.zeros((2, 3)), "b": np.ones(2)}
    others = [
        {"a": np.zeros((3, 2)), "b": np.ones(2)},
        {"a": np.zeros((2, 3), np.float32), "b": np.ones(2)},
        {"a": -np.zeros((2, 3)), "b": np.ones(2)},
        {"a": np.zeros((2, 3)), "c": np.ones(2)},
        {"a": np.zeros((2, 3))},
    ]
    assert len({digest(tree), *map(digest, others)}) == 6
    assert (
        digest(tree)
        == digest(dict(reversed(tree.items())))
        == digest({"a": np.zeros((3, 2)).T, "b": np.ones(2)})
    )
