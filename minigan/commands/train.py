"""`minigan train`: from the settings of a preset, a file or a run, changed by options, to a run folder."""

import contextlib
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from minigan import checkpoint, data, folder, presets, state
from minigan.commands.options import (
    DataDir,
    Debug,
    Device,
    among,
    choice,
    fail,
    not_empty,
    option,
    usable,
    without_none,
)
from minigan.data.sampler import SAMPLINGS
from minigan.errors import CheckpointError, ConfigError, DataError
from minigan.guard import POLICIES
from minigan.monitor import ANSWERS
from minigan.report import say
from minigan.train import build, data_digest


def train(
    preset: Annotated[
        str | None,
        typer.Argument(
            metavar="PRESET|RUN.TOML",
            help=f"{', '.join(presets.PRESETS)}, or a file of settings. Default: digits, or images with --data.",
            autocompletion=among(presets.PRESETS),
        ),
    ] = None,
    source: Annotated[
        str | None, option("A .npy, .npz or IDX file, a folder of PNGs, or a data set.", "--data")
    ] = None,
    data_dir: DataDir = None,
    size: Annotated[int | None, option("Height and width to give to PNGs.", least=1)] = None,
    channels: Annotated[int | None, option("To give to PNGs: 1 for grey, 3 for colours.")] = None,
    steps: Annotated[int | None, option("Steps of both players.", least=1)] = None,
    batch: Annotated[int | None, option("Samples in a step.", least=1)] = None,
    seed: Annotated[
        int | None, option("Of all random numbers; the same seed, the same run.", least=0)
    ] = None,
    lr: Annotated[float | None, option("Learning rate of both players at the start.")] = None,
    given: Annotated[
        list[str] | None,
        option(
            "Any setting of config.toml, such as loss=hinge, unroll=5 or optimizer.b1=0.9.",
            "--set",
            metavar="KEY=VALUE",
        ),
    ] = None,
    sampling: Annotated[
        str | None, choice("How batches are drawn; balanced: every class equally often.", SAMPLINGS[:2])
    ] = None,
    importance_weights: Annotated[
        bool,
        option(
            "With balanced sampling, weigh the loss so that rare classes stay rare.", "--importance-weights"
        ),
    ] = False,
    conditional: Annotated[
        bool, option("Learn the classes too, so that samples can be of one.", "--conditional")
    ] = False,
    out: Annotated[
        str | None, option("New folder of the run. Default: runs/PRESET, or runs/PRESET-2 and so on.")
    ] = None,
    resume: Annotated[
        str | None,
        option("Go on with a run; auto: with the one in --out, if there is one.", metavar="RUN|auto"),
    ] = None,
    device: Device = "auto",
    sample_every: Annotated[int | None, option("Steps between two pictures.", least=1)] = None,
    save_every: Annotated[int | None, option("Steps between two checkpoints.", least=1)] = None,
    on_nonfinite: Annotated[str | None, choice("What follows a NaN or an infinity.", POLICIES)] = None,
    monitor_every: Annotated[
        int | None, option("Steps between two looks for a collapse; 0: none.", least=0)
    ] = None,
    on_collapse: Annotated[str | None, choice("What follows a collapse.", ANSWERS)] = None,
    debug: Debug = False,
) -> int:
    """Train a GAN. Pictures, curves, metrics and weights go to a run folder; what is not given is as in the preset."""
    not_empty(PRESET=preset, data=source, data_dir=data_dir, out=out, resume=resume, device=device)
    device = usable(device)
    name, table = _settings(preset, out, resume, source)
    table = presets.assigned(table, given or ())
    plan: dict[str, Any] = {"steps": steps, "batch": batch, "on_nonfinite": on_nonfinite}
    plan |= {"sample_every": sample_every, "save_every": save_every, "sampling": sampling}
    plan |= {"importance_weights": importance_weights or None}
    plan |= {"monitor_every": monitor_every, "on_collapse": on_collapse}
    where = without_none({"source": source, "data_dir": data_dir, "size": size, "channels": channels})
    changes: dict[str, Any] = {"training": without_none(plan), "data": where, "seed": seed, "lr": lr}
    config = presets.adjusted(table, **changes)
    # As given: settings hold texts, and a path need not be one.
    found = _read(name, {key: config["data"].get(key) for key in presets.SOURCE} | where)
    if name == "images" and not resume and found.samples.ndim == 2:
        name, table = "points", presets.assigned(presets.table("points"), given or ())
    classes = _classes(found) if conditional else None
    config = presets.adjusted(table, **changes, shape=found.samples.shape[1:], classes=classes)
    makes_points = config["generator"].get("output", "") is None and len(config["generator"]["shape"]) == 1
    if makes_points != (found.samples.ndim == 2):
        held, made = ("images", "points") if makes_points else ("points", "images")
        raise ConfigError(f"{found.name} holds {held}, but {name} makes {made}: use the preset {held}")
    balanced = config["training"]["sampling"] == "balanced"
    labels = found.labels if balanced or config["generator"]["classes"] is not None else None
    if not resume:
        _check_repeated(name, config, found._replace(labels=labels))
    gan, training = build(config, device=device), config["training"]
    folder.needed()  # before a folder is made
    with _run_folder(name, out, resume) as path:
        before = _step(path) if resume else None
        say(
            f"{name}: {len(found.samples):,} samples, {training['steps']:,} steps of batch {training['batch']},"
            f" seed {config['seed']}, on {device}; run folder {path}"
        )
        try:
            run = gan.fit(
                found.samples,
                labels,
                **{key: value for key, value in training.items() if key != "first_step"},
                out=path,
                resume=bool(resume),
                progress=True,
                source=_absolute({key: config["data"].get(key) for key in presets.SOURCE}),
            )
        except (KeyboardInterrupt, SystemExit) as stop:
            signal, code = ("SIGINT", 130) if isinstance(stop, KeyboardInterrupt) else ("SIGTERM", 143)
            hint = f"; it goes on with: minigan train --resume {shlex.quote(path)}"
            saved = _step(path) is not None
            return fail(f"stopped by {signal} after step {gan.game.steps:,}{hint if saved else ''}", code)
    if before == gan.game.steps:
        say(f"the run was finished before, at step {before:,}")
    else:
        say(f"trained {gan.game.steps - (before or 0):,} steps in {run.seconds:.1f} s")
    for file in (f"samples/step_{gan.game.steps:06}.png", "curves.png", "events.jsonl", "report.html"):
        if os.path.exists(each := os.path.join(path, file)):
            say(f"  {re.split('[/.]', file)[0]:8} {each}")
    say(f"  weights  {state.candidates(path, lambda note: None)[0][1]}")
    kinds = ("generator.", "discriminator.", "ema.")
    weights = {key: x for key, x in gan.game.state().items() if key.startswith(kinds)}
    say(f"  SHA-256  {checkpoint.digest(weights)} (of all parameters)")
    say(f"More samples: minigan sample {shlex.quote(path)} -n 64 --seed 1 --out more.png")
    return 0


