"""Convolutions, pooling and upsampling: by hand, against the definition, and against PyTorch where it is installed."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import minigan as mg
from minigan import ops
from minigan.check import check_adjoint
from minigan.ops.conv import CONV, CONV_TRANSPOSE, CONV_WEIGHT
from minigan.tape import apply

Array = NDArray[Any]


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def sequence(*values: float) -> mg.Tensor:
    return mg.tensor([[[float(v)] for v in values]])


def kernel(*taps: float) -> mg.Tensor:
    return mg.tensor([[[float(v)]] for v in taps])


# By hand


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [-2, -2, -2, -2]),
        ({"stride": 2}, [-2, -2]),
        ({"padding": 1}, [-2, -2, -2, -2, -2, 5]),
        ({"padding": ((2, 0),)}, [-1, -2, -2, -2, -2, -2]),
        ({"dilation": 2}, [-4, -4]),
        ({"padding": "SAME"}, [-2, -2, -2, -2, -2, 5]),
        ({"padding": "SAME", "stride": 4}, [-2, 5]),
        ({"padding": 4, "stride": 14}, [0]),
    ],
)
def test_a_sequence(settings: dict[str, Any], expected: list[float]) -> None:
    y = ops.conv(sequence(1, 2, 3, 4, 5, 6), kernel(1, 0, -1), **settings)
    assert y.numpy().ravel().tolist() == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 12, 23, 30]),
        ({"stride": 2}, [1, 2, 13, 20, 30]),
        ({"stride": 2, "padding": 1}, [2, 13, 20]),
        ({"stride": 2, "padding": 1, "output_padding": 1}, [2, 13, 20, 30]),
        ({"stride": 4}, [1, 2, 3, 0, 10, 20, 30]),
        ({"stride": 4, "padding": "SAME"}, [1, 2, 3, 0, 10, 20, 30, 0]),
        ({"stride": 2, "padding": "SAME"}, [1, 2, 13, 20]),
        ({"dilation": 3}, [1, 10, 0, 2, 20, 0, 3, 30]),
        ({"dilation": 3, "output_padding": 2}, [1, 10, 0, 2, 20, 0, 3, 30, 0, 0]),
    ],
)
def test_a_sequence_transposed(settings: dict[str, Any], expected: list[float]) -> None:
    y = ops.conv_transpose(sequence(1, 10), kernel(1, 2, 3), **settings)
    assert y.numpy().ravel().tolist() == expected


def test_an_image() -> None:
    x = mg.tensor(np.arange(12.0).reshape(1, 3, 4, 1))
    corners = mg.tensor(np.array([[1.0, 0.0], [0.0, -1.0]]).reshape(2, 2, 1, 1))
    assert ops.conv(x, corners).numpy()[0, ..., 0].tolist() == [[-5, -5, -5], [-5, -5, -5]]
    assert ops.conv(x, corners, stride=(1, 2)).numpy()[0, ..., 0].tolist() == [[-5, -5], [-5, -5]]
    assert ops.conv(x, corners, padding=((1, 0), (0, 0))).numpy()[0, 0, :, 0].tolist() == [-1, -2, -3]
    assert ops.conv(x, corners, padding=(0, 1)).shape == (1, 2, 5, 1)
    assert ops.conv(x, corners, padding=(0, (0, 3))).shape == (1, 2, 6, 1)


def test_channels_and_groups() -> None:
    x = mg.tensor([[[1.0, 10.0, 100.0, 1000.0]]])  # one pixel
    mixed = mg.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]])
    assert ops.conv(x, mixed).numpy().tolist() == [[[11, 2100]]]
    # Two groups: channels 0 and 1 give results 0 and 1, channels 2 and 3 give results 2 and 3.
    w = mg.tensor([[[1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 1.0, 0.0]]])
    assert ops.conv(x, w, groups=2).numpy().tolist() == [[[11, 2, 1300, 400]]]
    assert ops.conv_transpose(x, w, groups=2).numpy().tolist() == [[[21, 1, 4300, 100]]]


# The definition, in loops

GEOMETRIES = [
    {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    for stride in [(1, 1), (2, 2), (3, 1)]
    for padding in [((0, 0), (0, 0)), ((1, 1), (1, 1)), ((2, 0), (0, 3))]
    for dilation in [(1, 1), (2, 1)]
    for groups in [1, 2, 4]
]
SIZES = [((7, 6), (3, 2)), ((5, 5), (1, 1)), ((6, 7), (2, 4))]


def cases(step: int = 1) -> Iterator[tuple[tuple[int, int], tuple[int, int], dict[str, Any]]]:
    for (size, taps), settings in itertools.islice(itertools.product(SIZES, GEOMETRIES), 0, None, step):
        yield size, taps, settings


def triple(x: Array, w: Array, y: Array, settings: dict[str, Any]) -> tuple[Array, Array, Array]:
    """The three gradients of <y, conv(x, w)>, term by term."""
    (sy, sx), ((top, _), (left, _)), (dy, dx) = (settings[k] for k in ("stride", "padding", "dilation"))
    c, o = w.shape[2], w.shape[3] // settings["groups"]
    found = np.zeros_like(y), np.zeros_like(x), np.zeros_like(w)
    for i, j, k, m in np.ndindex(*y.shape[1:3], *w.shape[:2]):
        row, column = sy * i + dy * k - top, sx * j + dx * m - left
        if not (0 <= row < x.shape[1] and 0 <= column < x.shape[2]):
            continue
        for g in range(settings["groups"]):
            inputs, outputs = slice(g * c, (g + 1) * c), slice(g * o, (g + 1) * o)
            pixel, weights, result = (
                x[:, row, column, inputs],
                w[k, m, :, outputs],
                y[:, i, j, outputs],
            )
            found[0][:, i, j, outputs] += pixel @ weights
            found[1][:, row, column, inputs] += result @ weights.T
            found[2][k, m, :, outputs] += pixel.T @ result
    return found


def triad(x: Array, w: Array, y: Array, settings: dict[str, Any]) -> tuple[Array, Array, Array]:
    """The same by the three operations."""
    a, b, c = mg.tensor(x), mg.tensor(w), mg.tensor(y)
    return (
        apply(CONV, a, b, **settings).numpy(),
        apply(CONV_TRANSPOSE, c, b, shape=x.shape[1:3], **settings).numpy(),
        apply(CONV_WEIGHT, a, c, kernel=w.shape[:2], **settings).numpy(),
    )


def arguments(size: Any, taps: Any, settings: dict[str, Any], seed: int = 0) -> tuple[Array, Array, Array]:
    x, w = draw(3, *size, 4, seed=seed), draw(*taps, 4 // settings["groups"], 8, seed=seed + 1)
    return x, w, draw(*ops.conv(x, w, **settings).shape, seed=seed + 2)


@pytest.mark.parametrize(
    ("block", "step"), [(1, 11), (700, 5), (1 << 20, 1)], ids=["pixels", "rows", "images"]
)
def test_against_the_definition(block: int, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is computed at a time: a pixel, a part of an image, some images."""
    monkeypatch.setitem(CONV.kernel.__globals__, "BLOCK", block)  # type: ignore[union-attr]
    for size, taps, settings in cases(step):
        x, w, y = arguments(size, taps, settings)
        for found, expected in zip(triad(x, w, y, settings), triple(x, w, y, settings), strict=True):
            np.testing.assert_allclose(
                found, expected, rtol=0, atol=1e-12, err_msg=f"{size} {taps} {settings}"
            )


