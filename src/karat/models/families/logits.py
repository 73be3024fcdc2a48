"""Language models without a reward head: what is read of them is nowhere in their files, and is always asked."""

import re
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from karat.models.families.base import Family, Names
from karat.models.families.evidence import Evidence

_QUESTION = (
    "this is a language model and has no reward head: say what is read of it, such as kind='process',"
    " head='lm_logits:+,-', output=0 and step_token (steps); head='lm_logits:#0' (one token's logit);"
    " head='lm_logits:yes,no', activation='softmax' (a judgement in one word); kind='pairwise' (two answers);"
    " kind='implicit' and reference (a policy); or kind='embedding'; spec='math-shepherd' and other names of"
    " docs/families.md say it for a published model"
)


_PICKLED = frozenset(("regression_layer.pt", "gating_layer.pt", "reward_head.pt", "value_head.bin", "value_head.pt"))

_EMBEDDING = frozenset(("modules.json",))


def _nothing(evidence: Evidence) -> Names | None:
    return None if evidence.adapter or evidence.trained else {}


# A class that has a head


_TASKS = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
}
_REWARDED = re.compile("|".join([f"{name}$" for name in _TASKS] + ["Reward", "P(RM|rm)Model"]))


def _has_lost(evidence: Evidence) -> bool:
    return bool(_REWARDED.search(evidence.architecture))


def _lost(evidence: Evidence) -> str:
    """What is not there."""
    named = " and ".join(_names(evidence))
    return (
        f"config.json names {evidence.architecture}, but its reward head{f', {named},' if named else ''} is not among"
        " the tensors: download or save all files again, or say with head= what is read of the language model alone"
    )


def _names(evidence: Evidence) -> list[str]:
    """The tensors of the head of transformers' own class, if it is one."""
    of_task: Any = next((own for task, own in _TASKS.items() if evidence.architecture.endswith(task)), None)
    known = of_task and of_task._model_mapping.get(type(evidence.settings), None)
    if known is None or known.__name__ != evidence.architecture:
        return []
    with torch.device("meta"):
        made = known(evidence.settings)
    return [name for name in made.state_dict() if not name.startswith(f"{made.base_model_prefix}.")]


FAMILIES = (
    Family(
        name="language model",
        published="",
        tensors=_nothing,
        when=lambda e: not (_PICKLED | _EMBEDDING) & e.files and not _has_lost(e),
        asks=_QUESTION,
    ),
    Family(
        name="head that is not there",
        published="",
        tensors=_nothing,
        when=lambda e: not (_PICKLED | _EMBEDDING) & e.files and _has_lost(e),
        asks=_lost,
    ),
    Family(
        name="embedding model",
        published="Qwen3-Embedding, and whatever sentence-transformers saves",
        tensors=_nothing,
        when=lambda e: bool(_EMBEDDING & e.files) and not _PICKLED & e.files,
        asks=(
            "this is an embedding model (modules.json), and has no reward: give kind='embedding', pooling as in"
            " 1_Pooling/config.json, and normalize=True where it says so; or spec='qwen3-embedding'"
        ),
    ),
    Family(
        name="head in a pickle",
        published="LDL-Reward, ReasonFlux-PRM-1.5B, LLaMA-Factory with value_head.bin, as they are published",
        tensors=_nothing,
        when=lambda e: bool(_PICKLED & e.files),
        asks=(
            "this model has no reward head but in a pickle, which can run code when read: `karat convert` writes it"
            " as safetensors, without running any"
        ),
    ),
)
