"""What is measured becomes plain numbers, and needs no Matplotlib."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from dcgan_dist.exploration.catalogue import FIGURES
from dcgan_dist.exploration.figure import IF_KNOWN, SHOWN, Measured, counted
from dcgan_dist.exploration.networks import Trained
from dcgan_dist.storage.files import to_json
from tests.conftest import environment


@dataclass(frozen=True)
class Part:
    values: torch.Tensor
    pixels: np.ndarray = field(metadata=SHOWN)


@dataclass(frozen=True, kw_only=True)
class Example(Measured):
    ids: range
    parts: dict[str, list[Part]]
    interval: tuple[float, float]
    guess: int | None
    known: int | None = field(metadata=IF_KNOWN)


def test_numbers_are_the_fields_without_those_that_are_only_shown() -> None:
    part = Part(torch.tensor([[1, 2]]), np.zeros(3))
    example = Example(subtitle="run", ids=range(2), parts={"a": [part]}, interval=(0.5, 1.0), guess=None, known=None)
    wanted = {"ids": [0, 1], "parts": {"a": [{"values": [[1, 2]]}]}, "interval": [0.5, 1.0], "guess": None}
    assert example.numbers == wanted
    assert Example(**{**vars(example), "known": 3}).numbers == wanted | {"known": 3}


def test_batches_are_counted_after_they_were_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dcgan_dist.data.progress.PLAIN_PERIOD_S", 0.0)
    with counted(["ab", "c"], 3, "letters") as batches:
        assert (next(batches), capsys.readouterr().err) == ("ab", "")
        assert list(batches) == ["c"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", ")[:2] for line in lines] == [["letters: 2 images", "67%"], ["letters: 3 images", "100%"]]


WORDS = {
    "walk": {"points": 2, "between": 1, "frames": 2},
    "filters": {"count": 16, "filters": ("0",), "data": "rooms:64"},
    "arithmetic": {"formula": "a - b", "concept": {"a": 1, "b": 2}},
    "turn": {"left": ("1",), "right": ("2",), "rows": 1, "measured": 0},
    "neighbours": {"count": 1, "compared": 20, "data": "rooms:64"},
    "evolution": {},
    "sheet": {"count": 3},
    "boxes": {"count": 3},
}

WITHOUT_MATPLOTLIB = """
import json, sys
sys.modules["matplotlib"] = None  # an import of it fails
from pathlib import Path
import torch
from dcgan_dist.exploration.catalogue import FIGURES
from dcgan_dist.exploration.networks import open_trained
from dcgan_dist.runs.run import Run
from dcgan_dist.storage.files import to_json

location, cache, words = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
run = open_trained(Run(location), "latest", seed=0, device=torch.device("cpu"), cache=cache)
for name, settings in words.items():
    figure = FIGURES[name]
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    measured = figure.measure(figure.settings(**given), run)
    print(json.dumps({name: [json.loads(to_json(measured.numbers)), figure.finding(measured)]}))
"""


def test_every_figure_is_measured_without_matplotlib_and_the_numbers_are_json(opened: Callable[..., Trained]) -> None:
    run = opened("cdcgan")
    assert set(WORDS) == set(FIGURES) - {"windows"}  # which needs boxes from a person or a trained judge
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MATPLOTLIB, run.location, str(run.cache), json.dumps(WORDS)],
        capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {name: pair for line in done.stdout.splitlines() for name, pair in json.loads(line).items()}
    assert set(found) == set(WORDS)
    sheet = FIGURES["sheet"].measure(FIGURES["sheet"].settings(count=3), run)
    assert found["sheet"] == [json.loads(to_json(sheet.numbers)), FIGURES["sheet"].finding(sheet)]
    assert all(isinstance(finding, str) and finding.endswith(".") for _, finding in found.values())
