"""A program as text: one line for each kernel."""

from collections.abc import Callable, Iterable

from minigan.program.build import Built, Row
from minigan.program.capture import Buffer, Ref
from minigan.program.loops import Address
from minigan.program.plan import in_machine
from minigan.trace import Slot


def listing(built: Built, inputs: Iterable[Buffer]) -> str:
    """The lines of a program: what each kernel writes and where, what it does, what it reads, and what that costs.

    "%3" is a result, with its place in the arena, "@2" an array from outside, "$1" an argument or an array that Python
    works out in every run; a setting without a value is a number that Python works out in every run.
    """
    names = _Names()
    lines = [f"{names.of(b)} = {b.shown}" for b in inputs]
    stored = {ref.buffer for row in built.rows for ref in _stored(row)}
    for row in built.rows:
        written = [
            f"{names.of(x.buffer)}{list(x.shape)}{_place(built, x.buffer)}" for x in _unique(_stored(row))
        ]
        read = [
            names.of(x.buffer)
            for x in _unique(_read(row))
            if x.buffer in stored or x.buffer.kind != "temporary"
        ]
        what = " · ".join(_operation(call.primitive.name, call.attributes) for call in row.node.calls)
        costs = f"{_units(_flops(row), 'flop')}, {_units(_nbytes(row), 'B')}"
        by = "" if built.machine and in_machine(row.node) else ", Python"
        if row.node.slices:
            by = f", in {row.node.slices} slices"
        lines.append(f"{', '.join(written) or '-'} <- {what} <- {', '.join(read)}  [{costs}{by}]")
    flops, nbytes = sum(map(_flops, built.rows)), sum(map(_nbytes, built.rows))
    lines.append(
        f"{len(built.rows)} kernels: {_units(flops, 'flop')}, {_units(nbytes, 'B')} read and written,"
        f" {_units(built.arena.nbytes, 'B')} for results"
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


def _place(built: Built, buffer: Buffer) -> str:
    return f" at {built.offsets[buffer]}" if buffer.kind == "temporary" else ""


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
    if row.text is None:
        return outs
    kept = {word.ref.buffer for word in row.text.words if isinstance(word, Address)}
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
