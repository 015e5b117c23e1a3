"""One harness for every primitive: it draws calls from a primitive's samples and checks what every primitive owes.

No test is written for one operation. `CHECKS` lists the properties; each takes a primitive and Hypothesis' `data`, and
raises `AssertionError`.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

import minigan as mg
from minigan.backend import FLOATS
from minigan.check import check_adjoint, check_grad, check_kernel
from minigan.tape import Input, Primitive, Sample, apply

# A few examples, each of which calls every sample, and the same ones in every run: what fails on one machine fails on
# all. They are not shrunk, because every new shape may be a new loop to compile.
QUICK = settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
THOROUGH = settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))

LAYOUTS = ("C", "F", "reversed", "strided", "repeated", "misaligned", "swapped")
MARGIN = 0.01  # from kinks: five times the widest step of a difference
FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)


@dataclass
class Draws:
    """Hypothesis' `data`, and whether few examples shall do: then no loop is compiled that only repeats another.

    A loop is compiled for a primitive, a dtype and a layout. The first sample of a pointwise primitive is called in
    both dtypes and to all orders, each other one, which lies in memory in another way, in one dtype, in turn.
    """

    data: Any
    quick: bool

    def draw(self, strategy: Any, label: str | None = None) -> Any:
        return self.data.draw(strategy, label)

    def dtypes(self, primitive: Primitive) -> Callable[[int], Any]:
        """The dtype for each number of a sample."""
        drawn = self.draw(st.sampled_from(FLOATS), label="dtype")
        some = self.quick and primitive.formula is not None
        return lambda k: FLOATS[k % 2] if some and k else drawn

    def layout(self, primitive: Primitive, inputs: int) -> str:
        """A layout of an input. Repeated values are another loop, which is that of a row in all formulas."""
        some = self.quick and inputs == 1 and primitive.formula is not None
        layouts = [x for x in LAYOUTS if x != "repeated"] if some else LAYOUTS
        layout: str = self.draw(st.sampled_from(layouts), label="layout")
        return layout


@dataclass
class Call:
    """One call of a primitive: its arguments as arrays."""

    primitive: Primitive
    sample: Sample
    arrays: list[np.ndarray]

    def __call__(self, *tensors: Any) -> Any:
        return apply(self.primitive, *tensors, **self.sample.attributes)

    def outputs(self, make: Callable[..., Any] = mg.tensor) -> list[Any]:
        """The results as tensors, from new tensors that `make` makes of the arrays."""
        return as_list(self(*map(make, self.arrays)))

    def values(self) -> list[np.ndarray]:
        return [y.numpy() for y in self.outputs()]

    def mapped(self, function: Callable[[np.ndarray], np.ndarray]) -> "Call":
        """The same call with another form of its float arrays."""
        return replace(
            self, arrays=[np.asarray(function(a)) if a.dtype in FLOATS else a for a in self.arrays]
        )


def as_list(results: Any) -> list[Any]:
    return list(results) if isinstance(results, (list, tuple)) else [results]


def differentiable(primitive: Primitive) -> bool:
    return (primitive.vjp is not None or primitive.reference is not None) and not primitive.donates


def run(check: Callable[[Primitive, Any], None], primitive: Primitive, profile: settings = QUICK) -> None:
    """Check one property of one primitive on drawn calls."""
    if profile is QUICK and check is check_derivatives:  # which makes hundreds of calls for each sample
        profile = settings(QUICK, max_examples=2)

    @profile
    @given(st.data())
    def body(data: Any) -> None:
        with np.errstate(all="ignore"):
            check(primitive, Draws(data, profile.max_examples < 10))

    body()


def verify(primitive: Primitive) -> None:
    """Check all properties of one primitive."""
    for check in CHECKS:
        run(check, primitive)


# Drawing calls


def draw_calls(
    primitive: Primitive, data: Draws, dtypes: Callable[[int], Any], shapes: bool = True
) -> Iterator[Call]:
    """A call for every sample, and one of shapes drawn for the purpose if the primitive is pointwise."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    samples = list(primitive.samples)
    if shapes and primitive.formula is not None:
        samples.append(draw_shapes(primitive, data))
    for k, sample in enumerate(samples):
        yield Call(primitive, sample, draw_arrays(sample, random, dtypes(k)))


