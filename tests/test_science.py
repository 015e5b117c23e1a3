"""The studies as a program: what is run again and what is not, damaged files, Ctrl-C, errors; each at a tiny size."""

import doctest
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # the package `benchmarks` is not installed

from benchmarks.science import __main__ as program, figures, runner  # noqa: E402
from benchmarks.science.figures import interval, markdown  # noqa: E402
from minigan.data import find  # noqa: E402
from minigan.errors import DataError  # noqa: E402

STUDIES = runner.studies()


class Fake:
    """A study whose runs are counted; it ends as `failing` says at the case of that number."""

    ABOUT = "Squares of numbers. No time at all."

    def __init__(self) -> None:
        self.made: list[int] = []
        self.failing: dict[int, BaseException] = {}

    def cases(self, seeds: int, quick: bool) -> list[dict[str, Any]]:
        return [{"seed": seed, "of": {"x": 0.5}} for seed in range(seeds)]

    def run(self, case: dict[str, Any], quick: bool) -> dict[str, Any]:
        if case["seed"] in self.failing:
            raise self.failing.pop(case["seed"])
        self.made.append(case["seed"])
        return {"square": case["seed"] ** 2, "third": case["seed"] / 3}

    def table(self, rows: list[dict[str, Any]]) -> str:
        return markdown([["seed", "square"], *[[row["seed"], row["square"]] for row in rows]])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    study = Fake()
    monkeypatch.setattr(program, "studies", lambda: {"fake": study, "other": Fake()})
    return study


def main(folder: Path, *arguments: object) -> int:
    return program.main(["fake", "--results", str(folder), *map(str, arguments)])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "fake.jsonl").read_text().splitlines()]


def test_what_is_there_is_not_run_again(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tmp_path, "--seeds", 2) == 0
    assert main(tmp_path, "--seeds", 3) == 0
    assert fake.made == [0, 1, 2]
    said = capsys.readouterr()
    assert "fake: Squares of numbers. No time at all." in said.err
    assert "fake: 1 of 3 runs are left, about 0:00:00" in said.err
    assert said.out.endswith("| 2 | 4 |\n\n")
    kept = lines(tmp_path)
    assert [line["result"]["square"] for line in kept] == [0, 1, 4]
    assert [line["digest"] for line in kept] == [runner.digest(case) for case in fake.cases(3, False)]
    assert all(
        line["machine"]["cpu"] and line["versions"]["minigan"] and line["seconds"] >= 0 for line in kept
    )
    report = (tmp_path / "fake.md").read_text()
    assert report.startswith("# fake\n\nSquares of numbers.")
    assert "| 2 | 4 |" in report
    assert "3 of 3 runs" in report


