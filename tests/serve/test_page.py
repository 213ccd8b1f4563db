"""The page of `lowshot serve` in a real browser: teach, try, undo, and a server that is killed."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lowshot_cli.data.dataset import Dataset
from tests.conftest import save_images
from tests.faults.conftest import Running, Server, wait_until

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
]
FLAGS = [
    *["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
    *["--disable-component-update", "--disable-sync", "--no-first-run"],
    *["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"],
]
# A drop as a person makes it, with files made of base64.
DROP = """(zone, files) => {
  const transfer = new DataTransfer();
  for (const [name, content] of files) {
    const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type: "image/png" }));
  }
  zone.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
}"""


@dataclass
class Served:
    """A server of one work folder that can be killed and started again at its address."""

    server: Server
    workdir: Path
    port: int
    running: Running | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        arguments = ["serve", "--workdir", self.workdir, "--port", self.port]
        running = self.running = self.server.start(*arguments, cwd=self.workdir.parent)
        wait_until(lambda: running.err.exists() and self.address in running.stderr)
        wait_until(self._listens)

    def kill(self) -> None:
        if self.running is not None:
            os.kill(self.running.pid, signal.SIGKILL)
            self.running.wait()
            self.running = None

    def _listens(self) -> bool:
        with socket.socket() as asked:
            return asked.connect_ex(("127.0.0.1", self.port)) == 0


@dataclass
class Tab:
    """An open page, with what its console said and what it asked for."""

    page: sync_api.Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(15_000)
        self.page.on("console", lambda one: self.said.append(f"{one.type}: {one.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def drop(self, section: str, files: list[Path]) -> None:
        contents = [[file.name, base64.b64encode(file.read_bytes()).decode()] for file in files]
        self.page.locator(f"{section} .drop").evaluate(DROP, contents)

    def teach(self, name: str, files: list[Path]) -> None:
        self.drop("#teach", files)
        self.page.fill("#name", name)
        self.page.click("#go")
        self.see("#taught", f"Learnt {name} from {len(files)} photos")

    def see(self, place: str, text: str) -> None:
        sync_api.expect(self.page.locator(place)).to_contain_text(text)

    def count(self, place: str, n: int) -> None:
        sync_api.expect(self.page.locator(place)).to_have_count(n)


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def served(server: Server, workdir: Path) -> Iterator[Served]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = Served(server, workdir, port)
    try:
        started.start()
        yield started
    finally:
        started.kill()


@pytest.fixture
def tab(browser: sync_api.Browser, served: Served, request: pytest.FixtureRequest) -> Iterator[Tab]:
    size = {"width": getattr(request, "param", 1280), "height": 900}
    context = browser.new_context(viewport=size, reduced_motion="reduce")
    opened = Tab(context.new_page())
    opened.page.goto(served.address)
    opened.see("#saved", "imprinted.safetensors")
    yield opened
    context.close()


@pytest.fixture(scope="module")
def photos(glyphs: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight photos of a class that the base model does not know."""
    folder = tmp_path_factory.mktemp("photos")
    members = glyphs.train.of_class(glyphs.label("omega"))[:8]
    save_images(glyphs.train.pixels[members], folder)
    return sorted(folder.iterdir())


def test_a_class_is_taught_tried_undone_and_survives_a_killed_server(
    tab: Tab, served: Served, photos: list[Path]
) -> None:
    page = tab.page
    tab.drop("#try", photos[5:])
    tab.count("#tried .now", 3)
    tab.count("#tried .before", 0)
    tab.teach("omega", photos[:5])
    tab.see("#taught", "points of base accuracy")
    tab.see("#novel", "5 photos")
    tab.count("#novel img", 5)
    tab.count("#collected li", 0)
    thumbnails = page.locator("#novel img")
    wait_until(lambda: thumbnails.evaluate_all("all => all.every((one) => one.naturalWidth > 0)"))
    tab.count("#tried .before", 3)  # the same photos, before and after
    assert "omega" not in page.locator("#tried .before").all_inner_texts()
    assert any("omega" in text for text in page.locator("#tried .now").all_inner_texts())

    page.click("#undo")
    tab.see("#status", "Undone: taught omega")
    tab.count("#novel li", 0)
    tab.count("#tried .before", 0)
    tab.teach("omega", photos[:5])
    page.reload()
    tab.see("#novel", "omega")
    assert [line for line in tab.said if line.startswith("error")] == []

    tab.drop("#teach", photos[5:])
    served.kill()
    page.fill("#name", "psi")
    page.click("#go")
    tab.see("#lost", "The server does not answer")
    tab.count("#collected li", 3)  # nothing that was collected is lost
    assert page.input_value("#name") == "psi"
    served.start()
    sync_api.expect(page.locator("#lost")).to_be_empty()
    tab.see("#novel", "omega")
    page.click("#go")
    tab.see("#taught", "Learnt psi from 3 photos")
    page.click("#undo")
    tab.see("#status", "Undone: taught psi")
    assert [line for line in tab.said if "ERR_CONNECTION" not in line] == []
    assert {
        url for url in tab.asked if not url.startswith((served.address, "blob:", "data:"))
    } == set()


