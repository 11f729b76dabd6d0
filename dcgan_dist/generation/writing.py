"""Samples on disk: as one grid, a folder of images, a NumPy archive, or shards that the stream can read.

What stands under the output's name is whole: it is made under another name first. Worker processes compute the samples,
a few blocks at a time, so that millions of them need no more memory than a few.
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
STRETCH = 4 * BLOCK  # samples of one task
SHARD_SIZE = 32 * BLOCK
_GAP = 2  # pixels between the images of a grid
# Files that `sample` writes, or that belong to a set of shards: nothing else is ever overwritten.
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
    """Where samples go and in which form.

    Attributes:
        form: one picture, a folder of PNGs (of a conditional run in one sub-folder a class), a .npz or shards.
        path: the file or folder, or URL.
        name: first part of the names of shards.
    """

    form: Form
    path: str
    name: str = "samples"


def output_of(path: str, form: Form | None = None) -> Output:
    """Return what a path means: `.png` a grid, `.npz` an archive, `DIR/NAME-%06d.tar` shards, else a folder of images.

    Args:
        path: a path or URL.
        form: what it means in place of that.

    Raises:
        ConfigError: a folder of images as a URL, a grid or an archive that is named as something else, or a name that
            says nothing of its form.
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


def put_right(output: Output) -> None:
    """Put a folder of images back, or remove it, that a `sample --overwrite` had moved away when it was killed.

    Raises:
        ConfigError: what was moved away holds other files now.
        DataError: another process makes the same output.
    """
    target = Path(output.path).absolute()
    if output.form != "folder" or not _former(target).is_dir():
        return
    work = _work(target)
    lock = lock_folder(work, output.path)
    try:
        _end_replacing(target)
        with suppress(OSError):  # not empty: the next `sample` sees to it
            work.rmdir()
    finally:
        os.close(lock)


def refuse_existing(output: Output, overwrite: bool) -> None:
    """Check that nothing stands where the samples go, or that it may be replaced.

    Raises:
        ConfigError: there is something, and `overwrite` is false; or it was not made by `sample` or `prepare`.
        RunDirectoryError: its folder cannot be written.
        DataError: remote storage cannot be reached.
    """
    if not is_url(output.path):
        check_writable(str(Path(output.path).absolute().parent))
    found = _stands_at_url(output) if is_url(output.path) else os.path.lexists(output.path)
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
    _refuse_others(path)


def _refuse_others(folder: Path) -> None:
    """Check that a folder holds nothing but what `sample` and `prepare` write, since it is to be replaced."""
    other = next((name for _, _, names in os.walk(folder) for name in names if not _OWN_FILES.fullmatch(name)), None)
    if other is not None:
        raise ConfigError(f"output {str(folder)!r} holds other files, such as {other!r}: name another folder")


def _stands_at_url(output: Output) -> bool:
    if output.form == "shards":
        return MANIFEST_NAME in folder_at(output.path).names()
    folder, name = _place_and_name(output.path)
    return name in folder_at(folder).names()


