"""The padding vectors of the field, through the real engine, and the field's mistakes, which give other values.

The toy's hidden state is r_t = Σ_{s≤t, m_s} id_s · 2^-(pos_t - pos_s), exact in float32, from mask and positions alone.
"""

import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import toys
from karat.engine.base import EngineError
from karat.engine.padded import PaddedEngine, PaddedForward, plan
from karat.models.render import Rendered, Renderer
from karat.spec import Render, RewardSpec
from karat.types import Example, Message, Sequence, Span, Unscored


class Oracle(nn.Module):
    """A backbone whose answer is known; no gradient, no head."""

    def __init__(self, vocabulary=300):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 1)
        self.config = SimpleNamespace(hidden_size=1)
        self.calls = 0

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask, position_ids, use_cache=False):
        self.calls += 1
        assert not use_cache
        return SimpleNamespace(last_hidden_state=decay(input_ids, attention_mask, position_ids)[..., None])


def decay(ids, mask, positions):
    distance = positions[:, :, None] - positions[:, None, :]
    length = ids.shape[1]
    before = torch.tril(torch.ones(length, length, dtype=torch.bool)) & mask.bool()[:, None, :]
    weights = torch.where(before, 2.0 ** -distance.float(), 0.0)
    return (weights * ids[:, None, :].float()).sum(-1)


def engine(side="right", pad_id=0, budget=16_384):
    return PaddedEngine(PaddedForward(Oracle(), side=side, pad_id=pad_id, budget=budget))


def scores(sequences, **options):
    return [float(s["last"]) for s in engine(**options).run(sequences)]


