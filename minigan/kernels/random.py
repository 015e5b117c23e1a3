"""Random bits, and uniform and normal numbers made of them, as rows of a machine (see `minigan.ops.random`)."""

from numpy import float32, float64, uint32, uint64

from minigan.kernels.memory import read, real, word, write
from minigan.kernels.vector import _inline, fma, horner, log_float64, select, sqrt_float64

# pi / 2 as a sum of two, and the minimax polynomials of (sin(r) - r) / r^3 and (cos(r) - 1 + r^2 / 2) / r^4 in r^2 for
# |r| <= pi / 4: within 2^-56 of the sine and 2^-60 of the cosine.
TWO_PI = 6.283185307179586
TWO_OVER_PI = 0.6366197723675814
HALF_PI_HIGH, HALF_PI_LOW = 1.5707963267948966, 6.123233995736766e-17
SINE = (
    -0.16666666666666666,
    0.008333333333330936,
    -0.00019841269836740532,
    2.7557316093198404e-06,
    -2.5051129896450185e-08,
    1.5917988979397435e-10,
)
COSINE = (
    0.041666666666666664,
    -0.0013888888888887389,
    2.48015872987544e-05,
    -2.755731726587808e-07,
    2.087614504941318e-09,
    -1.138254464534925e-11,
)


def bits(row: int, i0: int, i1: int, j0: int, j1: int) -> None:
    """Write blocks i0 to i1 - 1 of 4 random words. Words of the row from 5 on: the counter, the result."""
    counter, out = word(row, 5), word(row, 6)
    mask = uint64(0xFFFFFFFF)
    draw, low, high = (
        read(counter, 2, "uint32", 0),
        read(counter, 3, "uint32", 0),
        read(counter, 4, "uint32", 0),
    )
    first, second = uint64(read(counter, 0, "uint32", 0)), uint64(read(counter, 1, "uint32", 0))
    for block in range(i0, i1):
        x0, x1, x2, x3 = uint64(block) & mask, uint64(draw), uint64(low), uint64(high)
        k0, k1 = first, second
        for _ in range(10):
            left, right = x0 * uint64(0xD2511F53), x2 * uint64(0xCD9E8D57)
            x0, x2 = (right >> uint64(32)) ^ x1 ^ k0, (left >> uint64(32)) ^ x3 ^ k1
            x1, x3 = right & mask, left & mask
            k0, k1 = (k0 + uint64(0x9E3779B9)) & mask, (k1 + uint64(0xBB67AE85)) & mask
        write(out, 4 * block, uint32(x0), "uint32", 1)
        write(out, 4 * block + 1, uint32(x1), "uint32", 1)
        write(out, 4 * block + 2, uint32(x2), "uint32", 1)
        write(out, 4 * block + 3, uint32(x3), "uint32", 1)


@_inline
def _wide(source: int, k: int) -> float64:
    """53 random bits of the words 2 k and 2 k + 1, as a whole number."""
    high = read(source, 2 * k, "uint32", 0) >> uint32(5)
    low = read(source, 2 * k + 1, "uint32", 0) >> uint32(6)
    return float64(high) * 2.0**26 + float64(low)


def uniform_float32(row: int, i0: int, i1: int, j0: int, j1: int) -> None:
    """Write numbers i0 to i1 - 1. Words of the row from 5 on: bits, result, the width of the interval, its begin."""
    source, out, width, begin = word(row, 5), word(row, 6), float32(real(row, 7)), float32(real(row, 8))
    for i in range(i0, i1):
        u = float32(read(source, i, "uint32", 0) >> uint32(8)) * float32(2.0**-24)
        write(out, i, u * width + begin, "float32", 1)


def uniform_float64(row: int, i0: int, i1: int, j0: int, j1: int) -> None:
    """As `uniform_float32`."""
    source, out, width, begin = word(row, 5), word(row, 6), real(row, 7), real(row, 8)
    for i in range(i0, i1):
        write(out, i, _wide(source, i) * 2.0**-53 * width + begin, "float64", 1)


@_inline
def _pair(u: float64, v: float64, mean: float64, std: float64) -> tuple[float64, float64]:
    """Two normal numbers of two uniform ones, 0 < u < 1 and 0 <= v < 1."""
    radius, angle = sqrt_float64(-2.0 * log_float64(u)) * std, TWO_PI * v
    quarter = float64(int(angle * TWO_OVER_PI + 0.5))
    r = fma(-quarter, HALF_PI_LOW, fma(-quarter, HALF_PI_HIGH, angle))
    z = r * r
    sine = fma(r * z, horner(z, SINE), r)
    cosine = fma(z * z, horner(z, COSINE), 1.0 - 0.5 * z)
    turned = (quarter == 1.0) | (quarter == 3.0)
    x, y = select(turned, sine, cosine), select(turned, cosine, sine)
    x = select((quarter == 1.0) | (quarter == 2.0), -x, x)
    y = select((quarter == 2.0) | (quarter == 3.0), -y, y)
    return radius * x + mean, radius * y + mean


def normal_float32(row: int, i0: int, i1: int, j0: int, j1: int) -> None:
    """Write pairs i0 to i1 - 1.

    Words of the row from 5 on: bits, result, how many numbers it has, addresses of mean and standard deviation.
    """
    source, out, size, mean, std = (
        word(row, 5),
        word(row, 6),
        word(row, 7),
        real(word(row, 8), 0),
        real(word(row, 9), 0),
    )
    for i in range(i0, min(i1, size // 2)):
        u = (float64(read(source, 2 * i, "uint32", 0)) + 0.5) * 2.0**-32
        x, y = _pair(u, float64(read(source, 2 * i + 1, "uint32", 0)) * 2.0**-32, mean, std)
        write(out, 2 * i, float32(x), "float32", 1)
        write(out, 2 * i + 1, float32(y), "float32", 1)
    if 2 * i1 > size:  # half a pair
        u = (float64(read(source, size - 1, "uint32", 0)) + 0.5) * 2.0**-32
        x, y = _pair(u, float64(read(source, size, "uint32", 0)) * 2.0**-32, mean, std)
        write(out, size - 1, float32(x), "float32", 1)


def normal_float64(row: int, i0: int, i1: int, j0: int, j1: int) -> None:
    """As `normal_float32`."""
    source, out, size, mean, std = (
        word(row, 5),
        word(row, 6),
        word(row, 7),
        real(word(row, 8), 0),
        real(word(row, 9), 0),
    )
    for i in range(i0, min(i1, size // 2)):
        u, v = (_wide(source, 2 * i) + 0.5) * 2.0**-53, _wide(source, 2 * i + 1) * 2.0**-53
        x, y = _pair(u, v, mean, std)
        write(out, 2 * i, x, "float64", 1)
        write(out, 2 * i + 1, y, "float64", 1)
    if 2 * i1 > size:
        u, v = (_wide(source, size - 1) + 0.5) * 2.0**-53, _wide(source, size) * 2.0**-53
        x, y = _pair(u, v, mean, std)
        write(out, size - 1, x, "float64", 1)
