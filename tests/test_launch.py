"""Compiled kernels: where they are kept, what a damaged cache does, and what other processes and settings do."""

import os
import shutil
import subprocess
import sys
import textwrap
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from minigan.kernels import launch, objects

pytest.importorskip("numba")
pytestmark = pytest.mark.skipif(launch.numba() is None, reason="Numba is switched off")
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX only")

FILL = """from minigan.kernels.interpreter import load, store


def fill(row, i0, i1, j0, j1):
    for i in range(i0, i1):
        store(load(row + 40) + 8 * i, i)
"""
ADD = "def add(out, a, s):\n    for i in range(out.shape[0]):\n        out[i] = a[i] + s\n"
OP = """
import numpy as np, minigan as mg
x = mg.tensor(np.array([-1.0, 0.5], np.float32))
print(*mg.ops.leaky_relu(x, 0.5).numpy())
"""


def run(code: str, cache: Path, **environment: str) -> str:
    """The output of `code` in a process of its own, warnings and errors included."""
    environment = {"PATH": os.environ["PATH"], "MINIGAN_CACHE_DIR": str(cache), **environment}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    return (done.stdout + done.stderr).strip()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(launch, "_keep", True)
    monkeypatch.setattr(objects, "_keep", True)
    return tmp_path


def add(name: str = "add"):
    a = np.ones(3, np.float32)
    function = launch.build(name, ADD.replace("add", name), (a.copy(), a, 2.0), writes=1)
    out = np.empty_like(a)
    function(out, a, 2.0)
    assert out.tolist() == [3, 3, 3]
    return function


def fill():
    objects._kernels.pop(("fill", FILL), None)
    kernel, out = objects.kernel("fill", FILL), np.zeros(4, np.int64)
    row = np.array([kernel.address, 4, 1, 0, 1, out.ctypes.data], np.int64)
    kernel.function(row.ctypes.data, 1, 4, 0, 1)
    assert out.tolist() == [0, 1, 2, 3]
    return kernel


# Where


@pytest.mark.parametrize("relative", ["", "here"])
def test_a_relative_xdg_folder_is_ignored(tmp_path, monkeypatch, relative):
    monkeypatch.delenv("MINIGAN_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", relative)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert launch.cache_folder.__wrapped__().parent == tmp_path / ".cache" / "minigan"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "absolute"))
    assert launch.cache_folder.__wrapped__().parent == tmp_path / "absolute" / "minigan"


@posix
def test_without_a_home_nothing_is_kept(monkeypatch):
    import pwd

    def unknown(uid):
        raise KeyError(uid)

    for name in ("MINIGAN_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.warns(RuntimeWarning, match="are not kept.*home"):
        assert launch.cache_folder.__wrapped__() is None


@posix
@pytest.mark.parametrize(("mode", "kept"), [(0o777, False), (0o1777, True), (0o775, True), (0o700, True)])
def test_who_may_write_to_the_root(tmp_path, monkeypatch, mode, kept):
    monkeypatch.setenv("MINIGAN_CACHE_DIR", str(tmp_path))
    tmp_path.chmod(mode)
    if kept:
        assert launch.cache_folder.__wrapped__().parent == tmp_path
    else:
        with pytest.warns(RuntimeWarning, match="others may write to"):
            assert launch.cache_folder.__wrapped__() is None


@posix
def test_who_may_write_to_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGAN_CACHE_DIR", str(tmp_path / "new"))
    folder = launch.cache_folder.__wrapped__()
    assert [place.stat().st_mode & 0o777 for place in (folder, folder.parent)] == [0o700, 0o700]
    folder.chmod(0o770)
    with pytest.warns(RuntimeWarning, match="others may write to"):
        assert launch.cache_folder.__wrapped__() is None


@pytest.mark.parametrize(("name", "value"), [("BOUNDSCHECK", "1"), ("OPT", "0"), ("CPU_NAME", "generic")])
def test_settings_that_change_the_code_have_a_folder_of_their_own(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv("MINIGAN_CACHE_DIR", str(tmp_path))
    before = launch.cache_folder.__wrapped__()
    monkeypatch.setenv(f"NUMBA_{name}", value)
    assert launch.cache_folder.__wrapped__() != before


def test_an_edited_source_has_a_folder_of_its_own(tmp_path, monkeypatch):
    shutil.copy(launch.__file__, tmp_path / "launch.py")
    (tmp_path / "helper.py").write_text("1\n")
    monkeypatch.setattr(launch, "__file__", str(tmp_path / "launch.py"))
    monkeypatch.setenv("MINIGAN_CACHE_DIR", str(tmp_path / "cache"))
    before = launch.cache_folder.__wrapped__()
    assert launch.cache_folder.__wrapped__() == before
    (tmp_path / "helper.py").write_text("2\n")
    assert launch.cache_folder.__wrapped__() != before


# Damage


@pytest.mark.parametrize("suffix", ["py", "nbi", "nbc"])
@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"\xff\xfe\x80" * 99]
)
def test_a_damaged_file_is_replaced_without_a_word(folder, suffix, damage):
    add()
    (path,) = folder.rglob(f"add_*.{suffix}")
    path.write_bytes(damage(path.read_bytes()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add()
        assert add().stats.cache_hits.total() == 1


def flipped(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:16], lambda b: b[:-9], flipped])
def test_a_damaged_file_of_a_kernel_is_replaced_without_a_word(folder, monkeypatch, damage):
    fill()
    (path,) = folder.glob("minigan_fill_*.o")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill()
        assert path.read_bytes() == whole
        monkeypatch.setattr(objects, "_compiled", None)
        fill()  # is loaded


