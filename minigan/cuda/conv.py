"""The convolution and its two adjoints on a GPU.

What each output pixel sees of the images, its window, is laid out as a row of a matrix, for some output pixels at a
time: then a convolution is the product of this matrix with the weights, its adjoint in the images is a product whose
rows are added up where windows overlap, by the pixel that they meet in, and its adjoint in the weights a product that
sums over all pixels. The last is made in chunks of few enough terms for float32, which are added up in float64. Groups
of one channel each have products that are too slim: for them one thread computes one number.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from minigan.cuda.launch import THREADS, Launch, Operand, Plan, Result, Scratch, Step, Word, grid
from minigan.cuda.loops import index_type, kernel
from minigan.cuda.product import Factor, Place, copied, dense, product, zeros
from minigan.cuda.text import type_of
from minigan.kernels.rows import Spec, row_major

Pair = tuple[int, int]

BLOCK = 1 << 28  # bytes of windows that are laid out at a time
PARTS = 1 << 26  # bytes of sums over chunks of pixels
CHUNK = 512  # terms that float32 adds up: at most 512 · 2^-25 = 1.5e-5 off
LANES = 4  # neighbouring channels that a thread takes if they divide by it: their place is worked out once


class _Triad(NamedTuple):
    """Images (N, H, W, C), weights (kh, kw, c, O) and outputs (N, OH, OW, O) of a convolution, and where it sees."""

    x: Spec
    w: Spec
    y: Spec
    stride: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair
    groups: int

    @property
    def pixels(self) -> int:
        """How many windows there are."""
        return math.prod(self.y.shape[:3])

    @property
    def row(self) -> int:
        """The elements of a window, of one group."""
        return math.prod(self.w.shape[:3])

    @property
    def slim(self) -> bool:
        """Whether each group has one channel."""
        return self.w.shape[2] == 1 < self.groups

    @property
    def plain(self) -> bool:
        """Whether the windows are the pixels of images in C order."""
        alone = self.w.shape[:2] == self.stride == (1, 1) and self.padding == ((0, 0), (0, 0))
        return alone and row_major([self.x])

    def words(self) -> list[int]:
        """The words of `PARAMETERS`."""
        per_axis = [self.stride, [before for before, _ in self.padding], self.dilation]
        sizes = [
            *self.x.shape[1:3],
            *self.y.shape[1:3],
            *self.w.shape[:2],
            *(n for both in per_axis for n in both),
        ]
        return [*sizes, self.w.shape[2], self.w.shape[3] // self.groups]

    def number(self, n: int) -> str:
        """The type of the numbers of n elements, of pixels, and of places on an axis, padding and strides included."""
        reach = max(self.x.shape[1:3]) + max(before for before, _ in self.padding)
        return index_type(max(n, self.pixels, reach, *self.stride))

    def launch(self, name: str, n: int, source: tuple[Any, ...], words: Sequence[Word]) -> Launch:
        """The kernel of that name for n elements; `words` are those before n, which `PARAMETERS` follow."""
        text = _source(name, self.number(n), *source)
        return Launch(f"{name}_kernel", text, grid(n), THREADS, (*words, n, *self.words()))


# The texts. `x`, `w` and `y` are arrays of any strides, `rows` are windows: (groups, pixels, kh, kw, c).

PARAMETERS = [
    f"long long {name}"
    for name in ("height", "width", "oh", "ow", "kh", "kw", "sy", "sx", "py", "px", "dy", "dx", "c", "og")
]


def _coordinates(*axes: tuple[str, str]) -> list[str]:
    """The coordinates of element i along axes (name, size), the last ones first; the first size is not looked at."""
    lines = ["index_t left = i;"]
    for name, size in axes[:0:-1]:
        lines += [f"const long long {name} = left % (index_t)({size});", f"left /= (index_t)({size});"]
    return [*lines, f"const long long {axes[0][0]} = left;"]


def _at(name: str, *coordinates: str) -> str:
    """The text of an element of an array of any strides."""
    return f"{name}[{' + '.join(f'({at}) * {name}_s{axis}' for axis, at in enumerate(coordinates))}]"


_OF_PIXEL = [
    "const long long ox = p % (index_t)ow;",
    "const long long oy = p / (index_t)ow % (index_t)oh;",
    "const long long image = p / ((index_t)ow * (index_t)oh);",
]
_SEEN = [
    "const long long v = oy * sy + ky * dy - py, u = ox * sx + kx * dx - px;",
    "const bool inside = v >= 0 && v < height && u >= 0 && u < width;",
]
# The output pixel of which a tap sees place `at` of an axis, if there is one.
_SEER = (
    "const long long {a} = {at} + p{x} - k{x} * d{x};",
    "if ({a} < 0 || (index_t){a} % (index_t)s{x}) continue;",
    "const long long o{x} = (index_t){a} / (index_t)s{x};",
    "if (o{x} >= {n}) continue;",
)


def _seer(x: str, a: str, at: str, n: str) -> list[str]:
    return [line.format(x=x, a=a, at=at, n=n) for line in _SEER]


def _windows(t: str, lanes: int) -> tuple[list[str], list[str]]:
    """Windows of `count` output pixels from `first` on; a thread writes some channels of one tap."""
    body = _coordinates(("g", ""), ("q", "count"), ("ky", "kh"), ("kx", "kw"), ("lane", f"c / {lanes}"))
    body += ["const index_t p = q + first;", *_OF_PIXEL, *_SEEN]
    seen = _at("x", "image", "v", "u", f"g * c + lane * {lanes} + j")
    to = f"rows[(long long)i * {lanes} + j]"
    body.append(f"for (int j = 0; j < {lanes}; ++j) {to} = inside ? {seen} : {t}(0);")
    return [f"{t}* rows", f"const {t}* x", *_strides("x"), "long long first", "long long count"], body


def _gather(t: str, lanes: int) -> tuple[list[str], list[str]]:
    """Adds up, for every pixel of the images from number `start` on, the windows that see it."""
    body = _coordinates(("n0", ""), ("v", "height"), ("u", "width"), ("lane", f"channels / {lanes}"))
    body += [
        f"const long long image = n0 + start, g = lane * {lanes} / c, channel = lane * {lanes} % c;",
        f"double sum[{lanes}];",
        # What earlier blocks of pixels have seen of this image is there already.
        f"for (int j = 0; j < {lanes}; ++j)",
        f"    sum[j] = first > image * oh * ow ? (double)x[(long long)i * {lanes} + j] : 0.0;",
        "for (long long ky = 0; ky < kh; ++ky) {",
        *_seer("y", "a", "v", "oh"),
        "for (long long kx = 0; kx < kw; ++kx) {",
        *_seer("x", "b", "u", "ow"),
        "const long long q = (image * oh + oy) * ow + ox - first;",
        "if (q < 0 || q >= count) continue;",
        f"const {t}* from = rows + (((g * count + q) * kh + ky) * kw + kx) * c + channel;",
        f"for (int j = 0; j < {lanes}; ++j) sum[j] += from[j];",
        "} }",
        f"for (int j = 0; j < {lanes}; ++j) x[(long long)i * {lanes} + j] = ({t})sum[j];",
    ]
    parameters = [f"{t}* x", f"const {t}* rows", "long long channels", "long long start"]
    return [*parameters, "long long first", "long long count"], body


def _slim(t: str, lanes: int) -> tuple[list[str], list[str]]:
    """One number of the convolution's result."""
    body = _coordinates(("image", ""), ("oy", "oh"), ("ox", "ow"), ("o", "og * groups"))
    body += [
        "const long long g = o / og;",
        "double sum = 0;",
        "for (long long ky = 0; ky < kh; ++ky) for (long long kx = 0; kx < kw; ++kx) {",
        *_SEEN,
        "for (long long k = 0; k < c; ++k) {",
        f"const double seen = inside ? (double){_at('x', 'image', 'v', 'u', 'g * c + k')} : 0.0;",
        f"sum += seen * {_at('w', 'ky', 'kx', 'k', 'o')};",
        "}",
        f"}} y[i] = ({t})sum;",
    ]
    arrays = [f"{t}* y", f"const {t}* x", f"const {t}* w", *_strides("x"), *_strides("w")]
    return [*arrays, "long long groups"], body


