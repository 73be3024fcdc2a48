"""The doctor says what is wrong, and never with a traceback."""

import json

import pytest
import torch

import toys
from karat.models import checkpoint
from karat.rewards import _doctor
from karat.rewards._doctor import examine
from karat.rewards._local import golden_values
from karat.spec import FILE_NAME, RewardSpec


@pytest.fixture
def folder(tmp_path):
    parts = checkpoint.start(toys.save(tmp_path / "m"), RewardSpec(kind="bradley_terry"))
    checkpoint.save(parts, tmp_path / "o", golden_values)
    return tmp_path / "o"


def wrong(folder):
    return [f.check for f in examine(str(folder)) if not f.ok]


def test_a_sound_model(folder):
    findings = examine(str(folder))
    assert all(f.ok for f in findings)
    assert [f.check for f in findings] == [
        "loads",
        "golden scores",
        "text",
        "BOS",
        "read",
        "length",
        "padding id",
        "padding",
        "mistakes",
    ]
    assert "4 inputs" in findings[1].found and "1 at the start" in findings[3].found


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_other_reads(tmp_path, pooling):
    model = toys.reward_model("bert", pad_token_id=258) if pooling == "cls" else None
    spec = RewardSpec(kind="outcome", pooling=pooling)
    parts = checkpoint.start(toys.save(tmp_path / "m", model), spec)
    checkpoint.save(parts, tmp_path / "o", golden_values)
    assert wrong(tmp_path / "o") == []


def test_a_foreign_model(model_folder):
    assert wrong(model_folder) == []
    assert "not saved by karat" in examine(str(model_folder))[1].found


def test_a_changed_golden_score(folder):
    path = folder / FILE_NAME
    spec = json.loads(path.read_text())
    spec["golden"][1]["value"] += 0.01
    path.write_text(json.dumps(spec))
    assert wrong(folder) == ["golden scores"]


def test_changed_weights(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1.05
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert wrong(folder) == ["golden scores"]


class Leaky(_doctor.PaddedForward):
    """Forgets the mask: what a model without padding support does."""

    def _pad(self, sequences):
        chunk = super()._pad(sequences)
        return {**chunk, "attention_mask": torch.ones_like(chunk["attention_mask"])}


class Broken(_doctor.PaddedForward):
    """NaN wherever a row was padded."""

    def _read(self, **chunk):
        states = super()._read(**chunk)
        return states if bool(chunk["attention_mask"].all()) else states * float("nan")


@pytest.mark.parametrize("forward", [Leaky, Broken])
def test_padding_that_matters(folder, monkeypatch, forward):
    monkeypatch.setattr(_doctor, "PaddedForward", forward)
    assert wrong(folder) == ["padding"]


@pytest.mark.parametrize(
    "break_it",
    [
        lambda f: (f / "model.safetensors").unlink(),
        lambda f: (f / FILE_NAME).write_text('{"kind": "abacus"}'),
        lambda f: (f / FILE_NAME).write_text('{"kind": "outcome", "render": {"eos": "append", "layout": "concat"}}'),
        lambda f: (f / "config.json").unlink(),
        lambda f: (f / "chat_template.jinja").write_text("{{ 1 }}"),
    ],
)
def test_what_does_not_load_is_one_finding(folder, break_it):
    break_it(folder)
    if "eos" in (folder / FILE_NAME).read_text() and "append" in (folder / FILE_NAME).read_text():
        toys.byte_tokenizer(eos=False).save_pretrained(folder)
    findings = examine(str(folder))
    assert [(f.check, f.ok) for f in findings] == [("loads", False)]
    assert findings[0].found and "\n" not in findings[0].found


def test_nothing_can_be_rendered(tmp_path):
    chat = "{{ raise_exception('no') }}"
    findings = examine(str(toys.save(tmp_path / "m", tokenizer=toys.byte_tokenizer(chat=chat))))
    assert [f.check for f in findings if not f.ok] == ["renders"]
