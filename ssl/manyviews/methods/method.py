"""What every method shares: embedding, the optimiser, exact accumulation. The science is in the subclasses."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, ClassVar, Self, TypeVar

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from manyviews import distributed
from manyviews.backbones import Encoding, views_of
from manyviews.internals import BatchNorm, ignored_by_ddp, synchronise
from manyviews.methods.gradcache import GradCache, check_exact
from manyviews.objectives import Objective
from manyviews.optim import LARS, Schedule, Teacher, Training, groups_of
from manyviews.sharding import shard

Batch = dict[str, Any]
Count = tuple[int, float]
Seen = TypeVar("Seen", Tensor, Encoding)

logger = logging.getLogger(__name__)


@dataclass
class Step:
    """What a method makes of a batch: all that backward, monitoring and the alarm read.

    Attributes:
        loss: scalar, of the global batch.
        features: of the views, before any head; monitoring looks at those of the first.
        projections: two or more (n, d) that monitoring compares: of two views of the same samples.
        readings: further scalars to be logged, detached.
    """

    loss: Tensor
    features: Sequence[Encoding]
    projections: Sequence[Tensor]
    readings: dict[str, Tensor] = field(default_factory=dict)


class Method(pl.LightningModule):
    """Backbone, projector and objective; a subclass says by `step` what it makes of a batch.

    Args:
        backbone: images (B, 3, H, W) to an Encoding (or (B, D)), with an attribute `width` = D.
        projector: (B, D) to the space the objective compares in.
        objective: the loss.
        training: how all of it is trained.
    """

    views_together: bool = True
    """Whether views of one size go through the networks together; see `Training`."""
    locked: Sequence[str] = ()
    """Parts that stay as they are, by name; see `Training`."""
    unscheduled: ClassVar[Sequence[str]] = ()
    """Parts that keep the peak rate throughout, by name."""
    takes_chunks: ClassVar[bool] = True
    """Whether `training.grad_cache` can be used."""
    evaluated: ClassVar[str] = "backbone"
    """The part whose features are evaluated, exported, and taken by other runs."""
    takes_views: Count = (1, math.inf)
    """Views of a sample that `step` takes, least and most."""
    takes_texts: Count = (0, 0)
    """The same of texts."""

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        objective: Objective,
        training: Training = Training(partial(LARS, lr=0.3, weight_decay=1e-6), Schedule()),
    ) -> None:
        super().__init__()
        self.backbone, self.projector, self.objective = backbone, projector, objective
        self.how = training
        if training.views_together is not None:
            self.views_together = training.views_together
        if training.locked is not None:
            self.locked = training.locked
        self.readings: dict[str, Tensor] = {}
        """Detached scalars of the current step, which monitoring averages and logs."""
        self.total_steps = 1  # of the run, known when it begins
        self._caches: list[GradCache] = []
        if training.grad_cache and not self.takes_chunks:
            raise ValueError(f"{type(self).__name__} is not encoded in chunks: set training.grad_cache to 0")
        self.lock()
        self.check_chunks(backbone)

    def lock(self) -> None:
        """Takes the gradient from the locked parts that are there by now, and puts them in eval mode."""
        for name in self.locked:
            if (part := self.part(name)) is not None:
                part.requires_grad_(False).eval()

    def part(self, name: str) -> nn.Module | None:
        """A part by its name; None if there is none."""
        try:
            return self.get_submodule(name)
        except AttributeError:
            return None

    def check_chunks(self, *towers: nn.Module) -> None:
        """Raises ValueError for a trained tower whose features depend on the chunk that they are computed in."""
        for tower in towers:
            if self.how.grad_cache and any(p.requires_grad for p in tower.parameters()):
                check_exact(tower)

    def train(self, mode: bool = True) -> Self:
        """Training mode for all that is not locked."""
        super().train(mode)
        for name in self.locked:
            if (part := self.part(name)) is not None:
                part.eval()
        return self

    def embed(self, batch: Batch) -> list[Encoding]:
        """Backbone features of each view of a batch: what evaluation sees."""
        encoder = self.get_submodule(self.evaluated)
        return [Encoding.of(encoder(view)) for view in views_of(batch)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Which part is evaluated, for those who take the weights without the method."""
        checkpoint["evaluated"] = self.evaluated

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The loss of a batch, and detached what monitoring looks at: features and projections of view 0, 1, ..."""
        self.check_batch(batch)
        step = self.step(batch)
        self.readings = {**self.objective.diagnostics, **step.readings}
        for teacher in self.teachers():
            self.readings["momentum"] = torch.tensor(teacher.momentum.at(self.global_step, self.total_steps))
        return {
            "loss": step.loss,
            "features": step.features[0].pooled.detach(),
            "projections": torch.stack([projection.detach() for projection in step.projections]),
        }

    def check_batch(self, batch: Batch) -> None:
        """Refuses a batch with fewer views or texts than `step` takes, or more, which would be compared with nothing.

        Raises:
            ValueError: saying how many are taken.
        """
        name = type(self).__name__
        if self.takes_texts[0] and "text" not in batch:
            raise ValueError(f"{name} needs texts: set data.text to viewshards.Captions")
        for what, given, option, (least, most) in (
            ("view", views_of(batch), "data.views", self.takes_views),
            ("text", batch.get("text", []), "data.text", self.takes_texts),
        ):
            if not least <= len(given) <= most:
                wanted = (
                    f"1 {what}" if most == 1 else f"{least} {what}s" if least == most else f"{least} or more {what}s"
                )
                raise ValueError(f"{name} takes {wanted} of a sample, got {len(given)}: set {option}")

    def step(self, batch: Batch) -> Step:
        """The method's forward, from the views of a batch to the loss."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it makes of a batch: define step(batch)")

    def context(self, batch: Batch, objective: Objective | None = None) -> dict[str, Any]:
        """What an objective (default: the method's own) takes of a batch and the run besides the views; and `gather`.

        `present` always goes along: an objective that does not take it refuses samples that lack views.
        """
        takes = (objective or self.objective).takes() | {"present"}
        there = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        found = {name: value for name, value in {**there, "epoch": self.current_epoch}.items() if name in takes}
        return {"gather": distributed.current(), **found}

    def encode(self, tower: nn.Module, views: Sequence[Tensor], tokens: bool = False) -> list[Encoding]:
        """Encodings of each view by a tower; in chunks, with the exact gradient, if `training.grad_cache` says so.

        Args:
            tower: the backbone, or another one. views: (B, ...) each.
            tokens: whether tokens are compared; without, chunks keep pooled features only.

        Raises:
            ValueError: if tokens are wanted and the tower gives none.
        """

        def encoded(view: Tensor) -> Encoding:
            found = Encoding.of(tower(view))
            if tokens and found.tokens is None:
                raise ValueError(f"{type(self).__name__} compares tokens, and {type(tower).__name__} gives none")
            return found

        def parts(view: Tensor) -> tuple[Tensor, ...]:
            found = encoded(view)
            return (found.pooled, *found.patches()) if tokens else (found.pooled,)

        if not self.how.grad_cache:
            return self.of_each(encoded, views)
        if any(p.requires_grad for p in tower.parameters()):
            return [Encoding.of_parts(each) for each in self.in_chunks(tower, parts, list(views))]
        # A locked tower: nothing has to be kept, only its memory bounded.
        cut = [[parts(part) for part in view.split(self.how.grad_cache)] for view in views]
        return [Encoding.of_parts([torch.cat(column) for column in zip(*each, strict=True)]) for each in cut]

    def project(self, features: Sequence[Encoding]) -> list[Tensor]:
        """The projector's (B, d) of the pooled features of each view."""
        return self.of_each(self.projector, [view.pooled for view in features])

    def of_each(self, network: Callable[[Tensor], Seen], views: Sequence[Tensor]) -> list[Seen]:
        """`network` of each view: of those of one shape together, or of one view at a time (`views_together`)."""
        if not self.views_together:
            return [network(view) for view in views]
        found: list[Seen] = []
        for _, same in groupby(views, key=lambda view: view.shape):
            alike = list(same)
            found += network(torch.cat(alike)).chunk(len(alike))
        return found

    def in_chunks(
        self, encoder: nn.Module, encode: Callable[[Tensor], tuple[Tensor, ...]], views: list[Tensor]
    ) -> list[tuple[Tensor, ...]]:
        """`encode` of each view, which trains `encoder`, in chunks of `training.grad_cache` with the exact gradient."""
        trained = [p for p in encoder.parameters() if p.requires_grad]
        cache = GradCache(encode, trained, self.how.grad_cache, self.trainer.precision_plugin.forward_context)
        self._caches.append(cache)
        return cache.forward(views)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's backward, and then the chunks'."""
        super().backward(loss, *args, **kwargs)
        for cache in self._caches:
            cache.backward()
        self._caches = []

    def setup(self, stage: str) -> None:
        """Looks for the parts that `training` names, and keeps DDP from sending the objective's state around.

        That is the same on all ranks by itself. A queue of 65,536 keys has 33 MB, the memory of a large set a gigabyte.

        Raises:
            ValueError: for a part that is not there, or that nothing trains.
        """
        for option, named in (("locked", self.locked), ("frozen", self.how.frozen), ("rates", self.how.rates)):
            for name in named:
                if self.part(name) is None:
                    parts = ", ".join(child for child, _ in self.named_children())
                    raise ValueError(f"training.{option}: no part {name!r}; parts are {parts}, and what lies in them")
        self.lock()
        deep = ("backbone",) if self.how.layer_decay != 1 else ()
        for option, waits in (("frozen", self.how.frozen), ("rates", self.how.rates), ("layer_decay", deep)):
            for name in waits:
                if not any(p.requires_grad for p in self.get_submodule(name).parameters()):
                    raise ValueError(f"training.{option}: nothing in {name!r} is trained")
        names = [
            f"objective.{name}.{buffer}".replace("..", ".")
            for name, module in self.objective.named_modules()
            if not isinstance(module, BatchNorm)
            for buffer, _ in module.named_buffers(recurse=False)
        ]
        ignored_by_ddp(self, names)

    def on_fit_start(self) -> None:
        """Refuses what would silently train something else; makes the objective's state equal once."""
        if dist.is_available() and dist.is_initialized():
            for buffer in self.objective.buffers():
                dist.broadcast(buffer, 0)
        data = getattr(self._data, "train_set", None)
        there = len(data) if isinstance(data, Sized) else 0
        for part in self.objective.modules():
            if there > getattr(part, "samples", there):  # on a GPU an index beyond the end is an error without words
                raise ValueError(
                    f"the training set has {there} samples, but the objective was made for samples={part.samples}: set "
                    "it to the size of the training set"
                )
        if getattr(self._data, "text", None) is not None and self.takes_texts == (0, 0):
            raise ValueError(f"data.text is given, and {type(self).__name__} reads no texts: leave it out")
        if self.objective.batch_coupled and getattr(self._data, "global_batch_size", 2) < 2:
            raise ValueError(
                f"data.global_batch_size is 1, and {type(self.objective).__name__} compares the samples of a batch: "
                "give two or more"
            )
        self._try_views()
        k = self.trainer.accumulate_grad_batches
        if k > 1 and self.objective.batch_coupled:
            raise ValueError(
                f"accumulate_grad_batches={k} would cut the contrastive batch into {k} parts, each with 1/{k} of the "
                f"negatives: another loss, not a larger batch. Make data.global_batch_size {k} times larger and set "
                "model.training.grad_cache to the number of images that fit at once: the exact large batch"
            )

    @property
    def _data(self) -> Any:
        return getattr(self.trainer, "datamodule", None)

    @torch.no_grad()
    def _try_views(self) -> None:
        """Shows the backbone one sample of each view, so that sizes that do not fit are told before anything trains."""
        example = getattr(self._data, "example", None)
        if example is None or isinstance(self, FSDPModule):  # whose parts run inside the whole only
            return
        modes = [(part, part.training) for part in self.backbone.modules()]
        self.backbone.eval()
        try:
            with torch.random.fork_rng(devices=[]), self.trainer.precision_plugin.forward_context():
                batch = self._data.transfer_batch_to_device(example(), self.device, 0)
                self.check_batch(batch)
                for view in views_of(self._data.on_after_batch_transfer(batch, 0)):
                    self._try_view(view)
        finally:
            for part, mode in modes:
                part.training = mode

    def _try_view(self, view: Tensor) -> None:
        try:
            Encoding.of(self.backbone(view))
        except (AssertionError, RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ValueError(
                f"the backbone cannot take views of {' x '.join(map(str, view.shape[1:]))} "
                f"({' '.join(str(error).split())[:300]}): sizes of views are options of data.views, those of the "
                "backbone of model.backbone (image_size, patch_size; frames and tubelet of clips; groups of clouds)"
            ) from error

    def configure_model(self) -> None:
        """Cuts the parameters over the ranks where the strategy is `fsdp2`."""
        if self.device_mesh is None or isinstance(self, FSDPModule):
            return
        if self.how.grad_cache:
            raise ValueError("grad_cache encodes each chunk twice, which fsdp2 does not know of: use one of the two")
        synchronise(self.trainer, self)
        shard(self, self.device_mesh["data_parallel"])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Shortens gradients, and takes them from parts that make no step yet, decay and momentum included."""
        self.how.clipped(self.parameters())
        for name, epochs in self.how.frozen.items():
            if self.current_epoch < epochs:
                for p in self.get_submodule(name).parameters():
                    p.grad = None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step, after which the objective's parameters are brought back into their bounds, and teachers follow.

        MoCo moves its teacher before the next keys are made, BYOL after the step: the same, since it starts equal.
        """
        step = self.global_step
        self.how.decay(self.trainer.optimizers[0], step, self.total_steps)
        super().optimizer_step(*args, **kwargs)
        if self.stepped():
            self.objective.constrain()
            for teacher in self.teachers():
                teacher.follow(self, step, self.total_steps)

    def teachers(self) -> list[Teacher]:
        """Those parts that follow others."""
        return [part for part in self.children() if isinstance(part, Teacher)]

    def stepped(self) -> bool:
        """Whether the optimiser's step was made: a skipped, non-finite one leaves no gradient."""
        return any(p.grad is not None for p in self.parameters())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser over decay groups, its rate scaled by the batch and scheduled over the run's steps."""
        data = self._data
        per_epoch = self._steps_per_epoch(data)
        total = self._total_steps(per_epoch)
        schedule = self.how.schedule
        if schedule.warmup(total, per_epoch) >= total:
            logger.warning("the warm-up is as long as the whole run of %d steps: shorten training.schedule", total)
        self.total_steps = total
        unscheduled = [name for name in self.unscheduled if self.part(name) is not None]
        shares = self.how.shares(self, self.backbone)
        optimizer = self.how.optimizer(groups_of(self, unscheduled, schedule.decay_all, shares))
        if self.how.final_weight_decay and not any(group.get("weight_decay") for group in optimizer.param_groups):
            raise ValueError("training.final_weight_decay: the optimiser has no weight_decay to begin from")
        for group in optimizer.param_groups:
            group["lr"] *= group.get("share", 1.0)
        if schedule.scaling != "none":
            batch = getattr(data, "global_batch_size", None)
            if batch is None:
                raise ValueError("schedule.scaling needs a data module with global_batch_size; or set it to 'none'")
            for group in optimizer.param_groups:
                group["lr"] = schedule.peak(group["lr"], batch)
        factors = {True: lambda step: schedule.factor(step, total, per_epoch), False: lambda step: 1.0}
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, [factors[g["scheduled"]] for g in optimizer.param_groups]
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _steps_per_epoch(self, data: Any) -> int | None:
        """Steps of the optimiser that an epoch will have; None if the data does not say."""
        batches: int | None = getattr(data, "steps_per_epoch", None)
        if batches is None:
            return None
        limit = self.trainer.limit_train_batches  # a number of batches, or a share of them
        all_of_them = batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        if batches < 1:
            raise ValueError(f"trainer.limit_train_batches {limit} leaves none of {all_of_them} batches an epoch")
        return max(1, math.ceil(batches / self.trainer.accumulate_grad_batches))

    def _total_steps(self, per_epoch: int | None) -> int:
        # Never trainer.estimated_stepping_batches: it builds the loaders here and so rewinds a resumed one.
        limits = [self.trainer.max_steps] if self.trainer.max_steps > 0 else []
        if self.trainer.max_epochs is not None and self.trainer.max_epochs > 0 and per_epoch:
            limits.append(self.trainer.max_epochs * per_epoch)
        if limits:
            return min(limits)
        raise ValueError("the schedule needs the length of the run: set trainer.max_steps, or trainer.max_epochs")
