"""What reward models made of other reward models share: the contract's methods, and the folder that names those."""

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, tee
from pathlib import Path
from typing import Any, Self, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from karat.models._named import spelled_out
from karat.models.render import tokenizer_hash
from karat.rewards._among import in_order
from karat.rewards._examples import as_example
from karat.rewards._local import LocalModel
from karat.rewards._results import joined
from karat.rewards.base import Output, Ranked, RewardModel
from karat.spec import FILE_NAME, ids_hash, one_line
from karat.types import BadInput, CheckpointError, Example, Prompt, Refused, Result, Reward, Unscored, as_messages

# A path, and spec options as keywords → the model: `karat.load` with its other arguments settled.
Opener: TypeAlias = Callable[..., RewardModel]

_LATER = ("max_length", "over_length")  # what may be said when a wrapper is loaded: which answers have a reward


class Part(BaseModel):
    """Base of what a wrapper's `reward_spec.json` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")


S = TypeVar("S", bound=Part)


class Inner(Part):
    """A reward model that another one is made of."""

    path: str  # a hub id, an absolute path, or with a dot in front one that starts at the wrapper's folder
    options: dict[str, Any] = {}  # of its spec, as it was loaded with
    spec_sha256: str = ""  # of its reward_spec.json, so that another model in its place is noticed; "": it had none

    @classmethod
    def of(cls, path: str, folder: Path, options: Mapping[str, Any]) -> Self:
        """The model at `path`, as a wrapper in `folder` names it."""
        return cls(path=_from(folder, path), options=spelled_out(options), spec_sha256=_spec_hash(Path(path)))

    def open(self, folder: Path, opener: Opener, options: Mapping[str, Any]) -> RewardModel:
        """The model itself.

        Raises:
            Refused: it is not where it was, or `options` would change what its rewards are.
            CheckpointError: another one is there.
        """
        for name in options:
            if name not in _LATER:
                raise Refused(
                    f"{folder} takes the options {' and '.join(_LATER)} alone, as {name} would change the rewards that"
                    f" it was made with; make another one with {name}"
                )
        path = os.path.normpath(folder.absolute() / self.path) if self.path.startswith(".") else self.path
        if os.path.isabs(path) and not os.path.isdir(path):
            raise Refused(f"{folder} is made of {path}, which is no folder; put that model back, or make {folder} anew")
        if self.spec_sha256 not in ("", _spec_hash(Path(path))):
            raise CheckpointError(f"{path} is not the model that {folder} was made of; make {folder} anew")
        return opener(path, **{**self.options, **options})


def _from(folder: Path, path: str) -> str:
    """How `folder` names a path: from itself where both lie in one folder, so that this one can be moved."""
    if not os.path.isdir(path):
        return path
    target, start = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    if not target.is_relative_to(start.parent):
        return str(target)
    way = Path(os.path.relpath(target, start)).as_posix()
    return way if way.startswith(".") else f"./{way}"


def _spec_hash(folder: Path) -> str:
    file = folder / FILE_NAME
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else ""


def read_spec(spec: type[S], folder: Path) -> S:
    """A wrapper's spec.

    Raises:
        CheckpointError: the file is no valid one.
    """
    try:
        return spec.model_validate_json((folder / FILE_NAME).read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{folder / FILE_NAME} is not a valid spec: {one_line(error)}") from None


def save_spec(spec: Part, folder: Path) -> None:
    """Write a wrapper's spec into a new folder.

    Raises:
        BadInput: the folder is there, or cannot be written to.
    """
    try:
        folder.mkdir(parents=True)
        (folder / FILE_NAME).write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{folder} cannot be written to ({error.strerror}); choose another --output") from None


def names_of(paths: Sequence[str]) -> list[str]:
    """The last part of each path, numbered where two have the same."""
    ends = [Path(path).absolute().name for path in paths]
    return [f"{end}-{ends[: i + 1].count(end)}" if ends.count(end) > 1 else end for i, end in enumerate(ends)]


def check_scorer(model: RewardModel, name: str) -> None:
    """Raise for a model that gives no reward to an answer by itself."""
    if model.compares:
        raise Refused(f"{name} compares two answers and has no reward of one; give models that score an answer")
    model.score("1+1?", ["2"])  # raises for embeddings


class Wrapped(ABC):
    """A reward model made of others; see `RewardModel` for its methods."""

    compares = False

    def __init__(self, spec: Part, models: Sequence[RewardModel]) -> None:
        self.spec = spec
        self.models = tuple(models)

    @property
    @abstractmethod
    def output(self) -> Output:
        """What its rewards are."""

    @property
    @abstractmethod
    def at_steps(self) -> bool:
        """Whether its rewards come with those of an answer's steps."""

    @abstractmethod
    def compared(self, a: Reward, b: Reward) -> float:
        """Probability that the answer with reward `a` is preferred."""

    @abstractmethod
    def _made(self, results: Sequence[Result], row: Any) -> Result:
        """What its models gave an answer as one result; `row` is the answer, None for a finished text."""

    @property
    def fingerprint(self) -> str:
        """What decides a score beside the text: its own numbers, and what decides those of its models."""
        said = [self.spec.model_dump_json(), *(getattr(model, "fingerprint", "") for model in self.models)]
        return ids_hash("\n".join(said).encode())

    @property
    def readings(self) -> frozenset[str]:
        """Fingerprints of the templates and tokenizers by which its models read."""
        return frozenset().union(*map(_readings, self.models))

    def score(self, prompt: Prompt, responses: Sequence[str], *, strict: bool = False) -> list[Result]:
        """One result per response, in order."""
        responses = list(responses) if isinstance(responses, Iterator) else responses
        messages = as_messages(prompt)
        found = [model.score(messages, responses) for model in self.models]
        rows = [Example(messages, response) for response in responses]
        return list(_strictly(self._joined(rows, found), strict))

    def score_many(self, examples: Iterable[Any], *, strict: bool = False) -> Iterator[Result]:
        """One result per example, in order, computed in chunks as the iterator is read.

        Raises:
            BadInput: it is one row, and no list of them.
        """
        if isinstance(examples, str | Mapping | Example) or not isinstance(examples, Iterable):
            raise BadInput(f"give a list of rows; this is {examples!r:.80}, so put it into a list if it is a row")
        rows, *copies = tee(examples, len(self.models) + 1)
        found = [model.score_many(copy) for model, copy in zip(self.models, copies, strict=True)]
        return _strictly(self._joined(rows, found), strict)

    def score_steps(self, prompt: Prompt, steps: Sequence[str]) -> Result:
        """The reward of one answer that is given in steps, with a reward for each of them in `steps`.

        Raises:
            Refused: it has no rewards of steps.
        """
        if not self.at_steps:
            raise Refused("this model has one reward for a whole answer; use score")
        models: Sequence[Any] = self.models
        messages = as_messages(prompt)
        return self._made([model.score_steps(messages, steps) for model in models], Example.of_steps(messages, steps))

    def compare_many(self, examples: Iterable[Any], *, strict: bool = False) -> Iterator[Result]:
        """For each example with an `other` answer, the probability that its own is preferred, as the value."""
        results = self.score_many(chain.from_iterable(map(_both, examples)))
        return _strictly((self._preferred(a, b) for a, b in zip(results, results, strict=True)), strict)

    def _preferred(self, a: Result, b: Result) -> Result:
        if isinstance(a, Unscored) or isinstance(b, Unscored):
            return a if isinstance(a, Unscored) else b
        return joined(a, b, self.compared(a, b))

    def compare(self, prompt: Prompt, a: str, b: str) -> float:
        """Probability that `a` is preferred to `b`."""
        first, second = self.score(prompt, [a, b], strict=True)
        assert isinstance(first, Reward) and isinstance(second, Reward)  # strict has raised otherwise
        return self.compared(first, second)

    def rank(self, prompt: Prompt, responses: Sequence[str]) -> list[Ranked]:
        """The responses, best first; unscored ones come last, in the order given."""
        return in_order(self.score(prompt, responses))

    def score_text(self, text: str) -> Result:
        """Score a finished, templated text.

        Raises:
            Refused: its models read by different templates or tokenizers.
        """
        if len(self.readings) > 1:
            raise Refused(
                "the models of this one have different templates or tokenizers, and a finished text fits one of them;"
                " use score, which renders for each"
            )
        return self._made([model.score_text(text) for model in self.models], None)

    def _joined(self, rows: Iterable[Any], found: Sequence[Iterable[Result]]) -> Iterator[Result]:
        for row, *results in zip(rows, *found, strict=True):
            yield self._made(results, row)


