"""Progress and curves on a terminal: what they show, and that nobody has to look."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from rich.console import Console

from minigan import report

SHOW, HIDE = "\x1b[?25h", "\x1b[?25l"  # the cursor


def record(step: int, **values: float | None) -> report.Record:
    numbers = {"d_loss": 1.25, "g_loss": 0.75, "penalty": 0.1, "d_real": 0.6, "d_fake": 0.4}
    return {
        "step": step,
        **numbers,
        "seconds": 1.0,
        "steps_per_second": 50.0,
        "images_per_second": 3200.0,
        **values,
    }


def test_lines_come_about_ten_times(capsys: pytest.CaptureFixture[str]) -> None:
    lines = report.Lines(1000, 1500)
    for step in range(1010, 1501, 10):
        lines.update(record(step))
    lines.note("step 1500: D is dead")
    lines.close()
    printed, notes = (text.splitlines() for text in capsys.readouterr())
    assert len(printed) == 10 and notes == ["step 1500: D is dead"]
    assert printed[0] == (
        "step   1050/1500  D 1.250  G 0.750  D(x) 0.60  D(G(z)) 0.40  50 steps/s  3,200 images/s  0:09 left"
    )
    assert printed[-1].startswith("step   1500/1500") and printed[-1].endswith("0:00 left")


def test_lines_of_a_run_that_is_over_or_goes_back(capsys: pytest.CaptureFixture[str]) -> None:
    report.Lines(20, 20).update(record(20))
    lines = report.Lines(0, 100)
    for step in (50, 20, 30, 60):  # back to a checkpoint after step 50
        lines.update(record(step))
    printed = capsys.readouterr().out
    assert re.findall(r"step +(\d+)/", printed) == ["50", "60"]


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    silence = report.Progress()
    silence.update(record(1))
    silence.note("step 1: D is dead")
    silence.close()
    assert capsys.readouterr() == ("", "")


def test_progress_is_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stdout", stream)
        assert isinstance(report.progress(0, 10), report.Lines)
        report.say("nobody may be listening")


def test_a_closed_output_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    shown = report.progress(0, 10)
    shown.update(record(10))
    shown.note("nobody may be listening")
    shown.close()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def plain(text: str) -> str:
    """The text without the terminal's commands."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize("width", [200, 80, 40, 8, 2, 1])
def test_live_display(width: int) -> None:
    screen = Terminal()
    bar = report.Bar(50, 200, Console(file=screen, width=width, height=25, force_terminal=True))
    assert screen.getvalue().rfind(SHOW) > screen.getvalue().rfind(HIDE)  # though it may be killed any time
    bar.update(record(100, steps_per_second=0.01, images_per_second=0.64))
    bar.close()
    bar.close()
    text = plain(screen.getvalue())
    if width >= 80:
        assert "D 1.250  G 0.750  D(x) 0.60  D(G(z)) 0.40  0.01 steps/s  0.64 images/s" in text
        assert "100/200" in text and "2:46:40 left" in text


