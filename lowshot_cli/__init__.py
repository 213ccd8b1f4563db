"""Teach a trained image classifier a new class from a handful of images.

`load` opens a checkpoint as a `Model`, which is the whole Python interface:

    import lowshot_cli as lowshot

    model = lowshot.load("base.safetensors").imprint("photos/", "my mug")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowshot_cli.version import __version__

if TYPE_CHECKING:
    from lowshot_cli.api import Model, load

_LAZY = ("Model", "load")
__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # The command line answers --help without torch, which these need.
    if name in _LAZY:
        from lowshot_cli import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
