"""What replies hold is what the OpenAPI document says, and a body that is wrong is told so in karat's own words."""

import threading

import playgrounds
import pydantic
import pytest
import servers
from hypothesis import given, settings
from hypothesis import strategies as some
from pydantic import TypeAdapter, ValidationError

import karat
import toys
from karat.engine._work import Closed
from karat.serving._app import routes
from karat.serving._openapi import document
from karat.serving._replies import unreadable
from karat.serving._sentences import keys_of
from karat.serving.base import Error
from karat.serving.native import CompareBody, RewardBody
from karat.serving.openai import ChatBody
from karat.serving.tei import PredictBody
from karat.serving.vllm import PoolBody, RerankBody

ROUTES = [route for own in routes().values() for route in own]
BODIES = sorted({route.body for route in ROUTES if route.body}, key=lambda own: f"{own.__module__}.{own.__name__}")


@pytest.fixture(scope="module")
def local(model_folder):
    made = servers.Local(karat.load(str(model_folder), max_length=100))
    yield made
    made.close()


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    folder = toys.save(tmp_path_factory.mktemp("vectors"), toys.backbone())
    made = servers.Local(karat.load(str(folder), kind="embedding", max_length=100))
    yield made
    made.close()


# What replies hold


def fits(route, content):
    """Raise ValidationError where a reply is not what the document says."""
    TypeAdapter(route.gives.shape).validate_json(content)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.path}-{route.handler.__name__}")
def test_every_example_of_a_reply_is_one(route):
    fits(route, pydantic.TypeAdapter(object).dump_json(route.gives.example))


def test_the_document_says_what_every_200_holds():
    for path, verbs in document(routes(), keyed=True)["paths"].items():
        for own in verbs.values():
            content = own["responses"]["200"]["content"]
            assert all(one["schema"] for one in content.values()) and any("example" in one for one in content.values())
            assert ("application/json" in content) is (path != "/metrics")


def check_replies(made):
    """Each example is asked; how many got rewards, vectors or the like."""
    done = 0
    for route in ROUTES:
        reply = made.ask(route.path, dict(route.example) if route.body else None)
        if reply.status_code == 200:
            fits(route, reply.content)
            done += 1
        else:
            TypeAdapter(Error).validate_json(reply.content)
    return done


def test_replies_are_what_the_document_says(local, vectors):
    assert check_replies(local) >= 20
    assert check_replies(vectors) == 3
    several = {"prompt": "a", "candidates": ["b", "c" * 400]}
    reply = local.ask("/v1/rank", several)
    fits(next(route for route in ROUTES if route.path == "/v1/rank"), reply.content)
    assert "error" in reply.json()["data"][1]


@pytest.mark.full
@pytest.mark.parametrize("kind", [kind for kind in playgrounds.KINDS if kind not in ("bradley_terry", "embedding")])
def test_replies_of_other_kinds_are_what_the_document_says(tmp_path, kind):
    made = servers.Local(playgrounds.made(tmp_path, kind))
    assert check_replies(made) >= (3 if kind == "pairwise" else 15)
    if kind == "process":
        reply = made.ask("/pooling", {"input": "<s>7*8=56\nSo 56.\n"})
        fits(next(route for route in ROUTES if route.path == "/pooling"), reply.content)
        assert len(reply.json()["data"][0]["data"]) == 2
    made.close()


def test_negative_control_a_reply_with_another_key():
    with pytest.raises(ValidationError):
        fits(ROUTES[0], pydantic.TypeAdapter(object).dump_json({**ROUTES[0].gives.example, "more": 1}))


# What is told of a body


def told(body, given):
    with pytest.raises(ValidationError) as found:
        body.model_validate(given)
    return unreadable(found.value, given, keys_of(body))


