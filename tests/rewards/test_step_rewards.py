"""Step rewards of published read-outs, each against a computation of a few lines from the checkpoint's own tensors."""

import json
import math
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification

import karat
import toys
from karat.engine.padded import PaddedEngine, PaddedForward
from karat.models.heads import aggregated, rewards_of
from karat.rewards._local import LocalModel
from karat.spec import RewardSpec
from karat.types import BadInput, Example, Refused, Reward, Unscored

PROMPT, STEPS = "Tom has 3 + 4?", ("3 + 4 = 7", "so it is - 7.\nDone", "7")
OTHERS = [("1?", ("one", "two")), (PROMPT, STEPS[:1]), (PROMPT, (*STEPS, "more")), ("ки?", ("a ки b", "+"))]
TAGS = ["<extra_0>", "<tag>"]


@dataclass
class Layout:
    """How a published model stores its head, writes its text and reads it."""

    options: dict[str, Any]  # what a user says
    ids: Any  # (tokenizer, prompt, steps) → ids and positions that are read
    numbers: Any  # (tensors, states, logits) → outputs [S, k]
    reward: Any  # outputs [S, k] → rewards [S]
    aggregate: Any = min
    head: dict[str, tuple[int, ...]] = field(default_factory=dict)  # tensors beside the backbone
    causal: bool = False


def enc(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def chat(tokenizer, *turns):
    return tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in turns], tokenize=False)


def appended(mark, lead="", bos=True):
    """Each step and mark by itself, read at the mark's last token."""

    def build(tokenizer, prompt, steps):
        ids, reads = [tokenizer.bos_token_id] * bos + enc(tokenizer, prompt + lead), []
        for step in steps:
            ids += enc(tokenizer, step) + enc(tokenizer, mark)
            reads.append(len(ids) - 1)
        return ids, reads

    return build


def extra_0(tokenizer, prompt, steps):
    text = chat(tokenizer, ("user", prompt), ("assistant", "".join(s + "<extra_0>" for s in steps)))
    ids = enc(tokenizer, text)
    return ids, [i for i, t in enumerate(ids) if t == tokenizer.convert_tokens_to_ids("<extra_0>")]


def shepherd(tokenizer, prompt, steps):
    text, ends = f"{prompt} ", []
    for n, step in enumerate(steps, 1):
        text += f"Step {n}: {step} ки"
        ends.append(len(text.encode()))  # a byte is a token, behind BOS
        text += "\n"
    return tokenizer(text)["input_ids"], ends


def turns(tokenizer, prompt, steps):
    said = [("user", f"{prompt} {steps[0]}"), *(("user", s) for s in steps[1:])]
    ids, reads = [], []
    for n in range(1, len(said) + 1):
        both = [t for turn in said[:n] for t in (turn, ("assistant", "+"))]
        ids = enc(tokenizer, chat(tokenizer, *both))
        tail = len(ids) - 1 - ids[::-1].index(enc(tokenizer, "+")[0])
        reads.append(tail - 1)
    return ids, reads


def step_ends(tokenizer, prompt, steps):
    ids, reads = [tokenizer.bos_token_id, *enc(tokenizer, f"Question:\n{prompt}\nAnswer:\n")], []
    for step in steps:
        ids += enc(tokenizer, step)
        reads.append(len(ids) - 1)
    return ids, reads


def linear(name, bias=True):
    def numbers(tensors, states, logits):
        return states @ tensors[f"{name}.weight"].T + (tensors[f"{name}.bias"] if bias else 0)

    return numbers


def mlp(tensors, states, logits):
    hidden = torch.relu(states @ tensors["score.0.weight"].T + tensors["score.0.bias"])
    return hidden @ tensors["score.2.weight"].T + tensors["score.2.bias"]


def of_tokens(*tokens):
    return lambda tensors, states, logits: logits[:, [toys.byte_tokenizer().convert_tokens_to_ids(t) for t in tokens]]


def softmax(*weights):
    return lambda z: torch.softmax(z, -1) @ torch.tensor(weights, dtype=z.dtype)


