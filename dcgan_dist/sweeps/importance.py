"""How much each setting matters for what a sweep scored.

A random forest learns to tell a trial's objective from its settings; then the values of one setting are shuffled among
trials that it has not seen, and its error grows by as much as that setting tells (Breiman 2001, section 10). Half that
growth, as a share of the objective's variance, is the total Sobol index of the setting if the forest is perfect: the
share of the differences that go by it, alone or together with others. The forest is not, least of all on few trials,
so the figures are rather too low than too high, and 0 on average for a setting that does not matter.

All of it is repeated on resampled trials (a bootstrap, so that the trials left out of a resample are those the forest
has not seen); the mean is the figure, and the 2.5th and 97.5th percentile are its interval.

Settings that were searched together (`model.ngf, model.ndf`) share their importance, since either tells the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dcgan_dist.sweeps.objective import VOID_VERDICTS
from dcgan_dist.sweeps.record import TrialRecord

FEWEST = 8
"""Trials with an objective without which there is nothing to tell."""
RESAMPLES = 100
_TREES = 20
_SHUFFLES = 8

Floats = npt.NDArray[np.float64]


def importance(records: Iterable[TrialRecord], seed: int = 0) -> dict[str, dict[str, Any]] | None:
    """Return the importance of each setting that was searched, the most important first.

    A trial that diverged, collapsed or failed, and so has no objective, counts with the lowest that any trial has.
    Those that are still on the way, or were broken off before they had a score, are left out.

    Args:
        records: of the trials.
        seed: of the resamples.

    Returns:
        ``{setting: {"value": share, "ci95": [low, high]}}``; None for fewer than 8 trials with an objective.
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
    """Whether a trial tells something of its settings."""
    if not record.has_ended:
        return False
    return record.objective is not None or record.status in ("diverged", "failed") or record.verdict in VOID_VERDICTS


_MISSING = object()


def _columns(values: Sequence[object]) -> Floats:
    """Return a setting's values as columns that a tree can split, (trials, columns).

    Numbers become their ranks: a tree splits by order alone, so the scale, logarithmic or not, is of no matter. Others
    get a column each. Where the setting was not searched, since its condition did not hold, is a value of its own.
    """
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < sum(value is not _MISSING for value in values):
        names = [repr(value) for value in values]
        return np.array([[float(name == other) for other in sorted(set(names))] for name in names])
    ranks = {value: rank for rank, value in enumerate(sorted(set(numbers)))}
    # Below all numbers, as far away as they reach, so that a split at the middle sets it apart.
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
        # A forest by hand: for so little data, scikit-learn's takes most of its time to hand its trees to threads.
        forest = []
        for _ in range(_TREES):
            again = generator.choice(chosen, size=len(chosen))
            tree = DecisionTreeRegressor(random_state=int(generator.integers(2**31)))
            forest.append(tree.fit(table[again], target[again]))
        tests = [table[unseen]]
        for setting in range(len(columns)):
            for _ in range(_SHUFFLES):
                shuffled = table[unseen].copy()
                mixed = generator.permutation(len(unseen))
                shuffled[:, owner == setting] = shuffled[mixed][:, owner == setting]
                tests.append(shuffled)
        rows = np.concatenate(tests)
        told = np.mean([tree.predict(rows) for tree in forest], axis=0).reshape(len(tests), len(unseen))
        errors = np.square(told - target[unseen]).mean(axis=1)
        growth = errors[1:].reshape(len(columns), _SHUFFLES).mean(axis=1) - errors[0]
        # A shuffled place keeps its own value once in so many times.
        resample[:] = growth * len(unseen) / (len(unseen) - 1) / (2 * variance)
    return shares


__all__ = ["importance"]
