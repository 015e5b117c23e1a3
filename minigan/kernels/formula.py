"""The names a pointwise formula is written in, as functions of NumPy arrays.

A formula runs with these when Numba is absent, and the compiled functions of the same names in
`minigan.kernels.vector` are compared with them. Everything but `erf`, which NumPy lacks, is NumPy's own.
"""

import numpy as np
from numpy import (
    absolute as absolute,
    cos as cos,
    exp as exp,
    expm1 as expm1,
    floor as floor,
    isnan as isnan,
    log as log,
    log1p as log1p,
    maximum as maximum,
    minimum as minimum,
    power as power,
    sign as sign,
    sin as sin,
    sqrt as sqrt,
    tanh as tanh,
    where as where,
)
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "absolute",
    "cos",
    "erf",
    "exp",
    "expm1",
    "floor",
    "isnan",
    "log",
    "log1p",
    "maximum",
    "minimum",
    "power",
    "sign",
    "sin",
    "sqrt",
    "tanh",
    "where",
]

# erf(x) = x + x S(x^2) for |x| < 1. Minimax for the relative error, which is 2^-56.9.
ERF_SMALL = (
    0.12837916709551256,
    -0.3761263890318352,
    0.112837916709442,
    -0.026866170643113415,
    0.005223977606130842,
    -0.0008548325929766244,
    0.0001205529358693695,
    -1.4924712439534814e-05,
    1.6447132699786621e-06,
    -1.6206318752969208e-07,
    1.3710988704190523e-08,
    -7.779462971761597e-10,
)

# -log(erfc(x)) for 1 <= x <= 5.93. An error here reaches erf multiplied by erfc, so the minimax fit weighs it
# with erfc / erf: 2^-57 of erf at every x, while the fit itself loosens as erfc falls to 5e-17.
ERFC_LOG = (
    5.030787673232281e-07,
    1.1283740872645176,
    0.6366436380001355,
    0.10270341214539233,
    -0.018990126692647467,
    -0.00041070070107209036,
    0.0019160204064721591,
    -0.0007707064197680681,
    0.00013509101651344268,
    2.0246064293193798e-05,
    -2.2814284034078133e-05,
    8.664596729883025e-06,
    -2.1350570468790113e-06,
    3.731893043456493e-07,
    -4.6407674820400534e-08,
    3.9328560108721915e-09,
    -2.0441663366719359e-10,
    4.9265309689026976e-12,
)

# From here on erf is one in float64: erfc(5.93) is 5.0e-17, below half of 2^-53.
ERF_ONE = 5.93


def _horner(x: NDArray[np.float64], coefficients: tuple[float, ...]) -> NDArray[np.float64]:
    total = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total *= x
        total += coefficient
    return total


def erf(x: ArrayLike) -> NDArray[np.floating]:
    """The error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to `x`, at most 2 ulp off.

    `x`: array of any shape, float32 or float64 (anything else is taken as float64); the result has its
    shape and dtype. float32 is computed in float64 and rounded, which costs time and no accuracy.
    """
    given = np.asarray(x)
    wide = given.astype(np.float64)
    magnitude = np.minimum(np.absolute(wide), ERF_ONE)
    inner = np.minimum(magnitude, 1.0)
    small = inner + inner * _horner(inner * inner, ERF_SMALL)
    large = 1.0 - np.exp(-_horner(magnitude, ERFC_LOG))
    result = np.copysign(np.where(magnitude < 1.0, small, large), wide)
    return result.astype(given.dtype if given.dtype == np.float32 else np.float64)
