"""The loop of a node as kernels of a GPU: its calls as statements, its arrays, and what is stored."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from minigan.cuda.fused import Array, Loop, Number, Sum, element, launches
from minigan.cuda.launch import Launch
from minigan.cuda.loops import Form, form_of, formula_lines
from minigan.cuda.text import type_of
from minigan.linear import CAST, MEAN
from minigan.ops.reduce import NORM
from minigan.program.capture import Buffer, Ref
from minigan.program.fuse import Access, Node, Walk, sum_kind
from minigan.program.loops import Address
from minigan.trace import Slot


class Grid(NamedTuple):
    """Kernels, the arrays that their operands are, and which of these they touch, as words for the listing."""

    plan: list[Launch]
    refs: list[Ref]

    @property
    def words(self) -> list[Any]:
        """The arrays in memory, as a loop of the CPU has them among its words."""
        return [Address(ref) for ref in self.refs]


class _Writer:
    """The arrays, numbers and statements of a loop."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        self.dims = dims
        self.numbers: list[Number] = []
        self.body: list[str] = []
        self.sums: list[Sum] = []
        self.refs: list[Ref] = []
        self._numbers_of: dict[Any, int] = {}  # of arrays, by place
        self._forms: list[tuple[Form, tuple[int, ...]]] = []
        self._stored: set[int] = set()
        self._loaded: dict[int, str] = {}

    def array(self, access: Access) -> int:
        """The number of an array."""
        if access.key not in self._numbers_of:
            self._numbers_of[access.key] = len(self.refs)
            steps = (access.row, access.column) if len(self.dims) == 2 else (access.column,)
            self.refs.append(access.ref)
            self._forms.append((form_of(access.ref.dtype, steps, self.dims), steps))
        return self._numbers_of[access.key]

    def text(self, access: Access) -> str:
        """An array's element."""
        number = self.array(access)
        return element(number, self._forms[number][0])

    def read(self, access: Access) -> str:
        """The variable with the value of an array's element."""
        number = self.array(access)
        if number not in self._loaded:
            self._loaded[number] = f"a{number}"
            self.body.append(f"const {type_of(access.ref.dtype)} a{number} = {self.text(access)};")
        return self._loaded[number]

    def write(self, access: Access, value: str, condition: str = "") -> None:
        """Store a value."""
        self._stored.add(self.array(access))
        self.body.append(f"{condition}{self.text(access)} = {value};")

    def sum(self, access: Access, term: str, result: str) -> None:
        """Add up a term of each element."""
        self._stored.add(self.array(access))
        self.sums.append(Sum(term, self.array(access), result))

    def loop(self, name: str, kind: str) -> Loop:
        """All of it."""
        arrays = [Array(form, steps, k in self._stored) for k, (form, steps) in enumerate(self._forms)]
        return Loop(
            name, self.dims, tuple(arrays), tuple(self.numbers), tuple(self.body), kind, tuple(self.sums)
        )


def grid_of(node: Node, is_read: Callable[[Buffer], bool]) -> Grid:
    """The kernels of a node's loop; `is_read` tells whether the memory of a result is read after it."""
    writer = _Writer(node.dims)
    values: dict[Any, str] = {}  # computed here, by place
    written: dict[Any, Access] = {}
    kinds = {""}
    for k, walk in enumerate(node.walks):
        names = [values.get(a.key) or writer.read(a) for a in walk.inputs]
        kind = sum_kind(walk)
        if kind == "finite":  # x - x is 0 for all numbers but NaN and infinities
            writer.write(walk.outs[0], "false", f"if ({names[0]} - {names[0]} != 0) ")
        elif kind:
            kinds.add(kind)
            _add_up(writer, walk, k, names[0])
        else:
            for access, value in zip(walk.outs, _values(writer, walk, k, names), strict=True):
                values[access.key] = value
                if access.ref.buffer.kind != "temporary" or is_read(access.ref.buffer):
                    written[access.key] = access
    for key, access in written.items():
        writer.write(access, values[key])
    name = "_".join(dict.fromkeys(walk.call.primitive.name for walk in node.walks))[:48]
    return Grid(launches(writer.loop(name, max(kinds))), writer.refs)


def _values(writer: _Writer, walk: Walk, k: int, names: Sequence[str]) -> list[str]:
    """Add the statements of a pointwise call; gives the variables of its results."""
    primitive = walk.call.primitive
    if primitive is CAST:
        expressions = list(names)
    elif primitive.formula is None:  # a sum over nothing, or over axes of size 1
        expressions = [
            f"absolute_{type_of(walk.outs[0].ref.dtype)}({names[0]})" if primitive is NORM else names[0]
        ]
    else:
        formula = primitive.formula
        dtype = _dtype(walk)
        given = dict(zip(formula.inputs, names, strict=True))
        for attribute in formula.attributes:
            value = walk.call.attributes[attribute]
            given[attribute] = f"{attribute}_{k}"
            word = value if isinstance(value, Slot) else float(value)
            writer.numbers.append(Number(given[attribute], dtype, word, isinstance(value, Slot)))
        lines, expressions = formula_lines(formula, dtype, given, f"t{k}_")
        writer.body += lines
    results = []
    for n, (access, expression) in enumerate(zip(walk.outs, expressions, strict=True)):
        results.append(f"v{k}_{n}")
        writer.body.append(f"const {type_of(access.ref.dtype)} v{k}_{n} = {expression};")
    return results


def _dtype(walk: Walk) -> str:
    """The type of a formula's numbers: of its operands that are floats."""
    kinds = [type_of(a.ref.dtype) for a in (*walk.inputs, *walk.outs) if a.ref.dtype.kind == "f"]
    return kinds[0] if kinds else "float32"


def _add_up(writer: _Writer, walk: Walk, k: int, value: str) -> None:
    """Add up `value`; the norm is the root of a sum of squares, which float64 holds for every float32."""
    (out,) = walk.outs
    if walk.call.primitive is NORM:
        writer.sum(out, f"(float64){value} * (float64){value}", "sqrt(total)")
    elif walk.call.primitive is MEAN:
        count = float(walk.call.inputs[0].size / out.ref.size)
        writer.numbers.append(Number(f"count_{k}", "float64", count, False))
        writer.sum(out, value, f"total / count_{k}")
    else:
        writer.sum(out, value, "total")
