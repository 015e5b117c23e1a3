"""tinygrad: the whole step under `TinyJit` on its CPU device."""

import os
import shutil
from typing import Any

from tinygrad import Tensor, TinyJit

from benchmarks.peers import NotThere, Program
from benchmarks.scenarios import B1, B2, EPS, GAMMA, LAMBDA, RATE, SLOPE, Gan, Layers


def setup(threads: int) -> None:
    """The environment says which device and how many threads."""


class _Player:
    """Weights with their moments."""

    def __init__(self, layers: Layers) -> None:
        self.weights = [Tensor(a).realize() for layer in layers for a in layer]
        self.m, self.v = (
            [Tensor.zeros_like(p).contiguous().realize() for p in self.weights] for _ in range(2)
        )

    def update(self, loss: Any, rate: Any, unbias: Any) -> list[Any]:
        """One step down the loss; what is to be computed for it."""
        for p, m, v, g in zip(self.weights, self.m, self.v, loss.gradient(*self.weights), strict=True):
            m.assign(B1 * m + (1 - B1) * g)
            v.assign(B2 * v + (1 - B2) * g * g)
            p.assign(p - rate * m / ((unbias * v).sqrt() + EPS))
        return [*self.weights, *self.m, *self.v]


def _layers(x: Any, weights: list[Any]) -> Any:
    """Dense layers with leaky ReLUs between them; weights and biases in turn."""
    for i in range(0, len(weights), 2):
        x = x @ weights[i] + weights[i + 1]
        if i + 2 < len(weights):
            x = x.leaky_relu(SLOPE)
    return x


def gan(scenario: Gan, dtype: str, variant: str) -> Program:
    """A step of both players."""
    if not shutil.which(os.environ.get("CC", "clang")):
        raise NotThere("needs the compiler clang, and there is none on the path")
    g, d = map(_Player, scenario.weights(dtype))
    t = Tensor.zeros(1, dtype=dtype).contiguous().realize()
    wasserstein = scenario.loss == "wasserstein"

    def generate(z: Any) -> Any:
        x = _layers(z, g.weights)
        return x.sigmoid() if scenario.output else x

    def penalty(x: Any, fake: Any, real_logits: Any, *u: Any) -> Any:
        if scenario.penalty == "r1":
            (slope,) = real_logits.sum().gradient(x)
            return 0.5 * GAMMA / scenario.batch * slope.square().sum()
        points = u[0] * x + (1 - u[0]) * fake
        (slope,) = _layers(points, d.weights).sum().gradient(points)
        return LAMBDA * (slope.square().sum(axis=1).sqrt() - 1).square().mean()

    @TinyJit
    def whole(x: Any, z1: Any, z2: Any, *u: Any) -> Any:
        t.assign(t + 1).realize()
        rates = RATE / (1 - B1**t), 1 / (1 - B2**t)
        fake = generate(z1).detach()
        real_logits, fake_logits = _layers(x, d.weights), _layers(fake, d.weights)
        if wasserstein:
            d_loss = fake_logits.mean() - real_logits.mean()
        else:
            d_loss = (-real_logits).softplus().mean() + fake_logits.softplus().mean()
        if scenario.penalty:
            d_loss = d_loss + penalty(x, fake, real_logits, *u)
        Tensor.realize(d_loss, *d.update(d_loss, *rates))
        logits = _layers(generate(z2), d.weights)
        g_loss = -logits.mean() if wasserstein else (-logits).softplus().mean()
        Tensor.realize(g_loss, *g.update(g_loss, *rates))
        return d_loss, g_loss

    def step(*arrays: Any) -> Any:
        return whole(*(Tensor(a).realize() for a in arrays))

    return Program(step, lambda losses: tuple(loss.item() for loss in losses))
