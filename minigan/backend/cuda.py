"""Arrays of a GPU: CuPy's; the only place that imports CuPy.

What is asked of CuPy is memory, copies, launches of kernels from their text, matrix products of cuBLAS, streams and
graphs; every kernel is this package's own. Calls return before the work is done, in order within the current stream;
`fetch` and `synchronize` wait. Once a kernel has failed, everything of that process on the card is lost, so each later
call raises the first error again, and nothing is saved from it.
"""

import contextlib
import functools
import importlib
import importlib.util
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from minigan.backend.host import Array, Spec
from minigan.errors import DeviceError, ShapeError

NAME = re.compile(r"cuda(?::(\d+))?")
TF32 = 3  # CUBLAS_TF32_TENSOR_OP_MATH
NO_MEMORY = 2  # cudaErrorMemoryAllocation and CUDA_ERROR_OUT_OF_MEMORY
# CUBLAS_STATUS_NOT_INITIALIZED, where a handle finds none, and CUBLAS_STATUS_ALLOC_FAILED.
NO_MEMORY_OF_CUBLAS = 1, 3
MOST_OF_CUBLAS = (1 << 31) - 1  # which counts in 32 bits
MOST_BYTES = (1 << 63) - 1  # CuPy multiplies shapes in 64 bits, and allocates what is left of more


class _State:
    """Of the process: whether any array was ever put on a device, and why no device can be used any more."""

    active = False
    dead = ""


class _Thread(threading.local):
    """Of each thread: whether its products may use TF32."""

    tf32 = False


_thread = _Thread()


def _after_fork() -> None:
    if _module.cache_info().currsize:  # which has asked CUDA how many cards there are
        _State.dead = (
            "this process was forked after its parent had begun to use the GPU, which CUDA does not allow:"
            " start processes by the method 'spawn', or use the GPU in the children only"
        )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def active() -> bool:
    """Whether any array of this process has been put on a device; until then all arrays are NumPy's."""
    return _State.active


def check_alive() -> None:
    """Raise `DeviceError` if the device has failed before."""
    if _State.dead:
        raise DeviceError(_State.dead)


@functools.cache
def _module() -> Any:
    """CuPy, once a card was found; an error is not kept, so that installing CuPy helps."""
    try:
        cupy: Any = importlib.import_module("cupy")
    except Exception as error:  # a broken one raises what its parts do
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            raise DeviceError(
                "CuPy is not installed: pip install 'minigan[cuda13]', or 'minigan[cuda12]' for a driver of CUDA 12"
            ) from None
        raise DeviceError(f"CuPy cannot be imported: {' '.join(str(error).split())}") from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except (RuntimeError, AttributeError) as error:  # the latter from a folder of that name which is not CuPy
        raise DeviceError(f"no GPU can be used: {error}") from None
    if not count:
        raise DeviceError("no GPU can be used: CUDA sees none")
    return cupy


def number(device: str) -> int:
    """The number of the card that "cuda" (0) or "cuda:N" names; `DeviceError` with the reason if there is none."""
    found = NAME.fullmatch(device)
    if not found:
        raise DeviceError(f"device {device!r}: expected 'cpu', 'cuda' or 'cuda:N'")
    check_alive()
    try:
        count = _module().cuda.runtime.getDeviceCount()
    except DeviceError as error:
        raise DeviceError(f"device {device!r}: {error}") from None
    which = int(found[1] or 0)
    if which >= count:
        raise DeviceError(f"device {device!r}: there are {count} GPUs, from cuda:0 to cuda:{count - 1}")
    return which


def is_on_device(array: Any) -> bool:
    """Whether it is an array of a device."""
    return _State.active and isinstance(array, _module().ndarray)


def found(array: Any) -> bool:
    """Whether it is CuPy's; if so, arrays are looked at from now on."""
    if not hasattr(array, "__cuda_array_interface__"):
        return False
    _State.active = _State.active or isinstance(array, _module().ndarray)
    return is_on_device(array)


def device_of(array: Any) -> str:
    """The name of the device of an array of one."""
    return f"cuda:{array.device.id}"


@contextlib.contextmanager
def on(device: str) -> Iterator[Any]:
    """CuPy, with this device ("cuda:N") as its current one; what fails there becomes a `DeviceError`, for good."""
    check_alive()
    cupy = _module()
    try:
        with cupy.cuda.Device(int(device[5:])):
            yield cupy
    except cupy.cuda.memory.OutOfMemoryError as error:
        raise DeviceError(f"{device}: {error}") from None
    except _failures() as error:
        none_left = NO_MEMORY_OF_CUBLAS if isinstance(error, cupy.cuda.cublas.CUBLASError) else (NO_MEMORY,)
        if getattr(error, "status", 0) in none_left:  # for a kernel's text or its stack, which breaks nothing
            raise DeviceError(f"{device}: no memory left: {error}") from None
        _State.dead = f"{device} failed, and with it all that this process has there: {error}"
        raise DeviceError(_State.dead) from None


