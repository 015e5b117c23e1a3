"""Calls into nodes: pointwise chains with the reductions that end them into loops, and loops behind products.

A node is made at once, so two calls may share one only if nothing outside of it stands between them: nothing that needs
the one and is needed by the other. What passes from call to call within a loop stays in registers.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from minigan.backend import FLOATS
from minigan.kernels.axes import broadcast_strides, collapse
from minigan.kernels.layout import SPLIT_N
from minigan.kernels.matrix import best_split
from minigan.kernels.rows import Plan
from minigan.linear import CAST, MATMUL, MEAN, SUM
from minigan.ops.reduce import NORM
from minigan.program.capture import Buffer, Call, Ref
from minigan.program.checks import FINITE

SMALL = 16_384  # elements times arrays of a loop, or products times 16 of a matrix product, that threads do not share
MOST_ARRAYS = 24  # that a loop reads and writes: more would not find room in registers
REDUCTIONS = (SUM, MEAN, NORM, FINITE)


class Access(NamedTuple):
    """How a loop over one axis or two walks through an array: bytes from row to row and from column to column."""

    ref: Ref
    row: int
    column: int

    @property
    def key(self) -> tuple[Any, ...]:
        """What two accesses have in common that are at the same elements at the same time."""
        return self.ref.buffer.number, self.ref.offset, self.row, self.column, self.ref.dtype


@dataclass(eq=False)
class Walk:
    """A call as part of a loop over `dims`, (L,) or (n, m)."""

    call: Call
    dims: tuple[int, ...]
    inputs: list[Access]
    outs: list[Access]


@dataclass(eq=False)
class Node:
    """What is run at once.

    Attributes:
        kind: "loop", "product" (of matrices, or another call with compiled code of its own, with the loop behind it, if
            any), "call" (a primitive's own kernel), or "chain" (others, slice by slice: see `minigan.program.chain`).
        walks: the calls of the loop.
        product: the call of the product, or of the primitive.
        plan: of a product that is not one of two matrices, how it is computed.
        sums: over what the loop behind a product may sum, in the words of `sum_kind`; "" is nothing.
        links: of a chain, its nodes.
        slices: in how many slices it is run, if it is a chain or part of one.
    """

    kind: str
    product: Call | None = None
    walks: list[Walk] = field(default_factory=list)
    dims: tuple[int, ...] = ()
    plan: Plan | None = None
    sums: str = ""
    links: list["Node"] = field(default_factory=list)
    slices: int = 0

    @property
    def calls(self) -> list[Call]:
        """Its calls, in an order in which they can be made."""
        if self.links:
            return [call for link in self.links for call in link.calls]
        return ([self.product] if self.product else []) + [walk.call for walk in self.walks]

    @property
    def reads(self) -> set[Buffer]:
        """The memory that it reads and has not computed itself."""
        found: set[Buffer] = set()
        inside: set[Buffer] = set()
        for call in self.calls:
            found.update(call.reads - inside)
            inside.update(x.buffer for x in call.outs if x.buffer.kind == "temporary")
        return found

    @property
    def writes(self) -> set[Buffer]:
        """The memory that it writes, or would if it were needed."""
        return set().union(*(call.writes for call in self.calls))


def is_large(node: Node) -> bool:
    """Whether it is worth sharing among threads."""
    if node.links:
        return any(map(is_large, node.links))
    if node.plan is not None and node.plan.work:
        return node.plan.work > SMALL
    if node.product is not None and node.kind == "product":
        return node.product.flops > 32 * SMALL
    arrays = len({x.buffer for call in node.calls for x in (*call.inputs, *call.outs)})
    return math.prod(node.dims) * arrays > SMALL


def product_split(call: Call, threads: int) -> int:
    """The axis of a matrix product's result, 0 or 1, along which so many threads share it best."""
    (c,), (a, b) = call.outs, call.inputs
    m, n = c.shape
    k = a.shape[0 if call.attributes["ta"] else 1]
    column = b.strides[0 if call.attributes["tb"] else 1]
    return best_split(m, n, k, column == c.dtype.itemsize, threads)


# Which calls can be part of a loop


def as_walk(call: Call) -> Walk | None:
    """The call as a loop over at most two axes; `None` if it is not pointwise, no sum, or needs more axes."""
    primitive = call.primitive
    reduces = primitive in REDUCTIONS
    if not (reduces or is_pointwise(call)):
        return None
    if primitive is NORM and call.outs[0].dtype != np.float32:  # whose squares float64 could not hold
        return None
    shape = call.inputs[0].shape if reduces else call.outs[0].shape
    if 0 in shape:
        return None
    strides = [broadcast_strides(x, shape) for x in call.inputs]
    if reduces:
        (out,) = call.outs
        axes = call.attributes.get("axes", range(len(shape)))
        left = iter(out.strides)
        kept = call.attributes.get("keepdims", False)
        steps = []
        for axis in range(len(shape)):
            step = next(left) if kept or axis not in axes else 0
            steps.append(0 if axis in axes else step)
        strides.append(steps)
    else:
        strides += [broadcast_strides(x, shape) for x in call.outs]
    dims, walked = collapse(shape, strides)
    if len(dims) > 2:
        return None
    refs = [*call.inputs, *call.outs]
    accesses = [
        Access(ref, steps[0], steps[1]) if len(dims) == 2 else Access(ref, 0, steps[0])
        for ref, steps in zip(refs, walked, strict=True)
    ]
    if any(step % access.ref.dtype.itemsize for access in accesses for step in access[1:]):
        return None
    n = len(call.inputs)
    inputs, outs = accesses[:n], accesses[n:]
    # What it overwrites it may read only at the element it is at.
    if any(a.ref.buffer is b.ref.buffer and a.key != b.key for a in accesses for b in outs):
        return None
    return Walk(call, dims, inputs, outs)


def is_pointwise(call: Call) -> bool:
    """Whether there is a formula for these dtypes: of floats and masks; and casts to floats."""
    if call.primitive is not CAST and call.primitive.formula is None:
        return False
    kinds = {x.dtype for x in call.inputs}
    result = call.outs[0].dtype
    if call.primitive is CAST:
        return result in FLOATS
    return len(kinds) == 1 if result == np.bool_ else kinds <= {result, np.dtype(np.bool_)}


def reshaped(walk: Walk, dims: tuple[int, ...]) -> Walk | None:
    """The walk over `dims`: itself, or one axis cut in two where every array is contiguous or one number."""
    if walk.dims == dims:
        return walk
    if len(walk.dims) != 1 or math.prod(dims) != walk.dims[0]:
        return None

    def cut(access: Access) -> Access | None:
        if access.column == 0:
            return access
        if access.column != access.ref.dtype.itemsize:
            return None
        return Access(access.ref, dims[1] * access.column, access.column)

    inputs, outs = [cut(x) for x in walk.inputs], [cut(x) for x in walk.outs]
    if None in inputs or None in outs:
        return None
    return Walk(walk.call, dims, inputs, outs)  # type: ignore[arg-type]


# Grouping


class Group:
    """A node in the making, and the groups it needs directly."""

    def __init__(self, position: int, node: Node) -> None:
        self.position, self.node = position, node
        self.needs: set[Group] = set()
        self.joined: Group | None = None  # the one that has taken it in

    def now(self) -> "Group":
        """The group it is in now."""
        group = self
        while group.joined:
            group = group.joined
        return group


def dependencies(uses: Iterable[tuple[set[Buffer], set[Buffer]]]) -> list[set[int]]:
    """For each of (memory read, memory written) the earlier ones it follows: what it reads, overwrites, or destroys."""
    written: dict[Buffer, int] = {}
    read: dict[Buffer, list[int]] = {}
    found = []
    for k, (sources, targets) in enumerate(uses):
        mine = {written[b] for b in sources if b in written}
        for b in targets:
            mine.update(read.pop(b, ()))
            if b in written:
                mine.add(written[b])
            written[b] = k
        for b in sources:
            read.setdefault(b, []).append(k)
        mine.discard(k)
        found.append(mine)
    return found


def fuse(calls: Sequence[Call], threads: int, loops_only: bool = False) -> list[Node]:
    """The calls as nodes, in an order in which they can be made; what threads share is made for so many.

    loops_only: for a GPU: nothing stands behind a product, and a loop sums over rows, over columns, or over all, since
        that decides which thread has which element. Loops that read the same array are made one, also where neither
        needs the other: each would be a launch, and read it from far.
    """
    needs = dependencies((call.reads, call.writes) for call in calls)
    groups: list[Group] = []
    of_call: list[Group] = []
    readers: dict[Buffer, list[Group]] = {}
    for k, call in enumerate(calls):
        walk = as_walk(call)
        direct = {of_call[i].now() for i in needs[k]}
        group = None
        if walk is not None:
            # The latest first: what was computed last is what this call goes on from.
            for candidate in sorted(direct, key=lambda g: -g.position):
                if _may_join(candidate, walk, direct, loops_only):
                    group = candidate
                    _join(group, walk)
                    group.position = k
                    break
        if group is None:
            plan = _plan(call, threads) if walk is None and not loops_only else None
            kind = "loop" if walk else "call" if loops_only or not (plan or _is_product(call)) else "product"
            dims = walk.dims if walk else _matrix(call) if kind == "product" else ()
            node = Node(kind, None if walk else call, [walk] if walk else [], dims, plan)
            node.sums = _sums(node, threads) if kind == "product" else ""
            group = Group(k, node)
            groups.append(group)
        group.needs.update(direct - {group})
        of_call.append(group)
        for other in sorted(direct - {group}, key=lambda g: -g.position):
            _take_in(group, other, loops_only)
        for buffer in _arrays(walk) if loops_only and walk else ():
            others = {g.now() for g in readers.get(buffer, ())} - {group}
            for other in sorted(others, key=lambda g: -g.position):
                if not reaches([other], group):
                    _take_in(group, other, loops_only)
            readers.setdefault(buffer, []).append(group)
    alive = [group for group in groups if group.joined is None]
    return [group.node for group in in_order(alive)]


def unfused(calls: Sequence[Call]) -> list[Node]:
    """Each call as a node of its own, run by its primitive's kernel."""
    return [Node("call", call) for call in calls]


def in_order(groups: Sequence[Group]) -> list[Group]:
    """Groups such that each comes after those it needs, otherwise by position."""
    done: set[Group] = set()
    order: list[Group] = []
    for group in sorted(groups, key=lambda g: g.position):
        stack = [group]
        while stack:
            top = stack[-1]
            waiting = [g for g in needed(top) if g not in done]
            if top in done:
                stack.pop()
            elif waiting:
                stack += sorted(waiting, key=lambda g: -g.position)
            else:
                done.add(top)
                order.append(stack.pop())
    return order


def needed(group: Group) -> set[Group]:
    """The groups that it needs directly."""
    group.needs = {g.now() for g in group.needs} - {group}
    return group.needs


def reaches(starts: Iterable[Group], goal: Group) -> bool:
    """Whether one of `starts` needs `goal`, directly or not."""
    seen: set[Group] = set()
    stack = list(starts)
    while stack:
        group = stack.pop()
        if group is goal:
            return True
        if group not in seen:
            seen.add(group)
            stack += needed(group)
    return False


def _is_product(call: Call) -> bool:
    """Whether it is a product of two matrices that the product's kernel takes."""
    return call.primitive is MATMUL and len(call.outs[0].shape) == 2 and call.outs[0].size > 0


def _plan(call: Call, threads: int) -> Plan | None:
    """How compiled code of the primitive's own computes it, if there is any."""
    make = call.primitive.row
    return None if make is None else make(call.outs, call.inputs, threads, **call.attributes)


def _matrix(call: Call) -> tuple[int, int]:
    """The rows and columns of a product's result, or of all axes but the last and the last of another call's."""
    shape = call.outs[0].shape
    return math.prod(shape[:-1]), shape[-1] if shape else 1


def _is_closed(node: Node) -> bool:
    """Whether nothing can stand behind it."""
    return node.kind == "call" or (node.plan is not None and not node.plan.epilogue)


def _may_join(group: Group, walk: Walk, direct: set[Group], loops_only: bool) -> bool:
    node = group.node
    if _is_closed(node) or reaches((g for g in direct if g is not group), group):
        return False
    fitted = _fitted(node, [walk])
    if fitted is None or (loops_only and not _one_kind([*fitted[0], *fitted[1]])):
        return False
    return _one_pass(fitted[0], fitted[1]) and _open(node, fitted[1])


def _fitted(node: Node, walks: Sequence[Walk]) -> tuple[list[Walk], list[Walk]] | None:
    """The walks of a node and others over common axes."""
    dims = node.dims if node.product else max((node.dims, *(walk.dims for walk in walks)), key=len)
    ours, theirs = [reshaped(w, dims) for w in node.walks], [reshaped(w, dims) for w in walks]
    if None in ours or None in theirs:
        return None
    return ours, theirs  # type: ignore[return-value]


def _one_pass(ours: Sequence[Walk], theirs: Sequence[Walk]) -> bool:
    """Whether the second walks meet memory of the first, where either writes, only at the element both are at."""
    written = {a.ref.buffer: a for w in ours for a in w.outs}
    read: dict[Any, list[Access]] = {}
    for w in ours:
        for a in w.inputs:
            read.setdefault(a.ref.buffer, []).append(a)
    sums = {a.ref.buffer for w in ours if w.call.primitive in REDUCTIONS for a in w.outs}
    for w in theirs:
        for a in w.inputs:
            other = written.get(a.ref.buffer)
            if other is not None and (a.ref.buffer in sums or a.key != other.key):
                return False
        for a in w.outs:
            if any(a.key != other.key for other in read.get(a.ref.buffer, ())):
                return False
            other = written.get(a.ref.buffer)
            if other is not None and a.key != other.key:
                return False
    arrays = {a.key for w in (*ours, *theirs) for a in (*w.inputs, *w.outs)}
    return len(arrays) <= MOST_ARRAYS


def _open(node: Node, walks: Sequence[Walk]) -> bool:
    """Whether these may stand behind a product: its result only as it is, and sums only over what is complete."""
    if node.product is None:
        return True
    (result,) = node.product.outs
    item = result.dtype.itemsize
    there = Access(result, _matrix(node.product)[1] * item, item)
    factors = {x.buffer for x in node.product.inputs}
    if any(a.ref.buffer in factors for w in walks for a in w.outs):  # these are to be there before it
        return False
    reads = [a for w in walks for a in w.inputs if a.ref.buffer is result.buffer]
    if any(w.call.primitive.donates for w in walks):
        return False
    allowed = ("", "finite", node.sums)
    return all(a.key == there.key for a in reads) and all(sum_kind(w) in allowed for w in walks)


def _sums(node: Node, threads: int) -> str:
    """Over what a loop behind a product may sum: what is complete whenever the loop is called.

    What is planned is complete a few rows at a time, if threads share these, a product of matrices a few columns. But
    many a product is shared better by rows, which takes more off its time than the sums' own pass takes.
    """
    if node.plan is not None:
        return "rows" if node.plan.split == SPLIT_N else ""
    by_rows = threads > 1 and is_large(node) and product_split(node.product, threads) == 0  # type: ignore[arg-type]
    return "" if by_rows else "columns"


def _arrays(walk: Walk) -> list[Buffer]:
    """The memory that a walk reads, but for single numbers."""
    return [a.ref.buffer for a in walk.inputs if a.row or a.column]


def _one_kind(walks: Sequence[Walk]) -> bool:
    """Whether all sums of a loop are over the same axes."""
    return len({sum_kind(walk) for walk in walks} - {"", "finite"}) < 2


def sum_kind(walk: Walk) -> str:
    """Over what a walk sums up: "" (nothing), "columns" (each column), "rows" (each row) or "all".

    Or "finite", for a check, which may be made in parts: all that a part does is to make a flag false.
    """
    if walk.call.primitive not in REDUCTIONS:
        return ""
    if walk.call.primitive is FINITE:
        return "finite"
    (out,) = walk.outs
    if len(walk.dims) == 1:
        return "" if out.column or walk.dims == (1,) else "all"
    if out.column:
        return "" if out.row else "columns"
    return "rows" if out.row else "all"


def _join(group: Group, walk: Walk) -> None:
    node = group.node
    ours, theirs = _fitted(node, [walk])  # type: ignore[misc]
    node.walks, node.dims = ours + theirs, theirs[0].dims


def _take_in(group: Group, other: Group, loops_only: bool) -> None:
    """Merge `other`, which does not need `group`, into it if both can be one loop, behind one product at most."""
    mine, theirs = group.node, other.node
    if _is_closed(mine) or _is_closed(theirs) or not mine.walks or (mine.product and theirs.product):
        return
    if reaches((g for g in needed(group) if g is not other), other):
        return
    both = Node("product" if mine.product or theirs.product else "loop", mine.product or theirs.product)
    both.dims, both.plan = theirs.dims if theirs.product else mine.dims, mine.plan or theirs.plan
    both.sums = mine.sums or theirs.sums
    fitted = _fitted(both, [*theirs.walks, *mine.walks])
    if fitted is None or not _open(both, fitted[1]) or (loops_only and not _one_kind(fitted[1])):
        return
    first, second = fitted[1][: len(theirs.walks)], fitted[1][len(theirs.walks) :]
    if not _one_pass(first, second):
        return
    both.walks, both.dims = fitted[1], fitted[1][0].dims
    group.node = both
    group.needs |= needed(other)
    group.needs.discard(other)
    other.joined = group
