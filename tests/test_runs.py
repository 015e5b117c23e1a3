"""Run folders: what is kept, that a run goes on bit for bit however it was ended, and what happens to bad folders."""

import dataclasses
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crash import Box
from undrawn import leave_pictures_empty

import minigan as mg
from minigan import checkpoint, loop, pictures, state, train
from minigan.checkpoint import digest
from minigan.folder import KEPT, RunFolder, read_lines


@pytest.fixture(autouse=True)
def default_signals() -> Iterator[None]:
    """Where tests run in the background, SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def empty_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last pictures, except those of the run that nothing interrupts."""
    leave_pictures_empty(monkeypatch.setattr)


IMAGES = (mg.data.digits()[0][:, ::2, ::2] * 255).astype(np.uint8)[:70]
STEPS = 60
PLAN: dict[str, Any] = {"steps": STEPS, "batch": 16, "save_every": 15, "sample_every": 50}


def small(**settings: Any) -> mg.GAN:
    """A GAN with everything that has a state: moments, an average, a schedule, noise."""
    generator = mg.models.mlp_generator(3, (5,), (4, 4, 1))
    rate = mg.optim.linear(3e-3, STEPS, begin=0.5)
    everything = {"optimizer": mg.optim.Adam(rate, b1=0.5), "noise": 0.1, "penalty": mg.penalties.r1(0.1)}
    return mg.GAN(generator, mg.models.mlp_discriminator((4, 4, 1), (5,)), **{**everything, **settings})


def fit(out: Path | None = None, gan: mg.GAN | None = None, **settings: Any) -> mg.GAN:
    gan = gan or small()
    gan.fit(IMAGES, **{**PLAN, "out": out, **settings})
    return gan


def sha256(gan: mg.GAN) -> str:
    return digest(gan.game.state())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A run that nothing has interrupted: its digest and folder."""
    out = tmp_path_factory.mktemp("whole") / "run"
    digest = sha256(fit(out))
    assert all((out / name).stat().st_size for name in ("curves.png", "samples.gif", "compare.png"))
    return digest, out


def checkpoints(out: Path) -> list[int]:
    return sorted(int(path.stem[5:]) for path in (out / "checkpoints").iterdir())


def without_times(out: Path) -> list[dict[str, Any]]:
    times = ("seconds", "steps_per_second", "images_per_second")
    return [
        {k: v for k, v in line.items() if k not in times} for line in read_lines(str(out / "metrics.jsonl"))
    ]


def during(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Do something at the beginning of a step, once."""
    real, left = mg.Game._remember, [act]

    def acting(game: mg.Game) -> None:
        real(game)
        if game.steps == step and left:
            left.pop()()

    monkeypatch.setattr(mg.Game, "_remember", acting)


def interrupt(number: int = signal.SIGINT) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


# Resuming


