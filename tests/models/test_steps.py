"""Steps to ids: TRL's vectors, marks that are placed and never found, merges that are noticed."""

import pytest
import zoo
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import toys
from karat.models.render import Rendered, Renderer, render_part
from karat.rewards.base import defaults, kind
from karat.spec import RewardSpec
from karat.training import _data
from karat.types import Example, Message, Refused, Stepped, Unscored

X = None


def trl_tokenizer(bos="<bos>"):
    """The tokenizer of the vectors: `.` and a line end merge."""
    pieces = ["<bos>", "<pad>", "<eos>", "<sep>", "\n", "Q", "a", "b", "c", "d", ".", " ", ".\n", "<unk>"]
    backend = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [(".", "\n")], unk_token="<unk>"))
    backend.add_special_tokens(["<bos>", "<pad>", "<eos>", "<sep>", "<unk>"])
    more = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, **more)


def renderer(tokenizer, positions=None, **options):
    spec = RewardSpec(kind="process").with_options(**{**defaults("process", options), **options})
    part = render_part(tokenizer, spec.render, append_eos=True)
    return Renderer(tokenizer, spec.model_copy(update={"render": part}), positions)


def rows(render, item, policy="cut_end", **options):
    account = _data.Account("train")
    made = kind("process", options).by(RewardSpec(kind="process").with_options(**defaults("process", {})))
    found = _data.prepare([item], made, render, policy, account)
    return found, account, made


def trained(render, steps, labels, prompt="Q", **options):
    """Ids, and a label for each, as TRL writes them."""
    item = kind("process", options).learnt(Stepped((Example.of_steps(prompt, steps),), (tuple(labels),)))
    (row,), _, _ = rows(render, item, **options)
    (sequence,) = row.sequences
    found = [X] * len(sequence.ids)
    for place, label in zip(sequence.reads["step"], row.item.labels[0], strict=True):
        found[place] = label
    return list(sequence.ids), found


