"""docs/reliability.md promises what a test proves."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def test_every_promise_names_a_test_that_exists() -> None:
    page = (PROJECT / "docs/reliability.md").read_text()
    promises = page.partition("## Promises")[2].partition("\n## ")[0]
    rows = [line for line in promises.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        found = re.fullmatch(r"\| .+ \| `(tests/[\w/]+\.py)::(test_\w+)` \|", row)
        assert found, row
        tree = ast.parse((PROJECT / found[1]).read_text())
        assert found[2] in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, row
