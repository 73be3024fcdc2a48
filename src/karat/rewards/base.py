"""The contracts: what everything above karat's rewards may call, and what a kind of reward says about itself.

A kind is a file of this folder; its name is the word that users type and its first line is what `karat kinds` prints.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from karat import members
from karat.spec import RewardSpec, one_line
from karat.types import BadInput, Example, Item, Prompt, Result, Reward, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from karat.models.heads import Head


# What a reward is: log-odds, a probability in [0, 1] (a sigmoid is applied), or a number in the labels' unit.
Output: TypeAlias = Literal["logit", "probability", "rating"]
Method: TypeAlias = Literal["full", "lora", "frozen"]  # what of a model is trained: all, adapters and head, or the head


class Ranked(NamedTuple):
    """One place of a ranking."""

    number: int  # of the response, as it was given, from 0
    result: Result


class Feature(NamedTuple):
    """A training row and what a frozen backbone gives for its answers."""

    item: Item
    states_KD: "Tensor"  # float32, one row per answer, as the head takes them


class RewardModel(Protocol):
    """What search, evaluation, serving and RL use: local, remote, ensembles and judges alike."""

    @property
    def output(self) -> Output:
        """What its rewards are."""
        ...

    @property
    def at_steps(self) -> bool:
        """Whether its rewards come with those of an answer's steps."""
        ...

    @property
    def compares(self) -> bool:
        """Whether it has no reward for one answer, only for one beside another."""
        ...

    def compare_many(self, examples: Iterable[Any], *, strict: bool = False) -> Iterator[Result]:
        """For each example with an `other` answer, the probability that its own is preferred, as the value."""
        ...

    def score(self, prompt: Prompt, responses: Sequence[str], *, strict: bool = False) -> list[Result]:
        """One result per response, in order; `strict` raises Refused for the first that is unscored."""
        ...

    def score_many(self, examples: Iterable[Any], *, strict: bool = False) -> Iterator[Result]:
        """One result per example, in their order, computed in chunks as the iterator is read."""
        ...

    def compare(self, prompt: Prompt, a: str, b: str) -> float:
        """Probability that `a` is preferred to `b`."""
        ...

    def rank(self, prompt: Prompt, responses: Sequence[str]) -> list[Ranked]:
        """The responses, best first; unscored ones come last, in the order given."""
        ...

    def score_text(self, text: str) -> Result:
        """Score a finished, templated text; its control tokens are read."""
        ...


class Options(BaseModel):
    """Base of a kind's training options."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Kind(Protocol):
    """What a kind of reward says about itself; constructed with its options.

    B rows of training data, K reads to a row at most (one to a sequence, or one to a step), k outputs of the head.
    """

    items: tuple[type, ...]  # the item types it learns from
    methods: tuple[Method, ...]  # ways to train it, the usual one first
    output: Output  # what its rewards are
    least: int  # rows that a batch needs
    language_weight: float  # of the loss of an answer's next tokens, which is added to a row's; 0 for none

    @classmethod
    def defaults(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """What a spec of this kind says where neither a checkpoint nor these spec options do."""
        ...

    def told(self, items: Sequence[Item], saved: RewardSpec | None) -> dict[str, Any]:
        """Spec options that only the training rows say; `saved` is the spec of the reward model that is trained on.

        Raises:
            BadInput: the rows cannot be learnt from such a model.
        """
        ...

    def by(self, spec: RewardSpec) -> Self:
        """As it learns with a spec.

        Raises:
            BadInput: it cannot.
        """
        ...

    def learnt(self, item: Any) -> Any:
        """What is learnt of a training row: all of it, or less."""
        ...

    def examples(self, item: Any) -> tuple[Example, ...]:
        """The sequences of one training row."""
        ...

    def judged(self, item: Any, rewards: Sequence[Reward]) -> Sequence[Reward]:
        """The rewards of a row's answers, from those of its sequences."""
        ...

    def problem(self, items: Sequence[Item]) -> str:
        """Why these rows as a whole cannot be learnt from, or the empty string."""
        ...

    def problem_of(self, item: Any) -> str:
        """Why one row cannot be learnt from, or the empty string."""
        ...

    def by_gradient(self, item: Any) -> bool:
        """Whether the loss is of such rows; others are what `solve` uses."""
        ...

    def solve(self, head: "Head", features: Sequence[Feature]) -> list[str]:
        """Set what of a head has a closed form, before anything is learnt by gradient; what a reader should know.

        Raises:
            BadInput: the rows do not determine it.
        """
        ...

    def said_well(self, item: Any) -> tuple[int, ...]:
        """How many first steps of each of a row's answers are worth saying, so that their tokens are learnt."""
        ...

    def size(self, item: Any) -> float:
        """How many labels the loss of a row is the mean of: what it counts beside its weight."""
        ...

    def targets(self, items: Sequence[Any]) -> "dict[str, Tensor]":
        """What the rows say, as tensors whose first axis is B."""
        ...

    def loss(self, numbers_BKk: "Tensor", present_BK: "Tensor", targets: "dict[str, Tensor]") -> "Tensor":
        """Loss of each row, shape [B], in nats or squared labels, from the head's numbers."""
        ...

    def penalty(self, head: "Head") -> "Tensor | float":
        """What the head's weights cost, added to the mean loss of each optimiser step."""
        ...

    def compare(self, a: Reward, b: Reward) -> float:
        """Probability that the answer with reward `a` is preferred."""
        ...


def kinds() -> dict[str, str]:
    """Every kind and its one-line description, read without importing it."""
    return members.describe("rewards")


def kind(name: str, options: dict[str, Any] | None = None) -> Kind:
    """The kind of that name, with its training options.

    Raises:
        BadInput: there is no such kind, or it has no such option; names the nearest.
    """
    module = members.load("rewards", name, "kind")
    known = module.KIND.Options.model_fields
    for option in options or {}:
        if option not in known:
            raise BadInput(f"unknown option {option!r} of kind {name}{nearest(option, known)}")
    try:
        made: Kind = module.KIND(module.KIND.Options(**(options or {})))
    except ValidationError as error:
        raise BadInput(f"an option of kind {name} is wrong: {one_line(error)}") from None
    return made


def defaults(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a spec of a kind says where neither a checkpoint nor these spec options do.

    Raises:
        BadInput: there is no such kind.
    """
    found: dict[str, Any] = members.load("rewards", name, "kind").KIND.defaults(options)
    return found


def option_names(name: str) -> dict[str, Any]:
    """The training options of a kind and their defaults."""
    return {n: field.default for n, field in members.load("rewards", name, "kind").KIND.Options.model_fields.items()}
