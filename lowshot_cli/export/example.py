"""The lines of Python in a model card, which classify a photo."""

from __future__ import annotations

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.metadata import Meta
from lowshot_cli.config.values import ExportFormat
from lowshot_cli.data.framing import GREY
from lowshot_cli.export.formats import MODEL_FILES, ONNX_FILE
from lowshot_cli.export.state_dict import library_name
from lowshot_cli.models.backbones import Resized
from lowshot_cli.models.pretrained import library_options

_ONNX_EXAMPLE = """\
session = onnxruntime.InferenceSession("model.onnx")
probabilities, embeddings = session.run(None, {"images": images})
"""
_TORCH_EXAMPLE = """\
model = torch.export.load("model.pt2").module()
probabilities, embeddings = (found.numpy() for found in model(torch.from_numpy(images)))
"""
_STATE_EXAMPLE = """\
model = {call}
model.load_state_dict(safetensors.torch.load_file("model.safetensors"))
model.eval()
mean, std = (torch.tensor(channels).view(3, 1, 1) for channels in ({mean}, {std}))
images = (torch.from_numpy(images) - mean) / std
with torch.inference_mode():
    probabilities = model({resized}).softmax(1)
"""
_EXAMPLE = """\
import json
from pathlib import Path

import numpy as np
{imports}
from PIL import Image, ImageOps

photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
{square}
images = np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1)[None])

{run}
labels = json.loads(Path("labels.json").read_text(encoding="utf-8"))
print(labels[probabilities[0].argmax()])
"""


def example(checkpoint: Checkpoint, form: ExportFormat) -> str:
    """A program that prints the class of `photo.jpg` by the files of an export."""
    meta = checkpoint.meta
    if form == "state-dict":
        library, _, _ = library_name(meta.backbone).partition(":")
        modules = ["safetensors.torch", *sorted([library, "torch"])]
        run = _STATE_EXAMPLE.format(
            call=library_call(meta), mean=meta.mean, std=meta.std, resized=_resized(checkpoint)
        )
    elif ONNX_FILE in MODEL_FILES[form]:
        modules, run = ["onnxruntime"], _ONNX_EXAMPLE
    else:
        modules, run = ["torch"], _TORCH_EXAMPLE
    imports = "\n".join(f"import {module}" for module in modules)
    return _EXAMPLE.format(imports=imports, square=_square(meta), run=run)


def library_call(meta: Meta) -> str:
    """The expression that builds the library's own model."""
    name = library_name(meta.backbone)
    library, _, model = name.partition(":")
    side = meta.input_size or meta.image_size
    options = {"num_classes": len(meta.classes), **library_options(name, side)}
    given = ", ".join(f"{option}={value!r}" for option, value in options.items())
    function = "timm.create_model" if library == "timm" else "torchvision.models.get_model"
    return f'{function}("{model}", {given})'


def _resized(checkpoint: Checkpoint) -> str:
    """The expression that makes normalised images the input of the library's own model."""
    if not checkpoint.meta.input_size:
        return "images"
    resized = checkpoint.blank_network().backbone
    assert isinstance(resized, Resized)
    side, mode = resized.side, f'mode="{resized.mode}", antialias={resized.shrinks}'
    return f"torch.nn.functional.interpolate(images, ({side}, {side}), {mode})"


def _square(meta: Meta) -> str:
    """Lines of Python that make `photo` the `square` of a model."""
    side, how = meta.image_size, f"Image.Resampling.{meta.framing.interpolation.upper()}"
    first, fit = meta.framing.resize, meta.framing.fit
    if fit == "pad":
        return f"square = ImageOps.pad(photo, ({side}, {side}), {how}, {GREY})"
    if fit == "crop" and first is None:
        return f"square = ImageOps.fit(photo, ({side}, {side}), {how})"
    first = first or side
    sizes = f"int({first} * length / min(photo.size)) for length in photo.size"
    resized = f"({first}, {first})" if fit == "squash" else f"[{sizes}]"
    corner = f"left, top = (round((length - {side}) / 2) for length in photo.size)"
    cropped = f"square = photo.crop((left, top, left + {side}, top + {side}))"
    return f"photo = photo.resize({resized}, {how})\n{corner}\n{cropped}"
