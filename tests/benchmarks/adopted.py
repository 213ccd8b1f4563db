"""What a classifier that was adopted from weights alone decides, before and after it is taught.

    python -m tests.benchmarks.adopted photos/base photos/hat

`equal` compares adopted classifiers with the libraries' own models and transforms. `taught` teaches
ImageNet's 1,000 classes one more, from a few photos and with or without a background. `calibration`
measures what the probabilities of a classifier of the base classes are worth.

`--limit 10` is a quick try.
"""

from __future__ import annotations

import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.photos import with_photos
from lowshot_cli.config.schema import Config
from lowshot_cli.config.train_base import TrainBaseConfig
from lowshot_cli.data.photos import find_photos, load_photos
from lowshot_cli.evaluation.statistics import t_interval
from lowshot_cli.models.efficientnet_lite import read_published
from lowshot_cli.models.embedder import embed
from lowshot_cli.training.adopt import adopt_without_data
from tests.benchmarks.new_class import BUDGET, teach

LITE, OF_TIMM = "efficientnet-lite0", "tf_efficientnet_lite0"
# Torchvision's models that are compared, and on how many photos.
OTHERS = {"resnet18": 200, "mobilenet_v3_small": 200, "vit_b_16": 24}
BATCH, BINS = 16, 15
SHOTS, BACKGROUNDS = (1, 5), (0, 60, 200)
# Standard deviation of the logits of untrained classifiers: they differ as trained ones do.
SPREAD = 2.0


@dataclass(frozen=True)
class Clothes:
    """Photos of the base classes and of a new one, and what the network sees in them.

    Attributes:
        names: of the classes, the new one last.
        files: of all photos.
        features: `(N, D)`.
        labels: `(N,)` int64.
        training: `(N,)` bool, whether a photo is one of the training photos of a base class.
    """

    names: tuple[str, ...]
    files: tuple[Path, ...]
    features: Tensor
    labels: Tensor
    training: Tensor


def where(mask: Tensor) -> Tensor:
    """Positions `(n,)` at which a mask `(N,)` is true."""
    return mask.nonzero()[:, 0]


def adopted(backbone: str, **settings: object) -> Checkpoint:
    """A classifier adopted without images."""
    options = TrainBaseConfig.model_validate({"backbone": backbone, "epochs": 0, **settings})
    return adopt_without_data(Config(dataset="none", train_base=options)).checkpoint


def features_of(model: Checkpoint, files: Sequence[Path]) -> Tensor:
    """What the model's network sees in photos, `(N, D)`."""
    size, framing, network = model.meta.image_size, model.meta.framing, model.network()
    parts = [files[start : start + 256] for start in range(0, len(files), 256)]
    return torch.cat(
        [embed(network, load_photos(part, size, framing=framing).pixels) for part in parts]
    )


def read_clothes(model: Checkpoint, base: Path, new: Path, limit: int | None) -> Clothes:
    """Read all photos, or the first `limit` of each folder, and embed each once."""
    names = tuple(sorted(folder.name for folder in (base / "train").iterdir()))
    folders = [(base / split / name, name) for split in ("train", "test") for name in names]
    names = (*names, new.name)
    files, labels, training = list[Path](), list[int](), list[bool]()
    for folder, name in [*folders, (new, new.name)]:
        found = find_photos([folder]).files[:limit]
        files += found
        labels += [names.index(name)] * len(found)
        training += [folder.parent.name == "train"] * len(found)
    features = features_of(model, files)
    return Clothes(names, tuple(files), features, torch.tensor(labels), torch.tensor(training))


@torch.inference_mode()
def by_library(model: nn.Module, transform: Callable[..., Any], files: Sequence[Path]) -> Tensor:
    """Probabilities `(N, C)` by a library's own model and transform."""
    model.eval()
    parts = []
    for start in range(0, len(files), BATCH):
        images = [
            transform(Image.open(file).convert("RGB")) for file in files[start : start + BATCH]
        ]
        parts.append(model(torch.stack(images)).softmax(1))
    return torch.cat(parts)


def report_equal(name: str, ours: Tensor, theirs: Tensor) -> None:
    """Print how many decisions are equal, and how far probabilities `(N, C)` lie apart."""
    equal = int((ours.argmax(1) == theirs.argmax(1)).sum())
    apart = (ours - theirs).abs().max().item()
    surest = theirs.amax(1).mean()
    print(
        f"{name}: {equal} of {len(ours)} decisions equal ({len(theirs.argmax(1).unique())} classes "
        f"decided for, mean probability {surest:.2f}), largest difference of probabilities "
        f"{apart:.1e}"
    )


