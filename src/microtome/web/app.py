"""The server of an atlas: typed JSON under /api, the page's own files beside it.

Every answer depends only on the address and on the atlas's files, so it carries their signature as its ETag. Queries belong
in `browse`, `unit` and `summary`; who may ask in `security`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from microtome.core import Refusal
from microtome.web import browse, contexts, summary, unit
from microtome.web.assets import Asset, assets
from microtome.web.reader import Reader, View, problem_of
from microtome.web.records import Document, Finding, Layers, Progressed, Suggestions, Summary, UnitPage, Units
from microtome.web.security import Guard

__all__ = ["create_app"]


def create_app(atlas: Path, *, token: str | None = None) -> FastAPI:
    """The application that shows the atlas in folder `atlas`; it asks for `token` if given, else for a loopback Host.

    A folder that is no atlas (yet) gives a page that says so.
    """
    app = FastAPI(title="microtome", openapi_url="/api/openapi.json", docs_url=None, redoc_url=None)
    reader = Reader(Path(atlas))
    app.add_middleware(GZipMiddleware, minimum_size=2048, compresslevel=4)
    app.add_middleware(Guard, token=token)
    app.state.reader = reader
    app.add_exception_handler(Refusal, _refused)
    _serve_atlas(app, reader)
    _serve_units(app, reader)
    for asset in assets().values():
        _serve_asset(app, asset)
    return app


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    missing = error.what.startswith(("unit ", "document ", "run "))
    return JSONResponse(problem_of(error).model_dump(), status_code=404 if missing else 424)


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


RunName = Annotated[str | None, Query(max_length=200, description="a run of the atlas; the first where none is named")]


def _answer(request: Request, view: View, make: Callable[[View], BaseModel | Sequence[BaseModel]]) -> Response:
    """What `make` says of a run as JSON."""

    def body() -> Response:
        record = make(view)
        if isinstance(record, BaseModel):
            return Response(record.model_dump_json(), media_type="application/json")
        return Response("[" + ",".join(each.model_dump_json() for each in record) + "]", media_type="application/json")

    return _tagged(request, view.signature, body)


def _serve_atlas(app: FastAPI, reader: Reader) -> None:
    """What is said of a run as a whole."""

    @app.get("/api/progress", response_model=Progressed)
    def progress() -> Progressed:
        signature, changed = reader.state()
        return Progressed(signature=signature, damaged=len(changed), progress=reader.progress())

    @app.get("/api/summary", response_model=Summary)
    def get_summary(request: Request, run: RunName = None) -> Response:
        return _answer(request, reader.view(run), summary.summary)

    @app.get("/api/findings", response_model=list[Finding])
    def get_findings(request: Request, run: RunName = None) -> Response:
        return _answer(request, reader.view(run), unit.findings)

    @app.get("/api/layers", response_model=Layers)
    def get_layers(request: Request, run: RunName = None) -> Response:
        return _answer(request, reader.view(run), summary.layers)


def _serve_units(app: FastAPI, reader: Reader) -> None:
    """What is said of units, tokens and documents."""

    @app.get("/api/tokens", response_model=Suggestions)
    def get_tokens(request: Request, word: Annotated[str, Query(max_length=100)]) -> Response:
        return _answer(request, reader.view(), lambda view: browse.find_tokens(view, word))

    @app.get("/api/units", response_model=Units)
    def get_units(
        request: Request,
        basis: Annotated[str | None, Query(max_length=80)] = None,
        layer: Annotated[int | None, Query(ge=0, le=32767)] = None,
        sort: Annotated[str, Query(max_length=80)] = "unit",
        order: Literal["down", "up"] = "down",
        token: Annotated[str, Query(max_length=100)] = "",
        match: Literal["any", "promotes", "suppresses", "fires"] = "any",
        offset: Annotated[int, Query(ge=0, le=1 << 40)] = 0,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        run: RunName = None,
    ) -> Response:
        query = browse.Query(basis, layer, sort, order, token, match, offset, limit)
        return _answer(request, reader.view(run), lambda view: browse.units(view, query))

    @app.get("/api/unit", response_model=UnitPage)
    def get_unit(request: Request, address: Annotated[str, Query(max_length=200)], run: RunName = None) -> Response:
        return _answer(request, reader.view(run), lambda view: unit.page(view, address))

    @app.get("/api/document", response_model=Document)
    def get_document(
        request: Request,
        document: Annotated[int, Query(ge=0, le=1 << 40)],
        begin: Annotated[int, Query(ge=0, le=1 << 31)] = 0,
        finish: Annotated[int, Query(ge=0, le=1 << 31)] = 0,
        run: RunName = None,
    ) -> Response:
        return _answer(
            request, reader.view(run), lambda view: contexts.document(view, document, begin, min(finish, begin + 100_000))
        )