@pytest.mark.parametrize(
    ("body", "given", "param", "sentence"),
    [
        (RewardBody, {"prompt": 5, "candidates": ["a"]}, "prompt", "prompt: give a text or a list, not a number"),
        (RewardBody, {"prompt": "a", "candidates": [None]}, "candidates.0", "give a text or an object, not null"),
        (RewardBody, {"prompt": "a", "candidates": [{"steps": "x"}]}, "candidates.0.steps", "give a list, not a text"),
        (RewardBody, {"prompt": [{"role": "user"}], "candidates": ["a"]}, "prompt.0.content", "is missing; give it"),
        (RewardBody, {"prompt": "a", "candidates": []}, "candidates", "give at least 1"),
        (RewardBody, {"prompt": "a", "candidates": ["a"] * 2049}, "candidates", "more than 2048; send fewer"),
        (RewardBody, {"items": [{"prompt": "a"}]}, "items.0", "items.0: give prompt and candidates, or messages, or"),
        (RewardBody, {"text": "a", "options": {"activation": "relu"}}, "options.activation", "give 'identity', 'sigm"),
        (
            CompareBody,
            {"prompt": "a", "a": "b", "c": "d"},
            "c",
            "c: there is no such key here; check how it is spelled",
        ),
        (RewardBody, {"prompt": "a", "candidate": ["b"]}, "candidate", "no such key here; did you mean 'candidates'?"),
        (
            RewardBody,
            {"prompt": "a", "candidates": ["b"], "activation": "sigmoid"},
            "activation",
            "did you mean 'options.activation'?",
        ),
        (RewardBody, {"text": "a", "options": {"options": {}}}, "options.options", "check how it is spelled"),
        (
            PoolBody,
            {"input": "a", "truncate_prompt_tokens": 5},
            "truncate_prompt_tokens",
            "has another reward; leave it",
        ),
        (
            RerankBody,
            {"query": "a", "documents": ["b"], "truncate_prompt_tokens": -1},
            "truncate_prompt_tokens",
            "leave",
        ),
        (
            RewardBody,
            {"items": [{"promt": "a", "candidates": ["b"]}]},
            "items.0.promt",
            "did you mean 'prompt'?",
        ),
        (PoolBody, {"input": [[False]]}, "input.0.0", "give a whole number, not true or false"),
        (PoolBody, {"input": {}}, "input", "input: give a text or a list, not an object"),
        (PoolBody, {"input": [[-1]]}, "input.0.0", "give a number from 0 up"),
        (RerankBody, {"query": "a", "documents": ["b"], "top_n": 1.5}, "top_n", "a whole number, not a decimal number"),
        (PredictBody, {"inputs": [["a", "b", "c"]]}, "inputs.0", "there are more than 2"),
        (ChatBody, {"messages": [], "temperature": -1}, "messages", "temperature: give a number from 0.0 up"),
    ],
)
def test_a_wrong_body_is_told_of_its_place_and_what_to_send(body, given, param, sentence):
    error = told(body, given)
    assert (error.status, error.code, error.param) == (400, "invalid_value", param)
    assert sentence in error.message


JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.text(max_size=3),
    lambda own: some.lists(own, max_size=3) | some.dictionaries(some.text(max_size=3), own, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60)
@given(some.sampled_from(BODIES), some.data())
def test_no_sentence_is_pydantics_own(body, data):
    names = some.sampled_from([*body.model_fields, "other"])
    given = data.draw(some.dictionaries(names, JSON, max_size=4))
    try:
        body.model_validate(given)
    except ValidationError as error:
        found = unreadable(error, given)
        assert found.message and not any(word in found.message for word in ("Input", "should", "valid", "pydantic"))


def test_a_million_faults_are_not_told_apart():
    """A body of 0.8 MB had 819,200 faults, which took a gigabyte and three seconds of everyone's time."""
    with pytest.raises(ValidationError) as found:
        RewardBody.model_validate({"items": [{"prompt": "", "candidates": [1] * 2048}] * 50})
    assert found.value.error_count() <= 4
    assert "there are 5000 keys" in told(RewardBody, {str(n): 1 for n in range(5000)}).message
    assert "5000" in told(RewardBody, {"text": "a", "options": {"weights": {str(n): "" for n in range(5000)}}}).message


