"""The contract of a family of reward models, and the decision which one a folder is of.

A file of this folder holds `FAMILIES`, the records of a group whose heads are stored alike. Nothing but what `Evidence`
says decides; where that is not enough, the refusal asks for the options that would settle it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import combinations
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, TypeAlias

from torch import Tensor

from karat.models import _parts
from karat.models import backbone as backbones
from karat.models._quantised import check_head
from karat.models.families.evidence import Evidence
from karat.spec import Head as HeadSpec
from karat.spec import RewardSpec
from karat.types import CheckpointError, Refused

Tensors: TypeAlias = dict[str, Tensor]
Names: TypeAlias = Mapping[str, str]  # of a head's tensors → theirs; one that ends in ? may be missing
_NOT_OF_ANSWERS = {"process", "pairwise"}  # kinds whose rewards are not of one whole answer
_MOST_PARTS = 4  # of a head, each under a name of its own
MARKS = ("<extra_0>", "[PRM]")  # tokens that only models of steps have
_SHARED = ("base", "evidence", "stand_ins")


def always(evidence: Evidence) -> bool:
    """For a family that its tensors tell apart."""
    return True


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one group of published models stores its head, and how it is read."""

    name: str
    published: str  # models that are stored like this, for people
    tensors: Names | Callable[[Evidence], Names | None] = field(default_factory=dict)
    used: tuple[str, ...] = ()  # tensors beside the head that its spec is made of
    states: int = 1  # how many of them, one beside the other, its first layer takes
    rows: tuple[int, ...] = ()  # how many outputs it may have; (): any
    when: Callable[[Evidence], bool] = always
    head: Mapping[str, Any] | Callable[[Evidence], Mapping[str, Any]] = field(default_factory=dict)
    reading: Mapping[str, Any] | Callable[[Evidence], Mapping[str, Any]] = field(default_factory=dict)
    fold: Callable[[Tensors, Evidence], Tensors] | None = None  # their tensors, by our names → the head's
    of_class: bool = False  # transformers' own class for the task computes it
    asks: str | Callable[[Evidence], str] = ""  # what the files leave open, and the options that settle it
    settled_by: tuple[str, ...] = ()
    open_kinds: tuple[str, ...] = ()  # kinds that by themselves do not settle it
    notes: tuple[str, ...] = ()  # what a user should know, for `karat explain`

    def placed(self, evidence: Evidence) -> dict[str, str] | None:
        """Where this family's head is among a folder's tensors; None where the folder is of another."""
        names = self.tensors(evidence) if callable(self.tensors) else self.tensors
        if names is None:
            return None
        wanted = {ours: theirs for ours, theirs in names.items() if not theirs.endswith("?")}
        wanted |= {o: t[:-1] for o, t in names.items() if t.endswith("?") and t[:-1] in evidence.trained}
        held = {*wanted.values()}
        if not held <= evidence.trained <= held | {*self.used}:
            return None
        rows = len_of(evidence, wanted)
        return wanted if (not self.rows or rows in self.rows) and self.when(evidence) else None


def len_of(evidence: Evidence, names: Names) -> int:
    """Rows of a head's last layer, 0 where there is none."""
    return evidence.shapes[names["out.weight"]][0] if "out.weight" in names else 0


