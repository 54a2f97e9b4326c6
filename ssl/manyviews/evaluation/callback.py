"""Protocols during training: every n epochs, on the frozen backbone of the moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from torch import nn
from typing_extensions import override

from manyviews import distributed
from manyviews.evaluation import plots
from manyviews.evaluation.features import Features, extract, prepared
from manyviews.evaluation.joint import JointProtocol
from manyviews.evaluation.knn import KNN
from manyviews.evaluation.protocol import Protocol, Result, about, fingerprint, result_path, save
from manyviews.internals import BatchNorm
from manyviews.monitoring.monitor import tensorboards
from manyviews.sharding import whole


class Evaluation(pl.Callback):
    """Runs protocols on the data module's train and val splits; scores are called `val/NAME`.

    It needs a data module with `evaluation_loader(split)` and `on_after_batch_transfer`, and a method with `embed`.
    It leaves no trace in training: no gradient, no random numbers, and of statistics only that ranks share those of
    rank 0.

    Args:
        protocols: what is evaluated; features are computed once for all of them.
        every_n_epochs: epochs between evaluations; the last epoch is always evaluated.
        folder: results go to its `evaluations`; `manyviews fit` gives the run's. None: the first logger's.
    """

    def __init__(
        self, protocols: Sequence[Protocol] | None = None, every_n_epochs: int = 10, folder: str | None = None
    ) -> None:
        self.protocols = list(protocols) if protocols is not None else [KNN()]
        self.every_n_epochs, self.folder = every_n_epochs, folder
        if every_n_epochs < 1:
            raise ValueError(f"Evaluation.every_n_epochs: expected 1 or more, got {every_n_epochs}")
        names = [_named(protocol) for protocol in self.protocols]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"Evaluation.protocols: {twice[0]} stands there twice with the same settings")
        self.scores: dict[str, float] = {}
        """Of the last evaluation, by `val/NAME`: what `checkpoints.monitor` may choose by."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks at one batch of each split, so that what cannot be evaluated is known now and not after ten epochs."""
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "evaluation_loader"):
            raise ValueError("Evaluation needs a data module with evaluation_loader(split), such as ShardDataModule")
        for protocol in self.protocols:
            protocol.ready(pl_module, data)
        for split in ("train", "val"):
            batch = next(iter(data.evaluation_loader(split, batch_size=32)))
            for protocol in self.protocols:
                protocol.check(batch)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every_n_epochs and not _is_last(trainer):
            return
        data: Any = getattr(trainer, "datamodule", None)
        found: dict[str, tuple[Protocol, Result]] = {}
        frozen = [protocol for protocol in self.protocols if not protocol.joint]
        _share_statistics(pl_module)
        with whole(pl_module):
            for protocol in self.protocols:
                if isinstance(protocol, JointProtocol):  # all ranks take part
                    found[_named(protocol)] = protocol, protocol.measure(pl_module, data)
            if frozen:
                train, val = (features_of(pl_module, data, split) for split in ("train", "val"))
        if trainer.is_global_zero:
            found |= {_named(protocol): (protocol, protocol.evaluate(train, val)) for protocol in frozen}
            scores = _scores([found[_named(protocol)] for protocol in self.protocols])
            self._write(trainer, found, scores)
        else:
            scores = {}
        self.scores = scores = trainer.strategy.broadcast(scores, src=0)
        for name, score in scores.items():  # so that Checkpoints can choose by them
            pl_module.log(name, score, logger=False)

    def _write(self, trainer: pl.Trainer, found: dict[str, Any], scores: dict[str, float]) -> None:
        for board in trainer.loggers:
            board.log_metrics(scores, step=trainer.global_step)
        if self.folder is None and not trainer.loggers:
            return
        folder = Path(self.folder or trainer.log_dir or trainer.default_root_dir)
        data: Any = getattr(trainer, "datamodule", None)
        for name, (protocol, result) in found.items():
            path = result_path(folder, protocol, data, trainer.global_step)
            save(path, protocol, result, {"online": True, **about(data, trainer.global_step)})
            if result.confusion is not None and (boards := tensorboards(trainer)):
                picture = plots.confusion(result.confusion, data.classes)
                alone = sum(other.title == protocol.title for other, _ in found.values()) == 1
                tag = f"pictures/confusion_{protocol.title if alone else name}"
                for board in boards:
                    board.add_image(tag, picture, trainer.global_step, dataformats="HWC")


def _named(protocol: Protocol) -> str:
    return "-".join(part for part in (protocol.title, protocol.settings()) if part)


def _scores(found: list[tuple[Protocol, Result]]) -> dict[str, float]:
    """By `val/NAME`; where two protocols give one NAME that of the later is `val/TITLE-SETTINGS/NAME`."""
    scores: dict[str, float] = {}
    for protocol, result in found:
        for name, score in result.scores.items():
            scores[f"val/{name}" if f"val/{name}" not in scores else f"val/{_named(protocol)}/{name}"] = score
    return scores


def features_of(module: Any, data: Any, split: Any, embed: Any = None) -> Features:
    """Features of a split of a data module, over all ranks, on the module's device."""
    gather = distributed.current()
    found = extract(module, embed or module.embed, prepared(module, data, split, gather), gather)
    found.shards = fingerprint(data, split)
    return found


def _share_statistics(module: nn.Module) -> None:
    """BatchNorm's running statistics of rank 0, which are those of the checkpoint, to all ranks.

    Each rank has those of its own batches, of the last one under DDP and of all under fsdp2. Training reads none.
    """
    if dist.is_available() and dist.is_initialized():
        for part in module.modules():
            if isinstance(part, BatchNorm):
                for statistics in part.buffers(recurse=False):
                    dist.broadcast(statistics, 0)


def _is_last(trainer: pl.Trainer) -> bool:
    steps_done = 0 < trainer.max_steps <= trainer.global_step
    epochs_done = trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch + 1
    return steps_done or epochs_done