@functools.cache
def _failures() -> tuple[type[Exception], ...]:
    """What CuPy raises where a call of CUDA, which may be a later one, tells that something has failed."""
    cuda = _module().cuda
    return cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError, cuda.cublas.CUBLASError


def dead() -> bool:
    """Whether a device has failed, so that nothing can be read from it any more."""
    return bool(_State.dead)


def describe(device: str) -> str:
    """What the bits of a computation there depend on: the card, and CuPy's version.

    Not the card's number: equal cards compute the same.
    """
    with on(device) as cupy:
        name = cupy.cuda.runtime.getDeviceProperties(int(device[5:]))["name"].decode()
        return f"cuda, {name}, CuPy {cupy.__version__}"


def installed() -> bool:
    """Whether there is a module CuPy, which is not imported to find out."""
    if "cupy" in sys.modules:
        return sys.modules["cupy"] is not None
    return importlib.util.find_spec("cupy") is not None


TRIAL = 'extern "C" __global__ void trial(int* x, long long value) { *x = (int)value; }'


def try_out(device: str) -> None:
    """Compile and run a kernel; `DeviceError` with the reason where that is not possible."""
    before = _State.active
    try:
        (x,) = empty([((), np.int32)], device)
        launch(device, "trial", TRIAL, 1, 1, (address(x), 42))
        found = int(fetch(x))
    except Exception as error:  # NVRTC is missing, or too old for the card: CuPy raises what its loader does
        _State.active = before  # nothing is there that arrays of the CPU would have to be told from
        if isinstance(error, DeviceError):
            raise
        raise DeviceError(f"{device}: kernels cannot be compiled: {' '.join(str(error).split())}") from None
    if found != 42:
        raise DeviceError(f"{device}: a kernel that writes 42 has written {found}")


# Memory and copies


def empty(specs: Sequence[Spec], device: str) -> tuple[Any, ...]:
    """Uninitialised C-contiguous arrays.

    Where there is no memory left, what CuPy's pool keeps is freed and the allocation made again; then `DeviceError`
    with the numbers.
    """
    for shape, dtype in specs:
        if math.prod(shape) * np.dtype(dtype).itemsize > MOST_BYTES:
            raise ShapeError(
                f"cannot allocate arrays of shapes {[shape for shape, _ in specs]}: {shape} is too large"
            )
    with on(device) as cupy:
        _State.active = True
        out_of_memory = cupy.cuda.memory.OutOfMemoryError
        try:
            return tuple([cupy.empty(shape, dtype) for shape, dtype in specs])
        except out_of_memory:
            cupy.get_default_memory_pool().free_all_blocks()
        except ValueError as error:
            raise ShapeError(
                f"cannot allocate arrays of shapes {[shape for shape, _ in specs]}: {error}"
            ) from None
        try:
            return tuple([cupy.empty(shape, dtype) for shape, dtype in specs])
        except out_of_memory:
            wanted = sum(
                int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for shape, dtype in specs
            )
            free, total = cupy.cuda.Device().mem_info
            raise DeviceError(
                f"{device}: no memory for {wanted:,} bytes: {free:,} of {total:,} are free, this process uses"
                f" {cupy.get_default_memory_pool().used_bytes():,}; a smaller batch needs less"
            ) from None


def put(array: Array, device: str) -> Any:
    """A copy of a NumPy array on a device, in C order."""
    own = np.asarray(array, order="C")
    (there,) = empty([(own.shape, own.dtype)], device)
    with on(device):
        there.set(own)
    return there


@functools.lru_cache(maxsize=1024)
def constant(content: bytes, dtype: np.dtype[Any], device: str) -> Any:
    """A number by its bytes, as an array of shape () that nobody may write to."""
    return put(np.frombuffer(content, dtype).reshape(()), device)


def copied(array: Any) -> Any:
    """A copy of a device's C-contiguous array, made in the current stream."""
    (own,) = empty([(array.shape, array.dtype)], device_of(array))
    copy_bytes(device_of(array), address(own), address(array), array.nbytes)
    return own


