"""A recipe small enough for tests: digits, two convolutions with dropout, a few steps; and what is read back."""

import atexit
import json
import os
import shutil
import signal
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch import nn

from manyviews import methods
from manyviews.backbones import Encoding


class Backbone(nn.Module):
    """Without batch statistics; with dropout, so that a resumed run must continue its random numbers."""

    def __init__(self, dropout: float = 0.1, norm: bool = False, poison: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.BatchNorm2d(8) if norm else nn.GroupNorm(2, 8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(64, 32),
        )
        self.width = 32
        self.poison, self.calls = set(poison), 0

    def forward(self, images):
        self.calls += self.training
        out = self.body(images)
        return Encoding(out * float("nan") if self.calls in self.poison and self.training else out)


class Interrupt(pl.Callback):
    """Sends this process a SIGTERM during a step, the first time only."""

    def __init__(self, step: int, once: str) -> None:
        self.step, self.once = step, Path(once)

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step - 1 and not self.once.exists():
            self.once.touch()
            os.kill(os.getpid(), signal.SIGTERM)


class AtExit(pl.Callback):
    """Sends this process a signal twice while Python shuts down: before and after it has taken its handlers away."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_end(self, *_):
        atexit.register(os.kill, os.getpid(), self.number)
        last.append(Last(self.number))


last = []


class Last:
    """Goes when its module goes."""

    def __init__(self, number: int) -> None:
        self.kill, self.pid, self.number = os.kill, os.getpid(), number

    def __del__(self) -> None:
        self.kill(self.pid, self.number)


class StopInside(pl.Callback):
    """Ends the run after a step by Lightning's own flag, as `max_time` does, the first time only."""

    def __init__(self, step: int, once: str) -> None:
        self.step, self.once = step, Path(once)

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step and not self.once.exists():
            self.once.touch()
            trainer.should_stop = True


class Slow(pl.Callback):
    """Seconds of nothing after each step, so that a test can meet the run in the middle."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, *_):
        time.sleep(self.seconds)


class Ids(pl.Callback):
    """Writes down in the run's folder which samples each rank was given, a line a step."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        path = Path(trainer.logger.log_dir) / f"ids-{trainer.global_rank}.txt"
        with path.open("a") as f:
            f.write(f"{trainer.global_step} {batch['index'].tolist()}\n")


class Late(pl.Callback):
    """One rank starts later than the others: before the process group is there."""

    def __init__(self, seconds: float, rank: int) -> None:
        if int(os.environ.get("LOCAL_RANK", "0")) == rank:
            time.sleep(seconds)


class Fault(pl.Callback):
    """Before a step one rank raises, dies, or falls silent."""

    def __init__(self, step: int, rank: int, kind: str) -> None:
        self.step, self.rank, self.kind = step, rank, kind

    def on_train_batch_start(self, trainer, *_):
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            if self.kind == "raise":
                raise RuntimeError("injected")
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            (Path(trainer.logger.log_dir) / "silent").touch()
            time.sleep(10_000)


class FillDisk(pl.Callback):
    """Fills the small disk that the run lies on before one step, and makes room before another."""

    def __init__(self, full: int, free: int) -> None:
        self.full, self.free = full, free

    def on_train_batch_start(self, trainer, *_):
        ballast = Path(trainer.logger.log_dir).parent / "ballast"
        if trainer.global_step == self.full:
            assert shutil.disk_usage(ballast.parent).total < 1e7, "this is no disk made to be filled"
            with pytest.raises(OSError, match="No space left"), ballast.open("wb", buffering=0) as f:
                while True:
                    f.write(b"0" * 4096)
        if trainer.global_step == self.free:
            ballast.unlink()


class CutShard(pl.Callback):
    """Cuts a tar between the first epoch and the second, the first time only."""

    def __init__(self, path: str, size: int, once: str) -> None:
        self.path, self.size, self.once = path, size, Path(once)

    def on_train_epoch_start(self, trainer, *_):
        if trainer.current_epoch == 1 and not self.once.exists():
            self.once.touch()
            os.truncate(self.path, self.size)


def recipe(root: Path, **changes) -> dict:
    """The configuration as `manyviews fit` reads it; `changes` by dotted key."""
    config = {
        "seed_everything": 3,
        "model": {
            "class_path": "manyviews.methods.SimCLR",
            "init_args": {
                "backbone": {"class_path": "tests.recipe.Backbone"},
                "temperature": 0.2,
                "projector_out": 16,
                "training": {
                    "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
                    "schedule": {"warmup_steps": 5, "scaling": "none"},
                },
            },
        },
        "data": {
            "class_path": "viewshards.ShardDataModule",
            "init_args": {
                "root": str(root),
                "global_batch_size": 64,
                "workers": 0,
                "seed": 5,
                "views": {
                    "class_path": "viewshards.views.SimCLR",
                    "init_args": {"size": 8, "strength": 0.5, "blur": 0.0, "flip": 0.0, "min_scale": 0.6},
                },
            },
        },
        "trainer": {"accelerator": "cpu", "max_steps": 60},
        "monitor": {"every_n_steps": 5, "pictures_every_n_steps": 0},
        "checkpoints": {"every_n_steps": 10, "keep_last": 3},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        place = config
        for part in path:
            place = (
                place.setdefault(part, {})
                if part in place or "init_args" not in place
                else place["init_args"].setdefault(part, {})
            )
        if "init_args" in place and last not in place:
            place = place["init_args"]
        place[last] = value
    return config


def write(path: Path, config: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return path


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    """State of the method in the last checkpoint of a run."""
    newest = max((run_folder / "checkpoints").glob("step-*.ckpt"))
    return torch.load(newest, weights_only=True)["state_dict"]


def scalars(run_folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All curves of a run, read back from TensorBoard's files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


class Heard(pl.loggers.Logger):
    """A logger without a folder: it keeps the names of the metrics it was given."""

    name, version = "heard", 0

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path, self.names = Path(path), set()

    def log_metrics(self, metrics, step=None):
        self.names |= set(metrics)
        self.path.write_text(json.dumps(sorted(self.names)))

    def log_hyperparams(self, *_, **__):
        """Nothing."""


class Unwritable(methods.SimCLR):
    """With a default that is an object."""

    def __init__(self, backbone: nn.Module, made: nn.Module = nn.Linear(3, 3), **options) -> None:
        super().__init__(backbone, **options)
