"""What others do with a model while karat has it, and what changes between calls: never a wrong answer in silence."""

import random
import threading
from contextlib import nullcontext

import architectures
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AlbertConfig, AlbertModel

from karat.engine import _native, _patches, forest, fused, probe, rotary
from karat.engine.base import EngineError
from karat.engine.forest import ForestEngine
from karat.engine.packed import PackedForward
from karat.engine.padded import PaddedEngine, PaddedForward
from karat.types import Sequence

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 64,
}
ROPES = {
    "longrope": ("Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}),
    "dynamic": (
        "Llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
            "max_position_embeddings": 64,
        },
    ),
}


def draw(chance, count):
    return tuple(chance.randrange(5, 300) for _ in range(count))


def last(ids, *at):
    return Sequence(tuple(ids), {"last": at or (len(ids) - 1,)})


def far(found, wanted):
    return max(float((f["last"] - w["last"]).abs().max()) for f, w in zip(found, wanted, strict=True))


def alone(model, asked):
    return [architectures.alone(model, s) for s in asked]


ASKED = [last(range(5, 25)), last(range(5, 40))]


# Threads


def test_texts_of_two_parts_wait_for_those_that_share(monkeypatch):
    engine = ForestEngine(architectures.build("Bert"), causal=False)
    held = []
    run = PaddedEngine.run
    monkeypatch.setattr(PaddedEngine, "run", lambda own, asked: held.append(engine._lock.locked()) or run(own, asked))
    two = Sequence(tuple(range(5, 25)), {"last": (0,)}, type_ids=(0,) * 10 + (1,) * 10)
    found = engine.run([two, last(range(5, 25), 0), two])
    assert held == [True]
    wanted = PaddedEngine(PaddedForward(engine.backbone)).run([two, last(range(5, 25), 0), two])
    assert far(found, wanted) < 1e-5 and far(found[:1], found[1:2]) > 1e-3


def test_texts_of_two_parts_have_the_same_bits_in_any_company():
    engine = probe.choose(architectures.build("Bert", hidden_size=96), deterministic=True)
    asked = [Sequence(tuple(range(5, 5 + n)), {"last": (0,)}, type_ids=(0,) * 4 + (1,) * (n - 4)) for n in (9, 30, 17)]
    together = engine.run(asked)
    assert all(torch.equal(engine.run([s])[0]["last"], f["last"]) for s, f in zip(asked, together, strict=True))


def test_a_model_that_another_thread_calls_meanwhile_fails_there_and_is_right_here():
    model = architectures.build("Qwen3")
    engine, told = ForestEngine(model), []

    def other():
        try:
            model(input_ids=torch.tensor([[5, 6, 7]]))
        except EngineError as error:
            told.append(str(error))

    def meanwhile(*_):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    hook = model.layers[0].input_layernorm.register_forward_pre_hook(
        lambda *_: None if threading.current_thread() is not threading.main_thread() else meanwhile()
    )
    found = engine.run(ASKED)
    hook.remove()
    assert told and all("give karat a model of its own" in sentence for sentence in told)
    assert far(found, alone(model, ASKED)) < 1e-5


def test_engines_of_one_model_wait_for_each_other():
    model = architectures.build("Qwen3")
    assert ForestEngine(model)._lock is ForestEngine(model)._lock
    assert ForestEngine(model)._lock is not ForestEngine(architectures.build("Qwen3"))._lock


def test_models_that_share_a_config_leave_it_as_it_was():
    model = architectures.build("Qwen3")
    configs = _patches.configs_of(model)
    before = model.config._attn_implementation
    first, second = _patches.attending(configs), _patches.attending(configs)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert model.config._attn_implementation == "karat"
    second.__exit__(None, None, None)
    assert model.config._attn_implementation == before


# What changes


def test_an_adapter_that_is_switched_counts_at_once():
    settings = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    peft = get_peft_model(architectures.build("Llama"), settings)
    peft.add_adapter("two", settings)
    engine = ForestEngine(peft.base_model.model)
    first = engine.run(ASKED)
    peft.set_adapter("two")
    second = engine.run(ASKED)
    assert far(second, alone(engine.backbone, ASKED)) < 1e-5 < 1e-2 < far(first, second)
    with peft.disable_adapter():
        assert far(engine.run(ASKED), alone(engine.backbone, ASKED)) < 1e-5


def transposed(model):
    weight = model.layers[0].mlp.down_proj.weight
    weight.data = weight.data.t().contiguous().t()
    return lambda: weight.data.mul_(1.5)


def by_a_hook(model):
    return lambda: model.layers[0].register_forward_hook(lambda module, taken, given: given * 0.5)


def by_a_buffer(model):
    return lambda: model.rotary_emb.inv_freq.mul_(0.5)


def by_another_module(model):
    def change():
        old = model.layers[0].mlp
        model.layers[0].mlp = new = type(old)(model.config)
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(new, name, getattr(old, name))
        new.act_fn = nn.Tanh()

    return change


def by_an_activation(model):
    return lambda: model.layers[0].mlp.act_fn.register_forward_hook(lambda module, taken, given: given * 0.5)


def by_another_hook(model):
    first = model.layers[0].register_forward_hook(lambda module, taken, given: given * 2)

    def change():
        first.remove()
        model.layers[0].register_forward_hook(lambda module, taken, given: given * 0.5)

    return change


