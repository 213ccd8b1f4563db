"""The HTTP interface: what is asked, of whom, and the answer as JSON."""

from __future__ import annotations

import asyncio
import io
import os
import zipfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, TypeVar

import torch
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lowshot_cli.config.values import ExportFormat
from lowshot_cli.data.decoding import ByteArray
from lowshot_cli.errors import LowshotError, UsageError
from lowshot_cli.evaluation.predict import describe
from lowshot_cli.export.export import export
from lowshot_cli.models.embedder import embed
from lowshot_cli.records import Record
from lowshot_cli.serve.answers import error_answer, refusal
from lowshot_cli.serve.asked import (
    IMAGES,
    Budget,
    Exporting,
    Forcing,
    NewName,
    Predicting,
    Teaching,
)
from lowshot_cli.serve.batching import Batches
from lowshot_cli.serve.errors import Unknown
from lowshot_cli.serve.pages import pages
from lowshot_cli.serve.served import Served
from lowshot_cli.serve.session import Session
from lowshot_cli.serve.uploads import (
    MOST_BYTES,
    MOST_IMAGES,
    MOST_IN_ALL,
    close,
    decode_uploads,
    most_pixels,
    read_uploads,
)
from lowshot_cli.version import __version__

_Result = TypeVar("_Result")
# The content of a zip depends on nothing but the model.
_NO_TIME = (1980, 1, 1, 0, 0, 0)


class _Service:
    """The served model, and the threads that work for it.

    Predictions are batched in threads of their own, changes are made one at a time in another, and
    exports, which take long, in one more.
    """

    def __init__(self, session: Session) -> None:
        self.session, threads = session, torch.get_num_threads()
        workers = threads if session.network.device.type == "cpu" else 1
        self.batches = Batches(partial(embed, session.network), workers)
        self.decoders = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decoding")
        # New threads start with the number that was last set, which is that of the batches.
        how = (torch.set_num_threads, (threads,))
        self.changes = ThreadPoolExecutor(1, "changes", *how)
        self.exports = ThreadPoolExecutor(1, "exports", *how)

    async def read(self, request: Request) -> tuple[list[str], ByteArray]:
        """Names and pixels `(n, 3, S, S)` of the images of a request."""
        meta = self.session.now.checkpoint.meta
        uploads = await read_uploads(request)
        try:
            pixels = await decode_uploads(uploads, meta.image_size, meta.framing, self.decoders)
        finally:
            close(uploads)
        return [upload.name for upload in uploads], pixels

    async def change(self, work: Callable[[], _Result]) -> _Result:
        """Do something in the thread that changes the model."""
        return await asyncio.get_running_loop().run_in_executor(self.changes, work)

    def end(self) -> None:
        """Finish what is begun."""
        self.batches.close()
        for pool in (self.decoders, self.changes, self.exports):
            pool.shutdown(cancel_futures=True)


async def _service(request: Request) -> _Service:
    service: _Service = request.app.state.service
    return service


async def _no_parameters(request: Request) -> None:
    """Refuse parameters at an address that has none, as nothing is passed over."""
    if name := next(iter(request.query_params), None):
        raise UsageError(f"`{name}` is no parameter of {request.url.path}", "leave it out")


Service = Annotated[_Service, Depends(_service)]
router = APIRouter()
plain = APIRouter(dependencies=[Depends(_no_parameters)])


@plain.get("/health")
async def health(service: Service) -> Record:
    """Whether the server works, and on which model."""
    now = service.session.now
    return {
        "status": "ok",
        "version": __version__,
        "checkpoint": str(now.path),
        "n_classes": len(now.checkpoint.meta.classes),
    }


@plain.get("/classes")
def classes(service: Service) -> list[Record]:
    """The classes of the model, as `lowshot classes list --json`, with thumbnails."""
    return service.session.classes()


@plain.get("/model")
def model(service: Service) -> Record:
    """What the model is, what its novel classes cost, and what undo would take back."""
    return _with_limits(service.session.about())


def _with_limits(about: Record) -> Record:
    limits = {
        "images": MOST_IMAGES,
        "bytes": MOST_BYTES,
        "request": MOST_IN_ALL,
        "pixels": most_pixels(),
    }
    return {**about, "limits": limits}


@plain.get("/tradeoff")
async def tradeoff(service: Service) -> list[Record]:
    """What other budgets of base accuracy would give."""
    return await service.change(lambda: service.session.now.trade_off)


@router.post("/predict", openapi_extra=IMAGES)
async def predict(
    request: Request, service: Service, asked: Annotated[Predicting, Query()]
) -> list[Record]:
    """Predictions for images, as `lowshot predict --json`."""
    session = service.session
    served = await service.change(session.before) if asked.before else session.now
    with service.batches.reading():
        names, pixels = await service.read(request)
        answer = partial(_predictions, served, names, asked)
        found = service.batches.submit(torch.from_numpy(pixels), answer)
    return await asyncio.wrap_future(found)


