"""The state of a run as a file: its arrays with what they belong to, and the newest good file of a folder."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from minigan import checkpoint
from minigan.backend import Array, describe_device
from minigan.errors import CheckpointError
from minigan.report import LOGGED

FORMAT = 2  # of what a file says besides its arrays; a reader refuses a newer one
CHECKPOINTS = "checkpoints"  # the folder, in that of a run

About = dict[str, Any]


class Found(NamedTuple):
    """A file's arrays, what they belong to, and its path."""

    arrays: dict[str, Array]
    about: About
    path: str


def write(path: str | os.PathLike[str], arrays: Mapping[str, Array], about: Mapping[str, Any]) -> None:
    """Write arrays with what they belong to, as a safetensors file with digests; errors as for `checkpoint.save`.

    Of the "device" on which they were computed it says what the bits depend on.
    """
    import json  # where it is used: not everyone who imports minigan writes a run

    # One entry, so that what belongs together stays together; the environment is what the bits of a run depend on.
    facts = dict(about)
    where = environment(facts.pop("device", "cpu"))
    text = json.dumps({"format": FORMAT, **facts, "environment": where}, sort_keys=True)
    checkpoint.save(path, arrays, {"minigan": text})


def read(path: str | os.PathLike[str]) -> Found:
    """The arrays of a file and what they belong to; `CheckpointError` if it is missing, damaged or not minigan's."""
    name = os.fspath(path)
    version = read_about(name)["format"]
    arrays, metadata = checkpoint.load_all(name, sealed=version > 1)
    about = _about(name, metadata)
    # Format 1 had one digest, of all arrays, among its settings, and the step only among the arrays.
    if version == 1:
        if checkpoint.digest(arrays) != about.get("sha256"):
            raise CheckpointError(f"{name}: is damaged: its arrays do not have the SHA-256 in its header")
        arrays.setdefault("rate_scale", np.array(1.0))
    step = arrays.get("step")
    if step is None or step.shape or step.dtype.kind != "i" or (version > 1 and step != about["step"]):
        raise CheckpointError(f"{name}: its array 'step' is {step}, its header says {about['step']}")
    return Found(arrays, about | {"step": int(step)}, name)


def read_about(path: str | os.PathLike[str]) -> About:
    """What the arrays of a file belong to, from its header alone: "config", "environment", "step" and more.

    Raises as `read` does.
    """
    name = os.fspath(path)
    return _about(name, checkpoint.read_metadata(name))


def _about(name: str, metadata: Mapping[str, str]) -> About:
    """What the header says, checked: a file may say anything."""
    import json

    try:
        about = json.loads(metadata["minigan"])
        version = about["format"]
        if _is_count(version) and version > FORMAT:
            raise CheckpointError(
                f"{name}: has format {version}, this minigan reads up to {FORMAT}: upgrade minigan"
            )
        about = {"step": 0, "faults": 0, "rows": [], "quality": None, "environment": {}, **about}
        rows, first = about["rows"], about["config"].get("training", {}).get("first_step", 0)
        right = {
            "format": _is_count(version) and version > 0,
            "environment": isinstance(about["environment"], dict),
            "step": _is_count(about["step"]),
            "first_step": _is_count(first) and (first <= about["step"] or version == 1),
            "faults": _is_count(about["faults"]),
            "quality": about["quality"] is None or _is_finite(about["quality"]),
            "rows": all(set(row) >= set(LOGGED) and all(map(_is_finite, row.values())) for row in rows),
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise CheckpointError(f"{name}: has no settings of minigan in its header") from None
    wrong = [key for key, fine in right.items() if not fine]
    if wrong:
        raise CheckpointError(f"{name}: what its header says of {', '.join(wrong)} cannot be")
    return about


def _is_count(x: Any) -> bool:
    return type(x) is int and 0 <= x < 2**63


def _is_finite(x: Any) -> bool:
    return type(x) in (int, float) and abs(x) < 1e308


def candidates(path: str | os.PathLike[str], note: Callable[[str], None]) -> list[tuple[About, str]]:
    """What the checkpoints in a run folder say and their paths, the highest step first; or that of the file itself.

    The step is the one in the header: names and times may lie. Files that cannot be read are told to `note`, and
    raise `CheckpointError` if there is no other.
    """
    name = os.fspath(path)
    if not os.path.isdir(name):
        return [(read_about(name), name)]
    folder = os.path.join(name, CHECKPOINTS)
    try:
        files = sorted(os.path.join(folder, file) for file in os.listdir(folder) if _is_ours(file))
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


def _is_ours(file: str) -> bool:
    """Whether a file is one of those that are read and removed; `final` is that of the first versions."""
    name, suffix = os.path.splitext(file)
    number = name.removeprefix("step_")
    ours = name == "final" or (number != name and len(number) >= 8 and number.isdecimal())
    return ours and suffix == ".safetensors"


def newest(path: str | os.PathLike[str], note: Callable[[str], None], due: bool = False) -> Found | None:
    """The newest checkpoint of a run folder that is whole, or the file itself; `None` for a folder without any.

    With `due`, those are left out that an interruption left. Damaged ones are told to `note` and passed over;
    `CheckpointError` if none is left.
    """
    errors = []
    for about, file in candidates(path, note):
        if due and not about.get("due"):
            continue
        try:
            return read(file)
        except CheckpointError as error:
            errors.append(str(error))
            if os.path.isdir(path):
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


def environment(device: str = "cpu") -> dict[str, Any]:
    """What the bits of a run on a device depend on besides its settings."""
    from importlib import metadata  # slow to import, and only needed where a file is written
    from platform import machine, python_version

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "none"

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = {name: version(name) for name in ("minigan", "numpy", "numba")}
    facts = {**packages, "python": python_version(), "machine": machine(), "cores": cores}
    return facts | {"device": describe_device(device)}
