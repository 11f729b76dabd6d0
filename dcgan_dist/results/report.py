"""Write a report, the page and the tables of what was collected, to the disk or into a sweep."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from dcgan_dist.errors import ConfigError, RunDirectoryError
from dcgan_dist.paths import expanded
from dcgan_dist.results.aggregate import Pile, collect
from dcgan_dist.results.page import write_page
from dcgan_dist.results.tables import write_tables
from dcgan_dist.results.thumbnails import Thumbnails
from dcgan_dist.storage.files import writing
from dcgan_dist.storage.folder import check_writable, folder_at

PAGE_NAME = "report.html"

_FILES = ("report", "table", "typed table", "curves")


def check_output(output: str | Path) -> Path:
    """Return the path of the page; its folder need not be there.

    Raises:
        ConfigError: it cannot be written.
    """
    path = expanded(output)
    if "://" in str(output):
        raise ConfigError(f"output is {str(output)!r}: the page is written to a disk; take a path, and copy it then")
    if not path.name.lower().endswith((".html", ".htm")) and not path.is_dir():
        raise ConfigError(f"output is {str(output)!r}: name a file that ends in .html; the tables go beside it")
    if path.is_dir():
        raise ConfigError(f"output is {str(output)!r}, a folder: name a file in it, such as {path / PAGE_NAME}")
    try:
        check_writable(str(path.parent))
    except RunDirectoryError as error:
        raise ConfigError(f"output {str(output)!r} cannot be written: {error}") from error
    return path


def write_report(pile: Pile, output: Path, thumbnails: Thumbnails | None = None) -> dict[str, Path]:
    """Write the page and the tables, and return their paths by what they are.

    Args:
        pile: what they show.
        output: path of the page; the tables go beside it.
        thumbnails: given again, grids that have not changed are not decoded again.

    Raises:
        InputError: a file cannot be written.
        StorageError: the disk is full.
    """
    with writing(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
    tables = write_tables(pile, output.parent)
    # The page comes last: what it links to is there then.
    write_page(pile, output, now=time.time(), thumbnails=thumbnails or Thumbnails())
    return dict(zip(_FILES, (output, *tables), strict=True))


def write_report_of(location: str) -> dict[str, str]:
    """Write the report of a sweep into its own folder or URL, and return where its files are, by what they are.

    Raises:
        InputError: they cannot be written.
        StorageError: the disk is full, or the storage fails.
    """
    where = folder_at(location)
    pile = collect([location])
    if where.path is not None:
        output = check_output(where.path / PAGE_NAME)
        return {name: str(path) for name, path in write_report(pile, output).items()}
    with TemporaryDirectory(prefix="dcgan_dist-report-") as folder:
        files = write_report(pile, Path(folder, PAGE_NAME))
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            where.write(path.relative_to(folder).as_posix(), path.read_bytes())
    root = location.rstrip("/")
    return {name: f"{root}/{path.relative_to(folder).as_posix()}" for name, path in files.items()}
