"""Published layouts, each written by hand and loaded without an option, against a few lines over its own tensors."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken
from torch.nn.functional import leaky_relu, selu

import karat
import toys
from karat.engine.padded import PaddedEngine, PaddedForward
from karat.models import checkpoint
from karat.rewards._local import LocalModel, golden_values
from karat.spec import RewardSpec
from karat.types import BadInput, Example, KaratError, Message, Refused

H, A = toys.SIZES["hidden_size"], 3
TALK = [("user", "2+2?"), ("assistant", "5"), ("user", "No?")]
PROMPTS = [[("user", "2+2?")], TALK]
ANSWERS = ["four", "It is 4, since 2+2=4.", "[INST] </s> <|im_end|> x", "a\n\nb <extra_0>"]
ALL = [(prompt, answer) for prompt in PROMPTS for answer in ANSWERS]


@dataclass
class Case:
    """How a family stores and reads; `score` gets tensors, the states of all tokens, and the prompt's last place."""

    shapes: dict[str, tuple[int, ...]]
    score: Callable[..., Any]
    config: dict[str, Any] = field(default_factory=dict)
    text: Callable[..., str] | None = None  # (tokenizer, turns) → the text; None: the tokenizer's chat template
    prefix: str = "model."
    architecture: str = "llama"
    tokens: tuple[str, ...] = ()  # added to the tokenizer
    chat: bool = True
    cls: str = ""
    append: str = ""  # a token behind the text
    rename: Callable[..., Any] | None = None  # the backbone's tensors as they are published
    special: dict[str, torch.Tensor] = field(default_factory=dict)  # tensors that are not random
    split: bool = False  # the head in a file of its own
    multi: bool = True  # takes several turns


def last(name, bias=False):
    def score(t, h, j):
        return t[f"{name}.weight"] @ h[-1] + (t[f"{name}.bias"] if bias else 0)

    return score


def layered(first, out, act):
    def score(t, h, j):
        return t[f"{out}.weight"] @ act(t[f"{first}.weight"] @ h[-1] + t[f"{first}.bias"]) + t[f"{out}.bias"]

    return score


def wb(name, rows, width=H):
    return {f"{name}.weight": (rows, width), f"{name}.bias": (rows,)}


def chat(tokenizer, turns):
    return tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in turns], tokenize=False)


def openrlhf(tokenizer, turns):
    return chat(tokenizer, turns).rstrip("\n") + " </s>"


def beaver(tokenizer, turns):
    text = "<s>BEGINNING OF CONVERSATION: "
    for n, (role, content) in enumerate(turns, 1):
        text += f"USER: {content} " if role == "user" else f"ASSISTANT:{content}{'</s>' if n < len(turns) else ''}"
    return text


def human(tokenizer, turns):
    return "<s>" + "\n\n".join(f"{'Human' if r == 'user' else 'Assistant'}: {c}" for r, c in turns)


def inst(tokenizer, turns):
    return "<s>" + "".join(f"[INST] {c} [/INST]" if r == "user" else f" {c}" for r, c in turns)


def oasst(tokenizer, turns):
    return "".join(f"{'<|prompter|>' if r == 'user' else '<|assistant|>'}{c}</s>" for r, c in turns)


def chatml(tokenizer, turns):
    return "<s>" + "".join(f"<|im_start|>{r}\n{c}<|im_end|>\n" for r, c in turns)


def normal(scale, cost=False):
    def score(t, h, j):
        s = t["score_head.weight"] @ h[-1] + t.get("score_head.bias", 0)
        return -s / (scale[1] + 1e-8) if cost else (s - scale[0]) / (scale[1] + 1e-8)

    return score


def grm(t, h, j):
    x = h[-1]
    for n in (0, 2):
        x = torch.relu(t[f"v_head.summary.{n}.weight"] @ x + t[f"v_head.summary.{n}.bias"])
    return t["v_head.summary.4.weight"] @ x + t["v_head.summary.4.bias"]


