"""Data sets as NumPy arrays, and the sampler that draws batches from them by counters."""

from minigan.data.digits import digits as digits
from minigan.data.sampler import Batches as Batches, as_images as as_images
