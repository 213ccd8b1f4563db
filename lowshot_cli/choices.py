"""Values that flags and config keys may take."""

from __future__ import annotations

from typing import Literal

DatasetName = Literal["cifar100", "folder", "glyphs"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]
Split = Literal["seeded", "alphabetical"]
BackboneName = Literal["resnet9", "resnet18"]
ImprintMethod = Literal["imprint", "random", "augmented", "whitened", "calibrated"]
SweepMethod = Literal[
    "imprint",
    "random",
    "augmented",
    "whitened",
    "calibrated",
    "nearest",
    "proxies",
    "finetune-head",
    "finetune-full",
]
Scope = Literal["head", "full"]
Loss = Literal["adaptive", "plain"]
FreezeBase = Literal["always", "alternate", "never"]
