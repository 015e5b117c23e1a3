"""Remedies for unstable training: each against its formula on games that can be solved by hand, and its properties."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import minigan as mg
from minigan import presets
from minigan.errors import CheckpointError, ConfigError, NonFiniteError, ShapeError
from minigan.game import Game
from minigan.nn.module import substituted
from minigan.ops import Stream
from minigan.optim import SGD, Adam
from minigan.packs import pack
from minigan.spectra import spectrum
from minigan.tape import recording
from minigan.train import build

H, GAMMA = 0.2, 0.7
Vector = np.ndarray[Any, np.dtype[np.float64]]


class Point(mg.nn.Module):
    """A generator that makes the same point θ of every latent."""

    def __init__(self, theta: float) -> None:
        self.theta = mg.tensor(np.array([theta]))

    def __call__(self, x: mg.Tensor, *, train: bool = False, random: Stream | None = None) -> mg.Tensor:
        return x * 0.0 + self.theta


class Slope(mg.nn.Module):
    """A discriminator with the logits ψ x."""

    def __init__(self, psi: float) -> None:
        self.psi = mg.tensor(np.array([psi]))

    def __call__(self, x: mg.Tensor, *, train: bool = False, random: Stream | None = None) -> mg.Tensor:
        return x * self.psi


def dirac(start: Vector, optimizer: Any = None, **settings: Any) -> Game:
    """The Dirac-GAN (Mescheder et al. 2018, Definition 2.1): all data is 0."""
    optimizer = optimizer or SGD(H)
    players = Point(start[0]), Slope(start[1])
    return Game(
        *players,
        loss="minimax",
        generator_optimizer=optimizer,
        discriminator_optimizer=optimizer,
        ema=None,
        **settings,
    )


def place(game: Game) -> Vector:
    state = game.state()
    return np.array([state["generator.theta"][0], state["discriminator.psi"][0]])


def play(game: Game, steps: int = 1) -> Vector:
    zeros = mg.tensor(np.zeros((2, 1)))
    for _ in range(steps):
        game.step(zeros, [zeros] * (2 - game.share_fake), random=Stream(0, "unused"))
    return place(game)


def slope(t: float) -> float:
    """f' of f(t) = -log(1 + e^-t)."""
    return 1 / (1 + np.exp(t))


def field(w: Vector) -> Vector:
    """v = (-ψ f'(-ψθ), θ f'(-ψθ)): D(x) = 1 at real data, so that V = f(0) + f(-ψ θ)."""
    theta, psi = w
    return np.array([psi * slope(-psi * theta), -theta * slope(-psi * theta)])


def jacobian(w: Vector) -> Vector:
    theta, psi = w
    first = slope(-psi * theta)
    second = -first * (1 - first)  # f'' at the same place
    return np.array(
        [
            [-psi * psi * second, first - theta * psi * second],
            [-first + theta * psi * second, theta * theta * second],
        ]
    )


def simultaneous(w: Vector) -> Vector:
    return w + H * field(w)


def extragradient(w: Vector) -> Vector:
    return w + H * field(w + H * field(w))


def consensus(w: Vector) -> Vector:
    return w + H * (field(w) - GAMMA * jacobian(w).T @ field(w))


START = np.array([0.8, -0.5])
UPDATES: dict[str, tuple[Callable[[Vector], Vector], dict[str, Any]]] = {
    "simultaneous": (simultaneous, {"update": "simultaneous"}),
    "extragradient": (extragradient, {"update": "extragradient"}),
    "consensus": (consensus, {"update": "simultaneous", "consensus": GAMMA}),
    "consensus, one batch": (consensus, {"update": "simultaneous", "consensus": GAMMA, "share_fake": True}),
}


@pytest.mark.parametrize("name", UPDATES)
def test_updates_of_the_dirac_gan(name: str) -> None:
    rule, settings = UPDATES[name]
    game, expected = dirac(START, **settings), START
    for _ in range(5):
        expected = rule(expected)
        np.testing.assert_allclose(play(game), expected, rtol=1e-12)


