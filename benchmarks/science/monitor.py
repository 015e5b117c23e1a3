"""Whether the monitor of collapse finds those that are there, and no others, and what its looks cost."""

import math
import statistics
import time
from typing import Any

import numpy as np

import minigan as mg
from benchmarks.science.figures import markdown
from minigan import data, presets, settings, train
from minigan.backend import Array
from minigan.monitor import Monitor
from minigan.nn import Module
from minigan.ops import Stream
from minigan.sampling import Sampler
from minigan.tensor import Tensor, asarray
from minigan.trace import host

ABOUT = (
    "The monitor of collapse on the digits, for each seed: the article's networks with the minimax loss, which are"
    " dead from the start; the preset, whose latents shrink to a hundredth at step 2,000; and the preset as it is. The"
    " first two are to be told, the last is not. About 25 s a seed on one core, 20 s more for the cost of the looks."
)
EVERY = 500  # steps between two looks, the default
SHRUNK = 0.01  # latents in a planted collapse
STEPS = {"minimax": (3000, 1000), "planted": (6000, 1000), "default": (6000, 1000)}  # in full, and quick
PLANTED = (2000, 500)  # the first step of a planted collapse
TOLD = {"minimax": True, "planted": True, "default": False}  # what is expected
PRICED = ("digits", "ring", "mnist")  # presets in which the looks are timed


class Shrinking(Sampler):
    """Draws latents that shrink when a game has made some steps, in a compiled step too."""

    def __init__(self, generator: Module, latent: str, game: mg.Game, start: int) -> None:
        super().__init__(generator, latent)
        self.game, self.start = game, start

    def draw(self, stream: Stream, count: int, device: str = "cpu") -> Tensor:
        return super().draw(stream, count, device) * asarray(host(self._scale, device))

    def _scale(self) -> Array:
        return np.full((1, 1), SHRUNK if self.game.steps >= self.start else 1.0, self.dtype)


class Planted(mg.GAN):
    """A GAN whose latents shrink from a step on: its samples become one sample."""

    def __init__(self, start: int, **config: Any) -> None:
        super().__init__(**config)
        self.start = start
        self._sampler = self._shrinking(self._sampler)

    def sampler(self, raw: bool = False) -> Sampler:
        return self._shrinking(super().sampler(raw))

    def _shrinking(self, sampler: Sampler) -> Sampler:
        return Shrinking(sampler.generator, sampler.latent, self.game, self.start)


def cases(seeds: int, quick: bool) -> list[dict[str, Any]]:
    """Each kind of run for every seed, one if it is quick; and the presets whose looks are timed."""
    runs = [
        {"run": name, "seed": seed, "steps": steps[quick], "every": EVERY}
        for name, steps in STEPS.items()
        for seed in range(1 if quick else seeds)
    ]
    priced = [name for name in PRICED if not data.SETS[name].files or data.find(name)]
    return runs + [{"run": "cost", "preset": name} for name in (priced[:1] if quick else priced)]


def run(case: dict[str, Any], quick: bool) -> dict[str, Any]:
    """How often and when a collapse was told, and the least numbers of all looks; or what looks cost."""
    if case["run"] == "cost":
        return _cost(case["preset"], quick)
    name, seed = case["run"], case["seed"]
    steps = case["steps"]
    gan = _gan(name, seed, steps, quick)
    done = gan.fit(data.digits()[0], steps=steps, batch=64, monitor_every=EVERY)
    told = [event["step"] for event in done.events if event["event"] == "collapse"]
    looks = [record for record in done.records if "coverage" in record]
    least = {f"least_{key}": min(look[key] for look in looks) for key in ("rank", "spread", "coverage")}
    return {"told": len(told), "first": told[0] if told else None, **least, "seconds": done.seconds}


def _gan(name: str, seed: int, steps: int, quick: bool) -> mg.GAN:
    if name == "minimax":
        generator = mg.models.mlp_generator(100, (128, 128), (8, 8, 1), seed=seed)
        discriminator = mg.models.mlp_discriminator((8, 8, 1), (128, 128), seed=seed)
        adam = mg.optim.Adam(1e-3, b1=0.9)
        return mg.GAN(generator, discriminator, loss="minimax", optimizer=adam, seed=seed)
    config = presets.config("digits", seed=seed, training={"steps": steps})
    return Planted(PLANTED[quick], **settings.arguments(config)) if name == "planted" else train.build(config)


def _cost(preset: str, quick: bool) -> dict[str, Any]:
    """Milliseconds of a step and of a look, and the part of the time that looks take every 500 steps."""
    config = presets.config(preset)
    gan, batch = train.build(config), config["training"]["batch"]
    samples = data.read(**{key: config["data"].get(key) for key in presets.SOURCE}).samples
    run = gan.fit(samples, steps=300 if quick else 1000, batch=batch, monitor_every=0)
    step = 1 / run.records[-1]["steps_per_second"]
    real = data.Batches(samples, min(len(samples), 2048), Stream(0, "compared")).at(0)
    monitor, sampler, times = Monitor(EVERY), gan.sampler(), []
    for k in range(12):
        begun = time.perf_counter()
        monitor.look(sampler, real, None, k)
        times.append(time.perf_counter() - begun)
    look = statistics.median(times)
    return {"step_ms": 1e3 * step, "look_ms": 1e3 * look, "share": look / (look + EVERY * step)}


def table(rows: list[dict[str, Any]]) -> str:
    """Counts of the runs that were told, with Wilson's interval at 95 %, beside what is expected; and the cost."""
    counts = [
        [
            "run",
            "told",
            "95 %",
            "expected",
            "first told at step",
            "least rank",
            "least spread",
            "least coverage",
        ]
    ]
    for name, expected in TOLD.items():
        mine = [row for row in rows if row["run"] == name]
        if not mine:
            continue
        told = [row["first"] for row in mine if row["told"]]
        low, high = _interval(len(told), len(mine))
        when = f"{min(told):,} to {max(told):,}" if told else "-"
        least = [
            f"{min(x):.2f} to {max(x):.2f}"
            for x in ([row[f"least_{key}"] for row in mine] for key in ("rank", "spread", "coverage"))
        ]
        wanted = f"{len(mine) if expected else 0} of {len(mine)}"
        counts.append([name, f"{len(told)} of {len(mine)}", f"{low:.2f} to {high:.2f}", wanted, when, *least])
    costs = [["preset", "a step, ms", "a look, ms", "looks, of the time", "expected"]]
    for row in rows:
        if row["run"] == "cost":
            numbers = [f"{row['step_ms']:.2f}", f"{row['look_ms']:.1f}", f"{100 * row['share']:.2f} %"]
            costs.append([row["preset"], *numbers, "below 2 %"])
    return "\n\n".join(markdown(lines) for lines in (counts, costs) if len(lines) > 1)


def _interval(count: int, total: int) -> tuple[float, float]:
    """Wilson 1927: of a part of independent trials."""
    z = statistics.NormalDist().inv_cdf(0.975)
    middle, scale = (count + z * z / 2) / (total + z * z), z / (total + z * z)
    wide = scale * math.sqrt(count * (total - count) / total + z * z / 4)
    return max(0.0, middle - wide), min(1.0, middle + wide)
