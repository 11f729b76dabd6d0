"""The page that shows a collection of runs: one self-contained HTML file, which runs no code but its own.

Everything that comes from a run directory is treated as text: in the markup it is escaped by Jinja, in the data it is
JSON without characters that have a meaning in HTML, and the scripts insert it as text nodes. A content security policy
allows the page's own script and style, by their digests, and images inside the page; it allows no connections.
With many trials, images and details are in a folder next to the page, and are loaded when they are shown.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from dcgan_dist.parallel import usable_cores
from dcgan_dist.results import page_content
from dcgan_dist.results.aggregate import Collection, Trial, read_image
from dcgan_dist.results.thumbnails import ROW, STYLES, Style, Thumbnail, Thumbnails, Unreadable, choose_steps
from dcgan_dist.storage.files import to_json, write_atomically, writing
from dcgan_dist.version import __version__

IN_ONE_FILE = 200
"""Trials up to which the page is one file."""
IMAGE_BYTES = 20_000_000
"""Bytes of images that such a page has, at most."""
POINTS = 300
"""Points of a curve, at most; fewer if there are many trials."""

_IN_FOLDER = Style(steps=5, cells=4, pixels=272, quality=56, figure=800)
_SCRIPTS = ("base.js", "charts.js", "leaderboard.js", "trial.js", "compare.js", "space.js", "start.js")
_OURS = re.compile(r"trial-\d+\.js|[0-9a-f]{16}-\d+-\d+x\d+q\d+\.jpg")


@dataclass(frozen=True)
class _Grid:
    """A sample grid or a figure of a trial: its thumbnail, or the reason why there is none."""

    step: int
    thumbnail: Thumbnail | None
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        shown = {"image": self.thumbnail.name} if self.thumbnail else {"problem": self.problem}
        return {"step": self.step, **shown}


@dataclass(frozen=True)
class _Pictures:
    """All grids and figures of a trial that the page shows."""

    row: _Grid | None
    grids: tuple[_Grid, ...]
    raw: tuple[_Grid, ...]
    real: _Grid | None
    figures: tuple[_Grid, ...] = ()

    def __iter__(self) -> Iterator[Thumbnail]:
        for grid in (self.row, self.real, *self.grids, *self.raw, *self.figures):
            if grid is not None and grid.thumbnail is not None:
                yield grid.thumbnail


def write_page(collection: Collection, output: Path, *, now: float, thumbnails: Thumbnails | None = None) -> None:
    """Write the page atomically.

    Args:
        collection: the runs and sweeps to show.
        output: path of the page; with more than `IN_ONE_FILE` trials, a folder `STEM_files` is written next to it.
        now: unix time that the page states as its date.
        thumbnails: thumbnails of an earlier page, so that unchanged images are not decoded again.

    Raises:
        StorageError: a file cannot be written.
    """
    made = thumbnails if thumbnails is not None else Thumbnails()
    if len(collection.trials) <= IN_ONE_FILE:
        pictures = _fitting_pictures(collection.trials, made)
        points = POINTS if len(collection.trials) <= 40 else POINTS // 2
        details = [_detail(trial, shown, points) for trial, shown in zip(collection.trials, pictures, strict=True)]
        images = {one.name: one for shown in pictures for one in shown}
        write_atomically(
            output, _render(collection, pictures, now, None, details, images.values()).encode(), durable=False
        )
        return
    folder = output.with_name(f"{output.stem}_files")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    made.folder = folder
    pictures = _all_pictures(collection.trials, _IN_FOLDER, made)
    kept = {f"{one.name}.jpg" for shown in pictures for one in shown}
    for index, (trial, shown) in enumerate(zip(collection.trials, pictures, strict=True)):
        script = f"receiveTrial({index}, {to_json(_detail(trial, shown, POINTS // 3))});\n"
        write_atomically(folder / f"trial-{index}.js", script.encode(), durable=False)
        kept.add(f"trial-{index}.js")
    # The page after its files, and old files only after the new page: at any time the page finds what it loads.
    write_atomically(output, _render(collection, pictures, now, folder.name, (), ()).encode(), durable=False)
    with writing(folder):
        for path in folder.iterdir():
            if _OURS.fullmatch(path.name) and path.name not in kept:
                path.unlink()


def _detail(trial: Trial, shown: _Pictures, points: int) -> dict[str, Any]:
    real = shown.real.as_json() if shown.real else None
    grids, raw, figures = ([grid.as_json() for grid in some] for some in (shown.grids, shown.raw, shown.figures))
    return page_content.detail(trial, grids, raw, real, figures, points)


# Images


def _fitting_pictures(trials: Sequence[Trial], made: Thumbnails) -> list[_Pictures]:
    """Return the images in the largest style with which they fit into one file."""
    some = trials[:: max(1, len(trials) // 6)]
    for style in STYLES:
        share = len(trials) / max(1, len(some))
        # Estimate from a few trials first, because making the images of all trials takes long.
        if style is not STYLES[-1] and _bytes(_all_pictures(some, style, made)) * share > 1.3 * IMAGE_BYTES:
            continue
        pictures = _all_pictures(trials, style, made)
        if _bytes(pictures) <= IMAGE_BYTES:
            return pictures
    return [_Pictures(shown.row, (), (), None) for shown in pictures]


def _bytes(pictures: Sequence[_Pictures]) -> int:
    """Return the bytes that the images take in a page, where each is stored once, in base64."""
    unique = {one.name: len(one.data) for shown in pictures for one in shown}
    return sum(size * 4 // 3 + 80 for size in unique.values())


def _all_pictures(trials: Sequence[Trial], style: Style, made: Thumbnails) -> list[_Pictures]:
    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(partial(_pictures, style=style, made=made), trials))


def _pictures(trial: Trial, style: Style, made: Thumbnails) -> _Pictures:
    size = trial.settings.get("model.image_size")
    cell = size if isinstance(size, int) and not isinstance(size, bool) and 0 < size <= 1024 else None
    grids, raw = dict(trial.samples), dict(trial.raw_samples)
    chosen = choose_steps(list(grids), style.steps)
    newest = max(grids, default=None)
    return _Pictures(
        row=_grid(newest, grids[newest], cell, ROW, made) if newest is not None else None,
        grids=tuple(_grid(step, grids[step], cell, style, made) for step in chosen),
        raw=tuple(_grid(step, raw[step], cell, style, made) for step in chosen if step in raw),
        real=_grid(0, trial.real, cell, style, made) if trial.real else None,
        figures=tuple(
            _grid(figure.step or 0, location, None, style.of_figures, made)
            for figure, location in trial.figures
            if style.figure
        ),
    )


def _grid(step: int, location: str, cell: int | None, style: Style, made: Thumbnails) -> _Grid:
    try:
        return _Grid(step, made.get(_version(location), partial(read_image, location), cell, style))
    except Unreadable as error:
        return _Grid(step, None, f"this picture cannot be shown: {error}")


def _version(location: str) -> Hashable:
    """Return a key that changes when a file changes, and is the same for all links to it; for a URL, the URL itself.

    The URL is enough, because the grid of a step is written only once.
    """
    try:
        found = os.stat(location.removeprefix("file://"))
    except (OSError, ValueError):
        return location
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


# The page


def safe_json(value: object) -> Markup:
    """Return JSON for a script element, without characters that have a meaning in HTML or JavaScript."""
    text = to_json(value)  # ASCII: U+2028 and the like are already escaped
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _source(name: str) -> str:
    return (files("dcgan_dist.results") / "templates" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Return the digest by which a content security policy allows a script or a style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _policy(script: str, style: str, folder: str | None) -> str:
    from_folder = " 'self' file:" if folder else ""
    return (
        f"default-src 'none'; script-src {_digest(script)}{from_folder}; style-src {_digest(style)}; "
        f"img-src data:{from_folder}; base-uri 'none'; form-action 'none'"
    )


def _render(
    collection: Collection,
    pictures: Sequence[_Pictures],
    now: float,
    folder: str | None,
    details: Sequence[Mapping[str, Any]],
    images: Any,
) -> str:
    script = "\n" + '"use strict";\n' + "\n".join(_source(name) for name in _SCRIPTS)
    style = "\n" + _source("report.css")
    rows = [
        (shown.row.thumbnail.name, shown.row.step) if shown.row and shown.row.thumbnail else None for shown in pictures
    ]
    first = {row[0] for row in rows if row}
    packed = [(one.name, f"data:image/jpeg;base64,{base64.b64encode(one.data).decode()}") for one in images]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dcgan_dist.results"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": page_content.short, "figures": _whole_figures}
    return environment.get_template("report.html").render(
        title=_title(collection),
        policy=_policy(script, style, folder),
        script=Markup(script),
        style=Markup(style),
        sentences=page_content.summary(collection),
        collection=collection,
        core=safe_json(page_content.core(collection, folder, rows)),
        thumbnails=[image for image in packed if image[0] in first],
        images=[image for image in packed if image[0] not in first],
        details=[safe_json(one) for one in details],
        representation=page_content.representation(collection),
        budgets=page_content.budgets(collection),
        scaling=bool(page_content.scaling(collection)),
        has_hero=any(trial.samples for trial in collection.trials),
        has_space=any(sweep.trials for sweep in collection.sweeps),
        written=time.strftime("%-d %B %Y, %H:%M UTC", time.gmtime(now)),
        version=__version__,
    )


def _whole_figures(text: str) -> Markup:
    """Return a text as markup in which numbers such as 2e-4 are not broken across lines."""
    return Markup(re.sub(r"[0-9.]+e-[0-9]+", r'<span class="nowrap">\g<0></span>', str(escape(text))))


def _title(collection: Collection) -> str:
    singles = sum(trial.sweep is None for trial in collection.trials)
    if len(collection.sweeps) == 1 and not singles:
        return page_content.short(collection.sweeps[0].name)
    if len(collection.trials) == 1:
        return page_content.short(collection.trials[0].key)
    return page_content.count(len(collection.trials), "DCGAN trial")
