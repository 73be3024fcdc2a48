"""Writers of published folders: language models read by their logits, encoders, pairs, embeddings, a T5."""

import json

import torch
from layout_base import ANSWER, ASKED, OTHER, Written, by_steps, drawn, labels, named, one, put
from test_families import H, wb
from test_pairwise import rlhflow
from test_step_rewards import PROMPT, STEPS, enc, of_tokens
from tokenizers import AddedToken, processors
from torch.nn.functional import gelu, layer_norm, normalize
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

import toys
from karat.types import Message


@torch.no_grad()
def written_language_model(folder, added=(), words=(), architecture="llama", says=None):
    """A language model and its tokenizer."""
    tokenizer = toys.byte_tokenizer()
    tokenizer.add_tokens([AddedToken(word, special=False) for word in words])
    tokenizer.add_tokens([AddedToken(tag, special=True) for tag in added], special_tokens=True)
    torch.manual_seed(0)
    model = toys._spread(AutoModelForCausalLM.from_config(toys.config(architecture)))
    name = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "gemma": "GemmaForCausalLM"}
    own = dict(model.state_dict())
    put(folder, tokenizer, model.config, own, says or named(name.get(architecture, "Qwen2ForCausalLM")))
    return tokenizer, model


def lm_steps(ids, tokens, reward, architecture="llama"):
    """Steps read by the logits of two tokens."""

    @torch.no_grad()
    def write(folder):
        tokenizer, model = written_language_model(folder, architecture=architecture)
        row, reads = ids(tokenizer, PROMPT, STEPS)
        logits = model(input_ids=torch.tensor([row])).logits[0, reads]
        wanted = reward(of_tokens(*tokens)(None, None, logits)).tolist()
        return Written(ids=row, wanted=wanted, by=by_steps, reads=reads)

    return write


def lm_logit(text, tokens, reward, words=(), by=one, architecture="llama"):
    """One number of the logits behind a text."""

    @torch.no_grad()
    def write(folder):
        tokenizer, model = written_language_model(folder, words=words, architecture=architecture)
        row = enc(tokenizer, text(tokenizer))
        numbers = [t if isinstance(t, int) else enc(tokenizer, t)[0] for t in tokens]
        z = model(input_ids=torch.tensor([row])).logits[0, -1, numbers]
        return Written(ids=row, wanted=[float(reward(z))], by=by)

    return write


def chat(tokenizer, *said, **more):
    return tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in said], tokenize=False, **more)


QWEN3_RERANKER = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct"
    ' provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a'
    f" web search query, retrieve relevant passages that answer the query\n<Query>: {ASKED}\n<Document>: {ANSWER}"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
BGE_GEMMA = (
    f"<s>A: {ASKED}\nB: {ANSWER}\nGiven a query A and a passage B, determine whether the passage contains an answer to"
    " the query by providing a prediction of either 'Yes' or 'No'."
)


@torch.no_grad()
def rlhflow_pair(folder):
    """P(A) of RLHFlow's message, the mean of both orders."""
    tokenizer, model = written_language_model(folder)
    rows, found = [], []
    for a, b in ((ANSWER, OTHER), (OTHER, ANSWER)):
        message = rlhflow([Message("user", ASKED)], a, b).strip()
        rows.append(enc(tokenizer, chat(tokenizer, ("user", message), add_generation_prompt=True)))
        z = model(input_ids=torch.tensor([rows[-1]])).logits[0, -1, [enc(tokenizer, x)[0] for x in "AB"]]
        found.append(float(z.softmax(-1)[0]))
    return Written(ids=rows[0], wanted=[(found[0] + 1 - found[1]) / 2], by=compared)


def compared(model):
    """The probability that the usual answer is better than the other."""
    return [model.compare(ASKED, ANSWER, OTHER)]


