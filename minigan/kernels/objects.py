"""Kernels as files of machine code: compiled once, loaded by every later process without Numba.

Numba's own cache needs Numba, whose import and set-up take most of the time to the first step of a process, and its
files are pickles. A kernel is a C function of five integers that calls nothing outside of itself, so its machine code
can be kept as it is: an object file behind two digests, one of the code, one of all that it was compiled from.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minigan.kernels import launch

# LLVM's text of the C function: Numba's own takes places for a result and an exception, which kernels do not have.
_WRAPPER = """
define void @"{symbol}"(i{bits} %row, i{bits} %i0, i{bits} %i1, i{bits} %j0, i{bits} %j1) {{
  %result = alloca ptr
  %exception = alloca ptr
  %status = call i32 @"{inner}"(ptr %result, ptr %exception, {arguments})
  ret void
}}
"""
_DIGEST = 32  # bytes of a SHA-256

_keep = True  # compiled kernels; until the folder fails
_kernels: dict[tuple[str, str], "Kernel"] = {}  # by name and source


class Kernel(NamedTuple):
    """A C function `void kernel(intp row, intp i0, intp i1, intp j0, intp j1)` that compiled code calls by address.

    `function` calls it from Python, without the GIL, and keeps the code where it is.
    """

    address: int
    function: Callable[[int, int, int, int, int], None]


def kernel(name: str, source: str) -> Kernel:
    """The kernel of the function `name(row, i0, i1, j0, j1)` defined by `source`, compiled once.

    All five are integers: the address of the kernel's arguments, and the block of the result to compute. It must not
    raise and must not use Python objects: the machine calls it by address and without the GIL.
    """
    return _kernel((name, source), lambda: source)


def own_kernel(name: str, source: Callable[[], str]) -> Kernel:
    """As `kernel`, for a source that says nothing but what stands in the package: it is only read to be compiled."""
    return _kernel((name, ""), source)


def kernel_of(module: str, function: str, dtype: Any = np.float32) -> Kernel:
    """The kernel of a function of a module of this package, with the dtype's name wherever it says float32.

    The module need not be imported, unless the kernel has to be compiled: it may import Numba.
    """
    name = np.dtype(dtype).name

    def source() -> str:
        import importlib

        found = importlib.import_module(f"minigan.kernels.{module}")
        made = getattr(found, function)
        text = launch.source_of(made).replace("float32", name)
        used = {each.replace("float32", name) for each in made.__code__.co_names} & vars(found).keys()
        return f"from {found.__name__} import {', '.join(sorted(used))}\n\n\n{text}"

    return own_kernel(function.replace("float32", name), source)


def _kernel(key: tuple[str, str], source: Callable[[], str]) -> Kernel:
    known = _kernels.get(key)  # without the lock, which another thread may hold for seconds
    if known is not None:
        return known
    with launch.compiling:
        if key not in _kernels:
            name, text = key
            # Names in the objects differ from each other, for debuggers and profilers.
            symbol = f"minigan_{name}_{_digest(text.encode()).hex()[:16]}"
            _kernels[key] = _linked(_machine_code(name, symbol, source), symbol)
        return _kernels[key]


def _machine_code(name: str, symbol: str, source: Callable[[], str]) -> bytes:
    """The object file, from the folder if it is there whole."""
    global _keep
    folder = launch.cache_folder() if _keep else None
    if folder is not None:
        path = folder / f"{symbol}.o"
        try:
            found = path.read_bytes()
        except OSError:
            found = b""
        code = found[_DIGEST:]
        if code and _digest(symbol.encode() + code) == found[:_DIGEST]:
            return code
    code = _compiled(name, symbol, source())
    if folder is not None:
        try:
            _store(path, _digest(symbol.encode() + code) + code)
        except OSError as error:
            _keep = False
            launch.notice(f"compiled kernels are no longer kept: {path}: {error}")
    return code


def _digest(content: bytes) -> bytes:
    import hashlib  # here, because `import minigan` does not need it

    return hashlib.sha256(content).digest()


def _store(path: Any, content: bytes) -> None:
    """Write a file that others see whole or not at all."""
    import tempfile

    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def _compiled(name: str, symbol: str, source: str) -> bytes:
    """Compile a source with Numba, and all that the kernel calls into one object file that defines `symbol` only."""
    import llvmlite.binding as llvm

    numba = launch.numba()
    integer = numba.types.intp
    function = launch.define(name, source, f"<minigan kernel {name}>")
    compiled = numba.cfunc(numba.types.void(*[integer] * 5), **launch.OPTIONS)(function)
    library, inner = compiled._library, compiled._wrapper_name.removeprefix("cfunc.")
    bits = integer.bitwidth
    arguments = ", ".join(f"i{bits} %{x}" for x in ("row", "i0", "i1", "j0", "j1"))
    wrapper = _WRAPPER.format(symbol=symbol, inner=inner, bits=bits, arguments=arguments)
    module = llvm.parse_assembly(library.get_llvm_str() + wrapper)
    for each in (*module.functions, *module.global_variables):
        if not each.is_declaration and each.name != symbol:
            each.linkage = "internal"  # and so goes with the optimisation that follows if nothing calls it
    machine = library.codegen._tm
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    outside = [f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")]
    if set(outside) - _SYSTEM:
        raise RuntimeError(f"the kernel {name} calls {outside}: another process could not load it")
    return bytes(machine.emit_object(module))


# What LLVM itself may call, in every C library.
_SYSTEM = {"memcpy", "memmove", "memset", "memcmp", "bcmp", "memset_pattern16"}


def _linked(code: bytes, symbol: str) -> Kernel:
    """The kernel in an object file, brought into memory."""
    import ctypes

    import llvmlite.binding as llvm

    _initialise()
    target = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address = engine.get_function_address(symbol)
    function: Any = ctypes.CFUNCTYPE(None, *[ctypes.c_ssize_t] * 5)(address)
    function.engine = engine  # which owns the memory
    return Kernel(address, function)


def _initialise() -> None:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
