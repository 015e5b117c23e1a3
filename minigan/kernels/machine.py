"""Machines: tables of kernel calls that compiled code runs, without Python, graph or allocation, on several threads.

A table is an array of 64-bit words. A row of it is one call:

    0 the kernel's address   1 n   2 m   3 split: 0 along n, 1 along m, 2 never   4 quantum
    5.. the kernel's own arguments: addresses, strides in bytes, sizes, the bits of float64 numbers

The kernel (`minigan.kernels.objects.kernel`) computes a block [i0, i1) x [j0, j1) of an n x m result. Blocks of a row
never depend on each other, and a result's bits never depend on the blocks. Rows that do not depend on each other form
a phase, which is cut into parts: of each row a part has one range of whole quanta along the axis of its split. Which
parts there are is settled when a machine is built; which thread runs a part, when it runs. So results have the same
bits on any number of threads.
"""

import functools
import math
import os
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigan.backend import Array, set_blas_threads
from minigan.errors import ConfigError, GraphError
from minigan.kernels import layout, workers
from minigan.kernels.objects import Kernel, own_kernel

MOST_PARTS = 63  # bits of a word that stays positive
# Of so many runs the first few, in turn with and without help, decide about the others.
RUNS, PROBES = 128, 4

_machines: "weakref.WeakSet[Machine]" = weakref.WeakSet()
_threads: int | None = None  # what was asked for


