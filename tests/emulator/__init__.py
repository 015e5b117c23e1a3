"""A CUDA device in software, with the part of CuPy's interface that `minigan.backend.cuda` uses.

There is no card in most test machines. Here the text of a kernel is compiled for the host by g++ and its grid is run
thread by thread (`grid.cpp`), device memory is memory that NumPy cannot see, and streams are queues that nothing
happens in before somebody waits, so that a result read too early, or a staging buffer written too early, shows.
Names and signatures are those of CuPy 14; `tests/test_cuda.py` compares them with CuPy's own where that is installed.
What this cannot show: speed, races between threads, and rounding by the device's own functions.
"""

import collections
import ctypes
import functools
import hashlib
import itertools
import math
import os
import re
import shutil
import subprocess
import tempfile
import types
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
COMPILER = shutil.which("g++")
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-w")
# Kernels find the C library in the process: to look for it when linking is half of the time that a small text takes.
OF_KERNELS = (*FLAGS, "-nostdlib")
POISON = 0xAB  # what memory holds before it is written
CARDS = 2


class CUDARuntimeError(RuntimeError):
    """As `cupy.cuda.runtime.CUDARuntimeError`."""


class CUDADriverError(RuntimeError):
    """As `cupy.cuda.driver.CUDADriverError`, which launches of kernels raise."""


class CUBLASError(RuntimeError):
    """As `cupy.cuda.cublas.CUBLASError`."""

    def __init__(self, status):
        self.status = status
        super().__init__(f"CUBLAS_STATUS {status}")


class CompileException(Exception):
    """As `cupy.cuda.compiler.CompileException`."""


class OutOfMemoryError(MemoryError):
    """As `cupy.cuda.memory.OutOfMemoryError`."""


# Memory