def test_a_class_is_taught_renamed_and_removed_by_keyboard_alone(
    tab: Tab, photos: list[Path]
) -> None:
    page, keys = tab.page, tab.page.keyboard

    def tab_to(name: str) -> None:
        """Press Tab until the focus is on the control of this name, which must be visible."""
        for _ in range(40):
            keys.press("Tab")
            focused = page.locator(":focus")
            if focused.count() and name in focused.evaluate(
                "one => [one.ariaLabel, one.id, one.textContent].join(' ')"
            ):
                shown = focused.evaluate("""one => [one, one.closest('.button')].some(
                    (each) => each && getComputedStyle(each).outlineStyle !== 'none')""")
                assert shown, f"the focus on {name} is invisible"
                return
        raise AssertionError(f"Tab does not reach {name}")

    tab_to("name")
    keys.type("omega")
    tab_to("Choose photos of the class")
    with page.expect_file_chooser() as chosen:
        keys.press("Enter")
    chosen.value.set_files(photos[:6])
    tab.count("#collected li", 6)
    tab_to("Remove 5.png")
    keys.press("Enter")
    tab.count("#collected li", 5)
    tab_to("go")
    keys.press("Enter")
    tab.see("#taught", "Learnt omega from 5 photos")
    tab_to("Rename omega")
    keys.press("Enter")
    keys.type("psi")
    keys.press("Enter")
    tab.see("#novel h4", "psi")
    tab_to("Remove psi")
    keys.press("Enter")
    keys.press("Escape")
    tab.see("#novel h4", "psi")
    keys.press("Enter")
    tab.see("#novel", "Remove psi?")
    keys.press("Enter")
    tab.see("#status", "Removed psi")
    tab.count("#novel li", 0)


@pytest.mark.parametrize("tab", [360], indirect=True)
def test_a_phone_needs_no_sideways_scroll(tab: Tab, photos: list[Path]) -> None:
    name = "a_class_with_a_name_that_is_much_longer_than_the_screen_is_wide" * 2
    tab.drop("#try", photos[5:])
    tab.teach(name, photos[:5])
    tab.page.click("#base summary")
    tab.page.click(f"[aria-label='Rename {name}']")
    page_width = tab.page.evaluate("document.documentElement.scrollWidth")
    assert page_width == 360


def test_the_camera_takes_photos_of_a_class(tab: Tab) -> None:
    page = tab.page
    page.click("#teach .open")
    wait_until(lambda: page.evaluate("document.querySelector('#teach video').videoWidth > 0"))
    page.click("#teach .shoot")
    tab.count("#collected li", 1)
    page.locator("#teach .shoot").click(delay=1000)  # held
    wait_until(lambda: page.locator("#collected li").count() >= 3)
    page.click("#teach .close")
    assert page.evaluate("document.querySelector('#teach video').srcObject") is None


def test_an_error_of_the_server_is_shown_where_it_belongs_and_loses_nothing(
    tab: Tab, photos: list[Path], tmp_path: Path
) -> None:
    page = tab.page
    broken = tmp_path / "broken.png"
    broken.write_bytes(photos[0].read_bytes()[:60])
    tab.drop("#teach", [*photos[:3], broken])
    page.fill("#name", "omega")
    page.click("#go")
    tab.see("#teach-error", "broken.png")
    tab.count("#collected li", 4)
    page.click("[aria-label='Remove broken.png']")
    page.click("#go")
    tab.see("#taught", "Learnt omega from 3 photos")
    tab.drop("#try", [broken, photos[6]])
    tab.see("#tried .error", "broken.png")
    tab.count("#tried .now", 1)  # of the other photo


def test_the_budget_is_set_by_the_slider_and_shown_on_the_curve(
    tab: Tab, photos: list[Path]
) -> None:
    tab.teach("omega", photos[:5])
    tab.count("#curve .now", 1)
    before = tab.page.get_attribute("#curve .now", "cx")
    tab.page.locator("#points").fill("0")
    tab.see("#status", "Set the budget to 0")
    tab.see("#budget-set output", "0 points")
    assert tab.page.get_attribute("#curve .now", "cx") != before
    assert tab.page.input_value("#points") == "0"
