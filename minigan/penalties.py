"""Penalties on the discriminator's gradient with respect to its input, added to its loss.

They contain a first derivative, so the discriminator's update takes a second one: `grad` of a `grad` made
with
`create_graph=True`. Norms are over all elements of one sample; the length of a zero gradient has derivative 0
here, where the rule of a plain square root gives 0 · inf = NaN.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from minigan.backend import is_number
from minigan.errors import ConfigError, ShapeError
from minigan.ops import Stream, mean, norm, reshape, std
from minigan.tape import grad, no_grad
from minigan.tensor import Tensor
from minigan.trace import host

Discriminator = Callable[[Tensor], Tensor]
Weight = float | Callable[[int], float]


@dataclass(frozen=True, eq=False)
class Penalty:
    """A penalty with its weight: a scalar tensor from what the discriminator's step has at hand.

    `penalty(discriminator, real, fake, real_logits, fake_logits, random, step)`: the batches (N, ...) that the
    logits (N, 1) were computed from, a stream for penalties that draw points of their own, and what tells the step of
    the game to a weight that is a schedule, such as those of `minigan.optim`.

    >>> import minigan as mg
    >>> x = mg.tensor([[3.0, 4.0]])
    >>> critic = lambda x: (x * x).sum(axis=1, keepdims=True)  # its gradient is 2 x, of length 10
    >>> mg.penalties.r1(0.1)(critic, x, x, critic(x), critic(x), mg.ops.Stream(0, "docs")).item()
    5.0
    """

    name: str
    weight: Weight
    compute: Callable[[Discriminator, Tensor, Tensor, Tensor, Tensor, Stream], Tensor]
    settings: Mapping[str, float] = field(
        default_factory=dict
    )  # besides the weight, by the names of its function

    def __post_init__(self) -> None:
        self._at(0)

    def _at(self, step: int) -> float:
        weight = self.weight(step) if callable(self.weight) else self.weight
        if not is_number(weight) or not 0 <= weight < math.inf:
            raise ConfigError(f"{self.name}: weight {weight!r} is not a finite number from 0")
        return float(weight)

    def __call__(
        self,
        discriminator: Discriminator,
        real: Tensor,
        fake: Tensor,
        real_logits: Tensor,
        fake_logits: Tensor,
        random: Stream,
        step: Callable[[], int] = lambda: 0,
    ) -> Tensor:
        """The weighted penalty, a scalar."""
        penalty = self.compute(discriminator, real, fake, real_logits, fake_logits, random)
        if not callable(self.weight):
            return penalty * self.weight
        dtype = penalty.dtype  # a function that held the tensor would keep its graph
        return penalty * Tensor(host(lambda: np.array(self._at(step()), dtype), penalty.device))

    def __repr__(self) -> str:
        return f"{self.name}({self.weight if callable(self.weight) else format(self.weight, 'g')})"


def _half_squared_gradient(logits: Tensor, x: Tensor) -> Tensor:
    """½ E |∇D(x)|². The samples do not see each other, so one gradient of the sum has all of theirs."""
    gx: Tensor = grad(logits.sum(), x, create_graph=True)[0]
    return (gx * gx).sum() * (0.5 / x.shape[0])


def _slope_from_one(discriminator: Discriminator, x: Tensor) -> Tensor:
    """E (|∇D(x)| - 1)²."""
    (gx,) = grad(discriminator(x).sum(), x, create_graph=True)
    return mean((norm(reshape(gx, (x.shape[0], -1)), axis=1) - 1.0) ** 2)


def r1(gamma: Weight) -> Penalty:
    """γ/2 · E |∇D(x)|² over real samples (Mescheder, Geiger and Nowozin 2018, eq. 9).

    The weight, as of all of these, is a number or a function that gives it from the step; `ConfigError` for one that is
    negative or not finite.

    >>> import minigan as mg
    >>> critic = lambda x: (x * x).sum(axis=1, keepdims=True)  # its gradient is 2 x
    >>> x, y = mg.tensor([[3.0, 4.0]]), mg.tensor([[0.0, 1.0]])
    >>> mg.penalties.r1(0.5)(critic, x, y, critic(x), critic(y), mg.ops.Stream(0, "docs")).item()
    25.0
    """
    return Penalty(
        "r1",
        gamma,
        lambda d, real, fake, real_logits, fake_logits, random: _half_squared_gradient(real_logits, real),
    )


def r2(gamma: Weight) -> Penalty:
    """γ/2 · E |∇D(x)|² over generated samples (Mescheder, Geiger and Nowozin 2018, eq. 10).

    >>> import minigan as mg
    >>> critic = lambda x: (x * x).sum(axis=1, keepdims=True)  # its gradient is 2 x
    >>> x, y = mg.tensor([[3.0, 4.0]]), mg.tensor([[0.0, 1.0]])
    >>> mg.penalties.r2(0.5)(critic, x, y, critic(x), critic(y), mg.ops.Stream(0, "docs")).item()
    1.0
    """
    return Penalty(
        "r2",
        gamma,
        lambda d, real, fake, real_logits, fake_logits, random: _half_squared_gradient(fake_logits, fake),
    )


def wgan_gp(weight: Weight = 10.0) -> Penalty:
    """λ · E (|∇D(x̂)| - 1)² at x̂ = u x + (1 - u) G(z), u ~ U(0, 1) (Gulrajani et al. 2017, eq. 3).

    `ShapeError`, when called, for real and generated batches of different shapes.

    >>> import minigan as mg
    >>> critic = lambda x: x @ mg.tensor([[3.0], [4.0]])  # its gradient has length 5
    >>> x, y = mg.tensor([[3.0, 4.0]]), mg.tensor([[0.0, 1.0]])
    >>> mg.penalties.wgan_gp(10.0)(critic, x, y, critic(x), critic(y), mg.ops.Stream(0, "docs")).item()
    160.0
    """

    def compute(
        d: Discriminator, real: Tensor, fake: Tensor, _r: Tensor, _f: Tensor, random: Stream
    ) -> Tensor:
        if real.shape != fake.shape:
            raise ShapeError(f"wgan_gp: real samples {real.shape} and generated ones {fake.shape} are paired")
        with no_grad():
            share = _each(random, real)
        return _slope_from_one(d, share * (real - fake) + fake)

    return Penalty("wgan_gp", weight, compute)


def dragan(weight: Weight = 10.0, scale: float = 0.5) -> Penalty:
    """λ · E (|∇D(x + u δ)| - 1)² around real samples (Kodali et al. 2017, Algorithm 1).

    δ is uniform between 0 and `scale` standard deviations of the batch in every element, and u ~ U(0, 1) per
    sample, as in the authors' code.

    >>> import minigan as mg
    >>> critic = lambda x: x @ mg.tensor([[3.0], [4.0]])  # its gradient has length 5
    >>> x, y = mg.tensor([[3.0, 4.0]]), mg.tensor([[0.0, 1.0]])
    >>> mg.penalties.dragan(10.0)(critic, x, y, critic(x), critic(y), mg.ops.Stream(0, "docs")).item()
    160.0
    """

    def compute(d: Discriminator, real: Tensor, _x: Tensor, _r: Tensor, _f: Tensor, random: Stream) -> Tensor:
        with no_grad():
            noise = random.uniform(real.shape, dtype=real.dtype, device=real.device) * (std(real) * scale)
            near = real + _each(random, real) * noise
        return _slope_from_one(d, near)

    return Penalty("dragan", weight, compute, {"scale": scale})


def _each(random: Stream, x: Tensor) -> Tensor:
    """One number from U(0, 1) for each sample of x, in a shape that broadcasts over its elements."""
    return random.uniform((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)