def _place_and_name(path: str) -> tuple[str, str]:
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
        samples: what they are.
        count: how many.
        output: where to and in which form.
        pool: the processes that compute and encode them.
        report: told of the progress, as by `write_shards`.
        encoding: of images in shards.
        overwrite: whether to replace what stands there; see `refuse_existing`.

    Raises:
        ConfigError: the output exists, or a grid would be too large.
        RunDirectoryError: the run cannot give the samples.
        DataError: the output cannot be used.
        StorageError: the disk is full or fails.
        WorkerFailed: a worker process died.
    """
    put_right(output)
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
class _Stretch:
    """The samples of one task."""

    samples: Samples
    start: int
    stop: int


def _stretches(samples: Samples, count: int) -> Iterator[_Stretch]:
    for start in range(0, count, STRETCH):
        yield _Stretch(samples, start, min(start + STRETCH, count))


def _computed(stretch: _Stretch) -> tuple[Pixels, Labels]:
    """Return the images and labels of a stretch (in a worker process)."""
    images, labels = zip(*stretch.samples.images(stretch.start, stretch.stop), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _encoded(stretch: _Stretch) -> list[bytes]:
    """Return the images of a stretch as PNG files (in a worker process)."""
    images, _ = _computed(stretch)
    return [encode(image, "png") for image in images]


def _all_images(samples: Samples, count: int, pool: TaskPool, report: Report) -> Iterator[Pixels]:
    done = 0
    with closing(pool.run(_computed, _stretches(samples, count))) as results:
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
    """Return the numbers of the images of a grid whose rows have one class each, -1 for a place that stays blank.

    The classes take turns, a row each, until all images are placed.
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

    Of a conditional run also `labels` (count,), and the names of its `classes`.
    """
    size, channels = samples.model.image_size, samples.model.channels
    with _new(output, overwrite) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        if samples.is_conditional:
            stretches = (samples.labels(part.start, part.stop) for part in _stretches(samples, count))
            _add_array(archive, "labels", (count,), "<i8", stretches)
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
    """Give a file to write to, which gets its name when all of it is there."""
    folder, name = _place_and_name(output.path)
    place = folder_at(folder)
    if place.path is not None:
        place.path.mkdir(parents=True, exist_ok=True)
    with place.new(name) as file:
        yield file
        refuse_existing(output, overwrite)  # it may have come meanwhile


# --- a folder ---------------------------------------------------------------------------------------------------------


def _write_folder(
    samples: Samples, count: int, output: Output, pool: TaskPool, report: Report, overwrite: bool
) -> None:
    with _new_folder(output, overwrite) as folder, closing(pool.run(_encoded, _stretches(samples, count))) as results:
        places = [folder]
        if samples.is_conditional:
            places = [folder / _folder_name(number, name) for number, name in enumerate(samples.class_names)]
        for stretch, images in zip(_stretches(samples, count), results, strict=True):
            labels = samples.labels(stretch.start, stretch.stop)
            for number, label, content in zip(range(stretch.start, stretch.stop), labels, images, strict=True):
                place = places[max(int(label), 0)]
                place.mkdir(exist_ok=True)
                (place / f"{number:08d}.png").write_bytes(content)
            report(stretch.stop, stretch.stop / count, 0, 0)


def _folder_name(number: int, name: str) -> str:
    """Return the name of the folder of a class: its own, where that can be one."""
    is_plain = name not in ("", ".", "..") and not set(name) & set("/\\\0")
    return name if is_plain else str(number)


@contextmanager
def _new_folder(output: Output, overwrite: bool) -> Iterator[Path]:
    """Give a new folder: it gets its name at the end of the block, in place of what had it, or goes if that fails."""
    target = Path(output.path).absolute()
    folder = _work(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder, output.path)
    try:
        _refuse_others(folder)
    except ConfigError:
        os.close(lock)
        raise
    try:
        _empty(folder)  # of what a killed run left
        yield folder
        refuse_existing(output, overwrite)  # it may have come meanwhile
        os.sync()  # millions of files at once, not one by one
        _replace(folder, target)
    except BaseException:
        _end_replacing(target)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _work(target: Path) -> Path:
    return target.with_name(f".{target.name}.sampling")  # not the one that `write_shards` works in


def _former(target: Path) -> Path:
    return target.with_name(f".{target.name}.former")


def _empty(folder: Path) -> None:
    for inside in folder.iterdir():
        shutil.rmtree(inside) if inside.is_dir() and not inside.is_symlink() else inside.unlink()


def _replace(folder: Path, target: Path) -> None:
    """Give a folder its name; what had it goes only then."""
    if target.exists():
        target.rename(_former(target))
    folder.rename(target)
    sync_path(target.parent)
    _end_replacing(target)


def _end_replacing(target: Path) -> None:
    """Remove what was moved away for a folder that is in its place, or put it back where there is none."""
    former = _former(target)
    if not former.is_dir() or former.is_symlink():
        return
    if target.exists():
        _refuse_others(former)
        shutil.rmtree(former, ignore_errors=True)
    else:
        former.rename(target)
        sync_path(target.parent)


# --- shards -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GeneratedPart:
    """Samples of one shard; see `data.sources.Part`."""

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
    """The first `count` samples of a generator as a source of images; their classes are those asked for."""

    samples: Samples

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        return (item for _, item in GeneratedPart(self.samples, 0, self.count or 0).items())

    def all_folders(self) -> Sequence[Folders]:
        """See `Source`."""
        return [(name,) for name in self.samples.class_names] or [()]

    def parts(self, size: int, seed: int, count: int | None = None) -> Sequence[GeneratedPart]:
        """See `Source`; the samples are in their order, since any part of them is a random one."""
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
    beside = whole.with_name(f".{whole.name}.new")
    write_shards(source, recipe, beside, pool=pool, report=report)
    refuse_existing(output, overwrite=True)  # other files may have come meanwhile
    _replace(beside, whole)


def _remove_remote_shards(url: str) -> None:
    """Remove a set of shards that is to be replaced, its manifest first: without one it is not finished."""
    place = folder_at(url)
    if MANIFEST_NAME not in place.names():
        return
    manifest = read_manifest(url)
    place.remove(MANIFEST_NAME, *(name for shard in manifest.shards for name in (shard.file, shard.index)))
    if manifest.keep is not None:
        place.remove(manifest.keep.file)


__all__ = ["Form", "Output", "output_of", "refuse_existing", "write_samples"]
