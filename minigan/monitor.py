"""Whether the generator collapses while it is trained: what its samples lack beside the data, and when that is told."""

import math
from typing import Any

import numpy as np

from minigan.analysis import effective_rank
from minigan.backend import Array
from minigan.errors import ConfigError
from minigan.metrics import precision_recall
from minigan.ops.random import Stream
from minigan.report import Record
from minigan.sampling import Sampler

ANSWERS = ("warn", "stop")
SAMPLES = 200  # of each kind that a look compares
NUMBERS = (
    400  # of a sample that it compares: of larger ones as many, chosen at random, so that its cost is bounded
)
NEAREST = 5  # neighbours that a ball of the coverage reaches
LEAST = 32  # samples of the data below which nothing can be said
# Coverage of samples from the data's own distribution, which hardly depends on N (Naeem et al. 2020).
REACHED = 1 - math.prod((SAMPLES - i) / (2 * SAMPLES - i) for i in range(1, NEAREST + 1))
# Below which samples have collapsed, see `Episodes`; fixed on seeds other than those of the counts in docs/6-runs.md.
FLAT, SHRUNK, FEW = 0.1, 0.1, 0.2  # rank, spread and coverage
HALF, GOOD = 0.5, 0.8  # of rank or spread, and of precision, that make low coverage a collapse
LOOKS = 2  # in a row before an episode begins, or ends
NUMBERS_OF_A_LOOK = ("rank", "spread", "coverage", "precision", "d_gap")  # in the record of its step


class Monitor:
    """Looks at samples of the generator beside the data, every so many steps of a run.

    Args:
        every: steps between two looks; 0 for none.
        answer: what a collapse is followed by: "warn", or "stop" the run with `CollapseError`.
        seed: of the run. The latents have a stream of their own: training does not depend on who looks.

    Raises: `ConfigError` for another setting.

    >>> import numpy as np, minigan as mg
    >>> from minigan.monitor import Monitor
    >>> generator = mg.models.mlp_generator(latent=8, hidden=(16,), shape=(8, 8, 1))
    >>> found = Monitor(every=500).look(mg.sampling.Sampler(generator), mg.data.digits()[0][:200], None, step=0)
    >>> found["spread"] < 0.1, found["coverage"] < 0.2
    (True, True)
    """

    def __init__(self, every: int, answer: str = "warn", seed: int = 0) -> None:
        if isinstance(every, bool) or not isinstance(every, (int, np.integer)) or every < 0:
            raise ConfigError(
                f"monitor_every is {every!r}: expected an integer from 1, or 0 for no look at all"
            )
        if answer not in ANSWERS:
            raise ConfigError(f"on_collapse {answer!r} does not exist; there are {', '.join(ANSWERS)}")
        self.every, self.answer = int(every), answer
        self._stream = Stream(seed, "monitor")
        self._places: Array | None = None  # of the numbers that are compared
        self._of_data: tuple[float, float] | None = None  # effective rank and variance

    def due(self, made: int, before: int) -> bool:
        """Whether to look when a run has made so many steps, of which its last record was made after `before`."""
        return self.every > 0 and made // self.every > before // self.every

    def look(self, sampler: Sampler, real: Array, labels: Array | None, step: int) -> dict[str, float]:
        """What new samples have of the data `real` (N, ...), in [0, 1] or the points' unit, at most 200 of each.

        The result has four numbers, each near 1 for samples as good as data:

        - rank: the effective rank of the samples, of that of the data (`minigan.analysis.effective_rank`);
        - spread: their total variance, of that of the data: the rank does not change if all samples shrink;
        - coverage: the part of the data that has a sample nearby, and precision: the part of the samples that have data
          nearby (`minigan.metrics.precision_recall`, k = 5). 200 samples from the data's own distribution cover 0.97.

        It is empty where these say nothing: for fewer than 32 samples of the data, for data that are all the same, and
        for samples that are not finite. `labels` are those of the data, for a conditional generator.
        """
        count = min(SAMPLES, len(real))
        if count < LEAST:
            return {}
        x = self._numbers(real[:count])
        if self._of_data is None:
            self._of_data = effective_rank(x), _variance(x)
        rank, variance = self._of_data
        latents = sampler.draw(self._stream.at(step), count).numpy()
        y = self._numbers(sampler.generate(latents, None if labels is None else labels[:count]))
        if not (rank > 0 and np.isfinite(y).all()):
            return {}
        near = precision_recall(x, y, NEAREST)
        return {
            "rank": effective_rank(y) / rank,
            "spread": _variance(y) / variance,
            "coverage": near.coverage,
            "precision": near.precision,
        }

    def _numbers(self, samples: Array) -> Array:
        """Each sample as a row of at most `NUMBERS` numbers, the same ones at every look."""
        rows = samples.reshape(len(samples), -1)
        if rows.shape[1] <= NUMBERS:
            return rows
        if self._places is None:
            self._places = np.sort(self._stream.child("places").permutation(rows.shape[1])[:NUMBERS])
        chosen: Array = rows[:, self._places]
        return chosen


