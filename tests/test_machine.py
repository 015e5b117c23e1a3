"""Machines: tables of kernel calls run by several threads, with kernels of whole numbers whose results are exact."""

import os
import platform
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import minigan as mg
from minigan import backend
from minigan.backend import host
from minigan.errors import ConfigError
from minigan.kernels import launch, machine, objects

numba = pytest.mark.skipif(launch.numba() is None, reason="needs Numba")
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX only")

# out[i, j] = 31 out[i, j] + (x[n - 1 - i, m - 1 - j] ^ y[i, j]) + salt, for arrays of int64. Done twice or not at all
# it shows; and x is read where another part of an earlier phase has written.
MIX = """from minigan.kernels.interpreter import load, store


def mix(row, i0, i1, j0, j1):
    n, m = load(row + 8), load(row + 16)
    out, x, y, salt = load(row + 40), load(row + 48), load(row + 56), load(row + 64)
    for i in range(i0, i1):
        for j in range(j0, j1):
            at = 8 * (i * m + j)
            value = load(x + 8 * (n * m - 1) - at) ^ load(y + at)
            store(out + at, load(out + at) * 31 + value + salt)
"""
ROW = 9

MODE = """from minigan.kernels.interpreter import floating_point_mode, load, set_floating_point_mode, store


def mode(row, i0, i1, j0, j1):
    for i in range(i0, i1):
        store(load(row + 40) + 8 * i, floating_point_mode())
    for _ in range(j1 - 1):  # time for others to come
        floating_point_mode()


def set_mode(mode, i0, i1, j0, j1):
    set_floating_point_mode(mode)
"""


@pytest.fixture
def four(monkeypatch):
    """As many threads as are asked for, up to 4, on whatever number of CPUs."""
    before, functions = machine._threads, host._openblas()
    blas = functions[0]() if functions else 0
    monkeypatch.setattr(machine, "available", lambda: 4)
    yield
    machine._threads = before
    if functions:
        functions[1](blas)


class Random:
    """A machine of random phases on `arrays`, and the same in NumPy."""

    def __init__(self, seed: int, phases: int = 12) -> None:
        r = np.random.default_rng(seed)
        self.n, self.m = (int(k) for k in r.integers(1, 12, 2))
        self.arrays = r.integers(-9, 9, (6, self.n, self.m))
        kernel = objects.kernel("mix", MIX)
        self.table, self.steps, cut = np.zeros(3 * phases * (ROW + 2), np.int64), [], []
        offsets, end = [], 0
        for _ in range(phases):
            first = len(offsets)
            outs = r.permutation(6)[: r.integers(0, 4)]
            inputs = [k for k in range(6) if k not in outs]
            for out in outs:
                x, y, salt = (int(r.choice(inputs)), int(r.choice(inputs)), int(r.integers(99)))
                offset = end + int(r.integers(3))
                words = [kernel.address, self.n, self.m, int(r.integers(3)), int(r.integers(1, 6))]
                words += [self.arrays[k].ctypes.data for k in (out, x, y)] + [salt]
                self.table[offset : offset + ROW] = words
                self.steps.append((int(out), x, y, salt))
                offsets.append(offset)
                end = offset + ROW
            cut.append((first, len(offsets), int(r.integers(1, 8))))
        self.machine = machine.Machine(self.table, offsets, cut)

    def reference(self, runs: int = 1) -> np.ndarray:
        arrays = self.arrays.copy()
        for _ in range(runs):
            for out, x, y, salt in self.steps:
                arrays[out] = arrays[out] * 31 + (arrays[x][::-1, ::-1] ^ arrays[y]) + salt
        return arrays