class Memory:
    """A block of a card's memory."""

    def __init__(self, nbytes, device):
        card, stream = cards[device], get_current_stream()
        # As in CuPy's pool what is dropped is the next array's of the same stream, whatever other streams do with it.
        self.place = stream.ptr, -(-nbytes // 512)
        kept = card.dropped.get(self.place)
        self.bytes = kept.pop() if kept else np.full(512 * self.place[1] + 256, POISON, np.uint8)
        self.ptr = -(-self.bytes.ctypes.data // 256) * 256
        self.size, self.device_id = nbytes, device
        card.used += nbytes
        if kept is not None and nbytes:
            stream.do(functools.partial(ctypes.memset, self.ptr, POISON, nbytes))

    def __del__(self):
        if cards is None:  # the interpreter ends
            return
        card = cards[self.device_id]
        card.used -= self.size
        card.dropped.setdefault(self.place, []).append(self.bytes)


class MemoryPointer:
    """As `cupy.cuda.MemoryPointer`: a place in a block."""

    def __init__(self, mem, offset):
        self.mem, self.ptr = mem, mem.ptr + offset
        self._offset = offset

    def __add__(self, offset):
        return MemoryPointer(self.mem, self._offset + offset)


class _Card:
    def __init__(self):
        self.used, self.peak_blocks, self.dropped = 0, 0, {}
        self.limit = None  # bytes; None is unlimited
        self.cached = 0  # bytes that the pool keeps and `free_all_blocks` returns
        self.freed = 0  # how often it was asked to
        self.fault = None  # what every call says from now on


cards = [_Card() for _ in range(CARDS)]
_state = types.SimpleNamespace(device=0, streams=[])
launches = collections.Counter()  # by name, of kernels that were run
calls = collections.Counter()  # of `alloc`, `alloc_pinned_memory` and `Graph.launch`


def reset():
    """Forget faults, limits and counts."""
    for card in cards:
        card.limit, card.cached, card.fault, card.freed = None, 0, None, 0
    launches.clear()
    calls.clear()


def _check(error=CUDARuntimeError):
    fault = cards[_state.device].fault
    if fault:
        raise error(fault)


def alloc(size):
    _check()
    calls["alloc"] += 1
    if get_current_stream().is_capturing():
        raise AssertionError("memory for a graph that is being captured: it would outlive what frees it")
    card = cards[_state.device]
    if card.limit is not None and card.used + card.cached + size > card.limit:
        raise OutOfMemoryError(
            f"Out of memory allocating {size} bytes (allocated so far: {card.used} bytes)."
        )
    return MemoryPointer(Memory(size, _state.device), 0)


class _Pool:
    def free_all_blocks(self):
        card = cards[_state.device]
        card.cached = 0
        card.freed += 1

    def used_bytes(self):
        return cards[_state.device].used

    def total_bytes(self):
        return cards[_state.device].used + cards[_state.device].cached


_pool = _Pool()


def get_default_memory_pool():
    return _pool


# Arrays: only what minigan may use of `cupy.ndarray`


class ndarray:
    """As `cupy.ndarray`: shape and strides over device memory."""

    __slots__ = ("__weakref__", "_spec", "base", "data")
    __array_ufunc__ = None

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        shape = tuple(int(n) for n in ((shape,) if isinstance(shape, int) else shape))
        dtype = np.dtype(dtype)
        if max(math.prod(shape) * dtype.itemsize, *shape, 0) >= 1 << 63:
            raise AssertionError(f"{dtype} {shape}: CuPy would multiply in 64 bits and allocate what is left")
        # A NumPy array that is never read answers for shape and strides.
        nothing = np.empty((), dtype)
        if strides is None:
            strides, step = [], dtype.itemsize
            for n in reversed(shape):
                strides.append(step)
                step *= max(n, 1)
            strides = strides[::-1]
        self._spec = np.lib.stride_tricks.as_strided(nothing, shape, strides)
        self.data = alloc(self._spec.nbytes) if memptr is None else memptr
        self.base = None

    shape = property(lambda self: self._spec.shape)
    strides = property(lambda self: self._spec.strides)
    dtype = property(lambda self: self._spec.dtype)
    size = property(lambda self: self._spec.size)
    ndim = property(lambda self: self._spec.ndim)
    nbytes = property(lambda self: self._spec.nbytes)
    itemsize = property(lambda self: self._spec.itemsize)

    @property
    def __cuda_array_interface__(self):
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.data.ptr, False), "version": 3}

    @property
    def flags(self):
        flags = self._spec.flags
        return types.SimpleNamespace(c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous)

    @property
    def device(self):
        return Device(self.data.mem.device_id)

    def __len__(self):
        return len(self._spec)

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __bool__(self):
        return bool(self.get())

    def __eq__(self, other):
        raise AssertionError("a comparison of arrays: CuPy would run a kernel of its own")

    __hash__ = None

    def _view(self, spec):
        offset = spec.__array_interface__["data"][0] - self._spec.__array_interface__["data"][0]
        # At a size of 0 NumPy may point anywhere.
        view = ndarray(spec.shape, spec.dtype, self.data + (offset if spec.size else 0), spec.strides)
        view.base = self if self.base is None else self.base
        return view

    def reshape(self, *shape):
        spec = self._spec.reshape(*shape)
        if self.size and not np.shares_memory(spec, self._spec):
            raise AssertionError("a reshape that copies: CuPy would run a kernel of its own")
        return self._view(spec)

    def transpose(self, *axes):
        return self._view(self._spec.transpose(*axes))

    def __getitem__(self, key):
        for part in key if isinstance(key, tuple) else (key,):
            if not (part is None or part is Ellipsis or isinstance(part, (int, np.integer, slice))):
                raise TypeError(f"{part!r}: only views, which need no kernel of CuPy's")
        spec = self._spec[key]
        return self._view(spec if isinstance(spec, np.ndarray) else self._spec[(*key, ...)])

    def get(self, stream=None, order="C", out=None, blocking=True):
        """Waits for the stream, and copies to the host."""
        if self.size and not self.flags.c_contiguous:
            raise AssertionError("a copy of what has gaps: CuPy would run a kernel of its own")
        (stream or get_current_stream()).synchronize()
        host = self._host().copy()
        if out is not None:
            out[...] = host
            return out
        return host

    def set(self, arr, stream=None):
        arr = np.asarray(arr, order="C")
        if arr.shape != self.shape or arr.dtype != self.dtype or not self.flags.c_contiguous:
            raise ValueError(f"cannot set {self.dtype} {self.shape} from {arr.dtype} {arr.shape}")
        stream = stream or get_current_stream()
        if any(own.ctypes.data <= arr.ctypes.data < own.ctypes.data + own.nbytes for own in _pinned):
            stream.do(
                lambda: np.copyto(self._host(), arr)
            )  # the card reads it by itself, whenever it comes to that
            return
        stream.synchronize()
        self._host()[...] = arr

    def _host(self):
        """The memory as NumPy sees it: of tests and of the emulator's own."""
        if not self.size:
            return np.empty(self.shape, self.dtype)
        low = sum(min(0, (n - 1) * s) for n, s in zip(self.shape, self.strides, strict=True))
        high = sum(max(0, (n - 1) * s) for n, s in zip(self.shape, self.strides, strict=True)) + self.itemsize
        memory = (ctypes.c_char * (high - low)).from_address(self.data.ptr + low)
        return np.ndarray(self.shape, self.dtype, memory, -low, self.strides)


