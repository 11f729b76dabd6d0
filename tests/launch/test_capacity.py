"""Whether the workers of a run fit onto a cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dcgan_dist.command_line import build_settings
from dcgan_dist.config import Config
from dcgan_dist.errors import ClusterError
from dcgan_dist.launch.capacity import Capacity
from tests.conftest import environment
from tests.launch.conftest import RayCluster

# Like an autoscaler, it first reports that there may be three hosts with four GPUs each; at the end it reports nothing.
GROWING = """
import ray
from ray._private.gcs_utils import create_gcs_channel
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig, ReportClusterConfigRequest
from ray.core.generated.autoscaler_pb2_grpc import AutoscalerStateServiceStub
from dcgan_dist.launch.capacity import Capacity
from dcgan_dist.launch.connection import connected_cluster
with connected_cluster(), create_gcs_channel(ray.get_runtime_context().gcs_address) as channel:
    print(Capacity.of_cluster().most_gpus)
    for groups in ([NodeGroupConfig(name="gpu", max_count=3, resources={"CPU": 48, "GPU": 4})], []):
        config = ClusterConfig(node_group_configs=groups)
        AutoscalerStateServiceStub(channel).ReportClusterConfig(ReportClusterConfigRequest(cluster_config=config))
        print(Capacity.of_cluster().most_gpus)
"""


def test_a_worker_needs_one_host() -> None:
    cluster = Capacity((("10.0.0.1", 3.0, 0.0), ("10.0.0.2", 3.0, 2.0)))
    assert cluster.slots(1, gpus_per_worker=0) == 6
    assert cluster.slots(2, gpus_per_worker=0) == 2
    assert cluster.slots(1, gpus_per_worker=1) == 2
    assert cluster.slots(0.1, gpus_per_worker=0) == 60
    assert cluster.slots(0.1, gpus_per_worker=2) == 1


def test_a_fraction_of_a_gpu_needs_one_gpu() -> None:
    cluster = Capacity((("10.0.0.1", 64.0, 2.0),))
    assert [cluster.slots(1, gpus_per_worker=share) for share in (0.25, 0.3, 0.5, 0.6, 1.0)] == [8, 6, 4, 2, 2]


def test_shortage_is_refused_or_waited_for_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Capacity((("10.0.0.1", 8.0, 1.0),))
    settings = {"training.batch_size": 8, "cluster.workers": 2}
    with pytest.raises(ClusterError, match="2, 1 CPU and 1 GPU each, but the cluster has 8 CPUs and 1 GPU on 1 host"):
        cluster.check(build_settings(Config, settings))
    assert cluster.check(build_settings(Config, {**settings, "cluster.wait": True}))
    assert "waiting for 2 workers: the cluster has 8 CPUs" in capsys.readouterr().out


def test_a_cluster_that_may_grow_from_no_gpus_is_asked_for_them_by_a_run_that_waits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    head = ("10.0.0.1", 0.0, 0.0)
    settings = {"training.batch_size": 8, "cluster.workers": 2, "cluster.wait": True}
    growing, fixed = Capacity((head,), most_gpus=8.0), Capacity((head,))
    assert growing.check(build_settings(Config, settings)) == 1
    assert "on CPUs" not in capsys.readouterr().out
    assert growing.check(build_settings(Config, {**settings, "training.device": "cpu"})) == 0
    assert "on CPUs" not in capsys.readouterr().out
    assert fixed.check(build_settings(Config, settings)) == 0
    assert "training on CPUs; --training.device cuda waits for GPUs" in capsys.readouterr().out
    assert fixed.check(build_settings(Config, {**settings, "training.device": "cuda"})) == 1
    with pytest.raises(ClusterError, match="2, 1 CPU each, but the cluster has 0 CPUs"):
        growing.check(build_settings(Config, {**settings, "cluster.wait": False}))


@pytest.mark.slow
def test_the_gpus_that_a_cluster_may_grow_to_are_read_from_its_configuration(
    ray_cluster: RayCluster, tmp_path: Path
) -> None:
    types = "{head: {resources: {CPU: 0}}, gpu: {max_workers: 2, resources: {CPU: 48, GPU: 4}}}"
    (tmp_path / "ray_bootstrap_config.yaml").write_text(f"available_node_types: {types}")  # as `ray up` writes it
    own = environment(**ray_cluster.environment, RAY_ADDRESS=ray_cluster.address, HOME=str(tmp_path))
    words = [sys.executable, "-c", GROWING]
    done = subprocess.run(words, env=own, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "8.0\n12.0\n8.0\n", done.stderr
