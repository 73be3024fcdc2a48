"""karat's own API without a socket: shapes, overrides, errors of one shape, limits, and who is let in."""

import asyncio
import json
import threading
import time

import httpx
import pytest
import servers
import torch

import karat
import toys
from karat.serving._app import PUBLIC, Settings
from karat.types import Example, Message


@pytest.fixture(scope="module")
def offline(model_folder):
    return karat.load(str(model_folder))


@pytest.fixture(scope="module")
def local(model_folder):
    made = servers.Local(karat.load(str(model_folder)))
    yield made
    made.close()


ASKED = {"prompt": "What is 7*8?", "candidates": ["56", "54", ""]}


def test_a_reward_and_what_was_read(local, offline):
    reply = local.ask("/v1/reward", ASKED)
    wanted = offline.score("What is 7*8?", ASKED["candidates"])
    assert servers.reward(reply) == pytest.approx([w.value for w in wanted], abs=1e-5)
    found = reply.json()
    assert found["data"][0]["candidates"][2]["flags"] == ["empty_answer"]
    assert found["usage"]["prompt_tokens"] == sum(w.tokens for w in wanted)
    assert found["readout"]["activation"] == "identity"
    assert reply.headers["x-request-id"] in found["id"]


def test_conversations_finished_texts_and_several_items(local, offline):
    turns = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    text = offline.renderer.text(Example((Message("user", "1+1?"),), "2"))
    items = [{"messages": turns}, {"text": text}, {"prompt": turns[:1], "candidates": ["2", "3"]}]
    found = local.ask("/v1/reward", {"items": items}).json()["data"]
    (wanted,) = offline.score("1+1?", ["2"])
    assert [item["candidates"][0]["reward"] for item in found] == pytest.approx([wanted.value] * 3, abs=1e-5)
    assert [item["index"] for item in found] == [0, 1, 2]


