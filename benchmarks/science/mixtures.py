"""A ring of 8 and a grid of 25 Gaussians, by the protocol with which most methods against collapse were compared.

Protocol B: Srivastava and others 2017 ("VEEGAN"), §5, after Metz and others 2017 ("Unrolled GAN"); again Elfeki and
others 2019 ("GDPP"). G: z ~ N(0, I_256) → 128 → 128 → 2, D: 2 → 128 → 128 → 1, tanh, orthogonal weights with a gain of
1.4; batches of 512, 25,000 iterations, Adam with b1 = 0.5 and eps = 1e-8; 2,500 samples, five runs.
"""

import functools
from collections.abc import Mapping
from itertools import pairwise
from statistics import fmean
from typing import Any

import minigan as mg
from benchmarks.science.figures import ERRORS, markdown
from benchmarks.science.planar import HEADING, MIXTURES, NOTES, cells, measured, trained
from minigan.nn import Activation, Dense, Module, SpectralNorm
from minigan.ops import Stream

STEPS, BATCH, POINTS = 25_000, 512, 1 << 20

OURS = {
    "loss": "relativistic",
    "lr": [1e-3, 1e-3],
    "decay_from": 0.5,
    "r1": [0.5, 0.0005],
    "r2": [0.5, 0.0005],
}

# The methods. What a method has besides the protocol, all in values of JSON, as they identify a run:
#   loss: a name in `mg.losses.table`            lr: the generator's and the discriminator's
#   decay_from: part of the run after which the rates fall linearly to 0
#   r1, r2: weight at the first and the last step, falling by equal factors; wgan_gp: weight
#   noise: standard deviation of the instance noise at the first step, falling linearly to 0
#   spectral: spectral norm in all layers of the discriminator
#   optimistic: both optimisers are
#   game: further arguments of `mg.GAN`, as they are
BASE = {"loss": "non_saturating", "lr": [1e-3, 1e-3], "decay_from": 0.3}
METHODS: dict[str, dict[str, Any]] = {
    "the protocol's own, minimax": {"loss": "minimax", "lr": [1e-3, 1e-4]},
    "the protocol's own, non-saturating": {"loss": "non_saturating", "lr": [1e-3, 1e-4]},
    "NS, lr of D 1e-3, decay": BASE,
    "the same + instance noise": BASE | {"noise": 0.1},
    "the same + R1": BASE | {"r1": [0.5, 0.0005]},
    "the same + packs of 2": BASE | {"game": {"pack": 2}},
    "the same + unrolling, 5 steps": BASE | {"game": {"unroll": 5}},
    "the same + extragradient": BASE | {"game": {"update": "extragradient"}},
    "the same + consensus": BASE | {"game": {"update": "simultaneous", "consensus": 0.1}},
    "the same + optimistic": BASE | {"optimistic": True},
    "the same + feature matching": BASE | {"game": {"feature_matching": 1.0}},
    "WGAN-GP, one step of D, decay": BASE | {"loss": "wasserstein", "wgan_gp": 0.1},
    "hinge + spectral norm, decay": BASE | {"loss": "hinge", "spectral": True},
    "RpGAN + R1 + R2, decay": OURS,
    # A logit that follows the logarithm of a Gaussian has E |∇D|² = 2/σ², 20,000 on the ring: R1 makes that 5 at a
    # weight of 0.0005, many times the loss at the optimum, and 0.05 at 5e-6.
    "RpGAN + R1 + R2 to 5e-6, decay": OURS | {"r1": [0.5, 5e-6], "r2": [0.5, 5e-6]},
}
# Modes and high quality in %, of ring and grid.
PUBLISHED = {
    "GAN (VEEGAN, Table 1)": ("1", "99.3", "3.3", "0.5"),
    "ALI (VEEGAN, Table 1)": ("2.8", "0.13", "15.8", "1.6"),
    "Unrolled GAN, 5 steps (VEEGAN, Table 1)": ("7.6", "35.6", "23.6", "16"),
    "VEEGAN (VEEGAN, Table 1)": ("8", "52.9", "24.6", "40"),
    "WGAN-GP (GDPP, Table 1)": ("6.8", "59.6", "24.2", "28.7"),
    "GDPP-GAN (GDPP, Table 1)": ("8.0", "71.7", "24.8", "68.5"),
}
GOAL = {"high_quality": 85.0, "least_share": 0.5}

MINUTES = 3  # of a run on one core
ABOUT = (
    "Methods against collapse on a ring of 8 and a grid of 25 Gaussians, with the networks, batch and iterations of"
    " Protocol B, beside Table 1 of VEEGAN (Srivastava et al. 2017) and of GDPP (Elfeki et al. 2019):"
    f" {len(METHODS)} methods on each. On one core a run takes about {MINUTES} minutes, and five seeds about"
    f" {10 * len(METHODS) * MINUTES / 60:.0f} hours."
)
SIZES_G, SIZES_D = (256, 128, 128, 2), (2, 128, 128, 1)