def empty(shape, dtype=float, order="C"):
    return ndarray(shape, dtype)


def broadcast_to(array, shape):
    return array._view(np.broadcast_to(array._spec, shape))


# Streams, events, graphs


_stream_numbers = itertools.count(1)


class Stream:
    """As `cupy.cuda.Stream`, but nothing happens before somebody waits for it."""

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.queue, self.captured = collections.deque(), None
        self.ptr = next(_stream_numbers)

    def __enter__(self):
        _state.streams.append(self)
        return self

    def __exit__(self, *args):
        _state.streams.pop()

    def do(self, work):
        _check()
        (self.queue if self.captured is None else self.captured).append(work)

    def synchronize(self):
        _check()
        if self.captured is not None:
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"
            )
        while self.queue:
            self.queue.popleft()()

    def begin_capture(self, mode=None):
        self.captured = []

    def end_capture(self):
        work, self.captured = self.captured, None
        return Graph(work)

    def is_capturing(self):
        return self.captured is not None

    def record(self, event=None):
        event = event or Event()
        event.recorded = recorded = types.SimpleNamespace(stream=self, done=False)
        self.do(lambda: vars(recorded).update(done=True))
        return event

    def wait_event(self, event):
        self.do(functools.partial(_reach, event.recorded))  # what is recorded later is not waited for


_null = Stream()


def get_current_stream(device_id=-1):
    return _state.streams[-1] if _state.streams else _null


