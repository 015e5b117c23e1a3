"""Training from images to a run folder: `GAN`, how a file becomes a `GAN` again, and the presets."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from minigan import checkpoint, models, optim, penalties, report, settings
from minigan.backend import Array, one_blas_thread
from minigan.data import Batches, as_images, digits
from minigan.errors import CheckpointError, ConfigError
from minigan.folder import LOGGED, WEIGHTS, Log, RunFolder
from minigan.game import Game
from minigan.losses import Loss
from minigan.nn import Module
from minigan.ops.random import Stream
from minigan.optim import Adam, Optimizer
from minigan.penalties import Penalty
from minigan.report import Record
from minigan.tape import no_grad
from minigan.tensor import Tensor, asarray

LATENTS = ("uniform", "normal")
GRID = 100  # samples in a picture
CHUNK = 4096  # samples made at a time, so that the memory of the layers does not grow with their number
SMALL_PRODUCT = 2**24  # multiply-adds of the largest matrix product up to which a second thread does not pay
FORMAT = 1  # of the checkpoint's settings; a reader refuses a newer one


class Run(NamedTuple):
    """What a call of `fit` did.

    Attributes:
        records: a dict per 10 steps: `step` (made so far), the means over these steps of the losses `d_loss` and
            `g_loss`, of `penalty`, and of `d_real` and `d_fake`, the mean D(x) and D(G(z)); `seconds` since the start
            and `steps_per_second`.
        out: the run folder, or `None`.
        seconds: the time that training took, compilation and pictures included.
    """

    records: list[Record]
    out: str | None
    seconds: float


class GAN:
    """A generator and a discriminator to be trained on images.

    Args:
        generator: from latents (N, latent) to samples (N, *shape) in [0, 1]; `latent` and `shape` are attributes of it.
        discriminator: from samples to logits (N, 1).
        loss: a name in `minigan.losses.table`, or a record of one's own.
        penalty: one of `minigan.penalties`, or several.
        optimizer: the generator's, and the discriminator's unless it has its own; by default Adam at 1e-3, b1 = 0.5.
        ema, d_steps, update, share_fake, smoothing, noise: as for `minigan.Game`.
        latent: what latents are drawn from, "uniform" in (-1, 1) or "normal" (0, 1).
        seed: of latents, batches, noise; the networks' weights have seeds of their own.

    Raises: `ConfigError` for a setting outside its range.

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
        latent: str = "uniform",
        seed: int = 0,
    ) -> None:
        if latent not in LATENTS:
            raise ConfigError(f"latent {latent!r} does not exist; there are {', '.join(LATENTS)}")
        if not all(hasattr(generator, name) for name in ("latent", "shape")):
            raise ConfigError("the generator needs attributes: latent, a number, and shape, of one sample")
        shapes = [tuple(network.shape) for network in (generator, discriminator) if hasattr(network, "shape")]
        if len(set(shapes)) > 1:
            raise ConfigError(
                f"the generator makes samples of {shapes[0]}, the discriminator takes {shapes[1]}"
            )
        self.shape, self.latents = shapes[0], (int(getattr(generator, "latent", 0)),)
        self.latent, self.seed = latent, seed
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
        )
        self.ema = ema
        self.dtype = next((p.dtype for p in generator.parameters().values()), np.dtype(np.float32))
        # Samples of a tanh lie in (-1, 1), images in [0, 1]: x ↦ 2 x - 1 takes the one to the other.
        self._signed = getattr(generator, "bounds", None) == (-1.0, 1.0)
        self._noise, self._prior = Stream(seed, "noise"), Stream(seed, "latent")

    def step(self, batches: Batches) -> dict[str, float]:
        """One round of the game on the batches and random numbers of this step; gives its metrics.

        The metrics are those of `minigan.Game.step`. Steps are counted from when the `GAN` was made.
        """
        step, game = self.game.steps, self.game
        prior = self._prior.at(step)
        reals = [self._real(batches.at(step * game.d_steps + k)) for k in range(game.d_steps)]
        latents = [self._draw(prior, batches.batch) for _ in range(game.d_steps + (not game.share_fake))]
        metrics = game.step(reals, latents, random=self._noise.at(step))
        return {name: metrics[name].item() for name in LOGGED}

    def _real(self, batch: Array) -> Tensor:
        batch = batch.reshape(len(batch), *self.shape).astype(self.dtype, copy=False)
        return asarray(batch * 2 - 1 if self._signed else batch)

    def _draw(self, stream: Stream, count: int) -> Tensor:
        shape = (count, *self.latents)
        if self.latent == "normal":
            return stream.normal(shape, dtype=self.dtype)
        return stream.uniform(shape, -1.0, 1.0, dtype=self.dtype)

    def fit(
        self,
        images: Any,
        *,
        steps: int = 10_000,
        batch: int = 64,
        out: str | os.PathLike[str] | None = None,
        progress: bool = False,
        sample_every: int = 1000,
        source: str = "an array",
    ) -> Run:
        """Train for `steps` more steps on `images`.

        Args:
            images: (N, H, W) or (N, H, W, C), uint8 or floats in [0, 1], of the networks' shape.
            batch: images in a step of the discriminator.
            out: a new or empty folder for the run: `config.toml`, `metrics.jsonl`, `samples/step_….png`, `curves.png`
                and `checkpoints/final.safetensors`. Needs the extra `cli`, and `plot` for the curves. By default
                nothing is written.
            progress: show it, live on a terminal and as lines elsewhere.
            sample_every: steps between two pictures of the same latents.
            source: where the images are from, for `config.toml`, which also identifies them by their SHA-256.

        Raises: `DataError` for other images; `ConfigError` for a setting outside its range and a folder that is not
            empty; `ExtraError` before training if a package is missing; `NonFiniteError` if a loss is NaN or infinite;
            `CheckpointError` if the weights cannot be written.
        """
        data = as_images(images, self.shape)
        _positive(steps=steps, batch=batch, sample_every=sample_every)
        batches = Batches(data, batch, Stream(self.seed, "data"))
        begun, start = time.perf_counter(), self.game.steps
        stop, records = start + steps, []
        with contextlib.ExitStack() as stack:
            # A run that diverges is found by its losses; NumPy's warnings would come in between.
            stack.enter_context(np.errstate(all="ignore"))
            networks = (self.game.generator, self.game.discriminator)
            if (
                batch * max(p.size for network in networks for p in network.parameters().values())
                <= SMALL_PRODUCT
            ):
                stack.enter_context(one_blas_thread())
            folder = None
            if out is not None:
                training = {"steps": steps, "batch": batch, "sample_every": sample_every, "first_step": start}
                described = {"source": source, "shape": list(data.shape), "dtype": data.dtype.name}
                described["sha256"] = checkpoint.digest({"images": data})
                config = settings.plain(self.config() | {"training": training, "data": described})
                folder = stack.enter_context(RunFolder(os.fspath(out), config))
                folder.picture(start, self.sample(GRID, self.seed))
            if progress and self.game.share_fake:
                report.say("one generated batch a step serves both players")
            shown = report.progress(start, stop) if progress else report.Silence()
            stack.callback(shown.close)
            log = Log(start)
            while self.game.steps < stop:
                metrics = self.step(batches)
                record = log.add(self.game.steps, metrics, last=self.game.steps == stop)
                if record:
                    records.append(record)
                    shown.update(record)
                if folder:
                    folder.write(record)
                    if (self.game.steps - start) % sample_every == 0 or self.game.steps == stop:
                        folder.picture(self.game.steps, self.sample(GRID, self.seed))
            if folder:
                self.save(os.path.join(folder.path, WEIGHTS))
                folder.draw_curves(records)
        return Run(records, None if out is None else os.fspath(out), time.perf_counter() - begun)

    def sample(self, n: int, seed: int = 0, raw: bool = False) -> Array:
        """`n` new images: float32 (n, H, W, C) in [0, 1], from the averaged weights or, with `raw`, the last ones.

        The same seed gives the same latents, and the first of many are those of few. Samples of a flat shape (P,) are
        square if P is a square, otherwise one row.
        """
        _positive(n=n)
        game = self.game
        generator = game.generator if raw or game.ema_generator is None else game.ema_generator
        with no_grad():
            z = self._draw(Stream(seed, "sample"), n)
            parts = [generator(z[i : i + CHUNK]).numpy() for i in range(0, n, CHUNK)]
        samples = np.concatenate(parts).astype(np.float32, copy=False)
        samples = samples * 0.5 + 0.5 if self._signed else samples
        return np.clip(samples, 0, 1).reshape(n, *_as_image(self.shape))

    def config(self) -> dict[str, Any]:
        """All settings as numbers, texts, lists and dicts of them: what `config.toml` holds and `build` takes.

        What cannot be described, such as a network of one's own, stands as its `repr`; what is off is left out.
        """
        game = self.game
        described = {
            "seed": self.seed,
            "loss": game.loss.name,
            "latent": self.latent,
            "ema": self.ema,
            "d_steps": game.d_steps,
            "update": game.update,
            "share_fake": game.share_fake,
            "smoothing": game.smoothing,
            "noise": repr(game.noise) if callable(game.noise) else game.noise,
            "generator": settings.describe_network(game.generator),
            "discriminator": settings.describe_network(game.discriminator),
            "optimizer": settings.describe_optimizer(self.optimizer),
            "discriminator_optimizer": settings.describe_optimizer(self.discriminator_optimizer),
            "penalty": [settings.describe_penalty(penalty) for penalty in game.penalties],
        }
        return settings.plain(described)  # type: ignore[no-any-return]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all weights, averages, optimiser states and counters, with the settings, to a safetensors file."""
        import json  # where it is used: not everyone who imports minigan writes a run

        state = self.game.state()
        about = {"format": FORMAT, "config": self.config(), "environment": _environment()}
        about["sha256"] = checkpoint.digest(state)
        # One entry, because safetensors writes several in an order that changes from process to process.
        checkpoint.save(path, state, {"minigan": json.dumps(about, sort_keys=True)})


