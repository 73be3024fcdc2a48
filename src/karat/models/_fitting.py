"""What a model gets before it is trained: a pad token, a step's mark, LoRA layers."""

from typing import Any

from tokenizers import AddedToken

from karat.models import backbone as backbones
from karat.models._parts import Parts, by_adapter, pooler_in_place
from karat.types import BadInput


def add_pad_token(parts: Parts) -> None:
    """Give the tokenizer a pad token of its own where it has none or shares EOS, with a row in the embedding.

    karat needs none (masks come from lengths); classes that look for the last token that is no pad do, and with
    EOS as pad they read the wrong one. Other models are left as they are.
    """
    if parts.layout is None or parts.layout.pooling != "last":
        return
    tokenizer, config = parts.tokenizer, parts.model.config.get_text_config()
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        name = "<|pad|>"
        while name in tokenizer.get_vocab():
            name = name.replace("|>", "_|>")
        tokenizer.add_special_tokens({"pad_token": name})
        if len(tokenizer) > backbones.vocabulary(parts.backbone):
            parts.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config.pad_token_id = tokenizer.pad_token_id


def add_step_token(parts: Parts) -> int:
    """Make the spec's step mark one token of its own; its id. Its row starts as the mean of all others.

    Raises:
        BadInput: there is no mark, or it is one token already.
    """
    mark, tokenizer = parts.spec.render.step_token, parts.tokenizer
    if not mark or mark in tokenizer.get_vocab():
        raise BadInput(
            f"step_token={mark!r} cannot be added: " + ("it is a token already" if mark else "there is none")
        )
    tokenizer.add_tokens([AddedToken(mark, special=True)], special_tokens=True)
    number = int(tokenizer.convert_tokens_to_ids(mark))  # type: ignore[arg-type]
    embedding: Any = parts.backbone.get_input_embeddings()  # type: ignore[operator]
    mean = embedding.weight.data[:number].mean(0)
    if number >= backbones.vocabulary(parts.backbone):
        parts.model.resize_token_embeddings(number + 1, mean_resizing=False)
        embedding = parts.backbone.get_input_embeddings()  # type: ignore[operator]
    embedding.weight.data[number] = mean
    return number


def add_lora(parts: Parts, options: dict[str, Any]) -> None:
    """Wrap the backbone's linear layers in LoRA; the head is trained and saved whole, whatever `options` say.

    `options` are the arguments of peft's LoraConfig; default rank 16 on all linear layers.

    Raises:
        BadInput: peft does not take an option.
    """
    import peft

    config: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", **options}
    heads = list(parts.layout.modules) if parts.layout else []
    config["modules_to_save"] = [*{*(config.get("modules_to_save") or []), *heads}] or None
    task = "CAUSAL_LM" if parts.spec.of_tokens else "TOKEN_CLS" if parts.spec.at_steps else "SEQ_CLS"
    config["task_type"] = task if parts.layout else "FEATURE_EXTRACTION"
    try:
        with pooler_in_place(parts), backbones.quiet():
            parts.model = peft.get_peft_model(parts.model, peft.LoraConfig(**config))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BadInput(f"peft refuses the LoRA options: {backbones.first_line(error)}") from None
    inner = parts.model.base_model.model
    if parts.spec.of_tokens and any(map(by_adapter, (inner.get_input_embeddings(), inner.get_output_embeddings()))):
        raise BadInput("log-probabilities need embeddings and head as they were; leave them out of the LoRA options")
