"""How fast a model scores here: karat beside plain transformers, on the same weights and the same ids, by turns.

What it measures is true of this machine and this run. It knows nothing about what scores mean.
"""

import inspect
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from karat import types
from karat.engine.forest import ForestEngine
from karat.engine.padded import PaddedEngine, PaddedForward, plan
from karat.engine.probe import TOLERANCE
from karat.engine.tree import Separate, Tree, packed
from karat.models._quantised import precision
from karat.models.heads import rewards_of
from karat.progress import track
from karat.rewards._local import LocalModel
from karat.rewards._speed_machine import MIB, Rate, give_back, matrix_rate, now, peak, reset_peak
from karat.rewards._speed_workloads import Workload, workloads
from karat.types import BadInput, Refused, Span

BATCH = 16  # sequences that are padded together in the order they come
BUDGET = 4096  # tokens, pads included, that are padded together where sequences are sorted by length
CPU = torch.device("cpu")
Way: TypeAlias = Literal["loop", "padded", "sorted"]


class Run(NamedTuple):
    """What a side made of a workload."""

    scores: list[float]  # one per sequence, call after call
    computed: int | None = None  # tokens that went through the model, pads included; None: not known
    seconds: float | None = None  # by a clock of its own; None: ours counts
    peak_MiB: float | None = None  # likewise


class Side(Protocol):
    """One way to score."""

    def rest(self) -> None:
        """Forget what earlier runs left; called on all sides before every run, outside the clock."""
        ...

    def __call__(self, workload: Workload) -> Run:
        """Score everything."""
        ...


@dataclass(frozen=True, slots=True)
class Ground:
    """What times and tokens are measured against."""

    device: torch.device = CPU
    causal: bool = True  # a token's state is blind to what follows, so that prefixes can be shared
    rate: Rate | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A side at a workload."""

    workload: str
    side: str
    median: float  # seconds
    min: float
    max: float
    ratio: float  # its time over the first side's, turn by turn: median, lowest, highest
    ratio_min: float
    ratio_max: float
    seconds: tuple[float, ...]  # of each turn
    tokens: int  # given
    needed: int  # tokens with distinct prefixes: what has to be computed once, over all calls
    computed: int | None  # tokens that went through the model, pads included; None: not known
    of_matrix_rate: float | None  # 1: as fast as the products of the needed tokens alone; None: not known
    peak_MiB: float  # of the process, or of the GPU's memory that torch holds; with the model
    moves_a_score_by: float | None  # at most, from the first side's; None: a score is no finite number


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured, and where."""

    workloads: dict[str, str]  # name → what is scored
    rows: list[Row]
    machine: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """All of it as JSON holds it."""
        return asdict(self)


def bench(model: LocalModel, repeats: int = 5) -> Speed:
    """Every workload by karat and by plain transformers, taking turns `repeats` times after one that warms.

    Raises:
        BadInput: `repeats` is below 1.
        Refused: the model's template does not take the built-in texts, or it has no head over single states.
        MemoryError: the GPU's memory ran out.
    """
    if model.spec.head.type in ("hidden", "log_ratio"):
        raise Refused(f"there is no head to compare in kind {model.spec.kind}; bench a model of rewards")
    if repeats < 1:
        raise BadInput(f"repeats is {repeats}, but at least one turn has to be measured")
    backbone = model.parts.backbone
    ground = Ground(model.parts.device, is_causal(model), matrix_rate(backbone))
    sides: dict[str, Side] = {"karat": Karat(model)}
    ways: tuple[Way, ...] = ("loop", "sorted")
    sides |= {f"transformers, {way}": Transformers(backbone, _scorer(model), way) for way in ways}
    made = workloads(model)
    try:
        found = [compare(w, sides, repeats, ground) for w in track(made, len(made), "workloads measured")]
    except torch.OutOfMemoryError as error:
        raise MemoryError from error
    return Speed({w.name: w.what for w in made}, list(chain(*found)), _machine(model, ground))


