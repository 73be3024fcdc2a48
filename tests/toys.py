"""Toys that are real: a byte-level tokenizer and seeded two-layer models, saved and loaded like any other."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
)

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(chat: str | None = CHAT, eos: bool = True, pad: str | None = "<pad>", bos: str = "<s>"):
    """256 bytes, <s>, </s>, <pad>, <|im_start|>, <|im_end|>; `pad` may be "</s>" or None."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [bos, *(["</s>"] if eos else []), *([pad] if pad and pad != "</s>" else []), "<|im_start|>", "<|im_end|>"]
    backend.add_special_tokens(special)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token="</s>" if eos else None,
        pad_token=pad,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = chat
    return tokenizer


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "head_dim": 8,
    "vocab_size": 270,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def config(architecture: str = "llama", **changes):
    own = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
        "gpt_neox": {"rotary_pct": 0.5},
        "bert": {"pad_token_id": 0},
        "roberta": {"pad_token_id": 1, "max_position_embeddings": 514},
        "electra": {"pad_token_id": 0, "embedding_size": 32},
        "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "pad_token_id": 0},
        "deberta-v2": {"pad_token_id": 0},
        "opt": {"word_embed_proj_dim": 32, "ffn_dim": 64},
        "bloom": {"n_layer": 2, "n_head": 4},
    }
    return AutoConfig.for_model(architecture, **{**SIZES, **own.get(architecture, {}), **changes})


def reward_model(architecture: str = "llama", seed: int = 0, **changes):
    """A seeded classification model with one output; weights are large enough for scores to differ."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config(architecture, num_labels=1, **changes))
    return _spread(model)


def step_model(architecture: str = "llama", seed: int = 0, **changes):
    """A seeded token classifier with two labels: how step rewards are stored."""
    torch.manual_seed(seed)
    return _spread(AutoModelForTokenClassification.from_config(config(architecture, num_labels=2, **changes)))


def backbone(architecture: str = "llama", seed: int = 0, **changes):
    torch.manual_seed(seed)
    return _spread(AutoModel.from_config(config(architecture, **changes)))


def _spread(model):
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() > 1:
                tensor.normal_(std=0.3 if "embed" in name else 0.15)
    return model.eval()


def save(folder: Path, model=None, tokenizer=None) -> Path:
    """A model folder as transformers writes it."""
    (model or reward_model()).save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder


def causal_model(seed: int = 0, **changes):
    torch.manual_seed(seed)
    return _spread(AutoModelForCausalLM.from_config(config("llama", **changes)))
