"""The first call of a vector function is made on one thread, in every process that computes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dcgan_dist

PACKAGE = Path(dcgan_dist.__file__).parent


def imports(file: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_every_module_that_imports_torch_settles_its_vector_functions_first() -> None:
    computing = [
        file for file in PACKAGE.rglob("*.py") if any(name.partition(".")[0] == "torch" for name in imports(file))
    ]
    assert len(computing) > 40  # the search works
    unsettled = []
    for file in computing:
        packages = [parent / "__init__.py" for parent in file.parents if PACKAGE in parent.parents]
        if not any("dcgan_dist.vector_math" in imports(each) for each in [file, *packages]):
            unsettled.append(str(file.relative_to(PACKAGE)))
    assert unsettled == ["vector_math.py"]


@pytest.mark.slow
def test_first_steps_of_fresh_processes_under_load_are_equal_and_a_ledger_is_continued(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.stress", "steps", "--ledger", str(tmp_path / "ledger")]
    for count, said in [(15, "0 of 15"), (30, "15 of 30")]:
        done = subprocess.run(
            [*words, "--count", str(count)], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.startswith(said)
    with (tmp_path / "ledger").open("a") as ledger:
        ledger.write((tmp_path / "ledger").read_text().splitlines()[0].replace('outcome": "', 'outcome": "other'))
    done = subprocess.run([*words, "--count", "31"], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 1
