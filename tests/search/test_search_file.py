"""Files of problems to files of answers: resumed, counted, replayed, at known cost; over every kind of reward model."""

import json
from dataclasses import replace

import pytest
from scripted import ROWS, Rewards, Tree, pool
from transformers import AutoModelForSequenceClassification

import karat
import toys
from karat import arithmetic
from karat.formats import base as formats
from karat.models.heads import aggregated
from karat.rewards._equality import Judge
from karat.search import _file
from karat.search._arithmetic import Arithmetic
from karat.search._cost import Size, size_of
from karat.search._file import Run, search_file
from karat.search._policies import Wiring, open_policy
from karat.search._replay import Recorded, RecordedRewards, Recording, Replay, read_recording
from karat.search._rewards import open_reward
from karat.search._task import Task, read_task
from karat.search._work import Tools
from karat.search.base import PolicyError, Sampling, Start, options, search
from karat.types import BadInput, Message, Refused

MESSAGES = (Message("user", "q"),)


def problems(n=20):
    return [{"prompt": p.question, "answer": p.answer} for p in arithmetic.problems(n, split="test")]


@pytest.fixture
def data(tmp_path):
    formats.write_rows(problems(), str(tmp_path / "problems.jsonl"))
    return str(tmp_path / "problems.jsonl")


def run(name="majority", policy=None, reward=None, **given):
    seed, budget = given.pop("seed", 0), given.pop("budget", None)
    tools = Tools.of(policy or Arithmetic(0.6), reward, Task(), Judge(), seed=seed, budget=budget)
    return Run(name, options(name, given), tools)


class Dies(Arithmetic):
    """A policy that dies after some calls."""

    def __init__(self, calls):
        super().__init__(0.6)
        self.calls = calls

    def sample(self, starts):
        self.calls -= 1
        if self.calls < 0:
            raise PolicyError("it died")
        return super().sample(starts)


