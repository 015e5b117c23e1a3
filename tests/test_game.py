"""The game: its updates against hand-written ones, what it does not compute, its options, its state, a run."""

import dataclasses
import gc
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import minigan as mg
from minigan import linear as linear_ops, losses, models, nn, penalties
from minigan.errors import CheckpointError, ConfigError, ShapeError
from minigan.game import Game
from minigan.nn.module import ASSIGN
from minigan.ops import Stream, product
from minigan.optim import SGD, Adam, linear
from minigan.tape import Primitive, apply, same_spec

RATE = 0.1
LATENT, SAMPLE, BATCH = 3, 2, 5


def networks(dtype: Any = np.float64, hidden: tuple[int, ...] = (4,)) -> tuple[nn.Module, nn.Module]:
    return (
        models.mlp_generator(LATENT, hidden, (SAMPLE,), output=None, seed=1, dtype=dtype),
        models.mlp_discriminator((SAMPLE,), hidden, seed=1, dtype=dtype),
    )


def sgd_game(**settings: Any) -> Game:
    g, d = networks()
    return Game(g, d, generator_optimizer=SGD(RATE), discriminator_optimizer=SGD(RATE), **settings)


def batches(count: int, width: int, purpose: str, dtype: Any = np.float64) -> list[mg.Tensor]:
    stream = Stream(0, purpose)
    return [stream.normal((BATCH, width), dtype=dtype) for _ in range(count)]


def play(game: Game, steps: int, first: int = 0, dtype: Any = np.float64) -> dict[str, mg.Tensor]:
    """Some steps on batches that depend on the step alone; the last metrics."""
    for step in range(first, first + steps):
        reals, latents, random = (Stream(0, purpose).at(step) for purpose in ("real", "latent", "game"))
        metrics = game.step(
            [reals.normal((BATCH, SAMPLE), mean=1.0, dtype=dtype) for _ in range(game.d_steps)],
            [
                latents.normal((BATCH, LATENT), dtype=dtype)
                for _ in range(game.d_steps + (not game.share_fake))
            ],
            random=random,
        )
    return metrics