@pytest.mark.parametrize("step", [0, 7, 14, 15, 33, 59])
def test_an_interrupted_run_goes_on_bit_for_bit(
    step: int, whole: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    during(monkeypatch, step, interrupt())
    with pytest.raises(
        KeyboardInterrupt, match=rf"^stopped by SIGINT after step {step + 1}; the checkpoint .*run"
    ):
        fit(out)
    assert step + 1 in checkpoints(out)
    gan = fit(out, resume=True)
    assert sha256(gan) == whole[0]
    assert without_times(out) == without_times(whole[1])
    assert (out / "samples" / "step_000060.png").read_bytes() == (
        whole[1] / "samples" / "step_000060.png"
    ).read_bytes()
    seconds = [line["seconds"] for line in read_lines(str(out / "metrics.jsonl"))]
    assert seconds == sorted(seconds)


def test_a_run_may_be_interrupted_often(
    whole: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    for step in (4, 9, 21, 22, 58):
        during(monkeypatch, step, interrupt())
        with pytest.raises(KeyboardInterrupt):
            fit(out, resume=True)
    assert sha256(fit(out, resume=True)) == whole[0]
    assert sha256(fit(out, resume=True)) == whole[0]  # it is complete: nothing is left to do
    assert without_times(out) == without_times(whole[1])


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "wasserstein", "penalty": mg.penalties.wgan_gp(), "d_steps": 3, "latent": "normal"},
        {"update": "simultaneous", "ema": None, "optimizer": mg.optim.RMSProp(1e-3), "noise": 0.0},
        {"share_fake": True, "optimizer": mg.optim.SGD(0.01, momentum=0.9), "smoothing": 0.1},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_every_kind_of_game_goes_on(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = fit(gan=small(**settings))
    during(monkeypatch, 22, interrupt())
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", small(**settings))
    assert sha256(fit(tmp_path / "run", small(**settings), resume=True)) == sha256(uninterrupted)


def test_a_rollback_after_an_interruption_is_the_same_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes back to the last checkpoint due, not to the one that the interruption left."""

    runs = []
    for steps in ((), (18,)):
        out = tmp_path / f"run{len(runs)}"
        for step in steps:
            during(monkeypatch, step, interrupt())
            with pytest.raises(KeyboardInterrupt):
                fit(out, on_nonfinite="rollback")
        during(monkeypatch, 25, fail)
        runs.append(fit(out, on_nonfinite="rollback", resume=True))
    assert sha256(runs[0]) == sha256(runs[1])
    assert runs[0].game.rate_scale == 0.5
    assert without_times(tmp_path / "run0") == without_times(tmp_path / "run1")


def interrupted(monkeypatch: pytest.MonkeyPatch, step: int, *arguments: Any, **settings: Any) -> None:
    during(monkeypatch, step, interrupt())
    with pytest.raises(KeyboardInterrupt):
        fit(*arguments, **settings)


def test_a_second_fit_may_be_interrupted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fit(gan=fit(steps=20), steps=40)
    gan = fit(steps=20)
    interrupted(monkeypatch, 33, tmp_path / "run", gan, steps=40)
    for step in (43, 52):  # in a new process, and in the one that was interrupted
        gan = gan if step == 52 else small()
        interrupted(monkeypatch, step, tmp_path / "run", gan, steps=40, resume=True)
    assert sha256(fit(tmp_path / "run", gan, steps=40, resume=True)) == sha256(expected)
    assert gan.game.steps == 60


def fail() -> None:
    raise mg.NonFiniteError("generator: planted")


@pytest.mark.parametrize("stops", [(), (22, 23, 24, 25)])
def test_interruptions_do_not_push_out_what_a_rollback_goes_to(
    stops: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distances = iter([1.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0])
    monkeypatch.setattr(loop, "sliced_wasserstein", lambda *x: next(distances))
    out, policy = tmp_path / "run", {"on_nonfinite": "rollback", "save_every": 10, "resume": True}
    for step in stops:
        interrupted(monkeypatch, step, out, **policy)
    if stops:
        assert checkpoints(out) == [0, 10, 20, 26]
    during(monkeypatch, 28, fail)
    run = small().fit(IMAGES, **{**PLAN, **policy, "out": out})
    assert "back to step 20" in run.events[-1]["message"]


def test_a_damaged_older_checkpoint_does_not_stop_a_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    interrupted(monkeypatch, 32, out, on_nonfinite="rollback")
    (out / "checkpoints" / "step_00000030.safetensors").write_bytes(b"")
    during(monkeypatch, 40, fail)
    run = small().fit(IMAGES, **PLAN, out=out, on_nonfinite="rollback", resume=True)
    assert "back to step 15" in run.events[-1]["message"]


def test_a_checkpoint_made_after_a_rollback_is_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, policy = tmp_path / "run", {"on_nonfinite": "rollback", "resume": True, "max_faults": 2}
    interrupted(monkeypatch, 24, out, **policy)
    for _ in range(2):
        left = iter([fail, interrupt(), lambda: None])
        real = mg.Game._remember

        def acting(game: mg.Game, left: Any = left, real: Any = real) -> None:
            real(game)
            if game.steps in (26, 17):
                next(left)()

        monkeypatch.setattr(mg.Game, "_remember", acting)
        with pytest.raises(KeyboardInterrupt):
            fit(out, **policy)
        monkeypatch.setattr(mg.Game, "_remember", real)
        assert checkpoints(out) == [0, 15, 18]
    found = state.newest(out, print)
    assert found is not None and found.about["faults"] == 2 and found.arrays["rate_scale"] == 0.25
    during(monkeypatch, 26, fail)
    with pytest.raises(mg.NonFiniteError, match="diverged 3 times"):  # counted over all processes
        fit(out, **policy)


def test_resume_starts_where_there_is_nothing(whole: tuple[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    for entries in ((), ("samples", "checkpoints")):  # the latter as a run leaves it that is killed at once
        for entry in entries:
            (out / entry).mkdir(parents=True)
        assert sha256(fit(out, resume=True)) == whole[0]
        out = tmp_path / "other"


def test_a_longer_run_may_go_on(tmp_path: Path) -> None:
    plain = {"optimizer": mg.optim.Adam(1e-3)}
    fit(tmp_path / "run", small(**plain), steps=20)
    longer = fit(tmp_path / "run", small(**plain), steps=40, resume=True)
    assert sha256(longer) == sha256(fit(gan=small(**plain), steps=40))
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["training"]["steps"] == 40


def test_another_configuration_is_refused_with_the_differences(whole: tuple[str, Path]) -> None:
    before = {path: path.read_bytes() for path in whole[1].rglob("*") if path.is_file()}
    gan = small(noise=0.2, loss="hinge", latent="normal")
    untouched = sha256(gan)
    with pytest.raises(mg.CheckpointError) as error:
        fit(whole[1], gan, batch=8, resume=True)
    text = str(error.value)
    assert "step_00000060.safetensors: is of another configuration: " in text
    for difference in (
        "loss was 'non_saturating', now 'hinge'",
        "noise was 0.1, now 0.2",
        "training.batch was 16, now 8",
        "latent was 'uniform', now 'normal'",
    ):
        assert difference in text
    with pytest.raises(mg.CheckpointError, match=r"data\.sha256 was"):
        small().fit(255 - IMAGES, **PLAN, out=whole[1], resume=True)
    assert sha256(gan) == untouched
    after = {path: path.read_bytes() for path in whole[1].rglob("*") if path.is_file()}
    assert before.pop(whole[1] / ".lock") and after.pop(whole[1] / ".lock")
    assert before == after


def test_another_environment_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tmp_path / "run", steps=15)
    real = state.environment()
    monkeypatch.setattr(state, "environment", lambda device="cpu": real | {"cores": 999})
    run = small().fit(IMAGES, **PLAN, out=tmp_path / "run", resume=True)
    assert [event["event"] for event in run.events] == ["environment", "resumed"]
    assert re.search(r"cores was \d+, now 999", run.events[0]["message"])


# What is kept


def test_the_last_three_and_the_best_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distances = iter([1.0, 4.0, 3.0, 2.0, 6.0, 7.0])
    monkeypatch.setattr(loop, "sliced_wasserstein", lambda *x: next(distances))
    out = tmp_path / "run"
    fit(out, save_every=10)
    assert checkpoints(out) == [10, 40, 50, 60]
    assert state.read_about(out / "checkpoints" / "step_00000010.safetensors")["quality"] == 1.0
    assert [line["sliced_wasserstein"] for line in read_lines(str(out / "metrics.jsonl"))] == [
        1,
        4,
        3,
        2,
        6,
        7,
    ]


def test_the_newest_is_known_by_its_header(whole: tuple[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for number, name in enumerate(("step_00000060", "step_00000045", "step_00000030")):
        source = whole[1] / "checkpoints" / f"{name}.safetensors"
        target = (
            folder / f"step_{number:08}.safetensors"
        )  # the newest has the lowest name and the oldest time
        target.write_bytes(source.read_bytes())
        os.utime(target, (number, number))
    found = state.newest(tmp_path, print)
    assert found is not None and found.about["step"] == 60


def test_a_damaged_newest_one_gives_way_to_the_one_before(
    whole: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    fit(out, steps=45)
    for step, damage in ((45, lambda data: data[:-1] + bytes([data[-1] ^ 1])), (30, lambda data: data[:99])):
        path = out / "checkpoints" / f"step_{step:08}.safetensors"
        path.write_bytes(damage(path.read_bytes()))
    assert train.restore(out).game.steps == 15
    assert capsys.readouterr().err.count("it is passed over") == 2
    gan = small()
    run = gan.fit(IMAGES, **PLAN, out=out, resume=True)
    kinds = [event["event"] for event in run.events]
    assert kinds == ["damaged checkpoint", "damaged checkpoint", "resumed"]
    assert sha256(gan) == whole[0]
    for path in (out / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(mg.CheckpointError, match=r"step_\d+\.safetensors"):
        fit(out, resume=True)


def test_old_checkpoints_beyond_number_do_not_matter(whole: tuple[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(out, steps=15)
    data = (out / "checkpoints" / "step_00000015.safetensors").read_bytes()
    for number in range(300):
        (out / "checkpoints" / f"step_{90_000_000 + number}.safetensors").write_bytes(data)
    for name in ("mine.safetensors", "notes.txt"):
        (out / "checkpoints" / name).write_bytes(b"x")
    assert sha256(fit(out, resume=True)) == whole[0]
    left = os.listdir(out / "checkpoints")
    assert {"mine.safetensors", "notes.txt"} < set(left) and len(left) <= KEPT + 3


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_handlers_are_there_while_training_only(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(number)
    during(monkeypatch, 3, interrupt(number))
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as stop:
        fit(tmp_path / "run")
    if number == signal.SIGTERM:
        assert stop.value.code == 143
    assert signal.getsignal(number) is before
    (event,) = read_lines(str(tmp_path / "run" / "events.jsonl"))
    assert event["event"] == "stopped" and event["step"] == 4 and number.name in event["message"]


def test_a_handler_of_ones_own_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(loop, "SIGNALS", (signal.SIGTERM, signal.SIGINT))
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        during(monkeypatch, 3, interrupt(signal.SIGTERM))
        assert fit(tmp_path / "run").game.steps == STEPS
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


def test_another_thread_sets_no_handlers(whole: tuple[str, Path]) -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(sha256(fit())))
    thread.start()
    thread.join()
    assert found == [whole[0]]


CHILD = """
import os, signal, sys
sys.modules['scipy'] = None  # Numba imports it if it is there, which takes a second
sys.path.insert(0, {tests!r})
import test_runs as t
t.leave_pictures_empty()
from minigan import Game
real, left = Game._remember, {actions!r}
def acting(game):
    if left and game.steps == left[0][0]:
        for number in left.pop(0)[1]:
            os.kill(os.getpid(), number)
    return real(game)
Game._remember = acting
print(t.sha256(t.fit({out!r}, resume=True)))
"""


def child(
    out: Path, *actions: tuple[int, tuple[int, ...]], **environment: str
) -> subprocess.CompletedProcess[str]:
    """A run, resumed if there is one, in a process that sends itself signals in given steps."""
    code = CHILD.format(
        tests=str(Path(__file__).parent),
        actions=[(step, [int(n) for n in numbers]) for step, numbers in actions],
        out=str(out),
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("steps", [(31,), pytest.param((0, 31, 50), marks=pytest.mark.slow)])
def test_killed_runs_go_on_bit_for_bit(
    steps: tuple[int, ...], whole: tuple[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for step in steps:
        assert child(out, (step, (signal.SIGKILL,))).returncode == -signal.SIGKILL
    assert child(out).stdout.strip() == whole[0]
    assert without_times(out) == without_times(whole[1])


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    done = child(tmp_path / "run", (20, (signal.SIGINT, signal.SIGTERM)))
    assert done.returncode == 143 and done.stdout == ""
    assert checkpoints(tmp_path / "run") == [0, 15]


MEMORY = """
import resource, sys
sys.modules['scipy'] = None  # Numba imports it if it is there, which takes a second
sys.path.insert(0, {tests!r})
import test_runs as t
t.leave_pictures_empty()
import numpy as np
real = t.mg.Game._remember
def greedy(game):
    if game.steps == 22:
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, resource.RLIM_INFINITY))
        np.empty((1234, 2**16), np.float32)
    return real(game)
