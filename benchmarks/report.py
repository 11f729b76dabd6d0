"""`report`: reading ten thousand runs for the report, compared with Ray Tune's own reader of results."""

from __future__ import annotations

import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from benchmarks.measuring import LESS_IS_BETTER, Bench, Record, alternate, in_own_process, on_cores, peak_mib
from dcgan_dist.config import Config, override
from dcgan_dist.parallel import usable_cores
from dcgan_dist.results.aggregate import collect
from dcgan_dist.results.page import write_page
from dcgan_dist.results.tables import TRIALS_CSV, write_tables, write_trials_csv
from dcgan_dist.settings import as_record

TRIALS = 10_000
ROWS = 200
GRIDS = 5
TABLE = "all read and trials.csv written"
_CURVES = 100  # different metrics files, each hard-linked to many trials


def make_runs(folder: Path, trials: int = TRIALS, rows: int = ROWS) -> None:
    """Write run directories with individual settings, metrics, five grids and scores; equal files are hard links."""
    shared = folder / ".shared"
    shared.mkdir(parents=True)
    for number in range(_CURVES):
        (shared / f"{number}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in _curve(number, rows)))
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((512, 512)).save(shared / "grid.png")
    draw = random.Random(0)
    for number in range(trials):
        run = folder / f"t{number:05d}"
        (run / "samples").mkdir(parents=True)
        changes = {
            "name": run.name,
            "optim.lr": round(10 ** draw.uniform(-5, -2), 8),
            "optim.beta1": round(draw.uniform(0, 0.95), 4),
            "model.slope": round(draw.uniform(0, 0.5), 4),
            "training.steps": 50 * rows,
        }
        settings = as_record(override(Config(), changes)) | {"environment": {"torch": "2.13.0+cpu", "host": "a"}}
        (run / "config.yaml").write_text(_yaml(settings))
        status = {"status": "finished", "reason": "", "host": "a", "pid": 1, "heartbeat": 1e9, "step": 50 * rows}
        (run / "status.json").write_text(json.dumps(status))
        interval = {"value": draw.uniform(0, 1), "ci95": [0.4, 0.6], "n": 500}
        entry = {"step": 50 * rows, "method": "dcgan", "protocol": "full", "metrics": {"accuracy": interval}}
        (run / "scores.json").write_text(json.dumps({"rooms": [entry]}))
        os.link(shared / f"{number % _CURVES}.jsonl", run / "metrics.jsonl")
        for grid in range(GRIDS):
            os.link(shared / "grid.png", run / "samples" / f"step-{grid * 10 * rows:08d}.png")
        os.link(shared / "grid.png", run / "samples" / "real.png")


def _yaml(tree: dict[str, Any], indentation: str = "") -> str:
    """Return settings as a run writes them, but faster."""
    lines = ""
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += f"{indentation}{key}:\n{_yaml(value, indentation + '  ')}"
        else:
            lines += f"{indentation}{key}: {yaml.safe_dump(value).splitlines()[0]}\n"
    return lines


def _curve(number: int, rows: int) -> Iterator[dict[str, float | int | None]]:
    draw = random.Random(number)
    for row in range(1, rows + 1):
        yield {
            "step": 50 * row,
            "epoch": 50 * row / 157,
            "images_seen": 6400 * row,
            "loss_d": draw.uniform(0.1, 1.5),
            "loss_g": draw.uniform(0.5, 6),
            "d_real": draw.uniform(0.5, 1),
            "d_fake": draw.uniform(0, 0.5),
            "images_per_s": draw.uniform(300, 500),
            "data_wait": draw.uniform(0, 0.01),
            "sample_distance": draw.uniform(0.3, 0.9),
            "filter_oscillation": draw.uniform(0, 0.1) if row > 20 else None,
            "lr": 0.0002,
            "images_lost": 0,
            "world_size": 1,
            "time_s": 16.4 * row + draw.random(),
        }


def make_tune_experiment(runs: Path, folder: Path, trials: int) -> None:
    """Write the first runs of `make_runs` in Ray Tune's layout: result.json and the experiment's state.

    A line of result.json has the metrics, the fields that Tune adds to each result, and the trial's config, with the
    searched settings only.
    """
    from ray.train._internal.storage import StorageContext
    from ray.tune import PlacementGroupFactory
    from ray.tune.experiment import Trial

    folder.mkdir(parents=True)
    storage = StorageContext(storage_path=str(folder.parent), experiment_dir_name=folder.name)
    states = []
    for number, run in enumerate(sorted(runs.glob("t*"))[:trials]):
        settings = yaml.load((run / "config.yaml").read_text(), yaml.CSafeLoader)
        config = {"optim.lr": settings["optim"]["lr"], "optim.beta1": settings["optim"]["beta1"]}
        trial: Any = Trial("trainable", config=config, trial_id=run.name, storage=copy(storage), stub=True)
        trial.placement_group_factory = PlacementGroupFactory([{"CPU": 1}])
        trial.storage.trial_dir_name = run.name
        (folder / run.name).mkdir()
        lines = (run / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) | _added(row, run.name) | {"config": config} for row, line in enumerate(lines, 1)]
        result = folder / run.name / "result.json"
        if number < _CURVES:
            result.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        else:
            os.link(folder / f"t{number % _CURVES:05d}" / "result.json", result)
        trial.run_metadata.last_result = rows[-1]
        states.append(trial.get_json_state())
    (folder / "experiment_state-2026-01-01_00-00-00.json").write_text(json.dumps({"trial_data": states}))


