"""What CONTRIBUTING.md says of adding models, sources, figures, scores, columns and hooks works as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n# (\S+?\.py)(?:, (above|in place of): ([^\n]+))?\n(.*?)```", PAGE, re.DOTALL)


def in_copy(folder: Path, *words: str) -> str:
    """Run a module of Python in the copy, of which alone it knows, to its end; what it prints."""
    own = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *words], env=own, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_worked_examples_work_in_a_copy_of_the_package(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "dcgan_dist", tmp_path / "dcgan_dist", ignore=shutil.ignore_patterns("__pycache__"))
    tests = []
    for file, where, line, code in BLOCKS:
        path = tmp_path / file
        if where:
            text = path.read_text()
            assert f"\n{line}\n" in text, f"{file} has no line {line!r}"
            path.write_text(text.replace(f"{line}\n", code + (f"{line}\n" if where == "above" else "")))
            continue
        assert not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
        tests += [path] if path.name.startswith("test_") else []
    assert len(tests) == 6
    assert len(BLOCKS) == len(re.findall("```python", PAGE)), "a block does not say which file it is of"
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    in_copy(tmp_path, "ruff", "check", "dcgan_dist", "tests")
    in_copy(tmp_path, "ruff", "format", "--check", "dcgan_dist", "tests")
    in_copy(
        tmp_path, "mypy", "-p", "dcgan_dist.training", "-p", "dcgan_dist.exploration", "-p", "dcgan_dist.evaluation"
    )
    said = in_copy(tmp_path, "pytest", "--verbose", "-p", "no:cacheprovider", *map(str, tests))
    assert f"{sum(path.read_text().count('def test_') for path in tests)} passed" in said
