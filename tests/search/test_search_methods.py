"""Methods of search on scripted trees: what they draw, what they score, what they choose, to the last number."""

from dataclasses import replace

import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from scripted import ROWS, Compares, Rewards, Tree, pool

from karat.search import _choice, _file, mcts
from karat.search._task import Task
from karat.search._work import Tools
from karat.search.base import Candidate, Judged, Missing, methods, options, search
from karat.types import BadInput, Refused, Reward

ABAC = pool("a = 1", "b = 2", "a = 1", "c = 3")
SCORES = {"a = 1": 0.25, "b = 2": 0.9, "c = 3": 0.1}


def run(name, tree, reward=None, rows=ROWS, **given):
    policy = tree if isinstance(tree, Tree) else Tree(tree)
    (row,) = search(name, rows, policy, Rewards(reward) if callable(reward) else reward, **given)
    return row


def judged(answers, scores):
    return [Judged(Candidate(answer=a, done=True), Reward(s)) for a, s in zip(answers, scores, strict=True)]


def voted(search):
    """The outcome of a generator that only asks which answers are equal."""
    request = next(search)
    try:
        search.send([request.answers.index(one) for one in request.answers])
    except StopIteration as ended:
        return ended.value


# The reference's worked examples


def test_votes_of_the_reference():
    found = judged("abac", (0.2, 0.9, 0.3, 0.1))
    assert _choice.best(found).chosen == 1
    assert voted(_choice.weighted(found)).chosen == 1  # b: 0.9 against 0.5
    assert found[voted(_choice.majority(found)).chosen].candidate.answer == "a"
    assert voted(_choice.weighted(judged("abac", (0.5, 0.9, 0.5, 0.1)))).chosen in (0, 2)  # a: 1.0


def test_negative_rewards_would_turn_the_vote_and_are_refused():
    """Of a: -1, a: -1, b: -1.5 each a is better, and the sum prefers b: the negative control."""
    found = judged("aab", (-1.0, -1.0, -1.5))
    assert found[voted(_choice.weighted(found)).chosen].candidate.answer == "b"
    for normalize in ("sigmoid", "softmax", "min_max"):
        assert found[voted(_choice.weighted(found, normalize)).chosen].candidate.answer == "a"
    raw = Rewards(lambda text: -1.5 if text == "b" else -1.0, output="logit")
    for name, given in (("weighted_best_of_n", {}), ("beam", {"choose": "weighted"}), ("mcts", {}), ("adaptive", {})):
        with pytest.raises(Refused, match=r"log-odds.*normalize="):
            run(name, pool("a", "a", "b"), raw, **given)
    row = run("weighted_best_of_n", pool("a = 1", "a = 1", "b = 2"), raw, n=3, normalize="softmax")
    assert row["response"] == "a = 1"


def test_rules_of_tree_search():
    assert mcts.puct(10, 3, 0.25, 0.6) == pytest.approx(0.8471635, abs=5e-8)
    assert mcts.uct(10, 4, 0.5, c=2.0) == pytest.approx(2.0174271, abs=5e-8)
    assert mcts.uct(3, 0, 0.1) == float("inf")


# Whole answers


def test_best_of_n_majority_weighted_and_tournament_choose_by_their_rules():
    value = SCORES.get
    assert run("best_of_n", ABAC, value, n=4)["response"] == "b = 2"
    row = run("majority", ABAC, n=4)
    assert (row["response"], row["correct"], row["reward"], row["tied"]) == ("a = 1", True, None, 1)
    assert run("weighted_best_of_n", ABAC, value, n=4)["response"] == "b = 2"
    assert run("weighted_best_of_n", ABAC, lambda text: max(0.5, value(text)), n=4)["response"] == "a = 1"
    compares = Compares({"a = 1": 0.0, "b = 2": 1.0, "c = 3": 2.0}.get)
    for meeting in ("tournament", "round_robin", "active"):
        assert run("tournament", ABAC, compares, n=4, meeting=meeting)["response"] == "c = 3"
    one = Compares({"a = 1": 0.0, "b = 2": 1.0, "c = 3": 2.0}.get)
    row = run("tournament", ABAC, one, n=4)
    assert one.pairs == 2 and row["spent"]["scores"] == 2 and row["spent"]["reward_tokens"] == 8  # 3 different answers
    assert run("best_of_n", ABAC, compares, n=4)["response"] == "c = 3"
    assert run("tournament", ABAC, value, n=4)["response"] == "b = 2"


def test_the_first_of_equals_is_chosen_and_said():
    row = run("best_of_n", ABAC, lambda _: 0.5, n=4)
    assert (row["response"], row["tied"]) == ("a = 1", 3)  # three different ones
    row = run("majority", pool("b = 2", "a = 1", "a = 1", "b = 2"), n=4)
    assert (row["response"], row["tied"]) == ("b = 2", 2)


