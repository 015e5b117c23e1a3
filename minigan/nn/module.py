"""A network is a tree of plain Python objects: attributes that are tensors, modules, or lists of modules."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import numpy as np

from minigan.backend import FLOATS, Array, Spec, device_name, lasting_zeros_like, moved
from minigan.errors import CheckpointError, ConfigError, DeviceError, GraphError, ShapeError
from minigan.kernels.loops import Formula
from minigan.ops.random import Stream
from minigan.tape import Input, Primitive, Sample, apply, replace
from minigan.tensor import Tensor
from minigan.trace import reads

LISTED = 10  # differences named in one error


def _assign_infer(old: Array, new: Array) -> tuple[Spec]:
    if old.shape != new.shape:
        raise ShapeError(f"assign: a tensor of shape {old.shape} cannot take values of shape {new.shape}")
    return ((old.shape, old.dtype),)


def _assigned(old: Any, new: Any) -> Any:
    return new


ASSIGN = Primitive(
    "assign",
    _assign_infer,
    kernel=lambda outs, old, new: np.copyto(outs[0], new, casting="same_kind"),
    donates=1,
    samples=(
        Sample((Input((2, 3)), Input((2, 3)))),
        Sample((Input(()), Input(()))),
        Sample((Input((0,)), Input((0,)))),
    ),
    formula=Formula(_assigned, donates=1),
)


class Module(ABC):
    """A part of a network: a function of one tensor with parameters as plain attributes.

    A subclass sets its tensors and modules as attributes and defines `__call__`. Lists, tuples and dicts of modules
    count as attributes too. `buffers` names the tensors that are state but not trained, such as running
    means.

    >>> import minigan as mg
    >>> class Scale(mg.nn.Module):
    ...     def __init__(self):
    ...         self.factor = mg.tensor([2.0])
    ...     def __call__(self, x, *, train=False, random=None):
    ...         return x * self.factor
    >>> scale = Scale()
    >>> scale(mg.tensor([1.0, 3.0])).numpy()
    array([2., 6.], dtype=float32)
    >>> list(scale.parameters())
    ['factor']
    """

    buffers: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """The output for a batch x, (N, ...); with `train`, dropout and the like draw from `random`."""

    def state(self) -> dict[str, Tensor]:
        """All tensors by name ("layers.0.weight") in the order of the attributes; a shared one once."""
        return {name: x for name, x, _ in _walk(self, "", set())}

    def parameters(self) -> dict[str, Tensor]:
        """The tensors that are trained: the float ones of `state()` that are no buffers."""
        return {name: x for name, x, trained in _walk(self, "", set()) if trained}

    def count(self) -> int:
        """How many numbers are trained."""
        return sum(x.size for x in self.parameters().values())

    def load_state(self, arrays: Mapping[str, Array]) -> None:
        """Copy `arrays`, named as in `state()`, into the tensors in place.

        Raises `CheckpointError`, before anything is changed, if a name is missing or unknown or a shape or
        dtype differs.
        """
        state = self.state()
        check_arrays({name: x.array for name, x in state.items()}, arrays)
        assign(state, arrays)

    def to(self, device: str) -> Self:
        """Move all its tensors to a device, `"cpu"`, `"cuda"` or `"cuda:1"`, in place; gives the module.

        The tensors stay the objects that they are, as others hold them; the derivative of what was computed from them
        before is an error. What is computed elsewhere for them does not move: move networks before a `minigan.Game`, a
        `minigan.GAN` or an optimiser's state is made of them.

        Raises: `DeviceError` if there is no such device, or no memory there; `GraphError` if a tensor is a recorded
            result. Then nothing has moved.

        >>> import minigan as mg
        >>> layer = mg.nn.Dense(2, 1, stream=mg.ops.Stream(0, "docs"))
        >>> layer.to("cpu") is layer
        True
        """
        wanted = device_name(str(device))
        state = {name: x for name, x in self.state().items() if x.device != wanted}
        for name, x in state.items():
            reads(x.array, "to()")
            if x.node is not None:
                raise GraphError(
                    f"{name}, shape {x.shape}, is a recorded result: make a leaf by minigan.tensor"
                )
        arrays = [moved(x.array, wanted) for x in state.values()]
        for x, array in zip(state.values(), arrays, strict=True):
            replace(x, array)
        return self

    def __repr__(self) -> str:
        return "\n".join(_describe(self))


def parameter(values: Tensor) -> Tensor:
    """A leaf with a copy of these values, in memory for a weight: on the CPU it begins at a cache line.

    >>> import minigan as mg
    >>> from minigan.nn.module import parameter
    >>> parameter(mg.tensor([1.0, 2.0])).numpy()
    array([1., 2.], dtype=float32)
    """
    leaf = Tensor(lasting_zeros_like(values.array))
    apply(ASSIGN, leaf, values)
    return leaf


class Weighted(Module):
    """A module that is linear in its attribute `weight`, which another module may replace: see `SpectralNorm`.

    A subclass defines `with_weight`.

    >>> import minigan as mg
    >>> layer = mg.nn.Dense(2, 1, bias=False, stream=mg.ops.Stream(0, "docs"))
    >>> layer.with_weight(mg.tensor([[3.0, 4.0]]), mg.tensor([[1.0], [1.0]])).numpy()
    array([[7.]], dtype=float32)
    """

    weight: Tensor

    @abstractmethod
    def with_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """The output for x if `weight` were the module's."""

    def __call__(self, x: Tensor, *, train: bool = False, random: Stream | None = None) -> Tensor:
        """The output for x."""
        return self.with_weight(x, self.weight)


