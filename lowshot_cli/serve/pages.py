"""The page and its files, as they are sent."""

from __future__ import annotations

from importlib.resources import files

_KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css"}


def pages() -> dict[str, tuple[bytes, str]]:
    """Content and type of the page, at `/`, and of each of its files."""
    package = files("lowshot_cli")
    # Reports share their look with the page.
    sent = [package / "look.css", *(package / "serve" / "page").iterdir()]
    return {
        "/" if one.name == "page.html" else f"/{one.name}": (one.read_bytes(), kind)
        for one in sent
        if (kind := _KINDS.get(one.name.rpartition(".")[2]))
    }