def _settings(
    preset: str | None, out: str | None, resume: str | None, source: str | None
) -> tuple[str, dict[str, Any]]:
    """A name for the run, and its configuration before the options change it."""
    if resume and resume != "auto":
        if preset is not None or out is not None:
            raise ConfigError(
                f"--resume {resume} has its own settings and folder: leave out {preset or '--out'}"
            )
        if not os.path.isdir(resume):
            raise ConfigError(f"--resume {resume}: there is no such folder; it takes that of a run")
        return os.path.basename(os.path.abspath(resume)), presets.read(resume)
    name = preset or ("images" if source else "digits")
    if name in presets.PRESETS or not (name.endswith(".toml") or os.path.exists(name)):
        return name, presets.table(name)
    path = os.path.abspath(name)
    path = os.path.dirname(path) if os.path.basename(path) == folder.CONFIG else path.removesuffix(".toml")
    return os.path.basename(path), presets.read(name)


def _read(name: str, where: Mapping[str, Any]) -> data.DataSet:
    if not where["source"]:
        raise ConfigError(f"{name} has no data of its own: give it with --data")
    return data.read(**where)


def _classes(found: data.DataSet) -> int:
    if found.labels is None:
        raise DataError(f"{found.name}: has no labels: --conditional needs those of its classes")
    classes = int(found.labels.max()) + 1
    if classes > len(found.labels):
        raise DataError(f"{found.name}: has labels up to {classes - 1} for {len(found.labels)} samples")
    return classes


def _absolute(where: Mapping[str, Any]) -> dict[str, Any]:
    """Where data is, for the settings of a run that may be resumed elsewhere."""
    paths = {key: where[key] for key in ("source", "data_dir") if where[key] not in (None, *data.SETS)}
    return without_none({**where, **{key: os.path.abspath(path) for key, path in paths.items()}})


def _check_repeated(name: str, config: Mapping[str, Any], found: data.DataSet) -> None:
    """Whether settings that are those of a run, if so, give the same run again."""
    if step := config["training"]["first_step"]:
        raise ConfigError(
            f"{name}: a run that began at step {step:,} is not repeated from its settings alone"
        )
    if config["data"].get("sha256") not in (None, data_digest(found.samples, found.labels)):
        raise DataError(f"{found.name}: is not the data of these settings, which name its SHA-256")


@contextlib.contextmanager
def _run_folder(name: str, out: str | None, resume: str | None) -> Iterator[str]:
    """The folder for the run; a new one is made, and goes again if nothing has been written to it."""
    if out or resume:
        yield out or (os.path.join("runs", name) if resume == "auto" else str(resume))
        return
    path = _new_folder(name)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(path)


def _new_folder(name: str) -> str:
    """Make runs/NAME, or the first of runs/NAME-2, runs/NAME-3 and so on that is not there."""
    number = 1
    while True:
        path = os.path.join("runs", name if number == 1 else f"{name}-{number}")
        try:
            os.makedirs(path)
            return path
        except FileExistsError:
            number += 1
        except OSError as error:
            raise ConfigError(f"{path}: cannot be made a run folder: {error.strerror}") from None


def _step(path: str) -> int | None:
    """The step of the newest checkpoint of a run; `None` if there is none."""
    with contextlib.suppress(CheckpointError):
        found = state.candidates(path, lambda note: None)
        return found[0][0]["step"] if found else None
    return None