def _predictions(
    served: Served, names: list[str], asked: Predicting, embeddings: torch.Tensor
) -> list[Record]:
    threshold, quantile = served.threshold(asked.false_alarm), served.quantile(asked.confidence)
    found = describe(served.checkpoint, embeddings, names, asked.top, threshold, quantile=quantile)
    return [one.to_json() for one in found]


@router.post("/classes/{name:path}", openapi_extra=IMAGES)
async def teach(
    request: Request, service: Service, name: str, asked: Annotated[Teaching, Query()]
) -> Record:
    """Teach a class from images, as `lowshot imprint --add --images --json`."""
    session = service.session
    if not asked.replace:
        session.ensure_new(name)
    names, pixels = await service.read(request)
    return await service.change(
        lambda: session.teach(name, pixels, names, replace_known=asked.replace)
    )


@router.delete("/classes/{name:path}")
async def remove(service: Service, name: str, asked: Annotated[Forcing, Query()]) -> Record:
    """Remove a class, as `lowshot classes remove --json`."""
    return await service.change(lambda: service.session.remove(name, force=asked.force))


@router.patch("/classes/{name:path}")
async def rename(
    service: Service, name: str, new: NewName, asked: Annotated[Forcing, Query()]
) -> Record:
    """Rename a class, as `lowshot classes rename --json`."""
    return await service.change(lambda: service.session.rename(name, new.name, force=asked.force))


@plain.post("/undo")
async def undo(service: Service) -> Record:
    """Take the last change back; answers as `GET /model`."""
    return _with_limits(await service.change(service.session.undo))


@plain.patch("/model")
async def budget(service: Service, asked: Budget) -> Record:
    """Set the bias for another budget; answers as `GET /model`."""
    work = partial(service.session.set_budget, asked.max_forgetting)
    return _with_limits(await service.change(work))


@plain.get("/checkpoint", response_class=Response)
async def checkpoint(service: Service) -> Response:
    """The model as a checkpoint."""
    now = service.session.now
    content = await service.change(now.path.read_bytes)
    return _download(content, now.path.name, "application/octet-stream")


@router.get("/export", response_class=Response)
async def exported(service: Service, asked: Annotated[Exporting, Query()]) -> Response:
    """The model for other programs, as `lowshot export`, in a zip."""
    work = partial(_zip, service.session.now, asked.format)
    content = await asyncio.get_running_loop().run_in_executor(service.exports, work)
    return _download(
        content, f"{service.session.now.path.stem}-{asked.format}.zip", "application/zip"
    )


def _zip(served: Served, form: ExportFormat) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in export(served.checkpoint, form).items():
            archive.writestr(zipfile.ZipInfo(name, _NO_TIME), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def _download(content: bytes, name: str, kind: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=kind, headers=headers)


@plain.get("/thumbnails/{digest}", response_class=Response)
def thumbnail(service: Service, digest: str) -> Response:
    """A small picture of a photo that a class was taught with here."""
    content = service.session.thumbnails.read(digest)
    if content is None:
        raise Unknown(f"there is no thumbnail {digest!r}")
    kept = {"Cache-Control": "private, max-age=31536000, immutable"}
    return Response(content, media_type="image/jpeg", headers=kept)


def _page_route(content: bytes, kind: str) -> Callable[[], Response]:
    return lambda: Response(content, media_type=kind)


def make_app(session: Session) -> FastAPI:
    """The application that serves a model; `guard.Guard` stands before it."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        app.state.service.changes.submit(session.prepare)
        yield
        app.state.service.end()

    app = FastAPI(
        title="lowshot serve",
        version=__version__,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        lifespan=life,
    )
    app.state.service = _Service(session)
    for path, (content, kind) in pages().items():
        app.add_api_route(path, _page_route(content, kind), include_in_schema=False)
    app.include_router(router)
    app.include_router(plain)
    app.add_exception_handler(LowshotError, _known_problem)
    app.add_exception_handler(RequestValidationError, _wrong_parameters)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(ClientDisconnect, _nobody_there)
    app.add_exception_handler(Exception, _bug)
    return app


def _known_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, LowshotError)
    return error_answer(error)


def _wrong_parameters(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    return refusal(400, f"`{place or 'body'}`: {first['msg']}", "GET /openapi.json describes it")


def _no_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    return refusal(error.status_code, str(error.detail), "GET /openapi.json lists all", headers)


def _nobody_there(_: Request, __: Exception) -> Response:
    return refusal(400, "the client has gone")


def _bug(_: Request, error: Exception) -> Response:
    said = f"a bug in lowshot: {type(error).__name__}"
    return refusal(500, said, "the server's own output says more; please report it")
