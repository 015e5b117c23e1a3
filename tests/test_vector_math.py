"""The functions of pointwise formulas: both backends against mpmath, and the compiled loops' instructions."""

import math
import platform
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from minigan.kernels import formula

Array = NDArray[Any]

VECTORISED = ["exp", "expm1", "log", "log1p", "tanh", "erf"]
NAMES = [*VECTORISED, "sin", "cos"]
DTYPES = ["float32", "float64"]

# Where the piecewise forms change over: multiples of ln(2) / 2 (exp, expm1, tanh), 0.625 (tanh), 1 (erf),
# powers of two times sqrt(1/2) and one less (log, log1p), and where a result becomes linear, constant,
# subnormal or infinite.
SWITCHES = [
    *(k * math.log(2.0) / 2 for k in range(1, 12)),
    *(2.0**k * math.sqrt(0.5) for k in (-60, -2, -1, 0, 1, 2, 60, 127)),
    *(math.sqrt(0.5) - 1.0, math.sqrt(2.0) - 1.0, math.sqrt(8.0) - 1.0, 2.0**24, 2.0**53),
    *(2.0**-55, 2.0**-26, 0.625, 1.0, 3.93, 5.93, 10.0, 20.0, 40.0),
    *(87.3365448, 88.7228390, 103.2789299, 103.9720764, 708.3964185, 709.7827128, 744.4400719, 745.1332191),
]


@cache
def samples(dtype: str) -> Array:
    """Numbers of every size and both signs, the switch points with their neighbours, and the extremes."""
    info = np.finfo(dtype)
    random = np.random.default_rng(0)
    sizes = np.exp(random.uniform(np.log(float(info.smallest_normal)) - 12.0, np.log(float(info.max)), 300))
    usual = np.exp(random.uniform(-4.0, 4.0, 500))
    near_one = 1.0 + random.choice([-1.0, 1.0], 150) * np.exp(random.uniform(-36.0, 0.0, 150))
    limits = [info.smallest_subnormal, info.smallest_normal, info.eps, info.max]
    points = np.concatenate([np.asarray(SWITCHES), np.asarray(limits, np.float64)]).astype(dtype)
    zero, infinity = np.zeros_like(points), np.full_like(points, np.inf)
    with np.errstate(over="ignore"):
        neighbours = [np.nextafter(points, zero), np.nextafter(points, infinity)]
    positive = np.concatenate([np.concatenate([sizes, usual, near_one]).astype(dtype), points, *neighbours])
    positive = positive[np.isfinite(positive)]
    return np.concatenate([positive, -positive])


def reference(name: str, x: Array) -> tuple[Array, Array]:
    """mpmath's values as a float64 and the rest, NaN where the function is not real."""
    high, low = np.empty(x.size), np.empty(x.size)
    with mpmath.workprec(120):
        function = getattr(mpmath, name)
        for i, argument in enumerate(x.tolist()):
            pole = {"log": 0.0, "log1p": -1.0}.get(name, -math.inf)
            if argument <= pole:
                high[i], low[i] = (-math.inf if argument == pole else math.nan), 0.0
                continue
            value = function(mpmath.mpf(argument))
            high[i] = float(value)
            low[i] = float(value - mpmath.mpf(high[i])) if math.isfinite(high[i]) else 0.0
    return high, low


@cache
def sample_reference(name: str, dtype: str) -> tuple[Array, Array]:
    return reference(name, samples(dtype))


def ulps(result: Array, exact: tuple[Array, Array]) -> Array:
    """How far `result` is from `exact`, in units of the last place that the exact value has in its dtype."""
    high, low = exact
    with np.errstate(all="ignore"):
        rounded = high.astype(result.dtype)
        # An ulp of the magnitude rounded towards zero: of 1 - tiny, that is, not of 1.
        magnitude = np.abs(rounded)
        lower = (magnitude > np.abs(high)) | ((magnitude == np.abs(high)) & (low * np.sign(high) < 0))
        magnitude = np.where(lower, np.nextafter(magnitude, np.zeros_like(magnitude)), magnitude)
        error = np.abs((result.astype(np.float64) - high) - low) / np.spacing(magnitude).astype(np.float64)
    same = (result == rounded) | (np.isnan(result) & np.isnan(rounded))
    return np.where(same & ~np.isfinite(rounded), 0.0, np.where(np.isnan(error), np.inf, error))


