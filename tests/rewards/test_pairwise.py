"""Models that read two answers: the message byte for byte, both orders, ranking, and what must be refused."""

import math

import jinja2
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import karat
import toys
from karat.models import checkpoint
from karat.rewards._among import among
from karat.rewards.base import defaults, kind
from karat.spec import RewardSpec
from karat.types import BadInput, Example, Message, Pair, Refused, Reward, Unscored

PLAIN_CHAT = toys.CHAT.replace(" | trim", "")
# RLHFlow's context, by its own template and the environment that transformers renders it in.
RLHFLOW = (
    "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n {{ message['content'] }}"
    "{% else %}\n\n<turn> assistant\n {{ message['content'] }}{% endif %}{% endfor %}\n\n\n"
)
TURNS = (Message("user", "Q1"), Message("assistant", "A1"), Message("user", "Q2"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toys.save(
        tmp_path_factory.mktemp("lm") / "m", toys.causal_model(), toys.byte_tokenizer(PLAIN_CHAT, pad="</s>")
    )


@pytest.fixture(scope="module")
def model(folder):
    return karat.load(str(folder), kind="pairwise")


def rlhflow(messages, a, b):
    """The message of RLHFlow's script."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    context = environment.from_string(RLHFLOW).render(messages=[{"content": m.content} for m in messages])
    return f"[CONTEXT] {context} [RESPONSE A] {a} [RESPONSE B] {b} \n"


@pytest.mark.parametrize("count", [1, 3])
def test_the_message_is_rlhflows_byte_for_byte(model, count):
    text = model.renderer.text(Example(TURNS[-count:], "one", other="two"))
    message = rlhflow(TURNS[-count:], "one", "two")
    assert text == f"<s><|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n"


def test_negative_control_jinja_by_itself_writes_another_context():
    other = jinja2.Environment().from_string(RLHFLOW).render(messages=[{"content": "Q1"}])
    assert other not in rlhflow(TURNS[:1], "a", "b")


def by_hand(folder, prompt, a, b):
    """P(A) of a text, by transformers and a softmax over the logits of two letters at the last position."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    message = [{"role": "user", "content": rlhflow([Message("user", prompt)], a, b)}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    letters = [tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "AB"]
    with torch.no_grad():
        return float(model(input_ids=ids).logits[0, -1, letters].float().softmax(-1)[0])


def test_both_orders_are_read_and_averaged(folder, model):
    first, second = by_hand(folder, "2+2?", "4", "five"), by_hand(folder, "2+2?", "five", "4")
    (found,) = model.compare_many([Example((Message("user", "2+2?"),), "4", other="five")])
    assert found.orders == pytest.approx((first, 1 - second), abs=1e-5)
    assert found.value == pytest.approx((first + 1 - second) / 2, abs=1e-5)
    assert model.compare("2+2?", "4", "five") + model.compare("2+2?", "five", "4") == pytest.approx(1, abs=1e-6)


def test_a_published_average(monkeypatch, model):
    """Logits (2, 0) with chosen first and (1, 0.5) with chosen second: 0.880797 and 0.377541 make 0.629169."""
    values = [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-0.5))]
    monkeypatch.setattr(model, "_score", lambda rows: [Reward(v) for v in values])
    assert model.compare("p", "a", "b") == pytest.approx(0.629169, abs=1e-6)


def test_huge_logits_stay_probabilities(folder):
    model = karat.load(str(folder), kind="pairwise")
    with torch.no_grad():
        model.parts.head.out.weight.mul_(1e6)
    assert 0 <= model.compare("2+2?", "4", "five") <= 1


def test_a_tie_is_half_a_preference(folder):
    model = karat.load(str(folder), kind="pairwise", head="lm_logits:A,B,C")
    (found,) = model.compare_many([Example((Message("user", "2+2?"),), "4", other="five")])
    numbers, _ = model.numbers(
        [r.sequence for r in model.renderer([Example((Message("user", "2+2?"),), "4", other="five")])]
    )
    a, _, tie = numbers[0].softmax(-1).tolist()
    assert found.orders[0] == pytest.approx(a + tie / 2, abs=1e-6)


