"""Vectors and loops as LLVM instructions, for what no loop that Numba sees becomes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

from minigan.kernels.matrix import tile

BYTES = tile()[0]  # of a vector register
VOID, POINTER, BYTE, I32, I64 = ir.VoidType(), ir.PointerType(), *map(ir.IntType, (8, 32, 64))


class Vectors(NamedTuple):
    """The instructions on vectors of one dtype. Addresses are integers, and offsets are in bytes."""

    kind: Any  # of a number in LLVM
    name: str  # the same in the names of LLVM's intrinsics
    item: int

    @property
    def lanes(self) -> int:
        """How many numbers there are in a vector."""
        return BYTES // self.item

    @property
    def zero(self) -> Any:
        """The vector of zeros."""
        return ir.Constant(ir.VectorType(self.kind, self.lanes), [0.0] * self.lanes)

    def load(self, builder: Any, address: Any, mask: Any = None) -> Any:
        """The vector at an address; zeros where the mask is not set, which are not read."""
        pointer = builder.inttoptr(address, POINTER)
        if mask is None:
            return builder.load(pointer, align=self.item, typ=self.zero.type)
        name = f"llvm.masked.load.v{self.lanes}{self.name}.p0"
        return call_function(builder, name, self.zero.type, pointer, I32(self.item), mask, self.zero)

    def store(self, builder: Any, value: Any, address: Any, mask: Any = None) -> None:
        """Write a vector, where the mask is set."""
        pointer = builder.inttoptr(address, POINTER)
        if mask is None:
            builder.store(value, pointer, align=self.item)
        else:
            name = f"llvm.masked.store.v{self.lanes}{self.name}.p0"
            call_function(builder, name, VOID, value, pointer, I32(self.item), mask)

    def below(self, builder: Any, count: Any) -> Any:
        """The mask of the lanes i < count."""
        lanes = ir.Constant(ir.VectorType(I64, self.lanes), list(range(self.lanes)))
        return builder.icmp_signed("<", lanes, splat(builder, count, self.lanes))

    def load_number(self, builder: Any, address: Any) -> Any:
        """The number at an address."""
        return builder.load(builder.inttoptr(address, POINTER), align=self.item, typ=self.kind)

    def load_splat(self, builder: Any, address: Any) -> Any:
        """A number in every lane."""
        return splat(builder, self.load_number(builder, address), self.lanes)

    def multiply_add(self, builder: Any, x: Any, y: Any, z: Any) -> Any:
        """x * y + z, rounded once where the CPU can."""
        return call_function(builder, f"llvm.fmuladd.v{self.lanes}{self.name}", z.type, x, y, z)


FLOAT32 = Vectors(ir.FloatType(), "f32", 4)
FLOAT64 = Vectors(ir.DoubleType(), "f64", 8)


def call_function(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Call a function of LLVM's, or of another module, by its name."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def shuffle(builder: Any, x: Any, y: Any, order: Sequence[int]) -> Any:
    """The vector of the elements number `order` of x and y, one behind the other."""
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(order)), list(order)))


def splat(builder: Any, x: Any, lanes: int) -> Any:
    """The vector with the number x in all lanes."""
    undefined = ir.Constant(ir.VectorType(x.type, lanes), ir.Undefined)
    return shuffle(builder, builder.insert_element(undefined, x, I32(0)), undefined, [0] * lanes)


def prefetch(builder: Any, address: Any, write: bool) -> None:
    """Ask for the cache line at an address, which need not be readable."""
    pointer = builder.inttoptr(address, POINTER)
    call_function(builder, "llvm.prefetch.p0", VOID, pointer, I32(int(write)), I32(3), I32(1))


def loop(
    builder: Any, count: Any, step: int, start: list[Any], body: Callable[[Any, Any], list[Any]]
) -> list[Any]:
    """Carry values, from `start` on, through `values = body(k, values)` for k in range(0, count, step)."""
    start = [I64(0), *start]
    before, inside, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
    builder.cbranch(builder.icmp_signed(">", count, I64(0)), inside, after)
    builder.position_at_end(inside)
    values = [builder.phi(value.type) for value in start]
    following = [builder.add(values[0], I64(step)), *body(values[0], values[1:])]
    builder.cbranch(builder.icmp_signed("<", following[0], count), inside, after)
    builder.position_at_end(after)
    results = [builder.phi(value.type) for value in start]
    for value, result, first, later in zip(values, results, start, following, strict=True):
        for phi in (value, result):
            phi.add_incoming(first, before)
            phi.add_incoming(later, inside)
    return results[1:]


def intrinsic(emit: Callable[..., None]) -> Any:
    """A function for compiled code, of integers: `emit(builder, *arguments)` writes its instructions in place."""

    def typed(typingctx: Any, *kinds: Any) -> Any:
        def emit_in(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            emit(builder, *(builder.extract_value(arguments[0], k) for k in range(len(kinds))))
            return context.get_dummy_value()

        return types.void(types.StarArgTuple([types.intp] * len(kinds))), emit_in

    function: Any = extending.intrinsic(typed)
    return function
