"""Find the near-duplicates of a finished set of shards, and keep one image of each group (section 4.1).

::

    train the autoencoder on some of the images ─> choose thresholds ─> hash every image in one pass ─> group the codes
    write the results to the folder of the shards ─> write the manifest, which names the keep-list, last

Until the manifest is replaced, the set is unchanged: no file that the old manifest names is touched before.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xxhash

from dcgan_dist.data.dataset import Dataset, open_dataset
from dcgan_dist.data.images import fit
from dcgan_dist.data.manifest import KEEP_NAME, MANIFEST_NAME, KeepList, Manifest, pack_keep
from dcgan_dist.data.progress import ProgressLine
from dcgan_dist.data.settings import DeduplicationConfig
from dcgan_dist.data.stream import ImageStream
from dcgan_dist.deduplication.audit import audit_page
from dcgan_dist.deduplication.autoencoder import SIDE, Autoencoder, jitter, to_values, train_autoencoder
from dcgan_dist.deduplication.codes import Codes, hash_all, words_of
from dcgan_dist.deduplication.groups import find_groups
from dcgan_dist.deduplication.summary import Summary
from dcgan_dist.deduplication.thresholds import choose_thresholds, choose_units
from dcgan_dist.distributed import pick_device
from dcgan_dist.errors import DataError, StorageError
from dcgan_dist.parallel import TaskPool
from dcgan_dist.storage.folder import Folder, folder_at

SUMMARY_NAME, PAGE_NAME, NETWORK_NAME = "dedup.json", "dedup.html", "dedup.safetensors"
_WORKING_NAME = "dedup.working.safetensors"
# Increased when the keep-list of the same settings changes.
_REVISION = 1

_CALIBRATION = 20_000  # images from which thresholds are chosen
_NEAR_NOISE = 0.05  # on their copies, about that of JPEG
_BATCH = 64  # small, since the last partial batch is left out


def deduplicate(
    location: str, settings: DeduplicationConfig, *, seed: int, pool: TaskPool, say: Callable[[str], None]
) -> Summary:
    """Find the near-duplicates in a set of shards, and write a keep-list with the first image of each group.

    The same set, settings and seed give the same keep-list with any number of workers.

    Args:
        location: folder or URL of shards made by `prepare`.
        settings: see `DeduplicationConfig`.
        seed: of all random numbers.
        pool: hashes the shards.
        say: called with lines for people.

    Raises:
        DataError: there are no such shards, or no image in them can be read.
        StorageError: the results cannot be written.
        WorkerFailed: a worker process died.
    """
    folder = folder_at(location)
    if MANIFEST_NAME not in folder.names():
        raise DataError(
            f"{location!r} has no {MANIFEST_NAME}: give a folder of finished shards "
            "(of tars made elsewhere, prepare --source webdataset makes them)"
        )
    manifest = Manifest.from_json(folder.read(MANIFEST_NAME), f"{location}/{MANIFEST_NAME}")
    dataset = _all_images(location)
    made_with = {"revision": _REVISION, "set": dataset.digest, "seed": seed, **asdict(settings)}
    finished = _find_finished(folder, manifest, made_with)
    if finished is not None:
        say(f"{location} is de-duplicated with these settings already: {finished.describe()}")
        return finished

    images = _training_images(dataset, settings.count, seed)
    device = pick_device("auto")
    say(f"training the autoencoder on {len(images):,} images, on the {'GPU' if device.type == 'cuda' else 'CPU'}")
    network, loss = train_autoencoder(images, settings, seed=seed, device=device)
    units = calibrate(network, images[:_CALIBRATION], settings, count=manifest.count, seed=seed)
    trained_on = len(images)
    del images
    say(f"loss {loss:.4f}; {len(units)} of {settings.code_size} units make up the code")
    say(f"hashing {manifest.count:,} images")

    try:
        weights = network.weights()
        digest = xxhash.xxh3_64_hexdigest(weights)
        _write(folder, _WORKING_NAME, weights)
        codes, readable = _hash(dataset, location, digest, settings.code_size, pool)
        first = find_groups(codes, readable, settings.radius, settings.code_size)
        del codes
        kept = first == np.arange(len(first), dtype=np.uint32)
        content = pack_keep(kept)
        sizes = np.bincount(first, minlength=1)
        summary = Summary(
            images=len(first),
            kept=int(kept.sum()),
            removed=int((~kept).sum()),
            damaged=int((~readable).sum()),
            groups=int((sizes > 1).sum()),
            group_sizes={str(size): int(n) for size, n in enumerate(np.bincount(sizes)) if size > 1 and n},
            trained_on=trained_on,
            loss=loss,
            units=units,
            keep=xxhash.xxh3_64_hexdigest(content),
            network=digest,
            made_with=made_with,
            versions={"torch": torch.__version__},
            device=device.type,
        )
        say("reading the images of the audit page")
        page = audit_page(dataset, first, sizes, summary, seed)
        _publish(folder, manifest, summary, content, weights, page)
    except OSError as error:
        raise StorageError(f"{location!r} cannot be de-duplicated: {error.strerror or error}") from error
    say(f"{location}: {summary.describe()}; check {PAGE_NAME} there")
    return summary


def calibrate(
    network: Autoencoder, images: torch.Tensor, settings: DeduplicationConfig, *, count: int, seed: int
) -> list[int]:
    """Choose a network's thresholds from some images, and return the units that make up the code.

    Args:
        network: trained; its thresholds are set in place.
        images: uint8, shape (n, 32, 32, 3).
        settings: radius, units and jitter are used.
        count: number of images in the whole set.
        seed: of the changes of the copies.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    parts: list[list[torch.Tensor]] = [[], [], []]
    with torch.inference_mode():
        for part in images.split(2048):
            values = to_values(part)
            copies = jitter(values, settings.jitter, generator)
            copies += torch.randn(copies.shape, generator=generator) * _NEAR_NOISE
            for found, some in zip(parts, (values, copies, to_values(part.flip(2))), strict=True):
                found.append(network.encode(some).relu())
    one, copy, mirrored = (torch.cat(found).numpy() for found in parts)
    thresholds = choose_thresholds(one, copy, mirrored)
    wanted = settings.units or (settings.code_size if settings.radius else None)
    units = choose_units(one > thresholds, copy > thresholds, mirrored > thresholds, count, wanted)
    network.thresholds.fill_(torch.inf)
    network.thresholds[units] = torch.from_numpy(thresholds[units])
    return units


