"""Only the server's own page and its users get in, and nobody takes more than a share."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import Message, Receive, Send

from lowshot_cli.errors import LowshotError
from lowshot_cli.serve import guard
from lowshot_cli.serve.guard import Address, Guard, is_loopback
from lowshot_cli.serve.server import listen
from tests.serve.asking import HOST, NEVER, SLOW, Answer, Client, answered

PNG = ("content-type", "image/png")


async def echo(_: Message, receive: Receive, send: Send) -> None:
    """Answers with the number of bytes of the body."""
    count, more = 0, True
    try:
        while more:
            message = await receive()
            count += len(message.get("body", b""))
            more = message.get("more_body", False)
        status, body = 200, str(count).encode()
    except LowshotError as error:
        status, body = 999, error.message.encode()
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


def served(runner: asyncio.Runner, host: str = "127.0.0.1", token: str | None = None) -> Client:
    return Client(Guard(echo, Address(host, 8000, token), patience=0.05), runner)


@pytest.mark.parametrize("host", [HOST, "localhost:8000", "LOCALHOST:8000", "[::1]:8000"])
def test_a_server_answers_to_its_own_names(runner: asyncio.Runner, host: str) -> None:
    assert served(runner)("GET", "/", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example:8000", "127.0.0.1:8001", "127.0.0.1", "localhost", "", None),
        *("127.0.0.1.evil.example:8000", "127.0.0.2:8000", "localhost:8000@evil.example"),
        *("localhost:８０００".encode().decode("latin-1"), "localhost:" + "9" * 5000),
    ],
)
def test_a_name_that_was_turned_to_this_machine_is_refused(
    runner: asyncio.Runner, host: str | None
) -> None:
    assert served(runner)("GET", "/", host=host).status == 421


def test_a_request_names_one_host(runner: asyncio.Runner) -> None:
    assert served(runner)("GET", "/", headers=[("host", "evil.example")]).status == 421


def test_a_server_on_all_addresses_answers_to_numbers_but_not_to_names(
    runner: asyncio.Runner,
) -> None:
    client = served(runner, "0.0.0.0", "secret")
    key = [("authorization", "Bearer secret")]
    for host in ("192.168.1.7:8000", "localhost:8000", f"{socket.gethostname()}:8000"):
        assert client("GET", "/", host=host, headers=key).status == 200
    assert client("GET", "/", host="evil.example:8000", headers=key).status == 421


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("origin", f"http://{HOST}")], 200),
        ([("sec-fetch-site", "same-origin")], 200),
        ([("sec-fetch-site", "none")], 200),
        ([("origin", "http://evil.example")], 403),
        ([("origin", "null")], 403),
        ([("origin", f"https://{HOST}")], 403),
        ([("origin", "http://127.0.0.1:9000")], 403),
        ([("origin", f"http://{HOST}"), ("origin", "http://evil.example")], 403),
        ([("sec-fetch-site", "cross-site")], 403),
        ([("sec-fetch-site", "same-site")], 403),
        ([("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], 403),
    ],
)
@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH", "GET"])
def test_other_sites_ask_nothing(
    runner: asyncio.Runner, headers: list[tuple[str, str]], status: int, method: str
) -> None:
    assert served(runner)(method, "/predict", headers=headers).status == status


def test_a_link_on_another_site_may_open_the_page(runner: asyncio.Runner) -> None:
    headers = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")]
    assert served(runner)("GET", "/", headers=headers).status == 200


def test_beyond_this_machine_everything_asks_for_the_token(runner: asyncio.Runner) -> None:
    client = served(runner, "0.0.0.0", "secret")
    for headers in (
        [],
        [("authorization", "Bearer wrong")],
        [("authorization", "Basic secret")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer secré")],
        [("cookie", "lowshot-8000=wrong; lowshot-80=secret; secret")],
    ):
        answer = client("GET", "/model", headers=headers)
        assert (answer.status, answer.header("www-authenticate")) == (401, "Bearer")
    for target in ("/?token=wrong", "/?token=", "/model?token=secret"):
        assert client("GET", target).status == 401
    assert client("POST", "/?token=secret").status == 401


def test_who_opens_the_page_without_the_token_reads_what_to_do(runner: asyncio.Runner) -> None:
    client = served(runner, "0.0.0.0", "secret")
    answer = client("GET", "/", headers=[("accept", "text/html,*/*;q=0.8")])
    assert (answer.status, answer.header("www-authenticate")) == (401, "Bearer")
    assert (answer.header("content-type") or "").startswith("text/plain")
    assert "open the address that it printed" in answer.body.decode()


def test_the_printed_address_opens_the_page_by_a_cookie_that_only_it_gets(
    runner: asyncio.Runner,
) -> None:
    client = served(runner, "0.0.0.0", "secret")
    first = client("GET", "/?token=secret")
    cookie = first.header("set-cookie") or ""
    assert (first.status, first.header("location")) == (303, "/")
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} < set(cookie.split("; "))
    kept = [("cookie", f"other=1; {cookie.split(';')[0]}")]
    assert client("GET", "/", headers=kept).status == 200
    assert client("GET", "/", headers=[("authorization", "Bearer secret")]).status == 200


def test_long_heads_and_addresses_are_refused(runner: asyncio.Runner) -> None:
    client = served(runner)
    assert client("GET", "/", headers=[("x", "y" * 40_000)]).status == 413
    assert client("GET", "/" + "y" * 40_000).status == 413
    assert client("GET", "/?" + "y" * 40_000).status == 413
    assert client("GET", "/classes/%ff%fe").status == 400


def test_large_bodies_are_refused_announced_or_not(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "MOST_IN_ALL", 100)
    monkeypatch.setattr(guard, "_MOST_JSON", 60)
    client, image = served(runner), [PNG]
    assert client("POST", "/", headers=[PNG, ("content-length", "101")]).status == 413
    assert client("POST", "/", headers=image, body=[b"x" * 50] * 2).body == b"100"
    assert b"more than 100 bytes" in client("POST", "/", headers=image, body=[b"x" * 50] * 3).body
    assert client("POST", "/", headers=[("content-length", "61")]).status == 413
    assert b"more than 60 bytes" in client("POST", "/", body=[b"x" * 50] * 2).body


def test_a_request_under_way_when_the_server_ends_is_told(runner: asyncio.Runner) -> None:
    async def stopped() -> Answer:
        asked = asyncio.create_task(answered(served(runner).app, "POST", "/", body=[b"x", NEVER]))
        await asyncio.sleep(0)
        asked.cancel()
        return await asked

    answer = runner.run(stopped())
    assert (answer.status, answer.header("retry-after")) == (503, "1")
    assert answer.json["error"] == "the server ends"


def test_the_address_of_a_server_everywhere_is_one_for_other_machines() -> None:
    address = Address("0.0.0.0", 8000, "secret")
    assert "0.0.0.0" not in address.url
    assert address.serves(address.url.split("/")[2])
    assert address.serves(f"{socket.gethostname()}.local:8000")


def test_a_body_that_does_not_arrive_ends(runner: asyncio.Runner) -> None:
    assert b"does not arrive" in served(runner)("POST", "/", body=[b"x", NEVER]).body


def test_a_body_that_drips_ends(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "IN_ALL", 0.1)
    slow = [b"x", SLOW] * 20  # each part in time, but not all of them
    assert b"does not arrive" in served(runner)("POST", "/", body=slow).body
    assert served(runner)("POST", "/", body=slow[:4]).body == b"2"


def test_too_many_at_once_are_sent_away_and_told_when_to_come_again(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "MOST_WAITING", 3)
    client = served(runner)

    async def crowd() -> list[Any]:
        asked = [answered(client.app, "POST", "/", body=[b"x", NEVER]) for _ in range(5)]
        return await asyncio.gather(*asked)

    answers = runner.run(crowd())
    assert sorted(one.status for one in answers) == [503, 503, 999, 999, 999]
    assert {one.header("retry-after") for one in answers if one.status == 503} == {"1"}
    assert client("POST", "/", body=b"x").status == 200


def test_no_answer_may_be_sniffed_framed_or_kept(runner: asyncio.Runner) -> None:
    for answer in (served(runner)("GET", "/"), served(runner)("GET", "/", host="evil")):
        assert answer.header("x-content-type-options") == "nosniff"
        assert answer.header("cache-control") == "no-store"
        assert "default-src 'self'" in (answer.header("content-security-policy") or "")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("127.0.0.1", True), ("127.0.0.9", True), ("::1", True), ("localhost", True)),
        *(("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("localhost.evil", False)),
    ],
)
def test_a_token_is_asked_for_where_others_can_reach_the_server(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_only_a_server_that_others_reach_has_a_token() -> None:
    here, one = listen("127.0.0.1", 0)
    there, other = listen("0.0.0.0", 0)
    with here, there:
        # Without this asyncio leaves TCP_NODELAY off, and each answer waits for 40 ms.
        assert {here.proto, there.proto} == {socket.IPPROTO_TCP}
        assert one.token is None
        assert one.url == f"http://127.0.0.1:{here.getsockname()[1]}/"
        assert other.token
        assert other.url.endswith(f":{other.port}/?token={other.token}")
        with pytest.raises(LowshotError, match=r"cannot listen at 127\.0\.0\.1"):
            listen("127.0.0.1", one.port)
    for odd in ("no such host.", "\ud800", "a" * 300):
        with pytest.raises(LowshotError, match="no address of this machine"):
            listen(odd, 0)
