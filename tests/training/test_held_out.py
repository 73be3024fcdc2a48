"""Held-out figures are of rows, not of batches: 9 pairs in batches of 8 with one mistake are 8/9."""

import kit
import pytest
import torch

import karat
from karat.engine.base import States
from karat.rewards._local import LocalModel
from karat.training import run


@pytest.fixture
def nine(tmp_path, monkeypatch):
    """Nine pairs, and a model that reads an answer's first digit and so gets the last one wrong."""
    rows = [{"prompt": f"{i}?", "chosen": "9 right", "rejected": "1 wrong"} for i in range(8)]
    rows.append({"prompt": "8?", "chosen": "1 right", "rejected": "9 wrong"})
    monkeypatch.setattr(LocalModel, "numbers", _digits)
    monkeypatch.setattr(run.checkpoint, "save", lambda *_: None)
    return kit.write(tmp_path / "nine.jsonl", rows)


def _digits(model, sequences):
    return torch.tensor([[_digit(model, s)] for s in sequences]), [States(last=torch.zeros(1, 1)) for _ in sequences]


def _digit(model, sequence) -> float:
    first = model.parts.tokenizer.decode(list(sequence.ids)).split("assistant\n")[1][0]
    return float(first) if first.isdigit() else 0.0


def test_nine_pairs_in_batches_of_eight(model_folder, tmp_path, nine):
    trained = kit.train(
        tmp_path, model_folder, kit.pairs(tmp_path, 8), eval=nine, trainer={"per_device_eval_batch_size": 8}
    )
    in_loop = [line["eval_accuracy"] for line in trained.history if "eval_accuracy" in line]
    assert in_loop == [pytest.approx(8 / 9)]
    assert trained.result.figure("accuracy").value == pytest.approx(8 / 9)


def test_mean_of_batch_accuracies_would_be_one_half():
    """Negative control: what TRL's RewardTrainer prints for these nine pairs."""
    right = [1.0] * 8 + [0.0]
    batches = [right[:8], right[8:]]
    assert sum(sum(b) / len(b) for b in batches) / len(batches) == 0.5


def test_held_out_loss_is_the_weighted_mean_over_rows(model_folder, tmp_path):
    rows = [{"prompt": "q", "chosen": f"good {i}", "rejected": f"bad {i}", "weight": 1.0 + i} for i in range(5)]
    trained = kit.train(tmp_path, model_folder, kit.pairs(tmp_path, 8), eval=kit.write(tmp_path / "e.jsonl", rows))
    model = karat.load(str(trained.folder))
    leads = [[r.value for r in model.score(row["prompt"], [row["chosen"], row["rejected"]])] for row in rows]
    losses = -torch.nn.functional.logsigmoid(torch.tensor([good - bad for good, bad in leads]))
    weights = torch.tensor([row["weight"] for row in rows])
    last = [line["eval_loss"] for line in trained.history if "eval_loss" in line][-1]
    assert last == pytest.approx(float((weights * losses).sum() / weights.sum()), rel=1e-4)


def test_held_out_share_never_shares_prompts_with_training(model_folder, tmp_path):
    rows = [{"prompt": f"{i % 6}?", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(24)]
    made = kit.config(tmp_path, model_folder, (kit.write(tmp_path / "a.jsonl", rows) + "@2.5",), eval=0.3)
    (train, _), (held_out, _) = run._data.read_both(made)
    sides = [{item.chosen.prompt for item in items} for items in (train, held_out)]
    assert len(sides[0]) == 4 and len(sides[1]) == 2 and not sides[0] & sides[1]
    assert len(held_out) == 8 == len(set(held_out))  # the weight is for training
    assert len(train) == 40  # 2.5 times 16


def test_pairs_and_rankings_in_one_batch_are_learnt_and_judged(model_folder, tmp_path):
    rankings = [{"prompt": f"r{i}", "responses": ["a", "bb", "ccc"], "ranks": [1, 2, 3]} for i in range(8)]
    files = (kit.pairs(tmp_path, 8), kit.write(tmp_path / "k.jsonl", rankings))
    trained = kit.train(tmp_path, model_folder, files, eval="0.25")
    assert trained.result.name == "kwise"
    assert trained.result.n == 4
