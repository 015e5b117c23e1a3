"""Convolution and its two adjoints: three bilinear operations, each of which the derivatives of the other two are.

With stride s, dilation d and a padding of p pixels before the first, a convolution is, along each spatial axis,

    y[n, i, o] = Σ_k Σ_c x[n, s i + d k - p, c] w[k, c, o],    where x is 0 outside of the image

(the cross-correlation of the textbooks). <y, conv(x, w)> is linear in each of x, w and y; the gradients of this one
number are the three operations: in y the convolution, in x the transposed convolution, in w the weight gradient.

Images are (N, H, W, C), weights (kh, kw, C / groups, O): group k of the input channels gives the O / groups consecutive
output channels of group k. A sequence (N, W, C) is an image of height 1.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minigan.backend import Array, Spec
from minigan.cuda import conv as on_gpu
from minigan.errors import DTypeError, ShapeError
from minigan.kernels.conv import row
from minigan.kernels.rows import run
from minigan.linear import MANY_TERMS, integer
from minigan.ops.shape import pad
from minigan.pointwise import check_float
from minigan.tape import Input, Primitive, Sample, Thunk, apply
from minigan.tensor import Tensor, TensorLike, pair

Pair = tuple[int, int]
PerAxis = int | Sequence[int]
Padding = str | int | Sequence[int | Sequence[int]]
AXES = ("height", "width")  # a sequence has only a width

# Windows: what an output pixel sees of the image

# Bytes of windows that are laid out at a time, so that they are still in a cache of 2 MB when they are multiplied.
BLOCK = 1 << 20


class _Grid(NamedTuple):
    """Where the windows of a convolution lie. Each output pixel sees one, each tap of the kernel a pixel of each."""

    kernel: Pair
    outputs: Pair
    stride: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair

    def reach(self) -> tuple[int, ...]:
        """Height and width of the frame: all that windows see, from the first row of padding on."""
        axes = zip(self.kernel, self.outputs, self.stride, self.dilation, strict=True)
        return tuple((n - 1) * s + d * (k - 1) + 1 for k, n, s, d in axes)

    def seen(self, shape: Sequence[int]) -> tuple[Any, Any]:
        """The part of an image (N, *shape, C) that windows see, and its place in the frame, as keys."""
        image, place = [slice(None)], [slice(None)]
        for n, reach, (before, _) in zip(shape, self.reach(), self.padding, strict=True):
            size = max(min(n, reach - before), 0)  # less than n where the last stride falls short of the end
            image.append(slice(size))
            place.append(slice(before, before + size))
        return tuple(image), tuple(place)

    def frame(self, x: Array) -> Array:
        """What windows see of the images x, with zeros for the padding."""
        image, place = self.seen(x.shape[1:3])
        part: Array = x[image]
        if part.shape[1:3] == self.reach():
            return part
        frame = np.zeros((len(x), *self.reach(), x.shape[3]), x.dtype)
        frame[place] = part
        return frame

    def windows(self, frame: Array, groups: int) -> Array:
        """A view (n, outputs, kernel, groups, c) of a frame (n, reach, C): one pixel is in several windows."""
        n, _, _, channels = frame.shape
        image, row, column, channel = frame.strides
        (sy, sx), (dy, dx) = self.stride, self.dilation
        c = channels // groups
        steps = (image, sy * row, sx * column, dy * row, dx * column, c * channel, channel)
        return as_strided(frame, (n, *self.outputs, *self.kernel, groups, c), steps)

    def blocks(self, images: int, window_bytes: int) -> Iterator[tuple[slice, list[tuple[slice, slice]]]]:
        """Slices of images, each with tiles (rows, columns) of outputs: several images at a time, or a part of one."""
        height, width = self.outputs
        # The gradient of a weight is the sum over the windows of a block, in float32.
        pixels = max(min(BLOCK // max(window_bytes, 1), MANY_TERMS), 1)
        rows, columns = max(pixels // width, 1), min(pixels, width)
        tiles = [
            (slice(i, i + rows), slice(j, j + columns))
            for i in range(0, height, rows)
            for j in range(0, width, columns)
        ]
        many = max(pixels // (height * width), 1)
        return ((slice(n, n + many), tiles) for n in range(0, images, many))

    def matrices(self, x: Array, groups: int) -> Iterator[tuple[tuple[slice, slice, slice], Array]]:
        """For every block of output pixels its windows as rows of matrices: (groups, pixels, kh · kw · C / groups)."""
        channels, (kh, kw) = x.shape[3], self.kernel
        for images, tiles in self.blocks(len(x), kh * kw * channels * x.itemsize):
            windows = self.windows(self.frame(x[images]), groups)
            for tile in tiles:
                part = windows[:, *tile]
                c = channels // groups
                flat = part.reshape(math.prod(part.shape[:3]), kh * kw, groups, c)
                yield (images, *tile), flat.transpose(2, 0, 1, 3).reshape(groups, len(flat), kh * kw * c)


def _by_group(w: Array, groups: int) -> Array:
    """Weights (kh, kw, c, O) as matrices (groups, kh · kw · c, O / groups)."""
    kh, kw, c, out = w.shape
    return np.moveaxis(w.reshape(kh * kw * c, groups, out // groups), 1, 0)


def _pixels(y: Array, groups: int) -> Array:
    """Outputs (n, rows, columns, O) as matrices (groups, pixels, O / groups)."""
    n, rows, columns, out = y.shape
    return np.moveaxis(y.reshape(n * rows * columns, groups, out // groups), 1, 0)


def _product(groups: int, c: int) -> Callable[[Array, Array], Array]:
    """How to multiply stacks of matrices, one for each group of c channels."""
    # Those of one channel a group are slim, with the groups innermost in memory: BLAS would need copies of them, and
    # took 3 times as long as a plain loop.
    return partial(np.einsum, "gij,gjk->gik") if c == 1 < groups else np.matmul


def _compiled(kind: str, arrays: Sequence[Array], result: int, **attributes: Any) -> bool:
    """Compute one of x, w and y, the one of that number, from the others by compiled code, if there is any."""
    arrays = [np.ascontiguousarray(a) for a in arrays]
    x, w, y = arrays
    plan = row(kind, x, w, y, 1, **attributes)
    if plan is not None:
        inputs = [a for k, a in enumerate(arrays) if k != result]
        run(plan, [arrays[result]], inputs if kind != "conv_transpose" else inputs[::-1])
    return plan is not None


# The triad. Attributes of all three: stride, padding, dilation (see `_Grid`) and groups.


def output_size(
    name: str, axis: str, size: int, kernel: int, stride: int, padding: Pair, dilation: int = 1
) -> int:
    """How many windows fit on an axis; `ShapeError` with the arithmetic if none does."""
    before, after = padding
    extent = dilation * (kernel - 1) + 1
    if size + before + after < extent:
        raise ShapeError(
            f"{name}: {axis} {size} + padding {before} + {after} is smaller than the kernel's extent"
            f" {dilation}*({kernel}-1)+1 = {extent}"
        )
    return (size + before + after - extent) // stride + 1


def _outputs(
    name: str, shape: Sequence[int], kernel: Sequence[int], stride: Pair, padding: Any, dilation: Pair
) -> Pair:
    axes = zip(AXES, shape, kernel, stride, padding, dilation, strict=True)
    height, width = (output_size(name, *axis) for axis in axes)
    return height, width


def _check(name: str, one: Array, other: Array) -> None:
    check_float(name, one)
    check_float(name, other)
    if one.dtype != other.dtype:
        raise DTypeError(f"{name}: dtypes {one.dtype} and {other.dtype} differ: use .astype")


def _check_groups(name: str, inputs: int, outputs: int, groups: int) -> None:
    for what, channels in (("input", inputs), ("output", outputs)):
        if channels % groups:
            raise ShapeError(f"{name}: {channels} {what} channels do not divide into {groups} groups")


def _conv_infer(x: Array, w: Array, groups: int, **where: Any) -> Sequence[Spec]:
    _check("conv", x, w)
    kh, kw, c, out = w.shape
    _check_groups("conv", x.shape[3], out, groups)
    if x.shape[3] // groups != c:
        raise ShapeError(
            f"conv: {x.shape[3]} input channels / {groups} groups = {x.shape[3] // groups}, the weights have {c}"
        )
    return (((len(x), *_outputs("conv", x.shape[1:3], (kh, kw), **where), out), x.dtype),)


def _conv_kernel(outs: Sequence[Array], x: Array, w: Array, groups: int, **where: Any) -> None:
    y = outs[0]
    if _compiled("conv", (x, w, y), 2, groups=groups, **where):
        return
    grid = _Grid(w.shape[:2], y.shape[1:3], **where)
    product, weights = _product(groups, w.shape[2]), _by_group(w, groups)
    for block, windows in grid.matrices(x, groups):
        y[block] = np.moveaxis(product(windows, weights), 0, 1).reshape(y[block].shape)


def _transpose_infer(y: Array, w: Array, shape: Pair, groups: int, **where: Any) -> Sequence[Spec]:
    _check("conv_transpose", y, w)
    kh, kw, c, out = w.shape
    if y.shape[3] != out:
        raise ShapeError(f"conv_transpose: {y.shape[3]} input channels, the weights have {out}")
    _check_groups("conv_transpose", out, c * groups, groups)
    _check_outputs("conv_transpose", y, _outputs("conv_transpose", shape, (kh, kw), **where))
    return (((len(y), *shape, c * groups), y.dtype),)


def _check_outputs(name: str, y: Array, size: Pair) -> None:
    if y.shape[1:3] != size:
        raise ShapeError(f"{name}: the convolution's result is {size}, not {y.shape[1:3]} pixels")


def _transpose_kernel(
    outs: Sequence[Array], y: Array, w: Array, shape: Pair, groups: int, **where: Any
) -> None:
    x = outs[0]
    if _compiled("conv_transpose", (x, w, y), 0, groups=groups, **where):
        return
    kh, kw, c, _ = w.shape
    grid = _Grid((kh, kw), y.shape[1:3], **where)
    product, weights = _product(groups, c), _by_group(w, groups).mT
    image, place = grid.seen(shape)
    x.fill(0)
    for images, tiles in grid.blocks(len(y), kh * kw * c * groups * y.itemsize):
        frame = np.zeros((len(y[images]), *grid.reach(), c * groups), y.dtype)
        windows = grid.windows(frame, groups)
        for tile in tiles:
            part = y[images, *tile]
            terms = product(_pixels(part, groups), weights).reshape(groups, *part.shape[:3], kh, kw, c)
            seen = windows[:, *tile]
            for k, j in np.ndindex(kh, kw):  # through one tap no two windows see the same pixel
                seen[:, :, :, k, j] += np.moveaxis(terms[..., k, j, :], 0, 3)
        x[images][image] = frame[place]


def _weight_infer(x: Array, y: Array, kernel: Pair, groups: int, **where: Any) -> Sequence[Spec]:
    _check("conv_weight", x, y)
    _check_groups("conv_weight", x.shape[3], y.shape[3], groups)
    if len(x) != len(y):
        raise ShapeError(f"conv_weight: {len(x)} images in, {len(y)} images out")
    _check_outputs("conv_weight", y, _outputs("conv_weight", x.shape[1:3], kernel, **where))
    return (((*kernel, x.shape[3] // groups, y.shape[3]), x.dtype),)


def _weight_kernel(
    outs: Sequence[Array], x: Array, y: Array, kernel: Pair, groups: int, **where: Any
) -> None:
    w = outs[0]
    if _compiled("conv_weight", (x, w, y), 1, groups=groups, **where):
        return
    grid = _Grid(kernel, y.shape[1:3], **where)
    product = _product(groups, w.shape[2])
    # There may be any number of blocks.
    total = np.zeros(_by_group(w, groups).shape, np.float64)
    for block, windows in grid.matrices(x, groups):
        total += product(windows.mT, _pixels(y[block], groups))
    np.copyto(w, np.moveaxis(total, 0, 1).reshape(w.shape), casting="same_kind")


def _conv_vjp(gy: Any, y: Any, x: Any, w: Any, **where: Any) -> Sequence[Thunk]:
    return (
        lambda: apply(CONV_TRANSPOSE, gy, w, shape=x.shape[1:3], **where),
        lambda: apply(CONV_WEIGHT, x, gy, kernel=w.shape[:2], **where),
    )


def _transpose_vjp(gx: Any, x: Any, y: Any, w: Any, shape: Pair, **where: Any) -> Sequence[Thunk]:
    return (
        lambda: apply(CONV, gx, w, **where),
        lambda: apply(CONV_WEIGHT, gx, y, kernel=w.shape[:2], **where),
    )


def _weight_vjp(gw: Any, w: Any, x: Any, y: Any, kernel: Pair, **where: Any) -> Sequence[Thunk]:
    return (
        lambda: apply(CONV_TRANSPOSE, y, gw, shape=x.shape[1:3], **where),
        lambda: apply(CONV, x, gw, **where),
    )


class _Example(NamedTuple):
    """Shapes that fit together, from which each of the three takes its samples."""

    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    y: tuple[int, int, int, int]
    stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1

    def sample(self, one: str, other: str, **attributes: Any) -> Sample:
        where = {name: getattr(self, name) for name in ("stride", "padding", "dilation", "groups")}
        return Sample((Input(getattr(self, one)), Input(getattr(self, other))), where | attributes)


_EXAMPLES = (
    _Example((1, 2, 2, 1), (2, 1, 1, 1), (1, 1, 2, 1)),
    # The fourth row is not reached.
    _Example((1, 4, 3, 2), (2, 2, 1, 2), (1, 2, 2, 2), (2, 1), ((1, 0), (0, 1)), (1, 2), 2),
    _Example((1, 2, 2, 4), (1, 2, 2, 2), (1, 2, 2, 2), padding=((0, 0), (0, 1)), groups=2),
    # The first row of windows sees nothing but padding.
    _Example((2, 1, 2, 1), (1, 1, 1, 1), (2, 2, 2, 1), (2, 2), ((2, 0), (1, 0))),
    _Example((0, 3, 3, 1), (2, 2, 1, 2), (0, 2, 2, 2)),
)

CONV: Primitive = Primitive(
    "conv",
    _conv_infer,
    kernel=_conv_kernel,
    vjp=_conv_vjp,
    linear=(0, 1),
    smooth=True,
    flops=lambda x, w, **where: 2 * math.prod(w.shape[:3]) * math.prod(_conv_infer(x, w, **where)[0][0]),
    samples=tuple(e.sample("x", "w") for e in _EXAMPLES),
    row=lambda outs, inputs, parts, **where: row("conv", inputs[0], inputs[1], outs[0], parts, **where),
    cuda=on_gpu.conv,
)
CONV_TRANSPOSE: Primitive = Primitive(
    "conv_transpose",
    _transpose_infer,
    kernel=_transpose_kernel,
    vjp=_transpose_vjp,
    linear=(0, 1),
    smooth=True,
    flops=lambda y, w, **where: 2 * math.prod(w.shape[:3]) * y.size,
    samples=tuple(e.sample("y", "w", shape=e.x[1:3]) for e in _EXAMPLES),
    row=lambda outs, inputs, parts, shape, **where: row(
        "conv_transpose", outs[0], inputs[1], inputs[0], parts, **where
    ),
    cuda=on_gpu.conv_transpose,
)
CONV_WEIGHT: Primitive = Primitive(
    "conv_weight",
    _weight_infer,
    kernel=_weight_kernel,
    vjp=_weight_vjp,
    linear=(0, 1),
    smooth=True,
    flops=lambda x, y, **where: 2 * math.prod(_weight_infer(x, y, **where)[0][0][:3]) * y.size,
    samples=tuple(e.sample("x", "y", kernel=e.w[:2]) for e in _EXAMPLES),
    row=lambda outs, inputs, parts, kernel, **where: row(
        "conv_weight", inputs[0], outs[0], inputs[1], parts, **where
    ),
    cuda=on_gpu.conv_weight,
)


# What users call: one or two spatial axes, which become the two of the triad


def spatial(name: str, x: Array) -> tuple[int, ...]:
    """The sizes of the spatial axes of (N, W, C) or (N, H, W, C); `ShapeError` for any other number of axes."""
    check_float(name, x)
    if x.ndim not in (3, 4):
        raise ShapeError(f"{name}: x has shape {x.shape}, expected (N, W, C) or (N, H, W, C)")
    sizes: tuple[int, ...] = x.shape[1:-1]
    return sizes


def per_axis(name: str, what: str, value: PerAxis, axes: int, least: int = 1) -> tuple[int, ...]:
    """One integer for each spatial axis; `ShapeError` for any other number of them, or one below `least`."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(values) != axes:
        raise ShapeError(f"{name}: {what} {value!r} has {len(values)} entries, expected {axes}")
    numbers = tuple(integer(name, what, v) for v in values)
    if min(numbers) < least:
        raise ShapeError(f"{name}: {what} {value!r}: expected at least {least}")
    return numbers


