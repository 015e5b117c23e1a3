"""What runs when, and where each result lies.

Nodes that a kernel computes stand in phases: those of one phase do not need each other, so threads may share them.
Results whose lifetimes do not overlap share memory in one arena (largest first, each at the lowest place that is free;
Pisarchyk and Lee 2020, "Efficient memory management for deep neural net inference", §5).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from minigan.backend import ALIGNMENT
from minigan.program.capture import REQUIRE, Buffer, Call, Ref
from minigan.program.fuse import Node, dependencies, is_large


class Step(NamedTuple):
    """Nodes for the machine, in up to `parts` parts each; or, with no parts, one node that Python runs."""

    nodes: list[Node]
    parts: int


class Life(NamedTuple):
    """Memory that is needed from one moment to another, both included."""

    key: Any
    nbytes: int
    first: int
    last: int


def is_check(node: Node) -> bool:
    """Whether a run may end with it: it is the last of its step."""
    return node.kind == "call" and node.product is not None and node.product.primitive is REQUIRE


def in_machine(node: Node) -> bool:
    """Whether the machine has a kernel for it."""
    return node.kind != "call" or is_check(node)


def schedule(nodes: Sequence[Node], threads: int, compiled: bool) -> list[Step]:
    """The nodes as steps: in their order for one thread; for more, whatever can be done at once comes together."""
    if threads == 1 or not compiled:
        steps: list[Step] = []
        for node in nodes:
            parts = int(compiled and in_machine(node))
            if steps and parts and steps[-1].parts and not is_check(steps[-1].nodes[-1]):
                steps[-1].nodes.append(node)
            else:
                steps.append(Step([node], parts))
        return steps
    before_each = dependencies((n.reads, n.writes) for n in nodes)
    waiting = [len(before) for before in before_each]
    after: list[list[int]] = [[] for _ in nodes]
    for k, before in enumerate(before_each):
        for i in before:
            after[i].append(k)
    ready = [k for k, n in enumerate(waiting) if n == 0]
    steps = []

    def done(numbers: Iterable[int]) -> None:
        for k in numbers:
            ready.remove(k)
            for i in after[k]:
                waiting[i] -= 1
                if waiting[i] == 0:
                    ready.append(i)

    while ready:
        mine = sorted(k for k in ready if in_machine(nodes[k]))
        large = [k for k in mine if is_large(nodes[k])]
        small = [k for k in mine if not is_large(nodes[k])]
        if large:  # what is small and can be done now goes along, whole, in one of the parts
            together = sorted(large + [k for k in small if not is_check(nodes[k])])
            steps.append(Step([nodes[k] for k in together], threads))
            done(together)
        elif small:  # one thread makes these one after the other, so what they make ready may follow at once
            chain: list[Node] = []
            while small and not (chain and is_check(chain[-1])):
                chain.append(nodes[small[0]])
                done(small[:1])
                small = sorted(k for k in ready if in_machine(nodes[k]) and not is_large(nodes[k]))
            steps.append(Step(chain, 1))
        else:
            k = min(ready)
            steps.append(Step([nodes[k]], 0))
            done([k])
    return steps


# Memory


def lives(
    steps: Sequence[Step], kept: set[Buffer], stored: Callable[[Buffer], bool], share: bool
) -> list[Life]:
    """From when to when each result is needed; those in `kept` until the end, and without `share` all of them."""
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for now, nodes in moments(steps):
        for node in nodes:
            for buffer in sorted(node.reads | node.writes, key=lambda buffer: buffer.number):
                if buffer.kind == "temporary" and stored(buffer):
                    first.setdefault(buffer, now)
                    last[buffer] = now
    end = sum(1 for _ in moments(steps))
    return [
        Life(
            buffer,
            buffer.nbytes,
            first[buffer] if share else 0,
            end if buffer in kept or not share else last[buffer],
        )
        for buffer in first
    ]


def moments(steps: Sequence[Step]) -> Iterable[tuple[int, list[Node]]]:
    """What runs at the same time: all of a phase that threads share, else one node after the other."""
    now = 0
    for step in steps:
        for group in [step.nodes] if step.parts > 1 else [[node] for node in step.nodes]:
            yield now, group
            now += 1


def place(blocks: Sequence[Life]) -> tuple[dict[Any, int], int]:
    """Offsets such that blocks which are needed at the same time do not overlap, and the size of the whole."""
    offsets: dict[Any, int] = {}
    placed: list[tuple[int, int, Life]] = []
    for block in sorted(blocks, key=lambda block: -block.nbytes):
        size = -(-max(block.nbytes, 1) // ALIGNMENT) * ALIGNMENT
        at = 0
        for start, end, other in sorted(placed, key=lambda entry: entry[0]):
            if other.first <= block.last and block.first <= other.last:
                if at + size <= start:
                    break
                at = max(at, end)
        offsets[block.key] = at
        placed.append((at, at + size, block))
    return offsets, max((end for _, end, _ in placed), default=0)


# A product and the loop behind it in one piece of memory


def in_place(node: Node, is_read: Callable[[Buffer], bool]) -> Node:
    """The node with the product's result in the memory of one of the loop's, where nothing else needs it."""
    if node.product is None or not node.walks:
        return node
    (result,) = node.product.outs
    if is_read(result.buffer):
        return node
    last = max(k for k, w in enumerate(node.walks) if any(x.ref.buffer is result.buffer for x in w.inputs))
    for walk in node.walks[last:]:
        for out in walk.outs:
            item = result.dtype.itemsize
            same = (out.row, out.column, out.ref.dtype) == (node.dims[1] * item, item, result.dtype)
            if same and out.ref.buffer.kind == "temporary" and is_read(out.ref.buffer):
                return _moved(node, result, out.ref)
    return node


def _moved(node: Node, old: Ref, new: Ref) -> Node:
    target = Ref(new.buffer, new.offset, old.shape, old.strides, old.dtype, old.array)
    product = node.product
    walks = [
        replace(
            walk, inputs=[x._replace(ref=target) if x.ref.buffer is old.buffer else x for x in walk.inputs]
        )
        for walk in node.walks
    ]
    moved = Call(product.primitive, product.inputs, (target,), product.attributes, product.flops)  # type: ignore[union-attr]
    return Node(node.kind, moved, walks, node.dims, node.plan)
