"""The names of `minigan.kernels.formula` as scalar functions for loops that Numba compiles.

One function for each name and dtype, called `NAME_DTYPE`: a generated kernel in float32 begins with
`from minigan.kernels.vector import exp_float32 as exp`. Numba's own exp, log and tanh are calls into libm,
one element at a time (3.8 ns each); the ones here are branch-free polynomials, which LLVM turns into vector
instructions wherever they stand in a plain `for i in range(n)`.

All are within 2 ulp over the whole range, subnormal numbers included, and keep NaN, infinities and the sign
of zero as NumPy does. No fast-math flag is set and each fused multiply-add is asked for by name, so an
element has the same bits in the vector body of a loop and in its scalar tail. Arguments are converted to the
dtype in the name, so a Python float among them does not turn a float32 formula into float64.

The polynomials are minimax fits to the error of the result (Remez exchange in 50 digits), rounded to the
dtype. The multiply-adds need a CPU that has them (x86 since 2013, every 64-bit ARM); an older one gets calls.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import extending, types

from minigan.kernels.formula import ERF_ONE, ERF_SMALL, ERFC_LOG

# Numba's stubs leave these two without types.
typeof: Callable[..., Any] = numba.typeof
tuple_type: Callable[..., Any] = types.UniTuple

# What Numba passes around inside a compiled function: a number of either dtype, or its type while typing.
Scalar = Any

# Inlining is what lets LLVM see one loop body without calls; the default threshold would leave the longer
# functions as calls, and a loop with a call in it is not vectorised.
_jit: Callable[..., Any] = numba.njit(forceinline=True, error_model="numpy")

# For the parts of these functions. Inlined before Numba infers types, they cost no compilation of their own:
# a first use of exp in a loop takes 0.2 s (of which 0.09 s for any loop), with calls between the parts 0.3 s.
_inline: Callable[..., Any] = numba.njit(inline="always", error_model="numpy")


class Constants(NamedTuple):
    """The numbers that the functions below need in one dtype."""

    zero: Scalar
    half: Scalar
    one: Scalar
    two: Scalar
    infinity: Scalar
    nan: Scalar
    shift: Scalar  # 1.5 * 2^p + bias: see `power_of_two`
    log2_e: Scalar
    ln2_high: Scalar
    ln2_low: Scalar  # ln 2 less ln2_high
    exp_coefficients: Scalar
    exp_lowest: Scalar  # exp is 0 below, and infinite above exp_highest
    exp_highest: Scalar
    expm1_lowest: Scalar  # expm1 is -1 below
    linear: Scalar  # expm1(x) and log1p(x) are x where |x| is below
    log_coefficients: Scalar
    smallest_normal: Scalar
    subnormal_scale: Scalar  # 2^subnormal_exponent
    subnormal_exponent: Scalar
    log1p_exponent: Scalar
    tanh_coefficients: Scalar
    tanh_switch: Scalar
    tanh_one: Scalar  # tanh(x) is 1 where 2 x is above
    erf_coefficients: Scalar
    erfc_log_coefficients: Scalar
    erf_one: Scalar  # erf(x) is 1 where x is above


def _constants(dtype: Callable[[float], Any], **values: Any) -> Constants:
    """`values` in `dtype`, with the ones that both dtypes share."""
    shared = {
        "zero": 0.0,
        "half": 0.5,
        "one": 1.0,
        "two": 2.0,
        "infinity": math.inf,
        "nan": math.nan,
        "log2_e": 1.4426950408889634,
        "log1p_exponent": 64.0,
        # Below, 1 - 2 / (exp(2 x) + 1) would lose bits; above, the polynomial would need more terms.
        "tanh_switch": 0.625,
    }

    def convert(value: Any) -> Any:
        return tuple(dtype(one) for one in value) if isinstance(value, tuple) else dtype(value)

    return Constants(**{name: convert(value) for name, value in (shared | values).items()})


# fmt: off
FLOAT32 = _constants(
    np.float32,
    shift=1.5 * 2.0**23 + 127,
    ln2_high=0.6931472,
    ln2_low=-1.9046542e-09,
    # exp(r) = 1 + r + r^2 P(r), |r| <= ln(2) / 2; 2^-26.2 of expm1(r).
    exp_coefficients=(0.49999997, 0.16666543, 0.041667204, 0.0083665475, 0.0013882245),
    exp_lowest=-105.0,
    exp_highest=89.0,
    expm1_lowest=-20.0,
    linear=2.0**-26,
    # 2 atanh(s) = 2 s + s^3 P(s^2), |s| <= 3 - sqrt(8); 2^-29.4.
    log_coefficients=(0.66666776, 0.39976034, 0.29926854),
    smallest_normal=2.0**-126,
    subnormal_scale=2.0**23,
    subnormal_exponent=23.0,
    # tanh(x) = x + x^3 P(x^2), |x| <= 0.625; 2^-26.9.
    tanh_coefficients=(-0.33333293, 0.13331541, -0.053738624, 0.020615997, -0.005664775),
    tanh_one=20.0,
    # The two fits of formula.py, shorter: 2^-29.6, and 2^-29.8 up to 3.93, where erfc is 2.7e-8 < 2^-25.
    erf_coefficients=(
        0.12837917, -0.37612626, 0.112835854, -0.026853815, 0.0051883287, -0.00080101856, 7.853792e-05,
    ),
    erfc_log_coefficients=(
        0.00034154402, 1.1270891, 0.63814497, 0.10310663, -0.021838004, 0.0029476432, -0.00018637764,
    ),
    erf_one=3.93,
)

FLOAT64 = _constants(
    np.float64,
    shift=1.5 * 2.0**52 + 1023,
    ln2_high=0.6931471805599453,
    ln2_low=2.3190468138462996e-17,
    # The same functions as above: 2^-61.7, 2^-58.6 and 2^-55.6.
    exp_coefficients=(
        0.5, 0.16666666666666677, 0.041666666666666505, 0.008333333333321653, 0.0013888888888962617,
        0.000198412698860735, 2.480158717220584e-05, 2.7557244254062392e-06, 2.755740279366568e-07,
        2.510902452950259e-08, 2.0875324233829476e-09,
    ),
    exp_lowest=-746.0,
    exp_highest=710.0,
    expm1_lowest=-40.0,
    linear=2.0**-55,
    log_coefficients=(
        0.666666666666671, 0.39999999999517644, 0.2857142872988052, 0.2222219901577967,
        0.1818357610334857, 0.15313033682825208, 0.14811939752001807,
    ),
    smallest_normal=2.0**-1022,
    subnormal_scale=2.0**52,
    subnormal_exponent=52.0,
    tanh_coefficients=(
        -0.3333333333333311, 0.13333333333287256, -0.0539682539397881, 0.021869487715981892,
        -0.008863222277150232, 0.0035919959416899423, -0.0014549793911817783, 0.0005863465446753793,
        -0.0002285643453606949, 7.708859580556776e-05, -1.6022900589992294e-05,
    ),
    tanh_one=40.0,
    erf_coefficients=ERF_SMALL,
    erfc_log_coefficients=ERFC_LOG,
    erf_one=ERF_ONE,
)
# fmt: on


_intrinsic: Callable[..., Any] = extending.intrinsic

# Instructions. Each intrinsic below emits a few LLVM instructions in place, so it costs no compilation of its
# own. They stand as module globals: captured in a closure they made Numba's cache on disk miss every time.


class _Layout(NamedTuple):
    """How a dtype's bits are laid out, and its integer type in LLVM."""

    integer: Any
    mantissa_bits: int
    bias: int
    sqrt_half: int  # the bits of sqrt(1/2)


