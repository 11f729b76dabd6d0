"""Write the JSON Schemas by which editors check and complete configs: ``python docs/make_schema.py``."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import msgspec

from dcgan_dist.config import Config
from dcgan_dist.settings import Group, documentation, flatten, kinds_of, settings_in
from dcgan_dist.sweeps.settings import SweepConfig

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = {CONFIGS / "schema.json": Config, CONFIGS / "sweeps" / "schema.json": SweepConfig}


def schema(group: type[Group]) -> dict[str, Any]:
    """Return the schema of a class of settings, with docstrings, bounds and defaults."""
    defaults = flatten(group())
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_object(group)}
    for name, setting in settings_in(group).items():
        *groups, last = name.split(".")
        node = whole
        for part in groups:
            node = node["properties"].setdefault(part, _object(setting.group))
        about = {"description": documentation(setting.group)[setting.path[-1]], "default": defaults[name]}
        node["properties"][last] = _value(setting.hint) | about
    whole["properties"]["environment"] = {"description": "Where a run ran, in the config.yaml that it leaves."}
    return whole


def _object(group: type[Group]) -> dict[str, Any]:
    about = " ".join(inspect.cleandoc(group.__doc__ or "").split())
    return {"description": about, "type": ["object", "null"], "additionalProperties": False, "properties": {}}


def _value(hint: Any) -> dict[str, Any]:
    made = msgspec.json.schema(hint)
    return {"anyOf": [made, {"type": "string"}]} if tuple in kinds_of(hint) else made  # a list can be text with commas


def text(group: type[Group]) -> str:
    """Return the content of the file."""
    return json.dumps(schema(group), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for path, settings_class in FILES.items():
        path.write_text(text(settings_class), encoding="utf-8")
