"""Recorded answers as a policy, and their recorded rewards as a reward model: search on a laptop, in milliseconds.

A recording is a pool, whose rows hold a prompt and an answer (and maybe `reward`, `step_rewards`, `tokens`), what
`karat search` wrote (`candidates`), or any of karat's formats with answers: trees of OmegaPRM, GSM8K's solutions, ….
Whole answers come in the recorded order, each once. Steps, and whatever follows a beginning, are drawn from what was
recorded behind it, so that the recording stands for the policy's distribution.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from karat.formats import base as formats
from karat.formats._columns import as_number, mapping, optional_number, prompt, text, values
from karat.metrics import sigmoid
from karat.rewards._among import in_order
from karat.rewards._examples import as_one, as_texts, as_two, other_alone, preferred
from karat.rewards.base import Output, Ranked
from karat.search._task import PARAGRAPH, split
from karat.search.base import Drawn, Missing, Sample, Start
from karat.types import (
    BadInput,
    Example,
    Labelled,
    Message,
    Prompt,
    Refused,
    Result,
    Reward,
    Stepped,
    Unscored,
    answers_of,
    as_messages,
    grouped,
)

_Asked = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Recorded:
    """One recorded answer."""

    text: str
    tokens: int  # that the policy generated; words where the recording does not say
    reward: float | None = None
    step_rewards: tuple[float | None, ...] = ()  # of its first steps
    steps: tuple[str, ...] = ()  # where it was recorded in steps

    def joined(self, delimiter: str) -> "Recorded":
        """With its steps as its text, where it has some."""
        return replace(self, text=delimiter.join(self.steps)) if self.steps else self

    def sample(self, begin: int, stop: tuple[str, ...]) -> Sample:
        """Its text from a character on; tokens are spread evenly over characters."""
        own = Sample(self.text[begin:], 0).up_to(stop)
        end, size = begin + len(own.text), max(1, len(self.text))
        return replace(own, tokens=round(self.tokens * end / size) - round(self.tokens * begin / size))


def _delimiter(answers: Sequence[Recorded]) -> str:
    """What stands between steps: of those recorded in steps, as many line ends as no step holds.

    Of texts, blank lines where most have them, else line ends.
    """
    steps = [step for one in answers for step in one.steps]
    if steps:
        ends = PARAGRAPH
        while any(ends in step for step in steps):
            ends += "\n"
        return ends
    paragraphs = sum(PARAGRAPH in one.text.strip() for one in answers)
    return PARAGRAPH if 2 * paragraphs > len(answers) else "\n"


class Recording:
    """Recorded answers by their prompts."""

    def __init__(
        self,
        answers: Mapping[_Asked, Sequence[Recorded]],
        fingerprint: str = "",
        unreadable: Mapping[str, int] | None = None,
    ) -> None:
        """`unreadable`: how many of its rows and candidates could not be read, by reason."""
        self.delimiter = _delimiter([one for own in answers.values() for one in own])
        self.answers = {asked: tuple(one.joined(self.delimiter) for one in own) for asked, own in answers.items()}
        self.fingerprint = f"replay:{fingerprint}"
        self.unreadable = dict(unreadable or {})


class Replay:
    """A recording as a policy."""

    verbatim = True  # it knows the prompts as they were recorded, before a task's template

    def __init__(self, recording: Recording) -> None:
        self._answers = recording.answers
        self.delimiter, self.fingerprint = recording.delimiter, recording.fingerprint
        self.unreadable = recording.unreadable

    def sample(self, starts: Sequence[Start]) -> list[list[Drawn]]:
        """For each start one recorded continuation or `Missing` per seed."""
        return [self._drawn(start) for start in starts]

    def _drawn(self, start: Start) -> list[Drawn]:
        known = self._answers.get(start.prompt, ())
        if not start.text and not start.step:
            wanted = range(start.first, start.first + len(start.seeds))
            lacking = Missing(f"only {len(known)} answers to this prompt were recorded")
            return [known[i].sample(0, start.stop) if i < len(known) else lacking for i in wanted]
        own = [one for one in known if one.text.startswith(start.text)]
        if not own:
            return [Missing("nothing was recorded behind this beginning")] * len(start.seeds)
        begin = len(start.text)
        if start.greedy:
            samples = Counter(one.sample(begin, start.stop) for one in own)
            return [samples.most_common(1)[0][0]] * len(start.seeds)
        return [Random(f"replay/{seed}").choice(own).sample(begin, start.stop) for seed in start.seeds]


class RecordedRewards:
    """The rewards of a recording; see `RewardModel` for its methods. A beginning has that of its last recorded step."""

    compares = False

    def __init__(self, recording: Recording) -> None:
        self.fingerprint, self.unreadable = recording.fingerprint, recording.unreadable
        self._delimiter = recording.delimiter
        self._known: dict[tuple[_Asked, tuple[str, ...]], Reward] = {}
        for asked, answers in recording.answers.items():
            for one in answers:
                self._keep(asked, one)
        if not self._known:
            raise BadInput("the recording has no rewards; give one with a column reward, or with labels")
        values = [reward.value for reward in self._known.values()]
        self.output: Output = "probability" if min(values) >= 0 and max(values) <= 1 else "logit"
        self.at_steps = any(reward.steps for reward in self._known.values())

    def _keep(self, asked: _Asked, one: Recorded) -> None:
        steps = split(one.text, self._delimiter)
        known: list[float] = []
        for place, value in enumerate(one.step_rewards, 1):
            before = self._known.get((asked, steps[:place]))  # in a tree, the first branch with a step has its reward
            value = before.value if value is None and before else value
            if value is None:
                break
            known.append(value)
            self._known.setdefault((asked, steps[:place]), Reward(value, tuple(known)))
        if one.reward is not None:
            self._known[asked, steps] = Reward(one.reward, tuple(known) or None)

    def score(self, prompt: Prompt, responses: Sequence[str], *, strict: bool = False) -> list[Result]:
        """One result per response, in order."""
        messages = as_messages(prompt)
        return list(self.score_many([Example(messages, own) for own in as_texts(responses)], strict=strict))

    def score_many(self, examples: Iterable[Any], *, strict: bool = False) -> Iterator[Result]:
        """One result per example, in order."""
        for row in examples:
            found = self._one(row)
            if strict and isinstance(found, Unscored):
                raise Refused(found.reason)
            yield found

    def _one(self, row: Any) -> Result:
        example = as_one(row)
        if isinstance(example, Unscored):
            return example
        steps = example.steps or split(example.response, self._delimiter)
        return self._known.get((example.prompt, steps), Unscored("no reward of this answer was recorded"))

    def compare_many(self, examples: Iterable[Any], *, strict: bool = False) -> Iterator[Result]:
        """The probability that the first answer is preferred, by the recorded rewards' lead."""
        for row in examples:
            read = as_two(row)
            found = self._lead(read) if isinstance(read, Example) else read
            if strict and isinstance(found, Unscored):
                raise Refused(found.reason)
            yield found

    def _lead(self, example: Example) -> Result:
        a, b = self._one(replace(example, other=None)), self._one(other_alone(example))
        if isinstance(a, Unscored) or isinstance(b, Unscored):
            return a if isinstance(a, Unscored) else b
        higher = float(a.value > b.value) + 0.5 * (a.value == b.value)
        return Reward(higher if self.output == "probability" else float(sigmoid(a.value - b.value)))

    def compare(self, prompt: Prompt, a: str, b: str) -> float:
        """Probability that `a` is preferred to `b`."""
        return preferred(self.compare_many, prompt, a, b)

    def rank(self, prompt: Prompt, responses: Sequence[str]) -> list[Ranked]:
        """The responses, best first; unscored ones come last, in the order given."""
        return in_order(self.score(prompt, responses))

    def score_text(self, text: str) -> Result:
        """None: a recording knows answers to prompts."""
        raise Refused("a recording has rewards of answers to prompts; use score")


