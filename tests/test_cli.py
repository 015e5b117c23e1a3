"""The command line: what it makes, how it fails, and that it survives pipes and signals."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import tomllib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from undrawn import CURVES, GIF, leave_pictures_empty

import minigan as mg
from minigan import __main__, cli, pictures, state
from minigan.commands import look

SHORT = ["train", "--steps", "20", "--batch", "16"]
COMMAND = [sys.executable, "-m", "minigan"]
UNDRAWN = [sys.executable, str(Path(__file__).parent / "undrawn.py")]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIGAN_DATA", str(tmp_path / "no data"))
    leave_pictures_empty(monkeypatch.setattr)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a short run."""
    out = str(tmp_path_factory.mktemp("runs") / "digits")
    assert cli.main([*SHORT, "--out", out, "--save-every", "10"]) == 0
    return out


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("minigan: ") and printed.err.count("\n") == 1
    return printed.err


def weights_of(out: str) -> str:
    """The digest that a command has printed."""
    (found,) = re.findall(r"SHA-256 +([0-9a-f]{64})", out)
    return str(found)


def newest(folder: str) -> Path:
    return max(Path(folder, "checkpoints").iterdir())


# minigan train


def test_train_says_where_everything_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "loss_curves", CURVES)
    monkeypatch.setattr(pictures, "save_gif", GIF)
    for folder in ("runs/digits", "runs/digits-2", "runs/digits-3"):
        assert cli.main(SHORT) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        assert f"run folder {folder}\n" in printed.out
        for name in ("samples/step_000020.png", "curves.png", "checkpoints/step_00000020.safetensors"):
            assert f"  {folder}/{name}\n" in printed.out
            assert os.path.getsize(os.path.join(folder, name)) > 0


def test_one_seed_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for seed in ("0", "0", "1"):
        assert cli.main([*SHORT, "--seed", seed]) == 0
        found.append(weights_of(capsys.readouterr().out))
    assert found[0] == found[1] != found[2]
    files = [newest(f"runs/{name}").read_bytes() for name in ("digits", "digits-2")]
    assert files[0] == files[1]


def test_options_reach_the_run() -> None:
    options = (
        "--steps 7 --batch 5 --seed 3 --lr 0.01 --out x --sample-every 4 --save-every 3 --on-nonfinite skip"
    )
    assert cli.main(["train", "digits", *options.split(), "--device", "cpu"]) == 0
    config = tomllib.loads(Path("x/config.toml").read_text())
    for key, value in {"steps": 7, "batch": 5, "sample_every": 4, "save_every": 3}.items():
        assert config["training"][key] == value, key
    assert config["training"]["on_nonfinite"] == "skip" and config["data"]["source"] == "digits"
    assert config["seed"] == config["generator"]["seed"] == config["discriminator"]["seed"] == 3
    for who in ("optimizer", "discriminator_optimizer"):
        assert config[who]["lr"] == {"name": "linear", "lr": 0.01, "steps": 7, "begin": 0.5, "end": 0.0}
    assert sorted(os.listdir("x/samples")) == [f"step_00000{step}.png" for step in (0, 4, 7)]
    # The last three, and the best if that is the fourth.
    assert {path.name for path in Path("x/checkpoints").iterdir()} >= {
        f"step_0000000{k}.safetensors" for k in (3, 6, 7)
    }


