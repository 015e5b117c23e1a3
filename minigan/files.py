"""Files: opened without waiting, written all or nothing, and named in one line."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from typing import IO, Any

Path = str | bytes | os.PathLike[Any]

TEMPORARY = (".minigan-", ".tmp")  # how the name of a file that is being written begins and ends
_BINARY = getattr(os, "O_BINARY", 0)


def shown(path: Path) -> str:
    """A path as it stands in a message: on one line, and printable whatever its bytes are."""
    name = os.fsdecode(path)
    return name if name.isprintable() else ascii(name)


def reason(error: BaseException) -> str:
    """An error as a part of one line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(text.split())[:300] or type(error).__name__


def descriptor_of(path: Path, flags: int) -> int:
    """A descriptor of a regular file, as `os.open` gives it; `OSError` for a folder, a pipe or a device."""
    # O_NONBLOCK (POSIX only): opening a named pipe would otherwise wait for its other end for ever.
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | _BINARY, 0o666)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(None, "is not a file")


@contextmanager
def opened(path: Path) -> Iterator[tuple[BufferedReader, int]]:
    """An existing regular file for reading, and its size; errors as for `descriptor_of`."""
    with open(descriptor_of(path, os.O_RDONLY), "rb") as file:
        yield file, os.fstat(file.fileno()).st_size


def append(path: Path, data: bytes, durable: bool = False) -> None:
    """Add `data` to the end of a file, which is made if there is none; errors as for `descriptor_of`."""
    with open(descriptor_of(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """A new file, for writing and reading, that gets its name when the block ends; an older one stays until then.

    If the block raises, the new file is removed; a process that is killed leaves it among the `leftovers`. With
    `durable`, a power cut leaves the old file or the new one too. A symbolic link is followed.
    """
    target = os.path.realpath(os.fsdecode(path))
    if os.path.exists(target) and not os.path.isfile(target):
        raise OSError(None, "exists and is not a file", os.fsdecode(path))
    folder = os.path.dirname(target)  # also the temporary's: renaming works within a disk only
    temporary = os.path.join(folder, os.urandom(8).hex().join(TEMPORARY))
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        with open(descriptor, "w+b") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(descriptor)
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):  # it may be renamed already, if a signal arrived just then
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno:
            error.filename = os.fsdecode(path)  # not that of the temporary, which nobody knows
        raise
    if durable and os.name == "posix":  # the new name is on the disk only when the folder is
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def leftovers(folder: Path) -> list[str]:
    """Paths of what killed processes left of the files they were writing, and of those being written right now."""
    name, (begin, end) = os.fsdecode(folder), TEMPORARY
    return [
        os.path.join(name, x) for x in sorted(os.listdir(name)) if x.startswith(begin) and x.endswith(end)
    ]