_LAYOUT = {
    types.float32: _Layout(ir.IntType(32), 23, 127, 0x3F3504F3),
    types.float64: _Layout(ir.IntType(64), 52, 1023, 0x3FE6A09E667F3BCD),
}


def _call(builder: Any, name: str, arguments: Any) -> Any:
    """Call LLVM's intrinsic `name` for the type of `arguments`."""
    kind = arguments[0].type
    declared = builder.module.declare_intrinsic(name, [kind], ir.FunctionType(kind, [kind] * len(arguments)))
    return builder.call(declared, arguments)


@_intrinsic
def constants(typingctx: Any, x: Scalar) -> Any:
    """The `Constants` for the dtype of `x`."""
    value = FLOAT32 if x == types.float32 else FLOAT64
    kind: Any = typeof(value)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_constant_generic(builder, kind, value)

    return kind(x), emit


@_intrinsic
def fma(typingctx: Any, x: Scalar, y: Scalar, z: Scalar) -> Any:
    """x * y + z, rounded once."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "llvm.fma", arguments)

    return x(x, x, x), emit


@_intrinsic
def horner(typingctx: Any, x: Scalar, coefficients: Any) -> Any:
    """The polynomial in `x` with a tuple of `coefficients`, constant term first, in fused multiply-adds."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        argument, packed = arguments
        terms = [builder.extract_value(packed, index) for index in range(len(coefficients))]
        total = terms[-1]
        for term in terms[-2::-1]:
            total = _call(builder, "llvm.fma", [total, argument, term])
        return total

    return x(x, coefficients), emit


