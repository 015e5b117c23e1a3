"""Processes that measure, and the orders they are given."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.peers import Contestant

ROOT = Path(__file__).resolve().parent.parent
_SPIN = (
    "import os; parent = os.getppid(); print(flush=True)\nwhile os.getppid() == parent: sum(range(100000))"
)


class Trouble(Exception):
    """Why a contestant does not go on: a row's status and note."""

    def __init__(self, status: str, note: str) -> None:
        super().__init__(note)
        self.status, self.note = status, note


class Worker:
    """A process for one contestant; `ask` gives it an order and waits for the answer."""

    def __init__(self, contestant: Contestant, threads: int, caches: str, patience: float) -> None:
        self.patience, self.is_open = patience, True
        self.born = time.perf_counter()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=machine.environment(threads, caches) | dict(contestant.environment),
            cwd=ROOT,
            start_new_session=True,  # Ctrl-C is for us, who then end it
        )
        cpus = machine.available()[:threads]
        self.begin = {
            "module": contestant.module,
            "variant": contestant.variant,
            "threads": threads,
            "cpus": cpus,
            "device": contestant.device,
        }

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer; `Trouble` if there is none."""
        if self.begin:
            begin, self.begin = self.begin, {}
            try:
                self.ask("begin", **begin)
            except Trouble:
                self.close()  # the next order is for a new process
                raise
        orders, answers = self.process.stdin, self.process.stdout
        assert orders is not None and answers is not None
        with contextlib.suppress(BrokenPipeError):
            orders.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            orders.flush()
        ready, _, _ = select.select([answers], [], [], self.patience)
        if not ready:
            self.close()
            raise Trouble("failed", f"no answer within {self.patience:g} s")
        line = answers.readline()
        if not line:
            raise Trouble("failed", f"ended with code {self.process.wait()}: {self._last_words()}")
        reply: dict[str, Any] = json.loads(line)
        if "answer" not in reply:
            raise Trouble(**reply)
        answer: dict[str, Any] = reply["answer"]
        return answer

    def _last_words(self) -> str:
        """The last line that the process wrote before it ended."""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").splitlines()
        self.close()
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it said nothing")

    def close(self) -> None:
        """End the process and what it may have started."""
        self.is_open = False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@contextlib.contextmanager
def another_process(cpu: int) -> Iterator[None]:
    """Another process is busy on that CPU in the block."""
    process = subprocess.Popen([sys.executable, "-c", _SPIN], stdout=subprocess.PIPE, start_new_session=True)
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, [cpu])
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        yield
    finally:
        process.kill()
        process.communicate()
