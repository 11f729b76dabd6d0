"""Compare what two checkouts do, on this machine and in one go: bytes of runs and shards, tables, help, refusals.

::

    git worktree add ../before HEAD~1
    python -m tests.golden ../before .      # exit status 1 and a list where something differs
    python -m tests.golden . --write        # put texts and integer digests into tests/golden/texts.json

Floats' last bits differ between processors, so what depends on them is compared between checkouts alone; texts.json has
the rest: help, refusals, the digest of `prepare rooms`.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import difflib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from tests.golden.inputs import BAD, COMMANDS, make

TEXTS = Path(__file__).with_name("texts.json")
_RUN = (
    *("--data.path=rooms:256", "--model.image_size=16", "--model.z_dim=8", "--model.ngf=4", "--model.ndf=4"),
    *("--training.batch_size=8", "--training.steps=24", "--training.log_every=1", "--training.sample_every=10"),
    *("--training.sample_count=9", "--training.checkpoint_every=4", "--training.device=cpu"),
)
_KILLS = {1: (1, 6, 23), 2: (14,)}  # by the number of workers: after which steps a run is killed
# What differs from one try to the next.
_CLOCK = re.compile(
    r'"(images_per_s|data_wait|time_s|seconds|checkpoint_digest)": [^,}\n]+|made in [0-9.]+ s|(?<=, )[0-9.]+ s\b'
)
_OF_THE_CLOCK = (
    "seconds",
    "images_per_s",
    "final.images_per_s",
    "best.images_per_s",
    "final.data_wait",
    "final.time_s",
)
_PLACE = re.compile(r"^( +)?(git_commit|host|python|run_dir): .*$", re.M)


class Checkout:
    """One checkout at work in a folder of its own."""

    def __init__(self, code: Path, folder: Path) -> None:
        self._folder = folder
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(code.resolve()),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "120",
            "DCGAN_DIST_CACHE": str(folder / "cache"),
            "CUDA_VISIBLE_DEVICES": "",
        }
        folder.mkdir()
        make(folder / "made")

    def collect(self) -> dict[str, str]:
        """Return what is compared, by name."""
        found = dict(self._runs())
        found |= self._derived()
        found |= {f"text {name}": text for name, text in self.texts().items()}
        return found

    def texts(self) -> dict[str, str]:
        """Return what is the same on all machines: help, the shards of rooms, refusals (which take `runs/1`)."""
        if not (self._folder / "runs/1").exists():
            self._run(*_words("train", "--run-dir=runs/1", *_RUN))
        self._run(*_words("prepare", "--source=rooms", "--count=2000", "--output=rooms", "--workers=2"))
        texts = {"prepare rooms:2000": self._tree("rooms")}
        with ThreadPoolExecutor(2) as pool:
            helps = [(name, "--help") for name in COMMANDS]
            for words, said in zip(helps, pool.map(self._said, helps), strict=True):
                texts[" ".join(words)] = xxhash.xxh3_64_hexdigest(said.encode())
            for words, said in zip(BAD, pool.map(self._said, BAD), strict=True):
                texts[" ".join(words)] = said
        return texts

    def _runs(self) -> Iterator[tuple[str, str]]:
        for workers, kills in _KILLS.items():
            run = self._folder / f"runs/{workers}"
            words = [*_trainer(workers), f"--run-dir=runs/{workers}", *_RUN]
            for step in kills:
                self._kill(words, f"step {step}/")
            self._run(*words)
            for path in sorted(run.rglob("*")):
                name = str(path.relative_to(self._folder))
                if path.suffix in (".safetensors", ".png"):
                    yield name, xxhash.xxh3_64_hexdigest(path.read_bytes())
                elif path.name in ("config.yaml", "metrics.jsonl"):
                    yield name, _still(path.read_text())
                elif path.name == "state.json":
                    state = json.loads(path.read_text())
                    yield name, json.dumps({key: state[key] for key in state if key not in ("seconds", "digest")})
                elif path.name == "status.json":
                    yield name, " ".join(sorted(json.loads(path.read_text())))

    def _derived(self) -> dict[str, str]:
        found = {}
        self._run(*_words("sample", "--run=runs/1", "--count=64", "--output=a.npz", "--workers=1"))
        found["sample --count 64"] = xxhash.xxh3_64_hexdigest((self._folder / "a.npz").read_bytes())
        score = ("--cs=1e-3", "--draws=2", "--choosing-draws=2", "--images=200", "--labels-per-class=4")
        self._run(*_words("evaluate", "--run=runs/1", *score))
        found["scores.json"] = _still((self._folder / "runs/1/scores.json").read_text())
        self._run(*_words("report", "runs", "--output=page.html"))
        with (self._folder / "trials.csv").open(newline="") as table:
            rows = [{key: row[key] for key in row if key not in _OF_THE_CLOCK} for row in csv.DictReader(table)]
        found["trials.csv"] = json.dumps(rows, indent=0)
        return found

    def _tree(self, name: str) -> str:
        """Return a digest of all files of a folder, by their names."""
        digest = xxhash.xxh3_64()
        for path in sorted((self._folder / name).rglob("*")):
            digest.update(f"{path.name} {xxhash.xxh3_64_hexdigest(path.read_bytes())}\n".encode())
        return digest.hexdigest()

    def _said(self, words: tuple[str, ...]) -> str:
        """Return the exit status of a command that is refused, or asked for help, and what it says."""
        process = self._start(_words(*words))
        out, err = process.communicate(timeout=300)
        lines = [line for line in err.splitlines() if "Warning" not in line and not line.startswith("  ")]
        said = "\n".join([f"exit status {process.returncode}", *([out] if "--help" in words else []), *lines])
        return said.replace(str(self._folder), "FOLDER")

    def _start(self, words: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            words, cwd=self._folder, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def _run(self, *words: str) -> None:
        process = self._start(list(words))
        out, err = process.communicate(timeout=600)
        if process.returncode:
            raise SystemExit(f"{' '.join(words)}: exit status {process.returncode}\n{out[-1000:]}{err[-1000:]}")

    def _kill(self, words: list[str], line: str) -> None:
        """Start a run, and kill it and all its processes when a line of its output begins so."""
        process = self._start(words)
        assert process.stdout is not None
        for printed in process.stdout:
            if printed.startswith(line):
                os.killpg(process.pid, signal.SIGKILL)
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)


def _words(command: str, *words: str) -> list[str]:
    return [sys.executable, "-m", f"dcgan_dist.{command}", *words]


def _trainer(workers: int) -> list[str]:
    if workers == 1:
        return _words("train")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    return [*launcher, "-m", "dcgan_dist.train"]


def _still(text: str) -> str:
    """Return a text without what the clock or the place decides."""
    return _PLACE.sub(r"\1\2: …", _CLOCK.sub("…", text))


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return a paragraph for everything that is not the same."""
    found = []
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name), after.get(name)
        if one != other:
            lines = difflib.unified_diff((one or "").splitlines(), (other or "").splitlines(), lineterm="", n=0)
            found.append("\n  ".join([name, *[line for line in lines if line[:3] not in ("---", "+++", "@@ ")][:8]]))
    return found


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("after", type=Path, nargs="?", help="another one")
    parser.add_argument("--write", action="store_true", help="write texts.json from the first one alone")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="golden-") as scratch:
        if given.write or given.after is None:
            texts = Checkout(given.before, Path(scratch, "work")).texts()
            if given.write:
                TEXTS.write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n")
                return 0
            found = differences(json.loads(TEXTS.read_text()), texts)
        else:
            collected = []
            for code in (given.before, given.after):  # one after the other, in a folder of the same name
                with tempfile.TemporaryDirectory(prefix="golden-") as place:
                    collected.append(Checkout(code, Path(place, "work")).collect())
                print(f"{code}: {len(collected[-1])} things looked at", flush=True)
            found = differences(*collected)
    print("\n".join(found) if found else "nothing differs")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
