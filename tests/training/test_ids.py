"""What is trained on has the ids of what is scored: for both kinds, any text, before saving and after loading."""

import kit
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import toys
from karat.models.render import Rendered, Renderer
from karat.rewards._local import load
from karat.training import _data
from karat.training._data import Account
from karat.types import Example, Labelled, Message, Pair

PIECES = st.sampled_from(
    ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "\n\nHuman: ", "<|pad|>", " ", "é", "🌊", "\u200d"]
)
TEXTS = st.lists(st.text(max_size=12) | PIECES, max_size=5).map("".join)


@pytest.fixture(scope="module", params=["chat", "concat", "dialogue, no eos", "pad is eos"])
def trained(request, tmp_path_factory):
    """A model before and after a run, for both kinds."""
    folder = tmp_path_factory.mktemp("ids")
    tokenizer = {
        "chat": lambda: toys.byte_tokenizer(),
        "concat": lambda: toys.byte_tokenizer(chat=None),
        "dialogue, no eos": lambda: toys.byte_tokenizer(chat=None, eos=False),
        "pad is eos": lambda: toys.byte_tokenizer(chat=None, pad="</s>"),
    }[request.param]()
    model = toys.save(folder / "model", tokenizer=tokenizer)
    spec = {"layout": "dialogue"} if "dialogue" in request.param else {}
    found = {}
    for name, rows in (("bradley_terry", None), ("outcome", kit.labelled_rows(8))):
        data = kit.write(folder / f"{name}.jsonl", rows) if rows else kit.pairs(folder, 8)
        made = kit.train(folder / name, model, data, kind=name, spec=spec)
        parts, of_kind, _ = kit.prepared(model, [], name, **spec)
        renderer = Renderer(parts.tokenizer, parts.spec, parts.positions)
        found[name] = (of_kind, renderer, load(made.folder).renderer)
    return found


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=TEXTS, one=TEXTS, other=TEXTS)
def test_train_ids_are_score_ids(trained, prompt, one, other):
    good, bad = (Example((Message("user", prompt),), text) for text in (one, other))
    for name, item in (("bradley_terry", Pair(good, bad)), ("outcome", Labelled(good, 1.0))):
        made, before, after = trained[name]
        rows = _data.prepare([item], made, before, "drop", account := Account("train"))
        scored = after(made.examples(item))
        if rows:
            assert [s.ids for s in rows[0].sequences] == [r.sequence.ids for r in scored]
            assert [s.reads for s in rows[0].sequences] == [r.sequence.reads for r in scored]
        else:
            assert len(account.dropped) == 1
            same = all(isinstance(r, Rendered) for r in scored) and scored[0].sequence.ids == scored[-1].sequence.ids
            assert same or not all(isinstance(r, Rendered) for r in scored)
