"""Data from files: what is read, and that damaged or hostile files end in one clear line, soon and in little memory."""

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import mutations
from PIL import Image, PngImagePlugin

import minigan as mg
from minigan.data import DataSet, find, read, sets
from minigan.data.arrays import read_arrays
from minigan.data.idx import read_idx
from minigan.data.pngs import read_pngs
from minigan.errors import ConfigError, DataError

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} does not exist")

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (5, 4, 3), np.uint8)
TYPES = {0x08: "u1", 0x09: "i1", 0x0B: "i2", 0x0C: "i4", 0x0D: "f4", 0x0E: "f8"}


def idx(array: Any, kind: int = 0x08) -> bytes:
    array = np.asarray(array)
    shape = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes((0, 0, kind, array.ndim)) + shape + array.astype(f">{TYPES[kind]}").tobytes()


def npy(array: Any, version: tuple[int, int] | None = None, **settings: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), version, **settings)
    return file.getvalue()


def npy_of(header: str | bytes, body: bytes = b"", version: int = 1) -> bytes:
    header = header.encode() if isinstance(header, str) else header
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes((version, 0)) + length + header + body


def npz(
    members: dict[str, bytes] | list[tuple[str, bytes]], compression: int = zipfile.ZIP_DEFLATED
) -> bytes:
    file = io.BytesIO()
    pairs = members.items() if isinstance(members, dict) else members
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that stand twice
        for name, content in pairs:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return file.getvalue()


def png(array: Any, **settings: Any) -> bytes:
    file = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(np.asarray(array))
    image.save(file, format="PNG", **settings)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def header(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def file_of(folder: Path, content: bytes, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def refused(reader: Callable[[Any], Any], path: Any, message: str | None = None) -> str:
    with pytest.raises(DataError, match=message) as caught:
        reader(path)
    text = str(caught.value)
    assert "\n" not in text and text.isprintable()
    return text


# IDX


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(7,), (5, 4, 3), (2, 1, 2, 1, 2)])
def test_idx_of_every_type(shape: tuple[int, ...], kind: int, zipped: bool, tmp_path: Path) -> None:
    array = RANDOM.integers(0, 100, shape).astype(TYPES[kind])
    content = idx(array, kind)
    found = read_idx(file_of(tmp_path, gzip.compress(content) if zipped else content))
    assert found.dtype == array.dtype and found.dtype.isnative and found.flags.writeable
    assert found.shape == shape and (found == array).all()


GOOD = idx(IMAGES)
ZIPPED = gzip.compress(GOOD)
MEMBERS = [gzip.compress(GOOD[:30]), gzip.compress(GOOD[30:])]
BAD_IDX = {
    "empty": (b"", "ends at byte 0, within the magic number"),
    "three bytes": (GOOD[:3], "ends at byte 3"),
    "not zero": (b"\1" + GOOD[1:], "begins with 01 00 08 03"),
    "unknown type": (b"\0\0\x0a\3" + GOOD[4:], "begins with 00 00 0a 03"),
    "no axes": (b"\0\0\x08\0" + GOOD[4:], "at least 1 axis"),
    "255 axes": (b"\0\0\x08\xff" + GOOD[4:], "ends at byte 76, within the shape"),
    "40 axes": (b"\0\0\x08\x28" + b"\0\0\0\1" * 40 + b"\0", "40 axes"),
    "cut shape": (GOOD[:10], "ends at byte 10, within the shape"),
    "a 0": (b"\0\0\x08\3" + b"\0\0\0\5\0\0\0\0\0\0\0\3", r"shape \(5, 0, 3\) with a 0 at byte 8"),
    "overflow": (
        b"\0\0\x08\3" + b"\xff" * 12 + bytes(60),
        "takes 79228162458924105385300197375 bytes from byte 16",
    ),
    "overflow to the size": (
        b"\0\0\x08\3" + b"\0\1\0\0" * 2 + b"\0\0\0\x3c" + bytes(60),
        "takes 257698037760",
    ),
    "little-endian": (b"\0\0\x08\3" + b"\5\0\0\0\4\0\0\0\3\0\0\0" + GOOD[16:], "there are 60"),
    "short by 1": (GOOD[:-1], "takes 60 bytes from byte 16, there are 59"),
    "long by 1": (GOOD + b"\0", "takes 60 bytes from byte 16, there are 61"),
    "gzip, empty": (gzip.compress(b""), "ends at byte 0"),
    "gzip, short by 1": (gzip.compress(GOOD[:-1]), "ends at byte 75 of 76"),
    "gzip, long by 1": (gzip.compress(GOOD + b"\0"), "goes on after byte 76"),
    "gzip, cut": (ZIPPED[:-9], f"the gzip data is cut off at byte {len(ZIPPED) - 9}"),
    "gzip, cut in the checksum": (ZIPPED[:-1], f"cut off at byte {len(ZIPPED) - 1}"),
    "gzip, other checksum": (ZIPPED[:-8] + b"1234" + ZIPPED[-4:], "damaged gzip .*incorrect data check"),
    "gzip, other length": (ZIPPED[:-4] + b"1234", "damaged gzip .*incorrect length check"),
    "gzip, garbage behind": (
        ZIPPED + b"garbage",
        f"goes on after byte {len(ZIPPED)}, where the gzip data ends",
    ),
    "gzip, zeros behind": (ZIPPED + bytes(2 << 20), f"goes on after byte {len(ZIPPED)}"),
    "gzip, two members": (
        gzip.compress(GOOD[:30]) + gzip.compress(GOOD[30:]),
        f"goes on after byte {len(gzip.compress(GOOD[:30]))}",
    ),
    "gzip, empty member behind": (ZIPPED + gzip.compress(b""), f"goes on after byte {len(ZIPPED)}"),
    "gzip, only its magic": (b"\x1f\x8b", "cut off at byte 2"),
}


