#!/usr/bin/env bash
# One training run on Slurm: starts a Ray cluster on the allocated nodes, runs the training there, and stops both.
#
#   sbatch --nodes 4 --gpus-per-node 8 cluster/slurm.sh --config configs/lsun-bedrooms.yaml --cluster.workers 32 \
#       --data.path /shared/shards/lsun-bedrooms --cluster.storage /shared/runs
#
# All arguments after the script's name are passed to `python -m dcgan_dist.train`. Submit from the project's folder, on
# a file system that all nodes share, with .venv set up (make setup). The log is slurm-JOBID.out. Submit it again with
# the same arguments to resume the run. Two minutes before the time limit, it saves a last checkpoint and stops.
#SBATCH --job-name=dcgan
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"
export PATH=$PWD/.venv/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
# Other users' jobs run in the same network: the token keeps them out of this job's Ray cluster. It is only in the
# environment of the tasks, not in any command line or file.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
cpus=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}

gpus=${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}} # per node, also if the job requested them by --gpus or --gres

# Since Slurm 22.05 a step gets one CPU unless it requests more. With SLURM_GPUS set, it would request the GPUs of all
# nodes together.
unset SLURM_GPUS
step=(srun --nodes=1 --ntasks=1 --overlap --cpus-per-task "$cpus")
[ "$gpus" = 0 ] || step+=(--gpus-per-node "$gpus")

# The head's address is that of its interface to the last node: its own name may resolve to loopback, as on Debian.
read -r -d '' find_address <<'PYTHON' || true
import socket
import sys

try:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((sys.argv[1], 9))  # sends nothing
        address = probe.getsockname()[0]
except OSError as error:
    sys.exit(f"slurm.sh: {sys.argv[1]} cannot be reached from this node ({error})")
if address.startswith("127."):
    sys.exit(f"slurm.sh: {sys.argv[1]} resolves to this node itself ({address}): correct DNS or /etc/hosts")
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

# On SIGTERM, `ray start --block` stops the node's Ray processes.
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

# The driver runs on the head's node. It waits for the nodes that are still joining.
"${step[@]}" -w "${nodes[0]}" python -m dcgan_dist.train "$@" --cluster.wait true &
driver=$!
trap 'kill -TERM $driver' TERM
status=0
wait $driver || status=$?
# A signal interrupts `wait`, but the driver continues until its last checkpoint is saved.
while kill -0 $driver 2>/dev/null; do
    status=0
    wait $driver || status=$?
done
exit $status
