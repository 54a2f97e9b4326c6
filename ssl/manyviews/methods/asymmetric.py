"""What methods with two unequal branches share: a predictor, a momentum encoder, or both."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from manyviews.backbones import Encoding, views_of
from manyviews.methods.method import Batch, Method, Step
from manyviews.objectives import Objective
from manyviews.optim import EMA, LARS, OptimizerFactory, Schedule, cosine_momentum


class Asymmetric(Method):
    """Predictions of each view are compared with projections of the other, which are constants.

    The constant side is a momentum encoder, or the same network (SimSiam). With neither predictor nor momentum this is
    `Method`, which lets one method stand on hosts of both kinds.

    Args:
        backbone, projector, objective, optimizer, schedule, grad_cache, views_together: as in Method.
        predictor: follows the projector on the trained side only; None: nothing.
        momentum: of the momentum encoder at the start; None: the network is its own target.
        final_momentum: at the end of the run, reached along a half cosine; None: `momentum` throughout.
        symmetric: both directions; False: only view 0 is trained against view 1 (MoCo v1, v2).
    """

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        objective: Objective,
        optimizer: OptimizerFactory = partial(LARS, lr=0.3, weight_decay=1e-6),
        schedule: Schedule = Schedule(),
        grad_cache: int = 0,
        *,
        predictor: nn.Module | None = None,
        momentum: float | None = None,
        final_momentum: float | None = None,
        symmetric: bool = True,
        views_together: bool = True,
    ) -> None:
        super().__init__(backbone, projector, objective, optimizer, schedule, grad_cache, views_together)
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        self.predictor: nn.Module | None
        self.predictor, self.symmetric = predictor, symmetric
        self.momentum, self.final_momentum = momentum, final_momentum
        self.target = None if momentum is None else EMA(nn.ModuleList([backbone, projector]))

    def step(self, batch: Batch) -> Step:
        """Each view's prediction against the other view's target."""
        views = views_of(batch)
        if len(views) != 2:
            raise ValueError(f"{type(self).__name__} is defined for 2 views, got {len(views)}: set data.views to two")
        h = self.encode(self.backbone, self.shown(views if self.symmetric else views[:1]))
        z, context = self.project(h), self.context(batch)
        if self.predictor is None and self.target is None:
            return Step(self.objective(z, **context), h, z)
        if self.target is None:
            targets = [projection.detach() for projection in z]
        else:
            targets = self.of_each(self.embed_target, views[0 if self.symmetric else 1 :])
        predictions = z if self.predictor is None else self.of_each(self.predictor, z)
        if "projections" in self.objective.takes():
            context["projections"] = z
        loss = self.objective(predictions, targets=targets[::-1], **context)
        momentum = {} if self.target is None else {"momentum": torch.tensor(self.momentum_now())}
        return Step(loss, h, z if self.symmetric else [*z, *targets], momentum)

    def shown(self, views: list[Tensor]) -> list[Tensor]:
        """What the trained side sees of the views."""
        return views

    @torch.no_grad()
    def embed_target(self, images: Tensor) -> Tensor:
        """(n, D) projections by the momentum encoder."""
        assert self.target is not None
        encoder, head = cast(nn.ModuleList, self.target.module)
        projection: Tensor = head(Encoding.of(encoder(images)).pooled)
        return projection

    def momentum_now(self) -> float:
        """The momentum of this step's update."""
        assert self.momentum is not None
        if self.final_momentum is None:
            return self.momentum
        return cosine_momentum(self.momentum, self.global_step, self.total_steps, self.final_momentum)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step, then the momentum encoder's, which follows it.

        MoCo moves it before the next keys are made, BYOL after the step: the same sequence, since it starts equal.
        """
        momentum = self.momentum_now() if self.target is not None else 0.0
        super().optimizer_step(*args, **kwargs)
        if self.target is not None and self.stepped():
            trained: list[nn.Module] = [self.backbone, self.projector]
            self.target.update(nn.ModuleList(trained), momentum)
