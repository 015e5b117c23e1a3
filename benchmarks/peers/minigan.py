"""minigan through its public interface, as its users write it: eager, and compiled by `mg.compile`."""

from collections.abc import Callable
from typing import Any

import minigan as mg
from benchmarks.convolutional import ConvGan, Game
from benchmarks.peers import NotThere, Program, minigan_images
from benchmarks.peers.minigan_images import conv_layer as conv_layer
from benchmarks.scenarios import GAMMA, LAMBDA, SLOPE, Chain, Gan, Layers

Parameters = dict[str, Any]


def setup(threads: int) -> None:
    """Hold minigan to so many threads."""
    set_threads = getattr(mg, "set_threads", None)
    if set_threads is not None:
        set_threads(threads)


def _load(network: Any, layers: Layers, device: str) -> None:
    network.load_state(dict(zip(network.parameters(), (a for layer in layers for a in layer), strict=True)))
    if device != "cpu":
        network.to(device)


def gan(scenario: Gan, dtype: str, variant: str, device: str = "cpu") -> Program:
    """A step of both players."""
    shape, output = (scenario.features,), scenario.output or None
    g = mg.models.mlp_generator(
        scenario.latent, scenario.hidden, shape, slope=SLOPE, output=output, dtype=dtype
    )
    d = mg.models.mlp_discriminator(shape, scenario.hidden, slope=SLOPE, dtype=dtype)
    for network, layers in zip((g, d), scenario.weights(dtype), strict=True):
        _load(network, layers, device)
    return _program(scenario, variant, g, g.parameters(), d, d.parameters())


def conv_gan(scenario: ConvGan, dtype: str, variant: str, device: str = "cpu") -> Program:
    """A step of both players."""
    g_weights, d_weights = (
        {name: mg.asarray(a, device=device) for name, a in weights.items()}
        for weights in scenario.weights(dtype)
    )
    generator, discriminator = scenario.networks

    def g(z: Any) -> Any:
        return generator.apply(minigan_images, g_weights, z)

    def d(x: Any) -> Any:
        return discriminator.apply(minigan_images, d_weights, x)

    return _program(scenario, variant, g, g_weights, d, d_weights)


def _program(
    scenario: Game,
    variant: str,
    g: Callable[[Any], Any],
    g_weights: Parameters,
    d: Callable[[Any], Any],
    d_weights: Parameters,
) -> Program:
    rate, b1, b2, eps = scenario.adam
    adam = mg.optim.Adam(rate, b1=b1, b2=b2, eps=eps)
    g_memory, d_memory = adam.init(g_weights), adam.init(d_weights)
    loss = mg.losses.table[scenario.loss]

    def penalty(x: Any, fake: Any, real_logits: Any, u: Any) -> Any:
        if scenario.penalty == "r1":
            (slope,) = mg.grad(real_logits.sum(), x, create_graph=True)
            return (slope * slope).sum() * (0.5 * GAMMA / scenario.batch)
        with mg.no_grad():
            between = u * x + (1.0 - u) * fake
        (slope,) = mg.grad(d(between).sum(), between, create_graph=True)
        return mg.ops.mean((mg.ops.norm(slope, axis=1) - 1.0) ** 2) * LAMBDA

    def step(x: Any, z1: Any, z2: Any, *u: Any) -> Any:
        with mg.no_grad():
            fake = g(z1)
        real_logits = d(x)
        d_loss = loss.discriminator(real_logits, d(fake))
        if scenario.penalty:
            d_loss = d_loss + penalty(x, fake, real_logits, *(u or [None]))
        adam.update(d_weights, mg.grad(d_loss, list(d_weights.values())), d_memory)
        g_loss = loss.generator(None, d(g(z2)))
        adam.update(g_weights, mg.grad(g_loss, list(g_weights.values())), g_memory)
        return d_loss, g_loss

    def read(losses: Any) -> tuple[float, ...]:
        return tuple(loss.item() for loss in losses)

    if variant == "eager":
        return Program(lambda *arrays: step(*map(mg.asarray, arrays)), read)
    if not hasattr(mg, "compile"):
        raise NotThere("this minigan has no mg.compile")
    return Program(mg.compile(step), read)


def chain(scenario: Chain, dtype: str, variant: str) -> Program:
    """Forward and backward through the chain."""

    def step(x_array: Any, w_array: Any) -> Any:
        x, w = mg.asarray(x_array), mg.asarray(w_array)
        y = x
        for _ in range(scenario.links):
            y = mg.ops.tanh(y * w + x)
        total = y.sum()
        return total, *mg.grad(total, [x, w])

    def read(result: Any) -> tuple[float, ...]:
        total, *gradients = result
        return (total.item(), *(float((g.numpy() ** 2).sum()) for g in gradients))

    return Program(step, read)
