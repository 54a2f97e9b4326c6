"""ORMA, after the abstract of its paper (BIBM 2024)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from manyviews import objectives
from manyviews.backbones import Encoding
from manyviews.methods.imagetext import OPEN_CLIP
from manyviews.methods.tokens import TokenImageText, tokens_of, with_pooled
from manyviews.optim import Training
from manyviews.tokens import transported


class ORMA(TokenImageText):
    """Optimal-transport alignment at three scales, after ORMA (BIBM 2024).

    Args:
        backbone: image tower with tokens. text_backbone: text tower with tokens.
        objective: see `manyviews.objectives.ORMA`.
        dim: of the joint space.
        training: as in CLIP.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        objective: objectives.ORMA | None = None,
        dim: int = 256,
        training: Training = OPEN_CLIP,
    ) -> None:
        super().__init__(backbone, text_backbone, objective or objectives.ORMA(), dim, None, training)

    @override
    def whole(self, image: Encoding, text: Encoding, patches: Any, words: Any) -> list[Tensor]:
        return [self.projector(image.pooled), self.text_projector(text.pooled)]

    @override
    def joint_image(self, features: Encoding) -> Encoding:
        return with_pooled(super().joint_image(features), self.projector(features.pooled))

    @override
    def joint_text(self, features: Encoding) -> Encoding:
        return with_pooled(super().joint_text(features), self.text_projector(features.pooled))

    def similarity(self, images: Encoding, texts: Encoding) -> tuple[Tensor, Tensor]:
        """(B, M), the same both ways: cosine of the wholes, multi-token similarity and minus transport cost, added."""
        (r, mask_r), (t, mask_t) = tokens_of(images), tokens_of(texts)
        assert isinstance(self.objective, objectives.ORMA)
        cost, multi = transported(t, r, mask_t, mask_r, self.objective.epsilon, True, self.objective.tolerance)
        scores = images.pooled @ texts.pooled.T + multi.T + cost.T
        return scores, scores