def published_lite(classes: int = 1000) -> nn.Module:
    """Timm's own model with the weights of the package."""
    import timm

    model: nn.Module = timm.create_model(OF_TIMM, num_classes=classes)
    state = read_published(LITE)
    if classes != 1000:
        own = model.state_dict()
        state = {n: t if t.shape == own[n].shape else own[n] for n, t in state.items()}
    model.load_state_dict(state)
    return model


def untrained(name: str, transform: Callable[..., Any], files: Sequence[Path]) -> nn.Module:
    """A model of torchvision with seeded random weights.

    Statistics of BatchNorms are those of a few photos, and the last layer makes logits that differ
    as those of a trained model do, so that a mistake would show.
    """
    from torchvision.models import get_model

    torch.manual_seed(0)
    model: nn.Module = get_model(name, weights=None)
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    seen = list[Tensor]()
    hook = last.register_forward_hook(lambda layer, given, result: seen.append(given[0]))
    images = torch.stack([transform(Image.open(file).convert("RGB")) for file in files[:BATCH]])
    with torch.no_grad():
        norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        if norms:
            model.train()(images)
        model.eval()(images)
        hook.remove()
        around = seen[-1] - seen[-1].mean(0)  # (n, E)
        nn.init.normal_(last.weight, std=SPREAD / around.norm(dim=1).mean().item())
        last.bias.copy_(-last.weight @ seen[-1].mean(0))
    return model


def compare(model: Checkpoint, clothes: Clothes, limit: int | None) -> None:
    """Part `equal`."""
    import timm
    from torchvision.models import get_model_weights

    lite = published_lite()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=lite))
    ours = model.head.probabilities(clothes.features)
    report_equal(f"timm {OF_TIMM}", ours, by_library(lite, transform, clothes.files))
    for name, most in OTHERS.items():
        count = min(most, 2 * limit) if limit else most
        step = max(1, len(clothes.files) // count)
        files = clothes.files[::step][:count]
        transform = get_model_weights(name).DEFAULT.transforms()
        theirs = untrained(name, transform, files)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.pt"
            torch.save(theirs.state_dict(), path)
            other = adopted(f"torchvision:{name}", weights=str(path), class_names="imagenet")
        ours = other.head.probabilities(features_of(other, files))
        report_equal(f"torchvision {name}", ours, by_library(theirs, transform, files))


def drawn(positions: Tensor, count: int, seed: int) -> Tensor:
    """A seeded draw of `count` of the positions `(n,)`, or all in another order."""
    order = np.random.default_rng(seed).permutation(len(positions))[:count]
    return positions[torch.from_numpy(order)]


def teach_once(
    model: Checkpoint, clothes: Clothes, label: int, *, draw: int, n_background: int
) -> list[tuple[float, float]]:
    """Recall of a class and changed decisions on photos of others, in percent, for all `SHOTS`.

    The background is drawn from the training photos of the other base classes, and the photos that
    may change their decision are all others of these classes.
    """
    own = where(clothes.labels == label)
    others = clothes.labels != label
    if label != len(clothes.names) - 1:
        others &= clothes.labels != len(clothes.names) - 1
    known = drawn(where(others & clothes.training), n_background, draw)
    others[known] = False
    base = with_photos(model, clothes.features[known]) if n_background else model
    order, result = drawn(own, len(own), draw), []
    for shots in SHOTS:
        head = teach(base, clothes.features[order[:shots]]).head
        recall, changed = (
            100 * (head.predict(clothes.features[some]) == head.n_base).double().mean().item()
            for some in (order[shots:], where(others))
        )
        result.append((recall, changed))
    return result


def in_words(values: Sequence[float], unit: str = " %", digits: int = 1) -> str:
    """Mean and 95 % interval."""
    low, high = t_interval(np.array(values)) or (float("nan"),) * 2
    return f"{np.mean(values):.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def teach_all(model: Checkpoint, clothes: Clothes, draws: int) -> None:
    """Part `taught`; a draw of the base classes is the mean over them."""
    new = len(clothes.names) - 1
    kinds = {"the base classes": (range(new), draws), clothes.names[new]: ([new], 4 * draws)}
    for title, (labels, n_draws) in kinds.items():
        for n_background in BACKGROUNDS:
            # (T, C, S, 2)
            found = np.array(
                [
                    [
                        teach_once(model, clothes, label, draw=draw, n_background=n_background)
                        for label in labels
                    ]
                    for draw in range(n_draws)
                ]
            )
            for place, shots in enumerate(SHOTS):
                recall, changed = found[:, :, place].mean(1).T
                print(
                    f"{title}, {shots} shots, background {n_background}, {n_draws} draws: recall "
                    f"{in_words(recall)}, changed {in_words(changed, digits=2)}, most "
                    f"{found[:, :, place, 1].max():.1f} %"
                )


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Expected calibration error in percent (Guo et al. 2017, eq. 3), of equal bins."""
    surest, decided = probabilities.double().max(1)
    bins = (surest * BINS).ceil().long().clamp(1, BINS) - 1
    gaps = torch.zeros(BINS, dtype=torch.float64)
    gaps.index_add_(0, bins, (decided == labels).double() - surest)
    return 100 * gaps.abs().sum().item() / len(labels)


def least_error(probabilities: Tensor) -> float:
    """The calibration error expected by chance: of labels drawn from the probabilities."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(probabilities, 100, replacement=True, generator=generator)
    return float(np.mean([calibration_error(probabilities, column) for column in labels.T]))


def fit_classifier(features: Tensor, labels: Tensor, decay: float = 0.01) -> nn.Linear:
    """Softmax regression of `(N, D)`, as those train a last layer who have a few photos."""
    torch.manual_seed(0)
    layer = nn.Linear(features.shape[1], int(labels.max()) + 1)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(features), labels) + decay / 2 * layer.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)
    return layer