def test_the_jacobian_above_is_that_of_the_field() -> None:
    numeric = np.stack([(field(START + d) - field(START - d)) / 2e-6 for d in np.eye(2) * 1e-6], 1)
    np.testing.assert_allclose(jacobian(START), numeric, atol=1e-9)


def test_an_optimistic_step_is_made_twice_and_the_last_one_taken_back() -> None:
    game = dirac(START, SGD(H, optimistic=True), update="simultaneous")
    w, before = START, np.zeros(2)
    for _ in range(5):
        w, before = w + 2 * H * field(w) - H * before, field(w)
        np.testing.assert_allclose(play(game), w, rtol=1e-12)


def test_optimistic_adam_is_that_of_adam_steps() -> None:
    """Daskalakis et al. 2018, Algorithm 1: each step of Adam along its moments, twice, and the last one back."""
    rng, weights = np.random.default_rng(0), {"w": mg.tensor(np.ones(3))}
    adam = Adam(0.1, b1=0.5, b2=0.9, optimistic=True)
    state = adam.init(weights)
    p, m, v, last = np.ones(3), np.zeros(3), np.zeros(3), np.zeros(3)
    for t in range(1, 6):
        g = rng.standard_normal(3)
        m, v = 0.5 * m + 0.5 * g, 0.9 * v + 0.1 * g * g
        step = 0.1 * m / (1 - 0.5**t) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8)
        p, last = p - 2 * step + last, step
        adam.update(weights, [mg.tensor(g)], state)
        np.testing.assert_allclose(weights["w"].numpy(), p, rtol=1e-12)


def test_optimistic_extrapolation_goes_back_too() -> None:
    """Both moves are made twice, and that before each taken back; the second from where the first began."""
    game = dirac(START, SGD(H, optimistic=True), update="extragradient")
    w, last = START, np.zeros(2)
    for _ in range(3):
        ahead = w + 2 * H * field(w) - last
        w, last = w + 2 * H * field(ahead) - H * field(w), H * field(ahead)
        np.testing.assert_allclose(play(game), w, rtol=1e-12)


def test_an_optimistic_player_goes_on_from_weights_that_are_loaded() -> None:
    g, d = mg.models.mlp_generator(4, (8,), (8, 8, 1)), mg.models.mlp_discriminator((8, 8, 1), (8,))
    gan = mg.GAN(g, d, optimizer=Adam(1e-3, optimistic=True))
    other = mg.models.mlp_generator(4, (8,), (8, 8, 1), seed=7).state()
    g.load_state({name: x.numpy() for name, x in other.items()})
    gan.fit(mg.data.digits()[0], steps=1, batch=8)
    for name, x in g.parameters().items():
        assert np.abs(x.numpy() - other[name].numpy()).max() < 3e-3


@pytest.mark.parametrize(
    ("settings", "optimizer", "converges"),
    [
        ({"update": "simultaneous"}, SGD(H), False),
        ({"update": "extragradient"}, SGD(0.8), True),
        ({"update": "simultaneous"}, SGD(0.5, optimistic=True), True),
        ({"update": "simultaneous", "consensus": 1.0}, SGD(H), True),
        ({"update": "simultaneous", "penalty": mg.penalties.r1(1.0)}, SGD(H), True),
        ({"unroll": 5}, SGD(H), True),
    ],
    ids=["none", "extragradient", "optimistic", "consensus", "r1", "unrolled"],
)
def test_remedies_bring_the_dirac_gan_to_rest(settings: Any, optimizer: Any, converges: bool) -> None:
    end = np.linalg.norm(play(dirac(START, optimizer, **settings), 150))
    assert end < 0.1 if converges else end > np.linalg.norm(START)


# Unrolling


