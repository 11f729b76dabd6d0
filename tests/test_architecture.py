"""docs/architecture.md says what the imports say, and names what there is."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
PLAN, *WAYS = re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)


def floors() -> list[list[str]]:
    """The modules of each floor, from the top, by their names in the plan."""
    return [re.split(r" · ", line.strip()) for line in PLAN.splitlines()]


def test_the_plan_is_the_contract_that_import_linter_holds() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    held = [{name.removeprefix("dcgan_dist.") for name in layer.split(" | ")} for layer in layers]
    assert [set(names) for names in floors()] == held


def test_every_module_stands_on_a_floor_and_no_import_goes_up_or_along_it() -> None:
    graph = grimp.build_graph("dcgan_dist", "benchmarks", exclude_type_checking_imports=False)
    height = {name: -number for number, names in enumerate(floors()) for name in names}

    def room(module: str) -> str:
        return module.removeprefix("dcgan_dist.").split(".")[0]

    modules = {module for module in graph.modules if module != "dcgan_dist"}
    assert {room(module) for module in modules} == set(height)
    arrows = {
        (room(module), room(other)) for module in modules for other in graph.find_modules_directly_imported_by(module)
    }
    upwards = [
        (one, other) for one, other in arrows if other in height and one != other and height[other] >= height[one]
    ]
    assert upwards == []


def test_each_floor_is_told_of() -> None:
    table = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    told = set(re.findall(r"`(\w+)`", " ".join(table)))
    commands = floors()[2]
    assert {commands[0], commands[-1]} <= told
    assert {name for names in floors() for name in names} - set(commands) - {"__main__"} <= told


def is_in(name: str, file: str) -> bool:
    """Whether a file of the package has `name`, such as ``Tally.add``."""
    module = import_module("dcgan_dist." + file.removesuffix(".py").replace("/", "."))
    try:
        attrgetter(name)(module)
    except AttributeError:
        return False
    return True


def test_what_the_ways_name_is_in_the_file_named_before_it() -> None:
    named = []
    for way in WAYS:
        file = ""
        for word in re.findall(r"[\w/]+\.py\b|[\w.]+(?=\(\))|\bRun\.\w+", way):
            if word.endswith(".py"):
                file = word
                assert (ROOT / "dcgan_dist" / file).is_file(), word
            else:
                named.append((word, file))
    assert len(named) > 30
    assert [(name, file) for name, file in named if not is_in(name, file)] == []


def test_what_the_table_names_is_in_the_package_of_its_row() -> None:
    named = []
    for line in PAGE.splitlines():
        if line.startswith("| `"):
            _, floor, told, _ = line.split("|")
            package = ROOT / "dcgan_dist" / re.findall(r"`(\w+)`", floor)[0]
            sources = [*package.glob("*.py"), *package.parent.glob(f"{package.name}.py")]
            text = "\n".join(f"class {source.name}\n{source.read_text(encoding='utf-8')}" for source in sources)
            named += [(word, text) for word in re.findall(r"`(\w+\.py|[A-Z]\w+)`", told)]
    assert {"step.py", "RunWriter", "Folder"} <= {word for word, _ in named}
    assert [word for word, text in named if not re.search(rf"^class {re.escape(word)}\b", text, re.MULTILINE)] == []