def _machine(model: LocalModel, ground: Ground) -> dict[str, Any]:
    return {
        "device": str(ground.device),
        "dtype": precision(model.parts.backbone),
        "engine": _engine(model),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "flop_per_token": ground.rate and ground.rate.per_token,
        "matrix_flop_per_second": ground.rate and ground.rate.per_second,
        "peak_is_of_each_run": reset_peak(ground.device),
    }


def _engine(model: LocalModel) -> str:
    if isinstance(model.engine, ForestEngine):
        return ("shared prefixes" if model.engine.causal else "packed rows") + ", compiled" * model.engine.compiled
    return "padded rows"


# Sides


class Karat:
    """A model as karat runs it, from an empty cache."""

    def __init__(self, model: LocalModel) -> None:
        self.model = model

    def rest(self) -> None:
        """See `Side`."""
        if isinstance(self.model.engine, ForestEngine):
            self.model.engine.clear()
            self.model.engine.computed = 0

    def __call__(self, workload: Workload) -> Run:
        """See `Side`."""
        scored = [one for call in workload.calls for one in self.model.scored(call)]
        # Of steps, the last one's: what the other sides read.
        return Run([one.steps[-1] if one.steps else one.value for one in scored], self._computed(workload))

    def _computed(self, workload: Workload) -> int | None:
        engine = self.model.engine
        if isinstance(engine, ForestEngine):
            return engine.computed
        if isinstance(engine, PaddedEngine):
            return sum(_with_pads(list({s.ids for s in call}), engine.forward.budget) for call in workload.calls)
        return None


def _with_pads(rows: Sequence[Sequence[int]], budget: int) -> int:
    lengths = [len(row) for row in rows]
    return sum(len(batch) * lengths[batch[0]] for batch in plan(lengths, budget))


