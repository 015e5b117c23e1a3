"""The loop of a training run: steps, and between them what is logged, drawn, saved, and done when something goes wrong.

A run is a pure function of its settings and data: every random number comes from a counter, so a run that goes on from
a checkpoint makes the bits of one that was never interrupted.
"""

import contextlib
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from minigan import pictures, state
from minigan.backend import Array, cuda
from minigan.data import Batches
from minigan.errors import CheckpointError, CollapseError, DeviceError, NonFiniteError
from minigan.folder import EVENTS, RunFolder, read_lines
from minigan.game import Game
from minigan.guard import RATE_FACTOR, Guard, Watch
from minigan.metrics import sliced_wasserstein
from minigan.monitor import Episodes, Monitor, describe, gap
from minigan.ops import sigmoid
from minigan.report import LOGGED, Progress, Record
from minigan.sampling import Sampler
from minigan.tape import no_grad
from minigan.tensor import Tensor, asarray

LOG_EVERY = 10  # steps that one record is the mean of
GRID, BESIDE = 100, 49  # samples in a picture, and of each kind in one of real beside generated
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Trainable(Protocol):
    """What the loop needs of a GAN."""

    game: Game
    seed: int

    def sampler(self, raw: bool = False) -> Sampler:
        """What draws from the generator."""


class Plan(NamedTuple):
    """The settings of a run besides those of its game, as `GAN.fit` has them."""

    steps: int
    batch: int
    sample_every: int
    save_every: int
    on_nonfinite: str
    max_faults: int
    monitor_every: int
    on_collapse: str
    first_step: int
    sampling: str
    importance_weights: bool

    @property
    def stop(self) -> int:
        """The step at which the run is complete."""
        return self.first_step + self.steps


class _Stops:
    """The signal that has asked the run to end, or 0."""

    number = 0


@contextlib.contextmanager
def stopping() -> Iterator[_Stops]:
    """Turn SIGINT and SIGTERM into a flag in the block; a second signal ends the process at once.

    Only in the main thread, and not where a signal is ignored or has a handler of the caller's own.
    """
    stops = _Stops()

    def handle(number: int, frame: Any) -> None:
        if stops.number:
            os._exit(128 + number)
        stops.number = number

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, handle)
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Log:
    """Means over the steps between two records, and the speed; `images` are the real samples of a step."""

    def __init__(self, images: int, start: int, seconds: float = 0.0) -> None:
        self.images = images
        self.begun = time.perf_counter() - seconds
        self.rows: list[dict[str, float]] = []
        # When the last records were made: the speed is measured over these, so that compiling is soon forgotten.
        self.times = deque([(time.perf_counter(), start)], maxlen=20)

    def record(self, step: int) -> Record:
        """The means of the rows since the last record."""
        means = {name: math.fsum(row[name] for row in self.rows) / len(self.rows) for name in LOGGED}
        self.rows.clear()
        now = time.perf_counter()
        since, first = self.times[0]
        self.times.append((now, step))
        speed = (step - first) / max(now - since, 1e-9)
        return {
            "step": step,
            **means,
            "seconds": round(now - self.begun, 3),
            "steps_per_second": round(speed, 3),
            "images_per_second": round(speed * self.images, 1),
        }


