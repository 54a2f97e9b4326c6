"""FDT (Chen et al., CVPR 2023): images and texts as weights of shared discrete tokens."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from typing_extensions import override

from manyviews import objectives
from manyviews.backbones import Encoding, width_of
from manyviews.heads import LogitScale
from manyviews.methods.imagetext import ImageText
from manyviews.methods.method import Batch, Step
from manyviews.objectives.clip import Positives
from manyviews.optim import Schedule, Training


class FDT(ImageText):
    """FDT (Chen et al., CVPR 2023): both modalities as sparse mixtures of one codebook.

    Args:
        backbone: image tower with tokens. text_backbone: text tower with tokens.
        codes, temperature, logit_scale: see `manyviews.objectives.FDT`. dim: of a code.
        training: paper: AdamW 1e-3, betas (0.9, 0.98), weight decay 0.1; 2,500 steps of warm-up, cosine.
        positives: as in CLIP.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        codes: int = 16384,
        dim: int = 512,
        temperature: float = 1000.0,
        logit_scale: LogitScale | None = None,
        training: Training = Training(
            partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1),
            Schedule(warmup_steps=2500, scaling="none"),
        ),
        positives: Positives = "own",
    ) -> None:
        widths = width_of(backbone), width_of(text_backbone)
        objective = objectives.FDT(widths, codes, dim, temperature, scale=logit_scale, positives=positives)
        super().__init__(backbone, text_backbone, objective, dim, nn.Identity(), nn.Identity(), training)

    @override
    def step(self, batch: Batch) -> Step:
        images, texts = self.towers(batch, tokens=True)
        tokens, masks = zip(*(each[0].patches() for each in (images, texts)), strict=True)
        pair = [images[0].pooled, texts[0].pooled]
        whole = [each[:, : min(x.shape[1] for x in pair)] for each in pair]  # they take no part
        context = {**self.context(batch), "tokens": list(tokens), "masks": list(masks)}
        loss = self.objective(whole, **context)
        with torch.no_grad():
            return Step(loss, images, [self.joint_image(images[0]).pooled, self.joint_text(texts[0]).pooled])

    @override
    def joint_image(self, features: Encoding) -> Encoding:
        assert isinstance(self.objective, objectives.FDT)
        return Encoding(self.objective.embed(*features.patches(), 0))

    @override
    def joint_text(self, features: Encoding) -> Encoding:
        assert isinstance(self.objective, objectives.FDT)
        return Encoding(self.objective.embed(*features.patches(), 1))
