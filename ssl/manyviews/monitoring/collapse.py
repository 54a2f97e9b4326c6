"""An alarm when embeddings collapse: within minutes, not a week later."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from manyviews.monitoring import diagnostics

logger = logging.getLogger(__name__)


class Collapsed(ValueError):
    """The run was stopped because its embeddings collapsed."""


class CollapseAlarm(pl.Callback):
    """Warns (or stops) when the projections of a batch say the same about every image.

    Complete collapse: their `spread` is near 0. Dimensional collapse: after taking the mean away they span only a few
    directions (RankMe). Both must be seen `patience` times in a row, after `warmup_steps`.

    Args:
        every_n_steps: steps between looks.
        min_spread: of the projections; healthy runs have 0.3 to 1.
        min_rank: smallest centred RankMe of the projections.
        patience: looks in a row.
        warmup_steps: steps before the first look: a fresh network is nearly collapsed.
        stop: end the run instead of only warning.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        min_spread: float = 0.1,
        min_rank: float = 2.5,
        patience: int = 3,
        warmup_steps: int = 100,
        stop: bool = False,
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"collapse.every_n_steps: expected 1 or more, got {every_n_steps}")
        self.every_n_steps, self.min_spread, self.min_rank = every_n_steps, min_spread, min_rank
        self.patience, self.warmup_steps, self.stop = patience, warmup_steps, stop
        self.seen = 0
        self.alarms = 0

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every_n_steps or step < self.warmup_steps:
            return
        projections = outputs["projections"][0][:512]
        # The mean over ranks: all of them come to the same verdict, and stop together.
        spread, rank = (
            float(trainer.strategy.reduce(reading, reduce_op="mean"))
            for reading in (diagnostics.spread(projections), diagnostics.rankme(projections, centre=True))
        )
        if spread >= self.min_spread and rank >= self.min_rank:
            self.seen = 0
            return
        self.seen += 1
        if self.seen < self.patience:
            return
        self.alarms += 1
        reading = (
            f"step {step}: COLLAPSE. spread {spread:.3f} (alarm below {self.min_spread}; 1 is healthy), RankMe of "
            f"the centred projections {rank:.2f} of {projections.shape[1]} (alarm below {self.min_rank}), "
            f"{self.seen} looks in a row"
        )
        if self.stop:
            raise Collapsed(reading + ". Stopped (collapse.stop); resume from a checkpoint before it")
        logger.warning(reading)
        self.seen = 0
