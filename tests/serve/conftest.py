"""A served model of the tiny world, photos to teach it, and the page in a browser."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lowshot_cli.checkpoint.format import save
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.decoding import ByteArray
from lowshot_cli.serve.app import make_app
from lowshot_cli.serve.guard import Address, Guard
from lowshot_cli.serve.session import Session
from tests.conftest import save_images
from tests.faults.conftest import Server
from tests.serve.asking import Client, png
from tests.serve.tab import CHROMIUM, FLAGS, Served, Tab
from tests.tiny_world import CLASSES, tiny_world

if TYPE_CHECKING:
    from playwright import sync_api


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A work folder with a base model."""
    made = tmp_path / "runs"
    made.mkdir()
    save(tiny_world("linear")[1], made / "base.safetensors")
    return made


@pytest.fixture
def session(folder: Path) -> Session:
    return Session(folder / "base.safetensors")


@pytest.fixture
def client(session: Session) -> Iterator[Client]:
    app = make_app(session)
    with asyncio.Runner() as runner:
        yield Client(Guard(app, Address("127.0.0.1", 8000), patience=0.2), runner)
    app.state.service.end()


def photos(name: str, count: int = 4) -> ByteArray:
    """Photos `(count, 3, S, S)` of a class of the tiny world that no base model knows."""
    dataset = tiny_world("linear")[0]
    members = dataset.train.of_class(CLASSES.index(name))[:count]
    pixels: ByteArray = dataset.train.pixels[members].numpy()
    return pixels


def files(name: str, count: int = 4) -> list[tuple[str, bytes]]:
    """The same as PNG files with names."""
    return [(f"{name}{place}.png", png(image)) for place, image in enumerate(photos(name, count))]


def teach(session: Session, name: str, count: int = 4) -> None:
    """Teach a class of the tiny world by its name."""
    session.teach(name, photos(name, count), [f"{name}{place}.png" for place in range(count)])


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def served(server: Server, workdir: Path) -> Iterator[Served]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = Served(server, workdir, port)
    try:
        started.start()
        yield started
    finally:
        started.kill()


@pytest.fixture
def tab(browser: sync_api.Browser, served: Served, request: pytest.FixtureRequest) -> Iterator[Tab]:
    size = {"width": getattr(request, "param", 1280), "height": 900}
    context = browser.new_context(viewport=size, reduced_motion="reduce")
    opened = Tab(context.new_page())
    opened.page.goto(served.address)
    opened.see("#saved", "imprinted.safetensors")
    yield opened
    context.close()


@pytest.fixture(scope="module")
def omegas(glyphs: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight photos of a class that the base model does not know."""
    folder = tmp_path_factory.mktemp("photos")
    members = glyphs.train.of_class(glyphs.label("omega"))[:8]
    save_images(glyphs.train.pixels[members], folder)
    return sorted(folder.iterdir())
