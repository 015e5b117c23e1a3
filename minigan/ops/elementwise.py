"""Pointwise operations: each formula with its derivative rule, then the function that users call.

All take float32 or float64, else `DTypeError`; two operands broadcast, else `ShapeError`, and promote as NumPy's.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigan.kernels import formula as fm
from minigan.linear import unbroadcast
from minigan.pointwise import pointwise
from minigan.tape import Thunk, apply
from minigan.tensor import Tensor, TensorLike, lift, pair, where

# Beyond these arguments silu and gelu equal 0 or x in float64; clipping keeps 0 · inf out of them.
_SILU_TAIL = 800.0
_GELU_TAIL = 40.0


@pointwise(lambda gy, y, x: (lambda: gy * y,))
def _exp(x: Any) -> Any:
    return fm.exp(x)


def exp(x: TensorLike) -> Tensor:
    """e to the power x; derivative e^x.

    >>> import minigan as mg
    >>> mg.ops.exp(mg.tensor([0.0, -float("inf")])).numpy()
    array([1., 0.], dtype=float32)
    """
    return apply(_exp, lift(x))  # type: ignore[no-any-return]


# y + 1 would round to 0 in the tail, where e^x is small but not 0.
@pointwise(lambda gy, y, x: (lambda: gy * exp(x),))
def _expm1(x: Any) -> Any:
    return fm.expm1(x)


def expm1(x: TensorLike) -> Tensor:
    """e^x - 1, exact for small x; derivative e^x.

    >>> import minigan as mg
    >>> mg.ops.expm1(mg.tensor([0.0, -float("inf")])).numpy()
    array([ 0., -1.], dtype=float32)
    """
    return apply(_expm1, lift(x))  # type: ignore[no-any-return]


@pointwise(lambda gy, y, x: (lambda: gy / (x + 1.0),), low=-0.6)
def _log1p(x: Any) -> Any:
    return fm.log1p(x)


def log1p(x: TensorLike) -> Tensor:
    """log(1 + x), exact for small x; -inf at -1, NaN below; derivative 1 / (1 + x).

    >>> import minigan as mg
    >>> mg.ops.log1p(mg.tensor([0.0, -1.0])).numpy()
    array([  0., -inf], dtype=float32)
    """
    return apply(_log1p, lift(x))  # type: ignore[no-any-return]


@pointwise(lambda gy, y, x: (lambda: gy * 0.5 / y,), ufunc=np.sqrt, low=0.3)
def _sqrt(x: Any) -> Any:
    return fm.sqrt(x)


def sqrt(x: TensorLike) -> Tensor:
    """The square root; NaN below 0; derivative 1 / (2 sqrt(x)), inf at 0 (for norms use `norm`).

    >>> import minigan as mg
    >>> mg.ops.sqrt(mg.tensor([4.0, 0.25])).numpy()
    array([2. , 0.5], dtype=float32)
    """
    return apply(_sqrt, lift(x))  # type: ignore[no-any-return]


@pointwise(lambda gy, y, x: (lambda: gy * cos(x),))
def _sin(x: Any) -> Any:
    return fm.sin(x)


def sin(x: TensorLike) -> Tensor:
    """The sine of x in radians; derivative cos x; NaN at infinity.

    >>> import minigan as mg
    >>> mg.ops.sin(mg.tensor([0.0, 1.0])).numpy().round(3)
    array([0.   , 0.841], dtype=float32)
    """
    return apply(_sin, lift(x))  # type: ignore[no-any-return]


@pointwise(lambda gy, y, x: (lambda: -gy * sin(x),))
def _cos(x: Any) -> Any:
    return fm.cos(x)


def cos(x: TensorLike) -> Tensor:
    """The cosine of x in radians; derivative -sin x; NaN at infinity.

    >>> import minigan as mg
    >>> mg.ops.cos(mg.tensor([0.0, 1.0])).numpy().round(3)
    array([1.  , 0.54], dtype=float32)
    """
    return apply(_cos, lift(x))  # type: ignore[no-any-return]


@pointwise(lambda gy, y, x: (lambda: gy * exp(-x * x) * (2.0 / math.sqrt(math.pi)),))
def _erf(x: Any) -> Any:
    return fm.erf(x)


def erf(x: TensorLike) -> Tensor:
    """The error function (2/√π) ∫₀ˣ e^(-t²) dt; derivative (2/√π) e^(-x²) (Abramowitz and Stegun, 7.1.1).

    >>> import minigan as mg
    >>> mg.ops.erf(mg.tensor([0.0, 1.0, 10.0])).numpy().round(3)
    array([0.   , 0.843, 1.   ], dtype=float32)
    """
    return apply(_erf, lift(x))  # type: ignore[no-any-return]


@pointwise(
    lambda gy, y, a, b: (
        lambda: unbroadcast(where(a > b, gy, where(a == b, gy * 0.5, 0.0)), a.shape),
        lambda: unbroadcast(where(b > a, gy, where(a == b, gy * 0.5, 0.0)), b.shape),
    ),
    ufunc=np.maximum,
    kink=lambda a, b: a - b,
    smooth=False,
)
def _maximum(a: Any, b: Any) -> Any:
    return fm.maximum(a, b)


def maximum(a: TensorLike, b: TensorLike) -> Tensor:
    """The larger of a and b, broadcast; NaN if either is. Where they tie, each gets half of the derivative.

    >>> import minigan as mg
    >>> mg.ops.maximum(mg.tensor([1.0, 5.0]), 3.0).numpy()
    array([3., 5.], dtype=float32)
    """
    return apply(_maximum, *pair(a, b))  # type: ignore[no-any-return]


@pointwise(
    lambda gy, y, a, b: (
        lambda: unbroadcast(where(b > a, gy, where(a == b, gy * 0.5, 0.0)), a.shape),
        lambda: unbroadcast(where(a > b, gy, where(a == b, gy * 0.5, 0.0)), b.shape),
    ),
    ufunc=np.minimum,
    kink=lambda a, b: a - b,
    smooth=False,
)
def _minimum(a: Any, b: Any) -> Any:
    return fm.minimum(a, b)


def minimum(a: TensorLike, b: TensorLike) -> Tensor:
    """The smaller of a and b, broadcast; NaN if either is. Where they tie, each gets half of the derivative.

    >>> import minigan as mg
    >>> mg.ops.minimum(mg.tensor([1.0, 5.0]), 3.0).numpy()
    array([1., 3.], dtype=float32)
    """
    return apply(_minimum, *pair(a, b))  # type: ignore[no-any-return]


@pointwise(
    lambda gy, y, x, low, high: (lambda: where(x >= low, where(x <= high, gy, 0.0), 0.0),),
    attributes={"low": -0.7, "high": 0.9},
    kink=lambda x: np.minimum(abs(x + 0.7), abs(x - 0.9)),
    smooth=False,
)
def _clip(x: Any, *, low: Any, high: Any) -> Any:
    return fm.minimum(fm.maximum(x, low), high)


def clip(x: TensorLike, low: float = -math.inf, high: float = math.inf) -> Tensor:
    """x limited to low .. high; derivative 1 from low to high inclusive, 0 outside; NaN stays NaN.

    >>> import minigan as mg
    >>> mg.ops.clip(mg.tensor([-2.0, 0.5, 2.0]), -1.0, 1.0).numpy()
    array([-1. ,  0.5,  1. ], dtype=float32)
    """
    return apply(_clip, lift(x), low=float(low), high=float(high))  # type: ignore[no-any-return]


# 1 - tanh² x = 4 σ(2x) σ(-2x) in one loop: the difference would lose everything where tanh rounds to 1 (beyond 9 in
# float32), and this form keeps its relative precision there.
@pointwise(lambda gy, y, x: (lambda: gy * y * tanh(x) * -2.0,))
def _sech_squared(x: Any) -> Any:
    tail = fm.exp(-2.0 * fm.absolute(x))
    return 4.0 * tail / ((1.0 + tail) * (1.0 + tail))


@pointwise(lambda gy, y, x: (lambda: gy * apply(_sech_squared, x),))
def _tanh(x: Any) -> Any:
    return fm.tanh(x)


def tanh(x: TensorLike) -> Tensor:
    """(e^x - e^-x) / (e^x + e^-x), the hyperbolic tangent; derivative 1 - tanh² x = 4 σ(2x) σ(-2x).

    >>> import minigan as mg
    >>> mg.ops.tanh(mg.tensor([-1e4, 0.0, 1.0])).numpy().round(3)
    array([-1.   ,  0.   ,  0.762], dtype=float32)
    """
    return apply(_tanh, lift(x))  # type: ignore[no-any-return]


# σ(x) σ(-x) in one loop: 1 - σ(x) would lose everything where σ(x) rounds to 1, and this form keeps its relative
# precision there.
@pointwise(lambda gy, y, x: (lambda: gy * y * tanh(x * 0.5) * -1.0,))
def _sigmoid_slope(x: Any) -> Any:
    tail = fm.exp(-fm.absolute(x))
    return tail / ((1.0 + tail) * (1.0 + tail))


@pointwise(lambda gy, y, x: (lambda: gy * apply(_sigmoid_slope, x),))
def _sigmoid(x: Any) -> Any:
    tail = fm.exp(-fm.absolute(x))
    return fm.where(x >= 0, 1.0, tail) / (1.0 + tail)


def sigmoid(x: TensorLike) -> Tensor:
    """σ(x) = 1 / (1 + e^(-x)), without overflow on either side; derivative σ(x) σ(-x).

    >>> import minigan as mg
    >>> mg.ops.sigmoid(mg.tensor([-1e4, 0.0, 1e4])).numpy()
    array([0. , 0.5, 1. ], dtype=float32)
    """
    return apply(_sigmoid, lift(x))  # type: ignore[no-any-return]


@pointwise(lambda gy, y, x: (lambda: gy * sigmoid(x),))
def _softplus(x: Any) -> Any:
    return fm.maximum(x, 0.0) + fm.log1p(fm.exp(-fm.absolute(x)))


def softplus(x: TensorLike) -> Tensor:
    """log(1 + e^x) without overflow, at most 4 ulp off; derivative σ(x).

    -log σ(x) is softplus(-x) and -log(1 - σ(x)) is softplus(x): the two terms of the GAN losses.

    >>> import minigan as mg
    >>> mg.ops.softplus(mg.tensor([-1e4, 1e4])).numpy()
    array([    0., 10000.], dtype=float32)
    """
    return apply(_softplus, lift(x))  # type: ignore[no-any-return]


def _relu_gate_vjp(gy: Any, y: Any, x: Any, g: Any) -> Sequence[Thunk]:
    return None, lambda: unbroadcast(apply(_relu_gate, x, gy), g.shape)


@pointwise(
    _relu_gate_vjp,
    kink=lambda x, g: x,
    linear=(1,),
    smooth=False,
)
def _relu_gate(x: Any, g: Any) -> Any:
    return fm.where(x > 0, g, 0.0)


@pointwise(lambda gy, y, x: (lambda: apply(_relu_gate, x, gy),), kink=lambda x: x, smooth=False)
def _relu(x: Any) -> Any:
    return fm.maximum(x, 0.0)


def relu(x: TensorLike) -> Tensor:
    """max(x, 0) (Nair and Hinton 2010); derivative 1 above 0, 0 at 0 and below.

    >>> import minigan as mg
    >>> mg.ops.relu(mg.tensor([-1.0, 2.0])).numpy()
    array([0., 2.], dtype=float32)
    """
    return apply(_relu, lift(x))  # type: ignore[no-any-return]


def _leaky_relu_gate_vjp(gy: Any, y: Any, x: Any, g: Any, slope: float) -> Sequence[Thunk]:
    return None, lambda: unbroadcast(apply(_leaky_relu_gate, x, gy, slope=slope), g.shape)


@pointwise(
    _leaky_relu_gate_vjp,
    attributes={"slope": 0.2},
    kink=lambda x, g: x,
    linear=(1,),
    smooth=False,
)
def _leaky_relu_gate(x: Any, g: Any, *, slope: Any) -> Any:
    return fm.where(x > 0, g, slope * g)


@pointwise(
    lambda gy, y, x, slope: (lambda: apply(_leaky_relu_gate, x, gy, slope=slope),),
    attributes={"slope": 0.2},
    kink=lambda x: x,
    smooth=False,
)
def _leaky_relu(x: Any, *, slope: Any) -> Any:
    return fm.where(x > 0, x, slope * x)


def leaky_relu(x: TensorLike, slope: float = 0.2) -> Tensor:
    """x above 0, slope · x at 0 and below (Maas, Hannun and Ng 2013); derivative 1 above 0, slope elsewhere.

    >>> import minigan as mg
    >>> mg.ops.leaky_relu(mg.tensor([-1.0, 2.0])).numpy()
    array([-0.2,  2. ], dtype=float32)
    """
    return apply(_leaky_relu, lift(x), slope=float(slope))  # type: ignore[no-any-return]


# Not y + α, which rounds to 0 in the tail; `where` rather than a minimum, whose own derivative is 1/2 at 0.
@pointwise(
    lambda gy, y, x, alpha: (lambda: where(x > 0, gy, gy * (exp(where(x > 0, 0.0, x)) * alpha)),),
    attributes={"alpha": 1.3},
    kink=lambda x: x,
    smooth=False,
)
def _elu(x: Any, *, alpha: Any) -> Any:
    return fm.where(x > 0, x, alpha * fm.expm1(fm.minimum(x, 0.0)))


def elu(x: TensorLike, alpha: float = 1.0) -> Tensor:
    """x above 0, α (e^x - 1) at 0 and below (Clevert, Unterthiner and Hochreiter 2016, eq. 15).

    Derivative 1 above 0, α e^x at 0 and below.

    >>> import minigan as mg
    >>> mg.ops.elu(mg.tensor([-1.0, 2.0])).numpy().round(3)
    array([-0.632,  2.   ], dtype=float32)
    """
    return apply(_elu, lift(x), alpha=float(alpha))  # type: ignore[no-any-return]


def _gelu_reference(x: Any) -> Any:
    t = maximum(x, -_GELU_TAIL)
    return t * (erf(minimum(t, _GELU_TAIL) * math.sqrt(0.5)) + 1.0) * 0.5


@pointwise(reference=_gelu_reference)
def _gelu(x: Any) -> Any:
    t = fm.maximum(x, -40.0)
    return t * (fm.erf(t * 0.7071067811865476) + 1.0) * 0.5


def gelu(x: TensorLike) -> Tensor:
    """x Φ(x) with the normal distribution function Φ (Hendrycks and Gimpel 2016); differentiated by its reference.

    >>> import minigan as mg
    >>> mg.ops.gelu(mg.tensor([-1.0, 0.0, 1.0])).numpy().round(3)
    array([-0.159,  0.   ,  0.841], dtype=float32)
    """
    return apply(_gelu, lift(x))  # type: ignore[no-any-return]


def _silu_reference(x: Any) -> Any:
    t = maximum(x, -_SILU_TAIL)
    return t * sigmoid(minimum(t, _SILU_TAIL))


@pointwise(reference=_silu_reference)
def _silu(x: Any) -> Any:
    t = fm.maximum(x, -800.0)
    tail = fm.exp(-fm.absolute(t))
    return t * fm.where(t >= 0, 1.0, tail) / (1.0 + tail)


def silu(x: TensorLike) -> Tensor:
    """x σ(x), also called swish (Elfwing, Uchibe and Doya 2018, eq. 4); differentiated by its reference.

    >>> import minigan as mg
    >>> mg.ops.silu(mg.tensor([-1.0, 0.0, 1.0])).numpy().round(3)
    array([-0.269,  0.   ,  0.731], dtype=float32)
    """
    return apply(_silu, lift(x))  # type: ignore[no-any-return]
