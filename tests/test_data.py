"""The embedded digits, what is accepted as images, points and labels, and the sampler."""

import gzip
import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from minigan.data import Batches, as_images, as_points, digits
from minigan.data.sampler import as_labels
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
@pytest.mark.parametrize(
    "content",
    [b"", b"not gzip", gzip.compress(b"1,2,3\n"), gzip.compress(b"1,x\n")],
    ids=["empty", "not gzip", "short", "no number"],
)
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
    assert batches.samples.dtype == np.uint8 and np.shares_memory(batches.samples, images)
    batch = batches.at(0)
    assert batch.dtype == np.float32 and batch.shape == (3, 1, 1, 1)
    assert sorted(batch.ravel().tolist()) == [0, float(np.float32(0.2)), 1]


def test_orders_are_those_of_earlier_versions() -> None:
    batches = Batches(numbered(200), 7, Stream(5, "data"))
    seen = np.concatenate([batches.at(step).ravel() for step in range(100)]) * 255
    digest = hashlib.sha256(np.round(seen).astype(np.uint8).tobytes()).hexdigest()
    assert digest == "2e012be076a0c0ad33733edeb918f6d876a6de0988075b72f58c55c442c5b1f0"


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8"])
def test_points_are_left_as_they_are(dtype: str) -> None:
    points = np.array([[-3.5, 2.0], [1024.0, 0.0]], dtype)
    taken = as_points(points, (2,))
    assert taken.dtype == np.float32 and (taken == points).all()
    batch = Batches(points, 2, Stream(0, "data"), (2,)).at(0)
    assert sorted(batch.tolist()) == sorted(points.tolist())


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros(4), r"shape \(4,\): expected \(N, P\)"),
        (np.zeros((0, 2)), r"shape \(0, 2\)"),
        (np.zeros((2, 0)), r"shape \(2, 0\)"),
        (np.zeros((2, 4), np.uint8), r"dtype uint8: expected floats; images have the shape \(N, H, W\)"),
        (np.zeros((2, 4), complex), "dtype complex128"),
        (np.array([[0, np.nan]]), "1 NaN or infinite values of 2"),
        (np.array([[1e39, -np.inf]]), "2 NaN or infinite values of 2"),
    ],
)
def test_points_that_are_refused(points: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_points(points)


def test_samples_that_do_not_fit_the_network() -> None:
    with pytest.raises(DataError, match=r"points of shape \(3, 2\): expected \(N, 5\)"):
        as_points(np.zeros((3, 2)), (5,))
    with pytest.raises(DataError, match=r"images of shape \(3, 2\)"):
        Batches(np.zeros((3, 2)), 1, Stream(0, "data"), (2,), points=False)
    with pytest.raises(DataError, match=r"points of shape \(3, 2, 2\)"):
        Batches(np.zeros((3, 2, 2)), 1, Stream(0, "data"), (4,), points=True)


def test_labels() -> None:
    assert as_labels(np.array([[9], [0]], np.uint8), 2, 10).tolist() == [9, 0]
    for labels, message in (
        ([1, 2, 3], r"\(3,\): expected integers, \(2,\), as many as samples"),
        ([0.0, 1.0], "labels of float64"),
        ([0, 10], "label 10 of sample 1: expected 0 to 9"),
        ([-1, 0], "label -1 of sample 0"),
        (np.array([0, 2**64 - 1], np.uint64), "label 18446744073709551615 of sample 1"),
    ):
        with pytest.raises(DataError, match=message):
            as_labels(labels, 2, 10)


@pytest.mark.parametrize("batch", [0, -1, True, 2.0, 3 * 1024 + 1, 10**9, 10**30])
def test_batches_that_are_refused(batch: int) -> None:
    with pytest.raises(ConfigError, match=r"batch is .*: expected an integer from 1 to 3072"):
        Batches(numbered(3), batch, Stream(0, "data"))


def test_a_batch_too_large_for_memory_is_refused_before_it_is_made() -> None:
    images = np.broadcast_to(np.uint8(0), (50_000, 200, 200, 3))  # takes a byte
    with pytest.raises(ConfigError, match=r"batch is 5000: .* to 4473 \(50000 samples of 480000 bytes"):
        Batches(images, 5000, Stream(0, "data"))


def test_a_batch_of_many_epochs_takes_little_more_than_its_own_memory() -> None:
    batches = Batches(np.zeros((100, 16), np.float32), 100 * 1024, Stream(0, "data"))
    batches.at(0)
    tracemalloc.start()
    try:
        size = batches.at(1).nbytes
        assert tracemalloc.get_traced_memory()[1] < 3 * size
    finally:
        tracemalloc.stop()
