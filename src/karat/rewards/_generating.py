"""A causal language model of transformers that samples: batches padded on the left, each sample drawn by its own seed.

A sample's tokens are drawn by inverting its distribution's cumulated probabilities at numbers of its seed alone, so
the same start and seed give the same sample whatever shares the batch (up to the rounding of a batch).
"""

import hashlib
import inspect
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from karat.models import backbone
from karat.models._quantised import placed, precision
from karat.models.generation import Opening
from karat.progress import track
from karat.rewards._sampling import Chances, Drawn, Missing, Sample, Sampling, Start
from karat.types import BadInput, Refused

_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.txt", "*.model")  # weights, configs and tokenizers


class _Draw(LogitsProcessor):
    """Leaves of each row's scores, [B, V], only the token that its own random numbers draw; for None the likeliest."""

    def __init__(self, seeds: Sequence[int | None]) -> None:
        self._chances = [None if seed is None else Random(f"sample/{seed}") for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cumulated_BV = scores.double().softmax(-1).cumsum(-1)
        points = [[chance.random() if chance else 0.0] for chance in self._chances]
        points_B1 = torch.tensor(points, dtype=torch.float64, device=scores.device) * cumulated_BV[:, -1:]
        # right: a token of probability 0 is never drawn, even where the number is 0 or a boundary
        drawn_B1 = torch.searchsorted(cumulated_BV, points_B1, right=True).clamp(max=scores.shape[-1] - 1)
        greedy_B1 = torch.tensor([[chance is None] for chance in self._chances], device=scores.device)
        drawn_B1 = torch.where(greedy_B1, scores.argmax(-1, keepdim=True), drawn_B1)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn_B1, 0.0)


class _Stops(StoppingCriteria):
    """Ends a row behind the token with which its new text comes to hold one of its stop texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[tuple[str, ...]], begin: int) -> None:
        """`begin`: tokens of the batch's rows before anything is generated."""
        self.at: dict[int, int] = {}  # by row, how many new tokens it has then
        self._tokenizer, self._stops, self._begin = tokenizer, stops, begin
        # Tokens that are looked at: a character is 4 bytes at most.
        self._tail = 4 * max((len(word) for own in stops for word in own), default=0) + 4

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        count = input_ids.shape[1] - self._begin
        open_ = [row for row, stop in enumerate(self._stops) if stop and row not in self.at]
        tails = input_ids[:, -min(count, self._tail) :][open_].tolist()
        texts = self._tokenizer.batch_decode(tails, skip_special_tokens=True) if open_ else []
        for row, text in zip(open_, texts, strict=True):
            if any(word in text for word in self._stops[row]):
                self.at[row] = count
        return torch.tensor([row in self.at for row in range(len(self._stops))], device=input_ids.device)


class _Wanted(NamedTuple):
    """One sample to be drawn."""

    place: int  # of its start
    ids: list[int]
    seed: int | None  # None: greedy
    stop: tuple[str, ...] = ()


