"""What the training loop costs a step, against a bare PyTorch loop on the same tiny model: CPU time.

    python experiments/benchmarks/step.py [--steps 500] [--json experiments/results/step.json]

The model is one small linear backbone, so that everything beyond the bare loop is bookkeeping: Lightning, our ten
readings every 50 steps with diagnostics and histograms, finite guard, signal watch, collapse alarm, TensorBoard.
One process, one thread, interleaved rounds. Each contestant's figure is its best window of 50 steps, which holds one
full reading: on a shared machine whole rounds differ by a factor of two, best windows by a few per cent.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from record import record
from torch import nn

from manyviews.methods import SimCLR
from manyviews.monitoring import CollapseAlarm, Monitor
from manyviews.optim import Schedule, Training, groups_of
from manyviews.runs import FiniteGuard, Ledger, RandomState, StopOnSignal

WINDOW = 50
"""Steps between two readings of the clock; the monitor reads as often."""


class Tiny(nn.Sequential):
    width = 16

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(192, 16))


class Batches(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, steps: int) -> None:
        self.steps = steps
        generator = torch.Generator().manual_seed(0)
        self.batch = {
            "image": list(torch.randn(2, 64, 3, 8, 8, generator=generator)),
            "index": torch.arange(64),
            "group": torch.full((64,), -1),
            "replaced": [],
        }

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.batch


def method() -> SimCLR:
    torch.manual_seed(0)
    optimizer = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    return SimCLR(Tiny(), 0.2, 16, 16, Training(optimizer, Schedule(warmup_steps=10, scaling="none")))


def bare(steps: int) -> float:
    model = method()
    optimizer = torch.optim.SGD(groups_of(model), lr=0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: model.how.schedule.factor(step, steps, None))
    loader = torch.utils.data.DataLoader(Batches(steps), batch_size=None)
    clock = Clock()
    for batch in loader:
        loss = model.training_step(batch, 0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        clock.on_train_batch_end()
    return clock.best()


def whole(steps: int, callbacks: list[pl.Callback], logger: bool) -> float:
    with tempfile.TemporaryDirectory() as name:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=steps,
            logger=TensorBoardLogger(name, name="", version="") if logger else False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
        )
        clock = Clock()
        trainer.callbacks.append(clock)  # type: ignore[attr-defined]
        trainer.fit(method(), torch.utils.data.DataLoader(Batches(steps), batch_size=None))
        return clock.best()


class Clock(pl.Callback):
    """CPU time of each window of steps; the first, with its set-up and first pictures, does not count."""

    def __init__(self) -> None:
        self.steps, self.marks = 0, list[float]()

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1
        if self.steps % WINDOW == 0:
            self.marks.append(time.process_time())

    def best(self) -> float:
        return min(end - start for start, end in pairwise(self.marks)) / WINDOW


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)

    folder = Path(tempfile.mkdtemp())

    def everything() -> list[pl.Callback]:
        ours = [Monitor(WINDOW, 0), CollapseAlarm(), StopOnSignal(), FiniteGuard(), RandomState()]
        return [*ours, Ledger(folder, WINDOW)]

    contestants = {
        "bare PyTorch loop": bare,
        "Lightning, nothing on": lambda steps: whole(steps, [], False),
        "Lightning, all of ours on": lambda steps: whole(steps, everything(), True),
    }
    best: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for label, run in contestants.items():
            seconds = run(arguments.steps)
            best[label] = min(seconds, best.get(label, seconds))
    for label, seconds in best.items():
        extra = (seconds - best["bare PyTorch loop"]) * 1000
        print(f"{label:<28}{seconds * 1e6:>8.0f} us/step   {extra:+.2f} ms")
    ours = (best["Lightning, all of ours on"] - best["Lightning, nothing on"]) * 1000
    print(f"our bookkeeping on top of Lightning: {ours:.2f} ms of CPU a step")
    record(arguments.json, {"microseconds_per_step": {k: v * 1e6 for k, v in best.items()}, "bookkeeping_ms": ours})


if __name__ == "__main__":
    main()