H = toys.SIZES["hidden_size"]
QUESTION = "Question:\n{{ messages[0].content }}\nAnswer:"  # Jinja drops a template's last line end
ENDS = {"step_token": "", "template": QUESTION, "prompt_end": "\n", "outputs": 3}
LAYOUTS = {
    "TRL": Layout(
        {}, appended("\n"), linear("score"), softmax(0, 1), head={"score.weight": (2, H), "score.bias": (2,)}
    ),
    "PURE": Layout(
        {"step_token": "\n\n", "output": (-1, 1)},
        appended("\n\n"),
        linear("score"),
        softmax(-1, 1),
        head={"score.weight": (2, H), "score.bias": (2,)},
    ),
    "Qwen2.5-Math-PRM": Layout(
        {"layout": "chat", "step_token": "<extra_0>"},
        extra_0,
        mlp,
        softmax(0, 1),
        head={"score.0.weight": (H, H), "score.0.bias": (H,), "score.2.weight": (2, H), "score.2.bias": (2,)},
    ),
    "Math-Shepherd": Layout(
        {"step_token": "ки", "step_join": "text", "step_template": "Step {n}: {step} ", "prompt_end": " "}
        | {"head": "lm_logits:+,-", "output": 0, "between_steps": "\n"},
        shepherd,
        of_tokens("+", "-"),
        softmax(1, 0),
        causal=True,
    ),
    "RLHFlow": Layout(
        {"layout": "chat", "step_join": "turns", "step_token": "+", "prompt_end": " ", "pooling": "before_step"}
        | {"head": "lm_logits:+,-", "output": 0, "aggregate": "mean"},
        turns,
        of_tokens("+", "-"),
        softmax(1, 0),
        aggregate=lambda p: math.fsum(p) / len(p),
        causal=True,
    ),
    "Skywork-o1": Layout(
        {"outputs": 1, "prompt_end": "\n"},
        appended("\n", "\n"),
        linear("v_head.summary"),
        lambda z: torch.sigmoid(z[:, 0]),
        head={"v_head.summary.weight": (1, H), "v_head.summary.bias": (1,)},
    ),
    "ReasonEval, validity": Layout(
        ENDS,
        step_ends,
        linear("score_head"),
        softmax(0, 1, 1),
        head={"score_head.weight": (3, H), "score_head.bias": (3,)},
    ),
    "ReasonEval, redundancy": Layout(
        {**ENDS, "output": 1, "aggregate": "max"},
        step_ends,
        linear("score_head", bias=False),
        softmax(0, 1, 0),
        aggregate=max,
        head={"score_head.weight": (3, H)},
    ),
    "OpenAI": Layout(
        {"head": "lm_logits:-,0,1", "output": (0, 1, 1), "aggregate": "prod", "step_token": " <tag> \n"},
        appended(" <tag> \n"),
        of_tokens("-", "0", "1"),
        softmax(0, 1, 1),
        aggregate=math.prod,
        causal=True,
    ),
}


