"""`evolution`: samples of the same z over the whole training, and the activation of each filter of the generator.

Section 6 of the paper leaves open why, in long training, a subset of filters sometimes collapses to a single
oscillating mode. This figure follows every filter of each hidden layer: its activation, averaged over all positions and
over the fixed z of the run's sample grids (`training.sampling.fixed_inputs`). A filter oscillates by the definition of
`filter_oscillation` in metrics.jsonl, on which the verdict of the sweeps is based (docs/stability.md).
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from msgspec import Meta
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from dcgan_dist.data.images import Pixels
from dcgan_dist.errors import ConfigError, RunDirectoryError
from dcgan_dist.evaluation.diversity import Floats
from dcgan_dist.exploration.attributes import Bools
from dcgan_dist.exploration.drawing import COLOURS, LINES, Canvas, Panel, describe
from dcgan_dist.exploration.figure import SHOWN, FigureConfig, Measured, counted
from dcgan_dist.exploration.networks import Trained
from dcgan_dist.generation.samples import class_number
from dcgan_dist.results.reading import columns_of, parse_rows
from dcgan_dist.results.stability import FILTER_SHARE, FILTER_SWING, SIGNALS, judge_columns
from dcgan_dist.runs.checkpoints import name_of
from dcgan_dist.runs.run import Run
from dcgan_dist.training.sampling import fixed_inputs, grid_columns, sample_feature_maps, to_uint8
from dcgan_dist.training.signals import WINDOW, mean_activations, oscillating, swings
from dcgan_dist.training.trained import load_generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GAP = 2  # pixels between the cells of a run's sample grids
_SAME = 1e-6  # of the mean activation of a layer: a filter that varies less over all z does not depend on z
_SHOWN = 0.5  # smallest relative deviation from a filter's mean that has the full colour; see `_range`
_DEAD, _OSCILLATING = COLOURS[6], COLOURS[4]

Metrics = dict[str, Floats]


@dataclass(frozen=True, kw_only=True)
class EvolutionConfig(FigureConfig):
    """Settings of `explore evolution`; `step` is the last one that is shown."""

    count: Annotated[int, Meta(ge=1, le=200)] = 10
    """Samples that are followed, at most as many as the run's grids have."""
    rows: Annotated[int, Meta(ge=1, le=200)] = 10
    """Steps that are shown, at most: the first, the last, and those between that lie best."""
    label: str | None = None
    """Number or name of the class of the samples; conditional runs only. Left out, the classes in turn."""


@dataclass(frozen=True)
class Activations:
    """The mean activation of every filter of the generator's hidden layers over time.

    Attributes:
        steps: step of each time, ascending, (t,).
        values: (t, filters), layer after layer; NaN where no checkpoint kept them.
        times: what a time is: `log lines`, or `checkpoints` where no checkpoint kept log lines.
    """

    steps: npt.NDArray[np.int64]
    values: Floats
    times: str

    def window(self) -> Tensor | None:
        """Return the newest WINDOW times, (WINDOW, filters); None if there are fewer, or some were not kept."""
        newest = self.values[-WINDOW:]
        return torch.from_numpy(newest) if len(newest) == WINDOW and np.isfinite(newest).all() else None

    def deviations(self) -> Floats:
        """Return each filter's deviation from its mean over time, divided by its mean absolute activation."""
        known = self.values[np.isfinite(self.values).all(axis=1)]
        return np.asarray((self.values - known.mean(axis=0)) / np.maximum(np.abs(known).mean(axis=0), 1e-12))

    def oscillating(self) -> Bools | None:
        """Return which filters oscillate over the newest WINDOW times, (filters,); None if that is not known."""
        window = self.window()
        return None if window is None else oscillating(window).numpy()

    def swings(self) -> Floats | None:
        """Return the swing of each filter over the newest WINDOW times, (filters,); None if that is not known."""
        window = self.window()
        return None if window is None else swings(window).numpy()


def dead_filters(hidden: list[Tensor]) -> Bools:
    """Return which filters are dead, (filters,): the same for all z at each position, usually 0 after a ReLU.

    Args:
        hidden: activations of each layer for n z, (n, filters) or (n, filters, h, w).
    """
    dead = []
    for layer in hidden:
        spread = (layer.amax(dim=0) - layer.amin(dim=0)).view(layer.shape[1], -1)  # over z, at each position
        dead.append((spread.amax(dim=1) <= _SAME * layer.abs().mean()).cpu().numpy())
    return np.concatenate(dead)


