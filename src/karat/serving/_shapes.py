"""What karat's own replies hold, for the OpenAPI document, with an example of each."""

from typing import Literal

from karat.serving.base import USAGE, Absent, Envelope, Error, Shape, Usage, enveloped


class Read(Shape):
    """What was read for a reward."""

    steps: list[float] | Absent = None  # of process reward models
    objectives: dict[str, float] | Absent = None
    gate: dict[str, float] | Absent = None
    orders: tuple[float, float] | Absent = None  # of a comparison, with the first answer first and second
    tokens: int
    cached_tokens: int
    truncated: bool
    flags: list[str]


class Scored(Read):
    """An answer that has a reward."""

    reward: float


class Readout(Shape):
    """What is read, and how it becomes a reward; of models that are made of others only what it is."""

    kind: str | Absent = None
    head: str | Absent = None
    position: str | Absent = None
    step_token: str | Absent | None = None
    activation: str | Absent = None
    output: int | list[float] | str
    aggregate: str | Absent | None = None
    weights: dict[str, float] | Absent | None = None
    max_length: int | Absent | None = None
    over_length: str | Absent = None
    layout: str | Absent = None
    template: str | Absent = None


class ItemRewards(Shape):
    """The answers of one item, and the place of the best of them."""

    index: int
    candidates: list[Scored | Error]
    best: int | None


class Rewards(Envelope):
    """Rewards of answers, with an error for each that has none."""

    data: list[ItemRewards]
    readout: Readout
    usage: Usage


class Compared(Read):
    """The probability that the first of two answers is preferred."""

    index: int
    probability: float


class Incomparable(Error):
    """Two answers that could not be compared."""

    index: int


class Comparisons(Envelope):
    """Comparisons of two answers each."""

    data: list[Compared | Incomparable]
    readout: Readout
    usage: Usage


class Placed(Scored):
    """An answer among others: its number in the request, and its place from 1."""

    index: int
    rank: int


class Unplaced(Error):
    """An answer without a reward, behind all others."""

    index: int
    rank: int


class Ranking(Envelope):
    """Answers, best first."""

    data: list[Placed | Unplaced]
    readout: Readout
    usage: Usage


class Model(Shape):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    output: Literal["logit", "probability", "rating"]
    at_steps: bool
    compares: bool
    fingerprint: str  # of what decides a score beside the text
    readout: Readout


class ModelList(Shape):
    """The models that are served."""

    object: Literal["list"]
    data: list[Model]


_SHOWN = {"tokens": 21, "cached_tokens": 17, "truncated": False, "flags": []}
_READOUT = {"kind": "bradley_terry", "head": "linear", "position": "last", "activation": "identity", "output": 0}
_REST = {"readout": _READOUT, "usage": USAGE}
_TWO = [{"reward": 1.93, **_SHOWN}, {"reward": -0.41, **_SHOWN}]
REWARDS = {**enveloped("reward"), "data": [{"index": 0, "candidates": _TWO, "best": 0}], **_REST}
COMPARISONS = {**enveloped("compare"), "data": [{"index": 0, "probability": 0.91, **_SHOWN}], **_REST}
_PLACES = [{"index": 1, "rank": 1, **_TWO[0]}, {"index": 0, "rank": 2, **_TWO[1]}]
_MODEL = {"id": "my-model", "object": "model", "created": 0, "owned_by": "karat", "output": "logit", "at_steps": False}
MODELS = {"object": "list", "data": [{**_MODEL, "compares": False, "fingerprint": "9f86d0818", "readout": _READOUT}]}
RANKING = {**enveloped("rank"), "data": _PLACES, **_REST}
