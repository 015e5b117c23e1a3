"""What every run of a program does in Python, before it computes and after it, wherever it computes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from minigan.backend import Array
from minigan.errors import GraphError
from minigan.program.capture import Buffer, Recorder, floats_and_arrays
from minigan.trace import recorded_by

if TYPE_CHECKING:
    from minigan.program.build import Options


class Runs(ABC):
    """One captured step: `print` it to see its kernels. Made by `minigan.compile`.

    Attributes:
        flops: floating point operations of a run, by the definitions of its calls.
        nbytes: memory of its results, the arena.
        options: how it was made.
        interrupted: whether Ctrl-C was pressed while it ran.
    """

    flops: int
    nbytes: int
    _numbers: Array  # float64, those that are worked out anew in every run

    def __init__(self, recorder: Recorder, options: "Options") -> None:
        self.options = options
        self.interrupted = False
        self._hosts, self._restores = recorder.hosts, recorder.restores
        self._worked_out = len(self._hosts)  # the capturing run has
        self._changed = [tensor.share() for tensor in recorder.changed.values()]  # their storages
        self._inputs: list[Buffer] = [b for b in recorder.buffers if b.kind == "input"]
        self._arguments = [b.array for b in self._inputs if b.array is not None]

    @abstractmethod
    def __len__(self) -> int:
        """The number of kernels."""

    @abstractmethod
    def source(self, kernel: int) -> str:
        """The generated text of a kernel's loop, by its place in the listing, from 0; "" without one."""

    def work_out(self) -> None:
        """Call what every run calls first, and take over its numbers and arrays."""
        self._worked_out = 0
        for hosted in self._hosts:
            value = hosted.function()
            self._worked_out += 1
            if value is None:
                continue
            if hosted.numbers is not None and type(value) is tuple:
                hosted.numbers.pack_into(self._numbers.data, 8 * hosted.first, *value)
                continue
            numbers, arrays = floats_and_arrays(value)
            self._numbers[hosted.first : hosted.first + len(numbers)] = numbers
            for own, array in zip(hosted.arrays, arrays, strict=True):
                if own.shape != array.shape or own.dtype != array.dtype:
                    raise GraphError(
                        f"an array that Python works out in every run was {own.dtype} {own.shape} when the step was"
                        f" captured and is {array.dtype} {array.shape} now"
                    )
                self.receive(own, array)

    def receive(self, own: Array, array: Array) -> None:
        """Take over an array that Python has worked out."""
        np.copyto(own, array)

    @abstractmethod
    def run(self, arguments: Sequence[Array]) -> bool:
        """Run the kernels on these arrays; whether what the step requires held."""

    @abstractmethod
    def results(self, copy: bool) -> list[Array]:
        """The arrays that the step returns: copies, or memory that the next run overwrites."""

    def restore(self) -> None:
        """Undo what a run that ended early did in Python."""
        with recorded_by(None):
            for after, restore in reversed(self._restores):
                if self._worked_out >= after:  # else this run has not come to what it undoes
                    restore()

    def count(self) -> None:
        """Let the version of each tensor that a run overwrites rise."""
        for storage in self._changed:
            storage.version += 1
