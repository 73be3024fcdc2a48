"""What those ask who run the server: to load a model anew from where it came from, while requests go on."""

from typing import Any, Literal

from karat.serving._readout import Name
from karat.serving.base import ApiError, Gives, Request, Route, Shape, Strict
from karat.types import KaratError


class ReloadBody(Strict):
    """Which model; with one served, it need not be said, but where it is, it has to be that one's name."""

    model: Name | None = None


async def reload(request: Request[ReloadBody]) -> Any:
    """Load a model's folder again; it takes the old one's place if its golden scores hold, else the reason is told."""
    if request.body.model not in (None, request.name):
        told = f"there is no model {request.body.model!r:.60} here; give {request.name}, or leave it out"
        raise ApiError(404, told, "model_not_found", "model")
    try:
        await request.all.reload(request.name)
    except KaratError as error:
        told = f"{request.name} is not loaded anew, and the old one goes on: {error}"
        raise ApiError(409, told, "reload_refused") from None
    model = request.all[request.name].model
    return {"object": "model", "id": request.name, "reloaded": True, "fingerprint": getattr(model, "fingerprint", "")}


class Reloaded(Shape):
    """The model that took the place of the old one."""

    object: Literal["model"]
    id: str
    reloaded: Literal[True]
    fingerprint: str


_NEW = {"object": "model", "id": "my-model", "reloaded": True, "fingerprint": "9f86d0818"}

ROUTES = (Route("/admin/reload", reload, ReloadBody, Gives(Reloaded, _NEW), {}, keyed=True),)
