#!/usr/bin/env bash
# Several hosts on one machine, to test what needs several: a Ray cluster over network namespaces.
#
#   local_hosts.sh up [N]          N hosts (2) and an S3 store, and a Ray cluster with token authentication over them
#   local_hosts.sh run CMD...      run a command on host 1, Ray's head
#   local_hosts.sh run-on I CMD... run a command on host I
#   local_hosts.sh cut I           disconnect host I from the network
#   local_hosts.sh join I          connect it again, and restart Ray there
#   local_hosts.sh down            stop and remove everything
#
# Host I is 10.77.0.I with its own name, eth0, process table, /tmp, /dev/shm and HOME. It sees the disk of this machine
# read-only, so that nothing works only because two hosts share a folder by accident. The hosts and the store,
# http://10.77.0.254:5000 with the bucket `runs`, are connected by a bridge in its own namespace; they can reach nothing
# else, and cannot be reached from elsewhere. `--cluster.storage s3://runs` works on all of them.
#
# Settings: HOST_CPUS, number of CPUs of each host for Ray (1); HOSTS_NAME, to have several such clusters (dcgan-hosts);
# PYTHON, the interpreter whose folder has `ray` and `moto_server` (this checkout's .venv/bin/python).
set -euo pipefail

NAME=${HOSTS_NAME:-dcgan-hosts}
STATE=/tmp/$NAME
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
SUBNET=10.77.0
STORE=254
STORE_URL=http://$SUBNET.$STORE:5000

fail() {
    echo "local_hosts.sh: $*" >&2
    exit 2
}

# A process id may have been reused by another process; together with the start time it is unique.
started_at() {
    sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20
}

# The process id of host I's first process; when it ends, all other processes of the host end.
first_process() {
    local pid since
    [ -e "$STATE/$1/process" ] || fail "there is no host $1: local_hosts.sh up starts hosts"
    read -r pid since <"$STATE/$1/process"
    [ "$(started_at "$pid")" = "$since" ] || fail "host $1 is not running any more: down, then up"
    echo "$pid"
}

on() {
    local host=$1 pid
    shift
    pid=$(first_process "$host")
    # env --chdir, since nsenter's own option would enter the folder outside of the namespace, where it is writable.
    nsenter --target "$pid" --mount --uts --ipc --net --pid \
        env -i --chdir="$(pwd -P)" PATH="$(dirname "$PYTHON"):/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
        HOME=/tmp/home LANG=C.UTF-8 PYTHONUNBUFFERED=1 \
        RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_JOB_STOP_WAIT_TIME_S=120 \
        AWS_ENDPOINT_URL=$STORE_URL AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local AWS_DEFAULT_REGION=us-east-1 \
        "$@"
}

