"""Kernels of a GPU as text: what a primitive runs there, alone or in a compiled step.

Read in this order: `launch` (what a primitive says of its kernels, and running them), `text` (a scalar formula in CUDA
C), `loops` (loops over strided arrays), `fused` (those of a compiled step), then the kernels of the primitives that are
not pointwise.
"""
