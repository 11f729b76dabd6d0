"""The work of `prepare`: write the shards of a source, or check a set of shards."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from dcgan_dist.config import IMAGE_SIZES
from dcgan_dist.data.colours import Remarks
from dcgan_dist.data.downloads import download
from dcgan_dist.data.manifest import Manifest
from dcgan_dist.data.progress import ProgressLine
from dcgan_dist.data.repair import repair_shards
from dcgan_dist.data.settings import PrepareConfig
from dcgan_dist.data.shards import Recipe, find_finished, made_with, write_shards
from dcgan_dist.data.sources import Source, open_source
from dcgan_dist.data.verification import verify
from dcgan_dist.errors import ConfigError, DcganDistError
from dcgan_dist.parallel import TaskPool
from dcgan_dist.printing import tell
from dcgan_dist.storage.cache import cache_directory

DEFAULT_IMAGE_SIZE = 64
LISTED = 5
DARK = 1 << 15  # no 16-bit picture of ordinary light stays below half of its range


def prepare(config: PrepareConfig, pool: TaskPool) -> None:
    """Write the shards that `config` describes, or check those of `config.verify`, and print the result.

    Raises:
        ConfigError, DataError: a setting, the source or the output cannot be used.
        StorageError: the disk is full or fails.
        DcganDistError: the checked shards are damaged.
    """
    if config.verify is not None:
        _check(config.verify, pool)
        return
    if config.source is None:
        raise ConfigError("source is missing: give --source rooms, lsun, folder, … (--help explains them all)")
    if config.output is None:
        raise ConfigError("output is missing: give --output FOLDER for the shards")
    source = open_source(
        config.source,
        _input(config, config.source),
        count=config.count,
        seed=config.seed,
        split=config.split,
        only=tuple(filter(None, config.only)),
        image_member=config.image_member,
    )
    if config.labels != "last":
        source = replace(source, label_folder=config.labels, identity=source.identity | {"labels": config.labels})
    _make(config, source, config.output, pool)


def _input(config: PrepareConfig, kind: str) -> str | None:
    if not config.download:
        return config.input
    if config.input is not None:
        raise ConfigError(f"input is {config.input!r} and download is true: give one of them")
    return str(download(kind, config.split, cache_directory()))


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
        fit=config.fit,
        white_value=config.white_value,
    )


def _make(config: PrepareConfig, source: Source, output: str, pool: TaskPool) -> None:
    recipe = _recipe(config, source)
    repaired = repair_shards(source, recipe, output, pool)
    if repaired:
        tell(f"{output}: made {len(repaired)} missing or cut shards again ({', '.join(repaired[:LISTED])})")
    finished = find_finished(output, made_with(source, recipe))
    if finished is not None:
        tell(
            f"{output} has these {finished.count:,} images already, in {len(finished.shards)} shards of the right size;"
            " nothing to do (--verify compares their contents)"
        )
        return
    start = time.monotonic()
    progress = ProgressLine(source.name)
    try:
        manifest = write_shards(source, recipe, output, pool=pool, max_bad=config.max_bad, report=progress)
    finally:
        progress.close()
    _print_result(output, manifest, source, time.monotonic() - start)


def _print_result(output: str, manifest: Manifest, source: Source, seconds: float) -> None:
    for line in _warnings(manifest):
        tell(line, to_stderr=True)
    side, colour = manifest.image_size, "grey" if manifest.channels == 1 else "colour"
    tell(
        f"{output}: {manifest.count:,} {colour} images of {side}x{side}, {len(manifest.classes)} classes, "
        f"in {len(manifest.shards)} shards, made in {seconds:.1f} s; {_left_out(manifest, source)}; "
        f"{_cut_off(manifest)}"
    )


def _left_out(manifest: Manifest, source: Source) -> str:
    """Return the number of inputs that were left out, by reason."""
    reasons = Counter(entry["reason"].partition(" (")[0] for entry in manifest.skipped)
    if source.ignored:
        ends = ", ".join(f"{number:,} {end}" for end, number in source.ignored.most_common(LISTED))
        reasons[f"not images by their names: {ends}"] = source.ignored.total()
    parts = [f"{number:,} ({reason})" for reason, number in reasons.most_common(LISTED)]
    more = reasons.total() - sum(number for _, number in reasons.most_common(LISTED))
    if not parts:
        return "nothing left out"
    return f"left out {', '.join(parts)}" + (f" and {more:,} more" if more else "")


def _cut_off(manifest: Manifest) -> str:
    """Return the share of the images that was cut off to make them square."""
    share = manifest.remarks.get("cut", 0) / 1_000_000 / manifest.count
    if not share:
        return "nothing cut off"
    return f"{share:.1%} of each cut off on average to make it square (--fit pad or stretch keeps all)"


def _warnings(manifest: Manifest) -> Iterator[str]:
    """Yield one line for each thing that a person should check."""
    if manifest.skipped:
        named = "; ".join(f"{entry['input']!r}: {entry['reason']}" for entry in manifest.skipped[:LISTED])
        more = len(manifest.skipped) - LISTED
        rest = f"; {more:,} more in its manifest.json" if more > 0 else ""
        yield f"left out {len(manifest.skipped):,} inputs ({named}{rest})"
    remarks = Remarks(**manifest.remarks)
    if remarks.deep and manifest.made_with.get("white_value") is None and remarks.highest < DARK:
        bits = remarks.highest.bit_length()
        yield (
            f"{remarks.deep:,} images of 16 bits are dark: their highest value is {remarks.highest:,} of 65,535; "
            f"--white-value {(1 << bits) - 1} makes {(1 << bits) - 1:,} white ({bits} bits)"
        )
    if remarks.over:
        yield (
            f"{remarks.over:,} images have values above white_value, up to {remarks.highest:,}, which became white too"
        )
    if remarks.profiles:
        yield f"{remarks.profiles:,} images have a colour profile that cannot be used: their colours are taken as sRGB"
    names = manifest.classes
    if all(re.fullmatch("[0-9a-f]{1,2}", name) for name in names) and not all(map(str.isdecimal, names)):
        shown = ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")
        yield (
            f"the classes ({shown}) look like the folders of a hash: --labels none leaves them out, --labels first "
            "takes the first folder's name"
        )


def _check(location: str, pool: TaskPool) -> None:
    checked = verify(location, pool)
    if checked.findings:
        for line in checked.findings:
            tell(line)
        repair = "delete only these files and run the same prepare again, which makes them again"
        way_out = repair if checked.has_manifest else "make or copy it again"
        raise DcganDistError(f"{location} is damaged ({len(checked.findings)} findings): {way_out}")
    known = "are intact" if checked.has_manifest else "can be read; without a manifest, nothing more can be checked"
    tell(f"{location}: {checked.images:,} images in {checked.shards} shards {known}")
