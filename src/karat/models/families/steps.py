"""Step rewards with heads of their own: Qwen2.5-Math-PRM, ReasonFlux, ReasonEval."""

from typing import Any

from karat.models.families.base import Family
from karat.models.families.evidence import Evidence
from karat.models.families.mlp import TWO

_EXTRA = "<extra_0>"
_REASON_EVAL = "Question:\n{{ messages[0].content }}\nAnswer:\nLet's think step by step."


def _extra(evidence: Evidence) -> dict[str, Any]:
    where = {"layout": "chat", "step_token": _EXTRA} if evidence.has_token(_EXTRA) else {}
    return {"kind": "process", "pooling": "step", "activation": "softmax", "output": 1, **where}


FAMILIES = (
    Family(
        name="Qwen2.5-Math-PRM",
        published="Qwen2.5-Math-PRM-7B and -72B, Qwen2.5-Math-7B-PRM800K, ReasonFlux-PRM-7B",
        tensors=TWO,
        rows=(2,),
        when=lambda e: e.has_token(_EXTRA),
        head={"hidden_act": "relu"},
        reading=_extra,
        notes=("no system message is added; Qwen2.5-Math-PRM was trained with one: give it as the first message",),
    ),
    Family(
        name="MLP of two classes",
        published="",
        tensors=TWO,
        rows=(2,),
        when=lambda e: not e.has_token(_EXTRA),
        head={"hidden_act": "relu"},
        reading=_extra,
        asks=(
            "the head has two classes, wrong and right, and the tokenizer has no <extra_0>, the usual mark of steps:"
            " restore the tokenizer's files if it was trained with that, or give step_token= the mark behind each step,"
            " and layout"
        ),
        settled_by=("step_token",),
    ),
    Family(
        name="MLP of several outputs",
        published="",
        tensors=lambda e: TWO if e.shapes.get("score.2.weight", (1,))[0] > 2 else None,
        head={"hidden_act": "relu"},
        asks=(
            "the head has {outputs} outputs, and the files do not say what they are: give output= the number of the"
            " reward, or kind='process' and step_token where steps are rated"
        ),
        settled_by=("output", "kind"),
    ),
    Family(
        name="ReasonEval",
        published="ReasonEval-7B, ReasonEval-34B (Xia et al. 2024, arXiv:2404.05692)",
        tensors={"out.weight": "score_head.weight", "out.bias": "score_head.bias?"},
        rows=(3,),
        when=lambda e: "score_type" not in e.config,
        reading={
            "kind": "process",
            "layout": "concat",
            "template": _REASON_EVAL,
            "prompt_end": "\n",
            "pooling": "step",
            "step_token": "",
            "activation": "softmax",
            "output": (0.0, 1.0, 1.0),
        },
        notes=(
            "validity, the probability of the last two classes; redundancy is output=1 with aggregate='max'",
            "the last token of each step is read",
        ),
    ),
)