def unrolled_slope(w: Vector, steps: int, rate: float) -> float:
    """dL_G / dθ through the discriminator's steps, by differences."""

    def loss(theta: float) -> float:
        psi = w[1]
        for _ in range(steps):
            psi += rate * field(np.array([theta, psi]))[1]
        return float(-np.log1p(np.exp(psi * theta)))

    d = 1e-3
    far, near = (loss(w[0] + k * d) - loss(w[0] - k * d) for k in (2, 1))
    return (8 * near - far) / (12 * d)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_generator_derives_through_the_steps_that_are_unrolled(steps: int) -> None:
    game = dirac(START, update="simultaneous", unroll=steps)
    theta, psi = play(game)
    assert theta == pytest.approx(START[0] - H * unrolled_slope(START, steps, H), rel=1e-9)
    assert psi == pytest.approx(START[1] + H * field(START)[1], rel=1e-12)  # which makes its own step alone


OPTIMIZERS = [
    SGD(0.1, momentum=0.9, nesterov=True),
    mg.optim.RMSProp(0.1, weight_decay=0.1),
    Adam(0.1, b1=0.5, clip_norm=0.5),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda each: type(each).__name__)
def test_a_step_ahead_is_the_step_that_is_then_made(optimizer: Any) -> None:
    rng = np.random.default_rng(0)
    weights = {name: mg.tensor(rng.standard_normal(3)) for name in "ab"}
    state = optimizer.init(weights)
    for _ in range(3):
        gradients = [mg.tensor(rng.standard_normal(3)) for _ in weights]
        ahead, slots = optimizer.ahead(
            weights, gradients, state.slots, lambda: state.step + 1, lambda: optimizer.lr
        )
        before = weights["a"].numpy().copy()
        optimizer.update(weights, gradients, state)
        assert (weights["a"].numpy() != before).any()
        for name, p in weights.items():
            np.testing.assert_allclose(ahead[name].numpy(), p.numpy(), rtol=1e-13)
            for slot, tensors in slots.items():
                np.testing.assert_allclose(tensors[name].numpy(), state.slots[slot][name].numpy(), rtol=1e-13)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda each: type(each).__name__)
def test_a_step_ahead_has_derivatives(optimizer: Any) -> None:
    weights = {"w": mg.tensor(np.array([1.0, -2.0]))}
    state = optimizer.init(weights)
    optimizer.update(weights, [mg.tensor(np.array([0.5, 1.0]))], state)

    def moved(p: mg.Tensor, g: mg.Tensor) -> mg.Tensor:
        return optimizer.ahead({"w": p}, [g], state.slots, lambda: 2, lambda: 0.1)[0]["w"]

    mg.check_grad(moved, np.array([1.0, -2.0]), np.array([0.3, -0.8]), order=2)


def small(loss: Any = "non_saturating", **settings: Any) -> Game:
    """Smooth networks in float64, as rectifiers hide what depends on second derivatives."""
    g = mg.nn.Sequential(mg.nn.Dense(2, 3, stream=Stream(1, "g"), dtype=np.float64), mg.nn.Activation("tanh"))
    g.layers.append(mg.nn.Dense(3, 2, stream=Stream(2, "g"), dtype=np.float64))
    d = mg.nn.Sequential(mg.nn.Dense(2, 4, stream=Stream(1, "d"), dtype=np.float64), mg.nn.Activation("tanh"))
    d.layers.append(mg.nn.Dense(4, 1, stream=Stream(2, "d"), dtype=np.float64))
    both = {"generator_optimizer": SGD(0.3), "discriminator_optimizer": SGD(0.3)}
    return Game(g, d, loss=loss, ema=None, **both, **settings)


X, Z = (
    Stream(0, name).normal((6, 2), mean=mean, dtype=np.float64) for name, mean in (("x", 1.0), ("z", 0.0))
)
PENALTIES = {
    "none": None,
    "r1": mg.penalties.r1(1.0),
    "r2": mg.penalties.r2(1.0),
    "wgan_gp": mg.penalties.wgan_gp(1.0),
    "dragan": mg.penalties.dragan(1.0),
}


def drawn(game: Game) -> Any:
    from minigan.game import _Draw

    return _Draw(X, None, None, Z, Z, Stream(0, "unused"))


