"""Scorers that know nothing of quality: chance, length, and word and letter n-grams. What a model has to beat."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from karat.evaluation._common import lengths_of
from karat.metrics import FloatArray
from karat.types import Example, Item, Labelled, Pair, Ranking

RANDOM, LONGER, SHORTER, NGRAM = "random", "longer wins", "shorter wins", "n-gram"

_ROWS = 4000  # training rows that the n-gram null reads at most
_CHARACTERS = 1000  # of each end of a text that it reads
_FEATURES = 2**18


@dataclass(frozen=True, slots=True)
class Ngram:
    """A regression on word 1-2-grams and character 3-5-grams: logistic, or for ratings linear."""

    score: Callable[[Sequence[Example]], FloatArray]  # logits or ratings [B], higher is better
    outcome: bool  # learnt from outcomes: the sign of a logit says right or wrong


Fit: TypeAlias = Callable[[Sequence[Item], int], tuple[Ngram | None, str]]  # of training items and a seed


@dataclass(frozen=True, slots=True)
class NullRewards:
    """What each null gives each answer."""

    rewards: dict[str, FloatArray]  # name → [B], higher is better; random is not among them
    signed: frozenset[str]  # those whose sign says right or wrong
    note: str  # how the n-gram null was trained, or why there is none


def null_rewards(
    examples: Sequence[Example], training: Sequence[Item], seed: int, fit: Fit | None = None
) -> NullRewards:
    """Scores the answers by each null that scores an answer by itself; `fit` trains the n-gram one."""
    lengths = lengths_of(examples)
    rewards = {LONGER: lengths, SHORTER: -lengths}
    ngram, note = (fit or fit_ngram)(training, seed)
    if ngram is None:
        return NullRewards(rewards, frozenset(), note)
    signed = frozenset({NGRAM}) if ngram.outcome else frozenset()
    return NullRewards(rewards | {NGRAM: ngram.score(examples)}, signed, note)


def fit_ngram(training: Sequence[Item], seed: int) -> tuple[Ngram | None, str]:
    """The n-gram null, trained on the training items only, and a note on how; None where they do not suffice.

    Pairs and rankings: chosen-minus-rejected features with mirrored rows. Outcomes: features of answer and prompt.
    At most 4,000 rows and the first and last 1,000 characters of each text are read.
    """
    if not training:
        return None, "no n-gram null: no training data was given"
    outcomes = [item for item in training if isinstance(item, Labelled)]
    if outcomes:
        return _fit_outcomes([item for item in outcomes if item.label != 0.5 and item.weight > 0], seed)
    return _fit_pairs([pair for item in training if item.weight > 0 for pair in ordered_pairs(item)], seed)


def fit_rating_ngram(training: Sequence[Item], seed: int) -> tuple[Ngram | None, str]:
    """The n-gram null of ratings: a ridge regression on the features of answer and prompt, with the same limits."""
    if not training:
        return None, "no n-gram null: no training data was given"
    items = [item for item in training if isinstance(item, Labelled) and item.weight > 0]
    rows = [items[i] for i in _sample(len(items), seed)]
    labels = [item.label for item in rows]
    if len(set(labels)) < 2:
        return None, "no n-gram null: the training data hold no two different ratings"
    model = _ridge(_both([row.example for row in rows]), labels, [row.weight for row in rows])

    def score(examples: Sequence[Example]) -> FloatArray:
        return np.asarray(model.predict(_both(examples)), dtype=np.float64)

    return Ngram(score, False), _trained(len(rows), len(items), "answers")


def ordered_pairs(item: Item) -> list[tuple[Example, Example, float]]:
    """(better, worse, weight) of a pair or a ranking; ties give none, and neither does an outcome."""
    if isinstance(item, Pair):
        better, worse = (item.chosen, item.rejected) if item.preference > 0.5 else (item.rejected, item.chosen)
        return [] if item.preference == 0.5 else [(better, worse, item.weight)]
    return _ranked_pairs(item) if isinstance(item, Ranking) else []


def _ranked_pairs(item: Ranking) -> list[tuple[Example, Example, float]]:
    ranked = list(zip(item.candidates, item.ranks, strict=True))
    return [(a, b, item.weight) for a, high in ranked for b, low in ranked if high < low]


def _fit_pairs(pairs: list[tuple[Example, Example, float]], seed: int) -> tuple[Ngram | None, str]:
    if not pairs:
        return None, "no n-gram null: the training data prefer no answer"
    rows = [pairs[i] for i in _sample(len(pairs), seed)]
    gap = _features([row[0].response for row in rows]) - _features([row[1].response for row in rows])
    weight = [row[2] for row in rows]
    model = _logistic(_stack([gap, -gap]), [1] * len(rows) + [0] * len(rows), weight * 2, intercept=False)

    def score(examples: Sequence[Example]) -> FloatArray:
        return _scores(model, _features([e.response for e in examples]))

    return Ngram(score, False), _trained(len(rows), len(pairs), "pairs")


def _fit_outcomes(items: list[Labelled], seed: int) -> tuple[Ngram | None, str]:
    if len({item.label > 0.5 for item in items}) < 2:
        return None, "no n-gram null: the training data hold one class only"
    rows = [items[i] for i in _sample(len(items), seed)]
    labels = [int(item.label > 0.5) for item in rows]
    if len(set(labels)) < 2:
        return None, "no n-gram null: the training rows drawn for it hold one class only"
    model = _logistic(_both([row.example for row in rows]), labels, [row.weight for row in rows], intercept=True)

    def score(examples: Sequence[Example]) -> FloatArray:
        return _scores(model, _both(examples))

    return Ngram(score, True), _trained(len(rows), len(items), "answers")


def _trained(used: int, given: int, unit: str) -> str:
    drawn = f" drawn from {given:,}" if used < given else ""
    return f"the n-gram null was trained on {used:,} training {unit}{drawn}"


def _sample(size: int, seed: int) -> list[int]:
    if size <= _ROWS:
        return list(range(size))
    return sorted(np.random.default_rng(seed).choice(size, _ROWS, replace=False).tolist())


def _both(examples: Sequence[Example]) -> Any:
    places: dict[Any, int] = {}
    rows = [places.setdefault(e.prompt, len(places)) for e in examples]
    prompts = _features(["\n".join(message.content for message in prompt) for prompt in places])
    return _columns([_features([e.response for e in examples]), prompts[rows]])


def _features(texts: Sequence[str]) -> Any:
    text: Any = importlib.import_module("sklearn.feature_extraction.text")

    read = [t if len(t) <= 2 * _CHARACTERS else t[:_CHARACTERS] + t[-_CHARACTERS:] for t in texts]
    words = text.HashingVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\w+|[^\w\s]", n_features=_FEATURES)
    letters = text.HashingVectorizer(analyzer="char", ngram_range=(3, 5), n_features=_FEATURES)
    return _columns([words.transform(read), letters.transform(read)])


def _columns(blocks: list[Any]) -> Any:
    sparse: Any = importlib.import_module("scipy.sparse")

    return sparse.hstack(blocks, format="csr")


def _stack(blocks: list[Any]) -> Any:
    sparse: Any = importlib.import_module("scipy.sparse")

    return sparse.vstack(blocks, format="csr")


def _logistic(features: Any, labels: list[int], weight: list[float], *, intercept: bool) -> Any:
    linear: Any = importlib.import_module("sklearn.linear_model")

    model = linear.LogisticRegression(solver="liblinear", fit_intercept=intercept, random_state=0, max_iter=1000)
    return model.fit(features, labels, sample_weight=np.array(weight))


def _ridge(features: Any, labels: list[float], weight: list[float]) -> Any:
    linear: Any = importlib.import_module("sklearn.linear_model")

    return linear.Ridge(alpha=1.0, solver="sparse_cg").fit(features, np.array(labels), sample_weight=np.array(weight))


def _scores(model: Any, features: Any) -> FloatArray:
    return np.asarray(model.decision_function(features), dtype=np.float64)
