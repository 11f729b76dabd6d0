"""Paths that mean the same in every process of a run, whatever its working directory is."""

from __future__ import annotations

import re
from pathlib import Path

from dcgan_dist.paths import expanded

# Ray unpacks the `--working-dir` of a job below a folder with this name, and may remove it later.
JOB_FOLDER = "working_dir_files"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def absolute_input(location: str) -> str:
    """Return a location to read from: a path is made absolute, `rooms:N` and URLs are unchanged."""
    return location if _SCHEME.match(location) else str(expanded(location).absolute())


def lasting_output(location: str) -> str:
    """Return a location to write to: in a Ray job `absolute_output`, elsewhere unchanged."""
    return absolute_output(location) if JOB_FOLDER in Path.cwd().parts else location


def absolute_output(location: str) -> str:
    """Return a location to write to: a path is made absolute, URLs are unchanged.

    A relative path starts at the working directory. In a Ray job, whose working directory is removed later, it starts
    at the home folder on the host of the job's driver.
    """
    if _SCHEME.match(location):
        return location
    here = Path.cwd()
    return str((expanded("~") if JOB_FOLDER in here.parts else here) / expanded(location))


def is_url(location: str) -> bool:
    """Return whether the location is a URL (`s3://...`), which means the same on all hosts."""
    return "://" in location
