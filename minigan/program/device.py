"""A captured step on a GPU: the same fusion and memory plan, replayed as one CUDA graph.

The first run is made kernel by kernel: that compiles and warms up whatever there is, and an error is that of a kernel.
From the second on a run is one launch of a graph, which begins with a copy of all that Python has worked out, and ends
with one of the flags that say whether what the step requires held. Nothing ends early on a GPU, so a run that failed
has overwritten everything, and puts everything back. Each run waits until it is done: then an error is this run's, the
memory that Python writes for the next one is free, and results and arguments belong to nobody but the caller.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np

from minigan.backend import ALIGNMENT, Array, cuda, device_of
from minigan.cuda.launch import Operand, Plan, Scratch, issue, run, scratch_of
from minigan.errors import DeviceError
from minigan.program import listing
from minigan.program.build import Options, needed_calls
from minigan.program.capture import REQUIRE, Buffer, Call, Recorder, Ref
from minigan.program.checks import FINITE, Allocate, part_by_part, with_backups
from minigan.program.fuse import Node, as_walk, fuse, unfused
from minigan.program.grids import Grid, grid_of
from minigan.program.plan import Life, Step, lives, moments, place
from minigan.program.runs import Runs
from minigan.tape import copy
from minigan.trace import state

POISON = 0xFF  # NaN, whichever float it is read as


class Row(NamedTuple):
    """A line of the listing: a node, its plan, and the arrays of the plan."""

    node: Node
    grid: Grid | None  # of a loop
    plan: Plan
    outs: Sequence[Ref]
    inputs: Sequence[Ref]

    @property
    def words(self) -> Sequence[Any] | None:
        """Those of its loop."""
        return None if self.grid is None else self.grid.words

    @property
    def note(self) -> str:
        """How often something is launched for it."""
        return "" if len(self.plan) == 1 else f", {len(self.plan)} launches"


class _Memory:
    """Where everything is: the arena of results, and the block of what Python works out, here and on the device."""

    def __init__(
        self, recorder: Recorder, device: str, blocks: Sequence[Life], flags: Sequence[Buffer]
    ) -> None:
        self.device = device
        self.offsets, size = place(blocks)
        for k, buffer in enumerate(flags):
            self.offsets[buffer] = size + k
        self.nbytes, self.flags = size + len(flags), (size, len(flags))
        staged = 8 * len(recorder.numbers)
        of_hosted: dict[Buffer, int] = {}
        hosted_buffers = [buffer for hosted in recorder.hosts for buffer in hosted.buffers]
        for buffer in (buffer for buffer in hosted_buffers if buffer.kind == "host"):
            of_hosted[buffer] = staged = -(-staged // ALIGNMENT) * ALIGNMENT
            staged += buffer.nbytes
        self._of_hosted = of_hosted
        self.arena, self.stage = cuda.empty([((self.nbytes,), np.uint8), ((staged,), np.uint8)], device)
        self.base, self._stage_base = cuda.address(self.arena), cuda.address(self.stage)
        self.staging = cuda.pinned(staged, device)
        self.numbers = self.staging[: 8 * len(recorder.numbers)].view(np.float64)
        self.numbers[:] = recorder.numbers
        for hosted in recorder.hosts:  # from now on Python writes into memory that the device copies from
            for k, (own, buffer) in enumerate(zip(hosted.arrays, hosted.buffers, strict=True)):
                if buffer.kind == "sent":
                    continue
                at = of_hosted[buffer]
                mine = self.staging[at : at + own.nbytes].view(own.dtype).reshape(own.shape)
                np.copyto(mine, own)
                hosted.arrays[k] = mine

    def address(self, ref: Ref) -> int:
        """Of an array's first element, on the device."""
        if ref.buffer.kind == "temporary":
            return self.base + int(self.offsets[ref.buffer]) + ref.offset
        if ref.buffer.kind == "host":
            return self._stage_base + self._of_hosted[ref.buffer] + ref.offset
        return cuda.address(ref.buffer.array) + ref.offset

    def number(self, index: int) -> int:
        """The address of a number that Python works out."""
        return self._stage_base + 8 * index

    def view(self, ref: Ref) -> Array:
        """An array on the device."""
        if ref.buffer.kind not in ("temporary", "host"):
            return ref.array  # type: ignore[return-value]
        start, memory = (
            (self.base, self.arena) if ref.buffer.kind == "temporary" else (self._stage_base, self.stage)
        )
        return cuda.within(memory, self.address(ref) - start, ref.shape, ref.dtype, ref.strides)  # type: ignore[no-any-return]

    def view_of_host(self, ref: Ref) -> Array:
        """An array that Python has worked out, where Python sees it; any other on the device."""
        if ref.buffer.kind != "host":
            return self.view(ref)
        at = self._of_hosted[ref.buffer] + ref.offset
        return np.ndarray(ref.shape, ref.dtype, self.staging.data, at, ref.strides)

    def upload(self) -> None:
        """Copy what Python has worked out, in the current stream."""
        if self.staging.size:
            cuda.copy_bytes(self.device, self._stage_base, self.staging.ctypes.data, self.staging.size)


