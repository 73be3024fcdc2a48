"""What goes between the door of a server and the replicas of its models: requests and replies as they are, in bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from karat.serving._app import App
from karat.serving._incoming import Settings
from karat.serving._run import Source, made

NAMESPACE = "karat"  # of the actors that are found by name

Headers = Sequence[tuple[bytes, bytes]]


class Asked(NamedTuple):
    """A request, its body whole."""

    method: str
    path: str
    headers: Headers = ()
    body: bytes = b""

    def scope(self) -> dict[str, Any]:
        """As ASGI says it."""
        return {"type": "http", "method": self.method, "path": self.path, "headers": list(self.headers)}


class Said(NamedTuple):
    """A reply, or a part of one; only the first part has a status."""

    body: bytes
    more: bool = False
    status: int = 0
    headers: Headers = ()


class Opened(NamedTuple):
    """How each replica opens its models, and answers."""

    sources: Mapping[str, Source]
    settings: Settings
    max_batch_tokens: int = 2048
    max_wait: float = 30.0

    def from_anywhere(self) -> "Opened":
        """The same, where the working folder is another."""
        return self._replace(sources={name: _absolute(own) for name, own in self.sources.items()})

    def app(self) -> App:
        """The application, its models loaded."""
        return made(*self)


def _absolute(source: Source) -> Source:
    return replace(source, path=str(Path(source.path).absolute())) if Path(source.path).exists() else source


class Record:
    """What a command has its replicas do, and what they open; it ends with the command."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._fingerprints: dict[str, str] = {}
        self._problem = ""

    def opened(self) -> Opened:
        """What the command serves."""
        return self._opened

    def agree(self, fingerprints: Mapping[str, str]) -> str:
        """Why a replica that has opened these models may not answer for them; the first that comes decides."""
        for name, own in fingerprints.items():
            if self._fingerprints.setdefault(name, own) != own:
                return f"its machine holds another model as {name} than the one that is served"
        return ""

    def expect(self, name: str, fingerprint: str) -> None:
        """From now on replicas open this model by the name."""
        self._fingerprints[name] = fingerprint

    def failed(self, problem: str) -> None:
        """A replica does not start."""
        self._problem = problem

    def problem(self) -> str:
        """Why the last replica that did not start did not."""
        return self._problem
