"""`karat label` as a person uses it: files, what stops it, and that it goes on."""

import json
import signal
import subprocess
import sys
import time

import pytest

from karat import arithmetic
from karat.formats import base as formats
from karat.search._arithmetic import Arithmetic
from karat.training import _labels_file
from karat.training._labels_file import label_file
from karat.training.labels import ESTIMATORS, Plan
from karat.types import BadInput


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": p.question, "answer": p.answer} for p in arithmetic.problems(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("method", ["hard", "soft", "omega", "adaptive"])
def test_label(karat, problems, tmp_path, method):
    arguments = ("label", problems, "--policy", "arithmetic", "--method", method, "--rollouts", "4")
    code, out, err = karat(*arguments, "--output", tmp_path / "o.jsonl", "--json")
    assert code == 0 and err == ""
    found = json.loads(out)
    assert found["labelled"] == 3 and found["answers"] == len(formats.load(tmp_path / "o.jsonl").items)
    code, out, _ = karat(*arguments, "--output", tmp_path / "again.jsonl")
    assert code == 0 and f"labelled {found['answers']} answers to 3 of 3 problems" in out
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "o.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--budget", "0"), "budget is 0, but it has to be at least 1"),
        (("--method", "omgea"), "did you mean 'omega'?"),
        (("--policy", "arithmetic:skill=2"), "from 0 to 1"),
        (("--policy", "http://127.0.0.1:9/v1"), "cannot be reached"),
        (("--policy", "no/such/folder"), "no folder"),
        (("--temperature", "0"), "the arithmetic policy does not use it"),
        (("--output", "o.txt"), ".jsonl"),
    ],
)
def test_mistakes_get_a_sentence(karat, problems, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    given = {"--policy": "arithmetic", "--output": "o.jsonl"} | dict([options])
    code, out, err = karat("label", problems, *(word for pair in given.items() for word in pair))
    assert code == 1 and out == "" and said in err and len(err.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]


def test_nothing_labelled_is_a_failure(karat, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "Why?", "answer": "because"}\n')
    code, out, err = karat("label", path, "--policy", "arithmetic", "--output", tmp_path / "o.jsonl")
    assert code == 1 and out == "" and "unlabelled 1: " in err and "built-in problems only" in err
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]


# Files


def written(path, count=40, **more):
    found = [{"prompt": p.question, "answer": p.answer, **more} for p in arithmetic.problems(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_a_file_of_labels_is_a_stepwise_file(tmp_path, ending):
    data, output = written(tmp_path / "p.jsonl", context={"set": "a"}), tmp_path / f"o{ending}"
    found = label_file(Arithmetic(), data, output, Plan("adaptive", rollouts=2))
    assert found["problems"] == found["labelled"] == 40 and found["unlabelled"] == found["missing"] == {}
    items = formats.load(output).items
    assert len(items) == found["answers"]
    assert sum(label is not None for item in items for label in item.labels[0]) == found["labels"]
    about = items[0].branches[0].context
    assert about["set"] == "a" and about["answer"] == str(arithmetic.problems(1)[0].answer) and about["problem"] == 1
    made = about["labelling"]
    assert len(made["mean"]) == len(made["low"]) == len(items[0].labels[0]) and made["problem_tokens"] > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [output.name, "p.jsonl"]


class Stopped(Arithmetic):
    """Stops after so many calls, as by a kill."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def sample(self, starts):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return super().sample(starts)


@pytest.mark.parametrize("method", ESTIMATORS)
def test_stopped_and_run_again_it_is_the_same_file(tmp_path, method, monkeypatch, capsys):
    monkeypatch.setattr(_labels_file, "ROWS", 8)
    data, plan = written(tmp_path / "p.jsonl"), Plan(method, rollouts=4)
    counted = Stopped(10_000)
    label_file(counted, data, tmp_path / "whole.jsonl", plan)
    stopped = tmp_path / "stopped.jsonl"
    for share in (3, 4):
        with pytest.raises(KeyboardInterrupt):
            label_file(Stopped((10_000 - counted.calls) // share), data, stopped, plan)
    with pytest.raises(BadInput, match="another policy, data or options; remove it to start anew"):
        label_file(Arithmetic(0.5), data, stopped, plan)
    label_file(Arithmetic(), data, stopped, plan)
    assert "going on: " in capsys.readouterr().err
    assert stopped.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.full
def test_killed_and_run_again_it_is_the_same_file(tmp_path):
    data, plan = written(tmp_path / "p.jsonl", 64), Plan("adaptive", rollouts=16)
    output = tmp_path / "o.jsonl"
    code = (
        "import sys\nfrom pathlib import Path\nfrom karat.training._labels_file import label_file\n"
        "from karat.training.labels import Plan\nfrom karat.search._arithmetic import Arithmetic\n"
        "label_file(Arithmetic(), sys.argv[1], Path(sys.argv[2]), Plan('adaptive', rollouts=16))"
    )
    running = subprocess.Popen([sys.executable, "-c", code, data, str(output)])
    first = tmp_path / "o.jsonl.parts" / "part-00000000.jsonl"
    end = time.monotonic() + 60
    while not first.exists() and time.monotonic() < end:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert first.exists() and not output.exists()
    label_file(Arithmetic(), data, output, plan)
    label_file(Arithmetic(), data, tmp_path / "whole.jsonl", plan)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_rows_that_cannot_be_used_are_counted_and_the_rest_is_labelled(tmp_path):
    good = [{"prompt": p.question, "answer": p.answer} for p in arithmetic.problems(2)]
    bad = [
        {"prompt": "a"},
        {"prompt": "b", "answer": " "},
        {"prompt": "c", "answer": [1]},
        {"prompt": "no", "answer": 1},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (good[0], *bad, good[1])))
    found = label_file(Arithmetic(), str(path), tmp_path / "o.jsonl", Plan(rollouts=2))
    assert found["labelled"] == 2 and sum(found["unlabelled"].values()) == 4
    assert any("`answer` is missing" in reason for reason in found["unlabelled"])
    assert any("no rollout can be judged" in reason for reason in found["unlabelled"])
    assert {i.branches[0].context["problem"] for i in formats.load(tmp_path / "o.jsonl").items} == {1, 6}


def test_a_file_without_answers_is_refused(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "anwser": 1}\n')
    with pytest.raises(BadInput, match=r"no column 'answer'.*rename anwser to answer"):
        label_file(Arithmetic(), str(path), tmp_path / "o.jsonl", Plan())
    (tmp_path / "o.jsonl").write_text("x")
    with pytest.raises(BadInput, match="already there"):
        label_file(Arithmetic(), str(path), tmp_path / "o.jsonl", Plan())
    assert _labels_file.ROWS == 16
