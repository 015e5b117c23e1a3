"""A program as text: one line for each kernel."""

from collections.abc import Iterable
from typing import Any

from minigan.program.build import Built, Row
from minigan.program.capture import Buffer, Ref
from minigan.trace import Slot


def listing(built: Built, inputs: Iterable[Buffer]) -> str:
    """The lines of a program, with shapes, floating point operations and bytes read and written."""
    names = _Names()
    lines = [f"{names.of(b)} = {b.shown}  {b.array.dtype.name}{list(b.array.shape)}" for b in inputs]
    lines += [_line(row, names) for row in built.rows]
    flops = sum(_flops(row) for row in built.rows)
    lines.append(
        f"{len(built.rows)} kernels, {flops / 1e6:.1f} MFLOP, {sum(map(_nbytes, built.rows)) / 1e6:.2f} MB read and"
        f" written, results in {built.arena.nbytes / 1e6:.2f} MB"
    )
    return "\n".join(lines)


class _Names:
    """Short names for memory: %3 a result, @2 an array from outside, $1 an argument or what Python works out."""

    def __init__(self) -> None:
        self._names: dict[Buffer, str] = {}
        self._counts = {"%": 0, "@": 0, "$": 0}

    def of(self, buffer: Buffer) -> str:
        if buffer not in self._names:
            sign = {"temporary": "%", "held": "@"}.get(buffer.kind, "$")
            self._counts[sign] += 1
            self._names[buffer] = f"{sign}{self._counts[sign]}"
        return self._names[buffer]


def _line(row: Row, names: _Names) -> str:
    node = row.node
    parts = []
    for call in node.calls:
        settings = [
            f"{name}=slot" if isinstance(value, Slot) else f"{name}={value:g}"
            for name, value in call.attributes.items()
            if isinstance(value, float)
        ]
        parts.append(call.primitive.name + (f"({', '.join(settings)})" if settings else ""))
    written = _unique([x for call in node.calls for x in call.outs if _is_stored(row, x)])
    inside = {x.buffer for call in node.calls for x in call.outs if x.buffer.kind == "temporary"}
    read = _unique([x for call in node.calls for x in call.inputs if x.buffer not in inside])
    where = ", ".join(f"{names.of(x.buffer)}{list(x.shape)}" for x in written)
    sources = ", ".join(names.of(x.buffer) for x in read)
    by = "  in Python" if row.text is None and node.kind == "call" else ""
    costs = f"{_flops(row) / 1e6:.3g} MFLOP, {_nbytes(row) / 1e3:.4g} kB{by}"
    return f"{where or '-'} <- {' · '.join(parts)} <- {sources}  [{costs}]"


def _is_stored(row: Row, ref: Ref) -> bool:
    if row.text is None:
        return True
    addresses = {word.ref.buffer for word in row.text.words if hasattr(word, "ref")}
    product: Any = row.node.product
    return ref.buffer in addresses or (product is not None and ref.buffer is product.outs[0].buffer)


def _unique(refs: list[Ref]) -> list[Ref]:
    return list({ref.buffer: ref for ref in refs}.values())


def _flops(row: Row) -> int:
    return sum(call.flops for call in row.node.calls)


def _nbytes(row: Row) -> int:
    sizes: dict[Buffer, int] = {}
    for call in row.node.calls:
        for x in (*call.inputs, *call.outs):
            if _is_stored(row, x):
                nbytes = min(x.size * x.dtype.itemsize, x.buffer.nbytes)
                sizes[x.buffer] = max(sizes.get(x.buffer, 0), nbytes)
    return sum(sizes.values())
