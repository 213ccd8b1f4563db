"""Writes the plots and report pages of sweeps and evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.schema import Config
from lowshot_cli.environment import hardware, pick_device, versions
from lowshot_cli.evaluation.evaluate import Evaluation
from lowshot_cli.methods.operating_point import resolve_budget
from lowshot_cli.report import plots
from lowshot_cli.report.findings import ModelReportData, collect
from lowshot_cli.report.page import evaluation_page, sweep_page
from lowshot_cli.storage.files import write_text
from lowshot_cli.sweep.run import SweepResult
from lowshot_cli.sweep.run_folder import ABOUT, CONFIG, ROWS, SUMMARY

REPORT = "report.html"


def sweep_files(config: Config) -> list[str]:
    """Names of the files that a sweep and its report write to the run folder."""
    figures = ["accuracy"] if config.sweep.sessions else ["accuracy", "per_class", "tradeoff"]
    drawn = [f"{name}.{kind}" for name in figures for kind in ("png", "svg")]
    return [CONFIG, ABOUT, ROWS, SUMMARY, *drawn, REPORT]


def report_sweep(
    result: SweepResult, checkpoint: Checkpoint, config: Config, command: str, run_dir: Path
) -> list[Path]:
    """Write plots and report of a sweep; returns the PNGs and the page."""
    summary, findings = result.summary, collect(result, config)
    budget = resolve_budget(config.sweep.max_forgetting)
    figures = {"accuracy": plots.accuracy(summary)}
    if not summary.is_sequence:
        figures["per_class"] = plots.per_class(summary)
    if findings.trade_offs:
        figures["tradeoff"] = plots.sweep_trade_off(summary, findings, budget)
    written = [plots.save(drawn, run_dir / name)[0] for name, drawn in figures.items()]
    facts = _facts(checkpoint, config, command)
    write_text(run_dir / REPORT, sweep_page(summary, findings, figures, facts, config.to_yaml()))
    return [*written, run_dir / REPORT]


def report_evaluation(
    path: Path,
    found: Sequence[tuple[str, Evaluation]],
    data: ModelReportData,
    checkpoint: Checkpoint,
    config: Config,
    *,
    command: str,
) -> None:
    """Write the report of an evaluation.

    Args:
        path: where to write the page.
        found: name and evaluation of each model.
        data: of the last model, from `collect_for_model`.
        checkpoint: the last model.
        config: of the command.
        command: the command line as it was typed.
    """
    facts = _facts(checkpoint, config, command)
    write_text(path, evaluation_page(found, data, facts, config.to_yaml()))


def _facts(checkpoint: Checkpoint, config: Config, command: str) -> list[tuple[str, str]]:
    meta = checkpoint.meta
    return [
        ("command", command),
        ("base model", f"{meta.backbone}, {meta.n_base} classes, weights {checkpoint.digest[:12]}"),
        ("dataset", f"{meta.dataset}, content {meta.dataset_hash[:12]}"),
        ("seed", str(config.seed)),
        ("hardware", hardware(pick_device(config.device))),
        ("versions", ", ".join(f"{name} {value}" for name, value in versions().items())),
    ]