def test_fewer_seeds_are_a_part_of_what_is_there(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(tmp_path, "--seeds", 3)
    capsys.readouterr()
    assert main(tmp_path, "--seeds", 1) == 0
    assert "| 1 | 1 |" not in capsys.readouterr().out
    assert fake.made == [0, 1, 2]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_run_again(
    fake: Fake, tmp_path: Path, cut: int, capsys: pytest.CaptureFixture[str]
) -> None:
    main(tmp_path, "--seeds", 3)
    path = tmp_path / "fake.jsonl"
    path.write_bytes(path.read_bytes()[: -cut - 1])
    assert main(tmp_path, "--seeds", 3) == 0
    assert main(tmp_path, "--seeds", 3) == 0
    assert fake.made == [0, 1, 2, 2]
    assert "fake.jsonl: line 3 is damaged: its case is run again" in capsys.readouterr().err
    assert path.read_bytes().count(b"\n") == 4


def test_a_last_line_without_its_end_is_whole(fake: Fake, tmp_path: Path) -> None:
    main(tmp_path, "--seeds", 2)
    path = tmp_path / "fake.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(tmp_path, "--seeds", 3) == 0
    assert fake.made == [0, 1, 2]
    assert [line["case"]["seed"] for line in lines(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[1]",
        "\0\1",
        '{"case": {"seed": 0}, "result": {}, "digest": "0", "seconds": 1}',
        '{"case": 1, "result": {}, "digest": "6b86b273ff34fce1", "seconds": 1}',
    ],
)
def test_lines_that_are_no_results_are_left_where_they_are(fake: Fake, tmp_path: Path, line: str) -> None:
    main(tmp_path, "--seeds", 1)
    path = tmp_path / "fake.jsonl"
    path.write_text(line + "\n" + path.read_text())
    assert main(tmp_path, "--seeds", 2) == 0
    assert fake.made == [0, 1]
    assert path.read_text().splitlines()[0] == line


def test_an_interrupted_study_keeps_what_is_finished(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.failing[1] = KeyboardInterrupt()
    assert main(tmp_path, "other", "--seeds", 3) == 130
    said = capsys.readouterr()
    assert "interrupted" in said.err
    assert "| 0 | 0 |" in said.out
    assert "1 of 3 runs" in (tmp_path / "fake.md").read_text()
    assert not (tmp_path / "other.jsonl").exists()
    assert main(tmp_path, "--seeds", 3) == 0
    assert fake.made == [0, 1, 2]


def test_a_study_that_fails_does_not_end_the_others(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.failing[0] = DataError("mnist: is in none of")
    assert main(tmp_path, "other", "--seeds", 2) == 1
    assert "fake: DataError: mnist: is in none of" in capsys.readouterr().err
    assert (tmp_path / "other.md").exists()
    assert not (tmp_path / "fake.md").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["fakes"], "no study fakes; there are fake, other"),
        (["--seeds", "0"], "--seeds: 0, expected at least 1"),
        (["--quick"], "--quick keeps nothing"),
    ],
)
def test_what_is_refused(
    fake: Fake, tmp_path: Path, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(tmp_path, *arguments)
    assert refused.value.code == 2
    assert text in capsys.readouterr().err
    assert fake.made == []


def test_a_list_runs_nothing(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tmp_path, "--list") == 0
    assert capsys.readouterr().out.splitlines()[0] == f"fake: {Fake.ABOUT}"
    assert fake.made == []


def test_a_digest_is_that_of_the_values() -> None:
    assert runner.digest({"a": 1, "b": [2]}) == runner.digest({"b": [2], "a": 1})
    assert runner.digest({"a": 1}) != runner.digest({"a": 2})


def test_intervals_are_standard_errors() -> None:
    assert interval([2.0, 4.0, 6.0, 8.0], ".3f") == "5.000 ± 1.291"  # √(20/3) / 2
    assert interval([7.0]) == "7.0"
    assert interval([]) == "–"


@pytest.mark.parametrize("module", [figures, runner])
def test_examples(module: ModuleType) -> None:
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0


# The parts of the others have tests of their own, and .ci/run makes all tiny runs.
QUICK = {"parzen"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in STUDIES]
)
def test_every_study_at_a_tiny_size(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "mnist" in getattr(STUDIES[name], "NEEDS", ()) and find("mnist") is None:
        pytest.skip("MNIST is not here")
    assert program.main([name, "--quick"]) == 0
    said = capsys.readouterr()
    cases = STUDIES[name].cases(5, True)
    assert f"{len(cases)}/{len(cases)}" in said.err
    assert said.out.startswith(f"\n# {name}\n\n")
    assert said.out.count("|---") >= 1


@pytest.mark.parametrize("name", STUDIES)
def test_every_case_is_one_run_and_json(name: str) -> None:
    two, three = (STUDIES[name].cases(seeds, False) for seeds in (2, 3))
    assert json.loads(json.dumps(three)) == three
    digests = [runner.digest(case) for case in three]
    assert len(set(digests)) == len(digests)
    assert set(map(runner.digest, two)) <= set(digests)