ROWS = {
    "V1 none": ([5, 6, 7, 8, 2], [1, 1, 1, 1, 1], 8.8125),
    "V2 right": ([5, 6, 7, 8, 2, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0], 8.8125),
    "V3 left": ([0, 0, 0, 5, 6, 7, 8, 2], [0, 0, 0, 1, 1, 1, 1, 1], 8.8125),
    "V4 interior": ([5, 6, 0, 0, 7, 8, 2], [1, 1, 0, 0, 1, 1, 1], 8.8125),
    "V4b everywhere": ([0, 0, 5, 6, 0, 0, 7, 8, 2, 0], [0, 0, 1, 1, 0, 0, 1, 1, 1, 0], 8.8125),
    "V5 pad is EOS": ([5, 6, 7, 8, 2, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0, 0], 8.8125),
    "V5b right": ([5, 6, 7, 8, 2, 9, 9, 9], [1, 1, 1, 1, 1, 0, 0, 0], 8.8125),
    "V5b left": ([9, 9, 9, 5, 6, 7, 8, 2], [0, 0, 0, 1, 1, 1, 1, 1], 8.8125),
    "V5b interior": ([5, 6, 9, 9, 7, 8, 2], [1, 1, 0, 0, 1, 1, 1], 8.8125),
    "V6 no EOS": ([5, 6, 7, 8], [1, 1, 1, 1], 13.625),
    "V7 empty answer": ([5, 6, 2], [1, 1, 1], 6.25),
    "V7 empty answer, no EOS": ([5, 6], [1, 1], 8.5),
    "V8 cut on the left": ([6, 7, 8, 2], [1, 1, 1, 1], 8.5),
    "V11 EOS in the prompt": ([5, 2, 6, 7, 8, 2], [1, 1, 1, 1, 1, 1], 8.78125),
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pad_id", [0, 2, 9])
@pytest.mark.parametrize("name", ROWS)
def test_padding_vectors(name, side, pad_id):
    ids, mask, wanted = ROWS[name]
    row = Sequence.from_padded(ids, mask)
    longer = Sequence.from_padded(range(20, 40), [1] * 20)  # so that the engine pads as well
    assert scores([row], side=side, pad_id=pad_id) == [wanted]
    assert scores([row, longer], side=side, pad_id=pad_id)[0] == wanted


# What the field does wrong. Each takes a padded row and gives the value that the table names.


def _states(ids, mask, positions=None):
    ids, mask = torch.tensor([ids]), torch.tensor([mask])
    positions = (mask.cumsum(-1) - 1).clamp(min=0) if positions is None else positions
    return decay(ids, mask, positions)[0]


def mask_one_too_long(ids, mask):
    longer = list(mask)
    longer[sum(mask)] = 1
    return _states(ids, longer)[sum(mask)]


def mean_of_all_but_last(ids, mask):
    return _states(ids, mask, (torch.tensor([mask]).cumsum(-1) - 1).clamp(min=0))[:-1].mean()


def arange_positions(ids, mask):
    return _states(ids, mask, torch.arange(len(ids))[None])[max(i for i, m in enumerate(mask) if m)]


def mask_by_id(ids, mask, pad=2):
    return _states(ids, [i != pad for i in ids])[max(i for i, t in enumerate(ids) if t != pad)]


def first_pad_index(ids, mask, pad=0):
    return _states(ids, mask)[ids.index(pad) - 1]


def first_eos(ids, mask, eos=2):
    return _states(ids, mask)[ids.index(eos)]


def right_truncation(ids, mask, limit=4):
    return _states(ids[:limit], mask[:limit])[-1]


def forced_last_eos(ids, mask, limit=4, eos=2):
    return _states([*ids[: limit - 1], eos], mask[:limit])[-1]


def length_minus_one_of_nothing(ids, mask):
    """The reward of an empty answer is put at, and read from, index -1: a pad."""
    return _states(ids, [1] * len(ids), torch.arange(len(ids))[None])[-1]


WRONG = [
    (mask_one_too_long, "V2 right", 4.40625),
    (arange_positions, "V4 interior", 8.015625),
    (arange_positions, "V4b everywhere", 8.015625),
    (mask_by_id, "V5 pad is EOS", 13.625),
    (first_eos, "V11 EOS in the prompt", 4.5),
    (right_truncation, "V1 none", 13.625),
    (forced_last_eos, "V1 none", 7.625),
    (first_pad_index, "V4 interior", 8.5),
]


@pytest.mark.parametrize(("wrong", "name", "value"), WRONG, ids=lambda v: getattr(v, "__name__", None))
def test_negative_controls_give_the_fields_wrong_values(wrong, name, value):
    ids, mask, right = ROWS[name]
    assert float(wrong(ids, mask)) == value
    assert value != (8.5 if wrong in (right_truncation, forced_last_eos) else right)


def test_negative_control_mean_over_pads():
    """Pads move it: 9.59375 without, 7.685268 with three on the right whose states the toy also computes."""
    ids, mask, right = ROWS["V1 none"]
    assert float(mean_of_all_but_last(ids, mask)) == 9.59375
    padded, padded_mask, _ = ROWS["V2 right"]
    states = decay(torch.tensor([padded]), torch.tensor([padded_mask]), torch.arange(8)[None])[0]
    assert float(states[:-1].mean()) == pytest.approx(7.685268, abs=1e-6)
    assert right != 9.59375


def test_negative_control_index_minus_one():
    assert float(length_minus_one_of_nothing([5, 6, 0], [1, 1, 0])) == 4.25
    assert scores([Sequence.from_padded([5, 6, 0], [1, 1, 0])]) == [8.5]


# V6, V7, V8, V11, V12 from text


def renderer(**options):
    """A tokenizer whose ids are the table's: the letters a … d are 5 … 8, EOS is 2."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<unk>": 1, "</s>": 2, "x": 3, "y": 4, "a": 5, "b": 6, "c": 7, "d": 8}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    template = "{% for m in messages %}{{ m.content }}{% if not loop.last %}{{ sep }}{% endif %}{% endfor %}"
    spec = RewardSpec(kind="bradley_terry", render=Render(layout="concat", template=template)).with_options(**options)
    return Renderer(tokenizer, spec, None)


def rendered(prompt, response, **options):
    (found,) = renderer(**options)([Example((Message("user", prompt),), response)])
    return found


@pytest.mark.parametrize(
    ("prompt", "response", "options", "wanted"),
    [
        ("ab", "cd", {}, 13.625),  # V6
        ("ab", "cd", {"eos": "append"}, 8.8125),
        ("ab", "", {"eos": "append"}, 6.25),  # V7
        ("ab", "", {}, 8.5),
        ("ab", "cd", {"eos": "append", "max_length": 4, "over_length": "cut_prompt"}, 8.5),  # V8
    ],
)
def test_vectors_from_text(prompt, response, options, wanted):
    found = rendered(prompt, response, **options)
    assert isinstance(found, Rendered)
    assert scores([found.sequence]) == [wanted]
    assert found.truncated == ("max_length" in options)
    assert ("empty_answer" in found.flags) == (response == "")


def test_require_refuses_rather_than_mixes():
    assert isinstance(rendered("ab", "cd", eos="require"), Unscored)


def test_v11_earlier_turns_end_in_eos():
    chat = "{% for m in messages %}{{ m.content }}{% if loop.first or loop.last %}</s>{% endif %}{% endfor %}"
    one = renderer()
    spec = RewardSpec(kind="bradley_terry", render=Render(template=chat))
    (found,) = Renderer(one.tokenizer, spec, None)([Example((Message("user", "a"), Message("assistant", "bc")), "d")])
    assert found.sequence.ids == (5, 2, 6, 7, 8, 2)
    assert scores([found.sequence]) == [8.78125]


def test_v12_the_policys_ids_are_not_the_reward_models():
    """Text is what goes from one model to the other; a policy's own ids give another score."""
    policy = toys.byte_tokenizer()
    policy_ids = policy("abcd", add_special_tokens=False)["input_ids"]
    text = policy.decode(policy_ids)
    assert scores([rendered("", text, eos="append").sequence]) == [8.8125]
    assert scores([Sequence(tuple(policy_ids), {"last": (3,)})]) != [8.8125], "negative control: ids fed raw"


# V9: batches


@pytest.mark.parametrize("budget", [1, 40, 16_384])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_gives_each_row_its_own_value_in_order(side, budget):
    chance = random.Random(0)
    rows = [tuple(chance.randrange(1, 300) for _ in range(n)) for n in (3, 31, 7, 12, 3, 20, 31)]
    sequences = [Sequence(r, {"last": (len(r) - 1,)}) for r in rows]
    alone = [scores([s])[0] for s in sequences]
    assert scores(sequences, side=side, budget=budget) == alone
    order = list(range(7)) * 3
    chance.shuffle(order)
    assert scores([sequences[i] for i in order], side=side, budget=budget) == [alone[i] for i in order]


def test_equal_sequences_are_computed_once():
    one = engine(budget=1)
    row = Sequence((5, 6), {"last": (1,)})
    one.run([row, row, Sequence((5, 6), {"last": (1,)})])
    assert one.forward.backbone.calls == 1


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "roberta", "opt", "qwen3", "bloom", "deberta-v2"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_real_backbones_do_not_see_padding(architecture, side):
    backbone = toys.backbone(architecture)
    try:
        forward = PaddedForward(backbone, side=side, pad_id=7)
    except EngineError as error:
        assert side == "left" and "right" in str(error) and architecture in ("bloom",)
        return
    chance = random.Random(1)
    rows = [tuple(chance.randrange(3, 260) for _ in range(n)) for n in (3, 31, 7, 12)]
    sequences = [Sequence(r, {"first": (0,), "last": (len(r) - 1,), "mean": Span(0, len(r))}) for r in rows]
    together = PaddedEngine(forward).run(sequences)
    for sequence, found in zip(sequences, together, strict=True):
        with torch.no_grad():
            states = backbone(input_ids=torch.tensor([sequence.ids])).last_hidden_state[0]
        for name, wanted in (("first", states[0]), ("last", states[-1]), ("mean", states.mean(0))):
            assert torch.allclose(found[name][0], wanted, atol=2e-5), name


def test_v10_rows_do_not_leak_into_each_other():
    """Another neighbour, the same value: what a packed row without its boundaries gets wrong."""
    row, other, another = ((5, 6, 7), (9, 9), (100, 200))
    make = [Sequence(r, {"last": (len(r) - 1,)}) for r in (row, other, another)]
    assert scores(make[:2])[0] == scores([make[0], make[2]])[0]
    leaked = decay(torch.tensor([[*other, *row]]), torch.ones(1, 5), torch.arange(5)[None])[0, -1]
    assert float(leaked) != scores(make[:1])[0], "negative control: packed without boundaries"


# Reads, errors, modes


def test_reads_come_back_by_name():
    sequence = Sequence((5, 6, 7), {"steps": (0, 2), "mean": Span(0, 3), "last": (2,)})
    (found,) = engine().run([sequence])
    assert found["steps"].tolist() == [[5.0], [11.25]]
    assert found["last"].tolist() == [[11.25]]
    assert found["mean"].tolist() == [[(5 + 8.5 + 11.25) / 3]]
    assert found["last"].dtype == torch.float32
    assert engine().run([Sequence((5,), {})]) == [{}]
    assert engine().run([]) == []


@pytest.mark.parametrize(
    ("sequence", "words"),
    [
        (Sequence.from_padded([0, 0], [0, 0]), "no tokens"),
        (Sequence((5, 300), {"last": (1,)}), "vocabulary"),
        (Sequence((5, -1), {"last": (1,)}), "vocabulary"),
        (Sequence((5, 6), {"last": (2,)}), "outside"),
        (Sequence((5, 6), {"last": (-1,)}), "outside"),
        (Sequence((5, 6), {"last": ()}), "outside"),
        (Sequence((5, 6), {"mean": Span(0, 3)}), "outside"),
        (Sequence((5, 6), {"mean": Span(1, 1)}), "outside"),
    ],
)
def test_what_no_forward_can_take(sequence, words):
    with pytest.raises(EngineError, match=f"sequence 1.*{words}"):
        engine().run([Sequence((5,), {"last": (0,)}), sequence])


def test_running_leaves_the_mode_and_no_gradient():
    one = PaddedEngine(PaddedForward(toys.backbone()))
    one.forward.train()
    (found,) = one.run([Sequence((5, 6), {"last": (1,)})])
    assert one.forward.training and not found["last"].requires_grad
    frozen = toys.backbone("gpt2")  # in eval mode; a new module around it is in training mode
    PaddedEngine(PaddedForward(frozen)).run([Sequence((5, 6), {"last": (1,)})])
    assert not any(m.training for m in frozen.modules()), "dropout would be on for whoever uses the model next"


def test_plan_keeps_to_its_budget():
    lengths = [random.Random(3).randrange(1, 50) for _ in range(100)]
    batches = plan(lengths, 120)
    assert sorted(i for b in batches for i in b) == list(range(100))
    assert all(max(lengths[i] for i in b) * len(b) <= 120 for b in batches)
    assert plan([500], 10) == [[0]]


def test_memory_that_runs_out(monkeypatch):
    """Half as many at a time, until it fits; and an error where one is too many, or where other processes take part."""
    asked = [Sequence(tuple(range(1, n)), {"last": (n - 2,)}) for n in range(5, 14)]
    forward = PaddedForward(Oracle())
    wanted, whole, most = PaddedEngine(forward).run(asked), Oracle.forward, [3]

    def small(self, input_ids, *own, **named):
        if len(input_ids) > most[0]:
            raise torch.OutOfMemoryError("no memory")
        return whole(self, input_ids, *own, **named)

    monkeypatch.setattr(Oracle, "forward", small)
    found = PaddedEngine(forward).run(asked)
    assert [f["last"].tolist() for f in found] == [w["last"].tolist() for w in wanted]
    with pytest.raises(torch.OutOfMemoryError):
        PaddedEngine(forward, together=True).run(asked)
    most[0] = 0
    with pytest.raises(EngineError, match="memory ran out on a sequence of 12 tokens; set max_length lower"):
        PaddedEngine(forward).run(asked)
