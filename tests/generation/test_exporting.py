"""Exported generators: run without the package, for any batch size, equal to the original."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from dcgan_dist.errors import ConfigError, DcganDistError
from dcgan_dist.generation import exporting
from dcgan_dist.generation.exporting import check_output, export
from dcgan_dist.generation.samples import open_samples
from dcgan_dist.runs.run import Run
from dcgan_dist.training.draws import draw_z, one_hot
from dcgan_dist.training.sampling import sample_feature_maps
from dcgan_dist.training.trained import load_generator

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extra onnx is not installed",
)


def original(run, count):
    """Return z, labels and the images of the run's generator for them, by the code of `sample`."""
    samples = open_samples(Run(run))
    generator, model, _, _ = load_generator(Run(run), samples.step)
    z = draw_z(9, "test", 0, count, model.z_dim, model.z_distribution)
    y = one_hot(torch.arange(count) % max(model.classes or 0, 1), model.classes or 0)
    return z, y, sample_feature_maps(generator, z, y, model)[0]


@pytest.mark.parametrize(("name", "statistics"), [("cgan", "running"), ("dcgan", "running"), ("cdcgan", "batch")])
def test_a_program_of_torch_export_equals_the_original_at_every_batch_size(trained, tmp_path, name, statistics):
    run, path = str(trained(name, statistics)), tmp_path / "g.pt2"
    assert export(open_samples(Run(run)), str(path)).difference < 1e-6
    facts = {"dcgan_dist.json": ""}
    program = torch.export.load(path, extra_files=facts).module()
    told = json.loads(facts["dcgan_dist.json"])
    assert told["step"] == 3
    assert told["image_range"] == ([0.0, 1.0] if name == "cdcgan" else [-1.0, 1.0])
    assert told["classes"] == ([] if name == "dcgan" else ["left", "right"])
    for count in (2, 7, 33):
        z, y, images = original(run, count)
        torch.testing.assert_close(program(z, y) if told["classes"] else program(z), images, rtol=0, atol=1e-6)


@needs_onnx
@pytest.mark.parametrize(("name", "statistics"), [("gan", "running"), ("dcgan", "running"), ("cdcgan", "batch")])
def test_an_onnx_runtime_gives_the_images_of_the_original_at_every_batch_size(trained, tmp_path, name, statistics):
    import onnxruntime

    run, path = str(trained(name, statistics)), tmp_path / "g.onnx"
    assert export(open_samples(Run(run)), str(path)).checked_by == "onnxruntime"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["step"]) == 3
    assert list(tmp_path.iterdir()) == [path]
    for count in (2, 7, 33):
        z, y, images = original(run, count)
        given = {"z": z.numpy(), "y": y.numpy()} if name == "cdcgan" else {"z": z.numpy()}
        (found,) = session.run(["images"], given)
        np.testing.assert_allclose(found, images.numpy(), rtol=0, atol=1e-4)


def test_a_program_that_gives_other_images_is_not_written(trained, tmp_path, monkeypatch):
    real = exporting._save_program

    def spoiled(*arguments):
        run, name = real(*arguments)
        return lambda *inputs: run(*inputs) + 0.01, name

    monkeypatch.setattr(exporting, "_save_program", spoiled)
    with pytest.raises(DcganDistError, match=r"differ from the original's by 0\.005 of their range"):
        export(open_samples(Run(trained("gan"))), str(tmp_path / "g.pt2"))
    assert not list(tmp_path.iterdir())


def test_other_endings_and_what_exists_are_refused(tmp_path):
    for name in ("g.pt", "g.onnx/", "s3://bucket/g.onnx", "g"):
        with pytest.raises(ConfigError, match=r"ends in \.onnx or \.pt2"):
            check_output(name, overwrite=False)
    path = tmp_path / "g.pt2"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="exists: name another one, or give --overwrite"):
        check_output(str(path), overwrite=False)
    check_output(str(path), overwrite=True)


def test_a_missing_package_is_named_with_the_way_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"onnx and onnxscript is not installed: pip install 'dcgan-dist\[onnx\]'"):
        check_output(str(tmp_path / "g.onnx"), overwrite=False)
