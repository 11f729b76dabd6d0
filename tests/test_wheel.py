"""The package as a wheel: what people have who install it and hold no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "dcgan_dist", "configs")

pytestmark = pytest.mark.slow


def call(*command: str | Path, cwd: Path) -> str:
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=own, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make it as `python -m build` does: the archive of sources first, and the wheel from that."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:  # a copy: building leaves files behind
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    call(sys.executable, "-c", "from setuptools.build_meta import build_sdist; build_sdist('dist')", cwd=folder)
    (archive,) = (folder / "dist").glob("*.tar.gz")
    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", "dist", archive, cwd=folder)
    (made,) = (folder / "dist").glob("*.whl")
    return made


def test_it_has_every_file_of_the_package_and_every_config(wheel: Path) -> None:
    package = PROJECT / "dcgan_dist"
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {path.relative_to(PROJECT).as_posix() for path in files}
    configs = [path for path in (PROJECT / "configs").rglob("*") if path.is_file()]
    expected |= {f"dcgan_dist/{path.relative_to(PROJECT).as_posix()}" for path in configs}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected


def test_installed_it_trains_from_an_empty_folder_by_the_name_of_a_config(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env")
    pip = (sys.executable, "-m", "pip", "--python", tmp_path / "env/bin/python")
    call(*pip, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    (site,) = (tmp_path / "env/lib").glob("python*/site-packages")
    # What the package needs comes from the environment of the tests, but for its editable installation there.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    where = call(tmp_path / "env/bin/python", "-c", "import dcgan_dist; print(dcgan_dist.__file__)", cwd=empty)
    assert Path(where.strip()).is_relative_to(site)
    small = ("--training.steps=2", "--training.batch_size=8", "--model.ngf=4", "--model.ndf=4", "--data.path=rooms:64")
    call(tmp_path / "env/bin/dcgan-dist", "train", "--config", "rooms", *small, cwd=empty)
    assert [path.name for path in empty.iterdir()] == ["runs"]
    assert yaml.safe_load((empty / "runs/rooms/config.yaml").read_text())["name"] == "rooms"
    assert (empty / "runs/rooms/checkpoints/step-00000002/state.json").exists()
