"""BECLR (Poulakakis-Daktylidis and Jamali-Rad, ICLR 2024): pretraining for few-shot learning."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from manyviews import objectives
from manyviews.backbones import views_of, width_of
from manyviews.heads import projector
from manyviews.methods.asymmetric import Asymmetric
from manyviews.methods.method import Batch, Step
from manyviews.optim import Schedule, Training


class BECLR(Asymmetric):
    """Student and teacher; the student's images have holes, its targets are joined by their neighbours.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        memory, clusters, neighbours, spread, from_epoch: see the objective.
        masked: share of the student's image that is blanked, in `patch` x `patch` squares. Paper: 0.15, one view.
        patch: side of a square in pixels.
        momentum: of the teacher at the start; 1 at the end. Authors: 0.995.
        projector_hidden: of projector and predictor. projector_out: of the embedding.
        training: paper: SGD 0.3 per 256 images, cosine, 400 epochs.
    """

    def __init__(
        self,
        backbone: nn.Module,
        memory: int = 8192,
        clusters: int = 200,
        neighbours: int = 5,
        spread: float = 0.1,
        from_epoch: int = 60,
        masked: float = 0.15,
        patch: int = 8,
        momentum: float = 0.995,
        projector_hidden: int = 512,
        projector_out: int = 512,
        training: Training = Training(partial(torch.optim.SGD, lr=0.3, momentum=0.9, weight_decay=1e-4), Schedule()),
    ) -> None:
        objective = objectives.BECLR(projector_out, memory, clusters, neighbours, spread, from_epoch=from_epoch)
        super().__init__(
            backbone,
            projector(width_of(backbone), projector_hidden, projector_out, 3),
            objective,
            training,
            predictor=projector(projector_out, max(1, projector_hidden // 4), projector_out),
            momentum=momentum,
            final_momentum=1.0,
        )
        self.masked, self.patch = masked, patch

    def step(self, batch: Batch) -> Step:
        """The student's first view has holes."""
        views = views_of(batch)
        h = self.encode(self.backbone, [blanked(views[0], self.masked, self.patch), views[1]])
        z = self.project(h)
        p, targets = self.predict(z), self.taught(views)
        return Step(self.objective(p, targets=targets[::-1], projections=z, **self.context(batch)), h, z)


def blanked(images: Tensor, share: float, patch: int) -> Tensor:
    """(B, 3, H, W) with about this share of its squares set to 0, the mean colour."""
    n, _, height, width = images.shape
    keep = torch.rand(n, 1, -(-height // patch), -(-width // patch), device=images.device) >= share
    grown = keep.repeat_interleave(patch, 2).repeat_interleave(patch, 3)[..., :height, :width]
    return images * grown
