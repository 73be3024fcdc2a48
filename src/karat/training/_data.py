"""Files → rows that a kind can learn from, with an account of every row that was dropped, cut or tied."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from karat import types
from karat.formats import base as formats
from karat.formats.base import Source, mix, parse_source, split_by_prompt
from karat.models.render import Rendered, Renderer
from karat.rewards.base import Kind
from karat.training._progress import shown
from karat.training.config import TrainConfig
from karat.types import BadInput, Item, Pair, Stepped, Unscored, grouped

_SAME = "its answers are the same tokens, so it prefers none"
_CUT = "prompt cut from the left to fit max_length"
Found: TypeAlias = tuple[Any, str | list[Rendered | Unscored]]
_CHUNK = 64  # items that are rendered together: a quarter faster than one by one


@dataclass(frozen=True)
class Row:
    """One training row, rendered."""

    item: Item
    sequences: tuple[types.Sequence, ...]
    starts: tuple[int, ...] = ()  # where the answers of Stepped begin, in tokens


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
            for reason, places in grouped(reason for _, reason in listed).items():
                where, count = [listed[place][0] for place in places], len(places)
                more = f", … {count - most} more" if count > most else ""
                out.append(f"  {word} {count}: {reason} ({', '.join(where[:most])}{more})")
        return out

    def write(self, path: Path) -> None:
        """Every row that was dropped, cut or tied, one JSON line each."""
        with path.open("a", encoding="utf-8") as file:
            for word in ("dropped", "cut", "tied"):
                for origin, reason in getattr(self, word):
                    file.write(json.dumps({"set": self.name, "row": origin, "what": word, "why": reason}) + "\n")


def read_both(config: TrainConfig) -> tuple[tuple[list[Any], Account], tuple[list[Any], Account]]:
    """Training and held-out items, and the rows that could not be read.

    Where no files are named, whole prompts are held out of the training files; weights are for training, so that
    each held-out row is judged once.
    """
    sources = [parse_source(text) for text in config.data]
    if config.stream:  # what a run must know before it begins
        sources = [source.first(-(-config.stream // len(sources))) for source in sources]
    parts, account = _load(sources, "train", config.format)
    if not (share := config.held_out_share):
        rest, rest_account = _load(config.eval_files, "eval", config.format)
        return (mix(parts, config.seed), account), (mix(rest, config.seed), rest_account)
    together = [item for items, _ in parts for item in items]
    _require_a_lead(together, account)
    train, held_out = split_by_prompt(together, share, config.seed)
    kept = {id(item) for item in train}
    parts = [([item for item in items if id(item) in kept], weight) for items, weight in parts]
    return (mix(parts, config.seed), account), (held_out, Account("eval"))


def _require_a_lead(items: Sequence[Any], account: Account) -> None:
    """Raise BadInput where every item is a pair of equal answers, before anything else is said of them."""
    if all(isinstance(item, Pair) and item.chosen == item.rejected for item in items):
        require([], replace(account, dropped=[*account.dropped, *((item.origin, _SAME) for item in items)]))


def _load(
    sources: Iterable[Source | str], name: str, format: str | None
) -> tuple[list[tuple[list[Any], float]], Account]:
    loaded = [formats.load(source, format) for source in sources]
    account = Account(name, dropped=[(p.origin, p.reason) for part in loaded for p in part.problems])
    return [(list(part.items), part.source.weight) for part in loaded], account


def prepare(items: Sequence[Any], kind: Kind, renderer: Renderer, over_length: str, account: Account) -> list[Row]:
    """Rendered rows; what cannot be learnt from goes to `account`.

    Raises:
        BadInput: the kind does not learn from such items, or a row is over-long and the policy is error.
    """
    what = f"rendering the {account.name} data"
    with closing(shown(rendered(items, kind, renderer), len(items), what)) as found:
        return collected(found, over_length, account)


def check(rows: Sequence[Row], kind: Kind, account: Account) -> None:
    """Whether these rows can be learnt from.

    Raises:
        BadInput: there are none, none weighs anything, or the kind cannot learn from them as a whole.
    """
    require(rows, account)
    if not any(row.item.weight for row in rows):
        raise BadInput(f"every row of the {account.name} data has the weight 0; give some a weight above 0")
    if problem := kind.problem([row.item for row in rows]):
        raise BadInput(f"{account.name} data: {problem}")


def require(rows: Sequence[Row], account: Account) -> None:
    """Raise BadInput where no row is left, with the reasons."""
    if not rows:
        raise BadInput(f"no row of the {account.name} data can be used: " + "; ".join(account.lines(2)[1:]).strip())


def collected(found: Iterable[Found], over_length: str, account: Account) -> list[Row]:
    """The rows of what was rendered, as `prepare` gives them."""
    rows = [row for item, results in found if (row := _row(item, results, over_length, account))]
    account.used += len(rows)
    return rows


def rendered(items: Sequence[Any], kind: Kind, renderer: Renderer) -> Iterator[Found]:
    """Each item with its sequences, or why it cannot be learnt from.

    Raises:
        BadInput: the kind does not learn from such items.
    """
    for item in items:
        if not isinstance(item, kind.items):
            raise BadInput(_wrong_items(item, kind))
    left = iter(items)
    while chunk := list(islice(left, _CHUNK)):
        found = [kind.problem_of(item) or kind.examples(item) for item in chunk]
        results = iter(renderer(e for some in found if not isinstance(some, str) for e in some))
        for item, some in zip(chunk, found, strict=True):
            yield item, some if isinstance(some, str) else list(islice(results, len(some)))


def _row(item: Item, rendered: str | list[Rendered | Unscored], over_length: str, account: Account) -> Row | None:
    if isinstance(rendered, str):
        account.dropped.append((item.origin, rendered))
        return None
    for result in rendered:
        if isinstance(result, Unscored):
            if result.over_length and over_length == "error":
                raise BadInput(f"{item.origin}: {result.reason}; or drop such rows with over_length='drop'")
            account.dropped.append((item.origin, "longer than max_length" if result.over_length else result.reason))
            return None
    sequences = tuple(r.sequence for r in rendered if isinstance(r, Rendered))
    if isinstance(item, Stepped):
        return _stepped(item, [r for r in rendered if isinstance(r, Rendered)], account)
    if len(sequences) > 1 and len({s.ids for s in sequences}) == 1:
        account.dropped.append((item.origin, _SAME))
        return None
    if any(r.truncated for r in rendered if isinstance(r, Rendered)):
        account.cut.append((item.origin, _CUT))
    if isinstance(item, Pair) and item.preference == 0.5:
        account.tied.append((item.origin, "labelled a tie"))
    return Row(item, sequences)


def _stepped(item: Stepped, rendered: Sequence[Rendered], account: Account) -> Row | None:
    """A row of the steps that were not cut off."""
    sequences = tuple(r.sequence for r in rendered)
    kept = item.first(len(read) for s in sequences for read in s.reads.values() if isinstance(read, tuple))
    if not any(label is not None for labels in kept.labels for label in labels):
        account.dropped.append((item.origin, "every labelled step was cut off by max_length"))
        return None
    if kept.labels != item.labels:
        account.cut.append((item.origin, "steps behind max_length cut off"))
    elif any(r.truncated for r in rendered):
        account.cut.append((item.origin, _CUT))
    return Row(kept, sequences, tuple(r.start for r in rendered))


def _wrong_items(item: Any, kind: Kind) -> str:
    words = {"Pair": "preference pairs", "Labelled": "labelled answers", "Ranking": "rankings", "Example": "answers"}
    words |= {"Stepped": "answers with labelled steps", "Attributed": "answers with rated attributes"}
    wanted = " or ".join(words[c.__name__] for c in kind.items)
    return (
        f"this kind learns from {wanted}, but {getattr(item, 'origin', '') or 'the data'} holds"
        f" {words[type(item).__name__]}; choose the kind for it (karat kinds) or other data"
    )