@pytest.mark.parametrize("name", BAD_IDX)
@pytest.mark.parametrize("reader", [read_idx, read_arrays, read])
def test_bad_idx(name: str, reader: Callable[[Any], Any], tmp_path: Path) -> None:
    content, message = BAD_IDX[name]
    path = file_of(tmp_path, content)
    text = refused(reader, path, message if reader is read_idx else None)
    assert text.startswith(f"{path}")
    assert "byte" in text or "begins with" in text or "empty" in text or "axes" in text


def test_idx_cut_at_every_byte(tmp_path: Path) -> None:
    for content in (GOOD, ZIPPED):
        for end in range(len(content)):
            refused(read_idx, file_of(tmp_path, content[:end]))


# NPY and NPZ


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">i4", "<i8", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
def test_npy(dtype: str, order: str, version: tuple[int, int], tmp_path: Path) -> None:
    array = np.asarray(RANDOM.integers(0, 2, (5, 4, 3)), dtype, order=order)  # type: ignore[call-overload]
    found, labels = read_arrays(file_of(tmp_path, npy(array, version)))
    assert labels is None
    assert found.dtype == array.dtype.newbyteorder("=") and found.dtype.isnative and found.flags.c_contiguous
    assert found.shape == array.shape and (found == array).all()


@pytest.mark.parametrize("dtype", ["u1", "<f2", ">f4", "<f8"])
def test_images_of_npy(dtype: str, tmp_path: Path) -> None:
    array = np.asfortranarray(RANDOM.integers(0, 2, (5, 4, 3)).astype(dtype))
    data = read(file_of(tmp_path, npy(array)))
    assert data.samples.dtype == (np.uint8 if dtype == "u1" else np.float32)
    assert data.samples.shape == (5, 4, 3, 1) and (data.samples[..., 0] == array).all()


def test_points_of_npy(tmp_path: Path) -> None:
    points = RANDOM.normal(size=(6, 3))
    data = read(file_of(tmp_path, npy(points)))
    assert data.samples.dtype == np.float32 and (data.samples == points.astype(np.float32)).all()


