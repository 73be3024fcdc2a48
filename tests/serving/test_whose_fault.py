"""Whose fault a missing reward is decides the status, on every path: 4xx the request's, 5xx the model's."""

import pytest
import servers
import torch

import karat
import toys
from karat.engine.base import States
from karat.types import Example, Message

ONE_ANSWER = {  # of each path, a body that nothing is answered to where the answer "bad" has no reward
    "/v1/reward": {"prompt": "p", "candidates": ["bad"]},
    "/v1/rank": {"prompt": "p", "candidates": ["bad"]},
    "/v1/compare": {"prompt": "p", "a": "good", "b": "bad"},
    "/score": {"text_1": "p", "text_2": "bad"},
    "/v1/score": {"query": "p", "items": ["bad"]},
    "/v1/rerank": {"query": "p", "documents": ["good", "bad"]},
    "/rerank": {"query": "p", "texts": ["good", "bad"]},
    "/cohere/v2/rerank": {"query": "p", "documents": ["good", "bad"]},
    "/jina/v1/rerank": {"query": "p", "documents": ["good", "bad"]},
    "/predict": {"inputs": ["p", "bad"]},
    "/slime_reward": {"prompt": "p", "response": "bad"},
}


@pytest.fixture
def served(model_folder):
    made = servers.Local(karat.load(str(model_folder)), longest_wait=float("inf"))
    yield made
    made.close()


def of_answer(model, answer):
    """The tokens of an answer to "p"."""
    return model.renderer([Example((Message("user", "p"),), answer)])[0].sequence.ids


def failing(model, monkeypatch, fault, bad=None):
    """The engine raises, or gives NaN, where such tokens are among its sequences (None: always)."""
    run = model.engine.run

    def own(sequences):
        found = run(sequences)
        if fault == "raises" and (bad is None or any(s.ids == bad for s in sequences)):
            raise RuntimeError("x")
        return [spoiled(one) if bad in (None, s.ids) else one for s, one in zip(sequences, found, strict=True)]

    monkeypatch.setattr(model.engine, "run", own)


def spoiled(states):
    return States({name: own * float("nan") for name, own in states.items()})


def told(reply):
    return reply.status_code, servers.error(reply)["code"]


@pytest.mark.parametrize("fault", ["raises", "gives NaN"])
def test_a_model_that_fails_is_a_fault_of_the_server(served, monkeypatch, fault):
    model = served.pipeline.model
    failing(model, monkeypatch, fault, of_answer(model, "bad"))
    found = {path: told(served.ask(path, body)) for path, body in ONE_ANSWER.items()}
    assert found == dict.fromkeys(ONE_ANSWER, (500, "model_failed"))
    items = [{"prompt": "p", "a": "good", "b": "bad"}, {"prompt": "p", "a": "good", "b": "better"}]
    first, second = served.ask("/v1/compare", {"items": items}).json()["data"]
    assert first["error"]["type"] == "server_error" and 0 < second["probability"] < 1
    good, last = served.ask("/v1/rank", {"prompt": "p", "candidates": ["bad", "good"]}).json()["data"]
    assert good["index"] == 1 and last["error"]["type"] == "server_error"


def test_an_answer_that_cannot_be_read_is_a_fault_of_the_request(served):
    long = "c" * 3000
    found = [
        served.ask("/v1/compare", {"prompt": "p", "a": "good", "b": long}),
        served.ask("/v1/rank", {"prompt": "p", "candidates": [long]}),
        served.ask("/slime_reward", {"prompt": "p", "response": long}),
    ]
    assert [told(reply) for reply in found] == [(400, "context_length_exceeded")] * 3


@pytest.mark.parametrize("path", ["/v1/compare", "/v1/rank"])
def test_options_that_leave_no_number_are_a_fault_of_the_request(served, path):
    with torch.no_grad():
        served.pipeline.model.parts.head.out.weight.mul_(100)  # so that what it gives is above 1
    body = {"/v1/compare": {"prompt": "p", "a": "x", "b": "y"}, "/v1/rank": {"prompt": "p", "candidates": ["x"]}}[path]
    reply = served.ask(path, {**body, "options": {"output": [3e38]}})
    assert told(reply) == (400, "unscored") and "output" in servers.error(reply)["message"]


@pytest.mark.parametrize("fault", ["raises", "gives NaN"])
def test_a_pairwise_model_that_fails_is_a_fault_of_the_server(tmp_path, monkeypatch, fault):
    model = karat.load(str(toys.save(tmp_path, toys.causal_model())), kind="pairwise")
    made = servers.Local(model)
    failing(model, monkeypatch, fault)
    assert told(made.ask("/v1/compare", {"prompt": "p", "a": "x", "b": "y"})) == (500, "model_failed")
    places = made.ask("/v1/rank", {"prompt": "p", "candidates": ["x", "y", "z"]}).json()["data"]
    assert {own["error"]["code"] for own in places} == {"model_failed"}
    made.close()
