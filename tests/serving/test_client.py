"""`karat.connect`: the same methods over HTTP give what the model itself gives, and failures are no numbers."""

import asyncio
import http.server
import json
import pickle
import threading

import numpy as np
import pytest
import servers

import karat
import toys
from karat.rewards import _remote
from karat.types import Example, Message, Refused, Reward, Unscored


@pytest.fixture(scope="module")
def pair(model_folder):
    with servers.threaded(karat.load(str(model_folder))) as url:
        yield karat.connect(url), karat.load(str(model_folder))


def same(found, wanted):
    assert [type(f) for f in found] == [type(w) for w in wanted]
    for f, w in zip(found, wanted, strict=True):
        if isinstance(w, Reward):
            assert f.value == pytest.approx(w.value, abs=1e-5)
            assert (f.tokens, f.truncated, f.flags) == (w.tokens, w.truncated, w.flags)
        else:
            assert (f.reason, f.over_length) == (w.reason, w.over_length)


def test_the_same_results(pair):
    far, near = pair
    assert (far.output, far.at_steps, far.compares) == (near.output, near.at_steps, near.compares)
    rows = [{"prompt": f"{n}?", "response": str(n)} for n in range(100)]
    rows[7] = {"prompt": "x"}
    rows[8] = {"prompt": "a", "response": "b" * 3000}
    rows[9] = {"prompt": "a", "response": ""}
    rows[10] = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    same(list(far.score_many(rows)), list(near.score_many(rows)))
    same(far.score("p", ["a", "b"]), near.score("p", ["a", "b"]))
    assert far.compare("p", "a", "b") == pytest.approx(near.compare("p", "a", "b"), abs=1e-5)
    assert [r.number for r in far.rank("p", ["a", "b", "c"])] == [r.number for r in near.rank("p", ["a", "b", "c"])]
    text = near.renderer.text(Example((Message("user", "p"),), "a"))
    same([far.score_text(text)], [near.score_text(text)])
    same(asyncio.run(far.score_async("p", ["a"])), near.score("p", ["a"]))
    others = [Example((Message("user", "p"),), "a", other=o) for o in ("b", None)]
    same(list(far.compare_many(others)), list(near.compare_many(others)))


def test_half_a_surrogate_pair_is_unscored(pair):
    far, _ = pair
    good, bad = far.score("p", ["a", "\ud83d"])
    assert isinstance(good, Reward) and isinstance(bad, Unscored) and "surrogate" in bad.reason


def test_strict_raises_and_what_is_no_list_is_refused(pair):
    far, _ = pair
    with pytest.raises(Refused):
        far.score("p", ["b" * 3000], strict=True)
    for wrong in ("text", {"prompt": "a", "response": "b"}):
        with pytest.raises(karat.BadInput):
            far.score_many(wrong)
    with pytest.raises(karat.BadInput):
        far.score("p", "text")
    with pytest.raises(Refused, match="whole answer"):
        far.score_steps("p", ["a"])


def test_it_can_be_pickled(pair):
    far, near = pair
    again = pickle.loads(pickle.dumps(far))
    same(again.score("p", ["a"]), near.score("p", ["a"]))


def test_options_go_with_every_request(pair):
    far, near = pair
    own = karat.connect(far.url, activation="sigmoid")
    same(own.score("p", ["a"]), near.with_options(activation="sigmoid").score("p", ["a"]))
    mean = karat.connect(far.url, pooling="mean")
    by_mean = near.with_options(pooling="mean")
    same(mean.score("p", ["a"]), by_mean.score("p", ["a"]))
    assert mean.compare("p", "a", "b") == pytest.approx(by_mean.compare("p", "a", "b"), abs=1e-5)
    assert mean.compare("p", "a", "b") != pytest.approx(near.compare("p", "a", "b"), abs=1e-3)
    same([own.result for own in mean.rank("p", ["a", "b"])], [own.result for own in by_mean.rank("p", ["a", "b"])])
    with pytest.raises(Refused):
        karat.connect(far.url, pooling="step").score("p", ["a"])


