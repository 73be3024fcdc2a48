"""Files that cannot be read say so in one sentence; files are written whole or not at all."""

import csv
import gzip
import json
import sys
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from karat.formats import base
from karat.formats._reading import read_rows
from karat.formats._writing import write_rows
from karat.types import BadInput, Example, Message, Pair

ROW = {"prompt": "Q", "response": "é"}
LINE = json.dumps(ROW, ensure_ascii=False).encode()


def rows(path):
    return list(read_rows(str(path)))


def refused(path):
    with pytest.raises(BadInput) as caught:
        base.load(str(path))
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(f"{path.parent}/", "") if hasattr(path, "parent") else text


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.json.gz", "x.csv", "x.csv.gz", "x.parquet"])
def test_every_kind_reads_back_what_was_written(tmp_path, name):
    table = [{"a": "x\r\ny\r", "b": '"q", \u2028\x85'}, {"a": "\ufeffz", "b": "0"}]
    assert write_rows(table, str(tmp_path / name)) == 2
    assert [row for _, row in rows(tmp_path / name)] == table
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_rows_are_numbered_by_line(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b"\n" + LINE + b"\r\n  \n" + LINE)
    assert rows(tmp_path / "x.jsonl") == [(2, ROW), (4, ROW)]
    (tmp_path / "x.csv").write_text('prompt,response\n"a\nb",c\n\nd,e\n')
    assert [n for n, _ in rows(tmp_path / "x.csv")] == [2, 5]
    (tmp_path / "x.json").write_bytes(b"[" + LINE + b",\n\n" + LINE + b"]")
    assert [n for n, _ in rows(tmp_path / "x.json")] == [1, 2]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv"])
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    write_rows([ROW], str(tmp_path / name))
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    assert [row for _, row in rows(tmp_path / name)] == [ROW]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"", "x.jsonl has no rows; give a file with at least one"),
        ("x.jsonl", b"\n \n", "x.jsonl has no rows"),
        ("x.json", b"", "x.json has no rows"),
        ("x.json", b"[]", "x.json has no rows"),
        ("x.csv", b"", "x.csv has no rows"),
        ("x.csv", b"prompt,response\n", "x.csv has no rows"),
        ("x.jsonl", LINE + b"\n" + b'{"a": "\xff"}', "x.jsonl:2: byte 41 of the file is not UTF-8; convert"),
        ("x.json", b'[{"a":\n"\xff"}]', "x.json:2: byte 8 of the file is not UTF-8"),
        ("x.csv", b"a,b\nc,\xe9\n", "x.csv:2: byte 6 of the file is not UTF-8"),
        ("x.jsonl", LINE + b'\n{"a": 1,}\n', "x.jsonl:2:9: this is not JSON (Illegal trailing comma"),
        ("x.jsonl", b'{"a": 1\n', "x.jsonl:1:8: this is not JSON"),
        ("x.jsonl", b"[" * 100_000, "x.jsonl:1: this JSON cannot be read"),
        ("x.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "x.jsonl:1: this JSON cannot be read"),
        ("x.json", b'[\n{"a" 1}]', "x.json:2:6: this is not JSON (Expecting ':' delimiter); a .json file is one array"),
        ("x.json", LINE + b"\n" + LINE, "x.json:2:1: this is not JSON (Extra data); a .json file is one array of obj"),
        ("x.json", LINE, "x.json holds an object; a .json file is one array of objects"),
        ("x.jsonl", LINE + b"\n[1]", "x.jsonl:2: a row has to be a JSON object, but this is an array"),
        ("x.jsonl", b'"text"', "x.jsonl:1: a row has to be a JSON object, but this is a text"),
        ("x.json", b"[null]", "x.json:1: a row has to be a JSON object, but this is null"),
        ("x.csv", b"a,b\n1,2\n3\n", "x.csv:3: this row has 1 cells, but the header has 2; quote cells that hold"),
        ("x.csv", b"a,b\n1,2,3\n", "x.csv:2: this row has 3 cells, but the header has 2"),
        ("x.csv", b"a,a\n1,2\n", "x.csv:1: the column 'a' is there twice"),
        ("x.csv", b'a,b\n"1,2\n', "x.csv:2: this is not CSV (unexpected end of data)"),
        ("x.parquet", b"PAR1 not", "x.parquet cannot be read as Parquet ("),
        ("x.jsonl.gz", b"plain", "x.jsonl.gz cannot be read (Not a gzipped file"),
        ("x.jsonl.gz", gzip.compress(LINE * 99, mtime=0)[:-9], "x.jsonl.gz cannot be read ("),
        ("x.txt", LINE, "x.txt has an unknown ending; rename it to end in .jsonl, .json, .csv"),
        ("x.parquet.gz", LINE, "x.parquet.gz has an unknown ending"),
        ("x.jsonl", b'{"foo": 1}', "x.jsonl has the columns foo, which fit no format"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    found = refused(tmp_path / name)
    if "Illegal" in message and "Illegal" not in found:  # Python before 3.13 words it otherwise
        message = "x.jsonl:2:9: this is not JSON (Expecting property name"
    assert found.startswith(message)


def test_a_missing_file_names_the_nearest(tmp_path):
    assert refused(tmp_path / "train.jsonl") == f"there is no file train.jsonl; there is nothing in {tmp_path}"
    (tmp_path / "train.jsonl.gz").write_bytes(b"")
    assert refused(tmp_path / "train.jsonl") == "there is no file train.jsonl; the nearest is train.jsonl.gz"
    assert refused(tmp_path / "zzz.csv") == "there is no file zzz.csv; check the path"
    assert "is a folder; give one of its files" in refused(tmp_path)


def test_a_hub_id_that_cannot_be_had(monkeypatch):
    def load_dataset(name, split):
        raise ConnectionError(f"Couldn't reach {name!r} on the Hub (offline).\nTraceback…")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert refused("owner/name") == (
        "owner/name is no file and cannot be had from the hub (Couldn't reach 'owner/name' on the Hub (offline));"
        " check the path, the connection, or the split in OWNER/NAME:SPLIT or OWNER/NAME:CONFIG:SPLIT"
    )
    assert refused("owner/name.jsonl").startswith("there is no file owner/name.jsonl")


def test_a_hub_id_names_its_split(monkeypatch):
    asked = []

    def load_dataset(name, *config, split):
        asked.append((name, *config, split))
        return [ROW, ROW]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert base.load("owner/name").items[0].response == "é"
    assert len(base.load("owner/name:test[:1]").items) == 1
    assert base.load("owner/name:main:test").items
    assert asked == [("owner/name", "train"), ("owner/name", "test"), ("owner/name", "main", "test")]


CHOSEN = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "a"}]
REJECTED = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "b"}]
PAIR = Pair(*(Example((Message("user", "Q"),), r) for r in "ab"), margin=0.5)


