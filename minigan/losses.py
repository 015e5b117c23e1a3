"""GAN losses as one table: what each player minimises, and what that is at the solution of the game.

Both players are given logits, a = D(x) before any sigmoid. With D(x) = σ(a), log D = -softplus(-a) and
log(1 - D) = -softplus(a), which are finite for every finite logit, while the logarithm of a rounded
probability is not.

The game of Goodfellow et al. 2014 (eq. 1) is min over G, max over D of V(D, G) = E log D(x) + E log(1 - D(G(z))).
The discriminator *maximises* V, so what it minimises here is -V; `minimax` has the generator minimise V itself.
The optima are for a generator that has become the data: then D(x) = 1/2, the logit 0, is the best answer.
"""

from collections.abc import Callable
from dataclasses import dataclass

from minigan.errors import ConfigError, ShapeError
from minigan.ops import mean, relu, sigmoid_cross_entropy, softplus
from minigan.ops.characteristic import characteristic_distance, normal_frequencies
from minigan.tensor import Tensor, tensor


@dataclass(frozen=True, eq=False)
class Loss:
    """One row of the table; every function returns a scalar to be *minimised*, means over the batch.

    Attributes:
        discriminator: `discriminator(real_logits, fake_logits, real_label=1.0, weights=None)`. Logits are (N, 1) or
            (N,); the label is that of real samples, below 1 for one-sided smoothing (Salimans et al. 2016, §3.4); the
            weights (N,), of mean 1, multiply the terms of the real samples (importance weighting).
        generator: `generator(real_logits, fake_logits)`; the first may be `None` unless the loss is `paired`, and then
            it takes the `weights` too, those of the pairs.
        labels: whether there is a label to smooth.
        zero_sum: whether the generator descends what the discriminator ascends, but for terms of real samples.
        paired: whether the generator's step compares its samples with real ones, and so needs both logits.
        formula, source: what is computed, and whose it is.
        optimum: both losses where the generated samples are distributed as the data.

    >>> import minigan as mg
    >>> logits = mg.tensor([[0.0], [0.0]])
    >>> round(mg.losses.table["non_saturating"].discriminator(logits, logits).item(), 4)
    1.3863
    """

    name: str
    discriminator: Callable[..., Tensor]
    generator: Callable[..., Tensor]
    formula: str
    optimum: str
    source: str
    labels: bool = False
    paired: bool = False
    zero_sum: bool = False


def _mean(terms: Tensor, weights: Tensor | None) -> Tensor:
    """E w t. The weights of a batch are not divided by their sum, which would make its expectation another."""
    if weights is None:
        return mean(terms)
    if weights.size != terms.size:
        raise ShapeError(f"weights of shape {weights.shape} for real logits of shape {terms.shape}")
    return mean(terms * weights.reshape(terms.shape))


