"""Requests to the server without a network: one ASGI application, called as a server calls it."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import Image
from starlette.types import ASGIApp, Message

HOST = "127.0.0.1:8000"
# Stands for a part of a body that never arrives.
NEVER = b"(never)"
# Stands for 10 ms in which nothing arrives.
SLOW = b"(slow)"


@dataclass
class Answer:
    """What the application sent."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        found = [value.decode() for each, value in self.headers if each == name.encode()]
        return found[0] if found else None


async def answered(
    app: ASGIApp,
    method: str,
    target: str,
    *,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes | Sequence[bytes] = b"",
    host: str | None = HOST,
) -> Answer:
    """The answer to a request, or what of it came before the application gave up."""
    path, _, query = target.partition("?")
    sent = [("host", host)] if host is not None else []
    scope: Message = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("utf-8", "surrogateescape"),
        "query_string": query.encode("utf-8", "surrogateescape"),
        "root_path": "",
        "headers": [(a.lower().encode(), b.encode("latin-1")) for a, b in [*sent, *headers]],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    }
    chunks = [body] if isinstance(body, bytes) else list(body)
    incoming = _messages(chunks)
    answer = Answer()

    async def receive() -> Message:
        return await anext(incoming)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status, answer.headers = message["status"], list(message["headers"])
        else:
            answer.body += message.get("body", b"")

    await app(scope, receive, send)
    return answer


async def _messages(chunks: Sequence[bytes]) -> AsyncIterator[Message]:
    for place, chunk in enumerate(chunks):
        if chunk == NEVER:
            await asyncio.Event().wait()
        if chunk == SLOW:
            await asyncio.sleep(0.01)
        more = place + 1 < len(chunks)
        part = b"" if chunk == SLOW else chunk
        yield {"type": "http.request", "body": part, "more_body": more}
    while True:
        yield {"type": "http.disconnect"}


@dataclass
class Client:
    """Asks an application, each request on the same event loop."""

    app: ASGIApp
    runner: asyncio.Runner

    def __call__(self, method: str, target: str, **how: Any) -> Answer:
        return self.runner.run(answered(self.app, method, target, **how))

    def post_images(self, target: str, images: Iterable[tuple[str, bytes]]) -> Answer:
        kind, body = form(images)
        return self("POST", target, headers=[("content-type", kind)], body=body)

    def send_json(self, method: str, target: str, value: object) -> Answer:
        headers = [("content-type", "application/json")]
        return self(method, target, headers=headers, body=json.dumps(value).encode())


def form(images: Iterable[tuple[str, bytes]], *, name: str = "images") -> tuple[str, bytes]:
    """Content type and body of a form with files."""
    parts = [
        f'--BOUND\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n'
        "Content-Type: image/png\r\n\r\n".encode()
        + content
        + b"\r\n"
        for file, content in images
    ]
    return "multipart/form-data; boundary=BOUND", b"".join(parts) + b"--BOUND--\r\n"


def png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """An image `(3, S, S)` as a PNG."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(file, "PNG")
    return file.getvalue()
