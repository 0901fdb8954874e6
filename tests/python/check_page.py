"""Opens a report in headless Chromium and uses it as a reader would: light, dark and on a phone.

Usage: check_page.py PAGE.html [FOLDER for screenshots]
Prints a JSON object; exit code 3 where there is no browser.
"""

import json
import os
import shutil
import sys
from pathlib import Path

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sys.exit(3)

NAMES = ("chromium", "chromium-browser", "google-chrome")
browser_path = os.environ.get("INSTDISC_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
if not browser_path:
    sys.exit(3)
page_path = Path(sys.argv[1]).resolve()
folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None
VIEWS = {
    "light": dict(color_scheme="light", viewport=dict(width=1280, height=900)),
    "dark": dict(color_scheme="dark", viewport=dict(width=1280, height=900)),
    "phone": dict(color_scheme="light", viewport=dict(width=375, height=740), device_scale_factor=2, has_touch=True),
}

GALLERY = """() => [...document.querySelectorAll("article")].filter((a) => a.getClientRects().length > 0)
    .map((a) => ({ class: a.dataset.class, kind: a.dataset.kind }))"""
# Whether each image can be decoded: those of the gallery are backgrounds, each in the style sheet once.
IMAGES = """async () => {
  const backgrounds = [...document.querySelectorAll(".thumb")].map((t) => getComputedStyle(t).backgroundImage);
  const urls = [...document.images].map((i) => i.src).concat(backgrounds.map((text) => text.slice(5, -2)));
  const loaded = new Map();
  for (const url of new Set(urls)) {
    const image = new Image();
    image.src = url;
    loaded.set(url, await image.decode().then(() => image.naturalWidth > 0, () => false));
  }
  return urls.map((url) => loaded.get(url));
}"""
CUT = """() => [...document.querySelectorAll("figcaption, figcaption span, .bars .name, .verdict b, .end")]
    .filter((e) => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline").map((e) => e.innerText)"""
COVERED = """() => {
    const ends = [...document.querySelectorAll(".end")].map((e) => [e.innerText, e.getBoundingClientRect()]);
    return ends.flatMap(([a, p]) => ends.filter(([b, q]) => a < b && Math.abs(p.top - q.top) < 14).map(([b]) => a + " and " + b));
}"""
INKED = """() => {
    const canvas = document.getElementById("map-canvas");
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    let inked = 0;
    for (let at = 3; at < pixels.length; at += 4) inked += pixels[at] > 128 ? 1 : 0;
    return inked;
}"""


def choose(page, name, everything):
    """Uses the filter, the kinds and the list of classes, as a page with scores has them; gives the classes."""
    filter_ = page.locator("#filter")
    classes = [option for option in filter_.locator("option").all_inner_texts() if option != "all"]
    shown_classes = sorted({article["class"] for article in everything})
    for wanted in shown_classes[:3]:
        filter_.select_option(wanted)
        shown = page.evaluate(GALLERY)
        expected = [article for article in everything if article["class"] == wanted]
        assert shown == expected and shown, f"{name}: the filter {wanted} shows {shown}"
        status = page.locator("#shown").inner_text()
        assert status == f"{len(expected)} shown", f"{name}: {status}"
    if folder:
        page.locator("#map, #gallery").first.screenshot(path=folder / f"{name}-filtered.png")
    filter_.select_option("")
    assert page.evaluate(GALLERY) == everything, f"{name}: all are not shown again"
    for kind in ("best", "worst", "typical"):
        page.locator(f"#kinds [data-kind={kind}]").click()
        shown = page.evaluate(GALLERY)
        assert shown == [article for article in everything if article["kind"] == kind], f"{name}: kind {kind}"
    page.locator("#kinds [data-kind='']").click()

    # The keyboard alone: the filter can be reached and changed, and so can a class in the list of classes.
    page.locator("#filter").focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("#filter").input_value() == classes[0]
    page.keyboard.press("Home")
    assert page.locator("#filter").input_value() == ""
    page.locator("#classes-list button.name").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#filter").input_value() != ""
    page.keyboard.press("Enter")
    assert page.locator("#filter").input_value() == ""
    page.locator("#class-order [data-order=worst]").click()
    tops = page.eval_on_selector_all("#classes-list li", "items => items.map((i) => Number(i.dataset.top1))")
    assert tops == sorted(tops), tops
    return classes


def visit(browser, name, settings):
    problems = []
    context = browser.new_context(reduced_motion="reduce", **settings)
    page = context.new_page()
    # Reading the canvas back, as this script does, is slow, and Chromium says so.
    mine = lambda message: "Canvas2D" in message.text
    page.on("console", lambda m: m.type in ("error", "warning") and not mine(m) and problems.append(m.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or problems.append(request.url))
    page.goto(page_path.as_uri())
    page.wait_for_load_state("networkidle")
    seen = {"images": page.evaluate(IMAGES), "sections": page.locator("section h2").all_inner_texts()}
    assert all(seen["images"]), f"{name}: {seen['images'].count(False)} images have not loaded"
    width = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1], f"{name}: the page is wider than the screen, {width}"

    cut, covered = page.evaluate(CUT), page.evaluate(COVERED)
    assert not cut, f"{name}: names are cut: {cut[:5]}"
    assert not covered, f"{name}: labels cover one another: {covered}"

    everything = page.evaluate(GALLERY)
    if folder:
        page.screenshot(path=folder / f"{name}.png", full_page=True)
    # Without labels there is nothing to choose.
    classes = choose(page, name, everything) if page.locator("#filter").is_visible() else []

    if page.locator("#map-canvas").count():
        inked = page.evaluate(INKED)
        assert inked > 100, f"{name}: the map is empty"
        page.locator("#map-canvas").focus()
        page.keyboard.press("ArrowRight")
        assert ", instance " in page.locator("#map-readout").inner_text()
        page.keyboard.press("Escape")
        for button in page.locator("#projections button").all() + page.locator("#marks button").all():
            button.click()
            assert page.evaluate(INKED) > 100, f"{name}: the map is empty after {button.inner_text()}"
        if folder:
            page.locator("#map").screenshot(path=folder / f"{name}-map-images.png")
        seen["mapped"] = inked
    context.close()
    assert not problems, f"{name}: {problems}"
    seen.update(images=len(seen["images"]), articles=len(everything), classes=len(classes))
    return seen


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
    print(json.dumps({name: visit(browser, name, settings) for name, settings in VIEWS.items()}))
    browser.close()
