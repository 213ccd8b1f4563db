"""Mutated checkpoints through the loader: a typed error or a valid model, within bounds of memory.

`pytest -s -m slow tests/faults/test_checkpoint_fuzz.py` tries 100,000 of them.
"""

from __future__ import annotations

import json
import random
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as serialise

from lowshot_cli.adaptation.imprint import imprint_classes
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load, save
from lowshot_cli.config.schema import Config, ImprintConfig
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.errors import CheckpointError, LowshotError
from lowshot_cli.models.embedder import embed
from lowshot_cli.storage.tensors import CHECKSUM, content_digest, read_tensors
from tests.faults.conftest import memory

FEW, MANY = 400, 100_000
EXTRA_BYTES = 64 * 1024**2
HUGE = [0, 1, -1, 7, 10**6, 2**31, 2**63, 2**64, 10**30, 0.5, 1e308]
WORDS = ["", "a", "\0", "a\nb", "resnet18", "torchvision:vit_h_14", "torchvision:regnet_y_128gf"]
WORDS += ["timm:nothing", "x" * 10_000]
OTHERS: list[Any] = [None, True, [], {}, [[]], "text", *HUGE, *WORDS]


class Mutator:
    """Makes broken checkpoints out of a whole one."""

    def __init__(self, path: Path, target: Path) -> None:
        self.whole, self.target = path.read_bytes(), target
        self.tensors, metadata = read_tensors(path)
        self.metadata = metadata
        self.meta = json.loads(metadata["lowshot"])
        length = int.from_bytes(self.whole[:8], "little")
        self.header = json.loads(self.whole[8 : 8 + length])
        self.body = self.whole[8 + length :]
        self.kinds = [
            self.truncated,
            self.flipped,
            self.spliced,
            self.false_length,
            self.false_header,
            self.raw_header,
            self.other_meta,
            self.other_meta,
            self.other_meta,
            self.other_tensors,
            self.other_tensors,
            self.odd_numbers,
            self.names,
        ]

    def make(self, lots: random.Random) -> str:
        kind = lots.choice(self.kinds)
        kind(lots)
        return kind.__name__

    def _write(self, content: bytes) -> None:
        self.target.write_bytes(content)

    def _write_header(self, header: bytes, body: bytes | None = None) -> None:
        self._write(struct.pack("<Q", len(header)) + header + (self.body if body is None else body))

    def truncated(self, lots: random.Random) -> None:
        self._write(self.whole[: lots.randrange(len(self.whole))])

    def flipped(self, lots: random.Random) -> None:
        content = bytearray(self.whole)
        for _ in range(lots.choice((1, 1, 4, 64))):
            # The header is small, and most of what can go wrong is in it.
            reach = lots.choice((16, len(self.whole) - len(self.body), len(self.whole)))
            content[lots.randrange(reach)] = lots.randrange(256)
        self._write(bytes(content))

    def spliced(self, lots: random.Random) -> None:
        start, end = sorted(lots.randrange(len(self.whole)) for _ in range(2))
        junk = lots.choice((b"", lots.randbytes(lots.randrange(64)), self.whole[:100]))
        self._write(self.whole[:start] + junk + self.whole[end:])

    def false_length(self, lots: random.Random) -> None:
        length = lots.choice((0, 1, 2, 7, len(self.whole), 2**20, 2**31, 2**40, 2**63, 2**64 - 1))
        self._write(struct.pack("<Q", length) + self.whole[8:])

    def false_header(self, lots: random.Random) -> None:
        header = json.loads(json.dumps(self.header))
        name = lots.choice([n for n in header if n != "__metadata__"])
        entry = header[name]
        change = lots.randrange(7)
        if change == 0:
            entry["dtype"] = lots.choice(
                ("F16", "BF16", "I64", "U8", "BOOL", "F64", "F8_E4M3", "X")
            )
        elif change == 1:
            entry["shape"] = [lots.choice(HUGE[:9]) for _ in range(lots.randrange(5))]
        elif change == 2:
            entry["data_offsets"] = [lots.choice((0, 1, 2**40, len(self.body))) for _ in range(2)]
        elif change == 3:
            entry["data_offsets"] = header[lots.choice(list(header)[1:])].get(
                "data_offsets", [0, 0]
            )
        elif change == 4:
            del header[name]
        elif change == 5:
            header[name] = lots.choice(OTHERS)
        else:
            header["__metadata__"] = lots.choice(OTHERS)
        self._write_header(json.dumps(header).encode())

    def raw_header(self, lots: random.Random) -> None:
        deep = lots.choice((10, 200, 5_000, 100_000))
        header = lots.choice(
            (
                b"[" * deep,
                b'{"a":' * deep,
                b"\xff\xfe" * 10,
                b'{"__metadata__":{"lowshot":"\xed\xa0\x80"}}',
                b"{}",
                b"",
                b" " * deep,
                b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,0]},' * 2 + b"}",
                json.dumps({"__metadata__": {"lowshot": "[" * deep}}).encode(),
                json.dumps({"__metadata__": {"lowshot": '{"config":' * deep}}).encode(),
                json.dumps(
                    {
                        f"t{n}": {"dtype": "F32", "shape": [0, 2**40], "data_offsets": [0, 0]}
                        for n in range(deep // 4)
                    }
                ).encode(),
            )
        )
        self._write_header(header, lots.choice((b"", self.body)))

    def other_meta(self, lots: random.Random) -> None:
        meta = json.loads(json.dumps(self.meta))
        for _ in range(lots.choice((1, 1, 2, 5))):
            _change(meta, lots)
        self._seal(self.tensors, meta)

    def other_tensors(self, lots: random.Random) -> None:
        tensors = dict(self.tensors)
        for _ in range(lots.choice((1, 1, 3))):
            name = lots.choice(list(tensors))
            tensor = tensors[name]
            change = lots.randrange(6)
            if change == 0 and len(tensors) > 1:
                del tensors[name]
            elif change == 1:
                tensors[name] = tensor.to(lots.choice((torch.float16, torch.int64, torch.bool)))
            elif change == 2:
                tensors[name] = tensor.reshape(-1)
            elif change == 3:
                tensors[name] = torch.cat([tensor.reshape(1, -1)] * 2)
            elif change == 4:
                tensors[lots.choice(("backbone.x", "support.9", "x"))] = tensor.clone()
            else:
                tensors[name] = torch.zeros(lots.choice(((), (0,), (0, 3), (1, 1, 1, 1, 1))))
        self._seal(tensors, self.meta)

    def odd_numbers(self, lots: random.Random) -> None:
        tensors = dict(self.tensors)
        name = lots.choice(list(tensors))
        tensor = tensors[name].clone().reshape(-1)
        if len(tensor):
            odd = (
                (float("nan"), float("inf"), -1e38, 0.0) if tensor.is_floating_point() else (-1, 99)
            )
            tensor[lots.randrange(len(tensor))] = lots.choice(odd)
        tensors[name] = tensor.reshape(tensors[name].shape)
        self._seal(tensors, self.meta)

    def names(self, lots: random.Random) -> None:
        meta = json.loads(json.dumps(self.meta))
        count = lots.choice((0, 1, len(meta["classes"]), 1_000))
        name = lots.choice(("same", "{n}", "", "\u202e{n}", "../../{n}"))
        meta["classes"] = [name.format(n=n) for n in range(count)]
        meta["n_base"] = lots.choice((meta["n_base"], count, count - 1))
        self._seal(self.tensors, meta)

    def _seal(self, tensors: dict[str, torch.Tensor], meta: Any) -> None:
        """Write with a checksum that is right, so that what lies behind it is reached."""
        metadata = {**self.metadata, "lowshot": json.dumps(meta)}
        checksum = torch.tensor(list(content_digest(tensors, metadata)), dtype=torch.uint8)
        self._write(serialise({**tensors, CHECKSUM: checksum}, metadata))


