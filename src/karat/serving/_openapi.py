"""The OpenAPI document, from the routes themselves: bodies and replies are pydantic models, errors have one shape."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from karat import members
from karat.serving.base import Error, Gives, Route, Shape

_WHERE = "#/components/schemas/{model}"


class Status(Shape):
    """That the process is there, or that it is ready."""

    status: Literal["alive", "ready"]


_FIXED = {
    "/livez": ("The process is there.", "application/json", Gives(Status, {"status": "alive"})),
    "/readyz": ("Golden inputs score as they did.", "application/json", Gives(Status, {"status": "ready"})),
    "/health": ("The same.", "application/json", Gives(Status, {"status": "ready"})),
    "/metrics": ("Figures for Prometheus.", "text/plain", Gives(str, 'karat_waiting{model="my-model"} 0.0\n')),
    "/openapi.json": ("This document.", "application/json", Gives(dict[str, Any], {"openapi": "3.1.0"})),
}


class _Replies(GenerateJsonSchema):
    """Without the defaults of keys that are not always there."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])


def document(routes: Mapping[str, list[Route]], keyed: bool) -> dict[str, Any]:
    """All paths; those of several dialects take a body of either, and reply as it does."""
    every = [route for own in routes.values() for route in own]
    bodies, taken = _schemas((route.body for route in every if route.body is not None), GenerateJsonSchema)
    fixed = [gives for _, _, gives in _FIXED.values()]
    replies, given = _schemas([Error, *(own.shape for own in [*fixed, *(route.gives for route in every)])], _Replies)
    paths: dict[str, Any] = {
        path: {"get": {"summary": said, "responses": _responses([gives], replies, media)}}
        for path, (said, media, gives) in _FIXED.items()
    }
    for path, own in routes.items():
        paths[path] = {"get" if own[0].body is None else "post": _operation(own, bodies, replies)}
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "karat", "version": "1", "description": _described()},
        "paths": paths,
        "components": {"schemas": {**taken, **given}},
    }
    if keyed:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
    return found


def _schemas(types: Iterable[Any], how: type[GenerateJsonSchema]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema of each type by its `_key`, and what these refer to."""
    by_key = {_key(own): TypeAdapter(own) for own in types}
    made, defined = TypeAdapter.json_schemas(
        [(key, "validation", own) for key, own in sorted(by_key.items())], ref_template=_WHERE, schema_generator=how
    )
    return {key: schema for (key, _), schema in made.items()}, defined.get("$defs", {})


def _key(own: Any) -> str:
    return f"{own.__module__}.{own.__qualname__}" if isinstance(own, type) and issubclass(own, BaseModel) else repr(own)


def _described() -> str:
    return "\n".join(f"- {name}: {line}" for name, line in members.describe("serving").items())


def _operation(routes: Sequence[Route], bodies: Mapping[str, Any], replies: Mapping[str, Any]) -> dict[str, Any]:
    said = " ".join((routes[0].handler.__doc__ or "").split())
    found = {"summary": said, "responses": _responses([own.gives for own in routes], replies)}
    taken = [(own.handler.__name__, bodies[_key(own.body)], own.example) for own in routes if own.body is not None]
    if taken:
        examples = {name: {"value": dict(example)} for name, _, example in taken}
        content = {"schema": _either([schema for _, schema, _ in taken]), "examples": examples}
        found["requestBody"] = {"required": True, "content": {"application/json": content}}
    return found


def _responses(gives: Sequence[Gives], replies: Mapping[str, Any], media: str = "application/json") -> dict[str, Any]:
    """What is replied where all is well, whole or as a stream; and else."""
    schema = _either([replies[_key(own.shape)] for own in gives])
    content = {media: {"schema": schema, "example": gives[0].example}}
    content |= {own.stream: {"schema": {"type": "string"}} for own in gives if own.stream}
    error = {"application/json": {"schema": replies[_key(Error)]}}
    return {
        "200": {"description": "Done.", "content": content},
        "default": {"description": "An error.", "content": error},
    }


def _either(schemas: Sequence[Any]) -> Any:
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}
