"""The state of a run as a file: its arrays with what they belong to, and the newest good file of a folder."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from minigan import checkpoint
from minigan.backend import Array
from minigan.errors import CheckpointError

FORMAT = 2  # of what a file says besides its arrays; a reader refuses a newer one
CHECKPOINTS = "checkpoints"  # the folder, in that of a run
SUFFIX = ".safetensors"

About = dict[str, Any]


class Found(NamedTuple):
    """A file's arrays, what they belong to, and its path."""

    arrays: dict[str, Array]
    about: About
    path: str


def write(path: str | os.PathLike[str], arrays: Mapping[str, Array], about: Mapping[str, Any]) -> None:
    """Write arrays with what they belong to, as a safetensors file with digests; errors as for `checkpoint.save`."""
    import json  # where it is used: not everyone who imports minigan writes a run

    # One entry, so that what belongs together stays together; the environment is what the bits of a run depend on.
    text = json.dumps({"format": FORMAT, **about, "environment": environment()}, sort_keys=True)
    checkpoint.save(path, arrays, {"minigan": text})


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Array], About]:
    """The arrays of a file and what they belong to; `CheckpointError` if it is missing, damaged or not minigan's."""
    about = read_about(path)
    # Format 1 had one digest, of all arrays, among its settings.
    arrays = checkpoint.load_all(path, sealed=about["format"] > 1)[0]
    if about["format"] == 1:
        if checkpoint.digest(arrays) != about.get("sha256"):
            raise CheckpointError(
                f"{os.fspath(path)}: is damaged: its arrays do not have the SHA-256 in its header"
            )
        arrays.setdefault("rate_scale", np.array(1.0))
        about["step"] = int(arrays.get("step", 0))
    return arrays, about


def read_about(path: str | os.PathLike[str]) -> About:
    """What the arrays of a file belong to, from its header alone: "config", "environment", "step" and more.

    Raises as `read` does.
    """
    import json

    name = os.fspath(path)
    try:
        about = dict(json.loads(checkpoint.read_metadata(name)["minigan"]))
        version, about["config"] = int(about["format"]), dict(about["config"])
        about["step"] = int(about.get("step", 0))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        raise CheckpointError(f"{name}: has no settings of minigan in its header") from None
    if version > FORMAT:
        raise CheckpointError(
            f"{name}: has format {version}, this minigan reads up to {FORMAT}: upgrade minigan"
        )
    return about


def candidates(path: str | os.PathLike[str], note: Callable[[str], None]) -> list[tuple[About, str]]:
    """What the files in a run folder say and their paths, the highest step first; or that of the file itself.

    The step is the one in the header: names and times may lie. Files that cannot be read are told to `note`, and
    raise `CheckpointError` if there is no other.
    """
    name = os.fspath(path)
    if not os.path.isdir(name):
        return [(read_about(name), name)]
    folder = os.path.join(name, CHECKPOINTS)
    try:
        files = sorted(os.path.join(folder, file) for file in os.listdir(folder) if file.endswith(SUFFIX))
    except FileNotFoundError:
        files = []
    except OSError as error:
        raise CheckpointError(f"{folder}: {error.strerror}") from None
    found, errors = [], []
    for file in files:
        try:
            found.append((read_about(file), file))
        except CheckpointError as error:
            errors.append(str(error))
            note(f"{error}; it is passed over")
    if errors and not found:
        raise CheckpointError("; ".join(errors[:3]))
    return sorted(found, key=lambda each: -each[0]["step"])


def newest(path: str | os.PathLike[str], note: Callable[[str], None]) -> Found | None:
    """The newest file of a run folder that is whole, or the file itself; `None` for a folder without any.

    Damaged ones are told to `note` and passed over; `CheckpointError` if none is left.
    """
    errors = []
    for _, file in candidates(path, note):
        try:
            return Found(*read(file), file)
        except CheckpointError as error:
            errors.append(str(error))
            note(f"{error}; it is passed over")
    if errors:
        raise CheckpointError("; ".join(errors[:3]))
    return None


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a configuration by dotted names, such as "optimizer.lr"."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def differences(have: Mapping[str, Any], want: Mapping[str, Any]) -> list[str]:
    """Where two configurations differ, one line each: the name, what the first has, and what the second."""
    old, new = flat(have), flat(want)
    return [
        f"{name} was {old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def environment() -> dict[str, Any]:
    """What the bits of a run depend on besides its settings."""
    from importlib import metadata  # slow to import, and only needed where a file is written
    from platform import machine, python_version

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "none"

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = {name: version(name) for name in ("minigan", "numpy", "numba")}
    return {**packages, "python": python_version(), "machine": machine(), "cores": cores}
