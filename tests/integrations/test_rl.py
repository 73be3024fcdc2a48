"""Rewards on tokens: the worked numbers, torch and NumPy alike, what must not matter, and the mistakes of others."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from karat.integrations import rl
from karat.models import scratch
from karat.types import BadInput, Reward
from toys import byte_tokenizer

LIBRARIES = {
    "numpy": lambda x: np.asarray(x, dtype=np.float64),
    "torch": lambda x: torch.tensor(x, dtype=torch.float64),
}


@pytest.fixture(params=LIBRARIES)
def array(request):
    return LIBRARIES[request.param]


# The worked example: gamma 1, lambda 0.95, beta 0.1; the pad slot has a junk value

LOG, REFERENCE = [-0.5, -1, -0.2, -0.8, -0.3, 0], [-0.7, -1, -0.5, -0.6, -0.3, 0]
VALUES, MASK = [0.2, 0.3, 0.1, 0.4, 0.5, 9.0], [1, 1, 1, 1, 1, 0]
ENDS = [[1, 3]]
OUTCOME = [0.643813, 0.593488, 0.83525, 0.595, 0.5, 0]


def rewards(array, steps=(), form="sum", mask=MASK):
    mask = array([mask])
    total = -0.1 * rl.kl(array([LOG]), array([REFERENCE])) * mask + rl.place_outcome([1.0], mask).rewards_BT
    if steps:
        total = total + rl.place_steps([rl.step_rewards(steps, form)], ENDS, mask).rewards_BT
    return total


def advantages(array, *arguments):
    return rl.gae(rewards(array, *arguments), array([VALUES]), array([MASK]))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((), OUTCOME),
        (((0.9, 0.2),), [1.670288, 1.673987, 1.02525, 0.795, 0.5, 0]),
        (((0.9, 0.2), "delta"), [0.898651, 0.861737, 0.17025, -0.105, 0.5, 0]),
    ],
    ids=["outcome", "sum", "delta"],
)
def test_worked_advantages(array, steps, expected):
    assert np.allclose(advantages(array, *steps)[0], expected, atol=1e-6)


def test_worked_rewards_and_returns(array):
    assert np.allclose(rewards(array)[0], [-0.02, 0, -0.03, 0.02, 1, 0])
    assert np.allclose(rewards(array, (0.9, 0.2))[0], [-0.02, 0.9, -0.03, 0.22, 1, 0])
    assert np.allclose(rewards(array, (0.9, 0.2), "delta")[0], [-0.02, 0.9, -0.03, -0.68, 1, 0])
    returns = (advantages(array) + array([VALUES])) * array([MASK])
    assert np.allclose(returns[0], [0.843813, 0.893488, 0.93525, 0.995, 1, 0], atol=1e-6)


def test_the_kinds_of_a_step_reward():
    assert np.allclose(rl.step_rewards([0.9, 0.2], "min"), [0.00082, 0.199818], atol=5e-6)
    assert sum(rl.step_rewards([0.9, 0.2], "min")) == pytest.approx(0.200638, abs=1e-6)
    assert sum(rl.step_rewards([0.9, 0.4, 0.2], "delta", baseline=0.5)) == pytest.approx(0.2 - 0.5)
    assert rl.step_rewards([], "min") == []
    with pytest.raises(BadInput, match="sum, delta or min"):
        rl.step_rewards([1.0], "mean")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
@settings(max_examples=30)
def test_delta_does_not_pay_for_more_steps_and_min_finds_the_least(scores):
    assert sum(rl.step_rewards(scores, "delta")) == pytest.approx(scores[-1])
    assert sum(rl.step_rewards(scores, "min", temperature=1e-4)) == pytest.approx(min(scores), abs=1e-3)


TOOL = {"r": [0, 0, 0, 0, 1.0], "v": [0.2, 7, 7, 0.4, 0.5], "m": [1, 0, 0, 1, 1]}
SKIPPED = [0.74625, 0, 0, 0.575, 0.5]


def zero_masked(rewards_T, values_T, mask_T, gamma=1.0, lam=0.95):
    """How TRL, OpenRLHF and ColossalChat count: every masked token is a step of its own, worth nothing."""
    found, after, advantage = [], 0.0, 0.0
    for reward, value, own in zip(reversed(rewards_T), reversed(values_T), reversed(mask_T), strict=True):
        advantage = reward * own + gamma * after - value * own + gamma * lam * advantage
        after = value * own
        found.append(advantage)
    return found[::-1]


def test_a_tools_words_are_stepped_over(array):
    found = rl.gae(array([TOOL["r"]]), array([TOOL["v"]]), array([TOOL["m"]]))[0]
    assert np.allclose(found, SKIPPED)
    wrong = zero_masked(TOOL["r"], TOOL["v"], TOOL["m"])
    assert wrong[0] != pytest.approx(SKIPPED[0], abs=1e-3)


def test_zero_masking_is_right_for_pads_on_the_right_alone():
    wrong = zero_masked(rewards(LIBRARIES["numpy"])[0], VALUES, MASK)
    assert np.allclose(wrong[:5], OUTCOME[:5], atol=1e-6)


def test_the_slot_behind_the_end_gives_other_advantages(array):
    """TRL's PPO puts the reward behind the end, with a value of its own: one more factor of gamma and lambda."""
    mask = [1, 1, 1, 1, 1, 1]
    found = rl.gae(rewards(array, mask=mask), array([[*VALUES[:5], 0.8]]), array([mask]))[0]
    assert np.allclose(found, [0.635668, 0.584914, 0.826225, 0.5855, 0.49, 0.2], atol=1e-6)
    assert not np.allclose(found, OUTCOME, atol=1e-3)


