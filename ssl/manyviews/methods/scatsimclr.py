"""ScatSimCLR (Kinakh et al., ICCV workshops 2021): SimCLR on a scattering front end, with a pretext task."""

from __future__ import annotations

from functools import partial
from itertools import permutations
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyviews import distributed
from manyviews.backbones import Encoding, width_of
from manyviews.heads import projector
from manyviews.methods.method import Batch, Method, Step
from manyviews.objectives import NTXent
from manyviews.optim import Schedule, Training


class ScatSimCLR(Method):
    r"""NT-Xent, and a classifier that tells which transform was applied to an image: L = NT-Xent + lambda CE.

    Args:
        backbone: `ScatteringBackbone`, or any other: images to an Encoding, with an attribute `width`.
        temperature: t. Paper: 0.5.
        pretext: `rotation`, by a multiple of 90 degrees; `jigsaw`, one of the 24 orders of its four quarters (the paper
            has 35 of nine parts); `none`.
        weight: lambda. Paper: 0.3. dropout: in the pretext head. Paper: 0.5.
        projector_out: width of the embedding.
        training: paper: Adam 3e-4, weight decay 1e-5, batch 64.
    """

    takes_chunks = False

    def __init__(
        self,
        backbone: nn.Module,
        temperature: float = 0.5,
        pretext: Literal["rotation", "jigsaw", "none"] = "rotation",
        weight: float = 0.3,
        dropout: float = 0.5,
        projector_out: int = 128,
        training: Training = Training(
            partial(torch.optim.Adam, lr=3e-4, weight_decay=1e-5), Schedule(warmup_epochs=0, scaling="none")
        ),
    ) -> None:
        width = width_of(backbone)
        head = projector(width, width, projector_out, norm=False)
        super().__init__(backbone, head, NTXent(temperature), training)
        if pretext not in ("rotation", "jigsaw", "none"):
            raise ValueError(f"pretext must be rotation, jigsaw or none, got {pretext!r}")
        self.pretext, self.weight = pretext, weight
        self.orders = list(permutations(range(4)))
        self.classes = 4 if pretext == "rotation" else len(self.orders)
        self.pretext_head = None  # unused parameters would stop DDP
        if pretext != "none" and weight:
            self.pretext_head = nn.Sequential(
                nn.Linear(width, 512), nn.ReLU(), nn.Dropout(dropout),
                nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, self.classes),
            )  # fmt: skip

    def step(self, batch: Batch) -> Step:
        """NT-Xent of the views as they are; the pretext on one transformed copy of each image."""
        h = self.encode(self.backbone, batch["image"])
        z = self.project(h)
        loss = self.objective(z, **self.context(batch))
        if self.pretext_head is None:
            return Step(loss, h, z)
        images = batch["image"][0]
        kind = torch.randint(self.classes, (len(images),), device=images.device)
        transformed = rotated(images, kind) if self.pretext == "rotation" else self.shuffled(images, kind)
        guess = self.pretext_head(Encoding.of(self.backbone(transformed)).pooled).float()
        rows = distributed.current()(len(images))
        pretext = rows.mean(F.cross_entropy(guess, kind, reduction="none"))
        accuracy = rows.mean((guess.argmax(1) == kind).float())
        readings = {"pretext_loss": pretext.detach(), "pretext_accuracy": accuracy}
        return Step(loss + self.weight * pretext, h, z, readings)

    def shuffled(self, images: Tensor, kind: Tensor) -> Tensor:
        """The four quarters of each image in the order of its kind."""
        half_h, half_w = images.shape[2] // 2, images.shape[3] // 2
        rows, columns = (slice(0, half_h), slice(half_h, 2 * half_h)), (slice(0, half_w), slice(half_w, 2 * half_w))
        places = [(r, c) for r in rows for c in columns]
        quarters = torch.stack([images[:, :, r, c] for r, c in places], 1)
        order = torch.tensor(self.orders, device=images.device)[kind]
        chosen = quarters[torch.arange(len(images), device=images.device)[:, None], order]
        result = images.clone()
        for number, (r, c) in enumerate(places):
            result[:, :, r, c] = chosen[:, number]
        return result


def rotated(images: Tensor, turns: Tensor) -> Tensor:
    """Square images, each turned by so many quarters."""
    every = torch.stack([torch.rot90(images, k, (2, 3)) for k in range(4)])
    return every[turns, torch.arange(len(images), device=images.device)]
