"""NaN and infinities are found in the step in which they arise, change nothing, and are answered by the policy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minigan as mg
from minigan.game import Game
from minigan.guard import Guard, Watch
from minigan.ops import Stream

IMAGES = np.linspace(0, 1, 64 * 16, dtype=np.float32).reshape(64, 4, 4, 1)
NAN, INF = float("nan"), float("inf")

Plant = Callable[[mg.GAN, pytest.MonkeyPatch], None]


def small(**settings: Any) -> mg.GAN:
    generator = mg.models.mlp_generator(3, (5,), (4, 4, 1))
    return mg.GAN(generator, mg.models.mlp_discriminator((4, 4, 1), (5,)), **settings)


def weights(gan: mg.GAN) -> dict[str, bytes]:
    """The bits of all that a step changes."""
    return {name: x.tobytes() for name, x in gan.game.state().items()}


def put(x: mg.Tensor, value: float) -> None:
    """Write a value into a tensor behind the engine's back."""
    x.array.reshape(-1)[-1] = value


def once(name: str, change: Callable[..., Any], at: int) -> Plant:
    """Replaces a method of the game by one whose result is changed in step `at`."""

    def plant(gan: mg.GAN, patch: pytest.MonkeyPatch) -> None:
        real = getattr(Game, name)

        def changed(game: Game, *arguments: Any) -> Any:
            result = real(game, *arguments)
            return change(result) if game.steps == at else result

        patch.setattr(Game, name, changed)

    return plant


def bad_gradient(player: str, value: float, at: int) -> Plant:
    """Plants a value in one element of a player's gradient of step `at`."""

    def plant(gan: mg.GAN, patch: pytest.MonkeyPatch) -> None:
        from minigan import player as module

        real = module.grad

        def changed(losses: Any, parameters: Any) -> Any:
            gradients = real(losses, parameters)
            mine = parameters[0] is next(iter(getattr(gan.game, player).parameters().values()))
            if mine and gan.game.steps == at:
                array = gradients[1].numpy().copy()
                array.reshape(-1)[0] = value
                gradients[1] = mg.tensor(array)
            return gradients

        patch.setattr(module, "grad", changed)

    return plant


def bad_memory(player: str, slot: str, value: float) -> Plant:
    def plant(gan: mg.GAN, patch: pytest.MonkeyPatch) -> None:
        put(next(iter(gan.game._players()[player].memory.slots[slot].values())), value)

    return plant


def bad_weight(player: str, value: float) -> Plant:
    def plant(gan: mg.GAN, patch: pytest.MonkeyPatch) -> None:
        put(list(getattr(gan.game, player).parameters().values())[-1], value)

    return plant


def bad_batch(value: float, at: int) -> Plant:
    def plant(gan: mg.GAN, patch: pytest.MonkeyPatch) -> None:
        real = gan._real

        def changed(batches: mg.data.Batches, k: int) -> np.ndarray:
            array = real(batches, k).copy()
            if gan.game.steps == at:
                array[0, 0, 0, 0] = value
            return array

        patch.setattr(gan, "_real", changed)

    return plant


def bad_latent(value: float, at: int) -> Plant:
    def plant(gan: mg.GAN, patch: pytest.MonkeyPatch) -> None:
        real = gan._sampler.draw
        drawn = []

        def changed(stream: Stream, count: int, device: str) -> mg.Tensor:
            array = real(stream, count, device).numpy().copy()
            drawn.append(0)
            if gan.game.steps == at and len(drawn) % 2 == 0:  # the generator's own
                array[0, 0] = value
            return mg.tensor(array)

        patch.setattr(gan._sampler, "draw", changed)

    return plant


