"""The model that is served: what it knows, how it is changed, and how changes are undone.

Every change makes a new checkpoint, writes it, and only then takes it into use. So a process that
is killed loses nothing, and whoever holds the model that was in use goes on with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lowshot_cli.adaptation.bias import set_bias, without_class
from lowshot_cli.adaptation.imprint import SupportDraw, imprint_photos, known_as
from lowshot_cli.adaptation.review import review_classes, weakened_classes
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load, save
from lowshot_cli.checkpoint.metadata import read_metadata
from lowshot_cli.checkpoint.workdir import chain_path, is_stage
from lowshot_cli.config.schema import Config, ImprintConfig
from lowshot_cli.config.values import normal_name
from lowshot_cli.config.yaml_file import make_section
from lowshot_cli.data.decoding import ByteArray
from lowshot_cli.data.photos import Photos
from lowshot_cli.errors import CheckpointError, UsageError, did_you_mean
from lowshot_cli.models.embedder import fused
from lowshot_cli.records import (
    Record,
    changed_record,
    known_classes,
    photo_imprint_record,
    with_reviews,
    with_skipped,
)
from lowshot_cli.serve.changes import changes_since
from lowshot_cli.serve.errors import Conflict, Unknown, not_saved
from lowshot_cli.serve.served import Served
from lowshot_cli.serve.thumbnails import Thumbnails
from lowshot_cli.serve.versions import Versions, put, same_content
from lowshot_cli.storage.files import file_hash


class Session:
    """A model in use, its file, and the versions of it.

    One thread at a time may change it; any may read `now`, which is replaced as a whole.

    Args:
        path: its file. A base model is never rewritten: what is made of it goes to
            `imprinted.safetensors` beside it. Any other file is replaced.
        device: where images are embedded.

    Raises:
        CheckpointError: it cannot be read.
        UsageError: it is a base model, and another model has been made of it.
    """

    def __init__(self, path: Path, device: torch.device | None = None) -> None:
        checkpoint = load(path)
        self.now = Served(checkpoint, path)
        self.network = fused(checkpoint.network(device))
        is_base = is_stage(path) and path.stem == "base"
        self.target = chain_path(path.parent, "imprinted") if is_base else path
        if is_base and self.target.is_file():
            raise UsageError(
                f"{self.target} is there already, and a class taught on {path} would replace it",
                f"serve {self.target}, or move it away",
            )
        self.versions = Versions(path.parent / "versions")
        self.thumbnails = Thumbnails(path.parent / "thumbnails")
        self._before: Served | None = None
        self._earlier = self._find_earlier()

    def prepare(self) -> None:
        """Find what every new class is made from, so that the first is taught as fast as others."""
        _ = self.now.checkpoint.backgrounds

    def before(self) -> Served:
        """The model before the last change.

        Raises:
            Conflict: there is none.
        """
        if self._earlier is None:
            raise Conflict("there is no change to compare with", "teach a class first")
        if self._before is None:
            path = self._earlier[0]
            # Changes leave the network as it is, so one copy of it is enough.
            checkpoint = replace(load(path), backbone=self.now.checkpoint.backbone)
            self._before = Served(checkpoint, path)
        return self._before

    def classes(self) -> list[Record]:
        """The record of `classes list`, with thumbnails, and the first names of renamed classes."""
        meta, there = self.now.checkpoint.meta, self.thumbnails.present()
        records = [one.to_json() for one in known_classes(meta)]
        for record, support in zip(records[meta.n_base :], meta.supports, strict=True):
            record["thumbnails"] = [one for one in support.pixel_hashes if one in there]
        for record in records:
            if first := meta.renamed.get(record["class"]):
                record["first_name"] = first
        return records

    def about(self) -> Record:
        """What the model is, and what an undo would take back."""
        now, earlier = self.now, self._earlier
        checkpoint, meta = now.checkpoint, now.checkpoint.meta
        return {
            "checkpoint": str(now.path),
            "revision": now.revision,
            "backbone": meta.backbone,
            "n_base": meta.n_base,
            "n_novel": len(meta.novel_classes),
            "adopted": meta.adopted,
            "n_background": checkpoint.n_background,
            "max_forgetting": meta.max_forgetting,
            "bias": checkpoint.head.bias,
            "expected_forgetting": now.cost,
            "can_undo": earlier is not None,
            "undoes": earlier and earlier[1],
            "writes_to": str(self.target),
        }

    def ensure_new(self, name: str) -> None:
        """Refuse to teach a class that is known.

        Raises:
            Conflict: the model knows it, by this name or another.
        """
        name = normal_name(name)
        if called := known_as(self.now.checkpoint, name):
            now = "" if called == name else f", as {called!r}"
            hint = "choose another name; or `replace=true` teaches it anew, and forgets the old"
            raise Conflict(f"the model already knows {name!r}{now}", hint)

    def teach(
        self, name: str, pixels: ByteArray, files: Sequence[str], *, replace_known: bool = False
    ) -> Record:
        """Teach a class, beside those that were taught before.

        Args:
            name: the class.
            pixels: `(k, 3, S, S)` uint8 photos of it.
            files: what to call each.
            replace_known: teach a known class anew.

        Returns:
            The record of `imprint --add --images`.

        Raises:
            Conflict: the model knows the class.
            UsageError: the name is not allowed.
            DataError: the photos have no direction of their own.
            NotSaved: the new model cannot be written.
        """
        if not replace_known:
            self.ensure_new(name)
        before = self.now.checkpoint
        # The budget in use stays in use; the default comes with the first class.
        options = make_section(ImprintConfig, max_forgetting=before.meta.max_forgetting)
        photos = Photos(torch.from_numpy(pixels), tuple(map(Path, files)))
        taught, drawn = imprint_photos(
            before,
            self.network,
            {name: photos},
            Config(imprint=options),
            replace_known=replace_known,
        )
        try:
            self.thumbnails.write(pixels)
        except OSError as error:
            raise not_saved(error, f"{self.thumbnails.folder}: ") from None
        self._take(taught)
        return self._taught_record(before, drawn)

    def _taught_record(self, before: Checkpoint, drawn: Sequence[SupportDraw]) -> Record:
        now = self.now
        method = now.checkpoint.meta.supports[-1].method
        record = photo_imprint_record(
            now.path, method, now.checkpoint, drawn, expected_forgetting=now.cost
        )
        reviews = review_classes(now.checkpoint, [one.name for one in drawn])
        weakened = weakened_classes(before, now.checkpoint)
        return with_skipped(with_reviews(record, reviews, weakened), 0)

    def remove(self, name: str, *, force: bool = False) -> Record:
        """Remove a class; a base class only with `force`.

        Returns:
            The record of `classes remove`.

        Raises:
            Unknown: there is no such class.
            Conflict: it is a base class, and `force` is not set; or the last base class.
            NotSaved: the new model cannot be written.
        """
        name = self._changeable(name, force)
        try:
            changed = without_class(self.now.checkpoint, name)
        except UsageError as error:
            raise Conflict(error.message, error.hint) from None
        return self._take(changed.with_history("classes remove", {"class": name}))

    def rename(self, name: str, new: str, *, force: bool = False) -> Record:
        """Rename a class; a base class only with `force`.

        Returns:
            The record of `classes rename`.

        Raises:
            Unknown: there is no such class.
            Conflict: it is a base class, and `force` is not set; or the new name is taken.
            UsageError: the new name is not allowed.
            NotSaved: the new model cannot be written.
        """
        name, new = self._changeable(name, force), normal_name(new)
        if new in self.now.checkpoint.meta.classes:
            raise Conflict(f"the model already knows a class {new!r}", "choose another name")
        changed = self.now.checkpoint.rename_class(name, new)
        return self._take(changed.with_history("classes rename", {"class": name, "to": new}))

    def set_budget(self, max_forgetting: float) -> Record:
        """Set the bias of novel classes for another budget in points.

        Returns:
            The record of `about`.

        Raises:
            Conflict: there are no novel classes, or no images that set a bias.
            UsageError: the budget is out of range.
            NotSaved: the new model cannot be written.
        """
        make_section(ImprintConfig, max_forgetting=max_forgetting)
        checkpoint = self.now.checkpoint
        if not checkpoint.novel_classes:
            raise Conflict("there is no novel class, so no bias to set", "teach a class first")
        if self.now.cost is None:
            raise Conflict(
                "the model has no images that a bias could be set on",
                "for an adopted classifier, give `lowshot imprint` a `background`",
            )
        changed = set_bias(checkpoint, max_forgetting)
        self._take(changed.with_history("serve", {"max_forgetting": max_forgetting}))
        return self.about()

    def undo(self) -> Record:
        """Take the last change back.

        Returns:
            The record of `about`.

        Raises:
            Conflict: there is nothing to undo.
            NotSaved: the file cannot be replaced.
        """
        if self._earlier is None:
            raise Conflict("there is no change to undo")
        earlier, path = self.before(), self._earlier[0]
        base = chain_path(self.target.parent, "base")
        is_base = self._is_base(path)
        try:
            if is_base:
                self.target.unlink()
            else:
                put(path, self.target)
        except OSError as error:
            raise not_saved(error) from None
        self._use(replace(earlier, path=base if is_base else self.target), None)
        return self.about()

    def _changeable(self, name: str, force: bool) -> str:
        """The name of a class as the model spells it.

        Raises:
            Unknown, Conflict: as in `remove`.
        """
        meta, name = self.now.checkpoint.meta, normal_name(name)
        if name not in meta.classes:
            hint = did_you_mean(name, meta.classes) or "GET /classes lists them"
            raise Unknown(f"the model knows no class {name!r}", hint)
        if name in meta.base_classes and not force:
            raise Conflict(f"{name!r} is a base class", "`force=true` changes it anyway")
        return name

    def _take(self, changed: Checkpoint) -> Record:
        """Write a new model, take it into use, and return the record of a change.

        Raises:
            NotSaved: it cannot be written; the model in use stays, and so does its file.
        """
        before, target = self.now, self.target
        try:
            if before.path != target:
                changed = changed.as_child_of(file_hash(before.path))
            self.versions.keep(before.path)
            version = self.versions.next()
            save(changed, version)
            try:
                put(version, target)
            except OSError:
                version.unlink(missing_ok=True)
                raise
        except (OSError, CheckpointError) as error:
            raise not_saved(error) from None
        self._use(Served(changed, target), before)
        self.versions.trim([version, *(self._earlier or ())[:1]])
        return changed_record(target, changed)

    def _use(self, model: Served, before: Served | None) -> None:
        self.now = model
        self._before = before
        self._earlier = self._find_earlier()

    def _find_earlier(self) -> tuple[Path, str] | None:
        """The newest version that the model in use was made from, and the change since in words."""
        current = self.versions.of(self.now.path)
        paths = self.versions.paths()
        for path in paths[: paths.index(current)][::-1] if current else ():
            if said := self._change_since(path):
                return path, said
        return None

    def _change_since(self, version: Path) -> str:
        """What was done to a version to make the model in use; empty if it was not made from it."""
        now = self.now.checkpoint.meta
        try:
            earlier = read_metadata(version)
        except CheckpointError:
            return ""
        is_of_this_file = earlier.parent == now.parent or self._is_base(version)
        return changes_since(earlier, now) if is_of_this_file else ""

    def _is_base(self, version: Path) -> bool:
        """Whether a version is the base model that the target was made from."""
        base = chain_path(self.target.parent, "base")
        made_from_it = is_stage(self.target) and self.target.stem == "imprinted"
        return made_from_it and base.is_file() and same_content(version, base)
