"""The folder of a run: what is written there, by one process at a time, and what an interruption leaves."""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from minigan import checkpoint, state
from minigan.backend import Array
from minigan.errors import ConfigError, ExtraError
from minigan.extras import needs
from minigan.files import leftovers
from minigan.report import Record

CONFIG, METRICS, EVENTS, SAMPLES, LOCK = "config.toml", "metrics.jsonl", "events.jsonl", "samples", ".lock"
KEPT = 3  # newest checkpoints, besides the best


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
            others = {name for name in os.listdir(path) if not name.startswith(".")}
            if (
                resume and CONFIG not in others
            ):  # a run that was killed while its folder was made has these two
                others -= {SAMPLES, state.CHECKPOINTS}
            if others and not (resume and CONFIG in others):
                advice = "it is not that of a run" if resume else "choose another folder, or resume its run"
                raise ConfigError(f"{path} is not empty: runs do not overwrite anything; {advice}")
            self._lock = open(self.file(LOCK), "a+", encoding="utf-8")  # noqa: SIM115 - until the end of the block
            try:
                _take(self._lock, path)
                for folder in (SAMPLES, state.CHECKPOINTS):
                    os.makedirs(self.file(folder), exist_ok=True)
            except BaseException:
                self._lock.close()
                raise
        except OSError as error:
            raise ConfigError(f"{path}: cannot be made a run folder: {error.strerror}") from None

    def file(self, *names: str) -> str:
        """The path of a file in the folder."""
        return os.path.join(self.path, *names)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.close()

    def configure(self, config: Mapping[str, Any]) -> None:
        """Write the settings; `ConfigError` if that is not possible."""
        try:
            checkpoint.write_file(self.file(CONFIG), self.toml.dumps(config).encode())
        except OSError as error:
            raise ConfigError(f"{self.file(CONFIG)}: cannot be written: {error.strerror or error}") from None

    def rewind(self, step: int) -> list[Record]:
        """The records up to a step; later ones, and a line that was cut off, leave the file."""
        records = read_lines(self.file(METRICS))
        kept = [record for record in records if record["step"] <= step]
        with self._excused("metrics"):
            lines = "".join(_line(record) for record in kept)
            checkpoint.write_file(self.file(METRICS), lines.encode())
        return kept

    def record(self, record: Record) -> None:
        """Append a record."""
        with self._excused("metrics"):
            _append(self.file(METRICS), record)

    def event(self, event: Mapping[str, Any]) -> None:
        """Append what happened at a step."""
        with self._excused("events"):
            _append(self.file(EVENTS), event)

    def draw(self, kind: str, make: Callable[..., None], name: str, *arguments: Any) -> None:
        """Let `make(path, *arguments)` draw a picture."""
        with self._excused(kind):
            make(self.file(name), *arguments)

    def samples(self, step: int) -> str:
        """The name of the picture of a step."""
        return os.path.join(SAMPLES, f"step_{step:06}.png")

    def all_samples(self) -> list[str]:
        """The paths of the pictures of all steps, in their order."""
        names = os.listdir(self.file(SAMPLES))
        steps = {name: name[5:-4] for name in names if name.startswith("step_") and name.endswith(".png")}
        found = sorted((int(step), name) for name, step in steps.items() if step.isdecimal())
        return [self.file(SAMPLES, name) for _, name in found]

    def keep(self, arrays: Mapping[str, Array], about: Mapping[str, Any]) -> str:
        """Write a checkpoint, and remove all but the newest and the best; gives its path. Errors as `state.write`."""
        path = self.file(state.CHECKPOINTS, f"step_{about['step']:08}{state.SUFFIX}")
        # The records before it have to outlast a power cut if it does.
        with self._excused("metrics"), open(self.file(METRICS), "a", encoding="utf-8") as file:
            os.fsync(file.fileno())
        state.write(path, arrays, about)
        found = state.candidates(self.path, lambda text: None)
        # Only files that can be read count, so what is removed is never the last good one.
        scores = [(each["quality"], file) for each, file in found if each.get("quality") is not None]
        kept = {path, *(file for _, file in found[:KEPT]), *(file for _, file in sorted(scores)[:1])}
        remove([file for _, file in found if file not in kept])
        remove(leftovers(os.path.dirname(path)))
        return path

    @contextlib.contextmanager
    def _excused(self, kind: str) -> Any:
        try:
            yield
        except (OSError, ExtraError, ValueError) as error:
            if kind not in self._failed:
                self._failed.add(kind)
                self.note(f"no {kind}", f"cannot write {kind}: {error}")


def _take(lock: Any, path: str) -> None:
    """Lock an open file for this process; the system lets it go when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # a system without: nobody is kept out
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        raise ConfigError(f"{path} is in use by process {lock.read(100).strip() or 'unknown'}") from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()


def _line(values: Mapping[str, Any]) -> str:
    import json

    return json.dumps(values) + "\n"


def _append(path: str, values: Mapping[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(_line(values))


def read_lines(path: str) -> list[Record]:
    """The records of a .jsonl file of a run; none where there is no file. A last line that was cut off is left out."""
    import json

    records = []
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("step"), int):
                    records.append(record)
    return records


def remove(paths: Iterable[str]) -> None:
    """Remove files; one that is gone or cannot be removed is left."""
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)
