"""Best-of-n over the answers that each prompt has, beside chance, the majority vote, the nulls and the oracle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from karat import metrics
from karat.evaluation import _nulls
from karat.evaluation._common import Sample, lengths_of
from karat.evaluation.base import AnswerOf, Figure, Setup
from karat.metrics import FloatArray
from karat.types import Example, Labelled

REWARD, MAJORITY, ORACLE = "reward", "majority vote", "oracle"
_DRAWS = 200  # subsets per prompt of the majority vote, where they are not enumerated


@dataclass(frozen=True, slots=True)
class BestOf:
    """What was found; empty where the prompts have not equally many answers."""

    figures: tuple[Figure, ...] = ()
    nulls: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    # curve_n [N], "curve_<name>" [N, 3]: value, low, high, the last two NaN where there is no interval
    arrays: dict[str, FloatArray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Pool:
    """P prompts with K answers each."""

    examples_PK: list[list[Example]]
    scores_PK: FloatArray
    correct_PK: FloatArray  # 0 or 1

    @property
    def size(self) -> int:
        """K."""
        return int(self.scores_PK.shape[1])


def study(items: Sequence[Labelled], known: Mapping[int, tuple[float, float]], setup: Setup) -> BestOf:
    """The best-of-n curve over the items' prompts.

    Args:
        items: all items given.
        known: place of an item → (reward, 1 if right else 0), for the items that were judged.
        setup: seed and the way to a final answer.
    """
    groups: dict[object, list[int]] = {}
    for place, item in enumerate(items):
        groups.setdefault(item.example.prompt, []).append(place)
    sizes = {len(group) for group in groups.values()}
    if len(sizes) > 1:
        return BestOf(notes=(f"no best-of-n: prompts have from {min(sizes)} to {max(sizes)} answers",))
    whole = [group for group in groups.values() if all(place in known for place in group)]
    if sizes == {1} or not whole:
        return BestOf()
    dropped = len(groups) - len(whole)
    note = (f"best-of-n leaves out {dropped} of {len(groups)} prompts with an answer that was not judged",)
    return _found(_pool(items, known, whole), setup, note if dropped else ())


def _pool(items: Sequence[Labelled], known: Mapping[int, tuple[float, float]], groups: list[list[int]]) -> _Pool:
    table = np.array([[known[place] for place in group] for group in groups])  # [P, K, 2]
    return _Pool([[items[place].example for place in group] for group in groups], table[:, :, 0], table[:, :, 1])


def _found(pool: _Pool, setup: Setup, notes: tuple[str, ...]) -> BestOf:
    answers, note = _final_answers(pool, setup.answer_of)
    points = _points(pool.size)
    curves = {name: [_one(pool, name, n, answers, setup.seed) for n in points] for name in _names(answers)}
    arrays = {f"curve_{name}": _rows(curve) for name, curve in curves.items()}
    arrays["curve_n"] = np.array(points, dtype=np.float64)
    name = f"best-of-{pool.size}"
    last = {curve: figures[-1] for curve, figures in curves.items()}
    best = _renamed(last[REWARD], name, f"{len(pool.scores_PK)} prompts")
    ceiling = _renamed(last[ORACLE], f"pass@{pool.size}", "ceiling of any choice")
    nulls = [_renamed(last[n], n, "", name) for n in (_nulls.RANDOM, MAJORITY) if n in last]
    return BestOf((best, ceiling), (*nulls, *_length_nulls(pool, name, setup.seed)), (*notes, *note), arrays)


def _names(answers: object) -> tuple[str, ...]:
    return (REWARD, _nulls.RANDOM, *((MAJORITY,) if answers else ()), ORACLE)


def _points(size: int) -> list[int]:
    """Each n up to 16; beyond, 1, 2, 4, ... and the size itself."""
    if size <= 16:
        return list(range(1, size + 1))
    return sorted({2**k for k in range(size.bit_length())} | {size})


def _one(pool: _Pool, name: str, n: int, answers: list[list[str | None]] | None, seed: int) -> Figure:
    if name == REWARD:
        credit = metrics.best_of_n(pool.scores_PK, pool.correct_PK, n)
    elif name == ORACLE:
        credit = metrics.oracle_of_n(pool.correct_PK, n)
    elif name == MAJORITY and answers is not None:
        credit = metrics.majority_of_n(answers, pool.correct_PK, n, _DRAWS, seed)
    else:
        credit = metrics.random_of_n(pool.correct_PK, n)
    return _share(name, credit, seed)


def _share(name: str, credit: FloatArray, seed: int) -> Figure:
    return Sample(np.ones(credit.size), range(credit.size), seed).share(name, credit)


def _length_nulls(pool: _Pool, against: str, seed: int) -> list[Figure]:
    lengths = np.array([lengths_of(row) for row in pool.examples_PK])
    found = {_nulls.LONGER: lengths, _nulls.SHORTER: -lengths}
    shares = {n: _share(n, metrics.best_of_n(s, pool.correct_PK, pool.size), seed) for n, s in found.items()}
    return [_renamed(figure, name, "", against) for name, figure in shares.items()]


def _final_answers(pool: _Pool, answer_of: AnswerOf | None) -> tuple[list[list[str | None]] | None, tuple[str, ...]]:
    read = answer_of or _from_context
    answers = [[read(example) for example in row] for row in pool.examples_PK]
    if any(answer for row in answers for answer in row):
        return answers, ()
    return None, ("no majority vote: no answer has a `final_answer` in its context",)


def _from_context(example: Example) -> str | None:
    found = example.context.get("final_answer")
    return None if found is None else str(found)


def _rows(figures: list[Figure]) -> FloatArray:
    return np.array([[f.value, f.low, f.high] for f in figures], dtype=np.float64)


def _renamed(figure: Figure, name: str, note: str, against: str = "") -> Figure:
    return replace(figure, name=name, note=note or figure.note, against=against)