def _readings(model: RewardModel) -> frozenset[str]:
    if isinstance(model, LocalModel):
        render = model.spec.render
        return frozenset({f"{tokenizer_hash(model.parts.tokenizer)} {render.layout} {render.template}"})
    unknown = frozenset({f"unknown {id(model)}"})
    return model.readings if isinstance(model, Wrapped) else unknown


def _both(row: Any) -> tuple[Any, Any]:
    """Each answer of a row alone; what is no such row stays, for scoring to say so."""
    try:
        example = as_example(row)
    except BadInput:
        return row, row
    if example.other is None:
        return example, {"response": None}
    return replace(example, other=None), replace(example, response=example.other, steps=(), other=None)


def _strictly(results: Iterator[Result], strict: bool) -> Iterator[Result]:
    for result in results:
        if strict and isinstance(result, Unscored):
            raise Refused(result.reason)
        yield result


def together(rewards: Sequence[Reward], objectives: Mapping[str, float], gate: Mapping[str, float] | None) -> Reward:
    """What several rewards of one answer come to, but for the value: their tokens, and all that was said of them."""
    return Reward(
        0.0,
        objectives=objectives,
        gate=gate,
        tokens=sum(r.tokens for r in rewards),
        cached_tokens=sum(r.cached_tokens for r in rewards),
        truncated=any(r.truncated for r in rewards),
        flags=tuple(dict.fromkeys(flag for r in rewards for flag in r.flags)),
    )


def same_steps(names: Sequence[str], steps: Sequence[Sequence[float]]) -> list[tuple[float, ...]] | Unscored:
    """By step, what each model gave it; unscored where they gave rewards of different numbers of steps."""
    if len({len(own) for own in steps}) > 1:
        counts = ", ".join(f"{name} {len(own)}" for name, own in zip(names, steps, strict=True))
        return Unscored(f"the members gave rewards of different numbers of steps: {counts}")
    return list(zip(*steps, strict=True))


def with_values(reward: Reward, value: float, steps: tuple[float, ...] | None) -> Result:
    """The reward with other numbers; unscored where they are none."""
    if not all(map(math.isfinite, (value, *(steps or ())))):
        told = f"a reward of {reward.value:g} became {value}, which is none; check the reward_spec.json"
        return Unscored(told, failed=True)
    return replace(reward, value=value, steps=steps)
