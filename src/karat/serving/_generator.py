"""Answers of a language model to many callers at a time, by transformers' continuous batching, token by token.

Its weights are those of a model that is served, in memory once; it takes turns with that model's scoring, a forward
each. It knows token ids; nothing of chats or of HTTP.
"""

import asyncio
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, NamedTuple

from transformers import ContinuousBatchingConfig, GenerationConfig

from karat.engine._load import Load, Overloaded
from karat.engine._work import Closed, Failed, Late
from karat.models import backbone as backbones
from karat.models.generation import Opening, language_model
from karat.rewards._local import LocalModel
from karat.rewards.base import RewardModel
from karat.serving._turns import Turns
from karat.types import BadInput, Message, Refused

PAGE, PAGES = 256, 64  # tokens to a page of keys and values, and pages that are kept
TOKENS = 1024  # to a forward: what scoring waits for at most
SHARE = 2 * PAGES  # that one request may ask for, of all its answers
WAITING = 8 * PAGES  # that are waited for; more are refused
USUAL = 512  # tokens of an answer where nothing is said
READERS = 2  # threads that read conversations
GREEDY = 0.01  # the temperature below which the most probable token is taken: logits by less are not finite
LOSSES = 3  # times in a row that what draws is started anew after an error, with no answer ended in between


class Sampling(NamedTuple):
    """How tokens are drawn."""

    most: int | None = None  # tokens; None: USUAL, or as many as there is room for
    temperature: float = 1.0  # below GREEDY: the most probable token
    top_p: float = 1.0  # in (0, 1]
    top_k: int | None = None  # None: all