@pytest.mark.parametrize("penalty", ["none", "r1", "r2"])
def test_the_discriminator_that_is_looked_ahead_to_is_the_one_that_is_then_made(penalty: str) -> None:
    game, steps = small(penalty=PENALTIES[penalty], unroll=3), small(penalty=PENALTIES[penalty])
    with recording(True):
        answer = game._answer(drawn(game), game.generator(Z))
    steps._of_generator.move = lambda *gradients: None  # type: ignore[method-assign]
    for _ in range(3):
        steps.step(X, [Z, Z], random=Stream(0, "unused"))
    made = steps.discriminator.parameters()
    for name, p in game.discriminator.parameters().items():
        np.testing.assert_allclose(answer[id(p)].numpy(), made[name].numpy(), rtol=1e-11)


def slopes(parameters: list[mg.Tensor], value: Callable[[], float]) -> list[Vector]:
    """Derivatives by differences."""
    found = []
    for p in parameters:
        flat, own = p.array.reshape(-1), np.empty(p.size)
        for k in range(p.size):
            before, values = flat[k], []
            for step in (2, 1, -1, -2):
                flat[k] = before + step * 1e-3
                values.append(value())
            flat[k] = before
            own[k] = (-values[0] + 8 * values[1] - 8 * values[2] + values[3]) / 12e-3
        found.append(own.reshape(p.shape))
    return found


LOSSES = ("non_saturating", "minimax", "wasserstein", "hinge", "relativistic", "characteristic")
VARIANTS = [(loss, {}) for loss in LOSSES if loss != "hinge"]
VARIANTS += [("non_saturating", {"penalty": PENALTIES[name]}) for name in ("r1", "r2", "wgan_gp", "dragan")]
VARIANTS += [("relativistic", {"feature_matching": 0.7})]


@pytest.mark.parametrize(("loss", "settings"), VARIANTS, ids=str)
def test_the_generator_of_an_unrolled_game_descends_what_it_says(loss: str, settings: dict[str, Any]) -> None:
    """Its gradient is that of its loss against the discriminator that has answered, whole V for zero-sum losses."""
    game = small(loss, unroll=3, **settings)

    def value() -> float:
        draw = drawn(game)  # with the same random numbers each time
        with recording(True), substituted(game.discriminator, game._answer(draw, game.generator(Z))):
            fake = game.generator(Z)
            losses = game._of_g(draw, fake)
            if loss in ("minimax", "wasserstein"):
                v = -game.loss.discriminator(game.discriminator(X), game.discriminator(fake))
                assert losses["g_loss"].item() == pytest.approx(v.item(), rel=1e-12)
            return float(sum(x.item() for x in losses.values()))

    with recording(True):
        _, found = game._g_gradients(drawn(game), None)
    for exact, numeric in zip(found, slopes(list(game.generator.parameters().values()), value), strict=True):
        np.testing.assert_allclose(exact.numpy(), numeric, atol=2e-9)


@pytest.mark.parametrize(("loss", "settings"), VARIANTS, ids=str)
def test_players_in_consensus_descend_the_size_of_the_field_too(loss: str, settings: dict[str, Any]) -> None:
    game = small(loss, consensus=0.5, update="simultaneous", share_fake=True, **settings)
    players = [list(network.parameters().values()) for network in (game.discriminator, game.generator)]

    def losses() -> list[mg.Tensor]:
        draw = drawn(game)
        with recording(True):
            fake = game.generator(Z)
            return [
                sum(terms.values(), mg.tensor(0.0, dtype="float64"))
                for terms in (game._of_d(draw, fake)[0], game._of_g(draw, fake))
            ]

    def value(player: int) -> float:
        total = losses()
        own = [g for loss, parameters in zip(total, players, strict=True) for g in mg.grad(loss, parameters)]
        return float(total[player].item() + 0.25 * sum((g.numpy() ** 2).sum() for g in own))

    with recording(True):
        _, *found = game._both(drawn(game))
    for player, exact in enumerate(found):
        for x, numeric in zip(
            exact, slopes(players[player], lambda player=player: value(player)), strict=True
        ):  # type: ignore[misc]
            np.testing.assert_allclose(x.numpy(), numeric, atol=2e-9)