def qrm(linear, norms, quantiles, transform, temperature):
    def score(t, h, j):
        x = h[j]
        for n, b in zip(linear, [*norms, None], strict=True):
            x = t[f"gating.layers.{n}.weight"] @ x + t.get(f"gating.layers.{n}.bias", torch.zeros(1))
            if b is not None:
                x = torch.relu(x)
                p = {part: t[f"gating.layers.{b}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")}
                x = (x - p["running_mean"]) / torch.sqrt(p["running_var"] + 1e-5) * p["weight"] + p["bias"]
        g = torch.softmax(x / temperature, 0)
        r = (t["regression_layer.weight"] @ h[-1]).reshape(-1, quantiles).mean(1)
        return g @ (r @ t["reward_transform_matrix"] if transform else r)

    return score


def gate_shapes(linear, norms, width, outputs):
    found, before = {}, H
    for n, b in zip(linear, [*norms, None], strict=True):
        rows = width if b is not None else outputs
        found[f"gating.layers.{n}.weight"] = (rows, before)
        if b is None:
            found[f"gating.layers.{n}.bias"] = (rows,)
        else:
            found |= {f"gating.layers.{b}.{p}": (rows,) for p in ("weight", "bias", "running_mean", "running_var")}
        before = rows
    return found


def armo(t, h, j):
    x = h[j]
    for n in range(4):
        x = t[f"gating.layers.{n}.weight"] @ x + t[f"gating.layers.{n}.bias"]
        x = torch.relu(x) if n < 3 else x
    g = t["gating.logit_scale"] * torch.softmax(x / 10, 0)
    return g @ ((t["regression_layer.weight"] @ h[-1]) @ t["reward_transform_matrix"])


def urm(t, h, j):
    x = h[-1]
    for n in (0, 2, 4):
        x = t[f"weights.fc.{n}.weight"] @ x + t[f"weights.fc.{n}.bias"]
        x = selu(x) if n < 4 else x
    return sum((t["score.weight"] @ h[-1])[2 * k] * x[k] for k in range(A))


def ldl(t, h, j):
    x, w = h[-1], h[-1]
    for n in (0, 2, 4):
        x = t[f"regression_layer.network.{n}.weight"] @ x + t[f"regression_layer.network.{n}.bias"]
        x = leaky_relu(x) if n < 4 else x
    for n in (0, 3, 6):
        w = t[f"gating_layer.network.{n}.weight"] @ w + t[f"gating_layer.network.{n}.bias"]
        w = leaky_relu(w) if n < 6 else w
    p = torch.softmax(x.reshape(-1, 10), -1)
    return sum(b / 9 * (w @ p[:, b]) for b in range(10))


