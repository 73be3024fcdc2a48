"""One linear layer of one output under a name of its own: UltraRM, Beaver, Starling, Athene, OASST, ColossalChat."""

from typing import Any

from karat.models.families.base import Family, Tensors
from karat.models.families.evidence import Evidence

_V_HEAD = {"out.weight": "v_head.weight"}
_HUMAN = (
    "{{ bos_token }}{% for m in messages %}{{ 'Assistant: ' if m.role == 'assistant' else 'Human: ' }}{{ m.content }}"
    "{{ '' if loop.last else '\\n\\n' }}{% endfor %}"
)
_INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}{% else %}"
    "[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)
_BEAVER = (
    "{{ bos_token }}BEGINNING OF CONVERSATION: {% for m in messages %}{% if m.role == 'assistant' %}ASSISTANT:"
    "{{ m.content }}{{ '' if loop.last else eos_token }}{% else %}USER: {{ m.content }} {% endif %}{% endfor %}"
)
_OASST = (
    "{% for m in messages %}{{ '<|assistant|>' if m.role == 'assistant' else '<|prompter|>' }}{{ m.content }}"
    "{{ eos_token }}{% endfor %}"
)


def chat(template: str) -> dict[str, Any]:
    """A text that is written by a template of the family's own."""
    return {"layout": "chat", "template": template}


def _ultra(evidence: Evidence) -> dict[str, Any]:
    if evidence.chat_template:
        return {}
    return chat(_INST if evidence.config.get("model_type") == "mistral" else _HUMAN)


def _oasst(evidence: Evidence) -> dict[str, Any]:
    pooling = "mean" if evidence.config.get("pooling") == "mean" else "last"
    return {**({} if evidence.chat_template else chat(_OASST)), "pooling": pooling}


# Beaver: Dai et al. 2023, arXiv:2310.12773


def _is_beaver(evidence: Evidence) -> bool:
    return "normalizer.mean" in evidence.trained or "score_type" in evidence.config


def _beaver(evidence: Evidence) -> dict[str, Any]:
    """A cost is turned over, so that higher is better, and divided by its deviation; its mean is not taken out."""
    cost = evidence.config.get("score_type") == "cost"
    told = {**({} if evidence.chat_template else chat(_BEAVER)), **({"output": (-1.0,)} if cost else {})}
    if not evidence.config.get("do_normalize"):
        return told
    mean, std = _statistics(evidence)
    return {**told, "scale": (0.0 if cost else mean, std + 1e-8)}


def _statistics(evidence: Evidence) -> tuple[float, float]:
    """Mean and deviation: the stored ones, else those of config.json."""
    names = ("normalizer.mean", "normalizer.var")
    if {*names} <= evidence.trained:
        mean, var = (float(evidence.read([name])[name].float().flatten()[0]) for name in names)
    else:
        mean, var = (float((evidence.config.get(name) or [default])[0]) for name, default in (("mean", 0), ("var", 1)))
    return mean, var**0.5


# Starling, Athene


def _is_athene(evidence: Evidence) -> bool:
    named = evidence.architecture == "CustomAutoModelForSequenceClassification"
    return _is_decoder(evidence) and (named or evidence.tokenizer.cls_token is not None)


def _is_decoder(evidence: Evidence) -> bool:
    """None of the others that call their head so."""
    return evidence.prefix != "transformer." and evidence.config.get("model_type") != "internlm2"


def _athene(evidence: Evidence) -> dict[str, Any]:
    return {"append": evidence.tokenizer.cls_token or "<|reserved_special_token_1|>"}


def _flat(tensors: Tensors, evidence: Evidence) -> Tensors:
    """A bias as a vector of one, however it is stored."""
    return {name: t.reshape(-1) if name.endswith("bias") else t.reshape(-1, t.shape[-1]) for name, t in tensors.items()}


