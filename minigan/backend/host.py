"""Arrays of the CPU: NumPy's, native byte order, aligned.

Floating point is float32 or float64; booleans and integers serve as masks, labels, indices and random-number counters.
"""

import functools
import importlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import numpy as np

from minigan.errors import DTypeError, ShapeError

Array = np.ndarray[Any, np.dtype[Any]]
Spec = tuple[tuple[int, ...], Any]  # shape and dtype of an array


def is_number(x: Any) -> bool:
    """Whether it is one of Python's or NumPy's real numbers, which can be compared with others.

    >>> from minigan.backend import is_number
    >>> is_number(np.float32(1)), is_number(2), is_number("2"), is_number(True)
    (True, True, False, False)
    """
    return isinstance(x, Real) and not isinstance(x, bool)


# Give back one mapped block, which costs next to nothing as none of it is used. From then on glibc keeps what is freed,
# up to so much, for what is allocated next, as of itself it would once such a block was freed (mallopt(3),
# M_MMAP_THRESHOLD). Before that a step's results may be returned to the system after each use, and every page costs a
# fault when it comes back.
np.empty(31 << 20, np.uint8)  # it learns from blocks up to 32 MiB

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
KINDS = "biu"  # besides floats: booleans, signed and unsigned integers


ALIGNMENT = 64  # a cache line, and the widest vector


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    """Zeros in C order that begin at a cache line, as NumPy's own do not.

    A product whose vectors straddle two lines takes a tenth longer. These take longer to make than NumPy's: they are
    for memory that is used many times, such as a parameter's. `MemoryError`, with the size, if there is none.

    >>> from minigan.backend import aligned_zeros
    >>> aligned_zeros((2, 3), np.float32).ctypes.data % 64
    0
    """
    # Not an array of bytes, of which the result would be a view: it shares its memory with nothing.
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        memory = bytearray(nbytes + ALIGNMENT)
    except MemoryError:
        raise MemoryError(f"no memory for {nbytes} bytes, an array of {np.dtype(dtype)} {shape}") from None
    start: int = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
    return np.ndarray(shape, dtype, memory, -start % ALIGNMENT)


def allocate(specs: Sequence[Spec]) -> tuple[Array, ...]:
    """Uninitialised C-contiguous arrays; `ShapeError` before anything is allocated if one cannot exist."""
    try:
        if len(specs) == 1:
            return (np.empty(*specs[0]),)
        return tuple([np.empty(shape, dtype) for shape, dtype in specs])
    except ValueError as error:
        raise ShapeError(
            f"cannot allocate arrays of shapes {[shape for shape, _ in specs]}: {error}"
        ) from None


def native(source: Any, dtype: Any = None, copy: bool | None = None) -> Array:
    """`source` as an aligned native array of a supported dtype.

    Args:
        source: anything NumPy can read.
        dtype: the dtype wanted; by default an array's own, and float32 for Python floats and lists of them.
        copy: `True` always copies (C order), `None` only where the array cannot be used as it is.

    Raises `DTypeError` for complex, object, string, date and float16 arrays.
    """
    try:
        array = np.asarray(source)
    except ValueError as error:  # lists of unequal lengths
        raise ShapeError(f"cannot make an array of {type(source).__name__}: {error}") from None
    if dtype is None and array.dtype == np.float64 and _all_python_numbers(source):
        dtype = np.float32
    wanted = np.dtype(array.dtype if dtype is None else dtype).newbyteorder("=")
    for which in (array.dtype.newbyteorder("="), wanted):
        _check_supported(which)
    with np.errstate(all="ignore"):  # float64 values beyond float32's range become inf, as in NumPy's astype
        result = np.array(array, dtype=wanted, order="C" if copy else "K", copy=copy)
    return result if result.flags.aligned else result.copy()


def supported(array: Array) -> Array:
    """The array, which may be of a device, if its dtype is one to compute with; else `DTypeError`."""
    _check_supported(array.dtype)
    return array


def weak(x: Any, dtype: np.dtype[Any]) -> Array:
    """A number as an array of shape (): one of Python's in the dtype of what it is to meet, as in NumPy 2.

    One of NumPy's keeps its own.

    >>> from minigan.backend import weak
    >>> weak(2, np.dtype(np.float64)).dtype, weak(np.float32(2), np.dtype(np.float64)).dtype
    (dtype('float64'), dtype('float32'))
    """
    if isinstance(x, np.generic):
        return native(x)
    try:
        return np.array(x, dtype if dtype in FLOATS else np.result_type(dtype, x))
    except OverflowError:
        if dtype in FLOATS:
            raise
        return native(x)  # a number that the labels' dtype does not have: comparisons widen it


def _check_supported(dtype: np.dtype[Any]) -> None:
    if dtype not in FLOATS and dtype.kind not in KINDS:
        raise DTypeError(
            f"dtype {dtype} is not supported: float32 and float64 for values, integers and booleans for"
            " indices, labels and masks; convert with .astype(np.float32)"
        )


def _all_python_numbers(source: Any) -> bool:
    """Whether a number or nested lists of them carry no precision of NumPy's."""
    if isinstance(source, (list, tuple)):
        return all(_all_python_numbers(item) for item in source)
    return isinstance(source, (int, float)) and not isinstance(source, np.generic)


@functools.cache
def _openblas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """How to read and set the number of threads of NumPy's OpenBLAS; `None` where NumPy has another BLAS."""
    import ctypes  # here, because `import minigan` does not need it

    try:
        extension = importlib.import_module("numpy._core._multiarray_umath").__file__
        library = ctypes.CDLL(extension)  # its symbols include those of the BLAS that it is linked to
    except (ImportError, OSError):  # a NumPy that keeps it elsewhere
        return None
    for prefix, suffix in (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", "")):
        names = [f"{prefix}openblas_{what}_num_threads{suffix}" for what in ("get", "set")]
        if all(hasattr(library, name) for name in names):
            return getattr(library, names[0]), getattr(library, names[1])
    return None


class _Limit:
    """The blocks that hold NumPy's BLAS to one thread, in all threads of the process, and the number before them."""

    lock = threading.Lock()
    blocks = 0
    before = 1


def set_blas_threads(n: int) -> None:
    """Let NumPy's matrix products run on up to `n` threads if its BLAS is OpenBLAS; in `one_blas_thread`, after it."""
    functions = _openblas()
    if functions is None:
        return
    with _Limit.lock:
        if _Limit.blocks:
            _Limit.before = n
        else:
            functions[1](n)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let NumPy's matrix products run on one thread in the block, in the whole process, if its BLAS is OpenBLAS.

    For small products one thread is best: two gain nothing at 64 x 128 x 128, and while another process is busy the
    threads wait for each other by spinning, which was measured to make a training step ten times as long.
    """
    functions = _openblas()
    if functions is None:
        yield
        return
    get, set_threads = functions
    with _Limit.lock:
        if _Limit.blocks == 0:
            _Limit.before = get()
            set_threads(1)
        _Limit.blocks += 1
    try:
        yield
    finally:
        with _Limit.lock:
            _Limit.blocks -= 1
            if _Limit.blocks == 0:  # the last of overlapping blocks, whichever began first
                set_threads(_Limit.before)
