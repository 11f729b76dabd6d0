"""docs/api.md is what the docstrings say, and has every public name."""

from __future__ import annotations

import ast
import inspect
import re
import runpy
from pathlib import Path

import dcgan_dist
from dcgan_dist import errors
from dcgan_dist.runs.run import Run as SavedRun

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/api.md").read_text(encoding="utf-8")


def test_the_page_is_made_from_the_docstrings() -> None:
    assert runpy.run_path(str(ROOT / "docs/make_api.py"))["page"]() == PAGE, "python docs/make_api.py writes it again"


def test_every_public_name_has_a_heading() -> None:
    missing = [name for name in dcgan_dist.__all__ if name != "__version__" and f"### `dd.{name}`\n" not in PAGE]
    assert missing == []


def test_every_member_and_attribute_of_a_run_is_told_of() -> None:
    members = {name for name in dir(dcgan_dist.Run) if not name.startswith("_")} | {
        name for name in vars(SavedRun("somewhere")) if not name.startswith("_")
    }
    about = PAGE.partition("### `dd.Run`")[2].partition("\n### ")[0]
    assert members > {"sample", "metrics", "location"}
    assert [name for name in sorted(members) if not re.search(rf"`(Run\.)?{name}`", about)] == []


def test_the_readme_uses_what_there_is() -> None:
    block = re.search(
        r"## In Python\n.*?```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert block
    used = {
        (node.value.id, node.attr)
        for node in ast.walk(ast.parse(block[1]))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    assert {("dd", "train"), ("run", "metrics")} <= used
    there = {"dd": dcgan_dist, "run": dcgan_dist.Run}
    assert [f"{of}.{name}" for of, name in sorted(used) if not hasattr(there[of], name)] == []


def test_every_error_stands_below_its_base_with_its_exit_status() -> None:
    tree = PAGE.partition("## Errors")[2].partition("```\n")[2].partition("```")[0]
    bases, told = {0: "Exception"}, {}
    status: dict[int, str] = {}
    for branch, name, said in re.findall(r"^([│├└─ ]*)(\w+) +(1(?= )|2|3|128\+n)?", tree, re.MULTILINE):
        depth = len(branch) // 4 + 1
        bases[depth], status[depth] = name, said or status[depth - 1]
        told[name] = (bases[depth - 1], status[depth])
    true = {
        name: (kind.__bases__[0].__name__, "128+n" if name == "Stopped" else str(kind.exit_status))
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.DcganDistError)
    }
    assert told == true