class Episodes:
    """When a collapse begins and ends, from the records of a run alone: those that were looked at count.

    It begins, and is told, when two looks in a row find the samples collapsed, and ends when two do not. They are if
    their rank or their spread is below 0.1 of the data's; or if they cover less than 0.2 of the data while rank or
    spread is below 0.5, or the precision above 0.8: few kinds of samples, not bad samples of every kind.

    Attributes:
        lasts: whether there is one.

    >>> from minigan.monitor import Episodes
    >>> episodes = Episodes()
    >>> look = {"rank": 0.9, "spread": 0.001, "coverage": 0.05, "precision": 1.0, "d_gap": 0.6}
    >>> [len(episodes.see(look | {"step": step})) for step in (500, 1000)], episodes.lasts
    ([0, 1], True)
    """

    def __init__(self) -> None:
        self.lasts = False
        self._other = 0  # looks in a row that say otherwise

    @property
    def found(self) -> bool:
        """Whether there is one, and the last look found it too."""
        return self.lasts and not self._other

    def see(self, record: Record) -> list[tuple[str, str]]:
        """The kind and the text of the warning that this record gives cause for, if any."""
        values: list[Any] = [record.get(name) for name in NUMBERS_OF_A_LOOK]
        # Most records have none, and any line of a file may be damaged.
        if not all(type(x) in (int, float) and abs(x) < 1e300 for x in values):
            return []
        rank, spread, coverage, precision, _ = values
        few = coverage < FEW and (rank < HALF or spread < HALF or precision > GOOD)
        collapsed = rank < FLAT or spread < SHRUNK or few
        self._other = 0 if collapsed == self.lasts else self._other + 1
        if self._other < LOOKS:
            return []
        self.lasts, self._other = collapsed, 0
        return [("collapse", describe(record))] if collapsed else []


def describe(record: Record) -> str:
    """The numbers of a record that was looked at, and what to do about them.

    >>> from minigan.monitor import describe
    >>> print(describe({"rank": 0.5, "spread": 0.01, "coverage": 0.1, "precision": 1.0, "d_gap": 0.7}))
    the generator has collapsed: rank 0.5 and spread 0.01 of the data's, coverage 0.1 where data reach 0.97, ...
    """
    return (
        f"the generator has collapsed: rank {record['rank']:.2g} and spread {record['spread']:.2g} of the data's,"
        f" coverage {record['coverage']:.2g} where data reach {REACHED:.2g}, precision {record['precision']:.2g},"
        f" D(x) - D(G(z)) {record['d_gap']:.2g}; raise the penalty r1, lower the learning rates, or use another loss"
        " than minimax"
    )


def gap(records: list[Record], since: int) -> float:
    """How far D(x) is above D(G(z)), the mean over the records after step `since`.

    >>> from minigan.monitor import gap
    >>> gap([{"step": 10, "d_real": 0.5, "d_fake": 0.5}, {"step": 20, "d_real": 0.75, "d_fake": 0.5}], since=10)
    0.25
    """
    apart = [record["d_real"] - record["d_fake"] for record in records if record["step"] > since]
    return math.fsum(apart) / len(apart)


def _variance(x: Array) -> float:
    return float(x.astype(np.float64).var(0).sum())
