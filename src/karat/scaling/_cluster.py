"""The way to a Ray cluster: one that runs, or one that is made of this machine."""

import logging
import os
import socket
from typing import Any

from karat.models.backbone import first_line
from karat.types import BadInput

KNOCK = 10.0  # seconds for a cluster to answer
STORE = 256 << 20  # bytes of shards on their way, of a cluster that is made for the run


def connect(address: str, doing: str = "scoring") -> Any:
    """The module, connected to the cluster at HOST:PORT, or "local" for one on this machine.

    Raises:
        BadInput: there is no Ray, or no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # else 30, which a busy machine exceeds
    try:
        import ray
    except ImportError:
        raise BadInput(f"{doing} on a cluster needs Ray; install it with `pip install 'karat[ray]'`") from None
    local = address == "local"
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE} if local else {}
    try:
        if not local:
            _knock(address)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **own)
    except Exception as error:  # Ray raises a plain one for some
        why = first_line(error)
        raise BadInput(
            f"Ray does not start on this machine ({why}); give the command again when it is less busy, or without --ray"
            if local
            else f"there is no Ray cluster at {address} ({why}); start one with `ray start --head` and give the"
            " HOST:PORT that it prints, or give --ray local"
        ) from None
    return ray


def _knock(address: str) -> None:
    """Raise OSError or ValueError where nobody listens: Ray would try for minutes, and then end the process."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), KNOCK).close()
