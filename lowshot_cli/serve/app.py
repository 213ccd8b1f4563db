"""The HTTP interface: what is asked, of whom, and the answer as JSON."""

from __future__ import annotations

import asyncio
import os
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

from lowshot_cli.data.decoding import ByteArray
from lowshot_cli.errors import LowshotError, UsageError
from lowshot_cli.evaluation.predict import describe
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
    Undoing,
    checked_name,
)
from lowshot_cli.serve.batching import Batches
from lowshot_cli.serve.downloads import download, zipped
from lowshot_cli.serve.errors import Conflict, Unknown
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


class _Service:
    """The served model, and the threads that work for it.

    Predictions are batched in threads of their own, changes are made one at a time in another, and
    exports, which take long, in one more. Whoever makes it ends it.
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

    async def asked_models(self, asked: Predicting) -> tuple[Served, Served | None]:
        """The model that a request is for, and the one that it is compared with, if any."""
        if asked.before:
            return await self.change(self.session.before), None
        if asked.compare:
            return await self.change(self._compared_models)
        return self.session.now, None

    def _compared_models(self) -> tuple[Served, Served | None]:
        try:
            return self.session.now, self.session.before()
        except LowshotError:  # there is none, or its file cannot be read
            return self.session.now, None

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
        "revision": now.revision,
        "n_classes": len(now.checkpoint.meta.classes),
    }


@plain.get("/classes")
def classes(service: Service) -> list[Record]:
    """The record of `lowshot classes list --json`, with thumbnails and first names."""
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
    served, before = await service.asked_models(asked)
    with service.batches.reading():
        names, pixels = await service.read(request)
        answer = partial(_compared, served, before, names, asked)
        found = service.batches.submit(torch.from_numpy(pixels), answer)
    return await asyncio.wrap_future(found)


def _compared(
    served: Served,
    before: Served | None,
    names: list[str],
    asked: Predicting,
    embeddings: torch.Tensor,
) -> list[Record]:
    found = _predictions(served, names, asked, embeddings)
    if not asked.compare:
        return found
    earlier = _predictions(before, names, asked, embeddings) if before else [None] * len(found)
    return [{**now, "before": then} for now, then in zip(found, earlier, strict=True)]


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
    session, name = service.session, checked_name(name)
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


@router.post("/undo")
async def undo(service: Service, asked: Annotated[Undoing, Query()]) -> Record:
    """Take the last change back; answers as `GET /model`."""
    return _with_limits(await service.change(partial(_undo, service.session, asked.of)))


def _undo(session: Session, revision: str | None) -> Record:
    if revision not in (None, session.now.revision):
        raise Conflict("the model has changed since", "look at what undo would take back now")
    return session.undo()


@plain.patch("/model")
async def budget(service: Service, asked: Budget) -> Record:
    """Set the bias for another budget; answers as `GET /model`."""
    work = partial(service.session.set_budget, asked.max_forgetting)
    return _with_limits(await service.change(work))


@plain.get("/checkpoint", response_class=Response)
async def checkpoint(service: Service) -> Response:
    """The model as a checkpoint."""

    def read() -> tuple[bytes, str]:
        path = service.session.now.path
        return path.read_bytes(), path.name

    return download(*await service.change(read), "application/octet-stream")


@router.get("/export", response_class=Response)
async def exported(service: Service, asked: Annotated[Exporting, Query()]) -> Response:
    """The model for other programs, as `lowshot export`, in a zip."""
    now = service.session.now
    work = partial(zipped, now, asked.format)
    content = await asyncio.get_running_loop().run_in_executor(service.exports, work)
    return download(content, f"{now.path.stem}-{asked.format}.zip", "application/zip")


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
    if first["loc"][0] == "body" and (first["type"] == "json_invalid" or not place):
        hint = "send an object of JSON, with `Content-Type: application/json`"
        return refusal(400, "the body is not an object of JSON", hint)
    return refusal(400, f"`{place}`: {first['msg']}", "GET /openapi.json describes it")


def _no_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, LowshotError):  # what was wrong as its body was read
        return error_answer(error.__cause__)
    headers = dict(error.headers or {})
    return refusal(error.status_code, str(error.detail), "GET /openapi.json lists all", headers)


def _nobody_there(_: Request, __: Exception) -> Response:
    return refusal(400, "the client has gone")


def _bug(_: Request, error: Exception) -> Response:
    said = f"a bug in lowshot: {type(error).__name__}"
    return refusal(500, said, "the server's own output says more; please report it")
