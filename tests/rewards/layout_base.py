"""What a published folder is asked, and writers of those with a head over a decoder: one reward, or one to a step.

karat's own saver has no part in it; what is expected is a few lines over the folder's own tensors.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import test_families as whole
import torch
from safetensors.torch import save_file
from test_families import CASES, Case
from test_step_rewards import PROMPT, STEPS, enc
from tokenizers import AddedToken
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

import toys

ASKED, ANSWER, OTHER = "2+2?", "four", "It is 5."


@dataclass(frozen=True, kw_only=True)
class Written:
    """One question to a folder: finished ids, what they give, and how karat's model is asked for the same."""

    ids: Sequence[int]
    wanted: Sequence[float]  # a reward, those of steps, or a vector
    by: Callable[[Any], Sequence[float]]
    reads: Sequence[int] = ()  # places of steps
    reward: Callable[[torch.Tensor], torch.Tensor] = lambda z: z[:, 0]  # outputs of the head [S, k] → rewards [S]
    texts: tuple[str, str] | None = None  # where a tool puts two segments together by itself
    types: Sequence[int] = ()  # of segments
    vector: bool = False


@dataclass(frozen=True)
class Layout:
    """A folder, and what its files leave open."""

    write: Callable[[Path], Written]
    answer: Mapping[str, Any] = field(default_factory=dict)  # the options that settle it
    says: str = ""  # a part of the question
    refused: bool = False  # nothing would settle it


def one(model):
    """The reward of the usual answer."""
    return [model.score(ASKED, [ANSWER], strict=True)[0].value]


def by_steps(model):
    """The rewards of the usual steps."""
    return model.score_steps(PROMPT, STEPS).steps


def by_transformers(folder, written):
    """What its class for sequences, or for tokens where steps are rated, gives without an option.

    Right, refused, or silently another number; vectors of embedding models are of no such class.
    """
    if written.vector:
        return "not run"
    auto = AutoModelForTokenClassification if written.reads else AutoModelForSequenceClassification
    try:
        model = auto.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32).eval()
        types = {"token_type_ids": torch.tensor([written.types])} if any(written.types) else {}
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([written.ids]), **types).logits[0]
    except Exception:  # whatever it raises, nobody is misled
        return "refused"
    try:
        found = written.reward(logits[list(written.reads)] if written.reads else logits[None]).tolist()
    except (IndexError, RuntimeError):  # fewer outputs than the head has
        return "silently wrong"
    close = pytest.approx(list(written.wanted), abs=1e-3 * max(1.0, *map(abs, written.wanted)))
    return "right" if found == close else "silently wrong"


def put(folder, tokenizer, config, tensors, says):
    """Write the files of a folder; `says` is what its config.json holds beside the backbone's."""
    folder.mkdir()
    tokenizer.save_pretrained(folder)
    contiguous = {name: t.clone().contiguous() for name, t in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    own = {k: v for k, v in config.to_dict().items() if k not in ("id2label", "label2id", "architectures")}
    (folder / "config.json").write_text(json.dumps({**own, **says}))


def labels(count):
    """What transformers writes of a head's outputs."""
    return {"id2label": {str(n): f"LABEL_{n}" for n in range(count)}}


def named(architecture, **more):
    """A config's own word for its class."""
    return {"architectures": [architecture], **more}


def drawn(shape, chance):
    """Weights whose outputs are of the order of 1, so that no sigmoid or softmax of them is all but 0 or 1."""
    return torch.randn(shape, generator=chance) * shape[-1] ** (-0.5 if len(shape) > 1 else 0)


# One reward to an answer


def scalar(case, folder):
    """One of the cases of test_families."""
    written = whole.write(folder, case)
    ids, wanted = whole.expected(case, written, [("user", ASKED), ("assistant", ANSWER)])
    return Written(ids=ids, wanted=[wanted], by=one)


def of(case, answer=None, says=""):
    return Layout(partial(scalar, case), answer or {}, says)


def outputs(shapes, column, architecture="llama", **says):
    """A head of several outputs, of which one is the reward."""

    def write(folder):
        (name,) = (n.removesuffix(".weight") for n in shapes if n.endswith(".weight"))
        case = Case(shapes, lambda t, h, j: (t[f"{name}.weight"] @ h[-1])[column], says, architecture=architecture)
        found = scalar(case, folder)
        return Written(ids=found.ids, wanted=found.wanted, by=one, reward=lambda z: z[:, column])

    return write


def polar(folder):
    case = CASES["InternLM2"]
    token = "[UNUSED_TOKEN_130]"
    case = Case(**{**case.__dict__, "tokens": (token,), "append": token})
    tokenizer, base, head = whole.write(folder, case)
    text = "q\nref<|reward|>q\nans"
    ids = [tokenizer.bos_token_id, *enc(tokenizer, text + token)]
    with torch.no_grad():
        wanted = float(head["v_head.weight"] @ base(input_ids=torch.tensor([ids])).last_hidden_state[0, -1])
    return Written(ids=ids, wanted=[wanted], by=lambda model: [model.score_text(text).value])


# Rewards of steps


def steps(ids, head, reward, *, score, added=(), architecture="llama", prefix="model.", says=None):
    """A head over a backbone, read at steps."""

    @torch.no_grad()
    def write(folder):
        tokenizer = toys.byte_tokenizer()
        tokenizer.add_tokens([AddedToken(tag, special=True) for tag in added], special_tokens=True)
        base = toys.backbone(architecture)
        chance = torch.Generator().manual_seed(3)
        own = {name: drawn(shape, chance) for name, shape in head.items()}
        tensors = {**{prefix + name: t for name, t in base.state_dict().items()}, **own}
        put(folder, tokenizer, base.config, tensors, says or {})
        row, reads = ids(tokenizer, PROMPT, STEPS)
        states = base(input_ids=torch.tensor([row])).last_hidden_state[0, reads]
        wanted = reward(score(own, states)).tolist()
        return Written(ids=row, wanted=wanted, by=by_steps, reads=reads, reward=reward)

    return write


def linear(name):
    def score(tensors, states):
        return states @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", torch.zeros(1))

    return score


def mlp(tensors, states):
    hidden = torch.relu(states @ tensors["score.0.weight"].T + tensors["score.0.bias"])
    return hidden @ tensors["score.2.weight"].T + tensors["score.2.bias"]


def marked(lead, mark, line="{step}", between="", bos=True):
    """Steps and marks as one text, in which a byte is a token; read at the last one of each mark."""

    def build(tokenizer, prompt, given):
        text, ends = lead.format(prompt=prompt), []
        for n, step in enumerate(given, 1):
            text += line.format(n=n, step=step) + mark
            ends.append(len(text.encode()) - (0 if bos else 1))
            text += between
        return tokenizer(text.removesuffix(between) if between else text)["input_ids"], ends

    return build