def _change(value: Any, lots: random.Random) -> None:
    """Change something somewhere in nested lists and dicts."""
    while True:
        if isinstance(value, dict) and value:
            key: Any = lots.choice(list(value))
        elif isinstance(value, list) and value:
            key = lots.randrange(len(value))
        else:
            return
        if isinstance(value[key], dict | list) and value[key] and lots.random() < 0.7:
            value = value[key]
            continue
        change = lots.randrange(5)
        if change == 0:
            del value[key]
        elif change == 1 and isinstance(value, list):
            value.append(value[key])
        elif change == 2 and isinstance(value, dict):
            value["unknown"] = value[key]
        else:
            value[key] = lots.choice(OTHERS)
        return


@pytest.fixture(scope="module")
def grown(base: Checkpoint, glyphs: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with base and novel classes."""
    config = Config(dataset="glyphs", imprint=ImprintConfig(classes=("Z", "omega"), shots=3))
    taught, _ = imprint_classes(base, glyphs, base.network(), config)
    path = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    save(taught.as_child_of("parent"), path)
    return path


def fuzz(path: Path, folder: Path, count: int, seed: int) -> Counter[str]:
    """Try mutants; how each kind of them ended."""
    lots, outcomes = random.Random(seed), Counter[str]()
    mutator = Mutator(path, folder / "mutant.safetensors")
    load(path)
    blank = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    for _ in range(count):
        kind = mutator.make(lots)
        size, started = mutator.target.stat().st_size, time.perf_counter()
        before = memory_now()
        loaded, complaint = _try(mutator.target)
        grown_by = memory_peak() - before
        assert grown_by <= 2 * size + EXTRA_BYTES, (kind, grown_by)
        assert time.perf_counter() - started < 30, kind
        if loaded is None:
            assert str(mutator.target) in complaint
            outcomes[f"{kind}: refused"] += 1
            continue
        outcomes[f"{kind}: valid"] += 1
        if loaded.meta.image_size == 32 and not loaded.meta.input_size:
            _use(loaded, blank)
    return outcomes


def _try(path: Path) -> tuple[Checkpoint | None, str]:
    try:
        return load(path), ""
    except CheckpointError as error:
        return None, error.message


def memory_now() -> int:
    """Bytes in memory; from now on the peak counts anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory_peak() -> int:
    """Most bytes in memory since `memory_now`."""
    return memory("VmHWM")


def _use(checkpoint: Checkpoint, image: torch.Tensor) -> None:
    """What was accepted must work, or say in words why it does not."""
    try:
        network = checkpoint.network()
    except LowshotError:
        return
    checkpoint.head.predict(embed(network, image))
    for name in checkpoint.novel_classes:
        checkpoint.without_class(name)


def test_mutated_checkpoints_are_refused_or_valid(grown: Path, tmp_path: Path) -> None:
    outcomes = fuzz(grown, tmp_path, FEW, seed=0)
    assert any(name.endswith("valid") for name in outcomes)
    assert outcomes["truncated: refused"] > 0


@pytest.mark.slow
def test_a_hundred_thousand_mutated_checkpoints(grown: Path, tmp_path: Path) -> None:
    outcomes = fuzz(grown, tmp_path, MANY, seed=1)
    print(f"{sum(outcomes.values()):,} mutants: {dict(sorted(outcomes.items()))}")
    assert sum(outcomes.values()) == MANY


@pytest.mark.parametrize(("backbone", "width"), [("resnet9", 4096), ("torchvision:vit_h_14", 12)])
def test_a_small_file_that_names_a_huge_network_takes_no_memory(
    grown: Path, tmp_path: Path, backbone: str, width: int
) -> None:
    mutator = Mutator(grown, tmp_path / "huge.safetensors")
    size = {"image_size": 224} if ":" in backbone else {}
    mutator._seal(mutator.tensors, {**mutator.meta, "backbone": backbone, "width": width, **size})
    _try(grown)
    if ":" in backbone:
        import torchvision.models  # noqa: F401 (its own memory is not the file's)
    before = memory_now()
    loaded, complaint = _try(mutator.target)
    assert loaded is None
    assert "inconsistent" in complaint
    assert memory_peak() - before < 2 * mutator.target.stat().st_size + EXTRA_BYTES


def test_a_header_that_takes_more_memory_than_the_file_is_refused(
    grown: Path, tmp_path: Path
) -> None:
    target = tmp_path / "bomb.safetensors"
    meta = {"__metadata__": {"lowshot": json.dumps({"config": [{}] * 3_000_000})}}
    header = json.dumps(meta).encode()
    target.write_bytes(struct.pack("<Q", len(header)) + header)
    before = memory_now()
    with pytest.raises(CheckpointError, match="its header claims"):
        load(target)
    assert memory_peak() - before < EXTRA_BYTES
