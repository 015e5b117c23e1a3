"""What a kernel of a program does with memory: words of its row, numbers at addresses, sums in any order.

A row holds addresses, so that one compiled kernel serves arrays of all sizes in all places. Each array of a row has a
number, its scope; accesses to arrays of different scopes are declared not to overlap, without which LLVM would check
the addresses before each loop, and with more than a few arrays would not vectorise it.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending, types

SCOPES = 32  # arrays of one row

KINDS: dict[str, Any] = {
    "bool": types.boolean,
    **{str(t): t for t in (types.float32, types.float64)},
    **{f"{u}int{n}": getattr(types, f"{u}int{n}") for u in ("", "u") for n in (8, 16, 32, 64)},
}
_intrinsic: Callable[..., Any] = extending.intrinsic
_of_literals: Callable[..., Any] = extending.intrinsic(prefer_literal=True)


def _place(context: Any, builder: Any, base: Any, index: Any, kind: Any) -> Any:
    """A pointer to element `index` after the address `base`."""
    pointer = context.get_data_type(kind).as_pointer()
    return builder.gep(builder.inttoptr(base, pointer), [index], inbounds=True)


def _declare(builder: Any, instruction: Any, scope: int) -> None:
    """Say that what is accessed overlaps only with what is of the same scope."""
    module = builder.module
    domain = module.add_metadata(["arrays of a row"])
    scopes = [module.add_metadata([f"array {k}", domain]) for k in range(SCOPES)]
    instruction.set_metadata("alias.scope", module.add_metadata([scopes[scope]]))
    instruction.set_metadata("noalias", module.add_metadata([s for k, s in enumerate(scopes) if k != scope]))


@_of_literals
def read(typingctx: Any, base: Any, index: Any, kind: Any, scope: Any) -> Any:
    """Element `index` of the array of dtype `kind`, a name, at the address `base`; array number `scope`."""
    number, array = KINDS[kind.literal_value], scope.literal_value

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loaded = builder.load(_place(context, builder, arguments[0], arguments[1], number))
        _declare(builder, loaded, array)
        return context.data_model_manager[number].from_data(builder, loaded)

    return number(types.intp, types.intp, kind, scope), emit


@_of_literals
def write(typingctx: Any, base: Any, index: Any, value: Any, kind: Any, scope: Any) -> Any:
    """Store `value` where `read` with the same arguments would find it."""
    number, array = KINDS[kind.literal_value], scope.literal_value

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.data_model_manager[number].as_data(builder, arguments[2])
        stored = builder.store(data, _place(context, builder, arguments[0], arguments[1], number))
        _declare(builder, stored, array)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, number, kind, scope), emit


@_intrinsic
def word(typingctx: Any, row: Any, index: Any) -> Any:
    """Word `index` of the row at the address `row`, an integer."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_place(context, builder, arguments[0], arguments[1], types.intp))

    return types.intp(types.intp, types.intp), emit


@_intrinsic
def real(typingctx: Any, row: Any, index: Any) -> Any:
    """Word `index` of the row at the address `row`, a float64."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_place(context, builder, arguments[0], arguments[1], types.float64))

    return types.float64(types.intp, types.intp), emit


@_of_literals
def words(typingctx: Any, count: Any) -> Any:
    """The address of `count` words on the stack, a row for a kernel to call another with."""
    number = count.literal_value

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        with builder.goto_entry_block():
            place = builder.alloca(ir.ArrayType(ir.IntType(64), number))
        return builder.ptrtoint(place, ir.IntType(64))

    return types.intp(count), emit


@_intrinsic
def add(typingctx: Any, total: Any, term: Any) -> Any:
    """total + term of one dtype, where terms may be added in any order: as many at a time as a vector has lanes."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments, flags=["reassoc"])

    return total(total, total), emit