HEADER = "{'descr': '|u1', 'fortran_order': False, 'shape': (5, 4, 3), }\n"
BAD_NPY = {
    "only the magic": (b"\x93NUMPY", "ends at byte 6"),
    "version": (b"\x93NUMPY\x09\0" + npy(IMAGES)[8:], "expected NPY of version 1 to 3"),
    "cut header": (npy(IMAGES)[:50], "ends at byte 50, within the header"),
    "short by 1": (npy(IMAGES)[:-1], "takes 60 bytes from byte 128, there are 59"),
    "long by 1": (npy(IMAGES) + b"\0", "there are 61"),
    "long header": (npy_of(" " * 9_999_999, version=2), "header of 9999999 bytes at byte 8"),
    "longest header": (npy_of("{", version=2)[:8] + b"\xff\xff\xff\xff{}", "header of 4294967295 bytes"),
    "objects": (npy(np.array([[{}]]), allow_pickle=True), r"'\|O'.* at byte 10: .*pickled"),
    "texts": (npy(np.array([["a"]])), "'<U1'"),
    "bytes": (npy(np.array([[b"a"]])), r"'\|S1'"),
    "records": (npy(np.zeros(2, [("x", "f4")])), "expected one shape"),
    "dates": (npy(np.zeros((2, 2), "M8[s]")), "M8"),
    "complex": (npy(np.zeros((2, 2), complex)), "c16"),
    "long double": (npy(np.zeros((2, 2), np.longdouble)), "f16"),
    "void": (npy_of(HEADER.replace("|u1", "|V8"), bytes(480)), "V8"),
    "no dtype": (npy_of(HEADER.replace("|u1", "")), "expected one shape"),
    "huge shape": (npy_of(HEADER.replace("5", "9" * 40), bytes(60)), "takes 119999999999999"),
    "huge digits": (npy_of(HEADER.replace("5", "9" * 5000), bytes(60)), "integer string conversion"),
    "negative shape": (npy_of(HEADER.replace("5", "-5"), bytes(60)), "expected one shape"),
    "many axes": (npy_of(HEADER.replace("5, 4, 3", "1, " * 40), bytes(1)), "40 axes"),
    "no axes": (npy(np.float32(1)), "shape"),
    "nothing in it": (npy(np.zeros((0, 4, 3), np.uint8)), r"shape \(0, 4, 3\)"),
    "key twice": (
        npy_of(HEADER.replace("fortran_order': False", "descr': '|u1'"), bytes(60)),
        "expected one",
    ),
    "fourth key": (npy_of(HEADER.replace("}", "'x': True}"), bytes(60)), "expected one"),
    "program": (npy_of("__import__('os').abort()", bytes(60)), "expected one"),
    "nested": (npy_of("(" * 9000, bytes(60)), "expected one"),
    "minuses": (npy_of(HEADER.replace("5", "-" * 9000 + "5"), bytes(60)), "expected one"),
    "spaces": (npy_of(HEADER.replace("}", " " * 9900), bytes(60)), "expected one"),
    "no text": (npy_of(b"\xff\xfe\0" * 30, bytes(60)), "expected one"),
    "NaN": (npy(np.full((2, 2, 2), np.nan)), "8 NaN or infinite values"),
    "infinite": (npy(np.array([[[0, np.inf]]])), "1 NaN or infinite values"),
    "signed": (npy(np.array([[[-1.0, 1.0]]])), "scale them"),
    "integers": (npy(np.zeros((2, 2, 2), int)), "dtype int64"),
    "flat bytes": (npy(np.zeros((2, 784), np.uint8)), r"images have the shape \(N, H, W\)"),
    "five axes": (npy(np.zeros((2, 2, 2, 2, 2))), "shape"),
    "all the same": (npy(np.full((2, 2, 2), 7, np.uint8)), "all values of 2 samples are 7"),
}


@pytest.mark.parametrize("name", BAD_NPY)
def test_bad_npy(name: str, tmp_path: Path) -> None:
    content, message = BAD_NPY[name]
    path = file_of(tmp_path, content)
    assert refused(read, path, message).startswith(f"{path}: ")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images", "labels"),
        ("train_images", "train_labels"),
        ("X_train", "y_train"),
        ("x", "y"),
        ("arr_0", "arr_1"),
        ("samples", None),
        ("only_one", None),
    ],
)
def test_npz(images: str, labels: str | None, compression: int, tmp_path: Path) -> None:
    members = {f"{images}.npy": npy(IMAGES)}
    if labels:
        members |= {"other.npy": npy(np.array([{}]), allow_pickle=True)}
        members |= {f"{labels}.npy": npy(np.arange(5, dtype=np.uint8)[:, None])}
    data = read(file_of(tmp_path, npz(members, compression)))
    assert (data.samples[..., 0] == IMAGES).all()
    assert data.labels is None if labels is None else (data.labels == np.arange(5)).all()


