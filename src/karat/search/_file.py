"""A file of problems to a file of answers found by search, in parts that survive a kill, put together in the end."""

import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from karat.formats import base as formats
from karat.formats._columns import as_rows, unsupported
from karat.metrics import wilson_interval
from karat.progress import track
from karat.rewards._offline import check_output, claim, fingerprint
from karat.search import _work as work
from karat.search._task import Problem, check_columns, read_problem
from karat.search.base import Judged, Method, Options, method
from karat.types import BadInput, Reward, grouped

ROWS = 16  # problems that are searched together, and what a kill can lose
COLUMNS = ("response", "final_answer", "correct", "reward", "tied", "unsolved", "candidates", "spent", "failures")
UNREAD, RECORDING = "the row", "the recording"  # what failed, in `failures`
_KINDS = ("missing", "unscored", "unanswered", "unjudged", "out of budget")


@dataclass(frozen=True, slots=True)
class Run:
    """A method with its options and tools."""

    name: str
    options: Options
    tools: work.Tools

    @property
    def method(self) -> Method:
        """The method of that name."""
        return method(self.name)

    def settings(self) -> dict[str, Any]:
        """What decides the rows that come out."""
        tools = self.tools
        return {
            "method": self.name,
            "options": self.options.model_dump(),
            "policy": tools.policy.fingerprint,
            "reward": getattr(tools.reward, "fingerprint", ""),
            "task": tools.task.model_dump(),
            "seed": tools.seed,
            "budget": tools.budget,
        }


def read_rows(data: str) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a file of problems, each with its line.

    Raises:
        BadInput: no rows, or columns that hold no problems.
    """
    numbered, path = formats.rows(data), formats.parse_source(data).path
    columns = {column for _, row in numbered for column in row}
    check_columns(sorted(columns), path)
    if taken := [name for name in COLUMNS if name in columns]:
        raise BadInput(f"{path} already has a column {taken[0]!r}, which search would overwrite; rename it")
    return numbered


def search_rows(run: Run, rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Each row with what was found for it, in order; problems are searched `ROWS` at a time."""
    work.check(run.name, run.method, run.options, run.tools.reward)
    left = iter(rows)
    while chunk := list(islice(left, ROWS)):
        yield from _found(run, chunk)


def search_file(run: Run, data: str, output: Path) -> dict[str, Any]:
    """Search for answers to a file of problems; the summary of what came of it and what it cost.

    A call with the same arguments goes on with the parts that a killed one left in `OUTPUT.parts`, and comes to the
    same file.

    Raises:
        BadInput: no rows, a method that the reward model cannot serve, or parts of other settings.
        PolicyError: the policy cannot be used; what was found before stays.
    """
    check_output(output)
    work.check(run.name, run.method, run.options, run.tools.reward)
    numbered, path = read_rows(data), formats.parse_source(data).path
    parts = output.with_name(output.name + ".parts")
    what = "answers of another method, policy, reward model or data"
    claim(parts, {"data": data, "content": fingerprint(path), **run.settings()}, what)
    _search_rest(run, numbered, parts)
    rows = [row for part in sorted(parts.glob("part-*.jsonl")) for row in _lines(part)]
    formats.write_rows(rows, str(output))
    shutil.rmtree(parts)
    return {"output": str(output), **summary(rows, run)}


def _search_rest(run: Run, rows: list[tuple[int, dict[str, Any]]], parts: Path) -> None:
    """Search the problems that no part holds yet, into further parts."""
    before = min(ROWS * sum(_part(parts, number).is_file() for number in range(0, len(rows), ROWS)), len(rows))
    if before:
        print(f"going on: {before} of {len(rows)} problems are searched already", file=sys.stderr)
    for _ in track(_write_parts(run, rows, before, parts), len(rows), "searched", before, int):
        pass


