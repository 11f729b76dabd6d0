"""`python -m dcgan_dist.prepare`: make shards from a source of images, or check them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dcgan_dist.command_line import parse_settings, run
from dcgan_dist.config import PrepareConfig
from dcgan_dist.data.preparation import prepare

PROG = "dcgan-dist prepare"


def _command(arguments: Sequence[str]) -> None:
    prepare(parse_settings(PrepareConfig, arguments, PROG, "Make shards from a source of images, or check them."))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(_command, PROG, arguments)


if __name__ == "__main__":
    sys.exit(main())
