"""What every kind keeps, found by listing the folder: a new kind is held to this without a line here."""

import random

import pytest
import torch

import karat
import toys
from karat.engine.padded import PaddedEngine, PaddedForward
from karat.models import checkpoint
from karat.models.heads import rewards_of
from karat.rewards._local import LocalModel, golden_values
from karat.rewards.base import defaults, kind, kinds, option_names
from karat.spec import RewardSpec
from karat.types import BadInput, Example, Labelled, Message, Pair, Ranking, Reward, Stepped

KINDS = sorted(kinds())
REWARDS = [name for name in KINDS if kind(name).items]  # the others are not trained here
ANSWERS = ["4", "It is four.", "", "five" * 9, "4", "</s>", "Bluë 🌊"]


@pytest.fixture(scope="module", params=REWARDS)
def local(request, tmp_path_factory):
    at_steps = spec_of(request.param).at_steps
    model = toys.step_model() if at_steps else toys.reward_model()
    folder = toys.save(tmp_path_factory.mktemp(request.param) / "m", model, toys.byte_tokenizer(pad="</s>"))
    return karat.load(str(folder), kind=request.param)


def spec_of(name, **options):
    return RewardSpec(kind=name).with_options(**{**defaults(name, options), **options})


def rewards(model, answers=ANSWERS):
    answers = [a for a in answers if a or not model.at_steps]  # an answer in steps has one at least
    return [r.value for r in model.score("2+2?", answers, strict=True)]


def test_a_batch_is_its_singles(local):
    alone = [r for a in ANSWERS for r in rewards(local, [a])]
    assert rewards(local) == pytest.approx(alone, abs=1e-5)


def test_order_and_duplicates(local):
    wanted = rewards(local)
    answers = [a for a in ANSWERS if a or not local.at_steps]
    order = list(range(len(answers))) * 2
    random.Random(0).shuffle(order)
    assert rewards(local, [answers[i] for i in order]) == pytest.approx([wanted[i] for i in order], abs=1e-5)
    assert len(set(rewards(local, ["4"] * 3))) == 1


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pad_id", [0, 5, 257])
@pytest.mark.parametrize("budget", [1, 64, 4096])
def test_padding(local, side, pad_id, budget):
    forward = PaddedForward(local.parts.backbone, side=side, pad_id=pad_id, budget=budget)
    assert rewards(LocalModel(local.parts, PaddedEngine(forward))) == pytest.approx(rewards(local), abs=1e-5)


def test_negative_control_last_of_the_row_is_another_token(local):
    """Index -1 of a padded batch: every shorter answer gets another number."""

    class LastColumn(PaddedForward):
        def _pad(self, sequences):
            chunk = super()._pad(sequences)
            width = chunk["input_ids"].shape[1]
            chunk["reads_R3"] = torch.tensor([[row, width - 1, width] for row in range(len(sequences))])
            return chunk

    wrong = rewards(LocalModel(local.parts, PaddedEngine(LastColumn(local.parts.backbone))))
    assert wrong != pytest.approx(rewards(local), abs=1e-3)


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("options", [{}, {"pooling": "mean"}], ids=str)
def test_saved_and_loaded_scores_are_the_same(name, options, tmp_path):
    spec = spec_of(name, **options)
    if spec.at_steps != spec_of(name).at_steps:
        pytest.skip("read at steps only")
    parts = checkpoint.start(toys.save(tmp_path / "m"), spec)
    with torch.no_grad():
        parts.head.out.weight.normal_()
    checkpoint.save(parts, tmp_path / "o", golden_values)
    again = karat.load(str(tmp_path / "o"))
    assert again.spec.kind == name
    assert rewards(again) == pytest.approx(rewards(LocalModel(parts)), abs=1e-6)


ITEMS = {
    Pair: lambda a, b: Pair(a, b),
    Ranking: lambda a, b: Ranking((a, b), (1, 2)),
    Labelled: lambda a, b: Labelled(a, 1.0),
    Stepped: lambda a, b: Stepped((a,), ((1.0,),)),
}


@pytest.mark.parametrize("name", REWARDS)
def test_a_kind_keeps_its_contract(name):
    """A loss per row that falls when the better answer gains, and a comparison that is a probability."""
    spec = spec_of(name)
    made = kind(name).by(spec)
    a, b = (Example((Message("user", "2+2?"),), text, steps=(text,)) for text in ("4", "five"))
    for item_type in made.items:
        item = ITEMS[item_type](a, b)
        width = len(made.examples(item))
        assert made.examples(item)[0] is a and made.problem_of(item) == "" and isinstance(made.problem([item]), str)
        targets = made.targets([item, item])
        numbers = torch.zeros(2, width, spec.head.outputs, requires_grad=True)
        loss = made.loss(numbers, torch.ones(2, width, dtype=torch.bool), targets)
        assert loss.shape == (2,) and bool(loss.isfinite().all()) and made.size(item) == 1
        (down,) = torch.autograd.grad(loss.sum(), numbers)
        (up,) = torch.autograd.grad(rewards_of(spec, numbers[0]).sum(), numbers)
        assert float((down * up)[0, 0].sum()) < 0
    assert made.compare(Reward(1.0), Reward(1.0)) == 0.5
    assert made.compare(Reward(2.0), Reward(1.0)) > 0.5 > made.compare(Reward(1.0), Reward(2.0))


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_says_what_it_is_and_takes_only_its_options(name):
    assert kinds()[name].endswith((".", ":")) and len(kinds()[name]) < 130
    for option, default in option_names(name).items():
        kind(name, {option: default})
        with pytest.raises(BadInput, match="did you mean"):
            kind(name, {option + "x": default})
        with pytest.raises(BadInput, match="is wrong"):
            kind(name, {option: object()})


def test_unknown_kind():
    with pytest.raises(BadInput, match="did you mean 'outcome'"):
        kind("outcomes")
