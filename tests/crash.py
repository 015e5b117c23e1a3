"""The crash box: runs code that writes files and ends it, or fails it, at any of its operations on them.

A `Box` is a process that runs `setup` once and then, for each trial, forks a child that runs `body`. In the child every
opening for writing, write, fsync, close, renaming, removal and making of a folder below `folder` is counted, and
something happens instead of the n-th one:

- "kill": SIGKILL, so that nothing after it is done, not even the clean-up;
- "power": the same, and files lose half of what was written to them since their last fsync, as in a power cut;
- a number of `errno`: an OSError, as from a full or broken disk.

Writes are short, as POSIX allows: half of the data at a time, so that files end anywhere. Each trial yields what it
did; the test then looks at the folder:

    with Box(folder, "from minigan.checkpoint import save", "save(folder + '/a', {'x': [1.0]})") as box:
        for trial in box.each("kill", before=lambda: empty(folder)):
            ...

Python's own functions are replaced (`os.write`, `open` and so on), so writes within compiled libraries are not seen.
"""

import builtins
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

SHORT = 256  # bytes up to which a write is not divided
SECONDS = 120  # that a trial may take
WRITING = os.O_WRONLY | os.O_RDWR


class Trial(NamedTuple):
    """What a trial did.

    Attributes:
        code: 0 if `body` came to its end, -9 if it was killed, 1 after an exception, or its exit code.
        operations: those begun, as "write a.txt".
        output: what was printed, with the traceback of an exception.
    """

    code: int
    operations: list[str]
    output: str


