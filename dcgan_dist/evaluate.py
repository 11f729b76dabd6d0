"""Score what a run's discriminator has learned, or how good its generator's samples are; write the run's scores.json.

``python -m dcgan_dist.evaluate runs/rooms --task rooms``, or ``--task cifar10 --data cifar10_train.tar.gz``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from dcgan_dist.command_line import FrontDoor, parse_settings, run, yield_idle_cores
from dcgan_dist.config import override
from dcgan_dist.errors import ConfigError
from dcgan_dist.evaluation.settings import EvaluateConfig
from dcgan_dist.launch.locations import absolute_input, lasting_output
from dcgan_dist.parallel import LocalPool, TaskPool, usable_cores
from dcgan_dist.printing import tell
from dcgan_dist.results.published import PUBLISHED, TABLE_3
from dcgan_dist.runs.run import Run
from dcgan_dist.storage.folder import check_writable

PROG = "dcgan-dist evaluate"


def _command(arguments: Sequence[str]) -> None:
    config = parse_settings(EvaluateConfig, arguments, PROG, __doc__ or "", word_for="run")
    yield_idle_cores()
    print_scores = {"one-nn": print_errors, "fidelity": print_metrics, "memorisation": print_metrics}.get(
        config.task, print_table
    )

    def show(protocol: str, entries: list[dict[str, Any]]) -> None:
        print_scores(config.task, protocol, entries)

    score(config, show)
    assert config.run is not None
    print(f"scores          {lasting_output(config.run).rstrip('/')}/scores.json", flush=True)


def score(
    config: EvaluateConfig, show: Callable[[str, list[dict[str, Any]]], None] = lambda _protocol, _entries: None
) -> list[dict[str, Any]]:
    """Score a run, write the scores to its scores.json, and return the entries.

    Args:
        config: the settings.
        show: called with the protocol and all entries at the end.

    Raises:
        InputError: a setting, the run or the data cannot be used.
    """
    if config.run is None:
        raise ConfigError("run is missing: give RUN or --run RUN, the run directory to score")
    given = lasting_output(config.run)
    location = absolute_input(given) if config.cluster.workers > 1 else given
    check_writable(given)  # checked first, because scoring can take hours
    from dcgan_dist.distributed import pick_device
    from dcgan_dist.evaluation.generator_scores import GENERATOR_TASKS, evaluate_generators
    from dcgan_dist.evaluation.one_nn import evaluate_one_nn
    from dcgan_dist.evaluation.scoring import evaluate

    scores = evaluate
    if config.task == "one-nn":
        scores = evaluate_one_nn
    elif config.task in GENERATOR_TASKS:
        scores = evaluate_generators
    device = pick_device(config.device)
    needs = [location] if config.task == "one-nn" else []  # its workers load the generator
    with _pool(config, device.type, needs) as (absolute, pool, workers_device):
        return scores(absolute, Run(location), device, pool, show, tell, workers_device)


@contextmanager
def _pool(config: EvaluateConfig, device: str, needs: Sequence[str]) -> Iterator[tuple[EvaluateConfig, TaskPool, str]]:
    """Yield the settings, the processes that extract features, and their device.

    By default this process computes, because its threads use all cores or the GPU; for one-nn a process for each core,
    because one thread makes the samples. On a cluster, the paths of the settings are made absolute, and each host must
    see `needs`.
    """
    if config.cluster.workers == 1:
        yield config, LocalPool(usable_cores() if config.task == "one-nn" and device == "cpu" else 1), device
        return
    from dcgan_dist.launch.ray_tasks import ray_pool
    from dcgan_dist.storage.cache import cache_directory

    given = {key: getattr(config, key) for key in ("data", "test_data", "unlabelled")}
    config = override(config, {key: absolute_input(value) for key, value in given.items() if value is not None})
    cache = str(cache_directory(config.cache))  # the workers read the networks' weights and made shards from it
    with ray_pool(config.cluster.workers, [cache, *needs], config.device) as pool:
        yield override(config, {"cache": cache}), pool, "cuda" if pool.uses_gpus else "cpu"


def print_table(task: str, protocol: str, entries: list[dict[str, Any]]) -> None:
    """Print scores, and the published rows of the paper for the same protocol, marked as published."""
    table = Table(title=f"{task}, {protocol}: accuracy in percent")
    for name in ("method", "step", "accuracy", "95% interval", "n", "chosen", "seconds"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for entry in entries:
        accuracy = entry["metrics"]["accuracy"]
        low, high = accuracy["ci95"]
        chosen = next(
            (f"{name} {entry[name]:g}" for name in ("C", "k", "trial") if isinstance(entry.get(name), float)), ""
        )
        table.add_row(
            entry["method"],
            "" if entry["step"] is None else str(entry["step"]),
            f"{accuracy['value']:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{accuracy['n']:,}",
            chosen,
            f"{entry['seconds']:.1f}",
        )
    for name, value, units in PUBLISHED.get((task, protocol.partition("/")[0]), ()):
        table.add_row(f"published: {name}", units and f"({units} units)", value, "", "", "", "", style="dim")
    width = None if sys.stdout.isatty() else 120
    Console(width=width).print(table)
    for entry in entries[:1]:
        attributes = {
            name: about for name, about in entry["metrics"].items() if "most_frequent" in about and name != "accuracy"
        }
        if attributes:
            scores = ", ".join(
                f"{name} {about['value']:.1f} (most frequent {about['most_frequent']:.1f})"
                for name, about in attributes.items()
            )
            print(scores)


# The best values of the metrics.
IDEALS = {
    "precision": "that of real images",
    "recall": "that of real images",
    "density": "that of real images",
    "coverage": "that of real images",
    "distance_ratio": "1; less after a collapse",
    "frechet_distance": "that of real images",
    "pixel_auc": "0.5; 1 if all are copies",
    "feature_auc": "0.5; 1 if all are copies",
    "pixel_distance_ratio": "1; 0 if most are copies",
    "feature_distance_ratio": "1; 0 if most are copies",
    "pixel_near_copies": "0.01; 1 if all are copies",
    "feature_near_copies": "0.01; 1 if all are copies",
}


def _generator(entry: dict[str, Any]) -> str:
    return f"{entry['method']}{', averaged' if entry.get('weights') == 'average' else ''}"


def print_metrics(task: str, protocol: str, entries: list[dict[str, Any]]) -> None:
    """Print scores of generators, one line for each metric."""
    table = Table(title=f"{task}, {protocol}")
    for name in ("method", "step", "metric", "value", "95% interval", "n", "at best"):
        table.add_column(name, justify="left" if name in ("method", "metric", "at best") else "right")
    for entry in entries:
        for number, (name, metric) in enumerate(entry["metrics"].items()):
            low, high = metric["ci95"]
            first = number == 0
            table.add_row(
                _generator(entry) if first else "",
                str(entry["step"]) if first and entry["step"] is not None else "",
                name,
                f"{metric['value']:.4g}",
                f"{low:.4g} to {high:.4g}",
                f"{metric['n']:,}",
                IDEALS.get(name, ""),
            )
        table.add_section()
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if task == "fidelity" and not {"frechet_distance", "fid"} & set(entries[0]["metrics"]):
        print("the Fréchet distance is left out: it needs --count 5000 or more")


def print_errors(task: str, protocol: str, entries: list[dict[str, Any]]) -> None:
    """Print the errors of 1-NN classifiers trained on N images, and those that the paper published."""
    table = Table(title=f"{task}, {protocol}: test error in percent of a classifier trained on N images")
    for name in ("images", "step", "N", "error", "95% interval", "n"):
        table.add_column(name, justify="left" if name == "images" else "right")
    for entry in entries:
        errors = {name: about for name, about in entry["metrics"].items() if name.startswith("error_at_")}
        for number, (name, error) in enumerate(errors.items()):
            low, high = error["ci95"]
            table.add_row(
                _generator(entry) if number == 0 else "",
                str(entry["step"]) if number == 0 and entry["step"] is not None else "",
                f"{int(name.removeprefix('error_at_')):,}",
                f"{error['value']:.2f}",
                f"{low:.2f} to {high:.2f}",
                f"{error['n']:,}",
            )
        table.add_section()
    for name, *values in TABLE_3:
        for count, value in zip(("50,000", "10,000,000"), values, strict=True):
            if value:
                table.add_row(f"published, MNIST: {name}", "", count, value, "", "10,000", style="dim")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(_command, PROG, arguments, after_signal="finished scores are kept")


sys.modules[__name__].__class__ = FrontDoor  # `dcgan_dist.evaluate(...)` is `api.evaluate`

if __name__ == "__main__":
    sys.exit(main())
