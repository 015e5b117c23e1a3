"""Reductions, running sums and sorting on a GPU, against those of the CPU."""

import math

import numpy as np
import pytest
from harness import draw_arrays, with_edges
from hypothesis import given, strategies as st

import minigan as mg
from minigan.backend import FLOATS, cuda
from minigan.cuda.launch import THREADS, Launch, Operand, Result, Scratch, run, scratch_of
from minigan.cuda.reduce import State, layout_of, text
from minigan.cuda.sort import TILE
from minigan.registry import primitives
from minigan.tape import apply

ALONG_AXES = ("sum", "mean", "max", "min", "norm", "logsumexp", "softmax")
NAMES = (*ALONG_AXES, "argmax", "argsort", "cumsum", "all_finite")
BY_NAME = {p.name: p for p in primitives() if p.name in NAMES}
EDGES = (0.0, -0.0, 1e-37, 1e4, -1e4, math.inf, -math.inf, math.nan)
TOLERANCE = {np.dtype(np.float32): 2e-5, np.dtype(np.float64): 1e-13}
LAYOUTS = ("C", "F", "reversed", "strided", "repeated")


def there(array, layout="C"):
    """A tensor of the card with the array's values, or for "repeated" its first row's, in a layout."""
    if layout == "F":
        return mg.tensor(np.ascontiguousarray(array.T)).to("cuda").transpose(*range(array.ndim)[::-1])
    if layout == "reversed" and array.ndim:
        back = (slice(None, None, -1),) * array.ndim
        return mg.tensor(array[back]).to("cuda")[back]
    if layout == "strided" and array.ndim:
        every = (slice(None, None, 2),) * array.ndim
        wide = np.full([2 * n for n in array.shape], math.nan, array.dtype)
        wide[every] = array
        return mg.tensor(wide).to("cuda")[every]
    if layout == "repeated" and array.ndim:
        return mg.ops.broadcast_to(mg.tensor(array[:1]).to("cuda"), array.shape)
    return mg.tensor(array).to("cuda")


def check(name, attributes, *inputs):
    """The primitive gives on the card what it gives on the CPU."""
    primitive = BY_NAME[name]
    tensors = [x if isinstance(x, mg.Tensor) else there(x) for x in inputs]
    arrays = [x.numpy() for x in tensors]
    with np.errstate(all="ignore"):
        result = apply(primitive, *tensors, **attributes)
        own = apply(primitive, *map(mg.tensor, arrays), **attributes).numpy()
        wide, sizes = (
            apply(primitive, *[mg.tensor(f(a.astype(np.float64))) for a in arrays], **attributes).numpy()
            for f in (np.asarray, np.abs)
        )
    assert result.device == "cuda:0"
    found = result.numpy()
    where = f"{name} of {[(a.shape, str(a.dtype)) for a in arrays]}, {attributes}"
    assert found.shape == own.shape and found.dtype == own.dtype, where
    if found.dtype not in FLOATS or name in ("max", "min"):
        np.testing.assert_array_equal(found, own, err_msg=where)
        return found
    finite = np.isfinite(own)
    np.testing.assert_array_equal(found[~finite], own[~finite], err_msg=where)
    limit = TOLERANCE[found.dtype] * (sizes if name not in ("logsumexp", "softmax") else np.abs(wide) + 1)
    limit = limit + getattr(
        np.finfo(found.dtype), "tiny" if found.dtype == np.float32 else "smallest_subnormal"
    )
    with np.errstate(invalid="ignore"):
        wrong = finite & ~(np.abs(found - wide) <= limit)
    assert not wrong.any(), (
        f"{where}: {found[wrong][:3]}, expected {wide[wrong][:3]} within {limit[wrong][:3]}"
    )
    return found


@pytest.mark.parametrize("name", NAMES)
def test_samples_with_edges(name, device):
    random = np.random.default_rng(1)
    for k, sample in enumerate(BY_NAME[name].samples):
        arrays = draw_arrays(sample, random, FLOATS[k % 2])
        check(name, sample.attributes, *arrays)
        if name == "max" or not sample.edges:
            continue
        for _ in range(10):
            check(name, sample.attributes, *[with_edges(a, sample, random) for a in arrays])


def attributes_of(name, shape, axes, random):
    """The attributes of a call that reduces these axes, or `None` where it may not."""
    if name == "all_finite":
        return {}
    if name in ALONG_AXES:
        if name in ("max", "min") and any(shape[a] == 0 for a in axes):
            return None
        keep = {} if name == "softmax" else {"keepdims": bool(random.integers(2))}
        return {"axes": axes, **keep}
    if not shape:
        return None
    axis = axes[0] if axes else 0
    other = {
        "argsort": {"descending": bool(random.integers(2))},
        "cumsum": {"reverse": bool(random.integers(2))},
    }
    return None if name == "argmax" and not shape[axis] else {"axis": axis, **other.get(name, {})}


