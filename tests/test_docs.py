"""Pages whose every line is run, in a folder that holds what they name."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest

import toys
from karat import arithmetic
from karat.search.base import method, methods

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    rows = arithmetic.step_rows(24)
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"prompt": row["prompt"], "steps": row["completions"]} for row in rows[:4]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    toys.save(tmp_path / "MODEL", toys.causal_model())
    toys.save(tmp_path / "trl-prm", toys.step_model())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.S)


@pytest.mark.full
def test_every_line_of_the_migration(folder, karat):
    lines = [line for block in blocks("migrate-from-trl.md", "sh") for line in block.splitlines()]
    assert len(lines) == 5
    for line in lines:
        name, *arguments = shlex.split(line)
        code, out, err = karat(*arguments)
        assert name == "karat" and code == 0 and out, (line, err)
    for block in blocks("migrate-from-trl.md", "python"):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block, "migrate-from-trl.md", "exec"), {})


def test_every_option_of_every_method_is_listed_with_its_default():
    page = (DOCS / "search.md").read_text()
    for name in methods():
        (row,) = re.findall(rf"^\| `{name}` \|.*$", page, re.M)
        for word, field in method(name).options.model_fields.items():
            default = field.default if not field.is_required() else "R"
            told = (
                json.dumps(default)
                if isinstance(default, bool)
                else f"{default:g}"
                if isinstance(default, float)
                else default
            )
            assert f"--{word.replace('_', '-')} {told}" in row, (name, word)


def test_every_option_of_the_process_page_is_one(folder, karat):
    """Each row of its table of published models is scored and judged as it is written, on a model of that layout."""
    rows = re.findall(r"^\| [^|]+ \| (`--[^|]*)\|$", (DOCS / "process.md").read_text(), re.M)
    told = [" ".join(re.findall(r"`(--[^`]*)`", row)) for row in rows]
    logits = [line for line in told if "lm_logits:+,-" in line]
    assert len(told) >= 6 and len(logits) == 2
    for number, line in enumerate(logits):
        options = ["--kind", "process", *shlex.split(line)]
        code, _, err = karat("score", "MODEL", "rows.jsonl", *options, "--output", f"{number}.jsonl")
        assert code == 0, (line, err)
        code, _, err = karat("eval", "MODEL", "steps.jsonl", *options, "--output", f"run{number}")
        assert code == 0 and (folder / f"run{number}" / "report.html").is_file() and not (folder / "0").exists(), err
