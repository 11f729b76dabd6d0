"""The command `explore`: its files, its output, and its refusals in one line."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dcgan_dist.exploration.catalogue import FIGURES
from dcgan_dist.explore import main
from tests.generation.conftest import trained

__all__ = ["trained"]


def status(capsys, *words):
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_figure_is_a_picture_of_300_dpi_and_its_numbers(trained, tmp_path, capsys):
    run = shutil.copytree(trained("dcgan"), tmp_path / "run")
    code, out, err = status(capsys, "walk", "--run", run, "--points", 3)
    assert (code, err) == (0, "")
    picture = Image.open(run / "figures" / "walk.png")
    assert np.allclose(picture.info["dpi"], 300, atol=0.1)
    about = json.loads((run / "figures" / "walk.json").read_text())
    assert about["finding"] in out
    assert str(run / "figures" / "walk.png") in out
    assert (about["figure"], about["step"], about["images_seen"]) == ("walk", 3, 24)
    state = json.loads((run / "checkpoints" / "step-00000003" / "state.json").read_text())
    assert about["checkpoint_digest"] == state["digest"]
    assert about["settings"]["points"] == 3
    assert all((run / "figures" / name).exists() for name in about["files"])


def test_a_second_figure_can_have_another_name_and_folder(trained, tmp_path, capsys):
    words = ("--run", trained("dcgan"), "--points", 2, "--name", "short", "--output", tmp_path / "out")
    code, _, err = status(capsys, "walk", *words)
    assert (code, err) == (0, "")
    assert {"short.png", "short.json"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_all_draws_what_it_can_and_says_why_it_leaves_out_the_rest(trained, tmp_path, capsys, monkeypatch):
    from dcgan_dist import exploration

    few = {name: FIGURES[name] for name in ("walk", "filters", "arithmetic")}
    monkeypatch.setattr(exploration.catalogue, "FIGURES", few)
    # The vanilla GAN has no conv layers; its data are rooms of 16 pixels, whose judge would take a minute to train.
    run = shutil.copytree(trained("gan"), tmp_path / "run")
    config = (run / "config.yaml").read_text().replace("path: rooms:256", "path: photographs")
    config = config.replace("rooms_seed: 0", "rooms_seed: null")
    (run / "config.yaml").write_text(config)
    code, out, err = status(capsys, "all", "--run", run)
    assert (code, err) == (0, "")
    assert "[1 of 3] walk" in out
    assert out.count("left out: ") == 2 + 1
    assert "1 of 3 figures drawn; left out: filters, arithmetic" in out
    assert {path.name for path in (run / "figures").glob("*.json")} == {"walk.json"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("dance",), "figure is 'dance': take all, or one of "),
        (("walk",), "run is missing: give RUN or --run RUN"),
        (("walk", "--run", "RUN", "--step", "99"), "has no whole checkpoint of step 99; it has those of steps "),
        (("walk", "--run", "RUN", "--step", "best"), "step is 'best': expected a step, or latest"),
        (("walk", "--run", "RUN", "--label", "4"), "is an unconditional run (dcgan)"),
        (("walk", "--run", "RUN", "--name", "../walk"), "name is '../walk': expected a file name that does not"),
        (("walk", "RUN", "--seed", "-1"), "seed is -1"),
        (("walk", "--run", "RUN", "--pionts", "3"), "unknown setting pionts (value '3'); did you mean points?"),
        (
            ("walk", "--run", "RUN", "--output", "walk.png"),
            "output is 'walk.png': name a folder, and the files in it by",
        ),
        (("walk", "--run", "RUN", "--output", "RUN/config.yaml"), "config.yaml', a file: name a folder"),
        (("all", "RUN", "--name", "x"), "name is 'x': of all figures each has its own"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(words, message, trained, tmp_path, capsys):
    run = shutil.copytree(trained("dcgan"), tmp_path / "run")
    code, out, err = status(capsys, *(word.replace("RUN", str(run)) for word in words))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (run / "figures").exists()


def test_a_run_without_checkpoints_is_refused(trained, tmp_path, capsys):
    run = shutil.copytree(trained("dcgan"), tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    code, _, err = status(capsys, "all", "--run", run)
    assert code == 2
    assert "has no checkpoint yet" in err


def test_help_lists_every_figure(capsys):
    code, out, _ = status(capsys)
    assert code == 0
    assert all(f"\n  {name} " in out for name in [*FIGURES, "all"])
