"""The Parzen log-likelihood of MNIST, by the protocol of the article that introduced GANs.

Goodfellow and others 2014, §5 and Table 1, and their code: training on the first 50,000 images in [0, 1]; 10,000
samples as centres of Gaussians whose width, of ten from 0.1 to 1, is the best for the first 1,000 of the other 10,000
images; the mean over the 10,000 test images, and its standard error.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

import minigan as mg
from benchmarks.science.figures import ERRORS, interval, markdown
from benchmarks.science.mnist import mnist
from minigan.backend import Array
from minigan.metrics import parzen_log_likelihood, parzen_sigma
from minigan.nn import Dense, Dropout, Flatten, Maxout, Module
from minigan.ops import Stream

NEEDS = ("mnist",)
TRAIN, VALIDATION, CENTRES, BATCH = 50_000, 1_000, 10_000, 128

# What is trained. Settings are values of JSON, as they identify a run:
#   hidden: of the generator          maxout: outputs of the discriminator's maxout layers, of 5 pieces; or
#   hidden_d: of its dense layers     dropout: of its input and its hidden layers
#   lr, decay_from: the rate, and after which part of the run it falls linearly to 0          r1: its weight
NETWORKS: dict[str, dict[str, Any]] = {
    "128-128, NS + R1": {
        "hidden": [128, 128],
        "hidden_d": [128, 128],
        "lr": 1e-3,
        "decay_from": 0.3,
        "r1": 1.0,
        "epochs": 30,
    },
    "1200-1200, NS + R1": {
        "hidden": [1200, 1200],
        "maxout": [240, 240],
        "lr": 1e-3,
        "decay_from": 0.3,
        "r1": 1.0,
        "epochs": 30,
    },
}
REFERENCES = ("training images", "k-means, 3 passes")

PUBLISHED = {
    "DBN": "138 ± 2",
    "Stacked CAE": "121 ± 1.6",
    "Deep GSN": "214 ± 1.1",
    "Adversarial nets": "225 ± 2",
}

MINUTES = {
    "128-128, NS + R1": 2,
    "1200-1200, NS + R1": 20,
}  # of a run on one core, with a minute of measuring
ABOUT = (
    "The log-likelihood of MNIST's test images under a Parzen window about generated ones, beside Table 1 of Goodfellow"
    " et al. 2014, for the networks of minigan's article and for a generator of the size of 2014; and about training"
    " images and centroids, to know what the number is worth. On one core a run of these networks takes about"
    f" {' and '.join(map(str, MINUTES.values()))} minutes, and five seeds about {5 * sum(MINUTES.values())} minutes."
)


def networks(settings: Mapping[str, Any], seed: int) -> tuple[mg.models.Generator, mg.models.Discriminator]:
    """A generator of dense layers, and a discriminator of these or of maxout layers with dropout, as in 2014."""
    shape = (28, 28, 1)
    generator = mg.models.mlp_generator(100, settings["hidden"], shape, seed=seed)
    if "maxout" not in settings:
        return generator, mg.models.mlp_discriminator(shape, settings["hidden_d"], seed=seed)
    stream, sizes = Stream(seed, "discriminator/init"), [784, *settings["maxout"]]
    rates = settings.get("dropout")
    modules: list[Module] = [Flatten()]
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        if rates:
            modules.append(Dropout(rates[min(number, 1)]))
        modules.append(Maxout(inputs, outputs, 5, stream=stream.child(f"layer{number}")))
    head = Dense(sizes[-1], 1, stream=stream.child("head"))
    return generator, mg.models.Discriminator(shape, *modules, head)


def cases(seeds: int, quick: bool) -> list[dict[str, Any]]:
    """The reference rows, which need no seeds, and then the networks with one seed after another."""
    protocol = {"train": TRAIN, "validation": VALIDATION, "samples": CENTRES, "batch": BATCH}
    references = [{"centres": name, "seed": 0, **protocol} for name in REFERENCES]
    trained = [
        {"centres": name, "seed": seed, **protocol, "settings": settings | ({"epochs": 1} if quick else {})}
        for seed in range(1 if quick else seeds)
        for name, settings in NETWORKS.items()
    ]
    return [*references, *trained]


def _images(quick: bool) -> tuple[Array, Array, Array]:
    """Those to train on, to choose the width by, and to measure; float32 rows in [0, 1]."""
    train, test = (part.samples for part in mnist())
    parts = (train[:TRAIN], train[TRAIN : TRAIN + VALIDATION], test)
    if quick:
        parts = (parts[0][:256], parts[1][:16], parts[2][:32])
    first, second, third = (x.reshape(len(x), -1) / np.float32(255) for x in parts)
    return first, second, third


def k_means(images: Array, count: int, passes: int, block: int = 1000) -> Array:
    """`count` centroids of rows after so many of Lloyd's passes, from rows drawn at random; empty ones stay."""
    centres = images[Stream(0, "k-means").permutation(len(images))[:count]].astype(np.float32)
    for _ in range(passes):
        lengths = (centres**2).sum(1) / 2
        nearest = np.concatenate(
            [(lengths - images[i : i + block] @ centres.T).argmin(1) for i in range(0, len(images), block)]
        )
        order = np.argsort(nearest, kind="stable")
        known, starts, counts = np.unique(nearest[order], return_index=True, return_counts=True)
        centres[known] = np.add.reduceat(images[order], starts, dtype=np.float64) / counts[:, None]
    return centres