def segments(chat_template=None):
    """A tokenizer that puts two segments together as encoders have them."""
    tokenizer = toys.byte_tokenizer(chat=chat_template)
    names = [(n, tokenizer.convert_tokens_to_ids(n)) for n in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=names
    )
    tokenizer.cls_token, tokenizer.sep_token = "<s>", "</s>"
    return tokenizer


def encoder(architecture, prefix, shapes, score, says, column=0, keep_pooler=False, **changes):
    """An encoder that reads prompt and answer as two segments."""

    @torch.no_grad()
    def write(folder):
        tokenizer, base = segments(), toys.backbone(architecture, **changes)
        chance = torch.Generator().manual_seed(5)
        head = {name: torch.randn(shape, generator=chance) for name, shape in shapes.items()}
        own = {prefix + n: t for n, t in base.state_dict().items() if keep_pooler or not n.startswith("pooler")}
        if changes.get("type_vocab_size") == 1:
            tokenizer.model_input_names = ["input_ids", "attention_mask"]
        put(folder, tokenizer, base.config, own | head, says)
        found = tokenizer(ASKED, ANSWER)
        types = found.get("token_type_ids", [])
        more = {"token_type_ids": torch.tensor([types])} if types and changes.get("type_vocab_size") != 1 else {}
        states = base(input_ids=torch.tensor([found["input_ids"]]), **more)
        wanted = float(score(head, states, base)[column])
        return Written(
            ids=found["input_ids"],
            wanted=[wanted],
            by=one,
            types=types,
            texts=(ASKED, ANSWER),
            reward=lambda z: z[:, column],
        )

    return write


def dense(first, out, act):
    def score(t, found, base):
        x = act(t[f"{first}.weight"] @ found.last_hidden_state[0, 0] + t[f"{first}.bias"])
        return t[f"{out}.weight"] @ x + t[f"{out}.bias"]

    return score


def pooled(t, found, base):
    """BERT's: its own pooler, then one layer."""
    return t["classifier.weight"] @ found.pooler_output[0] + t["classifier.bias"]


@torch.no_grad()
def modern_bert(folder):
    """gte-reranker-modernbert: a dense layer without a bias, a norm, one layer; the first token."""
    config = AutoConfig.for_model(
        "modernbert",
        vocab_size=270,
        hidden_size=H,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        pad_token_id=0,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 2),
    )
    torch.manual_seed(0)
    base, tokenizer = toys._spread(AutoModel.from_config(config)), segments()
    head = {"head.dense.weight": torch.randn(H, H), "head.norm.weight": torch.rand(H) + 0.5}
    head |= {"classifier.weight": torch.randn(1, H), "classifier.bias": torch.randn(1)}
    own = {f"model.{n}": t for n, t in base.state_dict().items()}
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    says = named("ModernBertForSequenceClassification", **labels(1), classifier_pooling="cls")
    put(folder, tokenizer, config, own | head, says)
    ids = tokenizer(ASKED, ANSWER)["input_ids"]
    x = gelu(head["head.dense.weight"] @ base(input_ids=torch.tensor([ids])).last_hidden_state[0, 0])
    x = layer_norm(x, (H,), head["head.norm.weight"], eps=config.norm_eps)
    wanted = float(head["classifier.weight"] @ x + head["classifier.bias"])
    return Written(ids=ids, wanted=[wanted], by=one, texts=(ASKED, ANSWER))


