"""lightly's SimCLR, BYOL and Barlow Twins as peers: their heads and losses, our data, optimiser and evaluation.

They need `pip install -e '.[bench]'`.
"""

from __future__ import annotations

import torch
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import (
    BarlowTwinsProjectionHead,
    BYOLPredictionHead,
    BYOLProjectionHead,
    SimCLRProjectionHead,
)
from torch import Tensor, nn

from manyviews.methods import Asymmetric, Method
from manyviews.objectives import Objective
from manyviews.optim import OptimizerFactory, Schedule


class Peer(Objective):
    """Another library's loss of two views."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion

    def loss(self, views: list[Tensor], rows: object, targets: list[Tensor] | None = None, **_: object) -> Tensor:
        """With targets the mean of the pairs' losses, else that of the two views."""
        if targets is None:
            return self.criterion(*views)
        return torch.stack([self.criterion(p, z) for p, z in zip(views, targets, strict=True)]).mean()


class LightlySimCLR(Method):
    """lightly's SimCLR."""

    def __init__(
        self, backbone: nn.Module, optimizer: OptimizerFactory, schedule: Schedule, temperature: float = 0.2
    ) -> None:
        head = SimCLRProjectionHead(backbone.width, 512, 128)
        super().__init__(backbone, head, Peer(NTXentLoss(temperature)), optimizer, schedule)


class LightlyBYOL(Asymmetric):
    """lightly's BYOL."""

    def __init__(
        self, backbone: nn.Module, optimizer: OptimizerFactory, schedule: Schedule, momentum: float = 0.95
    ) -> None:
        super().__init__(
            backbone, BYOLProjectionHead(backbone.width, 512, 128), Peer(NegativeCosineSimilarity()),
            optimizer, schedule, predictor=BYOLPredictionHead(128, 512, 128), momentum=momentum, final_momentum=1.0,
        )  # fmt: skip


class LightlyBarlowTwins(Method):
    """lightly's Barlow Twins."""

    def __init__(
        self, backbone: nn.Module, optimizer: OptimizerFactory, schedule: Schedule, redundancy: float = 0.005
    ) -> None:
        head = BarlowTwinsProjectionHead(backbone.width, 256, 256)
        super().__init__(backbone, head, Peer(BarlowTwinsLoss(redundancy)), optimizer, schedule)
