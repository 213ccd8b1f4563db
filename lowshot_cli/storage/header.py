"""The header of a safetensors file, read by itself and bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Bytes that a header may take in a file of any size.
SHORT_HEADER = 2 * 1024**2


def header_size(path: Path) -> int:
    """Bytes of the JSON header of a safetensors file, as its first eight bytes say.

    Raises:
        OSError: the file cannot be read.
        ValueError: the header is out of proportion. Parsing one takes many times its size in
            memory, so it must be short.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > max(SHORT_HEADER, size // 10):
        raise ValueError(f"its header is said to be {length:,} of its {size:,} bytes")
    return length


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: its metadata, and where each tensor lies.

    Raises:
        OSError: the file cannot be read.
        ValueError: the header is out of proportion, or no JSON object.
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
