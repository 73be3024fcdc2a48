"""TRL's value head over a language model's tokens, which outcome rewards, step rewards and critics share."""

from karat.models.families.base import MARKS, Family
from karat.models.families.evidence import Evidence
from karat.models.families.linear import chat

_SUMMARY = {"out.weight": "v_head.summary.weight", "out.bias": "v_head.summary.bias?"}
_PQM = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% else %}[INST] {{ m.content }} [/INST]\n"
    "{% endif %}{% endfor %}"
)


def _is_skywork(evidence: Evidence) -> bool:
    return evidence.architecture == "Qwen2ForPrmModel"


def _marked(evidence: Evidence) -> str:
    """The mark of steps that the tokenizer has a token for."""
    return next((mark for mark in MARKS if evidence.has_token(mark)), "")


FAMILIES = (
    Family(
        name="value head",
        published="TRL's AutoModelForCausalLMWithValueHead, LLaMA-Factory's reward models",
        tensors=_SUMMARY,
        rows=(1,),
        when=lambda e: not _is_skywork(e) and not _marked(e),
        notes=(
            "a PPO critic and a step reward are stored alike; for steps give kind='process' and step_token",
            "config.json does not say that there is a head, and tools that trust it load a language model"
            " (LLaMA-Factory #9540, #7403)",
        ),
    ),
    Family(
        name="value head beside a mark of steps",
        published="",
        tensors=_SUMMARY,
        rows=(1,),
        when=lambda e: not _is_skywork(e) and _marked(e) == "<extra_0>",
        asks=(
            "the head is a value head, and the tokenizer has <extra_0>, the mark of steps: give kind='process' and"
            " step_token='<extra_0>', or kind='bradley_terry' for one reward of a whole answer"
        ),
        settled_by=("kind", "step_token"),
    ),
    Family(
        name="Skywork-o1 step rewards",
        published="Skywork-o1-Open-PRM-Qwen-2.5-1.5B and -7B",
        tensors=_SUMMARY,
        rows=(1,),
        when=_is_skywork,
        reading={
            "kind": "process",
            "layout": "concat",
            "pooling": "step",
            "step_token": "\n",
            "prompt_end": "\n",
            "activation": "sigmoid",
            "output": 0,
        },
    ),
    Family(
        name="PQM",
        published="Process Q-value models (Li and Li 2024, arXiv:2410.11287)",
        tensors=_SUMMARY,
        rows=(1,),
        when=lambda e: not _is_skywork(e) and _marked(e) == "[PRM]",
        reading={
            "kind": "process",
            **chat(_PQM),
            "pooling": "step",
            "step_token": "[PRM]",
            "step_join": "text",
            "step_template": "Step {n}: {step} ",
            "between_steps": "\n",
            "activation": "identity",
            "output": 0,
        },
        notes=("values of steps are raw, as they were ranked in training",),
    ),
)
