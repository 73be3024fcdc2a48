"""What is loaded scores as transformers' own class; what is saved loads again, anywhere; what is broken is refused."""

import json
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import karat
import toys
from karat.models import backbone as backbones
from karat.models import checkpoint
from karat.models._parts import HEAD_FILE
from karat.rewards._local import LocalModel, golden_values
from karat.spec import FILE_NAME, RewardSpec
from karat.types import BadInput, CheckpointError, KaratError, Message, Refused, Reward

LAST = ("llama", "gpt2", "opt", "gpt_neox", "bloom", "qwen3", "mistral")
ARCHITECTURES = (*LAST, "bert", "roberta", "electra", "distilbert", "deberta-v2")
TEXTS = ("four", "It is 4, since 2+2=4.", "")


def ids(local, response, prompt="2+2?"):
    (found,) = local.renderer([karat.Example((Message("user", prompt),), response)])
    return found.sequence.ids


def logits(model, *rows, **options):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(rows), **options).logits[:, 0].tolist()


def values(local, texts=TEXTS):
    return [r.value for r in local.score("2+2?", list(texts), strict=True)]


def fresh(code, *arguments, **options):
    """Run in a new process; its last line as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def refusal(call):
    with pytest.raises(KaratError) as caught:
        call()
    text = str(caught.value)
    assert "Traceback" not in text and "\n" not in text and len(text) < 600
    return text


def start(folder, **options):
    return checkpoint.start(folder, RewardSpec(kind="bradley_terry").with_options(**options))


# Loading what transformers saved


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_the_logits_of_transformers_own_class(architecture, tmp_path):
    model = toys.reward_model(architecture)
    local = karat.load(str(toys.save(tmp_path / "m", model)))
    wanted = [logits(model, ids(local, text))[0] for text in TEXTS]
    assert values(local) == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) - min(wanted) > 1e-4, "the toy tells texts apart"


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_loaded_in_bfloat16(architecture, tmp_path):
    model = toys.reward_model(architecture)
    local = karat.load(str(toys.save(tmp_path / "m", model)), dtype="bfloat16")
    assert next(local.parts.backbone.parameters()).dtype == torch.bfloat16
    assert next(local.parts.head.parameters()).dtype == torch.float32
    assert values(local) == pytest.approx([logits(model, ids(local, t))[0] for t in TEXTS], abs=0.15)


def test_options_complete_and_override(model_folder):
    local = karat.load(str(model_folder), max_length=30, activation="sigmoid", layout="concat")
    assert local.renderer.max_length == 30 and local.renderer.part.layout == "concat"
    assert all(0 < v < 1 for v in values(local))
    with pytest.raises(BadInput, match="did you mean 'pooling'"):
        karat.load(str(model_folder), poling="last")
    with pytest.raises(BadInput, match="softmax"):
        karat.load(str(model_folder), activation="softmax")
    with pytest.raises(BadInput, match="output=3"):
        karat.load(str(model_folder), output=3)
    with pytest.raises(Refused, match="no device"):
        karat.load(str(model_folder), device="abacus")
    with pytest.raises(Refused, match="dtype"):
        karat.load(str(model_folder), dtype="int3")


def test_mean_pooling_of_a_loaded_class(model_folder):
    local = karat.load(str(model_folder), pooling="mean")
    rows = torch.tensor([ids(local, TEXTS[0])])
    model = AutoModelForSequenceClassification.from_pretrained(model_folder)
    with torch.no_grad():
        wanted = model.score(model.model(rows).last_hidden_state.mean(1))
    assert values(local)[0] == pytest.approx(float(wanted), abs=1e-5)


# Saving


LORA_TOO = ("llama", "bert", "roberta", "distilbert", "gpt2", "electra")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Every architecture saved by karat, with its scores."""
    root, scores = tmp_path_factory.mktemp("saved"), {}
    for architecture in ARCHITECTURES:
        tokenizer = toys.byte_tokenizer(pad="</s>")
        parts = start(toys.save(root / f"{architecture}-hf", toys.reward_model(architecture), tokenizer))
        checkpoint.add_pad_token(parts)
        with torch.no_grad():
            parts.head.out.weight.mul_(1.5)  # not what was loaded: as after training
        scores[architecture] = values(LocalModel(parts))
        checkpoint.save(parts, root / architecture, golden_values)
    for architecture in LORA_TOO:
        parts = trained(root / f"lora-{architecture}-hf", {}, architecture)
        scores[f"lora-{architecture}"] = values(LocalModel(parts))
        checkpoint.save(parts, root / f"lora-{architecture}", golden_values)
    return root, scores


