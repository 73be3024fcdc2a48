"""The demo in its short form: everything is written, and a model that has learnt nothing is not said to have."""

import json

import pytest

from karat.training import demo
from karat.types import BadInput


def test_a_short_demo_leaves_report_and_summary(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "HELD_OUT", 40)
    monkeypatch.setattr(demo, "PROBLEMS", 6)
    found = demo.run_demo(tmp_path / "demo", pairs=64)
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["accuracy_ci"][0] <= summary["accuracy"] <= summary["accuracy_ci"][1]
    assert summary["null_accuracy"] == max(summary["nulls"].values()) and "n-gram" in summary["nulls"]
    rows = summary["best_of_n"]
    assert [row["n"] for row in rows] == list(range(1, 17))
    assert all(row["oracle"] >= max(row["reward"], row["majority_vote"]) - 1e-9 for row in rows)
    assert abs(rows[0]["reward"] - rows[0]["random"]) < 1e-9  # of one answer there is no choice
    assert found.pairs.n == 40
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "best-of-16" in page


def test_a_model_that_is_no_demos_is_left_alone(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("x")
    with pytest.raises(BadInput, match="no demo's"):
        demo.run_demo(tmp_path)
    assert (tmp_path / "model" / "mine").is_file()
