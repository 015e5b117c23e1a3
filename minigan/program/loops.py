"""The text of a fused loop, and what stands in its row of the table.

Calls become statements of one loop over one axis or two; each array is read or written the way it lies in memory: "v"
(every element), "r" (one row for all rows), "c" (one number a row), "s" (one number), "g" and "t" (with gaps).
Addresses, strides and numbers such as a learning rate are words of the row, so one text serves all sizes.
"""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minigan.kernels.rows import Scratch
from minigan.linear import CAST, MANY_TERMS, MEAN
from minigan.ops.reduce import NORM
from minigan.program.capture import Buffer, Ref
from minigan.program.fuse import Access, Node, Walk, sum_kind
from minigan.trace import Slot

FIRST = 5  # the first word that is a kernel's own


class Address(NamedTuple):
    """A word with the address of an array."""

    ref: Ref


class Text(NamedTuple):
    """A loop: the function's name and module, its words (`Address`, `Scratch`, int, or float), and how it is parted.

    split: 0 by rows (or elements), 1 by columns, 2 never.
    """

    name: str
    source: str
    words: list[Any]
    split: int


class _Writer:
    """The lines of one loop, by how often they are run."""

    def __init__(self, flat: bool, rows: int) -> None:
        self.flat, self.rows = flat, rows
        self.arrays: dict[Any, tuple[str, str, int]] = {}  # name, letter and scope
        self.words: list[Any] = []
        self.once: list[str] = []
        self.each_row: list[str] = []
        self.each: list[str] = []
        self.after_row: list[str] = []
        self.after: list[str] = []
        self.loaded: dict[Any, str] = {}
        self.called: set[str] = set()

    def word(self, value: Any) -> int:
        self.words.append(value)
        return FIRST + len(self.words) - 1

    def array(self, access: Access) -> tuple[str, str, int]:
        """The array's name, letter and scope; declares it at its first appearance."""
        key = access.key
        if key not in self.arrays:
            letter = self._letter(access)
            scope = len(self.arrays)
            name = f"x{scope}"
            self.arrays[key] = name, letter, scope
            self.once.append(f"{name} = word(row, {self.word(Address(access.ref))})")
            if letter in "ct" or (letter == "v" and not self.flat):
                self.once.append(f"{name}_row = word(row, {self.word(access.row)})")
                self.each_row.append(f"{name}_i = {name} + i * {name}_row")
            if letter in "gt":
                step = access.column // access.ref.dtype.itemsize
                self.once.append(f"{name}_step = word(row, {self.word(step)})")
        return self.arrays[key]

    def _letter(self, access: Access) -> str:
        dense = access.column == access.ref.dtype.itemsize
        if self.flat:
            return "v" if dense else "g" if access.column else "s"
        if access.row:
            return "v" if dense else "t" if access.column else "c"
        return "r" if dense else "t" if access.column else "s"

    def at(self, access: Access) -> tuple[str, str, int]:
        """What to read or write: base and index, kind, and scope."""
        name, letter, scope = self.array(access)
        base = f"{name}_i" if letter in "ct" or (letter == "v" and not self.flat) else name
        index = {"v": "j", "r": "j", "g": f"j * {name}_step", "t": f"j * {name}_step"}.get(letter, "0")
        return f"{base}, {index}", f'"{access.ref.dtype.name}"', scope

    def read(self, access: Access) -> str:
        """The name of the value of an array's element, loaded as far out as it can be."""
        name, letter, scope = self.array(access)
        if name not in self.loaded:
            place, kind, _ = self.at(access)
            lines = {"s": self.once, "c": self.each_row}.get(letter, self.each)
            self.loaded[name] = f"a{scope}"
            lines.append(f"a{scope} = read({place}, {kind}, {scope})")
        return self.loaded[name]

    def write(self, access: Access, value: str) -> str:
        place, kind, scope = self.at(access)
        return f"write({place}, {value}, {kind}, {scope})"


def write_loop(node: Node, is_read: Callable[[Buffer], bool]) -> Text:
    """The loop of a node; `is_read` tells whether the memory of a result is read after it."""
    flat = len(node.dims) == 1
    writer = _Writer(flat, node.dims[0])
    values: dict[Any, str] = {}  # computed here, by place
    stores: list[str] = []
    for k, walk in enumerate(node.walks):
        names = [values.get(a.key) or writer.read(a) for a in walk.inputs]
        kind = sum_kind(walk)
        if kind == "finite":
            _write_check(writer, walk, k, names[0])
            continue
        if kind:
            _write_sum(writer, walk, kind, k, names[0])
            continue
        for access, value in zip(walk.outs, _values(writer, walk, k, names), strict=True):
            values[access.key] = value
    written = {}
    for walk in node.walks:
        for access in walk.outs:
            if not sum_kind(walk) and (access.ref.buffer.kind != "temporary" or is_read(access.ref.buffer)):
                written[access.key] = access
    for key, access in written.items():
        stores.append(writer.write(access, values[key]))
    writer.each += stores
    kinds = {sum_kind(walk) for walk in node.walks}
    split = 2 if "all" in kinds or {"rows", "columns"} <= kinds else 1 if "columns" in kinds else 0
    name = "_".join(dict.fromkeys(walk.call.primitive.name for walk in node.walks))[:48]
    return Text(name, _module(name, writer), writer.words, split)


