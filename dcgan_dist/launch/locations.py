"""Paths that mean the same in every process of a run, whichever folder it was started in."""

from __future__ import annotations

import re
from pathlib import Path

from dcgan_dist.paths import expanded

# Ray unpacks `--working-dir` of a job below a folder of this name: one per version of the code, removed at will.
JOB_FOLDER = "working_dir_files"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def absolute_input(location: str) -> str:
    """Return where to read from: a path made absolute, `rooms:N` and URLs as they are."""
    return location if _SCHEME.match(location) else str(expanded(location).absolute())


def lasting_output(location: str) -> str:
    """Return where to write to: in a Ray job as `absolute_output` does, elsewhere as it is."""
    return absolute_output(location) if JOB_FOLDER in Path.cwd().parts else location


def absolute_output(location: str) -> str:
    """Return where to write to: a path made absolute, URLs as they are.

    A relative path counts from the current folder; in a Ray job, whose current folder does not last, from the home
    folder of the host that the job's driver runs on.
    """
    if _SCHEME.match(location):
        return location
    here = Path.cwd()
    return str((expanded("~") if JOB_FOLDER in here.parts else here) / expanded(location))


def is_url(location: str) -> bool:
    """Whether the location is a URL (`s3://...`), which all hosts see alike."""
    return "://" in location
