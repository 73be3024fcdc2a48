"""What is written reads back the same, for every format and every kind of file."""

import string

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from karat.formats import base
from karat.types import Attributed, BadInput, Example, Labelled, Message, Pair, Ranking, Stepped

TEXT = st.text(max_size=6) | st.sampled_from(["", " a", "\n\nHuman: ", "\r", "\ufeff", "[]", '{"role": 1}', "nan", ","])
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
WEIGHT = st.floats(0, 1e300)
MESSAGE = st.builds(Message, st.sampled_from(["user", "assistant", "system", "tool"]), TEXT)
PROMPT = st.lists(MESSAGE, max_size=3).map(tuple)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=3,
)
CONTEXT = st.just({}) | st.dictionaries(st.sampled_from(string.ascii_lowercase), JSON, max_size=2)
STEP = TEXT.filter(str.strip)
NOTHING = st.just({})
STEPS = st.lists(STEP, min_size=1, max_size=3)
EXAMPLE = st.builds(Example, PROMPT, TEXT, CONTEXT) | st.builds(Example.of_steps, PROMPT, STEPS, CONTEXT)
UNIT = st.none() | st.floats(0, 1)
CLASS = st.sampled_from([None, -1.0, 0.0, 1.0])


@st.composite
def pairs(draw, prompt=PROMPT, text=TEXT):
    context = draw(CONTEXT)
    first = draw(prompt)
    second = first if draw(st.booleans()) else draw(prompt)
    sides = Example(first, draw(text), context), Example(second, draw(text), context)
    return Pair(*sides, draw(st.just(1.0) | st.floats(0, 1)), draw(st.just(0.0) | NUMBER), draw(WEIGHT))


@st.composite
def pairs_of_one_prompt(draw, prompt, preference):
    prompt, context = draw(prompt), draw(CONTEXT)
    sides = Example(prompt, draw(TEXT), context), Example(prompt, draw(TEXT), context)
    return Pair(*sides, draw(preference), draw(st.just(0.0) | NUMBER), draw(WEIGHT))


def share(votes):
    """Of the votes (for one, for the other, tied) the larger share, a tie counting half for each."""
    one, other, tied = votes
    return (2 * max(one, other) + tied) / (2 * sum(votes))


@st.composite
def rankings(draw):
    prompt, context = draw(PROMPT), draw(CONTEXT)
    answers = draw(st.lists(TEXT, min_size=2, max_size=4))
    ranks = draw(st.lists(st.integers(1, 9), min_size=len(answers), max_size=len(answers)))
    return Ranking(tuple(Example(prompt, a, context) for a in answers), tuple(ranks), draw(WEIGHT))


@st.composite
def stepped(draw, label, prompt=PROMPT, step=STEP, about=NOTHING):
    steps = draw(st.lists(step, min_size=1, max_size=3))
    one = Example.of_steps(draw(prompt), steps, draw(CONTEXT) | draw(about))
    return Stepped((one,), (tuple(draw(label) for _ in steps),), draw(WEIGHT))


@st.composite
def blamed(draw, about):
    """The first wrong step is labelled, and those before it."""
    one = draw(stepped(st.none(), TEXT)).branches[0]
    first = draw(st.integers(-1, len(one.steps) - 1))
    one = Example.of_steps(one.prompt, one.steps, {**one.context, **draw(about), "first_error": first})
    labels = [1.0 if first < 0 or place < first else 0.0 if place == first else None for place in range(len(one.steps))]
    return Stepped((one,), (tuple(labels),), draw(WEIGHT))


@st.composite
def bench(draw):
    item = draw(stepped(st.just(1.0), TEXT, about=st.booleans().map(lambda original: {"original": original})))
    (one,), (labels,) = item.branches, item.labels
    wrong = set() if one.context["original"] else draw(st.sets(st.integers(0, len(labels) - 1)))
    return Stepped((one,), (tuple(0.0 if place in wrong else 1.0 for place in range(len(labels))),), item.weight)


@st.composite
def beside_a_path(draw):
    """A chosen path, and other last steps beside it or behind it."""
    item = draw(stepped(CLASS, TEXT))
    path, labels = item.branches[0], item.labels[0]
    others = sorted(draw(st.lists(st.tuples(st.integers(0, len(labels)), STEP), max_size=3)), key=lambda one: one[0])
    branches = [Example.of_steps(path.prompt, (*path.steps[:k], text), path.context) for k, text in others]
    said = [(*[None] * k, draw(st.sampled_from([-1.0, 0.0, 1.0]))) for k, _ in others]
    return Stepped((path, *branches), (labels, *said), item.weight)


@st.composite
def trees(draw):
    node = st.deferred(lambda: st.tuples(STEP, st.floats(0, 1), st.just([]) | st.lists(node, max_size=2)))
    prompt, context = draw(TEXT), draw(CONTEXT)
    paths = list(to_leaves(draw(st.lists(node, min_size=1, max_size=2))))
    branches = tuple(Example.of_steps(prompt, [text for text, _ in path], context) for path in paths)
    return Stepped(branches, tuple(tuple(label for _, label in path) for path in paths), draw(WEIGHT))


