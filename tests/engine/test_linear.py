"""Linear layers in the CPU's matrix tiles, against float64, and any company of a row."""

import copy
import platform
import shutil
from concurrent.futures import ThreadPoolExecutor

import architectures
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import library

from karat import types
from karat.engine import _native, fused, linear, probe
from karat.engine.linear import TiledLinear

tiles = pytest.mark.skipif(not linear.has_tiles(), reason="this CPU has no matrix tiles")


def layer_of(depth, width, bias=True):
    torch.manual_seed(depth + width)
    return torch.nn.Linear(depth, width, bias=bias).bfloat16()


class Doubling(torch.nn.Linear):
    """A layer that becomes another one."""

    def forward(self, x):
        return 2 * super().forward(x)


class Strange(torch.Tensor):
    """Numbers that may lie anywhere."""


def tiled(layer, x):
    return torch.ops.karat.linear(x, layer.weight, layer.bias)


@pytest.mark.skipif(platform.system() != "Linux" or not shutil.which("c++"), reason="no C++ compiler")
def test_the_kernels_compile():
    """Else all that they compute would be tested on torch's operations, and nobody would know."""
    assert _native.kernel() is not None


@tiles
@pytest.mark.parametrize("rows", [1, 17, 95, 96, 700, 5000])
@pytest.mark.parametrize("shape", [(32, 32), (288, 96), (1024, 64), (2560, 768)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_rounded_once(rows, shape, bias):
    layer, x = layer_of(*shape, bias), torch.randn(rows, shape[0]).bfloat16()
    terms = x.double().abs() @ layer.weight.double().abs().T
    wanted = x.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    # Half of the last of bfloat16's 8 bits, and what float32 loses of a sum.
    assert ((tiled(layer, x).double() - wanted).abs() <= wanted.abs() * 2**-8 + terms * 2**-20).all()


@tiles
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_row_has_the_same_bits_among_any_others(data):
    depth, width = (32 * data.draw(st.integers(1, 30)) for _ in range(2))
    layer, x = layer_of(depth, width), torch.randn(400, depth).bfloat16()
    first = data.draw(st.integers(0, 399))
    stop = data.draw(st.integers(first + 1, 400))
    assert torch.equal(tiled(layer, x[first:stop]), tiled(layer, x)[first:stop])


@tiles
def test_the_same_bits_in_many_parts_and_past_the_cache():
    layer, x = layer_of(1024, 640), torch.randn(3000, 1024).bfloat16()  # six parts, 3.8 MB
    whole = tiled(layer, x)
    for first, stop in ((0, 1), (500, 530), (511, 1200), (1000, 3000)):
        assert torch.equal(tiled(layer, x[first:stop]), whole[first:stop])


@tiles
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_the_number_of_threads_changes_nothing(threads):
    layer, before = layer_of(288, 96), torch.get_num_threads()
    cases = [torch.randn(rows, 288).bfloat16() for rows in (1, 33, 95, 97, 300)]
    wanted = [tiled(layer, x) for x in cases]
    try:
        torch.set_num_threads(threads)
        assert all(torch.equal(tiled(layer, x), w) for x, w in zip(cases, wanted, strict=True))
    finally:
        torch.set_num_threads(before)


@tiles
@pytest.mark.parametrize("rows", [1, 16, 33, 95, 96, 700])
@pytest.mark.parametrize("shape", [(32, 32), (288, 96), (768, 2560)])
@pytest.mark.parametrize(("bias", "act"), [(True, "silu"), (False, "silu"), (False, "gelu")])
def test_a_gate_and_what_it_scales_in_one_go_have_the_bits_of_three(rows, shape, bias, act):
    torch.manual_seed(0)
    gate, up = (torch.nn.Linear(*shape, bias=bias).bfloat16() for _ in range(2))
    x = 4 * torch.randn(1, rows, shape[0]).bfloat16()
    left, right = tiled(gate, x), tiled(up, x)
    feed = fused.Feed(gate, up, up, act == "gelu")
    what = fused.Gate(left.data_ptr(), right.data_ptr(), left.numel(), 1, feed.gelu)
    _native.call_kernel("karat_gate_bfloat16", what)
    found = linear.gated(x, gate, up, feed.gelu)
    assert torch.equal(found, left)
    wanted = feed.act(tiled(gate, x)) * right
    if act == "silu":  # torch's 1 + tanh has lost what is left of it where a gate is all but closed
        assert (found != wanted).float().mean() < 2e-3  # one in a thousand is rounded to the other side
    torch.testing.assert_close(found, wanted)


@tiles
@pytest.mark.parametrize("threads", [1, 3])
def test_a_gated_row_has_the_same_bits_among_any_others(threads):
    gate, up, x = layer_of(1024, 640), layer_of(1024, 640, bias=False), torch.randn(3000, 1024).bfloat16()
    whole, before = linear.gated(x, gate, up), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for first, stop in ((0, 1), (500, 530), (511, 1200), (0, 3000)):
            assert torch.equal(linear.gated(x[first:stop], gate, up), whole[first:stop])
    finally:
        torch.set_num_threads(before)


@tiles
def test_rows_of_another_length_are_refused():
    gate, up = layer_of(32, 32), layer_of(32, 32)
    for call in (lambda x: tiled(up, x), lambda x: linear.gated(x, gate, up)):
        with pytest.raises(RuntimeError, match="64 numbers of a row"):
            call(torch.randn(4, 64).bfloat16())
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        linear.gated(torch.randn(4, 32).bfloat16(), layer_of(32, 64), up)


@tiles
def test_layers_that_someone_looks_at_are_called():
    gate, up = (torch.nn.Linear(32, 32).bfloat16() for _ in range(2))
    assert not linear.are_tiled(gate, up)
    gate.__class__ = up.__class__ = TiledLinear
    assert linear.are_tiled(gate, up)
    for register in (up.register_forward_hook, gate.register_forward_pre_hook):
        hook = register(lambda *_: None)
        assert not linear.are_tiled(gate, up)
        hook.remove()
    assert linear.are_tiled(gate, up)


@tiles
def test_rows_that_lie_apart():
    layer, wide = layer_of(64, 32), torch.randn(50, 3, 64 * 2).bfloat16()
    for x in (wide[:, 1, :64], wide[:, :, 64:], wide[..., ::2], wide.transpose(0, 1)[..., :64], wide[:0, 0, :64]):
        assert torch.equal(tiled(layer, x), tiled(layer, x.contiguous()))
        assert tiled(layer, x).shape == (*x.shape[:-1], 32)


@tiles
def test_what_the_kernel_takes():
    assert linear.takes(layer_of(64, 32))
    assert not linear.takes(torch.nn.Linear(64, 32))
    assert not any(linear.takes(layer_of(*shape)) for shape in ((64, 33), (48, 32)))
    transposed = layer_of(32, 32)
    transposed.weight = torch.nn.Parameter(torch.randn(32, 32).bfloat16().T)
    assert not linear.takes(transposed)
    assert not linear.takes(TiledLinear(32, 32).bfloat16())
    short, strange, hooked, own = (layer_of(32, 32) for _ in range(4))
    short.bias = torch.nn.Parameter(torch.zeros(1).bfloat16())
    strange.weight = torch.nn.Parameter(torch.zeros(32, 32).bfloat16().as_subclass(Strange))
    hooked.forward = hooked.forward
    own.bias = torch.nn.Parameter(torch.zeros(32))
    assert not any(map(linear.takes, (short, strange, hooked, own)))


@tiles
def test_its_own_product_where_tiles_cannot():
    layer, x = TiledLinear(32, 32).bfloat16(), torch.randn(3, 32)
    layer(x.bfloat16()).sum().backward()
    assert layer.weight.grad is not None  # gradients are torch's
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(layer(input=x.bfloat16()), layer(x.bfloat16()))


@tiles
def test_a_copy_made_meanwhile_is_a_linear_layer():
    layer = layer_of(32, 32)
    layer.__class__ = TiledLinear
    found = copy.deepcopy(layer)
    assert type(found) is torch.nn.Linear and torch.equal(found.weight, layer.weight)


@tiles
def test_weights_that_are_turned_in_place():
    layer, x = layer_of(64, 64), torch.randn(5, 64).bfloat16()
    layer.weight.data = layer.weight.data.T
    assert torch.equal(tiled(layer, x), torch.ops.karat.linear(x, layer.weight.contiguous(), layer.bias))


@tiles
def test_models_that_are_loaded_at_once_are_quick_alike():
    models = [architectures.build("Qwen3").bfloat16() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert all(engine._linears for engine in pool.map(probe.choose, models))


@tiles
def test_layers_with_a_forward_of_their_own_keep_their_bits():
    """As accelerate's hooks leave them."""
    model = architectures.build("Qwen3", head_dim=32).bfloat16()
    for layer in (m for m in model.modules() if isinstance(m, torch.nn.Linear)):
        layer.forward = layer.forward
    engine = probe.choose(model, deterministic=True)
    assert not engine._linears and sum(isinstance(m, torch.nn.Linear) for m in engine._forwards) == 14


@tiles
def test_torch_takes_it_for_one_of_its_operators():
    layer = layer_of(64, 32)
    checks = ("test_schema", "test_faketensor")
    found = library.opcheck(
        torch.ops.karat.linear.default, (torch.randn(2, 5, 64).bfloat16(), layer.weight, None), test_utils=checks
    )
    assert set(found.values()) == {"SUCCESS"}


@tiles
def test_a_model_is_left_as_it_was():
    model = architectures.build("Qwen3").bfloat16()
    engine, seen = probe.choose(model), set()
    assert not engine.widen
    watched = model.layers[0].mlp.down_proj
    watched.register_forward_pre_hook(lambda module, _: seen.add(type(module)))
    asked = [types.Sequence((5, 6, 7), {"last": (2,)})]
    engine.run(asked)
    assert seen == {TiledLinear} and type(watched) is torch.nn.Linear

    def breaks(module, _):
        raise OSError("broken")

    hook = model.layers[1].register_forward_pre_hook(breaks)
    engine.clear()
    with pytest.raises(OSError, match="broken"):
        engine.run(asked)
    assert type(watched) is torch.nn.Linear
    hook.remove()
    with torch.no_grad():
        watched.weight.mul_(3)  # read where they lie: new weights count at once
    wanted = architectures.alone(model, asked[0])["last"]
    assert (engine.run(asked)[0]["last"] - wanted).abs().max() < 5e-2 * (1 + wanted.abs().max())
    watched.__class__ = Doubling
    engine.clear()
    wanted = architectures.alone(model, asked[0])["last"]
    assert (engine.run(asked)[0]["last"] - wanted).abs().max() < 5e-2 * (1 + wanted.abs().max())
    assert type(watched) is Doubling
