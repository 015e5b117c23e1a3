"""The harness over every primitive, and the harness itself: planted errors must be caught."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from harness import CHECKS, QUICK, THOROUGH, check_derivatives, differentiable, run, verify

import minigan as mg
from minigan.kernels.loops import Formula
from minigan.registry import primitives, row
from minigan.tape import Primitive, apply, same_spec

PRIMITIVES = primitives()
BY_NAME = {primitive.name: primitive for primitive in PRIMITIVES}

# Nothing to differentiate: their results are booleans, positions or random numbers.
MASKS = {"equal", "not_equal", "greater", "greater_equal", "logical_and", "logical_or", "logical_xor"}
WITHOUT_DERIVATIVE = MASKS | {
    "all_finite",
    "argmax",
    "argsort",
    "one_hot",
    "random_bits",
    "uniform",
    "normal",
}


@pytest.mark.parametrize(
    "profile", [QUICK, pytest.param(THOROUGH, marks=pytest.mark.slow)], ids=["quick", "thorough"]
)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("primitive", PRIMITIVES, ids=lambda primitive: primitive.name)
def test_primitive(primitive, check, profile):
    run(check, primitive, profile)


# That the harness sees everything


EVERY_PRIMITIVE_ALIVE = """
import gc
import minigan
from minigan.tape import Primitive