def draw_shapes(primitive: Primitive, data: Draws) -> Sample:
    sample = primitive.samples[0]
    count = len(sample.inputs)
    if primitive.donates:  # what is overwritten has the result's shape
        drawn = [data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))] * count
    else:
        shapes = hnp.mutually_broadcastable_shapes(num_shapes=count, max_dims=3, min_side=0, max_side=4)
        drawn = list(data.draw(shapes).input_shapes)
    inputs = tuple(x._replace(shape=shape) for x, shape in zip(sample.inputs, drawn, strict=True))
    return replace(sample, inputs=inputs)


def draw_arrays(sample: Sample, random: np.random.Generator, dtype: Any) -> list[np.ndarray]:
    """Values in the sample's ranges, off its kinks."""
    for _ in range(10_000):
        arrays = [draw_array(x, random, dtype) for x in sample.inputs]
        if sample.kink is None:
            return arrays
        if np.abs(sample.kink(*arrays)).min(initial=np.inf) > MARGIN:
            return arrays
    raise AssertionError(f"no values off the kinks of {sample}")


def draw_array(x: Input, random: np.random.Generator, dtype: Any) -> np.ndarray:
    if x.kind == "float":
        return np.asarray(random.uniform(x.low, x.high, x.shape), dtype)
    if x.kind == "bool":
        return np.asarray(random.integers(0, 2, x.shape), np.bool_)
    if x.kind == "index":
        return np.asarray(random.integers(0, int(x.high), x.shape), np.int64)
    return np.asarray(random.integers(0, 2**32, x.shape), np.uint32)


def laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    """The array's values in another layout; "repeated" takes the first value along every axis but the last."""
    if not array.ndim:
        return array
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "reversed":
        back = (slice(None, None, -1),) * array.ndim
        return np.ascontiguousarray(array[back])[back]
    if layout == "strided":
        wide = np.zeros(tuple(2 * n for n in array.shape), array.dtype)
        every = (slice(None, None, 2),) * array.ndim
        wide[every] = array
        return wide[every]
    if layout == "repeated":
        return np.broadcast_to(array[(slice(0, 1),) * (array.ndim - 1)], array.shape)
    if layout == "misaligned":
        memory = np.zeros(array.nbytes + 1, np.uint8)
        shifted = memory[1:].view(array.dtype).reshape(array.shape)
        shifted[...] = array
        return shifted
    if layout == "swapped":
        return array.astype(array.dtype.newbyteorder())
    return np.ascontiguousarray(array).reshape(array.shape)


# What every primitive owes


def check_values(primitive: Primitive, data: Draws) -> None:
    """The kernel gives what NumPy gives for the formula, and what the reference gives."""
    for call in draw_calls(primitive, data, data.dtypes(primitive)):
        check_kernel(primitive, *call.arrays, **call.sample.attributes)


def check_layouts(primitive: Primitive, data: Draws) -> None:
    """Any layout of the inputs gives the bits of the contiguous copy, and the caller's memory is not written to.

    NumPy adds in an order that depends on the layout, and so do the bits of its power. Where a kernel is NumPy's, and
    does arithmetic, results may differ by rounding.
    """
    for call in draw_calls(primitive, data, data.dtypes(primitive)):
        layouts = [
            "C" if i < primitive.donates else data.layout(primitive, len(call.arrays))
            for i in range(len(call.arrays))
        ]
        given = [laid_out(a, layout) for a, layout in zip(call.arrays, layouts, strict=True)]
        plain = replace(call, arrays=[np.array(a, a.dtype.newbyteorder("="), order="C") for a in given])
        before = [a.tobytes() for a in given]
        found = [y.numpy().copy() for y in replace(call, arrays=given).outputs(mg.asarray)]
        changed = [i for i, (a, b) in enumerate(zip(given, before, strict=True)) if a.tobytes() != b]
        assert all(i < primitive.donates for i in changed), f"{primitive.name} writes to its inputs {changed}"
        exact = primitive.kernel is primitive.formula or not primitive.flops(
            *plain.arrays, **call.sample.attributes
        )
        terms = plain.mapped(np.abs).values()
        for y, expected, term in zip(found, plain.values(), terms, strict=True):
            where = f"{primitive.name} of layouts {layouts}, {y.dtype}"
            assert y.shape == expected.shape and y.dtype == expected.dtype, where
            if exact or y.dtype not in FLOATS:
                np.testing.assert_array_equal(bits(y), bits(expected), err_msg=where)
            else:
                limit = 8 * np.finfo(y.dtype).eps * np.nanmax(np.abs(term), initial=1)
                np.testing.assert_allclose(y, expected, rtol=0, atol=limit, err_msg=where)


