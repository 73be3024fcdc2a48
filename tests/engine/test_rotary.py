"""Rotary embeddings in one pass: the model's own numbers, where its function turns halves, and for karat's run only."""

import threading

import architectures
import pytest
import torch
from test_forest import sequences
from torch import nn
from transformers.models.cohere import modeling_cohere
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.llama import modeling_llama

from karat.engine import _native, rotary
from karat.engine.forest import ForestEngine

pytestmark = pytest.mark.skipif(_native.kernel() is None, reason="no C++ compiler")
DTYPES = [torch.float32, torch.bfloat16]


def drawn(heads, kv_heads, rows, size, dtype=torch.float32):
    chance = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, rows, n, size, generator=chance).to(dtype).transpose(1, 2) for n in (heads, kv_heads))
    angles = torch.randn(1, rows, size // 2, generator=chance).repeat(1, 1, 2)
    return q, k, angles.cos().to(dtype), angles.sin().to(dtype)


class Attention(nn.Module):
    """What calls a function of its file."""

    def forward(self, q, k, cos, sin, **how):
        return modeling_llama.apply_rotary_pos_emb(q, k, cos, sin) if how else turn(q, k, cos, sin)


turn = modeling_llama.apply_rotary_pos_emb


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "rows", "size"), [(2, 2, 1, 32), (6, 2, 7, 64), (4, 1, 300, 96)])
def test_the_kernel_gives_the_functions_own_numbers(dtype, heads, kv_heads, rows, size):
    given = drawn(heads, kv_heads, rows, size, dtype)
    before = [part.clone() for part in given]
    found, wanted = rotary.forward_of(Attention())(*given), turn(*given)
    assert all(torch.equal(part, was) for part, was in zip(given, before, strict=True))
    for own, whole in zip(found, wanted, strict=True):
        assert own.shape == whole.shape
        if dtype == torch.bfloat16:
            assert torch.equal(own, whole)
        torch.testing.assert_close(own, whole)


def cases():
    q, k, cos, sin = drawn(4, 2, 5, 64)
    yield "narrow", (*drawn(4, 2, 5, 16),)
    yield "two of a batch", (q.repeat(2, 1, 1, 1), k.repeat(2, 1, 1, 1), cos, sin)
    yield "wide angles", (q.bfloat16(), k.bfloat16(), cos, sin)
    yield "rows apart", (*(x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k)), cos, sin)
    yield "angles apart", (q, k, cos, sin.transpose(1, 2).contiguous().transpose(1, 2))


@pytest.mark.parametrize("given", [given for _, given in cases()], ids=[name for name, _ in cases()])
def test_what_the_kernel_does_not_take_the_function_does(given):
    for own, whole in zip(rotary.forward_of(Attention())(*given), turn(*given), strict=True):
        assert torch.equal(own, whole) and own.dtype == whole.dtype


def test_part_of_a_head_may_be_turned():
    q, k, _, _ = drawn(4, 2, 9, 96)
    _, _, cos, sin = drawn(4, 2, 9, 32)
    q, k = q[..., :32], k[..., :32]
    for own, whole in zip(rotary.forward_of(Attention())(q, k, cos, sin), turn(q, k, cos, sin), strict=True):
        torch.testing.assert_close(own, whole)


@pytest.mark.parametrize(
    "function",
    [modeling_cohere.apply_rotary_pos_emb, lambda q, k, cos, sin: (q, k), lambda q, k, cos, sin: None, max],
    ids=["neighbours", "none", "nothing", "builtin"],
)
def test_another_rotation_is_left_alone(function):
    assert not rotary._is_halves(function)


def test_an_equal_function_by_any_name_is_known():
    assert rotary._is_halves(turn) and rotary._is_halves(modeling_gpt_neox.apply_rotary_pos_emb)
    assert rotary._is_halves(lambda q, k, cos, sin: rotary.halves(q, k, cos, sin))


def attentions(model, engine):
    return [m for m in engine._forwards if type(m).__name__.endswith("Attention") and m in set(model.modules())]


@pytest.mark.parametrize(("name", "found"), [("Llama", True), ("Qwen3", True), ("Cohere", False), ("GPT2", False)])
def test_what_is_found_of_architectures(name, found):
    model = architectures.build(name)
    assert len(attentions(model, ForestEngine(model))) == found * model.config.num_hidden_layers


def test_nobody_else_sees_another_function(monkeypatch):
    model = architectures.build("Llama", hidden_size=128, num_attention_heads=4, head_dim=32)
    engine, inside, called = ForestEngine(model), threading.Event(), []
    own = modeling_llama.apply_rotary_pos_emb

    def seen(*args, **kwargs):
        called.append(threading.current_thread().name)
        return own(*args, **kwargs)

    counted = rotary._rotated

    def rotated(*args):
        if not inside.is_set():
            thread = threading.Thread(target=lambda: Attention.forward(None, *drawn(2, 2, 3, 32), how=1), name="other")
            inside.set()
            thread.start()
            thread.join()
        return counted(*args)

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", seen)
    monkeypatch.setattr(rotary, "_rotated", rotated)
    engine.run(sequences(count=4))
    assert inside.is_set() and called == ["other"]
    model(torch.arange(4)[None])
    assert len(called) == 1 + model.config.num_hidden_layers
