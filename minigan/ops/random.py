"""Random numbers from counters.

Every number is a pure function of a key (seed and purpose) and a counter (step, draw within the step, position), by
the Philox 4x32 generator with 10 rounds (Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as
1, 2, 3"). Nothing depends on threads, batch size or history: the first n numbers of a draw are the same however many
are drawn, and a run continued at step s draws what an uninterrupted one would.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigan.backend import FLOATS, Array, device_name
from minigan.cuda import random as there
from minigan.errors import ConfigError, DTypeError, GraphError
from minigan.kernels import rows
from minigan.kernels.launch import may_build
from minigan.kernels.objects import kernel_of
from minigan.tape import Input, Primitive, Sample, apply, no_grad
from minigan.tensor import Tensor, TensorLike, lift, where
from minigan.trace import Slot, host, state

_COUNTER_WORDS = 5  # key, key, draw, step, step


def _compiled(
    row: Callable[..., rows.Plan | None], outs: Sequence[Array], source: Array, **settings: Any
) -> bool:
    """Whether there is compiled code, which then has computed `outs`: that of a program's rows, with their bits."""
    plan = row(outs, [source], 1, **settings) if may_build() else None
    if plan is None:
        return False
    rows.run(plan, outs, [source])
    return True


def _bits_kernel(outs: Sequence[Array], counter: Array, blocks: int) -> None:
    counter = np.ascontiguousarray(counter)
    if not _compiled(_bits_row, outs, counter, blocks=blocks):
        _philox(outs[0], counter)


def _philox(words: Array, counter: Array) -> None:
    k0, k1, draw, low, high = (np.uint64(word) for word in counter)
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    x0 = np.arange(len(words), dtype=np.uint64)
    x1, x2, x3 = np.full_like(x0, draw), np.full_like(x0, low), np.full_like(x0, high)
    for _ in range(10):
        left, right = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0, x2 = (right >> shift) ^ x1 ^ k0, (left >> shift) ^ x3 ^ k1
        x1, x3 = right & mask, left & mask
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
    words[...] = np.stack([x0, x1, x2, x3], 1)


_COUNTER = Input((_COUNTER_WORDS,), "counter")


def _bits_row(
    outs: Sequence[rows.Spec], inputs: Sequence[rows.Spec], parts: int, blocks: int
) -> rows.Plan | None:
    if not blocks or not rows.row_major(inputs):
        return None
    return rows.Plan(
        kernel_of("random", "bits"), blocks, 1, 0, 16, (rows.Operand(0), rows.Result(0)), work=32 * blocks
    )


_bits = Primitive(
    "random_bits",
    lambda counter, blocks: (((blocks, 4), np.uint32),),
    kernel=_bits_kernel,
    flops=lambda counter, blocks: 0,
    samples=(Sample((_COUNTER,), {"blocks": 5}), Sample((_COUNTER,), {"blocks": 70})),
    row=_bits_row,
    cuda=there.bits,
)


# From bits to numbers: float32 takes one word an element, float64 two


def _uniform_kernel(
    outs: Sequence[Array], bits: Array, shape: tuple[int, ...], low: float, high: float, dtype: Any
) -> None:
    bits = np.ascontiguousarray(bits)
    if _compiled(_uniform_row, outs, bits, shape=shape, low=low, high=high, dtype=dtype):
        return
    words = bits.reshape(-1)
    out = outs[0].reshape(-1)
    if dtype == np.float32:
        np.multiply(words[: out.size] >> np.uint32(8), np.float32(2.0**-24), out=out, casting="unsafe")
    else:
        first, second = words[0 : 2 * out.size : 2], words[1 : 2 * out.size : 2]
        np.multiply((first >> np.uint32(5)) * 2.0**26 + (second >> np.uint32(6)), 2.0**-53, out=out)
    out *= out.dtype.type(high - low)
    out += out.dtype.type(low)


