"""When a run logs, samples, saves and looks at what could end it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcgan_dist.config import TrainingConfig
from dcgan_dist.training.schedule import LOOK_EVERY, Due, Schedule

EVERY = st.integers(1, 30)


@given(steps=st.integers(1, 60), log=EVERY, sample=EVERY, save=EVERY, device=st.sampled_from(["cpu", "cuda"]))
def test_each_is_due_at_its_multiples_and_at_the_last_step(
    steps: int, log: int, sample: int, save: int, device: str
) -> None:
    training = TrainingConfig(steps=steps, log_every=log, sample_every=sample, checkpoint_every=save)
    schedule = Schedule(training, device)
    for step in range(1, steps + 1):
        last = step == steps
        logs = last or step % log == 0
        assert schedule.due(step) == Due(
            look=logs or step % LOOK_EVERY[device] == 0,
            log=logs,
            sample=last or step % sample == 0,
            save=last or step % save == 0,
            last=last,
        )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_run_looks_at_least_every_ten_steps(device: str) -> None:
    schedule = Schedule(TrainingConfig(steps=1000, log_every=999), device)
    looks = [step for step in range(1, 1001) if schedule.due(step).look]
    assert max(b - a for a, b in itertools.pairwise(looks)) <= 10
