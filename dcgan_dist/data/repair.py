"""Write missing or truncated shards of a finished set again, so that damage to one shard does not cost the set."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path

from dcgan_dist.data.manifest import MANIFEST_NAME, RECORD, Manifest, Shard
from dcgan_dist.data.shard_writer import PartSamples, Recipe, ShardTask, make_shard
from dcgan_dist.data.shards import check_same, lock_folder, made_with
from dcgan_dist.data.sources import Source, classes_of
from dcgan_dist.errors import DataError, StorageError
from dcgan_dist.parallel import TaskPool
from dcgan_dist.storage.folder import LocalFolder, folder_at


def repair_shards(source: Source, recipe: Recipe, output: str, pool: TaskPool) -> list[str]:
    """Write the shards of a finished set in a local folder again whose files are missing or have another size.

    Only possible for sources with parts, since a part has the inputs of one shard.

    Returns:
        The names of the tars that were written.

    Raises:
        DataError: the set was made with other settings, or the source does not give the same shards any more.
        StorageError: the disk is full or fails.
    """
    location = folder_at(output)
    if location.path is None or MANIFEST_NAME not in location.names():
        return []
    manifest = Manifest.from_json(location.read(MANIFEST_NAME), f"{output}/{MANIFEST_NAME}")
    settings = made_with(source, recipe)
    check_same(manifest, settings, output)
    damaged = {shard.file: shard for shard in manifest.shards if not _is_complete(location.path, shard)}
    parts = source.parts(recipe.shard_size, recipe.seed, recipe.count) if damaged else None
    if parts is None:
        return []
    _, labels = classes_of(source.all_folders() or (), source.classes, source.label_folder)
    work = location.path / ".mending"
    tasks = [
        ShardTask(
            name=name,
            samples=PartSamples(part, labels, recipe),
            encoding=recipe.encoding,
            location=LocalFolder(work),
            has_record=False,
        )
        for number, part in enumerate(parts)
        if f"{(name := f'{recipe.name}-{number:06d}')}.tar" in damaged
    ]
    try:
        lock = lock_folder(work, output)
        try:
            with closing(pool.run(make_shard, tasks)) as results:
                for task, made in zip(tasks, results, strict=True):
                    wanted = damaged[f"{task.name}.tar"]
                    if made.shard != wanted:  # keep the rest of the damaged shard: its other images are intact
                        raise DataError(
                            f"{source.where} does not give the images of {wanted.file} any more: has it changed?"
                        )
                    for name in (wanted.file, wanted.index):
                        (work / name).replace(location.path / name)
        finally:
            shutil.rmtree(work)
            os.close(lock)
    except OSError as error:
        raise StorageError(f"the shards of {output!r} cannot be written: {error.strerror or error}") from error
    return sorted(damaged)


def _is_complete(folder: Path, shard: Shard) -> bool:
    sizes = {shard.file: shard.bytes, shard.index: shard.samples * RECORD.itemsize}
    paths = {folder / name: size for name, size in sizes.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())