def drawn(random, shape, dtype, edges):
    """Numbers with ties, and edges among them."""
    array = np.asarray(np.round(random.normal(size=shape) * 8) / 4, dtype)
    if edges:
        np.putmask(array, random.random(shape) < 0.02, random.choice(np.array(EDGES, dtype), shape))
    return array


def check_drawn(name, seed):
    """Any shape, axes and layout, each dtype, without and with edges; inputs stay as they are."""
    random = np.random.default_rng([seed, *name.encode()])
    shape = tuple(random.choice((1, 2, 5, 33, 300), random.integers(4)).tolist())
    if random.random() < 0.1 and shape:
        shape = (*shape[:-1], 0)
    if math.prod(shape) > 30_000:
        shape = shape[1:]
    axes = tuple(a for a in range(len(shape)) if random.integers(2))
    attributes = attributes_of(name, shape, axes, random)
    if attributes is None:
        return
    layout, dtype = LAYOUTS[random.integers(len(LAYOUTS))], FLOATS[random.integers(2)]
    for edges in (False, True):
        x = there(drawn(random, shape, dtype, edges), layout)
        before = x.numpy().copy()
        check(name, attributes, x)
        np.testing.assert_array_equal(x.numpy(), before)


@pytest.mark.parametrize("name", NAMES)
def test_any_shape_axes_and_layout(name, device):
    for seed in range(2):
        check_drawn(name, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_shapes_axes_and_layouts(name, device):
    for seed in range(2, 60):
        check_drawn(name, seed)


# Each way that threads are laid out: shape, axes, launches of one number a row.
WAYS = {
    "a block for each row": ((3, 700), (1,), 1),
    "several rows in a block": ((70, 9), (1,), 1),
    "a thread for each row": ((2, 300), (0,), 1),
    "columns": ((200, 40), (0,), 1),
    "one number in parts": ((20_000,), (0,), 2),
    "few rows in parts": ((2, 9_000), (1,), 2),
    "few columns in parts": ((9_000, 3), (0,), 2),
    "columns in parts": ((3_000, 40), (0,), 2),
    "axes that do not join": ((7, 30, 50), (0, 2), 1),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["sum", "softmax"])
def test_every_layout_of_threads(name, way, device):
    shape, axes, launches = WAYS[way]
    random = np.random.default_rng(3)
    x = drawn(random, shape, np.float32, edges=False)
    attributes = attributes_of(name, shape, axes, random)
    out = np.empty(BY_NAME[name].infer(x, **attributes)[0][0], np.float32)
    plan = BY_NAME[name].plan([out], [x], attributes)
    assert len(plan) == launches and bool(scratch_of(plan)) == (launches > 1)
    found = check(name, attributes, x)
    np.testing.assert_array_equal(check(name, attributes, x), found)  # bit for bit in every run
    x.reshape(-1)[[5, 80]] = math.inf, math.nan
    check(name, attributes, x)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("mean", "float32"),
        ("max", "float64"),
        ("norm", "float32"),
        ("norm", "float64"),
        ("argmax", "float32"),
    ],
)
def test_long_rows_in_parts(name, dtype, device):
    random = np.random.default_rng(4)
    x = drawn(random, (2, 9_000), dtype, edges=False)
    x[0, [100, 8_000]] = 77  # a tie over parts
    attributes = {"axis": 1} if name == "argmax" else {"axes": (1,), "keepdims": False}
    found = check(name, attributes, x)
    if name == "argmax":
        assert found[0] == 100
        x[1, [4_000, 8_500]] = math.nan
        assert check(name, attributes, x)[1] == 4_000


@pytest.mark.parametrize("name", ["sum", "softmax", "cumsum", "argmax", "argsort"])
def test_blocks_take_several_groups_of_rows(name, device):
    """A grid has a largest size, from which on blocks come back for more; so they do here, in a small one."""
    random = np.random.default_rng(10)
    for shape, axis in (((9, 300), 1), ((300, 90), 0)):
        x = drawn(random, shape, np.float32, edges=False)
        attributes = attributes_of(name, shape, (axis,), random)
        expected = check(name, attributes, x)
        plan = [
            step._replace(blocks=min(step.blocks, 2))
            for step in BY_NAME[name].plan([expected], [x], attributes)
        ]
        (out,) = cuda.empty([(expected.shape, expected.dtype)], "cuda:0")
        run(plan, [out], [there(x).array])
        np.testing.assert_array_equal(cuda.fetch(out), expected)


