"""The ring and the grid with PacGAN's networks, for a stated part of its training.

Protocol A: Lin, Khetan, Fanti and Oh 2018 ("PacGAN"), §4.1 and their code. G: z ~ N(0, I_2) → 4 × 400 → 2, each hidden
layer without bias, with batch norm and ReLU; D: 2 → 3 × 200 → 1, maxout of 5 pieces; weights N(0, 0.02²); Adam at 1e-4
with b1 = 0.8, batches of 100 from 100,000 fixed points, and 400,000 updates of each player, of which here are 8,000.
"""

from typing import Any

import minigan as mg
from benchmarks.science.figures import ERRORS, markdown
from benchmarks.science.planar import HEADING, MIXTURES, NOTES, cells, measured, trained
from minigan.nn import Activation, BatchNorm, Dense, Maxout, Module
from minigan.nn.init import normal
from minigan.ops import Stream

STEPS, OF, BATCH, POINTS = 8_000, 400_000, 100, 100_000
PART = f"{100 * STEPS / OF:g} %"

# By the arguments of `mg.GAN` that choose them.
METHODS: dict[str, dict[str, Any]] = {"GAN": {}, "PacGAN2": {"pack": 2}, "PacGAN4": {"pack": 4}}
MINUTES = 4  # of a run on one core
ABOUT = (
    f"PacGAN's networks and optimiser on the ring and the grid, for {STEPS:,} of its {OF:,} updates ({PART}): not"
    " Protocol A, but what comes of a fiftieth of it, beside Table 1 of PacGAN (Lin et al. 2018). On one core a run"
    f" takes about {MINUTES} minutes, and five seeds about {10 * len(METHODS) * MINUTES} minutes."
)

# Modes, high quality in %, reverse KL.
PUBLISHED = {
    "ring": {
        "GAN": ("6.3 ± 0.5", "98.2 ± 0.2", "0.45 ± 0.09"),
        "ALI": ("6.6 ± 0.3", "97.6 ± 0.4", "0.36 ± 0.04"),
        "PacGAN2": ("7.9 ± 0.1", "95.6 ± 2.0", "0.07 ± 0.03"),
        "PacGAN3": ("7.8 ± 0.1", "97.7 ± 0.3", "0.10 ± 0.02"),
        "PacGAN4": ("7.8 ± 0.1", "95.9 ± 1.4", "0.07 ± 0.02"),
    },
    "grid": {
        "GAN": ("17.3 ± 0.8", "94.8 ± 0.7", "0.70 ± 0.07"),
        "ALI": ("24.1 ± 0.4", "95.7 ± 0.6", "0.14 ± 0.03"),
        "PacGAN2": ("23.8 ± 0.7", "91.3 ± 0.8", "0.13 ± 0.04"),
        "PacGAN3": ("24.6 ± 0.4", "94.2 ± 0.4", "0.06 ± 0.02"),
        "PacGAN4": ("24.8 ± 0.2", "93.6 ± 0.6", "0.04 ± 0.01"),
    },
}


def networks(seed: int, pack: int = 1) -> tuple[mg.models.Generator, mg.models.Discriminator]:
    """PacGAN's, the discriminator for packs of so many."""
    of_g, of_d = Stream(seed, "generator/init"), Stream(seed, "discriminator/init")
    hidden: list[Module] = []
    for k, inputs in enumerate((2, 400, 400, 400)):
        dense = Dense(inputs, 400, bias=False, init=normal, stream=of_g.child(f"layer{k}"))
        hidden += [dense, BatchNorm(400), Activation("relu")]
    last = Dense(400, 2, init=normal, stream=of_g.child("layer4"))
    pieces = [
        Maxout(inputs, 200, 5, init=normal, stream=of_d.child(f"layer{k}"))
        for k, inputs in enumerate((2 * pack, 200, 200))
    ]
    head = Dense(200, 1, init=normal, stream=of_d.child("layer3"))
    return mg.models.Generator(2, (2,), *hidden, last, bounds=None), mg.models.Discriminator(
        (2 * pack,), *pieces, head
    )


def cases(seeds: int, quick: bool) -> list[dict[str, Any]]:
    """Every method on both mixtures; all with one seed before any with the next."""
    return [
        {"data": data, "method": name, "seed": seed, "steps": 2 if quick else STEPS, "settings": settings}
        for seed in range(1 if quick else seeds)
        for data in (list(MIXTURES)[:1] if quick else MIXTURES)
        for name, settings in METHODS.items()
    ]


def run(case: dict[str, Any], quick: bool) -> dict[str, float]:
    """Train, and measure 2,500 samples."""
    mixture, seed = MIXTURES[case["data"]](), case["seed"]
    points, _ = mixture.sample(POINTS, Stream(seed, "points"))
    adam = mg.optim.Adam(1e-4, b1=0.8)
    gan = mg.GAN(
        *networks(seed, case["settings"].get("pack", 1)),
        optimizer=adam,
        latent="normal",
        seed=seed,
        **case["settings"],
    )
    time = trained(gan, points, case["steps"], BATCH)
    return measured(gan, mixture, seed) | time


def table(rows: list[dict[str, Any]]) -> str:
    """A table for each mixture, with the published figures above ours."""
    parts = []
    for data, published in PUBLISHED.items():
        of_data = [row for row in rows if row["data"] == data]
        lines: list[list[str]] = [["", *HEADING, "seeds"]]
        for name, figures in published.items():
            lines.append([f"{name} (PacGAN, Table 1; {OF:,} updates)", *figures, *[""] * 4, "10"])
        for name in dict.fromkeys(row["method"] for row in of_data):
            of_method = [row for row in of_data if row["method"] == name]
            steps = of_method[0]["steps"]
            title = f"{name}, {steps:,} updates: {100 * steps / OF:g} % of the protocol"
            lines.append([title, *cells(of_method), str(len(of_method))])
        if of_data:
            parts.append(f"## The {data}\n\n{markdown(lines)}")
    return "\n\n".join([*parts, f"{ERRORS[0].upper()}{ERRORS[1:]}. " + NOTES.format(perfect="98.9")])
