"""The files of an export, and the packages that make and run them."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from lowshot_cli.config.values import ExportFormat
from lowshot_cli.errors import LowshotError

ONNX_FILE, TORCH_FILE, STATE_FILE = "model.onnx", "model.pt2", "model.safetensors"
LABELS_FILE, CARD_FILE = "labels.json", "README.md"
MODEL_FILES: dict[ExportFormat, tuple[str, ...]] = {
    "onnx": (ONNX_FILE,),
    "torch": (TORCH_FILE,),
    "state-dict": (STATE_FILE,),
    "all": (ONNX_FILE, TORCH_FILE),
}
ALL_MODEL_FILES = (ONNX_FILE, TORCH_FILE, STATE_FILE)
# The ONNX version that PyTorch's exporter writes without a conversion.
OPSET = 18


def ensure_installed(form: ExportFormat, *, making: bool, checking: bool) -> None:
    """Check for the packages that making or checking an export needs, before any work starts.

    Raises:
        LowshotError: ONNX is asked for and they are not installed.
    """
    if ONNX_FILE in MODEL_FILES[form]:
        import_packages(*(["onnx", "onnxscript"] * making), *(["onnxruntime"] * checking))


def import_packages(*names: str) -> list[Any]:
    """The modules of ONNX's packages.

    Raises:
        LowshotError: they are not all installed.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            return [importlib.import_module(name) for name in names]
    except ImportError:
        raise LowshotError(
            f"ONNX needs the packages {', '.join(names)}, and not all are installed",
            "install them with pip install 'lowshot-cli[onnx]'; `format=torch` needs none of them",
        ) from None
