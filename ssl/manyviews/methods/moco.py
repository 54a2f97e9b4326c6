"""MoCo v1 and v2 (He et al., CVPR 2020; Chen et al., 2020), MoCo v3 (Chen et al., ICCV 2021), MoCHi (NeurIPS 2020)."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import nn
from typing_extensions import override

from manyviews import objectives
from manyviews.backbones import views_of, width_of
from manyviews.heads import projector
from manyviews.methods.asymmetric import Asymmetric
from manyviews.methods.method import Batch, Step
from manyviews.objectives import InfoNCE
from manyviews.optim import LARS, Schedule, Training

V2 = Training(
    partial(torch.optim.SGD, lr=0.03, momentum=0.9, weight_decay=1e-4), Schedule(warmup_epochs=0, decay_all=True)
)


class MoCo(Asymmetric):
    """A query finds its key among a queue of keys. Defaults are v2; v1: projector_layers 1, temperature 0.07.

    On several devices set `trainer.sync_batchnorm`: it closes the leak through batch statistics that the paper closes
    by shuffling.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        temperature: t. Paper: 0.2; v1 0.07.
        queue_size: K, past keys. Paper: 65536.
        momentum: of the momentum encoder. final_momentum: at the end; None: constant, as in the paper.
        symmetric: both directions. The paper has one; the CIFAR recipes both.
        projector_layers: 2 (v2) or 1, linear (v1). projector_norm: BatchNorm in it, which the paper has not.
        projector_hidden: width of its hidden layer; default that of the backbone. projector_out: of the embedding.
        training: paper: SGD 0.03 per 256 images, weight decay 1e-4; cosine without a warm-up (v2), 200 epochs; all
            parameters decay.
    """

    def __init__(
        self,
        backbone: nn.Module,
        temperature: float = 0.2,
        queue_size: int = 65536,
        momentum: float = 0.999,
        final_momentum: float | None = None,
        symmetric: bool = False,
        projector_layers: Literal[1, 2] = 2,
        projector_norm: bool = False,
        projector_hidden: int | None = None,
        projector_out: int = 128,
        training: Training = V2,
    ) -> None:
        width = width_of(backbone)
        super().__init__(
            backbone,
            projector(width, projector_hidden or width, projector_out, projector_layers, norm=projector_norm),
            InfoNCE(temperature, queue_size, projector_out),
            training,
            momentum=momentum,
            final_momentum=final_momentum,
            symmetric=symmetric,
        )

    def step(self, batch: Batch) -> Step:
        """Queries of one view or both against keys of the other."""
        views = views_of(batch)
        h = self.encode(self.backbone, views if self.symmetric else views[:1])
        queries, keys = self.project(h), self.taught(views if self.symmetric else views[1:])
        loss = self.objective(queries, targets=keys[::-1], **self.context(batch))
        return Step(loss, h, queries if self.symmetric else [*queries, *keys])


class MoCHi(Asymmetric):
    """MoCo v2 with hard negatives mixed from the queue (Kalantidis et al.).

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        temperature, queue_size, momentum, final_momentum, symmetric, projector_norm, projector_hidden, projector_out:
            as in MoCo.
        hard: N, entries nearest to the query that are mixed. mixed: s, of two entries each.
        mixed_with_query: s', of an entry and the query. from_epoch: first epoch with mixtures.
        training: as in MoCo.
    """

    def __init__(
        self,
        backbone: nn.Module,
        temperature: float = 0.2,
        queue_size: int = 65536,
        hard: int = 1024,
        mixed: int = 1024,
        mixed_with_query: int = 128,
        from_epoch: int = 10,
        momentum: float = 0.999,
        final_momentum: float | None = None,
        symmetric: bool = False,
        projector_norm: bool = False,
        projector_hidden: int | None = None,
        projector_out: int = 128,
        training: Training = V2,
    ) -> None:
        width = width_of(backbone)
        objective = objectives.MoCHi(temperature, queue_size, projector_out, hard, mixed, mixed_with_query, from_epoch)
        head = projector(width, projector_hidden or width, projector_out, norm=projector_norm)
        super().__init__(
            backbone, head, objective, training,
            momentum=momentum, final_momentum=final_momentum, symmetric=symmetric,
        )  # fmt: skip

    def step(self, batch: Batch) -> Step:
        """Queries of one view or both against keys of the other."""
        views = views_of(batch)
        h = self.encode(self.backbone, views if self.symmetric else views[:1])
        queries, keys = self.project(h), self.taught(views if self.symmetric else views[1:])
        loss = self.objective(queries, targets=keys[::-1], **self.context(batch))
        return Step(loss, h, queries if self.symmetric else [*queries, *keys])


class MoCoV3(Asymmetric):
    """MoCo without a queue: a predictor, keys of the batch, both directions.

    Args:
        backbone: images to an Encoding, with an attribute `width`. For ViTs: TimmBackbone with `frozen_patches`.
        temperature: t. Paper: 1.0 (ResNet), 0.2 (ViT).
        scale: of the loss, see InfoNCE; with AdamW and the published rates `official`.
        momentum: at the start; 1 at the end. Paper: 0.99, for 1000 epochs 0.996.
        projector_layers: 2 (ResNet) or 3 (ViT). predictor_norm: BatchNorm at the predictor's end (ViT).
        projector_hidden: width of the hidden layers. projector_out: of the embedding.
        training: paper: LARS 0.6 (100 epochs) or 0.3 per 256 images, weight decay 1e-6; ViT: AdamW 1.5e-4, 0.1; 10
            epochs of warm-up (ViT 40), cosine; with AdamW (ViT) all parameters decay.
    """

    views_together = False

    def __init__(
        self,
        backbone: nn.Module,
        temperature: float = 1.0,
        scale: Literal["mean", "official"] = "official",
        momentum: float = 0.99,
        projector_layers: int = 2,
        predictor_norm: bool = False,
        projector_hidden: int = 4096,
        projector_out: int = 256,
        training: Training = Training(partial(LARS, lr=0.6, weight_decay=1e-6), Schedule()),
    ) -> None:
        hidden, out = projector_hidden, projector_out
        super().__init__(
            backbone,
            projector(width_of(backbone), hidden, out, projector_layers, last="standard"),
            InfoNCE(temperature, scale=scale),
            training,
            predictor=projector(out, hidden, out, last="standard" if predictor_norm else "linear", last_bias=False),
            momentum=momentum,
            final_momentum=1.0,
        )

    @override
    def step(self, batch: Batch) -> Step:
        views = views_of(batch)
        h = self.encode(self.backbone, views)
        z = self.project(h)
        p, targets = self.predict(z), self.taught(views)
        return Step(self.objective(p, targets=targets[::-1], **self.context(batch)), h, z)
