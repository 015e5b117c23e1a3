"""Convolution and its two gradients as rows of a machine: the tables for `minigan.kernels.indirect`.

What the compiled code needs to know of a convolution is worked out here, once for its shapes and attributes: how many
images make a block, where the numbers of a window lie, and the phases of a transposed convolution. Arrays are row-major
and of one dtype: x (N, H, W, C), w (kh, kw, C / groups, O), y (N, OH, OW, O).
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minigan.backend import Array
from minigan.kernels import launch, matrix
from minigan.kernels.objects import Kernel, own_kernel
from minigan.kernels.rows import Operand, Plan, Result, Scratch, Spec, row_major

# Bytes of images with their borders that are in the L2 cache at a time (from half to twice as many take as long, +-2 %;
# three times as many 4 % more), and how many rows of a product they may be at most, for which there are tables.
BLOCK_BYTES = 1 << 18
BLOCK_ROWS = 2048

Pair = tuple[int, int]


# Two depth-wise tiles have the 9 taps of a kernel of 3 x 3, whose weight gradient has a row for each.
DIAGONAL_ROWS = 5


@functools.cache
def widest() -> Pair:
    """Vectors and rows of the widest tile.

    It has as many sums as that of 8 x 3 but takes a tenth less loads: 4 to 10 % of a convolution's time where another
    thread runs on the same core, nothing where not. CPUs with 16 registers have no room for it.
    """
    _, rows, vectors = matrix.tile()
    return (4, 6) if rows == 8 else (vectors, rows)


class Head(NamedTuple):
    """The words that the table of a convolution begins with. Sizes and steps are in bytes, unless they are counts."""

    phases: int  # how many phases there are: the table goes on with them
    sums: int  # how many there are of the sums of a staged one, which come behind
    weight: int  # whether it is a weight gradient: a sum over all images
    images: int
    block: int  # images in a block
    pixels: int  # rows of the result that belong to an image, unless it is a weight gradient
    groups: int
    width: int  # columns of C in a group
    a_image: int  # from image to image of what A is of
    a_group: int
    a_column: int  # from column to column of C: not 0 if depth-wise
    b_image: int
    b_group: int
    b_row: int
    b_column: int
    c_image: int
    pack: int  # whether B is packed
    copy: int  # whether images are copied: otherwise A is read where it is
    copy_rows: int  # of an image
    copy_numbers: int  # in a row
    copy_row: int  # from row to row of what is copied
    to_first: int  # where in a block the first number goes
    to_row: int
    to_image: int
    clear: int  # numbers of a block that have to be zeros before
    part: int  # scratch memory of a part
    parts: int
    staged: int  # whether a block is of products that are not summed up yet


class Phase(NamedTuple):
    """The words of a phase, or of the sums of a staged one. Offsets of tables are in bytes from the first word."""

    rows: int  # of A that belong to an image
    depth: int  # how many terms a sum has; of a weight gradient, from one image
    taps: int  # pieces of B with a place of their own
    a_rows: int  # offsets of A's rows
    a_columns: int
    c_rows: int
    b_taps: int  # places of B's taps
    panels: int  # where in the scratch memory its packed panels begin


AT, OF = Head(*range(len(Head._fields))), Phase(*range(len(Phase._fields)))
HEAD, PHASE = 8 * len(AT), 8 * len(OF)


class Case(NamedTuple):
    """The sizes of a convolution, its attributes, and the bytes of a number."""

    images: int
    size: Pair
    channels: int
    kernel: Pair
    out: Pair
    outputs: int
    stride: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair
    groups: int
    itemsize: int

    @property
    def depth_wise(self) -> bool:
        """Whether each channel has its own kernel, and vectors run along channels."""
        return self.groups == self.channels == self.outputs > 1

    @property
    def x_pixel(self) -> int:
        """Bytes of a pixel of x."""
        return self.channels * self.itemsize

    @property
    def y_pixel(self) -> int:
        """Bytes of a pixel of y."""
        return self.outputs * self.itemsize

    def grouped(self, inputs: int, width: int) -> tuple[int, int, int]:
        """How many groups there are for the tiles, and how many channels of A and of C in each."""
        return (
            (1, 1, width) if self.depth_wise else (self.groups, inputs // self.groups, width // self.groups)
        )


class _Frame(NamedTuple):
    """How images lie in memory: with a border of zeros, or as they are if they need none."""

    given: Pair  # rows and columns of an image
    lead: Pair  # of the border before it
    size: Pair
    pixel: int  # bytes
    in_place: bool

    @property
    def row(self) -> int:
        return self.size[1] * self.pixel

    @property
    def nbytes(self) -> int:
        return self.size[0] * self.row

    def offsets(self, y: Array, x: Array) -> Array:
        """Of the pixels in rows y and columns x."""
        places: Array = np.add.outer(y * self.row, x * self.pixel)
        return places

    def inside(self) -> Pair:
        """How many rows and columns of an image there is place for."""
        y, x = (
            max(0, min(n, size - at)) for n, size, at in zip(self.given, self.size, self.lead, strict=True)
        )
        return y, x


class _Phase(NamedTuple):
    """The tables of a phase for one image; names as in `Phase`."""

    a_rows: Array
    a_columns: Array
    c_rows: Array
    b_taps: Array


class _Job(NamedTuple):
    """What differs between the three; names as in `Head`."""

    frame: _Frame
    phases: list[_Phase]
    groups: int
    width: int
    a_group: int
    b_group: int
    b_row: int
    b_column: int
    c_image: int
    b_image: int = 0
    stage: _Frame | None = None  # of the products, if they are still to be added up
    sums: Sequence[_Phase] = ()

    @property
    def framed(self) -> _Frame:
        """The frame of what is in scratch memory."""
        return self.stage or self.frame


def _frame(case: Case, given: Pair, lead: Pair, size: Pair, pixel: int) -> _Frame:
    """The frame of that size with an image that begins after `lead` rows and columns."""
    # Depth-wise tiles read whole vectors, the last one beyond the last channel.
    readable = not case.depth_wise or pixel % matrix.tile()[0] == 0
    in_place = readable and lead == (0, 0) and size[0] <= given[0] and size[1] <= given[1]
    return _Frame(given, lead, given if in_place else size, pixel, in_place)


def _forward(case: Case) -> _Job:
    groups, inputs, width = case.grouped(case.channels, case.outputs)
    axes = zip(case.out, case.kernel, case.stride, case.dilation, strict=True)
    height, length = ((n - 1) * s + (k - 1) * d + 1 for n, k, s, d in axes)
    corner = case.padding[0][0], case.padding[1][0]
    frame = _frame(case, case.size, corner, (height, length), case.x_pixel)
    pixels = frame.offsets(*(np.arange(n) * s for n, s in zip(case.out, case.stride, strict=True))).ravel()
    taps = frame.offsets(*(np.arange(k) * d for k, d in zip(case.kernel, case.dilation, strict=True)))
    window = np.add.outer(taps, np.arange(inputs) * case.itemsize).ravel()
    return _Job(
        frame,
        [_Phase(pixels, window, np.arange(pixels.size) * case.y_pixel, np.zeros(1, np.int64))],
        groups,
        width,
        a_group=inputs * case.itemsize,
        b_group=width * case.itemsize,
        b_row=case.y_pixel,
        b_column=case.itemsize,
        c_image=pixels.size * case.y_pixel,
    )


def _weight(case: Case) -> _Job:
    job = _forward(case)
    (phase,) = job.phases
    c_rows = np.arange(phase.a_columns.size) * case.y_pixel
    transpose = phase._replace(a_rows=phase.a_columns, a_columns=phase.a_rows, c_rows=c_rows)
    return job._replace(phases=[transpose], b_image=job.c_image, c_image=0)


def _steps(case: Case, axis: int) -> list[tuple[Array, Array, Array]]:
    """For each position of a row (or column) of x relative to the stride: the rows, their taps and the taps' steps.

    Row p + s i of x takes part in row i + step of y through tap k if s step = p + padding - dilation k.
    """
    s, k = case.stride[axis], np.arange(case.kernel[axis])
    found = []
    for p in range(min(s, case.size[axis])):
        distance = p + case.padding[axis][0] - case.dilation[axis] * k
        taps = distance % s == 0
        found.append((np.arange(p, case.size[axis], s), k[taps], distance[taps] // s))
    return found


def _transposed(case: Case) -> _Job:
    groups, inputs, width = case.grouped(case.outputs, case.channels)
    window = math.prod(case.kernel) * case.x_pixel
    staged = case.groups == 1 and 2 * case.x_pixel <= matrix.tile()[0]
    axes, lead, size = (_steps(case, 0), _steps(case, 1)), [0, 0], list(case.out)
    for axis, steps in enumerate(axes):
        reached = [(int(step.min()), int(step.max()) + rows.size) for rows, _, step in steps if step.size]
        lead[axis] = max([0, *(-first for first, _ in reached)])
        size[axis] = lead[axis] + max([case.out[axis], *(end for _, end in reached)])
    corner = lead[0], lead[1]
    frame = _frame(case, case.out, corner, (size[0], size[1]), window if staged else case.y_pixel)
    phases = []
    for rows, row_taps, row_steps in axes[0]:
        for columns, column_taps, column_steps in axes[1]:
            pixels = frame.offsets(np.arange(rows.size), np.arange(columns.size)).ravel()
            at = frame.offsets(row_steps + lead[0], column_steps + lead[1]).ravel()
            taps = np.add.outer(row_taps * case.kernel[1], column_taps).ravel()
            c_rows = np.add.outer(rows * case.size[1], columns).ravel() * case.x_pixel
            if staged:
                at += taps * case.x_pixel
            else:
                at = np.add.outer(at, np.arange(inputs) * case.itemsize).ravel()
            phases.append(_Phase(pixels, at, c_rows, taps * (case.channels // case.groups) * case.y_pixel))
    job = _Job(
        frame,
        phases,
        groups,
        width,
        a_group=inputs * case.itemsize,
        b_group=inputs * case.itemsize,
        b_row=case.itemsize,
        b_column=case.itemsize if case.depth_wise else case.y_pixel,
        c_image=math.prod(case.size) * case.x_pixel,
    )
    if not staged:
        return job
    places = frame.offsets(*(np.arange(n) + at for n, at in zip(case.out, lead, strict=True))).ravel()
    y_rows, y_columns = np.arange(places.size) * case.y_pixel, np.arange(case.outputs) * case.itemsize
    return job._replace(
        frame=_frame(case, case.out, (0, 0), case.out, case.y_pixel),
        phases=[_Phase(y_rows, y_columns, places, np.zeros(1, np.int64))],
        width=window // case.itemsize,
        stage=frame,
        sums=phases,
    )


@functools.lru_cache(maxsize=128)
def plan(kind: str, case: Case, parts: int = 1) -> Plan:
    """The row that computes y of (x, w), "conv", x of (y, w), "conv_transpose", or w of (x, y), "conv_weight".

    parts: the most that it may be cut in.
    """
    wide, wide_rows = widest()
    job = {"conv": _forward, "conv_transpose": _transposed, "conv_weight": _weight}[kind](case)
    weight, lanes = kind == "conv_weight", matrix.tile()[0] // case.itemsize
    m = case.channels if kind == "conv_transpose" else case.outputs
    pixels = math.prod(case.size if kind == "conv_transpose" else case.out)
    tile = wide_rows if job.width >= wide * lanes else matrix.tile()[1]
    tile = DIAGONAL_ROWS if case.depth_wise else tile

    # The sums of a weight gradient are by blocks, which must not depend on the parts.
    rows = max(phase.a_columns.size if weight else phase.a_rows.size for phase in (*job.phases, *job.sums))
    block = max(1, min(case.images, BLOCK_BYTES // job.framed.nbytes, BLOCK_ROWS // rows))
    block -= block % tile if block > tile else 0  # so that all tiles are full

    vectors = -(-m // lanes)
    if weight:
        n, split = job.phases[0].a_rows.size, int(vectors >= parts)
    else:
        n, split = case.images * pixels, int(case.images < parts and vectors > 1 and job.stage is None)
    pack = not weight or job.width % lanes != 0 or n >= matrix.PACK_ROWS
    table, nbytes = _table(case, job, block, parts, weight, pixels, pack)
    words = Operand(0), Operand(1), Result(0), Scratch(parts * nbytes), table, 0, 0
    quantum = lanes if split else tile if weight else pixels
    return Plan(_kernel(case.itemsize, case.depth_wise), n, m, split, quantum, words, epilogue=not weight)


def _table(
    case: Case, job: _Job, block: int, parts: int, weight: bool, pixels: int, pack: bool
) -> tuple[Array, int]:
    """The table of a row, and the bytes of scratch memory that each of its parts needs."""
    phases, sums = list(job.phases), list(job.sums)
    words = len(AT) + len(OF) * (len(phases) + len(sums))
    tables: list[Array] = []

    def add(offsets: Array, step: int = 0) -> int:
        """Append a table, for all images of a block if they are `step` bytes apart; gives where it begins."""
        at = words + sum(table.size for table in tables)
        tables.append(np.add.outer(np.arange(block if step else 1) * step, offsets).ravel())
        return 8 * at

    copied = job.stage is None and not job.frame.in_place
    nbytes = block * job.framed.nbytes + matrix.tile()[0] if copied or job.stage else 0
    clear, a_image = nbytes // case.itemsize, 0 if weight else job.frame.nbytes
    row_bytes = job.groups * -(-job.width * case.itemsize // matrix.tile()[0]) * matrix.tile()[0]
    head: list[int] = []
    for phase in phases:
        nbytes += -nbytes % 64
        head += Phase(
            rows=phase.a_rows.size,
            depth=phase.a_columns.size,
            taps=phase.b_taps.size,
            a_rows=add(phase.a_rows, a_image),
            a_columns=add(phase.a_columns, job.frame.nbytes if weight else 0),
            c_rows=add(phase.c_rows, job.stage.nbytes if job.stage else job.c_image),
            b_taps=add(phase.b_taps),
            panels=nbytes,
        )
        nbytes += phase.a_columns.size * (block if weight else 1) * row_bytes if pack else 0
    for phase in sums:
        a_rows, c_rows = add(phase.a_rows, job.framed.nbytes), add(phase.c_rows, job.c_image)
        a_columns = add(phase.a_columns)
        head += Phase(phase.a_rows.size, phase.a_columns.size, case.channels, a_rows, a_columns, c_rows, 0, 0)
    inside, nbytes = job.frame.inside(), nbytes + -nbytes % 64
    head[:0] = Head(
        phases=len(phases),
        sums=len(sums),
        weight=int(weight),
        images=case.images,
        block=block,
        pixels=pixels,
        groups=job.groups,
        width=job.width,
        a_image=math.prod(job.frame.given) * job.frame.pixel,
        a_group=job.a_group,
        a_column=case.itemsize if case.depth_wise else 0,
        b_image=job.b_image,
        b_group=job.b_group,
        b_row=job.b_row,
        b_column=job.b_column,
        c_image=job.c_image,
        pack=int(pack),
        copy=int(copied),
        copy_rows=inside[0],
        copy_numbers=inside[1] * job.frame.pixel // case.itemsize,
        copy_row=job.frame.given[1] * job.frame.pixel,
        to_first=int(job.frame.offsets(*np.array(job.frame.lead))),
        to_row=job.frame.row,
        to_image=job.frame.nbytes,
        clear=clear,
        part=nbytes,
        parts=parts,
        staged=int(job.stage is not None),
    )
    return np.concatenate([np.array(head), *tables], dtype=np.int64), nbytes


def row(
    kind: str,
    x: Spec,
    w: Spec,
    y: Spec,
    parts: int,
    stride: Pair,
    padding: tuple[Pair, Pair],
    dilation: Pair,
    groups: int,
) -> Plan | None:
    """The row for arrays like these; `None` for arrays without elements, or not row-major."""
    if not (launch.may_build() and row_major((x, w, y))):
        return None
    (images, height, width, channels), (kh, kw, _, outputs) = x.shape, w.shape
    size, out, itemsize = (height, width), (y.shape[1], y.shape[2]), x.dtype.itemsize
    case = Case(images, size, channels, (kh, kw), out, outputs, stride, padding, dilation, groups, itemsize)
    return plan(kind, case, parts)


def _kernel(itemsize: int, depth_wise: bool) -> Kernel:
    """The compiled convolution for float32 or float64."""
    dtype = f"float{8 * itemsize}"
    name = f"{'depth_wise' if depth_wise else 'conv'}_{dtype}"

    def source() -> str:
        from minigan.kernels import indirect  # here, because it imports Numba

        return indirect.source(name, dtype, depth_wise)

    return own_kernel(name, source)
