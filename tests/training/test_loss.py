"""The loss of a step is the weighted mean over its rows: against a few lines of torch on the Hugging Face model."""

import itertools

import kit
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from transformers import AutoModelForSequenceClassification

from karat.training.loop import Order
from karat.types import Example, Labelled, Message, Pair, Ranking


def example(prompt: str, answer: str) -> Example:
    return Example((Message("user", prompt),), answer)


def pair(number: int, **said) -> Pair:
    return Pair(example(f"{number}?", f"good {'x' * number}"), example(f"{number}?", f"bad {'yz' * number}"), **said)


ITEMS = [
    pair(0),
    pair(1, weight=3.0),
    pair(2, preference=0.8),
    pair(3, preference=0.5, weight=0.5),
    pair(4, margin=1.5),
    Ranking(tuple(example("best?", a) for a in ("a", "bb", "ccc", "dddd")), (2, 1, 3, 3), weight=2.0),
    Ranking((example("two?", "one"), example("two?", "two")), (2, 1)),
]


def by_hand(model, rows, center=0.0, smoothing=0.0):
    """Mean loss over rows and its gradients, one sequence at a time."""
    total, weights = torch.zeros(()), 0.0
    for row in rows:
        r = [model(input_ids=torch.tensor([s.ids])).logits[0, 0] for s in row.sequences]
        total = total + row.item.weight * (_row_loss(row.item, r, smoothing) + center * (2 * sum(r) / len(r)) ** 2)
        weights += row.item.weight
    loss = total / weights
    loss.backward()
    return loss.item(), {_ours(n): p.grad for n, p in model.named_parameters()}


def _row_loss(item, r, smoothing):
    if isinstance(item, Labelled):
        return binary_cross_entropy_with_logits(r[0], torch.tensor(float(item.label)))
    if isinstance(item, Pair):
        p = item.preference * (1 - smoothing) + (1 - item.preference) * smoothing
        lead = r[0] - r[1] - item.margin
        return -p * logsigmoid(lead) - (1 - p) * logsigmoid(-lead)
    loss = torch.zeros(())
    for i, rank in enumerate(item.ranks):
        urn = [r[j] for j, other in enumerate(item.ranks) if other >= rank]
        loss = loss - torch.log(torch.exp(r[i]) / sum(torch.exp(x) for x in urn))
    return loss


def _ours(name: str) -> str:
    return "head.out.weight" if name == "score.weight" else f"engine_forward.backbone.{name.removeprefix('model.')}"


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("accumulate", "batch"), [(1, 7), (1, 8), (2, 8), (4, 8), (7, 7)])
@pytest.mark.parametrize(("center", "smoothing"), [(0.0, 0.0), (0.05, 0.1)])
def test_step_is_the_weighted_mean_over_its_rows(model_folder, tmp_path, accumulate, batch, center, smoothing):
    options = {"center": center, "label_smoothing": smoothing}
    parts, made, rows = kit.prepared(model_folder, ITEMS, options=options)
    assert len(rows) == len(ITEMS)
    model = AutoModelForSequenceClassification.from_pretrained(model_folder)
    wanted, gradients = by_hand(model, rows, center, smoothing)
    (loss,), (found,) = kit.steps(tmp_path, parts, made, rows, batch, accumulate)
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert_same(found, gradients)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_step_does_not_depend_on_the_order_of_rows(model_folder, tmp_path, seed):
    parts, made, rows = kit.prepared(model_folder, ITEMS)
    wanted, gradients = by_hand(AutoModelForSequenceClassification.from_pretrained(model_folder), rows)
    (loss,), (found,) = kit.steps(tmp_path, parts, made, rows[::-1], 8, 4, seed=seed)
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert_same(found, gradients)


def test_mean_of_micro_batch_means_is_another_number(model_folder):
    """Negative control: what a loop that averages its micro-batches would give for these rows."""
    _, _, rows = kit.prepared(model_folder, ITEMS)
    model = AutoModelForSequenceClassification.from_pretrained(model_folder)
    whole, _ = by_hand(model, rows)
    parts = [by_hand(model, rows[i : i + 2])[0] for i in range(0, len(rows), 2)]
    assert abs(sum(parts) / len(parts) - whole) > 1e-2


def test_each_step_of_an_epoch_is_the_mean_of_its_own_rows(model_folder, tmp_path):
    parts, made, rows = kit.prepared(model_folder, ITEMS)
    losses, found = kit.steps(tmp_path, parts, made, rows, 4, 2)
    order = list(Order(len(rows), 1, seed=42))  # Trainer's default seed
    model = AutoModelForSequenceClassification.from_pretrained(model_folder)
    for loss, gradients, chosen in zip(losses, found, (order[:4], order[4:]), strict=True):
        model.zero_grad()
        wanted, by_torch = by_hand(model, [rows[i] for i in chosen])
        assert loss == pytest.approx(wanted, rel=1e-5)
        assert_same(gradients, by_torch)


def test_outcomes_are_learnt_by_cross_entropy(model_folder, tmp_path):
    items = [Labelled(example("1+1?", str(i)), label, weight=1.0 + i) for i, label in enumerate((0, 1, 0.3))]
    parts, made, rows = kit.prepared(model_folder, items, "outcome")
    wanted, gradients = by_hand(AutoModelForSequenceClassification.from_pretrained(model_folder), rows)
    (loss,), (found,) = kit.steps(tmp_path, parts, made, rows, 4, 2)
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert_same(found, gradients)


def test_a_step_whose_rows_weigh_nothing_changes_nothing(model_folder, tmp_path):
    parts, made, rows = kit.prepared(model_folder, [pair(1, weight=0.0), pair(2)])
    losses, found = kit.steps(tmp_path, parts, made, rows, 1)
    assert sorted(losses)[0] == 0.0 and all(torch.isfinite(g).all() for step in found for g in step.values())


def test_order_gives_every_row_once_to_any_number_of_processes():
    for rows, size, processes in itertools.product((1, 7, 8, 9), (1, 2, 4), (1, 2, 3)):
        order = Order(rows, size * processes, seed=3)
        drawn = list(order)
        assert len(drawn) == len(order) and len(drawn) % (size * processes) == 0
        assert sorted(i for i in drawn if i < rows) == list(range(rows))


def test_order_differs_by_epoch_and_repeats_by_seed():
    order, again = Order(50, 1, seed=3), Order(50, 1, seed=3)
    first = list(order)
    order.set_epoch(1)
    assert list(again) == first != list(order)
