"""Heads of several layers with one output: Qwen2.5-Math-RM, WorldPM, INF-ORM, and GRM's value heads."""

import re

from karat.models.families.base import Family, Names
from karat.models.families.evidence import Evidence

PARTS = ("weight", "bias")
TWO = {f"{ours}.{part}": f"score.{number}.{part}" for ours, number in (("dense", 0), ("out", 2)) for part in PARTS}
_GRM = re.compile(r"v_head\.summary\.(\d+)\.weight")


def layers(numbers: list[int], pattern: str) -> Names:
    """Linear layers by their numbers in a sequence: the first, further ones, and the last, which gives the outputs."""
    ours = ["dense", *(f"more.{i}" for i in range(len(numbers) - 2)), "out"]
    return {f"{own}.{part}": pattern.format(n, part) for own, n in zip(ours, numbers, strict=True) for part in PARTS}


def _grm(evidence: Evidence) -> Names | None:
    numbers = sorted(int(found[1]) for name in evidence.trained if (found := _GRM.fullmatch(name)))
    return layers(numbers, "v_head.summary.{}.{}") if len(numbers) > 1 else None


FAMILIES = (
    Family(
        name="MLP reward head",
        published="Qwen2.5-Math-RM-72B, WorldPM-72B, INF-ORM-Llama3.1-70B, Qwen3ForRewardModel",
        tensors=TWO,
        rows=(1,),
        head={"hidden_act": "relu"},
        notes=(
            "the checkpoint's own chat template, and no system message is added to it: Qwen2.5-Math-RM was trained with"
            " one of its own, and WorldPM with an empty one; give it as the first message",
            "the last token of the text is read: some configs name a pad token that WorldPM's cards read as its end",
            "Universal-PRM's tensors look the same, and its reward is another: for it give spec='universal-prm'",
        ),
    ),
    Family(
        name="GRM",
        published="GRM-*-sftreg, GRM-*-distill",
        tensors=_grm,
        rows=(1,),
        head={"hidden_act": "relu"},
    ),
)
