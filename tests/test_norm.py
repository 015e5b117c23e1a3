"""Normalisation: precision, errors, what a compiled step makes of it, and PyTorch's results."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from plain_kernels import plain_kernels

import minigan as mg
from minigan import nn, ops

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(3, 4, 5, 6))
SCALE, SHIFT = RANDOM.normal(size=(2, 6))
GY = RANDOM.normal(size=IMAGES.shape)


@pytest.fixture
def plain():
    with plain_kernels():
        yield


def batch_norm(x: Any, scale: Any, shift: Any) -> mg.Tensor:
    return ops.batch_norm(x, *ops.moments(x, (0, 1, 2)), scale, shift)


NORMS: dict[str, Callable[..., mg.Tensor]] = {
    "batch": batch_norm,
    "layer": ops.layer_norm,
    "layer of whole images": lambda x, scale, shift: ops.layer_norm(x, scale, shift, axis=(1, 2, 3)),
    "instance": ops.instance_norm,
    "pixel": lambda x, scale, shift: ops.pixel_norm(x) * scale + shift,
}


@pytest.mark.parametrize("name", NORMS)
def test_third_derivatives(name: str) -> None:
    x = IMAGES[:2, :3, :1, :3]
    mg.check_grad(NORMS[name], x, SCALE[:3], SHIFT[:3], order=3)


@pytest.mark.parametrize("name", ["batch", "layer", "instance"])
def test_a_large_mean_takes_no_digits_from_the_variance(name: str) -> None:
    # Of E x² - (E x)² in float32 nothing would be left: 1e4² has an ulp of 8.
    x = (IMAGES + 1e4).astype(np.float32)
    found = NORMS[name](mg.tensor(x), mg.tensor(SCALE.astype("f")), mg.tensor(SHIFT.astype("f"))).numpy()
    exact = NORMS[name](mg.tensor(x.astype(np.float64)), SCALE, SHIFT).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, rtol=0, atol=0.01)


def test_a_constant_has_variance_zero_and_finite_derivatives() -> None:
    x = mg.tensor(np.full((4, 3), 7.0))
    y = ops.batch_norm(x, *ops.moments(x, 0))
    (g,) = mg.grad((y * y).sum() + y.sum(), x, create_graph=True)
    (h,) = mg.grad((g * g).sum(), x)
    assert not y.numpy().any() and np.isfinite(g.numpy()).all() and np.isfinite(h.numpy()).all()


@pytest.mark.parametrize("name", NORMS)
def test_compiled(name: str, plain: None) -> None:
    def step(x: mg.Tensor, scale: mg.Tensor, shift: mg.Tensor) -> list[mg.Tensor]:
        y = ops.leaky_relu(NORMS[name](x, scale, shift))
        first = mg.grad((y * y).sum(), [x, scale, shift], create_graph=True)
        return [y, *first, *mg.grad((first[0] * first[0]).sum(), [x, scale, shift])]

    arrays = [mg.tensor(a) for a in (IMAGES, SCALE, SHIFT)]
    expected = [y.numpy() for y in step(*arrays)]
    for options in ({"fuse": False}, {}):
        compiled = mg.compile(step, **options)
        for _ in range(2):
            for y, wanted in zip(compiled(*arrays), expected, strict=True):
                limit = 1e-12 * np.abs(wanted).max() if not options else 0
                np.testing.assert_allclose(y.numpy(), wanted, rtol=0, atol=limit)


def test_a_compiled_batch_norm_and_its_activation_are_few_loops(plain: None) -> None:
    step = mg.compile(lambda x, scale, shift: ops.relu(batch_norm(x, scale, shift)))
    step(IMAGES, SCALE, SHIFT)
    # The means; the variances; the factors, one a channel; and all that is done to each element.
    assert len(step.program) == 4


def test_errors_have_the_numbers() -> None:
    x = mg.tensor(IMAGES)
    with pytest.raises(mg.ShapeError, match=r"moments: shape \(0, 3\) has no elements along axes \(0,\)"):
        ops.moments(np.zeros((0, 3)), 0)
    with pytest.raises(
        mg.ShapeError, match=r"batch_norm: variance of shape \(5,\) does not fit x of shape \(3, 4, 5, 6\)"
    ):
        ops.batch_norm(x, SHIFT, np.ones(5))
    with pytest.raises(mg.ShapeError, match=r"layer_norm: scale of shape \(2, 3, 4, 5, 6\) does not fit"):
        ops.layer_norm(x, np.ones((2, 3, 4, 5, 6)))
    with pytest.raises(mg.ShapeError, match=r"instance_norm: shape \(3, 6\) has no axes between"):
        ops.instance_norm(np.ones((3, 6)))
    with pytest.raises(mg.ShapeError, match=r"x of shape \(2, 5\), expected \(N, ..., 6\)"):
        nn.BatchNorm(6)(mg.tensor(np.ones((2, 5))))
    with pytest.raises(
        mg.ShapeError, match=r"BatchNorm: in training x of shape \(1, 6\) has 1 value a channel"
    ):
        nn.BatchNorm(6)(mg.tensor(np.ones((1, 6))), train=True)
    with pytest.raises(mg.ConfigError, match=r"BatchNorm: 0 channels and momentum 0\.1"):
        nn.BatchNorm(0)
    with pytest.raises(mg.ShapeError, match=r"LayerNorm: x of shape \(2, 5\) does not end in \(6,\)"):
        nn.LayerNorm(6)(mg.tensor(np.ones((2, 5))))


# PyTorch


def first_last(x: np.ndarray) -> np.ndarray:
    """Channels last to channels first."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
