"""The image of `cluster/Dockerfile` has all that the code, and the files that start clusters with it, need."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shlex
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest
import ray
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[2]
CLUSTER = PROJECT / "cluster"
IMAGE = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
USERS = ("kuberay.yaml", "ray-cluster.yaml")  # the files whose hosts run the image

# Debian's packages of programs. The base image has those of "".
PACKAGES = {
    "bash": "", "python": "", "pip": "", "c++": "g++", "g++": "g++", "clang++": "g++", "gcc": "g++",
    "rsync": "rsync", "ssh": "openssh-client", "wget": "wget", "ps": "procps",
}  # fmt: skip
# Programs that the code does without: a commit that is not recorded, films as GIFs.
DISPENSABLE = {"git", "ffmpeg"}
# Extras that no cluster file needs; without them the code names the extra.
EXTRAS = {name for name in PYPROJECT["optional-dependencies"] if name not in ("s3", "dev")}


def test_every_program_that_the_code_starts_is_there_or_dispensable() -> None:
    started = {name for file in sources() for name in programs(file)}
    assert {"git", "ffmpeg"} <= started  # the scan finds known programs
    for name in started - DISPENSABLE:
        assert PACKAGES[name] in {"", *debian_packages()}, f"the image has no {name}"


def test_every_package_that_the_code_imports_is_there_or_of_an_extra() -> None:
    installed, extras = distributions(pip_words()), set()
    for extra in EXTRAS:
        extras |= distributions(PYPROJECT["optional-dependencies"][extra])
    imported = {name for file in sources() for name in imports(file)}
    assert {"torch", "ray", "fsspec", "onnx"} <= imported
    for name in imported:
        assert of_module(name) & (installed | extras), f"the image has no package for `import {name}`"


def test_torch_compile_has_a_compiler_and_git_is_not_needed() -> None:
    assert "g++" in debian_packages()
    assert "git" not in debian_packages()


@pytest.mark.parametrize("name", USERS)
def test_storage_that_the_cluster_files_name_can_be_reached(name: str) -> None:
    schemes = set(re.findall(r"\b([a-z0-9]+)://", (CLUSTER / name).read_text(encoding="utf-8"))) - {"http", "https"}
    assert schemes <= {"s3"}
    assert "s3fs" in distributions(pip_words())  # README and cluster files show s3:// for both


def test_the_head_of_rays_launcher_can_start_machines_and_reach_them() -> None:
    provider = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text(encoding="utf-8"))["provider"]["type"]
    launcher = Path(ray.__file__).parent / "autoscaler" / "_private"
    modules = [file for file in (launcher / provider).glob("*.py") if file.name != "load_metrics.py"]
    assert modules
    needed = {name for file in modules for name in imports(file)} - {"ray"}
    assert "boto3" in needed
    for name in needed:
        assert of_module(name) & distributions(pip_words()), f"the image has no package for `import {name}`"
    source = (launcher / "command_runner.py").read_text(encoding="utf-8")
    for name in ("ssh", "rsync"):
        assert f'["{name}"' in source  # Ray still starts it
        assert PACKAGES[name] in debian_packages()


def test_kuberays_probes_have_their_program() -> None:
    assert "wget" in debian_packages()  # KubeRay's own text: wget --tries 1 -T 2 -q -O- http://localhost:52365/...


def test_commands_of_the_cluster_files_are_in_the_image() -> None:
    launcher = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text(encoding="utf-8"))
    job = yaml.safe_load((CLUSTER / "kuberay.yaml").read_text(encoding="utf-8"))["spec"]["entrypoint"]
    lines = [job, *launcher["head_start_ray_commands"], *launcher["worker_start_ray_commands"]]
    installed, builtins = distributions(pip_words()), {"ulimit"}
    entries = importlib.metadata.entry_points(group="console_scripts")
    scripts = {entry.name for entry in entries if entry.dist and canonicalize_name(entry.dist.name) in installed}
    for command in (command for line in lines for command in line.split(";")):
        words = [word for word in shlex.split(command) if "=" not in word.partition("-")[0]]
        assert words[0] in scripts | builtins | {name for name, package in PACKAGES.items() if package == ""}


def test_files_that_the_cluster_files_name_are_copied_to_where_they_look() -> None:
    folder = re.search(r"^WORKDIR (\S+)$", IMAGE, re.MULTILINE)
    assert folder is not None
    copied = [word for line in re.findall(r"^COPY (.+) \S+$", IMAGE, re.MULTILINE) for word in line.split()]
    assert all((PROJECT / name).exists() for name in copied)
    named = [path for name in USERS for path in re.findall(rf"{folder[1]}/(\S+)", (CLUSTER / name).read_text())]
    assert named
    for path in named:
        assert (PROJECT / path).is_file()
        assert path.split("/")[0] in copied


def test_the_user_of_the_image_has_the_home_that_the_launcher_writes_to() -> None:
    mounts = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text(encoding="utf-8"))["file_mounts"]
    user = re.findall(r"^USER (\S+)$", IMAGE, re.MULTILINE)[-1]
    assert f"useradd --create-home --uid 1000 {user}" in IMAGE
    assert all(path.startswith(f"/home/{user}/") for path in mounts)


def test_python_and_ray_are_those_of_the_project() -> None:
    version = re.search(r"^FROM python:(3\.\d+)", IMAGE, re.MULTILINE)
    assert version is not None
    assert tuple(map(int, version[1].split("."))) >= (3, 11)
    assert "-c constraints.txt" in IMAGE  # and so KubeRay's rayVersion, which another test compares with it


def sources() -> list[Path]:
    """Files of the package, all of which can run on a cluster."""
    return list((PROJECT / "dcgan_dist").rglob("*.py"))


def programs(file: Path) -> Iterator[str]:
    """Yield the programs that a file starts or looks for by name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Attribute(attr="run" | "Popen" | "which" | "check_output" | "check_call")):
                for part in node.args[:1]:
                    yield from (value for value in first_words(part) if re.fullmatch(r"[a-z+]+", value))


