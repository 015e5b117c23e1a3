"""What the studies of mixtures in the plane share: training to the end or to a NaN, and what is measured."""

from collections.abc import Callable, Iterable
from statistics import fmean
from typing import Any

import minigan as mg
from benchmarks.science.figures import interval
from minigan.data import Mixture, grid, ring
from minigan.errors import NonFiniteError
from minigan.metrics import mode_coverage

MIXTURES: dict[str, Callable[[], Mixture]] = {"ring": ring, "grid": grid}
SAMPLES = 2500
HEADING = [
    "modes",
    "high quality, %",
    "reverse KL",
    "least share",
    "EMA: modes",
    "EMA: high quality, %",
    "ms a step",
]
NOTES = """\
High quality: within 3 σ of the nearest mean; {perfect} % of the data are. A mode counts with one such sample. Least
share: the fewest such samples of a mode over 1/K of all samples. EMA: the same run, sampled by its averaged weights."""


def measured(gan: mg.GAN, mixture: Mixture, seed: int, samples: int = SAMPLES) -> dict[str, float]:
    """What is found by samples of the last weights, and of the averaged ones."""
    found: dict[str, float] = {}
    for prefix, raw in (("", True), ("ema_", False)):
        coverage = mode_coverage(gan.sample(samples, seed=seed, raw=raw), mixture)
        found |= {
            f"{prefix}modes": coverage.modes,
            f"{prefix}high_quality": 100 * coverage.high_quality,
            f"{prefix}reverse_kl": coverage.reverse_kl,
            f"{prefix}least_share": float(coverage.counts.min()) * len(coverage.counts) / samples,
        }
    return found


def trained(gan: mg.GAN, points: Any, steps: int, batch: int) -> dict[str, float]:
    """Train; gives the steps made, fewer where a NaN ended the run in the state before it, and the time of a step."""
    speed = 0.0
    try:
        run = gan.fit(points, steps=steps, batch=batch)
        # The last record's speed is that of the last steps: without the time to compile.
        speed = run.records[-1]["steps_per_second"] if run.records else steps / run.seconds
    except NonFiniteError:
        pass
    return {"made": gan.game.steps, "ms": 1000 / speed if speed else 0.0}


def cells(rows: Iterable[dict[str, Any]]) -> list[str]:
    """What stands below `HEADING` for the runs of one method, one row each."""
    known = list(rows)
    forms = {"modes": ".1f", "high_quality": ".1f", "reverse_kl": ".3f", "least_share": ".2f"}
    forms |= {"ema_modes": ".1f", "ema_high_quality": ".1f"}
    texts = [interval((row[name] for row in known), form) for name, form in forms.items()]
    times = [row["ms"] for row in known if row["ms"]]
    return [*texts, f"{fmean(times):.1f}" if times else "–"]
