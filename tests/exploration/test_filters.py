"""Guided gradients against a computation by hand, highest responses against sorting, AUCs against scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.signal import correlate2d
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from dcgan_dist.config import ModelConfig
from dcgan_dist.errors import ConfigError
from dcgan_dist.exploration.filters import (
    FiltersConfig,
    ReceptiveField,
    TopResponses,
    aucs,
    best_single_features,
    chosen_layer,
    conv_layers,
    draw,
    guided_gradients,
    half_area,
    highest_responses,
    mean_auc,
    measure,
)
from dcgan_dist.exploration.networks import Trained
from dcgan_dist.models import build_networks, initialise
from dcgan_dist.models.network import Discriminator
from tests.exploration.conftest import with_settings

MODEL = ModelConfig(image_size=16, channels=3, classes=0, z_dim=4, ngf=4, ndf=4)


def discriminator(seed: int = 0, **changes: object) -> Discriminator:
    """Return a network whose batch norm has other statistics than at initialisation."""
    model = replace(MODEL, **changes)  # type: ignore[arg-type]
    network = build_networks(model)[1]
    initialise(network, model, seed)
    random = torch.Generator().manual_seed(seed)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.copy_(torch.randn(part.running_mean.shape, generator=random) * 0.05)
            part.running_var.copy_(torch.rand(part.running_var.shape, generator=random) * 0.02 + 0.001)
    return network.eval().requires_grad_(False)


def images(count: int, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def by_hand(network: Discriminator, image: Tensor, feature: int, place: int) -> npt.NDArray[np.float64]:
    """Guided gradient of a response of the second conv layer, with nothing but NumPy and SciPy."""
    first, second = (part for part in network.modules() if isinstance(part, nn.Conv2d))
    (norm,) = (part for part in network.modules() if isinstance(part, nn.BatchNorm2d))
    slope = next(part.negative_slope for part in network.modules() if isinstance(part, nn.LeakyReLU))
    w1, w2 = (part.weight.double().numpy() for part in (first, second))
    pad = first.padding[0]
    x = np.pad(image.double().numpy(), ((0, 0), (pad, pad), (pad, pad)))
    below = np.stack([sum(correlate2d(x[c], w[c], "valid") for c in range(3))[::2, ::2] for w in w1])
    a = np.where(below > 0, below, slope * below)
    a = np.pad(a, ((0, 0), (pad, pad), (pad, pad)))
    convolved = sum(correlate2d(a[c], w2[feature, c], "valid") for c in range(len(w1)))[::2, ::2]
    gain = float(norm.weight[feature] / torch.sqrt(norm.running_var[feature] + norm.eps))  # type: ignore[index]
    above = (convolved - float(norm.running_mean[feature])) * gain + float(norm.bias[feature])  # type: ignore[index]
    row, column = divmod(place, above.shape[1])
    to_first = np.zeros_like(a)
    if above[row, column] > 0:  # the gradient of the response itself is 1, so it passes
        k = w2.shape[2]
        to_first[:, 2 * row : 2 * row + k, 2 * column : 2 * column + k] += w2[feature] * gain
    to_first = to_first[:, pad : pad + below.shape[1], pad : pad + below.shape[2]]
    to_first = np.maximum(to_first, 0) * (below > 0)
    to_image = np.zeros_like(x)
    k = w1.shape[2]
    for c, y, z in zip(*np.nonzero(to_first), strict=True):
        to_image[:, 2 * y : 2 * y + k, 2 * z : 2 * z + k] += w1[c] * to_first[c, y, z]
    return to_image[:, pad : pad + 16, pad : pad + 16]


def test_guided_gradients_are_those_computed_by_hand() -> None:
    network = discriminator()
    pixels = images(5)
    values, positions = highest_responses(network, pixels, torch.zeros(5, 0), 1)
    features = values.argmax(dim=1)  # positive responses
    places = positions[torch.arange(5), features]
    found = guided_gradients(network, pixels, torch.zeros(5, 0), 1, features, places).numpy()
    for number in range(5):
        wanted = by_hand(network, pixels[number], int(features[number]), int(places[number]))
        assert np.abs(wanted).max() > 0
        np.testing.assert_allclose(found[number], wanted, atol=1e-5 * np.abs(wanted).max(), rtol=1e-4)


def test_a_negative_response_has_no_gradient() -> None:
    network = discriminator()
    pixels = images(1)
    lowest = network.feature_maps(pixels, torch.zeros(1, 0))[1].flatten(2).min(dim=2)
    feature = lowest.values.argmin(dim=1)
    assert lowest.values[0, feature] < 0
    place = lowest.indices[0, feature]
    assert not guided_gradients(network, pixels, torch.zeros(1, 0), 1, feature, place).any()


def test_the_network_is_not_changed() -> None:
    network = discriminator()
    pixels, y = images(3), torch.zeros(3, 0)
    before = network(pixels, y)
    kinds = [type(part) for part in network.modules()]
    guided_gradients(network, pixels, y, 1, torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.long))
    assert torch.equal(network(pixels, y), before)
    assert [type(part) for part in network.modules()] == kinds
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(("kernel", "per_scale"), [(3, 1), (4, 1), (5, 1), (3, 2), (5, 2)])
def test_the_receptive_field_contains_exactly_the_pixels_that_matter(kernel: int, per_scale: int) -> None:
    size = 64
    shape = {"image_size": size, "kernel_size": kernel, "convs_per_scale": per_scale}
    network = discriminator(**shape, batch_norm="none", slope=0.9)
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.Conv2d):
                part.weight.fill_(0.1)  # so that every pixel counts, and none cancels out
    layer = len(conv_layers(network)) // 2
    field = ReceptiveField.of(conv_layers(network)[: layer + 1])
    pixels = images(1, size).requires_grad_()
    maps = network.feature_maps(pixels, torch.zeros(1, 0))[layer]
    for row, column in ((0, 0), (maps.shape[2] // 2, maps.shape[3] - 1)):
        (gradient,) = torch.autograd.grad(maps[0, 0, row, column], pixels, retain_graph=True)
        matters = (gradient[0].numpy() > 0).transpose(1, 2, 0).astype(np.uint8)
        patch = field.crop(matters, row, column)
        assert patch.shape == (field.size, field.size, 3)
        assert (patch == 1).sum() == matters.sum()
        assert ((patch == 1) | (patch == 128)).all()


def test_highest_responses_are_those_of_sorting_everything() -> None:
    random = np.random.default_rng(0)
    values = random.integers(0, 12, (200, 5)).astype(np.float32)  # many ties
    places = random.integers(0, 16, (200, 5))
    top = TopResponses(7, 5)
    for start, stop in ((0, 3), (3, 64), (64, 199), (199, 200)):
        part = slice(start, stop)
        top.add(torch.from_numpy(values[part]), torch.from_numpy(places[part]), torch.arange(start, stop))
    order = np.argsort(-values, axis=0, kind="stable")[:7]
    assert (top.numbers.numpy() == order).all()
    assert (top.values.numpy() == np.take_along_axis(values, order, 0)).all()
    assert (top.positions.numpy() == np.take_along_axis(places, order, 0)).all()
    wanted = (np.take_along_axis(values, order, 0).mean(axis=0) - values.mean(axis=0)) / values.std(axis=0)
    np.testing.assert_allclose(top.selectivity.numpy(), wanted, rtol=1e-5)


def test_aucs_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    values = random.integers(0, 9, (60, 4)).astype(np.float64)
    positives = random.random((60, 3)) < 0.4
    wanted = [[roc_auc_score(group, column) for column in values.T] for group in positives.T]
    np.testing.assert_allclose(aucs(values, positives), wanted)


def test_best_feature_is_found_on_one_half_and_measured_on_the_other() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 400)
    values = random.standard_normal((400, 20))
    values[:, 3] -= 2.0 * labels  # its low values speak for the attribute
    values[:200, 7] = labels[:200] * 10  # misleading: useless on the second half
    told = best_single_features(values, {"window": labels}, {"window": 2})["window"]
    assert told.features.tolist() == [7]
    assert told.n == 200
    assert told.auc == pytest.approx(roc_auc_score(labels[200:], values[200:, 7]))
    told = best_single_features(np.delete(values, 7, axis=1), {"window": labels}, {"window": 2})["window"]
    assert told.features.tolist() == [3]
    assert told.auc == pytest.approx(roc_auc_score(labels[200:], -values[200:, 3]))
    assert told.ci95[0] < told.auc < told.ci95[1]


def test_error_of_a_mean_auc_is_that_of_leaving_images_out() -> None:
    random = np.random.default_rng(0)
    positives = random.random((150, 3)) < (0.2, 0.5, 0.6)
    values = np.round(random.standard_normal((150, 3)) + positives, 1)  # with ties

    def area(rows: npt.NDArray[np.int64]) -> float:
        return float(np.diagonal(aucs(values[rows], positives[rows])).mean())

    found, error = mean_auc(values, positives)
    assert found == pytest.approx(area(np.arange(150)))
    without = np.array([area(np.delete(np.arange(150), left)) for left in range(150)])
    assert error == pytest.approx(np.sqrt(149 / 150 * np.square(without - without.mean()).sum()), rel=0.02)


def test_half_area_counts_the_fewest_pixels_that_hold_half_of_the_squares() -> None:
    gradient = torch.zeros(3, 10, 10)
    gradient[0, 0, :4] = 1
    gradient[2, 5, 5] = 2  # as much as the other four together
    field = ReceptiveField(0, 1, 10)
    assert half_area(gradient, field) == 1 / 100
    gradient[0, 0, 4] = 1
    assert half_area(gradient, field) == 2 / 100
    assert np.isnan(half_area(gradient * 0, field))


@pytest.mark.parametrize("family", ["dcgan", "cdcgan"])
def test_figure_of_a_tiny_run(opened: Callable[..., Trained], family: str) -> None:
    run = opened(family)
    if family == "cdcgan":  # its config.yaml does not name rooms
        run = with_settings(run, {"model": run.run.settings["model"]})
    config = FiltersConfig(count=128, filters=("0-2", "5"), top=3, layer=2, data="rooms:256")
    drawn = measure(config, run)
    trained = drawn.numbers["trained"]
    assert np.shape(trained["responses"]) == (4, 3)
    assert (np.diff(trained["responses"], axis=1) <= 0).all()
    assert drawn.numbers["images"] == 128
    assert ("view" in drawn.numbers.get("attributes", {})) == (family == "dcgan")
    assert draw(drawn).png().startswith(b"\x89PNG")
    if family == "cdcgan":
        again = measure(config, run).numbers
        assert np.array_equal(again["trained"]["responses"], trained["responses"])
        assert np.array_equal(again["trained"]["half_of_gradient"], trained["half_of_gradient"], equal_nan=True)


def test_missing_layers_are_refused(opened: Callable[..., Trained]) -> None:
    run = opened("dcgan")
    with pytest.raises(ConfigError, match=r"layer is 9.* 1 \(4 maps of 8x8\), 2 \(8 maps of 4x4\)"):
        chosen_layer(run, 9)
    with pytest.raises(ConfigError, match="numbers from 0 to 7"):
        measure(FiltersConfig(filters=("8",)), run)
    with pytest.raises(ConfigError, match="only dense layers"):
        measure(FiltersConfig(), opened("gan"))


@pytest.mark.parametrize(
    "setting", [{"layer": 0}, {"filters": ("a",)}, {"filters": ("0-99",)}, {"top": 0}, {"count": 1}]
)
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} is"):
        FiltersConfig(**setting)  # type: ignore[arg-type]
