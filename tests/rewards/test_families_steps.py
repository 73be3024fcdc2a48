"""Published step rewards that load without an option, and what is refused with the question that settles it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_step_rewards import OTHERS, PROMPT, STEPS, H, Layout, appended, chat, enc, extra_0, linear, mlp, softmax
from tokenizers import AddedToken

import karat
import toys
from karat.models.families import base
from karat.models.families.base import families
from karat.types import CheckpointError, KaratError, Refused, Reward, Unscored


def reason_eval(tokenizer, prompt, steps):
    text = f"Question:\n{prompt}\nAnswer:\nLet's think step by step.\n"
    ids, reads = [tokenizer.bos_token_id, *enc(tokenizer, text)], []
    for step in steps:
        ids += enc(tokenizer, step)
        reads.append(len(ids) - 1)
    return ids, reads


def pqm(tokenizer, prompt, steps):
    text = f"[INST] {prompt} [/INST]\n" + "\n".join(f"Step {n}: {s} [PRM]" for n, s in enumerate(steps, 1))
    ids = enc(tokenizer, text)
    return ids, [i for i, t in enumerate(ids) if t == tokenizer.convert_tokens_to_ids("[PRM]")]


SUMMARY = {"v_head.summary.weight": (1, H), "v_head.summary.bias": (1,)}
TWO = {"score.0.weight": (H, H), "score.0.bias": (H,), "score.2.weight": (2, H), "score.2.bias": (2,)}
TOKENS = {"score.weight": (2, H), "score.bias": (2,)}
PUBLISHED = {
    "Qwen2.5-Math-PRM": (Layout({}, extra_0, mlp, softmax(0, 1), head=TWO), ["<extra_0>"], {}),
    "Skywork-o1": (
        Layout({}, appended("\n", "\n"), linear("v_head.summary"), lambda z: torch.sigmoid(z[:, 0]), head=SUMMARY),
        [],
        {"architectures": ["Qwen2ForPrmModel"], "auto_map": {"AutoModel": "modeling.Qwen2ForRewardModel"}},
    ),
    "PQM": (Layout({}, pqm, linear("v_head.summary"), lambda z: z[:, 0], head=SUMMARY), ["[PRM]"], {}),
    "ReasonEval": (
        Layout(
            {},
            reason_eval,
            linear("score_head"),
            softmax(0, 1, 1),
            head={"score_head.weight": (3, H), "score_head.bias": (3,)},
        ),
        [],
        {"score_dimension": 3, "use_bias": True},
    ),
}


def publish(folder, head, added=(), config=None, seed=0, causal=False):
    tokenizer = toys.byte_tokenizer()
    tokenizer.add_tokens([AddedToken(tag, special=True) for tag in added], special_tokens=True)
    model = toys.causal_model(seed) if causal else toys.backbone(seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    own = load_file(folder / "model.safetensors")
    tensors = own if causal else {f"model.{name}": t for name, t in own.items()}
    tensors |= {name: torch.randn(shape) for name, shape in head.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["X"], **(config or {})}))
    return tokenizer, model, tensors


@pytest.mark.parametrize("name", PUBLISHED)
def test_step_rewards_load_without_an_option(name, tmp_path):
    layout, added, config = PUBLISHED[name]
    tokenizer, backbone, tensors = publish(tmp_path / "m", layout.head, added, config)
    model = karat.load(str(tmp_path / "m"))
    assert model.spec.kind == "process"
    asked = [(PROMPT, STEPS), *OTHERS]
    alone = [model.score_steps(*one) for one in asked]
    together = list(model.score_many([karat.Example.of_steps(*one) for one in asked]))
    for one, *got in zip(asked, alone, together, strict=True):
        ids, reads = layout.ids(tokenizer, *one)
        with torch.no_grad():
            states = backbone(input_ids=torch.tensor([ids])).last_hidden_state[0, reads]
        wanted = layout.reward(layout.numbers(tensors, states, None)).tolist()
        for reward in got:
            assert isinstance(reward, Reward), reward
            assert reward.steps == pytest.approx(wanted, abs=1e-5)


QUESTIONS = {
    "a language model": ({}, [], {}, "kind='process'", {"kind": "process", "head": "lm_logits:+,-", "output": 0}),
    "a language model, one token": ({}, [], {}, "lm_logits:#0", {"head": "lm_logits:#0"}),
    "a language model, yes and no": (
        {},
        [],
        {},
        "yes,no",
        {"head": "lm_logits:y,n", "activation": "softmax", "output": 0},
    ),
    "a language model, pairwise": ({}, [], {}, "kind='pairwise'", {"kind": "pairwise"}),
    "a language model, embedding": ({}, [], {}, "kind='embedding'", {"kind": "embedding"}),
    "a token classifier": (
        TOKENS,
        [],
        {"architectures": ["LlamaForTokenClassification"]},
        r"step_token='\n\n' and output=[-1,1] (PURE)",
        {"step_token": "\n\n", "output": (-1, 1)},
    ),
    "a token classifier of kind process": (TOKENS, [], {}, "step_token", {"kind": "process"}),
    "a token classifier without a bias": (
        {"score.weight": (1, H)},
        [],
        {"architectures": ["MistralForTokenClassification"]},
        "step_token",
        {"kind": "process", "step_token": "ки", "step_join": "text", "activation": "identity"},
    ),
    "a tagger": (
        {"score.weight": (3, H), "score.bias": (3,)},
        [],
        {"id2label": {"0": "O", "1": "B-PER", "2": "I-PER"}},
        "one of 3 classes",
        {"kind": "process", "output": (0, 0, 1)},
    ),
    "two classes without a mark": (TWO, [], {}, "no <extra_0>", {"step_token": "\n", "layout": "concat"}),
    "several outputs": ({"score.weight": (2, H)}, [], {}, "has 2 outputs", {"output": 1}),
    "ODIN": ({"score.weight": (2, H)}, [], {}, "spec='odin'", {"spec": "odin"}),
    "ODIN, of its kind": ({"score.weight": (2, H)}, [], {}, "spec='odin'", {"kind": "multi_objective"}),
    "MLP of several outputs": (
        {**TWO, "score.2.weight": (5, H), "score.2.bias": (5,)},
        [],
        {},
        "has 5 outputs",
        {"output": 4},
    ),
    "score_head": ({"score_head.weight": (2, H)}, [], {}, "called score_head and has 2 outputs", {"output": 0}),
    "linear v_head": ({"v_head.weight": (1, H)}, [], {}, "called v_head", {"pooling": "last"}),
    "value head beside a mark": (SUMMARY, ["<extra_0>"], {}, "mark of steps", {"kind": "bradley_terry"}),
    "classification_head": ({"classification_head.weight": (4, H)}, [], {}, "has 4 outputs", {"output": 2}),
    "reward_head": (
        {"reward_head.weight": (1, H), "reward_head.bias": (1,)},
        [],
        {},
        "called reward_head",
        {"activation": "sigmoid"},
    ),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_what_files_leave_open_is_asked_and_the_answer_loads(name, tmp_path):
    head, added, config, said, options = QUESTIONS[name]
    publish(tmp_path / "m", head, added, config, causal=not head)
    with pytest.raises(Refused) as caught:
        karat.load(str(tmp_path / "m"))
    assert said in str(caught.value) and len(str(caught.value)) < 600, caught.value
    model = karat.load(str(tmp_path / "m"), **options)
    if not model.compares and model.spec.head.type != "hidden":
        assert isinstance(model.score("2+2?", ["4"])[0], Reward)


def test_odin_by_its_kind_alone_is_still_asked(tmp_path):
    """Published ones hold length first and quality second, karat's the other way round."""
    publish(tmp_path / "m", {"score.weight": (2, H)})
    with pytest.raises(Refused, match="spec='odin' where they are length and quality"):
        karat.load(str(tmp_path / "m"), kind="odin")
    model = karat.load(str(tmp_path / "m"), spec="odin")
    (found,) = model.score("2+2?", ["4"])
    assert found.value == found.objectives["quality"] != found.objectives["length"]


