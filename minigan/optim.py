"""Optimisers, learning rate schedules and averages of weights, all updating tensors in place.

An optimiser is a frozen record of settings; what it remembers is in a `State` that its user owns. The update
of one
parameter is one pointwise primitive that overwrites the parameter and its slots: one pass over memory, and
older graphs through the parameter are known to be stale. Numbers such as 1 - b2**t are computed in float64
before the loop, because 1 - float32(0.999) is wrong by 1.3e-5 of itself.
"""

import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np

from minigan.backend import lasting_zeros_like
from minigan.errors import ConfigError, ShapeError
from minigan.kernels import formula as fm
from minigan.ops import maximum, minimum, norm, sqrt, stack
from minigan.pointwise import pointwise
from minigan.tape import Input, Primitive, apply, copy, no_grad
from minigan.tensor import Tensor
from minigan.trace import host

Schedule = Callable[[int], float]
SMALLEST = 1.2e-38  # the smallest normal float32; a smaller eps could become 0 there, and 0 / 0 is NaN


def _within(who: str, **settings: tuple[float, float, float]) -> None:
    """Raise `ConfigError` unless low <= value < high for each setting (value, low, high); NaN never is."""
    for name, (value, low, high) in settings.items():
        if not low <= value < high:
            raise ConfigError(f"{who}: {name} is {value}, expected {low:g} <= {name} < {high:g}")


# Learning rates


# By the part that is done and the end: from 1 to the end.
_CURVES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda done, end: 1.0,
    "linear": lambda done, end: 1.0 - (1.0 - end) * done,
    "cosine": lambda done, end: end + (1.0 - end) * (0.5 + 0.5 * math.cos(math.pi * done)),
    "exponential": lambda done, end: end**done,
}


@dataclass(frozen=True, eq=False)
class Curve:
    """A learning rate, or another number, by step: `lr` times a curve from 1 at step begin · steps to `end` at `steps`.

    name: "constant", "linear", "cosine" or "exponential", as the functions below, which make these. `ConfigError`
    unless lr >= 0, steps >= 1, 0 <= begin < 1 and 0 <= end < 1, where an exponential needs an end above 0.

    >>> import minigan as mg
    >>> mg.optim.Curve("linear", lr=0.1, steps=100)(50)
    0.05
    """

    name: str
    lr: float
    steps: int = 1
    begin: float = 0.0
    end: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in _CURVES:
            raise ConfigError(f"schedule {self.name!r} does not exist; there are {', '.join(_CURVES)}")
        _within(
            self.name,
            lr=(self.lr, 0.0, math.inf),
            steps=(self.steps, 1, math.inf),
            begin=(self.begin, 0.0, 1.0),
            end=(self.end, SMALLEST if self.name == "exponential" else 0.0, 1.0),
        )

    def __call__(self, step: int) -> float:
        """The rate of the update that `step` updates precede."""
        done = (step / self.steps - self.begin) / (1.0 - self.begin)
        return self.lr * _CURVES[self.name](min(max(done, 0.0), 1.0), self.end)


def constant(lr: float) -> Curve:
    """The same rate at every step.

    >>> import minigan as mg
    >>> rate = mg.optim.constant(0.1)
    >>> rate(0), rate(1000)
    (0.1, 0.1)
    """
    return Curve("constant", lr)


def linear(lr: float, steps: int, begin: float = 0.0, end: float = 0.0) -> Curve:
    """`lr` until step begin · steps, then falling linearly to lr · end at `steps`, where it stays.

    >>> import minigan as mg
    >>> rate = mg.optim.linear(0.1, steps=100, begin=0.5)
    >>> rate(0), rate(50), rate(75), rate(100)
    (0.1, 0.1, 0.05, 0.0)
    """
    return Curve("linear", lr, steps, begin, end)


def cosine(lr: float, steps: int, begin: float = 0.0, end: float = 0.0) -> Curve:
    """As `linear`, along half a cosine: lr · (end + (1 - end) (1 + cos π s) / 2) (Loshchilov and Hutter 2017, eq. 5).

    s goes from 0 at step begin · steps to 1 at `steps`.

    >>> import minigan as mg
    >>> rate = mg.optim.cosine(0.1, steps=100)
    >>> rate(0), rate(50), rate(100)
    (0.1, 0.05, 0.0)
    """
    return Curve("cosine", lr, steps, begin, end)


