"""How good samples are: numbers that compare them with data. Those of features say nothing without their name."""

from minigan.metrics.classes import (
    ClassReport as ClassReport,
    ModeReport as ModeReport,
    class_report as class_report,
    mode_report as mode_report,
)
from minigan.metrics.distance import sliced_wasserstein as sliced_wasserstein
from minigan.metrics.gaussian import frechet_distance as frechet_distance
from minigan.metrics.intervals import Interval as Interval, confidence_interval as confidence_interval
from minigan.metrics.kernel import kernel_distance as kernel_distance, vendi_score as vendi_score
from minigan.metrics.learned import Classifier as Classifier, classifier as classifier
from minigan.metrics.likelihood import (
    Likelihood as Likelihood,
    parzen_log_likelihood as parzen_log_likelihood,
    parzen_sigma as parzen_sigma,
)
from minigan.metrics.modes import (
    LabelCoverage as LabelCoverage,
    ModeCoverage as ModeCoverage,
    label_coverage as label_coverage,
    mode_coverage as mode_coverage,
)
from minigan.metrics.nearest import (
    Memorisation as Memorisation,
    TwoSampleTest as TwoSampleTest,
    memorisation as memorisation,
    two_sample_test as two_sample_test,
)
from minigan.metrics.neighbours import Neighbours as Neighbours, precision_recall as precision_recall
from minigan.metrics.spaces import (
    Space as Space,
    as_space as as_space,
    label as label,
    pca as pca,
    pixels as pixels,
    points as points,
)
