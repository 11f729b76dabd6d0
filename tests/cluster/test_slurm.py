"""The Slurm script gives every step its CPUs and GPUs, and the head an address that the other nodes can reach."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster/slurm.sh"
# Replacements for the programs of Slurm and Ray: they record their arguments, and run Python here.
SRUN = """#!/usr/bin/env bash
echo "srun ${SLURM_GPUS:+SLURM_GPUS=$SLURM_GPUS }$*" >>"$RECORD"
while [ $# -gt 0 ]; do
    case $1 in
    -w) shift 2; break ;;
    *) shift ;;
    esac
done
[ "$1 $2" != "ray start" ] || exec sleep 600
[ "$1 $2" = "python -m" ] || exec "$@"
others=${SLURM_JOB_NODELIST//[^,]/}
until [ "$(grep -c "ray start" "$RECORD")" -gt ${#others} ]; do sleep 0.05; done # all nodes have been asked
exit 7
"""
SCONTROL = '#!/usr/bin/env bash\necho "$3" | tr , "\\n"\n'
RAY = "#!/usr/bin/env bash\n"
NODES_AND_ROUTES = [("head", "127.0.0.1"), ("head,192.0.2.7", "192.0.2.1"), ("head,192.0.2.7,192.0.2.8", "192.0.2.1")]


def submit(folder: Path, nodes: str, wrapper: list[str], **more: str) -> tuple[int, str, list[str]]:
    """Run the script as Slurm would; return its exit status, errors, and the arguments of its steps."""
    programs = folder / "programs"
    programs.mkdir(parents=True)
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "ray": RAY}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (programs / "python").symlink_to(sys.executable)
    record = folder / "record"
    record.touch()
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "RECORD": str(record),
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_JOB_NODELIST": nodes,
        "SLURM_JOB_ID": "12345",
        "SLURM_CPUS_PER_TASK": "16",
        **more,
    }
    words = [*wrapper, "bash", str(SCRIPT), "--config", "c.yaml"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    steps = [line for line in record.read_text().splitlines() if line.startswith("srun ")]
    return done.returncode, done.stderr, steps


@pytest.fixture
def network() -> Iterator[list[str]]:
    """Words that run a command in a network namespace whose address is 192.0.2.1."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a network of one's own needs root and iproute2")
    space = f"slurm-{uuid.uuid4().hex[:8]}"
    if subprocess.run(["ip", "netns", "add", space], capture_output=True, check=False).returncode:
        pytest.skip("this machine makes no network namespaces")
    try:
        for words in (
            "link add d0 type veth peer name d1",
            "link set d0 up",
            "link set d1 up",
            "link set lo up",
            "address add 192.0.2.1/24 dev d0",
        ):
            subprocess.run(["ip", "-n", space, *words.split()], check=True)
        yield ["ip", "netns", "exec", space]
    finally:
        subprocess.run(["ip", "netns", "delete", space], check=True)


@pytest.mark.parametrize(("nodes", "address"), NODES_AND_ROUTES)
def test_the_head_takes_the_address_that_leads_to_the_other_nodes(
    network: list[str], tmp_path: Path, nodes: str, address: str
) -> None:
    status, errors, steps = submit(tmp_path, nodes, network)
    assert status == 7, errors  # that of the run
    heads = [step for step in steps if "--head" in step]
    assert len(heads) == 1
    assert f"--node-ip-address {address} " in heads[0]
    joining = [
        step for step in steps if f"ray start --block --disable-usage-stats --num-cpus 16 --address {address}:" in step
    ]
    assert len(joining) == nodes.count(",")


@pytest.mark.parametrize(
    ("asked", "gpus"),
    [
        ({"SLURM_GPUS_PER_NODE": "h100:8", "SLURM_GPUS_ON_NODE": "8"}, " --gpus-per-node h100:8"),
        ({"SLURM_GPUS": "16", "SLURM_GPUS_ON_NODE": "8"}, " --gpus-per-node 8"),  # by --gpus
        ({"SLURM_GPUS_ON_NODE": "8"}, " --gpus-per-node 8"),  # by --gres
        ({}, ""),
    ],
)
def test_every_step_has_the_cpus_and_gpus_of_the_job(
    network: list[str], tmp_path: Path, asked: dict[str, str], gpus: str
) -> None:
    _, _, steps = submit(tmp_path, "head,192.0.2.7", network, **asked)
    assert len(steps) == 4  # the address, the head, a node, the run
    assert all(step.startswith(f"srun --nodes=1 --ntasks=1 --overlap --cpus-per-task 16{gpus} -w ") for step in steps)
    assert sum("-w head python -m dcgan_dist.train --config c.yaml --cluster.wait true" in step for step in steps) == 1


@pytest.mark.parametrize(
    ("node", "says"), [("127.0.1.1", "resolves to this node itself"), ("198.51.100.1", "cannot be")]
)
def test_a_node_that_cannot_be_reached_is_one_line(network: list[str], tmp_path: Path, node: str, says: str) -> None:
    status, errors, steps = submit(tmp_path, f"head,{node}", network)
    assert status == 1
    assert errors.count("\n") == 1
    assert errors.startswith("slurm.sh: ")
    assert says in errors
    assert not any("ray start" in step for step in steps)