READ_AGAIN = """
    import sys, json, karat, torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    found = {}
    for name in sys.argv[2:]:
        folder = f"{sys.argv[1]}/{name}"
        rm = karat.load(folder)
        found[name] = {"ours": [r.value for r in rm.score("2+2?", ["four", "It is 4, since 2+2=4.", ""])]}
        if name.startswith("lora-"):
            continue
        hf = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        rows = [r.sequence.ids for r in rm.renderer([karat.Example((karat.Message("user", "2+2?"),), t)
                for t in ["four", "It is 4, since 2+2=4.", ""]])]
        with torch.no_grad():
            found[name]["alone"] = [float(hf(torch.tensor([r])).logits) for r in rows]
            tokenizer = AutoTokenizer.from_pretrained(folder)
            for side in ("right", "left"):
                batch = tokenizer.pad({"input_ids": [list(r) for r in rows]}, return_tensors="pt", padding_side=side)
                found[name][side] = hf(**batch).logits[:, 0].tolist()
    print(json.dumps(found))
"""


@pytest.mark.full
def test_a_fresh_process_and_transformers_read_the_same_scores(saved):
    root, scores = saved
    found = fresh(READ_AGAIN, root, *scores)
    for name, wanted in scores.items():
        assert found[name]["ours"] == pytest.approx(wanted, abs=1e-6), name
    for name in ARCHITECTURES:
        wanted = scores[name]
        assert found[name]["alone"] == pytest.approx(wanted, abs=1e-5), name
        if name in LAST:  # the class looks for its pad id, so a pad of its own was added
            assert found[name]["right"] == pytest.approx(wanted, abs=1e-4), name
        if name in ("llama", "qwen3", "mistral", "gpt_neox", "bloom", "opt"):  # gpt2's has absolute positions
            assert found[name]["left"] == pytest.approx(wanted, abs=1e-4), name


