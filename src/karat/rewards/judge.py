"""A generative model as a judge, behind an endpoint or here: it is asked in words, and its verdict is the reward.

Source: Zheng et al. 2023, arXiv:2306.05685 (LLM as a judge); Wang et al. 2024, arXiv:2305.17926 (both orders).
A verdict that cannot be read is no reward.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, final

from pydantic import Field, FiniteFloat, ValidationError

from karat.rewards._among import Meeting, Worth, among, in_order
from karat.rewards._endpoint import check_scheme
from karat.rewards._examples import as_one, as_texts, as_two, other_alone, preferred, turned
from karat.rewards._judge_cards import Card, read_card
from karat.rewards._results import averaged, joined
from karat.rewards._sampling import Chances, Drawn, LanguageModel, Missing, PolicyError, Sample, Sampling, Start
from karat.rewards._untrained import Untrained
from karat.rewards._wrapped import Opener, Part, read_spec
from karat.rewards.base import Options, Output, Ranked
from karat.spec import ids_hash, one_line
from karat.types import BadInput, Example, Prompt, Refused, Result, Reward, Unscored, as_messages

CHUNK = 64  # examples that are asked about together
LEAST = 0.5  # probability that the first token is one of the words; with less, the judge does not answer in them
SENDS = True  # texts are handed to another program: a folder that came from a hub may not choose which


class JudgeSpec(Part):
    """`reward_spec.json` of a judge."""

    kind: Literal["judge"] = "judge"
    model: str  # URL of an OpenAI-compatible endpoint, or the folder or hub id of a causal language model
    name: str = ""  # of the endpoint's model; "": it has only one
    card: Card
    votes: int = Field(default=1, ge=1, le=1000)  # verdicts on each question, whose mean counts
    temperature: FiniteFloat = Field(default=0.0, ge=0, le=10)  # at which they are drawn
    max_tokens: int = Field(default=2048, ge=1)  # of a verdict with what leads to it


class JudgeOptions(Options):
    """There are none."""


@final
class JudgeKind(Untrained):
    """Learns from nothing."""

    Options = JudgeOptions
    output: Output = "rating"
    why = "a judge is not trained here; make one with karat judge MODEL --output FOLDER"


KIND = JudgeKind


class Judge:
    """A judge; see `RewardModel` for its methods.

    With a card of two answers it compares: each is read first once, and the probability is the mean over both orders.
    With a card of one answer, its rewards are the mean of the verdicts. A reward's `tokens` are all that were read and
    written for it. Of several votes, those that cannot be read are left out, with the flag "votes_lost"; where that are
    more than half, there is no reward.
    """

    at_steps = False

    def __init__(self, spec: JudgeSpec, model: LanguageModel) -> None:
        self.spec, self.card, self._model = spec, spec.card, model
        self._answered = False  # the model has given an answer

    @property
    def compares(self) -> bool:
        """Whether it has no reward for one answer, only for one beside another."""
        return self.card.compares

    @property
    def output(self) -> Output:
        """What its rewards are: utilities of two answers, probabilities, or ratings in the card's unit."""
        if self.compares:
            return "logit"
        shares = self.card.values and all(0 <= value <= 1 for value in self.card.values.values())
        return "probability" if shares else "rating"

    @property
    def fingerprint(self) -> str:
        """What decides a score beside the text."""
        return ids_hash(f"{self.spec.model_dump_json()}\n{self._model.fingerprint}".encode())

    def score(self, prompt: Prompt, responses: Sequence[str], *, strict: bool = False) -> list[Result]:
        """One result per response, in order."""
        messages = as_messages(prompt)
        return list(self.score_many([Example(messages, own) for own in as_texts(responses)], strict=strict))

    def score_many(self, examples: Iterable[Any], *, strict: bool = False) -> Iterator[Result]:
        """One result per example, in order.

        Raises:
            BadInput: it is one row, and no list of them.
            Refused: it compares, or its model cannot be used at all.
        """
        if isinstance(examples, str | Mapping | Example) or not isinstance(examples, Iterable):
            raise BadInput(f"give a list of rows; this is {examples!r:.80}, so put it into a list if it is a row")
        if self.compares:
            raise Refused("this judge compares two answers and has no reward for one; use compare or rank")
        return _by_chunks(lambda rows: self._judged([as_one(row) for row in rows]), examples, strict)

    def compare_many(self, examples: Iterable[Any], *, strict: bool = False) -> Iterator[Result]:
        """For each example with an `other` answer, the probability that its own is preferred, as the value."""
        return _by_chunks(self._orders if self.compares else self._leads, examples, strict)

    def _orders(self, rows: Sequence[Any]) -> list[Result]:
        """Both orders of each row."""
        read = [as_two(row) for row in rows]
        found = iter(self._judged([e for own in read for e in (own, _changed(own, turned))]))
        return [averaged(next(found), next(found)) for _ in read]

    def _leads(self, rows: Sequence[Any]) -> list[Result]:
        """What two rewards of their own say."""
        read = [as_two(row) for row in rows]
        found = iter(self._judged([_changed(own, alone) for own in read for alone in (_alone, other_alone)]))
        return [self._preferred(next(found), next(found)) for _ in read]

    def _preferred(self, a: Result, b: Result) -> Result:
        if isinstance(a, Unscored) or isinstance(b, Unscored):
            return a if isinstance(a, Unscored) else b
        return joined(a, b, self._compared(a.value, b.value))

    def _compared(self, a: float, b: float) -> float:
        """Of probabilities P(a is right | one is), else who is higher: 1, 0.5 or 0."""
        a_alone, b_alone = a * (1 - b), b * (1 - a)
        if self.output == "probability" and a_alone + b_alone > 0:
            return a_alone / (a_alone + b_alone)
        return float(a > b) + 0.5 * (a == b)

    def compare(self, prompt: Prompt, a: str, b: str) -> float:
        """Probability that `a` is preferred to `b`."""
        return preferred(self.compare_many, prompt, a, b)

    def rank(
        self,
        prompt: Prompt,
        responses: Sequence[str],
        *,
        meeting: Meeting | None = None,
        worth: Worth = "bradley_terry",
    ) -> list[Ranked]:
        """The responses, best first, and unscored ones last; see `LocalModel.rank` for those that compare."""
        if not self.compares:
            return in_order(self.score(prompt, responses))
        examples = [Example(as_messages(prompt), own) for own in as_texts(responses)]
        return in_order(among(self, examples, meeting, worth))

    def score_text(self, text: str) -> Result:
        """None: a judge is shown a prompt and answers."""
        raise Refused("a judge is shown a prompt and its answers, so it has no reward for a finished text; use score")

    # Asking

    def _judged(self, examples: Sequence[Example | Unscored]) -> list[Result]:
        """A result for each; the questions are asked together."""
        asked = [self.card.messages(own) if isinstance(own, Example) else own for own in examples]
        seeds = tuple(range(self.spec.votes))
        starts = [Start(own, self.card.lead, seeds) for own in asked if not isinstance(own, Unscored)]
        found = iter(self._read(starts) if starts else [])
        return [own if isinstance(own, Unscored) else next(found) for own in asked]

    def _read(self, starts: Sequence[Start]) -> list[Result]:
        """What the model says to each.

        Raises:
            Refused: it never said anything, and does not now.
        """
        try:
            if self.card.read == "text":
                results = [self._mean(own) for own in self._model.sample(starts)]
            else:
                results = [self._share(own) for own in self._model.chances(starts, self.card.words)]
        except PolicyError as error:
            if not self._answered:
                raise Refused(str(error)) from None
            return [Unscored(str(error), failed=True)] * len(starts)
        self._answered = self._answered or any(isinstance(own, Reward) for own in results)
        return results

    def _mean(self, drawn: Sequence[Drawn]) -> Result:
        """The mean of the votes that can be read, where these are half of them."""
        votes = [self._vote(own) for own in drawn]
        values = [own for own in votes if not isinstance(own, str)]
        lost = [own for own in votes if isinstance(own, str)]
        if len(values) < max(1, len(lost)):
            told = lost[0] if len(votes) == 1 else f"{len(lost)} of {len(votes)} votes are lost: {lost[0]}"
            return Unscored(told, failed=True)
        tokens = sum(own.tokens + own.read for own in drawn if isinstance(own, Sample))
        return Reward(math.fsum(values) / len(values), tokens=tokens, flags=("votes_lost",) if lost else ())

    def _vote(self, drawn: Drawn) -> float | str:
        """A verdict's value, or why there is none."""
        if isinstance(drawn, Missing):
            return drawn.reason
        if drawn.cut:
            return f"the judge did not come to its end within {self.spec.max_tokens} tokens; raise max_tokens"
        return self.card.value(self.card.lead + drawn.text)

    def _share(self, chances: Chances | Missing) -> Result:
        """The mean of the words' values by their probabilities."""
        if isinstance(chances, Missing):
            return Unscored(chances.reason, failed=True)
        mass = math.fsum(chances.of_words)
        if not mass >= LEAST:
            words = " or ".join(map(repr, self.card.words))
            told = f"the judge says {words} with a probability of {mass:.2g} only; ask in other words"
            return Unscored(told, failed=True)
        weighed = zip(chances.of_words, self.card.values.values(), strict=True)
        return Reward(math.fsum(p * value for p, value in weighed) / mass, tokens=chances.read + 1)


