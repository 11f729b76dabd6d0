"""Where signatures say `Any`, which switches the checking of types off: only at the edge of untyped libraries."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "dcgan_dist"
CHECKED = ("config.py", "runs", "storage", "training")

# By file: how many functions, and why.
ALLOWED = {
    "runs/run.py": 1,  # config.yaml as YAML gives it, of any version
    "runs/scores.py": 1,  # an entry of scores.json as JSON gives it
    "storage/files.py": 2,  # JSON, and files of bytes or text
    "storage/folder.py": 6,  # file systems of fsspec, which has no types
    "storage/remote.py": 15,  # the same
}


def signatures(path: Path) -> Iterator[list[ast.expr]]:
    """Yield the annotations of each function of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            spec = node.args
            arguments = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]
            found = [each.annotation for each in arguments if each is not None]
            yield [each for each in [*found, node.returns] if each is not None]


def test_any_is_in_no_more_signatures_than_these() -> None:
    files = [
        file
        for name in CHECKED
        for file in ([PACKAGE / name] if name.endswith(".py") else (PACKAGE / name).glob("*.py"))
    ]
    found = Counter(
        str(file.relative_to(PACKAGE))
        for file in files
        for annotations in signatures(file)
        if any(isinstance(node, ast.Name) and node.id == "Any" for each in annotations for node in ast.walk(each))
    )
    assert dict(found) == ALLOWED
