"""Train DCGANs on millions of images over many GPUs and hosts, and score what they learned.

The names below are imported when they are first used; see `dcgan_dist.api`.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from dcgan_dist.version import __version__

if sys.argv[:1] == ["-m"]:  # `python -m dcgan_dist.NAME` is looking for its module; what that imports takes a while
    from dcgan_dist.stopping import end_at_once, set_handler

    set_handler(end_at_once)

if TYPE_CHECKING:
    from dcgan_dist.api import Run, evaluate, explore, load_config, override, prepare, report, sample, sweep, train
    from dcgan_dist.config import Config
    from dcgan_dist.data.pipeline import stream

_FRONT_DOORS = ("evaluate", "explore", "prepare", "report", "sample", "sweep", "train")  # modules that can be called
_ELSEWHERE = {
    "Config": "config",
    "Run": "api",
    "load_config": "api",
    "override": "api",
    "stream": "data.pipeline",
}


def __getattr__(name: str) -> Any:
    if name in _FRONT_DOORS:
        return importlib.import_module(f"dcgan_dist.{name}")
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(f"dcgan_dist.{_ELSEWHERE[name]}"), name)
    raise AttributeError(f"module 'dcgan_dist' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_FRONT_DOORS, *_ELSEWHERE})


__all__ = [
    "Config",
    "Run",
    "__version__",
    "evaluate",
    "explore",
    "load_config",
    "override",
    "prepare",
    "report",
    "sample",
    "stream",
    "sweep",
    "train",
]