def read_recording(path: str) -> Recording:
    """The recorded answers of a file, `PATH[START:STOP]`.

    Raises:
        BadInput: it cannot be read, or holds no answers.
    """
    rows = formats.rows(path)
    columns = {column for _, row in rows for column in row}
    found, problems = _searched(rows) if "candidates" in columns else _of_format(path, rows)
    if not found:
        why = problems[0] if problems else "no row has candidates"
        raise BadInput(f"{path} holds no answer that can be read ({why}); give a recording with answers")
    answers: dict[_Asked, list[Recorded]] = {}
    for asked, one in found:
        answers.setdefault(asked, []).append(one)
    content = hashlib.sha256(Path(formats.parse_source(path).path).read_bytes()).hexdigest()[:16]
    unreadable = {reason: len(places) for reason, places in grouped(problems).items()}
    return Recording(answers, f"{path} {content}", unreadable)


_Read = tuple[list[tuple[_Asked, Recorded]], list[str]]  # answers, and why what is not among them cannot be read


def _searched(rows: Sequence[tuple[int, Mapping[str, Any]]]) -> _Read:
    """The candidates of what `karat search` wrote."""
    found, problems = [], []
    for line, row in rows:
        try:
            asked, candidates = prompt(row), values(row, "candidates", empty=True) if row.get("candidates") else []
        except BadInput as error:
            problems.append(f"line {line}: {error}")
            continue
        for number, one in enumerate(candidates, 1):
            try:
                found.append((asked, _candidate(one)))
            except BadInput as error:
                problems.append(f"line {line}, candidate {number}: {error}")
    return found, problems