F = (["a.", "b c."], [1.0, 0.0])
VECTORS = {
    "V1": ({}, {}, F, [0, 5, 6, 10, 4, 7, 11, 8, 10, 4], [X, X, X, X, 1, X, X, X, X, 0]),
    "V3": ({"step_token": "<sep>"}, {}, F, [0, 5, 6, 10, 3, 7, 11, 8, 10, 3], [X, X, X, X, 1, X, X, X, X, 0]),
    "V4": (
        {"step_token": "\n\n"},
        {},
        F,
        [0, 5, 6, 10, 4, 4, 7, 11, 8, 10, 4, 4],
        [X, X, X, X, X, 1, X, X, X, X, X, 0],
    ),
    "V5": ({}, {"last_step_only": True}, F, [0, 5, 6, 10, 4, 7, 11, 8, 10, 4], [*[X] * 9, 0]),
    "V6": ({"max_length": 8}, {}, F, [0, 5, 6, 10, 4, 7, 11, 8], [X, X, X, X, 1, X, X, X]),
    "V7": ({"max_completion_length": 3}, {}, F, [0, 5, 6, 10, 4], [X, X, X, X, 1]),
    "V9": (  # TRL makes 0, 0 and 1 of the labels
        {},
        {},
        (["a.", "b.", "c."], [0.9, 0.3, 1.0]),
        [0, 5, 6, 10, 4, 7, 10, 4, 8, 10, 4],
        [X, X, X, X, 0.9, X, X, 0.3, X, X, 1.0],
    ),
    "V10": (
        {},
        {},
        (["a\nb.", "c."], [1.0, 0.0]),
        [0, 5, 6, 4, 7, 10, 4, 8, 10, 4],
        [X, X, X, X, X, X, 1, X, X, 0],
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_of_trl(name):
    spec, options, (steps, labels), ids, wanted = VECTORS[name]
    render = renderer(trl_tokenizer(), over_length="cut_end", **spec)
    assert trained(render, steps, labels, **options) == (ids, wanted)


def test_a_tokenizer_without_bos_gets_none():  # V2
    assert trained(renderer(trl_tokenizer(bos=None)), *F)[0] == [5, 6, 10, 4, 7, 11, 8, 10, 4]


def test_a_prompt_that_spells_bos_is_text():  # V11, where TRL has two BOS
    ids, _ = trained(renderer(trl_tokenizer()), ["a."], [1.0], prompt="<bos>Q")
    assert ids[0] == 0 and 0 not in ids[1:] and ids[-3:] == [6, 10, 4]


def test_a_row_that_loses_all_labels_is_dropped_and_counted():  # V8, where TRL trains on nothing
    item = Stepped((Example.of_steps("Q", F[0]),), ((1.0, 0.0),), origin="f:1")
    found, account, _ = rows(renderer(trl_tokenizer(), over_length="cut_end", max_length=2), item)
    assert not found and account.dropped and account.used == 0
    late = Stepped((Example.of_steps("Q", F[0]),), ((None, 0.0),), origin="f:1")
    found, account, _ = rows(renderer(trl_tokenizer(), over_length="cut_end", max_length=8), late)
    assert not found and account.dropped == [("f:1", "every labelled step was cut off by max_length")]


def test_cut_labels_are_counted():
    item = Stepped((Example.of_steps("Q", F[0]),), ((1.0, 0.0),), origin="f:1")
    found, account, _ = rows(renderer(trl_tokenizer(), over_length="cut_end", max_length=8), item)
    assert found[0].item.labels == ((1.0,),) and account.cut == [("f:1", "steps behind max_length cut off")]


def test_joined_text_has_other_ids():
    """Negative control: what TRL's own inference recipe does with the text; the mark's token is not there."""
    tokenizer = trl_tokenizer()
    assert tokenizer("Qa.\nb c.\n", add_special_tokens=False)["input_ids"] == [5, 6, 12, 7, 11, 8, 12]
    (found,) = renderer(tokenizer, step_join="text")([Example.of_steps("Q", F[0])])
    assert isinstance(found, Unscored) and "use step_join='ids'" in found.reason


# Any tokenizer and text


STEP = st.text(alphabet="ab .<>|[]s/ки\n+-", min_size=1, max_size=12).filter(str.strip)


@pytest.mark.parametrize("name", zoo.ALL)
@settings(max_examples=25)
@given(prompt=st.text(alphabet="ab <>|[]/s", max_size=8), steps=st.lists(STEP, min_size=1, max_size=3))
@example(prompt="q <", steps=["/s> a"])
@example(prompt="q", steps=["a \uff1c\uff0fs\uff1e b"])
def test_text_that_is_joined_makes_no_control_token(name, prompt, steps):
    tokenizer = zoo.ALL[name]()
    word = "blue" if name == "wordlevel" else " :: "
    (found,) = renderer(tokenizer, step_token=word, step_join="text")([Example.of_steps(prompt, steps)])
    if isinstance(found, Rendered):
        added = tokenizer("", add_special_tokens=True)["input_ids"]
        control = [i for i in found.sequence.ids if i in set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}]
        assert sorted(control) == sorted(i for i in added if i in tokenizer.all_special_ids)


@pytest.mark.parametrize("name", zoo.ALL)
@settings(max_examples=25)
@given(prompt=st.text(max_size=10), steps=st.lists(STEP, min_size=1, max_size=4))
def test_each_piece_by_itself(name, prompt, steps):
    """A growing answer only ever appends ids; marks lie where they were put, whatever steps say."""
    tokenizer = zoo.ALL[name]()
    word = "blue" if name == "wordlevel" else " :: "
    render = renderer(tokenizer, step_token=word, layout="concat")
    mark = tokenizer(word, add_special_tokens=False)["input_ids"]
    found = render([Example.of_steps(prompt, steps[: n + 1]) for n in range(len(steps))])
    before = ()
    for count, one in enumerate(found, 1):
        assert isinstance(one, Rendered), one
        ids, reads = one.sequence.ids, one.sequence.reads["step"]
        assert len(reads) == count and ids[: len(before)] == before and list(ids[-len(mark) :]) == mark
        assert reads[-1] == len(ids) - 1 and all(list(ids[r - len(mark) + 1 : r + 1]) == mark for r in reads)
        allowed = {tokenizer.unk_token_id, tokenizer.bos_token_id}
        assert not (set(ids[1:]) & set(tokenizer.all_special_ids)) - allowed
        before = ids


def test_a_chat_template_goes_around_the_steps():
    tokenizer = toys.byte_tokenizer()
    render = renderer(tokenizer, layout="chat", step_token="<|im_start|>")
    (found,) = render([Example.of_steps("2+2?", ["it is 4", "<|im_start|> done"])])
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "it is 4@<|im_start|> done@"}],
        tokenize=False,
    )
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    ids = found.sequence.ids
    assert [ids[r] for r in found.sequence.reads["step"]] == [start, start]
    assert ids.count(start) == 2 + 2  # two roles and two marks: the step's own is text
    assert tokenizer.decode(ids) == whole.replace("@", "<|im_start|>")


