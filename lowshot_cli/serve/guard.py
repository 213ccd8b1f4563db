"""Who may ask, and how much: what is checked of every request before it reaches the application.

A page of another site can send requests to an address of this machine, by its own name for it (DNS
rebinding) or across sites. The browser says whom it asks in `Host`, and for whom in `Origin` and
`Sec-Fetch-Site`; these are compared with the address that is served.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote_to_bytes

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lowshot_cli.errors import LowshotError, UsageError
from lowshot_cli.serve.answers import error_answer
from lowshot_cli.serve.errors import Busy, Misdirected, NotAllowed, NoToken, TooLarge, TooSlow
from lowshot_cli.serve.uploads import MOST_IN_ALL

# Bytes of all headers of a request, and of its address.
_MOST_HEADERS = 32_000
# Bytes of a body that holds no images.
_MOST_JSON = 65_536
# Requests that are worked on or wait, before others are sent away.
MOST_WAITING = 32
# Seconds that a part of a body may take to arrive, and all of it.
PATIENCE, IN_ALL = 20.0, 300.0
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'self'; "
        b"frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


@dataclass(frozen=True)
class Address:
    """Where the server listens.

    Attributes:
        host: name or address.
        port: number.
        token: what requests must show; None for a loopback address, which needs none.
    """

    host: str
    port: int
    token: str | None = None

    @property
    def is_everywhere(self) -> bool:
        """Whether it is on all addresses of the machine."""
        return self.host in {"0.0.0.0", "::"}

    @property
    def url(self) -> str:
        """The address of the page, with the token; of a server everywhere, for other machines."""
        host = _outward_address() if self.is_everywhere else self.host
        host = f"[{host}]" if ":" in host else host
        end = f"?token={self.token}" if self.token else ""
        return f"http://{host}:{self.port}/{end}"

    @property
    def cookie(self) -> str:
        """Name of the cookie that holds the token, as servers on other ports share cookies."""
        return f"lowshot-{self.port}"

    def serves(self, given: str) -> bool:
        """Whether a `Host` header names this server.

        Of a server on all addresses of the machine every number is one, as only a name can be
        turned to another machine.
        """
        host, port = _split(given)
        if port != self.port:
            return False
        if host in {"localhost", "127.0.0.1", "::1", self.host.lower()}:
            return True
        name = socket.gethostname().lower()
        return self.is_everywhere and (_is_number(host) or host in {name, f"{name}.local"})


def _outward_address() -> str:
    """The number by which other machines know this one, or its name if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        try:
            outward.connect(("192.0.2.1", 9))  # sends nothing, but picks the way out
        except OSError:
            return socket.gethostname()
        number: str = outward.getsockname()[0]
        return number


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    return _is_number(host) and ipaddress.ip_address(host).is_loopback


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _split(given: str) -> tuple[str, int]:
    """Host and port of a `Host` header; port 0 if it is no number."""
    host, colon, port = given.rpartition(":")
    if not colon or given.endswith("]"):
        host, port = given, "80"
    number = int(port) if port.isascii() and port.isdecimal() and len(port) < 6 else 0
    return host.removeprefix("[").removesuffix("]").lower(), number


