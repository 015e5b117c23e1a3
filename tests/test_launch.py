"""Compiled kernels: where they are kept, what a damaged cache does, and what other processes and settings do."""

import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest

from minigan.kernels import launch

pytest.importorskip("numba")
pytestmark = pytest.mark.skipif(launch.numba() is None, reason="Numba is switched off")
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX only")

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
    return tmp_path


def add(name: str = "add"):
    a = np.ones(3, np.float32)
    function = launch.build(name, ADD.replace("add", name), (a.copy(), a, 2.0), writes=1)
    out = np.empty_like(a)
    function(out, a, 2.0)
    assert out.tolist() == [3, 3, 3]
    return function


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


@pytest.mark.parametrize(("name", "value"), [("BOUNDSCHECK", 1), ("OPT", 0), ("CPU_NAME", "generic")])
def test_settings_that_change_the_code_have_a_folder_of_their_own(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv("MINIGAN_CACHE_DIR", str(tmp_path))
    before = launch.cache_folder.__wrapped__()
    monkeypatch.setattr(launch.numba().config, name, value)
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
        wait = (
            "while launch._compiling.acquire(blocking=False): launch._compiling.release(); time.sleep(1e-3)"
        )
    output = run(FORK.format(wait=wait), tmp_path)
    assert output.split() == ["-0.5", "0.5", "0.0", "0.5", str(not during), "True"]
