"""Folders that could be two things, or lack what their config or their family names: asked about in a sentence."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_families_steps import SUMMARY, TWO, H, publish

import toys
from karat import load
from karat.types import Example, Message, Refused


def test_two_heads_are_asked_about_and_each_gives_its_own(tmp_path, karat):
    """A classifier to which somebody added a value head."""
    tokenizer, backbone, tensors = publish(tmp_path / "m", {**SUMMARY, "score.weight": (1, H)})
    with pytest.raises(Refused, match="families sequence classifier and value head; say which"):
        load(str(tmp_path / "m"))
    model = load(str(tmp_path / "m"), family="sequence classifier")
    text = model.renderer.text(Example((Message("user", "2+2?"),), "4"))
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        state = backbone(input_ids=ids).last_hidden_state[0, -1]
    wanted = {"sequence classifier": tensors["score.weight"] @ state}
    wanted["value head"] = tensors["v_head.summary.weight"] @ state + tensors["v_head.summary.bias"]
    for family, value in wanted.items():
        (found,) = load(str(tmp_path / "m"), family=family).score("2+2?", ["4"])
        assert found.value == pytest.approx(value.item(), abs=1e-4)
        code, out, _ = karat("explain", tmp_path / "m", "--family", family)
        assert code == 0 and f"family          {family}" in out
    code, _, err = karat("explain", tmp_path / "m", "--family", "OASST")
    assert code == 1 and "is of no family 'OASST', but of sequence classifier and value head" in err


def test_a_head_that_config_names_and_no_tensor_is(tmp_path):
    for number, (model, named) in enumerate(
        (
            (toys.reward_model(), "LlamaForSequenceClassification, but its reward head, score.weight, is not"),
            (toys.step_model(), "ForTokenClassification, but its reward head, score.weight and score.bias, is not"),
            (toys.reward_model("bert"), "its reward head, classifier.weight and classifier.bias, is not among"),
        )
    ):
        folder = toys.save(tmp_path / str(number), model)
        tensors = load_file(folder / "model.safetensors")
        bare = {n: t for n, t in tensors.items() if not n.startswith(("score", "classifier"))}
        save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
        for options in ({}, {"kind": "bradley_terry"}):
            with pytest.raises(Refused, match=named):
                load(str(folder), **options)


def test_a_mark_that_the_tokenizer_splits(tmp_path):
    """Given by name, the usual mark is still no mark where it is nine tokens."""
    publish(tmp_path / "m", TWO)
    with pytest.raises(Refused, match="restore the tokenizer's files"):
        load(str(tmp_path / "m"))
    with pytest.raises(Refused, match="this tokenizer splits it into 9: restore the tokenizer's files"):
        load(str(tmp_path / "m"), step_token="<extra_0>", layout="chat")
    assert load(str(tmp_path / "m"), step_token="\n\n").at_steps