class DeviceProgram(Runs):
    """A captured step on a GPU: see `Runs`."""

    def __init__(self, name: str, recorder: Recorder, outputs: Sequence[Ref], options: Options) -> None:
        super().__init__(recorder, options)
        self._name, self._device, self._runs = name, recorder.device, 0
        calls = needed_calls(recorder.calls, outputs)
        flags: list[Buffer] = []
        if options.fuse:
            calls, flags = part_by_part(calls, recorder.temporary)
            calls = _in_loops(calls, recorder.temporary)
        calls, self._backups = with_backups(calls, recorder.temporary, ends_early=False)
        self._checks = [call.inputs[0] for call in calls if call.primitive is REQUIRE]
        # As no run ends early, an update need not wait for a check: the loop that looks at its inputs may make it.
        calls = [call for call in calls if call.primitive is not REQUIRE]
        nodes = fuse(calls, 1, loops_only=True) if options.fuse else unfused(calls)
        kept = {ref.buffer for ref in (*outputs, *self._checks)} | {b.copy.buffer for b in self._backups}
        read = kept.union(*(node.reads for node in nodes))
        self._rows = [_row(node, lambda buffer: buffer in read) for node in nodes]
        steps = [Step([row.node], 1) for row in self._rows]
        written = {b for row in self._rows if row.grid is None for b in row.node.writes}
        blocks = lives(steps, kept, lambda buffer: buffer in read or buffer in written, options.plan)
        blocks = [
            block for block in blocks if block.key not in flags
        ]  # these are set at the beginning of a run
        for now, (node,) in moments(steps):
            for scratch, nbytes in scratch_of(self._rows[now].plan).items():
                blocks.append(Life((node, scratch), nbytes, now, now))
        self._memory = memory = _Memory(recorder, self._device, blocks, flags)
        self._numbers = memory.numbers
        self._dead: list[list[tuple[int, int]]] = [[] for _ in steps]
        for block in blocks:
            if block.last < len(steps):
                self._dead[block.last].append((memory.offsets[block.key], block.nbytes))
        self._fine = cuda.pinned(len(self._checks), self._device)
        self._made = []
        for x, _ in recorder.made_and_changed():
            first = self._new(x)
            _copy(first, x)
            self._made.append((x, first))
        self._outputs = [memory.view(ref) for ref in outputs]
        self._indexed = [
            (call, [memory.view_of_host(ref) for ref in call.inputs]) for call in calls if _is_indexed(call)
        ]
        self._queue, self._warm = cuda.Queue(self._device), False
        self._graph: Any = None
        self.flops = sum(call.flops for row in self._rows for call in row.node.calls)
        self.nbytes = memory.nbytes

    def __repr__(self) -> str:
        n = sum(len(row.plan) for row in self._rows)
        note = f" on {self._device}, {n} launches"
        return listing.listing(self._rows, self._memory.offsets, self.nbytes, self._inputs, note)

    def __len__(self) -> int:
        return len(self._rows)

    def source(self, kernel: int) -> str:
        """The CUDA text of a kernel's loop; "" without one."""
        grid = self._rows[kernel].grid
        return "" if grid is None else "\n".join(dict.fromkeys(launch.source for launch in grid.plan))

    # Running

    def run(self, arguments: Sequence[Array]) -> bool:
        """Run the kernels on these arrays; whether what the step requires held."""
        self._runs += 1
        where = f"{self._name}, run {self._runs} of its program"
        self.interrupted = False
        try:
            if arguments or self._indexed:
                with self._queue.current():
                    for own, array in zip(self._arguments, arguments, strict=True):
                        self._take(own, array)
                    for call, arrays in self._indexed:
                        call.primitive.infer(*arrays, **call.attributes)
            with self._uninterrupted():
                return self._run(where)
        except DeviceError as error:
            raise DeviceError(f"{where}: {error}") from None

    def _run(self, where: str) -> bool:
        fine = False
        try:
            with self._queue.current():
                if self._warm:
                    self._graph = self._graph or self._queue.recorded(self._issue)
                    self._queue.repeat(self._graph)
                    with suppress(Exception):  # which is made, and fails, again where it is wanted
                        state.meanwhile()
                    self._queue.wait()
                else:
                    self._issue(pausing=True)
                    self._warm = True
                    self._queue.wait()
            fine = bool(self._fine.all())
        finally:
            self.count()
        if not fine:
            self._undo()
        return fine

    def receive(self, own: Array, array: Array) -> None:
        """Take over an array that Python has worked out, or sent."""
        if device_of(own) == "cpu":
            np.copyto(own, array)
        else:
            with self._queue.current(followed=True):  # who sent it may use its memory again
                self._take(own, array)

    def _take(self, own: Array, array: Array) -> None:
        """Copy an argument, so as not to rely on memory of the caller's."""
        if own.nbytes and array.flags.c_contiguous:
            cuda.copy_bytes(self._device, cuda.address(own), cuda.address(array), own.nbytes)
        else:
            _copy(own, array)

    def _issue(self, pausing: bool = False) -> None:
        """Put one run into the current stream; with `pausing`, wait after each kernel, so that an error is its own."""
        memory, device = self._memory, self._device
        cuda.set_tf32(self.options.tf32)
        try:
            memory.upload()
            start, count = memory.flags
            if count:
                cuda.fill_bytes(device, memory.base + start, 1, count)
            for x, first in self._made:
                _copy(x, first)
            for moment, row in enumerate(self._rows):
                try:
                    self._issue_plan(row.plan, row.outs, row.inputs, row.node)
                    if pausing:
                        self._queue.wait()
                except DeviceError as error:
                    names = " · ".join(call.primitive.name for call in row.node.calls)
                    raise DeviceError(f"kernel {moment}, {names}: {error}") from None
                for at, nbytes in self._dead[moment] if self.options.poison else ():
                    cuda.fill_bytes(device, memory.base + at, POISON, nbytes)
            for k, ref in enumerate(self._checks):
                cuda.copy_bytes(device, self._fine.ctypes.data + k, memory.address(ref), 1)
        finally:
            cuda.set_tf32(False)

    def _issue_plan(self, plan: Plan, outs: Sequence[Ref], inputs: Sequence[Ref], node: Node | None) -> None:
        memory = self._memory

        def address(word: Any) -> int:
            if isinstance(word, Scratch):
                return memory.base + int(memory.offsets[node, word])
            ref = inputs[word.number] if isinstance(word, Operand) else outs[word.number]
            return memory.address(ref) + int(word.offset)

        for step in plan:
            issue(step, self._device, address, lambda slot: memory.number(slot.index))

    def _undo(self) -> None:
        """Put back what the run has overwritten, the last first: views of one tensor may be among it."""
        with self._queue.current():
            for _, original, before in reversed(self._backups):
                self._issue_plan(copy.plan([original], [before], {}), [original], [before], None)
            self._queue.wait()

    def results(self, copy: bool) -> list[Array]:
        """The arrays that the step returns: copies, or memory that the next run overwrites."""
        if not copy:
            return self._outputs
        copies = [self._new(x) for x in self._outputs]
        # Not in the caller's stream, which the next run of another thread does not know.
        with self._queue.current(followed=True):
            for own, x in zip(copies, self._outputs, strict=True):
                _copy(own, x)
        return copies

    def _new(self, like: Array) -> Array:
        (own,) = cuda.empty([(like.shape, like.dtype)], self._device)
        return own  # type: ignore[no-any-return]

    @contextmanager
    def _uninterrupted(self) -> Iterator[None]:
        """Let Ctrl-C wait for the end of the block: what is changed half could not be put back."""
        before: Any = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(before):
            yield
            return
        waiting: list[Any] = []
        signal.signal(signal.SIGINT, lambda *signalled: waiting.append(signalled))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            if waiting and before is signal.default_int_handler:
                self.interrupted = True
            elif waiting:
                before(*waiting[0])


