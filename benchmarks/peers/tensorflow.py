"""TensorFlow 2: the whole step as one `tf.function`, with TensorFlow's fused Adam kernel."""

from typing import Any

import tensorflow as tf

from benchmarks.peers import Program
from benchmarks.scenarios import B1, B2, EPS, GAMMA, LAMBDA, RATE, SLOPE, Gan, Layers


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


def d_loss(scenario: Gan, weights: list[Any], x: Any, fake: Any, *u: Any) -> Any:
    """The discriminator's loss with its penalty."""
    real_logits, fake_logits = layers(x, weights), layers(fake, weights)
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
        (slope,) = tf.gradients(layers(points, weights), points)
        length = tf.sqrt(tf.reduce_sum(tf.square(slope), axis=1))
        total += LAMBDA * tf.reduce_mean(tf.square(length - 1))
    return total


def g_loss(scenario: Gan, logits: Any) -> Any:
    """The generator's loss."""
    if scenario.loss == "wasserstein":
        return -tf.reduce_mean(logits)
    return tf.reduce_mean(_cross_entropy(logits, tf.ones_like(logits)))


def _cross_entropy(logits: Any, labels: Any) -> Any:
    return tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)


class _Player:
    """Weights, moments, and the powers of b1 and b2 that Adam's kernel asks for."""

    def __init__(self, layers: Layers) -> None:
        self.weights = [tf.Variable(a) for layer in layers for a in layer]
        self.m, self.v = ([tf.Variable(tf.zeros_like(p)) for p in self.weights] for _ in range(2))
        dtype = self.weights[0].dtype
        self.b1_power, self.b2_power = tf.Variable(B1, dtype=dtype), tf.Variable(B2, dtype=dtype)

    def update(self, loss: Any) -> None:
        """One step down the loss.

        TensorFlow adds its epsilon to √v, not to √(v / (1 - b2^t)); so this one is scaled, which keeps the algorithm.
        """
        gradients = tf.gradients(loss, self.weights)
        eps = EPS * tf.sqrt(1 - self.b2_power)
        for p, m, v, g in zip(self.weights, self.m, self.v, gradients, strict=True):
            tf.raw_ops.ResourceApplyAdam(
                var=p.handle,
                m=m.handle,
                v=v.handle,
                beta1_power=self.b1_power,
                beta2_power=self.b2_power,
                lr=tf.constant(RATE, p.dtype),
                beta1=tf.constant(B1, p.dtype),
                beta2=tf.constant(B2, p.dtype),
                epsilon=eps,
                grad=g,
            )
        self.b1_power.assign(self.b1_power * B1)
        self.b2_power.assign(self.b2_power * B2)


def gan(scenario: Gan, dtype: str, variant: str) -> Program:
    """A step of both players."""
    g, d = map(_Player, scenario.weights(dtype))

    def generate(z: Any) -> Any:
        x = layers(z, g.weights)
        return tf.sigmoid(x) if scenario.output else x

    @tf.function(autograph=False)
    def step(x: Any, z1: Any, z2: Any, *u: Any) -> Any:
        of_d = d_loss(scenario, d.weights, x, generate(z1), *u)
        d.update(of_d)
        of_g = g_loss(scenario, layers(generate(z2), d.weights))
        g.update(of_g)
        return of_d, of_g

    return Program(
        lambda *arrays: step(*map(tf.convert_to_tensor, arrays)),
        lambda losses: tuple(float(loss.numpy()) for loss in losses),
    )
