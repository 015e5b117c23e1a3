"""What a network looks at, against what its shapes and definitions say."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import minigan as mg


def _stream(name="analysis"):
    return mg.ops.Stream(0, name)


def _images(*shape):
    return _stream("images").normal(shape, dtype=np.float64)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=3))
def test_receptive_field_of_convolutions_has_the_size_of_the_textbook(layers):
    """r = 1 + Σ_l (k_l - 1) Π_{i<l} s_i pixels on each side, in which strides above the kernel leave holes."""
    size, step, convs, channels = 1, 1, [], 1
    for i, (kernel, stride) in enumerate(layers):
        size, step = size + (kernel - 1) * step, step * stride
        convs.append(mg.nn.Conv(channels, 2, kernel, stride=stride, stream=_stream(str(i)), dtype=np.float64))
        channels = 2
    field = mg.analysis.receptive_field(mg.nn.Sequential(*convs), _images(2, size, size + 1, 1), at=(0, 0))
    assert field.shape == (2, size, size + 1)
    for image in field > 0:
        assert np.flatnonzero(image.any(1))[[0, -1]].tolist() == [0, size - 1]
        assert np.flatnonzero(image.any(0))[[0, -1]].tolist() == [0, size - 1]


def test_receptive_field_is_the_norm_of_the_jacobian():
    net = mg.nn.Sequential(
        mg.nn.Conv(2, 3, 3, stride=2, padding=1, stream=_stream(), dtype=np.float64), mg.nn.Activation("tanh")
    )
    x, h = _images(2, 5, 6, 2).numpy(), 1e-6
    found = mg.analysis.receptive_field(net, x)  # of pixel (1, 1), the middle of 3 x 3
    expected = np.zeros(x.shape)
    for where in np.ndindex(x.shape[1:]):
        moved = [x.copy(), x.copy()]
        for sign, one in zip((1, -1), moved, strict=True):
            one[(slice(None), *where)] += sign * h
        up, down = (net(mg.tensor(one)).numpy()[:, 1, 1] for one in moved)
        expected[(slice(None), *where)] = np.square((up - down) / (2 * h)).sum(-1)
    np.testing.assert_allclose(found, np.sqrt(expected.sum(-1)), atol=1e-8)


@pytest.mark.parametrize(
    ("function", "shape", "at", "words"),
    [
        (lambda x: x, (3, 4, 1), None, r"images of shape \(3, 4, 1\)"),
        (lambda x: x.reshape((2, 16)), (2, 4, 4, 1), None, r"gives \(2, 16\) for images \(2, 4, 4, 1\)"),
        (lambda x: x, (2, 4, 5, 1), (4, 0), r"pixel \(4, 0\) of a map of \(4, 5\)"),
    ],
)
def test_receptive_field_refuses_what_has_no_pixels(function, shape, at, words):
    with pytest.raises(mg.ShapeError, match=words):
        mg.analysis.receptive_field(function, _images(*shape), at)


def test_attention_maps_are_the_weights_of_the_definition():
    q, k, v = (
        _stream(name).normal((2, 3, length, 4)).numpy() for name, length in [("q", 5), ("k", 6), ("v", 6)]
    )
    mask = np.ones((5, 6), bool)
    mask[1], mask[2, 3:] = False, False

    def function(x):
        first = mg.ops.scaled_dot_product_attention(x, k, v)
        return mg.ops.scaled_dot_product_attention(first, k, v, mask=mask, scale=0.3)

    plain, masked = mg.analysis.attention_maps(function, q)
    scores = np.exp(q @ k.swapaxes(-1, -2) / 2)
    np.testing.assert_allclose(plain, scores / scores.sum(-1, keepdims=True), rtol=1e-5)
    assert (masked[..., ~mask] == 0).all()
    sums = masked.sum(-1)
    np.testing.assert_allclose(sums[..., [0, 2, 3, 4]], 1, rtol=1e-5)
    assert (sums[..., 1] == 0).all()


@pytest.mark.slow
def test_attention_maps_of_networks_by_name():
    images = np.zeros((2, 16, 16, 1), np.float32)
    sagan = mg.models.sagan_discriminator((16, 16, 1), width=8)
    (maps,) = mg.analysis.attention_maps(sagan, images)
    assert maps.shape == (2, 64, 16)  # 8 x 8 pixels look at the largest of each 2 x 2
    cvtgan = mg.models.cvtgan_discriminator((16, 16, 1), width=4, heads=2)
    assert [m.shape for m in mg.analysis.attention_maps(cvtgan, images)] == [(2, 2, 64, 16), (2, 2, 16, 16)]
    assert mg.analysis.attention_maps(mg.models.dcgan_discriminator((16, 16, 1), width=4), images) == []


def test_attention_lets_a_pixel_see_the_whole_image():
    """What the page on local and global features says of its two networks."""
    layer = mg.nn.SelfAttention2d(8, pool=False, stream=_stream(), dtype=np.float64)
    x = _images(1, 6, 6, 8)
    assert (mg.analysis.receptive_field(layer, x, (2, 3)) > 0).sum() == 1  # gamma is 0 at the start
    layer.load_state({**{name: t.numpy() for name, t in layer.state().items()}, "gamma": np.float64(1)})
    assert (mg.analysis.receptive_field(layer, x, (2, 3)) > 0).all()
