"""A generator that collapses is found while it is trained, and looking for it changes nothing."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from undrawn import leave_pictures_empty

import minigan as mg
from minigan import cli, report, state
from minigan.checkpoint import digest
from minigan.folder import read_lines
from minigan.monitor import LEAST, NUMBERS, REACHED, SAMPLES, Episodes, Monitor
from minigan.ops import Stream
from minigan.sampling import Sampler

sys.path.append(str(Path(__file__).parents[1]))  # the package `benchmarks` is not installed

from benchmarks.science import monitor as study

ORDER = np.random.default_rng(0).permutation(1797)  # the digits stand in the order of their writers
DIGITS, LABELS = (x[ORDER] for x in mg.data.digits())
POINTS = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
TIMES = ("seconds", "steps_per_second", "images_per_second")
LOOK = ("rank", "spread", "coverage", "precision", "d_gap")
GOOD = {"rank": 0.9, "spread": 1.0, "coverage": 0.9, "precision": 0.8, "d_gap": 0.1}
BAD = GOOD | {"spread": 0.01}


@pytest.fixture(autouse=True)
def empty_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_pictures_empty(monkeypatch.setattr)


class Given(Sampler):
    """Draws what it is told to."""

    def __init__(self, made: np.ndarray, shape: tuple[int, ...]) -> None:
        super().__init__(
            mg.models.mlp_generator(2, (4,), shape, output=None if len(shape) == 1 else "sigmoid")
        )
        self.made = made

    def generate(self, latents: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        return self.made[: len(latents)]


def looked(real: np.ndarray, made: np.ndarray) -> dict[str, float]:
    return Monitor(500).look(Given(made, real.shape[1:]), real, None, 0)


def images(**settings: Any) -> mg.GAN:
    generator = mg.models.mlp_generator(3, (5,), (8, 8, 1))
    return mg.GAN(generator, mg.models.mlp_discriminator((8, 8, 1), (5,)), **settings)


def conditional() -> mg.GAN:
    generator = mg.models.mlp_generator(3, (5,), (8, 8, 1), classes=10)
    return mg.GAN(generator, mg.models.mlp_discriminator((8, 8, 1), (5,), classes=10))


def points() -> mg.GAN:
    generator = mg.models.mlp_generator(3, (5,), (2,), output=None)
    return mg.GAN(generator, mg.models.mlp_discriminator((2,), (5,)))


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: x for name, x in record.items() if name not in TIMES} for record in records]


# The numbers


@pytest.mark.parametrize("real", [DIGITS[:512], np.random.default_rng(0).normal(size=(512, 2))])
def test_samples_of_the_data_have_all_of_it(real: np.ndarray) -> None:
    found = looked(real[:256], real[256:])
    assert found["rank"] == pytest.approx(1, abs=0.1) and found["spread"] == pytest.approx(1, abs=0.15)
    assert found["coverage"] == pytest.approx(REACHED, abs=0.05)
    assert looked(real, real) == {"rank": 1, "spread": 1, "coverage": 1, "precision": 1}


def test_each_kind_of_collapse_shows_in_its_number() -> None:
    real, made = DIGITS[:256], DIGITS[256:512]
    whole = looked(real, made)
    shrunk = looked(real, made.mean(0) + 0.01 * (made - made.mean(0)))
    assert shrunk["rank"] == pytest.approx(whole["rank"]) and shrunk["coverage"] < 0.2
    assert shrunk["spread"] == pytest.approx(1e-4 * whole["spread"], rel=1e-3)
    line = looked(real, made[:1] + np.linspace(0, 1, 256)[:, None, None, None] * (made[1:2] - made[:1]))
    assert line["rank"] < 0.1 and line["coverage"] < 0.2
    one = looked(real, np.repeat(made[:1], 256, 0))
    assert one["rank"] == one["spread"] == 0 and one["coverage"] < 0.1


@pytest.mark.parametrize(
    ("mixture", "modes"),
    [(mg.data.ring(8), 1), (mg.data.ring(8), 8), (mg.data.grid(5), 3), (mg.data.grid(5), 25)],
)
def test_lost_modes_are_a_collapse_though_the_samples_are_good(mixture: mg.data.Mixture, modes: int) -> None:
    real = mixture.sample(256, Stream(0, "real"))[0]
    many, which = mixture.sample(20_000, Stream(0, "made"))
    kept = many[np.isin(which, Stream(0, "modes").permutation(len(mixture.means))[:modes])]
    found = looked(real, kept) | {"d_gap": 0.0}
    assert found["precision"] > 0.9
    watch = Episodes()
    told = [watch.see({"step": step} | found) for step in (500, 1000)]
    assert bool(told[1]) is (modes < 8)


@pytest.mark.parametrize(
    ("real", "made"),
    [
        (DIGITS[: LEAST - 1], DIGITS),
        (np.repeat(DIGITS[:1], 64, 0), DIGITS),
        (DIGITS[:64], np.full_like(DIGITS, np.nan)),
        (POINTS, np.where(np.arange(2) == 1, np.inf, POINTS)),
    ],
    ids=["few", "all the same", "NaN", "infinite"],
)
def test_nothing_is_said_where_nothing_can_be(real: np.ndarray, made: np.ndarray) -> None:
    assert looked(real, made) == {}


def test_large_images_cost_no_more_than_some_of_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    from minigan import monitor

    rank = monitor.effective_rank
    monkeypatch.setattr(monitor, "effective_rank", lambda x: seen.append(x.shape) or rank(x))
    real = np.random.default_rng(0).random((300, 60, 60, 3), np.float32)
    found = looked(real, real[::-1])
    assert seen == [(SAMPLES, NUMBERS)] * 2
    assert found["rank"] == pytest.approx(1, abs=0.02) and found["spread"] == pytest.approx(1, abs=0.02)


def test_a_look_takes_new_samples_each_step_and_the_same_in_each_run() -> None:
    sampler, real = images().sampler(), DIGITS[:256]
    first, again, later = (Monitor(500, seed=3).look(sampler, real, None, step) for step in (500, 500, 1000))
    assert first == again != later != Monitor(500, seed=4).look(sampler, real, None, 1000)


# Episodes


def told(numbers: list[dict[str, float]]) -> list[int]:
    """At which looks a collapse is told; between these are records without one."""
    episodes, steps = Episodes(), []
    for i, look in enumerate(numbers):
        steps += [i for kind, _ in episodes.see({"step": 20 * i} | look) if kind == "collapse"]
        assert episodes.see({"step": 20 * i + 10, "d_real": 0.5, "d_fake": 0.5}) == []
    return steps


def test_an_episode_is_told_once() -> None:
    assert told([GOOD] * 9) == []
    assert told([BAD] * 9) == [1]
    assert told([GOOD, BAD, GOOD, BAD, GOOD]) == []
    assert told([BAD, BAD, GOOD, BAD, GOOD, BAD, BAD]) == [1]
    assert told([BAD, BAD, GOOD, GOOD, BAD, BAD]) == [1, 5]


def test_an_episode_that_may_be_over_ends_no_run() -> None:
    episodes, states = Episodes(), []
    for look in (BAD, BAD, GOOD, BAD, GOOD, GOOD):
        episodes.see({"step": 10} | look)
        states.append((episodes.lasts, episodes.found))
    yes, perhaps, no = (True, True), (True, False), (False, False)
    assert states == [no, yes, perhaps, yes, perhaps, no]


@pytest.mark.parametrize(
    ("change", "collapsed"),
    [
        ({"rank": 0.09}, True),
        ({"spread": 0.09}, True),
        ({"rank": 0.3, "spread": 0.3}, False),
        ({"coverage": 0.19, "precision": 0.9}, True),  # good samples, of few kinds
        ({"coverage": 0.19, "precision": 0.7}, False),  # bad ones of all kinds
        ({"coverage": 0.19, "precision": 0.0, "rank": 0.4}, True),
        ({"coverage": 0.19, "precision": 0.0, "spread": 0.4}, True),
    ],
)
def test_what_a_collapse_is(change: dict[str, float], collapsed: bool) -> None:
    assert told([GOOD | change] * 3) == ([1] if collapsed else [])


@pytest.mark.parametrize("value", [None, "x", float("nan"), float("inf"), 10**400, True, [0.0]])
@pytest.mark.parametrize("name", LOOK)
def test_damaged_records_are_passed_over(name: str, value: Any) -> None:
    assert told([BAD | {name: value}] * 5) == []
    assert told([BAD, BAD | {name: value}, BAD]) == [2]


# Runs


@pytest.mark.parametrize("make", [images, conditional, points])
def test_looking_changes_no_bit_of_the_training(make: Any) -> None:
    found = []
    for every in (0, 20) if make is conditional else (0, 20, 500):
        gan = make()
        data = {"data": POINTS} if make is points else {"data": DIGITS[:300]}
        labels = {"labels": LABELS[:300]} if make is conditional else {}
        run = gan.fit(**data, **labels, steps=50, batch=16, monitor_every=every)
        looks = [record["step"] for record in run.records if "coverage" in record]
        assert looks == {0: [], 20: [20, 40], 500: []}[every]
        assert all(set(LOOK) <= set(record) for record in run.records if record["step"] in looks)
        json.dumps(run.records, allow_nan=False)
        plain = [{k: v for k, v in record.items() if k not in LOOK} for record in without_times(run.records)]
        found.append((digest(gan.game.state()), plain))
    assert all(each == found[0] for each in found)


def test_the_gap_is_the_mean_since_the_last_look() -> None:
    records = images().fit(DIGITS, steps=60, batch=16, monitor_every=30).records
    apart = [record["d_real"] - record["d_fake"] for record in records]
    assert [records[i]["d_gap"] for i in (2, 5)] == pytest.approx([np.mean(apart[:3]), np.mean(apart[3:])])


def test_looks_need_not_fall_on_a_record() -> None:
    records = images().fit(DIGITS, steps=70, batch=16, monitor_every=25).records
    assert [record["step"] for record in records if "rank" in record] == [30, 50]


def frozen(**settings: Any) -> mg.GAN:
    """A generator that stays as it is at first, when all samples are much the same."""
    return images(optimizer=mg.optim.SGD(1e-9), **settings)


def fit(gan: mg.GAN, **settings: Any) -> Any:
    plan = {"steps": 60, "batch": 16, "save_every": 20, "sample_every": 60, "compile": False}
    return gan.fit(DIGITS[:300], **{**plan, "monitor_every": 10, **settings})


def test_a_collapse_is_told_with_its_numbers() -> None:
    run = fit(frozen())
    assert [(event["step"], event["event"]) for event in run.events] == [(20, "collapse")]
    text = run.events[0]["message"]
    spread = run.records[1]["spread"]
    assert f"spread {spread:.2g} of the data's" in text and "reach 0.97" in text and "penalty r1" in text


def test_a_collapse_may_end_the_run(tmp_path: Path) -> None:
    gan = frozen()
    with pytest.raises(mg.CollapseError, match=r"stopped after step 20: .*; nothing of it is saved"):
        fit(gan, on_collapse="stop")
    assert gan.game.steps == 20
    out = tmp_path / "run"
    for step in (20, 30):  # at the next look again, while it lasts
        with pytest.raises(
            mg.CollapseError, match=rf"step {step}: .*the checkpoint .*{step}.safetensors goes on"
        ):
            fit(frozen(), on_collapse="stop", out=out, resume=True)
    events = [event["event"] for event in read_lines(str(out / "events.jsonl"))]
    assert events == ["collapse", "stopped", "resumed", "stopped"]
    gan = frozen()
    run = fit(gan, out=out, resume=True)
    assert gan.game.steps == 60 and [event["event"] for event in run.events] == ["resumed"]
    whole = frozen()
    fit(whole)
    assert digest(gan.game.state()) == digest(whole.game.state())


def test_a_run_that_is_complete_is_not_stopped() -> None:
    run = fit(frozen(), steps=20, on_collapse="stop")
    assert [event["event"] for event in run.events] == ["collapse"]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    real, left = mg.Game._remember, [step]

    def acting(game: mg.Game) -> None:
        real(game)
        if game.steps in left:
            left.clear()
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(mg.Game, "_remember", acting)


@pytest.mark.parametrize("step", [9, 19, 24])
def test_a_run_that_goes_on_finds_what_an_uninterrupted_one_does(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for out, stops in ((tmp_path / "whole", False), (tmp_path / "parts", True)):
        gan = frozen(penalty=mg.penalties.r1(0.1))
        if stops:
            interrupt_at(monkeypatch, step)
            with pytest.raises(SystemExit):
                fit(gan, out=out)
            gan = frozen(penalty=mg.penalties.r1(0.1))
        fit(gan, out=out, resume=True)
        events = [e for e in read_lines(str(out / "events.jsonl")) if e["event"] == "collapse"]
        records = without_times(read_lines(str(out / "metrics.jsonl")))
        found.append((digest(gan.game.state()), events, records))
    assert found[0] == found[1] and len(found[0][1]) == 1


def test_a_rollback_forgets_what_was_found_after(monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = mg.Game._remember, [33]

    def failing(game: mg.Game) -> None:
        real(game)
        if game.steps in left:
            left.clear()
            raise mg.NonFiniteError("generator: planted")

    monkeypatch.setattr(mg.Game, "_remember", failing)
    run = fit(frozen(), on_nonfinite="rollback", monitor_every=15, save_every=20)
    # The looks are after the steps 20, 30 and 50, and that at 30, where it was told, is made again.
    assert [(event["step"], event["event"]) for event in run.events] == [
        (30, "collapse"),
        (20, "rollback"),
        (30, "collapse"),
    ]


@pytest.mark.parametrize("value", [-1, 0.5, True, "x"])
def test_settings_have_to_exist(value: Any, tmp_path: Path) -> None:
    with pytest.raises(mg.ConfigError, match=r"monitor_every is .*: expected an integer from 1, or 0"):
        fit(images(), monitor_every=value, out=tmp_path / "run")
    with pytest.raises(mg.ConfigError, match="on_collapse 'cry' does not exist; there are warn, stop"):
        fit(images(), on_collapse="cry", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    options = ["--steps", "40", "--lr", "1e-9", "--monitor-every", "10", "--on-collapse", "stop"]
    assert cli.main(["train", "digits", *options, "--out", str(out)]) == 6
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 2 and all("the generator has collapsed: rank" in line for line in printed)
    assert printed[1].startswith("minigan: stopped after step 20") and "goes on from there" in printed[1]
    found = state.newest(out, print)
    assert found is not None and found.about["step"] == 20
    assert found.about["config"]["training"]["monitor_every"] == 10
    assert cli.main(["train", "--resume", str(out), "--on-collapse", "warn"]) == 0
    assert cli.main(["train", "--on-collapse", "cry"]) == 2
    capsys.readouterr()
    assert cli.main(["inspect", str(out)]) == 0
    assert "\ncoverage          1\n" in capsys.readouterr().out


# Curves


def test_curves_show_the_coverage_where_there_is_one() -> None:
    record = {"step": 1, "d_loss": 1.0, "g_loss": 1.0, "d_real": 0.5, "d_fake": 0.5}
    plain = report.text_curves([record | {"step": i} for i in range(1, 9)])
    looks = [record | {"step": i} | ({"coverage": i / 8} if i % 4 == 0 else {}) for i in range(1, 9)]
    lines = report.text_curves(looks)
    assert lines[:12] == plain[:12] and lines[15:] == plain[12:]
    assert [line.split() for line in lines[12:15]] == [["coverage", "1", "█"], ["▄█"], ["0", "██"]]


# The study of it


@pytest.mark.slow
@pytest.mark.parametrize("name", study.TOLD)
def test_the_study_finds_what_it_expects(name: str) -> None:
    found = study.run({"run": name, "seed": 0}, quick=True)
    assert bool(found["told"]) is study.TOLD[name]


def test_the_table_counts() -> None:
    least = {"least_rank": 0.5, "least_spread": 0.25, "least_coverage": 0.125}
    rows = [
        {"run": "minimax", "seed": seed, "told": seed % 2, "first": 1000 if seed % 2 else None, **least}
        for seed in range(20)
    ]
    lines = study.table(
        [*rows, {"run": "cost", "preset": "ring", "step_ms": 3.0, "look_ms": 15.0, "share": 0.0099}]
    )
    assert "| minimax | 10 of 20 | 0.30 to 0.70 | 20 of 20 | 1,000 to 1,000 | 0.50 to 0.50 |" in lines
    assert "| ring | 3.00 | 15.0 | 0.99 % | below 2 % |" in lines


def test_the_cases_are_those_of_each_seed() -> None:
    seeds = [case["seed"] for case in study.cases(3, quick=False) if case["run"] == "planted"]
    assert seeds == [0, 1, 2]
    assert json.loads(json.dumps(study.cases(3, quick=True))) == study.cases(3, quick=True)