def test_messages_in_csv_are_json_text(tmp_path):
    with open(tmp_path / "x.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["chosen", "rejected", "margin"])
        writer.writerow([json.dumps(CHOSEN), json.dumps(REJECTED), "0.5"])
        writer.writerow([json.dumps(CHOSEN), json.dumps(REJECTED), "wide"])
        writer.writerow([json.dumps(CHOSEN), "", "1"])
    loaded = base.load(tmp_path / "x.csv")
    assert loaded.items == [PAIR]
    assert [p.reason for p in loaded.problems] == [
        "`margin` has to be a number, but it is 'wide'",
        "`rejected` is missing",
    ]


def test_messages_in_parquet_are_structs_or_json_text(tmp_path):
    structs = {"chosen": [CHOSEN], "rejected": [REJECTED], "margin": [0.5], "tools": [None], "id": [1]}
    texts = {"chosen": [json.dumps(CHOSEN)], "rejected": [json.dumps(REJECTED)], "margin": [0.5]}
    for table in (structs, texts):
        pq.write_table(pa.table(table), tmp_path / "x.parquet")
        assert base.load(tmp_path / "x.parquet").items == [PAIR]


def test_text_in_jsonl_is_never_read_as_json(tmp_path):
    text = json.dumps(CHOSEN)
    (tmp_path / "x.jsonl").write_text(json.dumps({"prompt": "[]", "chosen": text, "rejected": "3"}))
    (pair,) = base.load(tmp_path / "x.jsonl").items
    assert (pair.chosen, pair.rejected.response) == (Example((Message("user", "[]"),), text), "3")


def test_a_text_cell_that_looks_like_json_stays_text(tmp_path):
    table = {"prompt": ["[1, 2]", "{}"], "response": ["4", "[]"], "label": ["true", "0.25"]}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    items = base.load(tmp_path / "x.parquet").items
    assert [(i.example.prompt[0].content, i.example.response, i.label) for i in items] == [
        ("[1, 2]", "4", 1.0),
        ("{}", "[]", 0.25),
    ]
    assert all(type(i.example.response) is str for i in items)


def test_nan_is_no_value_and_is_not_called_missing(tmp_path):
    table = {"prompt": ["Q"] * 3, "response": ["a"] * 3, "rating": [1.0, float("nan"), None]}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text("prompt,response,rating\nQ,a,1\nQ,a,NaN\nQ,a,\n")
    (tmp_path / "x.json").write_text(json.dumps([ROW | {"rating": v} for v in (1, float("nan"), None)]))
    for name in ("x.parquet", "x.csv", "x.json"):
        loaded = base.load(tmp_path / name)
        assert len(loaded.items) == 1
        assert [p.reason for p in loaded.problems] == ["`rating` is NaN, which is no value", "`rating` is missing"]


def test_long_csv_cells(tmp_path):
    write_rows([{"prompt": "Q", "response": "x" * 200_000}], str(tmp_path / "x.csv"))
    assert len(base.load(tmp_path / "x.csv").items[0].response) == 200_000


@pytest.mark.parametrize("name", ["x.jsonl", "x.json.gz", "x.csv", "x.parquet"])
@pytest.mark.parametrize("bad", ["\ud800", object(), float("nan"), {1, 2}])
def test_a_failed_write_leaves_what_was_there(tmp_path, name, bad):
    (tmp_path / name).write_bytes(b"before")
    with pytest.raises(BadInput, match="item 2 cannot be written as JSON"):
        write_rows([{"a": "x"}, {"a": bad}], str(tmp_path / name))
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(name, b"before")]


