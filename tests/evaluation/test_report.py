"""The page: one file, no network, no text of a user that becomes markup."""

import json
from html.parser import HTMLParser

import pytest
from test_evaluation import PAIRS, by_table, constant, number, outcomes, pair, ranking

from karat.evaluation._heat import heats
from karat.evaluation._report import DataNote, Report, html, picture, verdict, write
from karat.evaluation.base import evaluate
from karat.types import Example, Pair, Reward, Stepped, Unscored

EVIL = "</script><img src=x onerror=alert(1)><!-- {{ 7*7 }} \u2028 'quoted\" "


class Page(HTMLParser):
    """Collects what a browser would load, run and show."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.loads, self.handlers, self.scripts, self.shown, self._inside = [], [], [], [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self._inside = tag
        if tag == "script":
            self.scripts.append([dict(attrs).get("type", "text/javascript"), ""])

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1][1] += data
        else:
            self.shown.append(data)


def evil_result():
    table = {f"good {EVIL}": -1.0, "bad": 2.0, "long": f"over 512 tokens {EVIL}", "fine": 3.0}
    items = [
        pair(f"q {EVIL}", f"good {EVIL}", "bad", origin=f"d.jsonl:1 {EVIL}"),
        pair("b", "fine", "bad"),
        pair("c", "long", "bad"),
    ]
    return evaluate(by_table(table), items)


@pytest.fixture(scope="module")
def page():
    report = Report(
        title=f"Title {EVIL}",
        results=[evil_result(), evaluate(number, outcomes(6, 4, 0))],
        losses=[(0, 0.7), (1, float("nan")), (2, 0.5)],
        evaluations={f"{EVIL} loss": [(2, 0.6)], "accuracy": [(0, 0.5), (2, 0.7)]},
        data=[DataNote(f"set {EVIL}", 1234, {f"reason {EVIL}": 5}, cut=6, tied=7, note=EVIL)],
        settings={f"name {EVIL}": EVIL, "seed": 0},
    )
    return html(report)


def test_nothing_is_loaded_and_nothing_runs_but_the_two_scripts(page):
    parsed = Page(page)
    assert parsed.loads == [] and parsed.handlers == []
    assert not {"img", "link", "iframe", "object", "embed", "base"} & set(parsed.tags)
    assert [kind for kind, _ in parsed.scripts].count("text/javascript") == 2
    assert "@import" not in page and "url(" not in page.split("</style>")[0]
    assert "default-src 'none'" in page


def test_every_text_of_a_user_is_shown_as_text(page):
    shown = " ".join(Page(page).shown)
    for text in ("Title", "good", "q", "over 512 tokens", "set", "reason", "name"):
        assert f"{text} {EVIL.strip()}" in shown
    assert "{{ 7*7 }}" in shown and "<!-- 49" not in shown


def test_charts_are_json_without_a_way_out(page):
    specs = [body for kind, body in Page(page).scripts if kind == "application/json"]
    assert len(specs) == 4 + 5 + 2
    for body in specs:
        assert "$schema" not in json.loads(body) and "<" not in body and "NaN" not in body


def test_the_library_is_inlined_once_and_the_page_has_every_section(page):
    assert page.count("window.vegaEmbed=") == 1
    shown = " ".join(Page(page).shown)
    for text in ("Figures", "Not scored", "Training", "Data", "Settings", "Best of n", "Reliability", "1,234"):
        assert text in shown
    assert 'role="img" aria-label="Margins.' in page


def test_writing(tmp_path):
    result = evaluate(number, PAIRS)
    path = write(Report("t", [result]), tmp_path / "report.html")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert picture(result, tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("scorer", [constant, number])
def test_every_kind_of_result_has_a_page(scorer):
    results = [evaluate(scorer, [ranking("a", [2, 1], [1, 2])]), evaluate(scorer, outcomes(2, 1, 0)[:1])]
    assert "Not scored" in html(Report("t", results))


def test_the_verdict_says_so_if_the_null_is_not_beaten():
    items = [pair(str(i), f"{'x' * i} 1", "y 0") for i in range(40)]
    backwards = [Pair(p.rejected, p.chosen) for p in items]
    assert "it beats its null" in verdict(evaluate(number, items + [pair(f"z{i}", "a 1", "bbb 0") for i in range(30)]))
    assert "does worse than its null" in verdict(evaluate(number, backwards))
    assert "does not beat its null" in verdict(evaluate(number, items[2:]))


def solution(steps, labels, first=None):
    context = {} if first is None else {"first_error": first}
    return Stepped((Example.of_steps(f"q {EVIL}", steps, context),), (labels,), origin=f"s.jsonl {EVIL}")


def test_steps_are_coloured_by_their_rewards_and_the_first_drop_is_marked():
    """The second solution's drop comes too early, so it is shown first; what has no reward is not shown."""
    items = [
        solution([f"right {EVIL}", "slip", "more"], (1.0, 0.0, None), 1),
        solution(["fine", "fine too"], (1.0, 1.0), -1),
        solution(["lost", "gone"], (1.0, 0.0), 1),
    ]
    given = iter([Reward(0.2, steps=(0.9, 0.2, 0.4)), Reward(0.3, steps=(0.5, 1.0)), Unscored("no")])
    result = evaluate(lambda examples: [next(given) for _ in examples], items, output="probability")
    missed, found = heats(result)
    assert (
        missed.says == "first drop at step 1; no step is wrong"
        and found.says == "first drop at step 2; first wrong step 2"
    )
    assert [shade.strength for shade in (*missed.shades, *found.shades)] == [0, 55, 44, 33, 11]
    assert [shade.drop for shade in (*missed.shades, *found.shades)] == [True, False, False, True, False]
    assert [shade.label for shade in found.shades] == ["labelled right", "labelled wrong", ""]
    assert [shade.right for shade in found.shades] == [True, False, False]
    parsed = Page(html(Report(title="t", results=[result])))
    shown = "".join(parsed.shown)
    assert (
        "img" not in parsed.tags
        and parsed.handlers == []
        and f"right {EVIL}" in shown
        and shown.count("first drop ·") == 2
    )


def test_logits_have_their_colour_by_probability_and_pairs_have_none():
    items = [solution(["a", "b"], (1, -1)), solution(["a", "b"], (1, 1))]
    rewards = iter([Reward(-3.0, steps=(3.0, -3.0)), Reward(0.0, steps=(50.0, 0.0))])
    both = heats(evaluate(lambda examples: [next(rewards) for _ in examples], items))
    assert [[shade.strength for shade in heat.shades] for heat in both] == [[55, 0], [50, 50]]
    assert heats(evil_result()) == []
