"""A classifier of pictures of rooms, trained on procedural rooms, whose attributes are known.

It is independent of the networks that it judges: a small convolutional network, trained on rooms of a seed that no run
is trained or scored on. Samples of a generator are less sharp than rooms, so its training images are blurred and made
noisy at random. Its accuracy on held-out rooms is stored with it.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from dcgan_dist.data.images import Pixels, fit
from dcgan_dist.data.progress import ProgressLine
from dcgan_dist.data.rooms import VERSION, draw_room
from dcgan_dist.evaluation.labelled import ROOM_ATTRIBUTES, Labels
from dcgan_dist.storage.cache import one_at_a_time
from dcgan_dist.storage.files import write_atomically, writing

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are exclusive."""

MAP = 16  # side of the window map

_SEED = 3  # another seed than those of training (0) and scores (1)
_ROOMS, _HELD_OUT = 8000, 1000
_EPOCHS, _BATCH, _LR = 6, 64, 2e-3
_WINDOW = 0.5  # a position of the map with at least this probability counts as window
_FEWEST = 3  # positions of the map that a window has at least
# Part of the judge's file name in the cache, so that a changed recipe trains a new judge.
_RECIPE = (VERSION, _SEED, _ROOMS, _EPOCHS, _BATCH, _LR, MAP, "1")


class _Network(nn.Module):
    """Four conv layers: the attributes are read from the last, the window map from the second."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(_layer(3, 24), _layer(24, 48))
        self.high = nn.Sequential(_layer(48, 64), _layer(64, 96))
        self.where = nn.Sequential(_layer(48, 48, 1), nn.Conv2d(48, 1, 3, 1, 1))
        self.heads = nn.ModuleDict({name: nn.Linear(96 * 16, len(values)) for name, values in ROOM_ATTRIBUTES.items()})

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return logits of each attribute, (n, values), and of the window map, (n, MAP, MAP), of (n, 3, 64, 64)."""
        low = self.low(images)
        units = self.high(low).flatten(1)
        return {name: head(units) for name, head in self.heads.items()}, self.where(low)[:, 0]


def _layer(inputs: int, outputs: int, stride: int = 2) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


@dataclass(frozen=True)
class Judged:
    """The judge's predictions for n images.

    Attributes:
        attributes: index of the most probable value by attribute of `ROOM_ATTRIBUTES`, int64 (n,).
        probabilities: probabilities of the values by attribute, float32 (n, values).
        window_maps: probability that a position is inside the window, float32 (n, MAP, MAP).
    """

    attributes: dict[str, Labels]
    probabilities: dict[str, npt.NDArray[np.float32]]
    window_maps: npt.NDArray[np.float32]

    @property
    def has_window(self) -> npt.NDArray[np.bool_]:
        """Whether there is a window, (n,)."""
        return np.asarray(self.attributes["window"] == 1)

    def window_boxes(self, image_size: int) -> list[Box | None]:
        """Return the bounding box of each image's window, in pixels of images of that side; None without a window."""
        boxes: list[Box | None] = []
        for window_map, there in zip(self.window_maps, self.has_window, strict=True):
            rows, columns = np.nonzero(window_map >= _WINDOW)
            if not there or len(rows) < _FEWEST:
                boxes.append(None)
                continue
            unit = image_size / MAP
            edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            left, top, right, bottom = (round(float(edge) * unit) for edge in edges)
            boxes.append((left, top, right, bottom))
        return boxes


class RoomJudge:
    """A classifier of pictures of rooms.

    Attributes:
        accuracy: share of the held-out rooms that it classifies correctly, by attribute.
        window_overlap: mean intersection over union of its window maps with the true ones on those rooms.
    """

    def __init__(self, network: _Network, accuracy: dict[str, float], window_overlap: float) -> None:
        self._network = network.eval()
        self.accuracy = accuracy
        self.window_overlap = window_overlap

    @torch.inference_mode()
    def __call__(self, images: Pixels) -> Judged:
        """Classify uint8 images (n, S, S, C) of any size."""
        device = next(self._network.parameters()).device
        probabilities: dict[str, list[Tensor]] = {name: [] for name in ROOM_ATTRIBUTES}
        maps = []
        for start in range(0, len(images), 256):
            part = np.stack([fit(image, 64, 3) for image in images[start : start + 256]])
            logits, where = self._network(_scaled(part).to(device))
            for name, values in logits.items():
                probabilities[name].append(values.softmax(dim=1).cpu())
            maps.append(where.sigmoid().cpu())
        joined = {name: torch.cat(parts).numpy() for name, parts in probabilities.items()}
        return Judged({name: part.argmax(axis=1) for name, part in joined.items()}, joined, torch.cat(maps).numpy())


