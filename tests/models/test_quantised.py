"""Weights in four or eight bits: read where transformers can, else refused with the mend; never read without scales."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig

import karat
import toys
from karat.engine.padded import PaddedEngine, PaddedForward
from karat.engine.probe import choose, choose_forward
from karat.models import _quantised
from karat.models._quantised import precision
from karat.rewards._doctor import examine
from karat.rewards._local import LocalModel
from karat.training.config import TrainConfig
from karat.training.run import run
from karat.types import BadInput, CheckpointError, Example, Message, Refused

sys.path.append(str(Path(__file__).parent.parent / "rewards"))  # where the layouts are
ASKED = (Message("user", "2+2?"),)


@pytest.fixture
def folder(tmp_path):
    return toys.save(tmp_path / "m")


def says(folder, quantization):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "torchao", "quant_type": "int8_weight_only"},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
    ],
)
@pytest.mark.parametrize("options", [{}, pytest.param({"kind": "embedding"}, marks=pytest.mark.full)])
def test_a_method_that_is_not_here_is_named(folder, quantization, options, monkeypatch):
    for bits in (4, 8):
        monkeypatch.setattr(f"transformers.quantizers.quantizer_bnb_{bits}bit.is_bitsandbytes_available", lambda: False)
    says(folder, quantization)
    with pytest.raises(Refused) as caught:
        karat.load(str(folder), **options)
    assert f"fewer bits by {quantization['quant_method']}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["weight_scale", "weight_scale_inv", "SCB", "weight.absmax", "scales"])
@pytest.mark.parametrize("quantization", [None, pytest.param({"quant_method": "unheard-of"}, marks=pytest.mark.full)])
def test_scales_that_would_be_left_out_are_an_error(folder, suffix, quantization):
    """As floating-point numbers alone, packed weights would give another score without a word."""
    if quantization:
        says(folder, quantization)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    tensors[f"model.layers.0.mlp.up_proj.{suffix}"] = torch.ones(1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="would not be applied"):
        karat.load(str(folder))


# What bitsandbytes does


def test_what_asks_for_bitsandbytes_says_so_where_it_is_missing(folder, monkeypatch):
    monkeypatch.setattr(_quantised, "is_bitsandbytes_available", lambda: False)
    for dtype in _quantised.TYPES:
        with pytest.raises(Refused, match=f"dtype='{dtype}' needs bitsandbytes.*pip install bitsandbytes"):
            karat.load(str(folder), dtype=dtype)


def test_weights_in_fewer_bits_are_not_made_fewer_again(folder):
    says(folder, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(Refused, match="stored in fewer bits already, by bitsandbytes; leave dtype out"):
        karat.load(str(folder), dtype="int8")


@pytest.mark.parametrize("suffix", ["SCB", "weight.absmax"])
def test_a_head_in_fewer_bits_is_an_error(folder, suffix):
    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"] = tensors["score.weight"].to(torch.uint8)
    tensors[f"score.{suffix}"] = torch.ones(1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"the reward head is stored in fewer bits too \(score"):
        karat.load(str(folder))


@pytest.mark.parametrize(("threshold", "budget"), [(6.0, 1), (0.0, 4096)])
def test_packed_weights_get_the_padded_engine_and_llm_int8_a_forward_for_each_text(folder, threshold, budget):
    """In LLM.int8 a large number in one text changes how the texts beside it are rounded."""
    backbone = karat.load(str(folder)).parts.backbone
    assert not isinstance(choose(backbone), PaddedEngine)
    backbone.config.quantization_config = {"load_in_8bit": True, "llm_int8_threshold": threshold}
    engine = choose(backbone)
    assert isinstance(engine, PaddedEngine) and engine.forward.budget == budget
    assert isinstance(choose_forward(backbone), PaddedForward)


def fp8(weight):
    """Blocks of 128 by 128 in float8 [O, I], their scales, and the numbers that they stand for."""
    rows, columns = weight.shape
    whole = torch.zeros(-(-rows // 128) * 128, -(-columns // 128) * 128)
    whole[:rows, :columns] = weight
    blocks = whole.view(len(whole) // 128, 128, -1, 128)
    scales = blocks.abs().amax((1, 3)) / 448
    packed = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
    meant = (packed.float() * scales[:, None, :, None]).view(whole.shape)[:rows, :columns]
    return packed.view(whole.shape)[:rows, :columns].contiguous(), scales, meant.contiguous()


def test_weights_in_fp8_are_read_with_their_scales(folder):
    tensors = load_file(folder / "model.safetensors")
    layers = {name: fp8(t) for name, t in tensors.items() if name.startswith("model.layers") and t.dim() == 2}
    meant = {**tensors, **{name: m for name, (_, _, m) in layers.items()}}
    save_file(meant, folder / "model.safetensors", metadata={"format": "pt"})
    wanted = [own.value for own in karat.load(str(folder)).score("2+2?", ["4", "five"])]
    packed = {**meant, **{n: p for n, (p, _, _) in layers.items()}}
    packed |= {f"{name}_scale_inv": scales for name, (_, scales, _) in layers.items()}
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    says(folder, {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"})
    assert [own.value for own in karat.load(str(folder)).score("2+2?", ["4", "five"])] == pytest.approx(
        wanted, abs=1e-5
    )


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip("bitsandbytes", reason="not installed: weights in 4 and 8 bits are not tried")


@pytest.fixture
def wide(tmp_path, monkeypatch):
    """A folder whose layers have more than one block of 64 numbers to a row."""
    for name, size in (("hidden_size", 128), ("intermediate_size", 256), ("head_dim", 32)):
        monkeypatch.setitem(toys.SIZES, name, size)
    return toys.save(tmp_path / "m")


def stored(folder, dtype):
    """A folder as transformers stores it in fewer bits."""
    eight = {"load_in_8bit": True, "llm_int8_threshold": 1.0}  # low, so that columns are kept in 16 bits
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    told = BitsAndBytesConfig(**(eight if dtype == "int8" else four))
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, quantization_config=told, device_map={"": "cpu"}, dtype=torch.float32
    )
    out = folder.with_name(dtype)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    return out


def by_transformers(folder, sequences):
    """Each text alone, without padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    base, head = model.model, model.score.weight
    with torch.no_grad():
        states = [base(input_ids=torch.tensor([s.ids])).last_hidden_state[0, -1] for s in sequences]
    return [float(head.detach().float()[0] @ h.float()) for h in states]


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_a_stored_backbone_gives_what_transformers_gives_in_any_company(bitsandbytes, wide, dtype):
    folder = stored(wide, dtype)
    model = karat.load(str(folder))
    assert model.parts.head.out.weight.dtype == torch.float32 and dtype in precision(model.parts.backbone)
    texts = ["4", "five, or so: " * 9, "It is 4."]
    sequences = [own.sequence for own in model.renderer(Example(ASKED, text) for text in texts)]
    wanted = by_transformers(folder, sequences)
    assert model.values(sequences) == pytest.approx(wanted, abs=1e-5)
    assert [model.values([one])[0] for one in sequences[::-1]][::-1] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_a_plain_folder_is_read_in_fewer_bits_where_it_is_asked_for(bitsandbytes, wide, dtype):
    folder = stored(wide, dtype)
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "bitsandbytes"
    whole, packed = karat.load(str(wide)), karat.load(str(wide), dtype=dtype)
    a, b = ([own.value for own in model.score("2+2?", ["4", "five"])] for model in (whole, packed))
    assert a != b and whole.fingerprint != packed.fingerprint
    if dtype == "nf4":  # the other is stored with another threshold
        assert b == pytest.approx([own.value for own in karat.load(str(folder)).score("2+2?", ["4", "five"])], abs=1e-5)
    linear = {type(m).__name__ for m in packed.parts.backbone.modules() if isinstance(m, torch.nn.Linear)}
    assert linear == {"Linear8bitLt" if dtype == "int8" else "Linear4bit"}


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_negative_control_in_eight_bits_texts_round_each_other(bitsandbytes, wide, dtype):
    """Why eight bits are run a text at a time: padded together, another number comes out; four bits do not mind."""
    model = karat.load(str(stored(wide, dtype)))
    sequences = [own.sequence for own in model.renderer(Example(ASKED, "word " * n) for n in (1, 9, 30))]
    together = LocalModel(model.parts, PaddedEngine(PaddedForward(model.parts.backbone)))
    moved = max(abs(a - b) for a, b in zip(model.values(sequences), together.values(sequences), strict=True))
    assert (moved > 1e-4) == (dtype == "int8")


