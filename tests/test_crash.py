"""A save that is killed, or fails, at any of its operations leaves the old file or the new one, whole."""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from crash import Box, Trial

from minigan.checkpoint import load_all, save
from minigan.errors import CheckpointError
from minigan.files import leftovers

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the crash box needs os.fork")

SETUP = """
import numpy as np
from minigan.checkpoint import load, save, write_file
from minigan.errors import CheckpointError
from minigan.files import leftovers
tree = {f"layers.{i}.weight": np.full((20 * i, 7), i, np.float32) for i in range(5)}
"""
SAVE = "save(folder + '/a.safetensors', tree, {'step': '2'})"
ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return folder


def with_an_old_file(folder: Path, old: bytes | None) -> Callable[[], None]:
    def prepare() -> None:
        for file in folder.iterdir():
            file.unlink()
        if old is not None:
            (folder / "a.safetensors").write_bytes(old)

    return prepare


def an_old_file(folder: Path) -> bytes:
    save(folder / "a.safetensors", {"layers.0.weight": np.zeros(500)}, {"step": "1"})
    return (folder / "a.safetensors").read_bytes()


def step_in(folder: Path, trial: Trial) -> str | None:
    """The step of the file, which is whole or missing; besides it there is at most what a save was writing."""
    path = folder / "a.safetensors"
    others = {str(file) for file in folder.iterdir()} - {str(path)}
    assert others == set(leftovers(folder)), trial
    assert len(others) <= (trial.code == -9), trial
    if not path.exists():
        return None
    arrays, metadata = load_all(path, sealed=True)
    assert len(arrays) == (1 if metadata["step"] == "1" else 5)
    return metadata["step"]


@pytest.mark.parametrize("fault", ["kill", "power"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_kill_at_any_operation(folder: Path, fault: str, exists: bool) -> None:
    before = with_an_old_file(folder, an_old_file(folder) if exists else None)
    steps = []
    with Box(folder, SETUP, SAVE) as box:
        for trial in box.each(fault, before):
            steps.append(step_in(folder, trial))
    assert trial.code == 0 and steps[-1] == "2"
    kinds = [operation.split()[0] for operation in trial.operations]
    assert kinds[0] == "open" and kinds.count("write") > 5
    assert kinds[-6:] == ["fsync", "close", "replace", "open", "fsync", "close"]
    assert len(steps) == len(kinds) + 1
    renamed = kinds.index("replace") + 1
    assert steps == ["1" if exists else None] * renamed + ["2"] * (len(steps) - renamed)


@pytest.mark.parametrize(
    "number",
    [n if n in (errno.ENOSPC, errno.EIO) else pytest.param(n, marks=pytest.mark.slow) for n in ERRORS],
    ids=errno.errorcode.get,
)
def test_an_error_at_any_operation(folder: Path, number: int) -> None:
    old = an_old_file(folder)
    body = f"try: {SAVE}\nexcept CheckpointError as error: print(error, end='')"
    with Box(folder, SETUP, body) as box:
        for trial in box.each(number, with_an_old_file(folder, old)):
            assert trial.code == 0, trial.output
            failed = bool(trial.output)
            assert trial.output == (f"{folder}/a.safetensors: {os.strerror(number)}" if failed else "")
            kinds = [operation.split()[0] for operation in trial.operations]
            replaced = (
                "replace" in kinds and "unlink" not in kinds
            )  # only the flush of the folder comes later
            assert step_in(folder, trial) == ("2" if replaced else "1")
            assert replaced or (folder / "a.safetensors").read_bytes() == old
        assert not failed


def test_a_disk_that_stays_full(folder: Path) -> None:
    """Even the removal of the temporary fails; the error is still the first one."""
    old = an_old_file(folder)
    body = f"try: {SAVE}\nexcept CheckpointError as error: print(error, end='')"
    with Box(folder, SETUP, body) as box:
        for trial in box.each(errno.ENOSPC, with_an_old_file(folder, old), times=1000):
            assert trial.code == 0, trial.output
            assert "No space left" in trial.output or trial.operations[-1].startswith("close")
            assert load_all(folder / "a.safetensors", sealed=True)


@pytest.mark.parametrize(
    "body",
    [
        "open(folder + '/a.safetensors', 'wb').write(b'x' * 5000)",
        "import os; os.fsync = lambda descriptor: None; " + SAVE,
        "import os; os.unlink(folder + '/a.safetensors'); " + SAVE,
    ],
    ids=["in place", "no flush", "removed first"],
)
def test_the_box_finds_a_bad_save(folder: Path, body: str) -> None:
    before = with_an_old_file(folder, an_old_file(folder))
    found = False
    with Box(folder, SETUP, body) as box:
        for trial in box.each("power", before):
            try:
                found |= step_in(folder, trial) not in ("1", "2")
            except (AssertionError, CheckpointError):
                found = True
    assert found


def test_the_box_counts_files_opened_by_python(folder: Path) -> None:
    body = """
with open(folder + '/log', 'a', buffering=1, encoding='utf-8') as log:
    log.write('\u00e9\\n')
    log.write('2\\n')
"""
    contents, trials = [], []
    with Box(folder, "", body) as box:
        for trial in box.each("kill", with_an_old_file(folder, None)):
            contents.append((folder / "log").read_text("utf-8") if (folder / "log").exists() else None)
            trials.append(trial)
        assert trials[-1].operations == ["open log", "write log", "write log", "close log"]
        assert contents == [None, "", "\u00e9\n", "\u00e9\n2\n", "\u00e9\n2\n"]
        trial = box.run(2, errno.ENOSPC)
        assert trial.code == 1 and trial.output.rstrip().endswith(f"No space left on device: '{folder}/log'")


def kill_at_random(folder: Path, kills: int) -> None:
    """A process that saves again and again, printing each step when it is saved, is killed at random times."""
    prepare = "numbers = [np.full((100, 100), i, np.float32) for i in range(8)]"
    body = """
for step in range(10**6):
    save(folder + '/a.safetensors', {'x': numbers[step % 8]}, {'step': str(step)})
    print(step, flush=True)
"""
    times = random.Random(0)  # noqa: S311 - not for secrets
    killed_within = 0
    with Box(folder, SETUP + prepare, body) as box:
        for _ in range(kills):
            with_an_old_file(folder, None)()
            trial = box.run(after=times.uniform(0.002, 0.05))
            assert trial.code == -9
            saved = trial.output.split()
            left = leftovers(folder)
            assert len(left) <= 1
            killed_within += bool(left)
            if saved or (folder / "a.safetensors").exists():
                arrays, metadata = load_all(folder / "a.safetensors", sealed=True)
                assert int(metadata["step"]) in (len(saved) - 1, len(saved))
                assert (arrays["x"] == int(metadata["step"]) % 8).all()
    assert killed_within > kills // 10


def test_kills_at_random_times(folder: Path) -> None:
    kill_at_random(folder, 40)


@pytest.mark.slow
def test_a_thousand_kills_at_random_times(folder: Path) -> None:
    kill_at_random(folder, 1000)
