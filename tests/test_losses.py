"""The table of losses against closed forms, and the penalties against theirs."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import minigan as mg
from minigan import losses, models, penalties
from minigan.check import check_grad
from minigan.errors import ConfigError, ShapeError
from minigan.ops import Stream

LOG2 = math.log(2.0)
STREAM = Stream(0, "test")


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def discrepancy(r: np.ndarray, f: np.ndarray) -> float:
    """E cos(t a) = e^(-a²/2) over t ~ N(0, 1), so the mean of |φ - ψ|² is one over all pairs of samples."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean(np.exp(-((a - b.T) ** 2) / 2)))

    return kernel(r, r) + kernel(f, f) - 2 * kernel(r, f)


# What each player minimises, written with probabilities and plain NumPy, and its value at the solution of the game.
CLOSED_FORMS: dict[str, tuple[Callable[..., float], Callable[..., float], float, float, float]] = {
    "minimax": (
        lambda r, f, z: (
            -np.mean(z * np.log(logistic(r)) + (1 - z) * np.log(1 - logistic(r)))
            - np.mean(np.log(1 - logistic(f)))
        ),
        lambda r, f: np.mean(np.log(1 - logistic(f))),
        0.0,
        2 * LOG2,
        -LOG2,
    ),
    "non_saturating": (
        lambda r, f, z: (
            -np.mean(z * np.log(logistic(r)) + (1 - z) * np.log(1 - logistic(r)))
            - np.mean(np.log(1 - logistic(f)))
        ),
        lambda r, f: -np.mean(np.log(logistic(f))),
        0.0,
        2 * LOG2,
        LOG2,
    ),
    "least_squares": (
        lambda r, f, z: 0.5 * np.mean((r - z) ** 2) + 0.5 * np.mean(f**2),
        lambda r, f: 0.5 * np.mean((f - 1) ** 2),
        0.5,
        0.25,
        0.125,
    ),
    "wasserstein": (lambda r, f, z: np.mean(f) - np.mean(r), lambda r, f: -np.mean(f), 0.0, 0.0, 0.0),
    "hinge": (
        lambda r, f, z: np.mean(np.maximum(0, 1 - r)) + np.mean(np.maximum(0, 1 + f)),
        lambda r, f: -np.mean(f),
        0.0,
        2.0,
        0.0,
    ),
    "relativistic": (
        lambda r, f, z: -np.mean(np.log(logistic(r - f))),
        lambda r, f: -np.mean(np.log(logistic(f - r))),
        0.0,
        LOG2,
        LOG2,
    ),
    "characteristic": (lambda r, f, z: -discrepancy(r, f), lambda r, f: discrepancy(r, f), 0.0, 0.0, 0.0),
}


def test_every_loss_has_a_closed_form_here() -> None:
    assert list(losses.table) == list(CLOSED_FORMS)
    assert all(name == loss.name for name, loss in losses.table.items())
    assert all(loss.formula and loss.optimum and loss.source for loss in losses.table.values())


