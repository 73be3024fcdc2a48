"""Language models whose own probabilities are the reward: how training starts from one.

Its head is the model's own and stays as it is, and so does an embedding that shares its weights: what is saved is an
ordinary language model.
"""

from dataclasses import replace
from pathlib import Path

from transformers import AutoModelForCausalLM

from karat.models import backbone as backbones
from karat.models._parts import Parts, apart, logits_head
from karat.models._quantised import placed
from karat.models.heads import Layout
from karat.models.render import render_part, tokenizer_hash
from karat.spec import RewardSpec
from karat.types import Refused


def start(path: str | Path, spec: RewardSpec, device: str, dtype: str = "float32", plain: str = "concat") -> Parts:
    """A language model to train, and the one in the denominator where the spec names it.

    Raises:
        Refused: a folder holds no language model, or the two read other ids.
    """
    folder = backbones.locate(path)
    tokenizer = backbones.load_tokenizer(folder)
    spec = spec.model_copy(update={"render": render_part(tokenizer, spec.render, plain=plain)})
    _, head = logits_head(folder, device, dtype, slice(None))
    model, _ = backbones.from_pretrained(AutoModelForCausalLM, folder, **placed(folder, device, dtype))
    model.name_or_path = str(path) if folder != Path(path) else str(folder.absolute())
    head.requires_grad_(False)
    model.get_output_embeddings().requires_grad_(False)
    layout = Layout(spec.head, spec.pooling, {}, ())  # the head's tensors are in the model, which is saved whole
    assert head.out is not None
    own = {"outputs": len(head.out.weight), "bias": head.out.bias is not None}
    spec = spec.model_copy(update={"head": spec.head.model_copy(update=own)})
    parts = apart(model, getattr(model, model.base_model_prefix), head, layout, tokenizer, spec)
    return replace(parts, reference=reference(parts, device, dtype)) if spec.head.reference else parts


def reference(parts: Parts, device: str, dtype: str) -> Parts:
    """The model in the denominator of a ratio.

    Raises:
        Refused: it reads other ids.
    """
    folder = backbones.locate(parts.spec.head.reference)
    tokenizer = backbones.load_tokenizer(folder)
    if tokenizer_hash(tokenizer) != tokenizer_hash(parts.tokenizer):
        raise Refused(f"{folder} has another tokenizer, so it gives probabilities of other tokens; give another")
    base, head = logits_head(folder, device, dtype, slice(None))
    return apart(base, base, head, None, tokenizer, parts.spec)
