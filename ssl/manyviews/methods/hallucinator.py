"""Hallucinator (Wu et al., ICCV 2023): hallucinated queries over MoCo, SimCLR or SimSiam."""

from __future__ import annotations

from functools import partial

from torch import nn

from manyviews import objectives
from manyviews.backbones import width_of
from manyviews.heads import projector
from manyviews.methods.asymmetric import Asymmetric
from manyviews.optim import LARS, Schedule, Training


class Hallucinator(Asymmetric):
    """The objective names the host, and its `dim` is the width of the embedding. The network that hallucinates is
    part of the objective: trained and saved with the rest, not used in evaluation.

    MoCo: `objectives.Hallucinator(InfoNCE(queue_size=...))` and `momentum`; the only host of which the authors' code
    has recipes. SimCLR: `Hallucinator(NTXent())`. SimSiam: `Hallucinator(SimSiam())`, which gets a predictor; the
    rate of the predictor stays constant, as in `SimSiam`.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        objective: default over NT-Xent.
        momentum: of the momentum encoder, for a MoCo host only. Authors: 0.999.
        projector_hidden: width of the hidden layer; default that of the backbone.
        projector_norm: BatchNorm in the head of MoCo and SimCLR, which the authors have not; SimSiam's always has it.
        symmetric: both directions of a MoCo host. The authors have one: view 0 is the query.
        training: those of the host. Authors, MoCo on CIFAR-10: SGD 0.5 at 512 images, momentum 0.9, weight decay 1e-4,
            no warm-up, cosine to a tenth.
    """

    unscheduled = ("predictor",)

    def __init__(
        self,
        backbone: nn.Module,
        objective: objectives.Hallucinator | None = None,
        momentum: float | None = None,
        projector_hidden: int | None = None,
        projector_norm: bool = False,
        symmetric: bool = False,
        training: Training = Training(partial(LARS, lr=0.3, weight_decay=1e-6), Schedule()),
    ) -> None:
        objective = objective or objectives.Hallucinator(objectives.NTXent())
        if isinstance(objective.host, objectives.InfoNCE) != (momentum is not None):
            raise ValueError("Hallucinator over MoCo needs both: InfoNCE as the host, and momentum (0.999)")
        dim = objective.dim
        hidden = projector_hidden or width_of(backbone)
        predicts = isinstance(objective.host, objectives.BYOL)
        head = projector(
            width_of(backbone), hidden, dim, norm=projector_norm or predicts, last="standard" if predicts else "linear"
        )  # fmt: skip
        super().__init__(
            backbone, head, objective, training, momentum=momentum,
            predictor=projector(dim, max(1, dim // 4), dim) if predicts else None,
            symmetric=symmetric or momentum is None,
        )  # fmt: skip
