"""`Tensor`: an array with NumPy's operators and a history, and what its operators and all derivative rules call:
arithmetic and comparison, and the functions over the linear primitives. Every other operation is in `minigan.ops`.
"""

import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Union

import numpy as np

from minigan import backend
from minigan.backend import FLOATS, KINDS, Array, constant, cuda, device_name, device_of, moved, native
from minigan.comparison import EQUAL, GREATER, GREATER_EQUAL, LOGICAL_AND, LOGICAL_OR, LOGICAL_XOR, NOT_EQUAL
from minigan.errors import DeviceError, DTypeError, ShapeError
from minigan.kernels import formula as fm
from minigan.linear import (
    CAST,
    MATMUL,
    MEAN,
    SCATTER,
    SLICE,
    SUM,
    TAKE,
    TRANSPOSE,
    Axis,
    axes_of,
    axis_of,
    check_indices,
    expand,
    same_elements,
    unbroadcast,
)
from minigan.pointwise import pointwise
from minigan.tape import Storage, Value, apply
from minigan.trace import reads

TensorLike = Union["Tensor", Array, np.generic, float, int]
NUMBERS = (bool, int, float, np.generic)


class Tensor(Value):
    """An array with a history. Make one with `minigan.tensor` or `minigan.asarray`.

    Operators broadcast and promote as NumPy 2's: float32 with float64 gives float64, Python numbers take the other
    operand's dtype. Tensors are immutable to their users; only optimisers change them in place.

    >>> import minigan as mg
    >>> x = mg.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> (x @ x + 1).numpy()
    array([[ 8., 11.],
           [16., 23.]], dtype=float32)
    """

    __slots__ = ()
    __array_ufunc__ = None  # NumPy arrays on the left hand side leave the operation to us

    @property
    def shape(self) -> tuple[int, ...]:
        """The size along each axis."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype."""
        return self.array.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.array.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.array.size

    @property
    def device(self) -> str:
        """Where the array lives: `"cpu"`, or `"cuda:0"` and so on."""
        return device_of(self.array)

    def numpy(self) -> Array:
        """A read-only view of the array; of one on a GPU, a copy, once all work before is done.

        An optimiser's later step shows in a view; copy what is to be kept.
        """
        reads(self.array, "numpy()")
        view = moved(self.array, "cpu").view()
        view.flags.writeable = False
        return view

    def to(self, device: str) -> "Tensor":
        """This tensor on a device, `"cpu"`, `"cuda"` or `"cuda:1"`: itself if it is there, else a copy, a leaf.

        `DeviceError` if there is no such device.
        """
        wanted = device_name(str(device))  # `None`, which is the CPU elsewhere, is no device to go to
        if self.device == wanted:
            return self
        reads(self.array, "to()")
        return Tensor(moved(self.array, wanted))

    def item(self) -> Any:
        """The only element, as a Python number; `ShapeError` if there is not exactly one."""
        reads(self.array, "item()")
        if self.array.size != 1:
            raise ShapeError(f"item: a tensor of shape {self.shape} has {self.size} elements, not one")
        return moved(self.array, "cpu").item()

    def detach(self) -> "Tensor":
        """The same memory without the history: a leaf."""
        return Tensor(self.array, storage=self.share())

    def astype(self, dtype: Any) -> "Tensor":
        """This tensor in another dtype, differentiable between float dtypes."""
        return cast(self, dtype)

    def reshape(self, *shape: Any) -> "Tensor":
        """See `minigan.ops.reshape`; takes the sizes as arguments or as one tuple."""
        return reshape(self, shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)

    def transpose(self, *axes: Any) -> "Tensor":
        """See `minigan.ops.transpose`; takes the axes as arguments or as one tuple; reverses them by default."""
        return transpose(self, (axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes) or None)

    @property
    def T(self) -> "Tensor":
        """The axes in reverse order."""
        return transpose(self)

    @property
    def mT(self) -> "Tensor":
        """The last two axes swapped; `ShapeError` with fewer than two."""
        if self.ndim < 2:
            raise ShapeError(f"mT: a tensor of shape {self.shape} has fewer than two axes")
        return transpose(self, (*range(self.ndim - 2), self.ndim - 1, self.ndim - 2))

    def sum(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """See `minigan.ops.sum`."""
        return sum(self, axis, keepdims)

    def mean(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """See `minigan.ops.mean`."""
        return mean(self, axis, keepdims)

    def __add__(self, other: TensorLike) -> "Tensor":
        return add(self, other)

    __radd__ = __add__

    def __sub__(self, other: TensorLike) -> "Tensor":
        return subtract(self, other)

    def __rsub__(self, other: TensorLike) -> "Tensor":
        return subtract(other, self)

    def __mul__(self, other: TensorLike) -> "Tensor":
        return multiply(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: TensorLike) -> "Tensor":
        return divide(self, other)

    def __rtruediv__(self, other: TensorLike) -> "Tensor":
        return divide(other, self)

    def __pow__(self, other: TensorLike) -> "Tensor":
        return power(self, other)

    def __rpow__(self, other: TensorLike) -> "Tensor":
        return power(other, self)

    def __matmul__(self, other: TensorLike) -> "Tensor":
        return matmul(self, other)

    def __rmatmul__(self, other: TensorLike) -> "Tensor":
        return matmul(other, self)

    def __neg__(self) -> "Tensor":
        return negative(self)

    def __pos__(self) -> "Tensor":
        return self

    def __abs__(self) -> "Tensor":
        return absolute(self)

    def __gt__(self, other: TensorLike) -> "Tensor":
        return greater(self, other)

    def __ge__(self, other: TensorLike) -> "Tensor":
        return greater_equal(self, other)

    def __lt__(self, other: TensorLike) -> "Tensor":
        return greater(other, self)

    def __le__(self, other: TensorLike) -> "Tensor":
        return greater_equal(other, self)

    def __eq__(self, other: object) -> "Tensor":  # type: ignore[override]
        return NotImplemented if other is None else equal(self, other)  # type: ignore[arg-type]

    def __ne__(self, other: object) -> "Tensor":  # type: ignore[override]
        return NotImplemented if other is None else not_equal(self, other)  # type: ignore[arg-type]

    def __and__(self, other: TensorLike) -> "Tensor":
        return logical_and(self, other)

    __rand__ = __and__

    def __or__(self, other: TensorLike) -> "Tensor":
        return logical_or(self, other)

    __ror__ = __or__

    def __xor__(self, other: TensorLike) -> "Tensor":
        return logical_xor(self, other)

    __rxor__ = __xor__

    def __invert__(self) -> "Tensor":
        return logical_xor(self, True)

    __hash__ = Value.__hash__  # by identity, as a tensor is a point of a graph

    def __getitem__(self, key: Any) -> "Tensor":
        return index(self, key)

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("a tensor of shape () has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator["Tensor"]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if self.device != "cpu":
            raise DeviceError(f"a tensor on {self.device} becomes a NumPy array by .numpy() only")
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        reads(self.array, "__dlpack__")
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    def __copy__(self) -> "Tensor":
        return self.detach()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Tensor":
        reads(self.array, "deepcopy")
        return tensor(self, device=self.device)

    def __reduce__(self) -> Any:
        # A leaf: a place in the graph means nothing in another process.
        return tensor, (self.numpy(), None, self.device)

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __repr__(self) -> str:
        where = "" if self.device == "cpu" else f", device={self.device!r}"
        return np.array2string(moved(self.array, "cpu"), prefix="Tensor(", separator=", ").join(
            ("Tensor(", f", dtype={self.dtype}{where})")
        )


def tensor(array: Any, dtype: Any = None, device: str | None = None) -> Tensor:
    """A leaf tensor with a copy of `array`.

    Args:
        array: a NumPy or CuPy array, a tensor, or nested lists of Python numbers (floats become float32).
        dtype: float32, float64, an integer dtype or bool; by default the array's own.
        device: `"cpu"`, `"cuda"` or `"cuda:1"`; by default a tensor's or CuPy array's own, and the CPU for all others.

    Raises: `DTypeError` for other dtypes; `DeviceError` for other devices.

    >>> import minigan as mg
    >>> mg.tensor([1, 2.5])
    Tensor([1. , 2.5], dtype=float32)
    """
    if isinstance(array, Tensor) or cuda.found(array):
        there = array if isinstance(array, Tensor) else Tensor(array)
        device, array = there.device if device is None else device, there.numpy()
    return Tensor(moved(native(array, dtype, copy=True), device_name(device)))


def asarray(array: Any, dtype: Any = None, device: str | None = None) -> Tensor:
    """A leaf tensor that shares the memory of NumPy's or CuPy's array where it can (native, aligned, of the dtype).

    While a graph holds the tensor, NumPy's array is read-only, so that what was recorded cannot change unseen. A write
    to CuPy's, through another view made earlier, or through a DLPack export, cannot be seen. Arguments and errors as
    for `tensor`; a tensor is returned as it is if its dtype and device are those wanted.

    >>> import numpy as np, minigan as mg
    >>> a = np.ones(2)
    >>> y = mg.asarray(a) * 2
    >>> a.flags.writeable
    False
    >>> del y
    >>> a.flags.writeable
    True
    """
    if isinstance(array, Tensor) or cuda.found(array):
        there = array if isinstance(array, Tensor) else Tensor(backend.supported(array))
        there = there if device is None else there.to(device)
        return there if dtype is None or there.dtype == dtype else there.astype(dtype)
    if device_name(device) != "cpu":
        return tensor(array, dtype, device)
    # A view of one's own, which an optimiser may still write to while the caller's array is locked: the version tells.
    own = native(array, dtype)[...]
    if not isinstance(array, np.ndarray) or not np.may_share_memory(own, array):
        return Tensor(own)
    owner = (array.base,) if isinstance(array.base, np.ndarray) else ()
    return Tensor(own, storage=Storage((array, *owner)))


def lift(x: TensorLike) -> Tensor:
    """A function's argument as a tensor: tensors as they are, anything else copied into a leaf.

    >>> from minigan.tensor import lift
    >>> lift([1, 2.5])
    Tensor([1. , 2.5], dtype=float32)
    """
    return x if isinstance(x, Tensor) else _named(tensor, x)


def pair(a: TensorLike, b: TensorLike) -> tuple[Tensor, Tensor]:
    """Two operands as tensors of one dtype: Python numbers are weak, float32 meets float64 as float64.

    >>> import minigan as mg
    >>> from minigan.tensor import pair
    >>> [x.dtype.name for x in pair(mg.tensor([1.0]), mg.tensor([1.0], dtype="float64"))]
    ['float64', 'float64']
    """
    x = a if isinstance(a, Tensor) else _named(_weak, a, b)
    y = b if isinstance(b, Tensor) else _named(_weak, b, x)
    one, other = x.array.dtype, y.array.dtype
    if one is not other and one != other and one.kind == other.kind == "f":
        return cast(x, np.float64), cast(y, np.float64)
    return x, y


def _named(convert: Any, *values: Any) -> Tensor:
    """Convert an argument; an error names the operation, which is the function that called `lift` or `pair`."""
    try:
        return convert(*values)  # type: ignore[no-any-return]
    except DTypeError as error:
        raise DTypeError(f"{sys._getframe(2).f_code.co_name}: {error}") from None


def _weak(x: TensorLike, other: TensorLike) -> Tensor:
    if isinstance(x, NUMBERS) and isinstance(other, Tensor):
        return Tensor(constant(backend.weak(x, other.array.dtype), other.array))
    return tensor(x)


# Arithmetic


@pointwise(
    lambda gy, y, a, b: (lambda: unbroadcast(gy, a.shape), lambda: unbroadcast(gy, b.shape)), ufunc=np.add
)
def _add(a: Any, b: Any) -> Any:
    return a + b


@pointwise(
    lambda gy, y, a, b: (lambda: unbroadcast(gy, a.shape), lambda: unbroadcast(-gy, b.shape)),
    ufunc=np.subtract,
)
def _subtract(a: Any, b: Any) -> Any:
    return a - b


@pointwise(
    lambda gy, y, a, b: (lambda: unbroadcast(gy * b, a.shape), lambda: unbroadcast(gy * a, b.shape)),
    ufunc=np.multiply,
    linear=(0, 1),
)
def _multiply(a: Any, b: Any) -> Any:
    return a * b


@pointwise(
    lambda gy, y, a, b: (
        lambda: unbroadcast(gy / b, a.shape),
        lambda: unbroadcast(-gy * y / b, b.shape),
    ),
    ufunc=np.divide,
    linear=(0,),
    low=0.3,
)
def _divide(a: Any, b: Any) -> Any:
    return a / b


@pointwise(lambda gy, y, x: (lambda: -gy,), ufunc=np.negative, linear=(0,))
def _negative(x: Any) -> Any:
    return -x


@pointwise(
    lambda gy, y, a, b: (
        lambda: unbroadcast(gy * b * power(a, _exponent_less_one(a, b)), a.shape),
        lambda: unbroadcast(gy * y * log(where(a > 0, a, 1.0)), b.shape),
    ),
    ufunc=np.power,
    low=0.3,
)
def _power(a: Any, b: Any) -> Any:
    return fm.power(a, b)


def _exponent_less_one(a: Tensor, b: Tensor) -> Tensor:
    """b - 1, but 1 where b is 0 and a^-1 overflows: 0 times a^-1 is to be 0 and not NaN."""
    small = absolute(a) < float(np.finfo(a.dtype).tiny)
    return where(small, where(b == 0, 1.0, b - 1), b - 1)


@pointwise(lambda gy, y, x: (lambda: gy * sign(x),), ufunc=np.absolute, kink=lambda x: x, smooth=False)
def _absolute(x: Any) -> Any:
    return fm.absolute(x)


@pointwise(lambda gy, y, x: (None,), ufunc=np.sign, kink=lambda x: x, smooth=False)
def _sign(x: Any) -> Any:
    return fm.sign(x)


@pointwise(lambda gy, y, x: (lambda: gy / x,), low=0.3)
def _log(x: Any) -> Any:
    return fm.log(x)


@pointwise(
    lambda gy, y, c, a, b: (
        None,
        lambda: unbroadcast(where(c, gy, 0.0), a.shape),
        lambda: unbroadcast(where(c, 0.0, gy), b.shape),
    ),
    masks=1,
    linear=(),
)
def _where(c: Any, a: Any, b: Any) -> Any:
    return fm.where(c, a, b)


def add(a: TensorLike, b: TensorLike) -> Tensor:
    """a + b, broadcast.

    `ShapeError` if the shapes do not broadcast, `DTypeError` for integers and booleans.

    >>> import minigan as mg
    >>> mg.ops.add(mg.tensor([[1.0], [2.0]]), mg.tensor([10.0, 20.0])).numpy()
    array([[11., 21.],
           [12., 22.]], dtype=float32)
    """
    return apply(_add, *pair(a, b))  # type: ignore[no-any-return]


def subtract(a: TensorLike, b: TensorLike) -> Tensor:
    """a - b, broadcast; derivatives 1 and -1. Errors as for `add`.

    >>> import minigan as mg
    >>> mg.ops.subtract(mg.tensor([[1.0], [2.0]]), mg.tensor([1.0, 2.0])).numpy()
    array([[ 0., -1.],
           [ 1.,  0.]], dtype=float32)
    """
    return apply(_subtract, *pair(a, b))  # type: ignore[no-any-return]


def multiply(a: TensorLike, b: TensorLike) -> Tensor:
    """a · b, element by element, broadcast; derivatives b and a. Errors as for `add`.

    >>> import minigan as mg
    >>> mg.ops.multiply(mg.tensor([1.0, 2.0]), mg.tensor([3.0, 4.0])).numpy()
    array([3., 8.], dtype=float32)
    """
    return apply(_multiply, *pair(a, b))  # type: ignore[no-any-return]


def divide(a: TensorLike, b: TensorLike) -> Tensor:
    """a / b, element by element, broadcast; IEEE: 1/0 is inf, 0/0 is NaN.

    Derivatives 1 / b and -a / b². Errors as for `add`.

    >>> import minigan as mg
    >>> mg.ops.divide(mg.tensor([1.0, 3.0]), mg.tensor([4.0, 2.0])).numpy()
    array([0.25, 1.5 ], dtype=float32)
    """
    return apply(_divide, *pair(a, b))  # type: ignore[no-any-return]


def negative(x: TensorLike) -> Tensor:
    """-x; derivative -1. `DTypeError` unless x is float32 or float64.

    >>> import minigan as mg
    >>> mg.ops.negative(mg.tensor([1.0, -2.0])).numpy()
    array([-1.,  2.], dtype=float32)
    """
    return apply(_negative, lift(x))  # type: ignore[no-any-return]


def power(a: TensorLike, b: TensorLike) -> Tensor:
    """a to the power b, broadcast.

    ∂/∂a = b a^(b-1), which is 0 where b = 0; ∂/∂b = a^b log a, taken as 0 where a <= 0. IEEE: 0**0 is 1, a negative
    base with a fractional exponent is NaN, and x**0.5 has derivative inf at 0.

    >>> import minigan as mg
    >>> mg.ops.power(mg.tensor([2.0, 3.0]), mg.tensor([3.0, 2.0])).numpy()
    array([8., 9.], dtype=float32)
    """
    if isinstance(b, (int, float)) and not isinstance(b, np.generic) and b == 2:
        a = lift(a)
        return multiply(a, a)
    return apply(_power, *pair(a, b))  # type: ignore[no-any-return]


def absolute(x: TensorLike) -> Tensor:
    """|x|; derivative sign(x), so 0 at 0. `DTypeError` unless x is float32 or float64.

    >>> import minigan as mg
    >>> mg.ops.absolute(mg.tensor([-1.5, 2.0])).numpy()
    array([1.5, 2. ], dtype=float32)
    """
    return apply(_absolute, lift(x))  # type: ignore[no-any-return]


def sign(x: TensorLike) -> Tensor:
    """-1, 0 or 1 by the sign of x; NaN for NaN; no derivative. `DTypeError` unless x is float32 or float64.

    >>> import minigan as mg
    >>> mg.ops.sign(mg.tensor([-1.5, 0.0, 2.0])).numpy()
    array([-1.,  0.,  1.], dtype=float32)
    """
    return apply(_sign, lift(x))  # type: ignore[no-any-return]


def log(x: TensorLike) -> Tensor:
    """The natural logarithm; -inf at 0, NaN below; derivative 1/x. `DTypeError` unless x is float32 or float64.

    >>> import minigan as mg
    >>> mg.ops.log(mg.tensor([1.0, 0.0])).numpy()
    array([  0., -inf], dtype=float32)
    """
    return apply(_log, lift(x))  # type: ignore[no-any-return]


def where(condition: TensorLike, a: TensorLike, b: TensorLike) -> Tensor:
    """a where the boolean `condition` holds, else b; broadcast. No value or NaN of the other branch gets through.

    Derivative 1 for the one taken, 0 for the other. `DTypeError` if `condition` is not boolean.

    >>> import minigan as mg
    >>> x = mg.tensor([-1.0, 4.0])
    >>> mg.ops.where(x > 0, x, 0.0).numpy()
    array([0., 4.], dtype=float32)
    """
    mask = lift(condition)
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        a = Tensor(constant(native(a), mask.array)) if isinstance(a, NUMBERS) else tensor(a)
    return apply(_where, mask, *pair(a, b))  # type: ignore[no-any-return]


# Comparison: boolean results without derivatives, for numbers, labels and masks alike


def greater(a: TensorLike, b: TensorLike) -> Tensor:
    """a > b as booleans, broadcast; `False` where either is NaN. Any dtypes; no derivative.

    `ShapeError` if the shapes do not broadcast.

    >>> import minigan as mg
    >>> mg.ops.greater(mg.tensor([1.0, 2.0, 3.0]), 2.0).numpy()
    array([False, False,  True])
    """
    return apply(GREATER, *pair(a, b))  # type: ignore[no-any-return]


def greater_equal(a: TensorLike, b: TensorLike) -> Tensor:
    """a >= b as booleans, broadcast; `False` where either is NaN. Otherwise as `greater`.

    >>> import minigan as mg
    >>> mg.ops.greater_equal(mg.tensor([1.0, 2.0, 3.0]), 2.0).numpy()
    array([False,  True,  True])
    """
    return apply(GREATER_EQUAL, *pair(a, b))  # type: ignore[no-any-return]


def equal(a: TensorLike, b: TensorLike) -> Tensor:
    """a == b as booleans, broadcast; `False` where either is NaN. Otherwise as `greater`.

    >>> import minigan as mg
    >>> mg.ops.equal(mg.tensor([1, 2, 3]), 2).numpy()
    array([False,  True, False])
    """
    return apply(EQUAL, *pair(a, b))  # type: ignore[no-any-return]


def not_equal(a: TensorLike, b: TensorLike) -> Tensor:
    """a != b as booleans, broadcast; `True` where either is NaN. Otherwise as `greater`.

    >>> import minigan as mg
    >>> mg.ops.not_equal(mg.tensor([1, 2, 3]), 2).numpy()
    array([ True, False,  True])
    """
    return apply(NOT_EQUAL, *pair(a, b))  # type: ignore[no-any-return]


def logical_and(a: TensorLike, b: TensorLike) -> Tensor:
    """Both of two masks, broadcast: boolean arrays in and out, else `DTypeError`; also written a & b.

    >>> import minigan as mg
    >>> x = mg.tensor([-1.0, 0.5, 2.0])
    >>> ((x > 0) & (x < 1)).numpy()
    array([False,  True, False])
    """
    return apply(LOGICAL_AND, *pair(a, b))  # type: ignore[no-any-return]


def logical_or(a: TensorLike, b: TensorLike) -> Tensor:
    """Either of two masks, broadcast: boolean arrays in and out, else `DTypeError`; also written a | b.

    >>> import minigan as mg
    >>> x = mg.tensor([-1.0, 0.5, 2.0])
    >>> ((x < 0) | (x > 1)).numpy()
    array([ True, False,  True])
    """
    return apply(LOGICAL_OR, *pair(a, b))  # type: ignore[no-any-return]


def logical_xor(a: TensorLike, b: TensorLike) -> Tensor:
    """One of two masks but not both, broadcast; also written a ^ b, and ~a for a ^ True.

    >>> import minigan as mg
    >>> (~(mg.tensor([1.0, -1.0]) > 0)).numpy()
    array([False,  True])
    """
    return apply(LOGICAL_XOR, *pair(a, b))  # type: ignore[no-any-return]


# The linear operations of `minigan.linear`


def cast(x: TensorLike, dtype: Any) -> Tensor:
    """x in another dtype; differentiable from float to float. `DTypeError` for a dtype minigan does not have.

    >>> import minigan as mg, numpy as np
    >>> mg.ops.cast(mg.tensor([0, 3]), np.float64).numpy()
    array([0., 3.])
    """
    x, wanted = lift(x), np.dtype(dtype)
    if wanted not in FLOATS and wanted.kind not in KINDS:
        raise DTypeError(f"cast: dtype {wanted} is not supported: float32, float64, integers or bool")
    return x if x.array.dtype == wanted else apply(CAST, x, dtype=wanted)


def sum(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum over one axis, several, or all; 0 over an axis of size 0.

    `ShapeError` for an axis that is not there, `DTypeError` for integers and booleans (cast them first).

    >>> import minigan as mg
    >>> mg.ops.sum(mg.tensor([[1.0, 2.0], [3.0, 4.0]]), axis=0).numpy()
    array([4., 6.], dtype=float32)
    """
    x = lift(x)
    return apply(SUM, x, axes=axes_of("sum", axis, x.ndim), keepdims=keepdims)  # type: ignore[no-any-return]


def mean(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean over one axis, several, or all; NaN with a RuntimeWarning over nothing, as NumPy's.

    Errors as for `sum`; derivative 1 / n for n elements.

    >>> import minigan as mg
    >>> mg.ops.mean(mg.tensor([[1.0, 2.0], [3.0, 4.0]]), axis=1).numpy()
    array([1.5, 3.5], dtype=float32)
    """
    x = lift(x)
    axes = axes_of("mean", axis, x.ndim)
    if any(x.shape[a] == 0 for a in axes):
        warnings.warn(f"mean over no elements of shape {x.shape} is NaN", RuntimeWarning, stacklevel=2)
    return apply(MEAN, x, axes=axes, keepdims=keepdims)  # type: ignore[no-any-return]


def broadcast_to(x: TensorLike, shape: Sequence[int]) -> Tensor:
    """x repeated along new axes and axes of size 1 to `shape`, without copying; `ShapeError` if that does not fit.

    The derivative sums over the repetitions.

    >>> import minigan as mg
    >>> mg.ops.broadcast_to(mg.tensor([1.0, 2.0]), (2, 2)).numpy()
    array([[1., 2.],
           [1., 2.]], dtype=float32)
    """
    return expand(lift(x), tuple(shape))  # type: ignore[no-any-return]


def reshape(x: TensorLike, shape: int | Sequence[int]) -> Tensor:
    """The same elements, in row-major order, in another shape; one size may be -1 and is then worked out.

    A view where memory order allows. `ShapeError` if the sizes differ.

    >>> import minigan as mg
    >>> mg.ops.reshape(mg.tensor([1.0, 2.0, 3.0, 4.0]), (2, -1)).shape
    (2, 2)
    """
    x = lift(x)
    sizes = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(shape)
    if sizes.count(-1) == 1:
        rest = -math.prod(sizes)
        if rest == 0 or x.size % rest:
            raise ShapeError(f"reshape: {x.size} elements of shape {x.shape} do not fill shape {sizes}")
        sizes = tuple(x.size // rest if n == -1 else n for n in sizes)
    return same_elements(x, sizes)  # type: ignore[no-any-return]


def transpose(x: TensorLike, axes: Sequence[int] | None = None) -> Tensor:
    """The axes in another order, reversed by default; a view. `ShapeError` if `axes` is no permutation of all axes.

    >>> import minigan as mg
    >>> mg.ops.transpose(mg.tensor([[1.0, 2.0, 3.0]])).shape
    (3, 1)
    """
    x = lift(x)
    order = tuple(range(x.ndim))[::-1] if axes is None else tuple(a + x.ndim if a < 0 else a for a in axes)
    return apply(TRANSPOSE, x, axes=order)  # type: ignore[no-any-return]


def matmul(a: TensorLike, b: TensorLike) -> Tensor:
    """The matrix product a @ b over the last two axes; leading axes broadcast, and a vector is a row or a column.

    a: (..., M, K) or (K,); b: (..., K, N) or (K,); result: (..., M, N) without the axes that a vector lacks.

    >>> import minigan as mg
    >>> (mg.tensor([1.0, 2.0]) @ mg.tensor([[1.0], [10.0]])).numpy()
    array([21.], dtype=float32)
    """
    a, b = pair(a, b)
    if not a.ndim or not b.ndim:
        raise ShapeError(f"matmul: shapes {a.shape} and {b.shape}: a scalar is no matrix, use *")
    if a.ndim == 1:
        product = matmul(reshape(a, (1, a.size)), b)
        return reshape(product, product.shape[:-2] + product.shape[-1:] if b.ndim > 1 else ())
    if b.ndim == 1:
        return reshape(product := matmul(a, reshape(b, (b.size, 1))), product.shape[:-1])
    if a.ndim > 2 and b.ndim == 2 and a.size:  # one large product in place of a stack of small ones
        return reshape(matmul(reshape(a, (-1, a.shape[-1])), b), (*a.shape[:-1], b.shape[-1]))
    return apply(MATMUL, a, b, ta=False, tb=False)  # type: ignore[no-any-return]


def take(x: TensorLike, indices: TensorLike, axis: int = 0) -> Tensor:
    """The slices of x at integer `indices` along `axis`; their adjoint adds up repeated ones.

    x: (..., n, ...); indices: integers of any shape in -n .. n - 1; the result has the shape of `indices` in the
    place of `axis`. `ShapeError` for an index out of range, `DTypeError` for indices that are no integers.

    >>> import minigan as mg, numpy as np
    >>> mg.ops.take(mg.tensor([10.0, 20.0, 30.0]), np.array([2, 0, 2])).numpy()
    array([30., 10., 30.], dtype=float32)
    """
    x = lift(x)
    return apply(TAKE, x, lift(indices), axis=axis_of("take", axis, x.ndim))  # type: ignore[no-any-return]


def scatter(values: TensorLike, indices: TensorLike, size: int, axis: int = 0) -> Tensor:
    """Zeros with `values` added at integer `indices` along `axis`, repeated ones adding up: the adjoint of `take`.

    values: (..., *indices.shape, ...), the axes of `indices` in the place of `axis`; the result has one axis of `size`
    there. `ShapeError` for an index out of range or values of another shape.

    >>> import minigan as mg, numpy as np
    >>> mg.ops.scatter(mg.tensor([1.0, 10.0, 100.0]), np.array([2, 0, 2]), 3).numpy()
    array([ 10.,   0., 101.], dtype=float32)
    """
    x, places = lift(values), lift(indices)
    ndim = x.ndim - places.ndim + 1
    at = axis_of("scatter", axis, max(ndim, 1))
    if x.shape[at : at + places.ndim] != places.shape or ndim < 1:
        raise ShapeError(
            f"scatter: values of shape {x.shape} do not have indices {places.shape} at axis {at}"
        )
    check_indices("scatter", places.array, size)
    shape = (*x.shape[:at], size, *x.shape[at + places.ndim :])
    return apply(SCATTER, x, places, axis=at, shape=shape)  # type: ignore[no-any-return]


def _is_basic(key: Any) -> bool:
    """Whether NumPy gives a view for this part of a key; `True` and `False` are masks, though integers to Python."""
    return (
        key is None or key is ... or (isinstance(key, (slice, int, np.integer)) and not isinstance(key, bool))
    )


def index(x: TensorLike, key: Any) -> Tensor:
    """x[key] with all of NumPy's keys: integers, slices, `None`, `...`, integer arrays, boolean masks.

    Integers and slices give views. `ShapeError` for a key that is out of range or does not fit.

    >>> import minigan as mg
    >>> x = mg.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> x[:, 1].numpy(), x[x > 2.0].numpy()
    (array([2., 4.], dtype=float32), array([3., 4.], dtype=float32))
    """
    x = lift(x)
    if isinstance(key, Tensor) and key.dtype.kind in "iu":
        return take(x, key)
    parts = key if isinstance(key, tuple) else (key,)
    for part in parts:
        if isinstance(part, Tensor):
            reads(part.array, "an index")
            backend.common_device("index", [x.array, part.array])
    keys = tuple(moved(k.array, "cpu") if isinstance(k, Tensor) else k for k in parts)
    if all(_is_basic(k) for k in keys):
        # The `...` makes NumPy return an array, never a scalar, for a key that leaves no axis.
        return apply(SLICE, x, key=keys if ... in keys else (*keys, ...))  # type: ignore[no-any-return]
    if len(keys) == 1 and np.asarray(keys[0]).dtype.kind in "iu":
        return take(x, tensor(keys[0], device=x.device))
    try:  # any other key: where its elements are in the flattened array, worked out by NumPy itself
        positions = np.arange(x.size).reshape(x.shape)[keys]
    except IndexError as error:
        raise ShapeError(f"index: {error} (shape {x.shape})") from None
    return take(reshape(x, (-1,)), tensor(positions, device=x.device))
