"""Write a trained generator as ONNX or as a torch.export program, after comparing it with the original on random z.

``python -m dcgan_dist.export runs/mnist-cgan --output mnist-cgan.onnx``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dcgan_dist.command_line import parse_settings, run, yield_idle_cores
from dcgan_dist.errors import ConfigError
from dcgan_dist.generation.settings import ExportConfig
from dcgan_dist.launch.locations import lasting_output
from dcgan_dist.runs.run import Run

PROG = "dcgan-dist export"


def _command(arguments: Sequence[str]) -> None:
    config = parse_settings(ExportConfig, arguments, PROG, __doc__ or "", word_for="run")
    if config.run is None:
        raise ConfigError("run is missing: give RUN or --run RUN, the run directory of the generator")
    if config.output is None:
        raise ConfigError("output is missing: give --output FILE.onnx or FILE.pt2")
    yield_idle_cores()
    from dcgan_dist.generation.exporting import check_output, export
    from dcgan_dist.generation.samples import open_samples

    location, output = lasting_output(config.run), lasting_output(config.output)
    check_output(output, config.overwrite)
    statistics = None if config.statistics == "auto" else config.statistics
    samples = open_samples(Run(location), config.step, statistics=statistics, weights=config.weights)
    done = export(samples, output, config.overwrite)
    inputs = "z and one-hot labels y" if samples.is_conditional else "z"
    print(
        f"{output}: the generator of step {samples.step:,} of {location}, from {inputs} to images; run by "
        f"{done.checked_by}, they differ from the original's by at most {done.difference:.1e} of their range",
        flush=True,
    )
    if done.has_batch_statistics:
        print(
            "it normalises with the statistics of each batch, like the run's samples: give it many z at once, or "
            "export with --statistics running",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(_command, PROG, arguments, after_signal="nothing was written")


if __name__ == "__main__":
    sys.exit(main())
