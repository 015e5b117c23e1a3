"""Modules and their state, initialisers, layers, and the networks by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import minigan as mg
from minigan import models, nn
from minigan.backend import ALIGNMENT, aligned_zeros
from minigan.errors import CheckpointError, ConfigError, ShapeError
from minigan.nn import init
from minigan.ops import Stream

STREAM = Stream(0, "test")


class Centred(nn.Module):
    """A module with a buffer, a shared part and a list of parts."""

    buffers = ("mean",)

    def __init__(self) -> None:
        self.first = nn.Dense(3, 3, stream=STREAM.child("first"))
        self.mean = mg.tensor(np.ones(3, np.float32))
        self.parts = [self.first, nn.Dense(3, 2, bias=False, stream=STREAM.child("second"))]

    def __call__(self, x: mg.Tensor, *, train: bool = False, random: Stream | None = None) -> mg.Tensor:
        for part in self.parts:
            x = part(x - self.mean)
        return x


def test_state_has_dotted_names_in_order_and_shared_parts_once() -> None:
    module = Centred()
    assert list(module.state()) == ["first.weight", "first.bias", "mean", "parts.1.weight"]
    assert list(module.parameters()) == ["first.weight", "first.bias", "parts.1.weight"]
    assert module.count() == 9 + 3 + 6
    module.again = module  # a module that contains itself has the same state
    assert len(module.state()) == 4


def test_repr_is_a_tree_with_shapes_and_counts() -> None:
    g = models.mlp_generator(latent=2, hidden=(4,), shape=(3,), slope=0.1)
    assert repr(g).splitlines() == [
        "Generator(latent=2, shape=(3,), bounds=(0.0, 1.0))  # 27 parameters",
        "  layers.0: Dense()  weight (2, 4)  bias (4,)  # 12 parameters",
        "  layers.1: Activation(function='leaky_relu', settings={'slope': 0.1})",
        "  layers.2: Dense()  weight (4, 3)  bias (3,)  # 15 parameters",
        "  layers.3: Activation(function='sigmoid', settings={})",
        "  layers.4: Reshape(shape=(3,))",
    ]


def test_load_state_copies_in_place_and_makes_older_graphs_stale() -> None:
    source, target = (
        models.mlp_discriminator((3,), (4,), seed=1),
        models.mlp_discriminator((3,), (4,), seed=2),
    )
    weight = target.state()["layers.1.weight"]
    logits = target(mg.tensor(np.ones((2, 3), np.float32)))
    target.load_state({name: x.numpy() for name, x in source.state().items()})
    assert target.state()["layers.1.weight"] is weight
    for name, x in source.state().items():
        np.testing.assert_array_equal(target.state()[name].numpy(), x.numpy())
    with pytest.raises(mg.errors.GraphError, match="changed in place"):
        mg.grad(logits.sum(), weight)
    assert not np.shares_memory(weight.numpy(), source.state()["layers.1.weight"].numpy())


def test_load_state_changes_nothing_unless_everything_fits() -> None:
    module = models.mlp_discriminator((3,), (4,))
    before = {name: x.numpy().copy() for name, x in module.state().items()}
    good = {name: x + 1 for name, x in before.items()}
    bad: list[tuple[dict[str, Any], str]] = [
        ({k: v for k, v in good.items() if k != "layers.3.bias"}, "layers.3.bias: missing"),
        (good | {"extra": np.zeros(1)}, "extra: unknown"),
        (good | {"layers.3.bias": np.zeros(2, np.float32)}, r"float32 \(2,\), expected float32 \(1,\)"),
        (good | {"layers.3.bias": np.zeros(1)}, r"float64 \(1,\), expected float32 \(1,\)"),
        (good | {f"extra.{i}": np.zeros(1) for i in range(30)}, "and 20 more"),
    ]
    for arrays, message in bad:
        with pytest.raises(CheckpointError, match=message):
            module.load_state(arrays)
    for name, x in module.state().items():
        np.testing.assert_array_equal(x.numpy(), before[name])


def test_dense_is_a_product_and_a_sum() -> None:
    layer = nn.Dense(3, 2, stream=STREAM, dtype=np.float64)
    x = np.arange(12.0).reshape(2, 2, 3)
    layer.load_state({"weight": layer.weight.numpy(), "bias": np.array([1.0, -1.0])})
    np.testing.assert_allclose(
        layer(mg.tensor(x)).numpy(), x @ layer.weight.numpy() + [1.0, -1.0], rtol=1e-15
    )
    assert nn.Dense(3, 2, bias=False, stream=STREAM).count() == 6
    with pytest.raises(ConfigError, match="0 inputs"):
        nn.Dense(0, 2, stream=STREAM)


def test_an_affine_map_has_the_bits_of_a_product_and_a_sum() -> None:
    x, w, b = (STREAM.normal(shape) for shape in ((5, 40), (40, 70), (70,)))
    one, two = mg.ops.affine(x, w, b), x @ w + b
    np.testing.assert_array_equal(one.numpy(), two.numpy())
    for mine, composed in zip(*(mg.grad((y * y).sum(), [x, w, b]) for y in (one, two)), strict=True):
        np.testing.assert_array_equal(mine.numpy(), composed.numpy())
    with pytest.raises(ShapeError, match="sizes \\[3, 70\\]"):
        mg.ops.affine(x, w, mg.tensor(np.ones(3, np.float32)))


def test_activations_are_the_functions_of_ops() -> None:
    x = mg.tensor(np.linspace(-3, 3, 7))
    for name in ("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "softplus"):
        np.testing.assert_array_equal(nn.Activation(name)(x).numpy(), getattr(mg.ops, name)(x).numpy())
    with pytest.raises(ConfigError, match=r"no function 'swish'; there are relu, leaky_relu"):
        nn.Activation("swish")
    with pytest.raises(ConfigError, match="leaky_relu: got an unexpected keyword argument 'alpha'"):
        nn.Activation("leaky_relu", alpha=0.1)


def test_dropout_draws_only_in_training() -> None:
    layer, x = nn.Dropout(0.25), mg.tensor(np.ones((100, 100)))
    np.testing.assert_array_equal(layer(x).numpy(), x.numpy())
    y = layer(x, train=True, random=STREAM.at(1)).numpy()
    assert set(np.unique(y)) == {0.0, 1 / 0.75}
    assert abs((y == 0).mean() - 0.25) < 0.02
    np.testing.assert_array_equal(y, nn.Sequential(layer)(x, train=True, random=STREAM.at(1)).numpy())
    with pytest.raises(ConfigError, match="random"):
        layer(x, train=True)
    with pytest.raises(ConfigError, match=r"rate 1\.0"):
        nn.Dropout(1.0)


def test_flatten_and_reshape_are_inverse() -> None:
    x = mg.tensor(np.arange(24.0).reshape(2, 3, 4))
    flat = nn.Flatten()(x)
    assert flat.shape == (2, 12)
    np.testing.assert_array_equal(nn.Reshape((3, 4))(flat).numpy(), x.numpy())
    assert nn.Flatten()(mg.tensor(np.zeros((0, 3, 4)))).shape == (0, 12)
    with pytest.raises(ShapeError):
        nn.Flatten()(mg.tensor(1.0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("initialize", "variance", "bound"),
    [
        (init.glorot_uniform, 2 / 500, np.sqrt(6 / 500)),
        (init.glorot_normal, 2 / 500, None),
        (init.he_uniform, 2 / 300, np.sqrt(6 / 300)),
        (init.he_normal, 2 / 300, None),
        (partial(init.he_normal, slope=0.2), 2 / 1.04 / 300, None),
        (init.normal, 0.02**2, None),
    ],
)
def test_initialisers_have_the_published_variance(
    initialize: Callable[..., mg.Tensor], variance: float, bound: float | None, dtype: Any
) -> None:
    w = initialize(STREAM, (300, 200), dtype)
    assert w.dtype == dtype
    assert w.shape == (300, 200)
    assert abs(w.numpy().mean()) < 4 * np.sqrt(variance / w.size)
    assert abs(w.numpy().var() / variance - 1) < 4 * np.sqrt(2 / w.size)
    assert bound is None or np.abs(w.numpy()).max() <= bound


def test_fans_of_a_convolution_count_its_window() -> None:
    w = init.glorot_uniform(STREAM, (3, 3, 16, 32)).numpy()
    assert 0.99 < np.abs(w).max() / np.sqrt(6 / (9 * 16 + 9 * 32)) <= 1
    with pytest.raises(ShapeError, match="two axes"):
        init.glorot_uniform(STREAM, (3,))


@pytest.mark.parametrize("shape", [(5, 5), (7, 3), (3, 7), (2, 2, 3, 5)])
def test_orthogonal(shape: tuple[int, ...]) -> None:
    w = init.orthogonal(STREAM, shape, np.float64, gain=1.4).numpy().reshape(-1, shape[-1])
    product = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    np.testing.assert_allclose(product, 1.96 * np.eye(len(product)), atol=1e-14)


def test_models_have_the_shapes_of_the_article() -> None:
    g, d = models.mlp_generator(), models.mlp_discriminator()
    assert (g.latent, g.shape, d.shape) == (100, (28, 28, 1), (28, 28, 1))
    assert g.count() == 101 * 128 + 129 * 128 + 129 * 784
    assert d.count() == 785 * 128 + 129 * 128 + 129
    samples = g(STREAM.uniform((5, 100), -1, 1))
    assert samples.shape == (5, 28, 28, 1)
    assert 0 < samples.numpy().min() < samples.numpy().max() < 1
    assert d(samples).shape == (5, 1)
    flat = models.mlp_discriminator((784,))
    assert flat(mg.tensor(samples.numpy().reshape(5, 784))).shape == (5, 1)
    assert models.mlp_generator(shape=(784,))(STREAM.normal((2, 100))).shape == (2, 784)


def test_models_depend_on_the_seed_alone() -> None:
    def weights(seed: int) -> list[np.ndarray]:
        networks = (models.mlp_generator(seed=seed), models.mlp_discriminator(seed=seed))
        return [x.numpy() for network in networks for x in network.state().values()]

    assert all((a == b).all() for a, b in zip(weights(3), weights(3), strict=True))
    first, second = (models.mlp_generator(seed=seed).state()["layers.0.weight"].numpy() for seed in (3, 4))
    assert (first != second).mean() > 0.99
    square = models.mlp_generator(latent=8, hidden=(8, 8), shape=(8,)).state()
    assert (square["layers.0.weight"].numpy() != square["layers.2.weight"].numpy()).all()


def test_models_name_what_does_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"latents of shape \(N, 100\), got \(2, 99\)"):
        models.mlp_generator()(mg.tensor(np.zeros((2, 99), np.float32)))
    with pytest.raises(ShapeError, match=r"samples of shape \('N', 8, 8, 1\), got \(2, 64\)"):
        models.mlp_discriminator((8, 8, 1))(mg.tensor(np.zeros((2, 64), np.float32)))
    with pytest.raises(ConfigError, match="at least 1"):
        models.mlp_generator(hidden=(128, 0))


def test_weights_and_what_optimisers_remember_begin_at_cache_lines() -> None:
    networks = (models.mlp_generator(), models.dcgan_generator())
    weights = {f"{i}.{name}": x for i, net in enumerate(networks) for name, x in net.parameters().items()}
    tensors = [x for name, x in weights.items() if name.endswith("weight") and x.array.nbytes >= 4096]
    slots = mg.optim.Adam().init(weights).slots
    tensors += [x for slot in slots.values() for x in slot.values()]
    assert len(tensors) > 2 * len(weights) > 10
    assert {x.array.ctypes.data % ALIGNMENT for x in tensors} == {0}
    with pytest.raises(
        MemoryError, match=r"8000000000000000 bytes, an array of float64 \(1000000000000000,\)"
    ):
        aligned_zeros((10**15,), np.float64)
