"""Download a dataset's archive without trusting the server.

`tarfile`'s extraction filters do not serve here: only a few members of known names are unpacked,
atomically, and an archive with links or absolute names is refused, where the `data` filter accepts
or renames them.
"""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import URLError

from lowshot_cli.data.image_files import is_outside
from lowshot_cli.errors import DataError
from lowshot_cli.progress import OnProgress, Progress, silent
from lowshot_cli.storage.files import write_atomically

_CHUNK = 1024**2
_TIMEOUT_SECONDS = 30
_ATTEMPTS = 2


@dataclass(frozen=True)
class Archive:
    """A `.tar.gz` on the internet.

    Attributes:
        url: an https URL.
        size: in bytes.
        md5: hex digest of the whole file.
        files: the members to unpack, and the most bytes that each may take.
    """

    url: str
    size: int
    md5: str
    files: Mapping[str, int]


class _AlteredError(Exception):
    """What the server sent is not the archive."""


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirections to https only."""

    def redirect_request(  # noqa: PLR0917 - as in the standard library
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str
    ) -> Any:
        _ensure_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(archive: Archive, folder: Path, on_progress: OnProgress = silent) -> None:
    """Download an archive and unpack the files that are wanted.

    Nothing is unpacked before the checksum is right. An archive that was cut off or altered on its
    way is downloaded once more. It has no name on the disk, so nothing of it outlives the process.

    Args:
        archive: the archive to fetch.
        folder: where its files go, under their names in the archive.
        on_progress: gets reports of the bytes received.

    Raises:
        DataError: no connection, an altered archive, or one that would be dangerous to unpack.
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, _ATTEMPTS + 1):
        with tempfile.TemporaryFile(dir=folder) as file:
            try:
                _download(archive, file, on_progress)
            except (_AlteredError, HTTPException) as error:
                if attempt == _ATTEMPTS:
                    raise DataError(
                        f"{archive.url} did not send the expected archive, twice: {error}",
                        "try again later, or download it elsewhere",
                    ) from None
            except (URLError, TimeoutError, ConnectionError) as error:
                reason = getattr(error, "reason", None) or error
                raise DataError(f"cannot download {archive.url}: {reason}") from None
            else:
                unpack(file, archive, folder)
                return


def _ensure_https(url: str) -> None:
    if not url.startswith("https://"):
        raise DataError(
            f"{url} is not an https URL", "nothing is downloaded over any other protocol"
        )


def _download(archive: Archive, file: IO[bytes], on_progress: OnProgress) -> None:
    _ensure_https(archive.url)
    opener = urllib.request.build_opener(_NoDowngrade)
    digest, done = hashlib.md5(usedforsecurity=False), 0
    with opener.open(archive.url, timeout=_TIMEOUT_SECONDS) as answer:
        while chunk := answer.read(_CHUNK):
            done += len(chunk)
            if done > archive.size:
                raise _AlteredError(f"more than {archive.size:,} bytes")
            digest.update(chunk)
            file.write(chunk)
            on_progress(Progress("downloading", done, archive.size, "bytes"))
    if done != archive.size:
        raise _AlteredError(f"{done:,} bytes, not {archive.size:,}")
    if digest.hexdigest() != archive.md5:
        raise _AlteredError(f"md5 {digest.hexdigest()}, not {archive.md5}")


def unpack(file: IO[bytes], archive: Archive, folder: Path) -> None:
    """Unpack the wanted files of a `.tar.gz`; nothing else in it touches the disk.

    Raises:
        DataError: it is damaged, lacks a file, or has a member that would be dangerous to unpack.
        OSError: the folder cannot be written to.
    """
    file.seek(0)
    missing = set(archive.files)
    try:
        with tarfile.open(fileobj=file, mode="r:gz") as tar:
            members = tar.getmembers()
            for member in members:
                _check_member(member, archive)
            for member in members:
                if member.name in missing and (content := tar.extractfile(member)):
                    path = folder / member.name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(path, content.read())
                    missing.discard(member.name)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive.url} is not a readable archive: {error}") from None
    if missing:
        raise DataError(f"{archive.url} lacks {', '.join(sorted(missing))}")


def _check_member(member: tarfile.TarInfo, archive: Archive) -> None:
    most = archive.files.get(member.name, _CHUNK)
    if is_outside(member.name):
        problem = "is outside the folder"
    elif not (member.isreg() or member.isdir()):
        problem = "is neither a file nor a folder"
    elif member.size > most:
        problem = f"has {member.size:,} bytes, more than {most:,}"
    else:
        return
    raise DataError(f"{archive.url} is not unpacked: {member.name!r} in it {problem}")
