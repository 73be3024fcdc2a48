"""A reward model without its backbone's weights, for a server that runs them: spec, tokenizer, head and the last norm.

How a class of transformers computes its head is found out with the class itself, around a stand-in for its backbone.
"""

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedTokenizerBase

from karat.models import backbone as backbones
from karat.models._parts import HEAD_FILE, Parts, fill, logit_scale, probe, read_tensors, token_ids
from karat.models._reading import Reading
from karat.models._vocabulary import outline as language_model
from karat.models._vocabulary import rows_stored
from karat.models.families.base import Found
from karat.models.families.evidence import Evidence
from karat.models.heads import Head, Layout, check_output
from karat.models.render import render_part
from karat.spec import Head as HeadSpec
from karat.spec import RewardSpec
from karat.types import Refused


@dataclass(frozen=True)
class Outline:
    """A reward model whose backbone lies on torch's meta device."""

    parts: Parts
    norm: nn.Module  # the backbone's last, with its weights
    width: int  # numbers in a hidden state
    saved: RewardSpec | None  # the folder's own spec


class _StandIn(nn.Module):
    """A backbone whose states are drawn from a table, so that a class can compute its head on them."""

    device, dtype = torch.device("cpu"), torch.float32
    ROWS = 16

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(self.ROWS, width)
        nn.init.normal_(self.table.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, input_ids: Tensor, **options: Any) -> Any:
        """What transformers' models give, as far as heads read it."""
        return _Output(self.table(input_ids % self.ROWS))


class _Output(SimpleNamespace):
    """States by name, and as the first of a tuple."""

    def __init__(self, states_BLD: Tensor) -> None:
        super().__init__(
            last_hidden_state=states_BLD, past_key_values=None, hidden_states=None, attentions=None, router_logits=None
        )

    def __getitem__(self, place: int) -> Tensor:
        return (self.last_hidden_state,)[place]  # type: ignore[no-any-return]


def outline(told: Reading) -> Outline:
    """A reward model of which only the head and the last norm are read.

    Raises:
        Refused: its backbone cannot run elsewhere, or its head cannot be told from the files.
        CheckpointError: the files cannot be read.
    """
    folder, spec = told.folder, told.spec
    if (folder / "adapter_config.json").is_file():
        raise Refused(f"{folder} is a LoRA adapter, of which a server does not say that it runs it; merge it first")
    if spec.head.type == "log_ratio":
        raise Refused("probabilities of whole answers need the vocabulary and a second model; load the model here")
    evidence = told.found.evidence if told.found else Evidence(folder)
    _check_causal(evidence.skeleton)
    tokenizer = backbones.load_tokenizer(folder)
    head, spec = _head(told, evidence, tokenizer)
    check_output(spec)
    if not spec.render.template:
        spec = spec.model_copy(update={"render": render_part(tokenizer, spec.render)})
    bare = evidence.skeleton
    return Outline(Parts(bare, bare, head, None, tokenizer, spec), _last_norm(evidence), evidence.width, told.saved)


def _check_causal(skeleton: nn.Module) -> None:
    """Raise Refused for a model whose tokens see what follows them, or of which its classes do not say."""
    said = [bool(module.is_causal) for module in skeleton.modules() if hasattr(module, "is_causal")]
    if not said or not all(said):
        raise Refused(
            f"{type(skeleton).__name__} is no causal language model that karat knows, so no remote engine runs it;"
            " leave engine out"
        )


def _last_norm(evidence: Evidence) -> nn.Module:
    """The norm behind the last layer, with its weights, in float32."""
    norms = [
        (name, module)
        for name, module in evidence.skeleton.named_modules()
        if "Norm" in type(module).__name__ and not any(part.isdigit() for part in name.split("."))
    ]
    if not norms:
        raise Refused(f"{type(evidence.skeleton).__name__} has no last norm to check states by; leave engine out")
    name, bare = norms[-1]
    places = {part: evidence.backbone.get(f"{name}.{part}") for part in bare.state_dict()}
    if None in places.values():
        raise Refused(f"{evidence._folder} does not hold the weights of its last norm, {name}; download it again")
    stored = evidence.read([place for place in places.values() if place])
    norm: nn.Module = copy.deepcopy(bare).to_empty(device="cpu").float()
    norm.load_state_dict({part: stored[str(place)].float() for part, place in places.items()})
    return norm


