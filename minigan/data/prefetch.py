"""Arrays that are on their way to a GPU before they are asked for.

While a step runs on the device, Python makes the arrays of the next one in pinned memory, from which they are copied on
a stream of their own. There are two sets of buffers: one that the running step reads, one that is filled meanwhile.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minigan.backend import Array, cuda


class _Set(NamedTuple):
    """Buffers for the arrays of one step: in pinned memory, and on the device."""

    pinned: list[Array]
    there: list[Any]


class Prefetch:
    """What `make()` gives for the next step, made and copied while the present one runs.

    Args:
        make: gives the NumPy arrays of the step that is next when it is called, of the same shapes and dtypes each
            time.
        device: where those of floats are to be. Labels and other integers stay where Python can look at them.

    What `take` gives is valid until the second call of `begin` after it; a step that reads it has to be in the current
    stream before the first.

    >>> import numpy as np
    >>> from minigan.data.prefetch import Prefetch
    >>> batches = iter(np.arange(6.0).reshape(3, 2))
    >>> ahead = Prefetch(lambda: [next(batches)], "cpu")
    >>> ahead.begin(0)
    >>> ahead.take(0)
    [array([0., 1.])]
    """

    def __init__(self, make: Callable[[], Sequence[Array]], device: str) -> None:
        self.make, self.device = make, device
        self._number: int | None = None  # of the step whose arrays there are
        self._found: list[Any] = []
        if device != "cpu":
            self._stream = cuda.stream(device)
            self._copied: list[Any] = [
                None,
                None,
            ]  # events after the last copy from each set of pinned buffers
            self._read: Any = None  # the event after the last step that read the buffers that are filled next
            self._sets: list[_Set] = []
            self._filled = 0

    def begin(self, number: int) -> None:
        """Make the arrays of step `number`, unless they are there, and begin to copy them; does not wait."""
        if number == self._number:
            return
        arrays = list(self.make())
        self._number = None
        self._found = arrays if self.device == "cpu" else self._sent(arrays)
        self._number = number

    def _sent(self, arrays: list[Array]) -> list[Any]:
        """The arrays, those of floats on their way to the device."""
        floats = [x for x in arrays if x.dtype.kind == "f"]
        if not self._sets:
            self._sets = [self._buffers(floats) for _ in range(2)]
            self._read = cuda.record(self.device)  # of work that has used this memory before
        self._filled = 1 - self._filled
        pinned, there = self._sets[self._filled]
        if self._copied[self._filled] is not None:
            cuda.wait(self.device, self._copied[self._filled])
        for own, array in zip(pinned, floats, strict=True):
            np.copyto(own, array)
        pairs = list(zip(there, pinned, strict=True))
        self._copied[self._filled] = cuda.copy_beside(self.device, self._stream, pairs, self._read)
        sent = iter(there)
        return [next(sent) if x.dtype.kind == "f" else x for x in arrays]

    def take(self, number: int) -> list[Any]:
        """The arrays of step `number`, on the device for all that the current stream does from now on."""
        self.begin(number)
        if self.device != "cpu":
            self._read = cuda.record(self.device)
            cuda.wait_in_stream(self.device, self._copied[self._filled])
        return self._found

    def _buffers(self, arrays: list[Array]) -> _Set:
        own = [cuda.pinned(x.nbytes, self.device).view(x.dtype).reshape(x.shape) for x in arrays]
        specs = [(x.shape, x.dtype) for x in arrays]
        return _Set(own, list(cuda.empty_beside(specs, self.device, self._stream)))
