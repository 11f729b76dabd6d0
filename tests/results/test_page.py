"""The page without a browser: its content, its security, and its size."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcgan_dist.errors import StorageError
from dcgan_dist.evaluate import PUBLISHED as SHOWN_BY_EVALUATE
from dcgan_dist.results import page, page_content
from dcgan_dist.results.aggregate import Collection, Trial, Verdict
from dcgan_dist.results.page import safe_json, write_page
from dcgan_dist.results.published import PUBLISHED, SETUPS
from dcgan_dist.results.reading import FigureFile
from dcgan_dist.results.thumbnails import (
    ROW,
    STYLES,
    Thumbnails,
    Unreadable,
    choose_steps,
    cut,
    make_thumbnail,
    png_size,
)

from .made_trials import EVIL, grid_png, huge_png, make_collection, make_trial, score

NOW = 1_795_277_000.0


class _Reader(HTMLParser):
    """A parser that collects elements and the content of scripts and styles, as a browser would see them."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, str] = {}
        self._open: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._open = dict(attrs).get("id") or tag
            self.inside[self._open] = ""

    def handle_endtag(self, tag: str) -> None:
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open:
            self.inside[self._open] += data


def read(path: Path) -> _Reader:
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    return reader


def written(collection: Collection, folder: Path) -> _Reader:
    write_page(collection, folder / "report.html", now=NOW)
    return read(folder / "report.html")


def text_of(folder: Path) -> str:
    """Return the text of the page outside of scripts and styles."""
    source = (folder / "report.html").read_text()
    return " ".join(
        html.unescape(re.sub(r"<[^>]+>", "", re.sub(r"<(script|style).*?</\1>", "", source, flags=re.S))).split()
    )


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return make_collection(tmp_path_factory.mktemp("grids"))


def hostile(trial: Trial, **changes: Any) -> Trial:
    nasty = {
        "key": EVIL,
        "name": EVIL,
        "reason": EVIL,
        "sweep": None,
        "directory": EVIL,
        "command": EVIL,
        "status": EVIL,
        "device": EVIL,
        "verdict": Verdict(EVIL, EVIL),
        "settings": {EVIL: EVIL, "model.slope": EVIL * 100, "data.path": EVIL, "training.steps": float("nan")},
        "changed": {EVIL: (EVIL, EVIL)},
        "parameters": {EVIL: EVIL, "__proto__": 1, "optim.lr": float("inf")},
        "all_scores": (score(EVIL, "accuracy", 50.0, method=EVIL, protocol=EVIL),),
        "scores": {"constructor.accuracy": score("constructor", "accuracy", float("nan"))},
        "figures": ((FigureFile(EVIL, EVIL, EVIL, 5), EVIL),),
        "problems": (EVIL,),
    }
    return dataclasses.replace(trial, **{**nasty, **changes})


def test_the_same_collection_gives_the_same_bytes(collection: Collection, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_page(collection, tmp_path / f"{name}.html", now=NOW)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_page_names_no_address_and_no_other_file(collection: Collection, tmp_path: Path) -> None:
    reader = written(collection, tmp_path)
    source = (tmp_path / "report.html").read_text()
    addresses = set(re.findall(r"\b(?:https?|wss?|ftp):[^\s\"'<)]*", source))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of SVG; nothing is loaded from there
    for tag, attributes in reader.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)


