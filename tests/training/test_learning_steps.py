"""Training on steps: TRL's loss on TRL's ids, every kind of label once, trees as trees, and checkpoints that score."""

import kit
import pytest
import torch
from transformers import AutoModelForTokenClassification

import karat
import toys
from karat import arithmetic
from karat.models import checkpoint
from karat.models.render import Renderer
from karat.rewards.base import defaults, kind
from karat.spec import RewardSpec
from karat.training import _data
from karat.training._data import Account
from karat.types import BadInput, Example, Stepped


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A token classifier as transformers writes it."""
    return toys.save(tmp_path_factory.mktemp("model") / "m", toys.step_model())


def one(steps, labels, weight=1.0, prompt="q?"):
    return Stepped((Example.of_steps(prompt, steps),), (tuple(labels),), weight)


def prepared(folder, items, options=None, **spec):
    made, given = kind("process", options), {**defaults("process", spec), **spec}
    parts = checkpoint.start(folder, RewardSpec(kind="process").with_options(**given), device="cpu")
    made = made.by(parts.spec)
    renderer = Renderer(parts.tokenizer, parts.spec, parts.positions)
    return parts, made, _data.prepare(items, made, renderer, "drop", Account("train"))


ITEMS = [
    one(["a", "bb c", "d"], [1, 0, 0]),
    one(["ee"], [1], prompt="longer?"),
    one(["f g", "h"], [1, None]),
    one(["i", "j", "k", "l"], [1, 1, 1, 0]),
]


def by_transformers(folder, items, labels_of=lambda item: item.labels[0]):
    """Mean cross-entropy over all labelled marks, and its gradients: transformers' own loss on padded rows."""
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    tokenizer = toys.byte_tokenizer()
    rows, marks = [], []
    for item in items:
        (branch,) = item.branches
        ids = tokenizer(branch.prompt[0].content)["input_ids"]
        said = [-100] * len(ids)
        for step, label in zip(branch.steps, labels_of(item), strict=True):
            ids += (
                tokenizer(step, add_special_tokens=False)["input_ids"]
                + tokenizer("\n", add_special_tokens=False)["input_ids"]
            )
            said += [-100] * (len(ids) - len(said) - 1) + [-100 if label is None else int(label)]
        rows.append(ids)
        marks.append(said)
    width = max(map(len, rows))
    ids = torch.tensor([r + [0] * (width - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
    labels = torch.tensor([m + [-100] * (width - len(m)) for m in marks])
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    return float(loss.detach()), {
        n.removeprefix("model."): p.grad for n, p in model.named_parameters() if p.grad is not None
    }


def test_the_loss_and_gradients_are_transformers_own(folder, tmp_path):
    parts, made, rows = prepared(folder, ITEMS)
    wanted, slopes = by_transformers(folder, ITEMS)
    for accumulate in (1, 2):
        (loss,), (found,) = kit.steps(tmp_path, parts, made, rows, len(rows), accumulate)
        assert loss == pytest.approx(wanted, rel=1e-5)
        ours = {n.removeprefix("engine_forward.backbone.").replace("head.out", "score"): g for n, g in found.items()}
        assert set(ours) == set(slopes)
        for name, slope in slopes.items():
            assert torch.allclose(ours[name], slope, atol=1e-5 * float(slope.abs().max() + 1)), name


def test_only_the_last_step(folder, tmp_path):
    items = [item for item in ITEMS if item.labels[0][-1] is not None]
    made = kind("process", {"last_step_only": True})
    parts, made, rows = prepared(folder, [made.learnt(i) for i in items], {"last_step_only": True})
    wanted, _ = by_transformers(folder, items, lambda i: (*[None] * (len(i.labels[0]) - 1), i.labels[0][-1]))
    assert kit.steps(tmp_path, parts, made, rows, len(rows))[0] == [pytest.approx(wanted, rel=1e-5)]


def numbers(parts, rows):
    local = karat.rewards._local.LocalModel(parts)
    return local.numbers([s for row in rows for s in row.sequences])[0].detach()


def weighted(z, y):
    return torch.tensor([3.0, 1.5]) * -z.log_softmax(-1)[range(2), y.long()]


@pytest.mark.parametrize(
    ("options", "spec", "labels", "wanted"),
    [
        ({}, {}, [0.9, 0.3], lambda z, y: -((1 - y) * z.log_softmax(-1)[:, 0] + y * z.log_softmax(-1)[:, 1])),
        ({}, {"outputs": 1}, [0.9, 0.3], lambda z, y: (1 + z[:, 0].exp()).log() - y * z[:, 0]),
        ({"objective": "mse"}, {}, [0.9, 0.3], lambda z, y: (z.softmax(-1)[:, 1] - y) ** 2),
        ({}, {"outputs": 3}, [-1, 1], lambda z, y: -z.log_softmax(-1)[range(2), (y + 1).long()]),
        ({"class_weights": (3.0, 1.5)}, {}, [0, 1], weighted),
        ({}, {"output": 0}, [0, 1], lambda z, y: -z.log_softmax(-1)[range(2), 1 - y.long()]),
    ],
)
def test_every_kind_of_label(folder, tmp_path, options, spec, labels, wanted):
    parts, made, rows = prepared(folder, [one(["a", "bc"], labels)], options, **spec)
    loss = float(wanted(numbers(parts, rows), torch.tensor(labels, dtype=torch.float32)).mean())
    assert kit.steps(tmp_path, parts, made, rows, 1)[0] == [pytest.approx(loss, rel=1e-5)]


def test_a_tree_is_its_branches_with_each_label_once(folder, tmp_path):
    trunk, twig = ["a b", "c"], ["a b", "d e"]
    tree = Stepped((Example.of_steps("q?", trunk), Example.of_steps("q?", twig)), ((1.0, 1.0), (None, 0.0)))
    flat = [one(trunk, [1, 1]), one(twig, [None, 0])]
    found = []
    for items in ([tree], flat):
        parts, made, rows = prepared(folder, items)
        found.append(kit.steps(tmp_path / str(len(items)), parts, made, rows, len(rows)))
    (a,), (b,) = (f[0] for f in found)
    assert a == pytest.approx(b, rel=1e-6) == pytest.approx(by_transformers(folder, flat)[0], rel=1e-5)
    (a,), (b,) = (f[1] for f in found)
    assert all(torch.allclose(a[n], b[n], atol=1e-6) for n in b)


def write(path, n=24, seed=0):
    return kit.write(path, arithmetic.step_rows(n, seed))


@pytest.mark.parametrize(
    ("method", "spec"),
    [
        ("full", {}),
        ("full", {"step_token": "<step>"}),
        ("full", {"head": "lm_logits:-,+", "output": 1}),
        ("full", {"head": "mlp", "outputs": 1}),
        ("lora", {}),
        ("lora", {"step_token": "<step>"}),
        ("frozen", {"outputs": 3}),
    ],
)
def test_what_was_trained_loads_and_scores_the_same(tmp_path, method, spec):
    causal = toys.save(tmp_path / "m", toys.causal_model())
    new = spec.get("step_token") == "<step>"
    rows = arithmetic.step_rows(16)
    if spec.get("outputs") == 3:
        rows = [{**row, "labels": [2 * int(x) - 1 for x in row["labels"]]} for row in rows]
    trained = kit.train(
        tmp_path,
        causal,
        kit.write(tmp_path / "d.jsonl", rows),
        kind="process",
        method=method,
        spec=spec,
        add_step_token=new,
        lora={"r": 2} if method == "lora" else {},
    )
    model = karat.load(str(trained.folder))  # verified by its golden inputs
    assert model.spec.kind == "process" and model.output == "probability"
    result = model.score_steps("2 + 2?", ["2 + 2 = 4", "Answer: 4"])
    assert len(result.steps) == 2 and all(0 <= p <= 1 for p in result.steps) and result.value == min(result.steps)
    if new:
        mark = model.parts.tokenizer.convert_tokens_to_ids("<step>")
        assert model.renderer([Example.of_steps("q", ["a"])])[0].sequence.ids[-1] == mark


def test_the_row_of_a_new_step_token_is_trained_under_lora(tmp_path):
    causal = toys.save(tmp_path / "m", toys.causal_model())
    trained = kit.train(
        tmp_path,
        causal,
        write(tmp_path / "d.jsonl"),
        kind="process",
        method="lora",
        spec={"step_token": "<step>"},
        add_step_token=True,
        lora={"r": 2},
        learning_rate=0.05,
    )
    before = toys.causal_model().get_input_embeddings().weight
    after = karat.load(str(trained.folder)).parts.backbone.get_input_embeddings()
    ids = torch.arange(len(before) - 2)
    mark = 261  # behind the byte tokenizer's last
    with torch.no_grad():
        moved = after(torch.tensor([mark]))[0] - before[:mark].mean(0)
        assert float(moved.abs().max()) > 1e-3
        assert torch.allclose(after(ids[:mark]), before[:mark], atol=1e-6)


def test_transformers_reads_the_checkpoint(tmp_path, folder):
    trained = kit.train(tmp_path, folder, write(tmp_path / "d.jsonl"), kind="process")
    model = AutoModelForTokenClassification.from_pretrained(trained.folder).eval()
    mine = karat.load(str(trained.folder))
    (rendered,) = mine.renderer([Example.of_steps("q", ["a", "b"])])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([rendered.sequence.ids])).logits[0, list(rendered.sequence.reads["step"])]
    assert mine.score_steps("q", ["a", "b"]).steps == pytest.approx(logits.softmax(-1)[:, 1].tolist(), abs=1e-6)


def test_held_out_figures(tmp_path, folder):
    trained = kit.train(
        tmp_path, folder, write(tmp_path / "d.jsonl"), kind="process", eval=write(tmp_path / "e.jsonl", 12, 1)
    )
    assert trained.result.name == "process" and trained.result.judged == 12
    assert "eval_loss" in trained.history[-1] or any("eval_loss" in line for line in trained.history)


@pytest.mark.parametrize(
    ("items", "options", "spec", "said"),
    [
        ([one(["a"], [1]), one(["b"], [1])], {}, {}, "every labelled step has 1"),
        ([one(["a"], [-1])], {}, {}, "use outputs=3"),
        ([one(["a"], [0.5])], {}, {"outputs": 3}, "none of -1, 0 and 1"),
        ([one(["a"], [None])], {}, {}, "no step is labelled"),
        ([one(["a"], [1])], {"class_weights": (1, 2, 3)}, {}, "one for each"),
        ([one(["a"], [1])], {}, {"outputs": 4, "output": 0}, "two or three classes"),
    ],
)
def test_what_cannot_be_learnt(folder, items, options, spec, said):
    account = Account("train")
    with pytest.raises(BadInput, match=said):
        made, given = kind("process", options), {**defaults("process", spec), **spec}
        parts = checkpoint.start(folder, RewardSpec(kind="process").with_options(**given), device="cpu")
        made = made.by(parts.spec)
        rows = _data.prepare(items, made, Renderer(parts.tokenizer, parts.spec, parts.positions), "drop", account)
        _data.check(rows, made, account)


def test_a_run_goes_on_as_its_model_was_trained(tmp_path):
    """Mark, layout, outputs and which of them says right stay, where nothing else is said."""
    causal = toys.save(tmp_path / "m", toys.causal_model())
    spec = {"step_token": "\n\n", "layout": "chat", "head": "lm_logits:+,-", "output": 0}
    first = kit.train(tmp_path / "1", causal, write(tmp_path / "d.jsonl"), kind="process", spec=spec)
    again = kit.train(tmp_path / "2", first.folder, write(tmp_path / "d.jsonl"), kind="process")
    was, now = (karat.load(str(t.folder)).spec for t in (first, again))
    for name in ("output", "activation", "pooling"):
        assert getattr(was, name) == getattr(now, name)
    assert (was.render, was.head.tokens) == (now.render, now.head.tokens)


def test_late_steps_are_cut_in_training_and_never_in_scoring(tmp_path, folder):
    long = [{"prompt": "q", "completions": ["a" * 20] * n, "labels": [True, False] * 2} for n in (4, 4)]
    data = kit.write(tmp_path / "d.jsonl", [{**row, "prompt": f"q{i}"} for i, row in enumerate(long)])
    spec = {"max_length": 60, "over_length": "cut_end"}
    trained = kit.train(tmp_path, folder, data, kind="process", spec=spec, eval=data)
    assert trained.accounts[0].cut and trained.result is not None
    model = karat.load(str(trained.folder))
    assert model.spec.render.over_length == "error"
    assert "more than max_length=60" in model.score_steps("q", ["a" * 20] * 4).reason
    with pytest.raises(karat.Refused, match="is for training"):
        karat.load(str(trained.folder), over_length="cut_end")


def test_the_last_step_is_the_last_one_before_it_is_cut(tmp_path, folder):
    rows = [{"prompt": f"q{i}", "completions": ["a", "b" * (40 * i)], "labels": [1, i % 2]} for i in (1, 2, 3)]
    spec = {"max_length": 60, "over_length": "cut_end"}
    trained = kit.train(
        tmp_path,
        folder,
        kit.write(tmp_path / "d.jsonl", [*rows, {**rows[0], "prompt": "r", "labels": [1, 0]}]),
        kind="process",
        spec=spec,
        options={"last_step_only": True},
    )
    assert trained.accounts[0].used == 2 and len(trained.accounts[0].dropped) == 2
