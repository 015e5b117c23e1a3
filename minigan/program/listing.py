"""A program as text: one line for each kernel."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from minigan.program.capture import Buffer, Ref
from minigan.program.fuse import Node
from minigan.program.loops import Address
from minigan.trace import Slot


class Row(Protocol):
    """A kernel: its node, the words of its loop if it has one, and how it is run where that is to be said."""

    @property
    def node(self) -> Node: ...  # noqa: D102
    @property
    def words(self) -> Sequence[Any] | None: ...  # noqa: D102
    @property
    def note(self) -> str: ...  # noqa: D102


def listing(
    rows: Sequence[Row], offsets: dict[Any, int], nbytes: int, inputs: Iterable[Buffer], note: str = ""
) -> str:
    """The lines of a program: what each kernel writes and where, what it does, what it reads, and what that costs.

    "%3" is a result, with its place in the arena, "@2" an array from outside, "$1" an argument or an array that Python
    works out in every run; a setting without a value is a number that Python works out in every run.
    """
    names = _Names()
    lines = [f"{names.of(b)} = {b.shown}" for b in inputs]
    stored = {ref.buffer for row in rows for ref in _stored(row)}
    for row in rows:
        written = [
            f"{names.of(x.buffer)}{list(x.shape)}{_place(offsets, x.buffer)}" for x in _unique(_stored(row))
        ]
        read = [
            names.of(x.buffer)
            for x in _unique(_read(row))
            if x.buffer in stored or x.buffer.kind != "temporary"
        ]
        what = " · ".join(_operation(call.primitive.name, call.attributes) for call in row.node.calls)
        costs = f"{_units(_flops(row), 'flop')}, {_units(_nbytes(row), 'B')}"
        lines.append(f"{', '.join(written) or '-'} <- {what} <- {', '.join(read)}  [{costs}{row.note}]")
    flops, moved = sum(map(_flops, rows)), sum(map(_nbytes, rows))
    lines.append(
        f"{len(rows)} kernels{note}: {_units(flops, 'flop')}, {_units(moved, 'B')} read and written,"
        f" {_units(nbytes, 'B')} for results"
    )
    return "\n".join(lines)


class _Names:
    """Short names for memory, by kind and in the order of appearance."""

    def __init__(self) -> None:
        self._names: dict[Buffer, str] = {}
        self._counts = {"%": 0, "@": 0, "$": 0}

    def of(self, buffer: Buffer) -> str:
        if buffer not in self._names:
            sign = {"temporary": "%", "held": "@"}.get(buffer.kind, "$")
            self._counts[sign] += 1
            self._names[buffer] = f"{sign}{self._counts[sign]}"
        return self._names[buffer]


def _place(offsets: dict[Any, int], buffer: Buffer) -> str:
    return f" at {offsets[buffer]}" if buffer.kind == "temporary" else ""


def _operation(name: str, attributes: dict[str, object]) -> str:
    settings = [
        key if isinstance(value, Slot) else f"{key}={value:g}"
        for key, value in attributes.items()
        if isinstance(value, float)
    ]
    return name + (f"({', '.join(settings)})" if settings else "")


def _stored(row: Row) -> list[Ref]:
    """What a kernel writes to memory: of a loop what something reads after it."""
    outs = [x for call in row.node.calls for x in call.outs]
    if row.words is None:
        return outs
    kept = {word.ref.buffer for word in row.words if isinstance(word, Address)}
    product = row.node.product.outs if row.node.product else ()
    return [x for x in outs if x.buffer in kept or x in product]


def _read(row: Row) -> list[Ref]:
    inside = {x.buffer for call in row.node.calls for x in call.outs if x.buffer.kind == "temporary"}
    return [x for call in row.node.calls for x in call.inputs if x.buffer not in inside]


def _unique(refs: Iterable[Ref]) -> list[Ref]:
    return list({ref.buffer: ref for ref in refs}.values())


def _flops(row: Row) -> int:
    return sum(call.flops for call in row.node.calls)


def _nbytes(row: Row) -> int:
    """Bytes written, and bytes read: of what is both, both."""
    size: Callable[[Ref], int] = lambda x: min(x.size * x.dtype.itemsize, x.buffer.nbytes)  # noqa: E731
    return sum(map(size, _unique(_stored(row)))) + sum(map(size, _unique(_read(row))))


def _units(n: int, unit: str) -> str:
    """A number with three digits: 12.8 Mflop."""
    value, k = float(n), 0
    while value >= 999.5:
        value, k = value / 1000, k + 1
    return f"{value:.3g} {' kMGT'[k].strip()}{unit}"
