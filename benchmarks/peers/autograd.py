"""HIPS autograd, with Adam in NumPy."""

from typing import Any

import autograd.numpy as np
from autograd import elementwise_grad, make_vjp, value_and_grad

from benchmarks.convolutional import ConvGan
from benchmarks.peers import Program, Unsupported
from benchmarks.peers.numpy_adam import NumpyAdam
from benchmarks.scenarios import GAMMA, LAMBDA, SLOPE, Chain, Gan


def setup(threads: int) -> None:
    """NumPy's threads are set by the environment."""


# autograd's rules for maximum, where and powers go over to float64; what is here stays in float32.


def _leaky_relu(x: Any) -> Any:
    return x * np.where(x > 0, x.dtype.type(1), x.dtype.type(SLOPE))


def _square(x: Any) -> Any:
    return x * x


def _layers(x: Any, weights: list[Any]) -> Any:
    """Dense layers with leaky ReLUs between them; weights and biases in turn."""
    for i in range(0, len(weights), 2):
        x = x @ weights[i] + weights[i + 1]
        if i + 2 < len(weights):
            x = _leaky_relu(x)
    return x


def _softplus(x: Any) -> Any:
    return np.logaddexp(0.0, x)


def gan(scenario: Gan, dtype: str, variant: str) -> Program:
    """A step of both players."""
    g, d = ([a for layer in layers for a in layer] for layers in scenario.weights(dtype))
    g_adam, d_adam = NumpyAdam(g), NumpyAdam(d)
    wasserstein = scenario.loss == "wasserstein"

    def generate(z: Any, weights: list[Any]) -> Any:
        x = _layers(z, weights)
        return 0.5 * (np.tanh(0.5 * x) + 1.0) if scenario.output else x

    def d_loss(weights: list[Any], x: Any, fake: Any, *u: Any) -> Any:
        def logits_of(points: Any) -> Any:
            return _layers(points, weights)

        penalty = 0.0
        if scenario.penalty == "r1":
            back, real_logits = make_vjp(logits_of)(x)
            penalty = 0.5 * GAMMA / scenario.batch * np.sum(_square(back(np.ones_like(real_logits))))
        else:
            real_logits = logits_of(x)
        if scenario.penalty == "wgan_gp":
            slope = elementwise_grad(logits_of)(u[0] * x + (1.0 - u[0]) * fake)
            penalty = LAMBDA * np.mean(_square(np.sqrt(np.sum(_square(slope), axis=1)) - 1.0))
        fake_logits = logits_of(fake)
        if wasserstein:
            return np.mean(fake_logits) - np.mean(real_logits) + penalty
        return np.mean(_softplus(-real_logits)) + np.mean(_softplus(fake_logits)) + penalty

    def g_loss(weights: list[Any], z: Any) -> Any:
        logits = _layers(generate(z, weights), d)
        return -np.mean(logits) if wasserstein else np.mean(_softplus(-logits))

    d_value_and_grad, g_value_and_grad = value_and_grad(d_loss), value_and_grad(g_loss)

    def step(x: Any, z1: Any, z2: Any, *u: Any) -> Any:
        of_d, gradients = d_value_and_grad(d, x, generate(z1, g), *u)
        d_adam.update(gradients)
        of_g, gradients = g_value_and_grad(g, z2)
        g_adam.update(gradients)
        return of_d, of_g

    return Program(step, lambda losses: tuple(map(float, losses)))


def conv_gan(scenario: ConvGan, dtype: str, variant: str) -> Program:
    """Cannot be: `Unsupported`."""
    raise Unsupported("has no convolutions with a stride")


def chain(scenario: Chain, dtype: str, variant: str) -> Program:
    """Forward and backward through the chain."""

    def total(arguments: Any) -> Any:
        x, w = arguments
        y = x
        for _ in range(scenario.links):
            y = np.tanh(y * w + x)
        return np.sum(y)

    with_gradients = value_and_grad(total)

    def read(result: Any) -> tuple[float, ...]:
        value, gradients = result
        return (float(value), *(float((g**2).sum()) for g in gradients))

    return Program(lambda x, w: with_gradients((x, w)), read)