class Event:
    """As `cupy.cuda.Event`."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.recorded = types.SimpleNamespace(done=True)

    def record(self, stream=None):
        (stream or get_current_stream()).record(self)

    def synchronize(self):
        _reach(self.recorded)


def _reach(recorded):
    while not recorded.done:
        recorded.stream.queue.popleft()()


def get_elapsed_time(start_event, end_event):
    start_event.synchronize()
    end_event.synchronize()
    return 1.0


class Graph:
    """As `cupy.cuda.Graph`."""

    def __init__(self, work):
        self.work = work

    def launch(self, stream=None):
        calls["graph"] += 1
        stream = stream or get_current_stream()
        for each in self.work:
            stream.do(each)


class Device:
    """As `cupy.cuda.Device`."""

    def __init__(self, device=None):
        self.id = _state.device if device is None else int(device)
        if not 0 <= self.id < runtime.getDeviceCount():
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")

    def __enter__(self):
        self.before, _state.device = _state.device, self.id
        return self

    def __exit__(self, *args):
        _state.device = self.before

    def synchronize(self):
        _check()
        get_current_stream().synchronize()

    @property
    def mem_info(self):
        card = cards[self.id]
        total = 1 << 34 if card.limit is None else card.limit
        return total - card.used - card.cached, total

    @property
    def compute_capability(self):
        return "90"


# Kernels


@functools.cache
def _folder():
    folder = Path(
        os.environ.get("MINIGAN_EMULATOR_DIR") or Path(tempfile.gettempdir()) / f"emulator-{os.getuid()}"
    )
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _compiled(source, flags):
    """The path of the library that g++ makes of C++ text."""
    name = hashlib.sha256(repr((source, flags)).encode()).hexdigest()[:24]
    path = _folder() / f"{name}.so"
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        made = subprocess.run(
            [COMPILER, *flags, "-x", "c++", "-", "-o", str(temporary)],
            input=source,
            text=True,
            capture_output=True,
        )
        if made.returncode:
            raise CompileException(f"g++: {made.stderr[:4000]}\n{source}")
        temporary.replace(path)
    return path


@functools.cache
def _grid():
    return ctypes.CDLL(str(_compiled((HERE / "grid.cpp").read_text(), FLAGS)), mode=ctypes.RTLD_GLOBAL)


class RawModule:
    """As `cupy.RawModule`."""

    def __init__(self, code=None, *, options=(), backend="nvrtc", **other):
        self.code, self.options = code, options

    def get_function(self, name):
        return RawKernel(self.code, name)


_OWN = [(HERE / name).read_text() for name in ("host.h", "__init__.py")]  # which libraries depend on too
_wanted = {}  # texts that no library was made of yet, with the names of their kernels, by digest


def apart(code, name, key):
    """The text such that others may stand beside it: in a namespace, its kernel and macros known to nobody else."""
    macros = "".join(f"#undef {macro}\n" for macro in (name, *re.findall(r"#define (\w+)", code)))
    return f"#define {name} {name}_{key}\nnamespace text_{key} {{\n{code}\n}}\n{macros}"


def _compile_wanted():
    """Make one library of all texts that are waited for: to start g++ and to link takes longer than one text."""
    text = _OWN[0]
    for digest, (code, name) in _wanted.items():
        text += apart(code, name, digest)
        kernel = f"text_{digest}::{name}_{digest}"
        text += f'extern "C" void entry_{digest}(void** values) {{ called({kernel}, values); }}\n'
    library = _compiled(text, OF_KERNELS)
    for digest in _wanted:
        temporary = library.with_name(f"{digest}.{os.getpid()}.tmp")
        os.link(library, temporary)
        temporary.replace(library.with_name(f"{digest}.so"))
    _wanted.clear()


@functools.cache
def _entry(digest):
    _grid()
    path = _folder() / f"{digest}.so"
    if not path.exists():
        _compile_wanted()
    return getattr(ctypes.CDLL(str(path)), f"entry_{digest}")


class RawKernel:
    """As `cupy.RawKernel`: `kernel(grid, block, arguments)` puts a run into the current stream's queue."""

    def __init__(self, code, name):
        self.name, self.barriers = name, "__syncthreads" in code
        self.digest = hashlib.sha256(repr((_OWN, code, name)).encode()).hexdigest()[:24]
        if not (_folder() / f"{self.digest}.so").exists():
            _wanted[self.digest] = code, name
        parameters = re.search(rf"\b{name}\s*\(([^)]*)\)", code).group(1)
        self.count = len(parameters.split(",")) if parameters.strip() else 0
        # CuPy compiles everything with -ftz=true. Here it would be for float64 too.
        self.flushes = "float32*" in parameters and "float64*" not in parameters

    def __call__(self, grid, block, args, *, shared_mem=0):
        _check(CUDADriverError)
        if len(args) != self.count:
            raise ValueError(f"{self.name}: {len(args)} arguments for {self.count} parameters")
        (blocks, *more), (threads, *deeper) = grid, block
        if set(more) - {1} or set(deeper) - {1} or not (0 < threads <= 1024 and 0 < blocks < 2**31):
            raise CUDARuntimeError(f"cudaErrorInvalidConfiguration: grid {grid}, block {block}")
        values = []
        for arg in args:
            match arg:
                case ndarray():
                    values.append(ctypes.c_void_p(arg.data.ptr))
                case bool() | np.bool_():
                    raise TypeError("a bool is passed as an int")
                case np.generic() if arg.itemsize != 8:  # 13 and 14 pass different numbers of bytes
                    raise TypeError(f"{self.name}: {arg.dtype} is not passed as 64 bits")
                case int() | np.integer():
                    values.append(ctypes.c_longlong(int(arg)))
                case float() | np.floating():
                    values.append(ctypes.c_double(float(arg)))
                case _:
                    raise TypeError(f"Unsupported type {type(arg)}")
        pointers = (ctypes.c_void_p * max(len(values), 1))(
            *[ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in values]
        )

        def work(kept=values):
            launches[self.name] += 1
            flushes = int(self.flushes)
            if _grid().run_grid(_entry(self.digest), pointers, blocks, threads, int(self.barriers), flushes):
                raise AssertionError(f"{self.name}: some threads ended while others waited at a barrier")

        get_current_stream().do(work)


# Copies between memories


def _memcpy_async(dst, src, size, kind, stream):
    by_pointer(stream).do(lambda: ctypes.memmove(dst, src, size))


def _memset_async(ptr, value, size, stream):
    by_pointer(stream).do(lambda: ctypes.memset(ptr, value, size))


_streams = {}


def by_pointer(ptr):
    current = get_current_stream()
    if current.ptr != ptr:
        raise AssertionError("work for a stream that is not the current one")
    return current


def alloc_pinned_memory(size):
    calls["pinned"] += 1
    # What is used of it is the buffer interface and, through NumPy, its address.
    _pinned.append(np.zeros(size, np.uint8))
    return _pinned[-1]


