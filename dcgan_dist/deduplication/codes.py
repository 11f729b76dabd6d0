"""The binary codes of all images of a set, computed in parallel, one task per shard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from safetensors.torch import load

from dcgan_dist.data.dataset import Dataset
from dcgan_dist.data.images import Pixels, decode, decode_stored, fit
from dcgan_dist.deduplication.autoencoder import SIDE, Autoencoder
from dcgan_dist.errors import DataError, Unreachable
from dcgan_dist.parallel import TaskPool
from dcgan_dist.storage.folder import folder_at

Codes = npt.NDArray[np.uint64]
"""Binary codes, shape (n, words): bit b of a code is bit b % 64 of word b // 64."""

_BATCH = 512  # images in one matrix product


@dataclass(frozen=True)
class HashTask:
    """A shard to hash; the file `weights` in the shards' folder `location` has the network, `digest` is its xxh3_64."""

    dataset: Dataset
    shard: int
    location: str
    weights: str
    digest: str


def hash_shard(task: HashTask) -> tuple[bytes, bytes]:
    """Return the codes of a shard's images, in order, and which images could be read.

    Returns:
        (n, words) uint64 as bytes, and n bools, packed.

    Raises:
        DataError: the network cannot be read, or has another digest.
        Unreachable: the shard is remote, and the storage was not reached.
    """
    network = _network(task.location, task.weights, task.digest)
    count = task.dataset.manifest.shards[task.shard].samples
    codes = np.zeros((count, words_of(len(network.thresholds))), dtype=np.uint64)
    readable = np.zeros(count, dtype=np.bool_)
    images = np.empty((_BATCH, SIDE, SIDE, 3), dtype=np.uint8)
    waiting: list[int] = []

    def flush() -> None:
        # Always the same number of rows: with another number, the last bits of the product may differ.
        bits = network.bits(torch.from_numpy(images)).numpy()
        codes[waiting] = pack_codes(bits[: len(waiting)])
        waiting.clear()

    with _one_thread():
        for row, image in enumerate(read_shard(task.dataset, task.shard, range(count))):
            if image is None:
                continue
            images[len(waiting)] = fit(image, SIDE, 3)
            readable[row] = True
            waiting.append(row)
            if len(waiting) == _BATCH:
                flush()
        if waiting:
            images[len(waiting) :] = 0
            flush()
    return codes.tobytes(), np.packbits(readable).tobytes()


def hash_all(
    dataset: Dataset, location: str, weights: str, digest: str, code_size: int, pool: TaskPool
) -> Iterator[tuple[Codes, npt.NDArray[np.bool_]]]:
    """Yield the codes (n, words) of each shard in order, and which of its images could be read (n,)."""
    tasks = (HashTask(dataset, shard, location, weights, digest) for shard in range(len(dataset.tars)))
    for (content, readable), about in zip(pool.run(hash_shard, tasks), dataset.manifest.shards, strict=True):
        codes = np.frombuffer(content, dtype=np.uint64).reshape(about.samples, words_of(code_size))
        read = np.unpackbits(np.frombuffer(readable, dtype=np.uint8), count=about.samples)
        yield codes, read.astype(np.bool_)


def read_shard(dataset: Dataset, shard: int, rows: range | list[int]) -> Iterator[Pixels | None]:
    """Yield some images of a shard, (rows, columns, channels) as they are stored; None for a damaged one.

    Raises:
        Unreachable: it is remote, and the storage was not reached.
    """
    try:
        records = dataset.records(shard)
        content = dataset.content(shard)
    except Unreachable:
        raise
    except DataError:
        yield from (None for _ in rows)
        return
    manifest = dataset.manifest
    for row in rows:
        record = records[row]
        start, size = int(record["offset"]), int(record["size"])
        part = content[start : start + size]
        if len(part) < size or xxhash.xxh3_64_intdigest(part) != int(record["digest"]):
            yield None
            continue
        try:
            if manifest.image_size is None:
                yield decode(bytes(part), manifest.channels)
            else:
                yield decode_stored(bytes(part), manifest.encoding, manifest.image_size, manifest.channels)
        except DataError:
            yield None


def words_of(code_size: int) -> int:
    """Return the number of 64-bit words that hold a code."""
    return -(-code_size // 64)


def pack_codes(bits: npt.NDArray[np.bool_]) -> Codes:
    """Return bits (n, code_size) as codes (n, words)."""
    padded = np.zeros((len(bits), words_of(bits.shape[1]) * 64), dtype=np.bool_)
    padded[:, : bits.shape[1]] = bits
    return np.packbits(padded, axis=1, bitorder="little").view("<u8").astype(np.uint64, copy=False)


@lru_cache(maxsize=1)
def _network(location: str, name: str, digest: str) -> Autoencoder:
    content = folder_at(location).read(name)
    if xxhash.xxh3_64_hexdigest(content) != digest:
        raise DataError(f"{name} at {location!r} was changed by another process: let one at a time de-duplicate it")
    return Autoencoder.from_weights(load(content))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread within the block: with more, the last bits of a sum may differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
