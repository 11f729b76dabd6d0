"""Settings of `sample` and `export`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dcgan_dist.config import PositiveFloat, PositiveInt, Seed, Step, Weights, Workers
from dcgan_dist.parallel import TaskClusterConfig
from dcgan_dist.settings import Group


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Group):
    """Settings of `sample`: images from a trained generator."""

    run: str | None = None
    """Folder or URL of the run directory."""
    output: str | None = None
    """Where to: FILE.png for a grid (of a conditional run with one class a row), FILE.npz for arrays, DIR/NAME-%06d.tar
    for shards in DIR, any other path for a folder of PNGs (of a conditional run in a sub-folder for each class)."""
    format: Literal["auto", "grid", "folder", "npz", "shards"] = "auto"
    """What the output is; `auto` goes by its name. With `shards`, a folder or URL is that of the shards."""
    count: PositiveInt | None = None
    """How many samples. Left out, 64, or as many as the file of z has."""
    label: str | None = None
    """Class of all samples, by name or number, of a conditional run. Left out, the classes in turn."""
    seed: Seed = 0
    """Seed of z: sample i is a function of the seed and i, however many are made and by how many processes."""
    z: str | None = None
    """File of z to use in place of drawn ones: .npy (n, z_dim), or .npz with `z` and perhaps `labels`."""
    step: Step = "latest"
    """Which checkpoint to take: `latest`, or a step."""
    truncation: PositiveFloat | None = None
    """Bound of the values of z, for less variety and more typical samples: normal z is drawn without its tails beyond
    this, uniform z from [-T, T]. Each value moves to the same quantile, so that sample i stays recognisable."""
    statistics: Literal["auto", "running", "batch"] = "auto"
    """Batch norm: `running` averages of training, or those of each `batch` of 64 samples; `auto` as the run has it in
    model.sample_statistics."""
    weights: Weights = "auto"
    """Weights of the generator: their `average` over training, or `raw`; `auto` takes the average where the run has one
    (`training.average`)."""
    encoding: Literal["png", "jpg", "raw"] = "png"
    """How shards store images: PNG, JPEG of quality 95 (which changes them a little), or raw uint8 values."""
    overwrite: bool = False
    """Whether to replace an output that exists; a folder only where it holds nothing but samples or shards."""
    workers: Workers | None = None
    """Processes that compute, with one core each. Left out, one for each core where there is enough to do; on a GPU,
    one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; `auto` takes the GPU when there is one."""
    cluster: TaskClusterConfig = field(default_factory=TaskClusterConfig)


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Group):
    """Settings of `export`: a trained generator as a file that runs without this package."""

    run: str | None = None
    """Folder or URL of the run directory."""
    output: str | None = None
    """FILE.onnx, which any ONNX runtime runs (needs the extra `onnx`), or FILE.pt2, a program of torch.export."""
    step: Step = "latest"
    """Which checkpoint to take: `latest`, or a step."""
    statistics: Literal["auto", "running", "batch"] = "auto"
    """Batch norm: `running` averages of training, or those of each `batch` that the program is given; `auto` as the run
    has it in model.sample_statistics."""
    weights: Weights = "auto"
    """Weights of the generator: their `average` over training, or `raw`; `auto` takes the average where the run has one
    (`training.average`)."""
    overwrite: bool = False
    """Whether to replace an output that exists."""