def networks(
    seed: int, spectral: bool = False, pack: int = 1
) -> tuple[mg.models.Generator, mg.models.Discriminator]:
    """Those of the protocol; the discriminator is one of packs."""

    def layers(sizes: tuple[int, ...], purpose: str, normed: bool) -> list[Module]:
        stream = Stream(seed, purpose)
        init: Any = functools.partial(mg.nn.init.orthogonal, gain=1.4)
        modules: list[Module] = []
        for number, (inputs, outputs) in enumerate(pairwise(sizes)):
            dense = Dense(inputs, outputs, init=init, stream=stream.child(f"layer{number}"))
            modules += [SpectralNorm(dense) if normed else dense, Activation("tanh")]
        return modules[:-1]

    return (
        mg.models.Generator(SIZES_G[0], (2,), *layers(SIZES_G, "generator/init", False), bounds=None),
        mg.models.Discriminator(
            (2 * pack,), *layers((2 * pack, *SIZES_D[1:]), "discriminator/init", spectral)
        ),
    )


def gan_of(method: Mapping[str, Any], steps: int, seed: int) -> mg.GAN:
    """The networks of the protocol with a method, for a run of so many steps."""
    begin, noise = method.get("decay_from"), method.get("noise", 0.0)
    rates = [rate if begin is None else mg.optim.linear(rate, steps, begin) for rate in method["lr"]]
    optimistic, game = method.get("optimistic", False), method.get("game", {})
    of_g, of_d = (mg.optim.Adam(rate, b1=0.5, eps=1e-8, optimistic=optimistic) for rate in rates)
    pairs = (("r1", mg.penalties.r1), ("r2", mg.penalties.r2))
    penalties = [
        make(mg.optim.exponential(method[name][0], steps, end=method[name][1] / method[name][0]))
        for name, make in pairs
        if name in method
    ]
    if "wgan_gp" in method:
        penalties.append(mg.penalties.wgan_gp(method["wgan_gp"]))
    return mg.GAN(
        *networks(seed, method.get("spectral", False), game.get("pack", 1)),
        loss=method["loss"],
        penalty=penalties,
        optimizer=of_g,
        discriminator_optimizer=of_d,
        noise=mg.optim.linear(noise, steps) if noise else 0.0,
        latent="normal",
        share_fake=True,
        seed=seed,
        **game,
    )


def cases(seeds: int, quick: bool) -> list[dict[str, Any]]:
    """Every method on every mixture; all with one seed before any with the next."""
    return [
        {
            "data": data,
            "method": name,
            "seed": seed,
            "steps": 4 if quick else STEPS,
            "batch": 16 if quick else BATCH,
            "settings": settings,
        }
        for seed in range(1 if quick else seeds)
        for data in (list(MIXTURES)[:1] if quick else MIXTURES)
        for name, settings in METHODS.items()
    ]


def run(case: dict[str, Any], quick: bool) -> dict[str, float]:
    """Train by the protocol, and measure 2,500 samples."""
    mixture, seed = MIXTURES[case["data"]](), case["seed"]
    points, _ = mixture.sample(1024 if quick else POINTS, Stream(seed, "points"))
    gan = gan_of(case["settings"], case["steps"], seed)
    time = trained(gan, points, case["steps"], case["batch"])
    return measured(gan, mixture, seed) | time


def table(rows: list[dict[str, Any]]) -> str:
    """A table for each mixture, with the published figures above ours."""
    parts = []
    for data, make in MIXTURES.items():
        mixture = make()
        of_data = [row for row in rows if row["data"] == data]
        if not of_data:
            continue
        lines: list[list[str]] = [["", *HEADING, "seeds"]]
        first = 2 * list(MIXTURES).index(data)
        for name, figures in PUBLISHED.items():
            lines.append([name, *figures[first : first + 2], *[""] * (len(HEADING) - 1)])
        for name in dict.fromkeys(row["method"] for row in of_data):
            of_method = [row for row in of_data if row["method"] == name]
            ended = sum(row["made"] < row["steps"] for row in of_method)
            mark = f" ({ended} ended by NaN)" if ended else ""
            lines.append([name + mark, *cells(of_method), str(len(of_method))])
        heading = f"## The {data}: {len(mixture.means)} modes, σ = {mixture.std:g}"
        parts.append(f"{heading}\n\n{markdown(lines)}\n\n{_goal(of_data, len(mixture.means))}")
    return "\n\n".join([*parts, f"{ERRORS[0].upper()}{ERRORS[1:]}. " + NOTES.format(perfect="98.9")])


def _goal(rows: list[dict[str, Any]], modes: int) -> str:
    """Which methods have all modes, each at half its share or more, and high quality, on the average over the seeds."""
    by_method = {name: [r for r in rows if r["method"] == name] for name in {r["method"] for r in rows}}
    means = {
        name: {k: fmean(r[k] for r in runs) for k in ("modes", *GOAL)} for name, runs in by_method.items()
    }
    reached = [
        name
        for name, m in means.items()
        if m["modes"] == modes and all(m[k] >= low for k, low in GOAL.items())
    ]
    best = max(means, key=lambda name: (means[name]["modes"], means[name]["high_quality"]))
    goal = (
        f"Goal: {modes} modes, each with at least half its share, and at least {GOAL['high_quality']:g} % of high"
        f" quality, as means over the seeds. Reached by: {', '.join(sorted(reached)) or 'none'}."
    )
    return f"{goal} Most modes, and of these the highest quality: {best}."
