"""The page in a real browser: no requests, no errors on the console, usable by mouse and by keyboard."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcgan_dist.results import page
from dcgan_dist.results.aggregate import Collection
from dcgan_dist.results.page import write_page
from dcgan_dist.results.thumbnails import Thumbnails

from .chromium import Browser, chromium, find_chromium
from .made_trials import make_collection, make_trial, score
from .test_page import NOW, hostile

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium") / "profile") as started:
        yield started


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    made = make_collection(tmp_path_factory.mktemp("grids"), 12)
    scores = (score("cifar10", "accuracy", 58.0, protocol="full"), *made.trials[0].all_scores)
    first = dataclasses.replace(made.trials[0], all_scores=scores, status="stopped")
    return dataclasses.replace(made, trials=(first, *made.trials[1:]))


@pytest.fixture(scope="module")
def report(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(collection, path, now=NOW)
    return path


def names(browser: Browser) -> list[str]:
    return browser.run("[...document.querySelectorAll('#board .name')].map(e => e.textContent)")


def source_of(browser: Browser, selector: str) -> str:
    return browser.run(f"document.querySelector({json.dumps(selector)}).src")


def focused(browser: Browser, what: str) -> str:
    return browser.run(f"document.activeElement.{what}")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_has_no_errors_and_fits_the_width(browser: Browser, report: Path, width: int, dark: bool) -> None:
    browser.open(report, width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    for section in ("leaderboard", "trial", "compare", "space", "representation", "budgets"):
        browser.run(f"document.getElementById('{section}').scrollIntoView({{behavior: 'instant'}})")
        browser.settle()
    assert browser.complaints() == []
    assert browser.requests() == [report.as_uri()]
    paper, ink = browser.run(
        "['backgroundColor', 'color'].map(n => getComputedStyle(document.body)[n].match(/[\\d.]+/g).slice(0, 3)"
        ".reduce((sum, part) => sum + Number(part), 0) / 3)"
    )
    assert (paper < 40 and ink > 200) if dark else (paper > 240 and ink < 60)
    empty = "[...document.images].filter(e => e.complete && !e.naturalWidth).length"
    assert browser.run(empty) == 0
    assert browser.run("document.images.length") > 12
    labelled = "[...document.querySelectorAll('img, svg[role=img]')].every(e => e.alt || e.getAttribute('aria-label'))"
    assert browser.run(labelled)


def test_the_theme_can_be_changed(browser: Browser, report: Path) -> None:
    browser.open(report)
    before = browser.run("getComputedStyle(document.body).backgroundColor")
    browser.click("#theme")
    assert browser.run("getComputedStyle(document.body).backgroundColor") != before
    browser.click("#theme")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == before


def test_table_is_sorted_by_any_column_both_ways(browser: Browser, report: Path, collection: Collection) -> None:
    browser.open(report)
    by_score = sorted(collection.trials, key=lambda trial: -trial.scores["sweep.representation"].value)
    assert names(browser) == [trial.key for trial in by_score]
    assert browser.run("document.querySelector('th[aria-sort=descending]').textContent") == "representation"
    by_rate = [trial.key for trial in sorted(collection.trials, key=lambda trial: trial.parameters["optim.lr"])]
    browser.click("#board th[data-id='p:optim.lr'] button")
    assert names(browser) == by_rate
    assert focused(browser, "textContent") == "lr"
    browser.press("Enter")
    assert names(browser) == by_rate[::-1]


def test_table_is_filtered_by_verdict_status_and_text(browser: Browser, report: Path) -> None:
    browser.open(report)
    browser.click("#verdicts button[data-verdict=collapse]")
    assert sorted(names(browser)) == ["t0002", "t0008"]
    assert browser.run("document.getElementById('shown-count').textContent") == "2 of 12 trials"
    browser.click("#verdicts button[data-verdict=collapse]")
    browser.run(
        "(() => { const s = document.getElementById('status'); s.value = 'stopped';"
        " s.dispatchEvent(new Event('change')); })()"
    )
    assert names(browser) == ["t0000"]
    browser.run(
        "(() => { const s = document.getElementById('status'); s.value = ''; s.dispatchEvent(new Event('change'));"
        " const t = document.getElementById('text'); t.value = 'wins T0007'; t.dispatchEvent(new Event('input')); })()"
    )
    assert names(browser) == ["t0007"]


def test_slider_shows_the_same_z_at_other_steps(browser: Browser, report: Path) -> None:
    browser.open(report)
    picture = "#trial-view .grids figure:first-child img"
    newest = source_of(browser, picture)
    browser.run("document.querySelector('#trial-view input[type=range]').focus()")
    seen = [newest]
    for _ in range(4):
        browser.press("ArrowLeft")
        seen.append(source_of(browser, picture))
    assert len(set(seen)) == 5
    assert browser.run("document.querySelector('#trial-view output').textContent") == "step 0"
    rule = "document.querySelector('#trial-view .chart .rule').getAttribute('visibility')"
    assert browser.run(rule) == "visible"  # the curves show where that step is
    browser.press("ArrowRight", 4)
    assert source_of(browser, picture) == newest


def test_a_trial_is_opened_by_keyboard_and_by_address(browser: Browser, report: Path) -> None:
    browser.open(report)
    order = names(browser)
    browser.run("document.querySelector('#board .name').focus()")
    browser.press("ArrowDown", 2)
    assert focused(browser, "textContent") == order[2]
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("Enter")
    title = "document.querySelector('#trial-view h3').textContent"
    assert browser.run(title) == order[2]
    assert browser.run("location.hash") == f"#trial={order[2]}"
    assert focused(browser, "id") == "trial-title"
    browser.click("#after")
    assert browser.run(title) == order[3]
    browser.open(report, fragment="#trial=t0005")
    assert browser.run(title) == "t0005"
    assert "--config t5.yaml" in browser.run("document.querySelector('.command pre').textContent")


def test_everything_can_be_reached_with_the_tab_key(browser: Browser, collection: Collection, tmp_path: Path) -> None:
    few = dataclasses.replace(collection.sweeps[0], trials=("t0000", "t0001", "t0002"), best="t0001")
    write_page(Collection(trials=collection.trials[:3], sweeps=(few,)), tmp_path / "few.html", now=NOW)
    browser.open(tmp_path / "few.html", height=400)
    reached: list[str] = []
    while "budgets" not in reached and len(reached) < 120:
        browser.press("Tab")
        reached.append(browser.run("document.activeElement.closest('section')?.id || document.activeElement.tagName"))
    assert {"leaderboard", "trial", "compare", "space", "representation", "budgets"} <= set(reached)


def test_trials_are_compared_side_by_side(browser: Browser, report: Path) -> None:
    browser.open(report)
    shown = "[...document.querySelectorAll('#compare-view .side .name-link')].map(e => e.textContent)"
    assert len(browser.run(shown)) == 3  # the best, a median one, and one that is not stable
    for key in browser.run("board.picked.slice()"):
        browser.click(f"#board input[data-key={key}]")
    assert "Tick two to six trials" in browser.run("document.getElementById('compare-view').textContent")
    for key in ("t0001", "t0004", "t0006", "t0007"):
        browser.click(f"#board input[data-key={key}]")
    assert browser.run(shown) == ["t0001", "t0004", "t0006", "t0007"]
    pictures = "[...document.querySelectorAll('#compare-view .side img')].map(e => e.src)"
    newest = browser.run(pictures)
    browser.run("document.querySelector('#compare-view input[type=range]').focus()")
    browser.press("ArrowLeft")
    before = browser.run(pictures)
    assert len({*newest, *before}) == 8
    assert "Each cell of a grid shows the same z" in browser.run("document.querySelector('#compare-view').textContent")
    lines = "document.querySelectorAll('#compare-view .charts figure:first-child path.line').length"
    assert browser.run(lines) == 4
    differing = "[...document.querySelectorAll('#compare-view tbody tr td:first-child')].map(e => e.textContent)"
    assert sorted(browser.run(differing)) == ["model.slope", "optim.beta1", "optim.lr"]
    browser.run("document.querySelector('#compare-view .chart svg').focus()")
    browser.press("ArrowRight")
    assert browser.run("document.querySelectorAll('#compare-view .legend b').length") == 4  # the values at that step


def test_a_comparison_says_that_seeds_differ(browser: Browser, collection: Collection, tmp_path: Path) -> None:
    other = dataclasses.replace(collection.trials[1], settings={**collection.trials[1].settings, "seed": 5})
    write_page(Collection(trials=(collection.trials[0], other)), tmp_path / "two.html", now=NOW)
    browser.open(tmp_path / "two.html")
    assert "Their z differ" in browser.run("document.querySelector('#compare-view').textContent")


def test_the_space_is_usable_by_keyboard(browser: Browser, report: Path) -> None:
    browser.open(report)
    maps = browser.run("document.querySelectorAll('#space-view .maps')[0].querySelectorAll('svg').length")
    assert maps == 3  # lr and beta1, lr and slope, beta1 and slope
    marks = browser.run("document.querySelector('#space-view svg[tabindex]').querySelectorAll('.point').length")
    assert marks == 12
    browser.run("document.querySelector('#space-view svg[tabindex]').focus()")
    browser.press("ArrowRight", 3)
    said = browser.run("document.querySelector('#space-view .said').textContent")
    assert said.startswith("t0002: lr ")
    assert said.endswith("; collapse")
    browser.press("Enter")
    assert browser.run("document.querySelector('#trial-view h3').textContent") == "t0002"
    before = browser.run("document.querySelector('#space-view .legend').textContent")
    browser.run(
        "(() => { const s = document.getElementById('space-score'); s.value = 'sweep.coverage';"
        " s.dispatchEvent(new Event('change')); })()"
    )
    browser.settle()
    assert browser.run("document.querySelector('#space-view .legend').textContent") != before
    assert browser.complaints() == []


@pytest.mark.parametrize("width", [1400, 400])
def test_hostile_names_do_nothing(browser: Browser, tmp_path: Path, width: int) -> None:
    trials = (
        hostile(make_trial(tmp_path, 0)),
        make_trial(tmp_path, 1, key="y" * 10_000, sweep=None, parameters={"model.batch_norm": "w" * 10_000}),
        make_trial(tmp_path, 2, key="same"),
        make_trial(tmp_path, 3, key="other/same"),
    )
    base = make_collection(tmp_path, 3)
    sweep = dataclasses.replace(base.sweeps[0], key=trials[0].key, best="same")
    nasty = dataclasses.replace(trials[2], sweep=sweep.key, parameters={**trials[2].parameters, trials[0].key: "<b>x"})
    write_page(Collection(trials=(*trials[:2], nasty, trials[3]), sweeps=(sweep,)), tmp_path / "evil.html", now=NOW)
    browser.open(tmp_path / "evil.html", width)
    for place in range(4):
        browser.run(f"openTrial(core.trials[{place}].key)")
        browser.run(f"pickTrial(core.trials[{place}].key, true)")
        browser.settle()
    assert browser.run("typeof hacked") == "undefined"
    assert browser.run("document.querySelectorAll('img[onerror], main script, b script').length") == 0
    assert browser.complaints() == []
    assert browser.requests() == [(tmp_path / "evil.html").as_uri()]
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_empty_collections_and_single_runs_have_pages_without_errors(browser: Browser, tmp_path: Path) -> None:
    single = make_trial(
        tmp_path, 0, grids=0, metrics={}, scores={}, all_scores=(), settings={}, sweep=None, parameters={}
    )
    waiting = dataclasses.replace(make_collection(tmp_path, 2), trials=(dataclasses.replace(single, sweep="sweep"),))
    for collection in (
        Collection(),
        Collection(trials=(single,)),
        Collection(trials=(single, dataclasses.replace(single, key="b"))),
        waiting,
    ):
        write_page(collection, tmp_path / "few.html", now=NOW)
        browser.open(tmp_path / "few.html")
        assert browser.complaints() == []


def test_many_trials_are_loaded_when_they_are_shown(
    browser: Browser, collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "IN_ONE_FILE", 5)
    path = tmp_path / "many.html"
    write_page(collection, path, now=NOW)
    browser.open(path)
    browser.wait_for("document.querySelectorAll('#compare-view img').length === 3")
    asked = {url.rpartition("/")[2] for url in browser.requests() if url.endswith(".js")}
    assert 0 < len(asked) < 12  # only those that are shown
    assert all(url.startswith(tmp_path.as_uri()) for url in browser.requests())
    browser.run("openTrial('t0009')")
    browser.wait_for("document.querySelector('#trial-view h3').textContent === 't0009'")
    assert any(url.endswith("/trial-9.js") for url in browser.requests())
    browser.wait_for("[...document.querySelectorAll('#trial-view img')].every(e => e.naturalWidth > 0)")
    assert browser.complaints() == []
    asked = {url.rpartition("/")[2] for url in browser.requests()}
    other = next(number for number in range(12) if f"trial-{number}.js" not in asked)
    (tmp_path / "many_files" / f"trial-{other}.js").unlink()
    browser.run(f"openTrial('t{other:04d}')")
    browser.wait_for("document.querySelector('#trial-view').textContent.includes('is not in the folder of this page')")


def test_a_page_of_two_hundred_trials_is_small_and_fast(browser: Browser, tmp_path: Path) -> None:
    # The bounds hold for an idle machine; the time of an empty page measures how busy the machine is.
    (tmp_path / "nothing.html").write_text("<!doctype html><title>nothing</title><p>nothing")
    painted = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"
    browser.open(tmp_path / "nothing.html")
    browser.wait_for("performance.getEntriesByName('first-contentful-paint').length")
    idle = browser.run(painted)
    grids = [
        path for trial in make_collection(tmp_path / "grids", 10, grids=5, side=32).trials for _, path in trial.samples
    ]
    few = make_collection(tmp_path, 200, grids=0, rows=400, side=32)
    trials = [
        dataclasses.replace(trial, samples=[(step, grids[(place + 7 * step) % 50]) for step in range(8)])
        for place, trial in enumerate(few.trials)
    ]
    collection = dataclasses.replace(few, trials=trials)
    path = tmp_path / "report.html"
    write_page(collection, path, now=NOW, thumbnails=Thumbnails())
    assert path.stat().st_size < 30_000_000
    browser.open(path)
    browser.wait_for("performance.getEntriesByName('first-contentful-paint').length")
    assert browser.run(painted) < 2 + 15 * idle
    assert len(names(browser)) == 100
    browser.click("#board .more button")
    assert len(names(browser)) == 200
    assert browser.complaints() == []
