"""Commands about datasets and caches."""

from __future__ import annotations

from lowshot_cli.commands.common import load
from lowshot_cli.config import Config
from lowshot_cli.data import image_cache
from lowshot_cli.embed import user_cache
from lowshot_cli.output import Output


def data_classes(config: Config, output: Output) -> None:
    """List the classes of a dataset with their numbers of images."""
    dataset = load(config, output)
    rows = [
        (name, len(dataset.train.of_class(label)), len(dataset.test.of_class(label)))
        for label, name in enumerate(dataset.class_names)
    ]
    output.data([{"class": name, "train": train, "test": test} for name, train, test in rows])
    output.table(["class", "training images", "test images"], rows, title=dataset.name)


def data_cache(output: Output, clear: bool) -> None:
    """Show what the caches hold, or empty them."""
    caches = {"embeddings": user_cache(), "decoded images": image_cache()}
    if clear:
        for cache in caches.values():
            cache.clear()
    about = []
    for name, cache in caches.items():
        entries = cache.entries()
        size = sum(entry.size for entry in entries)
        about.append((name, len(entries), size, cache.limit, str(cache.folder)))
    keys = ("cache", "entries", "bytes", "limit_bytes", "folder")
    output.data([dict(zip(keys, row, strict=True)) for row in about])
    rows = [(n, f"{count:,}", _mib(size), _mib(limit)) for n, count, size, limit, _ in about]
    output.table(["cache", "entries", "MiB", "limit MiB"], rows, title="kept for later runs")
    for name, *_, folder in about:
        output.line(f"{name}: {folder}")


def _mib(size: int) -> str:
    return f"{size / 1024**2:,.1f}"
