"""Head fine-tuning with base rows held, released on every second step, or on all.

    python -m tests.benchmarks.released --checkpoint base.safetensors --novel 40 --trials 5

Needs CIFAR-100 in LOWSHOT_DATA. One novel class at a time, the same supports for all three. Novel
classes are the first of the class order after the base classes. Base losses from released rows
count against the budget.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import torch

from lowshot_cli.adaptation.methods import make_whitened
from lowshot_cli.checkpoint.format import load
from lowshot_cli.config.schema import Config, FinetuneConfig
from lowshot_cli.data.loading import load_dataset
from lowshot_cli.evaluation.statistics import t_interval
from lowshot_cli.methods.finetuning import finetune_all_proxies, finetune_proxies
from lowshot_cli.methods.operating_point import BaseQueries, operating_bias
from lowshot_cli.models.embedder import Embedder
from lowshot_cli.storage.cache import embedding_cache
from lowshot_cli.sweep.embeddings import embed_for_sweep
from lowshot_cli.sweep.plan import TrialBatch, make_plan
from lowshot_cli.sweep.scoring import NovelQueries, score_trials
from lowshot_cli.sweep.tiles import gather, make_tile

NAMES = ("ncr_at_2", "novel_accuracy", "forgetting")
WAYS = ("always", "alternate", "never")
BUDGET = 2.0


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--novel", type=int, default=40)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5, 10, 20])
    chosen = parser.parse_args()
    checkpoint = load(chosen.checkpoint)
    common = Config(data_dir=Path(os.environ["LOWSHOT_DATA"]))
    dataset = load_dataset(common)
    sweep = common.sweep.model_copy(update={"trials": chosen.trials, "shots": tuple(chosen.shots)})
    config = common.model_copy(update={"sweep": sweep})
    plan = make_plan(checkpoint, dataset, config)
    groups = plan.groups[: chosen.novel]
    embedder = Embedder(checkpoint.network(), cache=embedding_cache())
    embedded = embed_for_sweep(checkpoint, dataset, plan, config, embedder)
    labels = checkpoint.base_labels(dataset)
    queries = torch.cat(embedder.classes(dataset.test, labels))
    calibration = checkpoint.holdout.calibrating(checkpoint.holdout.embeddings).float()
    samples = checkpoint.backgrounds[0].samples
    for shots in chosen.shots:
        found = {way: np.zeros((len(groups), chosen.trials, len(NAMES))) for way in WAYS}
        for place in range(len(groups) * chosen.trials):
            batch = TrialBatch("whitened", shots, place, place + 1)
            tile = make_tile(batch, plan, embedded.available, embedded.avoided, 1)
            support = gather(embedded.train, tile)[0, 0]
            start = make_whitened(support[None], checkpoint.backgrounds[0])
            targets = torch.zeros(shots, dtype=torch.int64)
            for way in WAYS:
                options = FinetuneConfig(freeze_base=way)
                base_rows = checkpoint.head.base.proxies
                if way == "always":
                    one = finetune_proxies(start[None], support[None], targets, samples, options)[0]
                else:
                    base_rows, one = finetune_all_proxies(start, support, targets, samples, options)
                held = checkpoint.holdout.queries_under(base_rows, calibration)
                bias = operating_bias(held.margins(one[None]), held, BUDGET)
                base = BaseQueries.of(base_rows, queries, embedded.base_truth, embedded.base_right)
                label = int(tile.units[0, 0])
                novel = {label: NovelQueries.of(base_rows, embedded.novel[label].embeddings)}
                units = torch.from_numpy(tile.units)
                before = embedded.base_accuracy
                scores = score_trials(
                    one[None], bias, units, base, novel, base_accuracy_before=before
                )
                group, trial = divmod(place, chosen.trials)
                found[way][group, trial] = [scores.metrics[name][0] for name in NAMES]
        for way in WAYS:
            means = found[way].mean(1)
            gained = means[:, 0] - found["always"].mean(1)[:, 0]
            low, high = t_interval(gained) or (0.0, 0.0)
            print(
                f"{shots:3} shots  {way:9}  "
                + "  ".join(f"{n} {v:.1f}" for n, v in zip(NAMES, means.mean(0), strict=True))
                + f"  NCR@2 gained over always {gained.mean():+.2f} ± {(high - low) / 2:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
