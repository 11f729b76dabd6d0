"""What `prepare` does with its settings: make shards of a source, or check a folder of them."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from dcgan_dist.config import IMAGE_SIZES, PrepareConfig
from dcgan_dist.data.cache import check_scheme, is_url, join_url, read_url, send
from dcgan_dist.data.manifest import MANIFEST_NAME, Manifest
from dcgan_dist.data.progress import ProgressLine
from dcgan_dist.data.shards import Recipe, check_same, find_finished, made_with, read_manifest, verify, write_shards
from dcgan_dist.data.sources import Source, open_source
from dcgan_dist.errors import ConfigError, DataError, DcganDistError, Unreachable

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
    only = tuple(part.strip() for part in (config.only or "").split(",") if part.strip())
    source = open_source(
        config.source, config.input, count=config.count, seed=config.seed, split=config.split, only=only
    )
    if is_url(config.output) and not config.output.startswith("file://"):
        _make_remote(config, source, config.output)
    else:
        _make(config, source, Path(config.output.removeprefix("file://")))


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
        _tell_finished(str(output), finished)
        return
    start = time.monotonic()
    manifest = _write(config, source, recipe, output)
    _tell_made(str(output), manifest, time.monotonic() - start)


def _make_remote(config: PrepareConfig, source: Source, url: str) -> None:
    """Make the shards here, and send them: the manifest last, so that a set that is not whole has none."""
    recipe = _recipe(config, source)
    check_scheme(url)
    place = join_url(url, MANIFEST_NAME)
    try:
        content: bytes | None = read_url(place)
    except Unreachable:
        raise
    except DataError:  # there is none yet
        content = None
    if content is not None:
        finished = Manifest.from_json(content, place)
        check_same(finished, made_with(source, recipe), url)
        _tell_finished(url, finished)
        return
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dcgan_dist-prepare-") as made:
        folder = Path(made, "shards")
        manifest = _write(config, source, recipe, folder)
        for shard in manifest.shards:
            send(folder / shard.file, join_url(url, shard.file))
            send(folder / shard.index, join_url(url, shard.index))
        send(folder / MANIFEST_NAME, place)
    _tell_made(url, manifest, time.monotonic() - start)


def _write(config: PrepareConfig, source: Source, recipe: Recipe, output: Path) -> Manifest:
    progress = ProgressLine(source.name)
    try:
        return write_shards(
            source, recipe, output, workers=config.workers or _cores(), max_bad=config.max_bad, report=progress
        )
    finally:
        progress.close()


def _tell_finished(output: str, manifest: Manifest) -> None:
    print(f"{output} has these {manifest.count:,} images already, in {len(manifest.shards)} shards: nothing to do")


def _tell_made(output: str, manifest: Manifest, seconds: float) -> None:
    if manifest.skipped:
        told = "; ".join(f"{entry['input']!r}: {entry['reason']}" for entry in manifest.skipped[:LISTED])
        more = len(manifest.skipped) - LISTED
        rest = f"; {more:,} more in its manifest.json" if more > 0 else ""
        print(f"left out {len(manifest.skipped):,} inputs ({told}{rest})", file=sys.stderr)
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
