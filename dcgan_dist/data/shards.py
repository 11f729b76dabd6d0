"""Writing sets of shards; `manifest.py` says what they are.

Each shard is made by one process, from a part of the source that is read for it alone; a source that can only be read
from its beginning goes through a spool (`spool.py`). The same source and recipe give the same bytes with any number of
workers, however often the work was interrupted.

On a local disk all of it happens in a folder with another name, which is renamed when everything is there: what stands
under the output's name is whole. On remote storage the manifest comes last. An interrupted, failed or killed run leaves
its finished shards, and the next one with the same settings goes on from them.
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
"""Called with the number of images done, the share of the whole (in [0, 1]), the number of unreadable inputs, and how
many of the images a former run had done."""

SETTINGS_NAME = "settings.json"
# Raised when what is written for the same recipe changes.
_REVISION = 2
# Settings that older sets do not name, and what they were made with.
_LATER = {"fit": "crop", "white_value": None}
_FILLING = 0.1  # share of the work that filling shards from a spool is


def made_with(source: Source, recipe: Recipe) -> dict[str, Any]:
    """Return what the manifest records of a source and a recipe: the same means the same shards."""
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
    place = folder_at(location)
    if MANIFEST_NAME not in place.names():
        raise DataError(f"{str(location)!r} holds no finished shards: it has no {MANIFEST_NAME}")
    return Manifest.from_json(place.read(MANIFEST_NAME), f"{location}/{MANIFEST_NAME}")


def check_same(manifest: Manifest, wanted: dict[str, Any], where: str) -> None:
    """Check that the shards at `where` were made with the settings `wanted`.

    Raises:
        DataError: they were not; it names what differs.
    """
    differing = _differing(manifest.made_with, wanted)
    if differing:
        raise DataError(f"output {where!r} holds shards made with other settings ({differing}): name another folder")


def _differing(has: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Return which settings differ, in words; "" where none does."""
    keys = [key for key in (has | wanted) if has.get(key) != wanted.get(key)]
    if keys == ["input_digest"]:
        return "the content of the input has changed"
    return "; ".join(f"{key} there {has.get(key)!r}, now {wanted.get(key)!r}" for key in keys)


