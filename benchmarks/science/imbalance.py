"""Rare classes: what balanced sampling, importance weights and class labels do for them."""

import functools
import glob
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

import minigan as mg
from benchmarks.science.figures import ERRORS, interval, markdown
from minigan import metrics, presets, train
from minigan.backend import Array
from minigan.errors import DataError
from minigan.ops.random import Stream

ABOUT = """Imbalanced data. The ring of eight Gaussians with weights that fall by a factor rho from the first to the
last, trained plainly, with balanced batches, and with balanced batches and importance weights: half a minute to two
minutes a run. MNIST with a long tail of rho = 100, and chest X-rays of which a quarter show healthy children
(PneumoniaMNIST), trained plainly and with balanced batches, without and with class labels: a minute or two a run. By
class: its share among the samples over that in the data, and precision, recall and coverage in the features of a
classifier of all the data, which also names the samples. Data that is not at hand is left out."""

RHOS = (1, 10, 100)
REMEDIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "balanced": {"sampling": "balanced"},
    "balanced, weights": {"sampling": "balanced", "importance_weights": True},
    "conditional": {},
    "conditional, balanced": {"sampling": "balanced"},
}
OF_RING = ("plain", "balanced", "balanced, weights")
OF_IMAGES = ("plain", "balanced", "conditional", "conditional, balanced")
LONG = 100.0  # the rho of MNIST's tail
NAMES = {"mnist": "MNIST with a long tail, rho = 100", "pneumonia": "PneumoniaMNIST"}
CLASSES = {"mnist": [str(c) for c in range(10)], "pneumonia": ["normal", "pneumonia"]}
SAMPLES, OF_CLASS, K = 50_000, 200, 5


class Images(NamedTuple):
    """A data set with a held-out part, both with labels."""

    images: Array
    labels: Array
    held_out: Array
    held_out_labels: Array


@functools.cache
def images(study: str) -> Images | None:
    """The whole data of a study, if it is at hand."""
    if study == "mnist":
        folder = mg.data.find("mnist")
        paths = [] if folder is None else glob.glob(os.path.join(folder, "t10k-images-idx3-ubyte*"))
        if not paths:
            return None
        parts = [mg.data.read("mnist"), mg.data.read(paths[0])]
        return Images(*(np.asarray(x) for part in parts for x in part[1:]))
    places = (os.path.join(root, "pneumoniamnist*") for root in mg.data.sets.roots())
    found = [path for place in places for path in (*glob.glob(place + ".npz"), *glob.glob(place + "/*.npz"))]
    if not found:
        return None
    with np.load(found[0]) as file:
        arrays = {name: file[name] for name in file.files}
    return Images(
        *(
            arrays[f"{part}_{what}"][..., None] if what == "images" else arrays[f"{part}_{what}"].reshape(-1)
            for part in ("train", "test")
            for what in ("images", "labels")
        )
    )


@functools.cache
def classifier(study: str, steps: int) -> metrics.Classifier:
    """One of all the data of a study, and so of the rare classes too, drawn as often as the others."""
    data = _data(study)
    return metrics.classifier(data.images, data.labels, steps=steps, balanced=True)


def _data(study: str) -> Images:
    found = images(study)
    if found is None:
        raise DataError(f"{study}: its files are in none of {', '.join(mg.data.sets.roots())}")
    return found


def cases(seeds: int, quick: bool) -> list[dict[str, Any]]:
    """One table of settings for each run."""
    rings: list[dict[str, Any]] = [
        {"study": "ring", "rho": rho, "remedy": remedy} for rho in RHOS for remedy in OF_RING
    ]
    others: list[dict[str, Any]] = [
        {"study": each, "remedy": remedy} | ({"rho": LONG} if each == "mnist" else {})
        for each in NAMES
        if images(each)
        for remedy in OF_IMAGES
    ]
    chosen = [*rings[-len(OF_RING) :], *others] if quick else [*rings, *others]
    # All else that decides about a result.
    ring = {"steps": 50 if quick else 8_000, "samples": 1000 if quick else SAMPLES}
    image = {
        **ring,
        "samples": 500 if quick else SAMPLES,
        "of_class": OF_CLASS,
        "k": K,
        "judge": 50 if quick else 1500,
    }
    return [
        {
            **case,
            **(ring if case["study"] == "ring" else image),
            "settings": REMEDIES[case["remedy"]],
            "seed": seed,
        }
        for seed in range(1 if quick else seeds)
        for case in chosen
    ]


def run(case: dict[str, Any], quick: bool) -> dict[str, Any]:
    """Train, and measure: numbers by name."""
    return _ring(case) if case["study"] == "ring" else _images(case)


def _trained(
    config: dict[str, Any], samples: Array, labels: Array, settings: dict[str, Any]
) -> tuple[mg.GAN, float]:
    gan = train.build(config)
    known = labels if "sampling" in settings or config["generator"]["classes"] is not None else None
    begun = time.perf_counter()
    gan.fit(samples, known, **{key: config["training"][key] for key in ("steps", "batch")}, **settings)
    return gan, time.perf_counter() - begun