BROKEN = {
    "unknown head": ({"reward.out.weight": (1, H)}, {}, "does not know (reward.out.weight [1, 32])"),
    "half a gate": ({"regression_layer.weight": (3, H)}, {}, "does not know"),
    "quantiles that do not divide": (
        {"regression_layer.weight": (7, H), "gating.layers.0.weight": (3, H), "gating.layers.0.bias": (3,)},
        {},
        "do not fit",
    ),
    "transposed head": ({"score.weight": (H, 1)}, {}, "of another model"),
    "encoder-decoder": ({}, {"model_type": "t5"}, "encoder-decoder"),
    "unknown architecture": ({}, {"model_type": "abacus"}, "config"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_refused_in_a_sentence(name, tmp_path):
    head, config, said = BROKEN[name]
    publish(tmp_path / "m", head, config=config)
    with pytest.raises(KaratError) as caught:
        karat.load(str(tmp_path / "m"))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def sharded(folder, weights):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for file, part in zip(files, (names[::2], names[1::2]), strict=True):
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    named = {n: files[i % 2] for i, n in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": named | weights}))


def test_shards_are_one_file_and_a_lost_one_is_named(tmp_path):
    publish(tmp_path / "m", SUMMARY)
    wanted = karat.load(str(tmp_path / "m")).score("2+2?", ["4"])
    sharded(tmp_path / "m", {})
    assert karat.load(str(tmp_path / "m")).score("2+2?", ["4"]) == wanted
    (tmp_path / "m" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(Refused, match="lacks 1 of its 2 files"):
        karat.load(str(tmp_path / "m"))


def test_two_families_that_fit_are_refused(tmp_path, monkeypatch):
    publish(tmp_path / "m", SUMMARY)
    again = dataclasses.replace(next(f for f in families() if f.name == "value head"), name="another")
    known = families()
    monkeypatch.setattr(base, "families", lambda: (*known, again))
    with pytest.raises(Refused, match="families value head and another; say which is meant, family='value head' or"):
        karat.load(str(tmp_path / "m"))
    assert karat.load(str(tmp_path / "m"), family="another").score("2+2?", ["4"])


def test_weights_that_give_no_numbers_or_do_not_run(tmp_path):
    *_, tensors = publish(tmp_path / "m", SUMMARY)
    save_file(
        {**tensors, "model.norm.weight": tensors["model.norm.weight"] * float("nan")}, tmp_path / "m/model.safetensors"
    )
    with pytest.raises(CheckpointError, match="NaN"):
        karat.load(str(tmp_path / "m"))
    save_file({n: t for n, t in tensors.items() if "up_proj" not in n}, tmp_path / "m/model.safetensors")
    with pytest.raises(CheckpointError, match="lacks weights of its backbone"):
        karat.load(str(tmp_path / "m"))


@pytest.mark.parametrize("file", ["../other/model.safetensors", "/etc/passwd", "weights.bin"])
def test_an_index_that_leads_elsewhere_is_refused(file, tmp_path):
    publish(tmp_path / "m", SUMMARY)
    sharded(tmp_path / "m", {"model.norm.weight": file})
    with pytest.raises(Refused, match="no safetensors file of it"):
        karat.load(str(tmp_path / "m"))


def test_code_of_a_folder_is_never_run(tmp_path):
    canary = tmp_path / "canary"
    publish(tmp_path / "m", SUMMARY, config={"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Config"}})
    (tmp_path / "m" / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\nclass Config: pass\n")
    path = tmp_path / "m" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    try:
        assert not isinstance(karat.load(str(tmp_path / "m")).score("2+2?", ["4"])[0], Unscored)
    except Refused as error:
        assert "\n" not in str(error)
    assert not canary.exists()


def test_outputs_that_are_not_the_tensors_are_refused(tmp_path):
    publish(tmp_path / "m", TWO, ["<extra_0>"])
    with pytest.raises(Refused, match="outputs=3, but the head"):
        karat.load(str(tmp_path / "m"), outputs=3)
    with pytest.raises(Refused, match="has a mlp head, not a linear one"):
        karat.load(str(tmp_path / "m"), head="linear")


def test_a_spec_by_hand_says_how_a_published_head_is_read(tmp_path):
    publish(tmp_path / "m", SUMMARY)
    raw = karat.load(str(tmp_path / "m")).score("2+2?", ["4"])[0].value
    (tmp_path / "m" / "reward_spec.json").write_text('{"kind": "bradley_terry", "activation": "sigmoid"}')
    squashed = karat.load(str(tmp_path / "m")).score("2+2?", ["4"])[0].value
    assert squashed == pytest.approx(float(torch.sigmoid(torch.tensor(raw))), abs=1e-6)


def test_a_lora_folder_with_a_value_head_of_its_own(tmp_path):
    """LLaMA-Factory's: an adapter of the language model, and the head in value_head.safetensors."""
    from peft import LoraConfig, get_peft_model

    toys.save(tmp_path / "base", toys.causal_model())
    made = get_peft_model(toys.causal_model(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            if "lora_" in name:
                tensor.normal_(std=0.2)
    made.save_pretrained(tmp_path / "m")
    toys.byte_tokenizer().save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(tmp_path / "base")}))
    head = {name: torch.randn(shape) for name, shape in SUMMARY.items()}
    save_file(head, tmp_path / "m" / "value_head.safetensors")
    model = karat.load(str(tmp_path / "m"))
    tokenizer = toys.byte_tokenizer()
    ids = enc(tokenizer, chat(tokenizer, ("user", "2+2?"), ("assistant", "4")))
    with torch.no_grad():
        states = made.eval().base_model.model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    wanted = float(head["v_head.summary.weight"] @ states + head["v_head.summary.bias"])
    assert model.score("2+2?", ["4"])[0].value == pytest.approx(wanted, abs=1e-5)
    (tmp_path / "m" / "value_head.safetensors").unlink()
    with pytest.raises(Refused, match="without its reward head"):
        karat.load(str(tmp_path / "m"))


def test_an_embedding_model_has_no_reward(tmp_path):
    publish(tmp_path / "m", {}, causal=True)
    (tmp_path / "m" / "modules.json").write_text("[]")
    with pytest.raises(Refused, match="kind='embedding'"):
        karat.load(str(tmp_path / "m"))
    assert karat.load(str(tmp_path / "m"), kind="embedding").embed(["a"]).shape == (1, H)


def test_every_family_says_what_it_is():
    names = [family.name for family in families()]
    assert len(names) == len({*names}) >= 30
    for family in families():
        assert family.published or family.asks
        assert not family.asks or family.settled_by or not family.tensors or callable(family.tensors)


def test_a_nan_in_a_head_is_no_reward(tmp_path):
    *_, tensors = publish(tmp_path / "m", SUMMARY)
    tensors["v_head.summary.bias"][:] = float("nan")
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="NaN"):
        karat.load(str(tmp_path / "m"))


# Language models as documented options


def logits(model, tokenizer, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -1]


def test_one_token_s_logit_behind_the_template(tmp_path):
    """Llama-3.1-Nemotron-70B-Reward: the raw logit of token 0, without a generation prompt."""
    tokenizer, model, _ = publish(tmp_path / "m", {}, causal=True)
    ids = enc(tokenizer, chat(tokenizer, ("user", "2+2?"), ("assistant", "4")))
    found = karat.load(str(tmp_path / "m"), head="lm_logits:#0").score("2+2?", ["4"])[0]
    assert found.value == pytest.approx(float(logits(model, tokenizer, ids)[0]), abs=1e-5)


RERANKER = (
    "<|im_start|>system\nJudge.<|im_end|>\n<|im_start|>user\n<Query>: {{ messages[0].content }}\n"
    "<Document>: {{ messages[1].content }}<|im_end|>\n<|im_start|>assistant\n{{ '<think>\n\n</think>\n\n' }}"
)


def test_a_judgement_in_one_word(tmp_path):
    """Qwen3-Reranker: P(yes) of two words, behind a template of its own."""
    tokenizer, model, _ = publish(tmp_path / "m", {}, causal=True)
    text = (
        "<|im_start|>system\nJudge.<|im_end|>\n<|im_start|>user\n<Query>: q\n<Document>: d<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    z = logits(model, tokenizer, enc(tokenizer, text))
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in "yn")
    options = {"template": RERANKER, "head": "lm_logits:y,n", "activation": "softmax", "output": 0}
    found = karat.load(str(tmp_path / "m"), **options).score("q", ["d"])[0]
    assert found.value == pytest.approx(float(torch.sigmoid(z[yes] - z[no])), abs=1e-5)
    raw = karat.load(str(tmp_path / "m"), template=RERANKER, head="lm_logits:y,n", output=(1, -1)).score("q", ["d"])[0]
    assert raw.value == pytest.approx(float(z[yes] - z[no]), abs=1e-4)


def test_polar_asks_for_the_text_and_then_reads_its_token(tmp_path):
    import test_families as published

    case = published.CASES["InternLM2"]
    polar = published.Case(**{**case.__dict__, "tokens": ("[UNUSED_TOKEN_130]",), "append": "[UNUSED_TOKEN_130]"})
    tokenizer, backbone, head = published.write(tmp_path / "m", polar)
    with pytest.raises(Refused, match="beside a reference answer"):
        karat.load(str(tmp_path / "m"))
    model = karat.load(str(tmp_path / "m"), append="[UNUSED_TOKEN_130]")
    ids = [tokenizer.bos_token_id, *enc(tokenizer, "q\nref|q\nans[UNUSED_TOKEN_130]")]
    with torch.no_grad():
        wanted = float(head["v_head.weight"] @ backbone(input_ids=torch.tensor([ids])).last_hidden_state[0, -1])
    assert model.score_text("q\nref|q\nans").value == pytest.approx(wanted, abs=1e-5)


def test_an_internlm_without_its_token_asks(tmp_path):
    import test_families as published

    case = published.CASES["InternLM2"]
    other = published.Case(**{**case.__dict__, "tokens": ("<|other|>",), "append": "<|other|>"})
    published.write(tmp_path / "m", other)
    with pytest.raises(Refused, match="does not say which token"):
        karat.load(str(tmp_path / "m"))
    assert isinstance(karat.load(str(tmp_path / "m"), append="<|other|>").score("q", ["a"])[0], Reward)


def test_the_page_of_families_holds_every_record():
    """Its table is made of the records; a row that is missing is printed as it should be."""
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    for family in families():
        settled = ", ".join(f"`{option}`" for option in family.settled_by)
        answer = f"asks: {settled}" if settled else "asks" if family.asks else "loads"
        assert f"| {family.name} | {family.published or '-'} | {answer} |" in page
