"""Three signals of a generator's health, measured on the samples of the fixed z at every log line.

`sample_distance` falls towards 0 when the generator collapses to one image. `filter_oscillation` is the share of the
generator's filters that swing periodically from log line to log line: section 6 of the paper names a subset of filters
collapsing to a single oscillating mode as the remaining failure of long training. `filter_swing` is how far the filters
swing, periodically or not. docs/metrics.md explains them.
"""

from __future__ import annotations

import torch

WINDOW = 16  # log lines over which oscillation is judged
MIN_AMPLITUDE = 0.1  # standard deviation over the window, as a share of the mean activation
TROUGH, PEAK = -0.5, 0.6  # autocorrelation must fall below the one and then rise above the other


def sample_distance(images: torch.Tensor, image_range: tuple[float, float]) -> float:
    """Mean over all pairs of images (n, C, S, S) of their root mean square difference; the value range counts as 2."""
    low, high = image_range
    flat = images.flatten(1).double() * (2 / (high - low))
    return float(torch.nn.functional.pdist(flat).mean() / flat.shape[1] ** 0.5) if len(flat) > 1 else 0.0


def mean_activations(feature_maps: list[torch.Tensor]) -> torch.Tensor:
    """Mean activation over images and positions of every filter of the layers, float32 (filters,)."""
    means = [layer.float().mean([0, *range(2, layer.dim())]) for layer in feature_maps]
    return torch.cat(means).cpu() if means else torch.zeros(0)


def filter_oscillation(history: torch.Tensor) -> float | None:
    """Share of filters that oscillate over the last WINDOW log lines; None while there are fewer.

    Args:
        history: (log lines, filters), the oldest first.
    """
    if len(history) < WINDOW or history.shape[1] == 0:
        return None
    return float(oscillating(history).double().mean())


def oscillating(history: torch.Tensor) -> torch.Tensor:
    """Which filters oscillate over the last WINDOW log lines, of which there are as many; bool (filters,).

    A filter's mean activations, less their linear trend, oscillate when their standard deviation exceeds MIN_AMPLITUDE
    of the filter's mean absolute activation, and their autocorrelation falls below TROUGH at some lag and exceeds PEAK
    at a longer one (up to half the window): it swings away and comes back.

    Args:
        history: (log lines, filters), the oldest first.
    """
    rest, amplitude = _detrend(history)
    power = rest.square().sum(0)
    fell = torch.zeros(rest.shape[1], dtype=torch.bool)
    oscillates = torch.zeros_like(fell)
    for lag in range(1, WINDOW // 2 + 1):
        pairs = (rest[:-lag] * rest[lag:]).sum(0) / (WINDOW - lag)
        correlation = pairs / (power / WINDOW).clamp_min(1e-300)
        oscillates |= fell & (correlation > PEAK)
        fell |= correlation < TROUGH
    return oscillates & (amplitude > MIN_AMPLITUDE)


def filter_swing(history: torch.Tensor) -> float | None:
    """Median over the filters of how far each swings over the last WINDOW log lines; None while there are fewer.

    Args:
        history: (log lines, filters), the oldest first.
    """
    if len(history) < WINDOW or history.shape[1] == 0:
        return None
    return float(swings(history).median())


def swings(history: torch.Tensor) -> torch.Tensor:
    """How far each filter swings over the last WINDOW log lines, of which there are as many, float64 (filters,).

    A filter's swing is the standard deviation of its mean activations, less their linear trend, as a share of its mean
    absolute activation.

    Args:
        history: (log lines, filters), the oldest first.
    """
    return _detrend(history)[1]


def _detrend(history: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last WINDOW values less their linear trend, (WINDOW, filters), and their relative amplitude."""
    values = history[-WINDOW:].double()
    time = torch.arange(WINDOW, dtype=torch.float64) - (WINDOW - 1) / 2
    trend = (time[:, None] * values).sum(0) / time.square().sum()
    rest = values - values.mean(0) - time[:, None] * trend
    return rest, rest.square().mean(0).sqrt() / values.abs().mean(0).clamp_min(1e-12)
