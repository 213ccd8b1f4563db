"""`lowshot export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.cli.console import Output
from lowshot_cli.cli.context import (
    load_dataset_of,
    model_in_use,
    next_command,
    with_dataset_of,
)
from lowshot_cli.cli.contract import export_record
from lowshot_cli.cli.photos import photos_at
from lowshot_cli.config.schema import Config
from lowshot_cli.config.values import ExportFormat
from lowshot_cli.data import cifar100
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.errors import CheckpointError, DataError, UsageError
from lowshot_cli.export import export as exporter
from lowshot_cli.export import formats
from lowshot_cli.export.check import compare_with_checkpoint, exported_models
from lowshot_cli.export.state_dict import ensure_possible
from lowshot_cli.records import with_skipped
from lowshot_cli.storage.files import ensure_writable

_MOST_IMAGES = 1000
_NOISE_IMAGES = 64


def export(
    config: Config,
    output: Output,
    form: ExportFormat,
    source: Path | None,
    out: Path | None,
    images: Sequence[Path],
    *,
    overwrite: bool,
    check: bool,
) -> None:
    """Export the model in use for other programs, and compare the export with it."""
    if images and not check:
        raise UsageError("--images names photos for --check", "add --check")
    folder = out or config.workdir / "export"
    if folder.is_file():
        raise UsageError(f"{folder} is a file, not a folder", "name a folder")
    there = folder.is_dir() and any(folder.iterdir())
    if there and not (overwrite or check):
        raise UsageError(
            f"{folder} is not empty", "add --overwrite to replace it, or name another with --out"
        )
    path, checkpoint = model_in_use(config, output, source)
    writes = overwrite or not there
    if writes:
        formats.ensure_installed(form, making=True, checking=check)
        if form == "state-dict":
            ensure_possible(checkpoint.meta)
    which, pixels, n_skipped = "", None, 0
    if check:
        which, pixels, n_skipped = _check_images(config, output, checkpoint, images)
    if writes:
        ensure_writable(folder)
        output.note(f"exporting {path}")
        made = exporter.export(checkpoint, form)
        exporter.write(folder, made)
        files = list(made)
        rows = [[name, f"{len(content) / 1000:,.1f}"] for name, content in made.items()]
        output.table(
            ["file", "kB"], rows, title=f"export of {len(checkpoint.meta.classes)} classes"
        )
    else:
        files = exported_models(folder, form)
    found = None
    if pixels is not None:
        models = exported_models(folder, form)
        with output.progress() as on_progress:
            found = compare_with_checkpoint(checkpoint, folder, models, pixels, on_progress)
        decisions = "are equal" if found.decisions_equal else "differ where classes tie"
        output.line(f"{' and '.join(models)} against {path}, {found.n:,} images ({which}):")
        output.line(
            f"probabilities differ by {found.largest_difference:.1e} at most, decisions {decisions}"
        )
    opset = formats.OPSET if formats.ONNX_FILE in files else None
    record = export_record(folder, files, opset, found, which)
    output.data(with_skipped(record, n_skipped))
    if writes:
        typed = ["--out", str(out)] if out else []
        then = None if check else next_command(config, path, "export", "--check", *typed)
        output.finish([folder / name for name in files], then)


def _check_images(
    config: Config, output: Output, checkpoint: Checkpoint, images: Sequence[Path]
) -> tuple[str, Tensor, int]:
    """Images to check a model on; nothing is downloaded.

    Returns:
        What they are, in words; the images `(N, 3, S, S)` uint8; and how many files were left out.
    """
    size = checkpoint.meta.image_size
    if images:
        photos = photos_at(config, output, images, checkpoint.meta)
        return "photos", photos.pixels, photos.n_skipped
    generator = torch.Generator().manual_seed(config.seed)
    dataset, why_not = _dataset(config, output, checkpoint)
    if dataset is None or not len(dataset.test.pixels):
        noise = torch.randint(
            256, (_NOISE_IMAGES, 3, size, size), generator=generator, dtype=torch.uint8
        )
        return f"noise, as {why_not}", noise, 0
    pixels = dataset.test.pixels
    some = torch.randperm(len(pixels), generator=generator)[:_MOST_IMAGES]
    return f"test images of {checkpoint.meta.dataset}", pixels[some], dataset.n_skipped


def _dataset(config: Config, output: Output, checkpoint: Checkpoint) -> tuple[Dataset | None, str]:
    """The checkpoint's dataset if it is on this machine, and why there may be no test images."""
    absent = "there are no test images"
    name = with_dataset_of(config, checkpoint).dataset
    cifar_folder = config.data_folder / cifar100.FOLDER
    if name == "cifar100" and not cifar_folder.is_dir():
        return None, absent
    if name == "folder" and not (config.data_dir and config.data_dir.exists()):
        return None, absent
    try:
        return load_dataset_of(checkpoint, config, output), absent
    except (DataError, CheckpointError) as error:
        if config.strict:
            raise
        output.note(f"no test images: {error.message}")
        return None, "the test images cannot be used"