def _slim_transpose(t: str, lanes: int) -> tuple[list[str], list[str]]:
    """One number of the transposed convolution's result."""
    body = _coordinates(("image", ""), ("v", "height"), ("u", "width"), ("channel", "c * groups"))
    body += [
        "const long long g = channel / c, k = channel % c;",
        "double sum = 0;",
        "for (long long ky = 0; ky < kh; ++ky) {",
        *_seer("y", "a", "v", "oh"),
        "for (long long kx = 0; kx < kw; ++kx) {",
        *_seer("x", "b", "u", "ow"),
        "for (long long o = g * og; o < g * og + og; ++o)",
        f"    sum += (double){_at('y', 'image', 'oy', 'ox', 'o')} * {_at('w', 'ky', 'kx', 'k', 'o')};",
        f"}} }} x[i] = ({t})sum;",
    ]
    arrays = [f"{t}* x", f"const {t}* y", f"const {t}* w", *_strides("y"), *_strides("w")]
    return [*arrays, "long long groups"], body


def _slim_weight(t: str, lanes: int) -> tuple[list[str], list[str]]:
    """One weight's sum over `chunk` output pixels."""
    body = _coordinates(("part", ""), ("ky", "kh"), ("kx", "kw"), ("k", "c"), ("o", "og * groups"))
    body += [
        "const index_t begin = part * chunk, rest = pixels - begin;",
        "const index_t end = begin + (rest < (index_t)chunk ? rest : (index_t)chunk);",
        "double sum = 0;",
        "for (index_t p = begin; p < end; ++p) {",
        *_OF_PIXEL,
        *_SEEN,
        f"const double seen = inside ? (double){_at('x', 'image', 'v', 'u', 'o / og * c + k')} : 0.0;",
        f"sum += seen * {_at('y', 'image', 'oy', 'ox', 'o')};",
        "} parts[i] = sum;",
    ]
    arrays = ["double* parts", f"const {t}* x", f"const {t}* y", *_strides("x"), *_strides("y")]
    return [*arrays, "long long groups", "long long pixels", "long long chunk"], body


