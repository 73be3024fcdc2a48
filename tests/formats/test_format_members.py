"""Each format's rows: what is read from them, how they are told apart, and what is refused."""

import json
import subprocess
import sys

import pytest

from karat.formats import base
from karat.types import BadInput, Example, Labelled, Message, Pair, Ranking, Stepped

USER, ASSISTANT = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "a"}
OTHER = {"role": "assistant", "content": "b"}
Q = (Message("user", "Q"),)
QA, QB = Example(Q, "a"), Example(Q, "b")
IN_STEPS = Example.of_steps(Q, ["a", "b"])


def read(name, row):
    return base.get(name).read(row, "f:1")


def save(tmp_path, *rows, name="data.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("row", "chosen", "rejected"),
    [
        # TRL's vector: implicit text holds the prompt, and cannot be cut
        ({"chosen": "Qa", "rejected": "Qb"}, Example((), "Qa"), Example((), "Qb")),
        ({"prompt": "Q", "chosen": "a", "rejected": "b"}, QA, QB),
        ({"prompt": [USER], "chosen": [ASSISTANT], "rejected": [OTHER]}, QA, QB),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]}, QA, QB),
        ({"prompt": [USER], "chosen": "a", "rejected": "b"}, QA, QB),
        ({"prompt": "Q", "chosen": [ASSISTANT], "rejected": [OTHER]}, QA, QB),
        # a text prompt that the messages repeat, as in ultrafeedback_binarized
        ({"prompt": "Q", "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]}, QA, QB),
        ({"prompt": "", "chosen": "", "rejected": "b"}, *(Example((Message("user", ""),), r) for r in ("", "b"))),
        ({"prompt": [], "chosen": [ASSISTANT], "rejected": [OTHER]}, Example((), "a"), Example((), "b")),
    ],
)
def test_preference_layouts(row, chosen, rejected):
    row |= {"prompt_id": "x", "score_chosen": 7.0, "messages": [USER, ASSISTANT]}
    assert base.detect(row) == "preference"
    assert read("preference", row) == [Pair(chosen, rejected)]


def test_preference_continues_a_conversation_and_repeats_the_last_turn():
    turns = [USER, ASSISTANT, {"role": "user", "content": "more"}]
    prompt = tuple(Message(**turn) for turn in turns)
    expected = [Pair(Example(prompt, "a"), Example(prompt, "b"))]
    explicit = {"prompt": [USER], "chosen": [*turns[1:], ASSISTANT], "rejected": [*turns[1:], OTHER]}
    repeated = {"prompt": "more", "chosen": [*turns, ASSISTANT], "rejected": [*turns, OTHER]}
    assert read("preference", explicit) == read("preference", repeated) == expected


def test_implicit_prompts_may_differ():
    row = {"chosen": [USER, ASSISTANT], "rejected": [OTHER]}
    assert read("preference", row) == [Pair(QA, Example((), "b"))]


def test_optional_columns():
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", "preference": 0.5, "margin": -2, "weight": 0}
    row["context"] = {"reference": "r"}
    (pair,) = read("preference", row)
    assert (pair.preference, pair.margin, pair.weight, pair.origin) == (0.5, -2.0, 0.0, "f:1")
    assert pair.chosen.context == pair.rejected.context == {"reference": "r"}


def test_hh_keeps_the_exact_text_and_unmerged_turns():
    chosen = "\n\nHuman:  Q \n\nAssistant: a\n\nAssistant: So, \n\nHuman:x\n"
    row = {"chosen": chosen, "rejected": "\n\nHuman: Q\n\nAssistant: "}
    assert base.detect(row) == "hh"
    (pair,) = read("hh", row)
    assert pair.chosen == Example((Message("user", " Q "), Message("assistant", "a")), "So, \n\nHuman:x\n")
    assert pair.rejected == Example(Q, "")
    assert base.get("hh").write(pair) == row


def test_hh_reads_a_stripped_empty_turn():
    row = {"chosen": "\n\nHuman:\n\nAssistant: a", "rejected": "\n\nHuman: Q\n\nAssistant:"}
    (pair,) = read("hh", row)
    assert pair.chosen == Example((Message("user", ""),), "a")
    assert pair.rejected == Example(Q, "")


