"""Stacked MNIST, a thousand modes, against a discriminator that is a quarter of the usual: for a part of the training.

Metz and others 2017 ("Unrolled GAN"), §3.3.1, as Lin and others 2018 ("PacGAN") ran it for their Table 3, and their
code: images of three random digits as three channels, in (-1, 1). G: z ~ N(0, I_256) → 4x4x64 → 7x7x32 → 14x14x16 →
28x28x8, batch norm and ReLU after each, 3x3 convolutions, and one more to 3 channels, tanh. D: 3x3 convolutions of
stride 2 to 2, 4 and 8 channels, batch norm and leaky ReLU of slope 0.3 after each, dense. Adam with b1 = 0.5 and
b2 = 0.99, at 1e-4 for G and 2e-4 for D, which see the same generated batch; batches of 128, and 500,000 of them, of
which here is a part. 25,600 samples, each channel read by a classifier of digits; divergence from the uniform
distribution in nats. Other than theirs, the images are 128,000 that are drawn once, and samples are drawn with batch
norm's running statistics.
"""

from typing import Any

import numpy as np

import minigan as mg
from benchmarks.science.figures import ERRORS, interval, markdown
from benchmarks.science.mnist import mnist
from benchmarks.science.planar import trained
from minigan.backend import Array
from minigan.nn import Activation, BatchNorm, Conv, ConvTranspose, Dense, Flatten, Module, Reshape
from minigan.nn.init import normal
from minigan.ops import Stream

NEEDS = ("mnist",)
STEPS, OF, BATCH = 5_000, 500_000, 128
IMAGES, SAMPLES, CLASSES = 128_000, 25_600, 1000

# Methods besides the protocol's own. Values of JSON: `loss`, `penalty` (the weight of R1 and R2), `lr` of G and D,
# `norm` of the discriminator, and `game`, further arguments of `mg.GAN`.
METHODS: dict[str, dict[str, Any]] = {
    "GAN": {"loss": "non_saturating", "lr": [1e-4, 2e-4], "norm": True},
    "packs of 2": {"loss": "non_saturating", "lr": [1e-4, 2e-4], "norm": True, "game": {"pack": 2}},
    "unrolled, 5 steps": {"loss": "non_saturating", "lr": [1e-4, 2e-4], "norm": True, "game": {"unroll": 5}},
    "RpGAN + R1 + R2, lr 1e-3, no batch norm in D": {
        "loss": "relativistic",
        "lr": [1e-3, 1e-3],
        "norm": False,
        "penalty": 0.1,
    },
}

# Modes of 1,000, and reverse KL.
PUBLISHED = {
    "DCGAN": ("30.6", "5.99"),
    "Unrolled GAN, 1 step": ("65.4", "5.91"),
    "Unrolled GAN, 5 steps": ("236.4", "4.67"),
    "Unrolled GAN, 10 steps": ("327.2", "4.66"),
    "PacDCGAN2": ("484.5", "2.61"),
    "PacDCGAN3": ("601.3", "2.00"),
    "PacDCGAN4": ("667.4", "1.81"),
}


def networks(seed: int, norm: bool, pack: int = 1) -> tuple[mg.models.Generator, mg.models.Discriminator]:
    """Those of the protocol; without `norm` no batch norm in the discriminator, which is one of packs."""
    of_g, of_d = Stream(seed, "generator/init"), Stream(seed, "discriminator/init")
    dense = Dense(256, 1024, init=normal, stream=of_g.child("dense"))
    modules: list[Module] = [dense, Reshape((4, 4, 64)), BatchNorm(64), Activation("relu")]
    for k, (inputs, outputs) in enumerate(((64, 32), (32, 16), (16, 8))):
        up = ConvTranspose(
            inputs,
            outputs,
            3,
            stride=2,
            padding=1,
            output_padding=min(k, 1),  # 4 → 7 → 14 → 28
            init=normal,
            stream=of_g.child(f"up{k}"),
        )
        modules += [up, BatchNorm(outputs), Activation("relu")]
    modules += [Conv(8, 3, 3, padding=1, init=normal, stream=of_g.child("last")), Activation("tanh")]
    down: list[Module] = []
    for k, (inputs, outputs) in enumerate(((3 * pack, 2), (2, 4), (4, 8))):
        down.append(Conv(inputs, outputs, 3, stride=2, padding=1, init=normal, stream=of_d.child(f"down{k}")))
        down += [BatchNorm(outputs)] if norm else []
        down.append(Activation("leaky_relu", slope=0.3))
    down += [Flatten(), Dense(128, 1, init=normal, stream=of_d.child("head"))]
    shape = (28, 28, 3)
    return (
        mg.models.Generator(256, shape, *modules, bounds=(-1.0, 1.0)),
        mg.models.Discriminator((28, 28, 3 * pack), *down),
    )


