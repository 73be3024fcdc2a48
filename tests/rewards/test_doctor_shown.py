"""What the doctor shows of an example: beside transformers' tokenizer by hand, and with mistakes put into a folder."""

import json

import pytest
from layouts import LAYOUTS

import toys
from karat.rewards._doctor import examine

CHATML = "<s><|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
ASKED, ANSWER = "2+2?", "four"


def put(folder, name):
    LAYOUTS[name].write(folder)
    return folder


def row(folder, **own):
    (folder / "row.jsonl").write_text(json.dumps(own) + "\n")
    return str(folder / "row.jsonl")


def shown(folder, **options):
    """Findings by their names."""
    return {own.check: own for own in examine(str(folder), **options)}


def tokenizer_of(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_a_chat_is_shown_as_transformers_writes_it(model_folder, tmp_path, karat):
    code, out, _ = karat("doctor", model_folder, "--example", row(tmp_path, prompt=ASKED, response=ANSWER), "--json")
    found = {own["check"]: own["details"] for own in json.loads(out)}
    text = CHATML.format(ASKED, ANSWER)
    tokenizer = tokenizer_of(model_folder)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert code == 0 and found["text"]["ids"] == ids and found["text"]["text"] == text
    assert found["text"]["tokens"] == [tokenizer.decode([i]) for i in ids]
    assert found["BOS"] == {"count": 1, "bos_token_id": 256, "tokenizer_adds": True, "in_template": 1}
    (read,) = found["read"]["reads"]
    end = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    assert (read["at"], read["id"], read["expected_id"]) == (len(ids) - 1, ids[-1], end)
    assert [own["id"] for own in read["around"]] == ids[-4:]
    assert (found["length"]["tokens"], found["length"]["max_length"]) == (len(ids), 512)


def test_a_step_model_shows_every_mark(tmp_path):
    folder = put(tmp_path / "m", "Qwen2.5-Math-PRM")
    found = shown(folder, example=row(tmp_path, prompt=ASKED, steps=["a b", "So c.", "4"]))
    tokenizer = tokenizer_of(folder)
    text = CHATML.format(ASKED, "a b<extra_0>So c.<extra_0>4<extra_0>")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    mark = tokenizer.convert_tokens_to_ids("<extra_0>")
    reads = found["read"].details["reads"]
    assert found["text"].details["ids"] == ids
    assert [own["at"] for own in reads] == [n for n, i in enumerate(ids) if i == mark]
    assert {(own["id"], own["expected_id"], own["as_expected"]) for own in reads} == {(mark, mark, True)}
    assert found["read"].found.startswith("step 1 at ") and found["read"].found.count("the mark of steps") == 3


def test_a_gate_shows_both_reads(tmp_path):
    folder = put(tmp_path / "m", "ArmoRM-Llama3-8B")
    found = shown(folder, example=row(tmp_path, prompt=ASKED, response="four<|im_end|>\n"))
    tokenizer = tokenizer_of(folder)
    prompt = f"<s><|im_start|>user\n{ASKED}<|im_end|>"  # the answer's own <|im_end|> is text
    last, gate = found["read"].details["reads"]
    assert gate["at"] == len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) - 1
    assert gate["id"] == gate["expected_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert last["at"] == len(found["text"].details["ids"]) - 1
    assert [line.split(" at ")[0] for line in found["read"].found.split("\n")] == ["last", "prompt_end"]


@pytest.mark.parametrize(
    ("policy", "said"), [("error", "more than max_length=30"), ("cut_prompt", "this one loses 16")]
)
def test_what_a_limit_cuts(model_folder, tmp_path, policy, said):
    """Of a template's text, in which a byte is a token, the prompt's first bytes go."""
    prompt = "abcdefghijklmnop2+2?"
    example = row(tmp_path, prompt=prompt, response=ANSWER)
    tokenizer = tokenizer_of(model_folder)
    size = len(tokenizer(CHATML.format(prompt, ANSWER), add_special_tokens=False)["input_ids"])
    found = shown(model_folder, example=example, max_length=size - 16, over_length=policy)["length"]
    assert found.ok == (policy == "cut_prompt") and said.replace("30", str(size - 16)) in found.found
    assert found.details["tokens"] == size and found.details.get("lost") in (None, prompt[:16])


# Mistakes


def test_a_changed_template_shows_where_it_reads(tmp_path):
    folder = toys.save(tmp_path / "m")
    assert "'\\n' (198), the template's last token" in shown(folder)["read"].found
    (folder / "chat_template.jinja").write_text(toys.CHAT.replace("<|im_end|>\n", ""))
    found = shown(folder)
    assert (
        found["text"].details["text"].endswith("It is 57.") and "'.' (13), the text's own last" in found["read"].found
    )


@pytest.mark.parametrize("name", ["", "Qwen2.5-Math-PRM"])
def test_a_doubled_bos_shows(tmp_path, name):
    folder = put(tmp_path / "m", name) if name else toys.save(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + toys.CHAT)
    found = shown(folder)["BOS"]
    assert not found.ok and "take one out" in found.found and found.details["in_template"] == 2


def test_a_mark_that_merges_is_said(tmp_path):
    """A tokenizer that merges a blank and a line end reads that token; with a full stop, there is no place to read."""
    folder = put(tmp_path / "m", "TRL step rewards")
    merges(folder, "\u0120\u010a")
    found = shown(folder, kind="process", step_join="text", step_template="{step} ")["read"]
    assert found.ok and "the mark of steps '\\n' (198) merged with what stands before it" in found.found
    assert [(own["token"], own["expected_id"]) for own in found.details["reads"]] == [(" \n", 198)] * 2
    merges(folder, ".\u010a")
    found = shown(folder, kind="process", step_join="text")
    assert not found["text"].ok and "joins the mark" in found["text"].found


def merges(folder, both):
    told = json.loads((folder / "tokenizer.json").read_text())
    told["model"]["vocab"] = {t: i for t, i in told["model"]["vocab"].items() if i != 265} | {both: 265}
    told["model"]["merges"] = [[*both]]
    (folder / "tokenizer.json").write_text(json.dumps(told))


def test_an_example_that_is_none(model_folder, tmp_path, karat):
    code, _, err = karat("doctor", model_folder, "--example", row(tmp_path, prompt=ASKED))
    assert code == 1 and "an example needs" in err