@pytest.mark.parametrize("column", ["label", "correct", "is_correct", "score", "rating"])
@pytest.mark.parametrize("value", [True, False, 1, 0.25])
def test_outcome_labels(column, value):
    for row in ({"prompt": "Q", "response": "a"}, {"messages": [USER, ASSISTANT]}):
        row |= {column: value, "id": 3}
        assert base.detect(row) == "outcome"
        assert read("outcome", row) == [Labelled(QA, float(value))]


def test_kwise_ranks_and_scores():
    row = {"prompt": "Q", "responses": ["a", "b", "c"]}
    answers = tuple(Example(Q, r) for r in "abc")
    assert base.detect(row | {"ranks": [1, 2, 2]}) == base.detect(row | {"scores": []}) == "kwise"
    assert read("kwise", row | {"ranks": [1, 3.0, 1]}) == [Ranking(answers, (1, 3, 1))]
    assert read("kwise", row | {"scores": [-0.5, 9, -0.5], "weight": 2}) == [Ranking(answers, (2, 1, 2), 2.0)]


def test_model_solutions_gives_several_items():
    row = {"question": "Q", "ground_truth": "…", "6b": {"is_correct": False, "solution": "a"}, "7b": None}
    row["175b"] = {"is_correct": True, "solution": "b"}
    assert base.detect(row) == "model_solutions"
    assert read("model_solutions", row) == [Labelled(QA, 0.0), Labelled(QB, 1.0)]


def test_examples_without_a_label():
    for row in ({"prompt": "Q", "response": "a"}, {"messages": [USER, ASSISTANT]}, {"prompt": [USER], "response": "a"}):
        assert base.detect(row | {"id": 1}) == "examples"
        assert read("examples", row) == [QA]
    (example,) = read("examples", {"prompt": "Q", "response": "a", "context": {"reference": [1]}})
    assert example.context == {"reference": [1]}


def test_answers_in_steps_without_labels_for_them():
    row = {"prompt": "Q", "steps": ["a", "b"], "id": 1}
    assert base.detect(row) == "examples"
    assert read("examples", row) == [IN_STEPS] == read("examples", {**row, "messages": None, "response": None})
    assert (IN_STEPS.response, IN_STEPS.steps) == ("a\n\nb", ("a", "b"))
    assert base.detect(row | {"label": 1}) == "outcome"
    assert read("outcome", row | {"label": 1}) == [Labelled(IN_STEPS, 1.0)]


def test_an_answer_that_is_there_wins_over_steps():
    for row in ({"prompt": "Q", "response": "a", "steps": 500}, {"messages": [USER, ASSISTANT], "steps": 500}):
        assert read("examples", row) == [QA]


EXAMPLE = {"prompt": "Q", "response": "a", "messages": [USER, ASSISTANT]}


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("preference", {"chosen": "a", "rejected": "b"}),
        ("hh", {"chosen": "\n\nHuman: Q\n\nAssistant: a", "rejected": "\n\nHuman: Q\n\nAssistant: b"}),
        ("outcome", {"label": None}),
        ("kwise", {"responses": ["a", "b"], "scores": [1, 2]}),
        ("model_solutions", {"question": "Q", "m": {"is_correct": True, "solution": "a"}}),
        ("examples", {}),
    ],
)
def test_every_format_wins_over_examples(name, columns):
    assert base.detect(EXAMPLE | columns) == name


def test_one_transcript_is_no_hh():
    assert base.detect({"chosen": "\n\nHuman: Q\n\nAssistant: a", "rejected": "b"}) == "preference"


def test_ambiguous_columns_are_refused():
    with pytest.raises(BadInput, match=r"f\.jsonl has the columns .*, which fit outcome and preference; name the"):
        base.detect(EXAMPLE | {"chosen": "a", "rejected": "b", "label": 1}, "f.jsonl")


def test_unknown_columns_name_the_nearest_format_and_where_all_are_listed():
    with pytest.raises(BadInput) as caught:
        base.detect({"promt": "Q", "chosn": "a", "rejeted": "b"}, "f.jsonl")
    text = str(caught.value)
    assert text.startswith(
        "f.jsonl has the columns promt, chosn, rejeted, which fit no format;"
        " rename promt to prompt, chosn to chosen, rejeted to rejected, or all to those of "
    )
    near = [name for name in base.names() if f"{name} ({base.get(name).COLUMNS})" in text]
    assert len(near) == 1 and near[0] in ("preference", "hh") and "karat formats" in text
    with pytest.raises(BadInput, match=r"no format 'zork' \(karat formats lists them\)"):
        base.get("zork")
    with pytest.raises(BadInput, match="did you mean 'stepwise'"):
        base.get("stepwize")


