"""The requests that run the model of the atlas: POST /api/text and what belongs to it, and GET /api/model.

These are no resources: an export has no model, and their answers depend on a body.
"""

from collections.abc import Callable
from typing import Annotated, Any, Final

import torch
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from microtome.core import Refusal
from microtome.live import Clock, Loaded, ModelOfAtlas, Overdue
from microtome.live.edited import MOST_EDITS, MOST_WRITTEN
from microtome.web.reader import Reader, View, problem_of
from microtome.web.records import Edited, ModelNow, Problem, TextAttention, TextPage, TextParts
from microtome.web.text import text_attention, text_edited, text_page, text_parts
from microtome.web.text_asked import MOST_CHARACTERS, AttentionAsked, EditedAsked, PartsAsked, TextAsked
from microtome.web.turns import Later, Turns

__all__ = ["serve_text"]

BAD, NO_MODEL, MISTAKEN, MANY, BUSY = 400, 424, 422, 429, 503
Read = Callable[[View, Loaded, Any, Clock], BaseModel]


def serve_text(app: FastAPI, reader: Reader, model: ModelOfAtlas, turns: Turns) -> None:
    """Add the requests to an application."""
    app.add_exception_handler(RequestValidationError, _mistaken)
    app.add_exception_handler(HTTPException, _failed)
    _serve_model(app, model)
    atlas = reader.atlas
    posts: Final[tuple[tuple[str, type[BaseModel], type[BaseModel], Read], ...]] = (
        ("text", TextAsked, TextPage, lambda view, loaded, asked, clock: text_page(view, atlas, loaded, asked, clock)),
        ("text/attention", AttentionAsked, TextAttention, lambda _, loaded, asked, clock: text_attention(loaded, asked, clock)),
        ("text/parts", PartsAsked, TextParts, lambda _, loaded, asked, clock: text_parts(loaded, asked, clock)),
        ("text/edited", EditedAsked, Edited, lambda view, loaded, asked, clock: text_edited(view, atlas, loaded, asked, clock)),
    )
    for path, asked, record, read in posts:
        _serve_post(app, path, asked, record, _answering(reader, model, turns, read))


def _serve_model(app: FastAPI, model: ModelOfAtlas) -> None:
    @app.get("/api/model", response_model=ModelNow, operation_id="model")
    def told() -> ModelNow:
        now = model.told()
        problem = None if now.problem is None else problem_of(now.problem)
        return ModelNow(
            state=now.state, name=now.name, dtype=now.dtype, device=now.device, problem=problem, tokens=now.tokens,
            characters=MOST_CHARACTERS, edits=MOST_EDITS, written=MOST_WRITTEN,
        )  # fmt: skip


def _serve_post(
    app: FastAPI, path: str, asked: type[BaseModel], record: type[BaseModel], answering: Callable[[Any, str | None], Response]
) -> None:
    def answer(asked: Any, run: Annotated[str | None, Depends(_run)]) -> Response:
        return answering(asked, run)

    answer.__annotations__["asked"] = asked
    app.add_api_route(
        f"/api/{path}",
        answer,
        methods=["POST"],
        response_model=record,
        responses={status: {"model": Problem} for status in (BAD, NO_MODEL, MISTAKEN, MANY, BUSY)},
        name=path,
        operation_id=path.replace("/", "_"),
    )


def _run(
    run: Annotated[str | None, Query(max_length=200, description="a run of the atlas; the first where none is named")] = None,
) -> str | None:
    return run


def _answering(reader: Reader, model: ModelOfAtlas, turns: Turns, read: Read) -> Callable[[Any, str | None], Response]:
    """Run the model in a turn of its own, and say what is wrong where something is."""

    def answer(asked: Any, run: str | None) -> Response:
        view = reader.view(run)
        try:
            with turns.taken():
                try:
                    loaded = model.loaded()
                except Refusal as refusal:
                    return _problem(refusal, NO_MODEL)
                found = read(view, loaded, asked, Clock())
        except Later as later:
            return _problem(later, later.status, {"Retry-After": str(later.seconds)})
        except Overdue as overdue:
            return _problem(overdue, BUSY)
        except Refusal as refusal:
            return _problem(refusal, BAD)
        except (MemoryError, torch.OutOfMemoryError):
            why = "there is not enough memory for it"
            return _problem(Refusal("this run of the model", why=why, instead="give a shorter text"), BUSY)
        return Response(found.model_dump_json(), media_type="application/json", headers={"Cache-Control": "no-store"})

    return answer


def _problem(refusal: Refusal, status: int, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(problem_of(refusal).model_dump(), status_code=status, headers=headers)


async def _mistaken(request: Request, error: Exception) -> Response:
    """A request that is not what it should be, without what it was: it may hold what no answer can."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(each) for each in first["loc"] if each not in ("body", "query"))[:100] or "the body"
    what = where.encode("utf-8", "replace").decode()
    return _problem(
        Refusal(f"{what} of the request", why=str(first["msg"])[:200], instead="send what /api/openapi.json says"), MISTAKEN
    )


async def _failed(request: Request, error: Exception) -> Response:
    """A body that cannot be read at all."""
    assert isinstance(error, HTTPException)
    if request.method != "POST" or error.status_code != BAD:
        return await http_exception_handler(request, error)
    return _problem(Refusal("the request", why="its body cannot be read", instead="send JSON"), BAD)
