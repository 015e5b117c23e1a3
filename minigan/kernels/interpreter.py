"""What runs a table of kernel calls, in compiled code: the calling thread's loop and the workers' loop.

`run_part`, `run_phases`, `serve` and `check` become kernels of their own (see `minigan.kernels.machine`, which compiles
them and says what the tables hold); the first is called by address, which halves the time to compile the others. All
that threads share is a pool's block of words, which lives as long as any of its workers:

    OPEN     one bit for each part of the phase that nobody has claimed
    DONE     how many parts of the phase are finished
    the phase itself (FIRST, LAST, PARTS, ROWS, MODE): written before OPEN, read after a claim
    MODE     the floating-point mode of the run, which a worker takes over: it is a thread's own, and the bits must
             not depend on who runs a part
    STOP     not 0 when the workers shall leave
    YIELD, SLEEP, NAP    addresses of the system's functions, and how long a nap is in the unit of SLEEP

A part is claimed by clearing its bit in OPEN, in one atomic instruction whose result says who cleared it. The calling
thread leaves a phase only when all its parts are done, so a claim holds the phase, its rows and their arrays where
they are; and whoever has no claim reads nothing but the pool. So a worker that the system stopped for a while, with an
old look at OPEN in its hands, either gets a part of the phase that is open by then, or nothing.
"""

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

from minigan.kernels.layout import (
    DONE,
    FAILED,
    FINISHED,
    FIRST,
    KERNEL,
    LAST,
    MODE,
    NAP,
    OPEN,
    PARTS,
    PHASE_BYTES,
    PHASE_LIST,
    QUANTUM,
    ROW_LIST,
    ROWS,
    SLEEP,
    SPLIT,
    SPLIT_N,
    STOP,
    WHOLE,
    YIELD,
    M,
    N,
)
from minigan.kernels.matrix import ARM

_intrinsic: Callable[..., Any] = extending.intrinsic
_inline: Callable[..., Any] = numba.njit(inline="always", error_model="numpy")

# How the names of processors begin that have instructions of their own below.
X86 = ("x86_64", "i686")
FLUSH_X86 = 0x8040  # FTZ and DAZ of MXCSR
FLUSH_ARM = 1 << 24  # FZ of FPCR

# How long a thread that waits is at it: first with the processor's hint for such loops (some 50 us), then giving the
# core to others (some 500 us if nobody wants it), then in naps. What Python does between two runs should not take
# longer than that: with the copies of arguments 0.15 ms at batch 64 and 0.3 at 256 where the clock is low, and with 200
# yields steps on two threads took 3 to 8 % longer. But it must not take long to nap: with another process on one of two
# cores, only a core left idle makes the system move the thread that has the work to it.
SPINS = 1000
YIELDS = 1000
NAPS = 1000


@_intrinsic
def load(typingctx: Any, address: Any) -> Any:
    """The word at an address; nothing that stands after is read before it."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_pointer(builder, arguments[0], 64), "acquire", 8)

    return types.int64(types.int64), emit


@_intrinsic
def store(typingctx: Any, address: Any, value: Any) -> Any:
    """Write the word at an address, after all that stands before."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[1], _pointer(builder, arguments[0], 64), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@_intrinsic
def clear_bits(typingctx: Any, address: Any, bits: Any) -> Any:
    """Clear bits of the word at an address; the word before."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = _pointer(builder, arguments[0], 64)
        return builder.atomic_rmw("and", word, builder.not_(arguments[1]), "acq_rel")

    return types.int64(types.int64, types.int64), emit


@_intrinsic
def add(typingctx: Any, address: Any, value: Any) -> Any:
    """Add to the word at an address; the word before."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, arguments[0], 64), arguments[1], "acq_rel")

    return types.int64(types.int64, types.int64), emit


@_intrinsic
def flag(typingctx: Any, address: Any) -> Any:
    """The byte at an address."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.zext(builder.load(_pointer(builder, arguments[0], 8)), ir.IntType(64))

    return types.int64(types.int64), emit


@_intrinsic
def lowest(typingctx: Any, bits: Any) -> Any:
    """The position of the lowest bit that is set."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), emit


@_intrinsic
def call(typingctx: Any, address: Any, *arguments: Any) -> Any:
    """Call the C function at an address with integers; its result is dropped."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = ir.IntType(64)
        passed = [builder.extract_value(values[1], k) for k in range(len(arguments))]
        function = ir.FunctionType(ir.VoidType(), [word] * len(passed)).as_pointer()
        builder.call(builder.inttoptr(values[0], function), passed)
        return context.get_dummy_value()

    return types.void(types.int64, types.StarArgTuple(arguments)), emit


@_intrinsic
def pause(typingctx: Any) -> Any:
    """Tell the processor that this is a loop that waits, where it has an instruction for that."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if builder.module.triple.startswith(X86):
            _call_intrinsic(builder, "llvm.x86.sse2.pause", ir.VoidType())
        return context.get_dummy_value()

    return types.void(), emit