def test_the_policy_allows_only_this_script_and_this_style(collection: Collection, tmp_path: Path) -> None:
    reader = written(collection, tmp_path)
    policy = next(
        attributes["content"] or ""
        for tag, attributes in reader.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == digest(reader.inside["script"])
    assert rules["style-src"] == digest(reader.inside["style"])
    assert rules["img-src"] == "data:"
    scripts = [attributes for tag, attributes in reader.elements if tag == "script" and "type" not in attributes]
    assert len(scripts) == 1


def test_scripts_never_parse_text_as_markup() -> None:
    source = "".join(page._source(name) for name in page._SCRIPTS)
    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(", "</", "<!--"):
        assert word not in source, word


def test_hostile_values_stay_text(tmp_path: Path) -> None:
    trials = (hostile(make_trial(tmp_path / "g", 0)), make_trial(tmp_path / "g", 1, sweep=None))
    plain_reader = written(Collection(trials=(make_trial(tmp_path / "g", 0, sweep=None), trials[1])), tmp_path)
    reader = written(Collection(trials=trials, unreadable=((EVIL, EVIL),)), tmp_path)
    tags = {tag for tag, _ in reader.elements}
    assert "img" not in tags
    assert sum(tag == "script" for tag, _ in reader.elements) == sum(
        tag == "script" for tag, _ in plain_reader.elements
    )
    core = json.loads(reader.inside["core"])
    assert core["trials"][0]["key"] == EVIL
    assert json.loads(reader.inside["trial-0"])["command"] == EVIL
    assert "49" not in " ".join(page_content.summary(Collection(trials=trials)))
    for name in ("core", "trial-0"):
        assert not set("<>&\u2028\u2029") & set(reader.inside[name])


def test_json_in_the_page_is_parsed_to_the_same_values() -> None:
    value = {"a": [EVIL, "&lt;", "\N{GRINNING FACE}", "\u2029", 1.5, None, True], "n": float("nan"), "i": float("-inf")}
    text = str(safe_json(value))
    assert json.loads(text) == {**value, "n": None, "i": None}
    assert text.isascii()
    assert not set("<>&") & set(text)


def test_long_values_are_cut_and_say_how_long_they_were(tmp_path: Path) -> None:
    long = "x" * 10_000
    trial = make_trial(
        tmp_path / "g", 0, key=long, name=long, sweep=None, settings={"name": long}, reason=long, grids=0
    )
    detail = json.loads(written(Collection(trials=(trial,)), tmp_path).inside["trial-0"])
    assert detail["settings"] == [["name", "x" * 2000 + "… (10,000 characters)"]]
    assert len(text_of(tmp_path)) < 3000


def test_empty_and_nearly_empty_collections_make_a_page(tmp_path: Path) -> None:
    written(Collection(unreadable=(("some/where", "config.yaml is cut"),)), tmp_path)
    assert "No run was found that could be read." in text_of(tmp_path)
    assert "some/where: config.yaml is cut" in text_of(tmp_path)
    reader = written(Collection(trials=(Trial("lonely", "lonely", "runs/lonely"),)), tmp_path)
    assert "1 trial: 1 unknown." in text_of(tmp_path)
    ids = {attributes.get("id") for _, attributes in reader.elements}
    assert not ids & {"space", "representation", "budgets", "hero"}  # left out: there is nothing to show


def test_nan_is_null_and_the_curve_has_a_gap(tmp_path: Path) -> None:
    losses = np.array([1.0, np.nan, np.inf, 2.0])
    metrics = {"step": np.array([1.0, 2, 3, 4]), "loss_d": losses, "loss_g": np.full(4, np.nan)}
    trial = make_trial(tmp_path / "g", 0, grids=0, metrics=metrics, sweep=None, seconds=float("nan"))
    curves = json.loads(written(Collection(trials=(trial,)), tmp_path).inside["trial-0"])["curves"]
    assert curves == {"loss_d": [[1, 2, 3, 4], [1.0, None, None, 2.0]]}


def test_a_thinned_curve_keeps_its_peaks_and_ends() -> None:
    values = np.sin(np.arange(10_000) / 50.0)
    values[7_777], values[3_333], values[5_000:5_100] = 40.0, -40.0, np.nan
    steps, kept = page_content.thin(np.arange(10_000.0), values, 300)
    assert len(steps) <= 302
    assert (steps[0], steps[-1]) == (0, 9_999)
    assert steps == sorted(set(steps))
    found = dict(zip(steps, kept, strict=True))
    assert (found[7_777], found[3_333]) == (40.0, -40.0)
    assert page_content.thin(np.arange(3.0), np.array([1.0, 2, 3]), 300) == ([0, 1, 2], [1.0, 2.0, 3.0])


def test_summary_says_what_was_found(collection: Collection) -> None:
    text = " ".join(page_content.summary(collection))
    assert text.startswith("8 trials in 1 sweep: 8 finished.")
    assert "2 stable, 2 discriminator wins, 1 collapse, 1 oscillation, 1 diverged and 1 undecided" in text
    assert f"The best is {collection.sweeps[0].best} with representation" in text
    assert "nearest to the paper's setting (lr 2e-4, beta1 0.5, slope 0.2)" in text


def test_a_collapsed_trial_is_not_the_best(tmp_path: Path) -> None:
    values = {"diverged": 0.9, "collapse": 0.8, "stable": 0.4, "oscillation": 0.3}
    trials = [
        make_trial(
            tmp_path, place, grids=0, key=name, sweep=None, verdict=Verdict(name, ""), scores={"a.accuracy": got}
        )
        for place, (name, value) in enumerate(values.items())
        if (got := score("a", "accuracy", value))
    ]
    best = page_content.best_trial(Collection(trials=tuple(trials)), "a.accuracy")
    assert best is not None
    assert best.key == "stable"
    fid = [dataclasses.replace(one, scores={"a.fid": one.scores["a.accuracy"]}) for one in trials]
    best = page_content.best_trial(Collection(trials=tuple(fid)), "a.fid")
    assert best is not None
    assert best.key == "oscillation"  # a lower value is better


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.5, 0.6, "their 95% intervals do not overlap"),
        (0.3, 0.9, "their 95% intervals overlap, so that may be chance"),
    ],
)
def test_summary_compares_the_best_with_the_papers_setting(tmp_path: Path, low: float, high: float, text: str) -> None:
    paper = {"optim.lr": 2e-4, "optim.beta1": 0.5, "model.slope": 0.2}
    trials = [
        make_trial(tmp_path, place, grids=0, settings=settings, scores={"sweep.representation": got})
        for place, (settings, got) in enumerate(
            [
                (paper, score("sweep", "representation", 0.55, low=low, high=high)),
                ({**paper, "optim.lr": 1e-3}, score("sweep", "representation", 0.75, low=0.7, high=0.8)),
            ]
        )
    ]
    collection = dataclasses.replace(make_collection(tmp_path, 1, grids=0), trials=tuple(trials))
    sentence = page_content.summary(
        dataclasses.replace(collection, sweeps=(dataclasses.replace(collection.sweeps[0], best="t0001"),))
    )
    assert any(
        "The paper's setting (lr 2e-4, beta1 0.5, slope 0.2) is t0000: representation 0.55" in one for one in sentence
    )
    assert any(f"The best is 0.2 better; {text}." in one for one in sentence)