class Loop:
    """A run that is going on.

    Args:
        gan: what is trained.
        step: makes one round of the game and gives its metrics.
        batches: on which batches.
        compared: some of the data, for pictures and the distance to it: one batch.
        plan: for how long, and how often what is done.
        guard: what follows a NaN.
        monitor: looks at whether the generator collapses.
        config: all settings, for the checkpoints.
        folder: where it is written, or `None`.
        shown: where it is shown.
    """

    def __init__(
        self,
        gan: Trainable,
        step: Callable[[Batches], dict[str, Tensor]],
        batches: Batches,
        compared: Batches,
        plan: Plan,
        guard: Guard,
        monitor: Monitor,
        config: Mapping[str, Any],
        folder: RunFolder | None,
        shown: Progress,
    ) -> None:
        self.gan, self.step, self.batches = gan, step, batches
        self.compared, self.compared_labels = compared.at(0), compared.labels_at(0)
        self.plan, self.config = plan, config
        self.folder, self.shown = folder, shown
        self.guard, self.watch = guard, Watch()
        self.monitor, self.episodes = monitor, Episodes()
        self.records: list[Record] = []
        self.events: list[dict[str, Any]] = []
        self.log = self._new_log(0.0)
        self.saved = ""  # the last checkpoint
        if folder:
            folder.note = self.tell
        self.resumed = False
        self.moment = "before the first step"  # of the run, for errors

    def resume(self, found: state.Found, records: list[Record], notes: Sequence[str]) -> None:
        """Go on from a checkpoint, in a GAN that has its arrays; `records` are those up to it."""
        about, path = found.about, found.path
        self.resumed, self.saved, self.records = True, path, records
        self.guard.faults = about["faults"]
        self.log = self._new_log(records[-1]["seconds"] if records else 0.0)
        self.log.rows = [dict(row) for row in about["rows"]]
        self._watch_again()
        for note in notes:
            self.tell("damaged checkpoint", note)
        # The files of earlier versions say nothing of a device: there was one.
        before = {"device": "cpu", **about["environment"]}
        other = state.differences(before, state.environment(self.gan.game.device))
        if other:
            self.tell("environment", f"the bits of the run may change where it goes on: {'; '.join(other)}")
        self.tell("resumed", f"resumed from {path}")

    def _new_log(self, seconds: float) -> Log:
        return Log(self.batches.batch * self.gan.game.d_steps, self.gan.game.steps, seconds)

    def run(self) -> None:
        """Train to the last step.

        A signal ends the run after its step, with a checkpoint: SIGINT by `KeyboardInterrupt`, SIGTERM by
        `SystemExit(143)`, each with a text that says where the run can go on. So does the `DeviceError` by which it
        ends where a GPU fails, or has no memory left; nothing is saved from one that has failed.
        """
        try:
            self._run()
        except DeviceError as error:
            self._end_failed(error)

    def _run(self) -> None:
        game = self.gan.game
        if not self.resumed:
            self._draw_samples()
            self._save(due=True, required=True)  # so a disk that is full is found before the first step
        self.good = self._last_good()
        with stopping() as stops:
            while game.steps < self.plan.stop and not stops.number:
                self._advance()
        if stops.number:
            self._end_early(stops.number)
        if not self.saved:
            self._save(due=True, required=True)
        if self.folder:
            self._draw_summary(self.folder)

    def tell(self, kind: str, text: str) -> None:
        """Note an event: for the caller, in the folder, and where the run is shown."""
        event = {"step": self.gan.game.steps, "event": kind, "message": text}
        self.events.append(event)
        if self.folder:
            self.folder.event(event)
        if kind != "stopped":  # the exception says it
            self.shown.note(text if text.startswith("step") else f"step {event['step']}: {text}")

    def _watch_again(self) -> None:
        """Forget what was seen after the records there are; what these warned of is not told again."""
        self.watch, self.episodes = Watch(), Episodes()
        for record in self.records:
            self.watch.see(record)
            self.episodes.see(record)

    def _advance(self) -> None:
        game = self.gan.game
        self.saved, made, self.moment = "", False, f"step {game.steps + 1:,}"
        try:
            metrics = {name: x.item() for name, x in self.step(self.batches).items()}
            made, self.moment = True, f"after step {game.steps:,}"
            if self._due(self.plan.save_every):
                game.require_finite()  # what the last update made is not looked at by the step itself
        except NonFiniteError as error:
            if self.guard.answer(error, skippable=not made) == "rollback":
                self._roll_back(error)
                return
            game.skip()
            self.tell("skipped", f"{error}: it is skipped ({self.guard.faults} of {self.guard.limit})")
        else:
            self.log.rows.append(metrics)
        due, looked = self._due(self.plan.save_every), dict[str, float]()
        quality = self._distance() if due and self.folder else None
        # Records and pictures go before the checkpoint: a run that goes on from this does not make them again.
        if self.log.rows and self._due(LOG_EVERY):
            record = self.log.record(game.steps)
            if quality is not None:
                record["sliced_wasserstein"] = quality
            looked = self._look(record)
            record |= looked
            self.records.append(record)
            self.shown.update(record)
            if self.folder:
                self.folder.record(record)
            for kind, text in self.watch.see(record) + self.episodes.see(record):
                self.tell(kind, text)
        if self._due(self.plan.sample_every):
            self._draw_samples()
        if due:
            self._save(quality, due=True)
            self.good = self._last_good()
        if looked and self.episodes.found and self.monitor.answer == "stop" and game.steps < self.plan.stop:
            self._end_collapsed()

    def _due(self, every: int) -> bool:
        """Whether this is one of every so many steps of the run, or the last."""
        step = self.gan.game.steps
        return (step - self.plan.first_step) % every == 0 or step == self.plan.stop

    def _look(self, record: Record) -> dict[str, float]:
        """What is to be added to a record where the samples are looked at; otherwise nothing."""
        step, first = self.gan.game.steps, self.plan.first_step
        before = self.records[-1]["step"] if self.records else first
        if not self.monitor.due(step - first, before - first):
            return {}
        found = self.monitor.look(self.gan.sampler(), self.compared, self.compared_labels, step)
        return found and found | {"d_gap": gap([*self.records, record], step - self.monitor.every)}

    # Checkpoints

    def _save(self, quality: float | None = None, due: bool = False, required: bool = False) -> None:
        """Write a checkpoint; the run goes on without, unless it is `required`. One of NaN is never written."""
        if self.folder is None:
            return
        about = {"config": self.config, "step": self.gan.game.steps, "quality": quality, "due": due}
        about |= {"rows": self.log.rows, "faults": self.guard.faults, "device": self.gan.game.device}
        try:
            self.gan.game.require_finite()
            self.saved = self.folder.keep(self.gan.game.state(), about)
        except (CheckpointError, NonFiniteError) as error:
            if required:
                raise
            self.tell("no checkpoint", str(error))

    def _distance(self) -> float | None:
        """The sliced Wasserstein distance of samples to data, in pixels or the points' unit."""
        real = self.compared
        made = self.gan.sampler().sample(len(real), self.gan.seed, self.compared_labels).reshape(real.shape)
        # What the last update made is not looked at by the step itself: such weights are found when they are saved.
        distance = sliced_wasserstein(real, made) if np.isfinite(made).all() else math.inf
        return distance if math.isfinite(distance) else None

    def _last_good(self) -> tuple[dict[str, Array], list[dict[str, float]]] | None:
        """The state that a rollback goes back to: that of the last checkpoint due, interrupted or not."""
        if self.guard.policy != "rollback":
            return None
        if self.folder and not self._due(self.plan.save_every):
            found = state.newest(self.folder.path, lambda text: None, due=True)
            if found:
                return found.arrays, found.about["rows"]
        return self.gan.game.state(), list(self.log.rows)

    def _roll_back(self, error: NonFiniteError) -> None:
        game = self.gan.game
        arrays, rows = self.good or (game.state(), [])
        scale = game.rate_scale * RATE_FACTOR
        game.load_state({**arrays, "rate_scale": np.array(scale)})
        self.log.rows = list(rows)
        self.records = [record for record in self.records if record["step"] <= game.steps]
        self._watch_again()
        if self.folder:
            self.folder.rewind(game.steps)
            self.folder.forget(game.steps)
        times = f"{self.guard.faults} of {self.guard.limit}"
        text = f"{error}: back to step {game.steps:,}, learning rates times {scale:g} ({times})"
        self.tell("rollback", text)

    def _end_early(self, number: int) -> None:
        text = self._stopped(f"stopped by {signal.Signals(number).name} after step {self.gan.game.steps:,}")
        if number == signal.SIGTERM:
            raise SystemExit(128 + number)
        raise KeyboardInterrupt(text)

    def _end_collapsed(self) -> None:
        step = self.gan.game.steps
        raise CollapseError(self._stopped(f"stopped after step {step:,}: {describe(self.records[-1])}"))

    def _end_failed(self, error: DeviceError) -> None:
        """End the run by the error, with the step; what fails here too must not hide it."""
        with contextlib.suppress(CheckpointError, DeviceError):
            if cuda.dead():
                found = state.newest(self.folder.path, lambda text: None) if self.folder else None
                self.saved = found.path if found else ""
            elif not self.saved:
                self._save()
        raise DeviceError(self._told(f"stopped at {self.moment}: {error}")) from error

    def _stopped(self, text: str) -> str:
        """Tell why the run ends before its last step, with where it can go on, which is saved; gives the text."""
        if not self.saved:
            self._save()
        return self._told(text)

    def _told(self, text: str) -> str:
        where = f"the checkpoint {self.saved} goes on from there" if self.saved else "nothing of it is saved"
        self.tell("stopped", f"{text}; {where}")
        return f"{text}; {where}"

    # Pictures

    def _draw_samples(self) -> None:
        if self.folder is None:
            return
        sampler, real, seed = self.gan.sampler(), self.compared, self.gan.seed

        def draw(path: str) -> None:
            if sampler.points:
                # What the discriminator finds is one picture for each class, and of packs there is none.
                judge = self._judge if sampler.classes is None and self.gan.game.pack == 1 else None
                pictures.points_plot(path, real, sampler.sample(len(real), seed), judge)
            else:
                count, labels, columns = sampler.rows(GRID)
                pictures.save_png(path, pictures.image_grid(sampler.sample(count, seed, labels), columns))

        self.folder.draw("pictures", self.folder.samples(self.gan.game.steps), draw)

    def _judge(self, points: Array) -> Array:
        """The discriminator's probability that points are real, (N, P) to (N,)."""

        def logits(x: Array) -> Tensor:
            points = x.astype(self.gan.sampler().dtype)
            return self.gan.game.discriminator(asarray(points, device=self.gan.game.device))

        with no_grad():
            # Losses of pairs leave a constant open: the mean over the data is put at 0.
            shift = logits(self.compared).mean() if self.gan.game.loss.paired else 0.0
            return sigmoid(logits(points) - shift).numpy()[:, 0]

    def _draw_summary(self, folder: RunFolder) -> None:
        """What is drawn once, at the end."""
        sampler, frames = self.gan.sampler(), folder.all_samples()
        shown = [(folder.samples(self.gan.game.steps), "Samples after the last step")]

        def compare(path: str) -> None:
            real = self.compared[:BESIDE]
            labels = None if self.compared_labels is None else self.compared_labels[:BESIDE]
            made = sampler.sample(len(real), self.gan.seed, labels)
            pictures.save_png(path, pictures.side_by_side(real.reshape(made.shape), made))

        def report(path: str) -> None:
            last = {name: f"{value:.4g}" for name, value in self.records[-1].items()} if self.records else {}
            tables = {"The last record": last, "Settings": state.flat(self.config)}
            events = [
                f"step {each['step']:,}: {each.get('message')}" for each in read_lines(folder.file(EVENTS))
            ]
            title = f"minigan: {os.path.basename(os.path.abspath(folder.path))}"
            pictures.write_html(path, title, tables, shown, events)

        for name, caption, draw in (
            ("compare.png", "Real samples beside generated ones", None if sampler.points else compare),
            (
                "curves.png",
                "Losses, and the mean output of the discriminator",
                (lambda path: pictures.loss_curves(path, self.records)) if self.records else None,
            ),
            (
                "samples.gif",
                "The same latents at every picture of the run",
                (lambda path: pictures.save_gif(path, frames)) if frames else None,
            ),
        ):
            if draw:
                folder.draw(name, name, draw)
                shown.append((name, caption))
        folder.draw("report.html", "report.html", report)
