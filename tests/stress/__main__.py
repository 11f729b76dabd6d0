"""Repeat what must always come out the same, under load, and keep a ledger that a later start goes on from.

::

    python -m tests.stress operators --count 2000    # the first call of each operator in a fresh process
    python -m tests.stress steps --count 5000        # the first training step of a fresh process
    python -m tests.stress resumes --count 60        # a run killed at a random step and resumed
    python -m tests.stress evaluate --count 20       # two at once on one run at s3://; train, sweep too
    python -m tests.stress steps --count 2000 --without-mending    # shows what `dcgan_dist.vector_math` is for

Exit status 0 when all came out the same, 1 when something differed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType

BUSY = "import os, torch; a, parent = torch.randn(1000, 1000), os.getppid()\nwhile os.getppid() == parent: a @ a"
KINDS = ("operators", "steps", "resumes", "evaluate", "train", "sweep")


@contextmanager
def load(processes: int) -> Iterator[None]:
    """Keep the cores busy with torch processes that do nothing but multiply matrices.

    They yield to what is tried, which would take hours otherwise; its threads are interrupted all the same.
    """
    with ExitStack() as stack:
        for _ in range(processes):
            busy = subprocess.Popen(["nice", "-n", "5", sys.executable, "-c", BUSY])
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        yield


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__, formatter_class=_Formatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--count", type=int, default=1000, help="repetitions in all, those in the ledger included")
    parser.add_argument("--load", type=int, default=4, help="busy torch processes meanwhile")
    parser.add_argument("--ledger", type=Path, default=Path("stress.jsonl"), help="file of outcomes, appended to")
    parser.add_argument("--without-mending", action="store_true", help="take dcgan_dist.vector_math out")
    parser.add_argument("--config", type=Path, default=Path("configs/rooms.yaml"), help="networks of `steps`")
    parser.add_argument("--precision", default="fp32", help="that of `steps`")
    given = parser.parse_args()
    if given.without_mending:  # before anything of the package is imported
        sys.modules["dcgan_dist.vector_math"] = ModuleType("dcgan_dist.vector_math")
    from dcgan_dist.parallel import yield_idle_cores

    yield_idle_cores()  # as every command does
    from tests.stress import operators, resumes, steps, writers

    case = {"kind": given.kind, "mended": not given.without_mending}
    if given.kind == "steps":
        case |= {"config": given.config.stem, "precision": given.precision}
    outcomes = _read(given.ledger, case)
    done = sum(outcomes.values())
    print(f"{done:,} of {given.count:,} in {given.ledger}: {given.kind} with {given.load} busy processes", flush=True)
    with load(given.load), given.ledger.open("a", encoding="utf-8") as ledger:
        if given.kind == "operators":
            trials = operators.trials(given.without_mending, done)
        elif given.kind == "steps":
            trials = steps.trials(given.config, given.precision, given.without_mending)
        elif given.kind in writers.KINDS:
            trials = writers.trials(given.kind)
        else:
            trials = resumes.trials(given.without_mending, done)
        begun = shown = time.monotonic()
        for number in range(done, given.count):
            outcome = next(trials)
            outcomes[outcome] += 1
            ledger.write(json.dumps({**case, "outcome": outcome}) + "\n")
            ledger.flush()
            if time.monotonic() - shown > 30:
                shown = time.monotonic()
                left = (shown - begun) / (number + 1 - done) * (given.count - number - 1)
                print(f"{number + 1:,} of {given.count:,}, {left / 60:.0f} minutes left: {dict(outcomes)}", flush=True)
        trials.close()
    print(f"{given.kind}: {dict(outcomes)}")
    return int(len(outcomes) > 1)


def _read(ledger: Path, case: dict[str, object]) -> Counter[str]:
    if not ledger.exists():
        return Counter()
    entries = [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()]
    return Counter(entry.pop("outcome") for entry in entries if case.items() <= entry.items())


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


if __name__ == "__main__":
    sys.exit(main())