PICTURES = npy(IMAGES)
BOMB = npy(np.zeros((50_000_000,), np.uint8))
BAD_NPZ = {
    "empty archive": (npz({}), "which array has the images[?] It holds nothing"),
    "no images": (npz({"a.npy": PICTURES, "b.npy": PICTURES}), "It holds 'a', 'b': call one 'images'"),
    "one name twice": (npz([("images.npy", PICTURES)] * 2), "two arrays of one name"),
    "a and a.npy": (
        npz({"images": PICTURES, "images.npy": PICTURES}),
        "'images', which is no array|two arrays",
    ),
    "differ in case": (npz({"Images.npy": PICTURES, "images.npy": PICTURES}), "two arrays of one name"),
    "above": (npz({"../images.npy": PICTURES}), "'../images.npy', which is no array"),
    "absolute": (npz({"/images.npy": PICTURES}), "which is no array"),
    "backslash": (npz({"..\\images.npy": PICTURES}), "which is no array"),
    "drive": (npz({"c:images.npy": PICTURES}), "which is no array"),
    "no name": (npz({".npy": PICTURES}), "which is no array"),
    "torch": (npz({"archive/data.pkl": b"\x80\2."}), "'archive/data.pkl', which is no array"),
    "bomb": (
        npz({"images.npy": BOMB}),
        r"claims to hold 50000128 bytes, compressed to \d+: at most \d+ are believed",
    ),
    "lzma": (npz({"images.npy": PICTURES}, zipfile.ZIP_LZMA), "compression 14"),
    "objects": (
        npz({"images.npy": npy(np.array([{}]), allow_pickle=True)}),
        r"array 'images': header .*'\|O'",
    ),
    "no NPY": (
        npz({"images.npy": b"hello, world"}),
        "array 'images': begins with .*hello, w.*: expected NPY",
    ),
    "short": (npz({"images.npy": PICTURES[:-1]}), "array 'images': uint8 .* there are 59"),
    "labels of 4": (
        npz({"x.npy": PICTURES, "y.npy": npy(np.arange(4))}),
        r"\(4,\): expected integers, \(5,\)",
    ),
    "float labels": (npz({"x.npy": PICTURES, "y.npy": npy(np.zeros(5))}), "labels of float64"),
    "negative label": (npz({"x.npy": PICTURES, "y.npy": npy(np.arange(5) - 1)}), "label -1 of sample 0"),
    "cut": (npz({"images.npy": PICTURES})[:-5], "damaged, or not an archive"),
    "only the magic": (b"PK\3\4" + bytes(100), "damaged, or not an archive"),
}


@pytest.mark.parametrize("name", BAD_NPZ)
def test_bad_npz(name: str, tmp_path: Path) -> None:
    content, message = BAD_NPZ[name]
    path = file_of(tmp_path, content)
    assert refused(read, path, message).startswith(f"{path}: ")


def test_npz_of_other_sizes_than_it_says(tmp_path: Path) -> None:
    content = npz({"images.npy": PICTURES})
    central = content.index(b"PK\1\2")
    for stored, real in (
        (2**31, 0),
        (0, 2**31),
        (2**32 - 2, 2**32 - 2),
        (20, len(PICTURES)),
        (2**31, 60 << 20),
    ):
        lying = bytearray(content)
        lying[central + 20 : central + 28] = struct.pack("<II", stored or 10, real or 10)
        refused(read, file_of(tmp_path, bytes(lying)))


def test_an_archive_of_very_many_names(tmp_path: Path) -> None:
    content = npz({f"{'x' * 50}{i}.npy": b"" for i in range(12_000)})
    refused(read, file_of(tmp_path, content), r"a list of members of \d{7} bytes")


def test_crc_of_npz(tmp_path: Path) -> None:
    content = bytearray(npz({"images.npy": PICTURES}, zipfile.ZIP_STORED))
    content[content.index(IMAGES.tobytes())] ^= 1
    refused(read, file_of(tmp_path, bytes(content)), "Bad CRC-32")


# PNG


def folder_of(folder: Path, *contents: bytes) -> Path:
    place = folder / "pictures"
    place.mkdir(exist_ok=True)
    for i, content in enumerate(contents):
        file_of(place, content, f"{i}.png")
    return place


GREY = RANDOM.integers(0, 256, (6, 9), np.uint8)
COLOUR = RANDOM.integers(0, 256, (6, 9, 3), np.uint8)


def test_pngs(tmp_path: Path) -> None:
    grey = read(folder_of(tmp_path, png(GREY), png(GREY[::-1])))
    assert grey == DataSet(str(tmp_path / "pictures"), grey.samples, None)
    assert grey.samples.dtype == np.uint8 and grey.samples.shape == (2, 6, 9, 1)
    assert (grey.samples[..., 0] == [GREY, GREY[::-1]]).all()
    colour = read_pngs(folder_of(tmp_path, png(COLOUR), png(COLOUR[::-1])))
    assert (colour == [COLOUR, COLOUR[::-1]]).all()
    assert (
        read_pngs(tmp_path / "pictures", channels=1)[0, ..., 0] == Image.fromarray(COLOUR).convert("L")
    ).all()
    mixed = folder_of(tmp_path, png(GREY), png(COLOUR))
    assert (read_pngs(mixed, channels=3) == [GREY[..., None].repeat(3, 2), COLOUR]).all()
    refused(read_pngs, mixed, r"1\.png: a picture of shape \(6, 9, 3\), 0\.png has \(6, 9, 1\): choose")


