"""The HTTP interface: records of the commands, and one clear line where something is wrong."""

from __future__ import annotations

import asyncio
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
import torch
from PIL import Image

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load
from lowshot_cli.data.decoding import ByteArray
from lowshot_cli.serve import app, downloads, uploads
from lowshot_cli.serve.session import Session
from lowshot_cli.version import __version__
from tests.cli.answers import as_json
from tests.conftest import RunCommand, save_images
from tests.serve.asking import NEVER, Answer, Client, answered, form, png
from tests.serve.conftest import files, photos, teach

PNG = ("content-type", "image/png")


def refused(answer: Answer, status: int) -> str:
    """The line of an answer that refuses something."""
    assert answer.status == status, answer.body
    assert set(answer.json) == {"error", "hint"}
    assert "\n" not in answer.json["error"]
    return str(answer.json["error"])


def good(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    return answer.json


def test_health_tells_the_version_and_the_model(client: Client, folder: Path) -> None:
    path = str(folder / "base.safetensors")
    expected = {"status": "ok", "version": __version__, "checkpoint": path, "n_classes": 5}
    found = good(client("GET", "/health"))
    assert found.pop("revision") == good(client("GET", "/model"))["revision"]
    assert found == expected


def test_predictions_are_those_of_the_command(
    client: Client, session: Session, folder: Path, tmp_path: Path, lowshot: RunCommand
) -> None:
    teach(session, "f")
    save_images(torch.from_numpy(photos("g")), tmp_path / "g")
    typed = ["predict", tmp_path / "g", "--top", 2, "--false-alarm", 10, "--confidence", 0.9]
    theirs = as_json(lowshot(*typed, "--workdir", folder, "--json"))
    paths = sorted((tmp_path / "g").iterdir())
    sent = [(path.name, path.read_bytes()) for path in paths]
    target = "/predict?top=2&false_alarm=10&confidence=0.9"
    ours = good(client.post_images(target, sent))
    for one, expected in zip(ours, theirs, strict=True):
        assert one["probability"] == pytest.approx(expected["probability"], rel=1e-5)
        assert one["image"] == Path(expected["image"]).name
        for key in ("class", "unknown", "set"):
            assert one[key] == expected[key]
        assert [name for name, _ in one["top"]] == [name for name, _ in expected["top"]]


def test_a_bare_image_is_a_request_of_one(client: Client) -> None:
    (one,) = good(client("POST", "/predict", headers=[PNG], body=png(photos("f")[0])))
    assert one["image"] == "image"
    assert len(one["top"]) == 3


def test_a_class_is_taught_predicted_renamed_removed_and_the_whole_undone(client: Client) -> None:
    record = good(client.post_images("/classes/f", files("f")))
    assert record["classes"][0]["support"] == ["f0.png", "f1.png", "f2.png", "f3.png"]
    assert record["n_skipped"] == 0
    known = good(client("GET", "/classes"))[-1]
    assert (known["class"], known["kind"], known["shots"]) == ("f", "novel", 4)
    thumbnail = client("GET", f"/thumbnails/{known['thumbnails'][0]}")
    assert Image.open(io.BytesIO(thumbnail.body)).format == "JPEG"
    assert "immutable" in (thumbnail.header("cache-control") or "")
    now, before = (
        good(client.post_images(f"/predict?top=9&before={flag}", files("f")[:1]))[0]
        for flag in ("false", "true")
    )
    assert "f" in [name for name, _ in now["top"]]
    assert "f" not in [name for name, _ in before["top"]]
    good(client.send_json("PATCH", "/classes/f", {"name": "my mug"}))
    assert good(client("DELETE", "/classes/my%20mug"))["classes"] == list("abcde")
    assert good(client("POST", "/undo"))["undoes"] == "renamed f to my mug"
    good(client("POST", "/undo"))
    model = good(client("POST", "/undo"))
    assert (model["n_novel"], model["can_undo"], model["undoes"]) == (0, False, None)
    assert model == good(client("GET", "/model"))


def test_one_request_asks_the_model_and_the_one_before(
    client: Client, session: Session, folder: Path
) -> None:
    one = files("f")[:1]
    (alone,) = good(client.post_images("/predict?compare=true", one))
    assert alone["before"] is None
    teach(session, "f")
    session.rename("f", "mug")
    (now,) = good(client.post_images("/predict?compare=true&false_alarm=5", one))
    (before,) = good(client.post_images("/predict?before=true&false_alarm=5", one))
    assert now.pop("before") == before
    assert [now] == good(client.post_images("/predict?false_alarm=5", one))
    assert (now["class"], before["class"]) == ("mug", "f")
    session._before = None  # as after a restart
    session.versions.paths()[-2].write_bytes(b"broken")
    (now,) = good(client.post_images("/predict?compare=true", one))
    assert (now["class"], now["before"]) == ("mug", None)


def test_undo_takes_back_what_was_seen_or_nothing(client: Client, session: Session) -> None:
    teach(session, "f")
    seen = good(client("GET", "/model"))["revision"]
    session.rename("f", "g")
    assert "has changed since" in refused(client("POST", f"/undo?of={seen}"), 409)
    assert session.now.checkpoint.novel_classes == ("g",)
    now = good(client("GET", "/health"))["revision"]
    assert good(client("POST", f"/undo?of={now}"))["revision"] == seen
    good(client("POST", "/undo"))
    refused(client("POST", "/undo?off=1"), 400)


def test_a_renamed_class_is_listed_with_its_first_name(client: Client, session: Session) -> None:
    teach(session, "f")
    session.rename("f", "mug")
    session.rename("a", "apple", force=True)
    named = {one["class"]: one.get("first_name") for one in good(client("GET", "/classes"))}
    assert (named["apple"], named["b"], named["mug"]) == ("a", None, "f")


@pytest.mark.parametrize("name", ["modèle", "模型", 'a "b" \\'])
def test_a_model_of_any_name_is_downloaded(folder: Path, name: str) -> None:
    place = folder / f"{name}.safetensors"
    (folder / "base.safetensors").rename(place)
    made = app.make_app(Session(place))
    with asyncio.Runner() as runner:
        answer = runner.run(answered(made, "GET", "/checkpoint"))
    made.state.service.end()
    assert answer.status == 200
    shown, coded = (answer.header("content-disposition") or "").split("; filename*=UTF-8''")
    assert re.fullmatch(r'attachment; filename="[ -~]+"', shown)
    assert unquote(coded) == place.name


@pytest.mark.parametrize("name", ["a/b", "../up", "ü", "50 %", "a?b#c", ".", "%2e%2e", "tee\tcup"])
def test_any_name_of_a_class_is_reached(client: Client, name: str) -> None:
    good(client.post_images(f"/classes/{quote(name, safe='')}", files("f")))
    assert good(client("GET", "/classes"))[-1]["class"] == name
    good(client("DELETE", f"/classes/{quote(name, safe='')}"))


def test_another_budget_is_set_and_drawn(client: Client, session: Session) -> None:
    assert refused(client.send_json("PATCH", "/model", {"max_forgetting": 1}), 409)
    teach(session, "f")
    model = good(client.send_json("PATCH", "/model", {"max_forgetting": 4}))
    assert (model["max_forgetting"], model["undoes"]) == (4, "set the budget to 4 points")
    points = good(client("GET", "/tradeoff"))
    assert model["bias"] in [one["bias"] for one in points if one["max_forgetting"] == 4]
    for odd in (-1, 101, "much", None, [1]):
        refused(client.send_json("PATCH", "/model", {"max_forgetting": odd}), 400)
    refused(client.send_json("PATCH", "/model", {"max_forgetting": 1, "more": 2}), 400)


def test_the_model_is_downloaded_as_it_lies_on_disk(
    client: Client, session: Session, folder: Path, tmp_path: Path
) -> None:
    teach(session, "f")
    answer = client("GET", "/checkpoint")
    assert answer.body == (folder / "imprinted.safetensors").read_bytes()
    assert answer.header("content-disposition") == 'attachment; filename="imprinted.safetensors"'
    (tmp_path / "copy.safetensors").write_bytes(answer.body)
    assert load(tmp_path / "copy.safetensors").novel_classes == ("f",)


def test_an_export_is_a_zip_of_its_files(
    client: Client, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(checkpoint: Checkpoint, form: str) -> dict[str, bytes]:
        return {"model.onnx": f"{form} of {len(checkpoint.meta.classes)}".encode()}

    teach(session, "f")
    monkeypatch.setattr(downloads, "export", export)
    answer = client("GET", "/export?format=onnx")
    assert answer.header("content-disposition") == 'attachment; filename="imprinted-onnx.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        assert archive.read("model.onnx") == b"onnx of 6"
    assert client("GET", "/export").body == answer.body


@pytest.mark.slow
def test_an_export_leaves_the_work_folder_alone(
    client: Client, session: Session, folder: Path
) -> None:
    teach(session, "f")
    before = sorted(folder.rglob("*"))
    answer = client("GET", "/export?format=torch")
    assert answer.status == 200
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        assert {"model.pt2", "labels.json", "README.md"} == set(archive.namelist())
        assert json.loads(archive.read("labels.json")) == [*"abcde", "f"]
    assert sorted(folder.rglob("*")) == before


def test_what_cannot_be_exported_is_told(client: Client) -> None:
    refused(client("GET", "/export?format=exe"), 400)
    assert "state dict" in refused(client("GET", "/export?format=state-dict"), 400)


def test_what_is_wrong_is_told_in_one_line(client: Client, session: Session) -> None:
    teach(session, "f")
    good_one = files("g")[:1]
    assert "already knows" in refused(client.post_images("/classes/f", good_one), 409)
    assert "base class" in refused(client("DELETE", "/classes/a"), 409)
    assert "no class 'zzz'" in refused(client("DELETE", "/classes/zzz"), 404)
    refused(client.send_json("PATCH", "/classes/zzz", {"name": "y"}), 404)
    refused(client.send_json("PATCH", "/classes/f", {"name": "a"}), 409)
    refused(client.send_json("PATCH", "/classes/f", {"name": " "}), 400)
    refused(client.send_json("PATCH", "/classes/f", {}), 400)
    long = client.send_json("PATCH", "/classes/f", {"name": "x" * 256})
    assert "at most 255 characters" in refused(long, 400)
    assert "not be empty" in refused(client.post_images("/classes/", good_one), 400)
    assert "not 256" in refused(client.post_images("/classes/" + "x" * 256, good_one), 400)
    for body, sent in ((b'{"name": ', "application/json"), (b'{"name": "g"}', "text/plain")):
        broken = client("PATCH", "/classes/f", headers=[("content-type", sent)], body=body)
        assert "no" in refused(broken, 400)
        assert "Content-Type: application/json" in broken.json["hint"]
    stalls = [b'{"na', NEVER]
    kind = [("content-type", "application/json")]
    refused(client("PATCH", "/classes/f", headers=kind, body=stalls), 408)
    refused(client("GET", "/thumbnails/0123456789abcdef"), 404)
    refused(client("GET", "/nothing"), 404)
    refused(client("PUT", "/model"), 405)
    refused(client("GET", "/predict"), 405)
    for query in ("top=0", "top=x", "false_alarm=101", "confidence=2", "tip=3", "before=perhaps"):
        refused(client.post_images(f"/predict?{query}", good_one), 400)
    for target in ("/model", "/classes", "/tradeoff", "/checkpoint", "/health"):
        assert "`tip` is no parameter" in refused(client("GET", f"{target}?tip=3"), 400)


def test_a_bad_image_is_named_and_harms_its_own_request_alone(client: Client) -> None:
    bad = [*files("f")[:1], ("notes.txt", b"no image"), ("cut.png", files("f")[0][1][:60])]
    said = refused(client.post_images("/predict", bad), 422)
    assert said.startswith("2 of 3 images cannot be read: notes.txt (")
    assert "cut.png (" in said
    refused(client.post_images("/classes/new", bad), 422)
    assert len(good(client.post_images("/predict", files("f")))) == 4
    assert len(good(client("GET", "/classes"))) == 5


def test_bodies_of_other_kinds_are_refused(client: Client) -> None:
    whole = files("f")[:1]
    kind, body = form(whole)
    other, wrong = form(whole, name="photos")
    both = form(files("f")[:2])[1]
    field = b'--BOUND\r\nContent-Disposition: form-data; name="images"\r\n\r\nx\r\n--BOUND--\r\n'
    for status, sent, content in (
        (415, "text/plain", b"x"),
        (415, "", b""),
        (400, other, wrong),
        (400, kind, field),
        (400, kind, b""),
        (400, kind, b"--BOUND--\r\n"),
        (400, kind, body[: len(body) // 2]),
        (400, kind, body[:-6]),
        (400, kind, both[:-40]),  # one image is whole
        (400, "multipart/form-data", body),
        (400, "multipart/form-data; boundary=OTHER", body),
        (400, "multipart/form-data; boundary=BOUND; charset=undefined", body),
    ):
        answer = client("POST", "/predict", headers=[("content-type", sent)], body=content)
        refused(answer, status)


def test_names_of_files_are_labels_and_never_paths(client: Client, folder: Path) -> None:
    before = sorted(folder.parent.rglob("*"))
    content = files("f")[0][1]
    for name, label in (
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\mug.jpg", "mug.jpg"),
        ("..", "image 1"),
        ("", "image 1"),
        ("ü\u202e.png", "ü\u202e.png"),
    ):
        (one,) = good(client.post_images("/predict", [(name, content)]))
        assert one["image"] == label
    assert sorted(folder.parent.rglob("*")) == before


def test_too_many_images_and_too_large_ones_are_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = files("f")[:1] * (uploads.MOST_IMAGES + 1)
    assert "more than 64 images" in refused(client.post_images("/predict", many), 413)
    monkeypatch.setattr(uploads, "MOST_BYTES", 100)
    assert "more than 100 bytes" in refused(client.post_images("/predict", files("f")), 413)
    refused(client("POST", "/predict", headers=[PNG], body=files("f")[0][1]), 413)


def test_a_bomb_is_refused_by_its_pixels(client: Client) -> None:
    file = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(file, "PNG")
    assert "too large" in refused(client.post_images("/predict", [("b.png", file.getvalue())]), 422)


def test_limits_are_told(client: Client) -> None:
    limits = good(client("GET", "/model"))["limits"]
    most = {"images": 64, "bytes": 32_000_000, "request": 256_000_000, "pixels": 178_956_970}
    assert limits == most


def test_the_page_and_its_files_are_sent_and_nothing_beside_them(client: Client) -> None:
    page = client("GET", "/")
    assert (page.status, page.header("content-type")) == (200, "text/html; charset=utf-8")
    policy = page.header("content-security-policy") or ""
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert page.header("cache-control") == "no-store"
    script, style = client("GET", "/page.js"), client("GET", "/page.css")
    assert (script.header("content-type") or "").startswith("text/javascript")
    assert (style.header("content-type") or "").startswith("text/css")
    for path in ("/app.py", "/page/page.js", "/..%2fapp.py", "/page.html"):
        refused(client("GET", path), 404)


def test_the_interface_describes_itself(client: Client) -> None:
    paths = good(client("GET", "/openapi.json"))["paths"]
    asked = {f"{method} {path}" for path, ways in paths.items() for method in ways}
    assert asked == {
        *("get /health", "get /classes", "get /model", "patch /model", "get /tradeoff"),
        *("post /predict", "post /undo", "get /checkpoint", "get /export"),
        *(f"{method} /classes/{{name}}" for method in ("post", "patch", "delete")),
        "get /thumbnails/{digest}",
    }
    assert "image/*" in paths["/predict"]["post"]["requestBody"]["content"]


def test_a_request_keeps_the_model_that_it_came_to(
    client: Client, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach(session, "f")
    whole = uploads.decode

    def swap(*given: Any) -> ByteArray:
        """Decode, while the class is taken away."""
        if session.now.checkpoint.novel_classes:
            session.remove("f")
        return whole(*given)

    monkeypatch.setattr(uploads, "decode", swap)
    (one,) = good(client.post_images("/predict?top=9", files("f")[:1]))
    assert "f" in [name for name, _ in one["top"]]
    (one,) = good(client.post_images("/predict?top=9", files("f")[:1]))
    assert "f" not in [name for name, _ in one["top"]]
