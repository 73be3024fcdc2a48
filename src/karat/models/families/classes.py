"""Heads of transformers' own classes: `…ForSequenceClassification`, `…ForTokenClassification`, encoders and OpenRLHF's.

The class itself says how it computes its head; how many outputs it has is for the tensor to say, as config.json may
hold no labels at all, and then means two.
"""

from typing import Any

from karat.models.families.base import Family, Names
from karat.models.families.evidence import Evidence

_SCORE = {"out.weight": "score.weight"}
_SCORE_BIAS = {**_SCORE, "out.bias": "score.bias"}
_CLASSIFIER = {"out.weight": "classifier.weight", "out.bias": "classifier.bias"}
# Behind a layer of their own: DeBERTa's, RoBERTa's and ELECTRA's, DistilBERT's, ModernBERT's.
_LAYERED: tuple[Names, ...] = (
    {"dense.weight": "pooler.dense.weight", "dense.bias": "pooler.dense.bias", **_CLASSIFIER},
    {
        **{f"dense.{part}": f"classifier.dense.{part}" for part in ("weight", "bias")},
        **{f"out.{part}": f"classifier.out_proj.{part}" for part in ("weight", "bias")},
    },
    {"dense.weight": "pre_classifier.weight", "dense.bias": "pre_classifier.bias", **_CLASSIFIER},
    {"dense.weight": "head.dense.weight", "norm.weight": "head.norm.weight", **_CLASSIFIER},
)
STEPS = {"kind": "process", "layout": "concat", "pooling": "step", "step_token": "\n"}


def _of_tokens(evidence: Evidence) -> bool:
    return evidence.architecture.endswith("ForTokenClassification")


def _tokens(evidence: Evidence) -> Names | None:
    """A token classifier's head: with a bias, or said by the architecture."""
    own = evidence.trained
    if own == {*_SCORE_BIAS.values()}:
        return _SCORE_BIAS
    if not _of_tokens(evidence):
        return None
    return _SCORE if own == {*_SCORE.values()} else _CLASSIFIER if own == {*_CLASSIFIER.values()} else None


def _tagger(evidence: Evidence) -> bool:
    labels = [str(name) for name in (evidence.config.get("id2label") or {}).values()]
    return any(name.startswith(("B-", "I-")) for name in labels)


def _encoder(evidence: Evidence) -> Names | None:
    """The head of an encoder's class for texts."""
    if _of_tokens(evidence):
        return None
    known = (_CLASSIFIER, *_LAYERED)
    return next((names for names in known if {*names.values()} == evidence.trained), None)


def _pair(evidence: Evidence) -> dict[str, Any]:
    """Encoders read question and answer as two segments, unless there is a chat template."""
    return {} if evidence.chat_template else {"layout": "pair"}


def _steps(evidence: Evidence) -> dict[str, Any]:
    one = evidence.shapes["score.weight" if "score.weight" in evidence.trained else "classifier.weight"][0] == 1
    return {**STEPS, "activation": "identity", "output": 0} if one else {**STEPS, "activation": "softmax", "output": 1}


# OpenRLHF

_CLOSED = (
    "{%- set text %}TEMPLATE{% endset -%}{%- set text = text.rstrip('\\n') -%}"
    "{{ text }}{% if not text.endswith(eos_token) %} {{ eos_token }}{% endif %}"
)


def _is_openrlhf(evidence: Evidence) -> bool:
    return "value_head_prefix" in evidence.config or {"mean", "std"} <= {*evidence.config}


def _openrlhf_head(evidence: Evidence) -> Names | None:
    prefix = evidence.config.get("value_head_prefix", "score")
    return {"out.weight": f"{prefix}.weight"} if _is_openrlhf(evidence) and isinstance(prefix, str) else None


def _openrlhf(evidence: Evidence) -> dict[str, Any]:
    """Scores raw, unless config.json asks for their mean and deviation; texts end in a space and EOS."""
    told: dict[str, Any] = {}
    if evidence.config.get("normalize_reward"):
        told["scale"] = (float(evidence.config.get("mean", 0.0)), float(evidence.config.get("std", 1.0)))
    if evidence.tokenizer.eos_token is None:
        return told
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    return {**told, "layout": "chat", "template": _CLOSED.replace("TEMPLATE", evidence.chat_template or plain)}