FAMILIES = (
    Family(
        name="UltraRM or Eurus",
        published="UltraRM-13b, Eurus-RM-7b",
        tensors={"out.weight": "regression_head.weight"},
        rows=(1,),
        reading=_ultra,
        notes=(
            "where the tokenizer has no chat template: 'Human: … Assistant: …', and '[INST] … [/INST] …' on Mistral",
        ),
    ),
    Family(
        name="Beaver",
        published="beaver-7b reward and cost models, v1 to v3",
        tensors={"out.weight": "score_head.weight", "out.bias": "score_head.bias?"},
        used=("normalizer.mean", "normalizer.var", "normalizer.count"),
        rows=(1,),
        when=_is_beaver,
        reading=_beaver,
        notes=(
            "a cost is turned over: higher is better, as everywhere in karat",
            "no space stands behind 'ASSISTANT:'; one gives other numbers",
        ),
    ),
    Family(
        name="score_head of unknown meaning",
        published="",
        tensors={"out.weight": "score_head.weight", "out.bias": "score_head.bias?"},
        used=("normalizer.mean", "normalizer.var", "normalizer.count"),
        when=lambda e: not _is_beaver(e) and e.shapes["score_head.weight"][0] != 3,
        asks=(
            "the head is called score_head and has {outputs} outputs, and the files do not say what they are: give"
            " output= the number of the reward, or kind='process' where steps are rated"
        ),
        settled_by=("output", "kind"),
    ),
    Family(
        name="OASST",
        published="oasst-rm-2-pythia, oasst-rm-2.1-pythia",
        tensors={"out.weight": "out_proj.weight", "out.bias": "out_proj.bias?"},
        rows=(1,),
        reading=_oasst,
    ),
    Family(
        name="Starling",
        published="Starling-RM-34B",
        tensors=_V_HEAD,
        rows=(1,),
        when=lambda e: e.prefix == "transformer.",
        notes=("the published code stops before the first token 0; here the last token is read, whatever pads are",),
    ),
    Family(
        name="Athene",
        published="Athene-RM-8B, Athene-RM-70B",
        tensors=_V_HEAD,
        rows=(1,),
        when=_is_athene,
        reading=_athene,
        notes=("the CLS token is appended behind the text and read; a text that is cut from the right loses it",),
    ),
    Family(
        name="linear v_head",
        published="",
        tensors=_V_HEAD,
        when=lambda e: _is_decoder(e) and not _is_athene(e),
        asks=(
            "the head is a linear layer called v_head, and the files do not say which token it reads: give"
            " pooling='last', or append= the token that is put behind the text (Athene's tokenizer has a CLS token)"
        ),
        settled_by=("pooling", "append", "kind"),
    ),
    Family(
        name="value_head",
        published="OpenRLHF's older models, ColossalChat (after karat convert)",
        tensors={"out.weight": "value_head.weight", "out.bias": "value_head.bias?"},
        rows=(1,),
        when=lambda e: "value_head_prefix" not in e.config and not {"mean", "std"} <= {*e.config},
    ),
    Family(
        name="classification_head",
        published="LlamaForClassification of SGLang",
        tensors={"out.weight": "classification_head.weight"},
        rows=(1,),
    ),
    Family(
        name="classification_head of several outputs",
        published="LlamaForClassification of SGLang",
        tensors=lambda e: (
            names
            if e.shapes.get((names := {"out.weight": "classification_head.weight"})["out.weight"], (1,))[0] > 1
            else None
        ),
        asks=(
            "the head has {outputs} outputs, and the files do not say what they are: give output= the number of the"
            " reward, counted from 0"
        ),
        settled_by=("output", "kind"),
    ),
    Family(
        name="reward_head",
        published="ReasonFlux-PRM-1.5B (after karat convert)",
        tensors={"out.weight": "reward_head.weight", "out.bias": "reward_head.bias?"},
        fold=_flat,
        rows=(1,),
        asks=(
            "a layer called reward_head stands beside a language model, and the files do not say how it is read: give"
            " activation='sigmoid' and layout='concat' (spec='reasonflux-prm-1.5b'), or activation='identity'"
        ),
        settled_by=("activation",),
    ),
)