def internlm(tensors):
    """A Llama's tensors under InternLM2's names, with q, k and v of each group in one."""
    names = {"embed_tokens": "tok_embeddings", "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1"}
    names |= {"mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2"}
    names |= {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
    found = {}
    for name, tensor in tensors.items():
        if "q_proj" in name:
            k, v = (tensors[name.replace("q_proj", other)] for other in ("k_proj", "v_proj"))
            groups = 2
            parts = [x.reshape(groups, -1, toys.SIZES["head_dim"], H) for x in (tensor, k, v)]
            packed = torch.cat(parts, 1).reshape(-1, H)
            found[name.replace("self_attn.q_proj", "attention.wqkv")] = packed
        elif "k_proj" not in name and "v_proj" not in name:
            for ours, theirs in names.items():
                name = name.replace(f".{ours}.", f".{theirs}.") if "." + ours + "." in name else name
                name = f"{theirs}.weight" if name == f"{ours}.weight" else name
            found[name] = tensor
    return found


SUMMARY = wb("v_head.summary", 1)
MLP = wb("score.0", H) | wb("score.2", 1)
V_HEAD = {"v_head.weight": (1, H)}
BEAVER = {"score_type": "reward", "do_normalize": True, "mean": [9.0], "var": [9.0], "architectures": ["LlamaForScore"]}
STATS = {"normalizer.mean": torch.tensor([1.5]), "normalizer.var": torch.tensor([4.0])}
STATS |= {"normalizer.count": torch.tensor([7])}
INTERN = {"model_type": "internlm2", "architectures": ["InternLM2ForRewardModel"], "bias": False}
REWARD_MODEL = {"architectures": ["RewardModel"], "mean": 1.5, "std": 2.0}
OASST = {"model_type": "gpt_neox_reward_model", "architectures": ["GPTNeoXRewardModel"]}
CAUSAL = {"architectures": ["LlamaForCausalLM"]}
CASES = {
    "A1": Case({"score.weight": (1, H)}, last("score"), {"architectures": ["LlamaForSequenceClassification"]}),
    "A1, id2label of one": Case(
        {"score.weight": (1, H)},
        last("score"),
        {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}},
    ),
    "A1, Qwen2": Case(
        {"score.weight": (1, H)},
        last("score"),
        {"architectures": ["Qwen2ForSequenceClassification"]},
        architecture="qwen2",
    ),
    "A3, value_head": Case(
        {"value_head.weight": (1, H)},
        last("value_head"),
        {**REWARD_MODEL, "value_head_prefix": "value_head", "normalize_reward": False},
        openrlhf,
    ),
    "A3, normalised": Case(
        {"score.weight": (1, H)},
        lambda t, h, j: (last("score")(t, h, j) - 1.5) / 2,
        {**REWARD_MODEL, "value_head_prefix": "score", "normalize_reward": True},
        openrlhf,
    ),
    "A4": Case(SUMMARY, last("v_head.summary", True), CAUSAL),
    "A4, wrapped": Case(SUMMARY, last("v_head.summary", True), CAUSAL, prefix="pretrained_model.model."),
    "A4b": Case(SUMMARY, last("v_head.summary", True), CAUSAL, split=True),
    "A4c": Case(wb("value_head", 1), last("value_head", True)),
    "A4d": Case(
        {"classification_head.weight": (1, H)},
        last("classification_head"),
        {"architectures": ["LlamaForClassification"], "classification_out_size": 1},
    ),
    "A5": Case(
        wb("v_head.summary.0", 8) | wb("v_head.summary.2", 8, 8) | wb("v_head.summary.4", 1, 8),
        grm,
        {**CAUSAL, "vhead_layer_type": "mlp", "vhead_num_neurons": 8, "vhead_num_layers": 2},
    ),
    "UltraRM": Case(
        {"regression_head.weight": (1, H)},
        last("regression_head"),
        {"architectures": ["LlamaRewardModel"]},
        human,
        chat=False,
    ),
    "Eurus": Case(
        {"regression_head.weight": (1, H)},
        last("regression_head"),
        {"architectures": ["EurusRewardModel"]},
        inst,
        architecture="mistral",
        chat=False,
    ),
    "Beaver reward": Case({"score_head.weight": (1, H)}, normal((1.5, 2)), BEAVER, beaver, chat=False, special=STATS),
    "Beaver cost": Case(
        {"score_head.weight": (1, H)},
        normal((1.5, 2), cost=True),
        BEAVER | {"score_type": "cost"},
        beaver,
        chat=False,
        special=STATS,
    ),
    "Beaver, config alone": Case(wb("score_head", 1), normal((9, 3)), BEAVER, beaver, chat=False),
    "Starling": Case(
        V_HEAD, last("v_head"), {"architectures": ["LlamaForSequenceClassification"]}, prefix="transformer."
    ),
    "Athene": Case(
        V_HEAD,
        last("v_head"),
        {"architectures": ["CustomAutoModelForSequenceClassification"]},
        tokens=("<cls>",),
        cls="<cls>",
        append="<cls>",
    ),
    "OASST": Case(
        wb("out_proj", 1),
        last("out_proj", True),
        {**OASST, "pooling": "last"},
        oasst,
        prefix="gpt_neox.",
        architecture="gpt_neox",
        tokens=("<|prompter|>", "<|assistant|>"),
        chat=False,
    ),
    "OASST, mean": Case(
        wb("out_proj", 1),
        lambda t, h, j: t["out_proj.weight"] @ h.mean(0) + t["out_proj.bias"],
        {**OASST, "pooling": "mean"},
        oasst,
        prefix="gpt_neox.",
        architecture="gpt_neox",
        tokens=("<|prompter|>", "<|assistant|>"),
        chat=False,
    ),
    "InternLM2": Case(
        V_HEAD,
        last("v_head"),
        INTERN,
        chatml,
        tokens=("<|reward|>",),
        append="<|reward|>",
        chat=False,
        rename=internlm,
    ),
    "B": Case(
        MLP,
        layered("score.0", "score.2", torch.relu),
        {
            "architectures": ["Qwen2ForRewardModel"],
            "auto_map": {"AutoModel": "modeling_qwen2_rm.Qwen2ForRewardModel"},
        },
        architecture="qwen2",
    ),
    "ArmoRM": Case(
        {
            "regression_layer.weight": (A, H),
            "reward_transform_matrix": (A, A),
            "gating.logit_scale": (1,),
            **wb("gating.layers.0", 8),
            **wb("gating.layers.1", 8, 8),
            **wb("gating.layers.2", 8, 8),
            **wb("gating.layers.3", A, 8),
        },
        armo,
        {
            "architectures": ["LlamaForRewardModelWithGating"],
            "num_objectives": A,
            "gating_temperature": 10,
            "gating_n_hidden": 3,
            "gating_hidden_dim": 8,
        },
    ),
    "QRM, Llama": Case(
        {"regression_layer.weight": (A * 4, H), "reward_transform_matrix": (A, A)}
        | gate_shapes((0, 3, 6, 9), (2, 5, 8), 8, A),
        qrm((0, 3, 6, 9), (2, 5, 8), 4, True, 10),
        {"architectures": ["LlamaForRewardModelWithGating"]},
    ),
    "QRM, Gemma": Case(
        {"regression_layer.weight": (A * 4, H)} | gate_shapes((0, 4, 8, 11), (2, 6, 10), 8, A),
        qrm((0, 4, 8, 11), (2, 6, 10), 4, False, 1),
        architecture="gemma2",
    ),
    "URM": Case(
        {"score.weight": (2 * A, H)} | wb("weights.fc.0", H) | wb("weights.fc.2", H) | wb("weights.fc.4", A),
        urm,
        {"architectures": ["LlamaForSequenceClassificationWithNormal_Weights"]},
    ),
    "LDL": Case(
        {
            **wb("regression_layer.network.0", 8),
            **wb("regression_layer.network.2", 8, 8),
            **wb("regression_layer.network.4", 40, 8),
            **wb("gating_layer.network.0", 8),
            **wb("gating_layer.network.3", 8, 8),
            **wb("gating_layer.network.6", 4, 8),
        },
        ldl,
        {"num_objectives": 40, "softmax": False},
        prefix="",
        architecture="gemma2",
    ),
}


