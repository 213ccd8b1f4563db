"""Values that flags and config keys may take."""

from __future__ import annotations

from typing import Literal

DatasetName = Literal["cifar100", "folder", "glyphs", "none"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]
Split = Literal["seeded", "alphabetical"]
# The package's own backbones, and the libraries whose models are named `library:model`.
BACKBONES = ("resnet9", "resnet18")
LIBRARIES = ("torchvision", "timm")
# Dimensions of the embedding of the package's own backbones.
EMBEDDING_SIZE = 64
# Percent of the hold-out that may be taken for unknown images.
FALSE_ALARM = 5.0
# Published weights of a library's model, where a file could be named.
DEFAULT_WEIGHTS = "DEFAULT"
ImprintMethod = Literal["imprint", "random", "augmented", "whitened", "calibrated"]
SweepMethod = Literal[ImprintMethod, "nearest", "proxies", "finetune-head", "finetune-full"]
Scope = Literal["head", "full"]
Loss = Literal["adaptive", "plain"]
FreezeBase = Literal["always", "alternate", "never"]
# Checkpoints of a work folder, each made from the one before.
CHAIN = ("base", "imprinted", "finetuned")
ExportFormat = Literal["onnx", "torch", "all"]
Executor = Literal["local", "ray"]
