"""The examples do what they say, in seconds here, and print nothing that they do not mean to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "rooms.ipynb"
SHORT = ["--steps", "12", "--images", "300", "--score-images", "300"]


def run_script(output: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / "rooms.py", *SHORT, "--output", output, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def outputs_of(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_the_script_leaves_its_pictures_and_says_what_it_found(tmp_path: Path) -> None:
    done = run_script(tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")  # no terminal, no progress bars
    first, second, last = done.stdout.splitlines()
    assert first.startswith("beta1 = 0.5, as in the paper: dcgan ")
    assert second.startswith("beta1 = 0.9, Adam's default: dcgan ")
    assert last == f"pictures: {tmp_path / 'out'}"
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "out").glob("*.png")}
    assert sizes == {"curves.png": (1000, 350), "paper.png": (512, 512), "beta1-0.9.png": (512, 512)}


def test_the_script_refuses_bad_input_in_a_line(tmp_path: Path) -> None:
    done = run_script(tmp_path / "out", "--steps", "0")
    assert done.returncode == 2
    assert "training.steps is 0" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # half a minute
def test_the_notebook_runs_as_it_is_and_shows_only_what_it_means_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"STEPS": 12, "IMAGES": 300, "SCORED": 300}.items():
        monkeypatch.setenv(f"ROOMS_{name}", str(value))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept = [kind_of(output) for output in outputs_of(notebook)]
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = outputs_of(notebook)
    assert [kind_of(output) for output in outputs] == kept  # those that it was committed with are of the same code
    printed = "".join(output.text for output in outputs if output.output_type == "stream").splitlines()
    known = ("The image changes ", "dcgan ", "random ", "beta1 = 0.5 ", "beta1 = 0.9 ")
    assert [line for line in printed if not line.startswith(known)] == []
    bars = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert len(bars) == 2
    assert all(">12/12<" in bar for bar in bars)


def test_the_notebook_is_kept_with_the_outputs_of_one_whole_run() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert {kind for output in outputs_of(notebook) for kind in kind_of(output)} >= {
        "image/jpeg",
        "text/html",
        "stdout",
    }
    assert NOTEBOOK.stat().st_size < 1_500_000


def kind_of(output: Any) -> list[str]:
    """What an output is: a stream's name, or the types of what is shown."""
    return [output.name] if output.output_type == "stream" else sorted(output.data)
