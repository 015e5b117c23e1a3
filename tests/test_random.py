"""Random numbers from counters: the published words, the distributions, and streams that do not meet."""

import numpy as np
import pytest

import minigan as mg
from minigan import ops
from minigan.ops.random import Stream
from minigan.registry import primitives
from minigan.tape import apply

PRIMITIVES = {primitive.name: primitive for primitive in primitives()}


def test_words_are_those_of_philox() -> None:
    # Salmon et al. 2011, kat_vectors of Random123: philox4x32-10 of counter 0 and key 0. The first word of the
    # counter is the block.
    counter = mg.tensor(np.zeros(5, np.uint32))
    words = apply(PRIMITIVES["random_bits"], counter, blocks=1).numpy()
    assert [f"{w:08x}" for w in words.ravel()] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_moments(dtype: type) -> None:
    stream = Stream(0, "test")
    n = 200_000
    u, z = stream.uniform((n,), -1.0, 3.0, dtype).numpy(), stream.normal((n,), 2.0, 0.5, dtype).numpy()
    assert u.dtype == z.dtype == dtype
    assert u.min() >= -1 and u.max() < 3
    assert u.mean() == pytest.approx(1, abs=0.02) and u.std() == pytest.approx(4 / 12**0.5, abs=0.01)
    z = (z - 2) / 0.5
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert (z.astype(float) ** power).mean() == pytest.approx(moment, abs=0.06)
    assert np.histogram(u, 16, (-1, 3))[0].min() > 0.95 * n / 16
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.01 and abs(np.corrcoef(z[1:], z[:-1])[0, 1]) < 0.01


def test_the_same_place_gives_the_same_numbers_and_every_other_place_others() -> None:
    def draws(stream: Stream) -> list[bytes]:
        return [stream.normal((8,)).numpy().tobytes() for _ in range(3)]

    base = draws(Stream(1, "noise", 5))
    assert base == draws(Stream(1, "noise").at(5))
    assert len(set(base)) == 3
    others = [
        Stream(2, "noise", 5),
        Stream(1, "other", 5),
        Stream(1, "noise", 6),
        Stream(1, "noise", 5).child("a"),
    ]
    others.append(Stream(1, "noise", 2**40 + 5))
    seen = set(base)
    for stream in others:
        drawn = set(draws(stream))
        assert not drawn & seen
        seen |= drawn
    assert draws(Stream(1, "noise", 5).child("a")) == draws(Stream(1, "noise/a", 5))


def test_permutations() -> None:
    stream = Stream(0, "order")
    first, second = stream.permutation(1000), stream.permutation(1000)
    for order in (first, second):
        assert order.dtype == np.int64 and sorted(order) == list(range(1000))
    assert not np.array_equal(first, second)
    assert len(stream.permutation(0)) == 0


def test_dropout() -> None:
    x = mg.tensor(np.ones((100, 100), np.float32))
    stream = Stream(0, "dropout")
    y = ops.dropout(x, 0.3, stream)
    kept = y.numpy() != 0
    assert kept.mean() == pytest.approx(0.7, abs=0.02)
    np.testing.assert_allclose(y.numpy()[kept], 1 / 0.7, rtol=1e-6)
    np.testing.assert_array_equal(mg.grad(y.sum(), x)[0].numpy(), y.numpy())
    assert ops.dropout(x, 0.0, stream).numpy().all()
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(mg.ConfigError, match=str(rate)):
            ops.dropout(x, rate, stream)


def test_bad_settings() -> None:
    with pytest.raises(mg.ConfigError, match="-1"):
        Stream(-1, "x")
    with pytest.raises(mg.DTypeError, match="int64"):
        Stream(0, "x").normal((3,), dtype=np.int64)