def to_leaves(nodes):
    for text, value, children in nodes:
        for place, path in enumerate(to_leaves(children) if children else [[]]):
            yield [(text, None if place else value), *path]


@st.composite
def shepherds(draw):
    text = st.sampled_from(["a", "b c.", "x\n\ny", "1 + 1", "-", "к"])
    item = draw(stepped(st.sampled_from([0.0, 1.0]), text, text, st.sampled_from([{}, {"task": "GSM8K"}])))
    one = item.branches[0]
    steps = [f"Step {place}: {step}" for place, step in enumerate(one.steps, 1)]
    return Stepped((Example.of_steps(one.prompt, steps, one.context),), item.labels, item.weight)


NAMED = {"generator": st.just("m"), "final_answer_correct": st.booleans()}
PROCESSBENCH = st.fixed_dictionaries({}, optional=NAMED)
ANSWERED = st.fixed_dictionaries({}, optional={"target": st.just("1"), "answer": st.just("2"), "task": st.just("t")})
QUESTION = st.builds(Example, TEXT.map(lambda q: (Message("user", q),)), TEXT, CONTEXT)
DIALOGUE = st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), TEXT), max_size=3).map(
    lambda turns: (Message("user", "Q"), *turns)
)
TURNS = (
    st.integers(0, 2)
    .flatmap(lambda more: st.lists(TEXT, min_size=1 + 2 * more, max_size=1 + 2 * more))
    .map(lambda texts: tuple(Message("assistant" if place % 2 else "user", text) for place, text in enumerate(texts)))
)
VOTES = st.tuples(*[st.integers(0, 9)] * 3).filter(any)
RATINGS = st.dictionaries(TEXT, st.none() | NUMBER, max_size=3).flatmap(
    lambda some: NUMBER.map(lambda rating: {**some, "overall": rating})
)
ITEMS = {
    "preference": pairs(),
    "hh": pairs(DIALOGUE),
    "outcome": st.builds(Labelled, EXAMPLE, NUMBER, WEIGHT),
    "stepwise": stepped(UNIT | st.just(-1.0)),
    "processbench": blamed(PROCESSBENCH | st.just({"id": "gsm8k-7", "subset": "gsm8k"})),
    "mistake": blamed(ANSWERED),
    "prmbench": bench(),
    "prm800k": beside_a_path(),
    "omega_prm": trees(),
    "math_shepherd": shepherds(),
    "kwise": rankings(),
    "examples": EXAMPLE,
    "attributes": st.builds(Attributed, EXAMPLE, RATINGS, WEIGHT),
    "ties": pairs_of_one_prompt(PROMPT, VOTES.map(share)),
    "pairwise": pairs_of_one_prompt(TURNS, st.sampled_from([0.5, 1.0])),
    "model_solutions": st.builds(Labelled, QUESTION, st.sampled_from([0.0, 1.0]), WEIGHT),
}


def settings_of(count):
    noise = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(max_examples=count, suppress_health_check=noise)


@pytest.mark.parametrize("name", ITEMS)
@settings_of(25)
@given(data=st.data())
def test_written_lines_read_back(tmp_path, name, data):
    check(data.draw(st.lists(ITEMS[name], min_size=1, max_size=3)), tmp_path / "x.jsonl.gz", name)


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
@pytest.mark.parametrize("name", ITEMS)
@settings_of(5)
@given(data=st.data())
def test_written_tables_read_back(tmp_path, name, kind, data):
    check(data.draw(st.lists(ITEMS[name], min_size=1, max_size=3)), tmp_path / f"x.{kind}", name)


def check(items, path, name):
    try:
        assert base.write(items, path, name) == len(items)
    except BadInput as error:
        expected = "reads as the start of a turn" if name == "hh" else "in CSV an empty `"
        assert expected in str(error)
        assume(False)
    loaded = base.load(path)
    assert (loaded.items, loaded.problems, loaded.format) == (items, [], name)


@settings_of(25)
@given(pairs())
def test_an_explicit_and_an_implicit_prompt_read_the_same(pair):
    member = base.get("preference")
    row = member.write(pair)
    implicit = {key: value for key, value in row.items() if key != "prompt"}
    implicit |= {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
    assert member.read(row, "") == member.read(implicit, "") == [pair]


def test_parquet_is_what_trl_loads(tmp_path):
    import pyarrow.parquet as pq

    example = Example((Message("user", "Q"),), "a")
    base.write([Pair(example, Example(example.prompt, "b"))] * 2, tmp_path / "x.parquet", "preference")
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == ["prompt", "chosen", "rejected"]
    assert table.to_pylist()[0]["chosen"] == [{"role": "assistant", "content": "a"}]