def paddings(name: str, value: Padding, totals: Sequence[int]) -> tuple[Pair, ...]:
    """The padding (before, after) of each spatial axis; "SAME" shares out the `totals`, the odd one to the end."""
    if value == "SAME":
        return tuple((n // 2, n - n // 2) for n in totals)
    if isinstance(value, str):
        raise ShapeError(f'{name}: padding {value!r}: expected numbers or "SAME"')
    entries: Any = value if isinstance(value, Sequence) else (value,) * len(totals)
    if len(entries) != len(totals):
        raise ShapeError(
            f"{name}: padding {value!r} has {len(entries)} entries, expected {len(totals)}, numbers or pairs"
        )
    pairs = (per_axis(name, "padding", entry, 2, 0) for entry in entries)
    return tuple((before, after) for before, after in pairs)


def same_totals(
    sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """The padding of each axis with which ceil(size / stride) windows fit."""
    axes = zip(sizes, kernel, stride, dilation, strict=True)
    return [max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0) for n, k, s, d in axes]


class _Layout(NamedTuple):
    """The arguments of a convolution that were checked, for as many spatial axes as there are."""

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def _layout(name: str, x: Tensor, w: Tensor, stride: PerAxis, dilation: PerAxis, groups: int) -> _Layout:
    sizes = spatial(name, x.array)
    if w.ndim != x.ndim:
        raise ShapeError(
            f"{name}: weights of shape {w.shape} for x of shape {x.shape}: expected {x.ndim} axes"
        )
    kernel = per_axis(name, "kernel", w.shape[:-2], len(sizes))
    strides = per_axis(name, "stride", stride, len(sizes))
    dilations = per_axis(name, "dilation", dilation, len(sizes))
    (groups,) = per_axis(name, "groups", groups, 1)
    return _Layout(sizes, kernel, strides, dilations, groups)


def _planar(x: Tensor) -> Tensor:
    return x if x.ndim == 4 else x.reshape((x.shape[0], 1, *x.shape[1:]))


def _apply(primitive: Primitive, x: Tensor, w: Tensor, at: _Layout, padding: Any, **more: Any) -> Tensor:
    """Call the primitive on one or two spatial axes."""
    alone = len(at.sizes) == 1
    result: Tensor = apply(
        primitive,
        _planar(x),
        w.reshape((1, *w.shape)) if alone else w,
        stride=(1, *at.stride)[-2:],
        padding=((0, 0), *padding)[-2:],
        dilation=(1, *at.dilation)[-2:],
        groups=at.groups,
        **more,
    )
    return result.reshape((result.shape[0], *result.shape[2:])) if alone else result


def conv(
    x: TensorLike,
    w: TensorLike,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
) -> Tensor:
    """The convolution of images with a kernel, channels last: y[n, i, o] = Σ x[n, s i + d k - p, c] w[k, c, o].

    Args:
        x: (N, H, W, C), or (N, W, C) for sequences; float32 or float64.
        w: (kh, kw, C / groups, O), or (kw, C / groups, O).
        stride: s, one for all spatial axes or one for each; at least 1.
        padding: p, zeros on both sides of each axis; or one entry for each axis, a number or a pair (before, after); or
            "SAME": as many as make the result ceil(size / stride), the odd one after.
        dilation: d, the distance of the kernel's taps; at least 1.
        groups: parts of the channels; part k of the result, O / groups channels, sees only part k of x.

    Returns: (N, OH, OW, O), OH = (H + padding - (d (kh - 1) + 1)) // s + 1.

    Raises: `ShapeError` with the arithmetic for what does not fit; `DTypeError` for integers and booleans.

    The kernel is not reflected. Derivatives of every order are made of this operation, the transposed convolution and
    the weights' gradient.

    >>> import minigan as mg
    >>> x, w = mg.tensor([[[1.0], [2.0], [4.0], [8.0]]]), mg.tensor([[[1.0]], [[-1.0]]])
    >>> mg.ops.conv(x, w).numpy().ravel()
    array([-1., -2., -4.], dtype=float32)
    >>> mg.ops.conv(x, w, stride=2, padding="SAME").shape
    (1, 2, 1)
    """
    x, w = pair(x, w)
    at = _layout("conv", x, w, stride, dilation, groups)
    totals = same_totals(at.sizes, at.kernel, at.stride, at.dilation)
    return _apply(CONV, x, w, at, paddings("conv", padding, totals))


def conv_transpose(
    x: TensorLike,
    w: TensorLike,
    stride: PerAxis = 1,
    padding: Padding = 0,
    output_padding: PerAxis = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
) -> Tensor:
    """The transposed convolution: every pixel of x adds the kernel, times its value, to a result s times as large.

    The adjoint of `conv` with the same weights and settings: <conv(a, w), x> = <a, conv_transpose(x, w)>.

    Args:
        x: (N, H, W, C), or (N, W, C) for sequences; float32 or float64.
        w: (kh, kw, O / groups, C), or (kw, O / groups, C): the weights of the convolution whose adjoint this is, from
            O channels to the C of x.
        stride, dilation, groups: those of that convolution.
        padding: that of the convolution, so it is cut off the result; "SAME" makes the result H s pixels high.
        output_padding: pixels more at the end, fewer than the stride or the dilation: convolutions with a stride give
            results of one size for images of several sizes.

    Returns: (N, OH, OW, O), OH = (H - 1) s - padding + d (kh - 1) + 1 + output_padding.

    Raises: `ShapeError` with the arithmetic for what does not fit; `DTypeError` for integers and booleans.

    >>> import minigan as mg
    >>> x, w = mg.tensor([[[1.0], [10.0]]]), mg.tensor([[[1.0]], [[2.0]], [[3.0]]])
    >>> mg.ops.conv_transpose(x, w, stride=2).numpy().ravel()
    array([ 1.,  2., 13., 20., 30.], dtype=float32)
    """
    x, w = pair(x, w)
    name = "conv_transpose"
    at = _layout(name, x, w, stride, dilation, groups)
    extents = [d * (k - 1) + 1 for k, d in zip(at.kernel, at.dilation, strict=True)]
    gaps = [s - extent for s, extent in zip(at.stride, extents, strict=True)]
    pads = paddings(name, padding, [max(-gap, 0) for gap in gaps])
    more = per_axis(name, "output_padding", output_padding, len(at.sizes), 0)
    if isinstance(padding, str):
        if any(more):
            raise ShapeError(
                f'{name}: output_padding {output_padding!r}, but padding "SAME" settles the size'
            )
        more = tuple(max(gap, 0) for gap in gaps)
    shape = []
    for axis, n, s, d, extent, (before, after), extra in zip(
        AXES[-len(extents) :], at.sizes, at.stride, at.dilation, extents, pads, more, strict=True
    ):
        if extra >= max(s, d):
            raise ShapeError(f"{name}: output_padding {extra} is not below stride {s} or dilation {d}")
        size = (n - 1) * s - before - after + extent + extra
        if size < 1:
            raise ShapeError(
                f"{name}: {axis} ({n}-1)*{s} - padding {before} - {after} + the kernel's extent {extent}"
                f" + output_padding {extra} = {size} is not positive"
            )
        shape.append(size)
    # Of output padding, each stride is a pixel more in the convolution's result, where x has none.
    missing = [(0, extra // s) for extra, s in zip(more, at.stride, strict=True)]
    if any(after for _, after in missing):
        x = pad(x, ((0, 0), *missing, (0, 0)))
    return _apply(CONV_TRANSPOSE, x, w, at, pads, shape=(1, *shape)[-2:])