# Run as the first process of a host, in its new namespaces: make the disk read-only except for the host's own folders.
become_host() {
    local host=$1 home=$STATE/$1
    mount --make-rprivate /
    hostname "$NAME-$host"
    # As on many real hosts, the host's own name resolves to the loopback address.
    printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$NAME-$host" >"$home/hosts"
    mount --bind "$home/hosts" /etc/hosts
    mount -t tmpfs -o size=2g tmpfs /dev/shm
    # A checkout, an environment or its Python below /tmp stays visible, read-only.
    for folder in "$ROOT" "$(realpath "$(dirname "$PYTHON")/..")" "$("$PYTHON" -c 'import sys; print(sys.base_prefix)')"; do
        if [[ $folder == /tmp/* ]]; then
            mkdir -p "$home$folder"
            mount --bind "$folder" "$home$folder"
            mount -o remount,bind,ro "$home$folder"
        fi
    done
    mount --rbind "$home/tmp" /tmp
    mount -o remount,bind,ro /
    # Bash, as the first process, reaps orphaned processes.
    sleep infinity &
    : >/tmp/.up
    wait
}

start_host() {
    local host=$1 address=$SUBNET.$2 space=$NAME-$1 child=
    mkdir -p "$STATE/$host/tmp/home/.ray"
    chmod 1777 "$STATE/$host/tmp"
    cp "$STATE/token" "$STATE/$host/tmp/home/.ray/auth_token"
    ip netns add "$space"
    ip link add eth0 netns "$space" type veth peer name "port$host" netns "$NAME-switch"
    ip -n "$space" link set lo up
    ip -n "$space" address add "$address/24" dev eth0
    ip -n "$space" link set eth0 up
    ip -n "$NAME-switch" link set "port$host" master bridge0 up
    setsid ip netns exec "$space" unshare --mount --uts --ipc --pid --fork --kill-child --mount-proc \
        "$BASH" "$ROOT/cluster/local_hosts.sh" become-host "$host" </dev/null >"$STATE/$host/log" 2>&1 &
    for _ in $(seq 100); do
        [ -e "$STATE/$host/tmp/.up" ] && break
        sleep 0.05
    done
    [ -e "$STATE/$host/tmp/.up" ] || fail "host $host does not start: $(tail -n 1 "$STATE/$host/log")"
    child=$(cat "/proc/$!/task/$!/children")
    echo "${child% } $(started_at "${child% }")" >"$STATE/$host/process"
}

start_ray() {
    local host=$1 cpus=${HOST_CPUS:-1} common
    common=(--node-ip-address "$SUBNET.$host" --num-cpus "$cpus" --object-store-memory 200000000 --disable-usage-stats)
    if [ "$host" = 1 ]; then
        on 1 ray start --head --port 6379 --dashboard-host "$SUBNET.1" --dashboard-port 8265 "${common[@]}"
    else
        on "$host" ray start --address "$SUBNET.1:6379" "${common[@]}"
    fi >>"$STATE/$host/log" 2>&1 || fail "Ray does not start on host $host: $(tail -n 3 "$STATE/$host/log")"
}

start_store() {
    start_host store $STORE
    on store setsid moto_server -H "$SUBNET.$STORE" -p 5000 </dev/null >"$STATE/store/log" 2>&1 &
    on store python - <<'PYTHON' || fail "the S3 store does not start: $(tail -n 1 "$STATE/store/log")"
import time

import boto3
from botocore.exceptions import BotoCoreError

for attempt in range(60):
    try:
        boto3.client("s3").create_bucket(Bucket="runs")
        break
    except BotoCoreError:
        time.sleep(0.5)
else:
    raise SystemExit(1)
PYTHON
}

up() {
    local count=${1:-2}
    [[ $count =~ ^[1-9][0-9]?$ ]] || fail "up $count: give a number of hosts from 1 to 99"
    [ ! -e "$STATE" ] || fail "$STATE exists: these hosts are up already, or run local_hosts.sh down to remove the rest of them"
    [[ $ROOT != /dev/shm/* ]] || fail "each host has its own /dev/shm, so none would see $ROOT: move the checkout"
    [ -x "$(dirname "$PYTHON")/ray" ] || fail "there is no ray in the folder of $PYTHON: make setup, or set PYTHON"
    trap 'down' ERR EXIT
    mkdir -m 700 "$STATE"
    (umask 077 && od -An -tx1 -N32 /dev/urandom | tr -d ' \n' >"$STATE/token")
    ip netns add "$NAME-switch"
    ip -n "$NAME-switch" link add bridge0 type bridge
    ip -n "$NAME-switch" link set bridge0 up
    start_store
    for host in $(seq "$count"); do
        start_host "$host" "$host"
        start_ray "$host"
        echo "host $host: $SUBNET.$host"
    done
    trap - ERR EXIT
    echo "Ray: $SUBNET.1:6379, jobs: http://$SUBNET.1:8265, store: s3://runs at $STORE_URL"
}

# Ray's head considers a disconnected host dead, at the latest some time after it is back, so Ray is restarted there.
join() {
    first_process "$1" >/dev/null
    ip -n "$NAME-switch" link set "port$1" up
    if [ "$1" != 1 ]; then
        on "$1" ray stop --force >>"$STATE/$1/log" 2>&1 # it only sees the processes of this host
        start_ray "$1"
    fi
}

down() {
    local host pid since
    trap - ERR EXIT
    for host in "$STATE"/*/; do
        [ -e "$host/process" ] || continue
        read -r pid since <"$host/process"
        if [ "$(started_at "$pid")" = "$since" ]; then
            kill -KILL "$pid"
            while [ "$(started_at "$pid")" = "$since" ]; do sleep 0.05; done
        fi
    done
    for host in "$STATE"/*/ switch; do
        host=$(basename "$host")
        if [ -e "/run/netns/$NAME-$host" ]; then ip netns delete "$NAME-$host"; fi
    done
    rm -rf --one-file-system "$STATE"
}

[ "$(id -u)" = 0 ] || fail "only root can create namespaces: run this as root"
for tool in ip nsenter unshare setsid; do
    command -v "$tool" >/dev/null || fail "there is no command $tool here: install iproute2 and util-linux"
done
verb=${1:-}
[ $# = 0 ] || shift
case $verb in
up) up "$@" ;;
run) on 1 "$@" ;;
run-on) on "$@" ;;
cut)
    first_process "$1" >/dev/null
    ip -n "$NAME-switch" link set "port$1" down
    ;;
join) join "$1" ;;
down) down ;;
become-host) become_host "$1" ;;
*) fail "${verb:-no command}: up [N], run CMD..., run-on I CMD..., cut I, join I or down" ;;
esac
