"""The process that serves: its socket, and its end."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from lowshot_cli.errors import LowshotError, one_line
from lowshot_cli.serve.app import make_app
from lowshot_cli.serve.guard import Address, Guard, is_loopback
from lowshot_cli.serve.session import Session

# Bytes of a request's head; more closes the connection.
_MOST_HEAD = 65_536
# Seconds that requests under way get when the server ends.
_LAST_ANSWERS = 10


def listen(host: str, port: int) -> tuple[socket.socket, Address]:
    """A socket that listens, and its address; beyond this machine, with a token.

    Args:
        host: name or address.
        port: number; 0 takes a free one.

    Raises:
        LowshotError: the address is in use, or not one of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.create_server((host, port), family=family, backlog=128)
    except (socket.gaierror, UnicodeError):
        raise LowshotError(
            f"{host!r} is no address of this machine", "leave `host` out, or give 0.0.0.0"
        ) from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else one_line(error)
        raise LowshotError(
            f"cannot listen at {host}, port {port}: {reason}",
            "another `port` may be free, or another `host` of this machine",
        ) from None
    # Named as TCP, it gets TCP_NODELAY from asyncio; else each answer would wait for 40 ms.
    opened = socket.socket(made.family, made.type, socket.IPPROTO_TCP, made.detach())
    token = None if is_loopback(host) else secrets.token_urlsafe(24)
    return opened, Address(host, opened.getsockname()[1], token)


def serve(
    session: Session, opened: socket.socket, address: Address, on_ready: Callable[[], None]
) -> None:
    """Serve a model until Ctrl-C or SIGTERM.

    Args:
        session: the model.
        opened: the socket of `listen`.
        address: where it is.
        on_ready: called once requests may come.
    """
    for name in ("uvicorn.error", "python_multipart"):  # they print a line for each odd request
        logging.getLogger(name).setLevel(logging.ERROR)
    app = make_app(session)
    config = uvicorn.Config(
        Guard(app, address),
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=_MOST_HEAD,
        timeout_graceful_shutdown=_LAST_ANSWERS,
    )
    # After an orderly end uvicorn sends itself the signal again.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    on_ready()
    try:
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[opened])
    finally:
        app.state.service.end()  # what is being changed is written first
