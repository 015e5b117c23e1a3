"""Layers: derivatives of every one, what training changes and evaluation uses, and compiled steps with state."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from plain_kernels import plain_kernels

import minigan as mg
from minigan import models, nn, ops
from minigan.nn import init
from minigan.ops import Stream
from minigan.program import fuse

STREAM = Stream(0, "test")
RANDOM = np.random.default_rng(0)
FIRST = RANDOM.bit_generator.state


@pytest.fixture(autouse=True)
def the_same_numbers() -> None:
    """Each test draws from the beginning, whichever tests its process has run before."""
    RANDOM.bit_generator.state = FIRST


OPTIONS: dict[str, Any] = {"stream": STREAM, "dtype": np.float64}
LABELS = np.array([2, 0])


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(fuse, "SMALL", 8)
    with plain_kernels():
        yield


# Derivatives


def parent(module: Any, name: str) -> tuple[Any, str]:
    """The object that has the tensor of this name, and its attribute there."""
    *path, last = name.split(".")
    for part in path:
        module = module[int(part)] if part.isdigit() else getattr(module, part)
    return module, last


def as_function(module: nn.Module, **settings: Any) -> Callable[..., mg.Tensor]:
    """The module as a function of x and its parameters."""

    def f(x: mg.Tensor, *parameters: mg.Tensor) -> mg.Tensor:
        own = module.parameters()
        try:
            for name, p in zip(own, parameters, strict=True):
                holder, attribute = parent(module, name)
                setattr(holder, attribute, p)
            return module(x, **settings)
        finally:
            for name, p in own.items():
                holder, attribute = parent(module, name)
                setattr(holder, attribute, p)

    return f


def check_directions(f: Callable[..., mg.Tensor], *arrays: np.ndarray, order: int = 2) -> None:
    """Derivatives along two random directions in the space of all arguments: an error in any of them shows.

    The directions are short, so that differences cross no kink of a ReLU.
    """
    random = np.random.default_rng(1)
    ways = [[mg.tensor(random.normal(size=a.shape) * 0.1) for a in arrays] for _ in range(2)]
    shape = f(*map(mg.tensor, arrays)).shape
    weights = [mg.tensor(random.normal(size=shape) / np.sqrt(np.prod(shape))) for _ in range(2)]

    def along(s: mg.Tensor) -> mg.Tensor:
        y = f(*(a + s[0] * d0 + s[1] * d1 for a, d0, d1 in zip(map(mg.tensor, arrays), *ways, strict=True)))
        return ops.stack([(w * y).sum() for w in weights])

    mg.check_grad(along, np.zeros(2), order=order)


def moved(module: nn.Module) -> nn.Module:
    """The module with parameters that are nowhere 0 or 1, as scales and biases are at first."""
    random = np.random.default_rng(2)
    state = {name: x.numpy() for name, x in module.state().items()}
    for name in module.parameters():
        state[name] = state[name] + random.normal(size=state[name].shape) * 0.3
    module.load_state(state)
    return module


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Conv": (lambda: nn.Conv(2, 4, 3, stride=2, padding=1, groups=2, **OPTIONS), (2, 4, 5, 2)),
    "Conv, sequences": (lambda: nn.Conv(2, 3, (3,), padding="SAME", **OPTIONS), (2, 5, 2)),
    "ConvTranspose": (lambda: nn.ConvTranspose(2, 3, 4, stride=2, padding=1, **OPTIONS), (2, 3, 2, 2)),
    "ConvTranspose, sequences": (lambda: nn.ConvTranspose(2, 3, (3,), stride=2, **OPTIONS), (2, 3, 2)),
    "AvgPool": (lambda: nn.AvgPool(2), (2, 4, 4, 2)),
    "MaxPool": (lambda: nn.MaxPool(2), (2, 4, 4, 2)),
    "GlobalPool": (lambda: nn.GlobalPool("sum"), (2, 3, 2, 2)),
    "Upsample": (lambda: nn.Upsample(2, "bilinear"), (2, 2, 3, 2)),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), (2, 2, 3, 4)),
    "Dense": (lambda: nn.Dense(3, 2, **OPTIONS), (2, 3)),
    "Maxout": (lambda: nn.Maxout(3, 2, pieces=3, **OPTIONS), (2, 3)),
    "BatchNorm": (lambda: nn.BatchNorm(3, dtype=np.float64), (2, 2, 2, 3)),
    "ConditionalBatchNorm": (lambda: nn.ConditionalBatchNorm(3, 4, dtype=np.float64), (2, 2, 2, 3)),
    "LayerNorm": (lambda: nn.LayerNorm((2, 4), dtype=np.float64), (2, 2, 4)),
    "InstanceNorm": (lambda: nn.InstanceNorm(3, dtype=np.float64), (2, 2, 3, 3)),
    "PixelNorm": (nn.PixelNorm, (2, 2, 3)),
    "MinibatchStdDev": (lambda: nn.MinibatchStdDev(2, channels=2), (4, 2, 2, 4)),
    "Attention": (lambda: nn.Attention(4, 2, **OPTIONS), (2, 3, 4)),
    "SelfAttention2d": (lambda: nn.SelfAttention2d(8, **OPTIONS), (2, 4, 4, 8)),
    "ConvEmbedding": (lambda: nn.ConvEmbedding(2, 3, **OPTIONS), (2, 4, 4, 2)),
    "ConvAttention": (lambda: nn.ConvAttention(4, 2, **OPTIONS), (2, 4, 4, 4)),
    "TransformerBlock": (lambda: nn.TransformerBlock(4, 2, hidden=6, **OPTIONS), (2, 3, 4)),
    "ConvTransformerBlock": (lambda: nn.ConvTransformerBlock(4, 2, hidden=6, **OPTIONS), (2, 4, 4, 4)),
    "GeneratorBlock": (lambda: nn.GeneratorBlock(3, 2, **OPTIONS), (2, 2, 2, 3)),
    "GeneratorBlock, classes": (
        lambda: nn.GeneratorBlock(2, 2, upsample=1, classes=4, **OPTIONS),
        (2, 3, 3, 2),
    ),
    "DiscriminatorBlock": (lambda: nn.DiscriminatorBlock(3, 2, **OPTIONS), (2, 4, 4, 3)),
    "DiscriminatorBlock, first": (lambda: nn.DiscriminatorBlock(1, 2, first=True, **OPTIONS), (2, 4, 4, 1)),
    "DiscriminatorBlock, same": (lambda: nn.DiscriminatorBlock(2, 2, downsample=1, **OPTIONS), (2, 3, 3, 2)),
    "ConcatLabels": (lambda: nn.ConcatLabels(3), (2, 2, 2)),
    "Projection": (lambda: nn.Projection(3, 4, **OPTIONS), (2, 3)),
}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_derivatives(name: str, train: bool) -> None:
    make, shape = LAYERS[name]
    module, x = moved(make()), RANDOM.normal(size=shape)
    settings = {"labels": mg.tensor(LABELS)} if isinstance(module, nn.Conditional) else {}
    f = as_function(module, train=train, **settings)
    check_directions(f, x, *(p.numpy() for p in module.parameters().values()))


def test_every_layer_is_checked() -> None:
    apart = {
        "Activation",
        "Conditional",
        "Dropout",
        "Embedding",
        "Flatten",
        "Module",
        "Reshape",
        "Sequential",
    }
    apart |= {"SpectralNorm", "Weighted", "init"}
    assert {name.split(",")[0] for name in LAYERS} == set(nn.__all__) - apart


def test_an_embeddings_table_has_derivatives() -> None:
    layer = nn.Embedding(4, 3, **OPTIONS)
    check_directions(lambda table: layer.with_weight(mg.tensor(LABELS), table), layer.weight.numpy())


@pytest.mark.parametrize("name", LAYERS)
def test_dtypes_and_evaluation_leave_state(name: str) -> None:
    make, shape = LAYERS[name]
    module = make()
    settings = {"labels": mg.tensor(LABELS)} if isinstance(module, nn.Conditional) else {}
    before = {k: x.numpy().copy() for k, x in module.state().items()}
    x = mg.tensor(RANDOM.normal(size=shape))
    assert module(x, **settings).dtype == np.float64
    assert all((x.numpy() == before[k]).all() for k, x in module.state().items())


# Convolutions


def test_convolutions_have_the_shapes_of_dcgan() -> None:
    down = nn.Conv(1, 8, 4, stride=2, padding=1, bias=False, stream=STREAM)
    up = nn.ConvTranspose(8, 1, 4, stride=2, padding=1, bias=False, stream=STREAM)
    x = STREAM.normal((2, 28, 28, 1))
    assert (down.weight.shape, up.weight.shape) == ((4, 4, 1, 8), (4, 4, 1, 8))
    assert down(x).shape == (2, 14, 14, 8) and up(down(x)).shape == x.shape
    up.load_state({"weight": down.weight.numpy()})
    y = STREAM.normal((2, 14, 14, 8))
    assert (down(x) * y).sum().item() == pytest.approx((x * up(y)).sum().item(), rel=1e-4)


def test_a_transposed_convolution_is_drawn_by_its_own_inputs() -> None:
    weight = nn.ConvTranspose(300, 20, 3, init=init.he_normal, stream=STREAM).weight.numpy()
    assert weight.shape == (3, 3, 20, 300)
    assert weight.var() == pytest.approx(2 / (9 * 300), rel=0.05)
    depthwise = nn.Conv(300, 300, 3, groups=300, init=init.he_normal, stream=STREAM).weight.numpy()
    assert depthwise.var() == pytest.approx(2 / 9, rel=0.1)


def test_layers_refuse_numbers_that_make_none() -> None:
    with pytest.raises(mg.ConfigError, match=r"Conv: 3 inputs and 4 outputs in 2 groups with a kernel 3"):
        nn.Conv(3, 4, 3, groups=2, stream=STREAM)
    with pytest.raises(mg.ConfigError, match=r"ConvTranspose: 3 inputs and 0 outputs"):
        nn.ConvTranspose(3, 0, 3, stream=STREAM)
    with pytest.raises(mg.ConfigError, match="Maxout: 1 pieces"):
        nn.Maxout(3, 4, 1, stream=STREAM)
    with pytest.raises(mg.ConfigError, match="SelfAttention2d: 7 channels"):
        nn.SelfAttention2d(7, stream=STREAM)
    with pytest.raises(mg.ConfigError, match="ConvAttention: kernel 2"):
        nn.ConvAttention(8, kernel=2, stream=STREAM)
    with pytest.raises(mg.ConfigError, match="GlobalPool: mode 'max'"):
        nn.GlobalPool("max")
    with pytest.raises(
        mg.ShapeError, match=r"MinibatchStdDev: x of shape \(6, 4\) does not divide into groups of 4"
    ):
        nn.MinibatchStdDev(4)(mg.tensor(np.ones((6, 4))))
    with pytest.raises(mg.ShapeError, match=r"SelfAttention2d: x of shape \(2, 3, 8\)"):
        nn.SelfAttention2d(8, stream=STREAM)(mg.tensor(np.ones((2, 3, 8))))
    with pytest.raises(mg.ShapeError, match=r"Attention: tokens of shapes \(3, 8\) and \(3, 8\)"):
        nn.Attention(8, stream=STREAM)(mg.tensor(np.ones((3, 8))))


def test_maxout_is_the_largest_of_affine_maps() -> None:
    layer, x = nn.Maxout(3, 2, pieces=4, **OPTIONS), RANDOM.normal(size=(5, 3))
    maps = (x @ layer.map.weight.numpy()).reshape(5, 4, 2)
    np.testing.assert_allclose(layer(mg.tensor(x)).numpy(), maps.max(1), rtol=1e-14)
    many = nn.Maxout(300, 200, pieces=3, stream=STREAM).map.weight.numpy()
    assert many.var() == pytest.approx(2 / 500, rel=0.02), "each piece is drawn by its own inputs and outputs"


# Attention and blocks


def test_self_attention_is_what_sagan_says() -> None:
    layer = moved(nn.SelfAttention2d(8, pool=False, **OPTIONS))
    x = RANDOM.normal(size=(2, 2, 3, 8))
    pixels = x.reshape(2, 6, 8)
    q, k, v = (pixels @ part.weight.numpy() for part in (layer.query, layer.key, layer.value))
    scores = np.exp(q @ k.transpose(0, 2, 1))
    seen = (scores / scores.sum(-1, keepdims=True)) @ v @ layer.out.weight.numpy()
    expected = x + layer.gamma.item() * seen.reshape(x.shape)
    np.testing.assert_allclose(layer(mg.tensor(x)).numpy(), expected, rtol=1e-12)


def test_a_shortcut_may_come_before_or_after_what_it_commutes_with() -> None:
    up, down = moved(nn.GeneratorBlock(3, 2, **OPTIONS)), moved(nn.DiscriminatorBlock(3, 2, **OPTIONS))
    x = mg.tensor(RANDOM.normal(size=(2, 4, 4, 3)))
    larger, smaller = up.shortcut(ops.upsample(x, 2)), ops.avg_pool(down.shortcut(x), 2)
    np.testing.assert_allclose(ops.upsample(up.shortcut(x), 2).numpy(), larger.numpy(), rtol=0, atol=1e-14)
    np.testing.assert_allclose(down.shortcut(ops.avg_pool(x, 2)).numpy(), smaller.numpy(), rtol=0, atol=1e-14)
    assert nn.GeneratorBlock(2, 2, upsample=1, **OPTIONS).shortcut is None
    assert nn.DiscriminatorBlock(2, 2, downsample=1, **OPTIONS).shortcut is None


def test_a_causal_mask_hides_later_tokens() -> None:
    block, x = nn.TransformerBlock(4, 2, **OPTIONS), RANDOM.normal(size=(1, 5, 4))
    mask = mg.tensor(np.tri(5, dtype=bool))
    before, x[0, 3] = block(mg.tensor(x), mask=mask).numpy(), 7.0
    changed = (block(mg.tensor(x), mask=mask).numpy() != before).any(axis=(0, 2))
    assert changed.tolist() == [False, False, False, True, True]


def test_minibatch_deviation_is_by_group_and_part() -> None:
    x = RANDOM.normal(size=(6, 2, 3, 4))
    y = nn.MinibatchStdDev(3, channels=2)(mg.tensor(x)).numpy()
    np.testing.assert_array_equal(y[..., :4], x)
    groups = x.reshape(3, 2, 2, 3, 2, 2)
    expected = np.sqrt(groups.var(0) + 1e-8).mean((1, 2, 4))
    for n in range(6):
        np.testing.assert_allclose(y[n, ..., 4:], np.broadcast_to(expected[n % 2], (2, 3, 2)), rtol=1e-13)
    assert nn.MinibatchStdDev(4)(mg.tensor(x[:2])).shape == (2, 2, 3, 5), "all samples, where there are fewer"


# Batch normalisation


def test_running_moments_follow_those_of_the_batches() -> None:
    layer = nn.BatchNorm(3, momentum=0.25, affine=False, dtype=np.float64)
    assert list(layer.state()) == ["running_mean", "running_variance"] and not layer.parameters()
    mean, variance = np.zeros(3), np.ones(3)
    for _ in range(4):
        x = RANDOM.normal(2.0, 3.0, size=(5, 2, 2, 3))
        layer(mg.tensor(x), train=True)
        mean += 0.25 * (x.mean((0, 1, 2)) - mean)
        variance += 0.25 * (x.var((0, 1, 2), ddof=1) - variance)
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-13)
    np.testing.assert_allclose(layer.running_variance.numpy(), variance, rtol=1e-13)
    expected = (x - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(layer(mg.tensor(x)).numpy(), expected, rtol=1e-12)


def test_moving_averages_do_not_stale_the_graph_of_the_batch() -> None:
    layer, x = nn.BatchNorm(3, dtype=np.float64), mg.tensor(RANDOM.normal(size=(4, 3)))
    y = layer(x, train=True)
    layer(x, train=True)
    assert np.isfinite(mg.grad((y * y).sum(), x)[0].numpy()).all()
    y = layer(x)
    layer(x, train=True)
    with pytest.raises(mg.GraphError, match="changed in place"):
        mg.grad((y * y).sum(), x)


def test_conditional_batch_norm_is_one_for_each_class() -> None:
    layer = moved(nn.ConditionalBatchNorm(3, 4, dtype=np.float64))
    x = mg.tensor(RANDOM.normal(size=(5, 2, 2, 3)))
    labels = np.array([0, 3, 3, 1, 0])
    y = layer(x, train=True, labels=mg.tensor(labels)).numpy()
    for label in set(labels.tolist()):
        plain = ops.batch_norm(x, *ops.moments(x, (0, 1, 2)), layer.scale[label], layer.shift[label]).numpy()
        np.testing.assert_allclose(y[labels == label], plain[labels == label], rtol=0, atol=1e-13)


# Spectral normalisation


def test_spectral_norm_divides_by_the_largest_singular_value() -> None:
    for module in (
        nn.Dense(20, 10, **OPTIONS),
        nn.Conv(3, 8, 3, **OPTIONS),
        nn.ConvTranspose(8, 3, 4, **OPTIONS),
        nn.Embedding(9, 5, **OPTIONS),
    ):
        layer = nn.SpectralNorm(module, iterations=100)
        used: list[mg.Tensor] = []
        module.with_weight = lambda x, weight, used=used: used.append(weight) or x  # type: ignore[method-assign]
        layer(mg.tensor(np.ones((1, 8, 8, 3))))
        matrix = module.weight.numpy().reshape(-1, module.weight.shape[-1])
        sigma = np.linalg.svd(matrix, compute_uv=False)[0]
        np.testing.assert_allclose(used[0].numpy(), module.weight.numpy() / sigma, rtol=1e-6)


def test_power_iteration_is_that_of_the_article() -> None:
    layer = nn.SpectralNorm(nn.Dense(6, 4, bias=False, **OPTIONS))
    w, x = layer.module.weight.numpy().copy(), RANDOM.normal(size=(3, 6))
    u = RANDOM.normal(size=4)
    layer.load_state({"module.weight": w, "u": u})
    for _ in range(3):
        v = w @ u / np.linalg.norm(w @ u)
        u = v @ w / np.linalg.norm(v @ w)
        np.testing.assert_allclose(layer(mg.tensor(x), train=True).numpy(), x @ w / (v @ w @ u), rtol=1e-12)
        np.testing.assert_allclose(layer.u.numpy(), u, rtol=1e-12)
    first, second = (layer(mg.tensor(x)).numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(layer.u.numpy(), u, rtol=1e-12, err_msg="evaluation moves nothing")


def test_the_vectors_of_power_iteration_are_constants_to_derivatives() -> None:
    layer = nn.SpectralNorm(nn.Dense(4, 3, bias=False, **OPTIONS))
    w, x = layer.module.weight, mg.tensor(RANDOM.normal(size=(2, 4)))
    u = RANDOM.normal(size=3)
    layer.load_state({"module.weight": w.numpy(), "u": u})
    v = w.numpy() @ u / np.linalg.norm(w.numpy() @ u)
    u = v @ w.numpy() / np.linalg.norm(v @ w.numpy())
    ys = [layer(x, train=True), x @ (w / (mg.tensor(v) @ w @ mg.tensor(u)))]
    orders = [[y] for y in ys]
    for of_y in orders:
        for _ in range(2):
            y = of_y[-1]
            of_y.append(mg.grad((y * y * y).sum(), w, create_graph=True)[0])
    for mine, expected in zip(*orders, strict=True):
        np.testing.assert_allclose(mine.numpy(), expected.numpy(), rtol=1e-10, atol=1e-12)


def test_spectral_norm_refuses_what_has_no_norm() -> None:
    with pytest.raises(mg.ConfigError, match="SpectralNorm: Flatten with 1 iterations"):
        nn.SpectralNorm(nn.Flatten())  # type: ignore[arg-type]
    with pytest.raises(mg.ConfigError, match=r"a weight of shape \(3, 2\) of zeros"):
        nn.SpectralNorm(nn.Dense(3, 2, init=init.zeros, stream=STREAM))


@pytest.mark.slow
@pytest.mark.parametrize("conv", [False, True])
def test_spectral_norm_is_pytorchs(conv: bool) -> None:
    torch = pytest.importorskip("torch")
    module = nn.Conv(3, 5, 3, bias=False, **OPTIONS) if conv else nn.Dense(6, 5, bias=False, **OPTIONS)
    layer, w = nn.SpectralNorm(module), module.weight
    theirs = torch.nn.Conv2d(3, 5, 3, bias=False) if conv else torch.nn.Linear(6, 5, bias=False)
    theirs = torch.nn.utils.parametrizations.spectral_norm(theirs.double())
    norm = theirs.parametrizations.weight[0]
    order = (3, 2, 0, 1) if conv else (1, 0)
    with torch.no_grad():
        theirs.parametrizations.weight.original.copy_(torch.tensor(w.numpy().transpose(order).copy()))
    x = RANDOM.normal(size=(2, 4, 4, 3) if conv else (2, 6))
    tx = torch.tensor(np.moveaxis(x, -1, 1).copy())
    layer.load_state({"module.weight": w.numpy(), "u": norm._u.numpy()})
    with torch.no_grad():  # theirs begins with v, ours with u
        norm._v.copy_(torch.tensor(w.numpy().transpose(order).reshape(5, -1).T @ norm._u.numpy()))
        norm._v.div_(norm._v.norm())
    for _ in range(3):
        y = layer(mg.tensor(x), train=True)
        u, v = norm._u.clone(), norm._v.clone()
        matrix = torch.tensor(w.numpy().transpose(order).reshape(5, -1).copy())
        v = torch.nn.functional.normalize(matrix.T @ u, dim=0)
        u = torch.nn.functional.normalize(matrix @ v, dim=0)
        with torch.no_grad():
            norm._u.copy_(u)
            norm._v.copy_(v)
        theirs.eval()
        ty = theirs(tx)
        (g,), (tg,) = (
            mg.grad((y * y).sum(), [w]),
            torch.autograd.grad((ty * ty).sum(), theirs.parametrizations.weight.original),
        )
        np.testing.assert_allclose(y.numpy(), np.moveaxis(ty.detach().numpy(), 1, -1), rtol=0, atol=1e-12)
        np.testing.assert_allclose(g.numpy().transpose(order), tg.numpy(), rtol=0, atol=1e-12)
        np.testing.assert_allclose(layer.u.numpy(), norm._u.numpy(), rtol=0, atol=1e-12)


# Labels


def test_labels_go_to_the_layers_that_take_them() -> None:
    stream = Stream(0, "labels")
    net = nn.Sequential(
        nn.ConcatLabels(3),
        nn.Dense(5, 2 * 2 * 4, stream=stream),
        nn.Reshape((2, 2, 4)),
        nn.Sequential(nn.GeneratorBlock(4, 4, classes=3, stream=stream), nn.Activation("relu")),
        nn.GlobalPool("sum"),
        nn.Projection(4, 3, spectral_norm=True, stream=stream),
    )
    x = stream.normal((2, 2))
    one, other = (net(x, labels=mg.tensor(np.array(labels))).numpy() for labels in ([0, 1], [0, 2]))
    assert one.shape == (2, 1) and one[0] == other[0] and one[1] != other[1]
    with pytest.raises(mg.ConfigError, match="ConcatLabels: needs the labels"):
        net(x)
    with pytest.raises(mg.ShapeError, match=r"ConcatLabels: labels of shape \(3,\) for x of shape \(2, 2\)"):
        net(x, labels=mg.tensor(np.array([0, 1, 2])))
    with pytest.raises(mg.ShapeError, match="labels from 0 to 3 do not fit classes 0 to 2"):
        net(x, labels=mg.tensor(np.array([0, 3])))
    unconditional = nn.Sequential(nn.Dense(2, 1, stream=stream), nn.Activation("tanh"))
    np.testing.assert_array_equal(
        unconditional(x).numpy(), unconditional(x, labels=mg.tensor(LABELS)).numpy()
    )


def test_projection_is_an_inner_product_with_the_class() -> None:
    head = moved(nn.Projection(3, 4, **OPTIONS))
    x = RANDOM.normal(size=(2, 3))
    vectors = head.out.weight.numpy()[:, 0] + head.embedding.weight.numpy()[LABELS]
    expected = (x * vectors).sum(1, keepdims=True) + head.out.bias.numpy()
    np.testing.assert_allclose(head(mg.tensor(x), labels=mg.tensor(LABELS)).numpy(), expected, rtol=1e-13)


# State in compiled steps


def players(**settings: Any) -> mg.GAN:
    """A small game of networks that have state besides their parameters.

    No biases before batch norms: their gradients are rounding errors, of which Adam would make steps.
    """
    stream = Stream(0, "players")
    generator = models.Generator(
        3,
        (4, 4, 1),
        nn.Dense(3, 2 * 2 * 4, bias=False, stream=stream),
        nn.Reshape((2, 2, 4)),
        nn.BatchNorm(4),
        nn.Activation("relu"),
        nn.ConvTranspose(4, 1, 4, stride=2, padding=1, stream=stream),
        nn.Activation("sigmoid"),
    )
    discriminator = models.Discriminator(
        (4, 4, 1),
        nn.SpectralNorm(nn.Conv(1, 4, 3, stride=2, padding=1, bias=False, stream=stream)),
        nn.BatchNorm(4),
        nn.Activation("leaky_relu"),
        nn.Flatten(),
        nn.SpectralNorm(nn.Dense(16, 1, stream=stream)),
    )
    return mg.GAN(generator, discriminator, seed=0, **settings)


@pytest.mark.parametrize("settings", [{}, {"penalty": mg.penalties.r1(1.0)}], ids=["plain", "r1"])
def test_a_compiled_game_moves_the_same_state(settings: dict[str, Any], plain: None) -> None:
    images = RANDOM.random((16, 4, 4, 1)).astype(np.float32)
    states = []
    for options in (None, {"fuse": False}, {}):
        gan = players(**settings)
        step = gan.step if options is None else mg.compile(gan.step, **options)
        data = mg.data.Batches(images, 4, Stream(0, "data"))
        for _ in range(3):
            step(data)
        states.append(gan.game.state())
    eager, exact, fused = states
    names = [name for name in eager if "running" in name or name.endswith(".u")]
    first = players(**settings).game.state()
    still = {"discriminator.layers.4.u"}  # of one output there is only one direction
    assert {name for name in names if (eager[name] == first[name]).all()} == still
    assert len(names) == 8
    for name, x in eager.items():
        np.testing.assert_array_equal(exact[name], x, err_msg=name)
        np.testing.assert_allclose(fused[name], x, rtol=1e-4, atol=1e-4, err_msg=name)