def fetch(array: Any) -> Array:
    """A copy of a device's array in NumPy's memory, in C order, once all work before is done.

    Of one with gaps or another order all memory from its first byte to its last: CuPy would need a kernel of its own.
    """
    with on(device_of(array)) as cupy:
        host: Array
        if array.flags.c_contiguous:
            host = array.get()
            return host
        first, end = _reach(array)
        content = cupy.ndarray((end - first,), np.uint8, array.data + first).get()
        host = np.ndarray(array.shape, array.dtype, content.data, -first, array.strides)
        return host.copy(order="C")


def _reach(array: Any) -> tuple[int, int]:
    """Where an array's memory begins and ends, in bytes from its first element."""
    steps = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    return sum(min(step, 0) for step in steps), sum(max(step, 0) for step in steps) + int(
        array.dtype.itemsize
    )


def overlap(x: Any, y: Any) -> bool:
    """Whether two arrays of a device may have memory in common that is not the same element of both."""
    at_x, at_y = address(x), address(y)
    if not (x.size and y.size) or (
        at_x == at_y and (x.shape, x.strides, x.dtype) == (y.shape, y.strides, y.dtype)
    ):
        return False
    (first_x, end_x), (first_y, end_y) = _reach(x), _reach(y)
    return at_x + first_x < at_y + end_y and at_y + first_y < at_x + end_x


def broadcast_to(array: Any, shape: tuple[int, ...]) -> Any:
    """A view of a device's array."""
    return _module().broadcast_to(array, shape)


def within(arena: Any, offset: int, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...]) -> Any:
    """The array of this form at a place, in bytes, of a device's array."""
    return _module().ndarray(shape, dtype, arena.data + offset, strides)


def address(array: Any) -> int:
    """Of an array's first element."""
    return int(array.data.ptr)


# Work


@functools.lru_cache(maxsize=4096)
def _kernel(name: str, source: str) -> Any:
    return _module().RawModule(code=source, options=("-std=c++17",)).get_function(name)


def launch(
    device: str, name: str, source: str, blocks: int, threads: int, arguments: Sequence[int | float]
) -> None:
    """Run a kernel, compiled from its text at its first call in a grid of one axis.

    Its parameters are `long long` or pointers for integers, and `double` for floats.
    """
    with on(device) as cupy:
        try:
            kernel = _kernel(name, source)
        except cupy.cuda.compiler.CompileException as error:
            raise DeviceError(f"{name} does not compile for {device}: {error}") from None
        kernel((blocks,), (threads,), tuple(arguments))


@functools.cache
def _blas() -> Any:
    """cuBLAS itself, since CuPy's calls of it refuse to be recorded in a graph, which cuBLAS allows."""
    import ctypes  # here, because `import minigan` does not need it

    try:
        # Its symbols include those of the cuBLAS that it is linked to.
        library = ctypes.CDLL(_module().cuda.cublas.__file__)
        word, number = ctypes.c_void_p, ctypes.c_int
        stack = word, number, ctypes.c_longlong
        for function in (library.cublasSgemmStridedBatched, library.cublasDgemmStridedBatched):
            function.argtypes = (word, *[number] * 5, word, *stack, *stack, word, *stack, number)
        library.cublasSetStream_v2.argtypes = word, word
    except (OSError, AttributeError) as error:
        raise DeviceError(f"cuBLAS cannot be called: {error}") from None
    return library


@functools.cache
def _scalars(dtype: np.dtype[Any]) -> Array:
    return np.array([0, 1], dtype)


def gemm(
    device: str,
    dtype: np.dtype[Any],
    transposed: tuple[bool, bool],
    sizes: tuple[int, int, int],
    a: tuple[int, int, int],
    b: tuple[int, int, int],
    c: tuple[int, int, int],
    batch: int,
) -> None:
    """C = op(A) op(B) for a stack of column-major matrices, by cuBLAS.

    transposed: whether op transposes A, and B.
    sizes: m, n, k, where C is m x n.
    a, b, c: address, elements from column to column, elements from matrix to matrix.
    """
    if max(*sizes, a[1], b[1], c[1], batch) > MOST_OF_CUBLAS:
        raise ShapeError(
            f"a product of {batch} matrices of {sizes[0]} x {sizes[2]} and {sizes[2]} x {sizes[1]} numbers, {a[1]},"
            f" {b[1]} and {c[1]} from column to column: on a GPU each of these is at most {MOST_OF_CUBLAS}"
        )
    with on(device) as cupy:
        handle = cupy.cuda.device.get_cublas_handle()
        cublas, library = cupy.cuda.cublas, _blas()
        cublas.setMathMode(
            handle, TF32 if _thread.tf32 and dtype == np.float32 else cublas.CUBLAS_DEFAULT_MATH
        )
        product = (
            library.cublasSgemmStridedBatched if dtype == np.float32 else library.cublasDgemmStridedBatched
        )
        zero = _scalars(dtype).ctypes.data
        one = zero + dtype.itemsize
        status = library.cublasSetStream_v2(handle, cupy.cuda.get_current_stream().ptr)
        status = status or product(handle, *map(int, transposed), *sizes, one, *a, *b, zero, *c, batch)
        if status:
            raise cublas.CUBLASError(status)


