"""Kernels: formulas as generated loops, compiled with Numba and kept on disk. The only importer of Numba."""