def _strides(name: str) -> list[str]:
    return [f"long long {name}_s{axis}" for axis in range(4)]


_TEXTS = {
    "conv_windows": _windows,
    "conv_gather": _gather,
    "conv_slim": _slim,
    "conv_transpose_slim": _slim_transpose,
    "conv_weight_slim": _slim_weight,
}


@functools.lru_cache(maxsize=256)
def _source(name: str, index: str, t: str, lanes: int = 1) -> str:
    parameters, body = _TEXTS[name](t, lanes)
    return kernel(f"{name}_kernel", [*parameters, "long long n", *PARAMETERS], [], body, index)


@functools.lru_cache(maxsize=16)
def _total_source(part: str, t: str, index: str) -> str:
    """The sum of the parts of a matrix; a round that is not the last leaves it in `total` for the next."""
    body = [
        "double sum = begins ? 0.0 : total[i];",
        "for (long long k = 0; k < count; ++k) sum += parts[k * n + i];",
        "if (ends)",
        f"    w[(long long)(i / (index_t)columns) * row + i % (index_t)columns] = ({t})sum;",
        "else",
        "    total[i] = sum;",
    ]
    names = ("count", "begins", "ends", "columns", "row")
    parameters = [f"const {part}* parts", "double* total", f"{t}* w", "long long n"]
    return kernel(
        "conv_total_kernel", [*parameters, *(f"long long {name}" for name in names)], [], body, index
    )


# The plans