def test_the_updates_are_those_of_numpy() -> None:
    """A linear generator z W + b against a linear discriminator x a + c, with derivatives by hand."""

    def logistic(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    for update in ("alternating", "simultaneous"):
        g, d = networks(hidden=())
        game = Game(
            g, d, update=update, generator_optimizer=SGD(RATE), discriminator_optimizer=SGD(RATE), ema=None
        )
        w, b, a, c = (x.numpy().copy() for player in (g, d) for x in player.state().values())
        for step in range(3):
            x, z, z2 = (t.numpy() for t in (*batches(1, SAMPLE, f"x{step}"), *batches(2, LATENT, f"z{step}")))
            game.step(mg.tensor(x), [mg.tensor(z), mg.tensor(z2)], random=Stream(0, "unused"))
            fake = z @ w + b
            at_real, at_fake = -logistic(-(x @ a + c)) / BATCH, logistic(fake @ a + c) / BATCH
            new_a = a - RATE * (x.T @ at_real + fake.T @ at_fake)
            new_c = c - RATE * (at_real + at_fake).sum(0)
            judge_a, judge_c = (new_a, new_c) if update == "alternating" else (a, c)
            at_fake = -logistic(-((z2 @ w + b) @ judge_a + judge_c)) / BATCH @ judge_a.T
            w, b, a, c = w - RATE * z2.T @ at_fake, b - RATE * at_fake.sum(0), new_a, new_c
        for found, expected in zip((*g.state().values(), *d.state().values()), (w, b, a, c), strict=True):
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("share_fake", [False, True])
@pytest.mark.parametrize("d_steps", [1, 3])
@pytest.mark.parametrize("update", ["alternating", "simultaneous"])
@pytest.mark.parametrize("name", ["minimax", "relativistic"])
def test_the_updates_are_those_of_the_losses(name: str, update: str, d_steps: int, share_fake: bool) -> None:
    """Each player descends its own loss, written here from new networks, batch by batch."""
    loss = losses.table[name]
    game = sgd_game(
        loss=name, update=update, d_steps=d_steps, share_fake=share_fake, penalty=penalties.r1(0.5)
    )
    g, d = networks()
    reals, latents = batches(d_steps, SAMPLE, "x"), batches(d_steps + (not share_fake), LATENT, "z")
    metrics = game.step(reals, latents, random=Stream(0, "unused"))

    def descend(player: nn.Module, gradients: list[mg.Tensor]) -> None:
        state = {
            key: p.numpy() - RATE * gradient.numpy()
            for (key, p), gradient in zip(player.state().items(), gradients, strict=True)
        }
        player.load_state(state)

    def of_discriminator(real: mg.Tensor, z: mg.Tensor) -> list[mg.Tensor]:
        logits = d(real)
        (slope,) = mg.grad(logits.sum(), real, create_graph=True)
        total = loss.discriminator(logits, d(g(z))) + (slope * slope).sum() * (0.25 / BATCH)
        return mg.grad(total, list(d.parameters().values()))

    def of_generator(real: mg.Tensor, z: mg.Tensor) -> list[mg.Tensor]:
        return mg.grad(loss.generator(d(real), d(g(z))), list(g.parameters().values()))

    for real, z in zip(reals[:-1], latents, strict=False):
        descend(d, of_discriminator(real, z))
    first = of_discriminator(reals[-1], latents[d_steps - 1])
    second = of_generator(reals[-1], latents[-1])
    descend(d, first)
    descend(g, of_generator(reals[-1], latents[-1]) if update == "alternating" else second)
    for player, expected in ((game.generator, g), (game.discriminator, d)):
        for key, x in expected.state().items():
            np.testing.assert_allclose(player.state()[key].numpy(), x.numpy(), rtol=1e-11, atol=1e-15)
    assert all(math.isfinite(float(value)) for value in metrics.values())


def test_alternating_and_simultaneous_differ_only_in_what_the_generator_sees() -> None:
    """One step of each from the same point: the same discriminator, another generator."""
    games = [sgd_game(update=update) for update in ("alternating", "simultaneous")]
    for game in games:
        play(game, 1)
    first, second = (game.state() for game in games)
    for key in first:
        if key.startswith("discriminator."):
            np.testing.assert_array_equal(first[key], second[key])
        if key.startswith("generator.") and key.endswith("weight"):
            assert (first[key] != second[key]).any()


# What is not computed

asked: list[str] = []


def _trace_rule(gy: Any, y: Any, x: Any, whose: str) -> tuple[Callable[[], Any]]:
    def cotangent() -> Any:
        asked.append(whose)
        return gy

    return (cotangent,)


TRACE = Primitive("trace", lambda x, whose: same_spec(x), view=lambda x, whose: x[...], vjp=_trace_rule)


class Traced(nn.Module):
    """A dense layer whose weight says when a derivative for it is computed."""

    def __init__(self, inputs: int, outputs: int, whose: str) -> None:
        self.weight = nn.init.glorot_uniform(Stream(0, whose), (inputs, outputs), np.float64)
        self.whose = whose

    def __call__(self, x: mg.Tensor, *, train: bool = False, random: Stream | None = None) -> mg.Tensor:
        return x @ apply(TRACE, self.weight, whose=self.whose)


@pytest.mark.parametrize("share_fake", [False, True])
@pytest.mark.parametrize("update", ["alternating", "simultaneous"])
def test_no_player_computes_derivatives_for_the_others_weights(update: str, share_fake: bool) -> None:
    g, d = Traced(LATENT, SAMPLE, "generator"), Traced(SAMPLE, 1, "discriminator")
    game = Game(g, d, update=update, share_fake=share_fake, penalty=penalties.r2(0.1))
    asked.clear()
    play(game, 1)
    # The discriminator's weight is used for real samples, for generated ones and in the penalty, the generator's once.
    # Asking for it in the other player's step as well would add to these numbers.
    assert asked.count("generator") == 1
    assert asked[-1] == "generator"
    of_discriminator = asked.count("discriminator")
    asked.clear()
    logits = d(x := batches(1, SAMPLE, "x")[0])
    penalty = game.penalties[0](d, x, x, logits, logits, Stream(0, "unused"))
    mg.grad([losses.table["non_saturating"].discriminator(logits, d(x)), penalty], d.weight)
    assert of_discriminator == len(asked)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of all matrix products computed during a test."""
    shapes: list[tuple[int, ...]] = []

    matmul = linear_ops.MATMUL

    def kernel(outs: Any, *arrays: np.ndarray, **attributes: Any) -> None:
        shapes.append(outs[0].shape)
        matmul.kernel(outs, *arrays, **attributes)

    counting = dataclasses.replace(matmul, kernel=kernel)
    monkeypatch.setattr(linear_ops, "MATMUL", counting)
    monkeypatch.setattr(sys.modules["minigan.tensor"], "MATMUL", counting)  # `mg.tensor` is the function
    monkeypatch.setattr(product, "MATMUL", counting)
    return shapes


@pytest.mark.parametrize(("share_fake", "generators"), [(False, 2), (True, 1)])
def test_a_step_makes_no_matrix_product_too_many(
    products: list[tuple[int, ...]], share_fake: bool, generators: int
) -> None:
    g, d = networks(hidden=(4, 4))
    game = Game(g, d, share_fake=share_fake)
    play(game, 1)
    layers = 3
    forward = (
        layers * generators + 3 * layers
    )  # G once for each player, D on real, generated, and for the generator
    discriminator = 2 * layers + 2 * (
        layers - 1
    )  # per batch: a weight gradient per layer, and none for its input
    generator = layers + layers + (layers - 1)  # through D to its input; then as above
    assert len(products) == forward + discriminator + generator


def test_a_step_leaves_no_cycles_for_the_garbage_collector() -> None:
    game = sgd_game(loss="relativistic", penalty=[penalties.r1(0.1), penalties.wgan_gp()])
    play(game, 1)
    gc.collect()
    play(game, 3)
    assert gc.collect() == 0


# Options


class Recorder(nn.Module):
    """A discriminator that keeps what it is shown."""

    def __init__(self) -> None:
        self.inner = models.mlp_discriminator((SAMPLE,), (4,), dtype=np.float64)
        self.seen: tuple[np.ndarray, ...] = ()

    def __call__(self, x: mg.Tensor, *, train: bool = False, random: Stream | None = None) -> mg.Tensor:
        self.seen += (x.numpy(),)
        return self.inner(x)


def test_batches_of_the_players_are_their_own_unless_shared() -> None:
    for share_fake in (False, True):
        g, d = networks()[0], Recorder()
        game = Game(g, d, share_fake=share_fake)
        latents = batches(1 + (not share_fake), LATENT, "z")
        expected = [g(z).numpy().copy() for z in latents]
        real = batches(1, SAMPLE, "x")[0]
        game.step(real, latents, random=Stream(0, "unused"))
        for seen, batch in zip(d.seen, (real.numpy(), expected[0], expected[-1]), strict=True):
            np.testing.assert_array_equal(seen, batch)


def test_instance_noise_is_on_everything_the_discriminator_sees() -> None:
    deviations = [0.5, 0.25, 0.0]
    g, d = networks()[0], Recorder()
    stream = Stream(0, "z")
    game = Game(g, d, noise=lambda step: deviations[step], generator_optimizer=SGD(0.0))
    real = mg.tensor(np.zeros((4000, SAMPLE)))
    latents = [stream.normal((4000, LATENT), dtype=np.float64) for _ in range(2)]
    clean = [real.numpy(), g(latents[0]).numpy(), g(latents[1]).numpy()]
    for step, deviation in enumerate(deviations):
        d.seen = ()
        game.step(real, latents, random=Stream(0, "noise").at(step))
        added = [seen - batch for seen, batch in zip(d.seen, clean, strict=True)]
        assert [x.std() for x in added] == pytest.approx([deviation] * 3, rel=0.05)
        assert not deviation or abs(np.corrcoef(added[0].ravel(), added[1].ravel())[0, 1]) < 0.05


def test_smoothing_is_of_the_real_labels_alone() -> None:
    game, plain = sgd_game(smoothing=0.1), networks()
    real, *latents = *batches(1, SAMPLE, "x"), *batches(2, LATENT, "z")
    found = game.step(real, latents, random=Stream(0, "unused"))["d_loss"].item()
    r, f = (plain[1](x).numpy() for x in (real, plain[0](latents[0])))
    expected = np.mean(0.9 * np.logaddexp(0, -r) + 0.1 * np.logaddexp(0, r)) + np.mean(np.logaddexp(0, f))
    assert found == pytest.approx(expected, rel=1e-12)


def test_metrics_are_what_they_say() -> None:
    game, (g, d) = sgd_game(penalty=(penalties.r1(0.5), penalties.r2(0.5)), update="simultaneous"), networks()
    real, *latents = *batches(1, SAMPLE, "x"), *batches(2, LATENT, "z")
    metrics = {k: v.item() for k, v in game.step(real, latents, random=Stream(0, "unused")).items()}
    r, f, second = (d(x).numpy() for x in (real, g(latents[0]), g(latents[1])))
    assert metrics["d_real"] == pytest.approx(np.mean(1 / (1 + np.exp(-r))), rel=1e-12)
    assert metrics["d_fake"] == pytest.approx(np.mean(1 / (1 + np.exp(-f))), rel=1e-12)
    assert metrics["d_loss"] == pytest.approx(
        np.mean(np.logaddexp(0, -r)) + np.mean(np.logaddexp(0, f)), rel=1e-12
    )
    assert metrics["g_loss"] == pytest.approx(np.mean(np.logaddexp(0, -second)), rel=1e-12)
    assert metrics["penalty"] > 0
    assert sgd_game().step(real, latents, random=Stream(0, "unused"))["penalty"].item() == 0


def test_the_average_follows_the_generator() -> None:
    game = sgd_game(ema=0.9)
    expected = {key: x.numpy().copy() for key, x in game.generator.state().items()}
    for step in range(5):
        play(game, 1, step)
        d = min(0.9, (1 + step) / (10 + step))
        for key, x in game.generator.state().items():
            expected[key] = d * expected[key] + (1 - d) * x.numpy()
    for key, x in game.ema_generator.state().items():
        np.testing.assert_allclose(x.numpy(), expected[key], rtol=1e-12)
    assert sgd_game(ema=None).ema_generator is None


class Counting(nn.Module):
    """A generator with a buffer that every call in training changes."""

    buffers = ("calls",)

    def __init__(self) -> None:
        self.inner, self.calls = networks()[0], mg.tensor(np.zeros(1, np.int64))

    def __call__(self, x: mg.Tensor, *, train: bool = False, random: Stream | None = None) -> mg.Tensor:
        apply(ASSIGN, self.calls, mg.tensor(self.calls.numpy() + 1))
        return self.inner(x)


def test_the_average_has_the_generators_buffers() -> None:
    game = Game(Counting(), networks()[1])
    play(game, 3)
    assert game.ema_generator.state()["calls"].numpy() == game.generator.state()["calls"].numpy() == 6
    assert game.state()["ema.calls"] == 6


def test_dropout_in_both_networks_draws_from_the_step() -> None:
    def states() -> dict[str, np.ndarray]:
        g, d = (nn.Sequential(network, nn.Dropout(0.5)) for network in networks())
        game = Game(g, d)
        play(game, 2)
        return game.state()

    first, second = states(), states()
    assert all((first[key] == second[key]).all() for key in first)


def test_recording_switched_off_by_the_caller_does_not_matter() -> None:
    inside, outside = sgd_game(share_fake=True), sgd_game(share_fake=True)
    with mg.no_grad():
        play(inside, 2)
    play(outside, 2)
    first, second = inside.state(), outside.state()
    assert all((first[key] == second[key]).all() for key in first)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "gan"}, "loss 'gan' does not exist"),
        ({"d_steps": 0}, "d_steps is 0"),
        ({"d_steps": 1.5}, r"d_steps is 1\.5"),
        ({"update": "both"}, "update is 'both', expected one of alternating, simultaneous"),
        ({"smoothing": 1.0}, r"smoothing is 1\.0"),
        ({"smoothing": 0.1, "loss": "hinge"}, "the loss hinge has no labels"),
        ({"noise": -1.0}, r"noise is -1\.0 at step 0"),
        ({"noise": lambda step: math.nan}, "noise is nan"),
        ({"ema": 1.0}, r"EMA: decay is 1\.0"),
        ({"unroll": -1}, "unroll is -1, expected an integer from 0"),
        ({"pack": 0}, "pack is 0, expected an integer from 1"),
        ({"pack": True}, "pack is True"),
        ({"consensus": math.inf}, "consensus is inf"),
        ({"consensus": 1.0}, r"consensus is 1\.0: it needs the update simultaneous or extragradient"),
        ({"consensus": 1.0, "unroll": 1, "update": "simultaneous"}, "use one of them"),
        ({"feature_matching": -1.0}, r"feature_matching is -1\.0"),
        (
            {"augment": "rotation"},
            "augment: 'rotation' does not exist; there are brightness, translation, cutout",
        ),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sgd_game(**settings)


def test_a_wrong_number_of_batches_is_named() -> None:
    game = sgd_game(d_steps=2)
    with pytest.raises(
        ShapeError, match="1 real and 3 latent batches for d_steps=2 and share_fake=False, expected 2 and 3"
    ):
        game.step(batches(1, SAMPLE, "x"), batches(3, LATENT, "z"), random=Stream(0, "unused"))
    assert game.steps == 0


# State


def adam_game(**settings: Any) -> Game:
    g, d = networks(np.float32)
    return Game(
        g, d, penalty=penalties.wgan_gp(), noise=0.1, generator_optimizer=Adam(0.01, b1=0.5), **settings
    )


def test_the_same_seed_gives_the_same_bits() -> None:
    first, second = adam_game(), adam_game()
    for game in (first, second):
        play(game, 20, dtype=np.float32)
    a, b = first.state(), second.state()
    assert a.keys() == b.keys()
    assert all(a[key].tobytes() == b[key].tobytes() for key in a)


def test_a_game_continues_from_its_state_bit_for_bit() -> None:
    whole, half = adam_game(), adam_game()
    play(whole, 10, dtype=np.float32)
    play(half, 5, dtype=np.float32)
    saved = half.state()
    play(half, 1, dtype=np.float32)  # what is saved are copies
    resumed = adam_game()
    resumed.load_state(saved)
    assert resumed.steps == 5
    play(resumed, 5, first=5, dtype=np.float32)
    a, b = whole.state(), resumed.state()
    assert all(a[key].tobytes() == b[key].tobytes() for key in a)


def test_the_names_of_the_state() -> None:
    names = adam_game().state().keys()
    tensors = ("layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias")
    others = ("layers.1.weight", "layers.1.bias", "layers.3.weight", "layers.3.bias")
    expected = {f"{part}.{x}" for part in ("generator", "ema") for x in tensors} | {
        f"discriminator.{x}" for x in others
    }
    for slot in "mv":
        expected |= {f"generator_optimizer.{slot}.{x}" for x in tensors}
        expected |= {f"discriminator_optimizer.{slot}.{x}" for x in others}
    counters = {"step", "generator_optimizer.step", "discriminator_optimizer.step", "rate_scale"}
    assert names == expected | counters


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    game = adam_game()
    play(game, 2, dtype=np.float32)
    before, other = game.state(), adam_game().state()
    for bad, message in (
        ({key: x for key, x in other.items() if key != "step"}, "step: missing"),
        (other | {"step": np.array(-1)}, "step is -1, expected a finite number from 0"),
        (
            other | {"ema.layers.0.bias": np.zeros(5, np.float32)},
            r"ema.layers.0.bias: float32 \(5,\), expected float32 \(4,\)",
        ),
        (other | {"generator_optimizer.m.extra": np.zeros(1)}, "extra: unknown"),
        (sgd_game(ema=None).state(), "and .* more"),
    ):
        with pytest.raises(CheckpointError, match=message):
            game.load_state(bad)
        after = game.state()
        assert all((after[key] == before[key]).all() for key in before)


# A run


def test_eight_gaussians_are_found() -> None:
    """A ring of modes with sigma 0.05: before training samples lie near two of them at most, after it near seven."""
    centres = np.array([(math.cos(a), math.sin(a)) for a in np.arange(8) * math.pi / 4])
    g = models.mlp_generator(8, (64, 64), (2,), output=None)
    d = models.mlp_discriminator((2,), (64, 64))
    game = Game(g, d, penalty=penalties.r1(0.1))
    data, latent, noise = (Stream(0, purpose) for purpose in ("data", "latent", "game"))

    def near() -> np.ndarray:
        """Which share of 1,000 samples lies within 0.25 of each centre."""
        samples = game.ema_generator(latent.at(10**6).normal((1000, 8))).numpy()
        return (np.linalg.norm(samples[:, None] - centres, axis=2) < 0.25).mean(0)

    assert (near() > 0.02).sum() <= 2
    for step in range(500):
        points, z = data.at(step), latent.at(step)
        modes = centres[(points.uniform((64,)).numpy() * 8).astype(int)].astype(np.float32)
        real = mg.tensor(modes + 0.05 * points.normal((64, 2)).numpy())
        game.step(real, [z.normal((64, 8)) for _ in range(2)], random=noise.at(step))
    found = near()
    assert (found > 0.02).sum() >= 7, found
    assert found.sum() > 0.35, found


def test_a_schedule_follows_the_game_however_often_the_discriminator_moves() -> None:
    optimizer = SGD(linear(0.1, 4))
    g, d = models.mlp_generator(2, (4,), (3,)), models.mlp_discriminator((3,), (4,))
    game = Game(g, d, generator_optimizer=optimizer, discriminator_optimizer=optimizer, d_steps=3)
    stream = Stream(0, "test")
    for step in range(5):
        before = {name: x.numpy().copy() for name, x in d.parameters().items()}
        reals = [stream.uniform((4, 3)) for _ in range(3)]
        game.step(reals, [stream.uniform((4, 2)) for _ in range(4)], random=stream.at(step))
        moved = any((before[name] != x.numpy()).any() for name, x in d.parameters().items())
        assert moved == (step < 4)
