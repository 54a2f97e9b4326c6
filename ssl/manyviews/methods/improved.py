"""Improved baselines (Fini et al., TMLR 2023): weak and strong views of both sides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from manyviews import distributed, objectives
from manyviews.backbones import Encoding, views_of, width_of
from manyviews.heads import LogitScale, projector
from manyviews.methods.imagetext import ImageText
from manyviews.methods.method import Batch, Count, Step
from manyviews.objectives import Objective
from manyviews.objectives.clip import Positives
from manyviews.optim import Ramp, Schedule, Teacher, Training

RECIPE = Training(
    partial(torch.optim.AdamW, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.1), Schedule(warmup_epochs=1, scaling="none")
)


class ImprovedCLIP(ImageText):
    """One weak and A strong views of image and of text; a linear map for the weak ones, an MLP for the strong ones.

    Views: `data.views` gives 1 + A of the image, weak first, `data.text` as many of the caption.

    Args:
        backbone: image tower. text_backbone: text tower.
        dim: of the joint space. hidden: width of the MLPs' hidden layers; paper 4096.
        logit_scale: of the weak views; default 1/0.07. strong_scale: of the strong ones; default 10.
        smoothing: of the strong views' labels. reduction: `mean` or `sum` over the two directions.
        training: paper: AdamW 3e-3, weight decay 0.1 (CC3M: 0.5); one epoch of warm-up, cosine.
        positives: as in CLIP.
    """

    takes_views: Count = (2, math.inf)
    takes_texts: Count = (2, math.inf)

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        dim: int = 512,
        hidden: int = 4096,
        logit_scale: LogitScale | None = None,
        strong_scale: LogitScale | None = None,
        smoothing: float = 0.1,
        reduction: Literal["mean", "sum"] = "mean",
        training: Training = RECIPE,
        positives: Positives = "own",
    ) -> None:
        objective = objectives.ImprovedCLIP(logit_scale, strong_scale, smoothing, reduction, positives)
        super().__init__(backbone, text_backbone, objective, dim, training=training)
        self.strong_projectors = nn.ModuleList(projector(width, hidden, dim, 3) for width in self.widths)

    @property
    def widths(self) -> tuple[int, int]:
        """Of the image features and of the text features."""
        return width_of(self.backbone), width_of(self.text_backbone)

    @override
    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        images, texts = len(views_of(batch)), len(batch["text"])
        if images != texts:
            raise ValueError(
                f"{type(self).__name__} takes a weak and strong views of image and text alike, got {images} of images "
                f"and {texts} of texts: set data.views and data.text"
            )

    @override
    def step(self, batch: Batch) -> Step:
        images, texts = self.towers(batch)
        pair = [self.projector(images[0].pooled), self.text_projector(texts[0].pooled)]
        strong = [
            head(view.pooled)
            for head, views in zip(self.strong_projectors, (images, texts), strict=True)
            for view in views[1:]
        ]
        loss = self.objective([*pair, *strong], **self.context(batch))
        further, readings = self.further(images, texts, strong, batch)
        return Step(loss if further is None else loss + further, images, pair, readings)

    def further(
        self, images: list[Encoding], texts: list[Encoding], strong: list[Tensor], batch: Batch
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """What a companion adds to the loss, and what of it is shown."""
        return None, {}

    @staticmethod
    def ordered(images: list[Tensor], texts: list[Tensor]) -> list[Tensor]:
        """[image weak, text weak, image strong ..., text strong ...]: the order the objectives want."""
        return [images[0], texts[0], *images[1:], *texts[1:]]


class _Companion(ImprovedCLIP):
    """The recipe and a second objective on projections of its own.

    Args:
        companion: the second objective. heads: projectors of image and of text features.
        options: of ImprovedCLIP.
    """

    def __init__(self, companion: Objective, heads: Sequence[nn.Module], **options: Any) -> None:
        super().__init__(**options)
        self.companion, self.heads = companion, nn.ModuleList(heads)

    def projected(self, images: list[Encoding], texts: list[Encoding]) -> list[Tensor]:
        """The companion's projections of all views, in the objectives' order."""
        sides = zip(self.heads, (images, texts), strict=True)
        return self.ordered(*([head(view.pooled) for view in views] for head, views in sides))


class SiamLIP(_Companion):
    """The recipe, and image and text that predict each other's projection.

    Args:
        backbone, text_backbone, dim, hidden, logit_scale, strong_scale, smoothing, training: as in ImprovedCLIP.
        companion_hidden: width of the hidden layers of projectors and predictors; paper 2048.
        companion_out: of the projection; paper 128.
        momentum: of the momentum encoder that makes the targets (BYOLIP: 0.99); None: the same network.
        positives: as in CLIP. reduction: of the recipe's loss, as in ImprovedCLIP; the companion is not doubled.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        dim: int = 512,
        hidden: int = 4096,
        logit_scale: LogitScale | None = None,
        strong_scale: LogitScale | None = None,
        smoothing: float = 0.1,
        companion_hidden: int = 2048,
        companion_out: int = 128,
        momentum: float | None = None,
        training: Training = RECIPE,
        positives: Positives = "own",
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        widths = width_of(backbone), width_of(text_backbone)
        wide, out = companion_hidden, companion_out
        super().__init__(
            objectives.SiamLIP(), [projector(width, wide, out, last="standard") for width in widths],
            backbone=backbone, text_backbone=text_backbone, dim=dim, hidden=hidden, logit_scale=logit_scale,
            strong_scale=strong_scale, smoothing=smoothing, training=training, positives=positives, reduction=reduction,
        )  # fmt: skip
        self.predictors = nn.ModuleList(projector(out, wide, out) for _ in widths)
        self.teacher: Teacher | None = None
        if momentum is not None:  # a locked tower is its own target
            towers = {"backbone": backbone, "text_backbone": text_backbone}
            followed = {name: tower for name, tower in towers.items() if trained(tower)}
            self.teacher = Teacher({"heads": self.heads, **followed}, Ramp(momentum))

    @override
    def further(
        self, images: list[Encoding], texts: list[Encoding], strong: list[Tensor], batch: Batch
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        projections = self.projected(images, texts)
        count = len(images) - 1
        modality = [0, 1, *[0] * count, *[1] * count]
        predictions = [self.predictors[m](z) for m, z in zip(modality, projections, strict=True)]
        targets = projections if self.teacher is None else self._targets(batch)
        loss = self.companion(predictions, targets=targets, gather=distributed.current())
        return loss, {"companion": loss.detach()}

    @torch.no_grad()
    def _targets(self, batch: Batch) -> list[Tensor]:
        assert self.teacher is not None
        own = dict(self.teacher.named_children())
        towers = [own.get(name, self.get_submodule(name)) for name in ("backbone", "text_backbone")]
        sides = zip((views_of(batch), batch["text"]), towers, cast(nn.ModuleList, own["heads"]), strict=True)
        return self.ordered(*([head(Encoding.of(tower(x)).pooled) for x in views] for views, tower, head in sides))


def trained(module: nn.Module) -> bool:
    """Whether any of its parameters learns."""
    return any(p.requires_grad for p in module.parameters())


class BYOLIP(SiamLIP):
    """SiamLIP with targets from a momentum encoder.

    Args:
        backbone, text_backbone, dim, hidden, logit_scale, strong_scale, smoothing, companion_hidden, companion_out,
            training: as in SiamLIP.
        momentum: of the momentum encoder; paper 0.99, constant.
        positives: as in CLIP. reduction: of the recipe's loss, as in ImprovedCLIP; the companion is not doubled.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        dim: int = 512,
        hidden: int = 4096,
        logit_scale: LogitScale | None = None,
        strong_scale: LogitScale | None = None,
        smoothing: float = 0.1,
        companion_hidden: int = 2048,
        companion_out: int = 128,
        momentum: float = 0.99,
        training: Training = RECIPE,
        positives: Positives = "own",
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__(
            backbone, text_backbone, dim, hidden, logit_scale, strong_scale, smoothing, companion_hidden,
            companion_out, momentum, training, positives, reduction,
        )  # fmt: skip


class BarLIP(_Companion):
    """The recipe, and a cross-correlation of image and text that shall be the identity.

    Args:
        backbone, text_backbone, dim, hidden, logit_scale, strong_scale, smoothing, training: as in ImprovedCLIP.
        companion_hidden: width of the projectors' hidden layers; paper 3000. companion_out: paper 8192.
        positives: as in CLIP. reduction: of the recipe's loss, as in ImprovedCLIP; the companion is not doubled.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        dim: int = 512,
        hidden: int = 4096,
        logit_scale: LogitScale | None = None,
        strong_scale: LogitScale | None = None,
        smoothing: float = 0.1,
        companion_hidden: int = 3000,
        companion_out: int = 8192,
        training: Training = RECIPE,
        positives: Positives = "own",
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        widths = width_of(backbone), width_of(text_backbone)
        heads = [projector(width, companion_hidden, companion_out, 3, last="batch") for width in widths]
        super().__init__(
            objectives.BarLIP(), heads,
            backbone=backbone, text_backbone=text_backbone, dim=dim, hidden=hidden, logit_scale=logit_scale,
            strong_scale=strong_scale, smoothing=smoothing, training=training, positives=positives, reduction=reduction,
        )  # fmt: skip

    @override
    def further(
        self, images: list[Encoding], texts: list[Encoding], strong: list[Tensor], batch: Batch
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        loss = self.companion(self.projected(images, texts), gather=distributed.current())
        return loss, {"companion": loss.detach()}


class SwALIP(ImprovedCLIP):
    """The recipe, and the balanced assignment of the other views to the batch as a target. Two strong views.

    Args:
        backbone, text_backbone, dim, hidden, logit_scale, strong_scale, training: as in ImprovedCLIP. There is no label
            smoothing.
        weight: of the companion; paper 0.2.
        positives: as in CLIP. reduction: of the recipe's loss, as in ImprovedCLIP; the companion is not doubled.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        dim: int = 512,
        hidden: int = 4096,
        logit_scale: LogitScale | None = None,
        strong_scale: LogitScale | None = None,
        weight: float = 0.2,
        training: Training = RECIPE,
        positives: Positives = "own",
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__(
            backbone, text_backbone, dim, hidden, logit_scale, strong_scale, 0.0, reduction, training,
            positives,
        )  # fmt: skip
        assert isinstance(self.objective, objectives.ImprovedCLIP)
        self.weight, self.companion = weight, objectives.SwALIP(self.objective.strong.scale)

    @override
    def further(
        self, images: list[Encoding], texts: list[Encoding], strong: list[Tensor], batch: Batch
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        loss = self.companion([strong[0], strong[0], *strong], gather=distributed.current())
        return self.weight * loss, {"companion": loss.detach()}
