"""CG-VLM's contrastive part (Liu et al., 2023)."""

from __future__ import annotations

from torch import nn

from manyviews import objectives
from manyviews.heads import LogitScale
from manyviews.methods.imagetext import OPEN_CLIP
from manyviews.methods.tokens import TokenImageText
from manyviews.objectives.clip import Positives
from manyviews.optim import Training


class CGVLM(TokenImageText):
    """CG-VLM's contrastive alignment (Liu et al., 2023): the mean patch against the mean word.

    Args:
        backbone: image tower with tokens. text_backbone: text tower with tokens; the paper has word embeddings only.
        dim: of the joint space.
        logit_scale: s; default 1/0.07, learned, kept in [1, 100].
        training: as in CLIP. The paper locks the image tower.
        positives: as in CLIP.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        dim: int = 256,
        logit_scale: LogitScale | None = None,
        training: Training = OPEN_CLIP,
        positives: Positives = "own",
    ) -> None:
        super().__init__(backbone, text_backbone, objectives.CGVLM(logit_scale, positives), dim, None, training)
        self.projector = self.text_projector = nn.Identity()
