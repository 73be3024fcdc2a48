"""Whether a served model still works: golden inputs score as at the start, and a new text gets a reward."""

import asyncio
import time
from functools import partial

from karat.engine._load import Overloaded, WorkError
from karat.engine._native import release_threads
from karat.models.checkpoint import GOLDEN, golden_drift, golden_inputs, golden_tolerance
from karat.rewards._local import LocalModel, golden_values
from karat.rewards._wrapped import Wrapped
from karat.rewards.base import RewardModel
from karat.rewards.judge import Judge
from karat.serving._pipeline import Pipeline
from karat.serving._rows import Outcome, Row, size_of
from karat.types import CheckpointError, Example, Message, Reward, Unscored

FRESH = 10.0  # seconds for which a verdict stands
PATIENCE = 5.0  # seconds that a canary may take
WARM = (4, 16, 64)  # answers that are scored before anyone comes
TOLERANCE = 1e-3  # of max(1, |score|): other company moves the last bits of half precision


class Canary:
    """Inputs whose scores are known."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._known: list[float | None] = []
        self._seen, self._verdict = 0.0, "it has not started"
        self.drift = 0.0  # by how much a golden score differs from what it was at first, at most

    async def first(self) -> None:
        """Score for the first time.

        Raises:
            CheckpointError: the scores are not those that the checkpoint was saved with, or there are none.
        """
        model = self.pipeline.model
        if isinstance(model, LocalModel) and model.spec.golden:
            drift = await asyncio.to_thread(_drift, model)
            if drift:
                raise CheckpointError(f"the model is not served: {drift}")
        if self._embeds:
            self._verdict = ""
            return
        if _asks(model):
            await self._answered()
            return
        self._known = [_value(one) for one in await self.pipeline.score(self._rows())]
        if not any(value is not None for value in self._known):
            raise CheckpointError(
                "the model gives no score for any golden input, so it is not served; see karat doctor"
            )
        await self._warm()
        self._seen, self._verdict = time.monotonic(), ""

    async def _answered(self) -> None:
        """Ask a judge once, and never again: its questions cost, and it may say something else each time.

        Raises:
            CheckpointError: nobody answers it.
        """
        rows, model = self._rows()[:1], self.pipeline.model
        if model.compares:
            (found,) = await self.pipeline.call(lambda: list(model.compare_many(rows)), sum(map(size_of, rows)))
        else:
            (found,) = await self.pipeline.score(rows)
        if not isinstance(found, Reward | Unscored):
            raise CheckpointError(f"the model is not served: {found}")
        self._verdict = ""

    async def _warm(self) -> None:
        """Score a few, then more: so that how fast it is, is known before anyone comes."""
        for count in WARM:
            began = time.monotonic()
            texts = [f"{place} of {count}: {'What is 7*8? ' * 8}" for place in range(count)]
            rows: list[Row] = [Example((Message("user", text),), "56", other=self._other("54")) for text in texts]
            await self.pipeline.score(rows)
            if time.monotonic() - began > 0.5:
                return

    async def problem(self) -> str:
        """Empty where all is well, else what is not."""
        if self.pipeline.batcher.broken:
            return "the device failed"
        if self._known and time.monotonic() - self._seen > FRESH:
            with self.pipeline.used():
                self._verdict = await self._checked()
            self._seen = time.monotonic()
        return self._verdict

    async def _checked(self) -> str:
        new = Example((Message("user", f"The time is {time.time_ns()}?"),), "It is.", other=self._other("Yes."))
        try:
            *found, fresh = await self.pipeline.score([*self._rows(), new], deadline=time.monotonic() + PATIENCE)
        except Overloaded:
            return ""  # it works, more than it can
        except WorkError as error:
            return str(error)
        pairs = list(zip(self._known, map(_value, found), strict=True))
        self.drift = max((abs(now - known) for known, now in pairs if known is not None and now is not None), default=0)
        for known, now in pairs:
            if (known is None) is not (now is None) or not _close(known, now):
                return f"a golden input that scored {known} now scores {now}"
        return "" if isinstance(fresh, Reward | Unscored) else str(fresh)

    def _rows(self) -> list[Row]:
        if isinstance(self.pipeline.model, LocalModel):
            return list(golden_inputs(self.pipeline.model.spec))
        others = [response for _, response in (*GOLDEN[1:], GOLDEN[0])]
        both = zip(GOLDEN, others, strict=True)
        return [Example((Message("user", ask),), own, other=self._other(other)) for (ask, own), other in both]

    def _other(self, text: str) -> str | None:
        return text if self.pipeline.model.compares else None

    @property
    def _embeds(self) -> bool:
        model = self.pipeline.model
        return isinstance(model, LocalModel) and model.spec.head.type == "hidden"


def _drift(model: LocalModel) -> str:
    """How its scores differ from those that it was saved with; in a thread of its own."""
    try:
        score = partial(golden_values, engine=model.engine)
        return golden_drift(model.parts, model.spec, score, golden_tolerance(model.parts))
    finally:
        release_threads()


def _asks(model: RewardModel) -> bool:
    """Whether a judge gives its rewards, alone or with others."""
    return isinstance(model, Judge) or (isinstance(model, Wrapped) and any(map(_asks, model.models)))


def _value(outcome: Outcome) -> float | None:
    return outcome.value if isinstance(outcome, Reward) else None


def _close(known: float | None, now: float | None) -> bool:
    return known is None or now is None or abs(now - known) <= TOLERANCE * max(1.0, abs(known))
