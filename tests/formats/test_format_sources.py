"""The data spec, mixing by weight, and splitting by prompt."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.formats import base
from karat.formats._sources import select
from karat.types import BadInput, Example, Labelled, Message, Pair, Ranking


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x.jsonl", ("x.jsonl", None, None, 1.0)),
        ("hh.jsonl.gz[:1800]", ("hh.jsonl.gz", None, 1800, 1.0)),
        ("x.parquet[-512:]@0.5", ("x.parquet", -512, None, 0.5)),
        ("x.csv[10:20]@2.5", ("x.csv", 10, 20, 2.5)),
        ("x.csv[:]", ("x.csv", None, None, 1.0)),
        ("x.csv@3", ("x.csv", None, None, 3.0)),
        ("owner/name:test[:9]", ("owner/name:test", None, 9, 1.0)),
        ("a@b/c d.json", ("a@b/c d.json", None, None, 1.0)),
        ("data@v2.jsonl[:5]", ("data@v2.jsonl", None, 5, 1.0)),
        ("data@v2.jsonl@2", ("data@v2.jsonl", None, None, 2.0)),
        ("x[1].jsonl", ("x[1].jsonl", None, None, 1.0)),
    ],
)
def test_the_grammar(text, expected):
    assert base.parse_source(text) == base.Source(*expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no path; write PATH"),
        ("[:3]", "has no path"),
        ("@2", "has no path"),
        ("x.csv[3]", r"slice \[3\] of the data spec 'x.csv\[3\]' is not \[START:STOP\]"),
        ("x.csv[::2]", "is not"),
        ("x.csv[a:b]", "is not"),
        ("x.csv[1.5:]", "is not"),
        ("x.csv@", "weight '' of the data spec 'x.csv@' is no number"),
        ("x.csv@half", "weight 'half'"),
        ("x.csv@0", "weight of x.csv is 0, but it has to be a finite number above 0"),
        ("x.csv@-1", "above 0"),
        ("x.csv@nan", "above 0"),
        ("x.csv@inf", "above 0"),
        ("x.csv@2[:3]", r"weight '2\[:3\]'"),
    ],
)
def test_a_bad_data_spec(text, message):
    with pytest.raises(BadInput, match=message):
        base.parse_source(text)


ENDS = st.none() | st.integers(-9, 9)


@settings(max_examples=50)
@given(ENDS, ENDS, st.floats(1e-6, 1e6))
def test_a_source_reads_back(start, stop, weight):
    source = base.Source("x.jsonl", start, stop, weight)
    assert base.parse_source(str(source)) == source


@settings(max_examples=50)
@given(st.integers(1, 9), ENDS, ENDS)
def test_slices_are_pythons(count, start, stop):
    source, rows = base.Source("x", start, stop), list(range(count))
    if rows[start:stop]:
        assert select(iter(rows), source) == rows[start:stop]
    else:
        with pytest.raises(BadInput, match="selects no rows"):
            select(iter(rows), source)


def test_a_slice_counts_rows_and_stops_reading(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('\n{"prompt": "a", "response": ""}\n\n{"prompt": "b", "response": ""}\nbroken')
    loaded = base.load(f"{path}[1:2]@0.5")
    assert [e.prompt[0].content for e in loaded.items] == ["b"]
    assert (loaded.rows, loaded.source.weight) == (1, 0.5)
    with pytest.raises(BadInput, match=r"x\.jsonl:5:1: this is not JSON"):
        base.load(f"{path}[:99999999999999999999999]")


@settings(max_examples=50)
@given(st.integers(1, 20), st.floats(0.05, 4), st.integers(0, 5))
def test_mix_gives_each_its_weight(count, weight, seed):
    mixed = base.mix([(range(count), weight), ("ab", 1)], seed)
    seen = Counter(mixed[:-2])
    assert mixed[-2:] == ["a", "b"]
    assert set(seen.values()) <= {int(weight), int(weight) + 1}
    assert abs(len(mixed) - 2 - weight * count) <= 0.5 + 1e-9 or len(mixed) == 3
    assert mixed == base.mix([(range(count), weight), ("ab", 1)], seed)


def test_mix_examples():
    assert base.mix([("abcd", 1), ("xy", 2)], 0) == list("abcdxyxy")
    more = base.mix([("abcd", 2.5)], 0)
    assert more[:8] == list("abcdabcd") and len(set(more[8:])) == 2
    halves = {tuple(base.mix([(range(99), 0.5)], seed)) for seed in range(5)}
    assert len(halves) == 5
    assert base.mix([("abc", 0.01)], 1) in (["a"], ["b"], ["c"])
    assert base.mix([((), 0.5)], 0) == base.mix([], 0) == []
    for bad in (0, -1, float("nan")):
        with pytest.raises(BadInput, match="weight of source 2"):
            base.mix([("a", 1), ("b", bad)], 0)


def example(prompt, response="r"):
    return Example((Message("user", prompt),) if prompt else (), response)


def test_prompt_key():
    one = example("  What\n is 7*8? ")
    items = [one, Labelled(one, 1.0), Pair(one, example("other")), Ranking((one, example("x")), (1, 2))]
    assert {base.prompt_key(item) for item in items} == {"user: What is 7*8?"}
    assert base.prompt_key(Pair(example("", "Qa"), example("", "Qb"))) == "assistant: Qa"


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=2), st.text(max_size=3)), min_size=2),
    st.floats(0, 0.99),
    st.integers(),
)
def test_no_prompt_is_on_both_sides(texts, fraction, seed):
    items = [Pair(example(p, r), example(p, "")) for p, r in texts]
    keys = {base.prompt_key(i) for i in items}
    if len(keys) < 2:
        return
    train, held = base.split_by_prompt(items, fraction, seed)
    on_train, on_held = ({base.prompt_key(i) for i in side} for side in (train, held))
    assert not on_train & on_held and on_train | on_held == keys
    assert sorted(map(id, train + held)) == sorted(map(id, items))
    assert on_train and (bool(on_held) == (fraction > 0))
    assert abs(len(on_held) - fraction * len(keys)) <= 1
    assert {base.prompt_key(i) for i in base.split_by_prompt(items[::-1], fraction, seed)[1]} == on_held


def test_a_split_that_cannot_be():
    same = [Labelled(example("Q", r), 1.0) for r in "abc"]
    with pytest.raises(BadInput, match=r"1 distinct prompt cannot be split; .* hold out nothing with eval=0"):
        base.split_by_prompt(same, 0.1, 0)
    assert base.split_by_prompt(same, 0, 0) == (same, [])
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(BadInput, match="held-out fraction is"):
            base.split_by_prompt(same, fraction, 0)
