"""Running a captured step again, and `compile`, which captures a step for each kind of arguments it meets."""

import functools
import threading
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigan.backend import FLOATS, Array, cuda, device_of, native
from minigan.errors import GraphError
from minigan.kernels import launch
from minigan.kernels.machine import threads as most_threads
from minigan.ops.random import Stream
from minigan.program import listing
from minigan.program.build import Builder, Built, Options, PythonCall
from minigan.program.capture import REQUIRE, Recorder, Ref
from minigan.program.device import DeviceProgram
from minigan.program.runs import Runs
from minigan.tensor import Tensor
from minigan.trace import Memory, recorded_by, state

MANY_PROGRAMS = 32  # captures of one step that are worth a warning


class Program(Runs):
    """A captured step on the CPU: see `Runs`."""

    def __init__(self, recorder: Recorder, outputs: Sequence[Ref], options: Options) -> None:
        super().__init__(recorder, options)
        self._built: Built = Builder(recorder, outputs, options).build()
        self._made = recorder.made_and_changed()
        self._numbers = self._built.numbers
        built = self._built
        self.flops = sum(call.flops for row in built.rows for call in row.node.calls)
        self.nbytes = built.arena.nbytes

    def __repr__(self) -> str:
        return listing.listing(self._built.rows, self._built.offsets, self.nbytes, self._inputs)

    def __len__(self) -> int:
        return len(self._built.rows)

    def source(self, kernel: int) -> str:
        """The generated text of a kernel's loop; "" without one."""
        text = self._built.rows[kernel].text
        return "" if text is None else text.source

    def run(self, arguments: Sequence[Array]) -> bool:
        """Run the kernels on these arrays; whether what the step requires held."""
        # Copied, not to rely on memory of the caller's: reading large ones there saved no more than 1 % of a step.
        for own, array in zip(self._arguments, arguments, strict=True):
            np.copyto(own, array)
        if self._built.flags.size:
            self._built.flags[:] = 1
        for array, first in self._made:
            np.copyto(array, first)
        self._rows_done = 0
        fine = self.interrupted = False
        try:
            fine = self._run_steps()
        finally:
            self.count()
            if not fine:
                self._undo()
        return fine

    def _undo(self) -> None:
        """Put back what the run has overwritten: up to its last step, or the check that did not hold.

        The last comes first: views of one tensor may be among it.
        """
        reached = min([row for row, flag in self._built.checks if not flag], default=self._rows_done)
        for row, original, before in reversed(self._built.backups):
            if row < max(reached, self._rows_done):
                np.copyto(original, before)

    def _run_steps(self) -> bool:
        """Run all steps; an interruption waits for the last, since what is changed half could not all be put back."""
        built = self._built
        for moment, step in enumerate(built.steps):
            begun = built.machine.finished if built.machine else 0
            try:
                fine = self._call(step) if isinstance(step, PythonCall) else built.machine.run(*step)
            except KeyboardInterrupt:
                self.interrupted = True
                fine = self._once_more(step, begun)
            if not fine:
                return False
            self._rows_done = built.rows_until[moment]
            if self.options.poison:
                for start, end in built.dead[moment]:
                    built.arena[start:end] = 0xFF  # NaN, whichever float it is read as
        return True

    def _once_more(self, step: Any, begun: int) -> bool:
        """Make sure that a step which was interrupted is made, once."""
        if isinstance(step, PythonCall):
            if step.call.primitive.donates:
                raise KeyboardInterrupt
            return self._call(step)
        machine = self._built.machine
        return machine.run(*step) if machine.finished == begun else not machine.failed

    def _call(self, step: PythonCall) -> bool:
        call = step.call
        if call.primitive is REQUIRE:
            return bool(step.inputs[0])
        attributes = call.attributes
        if step.slots:
            attributes = {**attributes, **{name: float(self._numbers[k]) for name, k in step.slots.items()}}
        if step.checks:
            call.primitive.infer(*step.inputs, **attributes)
        call.primitive.kernel(step.outs, *step.inputs, **attributes)  # type: ignore[misc]
        return True

    def results(self, copy: bool) -> list[Array]:
        """The arrays that the step returns: copies, or memory that the next run overwrites."""
        return [x.copy() for x in self._built.outputs] if copy else self._built.outputs