def restore(path: str | os.PathLike[str]) -> GAN:
    """The GAN of a run folder, or of a file written by `GAN.save`, as it was then.

    Raises `CheckpointError` if the file is missing, damaged or not one of minigan's, or if something in its settings,
    such as a network, a loss or a schedule, is not of minigan itself (build that yourself and use `minigan.load`).
    """
    import json

    name = os.fspath(path)
    name = os.path.join(name, WEIGHTS) if os.path.isdir(name) else name
    arrays, metadata = checkpoint.load_all(name)
    try:
        about = json.loads(metadata["minigan"])
        version, config = int(about["format"]), dict(about["config"])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        raise CheckpointError(f"{name}: has no settings of minigan in its header") from None
    if version > FORMAT:
        raise CheckpointError(
            f"{name}: has format {version}, this minigan reads up to {FORMAT}: upgrade minigan"
        )
    if checkpoint.digest(arrays) != about.get("sha256"):
        raise CheckpointError(f"{name}: is damaged: its arrays do not have the SHA-256 in its header")
    try:
        gan = build(config)
        gan.game.load_state(arrays)
    except (ConfigError, CheckpointError) as error:
        raise CheckpointError(f"{name}: {error}") from None
    return gan


def _positive(**settings: int) -> None:
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ConfigError(f"{name} is {value!r}: expected an integer from 1")