class Found:
    """A folder's family and what follows from it."""

    def __init__(self, family: Family, evidence: Evidence, names: dict[str, str]) -> None:
        self.family, self.evidence, self.names = family, evidence, names

    @property
    def head(self) -> HeadSpec:
        """The head as its tensors are; of a class, its outputs alone."""
        rows = len_of(self.evidence, self.names)
        if self.family.of_class:
            return HeadSpec(outputs=rows)
        own = self.family.head(self.evidence) if callable(self.family.head) else self.family.head
        made: dict[str, Any] = {"type": "mlp" if "dense.weight" in self.names else "linear", "outputs": rows}
        made["bias"] = "out.bias" in self.names
        if "dense.weight" in self.names:
            made["widths"] = self._widths()
        return HeadSpec(**{**made, **own})

    def _widths(self) -> tuple[int, ...]:
        hidden = [ours for ours in self.names if ours.startswith(("dense.", "more.")) and ours.endswith(".weight")]
        widths = tuple(self.evidence.shapes[self.names[ours]][0] for ours in sorted(hidden))
        return () if widths == (self.evidence.width,) else widths

    def reading(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The spec options that the family gives beside those that were asked for.

        Raises:
            Refused: the files leave something open that these options do not settle.
        """
        own = self.family.reading
        if self.family.asks and not self._settled(options):
            asks = self.family.asks if isinstance(self.family.asks, str) else self.family.asks(self.evidence)
            raise Refused(asks.replace("{outputs}", str(len_of(self.evidence, self.names))))
        told = dict(own(self.evidence) if callable(own) else own)
        self._check_mark(str(options.get("step_token", told.get("step_token"))))
        usual = str(told.get("kind", "bradley_terry"))
        asked = str(options.get("kind", usual))
        # As a kind that reads something else, its head is read as that kind reads.
        return told if asked == usual or not {asked, usual} & _NOT_OF_ANSWERS else {}

    def _settled(self, options: Mapping[str, Any]) -> bool:
        answers = {*self.family.settled_by} & {*options}
        return bool(answers - {"kind"}) or ("kind" in answers and options["kind"] not in self.family.open_kinds)

    def _check_mark(self, mark: str) -> None:
        """Raise Refused where the tokenizer splits a mark that is one token wherever it is published."""
        if mark in MARKS and not self.evidence.has_token(mark):
            count = len(self.evidence.tokenizer(mark, add_special_tokens=False)["input_ids"])
            raise Refused(
                f"step_token={mark!r} is one token in every model that was trained with it, and this tokenizer splits"
                f" it into {count}: restore the tokenizer's files, or give the mark that this model was trained with"
            )

    def by_class(self, spec: RewardSpec) -> bool:
        """Whether transformers' class for the spec's task has a place for every tensor of the head."""
        tokens = spec.at_steps and "out.bias" not in self.names
        return self.family.of_class and not tokens

    def head_spec(self) -> HeadSpec:
        """The head, of a class too, as a linear one."""
        return self.head.model_copy(update={"type": "linear", "bias": "out.bias" in self.names})

    def tensors(self) -> Tensors:
        """The head's tensors.

        Raises:
            CheckpointError: they are not of this backbone.
        """
        stored = self.evidence.read(self.names.values())
        named = {ours: stored[theirs] for ours, theirs in self.names.items()}
        return self.family.fold(named, self.evidence) if self.family.fold else named

    def backbone(self, device: str, dtype: str) -> Any:
        """The model without its head.

        Raises:
            CheckpointError: weights are missing or of another shape.
        """
        evidence = self.evidence
        if evidence.is_plain:
            return _parts.bare(evidence._folder, device, dtype)
        own = evidence.read(evidence.backbone.values())
        tensors = {bare: own[name] for bare, name in evidence.backbone.items()}
        if evidence.stand_in:
            tensors = evidence.stand_in.convert(tensors, evidence.settings)
        return _parts.filled(evidence._folder, type(evidence.skeleton), evidence.settings, tensors, device, dtype)


@cache
def families() -> tuple[Family, ...]:
    """Every family that there is, by listing the folder."""
    folder = Path(__file__).parent
    names = sorted(m.name for m in iter_modules([str(folder)]) if m.name not in _SHARED)
    return tuple(f for name in names for f in import_module(f"karat.models.families.{name}").FAMILIES)


def detect(folder: Path, family: str = "") -> Found:
    """The family of a folder, which is of this name where several fit.

    Raises:
        Refused: none is known that is stored so, or several are.
        CheckpointError: the files cannot be read.
    """
    evidence = Evidence(folder)
    fits = _fits(evidence)
    found = fits[0] if len(fits) == 1 and not family else _settled(folder, evidence, fits, family)
    _check_width(found)
    return found


def _fits(evidence: Evidence) -> list[Found]:
    placed = ((family, family.placed(evidence)) for family in families())
    return [Found(family, evidence, names) for family, names in placed if names is not None]


def _settled(folder: Path, evidence: Evidence, fits: list[Found], family: str) -> Found:
    """The family that is asked for, of a folder that fits several."""
    if not fits:
        check_head(filter(backbones.SCALES.search, evidence.trained))
        fits = _of_parts(evidence)
    named = {found.family.name: found for found in fits}
    if family in named:
        return named[family]
    if not fits:
        raise Refused(_unknown(folder, evidence))
    both = " and ".join(named)
    if family:
        raise Refused(f"{folder} is of no family {family!r}, but of {both}; give that one, or leave family out")
    answers = " or ".join(f"family={name!r}" for name in named)
    raise Refused(f"{folder} could be of the families {both}; say which is meant, {answers}")


def _of_parts(evidence: Evidence) -> list[Found]:
    """Of a folder with several heads, what it would be with each of them alone; none where it has but one."""
    parts = sorted({name.split(".")[0] for name in evidence.trained})
    found: list[Found] = []
    for count in range(min(len(parts), _MOST_PARTS), 0, -1):
        for some in combinations(parts, count):
            names = {name for name in evidence.trained if name.split(".")[0] in some}
            if not any(names & {*own.names.values()} for own in found):
                found += _fits(evidence.of(names))
    return found if len(found) > 1 else []


def _unknown(folder: Path, evidence: Evidence) -> str:
    held = ", ".join(f"{name} {[*evidence.shapes[name]]}" for name in sorted(evidence.trained)[:6])
    if evidence.adapter and not held:
        return f"{folder}: the adapter was saved without its reward head; train one with `karat train`"
    return f"{folder} has a head that karat does not know ({held}), so it is not read; please report the model"


def _check_width(found: Found) -> None:
    """Raise CheckpointError where a head takes other states than the backbone gives."""
    first = next((found.names[n] for n in ("dense.weight", "out.weight") if n in found.names), None)
    shape = found.evidence.shapes[first] if first else ()
    if shape and (len(shape) != 2 or shape[1] != found.family.states * found.evidence.width):
        raise CheckpointError(
            f"the reward head has tensors of another model: {first} is {[*shape]}, and this one's states have"
            f" {found.evidence.width} numbers; download or save it again"
        )