def _ring(case: dict[str, Any]) -> dict[str, Any]:
    seed, weights = case["seed"], mg.data.long_tail(8, case["rho"])
    mixture = mg.data.ring(weights=weights)
    points, modes = mixture.sample(100_000, Stream(seed, "ring"))
    config = presets.config("ring", training={"steps": case["steps"]}, seed=seed)
    gan, seconds = _trained(config, points, modes, case["settings"])
    made = gan.sample(case["samples"], seed=seed)
    found, whole = metrics.mode_report(made, mixture), metrics.mode_coverage(made, mixture)
    return {
        "seconds": seconds,
        "high_quality": whole.high_quality,
        "modes": whole.modes,
        "to_weights": found.total_variation,
        "to_uniform": float(abs(found.sample_share - 1 / 8).sum() / 2),
        "least_ratio": float(found.share_ratio.min()),
        "largest_ratio": float(found.share_ratio.max()),
        **_finite("ratio", found.share_ratio),
        **_finite("high_quality", found.high_quality),
        **_finite("high_quality_ratio", found.high_quality_ratio),
    }


def _images(case: dict[str, Any]) -> dict[str, Any]:
    study, remedy, seed = case["study"], case["remedy"], case["seed"]
    data, judge = _data(study), classifier(study, case["judge"])
    classes, kept = len(CLASSES[study]), np.arange(len(data.labels))
    if study == "mnist":
        kept = mg.data.long_tailed(data.labels, case["rho"], Stream(seed, "tail"))
    samples, labels = data.images[kept], data.labels[kept].astype(np.int64)
    config = presets.config(
        "images",
        shape=samples.shape[1:],
        seed=seed,
        classes=classes if remedy.startswith("conditional") else None,
        training={"steps": case["steps"]},
    )
    gan, seconds = _trained(config, samples, labels, case["settings"])
    count = case["samples"]
    shares = np.bincount(labels, minlength=classes) / len(labels)
    found: dict[str, Any] = {"seconds": seconds} | _finite("data_share", shares)
    if config["generator"]["classes"] is None:
        made = gan.sample(count, seed=seed)
        named = judge.labels(made)
        found |= _finite("ratio", np.bincount(named, minlength=classes) / count / shares)
    else:
        named = np.arange(case["of_class"] * classes) % classes
        made = gan.sample(len(named), seed=seed, labels=named)
        found |= _finite(
            "hit", np.array([(judge.labels(made)[named == c] == c).mean() for c in range(classes)])
        )
    # Of each class as many samples, as far as there are, because recall rises with their number.
    some = np.concatenate([np.flatnonzero(named == c)[: case["of_class"]] for c in range(classes)])
    real = data.held_out_labels.astype(np.int64)
    table = metrics.class_report(data.held_out, real, made[some], named[some], case["k"], features=judge)
    enough = [int((named == c).sum()) >= case["of_class"] for c in table.labels]
    for name in ("precision", "recall", "coverage"):
        found |= _finite(name, np.where(enough, getattr(table, name), np.nan))
    right = judge.labels(data.held_out) == real
    return found | _finite("accuracy", np.array([right[real == c].mean() for c in range(classes)]))


def _finite(name: str, values: Array) -> dict[str, float]:
    """By class; what is not known is left out."""
    return {f"{name}_{c}": float(x) for c, x in enumerate(values) if np.isfinite(x)}


# Tables


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: of each number the mean over seeds, with its standard error."""
    parts = [_ring_table([row for row in rows if row["study"] == "ring"])]
    for study, name in NAMES.items():
        of_study = [row for row in rows if row["study"] == study]
        parts += [f"{name}\n\n{_image_table(of_study, CLASSES[study])}"] if of_study else []
    return "\n\n".join([*(part for part in parts if part), f"{ERRORS[0].upper()}{ERRORS[1:]}."])


def _groups(rows: list[dict[str, Any]], *keys: str) -> Iterable[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    """Rows that differ in their seed only."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups.items()


def _cell(rows: list[dict[str, Any]], name: str, form: str = ".2f") -> str:
    return interval((row[name] for row in rows if name in row), form)


def _ring_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        [
            f"{rho:g}",
            remedy,
            str(len(group)),
            _cell(group, "high_quality", ".1%"),
            _cell(group, "high_quality_7", ".1%"),
            _cell(group, "ratio_7"),
            f"{_cell(group, 'least_ratio')} / {_cell(group, 'largest_ratio')}",
            _cell(group, "high_quality_ratio_7"),
            _cell(group, "to_weights", ".3f"),
            _cell(group, "to_uniform", ".3f"),
            _cell(group, "seconds", ".0f"),
        ]
        for (rho, remedy), group in _groups(rows, "rho", "remedy")
    ]
    names = ["rho", "sampling", "runs", "HQ", "HQ of the rarest mode", "share ratio of the rarest"]
    names += ["least / largest of the ratios", "ratio of the rarest, HQ alone", "TV to w", "TV to 1/8", "s"]
    return markdown([names, *lines]) if lines else ""


def _image_table(rows: list[dict[str, Any]], classes: Sequence[str]) -> str:
    measures = {
        "share of the data": "data_share",
        "accuracy of the classifier": "accuracy",
    }
    lines = [
        ["", title, *(_cell(rows[:1], f"{name}_{c}", ".3f") for c in range(len(classes)))]
        for title, name in measures.items()
    ]
    by_remedy = {
        "share ratio": "ratio",
        "of the class asked for": "hit",
        "precision": "precision",
        "recall": "recall",
        "coverage": "coverage",
    }
    for (remedy,), group in _groups(rows, "remedy"):
        for title, name in by_remedy.items():
            cells = [_cell(group, f"{name}_{c}") for c in range(len(classes))]
            if set(cells) != {"–"}:
                lines.append([remedy, title, *cells])
    return markdown([["sampling", "measure", *classes], *lines])
