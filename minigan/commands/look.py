"""What there is to see of a run: `minigan sample`, `evaluate`, `spectrum` and `inspect`."""

import json
import os
from typing import Annotated, Any

import numpy as np

from minigan import evaluate, folder, presets, report, settings, spectra, state
from minigan.commands.options import (
    DataDir,
    Debug,
    Device,
    Run,
    choice,
    clean,
    in_a_folder,
    not_empty,
    note,
    option,
    usable,
)
from minigan.errors import CheckpointError, ConfigError
from minigan.files import replacing
from minigan.pictures import image_grid, points_plot, save_png
from minigan.report import say
from minigan.train import sampler

COLUMNS = 8  # of a walk between two latents
LAST = 10  # events that are listed


def sample(
    run: Run,
    n: Annotated[int, option("How many samples.", "-n", least=1)] = 64,
    seed: Annotated[int, option("Of the latents.", least=0)] = 0,
    out: Annotated[
        str,
        option(".png: a grid, or a plot of points; .npz: arrays `samples` and, if conditional, `labels`."),
    ] = "samples.png",
    label: Annotated[
        int | None,
        option("Of which class, for a conditional generator. Default: a row of each.", "--class", least=0),
    ] = None,
    raw: Annotated[bool, option("Use the last weights, not their average.", "--raw")] = False,
    interpolate: Annotated[
        bool, option(f"In rows of {COLUMNS}, each from one latent to another.", "--interpolate")
    ] = False,
    device: Device = "cpu",
    debug: Debug = False,
) -> None:
    """Draw samples from a trained generator: images (N, H, W, C) in [0, 1], or points (N, P)."""
    not_empty(RUN=run, out=out)
    suffix = os.path.splitext(out)[1].lower()
    if suffix not in (".png", ".npz"):
        raise ConfigError(f"--out {out}: expected a name that ends in .png (a picture) or .npz (an array)")
    in_a_folder(out=out)
    source = sampler(run, raw=raw, device=usable(device))
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


def measure(
    run: Run,
    source: Annotated[
        str | None, option("Other data to compare with than the run was trained on.", "--data")
    ] = None,
    data_dir: DataDir = None,
    features: Annotated[
        str | None,
        choice("What samples are compared by. Default: classifier, with labels.", evaluate.FEATURES),
    ] = None,
    n: Annotated[int, option("How many samples.", "-n", least=evaluate.LEAST)] = 5000,
    seed: Annotated[int, option("Of the latents, and of all that is drawn at random.", least=0)] = 0,
    raw: Annotated[bool, option("Use the last weights, not their average.", "--raw")] = False,
    json_file: Annotated[str | None, option("Write the table as JSON.", "--json")] = None,
    picture: Annotated[
        str | None, option("Write a .png of the samples most like copies, beside the nearest of the data.")
    ] = None,
    resamples: Annotated[int, option("Random halves, for the intervals.", least=2)] = 20,
    device: Device = "cpu",
    debug: Debug = False,
) -> None:
    """Measure how good the samples of a run are: distances to the data, precision and recall, classes, copies."""
    not_empty(RUN=run, data=source, data_dir=data_dir, json=json_file, picture=picture)
    options: dict[str, Any] = {"features": features, "n": n, "seed": seed, "raw": raw, "resamples": resamples}
    options["device"] = usable(device)
    with report.stages() as progress:
        lines = evaluate.evaluate(
            run, source, data_dir, json_file=json_file, picture=picture, progress=progress, **options
        )
    for line in lines:
        say(line)


def spectrum(
    run: Run,
    count: Annotated[
        int, option("How many eigenvalues of each kind, where there are too many for all.", least=1)
    ] = 6,
    out: Annotated[str, option("A picture of the eigenvalues.")] = "spectrum.png",
    file: Annotated[str | None, option("A file for all numbers.", "--json")] = None,
    data_dir: DataDir = None,
    device: Device = "cpu",
    debug: Debug = False,
) -> None:
    """Show where a game is going at each checkpoint: eigenvalues of simultaneous gradient descent, and ranks."""
    not_empty(RUN=run, out=out, json=file, data_dir=data_dir)
    in_a_folder(out=out, json=file)
    found = list(spectra.along(run, data_dir=data_dir, device=usable(device), note=note, count=count))
    for line in spectra.lines(found):
        say(line)
    if file:
        spectra.write_json(file, found)
    spectra.draw(out, found)
    say(f"eigenvalues in {' and '.join(filter(None, (out, file)))}")


def inspect(run: Run, debug: Debug = False) -> None:
    """Show what a run or a checkpoint is: networks, settings, curves, events."""
    not_empty(RUN=run)
    found = state.newest(run, note)
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
        say(clean(line))