PLANTS = {
    "batch": bad_batch(NAN, 3),
    "infinite batch": bad_batch(INF, 3),
    "latent": bad_latent(NAN, 3),
    "gradient of D": bad_gradient("discriminator", NAN, 3),
    "infinite gradient of D": bad_gradient("discriminator", -INF, 3),
    "gradient of G": bad_gradient("generator", NAN, 3),
    "infinite gradient of G": bad_gradient("generator", INF, 3),
    "v of D": bad_memory("discriminator", "v", NAN),
    "infinite v of D": bad_memory("discriminator", "v", INF),
    "v of G": bad_memory("generator", "v", NAN),
    "m of G": bad_memory("generator", "m", -INF),
    "weight of D": bad_weight("discriminator", NAN),
    "weight of G": bad_weight("generator", INF),
}
GAMES: dict[str, dict[str, Any]] = {
    "alternating": {},
    "simultaneous": {"update": "simultaneous"},
    "penalty": {"penalty": mg.penalties.r1(0.1)},
    "one generated batch": {"share_fake": True},
}


@pytest.mark.parametrize("settings", GAMES.values(), ids=GAMES)
@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_a_bad_step_changes_neither_player(
    plant: Plant, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if settings.get("share_fake") and plant is PLANTS["latent"]:
        pytest.skip("the generator has no latents of its own")
    gan = small(**settings)
    batches = mg.data.Batches(IMAGES, 8, Stream(0, "data"))
    with np.errstate(all="ignore"):
        for _ in range(3):
            gan.step(batches)
        plant(gan, monkeypatch)
        before = weights(gan)
        with pytest.raises(
            mg.NonFiniteError, match=r"^step 4: (generator|discriminator): .*(nan|inf|has 1 of)"
        ):
            gan.step(batches)
    assert weights(gan) == before


def test_steps_of_the_discriminator_alone_are_undone_too(monkeypatch: pytest.MonkeyPatch) -> None:
    gan = small(d_steps=3)
    batches = mg.data.Batches(IMAGES, 8, Stream(0, "data"))
    gan.step(batches)
    PLANTS["gradient of G"](gan, monkeypatch)
    gan.step(batches)
    gan.step(batches)
    before = weights(gan)
    with pytest.raises(mg.NonFiniteError, match=r"generator: gradient\.layers\.0\.bias has 1 of 5"):
        gan.step(batches)
    assert weights(gan) == before


def test_an_error_of_another_kind_changes_nothing_either(monkeypatch: pytest.MonkeyPatch) -> None:
    gan = small()
    batches = mg.data.Batches(IMAGES, 8, Stream(0, "data"))
    gan.step(batches)
    before = weights(gan)

    def fail(*arguments: Any) -> None:
        raise MemoryError("Unable to allocate 1 GiB for an array with shape (3, 5)")

    monkeypatch.setattr(Game, "_g_gradients", fail)
    with pytest.raises(MemoryError, match="shape"):
        gan.step(batches)
    assert weights(gan) == before


# Policies


def fit(gan: mg.GAN, **settings: Any) -> Any:
    return gan.fit(IMAGES, **{"steps": 40, "batch": 8, "save_every": 10, "compile": False, **settings})


def test_stop_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    gan = small()
    bad_gradient("generator", NAN, 25)(gan, monkeypatch)
    with pytest.raises(mg.NonFiniteError, match=r"diverged at step 26: generator: gradient\..*; try a lower"):
        fit(gan)
    assert gan.game.steps == 25


def test_skip_goes_on_with_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    gan = small()
    bad_gradient("generator", NAN, 25)(gan, monkeypatch)
    run = fit(gan, on_nonfinite="skip")
    assert gan.game.steps == 40 and [r["step"] for r in run.records] == [10, 20, 30, 40]
    assert [(e["step"], e["event"]) for e in run.events] == [(26, "skipped")]
    assert int(gan.game.state()["generator_optimizer.step"]) == 39
    gan.game.require_finite()


def test_roll_back_halves_the_rates_and_makes_the_steps_again(monkeypatch: pytest.MonkeyPatch) -> None:
    gan, left = small(), [2]  # times that it goes wrong

    def bad_twice(gradients: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise mg.NonFiniteError("generator: planted")
        return gradients

    once("_g_gradients", bad_twice, at=25)(gan, monkeypatch)
    run = fit(gan, on_nonfinite="rollback")
    assert [e["event"] for e in run.events] == ["rollback", "rollback"]
    assert "back to step 20, learning rates times 0.25 (2 of 10)" in run.events[1]["message"]
    assert gan.game.rate_scale == 0.25 and gan.game.steps == 40
    assert [r["step"] for r in run.records] == [10, 20, 30, 40]
    by_hand = small()
    by_hand.fit(IMAGES, steps=20, batch=8, compile=False)
    by_hand.game.rate_scale = 0.25
    by_hand.fit(IMAGES, steps=20, batch=8, compile=False)
    assert weights(by_hand) == weights(gan)


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_no_policy_goes_on_for_ever(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gan = small()

    def fail(*arguments: Any) -> None:
        raise mg.NonFiniteError("generator: planted")

    monkeypatch.setattr(Game, "_g_gradients", fail)
    with pytest.raises(mg.NonFiniteError, match=r"diverged 4 times, the last at step .*planted"):
        fit(gan, on_nonfinite=policy, max_faults=3)
    gan.game.require_finite()


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
@pytest.mark.parametrize("save_every", [1, 5, 40])
def test_weights_that_overflow_in_the_update_itself_are_never_saved(
    policy: str, save_every: int, tmp_path: Path
) -> None:
    # The generator's, which no loss of the same step has seen.
    far = mg.optim.SGD(lambda step: 1e60 if step == 12 else 1e-3)
    gan = small(optimizer=far, discriminator_optimizer=mg.optim.SGD(1e-3))
    with pytest.raises(mg.NonFiniteError, match="diverged"):
        fit(gan, out=tmp_path / "run", save_every=save_every, on_nonfinite=policy, max_faults=7)
    assert gan.game.steps < 40
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        assert all(np.isfinite(x).all() for x in mg.load(path).values())


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_an_average_that_is_not_finite_is_found(policy: str) -> None:
    gan = small()
    fit(gan, steps=5)
    put(next(iter(gan.game.ema_generator.parameters().values())), NAN)
    with pytest.raises(mg.NonFiniteError, match=r"generator: average\.layers\.0\.weight has 1 of 15"):
        fit(gan, on_nonfinite=policy)


def test_a_policy_has_to_exist() -> None:
    with pytest.raises(mg.ConfigError, match="'ignore' does not exist; there are stop, skip, rollback"):
        fit(small(), on_nonfinite="ignore")
    with pytest.raises(mg.ConfigError, match="max_faults is 0"):
        fit(small(), max_faults=0)


def test_the_guard_counts() -> None:
    guard = Guard("skip", 2)
    error = mg.NonFiniteError("step 1: x")
    assert [guard.answer(error), guard.answer(error)] == ["skip", "skip"] and guard.faults == 2
    with pytest.raises(mg.NonFiniteError, match="diverged 3 times, the last at step 1: x; try"):
        guard.answer(error)


# Warnings


def told(watch: Watch, steps: range, **values: float) -> list[str]:
    record = {"d_loss": 1.3, "g_loss": 0.7, "d_real": 0.5, "d_fake": 0.4} | values
    return [kind for step in steps for kind, _ in watch.see(record | {"step": step})]


def test_signs_of_failure_are_told_once() -> None:
    watch = Watch()
    assert told(watch, range(10, 310, 10)) == []
    assert told(watch, range(310, 330, 10), d_loss=-2e4) == ["divergence"]
    assert told(watch, range(330, 830, 10), d_loss=1e-9) == []
    assert told(watch, range(830, 900, 10), d_loss=0.0) == ["discriminator won"]
    assert told(watch, range(900, 1400, 10), d_real=0.5, d_fake=0.5) == []
    assert told(watch, range(1400, 2000, 10), d_real=0.5, d_fake=0.5) == ["dead discriminator"]


def test_a_sign_that_does_not_last_is_none() -> None:
    watch = Watch()
    for start in (0, 500, 1000):
        assert told(watch, range(start, start + 490, 10), d_loss=0.0) == []
        assert told(watch, range(start + 490, start + 500, 10)) == []


def test_a_dead_discriminator_is_reported_while_training() -> None:
    gan = small(optimizer=mg.optim.SGD(0.0))
    for x in gan.game.discriminator.parameters().values():
        x.array[...] = 0
    run = fit(gan, steps=520)
    assert [(e["step"], e["event"]) for e in run.events] == [(510, "dead discriminator")]
    assert "start with another seed" in run.events[0]["message"]