def test_turns_read_the_token_before_the_mark():
    """RLHFlow's layout: a step is the user's turn, and `+` the assistant's."""
    tokenizer = toys.byte_tokenizer()
    options = {"layout": "chat", "step_join": "turns", "step_token": "+", "prompt_end": " ", "pooling": "before_step"}
    (found,) = renderer(tokenizer, **options)([Example.of_steps("1+1?", ["a+b", "c"])])
    turns = [("user", "1+1? a+b"), ("assistant", "+"), ("user", "c"), ("assistant", "+")]
    wanted = tokenizer.apply_chat_template(
        [{"role": r, "content": c} for r, c in turns], tokenize=True, return_dict=False
    )
    ids, reads = list(found.sequence.ids), found.sequence.reads["before_step"]
    assert ids == wanted
    plus = tokenizer("+", add_special_tokens=False)["input_ids"][0]
    assert [ids[r + 1] for r in reads] == [plus, plus] and all(tokenizer.decode([ids[r]]) == "\n" for r in reads)


def test_joined_text_reads_the_marks_that_were_written():
    tokenizer = toys.byte_tokenizer()
    render = renderer(tokenizer, step_join="text", step_token=" ки", step_template="Step {n}: {step}", prompt_end=" ")
    (found,) = render([Example.of_steps("q ки", ["a ки b", "c"])])
    text = "q ки Step 1: a ки b киStep 2: c ки"
    assert tokenizer.decode(found.sequence.ids) == "<s>" + text
    ends = [len(text.split("Step 2")[0].encode()), len(text.encode())]
    assert found.sequence.reads["step"] == tuple(e for e in ends)  # BOS moves a byte's place by one


def test_without_a_mark_the_last_token_of_a_step_is_read():
    for join in ("ids", "text"):
        (found,) = renderer(toys.byte_tokenizer(), step_token="", step_join=join)([Example.of_steps("q", ["ab", "c"])])
        assert found.sequence.reads["step"] == (3, 4) and len(found.sequence.ids) == 5


@settings(max_examples=40)
@given(prompt=st.text(max_size=8), steps=st.lists(STEP, min_size=1, max_size=3))
def test_text_and_ids_are_the_same_where_nothing_merges(prompt, steps):
    tokenizer = toys.byte_tokenizer()
    one, other = (
        renderer(tokenizer, step_token="\n", step_join=join)([Example.of_steps(prompt, steps)])[0]
        for join in ("ids", "text")
    )
    assert one.sequence == other.sequence


def test_a_finished_text():
    render = renderer(trl_tokenizer(), step_token="<sep>")
    found = render.finished("Qa.<sep>b c.<sep>")
    assert list(found.sequence.ids) == [5, 6, 10, 3, 7, 11, 8, 10, 3] and found.sequence.reads["step"] == (3, 8)
    assert "no step mark '<sep>'" in render.finished("Qa.").reason


def test_an_answer_without_steps_is_split_at_empty_lines_or_else_at_line_ends():
    render = renderer(toys.byte_tokenizer())
    for text, steps in (("a\nb\n\nc", ["a\nb", "c"]), ("a\nb\n", ["a", "b"]), ("a", ["a"])):
        whole = Example((Message("user", "q"),), text)
        assert render([whole])[0].sequence == render([Example.of_steps("q", steps)])[0].sequence


def test_a_prompt_is_cut_and_steps_stay():
    render = renderer(toys.byte_tokenizer(), over_length="cut_prompt", max_length=8)
    (found,) = render([Example.of_steps("long prompt", ["ab", "c"])])
    assert found.truncated and len(found.sequence.ids) == 8 and len(found.sequence.reads["step"]) == 2


# Bad input


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([], "no steps; give at least one"),
        (["a", " \n"], "step 2 is empty"),
        (["a" * 20], "more than max_length=15"),
        (["\ud800"], "surrogate"),
    ],
)
def test_answers_that_have_no_tokens(steps, said):
    (found,) = renderer(toys.byte_tokenizer(), max_length=15)([Example.of_steps("q", steps)])
    assert isinstance(found, Unscored) and said in found.reason


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"step_token": "<unk>x"}, "does not know step_token"),
        ({"step_template": "{stop}"}, "has to hold {step}"),
        ({"step_template": "no"}, "has to hold {step}"),
        ({"step_join": "turns"}, "needs a chat template"),
        ({"step_token": "", "pooling": "before_step"}, "need a mark"),
        ({"step_token": None}, "belong together"),
        ({"pooling": "last"}, "belong together"),
    ],
)
def test_specs_that_make_no_sense(options, said):
    with pytest.raises(Refused, match=said):
        renderer(trl_tokenizer(), **options)


def test_only_steps_are_cut_at_the_end():
    with pytest.raises(Refused, match="this reward has none"):
        spec = RewardSpec(kind="outcome").with_options(over_length="cut_end", layout="concat")
        part = render_part(trl_tokenizer(), spec.render)
        Renderer(trl_tokenizer(), spec.model_copy(update={"render": part}), None)