def room_judge(cache: Path, device: torch.device | str = "cpu") -> RoomJudge:
    """Return the judge; it is trained on first use (about a minute on two cores) and then kept in the cache.

    Raises:
        StorageError: the cache cannot be written.
    """
    path = cache / "judges" / f"rooms-{xxhash.xxh3_64_hexdigest(repr(_RECIPE).encode())}.safetensors"
    with one_at_a_time(cache, path.stem):
        try:
            return _read(path, device)
        except (FileNotFoundError, SafetensorError):  # not trained yet, or the file is incomplete
            network, accuracy, overlap = _train(torch.device(device))
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        about = {"about": json.dumps({"accuracy": accuracy, "window_overlap": overlap})}
        tensors = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
        write_atomically(path, safetensors.torch.save(tensors, about))
    return RoomJudge(network, accuracy, overlap)


def _read(path: Path, device: torch.device | str) -> RoomJudge:
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
        network = _Network()
        network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 it is no dict
    return RoomJudge(network.to(device), about["accuracy"], about["window_overlap"])


def _scaled(images: Pixels) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _rooms(first: int, count: int, line: ProgressLine) -> tuple[Pixels, dict[str, Tensor], Tensor]:
    """Draw rooms and return their images, the indices of their attributes' values, and their window maps."""
    images = np.empty((count, 64, 64, 3), np.uint8)
    labels = {name: torch.empty(count, dtype=torch.int64) for name in ROOM_ATTRIBUTES}
    maps = torch.zeros(count, MAP, MAP)
    centres = (np.arange(MAP) + 0.5) * 64 / MAP
    for number in range(count):
        images[number], attributes = draw_room(_SEED, first + number)
        box = attributes["window_box"]
        for name, values in ROOM_ATTRIBUTES.items():
            labels[name][number] = values.index(box is not None if name == "window" else attributes[name])
        if box is not None:
            inside = ((centres >= box[1]) & (centres < box[3]))[:, None] & ((centres >= box[0]) & (centres < box[2]))
            maps[number] = torch.from_numpy(inside)
        if number % 100 == 99:
            line(first + number + 1, (first + number + 1) / (_ROOMS + _HELD_OUT) * 0.3, 0)
    return images, labels, maps


def _train(device: torch.device) -> tuple[_Network, dict[str, float], float]:
    """Return a trained judge, its accuracy on held-out rooms, and the overlap of its window maps with the true ones."""
    with closing(ProgressLine("judge of rooms")) as line:
        images, labels, maps = _rooms(0, _ROOMS, line)
        random = torch.Generator().manual_seed(_SEED)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(_SEED)
            network = _Network().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        adam = torch.optim.AdamW(network.parameters(), lr=_LR, weight_decay=0.01)
        batches = _ROOMS // _BATCH
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, _EPOCHS * batches)
        for epoch in range(_EPOCHS):
            for number, rows in enumerate(torch.randperm(_ROOMS, generator=random).view(-1, _BATCH)):
                x = _blurred(_scaled(images[rows.numpy()]), random).to(device)
                logits, where = network(x)
                loss = functional.binary_cross_entropy_with_logits(where, maps[rows].to(device)) * 2
                for name, values in logits.items():
                    loss = loss + functional.cross_entropy(values, labels[name][rows].to(device))
                adam.zero_grad()
                loss.backward()
                adam.step()
                schedule.step()
                done = epoch * batches + number + 1
                line(done, 0.3 + 0.7 * done / (_EPOCHS * batches), 0)
        held_out, truth, true_maps = _rooms(_ROOMS, _HELD_OUT, line)
        judged = RoomJudge(network, {}, 0.0)(held_out)
    accuracy = {
        name: round(float((found == truth[name].numpy()).mean()), 4) for name, found in judged.attributes.items()
    }
    seen, true = judged.window_maps >= _WINDOW, true_maps.numpy() > 0
    there = true.any(axis=(1, 2))
    overlap = (seen & true).sum(axis=(1, 2))[there] / (seen | true).sum(axis=(1, 2))[there]
    return network, accuracy, round(float(overlap.mean()), 4)


def _blurred(images: Tensor, random: torch.Generator) -> Tensor:
    soft = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    # Half of the images are blurred, to a random degree; all get noise of a random strength.
    share = torch.rand(len(images), 1, 1, 1, generator=random).mul_(2).sub_(1).clamp_(min=0)
    noise = torch.randn(images.shape, generator=random) * torch.rand(len(images), 1, 1, 1, generator=random) * 0.12
    return torch.lerp(images, soft, share) + noise


__all__ = ["MAP", "Box", "Judged", "RoomJudge", "room_judge"]