@pytest.mark.parametrize("layer", [mg.nn.BatchNorm(4), None], ids=["batch norm", "spectral norm"])
def test_looking_ahead_leaves_the_discriminators_buffers(layer: Any) -> None:
    game = small(unroll=2)
    first = game.discriminator.layers[0]  # type: ignore[attr-defined]
    changed = [mg.nn.SpectralNorm(first)] if layer is None else [first, layer]
    d = mg.nn.Sequential(*changed, *game.discriminator.layers[1:])  # type: ignore[attr-defined]
    g = mg.nn.Sequential(mg.nn.Dense(2, 2, stream=Stream(1, "g"), dtype=np.float64))
    game = Game(g, d, unroll=2, ema=None)
    before = {name: x.numpy().copy() for name, x in d.state().items()}
    with recording(True):
        game._g_gradients(drawn(game), None)
    for name, x in d.state().items():
        np.testing.assert_array_equal(x.numpy(), before[name])


def test_a_step_ahead_of_adam_without_a_gradient_has_finite_derivatives() -> None:
    weights = {"w": mg.tensor([1.0])}
    g = mg.tensor([0.0])
    adam = Adam(0.1)
    moved, _ = adam.ahead(weights, [g], adam.init(weights).slots, lambda: 1, lambda: 0.1)
    assert np.isfinite(mg.grad(moved["w"].sum(), g)[0].numpy()).all()


def test_substituted_tensors_are_used_and_the_own_ones_come_back() -> None:
    net = mg.models.mlp_discriminator((3,), (4,), seed=1)
    other = mg.models.mlp_discriminator((3,), (4,), seed=2)
    x = Stream(0, "x").normal((5, 3))
    own, before = net(x).numpy(), {name: id(p) for name, p in net.state().items()}
    pairs = zip(net.parameters().values(), other.parameters().values(), strict=True)
    with pytest.raises(RuntimeError), substituted(net, {id(p): q for p, q in pairs}):
        np.testing.assert_array_equal(net(x).numpy(), other(x).numpy())
        raise RuntimeError
    np.testing.assert_array_equal(net(x).numpy(), own)
    assert {name: id(p) for name, p in net.state().items()} == before


class Pair(NamedTuple):
    """A container that is rebuilt by a method of its own."""

    first: mg.nn.Module
    second: mg.nn.Module


class Stacked(mg.nn.Module):
    """Layers in a named tuple."""

    def __init__(self) -> None:
        first, second = (mg.nn.Dense(2, 2, stream=Stream(k, "layer")) for k in (0, 1))
        self.pair = Pair(first, second)

    def __call__(self, x: mg.Tensor, *, train: bool = False, random: Stream | None = None) -> mg.Tensor:
        return self.pair.second(self.pair.first(x))


def test_tensors_are_substituted_wherever_parameters_are_found() -> None:
    net, x = Stacked(), Stream(0, "x").normal((3, 2))
    zero = {id(p): p * 0.0 for p in net.parameters().values()}
    with substituted(net, zero):
        assert not net(x).numpy().any()
    assert net(x).numpy().any()
    stranger = mg.tensor([1.0])
    with (
        pytest.raises(ConfigError, match="Stacked: 1 of 1 tensors are not in it"),
        substituted(net, {id(stranger): x}),
    ):
        pass


# Packs


def test_a_pack_is_its_samples_side_by_side() -> None:
    x = np.arange(4 * 2 * 3 * 2.0).reshape(4, 2, 3, 2)
    packed = pack(mg.tensor(x), 2).numpy()
    assert packed.shape == (2, 2, 3, 4)
    np.testing.assert_array_equal(packed[1], np.concatenate([x[2], x[3]], -1))


