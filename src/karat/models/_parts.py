"""A Hugging Face model taken apart into backbone and head, and what its folder has to hold for that.

It knows how classification classes and PEFT store a head; it knows nothing of specs' fingerprints or of saving.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerBase,
)

from karat.models import backbone as backbones
from karat.models._quantised import beside, check_head, placed
from karat.models.heads import Head, Layout, check_output, layouts_for
from karat.models.render import render_part
from karat.spec import Head as HeadSpec
from karat.spec import RewardSpec
from karat.types import BadInput, CheckpointError, Refused

HEAD_FILE = "reward_head.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
_LOGITS = ", or read logits of a language model with head='lm_logits:+,-'"


@dataclass
class Parts:
    """A model taken apart. `model` is what is saved; `backbone` and `head` are what is run and trained."""

    model: Any  # PreTrainedModel, or the PeftModel around it
    backbone: nn.Module
    head: Head
    layout: Layout | None  # where `model` keeps the head, or None where it cannot
    tokenizer: PreTrainedTokenizerBase
    spec: RewardSpec
    pooler: nn.Module | None = None  # taken off the backbone: the head does its work
    reference: "Parts | None" = None  # the model in the denominator of a ratio
    open: Path | None = None  # the folder, where it holds no spec that says how the model is read
    stored: tuple[tuple[str | int, ...], ...] = ()  # the files of weights there, as they were at loading
    longest: int | None = None  # tokens that a server takes, where one runs the backbone

    @property
    def positions(self) -> int | None:
        """How many tokens the backbone takes."""
        limit = backbones.positions(self.model.config)
        own = None if limit is None else limit - backbones.position_offset(self.backbone)
        return min((most for most in (own, self.longest) if most is not None), default=None)

    @property
    def device(self) -> torch.device:
        """Where the head lies: by the backbone, and on the CPU where a server has that."""
        own = next(self.backbone.parameters()).device
        return torch.device("cpu") if own.type == "meta" else own


def apart(
    model: Any, base: Any, head: Head, layout: Layout | None, tokenizer: PreTrainedTokenizerBase, spec: RewardSpec
) -> Parts:
    """The parts of a model, with the spec's template written out and the backbone's pooler taken off."""
    if not spec.render.template:
        spec = spec.model_copy(update={"render": render_part(tokenizer, spec.render)})
    check_output(spec)
    parts = Parts(model, base, head.to(base.device), layout, tokenizer, spec, getattr(base, "pooler", None))
    if parts.pooler is not None:
        base.pooler = None
    return parts


@contextlib.contextmanager
def pooler_in_place(parts: Parts) -> Iterator[None]:
    """The backbone with the pooler that was taken off, for as long as it is saved or wrapped."""
    if parts.pooler is None:
        yield
        return
    backbone: Any = parts.backbone
    backbone.pooler = parts.pooler
    try:
        yield
    finally:
        parts.pooler, backbone.pooler = backbone.pooler, None


def bare(folder: Path, device: str, dtype: str) -> Any:
    """The architecture's model without a head.

    Raises:
        CheckpointError: weights of it are missing or of another shape.
    """
    model, report = backbones.from_pretrained(AutoModel, folder, **placed(folder, device, dtype))
    _check_whole(folder, _lost(report))
    return model


def filled(
    folder: Path, made: Any, config: Any, tensors: dict[str, Tensor], device: str, dtype: str
) -> Any:  # PreTrainedModel
    """A model of transformers' class `made` with tensors that were renamed or rearranged for it.

    Raises:
        Refused: transformers cannot make it.
        CheckpointError: weights of it are missing or of another shape.
    """
    options = placed(folder, device, dtype, config)
    try:
        with backbones.quiet():
            model, report = made.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
    except Exception as error:  # torch and transformers each raise their own
        raise Refused(f"the model in {folder} cannot be loaded: {backbones.first_line(error)}") from None
    _check_whole(folder, _lost(report))
    backbones.check_layers(folder, model, report)
    return model


def classifier(folder: Path, device: str, dtype: str, tokens: bool, outputs: int) -> tuple[Any, set[str]]:
    """The architecture's classification model of texts or `tokens`, and which tensors of its head the folder lacks.

    Raises:
        CheckpointError: weights of its backbone are missing or of another shape.
    """
    auto = AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification
    told = placed(folder, device, dtype, heads=lambda: beside(auto, folder))
    model, report = backbones.from_pretrained(auto, folder, num_labels=outputs, **told)
    lost = _lost(report)
    _check_whole(folder, {k for k in lost if k.startswith(model.base_model_prefix + ".")})
    return model, lost


def logits_head(folder: Path, device: str, dtype: str, ids: Sequence[int] | slice) -> tuple[Any, Head]:
    """A causal language model's backbone, and a head that gives its logits of some tokens and no others.

    Raises:
        Refused: the folder holds no language model, or one whose logits are not linear in its states.
        BadInput: an id is beyond the vocabulary.
    """
    model, report = backbones.from_pretrained(AutoModelForCausalLM, folder, **placed(folder, device, dtype))
    out, base = model.get_output_embeddings(), getattr(model, model.base_model_prefix, None)
    if (
        base is None
        or base is model
        or out is None
        or any(out is model.get_submodule(n.rpartition(".")[0]) for n in _lost(report))
    ):
        mend = "choose head='linear' or 'mlp'"
        if isinstance(ids, slice):  # rewards that are log-probabilities of the text, which no other head gives
            mend = "kind implicit, and language_weight, need a causal language model: give the folder or hub id of one"
        raise Refused(f"{folder} has no language-model head, so it has no logits; {mend}")
    _check_whole(folder, _lost(report))
    check_head([] if out.weight.is_floating_point() else ["lm_head"])
    ids = range(len(out.weight)) if isinstance(ids, slice) else ids
    if beyond := [i for i in ids if not 0 <= i < len(out.weight)]:
        raise BadInput(
            f"token id {beyond[0]} is not in the vocabulary of {len(out.weight)}; choose tokens of this model"
        )
    bias = getattr(out, "bias", None)
    head = Head(HeadSpec(type="lm_logits", outputs=len(ids), bias=bias is not None), out.weight.shape[1])
    chosen = torch.tensor(ids, device=out.weight.device)
    tensors = {"out.weight": out.weight.data[chosen]} | ({} if bias is None else {"out.bias": bias.data[chosen]})
    head = head.to(base.device)
    fill(head, tensors)
    some = torch.tensor([[i % len(out.weight) for i in range(3, 9)]], device=base.device)
    model.eval()
    with torch.no_grad():
        wanted = model(input_ids=some).logits[0][:, chosen].float()
        got = head(base(input_ids=some).last_hidden_state[0])
    scale = logit_scale(model.config.get_text_config())
    if not torch.allclose(got * scale, wanted, rtol=2e-2 if base.dtype != torch.float32 else 1e-3, atol=1e-3):
        raise Refused(f"{type(model).__name__} computes its logits in a way that karat does not know")
    if scale != 1:
        fill(head, {name: tensor * scale for name, tensor in head.state_dict().items()})
    return base, head


def logit_scale(config: Any) -> float:
    """By what a model multiplies its logits.

    Raises:
        Refused: it caps them, which is not linear.
    """
    if getattr(config, "final_logit_softcapping", None):
        raise Refused(
            "this model caps its logits, which single rows of its head do not say; choose head='linear' without"
            " language_weight"
        )
    return float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)


def token_ids(tokenizer: PreTrainedTokenizerBase, tokens: tuple[str, ...]) -> list[int]:
    """The ids of tokens given as text, or as #id.

    Raises:
        BadInput: a text is not one token.
    """
    found = []
    for token in tokens:
        if token[:1] == "#" and token[1:].isdigit():
            found.append(int(token[1:]))
            continue
        ids = tokenizer(token, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) != 1:
            raise BadInput(
                f"{token!r} is {len(ids)} tokens of this tokenizer ({ids[:8]}), and a logit is of one; give one token,"
                " or its id as #id"
            )
        found.append(int(ids[0]))
    return found


def _lost(report: dict[str, Any]) -> set[str]:
    """The tensors that a model did not get: missing, or of another shape."""
    return {*report["missing_keys"], *(k if isinstance(k, str) else k[0] for k in report["mismatched_keys"])}


def _check_whole(folder: Path, lost: set[str]) -> None:
    if names := sorted(k for k in lost if "pooler" not in k):
        raise CheckpointError(
            f"{folder} lacks weights of its backbone, such as {names[0]}, or has them in another shape;"
            " download or save it again"
        )


def probe(model: Any, base: Any) -> Layout | None:
    """How a classification class computes its head, found by comparing with its own forward on a few tokens.

    Raises:
        Refused: its forward takes more than token ids.
        CheckpointError: its weights give no numbers.
    """
    names = frozenset(model.state_dict())
    pad, tokens = model.config.get_text_config().pad_token_id, False
    ids = torch.tensor([[i for i in range(3, 12) if i != pad][:6]], device=base.device)
    model.eval()
    try:
        with torch.no_grad():
            wanted = model(input_ids=ids).logits.float()
            states = base(input_ids=ids).last_hidden_state.float()
            tokens = wanted.dim() == 3
    except Exception as error:  # encoder-decoders and others with inputs of their own
        raise Refused(f"{type(model).__name__} cannot be used: {backbones.first_line(error)}") from None
    if not bool(wanted.isfinite().all()):
        raise CheckpointError("the model's weights give NaN or infinity; download it again, or try dtype='float32'")
    found: list[tuple[float, Layout]] = []
    for bare_layout in layouts_for(names, model.base_model_prefix, tokens):
        layout = replace(bare_layout, spec=bare_layout.spec.model_copy(update={"outputs": wanted.shape[-1]}))
        head = Head(layout.spec, states.shape[-1]).to(base.device)
        fill(head, {ours: model.get_parameter(theirs).data for ours, theirs in layout.tensors.items()})
        with torch.no_grad():
            got = head(states if tokens else _read(states, layout.pooling))
        if torch.allclose(got, wanted, rtol=2e-2 if base.dtype != torch.float32 else 1e-3, atol=1e-3):
            found.append((float((got - wanted).abs().max()), layout))
    return min(found, key=lambda f: f[0])[1] if found else None


def try_out(folder: Path, base: Any) -> None:
    """Run a backbone on a few tokens.

    Raises:
        Refused: it does not run.
        CheckpointError: its weights give no numbers.
    """
    pad = base.config.get_text_config().pad_token_id
    ids = torch.tensor([[i for i in range(3, 12) if i != pad][:6]], device=base.device)
    base.eval()
    try:
        with torch.no_grad(), backbones.quiet():
            states = base(input_ids=ids).last_hidden_state
    except Exception as error:  # whatever a config that does not fit its tensors leads to
        raise Refused(f"the model in {folder} does not run: {backbones.first_line(error)}") from None
    if not bool(states.isfinite().all()):
        raise CheckpointError("the model's weights give NaN or infinity; download it again, or try dtype='float32'")


def _read(states_BLD: Tensor, pooling: str) -> Tensor:
    return states_BLD.mean(1) if pooling == "mean" else states_BLD[:, -1 if pooling == "last" else 0]


def stored_head(folder: Path, layout: Layout, adapter: bool) -> dict[str, Tensor]:
    """The head's tensors as stored, in their own precision."""
    prefix = "base_model.model." if adapter else ""
    wanted = {prefix + theirs: ours for ours, theirs in layout.tensors.items()}
    found: dict[str, Tensor] = {}
    for file in [folder / ADAPTER_FILE] if adapter else sorted(folder.glob("*.safetensors")):
        found |= read_tensors(file, set(wanted))
    if lost := set(wanted) - set(found):
        what = "the adapter was saved without its reward head" if adapter else "it has no reward head"
        raise Refused(
            f"{folder}: {what} ({min(lost)} is missing); train one with `karat train`,"
            " or give the folder of a reward model" + (_LOGITS if layout.pooling == "step" else "")
        )
    return {wanted[name]: tensor for name, tensor in found.items()}


