"""The model as a file to keep: its export in a zip, and the name that a browser gives it."""

from __future__ import annotations

import io
import re
import zipfile
from urllib.parse import quote

from starlette.responses import Response

from lowshot_cli.config.values import ExportFormat
from lowshot_cli.export.export import export
from lowshot_cli.serve.served import Served

# The content of a zip depends on nothing but the model.
_NO_TIME = (1980, 1, 1, 0, 0, 0)
_NOT_PLAIN = re.compile(r'[^ -~]|["\\]')


def zipped(served: Served, form: ExportFormat) -> bytes:
    """The files of an export in a zip."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in export(served.checkpoint, form).items():
            archive.writestr(zipfile.ZipInfo(name, _NO_TIME), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def download(content: bytes, name: str, kind: str) -> Response:
    """A file with its name, as in RFC 6266."""
    shown = _NOT_PLAIN.sub("_", name)
    place = f'attachment; filename="{shown}"'
    if shown != name:
        place += f"; filename*=UTF-8''{quote(name, safe='', errors='replace')}"
    return Response(content, media_type=kind, headers={"Content-Disposition": place})
