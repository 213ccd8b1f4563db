"""Shell completion of classes, methods and checkpoints, without torch.

Completion must be fast and must not fail, so files that cannot be read offer nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lowshot_cli.config.methods import IMPRINT_METHODS, SWEEP_METHODS
from lowshot_cli.errors import CheckpointError, LowshotError

if TYPE_CHECKING:
    from lowshot_cli.checkpoint.metadata import Meta
    from lowshot_cli.config.schema import Config

# Some shells evaluate what they are offered, and names may come from strangers' files.
_HARMLESS = re.compile(r"[\w./][\w./+ -]*")


def new_classes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names for `imprint --class`: classes of a folder dataset, and novel ones taught before."""
    config, known = _config(ctx), _model(ctx)
    taught = known.classes[known.n_base :] if known else ()
    base = known.classes[: known.n_base] if known else ()
    names = {*_class_folders(config), *taught} - set(base) - set(ctx.params.get("classes") or ())
    return _offer(sorted(names), incomplete)


def known_classes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of a model's classes that `classes remove` and `classes rename` may change."""
    model = _model(ctx)
    if model is None:
        return []
    return _offer(model.classes[0 if ctx.params.get("force") else model.n_base :], incomplete)


def imprint_methods(incomplete: str) -> list[str]:
    """Methods that `imprint` offers."""
    return [name for name in IMPRINT_METHODS if name.startswith(incomplete)]


def sweep_methods(incomplete: str) -> list[str]:
    """Methods for the last entry of a comma-separated list."""
    before, comma, _ = incomplete.rpartition(",")
    left = [name for name in SWEEP_METHODS if name not in before.split(",")]
    return [f"{before}{comma}{name}" for name in left]


def checkpoints(ctx: typer.Context, incomplete: str) -> list[str]:
    """Checkpoint files in the work folder and in the folder that is being typed."""
    typed = incomplete.rpartition("/")[0]
    folders = {Path(typed or ("/" if incomplete.startswith("/") else "."))}
    if config := _config(ctx):
        folders.add(config.workdir)
    return _offer(sorted(str(path) for folder in folders for path in _files(folder)), incomplete)


def _offer(names: Iterable[str], incomplete: str) -> list[str]:
    """The names that match and are harmless; spaces escaped for Bash, which does not quote."""
    fitting = [name for name in names if name.startswith(incomplete) and _HARMLESS.fullmatch(name)]
    if "complete_bash" in os.environ.get("_LOWSHOT_COMPLETE", ""):
        return [name.replace(" ", r"\ ") for name in fitting]
    return fitting


def is_from_environment(ctx: typer.Context, name: str) -> bool:
    """Whether the value of an option comes from an environment variable."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "ENVIRONMENT"


def _config(ctx: typer.Context) -> Config | None:
    """The config that the command would resolve from what is typed so far."""
    from lowshot_cli.config.yaml_file import load_config

    try:
        flags = {name: ctx.params.get(name) for name in ("dataset", "data_dir", "workdir")}
        environment = {n: flags.pop(n) for n in list(flags) if is_from_environment(ctx, n)}
        return load_config(ctx.params.get("config"), None, flags, environment=environment)
    except LowshotError:
        return None


def _model(ctx: typer.Context) -> Meta | None:
    """Metadata of the model that the command would use: the named one, or the furthest.

    Whether that is stale is left to the command, as telling needs whole files.
    """
    if named := ctx.params.get("checkpoint"):
        return _read(Path(named))
    from lowshot_cli.checkpoint.workdir import present

    config = _config(ctx)
    if config is None:
        return None
    try:
        return _read(present(config.workdir)[-1])
    except (OSError, ValueError, CheckpointError):
        return None


def _read(path: Path) -> Meta | None:
    from lowshot_cli.checkpoint.metadata import read_metadata

    try:
        return read_metadata(path)
    except CheckpointError:
        return None


def _class_folders(config: Config | None) -> Iterator[str]:
    """Class folders of the user's own dataset; archives are not opened."""
    if config is None or config.dataset != "folder" or config.data_dir is None:
        return
    root = config.data_dir
    try:
        place = root / "train" if (root / "train").is_dir() else root
        with os.scandir(place) as entries:
            yield from (entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
    except (OSError, ValueError):
        return


def _files(folder: Path) -> Iterator[Path]:
    try:
        yield from (path for path in folder.glob("*.safetensors") if path.is_file())
    except (OSError, ValueError):
        return
