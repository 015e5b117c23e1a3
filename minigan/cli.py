"""The command line: `minigan train`, `sample`, `evaluate`, `spectrum`, `inspect` and `data`."""

import contextlib
import json
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import typer
from typer.core import TyperGroup

from minigan import (
    __version__,
    backend,
    checkpoint,
    data,
    evaluate,
    folder,
    presets,
    report,
    settings,
    spectra,
    state,
)
from minigan.data.sampler import SAMPLINGS
from minigan.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DeviceError,
    MiniganError,
    NonFiniteError,
)
from minigan.files import replacing
from minigan.guard import POLICIES
from minigan.pictures import image_grid, points_plot, save_png
from minigan.report import say
from minigan.train import build, data_digest, sampler

EXITS = ((ConfigError, 2), (DataError, 3), (CheckpointError, 4), (NonFiniteError, 5), (DeviceError, 7))
COLUMNS = 8  # of a walk between two latents
LAST = 10  # events that are listed


class Commands(TyperGroup):
    """Commands that Ctrl-C ends with a line of our own."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; gives its exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            return _fail("stopped by SIGINT", 130)


HELP = "Train generative adversarial networks, and draw samples from them."
app = typer.Typer(
    cls=Commands, help=HELP, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}
)
sets = typer.Typer(help="Data sets with a name: list them, download their files.", no_args_is_help=True)
app.add_typer(sets, name="data")


def _among(names: Iterable[str]) -> Callable[[str], list[str]]:
    """For the shell: the names that begin as what is typed."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def _option(help: str, *names: str, least: int | None = None, **more: Any) -> Any:
    return typer.Option(*names, help=help, min=least, **more)


def _choice(help: str, names: Sequence[str]) -> Any:
    return typer.Option(help=help, metavar="|".join(names), autocompletion=_among(names))