def test_pngs_of_other_kinds(tmp_path: Path) -> None:
    bits = Image.fromarray(GREY > 99)
    palette = Image.fromarray(COLOUR).quantize(16)
    clear = np.dstack([COLOUR, np.where(GREY > 99, 255, 0).astype(np.uint8)])
    over_white = np.where(GREY[..., None] > 99, COLOUR, 255)
    key = Image.fromarray(np.where(GREY[0, 0] == GREY, GREY[0, 0], GREY))
    for content, wanted in (
        (png(bits), np.array(bits, np.uint8)[..., None] * 255),
        (png(palette), np.array(palette.convert("RGB"))),
        (png(clear), over_white),
        (png(key, transparency=int(GREY[0, 0])), np.where(GREY[0, 0] == GREY, 255, GREY)[..., None]),
        (png(np.dstack([GREY, np.full_like(GREY, 255)])), GREY[..., None]),
    ):
        assert (read_pngs(folder_of(tmp_path, content))[0] == wanted).all()


def test_pngs_are_cut_and_scaled(tmp_path: Path) -> None:
    tall = np.zeros((40, 20), np.uint8)
    tall[10:30] = 200  # the middle square
    found = read_pngs(folder_of(tmp_path, png(tall), png(tall.T)), size=8)
    assert found.shape == (2, 8, 8, 1) and (found[:, 1:-1, 1:-1] > 195).all() and (found > 180).all()


def test_pngs_in_the_order_of_their_names_without_hidden_files(tmp_path: Path) -> None:
    for i, name in enumerate(["b.png", "a.png", "B.PNG", "c"]):
        file_of(tmp_path, png(np.full((2, 2), i, np.uint8)), name)
    file_of(tmp_path, b"", ".DS_Store")
    assert read_pngs(tmp_path)[:, 0, 0, 0].tolist() == [2, 1, 0, 3]


def text_bomb() -> bytes:
    bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100 << 20)))
    return png_of(header(2, 2), bomb, chunk(b"IDAT", zlib.compress(bytes(6))))


def animation() -> bytes:
    first, second = Image.fromarray(GREY), Image.fromarray(GREY[::-1])
    return png(first, save_all=True, append_images=[second])


def gif() -> bytes:
    file = io.BytesIO()
    Image.fromarray(GREY).save(file, "GIF")
    return file.getvalue()


def with_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a harmless text")
    return png(GREY, pnginfo=info)


SIMPLE = png(GREY)
IDAT = SIMPLE.index(b"IDAT")
BAD_PNG = {
    "empty": (b"", "is no PNG file"),
    "GIF": (gif(), "is no PNG file"),
    "FITS": (b"SIMPLE  =                    T" + b" " * 3000, "is no PNG file"),
    "text": (b"hello" * 20, "is no PNG file"),
    "huge": (
        png_of(header(65535, 65535), chunk(b"IDAT", zlib.compress(b""))),
        "65535 x 65535 pixels at byte 16",
    ),
    "too wide": (png_of(header(2**31 - 1, 1), chunk(b"IDAT", b"")), "2147483647 x 1 pixels"),
    "no pixels": (png_of(header(0, 5), chunk(b"IDAT", b"")), "0 x 5 pixels"),
    "text bomb": (text_bomb(), "damaged"),
    "truncated": (SIMPLE[: IDAT + 20], "damaged"),
    "no end": (SIMPLE[:-12], "damaged"),
    "one bit": (SIMPLE[: IDAT + 9] + bytes([SIMPLE[IDAT + 9] ^ 1]) + SIMPLE[IDAT + 10 :], "damaged"),
    "16 bits": (png(Image.fromarray(GREY.astype(np.uint16))), "16 bits a channel at byte 24"),
    "16 bits of colour": (png_of(header(2, 2, 16, 2), chunk(b"IDAT", zlib.compress(bytes(26)))), "16 bits"),
    "animated": (animation(), "animated"),
    "two headers": (png_of(header(9, 6), header(6000, 6000), SIMPLE[IDAT - 4 : -12]), "damaged|two sizes"),
    "all the same": (png(np.full((4, 4), 9, np.uint8)), "all values of 1 samples are 9"),
}


@pytest.mark.parametrize("name", BAD_PNG)
def test_bad_pngs(name: str, tmp_path: Path) -> None:
    content, message = BAD_PNG[name]
    folder = folder_of(tmp_path, content)
    text = refused(read, folder, message)
    assert text.startswith(f"{folder}")
    assert name == "all the same" or text.startswith(f"{folder}/0.png: ")


def test_a_good_one_with_text_and_a_bad_one_behind_it(tmp_path: Path) -> None:
    assert (read_pngs(folder_of(tmp_path, with_text()))[0, ..., 0] == GREY).all()
    folder = folder_of(tmp_path, SIMPLE, SIMPLE, SIMPLE[:-30])
    assert refused(read_pngs, folder).startswith(f"{folder}/2.png: damaged")


