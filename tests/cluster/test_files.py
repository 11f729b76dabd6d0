"""The files that make clusters name what exists."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from dcgan_dist.command_line import parse_settings
from dcgan_dist.config import Config

PROJECT = Path(__file__).parents[2]
CLUSTER = PROJECT / "cluster"


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CLUSTER / name).read_text())
    return content


def test_launcher_file_keeps_to_rays_schema() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(read("ray-cluster.yaml"), schema)


def test_kubernetes_job_has_a_gpu_pod_for_every_worker_and_one_ray_version() -> None:
    spec = read("kuberay.yaml")["spec"]
    words = shlex.split(spec["entrypoint"])
    workers = int(words[words.index("--cluster.workers") + 1])
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert group["replicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"]) == workers
    assert f"ray=={spec['rayClusterSpec']['rayVersion']}\n" in (PROJECT / "constraints.txt").read_text()
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("name", ["README.md", "kuberay.yaml", "slurm.sh", "local_hosts.sh"])
def test_commands_shown_are_ones_that_train_takes(name: str) -> None:
    text = (CLUSTER / name).read_text()
    if name == "kuberay.yaml":
        text = read(name)["spec"]["entrypoint"].replace("/opt/dcgan_dist/", "")
    joined = re.sub(r"\s*\\\n[#\s]*", " ", text)
    shown = re.findall(r"(?:python -m dcgan_dist\.train|cluster/slurm\.sh) (--config[^`\n&]*)", joined)
    assert shown or name == "local_hosts.sh"
    for command in shown:
        words = [str(PROJECT / word) if word.startswith("configs/") else word for word in shlex.split(command)]
        assert parse_settings(Config, words, "train", "").cluster.workers >= 2


@pytest.mark.parametrize("name", ["slurm.sh", "local_hosts.sh"])
def test_scripts_parse(name: str) -> None:
    subprocess.run(["bash", "-n", CLUSTER / name], check=True)


def test_host_script_explains_itself() -> None:
    done = subprocess.run([CLUSTER / "local_hosts.sh", "fly"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("local_hosts.sh: ")
