"""Reports by class and by mode: shares against counting, the rest against the measures over all."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import minigan as mg
from minigan.errors import ConfigError, DataError, ShapeError
from minigan.metrics import class_report, mode_coverage, mode_report, precision_recall
from minigan.ops.random import Stream

RANDOM = np.random.default_rng(0)
REAL, GENERATED = RANDOM.normal(size=(60, 3)), RANDOM.normal(size=(50, 3))
THEIRS, OURS = np.arange(60) % 4 % 3 + 1, np.arange(50) % 5 % 3 + 1


def test_one_class_is_the_measure_over_all() -> None:
    found = class_report(REAL, np.zeros(60, int), GENERATED, np.zeros(50, int), k=3)
    whole = precision_recall(REAL, GENERATED, k=3)
    assert [x.item() for x in found] == [0, 1, 1, 1, whole.precision, whole.recall, whole.coverage]


def test_classes_are_looked_at_by_themselves() -> None:
    found = class_report(REAL, THEIRS, GENERATED, OURS, k=3)
    assert found.labels.tolist() == [1, 2, 3]
    np.testing.assert_allclose(found.data_share, [0.5, 0.25, 0.25])
    np.testing.assert_allclose(found.sample_share, [0.4, 0.4, 0.2])
    np.testing.assert_allclose(found.share_ratio, [0.8, 1.6, 0.8])
    for i, c in enumerate(found.labels):
        whole = precision_recall(REAL[np.equal(THEIRS, c)], GENERATED[np.equal(OURS, c)], k=3)
        assert (found.precision[i], found.recall[i], found.coverage[i]) == (
            whole.precision,
            whole.recall,
            whole.coverage,
        )


def test_a_share_that_is_right_may_be_of_samples_that_are_not() -> None:
    """The two kinds of recall: samples all at the class's mean have its share, and recall none of it."""
    real = np.concatenate([REAL, REAL + 100])
    labels = np.repeat([0, 1], 60)
    generated = np.concatenate([REAL + 0.01, np.full((60, 3), 100.0) + 0.001 * REAL])
    found = class_report(real, labels, generated, lambda x: (x[:, 0] > 50).astype(int))
    assert found.share_ratio.tolist() == [1, 1]
    assert found.recall[0] > 0.9 and found.recall[1] < 0.1


def test_labels_and_features_may_be_functions() -> None:
    found = class_report(REAL, THEIRS, GENERATED, lambda x: OURS[: len(x)], features=lambda x: x[:, :1] * 2)
    other = class_report(REAL[:, :1], THEIRS, GENERATED[:, :1], OURS)
    for a, b in zip(found, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_classes_that_are_missing_or_too_small_have_no_recall() -> None:
    labels = np.where(np.arange(60) < 4, 5, 0)
    found = class_report(REAL, labels, GENERATED, np.where(np.arange(50) < 25, 0, 9), k=4)
    assert found.labels.tolist() == [0, 5, 9]
    np.testing.assert_allclose(found.share_ratio, [0.5 / (56 / 60), 0, np.inf])
    assert np.isnan(found.recall).tolist() == [False, True, True]
    lines = str(found).splitlines()
    assert lines[0].split() == ["class", "data", "samples", "ratio", "precision", "recall", "coverage"]
    assert lines[3].split() == ["9", "0.000", "0.500", "inf", "-", "-", "-"]
    assert len({len(line) for line in lines}) == 1


def test_other_arguments_are_refused() -> None:
    with pytest.raises(DataError, match=r"expected integers, \(60,\)"):
        class_report(REAL, THEIRS[:-1], GENERATED, OURS)
    with pytest.raises(DataError, match=r"expected integers, \(50,\)"):
        class_report(REAL, THEIRS, GENERATED, lambda x: np.zeros(len(x)))
    with pytest.raises(ConfigError, match="k=0, expected an integer from 1"):
        class_report(REAL, THEIRS, GENERATED, OURS, k=0)
    with pytest.raises(ShapeError, match="not of one kind"):
        class_report(REAL, THEIRS, GENERATED[:, :2], OURS)
    with pytest.raises(ShapeError, match="features of 30 and 25 of 60 and 50 samples"):
        class_report(REAL, THEIRS, GENERATED, OURS, features=lambda x: x[::2])
    with pytest.raises(DataError, match="1 values are not finite"), np.errstate(divide="ignore"):
        class_report(REAL / np.not_equal(REAL, REAL[0, 0]), THEIRS, GENERATED, OURS, k=40)
    with pytest.raises(ConfigError, match="mode_report: sigmas=0"):
        mode_report([[0.0, 0.0]], mg.data.ring(), sigmas=0)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_modes_add_up_to_the_measures_over_all(seed: int) -> None:
    mixture = mg.data.ring(std=0.1, weights=mg.data.long_tail(8, 10))
    points = mixture.sample(500, Stream(seed, "modes"))[0] * 1.1
    found, whole = mode_report(points, mixture), mode_coverage(points, mixture)
    counts = found.sample_share * 500
    assert counts.sum() == pytest.approx(500)
    good = np.nan_to_num(found.high_quality) * counts
    np.testing.assert_allclose(good, whole.counts, atol=1e-9)
    np.testing.assert_allclose(found.high_quality_ratio, whole.counts / whole.counts.sum() / mixture.weights)
    assert found.total_variation == pytest.approx(abs(counts / 500 - mixture.weights).sum() / 2)


def test_the_mixture_s_own_points_have_ratio_one() -> None:
    mixture = mg.data.ring(weights=mg.data.long_tail(8, 100))
    found = mode_report(mixture.sample(100_000, Stream(0, "modes"))[0], mixture)
    np.testing.assert_allclose(found.share_ratio, 1, atol=5 / np.sqrt(100_000 * 0.00485))
    np.testing.assert_allclose(found.high_quality, 1 - np.exp(-4.5), atol=0.03)
    assert found.total_variation < 0.01


def test_modes_without_samples_of_high_quality() -> None:
    found = mode_report([[0.9, 0.0]], mg.data.ring())
    assert found.share_ratio.tolist() == [8] + [0] * 7
    assert found.high_quality[0] == 0 and np.isnan(found.high_quality[1:]).all()
    assert np.isnan(found.high_quality_ratio).all()
    assert str(found).splitlines()[2].split() == ["1", "0.125", "0.000", "0.000", "-", "-"]
