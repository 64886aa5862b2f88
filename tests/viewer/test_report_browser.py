"""The report page in a real browser (Debian's chromium, driven by Playwright, software WebGL, offline)."""

from __future__ import annotations

import importlib.util
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from slice3d.viewer import report
from tests.viewer.study import study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_MISSING = [name for name in ("playwright", "ipyniivue") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}"),
]
_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


class Opened:
    """A page with everything it said and asked for."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.context = browser.new_context(offline=True, **context)
        self.context.set_default_timeout(120_000)  # software WebGL on a busy machine is slow
        self.page = self.context.new_page()
        self.page.on("console", lambda m: self.said.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.said.append(str(e)))
        self.page.on("dialog", lambda d: (self.said.append("dialog"), d.dismiss()))
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("#canvas[data-ready]")

    def pixels(self) -> np.ndarray:
        """(rows, columns, 3) of the canvas as it is shown."""
        shot = self.page.locator("#canvas").screenshot()
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def play() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(play: Any) -> Iterator[Any]:
    chromium = play.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    volume, segmentation, meshes = study()
    report(volume, segmentation, meshes, out, manifest={"slice3d": "test"})
    return out


@pytest.fixture(scope="module")
def opened(browser: Any, path: Path) -> Iterator[Opened]:
    page = Opened(browser, path, viewport={"width": 1100, "height": 800}, color_scheme="light")
    yield page
    page.context.close()


def test_opens_draws_and_asks_for_nothing(opened: Opened, path: Path) -> None:
    canvas = opened.page.locator("#canvas")
    assert canvas.get_attribute("data-ready") == "yes", canvas.get_attribute("data-reason")
    assert canvas.get_attribute("data-reason") is None
    picture = opened.pixels()
    assert picture.std() > 10
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    assert opened.said == []
    outside = [url for url in opened.asked if url != path.as_uri() and not url.startswith(("data:", "blob:"))]
    assert outside == []
    assert opened.page.evaluate("window.hit") is None


def test_structures_can_be_switched_off(opened: Opened) -> None:
    before = opened.pixels()
    box = opened.page.get_by_label("Spleen")
    box.uncheck()
    without = opened.pixels()
    assert (np.abs(without - before).sum(axis=2) > 30).sum() > 200
    state = "[...slice3dReport.surfaces].map(([name, mesh]) => [name, mesh.visible])"
    assert dict(opened.page.evaluate(state)) == {"liver": True, "liver_tumor": True, "spleen": False}
    box.check()
    assert np.abs(opened.pixels() - before).mean() < 1
    opened.page.get_by_text("Hide all").click()
    assert not any(dict(opened.page.evaluate(state)).values())
    opened.page.get_by_text("Show all").click()
    assert all(dict(opened.page.evaluate(state)).values())


def test_wheel_over_a_slice_changes_it(opened: Opened) -> None:
    opened.page.get_by_role("button", name="Axial").click()
    slider = opened.page.get_by_label("Axial")
    first, picture = slider.input_value(), opened.pixels()
    place = opened.page.locator("#place").text_content()
    opened.page.locator("#canvas").hover()
    opened.page.mouse.wheel(0, 240)
    for _ in range(40):
        if slider.input_value() != first:
            break
        opened.page.wait_for_timeout(250)
    assert slider.input_value() != first
    assert opened.page.locator("#place").text_content() != place
    assert (np.abs(opened.pixels() - picture).sum(axis=2) > 30).any()
    opened.page.get_by_role("button", name="All", exact=True).click()


def test_keyboard_moves_slices_and_measures(opened: Opened) -> None:
    slider = opened.page.get_by_label("Axial")
    slider.focus()
    opened.page.keyboard.press("Home")
    low = slider.get_attribute("aria-valuetext")
    assert low is not None
    assert low.endswith("mm")
    opened.page.get_by_text("Mark start here").press("Enter")
    slider.focus()
    for _ in range(4):
        opened.page.keyboard.press("ArrowRight")
    assert slider.input_value() == "4"
    opened.page.get_by_text("Distance to here").press("Enter")
    assert opened.page.locator("#distance").text_content() == "Distance: 20.0 mm"  # four slices of 5 mm


_STATE = (
    "(() => { const { nv } = slice3dReport; return [nv.opts.sliceType, nv.opts.dragMode, nv.scene.renderAzimuth,"
    " nv.scene.renderElevation, nv.scene.volScaleMultiplier, ...nv.scene.clipPlane, ...nv.scene.crosshairPos]; })()"
)


def test_keys_on_the_picture(opened: Opened) -> None:
    page = opened.page
    page.locator("#canvas").focus()
    slider, place = page.get_by_label("Axial"), page.locator("#place")
    assert place.get_attribute("aria-live") == "polite"
    slider.fill("4")
    page.locator("#canvas").focus()
    before = place.text_content()
    page.keyboard.press("ArrowUp")
    assert slider.input_value() == "5"
    assert place.text_content() != before
    page.keyboard.press("PageDown")
    assert slider.input_value() == "0"
    state, picture = page.evaluate(_STATE), opened.pixels()
    page.keyboard.press("ArrowRight")
    turned = page.evaluate(_STATE)
    assert turned[2] - state[2] == 10
    assert (np.abs(opened.pixels() - picture).sum(axis=2) > 30).sum() > 200
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("+")
    assert page.evaluate(_STATE)[4] == pytest.approx(1.1)
    page.keyboard.press("-")
    assert page.evaluate(_STATE) == pytest.approx(state)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") != "canvas"  # the keyboard is not caught
    assert place.get_attribute("aria-live") == "off"


def test_keys_of_the_library_do_nothing(opened: Opened) -> None:
    """NiiVue's own would cut the surfaces open, change the view behind the buttons, and show its version in a dialog."""
    opened.page.locator("#canvas").focus()
    state = opened.page.evaluate(_STATE)
    for key in ("v", "c", "m", "h", "Shift+?"):
        opened.page.keyboard.press(key)
        opened.page.wait_for_timeout(100)
    assert opened.page.evaluate(_STATE) == state
    assert opened.said == []