def set_tf32(on_or_off: bool) -> None:
    """Let this thread's products of float32 matrices round their factors to 10 bits, faster where the card can."""
    _thread.tf32 = on_or_off


# Copies beside the computation


def stream(device: str) -> Any:
    """A stream that does not wait for others."""
    with on(device) as cupy:
        return cupy.cuda.Stream(non_blocking=True)


def empty_beside(specs: Sequence[Spec], device: str, beside: Any) -> tuple[Any, ...]:
    """As `empty`, for what another stream writes: once dropped it is only that stream's, which may still write it."""
    with on(device), beside:
        return empty(specs, device)


def pinned(nbytes: int, device: str) -> Array:
    """Bytes of the host's memory that a device copies from and to by itself, while Python goes on."""
    with on(device) as cupy:
        return np.frombuffer(cupy.cuda.alloc_pinned_memory(max(nbytes, 1)), np.uint8)[:nbytes]


def record(device: str) -> Any:
    """An event that happens when all that is in the current stream now is done."""
    with on(device) as cupy:
        return cupy.cuda.get_current_stream().record()


def wait(device: str, event: Any) -> None:
    """Wait until an event has happened."""
    with on(device):
        event.synchronize()


def wait_in_stream(device: str, event: Any) -> None:
    """Let what is put into the current stream from now on wait for an event."""
    with on(device) as cupy:
        cupy.cuda.get_current_stream().wait_event(event)


def copy_beside(device: str, beside: Any, pairs: Sequence[tuple[Any, Array]], after: Any) -> Any:
    """Let another stream copy from pinned memory to arrays of the device after an event; gives that of the end."""
    with on(device) as cupy, beside:
        beside.wait_event(after)
        runtime = cupy.cuda.runtime
        for there, own in pairs:
            runtime.memcpyAsync(
                address(there), own.ctypes.data, own.nbytes, runtime.memcpyHostToDevice, beside.ptr
            )
        return beside.record()


def synchronize(device: str) -> None:
    """Wait for all work of the current stream."""
    with on(device) as cupy:
        cupy.cuda.get_current_stream().synchronize()


# What a compiled step needs besides


def copy_bytes(device: str, to: int, source: int, nbytes: int) -> None:
    """Copy in the current stream, between addresses of the device or of pinned memory."""
    with on(device) as cupy:
        runtime = cupy.cuda.runtime
        stream = cupy.cuda.get_current_stream().ptr
        runtime.memcpyAsync(to, source, nbytes, runtime.memcpyDefault, stream)


def fill_bytes(device: str, to: int, value: int, nbytes: int) -> None:
    """Set bytes of the device in the current stream."""
    with on(device) as cupy:
        cupy.cuda.runtime.memsetAsync(to, value, nbytes, cupy.cuda.get_current_stream().ptr)


class Queue:
    """A stream of its own, whose work can be recorded once and repeated as a graph."""

    def __init__(self, device: str) -> None:
        self._device = device
        with on(device) as cupy:
            self._stream = cupy.cuda.Stream(non_blocking=True)
            self._before, self._after = (cupy.cuda.Event(disable_timing=True) for _ in range(2))

    @contextlib.contextmanager
    def current(self, followed: bool = False) -> Iterator[None]:
        """Put the work of the block here, behind all that the caller's stream has to do so far.

        If it is `followed`, that stream waits for it with what it has to do from then on.
        """
        with on(self._device) as cupy:
            caller = cupy.cuda.get_current_stream()
            caller.record(self._before)
            self._stream.wait_event(self._before)
            with self._stream:
                yield
            if followed:
                self._stream.record(self._after)
                caller.wait_event(self._after)

    def wait(self) -> None:
        """Wait until all work is done."""
        with on(self._device):
            self._stream.synchronize()

    def recorded(self, issue: Callable[[], None]) -> Any:
        """A graph of the work that `issue` puts into the current stream; nothing of it is done."""
        with on(self._device), self._stream:
            self._stream.begin_capture()
            try:
                issue()
            except BaseException:
                with contextlib.suppress(
                    RuntimeError
                ):  # what was broken off is no graph, as is known already
                    self._stream.end_capture()
                raise
            return self._stream.end_capture()

    def repeat(self, graph: Any) -> None:
        """Put the work of a graph here."""
        with on(self._device):
            graph.launch(self._stream)