def test_scores_are_in_one_table_with_the_papers_rows(tmp_path: Path) -> None:
    scores = (
        score("cifar10", "accuracy", 58.0, protocol="400-per-class/bf16", low=57.6, high=58.4, n=10_000),
        score("cifar10", "accuracy", 49.1, protocol="400-per-class/bf16", method="random", step=None),
        score("cifar10", "accuracy", 40.0, protocol="400-per-class/bf16", step=100),
        score("rooms", "accuracy", 87.0),
    )
    settings = {"data.path": "/a/tiny32", "model.image_size": 32, "training.precision": "bf16", "model.ndf": 32}
    trial = make_trial(tmp_path, 0, grids=0, all_scores=scores, settings=settings, final={"epoch": 15.4}, sweep=None)
    cifar, rooms = page_content.representation(Collection(trials=(trial,)))
    assert [row.method for row in cifar.rows if row.kind in ("published", "paper")] == [
        name for name, _, _ in PUBLISHED["cifar10", "400-per-class"]
    ]
    assert [(row.accuracy, row.method) for row in cifar.rows if row.kind == "paper"] == [
        ("73.8 ± 0.4", "DCGAN + L2-SVM")
    ]
    (ours,) = [row for row in cifar.rows if row.kind == "ours"]  # only the newest step
    assert (ours.accuracy, ours.interval, ours.n, ours.protocol) == (
        "58",
        "57.6 to 58.4",
        "10,000",
        "400-per-class/bf16",
    )
    assert ours.remark == "trained on tiny32 at 32 px (paper: ImageNet-1k at 32 px), 15.4 epochs, ndf 32, bf16"
    assert [row.method for row in cifar.rows if row.kind == "control"] == ["control: random"]
    assert not rooms.is_published
    written(Collection(trials=(trial,)), tmp_path)
    assert "73.8 ± 0.4" in text_of(tmp_path)


