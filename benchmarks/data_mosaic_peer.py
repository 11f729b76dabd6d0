"""Reads images with mosaicml-streaming, in its own environment without this package.

Started as a script with a folder of tars (``jpg/*.tar``, ``raw/*.tar``) and the batch size, it writes their images as
MDS shards to the same folder, prints the versions of its packages, and then reads an epoch for each line ``jpg`` or
``raw`` of its standard input, and prints the number of images.
"""

import json
import sys
import tarfile
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

SIZE = 64


def write_mds(streaming: Any, tars: list[Path], output: Path, encoding: str) -> None:
    """Write the images of some tars, with the same bytes, as MDS shards."""
    columns = {"image": "jpeg" if encoding == "jpg" else "ndarray:uint8:64,64,3"}
    with streaming.MDSWriter(out=str(output), columns=columns) as writer:
        for tar in tars:
            with tarfile.open(tar) as archive:
                for member in archive:
                    file = archive.extractfile(member)
                    if file is None or not member.name.endswith(f".{encoding}"):
                        continue
                    content: Any = file.read()
                    if encoding == "raw":
                        content = np.frombuffer(content, dtype=np.uint8).reshape(SIZE, SIZE, 3)
                    writer.write({"image": content})


def make_loader(streaming: Any, folder: Path, batch: int) -> Any:
    """Return a loader of shuffled batches (n, 64, 64, 3) of uint8."""

    class Images(streaming.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: int) -> torch.Tensor:
            return torch.from_numpy(np.array(super().__getitem__(at)["image"]))

    dataset = Images(local=str(folder), shuffle=True, batch_size=batch)
    return torch.utils.data.DataLoader(dataset, batch_size=batch)


def main() -> None:
    """Read an epoch for each line of the standard input."""
    streaming = import_module("streaming")
    torch.set_num_threads(1)
    scratch, batch = Path(sys.argv[1]), int(sys.argv[2])
    loaders = {}
    for encoding in ("jpg", "raw"):
        output = scratch / f"mds-{encoding}"
        write_mds(streaming, sorted((scratch / encoding).glob("*.tar")), output, encoding)
        loaders[encoding] = make_loader(streaming, output, batch)
    versions = {name: metadata.version(name) for name in ("mosaicml-streaming", "torch", "numpy", "pillow")}
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        print(sum(len(images) for images in loaders[line.strip()]), flush=True)


if __name__ == "__main__":
    main()
