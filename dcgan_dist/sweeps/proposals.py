"""Which values the next trial of a sweep tries: drawn at random, from a grid, or asked of Optuna."""

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
    """Where the values of trials come from.

    Attributes:
        total: trials in all.
    """

    total: int

    def propose(self, trial: str, number: int) -> Values:
        """Return the values of trial `number`, named `trial`."""

    def tell(self, record: TrialRecord) -> None:
        """Take note of a trial that has ended."""


class _Listed:
    """Values that do not depend on what earlier trials scored."""

    def __init__(self, total: int, values: Callable[[int], Values]) -> None:
        self.total = total
        self._values = values

    def propose(self, trial: str, number: int) -> Values:
        return self._values(number)

    def tell(self, record: TrialRecord) -> None:
        pass


class Asked:
    """Values by Optuna's tree-structured Parzen estimator; over several scores where the objective names them.

    A trial that ended early counts as pruned where it was. One that diverged or collapsed counts as worse than all
    others, so that the estimator keeps away from there.
    """

    def __init__(self, space: Space, objective: Objective, seed: int, total: int, ended: Iterable[TrialRecord]) -> None:
        """Make a study that knows of the trials that have ended."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        records = list(ended)
        self.total = total
        self._space, self._objective = space, objective
        directions = [optuna.study.StudyDirection.MAXIMIZE] * (len(objective.names) if objective.is_multiple else 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Several trials are on their way at a time: their values count as bad until they have ended.
            # Another seed after a restart: else the first trials would be drawn again.
            sampler = optuna.samplers.TPESampler(seed=(seed + len(records)) % 2**32, constant_liar=True)
        self.study = optuna.create_study(directions=directions, sampler=sampler)
        self._asked: dict[str, optuna.Trial] = {}
        for record in records:
            self.tell(record)

    def propose(self, trial: str, number: int) -> Values:
        """Ask the study."""
        self._asked[trial] = self.study.ask()
        return self._space.suggest(self._asked[trial])

    def tell(self, record: TrialRecord) -> None:
        """Tell the study, also of a trial that was asked for before a restart."""
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
        told = values if state is TrialState.COMPLETE else None
        asked = self._asked.pop(record.trial, None)
        if asked is None:
            params, distributions = self._space.as_optuna(record.parameters)
            self.study.add_trial(
                create_trial(
                    state=state, values=told, params=params, distributions=distributions, intermediate_values=steps
                )
            )
            return
        for step, value in steps.items():
            asked.report(value, step)
        self.study.tell(asked, told, state)

    def _values(self, record: TrialRecord) -> list[float] | None:
        verdict = "diverged" if record.status == "diverged" else record.verdict
        if self._objective.is_multiple:
            return self._objective.values(record.values, verdict)
        value = self._objective.value(record.values, verdict)
        return None if value is None else [value]

    def _worst(self) -> list[float] | None:
        """Return the worst of each score so far, None where there is none."""
        told = [trial.values for trial in self.study.get_trials(deepcopy=False) if trial.values is not None]
        return [min(values) for values in zip(*told, strict=True)] if told else None


def proposals(config: SweepConfig, space: Space, objective: Objective, ended: Iterable[TrialRecord]) -> Proposals:
    """Return where the values of a sweep's trials come from.

    Args:
        config: the settings.
        space: what is searched.
        objective: what is maximised.
        ended: trials of an earlier start.
    """
    if config.search == "optuna":
        return Asked(space, objective, config.train.seed, config.trials, ended)
    if config.search == "grid":
        points = space.grid(config.train.seed, config.trials)
        return _Listed(len(points), points.__getitem__)
    return _Listed(config.trials, lambda number: space.sample(config.train.seed, number))


__all__ = ["Asked", "Proposals", "proposals"]