class Transformers:
    """A backbone as people call it: one by one, in batches as they come, or in batches of like lengths."""

    def __init__(self, backbone: nn.Module, score: Callable[[Tensor], list[float]], way: Way) -> None:
        """`score` makes rewards [B] of hidden states [B, D]."""
        self.backbone, self.score, self.way = backbone, score, way
        takes_cache = "use_cache" in inspect.signature(backbone.forward).parameters
        self._options = {"use_cache": False} if takes_cache else {}

    def rest(self) -> None:
        """See `Side`: nothing is left."""

    @torch.no_grad()
    def __call__(self, workload: Workload) -> Run:
        """See `Side`."""
        scores: list[float] = []
        computed = 0
        for call in workload.calls:
            found: dict[int, float] = {}
            for batch in self._batches(call):
                rows = [call[i] for i in batch]
                found |= zip(batch, self._scored(rows), strict=True)
                computed += len(rows) * max(len(s.ids) for s in rows)
            scores += [found[i] for i in range(len(call))]
        return Run(scores, computed)

    def _batches(self, call: list[types.Sequence]) -> list[list[int]]:
        if self.way == "sorted":
            return plan([len(s.ids) for s in call], BUDGET)
        size = 1 if self.way == "loop" else BATCH
        return [list(range(i, min(i + size, len(call)))) for i in range(0, len(call), size)]

    def _scored(self, rows: list[types.Sequence]) -> list[float]:
        width = max(len(s.ids) for s in rows)
        ids_BL = torch.zeros(len(rows), width, dtype=torch.long)
        mask_BL = torch.zeros_like(ids_BL)
        for row, sequence in enumerate(rows):
            ids_BL[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
            mask_BL[row, : len(sequence.ids)] = 1
        device = next(self.backbone.parameters()).device
        masked = {} if len(rows) == 1 else {"attention_mask": mask_BL.to(device)}
        states_BLD = self.backbone(input_ids=ids_BL.to(device), **masked, **self._options).last_hidden_state
        return self.score(_pooled(states_BLD, rows))


def _pooled(states_BLD: Tensor, rows: list[types.Sequence]) -> Tensor:
    """The state of each row at its last read, or the mean over its span, float32 [B, D]."""
    reads = [next(iter(s.reads.values())) for s in rows]
    last = [read[-1] for read in reads if not isinstance(read, Span)]
    if len(last) == len(rows):
        return states_BLD[torch.arange(len(rows)), torch.tensor(last)].float()
    spans = [read for read in reads if isinstance(read, Span)]
    return torch.stack([states_BLD[i, s.start : s.stop].float().mean(0) for i, s in enumerate(spans)])


def _scorer(model: LocalModel) -> Callable[[Tensor], list[float]]:
    def score(states_BD: Tensor) -> list[float]:
        values: list[float] = rewards_of(model.spec, model.parts.head(states_BD)).tolist()
        return values

    return score


# Measuring


def compare(workload: Workload, sides: Mapping[str, Side], repeats: int, ground: Ground | None = None) -> list[Row]:
    """A row for each side: all by turns; the first side is what the others are compared with.

    The first turn warms, and is looked at for memory only.
    """
    ground = ground or Ground()
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            for one in sides.values():
                one.rest()
            if not turn:
                give_back()
            runs[name].append(_measured(side, workload, ground.device))
    needed = distinct(workload.calls, ground.causal)
    first = next(iter(runs.values()))
    return [_row(workload, name, (found, first), needed, ground.rate) for name, found in runs.items()]


def _measured(side: Side, workload: Workload, device: torch.device) -> Run:
    """A run with its seconds and its peak of memory."""
    reset_peak(device)
    start = now(device)
    run = side(workload)
    seconds = now(device) - start
    return run._replace(
        seconds=seconds if run.seconds is None else run.seconds,
        peak_MiB=peak(device) / MIB if run.peak_MiB is None else run.peak_MiB,
    )


def _row(workload: Workload, side: str, runs: tuple[list[Run], list[Run]], needed: int, rate: Rate | None) -> Row:
    """`runs` are the side's and the first side's, the one that warms before the others."""
    own, first = ([run.seconds or 0.0 for run in found[1:]] for found in runs)
    ratios = [a / b for a, b in zip(own, first, strict=True)]
    median, warm, last = statistics.median(own), runs[0][0], runs[0][-1]
    return Row(
        workload=workload.name,
        side=side,
        median=median,
        min=min(own),
        max=max(own),
        ratio=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        seconds=tuple(own),
        tokens=sum(len(s.ids) for s in chain(*workload.calls)),
        needed=needed,
        computed=last.computed,
        of_matrix_rate=rate and needed * rate.per_token / rate.per_second / median,
        peak_MiB=warm.peak_MiB or 0.0,
        moves_a_score_by=_furthest(last.scores, runs[1][-1].scores),
    )


def _furthest(scores: list[float], others: list[float]) -> float | None:
    moved = [abs(a - b) for a, b in zip(scores, others, strict=True)]
    return max(moved) if all(map(math.isfinite, moved)) else None


def distinct(calls: Iterable[Iterable[types.Sequence]], causal: bool = True) -> int:
    """Tokens that have to be computed: every distinct prefix once, or every distinct sequence if not `causal`."""
    tree = Tree() if causal else Separate()
    for sequence in chain(*calls):
        tree.insert(packed(sequence.ids))
    return sum(node.stop - node.start for node in tree.nodes())


def is_causal(model: LocalModel) -> bool:
    """Whether a token's state is blind to what follows, found by trying."""
    if isinstance(model.engine, ForestEngine):
        return model.engine.causal
    engine = PaddedEngine(PaddedForward(model.parts.backbone))
    asked = [types.Sequence((5, 6, 7, *end), {"last": (2,)}) for end in ((8, 9), (10, 11))]
    a, b = (states["last"] for states in engine.run(asked))
    tolerance = TOLERANCE.get(next(model.parts.backbone.parameters()).dtype, 1e-2)
    return bool(((a - b).abs() <= tolerance * (1 + a.abs().max())).all())