def test_adjoints() -> None:
    for size, taps, settings in cases(5):
        x, w, y = arguments(size, taps, settings)
        check_adjoint(lambda x, w, at=settings: ops.conv(x, w, **at), x, w, linear=(0, 1))
        check_adjoint(lambda y, w, at=settings: ops.conv_transpose(y, w, **at), y, w, linear=(0, 1))


def test_output_padding_is_the_size_that_a_stride_forgets() -> None:
    for n, k, s, p, d in itertools.product(range(5, 12), (1, 2, 3, 4), (1, 2, 3, 5), (0, 1), (1, 2)):
        x, w = draw(2, n, 3), draw(k, 3, 4)
        if n + 2 * p < d * (k - 1) + 1:
            continue
        settings: dict[str, Any] = {"stride": s, "padding": p, "dilation": d}
        y = ops.conv(x, w, **settings)
        v = draw(*y.shape, seed=1)
        back = ops.conv_transpose(v, w, output_padding=(n + 2 * p - d * (k - 1) - 1) % s, **settings)
        assert back.shape == x.shape
        left, right = y.numpy() * v, x * back.numpy()
        assert abs(left.sum() - right.sum()) <= 1e-12 * np.abs(left).sum()


def test_output_padding_beyond_a_stride_shows_what_padding_had_cut_off() -> None:
    for s, d, p in itertools.product((1, 2, 3), (3, 4, 5), (0, 2, 3)):
        for extra in range(max(s, d)):
            x, w = draw(1, 3, 2), draw(3, 5, 2)
            settings: dict[str, Any] = {"stride": s, "dilation": d}
            whole = ops.conv_transpose(x, w, **settings).numpy()
            whole = np.pad(whole, ((0, 0), (0, extra), (0, 0)))
            found = ops.conv_transpose(x, w, padding=p, output_padding=extra, **settings).numpy()
            np.testing.assert_allclose(found, whole[:, p : whole.shape[1] - p], rtol=0, atol=1e-12)


