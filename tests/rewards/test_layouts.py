"""Every published layout by karat: right without an option, or refused with a question whose answer makes it right."""

import pytest
from layout_base import by_transformers
from layouts import LAYOUTS
from test_families import CASES

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
