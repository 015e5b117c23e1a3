"""Fused loops run as plain Python, and a machine that runs what may be run at once in any order.

Compiling a loop takes a quarter of a second, so most tests of compiled steps run the generated text as it stands. That
finds more than speed would: an access that overlaps with another array's (which compiled code is told never happens), a
value of another dtype than its array's, and blocks or rows that depend on each other.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minigan.kernels import formula, launch, machine
from minigan.program import build

KINDS = {np.dtype(kind).name: np.ctypeslib.as_ctypes_type(kind) for kind in "?bBhHiIlLfd"}
SIZES = {name: ctypes.sizeof(kind) for name, kind in KINDS.items()}
FLOATS = {"float32": np.float32, "float64": np.float64}
CALLBACK = ctypes.CFUNCTYPE(None, *[ctypes.c_ssize_t] * 5)


class Memory:
    """What a loop's text calls to reach memory; one for each loop, which is one kernel."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        self.seen: dict[int, dict[int, bool]] = {}  # by address and array: whether it was written

    def _touch(self, at: int, scope: int, writes: bool) -> None:
        scopes = self.seen.setdefault(at, {})
        scopes[scope] = scopes.get(scope, False) or writes
        if len(scopes) > 1 and any(scopes.values()):
            self.faults.append(f"arrays {sorted(scopes)} overlap, and one of them is written")

    def read(self, base: int, index: int, kind: str, scope: int) -> Any:
        at = base + index * SIZES[kind]
        self._touch(at, scope, False)
        return np.dtype(kind).type(KINDS[kind].from_address(at).value)

    def write(self, base: int, index: int, value: Any, kind: str, scope: int) -> None:
        at = base + index * SIZES[kind]
        self._touch(at, scope, True)
        if isinstance(value, (np.generic, np.ndarray)) and value.dtype != kind:
            self.faults.append(f"{value.dtype} {value!r} is written to an array of {kind}")
        KINDS[kind].from_address(at).value = value

    @staticmethod
    def word(row: int, index: int) -> int:
        return ctypes.c_int64.from_address(row + 8 * index).value

    @staticmethod
    def real(row: int, index: int) -> np.float64:
        return np.float64(ctypes.c_double.from_address(row + 8 * index).value)


def functions() -> dict[str, Any]:
    """The functions of formulas by their names in a loop's text."""
    found: dict[str, Any] = dict(FLOATS)
    for name in formula.__all__:
        for dtype, make in FLOATS.items():
            found[f"{name}_{dtype}"] = _of_dtype(getattr(formula, name), make)
    return found


def _of_dtype(function: Any, make: Any) -> Any:
    def of_dtype(*arguments: Any) -> Any:
        result = function(*arguments)
        return np.bool_(result) if np.asarray(result).dtype == np.bool_ else make(result)

    return of_dtype


class Kernels:
    """Stands in for `launch`, and for `kernel`, where programs are built."""

    may_build = staticmethod(lambda: True)

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.known: dict[str, Any] = {}
        self.functions = functions()

    def kernel(self, name: str, source: str) -> Any:
        if source not in self.known:
            memory = Memory(self.faults)
            body = "\n".join(line for line in source.splitlines() if not line.startswith("from "))
            names = {**self.functions, "read": memory.read, "write": memory.write, "add": lambda a, b: a + b}
            names |= {"word": memory.word, "real": memory.real}
            exec(compile(body, f"<{name}>", "exec"), names)  # noqa: S102

            def kernel(row: int, i0: int, i1: int, j0: int, j1: int) -> None:
                memory.seen.clear()
                try:
                    for block in reversed(_blocks(row, i0, i1, j0, j1)):
                        names[name](row, *block)
                except Exception as error:  # ctypes would print it and go on
                    self.faults.append(f"{name}: {type(error).__name__}: {error}\n{source}")

            callback = CALLBACK(kernel)
            address = ctypes.cast(callback, ctypes.c_void_p).value
            self.known[source] = SimpleNamespace(address=address, source=source, function=callback)
        return self.known[source]


def _blocks(row: int, i0: int, i1: int, j0: int, j1: int) -> list[tuple[int, int, int, int]]:
    """A block cut in two as parts may be, which gives the same bits."""
    split, quantum = Memory.word(row, 3), Memory.word(row, 4)
    if split == 0 and i1 - i0 > quantum:
        middle = i0 + (i1 - i0) // 2 // quantum * quantum
        return [(i0, middle, j0, j1), (middle, i1, j0, j1)]
    if split == 1 and j1 - j0 > quantum:
        middle = j0 + (j1 - j0) // 2 // quantum * quantum
        return [(i0, i1, j0, middle), (i0, i1, middle, j1)]
    return [(i0, i1, j0, j1)]


class Shuffled(machine.Machine):
    """Runs the parts of a phase, and of each part the rows, in random order."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._random = np.random.default_rng(0)

    def run(self, begin: int = 0, end: int | None = None) -> bool:
        if begin == 0:
            self._head[0] = 0
        for first, last, parts in self._phases[begin:end].tolist():
            if self._head[0]:
                break
            if parts == 1:
                for k in range(first, last):
                    self.run_row(k)
            else:
                pairs = [(k, part) for k in range(first, last) for part in range(parts)]
                for at in self._random.permutation(len(pairs)):
                    self._run_part(*pairs[at], parts, first)
        self._head[self._finished] += 1
        return not self._head[0]

    def _run_part(self, k: int, part: int, parts: int, first: int) -> None:
        row = int(self._rows[k])
        address, n, m, split, quantum = (Memory.word(row, word) for word in range(5))
        if split == 2:
            if (k - first) % parts == part:
                CALLBACK(address)(row, 0, n, 0, m)
            return
        size = n if split == 0 else m
        quanta = -(-size // quantum)
        begin, end = part * quanta // parts * quantum, min((part + 1) * quanta // parts * quantum, size)
        if begin < end:
            CALLBACK(address)(row, *((begin, end, 0, m) if split == 0 else (0, n, begin, end)))


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Programs that are built in the block run generated loops as plain Python."""
    stand_in = Kernels()
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(build, "launch", stand_in)
        patch.setattr(build, "kernel", stand_in.kernel)
        patch.setattr(machine, "Machine", Shuffled)
        yield
    assert not stand_in.faults, stand_in.faults[0]


needs_numba = pytest.mark.skipif(launch.numba() is None, reason="needs Numba")
