"""The embedded digits, what is accepted as images, and the sampler."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from minigan.data import Batches, as_images, digits
from minigan.errors import ConfigError, DataError
from minigan.ops.random import Stream


def test_digits_are_the_real_ones() -> None:
    images, labels = digits()
    assert (images.shape, images.dtype, labels.shape, labels.dtype) == (
        (1797, 8, 8, 1),
        np.float32,
        (1797,),
        np.int64,
    )
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert images.min() == 0 and images.max() == 1
    assert (images * 16 == np.round(images * 16)).all()
    assert images.sum(dtype=np.float64) * 16 == 561718


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize("content", [b"", b"not gzip", gzip.compress(b"1,2,3\n"), gzip.compress(b"1,x\n")])
def test_damaged_digits(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits.csv.gz").write_bytes(content)
    monkeypatch.setitem(digits.__globals__, "__file__", str(tmp_path / "digits.py"))
    with pytest.raises(DataError, match=r"digits\.csv\.gz.*install minigan again"):
        digits()


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 3, 1), (5, 4, 3, 3)])
def test_images_that_are_accepted(shape: tuple[int, ...], dtype: str) -> None:
    given = np.ones(shape, dtype)
    images = as_images(given)
    assert images.shape == (*shape, 1)[:4]
    assert images.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    assert (
        as_images(given, images.shape[1:]).shape == as_images(given, (images[0].size,)).shape == images.shape
    )


def planted(value: float) -> np.ndarray:
    images = np.zeros((2, 4, 4))
    images[1, 2, 3] = value
    return images


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 4)), r"shape \(2, 4\)"),
        (np.zeros((2, 4, 4, 1, 1)), r"shape \(2, 4, 4, 1, 1\)"),
        (np.zeros((0, 4, 4)), r"shape \(0, 4, 4\)"),
        (np.zeros((2, 4, 4), int), "dtype int64"),
        (np.zeros((2, 4, 4), bool), "dtype bool"),
        (np.zeros((2, 4, 4), complex), "dtype complex128"),
        (np.zeros((2, 4, 4), object), "dtype object"),
        (planted(np.nan), "1 NaN or infinite values of 32"),
        (planted(-np.inf), "1 NaN or infinite values of 32"),
        (planted(255), r"from 0 to 255: expected \[0, 1\]; divide by 255"),
        (planted(-1), r"from -1 to 0: expected \[0, 1\]; scale"),
        (planted(1 + 1e-7), r"from 0 to 1\.0000001"),
        (planted(-0.9999999), "from -1 to 0"),
    ],
)
def test_images_that_are_refused(images: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_images(images)


def test_images_that_do_not_fit_the_network() -> None:
    with pytest.raises(DataError, match=r"\(4, 4, 1\) each, but the networks have shape \(8, 8, 1\)$"):
        as_images(np.zeros((2, 4, 4)), (8, 8, 1))
    with pytest.raises(DataError, match=r"channels come last, use np\.moveaxis"):
        as_images(np.zeros((2, 3, 8, 8)), (8, 8, 3))


def numbered(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8).reshape(count, 1, 1)


@pytest.mark.parametrize(("count", "batch"), [(10, 3), (10, 10), (3, 10), (1, 2), (7, 1)])
def test_every_image_is_used_equally_often(count: int, batch: int) -> None:
    batches = Batches(numbered(count), batch, Stream(0, "data"))
    seen = np.round(np.concatenate([batches.at(step).ravel() for step in range(3 * count)]) * 255).astype(int)
    for end in range(count, len(seen) + 1, count):
        assert (np.bincount(seen[:end], minlength=count) == end // count).all()


def test_batches_are_a_function_of_the_step() -> None:
    images = digits()[0]
    first, second = (Batches(images, 64, Stream(3, "data")) for _ in range(2))
    forward = [first.at(step) for step in range(60)]
    assert all((second.at(step) == forward[step]).all() for step in reversed(range(60)))
    assert (Batches(images, 64, Stream(4, "data")).at(0) != forward[0]).any()
    assert (forward[0] != forward[29]).any()


def test_bytes_are_kept_and_scaled_by_batch() -> None:
    images = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1)
    batches = Batches(images, 3, Stream(0, "data"))
    assert batches.images.dtype == np.uint8 and np.shares_memory(batches.images, images)
    batch = batches.at(0)
    assert batch.dtype == np.float32 and batch.shape == (3, 1, 1, 1)
    assert sorted(batch.ravel().tolist()) == [0, float(np.float32(0.2)), 1]


def test_batch_of_nothing() -> None:
    with pytest.raises(ConfigError, match="batch is 0"):
        Batches(numbered(3), 0, Stream(0, "data"))
