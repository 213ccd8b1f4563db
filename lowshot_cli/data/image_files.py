"""Which files are images, and the images of a folder or of a zip archive, which is read in place.

Every command that takes images lists them here, by the rules that `README.md` states.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Final, NamedTuple
from zipfile import BadZipFile, ZipFile

from lowshot_cli.data.decoding import FORMATS, NOT_REGULAR
from lowshot_cli.errors import DataError, one_line
from lowshot_cli.storage.files import LOG
from lowshot_cli.storage.locks import LOCK

# The rules by which files are listed, by number. A model goes on with the images that it was made
# with, so a change of what is listed needs a new number; `class_folders.py` keeps the old rules.
FIRST_LISTING: Final = 1
LISTING: Final = 2
# By the names of formats in Pillow, whose reader of JPEG also reads MPO.
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".pjpeg", ".pjp", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
}
SUFFIXES = frozenset(suffix for name in FORMATS for suffix in _SUFFIXES[name])
# Pictures of formats that are not read, so that they are not passed over in silence.
_OTHER_PICTURES = (
    "heic heif hif avif avifs jxl jxr jp2 j2k j2c jpc jpf jpx psd psb xcf kra svg svgz eps wmf emf "
    "ico icns cur dib tga dds pcx ppm pgm pbm pnm pfm xbm xpm qoi exr raw dng cr2 cr3 crw nef nrw "
    "arw sr2 srf orf rw2 raf pef srw x3f 3fr erf kdc mrw rwl iiq"
)
_OTHER_SUFFIXES = frozenset(f".{name}" for name in _OTHER_PICTURES.split())
# Folders that systems put beside photos: of archives made on a Mac, and thumbnails on a Synology.
_CLUTTER = ("__MACOSX", "@eaDir")
# Images hardly compress, so an archive that grows by more than this was made to fill memory.
_MOST_GROWTH, _HARMLESS_BYTES = 100, 1024**3
_MOST_IMAGE_BYTES = 256 * 1024**2
_MAKE_AGAIN = "make it again from the folder of images"
_MOST_NAMED = 3
# Beginnings of the names of folders that commands write to a work folder.
_WRITTEN = ("sweep-", "order-", "export")


class Photo(NamedTuple):
    """An image file. There may be millions, so it is small and quickly made.

    Attributes:
        name: its path within the dataset.
        path: the file's path, or that of the archive that it is a member of.
        version: distinguishes this file from others of its name: size and time, or size and CRC;
            zeros if the file system does not tell.
        archive: open for reading; None for a file of its own.
        member: its name in the archive.
    """

    name: str
    path: str
    version: tuple[int, int]
    archive: ZipFile | None = None
    member: str = ""

    def open(self) -> IO[bytes]:
        """Open it for reading."""
        return self.archive.open(self.member) if self.archive else Path(self.path).open("rb")


class Unused(NamedTuple):
    """A file that looks like input and is not used, and the reason."""

    name: str
    reason: str


class Listing(NamedTuple):
    """What a folder or an archive holds at any depth.

    Attributes:
        photos: its images, sorted by their paths.
        folders: paths within it of its folders, those without images too.
        unused: what looks like an image and is not read.
    """

    photos: list[Photo]
    folders: set[str]
    unused: list[Unused]


def as_text(name: str) -> str:
    """A file's name as text that can be stored, with bytes that are not UTF-8 in hex."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_outside(name: str) -> bool:
    """Whether a member of an archive lies outside the archive's own folder."""
    place = PurePosixPath(name.replace("\\", "/"))
    return place.is_absolute() or ".." in place.parts


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out with all that it holds."""
    return name.startswith(".") or name in _CLUTTER


def is_image(name: str) -> bool:
    """Whether a file has the name of an image that is read."""
    return suffix_of(name) in SUFFIXES


def suffix_of(name: str) -> str:
    """The suffix of a file in lower case, such as `.jpg`; empty for a hidden file."""
    own = name.rpartition("/")[2]
    stem, dot, suffix = own.rpartition(".")
    return f"{dot}{suffix.lower()}" if stem and not own.startswith(".") else ""


def why_not_read(name: str) -> str | None:
    """Why a picture is not read, by its suffix; None for images and for anything but pictures."""
    suffix = suffix_of(name)
    if suffix in SUFFIXES or suffix not in _OTHER_SUFFIXES:
        return None
    return f"{suffix[1:].upper()} is not read, convert to JPEG"


def summaries(unused: Iterable[Unused]) -> list[str]:
    """A line about the files of each reason, of which the first few are named."""
    names: dict[str, list[str]] = {}
    for file in unused:
        names.setdefault(file.reason, []).append(file.name)
    return [_summary(reason, files) for reason, files in names.items()]


def _summary(reason: str, names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    files = "file" if len(names) == 1 else "files"
    return f"{len(names):,} {files} ({reason}): {', '.join(names[:_MOST_NAMED])}{more}"


def refuse_unused(unused: Iterable[Unused]) -> None:
    """Refuse files that look like input and are not used, if there are any.

    Raises:
        DataError: there are.
    """
    if lines := summaries(unused):
        raise DataError(f"not used: {'; '.join(lines)}", "move them away, or omit `strict=True`")


def list_photos(root: Path) -> Listing:
    """The images in a folder or in a `.zip`, at any depth.

    Links to files and folders are followed. Hidden files and folders are left out, and so is what
    does not look like an image, such as `Thumbs.db`.

    Raises:
        DataError: neither a folder nor a readable archive, or a folder within it cannot be read.
    """
    if root.is_dir():
        return _list_folder(root)
    if root.is_file():
        return _list_archive(root)
    raise DataError(f"there is no folder {root}", "check `data_dir`")


def folders_in(root: Path) -> Iterator[tuple[str, str, list[os.DirEntry[str]]]]:
    """Every folder in `root`, itself first, each with the files in it, except what is hidden.

    Links are followed. One to a folder that it lies in would have no end, so it is left out, and so
    is a work folder, whose images are plots.

    Returns:
        Triples: the folder's path; its path within `root`, which ends in a slash unless it is
        empty; and its files, with whatever else is not a folder.

    Raises:
        DataError: a folder cannot be read, or a link that may stand for one leads nowhere.
    """
    waiting: list[tuple[str, str, tuple[str, ...]]] = [(str(root), "", ())]
    while waiting:
        folder, inside, above = waiting.pop()
        real = os.path.realpath(folder)
        if any(holds(real, each) for each in above):
            continue
        entries, files = entries_of(folder), []
        if above and _is_work_folder(folder, entries):
            continue
        for entry in entries:
            if is_folder(entry):
                path = f"{folder}{os.sep}{entry.name}"
                waiting.append((path, f"{inside}{entry.name}/", (*above, real)))
            else:
                files.append(entry)
        yield folder, inside, files


def _is_work_folder(folder: str, entries: Sequence[os.DirEntry[str]]) -> bool:
    """Whether a folder holds what commands write and nothing else that may be images."""
    if not any(os.path.exists(f"{folder}{os.sep}{name}") for name in (LOG, LOCK)):  # noqa: PTH110
        return False
    others = [entry for entry in entries if not entry.name.startswith(_WRITTEN)]
    return not any(is_image(entry.name) or is_folder(entry) for entry in others)


def holds(folder: str, other: str) -> bool:
    """Whether a folder is another one, or holds it at some depth; both are real paths."""
    return f"{other}{os.sep}".startswith(f"{folder.rstrip(os.sep)}{os.sep}")


def entries_of(folder: str) -> list[os.DirEntry[str]]:
    """What a folder holds, except what is hidden.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        raise DataError(
            f"the folder {folder} cannot be read: {one_line(error)}",
            "check its permissions, or move it away",
        ) from None


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one.

    Raises:
        DataError: it is a link that leads nowhere and may stand for a folder, as it has no suffix.
    """
    try:
        if entry.is_dir():
            return True
        lost = entry.is_symlink() and not entry.is_file() and not _exists(entry.path)
    except OSError:  # such as of a link to itself
        lost = True
    if lost and not suffix_of(entry.name):
        raise DataError(f"the link {entry.path} leads nowhere", "mend it, or delete it")
    return False


def _exists(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - `Path` takes several times as long


def _list_folder(root: Path) -> Listing:
    photos: list[Photo] = []
    folders: set[str] = set()
    unused: list[Unused] = []
    for folder, inside, files in folders_in(root):
        folders.add(as_text(inside[:-1]))
        for entry in files:
            if not is_image(entry.name):
                reason = why_not_read(entry.name)
            elif (version := _version(entry)) is None:
                reason = NOT_REGULAR
            else:
                path = f"{folder}{os.sep}{entry.name}"
                photos.append(Photo(as_text(inside + entry.name), path, version))
                continue
            if reason:
                unused.append(Unused(as_text(inside + entry.name), reason))
    photos.sort(key=lambda photo: photo.path)
    return Listing(photos, folders, sorted(unused))


def _version(entry: os.DirEntry[str]) -> tuple[int, int] | None:
    """Size and time of a file, zeros if it has none; None for anything but a regular file."""
    try:
        status = entry.stat()
    except OSError:  # such as of a link that leads nowhere: opening it tells why
        return 0, 0
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _list_archive(path: Path) -> Listing:
    try:
        archive = _open_archive(path)
    except (BadZipFile, OSError) as error:
        raise DataError(
            f"{path} is neither a folder nor a zip archive: {error}", "check `data_dir`"
        ) from None
    _refuse_hostile(archive, path)
    members = [(info.filename, info) for info in archive.infolist()]
    # Some programs of Windows write backslashes; beside slashes they are part of a name.
    if not any("/" in name for name, _ in members):
        members = [(name.replace("\\", "/"), info) for name, info in members]
    photos: list[Photo] = []
    folders: set[str] = set()
    unused: list[Unused] = []
    for written, info in sorted(members, key=lambda member: member[0]):
        parts = PurePosixPath(written).parts
        if any(map(is_hidden, parts)):
            continue
        name, is_file = "/".join(parts), not written.endswith("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts) + 1 - is_file))
        if is_file and is_image(name):
            version = info.file_size, info.CRC
            photos.append(Photo(name, str(path), version, archive, info.filename))
        elif is_file and (reason := why_not_read(name)):
            unused.append(Unused(name, reason))
    return Listing(photos, folders, unused)


def _open_archive(path: Path) -> ZipFile:
    """Open an archive whose names are UTF-8, whether it says so or not, or else of code page 437.

    Info-ZIP and the Finder write UTF-8 without the flag that declares it.
    """
    try:
        return ZipFile(path, metadata_encoding="utf-8")
    except UnicodeDecodeError:
        return ZipFile(path)


def _refuse_hostile(archive: ZipFile, path: Path) -> None:
    """Refuse an archive that holds links or members outside it, or grows too much when unpacked.

    Raises:
        DataError: it does; the message names the member.
    """
    total = 0
    for info in archive.infolist():
        if is_outside(info.filename):
            raise DataError(f"{path} has a member outside itself: {info.filename!r}", _MAKE_AGAIN)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{path} holds a link: {info.filename!r}", _MAKE_AGAIN)
        total += info.file_size
        if is_image(info.filename) and info.file_size > _MOST_IMAGE_BYTES:
            raise DataError(
                f"{path}: {info.filename!r} takes {info.file_size:,} bytes", "leave it out"
            )
    if total > max(_HARMLESS_BYTES, _MOST_GROWTH * path.stat().st_size):
        raise DataError(f"{path} would grow to {total:,} bytes", "unpack it and name the folder")
