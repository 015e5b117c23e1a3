"""Class by class: how often it is drawn, and how well; what a mean over all samples hides of the rare ones.

Two things are called recall of a class. Here the *share ratio* is the share of the samples that belong to a class,
divided by its share of the data; *recall* is that of Kynkäänniemi et al. 2019, the part of the data of a class that
lies among its samples. A class may have its share, 1, in samples that are no good, and then the recall is 0.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minigan.backend import Array
from minigan.data.mixtures import Mixture
from minigan.data.sampler import as_labels
from minigan.errors import ConfigError, ShapeError
from minigan.metrics.modes import nearest_modes
from minigan.metrics.neighbours import precision_recall
from minigan.metrics.samples import as_rows


class ClassReport(NamedTuple):
    """What `class_report` gives: for each class that occurs, by rising label, an element of each array.

    Attributes:
        labels: of the classes, int64 (K,); all others are float64 (K,).
        data_share, sample_share: the part of the data, and of the samples, that is of the class.
        share_ratio: the second divided by the first; infinite for a class that the data does not have.
        precision, recall, coverage: among the data and the samples of the class; NaN where one of them has no more
            than k.
    """

    labels: Array
    data_share: Array
    sample_share: Array
    share_ratio: Array
    precision: Array
    recall: Array
    coverage: Array

    def __str__(self) -> str:
        names = ("class", "data", "samples", "ratio", "precision", "recall", "coverage")
        return _table(names, self.labels.tolist(), self[1:])


class ModeReport(NamedTuple):
    """What `mode_report` gives: for each mode of a mixture an element of each array, float64 (K,).

    Attributes:
        weights: the mixture's.
        sample_share: the part of the samples that is nearest to the mode.
        share_ratio: that, divided by the weight.
        high_quality: the part of these samples that is of high quality; NaN where there are none.
        high_quality_ratio: as `share_ratio`, of the samples of high quality alone; NaN if there are none at all.
    """

    weights: Array
    sample_share: Array
    share_ratio: Array
    high_quality: Array
    high_quality_ratio: Array

    @property
    def total_variation(self) -> float:
        """½ Σ |p - w|, of the shares p and the weights w: the mass that is at a wrong mode."""
        return float(abs(self.sample_share - self.weights).sum() / 2)

    def __str__(self) -> str:
        names = ("mode", "weight", "samples", "ratio", "HQ", "ratio of HQ")
        return _table(names, range(len(self.weights)), self)


def class_report(
    real: Any,
    real_labels: Any,
    generated: Any,
    generated_labels: Any,
    k: int = 5,
    features: Callable[[Any], Any] | None = None,
) -> ClassReport:
    """How often each class is drawn, and precision, recall and coverage within it (see `precision_recall`).

    These three depend on the numbers of samples, and so differ between a frequent class and a rare one even if both
    are learnt equally well: compare the same class, with as many samples, in two runs.

    Args:
        real, generated: (N, ...) and (M, ...), in whatever form `features` and a function for labels take.
        real_labels: integers (N,) from 0.
        generated_labels: integers (M,): of a conditional generator those that were asked for; or a function that gives
            them from `generated`, such as a classifier.
        k: as for `precision_recall`.
        features: from samples to features (N, d), in which neighbours are found; by default the samples themselves.

    Raises: `ShapeError`, `DTypeError`, `DataError`, `ConfigError` for other arguments.

    >>> real, labels = [[0.0], [1.0], [2.0], [9.0]], [0, 0, 0, 1]
    >>> print(class_report(real, labels, [[0.5], [0.6], [9.0], [9.5]], lambda x: [int(p > 5) for (p,) in x], k=1))
    class   data  samples  ratio  precision  recall  coverage
        0  0.750    0.500  0.667      1.000   0.000     0.667
        1  0.250    0.500  2.000          -       -         -
    """
    theirs = as_labels(real_labels, len(real))
    named = generated_labels(generated) if callable(generated_labels) else generated_labels
    ours = as_labels(named, len(generated))
    x, y = (np.asarray(features(each) if features else each) for each in (real, generated))
    if len(x) != len(theirs) or len(y) != len(ours):
        raise ShapeError(
            f"class_report: features of {len(x)} and {len(y)} of {len(theirs)} and {len(ours)} samples"
        )
    as_rows("class_report", x, y)  # classes too small to be looked at are looked over too
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ConfigError(f"class_report: k={k!r}, expected an integer from 1")
    labels = np.union1d(theirs, ours)
    shares = [np.array([(each == c).mean() for c in labels]) for each in (theirs, ours)]
    precision, recall, coverage = np.full((3, len(labels)), math.nan)
    for i, c in enumerate(labels):
        a, b = x[theirs == c], y[ours == c]
        if min(len(a), len(b)) > k:
            precision[i], recall[i], _, coverage[i] = precision_recall(a, b, k)
    ratio = _ratio(shares[1], shares[0])
    return ClassReport(labels, shares[0], shares[1], ratio, precision, recall, coverage)


def mode_report(points: Any, mixture: Mixture, sigmas: float = 3.0) -> ModeReport:
    """How often each mode of a mixture is drawn, and how well: every sample belongs to the mode whose mean is nearest.

    A sample of high quality lies within so many standard deviations of that mean, as for `mode_coverage`, which has
    the numbers over all modes.

    Args:
        points: (N, P), as the mixture's.
        sigmas: how far from a mean a point of high quality may lie, in standard deviations.

    Raises: `ShapeError`, `DTypeError`, `DataError` for other points, `ConfigError` for other sigmas.

    >>> import minigan as mg
    >>> two = mg.data.Mixture([[0.0, 0.0], [4.0, 0.0]], std=0.1, weights=[0.8, 0.2])
    >>> print(mode_report([[0.0, 0.1], [0.1, 0.1], [4.0, 0.0], [3.0, 0.0]], two))
    mode  weight  samples  ratio     HQ  ratio of HQ
       0   0.800    0.500  0.625  1.000        0.833
       1   0.200    0.500  2.500  0.500        1.667
    """
    nearest, good = nearest_modes("mode_report", points, mixture, sigmas)
    weights, shares = mixture.weights, nearest / nearest.sum()
    of_good = _ratio(_ratio(good, good.sum()), weights)
    return ModeReport(weights, shares, _ratio(shares, weights), _ratio(good, nearest), of_good)


def _ratio(found: Array, wanted: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):  # such as of a class that the data does not have
        ratio: Array = np.divide(found, wanted)
    return ratio


def _table(names: Sequence[str], rows: Iterable[int], columns: Iterable[Array]) -> str:
    """Columns of numbers under their names; what is not known is a dash."""
    cells = [list(names)]
    for row, *values in zip(rows, *columns, strict=True):
        cells.append([str(row), *("-" if math.isnan(value) else f"{value:.3f}" for value in values)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells
    )
