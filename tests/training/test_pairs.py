"""Pairs of scored samples: which are made, what is counted, and that TRL's own trainer loads them."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toys
from karat.formats import base as formats
from karat.search._scored import Sampled
from karat.training import pairs
from karat.training.pairs import Made, Rule, pair
from karat.types import BadInput, Example, Message

TRL = Path(__file__).parent.parent.parent / ".peers" / "trl" / "bin" / "python"
PROMPT = (Message("user", "1+1?"),)


def samples(*rewards, texts=None):
    texts = texts or [f"answer {i}" for i in range(len(rewards))]
    return [Sampled(Example(PROMPT, text), reward) for text, reward in zip(texts, rewards, strict=True)]


def written(tmp_path, rows, name="scored.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), min_size=2, max_size=6), st.integers(0, 3))
def test_the_pair_is_the_widest_that_the_rule_allows(rows, margin):
    """Against every pair of answers, with lengths and without."""
    group = samples(*(float(r) for r, _ in rows), texts=[chr(97 + i) * size for i, (_, size) in enumerate(rows)])
    for ratio in (None, 1.5):
        fits = [
            a.reward - b.reward
            for a in group
            for b in group
            if a.reward > b.reward
            and a.reward - b.reward >= margin
            and (ratio is None or max(lengths(a, b)) <= ratio * min(lengths(a, b)))
        ]
        found = pair(group, Rule(margin, ratio))
        assert isinstance(found, Made) == bool(fits)
        if isinstance(found, Made):
            assert found.chosen.reward - found.rejected.reward == max(fits)


def lengths(*found):
    return [len(one.example.response) for one in found]


def test_why_there_is_no_pair():
    assert pair(samples(1.0), Rule()) == pairs.FEW
    assert pair(samples(1.0, 2.0, texts=["same", "same"]), Rule()) == pairs.FEW
    assert pair(samples(1.0, None), Rule()) == pairs.FEW
    assert pair(samples(1.0, 1.0, 1.0), Rule()) == pairs.TIED
    assert pair(samples(1.0, 1.5), Rule(margin=1)) == pairs.BELOW
    assert pair(samples(1.0, 2.0, texts=["a", "b" * 9]), Rule(length_ratio=2)) == pairs.UNLIKE
    assert pair(samples(1.0, 2.0, texts=["", "b"]), Rule(length_ratio=2)) == pairs.UNLIKE


def test_ties_go_to_the_first_and_are_told():
    found = pair(samples(0.0, 2.0, 2.0, 1.0), Rule())
    assert (found.chosen.example.response, found.rejected.example.response, found.tied) == (
        "answer 1",
        "answer 0",
        True,
    )
    assert not pair(samples(0.0, 1.0, 1.0, 2.0), Rule()).tied


def test_an_answer_under_a_floor_is_never_chosen():
    best, middle, worst = samples(3.0, 2.0, 1.0)
    found = pair([replace(best, floored=True), middle, worst], Rule())
    assert (found.chosen, found.rejected) == (middle, worst)
    found = pair([best, replace(middle, floored=True), worst], Rule())
    assert (found.chosen.reward, found.rejected.reward) == (3.0, 2.0)  # under the floor is worse than low
    assert pair([replace(one, floored=True) for one in (best, worst)], Rule()) == pairs.FLOORED
    assert pair([replace(best, floored=True), worst], Rule()) == pairs.FLOORED


@pytest.mark.parametrize("key", ["flags", "candidates"])
def test_floors_are_read_from_files(tmp_path, key):
    rows = [{"response": f"a{i}", "reward": i, "flags": ["below_safety"] if i == 2 else []} for i in range(3)]
    rows = [{"prompt": "q", "candidates": rows}] if key == "candidates" else [{"prompt": "q", **row} for row in rows]
    pairs.make_pairs(str(written(tmp_path, rows)), tmp_path / "p.jsonl", Rule())
    assert json.loads((tmp_path / "p.jsonl").read_text())["score_chosen"] == 1


@pytest.mark.parametrize("rule", [{"margin": -1}, {"margin": float("nan")}, {"length_ratio": 0.5}])
def test_rules_that_are_none(rule):
    with pytest.raises(BadInput):
        Rule(**rule)


def rows_of(layout):
    """Two prompts, one with an unscored answer, in each of the layouts."""
    rewards = {"1+1?": [("2", 1.0), ("3", -1.0), ("two", None)], "2+2?": [("4", 0.5), ("5", 0.5), ("6", 0.5)]}
    if layout == "rows":
        return [
            {"prompt": p, "response": text, "reward": value, "unscored": None if value is not None else "too long"}
            for p, own in rewards.items()
            for text, value in own
        ]
    if layout == "lists":
        return [
            {"prompt": p, "responses": [t for t, _ in own], "scores": [v for _, v in own]} for p, own in rewards.items()
        ]
    return [
        {"prompt": p, "candidates": [{"response": t, "reward": v, "correct": None} for t, v in own]}
        for p, own in rewards.items()
    ]


@pytest.mark.parametrize("layout", ["rows", "lists", "candidates"])
def test_the_verb_counts_everything(tmp_path, karat, layout):
    data, output = written(tmp_path, rows_of(layout)), tmp_path / "pairs.parquet"
    code, out, err = karat("pairs", data, "--output", output, "--json")
    found = json.loads(out)
    assert code == 0 and found["pairs"] == 1 and found["prompts"] == 2 and found["samples"] == 6
    assert found["left"] == {pairs.TIED: 1} and sum(found["unscored"].values()) == 1
    assert f"left out 1: {pairs.TIED}" in err and "unscored 1" in err
    (made,) = pq.read_table(output).to_pylist()
    answers = {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "2"), ("rejected", "3"))}
    scores = {"score_chosen": 1.0, "score_rejected": -1.0}
    assert made == {"prompt": [{"role": "user", "content": "1+1?"}], **answers, **scores}
    (item,) = formats.load(output).items  # karat's own trainers read it as well
    assert (item.chosen.response, item.rejected.response, item.preference) == ("2", "3", 1.0)


def test_what_cannot_be_used_is_said(tmp_path, karat):
    plain = written(tmp_path, [{"prompt": "1+1?", "response": "2"}], "plain.jsonl")
    same = written(tmp_path, [{"prompt": "1+1?", "response": t, "reward": 1.0} for t in "ab"], "same.jsonl")
    odd = written(tmp_path, [{"prompt": "1+1?", "responses": ["a", "b"], "rewards": [1.0]}], "odd.jsonl")
    for data, said in ((plain, "score the answers first"), (same, "the same reward"), (odd, "they have to match")):
        code, _, err = karat("pairs", data, "--output", tmp_path / "p.parquet")
        assert code == 1 and said in err and not (tmp_path / "p.parquet").exists()
    code, _, err = karat("pairs", same, "--output", same)
    assert code == 1 and "already there" in err


DPO = """
import sys
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer
data = load_dataset("parquet", data_files=sys.argv[1], split="train")
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[2]), AutoTokenizer.from_pretrained(sys.argv[2])
usual = dict(max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, bf16=False)
made = DPOConfig(output_dir=sys.argv[3], **usual)
trainer = DPOTrainer(model, args=made, train_dataset=data, processing_class=tokenizer)
print("loss", trainer.train().training_loss, "rows", len(trainer.train_dataset))
"""


@pytest.mark.full
def test_trl_trains_on_them_as_they_are(tmp_path, karat):
    if not TRL.exists():
        pytest.skip("TRL is not here: make peers")
    rows = [{"prompt": f"{i}+1?", "response": f"{i + j}", "reward": float(-j)} for i in range(4) for j in range(3)]
    code, _, err = karat("pairs", written(tmp_path, rows), "--output", tmp_path / "pairs.parquet")
    assert code == 0, err
    model = toys.save(tmp_path / "policy", toys.causal_model())
    done = subprocess.run(
        [TRL, "-c", DPO, tmp_path / "pairs.parquet", model, tmp_path / "out"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rows 4" in done.stdout and "loss 0." in done.stdout