@_intrinsic
def magnitude(typingctx: Any, x: Scalar) -> Any:
    """|x|."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "llvm.fabs", arguments)

    return x(x), emit


@_intrinsic
def copysign(typingctx: Any, x: Scalar, y: Scalar) -> Any:
    """The magnitude of `x` with the sign of `y`."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "llvm.copysign", arguments)

    return x(x, x), emit


@_intrinsic
def select(typingctx: Any, condition: Any, x: Scalar, y: Scalar) -> Any:
    """`x` where `condition` holds, else `y`, both computed: an `if` would be a branch."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return x(types.boolean, x, x), emit


@_intrinsic
def power_of_two(typingctx: Any, shifted: Scalar) -> Any:
    """2^k of `shifted` = k + `Constants.shift`, for k that gives a normal number.

    Near 1.5 * 2^p, with p the mantissa's bits, consecutive numbers are 1 apart, so the lowest bits of
    `shifted` are k + bias, the bits of the exponent. This way no conversion to integer is needed, which is
    undefined in LLVM for NaN and has no vector form for float64 before AVX-512.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        layout = _LAYOUT[shifted]
        bits = builder.bitcast(arguments[0], layout.integer)
        bits = builder.shl(bits, layout.integer(layout.mantissa_bits))
        return builder.bitcast(bits, arguments[0].type)

    return shifted(shifted), emit


