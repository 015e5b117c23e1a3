"""The game of two players as one step: what each minimises, on which batch, and in which order they move.

    discriminator:  L_D(D(x), D(G(z))) + penalties, by the gradient in its own parameters; G(z) is a constant
    generator:      L_G(D(G(z))), by the gradient in its own parameters; D is only passed through

`grad` visits only what lies between the loss and the parameters it is asked for, so neither player's step
computes a derivative for the other's weights.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigan import losses
from minigan.analysis.game import Field
from minigan.backend import FLOATS, Array
from minigan.errors import CheckpointError, ConfigError, NonFiniteError, ShapeError
from minigan.losses import Loss
from minigan.nn.module import ASSIGN, Module, assign, check_arrays, forward
from minigan.ops import Stream, all_finite, mean, sigmoid
from minigan.optim import EMA, Adam, Optimizer
from minigan.penalties import Penalty
from minigan.tape import apply, grad, no_grad, recording
from minigan.tensor import Tensor, lift, tensor
from minigan.trace import host, recorded_by, require, undone_by

UPDATES = ("alternating", "simultaneous")
LISTED = 3  # tensors that a message about NaN and infinities names


class _Player:
    """A network, its optimiser and what that remembers."""

    def __init__(self, name: str, network: Module, optimizer: Optimizer) -> None:
        self.name, self.network, self.optimizer = name, network, optimizer
        self.parameters = network.parameters()
        self.memory = optimizer.init(self.parameters)
        self.state = network.state()
        # What a step changes and reads: floats of the network, and the slots by their name and the parameter's.
        slots = {f"{k}.{name}": x for k, xs in self.memory.slots.items() for name, x in xs.items()}
        self.tensors = {name: x for name, x in self.state.items() if x.dtype in FLOATS} | slots

    def gradients(self, losses: dict[str, Tensor], others: dict[str, Tensor]) -> list[Tensor]:
        """Those of the sum of the losses in this player's parameters, and in no other's.

        Raises `NonFiniteError`, saying what and where, if a NaN or an infinity is among the losses, the gradients, what
        the update reads besides them, or the `others`.
        """
        gradients = grad(list(losses.values()), list(self.parameters.values()))
        with no_grad():
            state = self.tensors | others
            fine = all_finite([*losses.values(), *gradients, *state.values()])

        def refuse() -> None:
            found = losses | {
                f"gradient.{name}": g for name, g in zip(self.parameters, gradients, strict=True)
            }
            raise NonFiniteError(f"{self.name}: {'; '.join(_not_finite(found | state))}")

        require(fine.array, refuse)
        return gradients

    def move(self, gradients: list[Tensor], rate: Callable[[Optimizer], float]) -> None:
        """Make one step of the optimiser, at the rate that the game has for it."""
        self.optimizer.update(self.parameters, gradients, self.memory, lambda: rate(self.optimizer))


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """What stands in which tensor, for the first few of those with NaN or infinities."""
    counts = {name: x.size - int(np.isfinite(x.array).sum()) for name, x in tensors.items()}
    found = [
        f"{name} is {tensors[name].item()}"
        if tensors[name].size == 1
        else f"{name} has {n} of {tensors[name].size}"
        for name, n in counts.items()
        if n
    ]
    return [*found[:LISTED], f"and {len(found) - LISTED} more"] if len(found) > LISTED else found


def _as_batches(batches: Any) -> list[Tensor]:
    return (
        [lift(batches)] if isinstance(batches, (Tensor, np.ndarray)) else [lift(batch) for batch in batches]
    )


class Game:
    """Two networks that train against each other; `step` makes one round of the game.

    Args:
        generator: from latents (N, ...) to samples (N, ...).
        discriminator: from samples to logits (N, 1).
        loss: a name in `minigan.losses.table`, or a record of one's own.
        penalty: one of `minigan.penalties`, or several, added to the discriminator's loss.
        generator_optimizer, discriminator_optimizer: by default Adam at 1e-3 with b1 = 0.5.
        ema: the decay of the average of the generator's weights in `ema_generator`; `None` for no average.
        d_steps: steps of the discriminator per step of the generator.
        update: "alternating", where the generator answers the discriminator that has just been updated, or
            "simultaneous", where both gradients are taken at the same point and then both players move.
        share_fake: the generator's step goes on from the batch of the discriminator's last step.
        smoothing: real samples have the label 1 - smoothing (Salimans et al. 2016, §3.4).
        noise: the standard deviation of normal noise on everything that the discriminator sees (Sønderby et
            al. 2017, §3), or a function that gives it from the step.

    Raises: `ConfigError` for a setting outside its range.

    The game holds the parameters that the networks have when it is made, and changes them in place.

    >>> import minigan as mg
    >>> g = mg.models.mlp_generator(latent=2, hidden=(8,), shape=(2,), output=None)
    >>> d = mg.models.mlp_discriminator(shape=(2,), hidden=(8,))
    >>> game = Game(g, d, penalty=mg.penalties.r1(0.1))
    >>> random = mg.ops.Stream(0, "docs")
    >>> real, *latents = (random.normal((4, 2)) for _ in range(3))
    >>> metrics = game.step(real, latents, random=random)
    >>> list(metrics)
    ['d_loss', 'penalty', 'd_real', 'd_fake', 'g_loss']
    """

    def __init__(
        self,
        generator: Module,
        discriminator: Module,
        *,
        loss: str | Loss = "non_saturating",
        penalty: Penalty | Sequence[Penalty] | None = None,
        generator_optimizer: Optimizer | None = None,
        discriminator_optimizer: Optimizer | None = None,
        ema: float | None = 0.999,
        d_steps: int = 1,
        update: str = "alternating",
        share_fake: bool = False,
        smoothing: float = 0.0,
        noise: float | Callable[[int], float] = 0.0,
    ) -> None:
        self.generator, self.discriminator = generator, discriminator
        self.loss = losses.find(loss)
        given: Any = [] if penalty is None else penalty
        self.penalties: tuple[Penalty, ...] = tuple(given) if isinstance(given, (list, tuple)) else (given,)
        self.d_steps, self.update, self.share_fake = d_steps, update, share_fake
        self.smoothing, self.noise = smoothing, noise
        self._check_settings()
        self.steps = 0
        self._counts_before: list[int] = []
        self.rate_scale = 1.0  # of both players' learning rates
        self._of_generator = _Player("generator", generator, generator_optimizer or Adam(1e-3, b1=0.5))
        self._of_discriminator = _Player(
            "discriminator", discriminator, discriminator_optimizer or Adam(1e-3, b1=0.5)
        )
        self._average = None if ema is None else EMA(ema)
        self.ema_generator = None if ema is None else copy.deepcopy(generator)
        self._averages = {} if self.ema_generator is None else self.ema_generator.state()
        self._checked_averages = {f"average.{k}": x for k, x in self._averages.items() if x.dtype in FLOATS}
        self._originals = generator.state()
        self._touched = [(x, Tensor(np.empty_like(x.array))) for x in self._touched_tensors()]

    def _check_settings(self) -> None:
        for penalty in self.penalties:
            if not isinstance(penalty, Penalty):
                raise ConfigError(
                    f"Game: penalty is {penalty!r}, expected one such as minigan.penalties.r1(0.1)"
                )
        if (
            isinstance(self.d_steps, bool)
            or not isinstance(self.d_steps, (int, np.integer))
            or self.d_steps < 1
        ):
            raise ConfigError(f"Game: d_steps is {self.d_steps!r}, expected an integer from 1")
        if self.update not in UPDATES:
            raise ConfigError(f"Game: update is {self.update!r}, expected one of {', '.join(UPDATES)}")
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"Game: smoothing is {self.smoothing}, expected 0 <= smoothing < 1")
        if self.smoothing and not self.loss.labels:
            raise ConfigError(f"Game: the loss {self.loss.name} has no labels to smooth")
        self._noise_at(0)

    def _noise_at(self, step: int) -> float:
        std = self.noise(step) if callable(self.noise) else self.noise
        if not 0 <= std < np.inf:
            raise ConfigError(f"Game: noise is {std} at step {step}, expected a finite number from 0")
        return float(std)

    def step(
        self,
        reals: Tensor | Sequence[Tensor],
        latents: Tensor | Sequence[Tensor],
        *,
        random: Stream,
        labels: Tensor | Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """One round: `d_steps` steps of the discriminator, one of the generator, the average, in place.

        Args:
            reals: a batch (N, ...) of real samples for each step of the discriminator.
            latents: a batch for each step of the discriminator, and one for the generator's unless
                `share_fake`.
            random: for noise, dropout and penalties; with `stream.at(step)` any step can be repeated.
            labels: for conditional networks, those of each batch of real samples, integers (N,). They are those of the
                generated samples too (of the generator's own batch, the last ones): so these have the classes as often
                as the data, and losses and penalties of pairs compare samples of one class.

        Returns: scalars, each from before the update that it leads to: of the discriminator's last step
            `d_loss` (without the penalties), `penalty`, and the mean probabilities `d_real` of D(x) and
            `d_fake` of D(G(z)); and `g_loss`.

        Raises: `ShapeError` for another number of batches; `NonFiniteError` if a loss, a gradient, a weight, an average
            or what an optimiser remembers is NaN or infinite: then both players are as they were before the step.
            What the update itself makes so (at a rate of 1e38) is found in the next step, or by `require_finite`.
        """
        reals, latents = _as_batches(reals), _as_batches(latents)
        classes = [None] * len(reals) if labels is None else _as_batches(labels)
        wanted = self.d_steps + (not self.share_fake)
        if len(reals) != self.d_steps or len(latents) != wanted:
            raise ShapeError(
                f"Game: {len(reals)} real and {len(latents)} latent batches for d_steps={self.d_steps} and"
                f" share_fake={self.share_fake}, expected {self.d_steps} and {wanted}"
            )
        if len(classes) != len(reals):
            raise ShapeError(f"Game: {len(classes)} batches of labels for {len(reals)} real batches")
        host(self._remember)
        try:
            with undone_by(self._recount), self._kept():
                metrics = self._round(reals, latents, classes, random)
        except NonFiniteError as error:
            raise NonFiniteError(f"step {self.steps + 1}: {error}") from None
        self._update_average()
        host(self.skip)
        return metrics

    def field(
        self, real: Tensor, latents: Tensor, *, random: Stream | None = None, labels: Tensor | None = None
    ) -> Field:
        """The game as a vector field at the present weights, on one batch: see `minigan.analysis.Field`.

        The players are the generator and the discriminator with its penalties, in this order. The networks compute as
        outside of training: batch norm goes by its running statistics, and there is no dropout, nor noise on samples.

        Args:
            real, latents: a batch of each.
            random: for penalties that draw random points.
            labels: for conditional networks, of both batches.

        >>> import minigan as mg
        >>> networks = mg.models.mlp_generator(2, (4,), (3,)), mg.models.mlp_discriminator((3,), (4,))
        >>> stream = mg.ops.Stream(0, "docs")
        >>> game = mg.Game(*networks, loss="non_saturating", penalty=mg.penalties.r1(1.0))
        >>> field = game.field(stream.uniform((8, 3)), stream.normal((8, 2)))
        >>> field.eigenvalues().shape == (sum(network.count() for network in networks),)
        True
        """
        random = random or Stream(0, "field")

        def judge(x: Tensor) -> Tensor:
            return forward(self.discriminator, x, train=False, random=None, labels=labels)

        with recording(True):
            fake = forward(self.generator, latents, train=False, random=None, labels=labels)
            real_logits, fake_logits = judge(real), judge(fake)
            of_d = self.loss.discriminator(real_logits, fake_logits, 1.0 - self.smoothing)
            for penalty in self.penalties:
                of_d = of_d + penalty(judge, real, fake, real_logits, fake_logits, random)
            of_g = self.loss.generator(real_logits, fake_logits)
        players = zip((of_g, of_d), (self._of_generator, self._of_discriminator), strict=True)
        return Field([(loss, list(player.parameters.values())) for loss, player in players])

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Put back all tensors if the block raises; a compiled step makes its own copies."""
        with recorded_by(None):
            for x, backup in self._touched:
                apply(ASSIGN, backup, x)
        try:
            yield
        except BaseException:
            with recorded_by(None):
                for x, backup in self._touched:
                    apply(ASSIGN, x, backup)
            raise

    def _remember(self) -> None:
        """What `_recount` needs."""
        self._counts_before = [self.steps, *[player.memory.step for player in self._players().values()]]

    def _recount(self) -> None:
        """Make the counts what they were before the step."""
        self.steps, *moved = self._counts_before
        for player, step in zip(self._players().values(), moved, strict=True):
            player.memory.step = step

    def _rate(self, optimizer: Optimizer) -> float:
        return optimizer.rate(self.steps, self.rate_scale)

    def require_finite(self) -> None:
        """Raise `NonFiniteError` if a weight, an average or what an optimiser remembers is NaN or infinite."""
        found = _not_finite(self._tensors())
        if found:
            raise NonFiniteError(f"step {self.steps}: {'; '.join(found)}")

    def skip(self) -> None:
        """Count a step that is not made, so that the next one has other batches and random numbers."""
        self.steps += 1

    def _touched_tensors(self) -> list[Tensor]:
        """What a step changes before its last gradient is known: the discriminator, and the generator's buffers."""
        of_generator = self._of_generator
        buffers = [x for name, x in of_generator.state.items() if name not in of_generator.parameters]
        moves_first = self._of_discriminator
        return [*buffers, *(moves_first.state | moves_first.tensors).values()]

    def _round(
        self, reals: list[Tensor], latents: list[Tensor], classes: Sequence[Tensor | None], random: Stream
    ) -> dict[str, Tensor]:
        def generate(latents: Tensor, labels: Tensor | None) -> Tensor:
            return forward(self.generator, latents, train=True, random=random, labels=labels)

        with recording(True):
            for k, (real, labels) in enumerate(zip(reals, classes, strict=True)):
                last = k == self.d_steps - 1
                with recording(self.share_fake and last):
                    fake = generate(latents[k], labels)
                metrics, d_gradients = self._discriminator_gradients(real, fake.detach(), labels, random)
                if not last or self.update == "alternating":
                    self._of_discriminator.move(d_gradients, self._rate)
            if not self.share_fake:
                fake = generate(latents[-1], labels)
            metrics["g_loss"], g_gradients = self._generator_gradients(real, fake, labels, random)
        if self.update == "simultaneous":
            self._of_discriminator.move(d_gradients, self._rate)
        self._of_generator.move(g_gradients, self._rate)
        return metrics

    def _judge(self, labels: Tensor | None, random: Stream) -> Callable[[Tensor], Tensor]:
        """The discriminator as a function of samples with these labels."""
        return lambda x: forward(self.discriminator, x, train=True, random=random, labels=labels)

    def _discriminator_gradients(
        self, real: Tensor, fake: Tensor, labels: Tensor | None, random: Stream
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        judge = self._judge(labels, random)
        with no_grad():
            real, fake = self._noisy(real, random), self._noisy(fake, random)
        real_logits, fake_logits = judge(real), judge(fake)
        loss = self.loss.discriminator(real_logits, fake_logits, 1.0 - self.smoothing)
        terms = [penalty(judge, real, fake, real_logits, fake_logits, random) for penalty in self.penalties]
        gradients = self._of_discriminator.gradients(
            {"d_loss": loss} | {f"penalty {k + 1}": x for k, x in enumerate(terms)}, {}
        )
        with no_grad():
            metrics = {
                "d_loss": loss.detach(),
                "penalty": sum(terms, tensor(0.0, loss.dtype)),
                "d_real": mean(sigmoid(real_logits)),
                "d_fake": mean(sigmoid(fake_logits)),
            }
        return metrics, gradients

    def _generator_gradients(
        self, real: Tensor, fake: Tensor, labels: Tensor | None, random: Stream
    ) -> tuple[Tensor, list[Tensor]]:
        judge, real_logits = self._judge(labels, random), None
        if self.loss.paired:
            with no_grad():
                real_logits = judge(self._noisy(real, random))
        fake_logits = judge(self._noisy(fake, random))
        loss = self.loss.generator(real_logits, fake_logits)
        return loss.detach(), self._of_generator.gradients({"g_loss": loss}, self._checked_averages)

    def _noisy(self, x: Tensor, random: Stream) -> Tensor:
        if not self.noise:
            return x
        std = host(lambda: self._noise_at(self.steps))
        return x + random.normal(x.shape, std=std, dtype=x.dtype)

    def _update_average(self) -> None:
        if self._average is not None:
            trained = self._of_generator.parameters
            self._average.update(trained, self._averages, lambda: self.steps)
            for name in self._averages.keys() - trained.keys():
                apply(ASSIGN, self._averages[name], self._originals[name])

    def _players(self) -> dict[str, _Player]:
        return {player.name: player for player in (self._of_generator, self._of_discriminator)}

    def _tensors(self) -> dict[str, Tensor]:
        parts = {name: player.network.state() for name, player in self._players().items()}
        for name, player in self._players().items():
            parts |= {f"{name}_optimizer.{slot}": tensors for slot, tensors in player.memory.slots.items()}
        parts["ema"] = self._averages
        return {f"{part}.{name}": x for part, tensors in parts.items() for name, x in tensors.items()}

    def _counters(self) -> dict[str, Array]:
        steps = {f"{name}_optimizer.step": player.memory.step for name, player in self._players().items()}
        counters = {name: np.array(n, np.int64) for name, n in (steps | {"step": self.steps}).items()}
        return counters | {"rate_scale": np.array(self.rate_scale, np.float64)}

    def state(self) -> dict[str, Array]:
        """Copies of all arrays that the game needs to continue, by name.

        "generator.…" and "discriminator.…" as in the modules' `state()`; "ema.…", the averaged generator;
        "generator_optimizer.m.…" and so on for each slot and player; the counters "step", "generator_optimizer.step"
        and "discriminator_optimizer.step"; and "rate_scale".
        """
        return {name: x.array.copy() for name, x in self._tensors().items()} | self._counters()

    def load_state(self, arrays: Mapping[str, Array]) -> None:
        """Continue from what `state()` returned, in a game of the same networks and optimisers.

        Raises `CheckpointError`, before anything is changed, for other names, shapes or dtypes, or a counter below 0.
        """
        tensors, counters = self._tensors(), self._counters()
        check_arrays({name: x.array for name, x in tensors.items()} | counters, arrays)
        for name in counters:
            if not 0 <= arrays[name] < np.inf:
                raise CheckpointError(f"{name} is {arrays[name]}, expected a finite number from 0")
        assign(tensors, arrays)
        self.steps, self.rate_scale = int(arrays["step"]), float(arrays["rate_scale"])
        for name, player in self._players().items():
            player.memory.step = int(arrays[f"{name}_optimizer.step"])