@cache
def compiled(name: str, dtype: str) -> Callable[[Array, Array], None]:
    """A loop over one of the compiled functions."""
    numba = pytest.importorskip("numba", reason="the compiled functions need Numba")
    from minigan.kernels import vector

    function = getattr(vector, f"{name}_{dtype}")

    def loop(x: Array, out: Array) -> None:
        for i in range(x.size):
            out[i] = function(x[i])

    result: Callable[[Array, Array], None] = numba.njit(error_model="numpy")(loop)
    result(np.ones(1, dtype), np.ones(1, dtype))
    return result


def evaluate(backend: str, name: str, x: Array) -> Array:
    if backend == "numpy":
        with np.errstate(all="ignore"):
            result = getattr(formula, name)(x)
        assert result.dtype == x.dtype
        return np.asarray(result)
    out = np.empty_like(x)
    compiled(name, x.dtype.name)(x, out)
    return out


def tolerance(backend: str, name: str) -> float:
    # NumPy's own loops promise 4 ulp; erf is ours.
    return 4.0 if backend == "numpy" and name != "erf" else 2.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_accuracy(backend: str, name: str, dtype: str) -> None:
    x = samples(dtype)
    error = ulps(evaluate(backend, name, x), sample_reference(name, dtype))
    worst = int(np.argmax(error))
    assert error[worst] <= tolerance(backend, name), f"{error[worst]:.2f} ulp at {x[worst]!r}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VECTORISED)
def test_accuracy_anywhere(name: str, dtype: str) -> None:
    compiled(name, dtype)

    @settings(max_examples=40, deadline=None, database=None)
    @given(st.lists(st.floats(width=32 if dtype == "float32" else 64, allow_infinity=False), min_size=1))
    def check(values: list[float]) -> None:
        x = np.asarray(values, dtype)
        assert ulps(evaluate("numba", name, x), reference(name, x)).max() <= 2.0

    check()


TINY = 2.0**-140  # subnormal in float32
INF, NAN = math.inf, math.nan
# Pairs of an argument and the result.
SPECIAL_VALUES = {
    "exp": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (1e4, INF), (-1e4, 0.0), (TINY, 1.0)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -1.0), (1e4, INF), (-1e4, -1.0), (-TINY, -TINY)],
    "log": [(0.0, -INF), (-0.0, -INF), (1.0, 0.0), (INF, INF), (-INF, NAN), (-1.0, NAN), (-TINY, NAN)],
    "log1p": [(0.0, 0.0), (-0.0, -0.0), (-1.0, -INF), (-1.5, NAN), (-INF, NAN), (INF, INF), (TINY, TINY)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (1e30, 1.0), (-1e30, -1.0), (TINY, TINY)],
    "erf": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (1e30, 1.0), (-1e30, -1.0)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN), (TINY, TINY)],
    "cos": [(0.0, 1.0), (-0.0, 1.0), (INF, NAN), (-INF, NAN), (TINY, 1.0)],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_special_values(backend: str, name: str, dtype: str) -> None:
    pairs = [*SPECIAL_VALUES[name], (NAN, NAN)]
    # Repeated, so that each value is met in the vector body of the loop too.
    x, y = np.tile(np.asarray(pairs, dtype), (40, 1)).T.copy()
    result = evaluate(backend, name, x)
    np.testing.assert_array_equal(result, y)
    known = ~np.isnan(y)
    np.testing.assert_array_equal(np.signbit(result[known]), np.signbit(y[known]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VECTORISED)
def test_bits_do_not_depend_on_the_position(name: str, dtype: str) -> None:
    x = np.abs(samples(dtype))[:1000]
    whole = evaluate("numba", name, x)
    for length in range(1, 68):
        for start in (0, 1, 3, 7 * length):
            part = evaluate("numba", name, x[start : start + length])
            np.testing.assert_array_equal(part, whole[start : start + length])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VECTORISED)
