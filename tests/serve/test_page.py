"""The page of `lowshot serve` in a real browser: teach, try, undo, and a server that is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.conftest import wait_until
from tests.serve.tab import Served, Tab, needs_browser

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = needs_browser


def test_a_class_is_taught_tried_undone_and_survives_a_killed_server(
    tab: Tab, served: Served, omegas: list[Path]
) -> None:
    page = tab.page
    tab.drop("#try", omegas[5:])
    tab.count("#tried .now", 3)
    tab.count("#tried .before", 0)
    tab.teach("omega", omegas[:5])
    tab.see("#taught", "of accuracy on the base classes")
    tab.see("#novel", "5 photos")
    tab.count("#novel img", 5)
    tab.count("#collected li", 0)
    thumbnails = page.locator("#novel img")
    wait_until(lambda: thumbnails.evaluate_all("all => all.every((one) => one.naturalWidth > 0)"))
    tab.count("#tried .before", 3)  # the same photos, before and after
    assert "omega" not in page.locator("#tried .before").all_inner_texts()
    assert any("omega" in text for text in page.locator("#tried .now").all_inner_texts())

    page.click("#undo")
    tab.see("#status", "Undid: taught omega")
    tab.count("#novel li", 0)
    tab.count("#tried .before", 0)
    tab.teach("omega", omegas[:5])
    page.reload()
    tab.see("#novel", "omega")
    assert [line for line in tab.said if line.startswith("error")] == []

    tab.drop("#teach", omegas[5:])
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
    tab.see("#status", "Undid: taught psi")
    assert [line for line in tab.said if "ERR_CONNECTION" not in line] == []
    assert {
        url for url in tab.asked if not url.startswith((served.address, "blob:", "data:"))
    } == set()


def test_a_class_is_taught_renamed_and_removed_by_keyboard_alone(
    tab: Tab, omegas: list[Path]
) -> None:
    page, keys = tab.page, tab.page.keyboard
    page.on("filechooser", lambda _: None)  # told too late, Chromium opens its own

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
    chosen.value.set_files(omegas[:6])
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
def test_a_phone_needs_no_sideways_scroll(tab: Tab, omegas: list[Path]) -> None:
    name = "a_class_with_a_name_that_is_much_longer_than_the_screen_is_wide" * 2
    tab.drop("#try", omegas[5:])
    tab.teach(name, omegas[:5])
    tab.page.click("#base summary")
    tab.page.click(f"[aria-label='Rename {name}']")
    page_width = tab.page.evaluate("document.documentElement.scrollWidth")
    assert page_width == 360
    bar = tab.page.locator("#bar").bounding_box()
    assert bar is not None
    assert bar["height"] < 180  # of the button that undoes, two lines are shown
    assert tab.page.get_attribute("#undo", "title") == f"Undo: taught {name}"


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
    tab: Tab, omegas: list[Path], tmp_path: Path
) -> None:
    page = tab.page
    broken = tmp_path / "broken.png"
    broken.write_bytes(omegas[0].read_bytes()[:60])
    tab.drop("#teach", [*omegas[:3], broken])
    page.fill("#name", "omega")
    page.click("#go")
    tab.see("#teach-error", "broken.png")
    tab.count("#collected li", 4)
    page.click("[aria-label='Remove broken.png']")
    page.click("#go")
    tab.see("#taught", "Learnt omega from 3 photos")
    tab.drop("#try", [broken, omegas[6]])
    tab.see("#tried .error", "broken.png")
    tab.count("#tried .now", 1)  # of the other photo


def test_the_budget_is_set_by_the_slider_and_shown_on_the_curve(
    tab: Tab, omegas: list[Path]
) -> None:
    tab.teach("omega", omegas[:5])
    tab.count("#curve .now", 1)
    before = tab.page.get_attribute("#curve .now", "cx")
    tab.page.locator("#points").fill("0")
    tab.see("#status", "Set the budget to 0")
    tab.see("#budget-set output", "0 points")
    assert tab.page.get_attribute("#curve .now", "cx") != before
    assert tab.page.input_value("#points") == "0"
