"""Norms and gates in one pass: the module's own numbers, and only where the module computes that."""

import copy

import architectures
import pytest
import torch
from test_forest import sequences
from torch import nn
from torch.nn import functional
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from karat.engine import _native, fused
from karat.engine.forest import ForestEngine

pytestmark = pytest.mark.skipif(_native.kernel() is None, reason="no C++ compiler")
DTYPES = [torch.float32, torch.bfloat16]


class Feed(nn.Module):
    """A gated feed-forward as most have it."""

    def __init__(self, size=32, wide=48, act=functional.silu):
        super().__init__()
        self.act = act
        self.gate, self.up = nn.Linear(size, wide, bias=False), nn.Linear(size, wide)
        self.down = nn.Linear(wide, size)

    def forward(self, x):
        return self.down(self.act(self.gate(x)) * self.up(x))


def tanh_gelu(x):
    return functional.gelu(x, approximate="tanh")


def seeded(module, dtype=torch.float32):
    chance = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=chance)
    return module.to(dtype).eval()


def rows(*shape, dtype=torch.float32):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(2))
    x[0] *= 1e-3  # where the epsilon shows
    return x.to(dtype)


def close(found, wanted):
    if wanted.dtype == torch.bfloat16:  # one in a thousand is rounded to the other side
        assert (found != wanted).float().mean() < 2e-3
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [LlamaRMSNorm, Gemma2RMSNorm, Olmo2RMSNorm])
@pytest.mark.parametrize("shape", [(1, 16), (5, 48), (1, 7, 64), (2, 3, 4, 16), (700, 96)])
def test_a_norm_gives_the_modules_own_numbers(norm, dtype, shape):
    module = seeded(norm(shape[-1]), dtype)
    with torch.no_grad():
        own = fused.forwards(module)[module]
        close(own(rows(*shape, dtype=dtype)), module(rows(*shape, dtype=dtype)))
        crossed = rows(*shape, dtype=dtype).transpose(0, 0).flip(0)
        close(own(crossed), module(crossed))


def test_each_norm_has_its_own_formula():
    found = {norm: fused.formula_of(seeded(norm(64), torch.bfloat16)) for norm in (LlamaRMSNorm, Gemma2RMSNorm)}
    assert found[LlamaRMSNorm] == (1e-6, 0.0, True) and found[Gemma2RMSNorm] == (1e-6, 1.0, False)
    assert fused.formula_of(seeded(Olmo2RMSNorm(64, eps=1e-3), torch.bfloat16)) == (1e-3, 0.0, False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 32), (3, 32), (1, 600, 32)])
