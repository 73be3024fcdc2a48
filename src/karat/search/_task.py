"""What a task says of its answers: how they are asked for, where steps and answers end, and what is the answer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from karat.formats import truthfulqa
from karat.formats._columns import QUESTIONS, Missing, asked, present, renames
from karat.rewards._answers import final_answer, known_reference, marked_answer
from karat.search.base import Candidate, Policy
from karat.spec import one_line
from karat.types import BadInput, Message, as_messages, nearest

PARAGRAPH = "\n\n"


class Task(BaseModel):
    """A task template: plain data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str = ""  # a first message to the policy; reward models do not see it
    prompt: str = "{prompt}"  # how the last message reads to the policy
    chat_template: str = ""  # Jinja; of a local policy, in place of its own
    delimiter: str = ""  # text between steps; "": the policy's own, which mostly is a blank line
    stop: tuple[str, ...] = ()  # texts before which an answer ends
    finished: str = ""  # a regular expression: an answer in which it is found is finished with that step
    answer: str = ""  # a regular expression whose last match's group is the final answer; "": karat's rule

    @property
    def problem(self) -> str:
        """Why it cannot be used, or the empty string."""
        for name in ("finished", "answer"):
            try:
                groups = re.compile(getattr(self, name)).groups
            except re.error as error:
                return f"{name}={getattr(self, name)!r} is no regular expression ({error}); mend it"
            if name == "answer" and self.answer and groups != 1:
                return f"answer={self.answer!r} has {groups} groups, and needs one, around the answer"
        if "{prompt}" not in self.prompt:
            return f"prompt={self.prompt!r} does not say where the prompt goes; write {{prompt}} there"
        return "a text of stop is empty; leave it out" if "" in self.stop else ""

    def of(self, policy: Policy) -> "Task":
        """With the delimiter of a policy, where none was given."""
        own = self.delimiter or getattr(policy, "delimiter", PARAGRAPH)
        return self.model_copy(update={"delimiter": own})

    def asked(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """A problem's messages as the policy gets them."""
        *first, last = messages
        before = (Message("system", self.system),) if self.system else ()
        return (*before, *first, Message(last.role, self.prompt.replace("{prompt}", last.content)))

    def grown(self, start: Candidate, text: str, tokens: int, ended: bool, cut: bool) -> Candidate:
        """A beginning with what a policy added; `ended` says that the policy stopped by itself or at the length limit.

        What added nothing but blanks is done too: a policy with nothing to add has ended.
        """
        whole = start.text + text
        places = [at for word in self.stop if (at := whole.find(word, len(start.text))) >= 0]
        whole = whole[: min(places)] if places else whole
        done = ended or cut or bool(places) or not text.strip() or self._finishes(whole)
        return Candidate(
            whole, split(whole, self.delimiter), start.tokens + tokens, done, cut, self._answer(whole, done, cut)
        )

    def _finishes(self, text: str) -> bool:
        return bool(self.finished) and re.search(self.finished, text) is not None

    def _answer(self, text: str, done: bool, cut: bool) -> str | None:
        """The last number of a text is its answer only if it came to its end."""
        if self.answer:
            found = re.findall(self.answer, text)
            return found[-1].strip() or None if found else None
        return final_answer(text) if done and not cut else marked_answer(text)


def read_task(path: str, delimiter: str | None = None) -> Task:
    """The task in a YAML or JSON file; "" is the usual one. `delimiter` goes before the file's.

    Raises:
        BadInput: the file cannot be read, or says what no task has.
    """
    found = _mapping(path) if path else {}
    for word in found:
        if word not in Task.model_fields:
            raise BadInput(f"{path}: a task has no {word!r}{nearest(str(word), Task.model_fields)}")
    try:
        task = Task(**found | ({} if delimiter is None else {"delimiter": delimiter}))
    except ValidationError as error:
        raise BadInput(f"{path or 'the task'}: {one_line(error)}") from None
    if task.problem:
        raise BadInput(f"{path}: {task.problem}")
    return task


def _mapping(path: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"the task {path} cannot be read ({str(error).splitlines()[0]}); give a YAML file") from None
    if not isinstance(found, dict):
        raise BadInput(f'the task {path} has to hold names and values, such as `delimiter: "\\n\\n"`')
    return found


def split(text: str, delimiter: str) -> tuple[str, ...]:
    r"""The steps of a text, without the blanks around them and without empty ones.

    >>> split("a\n\nb\n", "\n\n")
    ('a', 'b')
    """
    return tuple(part.strip() for part in text.split(delimiter) if part.strip())


# Problems.


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, and its answer where that is known."""

    line: int  # of its file
    prompt: tuple[Message, ...]
    answer: str | None = None


def read_problem(row: Mapping[str, Any], line: int) -> Problem:
    """A row with prompt (or problem, or question), and maybe the answer; a row of TruthfulQA with its answers to it.

    Raises:
        BadInput: there is no prompt, or the answer is no text or number.
    """
    if row.get("mc1_targets") is not None:
        text, letter = truthfulqa.choice(row)
        return Problem(line, as_messages(text), letter)
    messages = asked(row)
    if not messages:
        raise BadInput("the prompt has no message, so there is nothing to answer; give one")
    try:
        value = present(row, "answer")
    except Missing:
        return Problem(line, messages)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadInput(f"`answer` has to be a text or a number, but it is {value!r:.60}")
    return Problem(line, messages, known_reference(value))


def check_columns(columns: Sequence[str], path: str) -> None:
    """Raise BadInput for columns that cannot hold problems."""
    if not set(QUESTIONS) & set(columns):
        misspelt = renames(sorted(columns), (*QUESTIONS, "answer"))
        raise BadInput(
            f"{path} has no column 'prompt' (nor 'problem' or 'question'), but a problem needs one;"
            f" {f'rename {misspelt}' if misspelt else 'add it'}"
        )
