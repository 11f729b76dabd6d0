"""The page of boxes in a real browser: drawn with the mouse, saved, and read back by the figure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dcgan_dist.exploration.boxes import BoxesConfig, draw, measure, read_boxes
from dcgan_dist.exploration.networks import Trained
from tests.results.chromium import Browser, chromium, find_chromium

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium") / "profile") as started:
        yield started


def drag(browser: Browser, sample: int, start: tuple[float, float], end: tuple[float, float], size: int) -> None:
    """Drag the mouse over a sample, from one position to another, in pixels of the sample."""
    left, top, width = browser.run(
        f"(() => {{ const e = document.querySelector('.sample[data-id=\"{sample}\"]'); e.scrollIntoView();"
        " const p = e.getBoundingClientRect(); return [p.left, p.top, p.width]; })()"
    )
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    for kind, (x, y) in (("mousePressed", start), ("mouseMoved", middle), ("mouseMoved", end), ("mouseReleased", end)):
        at = {"x": left + x * width / size, "y": top + y * width / size}
        browser.call("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **at)
    browser.settle()


def test_boxes_are_drawn_saved_and_read(browser: Browser, opened: Callable[..., Trained], tmp_path: Path) -> None:
    run = opened()
    canvas = draw(measure(BoxesConfig(count=70, region_name="big window"), run))
    page = tmp_path / "boxes.html"
    page.write_bytes(canvas.files[".html"])
    browser.open(page)
    assert browser.run("document.images.length") == 70
    assert browser.run("[...document.images].every(one => one.naturalWidth === 16)")
    assert browser.run("document.getElementById('save').disabled")
    size = run.image_size
    drag(browser, 2, (2.5, 3.5), (8.5, 9.2), size)
    drag(browser, 68, (12.5, 14.4), (4.2, 5.5), size)  # from the lower right to the upper left
    drag(browser, 5, (10.5, 10.5), (40, 40), size)  # ends outside of the image
    drag(browser, 6, (5, 5), (5, 5), size)  # a click is no box
    drag(browser, 7, (1.5, 1.5), (5.5, 5.5), size)
    assert browser.run("document.getElementById('count').textContent") == "4 boxes on 4 samples"
    browser.click(".sample[data-id='7'] .box")  # which removes it
    drag(browser, 8, (1.5, 1.5), (5.5, 5.5), size)
    browser.click("#undo")
    assert browser.run("document.querySelectorAll('.box').length") == 3
    assert browser.requests() == [page.as_uri()]

    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.click("#save")
    saved = tmp_path / "big-window-boxes.json"
    ends = time.monotonic() + 60
    while not saved.exists() and time.monotonic() < ends:
        time.sleep(0.05)
    assert read_boxes(str(saved), run, None) == {2: [(2, 3, 9, 10)], 68: [(4, 5, 13, 15)], 5: [(10, 10, 16, 16)]}
    assert browser.complaints() == []