def test_a_vote_counts_equal_answers_and_takes_the_best_of_the_winner():
    tree = pool("Answer: 1/2", "Answer: 7", "Answer: 0.5")
    value = {"Answer: 1/2": 0.3, "Answer: 7": 0.5, "Answer: 0.5": 0.4}.get
    row = run("weighted_best_of_n", tree, value, n=3)
    assert row["response"] == "Answer: 0.5"


def test_rejection_stops_at_the_first_that_is_good_enough():
    policy = Tree(ABAC)
    row = run("rejection", policy, SCORES.get, threshold=0.8)
    assert row["response"] == "b = 2" and len(policy.asked) == 2
    policy = Tree(ABAC)
    row = run("rejection", policy, SCORES.get, threshold=2, n=3, wave=2)
    assert row["response"] == "b = 2" and len(policy.asked) == 3  # none is, so the best
    with pytest.raises(Refused, match="tournament"):
        run("rejection", ABAC, Compares(len), threshold=1)


def test_adaptive_n_stops_when_the_winner_is_known():
    policy = Tree(pool("a = 1"))
    row = run("adaptive", policy, weigh="count", wave=1)
    # Beta(k + 1, 1) is above a half with 1 - 2^-(k+1): 0.95 after 4.
    assert row["response"] == "a = 1" and len(policy.asked) == 4
    policy = Tree(pool("a = 1", "b = 2"))
    run("adaptive", policy, weigh="count", n=7)
    assert len(policy.asked) == 7
    sure, unsure = Tree(pool("a = 1")), Tree(pool("a = 1"))
    run("adaptive", sure, lambda _: 1.0, wave=1)
    run("adaptive", unsure, lambda _: 0.25, wave=1)
    assert len(sure.asked) == 4 < len(unsure.asked)


# Trees

# From the root, A looks best; behind it everything is bad. B leads to the answer.
TRAP = {
    "": ["A\n", "B\n"],
    "A\n": ["bad\n"],
    "A\nbad\n": ["Answer: 9"],
    "B\n": ["good\n"],
    "B\ngood\n": ["Answer: 1"],
}


def trap(text):
    last = text.split("\n")[-1]
    known = {"A": 0.9, "B": 0.5, "bad": 0.1, "good": 0.95, "Answer: 9": 0.1, "Answer: 1": 0.95}
    return known[last]


def test_beam_keeps_the_best_and_draws_what_it_says():
    policy = Tree(TRAP)
    row = run("beam", policy, trap, n=2, width=2)
    assert row["response"] == "A\nbad\nAnswer: 9"
    assert [text for text, *_ in policy.asked] == ["", "", "A\n", "A\n", "A\nbad\n", "A\nbad\n"]
    assert run("beam", TRAP, trap, n=4, width=2)["correct"] is False  # two beginnings are kept, and both are A
    row = run("beam", TRAP, trap, n=4, width=2, unique=True)
    assert row["response"] == "B\ngood\nAnswer: 1" and row["correct"]
    assert row["spent"]["policy_tokens"] == 4 + 4 + 4 * 2


def test_lookahead_is_scored():
    """search-and-learn draws the lookahead's text and scores the beam without it: the choice stays as it was."""
    plain, seen = Tree(TRAP), Tree(TRAP)
    model = Rewards(trap, at_steps=True)
    assert run("beam", plain, trap, n=2, width=2)["correct"] is False
    row = run("beam", seen, model, n=2, width=2, lookahead=1)
    assert row["correct"] and "B\ngood" in model.seen
    assert sum(greedy for *_, greedy in seen.asked) > 0 and row["spent"]["policy_tokens"] > 2 + 2 + 4
    control = Rewards(trap, at_steps=True)
    run("beam", Tree(TRAP), control, n=2, width=2, lookahead=0)
    assert "B\ngood" not in control.seen


def test_lookahead_is_not_in_the_answer():
    row = run("beam", TRAP, trap, n=4, width=4, lookahead=2)
    assert row["response"].count("\n") == 2


def test_beam_of_equal_texts():
    tree = {"": ["A\n", "A\n", "B\n", "B\n"], "A\n": ["Answer: 2"], "B\n": ["Answer: 1"]}
    value = {"A": 0.6, "B": 0.5, "A\nAnswer: 2": 0.1, "B\nAnswer: 1": 0.9}.get
    assert run("beam", tree, value, n=4, width=2)["correct"] is False  # both that are kept are A
    assert run("beam", tree, value, n=4, width=2, unique=True)["correct"] is True


