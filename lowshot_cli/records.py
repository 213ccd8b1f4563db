"""`--json` records that the commands share with the server.

The page of the commands describes every key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowshot_cli.adaptation.imprint import SupportDraw
    from lowshot_cli.adaptation.review import Confusion, Review, Weakened
    from lowshot_cli.checkpoint.checkpoint import Checkpoint
    from lowshot_cli.checkpoint.metadata import Meta

Record = dict[str, Any]


def _known(**values: float | None) -> Record:
    """The keys that a record has only if they are known."""
    return {name: value for name, value in values.items() if value is not None}


def _named(one: Confusion | Weakened) -> Record:
    """The fields of a result about a class."""
    return {"class" if name == "name" else name: value for name, value in asdict(one).items()}


def with_skipped(record: Record, count: int) -> Record:
    """The record of a command that reads image files, with the number of those that it left out."""
    return {**record, "n_skipped": count}


def photo_imprint_record(
    path: Path,
    method: str,
    taught: Checkpoint,
    drawn: Sequence[SupportDraw],
    *,
    expected_forgetting: float | None,
) -> Record:
    """Of `imprint --images`."""
    return {
        "checkpoint": str(path),
        "method": method,
        "bias": taught.head.bias,
        "expected_forgetting": expected_forgetting,
        **_known(n_background=taught.n_background),
        "classes": [{"class": one.name, "support": list(one.described)} for one in drawn],
    }


def with_reviews(
    record: Record, reviews: Sequence[Review], weakened: Sequence[Weakened] = ()
) -> Record:
    """The record of `imprint` with what may mislead each of its classes, and what others lost."""
    classes = [
        {
            **one,
            "confused": [_named(one) for one in review.confused],
            "outliers": [
                {"image": one["support"][outlier.position], "resembles": outlier.resembles}
                for outlier in review.outliers
            ],
            **_known(supports_won=review.supports_won),
        }
        for one, review in zip(record["classes"], reviews, strict=True)
    ]
    return {**record, "classes": classes, "weakened": [_named(one) for one in weakened]}


@dataclass(frozen=True)
class KnownClass:
    """One class of `classes list`.

    Attributes:
        name: of the class.
        kind: `base` or `novel`.
        shots: support images of a novel class; None for a base class.
        method: the command that taught it.
    """

    name: str
    kind: str
    shots: int | None
    method: str

    def to_json(self) -> Record:
        """As in the contract."""
        return {"class": self.name, "kind": self.kind, "shots": self.shots, "method": self.method}


def known_classes(meta: Meta) -> list[KnownClass]:
    """The classes of a model in head order."""
    base, novel = meta.classes[: meta.n_base], meta.classes[meta.n_base :]
    return [
        *(KnownClass(name, "base", None, "train-base") for name in base),
        *(
            KnownClass(name, "novel", len(one.pixel_hashes), f"imprint --method {one.method}")
            for name, one in zip(novel, meta.supports, strict=True)
        ),
    ]


def changed_record(path: Path, checkpoint: Checkpoint) -> Record:
    """Of `classes remove` and `classes rename`."""
    return {"checkpoint": str(path), "classes": list(checkpoint.meta.classes)}
