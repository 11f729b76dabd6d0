"""Two families of networks in one sweep: trained by several workers of Ray Train, scored, judged and on the page.

That several workers train every family as one does is shown in `tests/training/test_families.py`, without Ray.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable

import pytest

from dcgan_dist.config import ModelConfig
from tests.conftest import metrics
from tests.launch.test_ray_tune import Driver, drive

__all__ = ["drive"]  # a fixture

pytestmark = pytest.mark.timeout(900)  # on a busy machine the processes of a sweep start slowly
PLAIN = ModelConfig()
SPACE = {
    "model.name": {"grid": ["cgan", "dcgan"]},
    "model.ngf, model.ndf": {"grid": [[4, 4]], "when": {"model.name": "dcgan"}},
    "model.generator_units, model.discriminator_units": {"grid": [["8", "8"]], "when": {"model.name": "cgan"}},
}


def test_networks_of_both_kinds_are_trained_by_workers_scored_judged_and_shown(drive: Callable[..., Driver]) -> None:
    driver = drive(
        **{"model.ngf": PLAIN.ngf, "model.ndf": PLAIN.ndf},  # the only widths that the family without convolutions has
        **{"cluster.workers": 2, "training.steps": 12, "milestones": 1, "space": SPACE},
        **{"objective": "coverage,representation", "score.task": "rooms", "score.data_count": 300, "score.count": 100},
        **{"score.labels_per_class": 5, "score.draws": 2, "score.finalists": 0},
    )
    code, out, err = driver.finish()
    assert (code, err) == (0, ""), out
    found = {trial["parameters"]["model.name"]: trial for trial in driver.ledger["trials"]}
    assert sorted(found) == ["cgan", "dcgan"]
    for name, trial in found.items():
        folder = driver.folder / "trials" / trial["trial"]
        assert (trial["status"], trial["step"]) == ("finished", 12), name
        assert {row["world_size"] for row in metrics(folder)} == {2}
        assert set(trial["scores"]) >= {"coverage", "representation", "stability"}
        assert (folder / "samples" / "step-00000012.png").exists()
        assert {"rooms", "fidelity"} <= set(json.loads((folder / "scores.json").read_text()))
    page = (driver.folder / "report.html").read_text()
    with (driver.folder / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["model.name"] for row in rows) == ["cgan", "dcgan"]
    assert all(trial["trial"] in page for trial in found.values())
