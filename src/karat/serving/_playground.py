"""The playground: pages made here, of what karat's own paths answer. Whatever text is on them is escaped.

It is no dialect and scores nothing: its form is asked of `native` as if it had come as JSON, and errors are the same.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import jinja2
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from karat.models._steps import steps_of
from karat.rewards.base import RewardModel
from karat.serving import _figures, _replies, _views, native, sglang
from karat.serving._metrics import Metrics
from karat.serving._pipeline import Pipeline
from karat.serving._readout import Name
from karat.serving._readout import readout as readout_of
from karat.serving._views import Answer
from karat.serving.base import MOST, ApiError, Handler, Reply, Request, Strict, Text
from karat.types import KaratError

PATH, LIVE = "/", "/playground/live"
BOXES = 2  # for answers, on an empty page
PAIRED = 6  # answers of which each two are compared on the page; more are ranked alone
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",  # without one, browsers would not say which site a form is of
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_FOLDER = Path(__file__).parent / "_pages"
_FILES = {
    "playground.css": "text/css; charset=utf-8",
    "playground.js": "text/javascript; charset=utf-8",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_EXAMPLE = (
    "A shop sells pens at 3 for $2. What do 12 pens cost?",
    (
        "12 pens are 12 / 3 = 4 groups.\nEach group costs $2.\nSo 12 pens cost 4 * 2 = $8.",
        "Each pen costs $2.\nSo 12 pens cost 12 * 2 = $24.",
    ),
)

_PATHS: Mapping[Handler, str] = {
    native.rank: "/v1/rank",
    native.compare: "/v1/compare",
    sglang.embeddings: "/v1/embeddings",
}


class Form(Strict):
    """What the page's form asks."""

    model_config = ConfigDict(strict=False)  # browsers send texts alone

    model: Name | None = None
    prompt: Text = ""
    answers: tuple[Text, ...] = Field(default=(), max_length=MOST)
    more: bool = False  # boxes are asked for, and no rewards

    @property
    def boxes(self) -> list[str]:
        """The texts of the page's boxes."""
        return [*self.answers, *[""] * (BOXES - len(self.answers))]

    @property
    def given(self) -> list[Answer]:
        """The boxes that hold something."""
        return [Answer(place, text) for place, text in enumerate(self.answers, 1) if text.strip()]


class Asked(NamedTuple):
    """A request as it could have come as JSON, and its reply."""

    path: str
    body: str
    reply: Mapping[str, Any]


class Found(NamedTuple):
    """What is shown of a form's answers."""

    about: Mapping[str, Any]
    places: Sequence[_views.Place]
    asked: Asked
    scale: str  # between what the places' dots lie
    objectives: Sequence[_views.Objective] = ()
    duels: Sequence[_views.Duel] = ()


class Playground:
    """The pages of one server."""

    def __init__(self, pipelines: Mapping[str, Pipeline], metrics: Metrics, keyed: bool) -> None:
        self._pipelines, self._metrics, self._keyed = pipelines, metrics, keyed
        self.plain: dict[str, Callable[[], Awaitable[Reply]]] = {
            PATH: partial(self._page, Form()),
            "/playground/example": partial(self._page, Form(prompt=_EXAMPLE[0], answers=_EXAMPLE[1])),
            LIVE: self._live,
            **{f"/playground/{name}": partial(_file, name) for name in _FILES},
        }

    def is_open(self, path: str, method: str) -> bool:
        """Whether a page tells nothing of models or texts, and is given to anyone."""
        return method == "GET" and path in self.plain and path != LIVE

    async def answer(self, request: Request[Form]) -> Reply:
        """The page with what a form asks, or with why it is refused."""
        form = request.body
        if form.more:
            return await self._page(form.model_copy(update={"answers": (*form.boxes, "")}), focus=len(form.boxes) + 1)
        try:
            found = await _found(request)
        except (ApiError, KaratError, ValidationError) as error:
            told = _replies.of_error(
                _replies.unreadable(error) if isinstance(error, ValidationError) else error, request.id
            )
            return await self._page(form, error=told.body["error"]["message"], status=told.status, headers=told.headers)
        return await self._page(form, found=found)

    def refused(self, path: str, reply: Reply) -> Reply:
        """An error as a page."""
        message = reply.body["error"]["message"]
        if path == LIVE:
            return _html("_live.html", reply.status, reply.headers, error=message)
        if reply.status == 401:
            message += "; on this page, write it into Key"
        return self._drawn(Form(), error=message, status=reply.status, headers=reply.headers)

    async def _page(self, form: Form, **told: Any) -> Reply:
        return await asyncio.to_thread(self._drawn, form, **told)  # long texts take longer than others should wait

    def _drawn(
        self,
        form: Form,
        found: Found | None = None,
        error: str = "",
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        focus: int = 0,
    ) -> Reply:
        shown = {} if self._keyed and found is None else self._pipelines
        return _html(
            "page.html",
            status,
            headers or {},
            form=form,
            found=found,
            error=error,
            focus=focus,
            keyed=self._keyed,
            served=[_about(name, pipeline.model) for name, pipeline in shown.items()],
            **({} if self._keyed else self._life()),
        )

    async def _live(self) -> Reply:
        return _html("_live.html", **self._life())

    def _life(self) -> dict[str, Any]:
        batches = {name: pipeline.recent() for name, pipeline in self._pipelines.items()}
        last = [batch for own in batches.values() for batch in own]
        most = max((batch.computed + batch.shared + batch.padding for batch in last), default=1)
        return {"figures": _figures.figures(self._metrics.registry, last), "batches": batches, "most": max(most, 1)}


