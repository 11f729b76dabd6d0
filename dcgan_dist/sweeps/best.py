"""best.yaml: the settings of a sweep's best trial, as a file for `train --config`."""

from __future__ import annotations

import shlex

import yaml

from dcgan_dist.config import Config, override
from dcgan_dist.settings import as_record, as_text
from dcgan_dist.storage.folder import folder_at
from dcgan_dist.sweeps.ledger import Ledger, trial_location
from dcgan_dist.sweeps.record import TrialRecord
from dcgan_dist.sweeps.settings import SweepConfig
from dcgan_dist.sweeps.space import run_changes

BEST_NAME = "best.yaml"


def best_location(location: str) -> str:
    """Return the path or URL of a sweep's best.yaml."""
    return f"{location.rstrip('/')}/{BEST_NAME}"


def best_config(config: SweepConfig, record: TrialRecord) -> Config:
    """Return the settings of a trial to train it again, with another name and run directory.

    Raises:
        ConfigError: a value is not valid for its setting.
    """
    own = {"name": f"{config.name}-{record.trial}", "run_dir": None}
    return override(config.train, run_changes(record.parameters) | own)


def write_best(ledger: Ledger) -> str | None:
    """Write best.yaml, with all settings of the best trial's run, and return its location.

    Return None if no trial has an objective.

    Raises:
        StorageError: the file cannot be written.
    """
    best = ledger.best
    if best is None:
        return None
    content = yaml.safe_dump(as_record(best_config(ledger.config, best)), sort_keys=False)
    data = f"{_header(ledger, best)}\n{content}".encode()
    folder_at(ledger.location).write(BEST_NAME, data)
    return best_location(ledger.location)


def _header(ledger: Ledger, best: TrialRecord) -> str:
    verdict = f", {best.verdict}" if best.verdict else ""
    lines = [
        f"The best of {len(ledger.records)} trials of the sweep {ledger.config.name}: {best.trial}, by"
        f" {ledger.objective.label} {best.objective:.4g}{verdict}, after {best.step:,} of {best.steps:,} steps.",
        "Its values: " + ", ".join(f"{key} {as_text(value)}" for key, value in best.parameters.items()),
        f"Its run directory: {trial_location(ledger.location, best.trial)}",
        f"Train it: {train_command(ledger.location)}",
    ]
    if best.parent is not None:
        lines.append("Its values changed during the run (population based training): these are the last ones.")
    return "\n".join(f"# {line}" for line in lines)


def train_command(location: str) -> str:
    """Return the shell command that trains the best trial's settings in full."""
    return f"python -m dcgan_dist.train --config {shlex.quote(best_location(location))}"


__all__ = ["BEST_NAME", "best_config", "best_location", "train_command", "write_best"]