def images(**settings: Any) -> mg.GAN:
    count = settings.get("pack", 1)
    g = mg.models.mlp_generator(4, (8,), (8, 8, 1))
    return mg.GAN(g, mg.models.mlp_discriminator((8, 8, count), (8,)), **settings)


def test_a_pack_shows_the_discriminator_whether_samples_are_alike() -> None:
    """A discriminator of pairs gets the derivative of one sample from its partner; a plain one does not."""
    samples = mg.tensor(np.random.default_rng(0).standard_normal((2, 1)))
    judge = mg.models.mlp_discriminator((2,), (8,), dtype=np.float64)
    (gx,) = mg.grad(judge(pack(samples, 2)).sum(), samples)
    moved = mg.tensor(samples.numpy() + np.array([[0.0], [1.0]]))
    (gy,) = mg.grad(judge(pack(moved, 2)).sum(), moved)
    assert gx.numpy()[0] != gy.numpy()[0]


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ShapeError, match="batch of 3 samples cannot be packed by 2"):
        images(pack=2).fit(mg.data.digits()[0][:9], steps=1, batch=3)
    g, d = mg.models.mlp_generator(4, (8,), (8, 8, 1)), mg.models.mlp_discriminator((8, 8, 1), (8,))
    with pytest.raises(ConfigError, match=r"\(8, 8, 1\), packed by 3: \(8, 8, 3\), the discriminator takes"):
        mg.GAN(g, d, pack=3)
    with pytest.raises(ConfigError, match="would be of several classes"):
        mg.GAN(
            mg.models.mlp_generator(4, (8,), (8, 8, 1), classes=2),
            mg.models.mlp_discriminator((8, 8, 2), (8,), classes=2),
            pack=2,
        )


def test_the_configuration_of_packs_is_that_of_the_networks() -> None:
    """The shape that stands once, for both networks, is that of a sample."""
    gan = build(presets.adjusted(presets.table("digits") | {"pack": 2}))
    assert gan.game.discriminator.shape == (8, 8, 2)
    assert build(gan.config()).config() == gan.config()


def test_packs_of_balanced_batches_are_of_any_classes() -> None:
    labels = np.repeat(np.arange(5), 20)
    batches = mg.data.Batches(np.zeros((100, 1)), 40, Stream(0, "data"), labels=labels, sampling="balanced")
    seen = np.concatenate([batches.labels_at(step).reshape(-1, 2) for step in range(40)])  # type: ignore[union-attr]
    assert len(np.unique(seen, axis=0)) == 25


def test_weights_of_other_numbers_of_samples_are_refused() -> None:
    g, d = mg.models.mlp_generator(4, (8,), (2,), output=None), mg.models.mlp_discriminator((4,), (8,))
    game = Game(g, d, pack=2, ema=None)
    x, z = Stream(0, "x").normal((4, 2)), Stream(0, "z").normal((4, 4))
    for count in (1, 2, 3, 5, 6):
        with pytest.raises(ShapeError, match="weights of shape"):
            game.step(x, [z, z], random=Stream(0, "unused"), weights=mg.tensor(np.ones(count, np.float32)))


def test_the_spectrum_of_packs_takes_batches_that_come_out_even() -> None:
    g, d = mg.models.mlp_generator(2, (4,), (2,), output=None), mg.models.mlp_discriminator((6,), (4,))
    points = mg.data.ring().sample(300, Stream(0, "points"))[0]
    found = spectrum(mg.GAN(g, d, pack=3), points, latents=2)
    assert len(found.eigenvalues) == found.parameters


# Feature matching


