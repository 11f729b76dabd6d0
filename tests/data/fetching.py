"""Downloads of single files, for tests."""

from pathlib import Path

from dcgan_dist.storage.cache import open_copy


def fetch(url: str, target: Path, cache: Path, **known) -> Path:
    """Download a file into a cache, if it is not there yet, and return its path; `known` is passed to `open_copy`."""
    with open_copy(url, target, cache, **known) as copy:
        return Path(copy.name)
