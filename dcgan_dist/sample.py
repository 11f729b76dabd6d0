"""Draw images from a trained generator into a grid, a folder, an archive or shards; the path of the output decides.

``python -m dcgan_dist.sample runs/mnist-cgan --label 4 --count 25 --output fours.png``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dcgan_dist.command_line import FrontDoor, parse_settings, run, yield_idle_cores
from dcgan_dist.data.progress import ProgressLine
from dcgan_dist.errors import ConfigError
from dcgan_dist.generation.settings import SampleConfig
from dcgan_dist.launch.locations import absolute_input, lasting_output
from dcgan_dist.parallel import LocalPool, TaskPool, usable_cores
from dcgan_dist.printing import tell
from dcgan_dist.runs.run import Run

PROG = "dcgan-dist sample"

DEFAULT_COUNT = 64
_STRETCHES_EACH = 2  # tasks for which starting another process is worthwhile


def _command(arguments: Sequence[str]) -> None:
    config = parse_settings(SampleConfig, arguments, PROG, __doc__ or "", word_for="run")
    yield_idle_cores()
    write(config)


def write(config: SampleConfig) -> None:
    """Draw samples, write them, and print their location.

    Raises:
        InputError: a setting, the run or the output cannot be used.
        StorageError: a file cannot be written.
    """
    if config.run is None:
        raise ConfigError("run is missing: give RUN or --run RUN, the run directory of the generator")
    if config.output is None:
        raise ConfigError("output is missing: give --output FILE.png, FILE.npz, DIR/NAME-%06d.tar, or a folder")
    from dcgan_dist.generation.samples import open_samples, read_z
    from dcgan_dist.generation.writing import output_of, recover, refuse_existing, write_samples

    location, z_file = lasting_output(config.run), config.z
    if config.cluster.workers > 1:
        location, z_file = absolute_input(location), None if z_file is None else absolute_input(z_file)
    output = output_of(lasting_output(config.output), None if config.format == "auto" else config.format)
    recover(output)
    refuse_existing(output, config.overwrite)
    with _pool(config, [path for path in (location, z_file) if path is not None]) as (pool, device):
        samples = open_samples(
            Run(location),
            config.step,
            seed=config.seed,
            label=config.label,
            z_file=z_file,
            truncation=config.truncation,
            statistics=None if config.statistics == "auto" else config.statistics,
            weights=config.weights,
            device=device,
        )
        count = config.count or DEFAULT_COUNT
        if z_file is not None:
            rows = len(read_z(z_file, samples.model)[0])
            count = config.count or rows
            if count > rows:
                raise ConfigError(f"count is {count}, but z {z_file!r} has {rows} rows: take {rows} or fewer")
        begun, line = time.monotonic(), ProgressLine("samples")
        try:
            write_samples(
                samples, count, output, pool=pool, report=line, encoding=config.encoding, overwrite=config.overwrite
            )
        finally:
            line.close()
    size = samples.model.image_size
    averaged = " (averaged weights)" if samples.weights == "average" else ""
    of = f", {samples.class_names[samples.label]!r}" if samples.label is not None else ""
    tell(
        f"{config.output}: {count:,} images of {size}x{size}{of}, from step {samples.step:,} of {location}{averaged}, "
        f"made in {time.monotonic() - begun:.1f} s"
    )


@contextmanager
def _pool(config: SampleConfig, needs: Sequence[str]) -> Iterator[tuple[TaskPool, str]]:
    """Yield the processes that compute, and their device."""
    from dcgan_dist.distributed import pick_device
    from dcgan_dist.generation.writing import TASK_SIZE

    if config.cluster.workers > 1:
        from dcgan_dist.launch.ray_tasks import ray_pool

        with ray_pool(config.cluster.workers, needs, config.device) as pool:
            yield pool, "cuda" if pool.uses_gpus else "cpu"
        return
    device = pick_device(config.device).type
    workers = config.workers
    if workers is None:
        stretches = (config.count or DEFAULT_COUNT) // TASK_SIZE
        workers = 1 if device == "cuda" else max(1, min(usable_cores(), stretches // _STRETCHES_EACH))
    yield LocalPool(workers), device


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    left = "nothing was written, except finished shards, from which the same command continues"
    return run(_command, PROG, arguments, after_signal=left)


sys.modules[__name__].__class__ = FrontDoor  # `dcgan_dist.sample(...)` is `api.sample`

if __name__ == "__main__":
    sys.exit(main())