@given(st.integers(1, 1 << 40), st.integers(0, 1 << 40), st.booleans())
def test_layouts_cover_each_term_once(rows, terms, along):
    layout = layout_of(rows, terms, along)
    assert layout.lanes in {1 << k for k in range(9)} and layout.lanes <= THREADS
    assert (layout.parts - 1) * layout.share < max(terms, 1) and layout.parts * layout.share >= terms
    assert 1 <= layout.blocks < 1 << 17
    assert along or rows < 32 or THREADS // layout.lanes >= 32  # a warp reads neighbouring rows


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", ["tiny", "smallest_subnormal", "max"])
def test_norms_neither_overflow_nor_vanish(dtype, scale, device):
    unit = getattr(np.finfo(dtype), scale)
    random = np.random.default_rng(5)
    ratios = random.integers(1, 9, 300) / (1 if scale != "max" else 1000)
    x = (ratios * float(unit)).astype(dtype)
    (found,) = mg.ops.norm(there(x[None]), axis=1).numpy()
    if scale == "smallest_subnormal" and dtype == np.float32:  # which are 0 there
        assert found == 0
        return
    exact = float(unit) * math.hypot(*(x.astype(np.longdouble) / np.longdouble(unit)).astype(np.float64))
    assert abs(float(found) / exact - 1) < (
        1e-2 if scale == "smallest_subnormal" else TOLERANCE[np.dtype(dtype)]
    )
    for order in (np.sort(x), np.sort(x)[::-1]):  # the unit changes often, or never
        assert abs(float(mg.ops.norm(there(order)).numpy()) / exact - 1) < 1e-2
    for bad in (math.inf, -math.inf, math.nan):
        x[7] = bad
        np.testing.assert_array_equal(mg.ops.norm(there(x)).numpy(), abs(bad))


@pytest.mark.parametrize("dtype", FLOATS)
def test_exponentials_of_rising_rows(dtype, device):
    x = np.linspace(-3, 500, 6_000).astype(dtype)  # where a running maximum would change with every term
    for row in (x, x[::-1].copy(), np.linspace(0, 1, 6_000).astype(dtype)):
        check("logsumexp", {"axes": (0,), "keepdims": False}, row)
        check("softmax", {"axes": (0,)}, row)


def test_reductions_of_nothing(device):
    empty = np.empty((3, 0), np.float32)
    for name, value in (("sum", 0), ("mean", math.nan), ("norm", 0), ("logsumexp", -math.inf)):
        found = check(name, {"axes": (1,), "keepdims": False}, empty)
        np.testing.assert_array_equal(found, np.full(3, value))
    assert mg.ops.softmax(there(empty)).shape == (3, 0)
    assert not np.signbit(check("sum", {"axes": (0,), "keepdims": False}, np.float32([-0.0]))).any()
    assert np.signbit(check("cumsum", {"axis": 0, "reverse": False}, np.float32([-0.0, -0.0]))).all()


def test_a_row_without_exponentials_has_softmax_zero(device):
    x = np.full((2, 5), -math.inf, np.float32)
    x[1, 3] = 0
    np.testing.assert_array_equal(mg.ops.softmax(there(x)).numpy(), [[0] * 5, [0, 0, 0, 1, 0]])
    x[0, 2] = math.nan
    assert np.isnan(mg.ops.softmax(there(x)).numpy()[0]).all()


@pytest.mark.parametrize("n", [TILE - 1, TILE, TILE + 1, 2 * TILE + 3, 5 * TILE])
@pytest.mark.parametrize("descending", [False, True])
def test_sorting_in_tiles_and_merges(n, descending, device):
    random = np.random.default_rng(n)
    x = random.integers(-9, 9, (2, n)).astype(np.float32)
    np.putmask(x, random.random(x.shape) < 0.2, random.choice(np.float32(EDGES), x.shape))
    for axis, layout in ((1, "C"), (0, "F"), (1, "reversed")):
        array = np.ascontiguousarray(x.T) if axis == 0 else x
        check("argsort", {"axis": axis, "descending": descending}, there(array, layout))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((3, 700), 1), ((700, 3), 0), ((2, 300, 2), 1), ((5, 3000), 0)])
def test_running_sums_over_tiles(shape, axis, reverse, device):
    x = drawn(np.random.default_rng(6), shape, np.float32, edges=False)
    check("cumsum", {"axis": axis, "reverse": reverse}, x)
    x.reshape(-1)[[40, 90]] = math.inf, math.nan
    check("cumsum", {"axis": axis, "reverse": reverse}, x)


