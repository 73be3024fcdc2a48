"""Traces of others that a request belongs to, by W3C's `traceparent`; spans where opentelemetry-api is installed.

Without an SDK beside that package its spans are not recorded, and the caller's trace goes through all the same.
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_KEY = r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
_MEMBER = re.compile(  # nothing, or one of a tracestate
    rf"[ \t]*(?:{_KEY}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e][ \t]*)?", re.ASCII
)
_MEMBERS = 32
_HAS_API = find_spec("opentelemetry") is not None and find_spec("opentelemetry.trace") is not None


class Trace:
    """One request as part of a trace, or of none."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        found = _PARENT.fullmatch(headers.get("traceparent", ""))
        self.header = found[0] if found else ""  # what is sent back
        self._span: Any = None
        if _HAS_API and _records():
            self._begin({"traceparent": self.header, "tracestate": _state(headers)} if found else {})

    def _begin(self, parent: Mapping[str, str]) -> None:
        api, propagate = _api("trace"), _api("propagate")
        context = propagate.extract(dict(parent))
        tracer = api.get_tracer("karat")
        self._span = tracer.start_span("request", context, kind=api.SpanKind.SERVER)
        carrier: dict[str, str] = {}
        propagate.inject(carrier, api.set_span_in_context(self._span, context))
        self.header = carrier.get("traceparent", self.header)

    @property
    def id(self) -> str:
        """32 digits, for logs; empty where there is no trace."""
        return self.header[3:35]

    def end(self, method: str, path: str, status: int, model: str) -> None:
        """The request was answered; `path` is one of the server's own, and `model` a name that it has."""
        if self._span is None:
            return
        self._span.update_name(f"{method} {path}")
        said = {"http.request.method": method, "http.route": path, "http.response.status_code": status}
        self._span.set_attributes(said | ({"karat.model": model} if model else {}))
        if status >= 500:
            self._span.set_status(_api("trace").StatusCode.ERROR)
        self._span.end()


@cache
def _api(name: str) -> Any:
    """A module of opentelemetry-api."""
    return import_module(f"opentelemetry.{name}")


def _records() -> bool:
    """Whether an SDK was set up, without which spans go nowhere."""
    api = _api("trace")
    return not isinstance(api.get_tracer_provider(), api.ProxyTracerProvider)


def _state(headers: Mapping[str, str]) -> str:
    """The `tracestate` where it is one by W3C's grammar: opentelemetry writes others into the log."""
    said = headers.get("tracestate", "")
    members = said.split(",", _MEMBERS)
    return said if len(members) <= _MEMBERS and all(map(_MEMBER.fullmatch, members)) else ""
