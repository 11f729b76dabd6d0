"""Write samples: as one grid, a folder of images, a NumPy archive, or shards that the stream can read.

The output is always complete: it is written under another name first. Worker processes compute a few blocks of samples
at a time, so that memory does not grow with their number.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xxhash

from dcgan_dist.config import GRID_PIXELS
from dcgan_dist.data.images import Encoding, Pixels, encode
from dcgan_dist.data.manifest import KEEP_NAME, MANIFEST_NAME
from dcgan_dist.data.shards import Recipe, Report, lock_folder, read_manifest, write_shards
from dcgan_dist.data.sources import Folders, Item, RawImage, Source
from dcgan_dist.errors import ConfigError, StorageError
from dcgan_dist.generation.samples import BLOCK, Labels, Samples
from dcgan_dist.parallel import TaskPool
from dcgan_dist.storage.files import sync_path
from dcgan_dist.storage.folder import check_writable, folder_at
from dcgan_dist.storage.remote import is_url
from dcgan_dist.training.sampling import grid_columns, make_grid

Form = Literal["grid", "folder", "npz", "shards"]
TASK_SIZE = 4 * BLOCK  # samples of one task
SHARD_SIZE = 32 * BLOCK
_GAP = 2  # pixels between the images of a grid
# Files that `sample` writes, or that belong to a set of shards: no other file is ever overwritten.
_OWN_FILES = re.compile(rf"\d{{8,}}\.png|.+-\d{{6,}}\.(tar|index)|{MANIFEST_NAME}|{re.escape(KEEP_NAME)}")
_SUFFIX = re.compile(r".*\.[A-Za-z]\w*")
_PATTERN = re.compile(r"%\d*[A-Za-z]")
_SHARD_NAMES = re.compile(r"((?P<name>[^%]+?)(-%0\d+d|-\d+)?|%0\d+d)\.tar")
_FORMS = (
    "name FILE.png for a grid, FILE.npz for arrays, DIR/NAME-%06d.tar for shards in a folder of their own, or a folder "
    "of images (one with a suffix: NAME.SUFFIX/)"
)


@dataclass(frozen=True)
class Output:
    """The output of samples.

    Attributes:
        form: one grid, a folder of PNGs (for a conditional run, one sub-folder per class), a .npz or shards.
        path: the file or folder, or URL.
        name: first part of the names of shards.
    """

    form: Form
    path: str
    name: str = "samples"


def output_of(path: str, form: Form | None = None) -> Output:
    """Return the output of a path: `.png` a grid, `.npz` an archive, `DIR/NAME-%06d.tar` shards, else a folder.

    Args:
        path: a path or URL.
        form: to use instead of the one that the name implies.

    Raises:
        ConfigError: a folder of images is given as a URL, the name contradicts the form, or its suffix is unknown.
    """
    head, _, last = path.rstrip("/").rpartition("/")
    shard = _SHARD_NAMES.fullmatch(last)
    guessed: Form = "folder"
    if last.lower().endswith((".png", ".npz")):
        guessed = "grid" if last.lower().endswith(".png") else "npz"
    elif shard is not None:
        guessed = "shards"
    if form is not None and guessed not in (form, "folder"):
        raise ConfigError(f"output is {path!r} and format is {form!r}: leave out the format, or name another output")
    if form in ("grid", "npz") and guessed == "folder":
        end = "png" if form == "grid" else "npz"
        raise ConfigError(f"output is {path!r} and format is {form!r}: name a file that ends in .{end}")
    form = form or guessed
    has_suffix = guessed == "folder" and _SUFFIX.fullmatch(last) and not path.endswith("/")
    if not path or has_suffix or (shard is None and _PATTERN.search(last)):
        raise ConfigError(f"output is {path!r}: {_FORMS}")
    if form == "folder" and is_url(path):
        raise ConfigError(f"output is {path!r}, a folder of images on remote storage: take --format shards, or .npz")
    if shard is not None:
        folder = head or ("/" if path.startswith("/") else ".")
        return Output("shards", folder, shard["name"] or Output.name)
    return Output(form, path.rstrip("/") if form in ("grid", "npz") else path)


def recover(output: Output) -> None:
    """Finish the replacement of a folder of images that a killed `sample --overwrite` has interrupted.

    Raises:
        ConfigError: the old folder, which was moved away, has other files now.
        DataError: another process is writing the same output.
    """
    target = Path(output.path).absolute()
    if output.form != "folder" or not _backup(target).is_dir():
        return
    work = _work(target)
    lock = lock_folder(work, output.path)
    try:
        _finish_replacement(target)
        with suppress(OSError):  # not empty: the next `sample` empties it
            work.rmdir()
    finally:
        os.close(lock)


def refuse_existing(output: Output, overwrite: bool) -> None:
    """Check that the output does not exist, or may be replaced.

    Raises:
        ConfigError: it exists, and `overwrite` is false; or it has files that are not of `sample` or `prepare`.
        RunDirectoryError: its folder cannot be written.
        DataError: remote storage is unreachable.
    """
    if not is_url(output.path):
        check_writable(str(Path(output.path).absolute().parent))
    found = _exists_at_url(output) if is_url(output.path) else os.path.lexists(output.path)
    if not found:
        return
    if not overwrite:
        forms = f" ({_FORMS})" if output.form == "shards" else ""
        raise ConfigError(f"output {output.path!r} exists: name another one, or give --overwrite to replace it{forms}")
    if is_url(output.path):
        return
    path = Path(output.path)
    if output.form in ("grid", "npz"):
        if path.is_dir():
            raise ConfigError(f"output {output.path!r} is a folder: name a file")
        return
    if not path.is_dir() or path.is_symlink():
        raise ConfigError(f"output {output.path!r} is no folder: name another one")
    _refuse_other_files(path)


def _refuse_other_files(folder: Path) -> None:
    """Check that a folder, which will be replaced, only has files of `sample` and `prepare`."""
    other = next((name for _, _, names in os.walk(folder) for name in names if not _OWN_FILES.fullmatch(name)), None)
    if other is not None:
        raise ConfigError(f"output {str(folder)!r} holds other files, such as {other!r}: name another folder")


def _exists_at_url(output: Output) -> bool:
    if output.form == "shards":
        return MANIFEST_NAME in folder_at(output.path).names()
    folder, name = _split(output.path)
    return name in folder_at(folder).names()


def _split(path: str) -> tuple[str, str]:
    if is_url(path):
        folder, _, name = path.rpartition("/")
        return folder, name
    whole = Path(path).absolute()
    return str(whole.parent), whole.name


def write_samples(
    samples: Samples,
    count: int,
    output: Output,
    *,
    pool: TaskPool,
    report: Report,
    encoding: Encoding = "png",
    overwrite: bool = False,
) -> None:
    """Write the first `count` samples.

    Args:
        samples: to write.
        count: number of samples.
        output: path and form.
        pool: computes and encodes them.
        report: called with the progress, as by `write_shards`.
        encoding: of images in shards.
        overwrite: whether to replace an existing output; see `refuse_existing`.

    Raises:
        ConfigError: the output exists, or a grid would be too large.
        RunDirectoryError: the checkpoint cannot be used.
        DataError: the output cannot be used.
        StorageError: the disk is full or fails.
        WorkerFailed: a worker process died.
    """
    recover(output)
    refuse_existing(output, overwrite)
    try:
        if output.form == "grid":
            _write_grid(samples, count, output, pool, report, overwrite)
        elif output.form == "npz":
            _write_npz(samples, count, output, pool, report, overwrite)
        elif output.form == "folder":
            _write_folder(samples, count, output, pool, report, overwrite)
        else:
            _write_shards(samples, count, output, pool, report, encoding)
    except OSError as error:
        raise StorageError(f"output {output.path!r} cannot be written: {error.strerror or error}") from error


# --- computing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """The samples of one task."""

    samples: Samples
    start: int
    stop: int


def _tasks(samples: Samples, count: int) -> Iterator[_Task]:
    for start in range(0, count, TASK_SIZE):
        yield _Task(samples, start, min(start + TASK_SIZE, count))


def _computed(task: _Task) -> tuple[Pixels, Labels]:
    """Return the images and labels of a task (in a worker process)."""
    images, labels = zip(*task.samples.images(task.start, task.stop), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _encoded(task: _Task) -> list[bytes]:
    """Return the images of a task as PNG files (in a worker process)."""
    images, _ = _computed(task)
    return [encode(image, "png") for image in images]


def _all_images(samples: Samples, count: int, pool: TaskPool, report: Report) -> Iterator[Pixels]:
    done = 0
    with closing(pool.run(_computed, _tasks(samples, count))) as results:
        for images, _ in results:
            yield images
            done += len(images)
            report(done, done / count, 0, 0)


# --- a grid, an archive -----------------------------------------------------------------------------------------------


def _write_grid(samples: Samples, count: int, output: Output, pool: TaskPool, report: Report, overwrite: bool) -> None:
    size, channels = samples.model.image_size, samples.model.channels
    assert size is not None
    assert channels is not None
    most = GRID_PIXELS // (size + _GAP) ** 2
    if count > most:
        raise ConfigError(f"count is {count}: a grid of images of {size} pixels has at most {most:,}; take a folder")
    labels = samples.labels(0, count)
    images = np.concatenate(list(_all_images(samples, count, pool, report)))
    drawn = len(np.unique(labels))
    has_rows = samples.is_conditional and samples.label is None and count >= 2 * drawn
    columns = grid_columns(count, drawn if has_rows else 0)
    if has_rows:
        order = in_class_rows(labels, columns)
        blank = np.full((1, *images.shape[1:]), 255, np.uint8)
        images = np.concatenate([images, blank])[order]
    with _new(output, overwrite) as file:
        file.write(encode(make_grid(images, columns, _GAP), "png"))


def in_class_rows(labels: Labels, columns: int) -> npt.NDArray[np.int64]:
    """Return the numbers of the images of a grid whose rows have one class each, -1 for a blank cell.

    The classes take turns, one row each, until all images are in the grid.
    """
    classes = sorted(set(labels.tolist()))
    left = {label: np.flatnonzero(labels == label) for label in classes}
    rows: list[npt.NDArray[np.int64]] = []
    while any(map(len, left.values())):
        for label in classes:
            row, left[label] = left[label][:columns], left[label][columns:]
            if len(row):
                rows.append(np.pad(row, (0, columns - len(row)), constant_values=-1))
    return np.concatenate(rows)


def _write_npz(samples: Samples, count: int, output: Output, pool: TaskPool, report: Report, overwrite: bool) -> None:
    """Write `images` (count, S, S, C) and their `z` (count, z_dim).

    For a conditional run also `labels` (count,), and the names of its `classes`.
    """
    size, channels = samples.model.image_size, samples.model.channels
    with _new(output, overwrite) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        if samples.is_conditional:
            labels = (samples.labels(part.start, part.stop) for part in _tasks(samples, count))
            _add_array(archive, "labels", (count,), "<i8", labels)
            names = np.array(samples.class_names)
            _add_array(archive, "classes", names.shape, names.dtype.str, iter([names]))
        blocks = ((start, min(start + samples.block, count)) for start in range(0, count, samples.block))
        z = (samples.z(start, stop).numpy() for start, stop in blocks)
        _add_array(archive, "z", (count, samples.model.z_dim), "<f4", z)
        images = _all_images(samples, count, pool, report)
        _add_array(archive, "images", (count, size, size, channels), "|u1", images)


def _add_array(
    archive: zipfile.ZipFile, name: str, shape: tuple[int | None, ...], dtype: str, parts: Iterator[npt.NDArray[Any]]
) -> None:
    """Add an array to an archive part by part, in the format that NumPy reads."""
    header = io.BytesIO()
    about = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        member.write(header.getvalue())
        for part in parts:
            member.write(np.ascontiguousarray(part, dtype=dtype).tobytes())


@contextmanager
def _new(output: Output, overwrite: bool) -> Iterator[Any]:
    """Yield a file to write to, which gets its name when it is complete."""
    location, name = _split(output.path)
    folder = folder_at(location)
    if folder.path is not None:
        folder.path.mkdir(parents=True, exist_ok=True)
    with folder.new(name) as file:
        yield file
        refuse_existing(output, overwrite)  # another process may have written it in the meantime


# --- a folder ---------------------------------------------------------------------------------------------------------


def _write_folder(
    samples: Samples, count: int, output: Output, pool: TaskPool, report: Report, overwrite: bool
) -> None:
    with _new_folder(output, overwrite) as folder, closing(pool.run(_encoded, _tasks(samples, count))) as results:
        folders = [folder]
        if samples.is_conditional:
            folders = [folder / _folder_name(number, name) for number, name in enumerate(samples.class_names)]
        for task, images in zip(_tasks(samples, count), results, strict=True):
            labels = samples.labels(task.start, task.stop)
            for number, label, content in zip(range(task.start, task.stop), labels, images, strict=True):
                of_class = folders[max(int(label), 0)]
                of_class.mkdir(exist_ok=True)
                (of_class / f"{number:08d}.png").write_bytes(content)
            report(task.stop, task.stop / count, 0, 0)


def _folder_name(number: int, name: str) -> str:
    """Return the folder name of a class: its name, or its number if the name cannot be that of a folder."""
    is_plain = name not in ("", ".", "..") and not set(name) & set("/\\\0")
    return name if is_plain else str(number)


@contextmanager
def _new_folder(output: Output, overwrite: bool) -> Iterator[Path]:
    """Yield a new folder. At the end of the block it replaces the output; if the block raises, it is removed."""
    target = Path(output.path).absolute()
    folder = _work(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder, output.path)
    try:
        _refuse_other_files(folder)
    except ConfigError:
        os.close(lock)
        raise
    try:
        _empty(folder)  # a killed run may have left files
        yield folder
        refuse_existing(output, overwrite)  # another process may have written it in the meantime
        os.sync()  # once for millions of files, instead of fsync for each
        _replace(folder, target)
    except BaseException:
        _finish_replacement(target)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _work(target: Path) -> Path:
    return target.with_name(f".{target.name}.sampling")  # not the working folder of `write_shards`


def _backup(target: Path) -> Path:
    return target.with_name(f".{target.name}.former")


def _empty(folder: Path) -> None:
    for inside in folder.iterdir():
        shutil.rmtree(inside) if inside.is_dir() and not inside.is_symlink() else inside.unlink()


def _replace(folder: Path, target: Path) -> None:
    """Rename a folder to `target`; an existing one is moved away before, and removed after."""
    if target.exists():
        target.rename(_backup(target))
    folder.rename(target)
    sync_path(target.parent)
    _finish_replacement(target)


def _finish_replacement(target: Path) -> None:
    """Remove the backup of `target` if the new folder has its name; otherwise restore the backup."""
    backup = _backup(target)
    if not backup.is_dir() or backup.is_symlink():
        return
    if target.exists():
        _refuse_other_files(backup)
        shutil.rmtree(backup, ignore_errors=True)
    else:
        backup.rename(target)
        sync_path(target.parent)


# --- shards -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GeneratedPart:
    """The samples of one shard; see `data.sources.Part`."""

    samples: Samples
    start: int
    stop: int

    @property
    def count(self) -> int:
        """See `Part`."""
        return self.stop - self.start

    def items(self) -> Iterator[tuple[int, Item]]:
        """See `Part`."""
        number = self.start
        for images, labels in self.samples.images(self.start, self.stop):
            for image, label in zip(images, labels, strict=True):
                share = (number + 1 - self.start) / self.count
                folders = (self.samples.class_names[label],) if label >= 0 else ()
                yield number, Item(f"sample {number}", folders, RawImage(image), share)
                number += 1


@dataclass(frozen=True, kw_only=True)
class GeneratedSource(Source):
    """The first `count` samples of a generator as a source of images; their classes are the labels given to it."""

    samples: Samples

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        return (item for _, item in GeneratedPart(self.samples, 0, self.count or 0).items())

    def all_folders(self) -> Sequence[Folders]:
        """See `Source`."""
        return [(name,) for name in self.samples.class_names] or [()]

    def parts(self, size: int, seed: int, count: int | None = None) -> Sequence[GeneratedPart]:
        """See `Source`; samples are not shuffled, since they are random already."""
        total = min(self.count or 0, count or self.count or 0)
        return [GeneratedPart(self.samples, start, min(start + size, total)) for start in range(0, total, size)]


def generated_source(samples: Samples, count: int) -> GeneratedSource:
    """Return the first `count` samples as a source of images."""
    identity: dict[str, str | int] = {
        "checkpoint": samples.digest,
        "step": samples.step,
        "samples_seed": samples.seed,
        "statistics": "running" if samples.model.sample_statistics == "running" else f"batches of {samples.block}",
    }
    if samples.label is not None:
        identity["label"] = samples.class_names[samples.label]
    if samples.truncation is not None:
        identity["truncation"] = str(samples.truncation)
    if samples.z_file is not None:
        identity["z"] = _file_digest(Path(samples.z_file))
    return GeneratedSource(
        name="generated",
        where=f"the generator of {samples.run.location} at step {samples.step}",
        identity=identity,
        image_size=samples.model.image_size,
        channels=samples.model.channels or 3,
        classes=samples.class_names or None,
        count=count,
        samples=samples,
    )


def _file_digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _write_shards(
    samples: Samples, count: int, output: Output, pool: TaskPool, report: Report, encoding: Encoding
) -> None:
    source = generated_source(samples, count)
    assert source.image_size is not None
    recipe = Recipe(
        image_size=source.image_size,
        channels=source.channels,
        encoding=encoding,
        shard_size=SHARD_SIZE,
        name=output.name,
    )

    target = output.path
    if is_url(target):
        _remove_remote_shards(target)
        write_shards(source, recipe, target, pool=pool, report=report)
        return
    if not os.path.lexists(target):
        write_shards(source, recipe, target, pool=pool, report=report)
        return
    whole = Path(target).absolute()
    new = whole.with_name(f".{whole.name}.new")
    write_shards(source, recipe, new, pool=pool, report=report)
    refuse_existing(output, overwrite=True)  # other files may have been added in the meantime
    _replace(new, whole)


def _remove_remote_shards(url: str) -> None:
    """Remove a set of shards that will be replaced, its manifest first: without it, the set counts as unfinished."""
    folder = folder_at(url)
    if MANIFEST_NAME not in folder.names():
        return
    manifest = read_manifest(url)
    folder.remove(MANIFEST_NAME, *(name for shard in manifest.shards for name in (shard.file, shard.index)))
    if manifest.keep is not None:
        folder.remove(manifest.keep.file)


__all__ = ["Form", "Output", "output_of", "refuse_existing", "write_samples"]