# Arguments


def test_same_is_the_ceiling_and_the_odd_one_goes_to_the_end() -> None:
    for n, k, s, d in itertools.product(range(1, 12), range(1, 6), range(1, 5), (1, 2)):
        x, w = draw(1, n, 2), draw(k, 2, 3)
        settings: dict[str, Any] = {"stride": s, "dilation": d}
        y = ops.conv(x, w, padding="SAME", **settings)
        assert y.shape == (1, -(-n // s), 3)
        total = max((y.shape[1] - 1) * s + d * (k - 1) + 1 - n, 0)
        pads = (total // 2, (total + 1) // 2)
        np.testing.assert_array_equal(y.numpy(), ops.conv(x, w, padding=(pads,), **settings).numpy())
        assert ops.conv_transpose(y, w, padding="SAME", **settings).shape == (1, y.shape[1] * s, 2)
        if n % s == 0:  # then it is the adjoint
            v = draw(*y.shape, seed=1)
            back = ops.conv_transpose(v, w, padding="SAME", **settings).numpy()
            assert np.vdot(y.numpy(), v) == pytest.approx(np.vdot(x, back), abs=1e-11)


def test_a_sequence_is_an_image_of_height_one() -> None:
    x, w = draw(2, 9, 4), draw(3, 2, 6)
    settings: dict[str, Any] = {"stride": 2, "padding": ((2, 1),), "dilation": 2, "groups": 2}
    flat: dict[str, Any] = {
        "stride": (1, 2),
        "padding": ((0, 0), (2, 1)),
        "dilation": (1, 2),
        "groups": 2,
    }
    y = ops.conv(x, w, **settings)
    np.testing.assert_array_equal(y.numpy(), ops.conv(x[:, None], w[None], **flat).numpy()[:, 0])
    back = ops.conv_transpose(y, w, output_padding=1, **settings)
    wide = ops.conv_transpose(y.numpy()[:, None], w[None], output_padding=(0, 1), **flat)
    np.testing.assert_array_equal(back.numpy(), wide.numpy()[:, 0])
    assert max(mg.check_grad(lambda x, w: ops.conv(x, w, **settings), x[:1, :6], w)) < 1e-9


def test_dtypes() -> None:
    x, w = draw(1, 3, 3, 2), draw(2, 2, 2, 2)
    for a, b in itertools.product([np.float32, np.float64], repeat=2):
        y = ops.conv(x.astype(a), w.astype(b))
        assert y.dtype == np.result_type(a, b)
        assert ops.conv_transpose(y, w.astype(b)).dtype == np.result_type(a, b)


@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(n: int) -> None:
    x, w = mg.tensor(np.ones((n, 4, 4, 2))), mg.tensor(np.ones((3, 3, 2, 5)))
    y = ops.conv(x, w, padding=1)
    gx, gw = mg.grad(y.sum(), [x, w])
    assert y.shape == (n, 4, 4, 5) and gx.shape == x.shape
    np.testing.assert_array_equal(gw.numpy()[1, 1], 16.0 * n)
    assert ops.conv_transpose(y, w, stride=2).shape == (n, 9, 9, 2)


def test_no_channels() -> None:
    np.testing.assert_array_equal(ops.conv(np.ones((1, 4, 4, 0)), np.ones((3, 3, 0, 5))).numpy(), 0)
    assert ops.conv(np.ones((1, 4, 4, 2)), np.ones((3, 3, 2, 0))).shape == (1, 2, 2, 0)


def test_a_nan_stays_in_the_windows_that_see_it() -> None:
    x = np.zeros((2, 6, 6, 2))
    x[1, 2, 3, 0] = np.nan
    for groups in (1, 2):
        y = ops.conv(x, np.ones((2, 2, 2 // groups, 2)), groups=groups).numpy()
        assert np.argwhere(np.isnan(y[..., 0])).tolist() == [[1, 1, 2], [1, 1, 3], [1, 2, 2], [1, 2, 3]]
        assert np.isnan(y[..., 1]).any() == (groups == 1)


def test_float32_sums_over_many_pixels() -> None:
    # All terms are equal, so rounding errors do not cancel.
    for groups, channels in ((1, 1), (4, 4)):
        x, w = np.full((64, 32, 32, channels), 0.1, "f4"), np.full((3, 3, 1, channels), 0.1, "f4")
        settings = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": groups}
        for found, exact in zip(
            triad(x, w, x, settings), triad(*(a.astype("f8") for a in (x, w, x)), settings), strict=True
        ):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, exact, rtol=2e-5)


def test_derivatives_of_any_order_are_the_triad_again() -> None:
    x, w = mg.tensor(draw(1, 5, 5, 2)), mg.tensor(draw(3, 3, 2, 2))
    names: set[str] = set()
    y = ops.conv(x, w, stride=2, padding=1)
    for _ in range(3):
        gx, gw = mg.grad(y, [x, w], mg.tensor(draw(*y.shape, seed=2)), create_graph=True)
        names |= {g.node.primitive.name for g in (y, gx, gw) if g.node is not None}
        y = gx * gw.sum()
    assert names <= {"conv", "conv_transpose", "conv_weight", "multiply", "add"}
    assert {"conv", "conv_transpose", "conv_weight"} <= names


ONES = {
    "x": np.ones((1, 3, 9, 4)),
    "w": np.ones((1, 1, 4, 2)),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"w": np.ones((4, 1, 4, 2)), "padding": 1, "dilation": 2},
            "height 3 + padding 1 + 1 is smaller than the kernel's extent 2*(4-1)+1 = 7",
        ),
        (
            {"w": np.ones((1, 10, 4, 2))},
            "width 9 + padding 0 + 0 is smaller than the kernel's extent 1*(10-1)+1 = 10",
        ),
        ({"groups": 3}, "4 input channels do not divide into 3 groups"),
        ({"groups": 2, "w": np.ones((1, 1, 2, 3))}, "3 output channels do not divide into 2 groups"),
        ({"groups": 2}, "4 input channels / 2 groups = 2, the weights have 4"),
        ({"groups": 0}, "groups 0: expected at least 1"),
        ({"stride": 0}, "stride 0: expected at least 1"),
        ({"stride": (1, -2)}, "stride (1, -2): expected at least 1"),
        ({"stride": 1.5}, "stride 1.5 is not an integer"),
        ({"stride": (1, 1, 1)}, "stride (1, 1, 1) has 3 entries, expected 2"),
        ({"dilation": 0}, "dilation 0: expected at least 1"),
        ({"padding": -1}, "padding -1: expected at least 0"),
        ({"padding": 0.5}, "padding 0.5 is not an integer"),
        ({"padding": (1, 2, 3)}, "padding (1, 2, 3) has 3 entries, expected 2, numbers or pairs"),
        ({"padding": ((1, 2, 3), 0)}, "padding (1, 2, 3) has 3 entries, expected 2"),
        ({"padding": "same"}, "padding 'same': expected numbers or \"SAME\""),
        ({"w": np.ones((0, 1, 4, 2))}, "kernel (0, 1): expected at least 1"),
        (
            {"w": np.ones((1, 4, 2))},
            "weights of shape (1, 4, 2) for x of shape (1, 3, 9, 4): expected 4 axes",
        ),
        ({"x": np.ones((3, 9))}, "x has shape (3, 9), expected (N, W, C) or (N, H, W, C)"),
    ],
)
def test_errors_have_the_arithmetic(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(mg.ShapeError) as error:
        ops.conv(**(ONES | changes))
    assert str(error.value) == f"conv: {message}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "4 input channels, the weights have 2"),
        ({"w": np.ones((1, 1, 2, 4)), "groups": 3}, "4 input channels do not divide into 3 groups"),
        (
            {"w": np.ones((2, 1, 4, 4)), "padding": (2, 0)},
            "height (3-1)*1 - padding 2 - 2 + the kernel's extent 2 + output_padding 0 = 0 is not positive",
        ),
        ({"output_padding": 1}, "output_padding 1 is not below stride 1 or dilation 1"),
        (
            {"output_padding": 3, "stride": 2, "dilation": 3},
            "output_padding 3 is not below stride 2 or dilation 3",
        ),
        ({"output_padding": -1}, "output_padding -1: expected at least 0"),
        (
            {"output_padding": 1, "padding": "SAME", "stride": 2},
            'output_padding 1, but padding "SAME" settles the size',
        ),
    ],
)
def test_errors_of_the_transposed_convolution(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(mg.ShapeError) as error:
        ops.conv_transpose(**(ONES | changes))
    assert str(error.value) == f"conv_transpose: {message}"


def test_errors_of_the_triad_itself() -> None:
    x, w = mg.tensor(np.ones((1, 3, 9, 4))), mg.tensor(np.ones((1, 1, 4, 2)))
    where: dict[str, Any] = {
        "stride": (1, 1),
        "padding": ((0, 0), (0, 0)),
        "dilation": (1, 1),
        "groups": 1,
    }
    y = apply(CONV, x, w, **where)
    with pytest.raises(mg.ShapeError, match=r"result is \(3, 8\), not \(3, 9\) pixels"):
        apply(CONV_TRANSPOSE, y, w, shape=(3, 8), **where)
    with pytest.raises(mg.ShapeError, match=r"result is \(2, 9\), not \(3, 9\) pixels"):
        apply(CONV_WEIGHT, x, y, kernel=(2, 1), **where)
    with pytest.raises(mg.ShapeError, match="1 images in, 2 images out"):
        apply(CONV_WEIGHT, x, ops.concatenate([y, y]), kernel=(1, 1), **where)
    with pytest.raises(mg.DTypeError, match=r"dtypes float64 and float32 differ: use \.astype"):
        apply(CONV, x, w.astype(np.float32), **where)
    for f in (ops.conv, ops.conv_transpose):
        with pytest.raises(mg.DTypeError, match=r"int64 .* use \.astype"):
            f(np.ones((1, 3, 9, 2), int), np.ones((1, 1, 2, 2)))


# Pooling and upsampling

IMAGE = np.arange(20.0).reshape(1, 4, 5, 1)
RESIZERS: dict[str, Callable[[Any], mg.Tensor]] = {
    "avg_pool": lambda x: ops.avg_pool(x, 2),
    "avg_pool, overlapping": lambda x: ops.avg_pool(x, 3, 2),
    "avg_pool, padded": lambda x: ops.avg_pool(x, (3, 2), 1, (1, (0, 1))),
    "max_pool": lambda x: ops.max_pool(x, 2),
    "max_pool, overlapping": lambda x: ops.max_pool(x, 3, 1),
    "max_pool, padded": lambda x: ops.max_pool(x, (3, 2), 2, "SAME"),
    "upsample": lambda x: ops.upsample(x, (2, 3)),
    "upsample, bilinear": lambda x: ops.upsample(x, (2, 3), "bilinear"),
    "pixel_shuffle": lambda x: ops.pixel_shuffle(x, (2, 1)),
}


def test_pools_by_hand() -> None:
    assert ops.avg_pool(IMAGE, 2).numpy()[0, ..., 0].tolist() == [[3, 5], [13, 15]]
    assert ops.max_pool(IMAGE, 2).numpy()[0, ..., 0].tolist() == [[6, 8], [16, 18]]
    assert ops.avg_pool(IMAGE, (1, 3), 2).numpy()[0, ..., 0].tolist() == [[1, 3], [11, 13]]
    assert ops.max_pool(-IMAGE, 3, 2, 1).numpy()[0, ..., 0].tolist() == [[0, -1, -3], [-5, -6, -8]]
    assert ops.avg_pool(IMAGE, 3, 2, 1).numpy()[0, 0, :, 0].tolist() == [3, 4.5, 6]
    assert ops.avg_pool(IMAGE[:, 0], 2).numpy().ravel().tolist() == [0.5, 2.5]
    assert ops.max_pool(IMAGE[:, 0], 2, 3).numpy().ravel().tolist() == [1, 4]


def test_a_constant_image_stays_constant() -> None:
    x = np.full((1, 7, 7, 2), 0.1, np.float32)
    for stride, padding in itertools.product((1, 2, 3), (0, 1, "SAME")):
        np.testing.assert_allclose(ops.avg_pool(x, 3, stride, padding).numpy(), 0.1, rtol=2e-7)
    for scale in range(1, 6):
        np.testing.assert_allclose(ops.upsample(x, scale, "bilinear").numpy(), 0.1, rtol=2e-7)


def test_ties_share_the_derivative() -> None:
    for stride in (2, 1):
        x = mg.tensor(np.array([3.0, 3.0, 1.0, 2.0]).reshape(1, 2, 2, 1))
        (g,) = mg.grad(ops.max_pool(x, 2, stride).sum(), x)
        assert g.numpy().ravel().tolist() == [0.5, 0.5, 0, 0]


def test_upsampling_by_hand() -> None:
    x = np.array([[0.0, 6.0], [12.0, 18.0]]).reshape(1, 2, 2, 1)
    assert ops.upsample(x, (1, 2)).numpy()[0, ..., 0].tolist() == [[0, 0, 6, 6], [12, 12, 18, 18]]
    assert ops.upsample(x, (1, 3), "bilinear").numpy()[0, 0, :, 0].tolist() == pytest.approx(
        [0, 0, 2, 4, 6, 6]
    )
    assert ops.upsample(x, 2, "bilinear").numpy()[0, 1, :, 0].tolist() == [3, 4.5, 7.5, 9]
    assert ops.upsample(x[:, :1, :1], 2, "bilinear").numpy().ravel().tolist() == [0, 0, 0, 0]


def test_pixel_shuffle_by_hand() -> None:
    x = np.arange(8.0).reshape(1, 1, 1, 8)
    shuffled = ops.pixel_shuffle(x, 2).numpy()
    assert shuffled[0, :, :, 0].tolist() == [[0, 1], [2, 3]] and shuffled[0, :, :, 1].tolist() == [
        [4, 5],
        [6, 7],
    ]


@pytest.mark.parametrize("name", RESIZERS)
def test_resizing(name: str) -> None:
    """Derivatives, the compiled form, no images, and a NaN that stays where it is."""
    f, x = RESIZERS[name], draw(2, 4, 5, 4)
    of_order_1, of_order_2 = mg.check_grad(f, x[:1, :3, :3, :2])
    assert of_order_1 < 1e-9 and of_order_2 < 1e-7

    def derivative(x: mg.Tensor) -> mg.Tensor:
        return mg.grad((f(x) ** 2.0).sum(), x)[0]

    compiled = mg.compile(derivative, fuse=False)
    for seed in (0, 1):
        x = draw(2, 4, 5, 4, seed=seed)
        np.testing.assert_allclose(compiled(x).numpy(), derivative(mg.tensor(x)).numpy(), rtol=0, atol=1e-12)
    assert f(mg.tensor(x[:0])).shape == (0, *f(mg.tensor(x)).shape[1:])
    assert f(mg.tensor(x.astype(np.float32))).dtype == np.float32
    x[0, 0, 0, 0] = np.nan
    bad = np.isnan(f(mg.tensor(x)).numpy())
    assert 0 < bad.sum() <= 16 and not bad[1:].any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ops.avg_pool(IMAGE, 2, padding=2),
            "avg_pool: height 4 + padding 2 + 2: a window of 2 could lie in the padding alone",
        ),
        (
            lambda: ops.max_pool(IMAGE[:, :0], 1),
            "max_pool: height 0 + padding 0 + 0: a window of 1 could lie in the padding alone",
        ),
        (
            lambda: ops.max_pool(IMAGE, 5),
            "max_pool: height 4 + padding 0 + 0 is smaller than the kernel's extent 1*(5-1)+1 = 5",
        ),
        (lambda: ops.max_pool(IMAGE, 0), "max_pool: window 0: expected at least 1"),
        (lambda: ops.avg_pool(IMAGE, 2, (1, 0)), "avg_pool: stride (1, 0): expected at least 1"),
        (lambda: ops.upsample(IMAGE, 0), "upsample: scale 0: expected at least 1"),
        (lambda: ops.upsample(IMAGE, 1.5), "upsample: scale 1.5 is not an integer"),  # type: ignore[arg-type]
        (lambda: ops.pixel_shuffle(IMAGE, 2), "pixel_shuffle: 1 channels do not divide by 4"),
        (
            lambda: ops.pixel_shuffle(IMAGE[0, 0], 2),
            "pixel_shuffle: x has shape (5, 1), expected (N, W, C) or (N, H, W, C)",
        ),
    ],
)
def test_errors_of_pools(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(mg.ShapeError) as error:
        call()
    assert str(error.value) == message


def test_other_errors_of_pools() -> None:
    with pytest.raises(mg.ConfigError, match='mode \'cubic\': expected "nearest" or "bilinear"'):
        ops.upsample(IMAGE, 2, "cubic")
    for f in RESIZERS.values():
        with pytest.raises(mg.DTypeError):
            f(np.ones((1, 4, 4, 2), int))


# Against PyTorch


def first(a: Array) -> Array:
    """Channels first."""
    return np.ascontiguousarray(np.moveaxis(a, -1, 1))


def last(t: Any) -> Array:
    return np.moveaxis(t.detach().numpy(), 1, -1)


def compare(found: list[Array], exact: list[Array], terms: list[Array], what: str) -> None:
    """float64 to 1e-12 and float32 to 2e-5 of the same operation on absolute values."""
    for y, expected, scale in zip(found, exact, terms, strict=True):
        assert y.shape == expected.shape, what
        limit = (1e-12 if y.dtype == np.float64 else 2e-5) * np.abs(scale)
        assert np.all(np.abs(y - expected) <= limit + 1e-30), what


def with_gradients(f: Callable[..., Any], x: Array, w: Array, v: Array) -> list[Array]:
    a, b = mg.tensor(x), mg.tensor(w)
    y = f(a, b)
    return [y.numpy(), *(g.numpy() for g in mg.grad(y, [a, b], mg.tensor(v)))]


@pytest.mark.slow
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "conv_transpose"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stride", [1, 2, 3, (2, 1)])
@pytest.mark.parametrize("taps", [(1, 1), (2, 3), (3, 3), (4, 4), (5, 1)])
def test_the_triad_against_torch(taps: Any, stride: Any, dtype: str, transposed: bool) -> None:
    torch = pytest.importorskip("torch")
    grid = itertools.product([0, 1, (2, 1)], [1, 2, (1, 3)], [1, 2, 4], [0, 1, (0, 2)] if transposed else [0])
    count = 0
    for padding, dilation, groups, more in grid:
        settings: dict[str, Any] = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
        }
        what = f"{taps} {settings} {more}"
        if transposed:
            settings["output_padding"] = more
        f = ops.conv_transpose if transposed else ops.conv
        reference = torch.conv_transpose2d if transposed else torch.conv2d
        size = (4, 3) if transposed else (9, 8)
        x, w = draw(3, *size, 8, seed=count), draw(*taps, 8 // groups, 8, seed=count + 1)
        if transposed:  # PyTorch's weights: (inputs, outputs / groups, kh, kw)
            w = draw(*taps, 4 // groups, 8, seed=count + 1)
        a = torch.tensor(first(x).astype(dtype).astype("f8"), requires_grad=True)
        b = torch.tensor(w.astype(dtype).astype("f8").transpose(3, 2, 0, 1).copy(), requires_grad=True)
        try:
            out = reference(a, b, None, **settings)
        except RuntimeError:
            with pytest.raises(mg.ShapeError):
                f(x, w, **settings)
            continue
        v = draw(*last(out).shape, seed=count + 2).astype(dtype)
        ga, gb = torch.autograd.grad(out, [a, b], torch.tensor(first(v).astype("f8")))
        exact = [last(out), last(ga), gb.numpy().transpose(2, 3, 1, 0)]
        x, w = x.astype(dtype), w.astype(dtype)
        terms = with_gradients(partial(f, **settings), *(np.abs(z).astype("f8") for z in (x, w, v)))
        compare(with_gradients(partial(f, **settings), x, w, v), exact, terms, what)
        count += 1
    assert count >= 12


@pytest.mark.slow
def test_sequences_against_torch() -> None:
    torch = pytest.importorskip("torch")
    for k, s, p, d, g in itertools.product((1, 3, 4), (1, 2, 3), (0, 2), (1, 2), (1, 2)):
        x, w = draw(2, 11, 4), draw(k, 4 // g, 6)
        a, b = torch.tensor(first(x)), torch.tensor(w.transpose(2, 1, 0).copy())
        expected = torch.conv1d(a, b, None, s, p, d, g)
        y = ops.conv(x, w, s, p, d, g)
        np.testing.assert_allclose(y.numpy(), last(expected), rtol=0, atol=1e-12)
        expected = torch.conv_transpose1d(expected, b, None, s, p, min(1, s - 1), g, d)
        back = ops.conv_transpose(y, w, s, p, min(1, s - 1), d, g)
        np.testing.assert_allclose(back.numpy(), last(expected), rtol=0, atol=1e-11)


@pytest.mark.slow
def test_pools_and_upsampling_against_torch() -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x = draw(2, 9, 8, 3)

    def same(ours: Callable[[Any], mg.Tensor], theirs: Callable[[Any], Any], x: Array) -> None:
        leaf, other = mg.tensor(x), torch.tensor(first(x), requires_grad=True)
        y, expected = ours(leaf), theirs(other)
        np.testing.assert_allclose(y.numpy(), last(expected), rtol=0, atol=1e-12)
        v = draw(*y.shape, seed=1)
        (g,), (h,) = (
            mg.grad(y, leaf, mg.tensor(v)),
            torch.autograd.grad(expected, other, torch.tensor(first(v))),
        )
        np.testing.assert_allclose(g.numpy(), last(h), rtol=0, atol=1e-12)

    for window, stride, padding in itertools.product((1, 2, 3, (3, 2)), (None, 1, 2, (2, 3)), (0, 1)):
        if padding and window == 1:
            continue
        at: Any = (window, stride, padding)
        same(
            lambda x, at=at: ops.avg_pool(x, *at),
            lambda x, at=at: functional.avg_pool2d(x, *at, count_include_pad=False),
            x,
        )
        same(lambda x, at=at: ops.max_pool(x, *at), lambda x, at=at: functional.max_pool2d(x, *at), x)
    for scale, mode in itertools.product((1, 2, 3, 4, (2, 5)), ("nearest", "bilinear")):
        at = {"scale_factor": scale, "mode": mode}
        same(
            lambda x, s=scale, m=mode: ops.upsample(x, s, m),
            lambda x, at=at: functional.interpolate(x, **at),
            x,
        )
    for scale in (2, 3):
        at = {"scale_factor": scale, "mode": "linear"}
        same(
            lambda x, s=scale: ops.upsample(x, s, "bilinear"),
            lambda x, at=at: functional.interpolate(x, **at),
            x[:, 0],
        )
        shuffled = draw(2, 3, 4, 5 * scale**2)
        same(
            lambda x, s=scale: ops.pixel_shuffle(x, s),
            lambda x, s=scale: functional.pixel_shuffle(x, s),
            shuffled,
        )
