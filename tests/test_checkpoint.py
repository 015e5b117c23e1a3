"""What is saved comes back bit for bit, and what cannot be is one clear error."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as npst

from minigan.checkpoint import digest, load, load_all, save
from minigan.errors import CheckpointError
from minigan.tensor import tensor

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

    save(tmp_path / "a.safetensors", {"x": np.arange(6.0).reshape(2, 3).T})
    assert (
        safetensors.numpy.load_file(tmp_path / "a.safetensors")["x"] == np.arange(6.0).reshape(2, 3).T
    ).all()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"x": np.zeros(2, complex)}, "'x' has dtype complex128"),
        ({"x": np.array(["a"])}, "'x' has dtype <U1"),
        ({"x": np.array([None])}, "'x' has dtype object"),
        ({"x": np.zeros(2, "datetime64[s]")}, "'x' has dtype datetime64"),
        ({1: np.zeros(2)}, "name 1 of an array is a int"),
    ],
)
def test_what_the_format_does_not_have(tree: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path / "a", tree)
    assert list(tmp_path.iterdir()) == []


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, {"x": np.arange(3.0), "y": np.ones((2, 2), np.float32)}, {"note": "x"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        load(path)


def in_a_file(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        b"PK\x03\x04 a zip file",
        in_a_file(b"[]"),
        in_a_file(b"{"),
        in_a_file(b"\xff\xff"),
        in_a_file(b"[" * 50_000),
        in_a_file(b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', bytes(4)),
        in_a_file(b'{"x":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        in_a_file(b'{"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}', bytes(4)),
        in_a_file(b'{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', bytes(4)),
        in_a_file(b'{"x":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}', bytes(4)),
        in_a_file(b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', bytes(8)),
        in_a_file(
            b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
        ),
    ],
)
def test_damaged_headers(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged, or not a safetensors file"):
        load(tmp_path / "a")


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load(tmp_path / "missing")
    with pytest.raises(CheckpointError, match=r"(?i)is (not a file|a directory)"):
        load(tmp_path)


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, message in (
        (tmp_path, "exists and is not a file"),
        (tmp_path / "no" / "folder", "No such file or directory"),
        (tmp_path / "file" / "a", "Not a directory"),
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


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "a")
    save(link, {"x": np.ones(1)})
    assert link.is_symlink() and load(tmp_path / "there" / "a")["x"].tolist() == [1]


def test_same_tree_same_bytes(tmp_path: Path) -> None:
    tree = {"b": np.ones(2), "a": np.zeros((), np.float32)}
    save(tmp_path / "one", tree, {"note": json.dumps({"x": 1})})
    save(tmp_path / "two", dict(reversed(tree.items())), {"note": json.dumps({"x": 1})})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


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
