"""Checks of this machine: one for each property that would make a command fail or slow.

`examine` runs the checks in parallel with one time limit: a network file system that does not answer must not delay the
other findings. No check imports torch or ray into this process.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import json
import os
import pwd
import resource
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import tomllib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from dcgan_dist.config import Config
from dcgan_dist.errors import DcganDistError
from dcgan_dist.parallel import GROUPS, OWN_GROUPS, limits_of_groups, usable_cores
from dcgan_dist.paths import expanded
from dcgan_dist.storage.cache import cache_directory
from dcgan_dist.storage.folder import RemoteFolder
from dcgan_dist.storage.remote import is_url

PROJECT = Path(__file__).parents[1]

LEAST_MEMORY = 2 << 30  # a training process takes 0.4 GiB before its networks, and Ray about as much
LEAST_DISK = 2 << 30  # five checkpoints of the paper's 64x64 networks with Adam's state
LEAST_SHM = 256 << 20  # Docker's default is 64 MiB; Ray's object store and the loaders' batches take hundreds
LEAST_FILES, MANY_FILES = 256, 4096  # with 64, a Ray cluster of two workers does not start; with 256 it does
LEAST_PROCESSES = 500  # a Ray cluster of two CPUs starts about as many threads

PROGRAM_S = 4  # seconds for a program that a check starts; the import of PyTorch takes two

STUCK = "check that its disk or its network works"
BUSY = "run it again when the machine is less busy"

# Run in a process of its own, which can be killed if the driver hangs.
_ASK_TORCH = """
import json, torch
devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
found = [(device.name, device.total_memory, device.major) for device in devices]
print(json.dumps({"build": torch.version.cuda or torch.version.hip, "devices": found}))
"""


Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        name: of the check.
        status: `fail` if a command will fail, `warn` if one can fail or will be slow.
        found: what the check found.
        way_out: what to do if that is not enough.
    """

    name: str
    status: Status
    found: str
    way_out: str = ""


def examine(checks: Mapping[str, Callable[[], Finding]], seconds: float) -> list[Finding]:
    """Run checks in parallel and return their findings in order; a check that exceeds `seconds` becomes a failure."""
    found: dict[str, Finding] = {}

    def look(name: str, check: Callable[[], Finding]) -> None:
        try:
            found[name] = check()
        except subprocess.TimeoutExpired as error:
            found[name] = Finding(name, "warn", f"{error.cmd[0]} took longer than {error.timeout:g} s", BUSY)
        except (OSError, ValueError, DcganDistError) as error:
            found[name] = Finding(name, "fail", " ".join(str(error).split()))

    # Daemon threads: a check that hangs must not keep the process alive.
    threads = [threading.Thread(target=look, args=item, daemon=True) for item in checks.items()]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [found.get(name) or Finding(name, "fail", f"no answer within {seconds:g} s", STUCK) for name in checks]


def checks_of_machine(config: Config, location: str, ray_cpus: float = 0) -> dict[str, Callable[[], Finding]]:
    """Return the checks of this machine by name.

    Args:
        config: of the run that shall work here.
        location: folder or URL for its results.
        ray_cpus: number of this machine's CPUs that Ray offers, if it is running.
    """
    wants_gpu, compiles = config.training.device == "cuda", config.training.compile
    return {
        "cores": partial(cores, ray_cpus),
        "memory": memory,
        "GPUs": partial(gpus, needed=wants_gpu),
        "compiler": partial(compiler, needed=compiles),
        "shared memory": shared_memory,
        "open files": open_files,
        "processes": processes,
        "names": names,
        "cache": partial(cache, config.data.cache),
        "temporary files": partial(folder, "temporary files", Path(tempfile.gettempdir())),
        **(
            {"storage": partial(object_storage, location)}
            if is_url(location)
            else {"run directory": partial(folder, "run directory", expanded(location).absolute())}
        ),
        "Ray": ray_and_token,
        "versions": versions,
        "optional": optional,
    }


