#!/usr/bin/env bash
# One training run on Slurm: a Ray cluster over the allocated nodes, the run as its job, and the end of both.
#
#   sbatch --nodes 4 --gpus-per-node 8 cluster/slurm.sh --config configs/lsun-bedrooms.yaml --cluster.workers 32 \
#       --data.path /shared/shards/lsun-bedrooms --cluster.storage /shared/runs
#
# Everything after the script's name is for `python -m dcgan_dist.train`. Submit from the project's folder, on a file
# system that all nodes share, with .venv set up (make setup). The log is slurm-JOBID.out. Submitted again with the same
# arguments, the run resumes; two minutes before the time limit it makes a last checkpoint and stops.
#SBATCH --job-name=dcgan
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"
export PATH=$PWD/.venv/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
# Other users' jobs may run on these nodes' neighbours: nobody without this job's token gets in. It is in the
# environment of the tasks alone, not in any command line or file.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
cpus=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}

gpus=${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}} # of each node, also where the job asked by --gpus or --gres

# Since Slurm 22.05 a step has one CPU unless it asks for more. It would ask for the GPUs of all nodes together.
unset SLURM_GPUS
step=(srun --nodes=1 --ntasks=1 --overlap --cpus-per-task "$cpus")
[ "$gpus" = 0 ] || step+=(--gpus-per-node "$gpus")

# The head's address is the one that it has on the way to the last node: its own name may lead to loopback, as on Debian.
read -r -d '' find_address <<'PYTHON' || true
import socket
import sys

try:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((sys.argv[1], 9))  # sends nothing
        address = probe.getsockname()[0]
except OSError as error:
    sys.exit(f"slurm.sh: no way from here to {sys.argv[1]} ({error})")
if address.startswith("127."):
    sys.exit(f"slurm.sh: {sys.argv[1]} leads to this node itself ({address}): correct DNS or /etc/hosts")
print(address)
PYTHON
address=127.0.0.1
if [ "${#nodes[@]}" -gt 1 ]; then
    address=$("${step[@]}" -w "${nodes[0]}" python -c "$find_address" "${nodes[-1]}")
fi
port=$((20000 + SLURM_JOB_ID % 10000))
folder=/tmp/ray-$SLURM_JOB_ID # on each node's own disk; short, since it holds sockets
steps=()

start_on() {
    local node=$1
    shift
    "${step[@]}" -w "$node" ray start --block --disable-usage-stats --num-cpus "$cpus" "$@" &
    steps+=($!)
}

# `ray start --block` ends its node's Ray when it is told to end.
finish() {
    kill -TERM "${steps[@]}" 2>/dev/null || true
    wait "${steps[@]}" 2>/dev/null || true
}
trap finish EXIT

start_on "${nodes[0]}" --head --node-ip-address "$address" --port "$port" --temp-dir "$folder" --include-dashboard false
export RAY_ADDRESS=$address:$port
for _ in $(seq 60); do
    ray health-check --address "$RAY_ADDRESS" >/dev/null 2>&1 && break
    sleep 2
done
for node in "${nodes[@]:1}"; do
    start_on "$node" --address "$RAY_ADDRESS"
done

# The driver runs beside the head. It waits for the nodes that are still joining.
"${step[@]}" -w "${nodes[0]}" python -m dcgan_dist.train "$@" --cluster.wait true &
driver=$!
trap 'kill -TERM $driver' TERM
status=0
wait $driver || status=$?
# A signal interrupts `wait`; the driver goes on to its last checkpoint.
while kill -0 $driver 2>/dev/null; do
    status=0
    wait $driver || status=$?
done
exit $status