def test_published_rows_equal_those_of_the_paper() -> None:
    assert SHOWN_BY_EVALUATE is PUBLISHED
    assert set(SETUPS) == set(PUBLISHED)
    own = {
        (key, next(value for name, value, _ in rows if name == SETUPS[key].method)) for key, rows in PUBLISHED.items()
    }
    # Tables 1, 2 (error 22.48%) and 3 (error 2.98% with 50,000 samples) of arXiv 1511.06434.
    assert own == {
        (("cifar10", "full"), "82.8"),
        (("cifar10", "400-per-class"), "73.8 ± 0.4"),
        (("svhn", "100-per-class"), "77.52"),
        (("one-nn", "1-nn"), "97.02"),
    }


def test_budgets_add_up(tmp_path: Path) -> None:
    trials = [
        make_trial(tmp_path, 0, grids=0, sweep=None, seconds=3600.0, world_size=2, device="cuda:0", throughput=1700.0)
    ]
    trials += [make_trial(tmp_path, 1, grids=0, sweep=None, seconds=1800.0)]
    rows = page_content.budgets(Collection(trials=tuple(trials)))
    assert [(row.name, row.wall, row.cpu, row.gpu) for row in rows] == [
        ("t0000", "1", page_content.DASH, "2"),
        ("t0001", "0.5", "0.5", page_content.DASH),
        ("together", "1.5", "0.5", "2"),
    ]
    assert rows[2].images == "102,400"
    same = [dataclasses.replace(one, device="cpu") for one in trials]
    (group,) = page_content.scaling(Collection(trials=tuple(same)))
    assert group["points"] == [{"workers": 1, "rate": 850.0}, {"workers": 2, "rate": 1700.0}]


# Images


def test_grid_is_cut_between_its_images() -> None:
    content = grid_png(3, side=16)
    original = Image.open(io.BytesIO(content))
    made = make_thumbnail(content, 16, STYLES[3], "name")
    shown = Image.open(io.BytesIO(made.data))
    assert (shown.size, made.images) == ((4 * 18 - 2, 4 * 18 - 2), 16)
    kept = np.asarray(original.crop((0, 0, 70, 70)), np.float64)
    away = np.abs(kept - np.asarray(shown, np.float64)).mean()
    moved = np.abs(np.roll(kept, 1, axis=0) - np.asarray(shown, np.float64)).mean()
    assert away < 16 < moved  # within the error of JPEG on such images, and not shifted by a pixel
    assert cut(526, 526, 64, 8) == (526, 526, 64)
    assert cut(500, 526, 64, 4) == (500, 526, 0)  # not a grid of such images: nothing is cut


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is no PNG"),
        (b"<svg onload=alert(1)>" * 9, "it is no PNG"),
        (huge_png(), "its header states 20,000 x 20,000 pixels"),
        (grid_png(1)[:3000], "it is damaged"),
        (grid_png(1)[:100] + b"\0" * 500, "it is damaged"),
    ],
)
def test_bad_images_are_reported(content: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=reason):
        make_thumbnail(content, 16, ROW)
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    trial = make_trial(
        tmp_path / "g", 0, samples=((0, str(path)), (5, str(tmp_path / "gone.png"))), real=None, sweep=None
    )
    grids = json.loads(written(Collection(trials=(trial,)), tmp_path).inside["trial-0"])["grids"]
    assert grids[0]["problem"].startswith(f"this picture cannot be shown: {reason}")
    assert grids[1]["problem"] == "this picture cannot be shown: it is missing"


def test_figures_are_not_cut_and_wide_enough_to_be_read(tmp_path: Path) -> None:
    path = tmp_path / "walk.png"
    Image.effect_noise((2160, 3000), 50).convert("RGB").save(path)
    walk = FigureFile("walk", "A walk", "Neighbours are near.", 400)
    trial = make_trial(tmp_path / "g", 0, sweep=None, figures=((walk, str(path)), (walk, str(tmp_path / "gone.png"))))
    reader = written(Collection(trials=(trial,)), tmp_path)
    shown, gone = json.loads(reader.inside["trial-0"])["figures"]
    assert (shown["title"], shown["finding"], shown["step"]) == ("A walk", "Neighbours are near.", 400)
    assert gone["problem"] == "this picture cannot be shown: it is missing"
    packed = reader.inside[f"image-{shown['image']}"].partition("base64,")[2]
    assert Image.open(io.BytesIO(base64.b64decode(packed))).size == (1080, 1500)


