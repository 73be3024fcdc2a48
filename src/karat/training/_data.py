"""Files → rows that a kind can learn from, with an account of every row that was dropped, cut or tied."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from karat import types
from karat.formats import base as formats
from karat.formats.base import mix, split_by_prompt
from karat.models.render import Rendered, Renderer
from karat.rewards.base import Kind
from karat.training.config import TrainConfig
from karat.types import BadInput, Item, Pair, Unscored


@dataclass(frozen=True)
class Row:
    """One training row, rendered."""

    item: Item
    sequences: tuple[types.Sequence, ...]


@dataclass
class Account:
    """What became of the rows of a set: `dropped`, `cut` and `tied` are lists of (origin, reason)."""

    name: str
    used: int = 0
    dropped: list[tuple[str, str]] = field(default_factory=list)
    cut: list[tuple[str, str]] = field(default_factory=list)
    tied: list[tuple[str, str]] = field(default_factory=list)

    def lines(self, most: int = 5) -> list[str]:
        """The account for people: counts by reason, and the first rows of each."""
        out = [f"{self.name}: {self.used} rows used"]
        for word, listed in (("dropped", self.dropped), ("cut", self.cut), ("tied", self.tied)):
            for reason, count in Counter(reason for _, reason in listed).most_common():
                where = [origin for origin, r in listed if r == reason]
                more = f", … {count - most} more" if count > most else ""
                out.append(f"  {word} {count}: {reason} ({', '.join(where[:most])}{more})")
        return out

    def write(self, path: Path) -> None:
        """Every row that was dropped, cut or tied, one JSON line each."""
        with path.open("a", encoding="utf-8") as file:
            for word in ("dropped", "cut", "tied"):
                for origin, reason in getattr(self, word):
                    file.write(json.dumps({"set": self.name, "row": origin, "what": word, "why": reason}) + "\n")


def read(sources: Iterable[str], name: str, format: str | None, seed: int) -> tuple[list[Any], Account]:
    """The items of a weighted mixture of files, and the rows that could not be read."""
    loaded = [formats.load(source, format) for source in sources]
    account = Account(name, dropped=[(p.origin, p.reason) for part in loaded for p in part.problems])
    return mix([(part.items, part.source.weight) for part in loaded], seed), account


def read_both(config: TrainConfig) -> tuple[tuple[list[Any], Account], tuple[list[Any], Account]]:
    """Training and held-out items. Where no files are named, whole prompts are held out of the training files."""
    items, account = read(config.data, "train", config.format, config.seed)
    if share := config.held_out_share:
        train, rest = split_by_prompt(items, share, config.seed)
        return (train, account), (rest, Account("eval"))
    files = [source for source in config.eval if source not in ("0", "0.0")]
    return (items, account), read(files, "eval", config.format, config.seed)


def prepare(items: Sequence[Any], kind: Kind, renderer: Renderer, over_length: str, account: Account) -> list[Row]:
    """Rendered rows; what cannot be learnt from goes to `account`.

    Raises:
        BadInput: the kind does not learn from such items, none remains, or a row is over-long and the policy is error.
    """
    for item in items:
        if not isinstance(item, kind.items):
            raise BadInput(_wrong_items(item, kind))
    rows = [row for item in items if (row := _row(item, kind, renderer, over_length, account))]
    account.used = len(rows)
    if not rows:
        raise BadInput(f"no row of the {account.name} data can be used: " + "; ".join(account.lines(2)[1:]).strip())
    if problem := kind.problem([row.item for row in rows]):
        raise BadInput(f"{account.name} data: {problem}")
    return rows


def _row(item: Item, kind: Kind, renderer: Renderer, over_length: str, account: Account) -> Row | None:
    if problem := kind.problem_of(item):
        account.dropped.append((item.origin, problem))
        return None
    rendered = renderer(kind.examples(item))
    for result in rendered:
        if isinstance(result, Unscored):
            if result.over_length and over_length == "error":
                raise BadInput(f"{item.origin}: {result.reason}; or drop such rows with over_length='drop'")
            account.dropped.append((item.origin, "longer than max_length" if result.over_length else result.reason))
            return None
    sequences = tuple(r.sequence for r in rendered if isinstance(r, Rendered))
    if len(sequences) > 1 and len({s.ids for s in sequences}) == 1:
        account.dropped.append((item.origin, "its answers are the same tokens, so it prefers none"))
        return None
    if any(r.truncated for r in rendered if isinstance(r, Rendered)):
        account.cut.append((item.origin, "prompt cut from the left to fit max_length"))
    if isinstance(item, Pair) and item.preference == 0.5:
        account.tied.append((item.origin, "labelled a tie"))
    return Row(item, sequences)


def _wrong_items(item: Any, kind: Kind) -> str:
    words = {"Pair": "preference pairs", "Labelled": "labelled answers", "Ranking": "rankings", "Example": "answers"}
    wanted = " or ".join(words[c.__name__] for c in kind.items)
    return (
        f"this kind learns from {wanted}, but {getattr(item, 'origin', '') or 'the data'} holds"
        f" {words[type(item).__name__]}; choose the kind for it (karat kinds) or other data"
    )