@pytest.mark.parametrize(
    "kind", [transposed, by_a_hook, by_another_hook, by_a_buffer, by_another_module, by_an_activation]
)
def test_what_a_model_computes_is_never_what_it_was(kind):
    model = architectures.build("Qwen3")
    change = kind(model)
    engine = ForestEngine(model)
    before = engine.run(ASKED)
    change()
    assert far(engine.run(ASKED), alone(model, ASKED)) < 1e-5 < 1e-3 < far(before, alone(model, ASKED))


def test_a_weight_that_is_no_number_does_not_empty_the_cache():
    model = architectures.build("Qwen3")
    model.embed_tokens.weight.data[299] = float("nan")
    engine = ForestEngine(model)
    engine.run(ASKED)
    computed = engine.computed
    engine.run(ASKED)
    assert engine.computed == computed


def test_autocast_is_another_way_to_compute():
    model = architectures.build("Qwen3")
    engine = ForestEngine(model)
    for inside in (False, True, False):
        with torch.autocast("cpu", torch.bfloat16) if inside else nullcontext():
            found, wanted = engine.run(ASKED), alone(model, ASKED)
        assert far(found, wanted) < (5e-2 if inside else 1e-5)


# What a probe has to see


def test_layers_that_share_their_attention_are_not_shared():
    """All of ALBERT's are one module, whose keys cannot be told apart."""
    model = AlbertModel(
        AlbertConfig(vocab_size=300, embedding_size=32, hidden_size=64, num_hidden_layers=3, num_attention_heads=4)
    ).eval()
    assert isinstance(probe.choose(model), PaddedEngine)
    engine = ForestEngine(model, causal=False, trim=False)  # negative control: right once, and then not
    ids = draw(random.Random(0), 30)
    assert far(engine.run([last(ids)]), alone(model, [last(ids)])) < 1e-4
    assert far(engine.run([last(ids, 10)]), alone(model, [last(ids, 10)])) > 1e-2


@pytest.mark.parametrize("outlier", [0.0, 50.0])
def test_one_large_dimension_hides_nothing_in_bfloat16(outlier):
    model = architectures.build("Bloom").bfloat16()
    model.ln_f.bias.data[0] = outlier
    assert isinstance(probe.choose(model), PaddedEngine)


class Clamped(nn.Module):
    """A gated feed-forward whose gate has a limit, as Step 3's and DeepSeek V4's."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(*size, bias=False) for size in ((32, 48), (32, 48), (48, 32)))
        self.limit = 7.0

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)).clamp(max=self.limit) * self.up(x))


@pytest.mark.skipif(_native.kernel() is None, reason="no compiler")
def test_a_gate_with_a_limit_is_no_plain_one():
    clamped = Clamped()
    assert fused.feed_of(clamped) is None
    clamped.limit = float("inf")
    assert fused.feed_of(clamped) is not None


def test_a_rotation_in_float32_is_another_one_in_bfloat16():
    def wide(q, k, cos, sin):
        found = rotary.halves(q.float(), k.float(), cos.float(), sin.float())
        return tuple(own.to(q.dtype) for own in found)

    assert not rotary._is_halves(wide) and rotary._is_halves(rotary.halves)


@pytest.mark.parametrize("kind", ROPES)
def test_texts_whose_length_decides_their_frequencies_go_alone(kind):
    name, options = ROPES[kind]
    model = architectures.build(name, **options)
    engine, chance = probe.choose(model), random.Random(0)
    assert isinstance(engine, ForestEngine)
    long, short = draw(chance, 120), draw(chance, 30)
    for asked in ([last(long[:50])], [last(long), last(short)], [last(long[:40])], [last(long, 20)], [last(long[:64])]):
        assert far(engine.run(asked), alone(model, asked)) < 1e-5
    padded = PaddedEngine(PaddedForward(model))
    both = [last(long), last(short)]
    assert far(padded.run(both), alone(model, both)) < 1e-5
    packed = PackedForward(model)
    with torch.no_grad():
        for asked in (both, [last(short), last(short[:9])]):
            found = packed(**packed.collate(asked))
            assert float((found - torch.cat([w["last"] for w in alone(model, asked)])).abs().max()) < 1e-5


# Sizes


@pytest.mark.full
def test_a_path_of_a_thousand_nodes():
    model = architectures.build("Qwen3", max_position_embeddings=2048, num_hidden_layers=1)
    engine, chance = ForestEngine(model), random.Random(0)
    ids = draw(chance, 1)
    for _ in range(1100):  # two candidates for each token, of which one is taken
        one, two = (ids + draw(chance, 1) for _ in range(2))
        engine.run([last(one), last(two)])
        ids = one
    assert far(engine.run([last(ids)]), alone(model, [last(ids)])) < 1e-4


def test_texts_that_grow_share_a_forward_where_the_cache_is_small():
    model, chance = architectures.build("Qwen3", max_position_embeddings=1024), random.Random(0)
    engine = ForestEngine(model, probe.ON_CUDA, probe.ON_CUDA)
    texts = [draw(chance, 200) for _ in range(16)]
    engine.run([last(t) for t in texts])
    seen, forward = [], engine._forward
    engine._forward = lambda running: seen.append(len(running.batch.ids)) or forward(running)
    engine.run([last(t + draw(chance, 5)) for t in texts])
    assert seen == [80]


def test_keys_and_values_go_with_their_engine(monkeypatch):
    model, stores = architectures.build("Qwen3"), []
    made = forest.Running
    monkeypatch.setattr(forest, "Running", lambda *own: stores.append(made(*own)) or stores[-1])
    ForestEngine(model).run(ASKED)
    assert stores and not any(running.store.layers for running in stores)


def test_without_a_home_there_is_no_kernel_and_no_error(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(_native.Path, "home", homeless)
    assert _native.kernel.__wrapped__() is None
