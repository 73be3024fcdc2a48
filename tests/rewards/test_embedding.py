"""Embeddings against transformers alone: pooling, length, dimensions, special tokens."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

import karat
import toys
from karat.types import BadInput, Refused

TEXTS = ["2+2?", "a longer text\n\nin two paragraphs", "", "</s> <|im_end|>", "2+2?"]


@pytest.fixture(scope="module", params=["llama", "bert"])
def saved(request, tmp_path_factory):
    return toys.save(tmp_path_factory.mktemp("e") / "m", toys.backbone(request.param))


def alone(folder, model, text, pooling):
    ids = model.renderer([karat.Example((), text)])[0].sequence.ids
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder)(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return {"mean": states.mean(0), "last": states[-1], "cls": states[0]}[pooling]


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_vectors_are_those_of_transformers(saved, pooling):
    model = karat.load(str(saved), kind="embedding", pooling=pooling)
    found = model.embed(TEXTS)
    assert found.dtype == np.float32 and found.shape == (5, 32)
    wanted = np.stack([alone(saved, model, t, pooling).numpy() for t in TEXTS])
    assert found == pytest.approx(wanted, abs=1e-5)
    assert (found[0] == found[4]).all()


def test_ids_are_the_tokenizer_s_own(saved):
    model = karat.load(str(saved), kind="embedding")
    text = "What is 7*8?"
    assert list(model.renderer([karat.Example((), text)])[0].sequence.ids) == model.parts.tokenizer(text)["input_ids"]


def test_length_one_and_fewer_dimensions(saved):
    whole = karat.load(str(saved), kind="embedding").embed(TEXTS)
    cut = karat.load(str(saved), kind="embedding", dimensions=8, normalize=True).embed(TEXTS)
    wanted = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    assert cut == pytest.approx(wanted, abs=1e-6)


def test_calls_that_cannot_be(saved):
    model = karat.load(str(saved), kind="embedding")
    assert model.embed([]).shape == (0, 32)
    with pytest.raises(Refused, match="no rewards; use embed"):
        model.score("q", ["a"])
    with pytest.raises(BadInput, match=r"text 2: .*surrogate"):
        model.embed(["a", "\ud800"])
    with pytest.raises(BadInput, match="list of texts"):
        model.embed("a")
    with pytest.raises(BadInput, match="dimensions=99, but the model has 32"):
        karat.load(str(saved), kind="embedding", dimensions=99)


def test_a_reward_model_has_no_embeddings(model_folder):
    with pytest.raises(Refused, match="kind='embedding'"):
        karat.load(str(model_folder)).embed(["a"])
