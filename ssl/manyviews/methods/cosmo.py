"""COSMO's contrastive part (Wang et al., 2024): latents pooled from tokens."""

from __future__ import annotations

import math

from torch import nn
from typing_extensions import override

from manyviews import objectives
from manyviews.backbones import Encoding, width_of
from manyviews.heads import LatentPool, LogitScale
from manyviews.methods.imagetext import OPEN_CLIP, ImageText
from manyviews.methods.method import Batch, Step
from manyviews.objectives.clip import Positives
from manyviews.optim import Training
from manyviews.similarity import unit


class COSMO(ImageText):
    """COSMO's contrastive part (Wang et al., 2024): a learned query pools the tokens of each side.

    Args:
        backbone: image tower with tokens; the paper locks CLIP's. text_backbone: the unimodal half of a language model,
            or any text tower with tokens.
        dim: of the joint space; paper 512. heads: of the pooling attention.
        logit_scale: s; the paper starts at exp(0.2), learned and free.
        training: as in CLIP.
        positives: as in CLIP.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        dim: int = 512,
        heads: int = 8,
        logit_scale: LogitScale | None = None,
        training: Training = OPEN_CLIP,
        positives: Positives = "own",
    ) -> None:
        image, text = (LatentPool(width_of(tower), dim, heads) for tower in (backbone, text_backbone))
        objective = objectives.CLIP(logit_scale or LogitScale(math.exp(0.2), None), positives=positives)
        super().__init__(backbone, text_backbone, objective, dim, image, text, training)

    @override
    def step(self, batch: Batch) -> Step:
        images, texts = self.towers(batch, tokens=True)
        pair = [self.projector(*images[0].patches()), self.text_projector(*texts[0].patches())]
        return Step(self.objective(pair, **self.context(batch)), images, pair)

    @override
    def joint_image(self, features: Encoding) -> Encoding:
        return Encoding(unit(self.projector(*features.patches())))

    @override
    def joint_text(self, features: Encoding) -> Encoding:
        return Encoding(unit(self.text_projector(*features.patches())))
