"""Feature spaces, the classifier, intervals, the test of two samples, memorisation and stacked digits."""

import math
import os
from pathlib import Path

import numpy as np
import pytest

import minigan as mg
from minigan import metrics
from minigan.metrics import learned, nearest, samples as parts


def _random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(params=[1 << 22, 7])
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers come out however few distances are in memory at a time."""
    monkeypatch.setattr(parts, "BLOCK", request.param)


# Feature spaces


def test_pixels_of_bytes_and_floats_are_the_same() -> None:
    images = _random().integers(0, 256, (2300, 4, 3, 1)).astype(np.uint8)
    found = metrics.pixels(images)
    assert found.shape == (2300, 12) and found.max() == 1
    np.testing.assert_array_equal(found, metrics.pixels(images.astype(np.float32) / np.float32(255)))


@pytest.mark.parametrize("count", [8, 40])  # fewer samples than numbers, and more
def test_principal_components(count: int) -> None:
    data = _random().normal(size=(count, 4, 5)) * np.arange(1, 6)
    space = metrics.pca(data, dims=3)
    found = space(data)
    assert space.name == "pca3" and found.shape == (count, 3)
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(data.reshape(count, -1).T)))[::-1]
    np.testing.assert_allclose(np.cov(found.T), np.diag(eigenvalues[:3]), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-12)


def test_all_components_keep_distances() -> None:
    data = _random().normal(size=(50, 6))
    found = metrics.pca(data, dims=6)(data)
    np.testing.assert_allclose(
        np.linalg.norm(found[0] - found[1:], axis=1), np.linalg.norm(data[0] - data[1:], axis=1), rtol=1e-12
    )


def test_numbers_are_named_after_their_space() -> None:
    def edges(images: np.ndarray) -> np.ndarray:
        return np.diff(images, axis=1)

    assert metrics.label("precision", metrics.pixels) == "precision[pixels]"
    assert metrics.label("precision", edges) == "precision[edges]"
    assert metrics.as_space(edges)(np.eye(3)).shape == (3, 2)
    own = metrics.Space("my edges", edges)
    assert metrics.as_space(own) is own
    assert metrics.label("precision", own) == "precision[my edges]"
    np.testing.assert_array_equal(own(np.eye(3)), [[-1, 0], [1, -1], [0, 1]])
    with pytest.raises(mg.ConfigError, match="no name"):
        metrics.label("precision", lambda images: images)


# The classifier


def blobs(count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % 4
    centres = np.array([[0, 0], [9, 0], [0, 9], [9, 9]], np.float32)
    return centres[labels] + _random().normal(size=(count, 2)).astype(np.float32), labels


def test_a_classifier_learns_what_can_be_told_apart(tmp_path: Path) -> None:
    points, labels = blobs()
    steps: list[tuple[int, int]] = []
    judge = metrics.classifier(points, labels, steps=100, cache=tmp_path, progress=lambda *x: steps.append(x))
    assert judge.accuracy == 1.0 and judge.name == "classifier" and judge.classes == 4
    assert steps == [(k, 100) for k in range(1, 101)]
    chances = judge.probabilities(points)
    assert chances.dtype == np.float32
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(chances.argmax(1), judge.labels(points))
    assert (judge.labels(points) == labels).mean() > 0.99
    features = judge(points)
    assert features.shape == (400, 128) and features.min() == 0  # behind a ReLU
    # The logits are affine in the features.
    logits = np.log(chances.astype(np.float64)[:, 1:] / chances[:, :1])
    small = np.abs(logits).max(1) < 60
    fit = np.linalg.lstsq(np.c_[features, np.ones(400)][small], logits[small], rcond=None)[0]
    np.testing.assert_allclose(np.c_[features, np.ones(400)][small] @ fit, logits[small], atol=0.01)


def test_embedded_digits(tmp_path: Path) -> None:
    images, labels = mg.data.digits()
    judge = metrics.classifier(images, labels, steps=300, cache=tmp_path)
    assert judge.accuracy > 0.95
    as_bytes = np.round(images * 16 * 15).astype(np.uint8)  # other data, which has its own classifier
    assert not metrics.classifier(as_bytes, labels, steps=1, cache=tmp_path).cached


@pytest.mark.parametrize("shape", [(16, 16, 1), (31, 20, 3)])
def test_larger_images_go_through_convolutions(tmp_path: Path, shape: tuple[int, ...]) -> None:
    labels = np.arange(300) % 2
    images = 0.3 * _random().random((300, *shape)).astype(np.float32)
    images[labels == 1, :, : shape[1] // 2] += 0.5
    judge = metrics.classifier(images, labels, steps=20, batch=32, cache=tmp_path)
    assert judge.accuracy > 0.9
    assert judge(images[:3]).shape == (3, 128)


def test_a_classifier_is_kept_and_found(tmp_path: Path) -> None:
    points, labels = blobs(100)
    first = metrics.classifier(points, labels, steps=30, cache=tmp_path / "new" / "folder")
    again = metrics.classifier(points, labels, steps=30, cache=tmp_path / "new" / "folder")
    assert (first.cached, again.cached) == (False, True)
    assert first.accuracy == again.accuracy
    np.testing.assert_array_equal(first(points), again(points))
    (file,) = (tmp_path / "new" / "folder").iterdir()
    for changed in (
        metrics.classifier(points, labels, steps=31, cache=file.parent),
        metrics.classifier(points, labels, steps=30, seed=1, cache=file.parent),
        metrics.classifier(points + 1, labels, steps=30, cache=file.parent),
        metrics.classifier(points, 3 - labels, steps=30, cache=file.parent),
    ):
        assert not changed.cached


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other", "folder"])
def test_a_damaged_cache_only_costs_time(tmp_path: Path, damage: str) -> None:
    points, labels = blobs(100)
    first = metrics.classifier(points, labels, steps=30, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    data = file.read_bytes()
    if damage == "folder":
        file.unlink()
        file.mkdir()
    elif damage == "other":
        mg.save(file, {"w": np.zeros(3)}, {"accuracy": "0.5"})
    else:
        file.write_bytes({"cut": data[:-9], "bit": data[:-1] + bytes([data[-1] ^ 1]), "empty": b""}[damage])
    again = metrics.classifier(points, labels, steps=30, cache=tmp_path)
    assert not again.cached
    np.testing.assert_array_equal(first(points), again(points))
    assert metrics.classifier(points, labels, steps=30, cache=tmp_path).cached == (damage != "folder")


def test_a_cache_that_cannot_be_written() -> None:
    points, labels = blobs(100)
    for _ in range(2):
        assert not metrics.classifier(points, labels, steps=5, cache="/dev/null/cache").cached


def test_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "cache_folder", lambda: str(tmp_path / "minigan"))
    points, labels = blobs(100)
    assert not metrics.classifier(points, labels, steps=5).cached
    assert metrics.classifier(points, labels, steps=5).cached
    (file,) = (tmp_path / "minigan" / "classifiers").iterdir()
    assert file.suffix == ".safetensors" and len(file.stem) == 64
    if os.name == "posix":
        assert file.parent.stat().st_mode & 0o077 == 0


# Intervals


@pytest.mark.parametrize("count", [20, 21])
@pytest.mark.parametrize("level", [0.9, 0.5])
def test_the_interval_of_a_mean_covers_as_it_should(count: int, level: float) -> None:
    trials = 250
    x = _random().normal(size=(trials, count))
    covered = 0
    for k in range(trials):
        found = metrics.confidence_interval(np.mean, x[k], resamples=20, level=level, seed=k)
        covered += found.low <= 0 <= found.high
    error = math.sqrt(level * (1 - level) / trials)
    assert covered / trials == pytest.approx(level, abs=3.5 * error)


def test_the_error_is_that_of_the_whole_sample() -> None:
    x, y = _random().normal(size=100), _random(1).normal(size=101)
    one = metrics.confidence_interval(np.mean, x, resamples=1500)
    assert one.error == pytest.approx(x.std(ddof=1) / 10, rel=0.07)
    odd = metrics.confidence_interval(np.mean, y[:5], resamples=1500)
    assert odd.error == pytest.approx(y[:5].std(ddof=1) / math.sqrt(5), rel=0.07)
    both = metrics.confidence_interval(lambda a, b: a.mean() - b.mean(), x, y, resamples=1500)
    expected = math.sqrt(x.var(ddof=1) / 100 + y.var(ddof=1) / 101)
    assert both.error == pytest.approx(expected, rel=0.07)
    assert (both.low + both.high) / 2 == pytest.approx(both.value)


def test_the_error_of_distances_and_neighbours_is_how_much_they_vary() -> None:
    def measures(x: np.ndarray, y: np.ndarray) -> list[float]:
        return [metrics.frechet_distance(x, y), *metrics.precision_recall(x, y, k=3)]

    runs = _random().normal(size=(80, 2, 120, 3)) * np.array([1.0, 0.8])[:, None, None]
    found = [metrics.confidence_interval(measures, *run, resamples=10) for run in runs]
    spread = np.std([each.value for each in found], axis=0, ddof=1)
    errors = np.sqrt(np.mean([each.error**2 for each in found], axis=0))
    assert (errors > 0.75 * spread).all() and (errors < 1.75 * spread).all()


def test_several_numbers_at_once() -> None:
    x = _random().normal(size=(60, 2))
    calls: list[int] = []
    found = metrics.confidence_interval(
        lambda a: (a.mean(), a.std()), x, resamples=7, progress=lambda done, all: calls.append(done)
    )
    assert calls == [1, 2, 3, 4, 5, 6, 7]
    np.testing.assert_array_equal(found.value, [x.mean(), x.std()])
    alone = metrics.confidence_interval(np.std, x, resamples=7)
    assert found.error[1] == alone.error


@pytest.mark.parametrize(
    ("degrees", "level", "expected"),
    [(5, 0.9, 2.015048), (9, 0.95, 2.262157), (19, 0.95, 2.093024), (49, 0.99, 2.679952)],
)
def test_students_quantiles(degrees: int, level: float, expected: float) -> None:
    assert metrics.intervals._student(level, degrees) == pytest.approx(expected, abs=0.002)


# The test of two samples


def test_p_values_of_equal_distributions_are_uniform() -> None:
    trials, n = 250, 400
    x = _random().normal(size=(trials, 2, n, 2))
    found = np.array([metrics.two_sample_test(*x[k], seed=k).p_value for k in range(trials)])
    # Of counts, it is at most t with a probability of at most t, and of at least t less that of one count.
    largest = math.comb(n // 2, n // 4) ** 2 / math.comb(n, n // 2)
    for t in (0.05, 0.1, 0.25, 0.5, 0.75, 0.9):
        error = math.sqrt(t * (1 - t) / trials)
        assert t - largest - 3.5 * error < (found <= t).mean() < t + 3.5 * error, t


def test_accuracy_of_distributions_that_do_not_touch() -> None:
    x = _random().normal(size=(40, 3))
    found = metrics.two_sample_test(x, x + 50)
    assert found[0] == found.of_real == found.of_generated == 1
    assert found.p_value == pytest.approx(1 / math.comb(40, 20))


def test_names_by_neighbours_are_those_of_the_definition() -> None:
    x, y = _random().normal(size=(15, 2)), _random(1).normal(size=(15, 2)) + 0.8
    k = math.isqrt(14)
    orders = [mg.ops.Stream(0, f"two samples/{w}").permutation(15) for w in ("x", "y")]
    a, b = x[orders[0]], y[orders[1]]
    known, right = np.concatenate([a[:7], b[:7]]), []
    for rows, name in ((a[7:], True), (b[7:], False)):
        for row in rows:
            near = np.argsort(((known - row) ** 2).sum(1))[:k]
            right.append((2 * (near < 7).sum() > k) == name)
    found = metrics.two_sample_test(x, y)
    assert found.accuracy == np.mean(right)
    assert (found.of_real, found.of_generated) == (np.mean(right[:8]), np.mean(right[8:]))


def test_the_tail_is_the_hypergeometric_one() -> None:
    held, named = 6, 5
    chances = [math.comb(6, h) * math.comb(6, 5 - h) / math.comb(12, 5) for h in range(6)]
    for h in range(6):
        assert nearest._at_least(h, named, held) == pytest.approx(sum(chances[h:]), rel=1e-12)
    assert nearest._at_least(0, 0, 6) == nearest._at_least(6, 12, 6) == 1.0


# Memorisation


@pytest.mark.usefixtures("small_blocks")
def test_nearest_neighbours_are_those_of_the_definition() -> None:
    x, y = _random().normal(size=(9, 3)), _random(1).normal(size=(23, 3))
    distances = np.linalg.norm(x[:, None] - y, axis=2)
    places, found = nearest.nearest(x, y, 4)
    np.testing.assert_array_equal(places, np.argsort(distances, axis=1)[:, :4])
    np.testing.assert_allclose(found, np.sort(distances, axis=1)[:, :4], rtol=1e-12)
    chosen = np.array([3, 0, 22])
    places, found = nearest.nearest(y[chosen], y, 1, itself=chosen)
    among = np.linalg.norm(y[chosen][:, None] - y, axis=2)
    among[[0, 1, 2], chosen] = np.inf
    np.testing.assert_array_equal(places[:, 0], among.argmin(1))


def test_memorisation_of_honest_samples_and_of_copies() -> None:
    training, fresh = _random().normal(size=(1000, 8)), _random(1).normal(size=(400, 8))
    assert metrics.memorisation(fresh, training).ratio == pytest.approx(1, abs=0.05)
    assert metrics.memorisation(fresh, training, queries=300).ratio == pytest.approx(1, abs=0.08)
    copies = metrics.memorisation(training[:300] + 0.01 * fresh[:300], training, k=2)
    assert copies.ratio < 0.05
    np.testing.assert_array_equal(copies.indices[:, 0], np.arange(300))
    assert (copies.distances[:, 1] > copies.distances[:, 0]).all()
    assert metrics.memorisation(training[:50], training).ratio == 0


# Labels, and stacked digits


def test_label_coverage() -> None:
    found = metrics.label_coverage(np.repeat([0, 1, 3], [1, 2, 1]), [1, 2, 4, 1])
    assert found.modes == 3 and found.counts.tolist() == [1, 2, 0, 1]
    assert found.reverse_kl == pytest.approx(math.log(2))
    assert metrics.label_coverage(np.arange(1000), 1000)[:2] == (1000, 0.0)
    assert metrics.label_coverage([4], 10).reverse_kl == pytest.approx(math.log(10))
    assert metrics.label_coverage([0], [0, 1]).reverse_kl == math.inf


def test_the_floor_of_the_reverse_kl() -> None:
    n, classes = 4000, 100
    found = [
        metrics.label_coverage(_random(k).integers(0, classes, n), classes).reverse_kl for k in range(20)
    ]
    assert np.mean(found) == pytest.approx((classes - 1) / (2 * n), rel=0.1)


def test_stacked_digits_spell_their_labels() -> None:
    images = np.arange(10, dtype=np.uint8).repeat(2).reshape(20, 1, 1, 1) * np.ones((1, 4, 4, 1), np.uint8)
    labels = np.arange(10).repeat(2)
    stream = mg.ops.Stream(3, "stacked")
    stack, numbers = mg.data.stacked(images, labels, 5000, stream)
    assert stack.shape == (5000, 4, 4, 3) and stack.dtype == np.uint8
    digits = stack[:, 0, 0].astype(int)
    np.testing.assert_array_equal(numbers, digits @ [100, 10, 1])
    few, of_few = mg.data.stacked(images, labels, 20, stream)
    np.testing.assert_array_equal(few, stack[:20])
    np.testing.assert_array_equal(of_few, numbers[:20])
    # The channels are independent and uniform.
    for pair in (digits[:, :2], digits[:, 1:], digits[:, ::2]):
        counts = np.bincount(mg.data.spelled(pair), minlength=100)
        assert ((counts - 50) ** 2 / 50).sum() < 99 + 4 * math.sqrt(2 * 99)
    other, _ = mg.data.stacked(images, labels, 20, mg.ops.Stream(4, "stacked"), channels=2)
    assert other.shape == (20, 4, 4, 2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: metrics.pca(np.eye(4), dims=4), mg.ConfigError, "4 dimensions of 4 samples of 4 numbers"),
        (lambda: metrics.Space("", np.abs), mg.ConfigError, "needs a name"),
        (lambda: metrics.Space("sum", np.sum)(np.eye(3)), mg.ShapeError, r"features of shape \(\)"),
        (lambda: metrics.pixels(np.zeros(3)), mg.ShapeError, r"\(3,\)"),
        (lambda: metrics.classifier(*blobs(19)), mg.DataError, "19 samples of 4 classes"),
        (lambda: metrics.classifier(blobs(30)[0], np.zeros(30, int)), mg.DataError, "of 1 classes"),
        (lambda: metrics.classifier(blobs(30)[0], np.arange(30) * 2), mg.DataError, "labels up to 58 for 30"),
        (lambda: metrics.classifier(*blobs(30), steps=0), mg.ConfigError, "0 steps"),
        (lambda: metrics.confidence_interval(np.mean, [1, 2, 3]), mg.DataError, r"\(3,\)"),
        (
            lambda: metrics.confidence_interval(np.mean, np.ones(9), resamples=1),
            mg.ConfigError,
            "resamples=1",
        ),
        (lambda: metrics.confidence_interval(np.mean, np.ones(9), level=95), mg.ConfigError, "level=95"),
        (
            lambda: metrics.two_sample_test(np.eye(3), np.eye(3)),
            mg.DataError,
            "3 samples, expected at least 4",
        ),
        (lambda: metrics.two_sample_test(np.eye(6), np.eye(6), k=7), mg.ConfigError, "k=7"),
        (lambda: metrics.two_sample_test(np.eye(5), np.eye(6)), mg.ShapeError, "not of one kind"),
        (lambda: metrics.memorisation([[1.0]], [[1.0]]), mg.DataError, "1 training samples"),
        (lambda: metrics.memorisation([[1.0]], [[1.0], [2.0]], k=2), mg.ConfigError, "k=2"),
        (lambda: metrics.memorisation([[1.0]], [[1.0]] * 3, k=1), mg.DataError, "there twice"),
        (lambda: metrics.memorisation([[1.0, 2.0]], [[1.0]] * 3, k=1), mg.ShapeError, "not of one kind"),
        (lambda: metrics.label_coverage([0, 5], 5), mg.DataError, "label 5 of sample 1"),
        (lambda: metrics.label_coverage([], 5), mg.DataError, "labels"),
        (lambda: metrics.label_coverage([0], [0.0]), mg.ConfigError, "not all 0"),
        (lambda: metrics.label_coverage([0], 0), mg.ConfigError, "weights 0"),
        (lambda: mg.data.spelled([[1, 10]]), mg.DataError, "digits from 1 to 10"),
        (
            lambda: mg.data.stacked(np.zeros((2, 4, 4, 3), np.uint8), [0, 1], 5, mg.ops.Stream(0, "x")),
            mg.DataError,
            r"expected \(H, W, 1\)",
        ),
        (
            lambda: mg.data.stacked(*mg.data.digits(), 0, mg.ops.Stream(0, "x")),
            mg.ConfigError,
            "count is 0",
        ),
        (
            lambda: mg.data.stacked(*mg.data.digits(), 1 << 40, mg.ops.Stream(0, "x")),
            mg.ConfigError,
            "too many",
        ),
    ],
)
def test_errors_have_the_numbers(call, error, words) -> None:
    with pytest.raises(error, match=words):
        call()


# What must not decide


def test_one_sample_that_is_far_away_does_not_decide() -> None:
    points = mg.data.ring().sample(700, mg.ops.Stream(0, "points"))[0].astype(np.float64)
    made, known = points[:200].copy(), points[200:]
    before = metrics.memorisation(made, known).ratio
    neighbours = metrics.precision_recall(known[:200], made)
    likelihood = metrics.parzen_log_likelihood(made, known, 0.1).mean
    for far in (1e5, 1e8):
        made[0] = far
        assert metrics.memorisation(made, known).ratio == pytest.approx(before, rel=0.05)
        found = metrics.precision_recall(known[:200], made)
        np.testing.assert_allclose(found, neighbours, atol=0.06)
        assert metrics.parzen_log_likelihood(made, known, 0.1).mean == pytest.approx(likelihood, abs=0.02)


@pytest.mark.parametrize("scale", [1, 255, 1 / 255])
def test_neighbours_at_equal_distances_are_counted_however_they_are_rounded(scale: float) -> None:
    rng = np.random.default_rng(0)
    x, y = ((rng.random((150, 64)) < 0.5).astype(np.float64) for _ in range(2))

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a[:, None] != b[None]).sum(2)

    def radii(a: np.ndarray) -> np.ndarray:
        return np.sort(distances(a, a) + np.diag([1000] * len(a)), axis=1)[:, 4]

    inside = distances(y, x) <= radii(x)
    recall = (distances(y, x) <= radii(y)[:, None]).any(0).mean()
    expected = (inside.any(1).mean(), recall, inside.sum() / (5 * len(y)), inside.any(0).mean())
    np.testing.assert_allclose(metrics.precision_recall(x * scale, y * scale, 5), expected, rtol=1e-12)


def test_a_classifier_refuses_what_are_no_images(tmp_path: Path) -> None:
    images, labels = mg.data.digits()
    judge = metrics.classifier(images, labels, steps=30, cache=tmp_path)
    for bad in (
        np.full((2, 8, 8, 1), np.nan),
        images[:3] * 2 - 1,
        images[:0],
        (images[:3] * 255).astype(int),
    ):
        with pytest.raises(mg.DataError):
            judge.labels(bad)
    with np.errstate(all="ignore"), pytest.raises(mg.NonFiniteError, match="diverged at a rate of 1e\\+30"):
        metrics.classifier(images, labels, steps=30, lr=1e30, cache=tmp_path)
    again = metrics.classifier(images, labels, steps=np.int64(30), seed=np.int64(0), cache=tmp_path)
    assert again.cached


def test_points_of_bytes_are_what_they_are() -> None:
    np.testing.assert_array_equal(metrics.points(np.array([[255, 0]], np.uint8)), [[255, 0]])


def test_distances_refuse_what_is_not_finite() -> None:
    with pytest.raises(mg.DataError, match="1 values are not finite"):
        metrics.sliced_wasserstein(np.array([[np.nan], [0.0]]), np.zeros((2, 1)))
    assert math.isfinite(metrics.parzen_log_likelihood([[0.0]], [[0.0]], 1e-170).mean)
