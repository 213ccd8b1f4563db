"""Pickles, YAML, archives and downloads that come from somebody else."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import pickle
import ssl
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trustme
from PIL import Image

from lowshot_cli.config.yaml_file import load_config
from lowshot_cli.data import cifar100 as cifar
from lowshot_cli.data.download import Archive, fetch, unpack
from lowshot_cli.data.image_files import list_photos
from lowshot_cli.errors import ConfigError, DataError
from tests.conftest import RunCommand

BAD_INPUT = 3


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


# Pickles


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_a_strangers_weights_are_never_run(
    lowshot: RunCommand, tmp_path: Path, suffix: str, recwarn: pytest.WarningsRecorder
) -> None:
    proof, weights = tmp_path / "proof", tmp_path / f"weights{suffix}"
    torch.save({"state_dict": Payload(proof)}, weights)
    pickled = tmp_path / f"plain{suffix}"
    pickled.write_bytes(pickle.dumps(Payload(proof)))
    for file in (weights, pickled):
        result = lowshot(
            *["train-base", "--dataset", "glyphs", "--backbone", "torchvision:resnet18"],
            *["--weights", file, "--epochs", "0"],
        )
        assert result.exit_code == BAD_INPUT
        assert str(file) in result.stderr
    assert not proof.exists()
    assert not recwarn.list  # one line says it all


@pytest.mark.parametrize(
    "hostile",
    [
        Payload,
        lambda proof: {"data": Payload(proof), "fine_labels": [0]},
        lambda proof: {"fine_label_names": [Payload(proof)]},
        lambda _: {"data": __builtins__},
    ],
)
def test_a_strangers_cifar_pickle_is_never_run(
    lowshot: RunCommand, tmp_path: Path, hostile: Any
) -> None:
    proof, folder = tmp_path / "proof", tmp_path / cifar.FOLDER
    folder.mkdir()
    for name in ("train", "test", "meta"):
        try:
            content = pickle.dumps(hostile(proof))
        except TypeError:
            content = b"cbuiltins\neval\n(S'1'\ntR."
        (folder / name).write_bytes(content)
    result = lowshot("data", "classes", "--data-dir", tmp_path)
    assert result.exit_code == BAD_INPUT
    assert str(folder / "meta") in result.stderr
    assert not proof.exists()


def test_yaml_makes_no_python_objects(tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "config.yaml"
    for tag in ("object/apply:os.system", "object/new:os.system", "name:os.system", "module:os"):
        path.write_text(f"seed: !!python/{tag} ['touch {proof}']\n")
        with pytest.raises(ConfigError, match="could not determine a constructor"):
            load_config(path)
    assert not proof.exists()


def test_yaml_that_unfolds_into_gigabytes_is_an_error_of_one_line(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for n in range(1, 12):
        lines.append(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]")
    path = tmp_path / "laughs.yaml"
    path.write_text("\n".join([*lines, "seed: *a11", "workdir: *a11"]))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(caught.value.message) < 3_000


def test_a_config_as_long_as_a_book_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    path.write_text("# x\n" * 300_000)
    with pytest.raises(ConfigError, match="too long"):
        load_config(path)


# Archives


FILES = {"good/train": b"t" * 1000, "good/meta": b"m"}


def _tar(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def _special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def _archive(content: bytes, url: str = "https://localhost/x.tar.gz") -> Archive:
    md5 = hashlib.md5(content).hexdigest()
    return Archive(url, len(content), md5, {"good/train": 2000, "good/meta": 10})


@pytest.mark.parametrize(
    ("member", "complaint"),
    [
        ({"../../escaped": b"x"}, "is outside the folder"),
        ({"/tmp/escaped": b"x"}, "is outside the folder"),
        ({"good/../../escaped": b"x"}, "is outside the folder"),
        ({"l": _special("good/train", tarfile.SYMTYPE, "/etc/passwd")}, "neither a file"),
        ({"l": _special("good/meta", tarfile.LNKTYPE, "../../x")}, "neither a file"),
        ({"d": _special("good/dev", tarfile.CHRTYPE)}, "neither a file"),
        ({"f": _special("good/fifo", tarfile.FIFOTYPE)}, "neither a file"),
        ({"good/train": b"0" * 50_000_000}, "has 50,000,000 bytes"),
        ({"bomb": b"0" * 50_000_000}, "has 50,000,000 bytes"),
    ],
)
def test_a_hostile_member_of_an_archive_is_refused(
    tmp_path: Path, member: dict[str, Any], complaint: str
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    content = _tar({**FILES, **member})
    with pytest.raises(DataError, match=complaint):
        unpack(io.BytesIO(content), _archive(content), folder)
    assert not list(folder.rglob("*"))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@dataclass
class Sender:
    """An https server that sends one answer after the other, the last one for ever."""

    url: str
    answers: list[bytes]
    asked: list[str] = field(default_factory=list)
    redirect: str | None = None


@pytest.fixture
def sender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sender]:
    authority = trustme.CA()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    state = Sender("", [b""])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            if state.redirect:
                self.send_response(302)
                self.send_header("Location", state.redirect)
                self.end_headers()
                return
            content = state.answers.pop(0) if len(state.answers) > 1 else state.answers[0]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"https://localhost:{server.server_address[1]}/x.tar.gz"
    yield state
    server.shutdown()
    server.server_close()


def test_what_was_cut_off_or_altered_is_fetched_once_more(sender: Sender, tmp_path: Path) -> None:
    content = _tar(dict(FILES))
    for wrong in (content[:-10], content[:-10] + b"0123456789", content + b"more"):
        sender.answers, folder = [wrong, content], tmp_path / hashlib.md5(wrong).hexdigest()
        fetch(_archive(content, sender.url), folder)
        assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("*/*")} == FILES
    assert len(sender.asked) == 6


def test_what_is_altered_twice_is_an_error_and_nothing_is_unpacked(
    sender: Sender, tmp_path: Path
) -> None:
    content, folder = _tar(dict(FILES)), tmp_path / "data"
    hostile = _tar({**FILES, "good/train": b"evil"})
    sender.answers = [hostile]
    with pytest.raises(DataError, match="did not send the expected archive, twice"):
        fetch(replace(_archive(content, sender.url), size=len(hostile)), folder)
    assert len(sender.asked) == 2
    assert not list(folder.iterdir())


@pytest.mark.parametrize("url", ["http://localhost/x", "file:///etc/passwd", "ftp://localhost/x"])
def test_nothing_is_fetched_but_over_https(sender: Sender, tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="is not an https URL"):
        fetch(_archive(b"", url), tmp_path / "data")
    sender.redirect = url
    with pytest.raises(DataError, match=r"is not an https URL|is not allowed"):
        fetch(_archive(b"", sender.url), tmp_path / "data")


def test_a_certificate_of_nobody_known_is_refused(
    sender: Sender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(DataError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(_archive(b"", sender.url), tmp_path / "data")


def test_cifar_is_fetched_where_it_is_absent(
    sender: Sender, tmp_path: Path, lowshot: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"class {number}" for number in range(100)]
    splits = {"train": 50_000, "test": 10_000}
    members: dict[str, Any] = {f"{cifar.FOLDER}/meta": pickle.dumps({"fine_label_names": names})}
    for name, count in splits.items():
        labels = [number % 100 for number in range(count)]
        content = {"data": np.zeros((count, 3072), np.uint8), "fine_labels": labels}
        members[f"{cifar.FOLDER}/{name}"] = pickle.dumps(content)
    archive = _tar(members)
    sender.answers = [archive]
    known = replace(_archive(archive, sender.url), files=cifar.ARCHIVE.files)
    monkeypatch.setattr(cifar, "ARCHIVE", known)
    result = lowshot("data", "classes", "--data-dir", tmp_path / "data")
    assert result.exit_code == 0, result.stderr
    assert "downloading" in result.stderr
    assert "class 99" in result.stdout
    assert len(sender.asked) == 1


def _zip(path: Path, members: dict[str, bytes], link: str | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "/etc/passwd")
    return path


def _png() -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (8, 8)).save(made, "PNG")
    return made.getvalue()


@pytest.mark.parametrize(
    ("members", "link", "complaint"),
    [
        ({"../a/x.png": _png()}, None, "a member outside itself"),
        ({"/a/x.png": _png()}, None, "a member outside itself"),
        ({"..\\a\\x.png": _png()}, None, "a member outside itself"),
        ({"a/x.png": _png()}, "a/link.png", "holds a link"),
        ({"a/x.png": b"\0" * 300_000_000}, None, "takes 300,000,000 bytes"),
    ],
)
def test_a_hostile_zip_is_refused(
    tmp_path: Path, members: dict[str, bytes], link: str | None, complaint: str
) -> None:
    path = _zip(tmp_path / "photos.zip", members, link)
    with pytest.raises(DataError, match=complaint):
        list_photos(path)
    assert [p.name for p in tmp_path.iterdir()] == ["photos.zip"]


def test_a_zip_that_grows_a_hundredfold_is_refused(tmp_path: Path) -> None:
    zeros = b"\0" * 200_000_000
    path = _zip(tmp_path / "bomb.zip", {f"a/{n}.bmp": zeros for n in range(6)})
    with pytest.raises(DataError, match="would grow to 1,200,000,000 bytes"):
        list_photos(path)
