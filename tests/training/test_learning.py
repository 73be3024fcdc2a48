"""Something is learnt where there is something to learn, and nothing where labels say nothing."""

import random

import kit
import pytest

from karat import arithmetic

SCRATCH = "scratch:hidden=32,layers=2,heads=2,vocab=300,positions=256"
SETTINGS = {"learning_rate": 5e-3, "batch_size": 32, "epochs": 3.0, "eval": "0.2"}


@pytest.fixture(scope="module")
def rows():
    """Pairs of which the better answer is the one with an even number: learnt in a moment."""
    draw = random.Random(0)
    return [
        {
            "prompt": f"{draw.randrange(100)}?",
            "chosen": f"{2 * draw.randrange(50)}",
            "rejected": f"{2 * draw.randrange(50) + 1}",
        }
        for _ in range(320)
    ]


def test_real_labels_are_learnt(tmp_path, rows):
    trained = kit.train(tmp_path, SCRATCH, kit.write(tmp_path / "d.jsonl", rows), **SETTINGS)
    losses = kit.losses(trained)
    assert sum(losses[-4:]) / 4 < 0.5 * losses[0]
    assert trained.result.figure("accuracy").value > 0.9


@pytest.mark.full
def test_shuffled_labels_land_at_chance(tmp_path, rows):
    draw = random.Random(1)
    shuffled = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if draw.random() < 0.5 else row for row in rows
    ]
    trained = kit.train(tmp_path, SCRATCH, kit.write(tmp_path / "d.jsonl", shuffled), **SETTINGS)
    accuracy = trained.result.figure("accuracy")
    assert accuracy.low < 0.5 < accuracy.high


def test_arithmetic_pairs_decrease_the_loss(tmp_path):
    data = kit.write(tmp_path / "d.jsonl", arithmetic.pair_rows(64))
    trained = kit.train(tmp_path, SCRATCH, data, learning_rate=5e-3, batch_size=32, epochs=8.0)
    losses = kit.losses(trained)
    assert losses[-1] < 0.66 < losses[0]
