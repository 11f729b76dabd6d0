"""The training loop.

::

    run directory ─ Checkpointer.resume ─> both networks, both Adams, Progress
          ┌──> Feed ────── this rank's rows of the next global batch of real images
          │    Draws ───── z, labels, dropout: functions of (seed, purpose, step, index in the global batch)
          │    Players ─── one update of D, one of G; nothing non-finite gets into the weights
          │    Schedule ── look, log, sample, save?
          │    Votes ───── what all ranks agree on before any of them leaves the loop
          └─── Meter, FixedSamples, Checkpointer ── rows, grids and checkpoints, to the hooks and the run directory

The loop is Algorithm 1 of Goodfellow et al. (2014) with k = 1, on the networks and with the Adam of section 4 of
Radford, Metz and Chintala (2015).
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import nullcontext

import torch

from dcgan_dist.config import Config
from dcgan_dist.data.dataset import Dataset
from dcgan_dist.distributed import World, say
from dcgan_dist.errors import DataError, Diverged, Stopped
from dcgan_dist.runs.documents import Row
from dcgan_dist.runs.writer import RunWriter
from dcgan_dist.stopping import Noted, noting
from dcgan_dist.storage.remote import shown
from dcgan_dist.training.checkpoint import Checkpointer, TrainingState
from dcgan_dist.training.damage import DamageLog, lines_of_left_out, summary_of_left_out
from dcgan_dist.training.draws import Draws
from dcgan_dist.training.feed import Feed, RealImages, first_images
from dcgan_dist.training.fixed_samples import FixedSamples
from dcgan_dist.training.hooks import Hook, Hooks, Launcher, ProgressLines, RunFiles, TensorBoard
from dcgan_dist.training.meter import Meter
from dcgan_dist.training.progress import Progress, TrainingResult
from dcgan_dist.training.reporter import Reporter, Silent
from dcgan_dist.training.sampling import make_grid
from dcgan_dist.training.schedule import Schedule
from dcgan_dist.training.setup import check_world, lr_factor, open_data, open_on_leader, resolve_config
from dcgan_dist.training.step import Players, check_replicas
from dcgan_dist.training.votes import Votes


def train(
    config: Config,
    world: World,
    reporter: Reporter | None = None,
    *,
    run_location: str,
    session: str = "",
    hooks: Sequence[Hook] = (),
) -> TrainingResult:
    """Train, or resume training, in a run directory; every rank calls this.

    Args:
        config: settings as given.
        world: this process among those that train together.
        reporter: is given every row of metrics.
        run_location: folder or URL of the run directory; only the leader reads and writes it.
        session: names one launch of a group of workers, so that a restarted group takes over the run at once.
        hooks: called after those of the package.

    Raises:
        InputError: data, settings or the run directory cannot be used.
        Diverged: a loss or gradient became non-finite; the last finite state is saved.
        Stopped: a signal or the reporter ended the run; its state is saved.
        Interrupted: a second signal ended it at once, with the checkpoints that there are.
    """
    check_world(config, world)
    dataset = open_data(config)
    config = resolve_config(config, dataset)
    with noting() as signals:  # from here on there is a run directory, to be left with its true status
        run = open_on_leader(config, dataset, world, run_location, session)
        try:
            with run or nullcontext():
                return Trainer(config, world, dataset, run, reporter or Silent(), signals, hooks).run_to_end()
        finally:
            gc.collect()  # DDP's reducers must be gone before the process group is destroyed


class Trainer:
    """One run on one rank."""

    def __init__(
        self,
        config: Config,
        world: World,
        dataset: Dataset,
        run: RunWriter | None,
        reporter: Reporter,
        signals: Noted | None = None,
        hooks: Sequence[Hook] = (),
    ) -> None:
        self.config, self.world, self.dataset, self.run, self.reporter = config, world, dataset, run, reporter
        self.players, self.average = Players.build(config, world)
        self.draws = Draws(config, world, self.players.dropout_units)
        self.feed = Feed(dataset, self.players.image_range, config, world)
        self.progress, self.damage = Progress(), DamageLog()
        self.samples = FixedSamples(self.players, self.average, config, world)
        self.meter = Meter(config, world, self.feed.stream.batches_per_epoch)
        self.schedule = Schedule(config.training, world.device.type)
        self.votes = Votes(config, world, dataset, self.feed, self.damage, signals or Noted())
        state = TrainingState(self.players, self.average, self.samples, self.feed, self.progress, self.damage)
        self.checkpoints = Checkpointer(config, world, run, state)
        steps = self.schedule.steps
        files = [] if run is None else [RunFiles(run, self.damage, steps), TensorBoard(run)]
        lines = ProgressLines(world, steps, config.training.batch_size)
        self.hooks = Hooks([*files, lines, Launcher(reporter), *hooks])
        self.row: Row | None = None  # the newest one

    def run_to_end(self) -> TrainingResult:
        """Train from the newest checkpoint to the configured step."""
        self.checkpoints.resume()
        step, total = self.progress.step, self.schedule.steps
        if step >= total:
            say(self.world, f"finished already: {step:,} of {total:,} steps in {self._where()}")
            return self._finish()
        self._announce()
        with self.hooks.reporting_errors(self.progress):
            if self.run is not None:
                self.run.set_status("running", step=step, steps=total)
                if step == 0:
                    self._write_real_images(self.run)
                    self._draw_samples()
            self._train()
            return self._finish()

    def _train(self) -> None:
        progress, due_after = self.progress, self.schedule.due
        self.feed.open(progress.step, self.schedule.steps)
        self.meter.start()
        try:
            for step in range(progress.step + 1, self.schedule.steps + 1):
                # Sample a mini-batch of real images: this rank's rows of the global batch.
                with self.meter.waiting():
                    batches = self.feed.take()
                # Update D and G once each, on these and on as many generated images.
                self.players.set_lr(lr_factor(self.config, step))
                self._update(step, self.feed.load(step, batches))
                progress.advance(step, seen=sum(len(batch.images) for batch in batches), lost=self.damage.note(batches))
                due = due_after(step)
                # A rank that cannot read takes part in steps without images until here; such steps are never saved.
                if due.look or due.save:
                    self.votes.raise_failure()
                if due.log:
                    self._log()
                    self._end_if_diverged()
                if due.sample:
                    self._draw_samples()
                if due.look and self.votes.is_too_damaged():
                    self._end_by_damage()
                # A state that is no longer finite is left to the next row, which ends the run.
                is_saved = due.save and self.players.is_finite
                if is_saved:
                    self._save()
                # After the checkpoint of the same step, so that the launcher finds it.
                if due.log:
                    self._report_step()
                if due.look and not due.last:
                    self._stop_if_asked(is_saved=is_saved)
        finally:
            self.feed.close()

    # ------------------------------------------------------------------ one step

    def _update(self, step: int, real: RealImages) -> None:
        """Update each network once: Algorithm 1, or the order of the released code."""
        players, draws = self.players, self.draws
        z, y = draws.noise("train", step)
        dropout_real = draws.dropout("real", step, real.slots)
        dropout_fake = draws.dropout("fake", step, draws.own_slots)
        dropout_generator = draws.dropout("generator", step, draws.own_slots)
        players.begin()
        if self.config.training.updates == "paper":
            # D first. G then learns from the same generated images, judged by the updated D.
            fake = players.generate(z, y)
            players.update_discriminator(
                real.images, real.y, fake.detach(), y, real.global_count, dropout_real, dropout_fake
            )
            players.update_generator(fake, y, dropout_generator)
        else:
            # G first, on noise of its own (its mini-batch of real images goes by), then D by the updated G.
            z_generator, y_generator = draws.noise("train/generator", step)
            players.update_generator(players.generate(z_generator, y_generator), y_generator, dropout_generator)
            with torch.no_grad():
                fake = players.generate(z, y)
            players.update_discriminator(real.images, real.y, fake, y, real.global_count, dropout_real, dropout_fake)
        players.end(real.weight)
        if self.average is not None:
            self.average.update(players.generator.network, step, players.finite)

    # ------------------------------------------------------------------ between steps

    def _log(self) -> None:
        self.row = self.meter.row(self.players, self.samples, self.progress, self.damage)
        if self.config.training.check_replicas:
            check_replicas(self.players, self.average, self.world)
        damage, damage_lines = self.damage.take_unlogged()
        if damage:
            self.row["damage"] = damage
        self.hooks.on_row(self.row)
        for line in damage_lines:
            say(self.world, line)

    def _draw_samples(self) -> None:
        if self.run is not None:
            grids = self.samples.grids(self.progress.step)
            self.hooks.on_samples(self.progress.step, grids)

    def _save(self) -> None:
        self.checkpoints.save()
        if self.checkpoints.newest is not None:
            self.hooks.on_checkpoint(self.progress.step, self.checkpoints.newest)

    def _report_step(self) -> None:
        assert self.row is not None
        self.hooks.on_step_done(self.row, self.checkpoints.newest)

    # ------------------------------------------------------------------ endings, on all ranks at the same step

    def _end_if_diverged(self) -> None:
        """Raise Diverged, after saving and reporting the last finite state, where a loss or gradient was not finite."""
        if self.players.is_finite:
            return
        self.progress.step = self.progress.resumed_at + int(self.players.finite_steps)
        self._save()
        self._report_step()
        raise Diverged(
            f"a loss or gradient became non-finite at step {self.progress.step + 1:,}; the state before it is in "
            f"{self._where()}: try a lower optim.lr"
        )

    def _end_by_damage(self) -> None:
        step = self.progress.step
        if self.progress.last_logged != step:
            self._log()
            self._end_if_diverged()
        lost = self.feed.forget_losses()  # whoever starts the run again knows of them
        self._save()
        self._report_step()
        raise self.votes.damage_error(step, lost)

    def _stop_if_asked(self, *, is_saved: bool) -> None:
        """Save where a checkpoint is overdue; stop with one where a signal or the launcher asks any rank to."""
        number, overdue = self.votes.stop(asked=self.reporter.should_stop(), overdue=self.checkpoints.is_overdue)
        if (number or overdue) and not is_saved:
            if not self.players.is_finite:
                self._log()
                self._end_if_diverged()
            self._save()
        if number:
            raise Stopped(
                number,
                f"stopped at step {self.progress.step:,} of {self.schedule.steps:,} with a checkpoint; the same "
                f"command resumes it: {self._where()}",
            )

    def _finish(self) -> TrainingResult:
        seen, lost = self.progress.total_images(self.world)
        facts = {"step": self.progress.step, "images_seen": seen, "images_lost": lost}
        self.hooks.on_end("finished", "", facts)
        if summary := self.damage.summary(lost):
            say(self.world, summary)
        if left_out := summary_of_left_out(self.dataset.manifest.damage):
            say(self.world, left_out)
        return TrainingResult(self.progress.step, seen, self._where(), self.row)

    # ------------------------------------------------------------------ the start

    def _where(self) -> str:
        return self.run.location if self.run is not None else ""

    def _announce(self) -> None:
        config, dataset, step = self.config, self.dataset, self.progress.step
        start = f"resuming at step {step:,}" if step else "starting"
        size = config.model.image_size
        say(
            self.world,
            f"{start}: {config.model.name} {size}x{size}, {dataset.count:,} images ({shown(config.data.path)}), "
            f"{self.schedule.steps:,} steps of {config.training.batch_size} images on {self.world.size} x "
            f"{self.world.device.type}, {config.training.precision}; run directory {self._where()}",
        )
        for line in lines_of_left_out(dataset.manifest.damage):
            say(self.world, line)

    def _write_real_images(self, run: RunWriter) -> None:
        """Write the first images of the first epoch next to the samples, from the first batch that has any."""
        images = first_images(self.dataset, self.config)
        if isinstance(images, DataError):
            if self.world.size == 1:
                raise images
            self.feed.failure = images  # ends the other ranks, too, by `Votes.raise_failure`
        else:
            run.write_image("real", make_grid(images))
