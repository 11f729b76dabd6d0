"""Commands that are refused, each with its words; where a file is needed, `made` has it."""

from __future__ import annotations

import json
from pathlib import Path

COMMANDS = (
    "train",
    "prepare",
    "sample",
    "export",
    "evaluate",
    "explore",
    "sweep",
    "report",
    "compare",
    "doctor",
)

BAD: tuple[tuple[str, ...], ...] = (
    ("train", "--optim.lr=-1"),
    ("train", "--optim.lr=much"),
    ("train", "--optim.lrr=1e-3"),
    ("train", "--optim.beta1=1.5"),
    ("train", "--model.slope=nan"),
    ("train", "--model.name=vae"),
    ("train", "--model.image_size=63"),
    ("train", "--model.ngf=0"),
    ("train", "--training.steps=0"),
    ("train", "--training.steps=2", "--training.epochs=2"),
    ("train", "--training.batch_size=1"),
    ("train", "--training.precision=fp8"),
    ("train", "--training.average=1"),
    ("train", "--training.sample_count=100000"),
    ("train", "--training.keep_last=0"),
    ("train", "--training.device=cuda"),
    ("train", "--data.path=rooms:-1"),
    ("train", "--data.path=rooms:9999999999999"),
    ("train", "--data.path=nowhere", "--run-dir=run"),
    ("train", "--data.path=made/empty", "--run-dir=run"),
    ("train", "--data.path=made/broken.tar", "--run-dir=run"),
    ("train", "--data.path=ftp//x", "--run-dir=run"),
    ("train", "--data.path=rooms:64", "--training.batch_size=128", "--run-dir=run"),
    ("train", "--data.on_damage=hope"),
    ("train", "--cluster.workers=0"),
    ("train", "--config=nowhere.yaml"),
    ("train", "--config=made/twice.yaml"),
    ("train", "--config=made/list.yaml"),
    ("train", "--config=made/unknown.yaml"),
    ("train", "--seed=-1"),
    ("train", "--run-dir=made/file", "--data.path=rooms:64", "--training.batch_size=8"),
    ("train", "words"),
    ("prepare",),
    ("prepare", "--source=folder"),
    ("prepare", "--source=folder", "--input=nowhere", "--output=out"),
    ("prepare", "--source=folder", "--input=made/empty", "--output=out"),
    ("prepare", "--source=folder", "--input=made/file", "--output=out"),
    ("prepare", "--source=folder", "--input=made/notes", "--output=out"),
    ("prepare", "--source=cinema", "--output=out"),
    ("prepare", "--source=rooms", "--input=x", "--output=out"),
    ("prepare", "--source=rooms", "--count=0", "--output=out"),
    ("prepare", "--source=rooms", "--count=9999999999999", "--output=out"),
    ("prepare", "--source=rooms", "--count=4", "--output=made/notes"),
    ("prepare", "--source=rooms", "--count=4", "--image-size=63", "--output=out"),
    ("prepare", "--source=rooms", "--count=4", "--fit=hope", "--output=out"),
    ("prepare", "--source=webdataset", "--input=made/broken.tar", "--output=out"),
    ("prepare", "--verify=nowhere"),
    ("sample",),
    ("sample", "--run=nowhere", "--output=a.png"),
    ("sample", "--run=made/empty", "--output=a.png"),
    ("sample", "--run=runs/1", "--output=a.txt"),
    ("sample", "--run=runs/1", "--output=a.png", "--step=999"),
    ("sample", "--run=runs/1", "--output=a.png", "--count=0"),
    ("sample", "--run=runs/1", "--output=a.png", "--label=4"),
    ("sample", "--run=runs/1", "--output=a.png", "--weights=average"),
    ("sample", "--run=runs/1", "--output=a.png", "--weights=best"),
    ("sample", "--run=runs/1", "--output=a.png", "--truncation=-1"),
    ("sample", "runs/1", "--run=runs/1", "--output=a.png"),
    ("sample", "runs/1", "runs/2", "--output=a.png"),
    ("sample", "--run-dir=runs/1", "--output=a.png"),
    ("sample", "runs/1", "--output=a.png", "--cluster.workers=-1"),
    ("export", "--run=runs/1"),
    ("export", "--run=runs/1", "--output=a.bin"),
    ("evaluate", "--run=nowhere"),
    ("evaluate", "--run=runs/1", "--task=tea"),
    ("evaluate", "--run=runs/1", "--task=folder", "--data=nowhere"),
    ("evaluate", "--run=runs/1", "--cs=0"),
    ("evaluate", "--run=runs/1", "--baselines=tarot"),
    ("evaluate", "runs/1", "--cs=a,1"),
    ("evaluate", "runs/1", "--images=3", "--samples=3"),
    ("evaluate", "runs/1", "--data-count=3"),
    ("explore",),
    ("explore", "tea", "--run=runs/1"),
    ("explore", "walk", "--run=nowhere"),
    ("explore", "walk", "--run=runs/1", "--output=a.png"),
    ("sweep", "--config=nowhere.yaml"),
    ("sweep", "--trials=0"),
    ("report", "nowhere", "--output=a.html"),
    ("report", "--output=a.html"),
    ("compare", "nowhere"),
    ("compare", "made/empty"),
    ("bench", "tea"),
)


def make(folder: Path) -> None:
    """Write the files that the words name."""
    (folder / "empty").mkdir(parents=True)
    (folder / "notes").mkdir()
    (folder / "notes/a.txt").write_text("no picture\n")
    (folder / "file").write_text("no picture\n")
    (folder / "broken.tar").write_bytes(b"x" * 2000)
    (folder / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    (folder / "list.yaml").write_text("- seed\n")
    (folder / "unknown.yaml").write_text(json.dumps({"optim": {"learning_rate": 1}}))
