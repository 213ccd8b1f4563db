"""Thousands of hostile requests: each gets one clear line, and nothing is changed by any."""

from __future__ import annotations

import logging
import random
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lowshot_cli.serve.session import Session
from tests.serve.asking import NEVER, Client, form
from tests.serve.conftest import files, teach

Request = dict[str, Any]
NAMES = ("../../etc/passwd", "..\\..\\win.ini", "/dev/zero", "a\0b", "con", "", " ", "\u202e.png")
NAMES += ("x" * 3000, '"; filename="b.png', "\r\n\r\nx", "\ud83d\ude00", "%00", "${HOME}", "-rf")
TARGETS = (
    "/predict",
    "/classes/new",
    "/classes/f",
    "/undo?x=1",
    "/model",
    "/",
    "/health",
    "/export",
)
TARGETS += ("/thumbnails/..%2f..%2fbase", "/thumbnails/%00", "/classes/", "/classes", "/tradeoff")
TARGETS += ("/checkpoint?x=..", "/page.js/../../app.py", "//predict", "/%2e%2e/", "/openapi.json")
QUERIES = ("", "top=0", "top=-1", "top=1e9", "top=" + "9" * 400, "false_alarm=nan", "top=3&top=4")
QUERIES += (
    "false_alarm=1e400",
    "confidence=inf",
    "before=maybe",
    "replace=2",
    "force=%00",
    "=",
    "&&",
)
QUERIES += ("format=../../x", "%ff=%fe", "a" * 5000, "before=true&false_alarm=5", "confidence=0.5")
KINDS = (
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "image/png",
    "image/",
    "text/html",
)
KINDS += (
    "application/json",
    "multipart/form-data; boundary=" + "B" * 300,
    "multipart/mixed",
    "\xff",
)
KINDS += ("multipart/form-data; boundary=BOUND; charset=idna", "application/x-www-form-urlencoded")
JUNK = (
    b"",
    b"{",
    b"null",
    b"[]",
    b'{"name": 1}',
    b'{"max_forgetting": NaN}',
    b'{"name": "a\\u0000"}',
)
JUNK += (b'{"max_forgetting": 1e999}', b"[" * 3000, b'{"name": "\\ud800"}', b"\xff\xfe", b"--BOUND")
METHODS = ("GET", "HEAD", "PUT", "OPTIONS", "TRACE", "PATCH", "DELETE", "POST", "FOO")


def bombs() -> list[bytes]:
    """Small files that claim very many pixels, or are nothing but a claim."""

    def png(side: int) -> bytes:
        head = b"IHDR" + side.to_bytes(4) * 2 + b"\x01\0\0\0\0"
        rest = b"\0\0\0\rIDAT" + zlib.compress(bytes(5000))
        return b"\x89PNG\r\n\x1a\n\0\0\0\r" + head + zlib.crc32(head).to_bytes(4) + rest

    gif = b"GIF89a" + b"\xff" * 4 + b"\0\0\0,\0\0\0\0" + b"\xff" * 4 + b"\0\x02\0;"
    return [png(30_000), png(2**31 - 1), gif, b"II*\0" + b"\xff" * 500, b"BM" + b"\xff" * 200]