def test_negative_control_pad_as_eos_reads_another_token(tmp_path):
    """With EOS as pad, transformers' class drops the EOS that the answer ends in."""
    tokenizer = toys.byte_tokenizer(pad="</s>", chat=None)
    folder = toys.save(tmp_path / "m", toys.reward_model(pad_token_id=tokenizer.eos_token_id), tokenizer)
    parts = start(folder)
    local = LocalModel(parts)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    row = ids(local, "four")
    assert row[-1] == tokenizer.eos_token_id
    assert logits(model, row)[0] == pytest.approx(logits(model, row[:-1])[0], abs=1e-5)
    assert values(local)[0] != pytest.approx(logits(model, row)[0], abs=1e-3)
    checkpoint.add_pad_token(parts)
    checkpoint.save(parts, tmp_path / "o", golden_values)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "o")
    assert values(local)[0] == pytest.approx(logits(again, row)[0], abs=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_pad_token_that_needs_a_new_row(lora, tmp_path):
    """The vocabulary is full: the embedding grows, and is saved."""
    tokenizer = toys.byte_tokenizer(pad=None)
    folder = toys.save(tmp_path / "m", toys.reward_model(vocab_size=len(tokenizer)), tokenizer)
    parts = start(folder)
    before = values(LocalModel(parts))
    checkpoint.add_pad_token(parts)
    assert parts.tokenizer.pad_token_id == len(tokenizer)
    if lora:
        checkpoint.add_lora(parts, {})
    checkpoint.save(parts, tmp_path / "o", golden_values)
    assert values(karat.load(str(tmp_path / "o"))) == pytest.approx(before, abs=1e-6)


def test_pad_token_is_left_alone_where_it_means_positions(tmp_path):
    """RoBERTa counts its positions from the pad id."""
    parts = start(toys.save(tmp_path / "m", toys.reward_model("roberta"), toys.byte_tokenizer(pad=None)))
    checkpoint.add_pad_token(parts)
    assert parts.model.config.pad_token_id == 1 and parts.tokenizer.pad_token_id is None


@pytest.mark.parametrize("architecture", ["llama", "bert"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_heads_that_no_class_holds(architecture, head, tmp_path):
    folder = toys.save(tmp_path / "m", toys.reward_model(architecture))
    parts = start(folder, pooling="mean", head=head)
    assert (parts.layout is None and parts.head.dense is None) or head == "mlp"
    wanted = values(LocalModel(parts))
    checkpoint.save(parts, tmp_path / "o", golden_values)
    assert (tmp_path / "o" / HEAD_FILE).is_file()
    assert values(karat.load(str(tmp_path / "o"))) == pytest.approx(wanted, abs=1e-6)
    rows = torch.tensor([ids(LocalModel(parts), TEXTS[0])])
    with torch.no_grad():
        by_hand = parts.head(parts.backbone(rows).last_hidden_state.mean(1))
    assert wanted[0] == pytest.approx(float(by_hand), abs=1e-5)


def test_a_head_that_was_asked_for_is_not_replaced_by_the_class_own(model_folder):
    assert start(model_folder, head="mlp").layout is None
    assert start(model_folder).layout is not None


@pytest.mark.parametrize("made", ["classifier", "backbone", "causal"])
def test_starting_from_a_model_without_a_head(made, tmp_path):
    models = {"classifier": toys.reward_model, "backbone": toys.backbone, "causal": toys.causal_model}
    folder = toys.save(tmp_path / "m", models[made]())
    torch.manual_seed(1)
    parts = start(folder)
    checkpoint.save(parts, tmp_path / "o", golden_values)
    assert values(karat.load(str(tmp_path / "o"))) == pytest.approx(values(LocalModel(parts)), abs=1e-6)


def test_starting_from_a_reward_model_keeps_what_the_run_does_not_say(tmp_path):
    folder = toys.save(tmp_path / "m", tokenizer=toys.byte_tokenizer(chat=None))
    first = start(folder, pooling="mean", layout="dialogue", max_length=100)
    checkpoint.save(first, tmp_path / "one", golden_values)
    second = start(tmp_path / "one", max_length=50)
    assert (second.spec.pooling, second.spec.render.layout, second.spec.render.eos) == ("mean", "dialogue", "append")
    assert second.spec.render.max_length == 50
    assert second.head.sha256() == first.head.sha256()
    with pytest.raises(Refused, match="linear head"):
        start(tmp_path / "one", head="mlp")


def test_a_template_of_its_own_is_trained_saved_and_read(tmp_path):
    template = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
    parts = start(toys.save(tmp_path / "m"), template=template)
    assert parts.spec.render.template == template
    checkpoint.save(parts, tmp_path / "o", golden_values)
    again = karat.load(str(tmp_path / "o"))
    assert values(again) == pytest.approx(values(LocalModel(parts)), abs=1e-6)
    assert AutoTokenizer.from_pretrained(tmp_path / "o").chat_template == template


def test_explicit_eos_policy_is_kept(tmp_path):
    folder = toys.save(tmp_path / "m", tokenizer=toys.byte_tokenizer(chat=None))
    assert start(folder).spec.render.eos == "append"
    assert start(folder, eos="as_is").spec.render.eos == "as_is"


# LoRA


def trained(folder, options, architecture="llama"):
    """LoRA parts whose every trainable weight has moved."""
    parts = start(toys.save(folder, toys.reward_model(architecture)))
    checkpoint.add_pad_token(parts)
    checkpoint.add_lora(parts, options)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, tensor in parts.model.named_parameters():
            if "lora_" in name:
                tensor.normal_(std=0.1)
        for tensor in parts.head.parameters():
            tensor.normal_(std=0.3)
    return parts


LORA = [
    {},
    {"r": 2},
    {"target_modules": ["q_proj"]},
    {"modules_to_save": None},
    {"modules_to_save": []},
    {"task_type": None},
    {"task_type": "CAUSAL_LM"},
]


@pytest.mark.parametrize("options", LORA, ids=str)
def test_lora_saves_its_head_whatever_the_options(options, tmp_path):
    from peft import PeftModel

    parts = trained(tmp_path / "m", options)
    wanted = values(LocalModel(parts))
    checkpoint.save(parts, tmp_path / "o", golden_values)
    again = karat.load(str(tmp_path / "o"))
    assert values(again) == pytest.approx(wanted, abs=1e-6)
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m", num_labels=1)
    base.config.pad_token_id = parts.tokenizer.pad_token_id
    read = PeftModel.from_pretrained(base, tmp_path / "o")
    assert logits(read, ids(again, TEXTS[1]))[0] == pytest.approx(wanted[1], abs=1e-5)


def test_lora_with_a_head_that_no_class_holds(tmp_path):
    parts = start(toys.save(tmp_path / "m"), pooling="mean")
    checkpoint.add_lora(parts, {})
    with torch.no_grad():
        for name, tensor in parts.model.named_parameters():
            if "lora_" in name:
                tensor.normal_(std=0.1)
    wanted = values(LocalModel(parts))
    checkpoint.save(parts, tmp_path / "o", golden_values)
    assert values(karat.load(str(tmp_path / "o"))) == pytest.approx(wanted, abs=1e-6)


def test_negative_control_plain_peft_loses_the_head(tmp_path):
    """peft's own defaults on the class: the head is neither trained nor saved, and each load has another one."""
    from peft import LoraConfig, PeftModel, get_peft_model

    base = toys.save(tmp_path / "m", toys.backbone())
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    get_peft_model(model, LoraConfig(target_modules="all-linear", exclude_modules=["score"])).save_pretrained(
        tmp_path / "o"
    )
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        again = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        found.append(logits(PeftModel.from_pretrained(again, tmp_path / "o"), [5, 6, 7])[0])
    assert found[0] != pytest.approx(found[1], abs=1e-4)
    toys.byte_tokenizer().save_pretrained(tmp_path / "o")
    assert "without its reward head" in refusal(lambda: karat.load(str(tmp_path / "o")))


def test_lora_options_that_peft_refuses(tmp_path):
    parts = start(toys.save(tmp_path / "m"))
    for options in ({"rank": 3}, {"target_modules": ["nothing"]}, {"r": -1}):
        assert "LoRA options" in refusal(lambda options=options: checkpoint.add_lora(parts, options))


# What is broken is refused


def edit_tensors(folder, change, file="model.safetensors"):
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})


def set_head(value):
    def change(tensors):
        tensors["score.weight"] = value(tensors["score.weight"]).contiguous()

    return change


def swap_tokens(folder):
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    vocabulary = state["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(state))


def halve(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickle_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def drop(name):
    return lambda folder: (folder / name).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def tensors(change):
    return lambda folder: edit_tensors(folder, change)


def nan(tensors):
    tensors["model.norm.weight"] *= float("nan")


def smaller(tensors):
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name][:3].contiguous()


BREAKS = {
    "missing head": (tensors(lambda t: t.pop("score.weight")), "no reward head"),
    "foreign head": (tensors(set_head(lambda t: t + 0.01)), "not the one"),
    "transposed head": (tensors(set_head(torch.t)), "reward head has tensors"),
    "three outputs": (tensors(set_head(lambda t: t.repeat(3, 1))), "reward head has tensors"),
    "template": (write("chat_template.jinja", "{{ messages[-1].content }}"), "chat template"),
    "swapped tokens": (swap_tokens, "tokenizer is not the one"),
    "half a file": (halve, "cannot be read"),
    "no weights": (drop("model.safetensors"), "no weights"),
    "no config": (drop("config.json"), "no config.json"),
    "broken config": (write("config.json", "{"), "not valid JSON|no valid JSON"),
    "config is a list": (write("config.json", "[]"), "no JSON object"),
    "unknown model": (write("config.json", '{"model_type": "abacus"}'), "config|model"),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "no tokenizer"),
    "broken tokenizer": (write("tokenizer.json", "{"), "tokenizer"),
    "pickle": (pickle_weights, "pickled"),
    "NaN": (tensors(nan), "NaN"),
    "lost layer": (tensors(lambda t: t.pop("model.layers.0.mlp.up_proj.weight")), "lacks weights"),
    "smaller layer": (tensors(smaller), "another shape"),
    "broken spec": (write(FILE_NAME, "{}"), "not a valid reward spec"),
    "spec of another time": (write(FILE_NAME, '{"kind": "bradley_terry", "poling": "last"}'), "poling"),
    "unknown kind": (write(FILE_NAME, '{"kind": "abacus"}'), "no kind"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_checkpoints(name, saved, tmp_path, capfd):
    change, words = BREAKS[name]
    folder = shutil.copytree(saved[0] / "llama", tmp_path / "m")
    change(folder)
    found = refusal(lambda: karat.load(str(folder)))
    assert any(w in found for w in words.split("|")), found
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "value"),
    [("kind", "outcome"), ("pooling", "mean"), ("layout", "dialogue"), ("template", "{{ 1 }}"), ("eos", "append")],
)
def test_a_checkpoint_is_not_read_otherwise_than_it_was_trained(name, value, saved):
    folder = str(saved[0] / "llama")
    trained_with = checkpoint.load(folder).spec
    was = getattr(trained_with if name in ("kind", "pooling") else trained_with.render, name)
    shown = f"{was!r:.60}…" if name == "template" else repr(was)  # what is cut says so, as its quote stays open
    found = refusal(lambda: karat.load(folder, **{name: value}))
    assert found == f"this reward model was trained with {name}={shown}; leave {name} out"
    karat.load(folder, **{name: was}, max_length=30)  # the same again, and what does not change the reading


@pytest.mark.parametrize("architecture", ["bart", "t5"])
def test_encoder_decoders_are_refused_in_a_sentence(architecture, tmp_path):
    from transformers import AutoConfig

    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "num_layers": 1, "d_ff": 32, "d_kv": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_heads": 2}
    config = AutoConfig.for_model(architecture, vocab_size=270, num_labels=1, **sizes, **heads)
    toys.save(tmp_path / "m", AutoModelForSequenceClassification.from_config(config))
    assert "cannot be used" in refusal(lambda: karat.load(str(tmp_path / "m")))


def test_broken_adapters(tmp_path):
    checkpoint.save(trained(tmp_path / "m", {"r": 2}), tmp_path / "good", golden_values)

    def broken(change):
        folder = shutil.copytree(tmp_path / "good", tmp_path / "bad")
        change(folder)
        found = refusal(lambda: karat.load(str(folder)))
        shutil.rmtree(folder)
        return found

    weights = "adapter_model.safetensors"
    assert "without its reward head" in broken(
        lambda f: edit_tensors(f, lambda t: t.pop("base_model.model.score.weight"), weights)
    )
    lora = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert "does not fit" in broken(lambda f: edit_tensors(f, lambda t: t.pop(lora), weights))
    assert "cannot be" in broken(lambda f: edit_tensors(f, lambda t: t.update({lora: t[lora][:1]}), weights))
    assert "cannot be read" in broken(lambda f: (f / weights).unlink())
    assert "cannot be read" in broken(lambda f: (f / weights).write_bytes(b"xx"))
    config = json.loads((tmp_path / "good" / "adapter_config.json").read_text())
    for base in ("/nowhere/at/all", None, 3):
        text = json.dumps({**config, "base_model_name_or_path": base})
        assert "which is not there" in broken(lambda f, text=text: (f / "adapter_config.json").write_text(text))
    assert "no JSON object" in broken(lambda f: (f / "adapter_config.json").write_text("[]"))
    with pytest.raises(Refused, match="merge"):
        start(tmp_path / "good")


def test_adapter_never_reads_a_pickle(tmp_path):
    parts = start(toys.save(tmp_path / "m"), pooling="mean")
    checkpoint.add_lora(parts, {})
    checkpoint.save(parts, tmp_path / "o", golden_values)
    weights = tmp_path / "o" / "adapter_model.safetensors"
    torch.save(load_file(weights), tmp_path / "o" / "adapter_model.bin")
    weights.unlink()
    assert "cannot be read" in refusal(lambda: karat.load(str(tmp_path / "o")))


def test_paths_that_are_no_model(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "empty", tmp_path / "file", tmp_path / "nothing", "a/b/c"):
        refusal(lambda path=path: karat.load(str(path)))


# Saving that fails


def before(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_drift_is_refused_and_the_old_folder_stays(tmp_path):
    parts = start(toys.save(tmp_path / "m"))
    checkpoint.save(parts, tmp_path / "out" / "o", golden_values)
    was, calls = before(tmp_path / "out" / "o"), []

    def drifting(some, examples):
        calls.append(some)
        return [v + 1e-3 * len(calls) for v in golden_values(some, examples)]

    with pytest.raises(CheckpointError, match="scores differently"):
        checkpoint.save(parts, tmp_path / "out" / "o", drifting)
    with pytest.raises(CheckpointError, match="no number"):
        checkpoint.save(parts, tmp_path / "out" / "o", lambda s, e: [None] * len(e))
    assert before(tmp_path / "out" / "o") == was
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["o"]


def test_saving_again_replaces_the_whole_folder(tmp_path):
    parts = start(toys.save(tmp_path / "m"))
    checkpoint.save(parts, tmp_path / "o", golden_values, lambda f: (f / "report.html").write_text("one"))
    assert (tmp_path / "o" / "report.html").is_file()
    with torch.no_grad():
        parts.head.out.weight.mul_(2)
    checkpoint.save(parts, tmp_path / "o", golden_values)
    assert not (tmp_path / "o" / "report.html").exists()
    assert values(karat.load(str(tmp_path / "o"))) == pytest.approx(values(LocalModel(parts)), abs=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "o"]


def test_what_is_no_checkpoint_is_never_replaced(tmp_path):
    parts = start(toys.save(tmp_path / "m"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "home")
    for name in ("home", "file", "link"):
        with pytest.raises(CheckpointError, match="no checkpoint"):
            checkpoint.save(parts, tmp_path / name, golden_values)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    checkpoint.save(parts, tmp_path / "empty", golden_values)


def test_a_report_that_fails_leaves_nothing(tmp_path):
    parts = start(toys.save(tmp_path / "m"))

    def also(folder):
        raise RuntimeError("report")

    with pytest.raises(RuntimeError, match="report"):
        checkpoint.save(parts, tmp_path / "o", golden_values, also)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


@pytest.mark.full
def test_full_disk(tmp_path):
    """Files may not grow beyond a limit: first the tokenizer cannot be written, then the weights."""
    folder = toys.save(tmp_path / "m")
    parts = start(folder)
    checkpoint.save(parts, tmp_path / "out" / "o", golden_values)
    was = before(tmp_path / "out" / "o")
    # The limit is the process's.
    found = fresh(
        """
        import json, resource, sys
        from pathlib import Path
        from karat.models import checkpoint
        from karat.rewards._local import golden_values
        parts, found = checkpoint.load(sys.argv[1]), []
        for limit in (60_000, 9_000, 20):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                checkpoint.save(parts, Path(sys.argv[1]), golden_values)
            except BaseException as error:
                found.append((type(error).__name__, str(error)))
        print(json.dumps(found))
        """,
        tmp_path / "out" / "o",
    )
    assert [name for name, _ in found] == ["CheckpointError"] * 3, found
    assert all("could not be written" in text and "\n" not in text for _, text in found), found
    assert before(tmp_path / "out" / "o") == was
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["o"]


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="choose another folder"):
        checkpoint.save(start(toys.save(tmp_path / "m")), tmp_path / "file" / "o", golden_values)


# Silence, and what is in the folder


def test_loading_and_saving_print_nothing(saved, tmp_path, capfd):
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    parts = checkpoint.load(saved[0] / "llama")
    checkpoint.save(parts, tmp_path / "o", golden_values)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (verbosity, bars)


def test_the_folder_holds_json_and_safetensors_only(saved):
    assert {p.suffix for p in (saved[0] / "llama").iterdir()} <= {".json", ".safetensors", ".jinja"}
    spec = RewardSpec.read(saved[0] / "llama")
    assert len(spec.golden) == len(checkpoint.GOLDEN) and spec.head.sha256 and spec.tokenizer_sha256
    local = karat.load(str(saved[0] / "llama"))
    for golden in spec.golden:
        (found,) = local.score(golden.prompt, [golden.response])
        assert isinstance(found, Reward) and found.value == pytest.approx(golden.value, abs=1e-5)


def test_a_lora_adapter_names_its_base_by_hub_id(tmp_path, model_folder, monkeypatch):
    monkeypatch.setattr(backbones, "_snapshot", lambda hub_id: model_folder)
    parts = checkpoint.start("owner/name", RewardSpec(kind="bradley_terry"))
    checkpoint.add_lora(parts, {"r": 2})
    checkpoint.save(parts, tmp_path / "adapter", golden_values)
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == "owner/name"
