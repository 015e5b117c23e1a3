"""JAX: the whole step under `jit`, with the buffers of weights and moments donated."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.convolutional import ConvGan, Game
from benchmarks.peers import Program, jax_images
from benchmarks.peers.jax_images import conv_layer as conv_layer
from benchmarks.scenarios import GAMMA, LAMBDA, SLOPE, Adam, Gan


def setup(threads: int) -> None:
    """The number of CPUs that the process may use is the number of JAX's threads. Its own cache keeps everything."""
    jax.config.update("jax_enable_x64", True)  # does nothing to float32 arrays
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if cache:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _layers(x: Any, layers: Any) -> Any:
    """Dense layers with leaky ReLUs between them."""
    for i, (weight, bias) in enumerate(layers):
        x = x @ weight + bias
        if i + 1 < len(layers):
            x = jnp.where(x > 0, x, SLOPE * x)
    return x


def _update(adam: Adam, player: Any, gradients: Any, t: Any) -> Any:
    tree, (rate, b1, b2, eps) = jax.tree.map, adam
    weights, m, v = player
    m = tree(lambda m, g: b1 * m + (1 - b1) * g, m, gradients)
    v = tree(lambda v, g: b2 * v + (1 - b2) * g * g, v, gradients)
    scaled, unbias = rate / (1 - b1**t), 1 / (1 - b2**t)
    return tree(lambda p, m, v: p - scaled * m / (jnp.sqrt(unbias * v) + eps), weights, m, v), m, v


def gan(scenario: Gan, dtype: str, variant: str) -> Program:
    """A step of both players."""

    def generate(z: Any, g: Any) -> Any:
        x = _layers(z, g)
        return jax.nn.sigmoid(x) if scenario.output else x

    return _program(scenario, dtype, generate, _layers)


def conv_gan(scenario: ConvGan, dtype: str, variant: str) -> Program:
    """A step of both players."""
    generator, discriminator = scenario.networks

    def generate(z: Any, g: Any) -> Any:
        return generator.apply(jax_images, g, z)

    def judge(x: Any, d: Any) -> Any:
        return discriminator.apply(jax_images, d, x)

    return _program(scenario, dtype, generate, judge)


def _program(
    scenario: Game, dtype: str, generate: Callable[[Any, Any], Any], judge: Callable[[Any, Any], Any]
) -> Program:
    wasserstein = scenario.loss == "wasserstein"

    def slope_at(x: Any, d: Any) -> Any:
        return jax.grad(lambda points: judge(points, d).sum())(x)

    def d_loss(d: Any, x: Any, fake: Any, *u: Any) -> Any:
        real_logits, fake_logits = judge(x, d), judge(fake, d)
        if wasserstein:
            total = fake_logits.mean() - real_logits.mean()
        else:
            total = jax.nn.softplus(-real_logits).mean() + jax.nn.softplus(fake_logits).mean()
        if scenario.penalty == "r1":
            total += 0.5 * GAMMA / scenario.batch * (slope_at(x, d) ** 2).sum()
        elif scenario.penalty:
            slope = slope_at(u[0] * x + (1 - u[0]) * fake, d)
            total += LAMBDA * ((jnp.sqrt((slope**2).sum(axis=1)) - 1) ** 2).mean()
        return total

    def g_loss(g: Any, d: Any, z: Any) -> Any:
        logits = judge(generate(z, g), d)
        return -logits.mean() if wasserstein else jax.nn.softplus(-logits).mean()

    def whole(state: Any, x: Any, z1: Any, z2: Any, *u: Any) -> Any:
        g, d, t = state
        t = t + 1
        of_d, gradients = jax.value_and_grad(d_loss)(d[0], x, generate(z1, g[0]), *u)
        d = _update(scenario.adam, d, gradients, t)
        of_g, gradients = jax.value_and_grad(g_loss)(g[0], d[0], z2)
        g = _update(scenario.adam, g, gradients, t)
        return (g, d, t), (of_d, of_g)

    jitted = jax.jit(whole, donate_argnums=0)
    weights, *slots = (jax.tree.map(jnp.array, scenario.weights(dtype)) for _ in range(3))
    players = zip(weights, *jax.tree.map(jnp.zeros_like, slots), strict=True)
    state = (*players, jnp.zeros((), dtype))

    def step(*arrays: Any) -> Any:
        nonlocal state
        state, losses = jitted(state, *arrays)
        return losses

    def read(losses: Any) -> tuple[float, ...]:
        jax.block_until_ready(state)
        return tuple(map(float, losses))

    return Program(step, read)
