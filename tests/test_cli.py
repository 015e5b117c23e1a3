"""The command line: what it makes, how it fails, and that it survives pipes and signals."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import minigan as mg
from minigan import __main__, cli

SHORT = ["train", "--steps", "20", "--batch", "16"]
COMMAND = [sys.executable, "-m", "minigan"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a short run."""
    out = str(tmp_path_factory.mktemp("runs") / "digits")
    assert cli.main([*SHORT, "--out", out]) == 0
    return out


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("minigan: ") and printed.err.count("\n") == 1
    return printed.err


def test_train_says_where_everything_is(capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("runs/digits", "runs/digits-2", "runs/digits-3"):
        assert cli.main(SHORT) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        assert f"run folder {folder}\n" in printed.out
        for name in ("samples/step_000020.png", "curves.png", "checkpoints/final.safetensors"):
            assert f"  {folder}/{name}\n" in printed.out
            assert os.path.getsize(os.path.join(folder, name)) > 0


def test_one_seed_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for seed in ("0", "0", "1"):
        assert cli.main([*SHORT, "--seed", seed]) == 0
        found += re.findall(r"SHA-256 +([0-9a-f]{64})", capsys.readouterr().out)
    assert len(found) == 3 and found[0] == found[1] != found[2]
    files = [
        Path(f"runs/{name}/checkpoints/final.safetensors").read_bytes() for name in ("digits", "digits-2")
    ]
    assert files[0] == files[1]


def test_options_reach_the_run() -> None:
    assert (
        cli.main(
            ["train", "digits", "--steps", "7", "--batch", "5", "--seed", "3", "--lr", "0.01", "--out", "x"]
        )
        == 0
    )
    text = Path("x/config.toml").read_text()
    for line in ("seed = 3", "batch = 5", "lr = 0.01", "steps = 7", 'source = "digits"'):
        assert line in text.splitlines(), line
    assert Path("x/samples/step_000007.png").exists()


def test_sample_draws_a_grid_or_an_array(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", run, "-n", "6", "--seed", "1", "--out", "a.png"]) == 0
    assert capsys.readouterr().out == "6 samples in a.png\n"
    assert min(Image.open("a.png").size) > 90
    arrays = {}
    for name, options in {"first": [], "again": [], "raw": ["--raw"], "other": ["--seed", "2"]}.items():
        options = ["--seed", "1", *options, "--out", f"{name}.NPZ" if name == "again" else f"{name}.npz"]
        assert cli.main(["sample", run, "-n", "6", *options]) == 0
        with np.load(options[-1]) as file:
            assert file.files == ["samples"]
            arrays[name] = file["samples"]
    first = arrays["first"]
    assert first.shape == (6, 8, 8, 1) and first.dtype == np.float32 and 0 <= first.min() <= first.max() <= 1
    assert np.array_equal(first, arrays["again"])
    assert not np.array_equal(first, arrays["raw"]) and not np.array_equal(first, arrays["other"])
    assert sorted(os.listdir()) == ["a.png", "again.NPZ", "first.npz", "other.npz", "raw.npz"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "mnst"], 2, "preset 'mnst' does not exist; there are digits"),
        (["train", "--steps", "0"], 2, "--steps"),
        (["train", "--steps", "ten"], 2, "--steps"),
        (["train", "--colour", "red"], 2, "--colour"),
        (["train", "--seed", "-1"], 2, "--seed"),
        (["train", "--lr", "nan"], 2, "lr is nan"),
        (["train", "--lr", "-1"], 2, "lr is -1"),
        (["trane"], 2, "trane"),
        (["sample", "nowhere"], 4, "nowhere: No such file"),
        (["sample", "nowhere", "--out", "a.jpg"], 2, "--out a.jpg: expected a name that ends in .png"),
        (["sample", "nowhere", "-n", "0"], 2, "-n"),
        (["sample"], 2, "Missing argument"),
    ],
)
def test_wrong_usage(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == code
    assert message in one_line(capsys)
    assert os.listdir() == []


def test_a_folder_in_use_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes").mkdir()
    Path("notes/mine").touch()
    assert cli.main([*SHORT, "--out", "notes"]) == 2
    assert "not empty" in capsys.readouterr().err
    assert os.listdir("notes") == ["mine"]


def test_damaged_weights(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = Path(run, "checkpoints", "final.safetensors").read_bytes()
    Path("short.safetensors").write_bytes(data[:-1])
    assert cli.main(["sample", "short.safetensors"]) == 4
    assert "short.safetensors: damaged" in one_line(capsys)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (mg.ConfigError("a\nb"), 2),
        (mg.DataError("a\nb"), 3),
        (mg.CheckpointError("a\nb"), 4),
        (mg.NonFiniteError("a\nb"), 5),
        (mg.DeviceError("a\nb"), 7),
        (mg.ExtraError("a\nb"), 1),
        (mg.ShapeError("a\nb"), 1),
        (OSError("a\nb"), 1),
        (MemoryError("a\nb"), 1),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Exception) else None,
)
def test_every_family_has_its_exit_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: str) -> None:
        raise error

    monkeypatch.setattr(cli, "restore", fail)
    assert cli.main(["sample", "x"]) == code
    line = one_line(capsys)
    assert "a b" in line and "Traceback" not in line
    assert cli.main(["sample", "x", "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"minigan {mg.__version__}\n"
    for arguments in (["--help"], ["train", "--help"], ["sample", "-h"], []):
        cli.main(arguments)
        assert "Usage" in capsys.readouterr().out


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in cli.SIGNALS]
    cli.main(["--version"])
    assert [signal.getsignal(number) for number in cli.SIGNALS] == before


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_packages_it_says_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert __main__.main() == 1
    assert 'pip install "minigan[cli]"' in one_line(capsys)


def shell(command: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "MINIGAN": " ".join(COMMAND)}
    return subprocess.run(
        ["/bin/bash", "-c", f"set -o pipefail; {command}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_reader_that_goes_away_does_not_end_the_run() -> None:
    done = shell(f"$MINIGAN {' '.join(SHORT)} | head -n 1")
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")
    assert Path("runs/digits/checkpoints/final.safetensors").exists()


def test_closed_streams() -> None:
    done = shell(f"$MINIGAN {' '.join(SHORT)} >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = shell("$MINIGAN sample runs/digits --out a.jpg >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_in_one_line(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [*COMMAND, "train", "--steps", "1000000", "--out", "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = Path("run/metrics.jsonl")
    deadline = time.monotonic() + 100
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert re.fullmatch(
        rf"minigan: stopped by {number.name} after step \d+; what was written is in run\n", printed
    )
    assert metrics.read_text().endswith("}\n")
    assert Path("run/samples/step_000000.png").exists()


def on_a_terminal(command: list[str], **environment: str) -> str:
    """What a command shows on a terminal of 100 columns."""
    master, slave = pty.openpty()
    settings = {**os.environ, "COLUMNS": "100", "LINES": "30", "TERM": "xterm", **environment}
    with subprocess.Popen(command, stdout=slave, stderr=slave, stdin=slave, env=settings) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                select.select([master], [], [])
                shown += os.read(master, 65536)
            except OSError:  # the last writer has closed it
                break
    os.close(master)
    assert process.returncode == 0, shown
    return shown.decode()


def test_a_terminal_shows_a_live_display() -> None:
    shown = on_a_terminal([*COMMAND, *SHORT])
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "\x1b[" in shown and "20/20" in plain
    assert re.search(r"D \d\.\d{3}  G \d\.\d{3}  D\(x\) 0\.\d\d  D\(G\(z\)\) 0\.\d\d  \d+ steps/s", plain)
    assert "0:00 left" in plain and "curves.png" in plain


def test_a_dumb_terminal_shows_lines() -> None:
    shown = on_a_terminal([*COMMAND, *SHORT], TERM="dumb")
    assert "\x1b" not in shown and "step     20/20" in shown


def test_notes_are_one_line(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import warnings

    def warn(*arguments: Any, **settings: Any) -> Any:
        warnings.warn("kernels are slow", RuntimeWarning, stacklevel=1)
        return np.zeros((1, 8, 8, 1))

    monkeypatch.setattr(mg.GAN, "sample", warn)
    assert cli.main(["sample", run, "--out", "a.png"]) == 0
    assert capsys.readouterr().err == "minigan: note: kernels are slow\n"