def run(case: dict[str, Any], quick: bool) -> dict[str, float]:
    """Train, if there is anything to train, and measure; for a GAN also by its last weights instead of the average."""
    train, validation, test = _images(quick)
    count = min(CENTRES, len(train))

    def measured(centres: Array, prefix: str = "") -> dict[str, float]:
        sigma = parzen_sigma(centres, validation)
        found = parzen_log_likelihood(centres, test, sigma)
        return {f"{prefix}ll": found.mean, f"{prefix}error": found.error, f"{prefix}sigma": sigma}

    if case["centres"] == REFERENCES[0]:
        return measured(train[:count])
    if case["centres"] == REFERENCES[1]:
        return measured(k_means(train, min(count, len(train) // 2), 3))
    settings, seed = case["settings"], case["seed"]
    steps = max(2, settings["epochs"] * len(train) // BATCH)
    adam = mg.optim.Adam(mg.optim.linear(settings["lr"], steps, settings["decay_from"]), b1=0.5)
    gan = mg.GAN(
        *networks(settings, seed), penalty=mg.penalties.r1(settings["r1"]), optimizer=adam, seed=seed
    )
    images = train.reshape(-1, 28, 28, 1)
    seconds = gan.fit(images, steps=steps, batch=BATCH).seconds
    of_last = measured(gan.sample(count, seed=seed, raw=True).reshape(count, -1), "raw_")
    of_average = measured(gan.sample(count, seed=seed).reshape(count, -1))
    return of_average | of_last | {"training": seconds, "ms": 1000 * seconds / steps}


def table(rows: list[dict[str, Any]]) -> str:
    """One table, with the published figures above ours."""
    lines: list[list[object]] = [
        ["centres", "nats", "σ", "last weights: nats", "training, s", "ms a step", "seeds"]
    ]
    lines += [
        [f"{name} (Goodfellow et al. 2014, Table 1)", nats, *[""] * 5] for name, nats in PUBLISHED.items()
    ]
    for name in dict.fromkeys(row["centres"] for row in rows):
        of = [row for row in rows if row["centres"] == name]
        widths = ", ".join(sorted({f"{row['sigma']:.3f}" for row in of}))
        if "ms" not in of[0]:
            lines.append([name, f"{of[0]['ll']:.1f} ± {of[0]['error']:.1f}", widths, "", "", "", ""])
            continue
        numbers = [
            interval((row[key] for row in of), form) for key, form in (("ll", ".1f"), ("raw_ll", ".1f"))
        ]
        times = [
            interval((row[key] for row in of), form) for key, form in (("training", ".0f"), ("ms", ".2f"))
        ]
        lines.append([name, numbers[0], widths, numbers[1], *times, len(of)])
    return (
        f"{markdown(lines)}\n\nOf a GAN: {ERRORS}, by averaged weights; each value is itself within about 1.5 nats, the"
        " standard error over the test images, which is what the other rows give. A k-means has a higher likelihood"
        " than real images (Theis et al. 2015, §4.2): the number compares methods of one kind, and not much more."
    )
