"""What methods for images with texts share: two towers, two projections, locking, the joint space."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from manyviews import distributed
from manyviews.backbones import Encoding, views_of, width_of
from manyviews.methods.method import Batch, Count, Method
from manyviews.monitoring import diagnostics
from manyviews.objectives import Objective
from manyviews.optim import Schedule, Training
from manyviews.similarity import unit

OPEN_CLIP = Training(
    partial(torch.optim.AdamW, lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2),
    Schedule(warmup_steps=2000, scaling="none"),
)
"""open_clip's settings for ViTs."""


class ImageText(Method):
    """An image tower and a text tower into one joint space, where an objective compares them.

    Args:
        backbone: images (B, 3, H, W) to an Encoding, with an attribute `width`.
        text_backbone: token ids (B, L) to an Encoding, with an attribute `width`.
        objective: the loss of image and text embeddings.
        dim: of the joint space.
        projector: pooled image features to the joint space; default linear without bias. text_projector: of texts.
        training: as in Method.
    """

    takes_views: Count = (1, 1)
    takes_texts: Count = (1, 1)
    hard_captions: ClassVar[bool] = False
    """Whether hard captions are read."""

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        objective: Objective,
        dim: int = 512,
        projector: nn.Module | None = None,
        text_projector: nn.Module | None = None,
        training: Training = OPEN_CLIP,
    ) -> None:
        super().__init__(backbone, projector or projection(backbone, dim), objective, training)
        self.text_backbone = text_backbone
        self.text_projector = text_projector or projection(text_backbone, dim)
        self.dim = dim
        self.lock()
        self.check_chunks(text_backbone)

    def on_fit_start(self) -> None:
        """As in Method; refuses to declare duplicates to an objective that does not know of any."""
        if getattr(getattr(self._data, "text", None), "duplicates", False) and "group" not in self.objective.takes():
            raise ValueError(
                f"data.text.duplicates is true, and {type(self.objective).__name__} does not know of duplicates (it "
                "takes no `group`): leave it out"
            )
        if getattr(getattr(self._data, "text", None), "hard", 0) and not self.hard_captions:
            raise ValueError(f"{type(self).__name__} reads no hard captions: set data.text.hard to 0")
        super().on_fit_start()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """As in Method; of equal captions in the batch monitoring is told."""
        found = super().training_step(batch, batch_idx)
        rows = distributed.current()(len(batch["text"][0]))
        share, floor = diagnostics.duplicates(rows.gather(batch["text"][0]))
        self.readings |= {"duplicate_captions": share, "loss_floor": floor}
        return found

    def context(self, batch: Batch, objective: Objective | None = None) -> dict[str, Any]:
        """As in Method; a sample that stands in the batch twice (`data.cells`) is a twin of itself, no negative."""
        context = super().context(batch, objective)
        index, group = batch.get("index"), context.get("group")
        if index is not None and group is not None:
            everyone = distributed.current()(len(index)).gather(index)
            if len(everyone.unique()) < len(everyone):
                context["group"] = torch.where(group >= 0, group, 2**40 + index)
        return context

    def towers(self, batch: Batch, tokens: bool = False) -> tuple[list[Encoding], list[Encoding]]:
        """Encodings of all image views and of all text views; `tokens`: as in `encode`."""
        images = self.encode(self.backbone, views_of(batch), tokens)
        return images, self.encode(self.text_backbone, batch["text"], tokens)

    # What evaluation asks.

    def embed_image(self, images: Tensor) -> Encoding:
        """Images (B, 3, H, W) in the joint space: pooled (B, dim) of length 1."""
        return self.joint_image(Encoding.of(self.backbone(images)))

    def embed_text(self, ids: Tensor) -> Encoding:
        """Token ids (B, L) in the joint space: pooled (B, dim) of length 1."""
        return self.joint_text(Encoding.of(self.text_backbone(ids)))

    def joint_image(self, features: Encoding) -> Encoding:
        """The image tower's features in the joint space."""
        return Encoding(unit(self.projector(features.pooled)))

    def joint_text(self, features: Encoding) -> Encoding:
        """The text tower's features in the joint space."""
        return Encoding(unit(self.text_projector(features.pooled)))

    def similarity(self, images: Encoding, texts: Encoding) -> tuple[Tensor, Tensor]:
        """(B, M) scores by which images choose texts, and (B, M) by which texts choose images: here the cosine."""
        scores = images.pooled @ texts.pooled.T
        return scores, scores


def projection(tower: nn.Module, dim: int) -> nn.Module:
    """A linear map without bias to the joint space: the tower's own if it brings one, else started as in CLIP.

    A tower that ends with its projection (open_clip's ResNets) gets none.
    """
    width = width_of(tower)
    own = getattr(tower, "projection", False)
    if own is None:
        if width != dim:
            raise ValueError(f"{type(tower).__name__} ends in its own joint space of {width}: set dim to it")
        return nn.Identity()
    layer = nn.Linear(width, dim, bias=False)
    with torch.no_grad():
        if isinstance(own, Tensor) and own.shape == (width, dim):
            layer.weight.copy_(own.T)
        else:
            layer.weight.normal_(std=width**-0.5)
    return layer