class Local:
    """A loaded causal language model."""

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, sampling: Sampling, batch_size: int, fingerprint: str
    ) -> None:
        """`batch_size` is the number of sequences that are sampled at a time, at least 1."""
        if batch_size < 1:
            raise BadInput(f"batch_size is {batch_size}, but it has to be at least 1")
        self.fingerprint = f"{fingerprint} {sampling}"
        self._model, self._tokenizer, self._sampling, self._batch_size = model, tokenizer, sampling, batch_size
        self._opening = Opening(tokenizer)
        self._positions = backbone.positions(model.config)
        self._ends = _ends(model, tokenizer)
        self._by_text: dict[str, list[int]] | None = None  # ids of tokens by what they say, once that is asked
        takes = inspect.signature(model.base_model.forward).parameters
        # Other caches (recurrent states, sliding windows that are full) cannot be given to several rows like that.
        self._shares = {"position_ids", "past_key_values"} <= takes.keys() and not _windowed(model.config)
        # What the folder says of sampling (a temperature, a penalty) would be applied on top of ours.
        model.generation_config = GenerationConfig()

    @property
    def module(self) -> Any:
        """The causal language model itself."""
        return self._model

    def sample(self, starts: Sequence[Start]) -> list[list[Drawn]]:
        """For each start one continuation per seed; a beginning that leaves no room is `Missing`."""
        found: list[list[Drawn]] = [[] for _ in starts]
        wanted: list[_Wanted] = []
        for place, start in enumerate(starts):
            ids = self._encoded(start)
            if isinstance(ids, Missing):
                found[place] = [ids for _ in start.seeds]
            else:
                wanted += [_Wanted(place, ids, None if start.greedy else seed, start.stop) for seed in start.seeds]
        for place, drawn in self._all(wanted):
            found[place].append(drawn)
        return found

    def _all(self, wanted: list[_Wanted]) -> list[tuple[int, Drawn]]:
        """In the order of `wanted`; sequences of like lengths share a batch, and all of a batch have the same room."""
        order = sorted(range(len(wanted)), key=lambda i: len(wanted[i].ids))
        drawn: dict[int, Drawn] = {}
        for batch in track(self._batches(order, wanted), len(wanted), "sampled", size=len):
            drawn.update(zip(batch, self._batch([wanted[i] for i in batch], self._room(wanted[batch[0]])), strict=True))
        return [(one.place, drawn[i]) for i, one in enumerate(wanted)]

    def _batches(self, order: Sequence[int], wanted: Sequence[_Wanted]) -> Iterator[list[int]]:
        for _, group in groupby(order, key=lambda i: self._room(wanted[i])):
            while batch := list(islice(group, self._batch_size)):
                yield batch

    def _room(self, one: _Wanted) -> int:
        """How many tokens may follow."""
        room = self._sampling.max_tokens
        return room if self._positions is None else min(room, self._positions - len(one.ids))

    def _batch(self, wanted: list[_Wanted], room: int) -> list[Drawn]:
        longest = max(len(one.ids) for one in wanted)
        stops = _Stops(self._tokenizer, [one.stop for one in wanted], longest)
        found = self._generated([one.ids for one in wanted], room, self._steps([one.seed for one in wanted]), stops)
        new = [row[: stops.at.get(i, room)] for i, row in enumerate(found.sequences[:, longest:].tolist())]
        return [self._read(one.ids, own).up_to(one.stop) for one, own in zip(wanted, new, strict=True)]

    def _steps(self, seeds: Sequence[int | None]) -> LogitsProcessorList:
        """What is done to logits before the likeliest token is taken."""
        if self._sampling.temperature == 0:
            return LogitsProcessorList()
        steps = LogitsProcessorList([TemperatureLogitsWarper(self._sampling.temperature)])
        if self._sampling.top_p < 1:
            steps.append(TopPLogitsWarper(self._sampling.top_p))
        steps.append(_Draw(seeds))
        return steps

    @torch.inference_mode()
    def _generated(
        self, rows: Sequence[list[int]], room: int, steps: LogitsProcessorList, stops: _Stops | None = None
    ) -> Any:
        """What transformers' `generate` makes of rows of ids, padded on the left; its `logits` are the model's own."""
        longest = max(map(len, rows))
        pad = self._ends[0] if self._ends else 0  # the mask decides; any id will do
        padded = [[pad] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        ids_BL, mask_BL = (torch.tensor(table, device=self._model.device) for table in (padded, mask))
        with backbone.quiet():
            return self._model.generate(
                input_ids=ids_BL,
                attention_mask=mask_BL,
                past_key_values=self._shared(ids_BL, mask_BL),
                logits_processor=steps,
                stopping_criteria=StoppingCriteriaList([stops] if stops else []),
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=room,
                    eos_token_id=self._ends or None,
                    pad_token_id=pad,
                    return_dict_in_generate=True,
                    output_logits=room == 1,
                ),
            )

    def _shared(self, ids_BL: Tensor, mask_BL: Tensor) -> DynamicCache | None:
        """Keys and values of all tokens but the last, computed once for equal rows; None where there are none."""
        both_BL = ids_BL * 2 + mask_BL
        distinct_DL, row_B = torch.unique(both_BL[:, :-1], dim=0, return_inverse=True)
        if len(distinct_DL) == len(ids_BL) or not distinct_DL.shape[1] or not self._shares:
            return None
        mask_DL = distinct_DL % 2
        found = self._model.base_model(
            input_ids=distinct_DL // 2,
            attention_mask=mask_DL,
            position_ids=(mask_DL.cumsum(-1) - 1).clamp(min=0),
            use_cache=True,
        ).past_key_values
        found.reorder_cache(row_B)
        return cast(DynamicCache, found)

    def chances(self, starts: Sequence[Start], words: Sequence[str]) -> list[Chances | Missing]:
        """For each start, the probabilities of words as its first token; blanks around a token's text aside.

        Raises:
            Refused: no token is such a word.
        """
        ids = [self._ids_of(word) for word in words]
        encoded = [self._encoded(start) for start in starts]
        good = [i for i, own in enumerate(encoded) if not isinstance(own, Missing)]
        found: dict[int, Chances] = {}
        for first in range(0, len(good), self._batch_size):
            batch = good[first : first + self._batch_size]
            rows = [own for i in batch if not isinstance(own := encoded[i], Missing)]
            probs_BV = self._generated(rows, 1, LogitsProcessorList()).logits[0].double().softmax(-1)
            of_words = [tuple(float(row[own].sum()) for own in ids) for row in probs_BV]
            found |= {i: Chances(own, len(row)) for i, own, row in zip(batch, of_words, rows, strict=True)}
        return [found[i] if isinstance(own, list) else own for i, own in enumerate(encoded)]

    def _ids_of(self, word: str) -> list[int]:
        if self._by_text is None:
            self._by_text = {}
            for number in range(len(self._tokenizer)):
                self._by_text.setdefault(str(self._tokenizer.decode([number])).strip(), []).append(number)
        if word not in self._by_text:
            raise Refused(f"no token of this model is {word!r}, so it has no probability; read the verdict as text")
        return self._by_text[word]

    def _read(self, before: list[int], new: list[int]) -> Sample:
        """The text of what was generated up to the end token, as it reads behind the text before it."""
        end = next((i for i, token in enumerate(new) if token in self._ends), None)
        kept = new if end is None else new[:end]
        head, whole = (str(self._tokenizer.decode(ids, skip_special_tokens=True)) for ids in (before, before + kept))
        alone = str(self._tokenizer.decode(kept, skip_special_tokens=True))
        text = whole[len(head) :] if whole.startswith(head) else alone
        return Sample(text, len(kept) + (end is not None), end is None, len(before))

    def _encoded(self, start: Start) -> list[int] | Missing:
        """Ids of the prompt by the chat template, ready for the answer, and of its beginning."""
        try:
            ids = self._opening(start.prompt, start.text)
        except Refused as error:
            return Missing(str(error))
        if self._positions is not None and len(ids) >= self._positions:
            return Missing(f"{len(ids)} tokens leave no room in the policy's {self._positions} for an answer")
        return ids