def available() -> int:
    """The number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads() -> int:
    """The most threads that minigan uses.

    Unless `set_threads` was called: the CPUs that this process may use, or fewer if `$MINIGAN_NUM_THREADS` or
    `$OMP_NUM_THREADS` says so.

    Raises `ConfigError` if `$MINIGAN_NUM_THREADS` is not a number above 0.
    """
    return _default() if _threads is None else _threads


@functools.cache
def _default() -> int:
    most = available()
    own = os.environ.get("MINIGAN_NUM_THREADS")
    if own:
        if not own.isdecimal() or int(own) < 1:
            raise ConfigError(f"MINIGAN_NUM_THREADS={own!r}: it must be a whole number above 0")
        most = min(most, int(own))
        set_blas_threads(most)
    shared = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]  # OpenMP takes a list, for nested regions
    return min(most, int(shared)) if shared.isdecimal() and int(shared) > 0 else most


def set_threads(n: int) -> None:
    """Set the most threads that minigan uses, in compiled steps and in NumPy's matrix products if by OpenBLAS.

    Steps compiled before have their parts already, and are run by as many threads as are allowed now. The results of
    compiled steps do not depend on it.

    Raises `ConfigError` for less than 1 and for more than the CPUs that this process may use.
    """
    global _threads
    most = available()
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 1 <= n <= most:
        raise ConfigError(f"cannot run on {n!r} threads: a whole number from 1 to {most}, the CPUs there are")
    _threads = int(n)
    set_blas_threads(_threads)


def check_kernel() -> Kernel:
    """The kernel that stores 1 to the int64 at the address in word 6 if the bool at the address in word 5 is false."""
    return _interpreter("check(row)")


def _interpreter(call: str) -> Kernel:
    """A function of `minigan.kernels.interpreter` as a kernel."""
    name = call.partition("(")[0]
    text = f"from minigan.kernels import interpreter\n\n\ndef {name}(row, i0, i1, j0, j1):\n    interpreter.{call}\n"
    return own_kernel(name, lambda: text)


class _Pace:
    """Whether the help of workers pays for some phases of a machine, found out by running them with and without it.

    A second core may be worth nothing: two that share what they compute with, or with what other programs run, are at
    times slower together than one alone. Results do not depend on it, so it is found out again now and then.
    """

    def __init__(self) -> None:
        self.runs = 0
        self.best = [math.inf, math.inf]  # nanoseconds, without and with help

    def wants_help(self) -> bool:
        """How the next run is to be made: first in turn, then in the way that was faster, by at least 3 %."""
        turn = self.runs % RUNS
        return turn % 2 == 0 if turn < PROBES else self.best[True] < 0.97 * self.best[False]

    def note(self, helped: bool, nanoseconds: int) -> None:
        """How long a run took."""
        turn = self.runs % RUNS
        if turn == 0:
            self.best = [math.inf, math.inf]
        if turn < PROBES:
            self.best[helped] = min(self.best[helped], nanoseconds)
        self.runs += 1


class Machine:
    """A table, cut into phases, ready to run.

    Args:
        table: the words, 1-d, int64, contiguous. Not copied: a row's own arguments may be changed between runs.
        rows: for each row, where in the table it begins.
        phases: (first row, last row + 1, parts) of each phase, in the order of their execution.

    `fail_address` is for rows of `check_kernel`: when a run finds that one of them has stored 1 there, it ends after
    that phase.

    Raises `ValueError` for rows and phases that are outside of the table, or whose words contradict each other.
    """

    def __init__(self, table: Array, rows: Sequence[int], phases: Sequence[tuple[int, int, int]]) -> None:
        _check(table, rows, phases)
        self._table, self._offsets = table, list(rows)
        self._count, self._parts = len(phases), max((parts for _, _, parts in phases), default=1)
        self._rows = np.array(rows, np.int64) * 8 + table.ctypes.data
        self._phases = np.array(phases, np.int64)
        # A memoryview, because NumPy takes ten times as long to read or write one word.
        self._memory = np.zeros(layout.MACHINE_BYTES // 8, np.int64)
        self._head = self._memory.data
        self._head[layout.ROW_LIST // 8] = self._rows.ctypes.data
        self._head[layout.PHASE_LIST // 8] = self._phases.ctypes.data
        self._finished = layout.FINISHED // 8
        self.fail_address = self._address = self._memory.ctypes.data  # the head's first word
        self._alone = self._address + layout.OWN_POOL
        self._part = _interpreter("run_part(row, i0, i1, j0, j1)")
        self._serve = _interpreter("serve(row, i0, i1)")
        self._run = _interpreter("run_phases(row, i0, i1, j0, j1)").function
        self._prototype: Any = type(self._run)  # of every kernel
        self._part_address = self._part.address
        self._lock, self._torn = threading.RLock(), False
        self._paces: dict[tuple[int, int], _Pace] = {}
        _machines.add(self)

    def run(self, begin: int = 0, end: int | None = None) -> bool:
        """Run phases begin..end-1, without the GIL; whether all checks have passed since phase 0.

        The phases after a check that failed are not run, until a run begins at phase 0 again. Another Python thread
        that runs the same machine waits; other machines run at the same time, and one of them has the workers.
        """
        end = self._count if end is None else end
        if not 0 <= begin <= end <= self._count:
            raise IndexError(f"phases {begin} to {end} of {self._count}")
        with self._lock:
            if self._torn:
                raise GraphError("this process was forked while another thread ran the same compiled step")
            if begin == 0:
                self._head[0] = 0
            # A worker's own part is a bit of a word.
            size = min(threads(), MOST_PARTS) - 1
            if not size or self._parts == 1:
                self._run(self._address, begin, end, self._alone, self._part_address)
                return self._head[0] == 0
            pace = self._paces.setdefault((begin, end), _Pace())
            start = time.perf_counter_ns()
            wanted = pace.wants_help()
            pool = wanted and workers.acquire(size, self._parts - 1, self._serve, self._part)
            try:
                self._run(self._address, begin, end, pool or self._alone, self._part_address)
            finally:
                if pool:
                    workers.release()
            passed = self._head[0] == 0
            if passed and bool(pool) == wanted:  # a run that ended early, or got no help, says nothing
                pace.note(wanted, time.perf_counter_ns() - start)
            return passed

    @property
    def finished(self) -> int:
        """How many runs have come to their end: tells whether one had that was interrupted about then."""
        return self._head[self._finished]

    @property
    def failed(self) -> bool:
        """Whether a check has failed since phase 0."""
        return self._head[0] != 0

    def run_row(self, k: int) -> None:
        """Run row `k`, whole, in this thread."""
        address, n, m = (int(self._table[self._offsets[k] + word]) for word in range(3))
        with self._lock:
            self._prototype(address)(int(self._rows[k]), 0, n, 0, m)

    def after_fork(self) -> None:
        """In a forked process: forget the lock of a thread that does not exist here."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._lock, self._torn = threading.RLock(), True


def _after_fork() -> None:
    for machine in list(_machines):
        machine.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _check(table: Array, rows: Sequence[int], phases: Sequence[tuple[int, int, int]]) -> None:
    """Raise `ValueError` for what would have a machine read or jump to what is not its own."""
    if table.dtype != np.int64 or table.ndim != 1 or not table.flags.c_contiguous:
        raise ValueError(
            f"a table of {table.dtype} with {table.ndim} axes: it must be int64, 1-d, contiguous"
        )
    for k, offset in enumerate(rows):
        if not 0 <= offset <= table.size - 5:
            raise ValueError(f"row {k} begins at word {offset} of a table of {table.size}")
        address, n, m, split, quantum = table[offset : offset + 5].tolist()
        if address == 0 or n < 0 or m < 0 or split not in (0, 1, 2) or (split < 2 and quantum < 1):
            raise ValueError(f"row {k}: kernel {address}, {n} x {m}, split {split}, quantum {quantum}")
    for first, last, parts in phases:
        if not (0 <= first <= last <= len(rows) and 1 <= parts <= MOST_PARTS):
            raise ValueError(f"a phase of rows {first} to {last} of {len(rows)} in {parts} parts")