def _steps(x: Spec) -> list[int]:
    return [step // x.dtype.itemsize for step in x.strides]


def _lanes(n: int) -> int:
    return LANES if n % LANES == 0 else 1


def _weights(w: Spec) -> tuple[list[Step], Place]:
    """The weights, input 1, in C order: themselves or a copy."""
    if row_major([w]):
        return [], Operand(1)
    launch, _, place = copied(w, Operand(1), 1)
    return [launch], place


def _of_pixels(y: Spec, groups: int) -> _Triad:
    """The convolution by one tap, whose windows are the pixels of y."""
    taps = dense((1, 1, y.shape[3] // groups, groups), y.dtype)
    return _Triad(y, taps, y, (1, 1), ((0, 0), (0, 0)), (1, 1), groups)


def _blocks(at: _Triad, item: int) -> Iterator[Pair]:
    """Output pixels whose windows are laid out together: the first, and how many."""
    most = max(1, BLOCK // (at.row * at.groups * item))
    size = -(-at.pixels // -(-at.pixels // most))
    return ((first, min(size, at.pixels - first)) for first in range(0, at.pixels, size))


def _laid_out(
    at: _Triad, number: int, first: int, count: int, groups: int, group: int, room: Scratch
) -> tuple[list[Step], Factor]:
    """The windows of some output pixels and groups of input `number`, the images, as a factor."""
    t, item, c = type_of(at.x.dtype), at.x.dtype.itemsize, at.w.shape[2]
    channels = at.x.shape[3]
    if at.plain:
        return [], Factor(Operand(number, (first * channels + group * c) * item), channels, 1, c)
    lanes = _lanes(c)
    x = Operand(number, group * c * at.x.strides[3])
    words: list[Word] = [room, x, *_steps(at.x), first, count]
    launch = at.launch("conv_windows", groups * count * at.row // lanes, (t, lanes), words)
    return [launch], Factor(room, at.row, 1, count * at.row)


def conv(outs: Sequence[Spec], inputs: Sequence[Spec], groups: int, **where: Any) -> Plan:
    """The plan of the convolution of images with weights."""
    (y,), (x, w) = outs, inputs
    at = _Triad(x, w, y, groups=groups, **where)
    t, item = type_of(y.dtype), y.dtype.itemsize
    if not math.prod(y.shape):
        return []
    if not at.row:
        return [zeros(y)]
    if at.slim:
        words: list[Word] = [Result(0), Operand(0), Operand(1), *_steps(x), *_steps(w), groups]
        return [at.launch("conv_slim", math.prod(y.shape), (t,), words)]
    plan, weights = _weights(w)
    out, of_group = y.shape[3], y.shape[3] // groups
    blocks = list(_blocks(at, item))
    room = Scratch(0, blocks[0][1] * at.row * groups * item)
    for first, count in blocks:
        steps, a = _laid_out(at, 0, first, count, groups, 0, room)
        b, c = Factor(weights, out, 1, of_group), Factor(Result(0, first * out * item), out, 1, of_group)
        plan += [*steps, product(t, (count, of_group, at.row), a, b, c, groups)]
    return plan


def conv_transpose(
    outs: Sequence[Spec], inputs: Sequence[Spec], shape: Pair, groups: int, **where: Any
) -> Plan:
    """The plan of the adjoint in the images."""
    (x,), (y, w) = outs, inputs
    at = _Triad(x, w, y, groups=groups, **where)
    t, item = type_of(x.dtype), x.dtype.itemsize
    if not math.prod(x.shape):
        return []
    if not math.prod(y.shape) or not at.row:
        return [zeros(x)]
    words: list[Word]
    if at.slim:
        words = [Result(0), Operand(0), Operand(1), *_steps(y), *_steps(w), groups]
        return [at.launch("conv_transpose_slim", math.prod(x.shape), (t,), words)]
    plan, weights = _weights(w)
    out, of_group, channels = y.shape[3], y.shape[3] // groups, x.shape[3]
    blocks = list(_blocks(at, item))
    pixels, seen = Scratch(0, blocks[0][1] * out * item), Scratch(2, blocks[0][1] * at.row * groups * item)
    pixel, of_image, lanes = math.prod(x.shape[1:]), math.prod(y.shape[1:3]), _lanes(w.shape[2])
    for first, count in blocks:
        steps, a = _laid_out(_of_pixels(y, groups), 0, first, count, groups, 0, pixels)
        b, c = Factor(weights, 1, out, of_group), Factor(seen, at.row, 1, count * at.row)
        if at.plain:
            c = Factor(Result(0, first * channels * item), channels, 1, w.shape[2])
        plan += [*steps, product(t, (count, at.row, of_group), a, b, c, groups)]
        if not at.plain:
            start, end = first // of_image, -(-(first + count) // of_image)
            images = Result(0, start * pixel * item)
            words = [images, seen, channels, start, first, count]
            plan.append(at.launch("conv_gather", (end - start) * pixel // lanes, (t, lanes), words))
    return plan


def conv_weight(
    outs: Sequence[Spec], inputs: Sequence[Spec], kernel: Pair, groups: int, **where: Any
) -> Plan:
    """The plan of the adjoint in the weights."""
    (w,), (x, y) = outs, inputs
    at = _Triad(x, w, y, groups=groups, **where)
    t, item, n = type_of(w.dtype), w.dtype.itemsize, math.prod(w.shape)
    if not n:
        return []
    if not at.pixels:
        return [zeros(w)]
    out, of_group = y.shape[3], y.shape[3] // groups
    if at.slim:
        chunk = max(CHUNK, -(-at.pixels // max(1, PARTS // (8 * n))))
        count = -(-at.pixels // chunk)
        parts = Scratch(0, count * n * 8)
        words: list[Word] = [parts, Operand(0), Operand(1), *_steps(x), *_steps(y), groups, at.pixels, chunk]
        total = _total("float64", t, (parts, parts, Result(0)), n, count, (True, True), (out, out))
        return [at.launch("conv_weight_slim", count * n, (t,), words), total]
    plan: list[Step] = []
    size = at.row * of_group  # of a group's weights
    blocks = list(_chunks(at, item))
    most = blocks[0][1] * blocks[0][2]
    windows, pixels, parts = (
        Scratch(number, each * item)
        for number, each in enumerate((most * at.row, most * of_group, blocks[0][2] * size))
    )
    total_so_far = Scratch(3, size * 8) if len(blocks) > 1 else parts
    for group in range(groups):
        for first, chunk, count in blocks:
            laid_out, a = _laid_out(at, 0, first, chunk * count, 1, group, windows)
            beside, b = _laid_out(_of_pixels(y, groups), 1, first, chunk * count, 1, group, pixels)
            plan += [*laid_out, *beside]
            a, b = Factor(a.place, 1, a.row, chunk * a.row), b._replace(stack=chunk * b.row)
            plan.append(product(t, (at.row, of_group, chunk), a, b, Factor(parts, of_group, 1, size), count))
            ends = first == 0, first + chunk * count == at.pixels
            places = parts, total_so_far, Result(0, group * of_group * item)
            plan.append(_total(t, t, places, size, count, ends, (of_group, out)))
    return plan


def _chunks(at: _Triad, item: int) -> Iterator[tuple[int, int, int]]:
    """Blocks of output pixels: the first, the pixels in a chunk, and the number of chunks."""
    # Chunks of one size if possible: what is left over is a block of its own.
    size = next((n for n in range(CHUNK, CHUNK // 2, -1) if at.pixels % n == 0), min(CHUNK, at.pixels))
    of_group = at.w.shape[3] // at.groups
    most = max(1, min(BLOCK // (size * at.row * item), PARTS // (at.row * of_group * item)))
    chunks = at.pixels // size
    for first in range(0, chunks, most):
        yield first * size, size, min(most, chunks - first)
    if at.pixels % size:
        yield chunks * size, at.pixels % size, 1


def _total(
    part: str,
    t: str,
    places: tuple[Scratch, Scratch, Result],
    n: int,
    count: int,
    ends: tuple[bool, bool],
    columns: Pair,
) -> Launch:
    """Add parts of n weights to the total of earlier rounds, unless this begins them, and write it if it ends them.

    columns: of a part, and of all weights.
    """
    words = (*places, n, count, int(ends[0]), int(ends[1]), *columns)
    return Launch("conv_total_kernel", _total_source(part, t, index_type(n)), grid(n), THREADS, words)
