"""The contestants on a GPU: what differs from the CPU, and what is known besides.

Everybody's first steps in float64 are there too, and are compared with those of minigan on the CPU. The processes of
all contestants are there at once as they are on the CPU, but only the one whose turn it is uses the GPU.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.convolutional import ConvGan
from benchmarks.peers import GANS, Contestant
from benchmarks.process import Trouble, Worker
from benchmarks.runner import Options, Row, Runner
from benchmarks.scenarios import Array, Gan
from benchmarks.table import TABLE, Scenario

ROUNDS = 7
PROFILED = 20  # steps


@dataclass
class CardRow(Row):
    """What is known of a contestant on a GPU.

    `sgemm` is cuBLAS's there, `peak` its memory, `threads` those of the CPU that its process may use, and `cold_s` is
    until the first result of a new process with empty caches.

    Attributes:
        clock: seconds a step in each round by the CPU's clock, which `rounds`, of the GPU's events, should agree with.
        copy: bytes a second that are read and written where the GPU copies its own memory, in the same rounds.
        tf32: flops a second of the product with TF32, which no contestant uses.
        kernel_s: seconds a step in which the GPU did something, of a run of some steps under a profiler.
        kernel_note: why that is not known.
    """

    clock: list[float] = field(default_factory=list)
    copy: list[float] = field(default_factory=list)
    tf32: list[float] = field(default_factory=list)
    kernel_s: float | None = None
    kernel_note: str = ""

    def by_clock(self) -> Row:
        """The same with the clock's times for the events'."""
        return replace(self, rounds=self.clock)


class CardRunner(Runner):
    """A run on a GPU."""

    row = CardRow
    settle = 0.05  # nobody's threads look for work while the GPU has it

    def __init__(self, contestants: list[Contestant], options: Options, say: Callable[[str], None]) -> None:
        from benchmarks.peers.limits_cuda import limits  # here, because it is built on minigan

        super().__init__(contestants, options, say)
        self.limits, self.checking_threads = limits(options.tiny), max(options.threads)

    def _first_steps(self, contestant: Contestant, scenario: Scenario, row: Row) -> None:
        self._worker(contestant, row.threads, f"{scenario.name}-{contestant.name}")
        super()._first_steps(contestant, scenario, row)

    def _losses32(self, worker: Worker, row: Row, steps: int) -> list[list[float]]:
        first: list[list[float]] = worker.ask("losses", steps=1)["losses"]
        if not self.options.tiny:  # where a process makes all scenarios
            row.cold_s = time.perf_counter() - worker.born
        others: list[list[float]] = worker.ask("losses", steps=steps, done=1)["losses"]
        return first + others

    def _take_turn(self, contestant: Contestant, row: Row, busy: bool) -> None:
        assert isinstance(row, CardRow)
        answer = self._turn(contestant, row.threads)
        row.rounds.append(answer["step_s"])
        row.clock.append(answer["clock_s"])

    def _look_back(self, worker: Worker, row: Row) -> None:
        assert isinstance(row, CardRow)
        super()._look_back(worker, row)
        try:
            row.kernel_s = worker.ask("kernels", steps=PROFILED)["kernel_s"]
        except Trouble as trouble:  # all else has been measured
            row.kernel_note = str(trouble)


def names() -> list[str]:
    """The scenarios that can be measured on a GPU."""
    return [s.name for s in TABLE.values() if s.kind in GANS and s.measure == "steps"]


def traffic(scenario: Scenario) -> float:
    """Bytes that every float32 step has to move, whatever it keeps on the chip.

    Adam reads and writes each parameter and its two moments, and what the step is given is read.
    """
    assert isinstance(scenario, (Gan, ConvGan))
    parameters = sum(a.nbytes for network in scenario.weights("float32") for a in _arrays(network))
    return 6.0 * parameters + sum(a.nbytes for a in scenario.arrays(0, "float32"))


def _arrays(network: Any) -> list[Array]:
    return list(network.values()) if isinstance(network, dict) else [a for layer in network for a in layer]