@pytest.mark.parametrize("name", ["best_of_n", "beam", "mcts"])
def test_a_run_that_was_killed_comes_to_the_same_file(name, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_file, "ROWS", 4)
    given = {"simulations": 4} if name == "mcts" else {"n": 4}
    reward = Rewards(lambda text: len(text) % 7 / 7)
    whole = search_file(run(name, reward=reward, **given), data, tmp_path / "whole.jsonl")
    with pytest.raises(PolicyError):
        search_file(run(name, Dies(3 if name == "best_of_n" else 9), reward, **given), data, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl.parts").is_dir()
    with pytest.raises(BadInput, match="holds answers of another method"):
        search_file(run(name, reward=reward, seed=1, **given), data, tmp_path / "again.jsonl")
    search_file(run(name, reward=reward, **given), data, tmp_path / "again.jsonl")
    assert "going on" in capsys.readouterr().err
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    assert whole["problems"] == whole["solved"] == 20 and not (tmp_path / "again.jsonl.parts").exists()


def test_seeds_decide_and_the_chunk_does_not(monkeypatch):
    found = search("majority", problems(), Arithmetic(0.6), n=4)
    monkeypatch.setattr(_file, "ROWS", 3)
    assert search("majority", problems(), Arithmetic(0.6), n=4) == found
    assert search("majority", problems(), Arithmetic(0.6), n=4, seed=1) != found
    longer = search("majority", problems(), Arithmetic(0.6), n=6)
    assert all(a["candidates"] == b["candidates"][:4] for a, b in zip(found, longer, strict=True))


def test_the_summary_counts_everything(tmp_path):
    rows = [*problems(4), {"prompt": "What is love?", "answer": "x"}, {"prompt": [], "answer": 1}]
    formats.write_rows(rows, str(tmp_path / "p.jsonl"))
    found = search_file(run(n=3), str(tmp_path / "p.jsonl"), tmp_path / "o.jsonl")
    assert (found["problems"], found["solved"], found["candidates"]) == (6, 4, {"least": 0, "most": 3})
    assert found["accuracy"]["n"] == 4 and found["not_had"] == 1  # without a prompt or a sample there is no verdict
    assert found["accuracy"]["low"] <= found["accuracy"]["value"] <= found["oracle"]["value"]
    (missing,) = found["failures"]["missing"].items()
    assert "built-in" in missing[0] and missing[1] == 3 and "the row" in found["failures"]
    tokens = [
        sum(len(c["response"].split()) for c in row["candidates"])
        for row in map(json.loads, (tmp_path / "o.jsonl").read_text().splitlines())
    ]
    assert found["spent"]["policy_tokens"] == sum(tokens[:5]) / 5


def test_no_right_answer_anywhere_and_none_known():
    wrong = search("majority", [{"prompt": "q", "answer": "7"}], Tree(pool("Answer: 1")), n=3)
    assert wrong[0]["correct"] is False and _file.summary(wrong, run())["oracle"]["value"] == 0
    unknown = search("majority", [{"prompt": "q"}], Tree(pool("Answer: 1")), n=3)
    assert unknown[0]["correct"] is None and _file.summary(unknown, run())["accuracy"] is None


def test_columns_are_checked(tmp_path):
    taken = {"prompt": "q", "response": "r"}
    for row, word in (({"questoin": "q"}, "rename questoin to question"), (taken, "response")):
        formats.write_rows([row], str(tmp_path / "p.jsonl"))
        with pytest.raises(BadInput, match=word):
            _file.read_rows(str(tmp_path / "p.jsonl"))


@pytest.mark.parametrize("name", ["problem", "question"])
def test_other_names_of_the_prompt(name):
    (row,) = search("majority", [{name: "q", "answer": "1"}], Tree(pool("Answer: 1")), n=1)
    assert row["correct"] and row[name] == "q" and row["prompt"] == [{"role": "user", "content": "q"}]
    (both,) = search("majority", [{"problem": "q", "question": "q"}], Tree(pool("Answer: 1")), n=1)
    assert "keep the one that is meant" in both["unsolved"] and "prompt" not in both


def test_a_row_of_truthfulqa_is_a_choice_of_letters():
    """The true answer is first in every row of the file, so a policy that takes the first letter must not be right."""
    rows = [{"question": f"q{i}?", "mc1_targets": {"yes": 1, "no": 0, "perhaps": 0, "never": 0}} for i in range(40)]
    found = search("majority", rows, Tree(pool("Answer: A")), n=1)
    right = [row["correct"] for row in found]
    assert 3 <= sum(right) <= 20
    for row, first in zip(found, right, strict=True):
        (message,) = row["prompt"]
        assert ("A. yes\n" in message["content"]) == first and message["content"].startswith(row["question"])
    (bad,) = search("majority", [{"question": "q", "mc1_targets": {"a": 1, "b": 1}}], Tree(pool("A")), n=1)
    assert "one true answer" in bad["unsolved"]


def test_parquet(data, tmp_path):
    search_file(run(n=2), data, tmp_path / "o.parquet")
    rows = [row for _, row in formats.rows(str(tmp_path / "o.parquet"))]
    again = search("majority", [{"prompt": r["prompt"], "answer": r["answer"]} for r in rows], Arithmetic(0.6), n=2)
    assert [r["response"] for r in rows] == [r["response"] for r in again] or len(rows) == 20
    assert [len(r["candidates"]) for r in rows] == [2] * 20


# Recordings


def test_what_was_searched_can_be_replayed(data, tmp_path):
    reward = Rewards(lambda text: len(text) % 7 / 7)
    search_file(run("best_of_n", reward=reward, n=6), data, tmp_path / "o.jsonl")
    recording = read_recording(str(tmp_path / "o.jsonl"))
    rewards = RecordedRewards(recording)
    assert rewards.output == "probability" and recording.delimiter == "\n"
    first = search("best_of_n", problems(), Arithmetic(0.6), reward, n=4)
    again = search("best_of_n", problems(), Replay(recording), rewards, n=4)
    assert [row["response"] for row in first] == [row["response"] for row in again]
    assert [row["spent"]["policy_tokens"] for row in first] == [row["spent"]["policy_tokens"] for row in again]
    more = search("best_of_n", problems(), Replay(recording), rewards, n=8)
    assert all("only 6 answers" in row["failures"][0]["reason"] and row["failures"][0]["count"] == 2 for row in more)


def test_unequal_pools_are_counted(tmp_path):
    rows = [{"prompt": "a", "response": f"Answer: {i}", "reward": i} for i in range(3)]
    rows += [{"prompt": "b", "response": "Answer: 1", "reward": -1.0}]
    formats.write_rows(rows, str(tmp_path / "pool.jsonl"))
    policy = open_policy(f"replay:{tmp_path}/pool.jsonl", Sampling())
    rewards = open_reward(f"replay:{tmp_path}/pool.jsonl")
    assert rewards.output == "logit"
    asked = [{"prompt": "a", "answer": "2"}, {"prompt": "b", "answer": "1"}]
    found = search("best_of_n", asked, policy, rewards, n=3)
    assert [row["correct"] for row in found] == [True, True]
    said = _file.summary(found, run())
    assert said["candidates"] == {"least": 1, "most": 3} and sum(said["failures"]["missing"].values()) == 2


TREE = {
    "question": "q",
    "reasoning_steps": {
        "text": "q",
        "mc_value": 0.5,
        "children": [
            {"text": "A", "mc_value": 0.9, "children": [{"text": "Answer: 9", "mc_value": 0.0, "children": []}]},
            {
                "text": "B",
                "mc_value": 0.5,
                "children": [
                    {"text": "Answer: 1", "mc_value": 1.0, "children": []},
                    {"text": "Answer: 2", "mc_value": 0.0, "children": []},
                ],
            },
        ],
    },
}


def test_recorded_trees_are_searched_with_their_own_values(tmp_path):
    formats.write_rows([TREE], str(tmp_path / "tree.jsonl"))
    recording = read_recording(str(tmp_path / "tree.jsonl"))
    policy, rewards = Replay(recording), RecordedRewards(recording)
    assert search("beam", ROWS, policy, rewards, n=8, width=8)[0]["final_answer"] == "9"  # the greedy trap
    assert search("beam", ROWS, policy, rewards, n=8, width=4, unique=True)[0]["final_answer"] == "1"
    assert search("mcts", ROWS, policy, rewards, simulations=32)[0]["final_answer"] == "1"
    plain, ahead = (search("beam", ROWS, policy, rewards, n=8, width=8, lookahead=n)[0] for n in (0, 1))
    assert plain["final_answer"] == "9"
    assert ahead["final_answer"] == "1"  # a step further A is at 0, and B at 1


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"prompt": "q", "response": None, "reward": 0.5}, "response"),
        ({"prompt": "q", "response": "x", "reward": 0.5, "step_rewards": ["high"]}, "step_rewards"),
    ],
)
def test_a_bad_row_of_a_recording_is_counted_and_the_others_stay(tmp_path, bad, said):
    rows = [{"prompt": "q", "response": f"Answer: {i}", "reward": i / 9, "tokens": 7} for i in range(5)]
    formats.write_rows([*rows[:2], bad, *rows[2:]], str(tmp_path / "pool.jsonl"))
    policy = open_policy(f"replay:{tmp_path}/pool.jsonl", Sampling())
    rewards = open_reward(f"replay:{tmp_path}/pool.jsonl")
    (row,) = search("best_of_n", ROWS, policy, rewards, n=5)
    assert row["response"] == "Answer: 4" and row["spent"]["policy_tokens"] == 35
    tools = Tools.of(policy, rewards, Task(), Judge())
    ((reason, count),) = _file.summary([row], replace(run(), tools=tools))["failures"]["the recording"].items()
    assert said in reason and count == 1


