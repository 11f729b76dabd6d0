"""A search whose trials end in one value each, as a Tune sweep over the cluster that this process is connected to.

Unlike the sweeps over trainings of GANs (`ray_tune.py`), which are judged on the way and go on after a kill of the
driver, these trials are short and their only outcome is a number: nothing of them is kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune
from ray.exceptions import RayError

from dcgan_dist.errors import WorkerFailed
from dcgan_dist.launch.connection import last_line
from dcgan_dist.launch.ray_tasks import RETRIES
from dcgan_dist.launch.ray_tune import TUNE_SETTINGS, quiet_ray, scratch_folder
from dcgan_dist.parallel import Task


def sweep_over(function: Callable[[Task], float], tasks: Sequence[Task], at_once: int, uses_gpus: bool) -> list[float]:
    """Return the value of each task, a trial with one CPU (and one GPU) each.

    Args:
        function: a function at the top of a module; what it raises comes up here.
        tasks: its arguments.
        at_once: how many trials at the same time.
        uses_gpus: whether each has a GPU.

    Raises:
        WorkerFailed: the worker of a trial died again and again, or the cluster was lost.
    """
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        with quiet_ray(verbose=False), scratch_folder() as scratch:
            trials = tune.run(
                tune.with_parameters(_trial, function=function, tasks=tasks),
                name="search",
                storage_path=scratch,
                config={"number": tune.grid_search(list(range(len(tasks))))},
                resources_per_trial={"cpu": 1, "gpu": int(uses_gpus)},
                max_concurrent_trials=at_once,
                max_failures=RETRIES,
                reuse_actors=True,
                verbose=0,
                raise_on_failed_trial=False,
            ).trials
    except RayError as error:
        raise WorkerFailed(f"the cluster was lost ({last_line(error)}): run it again") from error
    values: dict[int, float] = {}
    for trial in trials:
        outcome: dict[str, Any] = trial.last_result or {}
        if "raised" in outcome:
            raise outcome["raised"]
        if "value" in outcome:
            values[trial.config["number"]] = outcome["value"]
    if len(values) < len(tasks):
        raise WorkerFailed(f"a worker of the Ray cluster died {RETRIES + 1} times over one trial: run it again")
    return [values[number] for number in range(len(tasks))]


def _trial(config: dict[str, Any], function: Callable[[Task], float], tasks: Sequence[Task]) -> None:
    """Do one task, and tell Tune its value or what it raised, which another try would raise as well."""
    try:
        outcome: dict[str, Any] = {"value": function(tasks[config["number"]])}
    except Exception as error:  # noqa: BLE001  # raised again by the driver
        outcome = {"raised": error}
    tune.report(outcome)