def test_the_configuration_of_a_run_repeats_it(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    again = []
    for what in (run, f"{run}/config.toml"):
        assert cli.main(["train", what]) == 0
        printed = capsys.readouterr().out
        again.append(weights_of(printed))
        assert "run folder runs/digits" in printed
    assert (
        newest(run).read_bytes() == newest("runs/digits").read_bytes() == newest("runs/digits-2").read_bytes()
    )
    assert again[0] == again[1]
    first, second = (Path(folder, "config.toml").read_text() for folder in (run, "runs/digits"))
    assert first == second


@pytest.mark.slow
def test_any_setting_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["update=extragradient", "optimizer.b1 = 0.9", 'penalty=[{name="r2",weight=0.2}]', "pack=2"]
    assert cli.main(["train", "--steps", "2", *(text for each in given for text in ("--set", each))]) == 0
    config = tomllib.loads(Path("runs/digits/config.toml").read_text())
    assert (config["update"], config["optimizer"]["b1"], config["pack"]) == ("extragradient", 0.9, 2)
    assert config["penalty"] == [{"name": "r2", "weight": 0.2}]
    assert config["discriminator"]["shape"] == [8, 8, 2] and config["generator"]["shape"] == [8, 8, 1]
    assert cli.main(["train", "--resume", "runs/digits"]) == 0
    np.save("points.npy", np.random.default_rng(0).normal(size=(300, 3)))
    assert cli.main(["train", "--data", "points.npy", "--steps", "2", "--set", "d_steps=2"]) == 0
    assert tomllib.loads(Path("runs/points/config.toml").read_text())["d_steps"] == 2
    capsys.readouterr()
    for text, message in (
        ("loss", "'loss' is no setting: expected KEY=VALUE"),
        ("a b=1", "'a b=1' is no setting"),
        ("unrol=5", "the configuration has no key 'unrol'; did you mean 'unroll'?"),
        ("unroll=five", "unroll is 'five': expected an integer"),
    ):
        assert cli.main(["train", "--set", text]) == 2
        assert message in capsys.readouterr().err


def test_a_file_of_settings(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("points.npy", np.random.default_rng(0).normal(size=(300, 3)))
    Path("own.toml").write_text(
        """
        preset = "ring"
        ema = "none"
        [generator]
        hidden = [8]
        shape = [3]
        [discriminator]
        hidden = [8]
        shape = [3]
        [training]
        steps = 12
        batch = 16
        [data]
        source = "points.npy"
        """
    )
    assert cli.main(["train", "own.toml", "--steps", "15"]) == 0
    assert (
        "own: 300 samples, 15 steps of batch 16, seed 0, on cpu; run folder runs/own\n"
        in capsys.readouterr().out
    )
    config = tomllib.loads(Path("runs/own/config.toml").read_text())
    assert config["ema"] == config["generator"]["output"] == "none"
    assert config["loss"] == "relativistic" and config["generator"]["latent"] == 2
    assert config["data"]["source"] == os.path.abspath("points.npy") and config["data"]["shape"] == [300, 3]
    assert config["optimizer"]["lr"]["steps"] == 15


def test_data_of_ones_own_gives_the_networks_their_shape(capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    np.save("colours.npy", generator.integers(0, 256, (30, 6, 5, 3), np.uint8))
    np.save("points.npy", generator.normal(size=(30, 2)))
    short = ["--steps", "2", "--batch", "4"]
    assert cli.main(["train", "--data", "colours.npy", *short]) == 0
    assert "images: 30 samples" in capsys.readouterr().out
    assert cli.main(["train", "mnist", "--data", "colours.npy", *short]) == 0
    assert cli.main(["train", "--data", "points.npy", *short]) == 0
    assert "points: 30 samples" in capsys.readouterr().out
    for name, shape in {"images": [6, 5, 3], "mnist": [6, 5, 3], "points": [2]}.items():
        config = tomllib.loads(Path("runs", name, "config.toml").read_text())
        assert config["generator"]["shape"] == config["discriminator"]["shape"] == shape
        assert (config["generator"]["output"] == "none") == (name == "points")


def test_pictures_of_ones_own() -> None:
    os.mkdir("pictures")
    for i in range(12):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 11, 3), np.uint8)).save(
            f"pictures/{i}.png"
        )
    options = ["--data", "pictures", "--size", "6", "--channels", "1", "--steps", "2", "--out", "run"]
    assert cli.main(["train", *options]) == 0
    config = tomllib.loads(Path("run/config.toml").read_text())
    assert (config["data"]["size"], config["data"]["channels"]) == (6, 1)
    assert config["data"]["shape"] == [12, 6, 6, 1] and config["generator"]["shape"] == [6, 6, 1]
    assert cli.main(["train", "--resume", "run"]) == 0


