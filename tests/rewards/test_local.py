"""The one pipeline's contracts: types, order, laziness, and failures that are no numbers."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import karat
import toys
from karat.rewards import _local
from karat.rewards._examples import as_example
from karat.rewards._local import CHUNK, LocalModel
from karat.types import BadInput, Example, Message, Refused, Reward, Unscored

ANSWERS = ["4", "It is four.", "", "5" * 40, "4"]


@pytest.fixture(scope="module")
def local(model_folder):
    return karat.load(str(model_folder))


@pytest.fixture
def broken(model_folder):
    """A model whose weights give NaN."""
    local = karat.load(str(model_folder))
    with torch.no_grad():
        local.parts.head.out.weight.fill_(float("nan"))
    return local


def test_score_gives_one_reward_per_response_in_order(local):
    found = local.score("2+2?", ANSWERS)
    assert [type(r) for r in found] == [Reward] * len(ANSWERS)
    assert found == [local.score("2+2?", [a])[0] for a in ANSWERS] or [r.value for r in found] == pytest.approx(
        [local.score("2+2?", [a])[0].value for a in ANSWERS], abs=1e-5
    )
    assert found[0] == found[4]
    assert [r.flags for r in found] == [(), (), ("empty_answer",), (), ()]
    assert found[0].tokens == len(local.renderer([as_example({"prompt": "2+2?", "response": "4"})])[0].sequence.ids)
    assert local.score("2+2?", []) == []


def test_value_is_the_raw_float32_number(local):
    (found,) = local.score("2+2?", ["4"])
    assert type(found.value) is float and found.value == float(torch.tensor(found.value))


def test_what_is_no_list_of_texts(local):
    for responses in ("a single answer", ["a", None], [3], {"a", "b"}, frozenset("a")):
        with pytest.raises(BadInput, match="list"):
            local.score("2+2?", responses)
    with pytest.raises(BadInput, match="list of texts, but number 2 is 1"):
        local.score("2+2?", ["a", 1])
    for rows in ({"prompt": "a", "response": "b"}, "a", Example((), "a"), 5):
        with pytest.raises(BadInput, match="give a list of rows"):
            local.score_many(rows)
    with pytest.raises(BadInput, match="a hub id, but got 5"):
        karat.load(5)
    for prompt in ([{"role": "user"}], [{"content": "a"}], ["a"]):
        with pytest.raises(BadInput, match="role"):
            local.score(prompt, ["a"])
    with pytest.raises(BadInput, match="str"):
        local.score_text(None)


def test_prompts_are_texts_or_messages(local):
    one = local.score("2+2?", ["4"])
    assert one == local.score([{"role": "user", "content": "2+2?"}], ["4"])
    assert one == local.score((Message("user", "2+2?"),), ["4"])
    assert one == local.score(iter([Message("user", "2+2?")]), ["4"])


def test_score_many_takes_rows(local):
    example = Example((Message("user", "2+2?"),), "4")
    rows = [
        example,
        {"prompt": "2+2?", "response": "4"},
        {"prompt": [{"role": "user", "content": "2+2?"}], "response": "4", "id": 7},
        {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]},
        {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}], "context": None},
    ]
    assert len({r.value for r in local.score_many(rows)}) == 1


BAD = [
    ("a", "b"),
    None,
    3,
    {"prompt": "a"},
    {"response": "a"},
    {"prompt": None, "response": "b"},
    {"prompt": "a", "response": 3},
    {"prompt": "a", "response": float("nan")},
    {"messages": []},
    {"messages": [{"role": "user", "content": "a"}]},
    {"messages": [{"role": "assistant", "content": 3}]},
    {"messages": 5},
    {"prompt": 5, "response": "a"},
    {"prompt": "\ud800", "response": "a"},
    {"prompt": "a" * 600, "response": "b"},
    Example("a prompt that is no messages", "b"),
    Example((Message("user", "a"),), None),
]


@pytest.mark.parametrize("row", BAD, ids=lambda row: f"{row!r:.40}".encode("ascii", "replace").decode())
def test_a_bad_row_is_unscored_and_the_others_keep_their_places(local, row):
    good = {"prompt": "2+2?", "response": "4"}
    found = list(local.score_many([good, row, good]))
    assert [type(r) for r in found] == [Reward, Unscored, Reward]
    assert found[1].reason and "\n" not in found[1].reason
    with pytest.raises(Refused):
        list(local.score_many([good, row, good], strict=True))


def test_strict_yields_what_came_before(local):
    rows = local.score_many([{"prompt": "a", "response": "b"}, None], strict=True)
    assert isinstance(next(rows), Reward)
    with pytest.raises(Refused):
        next(rows)


def test_score_many_reads_its_input_as_it_is_read(local):
    taken = 0

    def rows():
        nonlocal taken
        while True:
            taken += 1
            yield {"prompt": "a", "response": "b"}

    found = local.score_many(rows())
    assert taken == 0
    next(found)
    assert taken == CHUNK
    for _ in range(CHUNK):
        next(found)
    assert taken == 2 * CHUNK


def test_more_than_a_chunk_keeps_order(local, monkeypatch):
    monkeypatch.setattr(_local, "CHUNK", 3)
    rows = [{"prompt": "2+2?", "response": str(i) * (1 + i % 5)} for i in range(10)]
    found = [r.value for r in local.score_many(rows)]
    assert found == pytest.approx([local.score("2+2?", [r["response"]])[0].value for r in rows], abs=1e-5)


def test_nan_is_unscored(broken):
    found = broken.score("2+2?", ["4", "5"])
    assert [type(r) for r in found] == [Unscored, Unscored] and "nan" in found[0].reason
    with pytest.raises(Refused, match="nan"):
        broken.score("2+2?", ["4"], strict=True)
    with pytest.raises(Refused):
        broken.compare("2+2?", "4", "5")
    assert [p.number for p in broken.rank("2+2?", ["4", "5"])] == [0, 1]


def test_an_id_that_the_model_does_not_have_is_one_answers_failure(tmp_path):
    """A tokenizer larger than the embedding: the control tokens' ids are 256 and up."""
    chat = "{% for m in messages %}{{ m.content }}{% if 'bad' in m.content %}<|im_end|>{% endif %}{% endfor %}"
    folder = toys.save(tmp_path / "m", toys.reward_model(vocab_size=257), toys.byte_tokenizer(chat=chat))
    local = karat.load(str(folder))
    found = local.score("a", ["good", "bad", "fine", "bad too", "well"])
    assert [type(r) for r in found] == [Reward, Unscored, Reward, Unscored, Reward]
    assert "vocabulary" in found[1].reason
    assert found[2].value == pytest.approx(local.score("a", ["fine"])[0].value, abs=1e-6)


