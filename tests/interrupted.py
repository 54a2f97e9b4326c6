"""One of two ranks of a run that is stopped by signals again and again, and goes on each time.

    python -m tests.interrupted RANK FOLDER SHARDS TIMES

Started twice by test_faults.py, which sends the signals. After the last stop both ranks make as many steps in one go,
and rank 0 compares the weights bit by bit. All in one process a rank: importing takes longer than all of it.
"""

import json
import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from manyviews.methods import SimCLR
from manyviews.runs import AtomicCheckpointIO, Checkpoints, RandomState, StopOnSignal, Stopped, newest_whole
from tests.recipe import Backbone, StopInside
from viewshards import ShardDataModule
from viewshards.views import SimCLR as Views


class Begun(pl.Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, *_):
        self.path.touch()


def forbidden(*_):
    raise AssertionError("Lightning's own broadcast of signals ran")


def fit(shards: str, checkpoints: Path, mark: Path, last: int = 0) -> tuple[pl.Trainer, Stopped | None]:
    pl.seed_everything(1)
    method = SimCLR(Backbone(), projector_out=16)
    views = Views(size=8, strength=0.5, blur=0.0, flip=0.0, min_scale=0.6)
    data = ShardDataModule(shards, global_batch_size=64, views=views, workers=0, seed=2)
    callbacks = [
        StopInside(last, str(mark)) if last else Begun(mark),
        StopOnSignal(3),
        RandomState(),
        Checkpoints(str(checkpoints), every_n_steps=0),
    ]
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=10_000, max_epochs=-1, logger=False, callbacks=callbacks,
        plugins=[AtomicCheckpointIO()], use_distributed_sampler=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    try:
        trainer.fit(method, datamodule=data, ckpt_path=newest_whole(checkpoints), weights_only=True)
    except Stopped as stop:
        return trainer, stop
    return trainer, None


def main() -> None:
    rank, folder, shards, times = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
    }  # fmt: skip
    torch.set_num_threads(1)
    _TrainingEpochLoop._broadcast_sigterm_tensor = forbidden  # Lightning's broadcast each step
    steps = []
    for number in range(times):
        trainer, stop = fit(shards, folder / "stopped", folder / f"begun-{number}-{rank}")
        steps.append(trainer.global_step)
        assert stop is not None and stop.saved, f"{number}: not stopped, at step {trainer.global_step}"
        (folder / f"left-{number}-{rank}").touch()
    fit(shards, folder / "whole", folder / f"ended-{rank}", steps[-1])
    torch.distributed.destroy_process_group()
    if rank == 0:
        ours, theirs = (
            torch.load(newest_whole(folder / name), weights_only=True)["state_dict"] for name in ("stopped", "whole")
        )
        equal = all(torch.equal(ours[name], theirs[name]) for name in theirs)
        (folder / "result.json").write_text(json.dumps({"steps": steps, "equal": equal}))


if __name__ == "__main__":
    main()
