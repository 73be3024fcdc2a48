"""Real files, from the folder that KARAT_DATA names."""

import gzip
import json
import os
from pathlib import Path

import pytest

from karat.formats import base
from karat.types import Message

DATA = Path(os.environ.get("KARAT_DATA") or Path(__file__).parents[3] / "shared" / "data")


def real(name):
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"there is no {path}; set KARAT_DATA to the folder of the real data sets")
    return path


@pytest.fixture(scope="module")
def hh():
    return base.load(real("hh_rlhf_harmless/test.jsonl.gz"))


def alternates(example):
    roles = [m.role for m in example.prompt] + ["assistant"]
    return roles == ["user", "assistant"] * (len(roles) // 2)


def test_hh_counts(hh):
    assert (hh.format, hh.rows, len(hh.items), hh.problems) == ("hh", 2312, 2312, [])
    assert sum(p.chosen.prompt == p.rejected.prompt for p in hh.items) == 2307
    assert sum(alternates(p.chosen) for p in hh.items) == 2304
    assert sum(alternates(p.chosen) and alternates(p.rejected) for p in hh.items) == 2303
    assert sum(p.chosen.response == "" for p in hh.items) == 4
    assert hh.items[0].chosen.prompt[0] == Message("user", "what are some pranks with a pen i can do?")
    assert hh.items[-1].origin.endswith("test.jsonl.gz:2312")


def test_hh_writes_the_same_bytes_of_text(hh):
    with gzip.open(real("hh_rlhf_harmless/test.jsonl.gz")) as file:
        rows = [json.loads(line) for line in file]
    assert [base.get("hh").write(pair) for pair in hh.items] == rows


def test_hh_converts_to_preference_and_back(hh, tmp_path):
    for name, items in [("x.jsonl", hh.items), ("x.parquet", hh.items[:500])]:
        base.write(items, tmp_path / name, "preference")
        assert base.load(tmp_path / name).items == items


def test_hh_splits_by_prompt(hh):
    train, held = base.split_by_prompt(hh.items, 0.1, seed=0)
    assert not {base.prompt_key(i) for i in train} & {base.prompt_key(i) for i in held}
    assert len(train) + len(held) == 2312 and 0.08 < len(held) / 2312 < 0.12


def test_gsm8k_model_solutions():
    loaded = base.load(f"{real('gsm8k_model_solutions/example_model_solutions.jsonl.gz')}[:100]")
    assert (loaded.format, loaded.rows, len(loaded.items), loaded.problems) == ("model_solutions", 100, 400, [])
    assert [item.label for item in loaded.items[:4]] == [0.0, 0.0, 0.0, 1.0]
    assert loaded.items[3].example.response.endswith("A: 18")
    train, held = base.split_by_prompt(loaded.items, 0.25, seed=1)
    assert (len(train), len(held)) == (300, 100)


@pytest.mark.parametrize("name", ["math500/test500.jsonl", "gsm8k_model_solutions/test.jsonl"])
def test_a_file_without_answers_to_score_is_refused(name):
    with pytest.raises(base.BadInput, match="which fit no format; rename them"):
        base.load(real(name))
