"""Every kind of model behind the same paths, nothing said to anyone else, and bodies of any shape."""

import asyncio
import functools
import json
import random
import sys
import threading
import time

import pytest
import servers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import karat
import toys
from karat.rewards import ensemble
from karat.serving._app import routes
from karat.types import Example, Message

ASKED = {"prompt": "What is 7*8?", "candidates": ["56", "54", ""]}


def test_a_model_that_is_made_of_others(model_folder, tmp_path):
    other = toys.save(tmp_path / "other", toys.reward_model(seed=4))
    models = [karat.load(str(folder)) for folder in (model_folder, other)]
    members = tuple(
        ensemble.Member(name=str(n), model=ensemble.Inner(path=str(folder)))
        for n, folder in enumerate((model_folder, other))
    )
    both = ensemble.Ensemble(ensemble.EnsembleSpec(members=members), models)
    wanted = both.score(ASKED["prompt"], ASKED["candidates"])
    made = servers.Local(both)
    assert servers.reward(made.ask("/v1/reward", ASKED)) == pytest.approx([w.value for w in wanted], abs=1e-5)
    found = made.ask("/v1/compare", {"prompt": "p", "a": "x", "b": "y"}).json()["data"][0]
    assert found["probability"] == pytest.approx(both.compare("p", "x", "y"), abs=1e-5)
    assert made.ask("/v1/reward", {**ASKED, "options": {"activation": "sigmoid"}}).status_code == 400
    assert len(made.all("/v1/reward", [ASKED] * 20)) == 20
    made.run(made.app.pipelines.canaries["toy"].first())
    assert made.ask("/readyz").status_code == 200
    made.close()


def test_comparisons_of_many_callers_meet_in_one_forward(tmp_path):
    folder = toys.save(tmp_path, toys.causal_model())
    model = karat.load(str(folder), kind="pairwise")
    made = servers.Local(karat.load(str(folder), kind="pairwise"))
    bodies = [{"prompt": "p", "candidates": [f"{n}a", f"{n}b", f"{n}c"]} for n in range(12)]
    found = [[own["index"] for own in reply.json()["data"]] for reply in made.all("/v1/rank", bodies)]
    assert found == [[own.number for own in model.rank("p", body["candidates"])] for body in bodies]
    counts = made.pipeline.batcher.counts
    assert counts.batches < counts.pieces / 6
    made.run(made.app.pipelines.canaries["toy"].first())
    made.close()


OPENED = []


def _watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo") and threading.current_thread().name != "driver":
        OPENED.append((event, arguments[1:]))


def test_nothing_is_asked_of_anyone_else(model_folder):
    sys.addaudithook(_watch)
    made = servers.Local(karat.load(str(model_folder)))
    OPENED.clear()
    for text in ("http://169.254.169.254/latest", "file:///etc/passwd", "data:image/png;base64,AA=="):
        made.ask("/v1/reward", {"prompt": text, "candidates": [text]})
        turns = [{"role": "user", "content": text, "image_url": text}, {"role": "assistant", "content": text}]
        made.ask("/classify", {"messages": turns, "mm_processor_kwargs": {"url": text}})
    assert OPENED == []
    made.close()


PAYLOADS = ["{{ 7*7 }}", "{{ ''.__class__.__mro__ }}", "{% for x in range(10**9) %}{% endfor %}", "${7*7}", "#{7*7}"]


@pytest.mark.parametrize("text", PAYLOADS)
def test_templates_in_texts_are_texts(model_folder, text):
    made = servers.Local(karat.load(str(model_folder)))
    model = karat.load(str(model_folder))
    found = servers.reward(made.ask("/v1/reward", {"prompt": text, "candidates": [text]}))
    assert found == pytest.approx([model.score(text, [text])[0].value], abs=1e-5)
    for path in ("/v1/rerank", "/rerank"):
        body = {"query": text, "documents": [text], "chat_template": text, "chat_template_kwargs": {"x": text}}
        assert made.ask(path, body).json()["results"][0]["relevance_score"] == pytest.approx(found[0], abs=1e-5)
    made.close()


@pytest.fixture(scope="module")
def local(model_folder):
    made = servers.Local(karat.load(str(model_folder)))
    yield made
    made.close()


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8"), max_size=20),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "steps", "text", "prompt", "a", "b"]), inner, max_size=3),
    ),
    max_leaves=8,
)
NAMES = sorted(
    {name for own in routes().values() for route in own if route.body for name in route.body.model_fields} | {"zzz"}
)
PATHS = sorted(path for path, own in routes().items() if own[0].body and not own[0].keyed)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), body=st.dictionaries(st.sampled_from(NAMES), TREES, max_size=5))
def test_bodies_of_any_shape_are_answered(local, path, body):
    reply = local.ask(path, json.dumps(body))
    assert reply.status_code in (200, 400), (path, body, reply.text)
    if reply.status_code == 400:
        servers.error(reply)
    assert b"NaN" not in reply.content and b"Infinity" not in reply.content


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=200), path=st.sampled_from(PATHS))
def test_bytes_of_any_kind_are_answered(local, path, raw):
    assert local.ask(path, raw).status_code == 400


