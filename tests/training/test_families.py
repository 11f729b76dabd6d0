"""Every family on the same loop: alone, over two ranks, resumed; dropout as a function of the step, not of history."""

import signal

import pytest
import torch

from dcgan_dist.config import Config, ModelConfig, OptimConfig, TrainingConfig, override
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.distributed import World
from dcgan_dist.errors import Stopped
from dcgan_dist.models import build_networks, initialise
from dcgan_dist.training import draws
from dcgan_dist.training.draws import draw_dropout
from dcgan_dist.training.setup import open_run_directory, resolve_config
from dcgan_dist.training.step import Players
from dcgan_dist.training.trainer import Trainer, train
from tests.conftest import TINY, signal_torchrun
from tests.conftest import train as run_command
from tests.processes import in_processes
from tests.training.test_trainer import checkpoint, differing

OF_CONVOLUTIONS = {"model.ngf": 2, "model.ndf": 2}
FAMILIES = {
    "dcgan": OF_CONVOLUTIONS,
    "cdcgan": OF_CONVOLUTIONS,
    "gan": {"model.generator_units": "9,7", "model.discriminator_units": "8", "optim.discriminator_loss": "mean"},
    "cgan": {"model.generator_units": "9", "model.discriminator_units": "8,5", "model.maxout": 2, "model.dropout": 0.5},
}
ALONE = World(0, 1, torch.device("cpu"))
STEPS = 6


def settings(name: str, **more: object) -> Config:
    tiny = {key: value for key, value in TINY.items() if key not in OF_CONVOLUTIONS}
    tiny |= {"model.name": name, "training.steps": STEPS, "training.log_every": 2, "training.checkpoint_every": 3}
    return override(Config(), tiny | FAMILIES[name] | more)


class StopAt:
    """A reporter that ends the run at a step."""

    def __init__(self, step: int) -> None:
        self.step, self.now = step, 0

    def report(self, metrics: dict[str, object], checkpoint_dir: str | None) -> None:
        self.now = int(str(metrics["step"]))

    def should_stop(self) -> bool:
        return self.now >= self.step


@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_stopped_and_resumed_ends_equal_bit_for_bit(tmp_path, name):
    config = settings(name)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    result = train(config, ALONE, run_location=str(whole))
    assert (result.step, result.images_seen) == (STEPS, STEPS * 8)
    with pytest.raises(Stopped) as caught:
        train(config, ALONE, StopAt(4), run_location=str(cut))
    assert caught.value.signal_number == signal.SIGTERM
    train(config, ALONE, run_location=str(cut))
    assert differing(checkpoint(cut, STEPS), checkpoint(whole, STEPS)) == []
    before = checkpoint(whole, 3)
    changed = [key for key in before if not torch.equal(before[key], checkpoint(whole, STEPS)[key])]
    assert {key.split("/")[0] for key in changed} >= {"generator", "discriminator", "optim"}


def train_and_compare(world, folder, name):
    """Train over the ranks in float64; where batch norm is none or synchronised, that is what one process does."""
    config = settings(name, **{"training.precision": "fp64", "training.sync_batch_norm": True})
    config = override(config, {"training.check_replicas": True})
    train(config, world, run_location=str(folder / "together"))
    world.barrier()
    if world.is_leader:
        train(config, ALONE, run_location=str(folder / "alone"))
        one, other = (checkpoint(folder / each, STEPS) for each in ("alone", "together"))
        assert one.keys() == other.keys()
        for key, value in one.items():
            if not key.endswith("num_batches_tracked") and not key.startswith("signals"):
                torch.testing.assert_close(other[key], value, rtol=0, atol=1e-9, msg=lambda text, k=key: f"{k}: {text}")
    world.barrier()


def train_all(world, folder):
    for name in FAMILIES:
        train_and_compare(world, folder / name, name)


@pytest.mark.slow
def test_two_ranks_train_every_family_as_one_process_does(tmp_path):
    in_processes(train_all, tmp_path, tmp_path)


