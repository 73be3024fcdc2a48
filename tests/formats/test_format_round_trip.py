"""What is written reads back the same, for every format and every kind of file."""

import string

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from karat.formats import base
from karat.types import BadInput, Example, Labelled, Message, Pair, Ranking

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
EXAMPLE = st.builds(Example, PROMPT, TEXT, CONTEXT)


@st.composite
def pairs(draw, prompt=PROMPT, text=TEXT):
    context = draw(CONTEXT)
    first = draw(prompt)
    second = first if draw(st.booleans()) else draw(prompt)
    sides = Example(first, draw(text), context), Example(second, draw(text), context)
    return Pair(*sides, draw(st.just(1.0) | st.floats(0, 1)), draw(st.just(0.0) | NUMBER), draw(WEIGHT))


@st.composite
def rankings(draw):
    prompt, context = draw(PROMPT), draw(CONTEXT)
    answers = draw(st.lists(TEXT, min_size=2, max_size=4))
    ranks = draw(st.lists(st.integers(1, 9), min_size=len(answers), max_size=len(answers)))
    return Ranking(tuple(Example(prompt, a, context) for a in answers), tuple(ranks), draw(WEIGHT))


QUESTION = st.builds(Example, TEXT.map(lambda q: (Message("user", q),)), TEXT, CONTEXT)
DIALOGUE = st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), TEXT), max_size=3).map(
    lambda turns: (Message("user", "Q"), *turns)
)
ITEMS = {
    "preference": pairs(),
    "hh": pairs(DIALOGUE),
    "outcome": st.builds(Labelled, EXAMPLE, NUMBER, WEIGHT),
    "kwise": rankings(),
    "examples": EXAMPLE,
    "model_solutions": st.builds(Labelled, QUESTION, st.sampled_from([0.0, 1.0]), WEIGHT),
}


def settings_of(count):
    noise = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(max_examples=count, deadline=None, suppress_health_check=noise)


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
        expected = "reads as the start of a turn" if name == "hh" else "in CSV an empty `question`"
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
