"""A compiled engine gives what transformers alone gives, and compiles nothing more once requests come."""

import subprocess
import sys
import threading
import weakref

import architectures
import pytest
import torch
from test_forest import sequences, worst

from karat.engine import probe
from karat.engine.forest import ForestEngine
from karat.types import Refused, Sequence

# torch's compiler imports parts of torch that say so of themselves.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.full
@pytest.mark.parametrize("name", ["Llama", "Gemma3Text", "GptOss", "Qwen2Moe", "GPT2", "Bert"])
def test_compiled_as_transformers_alone(name):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model = architectures.build(name)
    forwards = {m: m.forward for m in model.modules()}
    engine = probe.choose(model, compiled=True)
    assert isinstance(engine, ForestEngine) and engine.computed == 0
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    asked = [*sequences(), Sequence((9,), {"last": (0,)}), Sequence((9, 8, 7), {"last": (2,), "some": (0, 1)})]
    wanted = [architectures.alone(model, s) for s in asked]
    assert worst(engine.run(asked), wanted) < 1e-5
    for one, own in zip(asked, wanted, strict=True):
        engine.clear()
        assert worst(engine.run([one]), [own]) < 1e-5
    assert counters["stats"]["unique_graphs"] == graphs, "compiled while a request waited"
    assert {m: m.forward for m in model.modules()} == forwards, "the model is left as it was"


@pytest.mark.full
def test_bfloat16_from_another_thread_and_a_second_model_compile_nothing_more():
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    model = architectures.build("Llama").bfloat16()
    plain, engine, asked = probe.choose(model), probe.choose(model, compiled=True), sequences(count=5)
    counters.clear()
    found = []
    thread = threading.Thread(target=lambda: found.extend(engine.run(asked)))
    thread.start()
    thread.join()
    assert worst(found, plain.run(asked)) < 3e-2
    probe.choose(architectures.build("Llama").bfloat16(), compiled=True)
    assert not counters["stats"]["unique_graphs"]


@pytest.mark.full
def test_weights_that_change_are_not_compiled_in():
    model = architectures.build("Qwen3")
    engine, asked = probe.choose(model, compiled=True), sequences(count=3)
    before = engine.run(asked)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.9)
    assert worst(engine.run(asked), before) > 1e-3
    assert worst(engine.run(asked), [architectures.alone(model, s) for s in asked]) < 1e-5


@pytest.mark.full
def test_a_model_that_is_dropped_is_gone():
    """A server that loads anew has room for two: nothing that was compiled holds the weights."""
    model = architectures.build("Llama")
    engine = probe.choose(model, compiled=True)
    engine.run(sequences(count=3))
    held = weakref.ref(next(model.parameters()))
    del model, engine
    assert held() is None


@pytest.mark.full
@pytest.mark.parametrize("name", ["Bloom", "Mamba"])
def test_what_cannot_be_compiled_is_refused(name):
    with pytest.raises(Refused, match="leave compiled out"):
        probe.choose(architectures.build(name), compiled=True)


@pytest.mark.full
def test_without_a_compiler_it_is_refused(tmp_path):
    """In a process of its own, where nothing has been compiled yet."""
    code = f"""
import sys
sys.path.insert(0, {str(architectures.__file__).rpartition("/")[0]!r})
import architectures
from karat.engine import probe
from karat.types import Refused
try:
    probe.choose(architectures.build("Llama"), compiled=True)
except Refused as error:
    print(error)
"""
    variables = {"PATH": str(tmp_path), "CXX": "none", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert "leave compiled out" in found.stdout, found.stderr


def test_the_same_bits_are_not_promised_of_what_is_compiled():
    with pytest.raises(Refused, match="leave deterministic or compiled out"):
        probe.choose(architectures.build("Llama"), deterministic=True, compiled=True)