def test_folders_that_are_no_pictures(tmp_path: Path) -> None:
    refused(read, tmp_path, "empty folder")
    (tmp_path / "inner").mkdir()
    refused(read, tmp_path, "inner: is not a file")
    with pytest.raises(ConfigError, match="size is 0"):
        read(tmp_path, size=0)
    with pytest.raises(ConfigError, match="channels is 2"):
        read(tmp_path, channels=2)
    for source in ("digits", file_of(tmp_path, GOOD)):
        with pytest.raises(ConfigError, match="for a folder of pictures"):
            read(source, size=8)


def test_pictures_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(mg.ExtraError, match=r"minigan\[cli\]"):
        read(folder_of(tmp_path, SIMPLE))


# Paths


@pytest.mark.skipif(os.name != "posix", reason="names of files are texts here")
@pytest.mark.parametrize(
    "name",
    [b"100%s %d", b"two\nlines", b"\xff\xfe not UTF-8", "ünï ☃".encode(), b"[red]x", b"-h", b"x" * 255],
)
def test_odd_names_of_files(name: bytes, tmp_path: Path) -> None:
    place = os.fsencode(tmp_path) + b"/" + name
    for path in (place, os.fsdecode(place)):
        Path(os.fsdecode(path)).write_bytes(GOOD)
        data = read(path)
        assert (data.samples[..., 0] == IMAGES).all() and data.name.isprintable()
        Path(os.fsdecode(path)).write_bytes(GOOD[:-1])
        refused(read, path, "there are 59")
    folder = Path(os.fsdecode(place + b" folder"[: 255 - len(name)]))
    if name != b"x" * 255:
        folder.mkdir()
        (folder / os.fsdecode(name)).write_bytes(SIMPLE)
        assert read(folder).samples.shape == (1, 6, 9, 1)
        (folder / os.fsdecode(name)).write_bytes(SIMPLE[:-30])
        refused(read, folder, "damaged")


@pytest.mark.parametrize(
    "path", ["x" * 4096, "/" + "x/" * 3000, "a\0b", "/nowhere/at/all", "/dev/null", "", "nowhere"]
)
@pytest.mark.parametrize("reader", [read, read_idx, read_pngs])
def test_paths_without_a_file(path: str, reader: Callable[[Any], Any]) -> None:
    refused(reader, path)


def test_a_misspelt_name_lists_the_names() -> None:
    refused(
        read, "mnsit", "mnsit: no file or folder here; data sets with a name are digits, mnist, fashion, ring"
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    refused(read, tmp_path / "pipe.png", "is not a file")
    refused(read_idx, tmp_path / "pipe.png", "is not a file")
    refused(read, tmp_path, "is not a file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable(tmp_path: Path) -> None:
    path = file_of(tmp_path, GOOD)
    path.chmod(0)
    refused(read, path, "Permission denied")
    tmp_path.chmod(0)
    try:
        refused(read_pngs, tmp_path, "Permission denied")
    finally:
        tmp_path.chmod(0o700)


def test_files_that_change_do_not_change_what_was_read(tmp_path: Path) -> None:
    path = file_of(tmp_path, GOOD)
    data = read(path)
    path.write_bytes(b"")
    path.unlink()
    assert (data.samples[..., 0] == IMAGES).all()


# Data sets with names


def mnist_like(folder: Path, images: str, labels: str, classes: int = 10, side: int = 28) -> tuple[Any, Any]:
    pixels = RANDOM.integers(0, 256, (20, side, side), np.uint8)
    kinds = np.arange(20, dtype=np.uint8) % classes
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((images, idx(pixels)), (labels, idx(kinds))):
        file_of(folder, gzip.compress(content) if name.endswith(".gz") else content, name)
    return pixels, kinds


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No data sets but those that a test puts into these folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MINIGAN_DATA", raising=False)
    return tmp_path


SPELLINGS = [
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    ("train-images.idx3-ubyte", "train-labels.idx1-ubyte"),
    ("train-images.idx3-ubyte.gz", "train-labels.idx1-ubyte.gz"),
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz"),
    ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte"),
]


@pytest.mark.parametrize(("images", "labels"), SPELLINGS)
def test_mnist_in_every_spelling(images: str, labels: str, elsewhere: Path) -> None:
    pixels, kinds = mnist_like(elsewhere / "data", images, labels)
    data = read("mnist", data_dir=elsewhere / "data")
    assert data.name == "mnist" and data.samples.dtype == np.uint8 and (data.samples[..., 0] == pixels).all()
    assert data.labels is not None and data.labels.dtype == np.int64 and (data.labels == kinds).all()
    alone = read(elsewhere / "data" / images)
    assert (alone.samples == data.samples).all() and (alone.labels == kinds).all()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "folder"), [("mnist", "mnist"), ("fashion", "fashion-mnist")])