@dataclass(frozen=True)
class Snapshot:
    """Samples and activations of a checkpoint at the fixed z.

    Attributes:
        images: samples, uint8 (n, S, S, C).
        means: mean activation of every filter, (filters,).
        dead: which filters do not depend on z, (filters,).
        layers: number of filters of each hidden layer.
    """

    images: Pixels
    means: Floats
    dead: Bools
    layers: list[int]


def _snapshot(run: Trained, step: int) -> tuple[int, Snapshot]:
    generator, model, _, _ = load_generator(run.run, step, "raw" if run.samples.weights == "raw" else "auto")
    z, y = fixed_inputs(model, int(run.run.settings.get("seed", 0)), _sample_count(run))
    images, hidden = sample_feature_maps(generator.to(run.device), z.to(run.device), y.to(run.device), model)
    if not torch.isfinite(images).all():
        raise RunDirectoryError(
            f"the samples of {run.location} at step {step} are not finite: the run has diverged, give an earlier --step"
        )
    return step, Snapshot(
        to_uint8(images, generator.image_range),
        mean_activations(hidden).double().numpy(),
        dead_filters(hidden),
        [layer.shape[1] for layer in hidden],
    )


def _sample_count(run: Trained) -> int:
    return int(run.run.settings.get("training", {}).get("sample_count", 64))


def follow_activations(run: Run, snapshots: dict[int, Floats], log_steps: list[int]) -> Activations:
    """Join the histories of activations at log lines, of which each checkpoint keeps the last ones before it.

    Args:
        run: the run.
        snapshots: mean activations, (filters,), by checkpoint; used if no checkpoint kept a history.
        log_steps: steps of the lines of metrics.jsonl, ascending.

    Raises:
        RunDirectoryError: the history in a checkpoint is damaged.
    """
    kept: dict[int, Floats] = {}
    filters = len(next(iter(snapshots.values())))
    for step in snapshots:
        name = f"checkpoints/{name_of(step)}/signals.safetensors"
        content = run.folder.get(name)
        if content is None:
            continue
        try:
            history = safetensors.torch.load(content)["activations"].double().numpy()
        except (SafetensorError, KeyError) as error:
            raise RunDirectoryError(f"{run.location}/{name} is damaged: give an earlier --step") from error
        if history.ndim == 2 and history.shape[1] == filters:
            # The log may hold fewer lines than the history, never later ones: align both at their ends.
            before = [line for line in log_steps if line <= step][-len(history) :]
            kept |= dict(zip(before, history[len(history) - len(before) :], strict=True))
    if not kept:
        steps = sorted(snapshots)
        return Activations(np.array(steps), np.stack([snapshots[step] for step in steps]), "checkpoints")
    steps = [line for line in log_steps if min(kept) <= line <= max(kept)]
    unknown = np.full(filters, np.nan)
    return Activations(np.array(steps), np.stack([kept.get(step, unknown) for step in steps]), "log lines")


