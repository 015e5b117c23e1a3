"""The contestants in processes of their own, all there at once, of which one at a time measures.

They take turns, A B C A B C …, so that a clock that wanders and what else the machine does hit them all alike. What is
compared is therefore always of the same round.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.peers import ALL, SGEMM, Contestant
from benchmarks.peers.sgemm import FLOPS
from benchmarks.process import Trouble, Worker, another_process
from benchmarks.table import Scenario, find

CLOSE64, CLOSE32 = 1e-8, 5e-2  # largest difference from float64, of max(1, |loss|), in float64 and in float32
SETTLE = 0.3  # seconds between turns: idle threads of some libraries are busy looking for work for 0.2 s
REFERENCE = next(contestant for contestant in ALL if contestant.name == "minigan-eager")


@dataclass
class Options:
    """How much is measured.

    Attributes:
        threads: numbers of threads.
        tiny: scenarios at a size that takes no time, all of a contestant's in one process.
        rounds: turns of each contestant in each scenario.
        seconds: length of a turn, if a step is not longer.
        starts: processes with a warm cache whose start is timed, after one with a cold cache.
        patience: seconds after which a process that has not answered is ended.
    """

    threads: list[int]
    tiny: bool = False
    rounds: int = 15
    seconds: float = 0.2
    starts: int = 5
    patience: float = 600.0


@dataclass
class Row:
    """What is known of a contestant in a scenario on so many threads.

    Attributes:
        status: "ok", "missing", "unsupported", "failed" or "wrong"; `note` says more.
        error64, error32: largest difference of a loss in the first steps from minigan's in float64, of max(1, |loss|).
        rounds: seconds a step in each round; `busy` the same while another process is busy on one of the CPUs.
        sgemm: flops a second of NumPy's matrix product in the same rounds.
        cold_s, warm_s: from the start of a process to the end of its first step.
        import_s: of that, importing the framework, with a warm cache.
        peak: the most memory that the process has had, in bytes.
    """

    scenario: str
    threads: int
    contestant: str
    status: str = "ok"
    note: str = ""
    error64: float | None = None
    error32: float | None = None
    rounds: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    sgemm: list[float] = field(default_factory=list)
    cold_s: float | None = None
    warm_s: list[float] = field(default_factory=list)
    import_s: list[float] = field(default_factory=list)
    peak: int | None = None


@contextmanager
def _noted(row: Row) -> Iterator[None]:
    """`Trouble` in the block ends the block, and stands in the row."""
    try:
        yield
    except Trouble as trouble:
        row.status, row.note = trouble.status, trouble.note


def difference(losses: list[list[float]], reference: list[list[float]]) -> float:
    """The largest |a - b| / max(1, |b|)."""
    pairs = [pair for rows in zip(losses, reference, strict=True) for pair in zip(*rows, strict=True)]
    return max(abs(a - b) / max(1.0, abs(b)) for a, b in pairs)


class Runner:
    """A run: `rows` grows while it goes on, so that what is there can be reported at any time.

    Attributes:
        row: what a row is made by.
        limits: who measures what the machine can do, and how many of what a row has that as are in one of its steps.
        settle: seconds between turns.
        checking_threads: of the first steps in float64.
    """

    row: type[Row] = Row
    limits: tuple[tuple[Contestant, float], ...] = ((SGEMM, FLOPS),)
    settle = SETTLE
    checking_threads = 1

    def __init__(self, contestants: list[Contestant], options: Options, say: Callable[[str], None]) -> None:
        self.contestants, self.options, self.say = contestants, options, say
        self.rows: list[Row] = []
        self._folder = Path(tempfile.mkdtemp(prefix="minigan-benchmarks-"))
        self._workers: dict[tuple[Contestant, int], Worker] = {}
        self._losses: dict[tuple[Contestant, Scenario], list[list[float]]] = {}  # in float64
        self._troubles: dict[tuple[Contestant, Scenario], Trouble] = {}  # of those that have none

    def close(self) -> None:
        """End all processes and remove what was compiled."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _worker(self, contestant: Contestant, threads: int, caches: str = "shared") -> Worker:
        """The process of that contestant; a new one if there is none."""
        key = contestant, threads
        if key not in self._workers or not self._workers[key].is_open:
            folder = self._folder / caches
            folder.mkdir(exist_ok=True, mode=0o700)
            self._workers[key] = Worker(contestant, threads, str(folder), self.options.patience)
        return self._workers[key]

    def _end(self, contestant: Contestant, threads: int) -> None:
        worker = self._workers.pop((contestant, threads), None)
        if worker is not None:
            worker.close()

    def _leave(self, contestant: Contestant, threads: int) -> None:
        """End its process, if every scenario is to have new ones."""
        if not self.options.tiny:
            self._end(contestant, threads)

    def _build(self, worker: Worker, scenario: Scenario, dtype: str = "float32") -> dict[str, Any]:
        return worker.ask("build", scenario=scenario.name, tiny=self.options.tiny, dtype=dtype)

    def run(self, names: list[str]) -> Iterator[list[Row]]:
        """The rows of one scenario on one number of threads after another."""
        scenarios = [find(name, self.options.tiny) for name in names]
        self._check(scenarios)
        for scenario in scenarios:
            once = scenario.measure != "steps"
            for threads in [max(self.options.threads)] if once else self.options.threads:
                rows = {
                    c: self.row(scenario.name, threads, c.name)
                    for c in self.contestants
                    if scenario.kind in c.kinds
                }
                self.rows += rows.values()
                measure = self._starts if scenario.measure == "start" else self._steps
                measure(scenario, threads, rows)
                yield list(rows.values())

    def _check(self, scenarios: list[Scenario]) -> None:
        """Make the first steps of all scenarios in float64, in one process for each contestant."""
        works = {scenario.work: scenario for scenario in reversed(scenarios)}
        others = [] if REFERENCE in self.contestants else [REFERENCE]
        for contestant in [*self.contestants, *others]:
            mine = {work: s for work, s in works.items() if work.kind in contestant.kinds}
            if contestant.is_installed and mine:
                self.say(f"{contestant.name}: first steps in float64")
                for work, scenario in mine.items():
                    try:
                        self._losses[contestant, work] = self._first_losses(contestant, scenario)
                    except Trouble as trouble:
                        self._troubles[contestant, work] = trouble
                self._leave(contestant, self.checking_threads)

    def _first_losses(self, contestant: Contestant, scenario: Scenario) -> list[list[float]]:
        worker = self._worker(contestant, self.checking_threads)
        self._build(worker, scenario, "float64")
        losses: list[list[float]] = worker.ask("losses", steps=scenario.checked)["losses"]
        return losses

    def _admit(self, contestant: Contestant, scenario: Scenario, row: Row) -> None:
        """Raise `Trouble` for who is not there, or was not right in float64."""
        if not contestant.is_installed:
            raise Trouble("missing", f"not installed: {contestant.install}")
        for one in (contestant, REFERENCE):
            if (one, scenario.work) in self._troubles:
                raise self._troubles[one, scenario.work]
        losses, reference = (self._losses[one, scenario.work] for one in (contestant, REFERENCE))
        row.error64 = difference(losses, reference)
        if not row.error64 <= CLOSE64:
            raise Trouble("wrong", f"its losses in float64 differ by {row.error64:.1e}")

    def _first_steps(self, contestant: Contestant, scenario: Scenario, row: Row) -> None:
        """Build, make the first steps, and compare them with those in float64."""
        worker = self._worker(contestant, row.threads)
        self._build(worker, scenario)
        reference = self._losses[REFERENCE, scenario.work]
        row.error32 = difference(self._losses32(worker, row, len(reference)), reference)
        if not row.error32 <= CLOSE32:
            raise Trouble("wrong", f"its losses in float32 differ by {row.error32:.1e}")

    def _losses32(self, worker: Worker, row: Row, steps: int) -> list[list[float]]:
        losses: list[list[float]] = worker.ask("losses", steps=steps)["losses"]
        return losses

    def _steps(self, scenario: Scenario, threads: int, rows: dict[Contestant, Row]) -> None:
        """Steps of all contestants in turn."""
        where = f"{scenario.name} on {threads} thread{'s' if threads > 1 else ''}"
        for contestant, row in rows.items():
            self.say(f"{where}: {contestant.name}: first steps")
            with _noted(row):
                self._admit(contestant, scenario, row)
                self._first_steps(contestant, scenario, row)
            if row.status != "ok":
                self._leave(contestant, threads)
        if not any(row.status == "ok" for row in rows.values()):
            return
        limits = {contestant: Row(scenario.name, threads, contestant.name) for contestant, _ in self.limits}
        for contestant, limit in limits.items():
            with _noted(limit):
                self._build(self._worker(contestant, threads), scenario)
        for k in range(self.options.rounds):
            self.say(f"{where}: round {k + 1} of {self.options.rounds}")
            rates = {}
            for contestant, amount in self.limits:
                if limits[contestant].status == "ok":
                    with _noted(limits[contestant]):
                        rates[contestant.name] = amount / self._turn(contestant, threads)["step_s"]
            for contestant, row in rows.items():
                if row.status == "ok":
                    with _noted(row):
                        self._take_turn(contestant, row, scenario.measure == "busy")
                        for name, rate in rates.items():
                            getattr(row, name).append(rate)
        for contestant, row in rows.items():
            if row.status == "ok":
                with _noted(row):
                    self._look_back(self._worker(contestant, threads), row)
            self._leave(contestant, threads)
        for contestant in limits:
            self._leave(contestant, threads)

    def _look_back(self, worker: Worker, row: Row) -> None:
        """What is to be known of a process after its last turn."""
        row.peak = worker.ask("memory")["peak"]

    def _turn(self, contestant: Contestant, threads: int) -> dict[str, Any]:
        time.sleep(self.settle)
        return self._worker(contestant, threads).ask("turn", seconds=self.options.seconds)

    def _take_turn(self, contestant: Contestant, row: Row, busy: bool) -> None:
        row.rounds.append(self._turn(contestant, row.threads)["step_s"])
        if busy:
            with another_process(machine.available()[row.threads - 1]):
                row.busy.append(self._turn(contestant, row.threads)["step_s"])

    def _starts(self, scenario: Scenario, threads: int, rows: dict[Contestant, Row]) -> None:
        """New processes of all contestants in turn, each alone: first with empty caches, then with what those left."""
        for k in range(1 + self.options.starts):
            for contestant, row in rows.items():
                self.say(f"{scenario.name}: {contestant.name}, process {k + 1} of {1 + self.options.starts}")
                with _noted(row):
                    if row.status == "ok":
                        self._admit(contestant, scenario, row)
                        self._start(contestant, scenario, row, cold=k == 0)
                self._end(contestant, threads)

    def _start(self, contestant: Contestant, scenario: Scenario, row: Row, cold: bool) -> None:
        self._end(contestant, row.threads)
        worker = self._worker(contestant, row.threads, f"start-{contestant.name}")
        build = self._build(worker, scenario)
        worker.ask("losses", steps=1)
        seconds = time.perf_counter() - worker.born
        if cold:
            row.cold_s = seconds
            return
        row.warm_s.append(seconds)
        row.import_s.append(build["import_s"])
        worker.ask("turn", seconds=self.options.seconds)
        row.peak = max(row.peak or 0, worker.ask("memory")["peak"])
