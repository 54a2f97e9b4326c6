"""The random state of every rank, in the checkpoint."""

from __future__ import annotations

import logging
import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from typing_extensions import override

logger = logging.getLogger(__name__)


class RandomState(pl.Callback):
    """Dropout and everything else that draws on the device goes on as if nothing had happened.

    Data does not draw from these states: its numbers come from (seed, epoch, sample). With another number of ranks
    their states cannot be kept; every rank then starts from one seeded by (seed, rank, step).
    """

    KEY = "manyviews_random_states"

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] | None = None

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states = [capture(pl_module.device)]
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, states[0])
            states = gathered
        checkpoint[self.KEY] = states

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._states = checkpoint.get(self.KEY)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._states is None:
            if trainer.world_size > 1:  # all ranks were seeded alike, to build the same model
                _seed_apart(trainer)
        elif len(self._states) == trainer.world_size:
            restore(self._states[trainer.global_rank], pl_module.device)
        else:
            logger.warning(
                "resumed on %d ranks from a checkpoint of %d: global batches are the same sets of samples, random "
                "states (dropout) start anew",
                trainer.world_size,
                len(self._states),
            )
            _seed_apart(trainer)
        self._states = None


def _seed_apart(trainer: pl.Trainer) -> None:
    """A state of its own for each rank: a function of (seed, rank, step)."""
    key = np.random.SeedSequence([torch.initial_seed(), trainer.global_rank, trainer.global_step])
    pl.seed_everything(int(key.generate_state(1)[0]), verbose=False)


def capture(device: torch.device) -> dict[str, Any]:
    """The states of torch (CPU and device), NumPy and Python, as tensors and plain types."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [str(name), torch.from_numpy(np.array(keys, dtype=np.int64)), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }


def restore(state: dict[str, Any], device: torch.device) -> None:
    """Puts back what `capture` gave."""
    torch.set_rng_state(state["torch"])
    if state["device"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["device"], device)
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