def test_steps_and_embeddings(tmp_path):
    steps = toys.save(tmp_path / "steps", toys.step_model())
    near = karat.load(str(steps), kind="process", step_token="\n")
    with servers.threaded(karat.load(str(steps), kind="process", step_token="\n")) as url:
        far = karat.connect(url)
        assert far.score_steps("p", ["a", "b"]).steps == pytest.approx(
            near.score_steps("p", ["a", "b"]).steps, abs=1e-5
        )
    texts = toys.save(tmp_path / "texts", toys.backbone())
    near = karat.load(str(texts), kind="embedding")
    with servers.threaded(karat.load(str(texts), kind="embedding")) as url:
        far = karat.connect(url)
        np.testing.assert_allclose(far.embed(["a", "bc"]), near.embed(["a", "bc"]), atol=1e-5)


ABOUT = {"data": [{"id": "m", "output": "logit", "at_steps": False, "compares": False, "fingerprint": "f"}]}
DONE = {"data": [{"candidates": [{"reward": 1.5, "tokens": 3, "cached_tokens": 0, "truncated": False, "flags": []}]}]}


@pytest.fixture
def scripted(monkeypatch):
    """A server that gives these replies in turn: (status, body, headers)."""
    monkeypatch.setattr(_remote, "WAIT", 0.01)
    replies, seen = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            self._say(200, json.dumps(ABOUT).encode(), {})

        def do_POST(self):
            seen.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self._say(*replies.pop(0))

        def _say(self, status, body, headers):
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", replies, seen
    server.shutdown()
    server.server_close()


def problem(status, code="x"):
    return status, json.dumps({"error": {"message": "said", "code": code}}).encode(), {}


def test_busy_and_broken_servers_are_asked_again(scripted):
    url, replies, seen = scripted
    replies += [problem(429), problem(503), problem(500), (200, json.dumps(DONE).encode(), {})]
    assert karat.connect(url).score("p", ["a"])[0].value == 1.5
    assert len(seen) == 4


def test_after_all_tries_it_is_unscored(scripted):
    url, replies, seen = scripted
    replies += [problem(503)] * 20
    (found,) = karat.connect(url).score("p", ["a"])
    assert found == Unscored("said", failed=True) and len(seen) == _remote.TRIES


def test_what_will_not_be_otherwise_is_asked_once(scripted):
    url, replies, seen = scripted
    replies += [problem(400, "unscored"), problem(400, "refused"), problem(401)]
    far = karat.connect(url)
    assert far.score("p", ["a"]) == [Unscored("said")]
    for _ in range(2):
        with pytest.raises(Refused, match="said"):
            far.score("p", ["a"])
    assert len(seen) == 3


@pytest.mark.parametrize("body", [b"", b"hello", b"[]", b'{"data":[]}', b'{"data":[{"candidates":[{"reward":"x"}]}]}'])
def test_replies_that_are_none_are_no_scores(scripted, body):
    url, replies, _ = scripted
    replies += [(200, body, {})] * 10
    (found,) = karat.connect(url).score("p", ["a"])
    assert isinstance(found, Unscored)


def test_nobody_there(monkeypatch):
    monkeypatch.setattr(_remote, "WAIT", 0.001)
    with pytest.raises(Refused, match="did not answer"):
        karat.connect("http://127.0.0.1:9")
    with pytest.raises(karat.BadInput):
        karat.connect("localhost:8000")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"url": None}, "begins with http"),
        ({"url": "http://localhost:abc"}, "check its host and port"),
        ({"url": "http://localhost:99999"}, "check its host and port"),
        ({"url": "http://localhost:1", "timeout": -1}, "timeout is -1, but it has to be seconds above 0"),
        ({"url": "http://localhost:1", "timeout": "5"}, "timeout is '5'"),
        ({"url": "http://localhost:1", "concurrency": "x"}, "concurrency is 'x'"),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once(given, told):
    with pytest.raises(karat.BadInput, match=told):
        karat.connect(**given)
