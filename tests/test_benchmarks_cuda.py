"""The benchmarks on a GPU: without one, on a card in software, and, with `-m gpu`, on a real one.

The card in software is the `cupy` that the processes find first on their path.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from device import needs_compiler, no_card, processes

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # the package `benchmarks` is not installed

from benchmarks import __main__ as program, cuda, profiler, report, runner  # noqa: E402
from benchmarks.cuda import CardRow, CardRunner  # noqa: E402
from benchmarks.peers import CARD, Contestant, NotThere  # noqa: E402
from benchmarks.process import Trouble  # noqa: E402
from benchmarks.runner import Options, Row  # noqa: E402
from benchmarks.table import DEFAULTS, TABLE  # noqa: E402

STAND_IN = Contestant("stand-in", "numpy", "limits_cuda", "sgemm-16", ("gan",), "", (), "cuda")


@pytest.fixture
def in_software(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Processes that are started find a card in software."""
    needs_compiler()
    # PyTorch takes seconds to import where it is installed.
    (tmp_path / "torch.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", processes(tmp_path)["PYTHONPATH"])
    monkeypatch.setenv("MINIGAN_NUMBA", "0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "--device", "cuda", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def rows_of(contestants: list[Contestant], *names: str) -> list[dict[str, Row]]:
    one = CardRunner(contestants, Options([1], tiny=True, rounds=3, seconds=0.001), lambda _: None)
    try:
        return [{row.contestant: row for row in rows} for rows in one.run(list(names))]
    finally:
        one.close()


@pytest.mark.parametrize("options", [[], ["--quick", "article-64", "--peers", "none"]])
def test_without_a_card(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    ended = run(*options)
    assert (ended.returncode, ended.stdout) == (7, "")
    assert ended.stderr.startswith("python -m benchmarks: error: --device cuda: device 'cuda': ")
    assert len(ended.stderr.splitlines()) == 1


def test_with_cupy_but_without_a_card(in_software: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    ended = run("--quick")
    assert (ended.returncode, ended.stdout) == (7, "")
    assert ended.stderr.endswith(
        "no GPU can be used: cudaErrorNoDevice: no CUDA-capable device is detected\n"
    )


def test_who_finds_no_card_is_missing_in_every_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("MINIGAN_NUMBA", "0")
    eager = next(c for c in CARD if c.name == "minigan-eager")
    for rows in rows_of([eager], "article-64", "wgan-gp"):
        assert rows["minigan-eager"].status == "missing"
        assert rows["minigan-eager"].note.startswith("device 'cuda': ")


def test_turns_on_the_card_in_software(in_software: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a turn, the limits and the end of a row give, with a product that stands in for both sides' steps."""
    monkeypatch.setattr(runner, "REFERENCE", STAND_IN)
    for rows in rows_of([STAND_IN], "article-64", "wgan-gp"):
        row = rows["stand-in"]
        assert isinstance(row, CardRow)
        assert (row.status, row.note, row.error64, row.error32) == ("ok", "", 0.0, 0.0)
        kept = [row.rounds, row.clock, row.copy, row.sgemm, row.tf32]
        assert [len(each) for each in kept] == [3] * 5
        assert all(value > 0 for each in kept for value in each)
        assert row.peak is not None
        assert row.peak >= 3 * 16 * 16 * 4
        assert row.kernel_s is None
        assert row.kernel_note == "it takes PyTorch's profiler, which is not installed"


def test_a_card_whose_kernels_cannot_be_compiled_is_reported(
    in_software: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("MINIGAN_EMULATOR_DIR", str(tmp_path / "nothing compiled"))
    file = tmp_path / "card.json"
    ended = run("--quick", "wgan-gp", "--json", file)
    assert (ended.returncode, ended.stderr) == (1, "")
    whole = json.loads(file.read_text())
    assert whole["machine"]["card"]["name"] == "emulated card"
    assert whole["settings"]["scenarios"] == ["wgan-gp"]
    assert [row["contestant"] for row in whole["rows"]] == ["minigan", "minigan-eager"]
    assert [row["status"] for row in whole["rows"]] == ["failed", "failed"]
    assert ended.stdout.startswith("emulated card, 17 GB, driver ")
    read = report.Results.read(str(file))
    assert [dataclasses.asdict(row) for row in read.rows] == whole["rows"]
    assert read.heading() in ended.stdout


@pytest.mark.slow  # compiles all kernels of two networks by g++
def test_minigan_on_the_card_in_software(in_software: None) -> None:
    for rows in rows_of([c for c in CARD if c.ours], "article-64", "wgan-gp", "dcgan-64"):
        assert [(row.contestant, row.status, row.note) for row in rows.values()] == [
            ("minigan", "ok", ""),
            ("minigan-eager", "ok", ""),
        ]


@pytest.mark.gpu
@pytest.mark.parametrize("peers", ["none", "torch,torch-graph", "torch-compile,torch-compile-graph", "jax"])
def test_on_a_real_card(peers: str, tmp_path: Path) -> None:
    if no_card():
        pytest.skip(no_card())
    file = tmp_path / "card.json"
    ended = run("--quick", "article-64", "wgan-gp", "dcgan-64", "--peers", peers, "--json", file)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for row in json.loads(file.read_text())["rows"]:
        assert row["status"] in ("ok", "missing"), row
        assert len(row["copy"]) == (2 if row["status"] == "ok" else 0)


def test_what_is_for_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(DEFAULTS["cuda"]) <= set(cuda.names()) <= set(TABLE)
    with pytest.raises(SystemExit):
        program._scenarios(["article", "tape"], program._parser(), "cuda")
    assert "--device cuda: not for ops, deep, but for article-16, " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        program._threads("1", False, program._parser(), "cuda")
    assert "--threads: not with --device cuda" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        program._peers("tf-graph", False, program._parser(), "cuda")
    assert "no peer tf-graph; there are torch, torch-graph, torch-compile, " in capsys.readouterr().err


def test_default_of_the_cpu_is_without_the_large_ones() -> None:
    assert set(TABLE) - set(DEFAULTS["cpu"]) == {"article-4096", "dcgan-256", "dcgan-1024"}


def test_traffic_of_the_article_step() -> None:
    widths = [(100, 128), (128, 128), (128, 784), (784, 128), (128, 128), (128, 1)]
    parameters = sum(a * b + b for a, b in widths)
    assert cuda.traffic(TABLE["article-64"]) == 4 * (6 * parameters + 64 * (784 + 2 * 100))


def row(name: str, rounds: list[float], **more: Any) -> CardRow:
    n = len(rounds)
    rates = {"sgemm": [5e13] * n, "copy": [2.5e12] * n, "tf32": [4e14] * n}
    return CardRow("article-64", 16, name, rounds=rounds, **(rates | {"clock": rounds} | more))


def test_table_of_a_card() -> None:
    ours = row("minigan", [1e-4] * 3, kernel_s=7.5e-5, peak=2_000_000, cold_s=1.5)
    peer = row("torch-graph", [2e-4] * 3, clock=[3e-4] * 3, kernel_note="no profiler")
    title, (heading, *lines) = report.table([ours, peer], False)
    assert title.endswith("; 2.5e+03 GB/s copied, 50 TFLOP/s sgemm, 400 TFLOP/s with TF32")
    first, second = (dict(zip(heading[:-1], line[:-1], strict=True)) for line in lines)
    assert first["ms a step"] == "0.1000"
    assert (first["/ fastest peer"], second["/ fastest peer"]) == ("0.50", "1.00")
    assert first["% of copy"] == f"{100 * cuda.traffic(TABLE['article-64']) / 1e-4 / 2.5e12:.1f}"
    assert first["% of sgemm"] == f"{100 * TABLE['article-64'].flops / 1e-4 / 5e13:.1f}"
    assert (first["% in kernels"], second["% in kernels"]) == ("75", "")
    assert (first["peak MB"], first["s to first step"]) == ("2", "1.50")
    assert lines[0][-1] == ""
    assert lines[1][-1] == "the clock says 1.50 times as long; no time in kernels: no profiler"


def test_a_step_takes_part_of_the_time_at_most_once() -> None:
    assert profiler._union([(0.0, 2.0), (1.0, 3.0), (1.5, 1.6), (5.0, 6.0)]) == 4.0
    assert profiler._union([]) == 0.0


def test_without_the_profiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(NotThere, match="which is not installed"):
        profiler.seconds_busy(lambda: None)


def test_time_to_the_first_step_and_no_step_twice() -> None:
    asked = []

    def ask(do: str, steps: int, done: int = 0) -> dict[str, Any]:
        asked.append(do)
        return {"losses": [[float(k)] for k in range(done, steps)]}

    one, mine = CardRunner([], Options([1]), lambda _: None), row("minigan", [])
    worker: Any = SimpleNamespace(ask=ask, born=0.0)
    losses = one._losses32(worker, mine, 10)
    one.close()
    assert losses == [[float(k)] for k in range(10)]
    assert asked == ["losses", "losses"]
    assert mine.cold_s is not None
    assert mine.cold_s > 0


def test_a_profiler_that_fails_leaves_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(do: str, **_: Any) -> dict[str, Any]:
        if do == "kernels":
            raise Trouble("failed", "ended with code -11: it said nothing")
        return {"peak": 5}

    one = CardRunner([], Options([1], tiny=True), lambda _: None)
    mine = row("minigan", [1e-4])
    one._look_back(SimpleNamespace(ask=ask), mine)  # type: ignore[arg-type]
    one.close()
    assert (mine.status, mine.peak) == ("ok", 5)
    assert mine.kernel_note == "ended with code -11: it said nothing"
