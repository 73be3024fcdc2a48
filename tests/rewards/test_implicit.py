"""Implicit rewards against log-probabilities by transformers alone."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import karat
import toys
from karat.types import BadInput, Example, Refused

PROMPT, STEPS = "2+2?", ("2 + 2 = 4", "so 4\n", "4")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    return [toys.save(folder / str(seed), toys.causal_model(seed=seed)) for seed in (0, 1)]


def token_logs(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return logs[range(len(ids) - 1), ids[1:]]


def wanted(models, beta):
    """Ratios of the answer's tokens, and which step each belongs to; the turn's end belongs to the last."""
    tokenizer = toys.byte_tokenizer()
    turn = [{"role": "user", "content": PROMPT}]
    head = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    start = tokenizer(head, add_special_tokens=False)["input_ids"]
    gaps = ["", "\n\n", "\n\n"]  # before a step, and of it
    parts = [tokenizer(g + s, add_special_tokens=False)["input_ids"] for g, s in zip(gaps, STEPS, strict=True)]
    tail = tokenizer("<|im_end|>\n", add_special_tokens=False)["input_ids"]
    ids = [*start, *(t for part in parts for t in part), *tail]
    owner = [n for n, part in enumerate(parts) for _ in part] + [2] * len(tail)
    ratios = beta * (token_logs(models[0], ids) - token_logs(models[1], ids))[len(start) - 1 :]
    return ratios, [float(ratios[[o == n for o in owner]].sum()) for n in range(3)]


def test_sums_by_step_and_answer(models):
    model = karat.load(str(models[0]), kind="implicit", reference=str(models[1]), beta=0.1)
    tokens, steps = wanted(models, 0.1)
    found = model.score_steps(PROMPT, STEPS)
    assert found.steps == pytest.approx(steps, abs=1e-5)
    assert found.value == pytest.approx(float(tokens.sum()), abs=1e-5)
    (whole,) = model.score(PROMPT, ["\n\n".join(STEPS)])
    assert whole.value == pytest.approx(found.value, abs=1e-5) and len(whole.steps) == 1
    both = list(model.score_many([Example.of_steps(PROMPT, STEPS), Example.of_steps("1?", ["1"])]))
    assert both[0].steps == pytest.approx(steps, abs=1e-5)


def test_every_token(models):
    model = karat.load(str(models[0]), kind="implicit", reference=str(models[1]), pooling="token")
    tokens, _ = wanted(models, 1.0)
    assert model.score_steps(PROMPT, STEPS).steps == pytest.approx(tokens.tolist(), abs=1e-5)


def test_a_model_over_itself_is_zero(models):
    model = karat.load(str(models[0]), kind="implicit", reference=str(models[0]))
    assert model.score(PROMPT, ["4"])[0].value == 0.0


def test_without_a_reference_it_is_the_log_probability(models):
    tokens, _ = wanted(models, 1.0)
    alone = karat.load(str(models[0]), kind="implicit").score_steps(PROMPT, STEPS).value
    other = karat.load(str(models[1]), kind="implicit").score_steps(PROMPT, STEPS).value
    assert alone < 0 and alone - other == pytest.approx(float(tokens.sum()), abs=1e-4)


def test_a_comparison_is_dpo_s(models):
    model = karat.load(str(models[0]), kind="implicit", reference=str(models[1]), beta=0.5)
    a, b = (r.value for r in model.score(PROMPT, ["4", "5"]))
    assert model.compare(PROMPT, "4", "5") == pytest.approx(float(torch.tensor(a - b).sigmoid()), abs=1e-6)


def test_references_that_cannot_be(models, tmp_path):
    with pytest.raises(Refused, match="is no folder"):
        karat.load(str(models[0]), kind="implicit", reference=str(tmp_path / "none"))
    other = toys.save(tmp_path / "t", toys.causal_model(), toys.byte_tokenizer(bos="<bos>"))
    with pytest.raises(Refused, match="another tokenizer"):
        karat.load(str(models[0]), kind="implicit", reference=str(other))
    with pytest.raises(Refused, match="kind implicit, and language_weight, need a causal"):
        karat.load(str(toys.save(tmp_path / "rm")), kind="implicit")
    with pytest.raises(BadInput, match="beta"):
        karat.load(str(models[0]), kind="implicit", beta=0)


def test_never_a_matrix_of_tokens_by_vocabulary(models):
    from karat.models.heads import ROWS, Head, log_probabilities
    from karat.spec import Head as HeadSpec

    head, seen = Head(HeadSpec(outputs=50), 8), []
    head.register_forward_hook(lambda _, __, out: seen.append(len(out)))
    states, ids = torch.randn(200, 8), torch.randint(50, (200,))
    found = log_probabilities(head, states, ids)
    assert torch.allclose(found, head(states).log_softmax(-1)[range(200), ids], atol=1e-6)
    assert max(seen[:-1]) <= ROWS
