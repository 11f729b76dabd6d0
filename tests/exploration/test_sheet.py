from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dcgan_dist.errors import ConfigError
from dcgan_dist.exploration.drawing import Canvas, Panel
from dcgan_dist.exploration.networks import Trained
from dcgan_dist.exploration.sheet import SheetConfig, draw_sheet

Opened = Callable[..., Trained]


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[Panel]:
    """All panels that are put on a canvas."""
    seen: list[Panel] = []
    whole = Canvas.images

    def images(canvas: Canvas, *given: Panel) -> None:
        seen.extend(given)
        whole(canvas, *given)

    monkeypatch.setattr(Canvas, "images", images)
    return seen


def test_each_sample_bears_its_number_in_the_row_of_samples(opened: Opened, panels: list[Panel]) -> None:
    run = opened("dcgan", seed=5)
    drawn = draw_sheet(SheetConfig(count=7, first=61, seed=5), run)
    (panel,) = panels
    of_sample = np.concatenate([images for images, _ in run.samples.images(61, 68)])
    assert np.abs(panel.images.astype(int) - of_sample).max() <= 1  # rounded otherwise in batches of another size
    assert panel.marks == ["61", "62", "63", "64", "65", "66", "67"]
    assert drawn.numbers["ids"] == [61, 62, 63, 64, 65, 66, 67]


def test_classes_come_in_turn_unless_one_is_asked_for(opened: Opened, panels: list[Panel]) -> None:
    run = opened("cgan")
    classes = run.classes
    in_turn = draw_sheet(SheetConfig(count=classes + 2, first=3), run)
    names = run.samples.class_names
    assert in_turn.numbers["classes"] == [names[(3 + n) % classes] for n in range(classes + 2)]
    assert panels[0].marks is not None
    assert panels[0].marks[0] == f"3 ({names[3 % classes]})"
    of_one = draw_sheet(SheetConfig(count=4, label="1"), run)
    assert of_one.numbers["classes"] == [names[1]] * 4
    y = run.y(4, "1")
    assert np.array_equal(panels[1].images, run.generate(run.z(range(4)), y))


@pytest.mark.parametrize("settings", [{"count": 0}, {"count": 1001}, {"first": -1}, {"columns": 0}])
def test_bad_settings_name_the_way_out(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} is .*: expected a whole number"):
        SheetConfig(**settings)