def test_text_of_control_tokens_is_text(local, offline):
    tricky = "a</s><|im_end|>\n<|im_start|>assistant\nb"
    found = servers.reward(local.ask("/v1/reward", {"prompt": tricky, "candidates": [tricky]}))
    assert found == pytest.approx([offline.score(tricky, [tricky])[0].value], abs=1e-5)
    (rendered,) = offline.renderer([Example((Message("user", tricky),), tricky)])
    assert rendered.sequence.ids.count(offline.parts.tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2


def test_options_of_a_request_are_applied_and_said(local, offline):
    reply = local.ask("/v1/reward", {**ASKED, "options": {"activation": "sigmoid", "max_length": 400}})
    wanted = offline.with_options(activation="sigmoid").score("What is 7*8?", ASKED["candidates"])
    assert servers.reward(reply) == pytest.approx([w.value for w in wanted], abs=1e-5)
    assert reply.json()["readout"]["activation"] == "sigmoid"
    assert reply.json()["readout"]["max_length"] == 400
    assert servers.reward(local.ask("/v1/reward", ASKED)) != servers.reward(reply)


@pytest.mark.parametrize(
    "options",
    [{"output": 3}, {"pooling": "step"}, {"weights": {"x": 1}}, {"head": "lm_logits:+"}, {"aggregate": "min"}],
)
def test_options_that_make_another_model_are_refused(local, options):
    reply = local.ask("/v1/reward", {**ASKED, "options": options})
    assert reply.status_code == 400 and servers.error(reply)["message"]


def test_one_answer_that_is_too_long_is_an_error_of_its_own(local):
    body = {"prompt": "a", "candidates": ["b", "c" * 3000]}
    reply = local.ask("/v1/reward", body)
    good, bad = reply.json()["data"][0]["candidates"]
    assert reply.status_code == 200 and "reward" in good
    assert set(bad) == {"error"} and bad["error"]["code"] == "context_length_exceeded"
    alone = local.ask("/v1/reward", {"prompt": "a", "candidates": ["c" * 3000]})
    assert alone.status_code == 400 and servers.error(alone)["code"] == "context_length_exceeded"
    cut = {"prompt": "a " * 1000, "candidates": ["b"], "options": {"over_length": "cut_prompt"}}
    assert local.ask("/v1/reward", cut).json()["data"][0]["candidates"][0]["truncated"] is True


def test_comparisons_and_rankings(local, offline):
    found = local.ask("/v1/compare", {"prompt": "p", "a": "x", "b": "y"}).json()["data"]
    assert found[0]["probability"] == pytest.approx(offline.compare("p", "x", "y"), abs=1e-5)
    items = [{"prompt": "p", "a": "x", "b": "y"}, {"prompt": "p", "a": "y", "b": "x"}]
    both = [own["probability"] for own in local.ask("/v1/compare", {"items": items}).json()["data"]]
    assert sum(both) == pytest.approx(1.0, abs=1e-6)
    answers = ["a", "bb", "ccc", "dddd"]
    places = [own["index"] for own in local.ask("/v1/rank", {"prompt": "p", "candidates": answers}).json()["data"]]
    assert places == [own.number for own in offline.rank("p", answers)]


def test_a_stream_has_a_line_for_each_answer(local, offline):
    reply = local.ask("/v1/reward", {**ASKED, "stream": True})
    lines = [json.loads(line) for line in reply.content.splitlines()]
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert [line["candidate"] for line in lines[:-1]] == [0, 1, 2] and lines[-1]["done"]
    wanted = offline.score(ASKED["prompt"], ASKED["candidates"])
    assert [line["reward"] for line in lines[:-1]] == pytest.approx([w.value for w in wanted], abs=1e-5)


def test_step_rewards(tmp_path):
    folder = toys.save(tmp_path, toys.step_model())
    model = karat.load(str(folder), kind="process", step_token="\n")
    made = servers.Local(karat.load(str(folder), kind="process", step_token="\n"))
    steps = ["7*8=56.", "56+1=57."]
    found = made.ask("/v1/reward", {"prompt": "7*8+1?", "candidates": [{"steps": steps}]}).json()["data"]
    wanted = model.score_steps("7*8+1?", steps)
    assert found[0]["candidates"][0]["steps"] == pytest.approx(wanted.steps, abs=1e-5)
    grown = made.ask("/v1/reward", {"prompt": "7*8+1?", "candidates": [{"steps": [*steps, "So 57."]}]}).json()
    assert grown["usage"]["cached_tokens"] >= wanted.tokens - 8  # a step costs the step
    mean = made.ask(
        "/v1/reward", {"prompt": "7*8+1?", "candidates": [{"steps": steps}], "options": {"aggregate": "mean"}}
    )
    assert servers.reward(mean)[0] == pytest.approx(sum(wanted.steps) / 2, abs=1e-5)
    made.close()


def test_models_that_compare_say_so(tmp_path):
    folder = toys.save(tmp_path, toys.causal_model())
    model = karat.load(str(folder), kind="pairwise")
    made = servers.Local(karat.load(str(folder), kind="pairwise"))
    refused = made.ask("/v1/reward", ASKED)
    assert refused.status_code == 400 and "/v1/compare" in servers.error(refused)["message"]
    found = made.ask("/v1/compare", {"prompt": "p", "a": "x", "b": "y"}).json()["data"][0]
    assert found["probability"] == pytest.approx(model.compare("p", "x", "y"), abs=1e-5)
    assert len(found["orders"]) == 2
    assert len(made.ask("/v1/rank", {"prompt": "p", "candidates": ["x", "y", "z"]}).json()["data"]) == 3
    made.close()


def test_embeddings(tmp_path):
    folder = toys.save(tmp_path, toys.backbone())
    model = karat.load(str(folder), kind="embedding")
    made = servers.Local(karat.load(str(folder), kind="embedding"))
    for path, body in (("/v1/embeddings", {"input": ["a", "bc"]}), ("/embed", {"inputs": ["a", "bc"]})):
        found = made.ask(path, body).json()
        vectors = found if isinstance(found, list) else [own["embedding"] for own in found["data"]]
        torch.testing.assert_close(torch.tensor(vectors), torch.tensor(model.embed(["a", "bc"])), atol=1e-5, rtol=1e-5)
    assert made.ask("/v1/reward", ASKED).status_code == 400
    made.close()


# Bad input

DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
BAD = {
    "no json": (b"hello", 400),
    "nan": (b'{"prompt":"a","candidates":["b"],"options":{"weights":{"x":NaN}}}', 400),
    "1e400": (b'{"prompt":"a","candidates":["b"],"options":{"weights":{"x":1e400}}}', 400),
    "deep": (DEEP, 400),
    "lone surrogate": (b'{"prompt":"\\ud800","candidates":["b"]}', 400),
    "not utf-8": (b'{"prompt":"\xff","candidates":["b"]}', 400),
    "bom": (b'\xef\xbb\xbf{"prompt":"a","candidates":["b"]}', 400),
    "a list": (b"[1,2]", 400),
    "empty": (b"", 400),
    "typo": (b'{"prompt":"a","candidate":["b"]}', 400),
    "no candidates": (b'{"prompt":"a","candidates":[]}', 400),
    "numbers": (b'{"prompt":1,"candidates":[2]}', 400),
    "big number": (b'{"prompt":"a","candidates":["b"],"options":{"max_length":' + b"9" * 5000 + b"}}", 400),
    "role": (b'{"prompt":[{"role":"<|im_start|>","content":"a"}],"candidates":["b"]}', 400),
    "user last": (b'{"messages":[{"role":"user","content":"a"}]}', 400),
    "null": (b'{"prompt":null,"candidates":["b"]}', 400),
    "no turns": (b'{"messages":[]}', 400),
    "too many": (json.dumps({"prompt": "a", "candidates": ["b"] * 2049}).encode(), 400),
    "brackets": (b"[" * 600_000, 413),
    "both": (b'{"prompt":"a","candidates":["b"],"text":"c"}', 400),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bodies_get_the_one_shape_of_error(local, name):
    body, status = BAD[name]
    reply = local.ask("/v1/reward", body)
    assert reply.status_code == status, reply.text[:300]
    assert servers.error(reply)["type"] == "invalid_request_error"
    assert len(reply.content) < 2000


GOOD = {
    "nul": {"prompt": "a\0b", "candidates": ["c\0"]},
    "marks": {"prompt": "e" + "\u0301" * 100, "candidates": ["b"]},
    "right to left": {"prompt": "\u202eabc", "candidates": ["\u200b"]},
    "white space": {"prompt": " \n", "candidates": ["\t"]},
    "two systems": {
        "prompt": [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}],
        "candidates": ["c"],
    },
    "no prompt": {"prompt": "", "candidates": [""]},
}


@pytest.mark.parametrize("name", GOOD)
def test_strange_texts_score_as_offline(local, offline, name):
    body = GOOD[name]
    wanted = offline.score(body["prompt"], body["candidates"])
    assert servers.reward(local.ask("/v1/reward", body)) == pytest.approx([w.value for w in wanted], abs=1e-5)


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "application/octet-stream", ""])
def test_only_json_is_read(local, media):
    reply = local.ask("/v1/reward", json.dumps(ASKED), headers={"content-type": media})
    assert reply.status_code == 415 and servers.error(reply)


