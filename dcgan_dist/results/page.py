"""The page that shows a pile of runs: one HTML file that needs nothing else, and runs nothing that it did not bring.

Whatever comes from a run directory is text: in the markup it is escaped by Jinja, in the data it is JSON in which no
character has a meaning to HTML, and the scripts put it on the page as text nodes. A content security policy admits the
page's own script and style, by their digests, and images that lie in the page; it admits no connection.
Of many trials, images and details lie in a folder beside the page and are loaded as they are shown.
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
from dcgan_dist.results.aggregate import Pile, Trial, read_image
from dcgan_dist.results.thumbnails import ROW, STYLES, Style, Thumbnail, Thumbnails, Unreadable, choose_steps
from dcgan_dist.storage.files import to_json, write_atomically, writing
from dcgan_dist.version import __version__

IN_ONE_FILE = 200
"""Most trials of a page that is one file."""
IMAGE_BYTES = 20_000_000
"""Most bytes of images in such a page."""
POINTS = 300
"""Most points of a curve; fewer where there are many trials."""

_BESIDE = Style(steps=5, cells=4, pixels=272, quality=56, figure=800)
_SCRIPTS = ("base.js", "charts.js", "leaderboard.js", "trial.js", "compare.js", "space.js", "start.js")
_OURS = re.compile(r"trial-\d+\.js|[0-9a-f]{16}-\d+-\d+x\d+q\d+\.jpg")


@dataclass(frozen=True)
class _Grid:
    """A grid, or a figure, of a trial: a thumbnail, or the reason why there is none."""

    step: int
    thumbnail: Thumbnail | None
    problem: str = ""

    def told(self) -> dict[str, Any]:
        shown = {"image": self.thumbnail.name} if self.thumbnail else {"problem": self.problem}
        return {"step": self.step, **shown}


@dataclass(frozen=True)
class _Pictures:
    """All grids and figures that are shown of a trial."""

    row: _Grid | None
    grids: tuple[_Grid, ...]
    raw: tuple[_Grid, ...]
    real: _Grid | None
    figures: tuple[_Grid, ...] = ()

    def __iter__(self) -> Iterator[Thumbnail]:
        for grid in (self.row, self.real, *self.grids, *self.raw, *self.figures):
            if grid is not None and grid.thumbnail is not None:
                yield grid.thumbnail


def write_page(pile: Pile, output: Path, *, now: float, thumbnails: Thumbnails | None = None) -> None:
    """Write the page, replaced whole or not at all.

    Args:
        pile: what it shows.
        output: of the page; above `IN_ONE_FILE` trials a folder `STEM_files` is written beside it.
        now: unix time that it bears.
        thumbnails: given again with a later page, what has not changed is not decoded again.

    Raises:
        StorageError: it cannot be written.
    """
    made = thumbnails if thumbnails is not None else Thumbnails()
    if len(pile.trials) <= IN_ONE_FILE:
        pictures = _fitting_pictures(pile.trials, made)
        points = POINTS if len(pile.trials) <= 40 else POINTS // 2
        details = [_detail(trial, shown, points) for trial, shown in zip(pile.trials, pictures, strict=True)]
        images = {one.name: one for shown in pictures for one in shown}
        write_atomically(output, _render(pile, pictures, now, None, details, images.values()).encode(), durable=False)
        return
    folder = output.with_name(f"{output.stem}_files")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    made.folder = folder
    pictures = _all_pictures(pile.trials, _BESIDE, made)
    kept = {f"{one.name}.jpg" for shown in pictures for one in shown}
    for index, (trial, shown) in enumerate(zip(pile.trials, pictures, strict=True)):
        script = f"receiveTrial({index}, {to_json(_detail(trial, shown, POINTS // 3))});\n"
        write_atomically(folder / f"trial-{index}.js", script.encode(), durable=False)
        kept.add(f"trial-{index}.js")
    write_atomically(output, _render(pile, pictures, now, folder.name, (), ()).encode(), durable=False)
    with writing(folder):
        for path in folder.iterdir():
            if _OURS.fullmatch(path.name) and path.name not in kept:
                path.unlink()


def _detail(trial: Trial, shown: _Pictures, points: int) -> dict[str, Any]:
    real = shown.real.told() if shown.real else None
    grids, raw, figures = ([grid.told() for grid in some] for some in (shown.grids, shown.raw, shown.figures))
    return page_content.detail(trial, grids, raw, real, figures, points)


# Images


def _fitting_pictures(trials: Sequence[Trial], made: Thumbnails) -> list[_Pictures]:
    """Return the grids in the most lavish style with which they fit into one file."""
    tasted = trials[:: max(1, len(trials) // 6)]
    for style in STYLES:
        share = len(trials) / max(1, len(tasted))
        if style is not STYLES[-1] and _bytes(_all_pictures(tasted, style, made)) * share > 1.3 * IMAGE_BYTES:
            continue
        pictures = _all_pictures(trials, style, made)
        if _bytes(pictures) <= IMAGE_BYTES:
            return pictures
    return [_Pictures(shown.row, (), (), None) for shown in pictures]


def _bytes(pictures: Sequence[_Pictures]) -> int:
    """Return how much the images take in a page, each once."""
    unique = {one.name: len(one.data) for shown in pictures for one in shown}
    return sum(size * 4 // 3 + 80 for size in unique.values())


def _all_pictures(trials: Sequence[Trial], style: Style, made: Thumbnails) -> list[_Pictures]:
    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(partial(_pictures, style=style, made=made), trials))


def _pictures(trial: Trial, style: Style, made: Thumbnails) -> _Pictures:
    size = trial.settings.get("model.image_size")
    cell = size if isinstance(size, int) and not isinstance(size, bool) and 0 < size <= 1024 else None
    places, raw = dict(trial.samples), dict(trial.raw_samples)
    chosen = choose_steps(list(places), style.steps)
    newest = max(places, default=None)
    return _Pictures(
        row=_grid(newest, places[newest], cell, ROW, made) if newest is not None else None,
        grids=tuple(_grid(step, places[step], cell, style, made) for step in chosen),
        raw=tuple(_grid(step, raw[step], cell, style, made) for step in chosen if step in raw),
        real=_grid(0, trial.real, cell, style, made) if trial.real else None,
        figures=tuple(
            _grid(figure.step or 0, place, None, style.of_figures, made)
            for figure, place in trial.figures
            if style.figure
        ),
    )


def _grid(step: int, location: str, cell: int | None, style: Style, made: Thumbnails) -> _Grid:
    try:
        return _Grid(step, made.get(_version(location), partial(read_image, location), cell, style))
    except Unreadable as error:
        return _Grid(step, None, f"this picture cannot be shown: {error}")


def _version(location: str) -> Hashable:
    """Return what changes when a file does, and is the same for all links to it; of a URL its name alone.

    A step's grid is written once.
    """
    try:
        found = os.stat(location.removeprefix("file://"))
    except (OSError, ValueError):
        return location
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


# The page


def safe_json(value: object) -> Markup:
    """Return JSON that can stand in a script element: no character of it means anything to HTML or JavaScript."""
    text = to_json(value)  # ASCII: U+2028 and the like are escaped already
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _source(name: str) -> str:
    return (files("dcgan_dist.results") / "templates" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Return the digest by which a content security policy admits a script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _policy(script: str, style: str, folder: str | None) -> str:
    beside = " 'self' file:" if folder else ""
    return (
        f"default-src 'none'; script-src {_digest(script)}{beside}; style-src {_digest(style)}; "
        f"img-src data:{beside}; base-uri 'none'; form-action 'none'"
    )


def _render(
    pile: Pile,
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
        title=_title(pile),
        policy=_policy(script, style, folder),
        script=Markup(script),
        style=Markup(style),
        sentences=page_content.summary(pile),
        pile=pile,
        core=safe_json(page_content.core(pile, folder, rows)),
        thumbnails=[image for image in packed if image[0] in first],
        images=[image for image in packed if image[0] not in first],
        details=[safe_json(one) for one in details],
        representation=page_content.representation(pile),
        budgets=page_content.budgets(pile),
        scaling=bool(page_content.scaling(pile)),
        has_hero=any(trial.samples for trial in pile.trials),
        has_space=any(sweep.trials for sweep in pile.sweeps),
        written=time.strftime("%-d %B %Y, %H:%M UTC", time.gmtime(now)),
        version=__version__,
    )


def _whole_figures(text: str) -> Markup:
    """Return a text as markup in which no line breaks inside of a figure such as 2e-4."""
    return Markup(re.sub(r"[0-9.]+e-[0-9]+", r'<span class="nowrap">\g<0></span>', str(escape(text))))


def _title(pile: Pile) -> str:
    singles = sum(trial.sweep is None for trial in pile.trials)
    if len(pile.sweeps) == 1 and not singles:
        return page_content.short(pile.sweeps[0].name)
    if len(pile.trials) == 1:
        return page_content.short(pile.trials[0].key)
    return page_content.count(len(pile.trials), "DCGAN trial")