def test_the_last_step_is_drawn_to_the_end():
    policy = Tree(TRAP)
    row = run("beam", policy, trap, n=2, width=2, max_steps=2)
    assert [stop for _, stop, _ in policy.asked] == [True, True, False, False]
    assert row["final_answer"] == "9"


def test_dvts_gives_the_last_leaves_of_each_tree():
    tree = {"": ["A\n", "B\n", "B\n", "A\n"], "A\n": ["Answer: 9", "Answer: 8"], "B\n": ["Answer: 1", "Answer: 2"]}
    value = {"A": 0.9, "B": 0.5, "A\nAnswer: 9": 0.1, "A\nAnswer: 8": 0.2}.get
    row = run("dvts", tree, lambda text: value(text, 0.9), n=4, width=2)
    leaves = [one["response"] for one in row["candidates"]]
    assert leaves == ["A\nAnswer: 9", "A\nAnswer: 8"] * 2  # in both trees A is the better one
    apart = {**tree, "": ["A\n", "A\n", "B\n", "B\n"]}
    row = run("dvts", apart, lambda text: value(text, 0.9), n=4, width=2)
    assert {one["response"][0] for one in row["candidates"]} == {"A", "B"} and row["response"].startswith("B")
    assert row["spent"]["policy_tokens"] == 4 * 1 + 4 * 2  # search-and-learn says -1


def test_mcts_comes_out_of_the_trap():
    for rule in ("puct", "uct"):
        for leaf in ("rollout", "step"):
            row = run("mcts", TRAP, trap, rule=rule, leaf=leaf, simulations=12, width=2)
            assert row["correct"], (rule, leaf)
    row = run("mcts", TRAP, trap, simulations=1, width=2, leaf="step")
    assert row["final_answer"] is not None  # no simulation came to an end, so the best beginning is gone on with


def test_priors_are_shares_of_what_was_drawn():
    tree = {"": ["A\n", "A\n", "A\n", "B\n"], "A\n": ["Answer: 2"], "B\n": ["Answer: 1"]}
    # Equal rewards: after a visit A has 0.5 + 1.25 * 0.75 / 2, and B, unvisited, 0.5 + 1.25 * 0.25.
    for simulations, answers in ((2, ["2"]), (12, ["2", "1"])):
        row = run("mcts", tree, lambda _: 0.5, simulations=simulations, width=4)
        assert [one["final_answer"] for one in row["candidates"]] == answers


@pytest.mark.parametrize("name", sorted(set(methods()) - {"rejection"}))
def test_failures_are_counted_and_others_still_count(name):
    gone = Missing("gone")
    tree = {"": [gone, "A\n", gone, "A\n"], "A\n": ["Answer: 1", gone]}
    row = run(name, tree, lambda _: 0.5)
    assert row["correct"] is True and row["unsolved"] is None
    assert [one["what"] for one in row["failures"]] == ["missing"]
    nothing = run(name, {"": [gone]}, lambda _: 0.5)
    assert nothing["response"] is None and nothing["correct"] is None and nothing["unsolved"]
    unscored = run(name, pool("Answer: 1"), lambda _: None, **({} if name != "adaptive" else {"n": 4}))
    if name != "majority":
        assert unscored["unsolved"] and {"unscored"} <= {one["what"] for one in unscored["failures"]}


def test_what_cannot_be_scored_is_never_chosen():
    row = run("best_of_n", ABAC, lambda text: None if text == "b = 2" else SCORES[text], n=4)
    assert row["response"] == "a = 1" and row["candidates"][1]["reward"] is None
    row = run("weighted_best_of_n", ABAC, lambda text: None if text == "b = 2" else 0.0, n=4)
    assert row["response"] == "a = 1"  # rewards of exactly 0 are rewards


def test_answers_that_cannot_be_read_do_not_vote():
    row = run("majority", pool("no idea", "no idea", "Answer: 1"), n=3)
    assert row["response"] == "Answer: 1"
    assert {"what": "unanswered", "reason": "no final answer can be read from it", "count": 2} in row["failures"]
    row = run("majority", pool("no idea"), n=3)
    assert row["unsolved"] == _choice.UNANSWERED and row["correct"] is False


def test_a_budget_ends_every_method_near_it():
    for name in sorted(set(methods()) - {"rejection"}):
        given = {"simulations": 500} if name == "mcts" else {"n": 64}
        given |= {"weigh": "count", "confidence": 0.999} if name == "adaptive" else {}
        row = run(name, TRAP, trap, budget=40, **given)
        assert 40 <= row["spent"]["policy_tokens"] <= 60 or name in ("adaptive", "mcts"), name
        assert row["response"], name
    row = run("beam", TRAP, trap, budget=3, n=64)
    assert row["response"] and "out of budget" in [one["what"] for one in row["failures"]]


