"""The first call of a vector function is made on one thread, in every process that computes."""

from __future__ import annotations

import ast
from pathlib import Path

import dcgan_dist

PACKAGE = Path(dcgan_dist.__file__).parent
PEERS = PACKAGE / "benchmarks"  # other people's loops, as they are


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
        file
        for file in PACKAGE.rglob("*.py")
        if any(name.partition(".")[0] == "torch" for name in imports(file)) and PEERS not in file.parents
    ]
    assert len(computing) > 40  # the search finds them
    unsettled = []
    for file in computing:
        packages = [parent / "__init__.py" for parent in file.parents if PACKAGE in parent.parents]
        if not any("dcgan_dist.vector_math" in imports(each) for each in [file, *packages]):
            unsettled.append(str(file.relative_to(PACKAGE)))
    assert unsettled == ["vector_math.py"]
