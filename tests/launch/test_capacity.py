"""Whether the workers of a run fit onto a cluster."""

from __future__ import annotations

import pytest

from dcgan_dist.command_line import build_settings
from dcgan_dist.config import Config
from dcgan_dist.errors import ClusterError
from dcgan_dist.launch.capacity import Capacity


def test_a_worker_cannot_straddle_two_hosts() -> None:
    cluster = Capacity((("10.0.0.1", 3.0, 0.0), ("10.0.0.2", 3.0, 2.0)))
    assert cluster.room(1, gpus_per_worker=0) == 6
    assert cluster.room(2, gpus_per_worker=0) == 2
    assert cluster.room(1, gpus_per_worker=1) == 2
    assert cluster.room(0.1, gpus_per_worker=0) == 60
    assert cluster.room(0.1, gpus_per_worker=2) == 1


def test_a_share_of_a_gpu_cannot_straddle_two_gpus() -> None:
    cluster = Capacity((("10.0.0.1", 64.0, 2.0),))
    assert [cluster.room(1, gpus_per_worker=share) for share in (0.25, 0.3, 0.5, 0.6, 1.0)] == [8, 6, 4, 2, 2]


def test_shortage_is_refused_or_waited_for_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Capacity((("10.0.0.1", 8.0, 1.0),))
    settings = {"training.batch_size": 8, "cluster.workers": 2}
    with pytest.raises(ClusterError, match="2, 1 CPU and 1 GPU each, but the cluster has 8 CPUs and 1 GPU on 1 host"):
        cluster.check(build_settings(Config, settings))
    assert cluster.check(build_settings(Config, {**settings, "cluster.wait": True}))
    assert "waiting for 2 workers: the cluster has 8 CPUs" in capsys.readouterr().out
