"""Rewards by log-ratios, learnt from outcomes and from pairs: one step by transformers, and what is left behind."""

import kit
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoModelForCausalLM, AutoTokenizer

import karat
import toys
from karat.types import BadInput, Refused

BETA = 0.5
ROWS = [
    {"prompt": "2+2?", "response": "4", "label": 1.0},
    {"prompt": "2+2?", "response": "five,\n\nI think", "label": 0.0},
    {"prompt": "3+1?", "response": "four", "label": 0.8},
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return toys.save(tmp_path_factory.mktemp("policy") / "m", toys.causal_model())


def ratio(model, reference, tokenizer, prompt, response):
    """beta times the summed log-ratio of the answer's tokens, by whole logits."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    before = text.index(response)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    start = len(tokenizer(text[:before], add_special_tokens=False)["input_ids"])

    def log_probability(some):
        logits = some(input_ids=ids).logits[0].log_softmax(-1)
        return logits[start - 1 : -1].gather(1, ids[0, start:, None]).sum()

    with torch.no_grad():
        ground = log_probability(reference)
    return BETA * (log_probability(model) - ground)


def one_step(policy, folder, data, by_hand):
    """Weights after one step of plain descent, by karat and by hand."""
    plain = {"optim": "sgd", "lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 0.0, "max_steps": 1}
    spec = {"beta": BETA}
    trained = kit.train(
        folder, policy, data, kind="implicit", spec=spec, trainer=plain, learning_rate=0.5, batch_size=8
    )
    model, reference = (AutoModelForCausalLM.from_pretrained(policy) for _ in range(2))
    frozen = model.get_output_embeddings().weight
    loss = by_hand(model, reference, AutoTokenizer.from_pretrained(policy))
    weights = [p for p in model.parameters() if p is not frozen]
    for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        weight.data -= 0.5 * slope
    return trained, float(loss.detach()), model.state_dict()


def test_a_step_from_outcomes_is_that_of_cross_entropy(policy, tmp_path):
    def by_hand(model, reference, tokenizer):
        leads = torch.stack([ratio(model, reference, tokenizer, r["prompt"], r["response"]) for r in ROWS])
        return binary_cross_entropy_with_logits(leads, torch.tensor([r["label"] for r in ROWS]))

    data = kit.write(tmp_path / "d.jsonl", ROWS)
    trained, loss, wanted = one_step(policy, tmp_path, data, by_hand)
    assert kit.losses(trained)[0] == pytest.approx(loss, abs=1e-6)
    saved = AutoModelForCausalLM.from_pretrained(trained.folder).state_dict()
    assert set(saved) == set(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(saved[name], tensor, atol=1e-5, rtol=1e-4)


def test_a_step_from_pairs_is_dpos(policy, tmp_path):
    pair = {"prompt": "2+2?", "chosen": "4", "rejected": "five, I think"}

    def by_hand(model, reference, tokenizer):
        first, second = (ratio(model, reference, tokenizer, pair["prompt"], pair[s]) for s in ("chosen", "rejected"))
        return -torch.nn.functional.logsigmoid(first - second)

    data = kit.write(tmp_path / "d.jsonl", [pair])
    trained, loss, wanted = one_step(policy, tmp_path, data, by_hand)
    assert kit.losses(trained)[0] == pytest.approx(loss, abs=1e-6) == pytest.approx(0.693147, abs=1e-5)
    saved = AutoModelForCausalLM.from_pretrained(trained.folder).state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(saved[name], tensor, atol=1e-5, rtol=1e-4)


def test_outcomes_teach_rewards_of_steps(policy, tmp_path):
    """Wrong answers say "bad" in a step of their own: that step's reward falls most."""
    rows = [
        {"prompt": f"{i}?", "steps": ["first", "bad" if i % 2 else "good", "last"], "label": float(1 - i % 2)}
        for i in range(24)
    ]
    data = kit.write(tmp_path / "d.jsonl", rows)
    trained = kit.train(
        tmp_path, policy, data, kind="implicit", epochs=6, spec={"beta": BETA}, learning_rate=3e-3, eval="0.25"
    )
    assert kit.losses(trained)[-1] < 0.4 < kit.losses(trained)[0]
    model = karat.load(str(trained.folder))
    good, bad = (model.score_steps("30?", ["first", word, "last"]).steps for word in ("good", "bad"))
    gaps = [a - b for a, b in zip(good, bad, strict=True)]
    assert gaps[1] == max(gaps) and gaps[1] > 0.5 and abs(gaps[0]) < 1e-4
    assert trained.result.name == "outcome"


def test_a_new_model_has_no_reference(tmp_path):
    data = kit.write(tmp_path / "d.jsonl", ROWS)
    with pytest.raises(BadInput, match="give reference=''"):
        kit.train(tmp_path, "scratch:hidden=32,layers=1,vocab=300", data, kind="implicit")
    spec = {"reference": ""}
    trained = kit.train(tmp_path, "scratch:hidden=32,layers=1,vocab=300", data, kind="implicit", spec=spec)
    assert karat.load(str(trained.folder)).score("2+2?", ["4"])[0].value < 0  # a log-probability
    with pytest.raises(BadInput, match="method=full"):
        kit.train(tmp_path / "l", "scratch", data, kind="implicit", method="lora")


def test_an_adapter_alone_is_trained(policy, tmp_path):
    """It is the language model's, as PEFT reads it; its base is the reference."""
    data = kit.write(tmp_path / "d.jsonl", ROWS)
    settings = {"kind": "implicit", "method": "lora", "spec": {"beta": BETA}, "learning_rate": 1e-2, "epochs": 4}
    trained = kit.train(tmp_path, policy, data, **settings)
    base, other = (AutoModelForCausalLM.from_pretrained(policy) for _ in range(2))
    adapted = PeftModel.from_pretrained(other, trained.folder)
    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    wanted = float(ratio(adapted, base, tokenizer, "2+2?", "4").detach())
    assert karat.load(str(trained.folder)).score("2+2?", ["4"])[0].value == pytest.approx(wanted, abs=1e-5)
    assert abs(wanted) > 0.01
    assert not list(trained.folder.glob("model*.safetensors"))


@pytest.mark.parametrize("lora", [{"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "lm_head"]}])
def test_an_adapter_leaves_the_head_alone(policy, tmp_path, lora):
    data = kit.write(tmp_path / "d.jsonl", ROWS)
    with pytest.raises(BadInput, match="leave them out of the LoRA options"):
        kit.train(tmp_path, policy, data, kind="implicit", method="lora", spec={"beta": BETA}, lora=lora)


def test_an_adapter_that_changes_the_head_is_not_read_as_if_it_did_not(policy, tmp_path):
    told = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"])
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(policy), told)
    wrapped.save_pretrained(tmp_path)
    toys.byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(Refused, match="changes the language head"):
        karat.load(str(tmp_path), kind="implicit", reference=str(policy), beta=BETA)
