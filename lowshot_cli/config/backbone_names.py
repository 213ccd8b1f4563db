"""The backbone that a person meant, without importing the libraries that have them."""

from __future__ import annotations

import re
from difflib import get_close_matches
from itertools import pairwise

from lowshot_cli.errors import nearest

# The classification models of torchvision, of each family the usual one first.
_MODELS = (
    "alexnet convnext_tiny convnext_small convnext_base convnext_large densenet121 "
    "densenet161 densenet169 densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2 "
    "efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7 "
    "efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3 maxvit_t "
    "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large "
    "mobilenet_v3_small regnet_x_16gf regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf "
    "regnet_x_400mf regnet_x_800mf regnet_x_8gf regnet_y_128gf regnet_y_16gf regnet_y_1_6gf "
    "regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf resnet101 "
    "resnet152 resnet18 resnet34 resnet50 resnext101_32x8d resnext101_64x4d resnext50_32x4d "
    "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 "
    "squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 "
    "vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_h_14 "
    "vit_l_16 vit_l_32 wide_resnet101_2 wide_resnet50_2"
)
TORCHVISION = tuple(_MODELS.split())
_CLOSE = 0.85  # how alike a name and one of the package's own are, from 0 to 1
# Names of timm's models begin so, and none of torchvision's does.
_TIMM = re.compile(
    r"(?:vit|swin|beit|naflexvit)_(?:tiny|small|base|large|huge|giant|so|wee|medium|little)"
    r"|convnext_(?:atto|femto|pico|nano|xx?large)|(?:convnext|swin|resnet|mobilenet|ghostnet)v\d"
    r"|(?:resnet|resnext|densenet)\d+[a-z]|resnet(?:rs|aa|blur)|(?:efficientnet|maxvit)_\w*_\d{3}"
    r"|(?:tf|nf|legacy|cs3|eca|ese|dm|tiny)_?\w*_|regnet[vxyz]_|mobilenet_?v3_\w+_\d{3}"
    r"|(?:deit|beit|eva|xcit|coat|levit|efficientv|efficientform|fastvit|focalnet|hrnet|repv|repgh"
    r"|volo|cait|hiera|davit|mvitv|pit_|mobilevit|mobileone|hgnet|inception_next|inception_resnet"
    r"|mixer|nest_|twins|edgenext|gcvit|lcnet|mixnet|poolformer|res2ne|resnest|rexnet|tinynet"
    r"|caformer|convformer|convmixer|samvit|semnasnet|tresnet|dla\d|dpn\d|gmlp|seresne|ecaresne"
    r"|xception|pvt|crossvit|visformer|nasnet|pnasnet|cspdarknet|cspresne|darknet|nfnet|sknet)"
)


def meant_backbone(name: str, own: tuple[str, ...], libraries: tuple[str, ...]) -> str | None:
    """The backbone whose name a person most likely meant, or None.

    Args:
        name: a name that is not valid, such as `ResNet-50` or `torchvision.models.resnet50`.
        own: names of the package's own backbones.
        libraries: names of the libraries that have others.
    """
    words = [word for word in re.split(r"[:/.]", name.lower()) if word not in ("", "models")]
    found = ((nearest(word, libraries), model) for word, model in pairwise(words))
    library, model = next((pair for pair in found if pair[0]), (None, words[0] if words else ""))
    known = {each: each for each in own} if library is None else {}
    if library != "timm":
        known = {**{each: f"torchvision:{each}" for each in TORCHVISION}, **known}
    plain = {_plain(each): full for each, full in known.items()}
    if exact := plain.get(_plain(model)) or plain.get(_plain(name.lower())):
        return exact
    if library == "timm" or (library is None and _TIMM.match(model)):
        return f"timm:{model}"
    if library is None and (close := get_close_matches(model, own, n=1, cutoff=_CLOSE)):
        return close[0]
    stem = _plain(model)
    family = [each for each in plain if len(stem) > 2 and each.startswith(stem)]
    if family:
        return plain[family[0]]
    match = nearest(model, known)
    return known[match] if match else None


def _plain(name: str) -> str:
    """A name without what people write in several ways: dashes, underscores, spaces."""
    return re.sub(r"[^a-z0-9]", "", name)