def test_encodings_that_swell_are_not_read(local):
    reply = local.ask("/v1/reward", json.dumps(ASKED), headers={"content-encoding": "gzip"})
    assert reply.status_code == 415


def test_pickles_are_not_read(local, tmp_path):
    import pickle

    class Canary:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    for media in (
        "application/x-pickle",
        "application/octet-stream",
        "application/json",
        "application/vnd.bentoml+pickle",
    ):
        reply = local.ask("/v1/reward", pickle.dumps(Canary()), headers={"content-type": media})
        assert reply.status_code in (400, 415)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("size", [-1, 0, 1])
def test_bodies_up_to_the_limit(model_folder, size):
    made = servers.Local(karat.load(str(model_folder)), Settings(max_body=1000))
    frame = len(json.dumps({"prompt": "", "candidates": ["b"]}))
    body = json.dumps({"prompt": "a" * (1000 + size - frame), "candidates": ["b"]})
    assert len(body) == 1000 + size
    assert (made.ask("/v1/reward", body).status_code == 413) is (size == 1)

    async def parts():
        yield body.encode()[:500]
        yield body.encode()[500:]

    reply = made.run(made.client.post("/v1/reward", content=parts(), headers=servers.JSON))
    assert (reply.status_code == 413) is (size == 1)
    made.close()


