"""Checkpoints that are whole or absent, and finite."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

logger = logging.getLogger(__name__)

NAME = re.compile(r"step-(\d+)\.ckpt")
BEST = "best.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, renames, syncs the folder: a failed save leaves the old file and no litter.

    Lightning's own stages the file in `$TMPDIR` and copies it over, so that a full disk leaves a torn `last.ckpt`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves a checkpoint dict at `path`.

        Raises:
            OSError: if the disk has no room for it, before anything is written.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        needed, free = size_of(checkpoint), shutil.disk_usage(target.parent).free
        if free < needed:
            raise OSError(
                errno.ENOSPC, f"no room: the checkpoint takes {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free"
            )
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with open(part, "wb") as f:
                torch.save(checkpoint, f)
                f.flush()
                os.fsync(f.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads tensors and plain types only: a checkpoint cannot run code."""
        return load(path)


def size_of(content: Any) -> int:
    """Bytes of all tensors in nested dicts and lists, each storage once."""
    storages: dict[int, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            for child in value.values():
                walk(child)
        elif isinstance(value, list | tuple):
            for child in value:
                walk(child)

    walk(content)
    return sum(storages.values())


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint on the CPU, tensors and plain types only.

    Raises:
        ValueError: if it is not whole, saying so.
        FileNotFoundError: if it is not there.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    if not is_whole(path):
        raise ValueError(f"{path}: not a whole checkpoint (cut or damaged)")
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return checkpoint


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether every part of a checkpoint is there and matches its checksum (torch's format is a zip with CRCs)."""
    try:
        with zipfile.ZipFile(path) as z:
            return z.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError):
        return False


def saved_steps(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of a folder's checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := NAME.fullmatch(path.name))]
    return sorted(found)


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; broken ones are passed over with a warning."""
    for _, path in reversed(saved_steps(folder)):
        if is_whole(path):
            return path
        logger.warning("%s is not whole (cut or damaged): falling back to the one before", path)
    return None


class Checkpoints(Checkpoint):
    """Saves every n steps, at the end of each n-th epoch and of the run; keeps the last k and the best.

    A run whose weights are not finite is never saved. A save that fails (a full disk, say) is reported and training
    goes on; after `max_failures` in a row the run ends.

    Args:
        folder: where they go; set by the command to `RUN/checkpoints`.
        every_n_steps: steps between saves; 0: only by epochs.
        every_n_epochs: epochs between saves; 0: only by steps.
        keep_last: how many are kept.
        monitor: a score of evaluation whose best is kept as `best.ckpt`, such as `knn20/val`. None: no best.
        mode: whether the best score is the largest or the smallest.
        max_failures: failed saves in a row that end the run.
    """

    def __init__(
        self,
        folder: str = "checkpoints",
        every_n_steps: int = 1000,
        every_n_epochs: int = 0,
        keep_last: int = 2,
        monitor: str | None = None,
        mode: str = "max",
        max_failures: int = 3,
    ) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last must be at least 1, got {keep_last}")
        self.folder = Path(folder)
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

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sets aside what a crash left: torn files, and checkpoints newer than the one that could be resumed."""
        self._saved_step = trainer.global_step
        if trainer.is_global_zero and self.folder.is_dir():
            for part in self.folder.glob(".*.part"):
                part.unlink()
            for step, path in saved_steps(self.folder):
                if step > trainer.global_step:
                    path.rename(path.with_suffix(".broken"))

    def on_train_batch_end(  # noqa: D102
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # After an epoch's last batch it is saved when the epoch has been ended, evaluation and all.
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0 and not trainer.is_last_batch:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: D102
        score = trainer.callback_metrics.get(self.monitor) if self.monitor else None
        better = score is not None and (self.best is None or self.sign * (score.item() - self.best) > 0)
        before = self.best
        if better and score is not None:
            self.best = score.item()  # before the save, so that the checkpoint knows it
        due = self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        due = due or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0)
        # A run that ends here or inside the epoch (max_time, say): after this hook its state would not tell which.
        if better or due or trainer.should_stop or not trainer.is_last_batch:
            path = self.save(trainer, epoch_ended=trainer.is_last_batch)
            if better and path is None:
                self.best = before
            elif better and path is not None and trainer.is_global_zero:
                _link(path, self.folder / BEST)

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
        # Under FSDP a rank sees its shard of the weights only: all of them decide together.
        if not trainer.strategy.reduce_boolean_decision(_all_finite(trainer.lightning_module), all=True):
            logger.error("step %d: weights are not finite; not saved", trainer.global_step)
            return None
        problem: Exception | None = None
        content = trainer._checkpoint_connector.dump_checkpoint(False)
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
                old.unlink()
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
    norms = torch._foreach_norm([p.detach() for p in module.parameters() if p.is_floating_point()])
    return bool(torch.stack([norm.float() for norm in norms]).isfinite().all())


def _link(path: Path, name: Path) -> None:
    """A second name for the same file, which stays when the first is pruned."""
    part = name.with_name(f".{name.name}.part")
    part.unlink(missing_ok=True)
    os.link(path, part)
    part.replace(name)