def cores(ray_cpus: float = 0) -> Finding:
    """Compare the number of cores that a process may use with the number that Ray offers."""
    usable = usable_cores()
    found = f"{usable} of {os.cpu_count()} may be used"
    if ray_cpus <= usable:
        return Finding("cores", "ok", found)
    way_out = f"give `ray start` --num-cpus {usable}: more workers only wait for each other"
    return Finding("cores", "warn", f"{found}, but Ray offers {ray_cpus:g}", way_out)


def memory(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> Finding:
    """Compare the memory of the machine, or of its container, with the needs of a run."""
    about = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    total, free = (int(about[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    limit = min([total, *_limits("memory", "memory.max", "memory.limit_in_bytes", groups, own)])
    found = f"{_size(min(free, limit))} free of {_size(limit)}" + (", by a container's limit" if limit < total else "")
    if min(free, limit) >= LEAST_MEMORY:
        return Finding("memory", "ok", found)
    return Finding("memory", "warn", found, "a run can be killed: end other programs, or raise the container's limit")


def _limits(controller: str, second: str, first: str, groups: Path, own: Path) -> list[int]:
    """Return the limits of the control groups; `second` and `first` name the file of the limit in versions 2 and 1."""

    def read(name: str, folder: Path) -> int:
        return int((folder / name).read_text(encoding="ascii"))

    return [
        int(limit) for limit in limits_of_groups(controller, partial(read, second), partial(read, first), groups, own)
    ]


def gpus(devices: Path = Path("/dev"), *, needed: bool = False) -> Finding:
    """Report which GPUs PyTorch sees, and whether they compute in bf16."""
    if not any([*devices.glob("nvidia[0-9]*"), *devices.glob("kfd"), *devices.glob("dxg")]):
        if needed:
            return Finding("GPUs", "fail", "none, and training.device is cuda", "take cpu or auto, or another machine")
        return Finding("GPUs", "ok", "none: training on CPUs")
    words = [sys.executable, "-c", _ASK_TORCH]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PROGRAM_S, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return Finding("GPUs", "fail", f"PyTorch cannot use them ({reason})", "install the driver that it was made for")
    answer = json.loads(done.stdout.splitlines()[-1])
    if not answer["devices"]:
        why = "is made for CPUs" if answer["build"] is None else f"of CUDA {answer['build']} does not see it"
        way_out = "install PyTorch for the driver of this machine, or look at CUDA_VISIBLE_DEVICES"
        return Finding("GPUs", "fail" if needed else "warn", f"there is one, but PyTorch {why}", way_out)
    found = ", ".join(f"{name} ({_size(size)})" for name, size, _ in answer["devices"])
    if all(major >= 8 for _, _, major in answer["devices"]):  # Ampere was the first with bf16
        return Finding("GPUs", "ok", f"{found}, with bf16")
    return Finding("GPUs", "ok", f"{found}, without fast bf16", "train in fp32 there")


def compiler(*, needed: bool = False, seconds: float | None = None) -> Finding:
    """Test whether C++ for Python can be compiled, with the compiler that torch.compile uses on a CPU.

    Args:
        needed: whether a run will fail without it.
        seconds: time limit of the test; None for `PROGRAM_S`.
    """
    status: Status = "fail" if needed else "warn"
    way_out = "install g++ and Python's headers, or leave training.compile off"
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        return Finding("compiler", status, f"there is no C++ compiler {name!r}", way_out)
    words = [name, "-fsyntax-only", "-x", "c++", "-I", sysconfig.get_path("include"), "-"]
    program = "#include <Python.h>\n#include <vector>\n"
    seconds = PROGRAM_S if seconds is None else seconds
    try:
        done = subprocess.run(words, input=program, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return Finding("compiler", "warn", f"the C++ compiler {name!r} took longer than {seconds:g} s", BUSY)
    except OSError as error:
        reason = error.strerror or str(error)
    else:
        if done.returncode == 0:
            return Finding("compiler", "ok", f"{name} works, for training.compile")
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
    return Finding("compiler", status, f"the C++ compiler {name!r} fails ({reason})", way_out)


def shared_memory(path: Path = Path("/dev/shm")) -> Finding:
    """Compare the free shared memory with the needs of several processes."""
    if not path.is_dir():
        return Finding("shared memory", "warn", f"there is no {path}", "Ray and loader processes use the disk instead")
    free = _free(path)
    way_out = "remove old files there, or give a container --shm-size=8g (a memory volume on Kubernetes)"
    if free >= LEAST_SHM:
        return Finding("shared memory", "ok", f"{_size(free)} free in {path}")
    # Locks between processes are files of 32 bytes there, each in a page of its own.
    status: Status = "warn" if free >= 1 << 20 else "fail"
    return Finding("shared memory", status, f"{_size(free)} free in {path}", way_out)


def open_files() -> Finding:
    """Compare the limits of open files with the needs of Ray, which raises its soft limit up to the hard one."""
    soft, hard = (_most(limit) for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
    if soft >= MANY_FILES:
        return Finding("open files", "ok", "no limit" if soft == sys.maxsize else f"at most {soft:,}")
    found = f"at most {soft:,} open files" + (f", {hard:,} if requested" if hard > soft else "")
    way_out = (
        f"Ray needs {LEAST_FILES} or more, a large cluster {MANY_FILES:,}: raise the limit with `ulimit -n` or, as "
    )
    way_out += "root, its hard limit (docker run --ulimit nofile=65536)"
    return Finding("open files", "warn" if hard >= LEAST_FILES else "fail", found, way_out)


def _most(limit: int) -> int:
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def processes(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> Finding:
    """Compare the limits of processes and threads with the number that Ray starts."""
    limits = _limits("pids", "pids.max", "pids.max", groups, own)
    own_limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if own_limit != resource.RLIM_INFINITY and os.geteuid() != 0:  # it does not apply to root
        limits.append(own_limit)
    if not limits or min(limits) >= LEAST_PROCESSES:
        return Finding("processes", "ok", f"at most {min(limits):,}" if limits else "no limit")
    way_out = "threads count too: raise `ulimit -u`, or the container's --pids-limit"
    return Finding("processes", "warn", f"at most {min(limits):,}", way_out)


def names() -> Finding:
    """Look up the names of this host and user, which libraries need to choose addresses and folders."""
    host = socket.gethostname()
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        way_out = "add it to /etc/hosts, or set GLOO_SOCKET_IFNAME to the network interface of the cluster"
        return Finding("names", "warn", f"host {host!r} has no address ({error.strerror or error})", way_out)
    if not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        try:
            pwd.getpwuid(os.getuid())
        except KeyError:
            return Finding("names", "warn", f"user {os.getuid()} has no name", "set USER, which libraries need")
    return Finding("names", "ok", f"host {host}")


def folder(name: str, path: Path) -> Finding:
    """Test whether files can be written and locked in a folder, which need not exist yet, and its free space."""
    where = _existing(path)
    try:
        with tempfile.TemporaryFile(dir=where) as file:
            free, trouble = _free(where), _trouble_with_locks(file.fileno())
    except OSError as error:
        failed = f"{path} cannot be written ({error.strerror or error})"
        return Finding(name, "fail", failed, "set TMPDIR" if name == "temporary files" else "take another --run-dir")
    found = f"{_size(free)} free at {path}"
    if free < LEAST_DISK:
        return Finding(name, "warn", found, "free some space there")
    if trouble:
        return Finding(name, "warn", f"{found}, without locks ({trouble})", "let one command at a time write there")
    return Finding(name, "ok", f"{found}, with locks")


def cache(chosen: str | None) -> Finding:
    """Test the cache's folder; see `folder`.

    Raises:
        DataError: it cannot be created or written.
    """
    return folder("cache", cache_directory(chosen))


def _trouble_with_locks(file: int) -> str:
    """Return why a file cannot be locked; "" if it can."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def ray_and_token() -> Finding:
    """Report the installed version of Ray, and whether there is a token if one is needed."""
    try:
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        missing = "not installed: several workers and sweeps will be refused"
        return Finding("Ray", "warn", missing, "pip install 'ray[default,train,tune]'")
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return Finding("Ray", "ok", f"{version}, without token authentication")
    file = expanded(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token")
    if os.environ.get("RAY_AUTH_TOKEN") or file.is_file():
        return Finding("Ray", "ok", f"{version}, with a token")
    way_out = "make one with `ray get-auth-token --generate`, and copy it to every host"
    return Finding("Ray", "fail", f"RAY_AUTH_MODE is token, but there is neither RAY_AUTH_TOKEN nor {file}", way_out)


def object_storage(url: str) -> Finding:
    """Test whether files can be written at a URL, and whether its storage supports conditional writes.

    Raises:
        DcganDistError: they cannot be written.
    """
    location, name = RemoteFolder(url, patience=0), f".doctor-{uuid.uuid4().hex}"
    created = location.swap(name, b"1", None)
    try:
        again = location.swap(name, b"2", None)
        _, version = location.read_version(name)
        swapped, stale = location.swap(name, b"3", version), location.swap(name, b"4", version)
    finally:
        location.remove(name)
    if created and swapped and not again and not stale:
        return Finding("storage", "ok", f"{url} can be written, and supports conditional writes")
    found = f"{url} can be written, but does not support conditional writes"
    return Finding("storage", "warn", found, "let one command at a time write scores of a run there")


def versions(project: Path = PROJECT) -> Finding:
    """Compare the installed packages with the ranges of pyproject.toml and the pins of constraints.txt."""
    wrong = []
    for wanted in map(Requirement, _dependencies(project)):
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name} is {version}, not {wanted.specifier}")
    if wrong:
        return Finding("versions", "fail", "; ".join(wrong), "pip install -c constraints.txt -e .")
    file = next((path for path in (project / "constraints.txt", Path("constraints.txt")) if path.is_file()), None)
    if file is None:
        return Finding("versions", "ok", "all within the ranges")
    pins = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    others = [pin for pin in pins if pin and not _is_installed(pin)]
    if not others:
        return Finding("versions", "ok", "those of constraints.txt")
    return Finding(
        "versions",
        "ok",
        f"all within the ranges, but not as tested: {', '.join(others[:9])}" + " …" * (len(others) > 9),
    )


def optional() -> Finding:
    """Report which optional programs and packages are installed."""
    programs = {"git": "git (config.yaml names no commit)", "ffmpeg": "ffmpeg (films are GIFs)"}
    extras = {"s3fs": "dcgan-dist[s3]", "onnxruntime": "dcgan-dist[onnx]", "torch_fidelity": "dcgan-dist[inception]"}
    missing = [text for name, text in programs.items() if shutil.which(name) is None]
    missing += [text for package, text in extras.items() if importlib.util.find_spec(package) is None]
    return Finding("optional", "ok", f"without {', '.join(missing)}" if missing else "all there")


def _dependencies(project: Path) -> list[str]:
    """Return the package's requirements, from pyproject.toml in a checkout: in a Ray job, it is not installed."""
    if (project / "pyproject.toml").is_file():
        content = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
        return list(content["project"]["dependencies"])
    return importlib.metadata.requires("dcgan-dist") or []


def _is_installed(pin: str) -> bool:
    """Return whether the package of a pin is installed in that version, or not at all."""
    wanted = Requirement(pin)
    try:
        return wanted.specifier.contains(importlib.metadata.version(wanted.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return True


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _free(path: Path) -> int:
    about = os.statvfs(path)
    return about.f_bavail * about.f_frsize if about.f_favail or not about.f_files else 0


def _size(number: float) -> str:
    return f"{number / (1 << 30):.1f} GiB" if number >= 1 << 30 else f"{number / (1 << 20):,.0f} MiB"
