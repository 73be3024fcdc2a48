"""Training over shared prefixes: the states and gradients of rows that share nothing."""

import random
from functools import partial
from itertools import accumulate

import architectures
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from karat.engine import _trained, probe
from karat.engine.packed import PackedForward
from karat.engine.padded import PaddedForward
from karat.types import Sequence, Span


def batch():
    chance = random.Random(0)
    prompts = [[chance.randrange(5, 300) for _ in range(n)] for n in (20, 70)]
    found = []
    for number in range(8):
        ids = tuple(prompts[number % 2] + [chance.randrange(5, 300) for _ in range(chance.randrange(1, 30))])
        found.append(Sequence(ids, {"last": (len(ids) - 1,), "mean": Span(2, len(ids))}))
    return found


def slopes(model, forward, sequences):
    states_RD = forward(**forward.collate(sequences))
    weights = torch.randn(states_RD.shape, generator=torch.Generator().manual_seed(1))
    trained = [p for p in model.parameters() if p.requires_grad]
    return states_RD.detach(), torch.autograd.grad((states_RD * weights).sum(), trained, allow_unused=True)


def assert_alike(model, forward, sequences):
    (states, found), (wanted_states, wanted) = (slopes(model, f, sequences) for f in (forward, PaddedForward(model)))
    torch.testing.assert_close(states, wanted_states, rtol=1e-5, atol=1e-5)
    largest = max(float(w.abs().max()) for w in wanted if w is not None)
    assert [f is None for f in found] == [w is None for w in wanted]
    assert max(float((f - w).abs().max()) for f, w in zip(found, wanted, strict=True) if f is not None) < 1e-5 * largest


@pytest.mark.parametrize("small", [0, 128])
@pytest.mark.parametrize("name", [*architectures.DECODERS, *architectures.ENCODERS])
def test_states_and_gradients_of_every_architecture(name, small, monkeypatch):
    """By parts, and trees of about the same size side by side."""
    monkeypatch.setattr(_trained, "SMALL", small)
    model = architectures.build(name)
    forward = probe.choose_forward(model)
    assert isinstance(forward, PackedForward)
    assert_alike(model, forward, batch())


@pytest.mark.parametrize("name", architectures.PADDED)
def test_what_cannot_be_packed_trains_padded(name):
    assert isinstance(probe.choose_forward(architectures.build(name)), PaddedForward)


@pytest.mark.parametrize("name", ["GPT2", "Bert"])
def test_dropout_stays_with_padded_rows(name):
    """Answers that share a prompt would share what is dropped."""
    model = architectures.build(name)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    assert isinstance(probe.choose_forward(model), PaddedForward)


def test_the_faster_of_two_forwards_is_chosen_by_time(monkeypatch):
    clock, model = [0.0], architectures.build("Llama")
    packed, padded = PackedForward(model), PaddedForward(model)
    monkeypatch.setattr(probe.time, "perf_counter", lambda: clock[0])

    def learnt(forward, sequences):
        clock[0] += seconds if forward is packed else 1.0
        return [torch.zeros(1)]

    monkeypatch.setattr(probe, "_learnt", learnt)
    for seconds in (0.9, 1.1):
        assert probe.learns_faster(packed, padded) == (seconds < 1.0)


def test_layers_run_again_for_their_gradients():
    model = architectures.build("Qwen3").train()
    forward = probe.choose_forward(model)
    model._set_gradient_checkpointing(gradient_checkpointing_func=partial(checkpoint, **forward.again(None)))
    assert isinstance(forward, PackedForward)
    again = slopes(model, forward, batch())
    model._set_gradient_checkpointing(enable=False)
    kept = slopes(model, forward, batch())
    assert torch.equal(again[0], kept[0])
    assert all(torch.equal(a, b) for a, b in zip(again[1], kept[1], strict=True) if a is not None)


