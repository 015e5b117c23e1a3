"""Products and convolutions on a GPU: against the CPU's, in every layout, parted in every way."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import minigan as mg
from minigan import ops
from minigan.backend import cuda
from minigan.cuda import conv as on_gpu, product
from minigan.cuda.launch import Launch, Product, scratch_of
from minigan.linear import MATMUL
from minigan.ops.conv import CONV, CONV_TRANSPOSE, CONV_WEIGHT
from minigan.ops.shape import _einsum
from minigan.tape import Primitive, apply

TRIAD = (CONV, CONV_TRANSPOSE, CONV_WEIGHT)
PRIMITIVES = (MATMUL, _einsum, *TRIAD)
DTYPES = ("float32", "float64")
LAYOUTS = ("C", "F", "reversed", "backwards", "strided", "inside", "repeated", "overlapping")
PROPERTY = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def placed(array: np.ndarray, layout: str) -> tuple[np.ndarray, mg.Tensor]:
    """An array, and a tensor on the GPU with its values in that layout; NaN lies between and around them."""
    if layout == "repeated":
        array = np.broadcast_to(array[: 1 if array.ndim else None], array.shape)
        view = mg.tensor(array[:1], device="cuda").array
        return array, mg.Tensor(cuda.broadcast_to(view, array.shape))
    if layout == "overlapping" and array.size and array.ndim > 1:  # each row is the one before, one place on
        rows, columns = array.shape[-2:]
        line = np.resize(array, (*array.shape[:-2], rows + columns - 1))
        there = mg.tensor(line, device="cuda").array
        strides = (*there.strides, there.strides[-1])
        view = cuda.within(there, 0, array.shape, array.dtype, strides)
        return np.lib.stride_tricks.as_strided(line, array.shape, strides).copy(), mg.Tensor(view)
    if layout == "backwards":  # the first axis alone
        first = (slice(None, None, -1),) if array.ndim else ()
        return array, mg.Tensor(mg.tensor(array[first], device="cuda").array[first])
    if layout == "F":
        return array, mg.Tensor(mg.tensor(array.T, device="cuda").array.transpose())
    if layout in ("C", "overlapping"):
        return array, mg.tensor(array, device="cuda")
    key, wider = {
        "reversed": (slice(None, None, -1), 0),
        "strided": (slice(1, None, 3), 2),
        "inside": (slice(1, -1), 0),
    }[layout]
    shape = [n * (1 + wider) + 2 * (layout == "inside") for n in array.shape]
    whole = np.full(shape, np.nan, array.dtype)
    keys = (key,) * array.ndim
    whole[keys] = array
    return array, mg.Tensor(mg.tensor(whole, device="cuda").array[keys])


def close(found: mg.Tensor, exact: np.ndarray, terms: np.ndarray, what: Any) -> None:
    """Within rounding of the sum of absolute terms."""
    assert found.shape == exact.shape and found.device == "cuda:0", what
    limit = (2e-5 if found.dtype == np.float32 else 1e-13) * terms
    error = np.abs(found.numpy() - exact)
    assert np.all(error <= limit + 1e-300), f"{what}: {error.max()} for {found.dtype}"


def check(primitive: Primitive, given: Sequence[tuple[np.ndarray, mg.Tensor]], **attributes: Any) -> None:
    """The GPU's result is the CPU's in float64, and comes out in the same bits again."""
    wide = [a.astype(np.float64) for a, _ in given]
    exact = apply(primitive, *map(mg.tensor, wide), **attributes).numpy()
    terms = apply(primitive, *[mg.tensor(np.abs(a)) for a in wide], **attributes).numpy()
    tensors = [x for _, x in given]
    found = apply(primitive, *tensors, **attributes)
    what = f"{primitive.name} of {[(x.shape, x.array.strides) for x in tensors]}, {attributes}"
    close(found, exact, terms, what)
    again = apply(primitive, *tensors, **attributes)
    assert found.numpy().tobytes() == again.numpy().tobytes(), what


def shaped(random: np.random.Generator, shape: Sequence[int], dtype: str) -> np.ndarray:
    return random.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("primitive", PRIMITIVES, ids=lambda p: p.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_in_every_layout(primitive: Primitive, dtype: str, device: str) -> None:
    random = np.random.default_rng(0)
    for sample in primitive.samples:
        for layouts in (pair for layout in LAYOUTS for pair in ((layout, "C"), ("F", layout))):
            arrays = [shaped(random, x.shape, dtype) for x in sample.inputs]
            drawn = zip(arrays, itertools.cycle(layouts), strict=False)
            check(primitive, [placed(a, layout) for a, layout in drawn], **sample.attributes)


# The matrix product


@st.composite
def factors(draw: Any) -> tuple[list[tuple[int, ...]], bool, bool]:
    stack = draw(st.lists(st.integers(0, 3), max_size=3))
    m, n, k = (draw(st.integers(0, 4)) for _ in range(3))
    shapes: list[tuple[int, ...]] = []
    ta, tb = draw(st.booleans()), draw(st.booleans())
    for matrix in ((k, m) if ta else (m, k), (n, k) if tb else (k, n)):
        own = [draw(st.sampled_from([1, size])) for size in stack]
        shapes.append((*own[draw(st.integers(0, len(own))) :], *matrix))
    return shapes, ta, tb


@given(
    factors(),
    st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)),
    st.sampled_from(DTYPES),
    st.data(),
)
@PROPERTY
def test_products(device: str, drawn: Any, layouts: Any, dtype: str, data: Any) -> None:
    shapes, ta, tb = drawn
    random = np.random.default_rng(1)
    given = []
    for shape, layout in zip(shapes, layouts, strict=True):
        order = data.draw(st.permutations(range(len(shape))))  # axes of a stack that lie in another order
        a, x = placed(shaped(random, [shape[axis] for axis in order], dtype), layout)
        back = tuple(int(axis) for axis in np.argsort(order))
        given.append((a.transpose(back), mg.Tensor(x.array.transpose(back))))
    few = data.draw(st.sampled_from([1, product.FEW]))
    with mock.patch.object(product, "FEW", few):
        check(MATMUL, given, ta=ta, tb=tb)


def plan_of(primitive: Primitive, *inputs: product.Block, **attributes: Any) -> Sequence[Any]:
    """The plan of a call of which only shapes, strides and dtypes are known."""
    (spec,) = primitive.infer(*inputs, **attributes)
    return primitive.plan([product.dense(*spec)], inputs, attributes)


def of(*shape: int, order: Sequence[int] | None = None) -> product.Block:
    """The form of a float32 array, its axes transposed from C order."""
    a = np.empty(shape, np.float32)
    a = a if order is None else a.transpose(order)
    return product.Block(a.shape, a.strides, a.dtype)


@pytest.mark.parametrize(
    ("a", "b", "transposed", "steps"),
    [
        (of(64, 100), of(100, 32), (False, False), ["product of 1"]),
        (of(64, 100), of(32, 100), (False, True), ["product of 1"]),
        (of(100, 64, order=(1, 0)), of(100, 32), (False, False), ["product of 1"]),
        # A stack of equal steps is one batch, as is one matrix for all; four heads of eight samples are not.
        (of(8, 4, 5, 6), of(8, 4, 6, 7), (False, False), ["product of 32"]),
        (of(8, 4, 5, 6), of(6, 7), (False, False), ["product of 32"]),
        (of(8, 5, 4, 6, order=(0, 2, 1, 3)), of(8, 4, 6, 7), (False, False), ["product of 8"] * 4),
        (of(80, 5, 40, 6, order=(0, 2, 1, 3)), of(80, 40, 6, 7), (False, False), ["copy", "product of 3200"]),
        # Neither rows nor columns of neighbours.
        (of(6, 8, 5, order=(2, 0, 1)), of(8, 7), (False, False), ["copy", "product of 5"]),
    ],
)
def test_how_products_are_made(a: Any, b: Any, transposed: tuple[bool, bool], steps: list[str]) -> None:
    ta, tb = transposed
    plan = plan_of(MATMUL, a, b, ta=ta, tb=tb)
    found = [
        f"product of {step.batch}" if isinstance(step, Product) else step.name.removesuffix("_kernel")
        for step in plan
    ]
    assert found == steps


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_terms_make_zeros(dtype: str, device: str) -> None:
    a, b = (mg.tensor(np.empty(shape, dtype), device="cuda") for shape in ((3, 0), (0, 2)))
    assert (a @ b).numpy().tolist() == [[0, 0]] * 3
    x, w = np.ones((2, 3, 3, 0), dtype), np.ones((2, 2, 0, 4), dtype)
    assert not ops.conv(mg.tensor(x, device="cuda"), mg.tensor(w, device="cuda")).numpy().any()
    y = mg.tensor(np.empty((0, 2, 2, 4), dtype), device="cuda")
    x = mg.tensor(np.empty((0, 3, 3, 1), dtype), device="cuda")
    where = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
    gw = apply(CONV_WEIGHT, x, y, kernel=(2, 2), **where)
    assert gw.shape == (2, 2, 1, 4) and not gw.numpy().any()


def test_affine_maps_and_diagonals(device: str) -> None:
    random = np.random.default_rng(2)
    x, w, b = (
        shaped(random, (5, 3), "float32"),
        shaped(random, (3, 4), "float32"),
        shaped(random, (4,), "float32"),
    )
    found = ops.affine(*(mg.tensor(a, device="cuda") for a in (x, w, b)))
    close(found, x.astype(np.float64) @ w + b, np.abs(x) @ np.abs(w) + np.abs(b), "affine")
    s = shaped(random, (4, 4), "float64")
    found = ops.einsum("ii,ij->j", mg.tensor(s, device="cuda"), mg.tensor(s, device="cuda"))
    close(found, np.diag(s) @ s, np.abs(np.diag(s)) @ np.abs(s), "einsum")


# The convolution and its adjoints


@st.composite
def convolutions(draw: Any) -> dict[str, Any]:
    """Sizes that fit together, and the settings."""
    groups = draw(st.integers(1, 3))
    channels, out = (groups * draw(st.sampled_from([1, 2, 4])) for _ in range(2))
    axes: dict[str, list[Any]] = {
        "size": [],
        "kernel": [],
        "stride": [],
        "padding": [],
        "dilation": [],
        "out": [],
    }
    for _ in range(2):
        k, s, d = (draw(st.integers(1, most)) for most in (3, 3, 2))
        before, after = draw(st.integers(0, 3)), draw(st.integers(0, 2))
        least = max(d * (k - 1) + 1 - before - after, 1)
        n = least + draw(st.integers(0, 5))
        values = (n, k, s, (before, after), d, (n + before + after - d * (k - 1) - 1) // s + 1)
        for name, value in zip(axes, values, strict=True):
            axes[name].append(value)
    images = draw(st.integers(0, 3))
    where = {name: tuple(axes[name]) for name in ("stride", "padding", "dilation")} | {"groups": groups}
    x = (images, *axes["size"], channels)
    w = (*axes["kernel"], channels // groups, out)
    return {"x": x, "w": w, "y": (images, *axes["out"], out), "where": where}


@contextmanager
def parted(small: bool) -> Iterator[None]:
    """Windows of a few pixels at a time, and sums of few terms, as of much larger images."""
    sizes = {"BLOCK": 400, "CHUNK": 4, "PARTS": 200} if small else {}
    with mock.patch.multiple(on_gpu, **sizes) if sizes else mock.patch.multiple(on_gpu, BLOCK=on_gpu.BLOCK):
        yield


def calls(drawn: dict[str, Any]) -> list[tuple[Primitive, str, str, dict[str, Any]]]:
    where = drawn["where"]
    return [
        (CONV, "x", "w", where),
        (CONV_TRANSPOSE, "y", "w", where | {"shape": drawn["x"][1:3]}),
        (CONV_WEIGHT, "x", "y", where | {"kernel": drawn["w"][:2]}),
    ]


@given(
    convolutions(), st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS), st.sampled_from(DTYPES), st.booleans()
)
@PROPERTY
def test_convolutions(
    device: str, drawn: dict[str, Any], one: str, other: str, dtype: str, small: bool
) -> None:
    random = np.random.default_rng(3)
    arrays = {name: shaped(random, drawn[name], dtype) for name in "xwy"}
    with parted(small):
        for primitive, left, right, attributes in calls(drawn):
            check(primitive, [placed(arrays[left], one), placed(arrays[right], other)], **attributes)


EXAMPLE = {
    "x": (3, 6, 5, 4),
    "w": (3, 2, 2, 6),
    "y": (3, 3, 4, 6),
    "where": {"stride": (2, 2), "padding": ((1, 0), (2, 2)), "dilation": (1, 2), "groups": 2},
}
DEPTHWISE = EXAMPLE | {"w": (3, 2, 1, 8), "y": (3, 3, 4, 8), "where": EXAMPLE["where"] | {"groups": 4}}  # type: ignore[operator]
POINTS = {
    "x": (3, 6, 5, 4),
    "w": (1, 1, 4, 2),
    "y": (3, 6, 5, 2),
    "where": {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1},
}


@pytest.mark.parametrize("drawn", [EXAMPLE, DEPTHWISE, POINTS], ids=["grouped", "depthwise", "pointwise"])
@pytest.mark.parametrize("small", [False, True])
def test_what_is_not_finite_stays_so(drawn: dict[str, Any], small: bool, device: str) -> None:
    random = np.random.default_rng(4)
    with parted(small), np.errstate(all="ignore"):
        for (primitive, left, right, attributes), value, which in itertools.product(
            calls(drawn), (np.inf, -np.inf, np.nan), (0, 1)
        ):
            arrays = [shaped(random, drawn[name], "float32") for name in (left, right)]
            arrays[which][tuple(n // 2 for n in arrays[which].shape)] = value
            expected = apply(primitive, *map(mg.tensor, arrays), **attributes).numpy()
            found = apply(primitive, *[mg.tensor(a, device="cuda") for a in arrays], **attributes).numpy()
            finite = np.isfinite(expected)
            assert not finite.all()
            np.testing.assert_array_equal(found[~finite], expected[~finite])
            np.testing.assert_allclose(found[finite], expected[finite], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "case", [*calls(EXAMPLE), *calls(DEPTHWISE), *calls(POINTS)], ids=lambda case: f"{case[0].name}"
)
def test_derivatives_of_both_orders(case: Any, device: str) -> None:
    primitive, left, right, attributes = case
    drawn = {4: DEPTHWISE, 2: EXAMPLE, 1: POINTS}[attributes["groups"]]
    derivatives(primitive, [drawn[left], drawn[right]], attributes)


@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_derivatives_of_products(ta: bool, tb: bool, device: str) -> None:
    shapes = [(2, 5, 3) if ta else (2, 3, 5), (2, 4, 5) if tb else (2, 5, 4)]
    derivatives(MATMUL, shapes, {"ta": ta, "tb": tb})


def derivatives(primitive: Primitive, shapes: list[Any], attributes: dict[str, Any]) -> None:
    """Two orders, each for cotangents drawn anew, are the CPU's."""
    found = []
    for device in ("cpu", "cuda"):
        random = np.random.default_rng(5)

        def draw(shape: Sequence[int], random: Any = random, device: str = device) -> mg.Tensor:
            return mg.tensor(random.standard_normal(shape), device=device)

        xs = [draw(shape) for shape in shapes]
        y = apply(primitive, *xs, **attributes)
        v = draw(y.shape)
        first = mg.grad(y, xs, v, create_graph=True)
        second = mg.grad(first, [*xs, v], [draw(g.shape) for g in first])
        assert all(g.device == y.device for g in (*first, *second))
        found.append([g.numpy() for g in (y, *first, *second)])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-12 * np.abs(a).max())


