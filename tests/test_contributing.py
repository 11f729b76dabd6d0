"""What CONTRIBUTING.md says of adding a model, a source, a figure and a score works as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(
    r"```python\n# (\S+?\.py)(?:, above: ([^\n]+))?\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL
)


def test_the_worked_examples_work_in_a_copy_of_the_package(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "dcgan_dist", tmp_path / "dcgan_dist", ignore=shutil.ignore_patterns("__pycache__"))
    tests = []
    for file, line, code in BLOCKS:
        path = tmp_path / file
        if line:
            before, found, after = path.read_text().partition(f"{line}\n")
            assert found, f"{file} has no line {line!r}"
            path.write_text(f"{before}{code}{found}{after}")
            continue
        assert not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
        tests += [path] if path.name.startswith("test_") else []
    assert len(tests) == 4
    own = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        *map(str, tests),
    ]
    done = subprocess.run(words, env={**os.environ, **own}, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
