"""At which steps a run is logged, sampled, saved, and may be stopped."""

from __future__ import annotations

from dataclasses import dataclass

from dcgan_dist.config import TrainingConfig

# Steps between two looks at what could end the run: on a GPU each look waits for the device.
LOOK_EVERY = {"cpu": 1, "cuda": 10}


@dataclass(frozen=True)
class Due:
    """What is to be done after a step.

    Attributes:
        look: whether the ranks look at what could end the run.
        log: whether a row of metrics is written.
        sample: whether grids of samples are drawn.
        save: whether a checkpoint is written.
        last: whether the run ends with this step.
    """

    look: bool
    log: bool
    sample: bool
    save: bool
    last: bool


class Schedule:
    """When what is due; the last step logs, samples and saves in any case."""

    def __init__(self, training: TrainingConfig, device_type: str) -> None:
        assert training.steps is not None
        self.steps = training.steps
        self._training, self._look_every = training, LOOK_EVERY[device_type]

    def due(self, step: int) -> Due:
        """Return what is to be done after a step, counted from 1."""
        last = step == self.steps
        log = last or step % self._training.log_every == 0
        return Due(
            look=log or step % self._look_every == 0,
            log=log,
            sample=last or step % self._training.sample_every == 0,
            save=last or step % self._training.checkpoint_every == 0,
            last=last,
        )
