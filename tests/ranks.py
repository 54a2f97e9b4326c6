"""One of two ranks: what they train under ddp and fsdp2, to be held against each other and against one process.

    python -m tests.ranks FOLDER

Started by test_ranks.py; starts its second rank itself. All in one process a rank, since importing takes longer.
Rank 0 leaves its findings in FOLDER: `ddp.pt` and `fsdp2.pt` hold the state of every method after three steps,
`ddp-alike.pt` that of methods made such that nothing depends on what the ranks are.
"""

import json
import logging
import sys
import warnings
from functools import partial
from itertools import cycle
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed.fsdp import FSDPModule

from manyviews.backbones import Encoding
from manyviews.evaluation import KNN, Evaluation
from manyviews.evaluation.features import extract
from manyviews.methods import BYOL
from manyviews.methods.pointmae import MaskedPoints
from manyviews.optim import LARS
from manyviews.runs import AtomicCheckpointIO, Checkpoints, FiniteGuard, RandomState
from manyviews.runs.sharded import register
from manyviews.runs.storage import load
from tests.manyviews.test_image_methods import SMALL
from tests.manyviews.test_methods import Batches
from tests.recipe import Backbone
from tests.support.every import TRIALS
from tests.support.training import changed, fast

register()  # as the command does


RANDOM = {
    f"image/{name}"
    for name in (
        "MoCHi", "Hydra", "HydraMoCo", "Hallucinator", "Hallucinator-MoCo", "Hallucinator-SimSiam", "CMIM",
        "CMIM-Repulsor", "ImageVolume", "BECLR", "CPL", "ScatSimCLR", "ScatSimCLR-jigsaw", "MECO", "SupReMix",
    )
}  # fmt: skip
"""What draws mixtures, partners, noise, masks or orders in a step, so that two ranks cannot do as one process."""


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


def train(strategy, method, steps, data, callbacks=(), ckpt=None, **options):
    alone = strategy == "auto"
    trainer = pl.Trainer(
        accelerator="cpu", devices=2 - alone, strategy=strategy, max_steps=steps, logger=False, callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO()], enable_checkpointing=any(isinstance(c, Checkpoints) for c in callbacks),
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        **options,
    )  # fmt: skip
    given = {"datamodule": data} if isinstance(data, pl.LightningDataModule) else {}
    if not given:
        data = data if alone else Part(data, trainer.global_rank)
        given = {"train_dataloaders": torch.utils.data.DataLoader(data, batch_size=None)}
    trainer.fit(method, ckpt_path=ckpt, weights_only=True if ckpt else None, **given)
    return trainer


def every_method(strategy: str, alike: bool) -> dict[str, dict[str, torch.Tensor]]:
    """State after three steps, and losses. `alike`: no batch statistics, no random numbers, chunks too."""
    found = {}
    for case, trial in TRIALS.items():
        if alike and case in RANDOM:
            continue
        method = trial.make()
        if alike:
            without_statistics(method)
            if isinstance(method, MaskedPoints):
                method.draw = partial(by_place, method, cycle((1.0, -1.0)))
        rate = 1e-4 if case.startswith("points/") else 0.01
        found[case] = after_three_steps(strategy, method, trial.batches(), rate)
        if alike and case == "image/SimCLR":
            method = trial.make()
            without_statistics(method)
            changed(method, grad_cache=5)
            found[f"{case} in chunks"] = after_three_steps(strategy, method, trial.batches())
    return found


def after_three_steps(strategy, method, data, rate=0.01):
    changed(method, optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9))
    watch = Watch()
    pl.seed_everything(0, verbose=False)
    trainer = train(strategy, method, 3, data, [watch])
    state = {k: v.clone() for k, v in trainer.strategy.lightning_module_state_dict().items()}
    state["losses"] = torch.tensor(watch.losses)
    if strategy == "fsdp2":
        sizes = [(p.numel(), p.to_local().numel()) for p in method.parameters()]
        state["units"] = torch.tensor(sum(isinstance(part, FSDPModule) for part in method.modules()))
        state["share"] = torch.tensor(sum(mine for _, mine in sizes) / sum(size for size, _ in sizes))
    return state


class Watch(pl.Callback):
    """A rank that starts with another state is put right, and from then on states are equal without being sent."""

    def __init__(self):
        self.losses = []

    def on_fit_start(self, trainer, module):
        if trainer.global_rank:
            for buffer in module.objective.buffers():
                buffer.zero_()

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.losses.append(outputs["loss"].item())
        if isinstance(trainer.strategy.model, torch.nn.parallel.DistributedDataParallel):
            ours = {id(b) for b in self.state(module)}
            assert not [b for b in trainer.strategy.model.modules_buffers if id(b) in ours]

    def state(self, module):
        """What the objective keeps, without running statistics."""
        norms = [part for part in module.objective.modules() if isinstance(part, torch.nn.BatchNorm1d)]
        left_out = {id(b) for part in norms for b in part.buffers()}
        return [b for b in module.objective.buffers() if id(b) not in left_out]

    def on_train_end(self, trainer, module):
        if trainer.world_size > 1:
            state = [None] * trainer.world_size
            ours = [b.tolist() for b in self.state(module)]
            torch.distributed.all_gather_object(state, ours)
            assert all(each == state[0] for each in state)


