"""Tensors as arrays: dtypes, errors, other libraries, and every public function against NumPy."""

import itertools
import math
import operator
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import minigan as mg
from minigan import ops
from minigan.ops.reduce import _gather_adjoint
from minigan.tape import apply

A = np.random.default_rng(0).uniform(-1.5, 1.5, (3, 4))
B = np.random.default_rng(1).uniform(0.4, 1.5, (3, 4))
ROW = np.random.default_rng(2).uniform(0.4, 1.5, 4)
SQUARE = np.random.default_rng(3).uniform(-1, 1, (4, 4))
STACK = np.random.default_rng(4).uniform(-1, 1, (2, 3, 4))

# Dtypes

OPERANDS: dict[str, Any] = {
    "float32 tensor": mg.tensor(np.ones(2, np.float32)),
    "float64 tensor": mg.tensor(np.ones(2, np.float64)),
    "float32 scalar tensor": mg.tensor(np.ones((), np.float32)),
    "float64 scalar tensor": mg.tensor(np.ones((), np.float64)),
    "float32 array": np.ones(2, np.float32),
    "float64 array": np.ones(2, np.float64),
    "float64 big-endian array": np.ones(2, ">f8"),
    "float32 scalar": np.float32(1),
    "float64 scalar": np.float64(1),
    "float": 1.5,
    "int": 2,
    "bool": True,
}
BINARY: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "power": operator.pow,
    "maximum": ops.maximum,
    "minimum": ops.minimum,
    "where": lambda a, b: ops.where(np.array([True, False]), a, b),
    "sigmoid_cross_entropy": ops.sigmoid_cross_entropy,
}


@pytest.mark.parametrize("name", BINARY)
def test_dtypes_promote_as_in_numpy(name: str) -> None:
    for names in itertools.product(OPERANDS, repeat=2):
        a, b = (OPERANDS[n] for n in names)
        tensors = [x for x in (a, b) if isinstance(x, mg.Tensor)]
        if not tensors:
            continue
        result = BINARY[name](a, b)
        assert isinstance(result, mg.Tensor)
        wanted = np.result_type(*(x.numpy() if isinstance(x, mg.Tensor) else x for x in (a, b)))
        assert result.dtype == wanted, f"{name} of {names}"
        for x, g in zip(tensors, mg.grad(result.sum(), tensors), strict=True):
            assert g.dtype == x.dtype and g.shape == x.shape, f"{name} of {names}"


@pytest.mark.parametrize("join", [ops.concatenate, ops.stack, lambda xs: ops.einsum("i,i->i", *xs)])
def test_tensors_that_are_joined_promote(join: Callable[..., mg.Tensor]) -> None:
    x, wide = mg.tensor([1.0, 2.0]), mg.tensor(np.ones(2))
    assert join([x, x]).dtype == np.float32
    for pair in ([x, wide], [wide, x], [wide, wide]):
        assert join(pair).dtype == np.float64
        assert [g.dtype for g in mg.grad(join(pair).sum(), pair)] == [t.dtype for t in pair]


@pytest.mark.parametrize("make", [mg.tensor, mg.asarray])
def test_what_becomes_a_tensor_of_which_dtype(make: Callable[..., mg.Tensor]) -> None:
    for value, dtype in (
        (1.5, "f4"),
        ([1.5, 2], "f4"),
        (np.float64(1.5), "f8"),
        (np.ones(2), "f8"),
        (np.ones(2, ">f4"), "f4"),
        ([1, 2], "i8"),
        (True, "?"),
        (np.ones(2, np.uint8), "u1"),
    ):
        x = make(value)
        assert x.dtype == np.dtype(dtype) and x.dtype.isnative
    assert make([1, 2], np.float64).dtype == np.float64
    assert make(1e300, np.float32).item() == math.inf


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
def test_integers_and_booleans_are_no_numbers_to_compute_with(name: str, dtype: str) -> None:
    x, n = mg.tensor([1.0, 2.0]), np.ones(2, dtype)
    for a, b in ((x, n), (mg.tensor(n), mg.tensor(n)), (mg.tensor(n), x), (n, x)):
        with pytest.raises(mg.DTypeError, match=rf"{name}.*{dtype}.*\.astype"):
            BINARY[name](a, b)
    assert (x + mg.tensor(n).astype(np.float32)).dtype == np.float32