def written(folder, layout, seed=0):
    """A checkpoint in the published layout, by transformers and safetensors alone."""
    tokenizer = toys.byte_tokenizer()
    tokenizer.add_tokens([AddedToken(tag, special=True) for tag in TAGS], special_tokens=True)
    torch.manual_seed(seed)
    model = (toys.causal_model if layout.causal else toys.backbone)(seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    if not layout.causal:
        tensors = {f"model.{name}": t for name, t in tensors.items()}
        tensors |= {name: torch.randn(shape) for name, shape in layout.head.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tokenizer, tensors


@pytest.fixture(params=LAYOUTS)
def published(request, tmp_path):
    layout = LAYOUTS[request.param]
    tokenizer, tensors = written(tmp_path, layout)
    return layout, tokenizer, tensors, tmp_path


@torch.no_grad()
def expected(published, prompt, steps):
    layout, tokenizer, tensors, folder = published
    ids, reads = layout.ids(tokenizer, prompt, steps)
    base = AutoModel.from_pretrained(folder, dtype=torch.float32)
    states = base(input_ids=torch.tensor([ids])).last_hidden_state[0, reads]
    logits = None
    if layout.causal:
        whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        logits = whole(input_ids=torch.tensor([ids])).logits[0, reads]
    return layout.reward(layout.numbers(tensors, states, logits)).tolist()


def test_a_published_layout_scores_as_its_own_tensors_say(published):
    layout, _, _, folder = published
    model = karat.load(str(folder), kind="process", **layout.options)
    asked = [(PROMPT, STEPS), *OTHERS]
    wanted = [expected(published, *one) for one in asked]
    examples = [Example.of_steps(*one) for one in asked]
    alone = [model.score_steps(*one) for one in asked]
    for got in (alone, list(model.score_many(examples)), list(model.score_many(examples[::-1]))[::-1]):
        for reward, steps in zip(got, wanted, strict=True):
            assert isinstance(reward, Reward), reward
            assert reward.steps == pytest.approx(steps, abs=1e-5)
            assert reward.value == pytest.approx(layout.aggregate(reward.steps), abs=1e-12)
    for side in ("left", "right"):
        for pad in (0, 5):
            engine = PaddedEngine(PaddedForward(model.parts.backbone, side=side, pad_id=pad))
            for reward, steps in zip(LocalModel(model.parts, engine).score_many(examples), wanted, strict=True):
                assert reward.steps == pytest.approx(steps, abs=1e-5)


def test_one_forward_is_its_growing_prefixes(published):
    layout, _, _, folder = published
    model = karat.load(str(folder), kind="process", **layout.options)
    whole = model.score_steps(PROMPT, STEPS).steps
    model.engine.clear()
    grown = [model.score_steps(PROMPT, STEPS[: n + 1]) for n in range(len(STEPS))]
    assert [g.steps[-1] for g in grown] == pytest.approx(whole, abs=1e-5)
    if layout.options.get("layout") != "chat":  # there the turn's end has to be computed again
        assert grown[2].tokens - grown[2].cached_tokens == grown[2].tokens - grown[1].tokens


def test_a_finished_text_is_the_same(tmp_path):
    layout = LAYOUTS["Qwen2.5-Math-PRM"]
    tokenizer, _ = written(tmp_path, layout)
    model = karat.load(str(tmp_path), kind="process", **layout.options)
    text = chat(tokenizer, ("user", PROMPT), ("assistant", "".join(s + "<extra_0>" for s in STEPS)))
    assert model.score_text(text).steps == pytest.approx(model.score_steps(PROMPT, STEPS).steps, abs=1e-6)
    assert isinstance(model.score_text("no mark"), Unscored)


def test_what_trl_trains_loads_by_its_kind_alone(tmp_path):
    torch.manual_seed(0)
    folder = toys.save(tmp_path / "m")
    model = AutoModelForTokenClassification.from_config(toys.config(num_labels=2))
    model.save_pretrained(folder)
    ids, reads = appended("\n")(toys.byte_tokenizer(), PROMPT, STEPS)
    with torch.no_grad():
        wanted = torch.softmax(model.eval()(input_ids=torch.tensor([ids])).logits[0, reads], -1)[:, 1]
    assert karat.load(str(folder), kind="process").score_steps(PROMPT, STEPS).steps == pytest.approx(
        wanted.tolist(), abs=1e-6
    )


def test_a_probability_of_zero_stays_at_its_step(tmp_path):
    """A mask of values that are not 0, as the published recipe has it, would move or drop steps."""
    layout = LAYOUTS["TRL"]
    _, tensors = written(tmp_path, layout)
    tensors["score.bias"] = torch.tensor([1e4, 0.0])
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert karat.load(str(tmp_path), kind="process").score_steps(PROMPT, STEPS).steps == (0.0, 0.0, 0.0)


def test_openai_s_scored_sample(data_folder):
    """Probabilities of -1, 0 and 1 and the product that was recorded with them; P(1) alone gives half of it."""
    found = json.loads((data_folder / "prm800k_bon_curves" / "RM-scored-example.json").read_text())
    logs = torch.tensor([[p["-1"], p["0"], p["1"]] for p in found["rating_probs"]], dtype=torch.float64).log()
    spec = RewardSpec(kind="process", activation="softmax", output=(0, 1, 1), aggregate="prod", head={"outputs": 3})
    assert aggregated(spec, rewards_of(spec, logs).tolist()) == pytest.approx(0.09157553704097245, abs=1e-12)
    alone = spec.model_copy(update={"output": 2})
    assert aggregated(alone, rewards_of(alone, logs).tolist()) == pytest.approx(0.0454054, abs=1e-7)


def test_aggregates():
    spec = RewardSpec(kind="process")
    for how, value in {"min": 0.5, "last": 0.8, "mean": 2.2 / 3, "max": 0.9, "prod": 0.36, "sum": 2.2}.items():
        assert aggregated(spec.model_copy(update={"aggregate": how}), [0.9, 0.5, 0.8]) == pytest.approx(value)


# Bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"head": "lm_logits:++,-", "output": 0}, "'\\+\\+' is 2 tokens"),
        ({"head": "lm_logits:#7,#9999", "output": 0}, "token id 9999 is not in the vocabulary of 270"),
        ({"head": "lm_logits:+,-", "output": 2}, "output=2, but the head has 2"),
        ({"head": "lm_logits:+,-", "output": (1, 2, 3)}, "output has 3 weights"),
        ({"head": "lm_logits:+", "activation": "softmax"}, "softmax over the head's one output"),
        ({"head": "lm_logits:+,-"}, "which of the tokens says right"),
        ({"head": "lm_logits:+,-", "output": 0, "aggregate": "median"}, "aggregate"),
        ({"head": "none"}, "head.type"),
        ({}, "no reward head"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, said):
    written(tmp_path, LAYOUTS["OpenAI"])
    with pytest.raises((BadInput, Refused), match=said):
        karat.load(str(tmp_path), kind="process", **options)


def test_a_model_without_a_language_model_head_has_no_logits(tmp_path):
    written(tmp_path, LAYOUTS["TRL"])
    with pytest.raises(Refused, match="no language-model head"):
        karat.load(str(tmp_path), kind="process", head="lm_logits:+,-", output=0)


def test_steps_of_a_model_that_has_none(tmp_path):
    with pytest.raises(Refused, match="one reward for a whole answer"):
        karat.load(str(toys.save(tmp_path / "m"))).score_steps("q", ["a"])


def test_calls_that_cannot_be(tmp_path):
    written(tmp_path, LAYOUTS["TRL"])
    model = karat.load(str(tmp_path), kind="process")
    with pytest.raises(BadInput, match="list of texts"):
        model.score_steps("q", "abc")
    assert "no steps" in model.score_steps("q", []).reason
    assert "empty" in model.score_steps("q", ["a", ""]).reason


MEMORY = """
import sys
from pathlib import Path
import karat, torch
torch.set_num_threads(1)
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
model = karat.load(sys.argv[1], kind="process", head="lm_logits:+,-", output=0)
before = peak()
found = model.score_steps("q", ["abcdefg"] * 510)
assert 4000 < found.tokens <= 4096 and len(found.steps) == 510, found.tokens
print(peak() - before)
"""


@pytest.mark.full
def test_a_long_solution_never_holds_its_tokens_by_the_vocabulary(tmp_path):
    """4,000 tokens by 152,064 in float32 are 2.4 GB."""
    big = {"vocab_size": 152_064, "max_position_embeddings": 4096}
    folder = toys.save(tmp_path / "m", toys.causal_model(**big))
    found = subprocess.run([sys.executable, "-c", MEMORY, folder], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert float(found.stdout) < 300, f"{found.stdout} MiB more"


def test_outputs_are_the_tensors_to_say(tmp_path):
    """Three classes: the last two are no mistake; another number of outputs is refused."""
    written(tmp_path, LAYOUTS["ReasonEval, validity"])
    options = {name: value for name, value in ENDS.items() if name != "outputs"}
    model = karat.load(str(tmp_path), kind="process", **options)
    assert model.spec.head.outputs == 3 and model.spec.output == (0.0, 1.0, 1.0)
    with pytest.raises(Refused, match="outputs=2, but the head"):
        karat.load(str(tmp_path), kind="process", **{**options, "outputs": 2})


def test_what_a_process_reward_is(tmp_path):
    written(tmp_path, LAYOUTS["TRL"])
    for options, output in (({}, "probability"), ({"activation": "identity"}, "logit"), ({"output": (-1, 1)}, "logit")):
        assert karat.load(str(tmp_path), kind="process", **options).output == output


def test_a_row_with_a_text_and_steps_is_read_in_its_steps(tmp_path):
    written(tmp_path, LAYOUTS["TRL"])
    model = karat.load(str(tmp_path), kind="process")
    (found,) = model.score_many([{"prompt": PROMPT, "response": "x y", "steps": ["x", "y"]}])
    assert found.steps == model.score_steps(PROMPT, ["x", "y"]).steps