def test_focus_is_seen_on_the_picture(opened: Opened) -> None:
    canvas = opened.page.locator("#canvas")
    opened.page.get_by_role("button", name="All", exact=True).focus()
    before = opened.pixels()
    opened.page.keyboard.press("Shift+Tab")
    assert canvas.evaluate("(e) => e === document.activeElement")
    edge = np.abs(opened.pixels() - before).sum(axis=2)[:5]
    assert (edge > 100).any(axis=0).mean() > 0.8  # a line along the upper edge


def test_what_a_screen_reader_is_told(opened: Opened) -> None:
    opened.page.evaluate("document.activeElement.blur()")  # with the picture in focus its place is told, too
    session = opened.context.new_cdp_session(opened.page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    told = [n for n in nodes if not n["ignored"]]
    pairs = {(n["role"]["value"], n.get("name", {}).get("value", "")) for n in told}
    (canvas,) = (n for n in told if n["role"]["value"] == "application")
    assert "slice" in canvas["description"]["value"]
    assert {("slider", "Axial"), ("slider", "Zoom"), ("checkbox", "Spleen"), ("button", "bone"), ("main", "")} <= pairs
    assert {
        ("region", name) for name in ("Slices and surfaces", "Numbers", "What to know", "How sure is this?")
    } <= pairs
    assert ("columnheader", "Volume, ml") in pairs
    live = [n for n in told for p in n.get("properties", ()) if p["name"] == "live" and p["value"]["value"] != "off"]
    assert len(live) == 2  # what the page is doing, and what was measured; not every number beside a slider


def test_zoom_keeps_the_cross_in_place(opened: Opened) -> None:
    opened.page.get_by_role("button", name="Axial").click()
    zoom, picture = opened.page.get_by_label("Zoom"), opened.pixels()
    yellow = np.array([255, 217, 77])

    def cross(pixels: np.ndarray) -> np.ndarray:
        line = np.abs(pixels - yellow).sum(axis=2) < 120
        return np.array([line.sum(axis=0).argmax(), line.sum(axis=1).argmax()])

    zoom.fill("2")
    assert zoom.get_attribute("aria-valuetext") == "200 %"
    assert (np.abs(opened.pixels() - picture).sum(axis=2) > 30).sum() > 1000
    assert np.abs(cross(opened.pixels()) - cross(picture)).max() <= 12  # the line is a voxel wide, and so twice as wide
    zoom.fill("1")
    assert np.abs(opened.pixels() - picture).mean() < 0.1
    opened.page.get_by_role("button", name="All", exact=True).click()


def test_surfaces_fill_their_view(opened: Opened) -> None:
    opened.page.get_by_role("button", name="3D").click()
    size = "slice3dReport.nv.furthestFromPivot"
    low, high = (opened.page.evaluate(f"[...slice3dReport.surfaces.values()].map((m) => [...m.{end}])")
                 for end in ("extentsMin", "extentsMax"))  # fmt: skip
    span = np.max(high, axis=0) - np.min(low, axis=0)
    assert opened.page.evaluate(size) == pytest.approx(np.linalg.norm(span) / 2, rel=1e-4)
    assert opened.page.evaluate("slice3dReport.nv.pivot3D") == pytest.approx(np.min(low, axis=0) + span / 2, abs=1e-3)
    opened.page.get_by_role("button", name="All", exact=True).click()


def test_cross_names_the_structure_under_it(opened: Opened) -> None:
    # The middle of the tumour in world RAS: voxel (9, 11.5, 4.5) of the grid in `study`.
    opened.page.evaluate(
        "() => { const { nv } = slice3dReport; nv.scene.crosshairPos = nv.mm2frac([16.5, -4, 11]); nv.drawScene();"
        " nv.createOnLocationChange(); }"
    )
    text = opened.page.locator("#place").text_content()
    assert text is not None
    assert text.endswith(", Liver tumor")
    assert text.startswith("R ")
    assert " HU" in text


def test_ruler_draws_on_a_slice(opened: Opened) -> None:
    opened.page.get_by_role("button", name="Axial").click()
    ruler = opened.page.get_by_text("Ruler: drag on a slice")
    ruler.click()
    assert ruler.get_attribute("aria-pressed") == "true"
    opened.page.evaluate("scrollTo(0, 0)")
    where = opened.page.locator("#canvas").bounding_box()
    assert where
    x, y = where["x"] + where["width"] / 2, where["y"] + where["height"] / 2
    opened.page.mouse.move(x, y)
    opened.page.mouse.down()
    opened.page.mouse.move(x + 60, y + 40, steps=4)
    opened.page.mouse.up()
    opened.page.wait_for_timeout(1000)
    made = opened.page.evaluate("slice3dReport.nv.document.completedMeasurements.map((m) => m.distance)")
    assert len(made) == 1
    assert 1 < made[0] < 60
    assert opened.page.locator("#distance").text_content() == f"Distance: {made[0]:.1f} mm"
    opened.page.mouse.click(x, y)
    opened.page.wait_for_timeout(500)
    assert opened.page.evaluate("slice3dReport.nv.document.completedMeasurements.length") == 1  # a click is no distance
    opened.page.get_by_text("Clear").click()
    assert opened.page.evaluate("slice3dReport.nv.document.completedMeasurements.length") == 0
    ruler.click()
    opened.page.get_by_role("button", name="All", exact=True).click()


def test_window_and_overlay_change_the_picture(opened: Opened) -> None:
    before = opened.pixels()
    opened.page.get_by_role("button", name="bone").click()
    assert opened.page.evaluate("[slice3dReport.nv.volumes[0].cal_min, slice3dReport.nv.volumes[0].cal_max]") == [
        -500,
        1300,
    ]
    assert np.abs(opened.pixels() - before).mean() > 0.5
    level, width = opened.page.get_by_label("Level"), opened.page.get_by_label("Width")
    assert (level.get_attribute("aria-valuetext"), width.get_attribute("aria-valuetext")) == ("400 HU", "1800 HU")
    width.focus()
    opened.page.keyboard.press("ArrowLeft")
    assert opened.page.evaluate("slice3dReport.nv.volumes[0].cal_max - slice3dReport.nv.volumes[0].cal_min") == 1795
    assert opened.page.get_by_role("button", name="bone").get_attribute("aria-pressed") == "false"
    opened.page.get_by_role("button", name="automatic").click()
    assert opened.page.locator("#width-out").text_content() == "400 HU"
    opened.page.evaluate("(nv => { nv.volumes[0].cal_max += 7; nv.onIntensityChange(); })(slice3dReport.nv)")
    assert opened.page.get_by_role("button", name="automatic").get_attribute("aria-pressed") == "false"
    opened.page.get_by_role("button", name="automatic").click()
    overlay = opened.page.get_by_label("Overlay")
    overlay.focus()
    opened.page.keyboard.press("Home")
    plain = opened.pixels()
    assert np.abs(plain - before).mean() > 0.1
    overlay.fill("40")
    assert opened.said == []


def test_every_control_has_a_name(opened: Opened) -> None:
    nameless = opened.page.evaluate(
        "[...document.querySelectorAll('button, input, canvas[tabindex], img')].filter((e) =>"
        " !(e.textContent.trim() || e.labels?.length || e.getAttribute('aria-label') || e.alt)).length"
    )
    assert nameless == 0
    assert opened.page.evaluate("document.querySelectorAll('h1').length") == 1
    assert opened.page.evaluate("document.documentElement.lang") == "en"
    opened.page.keyboard.press("Tab")
    assert opened.page.evaluate("document.activeElement !== document.body")


def test_phone_in_the_dark(browser: Any, path: Path) -> None:
    phone = Opened(browser, path, viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True)
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert phone.page.evaluate("document.documentElement.dataset.theme") == "dark"
    about = phone.page.locator("#numbers-about")
    assert about.evaluate("(e) => e.scrollWidth <= e.clientWidth")  # not cut where the table runs out of the screen
    assert phone.page.locator("tbody th").first.evaluate("(e) => getComputedStyle(e).position") == "sticky"
    dark = phone.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    phone.page.get_by_role("button", name="Dark theme").click()
    assert phone.page.evaluate("getComputedStyle(document.documentElement).backgroundColor") != dark
    assert phone.pixels().std() > 10
    assert phone.said == []
    phone.context.close()


def test_without_webgl_picture_and_numbers_remain(play: Any, path: Path) -> None:
    chromium = play.chromium.launch(
        executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu", "--disable-3d-apis"]
    )
    opened = Opened(chromium, path)
    assert opened.page.locator("#canvas").get_attribute("data-ready") == "failed"
    assert "cannot draw" in str(opened.page.locator("#status").text_content())
    assert opened.page.locator(".still img").is_visible()
    chromium.close()
