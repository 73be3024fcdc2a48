"""The folder of a run, written and read: `run.json` says what was found, `items.parquet` what every item got.

`run.json` carries a version. A reader of a later version keeps reading this one; a folder of a later version than this
is refused, as its columns may mean something else. RewardBench's own result files can be read in a folder's place.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from karat.evaluation import _record, _rewardbench
from karat.evaluation.base import Result, summary
from karat.formats._reading import read_rows
from karat.formats._writing import write_rows
from karat.spec import one_line
from karat.types import BadInput

VERSION = 1
RUN, ITEMS = "run.json", "items.parquet"
_KIND = "karat run"
_COLUMNS = ("subset", "scores_chosen", "scores_rejected")  # of RewardBench's eval-set-scores


@dataclass(frozen=True, slots=True)
class Item:
    """What one item of an evaluation got."""

    key: str  # of its texts
    id: str  # as its benchmark names it; empty where it does not
    part: str
    prompt: str
    responses: tuple[str, ...]
    labels: tuple[float, ...]
    rewards: tuple[float | None, ...]  # None where there is none
    credit: float | None  # in [0, 1]; None where it was not judged


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One evaluation of a run."""

    name: str
    summary: Mapping[str, Any]  # as `karat.evaluation.base.summary` gives it
    items: tuple[Item, ...] = ()
    curves: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # of best-of-n: name → rows
    texts: bool = True  # whether the keys of its items are of their texts


@dataclass(frozen=True, slots=True)
class Run:
    """What one model got."""

    name: str
    model: str
    evaluations: tuple[Evaluated, ...]


def write(folder: Path, title: str, results: Sequence[Result], settings: Mapping[str, Any]) -> None:
    """Writes `run.json` and `items.parquet` into a folder that is there."""
    evaluations = [summary(result) | {"unit": result.unit, "curves": _curves(result)} for result in results]
    found = {"format": _KIND, "version": VERSION, "karat": version("karat"), "title": title}
    found |= {"settings": {name: _plain(value) for name, value in settings.items()}, "evaluations": evaluations}
    text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / RUN).write_text(text.encode("utf-8", "replace").decode() + "\n", encoding="utf-8")
    table = [{"evaluation": place, **row} for place, result in enumerate(results) for row in _record.rows(result)]
    if table:
        write_rows(table, str(folder / ITEMS), like=_like())


def _like() -> dict[str, Any]:
    """The types of columns that may hold no value at all."""
    import pyarrow as pa

    numbers, texts = pa.list_(pa.float64()), pa.list_(pa.string())
    return {"labels": numbers, "rewards": numbers, "responses": texts, "reasons": texts, "credit": pa.float64()}


def _curves(result: Result) -> dict[str, Any]:
    curves = {name.removeprefix("curve_"): rows.tolist() for name, rows in result.arrays.items() if "curve_" in name}
    return {name: [_finite(row) for row in rows] for name, rows in curves.items()}


def _finite(row: Any) -> Any:
    if isinstance(row, list):
        return [_finite(one) for one in row]
    return row if math.isfinite(row) else None


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)


# ---------------------------------------------------------------------------------------------- reading


def read(path: str) -> Run:
    """A run from its folder, or from a result file of RewardBench.

    Raises:
        BadInput: there is none, it is of a later version, or it is not what it says.
    """
    place = Path(path)
    if place.is_file():
        return _rewardbench_file(place)
    if not place.is_dir():
        raise BadInput(f"there is no run {path}; give a folder that `karat eval --output` wrote")
    if not (place / RUN).is_file():
        raise BadInput(f"{path} holds no {RUN}, so it is no run; give a folder that `karat eval --output` wrote")
    found = _object(place / RUN)
    number = found.get("version")
    if found.get("format") != _KIND or not isinstance(number, int):
        raise BadInput(f"{place / RUN} is not of a run; give a folder that `karat eval --output` wrote")
    if number > VERSION:
        raise BadInput(f"{path} is of version {number}, and this karat reads up to {VERSION}; install a newer one")
    items = _items(place / ITEMS)
    try:
        evaluations = tuple(
            Evaluated(one["evaluation"], one, tuple(items.get(k, ())), one.get("curves") or {})
            for k, one in enumerate(map(_checked, found["evaluations"]))
        )
        model = str(found["settings"].get("model", ""))
    except ValidationError as error:
        raise BadInput(f"{place / RUN} is damaged: {one_line(error)}; evaluate the model again") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{place / RUN} lacks {error}; evaluate the model again") from None
    return Run(place.name, model, evaluations)


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Figure(_Checked):
    value: float | None
    low: float | None = None
    high: float | None = None


class _Curves(_Checked):
    n: list[float] = []
    reward: list[Annotated[list[float | None], Field(min_length=3, max_length=3)]] = []


