"""Training from data to a run folder: `GAN`, and how a file becomes one again."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minigan import checkpoint, program, report, settings, state
from minigan.backend import Array, device_name, one_blas_thread
from minigan.data import Batches
from minigan.data.prefetch import Prefetch
from minigan.errors import CheckpointError, ConfigError
from minigan.game import Game
from minigan.losses import Loss
from minigan.nn import Module
from minigan.ops.random import Stream
from minigan.optim import Adam, Optimizer
from minigan.packs import packed
from minigan.penalties import Penalty
from minigan.report import LOGGED, Record
from minigan.sampling import Sampler, positive
from minigan.tensor import Tensor, asarray
from minigan.trace import host, state as of_thread

if TYPE_CHECKING:
    from minigan.loop import Plan

Step = Callable[[Batches], dict[str, Tensor]]

SMALL_PRODUCT = 2**24  # multiply-adds of the largest matrix product up to which a second thread does not pay
# Samples of the data that those of the generator are compared with: so many, but no more numbers than that.
COMPARED, NUMBERS = 2048, 2**22
LISTED = 10  # differences named in one error


class Run(NamedTuple):
    """What a call of `fit` did.

    Attributes:
        records: a dict per 10 steps: `step` (made so far), the means over these steps of the losses `d_loss` and
            `g_loss`, of `penalty`, and of `d_real` and `d_fake`, the mean D(x) and D(G(z)); `seconds` since the start,
            `steps_per_second` and `images_per_second`, the real samples that the discriminator sees. Where the run was
            looked at, also what `minigan.monitor.Monitor.look` found, and `d_gap`, the mean D(x) - D(G(z)) since then.
        out: the run folder, or `None`.
        seconds: the time that training took, compilation and pictures included.
        events: a dict per warning, skipped step, rollback, and so on: `step`, `event`, its kind, and `message`.
    """

    records: list[Record]
    out: str | None
    seconds: float
    events: list[dict[str, Any]]


class GAN:
    """A generator and a discriminator to be trained on images or points.

    Args:
        generator: from latents (N, latent) to samples (N, *shape); `latent` and `shape` are attributes of it. Samples
            are images with values in its `bounds`; or points, if these are `None` and the shape is (P,).
        discriminator: from samples to logits (N, 1).
        loss: a name in `minigan.losses.table`, or a record of one's own.
        penalty: one of `minigan.penalties`, or several.
        optimizer: the generator's, and the discriminator's unless it has its own; by default Adam at 1e-3, b1 = 0.5.
        ema, d_steps, update, share_fake, smoothing, noise, consensus, unroll, pack, feature_matching, augment: as for
            `minigan.Game`.
        latent: what latents are drawn from, "uniform" in (-1, 1) or "normal" (0, 1).
        seed: of latents, batches, noise; the networks' weights have seeds of their own.
        device: where all is computed, "cpu", "cuda" or "cuda:1": both networks are moved there. By default where they
            are. Data and samples are NumPy's arrays on any device.

    Both networks are conditional, or none: where they have an attribute `classes`, they are called with `labels`, those
    of the real samples in training, and have to be `minigan.nn.Conditional`.

    Raises: `ConfigError` for a setting outside its range; `DeviceError` for a device that is not there.

    >>> import minigan as mg
    >>> g = mg.models.mlp_generator(latent=8, hidden=(16,), shape=(8, 8, 1))
    >>> d = mg.models.mlp_discriminator(shape=(8, 8, 1), hidden=(16,))
    >>> gan = mg.GAN(g, d, penalty=mg.penalties.r1(0.1))
    >>> run = gan.fit(mg.data.digits()[0], steps=20, batch=16)
    >>> run.records[-1]["step"], gan.sample(3).shape
    (20, (3, 8, 8, 1))
    """

    def __init__(
        self,
        generator: Module,
        discriminator: Module,
        *,
        loss: str | Loss = "non_saturating",
        penalty: Penalty | Sequence[Penalty] | None = None,
        optimizer: Optimizer | None = None,
        discriminator_optimizer: Optimizer | None = None,
        ema: float | None = 0.999,
        d_steps: int = 1,
        update: str = "alternating",
        share_fake: bool = False,
        smoothing: float = 0.0,
        noise: float | Callable[[int], float] = 0.0,
        consensus: float = 0.0,
        unroll: int = 0,
        pack: int = 1,
        feature_matching: float = 0.0,
        augment: str = "",
        latent: str = "uniform",
        seed: int = 0,
        device: str | None = None,
    ) -> None:
        self._sampler = Sampler(generator, latent)
        if device is not None:
            for network in (generator, discriminator):
                network.to(device_name(device))
        of_classes = [getattr(network, "classes", None) for network in (generator, discriminator)]
        if of_classes[0] != of_classes[1]:
            raise ConfigError(
                f"the generator is for {of_classes[0]} classes, the discriminator for {of_classes[1]}"
            )
        self.seed = seed
        self.optimizer = optimizer or Adam(1e-3, b1=0.5)
        self.discriminator_optimizer = discriminator_optimizer or self.optimizer
        self.game = Game(
            generator,
            discriminator,
            loss=loss,
            penalty=penalty,
            generator_optimizer=self.optimizer,
            discriminator_optimizer=self.discriminator_optimizer,
            ema=ema,
            d_steps=d_steps,
            update=update,
            share_fake=share_fake,
            smoothing=smoothing,
            noise=noise,
            consensus=consensus,
            unroll=unroll,
            pack=pack,
            feature_matching=feature_matching,
            augment=augment,
        )
        made, taken = packed(self._sampler.shape, pack), getattr(discriminator, "shape", None)
        if taken is not None and tuple(taken) != made:
            by = f", packed by {pack}: {made}" if pack > 1 else ""
            raise ConfigError(
                f"the generator makes samples of {self._sampler.shape}{by}, the discriminator takes {tuple(taken)}"
            )
        if augment and len(self._sampler.shape) != 3:
            raise ConfigError(
                f"augment is {augment!r}: it is for images (H, W, C), not for samples of {self._sampler.shape}"
            )
        self.ema = ema
        self._noise, self._prior = Stream(seed, "noise"), Stream(seed, "latent")
        self._ahead: Prefetch | None = None

    def step(self, batches: Batches) -> dict[str, Tensor]:
        """One round of the game on the batches and random numbers of this step; gives its metrics.

        The metrics are those of `minigan.Game.step`. Steps are counted from when the `GAN` was made.
        """
        game = self.game
        host(self._seek)
        arrays = [asarray(x) for x in host(lambda: self._taken(batches), game.device)]
        given = {
            kind: arrays[i * game.d_steps : (i + 1) * game.d_steps]
            for i, kind in enumerate(self._kinds(batches))
        }
        latents = [
            self._sampler.draw(self._prior, batches.batch, game.device)
            for _ in range(game.d_steps + (not game.share_fake))
        ]
        metrics = game.step(given.pop("reals"), latents, random=self._noise, **given)
        return {name: metrics[name] for name in LOGGED}

    def _seek(self) -> None:
        for stream in (self._prior, self._noise):
            stream.seek(self.game.steps)

    def _kinds(self, batches: Batches) -> dict[str, Callable[[Batches, int], Any]]:
        """What a step of the game is given of the data, by name, and what makes it."""
        kinds: dict[str, Callable[[Batches, int], Any]] = {"reals": self._real}
        if batches.labels is not None and self._sampler.classes is not None:
            kinds["labels"] = self._labels
        return kinds if batches.weights is None else kinds | {"weights": self._weights}

    def _made(self, batches: Batches) -> list[Array]:
        """The arrays of this round, kind by kind."""
        return [make(batches, k) for make in self._kinds(batches).values() for k in range(self.game.d_steps)]

    def _taken(self, batches: Batches) -> list[Array]:
        """The same, if they are on their way to the device already."""
        return self._made(batches) if self._ahead is None else self._ahead.take(self.game.steps)

    def _real(self, batches: Batches, k: int) -> Array:
        """The batch of the discriminator's step `k` of this round."""
        return self._sampler.seen(batches.at(self._number(k)))

    def _labels(self, batches: Batches, k: int) -> Array | None:
        return batches.labels_at(self._number(k))

    def _weights(self, batches: Batches, k: int) -> Array:
        weights: Any = batches.weights_at(self._number(k))
        return weights.astype(self._sampler.dtype, copy=False)  # type: ignore[no-any-return]

    def _number(self, k: int) -> int:
        return self.game.steps * self.game.d_steps + k

    def fit(
        self,
        data: Any,
        labels: Any = None,
        *,
        steps: int = 10_000,
        batch: int = 64,
        out: str | os.PathLike[str] | None = None,
        resume: bool = False,
        progress: bool = False,
        sample_every: int = 1000,
        save_every: int = 1000,
        on_nonfinite: str = "stop",
        max_faults: int = 10,
        monitor_every: int = 500,
        on_collapse: str = "warn",
        compile: bool = True,
        source: str | Mapping[str, Any] = "an array",
        sampling: Any = "shuffled",
        importance_weights: bool = False,
    ) -> Run:
        """Train for `steps` more steps.

        Args:
            data: images, (N, H, W) or (N, H, W, C), uint8 or floats in [0, 1], of the networks' shape; or for a
                generator of points (N, P) floats.
            labels: for conditional networks, the classes of the data: integers (N,) from 0 to below `classes`. For
                others they are used for balanced sampling only.
            batch: samples in a step of the discriminator.
            out: a new or empty folder for the run; docs/6-runs.md says what is in it. Needs the extra `cli`, and
                `plot` for the curves. By default nothing is written.
            resume: go on with the run in `out`, bit for bit as if it had not been interrupted, until it has made
                `steps` steps; where there is none, start it.
            progress: show it, live on a terminal and as lines elsewhere.
            sample_every, save_every: steps between two pictures of the same latents, and between two checkpoints.
            on_nonfinite: what follows a NaN or an infinity in a loss, a gradient, a weight or the optimisers' memory;
                the step in which it is found changes nothing. "stop" the run with `NonFiniteError`; "skip" the step
                and its batch; or "rollback" to the state at the last multiple of `save_every`, with half the rates.
            max_faults: how often it may skip or roll back before it stops.
            monitor_every: steps between two looks at whether the generator collapses, which change nothing in the
                training; 0 for none. docs/6-runs.md says what they look at.
            on_collapse: what follows when two in a row find it: "warn", an event; or "stop" the run, with a checkpoint,
                by `CollapseError`.
            compile: replay the step as one program, see `minigan.compile`; otherwise every step runs in Python, as it
                must where a network, a loss or a penalty of your own does something else in every step.
            source: where the data is from, for `config.toml`, which also identifies it by its SHA-256; or a table of
                such facts.
            sampling: "shuffled", where each epoch has every sample once; "balanced", where every class is drawn equally
                often; or weights (N,), in proportion to which samples are drawn. What the generator learns is then the
                distribution of the batches, in which rare classes may be frequent.
            importance_weights: weigh the real samples in the loss by their share of the data over that in the batches,
                so that the generator learns the distribution of the data after all. For networks without classes.

        While it trains, SIGINT and SIGTERM end it after the step that is going on, with a checkpoint, by
        `KeyboardInterrupt` or `SystemExit(143)`; handlers of your own are left alone. A second signal ends the process
        at once.

        Raises: `DataError` for other data or labels; `ConfigError` for a setting outside its range, for labels that are
            not wanted or missing, for importance weights of classes, which conditional networks are told, or of what
            is never drawn, and for a folder that is not empty or in use; `ExtraError` before training if a
            package is missing; `NonFiniteError` and `CollapseError`, see above; `CheckpointError` if the first or the
            last checkpoint cannot be written, or the one to resume is damaged or of another configuration, with the
            differences.
        """
        # Not at the top: all that belongs to runs would be a tenth of the time to import minigan.
        from minigan.folder import RunFolder
        from minigan.guard import Guard
        from minigan.loop import GRID, Loop, Plan
        from minigan.monitor import Monitor

        positive(
            steps=steps, batch=batch, sample_every=sample_every, save_every=save_every, max_faults=max_faults
        )
        chosen = sampling if isinstance(sampling, str) else "weighted"
        guard, monitor = Guard(on_nonfinite, max_faults), Monitor(monitor_every, on_collapse, self.seed)
        plan = Plan(
            steps,
            batch,
            sample_every,
            save_every,
            on_nonfinite,
            max_faults,
            monitor_every,
            on_collapse,
            self.game.steps,
            chosen,
            importance_weights,
        )
        stream = Stream(self.seed, "data")
        classes = self._sampler.classes
        if classes is None and labels is not None and chosen != "balanced":
            raise ConfigError(
                f"labels are given, but the networks have no classes, and {chosen} sampling needs none"
            )
        if classes is not None and labels is None:
            raise ConfigError(f"the networks are for {classes} classes, but the data has no labels")
        if classes is not None and importance_weights:
            raise ConfigError(
                f"importance weights are given to networks without classes, these have {classes}"
            )
        known = {"labels": labels} if classes is None else {"labels": labels, "classes": classes}
        known |= {"sampling": sampling, "importance_weights": importance_weights}
        batches = Batches(data, batch, stream, self._sampler.shape, self._sampler.points, **known)
        samples = batches.samples
        begun = time.perf_counter()
        with contextlib.ExitStack() as stack:
            # A run that diverges is found by its losses; NumPy's warnings would come in between.
            stack.enter_context(np.errstate(all="ignore"))
            networks = (self.game.generator, self.game.discriminator)
            largest = max(p.size for network in networks for p in network.parameters().values())
            if batch * largest <= SMALL_PRODUCT:
                stack.enter_context(one_blas_thread())
            folder, found, config = None, None, dict[str, Any]()
            notes: list[str] = []
            if out is not None:
                folder = stack.enter_context(RunFolder(os.fspath(out), resume))
                config = self._full_config(plan, batches, source)
                found = state.newest(folder.path, notes.append) if resume else None
            if found:
                plan = self._continue(found, plan, config)
                config |= {"training": settings.plain(plan._asdict())}
            shown = report.progress(self.game.steps, plan.stop) if progress else report.Progress()
            stack.callback(shown.close)
            if progress and self.game.share_fake:
                report.say("one generated batch a step serves both players")
            step: Step = program.compile(self.step) if compile else self.step
            if self.game.device != "cpu":
                step = stack.enter_context(self._fetching_ahead(step, batches))
            count = min(len(samples), COMPARED, max(GRID, NUMBERS // samples[0].size))
            known = {} if classes is None else {"labels": batches.labels}
            compared = Batches(samples, count, Stream(self.seed, "compared"), **known)
            loop = Loop(self, step, batches, compared, plan, guard, monitor, config, folder, shown)
            if folder:
                folder.configure(config)
                records = folder.rewind(self.game.steps)
            if found:
                loop.resume(found, records, notes)
            loop.run()
        return Run(
            loop.records, None if out is None else os.fspath(out), time.perf_counter() - begun, loop.events
        )

    @contextlib.contextmanager
    def _fetching_ahead(self, step: Step, batches: Batches) -> Iterator[Step]:
        """In the block, the step with the arrays of the next one made and sent while it runs on the device."""
        self._ahead = ahead = Prefetch(lambda: self._made(batches), self.game.device)

        def both(batches: Batches) -> dict[str, Tensor]:
            metrics = step(batches)
            ahead.begin(self.game.steps)
            return metrics

        before, of_thread.meanwhile = of_thread.meanwhile, lambda: ahead.begin(self.game.steps)
        try:
            yield both
        finally:
            self._ahead, of_thread.meanwhile = None, before

    def _full_config(self, plan: "Plan", batches: Batches, source: str | Mapping[str, Any]) -> dict[str, Any]:
        """All settings of a run: of the GAN, of the training, and what its data is."""
        about = {"source": source} if isinstance(source, str) else dict(source)
        about |= {"shape": list(batches.samples.shape), "dtype": batches.samples.dtype.name}
        about["sha256"] = data_digest(batches.samples, batches.labels, batches.chances)
        return settings.plain(self.config() | {"training": plan._asdict(), "data": about})  # type: ignore[no-any-return]

    def _continue(self, found: state.Found, plan: "Plan", config: Mapping[str, Any]) -> "Plan":
        """Take over the state of a checkpoint, if it is of this configuration; gives the plan it belongs to."""
        try:
            have, want = (_decisive(each) for each in (found.about["config"], config))
        except (KeyError, TypeError):
            raise CheckpointError(f"{found.path}: is not of a run that can be resumed") from None
        wrong = state.differences(have, want)
        if wrong:
            rest = f"; and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
            raise CheckpointError(
                f"{found.path}: is of another configuration: {'; '.join(wrong[:LISTED])}{rest}"
            )
        plan = plan._replace(first_step=found.about["config"]["training"]["first_step"])
        if found.about["step"] > plan.stop:
            raise ConfigError(
                f"steps is {plan.steps}: the run has made {found.about['step'] - plan.first_step} already"
            )
        try:
            self.game.load_state(found.arrays)
        except CheckpointError as error:
            raise CheckpointError(f"{found.path}: {error}") from None
        return plan

    def sample(self, n: int, seed: int = 0, raw: bool = False, labels: Any = None) -> Array:
        """`n` new samples, from the averaged weights or, with `raw`, the last ones.

        labels: of conditional networks, one class for all, or integers (n,); by default all classes in turn.

        Images are float32 (n, H, W, C) in [0, 1], where those of a flat shape (P,) are square if P is a square and
        otherwise one row; points are float32 (n, P). The same seed gives the same latents, and the first of many
        samples are those of few.
        """
        return self.sampler(raw).sample(n, seed, labels)

    def interpolate(
        self, rows: int, columns: int, seed: int = 0, raw: bool = False, labels: Any = None
    ) -> Array:
        """Samples along `rows` walks of `columns` steps between latents, row after row; otherwise as `sample`.

        labels: one class for all walks, or one for each.
        """
        return self.sampler(raw).interpolate(rows, columns, seed, labels)

    def sampler(self, raw: bool = False) -> Sampler:
        """What draws from the averaged generator or, with `raw`, from the one that is trained."""
        average = self.game.ema_generator
        return self._sampler if raw or average is None else Sampler(average, self._sampler.latent)

    def config(self) -> dict[str, Any]:
        """All settings as numbers, texts, lists and dicts of them: what `config.toml` holds and `build` takes.

        What cannot be described, such as a network of one's own, stands as its `repr`, and what is off as "none".
        """
        game = self.game
        described = {
            "seed": self.seed,
            "loss": game.loss.name,
            "latent": self._sampler.latent,
            "ema": self.ema,
            "d_steps": game.d_steps,
            "update": game.update,
            "share_fake": game.share_fake,
            "smoothing": game.smoothing,
            "noise": settings.describe_rate(game.noise),
            "consensus": game.consensus,
            "unroll": game.unroll,
            "pack": game.pack,
            "feature_matching": game.feature_matching,
            "augment": game.augment,
            "generator": settings.describe_network(game.generator),
            "discriminator": settings.describe_network(game.discriminator),
            "optimizer": settings.describe_optimizer(self.optimizer),
            "discriminator_optimizer": settings.describe_optimizer(self.discriminator_optimizer),
            "penalty": [settings.describe_penalty(penalty) for penalty in game.penalties],
        }
        return settings.plain(described)  # type: ignore[no-any-return]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all weights, averages, optimiser states and counters, with the settings, to a safetensors file."""
        about = {"config": self.config(), "step": self.game.steps, "device": self.game.device}
        state.write(path, self.game.state(), about)


def data_digest(samples: Array, labels: Array | None = None, chances: Array | None = None) -> str:
    """The SHA-256 by which a run knows its data, and the labels and weights if it is trained with them."""
    others = {"labels": labels, "chances": chances}
    return checkpoint.digest({"images": samples} | {k: x for k, x in others.items() if x is not None})


def _decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide the bits of a run, however long it is and whatever is written of it."""
    data = {key: config["data"][key] for key in ("shape", "dtype", "sha256")}
    # The files of earlier versions say nothing of what was not there yet.
    training = {"sampling": "shuffled", "importance_weights": False, **config["training"]}
    training = {key: training[key] for key in ("batch", "sampling", "importance_weights")}
    return {**settings.completed(config), "training": training, "data": data}


def _say(text: str) -> None:
    report.say(f"minigan: note: {text}", error=True)


def _newest(path: str | os.PathLike[str]) -> state.Found:
    found = state.newest(path, _say)
    if found is None:
        raise CheckpointError(f"{os.fspath(path)}: has no checkpoint")
    return found


def restore(path: str | os.PathLike[str], device: str = "cpu") -> GAN:
    """The GAN of a run folder, by its newest checkpoint that is whole, or of a file written by `GAN.save`.

    It computes on `device`, wherever the file is from.

    Raises `CheckpointError` if the file is missing, damaged or not one of minigan's, or if something in its settings,
    such as a network, a loss or a schedule, is not of minigan itself (build that yourself and use `minigan.load`).
    """
    found = _newest(path)
    try:
        gan = build(found.about["config"], limit=sum(x.size for x in found.arrays.values()), device=device)
        gan.game.load_state(found.arrays)
    except (ConfigError, CheckpointError) as error:
        raise CheckpointError(f"{found.path}: {error}") from None
    return gan


def sampler(path: str | os.PathLike[str], raw: bool = False, device: str = "cpu") -> Sampler:
    """What draws from the generator of a run folder or file: its averaged weights or, with `raw`, the last ones.

    It computes on `device`, wherever the file is from.

    Only the generator has to be one of minigan's; otherwise errors as for `restore`.
    """
    found = _newest(path)
    part = "generator." if raw or not any(name.startswith("ema.") for name in found.arrays) else "ema."
    arrays = {name.removeprefix(part): x for name, x in found.arrays.items() if name.startswith(part)}
    try:
        config = found.about["config"]
        generator = settings.build_network(
            config["generator"], limit=sum(x.size for x in found.arrays.values())
        )
        generator.load_state(arrays)
        return Sampler(generator.to(device), config["latent"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{found.path}: its settings lack {error}") from None
    except (ConfigError, CheckpointError) as error:
        raise CheckpointError(f"{found.path}: {error}") from None


def build(config: Mapping[str, Any], limit: int | None = None, device: str | None = None) -> GAN:
    """A new GAN with the settings that `GAN.config` gave. Names are looked up in minigan's own tables only.

    device: as for `GAN`: it is not among the settings, as a run may go on on another one.

    Raises `ConfigError` for a name or setting that does not exist, and for networks of more than `limit` weights,
    before they are made.

    >>> import minigan as mg
    >>> from minigan.train import build
    >>> g, d = mg.models.mlp_generator(2, (4,), (8, 8, 1)), mg.models.mlp_discriminator((8, 8, 1), (4,))
    >>> gan = mg.GAN(g, d, loss="hinge")
    >>> build(gan.config()).config() == gan.config()
    True
    """
    return GAN(**settings.arguments(config, limit), device=device)