def _copy(to: Array, x: Array) -> None:
    """Copy an array in the current stream."""
    run(copy.plan([to], [x], {}), [to], [x])


def _row(node: Node, is_read: Callable[[Buffer], bool]) -> Row:
    if node.walks:
        grid = grid_of(node, is_read)
        return Row(node, grid, grid.plan, (), grid.refs)
    call: Call = node.product  # type: ignore[assignment]
    return Row(
        node, None, call.primitive.plan(call.outs, call.inputs, call.attributes), call.outs, call.inputs
    )


def _in_loops(calls: Sequence[Call], new: Allocate) -> list[Call]:
    """The calls, with checks of arrays that are no loop over two axes made on copies in row-major order."""
    result: list[Call] = []
    for call in calls:
        if call.primitive is FINITE and as_walk(call) is None:
            (x,) = call.inputs
            dense = new(np.empty(x.shape, x.dtype))
            result.append(Call(copy, (x,), (dense,)))
            call = Call(FINITE, (dense,), call.outs)
        result.append(call)
    return result


def _is_indexed(call: Call) -> bool:
    """Whether the values of an input from outside decide about errors, as those of indices do."""
    kinds = [x.kind for sample in call.primitive.samples[:1] for x in sample.inputs]
    return any(
        kind == "index" and ref.buffer.kind in ("input", "host", "sent")
        for kind, ref in zip(kinds, call.inputs, strict=False)
    )
