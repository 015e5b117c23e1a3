"""The text of kernels: what all of them begin with, and scalar formulas in CUDA C.

A formula is the same Python text that becomes a loop on the CPU (`minigan.kernels.loops`): `exp_float32(-x)` is C as it
stands once there is a function of that name; only operators bind differently, so each gets its parentheses.
"""

import ast
from typing import Any

import numpy as np

from minigan.errors import ConfigError

TYPES = {
    "float32": "float",
    "float64": "double",
    "bool": "bool",
    "int8": "signed char",
    "int16": "short",
    "int32": "int",
    "int64": "long long",
    "uint8": "unsigned char",
    "uint16": "unsigned short",
    "uint32": "unsigned int",
    "uint64": "unsigned long long",
}

# The functions of `minigan.kernels.formula`, with NumPy's ways with NaN, and of 0 and -0 the second as on x86. {t} is
# the dtype, {f} the suffix of C's own.
_FUNCTIONS = """
__device__ {t} exp_{t}({t} x) {{ return exp{f}(x); }}
__device__ {t} expm1_{t}({t} x) {{ return expm1{f}(x); }}
__device__ {t} log_{t}({t} x) {{ return log{f}(x); }}
__device__ {t} log1p_{t}({t} x) {{ return log1p{f}(x); }}
__device__ {t} sqrt_{t}({t} x) {{ return sqrt{f}(x); }}
__device__ {t} sin_{t}({t} x) {{ return sin{f}(x); }}
__device__ {t} cos_{t}({t} x) {{ return cos{f}(x); }}
__device__ {t} tanh_{t}({t} x) {{ return tanh{f}(x); }}
__device__ {t} erf_{t}({t} x) {{ return erf{f}(x); }}
__device__ {t} floor_{t}({t} x) {{ return floor{f}(x); }}
__device__ {t} absolute_{t}({t} x) {{ return fabs{f}(x); }}
__device__ {t} power_{t}({t} x, {t} y) {{ return pow{f}(x, y); }}
__device__ bool isnan_{t}({t} x) {{ return x != x; }}
__device__ {t} maximum_{t}({t} a, {t} b) {{ return a > b || a != a ? a : b; }}
__device__ {t} minimum_{t}({t} a, {t} b) {{ return a < b || a != a ? a : b; }}
__device__ {t} sign_{t}({t} x) {{ return x > 0 ? {t}(1) : x < 0 ? {t}(-1) : x == 0 ? {t}(0) : x; }}
__device__ {t} where_{t}(bool c, {t} a, {t} b) {{ return c ? a : b; }}
"""
PRELUDE = "".join(f"typedef {c} {name};\n" for name, c in TYPES.items() if name != "bool") + "".join(
    _FUNCTIONS.format(t=t, f=f) for t, f in (("float32", "f"), ("float64", ""))
)

_BINARY = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
}
_COMPARE = {ast.Gt: ">", ast.GtE: ">=", ast.Lt: "<", ast.LtE: "<=", ast.Eq: "==", ast.NotEq: "!="}


def type_of(dtype: Any) -> str:
    """The name in a kernel's text of a NumPy dtype.

    >>> from minigan.cuda.text import type_of
    >>> type_of("float32"), type_of("bool")
    ('float32', 'bool')
    """
    name: str = np.dtype(dtype).name
    if name not in TYPES:
        raise ConfigError(f"dtype {name} has no kernels on a GPU")
    return name


def expression(text: str) -> str:
    """A Python expression of a formula in C.

    >>> from minigan.cuda.text import expression
    >>> expression("exp_float32(-x) * float32(2.0) + y")
    '((exp_float32((-x)) * float32(2.0)) + y)'
    """
    return _c(ast.parse(text, mode="eval").body)


def statement(text: str, declared: set[str]) -> str:
    """An assignment of a formula in C; it declares a variable that is not in `declared`, and adds it there."""
    (assignment,) = ast.parse(text).body
    if not isinstance(assignment, ast.Assign) or not isinstance(assignment.targets[0], ast.Name):
        raise ConfigError(f"formulas consist of assignments to one name and a result, not {text!r}")
    name = assignment.targets[0].id
    kind = "" if name in declared else "auto "
    declared.add(name)
    return f"{kind}{name} = {_c(assignment.value)};"


def _c(node: ast.expr) -> str:
    match node:
        case ast.Name():
            return node.id
        case ast.Constant(value=bool()):
            return str(node.value).lower()
        case ast.Constant():
            return repr(node.value)
        case ast.UnaryOp(op=ast.USub()):
            return f"(-{_c(node.operand)})"
        case ast.BinOp() if type(node.op) in _BINARY:
            return f"({_c(node.left)} {_BINARY[type(node.op)]} {_c(node.right)})"
        case ast.Compare(ops=[op]) if type(op) in _COMPARE:
            return f"({_c(node.left)} {_COMPARE[type(op)]} {_c(node.comparators[0])})"
        case ast.Call(func=ast.Name(id=name)):
            return f"{name}({', '.join(map(_c, node.args))})"
    raise ConfigError(f"{ast.unparse(node)!r} in a formula has no translation to C")
