"""Image files without metadata, for when broken metadata keeps whole pixels from being read."""

from __future__ import annotations

import struct
import zlib

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT"}
_PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"
_WEBP_PIXELS = {b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"}
_WEBP_EXIF, _WEBP_METADATA = 0x08, 0x20 | 0x08 | 0x04  # flags: EXIF; ICC profile, EXIF, XMP
# What a TIFF must say for its pixels to be found and read, and the orientation (274).
_TIFF_PIXELS = frozenset(
    {256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 281, 284, 292, 293, 317, 320}
    | {322, 323, 324, 325, 338, 339, 347, *range(512, 522), 529, 530, 531, 532}
)


def without_metadata(content: bytes) -> bytes | None:
    """The file with only its pixels and, where it can be read, the orientation.

    Returns:
        None for a format whose metadata cannot be taken out, or need not be.
    """
    try:
        if content.startswith(_PNG):
            return _png(content)
        if content.startswith(b"\xff\xd8\xff"):
            return _jpeg(content)
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            return _webp(content)
        if content[:4] in (b"II*\0", b"MM\0*"):
            return _tiff(content)
    except (struct.error, IndexError):  # it ends too early, so pixels are missing too
        pass
    return None


def _png(content: bytes) -> bytes:
    """After the PNG specification: a chunk is its length, name, content and CRC."""
    kept, place = [_PNG], len(_PNG)
    while place + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, place)
        chunk = content[place : place + 12 + length]
        whole = chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
        if name in _PNG_PIXELS or (name == b"eXIf" and whole):
            kept.append(chunk)
        place += 12 + length
    return b"".join([*kept, _PNG_END])


def _jpeg(content: bytes) -> bytes:
    """Segments before the first scan, without application data other than JFIF, EXIF and Adobe."""
    kept, place = [content[:2]], 2
    while content[place] == 0xFF and content[place + 1] != 0xDA:
        if content[place + 1] == 0xFF:  # padding
            place += 1
            continue
        (length,) = struct.unpack_from(">H", content, place + 2)
        segment = content[place : place + 2 + length]
        marker, said = segment[1], segment[4:]
        is_needed = (
            (marker == 0xE0 and said.startswith(b"JFIF\0") and len(said) >= 14)
            or (marker == 0xE1 and said.startswith(b"Exif\0\0"))
            or (marker == 0xEE and said.startswith(b"Adobe") and len(said) >= 12)
        )
        if is_needed or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(segment)
        place += 2 + length
    return b"".join([*kept, content[place:]])


def _webp(content: bytes) -> bytes:
    """After the WebP container specification: flags in VP8X tell which chunks follow."""
    kept, flags, place = {}, 0, 12
    while place + 8 <= len(content):
        name, length = struct.unpack_from("<4sI", content, place)
        end = place + 8 + length + length % 2
        if name in _WEBP_PIXELS:
            kept[place] = content[place:end]
        elif name == b"EXIF" and end <= len(content):
            kept[place], flags = content[place:end], _WEBP_EXIF
        place = end
    start = content[12:30]
    if start.startswith(b"VP8X"):
        kept[0] = start[:8] + bytes([start[8] & ~_WEBP_METADATA | flags]) + start[9:]
    body = b"WEBP" + b"".join(kept[place] for place in sorted(kept))
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _tiff(content: bytes) -> bytes:
    """The first image alone; its directory is written again in its place."""
    order = "<" if content[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", content, 4)
    (count,) = struct.unpack_from(order + "H", content, start)
    end = start + 2 + 12 * count + 4
    entries = [content[place : place + 12] for place in range(start + 2, end - 4, 12)]
    kept = [each for each in entries if struct.unpack(order + "H", each[:2])[0] in _TIFF_PIXELS]
    directory = struct.pack(order + "H", len(kept)) + b"".join(kept)
    room = len(content[start:end])
    return content[:start] + directory.ljust(room, b"\0") + content[end:]