def test_the_file_of_another_kernel_is_not_used(folder, monkeypatch):
    fill()
    (path,) = folder.glob("minigan_fill_*.o")
    other = FILL.replace("store(load(row + 40) + 8 * i, i)", "pass")
    objects.kernel("fill", other)
    (wrong,) = set(folder.glob("minigan_fill_*.o")) - {path}
    shutil.copy(wrong, path)
    fill()


def test_a_kernel_stands_alone(folder):
    sorting = FILL.replace("store(load", "np.sort(np.ones(i + 1))\n        store(load")
    with pytest.raises(RuntimeError, match=r"the kernel fill calls \['NRT_"):
        objects.kernel("fill", "import numpy as np\n" + sorting)
    assert not list(folder.glob("*.o"))


def test_a_kernel_is_loaded_without_numba(tmp_path):
    code = """
        import sys
        import numpy as np, minigan as mg
        w = mg.tensor(np.ones(4, np.float32))
        step = mg.compile(lambda x: mg.grad(mg.ops.tanh(x @ w).sum(), [w]))
        print(step(np.ones((2, 4), np.float32))[0].numpy().round(3).tolist(), "numba" in sys.modules)
    """
    expected = run(code, tmp_path)
    assert expected.endswith(" True")
    assert run(code, tmp_path) == expected.replace("True", "False")


def test_a_source_that_cannot_be_compiled_is_not_the_fault_of_the_folder(folder):
    with pytest.raises(Exception, match="nothing_of_the_kind"):
        objects.kernel("wrong", "def wrong(row, i0, i1, j0, j1):\n    nothing_of_the_kind(row)\n")
    assert launch._keep
    add()
    assert list(folder.glob("add_*.py"))
    assert not list(folder.glob("wrong_*"))


def test_a_cache_that_cannot_be_mended_is_given_up_once(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add()
    (path,) = folder.glob("add_*.py")
    path.unlink()
    path.mkdir()
    with pytest.warns(RuntimeWarning, match="no longer kept"):
        add()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add()
        add("other")
    assert not list(folder.glob("other*"))


# Kernels


def test_a_kernel_is_compiled_once_in_a_process(folder):
    kernel = fill()
    assert objects.kernel("fill", FILL) is kernel
    assert fill().address != kernel.address  # forgotten by fill() and loaded again


# Types


def test_one_compilation_serves_read_only_arrays_and_integers(folder):
    function = add()
    a, out = np.ones(3, np.float32), np.zeros(3, np.float32)
    a.flags.writeable = False
    function(out, a, 2)
    assert out.tolist() == [3, 3, 3]
    assert len(function.signatures) == 1
    with pytest.raises(TypeError):
        function(a, out, 2.0)  # it writes to the first


def test_read_only_arrays_and_integers_in_operations(tmp_path):
    code = """
        import numpy as np, minigan as mg
        from minigan.ops.elementwise import leaky_relu
        base = np.array([-1.0, 0.5], np.float32)
        for integer in (1, 0.5):  # had the integer come first, its type would have cut the second to 0
            for writeable in (False, True):
                base.flags.writeable = writeable
                print(*leaky_relu(mg.asarray(base), integer).numpy(), end=" ")
    """
    assert run(code, tmp_path) == "-1.0 0.5 -1.0 0.5 -0.5 0.5 -0.5 0.5"
    assert len(list(tmp_path.rglob("leaky_relu*.nbc"))) == 1


# Settings and processes


@pytest.mark.slow
def test_eight_processes_and_a_cold_cache(tmp_path):
    code = """
        import sys, warnings
        warnings.simplefilter("error")
        sys.path.insert(0, "TESTS")
        from test_machine import Random, machine, np
        random = Random(1)
        expected = random.reference()
        random.machine.run()
        print(np.array_equal(random.arrays, expected))
    """.replace("TESTS", str(Path(__file__).parent))
    for _ in range(2):
        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(lambda _: run(code, tmp_path), range(8)))
        assert said == ["True"] * 8
    assert not list(tmp_path.rglob("*.tmp*"))


def test_numba_disable_jit_means_numpy(tmp_path):
    assert run(OP, tmp_path, NUMBA_DISABLE_JIT="1") == "-0.5 0.5"
    assert not list(tmp_path.iterdir())


FORK = """
import os, signal, threading, time
from minigan.kernels import launch
import numpy as np, minigan as mg
x = mg.tensor(np.array([-1.0, 0.5], np.float32))
mg.ops.leaky_relu(x, 0.5)
thread = threading.Thread(target=mg.ops.tanh, args=(x,))
thread.start()
{wait}
if os.fork() == 0:
    signal.alarm(20)
    print(*mg.ops.leaky_relu(x, 0.5).numpy(), *mg.ops.relu(x).numpy(), launch.may_build(), flush=True)
    os._exit(0)
os.wait()
thread.join()
print(launch.may_build())
"""


@posix
@pytest.mark.parametrize("during", [True, False])
def test_a_fork_while_another_thread_compiles(tmp_path, during):
    wait = "thread.join()"
    if during:
        wait = "while launch.compiling.acquire(blocking=False): launch.compiling.release(); time.sleep(1e-3)"
    output = run(FORK.format(wait=wait), tmp_path)
    assert output.split() == ["-0.5", "0.5", "0.0", "0.5", str(not during), "True"]
