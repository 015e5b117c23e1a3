"""Pointwise formulas as generated loops.

A formula is a plain Python function of scalars written with the functions of `minigan.kernels.formula`:

    def leaky_relu(x, *, slope):
        return fm.where(x > 0, x, slope * x)

As it stands it works on NumPy arrays: that is the fallback and the reference. For Numba its body is put inside a loop
over elements, with the vectorising functions of `minigan.kernels.vector` behind the same names and every number
written in the loop's own dtype, so that float32 stays float32. Broadcasting is part of the generated text: each operand
is read by a letter of the loop's layout, "v" (every element), "r" (a row, such as a bias), "c" (a column) or "s" (one
number).
"""

import ast
import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.kernels import formula as formula_names
from minigan.kernels.launch import available, build, may_build, numba, source_of


class Formula:
    """A scalar formula, callable on whole arrays as a kernel: `formula(outs, *arrays, **attributes)`.

    Args:
        function: the formula; parameters are the inputs, then keyword-only attributes (Python numbers).
        donates: the first inputs that are the same memory as the outputs of the same number.
    """

    def __init__(self, function: Callable[..., Any], donates: int = 0) -> None:
        self.function, self.donates = function, donates
        self.name = function.__name__.strip("_")
        # Read off the code and not through `inspect`, whose signatures would be a tenth of the time to import minigan.
        code = function.__code__
        self.inputs = list(code.co_varnames[: code.co_argcount])
        self.attributes = list(code.co_varnames[code.co_argcount :][: code.co_kwonlyargcount])
        self._loops: dict[tuple[str, str], Callable[..., None]] = {}

    def __call__(self, outs: Sequence[Array], *arrays: Array, **attributes: float) -> None:
        """Compute `outs` from arrays that broadcast to their shape."""
        out = outs[0]
        if not available() or not _all_contiguous(outs) or not self._has_source:
            self.numpy(outs, *arrays, **attributes)
        elif out.size:
            layout, operands, shape = arrange(out.shape, arrays)
            arguments: list[Any] = [out.reshape(shape) for out in outs[self.donates :]] + operands
            arguments += [float(attributes[name]) for name in self.attributes]  # an integer has another type
            loop = self._loops.get((out.dtype.char, layout))
            if loop is None:
                if not may_build() or numba() is None:
                    self.numpy(outs, *arrays, **attributes)
                    return
                name = f"{self.name}_{out.dtype.name}_{layout}"
                # What it writes to comes first: the outputs, then the donated inputs that stand for the others.
                source = self.source(out.dtype.name, layout, len(outs))
                loop = build(name, source, tuple(arguments), writes=len(outs))
                self._loops[out.dtype.char, layout] = loop
            loop(*arguments)

    def numpy(self, outs: Sequence[Array], *arrays: Array, **attributes: float) -> None:
        """Evaluate the formula with NumPy, in float64 so that float32 results carry one rounding."""
        wide = [array.astype(np.float64) if array.dtype == np.float32 else array for array in arrays]
        with np.errstate(all="ignore"):  # both branches of a `where` are evaluated
            results = self.function(*wide, **attributes)
            for out, result in zip(outs, results if isinstance(results, tuple) else (results,), strict=True):
                np.copyto(out, result, casting="unsafe")

    def source(self, dtype: str, layout: str, outputs: int = 1) -> str:
        """The text of the loop for one dtype ("float32" or "float64") and one layout."""
        body, result = self._body()
        names = {n.id for part in [*body, result] for n in ast.walk(part) if isinstance(n, ast.Name)}
        two = "r" in layout or "c" in layout
        index = "i, j" if two else "i"
        reads: dict[str, list[str]] = {
            "s": [],
            "c": [],
            "r": [],
            "v": [],
        }  # by the loop a value is constant in
        for name, letter in zip(self.inputs, layout, strict=True):
            reads[letter].append(
                f"{name} = in_{name}[{ {'s': '0', 'c': 'i', 'r': 'j', 'v': index}[letter] }]"
            )
        targets = [f"in_{self.inputs[k]}" if k < self.donates else f"out_{k}" for k in range(outputs)]
        values = result.elts if isinstance(result, ast.Tuple) else [result]
        steps = reads["r"] + reads["v"] + [ast.unparse(statement) for statement in body]
        # Every value is computed before any is stored: outputs may be inputs.
        steps += [f"value_{k} = {ast.unparse(value)}" for k, value in enumerate(values)]
        steps += [f"{target}[{index}] = value_{k}" for k, target in enumerate(targets)]
        arguments = targets[self.donates :] + [f"in_{name}" for name in self.inputs]
        arguments += [f"at_{name}" for name in self.attributes]
        lines = ["import numpy as np", ""]
        lines += [
            f"from minigan.kernels.vector import {name}_{dtype} as {name}"
            for name in sorted(names.intersection(formula_names.__all__))
        ]
        lines += [
            "",
            f"dtype = np.{dtype}",
            "",
            "",
            f"def {self.name}_{dtype}_{layout}({', '.join(arguments)}):",
        ]
        lines += [f"    {name} = dtype(at_{name})" for name in self.attributes]
        lines += ["    " + read for read in reads["s"]]
        lines += [f"    for i in range({targets[0]}.shape[0]):"]
        depth = 8
        if two:
            lines += ["        " + read for read in reads["c"]]
            lines += [f"        for j in range({targets[0]}.shape[1]):"]
            depth = 12
        return "\n".join(lines) + "\n" + textwrap.indent("\n".join(steps), " " * depth) + "\n"

    def inlined(
        self, dtype: str, names: Mapping[str, str], prefix: str
    ) -> tuple[list[str], list[str], set[str]]:
        """The formula as part of a longer text: statements, the expressions of its results, the functions it calls.

        names: what its inputs and attributes are called there; its own variables begin with `prefix`.
        """
        body, result = self._body()
        assigned = {
            n.id
            for s in body
            for n in ast.walk(s)
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        # What the formula assigns to is a variable of its own, also where it bears the name of an input.
        first = [f"{prefix}{name} = {names[name]}" for name in sorted(assigned.intersection(names))]
        rename = {**names, **{name: prefix + name for name in assigned}}
        renamer = _Renamed(rename, dtype)
        lines = first + [ast.unparse(renamer.visit(statement)) for statement in body]
        values = result.elts if isinstance(result, ast.Tuple) else [result]
        return lines, [ast.unparse(renamer.visit(value)) for value in values], renamer.called

    @functools.cached_property
    def operations(self) -> int:
        """Operators and calls in the formula: its count of floating point operations for one element."""
        body, result = self._body()
        nodes = [node for part in [*body, result] for node in ast.walk(part)]
        arithmetic = sum(isinstance(node, (ast.BinOp, ast.UnaryOp, ast.Compare)) for node in nodes)
        calls = [
            node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        return arithmetic + len([name for name in calls if name != "dtype"])

    @functools.cached_property
    def _has_source(self) -> bool:
        return source_of(self.function) != ""

    def _body(self) -> tuple[list[ast.stmt], ast.expr]:
        """The formula's statements and its result, numbers written as `dtype(number)`."""
        definition = _ForLoops().visit(ast.parse(source_of(self.function)).body[0])
        *body, last = definition.body
        body = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
        return body, last.value


class _ForLoops(ast.NodeTransformer):
    """A formula's text as a loop needs it: `fm.exp` by its bare name, and every number in the loop's dtype, because
    a Python number in Numba is float64 or int64 and would widen a float32 loop."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return ast.Name(node.attr, ast.Load())

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if isinstance(node.value, bool) or not isinstance(node.value, (int, float)):
            return node
        return ast.Call(ast.Name("dtype", ast.Load()), [node], [])


class _Renamed(ast.NodeTransformer):
    """A formula's text with other names for its variables, and `exp` as `exp_float32`, `dtype` as `float32`."""

    def __init__(self, names: Mapping[str, str], dtype: str) -> None:
        self.names, self.dtype = names, dtype
        self.called: set[str] = set()

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in formula_names.__all__:
            self.called.add(f"{node.id}_{self.dtype}")
            return ast.Name(f"{node.id}_{self.dtype}", node.ctx)
        return ast.Name(self.dtype if node.id == "dtype" else self.names[node.id], node.ctx)


def _all_contiguous(outs: Sequence[Array]) -> bool:
    for out in outs:  # noqa: SIM110 - a generator in all() costs as much as the loop over a small array
        if not out.flags.c_contiguous:
            return False
    return True


def arrange(shape: tuple[int, ...], arrays: Sequence[Array]) -> tuple[str, list[Array], Any]:
    """The layout of operands that broadcast to `shape`, the operands as the loop reads them, and the loop's shape.

    The loop's shape is -1 for one loop over all elements, or (rows, columns).
    """
    layout = ""
    flat = []
    for array in arrays:
        if array.shape == shape and array.flags.c_contiguous:
            layout += "v"
        elif array.size == 1:
            layout += "s"
        else:
            return _rows_and_columns(shape, arrays)
        flat.append(array.ravel())
    return layout, flat, -1


def _rows_and_columns(shape: tuple[int, ...], arrays: Sequence[Array]) -> tuple[str, list[Array], Any]:
    """`arrange` where an operand is smaller than the output, or strided.

    One split of the axes into rows and columns serves all operands: the first one that lacks axes decides it, and
    an operand that fits neither half is expanded.
    """
    kept = [_varying_axes(array, shape) for array in arrays]
    full = [axis for axis, n in enumerate(shape) if n > 1]
    split = len(shape)
    for axes in kept:
        if axes and axes != full:
            split = axes[0] if axes[-1] == full[-1] else axes[-1] + 1
            break
    halves = {"r": [axis for axis in full if axis >= split], "c": [axis for axis in full if axis < split]}
    layout = ""
    for axes in kept:
        layout += (
            next((letter for letter, half in halves.items() if axes == half != full), "v") if axes else "s"
        )
    rows = int(np.prod(shape[:split], dtype=np.int64))
    loop: Any = (rows, -1) if "r" in layout or "c" in layout else -1
    operands = []
    for array, axes, letter in zip(arrays, kept, layout, strict=True):
        if letter == "v":
            # broadcast_to would make an operand of full shape read-only, and a donated one is written to
            whole = array if array.shape == shape else np.broadcast_to(array, shape)
            operands.append(np.ascontiguousarray(whole).reshape(loop))
        else:
            aligned = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
            once = tuple(slice(None) if axis in axes else slice(0, 1) for axis in range(len(shape)))
            operands.append(np.ascontiguousarray(aligned[once]).reshape(-1))
    return layout, operands, loop


def _varying_axes(array: Array, shape: tuple[int, ...]) -> list[int]:
    """The axes of `shape` along which the operand really varies (a stride of 0 repeats one value)."""
    offset = len(shape) - array.ndim
    return [a + offset for a in range(array.ndim) if array.shape[a] > 1 and array.strides[a] != 0]
