"""One contestant in a process of its own: it builds a scenario and makes steps of it when it is asked to.

Orders come as lines of JSON on standard input, answers go to standard output; what a framework prints goes to standard
error. The first line says which contestant, on which CPUs. The process ends when its input does.
"""

import importlib
import json
import math
import os
import statistics
import sys
import time
import traceback
from typing import Any

POOL = 4  # batches that the measured steps take in turn
# About so many of a turn: few, since a framework that runs ahead of Python waits once in each.
BLOCKS = 10


class Worker:
    """The orders, as methods: each takes what the line has besides `do`, and returns what is answered."""

    def __init__(self, module: str, variant: str, threads: int, cpus: list[int]) -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cpus)
        begin = time.perf_counter()
        self.module = importlib.import_module(f"benchmarks.peers.{module}")
        self.import_s = time.perf_counter() - begin
        self.module.setup(threads)
        self.variant = variant
        self.program: Any = None
        self.pool: list[Any] = []

    def build(self, scenario: str, tiny: bool, dtype: str) -> dict[str, float]:
        """Make the step; it may be compiled only when it is first called."""
        from benchmarks.table import find

        self.program, self.pool = None, []
        self.scenario, self.dtype = find(scenario, tiny), dtype
        self.program = getattr(self.module, self.scenario.kind)(self.scenario, dtype, self.variant)
        self.step_s = 0.0
        return {"import_s": self.import_s}

    def arrays(self, k: int) -> tuple[Any, ...]:
        """What step k is given."""
        return self.scenario.arrays(k, self.dtype)

    def losses(self, steps: int, done: int = 0) -> dict[str, Any]:
        """The results of the first steps, of which so many are done."""
        step, read = self.program
        return {"losses": [list(read(step(*self.arrays(k)))) for k in range(done, steps)]}

    def turn(self, seconds: float) -> dict[str, Any]:
        """The time of a step: the median of blocks of a turn of about so many seconds, each waited for at its end.

        Where other programs take a core for some milliseconds, a mean would say more of them than of the step. A step
        before the first block is not counted.
        """
        self.pool = self.pool or [self.arrays(k) for k in range(POOL)]
        step, read = self.program
        begin = time.perf_counter()
        read(step(*self.pool[0]))
        steps = max(1, round(seconds / (self.step_s or time.perf_counter() - begin)))
        size = max(1, round(steps / BLOCKS))
        times = []
        for start in range(0, steps, size):
            begin = time.perf_counter()
            for k in range(start, start + size):
                result = step(*self.pool[k % POOL])
            values = read(result)
            times.append((time.perf_counter() - begin) / size)
            if not all(map(math.isfinite, values)):
                raise FloatingPointError(f"the result of a step is {values}")
        self.step_s = statistics.median(times)
        return {"step_s": self.step_s, "steps": len(times) * size, "values": values}

    def memory(self) -> dict[str, int]:
        """The most memory that the process has had, in bytes."""
        # Not getrusage: after exec its maximum is at least what the parent had at that moment.
        if os.path.exists("/proc/self/status"):
            with open("/proc/self/status") as lines:
                return {
                    "peak": next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
                }
        import resource

        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}  # in bytes on macOS


class CardWorker(Worker):
    """The same on a GPU: what a step is given is there already, and the time is the GPU's own."""

    def arrays(self, k: int) -> tuple[Any, ...]:
        """What step k is given, there."""
        return tuple(map(self.module.put, super().arrays(k)))

    def _steps(self, n: int) -> Any:
        """The result of the last of n steps, which may still be on its way."""
        for k in range(n):
            result = self.program.step(*self.pool[k % POOL])
        return result

    def turn(self, seconds: float) -> dict[str, Any]:
        """As on a CPU, after as many steps that are not counted; `clock_s` is the same by the clock of the CPU."""
        self.pool = self.pool or [self.arrays(k) for k in range(POOL)]
        begin = time.perf_counter()
        self.program.read(self._steps(1))
        n = max(1, round(seconds / (self.step_s or time.perf_counter() - begin)))
        self.program.read(self._steps(n))  # an idle GPU is slow at first
        begin = time.perf_counter()
        took, result = self.module.timed(lambda: self._steps(n))
        values = self.program.read(result)
        self.step_s = (time.perf_counter() - begin) / n
        if not all(map(math.isfinite, values)):
            raise FloatingPointError(f"the result of a step is {values}")
        return {"step_s": took / n, "clock_s": self.step_s, "steps": n, "values": values}

    def kernels(self, steps: int) -> dict[str, float]:
        """Seconds a step in which the GPU did something, by PyTorch's profiler, whosever the steps are."""
        from benchmarks.profiler import seconds_busy

        return {"kernel_s": seconds_busy(lambda: self.program.read(self._steps(steps))) / steps}

    def memory(self) -> dict[str, int]:
        """The most memory of the GPU that the framework has held, in bytes."""
        return {"peak": self.module.peak()}


def _answer(make: Any, **arguments: Any) -> dict[str, Any]:
    from benchmarks.peers import NotThere, Unsupported

    try:
        return {"answer": make(**arguments)}
    except Exception as error:
        traceback.print_exc()
        status = {NotThere: "missing", Unsupported: "unsupported"}.get(type(error), "failed")
        words = " ".join(str(error).split())
        return {
            "status": status,
            "note": words if status != "failed" else f"{type(error).__name__}: {words}"[:200],
        }


def main() -> None:
    """Answer orders until there are no more."""
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    worker: list[Worker] = []

    def begin(device: str, **arguments: Any) -> dict[str, Any]:
        worker.append(Worker(**arguments) if device == "cpu" else CardWorker(**arguments))
        return {}

    for line in orders:
        order = json.loads(line)
        do = order.pop("do")
        answer = _answer(begin if do == "begin" else getattr(worker[0], do), **order)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
