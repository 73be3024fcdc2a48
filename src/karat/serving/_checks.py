"""What can be refused of `karat serve` before a model is loaded: names, the key, who may come in, and the address.

Nothing here is slow to import, so that nobody waits for what cannot be.
"""

import errno
import ipaddress
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from karat.types import BadInput, Refused

_LOCAL = ("localhost", "127.0.0.1", "[::1]")


def named(paths: Sequence[str], names: Sequence[str]) -> list[str]:
    """What models are called in requests and replies: as they are named, or by their folders or hub ids.

    Raises:
        BadInput: there are not as many names as models, or two have the same.
    """
    if names and len(names) != len(paths):
        raise BadInput(
            f"there are {len(paths)} models and {len(names)} names; give --name once for each, or leave it out"
        )
    if not all(names):
        raise BadInput("a --name is empty; give each model one that requests can say")
    found = list(names) or [_name_of(path) for path in paths]
    if len(set(found)) != len(found):
        raise BadInput(f"two models would be called {max(found, key=found.count)!r}; give --name for each")
    return found


def _name_of(model: str) -> str:
    return Path(model).resolve().name if Path(model).is_dir() else model


def read_key(path: str) -> str | None:
    """The key of a file, else of the environment variable KARAT_API_KEY; None where there is none.

    Raises:
        BadInput: the file cannot be read or is empty.
    """
    if not path:
        return os.environ.get("KARAT_API_KEY") or None
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8"
        raise BadInput(f"the key in {path} cannot be read ({why}); give another --api-key-file") from None
    if not key:
        raise BadInput(f"{path} holds no key; write one into it")
    if not key.isprintable():
        raise BadInput(f"{path} holds more than one line, which no client can send; write the key alone")
    return key


def hosts_of(host: str, allowed: Sequence[str], key: str | None, insecure: bool) -> frozenset[str] | None:
    """The names that a server at `host` may be called by; None for any.

    Raises:
        Refused: it would let in everyone on the network.
    """
    if not _is_local(host) and key is None and not insecure:
        raise Refused(
            f"{host} lets in everyone who can reach this machine; give --api-key-file, listen at 127.0.0.1, or say"
            " --insecure"
        )
    if not _is_local(host) and not allowed:
        return None
    return frozenset({*_LOCAL, host.lower(), *(name.lower() for name in allowed)})


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        BadInput: nothing can listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=4096)
    except (OSError, OverflowError) as error:
        raise BadInput(_unheard(host, port, error)) from None


def _unheard(host: str, port: int, error: Exception) -> str:
    code = getattr(error, "errno", None)
    if code == errno.EADDRINUSE:
        return f"something listens at {host}:{port} already; choose another --port, or 0 for a free one"
    if code in (errno.EACCES, errno.EPERM):
        return f"port {port} is not for everyone; choose a --port from 1024 up"
    said = (getattr(error, "strerror", None) or str(error).removesuffix(".")).partition(" (")[0]
    return f"{host}:{port} cannot be listened at ({said}); choose another --host or --port"