@_intrinsic
def floating_point_mode(typingctx: Any) -> Any:
    """How this thread rounds, and what it does with subnormal numbers; 0 on processors not known here."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, triple = ir.IntType(64), builder.module.triple
        if triple.startswith(X86):
            place = cgutils.alloca_once(builder, ir.IntType(32))
            _call_intrinsic(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), _bytes_of(builder, place))
            return builder.zext(builder.load(place), word)
        if triple.startswith(ARM):
            return _call_intrinsic(builder, "llvm.aarch64.get.fpcr", word)
        return ir.Constant(word, 0)

    return types.int64(), emit


@_intrinsic
def set_floating_point_mode(typingctx: Any, mode: Any) -> Any:
    """Set what `floating_point_mode` gave."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        triple = builder.module.triple
        if triple.startswith(X86):
            place = cgutils.alloca_once(builder, ir.IntType(32))
            builder.store(builder.trunc(arguments[0], ir.IntType(32)), place)
            _call_intrinsic(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), _bytes_of(builder, place))
        elif triple.startswith(ARM):
            _call_intrinsic(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), emit


@_intrinsic
def flushing(typingctx: Any) -> Any:
    """The bits of `floating_point_mode` that have subnormal numbers taken for 0, read and computed."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        triple = builder.module.triple
        bits = FLUSH_X86 if triple.startswith(X86) else FLUSH_ARM if triple.startswith(ARM) else 0
        return ir.Constant(ir.IntType(64), bits)

    return types.int64(), emit


def _call_intrinsic(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(builder.module.declare_intrinsic(name, fnty=function), arguments)


def _bytes_of(builder: Any, pointer: Any) -> Any:
    return builder.bitcast(pointer, ir.IntType(8).as_pointer())


def _pointer(builder: Any, address: Any, bits: int) -> Any:
    return builder.inttoptr(address, ir.IntType(bits).as_pointer())


@_inline
def run_part(rows: int, first: int, last: int, parts: int, part: int) -> None:
    """Run the blocks of one part of the rows first..last-1 of the list at `rows`."""
    for k in range(first, last):
        row = load(rows + 8 * k)
        n, m, split, quantum = load(row + N), load(row + M), load(row + SPLIT), load(row + QUANTUM)
        if parts == 1 or split == WHOLE:
            if (k - first) % parts == part:  # such rows are dealt out in turn
                call(load(row + KERNEL), row, 0, n, 0, m)
        else:
            size = n if split == SPLIT_N else m
            quanta = (size + quantum - 1) // quantum
            begin = part * quanta // parts * quantum
            end = min((part + 1) * quanta // parts * quantum, size)
            if begin < end:
                if split == SPLIT_N:
                    call(load(row + KERNEL), row, begin, end, 0, m)
                else:
                    call(load(row + KERNEL), row, 0, n, begin, end)


@_inline
def _run_open_parts(pool: int, me: int, runner: int) -> None:
    """Run parts of the open phase that nobody has claimed, the part `me` first; `runner` is `run_part`'s address."""
    opened = load(pool + OPEN)
    while opened != 0:
        part = me if opened >> me & 1 else lowest(opened)
        bit = 1 << part
        if clear_bits(pool + OPEN, bit) & bit:
            if me != 0:
                set_floating_point_mode(load(pool + MODE))
            call(runner, load(pool + ROWS), load(pool + FIRST), load(pool + LAST), load(pool + PARTS), part)
            add(pool + DONE, 1)
        opened = load(pool + OPEN)


@_inline
def _wait(pool: int, waited: int) -> None:
    """Let a little time pass, after `waited` such times."""
    if waited < SPINS:
        pause()
    elif waited < SPINS + YIELDS:
        call(load(pool + YIELD), 0)
    else:
        call(load(pool + SLEEP), load(pool + NAP))


@_inline
def run_phases(machine: int, begin: int, end: int, pool: int, runner: int) -> None:
    """Run phases begin..end-1 of a machine until a check fails, with the help of the workers that serve `pool`.

    Subnormal numbers count as 0 meanwhile. Saturated units send back gradients far below 1e-38, and processors take
    far longer for these: late in a run on a grid of Gaussians a step took 53 ms with them and 9 ms without.
    """
    mode = floating_point_mode()
    set_floating_point_mode(mode | flushing())
    rows = load(machine + ROW_LIST)
    for k in range(begin, end):
        if load(machine + FAILED):
            break
        phase = load(machine + PHASE_LIST) + PHASE_BYTES * k
        first, last, parts = load(phase), load(phase + 8), load(phase + 16)
        if parts > 1:
            store(pool + FIRST, first)
            store(pool + LAST, last)
            store(pool + PARTS, parts)
            store(pool + ROWS, rows)
            store(pool + MODE, mode | flushing())
            # Part 0 is this thread's from the start: one access less to words that the workers look at.
            store(pool + DONE, 1)
            store(pool + OPEN, (1 << parts) - 2)
        call(runner, rows, first, last, parts, 0)
        if parts > 1:
            _run_open_parts(pool, 0, runner)
            waited = 0
            while load(pool + DONE) != parts:
                _wait(pool, waited)
                waited += 1
    set_floating_point_mode(mode)
    store(machine + FINISHED, load(machine + FINISHED) + 1)


@_inline
def serve(pool: int, me: int, runner: int) -> None:
    """Run parts of the phases that a pool opens; returns when there were none for a while, or at its STOP."""
    waited = 0
    while waited < SPINS + YIELDS + NAPS and load(pool + STOP) == 0:
        if load(pool + OPEN):
            _run_open_parts(pool, me, runner)
            waited = 0
        else:
            _wait(pool, waited)
            waited += 1


@_inline
def check(row: int) -> None:
    """A kernel: store 1 to the word at the row's second address if the bool at its first is false."""
    if flag(load(row + 40)) == 0:
        store(load(row + 48), 1)
