"""The calls of one run of a step, as a list of what they compute from which memory.

Capturing is a run like any other, with a recorder that `apply` tells of every call. What the run changed in place is
put back at its end, so that the replay which follows makes the step: every step is then made by the same kernels.
"""

import copy
import os
import struct
import traceback
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from minigan import trace
from minigan.backend import Array, cuda, device_of
from minigan.errors import DeviceError, GraphError
from minigan.tape import Primitive
from minigan.trace import Slot

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

# The end of a run where a flag does not hold.
REQUIRE = Primitive("require", lambda flag: ())


@dataclass(eq=False)
class Buffer:
    """A block of memory that the step reads or writes.

    Attributes:
        kind: "temporary" (results of the step), "held" (arrays from outside, such as parameters), "input" (an argument
            of the step), "host" (an array that Python works out anew in every run), or "sent" (one that Python has
            already sent to the GPU then).
        nbytes: its size.
        array: the memory, which replays use too; `None` for a temporary one, whose memory is planned.
    """

    number: int
    kind: str
    nbytes: int
    array: Array | None
    shown: str = ""


# What checks write, and calls read that overwrite memory from outside: no such call moves across a check.
ORDER = Buffer(-1, "order", 0, None)


class Ref(NamedTuple):
    """An array as a place in a buffer; `offset` and `strides` in bytes; `array` itself if that is not temporary."""

    buffer: Buffer
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    array: Array | None

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(eq=False)
class Call:
    """One call of a primitive that is not a view.

    Attributes:
        outs: its results; the first `primitive.donates` of them are the inputs of the same number.
        flops: of the call.
    """

    primitive: Primitive
    inputs: tuple[Ref, ...]
    outs: tuple[Ref, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    flops: int = 0

    @property
    def reads(self) -> set[Buffer]:
        """The memory that it reads."""
        order = {ORDER} if any(x.buffer.kind != "temporary" for x in self.outs) else set()
        return {x.buffer for x in self.inputs} | order

    @property
    def writes(self) -> set[Buffer]:
        """The memory that it writes."""
        return {x.buffer for x in self.outs} | ({ORDER} if self.primitive is REQUIRE else set())


class Hosted(NamedTuple):
    """A function that every run calls before it computes, the place of its first number, and its arrays.

    `numbers` writes what it gives where that is a tuple of floats. The arrays are NumPy's, or on a GPU already;
    `buffers` are what stands for them in the step.
    """

    function: Callable[[], Any]
    first: int
    arrays: list[Array]
    numbers: struct.Struct | None
    buffers: list[Buffer]


class Recorder(trace.Recorder):
    """What hears of every call of `apply` in a captured run (see `minigan.trace.Recorder`).

    Attributes:
        device: where all arrays of the step are; "" as long as there are none.
    """

    composes = True

    def __init__(self) -> None:
        self.device = ""
        self.calls: list[Call] = []
        self.buffers: list[Buffer] = []
        self.numbers: list[float] = []
        self.hosts: list[Hosted] = []
        self.restores: list[tuple[int, Callable[[], None]]] = []  # after how many of the hosts
        self.changed: dict[int, Any] = {}  # tensors that the step overwrites
        # By an array's id, which is its own as long as it lives. Results are not held: all of a run's take much memory.
        self._made: dict[int, Any] = {}  # the memory of tensors that the step makes
        self._refs: dict[int, tuple[Any, Ref]] = {}
        self._owners: dict[int, Buffer] = {}  # by the id of the array that owns the memory
        # What was overwritten, and its content before; none on a GPU, where a captured run computes nothing.
        self._before: dict[int, tuple[Array, Array | None]] = {}

    # What the recorder hears: see `minigan.trace.Recorder`

    def call(
        self, primitive: Primitive, arrays: Sequence[Array], outs: Sequence[Array], attributes: dict[str, Any]
    ) -> None:
        """Note a call, and what it is about to overwrite."""
        inputs = tuple([self.ref(x) for x in arrays])
        if primitive.view is not None:
            self._keep(outs[0], _within(inputs[0], arrays[0], outs[0]))
            return
        for x, own in zip(outs[: primitive.donates], inputs, strict=False):
            if own.buffer.kind == "input":
                raise GraphError(
                    f"{primitive.name}: {own.buffer.shown} of the step that is being compiled is to be updated in"
                    f" place, at {caller()}: let the step hold that tensor instead"
                )
            self._before.setdefault(id(x), (x, x.copy() if self.device == "cpu" else None))
        results = [self.ref(x) for x in outs[: primitive.donates]]
        for x in outs[primitive.donates :]:
            results.append(self._new("temporary", x))
        flops = primitive.flops(*arrays, **attributes)
        self.calls.append(Call(primitive, inputs, tuple(results), attributes, flops))

    def made(self, array: Array) -> None:
        """Note memory that is not from outside, though it may hold values from there."""
        self._made[id(array)] = self._watched(array)

    def changes(self, tensor: Any) -> None:
        """Note a tensor whose version rises in every run."""
        self.changed[id(tensor)] = tensor

    def host(self, function: Callable[[], Any], value: Any, device: str) -> Any:
        """Note a function, and give slots in place of its numbers."""
        only_floats = type(value) is tuple and all(isinstance(each, float) for each in value)
        numbers = struct.Struct(f"{len(value)}d") if only_floats else None
        hosted = Hosted(function, len(self.numbers), [], numbers, [])
        self.hosts.append(hosted)
        return self._stand_in(value, hosted, device)

    def require(self, flag: Array) -> None:
        """Note a check."""
        self.calls.append(Call(REQUIRE, (self.ref(flag),), ()))

    def undone_by(self, restore: Callable[[], None]) -> None:
        """Note how to undo a run."""
        self.restores.append((len(self.hosts), restore))

    def read(self, array: Array, what: str) -> None:
        """Raise `GraphError` if the values may differ from run to run."""
        entry = self._refs.get(id(array))
        buffer = entry[1].buffer if entry else self._owners.get(id(_owner(array)))
        if buffer is not None and (buffer.kind != "held" or self._is_changed(buffer)):
            raise GraphError(
                f"{what} in a step that is being compiled, at {caller()}: Python would see the value of this run for"
                " ever. Return the tensor and look at it outside, or choose with minigan.ops.where"
            )

    # Memory

    def argument(self, array: Array, shown: str) -> Array:
        """The memory that an argument of the step lies in: a copy, in C order; without values on a GPU."""
        own = np.array(array, order="C") if device_of(array) == "cpu" else self._like(array, device_of(array))
        self._new("input", own, shown)
        return own

    def ref(self, array: Array) -> Ref:
        """Where an array is; one that is seen for the first time comes from outside of the step."""
        entry = self._refs.get(id(array))
        if entry is None:
            owner = _owner(array)
            if id(owner) not in self._owners:
                self._new("held", owner)
            base = self._refs[id(owner)][1]
            return self._keep(array, _within(base, owner, array))
        return entry[1]

    def made_and_changed(self) -> list[tuple[Array, Any]]:
        """Memory that tensors made by the step have, and that it overwrites, with what it holds at first.

        On a GPU that is what it still holds after capturing, and `None` stands for it.
        """
        return [(x, before) for x, before in self._before.values() if id(_owner(x)) in self._made]

    def undo(self) -> None:
        """Put back what the run has overwritten."""
        for array, before in reversed(self._before.values()):  # views of one tensor may be among them
            if before is not None:
                np.copyto(array, before)

    def temporary(self, like: Array) -> Ref:
        """Memory for a result of the shape and dtype of an array, in C order."""
        return self._new("temporary", np.empty(like.shape, like.dtype))

    def _new(self, kind: str, array: Array, shown: str = "") -> Ref:
        kept = None if kind == "temporary" else array
        if kept is not None:
            self._place(array)
        buffer = Buffer(len(self.buffers), kind, array.nbytes, kept, shown)
        ref = Ref(buffer, 0, array.shape, array.strides, array.dtype, kept)
        self.buffers.append(buffer)
        self._owners[id(array)] = buffer
        return self._keep(array, ref)

    def _place(self, array: Array) -> None:
        """Raise `DeviceError` if an array is elsewhere than those before."""
        device = device_of(array)
        self.device = self.device or device
        if device != self.device:
            raise DeviceError(
                f"a step that is being compiled has arrays on {self.device}, and {array.dtype} {array.shape} on"
                f" {device}, at {caller()}: move one by .to(device)"
            )

    @staticmethod
    def _like(array: Array, device: str) -> Array:
        """Memory on a GPU for an array of this shape and dtype, in C order."""
        (own,) = cuda.empty([(array.shape, array.dtype)], device)
        return own  # type: ignore[no-any-return]

    def _keep(self, array: Array, ref: Ref) -> Ref:
        """Note where an array is, until it dies."""
        self._refs[id(array)] = self._watched(array) if ref.array is None else array, ref
        return ref

    def _watched(self, array: Array) -> Any:
        """A weak reference to an array, of which nothing is known any more when it dies."""
        number = id(array)

        def forget(_: Any) -> None:
            for known in (self._made, self._refs, self._owners):
                known.pop(number, None)

        return weakref.ref(array, forget)

    def _stand_in(self, value: Any, hosted: Hosted, device: str) -> Any:
        """`value` with slots for its floats and memory of the program's for its arrays."""
        if isinstance(value, (float, np.floating)):
            slot = Slot(value)
            slot.index = len(self.numbers)
            self.numbers.append(float(value))
            return slot
        if isinstance(value, np.ndarray):
            own = np.array(value, order="C")
            hosted.arrays.append(own)
            there = own if device == "cpu" else self._like(own, device)
            hosted.buffers.append(self._new("host", there).buffer)
            return there
        if cuda.is_on_device(value):
            own = cuda.copied(value)
            hosted.arrays.append(own)
            hosted.buffers.append(self._new("sent", own).buffer)
            return own
        if isinstance(value, dict):
            return {key: self._stand_in(each, hosted, device) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)([self._stand_in(each, hosted, device) for each in value])
        if value is None:
            return None
        raise GraphError(
            f"host: a {type(value).__name__} cannot change from run to run, only floats and arrays"
        )

    def _is_changed(self, buffer: Buffer) -> bool:
        return any(_owner(array) is buffer.array for array, _ in self._before.values())


def floats_and_arrays(value: Any) -> tuple[list[float], list[Array]]:
    """The floats and the arrays in what a host function gave, in the order of `Hosted`."""
    numbers: list[float] = []
    arrays: list[Array] = []
    stack = [value]
    while stack:
        each = stack.pop()
        if isinstance(each, (float, np.floating)):
            numbers.append(float(each))
        elif isinstance(each, np.ndarray) or cuda.is_on_device(each):
            arrays.append(each)
        elif isinstance(each, dict):
            stack += reversed(each.values())
        elif isinstance(each, (list, tuple)):
            stack += reversed(each)
    return numbers, arrays


def caller() -> str:
    """File and line of the innermost frame that is neither in this package nor in `copy`."""
    ours = (PACKAGE, copy.__file__)
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(ours):
            return f"{frame.filename}:{frame.lineno}"
    return "an unknown line"


def address(array: Array) -> int:
    """Of an array's first element."""
    return cuda.address(array) if cuda.is_on_device(array) else int(array.__array_interface__["data"][0])


def _owner(array: Array) -> Array:
    while isinstance(array.base, np.ndarray) or cuda.is_on_device(array.base):
        array = array.base  # type: ignore[assignment]
    return array


def _within(ref: Ref, array: Array, view: Array) -> Ref:
    offset = ref.offset + address(view) - address(array)
    kept = None if ref.array is None else view
    return Ref(ref.buffer, offset if view.size else 0, view.shape, view.strides, view.dtype, kept)
