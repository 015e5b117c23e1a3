"""Nodes that are run slice by slice: some samples through all of them, then the next ones.

The scores of attention, a square for every sample and head, are more than a core's cache holds, but those of one sample
are not. So products of a stack, and what follows sample by sample, are made one after the other for a few samples at a
time: what the one writes, the next finds in the cache. (Dao et al. 2022, "FlashAttention", does so by parts of rows.)
"""

from collections.abc import Sequence

from minigan.kernels.rows import Scratch
from minigan.program.capture import Buffer, Ref
from minigan.program.fuse import Access, Group, Node, dependencies, in_order, needed, reaches, sum_kind

FEWEST = 8  # samples that are worth it: threads share them
# Bytes that the nodes may touch for a slice, if that is more than one sample: a quarter of a core's cache.
SLICE = 1 << 19


def chained(nodes: Sequence[Node]) -> list[Node]:
    """The nodes with chains in the place of some, in an order in which they can be made."""
    groups = [Group(k, node) for k, node in enumerate(nodes)]
    for group, before in zip(groups, dependencies((node.reads, node.writes) for node in nodes), strict=True):
        group.needs = {groups[i] for i in before}
    for seed in groups:
        samples = _samples(seed.node)
        if seed.joined is None and samples >= FEWEST and _blocks(seed.node, samples):
            _grow(seed, groups, samples)
    return [group.node for group in in_order([group for group in groups if group.joined is None])]


def _grow(seed: Group, groups: Sequence[Group], samples: int) -> None:
    """Let a group take in those that follow from it and can be made in slices with it."""
    links = [seed.node]
    for group in groups[seed.position + 1 :]:
        if group.joined is not None or group.node.links or seed not in needed(group):
            continue
        # What stands between them would have to be made after the one and before the other.
        if reaches(needed(group) - {seed}, seed) or not _fits(links, group.node, samples):
            continue
        links.append(group.node)
        group.joined = seed
        seed.needs = (needed(seed) | needed(group)) - {seed}
    if len(links) > 1:
        slices = -(-samples // max(1, SLICE * samples // _nbytes(links)))
        for link in links:
            link.slices = slices
        seed.node = Node("chain", dims=(samples, 1), links=links, slices=slices)


def _fits(links: Sequence[Node], node: Node, samples: int) -> bool:
    """Whether, for each sample, all meet in its own part of whatever one of them writes."""
    every = (*links, node)
    blocks = [_blocks(each, samples) for each in every]
    written = set().union(*(each.writes for each in every))
    last = blocks.pop()
    if last is None:
        return False
    shared = [(mine, b) for mine in blocks if mine for b in mine.keys() & last.keys() & written]
    return all(mine[b] and last[b] for mine, b in shared)


def _samples(node: Node) -> int:
    """The first axis of a planned node's result; 0 for others."""
    if node.plan is None or node.product is None or not node.product.outs[0].shape:
        return 0
    return node.product.outs[0].shape[0]


def _nbytes(links: Sequence[Node]) -> int:
    return sum({b: b.nbytes for link in links for b in link.reads | link.writes}.values())


def _blocks(node: Node, samples: int) -> dict[Buffer, bool] | None:
    """The memory that a node touches, and whether for sample s it is the s-th of so many equal parts.

    `None` for a node that cannot be made for some samples only.
    """
    if node.kind == "call":
        return None
    n = node.plan.n if node.plan is not None else node.dims[0]
    if n % samples or any(sum_kind(walk) not in ("", "rows") for walk in node.walks):
        return None
    if any(call.primitive.donates for call in node.calls):
        return None
    found: dict[Buffer, bool] = {}
    if node.product is not None:
        (out,), plan = node.product.outs, node.plan
        if plan is None or not plan.by_sample or any(isinstance(word, Scratch) for word in plan.words):
            return None
        if out.shape[0] != samples:
            return None
        for ref in (*node.product.inputs, out):
            # An operand with fewer axes is broadcast: its first axis is not that of the samples.
            fits = len(ref.shape) >= len(out.shape) and _is_part(ref, samples)
            found[ref.buffer] = found.get(ref.buffer, True) and fits
    for walk in node.walks:
        if walk.dims[0] != n:
            return None
        for access in (*walk.inputs, *walk.outs):
            fits = _is_walked(access, walk.dims, samples)
            found[access.ref.buffer] = found.get(access.ref.buffer, True) and fits
    return found


def _is_part(ref: Ref, samples: int) -> bool:
    """Whether sample s, along the first axis, lies in the s-th part of the memory."""
    part = ref.buffer.nbytes // samples
    extent = sum((n - 1) * step for n, step in zip(ref.shape[1:], ref.strides[1:], strict=True))
    return (
        ref.shape[:1] == (samples,)
        and ref.strides[0] * samples == ref.buffer.nbytes
        and min(ref.strides) >= 0
        and ref.offset + extent + ref.dtype.itemsize <= part
    )


def _is_walked(access: Access, dims: tuple[int, ...], samples: int) -> bool:
    """The same of a loop's rows, or elements, of which each sample has as many."""
    each = dims[0] // samples
    step, columns = (access.row, dims[1]) if len(dims) == 2 else (access.column, 1)
    extent = (each - 1) * step + (columns - 1) * access.column
    part = access.ref.buffer.nbytes // samples
    return (
        min(step, access.column) >= 0
        and step * dims[0] == access.ref.buffer.nbytes
        and access.ref.offset + extent + access.ref.dtype.itemsize <= part
    )