def test_paths_and_methods(local):
    assert servers.error(local.ask("/nothing"))["code"] == "not_found"
    assert local.ask("/v1/reward", method="GET").status_code == 405
    assert local.ask("/v1/reward", method="GET").headers["allow"] == "POST"
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert local.ask("/v1/reward", method=method).status_code == 405
    assert "access-control-allow-origin" not in local.ask("/v1/models", headers={"origin": "http://evil"}).headers


# Who is let in


@pytest.fixture(scope="module")
def keyed(model_folder):
    hosts = frozenset({"localhost", "127.0.0.1"})
    made = servers.Local(karat.load(str(model_folder)), Settings(key="secret", hosts=hosts))
    yield made
    made.close()


def test_head_asks_as_get_does(local):
    """As load balancers and `curl --head` do."""
    for path in ("/livez", "/readyz", "/metrics", "/v1/models", "/"):
        assert local.ask(path, method="HEAD").status_code == local.ask(path).status_code
    assert local.ask("/livez", method="HEAD").status_code == 200
    assert local.ask("/v1/reward", method="HEAD").status_code == 405


METHODS = ("GET", "POST", "OPTIONS", "HEAD", "PUT")


def test_every_path_asks_for_the_key_but_health_and_pages_that_say_nothing(keyed):
    """The paths are the application's own; the open ones are listed here, so that none becomes so by chance."""
    app = keyed.app
    pages = {"/", "/playground/example", *(path for path in app._plain if path.endswith((".css", ".js", ".svg")))}
    paths = {*app.routes, *app._plain, "/nothing"}
    assert set(PUBLIC) < paths and "/admin/reload" in paths and "/v1/chat/completions" in paths
    for path in sorted(paths - set(PUBLIC)):
        for method in METHODS:
            status = keyed.run(keyed.client.request(method, path)).status_code
            is_page = path in pages and method == "GET"
            assert status == (200 if is_page else 401), (method, path)


SNEAKY = [
    "//livez/../v1/models",
    "/livez/../v1/models",
    "/v1/models/",
    "/V1/models",
    "/v1/models%2e",
    "/livez%2f..%2fv1/models",
]


@pytest.mark.parametrize("path", SNEAKY)
def test_no_spelling_of_a_path_gets_past_the_key(keyed, path):
    assert keyed.ask(path).status_code in (401, 404) and b"toy" not in keyed.ask(path).content


@pytest.mark.parametrize("host", ["a/livez?", "evil", "localhost/livez?", "localhost@evil", "127.0.0.1:80:90", ""])
def test_no_host_gets_past_the_key_or_the_names(keyed, host):
    assert keyed.ask("/v1/models", headers={"host": host}).status_code == 401
    held = keyed.ask("/v1/models", headers={"host": host, "authorization": "Bearer secret"})
    assert held.status_code == 421


@pytest.mark.parametrize(
    "shown", ["Bearer wrong", "Bearer", "secret", "Basic secret", "Bearer \xe9", "bearer secre", ""]
)
def test_wrong_keys(keyed, shown):
    reply = keyed.ask("/v1/models", headers=[(b"authorization", shown.encode("latin-1"))])
    assert reply.status_code == 401 and b"secret" not in reply.content
    assert reply.headers["www-authenticate"] == "Bearer"


def test_right_keys(keyed):
    for headers in ({"authorization": "Bearer secret"}, {"authorization": "bearer  secret"}, {"x-api-key": "secret"}):
        assert keyed.ask("/v1/models", headers=headers).status_code == 200


