"""Serving on a Ray cluster: replicas by Ray Serve, and the command as their door.

Any number of commands may be doors to the same replicas: the first starts them and ends them, the others join.
"""

import logging
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from karat.models.backbone import first_line
from karat.scaling._cluster import connect
from karat.scaling._shards import Resources, share_out
from karat.types import BadInput, Refused

PATIENCE = 30.0  # seconds without a replica, after which that is said
ONGOING = 1024  # requests at a replica; what waits there is admitted by its own pipelines
QUEUED = 4096  # requests that wait at the door for a replica that has room
REQUESTS = 64.0  # to a replica, by which Ray 2.50 scales: it knows no figures of ours
LOOK_BACK = 15.0  # seconds over which what waits is averaged
UP, DOWN = 5.0, 120.0  # seconds for which more, or fewer, replicas have to be wanted


class Scale(NamedTuple):
    """How many replicas."""

    replicas: int | None = None  # at least; None: one for each GPU, or node
    most: int | None = None  # None: neither more nor fewer

    def check(self) -> None:
        """Raise BadInput where there would be fewer at most than at least."""
        if self.most is not None and self.most < (self.replicas or 1):
            raise BadInput("--max-replicas is less than --replicas; give at least as many, or leave it out")


def serve(opened: Any, listening: socket.socket, address: str = "local", scale: Scale = Scale()) -> None:  # noqa: B008
    """Serve models on the cluster at `address` until the process is asked to end.

    Args:
        opened: what each replica opens, a `karat.scaling._wire.Opened`; every node has to find it under the same names.
        listening: a socket that listens.
        address: of a running cluster, HOST:PORT, or "local" for one on this machine.
        scale: how many replicas.

    Raises:
        BadInput: no Ray, no cluster, or no room there.
        Refused, KaratError: a model cannot be opened there, or does not score as it has to.
    """
    scale.check()
    ray = connect(address, "serving")
    try:
        with _replicas(ray, opened.from_anywhere(), address, scale) as replicas:
            from karat.scaling._front import Front
            from karat.serving import _run

            _run.serve(Front(replicas, opened.settings), listening)
    except ray.exceptions.RayError as error:
        raise BadInput(f"the cluster at {address} ended ({first_line(error)}); start it and the server anew") from None
    finally:
        ray.shutdown()


@contextmanager
def _replicas(ray: Any, opened: Any, address: str, scale: Scale) -> Iterator[Any]:
    """The replicas: those that another command has started, or new ones, which end in the end."""
    try:
        from ray import serve as ray_serve
    except ImportError:
        raise BadInput("serving on a cluster needs Ray Serve; install it with `pip install 'karat[ray]'`") from None
    from karat.scaling._front import Replicas

    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # it tells each request of a replica that died
    name = _name(opened)
    if record := _joined(ray, name, opened):
        yield Replicas(ray_serve.get_app_handle(name), record, tuple(opened.sources))
        return
    resources = share_out(ray.nodes(), scale.most or scale.replicas)
    record = _record(ray, name, opened)
    try:
        ray_serve.start(http_options={"location": "NoServer"})
        app = _application(ray_serve, resources, scale).bind(opened, name)
        yield Replicas(_started(ray, ray_serve, app, name, record), record, tuple(opened.sources))
    finally:
        if address != "local":  # that cluster ends with the command
            ray_serve.delete(name)


def _name(opened: Any) -> str:
    """Of the application, and of what is recorded of it."""
    return "karat-" + re.sub(r"[^\w.]+", "-", "+".join(opened.sources))


def _joined(ray: Any, name: str, opened: Any) -> Any:
    """The record of a command that serves the same already; None where there is none.

    Raises:
        BadInput: it serves something else.
    """
    from karat.scaling._wire import NAMESPACE

    try:
        record = ray.get_actor(name, NAMESPACE)
        other = ray.get(record.opened.remote())
    except (ValueError, ray.exceptions.RayError):
        return None
    if other != opened:
        raise BadInput(
            f"another command serves {', '.join(opened.sources)} on this cluster from elsewhere or with other options;"
            " give its options, or another --name"
        )
    return record


def _record(ray: Any, name: str, opened: Any) -> Any:
    from karat.scaling._wire import NAMESPACE, Record

    return ray.remote(Record).options(name=name, namespace=NAMESPACE, num_cpus=0).remote(opened)


def _application(ray_serve: Any, resources: Resources, scale: Scale) -> Any:
    """The deployment of the models."""
    from karat.scaling._served import Served

    return ray_serve.deployment(
        Served,
        ray_actor_options={"num_cpus": resources.cpus, "num_gpus": resources.gpus},
        max_ongoing_requests=ONGOING,
        max_queued_requests=QUEUED,
        graceful_shutdown_wait_loop_s=0.1,
        request_router_config={"request_router_class": "karat.scaling._router.ByPrompt"},
        **_scaling(resources, scale),
    )


def _scaling(resources: Resources, scale: Scale) -> dict[str, Any]:
    """The number of replicas, or how it follows what waits."""
    if scale.most is None:
        return {"num_replicas": resources.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": scale.replicas or 1,
            "max_replicas": scale.most,
            "target_ongoing_requests": REQUESTS,
            "look_back_period_s": LOOK_BACK,
            "upscale_delay_s": UP,
            "downscale_delay_s": DOWN,
            "policy": {"policy_function": "karat.scaling._policy:replicas"},
        }
    }


def _started(ray: Any, ray_serve: Any, app: Any, name: str, record: Any) -> Any:
    """A handle to replicas that are ready.

    Raises:
        Refused: one cannot open the models, or dies.
    """
    quiet = {"enable_access_log": False}
    target = ray_serve.RunTarget(app, name=name, route_prefix=None, logging_config=quiet)
    (handle,) = ray_serve.run_many([target], wait_for_applications_running=False)
    try:
        _wait(ray, ray_serve, name, record)
    except BaseException:
        ray_serve.delete(name, _blocking=False)
        raise
    return handle


def _wait(ray: Any, ray_serve: Any, name: str, record: Any) -> None:
    """Wait until all replicas are ready; say it where that takes long."""
    began, told = time.monotonic(), False
    while (found := ray_serve.status().applications[name]).status != "RUNNING":
        if problem := ray.get(record.problem.remote()):
            raise Refused(problem)
        if found.status == "DEPLOY_FAILED":
            raise Refused(f"no replica starts ({found.message.strip()[:300]})")
        if not told and time.monotonic() - began > PATIENCE:
            told = True
            print(
                "waiting for the cluster: it has no room for all replicas yet, or takes long to start them",
                file=sys.stderr,
            )
        time.sleep(0.1)