def _write_parts(run: Run, rows: list[tuple[int, dict[str, Any]]], first: int, parts: Path) -> Iterator[int]:
    for number in range(first, len(rows), ROWS):
        chunk = rows[number : number + ROWS]
        formats.write_lines(map(formats.json_line, _found(run, chunk)), str(_part(parts, number)))
        yield len(chunk)


def _part(parts: Path, number: int) -> Path:
    return parts / f"part-{number:08d}.jsonl"


def _lines(part: Path) -> Iterator[dict[str, Any]]:
    with part.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


# Rows


def _found(run: Run, rows: Sequence[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    read = [_read(row, line) for line, row in rows]
    problems = [one for one in read if isinstance(one, Problem)]
    done = iter(work.search(run.method, run.options, problems, run.tools))
    return [
        {**_asked(row, one), **(_columns(next(done), run) if isinstance(one, Problem) else _unread(one))}
        for (_, row), one in zip(rows, read, strict=True)
    ]


def _read(row: dict[str, Any], line: int) -> Problem | str:
    try:
        unsupported(row)
        return read_problem(row, line)
    except BadInput as error:
        return str(error)


def _asked(row: dict[str, Any], problem: Problem | str) -> dict[str, Any]:
    """A row with what was asked as its prompt, by which recordings find their answers."""
    if isinstance(problem, str) or row.get("prompt") is not None:
        return row
    return {**row, "prompt": as_rows(problem.prompt)}


def _unread(reason: str) -> dict[str, Any]:
    failure = [{"what": UNREAD, "reason": reason, "count": 1}]
    return {**dict.fromkeys(COLUMNS), "unsolved": reason, "candidates": [], "failures": failure}


def _columns(done: work.Work, run: Run) -> dict[str, Any]:
    found = done.found
    verdicts = _verdicts(done, run)
    counted = "tokens" not in done.spent.unmeasured
    candidates = [_candidate(one, right, counted) for one, right in zip(found.candidates, verdicts, strict=True)]
    chosen = None if found.chosen is None else candidates[found.chosen]
    kept = ("response", "final_answer", "correct", "reward")
    unjudged = sum(
        one["final_answer"] is not None and right is None for one, right in zip(candidates, verdicts, strict=True)
    )
    known = done.problem.answer is not None and not _not_had(done)
    return {
        **{name: chosen[name] if chosen else None for name in kept},
        "correct": chosen["correct"] if chosen else (False if known else None),
        "tied": found.tied,
        "unsolved": None if chosen else found.reason,
        "candidates": candidates,
        "spent": done.spent.row(),
        "failures": _failures(done, unjudged if done.problem.answer is not None else 0),
    }


def _verdicts(done: work.Work, run: Run) -> list[bool | None]:
    """Whether each candidate is right; None where that cannot be said. No final answer is a wrong one."""
    gold, answers = done.problem.answer, [one.candidate.answer for one in done.found.candidates]
    if gold is None:
        return [None] * len(answers)
    found = iter(run.tools.judge([(gold, answer) for answer in answers if answer is not None]))
    return [False if answer is None else next(found) for answer in answers]


def _not_had(done: work.Work) -> bool:
    """Whether no answer was found because not one sample could be had, which says nothing of the policy's answers."""
    return not done.found.candidates and not done.spent.draws and bool(done.missing)


def _candidate(one: Judged, correct: bool | None, counted: bool) -> dict[str, Any]:
    steps = one.result.steps if isinstance(one.result, Reward) else None
    return {
        "response": one.candidate.response,
        "final_answer": one.candidate.answer,
        "correct": correct,
        "reward": one.value,
        "step_rewards": None if steps is None else list(steps),
        "tokens": one.candidate.tokens if counted else None,
        "cut": one.candidate.cut,
        "flags": list(one.result.flags) if isinstance(one.result, Reward) else [],
    }


def _failures(done: work.Work, unjudged: int) -> list[dict[str, Any]]:
    """What went wrong with how many samples, candidates or answers, and why."""
    answers = [one.candidate.answer for one in done.found.candidates]
    counted = {
        "missing": done.missing,
        "unscored": done.unscored,
        "unanswered": Counter({"no final answer can be read from it": answers.count(None)}),
        "unjudged": Counter({"its answer could not be compared in time": unjudged}),
        "out of budget": Counter({"the budget was spent before the search came to its end": int(done.out_of_budget)}),
    }
    return [
        {"what": what, "reason": reason, "count": count}
        for what, reasons in counted.items()
        for reason, count in reasons.items()
        if count
    ]


# The summary


def summary(rows: Sequence[dict[str, Any]], run: Run) -> dict[str, Any]:
    """What a search came to: accuracy with its interval where rows have answers, and mean costs of a problem."""
    sizes = [len(row["candidates"]) for row in rows]
    return {
        "method": run.name,
        "options": run.options.model_dump(),
        "problems": len(rows),
        "solved": sum(row["unsolved"] is None for row in rows),
        "not_had": sum(_without_samples(row) for row in rows),
        "accuracy": _share([row["correct"] for row in rows]),
        "oracle": _share([_any_right(row) for row in rows]),
        "candidates": {"least": min(sizes), "most": max(sizes)},
        "tied": sum((row["tied"] or 0) > 1 for row in rows),
        "spent": _mean_spent([row["spent"] for row in rows if row["spent"]]),
        "over_budget": _over(rows, run.tools.budget),
        "failures": _counted(rows) | _unreadable(run.tools),
    }


def _without_samples(row: dict[str, Any]) -> bool:
    """Whether not one sample of a problem could be had; it has no verdict then."""
    missing = any(one["what"] == "missing" for one in row["failures"] or ())
    return missing and not row["candidates"] and not row["spent"]["draws"]


def _over(rows: Sequence[dict[str, Any]], budget: int | None) -> dict[str, int] | None:
    """In how many problems the last draw passed the budget, and by how many tokens at most; None without a budget."""
    if budget is None:
        return None
    over = [most for row in rows if row["spent"] and (most := row["spent"]["policy_tokens"] - budget) > 0]
    return {"problems": len(over), "most": max(over, default=0)}


def _unreadable(tools: work.Tools) -> dict[str, dict[str, int]]:
    """Rows of recordings that could not be read; of policy and rewards, which mostly have the same."""
    found = {**getattr(tools.reward, "unreadable", {}), **getattr(tools.policy, "unreadable", {})}
    return {RECORDING: found} if found else {}


def _any_right(row: dict[str, Any]) -> bool | None:
    """Whether any candidate is right; None where the row has no verdict."""
    if row["correct"] is None:
        return None
    return any(one["correct"] for one in row["candidates"])


def _share(verdicts: Sequence[bool | None]) -> dict[str, Any] | None:
    """The share of right answers with its 95 % interval; None where no row has an answer to compare with."""
    known = [right for right in verdicts if right is not None]
    if not known:
        return None
    interval = wilson_interval(sum(known), len(known))
    return {"value": sum(known) / len(known), "low": interval.low, "high": interval.high, "n": len(known)}


def _mean_spent(spent: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Means over problems; None where a problem's are not known."""
    names = spent[0] if spent else ()
    columns = {name: [row[name] for row in spent] for name in names}
    return {
        name: None if any(value is None for value in own) else math.fsum(own) / len(own)
        for name, own in columns.items()
    }


def _counted(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """How often each thing failed, by reason; reasons that say the same but for numbers are one."""
    found: dict[str, dict[str, int]] = {}
    for what in (UNREAD, *_KINDS):
        own = [one for row in rows for one in row["failures"] or () if one["what"] == what]
        places = grouped([one["reason"] for one in own])
        if places:
            found[what] = {reason: sum(own[i]["count"] for i in group) for reason, group in places.items()}
    return found