def test_loops_are_vectorised(name: str, dtype: str) -> None:
    patterns = {
        "x86_64": r"\bv?(fmadd\d*|mul)p[sd]\b",
        "amd64": r"\bv?(fmadd\d*|mul)p[sd]\b",
        "aarch64": r"\bfml[as](\.[24][sd]\b|\s+[vz]\d+\.)",
        "arm64": r"\bfml[as](\.[24][sd]\b|\s+[vz]\d+\.)",
    }
    machine = platform.machine().lower()
    if machine not in patterns:
        pytest.skip(f"no pattern for the packed instructions of {machine}")
    loop: Any = compiled(name, dtype)
    (assembly,) = loop.inspect_asm().values()
    assert re.search(patterns[machine], assembly), "no packed multiplication in the loop"


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_functions_agree_with_numpy(dtype: str) -> None:
    numba = pytest.importorskip("numba", reason="the compiled functions need Numba")
    from minigan.kernels import vector

    names = ["sqrt", "absolute", "sign", "floor", "isnan", "maximum", "minimum", "where", "power"]
    sqrt, absolute, sign, floor, isnan, maximum, minimum, where, power = (
        getattr(vector, f"{name}_{dtype}") for name in names
    )

    jit: Callable[..., Any] = numba.njit(error_model="numpy")

    @jit
    def loop(x: Array, y: Array, out: Array) -> None:
        for i in range(x.size):
            out[0, i] = sqrt(x[i])
            out[1, i] = absolute(x[i])
            out[2, i] = sign(x[i])
            out[3, i] = floor(x[i])
            out[4, i] = isnan(x[i])
            out[5, i] = maximum(x[i], y[i])
            out[6, i] = minimum(x[i], y[i])
            out[7, i] = where(x[i] > y[i], x[i], 0.5)
            out[8, i] = power(x[i], y[i])

    values = [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0, 7.25, TINY, 1e30, math.inf, -math.inf, math.nan]
    x, y = (part.ravel() for part in np.meshgrid(np.asarray(values, dtype), np.asarray(values, dtype)))
    out = np.empty((len(names), x.size), dtype)
    loop(x, y, out)
    for name, result in zip(names, out, strict=True):
        if name == "where":
            arguments: tuple[Array, ...] = (x > y, x, np.asarray(0.5, dtype))
        else:
            arguments = (x, y) if name in ("maximum", "minimum", "power") else (x,)
        with np.errstate(all="ignore"):
            expected = getattr(formula, name)(*arguments).astype(dtype)
        if name == "power":
            np.testing.assert_allclose(result, expected, rtol=4 * float(np.finfo(dtype).eps))
        else:
            np.testing.assert_array_equal(result, expected, err_msg=name)
        if name not in ("maximum", "minimum"):  # of two zeros either may be taken
            known = ~np.isnan(expected)
            assert np.array_equal(np.signbit(result[known]), np.signbit(expected[known])), name


def test_float32_stays_float32_beside_python_floats() -> None:
    numba = pytest.importorskip("numba", reason="the compiled functions need Numba")
    from minigan.kernels import vector

    tanh, maximum, where = vector.tanh_float32, vector.maximum_float32, vector.where_float32

    jit: Callable[..., Any] = numba.njit

    @jit
    def mixed(x: Any) -> Any:
        return where(x > 0.0, maximum(x, 0.1), tanh(0.5))

    mixed(np.float32(1.0))
    assert mixed.nopython_signatures[0].return_type == numba.float32