def damaged(content: bytes, choose: random.Random) -> bytes:
    """A few bytes changed, or the end cut off."""
    if choose.random() < 0.4:
        return content[: choose.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(choose.choice([1, 3, 20])):
        changed[choose.randrange(len(changed))] = choose.randrange(256)
    return bytes(changed)


def chunked(body: bytes, choose: random.Random) -> Sequence[bytes]:
    parts = choose.choice([1, 1, 2, 5])
    step = max(1, len(body) // parts)
    found = [body[start : start + step] for start in range(0, len(body), step)] or [b""]
    return [*found, NEVER] if choose.random() < 0.01 else found


class Attacker:
    """Makes hostile requests; none is one that may change the model."""

    def __init__(self, seed: int) -> None:
        self.choose = random.Random(seed)
        self.bombs, self.image = bombs(), files("g")[0][1]

    def request(self) -> Request:
        ways = (self.upload, self.broken_form, self.json, self.foreign, self.odd, self.head)
        return self.choose.choice(ways)()

    def upload(self) -> Request:
        """A whole form with at least one file that is no image, under odd names."""
        choose = self.choose
        bad = [*self.bombs, b"", b"GIF89a", damaged(self.image, choose)[:40], choose.randbytes(99)]
        contents = [choose.choice(bad), *choose.choices([*bad, self.image], k=choose.randrange(3))]
        count = 70 if choose.random() < 0.02 else 1
        sent = [(choose.choice(NAMES).encode("utf-8", "replace").decode(), c) for c in contents]
        kind, body = form([(name.replace("\0", "0"), c) for name, c in sent] * count)
        return self.to(choose.choice(["/predict", "/classes/new"]), kind, body)

    def broken_form(self) -> Request:
        """A form that is damaged before its end."""
        kind, body = form([("a.png", self.image)])
        cut = body[: self.choose.randrange(len(body) - 12)]
        head, rest = cut[:80], cut[80:]
        content = damaged(head, self.choose) + rest if head else b""
        return self.to(self.choose.choice(["/predict", "/classes/new"]), kind, content)

    def json(self) -> Request:
        target = self.choose.choice(["/classes/f", "/classes/a", "/model", "/classes/" + "x" * 99])
        junk = self.choose.choice(JUNK)
        return self.to(target, self.choose.choice(["application/json", *KINDS]), junk, "PATCH")

    def foreign(self) -> Request:
        """A request that would do something, from elsewhere."""
        choose = self.choose
        method, target = choose.choice(
            [("POST", "/undo"), ("DELETE", "/classes/f"), ("POST", "/predict"), ("GET", "/export")]
        )
        odd = choose.choice(
            [
                ("origin", "http://evil.example"),
                ("origin", "null"),
                ("sec-fetch-site", "cross-site"),
            ]
        )
        if choose.random() < 0.5:
            return {"method": method, "target": target, "headers": [odd]}
        host = choose.choice(["evil.example", "127.0.0.1", "", "localhost:80:8000", "\xff:8000"])
        return {"method": method, "target": target, "host": host}

    def odd(self) -> Request:
        """Any method at any address, with any body that is not an image."""
        choose = self.choose
        target = choose.choice(TARGETS)
        method = choose.choice(METHODS)
        if target == "/export" and method in {"GET", "HEAD"}:
            target = "/export?format=exe"
        if (method, target) == ("DELETE", "/classes/f"):
            target = "/classes/g"
        query = choose.choice(QUERIES)
        joined = f"{target}{'&' if '?' in target else '?'}{query}" if query else target
        body = choose.choice([b"", *JUNK, choose.randbytes(choose.randrange(2000))])
        return self.to(joined, choose.choice(KINDS), body, method)

    def head(self) -> Request:
        """Many or long headers, or odd ones."""
        choose = self.choose
        odd = [
            [("x", "y" * 50_000)],
            [(f"x-{n}", "y" * 100) for n in range(400)],
            [("content-length", choose.choice(["-1", "x", "9" * 40, "\xb2", "1e9"]))],
            [("transfer-encoding", "chunked, chunked"), ("expect", "100-continue")],
            [("cookie", ";;=;" * 500), ("authorization", "\xff")],
            [("content-type", "multipart/form-data"), ("content-type", "image/png")],
            [("accept-encoding", "\xff" * 50), ("range", "bytes=0-,-1")],
        ]
        target = choose.choice(["/predict", "/classes/new", "/classes/%ff", "/nothing"])
        return {"method": "POST", "target": target, "headers": choose.choice(odd)}

    def to(self, target: str, kind: str, body: bytes, method: str = "POST") -> Request:
        headers = [("content-type", kind)]
        content = chunked(body, self.choose)
        return {"method": method, "target": target, "headers": headers, "body": content}


def attack(client: Client, session: Session, folder: Path, count: int, seed: int) -> None:
    """Send hostile requests, and hold that nothing came of them."""
    teach(session, "f")
    models = [path for path in folder.rglob("*") if path.is_file()]
    before, now = {path: path.read_bytes() for path in models}, session.now
    attacker, seen = Attacker(seed), set()
    for _ in range(count):
        request = attacker.request()
        answer = client(**request)
        seen.add(answer.status)
        assert answer.status in {200, 303, 400, 403, 404, 405, 408, 409, 413, 415, 421, 422}, (
            request
        )
        assert b"Traceback" not in answer.body
        if answer.status >= 400 and request["method"] != "HEAD":
            assert set(answer.json) == {"error", "hint"}, request
            assert "\n" not in answer.json["error"]
    assert session.now is now
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after == before
    assert {400, 403, 404, 405, 413, 415, 421, 422} <= seen
    assert client.post_images("/predict", files("f")).status == 200


def test_hostile_requests_get_one_line_each_and_change_nothing(
    client: Client, session: Session, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attack(client, session, folder, 200, seed=0)
    assert [one for one in caplog.records if one.levelno >= logging.ERROR] == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_thousands_of_hostile_requests_change_nothing(
    client: Client, session: Session, folder: Path, seed: int
) -> None:
    attack(client, session, folder, 2500, seed)
