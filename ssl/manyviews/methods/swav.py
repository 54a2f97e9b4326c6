"""SwAV and DeepCluster-v2 (Caron et al., NeurIPS 2020): clusters as targets, many crops."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn
from typing_extensions import override

from manyviews import objectives
from manyviews.backbones import views_of, width_of
from manyviews.heads import projector
from manyviews.methods.method import Batch, Method, Step
from manyviews.optim import LARS, Schedule, Training


class SwAV(Method):
    """Predict the balanced assignment of another crop. Views: two large crops and any number of small ones.

    Args:
        backbone: images of any size to an Encoding, with an attribute `width`.
        prototypes, temperature, epsilon, large, queue_size, queue_from, frozen_epochs: see the objective.
        projector_hidden: width of the hidden layer. projector_out: of the embedding.
        training: paper: LARS 0.3 per 256 images (4.8 at 4096; 0.6 at 256), weight decay 1e-6; 10 epochs of warm-up,
            cosine to a thousandth; LARS and decay act on all parameters.
    """

    def __init__(
        self,
        backbone: nn.Module,
        prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        large: int = 2,
        queue_size: int = 0,
        queue_from: int = 15,
        frozen_epochs: int = 1,
        projector_hidden: int = 2048,
        projector_out: int = 128,
        training: Training = Training(partial(LARS, lr=0.3, weight_decay=1e-6), Schedule(final=0.001, decay_all=True)),
    ) -> None:
        objective = objectives.SwAV(
            projector_out, prototypes, temperature, epsilon, large=large, queue_size=queue_size,
            queue_from=queue_from, frozen_epochs=frozen_epochs,
        )  # fmt: skip
        head = projector(width_of(backbone), projector_hidden, projector_out)
        super().__init__(backbone, head, objective, training)

    @override
    def step(self, batch: Batch) -> Step:
        h = self.encode(self.backbone, views_of(batch))
        z = self.project(h)
        return Step(self.objective(z, **self.context(batch)), features=h, projections=z)


class DeepCluster(Method):
    """DeepCluster-v2: the labels are clusters of last epoch's embeddings.

    Args:
        backbone: images of any size to an Encoding, with an attribute `width`.
        samples: size of the training set.
        prototypes, temperature, large: see the objective.
        projector_hidden: width of the hidden layer. projector_out: of the embedding.
        training: as in SwAV.
    """

    def __init__(
        self,
        backbone: nn.Module,
        samples: int,
        prototypes: Sequence[int] = (3000, 3000, 3000),
        temperature: float = 0.1,
        large: int = 2,
        projector_hidden: int = 2048,
        projector_out: int = 128,
        training: Training = Training(partial(LARS, lr=0.3, weight_decay=1e-6), Schedule(final=0.001, decay_all=True)),
    ) -> None:
        objective = objectives.DeepCluster(samples, projector_out, prototypes, temperature, large)
        head = projector(width_of(backbone), projector_hidden, projector_out)
        super().__init__(backbone, head, objective, training)

    @override
    def step(self, batch: Batch) -> Step:
        h = self.encode(self.backbone, views_of(batch))
        z = self.project(h)
        return Step(self.objective(z, **self.context(batch)), features=h, projections=z)
