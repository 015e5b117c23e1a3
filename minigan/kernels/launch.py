"""Compiling generated source with Numba, lazily, and keeping the result on disk.

Numba is imported at the first kernel that it has to compile or to call, never by `import minigan`. Without it, or with
`MINIGAN_NUMBA=0` or `NUMBA_DISABLE_JIT=1` in the environment, kernels fall back to NumPy. Compiled code is kept in a
folder per user (mode 0700, because it is run, and Numba's cache files are pickles) whose name holds a hash of the
sources of this package, of the processor, of the versions involved and of Numba's settings, so that nothing stale is
ever loaded.
"""

import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
import linecache
import os
import stat
import sys
import textwrap
import threading
import types
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from minigan.backend import Array

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = {"nogil": True, "error_model": "numpy"}
LOOP_PRELUDE = "from __future__ import annotations\n\nimport numpy as np\n\n\n"

compiling = threading.RLock()  # held by the thread that imports Numba or compiles
_orphaned = False  # this process was forked while another thread held it
_keep = True  # compiled kernels; until the folder fails


class _Thread(threading.local):
    """Whether this thread captures a step: a run whose results are dropped."""

    captures = False


_thread = _Thread()


def _after_fork() -> None:
    # The other thread does not exist here, but the locks that it holds inside Numba and the import system do, and
    # nobody will release them: better never to wait for them.
    global compiling, _orphaned
    if compiling.acquire(blocking=False):
        compiling.release()
    else:
        compiling, _orphaned = threading.RLock(), True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def may_build() -> bool:
    """Whether kernels that are not compiled yet can be, and are worth it.

    They cannot in a process forked while another thread compiled, and are not in a step that is being captured.
    """
    return available() and not _thread.captures


@contextlib.contextmanager
def capturing() -> Iterator[None]:
    """Compile and load nothing for the calls of this thread in the block, since their results are dropped."""
    before, _thread.captures = _thread.captures, True
    try:
        yield
    finally:
        _thread.captures = before


def available() -> bool:
    """Whether kernels can be compiled, or have been by the same versions of everything on the same processor."""
    return not _orphaned and _available()


@functools.cache
def _available() -> bool:
    if os.environ.get("MINIGAN_NUMBA") == "0" or importlib.util.find_spec("numba") is None:
        return numba() is not None
    if not os.path.isfile(__file__) or not __file__.endswith(".py"):
        notice(f"minigan runs on NumPy alone, which is slower: its source is not at {__file__}")
        return False
    if os.environ.get("NUMBA_DISABLE_JIT", "0") == "0":
        folder = cache_folder()
        if folder is not None and any(folder.glob("*.o")):
            return True
    return numba() is not None


@functools.cache
def numba() -> Any:
    """The numba module, or `None` if it is missing (said once) or switched off."""
    if os.environ.get("MINIGAN_NUMBA") == "0" or _orphaned:
        return None
    try:
        with compiling:
            module: Any = importlib.import_module("numba")
    except ImportError as error:
        notice(f"Numba cannot be imported ({error}): minigan runs on NumPy alone, which is slower")
        return None
    return None if module.config.DISABLE_JIT else module


def notice(message: str) -> None:
    """Warn of something that makes minigan slower, not wrong."""
    warnings.warn(message, RuntimeWarning, stacklevel=2)