UNARY = [
    "absolute",
    "negative",
    "exp",
    "expm1",
    "log",
    "log1p",
    "sqrt",
    "sin",
    "cos",
    "erf",
    "tanh",
    "sigmoid",
    "softplus",
    "relu",
    "leaky_relu",
    "elu",
    "gelu",
    "silu",
    "clip",
    "sum",
    "mean",
    "var",
    "max",
    "min",
    "argmax",
    "argsort",
    "sort",
    "logsumexp",
    "softmax",
    "norm",
    "cumsum",
]


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_tensor_keep_dtypes_and_refuse_integers(name: str) -> None:
    f = getattr(ops, name)
    for dtype in (np.float32, np.float64):
        x = mg.tensor(B.astype(dtype))
        y = f(x)
        assert y.dtype == (np.int64 if name.startswith("arg") else dtype)
        if not name.startswith("arg"):
            assert mg.grad(y.sum(), x)[0].dtype == dtype
    with pytest.raises(mg.DTypeError, match=r"int64.*\.astype"):
        f(mg.tensor(np.ones((3, 4), np.int64)))


@pytest.mark.parametrize(
    "array",
    [
        np.ones(2, np.complex64),
        np.array([None, 1]),
        np.array(["a"]),
        np.array(["2020-01-01"], "datetime64[D]"),
        np.ones(2, np.float16),
        np.zeros(2, [("a", "f4")]),
    ],
    ids=lambda a: str(a.dtype),
)
def test_other_dtypes_are_refused(array: np.ndarray) -> None:
    for call in (mg.tensor, mg.asarray, lambda a: mg.tensor(1.0) + a, ops.exp):
        with pytest.raises(mg.DTypeError, match=rf"{re.escape(str(array.dtype))}.*\.astype"):
            call(array)
    with pytest.raises(mg.DTypeError):
        mg.tensor(1.0).astype(array.dtype)