def test_batch_norm_is_pytorchs(train: bool) -> None:
    torch = pytest.importorskip("torch")
    mine, theirs = nn.BatchNorm(6, dtype=np.float64), torch.nn.BatchNorm2d(6, dtype=torch.float64)
    state = {"scale": SCALE, "shift": SHIFT, "running_mean": SHIFT, "running_variance": SCALE**2}
    mine.load_state({name: state[name] for name in mine.state()})
    names = {
        "weight": "scale",
        "bias": "shift",
        "running_mean": "running_mean",
        "running_var": "running_variance",
    }
    theirs.load_state_dict({k: torch.tensor(state[v]) for k, v in names.items()}, strict=False)
    theirs.train(train)
    for _ in range(3):
        x, tx = mg.tensor(IMAGES), torch.tensor(first_last(IMAGES), requires_grad=True)
        y, ty = mine(x, train=train), theirs(tx)
        gx, *gp = mg.grad(y, [x, mine.scale, mine.shift], mg.tensor(GY))
        ty.backward(torch.tensor(first_last(GY)))
        np.testing.assert_allclose(first_last(y.numpy()), ty.detach().numpy(), rtol=0, atol=1e-12)
        np.testing.assert_allclose(first_last(gx.numpy()), tx.grad.numpy(), rtol=0, atol=1e-12)
        for g, p in zip(gp, (theirs.weight, theirs.bias), strict=True):
            np.testing.assert_allclose(g.numpy(), p.grad.numpy(), rtol=0, atol=1e-12)
        theirs.zero_grad()
    for k, v in names.items():
        np.testing.assert_allclose(mine.state()[v].numpy(), theirs.state_dict()[k].numpy(), rtol=1e-13)


@pytest.mark.slow
def test_layer_and_instance_norm_are_pytorchs() -> None:
    functional = pytest.importorskip("torch").nn.functional
    torch = pytest.importorskip("torch")
    x, first, scale, shift = map(torch.tensor, (IMAGES, first_last(IMAGES), SCALE, SHIFT))
    pairs = [
        (ops.layer_norm(IMAGES, SCALE, SHIFT), functional.layer_norm(x, (6,), scale, shift)),
        (ops.layer_norm(IMAGES, axis=(1, 2, 3)), functional.layer_norm(x, (4, 5, 6))),
        (
            ops.instance_norm(IMAGES, SCALE, SHIFT),
            functional.instance_norm(first, weight=scale, bias=shift).movedim(1, -1),
        ),
    ]
    for mine, theirs in pairs:
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=0, atol=1e-12)
