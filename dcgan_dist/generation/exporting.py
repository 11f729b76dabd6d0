"""Export a trained generator to a file that runs without this package: ONNX, or a program of `torch.export`.

The program takes z (n, z_dim) and, for a conditional run, one-hot labels y (n, classes); it returns float32 images
(n, channels, size, size). n can be any number; but if batch norm uses the statistics of each batch, as the released
code does for samples, n should be large. The file also has the meaning of the numbers: the range of the pixels, the
names of the classes, the kind of statistics.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.errors import ConfigError, DcganDistError, StorageError
from dcgan_dist.generation.samples import Samples
from dcgan_dist.models.network import Generator
from dcgan_dist.storage.folder import LocalFolder, check_writable
from dcgan_dist.storage.remote import is_url
from dcgan_dist.training.draws import draw_labels, draw_z, one_hot
from dcgan_dist.training.trained import load_generator

TOLERANCE = 1e-4  # largest difference from the original images, as a share of the pixels' range
FORMATS = (".onnx", ".pt2")
_CHECKED = (2, 5, 64)  # batch sizes for which the program is compared with the original
_FACTS = "dcgan_dist.json"


class _Program(nn.Module):
    """A generator in evaluation mode; an unconditional one takes only z."""

    def __init__(self, generator: Generator, batch_statistics: bool) -> None:
        super().__init__()
        self.generator = copy.deepcopy(generator).eval().requires_grad_(False)
        norms = [module for module in self.generator.modules() if isinstance(module, _BatchNorm)]
        self.has_batch_statistics = batch_statistics and bool(norms)
        if batch_statistics:
            for module in norms:
                module.running_mean = module.running_var = module.num_batches_tracked = None

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return images for z (n, z_dim) and, if conditional, one-hot labels (n, classes)."""
        images: Tensor = self.generator(z, z[:, :0] if y is None else y)
        return images


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        difference: the largest difference from the original, as a share of the pixels' range.
        checked_by: the runtime that ran the program for the comparison.
        has_batch_statistics: whether batch norm uses the statistics of each batch.
    """

    difference: float
    checked_by: str
    has_batch_statistics: bool = False


def check_output(path: str, overwrite: bool) -> None:
    """Check that a generator can be exported to a path.

    Raises:
        ConfigError: its suffix is not in `FORMATS`, it exists, or the package for it is not installed.
        RunDirectoryError: its folder cannot be written.
    """
    if not path.lower().endswith(FORMATS) or is_url(path):
        raise ConfigError(f"output is {path!r}: name a file of this host that ends in {' or '.join(FORMATS)}")
    if Path(path).is_dir() or (Path(path).exists() and not overwrite):
        raise ConfigError(f"output {path!r} exists: name another one, or give --overwrite to replace it")
    check_writable(str(Path(path).absolute().parent))
    if path.lower().endswith(".onnx"):
        missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"output is {path!r}, and the package {' and '.join(missing)} is not installed: pip install "
                "'dcgan-dist[onnx]', or name a file that ends in .pt2"
            )


def export(samples: Samples, path: str, overwrite: bool = False) -> Exported:
    """Write the generator of some samples to a file, after comparing the program with the original on random z.

    Raises:
        ConfigError: see `check_output`.
        RunDirectoryError: the checkpoint cannot be read.
        DcganDistError: the program returns other images than the original.
        StorageError: the file cannot be written.
    """
    check_output(path, overwrite)
    generator = load_generator(samples.run, samples.step, samples.weights).network
    program = _Program(generator, samples.model.sample_statistics == "batch").eval()
    facts = {
        "run": samples.run.location,
        "step": samples.step,
        "checkpoint": samples.digest,
        "image_range": list(generator.image_range),
        "z_distribution": samples.model.z_distribution,
        "classes": list(samples.class_names),
        "batch_norm": "statistics of each batch" if program.has_batch_statistics else "running averages of training",
    }
    target = Path(path).absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with LocalFolder(target.parent).new(target.name) as file:
            save = _save_onnx if target.suffix.lower() == ".onnx" else _save_program
            run, checked_by = save(program, _inputs(samples, 2), facts, Path(file.name))
            difference = _largest_difference(program, run, samples) / (
                generator.image_range[1] - generator.image_range[0]
            )
            if not difference <= TOLERANCE:
                raise DcganDistError(
                    f"the exported program gives images that differ from the original's by {difference:.2g} of their "
                    f"range, more than {TOLERANCE:g}: nothing was written; try the other format ({', '.join(FORMATS)})"
                )
    except OSError as error:
        raise StorageError(f"output {path!r} cannot be written: {error.strerror or error}") from error
    return Exported(difference, checked_by, program.has_batch_statistics)


def _inputs(samples: Samples, count: int) -> tuple[Tensor, ...]:
    model, classes = samples.model, samples.model.classes or 0
    z = draw_z(samples.seed, "export", count, count, model.z_dim, model.z_distribution)
    return (z, one_hot(draw_labels(samples.seed, "export", count, count, classes), classes)) if classes else (z,)


@torch.no_grad()
def _largest_difference(program: _Program, run: Callable[..., Tensor], samples: Samples) -> float:
    inputs = [_inputs(samples, count) for count in _CHECKED]
    # torch's maximum, unlike Python's, is NaN if one of the values is.
    return float(torch.stack([(program(*each) - run(*each)).abs().max() for each in inputs]).max())


def _dynamic_shapes(inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return ({0: torch.export.Dim("batch")},) * len(inputs)


def _save_program(
    program: _Program, inputs: tuple[Tensor, ...], facts: dict[str, Any], path: Path
) -> tuple[Callable[..., Tensor], str]:
    made = torch.export.export(program, inputs, dynamic_shapes=_dynamic_shapes(inputs), strict=False)
    content = io.BytesIO()  # in memory first: on a full disk, torch raises a RuntimeError without the reason
    torch.export.save(made, content, extra_files={_FACTS: json.dumps(facts)})
    path.write_bytes(content.getvalue())
    with path.open("rb") as file:
        run: Callable[..., Tensor] = torch.export.load(file).module()
    return run, "torch.export"


def _save_onnx(
    program: _Program, inputs: tuple[Tensor, ...], facts: dict[str, Any], path: Path
) -> tuple[Callable[..., Tensor], str]:
    with _quiet():
        made = torch.onnx.export(
            program,
            inputs,
            dynamo=True,
            dynamic_shapes=_dynamic_shapes(inputs),
            input_names=["z", "y"][: len(inputs)],
            output_names=["images"],
            verbose=False,
        )
    assert made is not None
    import onnx

    model = made.model_proto
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    with suppress(ImportError):
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

        def run(*given: Tensor) -> Tensor:
            names = [each.name for each in session.get_inputs()]
            return torch.from_numpy(session.run(None, dict(zip(names, (t.numpy() for t in given), strict=True)))[0])

        return run, "onnxruntime"
    from onnx.reference import ReferenceEvaluator

    evaluator: Any = ReferenceEvaluator(model)

    def run_slowly(*given: Tensor) -> Tensor:
        return torch.from_numpy(evaluator.run(None, dict(zip(("z", "y"), (t.numpy() for t in given), strict=False)))[0])

    return run_slowly, "the reference evaluator of onnx"


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the log messages and warnings of torch's exporter."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


__all__ = ["Exported", "check_output", "export"]