def test_a_budget_below_one_answer_is_spent_once_and_said():
    """One draw, as nothing is known of what it costs; the fake's answers are 3 tokens."""
    row = run("majority", pool("a = 1"), budget=1, n=16)
    assert row["spent"]["draws"] == 1 and row["spent"]["policy_tokens"] == 3
    summary = _file.summary(
        [row], _file.Run("majority", options("majority", {}), Tools.of(None, None, Task(), None, budget=1))
    )
    assert summary["over_budget"] == {"problems": 1, "most": 2}


class Uncounted(Tree):
    """An endpoint without usage."""

    def _sample(self, text, start):
        return replace(super()._sample(text, start), tokens=0, counted=False)


def test_tokens_that_are_not_counted_are_not_known():
    row = run("majority", Uncounted(ABAC), n=4)
    assert row["response"] == "a = 1" and row["candidates"][0]["tokens"] is None
    assert [row["spent"][name] for name in ("policy_tokens", "prompt_tokens", "policy_flops")] == [None] * 3
    with pytest.raises(BadInput, match="leave --budget out"):
        run("majority", Uncounted(ABAC), n=4, budget=100)


def test_dvts_finishes_its_best_tree_at_the_end_of_a_budget():
    tree = {"": ["A\n", "A\n", "B\n", "B\n"], "A\n": ["Answer: 9"], "B\n": ["Answer: 1"]}
    row = run("dvts", tree, lambda text: {"A": 0.2, "B": 0.8}.get(text, 0.5), n=4, width=2, budget=4)
    assert [one["response"] for one in row["candidates"]] == ["B\nAnswer: 1"]


class Floored(Rewards):
    """Under a floor where the text says so."""

    def score_many(self, examples, strict=False):
        examples = list(examples)
        for example, found in zip(examples, super().score_many(examples), strict=True):
            yield replace(found, flags=("below_safety",)) if "!" in example.response else found


def test_what_is_under_a_floor_comes_behind():
    value = {"! Answer: 1": 0.9, "? Answer: 1": 0.5}.get
    model = Floored(value)
    row = run("rejection", pool(*("! Answer: 1", "? Answer: 1")), model, threshold=0.4, n=4)
    assert row["response"] == "? Answer: 1" and len(row["candidates"]) == 2
    assert [one["flags"] for one in row["candidates"]] == [["below_safety"], []]
    for name in ("weighted_best_of_n", "best_of_n"):
        assert run(name, pool("! Answer: 1", "? Answer: 1"), model, n=2)["response"] == "? Answer: 1"


def test_options_are_checked():
    with pytest.raises(BadInput, match="did you mean 'beam'"):
        options("beem", {})
    with pytest.raises(BadInput, match="width"):
        options("beam", {"widht": 2})
    with pytest.raises(BadInput, match="multiple"):
        options("dvts", {"n": 6})
    with pytest.raises(BadInput, match="option of best_of_n"):
        options("best_of_n", {"n": 0})
    with pytest.raises(BadInput, match="--reward"):
        run("best_of_n", ABAC)
    with pytest.raises(BadInput, match="budget"):
        run("majority", ABAC, budget=0)


# Invariances


THOUSANDTHS = st.integers(-3000, 3000).map(lambda n: n / 1000)  # a shift would swallow smaller differences


@settings(max_examples=25)
@drawn(st.lists(st.tuples(st.sampled_from("abc"), THOUSANDTHS), min_size=1, max_size=8), st.floats(-5, 5))
def test_softmax_and_min_max_votes_do_not_see_a_shift(rows, shift):
    answers, scores = zip(*rows, strict=True)
    for normalize in ("softmax", "min_max"):
        plain = _choice.weights(scores, normalize)
        moved = _choice.weights([score + shift for score in scores], normalize)
        assert plain == pytest.approx(moved, abs=1e-6)
    assert _choice.best(judged(answers, scores)).chosen == scores.index(max(scores))


def test_problems_searched_together_are_as_each_alone():
    rows = [{"prompt": f"q{i}", "answer": "1"} for i in range(5)]
    for name in ("beam", "dvts", "mcts", "best_of_n"):
        together = search(name, rows, Tree(TRAP), Rewards(trap))
        alone = [row for one in rows for row in search(name, [one], Tree(TRAP), Rewards(trap))]
        assert together == alone
    policy = Tree(TRAP)
    search("beam", rows, policy, Rewards(trap), n=2, width=2)
    assert policy.batches == [5, 5, 5]  # a beginning of each problem, three times
