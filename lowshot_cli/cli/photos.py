"""Load the photos that people name, and report files that were left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lowshot_cli.adaptation.background import ensure_adopted, give_photos
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.metadata import Meta
from lowshot_cli.cli.console import Output
from lowshot_cli.config.schema import Config
from lowshot_cli.data.image_files import Photo, Unused, summaries
from lowshot_cli.data.photos import Found, Photos, find_photos, load_photos
from lowshot_cli.errors import first_few
from lowshot_cli.models.embedding import EmbeddingNetwork


def photos_at(config: Config, output: Output, sources: Sequence[Path], meta: Meta) -> Photos:
    """Load the photos that files, folders and globs name for a model; see `load_found`."""
    return load_found(config, output, find_photos(sources, strict=config.strict), meta)


def load_found(
    config: Config,
    output: Output,
    found: Found,
    meta: Meta,
    *,
    archived: Mapping[Path, Photo] | None = None,
) -> Photos:
    """Load photos for a model, framed as it or `fit` says, and report files left out.

    Args:
        config: `fit` and `skip_bad`.
        output: prints notes.
        found: the files.
        meta: of the model.
        archived: those of the files that are members of an archive.

    Raises:
        DataError: some files cannot be read, or none with `skip_bad`.
    """
    report_skipped(output, (), found.unused)
    photos = load_photos(
        found.files,
        meta.image_size,
        framing=meta.framing.with_fit(config.fit),
        archived=archived,
        skip_bad=config.skip_bad,
    )
    report_skipped(output, photos.skipped)
    report_blank(output, photos.blank)
    return replace(photos, unused=tuple(found.unused))


def with_background(
    config: Config, output: Output, checkpoint: Checkpoint, network: EmbeddingNetwork
) -> Checkpoint:
    """The model with the photos of `background`, if there are any."""
    if config.background is None:
        return checkpoint
    ensure_adopted(checkpoint)
    photos = photos_at(config, output, [config.background], checkpoint.meta)
    with output.progress() as on_progress:
        known = give_photos(checkpoint, network, photos, on_progress)
    output.note(f"background: {len(known.holdout):,} photos")
    return known


def report_skipped(
    output: Output, unreadable: Sequence[str], unused: Sequence[Unused] = ()
) -> None:
    """Report files that were left out, and why.

    Args:
        output: prints notes.
        unreadable: a line about each image that cannot be read.
        unused: other files that look like input; the first few of each kind are named.
    """
    if unreadable:
        output.note(f"left out {len(unreadable):,} unreadable images:")
    for line in unreadable:
        output.note(f"  {line}")
    for line in summaries(unused):
        output.note(f"left out {line}")


def report_blank(output: Output, files: Sequence[str]) -> None:
    """Report the images of which nothing is left; the first ten are named."""
    if not files:
        return
    count = "1 image is" if len(files) == 1 else f"{len(files)} images are"
    output.note(f"{count} blank, every pixel white or transparent: {first_few(files, 10)}")
