"""Non-finite steps and signals: what must not silently ruin or lose a run."""

from __future__ import annotations

import logging
import signal
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from manyviews import signals
from manyviews.internals import callbacks, foreach_copy_, leave_signals
from manyviews.runs.checkpoints import Checkpoints
from manyviews.sharding import norms

logger = logging.getLogger(__name__)


class FiniteGuard(pl.Callback):
    """Skips a step whose gradient or loss is not finite, counts it, and ends the run after `patience` in a row.

    A skipped step changes nothing: no weight, no momentum, no decay, and no buffer, since a forward through NaN has
    already ruined running statistics (and may have filled a queue). The gradient's norm, known anyway, is logged.

    Under `16-mixed` an overflow of the scaled gradient is no fault: the scaler then tries half its scale. While it can,
    such steps are skipped and counted too, but no patience is lost over them.

    Args:
        patience: non-finite steps in a row that end the run.
    """

    def __init__(self, patience: int = 10) -> None:
        self.patience = patience
        self.skipped = self.in_a_row = 0
        self._kept: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """How many steps were skipped."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the counts."""
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        buffers = list(pl_module.buffers())
        if len(self._kept) != len(buffers):
            self._kept = [buffer.clone() for buffer in buffers]
        elif buffers:
            foreach_copy_(self._kept, buffers)

    @override
    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """After the backward (and DDP's reduction, so all ranks decide alike), before clipping and the step."""
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not grads:
            return
        norm = torch.linalg.vector_norm(norms(grads))
        readings: dict[str, Tensor] | None = getattr(pl_module, "readings", None)
        if readings is not None:
            readings["grad_norm"] = norm
        if bool(norm.isfinite() & self._loss.isfinite()):  # the same on all ranks
            self.in_a_row = 0
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        is_search = scaler is not None and scaler.get_scale() > 1 and bool(self._loss.isfinite())
        self.skipped += 1
        self.in_a_row += not is_search
        logger.warning("step %d: loss %s, gradient norm %s; step skipped", trainer.global_step, self._loss, norm)
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = None
        if self._kept:
            foreach_copy_(list(pl_module.buffers()), self._kept)
        if self.in_a_row >= self.patience:
            raise FloatingPointError(
                f"{self.in_a_row} steps in a row had a non-finite gradient (last at step {trainer.global_step}). The "
                "weights are those before the first of them. Lower the learning rate, lengthen the warm-up, or clip "
                "(trainer.gradient_clip_val); resume from the newest checkpoint"
            )


class Patience(pl.Callback):
    """Limits how long ranks wait for each other, from the end of the first step on.

    Until then another, longer limit holds, which the process group is made with: ranks start at different times,
    import, read their first shards and compile, and none of that means that one of them has died.

    Args:
        seconds: that a collective may wait.
    """

    def __init__(self, seconds: float) -> None:
        self.limit: timedelta | None = timedelta(seconds=seconds)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.limit is None or trainer.world_size == 1:
            return
        # The function is public under another name from torch 2.14 on.
        set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
        mesh = pl_module.device_mesh
        for group in [None, *(mesh.get_all_groups() if mesh is not None else [])]:
            set_timeout(self.limit, group)
        self.limit = None


class Stopped(BaseException):
    """Training was stopped by a signal at a batch boundary.

    Args:
        signum: of the signal.
        saved: whether a checkpoint holds all that was done.
    """

    def __init__(self, signum: int, saved: bool) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum, self.saved = signum, saved


class StopOnSignal(pl.Callback):
    """SIGINT, SIGTERM and SIGUSR1 only set a flag; at the next batch boundary all ranks agree, save and leave.

    It does not matter which of the ranks get the signal. A second SIGINT breaks off at once.

    Args:
        every_n_steps: how often ranks ask each other; one process looks after every step.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps
        self._before: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Takes over the handlers."""
        leave_signals(trainer)
        self._before = signals.listen(*signals.ALL)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A signal that came while the run was being set up: nothing has to be saved."""
        if self._agree(trainer, pl_module):
            raise self._stopped(saved=True)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # After an epoch's last batch the epoch is ended first, evaluation and all: nothing of it has to be repeated.
        # Between two steps there are gradients that no checkpoint has.
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        asks = trainer.world_size == 1 or trainer.global_step % self.every_n_steps == 0
        if is_step and asks and not trainer.is_last_batch:
            self._leave(trainer, pl_module, epoch_end=False)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._leave(trainer, pl_module, epoch_end=True)

    def _leave(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch_end: bool) -> None:
        if not self._agree(trainer, pl_module):
            return
        kept = []
        for callback in callbacks(trainer):
            if isinstance(callback, Checkpoints):
                if epoch_end:  # its turn would come after this: the epoch's score may be the best
                    callback.on_train_epoch_end(trainer, pl_module)
                kept.append(callback.save(trainer, epoch_end and trainer.is_last_batch))
        raise self._stopped(saved=bool(kept) and all(path is not None for path in kept))

    def _agree(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        if trainer.world_size == 1:
            return signals.received is not None
        flag = torch.tensor(signals.received or 0, device=pl_module.device)
        highest = int(trainer.strategy.reduce(flag, reduce_op="max"))
        if highest:  # otherwise left alone: a signal that came during the reduction counts next time
            signals.received = highest
        return highest > 0

    def _stopped(self, saved: bool) -> Stopped:
        number, signals.received = signals.received, None
        assert number is not None
        return Stopped(number, saved)

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the handlers back."""
        signals.restore(self._before)
        self._before = {}