def run(code: str, **environment: str) -> str:
    """What `code` prints in a process of its own, warnings and errors included."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PRELUDE + textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return (done.stdout + done.stderr + f" {done.returncode}").strip()


PRELUDE = f"""
import os, sys, signal, threading, time
sys.modules['scipy'] = None  # Numba imports it if it is there, which takes a second
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
from test_machine import Random, machine
machine.available = lambda: 4
"""


# Results


@numba
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_random_phases(four, threads):
    machine.set_threads(threads)
    for seed in range(60):
        random = Random(seed)
        expected = random.reference(3)
        for _ in range(3):
            assert random.machine.run()
        assert np.array_equal(random.arrays, expected), seed


@numba
@pytest.mark.parametrize("threads", [2, 4])
def test_many_runs(four, threads):
    alone, helped = Random(7, 40), Random(7, 40)
    for _ in range(40):
        machine.set_threads(1)
        for _ in range(50):
            alone.machine.run()
        machine.set_threads(threads)
        for _ in range(50):
            helped.machine.run()
        assert np.array_equal(alone.arrays, helped.arrays)


@numba
@pytest.mark.slow
def test_a_long_time(four):
    randoms = [(Random(seed), Random(seed)) for seed in range(50)]
    r = np.random.default_rng(0)
    for _ in range(500):
        for alone, helped in randoms:
            runs = int(r.integers(1, 30))
            machine.set_threads(1)
            for _ in range(runs):
                alone.machine.run()
            machine.set_threads(int(r.integers(2, 5)))
            for _ in range(runs):
                helped.machine.run()
            assert np.array_equal(alone.arrays, helped.arrays)


@numba
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_four_threads_on_one_core(four, monkeypatch):
    from minigan.kernels import workers

    monkeypatch.setattr(workers, "_pool", None)
    machine.set_threads(4)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        for seed in range(30):
            random = Random(seed)
            expected = random.reference(10)
            for _ in range(10):
                random.machine.run()
            assert np.array_equal(random.arrays, expected), seed
        workers._pool.stop()
    finally:
        os.sched_setaffinity(0, allowed)


@numba
def test_some_phases_or_a_single_row(four):
    machine.set_threads(2)
    random = Random(3)
    expected = random.reference()
    for k in range(12):
        assert random.machine.run(k, k + 1)
    assert np.array_equal(random.arrays, expected)
    expected = random.reference()
    for k in range(len(random.steps)):
        random.machine.run_row(k)
    assert np.array_equal(random.arrays, expected)
    for begin, end in ((-1, 2), (3, 2), (0, 13)):
        with pytest.raises(IndexError, match="of 12"):
            random.machine.run(begin, end)


@numba
def test_an_argument_changed_between_runs(four):
    random = Random(5)
    x = random.arrays[random.steps[0][0]]
    random.machine.run_row(0)
    before = x.copy()
    offset = np.flatnonzero(random.table)[0]
    random.table[offset + 8] += 1000
    random.arrays[:] = Random(5).arrays
    random.machine.run_row(0)
    assert np.array_equal(x, before + 1000)


@numba
@pytest.mark.parametrize("threads", [1, 2])
def test_a_failed_check_ends_a_run_until_the_next_from_the_start(four, threads):
    machine.set_threads(threads)
    good, x = np.array([True, False]), np.zeros((3, 8), np.int64)
    mix, check = objects.kernel("mix", MIX).address, machine.check_kernel().address
    table = np.zeros(4 * ROW, np.int64)
    for k, out in ((0, x[0]), (2, x[1]), (3, x[2])):
        table[ROW * k :][:ROW] = [mix, 8, 1, 0, 1, out.ctypes.data, x.ctypes.data, x.ctypes.data, 1]
    table[ROW : ROW + 6] = [check, 1, 1, 2, 1, good.ctypes.data]
    tested = machine.Machine(table, range(0, 4 * ROW, ROW), [(0, 2, 2), (2, 3, 2), (3, 4, 1)])
    table[ROW + 6] = tested.fail_address
    assert tested.run()
    assert x.any(1).tolist() == [True, True, True]
    x[:] = 0
    good[0] = False
    assert not tested.run()
    assert not tested.run(1, 3)
    assert x.any(1).tolist() == [True, False, False]
    good[0] = True
    assert tested.run()
    assert x.any(1).tolist() == [True, True, True]


@numba
def test_workers_take_over_the_floating_point_mode(four):
    machine.set_threads(4)
    set_mode, out = objects.kernel("set_mode", MODE).function, np.zeros(64, np.int64)
    table = np.array([objects.kernel("mode", MODE).address, 64, 2000, 0, 1, out.ctypes.data], np.int64)
    tested = machine.Machine(table, [0], [(0, 1, 8)] * 20)
    tested.run_row(0)  # in this thread, as it is: a run has other modes
    before = int(out[0])
    x86 = platform.machine() in ("x86_64", "AMD64")
    bits = (
        0x6000 if x86 else 0xC00000 if platform.machine() in ("aarch64", "arm64") else 0
    )  # rounding towards zero
    set_mode(before | bits, 0, 0, 0, 0)
    try:
        for _ in range(20):
            tested.run()
            assert np.all(out & bits == bits)
    finally:
        set_mode(before, 0, 0, 0, 0)


@numba
@pytest.mark.parametrize(
    "table", [np.zeros(9, np.int32), np.zeros((3, 9), np.int64), np.zeros(18, np.int64)[::2]]
)
def test_tables_that_are_none(table):
    with pytest.raises(ValueError, match="must be int64, 1-d, contiguous"):
        machine.Machine(table, [0], [(0, 1, 1)])


@numba
@pytest.mark.parametrize(
    ("words", "offset", "phase", "message"),
    [
        ([1, 2, 3, 0, 1], 5, (0, 1, 1), "begins at word 5"),
        ([1, 2, 3, 0, 1], -1, (0, 1, 1), "begins at word -1"),
        ([0, 2, 3, 0, 1], 0, (0, 1, 1), "kernel 0"),
        ([1, -2, 3, 0, 1], 0, (0, 1, 1), "-2 x 3"),
        ([1, 2, 3, 3, 1], 0, (0, 1, 1), "split 3"),
        ([1, 2, 3, 1, 0], 0, (0, 1, 1), "quantum 0"),
        ([1, 2, 3, 0, 1], 0, (0, 2, 1), "rows 0 to 2 of 1"),
        ([1, 2, 3, 0, 1], 0, (1, 0, 1), "rows 1 to 0"),
        ([1, 2, 3, 0, 1], 0, (0, 1, 0), "in 0 parts"),
        ([1, 2, 3, 0, 1], 0, (0, 1, 64), "in 64 parts"),
    ],
)
def test_rows_and_phases_that_cannot_be(words, offset, phase, message):
    with pytest.raises(ValueError, match=message):
        machine.Machine(np.array([*words, 0, 0, 0, 0], np.int64), [offset], [phase])


@numba
def test_a_machine_of_nothing():
    assert machine.Machine(np.zeros(0, np.int64), [], []).run()


# Threads of Python, processes, the end of the interpreter


@numba
@pytest.mark.parametrize("threads", [1, 4])
def test_machines_in_several_python_threads(four, threads):
    machine.set_threads(threads)
    randoms, shared = [Random(seed) for seed in range(6)], Random(6)
    expected = [random.reference(20) for random in [*randoms, shared]]

    def work(random: Random) -> None:
        for _ in range(20):
            random.machine.run()
        for _ in range(4):
            shared.machine.run()

    workers = [threading.Thread(target=work, args=(random,)) for random in randoms[:5]]
    for worker in workers:
        worker.start()
    for _ in range(20):
        randoms[5].machine.run()
    for worker in workers:
        worker.join()
    for random, arrays in zip([*randoms, shared], expected, strict=True):
        assert np.array_equal(random.arrays, arrays)


@numba
def test_a_machine_may_go_right_after_its_run(four):
    machine.set_threads(4)
    for seed in range(20):
        random = Random(seed, 3)
        arrays, expected = random.arrays, random.reference()
        random.machine.run()
        random.table[:] = 1
        del random
        assert np.array_equal(arrays, expected)


@numba
def test_idle_workers_return_to_python(four):
    from minigan.kernels import workers

    machine.set_threads(2)
    random = Random(0)
    for _ in range(2):
        while not random.machine.run() or workers._pool is None:
            pass
        (wake,) = workers._pool._wake
        deadline = time.monotonic() + 30
        while wake.is_set() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not wake.is_set()


@numba
def test_more_threads_than_a_phase_has_parts(four, monkeypatch):
    from minigan.kernels import workers

    monkeypatch.setattr(workers, "_pool", None)
    monkeypatch.setattr(machine, "available", lambda: 200)
    machine.set_threads(100)
    for seed in range(10):
        random = Random(seed)
        expected = random.reference()
        random.machine.run()
        assert np.array_equal(random.arrays, expected)
    assert len(workers._pool._threads) == machine.MOST_PARTS - 1
    workers._pool.stop()


@numba
def test_a_system_that_gives_no_threads(four, monkeypatch):
    from minigan.kernels import workers

    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(workers, "_pool", None)
    machine.set_threads(3)
    random = Random(0)
    expected = random.reference(3)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.warns(RuntimeWarning, match="run on 1 of 3 threads: can't start") as said:
            for _ in range(3):
                random.machine.run()
    assert np.array_equal(random.arrays, expected)
    assert len(said) == 1


@numba
@posix
def test_a_fork_while_machines_run():
    code = """
        machine.set_threads(4)
        before, after, other = Random(1, 200), Random(2), Random(3, 200)
        before.machine.run()
        done = threading.Event()
        def work():
            while not done.is_set(): other.machine.run()
        thread = threading.Thread(target=work)
        thread.start()
        torn = 0
        for _ in range(10):
            time.sleep(0.003)
            child = os.fork()
            if child == 0:
                signal.alarm(30)
                for random in (before, after):
                    expected = random.reference(5)
                    for _ in range(5): random.machine.run()
                    assert np.array_equal(random.arrays, expected)
                try:
                    other.machine.run()
                except RuntimeError as error:
                    assert "forked while another thread ran" in str(error)
                    os._exit(1)
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert status in (0, 1), status
            torn += status
        done.set()
        thread.join()
        assert torn > 0
        expected = before.reference()
        before.machine.run()
        assert np.array_equal(before.arrays, expected)
    """
    assert run(code) == "0"


@numba
@pytest.mark.parametrize(
    "end",
    [
        "time.sleep(0.5)",
        "threading.Thread(target=work, daemon=True).start(); time.sleep(0.1)",
        "import atexit; atexit.register(random.machine.run)",
    ],
)
def test_the_interpreter_ends(end):
    code = f"""
        machine.set_threads(4)
        random = Random(1, 200)
        def work():
            while True: random.machine.run()
        random.machine.run()
        {end}
    """
    assert run(code) == "0"


# How many


def test_the_number_of_threads(four):
    machine.set_threads(3)
    assert machine.threads() == 3
    if host._openblas() is not None:
        get = host._openblas()[0]
        assert get() == 3
        with backend.one_blas_thread():
            machine.set_threads(2)
            assert get() == 1
        assert get() == 2
    for wrong in (0, -1, 5, True, 2.0, "2", None):
        with pytest.raises(ConfigError, match="from 1 to 4"):
            machine.set_threads(wrong)
    assert machine.threads() == 2


@pytest.mark.parametrize(
    ("own", "shared", "expected"),
    [
        (None, None, 4),
        ("3", None, 3),
        ("99", "", 4),
        (None, "2,1", 2),
        (None, "64", 4),
        (None, "many", 4),
        ("3", "2", 2),
        ("1", "2", 1),
    ],
)
def test_the_environment(four, monkeypatch, own, shared, expected):
    for name, value in (("MINIGAN_NUM_THREADS", own), ("OMP_NUM_THREADS", shared)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert machine._default.__wrapped__() == expected


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_an_environment_that_says_nothing(monkeypatch, value):
    monkeypatch.setenv("MINIGAN_NUM_THREADS", value)
    with pytest.raises(ConfigError, match=f"MINIGAN_NUM_THREADS='{value}'"):
        machine._default.__wrapped__()


def test_help_is_taken_where_it_pays_and_that_is_found_out_again():
    pace = machine._Pace()

    def runs(alone: int, helped: int) -> list[bool]:
        """Whether each of the runs up to the next decision was made with help, if they take so long."""
        found = []
        for _ in range(machine.RUNS):
            found.append(pace.wants_help())
            pace.note(found[-1], helped if found[-1] else alone)
        return found

    probes, others = slice(machine.PROBES), slice(machine.PROBES, None)
    for alone, helped, expected in ((200, 100, True), (100, 200, False), (100, 99, False), (100, 90, True)):
        made = runs(alone, helped)
        assert set(made[probes]) == {True, False}
        assert set(made[others]) == {expected}


@numba
@pytest.mark.parametrize("threads", [1, 2])
def test_subnormal_numbers_are_zero_in_a_run_and_nowhere_else(four, threads):
    n = 1 << 16  # enough for threads to share

    @mg.compile
    def step(x, y):
        return x * y, (x * y).sum()

    machine.set_threads(threads)
    small, tiny = np.float32(1e-30), np.float32(1e-9)
    product, total = step(np.full(n, small), np.full(n, tiny))
    if platform.machine() in ("x86_64", "AMD64", "aarch64", "arm64"):
        assert not product.numpy().any() and total.item() == 0
    assert small * tiny > 0 and (np.full(n, small) * tiny).all()  # this thread is as it was
    product, total = step(np.full(n, small), np.full(n, np.float32(1e-7)))
    # The smallest normal ones are there.
    assert product.numpy().min() == np.float32(1e-30) * np.float32(1e-7) > 0
    assert total.item() == pytest.approx(n * 1e-37)
