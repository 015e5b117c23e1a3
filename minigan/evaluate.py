"""How good the samples of a run are: measures with their features and intervals, as a table, JSON and a picture."""

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from minigan import data, metrics, pictures, report, state
from minigan.backend import Array
from minigan.data.mixtures import Mixture
from minigan.data.sampler import as_images, as_labels, as_points
from minigan.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from minigan.extras import needs
from minigan.files import replacing, shown
from minigan.metrics import Space, label
from minigan.ops.random import Stream
from minigan.presets import SOURCE
from minigan.settings import NONE
from minigan.train import data_digest, sampler

FEATURES = ("pixels", "pca", "classifier")
MIXTURES: Mapping[str, Callable[[], Mixture]] = {"ring": data.ring, "grid": data.grid}
LEAST = 20  # samples
NEIGHBOURS = 5  # the k of precision and recall, and the nearest training samples in the picture
DIMS = 50  # of the principal components, where there are as many
COMPARED = 2000  # samples whose nearest training samples are looked for, and as many training samples
ROWS = 10  # of the picture
LISTED = 20  # classes whose shares are told each
LEVEL = 0.95

SHARES = ("precision", "recall", "coverage", "high_quality", "share")  # numbers within [0, 1]

Show = Callable[[str, int, int], object]


class Measure(NamedTuple):
    """One number: its name with its features, the ends of its interval, and what real samples get; `None` without."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    real: float | None = None


class Quality(NamedTuple):
    """What `judge` finds.

    Attributes:
        measures: in the order of the table.
        compared: how many samples of each kind the distances are between.
        accuracy: of the classifier on held-out samples, if there is one.
        closest: the places of the ten samples that are most like copies: whose distance to the nearest training sample
            is the smallest part of that to the fifth.
        copies: the places of their nearest training samples, the nearest first, (10, 5).
    """

    measures: list[Measure]
    compared: int
    accuracy: float | None
    closest: Array
    copies: Array


def judge(
    samples: Any,
    training: Any,
    labels: Any = None,
    *,
    features: str | Space | Callable[[Array], Any] | None = None,
    mixture: Mixture | None = None,
    resamples: int = 20,
    seed: int = 0,
    progress: Show | None = None,
) -> Quality:
    """Compare generated samples with the data they are to be like, by every measure of `minigan.metrics` that applies.

    Args:
        samples: (N, H, W, C) in [0, 1] or points (N, P), at least 20, else `DataError`.
        training: the data, (M, ...) of that kind; min(N, M) random ones are compared with as many samples. Where twice
            as many are there, what the others get in place of the samples is told too.
        labels: of the data, (M,).
        features: "pixels", "pca" (50 components), "classifier", which needs labels, or a space or function of one's
            own; by default the classifier for images with labels. Copies are looked for in pixels always.
        mixture: that the data is of, for its modes.
        resamples: halves for the intervals, see `minigan.metrics.confidence_interval`.
        seed: of all that is drawn at random.
        progress: called with what is worked on, how much of it is done, and how much there is.

    Raises: `DataError` and `ConfigError` for what cannot be compared; `NonFiniteError` for samples with NaN.

    >>> import numpy as np, minigan as mg
    >>> from minigan.evaluate import judge
    >>> points, _ = mg.data.ring().sample(600, mg.ops.Stream(0, "points"))
    >>> found = judge(points[:100], points[100:], mixture=mg.data.ring())
    >>> [measure.name for measure in found.measures][:3]
    ['frechet_distance[points]', 'kernel_distance[points]', 'sliced_wasserstein[points]']
    """
    made = np.asarray(samples)
    known = as_points(training) if made.ndim == 2 else as_images(training)
    if made.ndim < 2 or made.shape[1:] != known.shape[1:] or made.dtype.kind != "f":
        raise DataError(f"samples of {made.dtype} {made.shape} beside data of {known.dtype} {known.shape}")
    named = None if labels is None else as_labels(labels, len(known))
    wrong = len(made) - int(np.isfinite(made).reshape(len(made), -1).all(1).sum())
    if wrong:
        raise NonFiniteError(f"{wrong:,} of {len(made):,} samples have values that are NaN or infinite")
    if made.ndim != 2:
        made = as_images(made)
    count = min(len(made), len(known))
    if count < LEAST:
        raise DataError(f"{len(made)} samples beside {len(known)} of data: expected at least {LEAST} of each")
    show = progress or (lambda text, done, total: None)
    space, classifier = _space(known, named, features, seed, count, show)
    order = Stream(seed, "evaluate/real").permutation(len(known))
    chosen = [np.sort(order[i : i + count]) for i in (0, count)]
    real, ours = space(known[chosen[0]]), space(made[:count])
    other = space(known[chosen[1]]) if len(known) >= 2 * count else None
    found = _distances(space, real, ours, other, resamples, seed, show)
    found += _two_samples(space, real, ours, other, seed)
    if mixture is not None:
        found += _modes(made, mixture, resamples, seed)
    if classifier is not None and named is not None:
        found += _classes(classifier, made, named, resamples, seed)
    show("nearest training samples", 0, 1)
    ratio, closest, copies = _copies(made[:COMPARED], known, seed)
    found.append(
        Measure(label("memorisation_ratio", metrics.points if made.ndim == 2 else metrics.pixels), ratio)
    )
    show("nearest training samples", 1, 1)
    return Quality(found, count, classifier.accuracy if classifier else None, closest, copies)


def _copies(made: Array, known: Array, seed: int) -> tuple[float, Array, Array]:
    """The ratio of memorisation, the places of those most like copies, and of what is nearest to them."""
    scale = np.float32(255 if known.dtype == np.uint8 else 1)
    try:
        near = metrics.memorisation(made * scale, known, NEIGHBOURS, len(made), seed)
    except DataError:  # data that is there twice has no distances to compare with
        return math.nan, np.zeros(0, np.int64), np.zeros((0, NEIGHBOURS), np.int64)
    # A copy is far nearer to one sample than to others; that alone, plain samples such as ones are to many.
    first, last = near.distances[:, 0], np.maximum(near.distances[:, -1], np.finfo(float).tiny)
    closest = np.argsort(first / last, kind="stable")[:ROWS]
    return near.ratio, closest, near.indices[closest]


def _space(
    known: Array,
    labels: Array | None,
    features: str | Space | Callable[[Array], Any] | None,
    seed: int,
    count: int,
    show: Show,
) -> tuple[Space, metrics.Classifier | None]:
    """The feature space, and the classifier if the data has labels that are told apart by one."""
    images = known.ndim == 4
    if isinstance(features, str) and features not in FEATURES:
        raise ConfigError(f"features {features!r} do not exist; there are {', '.join(FEATURES)}")
    if features == "classifier" and labels is None:
        raise DataError("the features of a classifier need data with labels")
    classifier = None
    # Labels that are no classes are nothing to stop for, unless a classifier was asked for.
    are_classes = labels is not None and len(np.unique(labels)) > 1 and int(labels.max()) < len(labels)
    if labels is not None and (features == "classifier" or (images and are_classes)):
        classifier = metrics.classifier(
            known, labels, seed=seed, progress=lambda done, total: show("training a classifier", done, total)
        )
    if features is not None and not isinstance(features, str):
        return metrics.as_space(features), classifier
    if features == "pca":
        size = math.prod(known.shape[1:])
        chosen = np.sort(Stream(seed, "evaluate/pca").permutation(len(known))[:count])
        return metrics.pca(known[chosen], min(DIMS, size, count - 1)), classifier
    if classifier is not None and features != "pixels":
        return classifier, classifier
    return (metrics.pixels if images else metrics.points), classifier


def _distances(
    space: Space, real: Array, ours: Array, other: Array | None, resamples: int, seed: int, show: Show
) -> list[Measure]:
    names = (
        "frechet_distance",
        "kernel_distance",
        "sliced_wasserstein",
        *metrics.Neighbours._fields,
        "vendi_score",
    )

    def between(x: Array, y: Array) -> list[float]:
        return [
            metrics.frechet_distance(x, y),
            metrics.kernel_distance(x, y),
            metrics.sliced_wasserstein(x, y, seed=seed),
            *metrics.precision_recall(x, y, NEIGHBOURS),
            _vendi(y),
        ]

    def of_halves(done: int, total: int) -> None:
        show(f"distances in {space.name}", done, total)

    of_halves(0, resamples)
    found = metrics.confidence_interval(
        between, real, ours, resamples=resamples, level=LEVEL, seed=seed, progress=of_halves
    )
    beside = [None] * (len(names) - 1) + [_vendi(real)] if other is None else between(real, other)
    return [
        _bounded(label(name, space), *numbers)
        for name, *numbers in zip(names, *(x.tolist() for x in found[:3]), beside, strict=True)
    ]


def _bounded(name: str, value: float, low: float, high: float, real: float | None) -> Measure:
    """With an interval that does not leave the values that there can be; none, where all halves have the same value."""
    if low == high:  # as of a class that no sample has: that is no certainty
        return Measure(name, value, real=real)
    least = -math.inf if name.startswith("kernel_distance") else 0.0
    most = 1.0 if name.startswith(SHARES) else math.inf
    return Measure(name, value, max(low, least), min(high, most), real)


def _vendi(x: Array) -> float:
    """NaN where a sample has no features at all, as black pictures in pixels."""
    try:
        return metrics.vendi_score(x)
    except DataError:
        return math.nan


def _two_samples(space: Space, real: Array, ours: Array, other: Array | None, seed: int) -> list[Measure]:
    found = metrics.two_sample_test(real, ours, seed=seed)
    beside = None if other is None else metrics.two_sample_test(real, other, seed=seed)
    return [
        Measure(label(f"two_sample_{name}", space), getattr(found, name), real=getattr(beside, name, None))
        for name in metrics.TwoSampleTest._fields
    ]


def _modes(made: Array, mixture: Mixture, resamples: int, seed: int) -> list[Measure]:
    whole = metrics.mode_coverage(made, mixture)
    good = metrics.confidence_interval(
        lambda x: metrics.mode_coverage(x, mixture).high_quality,
        made,
        resamples=resamples,
        level=LEVEL,
        seed=seed,
    )
    return [
        Measure("modes[mixture]", whole.modes, real=len(mixture.means)),
        _bounded("high_quality[mixture]", *good[:3], real=1 - math.exp(-4.5)),
        Measure("reverse_kl[mixture]", whole.reverse_kl, real=(len(mixture.means) - 1) / (2 * len(made))),
    ]


def _classes(
    classifier: metrics.Classifier, made: Array, labels: Array, resamples: int, seed: int
) -> list[Measure]:
    """The classes that the classifier finds, beside those that the data has."""
    seen = classifier.labels(made)
    weights = np.bincount(labels, minlength=classifier.classes) / len(labels)
    whole = metrics.label_coverage(seen, weights)
    found = [
        Measure(label("modes", classifier), whole.modes, real=int((weights > 0).sum())),
        Measure(label("reverse_kl", classifier), whole.reverse_kl),
    ]
    if classifier.classes <= LISTED:
        parts = metrics.confidence_interval(
            lambda x: np.bincount(x, minlength=classifier.classes) / len(x),
            seen,
            resamples=resamples,
            level=LEVEL,
            seed=seed,
        )
        found += [
            _bounded(label(f"share_of_class_{k}", classifier), *map(float, numbers))
            for k, *numbers in zip(range(classifier.classes), *parts[:3], weights, strict=True)
        ]
    return found


# The command


def evaluate(
    run: str,
    source: str | None = None,
    data_dir: str | None = None,
    *,
    features: str | None = None,
    n: int = 5000,
    seed: int = 0,
    raw: bool = False,
    resamples: int = 20,
    device: str = "cpu",
    json_file: str | None = None,
    picture: str | None = None,
    progress: Show | None = None,
) -> list[str]:
    """Judge `n` samples of a run folder, or a checkpoint, by the data it was trained on, or `source`; gives the table.

    json_file, picture: where to write the measures, and the samples that are most like copies beside the data nearest
    to them. device: where the samples are drawn; measures are computed on the CPU. Arguments are otherwise those of
    `judge`, `minigan.data.read` and `minigan.train.sampler`, as are errors.

    >>> import minigan as mg
    >>> from minigan import presets
    >>> from minigan.train import build
    >>> build(presets.config("ring")).save("untrained.safetensors")
    >>> print(evaluate("untrained.safetensors", "ring", n=100)[0])
    untrained.safetensors: step 0, averaged weights
    """
    for option, path, end in (("--picture", picture, ".png"), ("--json", json_file, ".json")):
        if path is not None and os.path.splitext(path)[1].lower() != end:
            raise ConfigError(f"{option} {path}: expected a name that ends in {end}")
        if path is not None and not os.path.isdir(os.path.dirname(path) or "."):
            raise ConfigError(f"{option} {path}: there is no folder {os.path.dirname(path)}")
    newest = state.newest(run, lambda note: report.say(f"minigan: note: {note}", error=True))
    if newest is None:
        raise CheckpointError(f"{shown(run)}: has no checkpoint")
    draws = sampler(newest.path, raw=raw, device=device)  # the same one, though the run may go on meanwhile
    config = newest.about["config"]
    name, found = _read(config, newest.path, source, data_dir, draws.shape)
    if picture is not None:
        needs("matplotlib.figure", "plot") if draws.points else needs("PIL.Image", "cli")
    labels = None
    if draws.classes is not None and found.labels is not None:  # as often as in the data
        places = Stream(seed, "evaluate/labels").uniform((n,), dtype=np.float64).numpy() * len(found.labels)
        labels = found.labels[np.minimum(places.astype(np.int64), len(found.labels) - 1)]
    made = draws.sample(n, seed, labels)
    if math.prod(found.samples.shape[1:]) != math.prod(made.shape[1:]):
        raise DataError(
            f"{name}: samples of shape {found.samples.shape[1:]}, unlike the generator's {made.shape[1:]}"
        )
    training = found.samples.reshape(len(found.samples), *made.shape[1:])
    quality = judge(
        made,
        training,
        found.labels,
        features=features,
        mixture=MIXTURES[name]() if name in MIXTURES else None,
        resamples=resamples,
        seed=seed,
        progress=progress,
    )
    facts = {
        "checkpoint": newest.path,
        "step": newest.about["step"],
        "weights": "last" if raw or config.get("ema") in (None, NONE) else "averaged",
        "samples": n,
        "compared": quality.compared,
        "data": name,
        "seed": seed,
        "classifier_accuracy": quality.accuracy,
        "resamples": resamples,
        "level": LEVEL,
    }
    if json_file is not None:
        _write_json(json_file, facts, quality.measures)
    if picture is not None:
        _draw(picture, made, training, quality)
    return table(facts, quality.measures)


def table(facts: Mapping[str, Any], measures: list[Measure]) -> list[str]:
    """The lines that the command prints."""
    accuracy, judged = (
        facts["classifier_accuracy"],
        f"{facts['compared']:,} of them beside as many of {facts['data']}",
    )
    lines = [
        f"{shown(facts['checkpoint'])}: step {facts['step']:,}, {facts['weights']} weights",
        f"{facts['samples']:,} samples, {judged}; seed {facts['seed']}",
    ]
    if accuracy is not None:
        lines.append(f"the classifier finds {100 * accuracy:.4g} % of the classes of held-out samples")
    rows = [("measure", "value", f"{100 * facts['level']:.4g} % interval", "real data")]
    for each in measures:
        between = "" if each.low is None else f"{each.low:.4g} to {each.high:.4g}"
        rows.append(
            (each.name, f"{each.value:.4g}", between, "" if each.real is None else f"{each.real:.4g}")
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return lines + [
        f"{name:{widths[0]}}  {value:>{widths[1]}}  {between:>{widths[2]}}  {real:>{widths[3]}}".rstrip()
        for name, value, between, real in rows
    ]


def _read(
    config: Mapping[str, Any], path: str, source: str | None, data_dir: str | None, shape: tuple[int, ...]
) -> tuple[str, data.DataSet]:
    """A name for the data, and the data: the run's, or that of another source."""
    known = config.get("data")
    where = {key: known.get(key) for key in SOURCE} if isinstance(known, dict) else {}
    kinds = (str, str, int, int)
    if not all(isinstance(x, kind | None) for x, kind in zip(where.values(), kinds, strict=False)):
        raise CheckpointError(f"{shown(path)}: what it says of its data cannot be: {where}")
    if source is not None:
        where = {"source": source}
        if source not in data.SETS and os.path.isdir(source) and len(shape) == 3:
            where |= {"size": shape[0], "channels": shape[2]}
    if data_dir is not None:
        where["data_dir"] = data_dir
    if not where.get("source"):
        raise ConfigError(f"{shown(path)}: does not say where its data is: give it with --data")
    found = data.read(**{key: value for key, value in where.items() if value is not None})
    digest = known.get("sha256") if isinstance(known, dict) else None
    both = ((found.samples, None), (found.samples, found.labels))
    if source is None and digest is not None and digest not in (data_digest(*each) for each in both):
        report.say(
            f"minigan: note: {found.name} is not what the run was trained on: its SHA-256 differs", error=True
        )
    return found.name, found


def _write_json(path: str, facts: Mapping[str, Any], measures: list[Measure]) -> None:
    import json

    def plain(x: Any) -> Any:
        return None if isinstance(x, float) and not math.isfinite(x) else x

    rows = [{key: plain(x) for key, x in each._asdict().items()} for each in measures]
    with replacing(path) as file:
        file.write(json.dumps({**facts, "measures": rows}, indent=1).encode() + b"\n")


def _draw(path: str, made: Array, training: Array, quality: Quality) -> None:
    if made.ndim == 2:
        some = Stream(0, "evaluate/picture").permutation(len(training))[: len(made)]
        pictures.points_plot(path, training[some], made)
    elif not len(quality.closest):
        text = "no picture of the nearest training samples: half of them or more are there twice"
        report.say(f"minigan: note: {text}", error=True)
    else:
        pictures.save_png(path, pictures.beside_nearest(made[quality.closest], training[quality.copies]))