class Generator:
    """A language model for many callers."""

    def __init__(self, model: RewardModel, path: str, turns: Turns) -> None:
        """Raises Refused where the folder or hub id holds no language model."""
        if not isinstance(model, LocalModel):
            raise Refused("a model that is made of others has no weights to generate with; leave --generate out")
        parts = model.parts
        self.tokenizer = parts.tokenizer
        try:
            self.opening = Opening(parts.tokenizer)
            if self.opening.template is None:
                raise Refused("the tokenizer has no chat template, so a conversation has no text")
            self._model = language_model(parts, backbones.locate(path))
        except Refused as error:
            raise Refused(f"{error}; leave --generate out") from None
        self.ends = _ends(self._model, path, parts.tokenizer)
        self.positions = min(model.renderer.max_length or PAGE * PAGES, parts.positions or PAGE * PAGES, PAGE * PAGES)
        self._longest = max(map(len, parts.tokenizer.get_vocab()))  # characters of a token
        self._readers, self._reading = ThreadPoolExecutor(READERS, "karat-open"), Load(1e6)  # in characters
        self._turns, self._pages = turns, PAGES
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._load = Load(10.0)  # in pages
        self._numbers = itertools.count()
        self.drawn = 0  # tokens, over its life
        self._losses, self._closed = 0, False
        self._manager = self._made()
        self._start()
        turns.threads += 1

    def _made(self) -> Any:  # ContinuousBatchingManager
        self._model.register_forward_pre_hook(lambda *_: self._turns.__enter__())
        self._model.register_forward_hook(lambda *_: self._turns.__exit__(), always_call=True)
        vocabulary = len(self._model.get_output_embeddings().weight)
        # What differs between requests needs a value here that is not the usual one.
        sampling = GenerationConfig(
            do_sample=True, temperature=0.5, top_k=vocabulary, top_p=0.5, eos_token_id=self.ends or -1, max_new_tokens=1
        )
        kept = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=PAGES,
            max_batch_tokens=TOKENS,
            per_request_processors=True,
            auto_switch_to_flash=False,  # it would fetch kernels
            use_cuda_graph=False,  # a replayed graph has no hooks, and takes no turns
            use_async_batching=False,
        )
        with backbones.quiet():
            manager = self._model.init_continuous_batching(sampling, continuous_batching_config=kept)
        self._vocabulary = vocabulary
        return manager

    def _start(self) -> None:
        """Begin to draw, in a thread that is a daemon as its starter is: a start that fails later has to end."""
        with backbones.quiet():
            starter = threading.Thread(target=self._manager.start, daemon=True)
            starter.start()
            starter.join()

    async def answers(
        self, messages: Sequence[Message], begun: str, count: int, sampling: Sampling, deadline: float | None = None
    ) -> tuple[list[int], list[AsyncIterator[list[int]]]]:
        """The ids of a conversation, and those of answers to it, a few at a time as they are drawn, ends included.

        `begun` is the beginning of each answer; it counts among the conversation.

        Raises:
            Refused: the conversation has no text, or leaves no room for an answer.
            BadInput: the answers are more or longer than there is ever room for.
            Overloaded: too many wait already.
            Late: the deadline passed before there was room.
        """
        ids = await self._read(messages, begun, deadline)
        room = self.positions - len(ids)
        if room < 1:
            raise Refused(f"{len(ids)} tokens leave no room in the model's {self.positions} for an answer")
        if sampling.most is not None and sampling.most > room:
            raise BadInput(
                f"{len(ids)} tokens and max_tokens={sampling.most} are more than the model's {self.positions}"
            )
        most = sampling.most or min(USUAL, room)
        if (pages := count * _pages(ids, most)) > SHARE:
            raise BadInput(
                f"n={count} answers of up to {most} tokens take {pages} pages, and a request has {SHARE} of"
                f" {PAGE} tokens; ask for fewer at a time, or shorter ones by max_tokens"
            )
        self._check_room(pages)
        return ids, [self._drawn(ids, most, sampling, deadline) for _ in range(count)]

    async def _read(self, messages: Sequence[Message], begun: str, deadline: float | None) -> list[int]:
        """The ids of a conversation, off the event loop; what no tokens of the model could say is not looked at."""
        size = sum(len(message.content) for message in messages) + len(begun)
        if size > self._longest * self.positions:
            raise Refused(f"{size} characters leave no room in the model's {self.positions} tokens for an answer")
        now, loop = time.monotonic(), asyncio.get_running_loop()
        self._reading.admit(size, math.inf if deadline is None else deadline - now)
        self._reading.start(size, now)
        try:
            async with asyncio.timeout_at(_ends_at(deadline)):
                return await loop.run_in_executor(self._readers, self.opening, messages, begun)
        except TimeoutError:
            raise Late("the deadline passed before the conversation was read") from None
        finally:
            self._reading.stop(size, time.monotonic())

    async def _drawn(
        self, ids: list[int], most: int, sampling: Sampling, deadline: float | None
    ) -> AsyncIterator[list[int]]:
        """The ids of an answer, when there is room for it."""
        pages, ends, begun = _pages(ids, most), _ends_at(deadline), False
        self._load.start(pages, time.monotonic())
        try:
            await self._take(pages, ends)
            begun = True
            async with aclosing(self._told(ids, most, sampling, ends)) as told:  # type: ignore[type-var]
                async for new in told:
                    yield new
        finally:
            self._give(pages if begun else 0)
            self._load.stop(pages, time.monotonic(), begun)

    async def _told(
        self, ids: list[int], most: int, sampling: Sampling, ends: float | None
    ) -> AsyncIterator[list[int]]:
        """The ids of an answer, as what draws tells them."""
        name, told, seen = f"{next(self._numbers)}", asyncio.Queue[Any](), 0
        self._go_on()
        try:
            self._manager.register_result_handler(name, told.put_nowait)
            self._add(name, ids, most, sampling)
            while True:
                async with asyncio.timeout_at(ends):
                    found = await told.get()
                if found.error:
                    raise Failed(f"the model failed on this: {found.error:.200}")
                new, seen = found.generated_tokens[seen:], len(found.generated_tokens)
                self.drawn += len(new)
                if new:
                    yield new
                if found.is_finished():
                    self._losses = 0
                    return
        except TimeoutError:
            raise Late("the deadline passed before the answer ended") from None
        finally:
            self._manager.output_router.result_handlers.pop(name, None)
            self._manager.cancel_request(name)

    @property
    def runs(self) -> bool:
        """Whether anything is generated, or would be for who asks: an error in a forward ends what draws."""
        return not self._closed and (bool(self._manager.is_running()) or self._losses < LOSSES)

    def _go_on(self) -> None:
        """Start what draws anew where an error has ended it; those whose answers it drew were told.

        Raises:
            Closed: it ended again and again.
        """
        if not self.runs:
            raise Closed("nothing is generated any more; start the server anew")
        if not self._manager.is_running():
            self._losses += 1
            self._start()

    def _add(self, name: str, ids: list[int], most: int, sampling: Sampling) -> None:
        greedy = sampling.temperature < GREEDY
        added = self._manager.add_request(
            ids,
            request_id=name,
            max_new_tokens=most,
            streaming=True,
            temperature=1.0 if greedy else float(sampling.temperature),
            top_p=float(sampling.top_p),
            top_k=1 if greedy else min(sampling.top_k or self._vocabulary, self._vocabulary),
        )
        if added is None:  # an error is just ending it
            raise Closed("nothing is generated at the moment; try again")

    # Pages: what is begun can be ended, as transformers stops for good where it runs out of them

    def _check_room(self, pages: int) -> None:
        """Raise Overloaded where more would wait than may."""
        waiting = sum(wanted for wanted, mine in self._waiting if not mine.done())
        if waiting and waiting + pages > WAITING:
            raise Overloaded(self._load.wait(pages), math.ceil(max(1.0, pages / self._load.rate)))

    async def _take(self, pages: int, ends: float | None) -> None:
        if not self._waiting and pages <= self._pages:
            self._pages -= pages
            return
        self._check_room(pages)
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((pages, mine))
        try:
            async with asyncio.timeout_at(ends):
                await mine
        except BaseException as error:
            taken = mine.done() and not mine.cancelled()
            mine.cancel()
            self._give(pages if taken else 0)  # those behind may fit
            if isinstance(error, TimeoutError):
                raise Late("the deadline passed before this was begun") from None
            raise

    def _give(self, pages: int) -> None:
        self._pages += pages
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self._pages):
            wanted, waits = self._waiting.popleft()
            if not waits.done():
                self._pages -= wanted
                waits.set_result(None)

    def close(self) -> None:
        """End; what is being drawn fails."""
        self._turns.threads -= not self._closed
        self._closed = True
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._manager.stop(block=True, hard_stop=True, timeout=10.0)


def _pages(ids: Sequence[int], most: int) -> int:
    """What an answer of up to `most` tokens takes."""
    return math.ceil((len(ids) + most) / PAGE)


def _ends_at(deadline: float | None) -> float | None:
    """The event loop's time of a deadline, which is of the monotonic clock."""
    return None if deadline is None else asyncio.get_running_loop().time() + deadline - time.monotonic()


def _ends(model: Any, path: str, tokenizer: Any) -> list[int]:
    """The ids that end an answer: what the folder says of generating, and the tokenizer's EOS."""
    try:
        named = GenerationConfig.from_pretrained(backbones.locate(path)).eos_token_id
    except OSError:  # none is there
        named = model.config.get_text_config().eos_token_id
    ids = named if isinstance(named, list) else [named]
    return sorted({int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None})