def _normal_kernel(
    outs: Sequence[Array], bits: Array, shape: tuple[int, ...], mean: float, std: float, dtype: Any
) -> None:
    # Box and Muller 1958: a pair of uniforms gives a pair of normals. Computed in float64, so that float32
    # results are correctly rounded but for the last bit whichever library computes log, cos and sin.
    bits = np.ascontiguousarray(bits)
    if _compiled(_normal_row, outs, bits, shape=shape, mean=mean, std=std, dtype=dtype):
        return
    words = bits.reshape(-1)
    size = outs[0].size
    if dtype == np.float32:
        u, v = (words[0::2] + 0.5) * 2.0**-32, words[1::2] * 2.0**-32
    else:
        wide = (words[0::2] >> np.uint32(5)) * 2.0**26 + (words[1::2] >> np.uint32(6))
        u, v = (wide[0::2] + 0.5) * 2.0**-53, wide[1::2] * 2.0**-53
    radius, angle = np.sqrt(-2.0 * np.log(u)) * std, 2.0 * math.pi * v
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)
    outs[0][...] = (pairs[:size] + mean).reshape(outs[0].shape)


def _uniform_row(
    outs: Sequence[rows.Spec],
    inputs: Sequence[rows.Spec],
    parts: int,
    shape: tuple[int, ...],
    low: float,
    high: float,
    dtype: Any,
) -> rows.Plan | None:
    n = math.prod(shape)
    if not n or not rows.row_major(inputs):
        return None
    words = rows.Operand(0), rows.Result(0), high - low, low
    return rows.Plan(kernel_of("random", f"uniform_{dtype}"), n, 1, 0, 16, words, work=2 * n)