def test_bad_candidates_of_a_recording_are_counted(tmp_path):
    good = {"response": "Answer: 1", "reward": 0.5, "step_rewards": [0.5, None]}
    formats.write_rows([{"prompt": "q", "candidates": [good, "x", {"response": None}]}], str(tmp_path / "o.jsonl"))
    recording = read_recording(str(tmp_path / "o.jsonl"))
    assert sum(recording.unreadable.values()) == 2
    assert recording.answers[MESSAGES][0].step_rewards == (0.5, None)
    formats.write_rows([{"prompt": "q", "candidates": ["x"]}], str(tmp_path / "bad.jsonl"))
    with pytest.raises(BadInput, match="no answer that can be read"):
        read_recording(str(tmp_path / "bad.jsonl"))


def test_parts_of_a_recording_are_other_policies(tmp_path):
    formats.write_rows([{"prompt": "q", "response": str(i)} for i in range(4)], str(tmp_path / "p.jsonl"))
    words = (f"{tmp_path}/p.jsonl[:2]", f"{tmp_path}/p.jsonl[2:]")
    assert len({read_recording(word).fingerprint for word in words}) == 2


def test_steps_of_a_recording_with_another_delimiter_are_steps():
    """Drawn from all that was recorded, so that there are as many as are asked for."""
    policy = Replay(Recording({MESSAGES: [Recorded("a; b", 4), Recorded("c; d", 4)]}))
    ((*drawn,),) = policy.sample([Start(MESSAGES, "", (1, 2, 3), stop=("; ",), step=True)])
    assert {one.text for one in drawn} <= {"a; ", "c; "} and len(drawn) == 3
    ((*whole,),) = policy.sample([Start(MESSAGES, "", (1, 2, 3), stop=("; ",))])
    assert [getattr(one, "text", None) for one in whole] == ["a; ", "c; ", None]


