"""Tasks over processes."""

from __future__ import annotations

import os
import time

import pytest

from dcgan_dist.errors import DataError, WorkerFailed
from dcgan_dist.parallel import LocalPool


def sleepy_square(number: int) -> tuple[int, int]:
    time.sleep(0.02 * (number % 3 == 0))
    return number * number, os.getpid()


def fail_at_five(number: int) -> int:
    if number == 5:
        raise DataError("five is damaged")
    return number


def die_at_five(number: int) -> int:
    if number == 5:
        os._exit(9)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    results = list(LocalPool(workers).run(sleepy_square, range(20)))
    assert [square for square, _ in results] == [number * number for number in range(20)]
    assert (os.getpid() in {process for _, process in results}) == (workers == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_task_comes_up_where_its_result_would(workers: int) -> None:
    results = LocalPool(workers).run(fail_at_five, range(100))
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="five is damaged"):
        next(results)


def test_a_worker_that_dies_is_an_error_and_no_hang() -> None:
    with pytest.raises(WorkerFailed, match="died"):
        list(LocalPool(2).run(die_at_five, range(100)))


def test_tasks_are_taken_only_as_they_are_needed() -> None:
    taken = []

    def tasks():
        for number in range(100):
            taken.append(number)
            yield number

    results = LocalPool(2).run(sleepy_square, tasks())
    next(results)
    assert len(taken) <= 5
    results.close()
