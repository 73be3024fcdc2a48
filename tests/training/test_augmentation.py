"""RRM's pairs: each is what the paper says it is, whatever the pairs; RLHFlow's script, run here, makes others."""

import random
import re
from collections import Counter
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.formats import base
from karat.training import augmentation
from karat.training.augmentation import augment_file, rrm, unusable
from karat.types import BadInput, Example, Message, Pair


def pair(prompt, chosen, rejected, **more):
    asked = (Message("user", prompt),)
    return Pair(Example(asked, chosen), Example(asked, rejected), **more)


def pairs(count, prompts=None):
    return [pair(f"Q{n % (prompts or count)}", f"good {n}", f"bad {n}") for n in range(count)]


def faults(originals, made):
    """What is wrong with pairs (prompt, chosen, rejected, tie) that were made of the originals."""
    own = {}
    for one in originals:
        own.setdefault(base.prompt_key(one), set()).update((one.chosen.response, one.rejected.response))
    found = Counter()
    for prompt, chosen, rejected, tie in made:
        found["an answer against itself"] += chosen == rejected
        found["an answer of another prompt wins"] += not tie and chosen not in own[prompt]
        found["an answer of this prompt loses or ties"] += rejected in own[prompt] or (tie and chosen in own[prompt])
        found["no answer of the data"] += not {chosen, rejected} <= set().union(*own.values())
    return +found


def flat(made):
    return [(base.prompt_key(p), p.chosen.response, p.rejected.response, p.preference == 0.5) for p in made]


@pytest.mark.parametrize("count", [3, 4, 7, 40])
@pytest.mark.parametrize("seed", range(5))
def test_fourteen_pairs_of_each(count, seed):
    originals = pairs(count)
    made = list(rrm(originals, seed))
    assert len(made) == 14 * count and faults(originals, flat(made)) == {}
    for place, one in enumerate(originals):
        of_one = made[14 * place : 14 * place + 14]
        assert all(p.chosen.prompt == p.rejected.prompt == one.chosen.prompt for p in of_one)
        others = {p.rejected.response for p in of_one[:8]}
        won = {(p.chosen.response, p.rejected.response) for p in of_one[:8]}
        assert len(others) == 4 and won == set(product((one.chosen.response, one.rejected.response), others))
        assert {p.preference for p in of_one[:8]} == {1.0} and {p.preference for p in of_one[8:]} == {0.5}
        tied = {frozenset((p.chosen.response, p.rejected.response)) for p in of_one[8:]}
        assert tied == set(map(frozenset, combinations(others, 2)))
    # Each pair is taken twice, so each answer loses four times: twice to both of another's answers.
    assert set(Counter(p.rejected.response for p in made if p.preference == 1.0).values()) == {4}


def test_a_seed_decides():
    originals = pairs(30)
    assert list(rrm(originals, 1)) == list(rrm(originals, 1)) != list(rrm(originals, 2))


def test_weight_context_and_origin_are_those_of_the_prompt():
    asked = (Message("user", "Q"),)
    sides = (Example(asked, text, {"reference": "r"}) for text in "ab")
    first = Pair(*sides, preference=0.8, margin=2.0, weight=3.0, origin="f:1")
    made = list(rrm([first, *pairs(2)], 0))[:14]
    assert {(p.weight, p.margin, p.origin, p.chosen.context["reference"]) for p in made} == {(3.0, 0.0, "f:1", "r")}


def test_the_order_of_a_tie_is_drawn():
    made = [p for p in rrm(pairs(200), 0) if p.preference == 0.5]
    first = sum(p.chosen.response.startswith("good") for p in made)
    second = sum(p.rejected.response.startswith("good") for p in made)
    assert len(made) == 1200 and abs(first - second) < 120


ROW = st.tuples(st.integers(0, 5), st.integers(0, 12), st.integers(0, 12)).filter(lambda row: row[1] != row[2])


@settings(max_examples=200)
@given(st.lists(ROW, min_size=1, max_size=14), st.integers(0, 9))
def test_whatever_the_pairs_no_answer_meets_itself_or_its_prompt(rows, seed):
    originals = [pair(f"Q{prompt}", f"y{one}", f"y{two}") for prompt, one, two in rows]
    try:
        made = list(rrm(originals, seed))
    except BadInput as error:
        assert re.search(r"pairs of [12] prompts? that it can use|pairs share the (prompt|answer) '", str(error))
        return
    assert len(made) == 14 * len(rows)
    for place, one in enumerate(originals):
        others = {p.rejected.response for p in made[14 * place : 14 * place + 8]}
        assert len(others) == 4 and others.isdisjoint((one.chosen.response, one.rejected.response))


@pytest.mark.parametrize("prompts", [3, 4, 5])
def test_as_few_prompts_as_can_be(prompts):
    """With three prompts, j and k are of the other two for every pair: nothing else is left."""
    originals = pairs(60, prompts)
    made = list(rrm(originals, 0))
    assert len(made) == 840 and faults(originals, flat(made)) == {}


@pytest.mark.parametrize(
    ("originals", "said"),
    [
        ([], "there are pairs of 0 prompts"),
        (pairs(6, 2), "pairs of 2 prompts that it can use; give pairs of at least three"),
        (pairs(6) + [pair("Q0", f"x{n}", f"y{n}") for n in range(4)], "5 of 10 pairs share the prompt 'user: Q0'"),
        ([pair(f"Q{n}", "I cannot say", f"y{n}") for n in range(3)], "3 of 3 pairs share the answer 'I cannot say'"),
    ],
)
def test_too_few_or_too_alike(originals, said):
    with pytest.raises(BadInput, match=re.escape(said)):
        list(rrm(originals, 0))


