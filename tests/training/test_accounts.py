"""Every row that was dropped, cut or tied is counted, listed by line and printed."""

import kit
import pytest

import toys
from karat import arithmetic, progress
from karat.formats import base as formats
from karat.models import checkpoint
from karat.models.render import Renderer
from karat.rewards.base import kind
from karat.spec import RewardSpec
from karat.training import _data
from karat.types import BadInput

GOOD = [{"prompt": f"{i}?", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(12)]
SAME = {"prompt": "same?", "chosen": "a", "rejected": "a"}
LONG = {"prompt": "p" * 300, "chosen": "yes", "rejected": "no"}
LONG_ANSWER = {"prompt": "p", "chosen": "y" * 300, "rejected": "no"}
TIE = {"prompt": "tie?", "chosen": "a", "rejected": "b", "preference": 0.5}
BROKEN = {"prompt": "p", "chosen": "a", "rejected": None}
LONE = {"prompt": "p", "chosen": "\ud800", "rejected": "b"}
ROWS = [*GOOD, SAME, LONG, LONG_ANSWER, TIE, BROKEN, LONE]


def listed(trained):
    rows = kit.lines(trained.folder / "rows.jsonl")
    return {(row["set"], int(row["row"].rpartition(":")[2]), row["what"]): row["why"] for row in rows}


def test_drop(model_folder, tmp_path, capsys):
    data = kit.write(tmp_path / "d.jsonl", ROWS)
    trained = kit.train(tmp_path, model_folder, data, spec={"max_length": 200})
    found = listed(trained)
    assert set(found) == {
        ("train", 13, "dropped"),
        ("train", 14, "dropped"),
        ("train", 15, "dropped"),
        ("train", 16, "tied"),
        ("train", 17, "dropped"),
        ("train", 18, "dropped"),
    }
    assert "same tokens" in found["train", 13, "dropped"] and "surrogate" in found["train", 18, "dropped"]
    assert found["train", 14, "dropped"] == found["train", 15, "dropped"] == "longer than max_length"
    assert trained.accounts[0].used == 13
    err = capsys.readouterr().err
    assert f"dropped 2: longer than max_length ({data}:14, {data}:15)" in err
    assert "train: 13 rows used" in err and f"tied 1: labelled a tie ({data}:16)" in err


def test_cut(model_folder, tmp_path):
    data = kit.write(tmp_path / "d.jsonl", ROWS)
    trained = kit.train(tmp_path, model_folder, data, spec={"max_length": 200, "over_length": "cut_prompt"})
    found = listed(trained)
    assert found["train", 14, "cut"] == "prompt cut from the left to fit max_length"
    assert ("train", 15, "dropped") in found and trained.accounts[0].used == 14


def test_error_names_the_row(model_folder, tmp_path):
    data = kit.write(tmp_path / "d.jsonl", ROWS)
    with pytest.raises(BadInput, match=rf"{data}:14: \d+ tokens are more than max_length=200.*over_length='drop'"):
        kit.train(tmp_path, model_folder, data, spec={"max_length": 200, "over_length": "error"})


def test_answers_that_render_alike_are_dropped(tmp_path):
    """The template of the toy strips blanks, so these two answers are the same tokens."""
    model = toys.save(tmp_path / "model")
    data = kit.write(tmp_path / "d.jsonl", [*GOOD, {"prompt": "x", "chosen": "a", "rejected": " a "}])
    trained = kit.train(tmp_path, model, data)
    assert "same tokens" in listed(trained)["train", 13, "dropped"]


def test_none_left_is_an_error_with_the_reasons(model_folder, tmp_path):
    data = kit.write(tmp_path / "d.jsonl", [LONG, SAME])
    with pytest.raises(BadInput, match=r"no row of the train data can be used: .*longer than max_length.*same tokens"):
        kit.train(tmp_path, model_folder, data, spec={"max_length": 100})


def test_held_out_rows_have_their_own_account(model_folder, tmp_path):
    files = {"data": kit.write(tmp_path / "d.jsonl", GOOD), "eval": kit.write(tmp_path / "e.jsonl", [*GOOD, SAME])}
    trained = kit.train(tmp_path, model_folder, **files)
    assert set(listed(trained)) == {("eval", 13, "dropped")} and trained.result.judged == 12


def test_a_held_out_share_that_cannot_be_used_does_not_end_training(model_folder, tmp_path, capsys):
    rows = [*GOOD, *({**LONG, "prompt": f"{i}{'p' * 300}"} for i in range(40))]
    data = kit.write(tmp_path / "d.jsonl", rows)
    trained = kit.train(tmp_path, model_folder, data, eval="0.02", spec={"max_length": 100})
    assert trained.result is None and trained.accounts[1].used == 0
    assert "not evaluated: the one held-out row was dropped" in capsys.readouterr().err


def test_reasons_that_differ_in_a_value_are_one_group(model_folder, tmp_path, capsys):
    rows = [{"prompt": f"{i}?", "response": "a", "label": float(i)} for i in range(40)]
    data = kit.write(tmp_path / "l.jsonl", rows)
    trained = kit.train(tmp_path, model_folder, data, kind="outcome")
    err = capsys.readouterr().err
    mend = "scale the labels, or learn ratings with --objective mse"
    assert f"dropped 38: label … is not in 0 to 1; {mend} ({data}:3," in err
    assert err.count("dropped") == 1 and "label 7 is not in 0 to 1" in listed(trained)["train", 8, "dropped"]


def test_held_out_rows_that_were_all_dropped_are_not_called_none(model_folder, tmp_path, capsys):
    rows = [*GOOD[:4], *({**LONG, "prompt": f"{i}{'p' * 300}"} for i in range(36))]
    data = kit.write(tmp_path / "d.jsonl", rows)
    trained = kit.train(tmp_path, model_folder, data, spec={"max_length": 100}, eval="0.1")
    assert trained.result is None
    assert "not evaluated: all 4 held-out rows were dropped" in capsys.readouterr().err


def test_eval_files_that_cannot_be_used_are_an_error(model_folder, tmp_path):
    with pytest.raises(BadInput, match="no row of the eval data can be used"):
        kit.train(tmp_path, model_folder, kit.pairs(tmp_path), eval=kit.write(tmp_path / "e.jsonl", [SAME]))


def test_items_of_another_kind(model_folder, tmp_path):
    labelled = kit.write(tmp_path / "l.jsonl", kit.labelled_rows())
    with pytest.raises(BadInput, match=r"learns from preference pairs or rankings, but .*l.jsonl:1 holds labelled"):
        kit.train(tmp_path / "a", model_folder, labelled)
    with pytest.raises(BadInput, match=r"learns from labelled answers, but .* holds preference pairs; choose the kind"):
        kit.train(tmp_path / "b", model_folder, kit.pairs(tmp_path), kind="outcome")
    mixed = (kit.pairs(tmp_path), labelled)
    with pytest.raises(BadInput, match="holds labelled answers"):
        kit.train(tmp_path / "c", model_folder, mixed)


def test_one_class_only(model_folder, tmp_path):
    rows = [{**row, "label": 1.0} for row in kit.labelled_rows()]
    data = kit.write(tmp_path / "l.jsonl", rows)
    with pytest.raises(BadInput, match="train data: every label is 1, so there is nothing to learn; add answers"):
        kit.train(tmp_path, model_folder, data, kind="outcome")


def test_one_class_only_on_the_held_out_side(model_folder, tmp_path):
    rows = kit.labelled_rows()
    files = {"data": kit.write(tmp_path / "l.jsonl", rows), "eval": kit.write(tmp_path / "e.jsonl", rows[:1])}
    trained = kit.train(tmp_path, model_folder, **files, kind="outcome")
    assert trained.result.judged == 1 and trained.result.figure("AUC") is None


def test_labels_out_of_range_are_dropped_and_named(model_folder, tmp_path):
    rows = kit.labelled_rows()
    data = kit.write(tmp_path / "l.jsonl", [*rows, {**rows[0], "label": 7.0}, {**rows[0], "label": float("nan")}])
    trained = kit.train(tmp_path, model_folder, data, kind="outcome")
    found = listed(trained)
    assert "label 7 is not in 0 to 1" in found["train", 25, "dropped"] and ("train", 26, "dropped") in found


def test_rows_that_all_weigh_nothing(model_folder, tmp_path):
    data = kit.write(tmp_path / "d.jsonl", [{**row, "weight": 0.0} for row in GOOD])
    with pytest.raises(BadInput, match="every row of the train data has the weight 0"):
        kit.train(tmp_path, model_folder, data)


def test_mixture_weights(model_folder, tmp_path):
    one = kit.write(tmp_path / "one.jsonl", arithmetic.pair_rows(8))
    two = kit.write(tmp_path / "two.jsonl", arithmetic.pair_rows(8, seed=1))
    trained = kit.train(tmp_path, model_folder, (f"{one}@2", f"{two}@0.5"))
    assert trained.accounts[0].used == 20
    assert len(kit.losses(trained)) == 3  # of 8 rows


def test_non_utf8_and_long_texts(model_folder, tmp_path):
    data = kit.write(tmp_path / "d.jsonl", [*GOOD, {"prompt": "p", "chosen": "x" * 200_000, "rejected": "b"}])
    trained = kit.train(tmp_path, model_folder, data)
    assert listed(trained) == {("train", 13, "dropped"): "longer than max_length"}
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é", "chosen": "a", "rejected": "b"}\n'.encode("latin-1"))
    with pytest.raises(BadInput, match="UTF-8"):
        kit.train(tmp_path / "b", model_folder, str(tmp_path / "latin.jsonl"))


@pytest.mark.parametrize("options", [{}, {"layout": "dialogue", "over_length": "cut_prompt"}])
@pytest.mark.parametrize("size", [1, 4, 64])
def test_rows_that_are_rendered_together_are_those_of_one_by_one(model_folder, tmp_path, monkeypatch, size, options):
    items = formats.load(kit.write(tmp_path / "d.jsonl", ROWS), None).items
    spec = RewardSpec(kind="bradley_terry").with_options(max_length=200, **options)
    parts = checkpoint.start(model_folder, spec, device="cpu")
    renderer, made = Renderer(parts.tokenizer, parts.spec, parts.positions), kind("bradley_terry")
    monkeypatch.setattr(_data, "_CHUNK", size)
    account = _data.Account("train")
    asked: list[str] = []
    problem_of = made.problem_of
    monkeypatch.setattr(made, "problem_of", lambda item: asked.append(item.origin) or problem_of(item))
    rows = _data.prepare(items, made, renderer, "drop", account)
    assert asked == [item.origin for item in items], "each once"
    alone = {item.origin: renderer(made.examples(item)) for item in items}
    assert [row.sequences for row in rows] == [tuple(r.sequence for r in alone[row.item.origin]) for row in rows]
    assert len(rows) == account.used == (14 if options else 13)
    assert [origin for origin, _ in account.dropped] == [i.origin for i in items if i not in [r.item for r in rows]]


def test_rendering_shows_how_far_it_is(model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_EVERY", -1.0)
    kit.train(tmp_path, model_folder, kit.pairs(tmp_path), eval="0.25")
    err = capsys.readouterr().err
    assert "rendering the train data 18/18" in err and "rendering the eval data 6/6" in err


def test_no_bar_is_left_open_under_an_error(model_folder, tmp_path, monkeypatch):
    ended = []

    def bar(items, total, what):
        try:
            yield from items
        finally:
            ended.append(what)

    monkeypatch.setattr(progress, "track", bar)
    data = kit.write(tmp_path / "d.jsonl", ROWS)
    with pytest.raises(BadInput, match="more than max_length") as error:
        kit.train(tmp_path, model_folder, data, spec={"max_length": 200, "over_length": "error"})
    assert error.tb  # which keeps what was not closed
    assert ended == ["rendering the train data"]
