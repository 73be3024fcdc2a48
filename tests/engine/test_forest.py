"""The forest engine gives what transformers alone gives, for any company, order, budget and cache."""

import random
import threading

import architectures
import pytest
import torch

from karat.engine import _native, attention, plan, probe
from karat.engine.base import EngineError
from karat.engine.forest import ForestEngine
from karat.engine.padded import PaddedEngine, PaddedForward
from karat.engine.tree import Tree, order, packed
from karat.types import Sequence, Span

TOLERANCE = 1e-5


def draw(chance, count):
    return tuple(chance.randrange(5, 300) for _ in range(count))


def sequences(seed=0, count=10):
    """Prompts shared in part, answers that begin alike, one that is a prefix of another; several kinds of reads."""
    chance = random.Random(seed)
    prompt, found = draw(chance, 70), []
    for number in range(count):
        ids = prompt[: chance.choice([3, 64, 70])] + draw(chance, chance.randrange(1, 40))
        if number % 4 == 3:
            ids = found[-1].ids + draw(chance, 2)
        found.append(Sequence(ids, {"last": (len(ids) - 1,), "some": (0, len(ids) // 2), "mean": Span(1, len(ids))}))
    return found


def worst(found, wanted):
    assert all(list(f) == list(w) for f, w in zip(found, wanted, strict=True))
    return max(
        float((f[n] - w[n]).abs().max() / max(1.0, float(w[n].abs().max())))
        for f, w in zip(found, wanted, strict=True)
        for n in w
    )


@pytest.fixture(scope="module")
def qwen():
    return architectures.build("Qwen3")


@pytest.fixture(scope="module")
def wanted(qwen):
    return [architectures.alone(qwen, s) for s in sequences()]


@pytest.mark.parametrize("name", [*architectures.DECODERS, *architectures.ENCODERS])
def test_every_architecture_as_transformers_alone(name):
    model = architectures.build(name)
    engine = probe.choose(model)
    assert isinstance(engine, ForestEngine) and engine.causal == (name in architectures.DECODERS)
    asked = sequences()
    assert worst(engine.run(asked), [architectures.alone(model, s) for s in asked]) < TOLERANCE
    assert worst(engine.run(asked[::-1]), [architectures.alone(model, s) for s in asked[::-1]]) < TOLERANCE


@pytest.fixture
def no_kernel(monkeypatch):
    """As where there is no compiler, or on another device."""
    monkeypatch.setenv("KARAT_NATIVE", "0")
    _native.kernel.cache_clear()
    yield
    monkeypatch.undo()
    _native.kernel.cache_clear()


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Mistral", "Gemma2", "GptOss", "GPTNeoX", "Bert"])
@pytest.mark.parametrize(("span", "keys"), [(512, 1 << 16), (3, 64)])
def test_torchs_own_attention_over_gathered_paths(name, span, keys, no_kernel, monkeypatch):
    monkeypatch.setattr(attention, "SPAN", span)
    monkeypatch.setattr(attention, "GATHERED", keys)
    model = architectures.build(name)
    engine, asked = probe.choose(model), sequences()
    assert isinstance(engine, ForestEngine)
    for _ in range(2):  # from the cache, too
        assert worst(engine.run(asked), [architectures.alone(model, s) for s in asked]) < TOLERANCE
    long = [Sequence(tuple(range(5, 205)) + ids, {"last": (202,)}) for ids in ((7, 8, 9), (9, 8, 7, 6))]
    assert worst(engine.run(long), [architectures.alone(model, s) for s in long]) < TOLERANCE


def test_spans_of_a_path_are_joined_and_see_their_own_blocks():
    tiles = torch.tensor([[0, 24, 0, 3], [24, 24, 0, 3], [48, 24, 0, 3], [72, 9, 3, 1]], dtype=torch.int32)
    queries = plan.Queries(torch.arange(81) + torch.tensor([20] * 72 + [-70] * 9), tiles, torch.arange(4))
    assert attention._spans(queries) == [(0, 72, 0, 2), (72, 9, 3, 1)]


class Timed:
    """An engine whose every run takes as long as it is told, by a clock of its own."""

    def __init__(self, engine, clock, seconds):
        self.engine, self.clock, self.seconds, self.forward = engine, clock, seconds, getattr(engine, "forward", None)

    def run(self, asked):
        self.clock[0] += self.seconds
        return self.engine.run(asked)


class Full:
    """An engine that finds no memory."""

    def run(self, asked):
        raise torch.OutOfMemoryError("no memory")


def test_the_faster_of_two_is_chosen_by_time(qwen, monkeypatch):
    clock, padded = [0.0], PaddedEngine(PaddedForward(qwen))
    monkeypatch.setattr(probe.time, "perf_counter", lambda: clock[0])
    for ours, theirs in ((1.0, 1.1), (1.1, 1.0)):
        forest, reference = Timed(ForestEngine(qwen), clock, ours), Timed(padded, clock, theirs)
        assert probe.is_faster(forest, reference) == (ours < theirs)
    assert not probe.is_faster(Full(), padded)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma2"])
def test_the_same_on_a_gpu(name, dtype):
    model, asked = architectures.build(name).to(dtype), sequences()
    engine = ForestEngine(model.to("cuda"), probe.ON_CUDA, probe.ON_CUDA)
    assert probe.agrees(engine, PaddedEngine(PaddedForward(model)))
    found = [{n: s.cpu() for n, s in states.items()} for states in engine.run(asked)]
    wanted = PaddedEngine(PaddedForward(model.to("cpu").float())).run(asked)
    assert worst(found, wanted) < probe.TOLERANCE[dtype]


@pytest.mark.parametrize("name", architectures.PADDED)
def test_what_cannot_be_packed_is_padded_and_right(name):
    model = architectures.build(name)
    engine = probe.choose(model)
    assert isinstance(engine, PaddedEngine)
    asked = sequences(count=5)
    assert worst(engine.run(asked), [architectures.alone(model, s) for s in asked]) < 1e-4


@pytest.mark.parametrize("name", ["Bloom", "GPTJ", "Mamba"])
def test_without_the_probe_they_are_wrong(name):
    """Negative control: the forest on what does not call its attention."""
    model = architectures.build(name)
    engine = ForestEngine.__new__(ForestEngine)
    try:
        engine.__init__(model)
        found = engine.run(sequences(count=5))
    except probe.UNFIT:
        return  # at least not silent
    assert worst(found, [architectures.alone(model, s) for s in sequences(count=5)]) > 1e-3


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("budget", [2048, 100, 7, 1])
def test_any_budget(qwen, wanted, monkeypatch, budget, native):
    if not native:
        monkeypatch.setenv("KARAT_NATIVE", "0")
        _native.kernel.cache_clear()
    try:
        assert worst(ForestEngine(qwen, budget=budget).run(sequences()), wanted) < TOLERANCE
    finally:
        _native.kernel.cache_clear()


def test_no_token_is_computed_twice(qwen):
    engine, asked = ForestEngine(qwen), sequences()
    tree = Tree()
    for s in asked:
        tree.insert(packed(s.ids))
    distinct = sum(n.stop - n.start for n in tree.nodes())
    found = engine.run(asked)
    assert engine.computed == distinct
    assert sum(len(s.ids) - f.cached_tokens for s, f in zip(asked, found, strict=True)) == distinct
    again = engine.run(asked)
    assert engine.computed == distinct
    assert [f.cached_tokens for f in again] == [len(s.ids) for s in asked]


def test_a_grown_answer_costs_what_it_grew_by(qwen):
    engine, ids = ForestEngine(qwen), draw(random.Random(1), 50)
    for stop in (30, 41, 50):
        before = engine.computed
        (found,) = engine.run([Sequence(ids[:stop], {"last": (stop - 1,)})])
        assert worst([found], [architectures.alone(qwen, Sequence(ids[:stop], {"last": (stop - 1,)}))]) < TOLERANCE
        assert engine.computed - before == stop - found.cached_tokens
    assert engine.computed == 50


def test_a_read_that_was_not_kept_costs_one_token(qwen):
    engine, ids = ForestEngine(qwen), draw(random.Random(1), 50)
    engine.run([Sequence(ids, {"last": (49,)})])
    asked = Sequence(ids, {"last": (49,), "gate": (20,)})
    assert worst(engine.run([asked]), [architectures.alone(qwen, asked)]) < TOLERANCE
    assert engine.computed == 51


@pytest.mark.parametrize("cache", [0, 90, 300])
def test_a_small_cache_forgets_and_stays_right(qwen, cache):
    engine, longest = ForestEngine(qwen, budget=64, cache=cache), 0
    for seed in range(6):
        asked = sequences(seed)
        assert worst(engine.run(asked), [architectures.alone(qwen, s) for s in asked]) < TOLERANCE
        longest = max(longest, *(len(s.ids) for s in asked))
        assert engine.store.capacity == max(cache, 2 * (64 + longest))
        rows = [row for node in engine.tree.nodes() for row in node.rows]
        assert len(set(rows)) == len(rows), "no two tokens share a row"
        assert not {*rows} & {*engine._free.tolist()}
        assert len(rows) + len(engine._free) == engine.store.capacity, "and none is lost"


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_call_that_goes_on_from_all_that_the_cache_holds(qwen, deterministic):
    chance = random.Random(3)
    prompts = [draw(chance, 40) for _ in range(20)]
    engine = ForestEngine(qwen, budget=64, cache=450, deterministic=deterministic)
    for _ in range(3):
        asked = [Sequence(prompt + draw(chance, 5), {"last": (44,)}) for prompt in prompts]
        assert worst(engine.run(asked), [architectures.alone(qwen, s) for s in asked]) < TOLERANCE
    assert engine.store.capacity == 450


def in_place(model):
    with torch.no_grad():
        model.layers[0].mlp.up_proj.weight.mul_(1.5)


def by_data(model):
    model.layers[0].mlp.up_proj.weight.data.mul_(1.5)


def swapped(model):
    model.layers[0].mlp.up_proj.weight.data = model.layers[0].mlp.up_proj.weight.data * 1.5


def fused_step(model):
    """What Trainer does; it does not count in a tensor's version."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state.sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("change", [in_place, by_data, swapped, fused_step])
def test_other_weights_are_noticed(change):
    model = architectures.build("Qwen3")
    engine, asked = ForestEngine(model), sequences(count=3)
    before = engine.run(asked)
    change(model)
    assert worst(engine.run(asked), before) > 1e-3
    assert worst(engine.run(asked), [architectures.alone(model, s) for s in asked]) < TOLERANCE


def test_threads(qwen, wanted):
    engine, asked, found = ForestEngine(qwen), sequences(), {}

    def ask(number):
        found[number] = engine.run([asked[number]])[0]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst([found[i] for i in range(len(asked))], wanted) < TOLERANCE


def test_a_model_is_left_as_it_was(qwen):
    before = (qwen.config._attn_implementation, qwen.layers[-1].__dict__.get("forward"), qwen.training)
    ForestEngine(qwen, deterministic=True).run(sequences(count=2))
    assert (qwen.config._attn_implementation, qwen.layers[-1].__dict__.get("forward"), qwen.training) == before


def test_memory_that_runs_out(qwen, wanted, monkeypatch):
    """Half as much at a time, until it fits; and an error, not a wrong answer, where nothing fits."""
    whole, refused = ForestEngine._forward, []

    def small(limit):
        def forward(self, running):
            if len(running.batch.ids) > limit:
                refused.append(len(running.batch.ids))
                raise MemoryError
            return whole(self, running)

        return forward

    monkeypatch.setattr(ForestEngine, "_forward", small(100))
    assert worst(ForestEngine(qwen).run(sequences()), wanted) < TOLERANCE
    assert refused
    monkeypatch.setattr(ForestEngine, "_forward", small(0))
    with pytest.raises(EngineError, match="memory ran out on sequences of up to"):
        ForestEngine(qwen).run(sequences())


def test_a_failure_leaves_no_half_cache(qwen, wanted, monkeypatch):
    engine, whole, count = ForestEngine(qwen, budget=30), ForestEngine._forward, []

    def second(self, running):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return whole(self, running)

    monkeypatch.setattr(ForestEngine, "_forward", second)
    with pytest.raises(KeyboardInterrupt):
        engine.run(sequences())
    assert worst(engine.run(sequences()), wanted) < TOLERANCE


@pytest.mark.parametrize(
    ("sequence", "words"),
    [
        (Sequence((), {"last": (0,)}), "no tokens"),
        (Sequence((1, 300), {"last": (1,)}), "outside the vocabulary of 300"),
        (Sequence((1, -1), {"last": (1,)}), "outside the vocabulary"),
        (Sequence((1, 2), {"last": (2,)}), "outside its 2 tokens"),
        (Sequence((1, 2), {"mean": Span(1, 1)}), "outside its 2 tokens"),
    ],
)
def test_what_no_forward_can_take(qwen, sequence, words):
    with pytest.raises(EngineError, match=words):
        ForestEngine(qwen).run([Sequence((1, 2, 3), {"last": (2,)}), sequence])


def test_what_is_forgotten_leaves_its_memory_and_what_failed_does_not(qwen, wanted, monkeypatch):
    engine = ForestEngine(qwen)
    engine.run(sequences())
    store = engine.store
    engine.clear()
    assert worst(engine.run(sequences()), wanted) < TOLERANCE
    assert engine.store is store
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ForestEngine, "_forward", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        engine.clear()
        engine.run(sequences())
    assert engine.store.capacity == 0
    assert worst(engine.run(sequences()), wanted) < TOLERANCE


def test_nothing_and_one_token(qwen):
    engine, one = ForestEngine(qwen), Sequence((7,), {"last": (0,)})
    assert engine.run([]) == []
    assert worst(engine.run([one, one]), [architectures.alone(qwen, one)] * 2) < TOLERANCE


def test_bf16_where_it_is_slow_is_computed_in_float32(monkeypatch):
    model = architectures.build("Qwen3")
    half = architectures.build("Qwen3")
    for parameter in half.parameters():  # and not the frequencies of its positions, as from_pretrained does it
        parameter.data = parameter.data.bfloat16()
    model.load_state_dict({n: t.float() for n, t in half.state_dict().items()})
    monkeypatch.setattr(probe, "_is_faster_in_float32", lambda _: True)
    engine, asked = probe.choose(half), sequences(count=4)
    assert worst(engine.run(asked), [architectures.alone(model, s) for s in asked]) < TOLERANCE
    assert next(half.parameters()).dtype == torch.bfloat16
    with torch.no_grad():
        half.layers[0].mlp.up_proj.weight.mul_(2)
        model.layers[0].mlp.up_proj.weight.mul_(2)
    assert worst(engine.run(asked), [architectures.alone(model, s) for s in asked]) < TOLERANCE


# The same bits


@pytest.mark.skipif(_native.kernel() is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    "name", ["Qwen3", *(pytest.param(name, marks=pytest.mark.full) for name in ("Gemma2", "GPT2"))]
)
def test_the_same_bits_in_any_company(name):
    differing_bits(name, 25)


@pytest.mark.full
@pytest.mark.skipif(_native.kernel() is None, reason="no C++ compiler")
def test_the_same_bits_in_ten_thousand_draws():
    differing_bits("Qwen3", 1_000)


def differing_bits(name, rounds):
    """(sequence, company, order, cache) at random: about ten sequences to a round."""
    model = architectures.build(name, hidden_size=96) if name != "OPT" else architectures.build(name)
    engine, loose = probe.choose(model, deterministic=True), probe.choose(model)
    assert isinstance(engine, ForestEngine) and engine.deterministic
    pool = sequences(count=40)
    alone, reference = [], [architectures.alone(model, s) for s in pool]
    for sequence in pool:
        engine.clear()
        alone += engine.run([sequence])
    assert worst(alone, reference) < TOLERANCE
    chance = random.Random(0)
    for _ in range(rounds):
        picked = chance.sample(range(len(pool)), chance.randrange(1, 20))
        for which in (engine, loose):
            which.budget = chance.choice([16, 100, 2048])
            if chance.random() < 0.3:
                which.clear()
        found = engine.run([pool[i] for i in picked])
        assert all(torch.equal(f[n], alone[i][n]) for i, f in zip(picked, found, strict=True) for n in f)
        assert worst(loose.run([pool[i] for i in picked]), [reference[i] for i in picked]) < TOLERANCE


def test_the_same_bits_in_bfloat16():
    """Sizes of 32 and more, as matrix tiles take them where the CPU has some."""
    model = architectures.build("Qwen3", head_dim=32).bfloat16()
    engine, pool, chance = probe.choose(model, deterministic=True), sequences(count=12), random.Random(0)
    assert isinstance(engine, ForestEngine) and engine.deterministic
    alone = []
    for sequence in pool:
        engine.clear()
        alone += engine.run([sequence])
    for _ in range(40):
        picked = chance.sample(range(len(pool)), chance.randrange(1, 9))
        engine.budget = chance.choice([16, 100, 2048])
        if chance.random() < 0.3:
            engine.clear()
        found = engine.run([pool[i] for i in picked])
        assert all(torch.equal(f[n], alone[i][n]) for i, f in zip(picked, found, strict=True) for n in f)


def test_deterministic_without_a_forest_runs_each_alone():
    engine = probe.choose(architectures.build("Mamba"), deterministic=True)
    asked = sequences(count=6)
    together, single = engine.run(asked), [engine.run([s])[0] for s in asked]
    assert all(torch.equal(a[n], b[n]) for a, b in zip(together, single, strict=True) for n in a)


# The kernel against torch's own operations


@pytest.mark.skipif(_native.kernel() is None, reason="no C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (5, 1)])
@pytest.mark.parametrize("size", [8, 24, 64, 80, 256])
@pytest.mark.parametrize("how", ["plain", "softcap", "window", "sinks", "all"])
def test_kernel(dtype, heads, size, how):
    torch.manual_seed(0)
    tree = Tree()
    ends = [tree.insert(packed(s.ids)) for s in sequences(count=6)]
    at, batch = 0, []
    for node in order(ends):
        node.rows = torch.arange(at, at + node.stop - node.start, dtype=torch.int32).numpy()
        at += len(node.rows)
        batch.append(plan.Piece(node, node.start, node.stop))
    built = plan.build(batch, plan.Wanted(), heads[0] // heads[1])
    q, k, v = (torch.randn(at, h, size).to(dtype) for h in (heads[0], heads[1], heads[1]))
    settings = attention.Settings(
        size**-0.5 * 3,
        5.0 if how in ("softcap", "all") else None,
        9 if how in ("window", "all") else None,
        torch.randn(heads[0]) if how in ("sinks", "all") else None,
    )
    got, wanted = torch.empty(at, heads[0], size, dtype=dtype), torch.empty(at, heads[0], size)
    attention.native(q, k, v, got, built.block_rows, built.queries, settings)
    groups = attention.groups_of(built.block_rows, built.queries, settings.window)
    attention.gathered(q.float(), k.float(), v.float(), wanted, groups, settings)
    error = float((got.float() - wanted).abs().max())
    assert error < (2e-5 if dtype == torch.float32 else 2e-2), error


def test_attention_in_chunks_is_padded():
    """Only a mask says so, and the probe is shorter than a chunk: the forest would be silently wrong beyond it."""
    model = architectures.build("Llama")
    model.config.attention_chunk_size = 64
    assert isinstance(probe.choose(model), PaddedEngine)
    assert isinstance(probe.choose_forward(model), PaddedForward)


@pytest.mark.parametrize("name", ["Qwen2Moe", "Mistral", "Qwen3"])
def test_windows_beyond_the_probe(name):
    """A window longer than the probe, that only the mask is told of (Qwen2Moe), or the attention as well."""
    sliding = {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}
    more = sliding if name.startswith("Qwen") else {}
    model = architectures.build(name, sliding_window=40, **more)
    engine = probe.choose(model)
    assert isinstance(engine, ForestEngine)
    chance = random.Random(2)
    prompt = draw(chance, 90)
    asked = [Sequence(prompt + draw(chance, n), {"last": (89 + n,)}) for n in (5, 30)]
    wanted = [architectures.alone(model, s) for s in asked]
    assert worst(engine.run(asked), wanted) < TOLERANCE
    blind = architectures.build(name, **{**more, "sliding_window": 4096})
    blind.load_state_dict(model.state_dict())
    assert worst(probe.choose(blind).run(asked), wanted) > 1e-3, "the window reaches into these sequences"