@settings(max_examples=20)
@given(st.text(max_size=9), st.text(max_size=9))
def test_control_tokens_in_answers_are_text(model, a, b):
    for text in (a, b):
        (found,) = model.compare_many([Example((Message("user", "p"),), text + "<|im_end|>", other=b)])
        assert isinstance(found, Reward) or "surrogate" in found.reason
    (rendered,) = model.renderer([Example((Message("user", "p"),), "<|im_end|>", other="<s>")])
    assert rendered.sequence.ids.count(model.renderer.tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1


@pytest.mark.parametrize("word", ["[RESPONSE B]", "[RESPONSE A]", "[CONTEXT]", "<turn>"])
@pytest.mark.parametrize("where", ["prompt", "response", "other"])
def test_delimiters_in_texts_are_refused(model, word, where):
    texts = {"prompt": "p", "response": "a", "other": "b"} | {where: f"x {word} y"}
    example = Example((Message("user", texts["prompt"]),), texts["response"], other=texts["other"])
    (found,) = model.compare_many([example])
    assert isinstance(found, Unscored) and repr(word) in found.reason
    with pytest.raises(Refused, match="tells the answers apart"):
        model.compare(texts["prompt"], texts["response"], texts["other"])


def test_it_has_no_reward_for_one_answer(model):
    for call in (lambda: model.score("p", ["a"]), lambda: model.score_many([{"prompt": "p", "response": "a"}])):
        with pytest.raises(Refused, match="use compare or rank"):
            call()
    assert model.compares


def test_rank_gives_utilities(model):
    places = model.rank("2+2?", ["4", "five", "4", "It is four."])
    values = {place.number: place.result.value for place in places}
    assert values[0] == values[2] and sorted(values.values(), reverse=True) == [p.result.value for p in places]
    two = {place.number: place.result.value for place in model.rank("2+2?", ["4", "five"])}
    p = model.compare("2+2?", "4", "five")
    assert two[0] - two[1] == pytest.approx(math.log(p / (1 - p)), abs=1e-6)


def test_who_meets_and_what_it_is_worth(model):
    answers = ["4", "five", "It is four.", "no", "yes"]
    whole = {p.number: p.result.value for p in model.rank("2+2?", answers, worth="borda")}
    wins = [[model.compare("2+2?", a, b) for b in answers if b != a] for a in answers]
    assert [whole[i] for i in range(5)] == pytest.approx([sum(own) / 4 for own in wins], abs=1e-6)
    best = model.rank("2+2?", answers, meeting="tournament")[0]
    asked = sum(p.result.tokens > 0 for p in model.rank("2+2?", answers, meeting="tournament"))
    assert best.result.value == max(p.result.value for p in model.rank("2+2?", answers, meeting="tournament")) and asked
    with pytest.raises(BadInput, match="did you mean 'tournament'"):
        model.rank("2+2?", answers, meeting="turnament")
    with pytest.raises(BadInput, match="did you mean 'borda'"):
        model.rank("2+2?", answers, worth="bordo")


def test_rank_of_one_and_of_what_cannot_be_compared(model):
    assert "needs another answer" in model.rank("p", ["a"])[0].result.reason
    places = model.rank("p", ["a", "[RESPONSE A]", "b"])
    assert places[-1].number == 1 and "[RESPONSE A]" in places[-1].result.reason
    assert all(isinstance(place.result, Reward) for place in places[:2])


def test_answers_of_several_prompts_keep_their_places(model):
    examples = [Example((Message("user", p),), a) for p, a in (("p", "a"), ("q", "b"), ("p", "c"), ("q", "d"))]
    found = among(model, examples)
    assert found[0].value == pytest.approx(-found[2].value, abs=1e-9)
    assert found[1].value == pytest.approx(-found[3].value, abs=1e-9)
    assert found[0].orders[0] == pytest.approx(1 - found[2].orders[1], abs=1e-9)


def test_pairs_of_one_prompt_are_judged_by_their_own_comparison(monkeypatch, model):
    """a beats b and c beats a, whatever a fit over all three would say."""
    wins = {("a", "b"): 0.6, ("c", "a"): 0.9}

    def compare_many(examples):
        return [Reward(wins.get((e.response, e.other), 0.5), orders=(0.5, 0.5)) for e in examples]

    monkeypatch.setattr(model, "compare_many", compare_many)
    pairs = [Pair(*(Example((Message("user", "p"),), text) for text in both)) for both in wins]
    flat = [example for own in pairs for example in (own.chosen, own.rejected)]
    found = among(model, flat, pairs=True)
    assert found[0].value - found[1].value == pytest.approx(math.log(0.6 / 0.4))
    assert found[2].value - found[3].value == pytest.approx(math.log(9)) and all(r.orders for r in found)


def test_three_outputs_of_any_head_have_a_tie():
    assert defaults("pairwise", {"head": "linear", "outputs": 3})["output"] == (1.0, 0.0, 0.5)
    assert defaults("pairwise", {"head": "linear", "outputs": 2})["output"] == 0


def test_a_circle_is_told(monkeypatch, model):
    beats = {("r", "s"): 0.9, ("s", "p"): 0.9, ("p", "r"): 0.9}

    def compare_many(examples):
        pairs = [(e.response, e.other) for e in examples]
        return [Reward(beats.get(pair, 1 - beats.get(pair[::-1], 0.5))) for pair in pairs]

    monkeypatch.setattr(model, "compare_many", compare_many)
    assert all(place.result.flags == ("cycle",) for place in model.rank("game", ["r", "s", "p"]))


def test_a_template_that_writes_something_before_the_answer_is_refused(tmp_path):
    thinking = PLAIN_CHAT.replace("{{ m.content }}", "{% if m.role == 'assistant' %}<think>{% endif %}{{ m.content }}")
    folder = toys.save(tmp_path / "m", toys.causal_model(), toys.byte_tokenizer(thinking))
    with pytest.raises(Refused, match="right behind its generation prompt"):
        karat.load(str(folder), kind="pairwise")


def test_the_trap_of_templates_without_a_generation_prompt(tmp_path):
    """RLHFlow reads behind whatever the template writes last; where that closes the user's turn, no label is there."""
    without = PLAIN_CHAT.partition("{% if add_generation_prompt")[0]
    folder = toys.save(tmp_path / "m", toys.causal_model(), toys.byte_tokenizer(without))
    with pytest.raises(Refused, match="right behind its generation prompt"):
        karat.load(str(folder), kind="pairwise")


def test_a_tokenizer_without_a_template_reads_the_message_alone(tmp_path):
    folder = toys.save(tmp_path / "m", toys.causal_model(), toys.byte_tokenizer(chat=None))
    model = karat.load(str(folder), kind="pairwise")
    assert model.renderer.text(Example(TURNS, "a", other="b")) == rlhflow(TURNS, "a", "b")


def test_a_label_of_several_tokens_is_refused(folder):
    with pytest.raises(BadInput, match="'First' is 5 tokens"):
        karat.load(str(folder), kind="pairwise", head="lm_logits:First,B")


def test_a_template_that_lacks_an_answer_is_refused(folder):
    with pytest.raises(BadInput, match=r"\{context\}, \{a\}, \{b\} once each"):
        karat.load(str(folder), kind="pairwise", pair_template="{context} {a}")


def test_a_long_context_is_cut_and_never_an_answer(folder):
    model = karat.load(str(folder), kind="pairwise", max_length=120, over_length="cut_prompt")
    (found,) = model.compare_many([Example((Message("user", "x" * 300),), "4", other="five")])
    assert found.truncated and found.tokens <= 240
    refused = karat.load(str(folder), kind="pairwise", max_length=120)
    (found,) = refused.compare_many([Example((Message("user", "x" * 300),), "4", other="five")])
    assert isinstance(found, Unscored) and found.over_length


# ------------------------------------------------------------------------------------------ how it is learnt


def spec(**options):
    return RewardSpec(kind="pairwise").with_options(**{**defaults("pairwise", options), **options})


def pair(preference=1.0, chosen="good", rejected="bad"):
    a, b = (Example((Message("user", "p"),), text) for text in (chosen, rejected))
    return Pair(a, b, preference)


def loss(item, logits, **options):
    made = kind("pairwise", options).by(spec(**({"head": "lm_logits:A,B,C"} if len(logits[0]) == 3 else {})))
    numbers = torch.tensor([logits])
    return float(made.loss(numbers, torch.ones(1, len(logits), dtype=torch.bool), made.targets([item])))


def test_loss_is_of_the_labels_alone_in_both_orders():
    wanted = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(0.5))) / 2
    assert loss(pair(), [[2.0, 0.0], [0.5, 0.0]]) == pytest.approx(wanted, abs=1e-6)
    assert loss(pair(0.5), [[0.0, 0.0], [0.0, 0.0]]) == pytest.approx(math.log(2), abs=1e-6)


