"""Next tokens of right steps learnt beside their rewards: transformers' own loss of them, and nothing else."""

from dataclasses import replace

import kit
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import karat
import toys
from karat.engine.probe import choose_forward
from karat.models import checkpoint
from karat.rewards.base import defaults, kind
from karat.spec import RewardSpec
from karat.training._language import LanguageCollator, LanguageModule, _spoken
from karat.types import BadInput, Example, Refused, Stepped

ROWS = [
    {"prompt": "q?", "completions": ["a", "bb c", "d"], "labels": [1, 1, 0]},
    {"prompt": "longer?", "completions": ["ee"], "labels": [1]},
    {"prompt": "why", "completions": ["f g", "h"], "labels": [0, 1]},
    {"prompt": "", "completions": ["i", "j", "k", "l"], "labels": [1, 1, 1, 1]},
]


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return toys.save(tmp_path_factory.mktemp("language") / "m", toys.causal_model())


def by_transformers(folder):
    """Mean loss over all labels of what is said up to the last right step before a wrong one, from each row's mean."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), toys.byte_tokenizer()
    total = labels = 0.0
    for row, right in zip(ROWS, (2, 1, 0, 4), strict=True):
        ids = tokenizer(row["prompt"])["input_ids"]
        said = [-100] * len(ids)
        for number, step in enumerate(row["completions"]):
            new = tokenizer(step + "\n", add_special_tokens=False)["input_ids"]
            ids, said = ids + new, said + (new if number < right else [-100] * len(new))
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([said])).loss if right else 0.0
        total, labels = total + len(row["labels"]) * float(loss), labels + len(row["labels"])
    return total / labels


def first_loss(folder, language, weight, **settings):
    data = kit.write(folder / "rows.jsonl", ROWS)
    options = {"kind": "process", "options": {"language_weight": weight}, "batch_size": 4, "epochs": 1}
    trained = kit.train(folder, language, data, **options, **settings)
    return kit.losses(trained)[0]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_is_transformers_own_beside_the_rewards(language, tmp_path, accumulate):
    settings = {"trainer": {"gradient_accumulation_steps": accumulate}}
    alone = first_loss(tmp_path / "alone", language, 0.0, **settings)
    for weight in (1.0, 0.5):
        beside = first_loss(tmp_path / str(weight), language, weight, **settings)
        assert beside - alone == pytest.approx(weight * by_transformers(language), rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "right"),
    [
        ([1, 1, 0, 1], 2),
        ([0, 1], 0),
        ([None, None], 0),
        ([1, None, 1, None], 3),
        ([None, 0], 0),
        ([0.9, 0.4], 1),
        ([-1], 0),
    ],
)
def test_what_is_worth_saying(labels, right):
    item = Stepped((Example.of_steps("q", ["s"] * len(labels)),), (tuple(labels),))
    assert kind("process").said_well(item) == (right,)


def test_a_step_that_branches_share_has_one_label():
    """It is told in the first of them alone."""
    branches = tuple(Example.of_steps("q", steps) for steps in (("a", "b", "c"), ("a", "b", "d"), ("a", "e")))
    assert kind("process").said_well(Stepped(branches, ((1.0, 0.0, 0.0), (None, None, 1.0), (None, 0.9)))) == (1, 1, 2)


def test_a_neutral_step_is_no_mistake():
    item = Stepped((Example.of_steps("q", "abcd"),), ((1, 0, 1, -1),))
    made, spec = kind("process"), RewardSpec(kind="process").with_options(**defaults("process", {"outputs": 3}))
    assert made.by(spec).said_well(item) == (3,)


def test_branches_say_what_they_share_once(language):
    branches = tuple(Example.of_steps("q?", steps) for steps in (["a b", "c"], ["a b", "d e"]))
    tree = Stepped(branches, ((1.0, 1.0), (None, 1.0)))
    parts, made, rows = kit.prepared(language, [tree], "process", {}, **defaults("process", {}))
    module = LanguageModule(choose_forward(parts.backbone), parts.head, *checkpoint.language_head(language, "cpu"))
    batch = LanguageCollator(made, module)(rows)
    assert parts.tokenizer.decode(batch["batch"]["next_ids_T"]) == "a b\nc\nd e\n"
    assert batch["row_T"].tolist() == [0] * 10


def test_an_added_mark_is_not_foretold(language):
    """Not where the language head has rows to spare, either."""
    item = Stepped((Example.of_steps("q?", ["a", "b"]),), ((1.0, 1.0),))
    parts, made, rows = kit.prepared(language, [item], "process", {}, **defaults("process", {}))
    head, known = checkpoint.language_head(language, "cpu")
    assert head.out.out_features > known == len(parts.tokenizer)
    (sequence,) = _spoken(rows[0], made, known).sequences
    marked = replace(rows[0], sequences=(replace(sequence, ids=(*sequence.ids[:-1], known)),))
    assert len(_spoken(marked, made, known).sequences[0].reads["language"]) == len(sequence.reads["language"]) - 1


@pytest.mark.parametrize(
    ("method", "spec"),
    [("full", {"step_token": "<step>"}), ("lora", {}), ("full", {"head": "lm_logits:-,+", "output": 1})],
)
def test_what_comes_out_is_a_reward_model_alone(language, tmp_path, method, spec):
    """The language head is no part of it."""
    data = kit.write(tmp_path / "rows.jsonl", ROWS)
    settings = {"kind": "process", "method": method, "spec": spec, "options": {"language_weight": 1.0}}
    kit.train(tmp_path, language, data, add_step_token="step_token" in spec, **settings)
    model = karat.load(tmp_path / "out")
    assert len(model.score_steps("q?", ["a", "b"]).steps) == 2
    names = [name for path in (tmp_path / "out").glob("*.safetensors") for name in load_file(path)]
    assert not [name for name in names if "language" in name]


def test_it_is_learnt(language, tmp_path):
    data = kit.write(tmp_path / "rows.jsonl", ROWS)
    settings = {"kind": "process", "learning_rate": 3e-3, "epochs": 30, "options": {"language_weight": 1.0}}
    losses = kit.losses(kit.train(tmp_path, language, data, **settings))
    assert losses[-1] < losses[0] / 2


def test_where_it_cannot_be(language, model_folder, tmp_path):
    data = kit.write(tmp_path / "rows.jsonl", ROWS)
    settings = {"kind": "process", "options": {"language_weight": 1.0}}
    with pytest.raises(BadInput, match="language_weight trains the backbone"):
        kit.train(tmp_path / "a", language, data, method="frozen", **settings)
    for said, options, spec in (
        ("last_step_only", {"last_step_only": True}, {}),
        ("step_join='turns'", {}, {"step_join": "turns", "step_token": "+"}),
    ):
        with pytest.raises(BadInput, match=said):
            kit.train(tmp_path, language, data, kind="process", options={"language_weight": 1.0, **options}, spec=spec)
    with pytest.raises(Refused, match="language_weight, need a causal language model"):
        kit.train(tmp_path / "b", model_folder, data, **settings)
