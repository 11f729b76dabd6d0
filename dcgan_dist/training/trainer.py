"""The training loop, and what surrounds it: data, log lines, samples, checkpoints, resuming and stopping."""

from __future__ import annotations

import gc
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file

from dcgan_dist.config import Config
from dcgan_dist.data.dataset import Dataset, open_dataset
from dcgan_dist.data.stream import Batch, BatchIterator, ImageStream
from dcgan_dist.distributed import World, say
from dcgan_dist.errors import ConfigError, DataError, DcganDistError, Diverged, InputError, RunDirectoryError, Stopped
from dcgan_dist.models import build_networks, family_of, initialise
from dcgan_dist.printing import tell
from dcgan_dist.runs.checkpoints import RAW, name_of
from dcgan_dist.runs.writer import RunWriter
from dcgan_dist.stopping import Interrupted, Noted, noting
from dcgan_dist.storage.remote import shown
from dcgan_dist.training.averaging import GeneratorAverage
from dcgan_dist.training.batch_norm import synchronise
from dcgan_dist.training.checkpoint import AVERAGE_FILE, load_tensors, save_tensors, training_tensors
from dcgan_dist.training.damage import DamageLog
from dcgan_dist.training.draws import draw_dropout, draw_labels, draw_z, one_hot
from dcgan_dist.training.progress import Clock, Reporter, Silent, readable_time
from dcgan_dist.training.sampling import fixed_inputs, grid_columns, make_grid, sample_feature_maps, to_real, to_uint8
from dcgan_dist.training.setup import batches_per_step, lr_factor, open_run_directory, require_compiler, resolve_config
from dcgan_dist.training.signals import WINDOW, filter_oscillation, filter_swing, mean_activations, sample_distance
from dcgan_dist.training.step import AdversarialStep

