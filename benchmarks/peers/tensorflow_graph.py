"""TensorFlow 1 as in the article: a graph with placeholders, two optimisers, and a session that runs them in turn."""

from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.peers import Program
from benchmarks.peers.tensorflow import d_loss, g_loss, layers
from benchmarks.scenarios import B1, B2, EPS, RATE, Gan

v1 = tf.compat.v1
_settings: dict[str, int] = {}


def setup(threads: int) -> None:
    """Threads belong to the session."""
    v1.disable_eager_execution()
    _settings.update(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=1)


def _descent(loss: Any, weights: list[Any], dtype: str) -> Any:
    """An update by TensorFlow's Adam, whose epsilon is scaled to stand where that of the others does.

    Its settings are scalars of NumPy's, because it would round Python's to float32.
    """
    settings = [np.dtype(dtype).type(value) for value in (RATE, B1, B2)]
    adam: Any = v1.train.AdamOptimizer(
        *settings, epsilon=lambda: EPS * tf.sqrt(1 - adam._get_beta_accumulators()[1])
    )
    return adam.minimize(loss, var_list=weights)


def gan(scenario: Gan, dtype: str, variant: str) -> Program:
    """A step of both players."""
    v1.reset_default_graph()
    of_g, of_d = (
        [
            v1.get_variable(f"{who}{i}{k}", initializer=a)
            for i, layer in enumerate(layers)
            for k, a in enumerate(layer)
        ]
        for who, layers in zip("gd", scenario.weights(dtype), strict=True)
    )

    def generate(z: Any) -> Any:
        x = layers(z, of_g)
        return tf.sigmoid(x) if scenario.output else x

    def given(*shape: int) -> Any:
        return v1.placeholder(dtype, (None, *shape))

    x, z = given(scenario.features), given(scenario.latent)
    u = [given(1)] if scenario.penalty == "wgan_gp" else []
    fake = generate(z)
    of_discriminator = d_loss(scenario, lambda x: layers(x, of_d), x, fake, *u)
    of_generator = g_loss(scenario, layers(fake, of_d))
    move_d, move_g = (
        _descent(loss, weights, dtype) for loss, weights in ((of_discriminator, of_d), (of_generator, of_g))
    )
    session = v1.Session(config=v1.ConfigProto(**_settings))
    session.run(v1.global_variables_initializer())

    def step(real: Any, z1: Any, z2: Any, *random: Any) -> Any:
        given = {x: real, z: z1} | dict(zip(u, random, strict=True))
        _, d_value = session.run([move_d, of_discriminator], given)
        _, g_value = session.run([move_g, of_generator], {z: z2})
        return d_value, g_value

    return Program(step, lambda losses: tuple(map(float, losses)))