def exponential(lr: float, steps: int, begin: float = 0.0, end: float = 1e-3) -> Curve:
    """As `linear`, by equal factors: lr · end^s, s from 0 at step begin · steps to 1 at `steps`.

    >>> import minigan as mg
    >>> rate = mg.optim.exponential(0.5, steps=100, end=0.01)
    >>> [round(rate(step), 6) for step in (0, 50, 100, 200)]
    [0.5, 0.05, 0.005, 0.005]
    """
    return Curve("exponential", lr, steps, begin, end)


# The updates. In all of them `decay` is lr · weight_decay. A moment loses the share that what is new takes: two
# weights rounded to float32 would not add up to 1.


# Samples: second moments are not negative. Subnormal ones have few digits, and a small `eps` brings that to light.
_EDGES = (0.0, -0.0, 1e4, -1e4, math.inf, -math.inf, math.nan)
_DRAWS = {name: Input((), edges=_EDGES) for name in "pumg"} | {
    "v": Input((), low=0.0, edges=(0.0, 1e4, math.inf, math.nan))
}


@pointwise(
    outputs=2,
    donates=2,
    attributes={"rate": 0.1, "momentum": 0.9, "of_gradient": 1.0, "of_velocity": 0.9, "decay": 0.01},
    draws=_DRAWS,
)
def _sgd(
    p: Any, u: Any, g: Any, *, rate: Any, momentum: Any, of_gradient: Any, of_velocity: Any, decay: Any
) -> Any:
    u = momentum * u + g
    return p - (rate * (of_gradient * g + of_velocity * u) + decay * p), u


# The bounds keep the square of a gradient within float32. g - g is 0, but NaN for an infinite gradient: that one is to
# be seen, not to become a large step.
@pointwise(
    outputs=2, donates=2, attributes={"rate": 0.1, "new": 0.1, "eps": 1e-8, "decay": 0.01}, draws=_DRAWS
)
def _rmsprop(p: Any, v: Any, g: Any, *, rate: Any, new: Any, eps: Any, decay: Any) -> Any:
    g = fm.minimum(fm.maximum(g, -9.2e18), 9.2e18) + (g - g)
    v = (v - new * v) + new * g * g
    return p - (rate * g / (fm.sqrt(v) + eps) + decay * p), v


@pointwise(
    outputs=3,
    donates=3,
    attributes={"rate": 0.1, "new_m": 0.1, "new_v": 0.001, "unbias": 2.0, "eps": 1e-8, "decay": 0.01},
    draws=_DRAWS,
)
def _adam(
    p: Any, m: Any, v: Any, g: Any, *, rate: Any, new_m: Any, new_v: Any, unbias: Any, eps: Any, decay: Any
) -> Any:
    g = fm.minimum(fm.maximum(g, -9.2e18), 9.2e18) + (g - g)
    m = (m - new_m * m) + new_m * g
    v = (v - new_v * v) + new_v * g * g
    return p - (rate * m / (fm.sqrt(unbias * v) + eps) + decay * p), m, v


# Formulas as functions of tensors, with derivatives. The root of 0 has none: below 1e-15 it is taken for a constant.
_OF_TENSORS = types.SimpleNamespace(minimum=minimum, maximum=maximum, sqrt=lambda x: sqrt(maximum(x, 1e-30)))


# Without the large edges: where such terms cancel, what is left has few digits.
@pointwise(
    outputs=2,
    donates=2,
    draws={name: Input((), edges=(0.0, -0.0, math.inf, -math.inf, math.nan)) for name in "pmg"},
)
def _leap(p: Any, m: Any, g: Any) -> Any:
    step = g - p
    return p - step + m, step