def _candidate(one: Any) -> Recorded:
    row = mapping(one)
    if row is None:
        raise BadInput(f"it has to be a mapping with response, but it is {one!r:.60}")
    return _recorded(text(row, "response"), row)


def _of_format(path: str, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> _Read:
    """The answers of one of karat's formats; a row with one plain answer may hold its reward and tokens."""
    loaded = formats.load(path)
    problems, unread = [str(one) for one in loaded.problems], {one.origin for one in loaded.problems}
    origin = formats.parse_source(path).path
    own = [(line, row) for line, row in rows if f"{origin}:{line}" not in unread]
    if not all(isinstance(item, Example) for item in loaded.items) or len(own) != len(loaded.items):
        return [pair for item in loaded.items for pair in _labelled(item)], problems
    found = []
    for item, (line, row) in zip(loaded.items, own, strict=True):
        assert isinstance(item, Example)
        try:
            found.append((item.prompt, _example(item, row)))
        except BadInput as error:
            problems.append(f"{origin}:{line}: {error}")
    return found, problems


def _labelled(item: Any) -> Iterator[tuple[_Asked, Recorded]]:
    """The answers of an item, with its labels for rewards."""
    if isinstance(item, Stepped):
        for branch, labels in zip(item.branches, item.labels, strict=True):
            yield branch.prompt, replace(_example(branch, {}), step_rewards=labels)
    elif isinstance(item, Labelled):
        yield item.example.prompt, replace(_example(item.example, {}), reward=item.label)
    elif isinstance(item, Example):
        yield item.prompt, _example(item, {})
    else:
        for example in answers_of(item):
            yield example.prompt, _example(example, {})


def _example(example: Example, row: Mapping[str, Any]) -> Recorded:
    return replace(_recorded(example.response, row), steps=tuple(step.strip() for step in example.steps))


def _recorded(answer: str, row: Mapping[str, Any]) -> Recorded:
    tokens = optional_number(row, "tokens")
    steps = values(row, "step_rewards", empty=True) if row.get("step_rewards") is not None else []
    return Recorded(
        answer,
        int(tokens) if tokens is not None and tokens > 0 else len(answer.split()),
        optional_number(row, "reward"),
        tuple(None if value is None else as_number(value, "step_rewards") for value in steps),
    )
