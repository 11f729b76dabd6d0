"""The importance of each setting for the objective of a sweep.

A random forest is trained to predict a trial's objective from its settings. Then the values of one setting are shuffled
among held-out trials, and the increase of the forest's error measures how much the prediction depends on that setting
(Breiman 2001, section 10). Half the increase, divided by the variance of the objective, is the total Sobol index of the
setting if the forest is perfect: the share of the variance that is due to the setting, alone or together with others.
The forest is not perfect, least of all with few trials, so the numbers tend to be too low; they are 0 on average for a
setting that does not matter.

All of this is repeated on bootstrap resamples of the trials, where the trials outside a resample are the held-out ones.
The mean is the result, and the 2.5th and 97.5th percentile are its interval.

Settings that were searched together (`model.ngf, model.ndf`) share their importance, because each determines the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dcgan_dist.sweeps.objective import VOID_VERDICTS
from dcgan_dist.sweeps.record import TrialRecord

FEWEST = 8
"""Trials with an objective that the measurement needs."""
RESAMPLES = 100
_TREES = 20
_SHUFFLES = 8

Floats = npt.NDArray[np.float64]


def importance(records: Iterable[TrialRecord], seed: int = 0) -> dict[str, dict[str, Any]] | None:
    """Return the importance of each setting that was searched, the most important first.

    A trial that diverged, collapsed or failed has no objective; it counts with the lowest objective of all trials.
    Trials that are still running, or were stopped before they had a score, are left out.

    Args:
        records: records of the trials.
        seed: seed of the resamples.

    Returns:
        ``{setting: {"value": share, "ci95": [low, high]}}``; None if fewer than 8 trials have an objective.
    """
    counted = [record for record in records if _counts(record)]
    found = [record.objective for record in counted if record.objective is not None]
    if len(found) < FEWEST:
        return None
    target = np.array([min(found) if record.objective is None else record.objective for record in counted])
    keys = list(dict.fromkeys(key for record in counted for key in record.parameters))
    columns = [_columns([record.parameters.get(key, _MISSING) for record in counted]) for key in keys]
    shares = _measure(columns, target, seed)
    intervals = np.percentile(shares, [2.5, 97.5], axis=0)
    measured: dict[str, dict[str, Any]] = {
        key: {"value": float(value), "ci95": [float(low), float(high)]}
        for key, value, low, high in zip(keys, shares.mean(axis=0), *intervals, strict=True)
    }
    return dict(sorted(measured.items(), key=lambda item: -item[1]["value"]))


def _counts(record: TrialRecord) -> bool:
    if not record.has_ended:
        return False
    return record.objective is not None or record.status in ("diverged", "failed") or record.verdict in VOID_VERDICTS


_MISSING = object()


def _columns(values: Sequence[object]) -> Floats:
    """Return a setting's values as columns that a tree can split, (trials, columns).

    Numbers become their ranks: a tree splits by order alone, so the scale, logarithmic or not, does not matter. Other
    values get one column each. Trials in which the setting was not searched, because its condition did not hold, get a
    separate value.
    """
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < sum(value is not _MISSING for value in values):
        names = [repr(value) for value in values]
        return np.array([[float(name == other) for other in sorted(set(names))] for name in names])
    ranks = {value: rank for rank, value in enumerate(sorted(set(numbers)))}
    # Below all ranks, by as much as they span, so that a single split separates it.
    missing = -len(ranks)
    return np.array([[float(ranks[value] if isinstance(value, int | float) else missing)] for value in values])


def _measure(columns: Sequence[Floats], target: Floats, seed: int) -> Floats:
    """Return the share of each setting in each resample, (resamples, settings)."""
    from sklearn.tree import DecisionTreeRegressor

    table, owner = np.concatenate(columns, axis=1), np.repeat(range(len(columns)), [part.shape[1] for part in columns])
    shares = np.zeros((RESAMPLES, len(columns)))
    variance = float(target.var())
    if variance == 0:
        return shares
    generator = np.random.default_rng(seed)
    for resample in shares:
        chosen = generator.integers(len(target), size=len(target))
        unseen = np.setdiff1d(np.arange(len(target)), chosen)
        if len(unseen) < 2:
            continue
        # Not scikit-learn's forest: with so little data, it spends most of its time on threads.
        forest = []
        for _ in range(_TREES):
            rows = generator.choice(chosen, size=len(chosen))
            tree = DecisionTreeRegressor(random_state=int(generator.integers(2**31)))
            forest.append(tree.fit(table[rows], target[rows]))
        tests = [table[unseen]]
        for setting in range(len(columns)):
            for _ in range(_SHUFFLES):
                shuffled = table[unseen].copy()
                mixed = generator.permutation(len(unseen))
                shuffled[:, owner == setting] = shuffled[mixed][:, owner == setting]
                tests.append(shuffled)
        inputs = np.concatenate(tests)
        predicted = np.mean([tree.predict(inputs) for tree in forest], axis=0).reshape(len(tests), len(unseen))
        errors = np.square(predicted - target[unseen]).mean(axis=1)
        growth = errors[1:].reshape(len(columns), _SHUFFLES).mean(axis=1) - errors[0]
        # In a shuffle of n trials, one in n keeps its own value on average: correct for it.
        resample[:] = growth * len(unseen) / (len(unseen) - 1) / (2 * variance)
    return shares


__all__ = ["importance"]
