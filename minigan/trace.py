"""What the engine tells a recorder, and what a recorded step needs to know besides its calls of `apply`.

A step of training is a list of calls that is the same every time, but for a few values that Python works out anew: the
learning rate, the number of the step, random counters, the next batch. Code that works out such a value passes a
function to `host`, code that decides on a computed value calls `require`, and code that undoes what a failed step
changed stands in `undone_by`. Without a recorder these do what they say at once; a recorder also keeps the functions.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from minigan.backend import Array, device_of, moved

Result = TypeVar("Result")


class Recorder:
    """What listens to a thread's calls of `apply`: this one hears everything and does nothing.

    With `composes`, it had rather hear of the operations that make up one of which there is also a kernel.
    """

    composes = False

    def call(
        self, primitive: Any, arrays: Sequence[Array], outs: Sequence[Array], attributes: dict[str, Any]
    ) -> None:
        """`primitive` is about to compute `outs` from `arrays`, and to overwrite those that it donates."""

    def made(self, array: Array) -> None:
        """A tensor with memory of its own was made, by a call or from values."""

    def changes(self, tensor: Any) -> None:
        """The memory of `tensor` is overwritten by the call that was told of last."""

    def host(self, function: Callable[[], Any], value: Any, device: str) -> Any:
        """`function`, which gave `value`, is called anew in every run; gives what stands for its result.

        Its arrays are NumPy's, and what stands for them is on `device`.
        """
        return moved_arrays(value, device)

    def require(self, flag: Array) -> None:
        """A run ends here if the boolean `flag` does not hold."""

    def undone_by(self, restore: Callable[[], None]) -> None:
        """`restore` undoes a run that ended early."""

    def read(self, array: Array, what: str) -> None:
        """Python is about to look at the values of `array`."""


class State(threading.local):
    """Of each thread: whether `apply` attaches nodes, and who listens."""

    recording = True
    recorder: Recorder | None = None
    meanwhile: Callable[[], None] = staticmethod(lambda: None)  # what can be done while a device works


state = State()


class Memory:
    """How often tensors were given other memory, as on another device: captured steps hold addresses."""

    moves = 0


class Slot(float):
    """A number that is worked out anew in every run of a recorded step: number `index` of them.

    Arithmetic gives plain floats, whose value would be that of the recorded run for ever: pass a slot on as it is.
    """

    __slots__ = ("index",)

    index: int


@contextmanager
def recorded_by(recorder: Recorder | None) -> Iterator[None]:
    """Let `recorder`, or nobody, hear the calls of this thread in the block."""
    before, state.recorder = state.recorder, recorder
    try:
        yield
    finally:
        state.recorder = before


def moved_arrays(value: Any, device: str) -> Any:
    """A nest of tuples, lists and dicts with its arrays on a device."""
    if device == "cpu":
        return value
    if isinstance(value, dict):
        return {key: moved_arrays(each, device) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([moved_arrays(each, device) for each in value])
    return moved(value, device) if isinstance(value, np.ndarray) else value


def host(function: Callable[[], Result], device: str = "cpu") -> Result:
    """The result of `function`, which a recorded step calls anew in every run, before it computes anything.

    It may have effects in Python, such as counting a step. Its floats, and its arrays, which are NumPy's or on `device`
    already, of the same shape and dtype each time, are the step's to pass to operations, the arrays on `device`;
    anything else must be the same in every run.
    """
    with recorded_by(None):  # what the function computes by tensors is not part of the step
        value = function()
    if state.recorder is None:
        return moved_arrays(value, device)  # type: ignore[no-any-return]
    return state.recorder.host(function, value, device)  # type: ignore[no-any-return]


def require(flag: Array, otherwise: Callable[[], None]) -> None:
    """Go on if the boolean `flag`, a computed scalar, holds; else call `otherwise`, which raises.

    A recorded step that fails here is undone and made again without recording, which finds the reason.
    """
    if state.recorder is not None:
        state.recorder.require(flag)
        if device_of(flag) != "cpu":  # a GPU computes nothing while a step is captured
            return
    if not moved(flag, "cpu"):
        with recorded_by(None):
            otherwise()


@contextmanager
def undone_by(restore: Callable[[], None]) -> Iterator[None]:
    """Call `restore` if the block raises."""
    if state.recorder is not None:
        state.recorder.undone_by(restore)
    try:
        yield
    except BaseException:
        with recorded_by(None):
            restore()
        raise


def reads(array: Array, what: str) -> None:
    """Say that Python looks at the values of `array`, which a recorder refuses where they differ from run to run."""
    if state.recorder is not None:
        state.recorder.read(array, what)