def cut_grid(grid: Pixels, count: int, size: int, columns: int) -> Pixels | None:
    """Cut a grid of `make_grid` into its images, uint8 (count, size, size, C); return None if it has another layout.

    Args:
        grid: uint8 (height, width, C).
        count: number of images.
        size: side of an image in pixels.
        columns: images in a row.
    """
    rows, cell = -(-count // columns), size + _GAP
    if grid.shape[:2] != (rows * cell - _GAP, columns * cell - _GAP):
        return None
    cells = [divmod(number, columns) for number in range(count)]
    return np.stack([grid[r * cell : r * cell + size, c * cell : c * cell + size] for r, c in cells])


def _read_grid(run: Trained, step: int) -> Pixels | None:
    """Return the samples of a grid; None if it is damaged or has another layout."""
    content = run.run.folder.get(f"samples/{name_of(step)}.png")
    try:
        with Image.open(io.BytesIO(content or b"")) as picture:
            grid = np.asarray(picture.convert("L" if run.channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError):  # Pillow raises any of them for a damaged PNG
        return None
    grid = grid.reshape(*grid.shape[:2], run.channels)
    count = _sample_count(run)
    return cut_grid(grid, count, run.image_size, grid_columns(count, run.classes))


def choose_steps(steps: list[int], rows: int) -> list[int]:
    """Return at most `rows` of the steps: the last, the first, and those nearest to evenly spaced ones between."""
    wanted = np.linspace(steps[-1], steps[0], rows)
    nearest = {min(steps, key=lambda step: (abs(step - target), step)) for target in wanted.tolist()}
    return sorted(nearest)


def choose_samples(config: EvolutionConfig, run: Trained) -> list[int]:
    """Return the indices of the fixed z to show: the classes in turn, or those of one class.

    Raises:
        ConfigError: there is no such class, or the run's grids do not show it.
    """
    _, y = fixed_inputs(run.model, 0, _sample_count(run))
    labels = y.argmax(dim=1).tolist() if run.classes else [0] * len(y)
    if config.label is not None:
        wanted = class_number(config.label, run.samples.class_names, run.location, run.model.name)
        chosen = [number for number, label in enumerate(labels) if label == wanted]
        if not chosen:
            raise ConfigError(f"label is {config.label!r}, of which the run's grids show no sample: take another")
        return chosen[: config.count]
    turns = [(labels[:number].count(label), label, number) for number, label in enumerate(labels)]
    return [number for _, _, number in sorted(turns)][: config.count]


@dataclass(frozen=True, kw_only=True)
class Evolution(Measured):
    """Samples and filters over the course of training.

    Attributes:
        samples: numbers of the n fixed z whose samples are shown.
        verdict: name and reason of the verdict on the run up to `step`; None if there are no log lines.
        problems: what was damaged or left out.
        step: the last step.
        images: the samples of each step that is shown, uint8 (n, S, S, C).
        sources: where the samples of each of these steps come from, `checkpoint` or `grid`.
        metrics: columns of metrics.jsonl up to `step`, (lines,).
        activations: of all filters.
        dead: which of all filters are dead at `step`, (filters,).
        dead_at: number of dead filters, by checkpoint.
        sizes: number of filters of each hidden layer.
    """

    samples: list[int]
    verdict: dict[str, str] | None
    problems: list[str]
    step: int = field(metadata=SHOWN)
    images: dict[int, Pixels] = field(metadata=SHOWN)
    sources: dict[int, str] = field(metadata=SHOWN)
    metrics: Metrics = field(metadata=SHOWN)
    activations: Activations = field(metadata=SHOWN)
    dead: Bools = field(metadata=SHOWN)
    dead_at: dict[int, int] = field(metadata=SHOWN)
    sizes: list[int] = field(metadata=SHOWN)

    @property
    def layers(self) -> list[tuple[Activations, Bools]]:
        """The activations of each hidden layer of G, and which of its filters are dead."""
        parts = [slice(*ends) for ends in pairwise(np.cumsum([0, *self.sizes]).tolist())]
        return [(replace(self.activations, values=self.activations.values[:, part]), self.dead[part]) for part in parts]

    @property
    def numbers(self) -> dict[str, Any]:
        """See `Measured`."""
        of = self.activations
        oscillating, swing = of.oscillating(), of.swings()
        return {
            **super().numbers,
            "rows": [{"step": step, "source": self.sources[step]} for step in self.images],
            "filters": len(self.dead),
            "dead": int(self.dead.sum()),
            "dead_by_checkpoint": [{"step": step, "dead": count} for step, count in self.dead_at.items()],
            "oscillating": None if oscillating is None else int(oscillating.sum()),
            "filter_oscillation": None if oscillating is None else float(oscillating.mean()),
            "filter_swing": None if swing is None else float(torch.from_numpy(swing).median()),
            "window": WINDOW,
            "times": of.times,
            "layers": [
                {
                    "layer": number,
                    "filters": len(dead),
                    "dead": np.flatnonzero(dead).tolist(),
                    "oscillating": None if (which := layer.oscillating()) is None else np.flatnonzero(which).tolist(),
                    "median_swing": None if (swung := layer.swings()) is None else float(np.median(swung)),
                }
                for number, (layer, dead) in enumerate(self.layers)
            ],
            "activations": {
                "steps": of.steps.tolist(),
                "values": [[float(f"{value:.6g}") for value in row] for row in of.values.tolist()],
            },
        }


def measure(config: EvolutionConfig, run: Trained) -> Evolution:
    """Read the samples of the same z over time, and the activation of every filter.

    Raises:
        ConfigError: there is no such class.
        RunDirectoryError: a checkpoint is damaged, or its samples are not finite.
    """
    samples = choose_samples(config, run)
    problems: list[str] = []
    metrics = _read_metrics(run, problems)
    steps = [step for step in run.run.steps if step <= run.step]
    grids = [step for step in run.run.sample_steps if step <= run.step]
    shown = choose_steps(sorted({*steps, *grids}), config.rows)
    images: dict[int, Pixels] = {}
    means, dead_at = {}, {}
    loaded = run.run.load_each(lambda _, step: _snapshot(run, step), steps, problems.append)
    count = _sample_count(run)
    with counted(loaded, len(steps) * count, "samples of checkpoints", lambda _: count) as snapshots:
        for step, snapshot in snapshots:
            means[step], dead_at[step] = snapshot.means, int(snapshot.dead.sum())
            if step in shown:
                images[step] = snapshot.images[samples]
    sources = dict.fromkeys(images, "checkpoint")
    for step in [step for step in shown if step not in images]:
        cells = _read_grid(run, step)
        if cells is None:
            problems.append(f"the grid of step {step} is damaged or of another layout: it is left out")
        else:
            images[step], sources[step] = cells[samples], "grid"
    log_steps = metrics["step"].astype(np.int64).tolist() if "step" in metrics else []
    activations = follow_activations(run.run, means, log_steps)
    return Evolution(
        subtitle=run.subtitle,
        samples=samples,
        verdict=_verdict(metrics),
        problems=problems,
        step=run.step,
        images=dict(sorted(images.items())),
        sources=sources,
        metrics=metrics,
        activations=activations,
        dead=snapshot.dead,
        dead_at=dead_at,
        sizes=snapshot.layers,
    )


def _read_metrics(run: Trained, problems: list[str]) -> Metrics:
    """Return the columns of metrics.jsonl up to the run's chosen step; {} if there are none."""
    names, values = columns_of(parse_rows(run.run.folder.get("metrics.jsonl"), problems), problems)
    columns = dict(zip(names, values, strict=True))
    return {name: column[columns["step"] <= run.step] for name, column in columns.items()} if columns else {}


def _verdict(metrics: Metrics) -> dict[str, str] | None:
    """Return the verdict of `results.stability` on the log lines; None if there are none."""
    if not {"step", "loss_d", "loss_g"} <= set(metrics):
        return None
    unknown = np.full(len(metrics["step"]), np.nan)
    verdict = judge_columns({name: metrics.get(name, unknown) for name in SIGNALS})
    return {"name": verdict.name, "reason": verdict.reason}


def draw(evolution: Evolution) -> Canvas:
    """Draw the samples over time, the log and the activation of every filter."""
    canvas = Canvas("Samples and filters of the generator over the course of training", evolution.subtitle)
    columns = len(evolution.samples)
    marks = [f"{step:,}" if column == 0 else "" for step in evolution.images for column in range(columns)]
    caption = "Each column shows the samples of one z, each row those of one step (its number is on the first image)"
    canvas.images(Panel(caption, np.concatenate(list(evolution.images.values())), columns, marks))
    if evolution.metrics:
        _plot_metrics(canvas, evolution.metrics)
    full, times = _range(evolution.activations), evolution.activations.times
    canvas.text(
        f"Below: the mean activation of every filter at the {times} that the checkpoints kept, a line for "
        "each filter, as its deviation from the filter's own mean: red above, blue below, full colour from "
        f"{full:.0%} on; grey was not kept. Marked at the left: black filters are dead (the same for every z), "
        f"yellow ones oscillate over the newest {WINDOW}. These come first, the others by how far they swing."
    )
    layers = list(enumerate(evolution.layers, start=1))
    for first in range(0, len(layers), 2):
        pair = layers[first : first + 2]
        for axes, (number, (layer, dead)) in zip(canvas.plots(len(pair), 1.5), pair, strict=True):
            _plot_layer(axes, number, layer, dead, full)
    return canvas


def _range(activations: Activations) -> float:
    """Return the deviation that has the full colour: a multiple of _SHOWN that 9 of 10 values do not exceed."""
    most = float(np.nanquantile(np.abs(activations.deviations()), 0.9))
    return max(_SHOWN, math.ceil(most / _SHOWN) * _SHOWN)


def _plot_metrics(canvas: Canvas, metrics: Metrics) -> None:
    left, right = canvas.plots(2, 1.4)
    unknown = np.full(len(metrics["step"]), np.nan)
    for axes, names in (
        (left, {"d_real": "D(x), real images", "d_fake": "D(G(z)), samples"}),
        (right, {"filter_oscillation": "share of filters that oscillate", "filter_swing": "median swing of filters"}),
    ):
        for number, (name, words) in enumerate(names.items()):
            axes.plot(metrics["step"], metrics.get(name, unknown), label=words, linewidth=1, color=COLOURS[number],
                      linestyle=LINES[number])  # fmt: skip
        axes.set(xlabel="step", xlim=(0, float(metrics["step"][-1])))
    for number, limit in enumerate((FILTER_SHARE, FILTER_SWING)):
        right.axhline(limit, color=COLOURS[number], linewidth=0.5, linestyle=":",
                      label="verdict: oscillation, above that" if number == 0 else None)  # fmt: skip
    legend, top = {"fontsize": 6, "loc": "upper right"}, max(0.5, 1.35 * right.get_ylim()[1])
    describe(left, "What the discriminator believes", legend=legend, ylabel="probability of being real", ylim=(0, 1.25))
    title = f"Oscillation of the filters, over {WINDOW} log lines"
    describe(right, title, legend=legend, ylabel="share", ylim=(0, top))


def _plot_layer(axes: Axes, number: int, layer: Activations, dead: Bools, full: float) -> None:
    from matplotlib import colormaps

    deviation, steps, oscillating = layer.deviations(), layer.steps, layer.oscillating()
    oscillates = np.zeros_like(dead) if oscillating is None else oscillating & ~dead
    restless = np.nanstd(deviation, axis=0)
    order = np.lexsort((-restless, ~dead, ~oscillates))
    half = (steps[1] - steps[0]) / 2 if len(steps) > 1 else 0.5
    edges = np.concatenate(([steps[0] - half], (steps[1:] + steps[:-1]) / 2, [steps[-1] + half]))
    colours = colormaps["RdBu_r"].with_extremes(bad="0.75")
    axes.pcolormesh(edges, np.arange(len(order) + 1), np.ma.masked_invalid(deviation[:, order].T), cmap=colours,
                    vmin=-full, vmax=full, rasterized=True)  # fmt: skip
    for row, which in enumerate(order):
        if dead[which] or oscillates[which]:
            colour = _DEAD if dead[which] else _OSCILLATING
            axes.axhspan(row, row + 1, -0.045, -0.01, color=colour, linewidth=0, clip_on=False)
    axes.invert_yaxis()
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    count = "" if oscillating is None else f", {int(oscillates.sum())} oscillate"
    describe(axes, f"Hidden layer {number}: {len(dead)} filters, {int(dead.sum())} dead{count}", xlabel="step")
    axes.set_ylabel("filter", labelpad=10)


def finding(evolution: Evolution) -> str:
    """Return how many filters are dead and how many oscillate."""
    activations = evolution.activations
    oscillates, swing, times = activations.oscillating(), activations.swings(), activations.times
    dead = f"{int(evolution.dead.sum())} of the generator's {len(evolution.dead)} filters are dead"
    found = f"At step {evolution.step:,}, {dead}"
    if oscillates is None or swing is None:
        found += f"; how many oscillate takes {WINDOW} {times}, which were not kept"
    else:
        found += (
            f" and {int(oscillates.sum())} ({oscillates.mean():.1%}) oscillate over the newest {WINDOW} "
            f"{times} (noise alone: about 5%; a run is judged unstable above {FILTER_SHARE:.0%}), with a "
            f"median swing of {float(np.median(swing)):.1%}"
        )
    found += f"; verdict on the run so far: {evolution.verdict['name']}." if evolution.verdict else "."
    if len(evolution.dead_at) == 1:
        found += " The run has a single checkpoint, so that dead filters are known for its step alone."
    return found


__all__ = ["Activations", "Evolution", "EvolutionConfig", "choose_samples", "choose_steps", "cut_grid",
           "dead_filters", "draw", "finding", "follow_activations", "measure"]  # fmt: skip
