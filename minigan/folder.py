"""The folder of a run: what is written there, by one process at a time, and what an interruption leaves."""

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from minigan import checkpoint, state
from minigan.backend import Array
from minigan.errors import ConfigError, ExtraError
from minigan.extras import needs
from minigan.files import append, descriptor_of, leftovers, opened, reason
from minigan.report import LOGGED, Record

CONFIG, METRICS, EVENTS, SAMPLES, LOCK = "config.toml", "metrics.jsonl", "events.jsonl", "samples", ".lock"
KEPT = 3  # newest checkpoints, besides the best
LONGEST = 2**16  # of a line


def needed() -> Any:
    """The module that writes settings; `ExtraError` if that, or the one that writes pictures, is missing."""
    needs("PIL.Image", "cli")
    return needs("tomli_w", "cli")


class RunFolder:
    """A run folder that is being written, and until the end of its `with` block by nobody else.

    What serves the eye, pictures and metrics, may fail: then `note` is told once for each kind and the run goes on.

    Args:
        path: new, empty, or with `resume` that of an earlier run.

    Raises: `ConfigError` if it cannot be made or written, is in use, or has other files in it.
    """

    def __init__(self, path: str, resume: bool) -> None:
        self.path = path
        self.note: Callable[[str, str], None] = lambda kind, text: None  # is told the kind and the text
        self.toml = needed()
        self._failed: set[str] = set()
        try:
            os.makedirs(path, exist_ok=True)
            # Twice: before the lock is made, which would be left in a folder of something else, and with the lock.
            self._require_room(resume)
            self._lock = _locked(self.file(LOCK), path)
            try:
                self._require_room(resume)
                for folder in (SAMPLES, state.CHECKPOINTS):
                    os.makedirs(self.file(folder), exist_ok=True)
            except BaseException:
                os.close(self._lock)
                raise
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{path}: cannot be made a run folder: {reason(error)}") from None

    def _require_room(self, resume: bool) -> None:
        """Raise `ConfigError` if something else is in the folder."""
        others = {name for name in os.listdir(self.path) if not name.startswith(".")}
        if CONFIG not in others:  # a run that was killed while its folder was made has left these two
            others = {x for x in others if x not in (SAMPLES, state.CHECKPOINTS) or os.listdir(self.file(x))}
        if others and not (resume and CONFIG in others):
            advice = "it is not that of a run" if resume else "choose another folder, or resume its run"
            raise ConfigError(f"{self.path} is not empty: runs do not overwrite anything; {advice}")

    def file(self, *names: str) -> str:
        """The path of a file in the folder."""
        return os.path.join(self.path, *names)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # it is closed whatever the system answers
            os.close(self._lock)

    def configure(self, config: Mapping[str, Any]) -> None:
        """Write the settings; `ConfigError` if that is not possible."""
        try:
            checkpoint.write_file(self.file(CONFIG), self.toml.dumps(config).encode())
        except OSError as error:
            raise ConfigError(f"{self.file(CONFIG)}: cannot be written: {error.strerror or error}") from None

    def rewind(self, step: int) -> list[Record]:
        """The records up to a step; the files lose later ones, later events, and lines that were cut off."""
        records = [
            each for each in read_lines(self.file(METRICS)) if _is_record(each) and each["step"] <= step
        ]
        events = [each for each in read_lines(self.file(EVENTS)) if each["step"] <= step]
        for name, kept in ((METRICS, records), (EVENTS, events)):
            if kept or name == METRICS or os.path.exists(self.file(name)):
                with self._excused(name):
                    checkpoint.write_file(self.file(name), b"".join(map(_line, kept)))
        return records

    def record(self, record: Record) -> None:
        """Append a record."""
        with self._excused(METRICS):
            append(self.file(METRICS), _line(record))

    def event(self, event: Mapping[str, Any]) -> None:
        """Append what happened at a step."""
        with self._excused(EVENTS):
            append(self.file(EVENTS), _line(event))

    def draw(self, kind: str, name: str, make: Callable[[str], None]) -> None:
        """Let `make(path)` draw a picture."""
        with self._excused(kind):
            make(self.file(name))

    def samples(self, step: int) -> str:
        """The name of the picture of a step."""
        return os.path.join(SAMPLES, f"step_{step:06}.png")

    def all_samples(self) -> list[str]:
        """The paths of the pictures of all steps, in their order."""
        names = os.listdir(self.file(SAMPLES))
        steps = {name: name[5:-4] for name in names if name.startswith("step_") and name.endswith(".png")}
        found = sorted((int(step), name) for name, step in steps.items() if step.isdecimal())
        paths = [self.file(SAMPLES, name) for _, name in found]
        return [path for path in paths if os.path.isfile(path)]

    def keep(self, arrays: Mapping[str, Array], about: Mapping[str, Any]) -> str:
        """Write a checkpoint, remove those that are not kept, and give its path. Errors as for `state.write`.

        Kept are the newest and the best of those that were `due`, and this one, which was read again: so what is
        removed is never the last good one.
        """
        path = self.file(state.CHECKPOINTS, f"step_{about['step']:08}.safetensors")
        with self._excused(METRICS):  # the records before it have to outlast a power cut if it does
            append(self.file(METRICS), b"", durable=True)
        state.write(path, arrays, about)
        found = state.candidates(self.path, lambda text: None)
        due = [(each["quality"], file) for each, file in found if each.get("due")]
        best = min(((quality, file) for quality, file in due if quality is not None), default=(0, path))
        kept = {path, best[1], *(file for _, file in due[:KEPT])}
        remove([file for _, file in found if file not in kept] + leftovers(os.path.dirname(path)))
        return path

    def forget(self, step: int) -> None:
        """Remove the checkpoints after a step that the run goes back to."""
        remove(file for about, file in state.candidates(self.path, lambda text: None) if about["step"] > step)

    @contextlib.contextmanager
    def _excused(self, kind: str) -> Any:
        try:
            yield
        except (OSError, ExtraError, ValueError) as error:
            if kind not in self._failed:
                self._failed.add(kind)
                self.note(f"no {kind}", f"cannot write {kind}: {error}")


def _locked(lock: str, path: str) -> int:
    """The file `lock`, locked for this process; the system lets it go when the process ends, however it ends."""
    descriptor = descriptor_of(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0))
    try:
        import fcntl
    except ImportError:  # a system without: nobody is kept out
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 20).decode(errors="replace").strip()
        os.close(descriptor)
        raise ConfigError(f"{path} is in use by process {owner or 'unknown'}") from None
    except OSError:  # a file system without locks
        return descriptor
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _line(values: Mapping[str, Any]) -> bytes:
    import json

    return json.dumps(values).encode() + b"\n"


def _is_record(values: Mapping[str, Any]) -> bool:
    numbers: list[Any] = [values.get(name) for name in ("seconds", *LOGGED)]
    return all(type(x) in (int, float) and math.isfinite(x) for x in numbers)


def read_lines(path: str) -> list[Record]:
    """The records of a .jsonl file of a run, or its events; none where there is no file, or something else.

    Lines that are no objects with a step are left out, such as a last one that was cut off.
    """
    import json

    records = []
    with contextlib.suppress(OSError), opened(path) as (file, _):
        while line := file.readline(LONGEST):
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line)
                if isinstance(record, dict) and type(record.get("step")) is int:
                    records.append(record)
    return records


def remove(paths: Iterable[str]) -> None:
    """Remove files; one that is gone or cannot be removed is left."""
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)