print(*sorted(x.name for x in gc.get_objects() if type(x) is Primitive))
"""


def test_no_primitive_escapes():
    # In a process of its own, because other tests make primitives too.
    alive = subprocess.run(
        [sys.executable, "-c", EVERY_PRIMITIVE_ALIVE], capture_output=True, text=True, check=True
    )
    # Two are only parts of programs: nobody calls them.
    assert alive.stdout.split() == sorted(
        [*(primitive.name for primitive in PRIMITIVES), "finite", "require"]
    )
    assert len(BY_NAME) == len(PRIMITIVES), "two primitives share a name"


def test_every_primitive_can_be_tried():
    for primitive in PRIMITIVES:
        assert primitive.samples, f"{primitive.name} has no samples"
        assert primitive.kernel or primitive.view, f"{primitive.name} computes nothing"


def test_what_has_no_derivative_is_listed():
    updates = {p.name for p in PRIMITIVES if p.donates}
    assert {p.name for p in PRIMITIVES if not differentiable(p)} - updates == WITHOUT_DERIVATIVE


def test_every_primitive_has_a_row_in_the_table():
    for primitive in PRIMITIVES:
        line = row(primitive)
        assert line.flops >= 0 and line.bytes >= 0
        assert bool(line.formula) == (primitive.formula is not None)
    assert row(BY_NAME["leaky_relu"]).formula == "where(x > 0, x, slope * x)"
    assert row(BY_NAME["add"]).flops == 6
    assert row(BY_NAME["add"]).bytes == 3 * 6 * 4


# That the harness catches what it is for. An error is planted in a primitive; the harness must raise.


def planted(primitive: Primitive, **changes: Any) -> Primitive:
    return replace(primitive, name=f"planted {primitive.name}", **changes)


def caught(primitive: Primitive) -> bool:
    try:
        verify(primitive)
    except AssertionError:
        return True
    except BaseExceptionGroup as group:  # Hypothesis found several
        return all(isinstance(error, AssertionError) for error in group.exceptions)
    return False


def with_rule(primitive: Primitive, change: Callable[[Any], Any]) -> Primitive:
    """The primitive with `change` applied to every cotangent that its rule returns."""

    def vjp(*arguments: Any, **attributes: Any) -> Any:
        thunks = primitive.vjp(*arguments, **attributes)
        return tuple(None if thunk is None else (lambda thunk=thunk: change(thunk())) for thunk in thunks)

    return planted(primitive, vjp=vjp)


def with_kernel(primitive: Primitive, change: Callable[..., None]) -> Primitive:
    """The primitive with `change(outs, arrays)` after its kernel."""

    def kernel(outs: Any, *arrays: Any, **attributes: Any) -> None:
        primitive.kernel(outs, *arrays, **attributes)
        change(outs, arrays)

    return planted(primitive, kernel=kernel)


def has_rule(primitive: Primitive) -> bool:
    """With a rule of its own whose results are not all zero."""
    return primitive.vjp is not None and primitive.name != "sign"


@pytest.mark.parametrize(
    "primitive", list(filter(has_rule, PRIMITIVES)), ids=lambda primitive: primitive.name
)
def test_an_error_of_half_a_thousandth_in_any_rule_is_caught(primitive):
    with pytest.raises(AssertionError, match="order 1"):
        run(check_derivatives, with_rule(primitive, lambda g: g * 1.0005))


# Its value is right and its own derivative is off by a thousandth, so a rule that passes through it is wrong from
# the second order on.
LIAR = Primitive(
    "planted liar",
    same_spec,
    kernel=lambda outs, x: np.copyto(outs[0], x),
    vjp=lambda gy, y, x: (lambda: gy * 1.001,),
)


@pytest.mark.parametrize("name", ["multiply", "tanh", "matmul", "sum", "softmax", "norm", "leaky_relu"])
def test_an_error_of_a_thousandth_at_second_order_is_caught(name):
    with pytest.raises(AssertionError, match="order 2"):
        run(check_derivatives, with_rule(BY_NAME[name], lambda g: apply(LIAR, g)))


def test_the_plants_alone_are_not_what_is_caught():
    verify(with_rule(BY_NAME["tanh"], lambda g: g))
    verify(with_kernel(BY_NAME["tanh"], lambda outs, arrays: None))


def scale_one(outs: Any, arrays: Any) -> None:
    outs[0].flat[-1:] *= 1.0005


@pytest.mark.parametrize(
    "name", ["tanh", "sigmoid_cross_entropy", "matmul", "sum", "slice", "softmax", "take"]
)
def test_an_error_of_half_a_thousandth_in_one_entry_of_a_kernel_is_caught(name):
    primitive = BY_NAME[name]
    if primitive.view:
        view = primitive.view
        primitive = replace(
            primitive,
            view=None,
            kernel=lambda outs, x, **attributes: np.copyto(outs[0], view(x, **attributes)),
        )
    assert caught(with_kernel(primitive, scale_one))


def write_to_input(outs: Any, arrays: Any) -> None:
    if arrays[0].flags.writeable:
        arrays[0].flat[:1] = 0


def keep_nan_out(outs: Any, arrays: Any) -> None:
    outs[0][np.isnan(outs[0])] = 0


def spread_nan(outs: Any, arrays: Any) -> None:
    if np.isnan(outs[0]).any():
        outs[0].fill(np.nan)


def vary() -> Callable[..., None]:
    runs = iter(range(10**9))

    def add_a_little(outs: Any, arrays: Any) -> None:
        np.multiply(outs[0], 1 + next(runs) % 2 * np.finfo(outs[0].dtype).eps, out=outs[0])

    return add_a_little


@pytest.mark.parametrize("change", [write_to_input, keep_nan_out, spread_nan, vary()])
def test_other_faults_of_a_kernel_are_caught(change):
    assert caught(with_kernel(BY_NAME["exp"], change))


class LayoutDependent(Formula):
    """A formula whose last bit depends on the layout of its input."""

    def __call__(self, outs: Any, *arrays: Any, **attributes: Any) -> None:
        super().__call__(outs, *arrays, **attributes)
        if not arrays[0].flags.c_contiguous:
            np.multiply(outs[0], 1 + np.finfo(outs[0].dtype).eps, out=outs[0])


def test_a_kernel_whose_bits_depend_on_the_layout_is_caught():
    formula = LayoutDependent(BY_NAME["exp"].formula.function)
    assert caught(planted(BY_NAME["exp"], kernel=formula, formula=formula))


def test_other_faults_of_a_rule_are_caught():
    exp = BY_NAME["exp"]
    assert caught(with_rule(exp, lambda g: g.astype(np.float64))), "a gradient of another dtype"
    assert caught(with_rule(exp, lambda g: g[None])), "a gradient of another shape"
    random = np.random.default_rng(0)
    assert caught(with_rule(exp, lambda g: g * (1 + 1e-12 * random.random()))), (
        "bits that change from run to run"
    )
    assert caught(planted(exp, linear=(0,))), "a function declared linear that is not"
    assert caught(planted(BY_NAME["absolute"], linear=(0,))), "one that only scales like a linear one"
    assert caught(planted(exp, reference=lambda x: mg.ops.exp(x) * 1.0005)), "another reference"