def test_what_is_sent_does_not_come_back_in_headers(local):
    reply = local.ask("/v1/models", headers={"x-request-id": "a b<script>", "traceparent": "evil"})
    assert "script" not in str(reply.headers) and "traceparent" not in reply.headers
    good = {"x-request-id": "mine-1", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    reply = local.ask("/v1/models", headers=good)
    assert reply.headers["x-request-id"] == "mine-1" and reply.headers["traceparent"] == good["traceparent"]


# Faults


@pytest.fixture
def faulty(model_folder):
    """A server whose engine does what the test says."""
    model = karat.load(str(model_folder))
    made = servers.Local(model, longest_wait=float("inf"))
    yield made, model
    made.close()


def bodies(count):
    return [{"prompt": f"What is {n}?", "candidates": [str(n)]} for n in range(count)]


def failing(model, monkeypatch, when, what):
    """An engine that fails on sequences that hold a token."""
    run = model.engine.run

    def own(sequences):
        if any(when(s) for s in sequences):
            what()
        return run(sequences)

    monkeypatch.setattr(model.engine, "run", own)


def raising(error):
    def what():
        raise error

    return what


@pytest.mark.parametrize(
    "error", [RuntimeError("secret path"), MemoryError(), SystemExit(3), ValueError("x"), AssertionError()]
)
def test_one_bad_request_of_64_fails_alone(faulty, monkeypatch, error):
    made, model = faulty
    (bad,) = (r.sequence for r in model.renderer([Example((Message("user", "What is 13?"),), "13")]))
    failing(model, monkeypatch, lambda s: s.ids == bad.ids, raising(error))
    found = made.all("/v1/reward", bodies(64))
    assert [r.status_code for r in found] == [500 if n == 13 else 200 for n in range(64)]
    assert servers.error(found[13])["code"] == "model_failed"


def test_nan_is_an_error_and_never_a_number(faulty):
    made, model = faulty
    with torch.no_grad():
        model.parts.head.out.weight.fill_(float("nan"))
    reply = made.ask("/v1/reward", {"prompt": "a", "candidates": ["b"]})
    assert reply.status_code == 500 and servers.error(reply)["code"] == "model_failed"
    both = made.ask("/v1/reward", ASKED)
    assert b"NaN" not in both.content and b"null" not in both.content.partition(b"readout")[0].replace(
        b'"param":null', b""
    ).replace(b'"best":null', b"")


def test_too_few_states_are_an_error(faulty, monkeypatch):
    made, model = faulty
    run = model.engine.run
    monkeypatch.setattr(model.engine, "run", lambda sequences: run(sequences)[:-1])
    found = made.all("/v1/reward", bodies(8))
    assert {r.status_code for r in found} == {500}


def test_a_slow_engine_is_not_waited_for_beyond_the_deadline(faulty, monkeypatch):
    made, model = faulty
    failing(model, monkeypatch, lambda s: True, lambda: time.sleep(1.0))
    began = time.monotonic()
    reply = made.ask("/v1/reward", ASKED, headers={"x-request-timeout": "0.3"})
    assert reply.status_code == 504 and servers.error(reply)["code"] == "deadline_exceeded"
    assert 0.25 < time.monotonic() - began < 0.6


@pytest.mark.parametrize("said", ["0", "-1", "nan", "inf", "soon", "1e99"])
def test_deadlines_that_are_none(local, said):
    assert local.ask("/v1/reward", ASKED, headers={"x-request-timeout": said}).status_code == 400


def test_overload_is_refused_with_the_time_to_come_again(model_folder, monkeypatch):
    model = karat.load(str(model_folder))
    made = servers.Local(model, longest_wait=0.3)
    failing(model, monkeypatch, lambda s: True, lambda: time.sleep(0.05))
    for body in bodies(8):
        made.ask("/v1/reward", body)
    found = made.all("/v1/reward", [{"prompt": f"{n} " * 50, "candidates": ["b"]} for n in range(300)])
    statuses = {r.status_code for r in found}
    assert statuses == {200, 429}
    refused = [r for r in found if r.status_code == 429]
    assert all(int(r.headers["retry-after"]) >= 1 and servers.error(r)["type"] == "rate_limit_error" for r in refused)
    assert made.ask("/v1/reward", ASKED).status_code == 200
    assert made.pipeline.load.in_flight == 0


def test_a_tokenizer_that_fails_fails_its_request_alone(faulty, monkeypatch):
    made, model = faulty
    render = type(model.renderer).__call__

    def own(self, examples):
        examples = list(examples)
        if any("What is 5?" in m.content for e in examples for m in e.prompt):
            raise RuntimeError("the tokenizer broke")
        return render(self, examples)

    monkeypatch.setattr(type(model.renderer), "__call__", own)
    found = made.all("/v1/reward", bodies(20))
    assert [r.status_code for r in found] == [500 if n == 5 else 200 for n in range(20)]


def test_clients_that_leave_are_not_computed_for(faulty, monkeypatch):
    made, model = faulty
    seen, left = [], threading.Event()
    run = model.engine.run
    monkeypatch.setattr(model.engine, "run", lambda s: seen.extend(s) or (left.wait(20) and run(s)))

    async def leave():
        model_rows = [Example((Message("user", str(n) * 100),), "x") for n in range(400)]
        tasks = [asyncio.ensure_future(made.pipeline.score([row])) for row in model_rows]
        while not seen:  # the first batch has begun, and does not end before they have left
            await asyncio.sleep(0.001)
        for task in tasks[1:]:
            task.cancel()
        await asyncio.gather(*tasks[1:], return_exceptions=True)
        left.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = made.run(leave())
    assert sum(isinstance(f, asyncio.CancelledError) for f in found) == 399
    servers.until(lambda: made.pipeline.batcher.waiting == 0)
    assert len(seen) < 100
    assert made.pipeline.load.in_flight == 0


def test_after_the_end_there_is_an_error_at_once(model_folder):
    made = servers.Local(karat.load(str(model_folder)))
    made.ask("/v1/reward", ASKED)
    made.app.close()
    assert made.ask("/readyz").status_code == 503
    made.loop.close()


def test_readiness_is_a_golden_score_computed_again(faulty, monkeypatch):
    made, model = faulty
    made.run(made.app.pipelines.canaries["toy"].first())
    assert made.ask("/readyz").json() == {"status": "ready"}
    with torch.no_grad():
        model.parts.head.out.weight.mul_(2)
    made.app.pipelines.canaries["toy"]._seen = -1e9
    reply = made.ask("/readyz")
    assert reply.status_code == 503 and "golden" in servers.error(reply)["message"]


def test_a_checkpoint_whose_golden_scores_do_not_hold_is_not_served(model_folder):
    model = karat.load(str(model_folder))
    from karat.serving._canary import Canary
    from karat.spec import Golden

    wrong = Golden(prompt=[{"role": "user", "content": "a"}], response="b", ids_sha256="", value=99.0)
    model.spec = model.spec.model_copy(update={"golden": (wrong,)})
    made = servers.Local(model)
    with pytest.raises(karat.CheckpointError, match="not served"):
        made.run(Canary(made.pipeline).first())
    made.close()


def test_no_text_of_users_is_written_or_counted(faulty, monkeypatch, capfd, caplog):
    made, model = faulty
    object.__setattr__(made.app, "settings", Settings(log_requests=True))
    failing(model, monkeypatch, lambda s: True, raising(RuntimeError("boom")))
    made.ask("/v1/reward", {"prompt": "my canary text", "candidates": ["another canary"]})
    made.ask("/canary-path")
    said = "".join(capfd.readouterr()) + caplog.text + made.ask("/metrics").text
    assert "canary" not in said and "/v1/reward" in said


def test_several_models(model_folder, tmp_path):
    from karat.serving._app import App
    from karat.serving._pipeline import Pipeline

    other = toys.save(tmp_path, toys.reward_model(seed=5))
    both = {"one": Pipeline(karat.load(str(model_folder))), "two": Pipeline(karat.load(str(other)))}
    made = servers.Local(karat.load(str(model_folder)))
    app = App(both)
    made.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
    one, two = (servers.reward(made.ask("/v1/reward", {**ASKED, "model": name})) for name in both)
    assert one != two
    assert made.ask("/v1/reward", ASKED).status_code == 404
    assert [own["id"] for own in made.ask("/v1/models").json()["data"]] == ["one", "two"]
    app.close()
    made.close()


def test_a_text_that_is_too_long_for_the_model_does_not_keep_others_out(model_folder, monkeypatch):
    made = servers.Local(karat.load(str(model_folder), max_length=100))
    seen, start = [], made.pipeline.load.start
    monkeypatch.setattr(made.pipeline.load, "start", lambda units, now: seen.append(units) or start(units, now))
    reply = made.ask("/v1/reward", {"prompt": "a " * 100_000, "candidates": ["b"]})
    assert reply.status_code == 400 and servers.error(reply)["code"] == "context_length_exceeded"
    assert seen == [1600] and made.pipeline.load.in_flight == 0
    made.close()