@_intrinsic
def split(typingctx: Any, x: Scalar) -> Any:
    """The pair (m, k) with x = m * 2^k and sqrt(1/2) <= m < sqrt(2), for a positive normal finite `x`."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer, mantissa_bits, bias, sqrt_half = _LAYOUT[x]
        kind = arguments[0].type
        one = bias << mantissa_bits
        bits = builder.bitcast(arguments[0], integer)
        bits = builder.add(bits, integer(one - sqrt_half))
        mantissa = builder.and_(bits, integer((1 << mantissa_bits) - 1))
        mantissa = builder.bitcast(builder.add(mantissa, integer(sqrt_half)), kind)
        # k + bias put into the lowest bits of 2^p is 2^p + k + bias: again no conversion from integer.
        exponent = builder.lshr(bits, integer(mantissa_bits))
        exponent = builder.or_(exponent, integer((bias + mantissa_bits) << mantissa_bits))
        exponent = builder.fsub(builder.bitcast(exponent, kind), kind(2.0**mantissa_bits + bias))
        return context.make_tuple(builder, signature.return_type, (mantissa, exponent))

    return tuple_type(x, 2)(x), emit


def _unary(dtype: Any, emit_value: Callable[[Any, Any], Any], result: Any = None) -> Any:
    @_intrinsic
    def function(typingctx: Any, x: Scalar) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return emit_value(builder, arguments[0])

        return (result or dtype)(dtype), emit

    return function


def _binary(dtype: Any, emit_value: Callable[[Any, Any, Any], Any]) -> Any:
    @_intrinsic
    def function(typingctx: Any, x: Scalar, y: Scalar) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return emit_value(builder, *arguments)

        return dtype(dtype, dtype), emit

    return function


def _where(dtype: Any) -> Any:
    @_intrinsic
    def function(typingctx: Any, condition: Any, x: Scalar, y: Scalar) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.select(*arguments)

        return dtype(types.boolean, dtype, dtype), emit

    return function


def _emitter(name: str) -> Callable[[Any, Any], Any]:
    return lambda builder, x: _call(builder, name, [x])


_emit_absolute = _emitter("llvm.fabs")


def _emit_isnan(builder: Any, x: Any) -> Any:
    return builder.fcmp_unordered("uno", x, x)


def _emit_sign(builder: Any, x: Any) -> Any:
    zero, one = x.type(0.0), x.type(1.0)
    negative = builder.select(builder.fcmp_ordered("<", x, zero), x.type(-1.0), _emit_absolute(builder, x))
    return builder.select(builder.fcmp_ordered(">", x, zero), one, negative)


def _emit_maximum(builder: Any, x: Any, y: Any) -> Any:
    # A NaN in y fails the first comparison and is taken by it; one in x has to be asked for.
    larger = builder.select(builder.fcmp_ordered(">", x, y), x, y)
    return builder.select(_emit_isnan(builder, x), x, larger)


def _emit_minimum(builder: Any, x: Any, y: Any) -> Any:
    smaller = builder.select(builder.fcmp_ordered("<", x, y), x, y)
    return builder.select(_emit_isnan(builder, x), x, smaller)


sqrt_float32 = _unary(types.float32, _emitter("llvm.sqrt"))
sqrt_float64 = _unary(types.float64, _emitter("llvm.sqrt"))
floor_float32 = _unary(types.float32, _emitter("llvm.floor"))
floor_float64 = _unary(types.float64, _emitter("llvm.floor"))
absolute_float32 = _unary(types.float32, _emit_absolute)
absolute_float64 = _unary(types.float64, _emit_absolute)
sign_float32, sign_float64 = _unary(types.float32, _emit_sign), _unary(types.float64, _emit_sign)
isnan_float32 = _unary(types.float32, _emit_isnan, types.boolean)
isnan_float64 = _unary(types.float64, _emit_isnan, types.boolean)
maximum_float32 = _binary(types.float32, _emit_maximum)
maximum_float64 = _binary(types.float64, _emit_maximum)
minimum_float32 = _binary(types.float32, _emit_minimum)
minimum_float64 = _binary(types.float64, _emit_minimum)
where_float32, where_float64 = _where(types.float32), _where(types.float64)


# The functions, for either dtype.


@_inline
def _exp_parts(x: Scalar) -> tuple[Scalar, Scalar]:
    """The pair (q, k + `Constants.shift`) with exp(x) = (1 + q) 2^k and |q| < 0.42."""
    c = constants(x)
    shifted = fma(x, c.log2_e, c.shift)
    k = shifted - c.shift
    r = fma(-k, c.ln2_low, fma(-k, c.ln2_high, x))
    return fma(r * r, horner(r, c.exp_coefficients), r), shifted


@_inline
def _exp(x: Scalar) -> Scalar:
    c = constants(x)
    # Compared this way round, NaN passes both.
    x = select(x > c.exp_highest, c.exp_highest, x)
    x = select(x < c.exp_lowest, c.exp_lowest, x)
    q, shifted = _exp_parts(x)
    # 2^k may not exist where the result does (subnormal, or above 2^127.5): two factors of about its root.
    part = fma(shifted - c.shift, c.half, c.shift)
    scale = power_of_two(part)
    return fma(scale, q, scale) * power_of_two((shifted - part) + c.shift)


@_inline
def _expm1(x: Scalar) -> Scalar:
    c = constants(x)
    y = select(x > c.exp_highest, c.exp_highest, x)
    y = select(y < c.expm1_lowest, c.expm1_lowest, y)
    q, shifted = _exp_parts(y)
    # Half of the result, as 2^k overflows just before the result does.
    scale = power_of_two(shifted - c.one)
    y = fma(scale, q, scale - c.half)
    return select(magnitude(x) < c.linear, x, y + y)


@_inline
def _log_parts(f: Scalar, k: Scalar) -> Scalar:
    """log((1 + f) 2^k) for sqrt(1/2) <= 1 + f < sqrt(2).

    With s = f / (2 + f), log(1 + f) = 2 atanh(s) = f - f^2 / 2 + s (f^2 / 2 + R): f itself is exact, and all
    that is rounded is small beside it.
    """
    c = constants(f)
    s = f / (c.two + f)
    z = s * s
    square = c.half * f * f
    rest = z * horner(z, c.log_coefficients)
    return fma(k, c.ln2_high, f - (square - fma(s, square + rest, k * c.ln2_low)))


@_inline
def _log(x: Scalar) -> Scalar:
    c = constants(x)
    subnormal = x < c.smallest_normal
    m, k = split(select(subnormal, x * c.subnormal_scale, x))
    k = select(subnormal, k - c.subnormal_exponent, k)
    y = _log_parts(m - c.one, k)
    y = select(x < c.infinity, y, x)  # infinity and NaN
    return select(x > c.zero, y, select(x < c.zero, c.nan, x - c.infinity))


@_inline
def _log1p(x: Scalar) -> Scalar:
    c = constants(x)
    u = c.one + x
    rest = u - c.one
    rest = (c.one - (u - rest)) + (x - rest)  # 1 + x - u, exactly
    m, k = split(u)
    # 2^-k, which is not a number of the dtype for the largest u; `rest` is lost against log(u) long before.
    scale = power_of_two(c.shift - select(k > c.log1p_exponent, c.log1p_exponent, k))
    # For k = 0 this is x itself, which is what keeps the bits of a small x.
    y = _log_parts(fma(rest, scale, m - c.one), k)
    y = select(x < c.infinity, y, x)  # infinity and NaN
    y = select(magnitude(x) < c.linear, x, y)  # -0.0
    return select(x > -c.one, y, select(x < -c.one, c.nan, x - c.infinity))


@_inline
def _tanh(x: Scalar) -> Scalar:
    c = constants(x)
    a = magnitude(x)
    z = a * a
    small = fma(a * z, horner(z, c.tanh_coefficients), a)
    y = a + a
    q, shifted = _exp_parts(select(y > c.tanh_one, c.tanh_one, y))
    scale = power_of_two(shifted)
    large = c.one - c.two / fma(scale, q, scale + c.one)
    return copysign(select(a < c.tanh_switch, small, large), x)


@_inline
def _erf(x: Scalar) -> Scalar:
    c = constants(x)
    a = magnitude(x)
    z = a * a
    small = fma(a, horner(z, c.erf_coefficients), a)
    y = select(a > c.erf_one, c.erf_one, a)
    q, shifted = _exp_parts(-horner(y, c.erfc_log_coefficients))
    scale = power_of_two(shifted)
    large = fma(-scale, q, c.one - scale)
    return copysign(select(a < c.one, small, large), x)


@_jit
def exp_float32(x: Scalar) -> Scalar:
    """exp(x) in float32."""
    return _exp(np.float32(x))


@_jit
def exp_float64(x: Scalar) -> Scalar:
    """exp(x) in float64."""
    return _exp(np.float64(x))


@_jit
def expm1_float32(x: Scalar) -> Scalar:
    """exp(x) - 1 in float32."""
    return _expm1(np.float32(x))


@_jit
def expm1_float64(x: Scalar) -> Scalar:
    """exp(x) - 1 in float64."""
    return _expm1(np.float64(x))


@_jit
def log_float32(x: Scalar) -> Scalar:
    """log(x) in float32."""
    return _log(np.float32(x))


@_jit
def log_float64(x: Scalar) -> Scalar:
    """log(x) in float64."""
    return _log(np.float64(x))


@_jit
def log1p_float32(x: Scalar) -> Scalar:
    """log(1 + x) in float32."""
    return _log1p(np.float32(x))


@_jit
def log1p_float64(x: Scalar) -> Scalar:
    """log(1 + x) in float64."""
    return _log1p(np.float64(x))


@_jit
def tanh_float32(x: Scalar) -> Scalar:
    """tanh(x) in float32."""
    return _tanh(np.float32(x))


@_jit
def tanh_float64(x: Scalar) -> Scalar:
    """tanh(x) in float64."""
    return _tanh(np.float64(x))


@_jit
def erf_float32(x: Scalar) -> Scalar:
    """The error function in float32."""
    return _erf(np.float32(x))


@_jit
def erf_float64(x: Scalar) -> Scalar:
    """The error function in float64."""
    return _erf(np.float64(x))


# Calls into libm, one element at a time: nothing that a training step repeats for each pixel needs these.


@_jit
def sin_float32(x: Scalar) -> Scalar:
    """sin(x) in float32."""
    return math.sin(np.float32(x))


@_jit
def sin_float64(x: Scalar) -> Scalar:
    """sin(x) in float64."""
    return math.sin(np.float64(x))


@_jit
def cos_float32(x: Scalar) -> Scalar:
    """cos(x) in float32."""
    return math.cos(np.float32(x))


@_jit
def cos_float64(x: Scalar) -> Scalar:
    """cos(x) in float64."""
    return math.cos(np.float64(x))


@_jit
def power_float32(x: Scalar, y: Scalar) -> Scalar:
    """x to the power y in float32."""
    return np.float32(x) ** np.float32(y)


@_jit
def power_float64(x: Scalar, y: Scalar) -> Scalar:
    """x to the power y in float64."""
    return np.float64(x) ** np.float64(y)