def test_a_tie_is_a_label_of_its_own_where_there_is_one():
    assert loss(pair(0.5), [[0.0, 0.0, 9.0], [0.0, 0.0, 9.0]]) == pytest.approx(0.0, abs=1e-3)
    three = torch.tensor([1.0, 0.0, 2.0]).log_softmax(-1)
    wanted = -(0.6 * three[0] + 0.4 * three[2])
    assert loss(pair(0.8), [[1.0, 0.0, 2.0], [0.0, 1.0, 2.0]]) == pytest.approx(float(wanted), abs=1e-6)


@settings(max_examples=30)
@given(st.text(max_size=5), st.text(max_size=5), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_the_coin_does_not_know_the_label(a, b, preference):
    """With one order, which answer is read first is the same whoever is preferred."""
    made = kind("pairwise", {"orders": "one"}).by(spec())
    (one,), (other,) = made.examples(pair(preference, a, b)), made.examples(pair(1 - preference, b, a))
    assert (one.response, one.other) == (other.response, other.other)
    mine, turned = (made.targets([p])["preference_BK"] for p in (pair(preference, a, b), pair(1 - preference, b, a)))
    assert a == b or torch.allclose(mine, turned)


def test_rows_it_cannot_learn_from():
    made = kind("pairwise").by(spec())
    assert "the same" in made.problem_of(pair(chosen="x", rejected="x"))
    other = Pair(Example((Message("user", "p"),), "a"), Example((Message("user", "q"),), "b"))
    assert "different prompts" in made.problem_of(other)
    assert "every pair is a tie" in made.problem([pair(0.5)])
    with pytest.raises(BadInput, match="two labels, or three"):
        kind("pairwise").by(spec(head="lm_logits:A,B,C,D"))


def test_saved_and_loaded(folder, tmp_path):
    from karat.rewards._local import LocalModel, golden_values

    parts = checkpoint.start(str(folder), spec())
    checkpoint.save(parts, tmp_path / "o", golden_values)
    again = karat.load(str(tmp_path / "o"))
    assert again.compare("2+2?", "4", "five") == pytest.approx(LocalModel(parts).compare("2+2?", "4", "five"), abs=1e-6)
    with pytest.raises(Refused, match="leave pair_template out"):
        karat.load(str(tmp_path / "o"), pair_template="{context}{a}{b}")
