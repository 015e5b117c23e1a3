"""Data sets as NumPy arrays, and the sampler that draws batches from them by counters."""

from minigan.data.digits import digits as digits
from minigan.data.fetch import fetch as fetch
from minigan.data.mixtures import Mixture as Mixture, grid as grid, ring as ring, swiss_roll as swiss_roll
from minigan.data.sampler import Batches as Batches, as_images as as_images, as_points as as_points
from minigan.data.sets import SETS as SETS, DataSet as DataSet, find as find, read as read
from minigan.data.stacked import spelled as spelled, stacked as stacked
from minigan.data.tails import long_tail as long_tail, long_tailed as long_tailed