def test_the_generator_matches_the_features_before_the_last_layer() -> None:
    data = Stream(0, "x").uniform((6, 8, 8, 1))
    z = Stream(0, "z").uniform((6, 4), -1.0)
    plain, matching = (images(feature_matching=weight, optimizer=SGD(1.0)) for weight in (0.0, 2.0))
    below = mg.nn.Sequential(*plain.game.discriminator.layers[:-1])
    g = plain.game.generator
    distance = mg.analysis.feature_matching(below(data), below(g(z)))
    expected = mg.grad(distance * 2.0, list(g.parameters().values()))
    for gan in (plain, matching):  # with both gradients at the first weights
        gan.game.update = "simultaneous"
        gan.game.step(data, [z, z], random=Stream(0, "unused"))
    first, second = (gan.game.generator.parameters() for gan in (plain, matching))
    for name, want in zip(first, expected, strict=True):
        found = first[name].numpy() - second[name].numpy()
        np.testing.assert_allclose(found, want.numpy(), atol=2e-6)
    with pytest.raises(ConfigError, match="feature_matching needs a discriminator of layers"):
        Game(Point(0.0), Slope(0.0), feature_matching=1.0)


# Augmentation

POLICIES = ("", "brightness", "translation", "cutout", "brightness,translation,cutout")


def picture(count: int = 50, channels: int = 2) -> mg.Tensor:
    return Stream(0, "pictures").uniform((count, 16, 12, channels), low=1.0, high=2.0)


def test_brightness_adds_one_number_to_an_image() -> None:
    x = picture()
    more = mg.ops.augment(x, "brightness", Stream(0, "a"), span=2.0).numpy() - x.numpy()
    assert np.ptp(more.reshape(50, -1), axis=1).max() < 1e-6
    assert more.min() < -0.4
    assert 0.4 < more.max() <= 0.5


def test_translation_moves_an_image_and_zeros_come_in() -> None:
    x, seen = picture().numpy(), set()
    moved = mg.ops.augment(x, "translation", Stream(0, "a")).numpy()
    for before, after in zip(x, moved, strict=True):
        found = []
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                there = np.zeros_like(before)
                rows, columns = (slice(max(0, d), n + min(0, d)) for d, n in ((dy, 16), (dx, 12)))
                from_rows, from_columns = (slice(max(0, -d), n + min(0, -d)) for d, n in ((dy, 16), (dx, 12)))
                there[rows, columns] = before[from_rows, from_columns]
                found += [(dy, dx)] * bool((there == after).all())
        assert len(found) == 1
        seen.update(found)
    assert len(seen) > 12  # of 25