def _values(writer: _Writer, walk: Walk, k: int, names: Sequence[str]) -> list[str]:
    """Add the statements of a pointwise call; gives the names of its results."""
    primitive, outs = walk.call.primitive, []
    dtype = walk.outs[0].ref.dtype.name
    if primitive is CAST:
        expressions = [f"{dtype}({names[0]})"]
    elif primitive.formula is None:  # a sum over nothing, or over axes of size 1
        expressions = [f"abs({names[0]})" if primitive is NORM else names[0]]
    else:
        formula = primitive.formula
        given = dict(zip(formula.inputs, names, strict=True))
        for attribute in formula.attributes:
            value = walk.call.attributes[attribute]
            given[attribute] = f"{attribute}_{k}"
            number = f"row, {writer.word(_number(value))}"
            if isinstance(value, Slot):  # the word is the number's address
                number = f"word({number}), 0"
            writer.once.append(f"{attribute}_{k} = {dtype}(real({number}))")
        lines, expressions, called = formula.inlined(dtype, given, f"t{k}_")
        writer.each += lines
        writer.called |= called
    for n, expression in enumerate(expressions):
        outs.append(f"v{k}" if len(expressions) == 1 else f"v{k}_{n}")
        writer.each.append(f"{outs[-1]} = {expression}")
    return outs


def _number(value: Any) -> float:
    return value if isinstance(value, float) else float(value)  # a slot stays one


def _write_sum(writer: _Writer, walk: Walk, kind: str, k: int, value: str) -> None:
    """Add up `value` over columns, rows or all, in float64 wherever float32 would lose.

    The norm is the root of a sum of squares, which float64 holds for every float32.
    """
    (out,) = walk.outs
    dtype = out.ref.dtype.name
    term, result = f"float64({value})", "{}"
    if walk.call.primitive is MEAN:
        writer.once.append(f"count_{k} = real(row, {writer.word(walk.call.inputs[0].size / out.ref.size)})")
        result = f"{{}} / count_{k}"
    if walk.call.primitive is NORM:
        term, result = f"{term} * {term}", "sqrt_float64({})"
        writer.called.add("sqrt_float64")
    if kind != "columns":
        start, end = (writer.each_row, writer.after_row) if kind == "rows" else (writer.once, writer.after)
        start.append(f"total_{k} = float64(0)")
        writer.each.append(f"total_{k} = add(total_{k}, {term})")
        end.append(writer.write(out, f"{dtype}({result.format(f'total_{k}')})"))
        return
    place, quoted, scope = writer.at(out)
    wide = dtype == "float32" and (writer.rows > MANY_TERMS or walk.call.primitive is NORM)
    if wide:  # a row of sums of its own
        place, quoted, scope = f"s{k}, j", '"float64"', len(writer.arrays)
        writer.arrays[f"scratch {k}"] = f"s{k}", "r", scope
        writer.once.append(f"s{k} = word(row, {writer.word(Scratch(8 * walk.dims[1]))})")
    so_far = f"read({place}, {quoted}, {scope})"
    writer.once += ["for j in range(j0, j1):", f"    write({place}, 0, {quoted}, {scope})"]
    writer.each.append(f"write({place}, {so_far} + {term if wide else value}, {quoted}, {scope})")
    if wide or result != "{}":
        total = result.format(f"float64({so_far})")
        writer.after += ["for j in range(j0, j1):", f"    {writer.write(out, f'{dtype}({total})')}"]


def _write_check(writer: _Writer, walk: Walk, k: int, value: str) -> None:
    """Make the flag false if a value is NaN or infinite: x - x is 0 for all other numbers."""
    (out,) = walk.outs
    dtype = walk.inputs[0].ref.dtype.name
    writer.once.append(f"doubt_{k} = {dtype}(0)")
    writer.each.append(f"doubt_{k} = add(doubt_{k}, {value} - {value})")
    writer.after += [f"if doubt_{k} != 0:", f"    {writer.write(out, 'False')}"]


def _module(name: str, writer: _Writer) -> str:
    lines = list(writer.once)
    if writer.flat:
        lines.append("for j in range(i0, i1):")
        lines += [f"    {line}" for line in writer.each]
    else:
        lines.append("for i in range(i0, i1):")
        lines += [f"    {line}" for line in writer.each_row]
        lines.append("    for j in range(j0, j1):")
        lines += [f"        {line}" for line in writer.each]
        lines += [f"    {line}" for line in writer.after_row]
    lines += writer.after
    body = textwrap.indent("\n".join(lines), "    ")
    vector = "".join(f"from minigan.kernels.vector import {function}\n" for function in sorted(writer.called))
    return (
        f"from numpy import float32, float64\n\nfrom minigan.kernels.memory import add, read, real, word, write\n"
        f"{vector}\n\ndef {name}(row, i0, i1, j0, j1):\n{body}\n"
    )


def as_word(value: float) -> int:
    """The bits of a float64, as a word of the table."""
    return int(np.float64(value).view(np.int64))