class State:
    """What an optimiser remembers between updates.

    Attributes:
        slots: per slot ("m", "v"), a tensor per parameter, by the parameter's name.
        step: how many updates have been made.

    >>> import minigan as mg
    >>> state = mg.optim.Adam().init({"w": mg.tensor([1.0])})
    >>> state.slots["m"]["w"].numpy(), state.step
    (array([0.], dtype=float32), 0)
    """

    def __init__(self, slots: dict[str, dict[str, Tensor]], step: int = 0) -> None:
        self.slots, self.step = slots, step

    def count(self) -> None:
        """Count an update."""
        self.step += 1


@dataclass(frozen=True, eq=False)
class Optimizer:
    """What SGD, RMSProp and Adam share: the settings below, `init` and `update`.

    Attributes:
        lr: the learning rate, or a function that gives it from the number of updates made so far.
        weight_decay: in each update a parameter also loses lr · weight_decay of itself, apart from the gradient
            (Loshchilov and Hutter 2019, Algorithm 2).
        clip_norm: gradients with a larger common norm are scaled down to it; `None` for no limit.
        optimistic: each step s is made twice and the last one taken back, p ← p - 2 s_t + s_{t-1}, which expects the
            next gradient to change as the last one did (Daskalakis et al. 2018, eq. 8 and Algorithm 1). Players that
            would circle round the solution then go to it. The slot "last" is s_{t-1}.

    A gradient element beyond ±9.2e18 counts as that in RMSProp and Adam: its square must be within float32.
    `ConfigError` for settings outside their range, here and where a schedule gives such a rate.

    >>> import minigan as mg
    >>> parameters = {"w": mg.tensor([1.0, 2.0])}
    >>> adam = mg.optim.Adam(0.1)
    >>> state = adam.init(parameters)
    >>> loss = (parameters["w"] ** 2).sum()
    >>> adam.update(parameters, mg.grad(loss, list(parameters.values())), state)
    >>> parameters["w"].numpy().round(3)
    array([0.9, 1.9], dtype=float32)
    """

    lr: float | Schedule
    _: KW_ONLY
    weight_decay: float = 0.0
    clip_norm: float | None = None
    optimistic: bool = False

    names: ClassVar[tuple[str, ...]]  # of the slots
    rule: ClassVar[Primitive]
    varying: ClassVar[tuple[str, ...]] = ("rate", "decay")  # the rule's attributes that `_numbers` gives

    def __post_init__(self) -> None:
        self._require(weight_decay=(self.weight_decay, 0.0, math.inf))
        if not callable(self.lr):
            self._require(lr=(self.lr, 0.0, math.inf))
        if self.clip_norm is not None:
            self._require(clip_norm=(self.clip_norm, SMALLEST, math.inf))

    def _require(self, **settings: tuple[float, float, float]) -> None:
        _within(type(self).__name__, **settings)

    def _numbers(self, rate: float, t: int) -> tuple[float, ...]:
        """What varies in the update number `t`, from 1: Python in every run of a compiled step, so in few lines."""
        return rate, rate * self.weight_decay

    def _constants(self) -> dict[str, float]:
        """The other attributes of the rule."""
        return {}

    def rate(self, step: int, scale: float = 1.0) -> float:
        """The learning rate at a step, times `scale`; `ConfigError` for one outside its range."""
        rate = scale * (self.lr(step) if callable(self.lr) else self.lr)
        if not 0.0 <= rate < math.inf:
            self._require(lr=(rate, 0.0, math.inf))
        return rate

    def init(self, parameters: Mapping[str, Tensor]) -> State:
        """The state before the first update: zeros in the shapes and dtypes of the parameters."""
        slots = {
            slot: {name: Tensor(lasting_zeros_like(p.array)) for name, p in parameters.items()}
            for slot in (*self.names, *["last"] * self.optimistic)
        }
        return State(slots)

    def update(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Sequence[Tensor],
        state: State,
        rate: Callable[[], float] | None = None,
    ) -> None:
        """Make one step, in place, along `gradients`, one per parameter in their order.

        `rate` gives the learning rate, by default `self.rate` of the number of updates made: a player that moves
        several times in a round of the game asks for that of the round. A function, as a compiled step calls it anew.

        Raises `ShapeError` for gradients that do not belong to these parameters, before anything is changed.
        """
        if [(p.array.shape, p.array.dtype) for p in parameters.values()] != [
            (g.array.shape, g.array.dtype) for g in gradients
        ]:
            have, want = ([f"{x.dtype} {x.shape}" for x in xs] for xs in (gradients, parameters.values()))
            raise ShapeError(f"{type(self).__name__}: gradients {have} do not fit parameters {want}")
        of_update = rate or (lambda: self.rate(state.step))
        numbers = host(lambda: self._numbers(of_update(), state.step + 1))
        attributes = dict(zip(self.varying, numbers, strict=True)) | self._constants()
        if self.clip_norm is not None:
            with no_grad():
                gradients = clip_by_global_norm(gradients, self.clip_norm)
        slots = [state.slots[slot] for slot in self.names]
        for (name, p), g in zip(parameters.items(), gradients, strict=True):
            before = apply(copy, p) if self.optimistic else p
            apply(self.rule, p, *[slot[name] for slot in slots], g, **attributes)
            if self.optimistic:
                apply(_leap, p, state.slots["last"][name], before)
        host(state.count)

    def ahead(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Sequence[Tensor],
        slots: Mapping[str, Mapping[str, Tensor]],
        number: Callable[[], int],
        rate: Callable[[], float],
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """The update as a function: the parameters and slots after update number `number()`, from 1.

        Nothing is overwritten, and the results can be derived for all that goes in. A step of an optimistic optimiser
        is the plain one.

        >>> import minigan as mg
        >>> sgd, w, g = mg.optim.SGD(0.5), mg.tensor([1.0]), mg.tensor([3.0])
        >>> moved, _ = sgd.ahead({"w": w}, [g], sgd.init({"w": w}).slots, lambda: 1, lambda: 0.5)
        >>> moved["w"].numpy(), mg.grad(moved["w"].sum(), g)[0].numpy()
        (array([-0.5], dtype=float32), array([-0.5], dtype=float32))
        """
        if self.clip_norm is not None:
            gradients = clip_by_global_norm(gradients, self.clip_norm)
        first = next(iter(parameters.values()))
        dtype = first.dtype
        varying = Tensor(host(lambda: np.array(self._numbers(rate(), number()), dtype), first.device))
        attributes = {name: varying[k] for k, name in enumerate(self.varying)} | self._constants()
        formula = self.rule.formula.function
        step = types.FunctionType(formula.__code__, {"fm": _OF_TENSORS}, formula.__name__)
        step.__kwdefaults__ = formula.__kwdefaults__
        results = {
            name: step(p, *[slots[slot][name] for slot in self.names], g, **attributes)
            for (name, p), g in zip(parameters.items(), gradients, strict=True)
        }
        after = {
            slot: {name: x[k] for name, x in results.items()} for k, slot in enumerate(("p", *self.names))
        }
        return after.pop("p"), after


@dataclass(frozen=True, eq=False)
class SGD(Optimizer):
    """Gradient descent with a velocity: u ← momentum · u + g, p ← p - lr u (Polyak 1964).

    With `nesterov` the step is lr (g + momentum · u), with the new u (Sutskever et al. 2013, as rewritten by
    Bengio et al. 2013). Settings besides these are `Optimizer`'s.

    >>> import minigan as mg
    >>> weights, sgd = {"w": mg.tensor([1.0])}, mg.optim.SGD(0.5, momentum=0.5)
    >>> state = sgd.init(weights)
    >>> for _ in range(2):  # with velocities 1 and 1.5
    ...     sgd.update(weights, [mg.tensor([1.0])], state)
    >>> weights["w"].numpy()
    array([-0.25], dtype=float32)
    """

    momentum: float = 0.0
    nesterov: bool = False

    names = ("u",)
    rule = _sgd

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(momentum=(self.momentum, 0.0, 1.0))

    def _constants(self) -> dict[str, float]:
        of_gradient, of_velocity = (1.0, self.momentum) if self.nesterov else (0.0, 1.0)
        return {"momentum": self.momentum, "of_gradient": of_gradient, "of_velocity": of_velocity}


@dataclass(frozen=True, eq=False)
class RMSProp(Optimizer):
    """v ← decay · v + (1 - decay) g², p ← p - lr g / (√v + eps) (Tieleman and Hinton 2012, lecture 6.5).

    Settings besides these are `Optimizer`'s.

    >>> import minigan as mg
    >>> weights, rmsprop = {"w": mg.tensor([1.0])}, mg.optim.RMSProp(0.25, decay=0.75)
    >>> rmsprop.update(weights, [mg.tensor([2.0])], rmsprop.init(weights))  # v = 1
    >>> weights["w"].numpy().round(3)
    array([0.5], dtype=float32)
    """

    decay: float = 0.9
    eps: float = 1e-8

    names = ("v",)
    rule = _rmsprop

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(decay=(self.decay, 0.0, 1.0), eps=(self.eps, SMALLEST, math.inf))

    def _constants(self) -> dict[str, float]:
        return {"new": 1.0 - self.decay, "eps": self.eps}


@dataclass(frozen=True, eq=False)
class Adam(Optimizer):
    """Steps of about `lr` in every parameter, from moments of its gradient (Kingma and Ba 2015, Algorithm 1).

    m ← b1 m + (1 - b1) g, v ← b2 v + (1 - b2) g², p ← p - lr m̂ / (√v̂ + eps), with m̂ = m / (1 - b1^t) and
    v̂ = v / (1 - b2^t) at the update number t = 1, 2, … Settings besides these are `Optimizer`'s.

    >>> import minigan as mg
    >>> mg.optim.Adam(b1=1.0)
    Traceback (most recent call last):
        ...
    minigan.errors.ConfigError: Adam: b1 is 1.0, expected 0 <= b1 < 1
    """

    lr: float | Schedule = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    names = ("m", "v")
    rule = _adam
    varying = ("rate", "decay", "unbias")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(b1=(self.b1, 0.0, 1.0), b2=(self.b2, 0.0, 1.0), eps=(self.eps, SMALLEST, math.inf))

    def _numbers(self, rate: float, t: int) -> tuple[float, ...]:
        return rate / (1.0 - self.b1**t), rate * self.weight_decay, 1.0 / (1.0 - self.b2**t)

    def _constants(self) -> dict[str, float]:
        return {"new_m": 1.0 - self.b1, "new_v": 1.0 - self.b2, "eps": self.eps}


def clip_by_global_norm(gradients: Sequence[Tensor], limit: float) -> list[Tensor]:
    """The gradients times min(1, limit / their common Euclidean norm) (Pascanu et al. 2013, Algorithm 1).

    >>> import minigan as mg
    >>> mg.optim.clip_by_global_norm([mg.tensor([3.0]), mg.tensor([4.0])], 1.0)[1].numpy()
    array([0.8], dtype=float32)
    """
    if not 0 < limit < math.inf:
        raise ConfigError(f"clip_by_global_norm: limit is {limit}, expected a finite number above 0")
    if not gradients:
        return []
    total = norm(stack([norm(g) for g in gradients]))
    scale = limit / maximum(total, limit)
    return [g * scale.astype(g.dtype) for g in gradients]


# Averages of weights


@pointwise(donates=1, attributes={"weight": 0.1})
def _approach(average: Any, x: Any, *, weight: Any) -> Any:
    return average + weight * (x - average)


@dataclass(frozen=True, eq=False)
class EMA:
    """An exponential moving average of weights: a ← d a + (1 - d) p with d = min(decay, (1 + t) / (10 + t)).

    The smaller d of the first updates t = 0, 1, … lets the average forget the initial weights.

    >>> import minigan as mg
    >>> average, weights = {"w": mg.tensor([0.0])}, {"w": mg.tensor([1.0])}
    >>> mg.optim.EMA(0.999).update(weights, average, step=lambda: 0)
    >>> average["w"].numpy()
    array([0.9], dtype=float32)
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        _within("EMA", decay=(self.decay, 0.0, 1.0))

    def update(
        self, parameters: Mapping[str, Tensor], averages: Mapping[str, Tensor], step: Callable[[], int]
    ) -> None:
        """Move the average of each parameter's name towards it, in place; `step()` updates were made before."""
        weight = host(lambda: 1.0 - min(self.decay, (1 + step()) / (10 + step())))
        for name, x in parameters.items():
            apply(_approach, averages[name], x, weight=weight)
