"""A run killed at a random step and resumed, compared with one that was left alone: real commands, real kills."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

STEPS = 40
SETTINGS = {
    "data.path": "rooms:512",
    "model.image_size": 64,
    "model.ngf": 8,
    "model.ndf": 8,
    "training.steps": STEPS,
    "training.batch_size": 32,
    "training.log_every": 1,
    "training.sample_every": 10,
    "training.checkpoint_every": 5,
    "training.keep_last": 2,
    "training.device": "cpu",
}
TRAIN = "import sys; from dcgan_dist import train; sys.exit(train.main())"
UNMENDED = "import sys, types; sys.modules['dcgan_dist.vector_math'] = types.ModuleType('vector_math'); " + TRAIN
CLOCKS = ("images_per_s", "data_wait", "time_s")


def _start(folder: Path, cache: Path, code: str) -> subprocess.Popen[bytes]:
    words = [
        sys.executable,
        "-c",
        code,
        *(f"--{key}={value}" for key, value in SETTINGS.items()),
        f"--run_dir={folder}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "DCGAN_DIST_CACHE": str(cache)}
    return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)


def _lines(folder: Path) -> list[dict[str, object]]:
    metrics = folder / "metrics.jsonl"
    return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []


def _differences(run: Path, whole: Path) -> str:
    rows, others = (
        [{k: v for k, v in row.items() if k not in CLOCKS} for row in _lines(each)] for each in (run, whole)
    )
    for row, other in zip(rows, others, strict=True):
        if row != other:
            return f"from step {other['step']} on: " + ", ".join(key for key in other if row.get(key) != other[key])
    last = f"checkpoints/step-{STEPS:08d}"
    for file in (whole / last).glob("*.safetensors"):
        one, other_digest = (hashlib.md5((each / last / file.name).read_bytes()).digest() for each in (run, whole))
        if one != other_digest:
            return f"{file.name} at the end"
    return "the same"


def trials(without_mending: bool, done: int) -> Iterator[str]:
    """Yield where a killed and resumed run first differs from one that was left alone, a pair of processes each."""
    code = UNMENDED if without_mending else TRAIN
    with tempfile.TemporaryDirectory(prefix="dcgan-stress-") as name:
        folder = Path(name)
        cache, whole, run = folder / "cache", folder / "whole", folder / "run"
        if _start(whole, cache, TRAIN).wait():
            raise SystemExit("the run that is left alone failed")
        number = done
        while True:
            last = random.Random(number).randrange(1, STEPS)
            process = _start(run, cache, code)
            while process.poll() is None and len(_lines(run)) < last:
                time.sleep(0.01)
            process.kill()
            process.wait()
            if _start(run, cache, code).wait():
                yield "the resumed run failed"
            else:
                yield _differences(run, whole)
            shutil.rmtree(run)
            number += 1
