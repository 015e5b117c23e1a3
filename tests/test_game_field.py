"""The vector field of games: dense against matrix-free products. The Dirac-GAN is in test_dirac.py."""

import math
from typing import Any

import numpy as np
import pytest

import minigan as mg
from minigan.analysis import Field, stable_step


def _networks() -> tuple[Field, int]:
    stream = mg.ops.Stream(0, "field")
    dense = mg.nn.Dense
    g = mg.nn.Sequential(
        dense(2, 5, stream=stream.child("0"), dtype="float64"),
        mg.nn.Activation("tanh"),
        dense(5, 2, stream=stream.child("1"), dtype="float64"),
    )
    d = mg.nn.Sequential(
        dense(2, 6, stream=stream.child("2"), dtype="float64"),
        mg.nn.Activation("tanh"),
        dense(6, 1, stream=stream.child("3"), dtype="float64"),
    )
    x, z = (stream.child(name).normal((16, 2), dtype="float64") for name in "xz")
    loss = mg.losses.find("non_saturating")
    real, fake = d(x), d(g(z))
    own = [list(network.parameters().values()) for network in (g, d)]
    return Field([(loss.generator(real, fake), own[0]), (loss.discriminator(real, fake), own[1])]), g.count()


def test_products_are_those_of_the_dense_jacobian() -> None:
    field, _ = _networks()
    jacobian = field.jacobian()
    assert jacobian.shape == (field.size, field.size)
    random = np.random.default_rng(0)
    for vector in random.normal(size=(3, field.size)):
        np.testing.assert_allclose(field.push(vector), jacobian @ vector, atol=1e-13)
        np.testing.assert_allclose(field.pull(vector), vector @ jacobian, atol=1e-13)


def test_hessians_are_symmetric_and_minus_the_blocks() -> None:
    field, of_g = _networks()
    for hessian, block in zip(field.hessians(), (slice(of_g), slice(of_g, field.size)), strict=True):
        np.testing.assert_allclose(hessian, hessian.T, atol=1e-14)
        np.testing.assert_array_equal(hessian, -field.jacobian()[block, block])


def test_arnoldi_finds_the_same_eigenvalues() -> None:
    pytest.importorskip("scipy")
    field, _ = _networks()
    everything = field.eigenvalues()
    found = field.eigenvalues(4, which="LM")
    largest = everything[np.argsort(-np.abs(everything))][: len(found)]
    np.testing.assert_allclose(np.sort(np.abs(found)), np.sort(np.abs(largest)), rtol=1e-8)


def test_errors_have_the_numbers() -> None:
    with pytest.raises(mg.ConfigError, match="without parameters"):
        Field([])
    x = mg.tensor([1.0, 2.0])
    with pytest.raises(mg.ConfigError, match=r"shape \(2,\)"):
        Field([(x * x, [x])])
    field = Field([((x * x).sum(), [x])])
    with pytest.raises(mg.ShapeError, match=r"\(3,\) for 2 parameters"):
        field.push(np.ones(3))
    with pytest.raises(mg.ConfigError, match="finds 1 to 0"):
        field.eigenvalues(1)
    wide = mg.tensor(np.ones(6000, np.float32))
    with pytest.raises(mg.ConfigError, match="6,000 parameters"):
        Field([((wide * wide).sum(), [wide])]).jacobian()


def test_stable_steps() -> None:
    assert stable_step([-1, -4]) == 0.5
    assert stable_step([-1, 0.1]) == stable_step([1j, -1j]) == 0
    assert stable_step([0]) == math.inf
    assert stable_step([-1, 1e-17, -1e-17j]) == 2
    with pytest.raises(mg.DataError, match="1 of 2 eigenvalues are not finite"):
        stable_step([math.nan, -1])
    with pytest.raises(mg.DataError, match="1 of 2 eigenvalues are not finite"):
        stable_step([-math.inf, -1])


@pytest.mark.parametrize(
    "penalties", [[], [mg.penalties.r1(0.5)], [mg.penalties.r1(0.5), mg.penalties.r2(0.5)]]
)
def test_the_field_of_a_game_is_where_simultaneous_steps_go(penalties: list[Any]) -> None:
    """One step of plain gradient descent at rate h moves all weights by h v."""
    stream = mg.ops.Stream(0, "game")
    networks = (
        mg.models.mlp_generator(2, (5,), (3,), output="tanh", dtype="float64"),
        mg.models.mlp_discriminator((3,), (6,), dtype="float64"),
    )
    sgd = [mg.optim.SGD(2.0**-12) for _ in range(2)]
    game = mg.Game(
        *networks,
        penalty=penalties,
        generator_optimizer=sgd[0],
        discriminator_optimizer=sgd[1],
        update="simultaneous",
        share_fake=True,
        ema=None,
    )
    x, z = stream.uniform((8, 3), dtype="float64"), stream.normal((8, 2), dtype="float64")

    def weights() -> np.ndarray:
        return np.concatenate([p.numpy().ravel() for n in networks for p in n.parameters().values()])

    field = game.field(x, z)
    before, expected = weights().copy(), field.vector()
    jacobian = field.jacobian()
    game.step(x, z, random=stream)
    np.testing.assert_allclose(weights() - before, 2.0**-12 * expected, atol=1e-14)
    # The Jacobian is how the field changes along what was moved.
    change = game.field(x, z).vector() - expected
    assert np.linalg.norm(change - jacobian @ (weights() - before)) < 0.1 * np.linalg.norm(change)


def test_spectra_as_a_picture(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    from minigan.pictures import spectrum_plot

    spectrum_plot(tmp_path / "spectrum.png", {"start": [1j, -1j], "end": np.array([-1 + 0.5j, math.nan])})
    assert (tmp_path / "spectrum.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(mg.DataError, match="finite"):
        spectrum_plot(tmp_path / "no.png", {"a": [math.nan]})
    with pytest.raises(mg.DataError, match="5 spectra"):
        spectrum_plot(tmp_path / "no.png", {str(k): [1] for k in range(5)})
    assert not (tmp_path / "no.png").exists()


def test_products_that_are_compiled_are_the_eager_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    field, _ = _networks()
    eager = field.jacobian()
    monkeypatch.setattr("minigan.analysis.game.SMALL", 0)
    np.testing.assert_allclose(field.jacobian(), eager, atol=1e-15)