@torch.no_grad()
def pair_rm(folder):
    """PairRM-hf: head([h_source; h_answer]) of both answers, in both orders."""
    tokenizer, base = segments(), toys.backbone("deberta-v2")
    names = ["<|source|>", "<|candidate|>", "<|candidate1|>", "<|candidate2|>"]
    tokenizer.add_tokens([AddedToken(name, special=True) for name in names], special_tokens=True)
    chance = torch.Generator().manual_seed(7)
    shapes = {"head_layer.1.weight": (H, 2 * H), "head_layer.1.bias": (H,), **wb("head_layer.4", 1)}
    t = {name: drawn(shape, chance) for name, shape in shapes.items()}
    ids = dict(zip(("source", "cand", "cand1", "cand2"), tokenizer.convert_tokens_to_ids(names), strict=True))
    says = named("DebertaV2PairRM", n_tasks=1, drop_out=0.05, sep_token_id=tokenizer.sep_token_id)
    says |= {f"{name}_prefix_id": number for name, number in ids.items()}
    own = {f"pretrained_model.{n}": tensor for n, tensor in base.state_dict().items()}
    put(folder, tokenizer, base.config, own | t, says)
    found, rows = [], []
    for a, b in ((ANSWER, OTHER), (OTHER, ANSWER)):
        row, places = [], []
        for name, text in (("source", ASKED), ("cand1", a), ("cand2", b)):
            places.append(len(row) + 1)
            row += [tokenizer.cls_token_id, ids[name], *enc(tokenizer, text), tokenizer.sep_token_id]
        h = base(input_ids=torch.tensor([row])).last_hidden_state[0]
        x = [torch.cat([h[places[0]], h[place]]) for place in places[1:]]
        f = [t["head_layer.4.weight"] @ torch.tanh(t["head_layer.1.weight"] @ v + t["head_layer.1.bias"]) for v in x]
        found.append(float(torch.sigmoid(f[0] - f[1])))
        rows.append(row)
    return Written(ids=rows[0], wanted=[(found[0] + 1 - found[1]) / 2], by=compared)


# Embeddings, and what has no reward


def embedding(architecture, prefix, pool, says, pooling, tail=""):
    """A backbone with sentence-transformers' files."""

    @torch.no_grad()
    def write(folder):
        tokenizer, base = (segments() if architecture == "bert" else toys.byte_tokenizer()), toys.backbone(architecture)
        if tail:
            tokenizer.add_tokens([AddedToken(tail, special=True)], special_tokens=True)
        own = {prefix + n: t for n, t in base.state_dict().items()}
        put(folder, tokenizer, base.config, own, says)
        modules = ("", "1_Pooling", "2_Normalize")
        kinds = ("Transformer", "Pooling", "Normalize")
        listed = [
            {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for n, (path, kind) in enumerate(zip(modules, kinds, strict=True))
        ]
        (folder / "modules.json").write_text(json.dumps(listed))
        (folder / "1_Pooling").mkdir()
        modes = {f"pooling_mode_{m}": m == pooling for m in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": H, **modes}))
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 256, "do_lower_case": False}))
        ids = tokenizer(ANSWER + tail)["input_ids"]
        wanted = normalize(pool(base(input_ids=torch.tensor([ids])).last_hidden_state[0]), dim=0).tolist()
        return Written(ids=ids, wanted=wanted, by=lambda model: model.embed([ANSWER])[0].tolist(), vector=True)

    return write


@torch.no_grad()
def steam_shp(folder):
    """SteamSHP: P(A) of the first word that a T5 writes."""
    tokenizer = toys.byte_tokenizer(chat=None)
    end = tokenizer.eos_token_id
    config = AutoConfig.for_model(
        "t5",
        vocab_size=270,
        d_model=H,
        d_kv=H // 4,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        eos_token_id=end,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    torch.manual_seed(0)
    model = toys._spread(AutoModelForSeq2SeqLM.from_config(config))
    put(folder, tokenizer, config, dict(model.state_dict()), named("T5ForConditionalGeneration"))
    text = f"POST: {ASKED}\n\n RESPONSE A: {ANSWER}\n\n RESPONSE B: {OTHER}\n\n Which response is better? RESPONSE"
    ids = [*enc(tokenizer, text), end]
    z = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[0]])).logits[0, 0]
    wanted = z[[enc(tokenizer, x)[0] for x in "AB"]].softmax(-1)[0]
    return Written(ids=ids, wanted=[float(wanted)], by=compared)