def _cross_entropy(
    real: Tensor, fake: Tensor, real_label: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    likely = softplus(-real) if real_label == 1 else sigmoid_cross_entropy(real, real_label)
    return _mean(likely, weights) + mean(softplus(fake))


def _least_squares(
    real: Tensor, fake: Tensor, real_label: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    return (_mean((real - real_label) ** 2, weights) + mean(fake**2)) * 0.5


def _wasserstein(
    real: Tensor, fake: Tensor, real_label: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    return mean(fake) - _mean(real, weights)


def _hinge(real: Tensor, fake: Tensor, real_label: float = 1.0, weights: Tensor | None = None) -> Tensor:
    return _mean(relu(1.0 - real), weights) + mean(relu(1.0 + fake))


def _ahead(ours: Tensor | None, theirs: Tensor | None, weights: Tensor | None = None) -> Tensor:
    """E softplus(-(a - b)): small where each of our logits a is larger than its partner b."""
    if ours is None or theirs is None or ours.shape != theirs.shape:
        shapes = " and ".join("none" if x is None else str(x.shape) for x in (ours, theirs))
        raise ShapeError(f"relativistic: samples are compared in pairs, but the logits have shapes {shapes}")
    return _mean(softplus(theirs - ours), weights)


def characteristic(amplitude: float = 0.5) -> Loss:
    """The distance of the characteristic functions of D(x) and D(G(z)), which D maximises and G minimises.

    With the logits a, which may be (N, d) here, it is δ = E_t |E e^{i<t, a(x)>} - E e^{i<t, a(G(z))>}|² over
    t ~ N(0, I), where the parts of amplitudes and phases are weighted by `amplitude` and 1 - `amplitude`: see
    `minigan.analysis.characteristic_distance`. It lies from 0 to 4, and is 2 - 2 e^(-Δ²/2) for two points that are Δ
    apart: where D tells all samples apart, G learns nothing, so D needs a penalty. `table["characteristic"]` has the
    amplitude 1/2; settings know no other. `ConfigError` for one outside of 0 to 1.

    The mean over t is a sum, exact for single logits up to 18 apart, and periodic: logits that are 8 π = 25 apart count
    as 4, and 16 π apart as 0. A penalty is to keep them within that too.

    >>> import minigan as mg
    >>> loss = mg.losses.characteristic()
    >>> round(loss.generator(mg.tensor([[0.0]]), mg.tensor([[1.0]])).item(), 5)  # 2 - 2 / sqrt(e)
    0.78694
    """

    if not 0 <= amplitude <= 1:
        raise ConfigError(f"characteristic: amplitude {amplitude}, expected 0 to 1")

    def distance(real: Tensor | None, fake: Tensor, of_real: Tensor | None = None) -> Tensor:
        if real is None or real.ndim not in (1, 2) or real.shape[1:] != fake.shape[1:]:
            shapes = f"{None if real is None else real.shape} and {fake.shape}"
            raise ShapeError(f"characteristic: logits of shapes {shapes}, expected (N, d) and (M, d)")
        x, y = (a.reshape((a.shape[0], a.size // max(a.shape[0], 1))) for a in (real, fake))
        t, weights = (tensor(a, device=x.device) for a in normal_frequencies(x.shape[1], x.dtype))
        return characteristic_distance(x, y, t, amplitude, weights, of_real)

    return Loss(
        "characteristic" if amplitude == 0.5 else f"characteristic, amplitude {amplitude:g}",
        lambda real, fake, real_label=1.0, weights=None: -distance(real, fake, weights),
        distance,
        formula="with the logit a, over t ~ N(0, 1): δ = E_t |E e^{i t a(x)} - E e^{i t a(G(z))}|²; D: -δ; G: δ",
        optimum="D: 0; G: 0",
        source="Ansari, Scarlett and Soh 2020, eq. 3; Li et al. 2020, eq. 3",
        paired=True,
    )


table = {
    loss.name: loss
    for loss in (
        Loss(
            "minimax",
            _cross_entropy,
            lambda real, fake: -mean(softplus(fake)),
            formula="V = E log D(x) + E log(1 - D(G(z))); D: -V; G: E log(1 - D(G(z)))",
            optimum="D: log 4 = 1.386 (V = -log 4); G: -log 2 = -0.693",
            source="Goodfellow et al. 2014, eq. 1 and Theorem 1",
            labels=True,
            zero_sum=True,
        ),
        Loss(
            "non_saturating",
            _cross_entropy,
            lambda real, fake: mean(softplus(-fake)),
            formula="D: -E log D(x) - E log(1 - D(G(z))); G: -E log D(G(z))",
            optimum="D: log 4 = 1.386; G: log 2 = 0.693",
            source="Goodfellow et al. 2014, §3, last paragraph",
            labels=True,
        ),
        Loss(
            "least_squares",
            _least_squares,
            lambda real, fake: mean((fake - 1.0) ** 2) * 0.5,
            formula="with the logit a: D: ½ E (a(x) - 1)² + ½ E a(G(z))²; G: ½ E (a(G(z)) - 1)²",
            optimum="at a = 1/2: D: 1/4; G: 1/8",
            source="Mao et al. 2017, eq. 9",
            labels=True,
        ),
        Loss(
            "wasserstein",
            _wasserstein,
            lambda real, fake: -mean(fake),
            formula="with the logit a: D: E a(G(z)) - E a(x); G: -E a(G(z)); D is to be 1-Lipschitz",
            optimum="D: 0; G: any number, as adding a constant to a changes nothing",
            source="Arjovsky, Chintala and Bottou 2017, eq. 3",
            zero_sum=True,
        ),
        Loss(
            "hinge",
            _hinge,
            lambda real, fake: -mean(fake),
            formula="with the logit a: D: E max(0, 1 - a(x)) + E max(0, 1 + a(G(z))); G: -E a(G(z))",
            optimum="D: 2; G: any number in [-1, 1]",
            source="Lim and Ye 2017; Miyato et al. 2018, eq. 16 and 17",
        ),
        Loss(
            "relativistic",
            lambda real, fake, real_label=1.0, weights=None: _ahead(real, fake, weights),
            lambda real, fake, weights=None: _ahead(fake, real, weights),
            formula="D: E softplus(-(a(x) - a(G(z)))); G: E softplus(-(a(G(z)) - a(x)))",
            optimum="D: log 2 = 0.693; G: log 2",
            source="Jolicoeur-Martineau 2019 (RSGAN); Huang et al. 2024, eq. 2 (RpGAN)",
            paired=True,
        ),
        characteristic(),
    )
}


def find(loss: str | Loss) -> Loss:
    """The record of that name, or the record itself; `ConfigError` lists the names there are.

    >>> import minigan as mg
    >>> mg.losses.find("hinge").optimum
    'D: 2; G: any number in [-1, 1]'
    """
    if isinstance(loss, Loss):
        return loss
    if loss not in table:
        raise ConfigError(f"loss {loss!r} does not exist; there are {', '.join(table)}")
    return table[loss]
