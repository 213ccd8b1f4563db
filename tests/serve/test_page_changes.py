"""The page while the model, the server or the user changes something under it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.conftest import wait_until
from tests.serve.tab import Served, Tab, needs_browser

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = needs_browser
# As if the user came back to the tab, which looks at the server then.
LOOK = "document.dispatchEvent(new Event('visibilitychange'))"
CHOOSE = """(slider, value) => {
  slider.value = value;
  for (const name of ["input", "change"]) slider.dispatchEvent(new Event(name));
}"""
SLOW_CHANGES = """() => {
  const { fetch } = window;
  window.fetch = async (path, options) => {
    if (options?.method === "PATCH") await new Promise((done) => setTimeout(done, 1000));
    return fetch(path, options);
  };
}"""
# A drop of a file, or of a text without one.
DROP_ODD = """(zone, name) => {
  const transfer = new DataTransfer();
  if (name) transfer.items.add(new File(["x"], name));
  else transfer.setData("text/plain", "a text");
  zone.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
}"""
PASTE = """() => {
  const clipboardData = new DataTransfer();
  clipboardData.items.add(new File(["x"], "pasted.png", { type: "image/png" }));
  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData }));
}"""


def rename(tab: Tab, served: Served, name: str, to: str) -> None:
    """Rename a class as another tab does."""
    address = f"{served.address}classes/{name}?force=true"
    assert tab.page.request.patch(address, data={"name": to}).ok


def test_what_another_tab_does_is_seen_and_not_undone_by_accident(
    tab: Tab, served: Served, omegas: list[Path]
) -> None:
    page = tab.page
    tab.drop("#try", omegas[5:])
    tab.teach("omega", omegas[:5])
    tab.count("#tried .before", 3)
    asked = [url for url in tab.asked if "/predict" in url]
    assert len(asked) == 6  # one request for each photo, alone and after the change

    page.click("[aria-label='Rename omega']")
    page.fill("#novel input", "half a name")
    base = page.request.get(f"{served.address}classes").json()[0]["class"]
    rename(tab, served, base, "first")
    page.evaluate(LOOK)
    tab.see("#undo", f"Undo: renamed {base} to first")
    sync_api.expect(page.locator("#taught")).to_be_empty()
    assert page.input_value("#novel input") == "half a name"
    assert page.evaluate("document.activeElement.ariaLabel") == "New name of omega"

    rename(tab, served, "first", "second")
    page.click("#undo")
    tab.see("#undo-error", "The model has changed since")
    tab.see("#undo", "Undo: renamed first to second")
    page.fill("#novel input", "mug")
    page.keyboard.press("Enter")
    tab.see("#status", "Renamed omega to mug")
    assert page.evaluate("document.activeElement.ariaLabel") == "Rename mug"
    page.click("[aria-label='Rename mug']")
    page.fill("#novel input", "..")
    page.keyboard.press("Enter")
    tab.see("#novel .error", "Choose another name")


def test_a_name_that_is_known_or_typed_meanwhile_is_kept(
    tab: Tab, served: Served, omegas: list[Path]
) -> None:
    page = tab.page
    page.fill("#name", "omega")
    tab.drop("#teach", omegas[:5])
    page.evaluate("""() => {
      document.querySelector("#go").click();
      document.querySelector("#name").value = "next";
    }""")
    tab.see("#taught", "Learnt omega from 5 photos")
    names = page.locator("#taught .photo").evaluate_all("all => all.map((one) => one.ariaLabel)")
    assert names == [path.name for path in omegas[:5]]
    tab.count("#taught canvas", 5)
    assert page.input_value("#name") == "next"

    rename(tab, served, "omega", "mug")
    page.evaluate(LOOK)
    tab.see("#novel", "mug")
    tab.drop("#teach", omegas[5:])
    page.fill("#name", "omega")
    tab.see("#known-text", "omega is now called mug. Replace its 5 photos with these photos.")
    asked = len(tab.asked)
    page.click("#go")
    tab.see("#teach-error", "Tick the box to replace it")
    assert page.evaluate("document.activeElement.id") == "replace"
    assert len(tab.asked) == asked
    page.check("#replace")
    page.click("#go")
    tab.see("#taught", "Learnt omega from 3 photos")
    tab.drop("#teach", omegas[5:])
    page.click("#empty")
    tab.count("#collected li", 0)


def test_the_slider_keeps_what_was_chosen_last(tab: Tab, omegas: list[Path]) -> None:
    tab.teach("omega", omegas[:5])
    page, slider = tab.page, tab.page.locator("#points")
    page.evaluate(SLOW_CHANGES)
    slider.evaluate(CHOOSE, "5")
    page.wait_for_timeout(700)  # the change is under way
    slider.evaluate(CHOOSE, "8")
    tab.see("#status", "Set the budget to 5 points")
    assert page.input_value("#points") == "8"
    tab.see("#status", "Set the budget to 8 points")
    tab.see("#undo", "set the budget to 8 points")
    slider.evaluate(CHOOSE, "3")
    tab.see("#curve figcaption", "With 3 points:")
    slider.evaluate(CHOOSE, "8")
    page.wait_for_timeout(700)
    page.click("#undo")
    tab.see("#status", "Undid: set the budget to 8 points")
    tab.see("#budget-set output", "5 points")


def test_a_model_without_a_budget_has_no_present_point(tab: Tab, omegas: list[Path]) -> None:
    tab.teach("omega", omegas[:5])

    def without(route: sync_api.Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "max_forgetting": None})

    tab.page.route("**/model", without)
    tab.page.reload()
    tab.see("#curve figcaption", "No budget is set.")
    tab.count("#curve .now", 0)
    tab.see("#budget-set output", "no budget set")


def test_a_server_with_a_new_address_is_told_and_awaited(tab: Tab) -> None:
    tab.page.route("**/health", lambda route: route.fulfill(status=401, json={}))
    tab.page.evaluate(LOOK)
    tab.see("#lost", "The server has a new address")
    tab.page.unroute("**/health")
    sync_api.expect(tab.page.locator("#lost")).to_be_empty()
    tab.see("#status", "The server answers again")


def test_photos_go_where_they_are_put_and_the_rest_is_told(tab: Tab, served: Served) -> None:
    page = tab.page
    page.click("#try h2")
    page.evaluate(PASTE)
    tab.count("#tried li", 1)
    tab.see("#tried .photo", "no preview of pasted.png")
    tab.count("#collected li", 0)
    for name, said in (
        ("", "That was not a file."),
        (".hidden", "No photos among these files."),
    ):
        page.locator("#teach .drop").evaluate(DROP_ODD, name)
        tab.see("#teach .note", said)
    with page.expect_download() as saved:
        page.click("[data-path=checkpoint]")
    assert saved.value.suggested_filename == "base.safetensors"
    assert saved.value.path().read_bytes() == (served.workdir / "base.safetensors").read_bytes()


def test_the_camera_is_opened_once_and_its_end_is_told(tab: Tab) -> None:
    page = tab.page
    page.evaluate("""() => {
      window.opened = [];
      const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      navigator.mediaDevices.getUserMedia = async (wanted) => {
        const stream = await ask(wanted);
        window.opened.push(stream);
        return stream;
      };
      const button = document.querySelector("#teach .open");
      button.click();
      button.click();
    }""")
    wait_until(lambda: page.evaluate("document.querySelector('#teach video').videoWidth > 0"))
    assert page.evaluate("window.opened.length") == 1
    page.evaluate("window.opened[0].getTracks()[0].dispatchEvent(new Event('ended'))")
    tab.see("#teach .note", "The camera has stopped")
    sync_api.expect(page.locator("#teach .camera")).to_be_hidden()
