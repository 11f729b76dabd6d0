"""Settings of `report` and `compare`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta

from dcgan_dist.config import MOST, NonNegativeInt
from dcgan_dist.errors import ConfigError
from dcgan_dist.settings import Group, like


@dataclass(frozen=True, kw_only=True)
class ResultsConfig(Group):
    """Settings of all commands that show runs and sweeps."""

    directories: tuple[str, ...] = ()
    """List of the folders and URLs with runs and sweeps, such as `runs` or `s3://bucket/runs`."""
    cache: str | None = None
    """Folder in which what was read is kept for next time. Left out: $DCGAN_DIST_CACHE, else ~/.cache/dcgan_dist."""

    @property
    def places(self) -> list[str]:
        """The directories.

        Raises:
            ConfigError: there are none.
        """
        if not self.directories:
            raise ConfigError(
                "no directory given: name those with runs and sweeps, such as `runs` or `s3://bucket/runs`"
            )
        return list(self.directories)


@dataclass(frozen=True, kw_only=True)
class ReportConfig(ResultsConfig):
    """Settings of `report`."""

    output: Annotated[str, like(r"[\s\S]+", "a file, such as report.html")] = "report.html"
    """The page; trials.csv, trials.parquet, metrics.parquet and, for many trials, report_files/ go beside it."""
    watch: Annotated[float, Meta(ge=1, le=MOST)] | None = None
    """Look again every so many seconds (`--watch` alone: 10) until all that was found has ended."""

    ALONE: ClassVar[Mapping[str, str]] = {"watch": "10"}


@dataclass(frozen=True, kw_only=True)
class CompareConfig(ResultsConfig):
    """Settings of `compare`."""

    sort: str | None = None
    """Column of trials.csv to sort by, such as final.loss_d; with a - before it, falling. Left out, the objective, best
    first, or a score."""
    rows: NonNegativeInt = 50
    """Most trials that are shown; 0 for all."""
