"""Write a report: the page and the tables of a collection, to a disk or into a sweep directory."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from dcgan_dist.errors import ConfigError, RunDirectoryError
from dcgan_dist.paths import expanded
from dcgan_dist.results.aggregate import Collection, collect
from dcgan_dist.results.page import write_page
from dcgan_dist.results.tables import write_tables
from dcgan_dist.results.thumbnails import Thumbnails
from dcgan_dist.storage.files import writing
from dcgan_dist.storage.folder import check_writable, folder_at

PAGE_NAME = "report.html"

_FILES = ("report", "table", "typed table", "curves")


def check_output(output: str | Path) -> Path:
    """Return the path of the page after checking that it can be written; its folder need not exist.

    Raises:
        ConfigError: the page cannot be written there.
    """
    path = expanded(output)
    if "://" in str(output):
        raise ConfigError(f"output is {str(output)!r}: the page is written to a disk; take a path, then copy the page")
    if not path.name.lower().endswith((".html", ".htm")) and not path.is_dir():
        raise ConfigError(f"output is {str(output)!r}: name a file that ends in .html; tables go to the same folder")
    if path.is_dir():
        raise ConfigError(f"output is {str(output)!r}, a folder: name a file in it, such as {path / PAGE_NAME}")
    try:
        check_writable(str(path.parent))
    except RunDirectoryError as error:
        raise ConfigError(f"output {str(output)!r} cannot be written: {error}") from error
    return path


def write_report(collection: Collection, output: Path, thumbnails: Thumbnails | None = None) -> dict[str, Path]:
    """Write the page and the tables, and return their paths by kind.

    Args:
        collection: the runs and sweeps to show.
        output: path of the page; the tables are written to the same folder.
        thumbnails: thumbnails of an earlier page, so that unchanged grids are not decoded again.

    Raises:
        InputError: a file cannot be written.
        StorageError: the disk is full.
    """
    with writing(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
    tables = write_tables(collection, output.parent)
    # The page is written last, so that the files that it links to exist.
    write_page(collection, output, now=time.time(), thumbnails=thumbnails or Thumbnails())
    return dict(zip(_FILES, (output, *tables), strict=True))


def write_report_of(location: str) -> dict[str, str]:
    """Write the report of a sweep into its own folder or URL, and return the locations of the files by kind.

    Raises:
        InputError: a file cannot be written.
        StorageError: the disk is full, or the storage fails.
    """
    where = folder_at(location)
    collection = collect([location])
    if where.path is not None:
        output = check_output(where.path / PAGE_NAME)
        return {name: str(path) for name, path in write_report(collection, output).items()}
    with TemporaryDirectory(prefix="dcgan_dist-report-") as folder:
        files = write_report(collection, Path(folder, PAGE_NAME))
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            where.write(path.relative_to(folder).as_posix(), path.read_bytes())
    root = location.rstrip("/")
    return {name: f"{root}/{path.relative_to(folder).as_posix()}" for name, path in files.items()}
