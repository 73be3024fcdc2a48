"""A judge behind the server: its endpoint fails, or writes no verdict, and that is an error of one item, never a 0."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import servers

from karat.rewards import _endpoint
from karat.rewards.judge import make

ASKED = "What is 7*8?"


class Upstream:
    """An OpenAI-compatible endpoint; what an answer says of itself is how it is met."""

    def __init__(self):
        self.down = False
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, said = upstream.met(body["messages"][-1]["content"])
                choice = {"message": {"content": said}, "finish_reason": "stop"}
                usage = {"prompt_tokens": 7, "completion_tokens": 2}
                reply = json.dumps({"choices": [choice], "usage": usage}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def met(self, question):
        if self.down or "broken" in question:
            return 500, ""
        if "unclear" in question:
            return 200, "I would rather not say."
        if "[Start of answer A]" in question:
            first = question.partition("[Start of answer A]")[2].partition("[End of answer A]")[0]
            return 200, "[[A]]" if "56" in first else "[[B]]"
        return 200, "[[9]]" if "56" in question else "[[2]]"


@pytest.fixture(scope="module")
def upstream():
    made = Upstream()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join(20)
    made.server.server_close()


@pytest.fixture
def served(upstream, monkeypatch):
    """Judges by their cards, without a socket of their own."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(_endpoint, "WAIT", 0.0)  # between tries of a request that was answered with 500
    opened = []

    def serve(card):
        opened.append(servers.Local(make(upstream.url, card, name="m", max_tokens=16)))
        return opened[-1]

    yield serve
    upstream.down = False
    for own in opened:
        own.close()


def outcomes(reply):
    """What every answer of a reply got: its reward, or what was wrong."""
    (item,) = reply.json()["data"]
    return [own["reward"] if own.get("error") is None else own["error"]["message"] for own in item["candidates"]]


def test_rewards_and_what_has_none(served):
    reply = served("rating").ask("/v1/reward", {"prompt": ASKED, "candidates": ["56", "broken", "unclear", "54"]})
    right, broken, unclear, wrong = outcomes(reply)
    assert reply.status_code == 200 and (right, wrong) == (9.0, 2.0)
    assert "500" in broken and "no verdict" in unclear
    assert all(own.get("reward") is None for own in reply.json()["data"][0]["candidates"][1:3])


def test_comparisons_and_what_has_none(served):
    made = served("pairwise")
    found = made.ask("/v1/compare", {"prompt": ASKED, "a": "54", "b": "56"}).json()["data"][0]
    assert found["probability"] == 0.0 and found.get("error") is None
    for other, said in (("broken", "500"), ("unclear", "no verdict")):
        reply = made.ask("/v1/compare", {"prompt": ASKED, "a": "56", "b": other})
        assert said in reply.text and "probability" not in reply.text, reply.text


def test_ranks_and_what_has_none(served):
    reply = served("rating").ask("/v1/rank", {"prompt": ASKED, "candidates": ["54", "broken", "56", "unclear"]})
    found = reply.json()["data"]
    assert [own["index"] for own in found[:2]] == [2, 0] and {own["index"] for own in found[2:]} == {1, 3}
    assert all(own.get("error") for own in found[2:]) and not any(own.get("reward") for own in found[2:])


def test_an_endpoint_that_is_down(served, upstream):
    made = served("rating")
    assert outcomes(made.ask("/v1/reward", {"prompt": ASKED, "candidates": ["56"]})) == [9.0]
    upstream.down = True
    reply = made.ask("/v1/reward", {"prompt": ASKED, "candidates": ["56", "54"]})
    assert [("500" in own) for own in outcomes(reply)] == [True, True]
    alone = made.ask("/v1/reward", {"prompt": ASKED, "candidates": ["56"]})
    assert alone.status_code >= 400 and "500" in servers.error(alone)["message"]
    upstream.down = False
    assert outcomes(made.ask("/v1/reward", {"prompt": ASKED, "candidates": ["56"]})) == [9.0]