class _Summary(_Checked):
    """What a comparison reads of an evaluation in `run.json`."""

    evaluation: str
    headline: str
    figures: dict[str, _Figure]
    judged: int | None = None
    unscored: dict[str, int] | None = None
    nulls_of: dict[str, dict[str, float]] | None = None
    lead: float | None = None
    lead_ci: Annotated[list[float | None], Field(min_length=2, max_length=2)] | None = None
    curves: _Curves | None = None


def _checked(one: dict[str, Any]) -> dict[str, Any]:
    """The same, if it is what a comparison can read."""
    _Summary.model_validate(one)
    return one


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as JSON ({error}); check that it is whole") from None
    if not isinstance(found, dict):
        raise BadInput(f"{path} is no JSON object, so it is no run and no result file")
    return found


def _items(path: Path) -> dict[int, list[Item]]:
    """By evaluation, its items; none where the run kept none."""
    made: dict[int, list[Item]] = {}
    if not path.is_file():
        return made
    for number, row in read_rows(str(path)):
        try:
            made.setdefault(int(row["evaluation"]), []).append(_item(row))
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{path}:{number} lacks or spoils a column ({error}); evaluate the model again") from None
    return made


def _item(row: Mapping[str, Any]) -> Item:
    return Item(
        key=str(row["key"]),
        id=str(row.get("id") or ""),
        part=str(row.get("part") or ""),
        prompt="\n\n".join(str(message["content"]) for message in json.loads(row["prompt"])),
        responses=tuple(row["responses"]),
        labels=tuple(float(label) for label in row["labels"] or ()),
        rewards=tuple(_number(reward) for reward in row["rewards"]),
        credit=_number(row["credit"]),
    )


# ---------------------------------------------------------------------------------------------- RewardBench


def _rewardbench_file(path: Path) -> Run:
    """A file of RewardBench's `eval-set`, an accuracy by subset, or of its `eval-set-scores`, with all rewards."""
    found = _object(path)
    items = _of_scores(path, found) if all(isinstance(found.get(name), list) for name in _COLUMNS) else ()
    by_subset: dict[str, list[float]] = {}
    for item in items:
        if item.credit is not None:
            by_subset.setdefault(item.part, []).append(item.credit)
    accuracy = {name: sum(own) / len(own) for name, own in by_subset.items()} or _accuracies(found)
    scores = _rewardbench.scores(accuracy)
    if not scores:
        raise BadInput(f"{path} holds no subset of RewardBench; give a run's folder, or a file of eval-set")
    figures = {name: {"value": value, "low": None, "high": None, "n": 0, "note": ""} for name, value in scores.items()}
    figures |= {f"accuracy [{name}]": {"value": value, "low": None, "high": None} for name, value in accuracy.items()}
    known: dict[str, Any] = {
        "evaluation": "rewardbench",
        "headline": _rewardbench.SCORE,
        "figures": figures,
        "unit": "pairs",
    }
    judged = sum(map(len, by_subset.values()))
    unscored = {"no finite reward": len(items) - judged} if judged < len(items) else {}
    known |= {"n": len(items), "judged": judged, "unscored": unscored, "notes": [f"from {path.name}"]}
    model = str(found.get("model") or path.stem)
    return Run(path.stem, model, (Evaluated("rewardbench", known, items, texts=False),))


def _accuracies(found: Mapping[str, Any]) -> dict[str, float]:
    known = {*_rewardbench.CORE, *_rewardbench.PRIOR_SETS}
    numbers = {
        name: _number(value) for name, value in found.items() if name in known and isinstance(value, int | float)
    }
    return {name: value for name, value in numbers.items() if value is not None}


def _of_scores(path: Path, found: Mapping[str, Any]) -> tuple[Item, ...]:
    columns = [found[name] for name in _COLUMNS]
    columns += [found.get(name) or [""] * len(columns[0]) for name in ("text_chosen", "text_rejected", "id")]
    if any(not isinstance(column, list) or len(column) != len(columns[0]) for column in columns):
        raise BadInput(f"{path} holds columns of different lengths; check that it is whole")
    items = []
    for place, row in enumerate(zip(*columns, strict=True), start=1):
        try:
            items.append(_of_score(*row))
        except (IndexError, TypeError, ValueError, OverflowError) as error:
            raise BadInput(f"{path}: row {place} holds no reward ({error}); give numbers, or null for none") from None
    return tuple(items)


def _of_score(subset: Any, chosen: Any, rejected: Any, better: Any, worse: Any, id: Any) -> Item:
    rewards = tuple(_number(one[0] if isinstance(one, list) else one) for one in (chosen, rejected))
    a, b = rewards
    credit = None if a is None or b is None else float(a > b)
    name = "" if id is None else str(id)
    return Item(f"{subset}/{name}", name, str(subset), "", (str(better), str(worse)), (1.0, 0.0), rewards, credit)


def _number(value: Any) -> float | None:
    """A finite number, or None for what is none."""
    return None if value is None or not math.isfinite(value) else float(value)