def own_classifier(clothes: Clothes, fitted: Tensor) -> Checkpoint:
    """A classifier of the base classes, written as timm does and adopted."""
    model, names = published_lite(classes=len(clothes.names) - 1), clothes.names[:-1]
    layer = fit_classifier(clothes.features[fitted], clothes.labels[fitted])
    model.get_submodule("classifier").load_state_dict(layer.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clothes.pt"
        torch.save(model.state_dict(), path)
        made = adopted(f"timm:{OF_TIMM}", weights=str(path), classes=names)
    some = features_of(made, clothes.files[:BATCH])
    assert torch.allclose(some, clothes.features[:BATCH], atol=1e-4), "other features"
    return made


def calibrate(clothes: Clothes, draws: int) -> None:
    """Part `calibration`."""
    new, everything = len(clothes.names) - 1, where(clothes.training)
    known = drawn(everything, len(everything), 0)
    cut = 2 * len(known) // 3
    model = own_classifier(clothes, known[:cut])
    base = with_photos(model, clothes.features[known[cut:]])
    test = where(~clothes.training & (clothes.labels != new))
    queries, truth = clothes.features[test], clothes.labels[test]
    before = model.head.probabilities(queries)
    right = 100 * (before.argmax(1) == truth).double().mean().item()
    print(
        f"{new} classes before: accuracy {right:.1f} % of {len(test)}, calibration error "
        f"{calibration_error(before, truth):.1f} % (by chance {least_error(before):.1f})"
    )
    own, rows = where(clothes.labels == new), []
    for draw in range(draws):
        order = drawn(own, len(own), draw)
        head = teach(base, clothes.features[order[:5]]).head
        after, found = (head.probabilities(some) for some in (queries, clothes.features[order[5:]]))
        both, labels = torch.cat([after, found]), F.pad(truth, (0, len(found)), value=new)
        rows.append(
            (
                100 * (found.argmax(1) == new).double().mean().item(),
                right - 100 * (after.argmax(1) == truth).double().mean().item(),
                calibration_error(after, truth),
                calibration_error(both, labels),
                least_error(both),
            )
        )
    recall, lost, of_base, of_both, chance = np.array(rows).T
    print(
        f"with {clothes.names[new]} from 5 photos, background {len(known) - cut}, {draws} draws: "
        f"recall {in_words(recall)}, forgetting {in_words(lost, ' points')}; calibration error "
        f"{in_words(of_base)} on base photos, {in_words(of_both)} with the new class's (by chance "
        f"{chance.mean():.1f})"
    )


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help="folder with class folders in train and test")
    parser.add_argument("photos", type=Path, help="folder of photos of another class")
    parts = ("equal", "taught", "calibration")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--draws", type=int, default=5, help="of a base class; four times of new")
    parser.add_argument("--limit", type=int, help="photos of each folder")
    options = parser.parse_args()
    model = adopted(LITE)
    clothes = read_clothes(model, options.base, options.photos, options.limit)
    print(f"{len(clothes.files)} photos of {len(clothes.names)} classes, budget {BUDGET} %")
    if "equal" in options.parts:
        compare(model, clothes, options.limit)
    if "taught" in options.parts:
        teach_all(model, clothes, options.draws)
    if "calibration" in options.parts:
        calibrate(clothes, 4 * options.draws)


if __name__ == "__main__":
    main()
