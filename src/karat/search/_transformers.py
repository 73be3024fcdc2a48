"""A causal language model of transformers as a policy: batches padded on the left, each sample drawn by its own seed.

A sample's tokens are drawn by inverting its distribution's cumulated probabilities at numbers of its seed alone, so
the same start and seed give the same sample whatever shares the batch (up to the rounding of a batch).
"""

import hashlib
from collections.abc import Sequence
from itertools import groupby, islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from karat.models import backbone
from karat.models._literal import LiteralEncoder
from karat.models.render import chat_template
from karat.search.base import Drawn, Missing, Sample, Sampling, Start
from karat.types import BadInput, Message, Refused


class _Draw(LogitsProcessor):
    """Leaves of each row's scores, [B, V], only the token that its own random numbers draw."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._chances = [Random(f"sample/{seed}") for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cumulated_BV = scores.double().softmax(-1).cumsum(-1)
        points = [[chance.random()] for chance in self._chances]
        points_B1 = torch.tensor(points, dtype=torch.float64, device=scores.device) * cumulated_BV[:, -1:]
        # right: a token of probability 0 is never drawn, even where the number is 0 or a boundary
        drawn_B1 = torch.searchsorted(cumulated_BV, points_B1, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn_B1, 0.0)


class _Wanted(NamedTuple):
    """One sample to be drawn."""

    place: int  # of its start
    ids: list[int]
    seed: int


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
        self._template = chat_template(tokenizer)
        self._literal = LiteralEncoder(tokenizer)
        self._positions = backbone.positions(model.config)
        self._ends = _ends(model, tokenizer)
        # What the folder says of sampling (a temperature, a penalty) would be applied on top of ours.
        model.generation_config = GenerationConfig()

    def sample(self, starts: Sequence[Start]) -> list[list[Drawn]]:
        """For each start one continuation per seed; a beginning that leaves no room is `Missing`."""
        found: list[list[Drawn]] = [[] for _ in starts]
        wanted: list[_Wanted] = []
        for place, start in enumerate(starts):
            ids = self._encoded(start)
            if isinstance(ids, Missing):
                found[place] = [ids for _ in start.seeds]
            else:
                wanted += [_Wanted(place, ids, seed) for seed in start.seeds]
        for place, drawn in self._all(wanted):
            found[place].append(drawn)
        return found

    def _all(self, wanted: list[_Wanted]) -> list[tuple[int, Drawn]]:
        """In the order of `wanted`; sequences of like lengths share a batch, and all of a batch have the same room."""
        order = sorted(range(len(wanted)), key=lambda i: len(wanted[i].ids))
        drawn: dict[int, Drawn] = {}
        for room, group in groupby(order, key=lambda i: self._room(wanted[i])):
            while batch := list(islice(group, self._batch_size)):
                drawn.update(zip(batch, self._batch([wanted[i] for i in batch], room), strict=True))
        return [(one.place, drawn[i]) for i, one in enumerate(wanted)]

    def _room(self, one: _Wanted) -> int:
        """How many tokens may follow."""
        room = self._sampling.max_tokens
        return room if self._positions is None else min(room, self._positions - len(one.ids))

    @torch.inference_mode()
    def _batch(self, wanted: list[_Wanted], room: int) -> list[Drawn]:
        longest = max(len(one.ids) for one in wanted)
        pad = self._ends[0] if self._ends else 0  # the mask decides; any id will do
        rows = [[pad] * (longest - len(one.ids)) + one.ids for one in wanted]
        mask = [[0] * (longest - len(one.ids)) + [1] * len(one.ids) for one in wanted]
        steps = LogitsProcessorList([TemperatureLogitsWarper(self._sampling.temperature)])
        if self._sampling.top_p < 1:
            steps.append(TopPLogitsWarper(self._sampling.top_p))
        steps.append(_Draw([one.seed for one in wanted]))
        with backbone.quiet():
            ids_BL = self._model.generate(
                input_ids=torch.tensor(rows, device=self._model.device),
                attention_mask=torch.tensor(mask, device=self._model.device),
                logits_processor=steps,
                generation_config=GenerationConfig(
                    do_sample=False, max_new_tokens=room, eos_token_id=self._ends or None, pad_token_id=pad
                ),
            )
        return [self._read(one.ids, new) for one, new in zip(wanted, ids_BL[:, longest:].tolist(), strict=True)]

    def _read(self, before: list[int], new: list[int]) -> Sample:
        """The text of what was generated up to the end token, as it reads behind the text before it."""
        end = next((i for i, token in enumerate(new) if token in self._ends), None)
        kept = new if end is None else new[:end]
        head, whole = (str(self._tokenizer.decode(ids, skip_special_tokens=True)) for ids in (before, before + kept))
        alone = str(self._tokenizer.decode(kept, skip_special_tokens=True))
        text = whole[len(head) :] if whole.startswith(head) else alone
        return Sample(text, len(kept) + (end is not None), cut=end is None)

    def _encoded(self, start: Start) -> list[int] | Missing:
        """Ids of the prompt by the chat template, ready for the answer, and of its beginning."""
        try:
            ids = self._literal.encode_masked(self._text(start), add_special_tokens=self._template is None)
        except Refused as error:
            return Missing(str(error))
        if self._positions is not None and len(ids) >= self._positions:
            return Missing(f"{len(ids)} tokens leave no room in the policy's {self._positions} for an answer")
        if not ids:
            return Missing("the prompt is empty, so there is nothing to go on from")
        return ids

    def _text(self, start: Start) -> str:
        """The text to go on from; names of control tokens in a message or the beginning are masked."""
        if self._template is None:
            return self._literal.mask("\n\n".join([*(m.content for m in start.prompt), start.text]))
        plain = self._applied([{"role": m.role, "content": m.content} for m in start.prompt])
        masked = self._applied([{"role": m.role, "content": self._masked(m)} for m in start.prompt])
        if self._literal.unmask(masked) != plain:
            raise Refused("a message holds a control token and the template looks into it, so its text is not read")
        return masked + self._literal.mask(start.text)

    def _masked(self, message: Message) -> str:
        spelled = self._literal.holds_control(message.content) or self._literal.may_join(message.content)
        return self._literal.mask_message(message.content) if spelled else message.content

    def _applied(self, messages: list[dict[str, str]]) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
                )
            )
        except Exception as error:  # a template is a program: whatever it raises is about this conversation
            raise Refused(f"the policy's template refuses this conversation: {backbone.first_line(error)}") from None


def load(path: str, sampling: Sampling, batch_size: int = 32, device: str = "auto", dtype: str = "auto") -> Local:
    """The policy in a folder or of a hub id.

    Raises:
        Refused: there is no causal language model that can be loaded.
    """
    folder = backbone.locate(path)
    config = backbone.load_config(folder)
    tokenizer = backbone.load_tokenizer(folder)
    where = backbone.choose_device(device)
    model, report = backbone.from_pretrained(
        AutoModelForCausalLM, folder, dtype=backbone.choose_dtype(dtype, where, config)
    )
    if missing := report["missing_keys"]:
        raise Refused(
            f"{path} is no causal language model: it lacks {sorted(missing)[0]}; give a policy, not a reward model"
        )
    return Local(model.to(where).eval(), tokenizer, sampling, batch_size, _fingerprint(folder))


def _ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end an answer: what the model's generation config names, and the tokenizer's EOS."""
    named = getattr(model.generation_config, "eos_token_id", None)
    ids = named if isinstance(named, list) else [named]
    return sorted({int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None})


def _fingerprint(folder: Path) -> str:
    """Of the config's text and the names and sizes of the weights."""
    files = sorted(folder.glob("*.safetensors"))
    text = repr([(f.name, f.stat().st_size) for f in files]) + (folder / "config.json").read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()[:16]