class Compiled:
    """A step that is captured when it is first called, and replayed from then on. Made by `minigan.compile`.

    Attributes:
        program: the program of the last call, which `print` shows.
    """

    def __init__(self, function: Callable[..., Any], options: Options | None, copy: bool) -> None:
        self.function, self.copy = function, copy
        self._options = options
        self._programs: dict[Any, _Entry] = {}
        self._last: _Entry | None = None
        self._moves = Memory.moves
        self._lock = threading.RLock()
        self.__wrapped__ = function

    @property
    def program(self) -> Runs:
        """The program of the last call; `GraphError` before the first."""
        if self._last is None:
            raise GraphError("the step has not been called yet, so it has no program: call it once")
        return self._last.program

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Make the step; the results have no history."""
        if state.recorder is not None:  # within another step that is being captured
            return self.function(*arguments, **named)
        with self._lock:
            if self._moves != Memory.moves:  # tensors that the programs hold may be elsewhere now
                self._programs, self._last, self._moves = {}, None, Memory.moves
            arrays = None if named else self._fitting(arguments)
            if arrays is not None:
                return self._replay(self._last, arrays, (), arguments, named)  # type: ignore[arg-type]
            leaves = _Leaves()
            form = leaves.take((arguments, named))
            options = self._options or _default_options(_threads())
            key: Any = form, leaves.kinds, options, state.recording, tuple(map(_identity, leaves.others))
            entry = self._programs.get(key)
            if entry is None:
                entry = self._capture(leaves, form, options)
                self._programs[key] = entry
                if len(self._programs) == MANY_PROGRAMS:
                    launch.notice(
                        f"{_name(self.function)} was captured for {MANY_PROGRAMS} kinds of arguments, the last: {key}."
                        " Numbers that change from call to call are captured anew: pass them as arrays"
                    )
            self._last = entry
            return self._replay(entry, leaves.arrays, leaves.streams, arguments, named)

    def _fitting(self, arguments: tuple[Any, ...]) -> list[Array] | None:
        """The arrays that the arguments are, if the last program is for such and for nothing else.

        Found with as little Python as can be: what a step evicts from the caches is slow when it is run again.
        """
        last = self._last
        if last is None or last.kinds is None or len(arguments) != len(last.kinds):
            return None
        if last.recording != state.recording or last.threads != most_threads():
            return None
        arrays = []
        for x, (shape, dtype, device) in zip(arguments, last.kinds, strict=True):
            array = x.array if type(x) is Tensor else x
            if type(array) is not np.ndarray and (device == "cpu" or not cuda.is_on_device(array)):
                return None
            if array.dtype is not dtype or array.shape != shape:
                return None
            if device != "cpu" and device_of(array) != device:
                return None
            arrays.append(array)
        return arrays

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """A compiled function in a class is a method."""
        return self if instance is None else types.MethodType(self, instance)

    def _replay(
        self, entry: "_Entry", arrays: list[Array], streams: Sequence[Stream], arguments: Any, named: Any
    ) -> Any:
        program = entry.program
        drawn = [stream.place for stream in streams]
        try:
            if entry.captured:  # the capturing run has worked out the numbers of this run
                entry.captured = False
            else:
                for own, stream in zip(entry.streams, streams, strict=True):
                    own.place = stream.place
                program.work_out()
            for own, stream in zip(entry.streams, streams, strict=True):
                stream.place = own.place
            fine = program.run(arrays)
        except BaseException:
            program.restore()
            raise
        if program.interrupted and fine:
            raise KeyboardInterrupt
        if fine:
            return entry.give(self.copy)
        # Something required did not hold. The same step without a recorder says what, or is the step.
        program.restore()
        for stream, place in zip(streams, drawn, strict=True):
            stream.place = place
        return _detached(self.function(*arguments, **named))

    def _capture(self, leaves: "_Leaves", form: Any, options: Options) -> "_Entry":
        recorder = Recorder()
        own = [
            Tensor(recorder.argument(x, f"argument {k}, {x.dtype} {x.shape}"))
            for k, x in enumerate(leaves.arrays)
        ]
        streams = [stream.at(stream.step) for stream in leaves.streams]
        for mine, stream in zip(streams, leaves.streams, strict=True):
            mine.place = stream.place
        arguments, named = _rebuild(form, iter(own), iter(streams), iter(leaves.others))
        try:
            with launch.capturing(), recorded_by(recorder):
                result = self.function(*arguments, **named)
            found = _Leaves(results=True)
            result_form = found.take(result)
            outputs = [recorder.ref(x) for x in found.arrays]
        finally:
            recorder.undo()
        on_gpu = recorder.device not in ("", "cpu")
        make = functools.partial(DeviceProgram, _name(self.function)) if on_gpu else Program
        program: Runs = make(recorder, outputs, options)
        only_arrays = form == (tuple, (tuple, *["array"] * len(leaves.arrays)), (dict,))
        return _Entry(program, streams, result_form, found.others, leaves, only_arrays)


class _Entry:
    """A program with what the function returned besides arrays.

    Attributes:
        kinds: shapes and dtypes of the arguments, if they are arrays one by one.
        recording: whether results have a history within the step.
        threads: how many were allowed when it was captured.
        captured: whether it has just been captured, and not run yet.
    """

    def __init__(
        self,
        program: Runs,
        streams: list[Stream],
        form: Any,
        others: list[Any],
        leaves: "_Leaves",
        only_arrays: bool,
    ) -> None:
        self.program, self.streams, self.form, self.others = program, streams, form, others
        self.recording, self.captured, self.threads = state.recording, True, most_threads()
        self._held = leaves.others  # objects whose identity is part of the key
        self.kinds = leaves.kinds if only_arrays else None
        # A tuple or list of tensors, as most steps return, needs no search for what stands where.
        self._flat = (
            form[0] if type(form) is tuple and form[0] is not dict and set(form[1:]) == {"array"} else None
        )

    def give(self, copy: bool) -> Any:
        """The results of a run."""
        tensors = [Tensor(x) for x in self.program.results(copy)]
        if self._flat is not None:
            return self._flat(tensors)
        return _rebuild(self.form, iter(tensors), iter(()), iter(self.others))


class _Leaves:
    """What stands in nested tuples, lists and dicts: arrays, streams, and others."""

    def __init__(self, results: bool = False) -> None:
        self.arrays: list[Array] = []
        self.streams: list[Stream] = []
        self.others: list[Any] = []
        self.results = results

    def take(self, value: Any) -> Any:
        """Collect the leaves of `value`; gives its form, which is hashable."""
        if isinstance(value, Tensor):
            self.arrays.append(value.array)
            return "array"
        if isinstance(value, np.ndarray) and not self.results:
            self.arrays.append(value if value.dtype in FLOATS else native(value))
            return "array"
        if cuda.found(value) and not self.results:
            self.arrays.append(value)
            return "array"
        if isinstance(value, Stream) and not self.results:
            self.streams.append(value)
            return "stream"
        if type(value) in (tuple, list):
            return type(value), *[self.take(each) for each in value]
        if type(value) is dict:
            return dict, *[(name, self.take(each)) for name, each in value.items()]
        if isinstance(value, (tuple, list, dict, set, frozenset)) or (self.results and not _is_plain(value)):
            what = "returns" if self.results else "takes"
            raise GraphError(
                f"a step that is compiled {what} a {type(value).__name__}, expected tensors, in tuples, lists and dicts"
            )
        self.others.append(value)
        return "other"

    @property
    def kinds(self) -> tuple[Any, ...]:
        return tuple([(x.shape, x.dtype, device_of(x)) for x in self.arrays])


def _rebuild(form: Any, arrays: Any, streams: Any, others: Any) -> Any:
    if form == "array":
        return next(arrays)
    if form == "stream":
        return next(streams)
    if form == "other":
        return next(others)
    kind, *parts = form
    if kind is dict:
        return {name: _rebuild(part, arrays, streams, others) for name, part in parts}
    return kind([_rebuild(part, arrays, streams, others) for part in parts])


def _identity(value: Any) -> Any:
    """What makes two arguments that are no arrays the same: equality of plain values, else being one object."""
    if isinstance(value, (float, np.generic)):
        return type(value), np.asarray(value).tobytes()  # 0.0 is not -0.0, and NaN is NaN
    return (type(value), value) if _is_plain(value) else id(value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, bytes, np.generic, np.dtype))


def _detached(value: Any) -> Any:
    leaves = _Leaves(results=True)
    form = leaves.take(value)
    return _rebuild(form, (Tensor(x) for x in leaves.arrays), iter(()), iter(leaves.others))


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", function))


def _threads() -> int:
    return most_threads() if launch.available() else 1


@functools.cache
def _default_options(threads: int) -> Options:
    return Options(threads=threads)


def compile(
    function: Callable[..., Any],
    *,
    copy: bool = True,
    fuse: bool = True,
    plan: bool = True,
    poison: bool = False,
    threads: int | None = None,
    tf32: bool = False,
) -> Compiled:
    """A function that does what `function`, a step of training, does, without Python for each operation.

    The first call captures what `function` computes, as one program: forward and backward passes, penalties, and the
    updates of optimisers. That is fused into few kernels, laid out in memory, and from then on replayed; only code
    inside of minigan that depends on the step, such as learning rates and random counters, runs in Python again. What
    else `function` does in Python is not repeated: printing, counting, choosing by a number.

    Args:
        function: takes arrays or tensors, `Stream`s, and any other arguments, in nested tuples, lists and dicts too;
            it sees arrays as tensors. It returns tensors, in nested tuples, lists and dicts.
        copy: results are copies; otherwise they are memory that the next call overwrites.
        fuse, plan, poison: for finding faults. Without `fuse` every operation runs as it does without compiling, and
            gives the same bits, but for attention where no derivative is wanted; without `plan` no results share
            memory; `poison` fills memory with NaN as soon as its content is not needed any more.
        threads: how many share the work; by default as `minigan.set_threads` says. The results do not depend on it.
        tf32: let products of float32 matrices on a GPU round their factors to 10 bits, a relative error of 2^-11 each,
            which is faster where the card can do it. Without, they are computed in float32.

    A step whose arrays are on a GPU runs there as one CUDA graph, from its second run on; the call returns when it is
    done.

    Arrays of other shapes or dtypes, other numbers, and other objects are captured anew. Random numbers come from
    streams, and are those that `function` itself would draw. With fusion results differ from those of `function` in
    rounding: up to 2 ulp for each pointwise operation, and sums and products of K terms by 4 √K eps Σ|terms|. On a CPU
    subnormal numbers, in float32 those below 1.2e-38, count as 0 there: the logarithm of one is -inf.

    Raises: what `function` raises; `GraphError` where it looks at the value of a tensor (`.item()`, `float`, `if`),
        naming the line: the value of one run would be used for ever; `DeviceError` for arrays on several devices, and
        where a GPU fails, naming the step and the run.

    >>> import minigan as mg
    >>> weights, adam = {"w": mg.tensor([1.0, 2.0])}, mg.optim.Adam(0.1)
    >>> state = adam.init(weights)
    >>> @mg.compile
    ... def step(x):
    ...     loss = ((weights["w"] * x) ** 2).sum()
    ...     adam.update(weights, mg.grad(loss, [weights["w"]]), state)
    ...     return loss
    >>> [round(step(mg.tensor([1.0, 1.0])).item(), 2) for _ in range(3)]
    [5.0, 4.42, 3.88]
    >>> state.step
    3
    """
    options = None
    if threads is not None or not (fuse and plan) or poison or tf32:
        options = Options(fuse, plan, poison, threads or _threads(), tf32)
    return Compiled(function, options, copy)