def write(folder, case, seed=0):
    """The folder as it is published, and what to compute from."""
    tokenizer = toys.byte_tokenizer(chat=toys.CHAT if case.chat else None)
    tokenizer.add_tokens([AddedToken(t, special=True) for t in case.tokens], special_tokens=True)
    if case.cls:
        tokenizer.cls_token = case.cls
    base = toys.backbone(case.architecture, seed=seed)
    chance = torch.Generator().manual_seed(seed)
    head = {name: torch.randn(shape, generator=chance) for name, shape in case.shapes.items()} | case.special
    for name in head:
        if "running_var" in name:
            head[name] = head[name].abs() + 0.5
    own = {name: t.clone() for name, t in base.state_dict().items()}
    own = {case.prefix + name: t for name, t in (case.rename(own) if case.rename else own).items()}
    own["lm_head.weight"] = torch.randn(270, H, generator=chance)
    files = [own, head] if case.split else [own | head]
    folder.mkdir()
    tokenizer.save_pretrained(folder)
    for tensors, name in zip(files, ["model", "value_head"], strict=False):
        contiguous = {key: t.contiguous() for key, t in tensors.items()}
        save_file(contiguous, folder / f"{name}.safetensors", metadata={"format": "pt"})
    config = {k: v for k, v in base.config.to_dict().items() if k not in ("id2label", "label2id", "architectures")}
    if case.append and "InternLM2" in str(case.config):
        config["reward_token_id"] = tokenizer.convert_tokens_to_ids(case.append)
    (folder / "config.json").write_text(json.dumps({**config, **case.config}))
    return tokenizer, base, head


