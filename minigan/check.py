"""Are the derivatives and the kernels right? Checks by differences, by the adjoint identity, and against references.

The tests run them over every primitive; `check_grad` is as much for a user's own functions. All of them raise
`AssertionError` with the worst entry.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from minigan.backend import FLOATS, Array
from minigan.errors import ConfigError
from minigan.tape import Primitive, apply, grad, no_grad
from minigan.tensor import Tensor, tensor

Function = Callable[..., Any]

# A 5-point difference has the error h^4 f⁗′/30 + 1.5 eps |f|/h. The two balance near h = eps^(1/5) = 7e-4; the power of
# two below it is taken because the fifth derivatives of x^-n, log and their like are the larger of the two, and because
# a power of two is itself exact.
STEP = 2.0**-11
LIMITS = (1e-9, 1e-7, 1e-7)  # at order 1, at order 2, above


def check_grad(
    f: Function, *arrays: Any, order: int = 2, tolerance: float | None = None, seed: int = 0
) -> tuple[float, ...]:
    """Compare the derivatives of a function of your own with differences, in float64.

    Order 1 compares Σ_k <v_k, ∂y_k/∂x_i>, as `minigan.grad` gives it for the outputs y_k of `f` and random cotangents
    v_k, with the 5-point central difference (8 (y(x+h) - y(x-h)) - (y(x+2h) - y(x-2h))) / 12h of every entry of every
    input (Abramowitz and Stegun, table 25.2). Order 2 takes that gradient as a function of the inputs *and* the
    cotangents and compares its derivatives in the same way; order 3 the gradient of the gradient, and so on.

    Args:
        f: a function of tensors that returns a tensor or a sequence of them; the same value for the same arguments
            (noise must be drawn outside) and smooth within 0.002 of the arguments, relative to those above 1.
        arrays: the arguments. Floats are taken as float64 and are differentiated; integers and booleans are passed on.
        order: the highest order to check, 1 or more. An order costs some four times as much as the one before.
        tolerance: the error allowed in an entry, relative to max(1, the largest derivative of that order); by default
            1e-9 at order 1 and 1e-7 above.
        seed: of the cotangents.

    Returns: the largest error of each order, relative as above.

    Raises: `AssertionError` with the order, the input, the index, the two values and the error of the worst entry;
        `ConfigError` for an order below 1.

    >>> import minigan as mg, numpy as np
    >>> def softmax_of_product(x, w):
    ...     e = mg.ops.exp(x @ w)
    ...     return e / e.sum(axis=1, keepdims=True)
    >>> errors = mg.check_grad(softmax_of_product, np.ones((2, 3)), np.linspace(-1, 1, 6).reshape(3, 2))
    >>> max(errors) < 1e-9
    True
    """
    if order < 1:
        raise ConfigError(f"check_grad: order {order}: expected 1 or more")
    random = np.random.default_rng(seed)
    values = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in map(np.asarray, arrays)]
    names = [f"input {i}" for i in range(len(values))]
    errors: list[float] = []
    for n in range(1, order + 1):
        limit = LIMITS[min(n, len(LIMITS)) - 1] if tolerance is None else tolerance
        cotangents = [np.asarray(random.uniform(-1, 1, y.shape)) for y in _call(f, values)]
        errors.append(
            _compare_derivatives(f, values, cotangents, [f"order {n}, {name}" for name in names], limit)
        )
        f, values = _gradient(f, len(values)), values + cotangents
        names += [f"cotangent {k} of order {n}" for k in range(len(cotangents))]
    return tuple(errors)


def check_adjoint(
    f: Function, *arrays: Array, linear: Sequence[int] = (0,), tolerance: float = 1e-12, seed: int = 0
) -> None:
    """Check that `f` is linear in each of the arguments numbered `linear`, and its rule that map's adjoint.

    With A x for `f` as a function of one of them: A (x + x') = A x + A x' and <A x, y> = <x, A* y> for random x' and y,
    where A* y is the gradient of <A x, y>. Errors are relative to the sums of the absolute values of the terms.
    """
    random = np.random.default_rng(seed)
    for i in linear:
        xs = [tensor(a) for a in arrays]
        second = np.asarray(random.standard_normal(arrays[i].shape), arrays[i].dtype)
        moved, other = list(xs), list(xs)
        moved[i], other[i] = tensor(arrays[i] + second), tensor(second)
        out, of_sum, of_other = f(*xs), f(*moved).numpy(), f(*other).numpy()
        parts = np.abs(out.numpy()) + np.abs(of_other)
        largest = max(1.0, _largest([parts]))
        _require(f"linear in input {i}", of_sum, out.numpy() + of_other, tolerance * largest)
        y = tensor(np.asarray(random.standard_normal(out.shape), out.dtype))
        (pulled,) = grad(out, xs[i], y)
        left, right = out.numpy() * y.numpy(), arrays[i] * pulled.numpy()
        scale = max(1.0, float(np.abs(left).sum() + np.abs(right).sum()))
        _require(f"<A x, y> = <x, A* y> for input {i}", left.sum(), right.sum(), tolerance * scale)


def check_kernel(primitive: Primitive, *arrays: Array, strict: bool = False, **attributes: Any) -> None:
    """Compare a primitive's kernel with its formula evaluated by NumPy and with its reference, where it has them.

    Against NumPy the result may differ by 2 ulp for every operation of the formula, and must be NaN and infinite in the
    same places. The ulp is that of the result or of the formula on absolute values if that is larger, as a formula may
    cancel. Against the reference, value and gradient may differ by 64 roundings of the largest. `strict` is for special
    values: the ulp is that of the result, and gradients are not compared, as the reference's may be NaN there.
    """
    with no_grad():
        found = [y.numpy() for y in _outputs(apply(primitive, *map(tensor, arrays), **attributes))]
    formula = primitive.formula
    if formula is not None and not found:  # masks
        with no_grad():
            mask = apply(primitive, *map(tensor, arrays), **attributes).numpy()
        same = np.empty_like(mask)
        formula.numpy([same], *arrays, **attributes)
        _require(f"{primitive.name}: against NumPy", mask.astype(np.float32), same.astype(np.float32), 0.0)
    elif formula is not None:
        expected, terms = ([np.empty(y.shape, y.dtype) for y in found] for _ in range(2))
        # A subnormal intermediate has lost digits, and an input may multiply what it lost.
        least = _largest(arrays)
        formula.numpy(expected, *arrays, **attributes)
        formula.numpy(terms, *(np.abs(a) for a in arrays), **attributes)
        for k, (y, wanted, term) in enumerate(zip(found, expected, terms, strict=True)):
            scale = np.abs(wanted) if strict else np.fmax(np.abs(wanted), np.abs(term))
            with np.errstate(
                invalid="ignore"
            ):  # the spacing at infinity is NaN, and nothing is compared there
                spacing = np.spacing(scale) + least * y.dtype.type(np.finfo(y.dtype).smallest_subnormal)
            allowed = 2.0 * max(formula.operations, 1) * spacing
            _require(f"{primitive.name}: output {k} against NumPy", y, wanted, allowed)
    if primitive.reference is not None:
        _compare_with_reference(primitive, primitive.reference, arrays, attributes, with_gradients=not strict)


def _compare_with_reference(
    primitive: Primitive,
    reference: Function,
    arrays: Sequence[Array],
    attributes: dict[str, Any],
    with_gradients: bool,
) -> None:
    results = []
    for f in (partial(apply, primitive), reference):
        xs = [tensor(a) for a in arrays]
        outs = _outputs(f(*xs, **attributes))
        floats = [x for x in xs if x.dtype in FLOATS and with_gradients]
        seeds = [tensor(np.cos(np.arange(y.size)).reshape(y.shape).astype(y.dtype)) for y in outs]
        results.append([y.numpy() for y in [*outs, *grad(outs, floats, seeds)]])
    for k, (y, wanted) in enumerate(zip(*results, strict=True)):
        limit = 64 * float(np.finfo(wanted.dtype).eps) * max(1.0, _largest([wanted]))
        _require(f"{primitive.name}: result {k} against the reference", y, wanted, limit)


def _outputs(results: Any) -> list[Tensor]:
    """The float tensors among a function's results."""
    listed = results if isinstance(results, (list, tuple)) else [results]
    return [y for y in listed if not isinstance(y, Tensor) or y.dtype in FLOATS]


def _call(f: Function, values: Sequence[Array]) -> list[Array]:
    return [y.numpy() for y in _outputs(f(*map(tensor, values)))]


def _gradient(f: Function, count: int) -> Function:
    """The gradient of `f` as a function of its `count` inputs and the cotangents of its outputs."""

    def gradient(*inputs: Tensor) -> list[Tensor]:
        xs = inputs[:count]
        floats = [x for x in xs if x.dtype in FLOATS]
        return grad(_outputs(f(*xs)), floats, inputs[count:], create_graph=True)

    return gradient


def _compare_derivatives(
    f: Function, values: list[Array], cotangents: list[Array], names: list[str], limit: float
) -> float:
    positions = [i for i, x in enumerate(values) if x.dtype in FLOATS]
    gradient = _gradient(f, len(values))
    found = _call(gradient, [*values, *cotangents])
    expected = [_difference(f, values, cotangents, i) for i in positions]
    scale = max(1.0, _largest(expected))
    worst = 0.0
    for i, analytic, numeric in zip(positions, found, expected, strict=True):
        what = f"{names[i]}: the gradient against differences"
        worst = max(worst, _require(what, analytic, numeric, limit * scale) / scale)
    return worst


def _difference(f: Function, values: list[Array], cotangents: list[Array], i: int) -> Array:
    """Σ_k <v_k, ∂y_k/∂x_i> by 5-point differences."""
    result = np.zeros(values[i].shape)
    for at in np.ndindex(values[i].shape):
        h = STEP * max(1.0, abs(float(values[i][at])))
        y = {}
        for k in (-2, -1, 1, 2):
            moved = values[i].copy()
            moved[at] += k * h
            y[k] = _call(f, [*values[:i], moved, *values[i + 1 :]])
        for n, v in enumerate(cotangents):  # differences before the product: they cancel what does not change
            slope = (8 * (y[1][n] - y[-1][n]) - (y[2][n] - y[-2][n])) / (12 * h)
            result[at] += np.sum(v * slope)
    return result


def _largest(arrays: Sequence[Array]) -> float:
    return max((float(np.abs(a[np.isfinite(a)]).max(initial=0.0)) for a in arrays), default=0.0)


def _require(what: str, found: Any, expected: Any, allowed: Any) -> float:
    """The largest error; `AssertionError` names the entry that exceeds what is allowed by most."""
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise AssertionError(
            f"{what}: {found.shape} {found.dtype}, expected {expected.shape} {expected.dtype}"
        )
    if not found.size:
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(np.subtract(found, expected, dtype=np.float64))
        same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    error = np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))
    excess = np.where(error > 0, error / np.fmax(allowed, np.finfo(np.float64).tiny), 0.0)
    at = np.unravel_index(int(np.argmax(excess)), error.shape)
    if excess[at] > 1:
        raise AssertionError(
            f"{what}: at index {tuple(map(int, at))}: {found[at]!r}, expected {expected[at]!r}: error {error[at]:.3g},"
            f" allowed {np.broadcast_to(allowed, error.shape)[at]:.3g}"
        )
    return float(error.max())
