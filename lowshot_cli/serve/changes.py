"""What was done to a model, read from the histories of two checkpoints."""

from __future__ import annotations

from lowshot_cli.checkpoint.metadata import Meta
from lowshot_cli.records import Record


def changes_since(earlier: Meta, now: Meta) -> str:
    """What was done to a model, in words; empty if it was not made from the earlier one."""
    known = len(earlier.history)
    if now.history[:known] != earlier.history:
        return ""
    said = [_in_words(step, now.adopted) for step in now.history[known:]]
    return "" if None in said else ", ".join(filter(None, said))


def _in_words(step: Record, adopted: bool) -> str | None:
    """A step of the history, or None for one that cannot be undone here."""
    options = step["options"]
    match step["command"]:
        case "imprint":
            return f"taught {', '.join(options.get('classes') or ())}"
        case "classes rename":
            return f"renamed {options['class']} to {options['to']}"
        case "classes remove":
            return f"removed {options['class']}"
        case "serve":
            budget = f"{options['max_forgetting']:g}"
            unit = "%" if adopted else "point" if budget == "1" else "points"
            return f"set the budget to {budget} {unit}"
    return None