def test_places_of_data_sets(
    name: str, folder: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [elsewhere / "given", elsewhere / "variable", elsewhere / "cache" / "minigan" / "data"]
    monkeypatch.setenv("MINIGAN_DATA", str(places[1]))
    refused(
        lambda path: read(name, data_dir=path), places[0], "given, .*variable, .*cache/minigan/data, nor in"
    )
    for place in reversed(places):  # those in front of it are then still empty
        for inner in (place, place / folder):
            mnist_like(inner, *SPELLINGS[1])
            found = find(name, places[0])
            assert found is not None and Path(found) == inner
            assert read(name, data_dir=places[0]).samples.shape == (20, 28, 28, 1)


def test_missing_data_set_says_what_to_do(elsewhere: Path) -> None:
    text = refused(lambda name: read(name), "mnist", "to download it: minigan data fetch mnist$")
    assert str(elsewhere) in text and "train-images-idx3-ubyte.gz" in text


def test_data_sets_that_are_not_what_they_should_be(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mnist(message: str) -> None:
        refused(lambda path: read("mnist", data_dir=path), elsewhere, message)

    mnist_like(elsewhere, *SPELLINGS[0], classes=11)
    mnist("label 10 of sample 10: expected 0 to 9")
    _, kinds = mnist_like(elsewhere, *SPELLINGS[0], side=8)
    mnist(r"shape \(8, 8, 1\) each: expected \(28, 28, 1\)")
    mnist_like(elsewhere, *SPELLINGS[0])
    monkeypatch.setitem(
        sets.SETS, "fashion", sets.SETS["fashion"]._replace(labels=zlib.crc32(kinds.tobytes()))
    )
    mnist("its labels are those of fashion")
    file_of(elsewhere, idx(np.arange(19) % 10), SPELLINGS[0][1])
    mnist(r"labels of uint8, \(19,\): expected integers, \(20,\)")
    (elsewhere / SPELLINGS[0][1]).unlink()
    mnist("no file of their labels")


@needs_shared
@pytest.mark.parametrize(("name", "mean"), [("mnist", 33.318421), ("fashion", 72.940352)])
def test_the_real_sets(name: str, mean: float, elsewhere: Path) -> None:
    data = read(name, data_dir=SHARED)
    assert data.samples.shape == (60000, 28, 28, 1) and data.samples.dtype == np.uint8
    assert data.samples.mean() == pytest.approx(mean, rel=1e-6)
    assert data.labels is not None and np.bincount(data.labels).min() > 5000
    again = read(name, data_dir=SHARED / sets.SETS[name].folder)
    assert (again.samples == data.samples).all()
    other = {"mnist": "fashion", "fashion": "mnist"}[name]
    refused(lambda path: read(name, data_dir=path), SHARED / sets.SETS[other].folder, f"those of {other}$")


@needs_shared
def test_other_real_files() -> None:
    xrays = read(SHARED / "pneumoniamnist" / "pneumoniamnist_merged.npz")
    assert xrays.samples.shape == (4708, 28, 28, 1) and np.bincount(xrays.labels).tolist() == [1214, 3494]  # type: ignore[arg-type]
    digits = read(SHARED / "optdigits" / "t10k-images-idx3-ubyte.gz")
    embedded = read("digits")
    assert (digits.samples == embedded.samples * 16).all()
    assert (digits.labels == embedded.labels).all()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "modes"), [("ring", 8), ("grid", 25), ("swiss_roll", 512)])
def test_sets_of_points(name: str, modes: int) -> None:
    data = read(name)
    assert data.name == name and data.samples.shape == (100_000, 2) and data.samples.dtype == np.float32
    assert data.labels is not None and len(np.bincount(data.labels)) == modes
    assert (read(name).samples == data.samples).all()


def test_every_set_is_described() -> None:
    for known in sets.SETS.values():
        assert known.about and (known.make is None) == bool(known.files) == bool(known.mirrors)
        assert all(size > 0 and len(bytes.fromhex(sha256)) == 32 for size, sha256 in known.files.values())


# Anything at all