@given(st.integers(0, 2**20), st.lists(st.integers(0, 3), min_size=6, max_size=6))
@settings(max_examples=30)
def test_advantages_do_not_depend_on_where_pads_lie(seed, holes):
    """Pads before, between and behind, with junk in them, even what is no number."""
    chance = np.random.default_rng(seed)
    r, v = chance.normal(size=(1, 5)), chance.normal(size=(1, 5))
    places = np.cumsum([holes[0], *[1 + h for h in holes[1:5]]])
    width = places[-1] + 1 + holes[5]
    wide_r, wide_v = np.full((1, width), np.nan), np.full((1, width), np.nan)
    wide_r[0, places], wide_v[0, places] = r, v
    mask = np.isin(np.arange(width), places)[None]
    found = rl.gae(wide_r, wide_v, mask, gamma=0.9)
    assert np.allclose(found[:, places], rl.gae(r, v, np.ones((1, 5)), gamma=0.9))
    assert np.all(found[~mask] == 0)
    white = rl.whiten(wide_v, mask)
    assert np.allclose(white[mask], rl.whiten(v, np.ones((1, 5)))[0]) and np.all(white[~mask] == 0)


def test_an_answer_that_was_cut_off_goes_on_from_a_value(array):
    found = rl.gae(array([[0.0, 0.0]]), array([[0.5, 0.5]]), array([[1, 1]]), 1.0, 1.0, array([2.0]))
    assert np.allclose(found[0], [1.5, 1.5])


def test_nothing_to_see_is_nothing(array):
    empty = array(np.zeros((2, 0)).tolist())
    assert tuple(rl.gae(empty, empty, empty).shape) == (2, 0)
    assert np.all(np.asarray(rl.gae(array([[1.0]]), array([[5.0]]), array([[0]]))) == 0)


def test_tensors_stay_tensors_and_give_no_gradient_to_what_is_masked():
    values = torch.tensor([VALUES], requires_grad=True)
    rl.gae(rewards(LIBRARIES["torch"]).float(), values, torch.tensor([MASK])).sum().backward()
    assert values.grad[0, -1] == 0 and values.grad[0, 0] != 0


# Placement


def everywhere(reward, mask):
    """ColossalChat: `reward[i, :n] += r`."""
    return [reward * m for m in mask]


def at_the_last_column(reward, mask):
    """verl and OpenRLHF for an empty answer: index -1."""
    last = max((t for t, m in enumerate(mask) if m), default=-1)
    return [reward if t == last % len(mask) else 0.0 for t in range(len(mask))]


@pytest.mark.parametrize("mask", [[1, 1, 1, 1, 1, 0], [0, 1, 0, 1], [1], [0, 0, 1]])
def test_the_outcome_is_at_the_last_token_of_the_policy_once(array, mask):
    found = np.asarray(rl.place_outcome([2.5], array([mask])).rewards_BT)[0]
    assert found.sum() == 2.5 and found[np.flatnonzero(mask)[-1]] == 2.5


def test_negative_controls_of_placement():
    assert sum(everywhere(1.0, MASK)) == 5.0  # a return that grows with the length
    assert at_the_last_column(1.0, [0, 0, 0]) == [0, 0, 1.0]  # a pad is rewarded


