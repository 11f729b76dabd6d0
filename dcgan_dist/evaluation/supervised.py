"""The supervised control of section 5.2: a classifier with the discriminator's architecture, trained on the labels.

Its learning rate, L2 penalty, momentum and dropout come from a random search, whose trials are compared on validation
images. For the protocols it is a `Learner` whose parameter is the number of the trial.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.config import ModelConfig
from dcgan_dist.evaluation.labelled import Labels
from dcgan_dist.evaluation.tasks import Classifier, Rows, Values, permutation, predict_all
from dcgan_dist.models import build_networks, initialise
from dcgan_dist.parallel import LocalPool, TaskPool

BATCH = 128
_PREDICTED = 256


@dataclass(frozen=True)
class Trial:
    """Hyperparameters of one training."""

    lr: float
    l2: float
    beta1: float
    dropout: float


def draw_trial(seed: int, number: int) -> Trial:
    """Return trial `number` of the search of a seed."""
    random = np.random.default_rng((seed, number))
    return Trial(
        lr=float(10 ** random.uniform(-4, -2.3)),
        l2=float(10 ** random.uniform(-6, -2.5)),
        beta1=float(random.choice([0.5, 0.9])),
        dropout=float(random.choice([0.0, 0.25, 0.5])),
    )


class _Network(nn.Module):
    """The conv layers of a discriminator, with a dense layer to the classes instead of one to a logit."""

    def __init__(self, model: ModelConfig, classes: int, dropout: float, seed: int) -> None:
        super().__init__()
        self.body = build_networks(model)[1]
        initialise(self.body, model, seed)
        assert model.image_size is not None
        assert model.channels is not None
        self.labels = model.classes or 0
        self.shape = (model.image_size, model.image_size, model.channels)
        with torch.no_grad():
            blank = torch.zeros(1, model.channels, model.image_size, model.image_size)
            units = self.body.eval().feature_maps(blank, blank.new_zeros(1, self.labels))[-1].numel()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(units, classes)
        with torch.no_grad():
            self.head.weight.normal_(0, 0.02, generator=torch.Generator().manual_seed(seed))
            self.head.bias.zero_()

    def forward(self, rows: Tensor) -> Tensor:
        """Return logits (n, classes) of flat images in [-1, 1], (n, rows * columns * channels)."""
        images = rows.view(len(rows), *self.shape).permute(0, 3, 1, 2)
        maps = self.body.feature_maps(images, images.new_zeros(len(rows), self.labels))[-1]
        logits: Tensor = self.head(self.dropout(maps.flatten(1)))
        return logits

    @torch.inference_mode()
    def predict(self, x: Tensor) -> Tensor:
        """See `Classifier`."""
        self.eval()
        device = self.head.weight.device
        return torch.cat([self(part.to(device)).argmax(dim=1) for part in x.split(_PREDICTED)]).cpu()


@dataclass(frozen=True)
class SupervisedCNN:
    """The learner that trains these classifiers.

    Attributes:
        model: settings of the discriminator.
        epochs: passes over the labelled images.
        seed: seed of trials, weights and order.
        device: where to predict.
        grid: numbers of the trials.
        pool: the processes that train.
        workers_device: device of these processes; `device` if None.
    """

    model: ModelConfig
    epochs: int
    seed: int
    device: torch.device
    grid: tuple[float, ...]
    parameter: str = "trial"
    pool: TaskPool = field(default_factory=lambda: LocalPool(1))
    workers_device: str | None = None

    def fit(
        self, values: Values, labels: Labels, draws: Sequence[Rows], grid: Sequence[float], classes: int
    ) -> Iterator[Sequence[Classifier]]:
        """See `Learner`."""
        trainings = [self._training(values, labels, rows, number, classes) for rows in draws for number in grid]
        with closing(self.pool.run(_train, trainings)) as networks:
            for _ in draws:
                yield [network.to(self.device) for network in islice(networks, len(grid))]

    def judge(self, values: Values, labels: Labels, draws: Sequence[Rows], held: Rows, classes: int) -> list[float]:
        """See `tasks.Judge`."""
        trials = [
            _Judged(self._training(values, labels, rows, number, classes), held, labels[held])
            for number in self.grid
            for rows in draws
        ]
        shares = np.array(list(self.pool.run(_train_and_judge, trials)))
        means: list[float] = shares.reshape(len(self.grid), len(draws)).mean(axis=1).tolist()
        return means

    def _training(self, values: Values, labels: Labels, rows: Rows, number: float, classes: int) -> _Training:
        where = self.workers_device or str(self.device)
        return _Training(self.model, self.epochs, self.seed, where, int(number), values, rows, labels[rows], classes)


@dataclass(frozen=True)
class _Training:
    """One trial on one draw of labels."""

    model: ModelConfig
    epochs: int
    seed: int
    device: str
    number: int
    values: Values
    rows: Rows
    labels: Labels  # of those rows
    classes: int


@dataclass(frozen=True)
class _Judged:
    """A training of the search, and the held-out rows on which it is judged."""

    training: _Training
    held: Rows
    labels: Labels  # of those rows


def _train_and_judge(trial: _Judged) -> float:
    """Return the share of held-out rows that the trained network classifies correctly."""
    device = torch.device(trial.training.device)
    found = predict_all([_train(trial.training).to(device)], trial.training.values, trial.held, device)
    return float((found[0].numpy() == trial.labels).mean())


def _train(training: _Training) -> _Network:
    """Train the network of a trial, and return it on the CPU."""
    seed, rows, device = training.seed, training.rows, torch.device(training.device)
    trial = draw_trial(seed, training.number)
    # Initial weights and dropout use the global random generator, whose state is restored afterwards.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        network = _Network(training.model, training.classes, trial.dropout, seed).to(device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        adam = torch.optim.Adam(
            network.parameters(), lr=trial.lr, betas=(trial.beta1, 0.999), weight_decay=trial.l2, fused=True
        )
        size = min(BATCH, len(rows))
        steps = training.epochs * (len(rows) // size)
        loss_of = nn.CrossEntropyLoss()
        network.train()
        done = 0
        for epoch in range(training.epochs):
            order = permutation(len(rows), seed, "cnn", epoch)
            for start in range(0, len(order) - size + 1, size):
                batch = order[start : start + size]
                for group in adam.param_groups:
                    group["lr"] = trial.lr * 0.5 * (1 + math.cos(math.pi * done / steps))
                loss = loss_of(
                    network(torch.from_numpy(training.values[rows[batch]]).to(device)),
                    torch.from_numpy(training.labels[batch]).to(device),
                )
                adam.zero_grad()
                loss.backward()
                adam.step()
                done += 1
    return network.eval().cpu()