def test_what_rrm_can_make_nothing_of():
    one = pair("Q", "a", "b")
    other = Example((Message("user", "R"),), "b")
    assert unusable(one) is None
    assert unusable(pair("Q", "a", "a")) == "its two answers are the same"
    assert unusable(Pair(one.chosen, other)) == "its two answers have different prompts or contexts"
    assert unusable(Pair(Example((), "a"), Example((), "b"))) == "its prompt cannot be told from its answers"


# Negative controls: what RLHFlow's script does (pair-pm/RRM/rrm_augmentation.py)


def shuffled(originals, chance):
    """Its partners: a shuffle, and a shuffle of that, neither of which keeps a pair from itself."""
    second = list(originals)
    chance.shuffle(second)
    third = list(second)
    chance.shuffle(third)
    for one, j, k in zip(originals, second, third, strict=True):
        mine, others = ([a.response for p in found for a in (p.chosen, p.rejected)] for found in ([one], [j, k]))
        key = base.prompt_key(one)
        yield from ((key, chosen, other, False) for chosen, other in product(mine, others))
        yield from ((key, *tied, True) for tied in combinations(others, 2))


def test_shuffles_set_answers_against_themselves():
    originals = pairs(50)
    found = sum((faults(originals, shuffled(originals, random.Random(seed))) for seed in range(20)), Counter())
    assert found["an answer against itself"] > 20 and found["an answer of this prompt loses or ties"] > 20
    assert all(faults(originals, flat(rrm(originals, seed))) == {} for seed in range(20))


def test_answers_of_the_same_prompt_must_not_meet():
    """Partners of other rows alone are not enough where prompts come twice."""
    originals = pairs(12, 6)
    rotated = [originals[6:] + originals[:6], originals[1:] + originals[:1]]
    made = [
        (base.prompt_key(one), one.chosen.response, other.chosen.response, False)
        for found in rotated
        for one, other in zip(originals, found, strict=True)
    ]
    assert faults(originals, made)["an answer of this prompt loses or ties"] == 12


def test_a_split_at_the_marks_keeps_their_blanks():
    """Its parser leaves the blanks of the template in the texts, and its writer lets them travel."""
    row = base.get("pairwise").write(pair("Q", "a", "b"))
    _, context, a, b = re.split(r"\[CONTEXT\]|\[RESPONSE A\]|\[RESPONSE B\]", row["messages"][0]["content"])
    assert {a, b} == {" b ", " a \n"} or {a, b} == {" a ", " b \n"}
    travelled = {"role": "user", "content": f"[CONTEXT]{context}[RESPONSE A]{b}[RESPONSE B]{a}"}
    with pytest.raises(BadInput, match="one space beside each and a space and line end behind"):
        base.get("pairwise").read({"messages": [travelled, row["messages"][1]]}, "")
    (read,) = base.get("pairwise").read(row, "")
    assert read == pair("Q", "a", "b")


# Files


def test_a_file_holds_the_pairs_first(tmp_path):
    data = tmp_path / "p.jsonl"
    different = Pair(Example((Message("user", "R"),), "a"), Example((), "b"))
    originals = [*pairs(5), pair("Q9", "a", "a"), different]
    base.write(originals, data, "preference")
    found = augment_file("rrm", str(data), tmp_path / "o.parquet")
    items = base.load(tmp_path / "o.parquet").items
    assert items[:7] == originals and items[7:] == list(rrm(pairs(5), 0))
    assert (found["rows"], found["originals"], found["augmented"], found["ties"]) == (77, 7, 70, 30)
    assert (found["pairs"], found["used"]) == (7, 5)
    assert found["unaugmented"] == {unusable(originals[5]): 1, unusable(different): 1}
    found = augment_file("rrm", str(data), tmp_path / "only.csv", originals=False)
    assert (found["rows"], found["originals"]) == (70, 0) and len(base.load(tmp_path / "only.csv").items) == 70


def test_a_file_for_pairwise_models(tmp_path):
    data = tmp_path / "p.jsonl"
    system = Example((Message("system", "s"), Message("user", "Q9")), "a")
    marked = pair("Q8", "see [RESPONSE A]", "b")
    unsure = pair("Q7", "a", "b", preference=0.75)
    base.write([*pairs(5), Pair(system, Example(system.prompt, "b")), marked, unsure], data, "preference")
    found = augment_file("rrm", str(data), tmp_path / "o.jsonl", written="pairwise")
    assert (found["rows"], found["originals"], found["used"]) == (75, 5, 5) and len(found["unwritten"]) == 3
    items = base.load(tmp_path / "o.jsonl").items
    assert items == [*pairs(5), *rrm(pairs(5), 0)]
    labels = Counter(row["messages"][1]["content"] for _, row in base.rows(tmp_path / "o.jsonl"))
    assert labels["Same"] == 30 and min(labels["A"], labels["B"]) > 10


def test_the_real_pairs(data_folder, tmp_path):
    data = f"{data_folder / 'hh_rlhf_harmless' / 'test.jsonl.gz'}[:400]"
    found = augment_file("rrm", data, tmp_path / "o.jsonl")
    assert found["rows"] == found["originals"] + 14 * found["used"] and found["used"] + 1 >= found["pairs"] == 400
    items = base.load(tmp_path / "o.jsonl").items
    originals, made = items[:400], items[400:]
    assert originals == base.load(data).items
    assert faults(originals, flat(made)) == {}


def test_methods_and_formats_are_named():
    assert augmentation.METHODS == ("rrm",) and set(augmentation.FORMATS) <= set(base.names())