def test_an_empty_answer_keeps_no_reward_and_says_so(array):
    placed = rl.place_outcome([1.0, 2.0], array([[0, 0], [1, 0]]))
    assert np.asarray(placed.rewards_BT).tolist() == [[0, 0], [2, 0]]
    assert placed.dropped == [rl.Dropped(0, None, "the answer is empty")]


def test_steps_are_placed_added_or_told(array):
    mask = array([[1, 1, 0, 1]])
    placed = rl.place_steps([[1.0, 2.0, 4.0, 8.0, 16.0]], [[1, 1, 2, 9, None]], mask)
    assert np.asarray(placed.rewards_BT).tolist() == [[0, 3, 0, 0]]
    assert [(d.row, d.step) for d in placed.dropped] == [(0, 2), (0, 3), (0, 4)]
    assert "did not choose" in placed.dropped[0].why and "beyond" in placed.dropped[1].why


@pytest.mark.parametrize(
    ("rewards", "ends", "match"),
    [
        ([[1.0]], [[1, 2]], "1 rewards and 2 ends"),
        ([[float("nan")]], [[1]], "no finite number"),
        ([[1.0], [1.0]], [[1]], "2 rows of rewards and 1 of ends for 1 answers"),
    ],
)
def test_rewards_that_do_not_fit_are_refused(rewards, ends, match):
    with pytest.raises(BadInput, match=match):
        rl.place_steps(rewards, ends, np.ones((1, 3)))


def test_a_missing_reward_is_never_placed_as_a_number():
    with pytest.raises(BadInput, match="a failure is no 0"):
        rl.place_outcome([1.0, float("nan")], np.ones((2, 3)))


def test_the_value_of_a_step_is_at_all_its_tokens(array):
    found = rl.spread_steps([[0.5, -1.0]], [[1, 4]], array([[1, 1, 1, 0, 1, 1]]))
    assert np.asarray(found).tolist() == [[0.5, 0.5, -1.0, 0, -1.0, 0]]


# Where steps end, across tokenizers


def unigram():
    """Marks of words as SentencePiece writes them: the first one's is not in the text."""
    pieces = sorted({c for c in "0123456789+=-abcdefghijklmnopqrstuvwxyzA:\n.,é∑"} | {"▁", "▁is", "ing"})
    backend = Tokenizer(models.Unigram([(p, -float(len(pieces))) for p in ["<unk>", *pieces]], unk_id=0))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return backend


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """(ids of a text, decode) of three sorts: bytes, byte-level BPE, and SentencePiece-like."""
    from transformers import AutoTokenizer

    words = ["1 + 2 = 3 pens\n3 + 4 = 7 pens\nAnswer: 7", "is it raining, é∑ 🙂?"] * 3
    folder = scratch.build(tmp_path_factory.mktemp("bpe"), "scratch:hidden=16,layers=1,heads=2,vocab=320", words, 0)
    bpe, one_byte, metaspace = AutoTokenizer.from_pretrained(folder), byte_tokenizer(), unigram()
    return {
        "bytes": (lambda t: one_byte(t, add_special_tokens=False)["input_ids"], one_byte.decode),
        "bpe": (lambda t: bpe(t, add_special_tokens=False)["input_ids"], bpe.decode),
        "unigram": (lambda t: metaspace.encode(t).ids, metaspace.decode),
    }


@pytest.mark.parametrize("name", ["bytes", "bpe", "unigram"])
@given(lines=st.lists(st.text("ab1+= é∑🙂.", min_size=1, max_size=8), min_size=1, max_size=4), cut=st.integers(0, 6))
@settings(max_examples=25)
def test_every_step_lands_once_and_at_its_last_character(tokenizers, name, lines, cut):
    encode, decode = tokenizers[name]
    ids = encode("\n".join(lines))
    text = decode(ids)  # what a tokenizer does not know, it does not write
    stops = rl.token_stops(decode, ids)
    assert stops == sorted(stops) and stops[-1:] == ([len(text)] if ids else [])
    steps, kept = text.split("\n"), ids[: max(0, len(ids) - cut)]
    if not text.startswith(decode(kept)):
        return  # broken off within a character, which is then another
    ends = rl.step_ends(rl.step_stops(text, steps), rl.token_stops(decode, kept))
    for number, end in enumerate(ends):
        last = len("\n".join(steps[: number + 1])) + (number + 1 < len(steps))  # its line end is its own
        if end is None:
            assert last > len(decode(kept)) or not kept
        else:
            assert last <= stops[end] and (end == 0 or stops[end - 1] < last)