def found(judge: mg.metrics.Classifier, images: Array) -> dict[str, float]:
    """Of the thousand modes those that a sample shows, and the divergence from equal shares."""
    digits = np.stack([judge.labels(images[..., k : k + 1]) for k in range(3)], axis=1)
    coverage = mg.metrics.label_coverage(mg.data.spelled(digits), CLASSES)
    return {"modes": coverage.modes, "reverse_kl": coverage.reverse_kl}


def cases(seeds: int, quick: bool) -> list[dict[str, Any]]:
    """Every method; all with one seed before any with the next."""
    return [
        {
            "method": name,
            "seed": seed,
            "steps": 2 if quick else STEPS,
            "images": 256 if quick else IMAGES,
            "samples": 64 if quick else SAMPLES,
            "batch": 16 if quick else BATCH,
            "judge": 2 if quick else 1500,
            "settings": settings,
        }
        for seed in range(1 if quick else seeds)
        for name, settings in list(METHODS.items())[
            : 2 if quick else None
        ]  # unrolled ones compile for a minute
    ]


def run(case: dict[str, Any], quick: bool) -> dict[str, float]:
    """Train, and read 25,600 samples of the last weights, and of the averaged ones."""
    settings, seed, count = case["settings"], case["seed"], case["samples"]
    (digits, labels), test = mnist()[0][1:], mnist()[1]
    judge = mg.metrics.classifier(digits, labels, steps=case["judge"])
    accuracy = float((judge.labels(test.samples) == test.labels).mean())
    images, _ = mg.data.stacked(digits, labels, case["images"], Stream(seed, "stacked"))
    of_g, of_d = (mg.optim.Adam(rate, b1=0.5, b2=0.99) for rate in settings["lr"])
    weight = settings.get("penalty")
    gan = mg.GAN(
        *networks(seed, settings["norm"], settings.get("game", {}).get("pack", 1)),
        loss=settings["loss"],
        penalty=[] if weight is None else [mg.penalties.r1(weight), mg.penalties.r2(weight)],
        optimizer=of_g,
        discriminator_optimizer=of_d,
        latent="normal",
        share_fake=True,
        seed=seed,
        **settings.get("game", {}),
    )
    time = trained(gan, images, case["steps"], case["batch"])
    of_last = found(judge, gan.sample(count, seed=seed, raw=True))
    of_average = {f"ema_{k}": v for k, v in found(judge, gan.sample(count, seed=seed)).items()}
    return of_last | of_average | {"classifier_accuracy": accuracy} | time


def table(rows: list[dict[str, Any]]) -> str:
    """One table, with the published figures above ours."""
    lines: list[list[object]] = [
        ["", "modes", "reverse KL", "EMA: modes", "EMA: reverse KL", "ms a step", "seeds"]
    ]
    lines += [[f"{k} (PacGAN, Table 3; {OF:,} updates)", *v, "", "", "", "50"] for k, v in PUBLISHED.items()]
    for name in dict.fromkeys(row["method"] for row in rows):
        of = [row for row in rows if row["method"] == name]
        forms = {
            "modes": ".1f",
            "reverse_kl": ".2f",
            "ema_modes": ".1f",
            "ema_reverse_kl": ".2f",
            "ms": ".1f",
        }
        steps = of[0]["steps"]
        title = f"{name}, {steps:,} updates: {100 * steps / OF:g} % of the protocol"
        lines.append([title, *(interval((row[k] for row in of), form) for k, form in forms.items()), len(of)])
    accuracy = 100 * float(np.mean([row["classifier_accuracy"] for row in rows]))
    return (
        f"{markdown(lines)}\n\n{ERRORS[0].upper()}{ERRORS[1:]}. Of the test digits the classifier reads"
        f" {accuracy:.1f} % rightly; a perfect generator has 1,000 modes and a divergence of 0.02. A part of the"
        " training is not the protocol: modes come and go on the way."
    )


MINUTES = 5  # of a run on one core, at 60 ms a step
ABOUT = (
    "The thousand modes of stacked MNIST against a discriminator of a quarter's size, beside Table 3 of PacGAN (Lin et"
    f" al. 2018), for {STEPS:,} of its {OF:,} updates ({100 * STEPS / OF:g} %). On one core a run takes about"
    f" {MINUTES} minutes, and five seeds about {5 * MINUTES * len(METHODS)} minutes; all updates would be"
    f" {MINUTES * OF / STEPS / 60:.0f} hours a run."
)
