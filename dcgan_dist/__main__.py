"""The `dcgan-dist` command: `dcgan-dist NAME ...` is `python -m dcgan_dist.NAME ...`."""

from __future__ import annotations

import importlib
import sys

from dcgan_dist.printing import keep_streams
from dcgan_dist.stopping import end_at_once, set_handler
from dcgan_dist.version import __version__

FRONT_DOORS = {
    "prepare": "make shards from a source of images, or check them",
    "train": "train a DCGAN; run again with the same --run-dir, it resumes",
    "sample": "draw images from a trained generator",
    "export": "write a trained generator as ONNX or as a program of torch.export",
    "sweep": "search hyperparameters with many trials; run again with the same --sweep-dir, it resumes",
    "evaluate": "score what a run's discriminator has learned, or its generator's samples",
    "explore": "draw the paper's figures for a trained run: walk, filters, windows, arithmetic, turn and others",
    "report": "show all runs and sweeps below some directories as one page and as tables",
    "compare": "show the same as a table in the terminal",
    "doctor": "check this machine or cluster, and say how to fix what will not work",
}
# Commands of earlier versions that say where they are now.
_MOVED = ("bench",)


def main() -> int:
    """Run the command that the first argument names."""
    keep_streams()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: dcgan-dist NAME [--help] [--version] [settings]\n")
        for door, does in FRONT_DOORS.items():
            print(f"  {door:10} {does}")
        return 0
    if name == "--version":
        print(f"dcgan-dist {__version__}")
        return 0
    if name not in (*FRONT_DOORS, *_MOVED):
        print(f"dcgan-dist: unknown command {name!r}: take one of {', '.join(FRONT_DOORS)}", file=sys.stderr)
        return 2
    set_handler(end_at_once)
    module = importlib.import_module(f"dcgan_dist.{name}")
    return int(module.main(sys.argv[2:]))


if __name__ == "__main__":
    sys.exit(main())
