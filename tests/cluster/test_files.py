"""The files for clusters only name existing things."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray._private.runtime_env.packaging import create_package

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


def test_a_job_uploads_code_and_settings_and_nothing_that_the_documents_have_people_write(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "dcgan_dist", checkout / "dcgan_dist", symlinks=True, ignore=unwanted)
    shutil.copytree(PROJECT / "configs", checkout / "configs")
    for name in (".gitignore", ".rayignore", "pyproject.toml"):
        shutil.copy(PROJECT / name, checkout)
    (checkout / "mine.yaml").touch()
    needed = {str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file()}
    # Through the link there: a job can also give configs by name.
    needed |= {f"dcgan_dist/{name}" for name in needed if name.startswith("configs/")}

    documents = [PROJECT / "README.md", *PROJECT.glob("docs/*.md"), CLUSTER / "README.md"]
    text = "\n".join(path.read_text() for path in documents)
    shown = re.findall(
        r"--(?:output|input|run|run.dir|sweep.dir|data|data\.path|test-data)[ =]([\w.%/-]+)(?=[\s`])", text
    )
    written = {
        *shown,
        "photos/1.jpg",
        "set of mine/a-000000.tar",
        "big",
        ".venv/lib/torch.so",
        "dcgan_dist/__pycache__/a.pyc",
    }
    assert {"data/photos", "runs/rooms", "report.html"} <= written
    for name in written:
        path = checkout / name if Path(name).suffix else checkout / name / "000000"
        if not name.startswith("/") and not path.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"0")
    create_package(str(checkout), tmp_path / "package.zip", include_gitignore=True)
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        uploaded = {name for name in package.namelist() if not name.endswith("/")}
    assert uploaded == needed - {".gitignore", ".rayignore"}