def test_rows_are_the_distinct_prefixes():
    forward = PackedForward(architectures.build("Llama"))
    sequences = batch()
    prefixes = {s.ids[:n] for s in sequences for n in range(1, len(s.ids) + 1)}
    assert len(forward.collate(sequences)["ids_T"]) == len(prefixes)


def test_a_merge_that_forgets_the_sums_is_noticed(monkeypatch):
    """Negative control: parts averaged instead of merged by their log-sum-exp."""
    model = architectures.build("Llama")
    monkeypatch.setattr(_trained, "SMALL", 0)
    monkeypatch.setattr(torch, "logaddexp", lambda a, b: torch.maximum(a, b))
    assert isinstance(probe.choose_forward(model), PaddedForward)


@pytest.mark.parametrize("name", ["Llama", "Gemma2"])
def test_trees_of_all_sizes_in_one_batch(name, monkeypatch):
    """Some by parts, some side by side, one alone in its group."""
    monkeypatch.setattr(_trained, "SMALL", 40)
    chance = random.Random(3)
    sequences = []
    for size, answers in ((3, 1), (4, 2), (20, 1), (22, 3), (30, 1), (60, 4)):
        prompt = [chance.randrange(5, 300) for _ in range(size)]
        for _ in range(answers):
            ids = (*prompt, *(chance.randrange(5, 300) for _ in range(chance.randrange(1, 6))))
            sequences.append(Sequence(ids, {"last": (len(ids) - 1,)}))
    chance.shuffle(sequences)
    model = architectures.build(name)
    assert_alike(model, PackedForward(model), sequences)


def branches(chance, begin, lengths):
    """Sequences that begin alike and part at every length, in two each time."""
    if not lengths:
        return [Sequence(begin, {"last": (len(begin) - 1,)})]
    length, *rest = lengths
    twice = [(*begin, *(chance.randrange(5, 300) for _ in range(length))) for _ in range(2)]
    return [s for one in twice for s in branches(chance, one, rest)]


@pytest.mark.parametrize("small", [40, 60])
def test_a_tree_that_is_cut_twice(small, monkeypatch):
    """Pieces carry the rows of all that they grew from; what comes out for those is taken from one of them."""
    seen, group = [], _trained._group
    monkeypatch.setattr(_trained, "SMALL", small)
    monkeypatch.setattr(_trained, "_group", lambda pieces: seen.extend(pieces) or group(pieces))
    model = architectures.build("Llama")
    assert_alike(model, PackedForward(model), branches(random.Random(0), (7,) * 5, (6, 12, 9)))
    assert {len(piece.path) for piece in seen} == {5 + 6 + 12 if small == 40 else 5 + 6}


@pytest.mark.parametrize("sizes", [(5, 20, 20), (1, 39, 39, 12), (30, 9, 9), (30, 30, 1)])
def test_every_row_is_taken_from_one_place(sizes):
    """A root and leaves, cut into pieces of 40 rows; where a path and a leaf are more, all goes by parts."""
    root, *leaves = sizes
    every = torch.arange(sum(sizes))
    ends = list(accumulate(sizes))
    parts = [
        _trained.Part(slice(end - size, end), slice(end - size, end), True)
        for end, size in zip(ends, sizes, strict=True)
    ]
    parts.insert(1, _trained.Part(slice(root, ends[-1]), slice(0, root), False))
    split = _trained._split(parts, 40)
    assert bool(split.parts) == any(root + size > 40 for size in leaves)
    found = torch.cat([g.queries_NQ.flatten() for g in split.groups] + [every] * bool(split.parts))
    assert torch.equal(found[split.order_T], every)


def test_trees_that_see_each_other_are_noticed(monkeypatch):
    """Negative control: a group whose rows see the rows that fill up their tree."""
    model = architectures.build("Llama")
    split = _trained._group
    monkeypatch.setattr(_trained, "_group", lambda trees: split(trees)._replace(seen_N1QK=torch.ones(1, dtype=bool)))
    assert isinstance(probe.choose_forward(model), PaddedForward)
