"""Every published layout by karat: right without an option, or refused with a question whose answer makes it right."""

import pytest
import test_families as whole
import torch
from layout_base import by_transformers, named, scalar
from layouts import LAYOUTS
from safetensors.torch import load_file, save_file
from test_families import CASES, Case, layered

import karat
from karat.types import KaratError, Refused


def close(wanted):
    return pytest.approx(list(wanted), abs=1e-5 * max(1.0, *map(abs, wanted)))


NEW = list(LAYOUTS)[len(CASES) :]  # those of test_families are asked more there


@pytest.mark.full
@pytest.mark.parametrize("name", NEW)
def test_a_layout_is_right_or_asks_and_is_right_with_the_answer(name, tmp_path):
    layout = LAYOUTS[name]
    folder = tmp_path / "math-shepherd-not-what-it-says"
    written = layout.write(folder)
    if layout.answer or layout.refused:
        with pytest.raises(Refused) as caught:
            karat.load(str(folder))
        assert layout.says in str(caught.value) and "\n" not in str(caught.value)
    if layout.refused:
        for kind in ("pairwise", "process", "bradley_terry"):
            with pytest.raises(KaratError, match=layout.says):
                karat.load(str(folder), kind=kind)
        return
    assert written.by(karat.load(str(folder), **layout.answer)) == close(written.wanted)


def test_there_are_as_many_layouts_as_the_table_promises():
    assert len(LAYOUTS) >= 35
    assert all(layout.says for layout in LAYOUTS.values() if layout.answer or layout.refused)


@pytest.mark.full
def test_negative_control_generic_loaders_give_other_numbers_without_a_word(tmp_path):
    """The figures of docs/families.md: of these folders, karat misreads none."""
    counts = {"right": 0, "refused": 0, "silently wrong": 0, "not run": 0}
    for number, layout in enumerate(LAYOUTS.values()):
        counts[by_transformers(tmp_path / str(number), layout.write(tmp_path / str(number)))] += 1
    assert sum(counts.values()) == len(LAYOUTS)
    assert counts["silently wrong"] >= 35 and counts["right"] <= 20, counts


UNIVERSAL = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n{}"
)
NO_REFERENCE = "\n\n###\n\nThe reference answer is: There is no reference answer for this question."
A_REFERENCE = "\n\n###\n\nThe reference answer is: 4"


@pytest.mark.parametrize(("reference", "asked"), [(NO_REFERENCE, ""), (A_REFERENCE, A_REFERENCE)])
def test_universal_prm_is_read_by_its_name_alone(tmp_path, reference, asked):
    """Its tensors are those of Qwen2.5-Math-RM, which is read without a sigmoid, and in the text of its template."""
    raw = layered("score.0", "score.2", torch.relu)

    def text(tokenizer, said):
        (_, prompt), (_, answer) = said
        return UNIVERSAL.format(prompt + reference, answer) + "</s>"

    case = Case(
        whole.MLP,
        lambda t, h, j: torch.sigmoid(0.01 * raw(t, h, j)),
        named("Qwen2ForRewardModel"),
        text,
        architecture="qwen2",
    )
    written = scalar(case, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    # The sigmoid of toys' own numbers is 0 or 1.
    tensors |= {name: 0.01 * t for name, t in tensors.items() if name.startswith("score.2")}
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    model = karat.load(str(tmp_path / "m"), spec="universal-prm")
    prompt = "2+2?" + asked
    (found,) = model.score(prompt, ["four"], strict=True)
    assert [found.value] == close(written.wanted)
    assert 0.01 < found.value < 0.99
    plain = karat.load(str(tmp_path / "m"))
    assert plain.spec.activation == "identity" and abs(plain.score(prompt, ["four"])[0].value - found.value) > 1e-3