def test_cutout_puts_a_square_to_zero() -> None:
    x = picture().numpy()
    cut = mg.ops.augment(x, "cutout", Stream(0, "a")).numpy()
    for before, after in zip(x, cut, strict=True):
        hole = after[..., 0] == 0
        rows, columns = hole.any(1), hole.any(0)
        assert (hole == rows[:, None] & columns).all()
        assert 4 <= rows.sum() <= 8 and 3 <= columns.sum() <= 6
        assert (np.where(hole[..., None], 0, before) == after).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_augmentation_has_derivatives_and_is_a_function_of_its_stream(policy: str) -> None:
    x = np.random.default_rng(0).random((2, 8, 8, 1))
    mg.check_grad(lambda y: mg.ops.augment(y, policy, Stream(0, "a")), x, order=1)
    first, second = (mg.ops.augment(x, policy, Stream(0, "a")).numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    other = mg.ops.augment(x, policy, Stream(1, "a")).numpy()
    assert (other == first).all() == (policy == "")


def test_augmentation_is_for_images() -> None:
    with pytest.raises(ShapeError, match=r"\(3, 2\), expected \(N, H, W, C\)"):
        mg.ops.augment(np.zeros((3, 2)), "cutout", Stream(0, "a"))
    g, d = mg.models.mlp_generator(4, (8,), (2,), output=None), mg.models.mlp_discriminator((2,), (8,))
    with pytest.raises(ConfigError, match="augment is 'cutout': it is for images"):
        mg.GAN(g, d, augment="cutout")


# Weights of penalties by schedule


def test_a_scheduled_penalty_is_the_one_of_its_step() -> None:
    weight = mg.optim.exponential(0.5, steps=10, end=0.01)
    x = mg.tensor([[3.0, 4.0]])

    def critic(x: mg.Tensor) -> mg.Tensor:
        return (x * x).sum(axis=1, keepdims=True)

    given = critic, x, x, critic(x), critic(x), Stream(0, "unused")
    for step in (0, 5, 20):
        found = mg.penalties.r1(weight)(*given, lambda step=step: step)  # type: ignore[misc]
        assert found.item() == pytest.approx(mg.penalties.r1(weight(step))(*given).item(), rel=1e-6)
    with pytest.raises(ConfigError, match=r"r1: weight -1\.0 is not"):
        mg.penalties.r1(lambda step: -1.0)
    assert "exponential" in repr(mg.penalties.r1(weight))


# In runs


@pytest.mark.parametrize(
    "settings",
    [
        {"update": "extragradient"},
        {"optimizer": Adam(1e-3, optimistic=True)},
        pytest.param({"unroll": 1, "update": "simultaneous"}, marks=pytest.mark.slow),
        {"augment": "translation", "penalty": mg.penalties.r1(mg.optim.exponential(0.5, steps=10))},
        pytest.param({"pack": 2, "feature_matching": 1.0}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_continues_bit_for_bit_and_is_built_from_its_settings(settings: Any, tmp_path: Any) -> None:
    data, _ = mg.data.digits()
    whole, half = images(**settings), images(**settings)
    whole.fit(data, steps=6, batch=8)
    half.fit(data, steps=3, batch=8, out=tmp_path / "run")
    resumed = build(half.config())
    resumed.fit(data, steps=6, batch=8, out=tmp_path / "run", resume=True)
    first, second = whole.game.state(), resumed.game.state()
    assert first.keys() == second.keys()
    assert [name for name in first if first[name].tobytes() != second[name].tobytes()] == []


@pytest.mark.parametrize("compiled", [False, True])
def test_an_extragradient_step_that_diverges_changes_nothing(compiled: bool) -> None:
    gan = images(update="extragradient", optimizer=SGD(1e30))
    before = gan.game.state()
    step = mg.compile(gan.step) if compiled else gan.step
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError):
        step(mg.data.Batches(mg.data.digits()[0], 8, Stream(0, "data")))
    after = gan.game.state()
    assert [name for name in before if before[name].tobytes() != after[name].tobytes()] == []


class Interrupted(Adam):
    """Is interrupted after the first parameter."""

    def update(self, parameters: Any, gradients: Any, state: Any, rate: Any = None) -> None:
        one = dict(list(parameters.items())[:1])
        super().update(one, gradients[:1], state, rate)
        raise KeyboardInterrupt


@pytest.mark.parametrize("update", ["alternating", "simultaneous", "extragradient"])
def test_an_interruption_while_the_generator_moves_leaves_both_as_they_were(update: str) -> None:
    g, d = mg.models.mlp_generator(4, (8,), (8, 8, 1)), mg.models.mlp_discriminator((8, 8, 1), (8,))
    gan = mg.GAN(g, d, optimizer=Interrupted(1e-3), discriminator_optimizer=Adam(1e-3), update=update)
    before = gan.game.state()
    with pytest.raises(KeyboardInterrupt):
        gan.step(mg.data.Batches(mg.data.digits()[0], 8, Stream(0, "data")))
    after = gan.game.state()
    assert [name for name in before if before[name].tobytes() != after[name].tobytes()] == []


def test_schedules_in_settings_have_the_defaults_of_their_functions() -> None:
    table = presets.table("digits") | {
        "penalty": [{"name": "r1", "weight": {"name": "exponential", "lr": 0.5}}]
    }
    gan = build(presets.adjusted(table, training={"steps": 100}))
    weight = gan.game.penalties[0].weight
    assert isinstance(weight, mg.optim.Curve) and (weight(0), weight(100)) == (0.5, pytest.approx(5e-4))
    assert build(gan.config()).config() == gan.config()


def test_a_state_without_the_last_step_of_optimism_is_refused() -> None:
    plain, optimistic = images(), images(optimizer=Adam(1e-3, b1=0.5, optimistic=True))
    with pytest.raises(CheckpointError, match=r"generator_optimizer\.last\.\S+: missing"):
        optimistic.game.load_state(plain.game.state())
