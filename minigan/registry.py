"""Every primitive of the package, for the tests, the table of operations in the docs, and the benchmarks."""

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.tape import Primitive

# Named and not imported, because `minigan.tensor` the function hides `minigan.tensor` the module.
MODULES = (
    "minigan.tape",
    "minigan.linear",
    "minigan.tensor",
    "minigan.ops.product",
    "minigan.ops.elementwise",
    "minigan.ops.reduce",
    "minigan.ops.shape",
    "minigan.ops.conv",
    "minigan.ops.attention",
    "minigan.ops.random",
    "minigan.ops.loss",
    "minigan.nn.module",
    "minigan.optim",
)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table of operations: what a primitive computes and costs on its first sample.

    Attributes:
        formula: the scalar formula as Python text, empty if the operation is not pointwise.
        shapes: of the sample's inputs.
        flops: floating point operations of one call.
        bytes: read and written by one call in float32; 0 for a view.
    """

    name: str
    formula: str
    shapes: tuple[tuple[int, ...], ...]
    flops: int
    bytes: int


def primitives(modules: Iterable[str] = MODULES) -> list[Primitive]:
    """The primitives found among the names of these modules, each once, sorted by name.

    >>> from minigan.registry import primitives
    >>> [p.name for p in primitives()][:3]
    ['absolute', 'adam', 'add']
    """
    found = {
        id(value): value
        for name in modules
        for value in vars(importlib.import_module(name)).values()
        if isinstance(value, Primitive)
    }
    return sorted(found.values(), key=lambda primitive: primitive.name)


def row(primitive: Primitive) -> Row:
    """The primitive's line in the table of operations."""
    sample = primitive.samples[0]
    dtypes: dict[str, Any] = {"float": np.float32, "bool": np.bool_, "index": np.int64, "counter": np.uint32}
    arrays = [np.zeros(x.shape, dtypes[x.kind]) for x in sample.inputs]
    specs = primitive.infer(*arrays, **sample.attributes)
    moved = [a.nbytes for a in arrays] + [
        int(np.prod(s, dtype=np.int64)) * np.dtype(d).itemsize for s, d in specs
    ]
    return Row(
        primitive.name,
        "" if primitive.formula is None else formula_text(primitive),
        tuple(x.shape for x in sample.inputs),
        primitive.flops(*arrays, **sample.attributes),
        0 if primitive.view else sum(moved),
    )


def formula_text(primitive: Primitive) -> str:
    """A pointwise primitive's formula as one line of Python, statements separated by semicolons."""
    definition: Any = ast.parse(textwrap.dedent(inspect.getsource(primitive.formula.function))).body[0]
    lines = definition.body[ast.get_docstring(definition) is not None :]
    return "; ".join(ast.unparse(line) for line in lines).replace("fm.", "").replace("return ", "")
