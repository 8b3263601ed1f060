"""The server of an atlas: typed JSON under /api, the page's own files beside it.

Every answer depends only on the address, on the atlas's files and on the edition of the page, so these are its ETag. What is answered is
in `resources`, who may ask in `security`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from microtome.core import Malformed, NotFound, Refusal
from microtome.live import ModelOfAtlas
from microtome.model import Model
from microtome.web.assets import Asset, assets, edition
from microtome.web.reader import Reader, problem_of
from microtome.web.records import Problem, Progressed
from microtome.web.resource import Answer, Nothing, Resource
from microtome.web.resources import RESOURCES
from microtome.web.security import Guard
from microtome.web.text_routes import serve_text
from microtome.web.turns import Turns

__all__ = ["create_app"]

BAD, MISSING, UNREADABLE = 400, 404, 424


def create_app(
    atlas: Path, *, beside: Sequence[Path] = (), token: str | None = None, model: str | Path | Model | None = None
) -> FastAPI:
    """The application that shows the atlas in folder `atlas`; it asks for `token` if given, else for a loopback Host.

    A folder that is no atlas (yet) gives a page that says so. Runs of the atlases `beside` it can be compared with its own. `model` is where the atlas's model is, or the model itself: with it texts are read.
    """
    app = FastAPI(title="microtome", openapi_url="/api/openapi.json", docs_url=None, redoc_url=None)
    reader = Reader(Path(atlas), [Path(each) for each in beside])
    app.add_middleware(GZipMiddleware, minimum_size=2048, compresslevel=4)
    app.add_middleware(Guard, token=token)
    app.state.reader = reader
    app.add_exception_handler(Refusal, _refused)
    _serve_progress(app, reader)
    serve_text(app, reader, ModelOfAtlas(reader.atlas, model), Turns())
    for resource in RESOURCES:
        _serve_resource(app, reader, resource)
    for asset in assets().values():
        _serve_asset(app, asset)
    return app


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    status = BAD if isinstance(error, Malformed) else MISSING if isinstance(error, NotFound) else UNREADABLE
    return JSONResponse(problem_of(error).model_dump(), status_code=status)


def _serve_asset(app: FastAPI, asset: Asset) -> None:
    def answer(request: Request) -> Response:
        return _tagged(request, asset.digest, lambda: Response(asset.content, media_type=asset.media_type))

    for path in {f"/{asset.path}", "/" if asset.path == "index.html" else f"/{asset.path}"}:
        app.add_api_route(path, answer, methods=["GET", "HEAD"], include_in_schema=False, response_class=Response)


def _tagged(request: Request, digest: str, make: Callable[[], Response]) -> Response:
    """The response that `make` gives, with an ETag; without calling it where the browser already has it."""
    tag = f'W/"{digest}"'
    known = [each.strip() for each in request.headers.get("if-none-match", "").split(",")]
    response = Response(status_code=304) if tag in known else make()
    response.headers["ETag"] = tag
    response.headers["Cache-Control"] = "private, no-cache"
    return response


def _run(
    run: Annotated[str | None, Query(max_length=200, description="a run of the atlas; the first where none is named")] = None,
) -> str | None:
    return run


def _serve_progress(app: FastAPI, reader: Reader) -> None:
    @app.get("/api/progress", response_model=Progressed, operation_id="progress")
    def progress() -> Progressed:
        signature, changed = reader.state()
        return Progressed(signature=signature, damaged=len(changed), progress=reader.progress())


def _serve_resource(app: FastAPI, reader: Reader, resource: Resource[Any]) -> None:
    """Answer GET /api/PATH with what the resource makes of a run, as JSON."""

    def answer(request: Request, asked: Any, run: Annotated[str | None, Depends(_run)]) -> Response:
        view = reader.view(run)
        digest = f"{view.signature}-{edition()}"
        return _tagged(request, digest, lambda: Response(_json(resource.read(view, asked)), media_type="application/json"))

    def answer_alone(request: Request, run: Annotated[str | None, Depends(_run)]) -> Response:
        return answer(request, Nothing(), run)

    answer.__annotations__["asked"] = Annotated[resource.parameters, Query()]
    app.add_api_route(
        f"/api/{resource.path}",
        answer_alone if resource.parameters is Nothing else answer,
        response_model=resource.record,
        responses={status: {"model": Problem} for status in (BAD, MISSING, UNREADABLE)},
        name=resource.path,
        operation_id=resource.path,
        openapi_extra={"x-exported": False} if resource.keys is None else None,
    )


def _json(record: Answer) -> str:
    if isinstance(record, BaseModel):
        return record.model_dump_json()
    return "[" + ",".join(each.model_dump_json() for each in record) + "]"
