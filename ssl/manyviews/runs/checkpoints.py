"""When a run's checkpoints are saved, which are kept, and that none is of weights that are not finite."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from manyviews.internals import callbacks, state_of
from manyviews.names import meant
from manyviews.runs.storage import alias, remove, saved_steps, sidecar
from manyviews.sharding import norms

logger = logging.getLogger(__name__)

BEST = "best.ckpt"
OURS = ("manyviews.", "viewshards.", "lightning.")
"""Callbacks of these modules give a score only if they have `scores`."""


class Checkpoints(Checkpoint):
    """Saves every n steps, at the end of each n-th epoch and of the run; keeps the last k and the best.

    A run whose weights are not finite is never saved. A save that fails (a full disk, say) is reported and training
    goes on; after `max_failures` in a row the run ends.

    Args:
        folder: where they go; set by the command to `RUN/checkpoints`.
        every_n_steps: steps between saves; 0: only by epochs.
        every_n_epochs: epochs between saves; 0: only by steps.
        keep_last: how many are kept.
        monitor: the value that is compared at the end of each epoch, whose best is kept as `best.ckpt`: a score of
            evaluation such as `val/knn20`, or the last reading, such as `representation/rankme_features`. None: no
            best.
        mode: `max` if the largest is the best, `min` if the smallest is.
        max_failures: failed saves in a row that end the run.
    """

    def __init__(
        self,
        folder: str = "checkpoints",
        every_n_steps: int = 1000,
        every_n_epochs: int = 0,
        keep_last: int = 2,
        monitor: str | None = None,
        mode: Literal["max", "min"] = "max",
        max_failures: int = 3,
    ) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last must be at least 1, got {keep_last}")
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', got {mode!r}")
        self.folder = Path(folder)
        if min(every_n_steps, every_n_epochs) < 0:
            raise ValueError(f"checkpoints: every_n_steps {every_n_steps}, every_n_epochs {every_n_epochs}: 0 or more")
        self.every_n_steps, self.every_n_epochs, self.keep_last = every_n_steps, every_n_epochs, keep_last
        self.monitor, self.sign, self.max_failures = monitor, 1 if mode == "max" else -1, max_failures
        self.best: float | None = None
        self.failures = 0
        self._saved_step = self._failed_step = -1

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the best score so far."""
        self.best = state_dict["best"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses a score that nobody will give."""
        others = [c for c in callbacks(trainer) if hasattr(c, "scores") or not type(c).__module__.startswith(OURS)]
        if self.monitor is not None and self.monitor.startswith("val/") and not others:
            raise ValueError(
                f"checkpoints.monitor is {self.monitor!r}, but nothing is evaluated: add "
                "manyviews.evaluation.Evaluation to trainer.callbacks"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sets aside what a crash left: torn files, and checkpoints newer than the one that could be resumed."""
        self._saved_step = trainer.global_step
        if trainer.is_global_zero and self.folder.is_dir():
            for part in self.folder.glob(".*.part"):
                part.unlink()
            for seal in self.folder.glob("*.sha256"):
                if not seal.with_suffix("").exists():
                    seal.unlink()
            for step, path in saved_steps(self.folder):
                if step > trainer.global_step:
                    aside = path.with_suffix(".broken")
                    path.rename(aside)
                    if sidecar(path).exists():
                        sidecar(path).rename(sidecar(aside))

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 1 and self.monitor is not None and not re.search(r"\bval\b|^train/", self.monitor):
            # Scores come with the first evaluation, some of train/ later; the user's own classes log what they like.
            known = self._found(trainer)
            own = [part for part in (*callbacks(trainer), pl_module) if not type(part).__module__.startswith(OURS)]
            if not own or self.monitor.partition("/")[0] in {name.partition("/")[0] for name in known}:
                self._look_up(known)
        # After an epoch's last batch it is saved when the epoch has been ended, evaluation and all.
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0  # between two there are gradients to be lost
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        if due and is_step and not trainer.is_last_batch:
            self.save(trainer)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        try:
            score = self._score(trainer)
        except ValueError:
            self.save(trainer, epoch_ended=trainer.is_last_batch)  # what was trained is not lost with the mistake
            raise
        better = score is not None and (self.best is None or self.sign * (score - self.best) > 0)
        before = self.best
        if better:
            self.best = score  # before the save, so that the checkpoint knows it
        due = self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        due = due or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0)
        # A run that ends here or inside the epoch (max_time, say): after this hook its state would not tell which.
        if better or due or trainer.should_stop or not trainer.is_last_batch:
            path = self.save(trainer, epoch_ended=trainer.is_last_batch)
            if better and path is None:
                self.best = before
            elif better and path is not None and trainer.is_global_zero:
                try:
                    alias(path, self.folder / BEST)
                except (OSError, ValueError) as error:
                    logger.error("%s not renewed: %s", self.folder / BEST, error)
                    self.best = before

    def _score(self, trainer: pl.Trainer) -> float | None:
        """What the best is chosen by, the same on all ranks; None as long as nothing has been evaluated.

        Raises:
            ValueError: if what there is has another name.
        """
        if self.monitor is None:
            return None
        found = self._found(trainer)
        waits = any(getattr(callback, "scores", None) == {} for callback in callbacks(trainer))
        return None if waits and self.monitor not in found else self._look_up(found)

    @staticmethod
    def _found(trainer: pl.Trainer) -> dict[str, float]:
        """Readings, scores and what was logged, as the first rank knows it."""
        found: dict[str, float] = {}
        for callback in callbacks(trainer):
            found |= (getattr(callback, "latest", None) or {}) | (getattr(callback, "scores", None) or {})
        found |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        return trainer.strategy.broadcast(found)

    def _look_up(self, found: dict[str, float]) -> float:
        assert self.monitor is not None
        if self.monitor not in found:
            raise ValueError(f"checkpoints.monitor: there is no {self.monitor!r}" + meant(self.monitor, found))
        return found[self.monitor]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The run's last checkpoint.

        Raises:
            OSError: if it could not be saved: the run is not finished then.
        """
        if self.save(trainer) is None:
            raise OSError(
                f"step {trainer.global_step}, the last one, could not be saved in {self.folder}: mend what the error "
                "above says and give the same command again"
            )

    def save(self, trainer: pl.Trainer, epoch_ended: bool = False) -> Path | None:
        """Saves now, on all ranks together, unless this step is saved already. Returns the path, None if it failed.

        Args:
            trainer: at a batch boundary, or in `on_train_epoch_end`.
            epoch_ended: whether all of the epoch's batches were seen.
        """
        path = self.folder / f"step-{trainer.global_step:08d}.ckpt"
        if trainer.global_step == self._saved_step:
            return path
        if not _all_finite(trainer.lightning_module):  # the same on all ranks
            logger.error("step %d: weights are not finite; not saved", trainer.global_step)
            return None
        problem: Exception | None = None
        content = state_of(trainer)
        _mark_epoch(content["loops"]["fit_loop"], epoch_ended)
        try:
            trainer.strategy.save_checkpoint(content, path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            problem = error
        # Only the rank that writes knows; Trainer.save_checkpoint would leave the others waiting for it.
        if trainer.strategy.reduce_boolean_decision(problem is not None, all=False):
            self.failures += self._failed_step != trainer.global_step
            self._failed_step = trainer.global_step
            logger.error("checkpoint %s not saved (%s); failure %d in a row", path, problem, self.failures)
            if self.failures >= self.max_failures:
                raise OSError(f"{path}: {self.failures} saves in a row failed") from problem
            return None
        self.failures, self._saved_step = 0, trainer.global_step
        if trainer.is_global_zero:
            for _, old in saved_steps(self.folder)[: -self.keep_last]:
                remove(old)
        return path


def _mark_epoch(loop: dict[str, Any], ended: bool) -> None:
    """Lets Lightning resume at the start of the next epoch, or inside this one.

    At `on_train_epoch_end` its own state says neither: the epoch is processed but not completed. With `max_steps` it
    would put the first batch of the next epoch into this one, and a run stopped inside would skip the rest of it.
    """
    source, target = ("processed", "completed") if ended else ("completed", "processed")
    for progress in ("total", "current"):
        loop["epoch_progress"][progress][target] = loop["epoch_progress"][progress][source]
    if ended:
        batches = loop["epoch_loop.batch_progress"]
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False


def _all_finite(module: torch.nn.Module) -> bool:
    return bool(norms(p.detach() for p in module.parameters() if p.is_floating_point()).isfinite().all())