@pytest.mark.full
@pytest.mark.parametrize("name", ["ms-marco cross-encoder", "ArmoRM-Llama3-8B", "Starling-RM-34B", "Qwen2.5-Math-PRM"])
@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_heads_of_all_kinds_stay_whole(bitsandbytes, tmp_path, name, dtype):
    """BERT's pooler is in its backbone, ArmoRM's gate looks whether a prompt sees the answer, Starling's is renamed."""
    from layouts import LAYOUTS

    written = LAYOUTS[name].write(tmp_path / "m")
    if dtype == "nf4" and bitsandbytes.functional.has_avx512bf16():  # its kernel there takes multiples of 64
        with pytest.raises(Refused, match="shape"):
            karat.load(str(tmp_path / "m"), dtype=dtype)
        return
    whole, packed = karat.load(str(tmp_path / "m")), karat.load(str(tmp_path / "m"), dtype=dtype)
    for own, same in zip(whole.parts.head.parameters(), packed.parts.head.parameters(), strict=True):
        assert torch.equal(own, same) and same.dtype == torch.float32
    assert all(map(math.isfinite, written.by(packed)))


@pytest.mark.full
def test_an_adapter_is_trained_beside_packed_weights_and_nothing_else_is(bitsandbytes, wide, tmp_path):
    folder, pairs = stored(wide, "nf4"), tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{a}+1?", "chosen": str(a + 1), "rejected": str(a)} for a in range(12)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"kind": "bradley_terry", "model": str(folder), "data": (str(pairs),), "trainer": {"max_steps": 1}}
    for method in ("full", "frozen"):
        with pytest.raises(BadInput, match="beside which only an adapter is trained; use method=lora"):
            run(TrainConfig(**config, method=method, output=str(tmp_path / "not")))
    run(TrainConfig(**config, method="lora", output=str(tmp_path / "out")))
    found = {own.check: own for own in examine(str(tmp_path / "out"))}
    assert all(own.ok for own in found.values())
    assert "within 0 of what they did" in found["golden scores"].found