# Shapes that do not fit


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mg.tensor(A) + np.ones(3), r"add.*\(3, 4\).*\(3,\).*axis -1.*\[3, 4\]"),
        (lambda: mg.tensor(A) @ mg.tensor(A), r"matmul.*\(3, 4\).*\(3, 4\).*4 columns.*3 rows"),
        (lambda: mg.tensor(1.0) @ mg.tensor(A), r"matmul.*\(\)"),
        (lambda: ops.reshape(A, (5, 2)), r"reshape.*\(3, 4\).*12.*\(5, 2\).*10"),
        (lambda: ops.reshape(A, (5, -1)), r"reshape.*12.*\(5, -1\)"),
        (lambda: ops.sum(A, axis=2), r"sum.*axis 2.*2 axes"),
        (lambda: ops.sum(A, axis=(0, 0)), r"sum.*\(0, 0\)"),
        (lambda: ops.transpose(A, (0, 0)), r"transpose.*\(0, 0\).*\(3, 4\)"),
        (lambda: ops.broadcast_to(A, (4, 3)), r"broadcast_to.*\(3, 4\).*\(4, 3\)"),
        (lambda: mg.tensor(A)[3], r"index.*3.*\(3, 4\)"),
        (lambda: mg.tensor(A)[0, 0, 0], r"index.*\(3, 4\)"),
        (lambda: mg.tensor(A)[[0, 7]], r"index 7.*size 3"),
        (lambda: ops.take(A, np.array([1, -5]), axis=1), r"index -5.*size 4"),
        (lambda: ops.max(np.ones((0, 3)), axis=0), r"max.*\(0, 3\)"),
        (lambda: ops.argmax(np.ones((3, 0)), axis=1), r"argmax.*\(3, 0\)"),
        (lambda: ops.topk(A, 5), r"topk.*5.*\(3, 4\).*4"),
        (lambda: ops.concatenate([A, SQUARE], axis=1), r"concatenate.*\(3, 4\).*\(4, 4\)"),
        (lambda: ops.stack([A, SQUARE]), r"\(3, 4\).*\(4, 4\)"),
        (lambda: ops.einsum("ij,jk->ik", A, A), r"einsum"),
        (lambda: ops.einsum("ij->k", A), r"einsum.*'k'"),
        (lambda: mg.tensor(A).item(), r"item.*\(3, 4\).*12"),
        (lambda: mg.tensor(ROW).mT, r"mT.*\(4,\)"),
        (lambda: ops.broadcast_to(np.float32(1), (2**40, 2**40)) + np.float32(1), r"1099511627776"),
    ],
)
def test_shape_errors_have_the_numbers(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(mg.ShapeError, match=words):
        call()


# Other libraries, and Python's own protocols


def test_numbers_of_python_may_be_larger_than_any_integer_dtype() -> None:
    x = mg.tensor([1.0, 2.0])
    assert (x * 2**70).numpy().tolist() == [2.0**70, 2.0**71]
    assert (2**70 - x).dtype == np.float32
    with pytest.raises(OverflowError):
        x * 10**400


def test_numpy_arrays_on_either_side() -> None:
    x = mg.tensor(A)
    for left in (ROW, np.float64(2), np.asfortranarray(A)):
        for f in (operator.add, operator.sub, operator.mul, operator.truediv):
            y = f(left, x)
            assert isinstance(y, mg.Tensor)
            np.testing.assert_array_equal(y.numpy(), f(left, A))
            np.testing.assert_array_equal(f(x, left).numpy(), f(A, left))
    assert isinstance(ROW @ x.T, mg.Tensor)
    np.testing.assert_array_equal((B**x).numpy(), B**A)
    assert isinstance(x < A, mg.Tensor)


def test_arrays_and_exports() -> None:
    x = mg.tensor(A.astype(np.float32))
    np.testing.assert_array_equal(np.asarray(x), x.numpy())
    assert not np.asarray(x).flags.writeable
    assert np.array(x, np.float64).dtype == np.float64
    assert np.array(x).flags.writeable and not np.shares_memory(np.array(x), x.array)
    with pytest.raises(ValueError, match="copy"):
        np.array(x, np.float64, copy=False)
    np.testing.assert_array_equal(np.from_dlpack(x), x.numpy())
    assert np.shares_memory(np.from_dlpack(x), x.array)
    assert mg.asarray(x) is x and mg.asarray(x, np.float64).dtype == np.float64


def test_python_protocols() -> None:
    x = mg.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert len(x) == 2 and [row.numpy().tolist() for row in x] == [[1, 2], [3, 4]]
    assert (x.shape, x.ndim, x.size, x.device) == ((2, 2), 2, 4, "cpu")
    one = mg.tensor(2.5)
    assert (float(one), int(one), bool(one), one.item()) == (2.5, 2, True, 2.5)
    assert +one is one and abs(-one).item() == 2.5
    assert repr(one) == "Tensor(2.5, dtype=float32)"
    assert len({x, x, one}) == 2, "tensors are hashed by identity"
    with pytest.raises(TypeError):
        len(one)
    with pytest.raises(mg.ShapeError):
        bool(x)
    with pytest.raises(mg.DeviceError, match="cuda"):
        mg.tensor(1.0, device="cuda")


# Every public function against NumPy: its value, and its derivatives of the order given


def _scattered(a: np.ndarray) -> np.ndarray:
    result = np.zeros((4, a.shape[1]))
    np.add.at(result, np.array([0, 2, 0]), a)
    return result


def _attended(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    weights = np.exp(q @ k.T / np.sqrt(q.shape[1]))
    return weights / weights.sum(1, keepdims=True) @ v


FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...], int]] = {
    "absolute": (ops.absolute, np.abs, (A,), 2),
    "affine": (ops.affine, lambda x, w, b: x @ w + b, (A, SQUARE, ROW), 2),
    "affine of a stack": (ops.affine, lambda x, w, b: x @ w + b, (STACK, SQUARE, ROW), 2),
    "all_finite": (lambda *xs: ops.all_finite(xs), lambda *xs: np.bool_(True), (A, ROW), 0),
    "all_finite of NaN": (
        lambda *xs: ops.all_finite(xs),
        lambda *xs: np.bool_(False),
        (A, np.array([0.0, np.nan])),
        0,
    ),
    "all_finite of infinity": (
        lambda *xs: ops.all_finite(xs),
        lambda *xs: np.bool_(False),
        (A, np.array(-np.inf)),
        0,
    ),
    "add": (ops.add, np.add, (A, ROW), 2),
    "argmax": (ops.argmax, np.argmax, (A,), 0),
    "argmax, axis": (lambda x: ops.argmax(x, 0), lambda x: np.argmax(x, 0), (A,), 0),
    "argsort": (ops.argsort, np.argsort, (A,), 0),
    "avg_pool": (lambda x: ops.avg_pool(x, 2, 1), lambda x: (x[:, :-1] + x[:, 1:]) / 2, (STACK,), 2),
    "batch_norm": (
        lambda x, scale, shift: ops.batch_norm(x, *ops.moments(x, 0), scale, shift, eps=0.1),
        lambda x, scale, shift: (x - x.mean(0)) / np.sqrt(x.var(0) + 0.1) * scale + shift,
        (A, ROW, ROW),
        2,
    ),
    "batch_norm of running moments": (
        lambda x, mean, variance: ops.batch_norm(x, mean, variance, eps=0.1),
        lambda x, mean, variance: (x - mean) / np.sqrt(variance + 0.1),
        (A, ROW, ROW),
        2,
    ),
    "broadcast_to": (
        lambda x: ops.broadcast_to(x, (2, 3, 4)),
        lambda x: np.broadcast_to(x, (2, 3, 4)),
        (A,),
        2,
    ),
    "cast": (lambda x: ops.cast(ops.cast(x, "f8"), "f8"), np.asarray, (A,), 2),
    "clip": (lambda x: ops.clip(x, -0.5, 0.5), lambda x: np.clip(x, -0.5, 0.5), (A,), 2),
    "concatenate": (
        lambda a, b: ops.concatenate([a, b, a], 1),
        lambda a, b: np.concatenate([a, b, a], 1),
        (A, B),
        2,
    ),
    "conv": (
        lambda x, w: ops.conv(x.mT, w),
        lambda x, w: x.mT[:, :-1] @ w[0] + x.mT[:, 1:] @ w[1],
        (STACK, STACK),
        2,
    ),
    "conv_transpose": (
        ops.conv_transpose,
        lambda x, w: (
            np.pad(x @ w[0].T, ((0, 0), (0, 1), (0, 0))) + np.pad(x @ w[1].T, ((0, 0), (1, 0), (0, 0)))
        ),
        (STACK, STACK),
        2,
    ),
    "cos": (ops.cos, np.cos, (A,), 3),
    "cumsum": (lambda x: ops.cumsum(x, 0), lambda x: np.cumsum(x, 0), (A,), 2),
    "divide": (ops.divide, np.divide, (A, ROW), 3),
    "einsum": (
        lambda a, b: ops.einsum("nij,nkj->ik", a, b),
        lambda a, b: np.einsum("nij,nkj->ik", a, b),
        (STACK,) * 2,
        2,
    ),
    "einsum, trace": (lambda a: ops.einsum("ii", a), np.trace, (SQUARE,), 2),
    "einsum, diagonal": (lambda a: ops.einsum("ii->i", a), np.diagonal, (SQUARE,), 2),
    "einsum, ...": (
        lambda a, b: ops.einsum("...j,j", a, b),
        lambda a, b: np.einsum("...j,j", a, b),
        (STACK, ROW),
        2,
    ),
    "elu": (lambda x: ops.elu(x, 1.5), lambda x: np.where(x > 0, x, 1.5 * np.expm1(x)), (A,), 2),
    "embedding": (lambda x: ops.embedding(x, np.array([2, 0, 2])), lambda x: x[[2, 0, 2]], (A,), 2),
    "equal": (ops.equal, np.equal, (A.round(), A.round().T[:1].T), 0),
    "erf": (ops.erf, np.vectorize(math.erf), (A,), 3),
    "exp": (ops.exp, np.exp, (A,), 3),
    "expm1": (ops.expm1, np.expm1, (A,), 3),
    "gelu": (ops.gelu, lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2, (A,), 3),
    "greater": (ops.greater, np.greater, (A, ROW), 0),
    "scatter": (lambda a: ops.scatter(a, np.array([0, 2, 0]), 4), _scattered, (A,), 2),
    "logical_and": (lambda a, b: (a > 0) & (b < 1), lambda a, b: (a > 0) & (b < 1), (A, ROW), 0),
    "logical_or": (lambda a, b: (a > 0) | (b < 1), lambda a, b: (a > 0) | (b < 1), (A, ROW), 0),
    "logical_xor": (lambda a, b: ~((a > 0) ^ (b < 1)), lambda a, b: ~((a > 0) ^ (b < 1)), (A, ROW), 0),
    "greater_equal": (ops.greater_equal, np.greater_equal, (A, ROW), 0),
    "index": (lambda x: ops.index(x, (0, slice(1, 3))), lambda x: x[0, 1:3], (A,), 2),
    "instance_norm": (
        lambda x, scale, shift: ops.instance_norm(x, scale, shift, eps=0.1),
        lambda x, scale, shift: (
            (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 0.1) * scale + shift
        ),
        (STACK, ROW, ROW),
        2,
    ),
    "layer_norm": (
        lambda x, scale, shift: ops.layer_norm(x, scale, shift, eps=0.1),
        lambda x, scale, shift: (
            (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1) * scale + shift
        ),
        (STACK, ROW, ROW),
        2,
    ),
    "leaky_relu": (lambda x: ops.leaky_relu(x, 0.1), lambda x: np.where(x > 0, x, 0.1 * x), (A,), 2),
    "log": (ops.log, np.log, (B,), 3),
    "log1p": (ops.log1p, np.log1p, (B,), 3),
    "log_softmax": (ops.log_softmax, lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True)), (A,), 3),
    "logsumexp": (ops.logsumexp, lambda x: np.log(np.exp(x).sum()), (A,), 3),
    "matmul": (ops.matmul, np.matmul, (A, SQUARE), 2),
    "matmul, vectors": (ops.matmul, np.matmul, (ROW, ROW), 2),
    "matmul, vector on the left": (ops.matmul, np.matmul, (ROW, SQUARE), 2),
    "matmul, vector on the right": (ops.matmul, np.matmul, (STACK, ROW), 2),
    "matmul, stack": (ops.matmul, np.matmul, (STACK, SQUARE), 2),
    "matmul, broadcast": (ops.matmul, np.matmul, (A, STACK.transpose(0, 2, 1)), 2),
    "matmul, transposed": (lambda a, b: a.T @ b, lambda a, b: a.T @ b, (A, B), 2),
    "max": (lambda x: ops.max(x, 1, keepdims=True), lambda x: np.max(x, 1, keepdims=True), (A,), 2),
    "max_pool": (lambda x: ops.max_pool(x, 3), lambda x: x.max(1, keepdims=True), (STACK,), 2),
    "maximum": (ops.maximum, np.maximum, (A, ROW), 2),
    "mean": (lambda x: ops.mean(x, (0, 2)), lambda x: np.mean(x, (0, 2)), (STACK,), 2),
    "min": (ops.min, np.min, (A,), 2),
    "minimum": (ops.minimum, np.minimum, (A, ROW), 2),
    "moments": (lambda x: ops.moments(x, (0, 2)), lambda x: (x.mean((0, 2)), x.var((0, 2))), (STACK,), 2),
    "multiply": (ops.multiply, np.multiply, (A, ROW), 2),
    "negative": (ops.negative, np.negative, (A,), 2),
    "norm": (lambda x: ops.norm(x, axis=1), lambda x: np.linalg.norm(x, axis=1), (A,), 3),
    "not_equal": (ops.not_equal, np.not_equal, (A.round(), ROW.round()), 0),
    "one_hot": (lambda i: ops.one_hot(i, 4, np.float64), lambda i: np.eye(4)[i], (np.array([2, 0, 3]),), 0),
    "pad": (lambda x: ops.pad(x, ((1, 0), (2, 3))), lambda x: np.pad(x, ((1, 0), (2, 3))), (A,), 2),
    "pixel_norm": (
        lambda x: ops.pixel_norm(x, eps=0.1),
        lambda x: x / np.sqrt((x * x).mean(-1, keepdims=True) + 0.1),
        (STACK,),
        2,
    ),
    "pixel_shuffle": (
        lambda x: ops.pixel_shuffle(x, 2),
        lambda x: x.reshape(2, 3, 2, 2).swapaxes(2, 3).reshape(2, 6, 2),
        (STACK,),
        2,
    ),
    "power": (ops.power, np.power, (B, A), 3),
    "power, 2": (lambda x: x**2, lambda x: x**2, (A,), 2),
    "power, -1.5": (lambda x: x**-1.5, lambda x: x**-1.5, (B,), 3),
    "relu": (ops.relu, lambda x: np.maximum(x, 0), (A,), 2),
    "reshape": (lambda x: ops.reshape(x, (2, -1)), lambda x: x.reshape(2, -1), (A,), 2),
    "reshape of a transpose": (lambda x: x.T.reshape(-1), lambda x: x.T.reshape(-1), (A,), 2),
    "scaled_dot_product_attention": (ops.scaled_dot_product_attention, _attended, (A, B, STACK[0]), 2),
    "sigmoid": (ops.sigmoid, lambda x: 1 / (1 + np.exp(-x)), (A,), 3),
    "sigmoid_cross_entropy": (
        lambda x, z: ops.sigmoid_cross_entropy(x, z),
        lambda x, z: z * np.log1p(np.exp(-x)) + (1 - z) * np.log1p(np.exp(x)),
        (A, ROW / 2),
        3,
    ),
    "sign": (ops.sign, np.sign, (A,), 1),
    "silu": (ops.silu, lambda x: x / (1 + np.exp(-x)), (A,), 3),
    "sin": (ops.sin, np.sin, (A,), 3),
    "softmax": (lambda x: ops.softmax(x, 0), lambda x: np.exp(x) / np.exp(x).sum(0), (A,), 3),
    "softplus": (ops.softplus, lambda x: np.log1p(np.exp(x)), (A,), 3),
    "sort": (ops.sort, np.sort, (A,), 2),
    "sort, descending": (lambda x: ops.sort(x, 0, True), lambda x: -np.sort(-x, 0), (A,), 2),
    "split": (lambda x: ops.split(x, 2, axis=1), lambda x: np.split(x, 2, axis=1), (A,), 2),
    "sqrt": (ops.sqrt, np.sqrt, (B,), 3),
    "stack": (lambda a, b: ops.stack([a, b], axis=1), lambda a, b: np.stack([a, b], axis=1), (A, B), 2),
    "std": (lambda x: ops.std(x, 0), lambda x: np.std(x, 0), (A,), 3),
    "subtract": (ops.subtract, np.subtract, (ROW, A), 2),
    "sum": (lambda x: ops.sum(x, -1), lambda x: np.sum(x, -1), (STACK,), 2),
    "take": (
        lambda x: ops.take(x, [[2, 0], [2, -1]], 1),
        lambda x: np.take(x, [[2, 0], [2, -1]], 1),
        (A,),
        2,
    ),
    "tanh": (ops.tanh, np.tanh, (A,), 3),
    "topk": (lambda x: ops.topk(x, 2), lambda x: (-np.sort(-x)[:, :2], np.argsort(-x)[:, :2]), (A,), 2),
    "transpose": (lambda x: ops.transpose(x, (2, 0, 1)), lambda x: x.transpose(2, 0, 1), (STACK,), 2),
    "upsample": (lambda x: ops.upsample(x, 2), lambda x: np.repeat(x, 2, 1), (STACK,), 2),
    "var": (lambda x: ops.var(x, 1, correction=1), lambda x: np.var(x, 1, ddof=1), (A,), 2),
    "where": (lambda a, b: ops.where(a > 0, a, b), lambda a, b: np.where(a > 0, a, b), (A, ROW), 2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_those_of_numpy(name: str) -> None:
    function, reference, arrays, order = FUNCTIONS[name]
    found, expected = function(*map(mg.tensor, arrays)), reference(*arrays)
    many = isinstance(found, (tuple, list))
    for y, wanted in zip(found if many else [found], expected if many else [expected], strict=True):
        wanted = np.asarray(wanted)
        assert y.shape == wanted.shape and y.dtype == wanted.dtype
        np.testing.assert_allclose(y.numpy(), wanted, rtol=1e-13, atol=1e-14)
    if order:
        mg.check_grad(function, *arrays, order=order)


def test_every_public_function_is_compared() -> None:
    random = {"Stream", "augment", "dropout"}
    public = {name for name in vars(ops) if name[0] != "_" and callable(getattr(ops, name))} - random
    assert public == {name.split(",")[0].split(" of ")[0] for name in FUNCTIONS}


KEYS: list[Any] = [
    0,
    -1,
    slice(1, None),
    slice(None, None, -2),
    (slice(None), 2),
    (..., None, 1),
    None,
    (),
    ...,
    (1, 2),
    np.int64(1),
    [0, 2, 0],
    np.array([[1], [-1]]),
    ([0, 1], [2, 3]),
    (slice(None), [0, 0, 1]),
    A > 0,
    (np.array([True, False, True]), 1),
    (slice(0, 0), 1),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_indexing_is_numpys(key: Any) -> None:
    np.testing.assert_array_equal(mg.tensor(A)[key].numpy(), A[key])
    mg.check_grad(lambda x: x[key] * x[key], A)
    if isinstance(key, np.ndarray):
        np.testing.assert_array_equal(mg.tensor(A)[mg.tensor(key)].numpy(), A[key])


def test_reductions_of_nothing() -> None:
    empty = mg.tensor(np.ones((0, 3)))
    np.testing.assert_array_equal(empty.sum(axis=0).numpy(), np.zeros(3))
    assert empty.sum().item() == 0 and mg.grad(empty.sum(), empty)[0].shape == (0, 3)
    with pytest.warns(RuntimeWarning, match="mean"):
        assert np.isnan(empty.mean(axis=0).numpy()).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert empty.mean(axis=1).shape == (0,)
    assert (ops.logsumexp(empty, 0).numpy() == -np.inf).all()
    assert (ops.norm(empty, 0).numpy() == 0).all()


# Documented values and derivatives at special places


def derivative(f: Callable[..., Any], *values: float, at: int = 0) -> list[float]:
    """Value, first and second derivative of a function of numbers, in the argument `at`."""
    xs = [mg.tensor(np.float32(v)) for v in values]
    with np.errstate(all="ignore"):
        y = f(*xs)
        (g,) = mg.grad(y, xs[at], create_graph=True)
        (h,) = mg.grad(g, xs[at])
    return [y.item(), g.item(), h.item()]


INF = math.inf


@pytest.mark.parametrize(
    ("f", "values", "expected"),
    [
        (ops.relu, (0.0,), (0, 0, 0)),
        (lambda x: ops.leaky_relu(x, 0.2), (0.0,), (0, 0.2, 0)),
        (ops.absolute, (0.0,), (0, 0, 0)),
        (ops.sign, (0.0,), (0, 0, 0)),
        (lambda x: ops.clip(x, 0.0, 1.0), (1.0,), (1, 1, 0)),
        (lambda x: ops.clip(x, 0.0, 1.0), (1.5,), (1, 0, 0)),
        (ops.maximum, (1.0, 1.0), (1, 0.5, 0)),
        (ops.minimum, (1.0, 1.0), (1, 0.5, 0)),
        (ops.norm, (0.0,), (0, 0, 0)),
        (ops.sqrt, (0.0,), (0, INF, -INF)),
        (ops.log, (0.0,), (-INF, INF, -INF)),
        (ops.power, (0.0, 0.5), (0, INF, -INF)),
        (ops.power, (0.0, 0.0), (1, 0, 0)),
        (ops.power, (0.0, 1.0), (0, 1, 0)),
        (ops.power, (0.0, 2.0), (0, 0, 2)),
        (ops.power, (-2.0, 3.0), (-8, 12, -12)),
        (lambda x: x**2, (0.0,), (0, 0, 2)),
        (ops.divide, (1.0, 0.0), (INF, INF, 0)),
        (ops.sigmoid, (INF,), (1, 0, 0)),
        (ops.sigmoid, (-INF,), (0, 0, 0)),
        (ops.softplus, (INF,), (INF, 1, 0)),
        (ops.softplus, (-INF,), (0, 0, 0)),
        (ops.tanh, (INF,), (1, 0, 0)),
        (ops.gelu, (INF,), (INF, 1, 0)),
        (ops.gelu, (-INF,), (0, 0, 0)),
        (ops.silu, (INF,), (INF, 1, 0)),
        (ops.silu, (-INF,), (0, 0, 0)),
        (ops.elu, (-INF,), (-1, 0, 0)),
    ],
)
def test_documented_values_at_kinks_and_limits(
    f: Callable[..., Any], values: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    assert derivative(f, *values) == pytest.approx(expected, rel=1e-6, abs=0, nan_ok=False)


def test_ties_share_the_derivative() -> None:
    x = mg.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    for f, expected in ((ops.max, [[0, 0.5, 0.5], [1 / 3] * 3]), (ops.min, [[1, 0, 0], [1 / 3] * 3])):
        np.testing.assert_allclose(mg.grad(f(x, 1).sum(), x)[0].numpy(), expected, rtol=1e-6)


def test_masked_and_even_rows() -> None:
    x = mg.tensor([[-INF, -INF], [5.0, 5.0], [-INF, 0.0]])
    y = ops.softmax(x)
    np.testing.assert_array_equal(y.numpy(), [[0, 0], [0.5, 0.5], [0, 1]])
    (g,) = mg.grad((y * y).sum(), x)
    np.testing.assert_array_equal(g.numpy(), np.zeros((3, 2)))
    z = ops.logsumexp(x, 1)
    assert z.numpy()[0] == -INF
    np.testing.assert_array_equal(mg.grad(z.sum(), x)[0].numpy(), [[0, 0], [0.5, 0.5], [0, 1]])


def test_large_and_tiny_arguments() -> None:
    x = np.random.default_rng(0).uniform(-1e4, 1e4, 1_000_000).astype(np.float32)
    wide = x.astype(np.float64)
    exact = wide.max() + np.log(np.exp(wide - wide.max()).sum())
    assert ops.logsumexp(x).item() == pytest.approx(exact, rel=1e-5)
    for scale in (1e-30, 1e30):
        v = (np.array([3.0, 4.0, 12.0]) * scale).astype(np.float32)
        length, (g,) = ops.norm(v).item(), mg.grad(ops.norm(t := mg.tensor(v)), t)
        assert length == pytest.approx(13 * scale, rel=1e-6)
        np.testing.assert_allclose(g.numpy(), [3 / 13, 4 / 13, 12 / 13], rtol=1e-6)
    constant = mg.tensor(np.full((2, 5), 3.0, np.float32))
    (g,) = mg.grad(ops.var(constant, 1).sum(), constant)
    assert not ops.var(constant, 1).numpy().any() and not g.numpy().any()


# Precision


def _sums_of_many() -> dict[str, Callable[[], tuple[Any, Any]]]:
    rows = np.full((1_000_000, 4), 0.1, np.float32)
    tall = np.full((300_000, 3, 2), 0.1, np.float32)
    tenth, many = float(np.float32(0.1)), np.zeros(1_000_000, np.int64)

    def taken() -> Any:
        x = mg.tensor(np.ones(2, np.float32))
        return mg.grad(ops.sum(ops.take(x, many) * rows[:, 0]), x)[0][0]

    def gathered() -> Any:
        return apply(_gather_adjoint, mg.tensor(rows[:, 0]), mg.tensor(many), axis=0, shape=(2,))[0]

    return {
        "rows": lambda: (ops.sum(rows, 0), 1e6 * tenth),
        "columns of the transpose": lambda: (mg.tensor(rows).T.sum(1), 1e6 * tenth),
        "axes around one that is kept": lambda: (ops.sum(tall, (0, 2)), 6e5 * tenth),
        "a broadcast row": lambda: (ops.sum(np.broadcast_to(rows[0], rows.shape), 0), 1e6 * tenth),
        "everything": lambda: (ops.sum(rows), 4e6 * tenth),
        "mean": lambda: (ops.mean(rows, 0), tenth),
        "norm": lambda: (ops.norm(rows, 0), 1e3 * tenth),
        "softmax": lambda: (ops.softmax(rows, 0), 1e-6),
        "logsumexp": lambda: (ops.logsumexp(rows, 0), tenth + math.log(1e6)),
        "gradient of take": lambda: (taken(), 1e6 * tenth),
        "adjoint of gather": lambda: (gathered(), 1e6 * tenth),
        "cumsum": lambda: (ops.cumsum(rows, 0)[-1], 1e6 * tenth),
    }


@pytest.mark.parametrize("name", SUMS := _sums_of_many())
def test_sums_of_a_million_terms_keep_float32_precision(name: str) -> None:
    value, exact = SUMS[name]()
    assert value.dtype == np.float32
    np.testing.assert_allclose(value.numpy(), exact, rtol=2e-6)


def test_means_of_equal_numbers_are_that_number() -> None:
    for n in range(1, 200):
        assert ops.mean(np.ones(n)).item() == 1.0
    (g,) = mg.grad(ops.mean(x := mg.tensor(np.ones(49))), x)
    assert (g.numpy() == 1 / 49).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_in_the_tails(dtype: Any) -> None:
    x = np.array([-40.0, -20.0, -9.5, -1.0], dtype)
    wide, rtol = x.astype(np.longdouble), 1e-5 if dtype == np.float32 else 1e-12
    for f, exact in (
        (ops.expm1, np.exp(wide)),
        (lambda x: ops.elu(x, 1.5), 1.5 * np.exp(wide)),
        (ops.tanh, 1 / np.cosh(wide) ** 2),
    ):
        (g,) = mg.grad(f(t := mg.tensor(x)).sum(), t)
        np.testing.assert_allclose(g.numpy(), exact.astype(dtype), rtol=rtol)
    (g,) = mg.grad(ops.elu(zero := mg.tensor(0.0)), zero, create_graph=True)
    assert g.item() == mg.grad(g, zero)[0].item() == 1.0


def test_norms_of_subnormal_length_have_derivatives_of_zero() -> None:
    x = mg.tensor(np.array([1e-39, 1e-39], np.float32))
    (g,) = mg.grad(ops.norm(x), x, create_graph=True)
    (gg,) = mg.grad(g.sum(), x)
    assert not g.numpy().any() and not gg.numpy().any()


# Axes, indices and subscripts


@pytest.mark.parametrize("axis", [None, (0,), (0, 1), 1.0, 2], ids=str)
def test_operations_along_one_axis_take_one_integer(axis: Any) -> None:
    calls: dict[str, Callable[[Any], Any]] = {
        "cumsum": lambda axis: ops.cumsum(A, axis),
        "sort": lambda axis: ops.sort(A, axis),
        "argsort": lambda axis: ops.argsort(A, axis),
        "topk": lambda axis: ops.topk(A, 1, axis),
        "concatenate": lambda axis: ops.concatenate([A, A], axis),
        "stack": lambda axis: ops.stack([A, A], axis),
        "split": lambda axis: ops.split(A, 1, axis),
        "argmax": lambda axis: ops.argmax(A, axis),
    }
    for name, call in calls.items():
        if not (name == "argmax" and axis is None) and not (name == "stack" and axis == 2):
            with pytest.raises(mg.ShapeError, match=rf"{name}.*axis"):
                call(axis)
        call(np.int64(-1))


def test_indices_and_counts_are_integers() -> None:
    for indices in (np.array([1.0]), np.array([True])):
        with pytest.raises(mg.DTypeError, match=f"take.*{indices.dtype}"):
            ops.take(A, indices)
    for call in (lambda: ops.topk(A, 1.5), lambda: ops.split(A, 1.5), lambda: ops.split(A, [1.5, 1.5])):  # type: ignore[arg-type, list-item]
        with pytest.raises(mg.ShapeError, match=r"1\.5 is not an integer"):
            call()
    assert ops.topk(A, np.int64(2))[0].shape == (3, 2)  # type: ignore[arg-type]
    for parts in (np.int64(2), np.array([2, 2]), (np.int8(2), 2)):
        assert [part.shape for part in ops.split(A, parts, 1)] == [(3, 2), (3, 2)]  # type: ignore[arg-type]
    for value in (0, 5):
        with pytest.raises(mg.DTypeError, match=r"pad.*int64"):
            ops.pad(np.array([1, 2]), [(1, 1)], value)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u8", "i8"])
def test_one_hot_has_one_one_whatever_the_dtype_of_labels(dtype: str) -> None:
    np.testing.assert_array_equal(ops.one_hot(np.array([44], dtype), 301), np.eye(301)[[44]])


def test_ellipses_of_einsum_align_at_the_right() -> None:
    cube = np.random.default_rng(5).uniform(-1, 1, (3, 3, 4))
    square = np.random.default_rng(6).uniform(-1, 1, (3, 4))
    for subscripts in ("...i,...i->...", "...i,...i", "...,i...->i..."):
        exact = np.einsum(subscripts, cube, square)
        np.testing.assert_allclose(ops.einsum(subscripts, cube, square), exact, rtol=1e-12)
    with pytest.raises(mg.ShapeError, match="index letters"):
        ops.einsum("é->é", ROW)
    with pytest.raises(mg.ShapeError, match="sizes"):
        ops.einsum("...i,...i->...", STACK, STACK[:1])