# `main` looks for it itself, because errors before a command begins obey it too; here it is for the help.
Debug = Annotated[bool, typer.Option("--debug", help="On an error, print the traceback.")]
DataDir = Annotated[str | None, typer.Option(help="Where the files of data sets with a name are.")]
Run = Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder, or a checkpoint file.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"minigan {__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def _options(
    version: Annotated[
        bool, _option("Print the version.", "--version", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def train(
    preset: Annotated[
        str | None,
        typer.Argument(
            metavar="PRESET|RUN.TOML",
            help=f"{', '.join(presets.PRESETS)}, or a file of settings. Default: digits, or images with --data.",
            autocompletion=_among(presets.PRESETS),
        ),
    ] = None,
    source: Annotated[
        str | None, _option("A .npy, .npz or IDX file, a folder of PNGs, or a data set.", "--data")
    ] = None,
    data_dir: DataDir = None,
    size: Annotated[int | None, _option("Height and width to give to PNGs.", least=1)] = None,
    channels: Annotated[int | None, _option("To give to PNGs: 1 for grey, 3 for colours.")] = None,
    steps: Annotated[int | None, _option("Steps of both players.", least=1)] = None,
    batch: Annotated[int | None, _option("Samples in a step.", least=1)] = None,
    seed: Annotated[
        int | None, _option("Of all random numbers; the same seed, the same run.", least=0)
    ] = None,
    lr: Annotated[float | None, _option("Learning rate of both players at the start.")] = None,
    given: Annotated[
        list[str] | None,
        _option(
            "Any setting of config.toml, such as loss=hinge, unroll=5 or optimizer.b1=0.9.",
            "--set",
            metavar="KEY=VALUE",
        ),
    ] = None,
    sampling: Annotated[
        str | None, _choice("How batches are drawn; balanced: every class equally often.", SAMPLINGS[:2])
    ] = None,
    importance_weights: Annotated[
        bool,
        _option(
            "With balanced sampling, weigh the loss so that rare classes stay rare.", "--importance-weights"
        ),
    ] = False,
    conditional: Annotated[
        bool, _option("Learn the classes too, so that samples can be of one.", "--conditional")
    ] = False,
    out: Annotated[
        str | None, _option("New folder of the run. Default: runs/PRESET, or runs/PRESET-2 and so on.")
    ] = None,
    resume: Annotated[
        str | None,
        _option("Go on with a run; auto: with the one in --out, if there is one.", metavar="RUN|auto"),
    ] = None,
    device: Annotated[str, _choice("Where to compute.", ("auto", "cpu", "cuda"))] = "auto",
    sample_every: Annotated[int | None, _option("Steps between two pictures.", least=1)] = None,
    save_every: Annotated[int | None, _option("Steps between two checkpoints.", least=1)] = None,
    on_nonfinite: Annotated[str | None, _choice("What follows a NaN or an infinity.", POLICIES)] = None,
    debug: Debug = False,
) -> int:
    """Train a GAN. Pictures, curves, metrics and weights go to a run folder; what is not given is as in the preset."""
    backend.device_name(None if device == "auto" else device)
    _not_empty(PRESET=preset, data=source, data_dir=data_dir, out=out, resume=resume)
    name, table = _settings(preset, out, resume, source)
    table = presets.assigned(table, given or ())
    plan: dict[str, Any] = {"steps": steps, "batch": batch, "on_nonfinite": on_nonfinite}
    plan |= {"sample_every": sample_every, "save_every": save_every, "sampling": sampling}
    plan |= {"importance_weights": importance_weights or None}
    where = _given({"source": source, "data_dir": data_dir, "size": size, "channels": channels})
    changes: dict[str, Any] = {"training": _given(plan), "data": where, "seed": seed, "lr": lr}
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
    gan, training = build(config), config["training"]
    folder.needed()  # before a folder is made
    with _run_folder(name, out, resume) as path:
        before = _step(path) if resume else None
        say(
            f"{name}: {len(found.samples):,} samples, {training['steps']:,} steps of batch {training['batch']},"
            f" seed {config['seed']}; run folder {path}"
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
            return _fail(f"stopped by {signal} after step {gan.game.steps:,}{hint if saved else ''}", code)
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


def _not_empty(**texts: str | None) -> None:
    """An empty text is a mistake, such as of a variable of the shell that is not set."""
    for name, text in texts.items():
        if text == "":
            option = name if name.isupper() else f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} is empty")


def _in_a_folder(**files: str | None) -> None:
    for option, name in files.items():
        if name and not os.path.isdir(os.path.dirname(name) or "."):
            raise ConfigError(f"--{option} {name}: there is no folder {os.path.dirname(name)}")


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


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
    return _given({**where, **{key: os.path.abspath(path) for key, path in paths.items()}})


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


@app.command()
def sample(
    run: Run,
    n: Annotated[int, _option("How many samples.", "-n", least=1)] = 64,
    seed: Annotated[int, _option("Of the latents.", least=0)] = 0,
    out: Annotated[
        str,
        _option(".png: a grid, or a plot of points; .npz: arrays `samples` and, if conditional, `labels`."),
    ] = "samples.png",
    label: Annotated[
        int | None,
        _option("Of which class, for a conditional generator. Default: a row of each.", "--class", least=0),
    ] = None,
    raw: Annotated[bool, _option("Use the last weights, not their average.", "--raw")] = False,
    interpolate: Annotated[
        bool, _option(f"In rows of {COLUMNS}, each from one latent to another.", "--interpolate")
    ] = False,
    debug: Debug = False,
) -> None:
    """Draw samples from a trained generator: images (N, H, W, C) in [0, 1], or points (N, P)."""
    _not_empty(RUN=run, out=out)
    suffix = os.path.splitext(out)[1].lower()
    if suffix not in (".png", ".npz"):
        raise ConfigError(f"--out {out}: expected a name that ends in .png (a picture) or .npz (an array)")
    _in_a_folder(out=out)
    source = sampler(run, raw=raw)
    if interpolate:
        rows = -(-n // COLUMNS)
        samples, labels = source.interpolate(rows, COLUMNS, seed, label), source.labels(rows, label)
        labels = None if labels is None else labels.repeat(COLUMNS)
        columns: int | None = COLUMNS
    else:
        count, labels, columns = source.rows(n, label)
        samples = source.sample(count, seed, labels)
    if suffix == ".npz":
        with replacing(out) as file:
            arrays: dict[str, Any] = {"samples": samples} | ({} if labels is None else {"labels": labels})
            np.savez(file, **arrays)
    elif source.points:
        points_plot(out, samples[:0], samples)
    else:
        save_png(out, image_grid(samples, columns))
    say(f"{len(samples):,} samples in {out}")


@app.command("evaluate")
def measure(
    run: Run,
    source: Annotated[
        str | None, _option("Other data to compare with than the run was trained on.", "--data")
    ] = None,
    data_dir: DataDir = None,
    features: Annotated[
        str | None,
        _choice("What samples are compared by. Default: classifier, with labels.", evaluate.FEATURES),
    ] = None,
    n: Annotated[int, _option("How many samples.", "-n", least=evaluate.LEAST)] = 5000,
    seed: Annotated[int, _option("Of the latents, and of all that is drawn at random.", least=0)] = 0,
    raw: Annotated[bool, _option("Use the last weights, not their average.", "--raw")] = False,
    json_file: Annotated[str | None, _option("Write the table as JSON.", "--json")] = None,
    picture: Annotated[
        str | None, _option("Write a .png of the samples most like copies, beside the nearest of the data.")
    ] = None,
    resamples: Annotated[int, _option("Random halves, for the intervals.", least=2)] = 20,
    debug: Debug = False,
) -> None:
    """Measure how good the samples of a run are: distances to the data, precision and recall, classes, copies."""
    _not_empty(RUN=run, data=source, data_dir=data_dir, json=json_file, picture=picture)
    options: dict[str, Any] = {"features": features, "n": n, "seed": seed, "raw": raw, "resamples": resamples}
    with report.stages() as progress:
        lines = evaluate.evaluate(
            run, source, data_dir, json_file=json_file, picture=picture, progress=progress, **options
        )
    for line in lines:
        say(line)


@app.command()
def spectrum(
    run: Run,
    count: Annotated[
        int, _option("How many eigenvalues of each kind, where there are too many for all.", least=1)
    ] = 6,
    out: Annotated[str, _option("A picture of the eigenvalues.")] = "spectrum.png",
    file: Annotated[str | None, _option("A file for all numbers.", "--json")] = None,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> None:
    """Show where a game is going at each checkpoint: eigenvalues of simultaneous gradient descent, and ranks."""
    _not_empty(RUN=run, out=out, json=file, data_dir=data_dir)
    _in_a_folder(out=out, json=file)
    found = list(spectra.along(run, data_dir=data_dir, note=_note, count=count))
    for line in spectra.lines(found):
        say(line)
    if file:
        spectra.write_json(file, found)
    spectra.draw(out, found)
    say(f"eigenvalues in {' and '.join(filter(None, (out, file)))}")


@app.command()
def inspect(run: Run, debug: Debug = False) -> None:
    """Show what a run or a checkpoint is: networks, settings, curves, events."""
    _not_empty(RUN=run)
    found = state.newest(run, _note)
    if found is None:
        raise CheckpointError(f"{run}: has no checkpoint")
    try:
        config, environment = (settings.plain(found.about.get(key)) for key in ("config", "environment"))
    except ConfigError as error:
        raise CheckpointError(f"{found.path}: {error}") from None
    lines = [f"{found.path}: step {found.about['step']:,}"]
    for who in presets.PLAYERS:
        count = sum(x.size for name, x in found.arrays.items() if name.startswith(f"{who}."))
        try:
            network = repr(settings.build_network(config.get(who), count))
        except ConfigError:  # one of a user's own, whose `repr` is among the settings
            network = f"{who}  # {count:,} parameters"
        lines += ["", *network.splitlines()]
    for table in (config, {"made with": environment}):
        lines += ["", *(f"{name} = {json.dumps(value)}" for name, value in state.flat(table).items())]
    if os.path.isdir(run):
        lines += ["", *report.text_curves(folder.read_lines(os.path.join(run, folder.METRICS)))]
        events = folder.read_lines(os.path.join(run, folder.EVENTS))
        lines += [f"{len(events):,} events, the last {LAST}:"] if len(events) > LAST else []
        lines += [f"step {each['step']:,}: {each.get('message')}" for each in events[-LAST:]]
    for line in lines:
        say(_clean(line))


@sets.command("list")
def list_sets(data_dir: DataDir = None, debug: Debug = False) -> None:
    """List the data sets with a name, and where they are."""
    for name, known in data.SETS.items():
        where = data.find(name, data_dir) if known.files else "needs no files"
        say(f"{name:10} {known.about}\n{'':10} {where or f'not found: minigan data fetch {name}'}")


@sets.command()
def fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="Of the data set.",
            autocompletion=_among([k for k, known in data.SETS.items() if known.files]),
        ),
    ],
    data_dir: Annotated[
        str | None, _option("Where to put its folder. Default: $MINIGAN_DATA, or the user's cache.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Download the files of a data set, and check that they are right."""
    known = data.SETS.get(name)
    place = os.path.join(data_dir, known.folder) if data_dir and known else None
    with report.downloads() as show:
        place = data.fetch(name, place, progress=show)
    say(f"{name} is in {place}")


# Around the commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code: 0, or one for each family of errors."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            return app(given, prog_name="minigan", standalone_mode=False) or 0
    except SystemExit as stop:  # of the shell's completion
        return int(stop.code or 0)
    except Exception as error:
        if "--debug" in given:
            traceback.print_exc()
        # Usage errors of typer, which carries click within itself in some versions, and depends on it in others.
        if hasattr(error, "format_message"):
            if not error.format_message():  # help was asked for, and shown
                return 2
            return _fail(f"{error.format_message().rstrip('.')} (see minigan --help)", 2)
        if isinstance(error, MiniganError):
            return _fail(str(error), next((code for family, code in EXITS if isinstance(error, family)), 1))
        if isinstance(error, OSError) and error.filename is not None:
            return _fail(f"{os.fsdecode(error.filename)}: {error.strerror}", 1)
        return _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1)
    finally:
        _settle()


def _fail(message: str, code: int) -> int:
    say(f"minigan: {_clean(message)}", error=True)
    return code


def _clean(text: str) -> str:
    """The text as one line that does nothing to a terminal; names of files may hold anything."""
    line = " ".join(text.split()) if len(text.splitlines()) > 1 else text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def _note(text: str) -> None:
    _fail(f"note: {text}", 0)


def _show_warning(message: Warning | str, *details: Any) -> None:
    _note(str(message))


def _settle() -> None:
    """Where nobody reads standard output any more, send what is left in its buffer nowhere.

    Python would otherwise report the broken pipe at exit and turn the exit code into 120.
    """
    try:
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