@pytest.mark.slow
def test_a_conditional_gan_with_dropout_killed_under_torchrun_and_resumed_ends_equal_bit_for_bit(tmp_path):
    given = FAMILIES["cgan"] | {"model.name": "cgan", "model.ngf": 128, "model.ndf": 128, "training.log_every": 1}
    given |= {"training.steps": 12}
    whole = run_command(given | {"run_dir": tmp_path / "whole"}, workers=2)
    assert whole.returncode == 0, whole.stderr
    assert signal_torchrun(given | {"run_dir": tmp_path / "cut"}, signal.SIGKILL, "step 6/", workers=2) != 0
    again = run_command(given | {"run_dir": tmp_path / "cut"}, workers=2)
    assert again.returncode == 0, again.stderr
    assert differing(checkpoint(tmp_path / "cut", 12), checkpoint(tmp_path / "whole", 12)) == []


def test_dropout_of_an_image_depends_on_its_place_in_the_global_batch_alone(tmp_path):
    config = settings("cgan")
    dataset = open_dataset(config.data.path, image_size=16)
    config = resolve_config(config, dataset)
    run = open_run_directory(config, dataset, str(tmp_path / "run"), "")
    try:
        training = Trainer(config, ALONE, dataset, run, StopAt(0))
        whole = training.draws.dropout("real", 7, torch.arange(8))
        assert torch.equal(whole, draw_dropout(config.seed, "real", 7, 8, 13))
        assert torch.equal(training.draws.dropout("real", 7, torch.tensor([1, 6])), whole[[1, 6]])
        for purpose, step in (("fake", 7), ("generator", 7), ("real", 8)):
            assert not torch.equal(training.draws.dropout(purpose, step, torch.arange(8)), whole)
    finally:
        run.close()


def test_the_draws_of_dropout_reach_each_of_the_three_passes(monkeypatch, tmp_path):
    seen: list[torch.Tensor] = []
    real = draws.draw_dropout

    def record(*arguments: object) -> torch.Tensor:
        seen.append(real(*arguments))
        return torch.full_like(seen[-1], 0.99)  # keeps every unit

    config = settings("cgan", **{"training.steps": 1})
    train(config, ALONE, run_location=str(tmp_path / "dropped"))
    monkeypatch.setattr(draws, "draw_dropout", record)
    train(config, ALONE, run_location=str(tmp_path / "kept"))
    assert len(seen) == 3
    dropped, kept = checkpoint(tmp_path / "dropped", 1), checkpoint(tmp_path / "kept", 1)
    assert {key.split("/")[0] for key in differing(dropped, kept)} >= {"generator", "discriminator"}


@pytest.mark.parametrize("joined", ["sum", "mean"])
def test_the_loss_of_the_discriminator_is_the_sum_or_the_mean(joined):
    model = ModelConfig(name="gan", image_size=16, channels=1, classes=0, z_dim=4)
    config = Config(
        model=model,
        optim=OptimConfig(discriminator_loss=joined),
        training=TrainingConfig(batch_size=4, precision="fp64"),
    )
    networks = build_networks(model)
    for network in networks:
        initialise(network, model, 0)
        network.double()
    players = Players(*networks, config, ALONE)
    random = torch.Generator().manual_seed(0)
    images, fake = (torch.rand(4, 1, 16, 16, generator=random, dtype=torch.float64) for _ in range(2))
    y = images[:, :0, 0, 0]
    discriminator = networks[1]
    losses = [-discriminator(images, y).sigmoid().log().mean(), -(1 - discriminator(fake, y).sigmoid()).log().mean()]
    loss = sum(losses) if joined == "sum" else sum(losses) / 2
    expected = torch.autograd.grad(loss, list(discriminator.parameters()))
    players.begin()
    players.update_discriminator(images, y, fake, y, torch.tensor(4.0))
    for parameter, gradient in zip(discriminator.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-12)
    assert float(players.tally.sums[1] / 4 + players.tally.sums[4] / 4) == pytest.approx(float(sum(losses).detach()))


def test_a_run_made_before_a_setting_existed_goes_on_with_its_default(tmp_path):
    config, run = settings("gan", **{"training.steps": 2}), tmp_path / "run"
    train(config, ALONE, run_location=str(run))
    text = (run / "config.yaml").read_text()
    assert "  maxout: 0\n" in text
    (run / "config.yaml").write_text(text.replace("  maxout: 0\n", ""))
    assert train(settings("gan", **{"training.steps": 3}), ALONE, run_location=str(run)).step == 3
