"""What `prepare` does with its settings: make shards of a source, or check a folder of them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from dcgan_dist.config import IMAGE_SIZES, PrepareConfig
from dcgan_dist.data.progress import ProgressLine
from dcgan_dist.data.shards import Recipe, find_finished, made_with, read_manifest, verify, write_shards
from dcgan_dist.data.sources import Source, open_source
from dcgan_dist.errors import ConfigError, DataError, DcganDistError

DEFAULT_IMAGE_SIZE = 64
LISTED = 5


def prepare(config: PrepareConfig) -> None:
    """Make the shards that `config` asks for, or check those of `config.verify`, and print what came of it.

    Raises:
        ConfigError, DataError: a setting, the source or the output cannot be used.
        DcganDistError: shards that were checked are damaged.
    """
    if config.verify is not None:
        _check(Path(config.verify), config.workers or _cores())
        return
    if config.source is None:
        raise ConfigError("source is missing: give --source rooms, folder, cifar10 or mnist (--help explains them)")
    if config.output is None:
        raise ConfigError("output is missing: give --output FOLDER for the shards")
    if "://" in config.output:
        raise ConfigError(f"output is {config.output!r}: shards are made in a folder; copy that to object storage whole")
    only = tuple(part.strip() for part in (config.only or "").split(",") if part.strip())
    source = open_source(
        config.source, config.input, count=config.count, seed=config.seed, split=config.split, only=only
    )
    _make(config, source, Path(config.output))


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _recipe(config: PrepareConfig, source: Source) -> Recipe:
    own = source.image_size if source.image_size in IMAGE_SIZES else DEFAULT_IMAGE_SIZE
    return Recipe(
        image_size=config.image_size or own or DEFAULT_IMAGE_SIZE,
        channels=1 if config.grey else source.channels,
        encoding=config.encoding,
        shard_size=config.shard_size,
        name=config.name or source.name,
        seed=config.seed,
        count=config.count,
    )


def _make(config: PrepareConfig, source: Source, output: Path) -> None:
    recipe = _recipe(config, source)
    finished = find_finished(output.expanduser(), made_with(source, recipe))
    if finished is not None:
        print(f"{output} has these {finished.count:,} images already, in {len(finished.shards)} shards: nothing to do")
        return
    progress = ProgressLine(source.name)
    start = time.monotonic()
    try:
        manifest = write_shards(
            source,
            recipe,
            output,
            workers=config.workers or _cores(),
            max_bad=config.max_bad,
            report=progress,
        )
    finally:
        progress.close()
    if manifest.skipped:
        told = "; ".join(f"{entry['input']!r}: {entry['reason']}" for entry in manifest.skipped[:LISTED])
        more = len(manifest.skipped) - LISTED
        rest = f"; {more:,} more in its manifest.json" if more > 0 else ""
        print(f"left out {len(manifest.skipped):,} inputs ({told}{rest})", file=sys.stderr)
    seconds = time.monotonic() - start
    side, colour = manifest.image_size, "grey" if manifest.channels == 1 else "colour"
    print(
        f"{output}: {manifest.count:,} {colour} images of {side}x{side}, {len(manifest.classes)} classes, "
        f"in {len(manifest.shards)} shards, made in {seconds:.1f} s"
    )


def _check(folder: Path, workers: int) -> None:
    if not folder.is_dir():
        raise DataError(f"verify is {str(folder)!r}: there is no such folder")
    damage = verify(folder, workers)
    if damage:
        for line in damage:
            print(line)
        raise DcganDistError(f"{folder} is damaged ({len(damage)} findings): delete it and run prepare again")
    manifest = read_manifest(folder)
    print(f"{folder}: {manifest.count:,} images in {len(manifest.shards)} shards are whole")
