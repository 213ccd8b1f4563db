"""`lowshot serve`."""

from __future__ import annotations

import webbrowser
from importlib import import_module
from pathlib import Path
from threading import Thread

from rich.text import Text

from lowshot_cli.checkpoint.metadata import read_metadata
from lowshot_cli.cli.console import Output
from lowshot_cli.cli.model_choice import choose_model
from lowshot_cli.config.schema import Config
from lowshot_cli.errors import LowshotError
from lowshot_cli.storage.locks import locked

_PACKAGES = ("fastapi", "uvicorn", "python_multipart")


def serve(
    config: Config,
    output: Output,
    source: Path | None,
    *,
    host: str,
    port: int,
    opens: bool,
) -> None:
    """Serve the model in use until Ctrl-C, with its folder locked meanwhile."""
    _ensure_installed()
    path = choose_model(config, output, source)
    from lowshot_cli.environment import pick_device
    from lowshot_cli.serve.server import listen
    from lowshot_cli.serve.server import serve as run
    from lowshot_cli.serve.session import Session

    read_metadata(path)
    device = pick_device(config.device)
    opened, address = listen(host, port)

    def tell() -> None:
        output.data({"address": address.url, "checkpoint": str(path)})
        line = f"serving {path} at {address.url} until Ctrl-C"
        output.messages.print(Text(line), soft_wrap=True)
        if opens:
            # Some browsers end only when their window is closed.
            Thread(target=webbrowser.open, args=(address.url,), daemon=True).start()

    with opened, locked(path.parent):
        run(Session(path, device), opened, address, tell)


def _ensure_installed() -> None:
    """Check for the packages of the extra.

    Raises:
        LowshotError: they are not all installed.
    """
    try:
        for name in _PACKAGES:
            import_module(name)
    except ImportError:
        raise LowshotError(
            f"serving needs {', '.join(_PACKAGES).replace('_', '-')}, and not all are installed",
            "install them with pip install 'lowshot-cli[serve]'",
        ) from None
