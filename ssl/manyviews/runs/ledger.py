"""What a run cost, over all its starts: samples a second, waiting for data, device hours, goodput."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import lightning.pytorch as pl
from typing_extensions import override

from manyviews import foreign
from manyviews.runs.files import write_text

logger = logging.getLogger(__name__)


@dataclass
class Attempt:
    """One start of a run, as far as it was written down.

    Attributes:
        first_step: it went on from. step: it came to. devices: of all ranks. samples: of all ranks.
        seconds: of training, wall clock. waited: seconds of them in which rank 0 waited for a batch.
        cpu_seconds: of rank 0's process and of the loaders that have ended.
        host, job: where it ran.
    """

    first_step: int
    devices: int
    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    cpu_seconds: float = 0.0
    host: str = ""
    job: str | None = None


class Ledger(pl.Callback):
    """Keeps `RUN/attempts/N.json`, a file a start, rewritten every n steps: also a killed start leaves its account.

    It has to be the last callback: what others do at the end of a batch is no waiting for data.

    Args:
        folder: `RUN/attempts`.
        every_n_steps: a killed start is accounted for up to the last multiple.
    """

    def __init__(self, folder: Path, every_n_steps: int = 50) -> None:
        self.folder, self.every_n_steps = folder, every_n_steps
        self.now: Attempt | None = None

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        job = os.environ.get("SLURM_JOB_ID")
        step = trainer.global_step
        self.now = Attempt(step, trainer.world_size, step, host=platform.node(), job=job)
        self._file = self.folder / f"{len(list(self.folder.glob('*.json'))) + 1:04d}.json"
        self._started = self._batch_end = time.perf_counter()
        self._cpu_before = sum(os.times()[:4])
        self._write(trainer)  # a start that is killed before its first reading was one, too

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What came since the last batch was evaluation."""
        self._batch_end = time.perf_counter()

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert self.now is not None
        self.now.waited += time.perf_counter() - self._batch_end
        self.now.samples += len(batch["index"]) * trainer.world_size

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self._write(trainer)
        self._batch_end = time.perf_counter()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._write(trainer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        if self.now is None or not trainer.is_global_zero:
            return
        self.now.step = trainer.global_step
        self.now.seconds = time.perf_counter() - self._started
        self.now.cpu_seconds = sum(os.times()[:4]) - self._cpu_before
        try:
            write_text(self._file, json.dumps(asdict(self.now)) + "\n")
        except OSError as error:  # a full disk, say: no reason to end a run
            logger.warning("%s not written: %s", self._file, error)

    def all(self) -> list[Attempt]:
        """All starts of the run, in order, this one as far as it is written down."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                start = Attempt(**foreign.read_json(path, get_type_hints(Attempt)))
                numbers = [value for name, value in asdict(start).items() if name not in ("host", "job")]
                if not all(isinstance(n, int | float) and abs(n) < 1e15 for n in numbers):  # nor NaN
                    raise ValueError(f"its numbers are {numbers!r:.200}")
                found.append(start)
            except (ValueError, TypeError, OSError) as error:  # no reason to keep a run from going on, or from its end
                logger.warning("%s ignored in the statistics: %s", path, error)
        return found

    def summary(self) -> str:
        """One line for all starts."""
        starts = self.all()
        seconds = max(sum(a.seconds for a in starts), 1e-9)
        return (
            f"{sum(a.samples for a in starts) / seconds:.0f} samples/s, "
            f"{100 * sum(a.waited for a in starts) / seconds:.1f} % waiting for data, "
            f"{sum(a.seconds * a.devices for a in starts) / 3600:.3f} device hours, starts: {len(starts)}, "
            f"goodput {100 * goodput(starts):.1f} %"
        )


def goodput(starts: list[Attempt]) -> float:
    """Steps that count over steps that were made: what a kill takes back is made again."""
    made = sum(a.step - a.first_step for a in starts)
    return max(0, starts[-1].step - starts[0].first_step) / made if made > 0 else 1.0