def first_words(node: ast.expr) -> Iterator[str]:
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.List(elts=[first, *_]) | ast.Tuple(elts=[first, *_]):
            yield from first_words(first)


def imports(file: Path) -> Iterator[str]:
    """Yield the top-level modules of other packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                found = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), level=0):
                found = [module]
            case _:
                continue
        for name in found:
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names and top != "dcgan_dist":
                yield top


def debian_packages() -> set[str]:
    line = re.search(r"apt-get install ([^&]+)", IMAGE)
    assert line is not None
    return {word for word in line[1].replace("\\", " ").split() if not word.startswith("-")}


def pip_words() -> list[str]:
    """Return the requirements that the image installs; of the project itself, its dependencies."""
    line = re.search(r"pip install (.+)$", IMAGE, re.MULTILINE)
    assert line is not None
    words = shlex.split(line[1].replace("-c constraints.txt", ""))
    found = []
    for word in (word for word in words if not word.startswith("-")):
        project = re.fullmatch(r"\.\[(.+)\]", word)
        if project is None:
            found.append(word)
            continue
        found += PYPROJECT["dependencies"]
        for extra in project[1].split(","):
            found += PYPROJECT["optional-dependencies"][extra]
    return found


def distributions(requirements: Iterable[str]) -> set[str]:
    """Return the names of all distributions that pip installs for some requirements."""
    found: set[str] = set()
    left = [Requirement(text) for text in requirements]
    done = set()
    while left:
        wanted = left.pop()
        for extra in wanted.extras or {""}:
            if (wanted.name, extra) in done:
                continue
            done.add((wanted.name, extra))
            left += needed_by(wanted.name, extra)
        found.add(canonicalize_name(wanted.name))
    return found


@cache
def needed_by(name: str, extra: str) -> tuple[Requirement, ...]:
    try:
        requirements = map(Requirement, importlib.metadata.requires(name) or ())
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(wanted for wanted in requirements if wanted.marker is None or wanted.marker.evaluate({"extra": extra}))


@cache
def modules() -> dict[str, set[str]]:
    found = importlib.metadata.packages_distributions()
    return {module: {canonicalize_name(name) for name in names} for module, names in found.items()}


def of_module(name: str) -> set[str]:
    """Return the distributions that have a module; one that is not installed here is taken to have its name."""
    return modules().get(name, {canonicalize_name(name)})