def _as_image(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) > 1:
        return shape
    side = math.isqrt(shape[0])
    return (side, side, 1) if side * side == shape[0] else (1, shape[0], 1)


def _environment() -> dict[str, Any]:
    """What the bits of a run depend on besides its settings."""
    from importlib import metadata  # slow to import, and only needed where a file is written
    from platform import machine, python_version

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "none"

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = {name: version(name) for name in ("minigan", "numpy", "numba")}
    return {**packages, "python": python_version(), "machine": machine(), "cores": cores}


def build(config: Mapping[str, Any]) -> GAN:
    """A new GAN with the settings that `GAN.config` gave. Names are looked up in minigan's own tables only.

    Raises `ConfigError` for a name or setting that does not exist.

    >>> import minigan as mg
    >>> from minigan.train import build
    >>> g, d = mg.models.mlp_generator(2, (4,), (8, 8, 1)), mg.models.mlp_discriminator((8, 8, 1), (4,))
    >>> gan = mg.GAN(g, d, loss="hinge")
    >>> build(gan.config()).config() == gan.config()
    True
    """
    rest = {k: v for k, v in config.items() if k not in ("training", "data")}
    try:
        rest |= {who: settings.build_network(rest[who]) for who in ("generator", "discriminator")}
        rest |= {who: settings.build_optimizer(rest[who]) for who in ("optimizer", "discriminator_optimizer")}
        rest["penalty"] = [settings.build_penalty(penalty) for penalty in rest["penalty"]]
        return GAN(**{"ema": None, **rest})
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"the settings of a GAN are incomplete or wrong: {error!r}") from None


# Presets


class Preset(NamedTuple):
    """A data set with networks and settings that train on it: the article's networks, Adam falling to rate 0, R1."""

    images: Callable[[], Array]
    shape: tuple[int, ...]
    steps: int
    batch: int = 64
    lr: float = 3e-3
    decay_from: float = 0.5  # the part of the run after which the rates fall
    gamma: float = 0.1
    hidden: tuple[int, ...] = (128, 128)
    latent: int = 100

    def gan(self, *, steps: int, lr: float, seed: int) -> GAN:
        """A new GAN with these settings; the rates reach 0 after `steps`."""
        _positive(steps=steps)
        return GAN(
            models.mlp_generator(self.latent, self.hidden, self.shape, seed=seed),
            models.mlp_discriminator(self.shape, self.hidden, seed=seed),
            penalty=penalties.r1(self.gamma),
            optimizer=Adam(optim.linear(lr, steps, begin=self.decay_from), b1=0.5),
            seed=seed,
        )


PRESETS = {"digits": Preset(lambda: digits()[0], shape=(8, 8, 1), steps=6_000)}


def preset(name: str) -> Preset:
    """The preset of that name; `ConfigError` lists the names there are."""
    return settings.named(PRESETS, "preset", name)  # type: ignore[no-any-return]