# Steps between two looks at the stop flags: on a GPU each look waits for the device.
STOP_INTERVAL = {"cpu": 1, "cuda": 10}
_PLACES_SAID = 5  # damaged places of shards made elsewhere, at the start of a run


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended: its last step, the real images it has seen, and where its files are."""

    step: int
    images_seen: int
    run_dir: str
    last_metrics: dict[str, Any]


@dataclass
class State:
    """What a run goes on from besides tensors."""

    step: int = 0
    images_seen: int = 0
    images_lost: int = 0
    seconds: float = 0.0


def train(
    config: Config, world: World, reporter: Reporter | None = None, *, run_location: str, session: str = ""
) -> TrainingResult:
    """Train, or go on training, in a run directory; every rank calls this.

    Args:
        config: settings as given.
        world: this process among those that train together.
        reporter: is told of every log line.
        run_location: folder or URL of the run directory; only the leader touches it.
        session: names one launch of a group of workers, so that a restarted group takes over the run at once.

    Raises:
        InputError: data, settings or the run directory cannot be used.
        Diverged: a loss or gradient became non-finite; the last finite state is saved.
        Stopped: a signal or the reporter ended the run; its state is saved.
        Interrupted: a second signal ended it at once, with the checkpoints that there are.
    """
    if config.training.batch_size % world.size:
        raise ConfigError(
            f"training.batch_size is {config.training.batch_size}: it is shared out evenly, so take a multiple of the "
            f"number of workers ({world.size})"
        )
    if config.training.batch_size // world.size < 2:
        raise ConfigError(
            f"training.batch_size is {config.training.batch_size}: batch norm needs at least 2 images on each of the "
            f"{world.size} workers"
        )
    if config.training.compile and world.device.type == "cpu":
        require_compiler()
    family_of(config.model)  # refuses what the data could only be fetched for in vain
    cache = Path(config.data.cache) if config.data.cache else None
    dataset = open_dataset(
        config.data.path,
        image_size=config.model.image_size,
        channels=config.model.channels,
        cache=cache,
        cache_gib=config.data.cache_gib,
        on_damage=config.data.on_damage,
        image_member=config.data.image_member,
    )
    config = resolve_config(config, dataset)
    with noting() as signals:  # from here on there is a run directory, to be left with its true status
        run = _on_leader(world, lambda: open_run_directory(config, dataset, run_location, session))
        try:
            with run or nullcontext():
                return Training(config, world, dataset, run, reporter or Silent(), signals).run_to_end()
        finally:
            gc.collect()  # DDP's reducers must be gone before the process group is destroyed


def _on_leader(world: World, open_: Callable[[], RunWriter]) -> RunWriter | None:
    """Open the run directory on the leader; where that fails, fail with the same message on every rank."""
    run, message = None, ""
    if world.is_leader:
        try:
            run = open_()
        except InputError as error:
            if world.size == 1:
                raise
            message = str(error)
    message = world.broadcast_text(message)
    if message:
        raise RunDirectoryError(message)
    return run


class Training:
    """One run on one rank: the two players, the data and the state, and the loop over them."""

    def __init__(
        self,
        config: Config,
        world: World,
        dataset: Dataset,
        run: RunWriter | None,
        reporter: Reporter,
        signals: Noted | None = None,
    ) -> None:
        self.config, self.world, self.run, self.reporter = config, world, run, reporter
        self.signals = signals or Noted()
        self.dtype = torch.float64 if config.training.precision == "fp64" else torch.float32
        self.classes = config.model.classes or 0
        self.stream = ImageStream(
            dataset,
            seed=config.seed,
            batch_size=config.training.batch_size,
            rank=world.rank,
            world_size=world.size,
            workers=config.data.workers,
            prefetch=config.data.prefetch,
            on_damage=config.data.on_damage,
        )
        self.dataset = dataset
        self.state = State()
        self.damage = DamageLog()
        self.failure: DcganDistError | None = None  # what keeps this rank from reading on
        # The same on all ranks, as sums that a step takes anyway: images lost in this epoch, ranks that failed to read.
        self.epoch = 0
        self.lost_in_epoch = torch.zeros((), dtype=torch.int64, device=world.device)
        self.empty_steps = torch.zeros((), dtype=torch.int64, device=world.device)  # the last ones without a real image
        self.failed_ranks = torch.zeros((), dtype=torch.int64, device=world.device)
        generator, discriminator = build_networks(config.model)
        self.image_range: tuple[float, float] = generator.image_range
        self.dropout_units = discriminator.dropout_units
        initialise(generator, config.model, config.seed)
        initialise(discriminator, config.model, config.seed + 1)
        layout = torch.channels_last if config.training.channels_last else torch.contiguous_format
        for bare in (generator, discriminator):
            bare.to(world.device, self.dtype).train()
            bare.to(memory_format=layout)  # type: ignore[call-overload]
        self.average = GeneratorAverage(generator, config) if config.training.average else None
        networks: list[torch.nn.Module] = [generator, discriminator]
        if config.training.sync_batch_norm:
            networks = [synchronise(bare, world) for bare in networks]
        if config.training.compile:
            for network in networks:
                network.compile()
        self.step = AdversarialStep(networks[0], networks[1], config, world)
        z, y = fixed_inputs(config.model, config.seed, config.training.sample_count)
        self.fixed_z, self.fixed_y = z.to(world.device, self.dtype), y.to(world.device, self.dtype)
        self.activation_history = torch.zeros(0, 0)
        self.last_metrics: dict[str, Any] = {}
        self.last_checkpoint: Path | None = None
        self.saved_at = time.monotonic()
        self.first_step_here = 0  # step from which this process goes on
        self.last_logged = 0  # step of the newest log line
        self.parent: dict[str, Any] | None = None  # the checkpoint of another run that this one goes on from

    # ------------------------------------------------------------------ the loop

    def run_to_end(self) -> TrainingResult:
        """Train from the newest checkpoint to the configured step."""
        config, world = self.config, self.world
        assert config.training.steps is not None
        total = config.training.steps
        self._resume()
        if self.state.step >= total:
            say(world, f"finished already: {self.state.step:,} of {total:,} steps in {self._where()}")
            return self._finish()
        self._announce(total)
        with self._recording_the_end():
            if self.run is not None:
                self.run.set_status("running", step=self.state.step, steps=total)
                if self.state.step == 0:
                    self._write_real_images()
                    self._write_samples()
            self._train(total)
            return self._finish()

    def _train(self, total: int) -> None:
        per_step = batches_per_step(self.config)
        batches = self.stream.iterate(self.state.step * per_step, total * per_step)
        clock = Clock()
        try:
            for step in range(self.state.step + 1, total + 1):
                with clock.waiting():
                    mini_batches = self._take(batches, per_step)
                self.step.set_lr(lr_factor(self.config, step))
                self._train_step(step, mini_batches)
                self.state.step = step
                self._after_step(step, total, clock)
        finally:
            batches.close()

    @contextmanager
    def _recording_the_end(self) -> Iterator[None]:
        """Write into status.json how a run ends that does not finish."""
        try:
            yield
        except (Exception, Interrupted) as error:
            if self.run is not None:
                status: Literal["diverged", "stopped", "failed"] = "failed"
                if isinstance(error, Diverged | Stopped | Interrupted):
                    status = "diverged" if isinstance(error, Diverged) else "stopped"
                try:
                    self.run.set_status(status, f"{error}" or type(error).__name__, step=self.state.step)
                except DcganDistError as second:
                    if str(second) != str(error):
                        tell(str(second), to_stderr=True)
            raise

    def _take(self, batches: BatchIterator, count: int) -> list[Batch]:
        """Return the next mini-batches; where this rank cannot read on, empty ones until all ranks look and stop."""
        if self.failure is None:
            try:
                return [next(batches) for _ in range(count)]
            except DcganDistError as error:
                if self.world.size == 1:
                    raise
                # The others are on their way into the step's collectives, and would wait there for this rank.
                self.failure = error
        size, channels = self.dataset.image_size, self.dataset.channels
        nothing = torch.zeros(0, size, size, channels, dtype=torch.uint8)
        return [Batch(nothing, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))] * count

    def _train_step(self, step: int, mini_batches: list[Batch]) -> None:
        """One step of the algorithm: update the discriminator and the generator once each."""
        players = self.step
        epoch = (step - 1) * len(mini_batches) // self.stream.batches_per_epoch
        if epoch != self.epoch:
            self.epoch = epoch
            self.lost_in_epoch.zero_()
        real, y_real, count, share = self._real(mini_batches)
        z, y = self._noise("train", step)
        drawn = self.world.share(torch.arange(self.config.training.batch_size))
        of_real = self._dropout("real", step, mini_batches[-1].slots)
        of_fake, of_generator = self._dropout("fake", step, drawn), self._dropout("generator", step, drawn)
        players.begin()
        if self.config.training.updates == "paper":
            # One mini-batch for both: the discriminator's fakes are then the generator's.
            fake = players.generate(z, y)
            players.update_discriminator(real, y_real, fake.detach(), y, count, of_real, of_fake)
            players.update_generator(fake, y, of_generator)
        else:
            # The released code: the generator's turn (its mini-batch of real images goes by), the discriminator's.
            z_own, y_own = self._noise("train/generator", step)
            players.update_generator(players.generate(z_own, y_own), y_own, of_generator)
            with torch.no_grad():
                fake = players.generate(z, y)
            players.update_discriminator(real, y_real, fake, y, count, of_real, of_fake)
        players.end(share)
        if self.average is not None:
            self.average.update(players.generator.network, step, players.finite)
        self.state.images_lost += self.damage.note(mini_batches)
        self.state.images_seen += sum(len(batch.images) for batch in mini_batches)

    def _real(self, mini_batches: list[Batch]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the last batch's real images and one-hot labels, the count of all ranks, and this rank's share."""
        device, batch = self.world.device, mini_batches[-1]
        images = batch.images.pin_memory() if device.type == "cuda" else batch.images
        real = to_real(images.to(device, non_blocking=True), self.image_range, self.dtype)
        if not self.config.training.channels_last:
            real = real.contiguous()
        y = one_hot(batch.labels, self.classes).to(device, self.dtype)
        held = [len(real), sum(len(each.images) for each in mini_batches), int(self.failure is not None)]
        counts = self.world.sum_(torch.tensor(held, dtype=torch.int64, device=device))
        self.lost_in_epoch += len(mini_batches) * self.config.training.batch_size - counts[1]
        self.empty_steps = (self.empty_steps + 1) * (counts[1] == 0)
        self.failed_ranks += counts[2]
        count = counts[0].clamp_min(1).to(self.dtype)
        return real, y, count, len(real) / count

    def _noise(self, purpose: str, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return this rank's rows of the step's z and one-hot y."""
        model, batch = self.config.model, self.config.training.batch_size
        z = draw_z(self.config.seed, purpose, step, batch, model.z_dim, model.z_distribution)
        y = one_hot(draw_labels(self.config.seed, purpose, step, batch, self.classes), self.classes)
        device = self.world.device
        return self.world.share(z).to(device, self.dtype), self.world.share(y).to(device, self.dtype)

    def _dropout(self, purpose: str, step: int, slots: torch.Tensor) -> torch.Tensor:
        """Return what the discriminator's dropout decides by, (n, units), for images at `slots` of the global batch."""
        batch = self.config.training.batch_size
        draws = draw_dropout(self.config.seed, purpose, step, batch, self.dropout_units)
        return draws[slots].to(self.world.device)

    # ------------------------------------------------------------------ between steps

    def _after_step(self, step: int, total: int, clock: Clock) -> None:
        """Log, sample, save and stop, as this step asks for."""
        settings = self.config.training
        last, saved = step == total, False
        logs, saves = step % settings.log_every == 0 or last, step % settings.checkpoint_every == 0 or last
        looks = logs or step % STOP_INTERVAL[self.world.device.type] == 0
        if looks or saves:
            self._stop_where_a_rank_failed()
        if logs:
            self._log(step, total, clock)
        if step % settings.sample_every == 0 or last:
            self._write_samples()
        if looks:
            self._stop_at_too_much_damage(step, total, clock)
        # A state that is no longer finite is dealt with by the next log line.
        if saves and bool(self.step.finite):
            self._save()
            saved = True
        if logs:
            self._report()
        if last or not looks:
            return
        stop, overdue = self._agree(self.reporter.should_stop())
        if (stop or overdue) and not saved:
            if not bool(self.step.finite):
                self._log(step, total, clock)
            self._save()
        if stop:
            raise Stopped(
                stop,
                f"stopped at step {step:,} of {total:,} with a checkpoint; the same command goes on: {self._where()}",
            )

    def _stop_where_a_rank_failed(self) -> None:
        """Raise on every rank what kept one of them from reading; the steps since then are not saved."""
        if not int(self.failed_ranks):
            return
        mine = self.failure
        texts = self.world.gather_texts("" if mine is None else str(mine))
        raise mine or DataError(next(text for text in texts if text))

    def _stop_at_too_much_damage(self, step: int, total: int, clock: Clock) -> None:
        """End the run, on all ranks alike, where more of this epoch's images are lost than is allowed."""
        settings, lost = self.config.data, int(self.lost_in_epoch)
        none_is_left = int(self.empty_steps) * batches_per_step(self.config) >= self.stream.batches_per_epoch
        if lost <= settings.max_damage * self.dataset.count and not none_is_left:
            return
        if self.last_logged != step:
            self._log(step, total, clock)
        self.lost_in_epoch.zero_()  # whoever starts the run again knows of them
        if bool(self.step.finite):
            self._save()
        self._report()
        message = (
            f"{lost:,} of {self.dataset.count:,} images lost in epoch {self.epoch} by step {step:,} (images lost by "
            f"shard: {self.damage.shards()}), more than data.max_damage ({settings.max_damage:g}) allows: restore the "
            f"shards or raise it, and the same command goes on"
        )
        raise DataError(self.world.broadcast_text(self._none_is_left() if none_is_left else message))

    def _agree(self, told: bool) -> tuple[int, bool]:
        """Number of the signal by which any rank was asked to stop (or 0), and whether a checkpoint is overdue."""
        asked = self.signals.number or (signal.SIGTERM if told else 0)
        minutes = self.config.training.checkpoint_minutes
        overdue = minutes > 0 and self.world.is_leader and time.monotonic() - self.saved_at > 60 * minutes
        if self.world.size == 1:
            return asked, overdue
        flags = self.world.maximum_(torch.tensor([asked, int(overdue)], device=self.world.device))
        return int(flags[0]), bool(flags[1])

    def _log(self, step: int, total: int, clock: Clock) -> None:
        """Write a line of metrics: means since the last one over all ranks' images."""
        tally = self.world.sum_(self.step.tally.sums.clone()).tolist()
        finite = bool(self.step.finite)
        seconds, wait = clock.lap()
        self.state.seconds += seconds
        real_count, real_sum, d_real, fake_count, fake_sum, d_fake, g_sum = tally
        real_count, fake_count = max(real_count, 1.0), max(fake_count, 1.0)
        self.damage.collect(self.world)
        counts = torch.tensor([self.state.images_seen, self.state.images_lost], device=self.world.device)
        seen, lost = self.world.sum_(counts).tolist()
        batch = self.config.training.batch_size
        done = max(1, step - self.last_logged)
        row: dict[str, Any] = {
            "step": step,
            "epoch": step * batches_per_step(self.config) / self.stream.batches_per_epoch,
            "images_seen": seen,
            "loss_d": real_sum / real_count + fake_sum / fake_count,
            "loss_g": g_sum / fake_count,
            "d_real": d_real / real_count,
            "d_fake": d_fake / fake_count,
            "images_per_s": done * batch / max(seconds, 1e-9),
            "data_wait": wait / max(seconds, 1e-9),
            **self._signals(),
            "lr": self.config.optim.lr * lr_factor(self.config, step),
            "images_lost": lost,
            "world_size": self.world.size,
            "time_s": self.state.seconds,
        }
        if self.parent is not None:
            row |= {"parent": self.parent["trial"]}
            row |= {f"parent_{key}": self.parent[key] for key in ("step", "digest")}
        self.step.tally.sums.zero_()
        self.last_metrics, self.last_logged = row, step
        if self.config.training.check_replicas:
            self._check_replicas()
        damage, damage_lines = self.damage.take_unlogged()
        if damage:
            row["damage"] = damage
        if self.run is not None:
            self.run.append_metrics(row)
            facts = {"images_lost": lost, "damage": self.damage.found.to_json()} if len(self.damage.found) else {}
            self.run.set_status("running", step=step, steps=total, **facts)
        left = (total - step) / max(done / max(seconds, 1e-9), 1e-9)
        say(
            self.world,
            f"step {step:,}/{total:,} {step / total:4.0%} | {row['images_per_s']:,.0f} images/s, "
            f"waiting for data {row['data_wait']:.0%} | loss D {row['loss_d']:.3f} G {row['loss_g']:.3f} | "
            f"D(x) {row['d_real']:.2f} D(G(z)) {row['d_fake']:.2f} | {readable_time(left)} left",
        )
        for line in damage_lines:
            say(self.world, line)
        if not finite:
            self.state.step = self.first_step_here + int(self.step.finite_steps)
            self._save()
            self._report()
            raise Diverged(
                f"a loss or gradient became non-finite at step {self.state.step + 1:,}; the state before it is in "
                f"{self._where()}: try a lower optim.lr"
            )

    def _report(self) -> None:
        """Tell of the newest log line; where its step asks for a checkpoint too, that has been made before."""
        self.reporter.report(self.last_metrics, str(self.last_checkpoint) if self.last_checkpoint else None)

    def _signals(self) -> dict[str, float | None]:
        """Measure the samples that the fixed z gives with the raw weights (leader only: the others' rows are lost)."""
        if not self.world.is_leader:
            return {"sample_distance": None, "filter_oscillation": None, "filter_swing": None}
        with self.step.autocast():
            images, hidden = sample_feature_maps(
                self.step.generator.network, self.fixed_z, self.fixed_y, self.config.model
            )
        means = mean_activations(hidden)[None]
        history = [self.activation_history] if len(self.activation_history) else []
        self.activation_history = torch.cat([*history, means])[-WINDOW:]
        return {
            "sample_distance": sample_distance(images, self.image_range),
            "filter_oscillation": filter_oscillation(self.activation_history),
            "filter_swing": filter_swing(self.activation_history),
        }

    def _write_samples(self) -> None:
        """Write a grid of samples; where weights are averaged, one of the averaged and one of the raw weights."""
        if self.run is None:
            return
        name, raw = name_of(self.state.step), self.step.generator.network
        grids = {name: raw} if self.average is None else {name: self.average.measure(), f"{RAW}{name}": raw}
        for grid, generator in grids.items():
            with self.step.autocast():
                images, _ = sample_feature_maps(generator, self.fixed_z, self.fixed_y, self.config.model)
            columns = grid_columns(len(images), self.classes)
            self.run.write_image(grid, make_grid(to_uint8(images, self.image_range), columns))

    def _write_real_images(self) -> None:
        """Write the first images of the first epoch beside the samples, of the first batch that has any.

        Raises:
            DataError: no image of the data can be read.
        """
        assert self.run is not None
        count = min(self.config.training.sample_count, self.dataset.count)
        first = ImageStream(
            self.dataset, seed=self.config.seed, batch_size=count, rank=0, world_size=1, workers=0, prefetch=1,
            on_damage="skip",
        )  # fmt: skip
        for number in range(first.batches_per_epoch):
            batch = first.read(number)
            if len(batch.images):
                self.run.write_image("real", make_grid(batch.images.numpy()))
                return
        damage = batch.damage[0]
        error = DataError(f"{self._none_is_left()}: shard {damage.shard!r} offset {damage.offset} {damage.reason}")
        if self.world.size == 1:
            raise error
        self.failure = error  # for the other ranks, too

    def _none_is_left(self) -> str:
        return f"no image of {self.dataset.path!r} can be read: restore its shards, or prepare them again"

    def _check_replicas(self) -> None:
        """Raise where a parameter differs between ranks."""
        networks = [self.step.generator.network, self.step.discriminator.network]
        networks += [] if self.average is None else [self.average.network]
        parameters = [parameter for network in networks for parameter in network.parameters()]
        mine = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        leaders = self.world.broadcast_(mine.clone())
        same = torch.tensor(float(torch.equal(mine, leaders)), device=self.world.device)
        if not bool(self.world.minimum_(same)):
            raise RuntimeError(f"parameters differ between ranks at step {self.state.step:,}")

    # ------------------------------------------------------------------ checkpoints

    def _save(self) -> None:
        """Write a checkpoint of the state after the current step."""
        self.damage.collect(self.world)
        totals = torch.tensor([self.state.images_seen, self.state.images_lost], device=self.world.device)
        seen, lost = self.world.sum_(totals).tolist()
        tallies = self.world.gather(self.step.tally.sums).tolist()
        self.saved_at = time.monotonic()
        if self.run is None:
            return
        config, per_epoch = self.config, self.stream.batches_per_epoch
        batch = self.state.step * batches_per_step(config)
        state = {
            "step": self.state.step,
            "epoch": batch / per_epoch,
            "images_seen": seen,
            "images_lost": lost,
            "lost_in_epoch": int(self.lost_in_epoch),
            "damage": self.damage.state(),
            "seconds": self.state.seconds,
            "cursor": {
                "epoch": batch // per_epoch,
                "batch": batch % per_epoch,
                "batch_size": config.training.batch_size,
            },
            "rng": {"kind": "Philox of (seed, purpose, step)", "seed": config.seed},
            "world_size": self.world.size,
            "tallies": tallies,
            "finite": bool(self.step.finite),
            "last_logged": self.last_logged,
            **({} if self.average is None else {"average_from": self.average.first_step}),
            **({} if self.parent is None else {"parent": self.parent}),
        }

        if self.average is not None:
            self.average.measure()

        def write(folder: Path) -> None:
            for name, tensors in training_tensors(self.step, self.average).items():
                save_tensors(folder, tensors, name)
            save_tensors(folder, {"activations": self.activation_history}, "signals")

        self.last_checkpoint = self.run.commit_checkpoint(self.state.step, write, state)
        settings = config.training
        self.run.prune_checkpoints(settings.keep_last, settings.keep_every * settings.checkpoint_every)

    def _resume(self) -> None:
        """Load the checkpoint that the run directory went back to on the leader, and give it to every rank."""
        message, text = "", ""
        if self.run is not None and (found := self.run.newest) is not None:
            try:
                # A checkpoint that was made without an average has none: it begins with the weights, below.
                average = self.average if AVERAGE_FILE in found.state["files"] else None
                for name, tensors in training_tensors(self.step, average).items():
                    load_tensors(found.path, tensors, name)
                self.activation_history = load_file(found.path / "signals.safetensors")["activations"]
                text = json.dumps(found.state)
                self.last_checkpoint = found.path
            except InputError as error:
                message = str(error)
        message = self.world.broadcast_text(message)
        if message:
            raise RunDirectoryError(message)
        text = self.world.broadcast_text(text)
        if not text:
            return
        state = json.loads(text)
        for tensors in training_tensors(self.step, self.average).values():
            for tensor in tensors.values():
                self.world.broadcast_(tensor)
        if self.average is not None and AVERAGE_FILE in state["files"]:
            self.average.first_step = state["average_from"]
        elif self.average is not None:
            self.average.begin(self.step.generator.network, state["step"])
            say(
                self.world,
                f"the checkpoint has no averaged weights: they begin as those of step {state['step']:,}",
            )
        same_size = state["world_size"] == self.world.size
        tallies = torch.tensor(state["tallies"], dtype=torch.float64)
        mine = tallies[self.world.rank] if same_size else tallies.sum(0) * self.world.is_leader
        self.step.tally.sums.copy_(mine)
        self.state = State(
            step=state["step"],
            images_seen=state["images_seen"] if self.world.is_leader else 0,
            images_lost=state["images_lost"] if self.world.is_leader else 0,
            seconds=state["seconds"],
        )
        self.first_step_here, self.last_logged = self.state.step, state["last_logged"]
        self.parent = state.get("parent")
        self.epoch = max(0, self.state.step - 1) * batches_per_step(self.config) // self.stream.batches_per_epoch
        self.lost_in_epoch.fill_(state.get("lost_in_epoch", 0))
        if self.world.is_leader:
            self.damage.restore(state.get("damage", {}))

    # ------------------------------------------------------------------ words

    def _where(self) -> str:
        return self.run.location if self.run is not None else ""

    def _announce(self, total: int) -> None:
        config, dataset = self.config, self.dataset
        start = f"going on at step {self.state.step:,}" if self.state.step else "starting"
        size = config.model.image_size
        say(
            self.world,
            f"{start}: {config.model.name} {size}x{size}, {dataset.count:,} images ({shown(config.data.path)}), "
            f"{total:,} steps of {config.training.batch_size} images on {self.world.size} x {self.world.device.type}, "
            f"{config.training.precision}; run directory {self._where()}",
        )
        places = dataset.manifest.damage
        for place in places[:_PLACES_SAID]:
            say(
                self.world,
                f"damage: shard {place['shard']!r} offset {place['offset']} ({place['reason']}), {place['bytes']:,} "
                f"bytes left out of the data",
            )
        if len(places) > _PLACES_SAID:
            say(self.world, f"damage: and {len(places) - _PLACES_SAID:,} more places left out of the data")

    def _finish(self) -> TrainingResult:
        totals = torch.tensor([self.state.images_seen, self.state.images_lost], device=self.world.device)
        seen, lost = self.world.sum_(totals).tolist()
        if self.run is not None:
            self.run.set_status("finished", step=self.state.step, images_seen=seen, images_lost=lost)
        if summary := self.damage.summary(lost):
            say(self.world, summary)
        if places := self.dataset.manifest.damage:
            first = f"shard {places[0]['shard']!r} offset {places[0]['offset']}"
            more = f", and {len(places) - 1:,} more" if len(places) > 1 else ""
            left_out = sum(place["bytes"] for place in places)
            say(self.world, f"{left_out:,} damaged bytes left out from the start: {first}{more}")
        return TrainingResult(self.state.step, seen, self._where(), self.last_metrics)
