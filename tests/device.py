"""Where the tests of devices run: on a card, where CuPy finds one, and else on one in software.

A test that compares values asks for the fixture `device` and runs twice: `[card]`, which `-m gpu` selects, and
`[emulator]`. Which of the two is possible is found out once in a process, by the first test that asks, and the other is
skipped with the reason. A test that counts launches, or lets something fail, asks for `card`: the one in software.
"""

import contextlib
import functools
import importlib
import os
import sys
from pathlib import Path

import pytest

from minigan.backend import cuda

TESTS = Path(__file__).parent

DEVICES = (pytest.param("card", marks=pytest.mark.gpu), "emulator")


@functools.cache
def cupy():
    """CuPy itself, whatever `sys.modules` says; `None` where it is not installed."""
    before = sys.modules.pop("cupy", None)
    try:
        return importlib.import_module("cupy")
    except ImportError:
        return None
    finally:
        if before is not None:
            sys.modules["cupy"] = before


@functools.cache
def no_card():
    """Why there is no card; nothing if there is one."""
    if cupy() is None:
        return "CuPy is not installed"
    try:
        return "" if cupy().cuda.runtime.getDeviceCount() else "CUDA sees no GPU"
    except RuntimeError as error:
        return f"no GPU can be used: {error}"


def forget():
    """Let the package look for CuPy anew, as in a process where no array was put on a device."""
    for cached in (cuda._module, cuda._failures, cuda._blas, cuda._kernel, cuda.constant):
        cached.cache_clear()
    cuda._State.active, cuda._State.dead = False, ""


@contextlib.contextmanager
def emulated():
    """The card in software in CuPy's place."""
    import emulator

    before = sys.modules.get("cupy")
    sys.modules["cupy"] = emulator
    emulator.reset()
    forget()
    try:
        yield emulator
    finally:
        del sys.modules["cupy"]
        if before is not None:
            sys.modules["cupy"] = before
        emulator.reset()
        forget()


def processes(folder):
    """The environment of processes that find the card in software as `cupy`, a file of the folder."""
    text = f"import sys; sys.path.append({str(TESTS)!r}); import emulator; sys.modules['cupy'] = emulator\n"
    (folder / "cupy.py").write_text(text)
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{TESTS.parent}"}


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    """The name of a device to test on."""
    if request.param == "card":
        if no_card():
            pytest.skip(no_card())
        yield "cuda:0"
        return
    if not no_card():
        pytest.skip("there is a card")
    needs_compiler()
    with emulated():
        yield "cuda:0"


@pytest.fixture
def card():
    """The first card in software, for what only that one shows; without faults and limits, counts at zero."""
    needs_compiler()
    with emulated() as emulator:
        yield emulator.cards[0]


def needs_compiler():
    """Skip the test where the card in software cannot compile."""
    import emulator

    if emulator.COMPILER is None:
        pytest.skip("the card in software needs g++")