def bits(array: np.ndarray) -> np.ndarray:
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)


def check_precision(primitive: Primitive, data: Draws) -> None:
    """float32 stays float32 through value, gradient and its gradient, and agrees with float64.

    Errors are relative to the result and to that of the same operation on absolute values: for a sum, Σ|terms|.
    """
    for k, call in enumerate(draw_calls(primitive, data, lambda k: FLOAT32, shapes=not data.quick)):
        if any(isinstance(a, np.dtype) for a in call.sample.attributes.values()):
            continue  # the call says which dtype it wants
        some = data.quick and primitive.formula is not None
        if some and k > 1:
            break  # other ways to lie in memory, which the other checks call in one dtype
        wide = call.mapped(lambda a: a.astype(np.float64))
        triples = zip(call.values(), wide.values(), wide.mapped(np.abs).values(), strict=True)
        for y, exact, terms in triples:
            if exact.dtype not in FLOATS:
                np.testing.assert_array_equal(y, exact)
                continue
            assert y.dtype == FLOAT32, f"{primitive.name} of float32 is {y.dtype}"
            scale = np.maximum(np.abs(exact), np.where(np.isnan(terms), 0, np.abs(terms)))
            good = (np.abs(y - exact) <= 2e-5 * scale + 1e-38) | (np.isnan(y) & np.isnan(exact))
            assert good.all(), f"{primitive.name}: float32 {y!r} against float64 {exact!r}"
        if differentiable(primitive):
            orders = 2 if some and k else 3
            found = zip(gradients(call, orders), gradients(wide, orders), strict=True)
            for order, (g, exact) in enumerate(found):
                for a, b in zip(g, exact, strict=True):
                    assert a.dtype == FLOAT32, f"{primitive.name}: a gradient {order} of float32 is {a.dtype}"
                    limit = 2e-4 * np.abs(b).max(initial=1)
                    np.testing.assert_allclose(
                        a, b, rtol=0, atol=limit, err_msg=f"{primitive.name}: float32 gradient"
                    )


def gradients(call: Call, orders: int) -> list[list[np.ndarray]]:
    """The gradient for cotangents of cosines, and if `orders` is 3 the gradient of its sum."""
    _, *found = all_orders(call, [mg.tensor(a) for a in call.arrays], orders)
    return [[g.numpy() for g in order] for order in found]


def all_orders(call: Call, xs: list[Any], orders: int = 3) -> list[list[Any]]:
    """The results on tensors, and up to two `gradients`, as tensors."""
    results = as_list(call(*xs))
    if not differentiable(call.primitive):
        return [results]
    targets = [x for x in xs if x.dtype in FLOATS]
    ys = [y for y in results if y.dtype in FLOATS]
    seeds = [
        mg.tensor(np.cos(np.arange(y.size)).reshape(y.shape).astype(y.dtype), device=y.device) for y in ys
    ]
    first = mg.grad(ys, targets, seeds, create_graph=orders > 2)
    return [results, first, *([mg.grad([g.sum() for g in first], targets)] if orders > 2 else [])]


def check_derivatives(primitive: Primitive, data: Draws) -> None:
    """Derivatives agree with differences at orders 1 and 2, and 3 where the primitive is smooth."""
    if differentiable(primitive):
        for n, call in enumerate(draw_calls(primitive, data, lambda k: FLOAT64, shapes=False)):
            check_grad(call, *call.arrays, order=3 if primitive.smooth and n == 0 else 2)


def check_adjoints(primitive: Primitive, data: Draws) -> None:
    """<A x, y> = <x, A* y> in the inputs that the primitive is declared linear in."""
    for call in draw_calls(primitive, data, lambda k: FLOAT64):
        linear = [i for i in primitive.linear if call.arrays[i].dtype in FLOATS]
        check_adjoint(call, *call.arrays, linear=linear)