def _changed(own: Example | Unscored, change: Callable[[Example], Example]) -> Example | Unscored:
    return change(own) if isinstance(own, Example) else own


def _alone(own: Example) -> Example:
    return replace(own, other=None)


def _by_chunks(ask: Callable[[list[Any]], list[Result]], rows: Iterable[Any], strict: bool) -> Iterator[Result]:
    left = iter(rows)
    while chunk := list(islice(left, CHUNK)):
        for result in ask(chunk):
            if strict and isinstance(result, Unscored):
                raise Refused(result.reason)
            yield result


def load(folder: Path, opener: Opener, options: Mapping[str, Any]) -> Judge:
    """The judge of a folder."""
    if options:
        raise Refused(f"a judge takes no {next(iter(options))}; make another one with karat judge")
    return open_judge(read_spec(JudgeSpec, folder))


def open_judge(spec: JudgeSpec) -> Judge:
    """A judge, ready to be asked.

    Raises:
        BadInput: votes would all be the same.
        Refused: there is no such model.
    """
    if spec.votes > 1 and (spec.temperature == 0 or spec.card.read == "probabilities"):
        raise BadInput(
            f"{spec.votes} votes would all be the same; give a temperature above 0 and read text, or one vote"
        )
    sampling = Sampling(temperature=spec.temperature, max_tokens=spec.max_tokens)
    if not spec.model.startswith(("http://", "https://")):
        from karat.rewards._generating import load as load_model

        return Judge(spec, load_model(spec.model, sampling))
    from karat.rewards._endpoint import Endpoint

    try:
        return Judge(spec, Endpoint(spec.model, sampling, spec.name or None))
    except PolicyError as error:
        raise Refused(str(error)) from None


def make(model: str, card: str, **settings: Any) -> Judge:
    """A judge of a model with a card, which is a built-in one's name or a JSON file; `settings` are the spec's.

    Raises:
        BadInput: a setting or the card is wrong.
        Refused: there is no such model.
    """
    check_scheme(model)
    where = str(Path(model).absolute()) if Path(model).is_dir() else model.rstrip("/")
    try:
        spec = JudgeSpec(model=where, card=read_card(card), **settings)
    except ValidationError as error:
        raise BadInput(f"a judge's settings are wrong: {one_line(error)}") from None
    return open_judge(spec)