@functools.cache
def cache_folder() -> "Path | None":
    """The folder of compiled kernels, or `None` (said once) if no safe, writable one can be had.

    `$MINIGAN_CACHE_DIR`, else `$XDG_CACHE_HOME/minigan`, else `~/.cache/minigan`.
    """
    # Imported here, because they take a tenth of NumPy's own import time and `import minigan` does not need them.
    import hashlib
    import tempfile
    from pathlib import Path

    digest = hashlib.sha256(f"{sys.version} {np.__version__} {_numba_version()} {cpu()}".encode())
    digest.update(repr(sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_"))).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    try:
        root = _cache_root()
        folder = root / f"kernels-{digest.hexdigest()[:16]}"
        for place in (root, folder):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(root, folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder is known
        notice(f"compiled kernels are not kept, every process compiles its own: {error}")
        return None
    return folder


def _numba_version() -> str:
    """As `numba.__version__` and llvmlite's would say, without their import."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{version('numba')} {version('llvmlite')}"
    except PackageNotFoundError:  # put there by hand
        return f"{numba().__version__} {importlib.import_module('llvmlite').__version__}"


@functools.cache
def cpu() -> tuple[str, str]:
    """The processor that Numba compiles for, and its features as in "+avx2,-sse4a"."""
    import llvmlite.binding as llvm

    name = os.environ.get("NUMBA_CPU_NAME", "host")
    own = name == "host"
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = llvm.get_host_cpu_features().flatten() if own else ""
    return (llvm.get_host_cpu_name() if own else name), features


def _cache_root() -> "Path":
    from pathlib import Path

    named = os.environ.get("MINIGAN_CACHE_DIR")
    if named:
        return Path(named).absolute()
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not caches.is_absolute():  # the XDG specification has a relative one ignored
        caches = Path("~/.cache").expanduser()
    return caches / "minigan"


def _check_owner(root: "Path", folder: "Path") -> None:
    """Raise `PermissionError` if another user could put a file into `folder`, or another folder into its place."""
    if not hasattr(os, "getuid"):  # Windows has no such modes
        return
    # Groups may write to the root, since a umask of 002 is common; in a sticky one (/tmp) nobody can rename what is
    # another's.
    for place, owners, others in ((root, {0, os.getuid()}, 0o002), (folder, {os.getuid()}, 0o022)):
        status = place.stat()
        if status.st_uid not in owners:
            raise PermissionError(f"{place} belongs to user {status.st_uid}")
        sticky = place == root and status.st_mode & stat.S_ISVTX
        if status.st_mode & others and not sticky:
            raise PermissionError(f"others may write to {place} (mode {stat.S_IMODE(status.st_mode):o})")


def build(name: str, source: str, arguments: tuple[Any, ...], writes: int) -> Callable[..., None]:
    """Compile the function `name` defined by `source` for arguments of the types of `arguments`.

    The first `writes` of them are arrays that it writes to. All others are declared read-only: so one compilation
    serves read-only and writeable arrays.
    """
    kinds = [numba().typeof(argument) for argument in arguments]
    signature = tuple(
        kind.copy(readonly=True) if k >= writes and isinstance(arguments[k], np.ndarray) else kind
        for k, kind in enumerate(kinds)
    )

    def compiled(function: Any, cache: bool) -> Any:
        dispatcher = numba().njit(cache=cache, **OPTIONS)(function)
        dispatcher.compile(signature)
        # Without this a writeable array would not be converted: Numba would compile again, outside our lock.
        dispatcher.disable_compile()
        return dispatcher

    with compiling:
        loop: Callable[..., None] = _kept(name, source, compiled)
        return loop


def _kept(name: str, source: str, compiled: Callable[[Any, bool], Any]) -> Any:
    """What `compiled(function, cache)` makes of the function that `source` defines, from the folder if it is there."""
    import hashlib

    global _keep
    failure = ""
    folder = cache_folder() if _keep else None
    if folder is not None:
        path = folder / f"{name}_{hashlib.sha256(source.encode()).hexdigest()[:16]}.py"
        for _ in range(2):
            try:
                _store(path, source.encode())
                return compiled(define(name, source, str(path)), True)
            except Exception as error:  # a damaged file shows in many ways (unpickling, zlib, disk full)
                failure = f"{path}: {type(error).__name__}: {error}"
                for file in folder.rglob(f"{path.stem}.*"):  # Numba never replaces files it cannot read
                    with contextlib.suppress(OSError):
                        file.unlink()
    # An error here is of the source and not of the folder.
    function = compiled(define(name, source, f"<minigan kernel {name}>"), False)
    if failure:
        _keep = False
        notice(f"compiled kernels are no longer kept: {failure}")
    return function


def _store(path: "Path", source: bytes) -> None:
    """Write the source where Numba looks for its file's date; only if it is not there, so that the date stays."""
    import tempfile

    if not path.exists() or path.read_bytes() != source:
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(source)
        os.replace(temporary, path)


def define(name: str, source: str, filename: str) -> Any:
    """The plain Python function that `source`, text generated by this package and never read from disk, defines."""
    # A module of its own in sys.modules: Numba looks a function's globals up there when it loads a compiled one.
    module = types.ModuleType(f"minigan_kernel_{name}_{zlib.crc32(source.encode()):08x}")
    sys.modules[module.__name__] = module
    exec(compile(source, filename, "exec"), module.__dict__)
    linecache.cache[filename] = (
        len(source),
        None,
        source.splitlines(True),
        filename,
    )  # for Numba's error messages
    return module.__dict__[name]


@functools.cache
def source_of(function: Callable[..., Any]) -> str:
    """The text of a function; empty (said once) if its file is not there or has changed since it was imported."""
    try:
        text = textwrap.dedent(inspect.getsource(function))
        definition = ast.parse(text).body[0]
        if isinstance(definition, ast.FunctionDef) and definition.name == function.__name__:
            return text
        reason = "its file has changed"
    except (OSError, SyntaxError) as error:
        reason = str(error)
    notice(f"{function.__name__} runs on NumPy alone, which is slower: its text cannot be read ({reason})")
    return ""


class Loop:
    """A kernel written as plain Python loops over arrays, compiled at first use; `fallback` serves without Numba.

    The loop's text is compiled by itself: it may use `np` and its own arguments, nothing else. It writes to the
    first `writes` arguments.
    """

    def __init__(
        self,
        function: Callable[..., None],
        fallback: Callable[..., None],
        writes: int = 1,
    ) -> None:
        self.function, self.fallback, self.writes = function, fallback, writes
        self._compiled: Callable[..., None] | None = None

    def __call__(self, *arguments: Array) -> None:
        """Run the loop; its arguments are contiguous arrays, always of the same dtypes."""
        if self._compiled is None:
            text = source_of(self.function) if may_build() and numba() is not None else ""
            if not text:
                self.fallback(*arguments)
                return
            self._compiled = build(self.function.__name__, LOOP_PRELUDE + text, arguments, self.writes)
        self._compiled(*arguments)