def _not_openrlhf(evidence: Evidence) -> bool:
    return not _is_openrlhf(evidence) and not _of_tokens(evidence)


def _several(name: str) -> str:
    return (
        f"this {name} has {{outputs}} outputs, and the files do not say what they are: give output= the number of the"
        " reward, counted from 0, or a weight for each; spec='odin' where they are length and quality; or"
        " kind='multi_objective' where they are objectives"
    )


FAMILIES = (
    Family(
        name="sequence classifier",
        published="Skywork-Reward, FsfairX, Tulu-3-RM, AceMath-RM, Nemotron-32B-Reward, whatever TRL trains",
        tensors=_SCORE,
        rows=(1,),
        when=_not_openrlhf,
        of_class=True,
        notes=(
            "the score is raw: servers that put a sigmoid on it give other numbers (vllm #18386, #12910)",
            "tools that look for the padding id read another token where it is EOS too, and their scores are constant"
            " (RLHF-Reward-Modeling #49, trl #2758); here only lengths count",
        ),
    ),
    Family(
        name="sequence classifier of several outputs",
        published="ODIN, regressions of attributes, safety classifiers",
        tensors=lambda e: _SCORE if e.shapes.get("score.weight", (1,))[0] > 1 else None,
        when=_not_openrlhf,
        of_class=True,
        asks=_several("classifier"),
        settled_by=("output", "kind"),
        open_kinds=("odin",),
    ),
    Family(
        name="OpenRLHF",
        published="OpenRLHF/Llama-3-8b-rm-mixture, whatever OpenRLHF trains",
        tensors=_openrlhf_head,
        rows=(1,),
        reading=_openrlhf,
        notes=(
            "config.json may hold mean and std of its scores; they are used where it says normalize_reward, or with"
            " scale=[mean, std]",
            "the text ends in a space and EOS, as it was trained",
        ),
    ),
    Family(
        name="encoder",
        published="reward-model-deberta-v3, electra-large-discriminator reward model, bge-reranker, gte-reranker",
        tensors=_encoder,
        rows=(1,),
        reading=_pair,
        of_class=True,
        notes=("question and answer are two segments; a chat template or one text gives other numbers",),
    ),
    Family(
        name="encoder of several outputs",
        published="NLI models, sentiment, ratings from 1 to 5",
        tensors=lambda e: names if (names := _encoder(e)) and e.shapes[names["out.weight"]][0] > 1 else None,
        reading=_pair,
        of_class=True,
        asks=_several("encoder"),
        settled_by=("output", "kind"),
        open_kinds=("odin",),
    ),
    Family(
        name="token classifier",
        published="TRL's step rewards, PURE-PRM-7B, MATH-Minos",
        tensors=_tokens,
        when=lambda e: not _tagger(e),
        rows=(1, 2),
        reading=_steps,
        of_class=True,
        asks=(
            "this model rates tokens, and the mark behind each step is not in its files: give kind='process' and"
            " step_token='\\n' (TRL's trainer), or step_token='\\n\\n' and output=[-1,1] (PURE), or its own; or"
            " spec='trl-prm', 'pure-prm' or 'math-minos'"
        ),
        settled_by=("kind", "step_token"),
        notes=("ids are prompt, step and mark, each tokenised alone, as they were trained; joined text differs",),
    ),
    Family(
        name="token classifier of other classes",
        published="three-way step labels; taggers of names",
        tensors=lambda e: (
            names if (names := _tokens(e)) and (_tagger(e) or e.shapes[names["out.weight"]][0] > 2) else None
        ),
        reading=_steps,
        of_class=True,
        asks=(
            "this model gives tokens one of {outputs} classes, and their meaning as rewards is not in its files: give"
            " kind='process', step_token, and output= a weight for each class"
        ),
        settled_by=("kind", "output"),
    ),
)