def test_memory_is_bounded_and_sums_are_short() -> None:
    """The layers of a DCGAN of 64 x 64 pixels with 1024 images at a time."""
    for size, channels, out in ((64, 3, 64), (32, 64, 128), (16, 128, 256), (8, 256, 512)):
        x, w, y = of(1024, size, size, channels), of(5, 5, channels, out), of(1024, size // 2, size // 2, out)
        where = {"stride": (2, 2), "padding": ((2, 2), (2, 2)), "dilation": (1, 1), "groups": 1}
        plans = [
            plan_of(CONV, x, w, **where),
            plan_of(CONV_TRANSPOSE, y, w, shape=(size, size), **where),
            plan_of(CONV_WEIGHT, x, y, kernel=(5, 5), **where),
        ]
        for plan in plans:
            assert sum(scratch_of(plan).values()) <= 3 << 27
            assert len(plan) < 100
        products = [step for step in plans[2] if isinstance(step, Product)]
        assert sum(p.sizes[2] * p.batch for p in products) == 1024 * (size // 2) ** 2
        assert max(p.sizes[2] for p in products) <= on_gpu.CHUNK


def test_what_lies_right_is_not_copied() -> None:
    """A kernel of one tap is a product of the images as they are."""
    for primitive, left, right, attributes in calls(POINTS):
        plan = plan_of(primitive, of(*POINTS[left]), of(*POINTS[right]), **attributes)  # type: ignore[misc]
        assert not [step for step in plan if isinstance(step, Launch) and step.name != "conv_total_kernel"]


# What is composed of them


@pytest.mark.parametrize(
    "function",
    [
        lambda x: ops.avg_pool(x, 3, stride=1, padding="SAME"),
        lambda x: ops.avg_pool(x, 3, stride=2),
        lambda x: ops.upsample(x, (2, 3)),
        lambda x: ops.pixel_shuffle(x, 2),
        lambda x: ops.batch_norm(x, x[0, 0, 0], x[1, 0, 0] ** 2),
    ],
    ids=["padded mean", "mean", "upsampled", "shuffled", "normalised"],
)
def test_compositions(function: Any, device: str) -> None:
    x = shaped(np.random.default_rng(6), (2, 6, 5, 4), "float32")
    found = function(mg.tensor(x, device="cuda"))
    assert found.device == "cuda:0"
    np.testing.assert_allclose(found.numpy(), function(mg.tensor(x)).numpy(), rtol=2e-5, atol=2e-5)