def find_finished(output: str | Path, wanted: dict[str, Any]) -> Manifest | None:
    """Return the manifest of shards that were made with `wanted`; None where they are not finished.

    Raises:
        DataError: the folder holds something else, shards made with other settings, or shards that lack a part.
        Unreachable: the storage was not reached.
    """
    place, where = folder_at(output), str(output)
    if place.path is not None and place.path.exists() and not place.path.is_dir():
        raise DataError(f"output {where!r} is a file: name a folder")
    names = place.names()
    if MANIFEST_NAME not in names:
        other = next((name for name in sorted(names) if not is_hidden(name)), None)
        if other is not None and not (place.path is None and SETTINGS_NAME in names):
            raise DataError(f"output {where!r} holds other files, such as {other!r}: name a new or empty folder")
        return None
    manifest = Manifest.from_json(place.read(MANIFEST_NAME), f"{where}/{MANIFEST_NAME}")
    check_same(manifest, wanted, where)
    for shard in manifest.shards:
        for name, size in ((shard.file, shard.bytes), (shard.index, shard.samples * RECORD.itemsize)):
            if name not in names or (place.path is not None and (place.path / name).stat().st_size != size):
                raise DataError(f"output {where!r} is damaged at {name}: delete the folder and run again")
    if SETTINGS_NAME in names:  # the run that finished it was ended before it had cleared up
        _clear_up(place, names, manifest.made_with["name"])
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
    """Make the shards of a source, go on where an interrupted run was, or find them made already.

    Args:
        source: where the images come from.
        recipe: what to make of them.
        output: folder or URL of the shards; it must not exist, be empty, or hold the very same shards.
        pool: does the reading, decoding, encoding and writing; left out, this process does.
        max_bad: share of the inputs that may be unreadable.
        report: told of the progress.

    Raises:
        DataError: the source or the output cannot be used; too many unreadable inputs; another process makes the same.
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
        if finished is not None:  # by another process, between the first look and the lock
            work.give_up()
            return finished
        try:
            job = _Job(source, recipe, work, max_bad, report)
            manifest = job.run(pool or LocalPool(1), settings)
            work.finish(manifest)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise DataError(f"output {str(output)!r} was filled by another process meanwhile") from error
            raise StorageError(
                f"the shards of {str(output)!r} cannot be written: {error.strerror or error}; run it again when that "
                "is mended, and it goes on from those that are finished"
            ) from error
    return manifest


def _too_few(source: Source, has: int, wanted: int) -> DataError:
    return DataError(f"count is {wanted}, but {source.where} has {has} images: take {has} or fewer, or leave it out")


# --- the folder that is worked in -------------------------------------------------------------------------------------


@dataclass
class _Work:
    """What is there of a set that is being made.

    Attributes:
        output: the folder or URL that was asked for.
        folder: of this host, locked for this process: of the shards if they stay here, and of the spool.
        place: of the shards.
        name: first part of their names.
        names: the files that a former run left at `place`.
        finished: how many shards are finished, with nothing said against them.
    """

    output: str
    folder: Path
    place: Folder
    name: str
    names: set[str]
    finished: int = 0

    def finish(self, manifest: Manifest) -> None:
        """Make the set whole under its name, then remove what was needed to make it."""
        with self.place.new(MANIFEST_NAME) as file:
            file.write(manifest.to_json().encode())
        place, target = self.place, folder_at(self.output)
        if target.path is not None:
            sync_path(self.folder)
            for name in filter(is_hidden, target.names()):  # a folder with anything in it cannot be replaced
                (target.path / name).rename(self.folder / name)
            self.folder.rename(target.path.resolve())
            sync_path(target.path.parent)
            place = target
        else:
            self.give_up()
        _clear_up(place, place.names(), self.name)

    def give_up(self) -> None:
        """Remove the folder of this host, unless somebody else has put something into it."""
        _clear(LocalFolder(self.folder), self.name)
        with suppress(OSError):
            self.folder.rmdir()


def _of_set(name: str, ends: str = "json|tar|index") -> re.Pattern[str]:
    """Return the pattern of the files of a set by the first part of their names."""
    return re.compile(rf"{re.escape(name)}-\d{{6,}}\.(?:{ends})")


def _clear_up(place: Folder, names: set[str], name: str) -> None:
    """Remove what a finished set no longer needs; the settings last, since they tell that there is something left."""
    needless = [*sorted(filter(_of_set(name, "json").fullmatch, names)), SPOOL_NAME, JOURNAL_NAME, SETTINGS_NAME]
    for needless_name in needless:
        if needless_name in names:
            place.remove(needless_name)


@contextmanager
def _unfinished(output: str, settings: dict[str, Any]) -> Iterator[_Work]:
    """Give what a former run with the same settings has left of a set, locked for this process.

    When the block fails, what is finished stays; where nothing is, nothing does.
    """
    place = folder_at(output)
    if place.path is not None:
        target = place.path.resolve() if place.path.is_symlink() else place.path
        folder = target.parent / f".{target.name}.unfinished"
        place = LocalFolder(folder)
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
            for each in dict.fromkeys((place, here)):
                was_there |= _resume(each, settings, output)
        except OSError as error:
            raise StorageError(f"output {output!r} cannot be written: {error.strerror}") from error
        work = _Work(output, folder, place, settings["name"], place.names())
        yield work
    except BaseException as error:
        # What was made of input that cannot be used is of no use, unless it is good shards or a former run's work.
        is_useless = isinstance(error, InputError) and not isinstance(error, Unreachable)
        with suppress(DcganDistError, OSError):
            has_shards = any(map(_of_set(settings["name"], "json").fullmatch, place.names()))
            has_spool = (folder / JOURNAL_NAME).exists() and (folder / JOURNAL_NAME).stat().st_size > 0
            is_kept = work is None or work.finished or was_there if is_useless else has_shards or has_spool
            for each in dict.fromkeys((place, here)):
                _remove_parts(each)
                if not is_kept:
                    _clear(each, settings["name"])
            folder.rmdir()
            for above in missing:
                above.rmdir()
        raise
    finally:
        os.close(lock)


def _resume(place: Folder, settings: dict[str, Any], output: str) -> bool:
    """Return whether a former run has left work with these settings; where it left none, write down the settings.

    Raises:
        DataError: there is work that was made with other settings, or that nothing is known of.
    """
    names = place.names()
    if SETTINGS_NAME in names:
        way_out = f"name another output, or remove {shown(str(place))!r} to give up that work"
        try:
            has = json.loads(place.read(SETTINGS_NAME))
            differing = _differing(has, json.loads(json.dumps(settings)))
        except (ValueError, AttributeError, TypeError) as error:
            raise DataError(
                f"output {output!r}: the {SETTINGS_NAME} of its unfinished work is damaged: {way_out}"
            ) from error
        if differing:
            raise DataError(
                f"output {output!r} was begun with other settings, and is unfinished ({differing}): run it again "
                f"with those to finish it, {way_out}"
            )
    else:
        other = next((name for name in sorted(names) if not is_hidden(name)), None)
        if other is not None:
            raise DataError(f"output {output!r}: {str(place)!r} holds other files, such as {other!r}: move it away")
    _remove_parts(place)
    if SETTINGS_NAME in names:
        return True
    with place.new(SETTINGS_NAME) as file:
        file.write(json.dumps(settings, sort_keys=True).encode())
    return False


def _remove_parts(place: Folder) -> None:
    """Remove what workers that were ended had half-written."""
    for name in place.names():
        if name.startswith(".") and name.endswith(PART):
            place.remove(name)


def _clear(place: Folder, name: str) -> None:
    """Remove what a run has made of an unfinished set, and nothing else."""
    is_ours = _of_set(name).fullmatch
    names = place.names()
    for ours in [*sorted(filter(is_ours, names)), SPOOL_NAME, JOURNAL_NAME, SETTINGS_NAME]:
        if ours in names:
            place.remove(ours)


def lock_folder(work: Path, output: str) -> int:
    """Make the folder in which an output is made and lock it; the lock goes with the process, however that ends.

    Returns:
        The file descriptor to close.

    Raises:
        DataError: another process makes the same output.
    """
    while True:
        work.mkdir(exist_ok=True)
        folder = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
        try:
            lock(folder, work)
            # Between opening and locking, its former owner may have renamed or removed it.
            if work.exists() and os.path.samestat(os.fstat(folder), work.stat()):
                return folder
        except BlockingIOError as error:
            os.close(folder)
            raise DataError(f"output {output!r} is being made by another process: wait for it") from error
        os.close(folder)


# --- making the shards ------------------------------------------------------------------------------------------------


class _Job:
    """Makes one set, and keeps count."""

    def __init__(self, source: Source, recipe: Recipe, work: _Work, max_bad: float, report: Report | None) -> None:
        self._source, self._recipe, self._work = source, recipe, work
        self._max_bad, self._report = max_bad, report
        self._shards: list[Shard] = []
        self._skipped: list[dict[str, str]] = []
        self._done = self._found = self._bad = 0
        self._remarks = Remarks()

    def run(self, pool: TaskPool, settings: dict[str, Any]) -> Manifest:
        """Make what is not there yet, and return the manifest of the whole."""
        recipe = self._recipe
        parts = self._source.parts(recipe.shard_size, recipe.seed, recipe.count)
        classes, folders = self._from_spool(pool) if parts is None else self._from_parts(parts, pool)
        self._check_bad(self._done + self._bad)
        if not self._shards:
            example = self._skipped[-1]
            raise DataError(
                f"no image of {self._source.where} can be taken: {len(self._skipped):,} inputs were left out, such as "
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
        folders = self._source.places() or ()
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
                self._tell(seen / total)
        return classes, folders

    def _from_spool(self, pool: TaskPool) -> tuple[tuple[str, ...], Collection[Folders]]:
        source, recipe = self._source, self._recipe
        known = source.count if recipe.count is None else recipe.count

        def watch(spool: Spool, share: float) -> None:
            self._done, self._found, self._bad = len(spool.numbers), spool.found, spool.bad
            self._skipped = spool.skipped
            if known is not None:
                self._check_bad(known)
            self._tell((1 - _FILLING) * (share if known is None else spool.inputs / known))

        spool = fill_spool(source, recipe, self._work.folder, pool, watch)
        if not spool.inputs:
            raise nothing_found(source)
        if recipe.count is not None and spool.inputs < recipe.count:
            raise _too_few(source, spool.inputs, recipe.count)
        self._done, self._found, self._bad = len(spool.numbers), spool.found, spool.bad
        self._skipped, self._remarks = spool.skipped, spool.remarks
        self._check_bad(self._done + self._bad)
        classes, shards = spool.cut(source, recipe)
        # The spool is on this host, so what copies from it is as well.
        count = -(-self._done // recipe.shard_size)
        copiers = LocalPool(max(1, min(pool.workers, usable_cores(), count)))
        with closing(copiers.run(make_shard, self._tasks(shards))) as results:
            for number, finished in enumerate(results, 1):
                self._shards += [] if finished.shard is None else [finished.shard]
                self._work.finished += 1
                self._tell(1 - _FILLING * (1 - number / count))
        return classes, spool.folders

    def _tasks(self, all_samples: Iterator[Samples]) -> Iterator[ShardTask]:
        for number, samples in enumerate(all_samples):
            name = f"{self._recipe.name}-{number:06d}"
            yield ShardTask(
                name=name,
                samples=samples,
                encoding=self._recipe.encoding,
                place=self._work.place,
                is_there=record_name(name) in self._work.names,
            )

    def _check_bad(self, inputs: int) -> None:
        if self._bad and (self._bad > self._max_bad * inputs or inputs == self._bad):
            example = self._skipped[-1]
            raise DataError(
                f"{self._bad} of the first {self._bad + self._done} images of {self._source.where} cannot be read, "
                f"such as {example['input']!r} ({example['reason']}): more than max_bad ({self._max_bad:g}) allows"
            )

    def _tell(self, share: float) -> None:
        if self._report is not None:
            self._report(self._done, min(1.0, share), self._bad, self._found)