def check_memory(primitive: Primitive, data: Draws) -> None:
    """Inputs are untouched, results and gradients have memory of their own, and a second run gives the same bits."""
    for call in draw_calls(primitive, data, data.dtypes(primitive)):
        xs = [mg.tensor(a) for a in call.arrays]
        ys = as_list(call(*xs))
        for i, (x, a) in enumerate(zip(xs, call.arrays, strict=True)):
            assert i < primitive.donates or x.array.tobytes() == a.tobytes(), (
                f"{primitive.name} writes to its input {i}"
            )
        if primitive.donates:
            assert all(y is x for y, x in zip(ys, xs, strict=False)), (
                f"{primitive.name} does not return what it updates"
            )
        elif primitive.view is None:
            apart(primitive, [*xs, *ys])
        for y, again in zip(ys, call.outputs(), strict=True):
            assert y.array.tobytes() == again.array.tobytes(), f"{primitive.name}: two runs differ"
        if differentiable(primitive):
            targets = [x for x in xs if x.dtype in FLOATS]
            outs = [y for y in ys if y.dtype in FLOATS]
            seeds = [mg.tensor(np.ones(y.shape, y.dtype)) for y in outs]
            first, second = (mg.grad(outs, targets, seeds) for _ in range(2))
            apart(primitive, [*xs, *seeds, *first, *second])
            for g, again in zip(first, second, strict=True):
                assert g.array.tobytes() == again.array.tobytes(), f"{primitive.name}: two gradients differ"


def apart(primitive: Primitive, tensors: list[Any]) -> None:
    for a, b in itertools.combinations(tensors, 2):
        assert not np.shares_memory(a.array, b.array), f"{primitive.name}: two results share memory"


def check_compiled(primitive: Primitive, data: Draws) -> None:
    """A compiled call gives what the call gives, also for other values, and gradients as well.

    Without fusion to the bit. With it values are the formula's own, but for the last bits of its functions, or sums in
    another order; and the bits do not depend on where results lie, nor on threads.
    """
    dtypes = data.draw(st.permutations(FLOATS), label="dtypes")
    for k, call in enumerate(draw_calls(primitive, data, lambda k: dtypes[0])):
        dtype, orders = dtypes[k % 2], 3 if k < 2 else 2
        random = np.random.default_rng(0)
        draws = [draw_arrays(replace(call.sample, kink=None), random, dtype) for _ in range(2)]
        draws.append([with_edges(a, call.sample, random) for a in draws[0]])
        expected = [computed(call, draw, orders) for draw in draws]
        found = replayed(call, draws, orders)
        other = replayed(call, draws, orders, **data.draw(st.sampled_from(VARIANTS), label="options"))
        assert_same_bits(other, found, f"{primitive.name} in another arrangement")
        exact = replayed(call, draws, orders, fuse=False)
        assert_same_bits(exact, expected, f"{primitive.name} without fusion")
        for of_draw, expected_of_draw in zip(found, expected, strict=True):
            for order, (ys, wanted) in enumerate(zip(of_draw, expected_of_draw, strict=True)):
                for y, e in zip(ys, wanted, strict=True):
                    assert_close(y, e, 8 * 16**order, f"{primitive.name}, order {order}")


VARIANTS: tuple[dict[str, Any], ...] = ({"poison": True}, {"plan": False}, {"threads": 3})


def computed(call: Call, arrays: list[np.ndarray], orders: int) -> list[list[np.ndarray]]:
    xs = [mg.tensor(a) for a in arrays]
    return [[y.numpy() for y in order] for order in all_orders(call, xs, orders)]


def replayed(
    call: Call, draws: list[list[np.ndarray]], orders: int, **options: Any
) -> list[list[list[np.ndarray]]]:
    """What one compiled call gives for each of the draws; what it overwrites is held by the step, not passed in."""
    donates = call.primitive.donates
    held = [mg.tensor(a) for a in draws[0][:donates]]
    compiled = mg.compile(lambda *xs: all_orders(call, [*held, *xs], orders), **options)
    found = []
    for arrays in draws:
        for x, a in zip(held, arrays, strict=False):
            np.copyto(x.array, a)
        given = [a.copy() for a in arrays[donates:]]
        found.append([[y.numpy() for y in order] for order in compiled(*given)])
        assert all(a.tobytes() == b.tobytes() for a, b in zip(given, arrays[donates:], strict=True))
    assert len(compiled._programs) == 1
    return found


def with_edges(array: np.ndarray, sample: Sample, random: np.random.Generator) -> np.ndarray:
    changed = array.copy()
    if sample.edges and array.dtype in FLOATS:
        edges = random.choice(np.array(sample.edges, array.dtype), array.shape)
        np.putmask(changed, random.random(array.shape) < 0.5, edges)
    return changed