class Box:
    """A process that runs trials of `body`, in which `folder` is the path of the folder that is looked at."""

    def __init__(self, folder: str | os.PathLike[str], setup: str, body: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._ask(folder=os.path.realpath(folder), setup=setup, body=body)

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the crash box itself has ended; its error output says why"
        return json.loads(answer)

    def run(
        self, at: int = 0, fault: str | int = "kill", times: int = 1, after: float | None = None
    ) -> Trial:
        """One trial, with the fault at operation `at`, from 1, and `times` - 1 more; or a SIGKILL `after` seconds."""
        return Trial(**self._ask(at=at, fault=fault, times=times, after=after))

    def each(
        self, fault: str | int, before: Callable[[], object], times: int = 1, first: int = 1
    ) -> Iterator[Trial]:
        """A trial for every operation, and at last one that is not disturbed; `before` prepares the folder for each."""
        at = first
        while True:
            before()
            trial = self.run(at, fault, times)
            yield trial
            if len(trial.operations) < at:
                return
            at += 1

    def __enter__(self) -> "Box":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate(timeout=SECONDS)


class Faults:
    """Counts operations of this process on files below `folder`, and answers some of them with the fault."""

    def __init__(self, folder: str, at: int, fault: str | int, times: int, log: int) -> None:
        self.folder, self.at, self.fault, self.times, self.log = folder, at, fault, times, log
        self.count = 0
        self.open_files: dict[int, str] = {}
        # Inode to a descriptor of our own, and the size of what has been flushed.
        self.unsynced: dict[int, tuple[int, int]] = {}
        self.real = {name: getattr(os, name) for name in (*PATHS, *DESCRIPTORS, "open")}
        self.real_open = open

    def install(self) -> None:
        os.open = self._os_open  # type: ignore[assignment]
        builtins.open = io.open = self._open  # type: ignore[assignment]
        for name in PATHS:
            setattr(os, name, self._by_path(name))
        for name in DESCRIPTORS:
            setattr(os, name, self._by_descriptor(name))

    def operation(self, name: str, path: str) -> None:
        """Called before each operation."""
        self.count += 1
        self.real["write"](self.log, f"{name} {os.path.basename(path)}\n".encode())
        if not self.at <= self.count < self.at + self.times:
            return
        if isinstance(self.fault, int):
            raise OSError(self.fault, os.strerror(self.fault), path)
        if self.fault == "power":
            for descriptor, flushed in self.unsynced.values():
                size = os.fstat(descriptor).st_size
                self.real["ftruncate"](descriptor, min(size, (flushed + size) // 2))
        os.kill(os.getpid(), signal.SIGKILL)

    def below(self, path: Any) -> str | None:
        """The path as a text if it is looked at."""
        if isinstance(path, int):
            return self.open_files.get(path)
        path = os.path.realpath(os.fsdecode(path))
        return path if os.path.join(path, "").startswith(os.path.join(self.folder, "")) else None

    def wrote(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if status.st_ino not in self.unsynced:
            self.unsynced[status.st_ino] = os.dup(descriptor), status.st_size

    def _os_open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        name = self.below(path)
        if name and (flags & WRITING or os.path.isdir(name)):  # folders are opened to be flushed
            self.operation("open", name)
        descriptor: int = self.real["open"](path, flags, mode, dir_fd=dir_fd)
        if name:
            self.open_files[descriptor] = name
        return descriptor

    def _open(self, file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> IO[Any]:
        """`open` with its own buffers and coders over a file that counts."""
        name = self.below(file)
        if name is None or not set(mode) & set("wax+"):
            return self.real_open(file, mode, buffering, *args, **kwargs)
        if not isinstance(file, int):
            self.operation("open", name)
        options = (
            dict(zip(("encoding", "errors", "newline", "closefd", "opener"), args, strict=False)) | kwargs
        )
        raw_options = {key: options.pop(key) for key in ("closefd", "opener") if key in options}
        raw = CountedFile(file, "".join(c for c in mode if c not in "bt"), **raw_options)
        raw.faults, raw.path = self, name
        self.open_files[raw.fileno()] = name
        if buffering == 0:
            return raw  # type: ignore[return-value]
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        if "b" in mode:
            return buffered
        text = io.TextIOWrapper(buffered, **options, line_buffering=buffering == 1)
        text.mode = mode  # type: ignore[misc]
        return text

    def _by_path(self, name: str) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            target = args[0] if name in ("replace", "rename") else path
            if self.below(target):
                self.operation(name, self.below(target) or "")
            return self.real[name](path, *args, **kwargs)

        return call

    def _by_descriptor(self, name: str) -> Callable[..., Any]:
        def call(descriptor: int, *args: Any) -> Any:
            path = self.open_files.get(descriptor)
            if path is None:
                return self.real[name](descriptor, *args)
            try:
                self.operation(name, path)
            except OSError:
                if name == "close":  # Linux closes the file whatever it answers
                    self.closed(descriptor)
                    self.real[name](descriptor)
                raise
            if name == "write":
                self.wrote(descriptor)
                args = (half(args[0]),)
            elif name == "fsync":
                self.synced(descriptor)
            elif name == "close":
                self.closed(descriptor)
            return self.real[name](descriptor, *args)

        return call

    def synced(self, descriptor: int) -> None:
        copy = self.unsynced.pop(os.fstat(descriptor).st_ino, None)
        if copy:
            self.real["close"](copy[0])

    def closed(self, descriptor: int) -> None:
        self.open_files.pop(descriptor, None)


PATHS = ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "truncate")
DESCRIPTORS = ("write", "fsync", "close", "ftruncate")


class CountedFile(io.FileIO):
    """The file below the buffers of `open`."""

    faults: Faults
    path: str

    def write(self, data: Any) -> int:
        self.faults.operation("write", self.path)
        self.faults.wrote(self.fileno())
        return super().write(half(data))

    def truncate(self, size: int | None = None) -> int:
        self.faults.operation("ftruncate", self.path)
        return super().truncate(size)

    def close(self) -> None:
        if self.closed or not hasattr(self, "path"):
            super().close()
            return
        self.faults.closed(self.fileno())
        try:
            self.faults.operation("close", self.path)
        finally:
            super().close()


def half(data: Any) -> memoryview:
    view = memoryview(data).cast("B")
    return view[: max(SHORT, len(view) // 2)]


def _serve() -> None:
    """The process of a `Box`: a line of JSON in, a line of JSON out."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the code prints is no answer
    job = json.loads(sys.stdin.readline())
    namespace: dict[str, Any] = {"folder": job["folder"]}
    exec(job["setup"], namespace)  # noqa: S102
    body = compile(job["body"], "body", "exec")
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        after = request.pop("after")
        with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as output:
            child = os.fork()
            if child == 0:
                _try(Faults(job["folder"], **request, log=log.fileno()), body, namespace, output.fileno())
            if after is not None:
                time.sleep(after)
                os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            result = [file.seek(0) or file.read().decode(errors="replace") for file in (log, output)]
        trial = Trial(code, result[0].splitlines(), result[1])
        print(json.dumps(trial._asdict()), file=answers, flush=True)


def _try(faults: Faults, body: Any, namespace: dict[str, Any], output: int) -> None:
    """The child: runs the body and ends the process."""
    code = 1
    try:
        signal.alarm(SECONDS)
        os.dup2(output, 1)
        os.dup2(output, 2)
        faults.install()
        exec(body, namespace)  # noqa: S102
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