def test_where_data_sets_are_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "mnist"]) == 3
    assert "minigan data fetch mnist" in one_line(capsys) and os.listdir() == []
    here = mg.data.find("mnist", Path(__file__).parents[1] / "../shared/data")
    if here is None:
        pytest.skip("the files of MNIST are not beside the repository")
    assert cli.main(["train", "mnist", "--data-dir", here, "--steps", "2", "--out", "run"]) == 0
    assert "mnist: 60,000 samples" in capsys.readouterr().out
    assert tomllib.loads(Path("run/config.toml").read_text())["data"]["data_dir"] == os.path.abspath(here)
    assert cli.main(["train", "--resume", "run", "--data-dir", os.path.dirname(here)]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["train", "mnst"],
            2,
            "preset 'mnst' does not exist; there are digits, mnist, fashion, dcgan, resnet",
        ),
        (["train", "mine.toml"], 2, "mine.toml: there is no such file"),
        (["train", "."], 2, "config.toml: there is no such file"),
        (["train", "images"], 2, "images has no data of its own: give it with --data"),
        (["train", "--data", "nowhere"], 3, "nowhere"),
        (["train", "--data", "a\nb\x1b[31m\udcff.npy"], 3, "a\\nb\\x1b[31m\\udcff.npy"),
        (["train", "digits", "--size", "8"], 2, "digits: size and channels are for a folder of pictures"),
        (["train", "--steps", "0"], 2, "--steps"),
        (["train", "--steps", "ten"], 2, "--steps"),
        (["train", "--save-every", "0"], 2, "--save-every"),
        (["train", "--colour", "red"], 2, "--colour"),
        (["train", "--seed", "-1"], 2, "--seed"),
        (["train", "--seed", str(10**30)], 2, "'seed' is an integer of 100 bits"),
        (["train", "--lr", "nan"], 2, "lr is nan"),
        (["train", "--lr", "-1"], 2, "lr is -1"),
        (
            ["train", "--on-nonfinite", "pray"],
            2,
            "on_nonfinite 'pray' does not exist; there are stop, skip, rollback",
        ),
        (["train", "--device", "cuda"], 7, "device 'cuda'"),
        (["train", "--resume", "nowhere"], 2, "--resume nowhere: there is no such folder"),
        (["train", "--resume", "."], 2, "config.toml: there is no such file"),
        (["train", "digits", "--resume", "."], 2, "has its own settings and folder: leave out digits"),
        (["train", "--resume", ".", "--out", "x"], 2, "has its own settings and folder: leave out --out"),
        (["trane"], 2, "trane"),
        (["sample", "nowhere"], 4, "nowhere: No such file"),
        (["sample", "nowhere", "--out", "a.jpg"], 2, "--out a.jpg: expected a name that ends in .png"),
        (["sample", "nowhere", "--out", "no/a.png"], 2, "--out no/a.png: there is no folder no"),
        (["sample", "nowhere", "-n", "0"], 2, "-n"),
        (["sample", "."], 4, "checkpoint"),
        (["sample"], 2, "Missing argument"),
        (["inspect", "nowhere"], 4, "nowhere: No such file"),
        (["inspect", "."], 4, "checkpoint"),
        (["data", "fetch", "digits"], 2, "digits: nothing to download"),
        (["data", "fetch", "mnst", "--data-dir", "x"], 2, "mnst: nothing to download"),
    ],
    ids=lambda x: ascii(" ".join(x)) if isinstance(x, list) else "",
)
def test_wrong_usage(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == code
    assert message in one_line(capsys)
    assert os.listdir() == []


def test_wrong_settings_leave_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    for lines, code, message in (
        ("[optimizer]\nlrate = 1", 2, "own.toml: [optimizer] has no key 'lrate'; did you mean 'lr'?"),
        (
            "[training]\nfirst_step = 30",
            2,
            "own: a run that began at step 30 is not repeated from its settings alone",
        ),
        ('[data]\nsha256 = "abc"', 3, "digits: is not the data of these settings, which name its SHA-256"),
        (
            "[generator]\nshape = [9, 9, 1]\n[discriminator]\nshape = [9, 9, 1]",
            3,
            "(8, 8, 1) each, but the networks",
        ),
        (
            "[generator]\nshape = [9, 9, 1]",
            2,
            "the generator makes samples of (9, 9, 1), the discriminator takes",
        ),
    ):
        Path("own.toml").write_text(f'preset = "digits"\n{lines}\n')
        assert cli.main(["train", "own.toml"]) == code
        assert message in capsys.readouterr().err
        assert not os.path.exists("runs") or os.listdir("runs") == []


def test_a_folder_in_use_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes").mkdir()
    Path("notes/mine").touch()
    for options in ([], ["--resume", "auto"]):
        assert cli.main([*SHORT, "--out", "notes", *options]) == 2
        assert "not empty" in capsys.readouterr().err
        assert [name for name in os.listdir("notes") if name[0] != "."] == ["mine"]


def test_divergence_is_exit_code_5(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.toml").write_text('preset = "digits"\noptimizer = {name = "SGD", lr = 1e30}\n')
    assert cli.main(["train", "own.toml", "--steps", "50", "--out", "run"]) == 5
    assert "diverged" in capsys.readouterr().err.splitlines()[-1]
    assert cli.main(["inspect", "run"]) == 0


# Resuming


def test_resumed_runs_end_as_others_do(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", run, "--out", "part", "--save-every", "5"]) == 0
    whole = weights_of(capsys.readouterr().out)
    for path in Path("part/checkpoints").iterdir():
        if state.read_about(path)["step"] > 10:
            path.unlink()
    assert cli.main(["train", "--resume", "part"]) == 0
    printed = capsys.readouterr().out
    assert weights_of(printed) == whole and "trained 10 steps" in printed
    assert cli.main(["train", "--resume", "part"]) == 0
    printed = capsys.readouterr().out
    assert weights_of(printed) == whole and "the run was finished before, at step 20\n" in printed


def test_resume_auto_starts_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    command = [*SHORT, "--save-every", "10", "--resume", "auto"]
    assert cli.main(command) == 0
    first = capsys.readouterr().out
    assert "run folder runs/digits\n" in first and "trained 20 steps" in first
    newest("runs/digits").unlink()
    assert cli.main(command) == 0
    second = capsys.readouterr().out
    assert "trained 10 steps" in second and weights_of(first) == weights_of(second)
    assert cli.main([*command, "--out", "other"]) == 0
    assert sorted(os.listdir()) == ["other", "runs"] and os.listdir("runs") == ["digits"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", ""],
        ["train", "--resume", ""],
        ["train", "--out", ""],
        ["train", "--data", ""],
        ["sample", ""],
        ["inspect", ""],
    ],
)
def test_empty_texts_are_mistakes(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert one_line(capsys).endswith(" is empty\n")
    assert os.listdir() == []


def test_data_that_cannot_be_drawn_leaves_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("first.npy", np.random.default_rng(0).random((9, 3, 8, 8)))
    assert cli.main(["train", "--data", "first.npy", "--steps", "2"]) == 3
    assert "expected 1 or 3 channels, which come last; use np.moveaxis(images, 1, -1)" in one_line(capsys)
    assert os.listdir() == ["first.npy"]


def test_help_without_arguments_is_help_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == cli.main(["data"]) == 2
    assert capsys.readouterr().err.count("minigan:") == 0


def test_samples_go_to_a_file_or_one_line_says_why(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkdir("d.png")
    os.mkfifo("p.png")
    for out, message in (
        ("d.png", "d.png: exists and is not a file"),
        ("p.png", "p.png: exists and is not a file"),
        ("/proc/x.png", "/proc/x.png: No such file"),
    ):
        assert cli.main(["sample", run, "--out", out]) == 1
        assert message in one_line(capsys)
    assert cli.main(["sample", run, "-n", "100000", "--out", "a.png"]) == 3
    assert "more than a picture of" in one_line(capsys)
    assert cli.main(["sample", run, "-n", "20", "--interpolate", "--out", "a.npz"]) == 0
    with np.load("a.npz") as file:
        assert len(file["samples"]) == 24  # whole rows


def test_a_run_is_not_resumed_with_other_settings(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {
        path: path.read_bytes() for path in Path(run).rglob("*") if path.suffix in (".toml", ".safetensors")
    }
    for options, code, message in (
        (["--lr", "0.5"], 4, "optimizer.lr.lr"),
        (["--batch", "8"], 4, "training.batch"),
        (["--seed", "9"], 4, "seed"),
        (["--steps", "30"], 4, "optimizer.lr.steps"),
        (["--data", "ring"], 2, "ring holds points, but digits makes images: use the preset points"),
    ):
        assert cli.main(["train", "--resume", run, *options]) == code
        assert message in capsys.readouterr().err
    assert all(path.read_bytes() == data for path, data in before.items())


# minigan sample


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


def test_walks_between_latents(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", run, "--interpolate", "-n", "30", "--seed", "2", "--out", "a.npz"]) == 0
    assert capsys.readouterr().out == "32 samples in a.npz\n"
    with np.load("a.npz") as file:
        walks = file["samples"].reshape(4, 8, -1)
    assert cli.main(["sample", run, "-n", "2", "--seed", "2", "--out", "b.npz"]) == 0
    with np.load("b.npz") as file:
        assert np.allclose(walks[0, [0, -1]], file["samples"].reshape(2, -1), atol=1e-6)
    far = np.abs(walks[:, -1] - walks[:, 0]).max()
    assert 0 < np.abs(np.diff(walks, axis=1)).max() < 0.7 * far
    assert cli.main(["sample", run, "--interpolate", "-n", "16", "--out", "a.png"]) == 0
    width, height = Image.open("a.png").size
    assert width > 3.5 * height  # two rows of eight


def test_points_are_plotted(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("points.npy", np.random.default_rng(0).normal(size=(90, 2)))
    assert cli.main(["train", "--data", "points.npy", "--steps", "2", "--batch", "8", "--out", "run"]) == 0
    assert cli.main(["sample", "run", "-n", "50", "--out", "a.png"]) == 0
    assert min(Image.open("a.png").size) > 400
    assert cli.main(["sample", "run", "-n", "50", "--out", "a.npz"]) == 0
    with np.load("a.npz") as file:
        assert file["samples"].shape == (50, 2)


@pytest.mark.parametrize("name", ["a.png", "a.npz"])
def test_an_output_that_cannot_be_written_leaves_the_older_one(
    name: str, run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_text("older")

    def full(*arguments: Any, **settings: Any) -> None:
        raise OSError(28, "No space left on device", name)

    monkeypatch.setattr(os, "replace", full)
    assert cli.main(["sample", run, "--out", name]) == 1
    assert f"{name}: No space left on device" in one_line(capsys)
    assert Path(name).read_text() == "older" and os.listdir() == [name]


def test_damaged_weights(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = newest(run).read_bytes()
    Path("short.safetensors").write_bytes(data[:-1])
    for command in ("sample", "inspect"):
        assert cli.main([command, "short.safetensors"]) == 4
        assert "short.safetensors: " in one_line(capsys)


# minigan inspect


def test_inspect_shows_what_a_run_is(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("matplotlib", "matplotlib.figure", "PIL.Image"):
        monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["inspect", run]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{newest(run)}: step 20\n")
    assert "Generator(latent=100, shape=(8, 8, 1), bounds=(0.0, 1.0))  # 37,696 parameters\n" in out
    assert "Discriminator(shape=(8, 8, 1))  # 24,961 parameters\n" in out
    for line in ('loss = "non_saturating"', "optimizer.lr.steps = 20", "generator.hidden = [128, 128]"):
        assert f"\n{line}\n" in out
    assert f'\nmade with.numpy = "{np.__version__}"\n' in out
    assert "loss of D" in out and "step                10 to 20\n" in out
    assert cli.main(["inspect", str(newest(run))]) == 0
    assert "loss of D" not in capsys.readouterr().out


def test_inspect_says_that_it_fell_back(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", run, "--out", "copy"]) == 0
    capsys.readouterr()
    path = newest("copy")
    path.write_bytes(path.read_bytes()[:-1])
    with open("copy/events.jsonl", "w") as events:
        events.writelines(
            json.dumps({"step": k, "event": "x", "message": f"event {k}\x1b[2J"}) + "\n" for k in range(12)
        )
    assert cli.main(["inspect", "copy"]) == 0
    printed = capsys.readouterr()
    assert str(path) in printed.err and printed.err.startswith("minigan: note: ")
    assert printed.out.startswith("copy/checkpoints/step_00000010.safetensors: step 10\n")
    assert "12 events, the last 10:\nstep 2: event 2\\x1b[2J\n" in printed.out


class Own(mg.nn.Module):
    """A generator of one's own."""

    latent, shape = 2, (8, 8, 1)

    def __init__(self) -> None:
        self.bias = mg.tensor([0.5] * 64)

    def __call__(self, x: mg.Tensor, *, train: bool = False, random: Any = None) -> mg.Tensor:
        return (x.sum(axis=1, keepdims=True) + self.bias).reshape(-1, 8, 8, 1)


def test_inspect_shows_networks_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    mg.GAN(Own(), mg.models.mlp_discriminator((8, 8, 1), (4,))).save("own.safetensors")
    assert cli.main(["inspect", "own.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "generator  # 64 parameters\n" in out and 'generator.repr = "Own()' in out


def test_inspect_believes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    generator = {"model": "mlp_generator", "hidden": [10**9, 10**9]}
    for config, code in (
        ({"generator": generator, "discriminator": 3, "a\nb\x1b[2J": "\x1b[2J"}, 0),
        ({"seed": 10**30}, 4),
        ({"a": json.loads("[" * 300 + "]" * 300)}, 4),
    ):
        state.write(
            "a.safetensors", {"generator.x": np.zeros(3), "step": np.array(0)}, {"config": config, "step": 0}
        )
        assert cli.main(["inspect", "a.safetensors"]) == code
        printed = capsys.readouterr()
        assert ("generator  # 3 parameters\n" in printed.out) == (code == 0)
        assert "\x1b" not in printed.out and printed.err.count("\n") == (code != 0)


# minigan data


def test_data_sets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    os.makedirs("sets/mnist")
    Path("sets/mnist/train-images-idx3-ubyte.gz").touch()
    assert cli.main(["data", "list", "--data-dir", "sets"]) == 0
    out = capsys.readouterr().out
    for name, known in mg.data.SETS.items():
        assert re.search(rf"^{name} .*{re.escape(known.about)}$", out, re.MULTILINE), name
    assert "sets/mnist\n" in out and "not found: minigan data fetch fashion\n" in out


def fake_fetch(name: str, folder: Any = None, mirrors: Any = None, progress: Any = None) -> str:
    assert (name, folder) == ("mnist", os.path.join("sets", "mnist"))
    for done in (0, 500, 1000):
        progress("images.gz", done, 1000)
    return str(folder)


def test_fetch_shows_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mg.data, "fetch", fake_fetch)
    assert cli.main(["data", "fetch", "mnist", "--data-dir", "sets"]) == 0
    assert capsys.readouterr().out == "images.gz: 1,000 bytes\nmnist is in sets/mnist\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert cli.main(["data", "fetch", "mnist", "--data-dir", "sets"]) == 0
    out = capsys.readouterr().out
    assert "images.gz" in out and "1.0/1.0 kB" in out and out.endswith("mnist is in sets/mnist\n")


def test_fetch_says_why_it_cannot(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = mg.data.SETS["mnist"]._replace(mirrors=("http://127.0.0.1:9/",))
    monkeypatch.setitem(mg.data.SETS, "mnist", known)
    assert cli.main(["data", "fetch", "mnist", "--data-dir", "sets"]) == 3
    assert "127.0.0.1" in one_line(capsys)
    assert os.listdir("sets/mnist") == []


# All of them


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
        (OSError(28, "No space", "a\nb"), 1),
        (OSError(28, "No space", b"a\nb"), 1),
        (MemoryError("a\nb"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, BaseException) else None,
)
def test_every_family_has_its_exit_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: str, raw: bool, device: str) -> None:
        raise error

    monkeypatch.setattr(look, "sampler", fail)
    assert cli.main(["sample", "x"]) == code
    line = one_line(capsys)
    assert ("a b" in line or code == 130) and "Traceback" not in line
    assert cli.main(["sample", "x", "--debug"]) == code
    assert ("Traceback" in capsys.readouterr().err) == (code != 130)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"minigan {mg.__version__}\n"
    for arguments in (["--help"], ["train", "--help"], ["sample", "-h"], ["inspect", "-h"], ["data"], []):
        cli.main(arguments)
        assert "Usage" in capsys.readouterr().out
    cli.main(["--help"])
    assert "--install-completion" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("minigan t", "train"),
        ("minigan train m", "mnist"),
        ("minigan train --on-nonfinite r", "rollback"),
        ("minigan train --device cu", "cuda"),
        ("minigan data fetch f", "fashion"),
    ],
)
def test_the_shell_completes(
    words: str, found: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_MINIGAN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert cli.main([]) == 0
    assert capsys.readouterr().out.split() == [found]


def test_handlers_are_left_alone() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    cli.main([*SHORT, "--out", "run"])
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_packages_it_says_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert __main__.main() == 1
    assert 'pip install "minigan[cli]"' in one_line(capsys)


@pytest.mark.parametrize("missing", ["PIL.Image", "tomli_w"])
def test_without_what_a_run_needs_there_is_no_folder(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert cli.main(SHORT) == 1
    assert 'pip install "minigan[cli]"' in one_line(capsys)
    assert os.listdir() == []


def shell(command: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "MINIGAN": " ".join(UNDRAWN)}
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
    assert newest("runs/digits").name == "step_00000020.safetensors"


def test_closed_streams() -> None:
    done = shell(f"$MINIGAN {' '.join(SHORT)} >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = shell("$MINIGAN sample runs/digits --out a.jpg >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_names_of_files_need_not_be_texts(capsys: pytest.CaptureFixture[str]) -> None:
    folder, out, picture = (os.fsdecode(name) for name in (b"caf\xe9", b"r\xe9", b"s\xe9.png"))
    os.mkdir(folder)
    np.save("images.npy", np.random.default_rng(0).integers(0, 256, (20, 4, 4), np.uint8))
    os.rename("images.npy", f"{folder}/images.npy")
    assert cli.main(["train", "--data", f"{folder}/images.npy", "--steps", "3", "--out", out]) == 0
    assert "caf\\\\udce9" in Path(out, "config.toml").read_text()
    assert cli.main(["train", "--resume", out, "--data", f"{folder}/images.npy"]) == 0
    assert "the run was finished before" in capsys.readouterr().out
    assert cli.main(["sample", out, "--out", picture]) == 0 and os.path.getsize(picture) > 0


def test_without_a_home() -> None:
    done = shell("env -u HOME -u XDG_CACHE_HOME HOME=/dev/null $MINIGAN data list 2>&1 | grep -c 'not found'")
    assert done.stdout == "2\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_and_it_goes_on_from_there(number: signal.Signals, capsys: Any) -> None:
    process = subprocess.Popen(
        [*UNDRAWN, "train", "--steps", "1000000", "--out", "my run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = Path("my run/metrics.jsonl")
    deadline = time.monotonic() + 100
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    last = re.fullmatch(
        rf"minigan: stopped by {number.name} after step ([\d,]+); it goes on with: minigan train --resume 'my run'",
        printed.splitlines()[-1],
    )
    assert last and "Traceback" not in printed
    assert state.read_about(newest("my run"))["step"] == int(last[1].replace(",", "")) > 0


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
    assert re.search(r"D \d\.\d{3}  G \d\.\d{3}  D\(x\) 0\.\d\d  D\(G\(z\)\) 0\.\d\d  [\d,.]+ steps/s", plain)
    assert "0:00 left" in plain and "curves.png" in plain


def test_a_dumb_terminal_shows_lines() -> None:
    shown = on_a_terminal([*UNDRAWN, *SHORT], TERM="dumb")
    assert "\x1b" not in shown and "step     20/20" in shown


def test_notes_are_one_line(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def warn(*arguments: Any, **settings: Any) -> Any:
        warnings.warn("kernels are slow", RuntimeWarning, stacklevel=1)
        return np.zeros((8, 8), np.uint8)

    monkeypatch.setattr(look, "image_grid", warn)
    assert cli.main(["sample", run, "--out", "a.png"]) == 0
    assert capsys.readouterr().err == "minigan: note: kernels are slow\n"