@pytest.mark.parametrize("name", CLOSED_FORMS)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_values_are_the_closed_forms(name: str, data: st.DataObject) -> None:
    loss, (discriminator, generator, *_) = losses.table[name], CLOSED_FORMS[name]
    n = data.draw(st.integers(1, 5))
    r, f = (
        np.array(data.draw(st.lists(st.floats(-8, 8), min_size=n, max_size=n)))[:, None] for _ in range(2)
    )
    label = data.draw(st.sampled_from([1.0, 0.9, 0.5])) if loss.labels else 1.0
    real, fake = mg.tensor(r), mg.tensor(f)
    assert loss.discriminator(real, fake, label).item() == pytest.approx(
        discriminator(r, f, label), rel=1e-10, abs=1e-12
    )
    assert loss.generator(real, fake).item() == pytest.approx(generator(r, f), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_at_the_solution_the_loss_is_the_optimum_and_the_discriminator_is_at_rest(name: str) -> None:
    loss, (_, _, logit, of_discriminator, of_generator) = losses.table[name], CLOSED_FORMS[name]
    logits = mg.tensor(np.full((4, 1), logit))
    d_loss = loss.discriminator(logits, logits)
    assert d_loss.item() == pytest.approx(of_discriminator, abs=1e-15)
    assert loss.generator(logits, logits).item() == pytest.approx(of_generator, abs=1e-15)
    # The same logits for real and generated samples: what one term gains there, the other loses.
    np.testing.assert_allclose(mg.grad(d_loss, logits)[0].numpy(), 0, atol=1e-16)


def test_the_value_of_the_game_at_its_solution_is_minus_log_four() -> None:
    logits = mg.tensor(np.zeros((4, 1)))
    assert -losses.table["minimax"].discriminator(logits, logits).item() == pytest.approx(
        -math.log(4), abs=1e-15
    )


def test_the_discriminator_ascends_the_value_and_the_minimax_generator_descends_it() -> None:
    real, fake = mg.tensor([[0.3], [-0.2]]), mg.tensor([[0.1], [0.4]])
    loss = losses.table["minimax"]

    def value(r: mg.Tensor, f: mg.Tensor) -> mg.Tensor:
        """V = E log D(x) + E log(1 - D(G(z))), with probabilities."""
        return mg.ops.log(mg.ops.sigmoid(r)).mean() + mg.ops.log(1 - mg.ops.sigmoid(f)).mean()

    v = mg.grad(value(real, fake), [real, fake])
    d = mg.grad(loss.discriminator(real, fake), [real, fake])
    for ascent, descent in zip(v, d, strict=True):  # a step against d goes along v: D climbs V
        np.testing.assert_allclose(-descent.numpy(), ascent.numpy(), rtol=1e-6)
    assert (-d[0].numpy() > 0).all()  # its logits for real samples rise
    assert (-d[1].numpy() < 0).all()  # and fall for generated ones
    (g,) = mg.grad(loss.generator(real, fake), fake)
    np.testing.assert_allclose(g.numpy(), v[1].numpy(), rtol=1e-6)
    (other,) = mg.grad(losses.table["non_saturating"].generator(real, fake), fake)
    assert (g.numpy() < 0).all() and (other.numpy() < 0).all()  # both raise D(G(z))


@pytest.mark.parametrize("name", sorted(CLOSED_FORMS.keys() - {"characteristic"}))
def test_the_generator_pushes_its_logits_up(name: str) -> None:
    fake = mg.tensor(np.zeros((3, 1)))
    (g,) = mg.grad(losses.table[name].generator(mg.tensor(np.zeros((3, 1))), fake), fake)
    assert (g.numpy() < 0).all()


def test_minimax_saturates_where_the_other_does_not() -> None:
    fake = mg.tensor(np.full((1, 1), -20.0))  # the discriminator is sure
    slopes = {
        n: mg.grad(losses.table[n].generator(None, fake), fake)[0].item()
        for n in ("minimax", "non_saturating")
    }
    assert slopes["minimax"] == pytest.approx(-math.exp(-20), rel=1e-6)
    assert slopes["non_saturating"] == pytest.approx(-1.0, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_saturated_logits_are_finite_to_order_two(name: str, dtype: type) -> None:
    loss = losses.table[name]
    r, f = np.meshgrid(np.array([-1e4, -104.0, 0.0, 104.0, 1e4]), np.array([-1e4, 0.0, 1e4]))
    real, fake = mg.tensor(r.reshape(-1, 1), dtype), mg.tensor(f.reshape(-1, 1), dtype)
    for value in (loss.discriminator(real, fake, 0.9 if loss.labels else 1.0), loss.generator(real, fake)):
        first = mg.grad(value, [real, fake], create_graph=True)
        second = mg.grad([g.sum() for g in first], [real, fake])
        assert value.dtype == dtype
        assert all(np.isfinite(x.numpy()).all() for x in [value, *first, *second])


def test_relativistic_is_mirrored_and_needs_pairs() -> None:
    loss = losses.table["relativistic"]
    a, b = mg.tensor([[0.5], [2.0]]), mg.tensor([[-1.0], [3.0]])
    assert loss.generator(b, a).item() == loss.discriminator(a, b).item()
    with pytest.raises(ShapeError, match=r"shapes \(2, 1\) and none"):
        loss.generator(None, a)
    with pytest.raises(ShapeError, match=r"\(2, 1\) and \(1, 1\)"):
        loss.discriminator(a, mg.tensor([[1.0]]))


@pytest.mark.parametrize("mu", [0.5, 3.0])
@pytest.mark.parametrize("amplitude", [0.0, 0.5, 1.0])
def test_characteristic_distance_of_normal_logits(mu: float, amplitude: float) -> None:
    """φ of N(μ, 1) is e^{iμt - t²/2}: the phases differ, the amplitudes do not; φ of N(0, s²) has no phase."""
    quantiles = np.array([NormalDist().inv_cdf((k + 0.5) / 4000) for k in range(4000)])[:, None]
    loss, logits = losses.characteristic(amplitude), mg.tensor(quantiles)
    moved = 2 / math.sqrt(3) * (1 - math.exp(-(mu**2) / 6))
    assert loss.generator(logits, mg.tensor(quantiles + mu)).item() == pytest.approx(
        2 * (1 - amplitude) * moved, abs=1e-3
    )
    wider = 1 / math.sqrt(3) + 1 / math.sqrt(1 + 2 * mu**2) - 2 / math.sqrt(2 + mu**2)
    assert loss.generator(logits, mg.tensor(quantiles * mu)).item() == pytest.approx(
        2 * amplitude * wider, abs=1e-3
    )


@pytest.mark.parametrize("amplitude", [0.2, 0.5])
@pytest.mark.parametrize("shape", [(5, 1), (5,), (4, 3)])
def test_characteristic_loss_has_derivatives_of_order_two(shape: tuple[int, ...], amplitude: float) -> None:
    loss = losses.characteristic(amplitude)
    a, b = (STREAM.child(name).normal(shape, dtype=np.float64).numpy() for name in "ab")
    check_grad(loss.generator, a, b, order=2)
    assert loss.discriminator(mg.tensor(a), mg.tensor(b)).item() == -loss.generator(a, b).item()
    assert loss.generator(a, b).item() > 0
    assert loss.generator(a, a[::-1].copy()).item() == pytest.approx(0, abs=1e-14)


def test_characteristic_loss_of_logits_in_the_plane() -> None:
    """Of two points, 2 - 2 e^(-Δ²/2), up to the 256 frequencies that stand for all."""
    points = [mg.tensor(np.array([place])) for place in ([0.0, 0.0], [0.6, 0.8])]
    assert losses.characteristic().generator(*points).item() == pytest.approx(2 - 2 * math.exp(-0.5), abs=0.1)


def test_a_compiled_game_with_the_characteristic_loss_is_the_eager_one() -> None:
    def weights(compiled: bool) -> list[np.ndarray]:
        networks = models.mlp_generator(2, (8,), (2,), output=None), models.mlp_discriminator((2,), (8,))
        # Shifting all logits changes nothing, so the last bias has the gradient 0, whose rounding Adam would enlarge.
        rate = mg.optim.SGD(0.1)
        gan = mg.GAN(*networks, loss="characteristic", penalty=penalties.r1(0.1), optimizer=rate)
        points = mg.data.ring().sample(256, STREAM)[0]
        gan.fit(points, steps=5, batch=32, compile=compiled)
        return [p.numpy().copy() for network in networks for p in network.parameters().values()]

    for a, b in zip(weights(True), weights(False), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_characteristic_refuses_what_it_cannot_compare() -> None:
    loss = losses.table["characteristic"]
    with pytest.raises(ShapeError, match=r"shapes None and \(1, 1\)"):
        loss.generator(None, mg.tensor([[1.0]]))
    with pytest.raises(ShapeError, match=r"\(2, 1\) and \(1, 2\)"):
        loss.discriminator(mg.tensor([[1.0], [2.0]]), mg.tensor([[1.0, 2.0]]))
    with pytest.raises(ConfigError, match="amplitude 2"):
        losses.characteristic(2)
    with pytest.raises(ConfigError, match=r"'characteristic, amplitude 0\.2' does not exist"):
        losses.find(losses.characteristic(0.2).name)


def test_find() -> None:
    assert losses.find("hinge") is losses.table["hinge"]
    assert losses.find(losses.table["hinge"]) is losses.table["hinge"]
    with pytest.raises(ConfigError, match="'gan' does not exist; there are minimax, non_saturating"):
        losses.find("gan")


# Penalties

ALL = {
    "r1": penalties.r1(0.7),
    "r2": penalties.r2(0.7),
    "wgan_gp": penalties.wgan_gp(10.0),
    "dragan": penalties.dragan(10.0),
}


def apply_penalty(
    penalty: penalties.Penalty, critic: Callable[[mg.Tensor], mg.Tensor], real: mg.Tensor, fake: mg.Tensor
) -> mg.Tensor:
    return penalty(critic, real, fake, critic(real), critic(fake), STREAM.at(0))


@pytest.mark.parametrize("name", ALL)
def test_on_a_linear_critic_a_penalty_is_a_function_of_its_slope(name: str) -> None:
    w = np.array([[3.0], [-4.0], [0.5]])
    slope = np.linalg.norm(w)
    expected = {
        "r1": 0.35 * slope**2,
        "r2": 0.35 * slope**2,
        "wgan_gp": 10 * (slope - 1) ** 2,
        "dragan": 10 * (slope - 1) ** 2,
    }
    real, fake = STREAM.normal((4, 3), dtype=np.float64), STREAM.normal((4, 3), dtype=np.float64)
    weight = mg.tensor(w)
    value = apply_penalty(ALL[name], lambda x: x @ weight, real, fake)
    assert value.shape == ()
    assert value.item() == pytest.approx(expected[name], rel=1e-12)
    # d/dw of γ/2 |w|² is γ w; of λ (|w| - 1)² it is 2 λ (|w| - 1) w / |w|.
    factor = 0.7 if name in ("r1", "r2") else 20 * (slope - 1) / slope
    np.testing.assert_allclose(mg.grad(value, weight)[0].numpy(), factor * w, rtol=1e-12)


@pytest.mark.parametrize(("name", "where"), [("r1", 0), ("r2", 1)])
def test_r1_looks_at_real_samples_and_r2_at_generated_ones(name: str, where: int) -> None:
    batches = [STREAM.normal((4, 2, 2, 1), dtype=np.float64) for _ in range(2)]
    value = apply_penalty(ALL[name], lambda x: (x * x).sum(axis=(1, 2, 3)), *batches)
    assert value.item() == pytest.approx(
        0.35 * np.mean(np.sum(4 * batches[where].numpy() ** 2, (1, 2, 3))), rel=1e-12
    )


def test_where_the_interpolated_penalties_look() -> None:
    """A critic that records its points: on the lines between the pairs, and near the real samples."""
    seen: list[np.ndarray] = []

    def critic(x: mg.Tensor) -> mg.Tensor:
        seen.append(x.numpy())
        return x.sum(axis=1, keepdims=True)

    real, fake = STREAM.normal((50, 2), dtype=np.float64), STREAM.normal((50, 2), mean=9.0, dtype=np.float64)
    apply_penalty(penalties.wgan_gp(), critic, real, fake)
    share = (seen[-1] - fake.numpy()) / (real.numpy() - fake.numpy())
    np.testing.assert_allclose(share[:, 0], share[:, 1], rtol=1e-9)
    assert 0 <= share.min() < 0.1 < 0.9 < share.max() <= 1
    apply_penalty(penalties.dragan(), critic, real, fake)
    moved = seen[-1] - real.numpy()
    assert 0 <= moved.min() < moved.max() <= 0.5 * real.numpy().std()
    assert moved.max() > 0.3 * real.numpy().std()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ALL)
def test_a_zero_critic_has_finite_penalties_and_gradients(name: str, dtype: type) -> None:
    d = models.mlp_discriminator((3,), (4,), init=mg.nn.init.zeros, dtype=dtype)
    real, fake = STREAM.normal((4, 3), dtype=dtype), STREAM.normal((4, 3), dtype=dtype)
    value = apply_penalty(ALL[name], d, real, fake)
    assert value.item() == pytest.approx(0.0 if name in ("r1", "r2") else 10.0)
    assert value.dtype == dtype
    for gradient in mg.grad(value, list(d.parameters().values())):
        np.testing.assert_array_equal(gradient.numpy(), 0)


@pytest.mark.parametrize("name", ALL)
def test_second_order_gradients_agree_with_differences(name: str) -> None:
    """The penalty as a function of the critic's weights: `grad` of it is a second derivative of the critic."""
    real, fake = STREAM.normal((3, 2), dtype=np.float64), STREAM.normal((3, 2), dtype=np.float64)

    def value(w1: mg.Tensor, b1: mg.Tensor, w2: mg.Tensor) -> mg.Tensor:
        return apply_penalty(ALL[name], lambda x: mg.ops.tanh(x @ w1 + b1) @ w2, real, fake)

    weights = [STREAM.normal(shape, dtype=np.float64).numpy() for shape in ((2, 3), (3,), (3, 1))]
    check_grad(value, *weights, order=2)


def test_penalties_reject_what_cannot_be() -> None:
    for make in (penalties.r1, penalties.r2, penalties.wgan_gp, penalties.dragan):
        for weight in (-1.0, math.nan, math.inf):
            with pytest.raises(ConfigError, match=f"{make.__name__}: weight"):
                make(weight)
    a, b = mg.tensor(np.zeros((2, 3))), mg.tensor(np.zeros((3, 3)))
    with pytest.raises(ShapeError, match=r"\(2, 3\).*\(3, 3\)"):
        apply_penalty(penalties.wgan_gp(), lambda x: x.sum(axis=1), a, b)