def test_the_header_is_checked_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image, "open", never)
    with pytest.raises(Unreadable, match="20,000"):
        make_thumbnail(huge_png(), 16, ROW)
    assert png_size(grid_png(0)) == (142, 142)


def test_grids_with_the_same_content_are_stored_once(tmp_path: Path) -> None:
    trials = [make_trial(tmp_path / "g", number, grids=2) for number in range(6)]
    for trial in trials:
        for _, path in trial.samples:
            Path(path).write_bytes(grid_png(0))
    reader = written(Collection(trials=tuple(trials)), tmp_path)
    assert len([name for name in reader.inside if name.startswith("image-")]) == 2  # one for the row, one as a grid


def test_unchanged_grids_are_not_decoded_again(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Thumbnails()
    write_page(collection, tmp_path / "a.html", now=NOW, thumbnails=kept)
    monkeypatch.setattr("dcgan_dist.results.page.read_image", lambda _: pytest.fail("read again"))
    write_page(collection, tmp_path / "b.html", now=NOW, thumbnails=kept)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.parametrize(
    ("steps", "most", "chosen"),
    [
        ([0, 1, 2], 5, [0, 1, 2]),
        (list(range(101)), 5, [0, 25, 50, 75, 100]),
        ([0, 1, 2], 1, [2]),
        ([], 4, []),
    ],
)
def test_slider_has_few_steps_with_the_last(steps: list[int], most: int, chosen: list[int]) -> None:
    assert choose_steps(steps, most) == chosen


def test_images_are_made_smaller_until_they_fit(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    kept = Thumbnails()
    for limit in (20_000_000, 120_000, 40_000, 1_000):
        monkeypatch.setattr(page, "IMAGE_BYTES", limit)
        write_page(collection, tmp_path / "report.html", now=NOW, thumbnails=kept)
        reader = read(tmp_path / "report.html")
        images = sum(len(text) for name, text in reader.inside.items() if name.startswith("image-"))
        assert images <= limit or limit == 1_000  # the images next to the names are always kept
        sizes.append(images)
    assert sizes[0] > sizes[1] > sizes[2] >= sizes[3]


def test_with_many_trials_images_and_details_are_in_a_folder_next_to_the_page(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "IN_ONE_FILE", 5)
    folder = tmp_path / "report_files"
    folder.mkdir()
    (folder / "trial-99.js").write_text("of an earlier report")
    (folder / "mine.txt").write_text("not ours")
    reader = written(collection, tmp_path)
    assert not [name for name in reader.inside if name.startswith(("image-", "trial-"))]
    core = json.loads(reader.inside["core"])
    assert core["files"] == "report_files"
    assert {path.name for path in folder.glob("*.js")} == {f"trial-{number}.js" for number in range(8)}
    assert (folder / "mine.txt").exists()
    for trial in core["trials"]:
        assert Image.open(folder / f"{trial['thumbnail']}.jpg").format == "JPEG"
    script = (folder / "trial-3.js").read_text()
    call = re.fullmatch(r"receiveTrial\(3, (.*)\);\n", script)
    assert call is not None
    detail = json.loads(call[1])
    assert [Image.open(folder / f"{grid['image']}.jpg").size for grid in detail["grids"]] == [(70, 70)] * 5


def test_a_page_that_cannot_be_written_leaves_nothing_behind(collection: Collection, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write_page(collection, tmp_path / "file" / "report.html", now=NOW)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_tie_is_rounded_like_in_the_script_of_the_page():
    assert [page_content.number(value) for value in (88.25, 0.125, -2.625, 88.24)] == ["88.3", "0.125", "-2.63", "88.2"]


def test_grids_of_raw_weights_are_shown_at_the_same_steps_as_those_of_the_average(tmp_path: Path) -> None:
    trial = make_trial(tmp_path / "g", 0, grids=3)
    raw = make_trial(tmp_path / "raw", 1, grids=3).samples
    detail = json.loads(
        written(Collection(trials=(dataclasses.replace(trial, raw_samples=raw),)), tmp_path).inside["trial-0"]
    )
    assert [grid["step"] for grid in detail["raw"]] == [grid["step"] for grid in detail["grids"]]
    assert {grid["image"] for grid in detail["raw"]}.isdisjoint(grid["image"] for grid in detail["grids"])
    assert json.loads(written(Collection(trials=(trial,)), tmp_path).inside["trial-0"])["raw"] == []