def assert_same_bits(found: Any, expected: Any, what: str) -> None:
    if isinstance(found, np.ndarray):
        assert found.shape == expected.shape and found.dtype == expected.dtype, what
        same = found.tobytes() == expected.tobytes() or np.array_equal(found, expected, equal_nan=True)
        assert same, f"{what}: {found!r}, expected {expected!r}"
        return
    for a, b in zip(found, expected, strict=True):
        assert_same_bits(a, b, what)


def assert_close(found: np.ndarray, exact: np.ndarray, ulps: float, what: str) -> None:
    assert found.shape == exact.shape and found.dtype == exact.dtype, what
    if found.dtype not in FLOATS:
        np.testing.assert_array_equal(found, exact, err_msg=what)
        return
    finite = exact[np.isfinite(exact)]
    limit = ulps * np.finfo(exact.dtype).eps * np.abs(finite).max(initial=1)
    np.testing.assert_allclose(found, exact, rtol=0, atol=limit, err_msg=what)


def check_edges(primitive: Primitive, data: Draws) -> None:
    """Special values give NaN and infinity where float64 and NumPy give them, and gradients that are NaN no further.

    A gradient may be NaN only where the value is NaN, where an input is NaN, or, in operations that combine several
    numbers, where something is infinite.
    """
    dtype = data.draw(st.sampled_from(FLOATS), label="dtype")
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    for sample in primitive.samples[:1] if primitive.formula is not None else primitive.samples:
        if not sample.edges:
            continue
        if primitive.formula is not None:
            arrays = all_combinations(sample, random, dtype)
            check_kernel(primitive, *arrays, strict=True, **sample.attributes)
        else:
            arrays = draw_arrays(replace(sample, kink=None), random, dtype)
            for a in arrays:
                if a.dtype in FLOATS:
                    np.putmask(
                        a, random.random(a.shape) < 0.3, random.choice(np.array(sample.edges, dtype), a.shape)
                    )
        call = Call(primitive, sample, arrays)
        values, exact = call.values(), call.mapped(lambda a: a.astype(np.float64)).values()
        for y, wide in zip(values, exact, strict=True):
            np.testing.assert_array_equal(
                np.isnan(y), np.isnan(wide), err_msg=f"{primitive.name} of {arrays}"
            )
        if differentiable(primitive):
            check_edge_gradients(call, values)


def all_combinations(sample: Sample, random: np.random.Generator, dtype: Any) -> list[np.ndarray]:
    """Every combination of edges, and of an ordinary value, in the inputs of a pointwise primitive."""
    kinds = [x.kind for x in sample.inputs]
    values = [
        [False, True] if x.kind == "bool" else [*(sample.edges if x.edges is None else x.edges), 0.7]
        for x in sample.inputs
    ]
    columns = zip(*itertools.product(*values), strict=True)
    return [
        np.array(c, np.bool_ if kind == "bool" else dtype) for kind, c in zip(kinds, columns, strict=True)
    ]


def check_edge_gradients(call: Call, values: list[np.ndarray]) -> None:
    xs = [mg.tensor(a) for a in call.arrays]
    targets = [x for x in xs if x.dtype in FLOATS]
    outs = [y for y in as_list(call(*xs)) if y.dtype in FLOATS]
    found = mg.grad(outs, targets, [mg.tensor(np.ones(y.shape, y.dtype)) for y in outs])
    alone = call.primitive.formula is not None and len(targets) == 1
    excuse = np.isnan if alone else lambda a: ~np.isfinite(a)
    excused = [excuse(a) for a in [*values, *(x.array for x in targets)] if a.dtype in FLOATS]
    if call.primitive.formula is None:  # elements meet: one of them excuses all
        excused = [np.any(e) for e in excused if e.shape == values[0].shape]
    excused = np.any(excused, axis=0)
    for i, g in enumerate(found):
        bad = np.isnan(g.numpy()) & ~excused
        assert not bad.any(), (
            f"{call.primitive.name}: the gradient of input {i} is NaN at {[a[bad] for a in call.arrays]}"
            f" where the value is {[y[bad] if y.shape == bad.shape else y for y in values]}"
        )


CHECKS = (
    check_values,
    check_layouts,
    check_precision,
    check_derivatives,
    check_adjoints,
    check_memory,
    check_edges,
)