def read_tensors(file: Path, names: set[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file: all, or those of some names.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            held = set(stored.keys())
            return {n: stored.get_tensor(n) for n in (held if names is None else held & names)}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); download or save it again") from None


def fill(head: Head, tensors: dict[str, Tensor]) -> None:
    """Give a head its tensors, in float32.

    Raises:
        CheckpointError: they are not those of such a head.
    """
    check_head(name for name, t in tensors.items() if not t.is_floating_point())
    wanted = {name: tuple(t.shape) for name, t in head.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in tensors.items()}
    if wanted != given:
        raise CheckpointError(f"the reward head has tensors {given}, but this model and spec need {wanted}")
    if not all(bool(t.isfinite().all()) for t in tensors.values()):
        raise CheckpointError("the reward head's weights hold NaN or infinity; download or save it again")
    head.load_state_dict({name: t.float() for name, t in tensors.items()})


def base_of_adapter(folder: Path) -> Path:
    """The folder of the model that a LoRA adapter belongs to.

    Raises:
        Refused: it is not there.
    """
    base = backbones.read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    try:
        if not base or not isinstance(base, str):
            raise Refused("it names none")
        return backbones.locate(base)
    except Refused:
        raise Refused(
            f"{folder} is a LoRA adapter for {base!r}, which is not there; put its base there,"
            " or correct base_model_name_or_path in adapter_config.json"
        ) from None


def with_language_adapter(base: Path, folder: Path, device: str, dtype: str) -> tuple[Any, Any]:
    """A language model with the LoRA adapter of a folder around it, and the backbone inside.

    Raises:
        CheckpointError: weights are missing, or the adapter is not for this model.
    """
    model, report = backbones.from_pretrained(AutoModelForCausalLM, base, **placed(base, device, dtype))
    _check_whole(base, {name for name in _lost(report) if not name.startswith("lm_head")})
    wrapped = with_adapter(model, folder)
    return wrapped, getattr(wrapped.base_model.model, model.base_model_prefix)


def around_language(base: Path, folder: Path, head: Head, device: str, dtype: str) -> tuple[Any, Any]:
    """The same, of an adapter that leaves the language head as it is in the base: as `head` computes it.

    Raises:
        CheckpointError: weights are missing, or the adapter is not for this model.
        Refused: it changes the head.
    """
    model, own = with_language_adapter(base, folder, device, dtype)
    states_RD = torch.randn(2, own.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(own.device)
    out = model.get_output_embeddings()
    with torch.no_grad():
        found, wanted = out(states_RD.to(own.dtype)).float() * logit_scale(own.config), head(states_RD)
    near = 2e-2 if own.dtype != torch.float32 else 1e-3
    if by_adapter(out) or not torch.allclose(found, wanted, rtol=near, atol=1e-3):
        raise Refused(f"the adapter in {folder} changes the language head; merge it into its base, and give the result")
    return model, own


def by_adapter(module: Any) -> bool:
    """Whether PEFT has put something of its own in a module's place."""
    return type(module).__module__.partition(".")[0] == "peft"


def _rows_asked(folder: Path) -> int:
    """How many rows of the embedding an adapter needs that trained some of them."""
    asked = backbones.read_json(folder / "adapter_config.json").get("trainable_token_indices") or []
    lists = asked.values() if isinstance(asked, dict) else [asked]
    return max((int(i) + 1 for indices in lists for i in indices), default=0)


def with_adapter(model: Any, folder: Path) -> Any:
    """The model with the LoRA adapter of a folder around it.

    Raises:
        CheckpointError: the adapter cannot be read, or is not for this model.
    """
    from peft import PeftModel, get_peft_model_state_dict

    stored = read_tensors(folder / ADAPTER_FILE)  # before PEFT, which would take a pickle where there is none
    embedding = model.get_input_embeddings()
    place = next(f"base_model.model.{name}.weight" for name, module in model.named_modules() if module is embedding)
    try:
        with backbones.quiet():
            rows = len(stored[place]) if place in stored else _rows_asked(folder)
            if rows > embedding.num_embeddings:  # it grew by a pad token, or by a step's mark
                model.resize_token_embeddings(rows, mean_resizing=False)
            wrapped = PeftModel.from_pretrained(model, folder)
            wanted = set(get_peft_model_state_dict(wrapped, save_embedding_layers=place in stored))
    except Exception as error:  # PEFT passes on what torch and its config parser raise
        raise CheckpointError(f"the adapter in {folder} cannot be loaded: {backbones.first_line(error)}") from None
    if strange := set(stored) ^ wanted:
        raise CheckpointError(f"the adapter in {folder} does not fit its base model (tensor {min(strange)})")
    return wrapped
