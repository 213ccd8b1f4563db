"""Photos of several classes: in class folders, or named with their class by a CSV file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from zipfile import is_zipfile

from lowshot_cli.config.values import class_name, user_path
from lowshot_cli.data.class_folders import files_by_class
from lowshot_cli.data.image_files import Photo, Unused, list_photos, refuse_unused, suffix_of
from lowshot_cli.data.photos import Found, Photos, searching
from lowshot_cli.errors import DataError, UsageError, first_few, one_line

# From the one that is rarest in names of files to the commonest.
_DELIMITERS = "\t;,"
_HEADER = ["file", "class"]
_MOST_NAMED = 5
# The line that a row of a table ends in, and its cells.
_Row = tuple[int, list[str]]


class FoundClasses(NamedTuple):
    """Image files by class.

    Attributes:
        files: of each class, in the order of the classes' names; each file once.
        unused: what looks like an image and is not read.
        archived: those of the files that are members of an archive.
    """

    files: dict[str, list[Path]]
    unused: list[Unused]
    archived: dict[Path, Photo]

    @property
    def all(self) -> Found:
        """The files of all classes together, each once."""
        together = dict.fromkeys(file for files in self.files.values() for file in files)
        return Found(list(together), self.unused)


def is_table(path: Path) -> bool:
    """Whether a path names a CSV file rather than an image."""
    return suffix_of(path.name) in (".csv", ".tsv")


def find_classes(sources: Iterable[Path], *, strict: bool = False) -> FoundClasses:
    """The image files of each class that `sources` name.

    Args:
        sources: folders of class folders, zip archives of them, and CSV files of `file,class`.
        strict: refuse files that look like images and are not read.

    Raises:
        DataError: a source is absent, cannot be read, has another layout, or names files that do
            not exist, or there are unused files with `strict`.
        UsageError: nothing tells the class of an image.
    """
    classes: dict[str, dict[Path, None]] = {}
    unused: dict[Unused, None] = {}
    archived: dict[Path, Photo] = {}
    for source in sources:
        with searching(source):
            found = _find(source)
        for name, files in found.files.items():
            classes.setdefault(name, {}).update(dict.fromkeys(files))
        unused |= dict.fromkeys(found.unused)
        archived |= found.archived
    if strict:
        refuse_unused(unused)
    sorted_files = {name: list(classes[name]) for name in sorted(classes)}
    return FoundClasses(sorted_files, list(unused), archived)


def _find(source: Path) -> FoundClasses:
    if not source.exists():
        raise DataError(f"there is nothing at {source}", "check the path")
    if is_table(source):
        return FoundClasses(read_table(source), [], {})
    if source.is_dir():
        listing = list_photos(source)
        photos = files_by_class(source, listing)
        files = {name: [Path(photo.path) for photo in of] for name, of in photos.items()}
        return FoundClasses(files, _below(source, listing.unused), {})
    if is_zipfile(source):
        listing = list_photos(source)
        photos = files_by_class(source, listing)
        members = {source / photo.name: photo for of in photos.values() for photo in of}
        files = {name: [source / photo.name for photo in of] for name, of in photos.items()}
        return FoundClasses(files, _below(source, listing.unused), members)
    raise UsageError(
        f"{source}: no class is named",
        "name it in `classes`, or give a folder of class folders, a zip of one, or a CSV file",
    )


def _below(source: Path, unused: Sequence[Unused]) -> list[Unused]:
    return [Unused(str(source / name), reason) for name, reason in unused]


def read_table(path: Path) -> dict[str, list[Path]]:
    """The files of each class by a CSV file with the columns `file,class`.

    A header is optional. Columns are separated by commas, semicolons or tabs. Files are relative
    to the folder of the CSV file.

    Raises:
        DataError: it is no CSV file, a row has other columns, an image file does not exist, or has
            two classes.
        OSError: it cannot be read.
    """
    found: dict[Path, tuple[str, int]] = {}
    for line, row in _rows(path):
        if len(row) != len(_HEADER) or not row[0]:
            raise DataError(
                f"{path}, line {line}: no row of `file,class`",
                "write an image file and its class; put names with commas in double quotes",
            )
        try:
            name = class_name(row[1])
        except ValueError as error:
            raise DataError(f"{path}, line {line}: the class {error}", "mend it") from None
        file = Path(os.path.normpath(path.parent / user_path(row[0])))
        known, before = found.setdefault(file, (name, line))
        if known != name and file.is_file():
            raise DataError(
                f"{path} gives {row[0]} two classes: {known!r} in line {before}, {name!r} in line "
                f"{line}",
                "delete one of these lines",
            )
    _refuse_absent(path, list(found))
    classes: dict[str, list[Path]] = {}
    for file, (name, _) in found.items():
        classes.setdefault(name, []).append(file)
    return classes


def _refuse_absent(path: Path, files: Sequence[Path]) -> None:
    """Refuse a CSV file that names what is no file.

    Raises:
        DataError: it does.
    """
    wrong = [file for file in files if not file.is_file()]
    if missing := [str(file) for file in wrong if not file.is_dir()]:
        raise DataError(
            f"{path} names files that do not exist, {len(missing):,} of {len(files):,}: "
            f"{first_few(missing, _MOST_NAMED)}",
            "give paths from the folder of the CSV file; its header, if any, is `file,class`",
        )
    if wrong:
        raise DataError(
            f"{path} names folders: {first_few([str(folder) for folder in wrong], _MOST_NAMED)}",
            "write a row for each image in them",
        )


def _rows(path: Path) -> list[_Row]:
    """The rows of a CSV file, without its header.

    Raises:
        DataError: it is no CSV file, or has no rows.
        OSError: it cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        rows = list(_split(text, _delimiter(text)))
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8", "save it as a CSV file in UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path} is no CSV file: {one_line(error)}", "check its quotes") from None
    if rows and [cell.casefold() for cell in rows[0][1]] == _HEADER:
        del rows[0]
    if not rows:
        raise DataError(f"{path} has no rows", "write a row `file,class` for each image")
    return rows


def _delimiter(text: str) -> str:
    """The first of the delimiters by which the first row has two columns."""
    for delimiter in _DELIMITERS:
        with suppress(csv.Error):
            _, row = next(_split(text, delimiter), (0, []))
            if len(row) == len(_HEADER):
                return delimiter
    return ","


def _split(text: str, delimiter: str) -> Iterator[_Row]:
    """Rows that are not empty, without empty columns at their end."""
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    for row in reader:
        cells = [cell.strip() for cell in row]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            yield reader.line_num, cells


def split_classes(photos: Photos, files: Mapping[str, Sequence[Path]]) -> dict[str, Photos]:
    """The photos of each class, without those that could not be read.

    Args:
        photos: of all classes together.
        files: of each class.

    Raises:
        DataError: none are left of a class.
    """
    places = {file: place for place, file in enumerate(photos.files)}
    classes = {}
    for name, of_class in files.items():
        readable = tuple(file for file in of_class if file in places)
        if not readable:
            raise DataError(
                f"no image of {name!r} can be read, of {len(of_class)}",
                "convert or repair them, or leave the class out",
            )
        classes[name] = Photos(photos.pixels[[places[file] for file in readable]], readable)
    return classes
