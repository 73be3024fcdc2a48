"""Tiny models of many architectures, seeded, with weights large enough for every mistake to show."""

import torch
import transformers

BASE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
GROUPED = {"num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 16}
MIXED = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}

# What passes through AttentionInterface, with windows, soft caps, sinks, q/k norm and experts among it.
DECODERS = {
    "Llama": GROUPED,
    "Qwen2": GROUPED,
    "Qwen3": WIDE,
    "Mistral": {**GROUPED, "sliding_window": 8},
    "Gemma": WIDE,
    "Gemma2": {**WIDE, "sliding_window": 8},
    "Gemma3Text": {**WIDE, **MIXED},
    "GPTNeoX": {},
    "Phi": {},
    "Phi3": GROUPED,
    "Olmo2": GROUPED,
    "GptOss": {**WIDE, **MIXED, "num_local_experts": 2, "num_experts_per_tok": 1},
    "Granite": GROUPED,
    "Cohere": GROUPED,
    "Starcoder2": {**GROUPED, "sliding_window": 8},
    "StableLm": GROUPED,
    "Glm4": WIDE,
    "Qwen3Moe": {**WIDE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "Qwen2Moe": {"num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    | {"shared_expert_intermediate_size": 32, "use_sliding_window": True, **MIXED},
    "GPT2": {},
    "OPT": {"ffn_dim": 96, "word_embed_proj_dim": 64},
}
ENCODERS = {
    "Bert": {},
    "Roberta": {"max_position_embeddings": 260, "pad_token_id": 1},
    "DistilBert": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96},
    "Electra": {"embedding_size": 64},
}
# What would be silently wrong on a packed row: attention of their own, other token mixers, windows that look both ways.
PADDED = {
    "Bloom": {"n_head": 4, "n_layer": 2},
    "Falcon": {},
    "GPTJ": {"n_embd": 64, "n_head": 4, "n_layer": 2, "rotary_dim": 8, "n_positions": 256},
    "Mamba": {},
    "DebertaV2": {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]},
    "ModernBert": {"pad_token_id": 0, "local_attention": 8, "global_attn_every_n_layers": 2},
}


def build(name: str, **changes):
    """A model without a head, in evaluation mode and without dropout."""
    torch.manual_seed(0)
    own = {**DECODERS, **ENCODERS, **PADDED}[name]
    config = getattr(transformers, f"{name}Config")(**{**BASE, **own, **changes})
    for rate in ("dropout", "attention_dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop", "hidden_dropout_prob"):
        if hasattr(config, rate):
            setattr(config, rate, 0.0)
    if hasattr(config, "attention_probs_dropout_prob"):
        config.attention_probs_dropout_prob = 0.0
    model = getattr(transformers, f"{name}Model")(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3 if parameter.dim() > 1 else 1)
    return model


def alone(model, sequence):
    """States at the reads by transformers alone: one sequence, no mask, no padding."""
    with torch.no_grad():
        states = model(input_ids=torch.tensor([sequence.ids])).last_hidden_state[0].float()
    return {
        name: states[list(read)] if isinstance(read, tuple) else states[read.start : read.stop].mean(0, keepdim=True)
        for name, read in sequence.reads.items()
    }
