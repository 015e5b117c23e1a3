"""The game of two players as one step: what each minimises, on which batch, and in which order they move.

    discriminator:  L_D(D(x), D(G(z))) + penalties, by the gradient in its own parameters; G(z) is a constant
    generator:      L_G(D(G(z))), by the gradient in its own parameters; D is only passed through

`grad` visits only what lies between the loss and the parameters it is asked for, so neither player's step
computes a derivative for the other's weights. Remedies that mix the two, consensus optimisation and unrolling, ask for
these derivatives on purpose.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from minigan import losses
from minigan.analysis.features import feature_matching
from minigan.analysis.game import Field
from minigan.backend import FLOATS, Array, is_number, zeros_like
from minigan.errors import CheckpointError, ConfigError, NonFiniteError, ShapeError
from minigan.losses import Loss
from minigan.nn import Sequential
from minigan.nn.module import ASSIGN, Module, assign, check_arrays, device_of_all, forward, substituted
from minigan.ops import Stream, augment, mean, sigmoid
from minigan.ops.augment import changes
from minigan.optim import EMA, Adam, Optimizer
from minigan.packs import pack, weights_of_packs
from minigan.penalties import Penalty
from minigan.player import Player, not_finite
from minigan.tape import alias, apply, copy as copied, grad, no_grad, recording
from minigan.tensor import Tensor, lift, tensor
from minigan.trace import host, recorded_by, undone_by

UPDATES = ("alternating", "simultaneous", "extragradient")


class _Draw(NamedTuple):
    """What the last step of the discriminator in a round, and that of the generator, are made on."""

    real: Tensor
    labels: Tensor | None
    weights: Tensor | None
    latents: Tensor
    of_generator: Tensor
    random: Stream


def _as_batches(batches: Any, device: str) -> list[Tensor]:
    """Tensors as they are, arrays on the device."""
    given = [batches] if isinstance(batches, (Tensor, np.ndarray)) else batches
    return [lift(x) if isinstance(x, Tensor) else tensor(x, device=device) for x in given]


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
        update: "alternating", where the generator answers the discriminator that has just been updated;
            "simultaneous", where both gradients are taken at the same point and then both players move; or
            "extragradient", where both first move as in that, take their gradients there, go back, and move along these
            (Korpelevich 1976; Gidel et al. 2019, Algorithm 4, with the same samples for both, as Mishchenko et al. 2020
            find necessary). The optimisers count and remember both moves. Of several steps of the discriminator, the
            last one is made so.
        share_fake: the generator's step goes on from the batch of the discriminator's last step.
        smoothing: real samples have the label 1 - smoothing (Salimans et al. 2016, §3.4).
        noise: the standard deviation of normal noise on everything that the discriminator sees (Sønderby et
            al. 2017, §3), or a function that gives it from the step.
        consensus: γ of γ/2 |v|², which both players minimise besides their losses, v their gradients joined (Mescheder
            et al. 2017, eq. 12). It needs these at one point: a simultaneous or extragradient update, and is part of
            the discriminator's last step.
        unroll: how many steps ahead the generator looks: it minimises its loss against the discriminator that has
            answered with so many more steps of its optimiser on this batch, and derives through these (Metz et al.
            2017, eqs. 7 to 9). Of a loss whose players descend V and -V, it is the whole of V.
        pack: so many samples are judged as one, their channels side by side, so that a lack of variety shows (Lin et
            al. 2018, PacGAN, §3). The discriminator takes as many times the channels.
        feature_matching: λ of λ |E f(x) - E f(G(z))|² in the generator's loss, f the input of the discriminator's last
            layer (Salimans et al. 2016, §3.1).
        augment: how images are changed before they are judged, such as "translation,cutout": `minigan.ops.augment`.

    Attributes:
        device: of both networks, on which all is computed.

    Raises: `ConfigError` for a setting outside its range; `DeviceError` for networks on two devices.

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
        consensus: float = 0.0,
        unroll: int = 0,
        pack: int = 1,
        feature_matching: float = 0.0,
        augment: str = "",
    ) -> None:
        self.generator, self.discriminator = generator, discriminator
        self.device = device_of_all(generator, discriminator)
        self.loss = losses.find(loss)
        given: Any = [] if penalty is None else penalty
        self.penalties: tuple[Penalty, ...] = tuple(given) if isinstance(given, (list, tuple)) else (given,)
        self.d_steps, self.update, self.share_fake = d_steps, update, share_fake
        self.smoothing, self.noise = smoothing, noise
        self.consensus, self.unroll, self.pack = consensus, unroll, pack
        self.feature_matching, self.augment = feature_matching, augment
        self._check_settings()
        self.steps = 0
        self._counts_before: list[int] = []
        self.rate_scale = 1.0  # of both players' learning rates
        self._of_generator = Player("generator", generator, generator_optimizer or Adam(1e-3, b1=0.5))
        self._of_discriminator = Player(
            "discriminator", discriminator, discriminator_optimizer or Adam(1e-3, b1=0.5)
        )
        self._average = None if ema is None else EMA(ema)
        self.ema_generator = None if ema is None else copy.deepcopy(generator)
        self._averages = {} if self.ema_generator is None else self.ema_generator.state()
        self._checked_averages = {f"average.{k}": x for k, x in self._averages.items() if x.dtype in FLOATS}
        self._originals = generator.state()
        self._touched = [(x, Tensor(zeros_like(x.array))) for x in self._touched_tensors()]

    def _check_settings(self) -> None:
        for penalty in self.penalties:
            if not isinstance(penalty, Penalty):
                raise ConfigError(
                    f"Game: penalty is {penalty!r}, expected one such as minigan.penalties.r1(0.1)"
                )
        for name, least in (("d_steps", 1), ("unroll", 0), ("pack", 1)):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < least:
                raise ConfigError(f"Game: {name} is {count!r}, expected an integer from {least}")
        for name in ("consensus", "feature_matching"):
            weight = getattr(self, name)
            if not is_number(weight) or not 0 <= weight < np.inf:
                raise ConfigError(f"Game: {name} is {weight!r}, expected a finite number from 0")
        if self.update not in UPDATES:
            raise ConfigError(f"Game: update is {self.update!r}, expected one of {', '.join(UPDATES)}")
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"Game: smoothing is {self.smoothing}, expected 0 <= smoothing < 1")
        if self.smoothing and not self.loss.labels:
            raise ConfigError(f"Game: the loss {self.loss.name} has no labels to smooth")
        if self.consensus and self.update == "alternating":
            raise ConfigError(
                f"Game: consensus is {self.consensus}: it needs the update simultaneous or extragradient"
            )
        if self.consensus and self.unroll:
            raise ConfigError(
                f"Game: consensus is {self.consensus} and unroll {self.unroll}: use one of them"
            )
        if self.feature_matching and not (
            isinstance(self.discriminator, Sequential) and len(self.discriminator.layers) > 1
        ):
            raise ConfigError(
                "Game: feature_matching needs a discriminator of layers, minigan.nn.Sequential, of more than one"
            )
        classes = getattr(self.discriminator, "classes", None)
        if self.pack > 1 and classes is not None:
            raise ConfigError(f"Game: pack is {self.pack}: the samples of a pack would be of several classes")
        changes(self.augment)
        self._noise_at(0)

    def _noise_at(self, step: int) -> float:
        std = self.noise(step) if callable(self.noise) else self.noise
        if not is_number(std) or not 0 <= std < np.inf:
            raise ConfigError(f"Game: noise is {std!r} at step {step}, expected a finite number from 0")
        return float(std)

    def step(
        self,
        reals: Tensor | Sequence[Tensor],
        latents: Tensor | Sequence[Tensor],
        *,
        random: Stream,
        labels: Tensor | Sequence[Tensor] | None = None,
        weights: Tensor | Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """One round: `d_steps` steps of the discriminator, one of the generator, the average, in place.

        Args:
            reals: a batch (N, ...) of real samples for each step of the discriminator: tensors on the networks' device,
                or NumPy's arrays, which are copied there, as all batches below.
            latents: a batch for each step of the discriminator, and one for the generator's unless
                `share_fake`.
            random: for noise, dropout and penalties; with `stream.at(step)` any step can be repeated.
            labels: for conditional networks, those of each batch of real samples, integers (N,). They are those of the
                generated samples too (of the generator's own batch, the last ones): so these have the classes as often
                as the data, and losses and penalties of pairs compare samples of one class.
            weights: of each batch of real samples, floats (N,) of mean 1, which multiply the terms that these samples
                have in the loss, but not in the penalties; see `minigan.data.Batches.weights`.

        Returns: scalars, each from before the update that it leads to: of the discriminator's last step
            `d_loss` (without the penalties), `penalty`, and the mean probabilities `d_real` of D(x) and
            `d_fake` of D(G(z)); and `g_loss`.

        Raises: `ShapeError` for another number of batches; `NonFiniteError` if a loss, a gradient, a weight, an average
            or what an optimiser remembers is NaN or infinite: then both players are as they were before the step.
            What the update itself makes so (at a rate of 1e38) is found in the next step, or by `require_finite`.
        """
        reals, latents = _as_batches(reals, self.device), _as_batches(latents, self.device)
        classes = [None] * len(reals) if labels is None else _as_batches(labels, self.device)
        wanted = self.d_steps + (not self.share_fake)
        if len(reals) != self.d_steps or len(latents) != wanted:
            raise ShapeError(
                f"Game: {len(reals)} real and {len(latents)} latent batches for d_steps={self.d_steps} and"
                f" share_fake={self.share_fake}, expected {self.d_steps} and {wanted}"
            )
        shares = [None] * len(reals) if weights is None else _as_batches(weights, self.device)
        for name, given in (("labels", classes), ("weights", shares)):
            if len(given) != len(reals):
                raise ShapeError(f"Game: {len(given)} batches of {name} for {len(reals)} real batches")
        host(self._remember)
        try:
            with undone_by(self._recount), self._kept():
                metrics = self._round(reals, latents, classes, shares, random)
                self._update_average()
        except NonFiniteError as error:
            raise NonFiniteError(f"step {self.steps + 1}: {error}") from None
        host(self.skip)
        return metrics

    def field(
        self, real: Tensor, latents: Tensor, *, random: Stream | None = None, labels: Tensor | None = None
    ) -> Field:
        """The game as a vector field at the present weights, on one batch: see `minigan.analysis.Field`.

        The players are the generator and the discriminator with its penalties, in this order. The networks compute as
        outside of training: batch norm goes by its running statistics, and there is no dropout, nor noise on samples,
        and no remedy but penalties and packing: the spectrum shows what these would have to mend.

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
            fake = pack(forward(self.generator, latents, train=False, random=None, labels=labels), self.pack)
            real = pack(real, self.pack)
            real_logits, fake_logits = judge(real), judge(fake)
            of_d = self.loss.discriminator(real_logits, fake_logits, 1.0 - self.smoothing)
            for penalty in self.penalties:
                of_d = of_d + penalty(judge, real, fake, real_logits, fake_logits, random, lambda: self.steps)
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
        found = not_finite(self._tensors())
        if found:
            raise NonFiniteError(f"step {self.steps}: {'; '.join(found)}")

    def skip(self) -> None:
        """Count a step that is not made, so that the next one has other batches and random numbers."""
        self.steps += 1

    def _touched_tensors(self) -> list[Tensor]:
        """What a step changes."""
        players = self._players().values()
        both = [x for player in players for x in (player.state | player.tensors).values()]
        return both + list(self._averages.values())

    def _round(
        self,
        reals: list[Tensor],
        latents: list[Tensor],
        classes: Sequence[Tensor | None],
        shares: Sequence[Tensor | None],
        random: Stream,
    ) -> dict[str, Tensor]:
        with recording(True):
            *before, draw = (
                _Draw(real, labels, weights, z, latents[-1], random)
                for real, labels, weights, z in zip(reals, classes, shares, latents, strict=False)
            )
            for each in before:
                with no_grad():
                    fake = self._generate(each.latents, each.labels, random)
                losses, _ = self._of_d(each, fake)
                self._of_discriminator.move(self._of_discriminator.gradients(losses, {}), self._rate)
            if self.update == "alternating":
                metrics, gradients, shared = self._d_gradients(draw)
                self._of_discriminator.move(gradients, self._rate)
                metrics["g_loss"], gradients = self._g_gradients(draw, shared)
                self._of_generator.move(gradients, self._rate)
                return metrics
            metrics, *gradients_of_both = self._both(draw)
            if self.update == "extragradient":
                with self._from_where_they_were():
                    self._move(*gradients_of_both)
                    _, *gradients_of_both = self._both(draw)
        self._move(*gradients_of_both)
        return metrics

    def _move(self, of_discriminator: list[Tensor], of_generator: list[Tensor]) -> None:
        self._of_discriminator.move(of_discriminator, self._rate)
        self._of_generator.move(of_generator, self._rate)

    @contextmanager
    def _from_where_they_were(self) -> Iterator[None]:
        """Put all parameters back after the block."""
        players = self._players().values()
        pairs = [(p, apply(copied, p)) for player in players for p in player.parameters.values()]
        yield
        for p, origin in pairs:
            apply(ASSIGN, p, origin)

    def _generate(self, latents: Tensor, labels: Tensor | None, random: Stream) -> Tensor:
        return forward(self.generator, latents, train=True, random=random, labels=labels)

    def _judge(self, draw: _Draw, part: Module | None = None) -> Callable[[Tensor], Tensor]:
        """The discriminator, or a part of it, as a function of samples with the labels of these."""
        module, random, labels = part or self.discriminator, draw.random, draw.labels
        return lambda x: forward(module, x, train=True, random=random, labels=labels)

    # What each player minimises, by name

    def _of_d(self, draw: _Draw, fake: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The discriminator's losses, and metrics."""
        judge = self._judge(draw)
        with no_grad():
            real, weights = self._seen(draw.real, draw.random), weights_of_packs(draw.weights, self.pack)
        fake = self._seen(fake, draw.random)
        real_logits, fake_logits = judge(real), judge(fake)
        given = () if weights is None else (weights,)  # losses of a user's own need not know of them
        loss = self.loss.discriminator(real_logits, fake_logits, 1.0 - self.smoothing, *given)
        terms = [
            penalty(judge, real, fake, real_logits, fake_logits, draw.random, lambda: self.steps)
            for penalty in self.penalties
        ]
        with no_grad():
            metrics = {
                "d_loss": loss.detach(),
                "penalty": sum(terms, tensor(0.0, loss.dtype, loss.device)).detach(),
                "d_real": mean(sigmoid(real_logits)),
                "d_fake": mean(sigmoid(fake_logits)),
            }
        return {"d_loss": loss} | {f"penalty {k + 1}": x for k, x in enumerate(terms)}, metrics

    def _of_g(self, draw: _Draw, fake: Tensor) -> dict[str, Tensor]:
        """The generator's losses."""
        last, random = self._judge(draw), draw.random
        below: Callable[[Tensor], Tensor] = lambda x: x  # noqa: E731
        matching = dict[str, Tensor]()
        if self.feature_matching:
            *layers, output = self.discriminator.layers  # type: ignore[attr-defined]
            below, last = self._judge(draw, Sequential(*layers)), self._judge(draw, output)
        real_logits = weights = None
        # The whole value of the game, where the discriminator has answered: its part of real samples depends on that.
        whole = self.unroll > 0 and self.loss.zero_sum
        paired = self.loss.paired or whole
        if paired or self.feature_matching:
            # A constant, unless the discriminator is a function of the generator, or both descend for each other.
            with recording(bool(self.unroll or self.consensus)):
                of_real, weights = (
                    below(self._seen(draw.real, random)),
                    weights_of_packs(draw.weights, self.pack),
                )
                real_logits = last(of_real) if paired else None
        of_fake = below(self._seen(fake, random))
        if self.feature_matching:
            if weights is not None:
                of_real = of_real * weights.reshape(of_real.shape[0], *[1] * (of_real.ndim - 1))
            matching["feature matching"] = feature_matching(of_real, of_fake) * self.feature_matching
        fake_logits = last(of_fake)
        given = () if weights is None or not paired else (weights,)
        if whole:
            loss = -self.loss.discriminator(real_logits, fake_logits, 1.0, *given)
        else:
            loss = self.loss.generator(real_logits, fake_logits, *given)
        return {"g_loss": loss} | matching

    def _seen(self, x: Tensor, random: Stream) -> Tensor:
        """Samples as the discriminator sees them."""
        if self.augment:
            low, high = getattr(self.generator, "bounds", None) or (0.0, 1.0)
            x = augment(x, self.augment, random, high - low)
        if self.noise:
            std = host(lambda: self._noise_at(self.steps))
            x = x + random.normal(x.shape, std=std, dtype=x.dtype, device=x.device)
        x = pack(x, self.pack)
        # A discriminator that is looked ahead to was made from the samples: penalties on its slope at them want a
        # point of its own, or they would derive for the way by which the samples made the discriminator too.
        return apply(alias, x) if self.unroll else x

    # The gradients of these

    def _d_gradients(self, draw: _Draw) -> tuple[dict[str, Tensor], list[Tensor], Tensor | None]:
        """Metrics, the discriminator's gradients, and the generated batch if the generator goes on from it."""
        with recording(self.share_fake):
            fake = self._generate(draw.latents, draw.labels, draw.random)
        losses, metrics = self._of_d(draw, fake.detach())
        return metrics, self._of_discriminator.gradients(losses, {}), fake if self.share_fake else None

    def _g_gradients(self, draw: _Draw, fake: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """The generator's loss and gradients; `fake` is its batch, if it has been made."""
        fake = self._generate(draw.of_generator, draw.labels, draw.random) if fake is None else fake
        with self._buffers_kept(), substituted(self.discriminator, self._answer(draw, fake)):
            losses = self._of_g(draw, fake)
            gradients = self._of_generator.gradients(losses, self._checked_averages)
        return losses["g_loss"].detach(), gradients

    @contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        """Put back what the discriminators that are looked ahead to change of this one: moments, say."""
        player = self._of_discriminator
        buffers = [x for name, x in player.state.items() if name not in player.parameters]
        kept = [(x, apply(copied, x)) for x in buffers] if self.unroll else []
        yield
        for x, before in kept:
            apply(ASSIGN, x, before)

    def _answer(self, draw: _Draw, fake: Tensor) -> dict[int, Tensor]:
        """The discriminator's parameters after the steps that are looked ahead, by the `id` of the present ones."""
        player = self._of_discriminator
        tensors, slots = dict(player.parameters), dict(player.memory.slots)
        for k in range(self.unroll):
            answer = {id(player.parameters[name]): x for name, x in tensors.items()}
            with substituted(self.discriminator, answer):
                losses, _ = self._of_d(draw, fake)
            gradients = grad(list(losses.values()), list(tensors.values()), create_graph=True)
            tensors, slots = player.optimizer.ahead(
                tensors,
                gradients,
                slots,
                lambda k=k: player.memory.step + k + 1,  # type: ignore[misc]
                lambda: self._rate(player.optimizer),
            )
        return {id(player.parameters[name]): x for name, x in tensors.items()} if self.unroll else {}

    def _both(self, draw: _Draw) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
        """Metrics and the gradients of the discriminator and of the generator, at one point."""
        if self.consensus:
            return self._agreeing(draw)
        metrics, of_discriminator, fake = self._d_gradients(draw)
        metrics["g_loss"], of_generator = self._g_gradients(draw, fake)
        return metrics, of_discriminator, of_generator

    def _agreeing(self, draw: _Draw) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
        """As `_both`, with the gradient of γ/2 |v|², v the gradients of both players in their own parameters."""
        players = (self._of_discriminator, self._of_generator)
        fake = self._generate(draw.latents, draw.labels, draw.random)
        of_d, metrics = self._of_d(draw, fake)
        if not self.share_fake:
            fake = self._generate(draw.of_generator, draw.labels, draw.random)
        of_g = self._of_g(draw, fake)
        own = [
            grad(list(losses.values()), list(player.parameters.values()), create_graph=True)
            for losses, player in zip((of_d, of_g), players, strict=True)
        ]
        zero = tensor(0.0, fake.dtype, fake.device)
        squares = sum(((g * g).sum() for gradients in own for g in gradients), zero)
        together = {"consensus": squares * (0.5 * self.consensus)}
        found = []
        for player, terms, gradients in zip(players, (of_d, of_g), own, strict=True):
            extra = grad(together["consensus"], list(player.parameters.values()))
            sums = [g.detach() + more for g, more in zip(gradients, extra, strict=True)]
            others = self._checked_averages if player is self._of_generator else {}
            found.append(player.checked(terms | together, sums, others))
        return metrics | {"g_loss": of_g["g_loss"].detach()}, found[0], found[1]

    def _update_average(self) -> None:
        if self._average is not None:
            trained = self._of_generator.parameters
            self._average.update(trained, self._averages, lambda: self.steps)
            for name in self._averages.keys() - trained.keys():
                apply(ASSIGN, self._averages[name], self._originals[name])

    def _players(self) -> dict[str, Player]:
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
        """Copies of all arrays that the game needs to continue, NumPy's, by name.

        "generator.…" and "discriminator.…" as in the modules' `state()`; "ema.…", the averaged generator;
        "generator_optimizer.m.…" and so on for each slot and player; the counters "step", "generator_optimizer.step"
        and "discriminator_optimizer.step"; and "rate_scale".
        """
        return {name: x.numpy().copy() for name, x in self._tensors().items()} | self._counters()

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