def _added(iteration: int, trial: str) -> dict[str, Any]:
    return {
        "timestamp": 1_767_225_600 + iteration,
        "checkpoint_dir_name": None,
        "done": False,
        "training_iteration": iteration,
        "trial_id": trial,
        "date": "2026-01-01_00-00-00",
        "time_this_iter_s": 16.4,
        "time_total_s": 16.4 * iteration,
        "pid": 1,
        "hostname": "a",
        "node_ip": "127.0.0.1",
        "time_since_restore": 16.4 * iteration,
        "iterations_since_restore": iteration,
    }


# Each side in its own process, so that its memory can be measured


def measure_ours(runs: str, output: str) -> dict[str, float]:
    """Read runs without a cache, write their tables, and read them again, unchanged and with 100 changed runs."""
    folder, cache = Path(output), Path(output, "runs.arrow")
    cache.unlink(missing_ok=True)
    figures: dict[str, float] = {}
    with _timed(figures, TABLE):
        read = collect([runs], cache)
        write_trials_csv(read, folder / TRIALS_CSV)
    figures |= {"MiB": peak_mib(children=usable_cores()), "CPU s": _cpu_seconds()}
    figures["trials/s"] = len(read.trials) / figures[TABLE]
    with _timed(figures, "all tables"):
        write_tables(read, folder)
    with _timed(figures, "read again, nothing changed"):
        collect([runs], cache)
    for run in sorted(Path(runs).glob("t*"))[:100]:
        status = run / "status.json"
        status.write_text(status.read_text() + "\n")
    with _timed(figures, "read again, at most 100 runs changed"):
        collect([runs], cache)
    with _timed(figures, "page"):
        write_page(read, folder / "report.html", now=time.time())
    return figures


def measure_tune(experiment: str, output: str, rows: str) -> dict[str, float]:
    """Read an experiment through ResultGrid and write its table."""
    from ray.tune import ExperimentAnalysis, ResultGrid

    figures: dict[str, float] = {}
    with _timed(figures, TABLE):
        grid = ResultGrid(ExperimentAnalysis(experiment))
        frames = [grid[number].metrics_dataframe for number in range(len(grid))]
        grid.get_dataframe().to_csv(Path(output, "tune.csv"))
    if any(frame is None or len(frame) != int(rows) for frame in frames):
        raise AssertionError("Tune has not read all rows")
    rate = len(grid) / figures[TABLE]
    return {**figures, "trials/s": rate, "MiB": peak_mib(children=usable_cores()), "CPU s": _cpu_seconds()}


@contextmanager
def _timed(figures: dict[str, float], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    figures[name] = time.perf_counter() - begun


def _cpu_seconds() -> float:
    """Return the CPU time of this process and those it started, imports included."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def bench_report(bench: Bench) -> Iterator[Record]:
    """Measure time and memory to read many runs, and of Ray Tune's reader on a tenth of them, on two cores."""
    trials, rows = bench.size((TRIALS, ROWS), (300, 40))
    with tempfile.TemporaryDirectory(prefix="dcgan_dist-report-") as name, on_cores(2):
        folder = Path(name)
        runs, experiment = folder / "runs", folder / "tune"
        make_runs(runs, trials, rows)
        make_tune_experiment(runs, experiment, trials // 10)
        tune = f"ray.tune.ResultGrid, {trials // 10} trials"
        ways = {
            "ours": in_own_process(measure_ours, runs, folder),
            tune: in_own_process(measure_tune, experiment, folder, rows),
        }
        turns = alternate(ways, bench.rounds)
        page = (folder / "report.html").stat().st_size / 2**20
    what = f"report on {trials:,} runs of {rows} rows"
    yield bench.compare(f"{what}: {TABLE}", turns, "ours", tune, "trials/s", goal=5)
    goals = {TABLE: 20.0, "MiB": 1536.0}
    for figure, values in turns["ours"].items():
        if figure not in ("s", "trials/s"):
            unit = figure if figure in LESS_IS_BETTER else "s"
            yield bench.record(f"{what}: {TABLE if figure == unit else figure}", unit, values, goal=goals.get(figure))
    yield bench.record(f"{what}: report.html", "MiB", [page])
