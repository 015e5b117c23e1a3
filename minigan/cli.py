"""The command line: `minigan train` and `minigan sample`."""

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import typer

from minigan import __version__, checkpoint
from minigan.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DeviceError,
    MiniganError,
    NonFiniteError,
)
from minigan.folder import WEIGHTS, needed
from minigan.pictures import image_grid, save_png
from minigan.report import say
from minigan.train import PRESETS, preset as find_preset, restore

EXITS = ((ConfigError, 2), (DataError, 3), (CheckpointError, 4), (NonFiniteError, 5), (DeviceError, 7))
SIGNALS = (signal.SIGINT, signal.SIGTERM)

app = typer.Typer(
    help="Train generative adversarial networks, and draw samples from them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# `main` looks for it itself, because errors before a command begins obey it too; here it is for the help.
Debug = Annotated[bool, typer.Option("--debug", help="On an error, print the traceback.")]


class Stopped(BaseException):
    """A signal that ends the program; `where` says what it leaves behind."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number, self.where = number, ""


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"minigan {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train generative adversarial networks, and draw samples from them."""


@app.command()
def train(
    preset: Annotated[str, typer.Argument(help=f"One of: {', '.join(PRESETS)}.")] = "digits",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of both players; default: the preset's.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images in a step; default: the preset's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all random numbers; the same seed, the same run.")] = 0,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate at the start; default: the preset's.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="New folder for the run; default: runs/PRESET, or runs/PRESET-2 and so on"),
    ] = None,
    sample_every: Annotated[int, typer.Option(min=1, help="Steps between two pictures.")] = 1000,
    debug: Debug = False,
) -> None:
    """Train a GAN. Its pictures, curves, metrics and weights go to a run folder."""
    chosen = find_preset(preset)
    steps, batch = steps or chosen.steps, batch or chosen.batch
    gan = chosen.gan(steps=steps, lr=chosen.lr if lr is None else lr, seed=seed)
    images = chosen.images()
    needed()  # before a folder is made
    out = out or _new_folder(preset)
    say(f"{preset}: {len(images):,} images, {steps:,} steps of batch {batch}, seed {seed}; run folder {out}")
    try:
        run = gan.fit(
            images, steps=steps, batch=batch, out=out, progress=True, sample_every=sample_every, source=preset
        )
    except Stopped as stop:
        stop.where = f" after step {gan.game.steps:,}; what was written is in {out}"
        raise
    say(f"trained {steps:,} steps in {run.seconds:.1f} s")
    say(f"  samples  {os.path.join(out, 'samples', f'step_{gan.game.steps:06}.png')}")
    if os.path.exists(curves := os.path.join(out, "curves.png")):
        say(f"  curves   {curves}")
    say(f"  weights  {os.path.join(out, WEIGHTS)}")
    weights = {
        k: v for k, v in gan.game.state().items() if k.startswith(("generator.", "discriminator.", "ema."))
    }
    say(f"  SHA-256  {checkpoint.digest(weights)} (of all parameters)")
    say(f"More samples: minigan sample {out} -n 64 --seed 1 --out more.png")


def _new_folder(name: str) -> str:
    """Make runs/NAME, or the first of runs/NAME-2, runs/NAME-3 and so on that is not there."""
    number = 1
    while True:
        folder = os.path.join("runs", name if number == 1 else f"{name}-{number}")
        try:
            os.makedirs(folder)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be made a run folder: {error.strerror}") from None


@app.command()
def sample(
    run: Annotated[str, typer.Argument(help="A run folder, or a checkpoint file.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many samples.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the latents.")] = 0,
    out: Annotated[str, typer.Option(help=".png: a grid; .npz: the array `samples`.")] = "samples.png",
    raw: Annotated[bool, typer.Option("--raw", help="Use the last weights, not their average.")] = False,
    debug: Debug = False,
) -> None:
    """Draw samples from a trained generator: N,H,W,C in [0, 1]."""
    suffix = os.path.splitext(out)[1].lower()
    if suffix not in (".png", ".npz"):
        raise ConfigError(f"--out {out}: expected a name that ends in .png (a grid) or .npz (an array)")
    if not os.path.isdir(os.path.dirname(out) or "."):
        raise ConfigError(f"--out {out}: there is no folder {os.path.dirname(out)}")
    samples = restore(run).sample(n, seed=seed, raw=raw)
    try:
        if suffix == ".png":
            save_png(out, image_grid(samples))
        else:
            with open(
                out, "wb"
            ) as file:  # a file, because savez would add a suffix to a name that ends in .NPZ
                np.savez(file, samples=samples)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror}") from None
    say(f"{n:,} samples in {out}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code: 0, or one for each family of errors."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    before = {}
    if threading.current_thread() is threading.main_thread():  # the only one that may set handlers
        before = {number: signal.signal(number, _stop) for number in SIGNALS}
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            return app(given, prog_name="minigan", standalone_mode=False) or 0
    except Stopped as stop:
        return _fail(f"stopped by {signal.Signals(stop.number).name}{stop.where}", 128 + stop.number)
    except Exception as error:
        if "--debug" in given:
            traceback.print_exc()
        # Usage errors of typer, which carries click within itself in some versions, and depends on it in others.
        if hasattr(error, "format_message"):
            return _fail(f"{error.format_message().rstrip('.')} (see minigan --help)", 2)
        if isinstance(error, MiniganError):
            return _fail(str(error), next((code for family, code in EXITS if isinstance(error, family)), 1))
        return _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _settle()


def _stop(number: int, frame: Any) -> None:
    for each in SIGNALS:  # a second signal ends the program at once
        signal.signal(each, signal.SIG_DFL)
    raise Stopped(number)


def _fail(message: str, code: int) -> int:
    say(f"minigan: {' '.join(message.split())}", error=True)
    return code


def _show_warning(message: Warning | str, *details: Any) -> None:
    _fail(f"note: {message}", 0)


def _settle() -> None:
    """Where nobody reads standard output any more, send what is left in its buffer nowhere.

    Python would otherwise report the broken pipe at exit and turn the exit code into 120.
    """
    try:
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
