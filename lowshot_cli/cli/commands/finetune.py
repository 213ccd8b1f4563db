"""`lowshot finetune`."""

from __future__ import annotations

from pathlib import Path

from lowshot_cli.adaptation.bias import expected_forgetting
from lowshot_cli.adaptation.finetune import finetune as sharpen
from lowshot_cli.checkpoint import format as ckpt
from lowshot_cli.checkpoint.checkpoint import check_dataset
from lowshot_cli.cli import tables
from lowshot_cli.cli.console import Output
from lowshot_cli.cli.context import (
    evaluate_next,
    load_dataset_of,
    make_embedder,
    open_parent,
    output_file,
)
from lowshot_cli.cli.contract import finetune_record
from lowshot_cli.cli.torchrun import process_group
from lowshot_cli.config.schema import Config
from lowshot_cli.environment import pick_device
from lowshot_cli.evaluation.evaluate import evaluate
from lowshot_cli.records import with_skipped
from lowshot_cli.training.context import RunContext


def finetune(
    config: Config, output: Output, source: Path | None, out: Path | None, *, overwrite: bool
) -> None:
    """Fine-tune the imprinted model and write `finetuned.safetensors`."""
    with (
        process_group(config.device) as ranks,
        output_file(config, output, "finetuned", out, overwrite=overwrite, ranks=ranks) as path,
    ):
        parent_path, parent, ancestor = open_parent(config, "finetuned", "imprinted", source, out)
        with ranks.first_here():
            dataset = load_dataset_of(parent, config, output)
        check_dataset(parent, dataset)
        with output.progress() as on_progress:
            context = RunContext(
                on_progress=on_progress, ranks=ranks, device=pick_device(config.device)
            )
            tuned = sharpen(parent, config, dataset, context=context)
            before = evaluate(parent, dataset, make_embedder(parent, config, on_progress))
            after = evaluate(tuned, dataset, make_embedder(tuned, config, on_progress))
        ckpt.save(tuned.as_child_of(ancestor), path)
    record = finetune_record(
        config.finetune.scope,
        tuned,
        before=(parent_path, before),
        after=(path, after),
        expected_forgetting=expected_forgetting(tuned),
    )
    output.data(with_skipped(record, dataset.n_skipped))
    title = f"fine-tuned {config.finetune.scope}, bias {tuned.head.bias:+.3f}"
    tables.show_change(output, before, after, title, expected_forgetting(tuned))
    output.finish([path], evaluate_next(config, path))
