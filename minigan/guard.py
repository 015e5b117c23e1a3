"""What a run does when it goes wrong: an answer to NaN and infinities, and warnings before it comes to that."""

from collections import deque

import numpy as np

from minigan.errors import ConfigError, NonFiniteError
from minigan.report import Record

POLICIES = ("stop", "skip", "rollback")
RATE_FACTOR = 0.5  # of the learning rates at each rollback
REMEMBERED = 100  # records whose median is what a loss is compared with
DIVERGED, LEAST = 1e4, 0.01  # times that median, or this where it is smaller
STEPS_OF_SILENCE = 500  # after which a discriminator that tells nothing is reported


class Guard:
    """The answer to a step that was not made because of NaN or infinities.

    Args:
        policy: "stop" the run; "skip" the step, and its batch; or "rollback": go back to the last good state and on
            from there at half the learning rates.
        limit: how often; then the run stops, so that none is in an endless loop.

    Attributes:
        faults: how often it has been needed.
    """

    def __init__(self, policy: str, limit: int) -> None:
        if policy not in POLICIES:
            raise ConfigError(f"on_nonfinite {policy!r} does not exist; there are {', '.join(POLICIES)}")
        self.policy, self.limit, self.faults = policy, limit, 0

    def answer(self, error: NonFiniteError, skippable: bool = True) -> str:
        """The policy, counted; or the error again, with advice, if the run has to stop.

        A step that has been made is not `skippable`.
        """
        if self.policy == "stop" or self.faults >= self.limit or (self.policy == "skip" and not skippable):
            times = f" {self.faults + 1} times, the last" if self.faults else ""
            raise NonFiniteError(
                f"training diverged{times} at {error}; try a lower learning rate, a penalty such as r1, or clip_norm"
            ) from None
        self.faults += 1
        return self.policy


class Watch:
    """Looks at the records of a run for signs that it fails; each kind of sign is told once.

    >>> from minigan.guard import Watch
    >>> watch = Watch()
    >>> record = {"step": 0, "d_loss": 1.0, "g_loss": 1.0, "d_real": 0.5, "d_fake": 0.4}
    >>> found = [watch.see(record | {"step": step}) for step in range(10, 210, 10)]
    >>> [kind for kind, _ in watch.see(record | {"step": 210, "g_loss": 2e4})]
    ['divergence']
    """

    def __init__(self) -> None:
        self.told: set[str] = set()
        self.losses: dict[str, deque[float]] = {
            name: deque(maxlen=REMEMBERED) for name in ("d_loss", "g_loss")
        }
        self.since: dict[str, int] = {}  # the step at which a sign was first seen, of those that last

    def see(self, record: Record) -> list[tuple[str, str]]:
        """The kind and the text of each warning that this record gives cause for."""
        signs = []
        for name, past in self.losses.items():
            size = abs(record[name])
            usual = float(np.median(past)) if len(past) >= 10 else size
            if size > DIVERGED * max(usual, LEAST):
                text = (
                    f"{name} is {record[name]:.4g}, {DIVERGED:,.0f} times its median of {usual:.4g} or more"
                )
                signs.append(("divergence", f"{text}: lower the learning rates, or raise the penalty"))
            past.append(size)
        if self._lasts("won", record, abs(record["d_loss"]) < 1e-8):
            text = f"d_loss is below 1e-8 for {STEPS_OF_SILENCE} steps: the discriminator separates real and generated"
            text += " samples perfectly, and the generator learns little from it; lower the discriminator's learning"
            signs.append(("discriminator won", f"{text} rate, or add the penalty r1 or instance noise"))
        if self._lasts("dead", record, abs(record["d_real"] - record["d_fake"]) < 1e-6):
            text = f"D(x) equals D(G(z)) to 1e-6 for {STEPS_OF_SILENCE} steps: the discriminator has learnt nothing, or"
            text += (
                " no gradient passes through it any more; lower the penalty, check the data, or start with"
            )
            signs.append(("dead discriminator", f"{text} another seed"))
        new = [sign for sign in signs if sign[0] not in self.told]
        self.told.update(kind for kind, _ in new)
        return new

    def _lasts(self, sign: str, record: Record, seen: bool) -> bool:
        if not seen:
            self.since.pop(sign, None)
            return False
        first = self.since.setdefault(sign, record["step"])
        return int(record["step"]) - first >= STEPS_OF_SILENCE
