"""The worker threads that help to run machines: one pool a process, made at the first run that can use it.

Workers are Python threads that sit in compiled code without the GIL (`interpreter.serve`). When there was nothing to
do for a while they return to Python and wait for an event, so that an idle program costs nothing.
"""

import atexit
import os
import sys
import threading

import numpy as np

from minigan.kernels import layout
from minigan.kernels.launch import notice
from minigan.kernels.objects import Kernel

_lock = threading.Lock()  # held by the run that the pool helps, and while the pool is made
_pool: "Pool | None" = None
_ended = False  # the interpreter is about to


def _after_fork() -> None:
    global _lock, _pool
    _lock, _pool = threading.Lock(), None  # the workers, and any thread that held the lock, do not exist here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Pool:
    """Up to `size` worker threads, fewer (said once) where the system allows no more."""

    def __init__(self, size: int, serve: Kernel, part: Kernel) -> None:
        self.size, self.running = size, False
        words = np.zeros((layout.POOL_BYTES + 128) // 8, np.int64)
        start = -words.ctypes.data % 128 // 8
        self._words = words[start:]  # kept by each worker for as long as it runs
        self.address = self._words.ctypes.data
        for where, value in zip((layout.YIELD, layout.SLEEP, layout.NAP), _system_functions(), strict=True):
            self._words[where // 8] = value
        self._serve, self._part = serve.function, part.address
        self._threads: list[threading.Thread] = []
        self._wake: list[threading.Event] = []
        for me in range(1, size + 1):
            wake = threading.Event()
            thread = threading.Thread(target=self._work, args=(me, wake), name=f"minigan-{me}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                notice(f"compiled steps run on {me} of {size + 1} threads: {error}")
                break
            self._threads.append(thread)
            self._wake.append(wake)

    def _work(self, me: int, wake: threading.Event) -> None:
        while not self._stopped:
            wake.wait()
            self._serve(self.address, me, self._part, 0, 0)
            wake.clear()
            # A run that began before that has found the event set.
            if self.running:
                wake.set()

    @property
    def _stopped(self) -> bool:
        return bool(self._words[layout.STOP // 8])

    def wake(self, count: int) -> bool:
        """See that the first `count` workers are at it; whether there is any."""
        self.running = True
        for wake in self._wake[:count]:
            if not wake.is_set():
                wake.set()
        return bool(self._wake)

    def stop(self) -> None:
        """End the threads; a run that they help goes on without them."""
        self._words[layout.STOP // 8] = 1
        self.running = True
        for wake in self._wake:
            wake.set()
        for thread in self._threads:
            thread.join()


def _system_functions() -> tuple[int, int, int]:
    """The addresses of what gives the core to others and of what sleeps, and the shortest sleep worth while."""
    import ctypes  # here, because `import minigan` does not need it

    if sys.platform == "win32":
        give, sleep, nap = ctypes.windll.kernel32.SwitchToThread, ctypes.windll.kernel32.Sleep, 1  # ms
    else:
        library = ctypes.CDLL(None)
        give, sleep, nap = library.sched_yield, library.usleep, 50  # us
    pointers = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in (give, sleep)]
    return pointers[0], pointers[1], nap


def acquire(size: int, count: int, serve: Kernel, part: Kernel) -> int:
    """Take the pool of `size` workers, with `count` of them awake, for a run: the address of its block.

    0 if there is none to be had, because another thread's run has it or because the system gives no threads: then the
    run goes without. Otherwise `release` must follow.
    """
    global _pool
    if min(size, count) < 1 or _ended or not _lock.acquire(blocking=False):
        return 0
    try:
        if _pool is None or _pool.size != size:
            if _pool is None:
                # Run before what was registered before, Numba's own: the workers must have left the code when it goes.
                atexit.register(_stop)
            else:
                _pool.stop()
            _pool = Pool(size, serve, part)
        if _pool.wake(count):
            return _pool.address
    except BaseException:
        _lock.release()
        raise
    _lock.release()
    return 0


def release() -> None:
    """Give back what `acquire` gave."""
    if _pool is not None:
        _pool.running = False
    _lock.release()


def _stop() -> None:
    global _ended
    _ended = True
    if _pool is not None:
        _pool.stop()
