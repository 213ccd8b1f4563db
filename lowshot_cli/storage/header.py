"""The header of a safetensors file, read alone and only if it is of reasonable size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Bytes that a header may take, however small the file.
SHORT_HEADER = 2 * 1024**2


def header_size(path: Path) -> int:
    """Bytes of the JSON header of a safetensors file, as its first eight bytes say.

    Raises:
        OSError: the file cannot be read.
        ValueError: the header is too long for the file. Parsing it takes many times its size in
            memory.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > max(SHORT_HEADER, size // 10):
        raise ValueError(f"its header claims {length:,} of its {size:,} bytes")
    return length


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: its metadata, and where each tensor lies.

    Raises:
        OSError: the file cannot be read.
        ValueError: the header is too long for the file, or not a JSON object.
    """
    length = header_size(path)
    with path.open("rb") as file:
        content = file.read(8 + length)[8:]
    try:
        header = json.loads(content)
    except RecursionError:
        raise ValueError("its header is nested too deep") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header
