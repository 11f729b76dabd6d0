"""Write sets of shards; `manifest.py` describes their format.

::

    source ─ parts() ──────> one task per shard: read, decode, encode, write     (any process reads its part)
           └ items() ─> spool (spool.py) ─> one task per shard: copy, write      (readable from the beginning only)
    work in .OUTPUT.unfinished (local) or at the URL ─> manifest.json last ─> rename the folder (local) ─> clear up

The same source and recipe give the same bytes with any number of workers, and however often the work was interrupted.

On a local disk, the shards are written in a folder with another name, which is renamed when all are complete: a folder
with the output's name is complete. On remote storage, the manifest is written last. An interrupted, failed or killed
run leaves its finished shards, and the next run with the same settings continues from them.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from dcgan_dist.data.colours import Remarks
from dcgan_dist.data.images import JPEG_QUALITY
from dcgan_dist.data.manifest import MANIFEST_NAME, RECORD, Manifest, Shard
from dcgan_dist.data.shard_writer import PartSamples, Recipe, Samples, ShardTask, make_shard, record_name
from dcgan_dist.data.sources import Folders, Part, Source, classes_of, nothing_found, single_class_of
from dcgan_dist.data.spool import JOURNAL_NAME, SPOOL_NAME, Spool, fill_spool
from dcgan_dist.errors import DataError, DcganDistError, InputError, StorageError, Unreachable
from dcgan_dist.parallel import LocalPool, TaskPool, usable_cores
from dcgan_dist.storage.cache import cache_directory
from dcgan_dist.storage.files import PART, is_hidden, sync_path
from dcgan_dist.storage.folder import Folder, LocalFolder, folder_at
from dcgan_dist.storage.locks import lock
from dcgan_dist.storage.remote import shown

__all__ = [
    "Recipe",
    "Report",
    "check_same",
    "find_finished",
    "lock_folder",
    "made_with",
    "read_manifest",
    "write_shards",
]

Report = Callable[[int, float, int, int], None]
"""Called with the number of images done, the share of the whole (in [0, 1]), the number of unreadable inputs, and the
number of images that a previous run had done."""

SETTINGS_NAME = "settings.json"
# Increased when the bytes written for the same recipe change.
_REVISION = 2
# Settings that older sets do not have, with the values that these were made with.
_LATER = {"fit": "crop", "white_value": None}
_FILLING = 0.1  # share of the work that goes into filling shards from a spool


def made_with(source: Source, recipe: Recipe) -> dict[str, Any]:
    """Return the settings that the manifest records for a source and a recipe; equal settings mean equal shards."""
    settings: dict[str, Any] = {"revision": _REVISION, "source": source.name, **source.identity}
    if source.only:
        settings["only"] = ",".join(sorted(source.only))
    settings |= {key: value for key, value in asdict(recipe).items() if key not in _LATER or value != _LATER[key]}
    settings["count"] = source.count if recipe.count is None else recipe.count
    if recipe.encoding == "jpg":
        settings["jpeg_quality"] = JPEG_QUALITY
    return settings


def read_manifest(location: str | Path) -> Manifest:
    """Return the manifest of a folder or URL of shards.

    Raises:
        DataError: there is none, or it cannot be read.
        Unreachable: the storage was not reached.
    """
    folder = folder_at(location)
    if MANIFEST_NAME not in folder.names():
        raise DataError(f"{str(location)!r} holds no finished shards: it has no {MANIFEST_NAME}")
    return Manifest.from_json(folder.read(MANIFEST_NAME), f"{location}/{MANIFEST_NAME}")


def check_same(manifest: Manifest, wanted: dict[str, Any], where: str) -> None:
    """Check that the shards at `where` were made with the settings `wanted`.

    Raises:
        DataError: they were not; the message names the differences.
    """
    differing = _differing(manifest.made_with, wanted)
    if differing:
        raise DataError(f"output {where!r} holds shards made with other settings ({differing}): name another folder")


def _differing(has: dict[str, Any], wanted: dict[str, Any]) -> str:
    keys = [key for key in (has | wanted) if has.get(key) != wanted.get(key)]
    if keys == ["input_digest"]:
        return "the content of the input has changed"
    return "; ".join(f"{key} there {has.get(key)!r}, now {wanted.get(key)!r}" for key in keys)


def find_finished(output: str | Path, wanted: dict[str, Any]) -> Manifest | None:
    """Return the manifest of the shards at `output`, made with `wanted`; None if they are not finished.

    Raises:
        DataError: the folder has other files, shards made with other settings, or incomplete shards.
        Unreachable: the storage was not reached.
    """
    location, where = folder_at(output), str(output)
    if location.path is not None and location.path.exists() and not location.path.is_dir():
        raise DataError(f"output {where!r} is a file: name a folder")
    names = location.names()
    if MANIFEST_NAME not in names:
        other = next((name for name in sorted(names) if not is_hidden(name)), None)
        if other is not None and not (location.path is None and SETTINGS_NAME in names):
            raise DataError(f"output {where!r} holds other files, such as {other!r}: name a new or empty folder")
        return None
    manifest = Manifest.from_json(location.read(MANIFEST_NAME), f"{where}/{MANIFEST_NAME}")
    check_same(manifest, wanted, where)
    for shard in manifest.shards:
        for name, size in ((shard.file, shard.bytes), (shard.index, shard.samples * RECORD.itemsize)):
            if name not in names or (location.path is not None and (location.path / name).stat().st_size != size):
                raise DataError(f"output {where!r} is damaged at {name}: delete the folder and run again")
    if SETTINGS_NAME in names:  # the run that finished the set was killed before it had cleared up
        _clear_up(location, names, manifest.made_with["name"])
    return manifest


def write_shards(
    source: Source,
    recipe: Recipe,
    output: str | Path,
    *,
    pool: TaskPool | None = None,
    max_bad: float = 0.01,
    report: Report | None = None,
) -> Manifest:
    """Write the shards of a source; continue an interrupted run, or return at once if they are finished.

    Args:
        source: of the images.
        recipe: how to convert them.
        output: folder or URL of the shards; it must not exist, be empty, or have these very shards.
        pool: reads, decodes, encodes and writes; None does it in this process.
        max_bad: share of the inputs that may be unreadable.
        report: called with the progress.

    Raises:
        DataError: the source or the output cannot be used, too many inputs are unreadable, or another process writes
            the same output.
        StorageError: the disk is full or fails.
        Unreachable: remote storage was not reached.
        WorkerFailed: a worker process died.
    """
    settings = made_with(source, recipe)
    finished = find_finished(output, settings)
    if finished is not None:
        return finished
    if recipe.count is not None and source.count is not None and recipe.count > source.count:
        raise _too_few(source, source.count, recipe.count)
    with _unfinished(str(output), settings) as work:
        finished = find_finished(output, settings)
        if finished is not None:  # by another process, between the first check and the lock
            work.discard()
            return finished
        try:
            job = _Job(source, recipe, work, max_bad, report)
            manifest = job.run(pool or LocalPool(1), settings)
            work.finish(manifest)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise DataError(f"output {str(output)!r} was filled by another process in the meantime") from error
            raise StorageError(
                f"the shards of {str(output)!r} cannot be written: {error.strerror or error}; run it again when that "
                "is solved, and it continues from the finished shards"
            ) from error
    return manifest


def _too_few(source: Source, has: int, wanted: int) -> DataError:
    return DataError(f"count is {wanted}, but {source.where} has {has} images: take {has} or fewer, or leave it out")


# --- the working folder -----------------------------------------------------------------------------------------------


@dataclass
class _Work:
    """An unfinished set.

    Attributes:
        output: folder or URL of the finished set.
        folder: working folder on this host, locked by this process; of the spool, and of the shards if they are local.
        location: folder of the shards, here or remote.
        name: first part of the names of the shards.
        names: the files that a previous run left at `location`.
        finished: number of shards that are finished and within `max_bad`.
    """

    output: str
    folder: Path
    location: Folder
    name: str
    names: set[str]
    finished: int = 0

    def finish(self, manifest: Manifest) -> None:
        """Complete the set under its final name, then remove the files that were only needed to write it."""
        with self.location.new(MANIFEST_NAME) as file:
            file.write(manifest.to_json().encode())
        location, target = self.location, folder_at(self.output)
        if target.path is not None:
            sync_path(self.folder)
            for name in filter(is_hidden, target.names()):  # only an empty folder can be replaced by a rename
                (target.path / name).rename(self.folder / name)
            self.folder.rename(target.path.resolve())
            sync_path(target.path.parent)
            location = target
        else:
            self.discard()
        _clear_up(location, location.names(), self.name)

    def discard(self) -> None:
        """Remove the working folder of this host, unless it has files of others."""
        _clear(LocalFolder(self.folder), self.name)
        with suppress(OSError):
            self.folder.rmdir()


def _of_set(name: str, ends: str = "json|tar|index") -> re.Pattern[str]:
    return re.compile(rf"{re.escape(name)}-\d{{6,}}\.(?:{ends})")


def _clear_up(location: Folder, names: set[str], name: str) -> None:
    """Remove the files that a finished set does not need; the settings last, since they mark that others remain."""
    needless = [*sorted(filter(_of_set(name, "json").fullmatch, names)), SPOOL_NAME, JOURNAL_NAME, SETTINGS_NAME]
    for needless_name in needless:
        if needless_name in names:
            location.remove(needless_name)


@contextmanager
def _unfinished(output: str, settings: dict[str, Any]) -> Iterator[_Work]:
    """Lock the unfinished work on a set, that of a previous run with the same settings or a new one, for the block.

    If the block raises, finished shards and the spool are kept; if there are none, everything is removed.
    """
    location = folder_at(output)
    if location.path is not None:
        target = location.path.resolve() if location.path.is_symlink() else location.path
        folder = target.parent / f".{target.name}.unfinished"
        location = LocalFolder(folder)
    else:
        folder = cache_directory() / "unfinished" / xxhash.xxh3_128_hexdigest(output.encode())
    missing = [above for above in folder.parents if not above.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(folder, output)
    except OSError as error:
        raise DataError(f"output {output!r} cannot be written: {error.strerror}") from error
    work, was_there = None, False
    try:
        here = LocalFolder(folder)
        try:
            for each in dict.fromkeys((location, here)):
                was_there |= _resume(each, settings, output)
        except OSError as error:
            raise StorageError(f"output {output!r} cannot be written: {error.strerror}") from error
        work = _Work(output, folder, location, settings["name"], location.names())
        yield work
    except BaseException as error:
        # After an error in the input, a later run will not continue this one: keep only finished shards, and the work
        # of previous runs. After other errors, keep shards and spool for the next try.
        is_useless = isinstance(error, InputError) and not isinstance(error, Unreachable)
        with suppress(DcganDistError, OSError):
            has_shards = any(map(_of_set(settings["name"], "json").fullmatch, location.names()))
            has_spool = (folder / JOURNAL_NAME).exists() and (folder / JOURNAL_NAME).stat().st_size > 0
            is_kept = work is None or work.finished or was_there if is_useless else has_shards or has_spool
            for each in dict.fromkeys((location, here)):
                _remove_parts(each)
                if not is_kept:
                    _clear(each, settings["name"])
            folder.rmdir()
            for above in missing:
                above.rmdir()
        raise
    finally:
        os.close(lock)


def _resume(location: Folder, settings: dict[str, Any], output: str) -> bool:
    """Return whether a previous run has left work with these settings; if there is none, write the settings.

    Raises:
        DataError: there is work that was made with other settings, or there are other files.
    """
    names = location.names()
    if SETTINGS_NAME in names:
        way_out = f"name another output, or remove {shown(str(location))!r} to discard that work"
        try:
            has = json.loads(location.read(SETTINGS_NAME))
            differing = _differing(has, json.loads(json.dumps(settings)))
        except (ValueError, AttributeError, TypeError) as error:
            raise DataError(
                f"output {output!r}: the {SETTINGS_NAME} of its unfinished work is damaged: {way_out}"
            ) from error
        if differing:
            raise DataError(
                f"output {output!r} was started with other settings, and is unfinished ({differing}): run it again "
                f"with those to finish it, {way_out}"
            )
    else:
        other = next((name for name in sorted(names) if not is_hidden(name)), None)
        if other is not None:
            raise DataError(f"output {output!r}: {str(location)!r} holds other files, such as {other!r}: move it away")
    _remove_parts(location)
    if SETTINGS_NAME in names:
        return True
    with location.new(SETTINGS_NAME) as file:
        file.write(json.dumps(settings, sort_keys=True).encode())
    return False


def _remove_parts(location: Folder) -> None:
    """Remove the incomplete files of workers that were killed."""
    for name in location.names():
        if name.startswith(".") and name.endswith(PART):
            location.remove(name)


def _clear(location: Folder, name: str) -> None:
    """Remove the files of an unfinished set, and no others."""
    is_ours = _of_set(name).fullmatch
    names = location.names()
    for ours in [*sorted(filter(is_ours, names)), SPOOL_NAME, JOURNAL_NAME, SETTINGS_NAME]:
        if ours in names:
            location.remove(ours)


def lock_folder(work: Path, output: str) -> int:
    """Create and lock the working folder of an output; the lock ends with the process.

    Returns:
        The file descriptor, which releases the lock when closed.

    Raises:
        DataError: another process is writing the same output.
    """
    while True:
        work.mkdir(exist_ok=True)
        folder = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
        try:
            lock(folder, work)
            # Between opening and locking, its previous owner may have renamed or removed it.
            if work.exists() and os.path.samestat(os.fstat(folder), work.stat()):
                return folder
        except BlockingIOError as error:
            os.close(folder)
            raise DataError(f"output {output!r} is being made by another process: wait for it") from error
        os.close(folder)


# --- writing the shards -----------------------------------------------------------------------------------------------


class _Job:
    """Writes one set, and counts images and unreadable inputs."""

    def __init__(self, source: Source, recipe: Recipe, work: _Work, max_bad: float, report: Report | None) -> None:
        self._source, self._recipe, self._work = source, recipe, work
        self._max_bad, self._report = max_bad, report
        self._shards: list[Shard] = []
        self._skipped: list[dict[str, str]] = []
        self._done = self._found = self._bad = 0
        self._remarks = Remarks()

    def run(self, pool: TaskPool, settings: dict[str, Any]) -> Manifest:
        """Write the missing shards, and return the manifest of all."""
        recipe = self._recipe
        parts = self._source.parts(recipe.shard_size, recipe.seed, recipe.count)
        classes, folders = self._from_spool(pool) if parts is None else self._from_parts(parts, pool)
        self._check_bad(self._done + self._bad)
        if not self._shards:
            example = self._skipped[-1]
            raise DataError(
                f"no image of {self._source.where} can be used: {len(self._skipped):,} inputs were left out, such as "
                f"{example['input']!r} ({example['reason']})"
            )
        return Manifest(
            image_size=recipe.image_size,
            channels=recipe.channels,
            encoding=recipe.encoding,
            count=sum(shard.samples for shard in self._shards),
            classes=classes,
            shards=tuple(self._shards),
            made_with=settings,
            skipped=tuple(self._skipped),
            single_class="" if classes else single_class_of(folders),
            remarks={} if self._remarks == Remarks() else asdict(self._remarks),
        )

    def _from_parts(self, parts: Sequence[Part], pool: TaskPool) -> tuple[tuple[str, ...], Collection[Folders]]:
        total, wanted = sum(part.count for part in parts), self._recipe.count
        if not total:
            raise nothing_found(self._source)
        if wanted is not None and total < wanted:
            raise _too_few(self._source, total, wanted)
        folders = self._source.all_folders() or ()
        classes, labels = classes_of(folders, self._source.classes, self._source.label_folder)
        tasks = self._tasks(PartSamples(part, labels, self._recipe) for part in parts)
        seen = 0
        with closing(pool.run(make_shard, tasks)) as results:
            for part, finished in zip(parts, results, strict=True):
                seen += part.count
                self._shards += [] if finished.shard is None else [finished.shard]
                self._skipped += finished.skipped
                self._bad += finished.bad
                self._remarks += finished.remarks
                self._done += finished.samples
                self._found += 0 if finished.is_new else finished.samples
                self._check_bad(total)
                self._work.finished += 1
                self._report_progress(seen / total)
        return classes, folders

    def _from_spool(self, pool: TaskPool) -> tuple[tuple[str, ...], Collection[Folders]]:
        source, recipe = self._source, self._recipe
        known = source.count if recipe.count is None else recipe.count

        def watch(spool: Spool, share: float) -> None:
            self._done, self._found, self._bad = len(spool.numbers), spool.found, spool.bad
            self._skipped = spool.skipped
            if known is not None:
                self._check_bad(known)
            self._report_progress((1 - _FILLING) * (share if known is None else spool.inputs / known))

        spool = fill_spool(source, recipe, self._work.folder, pool, watch)
        if not spool.inputs:
            raise nothing_found(source)
        if recipe.count is not None and spool.inputs < recipe.count:
            raise _too_few(source, spool.inputs, recipe.count)
        self._done, self._found, self._bad = len(spool.numbers), spool.found, spool.bad
        self._skipped, self._remarks = spool.skipped, spool.remarks
        self._check_bad(self._done + self._bad)
        classes, shards = spool.cut(source, recipe)
        # The spool is on this host, so the processes that copy from it must be, too.
        count = -(-self._done // recipe.shard_size)
        copiers = LocalPool(max(1, min(pool.workers, usable_cores(), count)))
        with closing(copiers.run(make_shard, self._tasks(shards))) as results:
            for number, finished in enumerate(results, 1):
                self._shards += [] if finished.shard is None else [finished.shard]
                self._work.finished += 1
                self._report_progress(1 - _FILLING * (1 - number / count))
        return classes, spool.folders

    def _tasks(self, all_samples: Iterator[Samples]) -> Iterator[ShardTask]:
        for number, samples in enumerate(all_samples):
            name = f"{self._recipe.name}-{number:06d}"
            yield ShardTask(
                name=name,
                samples=samples,
                encoding=self._recipe.encoding,
                location=self._work.location,
                has_record=record_name(name) in self._work.names,
            )

    def _check_bad(self, inputs: int) -> None:
        if self._bad and (self._bad > self._max_bad * inputs or inputs == self._bad):
            example = self._skipped[-1]
            raise DataError(
                f"{self._bad} of the first {self._bad + self._done} images of {self._source.where} cannot be read, "
                f"such as {example['input']!r} ({example['reason']}): more than max_bad ({self._max_bad:g}) allows"
            )

    def _report_progress(self, share: float) -> None:
        if self._report is not None:
            self._report(self._done, min(1.0, share), self._bad, self._found)