def test_a_recording_without_rewards_or_rows(tmp_path):
    formats.write_rows([{"prompt": "a", "response": "b"}], str(tmp_path / "p.jsonl"))
    with pytest.raises(BadInput, match="no rewards"):
        open_reward(f"replay:{tmp_path}/p.jsonl")
    with pytest.raises(BadInput, match="aggregate"):
        open_reward(f"replay:{tmp_path}/p.jsonl", aggregate="min")
    with pytest.raises(BadInput):
        open_policy(f"replay:{tmp_path}/none.jsonl", Sampling())


def test_real_pools_and_trees(data_folder):
    pools = f"{data_folder}/gsm8k_model_solutions/example_model_solutions.jsonl.gz[:20]"
    rows = [row for _, row in formats.rows(pools)]
    asked = [{"prompt": row["question"], "answer": row["ground_truth"].split("A:")[-1]} for row in rows]
    task = Task(answer=r"A: ?(.*)")
    policy, rewards = open_policy(f"replay:{pools}", Sampling()), open_reward(f"replay:{pools}")
    found = search("best_of_n", asked, policy, rewards, n=4, task=task)
    right = [sum(own["is_correct"] for own in row.values() if isinstance(own, dict)) for row in rows]
    assert sum(row["correct"] for row in found) == sum(count > 0 for count in right)  # labels for rewards: the oracle
    assert [sum(c["correct"] for c in row["candidates"]) for row in found] == right
    recording = read_recording(f"{data_folder}/openr_samples/samples_math-aps-tree.jsonl.gz")
    asked = [{"prompt": list(prompt)} for prompt in recording.answers]
    for name, given in (("beam", {"n": 4, "width": 4}), ("dvts", {"n": 8}), ("mcts", {})):
        for row in search(name, asked, Replay(recording), RecordedRewards(recording), **given):
            assert row["response"] and row["reward"] is not None


# Tasks


def test_a_task_is_data(tmp_path):
    file = tmp_path / "task.yaml"
    file.write_text(
        'system: Think.\nprompt: "Q: {prompt}"\ndelimiter: "\\n"\nstop: ["\\nQ:"]\nanswer: "so (.*)\\\\."\n'
    )
    task = read_task(str(file))
    seen = []

    class Policy(Tree):
        def sample(self, starts):
            seen.extend(starts)
            return super().sample(starts)

    (row,) = search("majority", ROWS, Policy(pool("so 1.\nQ: another")), task=task, n=1)
    assert row["response"] == "so 1." and row["final_answer"] == "1" and row["correct"]
    assert [(m.role, m.content) for m in seen[0].prompt] == [("system", "Think."), ("user", "Q: q")]
    finished = {"": ["a\n"], "a\n": ["boxed{2}\n"], "a\nboxed{2}\n": ["and on\n"]}
    (row,) = search("beam", ROWS, Tree(finished), Rewards(len, output="rating"), task=Task(finished="boxed"), n=4)
    assert row["response"] == "a\nboxed{2}"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("delimeter: x", "delimiter"),
        ("[1]", "names and values"),
        ("answer: x", "groups"),
        ("finished: '('", "regular expression"),
        ("prompt: hi", "{prompt}"),
        ("stop: ['']", "empty"),
        ("{", "cannot be read"),
    ],
)
def test_a_wrong_task_is_said(tmp_path, text, word):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(BadInput, match=word):
        read_task(str(tmp_path / "t.yaml"))


# Reward models of every kind, and what they cost


@pytest.fixture(scope="module")
def prm(tmp_path_factory):
    folder = toys.save(tmp_path_factory.mktemp("prm"), toys.step_model(max_position_embeddings=2048))
    return karat.load(str(folder), kind="process", step_token="\n")


@pytest.mark.parametrize("aggregate", ["min", "last", "prod", "mean"])
def test_the_aggregate_that_was_asked_for_is_the_one_that_chooses(prm, aggregate):
    """search-and-learn aggregates by the last step whatever was asked for; here that is the negative control."""
    model = prm.with_options(aggregate=aggregate)
    rows = search("weighted_best_of_n", problems(3), Arithmetic(0.5), model, n=6)
    scored = [(c["reward"], c["step_rewards"]) for row in rows for c in row["candidates"]]
    assert all(r == pytest.approx(aggregated(model.spec, steps), abs=1e-6) for r, steps in scored)
    assert any(abs(r - steps[-1]) > 1e-6 for r, steps in scored) == (aggregate != "last")
    for row in search("beam", problems(3), Arithmetic(0.5), model, n=4, width=2):
        best = max(row["candidates"], key=lambda c: aggregated(model.spec, c["step_rewards"]))
        assert row["response"] == best["response"]