def read(raw: bytes) -> Form:
    """A form as browsers send it, with line ends as they were typed.

    Raises:
        ApiError: it is none of the page's.
    """
    try:
        fields = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MOST + 8)
    except ValueError:
        raise ApiError(
            400, f"the form cannot be read; send it in UTF-8, with up to {MOST} answers", "invalid_form"
        ) from None
    found: dict[str, Any] = {name: value.replace("\r\n", "\n") for name, value in fields if name != "answer"}
    found["answers"] = [value.replace("\r\n", "\n") for name, value in fields if name == "answer"]
    try:
        return Form.model_validate({**found, "model": found.get("model") or None})
    except ValidationError as error:
        raise _replies.unreadable(error, found) from None


def check_form(headers: Mapping[str, str]) -> None:
    """Raise ApiError for what is no form of this page: another site's form is sent without asking here first."""
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/x-www-form-urlencoded":
        raise ApiError(415, "send a form, or JSON to /v1/rank", "unsupported_media_type")
    if not _is_own(headers) or headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise ApiError(403, "the form is of another site; open this server's own page", "cross_site")


def _is_own(headers: Mapping[str, str]) -> bool:
    """Whether the site that sends a form is this server, as far as that is said."""
    origin = headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
    except ValueError:  # such as `http://[`
        return False


# What is asked


async def _found(request: Request[Form]) -> Found:
    """What the page shows of a form's answers."""
    model, answers = request.pipeline.model, request.body.given
    if not answers:
        raise ApiError(400, "there is no answer yet; write at least one", "invalid_value", "answer")
    about = _about(request.name, model)
    if about["embeds"]:
        return await _similarities(request, answers, about)
    if model.compares and len(answers) < 2:
        raise ApiError(400, "this model compares answers; write at least two", "invalid_value", "answer")
    asked = await _ranked(request, answers, model)
    data = asked.reply["data"]
    return Found(
        about,
        _views.places(data, answers, model),
        asked,
        _views.scale_of(model),
        _views.objectives(data),
        await _duels(request, answers) if model.compares else [],
    )


async def _ranked(request: Request[Form], answers: Sequence[Answer], model: RewardModel) -> Asked:
    texts = [native.Steps(steps=list(steps_of(a.text))) if model.at_steps else a.text for a in answers]
    return await _asked(native.rank, request, native.RankBody(prompt=request.body.prompt, candidates=texts))


async def _duels(request: Request[Form], answers: Sequence[Answer]) -> list[_views.Duel]:
    """Each two answers in both orders, where they are few."""
    if len(answers) > PAIRED:
        return []
    prompt = request.body.prompt
    items = [native.Two(prompt=prompt, a=a.text, b=b.text) for a, b in _views.pairs_of(answers)]
    asked = await _asked(native.compare, request, native.CompareBody(items=items))
    return _views.duels(asked.reply["data"], answers)


async def _similarities(request: Request[Form], answers: Sequence[Answer], about: Mapping[str, Any]) -> Found:
    if len(answers) >= MOST:
        raise ApiError(400, f"with the prompt there are more than {MOST} texts; write fewer", "invalid_value", "answer")
    body = sglang.EmbeddingBody(input=[request.body.prompt, *(a.text for a in answers)])
    asked = await _asked(sglang.embeddings, request, body)
    return Found(about, _views.similarities(asked.reply["data"], answers), asked, "between −1 and 1")


async def _asked(handler: Handler, request: Request[Form], body: BaseModel) -> Asked:
    """What a path's own handler replies, asked as over HTTP."""
    asked: Request[Any] = replace(request, body=body)  # type: ignore[arg-type]
    return Asked(_PATHS[handler], body.model_dump_json(exclude_unset=True), await handler(asked))


def _about(name: str, model: RewardModel) -> dict[str, Any]:
    """A model in words."""
    readout = {key: value for key, value in readout_of(model).items() if value is not None}
    embeds = readout.get("head") == "hidden"
    one, many, unit = "reward", "rewards", _views.UNITS[model.output]
    if embeds:
        one, many, unit = "similarity", "similarities", "cosines with the prompt's vector"
    elif model.compares:
        one, many, unit = "utility", "utilities", "log-odds"
    return {
        "name": name,
        "kind": readout.get("kind", ""),
        "number": one,
        "numbers": many,
        "unit": unit,
        "embeds": embeds,
        "compares": model.compares,
        "at_steps": model.at_steps,
        "readout": readout,
    }


# What is drawn


def _html(template: str, status: int = 200, headers: Mapping[str, str] | None = None, **told: Any) -> Reply:
    page = _templates().get_template(template).render(told)
    private = {"Cache-Control": "no-store"}
    return Reply(page.encode(), "text/html; charset=utf-8", {**HEADERS, **private, **(headers or {})}, status)


async def _file(name: str) -> Reply:
    kept = {"Cache-Control": "public, max-age=31536000, immutable"}  # its address holds its hash
    return Reply(_content(name), _FILES[name], {**HEADERS, **kept})


@cache
def _content(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()


def _address(name: str) -> str:
    return f"/playground/{name}?{hashlib.sha256(_content(name)).hexdigest()[:12]}"


@cache
def _templates() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters["address"] = _address
    made.filters["cut"] = _cut
    return made


def _cut(text: str, most: int = 600) -> str:
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"
