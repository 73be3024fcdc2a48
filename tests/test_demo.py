"""The demo in its short form: everything is written, and a model that has learnt nothing is not said to have."""

import json
from pathlib import Path

import pytest

from karat.cli import demo as cli_demo
from karat.evaluation.base import evaluate
from karat.training import demo
from karat.types import BadInput, Example, Labelled, Message, Pair, Reward


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


@pytest.mark.parametrize(("last", "falls"), [(0.7, True), (0.8, False), (0.9, False)])
def test_a_curve_that_falls_is_said_to_fall(last, falls):
    assert demo.falls([{"n": 1, "reward": 0.5}, {"n": 8, "reward": 0.8}, {"n": 16, "reward": last}]) is falls


def test_the_console_shows_the_outcome_headline_and_explains_a_fall(monkeypatch, capsys):
    items = [
        Labelled(Example((Message("user", f"{i}?"),), f"{i} {'x' * k}"), float(k in (7, i % 16)))
        for i in range(9)
        for k in range(16)
    ]
    best_of = evaluate(lambda examples: [Reward(float(len(e.response))) for e in examples], items)
    pairs = evaluate(lambda examples: [Reward(1.0)] * len(examples), [Pair(items[0].example, items[1].example)])
    monkeypatch.setattr(demo, "run_demo", lambda *_: demo.Demo(pairs, best_of, 1.0))
    for fell in (True, False):
        monkeypatch.setattr(demo, "falls", lambda _, fell=fell: fell)
        cli_demo.command(Path("demo"), 0, False)
        out = capsys.readouterr().out
        assert "right from wrong answers: AUC 0." in out
        assert ("docs/decisions/0003" in out) is fell


def test_a_model_that_is_no_demos_is_left_alone(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("x")
    with pytest.raises(BadInput, match="no demo's"):
        demo.run_demo(tmp_path)
    assert (tmp_path / "model" / "mine").is_file()
