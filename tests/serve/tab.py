"""A page of `lowshot serve` in a real browser, and the server behind it."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.conftest import Running, Server, wait_until

if TYPE_CHECKING:
    from playwright import sync_api

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
]
FLAGS = [
    *["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
    *["--disable-component-update", "--disable-sync", "--no-first-run"],
    *["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"],
]
# Milliseconds after which something will not come any more.
PATIENCE = 15_000
# A drop as a person makes it, with files made of base64.
DROP = """(zone, files) => {
  const transfer = new DataTransfer();
  for (const [name, content] of files) {
    const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type: "image/png" }));
  }
  zone.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
}"""


@dataclass
class Served:
    """A server of one work folder that can be killed and started again at its address."""

    server: Server
    workdir: Path
    port: int
    running: Running | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        arguments = ["serve", "--workdir", self.workdir, "--port", self.port]
        running = self.running = self.server.start(*arguments, cwd=self.workdir.parent)
        wait_until(lambda: running.err.exists() and self.address in running.stderr)
        wait_until(self._listens)

    def kill(self) -> None:
        if self.running is not None:
            os.kill(self.running.pid, signal.SIGKILL)
            self.running.wait()
            self.running = None

    def _listens(self) -> bool:
        with socket.socket() as asked:
            return asked.connect_ex(("127.0.0.1", self.port)) == 0


@dataclass
class Tab:
    """An open page, with what its console said and what it asked for."""

    page: sync_api.Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", lambda one: self.said.append(f"{one.type}: {one.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def drop(self, section: str, files: list[Path]) -> None:
        contents = [[file.name, base64.b64encode(file.read_bytes()).decode()] for file in files]
        self.page.locator(f"{section} .drop").evaluate(DROP, contents)

    def teach(self, name: str, files: list[Path]) -> None:
        self.drop("#teach", files)
        self.page.fill("#name", name)
        self.page.click("#go")
        self.see("#taught", f"Learnt {name} from {len(files)} photos")

    def see(self, place: str, text: str) -> None:
        from playwright import sync_api

        sync_api.expect(self.page.locator(place)).to_contain_text(text, timeout=PATIENCE)

    def count(self, place: str, n: int) -> None:
        from playwright import sync_api

        sync_api.expect(self.page.locator(place)).to_have_count(n, timeout=PATIENCE)
