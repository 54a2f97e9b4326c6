"""Joint image-volume learning (Nguyen et al., AAAI 2023): a 2-D encoder for slices, a transformer over them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from manyviews import objectives
from manyviews.backbones import Encoding, width_of
from manyviews.heads import projector
from manyviews.methods.method import Batch, Method, Step
from manyviews.optim import Schedule, Training


class Fusion(nn.Module):
    """A transformer over the slices of a volume, with learnt places; its mean token is the volume.

    A plain encoder in place of the paper's deformable one.

    Args:
        width: of a slice's features. slices: S. depth: layers. heads: of attention.
    """

    def __init__(self, width: int, slices: int, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, slices, width) * 0.02)
        self.unknown = nn.Parameter(torch.randn(width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.predict = nn.Linear(width, width)

    def forward(self, features: Tensor, hidden: Tensor | None = None) -> Tensor:
        """(n, S, width), and (n, S) bool of slices to hide, to tokens (n, S, width)."""
        if hidden is not None:
            features = torch.where(hidden[..., None], self.unknown.to(features.dtype), features)
        tokens: Tensor = self.layers(features + self.places.to(features.dtype))
        return tokens


class ImageVolume(Method):
    """A sample's natural views are the slices of a volume; each is augmented twice (`views` = 2 S, `natural: ordered`).

    Args:
        backbone: of a slice: images to an Encoding, with an attribute `width` that 4 divides.
        objective: clusters of slices and of volumes.
        masked: share of the slices that is hidden and predicted. Paper: 0.1; 0: no third term.
        projector_hidden: width of the hidden layers.
        training: paper: SGD 1e-2, 4 volumes a step.
    """

    takes_chunks = False

    def __init__(
        self,
        backbone: nn.Module,
        objective: objectives.ImageVolume,
        masked: float = 0.1,
        projector_hidden: int = 2048,
        training: Training = Training(
            partial(torch.optim.SGD, lr=1e-2, momentum=0.9, weight_decay=1e-6), Schedule(scaling="none")
        ),
    ) -> None:
        width = width_of(backbone)
        dim = objective.intra.prototypes.shape[1]
        super().__init__(backbone, projector(width, projector_hidden, dim), objective, training)
        self.fusion = Fusion(width, objective.slices)
        self.takes_views = (2 * objective.slices, 2 * objective.slices)
        if not masked:
            self.fusion.predict.requires_grad_(False)
            self.fusion.unknown.requires_grad_(False)
        self.volume_projector, self.masked = projector(width, projector_hidden, dim), masked

    def embed(self, batch: Batch) -> list[Encoding]:
        """One encoding a volume, whose tokens are its slices."""
        slices = torch.stack([Encoding.of(self.backbone(view)).pooled for view in batch["image"]], 1)
        tokens = self.fusion(slices)
        return [Encoding(tokens.mean(1), tokens)]

    def step(self, batch: Batch) -> Step:
        """The first S views are one augmentation of the slices, the others the second."""
        s: int = self.objective.slices  # type: ignore[assignment]
        views = batch["image"]
        h = self.encode(self.backbone, views)
        z = self.project(h)
        both = [torch.stack([view.pooled for view in part], 1) for part in (h[:s], h[s:])]
        volumes = [self.volume_projector(self.fusion(part).mean(1)) for part in both]
        context = self.context(batch)
        if self.masked:
            hidden = torch.rand(both[0].shape[:2], device=both[0].device) < self.masked
            hidden[:, 0] |= ~hidden.any()  # at least one, so that every parameter has a gradient
            context |= {"hidden": hidden, "features": both[0]}
            context["predicted"] = self.fusion.predict(self.fusion(both[0], hidden))
        embeddings = [torch.cat(part, 1) for part in (z[:s], z[s:])]
        return Step(self.objective(embeddings, volumes=volumes, **context), h, volumes)