class Guard:
    """Lets requests through to an application that are allowed, and small and fast enough.

    Args:
        app: the application.
        address: where it is served.
        patience: seconds that each part of a body may take.
    """

    def __init__(self, app: ASGIApp, address: Address, *, patience: float = PATIENCE) -> None:
        self.app, self.address, self.patience = app, address, patience
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            else:
                await send({"type": "websocket.close"})
            return
        send = _Sending(send)
        try:
            cookie = self._check(scope)
        except LowshotError as error:
            await error_answer(error, as_text=_opens_page(scope))(scope, receive, send)
            return
        if cookie:
            await _to_page(cookie, send)
            return
        self._waiting += 1
        try:
            await self.app(scope, self._limited(scope, receive), send)
        except asyncio.CancelledError:  # the server ends
            if not send.has_begun:
                ends = Busy("the server ends", "start it again, and send this again")
                await error_answer(ends)(scope, receive, send)
        finally:
            self._waiting -= 1

    def _check(self, scope: Scope) -> bytes:
        """The cookie to set for a page that was opened with the token; empty if there is none.

        Raises:
            LowshotError: the request is not allowed.
        """
        headers = list(scope["headers"])
        size = sum(len(name) + len(value) for name, value in headers)
        if size + len(scope.get("raw_path") or b"") + len(scope["query_string"]) > _MOST_HEADERS:
            raise TooLarge(f"address and headers have more than {_MOST_HEADERS:,} bytes")
        try:
            unquote_to_bytes(scope.get("raw_path") or b"").decode()
        except UnicodeDecodeError:
            raise UsageError("the address is not UTF-8") from None
        self._check_origin(scope, headers)
        cookie = self._check_token(scope, headers)
        if self._waiting >= MOST_WAITING:
            raise Busy(f"{self._waiting} requests wait already", "try again in a second")
        most = _most_bytes(scope)
        if any(int(n) > most for n in _all(headers, b"content-length") if n.isdecimal()):
            raise _body_too_large(most)
        return cookie

    def _check_origin(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> None:
        hosts = _all(headers, b"host")
        if len(hosts) != 1 or not self.address.serves(hosts[0]):
            given = hosts[0] if hosts else "no host"
            raise Misdirected(f"this server is not {given!r}", "use the address that it printed")
        origins = _all(headers, b"origin")
        site = _all(headers, b"sec-fetch-site")
        opens = scope["path"] == "/" and _all(headers, b"sec-fetch-mode") == ["navigate"]
        is_foreign = any(one in {"cross-site", "same-site"} for one in site) and not opens
        if is_foreign or any(one != f"http://{hosts[0]}" for one in origins):
            raise NotAllowed("this request comes from another site", "use the server's own page")

    def _check_token(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> bytes:
        token = self.address.token
        if token is None:
            return b""
        opens = scope["method"] == "GET" and scope["path"] == "/"
        query = parse_qs(scope["query_string"].decode("latin-1")) if opens else {}
        if any(_same(one, token) for one in query.get("token", [])):
            kept = f"{self.address.cookie}={token}; HttpOnly; SameSite=Lax; Path=/"
            return kept.encode()
        shown = [one.removeprefix("Bearer ") for one in _all(headers, b"authorization")]
        pairs = (part.strip() for one in _all(headers, b"cookie") for part in one.split(";"))
        name = f"{self.address.cookie}="
        shown += [pair.removeprefix(name) for pair in pairs if pair.startswith(name)]
        if not any(_same(one, token) for one in shown):
            raise NoToken(
                "this server asks for its token",
                "open the address that it printed, or send `Authorization: Bearer TOKEN`",
            )
        return b""

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Receive a body of limited size in limited time."""
        loop, most = asyncio.get_running_loop(), _most_bytes(scope)
        count, is_whole, deadline = 0, False, loop.time() + IN_ALL

        async def limited() -> Message:
            nonlocal count, is_whole
            if is_whole:  # what comes then is that the client has gone
                return await receive()
            left = min(self.patience, deadline - loop.time())
            try:
                async with asyncio.timeout(max(0.0, left)):
                    message = await receive()
            except TimeoutError:
                raise TooSlow("the body does not arrive", "send it again") from None
            count += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if count > most:
                raise _body_too_large(most)
            return message

        return limited


def _opens_page(scope: Scope) -> bool:
    """Whether the request is a browser's that opens the page."""
    accepted = _all(scope["headers"], b"accept")
    return scope["path"] == "/" and any("text/html" in kinds for kinds in accepted)


def _most_bytes(scope: Scope) -> int:
    """Bytes that the body of a request may have: many for images, few for anything else."""
    kinds = _all(scope["headers"], b"content-type")
    holds_images = any(kind.lower().startswith(("multipart/", "image/")) for kind in kinds)
    return MOST_IN_ALL if holds_images else _MOST_JSON


def _body_too_large(most: int) -> TooLarge:
    hint = "send fewer images" if most == MOST_IN_ALL else "send less"
    return TooLarge(f"the body has more than {most:,} bytes", hint)


def _all(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1") for each, value in headers if each == name]


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


class _Sending:
    """Sends an answer with the headers that each has.

    Attributes:
        has_begun: whether the answer is on its way.
    """

    def __init__(self, send: Send) -> None:
        self._send, self.has_begun = send, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            headers = [*message.get("headers", ()), *_HEADERS]
            if not any(name == b"cache-control" for name, _ in headers):
                headers.append((b"cache-control", b"no-store"))
            message = {**message, "headers": headers}
        await self._send(message)


async def _to_page(cookie: bytes, send: Send) -> None:
    """Keep the token in a cookie, and take it out of the address."""
    headers = [(b"location", b"/"), (b"set-cookie", cookie), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
