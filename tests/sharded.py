"""One of two ranks: what is trained under fsdp2 against what is trained under ddp.

    python -m tests.sharded FOLDER

Started by test_sharding.py; starts its second rank itself. All in one process a rank, since importing takes longer.
Rank 0 leaves its findings in FOLDER: `ddp.pt` and `fsdp2.pt` hold the weights of every method after three steps.
"""

import json
import logging
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch

from manyviews.evaluation import KNN, Evaluation
from manyviews.evaluation.features import extract
from manyviews.methods import BYOL
from manyviews.optim import LARS
from manyviews.runs import AtomicCheckpointIO, Checkpoints, FiniteGuard, RandomState
from manyviews.runs.storage import load
from tests.manyviews import test_image_methods, test_points, test_text_methods, test_video
from tests.manyviews.test_image_methods import SMALL
from tests.manyviews.test_methods import FAST, Batches
from tests.recipe import Backbone


def many_views(name):
    return Batches(views=4 if name.startswith(("MultiView", "ImageVolume")) else 2)


CASES = {
    **{f"image/{name}": (test_image_methods.make, name, many_views) for name in test_image_methods.METHODS},
    **{f"text/{name}": (test_text_methods.make, name, test_text_methods.pairs) for name in test_text_methods.METHODS},
    **{f"points/{name}": (test_points.make, name, lambda _: test_points.Clouds()) for name in test_points.METHODS},
    **{
        f"video/{name}": (
            lambda name: test_video.METHODS["CLIP"](test_video.BACKBONES[name]()),
            name,
            lambda _: test_video.Clips(),
        )
        for name in test_video.BACKBONES
    },
}


class Part(torch.utils.data.Dataset):
    """A rank's half of each batch."""

    def __init__(self, whole, rank):
        self.whole, self.rank = whole, rank

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, i):
        batch = self.whole[i]
        half = len(batch["index"]) // 2
        cut = slice(self.rank * half, (self.rank + 1) * half)
        return {k: [x[cut] for x in v] if isinstance(v, list) else v[cut] for k, v in batch.items()}


class Data(pl.LightningDataModule):
    """The batches of `Batches` for training, and for evaluation cut over the ranks."""

    def train_dataloader(self):
        part, own = Part(Batches(2), self.trainer.global_rank), torch.Generator()  # or it draws from the ranks' states
        return torch.utils.data.DataLoader(part, batch_size=None, generator=own)

    def evaluation_loader(self, split, world=1, rank=0, batch_size=None):
        for i in range(3):
            batch = Part(Batches(4), rank)[i] if world > 1 else Batches(4)[i]
            yield {**batch, "weight": torch.ones(len(batch["index"])), "key": [str(i) for i in batch["index"].tolist()]}


def train(strategy, method, steps, data, callbacks=(), ckpt=None):
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_steps=steps, logger=False, callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO()], enable_checkpointing=any(isinstance(c, Checkpoints) for c in callbacks),
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    given = {"datamodule": data} if isinstance(data, pl.LightningDataModule) else {}
    if not given:
        given = {"train_dataloaders": torch.utils.data.DataLoader(Part(data, trainer.global_rank), batch_size=None)}
    trainer.fit(method, ckpt_path=ckpt, weights_only=True if ckpt else None, **given)
    return trainer


def every_method(folder: Path) -> None:
    for strategy in ("ddp", "fsdp2"):
        found = {}
        for case, (make, name, batches) in CASES.items():
            pl.seed_everything(0, verbose=False)
            method = make(name)
            method.optimizer = lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9)
            trainer = train(strategy, method, 3, batches(name))
            found[case] = {k: v.clone() for k, v in trainer.strategy.lightning_module_state_dict().items()}
            if strategy == "fsdp2":
                sizes = [(p.numel(), p.to_local().numel()) for p in method.parameters()]
                found[case]["share"] = torch.tensor(sum(mine for _, mine in sizes) / sum(size for size, _ in sizes))
        if trainer.is_global_zero:
            torch.save(found, folder / f"{strategy}.pt")


class Kept(KNN):
    """Keeps the features it is given."""

    def evaluate(self, train, val):
        self.kept = val.views
        return super().evaluate(train, val)


def one_run(folder: Path) -> None:
    """With LARS, running statistics, dropout, a guard, evaluation and checkpoints; resumed, and under the other strategy."""

    def make():
        pl.seed_everything(0, verbose=False)
        optimizer = lambda groups: LARS(groups, lr=0.1, weight_decay=1e-4)  # noqa: E731
        return BYOL(Backbone(0.1, norm=True), 0.9, **SMALL, optimizer=optimizer, schedule=FAST["schedule"])

    def run(strategy, name, steps, ckpt=None):
        protocol = Kept(k=(5,), temperature=(0.1,))
        evaluation = Evaluation([protocol], every_n_epochs=1)
        checkpoints = Checkpoints(str(folder / name), every_n_steps=0, every_n_epochs=1, keep_last=9)
        callbacks = [evaluation, FiniteGuard(), RandomState(), checkpoints]
        return train(strategy, make(), steps, Data(), callbacks, ckpt), protocol

    facts = {}
    for strategy in ("ddp", "fsdp2"):
        trainer, protocol = run(strategy, strategy, 8)
        if trainer.is_global_zero:  # the features that were evaluated are those of the checkpoint
            offline = make()
            offline.load_state_dict(load(folder / strategy / "step-00000008.ckpt")["state_dict"])
            there = extract(offline, offline.embed, Data().evaluation_loader("val"))
            facts[f"{strategy}: features"] = (there.views - protocol.kept).abs().max().item()
    for strategy, origin in (("fsdp2", "fsdp2"), ("ddp", "fsdp2"), ("fsdp2", "ddp")):
        run(strategy, f"{origin}-to-{strategy}", 8, folder / origin / "step-00000004.ckpt")
    if facts:
        (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    every_method(Path(sys.argv[1]))
    one_run(Path(sys.argv[1]))