def test_a_step_costs_the_step(prm):
    """Beginnings grow, and what was scored before is in the engine's cache: each token of the tree is computed once."""
    prm.engine.clear()
    before = prm.engine.computed
    rows = search("beam", problems(2), Arithmetic(0.5), prm, n=8, width=4)
    computed = sum(row["spent"]["computed_tokens"] for row in rows)
    whole = sum(row["spent"]["reward_tokens"] for row in rows)
    assert computed == prm.engine.computed - before
    assert computed < 0.5 * whole
    size = size_of(prm)
    assert all(2 * size.parameters * r["spent"]["computed_tokens"] < r["spent"]["reward_flops"] for r in rows)


def test_flops_are_those_of_the_formula():
    assert Size(10, 3).flops(0, 4) == 2 * 10 * 4 + 4 * 3 * (1 + 2 + 3 + 4)
    assert Size(10, 3).flops(0, 4) + Size(10, 3).flops(4, 5) == Size(10, 3).flops(0, 9)
    assert size_of(None) is None and size_of(object(), 8e9) == Size(8_000_000_000)


def test_sizes_of_models(prm, tmp_path):
    network = prm.parts.backbone
    embedded = network.get_input_embeddings().weight.numel()
    assert size_of(prm).parameters == sum(p.numel() for p in network.parameters()) - embedded
    assert size_of(prm).attention == 2 * 4 * 8
    policy = open_policy(str(toys.save(tmp_path, toys.causal_model())), Sampling(max_tokens=5), Wiring(batch_size=4))
    head = policy.module.lm_head.weight.numel()
    assert size_of(policy).parameters == size_of(prm).parameters + head
    row = search("best_of_n", ROWS, policy, prm, n=3)[0]
    spent = row["spent"]
    assert spent["policy_tokens"] <= 15 and spent["prompt_tokens"] > 1
    each = [size_of(policy).flops(spent["prompt_tokens"], c["tokens"]) for c in row["candidates"]]
    assert len(each) == 3
    assert spent["policy_flops"] == size_of(policy).flops(0, spent["prompt_tokens"]) + sum(each)


@pytest.fixture(scope="module")
def models(model_folder, prm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    several = AutoModelForSequenceClassification.from_config(toys.config(num_labels=2))
    named = {"objectives": ["a", "b"], "weights": {"a": 1.0, "b": 0.5}}
    return {
        "outcome": karat.load(str(model_folder)),
        "probability": karat.load(str(model_folder), activation="sigmoid"),
        "process": prm,
        "multi_objective": karat.load(str(toys.save(folder / "o", several)), kind="multi_objective", **named),
        "pairwise": karat.load(str(toys.save(folder / "p", toys.causal_model())), kind="pairwise"),
    }


@pytest.mark.parametrize("name", ["weighted_best_of_n", "tournament", "beam", "dvts", "mcts", "adaptive"])
def test_every_method_over_every_kind(name, models):
    given = {"simulations": 2, "width": 2} if name == "mcts" else {"n": 4}
    for kind, model in models.items():
        adds = name in ("weighted_best_of_n", "mcts", "adaptive") and model.output != "probability"
        alone = name in ("mcts", "adaptive") and model.compares
        if adds or alone:
            with pytest.raises(Refused, match="tournament" if alone else "normalize"):
                search(name, problems(1), Arithmetic(0.5), model, **given)
        if not alone:
            own = {"normalize": "softmax" if name == "weighted_best_of_n" else "sigmoid"} if adds else {}
            (row,) = search(name, problems(1), Arithmetic(0.5), model, **given, **own)
            assert row["response"], kind
            assert row["spent"]["reward_tokens"] > 0 and row["spent"]["reward_flops"] is not None


def test_only_the_length_of_one_answer_is_too_much(prm):
    short = prm.with_options(max_length=60)
    (row,) = search("best_of_n", problems(1), Arithmetic(0.5), short, n=2)
    assert row["unsolved"] and any(one["what"] == "unscored" for one in row["failures"])


def test_down_endpoints_stop_the_run_and_single_failures_do_not():
    from karat.search.base import Missing

    class Down(Arithmetic):
        def sample(self, starts):
            return [[Missing("it timed out", down=True) for _ in start.seeds] for start in starts]

    with pytest.raises(PolicyError, match="timed out; the same command goes on"):
        search("majority", problems(2), Down(), n=2)

    class Half(Arithmetic):
        def sample(self, starts):
            own = super().sample([replace(start, seeds=start.seeds[::2]) for start in starts])
            return [
                [*samples, *[Missing("it timed out", down=True)] * (len(start.seeds) - len(samples))]
                for start, samples in zip(starts, own, strict=True)
            ]

    found = search("majority", problems(2), Half(), n=4)
    assert [row["failures"][0]["count"] for row in found] == [2, 2] and all(row["response"] for row in found)