def without_statistics(method):
    """Batch statistics differ between ranks; SyncBatchNorm does not run on CPUs."""
    for part in method.modules():
        for child, module in list(part.named_children()):
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                learns = any(p.requires_grad for p in module.parameters())  # a teacher does not
                setattr(part, child, torch.nn.GroupNorm(1, module.num_features).requires_grad_(learns))


def by_place(method, signs, centres):
    """Masks that a cloud brings along: its lowest patches, and its highest the second time."""
    hidden = (next(signs) * centres[..., 2]).topk(method.masked, largest=False).indices
    return torch.zeros(centres.shape[:2], dtype=torch.bool).scatter(1, hidden, True)


class Residual(torch.nn.Module):
    """A block, of which there are two: fsdp2 cuts them one by one."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.BatchNorm1d(32), torch.nn.ReLU())

    def forward(self, x):
        return x + self.body(x)


class Deep(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks, self.width = Backbone(0.1), torch.nn.Sequential(Residual(), Residual()), 32

    def forward(self, images):
        return Encoding(self.blocks(self.stem(images).pooled))


class Kept(KNN):
    """Keeps the features it is given."""

    def evaluate(self, train, val):
        self.kept = val.views
        return super().evaluate(train, val)


def one_run(folder: Path) -> None:
    """With LARS, clipping, running statistics, dropout, a guard, evaluation; resumed, and under the other strategy."""

    def make():
        pl.seed_everything(0, verbose=False)
        return BYOL(Deep(), 0.9, **SMALL, **fast(partial(LARS, lr=0.1, weight_decay=1e-4)))

    def run(strategy, name, steps, ckpt=None, method=None, **options):
        protocol = Kept(k=(5,), temperature=(0.1,))
        evaluation = Evaluation([protocol], every_n_epochs=1)
        checkpoints = Checkpoints(str(folder / name), every_n_steps=0, every_n_epochs=1, keep_last=9)
        callbacks = [evaluation, FiniteGuard(), RandomState(), checkpoints]
        options = {"gradient_clip_val": 0.1, **options}
        return train(strategy, method or make(), steps, Data(), callbacks, ckpt, **options), protocol

    facts = {}
    for strategy in ("ddp", "fsdp2"):
        trainer, protocol = run(strategy, strategy, 8)
        draws = [None, None]
        torch.distributed.all_gather_object(draws, torch.rand(1).item())
        assert len(set(draws)) == 2, "ranks must not share random numbers"
        if trainer.is_global_zero:  # the features that were evaluated are those of the checkpoint
            offline = make()
            offline.load_state_dict(load(folder / strategy / "step-00000008.ckpt")["state_dict"])
            there = extract(offline, offline.embed, Data().evaluation_loader("val"))
            facts[f"{strategy}: features"] = (there.views - protocol.kept).abs().max().item()
    for strategy, origin in (("fsdp2", "fsdp2"), ("ddp", "fsdp2"), ("fsdp2", "ddp")):
        run(strategy, f"{origin}-to-{strategy}", 8, folder / origin / "step-00000004.ckpt")
    for strategy in ("ddp", "fsdp2"):
        run(strategy, f"{strategy}-half", 8, precision="bf16-mixed")
    for name, ckpt in (
        ("plain", None),
        ("plain-resumed", folder / "plain/step-00000004.ckpt"),
    ):  # an optimiser without state
        method = changed(make(), optimizer=partial(torch.optim.SGD, lr=0.01))
        run("fsdp2", name, 8, ckpt, method)
    for wrong, told in (
        ({"sync_batchnorm": True}, "expected input tensor to be on"),
        ({"precision": "bf16-true"}, "fsdp2 goes with"),
    ):
        try:
            run("fsdp2", "wrong", 8, **wrong)
        except ValueError as error:
            assert told in str(error), error
        else:
            raise AssertionError(f"{wrong} was ignored")
    if facts:
        (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for strategy, alike in (("ddp", False), ("fsdp2", False), ("ddp", True)):
        found = every_method(strategy, alike)
        if rank_zero_only.rank == 0:
            torch.save(found, folder / f"{strategy}{'-alike' if alike else ''}.pt")
    one_run(folder)
