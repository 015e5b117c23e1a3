"""MyGrad, with Adam in NumPy. It has no second derivatives."""

from typing import Any

import mygrad as mg
from mygrad.nnet.activations import leaky_relu, sigmoid

from benchmarks.convolutional import ConvGan
from benchmarks.peers import Program, Unsupported
from benchmarks.peers.numpy_adam import NumpyAdam
from benchmarks.scenarios import SLOPE, Chain, Gan, Layers


def setup(threads: int) -> None:
    """Without the guard that locks the arrays of a graph, which takes half the time of a chain of small operations."""
    mg.turn_memory_guarding_off()


def _tensors(layers: Layers) -> list[Any]:
    return [mg.tensor(a, constant=False, copy=False) for layer in layers for a in layer]


def _layers(x: Any, weights: list[Any]) -> Any:
    """Dense layers with leaky ReLUs between them; weights and biases in turn."""
    for i in range(0, len(weights), 2):
        x = x @ weights[i] + weights[i + 1]
        if i + 2 < len(weights):
            x = leaky_relu(x, SLOPE)
    return x


def _softplus(x: Any) -> Any:
    return mg.logaddexp(0.0, x)


def gan(scenario: Gan, dtype: str, variant: str) -> Program:
    """A step of both players."""
    if scenario.penalty:
        raise Unsupported("has no second derivatives")
    g, d = map(_tensors, scenario.weights(dtype))
    g_adam, d_adam = (NumpyAdam([p.data for p in weights]) for weights in (g, d))
    d_constants = [mg.tensor(p.data, constant=True, copy=False) for p in d]

    def generate(z: Any) -> Any:
        x = _layers(z, g)
        return sigmoid(x) if scenario.output else x

    def update(loss: Any, weights: list[Any], adam: NumpyAdam) -> None:
        loss.backward()
        adam.update([p.grad for p in weights])

    def step(x: Any, z1: Any, z2: Any) -> Any:
        with mg.no_autodiff:
            fake = generate(z1).data
        d_loss = mg.mean(_softplus(-_layers(x, d))) + mg.mean(_softplus(_layers(fake, d)))
        update(d_loss, d, d_adam)
        g_loss = mg.mean(_softplus(-_layers(generate(z2), d_constants)))
        update(g_loss, g, g_adam)
        return d_loss, g_loss

    return Program(step, lambda losses: tuple(loss.item() for loss in losses))


def conv_gan(scenario: ConvGan, dtype: str, variant: str) -> Program:
    """Cannot be: `Unsupported`."""
    raise Unsupported("has no transposed convolutions")


def chain(scenario: Chain, dtype: str, variant: str) -> Program:
    """Forward and backward through the chain."""

    def step(x_array: Any, w_array: Any) -> Any:
        x, w = (mg.tensor(a, constant=False, copy=False) for a in (x_array, w_array))
        y = x
        for _ in range(scenario.links):
            y = mg.tanh(y * w + x)
        total = y.sum()
        total.backward()
        return total, x.grad, w.grad

    def read(result: Any) -> tuple[float, ...]:
        total, *gradients = result
        return (total.item(), *(float((g**2).sum()) for g in gradients))

    return Program(step, read)