def tokens(case, tokenizer, turns):
    """Ids of turns, in which only what the layout writes is a control token, and the prompt's last place."""
    marked = [(r, f"\ue000{i}\ue001") for i, (r, _) in enumerate(turns)]
    text = (case.text or chat)(tokenizer, marked)
    plain = [c.strip() if case.text in (None, openrlhf) else c for _, c in turns]
    ids, prompt, rest = [], 0, text
    for i, content in enumerate(plain):
        before, _, rest = rest.partition(f"\ue000{i}\ue001")
        ids += tokenizer(before, add_special_tokens=False)["input_ids"]
        if i == len(plain) - 1:
            opening = tokenizer(before[before.rfind("<|im_end|>") :], add_special_tokens=False)["input_ids"]
            prompt = len(ids) - len(opening)
        ids += tokenizer(content, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids += tokenizer(rest, add_special_tokens=False)["input_ids"]
    return ids + ([tokenizer.convert_tokens_to_ids(case.append)] if case.append else []), prompt


@torch.no_grad()
def expected(case, written, turns):
    tokenizer, base, head = written
    ids, prompt = tokens(case, tokenizer, turns)
    return ids, float(case.score(head, base(input_ids=torch.tensor([ids])).last_hidden_state[0], prompt))


def example(turns, answer):
    return Example(tuple(Message(r, c) for r, c in turns), answer)


def close(got, wanted):
    return got == pytest.approx(wanted, abs=1e-5 * max(1, *map(abs, wanted)))


@pytest.mark.parametrize("name", CASES)
def test_a_published_layout_loads_and_scores_as_its_tensors_say(name, tmp_path):
    case = CASES[name]
    written = write(tmp_path / "skywork-prm-not-what-it-says", case)
    model = karat.load(str(tmp_path / "skywork-prm-not-what-it-says"))
    wanted = [expected(case, written, [*turns, ("assistant", answer)]) for turns, answer in ALL]
    examples = [example(*one) for one in ALL]
    assert [list(r.sequence.ids) for r in model.renderer(examples)] == [ids for ids, _ in wanted]
    values = [value for _, value in wanted]
    assert len({round(v, 4) for v in values}) == len(values), "the toy tells texts apart"
    alone = [next(iter(model.score_many([e], strict=True))).value for e in examples]
    together = [r.value for r in model.score_many(examples, strict=True)]
    turned = [r.value for r in model.score_many(examples[::-1], strict=True)][::-1]
    for got in (alone, together, turned):
        assert close(got, values)
    for side in ("left", "right"):
        for pad in (0, model.parts.tokenizer.eos_token_id):
            engine = PaddedEngine(PaddedForward(model.parts.backbone, side=side, pad_id=pad))
            assert close([r.value for r in LocalModel(model.parts, engine).score_many(examples)], values)


@pytest.mark.parametrize("name", CASES)
def test_a_head_that_is_not_whole_is_an_error(name, tmp_path):
    """Lost, of another width, or with a stranger beside it: never a new head of random numbers."""
    case = CASES[name]
    first = next(iter(case.shapes))
    for number, shapes in enumerate(
        (
            {n: s for n, s in case.shapes.items() if n != first},
            {**case.shapes, first: (*case.shapes[first][:-1], case.shapes[first][-1] + 1)},
            {**case.shapes, "adapter.gate.weight": (1, H)},
        )
    ):
        broken = Case(**{**case.__dict__, "shapes": shapes})
        write(tmp_path / f"m{number}", broken)
        with pytest.raises(KaratError) as caught:
            karat.load(str(tmp_path / f"m{number}"))
        text = str(caught.value)
        assert "\n" not in text and len(text) < 700 and "Traceback" not in text, text


# Options and what is told


def test_scale_and_weights_are_options(tmp_path):
    write(tmp_path / "m", CASES["A3, value_head"])
    raw = karat.load(str(tmp_path / "m")).score("2+2?", ["4"])[0].value
    scaled = karat.load(str(tmp_path / "m"), scale=(1.5, 2.0)).score("2+2?", ["4"])[0].value
    assert scaled == pytest.approx((raw - 1.5) / 2, abs=1e-6)
    with pytest.raises(BadInput, match="deviation above 0"):
        karat.load(str(tmp_path / "m"), scale=(0, 0))


def test_as_another_kind_of_answers_it_is_read_the_same(tmp_path):
    write(tmp_path / "m", CASES["Beaver cost"])
    one, other = (karat.load(str(tmp_path / "m"), **given) for given in ({}, {"kind": "outcome"}))
    assert other.spec.kind == "outcome" and other.spec.output == (-1.0,)
    assert one.score("2+2?", ["4"])[0].value == other.score("2+2?", ["4"])[0].value


def test_a_reward_token_is_appended_once_and_survives_a_cut(tmp_path):
    tokenizer, *_ = write(tmp_path / "m", CASES["InternLM2"])
    model = karat.load(str(tmp_path / "m"))
    text = model.renderer.text(example(PROMPTS[0], "four"))
    value = model.score("2+2?", ["four"])[0].value
    for finished in (text, text + "<|reward|>"):
        assert model.score_text(finished).value == pytest.approx(value, abs=1e-6)
    cut = karat.load(str(tmp_path / "m"), max_length=80, over_length="cut_prompt")
    (rendered,) = cut.renderer([example([("user", "long " * 40)], "four")])
    reward = tokenizer.convert_tokens_to_ids("<|reward|>")
    assert rendered.truncated and rendered.sequence.ids[-1] == reward and len(rendered.sequence.ids) <= 80
    with pytest.raises(Refused, match="no token of this tokenizer"):
        karat.load(str(tmp_path / "m"), append="ab")


def test_objectives_of_a_gated_family_sum_to_the_value(tmp_path):
    for name in ("QRM, Llama", "URM", "LDL"):
        write(tmp_path / name, CASES[name])
        (found,) = karat.load(str(tmp_path / name)).score("2+2?", ["four"])
        assert math.fsum(found.contributions.values()) == pytest.approx(found.value, rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("name", ["A5", "B", "InternLM2", "Beaver cost"])
def test_training_goes_on_from_a_published_head(name, tmp_path):
    """Before its first step it scores as the model that it starts from, and what is saved does so too."""
    write(tmp_path / "m", CASES[name])
    wanted = [r.value for r in karat.load(str(tmp_path / "m")).score("2+2?", ANSWERS[:2])]
    parts = checkpoint.start(tmp_path / "m", RewardSpec(kind="bradley_terry"))
    assert [r.value for r in LocalModel(parts).score("2+2?", ANSWERS[:2])] == pytest.approx(wanted, rel=1e-6)
    checkpoint.save(parts, tmp_path / "out", golden_values)
    again = [r.value for r in karat.load(str(tmp_path / "out")).score("2+2?", ANSWERS[:2])]
    assert again == pytest.approx(wanted, rel=1e-6)
