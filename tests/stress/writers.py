"""Two commands that write the same place on object storage at once: nothing is lost, one refuses or both succeed."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

from dcgan_dist.runs.run import Run
from dcgan_dist.storage.folder import folder_at

KEPT = "nothing lost"
RUN = {
    "data.path": "rooms:256",
    "model.image_size": 16,
    "model.z_dim": 8,
    "model.ngf": 4,
    "model.ndf": 4,
    "training.batch_size": 8,
    "training.log_every": 5,
    "training.checkpoint_every": 20,
    "training.sample_every": 20,
    "training.device": "cpu",
}
SWEEP = {
    "milestones": 2,
    "search": "grid",
    "schedule": "fifo",
    "objective": "stability",
    "score.task": "none",
    "score.count": 0,
    "space": json.dumps({"optim.lr": {"grid": [2e-4, 1e-3]}}),
}
SCORES = (["--task=rooms", "--count=200", "--cs=1e-3"], ["--task=fidelity", "--data=rooms:256", "--count=120"])


def _start(command: str, words: list[str]) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", f"dcgan_dist.{command}", *words]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _together(command: str, first: list[str], second: list[str]) -> list[tuple[int, str]]:
    """Return exit status and errors of two commands that are started at the same time."""
    processes = [_start(command, words) for words in (first, second)]
    ends = [process.communicate() for process in processes]
    return [(process.returncode, err) for process, (_, err) in zip(processes, ends, strict=True)]


def _refused(ends: list[tuple[int, str]]) -> str:
    """Return "" where one of two succeeded and the other one too, or was refused in a line; else what happened."""
    codes = sorted(code for code, _ in ends)
    lines = [err.strip() for code, err in ends if code == 2]
    if codes == [0, 0] or (codes == [0, 2] and "\n" not in lines[0] and "in use" in lines[0]):
        return ""
    return f"ended with {ends}"


def _rising(rows: list[dict[str, object]], steps: int) -> bool:
    found = [int(str(row["step"])) for row in rows]
    return found == sorted(set(found)) and found[-1] == steps


def _evaluate(url: str) -> str:
    ends = _together("evaluate", [url, *SCORES[0]], [url, *SCORES[1]])
    if any(code for code, _ in ends):
        return f"ended with {ends}"
    return "" if set(Run(url).scores) == {"rooms", "fidelity"} else f"scores of {sorted(Run(url).scores)} alone"


def _train(url: str) -> str:
    words = [f"--{key}={value}" for key, value in {**RUN, "training.steps": 200, "run_dir": url}.items()]
    if problem := _refused(_together("train", words, words)):
        return problem
    run = Run(url)
    whole = [checkpoint.read(name) for checkpoint in run.checkpoints for name in checkpoint.files]
    return "" if whole and run.steps[-1] == 200 and _rising(run.rows(), 200) else "the run is not whole"


def _sweep(url: str) -> str:
    words = [f"--{key}={value}" for key, value in {**RUN, **SWEEP, "training.steps": 20, "sweep_dir": url}.items()]
    if problem := _refused(_together("sweep", words, words)):
        return problem
    trials = json.loads(folder_at(url).read("sweep.json"))["trials"]
    whole = [_rising(Run(f"{url}/trials/{trial['trial']}").rows(), 20) for trial in trials]
    return "" if [trial["status"] for trial in trials] == ["finished"] * 2 and all(whole) else f"trials are {trials}"


KINDS = {"evaluate": _evaluate, "train": _train, "sweep": _sweep}


def trials(kind: str) -> Iterator[str]:
    """Yield what became of two commands of a kind, again and again: `KEPT`, or what was lost."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    own = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(own, AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing")
    boto3.client("s3").create_bucket(Bucket="results")
    with tempfile.TemporaryDirectory(prefix="dcgan-stress-") as cache:
        os.environ["DCGAN_DIST_CACHE"] = str(Path(cache))
        try:
            number = 0
            while True:
                url, number = f"s3://results/{kind}-{number}", number + 1
                if kind == "evaluate":
                    words = [f"--{key}={value}" for key, value in {**RUN, "training.steps": 20, "run_dir": url}.items()]
                    if (code := _start("train", words).wait()) != 0:
                        raise SystemExit(f"the run that is to be scored ended with {code}")
                yield f"{kind}: {KINDS[kind](url) or KEPT}"
        finally:
            server.stop()
