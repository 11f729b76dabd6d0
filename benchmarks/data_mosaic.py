"""mosaicml-streaming in its own environment, as a baseline: it needs other versions than this package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.measuring import Way
from dcgan_dist.data.dataset import Dataset
from dcgan_dist.errors import DataError
from dcgan_dist.storage.cache import cache_directory

PACKAGE = "mosaicml-streaming"
_SCRIPT = Path(__file__).with_name("data_mosaic_peer.py")
_FREE = 12 << 30  # bytes that pip needs during the installation
_MOST_SECONDS = 1200


@dataclass(frozen=True)
class MosaicPeer:
    """A process that reads the same images with mosaicml-streaming."""

    version: str
    stack: str
    _input: IO[str]
    _output: IO[str]

    def reading(self, encoding: str) -> Way:
        """Return a function that makes it read an epoch of the images as `jpg` or `raw`."""

        def read() -> int:
            self._input.write(f"{encoding}\n")
            self._input.flush()
            answer = self._output.readline()
            if not answer:
                raise DataError(f"{PACKAGE} ended in the middle of an epoch")
            return int(answer)

        return read


def environment(*, make: bool) -> Path:
    """Return the Python of the environment, which is kept in the cache; create it first if `make` is set.

    Raises:
        DataError: it does not exist, and `make` is not set or it cannot be created.
    """
    folder = cache_directory(None) / "benchmarks" / PACKAGE
    python, finished = folder / "bin" / "python", folder / "finished"
    if finished.exists():
        return python
    if not make:
        raise DataError(f"it has no environment yet: `data --mosaic` makes one (6 GB, in {str(folder)!r})")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder.parent).free < _FREE:
        raise DataError(f"its environment needs {_FREE >> 30} GiB at {str(folder.parent)!r}")
    print(
        f"making an environment for {PACKAGE} in {str(folder)!r} (minutes, 6 GB; delete it when done)", file=sys.stderr
    )
    venv.EnvBuilder(with_pip=True, clear=True).create(folder)
    try:
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", PACKAGE],
            check=True, capture_output=True, text=True, timeout=_MOST_SECONDS,
        )  # fmt: skip
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        shutil.rmtree(folder)
        last = str(error.stderr or error).strip().splitlines()[-1:]
        raise DataError(f"its environment cannot be made ({' '.join(last)})") from error
    finished.touch()
    return python


@contextmanager
def mosaic_peer(sets: Mapping[str, Dataset], scratch: Path, batch: int, *, make: bool) -> Iterator[MosaicPeer]:
    """Start a process that has the same images as MDS shards, on the cores of this one.

    Raises:
        DataError: it cannot run here.
    """
    python = environment(make=make)
    if any(dataset.channels != 3 for dataset in sets.values()):
        raise DataError("it is measured on colour images")
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            # -P: otherwise streaming.py in the script's folder would be imported as the package `streaming`.
            [python, "-P", _SCRIPT, str(scratch), str(batch)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            versions = process.stdout.readline()
            if not versions:
                process.wait()
                errors.seek(0)
                last = errors.read().strip().splitlines()[-1:]
                raise DataError(f"{PACKAGE} cannot run ({' '.join(last)})")
            about = json.loads(versions)
            version = about.pop(PACKAGE)
            stack = ", ".join(f"{name} {number}" for name, number in about.items())
            yield MosaicPeer(version, stack, process.stdin, process.stdout)
        finally:
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
