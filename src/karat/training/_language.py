"""Next tokens learnt beside rewards: those of the steps that are right, by the model's own language head.

Source: Cobbe et al. 2021, arXiv:2110.14168 (the joint objective of verifiers); Yang et al. 2024, arXiv:2406.10216 (GRM:
what a reward model keeps of its language, it generalises by). The head is the language model's and stays as it is.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from karat import types
from karat.engine.base import TrainingForward
from karat.models.heads import Head, log_probabilities
from karat.rewards._local import RewardModule
from karat.rewards.base import Kind
from karat.training._data import Row
from karat.training.loop import Collator, RewardTrainer, losses_of

_READ = "language"  # tokens whose next one is learnt


class LanguageModule(RewardModule):
    """The numbers of the reward head, and the log-probabilities of tokens by a language head."""

    def __init__(self, forward: TrainingForward, head: Head, language: Head, known: int) -> None:
        """`known` tokens are the tokenizer's of old: rows of the language head behind them mean nothing."""
        super().__init__(forward, head)
        self.known = known
        self._language = (language.requires_grad_(False),)  # no part of what is trained and saved

    def collate(self, sequences: list[types.Sequence]) -> dict[str, Any]:
        """The forward's tensors, which of their reads are the reward's, and the tokens behind the others."""
        own = [[name != _READ] * len(_places(s, name)) for s in sequences for name in s.reads]
        return {
            **self.engine_forward.collate(sequences),
            "own_R": torch.tensor([one for some in own for one in some]),
            "next_ids_T": torch.tensor([s.ids[at + 1] for s in sequences for at in _places(s, _READ)]).long(),
        }

    def forward(self, **batch: Tensor) -> Any:
        """Numbers of the head at the reward's reads, float32 [R, k], and log P of T tokens, in nats."""
        own_R, next_ids_T = batch.pop("own_R"), batch.pop("next_ids_T")
        states_RD = self.engine_forward(**batch)
        language = self._language[0].to(states_RD.device)
        return self.head(states_RD[own_R]), log_probabilities(language, states_RD[~own_R], next_ids_T)


class LanguageCollator(Collator):
    """Rows whose right steps are read as language, too."""

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        """One batch; `row_T` says which row each token is of."""
        told = [_spoken(row, self.kind, self.forward.known) for row in rows]
        counts = torch.tensor([sum(len(_places(s, _READ)) for s in row.sequences) for row in told])
        return {**super().__call__(told), "row_T": torch.arange(len(told)).repeat_interleave(counts)}


class LanguageTrainer(RewardTrainer):
    """Adds to the loss of each row that of its tokens, in the mean and weighted."""

    def losses(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """The loss of each row of a batch [B], in nats."""
        numbers_Rk, found_T = model(**inputs["batch"])
        loss_B, row_T = losses_of(self.kind, numbers_Rk, inputs), inputs["row_T"]
        total_B = torch.zeros_like(loss_B).index_add(0, row_T, -found_T)
        count_B = torch.bincount(row_T, minlength=len(loss_B)).clamp(min=1)
        return loss_B + self.kind.language_weight * total_B / count_B


def _places(sequence: types.Sequence, name: str) -> Sequence[int]:
    read = sequence.reads.get(name, ())
    assert isinstance(read, tuple)
    return read


def _spoken(row: Row, kind: Kind, known: int) -> Row:
    """With a read of the tokens before each one of the steps worth saying; what branches share is said once."""
    found, said = [], list[tuple[int, ...]]()
    for sequence, start, steps in zip(row.sequences, row.starts, kind.said_well(row.item), strict=True):
        end = _end(sequence, steps)
        begin = max([start, 1, *(_shared(sequence.ids, ids) for ids in said)])  # nothing foretells the first token
        places = tuple(at - 1 for at in range(begin, end) if sequence.ids[at] < known)
        found.append(replace(sequence, reads={**sequence.reads, _READ: places}) if places else sequence)
        said.append(sequence.ids[:end])
    return replace(row, sequences=tuple(found))


def _end(sequence: types.Sequence, steps: int) -> int:
    """The place behind the mark of the last such step."""
    marks = next(iter(sequence.reads.values()))
    assert isinstance(marks, tuple)
    return marks[steps - 1] + 1 if steps else 0


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens two sequences have in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
