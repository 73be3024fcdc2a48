"""What a user wrote never becomes a control token; for ordinary text nothing changes."""

import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from karat.models._literal import LiteralEncoder

TEXT = st.one_of(
    st.text(max_size=40), st.text(alphabet="<>|[]s/ aeé北＜＞\nUNK", max_size=12), st.sampled_from(zoo.SENTENCES)
)


@pytest.mark.parametrize("name", zoo.ALL)
@settings(max_examples=30)
@given(text=TEXT)
def test_twin_reads_ordinary_text_as_the_tokenizer_does(name, text):
    tokenizer = zoo.ALL[name]()
    literal = LiteralEncoder(tokenizer)
    for add in (True, False):
        ids = tokenizer(text, add_special_tokens=add)["input_ids"]
        blank = tokenizer("", add_special_tokens=add)["input_ids"]
        if literal.holds_control(text) or len(zoo.control_ids(tokenizer, ids)) != len(
            zoo.control_ids(tokenizer, blank)
        ):
            continue
        assert literal.encode_masked(text, add_special_tokens=add) == ids
        assert literal.encode([text], add_special_tokens=add) == [ids]


@pytest.mark.parametrize("name", zoo.ALL)
def test_twin_reads_control_tokens_that_the_template_wrote(name):
    tokenizer = zoo.ALL[name]()
    literal = LiteralEncoder(tokenizer)
    for token in zoo.control_names(tokenizer):
        text = f"{token}It is blue{token} because{token}"
        assert (
            literal.encode_masked(text, add_special_tokens=False) == tokenizer(text, add_special_tokens=False).input_ids
        )


@pytest.mark.parametrize("name", zoo.ALL)
@settings(max_examples=20)
@given(data=st.data())
def test_masked_text_holds_no_control_token_and_unmasks(name, data):
    tokenizer = zoo.ALL[name]()
    literal = LiteralEncoder(tokenizer)
    pieces = st.one_of(st.sampled_from(zoo.control_names(tokenizer)), st.text(max_size=5), st.sampled_from([" ", "\n"]))
    text = "".join(data.draw(st.lists(pieces, max_size=5)))
    for masked in (literal.mask(text), literal.mask_message(text)):
        assert not literal.holds_control(masked)
        assert literal.unmask(masked) == text
        assert masked.strip() == literal.mask_message(text).strip() or masked == literal.mask(text)
        ids = literal.encode_masked(masked, add_special_tokens=False)
        assert zoo.control_ids(tokenizer, ids) == []


def test_normaliser_made_control_tokens_are_text():
    """NFKC turns a fullwidth name into the real one; without the twin the model's vocabulary knows it."""
    for tokenizer, text in ((zoo.unigram(), "＜s＞"), (zoo.wordlevel(), "sky ＜/s＞ sky")):
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert zoo.control_ids(tokenizer, plain), "negative control: the tokenizer itself is fooled"
        (ids,) = LiteralEncoder(tokenizer).encode([text], add_special_tokens=False)
        assert zoo.control_ids(tokenizer, ids) == []


def test_name_that_merges_spell_is_text():
    """A BPE vocabulary may hold a control token's name as a merge's result."""
    backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2, "c": 3}, merges=[("a", "b")]))
    backend.add_special_tokens(["ab"])
    tokenizer = zoo._fast(backend, None, bos_token="ab")
    literal = LiteralEncoder(tokenizer)
    assert literal.encode_masked(literal.mask("cabc"), add_special_tokens=False) == [3, 0, 1, 3]
    assert literal.encode_masked("cabc", add_special_tokens=False) == [3, 2, 3]


def test_unknown_words_are_no_control_tokens():
    tokenizer = zoo.wordlevel()
    literal = LiteralEncoder(tokenizer)
    assert literal.encode(["qwertz sky"], add_special_tokens=False)[0][0] == tokenizer.unk_token_id
    spelled = literal.encode_masked(literal.mask("[UNK] sky"), add_special_tokens=False)
    assert spelled[-1] == tokenizer.convert_tokens_to_ids("sky")


def test_nothing_to_encode():
    assert LiteralEncoder(zoo.byte()).encode([], add_special_tokens=True) == []