SEEDS: dict[str, tuple[bytes, str]] = {
    "idx": (GOOD, "file"),
    "idx.gz": (ZIPPED, "file"),
    "npy": (npy(IMAGES), "file"),
    "npz": (npz({"x.npy": PICTURES, "y.npy": npy(np.arange(5))}), "file"),
    "npz, stored": (npz({"x.npy": PICTURES, "y.npy": npy(np.arange(5))}, zipfile.ZIP_STORED), "file"),
    "png": (with_text(), "pictures/0.png"),
    "png, palette": (png(Image.fromarray(COLOUR).quantize(8), transparency=3), "pictures/0.png"),
}


def survive(folder: Path, content: bytes, file: str, count: int, seed: int) -> None:
    """Only `DataError`, with one printable line that names the file, may come of a damaged one."""
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    source = path.parent if file.endswith(".png") else path
    for i, damaged in enumerate(mutations(content, count, seed)):
        path.write_bytes(damaged)
        try:
            samples, labels = read(source)[1:]
        except DataError as error:
            assert str(error).isprintable() and str(error).startswith(str(source)), (i, error)
        else:
            assert samples.ndim in (2, 4) and (labels is None or len(labels) == len(samples)), i


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", SEEDS)
def test_a_thousand_damaged_files(kind: str, tmp_path: Path) -> None:
    survive(tmp_path, *SEEDS[kind], 1000, 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", SEEDS)
def test_a_hundred_thousand_damaged_files(kind: str, tmp_path: Path) -> None:
    survive(tmp_path, *SEEDS[kind], 100_000, 2)


def test_mutations_are_many_and_repeatable() -> None:
    first, again = (list(mutations(GOOD, 500, 3)) for _ in range(2))
    assert first == again and len(set(first)) > 450
    assert {len(x) < len(GOOD) for x in first} == {len(x) > len(GOOD) for x in first} == {True, False}
    assert list(mutations(b"", 50, 0))


# Memory


@pytest.mark.parametrize("kind", ["idx", "idx.gz", "npy", "big-endian npy", "npz", "stored npz"])
def test_reading_takes_the_memory_of_the_array(kind: str, tmp_path: Path) -> None:
    images = np.zeros((4000, 100, 100), np.uint8)
    images[:, 50:] = RANDOM.integers(0, 256, (50, 100))
    content = {
        "idx": lambda: idx(images),
        "idx.gz": lambda: gzip.compress(idx(images), 1),
        "npy": lambda: npy(images),
        "big-endian npy": lambda: npy(images[:1000].astype(">f4")),
        "npz": lambda: npz({"images.npy": npy(images)}),
        "stored npz": lambda: npz({"images.npy": npy(images)}, zipfile.ZIP_STORED),
    }[kind]()
    path = file_of(tmp_path, content)
    del content
    tracemalloc.start()
    try:
        size = read_arrays(path)[0].nbytes
        assert tracemalloc.get_traced_memory()[1] < size + (16 << 20)
    finally:
        tracemalloc.stop()


# Files that claim what would not fit, read with hardly any memory to spare

BOMBS = {
    "gzip of what it says": lambda: gzip.compress(
        b"\0\0\x08\3" + struct.pack(">III", 300, 1000, 1000) + bytes(3 * 10**8), 1
    ),
    "gzip without an end": lambda: gzip.compress(idx(IMAGES) + bytes(10**8), 1),
    "npy": lambda: npy_of(HEADER.replace("5", "90000000000"), bytes(60)),
    "zip": lambda: npz({"images.npy": npy(np.zeros((1000, 1000, 100), np.uint8))}),
    "pixels": lambda: png_of(header(65535, 65535), chunk(b"IDAT", zlib.compress(bytes(10**7)))),
    "text": text_bomb,
    "blank pictures": lambda: png(Image.new("L", (5000, 5000))),
}
LIMITED = """
import json, os, resource, sys
import minigan as mg
from minigan.data.pngs import read_pngs
from PIL import Image, ImageOps, PngImagePlugin
Image.init()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {spare}, used + {spare}))
for source in json.loads({sources!r}):
    try:
        mg.data.read(source)
        print("read")
    except mg.DataError as error:
        print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and the limit of Linux")
def test_bombs_in_little_memory(tmp_path: Path) -> None:
    sources = []
    for i, (name, make) in enumerate(BOMBS.items()):
        pictures = name in ("pixels", "text", "blank pictures")
        folder = tmp_path / str(i)
        folder.mkdir()
        path = file_of(folder, make(), "file.png")
        for copy in range(20 * (name == "blank pictures")):
            (folder / f"{copy}.png").symlink_to(path)
        sources.append(str(folder if pictures else path))
    code = LIMITED.format(spare=150 << 20, sources=json.dumps(sources))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == len(sources), done.stderr
    assert all(line.startswith(source) for line, source in zip(lines, sources, strict=True)), lines