def _all_images(location: str) -> Dataset:
    """Return the set without its keep-list."""
    dataset = open_dataset(location)
    return replace(dataset, keep=None, manifest=replace(dataset.manifest, keep=None))


def _find_finished(folder: Folder, manifest: Manifest, made_with: dict[str, Any]) -> Summary | None:
    names = folder.names()
    if manifest.keep is None or not {manifest.keep.file, SUMMARY_NAME, PAGE_NAME, NETWORK_NAME} <= names:
        return None
    try:
        summary = Summary(**json.loads(folder.read(SUMMARY_NAME)))
    except (ValueError, TypeError):  # written by another version, or damaged
        return None
    same = summary.made_with == made_with and summary.keep == manifest.keep.digest
    return summary if same and xxhash.xxh3_64_hexdigest(folder.read(manifest.keep.file)) == summary.keep else None


def _training_images(dataset: Dataset, most: int, seed: int) -> torch.Tensor:
    """Return up to `most` images in the order of the stream, at 32x32 and in three channels."""
    stream = ImageStream(dataset, seed=seed, batch_size=min(_BATCH, dataset.count))
    images = np.empty((min(most, dataset.count), SIDE, SIDE, 3), dtype=np.uint8)
    filled = 0
    progress = ProgressLine("reading")
    with stream.iterate(0, stream.batches_per_epoch) as batches:
        for batch in batches:
            for image in batch.images.numpy()[: len(images) - filled]:
                images[filled] = fit(image, SIDE, 3)
                filled += 1
            progress(filled, filled / len(images), 0)
            if filled == len(images):
                break
    progress.close()
    if not filled:
        raise DataError(f"{dataset.path!r}: none of its images can be read: check it with prepare --verify")
    return torch.from_numpy(images[:filled])


def _hash(
    dataset: Dataset, location: str, digest: str, code_size: int, pool: TaskPool
) -> tuple[Codes, npt.NDArray[np.bool_]]:
    count = dataset.count
    codes = np.empty((count, words_of(code_size)), dtype=np.uint64)
    readable = np.empty(count, dtype=np.bool_)
    starts = list(accumulate((shard.samples for shard in dataset.manifest.shards), initial=0))
    progress = ProgressLine("hashing")
    results = hash_all(dataset, location, _WORKING_NAME, digest, code_size, pool)
    bad = 0
    for start, stop, (some, read) in zip(starts[:-1], starts[1:], results, strict=True):
        codes[start:stop], readable[start:stop] = some, read
        bad += int((~read).sum())
        progress(stop, stop / count, bad)
    progress.close()
    return codes, readable


def _publish(folder: Folder, manifest: Manifest, summary: Summary, keep: bytes, weights: bytes, page: str) -> None:
    """Write all results, the manifest last."""
    old = manifest.keep
    # The current manifest names a keep-list: write the new one under another name, so that the set is always valid.
    taken = old is not None and old.file == KEEP_NAME and old.digest != summary.keep
    name = f"{summary.keep}-{KEEP_NAME}" if taken else KEEP_NAME
    _write(folder, name, keep)
    _write(folder, NETWORK_NAME, weights)
    _write(folder, PAGE_NAME, page.encode())
    _write(folder, SUMMARY_NAME, (json.dumps(asdict(summary), indent=1) + "\n").encode())
    named = KeepList(file=name, count=summary.kept, digest=summary.keep)
    _write(folder, MANIFEST_NAME, replace(manifest, keep=named).to_json().encode())
    folder.remove(_WORKING_NAME)
    if old is not None and old.file != name:
        folder.remove(old.file)


def _write(folder: Folder, name: str, content: bytes) -> None:
    with folder.new(name) as file:
        file.write(content)