def test_a_character_of_several_tokens_is_written_by_the_last():
    tokenizer = byte_tokenizer()
    ids = tokenizer("é.", add_special_tokens=False)["input_ids"]
    assert rl.token_stops(tokenizer.decode, ids) == [0, 1, 2]
    assert rl.token_stops(tokenizer.decode, ids[:1]) == [1]  # broken off: what is left is shown as one sign


def test_a_separator_that_a_tokenizer_merges_is_found_where_an_id_is_not():
    """`.\\n` is one token of the policy: looking for the separator's id finds nothing."""
    pieces = {0: "a", 1: ".\n", 2: "b", 3: "."}
    ids = [0, 1, 2, 3]

    def decode(own):
        return "".join(pieces[i] for i in own)

    text = decode(ids)
    assert rl.step_ends(rl.step_stops(text, ["a.", "b."]), rl.token_stops(decode, ids)) == [1, 3]
    assert [t for t, i in enumerate(ids) if pieces[i] == "\n"] == []


def test_two_steps_in_one_token_and_steps_beyond_the_end():
    assert rl.step_ends([1, 2, 5, 9], [3, 5, 7]) == [0, 0, 1, None]
    with pytest.raises(BadInput, match="step 1 is not in the answer"):
        rl.step_stops("one\ntwo", ["two", "one"])


def test_the_lines_of_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "rl.md").read_text()
    (block,) = (own for own in re.findall(r"```python\n(.*?)```", page, re.S) if "rl.gae" in own)
    tokenizer, text = byte_tokenizer(), "1+1=2\n2+2=5"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    known = {
        "tokenizer": tokenizer,
        "answer_ids": ids,
        "text": text,
        "steps": text.split("\n"),
        "found": Reward(0.1, (0.9, 0.1)),
        "mask_BT": torch.ones(1, len(ids)),
        **{name: torch.zeros(1, len(ids)) for name in ("logp_BT", "reference_BT", "values_BT")},
    }
    exec(compile(block, "rl.md", "exec"), known)
    assert known["ends"] == [5, 10] and known["placed"].dropped == []
    assert float(known["advantages_BT"][0, -1]) == pytest.approx(-0.8)


# KL


def test_kl_estimates(array):
    assert np.allclose(rl.kl(array([LOG]), array([REFERENCE]))[0], [0.2, 0, 0.3, -0.2, 0, 0])
    lead = math.log(2)
    assert float(rl.kl(array([lead]), array([0.0]), "k2")[0]) == pytest.approx(lead**2 / 2)
    assert float(rl.kl(array([lead]), array([0.0]), "k3")[0]) == pytest.approx(0.5 - 1 + lead)
    with pytest.raises(BadInput, match="k1, k2 or k3"):
        rl.kl(array([0.0]), array([0.0]), "k4")


def test_k1_and_k3_are_unbiased():
    p, q = np.array([0.9, 0.05, 0.05]), np.array([0.1, 0.5, 0.4])
    true = float((p * np.log(p / q)).sum())
    for estimator in ("k1", "k3"):
        assert float((p * rl.kl(np.log(p), np.log(q), estimator)).sum()) == pytest.approx(true)
    assert np.all(rl.kl(np.log(p), np.log(q), "k3") >= 0)
    assert float((p * rl.kl(np.log(p), np.log(q), "k2")).sum()) != pytest.approx(true, abs=0.01)


# Groups


def test_group_advantages(array):
    found = rl.group_advantages(array([[1.0, 0, 0, 1], [2, 2, 2, 2]]))
    assert np.allclose(np.asarray(found), [[0.865875, -0.865875, -0.865875, 0.865875], [0, 0, 0, 0]], atol=1e-6)
    assert np.allclose(np.asarray(rl.group_advantages(array([[1.0, 0]]), "none")), [[0.5, -0.5]])


def test_an_answer_without_a_reward_moves_no_other(array):
    alone = np.asarray(rl.group_advantages(array([[1.0, 0.0, 0.5]])))[0]
    beside = np.asarray(rl.group_advantages(array([[1.0, math.nan, 0.0, 0.5]])))[0]
    assert np.allclose(beside, [alone[0], 0, alone[1], alone[2]])
    as_zero = np.asarray(rl.group_advantages(array([[1.0, 0.0, 0.0, 0.5]])))[0]  # a failure taken for a 0
    assert as_zero[1] < 0 and not np.allclose(as_zero[[0, 2, 3]], alone)


