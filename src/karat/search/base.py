"""The contract of a policy: beginnings of answers in, sampled continuations out. Knows nothing of rewards or labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from karat.types import BadInput, KaratError, Message


class PolicyError(KaratError):
    """A policy as a whole cannot be used: it is down, refuses its key, or knows no such model."""


@dataclass(frozen=True, slots=True)
class Start:
    """A beginning of an answer, and how often it is to be gone on with."""

    prompt: tuple[Message, ...]
    text: str  # the answer so far, with the separator behind its last step; "" is the whole answer still to come
    seeds: tuple[int, ...]  # one for each sample that is wanted, 0 to 2^31 - 1


@dataclass(frozen=True, slots=True)
class Sample:
    """What a policy added to a beginning."""

    text: str  # without the beginning; may be empty
    tokens: int  # that were generated for it, >= 0; 0 where an endpoint does not say
    cut: bool = False  # the length limit ended it, not the policy


@dataclass(frozen=True, slots=True)
class Missing:
    """A sample that could not be had, and why. It counts as a failure of its own, never as a wrong answer."""

    reason: str
    down: bool = False  # the policy itself failed, so that other samples would probably fail too


Drawn: TypeAlias = Sample | Missing


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a policy draws its tokens."""

    temperature: float = 0.8  # > 0
    top_p: float = 1.0  # in (0, 1]; the share of probability that is drawn from
    max_tokens: int = 1024  # of a continuation, >= 1

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise BadInput(f"temperature is {self.temperature:g}, but samples that differ need one above 0")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"top_p is {self.top_p:g}, but it has to be above 0 and at most 1")
        if self.max_tokens < 1:
            raise BadInput(f"max_tokens is {self.max_tokens}, but it has to be at least 1")


class Policy(Protocol):
    """What goes on with answers. The same start and seed give the same sample, whatever is sampled beside it.

    That holds to the bit for built-in policies, up to the rounding of a batch for local models, and as far as it
    keeps to its `seed` for an endpoint.
    """

    fingerprint: str  # changes where the policy does, for runs that are gone on with

    def sample(self, starts: Sequence[Start]) -> list[list[Drawn]]:
        """For each start one sample or `Missing` per seed, in their order.

        Raises:
            PolicyError: no sample of this policy can be had.
        """
        ...
