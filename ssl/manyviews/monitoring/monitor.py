"""Readings in TensorBoard, at next to no cost a step.

Nothing is logged every step: `self.log` costs 0.6 ms of CPU a call whatever `log_every_n_steps` says. Scalars stay on
the device and are fetched together every n steps; everything that takes a computation is computed then.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table
from torch import Tensor
from typing_extensions import override

from manyviews.backbones import views_of
from manyviews.internals import callbacks
from manyviews.monitoring import diagnostics, pictures
from manyviews.monitoring.board import watch
from manyviews.runs.faults import FiniteGuard
from manyviews.runs.ledger import Ledger

LOOKED_AT = 512
"""Images of a batch that the diagnostics look at."""


@runtime_checkable
class Draws(Protocol):
    """A method with pictures of its own."""

    def pictures(self) -> dict[str, list[Tensor]]:
        """Of the last step: by name a list of views, drawn as columns."""
        ...


class Monitor(pl.Callback):
    """Loss, lr, gradient norm, temperature, similarities, alignment, uniformity, RankMe, spread, throughput, pictures.

    Args:
        every_n_steps: steps between readings, at most; a shorter run is read at least ten times, or in every step. The
            first step and the last are always read.
        pictures_every_n_steps: steps between pictures (views, similarity matrix, neighbours); 0: only the first.
    """

    def __init__(self, every_n_steps: int = 50, pictures_every_n_steps: int = 1000) -> None:
        if every_n_steps < 1 or pictures_every_n_steps < 0:
            raise ValueError(
                f"monitor.every_n_steps: expected 1 or more, got {every_n_steps}; "
                f"monitor.pictures_every_n_steps: expected 0 or more, got {pictures_every_n_steps}"
            )
        self.every_n_steps, self.pictures_every_n_steps = every_n_steps, pictures_every_n_steps
        self.latest: dict[str, float] = {}
        """The last readings, on the first rank: what `checkpoints.monitor` may choose by."""
        self._buffer: dict[str, list[Any]] = {}
        self._replaced = 0
        self._mark = (0.0, 0, 0.0)  # time, samples, seconds waited for data

    def state_dict(self) -> dict[str, Any]:
        """Readings not yet written, so that curves go on without a seam."""
        buffer = {name: _fetch(values) for name, values in self._buffer.items()}
        return {"buffer": buffer, "replaced": self._replaced, "latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them up."""
        self._buffer = {name: list(values) for name, values in state_dict["buffer"].items()}
        self._replaced, self.latest = state_dict["replaced"], dict(state_dict["latest"])

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._mark = (time.perf_counter(), 0, 0.0)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        self._replaced += len(batch["replaced"])
        due = step == 1 or step % self._between(pl_module) == 0 or step == getattr(pl_module, "total_steps", 0)
        if due:
            replaced = torch.tensor(self._replaced, device=pl_module.device)
            self._replaced_everywhere = int(trainer.strategy.reduce(replaced, reduce_op="sum"))
        if not trainer.is_global_zero:
            return
        readings: dict[str, Tensor] = getattr(pl_module, "readings", {})
        self._buffer.setdefault("train/loss", []).append(outputs["loss"].detach())
        for name, value in readings.items():
            self._buffer.setdefault(f"train/{name}", []).append(value)
        if due:
            self._flush(trainer, pl_module, outputs)
        n = self.pictures_every_n_steps
        if step == 1 or (n and step % n == 0):
            self._draw(trainer, pl_module, outputs, batch)

    def _between(self, module: pl.LightningModule) -> int:
        """Steps between readings of this run."""
        total: int = getattr(module, "total_steps", 0)
        return max(1, min(self.every_n_steps, total // 10)) if total > 1 else self.every_n_steps

    def _flush(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any) -> None:
        metrics = {name: sum(values) / len(values) for name, values in self._fetched().items()}
        metrics |= self._look(module, outputs) | self._speed(trainer)
        metrics["train/lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        metrics["data/replaced_samples"] = self._replaced_everywhere
        for callback in callbacks(trainer):
            if isinstance(callback, FiniteGuard):
                metrics["train/skipped_steps"] = callback.skipped
        self.latest = {name: float(value) for name, value in metrics.items() if not name.startswith("speed/")}
        for board in trainer.loggers:
            board.log_metrics(metrics, step=trainer.global_step)
        boards = tensorboards(trainer)
        both = diagnostics.similarities(outputs["projections"]) if boards else ()
        for name, values in zip(("positive", "negative"), both, strict=bool(boards)):
            for board in boards:
                board.add_histogram(f"similarity/{name}", values.cpu(), trainer.global_step)
        if not sys.stderr.isatty():  # batch jobs: a line in place of a bar
            step, epoch, loss = trainer.global_step, trainer.current_epoch, metrics["train/loss"]
            speed = metrics.get("speed/images_per_second", float("nan"))
            total = getattr(module, "total_steps", 0)
            said = f"{step}/{total}" if total > 1 else str(step)
            line = f"step {said:>11}  epoch {epoch:>4}  loss {loss:8.4f} {speed:8.0f} samples/s"
            print(line, file=sys.stderr, flush=True)

    def _speed(self, trainer: pl.Trainer) -> dict[str, float]:
        """Since the last readings, if the run keeps a ledger."""
        for callback in callbacks(trainer):
            if isinstance(callback, Ledger) and callback.now is not None:
                before, self._mark = self._mark, (time.perf_counter(), callback.now.samples, callback.now.waited)
                passed, samples, waited = (now - then for now, then in zip(self._mark, before, strict=True))
                return {"speed/images_per_second": samples / passed, "speed/data_wait_share": waited / passed}
        return {}

    def _fetched(self) -> dict[str, list[float]]:
        fetched = {name: _fetch(values) for name, values in self._buffer.items()}
        self._buffer.clear()
        return fetched

    def _look(self, module: pl.LightningModule, outputs: Any) -> dict[str, float]:
        projections = outputs["projections"][:, :LOOKED_AT]
        features = outputs["features"][:LOOKED_AT]
        positive, negative = diagnostics.similarities(projections)
        found = {
            "similarity/positive_mean": positive.mean(),
            "similarity/negative_mean": negative.mean(),
            "representation/alignment": diagnostics.alignment(projections[0], projections[1]),
            "representation/uniformity": diagnostics.uniformity(projections[0]),
            "representation/uniformity_view1": diagnostics.uniformity(projections[1]),
            "representation/gap": diagnostics.modality_gap(projections[0], projections[1]),
            "representation/rankme_projections": diagnostics.rankme(projections[0]),
            "representation/rankme_features": diagnostics.rankme(features),
            "representation/rankme_features_centred": diagnostics.rankme(features, centre=True),
            "representation/spread_projections": diagnostics.spread(projections[0]),
            "representation/spread_features": diagnostics.spread(features),
        }
        temperature = getattr(getattr(module, "objective", None), "temperature", None)
        if temperature is not None:
            found["train/temperature"] = torch.as_tensor(temperature, device=positive.device)
        return dict(zip(found, _fetch(list(found.values())), strict=True))

    def _draw(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any) -> None:
        if not (boards := tensorboards(trainer)):
            return
        data = getattr(trainer, "datamodule", None)
        columns = {"views": views_of(batch), **(module.pictures() if isinstance(module, Draws) else {})}
        drawn = {name: pictures.views(views, data) for name, views in columns.items()}
        drawn["similarity"] = pictures.similarity(outputs["projections"])
        drawn["neighbours"] = pictures.neighbours_in_batch(views_of(batch)[0], outputs["features"], data)
        for board in boards:
            for name, picture in drawn.items():
                board.add_image(f"pictures/{name}", picture, trainer.global_step, dataformats="HWC")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The summary of the run."""
        if not trainer.is_global_zero:
            return
        if trainer.loggers and self._buffer:  # what came after the last readings
            rest = {name: sum(values) / len(values) for name, values in self._fetched().items()}
            for board in trainer.loggers:
                board.log_metrics(rest, step=trainer.global_step)
        table = Table(title="run", show_header=False)
        table.add_row("steps", f"{trainer.global_step}, {trainer.current_epoch} epochs")
        for name, value in trainer.callback_metrics.items():
            table.add_row(name, f"{float(value):.4f}")
        table.add_row("replaced samples", str(self._replaced))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                table.add_row("watch", watch(Path(logger.log_dir)))
        Console(stderr=True).print(table)


def tensorboards(trainer: pl.Trainer) -> list[Any]:
    """The writers of all TensorBoard loggers, for histograms and pictures."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _fetch(values: list[Any]) -> list[float]:
    """Device scalars to floats, in one transfer."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) < len(values):
        return [float(value) for value in values]
    return torch.stack([tensor.float() for tensor in tensors]).tolist() if tensors else []
