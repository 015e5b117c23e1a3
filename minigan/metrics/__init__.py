"""How good samples are: numbers that compare them with data. Those of features say nothing without their name."""

from minigan.metrics.classes import (
    ClassReport as ClassReport,
    ModeReport as ModeReport,
    class_report as class_report,
    mode_report as mode_report,
)
from minigan.metrics.distance import sliced_wasserstein as sliced_wasserstein
from minigan.metrics.gaussian import frechet_distance as frechet_distance
from minigan.metrics.kernel import kernel_distance as kernel_distance, vendi_score as vendi_score
from minigan.metrics.likelihood import (
    Likelihood as Likelihood,
    parzen_log_likelihood as parzen_log_likelihood,
    parzen_sigma as parzen_sigma,
)
from minigan.metrics.modes import ModeCoverage as ModeCoverage, mode_coverage as mode_coverage
from minigan.metrics.neighbours import Neighbours as Neighbours, precision_recall as precision_recall
