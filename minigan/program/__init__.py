"""A step of training as a program: captured once, fused, laid out in memory, and replayed without Python per operation.

Read in this order: `capture` (the calls of a step as a list), `fuse` (calls into loops and products), `loops` (the text
of a fused loop), `plan` (what runs when, and where each result lies), `replay` (running it; `minigan.compile`); for a
GPU `grids` (a fused loop as kernels) and `device` (running these as one graph).
"""

from minigan.program.replay import Compiled as Compiled, compile as compile