t.mg.Game._remember = greedy
t.fit({out!r}, resume=True)
"""


@pytest.mark.skipif(
    not os.path.exists("/proc/self/statm"), reason="needs Linux's account of a process's memory"
)
def test_memory_that_runs_out_leaves_the_last_checkpoint(whole: tuple[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = MEMORY.format(tests=str(Path(__file__).parent), out=str(out))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1 and "with shape (1234, 65536)" in done.stderr.splitlines()[-1]
    assert checkpoints(out) == [0, 15]
    assert sha256(fit(out, resume=True)) == whole[0]


@pytest.mark.parametrize(("seed", "threads"), [("1", "1"), pytest.param("2", "2", marks=pytest.mark.slow)])
def test_neither_hashing_nor_threads_change_a_run(
    seed: str, threads: str, whole: tuple[str, Path], tmp_path: Path
) -> None:
    done = child(tmp_path / "run", PYTHONHASHSEED=seed, OPENBLAS_NUM_THREADS=threads)
    assert done.stdout.strip() == whole[0], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["digits", "mnist"])
def test_a_run_killed_twenty_times_ends_as_one_that_was_not(preset: str, tmp_path: Path) -> None:
    shared = Path(__file__).parents[2] / "shared" / "data"
    if preset == "mnist" and not (shared / "mnist").is_dir():
        pytest.skip("the MNIST files are not there")
    command = [sys.executable, "-m", "minigan", "train", preset, "--steps", "400", "--save-every", "10"]
    command += ["--data-dir", str(shared)]

    def found(out: Path) -> str:
        done = subprocess.run(
            [*command, "--resume", "auto", "--out", str(out)], capture_output=True, text=True, check=True
        )
        return re.findall(r"SHA-256 +([0-9a-f]{64})", done.stdout)[0]

    dice = random.Random(preset)  # noqa: S311
    out, kills = tmp_path / "killed", 0
    while kills < 20:
        with subprocess.Popen(
            [*command, "--resume", "auto", "--out", str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            lines = len(read_lines(str(out / "metrics.jsonl"))) + dice.randrange(3)
            while process.poll() is None and len(read_lines(str(out / "metrics.jsonl"))) <= lines:
                time.sleep(0.002)
            time.sleep(dice.uniform(0, 0.05))
            process.kill()
        assert process.returncode == -signal.SIGKILL, "the run was over before it was killed often enough"
        kills += 1
    assert found(out) == found(tmp_path / "whole")


# Folders that cannot be written


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    with (
        RunFolder(str(tmp_path / "run"), resume=False),
        pytest.raises(mg.ConfigError, match=rf"run is in use by process {os.getpid()}"),
    ):
        fit(tmp_path / "run", resume=True)
    assert fit(tmp_path / "run", resume=True).game.steps == STEPS


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    for resume, advice in ((False, "choose another folder"), (True, "it is not that of a run")):
        with pytest.raises(mg.ConfigError, match=f"is not empty: runs do not overwrite anything; {advice}"):
            fit(tmp_path, resume=resume)
    assert (tmp_path / "note").read_text() == "mine"


def full(*arguments: Any, **settings: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_before_the_first_step_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gan = small()
    real = os.fsync
    calls = iter([real, real])  # the settings and the metrics fit

    monkeypatch.setattr(os, "fsync", lambda descriptor: next(calls, full)(descriptor))
    with pytest.raises((mg.CheckpointError, mg.ConfigError), match="No space left"):
        fit(tmp_path / "run", gan)
    assert gan.game.steps == 0


def test_a_full_disk_during_a_run_is_an_event(
    whole: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    real = state.write

    def some(path: Any, arrays: Any, about: Any) -> None:
        if about["step"] in (15, 30):
            raise mg.CheckpointError(f"{path}: No space left on device")
        real(path, arrays, about)

    monkeypatch.setattr(state, "write", some)
    gan = small()
    run = gan.fit(IMAGES, **PLAN, out=out)
    assert [(e["step"], e["event"]) for e in run.events] == [(15, "no checkpoint"), (30, "no checkpoint")]
    assert sha256(gan) == whole[0] and checkpoints(out) == [0, 45, 60]
    monkeypatch.setattr(state, "write", lambda path, *x: full())
    with pytest.raises(OSError, match="No space left"):
        fit(tmp_path / "other")


def test_pictures_and_metrics_that_fail_do_not_end_a_run(
    whole: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "save_png", full)
    monkeypatch.setattr(pictures, "loss_curves", full)
    monkeypatch.setattr(pictures, "save_gif", full)
    gan = small()
    real = RunFolder.rewind

    def and_block(folder: RunFolder, step: int) -> Any:
        found = real(folder, step)
        os.unlink(folder.file("metrics.jsonl"))
        os.mkdir(folder.file("metrics.jsonl"))
        return found

    monkeypatch.setattr(RunFolder, "rewind", and_block)
    run = gan.fit(IMAGES, **PLAN, out=tmp_path / "run")
    assert sha256(gan) == whole[0]
    told = [event["event"] for event in run.events]
    assert len(told) == len(set(told)) and {"no pictures", "no metrics.jsonl", "no curves.png"} <= set(told)
    assert all("No space left" in e["message"] for e in run.events if e["event"] == "no pictures")


def test_a_read_only_place(tmp_path: Path) -> None:
    for out in (Path("/proc/run"), tmp_path / "x" / ("a" * 300)):
        with pytest.raises(mg.ConfigError, match="cannot be made a run folder"):
            fit(out)


PIPES = """
import os, sys
sys.modules['scipy'] = None  # Numba imports it if it is there, which takes a second
sys.path.insert(0, {tests!r})
import test_runs as t
t.leave_pictures_empty()
for out in {folders!r}:
    try:
        print(t.sha256(t.fit(t.Path(out), resume=True)), flush=True)
    except t.mg.ConfigError as error:
        print("ConfigError:", error, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_in_a_folder_do_not_hang(whole: tuple[str, Path], tmp_path: Path) -> None:
    fit(tmp_path / "run", steps=15)
    names = ["metrics.jsonl", "events.jsonl", "samples/step_000007.png", ".lock", "config.toml"]
    folders = [tmp_path / str(k) for k in range(len(names))]
    for name, out in zip(names, folders, strict=True):
        shutil.copytree(tmp_path / "run", out)
        (out / name).unlink(missing_ok=True)
        os.mkfifo(out / name)
    code = PIPES.format(tests=str(Path(__file__).parent), folders=list(map(str, folders)))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    for name, said in zip(names, done.stdout.splitlines(), strict=True):
        if name in (".lock", "config.toml"):
            assert said.startswith("ConfigError: ") and "not a file" in said
        else:
            assert said == whole[0], (name, done.stderr)


def test_a_lock_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(mg.ConfigError, match="cannot be made a run folder"):
        fit(tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "mine"


def test_odd_places(tmp_path: Path) -> None:
    with pytest.raises(mg.ConfigError, match="cannot be made a run folder"):
        small().fit(IMAGES, **PLAN, out="a\0b")
    with pytest.raises(mg.ConfigError, match="ignore"):
        fit(tmp_path / "run", on_nonfinite="ignore")
    assert not (tmp_path / "run").exists()


def test_fewer_steps_than_were_made_are_refused(tmp_path: Path) -> None:
    plain = {"optimizer": mg.optim.Adam(1e-3)}
    fit(tmp_path / "run", small(**plain), steps=20)
    with pytest.raises(mg.ConfigError, match="steps is 10: the run has made 20 already"):
        fit(tmp_path / "run", small(**plain), steps=10, resume=True)
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["training"]["steps"] == 20


@pytest.mark.parametrize(
    "lie",
    [{"rows": x} for x in (5, None, "x", [5], [{"d_loss": 1}], [dict.fromkeys(loop.LOGGED, "x")])]
    + [{"faults": x} for x in ("x", None, [], 1.5, -(10**9), 10**30)]
    + [{"quality": x} for x in ("x", {}, [1], True)]
    + [{"environment": x} for x in (5, "x", None, [1])]
    + [{"format": x} for x in ("2", 0, -1, 1.0, None)]
    + [{"step": x} for x in (-1, 10, 10**30, "x", None)]
    + [{"config": x} for x in (None, 5, {"training": 5}, {"training": {"first_step": "x"}})]
    + [{"config": {"training": {"first_step": x}}} for x in (None, [1], -5, 0.5, 10**30)],
    ids=str,
)
def test_a_header_that_lies_is_found(lie: dict[str, Any], whole: tuple[str, Path], tmp_path: Path) -> None:
    path = whole[1] / "checkpoints" / "step_00000060.safetensors"
    about = state.read(path).about
    if isinstance(lie.get("config"), dict):
        lie = {"config": about["config"] | lie["config"]}
    mg.save(tmp_path / "a.safetensors", mg.load(path), None)
    checkpoint.save(tmp_path / "a.safetensors", mg.load(path), {"minigan": json.dumps(about | lie)})
    for read in (state.read, train.restore, train.sampler):
        with pytest.raises(mg.CheckpointError, match=r"a\.safetensors: "):
            read(tmp_path / "a.safetensors")


def test_warnings_and_events_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"

    def still() -> mg.GAN:
        gan = small(optimizer=mg.optim.SGD(0.0), noise=0.0, penalty=None)
        for x in gan.game.discriminator.parameters().values():
            x.array[...] = 0
        return gan

    settings = {"steps": 600, "save_every": 400, "on_nonfinite": "skip", "resume": True}
    during(monkeypatch, 450, fail)
    real = RunFolder.keep

    def killed(folder: RunFolder, arrays: Any, about: Any) -> str:
        if about["step"] == 600:
            raise RuntimeError("as if killed")
        return real(folder, arrays, about)

    monkeypatch.setattr(RunFolder, "keep", killed)
    with pytest.raises(RuntimeError):
        fit(out, still(), **settings)
    monkeypatch.setattr(RunFolder, "keep", real)
    during(monkeypatch, 450, fail)
    fit(out, still(), **settings)
    kinds = [event["event"] for event in read_lines(str(out / "events.jsonl"))]
    assert sorted(kinds) == ["dead discriminator", "resumed", "skipped"]


def test_a_line_that_was_cut_off_is_dropped(whole: tuple[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(out, steps=30)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "d_loss": 0.1}\n[]\n{"step": "x"}\n\x00\n{"step": 50, "d_l')
    fit(out, resume=True)
    assert without_times(out) == without_times(whole[1])
    for line in (out / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_old_formats_are_read() -> None:
    path = Path(__file__).parent / "fixtures" / "checkpoint_format_1.safetensors"
    gan = train.restore(path)
    assert gan.game.steps == 3 and gan.game.rate_scale == 1.0
    assert gan.sample(2).shape == (2, 2, 2, 1)
    assert np.array_equal(train.sampler(path).sample(2), gan.sample(2))


def test_format_2_is_read() -> None:
    """A fixture that later versions have to read too."""
    path = Path(__file__).parent / "fixtures" / "checkpoint_format_2.safetensors"
    found = state.read(path)
    assert found.about["step"] == 3 and found.about["config"]["loss"] == "non_saturating"
    assert digest(found.arrays) == "b1caf59b8163330ed0cecc2f5481430a9c40bfb99d54a1e9c481397f7cf0b035"
    assert train.restore(path).game.steps == 3


def test_samples_need_the_generator_only(tmp_path: Path) -> None:
    own = dataclasses.replace(mg.losses.table["hinge"], name="mine")
    gan = fit(
        tmp_path / "run", small(loss=own, noise=lambda step: 0.1, optimizer=mg.optim.Adam(lambda step: 1e-3))
    )
    with pytest.raises(mg.CheckpointError):
        train.restore(tmp_path / "run")
    again = small(loss=own, noise=lambda step: 0.1, optimizer=mg.optim.Adam(lambda step: 1e-3))
    assert sha256(fit(tmp_path / "run", again, resume=True)) == sha256(gan)  # settings hold no addresses
    assert np.array_equal(train.sampler(tmp_path / "run").sample(4), gan.sample(4))
    assert np.array_equal(train.sampler(tmp_path / "run", raw=True).sample(4), gan.sample(4, raw=True))


def test_walks_between_latents() -> None:
    for latent in ("uniform", "normal"):
        gan = small(latent=latent)
        walks = gan.interpolate(rows=3, columns=5, seed=1)
        ends = gan.sample(6, seed=1)
        assert walks.shape == (15, 4, 4, 1)
        assert np.allclose(walks[::5], ends[0::2], atol=1e-6)
        assert np.allclose(walks[4::5], ends[1::2], atol=1e-6)
        assert not np.allclose(walks[0], walks[1])
    flat = mg.GAN(mg.models.mlp_generator(1, (5,), (4, 4, 1)), small().game.discriminator, latent="normal")
    assert np.isfinite(flat.interpolate(4, 3)).all()


# A process that is killed, or a disk that fails, at any operation

SETUP = f"""
import sys
sys.modules['scipy'] = None  # Numba imports it if it is there, which takes a second
sys.path.insert(0, {str(Path(__file__).parent)!r})
import pathlib, test_runs as t
t.leave_pictures_empty()
t.pictures.save_png = t.pictures.loss_curves  # minutes of drawing
t.fit()  # compiles the kernels before there are children
"""
BODY = "print(t.sha256(t.fit(pathlib.Path(folder), steps=20, save_every=5, sample_every=10, resume=True)))"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the crash box needs os.fork")
@pytest.mark.parametrize(
    ("fault", "stride"),
    [
        pytest.param("power", 97, id="some"),
        *[pytest.param(f, 1, marks=pytest.mark.slow, id=f"all-{f}") for f in ("kill", "power")],
    ],
)
def test_a_run_killed_at_any_operation_goes_on(fault: str, stride: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Box(folder, SETUP, BODY) as box:
        expected = box.run()
        assert expected.code == 0, expected.output
        lines = without_times(folder)
        for at in range(1, len(expected.operations) + 1, stride):
            shutil.rmtree(folder)
            killed = box.run(at, fault)
            assert killed.code == -signal.SIGKILL, killed
            resumed = box.run()
            assert (resumed.code, resumed.output) == (0, expected.output), (killed.operations[-3:], resumed)
            assert without_times(folder) == lines
            leftovers = [name for name in os.listdir(folder / "checkpoints") if name.startswith(".")]
            assert leftovers == []


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the crash box needs os.fork")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_once_at_any_operation_ends_a_run_cleanly_or_not_at_all(
    code: int, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with Box(folder, SETUP, BODY) as box:
        expected = box.run()
        for at in range(1, len(expected.operations) + 1):
            shutil.rmtree(folder)
            failed = box.run(at, code)
            if failed.code:
                assert re.search(r"minigan\.errors\.(CheckpointError|ConfigError): ", failed.output), failed
            else:
                assert failed.output == expected.output
            assert box.run().output == expected.output