@pytest.mark.parametrize("errors", [Terminal(), io.StringIO(), None])
def test_notes_come_above_the_bar(errors: io.StringIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    screen, note = Terminal(), "step 7: [red]D[/red] has learned nothing, a\udcffb"
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", errors)
    bar = report.Bar(0, 200, Console(file=report.Screen(screen), width=100, height=25, force_terminal=True))
    bar.note(note)
    report.say("something else")
    bar.update(record(100))
    bar.close()
    assert sys.stdout is screen and sys.stderr is errors
    text = plain(screen.getvalue())
    assert text.index("something else") < text.index("100/200")
    shown = note.replace("\udcff", r"\udcff")
    if errors is not None and not errors.isatty():
        assert errors.getvalue() == shown + "\n" and "step 7" not in text
    elif errors is not None:
        assert text.index(shown) < text.index("something else")


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "Input/output error"), ValueError("closed")])
def test_the_bar_goes_on_where_its_terminal_is_gone(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    bar = report.Bar(0, 200, Console(file=report.Screen(screen), width=80, height=25, force_terminal=True))

    def fail(text: str) -> int:
        raise error

    monkeypatch.setattr(screen, "write", fail)
    bar.note("nobody may be listening")
    bar.update(record(100))
    bar.live.refresh()
    bar.close()
    assert sys.stdout is screen


PROGRAM = """
import os, sys
from minigan import report
shown = report.progress(0, 100)
for step in range(10, 101, 10):
    values = {"d_loss": 1.25, "g_loss": 0.75, "d_real": 0.6, "d_fake": 0.4}
    values |= {"steps_per_second": 50.0, "images_per_second": 3200.0}
    shown.update({"step": step, **values})
    shown.note(f"note {step} \u00fc")
    report.say(f"line {step} \u00fc")
    if step == 50:
        os.write(2, b"half")
        sys.stdin.read()
shown.close()
os.write(2, b"done " + type(shown).__name__.encode())
os._exit(0)  # without the complaint that what is left in the buffer cannot be written
"""


@pytest.mark.parametrize("gone", [False, True], ids=["stays", "goes away"])
@pytest.mark.parametrize(("size", "encoding"), [((25, 80), "utf-8"), ((0, 0), "utf-8"), ((1, 1), "ascii")])
def test_any_terminal(size: tuple[int, int], encoding: str, gone: bool) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    environment |= {"TERM": "xterm", "PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=slave,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # so that closing the terminal sends no signal: only writing fails
    ) as program:
        os.close(slave)
        assert program.stderr is not None
        errors = b""
        while not errors.endswith(b"half"):
            errors += program.stderr.read(1)
        shown = os.read(master, 2**16).decode(encoding)
        if gone:
            os.close(master)
        errors += program.communicate(timeout=60)[1]
    assert program.returncode == 0 and errors.endswith(b"done Bar")
    letter = "ü" if encoding == "utf-8" else r"\xfc"
    notes = [line for line in re.split("\n|half|done", errors.decode(encoding)) if line.startswith("note")]
    assert notes == [f"note {step} {letter}" for step in range(10, 101, 10)]
    if size[1] != 1:
        assert f"line 10 {letter}" in plain(shown)
    if not gone:
        os.close(master)


@pytest.mark.parametrize("before", [True, False], ids=["closed before", "closes meanwhile"])
def test_a_pipe_that_nobody_reads(before: bool) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None
    if not before:
        assert program.stdout.readline().startswith(b"step     10/100")
    program.stdout.close()
    program.stdout = None
    assert program.communicate(timeout=60)[1].endswith(b"done Lines")
    assert program.returncode == 0


# Curves


def test_text_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record(10 * i, d_loss=i, g_loss=5.0, d_real=1.0, d_fake=(i - 1) / 23) for i in range(1, 25)]
    assert report.text_curves(records) == [
        "loss of D        24                 ▁▂▃▄▅▆▇█",
        "                            ▁▂▃▄▅▆▇█████████",
        "                  1 ▁▂▃▄▅▆▇█████████████████",
        "loss of G         5",
        "",
        "                  5 ▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁",
        "D(x)              1 ████████████████████████",
        "                    ████████████████████████",
        "                  0 ████████████████████████",
        "D(G(z))           1                 ▁▂▃▄▅▆▇█",
        "                            ▁▂▃▄▅▆▇█████████",
        "                  0 ▁▂▃▄▅▆▇█████████████████",
        "step                10 to 240",
    ]
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    lines = report.text_curves(records)
    assert lines[:3] == [
        "loss of D        24                 ...:::##",
        "                            ...::###########",
        "                  1 ..:::###################",
    ]
    assert "\n".join(lines).isascii()


def test_text_curves_of_long_runs_are_means() -> None:
    records = [record(i, d_loss=i % 2 + (i >= 60_000)) for i in range(1, 100_001)]
    lines = report.text_curves(records, width=70)
    assert lines[0] == "loss of D       1.5 " + " " * 30 + "█" * 20
    assert lines[2] == "                0.5 " + "▁" * 30 + "█" * 20


def test_text_curves_of_little() -> None:
    assert report.text_curves([]) == []
    assert report.text_curves([record(7)])[2:4] == ["               1.25 ▁", "loss of G      0.75"]
    gaps = [record(1), {"step": 2}, record(3, d_loss=np.nan), record(4, d_loss=None)]
    assert report.text_curves(gaps)[0:3] == ["loss of D      1.25", "", "               1.25 ▁"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats() | st.none() | st.integers() | st.text() | st.just(10**400), min_size=1, max_size=99),
    st.integers(-5, 120),
)
def test_text_curves_of_anything(values: list[Any], width: int) -> None:
    records = [{"step": v, "d_loss": v, "g_loss": v, "d_real": v} for v in values]
    lines = report.text_curves(records, width)
    assert len(lines) == 13
    assert max(map(len, lines[:-1])) <= max(width, 22)