def load(
    path: str,
    sampling: Sampling,
    batch_size: int = 32,
    device: str = "auto",
    dtype: str = "auto",
    template: str = "",
) -> Local:
    """The policy in a folder or of a hub id; `template` is a chat template in place of its own.

    Raises:
        Refused: there is no causal language model that can be loaded.
    """
    folder = backbone.locate(path)
    tokenizer = backbone.load_tokenizer(folder)
    model, report = backbone.from_pretrained(AutoModelForCausalLM, folder, **placed(folder, device, dtype))
    if missing := report["missing_keys"]:
        raise Refused(
            f"{path} is no causal language model: it lacks {sorted(missing)[0]}; give a policy or a judge,"
            " not a reward model"
        )
    if template:
        tokenizer.chat_template = template
    told = _fingerprint(folder, template, precision(model))
    return Local(model.eval(), tokenizer, sampling, batch_size, told)


def _ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end an answer: what the model's generation config names, and the tokenizer's EOS."""
    named = getattr(model.generation_config, "eos_token_id", None)
    ids = named if isinstance(named, list) else [named]
    return sorted({int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None})


def _windowed(config: Any) -> bool:
    """Whether a model's layers are anything but full attention."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or {"full_attention"})
    return kinds != {"full_attention"} or getattr(text, "sliding_window", None) is not None


def _fingerprint(folder: Path, template: str, dtype: str) -> str:
    """Of all of a model's files, by size and time of the last change, a template in place of theirs, and the dtype."""
    files = sorted(file for pattern in _FILES for file in folder.glob(pattern))
    told = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr((told, template, dtype)).encode()).hexdigest()[:16]
