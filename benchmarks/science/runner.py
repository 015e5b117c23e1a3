"""Finds the studies, runs what has not been run yet, and keeps every result as soon as it is there."""

import hashlib
import importlib
import json
import os
import pkgutil
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from statistics import fmean
from typing import Any, Protocol

import minigan
from benchmarks import machine, science
from minigan.files import append, reason, replacing, shown

Case = dict[str, Any]  # values of JSON that identify a run
Row = dict[str, Any]  # a case and what was measured
Kept = dict[str, Any]  # a line of the file: case, result, digest, seconds, cpu_seconds, machine, versions

PARTS = ("ABOUT", "cases", "run", "table")


class Study(Protocol):
    """What a module of this package is, if it is a study.

    Attributes:
        ABOUT: in a paragraph what it does, whose table it stands beside, and how long it takes.
    """

    ABOUT: str

    def cases(self, seeds: int, quick: bool) -> list[Case]:
        """The runs: each a dict of values of JSON, with all that decides about its result."""

    def run(self, case: Case, quick: bool) -> dict[str, Any]:
        """Plain numbers, by names that the case does not have."""

    def table(self, rows: list[Row]) -> str:
        """Markdown, from at least one row; what is missing of a study that is not complete is left out."""


def studies() -> dict[str, Study]:
    """The modules of this package that have the parts of a study, by name."""
    names = [module.name for module in pkgutil.iter_modules(science.__path__) if module.name != "__main__"]
    modules: dict[str, Any] = {name: importlib.import_module(f"{science.__name__}.{name}") for name in names}
    return {name: m for name, m in modules.items() if all(hasattr(m, part) for part in PARTS)}


def digest(case: Case) -> str:
    """The first 16 digits of the SHA-256 of a case as JSON, whatever the order of its keys."""
    text = json.dumps(case, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _parsed(line: bytes) -> Kept | None:
    """A line of a file of results, or nothing if it is damaged, or its case is not that of its digest."""
    try:
        kept = json.loads(line)
        whole = kept["digest"] == digest(kept["case"]) and isinstance(kept["case"] | kept["result"], dict)
        return kept if whole and kept["seconds"] >= 0 else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


class Results:
    """The finished runs of a study: one line of JSON each, in a file that is only added to.

    Args:
        path: of the file, which need not exist.
        say: told of lines that are damaged; their cases are run again, and the lines stay where they are.
    """

    def __init__(self, path: str, say: Callable[[str], None]) -> None:
        self.path, self.kept = path, dict[str, Kept]()
        self._torn = False
        if not os.path.exists(path):
            return
        with open(path, "rb") as file:
            lines = file.read().splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            kept = _parsed(line)
            if kept is not None:
                self.kept[kept["digest"]] = kept
            elif line.strip():
                say(f"{shown(path)}: line {number} is damaged: its case is run again")
        self._torn = bool(lines) and not lines[-1].endswith(b"\n")

    def add(self, kept: Kept) -> None:
        """Write a finished run to the disk, at once; after a last line that was cut off, on a line of its own."""
        append(self.path, b"\n" * self._torn + json.dumps(kept).encode() + b"\n", durable=True)
        self._torn = False
        self.kept[kept["digest"]] = kept

    def of(self, cases: list[Case]) -> list[Kept]:
        """Those of these cases that are there, in their order."""
        return [self.kept[key] for key in map(digest, cases) if key in self.kept]


def _versions() -> dict[str, str]:
    return {"minigan": minigan.__version__} | machine.libraries()


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(3725.4)
    '1:02:05'
    """
    return str(timedelta(seconds=round(seconds)))


class Runner:
    """Runs a study in a folder of results.

    Args:
        name, study: of the study.
        seeds, quick: which cases.
        folder: where STUDY.jsonl and STUDY.md are written; it is made if need be.
        say: told in lines what goes on.
        only: run the cases alone in whose line this text stands; the table is of all that are there.
    """

    def __init__(
        self,
        name: str,
        study: Study,
        seeds: int,
        quick: bool,
        folder: str,
        say: Callable[[str], None],
        only: str = "",
    ) -> None:
        self.name, self.study, self.quick, self.say = name, study, quick, say
        self.cases = study.cases(seeds, quick)
        self.wanted = [case for case in self.cases if only in _title(case)]
        os.makedirs(folder, exist_ok=True)
        self.results = Results(os.path.join(folder, f"{name}.jsonl"), say)
        self.report = os.path.join(folder, f"{name}.md")

    def announce(self) -> None:
        """Say what the study is, how much of it is to be run, and how long that takes."""
        done = self.results.of(self.wanted)
        left = len(self.wanted) - len(done)
        self.say(f"{self.name}: {self.study.ABOUT}")
        if done and left:
            guess = duration(left * fmean(kept["seconds"] for kept in done))
            self.say(
                f"{self.name}: {left} of {len(self.wanted)} runs are left, about {guess} by those there are"
            )
        else:
            self.say(f"{self.name}: {left or 'none'} of {len(self.wanted)} runs are left")

    def run(self) -> Iterator[Kept]:
        """Make the runs that are not there yet, one by one; each is on the disk when it is given out."""
        about = machine.description()
        for number, case in enumerate(self.wanted, 1):
            if digest(case) in self.results.kept:
                continue
            load, begun, cpu = machine.load(), time.perf_counter(), time.process_time()
            result = self.study.run(dict(case), self.quick)
            kept = {
                "case": case,
                "result": result,
                "digest": digest(case),
                "seconds": round(time.perf_counter() - begun, 3),
                "cpu_seconds": round(time.process_time() - cpu, 3),
                "machine": about | {"load": load, "threads": os.environ.get("OMP_NUM_THREADS", "")},
                "versions": _versions(),
            }
            self.results.add(kept)
            values = ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in result.items()
            )
            self.say(
                f"{self.name} {number}/{len(self.wanted)} {_title(case)}: {values} ({kept['seconds']:.0f} s)"
            )
            yield kept

    def table(self) -> str | None:
        """What is there of the study, as Markdown; nothing if nothing is there. Writes STUDY.md."""
        done = self.results.of(self.cases)
        if not done:
            return None
        # As read from the file, so that a table is the same whether its runs were made now or before.
        table = self.study.table([json.loads(json.dumps(kept["case"] | kept["result"])) for kept in done])
        with replacing(self.report, durable=False) as file:
            file.write(f"# {self.name}\n\n{self.study.ABOUT}\n\n{table}\n\n{self._made_by(done)}\n".encode())
        return table

    def _made_by(self, done: list[Kept]) -> str:
        """Of which runs a table is, and which machines and versions made them."""
        seconds = sum(kept["seconds"] for kept in done)
        of = f"{len(done)} of {len(self.cases)} runs"
        lines = [f"{of}, {duration(seconds)} in all." + (" With `--quick`: no result." if self.quick else "")]
        makers = {
            f"{kept['machine']['cpu']}, {kept['machine']['cpus']} CPUs, {kept['machine']['system']}, Python"
            f" {kept['machine']['python']}; {', '.join(f'{k} {v}' for k, v in kept['versions'].items())}.": None
            for kept in done
        }
        return "\n".join([*lines, *makers])


def _title(case: Case) -> str:
    return " ".join(f"{k}={v}" for k, v in case.items() if not isinstance(v, (dict, list)))


def failure(error: BaseException) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {reason(error)}"
