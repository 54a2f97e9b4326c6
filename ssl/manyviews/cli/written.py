"""What a run writes down of itself: its configuration, of which it can be built again."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import Namespace

from manyviews import foreign
from manyviews.monitoring.monitor import tensorboards
from manyviews.runs import RunFolder


def spell_out(config: Namespace) -> None:
    """Puts class path and arguments in the place of a default that is `functools.partial(torch.optim.SGD, lr=0.1)`.

    What is written down of a run can then be read again, and stays the same when a default changes.
    """
    for key, value in list(config.items()):
        if isinstance(value, functools.partial) and inspect.isclass(value.func) and not value.args:
            class_path = f"{value.func.__module__}.{value.func.__qualname__}"
            usual = {
                name: parameter.default
                for name, parameter in inspect.signature(value.func).parameters.items()
                if parameter.default is not parameter.empty
            }  # as the parser writes them, which reads this again
            config[key] = Namespace(class_path=class_path, init_args=Namespace(**usual | value.keywords))


def check_written(config: Any, where: str = "") -> None:
    """Refuses what could not be built again from its configuration: evaluation, export and resuming have no other.

    Raises:
        ValueError: naming the option.
    """
    if isinstance(config, dict | list):
        for key, value in config.items() if isinstance(config, dict) else enumerate(config):
            check_written(value, f"{where}.{key}" if where else str(key))
    elif isinstance(config, str) and config.startswith(NOT_WRITTEN):
        what = config.removeprefix(NOT_WRITTEN)
        raise ValueError(
            f"{where.replace('.init_args', '')}: its default ({what.strip()}) cannot be written down, so the run could "
            "not be evaluated or resumed: give the option as class_path and init_args"
        )


NOT_WRITTEN = "Unable to serialize instance"
"""With which the parser begins what it puts in the place of a value."""


class Written(pl.Callback):
    """The resolved configuration in the run's folder, in TensorBoard, and in every checkpoint."""

    def __init__(self, folder: RunFolder, config: dict[str, Any]) -> None:
        self.folder, self.config = folder, config
        self.parent: dict[str, Any] | None = None
        """Of the run that this one begins with."""

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The configuration goes along."""
        checkpoint[foreign.CONFIG_KEY] = self.config

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes it into the folder, and to all loggers."""
        if trainer.is_global_zero:
            self.folder.write(self.config, self.parent)
        first = trainer.strategy.broadcast(trainer.global_step)
        if first != trainer.global_step:
            raise OSError(
                f"rank {trainer.global_rank} found step {trainer.global_step} in {self.folder.checkpoints}, rank 0 "
                f"found step {first}: is it on a file system that all nodes share?"
            )
        if trainer.ckpt_path is None:
            for logger in trainer.loggers:
                logger.log_hyperparams({key: self.config[key] for key in ("model", "data", "seed_everything")})
            text = f"```yaml\n{yaml.safe_dump(self.config, sort_keys=False)}```"
            for board in tensorboards(trainer):
                board.add_text("config", text, trainer.global_step)