def lists(schema):
    """Every schema of a list within another."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            yield schema
        schema = list(schema.values())
    for own in schema if isinstance(schema, list) else ():
        yield from lists(own)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: f"{body.__module__}.{body.__name__}")
def test_every_list_of_a_body_is_read_up_to_its_first_fault(body):
    assert all(own.get("fail_fast") for own in lists(body.__pydantic_core_schema__))


# Embeddings and comparisons as rewards


def test_tokens_of_embeddings_are_counted(vectors):
    asked = {"input": ["a", "bcd"]}
    counted = sum(len(one.sequence.ids) for one in vectors.pipeline.model.renderer(map(example, asked["input"])))
    used = vectors.ask("/v1/embeddings", asked).json()["usage"]
    assert used == {"prompt_tokens": counted, "total_tokens": counted} and counted > 4


def example(text):
    return karat.types.Example((), text)


def test_what_is_too_long_is_told_in_the_same_way_everywhere(local, vectors):
    asked = {
        "/v1/reward": {"prompt": "a", "candidates": ["a" * 400]},
        "/v1/compare": {"prompt": "a", "a": "b" * 400, "b": ""},
    }
    found = [servers.error(local.ask(path, body)) for path, body in asked.items()]
    found += [servers.error(vectors.ask("/v1/embeddings", {"input": "a" * 400}))]
    found += [servers.error(vectors.ask("/embed", {"inputs": ["a", "a" * 400]}))]
    assert {own["code"] for own in found} == {"context_length_exceeded"}
    assert all("max_length=100" in own["message"] for own in found)
    assert found[-1]["message"].startswith("input 1: ")


@pytest.mark.parametrize("path", ["/v1/reward", "/v1/compare", "/v1/rank", "/v1/embeddings"])
def test_more_than_can_be_done_in_time_is_refused_whatever_is_asked(local, vectors, path):
    body = {"/v1/compare": {"prompt": "a", "a": "b", "b": "c"}, "/v1/embeddings": {"input": "a"}}
    made = vectors if path == "/v1/embeddings" else local
    load = made.pipeline.load
    load.start(1e12, 0.0)
    try:
        reply = made.ask(path, body.get(path, {"prompt": "a", "candidates": ["b"]}))
    finally:
        load.in_flight = 0.0
    assert reply.status_code == 429 and servers.error(reply)["code"] == "overloaded"
    assert int(reply.headers["retry-after"]) >= 1


def test_a_comparison_counts_all_that_is_read_for_it(local, monkeypatch):
    seen = []
    monkeypatch.setattr(local.pipeline.load, "admit", lambda size, _: seen.append(size))
    local.ask("/v1/compare", {"prompt": "p" * 40, "a": "b", "b": "c"})
    assert seen[-1] >= 2 * 40


def test_a_number_of_a_vector_is_never_given_as_a_reward(vectors):
    """The dialects did, with status 200."""
    for route in ROUTES:
        if route.body and route.path not in ("/v1/embeddings", "/embed"):
            assert vectors.ask(route.path, dict(route.example)).status_code in (400, 403), route.path


# The end


@pytest.mark.parametrize("asked", ["score", "call"])
def test_what_comes_while_another_thread_ends_the_model_is_refused(model_folder, monkeypatch, asked):
    made = servers.Local(karat.load(str(model_folder)))
    own = made.pipeline._admit

    def admit(*given):
        own(*given)
        ending = threading.Thread(target=made.pipeline.close)
        ending.start()
        ending.join(20)

    monkeypatch.setattr(made.pipeline, "_admit", admit)
    work = made.pipeline.score(["a text"]) if asked == "score" else made.pipeline.call(lambda: 7, 9)
    with pytest.raises(Closed, match="about to end"):
        made.run(work)
    assert made.pipeline.load.in_flight == 0
    made.close()
