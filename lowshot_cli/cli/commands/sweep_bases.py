"""Sweeps over base models: each trained once, each swept, and what they add up to."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lowshot_cli.checkpoint import format as ckpt
from lowshot_cli.checkpoint import workdir as chain
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.cli import tables
from lowshot_cli.cli.commands import dry_run as planning
from lowshot_cli.cli.commands.sweep import Workers, changes_since, load_base, run_sweep
from lowshot_cli.cli.commands.train_base import finish_base, make_base_for_sweep
from lowshot_cli.cli.console import Output
from lowshot_cli.cli.context import load, load_dataset_of, logged, stop_on_ctrl_c
from lowshot_cli.config.schema import BACKBONES, EMBEDDING_SIZE, Config, TrainBaseConfig
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.errors import Interrupted, LowshotError, UsageError
from lowshot_cli.models import weights
from lowshot_cli.storage.files import ensure_writable, write_text
from lowshot_cli.storage.locks import locked
from lowshot_cli.sweep import ray_executor as cluster
from lowshot_cli.sweep.run_folder import ABOUT, ensure_saveable
from lowshot_cli.sweep.summary import over_bases
from lowshot_cli.sweep.trials import Executor

SUMMARY = "base-models.json"


@dataclass(frozen=True)
class Member:
    """A base model of the sweep: its name, and the config in which its own folder stands."""

    name: str
    config: Config

    @property
    def path(self) -> Path:
        """Of its checkpoint."""
        return chain.chain_path(self.config.workdir, "base")


def sweep(
    config: Config,
    output: Output,
    seeds: str | None,
    backbones: str | None,
    source: Path | None,
    resume: Path | None,
    dry_run: bool,
    save_models: bool,
    workers: Workers,
) -> None:
    """Train a base model for each class order and backbone, sweep each, and add them up.

    Base models that are there already are used, sweeps that are there are gone on with.
    """
    if source or resume:
        raise UsageError(
            "several base models do not go with --checkpoint or --resume",
            "leave these out; the same command goes on where it was stopped",
        )
    if save_models:
        ensure_saveable(config.sweep)
    members = plan_members(config, seeds, backbones)
    path = config.workdir / SUMMARY
    if dry_run:
        left = [one.config for one in members if not _is_swept(one, workers.threads, save_models)]
        planning.sweeps(left, output, None, save_models, [path])
        return
    with workers.open(output) as executor:
        _train_missing(members, output, workers)
        summaries = [_sweep(member, output, executor, workers, save_models) for member in members]
    found = [
        (member.config.train_base.backbone, s) for member, s in zip(members, summaries, strict=True)
    ]
    summary = {
        "base_models": [
            {
                "name": member.name,
                "backbone": member.config.train_base.backbone,
                "class_order_seed": member.config.train_base.class_order_seed,
                "checkpoint": str(member.path),
                **one,
            }
            for member, one in zip(members, summaries, strict=True)
        ],
        "cells": over_bases(found),
    }
    write_text(path, json.dumps(summary, indent=1, ensure_ascii=False))
    output.data(summary)
    tables.show_over_bases(output, summary)
    output.finish([path])


def plan_members(config: Config, seeds: str | None, backbones: str | None) -> list[Member]:
    """The base models that lists on the command line ask for, with commas between.

    Raises:
        UsageError: something that is no seed or no backbone, or seeds that change nothing.
    """
    given = config.train_base
    if seeds and (given.split == "alphabetical" or isinstance(given.classes, tuple)):
        raise UsageError(
            "--class-order-seeds changes nothing where the base classes are named or alphabetical",
            "leave it out, or give split: seeded and a number of classes",
        )
    orders = _listed("--class-order-seeds", seeds) or [str(given.class_order_seed)]
    networks = _listed("--backbones", backbones) or [given.backbone]
    return [_member(config, order, network) for order, network in product(orders, networks)]


def _listed(option: str, text: str | None) -> list[str]:
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if text is not None and (not parts or len(set(parts)) < len(parts)):
        raise UsageError(f"{option} {text!r}: should name each once, with commas between")
    return parts


def _member(config: Config, order: str, backbone: str) -> Member:
    values = config.train_base.model_dump()
    # The size that the package's own backbones have by default is not meant for others.
    if backbone not in BACKBONES and values["embedding_size"] == EMBEDDING_SIZE:
        del values["embedding_size"]
    values |= {"class_order_seed": order, "backbone": backbone}
    try:
        options = TrainBaseConfig.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        text = problem["msg"].removeprefix("Value error, ").replace("Input should", "should")
        raise UsageError(f"{problem['loc'][0]} {problem['input']!r}: {text}") from None
    name = f"order-{options.class_order_seed}-{re.sub('[^A-Za-z0-9_.]', '-', backbone)}"
    trained = config.sweep.model_copy(update={"train_base": True})
    changes = {"train_base": options, "sweep": trained, "workdir": config.workdir / name}
    return Member(name, config.model_copy(update=changes))


def _train_missing(members: Sequence[Member], output: Output, workers: Workers) -> None:
    """Train the base models that are not there yet; those that are must be the ones asked for."""
    missing = []
    for member in members:
        if member.path.exists():
            load_base(member.path, member.config)
        else:
            missing.append(member)
    if workers.on_ray:
        _train_on_ray(missing, output, workers.gpus)
        return
    for member in missing:
        output.note(f"training {member.name}")
        make_base_for_sweep(member.config, output, member.path)


def _train_on_ray(missing: Sequence[Member], output: Output, gpus: float) -> None:
    datasets: dict[int | None, Dataset] = {}
    with ExitStack() as stack:
        for member in missing:
            ensure_writable(member.path.parent)
            stack.enter_context(locked(member.path.parent))
            side = weights.photo_side(member.config)
            if side not in datasets:
                datasets[side] = load(member.config, output, side)
        should_stop = stack.enter_context(stop_on_ctrl_c())
        tasks = [(m.config, datasets[weights.photo_side(m.config)]) for m in missing]
        if missing:
            output.note(f"training {', '.join(member.name for member in missing)}")
        for number, result in cluster.train_bases(tasks, gpus, should_stop):
            member = missing[number]
            with logged(output, member.config, member.path):
                finish_base(member.config, output, member.path, result, False)


def _sweep(
    member: Member, output: Output, executor: Executor, workers: Workers, save_models: bool
) -> dict[str, Any]:
    """The summary of a base model's sweep, which is run as far as it is not there."""
    base = ckpt.load(member.path)
    begun = _begun(member.config, base, workers.threads, save_models)
    if begun and (begun / SUMMARY).exists():
        output.note(f"{member.name}: swept already, {begun}")
        summary: dict[str, Any] = json.loads((begun / SUMMARY).read_text(encoding="utf-8"))
        return summary
    output.note(f"sweeping {member.name}")
    dataset = load_dataset_of(base, member.config, output)
    threads = workers.threads_each
    try:
        done = run_sweep(
            member.config, output, base, dataset, begun, save_models, executor, threads
        )
    except Interrupted as stopped:
        stopped.hint = None  # the command as typed goes on with all of them
        raise
    output.finish(done.written)
    return done.summary


def _is_swept(member: Member, threads: int | None, save_models: bool) -> bool:
    if not member.path.exists():
        return False
    begun = _begun(member.config, ckpt.load(member.path), threads, save_models)
    return begun is not None and (begun / SUMMARY).exists()


def _begun(config: Config, base: Checkpoint, threads: int | None, save_models: bool) -> Path | None:
    """The newest run folder of this very sweep, if there is one."""
    for about in sorted(config.workdir.glob(f"sweep-*/{ABOUT}"), reverse=True):
        with suppress(LowshotError, OSError, ValueError):
            facts = json.loads(about.read_text(encoding="utf-8"))
            same = not changes_since(about.parent, config) and facts["base"] == base.digest
            suffices = facts.get("models") or not save_models
            if same and suffices and threads in (None, facts["threads"]):
                return about.parent
    return None
