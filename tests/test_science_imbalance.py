"""The study of rare classes at a tiny size: what it measures, and its tables."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import minigan as mg

sys.path.append(str(Path(__file__).parents[1]))  # the package `benchmarks` is not installed

from benchmarks.science import imbalance as study

IMAGES, DIGITS = mg.data.digits()


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for X-rays: is it another digit than 0? And no MNIST."""
    labels = (DIGITS > 0).astype(np.int64)
    stand_in = study.Images(IMAGES[:1000], labels[:1000], IMAGES[1000:], labels[1000:])
    monkeypatch.setattr(study, "images", {"pneumonia": stand_in, "mnist": None}.get)
    study.classifier.cache_clear()


def test_cases_differ_and_leave_out_data_that_is_not_there() -> None:
    found = study.cases(seeds=2, quick=False)
    texts = [json.dumps(case, sort_keys=True) for case in found]
    assert len(set(texts)) == len(texts) == 2 * (3 * 3 + 4)
    assert {case["study"] for case in found} == {"ring", "pneumonia"}
    with pytest.raises(mg.DataError, match="mnist: its files are in none of"):
        study.run({"study": "mnist", "remedy": "plain", "seed": 0}, quick=True)


@pytest.mark.slow
def test_rows_are_plain_finite_numbers_and_tables_have_them() -> None:
    wanted = (("ring", "balanced, weights"), ("pneumonia", "plain"), ("pneumonia", "conditional, balanced"))
    chosen = [case for case in study.cases(1, quick=True) if (case["study"], case["remedy"]) in wanted]
    rows = [case | study.run(case, quick=True) for case in chosen]
    assert rows == json.loads(json.dumps(rows, allow_nan=False))
    ring, plain, conditional = rows
    assert ring["least_ratio"] <= ring["ratio_7"] <= ring["largest_ratio"]
    assert sum(ring[f"ratio_{i}"] * w for i, w in enumerate(mg.data.long_tail(8, 100))) == pytest.approx(1)
    shares = [plain[f"data_share_{c}"] for c in (0, 1)]
    np.testing.assert_allclose(shares, np.bincount(DIGITS[:1000] > 0) / 1000)
    assert sum(plain[f"ratio_{c}"] * share for c, share in enumerate(shares)) == pytest.approx(1)
    assert "hit_0" not in plain and "ratio_0" not in conditional
    assert all(0 <= conditional[f"{name}_1"] <= 1 for name in ("hit", "precision", "recall", "coverage"))
    assert conditional["accuracy_0"] > 0.5 and conditional["accuracy_1"] > 0.5
    text = study.table(rows)
    assert f"| 100 | balanced, weights | 1 | {ring['high_quality']:.1%} |" in text
    assert f"| plain | share ratio | {plain['ratio_0']:.2f} | {plain['ratio_1']:.2f} |" in text
    assert len({line.count("|") for line in text.split("\n\n")[0].splitlines()}) == 1


def test_seeds_are_one_row_with_their_error() -> None:
    (case,) = (case for case in study.cases(1, quick=True) if case["remedy"] == "plain" and "rho" in case)
    row = study.run(case, quick=True)
    text = study.table([row | case, row | case | {"seed": 1, "ratio_7": row["ratio_7"] + 1}])
    assert "| 2 | " in text and f"{row['ratio_7'] + 0.5:.2f} ± 0.50" in text
