from __future__ import annotations

import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dcgan_dist.runs.events import EventLog
from dcgan_dist.runs.writer import open_run


def curves(accumulator: EventAccumulator) -> dict[str, list[tuple[int, float]]]:
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    return curves(EventAccumulator(str(folder), size_guidance={"scalars": 0}))


def filled(folder: Path) -> int:
    return sum(path.stat().st_size > 0 for path in folder.glob("*tfevents*"))


def test_tensorboard_reads_the_numbers_of_metrics(tmp_path: Path) -> None:
    with open_run(str(tmp_path)) as run:
        run.append_scalars(1, {"loss_d": 0.5, "d_real": float("nan"), "epoch": 0, "note": "text", "d_fake": None})
        assert read(tmp_path) == {"loss_d": [(1, 0.5)], "epoch": [(1, 0.0)]}  # before the file is closed
        run.append_scalars(2, {"loss_d": math.inf, "d_real": 0.25})
        assert read(tmp_path) == {"loss_d": [(1, 0.5)], "epoch": [(1, 0.0)], "d_real": [(2, 0.25)]}


def test_resumed_run_has_one_clean_curve(tmp_path: Path) -> None:
    watching = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    for start in (0, 30, 20):
        with open_run(str(tmp_path)) as run:
            run.rewind(start)
            for step in range(start + 10, start + 50, 10):
                run.append_scalars(step, {"loss_d": float(start + step)})
        watching.Reload()
    expected = {"loss_d": [(10, 10.0), (20, 20.0), (30, 50.0), (40, 60.0), (50, 70.0), (60, 80.0)]}
    assert read(tmp_path) == expected
    assert curves(watching) == expected  # also in a TensorBoard that was open all the time
    assert filled(tmp_path) == 1


@pytest.mark.parametrize("torn", [1, 11, 13, 20])
def test_an_incomplete_last_record_is_discarded(tmp_path: Path, torn: int) -> None:
    log = EventLog(tmp_path)
    log.append(1, {"loss_d": 1.0})
    (path,) = tmp_path.glob("*tfevents*")
    whole = path.stat().st_size
    log.append(2, {"loss_d": 2.0})
    with path.open("r+b") as file:
        file.truncate(whole + torn)
    log = EventLog(tmp_path)  # continues without a rewind
    log.append(3, {"loss_d": 3.0})
    assert read(tmp_path) == {"loss_d": [(1, 1.0), (3, 3.0)]}


def test_events_left_twice_by_a_crash_are_read_once_after_the_next_start(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for step in range(1, 5):
        log.append(step, {"loss_d": step})
    (path,) = tmp_path.glob("*tfevents*")
    copy = path.read_bytes()
    log.rewind(3)
    path.write_bytes(copy)  # killed before the old file was removed
    assert filled(tmp_path) == 2
    EventLog(tmp_path).rewind(3)
    assert read(tmp_path) == {"loss_d": [(1, 1.0), (2, 2.0), (3, 3.0)]}
    assert filled(tmp_path) == 1


def test_damage_within_the_file_loses_no_later_runs(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for step in range(1, 5):
        log.append(step, {"loss_d": step})
    (path,) = tmp_path.glob("*tfevents*")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    log = EventLog(tmp_path)
    log.append(5, {"loss_d": 5})
    assert read(tmp_path) == {"loss_d": [(1, 1.0), (2, 2.0), (3, 3.0), (5, 5.0)]}