@pytest.mark.parametrize("act", [functional.silu, tanh_gelu])
def test_a_gate_gives_the_modules_own_numbers(dtype, shape, act):
    module, x = seeded(Feed(act=act), dtype), rows(*shape, dtype=dtype)
    with torch.no_grad():
        found, wanted = fused.forwards(module)[module](x), module(x)
    torch.testing.assert_close(found, wanted, **({"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {}))


@pytest.mark.parametrize("act", [functional.silu, tanh_gelu])
def test_a_gate_of_large_numbers_and_of_none(act):
    module = seeded(Feed(act=act))
    own = fused.forwards(module)[module]
    with torch.no_grad():
        for parameter in (module.gate.weight, module.up.weight):
            parameter.zero_()[:32].fill_diagonal_(1.0)
        module.up.bias.fill_(1.0)
        x = torch.tensor([-1e4, -200.0, -88.0, -20.0, 0.0, 20.0, 200.0, 1e4]).repeat(4)[None]
        torch.testing.assert_close(own(x), module(x), rtol=1e-5, atol=1e-3)
        x[0, 3] = float("nan")
        assert own(x).isnan().all() and own(torch.empty(0, 32)).shape == (0, 32)


def test_nothing_of_a_row_shows_in_another():
    for module in (seeded(LlamaRMSNorm(48)), seeded(Feed())):
        own, x = fused.forwards(module)[module], rows(900, 48 if isinstance(module, LlamaRMSNorm) else 32)
        with torch.no_grad():
            whole = own(x)
            x[4] = float("nan")
            assert own(x)[4].isnan().all() and own(x)[5:].isfinite().all()
            if isinstance(module, LlamaRMSNorm):
                assert torch.equal(own(x[7:8]), whole[7:8]) and torch.equal(own(x[800:]), whole[800:])


class Shifted(LlamaRMSNorm):
    """One that takes the mean away first."""

    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


class Scaled(Feed):
    """One that multiplies its gate."""

    def forward(self, x):
        return self.down(functional.silu(self.gate(x) * 0.5) * self.up(x))


class Wrapped(nn.Linear):
    """What an adapter does to a layer is the layer's own affair, but what it takes and gives stays the same."""

    def forward(self, x):
        return super().forward(x) + 1


def adapted():
    module = Feed()
    module.down = Wrapped(48, 32)
    return module


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "module",
    [
        nn.LayerNorm(32),
        Shifted(32),
        LlamaRMSNorm(40),
        Scaled(),
        Feed(act=functional.gelu),
        nn.Sequential(*(nn.Linear(32, 32) for _ in range(3))),
    ],
    ids=["LayerNorm", "shifted", "narrow", "scaled", "by erf", "sequence"],
)
def test_what_computes_something_else_is_left_alone(module, dtype):
    assert fused.forwards(seeded(module, dtype)) == {}
    assert "forward" not in module.__dict__


def test_layers_with_forwards_of_their_own_are_asked():
    module, x = seeded(adapted()), rows(4, 32)
    with torch.no_grad():
        torch.testing.assert_close(fused.forwards(module)[module](x), module(x), rtol=1e-5, atol=1e-4)


def test_what_a_hook_kept_stays_as_it_was():
    module, x, kept = seeded(Feed()), rows(4, 32), []
    own = fused.forwards(module)[module]
    module.gate.register_forward_hook(lambda layer, taken, given: kept.append(given))
    with torch.no_grad():
        own(x)
        close(kept[0], functional.linear(x, module.gate.weight))


def test_a_forward_of_the_instance_is_its_own_affair():
    for module in (seeded(LlamaRMSNorm(32)), seeded(Feed())):
        module.forward = module.forward
        assert fused.forwards(module) == {}


def test_more_arguments_go_to_the_module():
    class Two(LlamaRMSNorm):
        def forward(self, x, gate=None):
            return super().forward(x if gate is None else x * gate)

    module, x = seeded(Two(32)), rows(4, 32)
    own = fused.forwards(module)[module]
    with torch.no_grad():
        close(own(x), module(x))
        close(own(x, x), module(x, x))
        close(own(x, gate=x), module(x, gate=x))


@pytest.mark.parametrize(("name", "norms", "feeds"), [("Qwen3", 4, 1), ("Gemma2", 4, 1), ("GPT2", 0, 0)])
def test_what_is_found_of_architectures(name, norms, feeds):
    model = architectures.build(name, hidden_size=96) if name != "GPT2" else architectures.build(name)
    engine, count = ForestEngine(model), model.config.num_hidden_layers
    names = [type(module).__name__ for module in engine._forwards]
    assert sum(name.endswith("MLP") for name in names) == feeds * count
    assert sum(name.endswith("Norm") for name in names) == norms * count + (norms > 0)


def test_changed_weights_count_at_once_and_the_model_stays_as_it_was():
    model = architectures.build("Qwen3", hidden_size=96)
    engine, asked = ForestEngine(model), sequences(count=4)
    engine.run(asked)
    with torch.no_grad():
        model.norm.weight.mul_(3)
        model.layers[0].input_layernorm.weight.mul_(2)
    wanted = ForestEngine(copy.deepcopy(model)).run(asked)
    for found, own in zip(engine.run(asked), wanted, strict=True):
        assert all(torch.equal(found[name], own[name]) for name in own)
    assert not any("forward" in module.__dict__ for module in model.modules())
