"""The benchmarks as a program: minigan alone at tiny sizes, what is not there or not right, errors, files, Ctrl-C."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # the package `benchmarks` is not installed

from benchmarks import __main__ as program, machine, report, runner  # noqa: E402
from benchmarks.convolutional import ConvGan  # noqa: E402
from benchmarks.peers import ALL, Contestant  # noqa: E402
from benchmarks.runner import Options, Row, Runner  # noqa: E402
from benchmarks.table import DEFAULTS, GROUPS, TABLE, Scenario  # noqa: E402

EAGER = next(c for c in ALL if c.name == "minigan-eager")
ABSENT = Contestant("absent", "no_such_package", "absent", "", ("gan", "chain"), "pip install absent")
BROKEN = Contestant("broken", "numpy", "no_such_file", "", ("gan", "chain"), "")


@pytest.fixture(autouse=True)
def no_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling kernels for tiny sizes would be most of the time; processes take this from their parent."""
    monkeypatch.setenv("MINIGAN_NUMBA", "0")


def main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, arguments)])
    return program.main()


def rows_of(contestants: list[Contestant], *names: str) -> dict[str, Row]:
    one = Runner(contestants, Options([1], tiny=True, rounds=1, seconds=0.001, starts=1), lambda _: None)
    try:
        return {row.contestant: row for rows in one.run(list(names)) for row in rows}
    finally:
        one.close()


@pytest.mark.slow  # `.ci/run` does it
def test_quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"json": tmp_path / "a.json", "markdown": tmp_path / "a.md", "plot": tmp_path / "a.png"}
    options = [part for name, path in files.items() for part in (f"--{name}", path)]
    names = ["article-16", "wgan-gp", "dcgan-r1", "sagan", "cvt", "conv-depth-dw", "ops", "busy", "start"]
    assert main(monkeypatch, "--quick", *names, *options) == 0
    printed = capsys.readouterr().out
    whole = json.loads(files["json"].read_text())
    assert set(whole) == {"machine", "versions", "settings", "rows", "load_at_the_end"}
    assert whole["machine"]["cpus"] == len(machine.available())
    assert whole["versions"]["numpy"] == np.__version__
    assert [row["scenario"] for row in whole["rows"] if row["contestant"] == "minigan-eager"] == names
    for row in whole["rows"]:
        assert set(row) == {field.name for field in dataclasses.fields(Row)}
        assert (row["status"], row["note"]) == ("ok", "")
        assert row["error64"] < 1e-9
        assert row["peak"] > 1e7
        assert len(row["rounds"]) == (0 if row["scenario"] == "start" else 2)
        assert len(row["busy"]) == (2 if row["scenario"] == "busy" else 0)
        assert (row["cold_s"] is not None and len(row["warm_s"]) == 1) == (row["scenario"] == "start")
    assert all(f"{name}: at a tiny size; 1 thread\n" in printed for name in names)
    assert files["markdown"].read_text().count("| minigan |") == len(names) - 1
    assert files["plot"].read_bytes().startswith(b"\x89PNG")
    assert main(monkeypatch, "--read", files["json"]) == 0
    assert capsys.readouterr().out == printed


def test_who_is_not_there_or_fails_is_reported_and_the_others_go_on() -> None:
    rows = rows_of([BROKEN, ABSENT, EAGER], "ops")
    assert (rows["absent"].status, rows["absent"].note) == ("missing", "not installed: pip install absent")
    assert rows["broken"].status == "failed"
    assert rows["broken"].note.startswith("ModuleNotFoundError: ")
    assert rows["minigan-eager"].status == "ok"
    assert rows["minigan-eager"].rounds
    assert not rows["absent"].rounds + rows["broken"].rounds


@pytest.mark.parametrize("name", ["dcgan-64", "conv-first-dx"])
def test_scenarios_of_images(name: str) -> None:
    row = rows_of([EAGER], name)["minigan-eager"]
    assert (row.status, row.note) == ("ok", "")
    assert row.error32 is not None
    assert row.error32 < 1e-5


def test_who_is_wrong_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "CLOSE64", -1.0)
    row = rows_of([EAGER], "ops")["minigan-eager"]
    assert (row.status, row.rounds) == ("wrong", [])


def test_a_process_that_does_not_answer_is_ended() -> None:
    one = Runner([EAGER], Options([1], tiny=True, patience=0.001), lambda _: None)
    try:
        rows = [row for rows in one.run(["article-16"]) for row in rows]
    finally:
        one.close()
    assert [(row.status, row.note) for row in rows] == [("failed", "no answer within 0.001 s")]


