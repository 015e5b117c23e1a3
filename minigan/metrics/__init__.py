"""How good samples are: numbers that compare them with data."""

from minigan.metrics.distance import sliced_wasserstein as sliced_wasserstein
