"""The pages that people read."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent
_FOLDERS = ("configs", "lowshot_cli", "tests")
READMES = [ROOT / "README.md", *sorted(p for f in _FOLDERS for p in (ROOT / f).rglob("README.md"))]
PAGES = [*READMES, *sorted((ROOT / ".github").glob("*.md"))]