def test_many_callers_at_random_are_never_crossed(model_folder):
    """Lengths are drawn, some leave and some are wrong: everyone who stays gets their own."""
    model = karat.load(str(model_folder))
    made = servers.Local(karat.load(str(model_folder)), longest_wait=float("inf"))
    chance = random.Random(0)
    prompts = [f"{n} " * chance.randint(1, 60) for n in range(150)]
    wanted = [model.score(prompt, ["x", "y" * (n % 7)]) for n, prompt in enumerate(prompts)]
    bodies = [{"prompt": prompt, "candidates": ["x", "y" * (n % 7)]} for n, prompt in enumerate(prompts)]
    found = made.all("/v1/reward", [*bodies, {"prompt": "long", "candidates": ["z" * 4000]}])
    assert found.pop().status_code == 400
    for reply, right in zip(found, wanted, strict=True):
        assert servers.reward(reply) == pytest.approx([r.value for r in right], abs=1e-5)
    made.close()


KINDS = (
    "fails",
    "runs out of memory",
    "ends the thread",
    "gives too few",
    "gives NaN",
    "is slow",
    "leaves",
    "is late",
    "is wrong",
)


FAILED = {"is late": 504, "is wrong": 400} | dict.fromkeys(
    ("fails", "ends the thread", "gives too few", "gives NaN"), 500
)


def faulty_engine(run, marks):
    """An engine that does what the marks of sequences say."""

    def engine(sequences):
        kinds = {marks.get(s.ids) for s in sequences}
        time.sleep(0.02 * ("is slow" in kinds))
        if "fails" in kinds:
            raise ValueError("x")
        if "ends the thread" in kinds:
            raise SystemExit(1)
        if "runs out of memory" in kinds and len(sequences) > 1:
            raise MemoryError
        found = run(sequences)
        for states, sequence in zip(found, sequences, strict=True):
            if marks.get(sequence.ids) == "gives NaN":
                states["last"] = states["last"] * float("nan")
        return found[:-1] if "gives too few" in kinds else found

    return engine


async def ask(made, n, kind, pause):
    body = {"prompt": f"What is {n}?", "candidates": [str(n) if kind != "is wrong" else 7]}
    headers = {"x-request-timeout": "0.000001"} if kind == "is late" else {}
    call = asyncio.ensure_future(made.client.post("/v1/reward", json=body, headers=headers))
    if kind == "leaves":
        await asyncio.sleep(pause)
        call.cancel()
        return None
    return await call


def chaos(made, model, truth, seed):
    """One round: requests of many kinds at the same time, each of which has to get what it should and nothing else."""
    chance = random.Random(seed)
    kinds = [chance.choice((*KINDS, *["is well"] * 8)) for _ in range(30)]

    async def everyone():
        return await asyncio.gather(*(ask(made, n, kind, chance.random() / 100) for n, kind in enumerate(kinds)))

    marks = {truth[n][1]: kind for n, kind in enumerate(kinds)}
    model.engine.run = faulty_engine(functools.partial(type(model.engine).run, model.engine), marks)
    try:
        found = made.run(everyone())
    finally:
        del model.engine.run
        model.engine.clear()
    for n, (kind, reply) in enumerate(zip(kinds, found, strict=True)):
        if kind != "leaves":
            assert reply.status_code == FAILED.get(kind, 200), (seed, kind, reply.text)
            if kind not in FAILED:
                assert servers.reward(reply) == pytest.approx([truth[n][0]], abs=1e-5), (seed, kind)


def rounds(folder, seeds):
    model = karat.load(str(folder))
    rows = [Example((Message("user", f"What is {n}?"),), str(n)) for n in range(30)]
    ids = [r.sequence.ids for r in model.renderer(rows)]
    truth = [(r.value, own) for r, own in zip(model.score_many(rows), ids, strict=True)]
    made = servers.Local(model, longest_wait=float("inf"))
    for seed in seeds:
        chaos(made, model, truth, seed)
        servers.until(lambda: made.pipeline.batcher.waiting == 0)
        assert servers.reward(made.ask("/v1/reward", {"prompt": "What is 0?", "candidates": ["0"]})) == pytest.approx(
            [truth[0][0]], abs=1e-5
        )
    assert made.pipeline.load.in_flight == 0
    made.close()


def test_faults_of_many_kinds_at_once_stay_with_those_who_have_them(model_folder):
    rounds(model_folder, range(8))


@pytest.mark.full
def test_a_hundred_rounds_of_faults(model_folder):
    rounds(model_folder, range(100, 200))
