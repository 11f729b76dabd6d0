"""The former command `bench`: it says that the benchmarks are now in a checkout, outside of the package."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dcgan_dist.command_line import run
from dcgan_dist.errors import ConfigError

PROG = "dcgan-dist bench"


def bench_command(_arguments: Sequence[str]) -> None:
    """Refuse, and name the command that runs the benchmarks.

    Raises:
        ConfigError: always.
    """
    raise ConfigError("the benchmarks are not part of the package: run python -m benchmarks WHAT in a checkout of it")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(bench_command, PROG, arguments)


if __name__ == "__main__":
    sys.exit(main())
