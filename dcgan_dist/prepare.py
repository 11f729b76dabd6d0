"""`python -m dcgan_dist.prepare`: make shards from a source of images, find near-duplicates, or check shards."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dcgan_dist.command_line import FrontDoor, parse_settings, run, yield_idle_cores
from dcgan_dist.config import override
from dcgan_dist.data.preparation import prepare
from dcgan_dist.data.settings import PrepareConfig
from dcgan_dist.errors import ConfigError
from dcgan_dist.launch.locations import absolute_input, lasting_output
from dcgan_dist.parallel import LocalPool, TaskPool, usable_cores
from dcgan_dist.printing import tell

PROG = "dcgan-dist prepare"


def _command(arguments: Sequence[str]) -> None:
    config = parse_settings(
        PrepareConfig,
        arguments,
        PROG,
        "Make shards from a source of images, find near-duplicates, or check shards.",
    )
    run_prepare(config)


def run_prepare(config: PrepareConfig) -> None:
    """Make, deduplicate or check shards, as the settings say, and print the result.

    Raises:
        InputError: a setting, the source or the output cannot be used.
        StorageError: the disk is full or fails.
        DcganDistError: checked shards are damaged.
    """
    with _pool(config) as (absolute, pool):
        if config.verify is not None or config.source is not None or not config.dedup:
            prepare(absolute, pool)
        if config.dedup and config.verify is None:
            _deduplicate(absolute, pool)


@contextmanager
def _pool(config: PrepareConfig) -> Iterator[tuple[PrepareConfig, TaskPool]]:
    """Yield the settings, with absolute paths for a cluster, and the workers."""
    if config.output is not None:
        config = override(config, {"output": lasting_output(config.output)})
    if config.cluster.workers == 1:
        yield config, LocalPool(config.workers or usable_cores())
        return
    from dcgan_dist.launch.ray_tasks import ray_pool

    given = {key: getattr(config, key) for key in ("input", "output", "verify")}
    config = override(config, {key: absolute_input(value) for key, value in given.items() if value is not None})
    needs = [path for path in (config.input, config.verify) if path is not None]
    with ray_pool(config.cluster.workers, needs) as pool:
        yield config, pool


def _deduplicate(config: PrepareConfig, pool: TaskPool) -> None:
    if config.output is None:
        raise ConfigError("output is missing: give --output FOLDER, the folder of the finished shards")
    yield_idle_cores()
    from dcgan_dist.deduplication import deduplicate

    deduplicate(config.output, config.deduplication, seed=config.seed, pool=pool, say=tell)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(_command, PROG, arguments, after_signal="run again, it continues from the finished shards")


sys.modules[__name__].__class__ = FrontDoor  # `dcgan_dist.prepare(...)` is `api.prepare`

if __name__ == "__main__":
    sys.exit(main())