def test_all_finite_of_many_arrays_in_few_launches(device):
    shapes = [(3,), (), (0, 4), (5, 7), (300,), (2, 3, 4)] * 40
    arrays = [there(np.ones(shape, FLOATS[k % 2]), LAYOUTS[k % 4]) for k, shape in enumerate(shapes)]
    arrays.append(there(np.ones(30_000, np.float32)))
    plan = BY_NAME["all_finite"].plan([np.empty((), bool)], [x.array for x in arrays], {})
    assert len(plan) == 3 and all(len(step.words) < 512 for step in plan)
    assert mg.ops.all_finite(arrays).item()
    for where, bad in ((0, math.nan), (1, math.inf), (len(arrays) - 1, -math.inf), (76, math.nan)):
        changed = arrays[where].numpy().copy()
        changed.reshape(-1)[-1] = bad
        assert not mg.ops.all_finite([*arrays[:where], there(changed), *arrays[where + 1 :]]).item()
    assert mg.ops.all_finite([there(np.float32([1e38, 0, -0.0, 1e-45]))]).item()
    assert mg.ops.all_finite([there(np.empty(0, np.float32))]).item()


@pytest.mark.parametrize("name", [*ALONG_AXES, "cumsum"])
def test_derivatives_are_those_of_the_cpu(name, device):
    random = np.random.default_rng(8)
    primitive = BY_NAME[name]
    for sample in primitive.samples[:2]:
        (x,) = draw_arrays(sample, random, np.float64)
        v = random.normal(size=primitive.infer(x, **sample.attributes)[0][0])

        def derivatives(make, sample=sample, x=x, v=v):
            a, b = make(x), make(v)
            (first,) = mg.grad(apply(primitive, a, **sample.attributes), a, b, create_graph=True)
            return [first, *mg.grad((first * first).sum(), [a, b])]

        for found, expected in zip(derivatives(there), derivatives(mg.tensor), strict=True):
            assert found.device == "cuda:0"
            np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("shape", "along"), [((30, 500), True), ((500, 30), False), ((1, 20_000), True)])
def test_a_computation_in_front_of_two_sums(shape, along, device):
    """What a fused loop does: terms are computed where they are summed, several sums at once."""
    x = np.random.default_rng(9).normal(size=shape).astype(np.float32)
    rows, terms = shape if along else shape[::-1]
    state = State(
        "double first; double second;",
        "{0.0, 0.0}",
        "a.first += v; a.second += w;",
        "a.first += b.first; a.second += b.second;",
    )
    parameters = ["const float32* x", "float32* y", "double scale", "long long across", "long long down"]
    where = ["const float32* own = x + row * across;"]
    term = ["const float32 v = exp_float32(own[r * down]) * s, w = v * v;", state.take]
    result = ["y[2 * row] = a.first;", "y[2 * row + 1] = a.second;"]
    constant = ["const float32 s = scale;"]
    layout = layout_of(rows, terms, along)
    words = (Operand(0), Result(0), 0.5, *((terms, 1) if along else (1, rows)))
    if layout.parts == 1:
        kernel = text("fused", layout, state, parameters, where, term, result, constants=constant)
        plan = [Launch("fused", kernel, layout.blocks, THREADS, (*words, *layout.words))]
    else:
        more = Scratch(0, rows * layout.parts * state.nbytes), layout.parts
        kernel = text("fused", layout, state, parameters, where, term, constants=constant)
        plan = [Launch("fused", kernel, layout.blocks, THREADS, (*words, *layout.words, *more))]
        last = layout_of(rows, layout.parts, along=True)._replace(terms=terms, parts=1, share=terms)
        kernel = text("joined", last, state, ["float32* y"], result=result)
        plan.append(Launch("joined", kernel, last.blocks, THREADS, (Result(0), *last.words, *more)))
    (out,) = cuda.empty([((rows, 2), np.float32)], "cuda:0")
    run(plan, [out], [there(x).array])
    v = 0.5 * np.exp(x.astype(np.float64))
    exact = np.stack([(v**k).sum(1 if along else 0) for k in (1, 2)], -1)
    np.testing.assert_allclose(cuda.fetch(out), exact, rtol=2e-5)


def test_sums_are_in_double(device):
    x = np.full(1 << 16, 0.1, np.float32)
    x[0] = 1e7
    exact = math.fsum(x.astype(np.float64))
    assert float(mg.ops.sum(there(x)).numpy()) == np.float32(exact)