# Heads


def _head(told: Reading, evidence: Evidence, tokenizer: PreTrainedTokenizerBase) -> tuple[Head, RewardSpec]:
    """The head with its weights, and the spec with what they say of it."""
    folder, spec, found = told.folder, told.spec, told.found
    if spec.head.type == "lm_logits" and not (folder / HEAD_FILE).is_file():
        head = _logits(evidence, token_ids(tokenizer, spec.head.tokens))
        assert head.out is not None
        own = {"outputs": len(head.out.weight), "bias": head.out.bias is not None}
        return head, spec.model_copy(update={"head": spec.head.model_copy(update=own)})
    tensors: dict[str, Tensor] = {}
    if (folder / HEAD_FILE).is_file():
        tensors = read_tensors(folder / HEAD_FILE)
    elif found is not None:
        tensors = found.tensors()
        if found.by_class(spec):
            layout = _layout(found, spec, tensors)
            of_class = layout.spec.model_copy(update={"sha256": spec.head.sha256})
            spec = spec.model_copy(update={"head": of_class})
            if "pooling" not in spec.model_fields_set:
                spec = spec.model_copy(update={"pooling": layout.pooling})
    head = Head(spec.head, evidence.width)
    fill(head, tensors)
    return head, spec


def _layout(found: Found, spec: RewardSpec, tensors: dict[str, Tensor]) -> Layout:
    """How a classification class computes the head that it holds.

    Raises:
        Refused: it reads more of its backbone than states, or computes it in a way that karat does not know.
    """
    auto: Any = AutoModelForTokenClassification if spec.at_steps else AutoModelForSequenceClassification
    config = copy.deepcopy(found.evidence.settings)
    config.num_labels = spec.head.outputs
    with torch.device("meta"), backbones.quiet():
        model: Any = auto.from_config(config, dtype=torch.float32)
    setattr(model, model.base_model_prefix, _StandIn(found.evidence.width))
    named = {theirs: tensors[ours].float() for ours, theirs in found.names.items()}
    model.load_state_dict(named, strict=False, assign=True)
    layout = probe(model, getattr(model, model.base_model_prefix))
    if layout is None:
        raise Refused(f"{type(model).__name__} computes its head in a way that karat does not know; leave engine out")
    return layout


def _logits(evidence: Evidence, ids: list[int]) -> Head:
    """A head that gives a language model's logits of some tokens.

    Raises:
        Refused: they are not linear in its states.
    """
    model = language_model(evidence._folder)
    scale = logit_scale(model.config.get_text_config())
    found = {part: tensor.float() for part, tensor in rows_stored(evidence._folder, model, ids).items()}
    head = Head(HeadSpec(type="lm_logits", outputs=len(ids), bias="bias" in found), evidence.width)
    fill(head, {f"out.{part}": tensor * scale for part, tensor in found.items()})
    _check_linear(model, head, found)
    return head


def _check_linear(model: Any, head: Head, rows: dict[str, Tensor]) -> None:
    """Raise Refused where the class makes other logits of its rows than the head does."""
    stand_in, out = _StandIn(rows["weight"].shape[1]), nn.Linear(1, 1, bias="bias" in rows)
    for part, tensor in rows.items():
        setattr(out, part, nn.Parameter(tensor, requires_grad=False))
    setattr(model, model.base_model_prefix, stand_in)
    model.set_output_embeddings(out)
    model.eval()
    ids = torch.arange(6)[None]
    try:
        with torch.no_grad():
            wanted, got = model(input_ids=ids).logits[0].float(), head(stand_in(ids).last_hidden_state[0])
    except Exception as error:  # a class that wants more of its backbone than states
        raise Refused(f"{type(model).__name__} cannot be read: {backbones.first_line(error)}") from None
    if not torch.allclose(got, wanted, rtol=1e-4, atol=1e-4):
        raise Refused(f"{type(model).__name__} computes its logits in a way that karat does not know")