def test_an_error_of_the_caller_is_the_callers(tmp_path):
    def interrupted():
        yield {"a": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(interrupted(), str(tmp_path / "x.jsonl"))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    for name, rows, message in [
        ("x.txt", [{"a": 1}], "unknown ending; choose a name that ends in"),
        ("x.jsonl", [], "there are no rows to write"),
        ("none/x.jsonl", [{"a": 1}], "there is no folder .*none; create it first"),
        ("folder.csv", [{"a": 1}], "cannot be written"),
        ("x.csv", [{"a": ""}], "in CSV an empty `a` cannot be told from a missing one"),
    ]:
        with pytest.raises(BadInput, match=message):
            write_rows(rows, str(tmp_path / name))
    assert [p.name for p in tmp_path.iterdir()] == ["folder.csv"]


@pytest.mark.parametrize(
    ("values", "written"),
    [
        (["a", 1, None, True], ["a", "1", None, "true"]),
        ([1, 2**70], ["1", str(2**70)]),
        ([[1], ["a"]], ["[1]", '["a"]']),
        ([[1, 2**64]], [f"[1, {2**64}]"]),
        ([None, {"b": {}}], [None, '{"b": {}}']),
        ([[{"role": "user", "more": {}}]], ['[{"role": "user", "more": {}}]']),
        ([{"b": 1}, 3], ['{"b": 1}', "3"]),
    ],
)
def test_parquet_columns_of_values_that_share_no_type_are_text(tmp_path, capsys, values, written):
    path = tmp_path / "x.parquet"
    write_rows([{"a": value, "n": 1} for value in values], str(path))
    table = pq.read_table(path)
    assert table.column("a").to_pylist() == written and table.schema.field("n").type == pa.int64()
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "values of a have no common Parquet type, or none at all" in said


def test_mappings_with_the_same_keys_are_structs_in_parquet(tmp_path, capsys):
    rows = [{"same": {"x": 1, "y": ["z"]}, "other": {"x": 1}}, {"same": {"x": 2, "y": []}, "other": {"y": 2}}]
    write_rows(rows, str(tmp_path / "x.parquet"))
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column("same").to_pylist() == [row["same"] for row in rows]
    assert table.column("other").to_pylist() == ['{"x": 1}', '{"y": 2}']
    assert "values of other have" in capsys.readouterr().err


def test_a_prompt_column_of_texts_and_messages_reads_back(tmp_path):
    rows = [ROW, ROW | {"prompt": [{"role": "user", "content": "Q"}]}]
    write_rows(rows, str(tmp_path / "x.parquet"))
    assert base.load(tmp_path / "x.parquet").items == [Example((Message("user", r),), ROW["response"]) for r in "QQ"]


def test_types_that_are_given_hold_for_columns_without_a_value(tmp_path):
    write_rows([{"a": None, "b": []}], str(tmp_path / "x.parquet"), {"a": "", "b": [""]})
    assert pq.read_table(tmp_path / "x.parquet").schema.types == [pa.string(), pa.list_(pa.string())]
