"""The values that the next trial of a sweep tries: drawn at random, from a grid, or suggested by Optuna."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from dcgan_dist.sweeps.objective import Objective
from dcgan_dist.sweeps.record import TrialRecord
from dcgan_dist.sweeps.settings import SweepConfig
from dcgan_dist.sweeps.space import Space, Values

if TYPE_CHECKING:
    import optuna


class Proposals(Protocol):
    """A search algorithm, which proposes the values of trials.

    Attributes:
        total: number of trials in all.
    """

    total: int

    def propose(self, trial: str, number: int) -> Values:
        """Return the values of trial `number`, named `trial`."""

    def tell(self, record: TrialRecord) -> None:
        """Learn from a trial that has ended."""


class _Fixed:
    """Values that do not depend on the scores of earlier trials."""

    def __init__(self, total: int, values: Callable[[int], Values]) -> None:
        self.total = total
        self._values = values

    def propose(self, trial: str, number: int) -> Values:
        return self._values(number)

    def tell(self, record: TrialRecord) -> None:
        pass


class OptunaProposals:
    """Values by Optuna's tree-structured Parzen estimator; multi-objective if the objective has several scores.

    A trial that was stopped early counts as pruned at its step. A trial that diverged or collapsed counts as worse than
    all others, so that the estimator avoids its region.
    """

    def __init__(self, space: Space, objective: Objective, seed: int, total: int, ended: Iterable[TrialRecord]) -> None:
        """Create a study with the trials that have ended."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        records = list(ended)
        self.total = total
        self._space, self._objective = space, objective
        directions = [optuna.study.StudyDirection.MAXIMIZE] * (len(objective.names) if objective.is_multiple else 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Several trials run at a time: with constant_liar their values count as bad until they have ended, so that
            # they are not proposed again. The seed changes after a restart, because with the same one the first trials
            # would be drawn again.
            sampler = optuna.samplers.TPESampler(seed=(seed + len(records)) % 2**32, constant_liar=True)
        self.study = optuna.create_study(directions=directions, sampler=sampler)
        self._asked: dict[str, optuna.Trial] = {}
        for record in records:
            self.tell(record)

    def propose(self, trial: str, number: int) -> Values:
        """See `Proposals`."""
        self._asked[trial] = self.study.ask()
        return self._space.suggest(self._asked[trial])

    def tell(self, record: TrialRecord) -> None:
        """See `Proposals`; the trial may have been proposed before a restart."""
        from optuna.trial import TrialState, create_trial

        values = self._values(record)
        state = TrialState.COMPLETE
        if record.status == "failed":
            state = TrialState.FAIL
        elif not self._objective.is_multiple and (values is None or record.status == "stopped"):
            state = TrialState.PRUNED
        elif values is None:
            values = self._worst()
            state = TrialState.FAIL if values is None else state
        steps = {} if values is None or state is not TrialState.PRUNED else {record.step: values[0]}
        result = values if state is TrialState.COMPLETE else None
        asked = self._asked.pop(record.trial, None)
        if asked is None:
            params, distributions = self._space.as_optuna(record.parameters)
            self.study.add_trial(
                create_trial(
                    state=state, values=result, params=params, distributions=distributions, intermediate_values=steps
                )
            )
            return
        for step, value in steps.items():
            asked.report(value, step)
        self.study.tell(asked, result, state)

    def _values(self, record: TrialRecord) -> list[float] | None:
        verdict = "diverged" if record.status == "diverged" else record.verdict
        if self._objective.is_multiple:
            return self._objective.values(record.values, verdict)
        value = self._objective.value(record.values, verdict)
        return None if value is None else [value]

    def _worst(self) -> list[float] | None:
        """Return the worst value of each score so far, None if there is none."""
        known = [trial.values for trial in self.study.get_trials(deepcopy=False) if trial.values is not None]
        return [min(values) for values in zip(*known, strict=True)] if known else None


def proposals(config: SweepConfig, space: Space, objective: Objective, ended: Iterable[TrialRecord]) -> Proposals:
    """Return the search algorithm of a sweep.

    Args:
        config: the settings.
        space: the search space.
        objective: the objective.
        ended: trials that have ended in an earlier launch.
    """
    if config.search == "optuna":
        return OptunaProposals(space, objective, config.train.seed, config.trials, ended)
    if config.search == "grid":
        points = space.grid(config.train.seed, config.trials)
        return _Fixed(len(points), points.__getitem__)
    return _Fixed(config.trials, lambda number: space.sample(config.train.seed, number))


__all__ = ["OptunaProposals", "Proposals", "proposals"]
