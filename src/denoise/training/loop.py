"""The training loop, one for all modes: sample, predict every split from the others, step; score; keep the best.

In goes a TrainJob, out come checkpoints, a history and a state to resume from in its folder. The loop asks the mode's
table for a sampler and a window and never which mode it is in.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from denoise.archive import first_line
from denoise.arithmetic import exact_float32, fast_layout, resolve_precision, summing_device
from denoise.checkpoint import Checkpoint, TrainState
from denoise.config import render
from denoise.errors import CheckpointError, DeviceError, Interrupted
from denoise.files import write_text
from denoise.launch import StopRequest, World, describe_device, listening_for_signals
from denoise.memory import is_out_of_memory
from denoise.modes import mode_of
from denoise.networks.catalogue import build_network
from denoise.networks.residual import mixing_weights
from denoise.networks.symmetric import SymmetricWeights
from denoise.patches.sampler import BlockPlace
from denoise.run_folder import RunFolder
from denoise.seen import UNKNOWN
from denoise.training.averaging import AveragedWeights
from denoise.training.course import Course
from denoise.training.gradients import Gradients
from denoise.training.job import Observer, Plan, Record, TrainJob
from denoise.training.observers import observers_of
from denoise.training.opening import TrainingData
from denoise.training.optimizer import Optimizers
from denoise.training.part import TrainingPart
from denoise.training.slices_first import SlicesFirst
from denoise.training.state import (
    BEGUN_FROM,
    SEEN,
    Progress,
    keep_stored_bests,
    on_cpu,
    seen_so_far,
    state_to_resume,
)
from denoise.training.validation import Scores, Validator, epochs_between_scores

_log = logging.getLogger(__name__)

#: Reading the loss waits for the device; once in so many steps that is not noticed.
_STEPS_PER_LOSS = 10


def run_worker(world: World, job: TrainJob) -> None:
    """Train; what every process of a run executes.

    Raises
    ------
    Interrupted
        SIGINT or SIGTERM came; the state to resume from was saved.
    DenoiseError
        The data, the resume state or the device cannot be used.
    """
    try:
        run = TrainingRun(world, job)
        try:
            # Not while the splits are read: there is nothing to save yet, and a signal should end that at once.
            with listening_for_signals(world) as stop, exact_float32():
                run.train(stop)
        finally:
            run.close()
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        # One process goes on with parts of its batch (`Gradients`): then not even one block fits.
        blocks = f"{job.batch_size} blocks" if world.size > 1 else "one block"
        lower = "train.batch_size or the patch size" if world.size > 1 else "the patch size"
        raise DeviceError(
            f"the memory of {describe_device(world.device)} is too small for {blocks} of {job.patch_size} voxels a "
            f"side; lower {lower}"
        ) from error


class TrainingRun:
    """A run in one process: network, optimisers, data, and where it stands."""

    def __init__(self, world: World, job: TrainJob) -> None:
        self.world, self.job, self.folder = world, job, RunFolder(job.folder)
        settings = job.settings
        begun = time.monotonic()
        if job.batch_size < world.size:
            raise DeviceError(
                f"train.batch_size is {job.batch_size}, fewer than the {world.size} processes that share it; "
                "raise it or use fewer GPUs"
            )
        self._share = len(world.share(job.batch_size)) / job.batch_size
        state = state_to_resume(job, self.folder, world)
        self._begun_from = state.fingerprint.get(BEGUN_FROM, job.begun_from) if state else job.begun_from
        mode = mode_of(job.network)
        # Training blocks never overlap by plan; overlap and taper matter at inference only.
        self.window = mode.window(job.network, job.patch_size, 0.0, "uniform")
        self.part = TrainingPart.of(job.splits, self.window, settings.validation_fraction, job.train_slices)
        self._seen = seen_so_far(job, self.part, state, self.folder) if world.is_chief else UNKNOWN
        whole = mode.sampler(
            self.part.holdout, self.window, settings.seed, settings.augment, settings.z_stride, job.patches_per_epoch
        )
        self.steps_per_epoch = math.ceil(whole.epoch_size / job.batch_size)
        self.slices_first = SlicesFirst.of(job, self.window, self.steps_per_epoch)
        self.dtype = resolve_precision(settings.precision, world.device)
        self.data = TrainingData.open(job, self.part, whole, self.dtype, world, state)
        self.validator = Validator(
            self.part.holdout,
            self.window,
            self.part.splits.shape,
            strategy=job.objective.strategy,
            batch_size=max(1, job.batch_size // world.size),
            world=world,
        )
        self.validate_every = settings.validate_every or epochs_between_scores(
            self.validator.block_count, self.steps_per_epoch, job.batch_size, world.device.type
        )
        self._build(state)
        self.course = Course(job, world, self.progress, self.steps_per_epoch, begun)
        if job.config is not None and world.is_chief:
            done = {"max_minutes": self.course.minutes}
            if settings.symmetric:
                done["symmetric"] = self.progress.symmetric
            section = job.config.train.model_copy(update=done)
            write_text(self.folder.config, render(job.config.model_copy(update={"train": section})))

    def _build(self, state: TrainState | None) -> None:
        settings, world = self.job.settings, self.world
        torch.manual_seed(settings.seed)
        network = build_network(self.job.network)
        if self.job.initial is not None:
            network.load_state_dict(self.job.initial)
        self.network = fast_layout(network).to(world.device)
        self.symmetric = SymmetricWeights.of(self.network) if self._wants_symmetry(state) else None
        if self.symmetric and self.job.initial is None and state is None:
            self.symmetric.impose()
        self._weights, self._mixing = list(self.network.parameters()), mixing_weights(self.network)
        self.averaged = AveragedWeights(self.network, self.job.ema_decay) if self.job.ema_decay else None
        muon = self.job.muon if state is None or Optimizers.had_muon(state.optimizer) else None
        self.optimizers = Optimizers(self.network, self.job.adam, muon, self.job.schedule.peak, world.device)
        self.progress = Progress()
        self._saved_at = time.monotonic()
        self._has_saved = state is not None
        if state is not None:
            self._restore(state)
        if self.symmetric and not self.symmetric.hold:  # begun from a model that is not
            self.symmetric = None
        self.progress.symmetric = self.symmetric is not None
        if settings.symmetric and not self.symmetric and world.is_chief:
            _log.warning(
                "train.symmetric: true has no effect on this run: it began without (it, or the model that it began "
                "from, treats directions differently), or its network is not a residual one of at least 16 channels"
            )
        self.progress.division = self.data.division.as_plain() if self.data.division else None
        self.parallel: nn.Module = (
            DistributedDataParallel(self.network, gradient_as_bucket_view=True) if world.size > 1 else self.network
        )
        self.gradients = Gradients(
            self.parallel, self.job.objective, self.window, world, dtype=self.dtype, share=self._share
        )

    def _wants_symmetry(self, state: TrainState | None) -> bool:
        """As the run began; of a new one as the config says, or as its data are many."""
        begun = state.progress.get("symmetric") if state else None
        return self.part.wants_symmetry(self.job.settings) if begun is None else bool(begun)

    @property
    def plan(self) -> Plan:
        """What this run is going to do."""
        return Plan(
            epochs=self.job.settings.max_epochs,
            steps_per_epoch=self.steps_per_epoch,
            first_step=self.progress.step,
            minutes=self.course.minutes,
            blocks_per_step=self.job.batch_size,
            validation_blocks=self.validator.block_count,
            validate_every=self.validate_every,
            device=describe_device(self.world.device),
            precision=str(self.dtype).removeprefix("torch."),
            processes=self.world.size,
            parameters=sum(p.numel() for p in self.network.parameters()),
        )

    def train(self, stop: StopRequest) -> None:
        """Run to the last epoch or minute, or until the held-out score stops improving, or until a signal comes."""
        observers = observers_of(self.job, self.folder) if self.world.is_chief else []
        if self.world.is_chief and self.course.minutes and not self.job.settings.max_minutes:
            _log.info("this run was given %g minutes; --max-minutes gives it others", self.course.minutes)
        try:
            for observer in observers:
                observer.started(self.plan)
            while self.course.done < 1.0 or not self.progress.is_scored:
                self._epoch(observers, stop)
                if self.course.done >= 1.0 or self.progress.epoch % self.validate_every == 0:
                    self._validate(observers)
            self._save_state()
        finally:
            for observer in observers:
                observer.close()
        if self.world.is_chief:
            _log.info("training ended after %d steps: %s", self.progress.step, self.course.reason)

    def _epoch(self, observers: Sequence[Observer], stop: StopRequest) -> None:
        progress = self.progress
        self.parallel.train()
        last = time.monotonic()
        losses = torch.zeros((), dtype=torch.float64, device=summing_device(self.world.device))
        for blocks in self.data.source.batches(self._places()):
            loss = self._step(blocks, self.course.rate)
            losses += loss.to(losses.device) * self._share
            progress.step += 1
            progress.step_in_epoch += 1
            progress.loss_steps += 1
            now = time.monotonic()
            progress.seconds, last = progress.seconds + now - last, now
            read_now = progress.step % _STEPS_PER_LOSS == 0
            for observer in observers:
                observer.stepped(progress.step, progress.epoch, self.course.done, float(loss) if read_now else None)
            stopping = self.course.agree(stop.is_set)
            if stopping or now - self._saved_at > 60 * self.job.settings.save_every_minutes:
                progress.loss_sum, losses = progress.loss_sum + float(losses), torch.zeros_like(losses)
                self._require_finite("training loss", progress.loss_sum)
                self._save_state()
            if stopping:
                self._stop(stop)
            if self.course.done >= 1.0:
                break
        progress.loss_sum += float(losses)
        if not self._has_saved:
            # Before the first score: where there is a model, there is a state to resume from.
            self._require_finite("training loss", progress.loss_sum)
            self._save_state()
        if progress.step_in_epoch == self.steps_per_epoch:
            progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0

    def _places(self) -> Iterator[list[BlockPlace]]:
        """For every step left in this epoch, the blocks that fall to this process."""
        batch, epoch = self.job.batch_size, self.progress.epoch
        share = self.world.share(batch)
        if self.course.done >= 1.0:  # stopped after its last step, before that was scored
            return
        for step in range(self.progress.step_in_epoch, self.steps_per_epoch):
            places = self.data.sampler.places(epoch, [step * batch + i for i in share])
            yield self.slices_first.places(places, epoch * self.steps_per_epoch + step, self.course.done)

    def _step(self, blocks: Tensor, rate: float) -> Tensor:
        self.optimizers.set_rate(rate)
        loss = self.gradients.of(blocks, with_lcl=self.progress.step >= self.job.settings.warmup_steps)
        if self.slices_first.made(blocks):
            # Zero for most of them, and Adam takes what follows on many zeros for huge: it must not see them yet.
            for weights in self._mixing:
                weights.grad = None
        if self.symmetric:
            self.symmetric.project_gradients()
        if self.job.settings.gradient_clip:
            nn.utils.clip_grad_norm_(self._weights, self.job.settings.gradient_clip)
        self.optimizers.step()
        self.optimizers.forget_gradients()
        if self.averaged is not None:
            self.averaged.update(self.progress.step + 1)
        return loss

    def _validate(self, observers: Sequence[Observer]) -> None:
        progress, begun = self.progress, time.monotonic()
        model = self.averaged.model if self.averaged is not None else self.network
        model.eval()
        scores, preview = self.validator.scores(model, self.data.source, self.dtype)
        self._require_finite("held-out score", scores.l1)
        loss_sum = self.world.sum(torch.tensor(progress.loss_sum, dtype=torch.float64))
        improved = self._improved(scores)
        if self.world.is_chief:
            for criterion in improved:
                self._checkpoint(criterion, model, scores).save(self.folder.model(criterion))
        self.course.scored(scores.mse, time.monotonic() - begun)
        record = Record(
            epoch=progress.epochs_begun,
            step=progress.step,
            seconds=round(progress.seconds, 3),
            done=round(self.course.done, 4),
            learning_rate=self.course.rate,
            train_loss=float(loss_sum) / max(1, progress.loss_steps),
            scores=scores,
            blocks_per_second=round(progress.step * self.job.batch_size / max(progress.seconds, 1e-9), 3),
            improved=improved,
        )
        progress.loss_sum, progress.loss_steps = 0.0, 0
        for observer in observers:
            observer.validated(record, preview)

    def _require_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise DeviceError(
                f"the {what} became {value} after {self.progress.step} steps: training diverged; lower "
                "train.learning_rate, or set train.precision: float32"
            )

    def _improved(self, scores: Scores) -> tuple[str, ...]:
        """Which of the three bests these scores beat; the sharpness scores count after the warm-up only."""
        progress = self.progress
        candidates = {"val": getattr(scores, self.job.chosen_by)}
        if progress.step >= self.job.settings.warmup_steps:
            candidates |= {"lcl": scores.lcl, "edge": -scores.edge}
        improved = tuple(name for name, value in candidates.items() if value < progress.best.get(name, math.inf))
        progress.best |= {name: candidates[name] for name in improved}
        if "val" in improved:
            progress.best_epoch = progress.epochs_begun
        return improved

    def _checkpoint(self, criterion: str, model: nn.Module, scores: Scores) -> Checkpoint:
        return Checkpoint(
            network=self.job.network,
            weights=on_cpu(model.state_dict()),
            normalization=self.data.source.normalization,
            patch_size=self.job.patch_size,
            strategy=self.job.objective.strategy,
            criterion=criterion,
            epoch=self.progress.epochs_begun,
            step=self.progress.step,
            scores=asdict(scores),
            sample=self.job.sample,
            seen=self._seen,
        )

    def _stop(self, stop: StopRequest) -> None:
        self.world.barrier()  # nobody leaves before the chief has saved: the launcher ends the others when one is gone
        number = stop.signal_number or 15
        progress = self.progress
        raise Interrupted(
            number,
            f"stopped in epoch {progress.epoch + 1} after {progress.step} steps; the state is saved in "
            f"{self.folder.path}, the same command with --resume continues from it",
        )

    def _save_state(self) -> None:
        self._saved_at, self._has_saved = time.monotonic(), True
        self.progress.elapsed = self.course.seconds
        if not self.world.is_chief:
            return
        TrainState(
            fingerprint={
                **self.job.fingerprint(),
                BEGUN_FROM: self._begun_from,
                SEEN: self._seen.as_plain(),
            },
            model=on_cpu(self.network.state_dict()),
            ema=on_cpu(self.averaged.model.state_dict()) if self.averaged is not None else None,
            optimizer=self.optimizers.state(),
            # Of all processes, of which each has about its share: it may go on with another number of them.
            progress={**asdict(self.progress), "loss_sum": self.progress.loss_sum / self._share},
            normalization=self.data.source.normalization,
            generator=torch.get_rng_state(),
        ).save(self.folder.state)

    def _restore(self, state: TrainState) -> None:
        try:
            self.network.load_state_dict(state.model)
            if self.averaged is not None and state.ema is not None:
                self.averaged.model.load_state_dict(state.ema)
            self.optimizers.restore(state.optimizer)
            self.progress = Progress.stored(state.progress)
            self.progress.loss_sum *= self._share
            torch.set_rng_state(state.generator)
            keep_stored_bests(self.progress, self.folder, self.job.chosen_by)
            self.progress.best = self.world.from_chief(self.progress.best)
            self.progress.best_epoch = self.world.from_chief(self.progress.best_epoch)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self.folder.state} does not fit this run ({first_line(error)}); it is damaged, start a new run with "
                "another --output-dir"
            ) from error

    def close(self) -> None:
        """Release data and threads."""
        self.data.source.close()