def test_compare_is_the_logistic_of_the_lead(local):
    a, b = local.score("2+2?", ["4", "five"])
    assert local.compare("2+2?", "4", "five") == pytest.approx(1 / (1 + math.exp(b.value - a.value)), abs=1e-6)
    assert local.compare("2+2?", "4", "4") == 0.5
    assert local.compare("2+2?", "4", "five") + local.compare("2+2?", "five", "4") == pytest.approx(1)
    with pytest.raises(Refused):
        local.compare("2+2?", "4", "a" * 600)


def test_rank_puts_the_best_first_and_the_unscored_last(local):
    answers = ["4", "x" * 600, "five", "y" * 600, "4"]
    places = local.rank("2+2?", answers)
    values = [p.result.value for p in places[:3]]
    assert values == sorted(values, reverse=True)
    assert [p.number for p in places[3:]] == [1, 3]
    assert all(isinstance(p.result, Unscored) for p in places[3:])
    same = [p.number for p in places if p.number in (0, 4)]
    assert same == [0, 4], "ties keep their order"


def test_score_text_is_the_templates_text(local):
    text = local.renderer.text(Example((Message("user", "2+2?"),), "4"))
    assert local.score_text(text).value == pytest.approx(local.score("2+2?", ["4"])[0].value, abs=1e-6)
    assert isinstance(local.score_text("x" * 600), Unscored)


def test_options_of_the_spec_apply(model_folder):
    raw = karat.load(str(model_folder)).score("2+2?", ["4"])[0].value
    squashed = karat.load(str(model_folder), activation="sigmoid").score("2+2?", ["4"])[0].value
    assert squashed == pytest.approx(1 / (1 + math.exp(-raw)), abs=1e-6)
    cut = karat.load(str(model_folder), max_length=40, over_length="cut_prompt").score("a" * 100, ["4"])[0]
    assert cut.truncated and cut.tokens == 40 and cut.flags == ("over_length_cut",)


def test_fingerprint_tells_what_scores_differently(local, model_folder):
    same = karat.load(str(model_folder))
    assert local.fingerprint == same.fingerprint
    others = [
        karat.load(str(model_folder), dtype="bfloat16"),
        karat.load(str(model_folder), max_length=40),
        LocalModel(replace(same.parts, head=type(same.parts.head)(same.spec.head, 32))),
    ]
    assert len({local.fingerprint, *(o.fingerprint for o in others)}) == 4
    with torch.no_grad():
        same.parts.backbone.get_input_embeddings().weight[7] += 1
    assert same.fingerprint != local.fingerprint


def test_scoring_leaves_the_model_in_its_mode(local):
    local.score("a", ["b"])
    assert not local.parts.model.training


@pytest.mark.parametrize("architecture", ["gpt2", "bert"])
def test_a_score_has_no_dropout_even_in_training(architecture, tmp_path):
    local = karat.load(str(toys.save(tmp_path / "m", toys.reward_model(architecture))))
    before = local.score("2+2?", ["4"])
    local.parts.model.train()
    assert local.score("2+2?", ["4"]) == before


@pytest.mark.full
def test_loading_prints_nothing(model_folder):
    code = "import sys, karat; karat.load(sys.argv[1]).score('a', ['b'])"
    done = subprocess.run([sys.executable, "-c", code, str(model_folder)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
