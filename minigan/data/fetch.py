"""Downloads of the data sets that are too large to be carried, checked before they get their names."""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import IO

from minigan.data.reader import BLOCK, explained
from minigan.data.sets import SETS, roots
from minigan.errors import ConfigError, DataError
from minigan.files import Path, reason, replacing, shown

SLOWEST = 10_000  # bytes a second on average: a mirror that is slower is given up

Progress = Callable[[str, int, int], object]


def fetch(
    name: str,
    folder: Path | None = None,
    mirrors: Sequence[str] | None = None,
    progress: Progress | None = None,
    timeout: float = 30.0,
) -> str:
    """Download the files of a data set of `SETS`; gives their folder.

    Files that are there and right are kept. The others come from the first mirror that has them with the right size
    and SHA-256, and get their names only then; an interruption leaves nothing behind.

    Args:
        name: `mnist` or `fashion`.
        folder: where to; by default a folder of the set's name in $MINIGAN_DATA or else in the user's cache, where
            `read` looks.
        mirrors: http or https addresses to which the names of the files are added; by default those known to work.
        progress: called with the name of a file, the bytes of it that are done, and its size.
        timeout: seconds without an answer after which a mirror is given up.

    Raises `DataError`, with each mirror's reason, if a file cannot be had or written; `ConfigError` for other names.

    >>> import minigan as mg
    >>> mg.data.fetch("digits")
    Traceback (most recent call last):
    minigan.errors.ConfigError: digits: nothing to download; data sets to download: mnist, fashion
    """
    from http.client import HTTPException

    there = {key: known for key, known in SETS.items() if known.files}
    if name not in there:
        raise ConfigError(f"{name}: nothing to download; data sets to download: {', '.join(there)}")
    known, show = there[name], progress or (lambda *_: None)
    place = os.path.join(roots()[0], known.folder) if folder is None else os.fsdecode(folder)
    with explained(place):
        os.makedirs(place, exist_ok=True)
        for file, (size, sha256) in known.files.items():
            path = os.path.join(place, file)
            if _is_there(path, size, sha256):
                show(file, size, size)
                continue
            failures = []
            for mirror in known.mirrors if mirrors is None else mirrors:
                address = f"{mirror.rstrip('/')}/{file}"
                try:
                    with replacing(path) as new:
                        _download(address, new, size, sha256, partial(show, file), timeout)
                    break
                except (OSError, HTTPException, ValueError) as error:
                    failures.append(f"{shown(address)}: {reason(error)}")
            else:
                raise DataError(f"{shown(path)}: cannot be downloaded: {'; '.join(failures) or 'no mirrors'}")
    return place


def _is_there(path: str, size: int, sha256: str) -> bool:
    import hashlib

    if not os.path.isfile(path) or os.path.getsize(path) != size:
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _download(
    address: str, new: IO[bytes], size: int, sha256: str, show: Callable[[int, int], object], timeout: float
) -> None:
    import hashlib
    from urllib.request import urlopen

    if not address.startswith(("http://", "https://")):  # urllib also reads files
        raise DataError("is no http or https address")
    begun, done, total = time.monotonic(), 0, hashlib.sha256()
    with urlopen(address, timeout=timeout) as answer:  # noqa: S310, checked above
        offered = answer.headers.get("Content-Length", str(size))
        if offered != str(size):
            raise DataError(f"offers {offered} bytes, expected {size}")
        show(0, size)
        while part := answer.read1(BLOCK):
            done += len(part)
            if done > size:
                raise DataError(f"sends more than {size} bytes")
            if time.monotonic() - begun > timeout + done / SLOWEST:
                raise DataError(f"sends fewer than {SLOWEST} bytes a second")
            total.update(part)
            new.write(part)
            show(done, size)
    if done < size:
        raise DataError(f"ends after {done} of {size} bytes")
    if total.hexdigest() != sha256:
        raise DataError(f"has the SHA-256 {total.hexdigest()}, expected {sha256}")
