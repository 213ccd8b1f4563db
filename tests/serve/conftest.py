"""A served model of the tiny world, and photos to teach it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowshot_cli.checkpoint.format import save
from lowshot_cli.data.decoding import ByteArray
from lowshot_cli.serve.app import make_app
from lowshot_cli.serve.guard import Address, Guard
from lowshot_cli.serve.session import Session
from tests.serve.asking import Client, png
from tests.tiny_world import CLASSES, tiny_world


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
