"""Heads in float32, their fingerprints, and numbers to rewards."""

import pytest
import torch

from karat.models.heads import Head, check_output, layouts_for, rewards_of
from karat.spec import Head as HeadSpec
from karat.spec import RewardSpec
from karat.types import BadInput


def spec(outputs=1, **options):
    return RewardSpec(kind="bradley_terry", head=HeadSpec(outputs=outputs), **options)


def test_linear_head_is_a_dot_product():
    head = Head(HeadSpec(), 3)
    head.out.weight.data = torch.tensor([[1.0, 2.0, -1.0]])
    assert head(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[2.0]]
    assert head.out.bias is None


@pytest.mark.parametrize(
    ("act", "wanted"), [("tanh", torch.tanh), ("relu", torch.relu), ("gelu", torch.nn.functional.gelu)]
)
def test_mlp_head(act, wanted):
    head = Head(HeadSpec(type="mlp", bias=True, hidden_act=act), 4)
    x = torch.randn(5, 4)
    by_hand = wanted(x @ head.dense.weight.T + head.dense.bias) @ head.out.weight.T + head.out.bias
    assert torch.allclose(head(x), by_hand)


def test_head_stays_in_float32_under_autocast():
    """In bfloat16 a lead of 0.01 at a reward of 10 is a tie."""
    head = Head(HeadSpec(), 1)
    head.out.weight.data = torch.ones(1, 1)
    x = torch.tensor([[10.01], [10.0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        a, b = head(x)[:, 0]
        low = torch.nn.functional.linear(x, head.out.weight)[:, 0]
    assert a.dtype == torch.float32 and a > b
    assert low[0] == low[1], "negative control: a head under autocast"


def test_new_head_has_the_papers_scale():
    torch.manual_seed(0)
    assert Head(HeadSpec(outputs=200), 399).out.weight.std().item() == pytest.approx(0.05, rel=0.02)


def test_fingerprint():
    head = Head(HeadSpec(), 4)
    before = head.sha256()
    assert before == head.sha256()
    head.out.weight.data[0, 0] += 1e-6
    assert head.sha256() != before


def test_numbers_to_rewards():
    numbers = torch.tensor([[1.0, 3.0]])
    assert rewards_of(spec(2, output=1), numbers).tolist() == [3.0]
    assert rewards_of(spec(2, output=(0.5, -1.0)), numbers).tolist() == [-2.5]
    assert rewards_of(spec(1), numbers[:, :1]).tolist() == [1.0], "raw by default"
    assert rewards_of(spec(1, activation="sigmoid"), torch.zeros(1, 1)).tolist() == [0.5]
    softmax = rewards_of(spec(2, activation="softmax", output=1), numbers)
    assert float(softmax) == pytest.approx(0.880797)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (spec(1, activation="softmax"), "sigmoid"),
        (spec(1, output=1), "output=1"),
        (spec(2, output=-1), "output=-1"),
        (spec(2, output=(1.0,)), "weights"),
    ],
)
def test_outputs_that_make_no_reward(made, words):
    with pytest.raises(BadInput, match=words):
        check_output(made)


def test_layouts_need_all_their_tensors_and_no_other():
    llama = {"model.norm.weight", "score.weight"}
    assert [x.pooling for x in layouts_for(frozenset(llama), "model")] == ["last"]
    assert layouts_for(frozenset(llama | {"gate.weight"}), "model") == []
    assert layouts_for(frozenset({"model.norm.weight"}), "model") == []
