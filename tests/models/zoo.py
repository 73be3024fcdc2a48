"""Tokenizers of every family, small and trained here, with chat templates."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import toys

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "What is 7*8? It is 56, I am sure.\n",
    "user: hello there\nassistant: hello to you, dear user.\n",
    "A sea is blue because it is deep; a sky is blue because it is high.",
] * 4
# Nothing but a colon and a line end stands between roles and texts, so that merges cross their edges.
OPEN = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ eos_token }}"


def _fast(backend, chat, **special):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.chat_template = chat
    return tokenizer


def _adds(backend, start, end=""):
    names = [start, *([end] if end else [])]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}".strip(), special_tokens=[(n, backend.token_to_id(n)) for n in names]
    )


@cache
def merged():
    """Byte-level BPE with learnt merges; a chat template that lets merges cross the edges of messages."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    _adds(backend, "<s>")
    return _fast(backend, OPEN, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@cache
def wordpiece():
    """Like BERT's: lower-casing, [CLS] … [SEP]."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        SENTENCES, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    _adds(backend, "[CLS]", "[SEP]")
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    chat = "[CLS]{% for m in messages %}{{ m.content }}[SEP]{% endfor %}"
    return _fast(backend, chat, mask_token="[MASK]", **names)


@cache
def unigram():
    """Like T5's and Llama's: NFKC and Metaspace."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    backend.train_from_iterator(
        [*SENTENCES, "< s > / <"],
        trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    _adds(backend, "<s>", "</s>")
    return _fast(backend, OPEN, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def wordlevel():
    """Whole words; a control token's name is a word like any other to its model."""
    backend = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["[UNK]", "<s>", "</s>"]
    backend.train_from_iterator(SENTENCES, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    _adds(backend, "<s>")
    return _fast(backend, OPEN, bos_token="<s>", eos_token="</s>", unk_token="[UNK]")


@cache
def byte():
    """One token a byte, ChatML."""
    return toys.byte_tokenizer()


ALL = {"byte": byte, "merged": merged, "wordpiece": wordpiece, "unigram": unigram, "wordlevel": wordlevel}


def control_names(tokenizer):
    """The names of its control tokens."""
    return [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]


def control_ids(tokenizer, ids):
    """The control ids among these, without the unknown token (which plain text may give)."""
    control = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special} - {tokenizer.unk_token_id}
    return [i for i in ids if i in control]
