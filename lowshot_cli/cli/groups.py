"""The commands of groups, `lowshot classes` and `lowshot data`; like `main.py`, without torch."""

from __future__ import annotations

from lowshot_cli.cli import options as o
from lowshot_cli.cli.app import Call, Commands, command
from lowshot_cli.cli.flags import DATASET_SETTINGS, ModelFile

classes = Commands(no_args_is_help=True, help="List, remove and rename the classes of a model.")
data = Commands(no_args_is_help=True, help="Inspect datasets and the cache.")


@command(classes, "list", settings=("workdir",))
def classes_list(call: Call, checkpoint: ModelFile = None) -> None:
    """List the classes that a model knows and how it learnt them.

    Example: lowshot classes list

    Example: lowshot classes list --checkpoint runs/base.safetensors
    """
    from lowshot_cli.cli.commands.classes import list_classes

    list_classes(call.config, call.output, checkpoint)


@command(classes, "remove", settings=("workdir",))
def classes_remove(
    call: Call, name: o.OldName, force: o.Force = False, checkpoint: ModelFile = None
) -> None:
    """Remove a class from a model.

    Example: lowshot classes remove "my mug"

    Example: lowshot classes remove apple --force
    """
    from lowshot_cli.cli.commands.classes import remove_class

    remove_class(call.config, call.output, name, checkpoint, force=force)


@command(classes, "rename", settings=("workdir",))
def classes_rename(
    call: Call,
    name: o.OldName,
    new_name: o.NewName,
    force: o.Force = False,
    checkpoint: ModelFile = None,
) -> None:
    """Rename a class of a model.

    Example: lowshot classes rename "my mug" "blue mug"

    Example: lowshot classes rename sweet_pepper "bell pepper" --force
    """
    from lowshot_cli.cli.commands.classes import rename_class

    rename_class(call.config, call.output, name, new_name, checkpoint, force=force)


@command(data, "classes", settings=DATASET_SETTINGS)
def data_classes(call: Call) -> None:
    """List the classes of a dataset.

    Example: lowshot data classes

    Example: lowshot data classes --dataset glyphs
    """
    from lowshot_cli.cli.commands import data as work

    work.data_classes(call.config, call.output)


@command(data, "cache", settings=())
def data_cache(
    call: Call,
    clear: o.Clear = False,
) -> None:
    """Show the cache of embeddings and decoded images, or empty it.

    Example: lowshot data cache

    Example: lowshot data cache --clear
    """
    from lowshot_cli.cli.commands import data as work

    work.data_cache(call.output, clear=clear)


@command(data, "duplicates", settings=DATASET_SETTINGS)
def data_duplicates(
    call: Call,
    at_least: o.AtLeast = 0.85,
) -> None:
    """Find test images that look like a training image.

    Example: lowshot data duplicates --dataset glyphs

    Example: lowshot data duplicates --at-least 0.95 --json
    """
    from lowshot_cli.cli.commands import data as work

    work.data_duplicates(call.config, call.output, at_least)