class Conditional(Module):
    """A module whose output depends on the classes of the samples too, or that has such modules in it.

    A subclass has the parameter `labels` in its `__call__`, integers (N,); `forward` calls other modules without it.

    >>> import minigan as mg, numpy as np
    >>> net = mg.nn.Sequential(mg.nn.ConcatLabels(3), mg.nn.Dense(5, 1, stream=mg.ops.Stream(0, "docs")))
    >>> net(mg.tensor([[1.0, 2.0]]), labels=mg.tensor(np.array([2]))).shape
    (1, 1)
    """

    @abstractmethod
    def __call__(
        self, x: Tensor, *, train: bool = False, random: Stream | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """The output for a batch x, (N, ...), of samples of the classes `labels`."""


def forward(
    module: Module, x: Tensor, *, train: bool, random: Stream | None, labels: Tensor | None = None
) -> Tensor:
    """The module's output, given the labels, if there are any, where it is one that they are for."""
    if labels is not None and isinstance(module, Conditional):
        return module(x, train=train, random=random, labels=labels)
    return module(x, train=train, random=random)


@contextmanager
def substituted(module: Module, tensors: Mapping[int, Tensor]) -> Iterator[None]:
    """Let the module compute with other tensors, given by the `id` of those that they stand for, in the block.

    `ConfigError` if it has not got one of these.

    >>> import minigan as mg
    >>> layer = mg.nn.Dense(1, 1, bias=False, stream=mg.ops.Stream(0, "docs"))
    >>> with substituted(layer, {id(layer.weight): mg.tensor([[3.0]])}):
    ...     layer(mg.tensor([[2.0]])).numpy()
    array([[6.]], dtype=float32)
    """
    before: list[tuple[Module, dict[str, Any]]] = []
    left = dict(tensors)
    try:
        if tensors:
            _substitute(module, tensors, left, before)
        if left:
            raise ConfigError(f"{type(module).__name__}: {len(left)} of {len(tensors)} tensors are not in it")
        yield
    finally:
        for each, attributes in before:
            vars(each).update(attributes)


def _substitute(
    value: Any,
    tensors: Mapping[int, Tensor],
    left: dict[int, Tensor],
    before: list[tuple[Module, dict[str, Any]]],
) -> Any:
    """The value with other tensors in it, which are taken from `left`.

    Modules are changed in place, and what they had is added to `before`.
    """
    if isinstance(value, Module):
        if not any(value is module for module, _ in before):
            before.append((value, dict(vars(value))))
            own = vars(value).items()
            vars(value).update({name: _substitute(each, tensors, left, before) for name, each in own})
        return value
    if isinstance(value, dict):
        return {key: _substitute(each, tensors, left, before) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        make = getattr(value, "_make", type(value))  # of a named tuple
        return make([_substitute(each, tensors, left, before) for each in value])
    left.pop(id(value), None)
    return tensors.get(id(value), value)


def required_labels(module: Module, x: Tensor, labels: Tensor | None) -> Tensor:
    """The labels; `ConfigError` if there are none, `ShapeError` unless there is one for each sample of x."""
    name = type(module).__name__
    if labels is None:
        raise ConfigError(f"{name}: needs the labels of the samples: pass labels=, integers (N,)")
    if labels.shape != x.shape[:1]:
        raise ShapeError(
            f"{name}: labels of shape {labels.shape} for x of shape {x.shape}, expected {x.shape[:1]}"
        )
    return labels


def check_arrays(expected: Mapping[str, Array], given: Mapping[str, Array]) -> None:
    """Raise `CheckpointError`, listing what differs, unless names, shapes and dtypes are as expected."""
    wrong = [f"{name}: missing" for name in expected if name not in given]
    wrong += [f"{name}: unknown" for name in given if name not in expected]
    for name, array in expected.items():
        if name in given:
            have, want = (np.shape(given[name]), np.asarray(given[name]).dtype), (array.shape, array.dtype)
            if have != want:
                wrong.append(f"{name}: {have[1]} {have[0]}, expected {want[1]} {want[0]}")
    if wrong:
        rest = f"; and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
        raise CheckpointError(f"the arrays do not fit: {'; '.join(wrong[:LISTED])}{rest}")


def assign(tensors: Mapping[str, Tensor], arrays: Mapping[str, Array]) -> None:
    """Copy each array into the tensor of the same name, in place."""
    for name, x in tensors.items():
        apply(ASSIGN, x, Tensor(moved(np.asarray(arrays[name]), x.device)))


def device_of_all(*modules: Module) -> str:
    """The device of the tensors of some modules, "cpu" if there are none; `DeviceError` if they are on several."""
    devices = {x.device for module in modules for x in module.state().values()}
    if len(devices) > 1:
        raise DeviceError(
            f"{' and '.join(type(module).__name__ for module in modules)}: tensors on {' and '.join(sorted(devices))}:"
            " move them by .to(device)"
        )
    return devices.pop() if devices else "cpu"


def _children(module: Module) -> Iterator[tuple[str, Any]]:
    """The tensors and modules that are attributes of `module`, or stand in lists or dicts that are."""
    yield from _found("", vars(module))


def _found(prefix: str, values: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, (Tensor, Module)):
            yield f"{prefix}{name}", value
        elif isinstance(value, dict):
            yield from _found(f"{prefix}{name}.", value)
        elif isinstance(value, (list, tuple)):
            yield from _found(f"{prefix}{name}.", dict(enumerate(value)))


def _walk(module: Module, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor, bool]]:
    seen.add(id(module))
    for name, value in _children(module):
        if id(value) in seen:
            continue
        if isinstance(value, Module):
            yield from _walk(value, f"{prefix}{name}.", seen)
        else:
            seen.add(id(value))
            yield prefix + name, value, value.dtype in FLOATS and name not in module.buffers


def _describe(module: Module) -> Iterator[str]:
    """The lines of `repr`: a module's settings, tensors and count, and the same of its children, indented."""
    children = dict(_children(module))
    inside = {name.split(".")[0] for name in children}
    settings = [
        f"{k}={v!r}" for k, v in vars(module).items() if not (k.startswith("_") or k in inside or v is None)
    ]
    tensors = [f"{name} {x.shape}" for name, x in children.items() if isinstance(x, Tensor)]
    count = module.count()
    yield "  ".join(
        [f"{type(module).__name__}({', '.join(settings)})", *tensors]
        + [f"# {count:,} parameters"] * bool(count)
    )
    for name, child in children.items():
        if isinstance(child, Module):
            first, *rest = _describe(child)
            yield f"  {name}: {first}"
            yield from (f"  {line}" for line in rest)