def test_equal_rewards_and_lonely_ones_have_no_advantage(array):
    for row in ([0.1, 0.1, 0.1], [3.0], [math.nan, 3.0], [math.nan, math.nan]):
        assert np.asarray(rl.group_advantages(array([row]), epsilon=0.0)).tolist() == [[0.0] * len(row)]


GROUP = [[0.9, 0.2], [0.8, 0.7, 0.6], [0.1]]


@pytest.mark.parametrize(
    ("spread", "expected"),
    [
        ("population", [[0, -1.1721], [1.507, 0.6698, 0.1674], [-1.507]]),
        ("sample", [[0, -1.07], [1.3757, 0.6114, 0.1529], [-1.3757]]),
    ],
)
def test_process_advantages(spread, expected):
    for found, own in zip(rl.process_advantages(GROUP, spread, epsilon=0.0), expected, strict=True):
        assert np.allclose(found, own, atol=1e-4)


def test_process_advantages_of_nothing_and_of_a_failure():
    assert rl.process_advantages([[], []]) == [[], []]
    with pytest.raises(BadInput, match="no finite number"):
        rl.process_advantages([[math.nan]])
    with pytest.raises(BadInput, match="sample, population or none"):
        rl.group_advantages(np.ones((1, 2)), "std")


# Normalisation


def test_whitening_is_over_the_tokens_of_the_policy(array):
    values, mask = array([[1.0, 2.0, 3.0, 100.0]]), array([[1, 1, 1, 0]])
    assert np.allclose(np.asarray(rl.whiten(values, mask)), [[-1, 0, 1, 0]])
    assert np.allclose(np.asarray(rl.whiten(values, mask, shift_mean=False)), [[1, 2, 3, 0]])
    assert np.asarray(rl.whiten(values, array([[1, 0, 0, 0]]))).tolist() == [[1, 0, 0, 0]]


def test_clipping(array):
    assert np.asarray(rl.clip(array([-7.0, 0.5, 7.0]), -1, 1)).tolist() == [-1, 0.5, 1]
    assert math.isnan(float(rl.clip(array([math.nan]), -1, 1)[0]))


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.integers(0, 20))
@settings(max_examples=30)
def test_running_figures_do_not_depend_on_batches(rewards, cut):
    parts = rl.Running().updated(np.array(rewards[:cut])).updated(np.array([*rewards[cut:], math.nan]))
    assert parts.count == len(rewards) and parts.mean == pytest.approx(np.mean(rewards), abs=1e-9)
    assert parts.squares == pytest.approx(np.var(rewards) * len(rewards), abs=1e-6)
    merged = rl.Running().updated(np.array(rewards[:cut])).merged(rl.Running().updated(np.array(rewards[cut:])))
    assert merged.squares == pytest.approx(parts.squares, abs=1e-6)
    assert rl.Running.of_json(parts.as_json()) == parts


def test_normalised_rewards(array):
    state = rl.Running().updated(array([1.0, 3.0]))
    assert np.allclose(np.asarray(state.normalised(array([2.0 + math.sqrt(2)]))), [1.0])
    assert rl.Running().normalised(array([5.0]))[0] == 5.0  # nothing is known yet
    assert rl.Running().updated(array([4.0, 4.0])).spread == 1.0


# Answers without end


def test_answers_without_end(array):
    rewards, ended = array([1.0, 2.0]), array([1, 0])
    expected = {"keep": [1, 2], "subtract": [1, 1.5], "replace": [1, -0.5], "abstain": [1, math.nan]}
    for policy, found in expected.items():
        own = rl.missing_eos(rewards, ended, policy, 0.5)
        assert np.array_equal(np.asarray(own), found, equal_nan=True)
    with pytest.raises(BadInput, match="choose keep, subtract"):
        rl.missing_eos(rewards, ended, "penalise")


def test_long_answers(array):
    found = rl.over_length(array([10.0, 80, 90, 100, 120]), limit=100, buffer=20, penalty=2.0)
    assert np.asarray(found).tolist() == [0, 0, -1, -2, -2]
    with pytest.raises(BadInput, match="at most the limit"):
        rl.over_length(array([1.0]), 10, 20)
