"""The engine: `apply` computes and records, `grad` walks back. Everything else in the package is built on these two.

Every computation on arrays is one call of `apply(primitive, *inputs, **attributes)`. It infers shapes, allocates
the outputs, runs the primitive's kernel and, unless recording is off, attaches a `Node` to each output. `grad` visits
the nodes between outputs and inputs in reverse order and calls each primitive's derivative rule. The rules are
written in the same operations, so a gradient computed with `create_graph=True` is itself recorded, and derivatives of
any order follow.
"""

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minigan.backend import (
    FLOATS,
    Array,
    Spec,
    allocate,
    common_device,
    cuda,
    device_of,
    full,
    moved,
    zeros_like,
)
from minigan.cuda.launch import Plan, planned, run
from minigan.cuda.loops import pointwise
from minigan.errors import DTypeError, GraphError, ShapeError
from minigan.kernels.loops import Formula
from minigan.kernels.rows import copied
from minigan.trace import Memory, state as _state

Thunk = Callable[[], "Value"] | None


class Input(NamedTuple):
    """How to draw one input of a sample: a shape, a kind and a range.

    kind: "float", "bool", "index" (integers from 0 to high - 1) or "counter" (unsigned words).
    edges: special values of this input, where the sample's own do not all belong to its domain.
    """

    shape: tuple[int, ...]
    kind: str = "float"
    low: float = -2.0
    high: float = 2.0
    edges: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """One way to call a primitive, from which tests, docs and benchmarks make their calls.

    kink: maps the input arrays to signed distances from the nearest kink or pole; differences are taken only
        where all of them are well away from zero.
    edges: special values that every input is also tried with (value and finiteness, not differences).
    """

    inputs: tuple[Input, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    kink: Callable[..., Any] | None = None
    edges: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Primitive:
    """One operation: how to compute it, how to differentiate it, how to try it.

    Attributes:
        name: as in error messages and listings.
        infer: `infer(*arrays, **attributes)` gives a (shape, dtype) per output and raises `ShapeError` or
            `DTypeError`; it reads only shapes and dtypes (and index values).
        kernel: `kernel(outs, *arrays, **attributes)` writes into `outs`; it never raises and never writes to an input
            that is not donated.
        view: in place of a kernel: `view(array, **attributes)` gives the output as a view of the only input.
        vjp: `vjp(gy, y, *inputs, **attributes)` returns a thunk per input that gives its cotangent, or `None` where
            there is no derivative. Only the thunks that are needed are called. With several outputs `gy` and `y` are
            tuples.
        reference: the same function composed of other operations. Where there is no `vjp`, derivatives come from it;
            the tests compare the kernel with it.
        donates: inputs 0 to `donates - 1` are overwritten by the outputs of the same number (optimiser state).
        linear: the inputs in which the operation is linear (the tests check the adjoint identity).
        smooth: infinitely differentiable on its samples, so the tests also check order three.
        flops: `flops(*arrays, **attributes)`, floating point operations of one call.
        samples: ways to call it.
        formula: the scalar formula, if the operation is pointwise.
        row: `row(outs, inputs, parts, **attributes)`, for arrays of which only shapes, strides and dtypes are known,
            gives the `minigan.kernels.rows.Plan` of compiled code in up to `parts` parts, or `None`.
        cuda: `cuda(outs, inputs, **attributes)`, for such arrays, gives the `minigan.cuda.launch.Plan` of a GPU. A
            formula needs none; of a primitive that has neither, a GPU runs the reference.
    """

    name: str
    infer: Callable[..., Sequence[Spec]]
    kernel: Callable[..., None] | None = None
    view: Callable[..., Array] | None = None
    vjp: Callable[..., Sequence[Thunk]] | None = None
    reference: Callable[..., "Value"] | None = None
    donates: int = 0
    linear: tuple[int, ...] = ()
    smooth: bool = False
    flops: Callable[..., int] = lambda *arrays, **attributes: 0
    samples: tuple[Sample, ...] = ()
    formula: Any = None
    row: Callable[..., Any] | None = None
    cuda: Callable[..., Plan] | None = None

    def plan(self, outs: Sequence[Any], inputs: Sequence[Any], attributes: dict[str, Any]) -> Plan:
        """What a GPU runs for this call."""
        if self.cuda is not None:
            return self.cuda(outs, inputs, **attributes)
        return pointwise(self.formula, outs, inputs, **attributes)


class Storage:
    """What tensors over one block of memory share.

    Attributes:
        version: how often it was changed in place.
        of_result: whether it is the memory of a recorded result, which derivative rules read: it never changes.
        arrays: the caller's own arrays over this memory, if it is the caller's.
    """

    __slots__ = ("arrays", "of_result", "version")

    def __init__(self, arrays: tuple[Array, ...] = (), of_result: bool = False) -> None:
        self.version, self.arrays, self.of_result = 0, arrays, of_result

    def lock(self) -> "_Lock":
        """What keeps the caller's arrays read-only for as long as somebody holds it."""
        owner = id(self.arrays[-1])
        lock = _locks.get(owner)
        if lock is None:
            lock = _locks[owner] = _Lock()
        lock.add(self.arrays)
        return lock


class _Lock:
    """Arrays over one block of memory that are read-only until the last graph that read them is gone."""

    def __init__(self) -> None:
        self.arrays: list[Array] = []

    def add(self, arrays: Sequence[Array]) -> None:
        for array in arrays:
            if array.flags.writeable:
                array.flags.writeable = False
                self.arrays.append(array)

    def __del__(self) -> None:
        for array in sorted(
            self.arrays, key=lambda array: isinstance(array.base, np.ndarray)
        ):  # a view follows its owner
            array.flags.writeable = True


_locks: "weakref.WeakValueDictionary[int, _Lock]" = (
    weakref.WeakValueDictionary()
)  # by the owner of the memory


class Value:
    """An array and its place in the graph. `Tensor` adds the operators.

    Attributes:
        array: the memory.
        node: the call that computed it, or `None` for a leaf.
        point: the number of its place in the graph: two handles of one result have the same.
        storage: what it shares with other tensors over the same memory; `None` as long as there are none and nothing
            has changed it, which spares most results an object.
    """

    __slots__ = ("__weakref__", "array", "node", "point", "storage")

    def __init__(
        self, array: Array, node: "Node | None" = None, index: int = 0, storage: Storage | None = None
    ) -> None:
        self.array = array
        self.node = node
        if node is None:
            self.point = next(_points)
            if storage is None and _state.recorder is not None:
                _state.recorder.made(array)
        else:
            self.point = node.point + index
        self.storage = storage

    def share(self) -> Storage:
        """The storage, for another tensor over the same memory, or to count a change."""
        if self.storage is None:
            self.storage = Storage(of_result=self.node is not None)
        return self.storage


class Node:
    """One recorded call. It refers to its inputs, never to the tensors made from its outputs: no reference cycles.

    The memory of a result is never changed in place, so the versions of the inputs tell whether a derivative is right.
    """

    __slots__ = ("attributes", "inputs", "locks", "outs", "point", "primitive", "versions")

    def __init__(
        self,
        primitive: Primitive,
        inputs: tuple[Value, ...],
        attributes: dict[str, Any],
        outs: tuple[Array, ...],
    ) -> None:
        self.primitive = primitive
        self.inputs = inputs
        self.attributes = attributes
        self.outs = outs
        self.point = next(_points)  # rises with time, so sorting by it is a topological order
        self.locks: list[Any] | None = None
        versions = []
        for x in inputs:
            storage = x.storage
            if storage is None:
                versions.append(0)
            else:
                versions.append(storage.version)
                if storage.arrays:
                    self.locks = [*(self.locks or ()), storage.lock()]
        self.versions = tuple(versions)

    def check_unchanged(self) -> None:
        """Raise `GraphError` if an input was changed in place since it was recorded."""
        for x, version in zip(self.inputs, self.versions):  # noqa: B905 - every node of every walk passes here
            if x.storage is not None and x.storage.version != version:
                self._stale(x.array, x.storage.version - version)

    def _stale(self, array: Array, changes: int) -> None:
        raise GraphError(
            f"{self.primitive.name}: an input of shape {array.shape} was changed in place {changes} time(s) after it"
            " was recorded, as an optimiser does; take gradients before updating, or compute the outputs again"
        )


def replace(x: Value, array: Array) -> None:
    """Give a leaf other memory of the same content, as on another device; graphs and programs of the old are stale."""
    before = x.storage
    x.array, x.storage = array, Storage()
    x.storage.version = 1 + (0 if before is None else before.version)
    Memory.moves += 1


MAX_OUTPUTS = 8
_points = itertools.count(step=MAX_OUTPUTS)  # output i of a node is the point i places after the node's own


@contextmanager
def recording(on: bool) -> Iterator[None]:
    """Switch recording on or off in this thread for the block."""
    before, _state.recording = _state.recording, on
    try:
        yield
    finally:
        _state.recording = before


def no_grad() -> Any:
    """A context manager in which nothing is recorded, so that results have no history and no memory is held.

    >>> import minigan as mg
    >>> x = mg.tensor([1.0, 2.0])
    >>> with mg.no_grad():
    ...     y = (x * x).sum()
    >>> mg.grad(y, x)[0].numpy()
    array([0., 0.], dtype=float32)
    """
    return recording(False)


def apply(primitive: Primitive, *inputs: Any, **attributes: Any) -> Any:
    """Compute `primitive` on tensors: the one gateway of the package.

    Returns a tensor of the inputs' type, or a tuple of them for several outputs. Errors are those of the
    primitive's `infer`.
    """
    arrays = [x.array for x in inputs]
    device = common_device(primitive.name, arrays) if cuda.active() else "cpu"
    specs = primitive.infer(*arrays, **attributes)
    if primitive.donates:
        return _update(primitive, inputs, arrays, specs, attributes, device)
    if primitive.view is not None:
        outs: tuple[Array, ...] = (primitive.view(arrays[0], **attributes),)
        storage = inputs[0].share()
    elif device == "cpu":
        outs = allocate(specs)
        primitive.kernel(outs, *arrays, **attributes)  # type: ignore[misc]
        storage = None
    elif primitive.cuda is None and primitive.formula is None:
        return primitive.reference(*inputs, **attributes)  # type: ignore[misc]
    else:
        outs = cuda.empty(specs, device)
        _run_there(primitive, outs, arrays, attributes)
        storage = None
    if _state.recorder is not None:
        _state.recorder.call(primitive, arrays, outs, attributes)
    node = None
    if _state.recording and (primitive.vjp is not None or primitive.reference is not None):
        node = Node(primitive, inputs, attributes, outs)
    make = type(inputs[0])
    if len(outs) == 1:
        return make(outs[0], node, 0, storage)
    if len(outs) > MAX_OUTPUTS:
        raise GraphError(f"{primitive.name}: {len(outs)} outputs, at most {MAX_OUTPUTS} are possible")
    return tuple([make(out, node, i) for i, out in enumerate(outs)])


def _run_there(
    primitive: Primitive, outs: Sequence[Array], arrays: list[Array], attributes: dict[str, Any]
) -> None:
    """Run a primitive on the GPU that its arrays are on; a captured step runs later, and nothing looks at values."""
    if _state.recorder is None or not _state.recorder.composes:
        run(planned(primitive, outs, arrays, attributes), outs, arrays)


def _update(
    primitive: Primitive,
    inputs: Any,
    arrays: list[Array],
    specs: Sequence[Spec],
    attributes: dict[str, Any],
    device: str,
) -> Any:
    """Run a primitive whose first inputs are overwritten; the version of each rises."""
    donated = inputs[: primitive.donates]
    for k in range(primitive.donates, len(inputs) if device != "cpu" else 0):
        if any(cuda.overlap(arrays[k], x.array) for x in donated):  # a GPU overwrites them in any order
            with no_grad():
                arrays[k] = apply(copy, inputs[k]).array
    for position, x in enumerate(donated):
        if x.node is not None or (x.storage is not None and x.storage.of_result):
            raise GraphError(
                f"{primitive.name}: input {position}, shape {x.array.shape}, is to be updated in place but is memory of"
                " a recorded result: update a copy, made with minigan.tensor"
            )
        if device == "cpu" and not x.array.flags.writeable:
            raise GraphError(
                f"{primitive.name}: input {position}, shape {x.array.shape}, is to be updated in place but its array"
                " is read-only"
            )
    rest = specs[primitive.donates :]
    outs = (*arrays[: primitive.donates], *(allocate(rest) if device == "cpu" else cuda.empty(rest, device)))
    if _state.recorder is not None:
        _state.recorder.call(primitive, arrays, outs, attributes)
        for x in donated:
            _state.recorder.changes(x)
    if device == "cpu":
        primitive.kernel(outs, *arrays, **attributes)  # type: ignore[misc]
    else:
        _run_there(primitive, outs, arrays, attributes)
    for x in donated:
        x.share().version += 1
    return donated


def _as_list(values: Any, what: str) -> list[Any]:
    result = list(values) if isinstance(values, (list, tuple)) else [values]
    for value in result:
        if not isinstance(value, Value):
            raise GraphError(f"{what}: expected tensors, got {type(value).__name__}")
    return result


def grad(outputs: Any, inputs: Any, cotangents: Any = None, create_graph: bool = False) -> list[Any]:
    """Derivatives of `outputs` with respect to `inputs`, by reverse-mode differentiation.

    Computes, for every input x, the vector-Jacobian product Σ_k (∂y_k/∂x)ᵀ v_k over outputs y_k and their
    cotangents v_k (Griewank and Walther, *Evaluating Derivatives*, 2nd ed., §3.2). It changes nothing: calling it twice
    gives the same bits in memory of its own.

    Args:
        outputs: a tensor or a sequence of tensors, float.
        inputs: a tensor or a sequence of tensors, leaves or results.
        cotangents: one tensor per output with its shape and dtype; may be left out (or `None`) where the output is
            a scalar, shape (), and then stands for 1.
        create_graph: record the gradient's own computation, so that it can be differentiated again.

    Returns: a list with one tensor per input, of its shape and dtype; zeros for an input that is not used.

    Raises: `ShapeError` for an output that is not a scalar and has no cotangent, or a cotangent of another shape;
        `DTypeError` for integer tensors; `GraphError` for a tensor that was changed in place since it was recorded.

    >>> import minigan as mg
    >>> x = mg.tensor([1.0, 2.0, 3.0])
    >>> g, = mg.grad((x * x * x).sum(), x, create_graph=True)
    >>> g.numpy()
    array([ 3., 12., 27.], dtype=float32)
    >>> mg.grad(g.sum(), x)[0].numpy()
    array([ 6., 12., 18.], dtype=float32)
    """
    outs, targets = _as_list(outputs, "grad: outputs"), _as_list(inputs, "grad: inputs")
    for x in itertools.chain(outs, targets):
        if x.array.dtype not in FLOATS:
            raise DTypeError(
                f"grad: a tensor of dtype {x.array.dtype} has no derivative; use .astype before it"
            )
    if cotangents is None:
        seeds: list[Any] = [None] * len(outs)
    else:
        seeds = list(cotangents) if isinstance(cotangents, (list, tuple)) else [cotangents]
    if len(seeds) != len(outs):
        raise ShapeError(f"grad: {len(outs)} outputs but {len(seeds)} cotangents")
    seeds = [_seed(y, v) for y, v in zip(outs, seeds, strict=True)]
    with recording(create_graph):
        return _own_memory(_backward(outs, targets, seeds), targets, seeds)


def _seed(y: Value, v: Any) -> Any:
    if v is None:
        if y.array.ndim:
            raise ShapeError(
                f"grad: an output of shape {y.array.shape} is not a scalar: sum it, or pass cotangents of its shape"
            )
        return type(y)(full(((), y.array.dtype), 1, device_of(y.array)))
    if not isinstance(v, Value):
        v = type(y)(moved(np.array(v, y.array.dtype), device_of(y.array)))
    if v.array.shape != y.array.shape:
        raise ShapeError(f"grad: an output of shape {y.array.shape} has a cotangent of shape {v.array.shape}")
    if v.array.dtype != y.array.dtype:
        raise DTypeError(f"grad: an output of dtype {y.array.dtype} has a cotangent of dtype {v.array.dtype}")
    return v


def _backward(outs: list[Any], targets: list[Any], seeds: list[Any], cut: bool = False) -> list[Any]:
    """Cotangents of the targets (`None` where unused). With `cut`, what lies behind a target is not visited."""
    wanted = {x.point for x in targets}
    order, live = _needed(outs, wanted, cut)
    found: dict[int, Any] = {}
    for y, v in zip(outs, seeds, strict=True):
        found[y.point] = found[y.point] + v if y.point in found else v
    for node in reversed(order):
        node.check_unchanged()
        for x, thunk in zip(node.inputs, _thunks(node, found, wanted)):  # noqa: B905 - the tests hold every rule to it
            point = x.point
            if thunk is not None and point in live:
                gx = thunk()
                found[point] = found[point] + gx if point in found else gx
    return [found.get(x.point) for x in targets]


def _thunks(node: Node, found: dict[int, Any], wanted: set[int]) -> Sequence[Thunk]:
    """Ask the rule of `node`, with the cotangents found for its outputs; nothing if there are none."""
    rule = node.primitive.vjp or _rule_of_reference(node.primitive)
    make = type(node.inputs[0])
    # A target's cotangent stays; any other is dropped as soon as it is used, to free its memory.
    if len(node.outs) == 1:
        point = node.point
        gy = found.get(point) if point in wanted else found.pop(point, None)
        if gy is None:
            return ()
        y = make(node.outs[0], node, 0, node.inputs[0].storage if node.primitive.view else None)
        return rule(gy, y, *node.inputs, **node.attributes)
    ys = [make(out, node, i) for i, out in enumerate(node.outs)]
    gys = [found.get(y.point) if y.point in wanted else found.pop(y.point, None) for y in ys]
    if all(gy is None for gy in gys):
        return ()
    gys = [make(zeros_like(y.array)) if gy is None else gy for gy, y in zip(gys, ys, strict=True)]
    return rule(tuple(gys), tuple(ys), *node.inputs, **node.attributes)


def _needed(outs: list[Any], wanted: set[int], cut: bool) -> tuple[list[Node], set[int]]:
    """The nodes between `outs` and the wanted points, in the order they were recorded, and all their points."""
    stack = [y.node for y in outs if y.node is not None]
    seen: dict[int, Node] = {}
    while stack:
        node = stack.pop()
        if node.point in seen:
            continue
        seen[node.point] = node
        for x in node.inputs:
            behind = x.node
            if behind is not None and behind.point not in seen and not (cut and x.point in wanted):
                stack.append(behind)
    order = []
    live = set(wanted)
    for point, node in sorted(seen.items()):
        for x in node.inputs:
            if x.point in live:
                order.append(node)
                live.update(range(point, point + len(node.outs)))
                break
    return order, live


def _rule_of_reference(primitive: Primitive) -> Callable[..., Sequence[Thunk]]:
    """A derivative rule for a primitive that has none: differentiate its reference composition."""

    def rule(gy: Any, y: Any, *inputs: Any, **attributes: Any) -> Sequence[Thunk]:
        found: list[Any] = []

        def cotangent(position: int) -> Any:
            if not found:
                with recording(True):
                    # Handles of their own, so that the walk ends at the inputs and not at what they came from.
                    handles = [apply(alias, x) for x in inputs]
                    out = primitive.reference(*handles, **attributes)  # type: ignore[misc]
                found.extend(_backward([out], handles, [gy], cut=True))
            x, gx = inputs[position], found[position]
            return type(x)(zeros_like(x.array)) if gx is None else gx

        return [partial(cotangent, i) if x.array.dtype in FLOATS else None for i, x in enumerate(inputs)]

    return rule


def _own_memory(results: list[Any], targets: list[Any], seeds: list[Any]) -> list[Any]:
    """Give every result memory that nothing else holds: not another result, not the caller's cotangent."""
    taken = {id(v.array) for v in seeds}
    owned = []
    for x, gx in zip(targets, results, strict=True):
        if gx is None:
            gx = type(x)(zeros_like(x.array))
        elif id(gx.array) in taken or gx.array.base is not None:
            gx = apply(copy, gx)
        taken.add(id(gx.array))
        owned.append(gx)
    return owned


def same_spec(x: Array, **attributes: Any) -> Sequence[Spec]:
    """The shape rule of an operation whose output looks like its input."""
    return ((x.shape, x.dtype),)


_ANY = (Sample((Input((2, 3)),)), Sample((Input(()),)), Sample((Input((0, 2)),)))

alias = Primitive(
    "alias", same_spec, view=lambda x: x[...], vjp=lambda gy, y, x: (lambda: gy,), linear=(0,), samples=_ANY
)


def _copied(x: Any) -> Any:
    return x


copy = Primitive(
    "copy",
    same_spec,
    kernel=lambda outs, x: np.copyto(outs[0], x),
    vjp=lambda gy, y, x: (lambda: gy,),
    linear=(0,),
    samples=(*_ANY, Sample((Input((2, 1, 3, 2)),))),
    formula=Formula(_copied),
    row=copied,
)


def vjp(f: Callable[..., Any], *inputs: Any) -> tuple[Any, Callable[..., list[Any]]]:
    """The value of `f(*inputs)` and the function that pulls cotangents back through it.

    `pull(v)` returns a list with Σ_k (∂y_k/∂x)ᵀ v_k for each input x; it takes one cotangent per float output of
    `f`, shaped as that output. It may be called any number of times. Errors are those of `grad`.

    >>> import minigan as mg
    >>> y, pull = mg.vjp(lambda x, w: x * w, mg.tensor([1.0, 2.0]), mg.tensor([3.0, 4.0]))
    >>> [g.numpy().tolist() for g in pull(mg.tensor([1.0, 10.0]))]
    [[3.0, 40.0], [1.0, 20.0]]
    """
    with recording(True):
        handles = [apply(alias, x) for x in _as_list(list(inputs), "vjp: inputs")]
        y = f(*handles)
    outs = [out for out in _as_list(y, "vjp: the result of f") if out.array.dtype in FLOATS]

    def pull(*cotangents: Any) -> list[Any]:
        return grad(outs, handles, cotangents, create_graph=_state.recording)

    return y, pull


def jvp(f: Callable[..., Any], inputs: Any, tangents: Any) -> tuple[Any, Any]:
    """The value of `f(*inputs)` and its directional derivative Σ_i (∂y/∂x_i) t_i along `tangents`.

    Computed by two reverse passes: the pullback u ↦ Jᵀu is linear in u, and its own pullback is t ↦ Jt
    (J. Townsend, "A new trick for calculating Jacobian vector products", 2017).

    `inputs` and `tangents` are tensors, or sequences of the same length; the derivative has the form of `f`'s
    result.

    >>> import minigan as mg
    >>> y, dy = mg.jvp(lambda x: x * x, mg.tensor(3.0), mg.tensor(1.0))
    >>> y.item(), dy.item()
    (9.0, 6.0)
    """
    xs, ts = _as_list(inputs, "jvp: inputs"), _as_list(tangents, "jvp: tangents")
    if len(xs) != len(ts):
        raise ShapeError(f"jvp: {len(xs)} inputs but {len(ts)} tangents")
    create_graph = _state.recording
    y, pull = vjp(f, *xs)
    outs = _as_list(y, "jvp: the result of f")
    with recording(True):
        us = [type(out)(zeros_like(out.array)) for out in outs]
        pulled = pull(*us)
    dys = grad(pulled, us, ts, create_graph=create_graph)
    return y, (type(y)(dys) if isinstance(y, (list, tuple)) else dys[0])


def hvp(f: Callable[..., Any], inputs: Any, vectors: Any) -> list[Any]:
    """Hessian-vector products of a scalar function: Σ_j (∂²f/∂x_i∂x_j) v_j for each input x_i.

    Reverse over reverse (Pearlmutter 1994, "Fast exact multiplication by the Hessian"); the Hessian is never formed.

    >>> import minigan as mg
    >>> mg.hvp(lambda x: (x * x * x).sum(), mg.tensor([1.0, 2.0]), mg.tensor([1.0, 1.0]))[0].numpy()
    array([ 6., 12.], dtype=float32)
    """
    xs, vs = _as_list(inputs, "hvp: inputs"), _as_list(vectors, "hvp: vectors")
    create_graph = _state.recording
    with recording(True):
        handles = [apply(alias, x) for x in xs]
        first = grad(f(*handles), handles, create_graph=True)
    return grad(first, handles, vs, create_graph=create_graph)