def test_a_wrong_format_names_the_one_that_fits(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "Q", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(BadInput, match="its columns are those of preference"):
        base.load(path, "stepwise")


@pytest.mark.parametrize(
    ("row", "column", "word"),
    [
        ({"promt": "Q", "chosen": "a", "rejected": "b"}, "promt", "prompt"),
        ({"prompt": "Q", "chosen": "a", "rejected": "b", "wieght": 2}, "wieght", "weight"),
        ({"pronpt": "Q", "chosen": "a", "rejected": "b"}, "pronpt", "prompt"),
        ({"Prompt": "Q", "chosen": "a", "rejected": "b"}, "Prompt", "prompt"),
        ({"prompts": "Q", "chosen": "a", "rejected": "b"}, "prompts", "prompt"),
        ({"prompt": "Q", "response": "a", "label": 1, "Weight": 2}, "Weight", "weight"),
        ({"prompt": "Q", "response": "a", "lable": 1}, "lable", "label"),
        ({"prompt": "Q", "response": "a", "Score": 1}, "Score", "score"),
        ({"prompt": "Q", "responses": ["a", "b"], "rnaks": [1, 2], "response": "a"}, "rnaks", "ranks"),
    ],
)
def test_a_misspelt_column_that_may_be_missing_is_named(tmp_path, row, column, word):
    """Pairs without their prompts, or all with the weight 1, would be used without a word."""
    with pytest.raises(BadInput, match=f"has a column '{column}'; did you mean '{word}'"):
        base.load(save(tmp_path, row))


METADATA = ["source", "sources", "reference", "content", "contexts", "scope", "store", "labels", "height", "Question"]


@pytest.mark.parametrize("column", [*METADATA, "prompt_id", "scored", "rank", "weight_kg"])
def test_columns_of_other_meanings_are_left_alone(tmp_path, column):
    answer = {"prompt": "Q", "response": "a", column: "x"}
    assert base.load(save(tmp_path, {"chosen": "a", "rejected": "b", column: "x"})).format == "preference"
    assert base.load(save(tmp_path, answer)).format == "examples"
    for label in ("label", "correct", "is_correct", "score", "rating"):
        assert base.load(save(tmp_path, {**answer, label: 1})).format == "outcome"


def test_a_column_that_is_there_is_not_missed(tmp_path):
    answer = {"prompt": "Q", "response": "a", "label": 1, "lable": 2, "Prompt": "x", "prompts": "y", "Messages": "z"}
    assert base.load(save(tmp_path, answer)).format == "outcome"
    ranked = {"prompt": "Q", "responses": ["a", "b"], "ranks": [1, 2], "Scores": 1, "prompts": "y"}
    assert base.load(save(tmp_path, ranked)).format == "kwise"


def test_a_needed_column_that_is_misspelt_is_named_where_the_format_is_given(tmp_path):
    with pytest.raises(BadInput, match="has a column 'rejcted'; did you mean 'rejected'"):
        base.load(save(tmp_path, {"chosen": "a", "rejcted": "b"}), "preference")


def test_the_columns_that_are_known():
    pair = {"chosen", "rejected", "preference", "margin", "weight", "context"}
    answer = {"prompt", "response", "steps", "messages", "context"}
    more = {"weight", "context"}
    assert {name: base.known_columns(name) for name in base.names()} == {
        "attributes": answer | {"instruction", "source", "completions", "system_output", "attributes", "weight"},
        "examples": answer,
        "hhh": {"input", "targets", "chosen_instruction", "rejected_instruction", "source"} | more,
        "hh": pair,
        "judgebench": {"question", "response_A", "response_B", "label", "source"}
        | {"pair_id", "original_id", "response_model"}
        | more,
        "kwise": {"prompt", "responses", "ranks", "scores"} | more,
        "llmbar": {"input", "output_1", "output_2", "label", "subset", "margin"} | more,
        "math_shepherd": {"input", "label", "task"} | more,
        "mistake": {"input", "steps", "mistake_index", "target", "answer", "task"} | more,
        "model_solutions": {"question"} | more,
        "omega_prm": {"question", "reasoning_steps", "final_answer", "question_id"} | more,
        "outcome": answer | {"label", "correct", "is_correct", "score", "rating", "weight"},
        "pairwise": {"conversations", "messages", "margin"} | more,
        "ppe": {"prompt", "response_1", "response_2", "winner", "scores", "model_a", "model_b"}
        | {"question_id", "language", "model_name"}
        | more,
        "preference": pair | {"prompt"},
        "prm800k": {"question", "label"} | more,
        "prmbench": {"modified_process", "error_steps", "original_process", "classification", "idx"}
        | {"question", "modified_question", "original_question"}
        | more,
        "processbench": {"problem", "steps", "label", "id", "generator", "final_answer_correct"} | more,
        "rewardbench": {"prompt", "chosen", "rejected", "subset", "id", "chosen_model", "rejected_model"} | more,
        "rewardbench2": {"prompt", "chosen", "rejected", "num_correct", "subset", "id", "total_completions"} | more,
        "rm_bench": {"prompt", "chosen", "rejected", "domain", "id", "subset"} | more,
        "stepwise": {"prompt", "completions", "steps", "labels"} | more,
        "ties": {"prompt", "instruction", "response_a", "response_b", "response1", "response2"}
        | {"votes", "annotator1", "margin"}
        | more,
        "truthfulqa": {"question", "mc0_targets", "mc1_targets", "mc2_targets"} | more,
    }
    assert all(word in base.get(name).COLUMNS for name in base.names() for word in base.known_columns(name))


def test_an_unknown_format_names_the_nearest(tmp_path):
    path = save(tmp_path, {"chosen": "a", "rejected": "b"})
    with pytest.raises(BadInput, match="no format 'preferences'; did you mean 'preference'"):
        base.load(path, "preferences")


HH = "\n\nHuman: Q\n\nAssistant: a"
TEXTS = {"prompt": "Q", "chosen": "a", "rejected": "b"}
CHATS = {"chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]}
HUMANS = {"chosen": HH, "rejected": HH}
ANSWER = {"prompt": "Q", "response": "a"}
CHAT = {"messages": [USER, ASSISTANT]}
KWISE = {"prompt": "Q", "responses": ["a", "b"]}
RIGHT = {"is_correct": True, "solution": "a"}
SOLVED = {"question": "Q", "m": RIGHT}
NAN, INF = float("nan"), float("inf")

REFUSED_ROWS = [
    ("preference", TEXTS, {"chosen": None}, "`chosen` is missing"),
    ("preference", TEXTS, {"rejected": NAN}, "`rejected` is NaN"),
    ("preference", TEXTS, {"prompt": None}, "`prompt` is missing"),
    ("preference", TEXTS, {"chosen": 3}, "`chosen` has to be text or a list of messages, but it is 3"),
    ("preference", TEXTS, {"chosen": []}, "`chosen` and `rejected` have to be both text or both messages"),
    ("preference", TEXTS, {"preference": 1.5}, "preference is 1.5, but it has to be a number from 0 to 1"),
    ("preference", TEXTS, {"weight": -1}, "weight is -1.0, but it has to be"),
    ("preference", TEXTS, {"margin": "big"}, "`margin` has to be a number, but it is 'big'"),
    ("preference", TEXTS, {"margin": INF}, "`margin` has to be a finite number, but it is inf"),
    ("preference", TEXTS, {"context": "text"}, "`context` has to be a mapping, but it is 'text'; rename"),
    ("preference", TEXTS, {"chosen": "\ud800"}, "`chosen` holds half of a surrogate pair"),
    ("preference", TEXTS, {"tools": [{"name": "f"}]}, "`tools` is not supported yet; remove the column"),
    ("preference", TEXTS, {"chat_template_kwargs": {"x": 1}}, "`chat_template_kwargs` is not supported yet"),
    ("preference", CHATS, {"chosen": []}, "`chosen` is an empty list"),
    ("preference", CHATS, {"chosen": [USER]}, "the last message of `chosen` has to be the assistant's, but its"),
    ("preference", CHATS, {"chosen": [{"from": "x"}]}, "a message needs a text `role` and a text `content`"),
    ("preference", CHATS, {"chosen": [ASSISTANT | {"content": None}]}, "a message needs a text `role`"),
    ("preference", CHATS, {"chosen": [ASSISTANT | {"tool_calls": [1]}]}, "`chosen` holds `tool_calls`, which are"),
    ("hh", HUMANS, {"rejected": "hello"}, "`rejected` has to start with two line ends and Human:"),
    ("hh", HUMANS, {"chosen": HH + "\n\nHuman: bye"}, "`chosen` ends with a human turn"),
    ("hh", HUMANS, {"chosen": [USER]}, "`chosen` has to be text, but it is ["),
    ("outcome", ANSWER | {"label": 1}, {"label": None}, "`label` is missing"),
    ("outcome", ANSWER | {"rating": 1}, {"rating": NAN}, "`rating` is NaN"),
    ("outcome", ANSWER | {"rating": 1}, {"rating": -INF}, "`rating` has to be a finite number"),
    ("outcome", ANSWER | {"label": 1}, {"label": 10**400}, "`label` has to be a finite number"),
    ("outcome", ANSWER | {"correct": 1}, {"correct": 2}, "`correct` is 2, but it has to be true, false or a number"),
    ("outcome", ANSWER | {"label": 1}, {"label": "yes"}, "`label` has to be a number, but it is 'yes'"),
    ("outcome", ANSWER | {"label": 1}, {"label": "0.5"}, "`label` has to be a number, but it is '0.5'"),
    ("outcome", ANSWER | {"label": 1}, {"score": 2}, "`label` and `score` both have a value; keep the one"),
    ("outcome", ANSWER | {"label": 1}, {"response": None}, "`response` is missing"),
    ("outcome", CHAT | {"label": 1}, {"messages": []}, "`messages` is an empty list"),
    ("outcome", CHAT | {"label": 1}, {"messages": "[]"}, "`messages` has to be text or a list of messages"),
    ("kwise", KWISE | {"ranks": [1, 2]}, {"ranks": [1]}, "`responses` has 2 values and `ranks` has 1; they have to"),
    ("kwise", KWISE | {"ranks": [1, 2]}, {"ranks": [0, 1]}, "a rank is 0, but ranks have to be whole numbers from 1"),
    ("kwise", KWISE | {"ranks": [1, 2]}, {"ranks": [1, 1.5]}, "a rank is 1.5, but"),
    ("kwise", KWISE | {"ranks": [1, 2]}, {"scores": [2, 1]}, "`ranks` and `scores` both have a value"),
    ("kwise", KWISE | {"ranks": [1, 2]}, {"responses": [], "ranks": []}, "`ranks` is an empty list"),
    ("kwise", KWISE | {"ranks": [1, 2]}, {"responses": "ab"}, "`responses` has to be a list, but it is 'ab'"),
    ("kwise", KWISE | {"ranks": [1, 2]}, {"responses": ["a"], "ranks": [1]}, "1 answers and 1 ranks; a ranking needs"),
    ("kwise", KWISE | {"scores": [1, 2]}, {"scores": [1, NAN]}, "`scores` has to be a finite number, but it is nan"),
    ("kwise", KWISE | {"scores": [1, 2]}, {"scores": [1, None]}, "`scores` has to be a number, but it is None"),
    ("examples", {"prompt": "Q", "steps": ["a"]}, {"steps": []}, "`steps` is an empty list"),
    ("examples", {"prompt": "Q", "steps": ["a"]}, {"steps": None}, "`steps` is missing"),
    ("examples", {"prompt": "Q", "steps": ["a"]}, {"steps": ["a", " "]}, "step 2 of `steps` is empty; remove it"),
    ("examples", ANSWER, {"response": ["a"]}, "`response` has to be text, but it is ['a']"),
    ("examples", CHAT, {"messages": [USER]}, "the last message of `messages` has to be the assistant's"),
    ("examples", CHAT, {"messages": None}, "`messages` is missing"),
    ("model_solutions", SOLVED, {"m": None}, "there is no object with `is_correct` and `solution`"),
    ("model_solutions", SOLVED, {"question": None}, "`question` is missing"),
    ("model_solutions", SOLVED, {"m": RIGHT | {"solution": None}}, "`solution` is missing"),
    ("model_solutions", SOLVED, {"m": RIGHT | {"is_correct": "no"}}, "`is_correct` has to be a number, but it is 'no'"),
]


@pytest.mark.parametrize(("name", "good", "change", "reason"), REFUSED_ROWS)
def test_a_row_that_cannot_be_used_is_named_by_line(tmp_path, name, good, change, reason):
    path = save(tmp_path, good, good | change, good)
    loaded = base.load(path)
    (problem,) = loaded.problems
    assert (loaded.format, loaded.rows, len(loaded.items)) == (name, 3, 2)
    assert (problem.origin, str(problem)) == (f"{path}:2", f"{path}:2: {problem.reason}")
    assert reason in problem.reason and path not in problem.reason


def test_empty_tools_are_no_problem(tmp_path):
    rows = [TEXTS | {"tools": tools, "chat_template_kwargs": {"x": None}} for tools in ([], None, "", {})]
    assert base.load(save(tmp_path, *rows)).problems == []


def test_a_column_that_a_row_lacks_is_missing_there(tmp_path):
    loaded = base.load(save(tmp_path, TEXTS, {"chosen": "a", "rejected": "b"}))
    assert [p.reason for p in loaded.problems] == ["`prompt` is missing"]


def test_no_usable_row_is_refused(tmp_path):
    path = save(tmp_path, *[TEXTS | {"chosen": None}] * 3)
    with pytest.raises(BadInput, match=r"none of the 3 rows of .* as preference; the first is .*:1: `chosen` is miss"):
        base.load(path)


@pytest.mark.parametrize(
    ("name", "item", "reason"),
    [
        ("preference", Labelled(QA, 1.0), "holds pairs, but this is a Labelled"),
        ("outcome", Pair(QA, QB), "holds labelled answers"),
        ("kwise", Pair(QA, QB), "holds rankings"),
        ("examples", Pair(QA, QB), "holds unlabelled answers"),
        ("model_solutions", QA, "holds labelled answers"),
        ("model_solutions", Labelled(QA, 0.5), "a label is 0.5; use outcome"),
        ("model_solutions", Labelled(Example((), "a"), 1.0), "one user message"),
        ("kwise", Ranking((QA, Example((), "b")), (1, 2)), "different ones"),
        ("kwise", Ranking((QA, QB), (0, 1)), "a rank is 0"),
        ("preference", Pair(QA, Example(Q, "b", {"k": 1})), "different ones"),
        ("preference", Pair(*[Example(Q, "b", {"k": (1, 2)})] * 2), "would not read back the same"),
        ("examples", Example(Q, "b", {"k": float("nan")}), "would not read back the same"),
        ("hh", Pair(QA, Example((Message("system", "s"),), "b")), "no role 'system'; write the pair as preference"),
        ("hh", Pair(QA, Example(Q, "b\n\nHuman: c")), "reads as the start of a turn"),
        ("hh", Pair(QA, IN_STEPS), "has no place for the steps of an answer; use outcome or stepwise"),
        ("preference", Pair(IN_STEPS, QA), "no place for the steps"),
        ("kwise", Ranking((QA, IN_STEPS), (1, 2)), "no place for the steps"),
        ("model_solutions", Labelled(IN_STEPS, 1.0), "no place for the steps"),
        ("examples", Example(Q, "a, b", {}, ("a", "b")), "is not that of its steps"),
        ("outcome", Stepped((IN_STEPS,), ((1.0, 0.0),)), "holds labelled answers, but this is a Stepped"),
    ],
)
def test_a_format_refuses_what_it_cannot_hold(tmp_path, name, item, reason):
    with pytest.raises(BadInput, match=f"item 1: .*{reason}"):
        base.write([item], tmp_path / "x.jsonl", name)
    assert list(tmp_path.iterdir()) == []


def test_members_keep_the_contract():
    sentences = base.describe()
    assert list(sentences) == base.names()
    assert {"preference", "hh", "outcome", "kwise", "examples", "model_solutions", "stepwise", "prm800k"} <= set(
        sentences
    )
    for name, sentence in sentences.items():
        member = base.get(name)
        assert sentence == (member.__doc__ or "").partition("\n")[0]
        assert sentence.endswith(".") and member.COLUMNS
        assert member.detect({}) is False


def test_the_contract_is_light():
    heavy = "{'torch', 'numpy', 'pandas', 'pyarrow', 'datasets', 'karat.formats.hh'}"
    code = f"import sys, karat.formats.base as b; b.describe(); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
