"""Reports: a page that needs nothing but itself, and plots on their own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from lowshot_cli.cli.console import Output
from lowshot_cli.cli.main import app
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.methods.operating_point import BaseQueries
from lowshot_cli.report import plots
from lowshot_cli.sweep.scoring import NovelQueries, novel_recall, score_trials
from tests.conftest import RunCommand

MOST_BYTES = 3 * 1024**2
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class _Page(HTMLParser):
    """Collects what a page refers to and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        if self._open == "h2" and data.strip():
            self.headings.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def run_dir(base_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a finished sweep; not to be written to."""
    sweep = ["sweep", "--trials", "3", "--novel", "8", "--shots", "1,5", "--json"]
    files = ["--checkpoint", base_path, "--workdir", tmp_path_factory.mktemp("report")]
    result = CliRunner().invoke(app, [*sweep, *map(str, files)], catch_exceptions=False)
    return Path(json.loads(result.stdout)["run_dir"])


def _refers_to_nothing_else(text: str) -> None:
    page = _Page(text)
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:", "#"))
    assert not re.search(r"@import|url\((?!#)", text)
    assert not page.all("script")


def test_the_page_of_a_sweep_says_what_was_run_and_needs_nothing_else(run_dir: Path) -> None:
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    _refers_to_nothing_else(text)
    page = _Page(text)
    assert page.headings == [
        "What was run",
        "Results",
        "Accuracy",
        "What novel accuracy costs",
        "Class by class",
        "Confusions",
        "Embeddings",
    ]
    assert "lowshot sweep --trials 3 --novel 8" in text
    assert "trials: 3" in text
    for cell in json.loads((run_dir / "results.json").read_text())["cells"]:
        assert f"{cell['novel_accuracy']['mean']:.1f} ±" in text


def test_every_picture_has_a_text_and_every_part_is_reached_by_keyboard(run_dir: Path) -> None:
    page = _Page((run_dir / "report.html").read_text(encoding="utf-8"))
    pictures = page.all("svg")
    assert len(pictures) == 5
    assert all(svg["role"] == "img" and len(svg["aria-label"] or "") > 20 for svg in pictures)
    assert all(len(image["alt"] or "") > 5 for image in page.all("img"))
    scrolled = [div for div in page.all("div") if div.get("class") == "scroll"]
    assert all(div["tabindex"] == "0" and div["aria-label"] for div in scrolled)
    assert page.all("html")[0]["lang"] == "en"
    identifiers = [a["id"] for _, a in page.tags if a.get("id")]
    targets = {a["href"] for a in page.all("a")}
    assert {target[1:] for target in targets if target} <= set(identifiers)


def test_both_themes_have_colours_and_figures_take_the_pages_ink(run_dir: Path) -> None:
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    assert plots.INK not in text
    assert "currentColor" in text


@pytest.mark.parametrize("name", ["accuracy", "tradeoff", "per_class"])
def test_plots_stand_on_their_own(run_dir: Path, name: str) -> None:
    with Image.open(run_dir / f"{name}.png") as image:
        assert image.width >= 600
    root = ElementTree.parse(run_dir / f"{name}.svg").getroot()
    words = " ".join(element.text or "" for element in root.iter() if element.tag.endswith("text"))
    assert "percent of test images" in words
    assert re.search(r"\d+ (novel )?classes", words)


def test_names_in_a_page_are_text(
    lowshot: RunCommand, tmp_path: Path, glyphs: Dataset, workdir: Path
) -> None:
    hostile = "<script>alert('$x^')</script>"
    assert lowshot("imprint", "--class", "Z", "--workdir", workdir).exit_code == 0
    assert lowshot("classes", "rename", "Z", hostile, "--workdir", workdir).exit_code == 0
    page = tmp_path / "page.html"
    result = lowshot("evaluate", workdir / "imprinted.safetensors", "--report", page)
    assert result.exit_code == 0, result.stderr
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert" in text
    _refers_to_nothing_else(text)


def test_the_page_of_an_evaluation_shows_the_last_model(
    lowshot: RunCommand, tmp_path: Path, workdir: Path
) -> None:
    lowshot("imprint", "--class", "Z", "--class", "omega", "--shots", "3", "--workdir", workdir)
    page = tmp_path / "page.html"
    result = lowshot("evaluate", "--report", page, "--workdir", workdir, "--json")
    text = page.read_text(encoding="utf-8")
    found = _Page(text)
    assert "Support images" in found.headings
    assert len(found.all("img")) == 6
    for model in json.loads(result.stdout):
        assert f">{model['base_accuracy']:.1f}</td>" in text
    alone = tmp_path / "base.html"
    lowshot("evaluate", workdir / "base.safetensors", "--report", alone)
    assert "What novel accuracy costs" not in _Page(alone.read_text()).headings


def test_the_page_is_of_the_last_model_that_was_measured(
    lowshot: RunCommand, tmp_path: Path, workdir: Path
) -> None:
    typed = ["imprint", "--class", "Z", "--out", tmp_path / "other.safetensors"]
    for command in (typed, ["imprint", "--class", "omega"]):
        assert lowshot(*command, "--workdir", workdir).exit_code == 0
    page = tmp_path / "page.html"
    models = [tmp_path / "other.safetensors", workdir / "imprinted.safetensors"]
    assert lowshot("evaluate", *models, "--report", page).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert "Map of embeddings of omega." in text
    assert 'alt="training image of Z"' not in text


def test_a_page_that_cannot_be_written_is_told_of_before_any_work(
    lowshot: RunCommand, workdir: Path, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    result = lowshot("evaluate", "--report", blocked / "page.html", "--workdir", workdir)
    assert result.exit_code == 3
    assert "cannot write to the folder" in result.stderr
    assert result.stdout == ""


def test_the_same_sweep_gives_the_same_plots(lowshot: RunCommand, workdir: Path) -> None:
    sweep = ["sweep", "--trials", "2", "--novel", "4", "--shots", "1", "--workdir", workdir]
    folders = [Path(json.loads(lowshot(*sweep, "--json").stdout)["run_dir"]) for _ in range(2)]
    for name in ("accuracy.png", "accuracy.svg", "tradeoff.svg", "per_class.svg"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_the_trade_off_at_2_points_is_ncr_at_2() -> None:
    generator = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)

    proxies, rows, units = unit(5, 8), unit(7, 1, 8), torch.tensor([[0], [1]] * 3 + [[0]])
    queries = unit(300, 8)
    base = BaseQueries.of(proxies, queries, (queries @ proxies.T).argmax(1))
    novel = {label: NovelQueries.of(proxies, unit(40, 8)) for label in range(2)}
    scores = score_trials(rows, torch.zeros(7), units, base, novel, base_accuracy_before=100.0)
    curve = novel_recall(rows, units, base, novel, (0.0, 2.0, 5.0))
    assert torch.allclose(curve[:, 1].double(), torch.from_numpy(scores.metrics["ncr_at_2"]))
    assert torch.allclose(curve[:, 2].double(), torch.from_numpy(scores.metrics["ncr_at_5"]))
    assert (curve.diff(dim=1) >= 0).all()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_the_page_without_errors_or_requests(
    run_dir: Path, tmp_path: Path, width: int
) -> None:
    log = tmp_path / "net.json"
    done = subprocess.run(
        [
            *[str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu"],
            *[f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}"],
            *["--disable-background-networking", "--disable-component-update"],
            *["--enable-logging=stderr", f"--window-size={width},4000"],
            *[f"--screenshot={tmp_path / 'page.png'}", f"file://{run_dir / 'report.html'}"],
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr
    urls = set(re.findall(r'"url":"([a-z]+:[^"]*)"', log.read_text()))
    asked = {url for url in urls if not url.startswith(("data:", "file:", "chrome", "devtools"))}
    assert not {url for url in asked if "report" in url or "localhost" in url}
    with Image.open(tmp_path / "page.png") as image:
        assert image.width == width
        colours = image.convert("RGB").getcolors(maxcolors=2**24)
    assert colours is not None
    assert len(colours) > 100


def test_in_a_narrow_terminal_numbers_are_folded_before_short_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    columns = ["method", *(f"metric {n}" for n in range(5))]
    Output().table(columns, [["finetune-head", *(["100.0 ± 106.7"] * 5)]])
    shown = capsys.readouterr().out
    assert "finetune-head" in shown
    assert max(len(line) for line in shown.splitlines()) <= 60
