"""Reductions of a GPU in one thread for each result: for primitives that have no kernels of their own there."""

import math

from minigan.cuda.launch import Launch, Operand, Result, grid
from minigan.cuda.loops import pointwise
from minigan.cuda.text import PRELUDE, type_of
from minigan.linear import CAST, MEAN, SUM
from minigan.ops.reduce import ALL_FINITE, NORM
from minigan.tape import copy


def _sum(primitive):
    def plan(outs, inputs, axes, keepdims):
        (x,) = inputs
        kept = [a for a in range(len(x.shape)) if a not in axes]
        item = x.dtype.itemsize
        over = [(x.shape[a], x.strides[a] // item) for a in axes]
        along = [(x.shape[a], x.strides[a] // item) for a in kept]
        n, terms = math.prod([size for size, _ in along]), math.prod([size for size, _ in over])
        kind = type_of(x.dtype)
        term = "x[at] * (double)x[at]" if primitive is NORM else "x[at]"
        end = {"norm": "sqrt(total)", "mean": "total / terms"}.get(primitive.name, "total")

        def places(left, axes):
            lines = [f"long long {left} = {left}0;"]
            for size, step in reversed(axes):
                lines.append(f"at += {left} % {size} * {step}ll; {left} /= {size};")
            return " ".join(lines)

        source = PRELUDE + (
            f'extern "C" __global__ void {primitive.name}_simple'
            f"(const {kind}* x, {kind}* y, long long n, long long terms) {{"
            "const long long first = blockIdx.x * blockDim.x + threadIdx.x;"
            "for (long long i0 = first; i0 < n; i0 += gridDim.x * blockDim.x) {"
            "double total = 0; for (long long k0 = 0; k0 < terms; ++k0) { long long at = 0;"
            f"{places('i', along)} {places('k', over)} total += {term}; }} y[i0] = {end}; }} }}"
        )
        return (
            [Launch(f"{primitive.name}_simple", source, grid(n), 256, (Operand(0), Result(0), n, terms))]
            if n
            else []
        )

    return plan


def _all_finite(outs, inputs):
    source = PRELUDE + 'extern "C" __global__ void begin_simple(bool* y) { *y = true; }'
    plan = [Launch("begin_simple", source, 1, 1, (Result(0),))]
    for k, x in enumerate(inputs):
        kind = type_of(x.dtype)
        source = PRELUDE + (
            f'extern "C" __global__ void finite_simple(const {kind}* x, bool* y, long long n) {{'
            " for (long long i = 0; i < n; ++i) if (x[i] - x[i] != 0) *y = false; }"
        )
        plan.append(Launch("finite_simple", source, 1, 1, (Operand(k), Result(0), math.prod(x.shape))))
    return plan


def _cast(outs, inputs, dtype):
    return pointwise(copy.formula, outs, inputs)


def give():
    """Give these to the primitives that have none."""
    for primitive, plan in [(p, _sum(p)) for p in (SUM, MEAN, NORM)] + [
        (ALL_FINITE, _all_finite),
        (CAST, _cast),
    ]:
        if primitive.cuda is None:
            object.__setattr__(primitive, "cuda", plan)
