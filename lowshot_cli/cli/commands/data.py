"""`lowshot data`; the contents of the caches are shown without torch."""

from __future__ import annotations

from dataclasses import astuple

from lowshot_cli.cli.console import Output
from lowshot_cli.cli.contract import CacheUse, ClassSize, LookalikePair, duplicates_record
from lowshot_cli.config.schema import Config
from lowshot_cli.records import with_skipped
from lowshot_cli.storage.cache import embedding_cache, image_cache

_MOST_PAIRS = 10


def data_classes(config: Config, output: Output) -> None:
    """List the classes of a dataset with their numbers of images."""
    from lowshot_cli.cli.context import load

    dataset = load(config, output)
    sizes = [
        ClassSize(name, len(dataset.train.of_class(label)), len(dataset.test.of_class(label)))
        for label, name in enumerate(dataset.class_names)
    ]
    output.data([one.to_json() for one in sizes])
    cells = [[one.name, one.train, one.test] for one in sizes]
    output.table(["class", "training images", "test images"], cells, title=dataset.name)


def data_duplicates(config: Config, output: Output, at_least: float) -> None:
    """Find test images that look like a training image."""
    from lowshot_cli.cli.context import load
    from lowshot_cli.data.duplicates import lookalikes

    dataset = load(config, output)
    train, test = dataset.train, dataset.test
    with output.progress() as on_progress:
        found = lookalikes(test.pixels, train.pixels, on_progress)
    places = (found.similarity >= at_least).nonzero().squeeze(1)
    order = places[found.similarity[places].argsort(descending=True, stable=True)].tolist()
    pairs = [
        LookalikePair(
            test=test.describe(place),
            test_class=dataset.class_names[int(test.labels[place])],
            train=train.describe(int(found.nearest[place])),
            train_class=dataset.class_names[int(train.labels[found.nearest[place]])],
            similarity=round(found.similarity[place].item(), 4),
        )
        for place in order
    ]
    same = sum(pair.test_class == pair.train_class for pair in pairs)
    record = duplicates_record(at_least, len(test.labels), same, pairs)
    output.data(with_skipped(record, dataset.n_skipped))
    cells = [list(astuple(pair)) for pair in pairs[:_MOST_PAIRS]]
    title = f"test images that resemble a training image, {len(cells)} of {len(pairs)}"
    output.table(["test image", "class", "training image", "class", "similarity"], cells, title)
    output.line(
        f"{len(pairs):,} of {len(test.labels):,} test images resemble a training image by "
        f"{at_least:g} or more,"
    )
    output.line(f"{same:,} of them one of their own class")


def data_cache(output: Output, *, clear: bool) -> None:
    """Show what the caches hold, or empty them."""
    caches = {"embeddings": embedding_cache(), "decoded images": image_cache()}
    if clear:
        for cache in caches.values():
            cache.clear()
    uses = []
    for name, cache in caches.items():
        entries = cache.entries()
        size = sum(entry.size for entry in entries)
        uses.append(CacheUse(name, len(entries), size, cache.limit, str(cache.folder)))
    output.data([use.to_json() for use in uses])
    cells = [[use.name, f"{use.entries:,}", _mib(use.size), _mib(use.limit)] for use in uses]
    output.table(["cache", "entries", "MiB", "limit MiB"], cells, title="kept for later runs")
    for use in uses:
        output.line(f"{use.name}: {use.folder}")


def _mib(size: int) -> str:
    return f"{size / 1024**2:,.1f}"
