"""The OpenAPI document against the server: schemathesis, broken bytes, and limits on everything that it names."""

import json

import pytest
import schema
import servers

import karat
from karat.serving._app import routes
from karat.serving._openapi import document

DOCUMENT = document(routes(), keyed=True)


def parts(found, where=""):
    """Every schema of the document, with its place."""
    if isinstance(found, dict):
        if "type" in found and isinstance(found["type"], str):
            yield where, found
        for name, own in found.items():
            yield from parts(own, f"{where}/{name}")
    elif isinstance(found, list):
        for place, own in enumerate(found):
            yield from parts(own, f"{where}/{place}")


def named(found):
    """Names of what a schema refers to."""
    if isinstance(found, dict):
        name = found.get("$ref", "").removeprefix("#/components/schemas/")
        yield from [name] if name else ()
        found = list(found.values())
    for own in found if isinstance(found, list) else ():
        yield from named(own)


def bodies():
    """The schemas of all bodies, and those within them."""
    every, known = DOCUMENT["components"]["schemas"], {}
    wanted = list(named([verbs.get("post", {}).get("requestBody") for verbs in DOCUMENT["paths"].values()]))
    while wanted:
        name = wanted.pop()
        if name not in known:
            known[name] = every[name]
            wanted += named(every[name])
    return known


BODIES = bodies()


def test_every_number_and_every_list_of_a_body_has_a_limit():
    """Unbounded numbers: vLLM CVE-2026-34756. Texts are bounded by the size of the body."""
    found = list(parts(BODIES))
    assert len(found) > 100
    for where, own in found:
        if own["type"] == "integer":
            assert {"minimum", "exclusiveMinimum"} & set(own) and {"maximum", "exclusiveMaximum"} & set(own), where
        if own["type"] == "array":
            assert "maxItems" in own or "prefixItems" in own, where


def test_every_operation_has_an_example_that_is_answered(model_folder):
    made = servers.Local(karat.load(str(model_folder)))
    for path, verbs in DOCUMENT["paths"].items():
        for own in verbs.get("post", {}).get("requestBody", {}).get("content", {}).values():
            assert own["examples"], path
            for example in own["examples"].values():
                reply = made.ask(path, example["value"])
                assert reply.status_code in (200, 400, 403), (path, reply.text)
    made.close()


@pytest.mark.parametrize("value", [0, 1, "true", "false", 1.5, [], {}])
def test_nothing_is_taken_for_something_else(model_folder, value):
    """What is no boolean is none, and what is no number of a token is none: `[[false]]` was token 0."""
    made = servers.Local(karat.load(str(model_folder)))
    assert made.ask("/v1/reward", {"prompt": "a", "candidates": ["b"], "stream": value}).status_code == 400
    assert made.ask("/rerank", {"query": "a", "documents": ["b"], "return_documents": value}).status_code == 400
    for ids in ([[False]], [[1.0]], [["1"]]):
        assert made.ask("/classify", {"input": ids}).status_code == 400
    made.close()


@pytest.fixture(scope="module")
def served(model_folder):
    with servers.process(model_folder) as (url, _):
        yield url


@pytest.mark.full
def test_schemathesis_finds_nothing(served):
    if not schema.TOOL.exists():
        pytest.skip("schemathesis is not here: make clients")
    found = schema.cases(served, 500)
    assert found["failures"] == [] and found["cases"] >= 500


@pytest.mark.full
def test_broken_bytes_get_no_5xx_and_disturb_nobody(served):
    assert schema.sockets(served, 2000, seed=3)["failures"] == []


def test_broken_bytes_are_broken():
    import random

    whole = b"POST / HTTP/1.1\r\n\r\n" + json.dumps({"a": 1}).encode()
    assert len({schema.broken(whole, random.Random(n)) for n in range(100)}) > 90