_pinned = []


# Matrix products


def _matrix(ptr, dtype, rows, columns, lead, stride=0, batch=1):
    """A stack of column-major matrices."""
    item = np.dtype(dtype).itemsize
    length = (stride * (batch - 1) + lead * max(columns - 1, 0) + rows) * item
    memory = (ctypes.c_char * max(length, 1)).from_address(ptr)
    return np.ndarray((batch, rows, columns), dtype, memory, 0, (stride * item, item, lead * item))


def _gemm(handle, wide, ta, tb, m, n, k, alpha, a, lda, sa, b, ldb, sb, beta, c, ldc, sc, batch):
    """Puts a product into the stream that cuBLAS was given; gives the status."""
    if cards[_state.device].fault:
        return _EXECUTION_FAILED
    dtype, scalar = (np.float64, ctypes.c_double) if wide else (np.float32, ctypes.c_float)
    alpha, beta = (scalar.from_address(each).value for each in (alpha, beta))
    if (
        lda < max(1, k if ta else m)
        or ldb < max(1, n if tb else k)
        or ldc < max(1, m)
        or min(m, n, k, batch) < 0
    ):
        return _INVALID_VALUE

    def work():
        launches["gemm"] += 1
        x = _matrix(a, dtype, *((k, m) if ta else (m, k)), lda, sa, batch)
        y = _matrix(b, dtype, *((n, k) if tb else (k, n)), ldb, sb, batch)
        z = _matrix(c, dtype, m, n, ldc, sc, batch)
        with np.errstate(all="ignore"):
            product = alpha * np.matmul(x.mT if ta else x, y.mT if tb else y)
            z[...] = product + beta * z if beta else product

    by_pointer(_state.blas_stream).do(work)
    return 0


def _set_stream(handle, stream):
    _state.blas_stream = stream
    return 0


_INVALID_VALUE, _EXECUTION_FAILED = 7, 13
_STACK = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
_HOOKS = (
    ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(_set_stream),
    ctypes.CFUNCTYPE(
        ctypes.c_int,
        *(ctypes.c_void_p, *[ctypes.c_int] * 6, ctypes.c_void_p, *_STACK, *_STACK),
        *(ctypes.c_void_p, *_STACK, ctypes.c_int),
    )(_gemm),
)


class _Cublas(types.SimpleNamespace):
    """As `cupy.cuda.cublas`. Its products are left out: while a stream is captured they raise NotImplementedError."""

    @functools.cached_property
    def __file__(self):
        """A library with the functions of cuBLAS (`blas.cpp`), as CuPy's own extension is linked to one."""
        path = _compiled((HERE / "blas.cpp").read_text(), FLAGS)
        ctypes.CDLL(str(path)).hook(*_HOOKS)
        return str(path)


cublas = _Cublas(
    CUBLAS_DEFAULT_MATH=0,
    CUBLASError=CUBLASError,
    setMathMode=lambda handle, mode: math_modes.append(mode),
)
math_modes = []


class _Runtime(types.SimpleNamespace):
    def getDeviceCount(self):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible == "":
            raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return CARDS


runtime = _Runtime(
    CUDARuntimeError=CUDARuntimeError,
    memcpyAsync=_memcpy_async,
    memsetAsync=_memset_async,
    memcpyDeviceToDevice=3,
    memcpyDeviceToHost=2,
    memcpyHostToDevice=1,
    memcpyDefault=4,
    getDeviceProperties=lambda device: {
        "name": b"emulated card",
        "multiProcessorCount": 4,
        "totalGlobalMem": 1 << 34,
    },
    driverGetVersion=lambda: 13020,
    runtimeGetVersion=lambda: 13020,
)

cuda = types.SimpleNamespace(
    Device=Device,
    Event=Event,
    Graph=Graph,
    MemoryPointer=MemoryPointer,
    Stream=Stream,
    alloc=alloc,
    alloc_pinned_memory=alloc_pinned_memory,
    cublas=cublas,
    compiler=types.SimpleNamespace(CompileException=CompileException),
    device=types.SimpleNamespace(get_cublas_handle=lambda: 1),
    driver=types.SimpleNamespace(CUDADriverError=CUDADriverError),
    get_current_stream=get_current_stream,
    get_elapsed_time=get_elapsed_time,
    memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    runtime=runtime,
)
__version__ = "14.2.0"