def _normal_row(
    outs: Sequence[rows.Spec],
    inputs: Sequence[rows.Spec],
    parts: int,
    shape: tuple[int, ...],
    mean: float,
    std: float,
    dtype: Any,
) -> rows.Plan | None:
    n = math.prod(shape)
    if not n or not rows.row_major(inputs):
        return None
    words = (
        rows.Operand(0),
        rows.Result(0),
        n,
        *(x if isinstance(x, Slot) else np.array([x]) for x in (mean, std)),
    )
    return rows.Plan(kernel_of("random", f"normal_{dtype}"), -(-n // 2), 1, 0, 16, words, work=16 * n)


def _distribution(name: str, kernel: Any, row: Any, cuda: Any, **settings: float) -> Primitive:
    return Primitive(
        name,
        lambda bits, shape, dtype, **settings: ((shape, dtype),),
        kernel=kernel,
        flops=lambda bits, shape, **settings: math.prod(shape),
        samples=tuple(
            Sample((Input((4, 4), "counter"),), {"shape": shape, "dtype": dtype, **settings})
            for dtype in FLOATS
            for shape in ((2, 3), (7,))
        ),
        row=row,
        cuda=cuda,
    )


_uniform = _distribution("uniform", _uniform_kernel, _uniform_row, there.uniform, low=-1.0, high=1.0)
_normal = _distribution("normal", _normal_kernel, _normal_row, there.normal, mean=0.0, std=1.0)


def _as_float(value: float) -> float:
    """A Python number as a float; one that changes in every run of a compiled step stays what it is."""
    return value if isinstance(value, float) else float(value)


def _checked_step(step: int) -> int:
    if not 0 <= step < 2**64:
        raise ConfigError(f"step {step}: expected 0 to 2**64 - 1")
    return step


class Stream:
    """A stream of random numbers for one purpose of one run.

    Args:
        seed: a non-negative integer, the run's.
        purpose: what the numbers are for; streams of different purposes are independent.
        step: the step of the run. Each draw within a step has numbers of its own.

    >>> from minigan.ops.random import Stream
    >>> noise = Stream(0, "latent")
    >>> a = noise.at(7).uniform((2,)).numpy()
    >>> b = noise.at(7).uniform((3,)).numpy()
    >>> (a == b[:2]).all()
    np.True_
    """

    def __init__(self, seed: int, purpose: str, step: int = 0) -> None:
        import hashlib  # here, because it loads OpenSSL, which `import minigan` does not need

        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ConfigError(f"seed {seed!r}: expected a non-negative integer")
        self.seed, self.purpose, self.step = int(seed), purpose, _checked_step(step)
        key = hashlib.sha256(f"{self.seed}/{purpose}".encode()).digest()[:8]
        self._key = np.frombuffer(key, "<u4").astype(np.uint32)
        self._draw = 0

    def at(self, step: int) -> "Stream":
        """The same stream at another step, before its first draw.

        `GraphError` in a step that is being compiled, where it would be that step for ever: pass the stream in.
        """
        if state.recorder is not None:
            raise GraphError(
                f"{self.purpose}: at({step}) in a step that is being compiled: pass the step's stream as an argument"
            )
        there = copy.copy(self)  # which spares hashing the key anew, at every step of a run
        there.step, there._draw = _checked_step(step), 0
        return there

    def child(self, name: str) -> "Stream":
        """An independent stream for a part of this purpose, at the same step."""
        part = Stream(self.seed, f"{self.purpose}/{name}")
        host(lambda: part.seek(self.step))
        return part

    def seek(self, step: int) -> None:
        """Go to a step, before its first draw."""
        self.step, self._draw = _checked_step(step), 0

    @property
    def place(self) -> tuple[int, str, int, Array, int]:
        """All that decides about the next number; setting it makes this stream go on where another is."""
        return self.seed, self.purpose, self.step, self._key, self._draw

    @place.setter
    def place(self, place: tuple[int, str, int, Array, int]) -> None:
        self.seed, self.purpose, self.step, self._key, self._draw = place

    def bits(self, blocks: int, device: str | None = None) -> Tensor:
        """Random words, uint32 (blocks, 4), of the next draw, on a device, by default the CPU: the same on all."""
        counter = Tensor(host(self._next, device_name(device)))
        return apply(_bits, counter, blocks=blocks)  # type: ignore[no-any-return]

    def _next(self) -> Array:
        """The counter of the next draw."""
        counter = np.empty(_COUNTER_WORDS, np.uint32)
        counter[:2] = self._key
        counter[2:] = self._draw, self.step & 0xFFFFFFFF, self.step >> 32
        self._draw += 1
        return counter

    def uniform(
        self,
        shape: Sequence[int],
        low: float = 0.0,
        high: float = 1.0,
        dtype: Any = np.float32,
        device: str | None = None,
    ) -> Tensor:
        """Uniform numbers from low to high, with 24 random bits in float32 and 53 in float64: the same on all devices.

        `DTypeError` for another dtype, `DeviceError` for a device that is not there.
        """
        return self._draw_floats(_uniform, shape, dtype, device, low=float(low), high=float(high))

    def normal(
        self,
        shape: Sequence[int],
        mean: float = 0.0,
        std: float = 1.0,
        dtype: Any = np.float32,
        device: str | None = None,
    ) -> Tensor:
        """Normal numbers of the given mean and standard deviation (Box and Muller 1958). Errors as for `uniform`.

        On another device they may differ in the last bits.
        """
        return self._draw_floats(_normal, shape, dtype, device, mean=_as_float(mean), std=_as_float(std))

    def permutation(self, n: int) -> Array:
        """The numbers 0 .. n - 1 in random order, int64."""
        keys = self.bits(-(-n // 2)).numpy().reshape(-1)[: 2 * n]
        return np.argsort(keys[0::2].astype(np.uint64) << np.uint64(32) | keys[1::2], kind="stable")

    def _draw_floats(
        self, primitive: Primitive, shape: Sequence[int], dtype: Any, device: str | None, **settings: float
    ) -> Tensor:
        wanted = np.dtype(dtype)
        if wanted not in FLOATS:
            raise DTypeError(f"{primitive.name}: dtype {wanted}: expected float32 or float64")
        words = math.prod(shape) * wanted.itemsize // 4
        bits = self.bits(-(-words // 4), device)
        return apply(primitive, bits, shape=tuple(shape), dtype=wanted, **settings)  # type: ignore[no-any-return]


def dropout(x: TensorLike, rate: float, random: Stream) -> Tensor:
    """x with each element set to 0 with probability `rate` and the others divided by 1 - rate.

    Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov 2014, scaled while training. `ConfigError` for a
    rate outside 0 <= rate < 1.

    >>> import minigan as mg
    >>> from minigan.ops.random import Stream
    >>> mg.ops.dropout(mg.tensor([1.0] * 6), 0.5, Stream(0, "dropout")).numpy().max()
    np.float32(2.0)
    """
    if not 0 <= rate < 1:
        raise ConfigError(f"dropout: rate {rate} is not in 0 <= rate < 1")
    x = lift(x)
    with no_grad():
        kept = random.uniform(x.shape, dtype=np.float32, device=x.device) >= rate
    return where(kept, x * (1.0 / (1.0 - rate)), 0.0)
