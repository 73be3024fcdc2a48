"""Which replica a request goes to, and how many there should be."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.scaling import _affinity, _policy


def key(**body):
    return _affinity.key_of(json.dumps(body).encode())


TURNS = [{"role": "user", "content": "What is 7*8?"}]
SAME = [  # bodies of one dialect each, that ask for other answers to the same prompt
    ({"prompt": "7*8?", "candidates": ["56"]}, {"candidates": ["54", "1"], "prompt": "7*8?", "stream": True}),
    ({"prompt": TURNS, "candidates": ["56"]}, {"prompt": TURNS, "candidates": ["54"]}),
    ({"messages": [*TURNS, {"role": "assistant", "content": "56"}]}, {"messages": TURNS}),
    ({"items": [{"prompt": "7*8?", "candidates": ["56"]}]}, {"prompt": "7*8?", "candidates": ["54"]}),
    ({"query": "7*8?", "documents": ["56"]}, {"query": "7*8?", "documents": ["54"]}),
    ({"query": "7*8?", "texts": ["56"]}, {"query": "7*8?", "items": ["54"]}),
    ({"text_1": "7*8?", "text_2": "56"}, {"text_1": "7*8?", "text_2": ["54", "55"]}),
    ({"query": ["7*8? 56"], "prompts": ["7*8?"]}, {"query": ["7*8? 54"], "prompts": ["7*8?"]}),
    ({"input": "p" * 600 + "56"}, {"input": ["p" * 600 + "54"]}),
    ({"inputs": [["7*8?", "56"]]}, {"inputs": [["7*8?", "56"], ["9?", "9"]]}),
    ({"messages": ["p" * 600 + "56"]}, {"messages": ["p" * 600 + "54"]}),
    ({"input_ids": [*range(600), 7]}, {"input_ids": [*range(600), 8]}),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_answers_to_a_prompt_have_one_key(one, other):
    assert key(**one) and key(**one) == key(**other)


def test_prompts_have_keys_of_their_own_and_what_has_none_goes_anywhere():
    keys = [key(prompt=f"{i}?", candidates=["56"]) for i in range(100)]
    assert len(set(keys)) == 100
    for body in (b"", b"{", b"[]", b"3", b"{}", b'{"model": "toy"}', b"[" * 2000):
        assert _affinity.key_of(body) == b""
    large = b'{"prompt": "' + b"p" * _affinity.LARGE
    assert _affinity.key_of(large) == _affinity.key_of(large + b"more")


@given(st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda own: st.lists(own, max_size=3)))
@settings(max_examples=60)
def test_no_body_is_too_odd(value):
    for place in ("prompt", "messages", "items", "text", "input_ids"):
        assert isinstance(key(**{place: value}), bytes)


def replicas(count):
    return [f"replica-{i}" for i in range(count)]


def test_only_the_keys_of_a_replica_that_goes_move():
    names = replicas(5)
    before = {k: _affinity.order(k, names)[0] for k in (bytes([i, j]) for i in range(40) for j in range(5))}
    after = {k: _affinity.order(k, names[1:])[0] for k in before}
    assert all(after[k] == before[k] for k in before if before[k] != names[0])
    counts = [list(before.values()).count(name) for name in names]
    assert min(counts) > 20  # of 200, 40 to each in the mean


def test_hashing_modulo_moves_most_keys():
    """The wrong way: negative control of the test before."""
    moved = sum(i % 5 != i % 4 for i in range(200))
    assert moved > 150


def test_a_replica_that_is_far_fuller_is_passed_over_and_one_that_was_tried_comes_last():
    names = replicas(4)
    key = b"a prompt"
    first, second, *_ = _affinity.order(key, names)
    even = dict.fromkeys(names, 20)
    assert _affinity.choose(key, even)[0] == first
    assert _affinity.choose(key, {**even, first: 50})[0] == first  # below twice the mean of 27.5
    assert _affinity.choose(key, {**even, first: 100})[0] == second
    assert _affinity.choose(key, {**dict.fromkeys(names, 0), first: _affinity.FREE - 1})[0] == first
    assert _affinity.choose(key, even, [first])[0] == second
    assert _affinity.choose(key, even, [first])[-1] == first
    assert sorted(_affinity.choose(key, {**even, first: 100}, names)) == names


def test_without_a_key_the_emptiest_comes_first():
    assert _affinity.choose(b"", {"a": 3, "b": 1, "c": 2}) == ["b", "c", "a"]


def test_replicas_are_as_many_as_there_are_batches_that_wait():
    def wanted(**batches):
        told = {_policy.BACKLOG: batches} if batches else {}
        return _policy.replicas(SimpleNamespace(aggregated_metrics=told, target_num_replicas=3))[0]

    assert wanted() == 3  # nothing is known
    assert wanted(a=0.0, b=0.0) == 1
    assert wanted(a=8.0, b=9.0) == 5
    assert _policy.replicas(SimpleNamespace(aggregated_metrics=None, target_num_replicas=2)) == (2, {})
