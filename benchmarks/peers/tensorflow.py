"""TensorFlow 2: the whole step as one `tf.function`, with TensorFlow's fused Adam kernel."""

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from benchmarks.convolutional import ConvGan, Game
from benchmarks.peers import Program, tensorflow_images
from benchmarks.scenarios import GAMMA, LAMBDA, SLOPE, Adam, Array, Gan


def setup(threads: int) -> None:
    """Hold TensorFlow to so many threads."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def layers(x: Any, weights: list[Any]) -> Any:
    """Dense layers with leaky ReLUs between them; weights and biases in turn."""
    for i in range(0, len(weights), 2):
        x = tf.nn.bias_add(x @ weights[i], weights[i + 1])
        if i + 2 < len(weights):
            x = tf.nn.leaky_relu(x, SLOPE)
    return x


def d_loss(scenario: Game, judge: Callable[[Any], Any], x: Any, fake: Any, *u: Any) -> Any:
    """The discriminator's loss with its penalty."""
    real_logits, fake_logits = judge(x), judge(fake)
    if scenario.loss == "wasserstein":
        total = tf.reduce_mean(fake_logits) - tf.reduce_mean(real_logits)
    else:
        total = tf.reduce_mean(_cross_entropy(real_logits, tf.ones_like(real_logits)))
        total += tf.reduce_mean(_cross_entropy(fake_logits, tf.zeros_like(fake_logits)))
    if scenario.penalty == "r1":
        (slope,) = tf.gradients(real_logits, x)
        total += 0.5 * GAMMA / scenario.batch * tf.reduce_sum(tf.square(slope))
    elif scenario.penalty:
        points = u[0] * x + (1 - u[0]) * fake
        (slope,) = tf.gradients(judge(points), points)
        length = tf.sqrt(tf.reduce_sum(tf.square(slope), axis=1))
        total += LAMBDA * tf.reduce_mean(tf.square(length - 1))
    return total


def g_loss(scenario: Game, logits: Any) -> Any:
    """The generator's loss."""
    if scenario.loss == "wasserstein":
        return -tf.reduce_mean(logits)
    return tf.reduce_mean(_cross_entropy(logits, tf.ones_like(logits)))


def _cross_entropy(logits: Any, labels: Any) -> Any:
    return tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)


class _Player:
    """Weights, moments, and the powers of b1 and b2 that Adam's kernel asks for."""

    def __init__(self, arrays: Iterable[Array], adam: Adam) -> None:
        self.weights, self.adam = [tf.Variable(a) for a in arrays], adam
        self.m, self.v = ([tf.Variable(tf.zeros_like(p)) for p in self.weights] for _ in range(2))
        dtype = self.weights[0].dtype
        self.b1_power, self.b2_power = (tf.Variable(b, dtype=dtype) for b in (adam.b1, adam.b2))

    def update(self, loss: Any) -> None:
        """One step down the loss.

        TensorFlow adds its epsilon to √v, not to √(v / (1 - b2^t)); so this one is scaled, which keeps the algorithm.
        """
        rate, b1, b2, eps = self.adam
        gradients = tf.gradients(loss, self.weights)
        eps = eps * tf.sqrt(1 - self.b2_power)
        for p, m, v, g in zip(self.weights, self.m, self.v, gradients, strict=True):
            tf.raw_ops.ResourceApplyAdam(
                var=p.handle,
                m=m.handle,
                v=v.handle,
                beta1_power=self.b1_power,
                beta2_power=self.b2_power,
                lr=tf.constant(rate, p.dtype),
                beta1=tf.constant(b1, p.dtype),
                beta2=tf.constant(b2, p.dtype),
                epsilon=eps,
                grad=g,
            )
        self.b1_power.assign(self.b1_power * b1)
        self.b2_power.assign(self.b2_power * b2)


def gan(scenario: Gan, dtype: str, variant: str) -> Program:
    """A step of both players."""
    g, d = (
        _Player([a for layer in network for a in layer], scenario.adam) for network in scenario.weights(dtype)
    )

    def generate(z: Any) -> Any:
        x = layers(z, g.weights)
        return tf.sigmoid(x) if scenario.output else x

    return _program(scenario, g, d, generate, lambda x: layers(x, d.weights))


def conv_gan(scenario: ConvGan, dtype: str, variant: str) -> Program:
    """A step of both players."""
    networks, arrays = scenario.networks, scenario.weights(dtype)
    g, d = players = [_Player(weights.values(), scenario.adam) for weights in arrays]
    g_weights, d_weights = (
        dict(zip(names, player.weights, strict=True)) for names, player in zip(arrays, players, strict=True)
    )

    def generate(z: Any) -> Any:
        return networks[0].apply(tensorflow_images, g_weights, z)

    def judge(x: Any) -> Any:
        return networks[1].apply(tensorflow_images, d_weights, x)

    return _program(scenario, g, d, generate, judge)


def _program(
    scenario: Game, g: _Player, d: _Player, generate: Callable[[Any], Any], judge: Callable[[Any], Any]
) -> Program:
    @tf.function(autograph=False)
    def step(x: Any, z1: Any, z2: Any, *u: Any) -> Any:
        of_d = d_loss(scenario, judge, x, generate(z1), *u)
        d.update(of_d)
        of_g = g_loss(scenario, judge(generate(z2)))
        g.update(of_g)
        return of_d, of_g

    return Program(
        lambda *arrays: step(*map(tf.convert_to_tensor, arrays)),
        lambda losses: tuple(float(loss.numpy()) for loss in losses),
    )
