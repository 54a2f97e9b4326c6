"""What methods with two unequal branches share: a predictor, a momentum encoder, or both."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from manyviews.backbones import Encoding, views_of
from manyviews.methods.method import Batch, Count, Method, Step
from manyviews.objectives import Objective
from manyviews.optim import LARS, Ramp, Schedule, Teacher, Training


class Asymmetric(Method):
    """Predictions of each view are compared with projections of the other, which are constants.

    The constant side is a momentum encoder, or the same network (SimSiam). With neither predictor nor momentum the
    views are compared with each other, which lets one method stand on hosts of both kinds.

    Args:
        backbone, projector, objective, training: as in Method.
        predictor: follows the projector on the trained side only; None: nothing.
        momentum: of the momentum encoder at the start; None: the network is its own target.
        final_momentum: at the end of the run, reached along a half cosine; None: `momentum` throughout.
        symmetric: both directions; False: only view 0 is trained against view 1 (MoCo v1, v2).
    """

    takes_views: Count = (2, 2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        objective: Objective,
        training: Training = Training(partial(LARS, lr=0.3, weight_decay=1e-6), Schedule()),
        *,
        predictor: nn.Module | None = None,
        momentum: float | None = None,
        final_momentum: float | None = None,
        symmetric: bool = True,
    ) -> None:
        super().__init__(backbone, projector, objective, training)
        self.predictor: nn.Module | None
        self.predictor, self.symmetric = predictor, symmetric
        self.teacher: Teacher | None = None
        if momentum is not None:
            self.teacher = Teacher({"backbone": backbone, "projector": projector}, Ramp(momentum, final_momentum))

    def step(self, batch: Batch) -> Step:
        """Each view's prediction against the other view's target, whatever the host has of predictor and teacher."""
        views = views_of(batch)
        h = self.encode(self.backbone, views if self.symmetric else views[:1])
        z, context = self.project(h), self.context(batch)
        if self.predictor is None and self.teacher is None:
            return Step(self.objective(z, **context), h, z)
        targets = self.taught(views[0 if self.symmetric else 1 :]) if self.teacher else [view.detach() for view in z]
        predictions = self.predict(z) if self.predictor else z
        loss = self.objective(predictions, targets=targets[::-1], **context)
        return Step(loss, h, z if self.symmetric else [*z, *targets])

    def predict(self, projections: Sequence[Tensor]) -> list[Tensor]:
        """The predictor's (n, d) of each projection."""
        assert self.predictor is not None
        return self.of_each(self.predictor, projections)

    @torch.no_grad()
    def taught(self, views: Sequence[Tensor]) -> list[Tensor]:
        """The teacher's projection (n, d) of each view."""
        assert self.teacher is not None
        backbone, projector = map(self.teacher.get_submodule, ("backbone", "projector"))
        return self.of_each(lambda view: projector(Encoding.of(backbone(view)).pooled), views)