def test_help_lists_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(monkeypatch, "--help")
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in [*TABLE, *GROUPS])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none-such"], "no scenario none-such; there are article-16, "),
        (["--threads", "1,100000"], "--threads: 1,100000, but this process may use 1 to "),
        (["--threads", "0"], "--threads: 0, but this process may use 1 to "),
        (["--threads", "two"], "--threads: 'two' is no list of numbers such as 1,2"),
        (["--peers", "caffe"], "--peers: no peer caffe; there are torch, "),
        (["--rounds", "0"], "--rounds: 0, expected at least 1"),
        (["--json", "/no/such/folder/x.json"], "--json: /no/such/folder/x.json cannot be written"),
        (["--plot", "chart.bmp"], "--plot: chart.bmp does not end in .png, .svg, .pdf"),
        (["--read", "/dev/null"], "--read: /dev/null is not what --json writes: "),
        (["--read", "/no/such/file"], "--read: /no/such/file is not what --json writes: "),
    ],
)
def test_errors(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(monkeypatch, *arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_groups_and_scenarios_are_named_once() -> None:
    chosen = program._scenarios(["article-64", "article", "r1"], program._parser())
    assert chosen == ["article-64", "article-16", "article-256", "article-1024", "r1"]
    for device, names in DEFAULTS.items():
        assert program._scenarios([], program._parser(), device) == names


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(how: signal.Signals, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "ops", "--quick", "--rounds", "1000000", "--json", results]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(how)
        printed, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert "interrupted: this is what has been measured\n" in printed
    assert "rows" in json.loads(results.read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_flops_of_the_article_step() -> None:
    assert round(TABLE["article-64"].flops / 64 / 1e6, 2) == 2.48
    assert TABLE["article-256"].flops == 4 * TABLE["article-64"].flops
    assert TABLE["wgan-gp"].flops > TABLE["r1"].flops > TABLE["article-64"].flops


def test_flops_of_the_dcgan_step() -> None:
    assert round(TABLE["dcgan-64"].flops / 1e9, 1) == 10.4
    assert TABLE["dcgan-128"].flops == 2 * TABLE["dcgan-64"].flops
    assert TABLE["sagan"].flops > TABLE["dcgan-64"].flops < TABLE["dcgan-r1"].flops
    assert TABLE["conv-second-dw"].flops == 2 * 64 * 7 * 7 * (4 * 4 * 64 * 128)


def test_weights_of_dcgan() -> None:
    shapes = [{name: a.shape for name, a in w.items()} for w in ConvGan("", "").weights("float32")]
    assert list(shapes[0].values()) == [
        *((100, 6272), (128,), (128,)),
        *((4, 4, 64, 128), (64,), (64,)),
        *((4, 4, 1, 64), (1,)),
    ]
    assert list(shapes[1].values()) == [
        *((4, 4, 1, 64), (64,)),
        *((4, 4, 64, 128), (128,), (128,)),
        *((6272, 1), (1,)),
    ]


@pytest.mark.parametrize("scenario", [*TABLE.values()], ids=lambda scenario: scenario.name)
def test_data_are_the_same_for_all(scenario: Scenario) -> None:
    tiny = scenario.tiny()
    for single, double, again in zip(
        *(tiny.arrays(3, d) for d in ("float32", "float64", "float32")), strict=True
    ):
        assert single.dtype == np.float32
        assert single.ctypes.data % 64 == double.ctypes.data % 64 == 0
        np.testing.assert_array_equal(single, double)
        np.testing.assert_array_equal(single, again)


def test_ratios_are_of_the_same_round_and_to_who_is_right() -> None:
    def row(name: str, rounds: list[float], status: str = "ok") -> Row:
        return Row("article-64", 1, name, status, rounds=rounds, sgemm=[1e9] * len(rounds))

    ours = row("minigan", [1.0, 20.0, 3.0])
    rows = [ours, row("torch", [2.0, 40.0, 6.0]), row("jax", [0.1] * 3, "wrong"), row("autograd", [5.0] * 3)]
    best = report.fastest_peer(rows)
    assert best is not None
    assert best.contestant == "autograd"
    assert report.ratio(ours, rows[1]) == 0.5
    assert report.spread([1.0, 2.0, 3.0]) == 0.5
    assert report.summary(rows)[1] == ["article-64", "1", "3000.000", "autograd", "5000.000", "0.60", "", ""]
    assert runner.difference([[1.0, 30.0]], [[1.5, 10.0]]) == 2.0
