"""Write docs/api.md from the docstrings of the public names: ``python docs/make_api.py``."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import dcgan_dist
from dcgan_dist import api, config, errors
from dcgan_dist.data import pipeline
from dcgan_dist.data.fluid import FluidStream
from dcgan_dist.data.manifest import Manifest
from dcgan_dist.data.sample_stream import SampleStream
from dcgan_dist.runs.checkpoints import Checkpoint
from dcgan_dist.runs.scores import Metric, Score
from dcgan_dist.sweeps.record import TrialRecord

PAGE = Path(__file__).with_name("api.md")
FUNCTIONS = (
    *(api.train, api.prepare, api.sample, api.evaluate, api.explore, api.sweep, api.report),
    *(api.load_config, api.override, pipeline.stream),
)
CLASSES = (
    *(api.Run, Checkpoint, Score, Metric, api.Figure, api.Sweep, TrialRecord, Manifest),
    *(SampleStream, FluidStream, config.Config),
)
HEAD = """# The Python API

Made from the docstrings by `python docs/make_api.py`.

```python
import dcgan_dist as dd
```

Settings are those of the commands (`python -m dcgan_dist.train --help`): a YAML file, dotted or nested names, or an
object of a settings class. `overrides` come over them, and None clears one. Nothing is printed unless `progress` asks.
In signatures, `Overrides` is a mapping or None, `Progress` a bool or a function that is called with a mapping,
`Weights` one of `"auto"`, `"average"` and `"raw"`, `Entry` one score as scores.json has it,
`Settings` a settings class.

In a script of your own, import torch after the first call of a function here: these have its threads yield their cores
while they wait, without which training on a machine that other programs use too can be ten times slower.
`GOMP_SPINCOUNT=1000` in the environment does the same.
"""


def _text(docstring: str | None) -> str:
    """Return a docstring in Markdown: sections as bold words, their entries as a list."""
    lines: list[str] = []
    in_section = has_entries = False
    for line in inspect.cleandoc(docstring or "").splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Attributes):", line):
            lines += [f"**{line[:-1]}**", ""]
            in_section, has_entries = True, "Returns" not in line
        elif in_section and line.startswith("    ") and not line.startswith("     "):
            name, colon, rest = line.strip().partition(": ")
            is_entry = has_entries and colon and re.fullmatch(r"[\w*, ]+", name)
            lines.append(f"- `{name}`: {rest}" if is_entry else line.strip())
        elif in_section and line.startswith("     "):
            lines[-1] += f" {line.strip()}"
        elif line.startswith(">>> "):
            lines.append(f"    {line}")
        else:
            in_section = in_section and not line.strip()
            lines.append(line)
    return "\n".join(lines).strip()


def _written(parameter: inspect.Parameter) -> str:
    """Return a parameter as it is written."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    value = parameter.default
    default = "" if value is parameter.empty else f" = {value.__name__ if inspect.isfunction(value) else repr(value)}"
    return f"{stars}{parameter.name}: {parameter.annotation}{default}"


def _signature(function: Callable[..., Any]) -> str:
    """Return a signature as it is written, a parameter a line where it is long."""
    signature = inspect.signature(function)
    words: list[str] = []
    for each in signature.parameters.values():
        if each.name == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        words.append(_written(each))
    line = f"{function.__name__}({', '.join(words)}) -> {signature.return_annotation}"
    if len(line) <= 100:
        return line
    return (
        f"{function.__name__}(\n" + "".join(f"    {word},\n" for word in words) + f") -> {signature.return_annotation}"
    )


def _members(kind: type) -> Iterator[tuple[str, str]]:
    """Yield heading and text of the public methods and properties of a class, in the order of their names."""
    fields = {entry.name for entry in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    ours = {name for base in kind.__mro__ if base.__module__.startswith("dcgan_dist.") for name in vars(base)}
    for name in sorted(name for name in ours - fields if not name.startswith("_")):
        member = inspect.getattr_static(kind, name)
        if isinstance(member, property | cached_property):
            yield f"`{kind.__name__}.{name}`", _text(inspect.getdoc(member))
        elif inspect.isfunction(member):
            yield f"`{kind.__name__}.{name}`", f"```python\n{_signature(member)}\n```\n\n{_text(member.__doc__)}"


def _groups(kind: type) -> str:
    """Return the names of the fields of a settings class, with those of its groups."""
    lines = ["`--help` of `train` says what each is for.", ""]
    for entry in dataclasses.fields(kind):
        group = entry.default_factory
        inner = dataclasses.fields(group) if dataclasses.is_dataclass(group) else ()
        lines.append(f"- `{entry.name}`" + (f": {', '.join(f'`{each.name}`' for each in inner)}" if inner else ""))
    return "\n".join(lines)


def page() -> str:
    """Return the whole page."""
    parts = [HEAD, "## Functions"]
    for function in FUNCTIONS:
        parts.append(
            f"### `dd.{function.__name__}`\n\n```python\n{_signature(function)}\n```\n\n{_text(function.__doc__)}"
        )
    parts.append("## Classes")
    for kind in CLASSES:
        name = f"dd.{kind.__name__}" if kind.__name__ in dcgan_dist.__all__ else kind.__name__
        parts.append(f"### `{name}`\n\n{_text(kind.__doc__)}")
        if kind is config.Config:
            parts.append(_groups(kind))
        parts += [f"#### {heading}\n\n{text}" for heading, text in _members(kind)]
    tree = inspect.cleandoc((errors.__doc__ or "").split("::\n\n")[1].split("\n\nA message")[0])
    parts.append(f"## Errors\n\n`dcgan_dist.errors`; the number is the exit status of a command.\n\n```\n{tree}\n```")
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.exit(0)
