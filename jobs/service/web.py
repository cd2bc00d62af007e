"""Routes and metrics of the service. Independent of Ray, so that tests can call the application directly."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import fields
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from ast_model.service.gate import Gate
from ast_model.service.limits import Limits
from ast_model.service.service import Service, clean_name, render_rows
from ast_model.tagging.options import TaggingOptions
from ast_model.tagging.tables import FORMATS, Format
from pipeline.errors import ConfigError, InputError, WeightsError, quote

PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
MAX_TAGS = 200_000
UPLOAD = {
    "requestBody": {
        "required": True,
        "description": "The bytes of an audio or video file.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class Error(BaseModel):
    """Reason for a failed request."""

    error: str


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": why}
    for status, why in {
        400: "The request can't be read",
        401: "The token is missing or wrong",
        403: "Cross-origin request, or a host name that requires a token",
        408: "The upload took too long",
        413: "The upload is too large",
        415: "The upload is a form or compressed",
        422: "The upload contains no usable sound, or a parameter is impossible",
        429: "Too many uploads are waiting; see Retry-After",
        500: "The model returned no finite scores",
    }.items()
}


class TagQuery(BaseModel):
    """Parameters of a tagging request."""

    name: str = Field("sound", max_length=1000, description="Name of the file in tables")
    top_k: int = Field(TaggingOptions.top_k, ge=1, le=1_000, description="Maximum number of classes per interval")
    threshold: float = Field(TaggingOptions.threshold, ge=0, le=1, allow_inf_nan=False, description="Minimum score")
    classes: tuple[str, ...] = Field((), max_length=10_000, description="Classes to return. Default: all")
    timeline: bool = Field(False, description="Also tag windows")
    window_s: float | None = Field(None, gt=0, le=3600, description="Window length. Default: the model's")
    hop_s: float | None = Field(
        None, ge=0.01, le=3600, description="Distance between the starts of windows. Default: half a window"
    )
    spectrogram: bool = Field(False, description="Add the spectrogram as a data URL of a PNG")
    format: Format | None = Field(None, description="Return a file for review instead of JSON")

    def options(self) -> TaggingOptions:
        return TaggingOptions(**self.model_dump(include={field.name for field in fields(TaggingOptions)}))


class Tag(BaseModel):
    """A class within an interval of a sound."""

    start_s: float = Field(ge=0, allow_inf_nan=False)
    end_s: float = Field(ge=0, allow_inf_nan=False)
    label: str = Field(max_length=200)
    score: float = Field(allow_inf_nan=False)


class Tags(BaseModel):
    """Tags of a whole sound and, for a timeline, of its windows."""

    name: str
    model: str
    version: str
    length_s: float
    tags: list[Tag]
    timeline: list[Tag] | None = None
    spectrogram: str | None = None


class Embedding(BaseModel):
    """The embedding of a sound."""

    model: str
    version: str
    length_s: float
    embedding: list[float]


class LabelList(BaseModel):
    """The classes of the model, in the order of its outputs."""

    model: str
    version: str
    labels: list[str]


class TagsToWrite(BaseModel):
    """Tags to write as a file."""

    name: str = Field("sound", max_length=1000)
    tags: list[Tag] = Field(max_length=MAX_TAGS)


class Figures:
    """Metrics of one replica for `/metrics`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("ast_requests", "Requests answered", ["path", "status"], registry=self.registry)
        self.seconds = Histogram("ast_request_seconds", "Time to answer", ["path"], registry=self.registry)
        self.batches = Histogram(
            "ast_batch_windows",
            "Windows in a batch of the model",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.waiting = Gauge("ast_requests_waiting", "Uploads that are worked on or wait", registry=self.registry)
        self.bytes = Gauge("ast_upload_bytes", "Bytes of all uploads that are held", registry=self.registry)
        self.refused = Gauge("ast_requests_refused", "Requests refused at the gate so far", registry=self.registry)


def make_app(service: Service, limits: Limits, token: str, figures: Figures) -> Gate:
    """Return the application with its middleware."""
    app = FastAPI(
        title="Audio tagging", version="1", docs_url=None, redoc_url=None, openapi_url="/openapi.json", responses=ERRORS
    )
    gate = Gate(app, limits, token)

    @app.middleware("http")
    async def measure(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        start_s = time.perf_counter()
        response = await answer(request)
        path = _route_of(request)  # known only after routing
        figures.seconds.labels(path).observe(time.perf_counter() - start_s)
        figures.requests.labels(path, str(response.status_code)).inc()
        return response

    @app.exception_handler(WeightsError)
    @app.exception_handler(InputError)
    @app.exception_handler(ConfigError)
    @app.exception_handler(RequestValidationError)
    @app.exception_handler(HTTPException)
    async def explain(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, HTTPException):
            return JSONResponse({"error": str(error.detail)}, error.status_code)
        if isinstance(error, RequestValidationError):
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"][1:])) or "the body"
            return JSONResponse({"error": f"{quote(where)}: {first['msg']}"}, 422)
        return JSONResponse({"error": str(error)}, 500 if isinstance(error, WeightsError) else 422)

    @app.post("/v1/tag", openapi_extra=UPLOAD)
    async def tag(request: Request, query: Annotated[TagQuery, Query()]) -> Tags:
        """Return the best classes of a sound and, with `timeline`, of its windows."""
        answer = await service.tag(await request.body(), query.options(), query.name, query.spectrogram)
        if query.format is None:
            return Tags(**answer)
        rows = answer["timeline"] if query.timeline else answer["tags"]
        return _file(rows, query.name, query.format)  # pyright: ignore[reportReturnType] - it goes out as it is

    @app.post("/v1/embed", openapi_extra=UPLOAD)
    async def embed(request: Request) -> Embedding:
        """Return the embedding of a sound, which is the mean over its windows."""
        return Embedding(**await service.embed(await request.body()))

    @app.post("/v1/file", response_class=Response)
    def write_file(tags: TagsToWrite, format: Format) -> Response:
        """Return tags from `/v1/tag` as a file for review, without the sound."""
        return _file([tag.model_dump() for tag in tags.tags], tags.name, format)

    @app.get("/v1/labels")
    async def labels() -> LabelList:
        """Return the classes of the model, in the order of its outputs."""
        return LabelList(**service.labels())

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        """Return the status and the model's version. Anyone may call this, so it reveals no paths."""
        return {"status": "ok", "version": service.model.version}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return the metrics of this replica in Prometheus format."""
        figures.waiting.set(gate.num_requests)
        figures.bytes.set(gate.num_bytes)
        figures.refused.set(gate.num_refused)
        return Response(generate_latest(figures.registry), media_type=CONTENT_TYPE_LATEST)

    _add_page(app)
    return gate


def _add_page(app: FastAPI) -> None:
    for path, (file, media_type) in PAGE_FILES.items():
        content = files("ast_model.service").joinpath("page", file).read_bytes()
        app.add_api_route(path, _constant(content, media_type), include_in_schema=False)


def _constant(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def page() -> Response:
        return Response(content, media_type=media_type, headers={"cache-control": "no-cache"})

    return page


def _file(rows: list[dict[str, Any]], name: str, format: Format) -> Response:
    # Headers are ASCII, and quotes or backslashes would end the quoted name.
    stem = clean_name(name).encode("ascii", "replace").decode().translate(str.maketrans('?"\\', "___"))
    disposition = f'attachment; filename="{stem}{FORMATS[format].suffix}"'
    headers = {"content-disposition": disposition}
    return Response(render_rows(rows, name, format), media_type=FORMATS[format].media_type, headers=headers)


def _route_of(request: Request) -> str:
    """Return the path of the matching route. With requested paths, each unknown path would become a metric series."""
    route = request.scope.get("route")
    return getattr(route, "path", "other")
